//! Every rule, broken once.

mod checkpointing;
mod effect;

use crate::config::{Boundary, Config, ConfigError, Loaded, Origin, ReclaimMode, Retention, Secret};

use super::*;

fn pairs(flags: &[(&str, &str)]) -> Vec<(String, String)> {
    flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn loaded(flags: &[(&str, &str)]) -> Loaded {
    Config::load_with(None, Vec::new(), &pairs(flags)).unwrap()
}

fn settings(flags: &[(&str, &str)]) -> Settings {
    loaded(flags).settings().unwrap()
}

/// Asserts that `flags` break one rule, which names `keys` and says `words`.
#[track_caller]
fn refused(flags: &[(&str, &str)], keys: &[&str], words: &str) {
    let errors = loaded(flags).settings().unwrap_err();
    let errors: Vec<&ConfigError> = errors.iter().collect();
    let [ConfigError::Rule { settings, rule }] = errors.as_slice() else { panic!("{flags:?}: {errors:#?}") };
    assert_eq!(settings.iter().map(|setting| setting.key.as_str()).collect::<Vec<_>>(), keys);
    assert!(settings.iter().all(|setting| !setting.value.is_empty() && setting.origin.is_some()), "{settings:?}");
    assert!(rule.contains(words), "{rule}");
}

#[track_caller]
fn warned(flags: &[(&str, &str)], words: &str) -> Settings {
    let settings = settings(flags);
    assert!(matches!(settings.warnings.as_slice(), [one] if one.contains(words)), "{:?}", settings.warnings);
    settings
}

const FILE_SIZE: &str = "execution.checkpointing.file-merging.max-file-size";
const AMPLIFICATION: &str = "execution.checkpointing.file-merging.max-space-amplification";

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let settings = settings(&[]);

    assert_eq!(settings.checkpointing.inline_bytes_max, 20 << 10);
    assert_eq!(settings.checkpointing.retention, Retention::NoExternalizedCheckpoints);
    assert!(settings.merging.enabled);
    assert_eq!(settings.merging.file_bytes_max, 32 << 20);
    assert_eq!(settings.merging.checkpoint_boundary, CheckpointBoundary::Within);
    assert_eq!(settings.merging.pool, PoolMode::NonBlocking);
    assert_eq!(settings.merging.shared_boundary, Boundary::Subtask);
    assert_eq!(settings.reclaim.space_amplification_max, Some(2.0));
    assert_eq!(settings.reclaim.mode, ReclaimMode::Server);
    assert!(settings.auth.keys.is_empty() && settings.auth.tokens.is_empty());
}

#[test]
fn what_must_not_be_zero_is_not() {
    for key in [
        "store.max-concurrent-requests",
        "merging.max-open-files",
        "limits.key-bytes-max",
        "reclaim.delete-rate",
        "limits.segments-per-request-max",
        "limits.connections-max",
        "limits.multipart-uploads-max",
        "limits.multipart-uploads-per-job-max",
        "limits.connections-reserved",
        "cluster.shards",
    ] {
        refused(&[(key, "0")], &[key], "at least 1");
    }
    for key in ["merging.group-bytes-max", "limits.segment-size-max", "limits.object-size-max", "reclaim.copy-rate"] {
        refused(&[(key, "0")], &[key], "more than 0 bytes");
    }
    for key in [
        "store.request-timeout",
        "merging.idle-close",
        "merging.take-deadline",
        "catalog.poll-interval",
        "limits.multipart-expiry",
        "limits.head-timeout",
        "limits.idle-timeout",
        "limits.rate-window",
        "limits.body-timeout",
        "limits.read-lease",
        "reclaim.interval",
    ] {
        refused(&[(key, "0")], &[key], "more than 0 ms");
    }
    refused(&[("cluster.lease-timeout", "0")], &["cluster.lease-timeout"], "at least 300 ms");
    let errors = loaded(&[("limits.request-timeout", "0")]).settings().unwrap_err().to_string();
    assert!(errors.contains("limits.request-timeout = \"0 ms\" (flag): must be more than 0 ms"), "{errors}");
}

