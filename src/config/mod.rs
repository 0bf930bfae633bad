//! Configuration: what `config.toml`, the environment and flags say, checked once.
//!
//! [`Config`] mirrors the file key by key, in Flink's names and value syntax where Flink has them.
//! [`Config::load`] lays the environment over the file and flags over both, and remembers where every
//! value came from. [`Loaded::settings`] checks the whole once and yields [`Settings`], which is what the
//! rest of the daemon uses: plain durations, byte counts and enums.
//!
//! ```text
//! defaults < config.toml < ESKER__SECTION__KEY < flags -> Config -> rules -> Settings
//! ```
//!
//! [`KeysFile`] is a file beside it, with access keys and tokens.
//!
//! Left to others: opening what a URL names, the `AWS_*` fallback for credentials, reacting to changes (a
//! change needs a restart).
//!
//! # Invariants
//! - A key exists once, as a field of [`Config`]; the list of known keys, `show` and the test of `config.toml`
//!   are derived from it.
//! - A key that nothing reads yet is marked so where it is declared. It is checked like the others, is not in
//!   [`Settings`], and warns whoever sets it.
//! - Nothing that a user wrote is ignored: an unknown key, a wrong value or a broken rule is an error, and what is
//!   legal but without effect is a warning in [`Settings::warnings`].
//! - All errors are reported together.
//! - A secret leaves this module only through [`Secret::expose`].

mod choices;
mod error;
mod keys;
mod keys_file;
mod load;
pub mod schema;
mod settings;
mod show;
mod url;
mod values;

#[cfg(test)]
mod tests;

pub use choices::{
    Boundary, CheckpointMode, CheckpointStorage, ClientAuth, DeleteDurability, DirectIo, EtagKind, KeyAccess,
    LogFormat, ReclaimMode, Retention, TemporaryNames, TlsDoors,
};
pub use error::{ConfigError, ConfigErrors, NamedValue, Origin};
pub use keys_file::{KeysFile, readable_by_others};
pub use load::Loaded;
pub use schema::Config;
pub use settings::{
    AccessLogPlace, AuthSettings, AzureSettings, CatalogSettings, CheckpointBoundary, CheckpointingSettings,
    ClusterSettings, Credentials, GivenObjects, HdfsSettings, JobCheckpointing, JobSettingError, LimitsSettings,
    LingerSettings, LocalCopySettings, MergingSettings, PoolMode, PublishDir, ReclaimSettings, S3Key, ServerSettings,
    Settings, StoreSettings, TelemetrySettings, TlsSettings,
};
pub use url::StoreUrl;
pub use values::{MemorySize, Secret, Span, ValueError};
