//! Layers, messages, masking, and that `config.toml` says what the code does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::schema::{ConfigEntry, Effect};
use super::values::Literal;
use super::*;

const CONFIG_TOML: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn env(vars: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    vars.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// A configuration file in a directory that is gone when this is dropped.
struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    File { _dir: dir, path }
}

fn load(text: &str, vars: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    Config::load_with(Some(&file(text).path), env(vars), &pairs(flags))
}

fn errors(text: &str, vars: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    load(text, vars, flags).unwrap_err().iter().map(ConfigError::to_string).collect()
}

fn flag_error(key: &str, value: &str) -> String {
    errors("", &[], &[(key, value)]).join("\n")
}

#[test]
fn without_file_environment_and_flags_everything_is_default() {
    let loaded = Config::load_with(None, env(&[("PATH", "/bin"), ("ESKER_CONFIG", "x")]), &[]).unwrap();

    assert_eq!(loaded.config, Config::default());
    assert!(loaded.origins.is_empty());
    assert!(loaded.settings().unwrap().warnings.is_empty());
}

#[test]
fn environment_overrides_the_file_and_flags_override_both() {
    let text = "[store]\nurl = 'file:./a'\nmax-concurrent-requests = 1\nregion = 'file'\n";
    let vars = [("ESKER__STORE__URL", "file:./b"), ("ESKER__STORE__MAX_CONCURRENT_REQUESTS", "2")];

    let loaded = load(text, &vars, &[("store.url", "memory:")]).unwrap();

    assert_eq!(loaded.config.store.url, StoreUrl::Memory);
    assert_eq!(loaded.config.store.max_concurrent_requests, 2);
    assert_eq!(loaded.config.store.region.as_deref(), Some("file"));
    assert_eq!(loaded.origin("store.url"), Origin::Flag);
    let name = "ESKER__STORE__MAX_CONCURRENT_REQUESTS".to_owned();
    assert_eq!(loaded.origin("store.max-concurrent-requests"), Origin::Env(name));
    assert!(matches!(loaded.origin("store.region"), Origin::File { line: 4, .. }));
    assert_eq!(loaded.origin("store.part-size"), Origin::Default);
}

#[test]
fn nested_sections_are_reached_from_every_layer() {
    let text = "execution.checkpointing.unaligned.enabled = true\n\
                [execution.checkpointing.local-backup]\nenabled = true";
    let vars = [
        ("ESKER__EXECUTION__CHECKPOINTING__NUM_RETAINED", "3"),
        ("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_FILE_SIZE", "16mb"),
        ("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_SPACE_AMPLIFICATION", "3"),
        ("ESKER__EXECUTION__CHECKPOINTING__UNALIGNED__INTERRUPTIBLE_TIMERS__ENABLED", "true"),
    ];
    let flags = [("execution.checkpointing.mode", "at_least_once")];

    let flink = load(text, &vars, &flags).unwrap().config.execution.checkpointing;

    assert!(flink.unaligned.enabled && flink.local_backup.enabled && flink.unaligned.interruptible_timers.enabled);
    assert_eq!(flink.num_retained, 3);
    assert_eq!(flink.file_merging.max_file_size, MemorySize::mib(16));
    assert_eq!(flink.file_merging.max_space_amplification, 3.0);
    assert_eq!(flink.mode, CheckpointMode::AtLeastOnce);
}

#[test]
fn a_texts_meaning_depends_on_its_key() {
    let vars = [
        ("ESKER__STORE__ACCESS_KEY", "1234"),
        ("ESKER__STORE__SECRET_KEY", "true"),
        ("ESKER__STORE__ALLOW_HTTP", "true"),
        ("ESKER__STORE__PART_SIZE", "6291456"),
        ("ESKER__SERVER__DRAIN_TIMEOUT", "250"),
        ("ESKER__SERVER__VIRTUAL_HOST_DOMAINS", "s3.local, [::1"),
        ("ESKER__AUTH__TOKENS", "[\"one\", \"two\"]"),
        ("ESKER__AUTH__KEYS", "[{access-key = \"a\", secret-key = \"b\"}]"),
        ("ESKER__STORE__REGION", ""),
        ("ESKER__EXECUTION__CHECKPOINTING__LOCAL_BACKUP__DIRS", "/a;/b"),
    ];

    let config = load("store.region = 'x'", &vars, &[]).unwrap().config;

    assert_eq!(config.store.access_key.as_deref(), Some("1234"));
    assert_eq!(config.store.secret_key.unwrap().expose(), "true");
    assert!(config.store.allow_http);
    assert_eq!(config.store.part_size, MemorySize::mib(6));
    assert_eq!(config.server.drain_timeout, Span::millis(250));
    assert_eq!(config.server.virtual_host_domains, ["s3.local", "[::1"]);
    assert_eq!(config.auth.tokens, [Secret::new("one"), Secret::new("two")]);
    assert_eq!(config.auth.keys[0].access_key, "a");
    assert_eq!(config.store.region, None);
    assert_eq!(config.execution.checkpointing.local_backup.dirs, ["/a", "/b"]);
}

