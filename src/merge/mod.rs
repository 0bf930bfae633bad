//! The write path: merges segments into physical files.
//!
//! [`Merger::store`] puts a [`Parcel`] of segments into an open file of its lane; the file's owner task writes what has
//! collected as one group, while the catalog commits the same group side by side; when both are durable, everyone
//! whose segments are in the group is answered. Segments larger than a part are streamed into files of their own
//! ([`Merger::begin`]).
//!
//! - [`lane`]: which segments may share a file.
//! - [`pool`]: open files, and who may take one.
//! - [`linger`]: how long a group waits for more; [`pace`]: how fast the backend is.
//! - `context`: what all below work with, and commits beside bytes.
//! - `file`: the one writer of a physical file; `parts`: those that do not fit into memory.
//! - `group`, `owner`: the task that writes one file, group after group.
//! - [`big`]: segments that do not fit into memory.
//!
//! # Invariants
//! - A physical file has one writer, its owner task. Its segments never overlap.
//! - Nobody is answered before the bytes and the commit are durable, but whoever stores a small object under a temporary name
//!   (`merging.temporary-names`): it is in the catalog's memory alone until the next commit.
//! - A group for which the disk has no room leaves nothing behind: its file is closed with what it had before.
//! - A group that fails closes its file. What was answered in it before stays valid; the next taker gets a new file. So does
//!   an owner that panics.
//!
//! # Crash
//! Bytes that were not answered count for nothing. What the catalog names and storage does not have is dropped at the
//! next start; what storage has and the catalog does not name is deleted.

pub mod big;
mod context;
mod file;
mod group;
pub mod lane;
pub mod linger;
mod merger;
mod owner;
pub mod pace;
mod parts;
pub mod pool;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use big::BigSegment;
pub use context::WriteContext;
pub(crate) use file::FileWriter;
pub use merger::Merger;

use crate::catalog::CatalogError;
use crate::catalog::command::{Bind, ObjectContent, Refusal, Stored};
use crate::error::ErrorKind;
use crate::model::{About, KeyContract, SegmentCrc, SegmentId};
use crate::runtime::{BudgetError, PaidBytes};
use crate::store::{DiskFull, DiskSpace, StoreError};

/// A whole segment in memory.
#[derive(Debug, Clone)]
pub struct WholeSegment {
    /// Its identity, from [`Merger::new_id`].
    pub id: SegmentId,
    /// The segment's description.
    pub about: About,
    /// Its bytes; not empty.
    pub data: Bytes,
    /// Their checksums.
    pub crc: SegmentCrc,
}

/// Segments that become durable together, and what they mean. All go into the lane of the first.
#[derive(Debug)]
pub struct Parcel {
    /// The segments; at least one.
    pub pieces: Vec<WholeSegment>,
    /// The meaning of the segments.
    pub bind: Bind,
    /// The memory they are in; given back once they are durable.
    pub paid: Option<PaidBytes>,
}

impl Parcel {
    /// Bytes of all segments.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.data.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it must not go into the catalog. A part of a multipart upload must not: with the catalog lost, an object
    /// without its last part could not be told from a whole one.
    pub fn belongs_in_a_file(&self) -> bool {
        matches!(self.bind, Bind::Part { .. })
    }

    /// Whether it is an object whose name is temporary, so that it need not be durable before its rename is.
    pub fn is_temporary(&self) -> bool {
        let Bind::Object(put) = &self.bind else { return false };
        let is_whole = matches!(put.content, ObjectContent::Segments { upload: None, .. });
        is_whole && KeyContract::of(&put.key) == KeyContract::Temporary
    }
}

/// Why segments were not stored. What was stored before is not touched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MergeError {
    /// The catalog refused what the segments mean.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The catalog did not take the commit.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No file of the lane was free in time.
    #[error("no open file was free within {0:?}")]
    NoFile(Duration),
    /// There is no memory for the parts of a streamed segment.
    #[error(transparent)]
    Memory(#[from] BudgetError),
    /// The disk has no room.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// Storage did not take the bytes.
    #[error("the group could not be written: {0}")]
    Store(#[source] Arc<StoreError>),
    /// A streamed segment has another length than was announced.
    #[error("the segment was announced with {announced} bytes and has {sent}")]
    Length {
        /// Bytes announced.
        announced: u64,
        /// Bytes sent.
        sent: u64,
    },
    /// Whoever had the segments ended without an answer, by a bug that the log tells of.
    #[error("the segments were given up: repeat the request")]
    Abandoned,
    /// The daemon is shutting down.
    #[error("the daemon takes no more segments")]
    ShuttingDown,
}

impl MergeError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Catalog(error) => error.kind(),
            Self::NoFile(_) | Self::Memory(_) => ErrorKind::Overloaded,
            Self::Full(full) => full.kind(),
            Self::Store(_) | Self::Abandoned => ErrorKind::Unavailable,
            Self::Length { .. } => ErrorKind::Invalid,
            Self::ShuttingDown => ErrorKind::ShuttingDown,
        }
    }
}

impl From<StoreError> for MergeError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl MergeError {
    /// Why `space` or what is beside it did not take bytes: from a full disk on, no writes are admitted.
    fn of_store(error: StoreError, space: &DiskSpace) -> Self {
        if error.is_full() { Self::Full(space.data_met_the_end()) } else { error.into() }
    }
}

/// The final answer to a writer.
pub(crate) type MergeResult = Result<Stored, MergeError>;
