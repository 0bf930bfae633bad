//! [`Config`]: every key of `config.toml`, its type, unit and default.
//!
//! A field's comment is the documentation of its key; `config.toml` says the same to operators. Values are
//! what a user wrote; rules between them are checked when [`Settings`](super::Settings) are made.

/// A section: its fields are keys, each with a type and a default.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $($(#[$key_doc])* pub $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }
    };
}

mod checkpointing;
mod doors;
mod storage;

pub use checkpointing::{
    CheckpointingConfig, CleanerConfig, ExecutionConfig, FileMergingConfig, InterruptibleTimersConfig,
    LocalBackupConfig, UnalignedConfig,
};
pub use doors::{AuthConfig, AuthKeyConfig, LimitsConfig, ServerConfig};
pub use storage::{CatalogConfig, MergingConfig, ReclaimConfig, StoreConfig};

use super::choices::LogFormat;
use super::values::Span;

section! {
    /// What `config.toml` says, after the environment and flags were laid over it.
    Config {
        /// Flink's checkpointing options.
        execution: ExecutionConfig = ExecutionConfig::default(),
        /// Where the daemon listens.
        server: ServerConfig = ServerConfig::default(),
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
        /// Several daemons as one. Behaviour comes later.
        cluster: ClusterConfig = ClusterConfig::default(),
        /// What the daemon says about itself.
        telemetry: TelemetryConfig = TelemetryConfig::default(),
    }
}

section! {
    /// `[cluster]`: several daemons as one. The keys are checked now, behaviour comes later.
    ClusterConfig {
        /// Name of this daemon, unique among its peers. Not set: made up at every start.
        daemon_id: Option<String> = None,
        /// `http(s)://` address under which peers reach this daemon. Not set: `server.api`.
        advertised_url: Option<String> = None,
        /// Into how many catalogs the jobs are split, default 1; cannot change once there is data. More shards
        /// spread over more daemons, and each costs requests of its own.
        shards: u32 = 1,
        /// How long a silent owner keeps its shards, default 15 s. Shorter takes over sooner, and more often by
        /// mistake.
        lease_timeout: Span = Span::seconds(15),
    }
}

section! {
    /// `[telemetry]`: logs.
    TelemetryConfig {
        /// `text` (default) or `json`.
        log_format: LogFormat = LogFormat::Text,
        /// Level, or levels per module (`info,esker::merge=debug`), default `info`. Debug logs per segment.
        log_filter: String = "info,slatedb=warn,s3s=off".to_owned(),
    }
}