#[test]
fn an_unknown_key_is_named_with_its_origin_and_the_nearest_key() {
    let text = "[store]\nulr = 'memory:'\n[stor]\n[server]\nmax-file-size = 1\n";

    let errors = errors(text, &[("ESKER__LIMITS__MEMMORY", "1")], &[("reclaim.grace", "1")]).join("\n");

    assert!(errors.contains("unknown key `store.ulr` (file "), "{errors}");
    assert!(errors.contains("config.toml:2), the nearest known key is `store.url`"), "{errors}");
    assert!(errors.contains("`execution.checkpointing.file-merging.max-file-size`"), "{errors}");
    assert!(errors.contains("unknown key `stor` (file "), "{errors}");
    let wanted = "`limits.memmory` (env ESKER__LIMITS__MEMMORY), the nearest known key is `ESKER__LIMITS__MEMORY`";
    assert!(errors.contains(wanted), "{errors}");
    assert!(errors.contains("`reclaim.grace` (flag), the nearest known key is `reclaim.sweep-grace`"), "{errors}");
}

#[test]
fn underscores_and_lower_case_are_not_guessed_at() {
    assert!(flag_error("store.part_size", "8mb").contains("nearest known key is `store.part-size`"));
    let errors = errors("", &[("ESKER__store__url", "memory:")], &[]).join("\n");
    assert!(errors.contains("nearest known key is `ESKER__STORE__URL`"), "{errors}");
}

#[test]
fn a_section_is_not_a_value() {
    let errors = errors("[execution.checkpointing]\nunaligned = true", &[], &[]).join("\n");

    assert!(errors.contains("execution.checkpointing.unaligned = true (file "), "{errors}");
    assert!(errors.contains("expected a section with keys such as"), "{errors}");
    assert!(errors.contains("execution.checkpointing.unaligned.enabled"), "{errors}");
}

#[test]
fn a_wrong_value_is_named_with_key_origin_and_what_is_allowed() {
    for (key, value, wanted) in [
        (
            "store.part-size",
            "8 parsecs",
            "store.part-size = \"8 parsecs\" (flag): unit `parsecs` is not one of bytes, b",
        ),
        ("store.part-size", "-1", "expected a size such as `32mb`"),
        ("server.drain-timeout", "soon", "expected a duration such as `10 min`"),
        ("merging.s3-boundary", "host", "expected one of `subtask` `task-manager` `job` `daemon`"),
        ("merging.max-open-files", "many", "expected a whole number from 0 to 4294967295"),
        ("merging.max-open-files", "-1", "expected a whole number from 0 to 4294967295"),
        ("merging.max-open-files", "4294967296", "expected a whole number from 0 to 4294967295"),
        ("merging.linger-fraction", "some", "expected a number"),
        ("store.allow-http", "yes", "expected true or false"),
        (
            "store.url",
            "ftp://name/x",
            "expected `file:./dir`, `file:///dir`, `memory:`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://",
        ),
        ("execution.checkpointing.mode", "ONCE", "expected one of `EXACTLY_ONCE` `AT_LEAST_ONCE`"),
        ("execution.checkpointing.storage", "com.acme.Factory", "expected one of `jobmanager` `filesystem`"),
        ("limits.memory", "", "the value is empty"),
    ] {
        let error = flag_error(key, value);
        assert!(error.starts_with(&format!("{key} = ")), "{error}");
        assert!(error.contains(wanted), "{error}");
    }
    for (text, wanted) in [
        ("store.part-size = true", "store.part-size = true (file "),
        ("store.part-size = true", "expected a size such as"),
        ("store.part-size = -5", "the value is negative"),
        ("store.part-size = 1.5", "expected a size such as"),
        ("merging.max-open-files = '7'", "expected a whole number"),
        ("server.region = 5", "expected text"),
        ("server.virtual-host-domains = 'x'", "expected a list"),
        ("merging.shared-boundary = 3", "expected one of `subtask`"),
    ] {
        let errors = errors(text, &[], &[]).join("\n");
        assert!(errors.contains(wanted), "{text}: {errors}");
    }
}