#[test]
fn what_is_inside_the_memory_budget_fits() {
    let memory = "limits.memory";
    let small = [
        ("limits.multipart-memory", "4mb"),
        ("limits.multipart-part-in-memory-max", "4mb"),
        ("store.max-bytes-in-flight", "8mb"),
        (FILE_SIZE, "8mb"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [small.as_slice(), more].concat();
    let limits = settings(&with(&[(memory, "32mb")])).limits;
    assert_eq!((limits.memory_bytes, limits.kept_buffer_bytes), (30 << 20, 2 << 20));
    // Kept for reads, kept for writes; what streams through and is read from storage: two parts, and three pieces.
    assert_eq!((limits.reads_kept_bytes, limits.writes_kept_bytes), ((30 << 20) / 8, 15 << 20));
    assert_eq!((limits.connection_memory_bytes, limits.key_memory_bytes), (19 << 20, 19 << 20));
    refused(&with(&[(memory, "31mb")]), &[memory, "store.part-size"], "at least 4 parts");
    refused(
        &[("limits.multipart-memory", "475mb")],
        &[memory, "limits.multipart-memory", "store.part-size"],
        "besides",
    );
    refused(&[("limits.multipart-memory", "513mb")], &["limits.multipart-memory", memory], "must fit");
    refused(&[("store.max-bytes-in-flight", "1g")], &["store.max-bytes-in-flight", memory], "must fit");
    refused(&[(FILE_SIZE, "1g")], &[FILE_SIZE, memory], "must fit");
    let buffer = "execution.checkpointing.write-buffer-size";
    refused(&[(buffer, "1g")], &[buffer, memory], "must fit");
    let part = "limits.multipart-part-in-memory-max";
    refused(&[(part, "129mb")], &[part, "limits.multipart-memory"], "must fit");
    refused(&[("store.max-bytes-in-flight", "7mb")], &["store.part-size", "store.max-bytes-in-flight"], "must fit");
}

#[test]
fn the_least_memory_still_holds_a_block_to_read_and_a_segment_to_write() {
    let limits = settings(&[
        ("limits.memory", "2mb"),
        ("limits.multipart-memory", "1mb"),
        ("limits.multipart-part-in-memory-max", "256kb"),
        ("store.part-size", "512kb"),
        ("store.max-bytes-in-flight", "1mb"),
        (FILE_SIZE, "1mb"),
        ("merging.group-bytes-max", "1mb"),
    ])
    .limits;

    assert_eq!((limits.reads_kept_bytes, limits.writes_kept_bytes), (0, limits.memory_bytes - (1 << 20)));
    assert_eq!((limits.connection_memory_bytes, limits.connections_bytes_max), (limits.memory_bytes, 0));
}

#[test]
fn sizes_follow_the_rules_of_s3() {
    let (s3, part) = (("store.url", "s3://flink-state"), "store.part-size");
    refused(&[s3, (part, "4mb"), ("limits.segment-size-max", "1gb")], &[part, "store.url"], "5 mb to 5 gb");
    refused(&[(part, "1kb")], &[part, "store.url"], "64 kb to 5 gb");
    refused(&[s3, ("limits.segment-size-max", "79gb")], &["limits.segment-size-max", part], "10000 parts");
    refused(&[("limits.object-size-max", "49tb")], &["limits.object-size-max"], "10000 parts of 5 gb");
    refused(&[s3, (FILE_SIZE, "6gb"), ("limits.memory", "8gb")], &[FILE_SIZE, "store.url"], "single PUT");
    for url in ["gs://flink-state", "az://flink-state"] {
        let url = ("store.url", url);
        refused(&[url, (part, "4mb"), ("limits.segment-size-max", "1gb")], &[part, "store.url"], "5 mb to 5 gb");
        refused(&[url, (FILE_SIZE, "6gb"), ("limits.memory", "8gb")], &[FILE_SIZE, "store.url"], "single PUT");
    }
    let azure = ("store.url", "az://flink-state");
    refused(&[azure, (FILE_SIZE, "5gb"), ("limits.memory", "8gb")], &[FILE_SIZE, "store.url"], "5000 mb");
    assert_eq!(settings(&[(part, "1mb"), ("limits.segment-size-max", "1tb")]).store.part_bytes, 1 << 20);
}

#[test]
fn merging_is_checked() {
    refused(&[("merging.group-bytes-max", "33mb")], &["merging.group-bytes-max", FILE_SIZE], "must fit into a file");
    for wrong in ["1.1", "-0.1"] {
        refused(&[("merging.linger-fraction", wrong)], &["merging.linger-fraction"], "from 0 to 1");
    }
    for wrong in ["subtask", "task-manager"] {
        refused(&[("merging.s3-boundary", wrong)], &["merging.s3-boundary"], "`job` or `daemon`");
    }
    refused(&[("merging.lazy-linger", "11 s")], &["merging.lazy-linger"], "at most 10 s");
    let across = settings(&[("execution.checkpointing.file-merging.across-checkpoint-boundary", "true")]);
    assert_eq!(across.merging.checkpoint_boundary, CheckpointBoundary::Across);
    let blocking = settings(&[("execution.checkpointing.file-merging.pool-blocking", "true")]);
    assert_eq!(blocking.merging.pool, PoolMode::Blocking);
}

#[test]
fn no_number_is_not_a_number_to_work_with() {
    let mut config = Config::default();
    config.execution.checkpointing.file_merging.max_space_amplification = f64::NAN;
    config.merging.linger_fraction = f64::NAN;

    let errors = Settings::try_from(&config).unwrap_err();

    assert_eq!(errors.iter().count(), 2);
}

#[test]
fn the_store_is_checked() {
    let s3 = ("store.url", "s3://flink-state");
    refused(&[s3, ("store.access-key", "a")], &["store.access-key", "store.secret-key"], "both or neither");
    refused(&[s3, ("store.secret-key", "a")], &["store.access-key", "store.secret-key"], "both or neither");
    refused(
        &[s3, ("store.endpoint", "http://minio:9000")],
        &["store.endpoint", "store.allow-http"],
        "allow-http = true",
    );
    for other in
        ["http://127.example.com", "http://localhost.example.com:9000", "http://10.0.0.1/127.0.0.1", "http://[::2]"]
    {
        refused(&[s3, ("store.endpoint", other)], &["store.endpoint", "store.allow-http"], "allow-http = true");
    }
    for here in ["http://127.0.0.1:9000", "http://127.9.9.9", "HTTP://LocalHost:9000/", "http://[::1]:9000"] {
        assert!(settings(&[s3, ("store.endpoint", here)]).store.allow_http, "{here}");
    }
    assert!(!settings(&[s3, ("store.endpoint", "https://minio:9000")]).store.allow_http);
    for wrong in ["minio:9000", "ftp://x", "https://", "https://a:b@host", "https://host?x"] {
        refused(&[s3, ("store.endpoint", wrong)], &["store.endpoint"], "must be `http://` or `https://`");
    }
    let good = settings(&[s3, ("store.access-key", "a"), ("store.secret-key", "b")]);
    let pair = Credentials { access_key: "a".into(), secret_key: Secret::new("b") };
    assert_eq!(good.store.credentials, Some(pair));
    warned(&[("store.region", "eu-central-1")], "the store is not S3");
    warned(&[("merging.delete-durability", "lazy")], "a commit costs no request");
    let ledger = ("merging.delete-ledger", "/var/lib/esker/deletes");
    assert_eq!(settings(&[s3, ledger]).merging.delete_ledger, Some("/var/lib/esker/deletes".into()));
    for without in ["commit", "lazy"] {
        let other = [s3, ledger, ("merging.delete-durability", without)];
        assert_eq!(settings(&other).merging.delete_ledger, None);
        warned(&other, "on an object store, without a cluster");
    }
    warned(&[ledger], "on an object store, without a cluster");
    assert_eq!(settings(&[s3, ("merging.delete-ledger", "")]).merging.delete_ledger, None);
    warned(&[("store.endpoint", "https://minio:9000")], "not S3, Google Cloud Storage or Azure");
}

#[test]
fn a_store_on_google_cloud_storage_or_azure_is_checked() {
    let (gcs, azure) = (("store.url", "gs://flink-state"), ("store.url", "az://flink-state"));
    let (file, account, key) = ("store.gcs.service-account", "store.azure.account", "store.azure.account-key");
    let of_account = ("store.url", "abfss://state@acme1.dfs.core.windows.net");

    let good = settings(&[azure, (account, "acme1"), (key, "c2VjcmV0")]).store;
    assert_eq!(good.azure, AzureSettings { account: Some("acme1".into()), account_key: Some(Secret::new("c2VjcmV0")) });
    assert_eq!(settings(&[gcs, (file, "/key.json")]).store.gcs_service_account, Some("/key.json".into()));
    assert!(settings(&[of_account, (account, "acme1")]).warnings.is_empty());
    // The catalog may be on another store than the data.
    assert!(settings(&[azure, ("catalog.url", "gs://catalog"), (file, "/key.json")]).warnings.is_empty());

    for wrong in ["ab", "Acme", "acme-1", "a234567890123456789012345"] {
        refused(&[azure, (account, wrong)], &[account], "3 to 24 small letters and digits");
    }
    for wrong in ["not base64", "abc"] {
        refused(&[azure, (key, wrong)], &[key], "Base64");
    }
    refused(&[of_account, (account, "acme2")], &[account, "store.url"], "another account");
    let catalog = ("catalog.url", "abfss://state@acme1.dfs.core.windows.net/catalog");
    refused(&[azure, catalog, (account, "acme2")], &[account, "catalog.url"], "another account");
    let here = ("store.endpoint", "http://127.0.0.1:10000");
    let both = ["store.endpoint", "store.url", "catalog.url"];
    refused(&[azure, ("catalog.url", "gs://catalog"), here], &both, "of one service");
    warned(&[azure, (file, "/key.json")], "not Google Cloud Storage");
    warned(&[gcs, (account, "acme1")], "not Azure");
    warned(&[gcs, (key, "c2VjcmV0")], "not Azure");
    warned(&[gcs, ("store.region", "eu-central-1")], "the store is not S3");
}

#[test]
fn the_catalog_is_checked() {
    refused(&[("catalog.url", "memory:")], &["catalog.url", "store.url"], "forgets data");
    assert!(settings(&[("catalog.url", "memory:"), ("store.url", "memory:")]).catalog.url.is_some());
    for (key, value) in
        [("catalog.cache", "1kb"), ("catalog.unflushed-max", "1mb"), ("catalog.log-segment-size", "1kb")]
    {
        refused(&[(key, value)], &[key], "at least");
    }
}

#[test]
fn limits_are_checked() {
    refused(&[("limits.key-bytes-max", "1025")], &["limits.key-bytes-max"], "at most 1024");
    refused(&[("limits.header-bytes-max", "8191")], &["limits.header-bytes-max"], "at least 8 kb");
    for key in ["limits.read-share", "limits.write-share", "limits.connection-share", "limits.key-share"] {
        refused(&[(key, "-0.1")], &[key], "from 0 to 1");
    }
    let (reads, writes) = ("limits.read-share", "limits.write-share");
    refused(&[(reads, "0.5"), (writes, "0.6")], &[reads, writes], "together");
    let metadata = "limits.metadata-bytes-max";
    refused(&[(metadata, "33kb")], &[metadata, "limits.header-bytes-max"], "must fit");
    for key in ["limits.admission-timeout", "limits.body-timeout"] {
        refused(&[(key, "2 h")], &[key, "limits.request-timeout"], "not be longer");
    }
}

#[test]
fn names_are_checked() {
    for (key, wrong) in [
        ("server.region", "not a region"),
        ("cluster.daemon-id", "a/b"),
        ("cluster.advertised-url", "host:1"),
        ("server.virtual-host-domains", "https://s3.local"),
        ("telemetry.log-filter", "esker=loud"),
        ("server.s3", "localhost:9000"),
        ("server.api", "127.0.0.1"),
        ("auth.tokens", "two words"),
        ("auth.tokens", "same,same"),
    ] {
        refused(&[(key, wrong)], &[key], "must be");
    }
    let long = "x".repeat(108);
    refused(&[("server.api-unix-socket", &long)], &["server.api-unix-socket"], "1 to 107 bytes");
    let domains = settings(&[("server.virtual-host-domains", "S3.local, minio:9000")]).server.virtual_host_domains;
    assert_eq!(domains, ["s3.local", "minio:9000"]);
    refused(&[("server.api", "127.0.0.1:9000")], &["server.s3", "server.api"], "not share an address");
}

#[test]
fn keys_of_the_s3_door_are_checked() {
    let (access, secret) = (("auth.access-key", "main"), ("auth.secret-key", "s"));
    let keys = |text: &'static str| ("auth.keys", text);
    refused(&[access], &["auth.access-key", "auth.secret-key"], "both or neither");
    let twice = keys("[{access-key = \"main\", secret-key = \"x\"}]");
    refused(&[access, secret, twice], &["auth.access-key", "auth.keys"], "twice");
    let odd = keys("[{access-key = \"a/b\", secret-key = \"x\"}]");
    refused(&[odd], &["auth.access-key", "auth.secret-key", "auth.keys"], "printable");
    let slash = keys("[{access-key = \"a\", secret-key = \"x\", prefixes = [\"/b\"]}]");
    refused(&[slash], &["auth.keys"], "without a slash");
    let good = keys("[{access-key = \"a\", secret-key = \"x\", prefixes = [\"b/c\"]}]");
    let auth = settings(&[access, secret, good]).auth;
    assert_eq!(auth.keys.iter().map(|key| key.access_key.as_str()).collect::<Vec<_>>(), ["main", "a"]);
    assert_eq!(auth.keys[1].prefixes, ["b/c"]);
}

#[test]
fn other_hosts_need_credentials() {
    for address in ["0.0.0.0:9000", "[::]:9000", "192.0.2.1:9000"] {
        refused(&[("server.s3", address)], &["server.s3", "auth.access-key", "auth.insecure"], "credentials only");
    }
    refused(&[("server.api", "0.0.0.0:1")], &["server.api", "auth.tokens", "auth.insecure"], "credentials only");
    let keys = [("auth.access-key", "a"), ("auth.secret-key", "b")];
    assert!(settings(&[("server.s3", "0.0.0.0:0"), keys[0], keys[1]]).warnings.is_empty());
    assert!(settings(&[("server.api", "[::]:0"), ("auth.tokens", "t")]).warnings.is_empty());
    assert!(settings(&[("server.s3", "[::1]:0"), ("server.api", "127.9.9.9:0")]).warnings.is_empty());
    assert!(settings(&[("server.s3", "[::ffff:127.0.0.1]:0")]).warnings.is_empty());
    warned(&[("server.s3", "0.0.0.0:9000"), ("auth.insecure", "true")], "can read and delete");
}

#[test]
fn a_short_grace_is_legal_and_warned_about() {
    let settings = warned(&[("reclaim.delete-grace", "0 ms")], "stays until it is swept");

    assert_eq!(settings.reclaim.delete_grace, Duration::ZERO);
}

#[test]
fn a_broken_rule_says_where_its_values_came_from() {
    let errors = loaded(&[("limits.memory", "64mb"), ("store.max-bytes-in-flight", "32mb")]).settings().unwrap_err();

    let text = errors.to_string();
    let wanted = "limits.multipart-memory = \"128 mb\" (default), limits.memory = \"64 mb\" (flag): the first must fit";
    assert_eq!(text.lines().last().unwrap().trim(), format!("{wanted} into the second"));
    assert!(errors.iter().all(|error| matches!(error, ConfigError::Rule { settings, .. }
        if settings.iter().any(|setting| setting.origin == Some(Origin::Flag)))));
}
