//! Each key changes settings, or says that it has no effect. That the daemon reads each setting, the compiler says.

use super::*;
use crate::config::schema::{ConfigEntry, Effect};

/// Turns on what other keys are about.
const BASE: [(&str, &str); 11] = [
    ("tls.cert", "a"),
    ("tls.key", "b"),
    ("tls.client-ca", "c"),
    ("tls.client-auth", "optional"),
    ("store.url", "s3://flink-state/x"),
    ("store.access-key", "a"),
    ("store.secret-key", "b"),
    ("auth.access-key", "a"),
    ("auth.secret-key", "b"),
    ("execution.checkpointing.local-backup.enabled", "true"),
    ("execution.checkpointing.interval", "1 s"),
];

/// Of these, each key takes one that is not its default and breaks no rule.
const TEXTS: &[&str] = &[
    "true",
    "false",
    "1",
    "3",
    "7",
    "0.3",
    "1.5",
    "1 mb",
    "12 mb",
    "100 gb",
    "7 s",
    "3 h",
    "job",
    "daemon",
    "on",
    "required",
    "api",
    "advise",
    "at-once",
    "lazy",
    "opaque",
    "json",
    "at-least-once",
    "retain-on-cancellation",
    "filesystem",
    "jobmanager",
    "other",
    "https://other",
    "http://other",
    "s3://other/x",
    "127.0.0.1:7",
    "warn",
    "[{access-key = \"c\", secret-key = \"d\"}]",
];

/// Keys whose value is the answer to a rule, and of no use after that.
const FOR_RULES: &[&str] = &["auth.insecure"];

/// What else goes with a key: several daemons want the native API without TLS.
fn beside(key: &str) -> &'static [(&'static str, &'static str)] {
    if key.starts_with("cluster.") { &[("tls.doors", "s3"), ("cluster.enabled", "true")] } else { &[] }
}

/// The settings with each text that `key` takes. Warnings are left out.
fn settings_with(key: &str) -> Vec<Settings> {
    let with = |text: &&str| {
        let all = [&BASE[..], beside(key), &[(key, *text)]].concat();
        let loaded = Config::load_with(None, Vec::new(), &pairs(&all)).ok()?;
        let settings = Settings::try_from(&loaded.config).ok()?;
        Some(Settings { warnings: Vec::new(), ..settings })
    };
    TEXTS.iter().filter_map(with).collect()
}

#[test]
fn a_key_changes_settings_unless_it_is_marked_as_without_effect() {
    for ConfigEntry { key, effect, .. } in Config::default().entries() {
        let with = settings_with(&key);
        let base = Settings { warnings: Vec::new(), ..settings(&[&BASE[..], beside(&key)].concat()) };
        assert!(!with.is_empty(), "no text is a value of {key}");
        let changes = with.iter().any(|settings| *settings != base) || FOR_RULES.contains(&key.as_str());
        match effect {
            Effect::Now => assert!(changes, "{key} changes no setting: mark it where it is declared"),
            _ => assert!(!changes, "{key} changes a setting: remove its mark"),
        }
    }
}

#[test]
fn who_sets_a_key_without_effect_is_told() {
    let text = "[cluster]\nshards = 3\n[execution.checkpointing]\nwrite-buffer-size = '4 kb'\nincremental = false\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let unset = ("ESKER__CLUSTER__DAEMON_ID".into(), "".into());

    let loaded = Config::load_with(Some(&file), [unset], &[]).unwrap();

    let file = file.display();
    assert_eq!(
        loaded.settings().unwrap().warnings,
        [
            // Also when it is the default that they wrote.
            format!(
                "execution.checkpointing.write-buffer-size = \"4 kb\" (file {file}:4): has no effect here, it is for workers"
            ),
        ]
    );
}

/// The coordinator has given each of them an effect; what has none is the worker's.
#[test]
fn no_key_of_checkpointing_waits_for_its_effect() {
    let of_checkpointing = |entry: &ConfigEntry| entry.key.starts_with("execution.checkpointing.");
    let entries = Config::default().entries().into_iter().filter(of_checkpointing);
    let without: Vec<(String, Effect)> =
        entries.filter(|entry| entry.effect != Effect::Now).map(|entry| (entry.key, entry.effect)).collect();

    let elsewhere = ["unaligned.interruptible-timers.enabled", "write-buffer-size"];
    assert_eq!(without, elsewhere.map(|key| (format!("execution.checkpointing.{key}"), Effect::Elsewhere)));
}
