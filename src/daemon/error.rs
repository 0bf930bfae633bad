//! Why a daemon did not start.

use crate::api::tls::TlsError;
use crate::cluster::maps::MapError;
use crate::config::{AccessLogPlace, ConfigErrors};
use crate::engine::OpeningError;
use crate::model::StoreShards;

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
    #[error("telemetry.access-log = \"{place}\": cannot be opened; its folder must be there, and be writable")]
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
    /// The system gives no name to show that this process is there.
    #[error("this process cannot show others of the machine that it is there")]
    Presence(#[source] std::io::Error),
    /// There is no place for the map of a cluster.
    #[error("{0} cannot be the store of several daemons: cluster.enabled needs an object store")]
    NoCluster(String),
    /// The map of the cluster cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// They were deleted.
    #[error(
        "the catalog belongs to a cluster, but the cluster's maps are gone. Stop all its daemons, put `cluster/map/` back, or make a \
         first map with `esker cluster repair`"
    )]
    MapsMissing,
    /// Peers could not be told from clients.
    #[error(
        "the store is divided into {0} shards: members ask each other what clients need a key for, so cluster.token is needed where \
         auth has keys"
    )]
    NoToken(u32),
    /// The map is another one's.
    #[error(
        "the cluster's map is of {found} of generation {}, and the store that this daemon found has {expected} of generation {}: their \
         number was changed. Start it again", found.generation, expected.generation
    )]
    OtherShards {
        /// Those of the map.
        found: StoreShards,
        /// Those of the store.
        expected: StoreShards,
    },
    /// Another process has this one's name.
    #[error("another daemon has joined the cluster as {0:?}, at {1}: give each its own cluster.daemon-id")]
    Replaced(String, String),
}

impl StartError {
    /// Whether the storage was found not to be what it should be: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_refusal(),
            Self::Map(error) => error.is_refusal(),
            Self::Bind { .. } | Self::AccessLog { .. } | Self::Presence(_) => false,
            Self::Tls(_) | Self::Keys(_) | Self::NoCluster(_) | Self::MapsMissing | Self::Replaced(..) => true,
            Self::NoToken(_) | Self::OtherShards { .. } => true,
        }
    }
}