#[test]
fn entries_of_the_key_list_are_checked_one_by_one() {
    let missing = errors("[[auth.keys]]\naccess-key = 'a'", &[], &[]).join("\n");
    assert!(missing.contains("auth.keys.0 = ******** (file "), "{missing}");
    assert!(missing.contains("`secret-key` is missing"), "{missing}");
    let unknown = errors("[[auth.keys]]\naccess-key = 'a'\nsecret-key = 'b'\nprefix = []", &[], &[]).join("\n");
    assert!(unknown.contains("unknown key `auth.keys.0.prefix` (file "), "{unknown}");
    assert!(unknown.contains("config.toml:4)"), "{unknown}");
    assert!(unknown.contains("nearest known key is `auth.keys.prefixes`"), "{unknown}");
    let none = errors("[[auth.keys]]\naccess-key = 'a'\nsecret-key = 'b'\nprefixes = []", &[], &[]).join("\n");
    assert!(none.contains("auth.keys.0.prefixes = ") && none.contains("expected one prefix or more"), "{none}");
}

#[test]
fn hadoops_keys_have_a_value_each_and_lists_keep_their_commas() {
    let url = "[store]\nurl = 'hdfs://ns/esker'\n[store.hdfs]\n";
    let loaded = load(&format!("{url}conf = ['dfs.nameservices = ns', 'dfs.ha.namenodes.ns=a,b']"), &[], &[]).unwrap();
    let pairs = [("dfs.nameservices", "ns"), ("dfs.ha.namenodes.ns", "a,b")];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(loaded.settings().unwrap().store.hdfs.conf, pairs);
    for wrong in ["dfs.nameservices", "=ns", " = ns"] {
        let refused = load(&format!("{url}conf = ['{wrong}']"), &[], &[]).unwrap().settings().unwrap_err().to_string();
        assert!(refused.contains("store.hdfs.conf") && refused.contains("a key of Hadoop"), "{refused}");
    }
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let text = "[store]\nulr = 'x'\nmax-concurrent-requests = 'many'\n[limits]\nmemory = '64mb'\n";

    let errors = errors(text, &[("ESKER__SERVER__ETAG", "sha")], &[("catalog.cache", "big"), ("x", "y")]);

    let all = errors.join("\n");
    for wanted in ["store.ulr", "store.max-concurrent-requests", "server.etag", "catalog.cache", "unknown key `x`"] {
        assert!(all.contains(wanted), "{wanted}: {all}");
    }
    // A rule between two good values is broken too, and said; rules about refused values are not.
    assert!(all.contains("limits.multipart-memory = \"128 mb\" (default), limits.memory = \"64 mb\" (file "), "{all}");
    assert!(!errors.iter().any(|error| error.contains("catalog.cache =") && error.contains("at least")), "{all}");
}

#[test]
fn a_wrong_value_is_reported_though_a_later_layer_overrides_it() {
    let errors = errors("store.part-size = 'x'", &[], &[("store.part-size", "16mb")]);

    assert_eq!(errors.len(), 1);
}

