//! [`Config`]: every key of `config.toml`, its type, unit and default.
//!
//! A field's comment is the documentation of its key; `config.toml` says the same to operators. Values are
//! what a user wrote; rules between them are checked when [`Settings`](super::Settings) are made. Fields are of
//! this module's parent alone, so that the daemon reads settings and never a key that is marked as without effect.

/// A section: its fields are keys, each with a type and a default; an [`Effect`] after that where a key has none yet.
macro_rules! section {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr $(; $effect:ident)?,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[$key_doc])* pub(in crate::config) $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        const _: () = {
            use crate::config::keys;
            use crate::config::schema::{Effect, ConfigEntry, Node, key_part};
            use crate::config::values::{Literal, InvalidLiteral};

            impl Node for $name {
                fn collect(&self, path: &str, effect: Effect, into: &mut Vec<ConfigEntry>) {
                    $(
                        let key = keys::join(path, &key_part(stringify!($key)));
                        self.$key.collect(&key, section!(@effect effect $($effect)?), into);
                    )+
                }

                fn set(&mut self, key: &str, literal: &Literal) -> Option<Result<(), InvalidLiteral>> {
                    let (part, rest) = key.split_once('.').unwrap_or((key, ""));
                    $(
                        if part == key_part(stringify!($key)) {
                            return self.$key.set(rest, literal);
                        }
                    )+
                    None
                }
            }
        };
    };
    (@effect $inherited:ident) => { $inherited };
    (@effect $inherited:ident $own:ident) => { Effect::$own };
}

mod checkpointing;
mod doors;
mod storage;

pub use checkpointing::{
    CheckpointingConfig, CleanerConfig, ExecutionConfig, FileMergingConfig, InterruptibleTimersConfig,
    LocalBackupConfig, UnalignedConfig,
};
pub use doors::{AuthConfig, AuthKeyConfig, LimitsConfig, ServerConfig, TlsConfig};
pub use storage::{AzureConfig, CatalogConfig, GcsConfig, HdfsConfig, MergingConfig, ReclaimConfig, StoreConfig};

use super::choices::LogFormat;
use super::values::{InvalidLiteral, Literal, Secret, Setting, Span};

/// Whether the daemon does anything with the value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Effect {
    /// It does: the value is in [`Settings`](super::Settings), or decides about a rule.
    Now,
    /// It never will: the key is the worker's, and accepted for Flink's sake.
    Elsewhere,
}

impl Effect {
    /// Tells a user who set such a key; `None` if there is nothing to tell.
    pub(in crate::config) fn warning(self) -> Option<&'static str> {
        match self {
            Self::Now => None,
            Self::Elsewhere => Some("has no effect here, it is for workers"),
        }
    }
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(in crate::config) struct ConfigEntry {
    /// The whole key, such as `store.url`.
    pub key: String,
    /// Secrets are masked.
    pub value: Literal,
    pub effect: Effect,
}

/// A section, or the value of a key.
pub(in crate::config) trait Node {
    /// Adds every key from `path` on to `into`. Those without a mark of their own have `effect`.
    fn collect(&self, path: &str, effect: Effect, into: &mut Vec<ConfigEntry>);

    /// Sets the value of `key`, which is relative to here. `None`: there is no such key. A refused value changes nothing.
    fn set(&mut self, key: &str, literal: &Literal) -> Option<Result<(), InvalidLiteral>>;
}

impl<T: Setting> Node for T {
    fn collect(&self, path: &str, effect: Effect, into: &mut Vec<ConfigEntry>) {
        into.push(ConfigEntry { key: path.to_owned(), value: self.write(), effect });
    }

    fn set(&mut self, key: &str, literal: &Literal) -> Option<Result<(), InvalidLiteral>> {
        key.is_empty().then(|| T::read(literal).map(|value| *self = value))
    }
}

/// A field's name as part of a key.
fn key_part(field: &str) -> String {
    field.replace('_', "-")
}

impl Config {
    /// Every key with its value, sorted by key.
    pub(in crate::config) fn entries(&self) -> Vec<ConfigEntry> {
        let mut entries = Vec::new();
        self.collect("", Effect::Now, &mut entries);
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries
    }
}

section! {
    /// What `config.toml` says, after the environment and flags were laid over it.
    Config {
        /// Flink's checkpointing options.
        execution: ExecutionConfig = ExecutionConfig::default(),
        /// Where the daemon listens.
        server: ServerConfig = ServerConfig::default(),
        /// Encryption at the doors.
        tls: TlsConfig = TlsConfig::default(),
        /// The storage behind the daemon.
        store: StoreConfig = StoreConfig::default(),
        /// How segments are packed into physical files.
        merging: MergingConfig = MergingConfig::default(),
        /// The daemon's memory of what exists.
        catalog: CatalogConfig = CatalogConfig::default(),
        /// Bounds on memory and on what clients may ask for.
        limits: LimitsConfig = LimitsConfig::default(),
        /// Getting dead bytes back.
        reclaim: ReclaimConfig = ReclaimConfig::default(),
        /// Who may come in.
        auth: AuthConfig = AuthConfig::default(),
        /// Several daemons as one.
        cluster: ClusterConfig = ClusterConfig::default(),
        /// What the daemon says about itself.
        telemetry: TelemetryConfig = TelemetryConfig::default(),
    }
}

section! {
    /// `[cluster]`: several daemons as one.
    ClusterConfig {
        /// Whether this daemon is one of several on its store, default false. All of them say so, or none.
        enabled: bool = false,
        /// Name of this daemon, unique among its peers, and kept over restarts. Not set: host and port of `advertised-url`.
        daemon_id: Option<String> = None,
        /// `http://` address under which peers reach the native API of this daemon. Not set: `server.api`.
        advertised_url: Option<String> = None,
        /// What peers show each other. Needed where `server.api` is not a loopback address.
        token: Option<Secret> = None,
        /// Into how many shards a new store is divided, default 1, at most 256; `esker cluster reshard` alone changes it
        /// later. Each has one owner: up to so many daemons share the work, and each shard costs memory and requests of its own.
        shards: u32 = 1,
        /// A shard is moved to a daemon that has two fewer when no daemon came or went for so long, default 60 s.
        balance_after: Span = Span::millis(60_000),
        /// How long an owner may be silent before another daemon takes over, default 750 ms, at least 300 ms. Shorter takes over
        /// sooner, and more often by mistake.
        lease_timeout: Span = Span::millis(750),
    }
}

section! {
    /// `[telemetry]`: logs.
    TelemetryConfig {
        /// `text` (default) or `json`.
        log_format: LogFormat = LogFormat::Text,
        /// Level, or levels per module (`info,esker::merge=debug`), default `info`. Debug logs per segment.
        log_filter: String = "info,slatedb=warn,s3s=off,hdfs_native=error".to_owned(),
        /// A JSON line for each request: `off` (default), `stdout`, or the path of a file. Costs a little time for each.
        access_log: String = "off".to_owned(),
    }
}
