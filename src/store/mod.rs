//! Storage: the only module that talks to a local disk, an object storage service (S3, Google Cloud Storage, Azure) or an HDFS.
//!
//! Two kinds of backend hold physical files. An *append store* ([`AppendStore`]) has real files that grow and are
//! synced: [`LocalStore`], [`HdfsStore`]; an *object store* ([`ObjectFiles`]) takes each file whole. [`open`] makes one of them from the
//! configuration, and the place for the catalog beside it ([`Placement`]), after it has probed that the store keeps its
//! word. Callers ask what a store can do ([`Capabilities`]), and never which kind it is.
//!
//! A store knows which one it is ([`StoreIdentity`]), and [`StoreGuard`] looks before anything is destroyed.
//!
//! Of an object store a bounded copy may be kept on local disk ([`LocalCopy`]), which is read first.
//!
//! The room on local disks is watched by [`DiskSpace`], and a part of it kept back.
//!
//! Every request is counted by operation, and by whether it is for data or for the catalog ([`CountedStore`]). Retries live
//! here, for operations that are safe to repeat: names are never reused, so a repeated put looks at what is there.

mod append;
pub mod append_file;
mod azure;
mod capabilities;
mod counted;
mod creating;
mod data;
mod direct;
mod gcs;
mod hdfs;
mod identity;
mod inode;
mod leftover;
mod local;
mod local_copy;
mod log_folder;
mod numbered;
mod object;
mod open;
mod opened;
mod placement;
mod probe;
mod regular;
mod s3;
mod service;
pub mod space;
mod whole;

use std::ops::Range;

#[cfg(test)]
pub(crate) use append::memory;
pub use append::{AppendStore, GrowingFile, Readers};
pub use azure::azure_account;
pub use capabilities::{Capabilities, RequestPrice};
pub use counted::{CountedStore, Multipart, Traffic};
pub use data::{DataStore, FileWrites};
pub use hdfs::{HdfsProbeError, HdfsStore};
pub use identity::{
    CATALOG_SIDE, DATA_SIDE, IdentitySlot, NotTheStore, StoreGuard, StoreIdentity, StoreLock, StoreOwner, StoreOwners,
};
pub use inode::{HeldInode, Inode};
pub use leftover::remove_leftover;
pub use local::LocalStore;
pub use local_copy::LocalCopy;
#[cfg(test)]
pub(crate) use log_folder::memory as log_memory;
pub use log_folder::{LogFolder, VisibleBytes};
pub use numbered::{Created, NumberedObjects};
pub use object::{FileUpload, ObjectFiles, TOMBSTONE};
pub use open::{
    OpenError, OpenedStore, check_services, credentials_hint, missing_bucket, open, open_data, place_of_catalog,
};
pub use opened::OpenedFile;
pub use placement::Placement;
pub use probe::{ProbeError, probe};
pub use regular::NotRegular;
pub use space::{DiskFull, DiskSpace};
pub use whole::{NewFile, WholeStore};

use crate::error::ErrorKind;

/// Why storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file does not exist.
    #[error("{0} does not exist on storage")]
    NotFound(String),
    /// The file ends before the bytes that were asked for.
    #[error("{path} ends at {len} bytes, {wanted:?} was asked for")]
    Short {
        /// The file.
        path: String,
        /// Its length in bytes.
        len: u64,
        /// The range that was asked for.
        wanted: Range<u64>,
    },
    /// Another daemon took the name of the file: it has taken over, and counts the file as never written.
    #[error("{0} was taken by another daemon")]
    Taken(String),
    /// This is another store than the one that the catalog belongs to.
    #[error(transparent)]
    NotTheStore(#[from] NotTheStore),
    /// The file of a daemon that is gone cannot be closed: nobody can tell how long it is.
    #[error(
        "{0} cannot be closed: HDFS does not give back the lease of its writer, since DataNodes that have its last block do not \
         answer. Bring them back; or have the segments that are lost dropped by `esker verify --repair --drop-lost`"
    )]
    StillOpen(String),
    /// The backend has no such thing.
    #[error("the backend does not support {0}")]
    Unsupported(&'static str),
    /// The request failed; whether it was carried out is not known.
    #[error("{operation} of {path} failed")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: String,
        /// The backend's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Short { .. } => ErrorKind::Corrupt,
            Self::Taken(_) | Self::NotTheStore(_) | Self::StillOpen(_) => ErrorKind::Unavailable,
            Self::Unsupported(_) | Self::Failed { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the disk has no room.
    pub fn is_full(&self) -> bool {
        space::is_full(self)
    }

    fn failed<E>(operation: &'static str, path: &str, source: E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self::Failed { operation, path: path.to_owned(), source: source.into() }
    }
}
