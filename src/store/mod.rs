//! Storage: the only module that talks to a local disk or an S3 backend.
//!
//! Two kinds of backend hold physical files. An *append store* ([`LocalStore`]) has real files that grow and are
//! synced; an *object store* ([`ObjectFiles`]) takes each file whole. [`open`] makes one of them from the
//! configuration, and the place for the catalog beside it, after it has probed that the store keeps its word.
//!
//! A store knows which one it is ([`StoreIdentity`]), and [`StoreGuard`] looks before anything is destroyed.
//!
//! Of an object store a bounded copy may be kept on local disk ([`LocalCopy`]), which is read first.
//!
//! What local disks have room for is watched by [`DiskSpace`], and a part of it kept back.
//!
//! Every request is counted by operation, and by whether it is for data or for the catalog ([`Counted`]). Retries live
//! here, for operations that are safe to repeat: names are never reused, so a repeated put looks at what is there.

pub mod append_file;
mod counted;
mod direct;
mod identity;
mod inode;
mod local;
mod local_copy;
mod object;
mod open;
mod probe;
pub mod space;

use std::ops::Range;

use bytes::Bytes;

pub use counted::{Counted, Multipart, Traffic};
pub use identity::{CATALOG_SIDE, DATA_SIDE, NotTheStore, Slot, StoreGuard, StoreIdentity, StoreLock, StoreOwner};
pub use inode::Inode;
pub use local::{LocalFile, LocalStore};
pub use local_copy::LocalCopy;
pub use object::{ObjectFiles, TOMBSTONE, Upload};
pub use open::{OpenError, Opened, open, open_data, place_of_catalog};
pub use probe::{ProbeError, probe};
pub use space::{DiskFull, DiskSpace};

use crate::error::ErrorKind;
use crate::model::PhysicalFileId;

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
    /// The backend has no such thing.
    #[error("the backend does not support {0}")]
    Unsupported(&'static str),
    /// The request failed; whether it was carried out is not known.
    #[error("{operation} of {path} failed")]
    Failed {
        /// What was asked.
        operation: &'static str,
        /// Of which file.
        path: String,
        /// What the backend says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Short { .. } => ErrorKind::Corrupt,
            Self::Taken(_) | Self::NotTheStore(_) | Self::Unsupported(_) | Self::Failed { .. } => {
                ErrorKind::Unavailable
            }
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

/// Where physical files are. Clones share it.
#[derive(Debug, Clone)]
pub enum DataStore {
    /// A folder on a local disk.
    Local(LocalStore),
    /// An object store.
    Object(ObjectFiles),
}

impl DataStore {
    /// Looks through `guard` before every step that destroys something.
    pub fn guarded(self, guard: StoreGuard) -> Self {
        match self {
            Self::Local(store) => Self::Local(store.guarded(guard)),
            Self::Object(store) => Self::Object(store.guarded(guard)),
        }
    }

    /// Looks whether this is the store that it should be.
    ///
    /// # Errors
    /// [`StoreError`] if it is not, or if storage does not tell.
    pub async fn look(&self) -> Result<(), StoreError> {
        match self {
            Self::Local(store) => store.look().await,
            Self::Object(store) => store.look().await,
        }
    }

    /// Whether the last look found another store, or none. Nothing is deleted then.
    pub fn is_lost(&self) -> bool {
        self.guard().is_some_and(StoreGuard::is_lost)
    }

    fn is_guarded(&self) -> bool {
        self.guard().is_some()
    }

    fn guard(&self) -> Option<&StoreGuard> {
        match self {
            Self::Local(store) => store.guard(),
            Self::Object(store) => store.guard(),
        }
    }

    /// What the last look found instead of the store, in words. None if it is there.
    pub fn lost(&self) -> Option<String> {
        self.guard().and_then(StoreGuard::lost)
    }

    /// Reads a range of a file. That a file, or its end, is missing is only said of the store itself: where that is not
    /// there at the moment, so is everything in it.
    ///
    /// # Errors
    /// [`StoreError`]; never fewer bytes than asked for.
    pub async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.read_once(file, range.clone()).await {
            Err(StoreError::NotFound(_) | StoreError::Short { .. }) if self.is_guarded() => {
                self.look().await?;
                // It may have come back just before the look.
                self.read_once(file, range).await
            }
            read => read,
        }
    }

    async fn read_once(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self {
            Self::Local(store) => store.read(file, range).await,
            Self::Object(store) => store.read(file, range).await,
        }
    }

    /// What was read of a file is wrong: forgets what a local copy has of it. Returns whether that is a reason to read
    /// again, because the bytes may have come from there.
    pub fn distrust(&self, file: &PhysicalFileId) -> bool {
        let Some(copy) = self.local_copy() else { return false };
        // Whether it had anything does not count: another reader may have told it a moment ago.
        copy.forget(file);
        true
    }

    /// The copy on local disk, where there is one.
    pub fn local_copy(&self) -> Option<&LocalCopy> {
        match self {
            Self::Local(_) => None,
            Self::Object(store) => store.copy(),
        }
    }

    /// The length of a file in bytes; none if there is no such file.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not say.
    pub async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Local(store) => store.len(file).await,
            Self::Object(store) => store.len(file).await,
        }
    }

    /// Deletes files and returns those that are gone now; one that did not exist is gone, too.
    pub async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        match self {
            Self::Local(store) => store.delete(files).await,
            Self::Object(store) => store.delete(files).await,
        }
    }

    /// Names and lengths of everything below `data/`.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not say.
    pub async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        match self {
            Self::Local(store) => store.list().await,
            Self::Object(store) => store.list().await,
        }
    }
}