#[test]
fn a_wrong_value_is_placed_in_its_file() {
    let text = "# Ours.\n\n[store]\nurl = 'x'\n[server]\nbuckets = [\n  'a-good-one',\n  7,\n]\n\n[[auth.keys]]\n\
                access-key = 'a'\nsecret-key = 'b'\n[[auth.keys]]\naccess-key = 'c'\n[limits]\nmemory = '1 mb'\n";

    let errors = errors(text, &[], &[]);

    for (line, wanted) in [
        (4, "store.url = \"x\" (file "),
        (8, "server.buckets.1 = [\"a-good-one\", 7] (file "),
        (14, "auth.keys.1 = ******** (file "),
        (17, "limits.memory = \"1 mb\" (file "),
    ] {
        let place = format!("config.toml:{line})");
        assert!(errors.iter().any(|error| error.contains(wanted) && error.contains(&place)), "{wanted}: {errors:#?}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_named_with_both_places() {
    for (text, wanted) in [
        ("[store]\nregion = 'a'\nregion = 'b'", "line 3, column 1: duplicate key `region` in table `store`"),
        ("[store]\n[server]\n[store]", "line 3, column 1: invalid table header: duplicate key `store`"),
        ("store.region = 'a'\n\n[store]\nurl = 'memory:'", "line 3, column 1: "),
        ("\"store.region\" = 'a'\n[store]\nregion = 'b'", "config.toml:3): is set before that (file "),
    ] {
        let errors = errors(text, &[], &[]).join("\n");
        assert!(errors.contains(wanted), "{text}: {errors}");
    }
}

#[test]
fn numbers_of_the_environment_are_read_leniently() {
    let vars = [
        ("ESKER__MERGING__LINGER_FRACTION", " .5 "),
        ("ESKER__MERGING__MAX_OPEN_FILES", "007"),
        ("ESKER__CLUSTER__SHARDS", "0x10"),
        ("ESKER__LIMITS__MEMORY", "\"1 gb\""),
    ];

    let config = load("", &vars, &[]).unwrap().config;

    assert_eq!(config.merging.linger_fraction, 0.5);
    assert_eq!(config.merging.max_open_files, 7);
    assert_eq!(config.cluster.shards, 16);
    assert_eq!(config.limits.memory, MemorySize::gib(1));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load_with(Some(Path::new("/nowhere/esker.toml")), env(&[]), &[]).unwrap_err().to_string();

    assert!(error.contains("/nowhere/esker.toml"), "{error}");
}

#[test]
fn a_syntax_error_is_placed_without_quoting_the_line() {
    let errors = errors("[auth]\nsecret-key = \"hunter2\n", &[], &[]);

    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("is not TOML: TOML parse error at line 2"), "{}", errors[0]);
    assert!(!errors[0].contains("hunter2"), "{}", errors[0]);
}

#[test]
fn a_variable_that_is_not_utf8_is_an_error() {
    use std::os::unix::ffi::OsStringExt;
    let vars = vec![(OsString::from("ESKER__SERVER__REGION"), OsString::from_vec(vec![0xff]))];

    let error = Config::load_with(None, vars, &[]).unwrap_err().to_string();

    assert!(error.contains("server.region") && error.contains("expected UTF-8"), "{error}");
}

#[test]
fn show_lists_every_key_with_its_value_and_origin() {
    let loaded = load(
        "[store]\nurl = 's3://flink-state/p'",
        &[("ESKER__SERVER__DRAIN_TIMEOUT", "90")],
        &[("limits.memory", "1g")],
    );

    let shown = loaded.unwrap().show();

    assert_eq!(shown.lines().count(), Config::keys().len());
    let line = |key: &str| shown.lines().find(|line| line.contains(key)).unwrap().to_owned();
    assert!(line("store.url = \"s3://flink-state/p\" ").contains("# file /"));
    assert!(line("server.drain-timeout = \"90 ms\" ").ends_with("# env ESKER__SERVER__DRAIN_TIMEOUT"));
    assert!(line("limits.memory = \"1 gb\" ").ends_with("# flag"));
    assert!(line("# store.endpoint (not set) ").ends_with("# default"));
    assert!(line("merging.linger-fraction = 0.25 ").ends_with("# default"));
}

#[test]
fn what_show_prints_is_a_configuration() {
    let loaded = load("store.region = 'a\"b'", &[], &[("merging.linger-fraction", "1"), ("auth.insecure", "true")]);
    let loaded = loaded.unwrap();

    let again = load(&loaded.show(), &[], &[]).unwrap();

    assert_eq!(again.config, loaded.config);
}

#[test]
fn secrets_are_never_printed() {
    let text = "[store]\naccess-key = 'AK'\nsecret-key = 'hunter2'\nendpoint = 'https://me:hunter2@host/x'\n\
                [auth]\naccess-key = 'AK'\nsecret-key = 'hunter2'\ntokens = ['hunter2', 'hunter2']\n\
                [[auth.keys]]\naccess-key = 'AK'\nsecret-key = 'hunter2'\n";

    let loaded = load(text, &[], &[("store.region", "not a name")]).unwrap();

    let shown = loaded.show();
    let errors = loaded.settings().unwrap_err().to_string();
    assert!(shown.contains("auth.tokens = [\"********\", \"********\"]"), "{shown}");
    assert!(shown.contains("store.endpoint = \"https://********@host/x\""), "{shown}");
    assert!(errors.contains("store.endpoint = \"https://********@host/x\""), "{errors}");
    assert!(!shown.contains("hunter2") && !errors.contains("hunter2"), "{shown}{errors}");
    assert!(!format!("{:?}", loaded.config.auth).contains("hunter2"));
}

#[test]
fn the_container_in_an_address_of_azure_is_shown_and_a_secret_there_is_not() {
    let url = "abfss://state@acme1.dfs.core.windows.net/x";
    assert!(load(&format!("store.url = '{url}'"), &[], &[]).unwrap().show().contains(url));

    let refused = |url: &str| load(&format!("store.url = '{url}'"), &[], &[]).unwrap_err().to_string();
    let shown = refused("wasbs://state@acme1.blob.core.windows.net/x");
    assert!(shown.contains("wasbs://state@acme1"), "{shown}");
    for (url, masked) in [
        ("abfss://state:hunter2@acme1.dfs.core.windows.net/x", "abfss://********@acme1"),
        ("abfss://hunter2+Secret==@acme1.dfs.core.windows.net/x", "abfss://********@acme1"),
        ("s3://hunter2@bucket/x", "s3://********@bucket"),
    ] {
        let errors = refused(url);
        assert!(errors.contains(masked) && !errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn refused_secrets_are_never_printed() {
    for text in
        ["auth.secret-key = [\"hunter2\"]", "auth.tokens = \"hunter2\"", "auth.keys = [{ secret-key = \"hunter2\" }]"]
    {
        let errors = errors(text, &[], &[]).join("\n");
        assert!(errors.contains("********") && !errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn config_toml_equals_the_defaults() {
    let loaded = Config::load_with(Some(Path::new(CONFIG_TOML)), env(&[]), &[]).unwrap();

    assert_eq!(loaded.config, Config::default());
}

/// A key in a configuration file.
struct KeyLine {
    key: String,
    /// Otherwise it is commented out, with an example.
    set: bool,
    /// The lines above.
    comment: String,
}

/// The keys of a configuration file, sorted.
fn keys_in(text: &str) -> Vec<KeyLine> {
    let (mut section, mut comment) = (String::new(), String::new());
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        }
        let (set, assignment) = line.strip_prefix("# ").map_or((true, line), |commented| (false, commented));
        let key = assignment.split_once(" = ").map(|(key, _)| key).unwrap_or_default();
        if !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c == '.' || c == '3') {
            found.push(KeyLine { key: format!("{section}.{key}"), set, comment: comment.clone() });
        } else if line.is_empty() {
            comment.clear();
        } else {
            comment.push_str(line);
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

#[test]
fn config_toml_has_every_key_once_and_comments_out_those_without_a_default_or_an_effect() {
    let text = std::fs::read_to_string(CONFIG_TOML).unwrap();

    let found: Vec<(String, bool)> = keys_in(&text).into_iter().map(|line| (line.key, line.set)).collect();

    let is_set = |entry: &ConfigEntry| entry.value != Literal::Unset && entry.effect == Effect::Now;
    let entries = Config::default().entries();
    let expected: Vec<(String, bool)> = entries.iter().map(|entry| (entry.key.clone(), is_set(entry))).collect();
    assert_eq!(found, expected);
}

#[test]
fn config_toml_says_of_each_key_whether_it_has_an_effect() {
    let text = std::fs::read_to_string(CONFIG_TOML).unwrap();

    let found: Vec<(String, Effect)> = keys_in(&text)
        .into_iter()
        .map(|line| match line.comment.as_str() {
            comment if comment.starts_with("# No effect here: ") => (line.key, Effect::Elsewhere),
            _ => (line.key, Effect::Now),
        })
        .collect();

    let entries = Config::default().entries();
    assert_eq!(found, entries.into_iter().map(|entry| (entry.key, entry.effect)).collect::<Vec<_>>());
}

#[test]
fn every_key_of_config_toml_has_a_comment_above() {
    let text = std::fs::read_to_string(CONFIG_TOML).unwrap();
    let mut above = "";
    for line in text.lines() {
        let is_key = line.starts_with(|c: char| c.is_ascii_lowercase());
        assert!(!is_key || above.starts_with('#'), "{line}");
        above = line;
    }
}

#[test]
fn the_examples_in_config_toml_are_valid_together() {
    let text = std::fs::read_to_string(CONFIG_TOML).unwrap();
    let keys = Config::keys();
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(example) if is_example(example, &keys) => example,
            _ => line,
        })
        .collect();

    let loaded = load(&uncommented.join("\n"), &[], &[("store.url", "s3://flink-state/x")]).unwrap();

    assert!(loaded.origins.len() == keys.len());
    let warnings = loaded.settings().unwrap().warnings;
    let without_effect = loaded.config.entries().iter().filter(|entry| entry.effect != Effect::Now).count();
    // Of the others one cannot tell whether they were set.
    const OF_HDFS: usize = 5;
    const OF_GCS_AND_AZURE: usize = 3;
    assert_eq!(warnings.len(), without_effect + OF_HDFS + OF_GCS_AND_AZURE, "{warnings:#?}");
    assert!(warnings.iter().all(|warning| warning.contains("has no effect")), "{warnings:#?}");
}

fn is_example(line: &str, keys: &[String]) -> bool {
    line.split_once(" = ").is_some_and(|(key, _)| keys.iter().any(|known| known.ends_with(&format!(".{key}"))))
}

#[test]
fn a_quoted_text_with_a_backslash_after_a_wide_character_does_not_panic() {
    let flags = [("store.region".to_owned(), "\"\u{d2009}\\I*\"".to_owned())];

    drop(Config::load_with(None, env(&[]), &flags).map(|loaded| loaded.settings()));
}

/// Does with a configuration what the daemon does, whatever is in it.
fn try_out(file: Option<&Path>, vars: Vec<(OsString, OsString)>, flags: &[(String, String)]) {
    let loaded = match Config::load_with(file, vars, flags) {
        Ok(loaded) => loaded,
        Err(errors) => return assert!(errors.iter().all(|error| !error.to_string().is_empty())),
    };
    let shown = loaded.show();
    assert_eq!(shown.lines().count(), Config::keys().len(), "{shown}");
    if let Err(errors) = loaded.settings() {
        assert!(errors.iter().all(|error| !error.to_string().is_empty()));
    }
    let again = load(&shown, &[], &[]).unwrap();
    let values = |shown: &str| -> Vec<String> { shown.lines().map(without_origin).collect() };
    assert_eq!(values(&again.show()), values(&shown));
}

fn without_origin(line: &str) -> String {
    line.rsplit_once("  # ").unwrap().0.trim_end().to_owned()
}

proptest::proptest! {
    #[test]
    fn no_text_for_any_key_panics(
        values in proptest::collection::vec(
            ("\\PC{0,12}|[0-9]{1,20} ?(mb|tb|s|d)?|true|\\[.*|\\{a=.*|\"\\PC{0,8}\"|-?[0-9.e]{1,9}|[a-z]{1,5}:/?/?.{0,20}", 0usize..200),
            1..8,
        ),
    ) {
        let keys = Config::keys();
        let flags: Vec<(String, String)> =
            values.into_iter().map(|(text, at)| (keys[at % keys.len()].clone(), text)).collect();

        for (key, text) in &flags {
            try_out(None, Vec::new(), &[(key.clone(), text.clone())]);
        }
        try_out(None, Vec::new(), &flags);
    }

    #[test]
    fn no_variable_panics(
        known in proptest::collection::vec((0usize..200, proptest::collection::vec(0u8.., 0..24)), 0..4),
        unknown in proptest::collection::vec(("[A-Za-z_-]{0,20}", proptest::collection::vec(0u8.., 0..8)), 0..4),
    ) {
        use std::os::unix::ffi::OsStringExt;
        let keys = Config::keys();
        let known = known.into_iter().map(|(at, value)| (super::keys::env_name(&keys[at % keys.len()]), value));
        let unknown = unknown.into_iter().map(|(name, value)| (format!("ESKER__{name}"), value));
        let mut vars: Vec<(OsString, OsString)> =
            known.chain(unknown).map(|(name, value)| (name.into(), OsString::from_vec(value))).collect();
        vars.push((OsString::from_vec(b"ESKER__\xff\xfe".to_vec()), "x".into()));

        try_out(None, vars, &[]);
    }

    #[test]
    fn no_bytes_as_a_file_panic(bytes in proptest::collection::vec(0u8.., 0..200)) {
        let file = file("");
        std::fs::write(&file.path, bytes).unwrap();

        try_out(Some(&file.path), Vec::new(), &[]);
    }

    /// Most random bytes are not TOML; what nearly is goes further.
    #[test]
    fn no_damage_to_a_good_file_panics(
        damage in proptest::collection::vec((0usize.., 0usize..40, "\\PC{0,6}|[\\[\\]{}=.,'\"#\n\\\\0-9a-z-]{0,12}"), 1..6),
    ) {
        let mut text = std::fs::read_to_string(CONFIG_TOML).unwrap();
        for (at, len, put) in damage {
            let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            let from = boundary(at % text.len());
            let to = boundary(from + len).max(from);
            text.replace_range(from..to, &put);
        }

        try_out(Some(&file(&text).path), Vec::new(), &[]);
    }
}
