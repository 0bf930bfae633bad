//! Why a daemon did not start.

use crate::api::tls::TlsError;
use crate::config::{AccessLogPlace, ConfigErrors};
use crate::engine::OpeningError;

/// Why the daemon did not start. Nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{door} cannot listen on {address}: set {key} to another address, or end what uses it")]
    Bind {
        /// The door.
        door: &'static str,
        /// The address.
        address: String,
        /// The key that sets it.
        key: &'static str,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// Certificate, key or authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of access keys cannot be used.
    #[error("auth.keys-file: {0}")]
    Keys(#[from] ConfigErrors),
    /// The access log cannot be opened.
    #[error("telemetry.access-log = {place:?}: cannot be opened")]
    AccessLog {
        /// Where it is to be.
        place: AccessLogPlace,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot be opened.
    #[error(transparent)]
    Engine(#[from] OpeningError),
}

impl StartError {
    /// Whether the storage was found not to be what it should be: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_refusal(),
            Self::Bind { .. } | Self::AccessLog { .. } => false,
            Self::Tls(_) | Self::Keys(_) => true,
        }
    }
}
