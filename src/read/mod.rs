//! The read path: from handles to checked bytes.
//!
//! A segment is read block by block ([`BLOCK_BYTES`]), and each block's CRC-32C is compared with the one that was
//! stored before a byte of it is handed out. A range is read as the whole blocks that it touches. Memory for the
//! blocks is paid for, one block ahead of the receiver. [`Reader::bulk`] reads many segments as one stream.
//!
//! - [`find`]: what a read finds, with the leases that keep it there.
//! - [`walk`]: segments that are read one after the other, block by block.
//! - [`plan`]: which requests read many pieces of files. Pure.
//! - [`bulk`]: many segments as one stream.
//! - `ahead`: windows of files whose segments are read one by one.
//!
//! # Invariants
//! - Bytes whose checksum is wrong never leave this module; they are an error and count in `esker_corrupt_reads_total`.
//! - What a read holds does not depend on how large a segment is: its checksums are shared with the catalog, and which block
//!   comes next is decided when it is read.
//! - What a read has found stays where it is until it is read, or until the read is over its deadline
//!   ([`crate::runtime::Leases`]). What was freed or moved before it was found, or after the deadline, is looked up once
//!   more.

mod ahead;
pub mod bulk;
mod find;
pub mod plan;
mod walk;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub use bulk::{BulkError, BulkPiece};
pub use walk::ByteStream;

use crate::catalog::questions::FoundSegment;
use crate::catalog::{Catalog, CatalogError};
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::RejectReason;
use crate::model::{BLOCK_BYTES, FileState, Location, Segment, SegmentId, crc32c};
use crate::runtime::{BudgetError, ByteBudget, Leases, Reading, TaskGroup};
use crate::store::{DataStore, StoreError};

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes on storage are not what was written.
    #[error("segment {id}: the checksum of bytes {range:?} is {actual:08x}, {expected:08x} was stored")]
    Corrupt {
        /// The segment.
        id: SegmentId,
        /// The bytes of it.
        range: Range<u64>,
        /// The checksum that was stored.
        expected: u32,
        /// The checksum of the bytes that were read.
        actual: u32,
    },
    /// The segment was freed while it was read.
    #[error("segment {0} was freed")]
    Freed(SegmentId),
    /// The same, and it was kept until the deadline, which the read did not meet.
    #[error("segment {0} was freed, and the read made no progress for limits.read-lease")]
    TooSlow(SegmentId),
    /// Storage did not give the bytes.
    #[error("segment {id} could not be read")]
    Store {
        /// The segment.
        id: SegmentId,
        /// The storage's error.
        #[source]
        source: StoreError,
    },
    /// The catalog did not give the bytes of an inline segment.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No memory to read into.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The task that read it ended without a word: it panicked.
    #[error("the read of segment {0} was dropped")]
    Dropped(SegmentId),
}

impl ReadError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Freed(_) | Self::TooSlow(_) => ErrorKind::NotFound,
            Self::Store { source, .. } => source.kind(),
            Self::Catalog(error) => error.kind(),
            Self::Budget(_) => ErrorKind::Overloaded,
            Self::Dropped(_) => ErrorKind::Internal,
        }
    }
}

/// Reads segments. Clones share everything.
#[derive(Clone)]
pub struct Reader {
    store: DataStore,
    catalog: Catalog,
    budget: ByteBudget,
    patience: Duration,
    metrics: Metrics,
    tasks: TaskGroup,
    leases: Leases,
    ahead: ahead::Ahead,
    bulk: Arc<bulk::BulkReads>,
}

crate::runtime::opaque_debug!(Reader);

/// Bytes that are paid for as long as anybody holds them.
struct Paid<P> {
    bytes: Bytes,
    _paid: P,
}

impl<P> AsRef<[u8]> for Paid<P> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reader {
    /// A reader that waits for memory for at most `patience`; what reads beside its callers runs in `tasks`. A read that
    /// makes no progress for `read_lease` may find its bytes deleted.
    pub fn new(
        store: DataStore,
        catalog: Catalog,
        budget: ByteBudget,
        patience: Duration,
        metrics: Metrics,
        tasks: TaskGroup,
        read_lease: Duration,
    ) -> Self {
        let ahead = ahead::Ahead::new(store.clone(), budget.clone(), metrics.clone());
        let bulk = Arc::new(bulk::BulkReads::new(&store, &budget));
        let leases = Leases::new(read_lease, metrics.rejected.of(RejectReason::StalledRead));
        Self { store, catalog, budget, patience, metrics, tasks, leases, ahead, bulk }
    }

    /// Gives memory back that was read ahead and that nobody uses, until `stop`.
    pub async fn run_ahead(self, stop: CancellationToken) {
        self.ahead.run(stop).await;
    }

    /// Where the files are.
    pub fn store(&self) -> &DataStore {
        &self.store
    }

    /// The leases of those who read.
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }

    /// The checked bytes of the block `range` of a segment, wherever that is by now. They are paid for by the caller.
    async fn read_checked(
        &self,
        segment: &FoundSegment,
        range: &Range<u64>,
        reading: &Reading,
    ) -> Result<Bytes, ReadError> {
        let id = segment.id;
        let mut moved: Option<FoundSegment> = None;
        let mut past_the_copy = false;
        loop {
            let known = moved.as_ref().unwrap_or(segment);
            let error = match self.fetch_block(known, range).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            // It may have been freed or moved since it was looked up. Every move is one more try, and moves are rare.
            match self.find(id, reading) {
                None => return Err(gone(id, reading)),
                Some(now) if now.location != known.location => moved = Some(now),
                // Wrong bytes of a local copy are read once more from the store, and wrong bytes of the store are not kept.
                Some(now) if self.distrusts(&now, &error) && !past_the_copy => past_the_copy = true,
                Some(_) => return Err(self.report(error)),
            }
        }
    }

    /// The checked bytes of a block at the place where the segment was looked up.
    async fn fetch_block(&self, segment: &FoundSegment, range: &Range<u64>) -> Result<Bytes, ReadError> {
        let id = segment.id;
        let bytes = match &segment.location {
            Location::Inline { .. } => {
                let all = self.catalog.inline_data(id).await?.ok_or(ReadError::Freed(id))?;
                all.slice(to_usize(range.start).min(all.len())..to_usize(range.end).min(all.len()))
            }
            Location::File(place) => {
                let bytes = place.offset + range.start..place.offset + range.end;
                let _on_its_way = self.ahead.begin_read();
                if let Some(bytes) = self.read_ahead(place, &bytes, expected_crc(segment, range)).await {
                    return Ok(bytes);
                }
                let read = self.store.read(&place.file, bytes).await;
                read.map_err(|source| ReadError::Store { id, source })?
            }
        };
        check(segment, range, &bytes)?;
        Ok(bytes)
    }

    /// The bytes from a window that was read ahead. What is wrong there is read again, and told of then.
    async fn read_ahead(&self, segment: &Segment, place: &Range<u64>, expected: u32) -> Option<Bytes> {
        let file_len = || match self.catalog.file(&segment.file).map(|file| file.state) {
            Some(FileState::Closed { len } | FileState::Forgotten { len, .. }) => len,
            Some(FileState::Open { durable_len, .. }) => durable_len,
            None => 0,
        };
        let bytes = self.ahead.read(&segment.file, place, file_len).await?;
        if crc32c(&bytes) == expected {
            return Some(bytes);
        }
        self.ahead.forget(&segment.file);
        None
    }

    /// Whether wrong bytes may have come from a local copy, which is forgotten then.
    fn distrusts(&self, segment: &FoundSegment, error: &ReadError) -> bool {
        match (&segment.location, error) {
            (Location::File(place), ReadError::Corrupt { .. }) => self.store.distrust(&place.file),
            _ => false,
        }
    }

    fn report(&self, error: ReadError) -> ReadError {
        if let ReadError::Corrupt { .. } = error {
            self.metrics.corrupt_reads.inc();
        }
        tracing::error!(error = crate::error::chain(&error), "a segment could not be read");
        error
    }
}

/// Why a segment that is not found any more cannot be read.
fn gone(id: SegmentId, reading: &Reading) -> ReadError {
    if reading.has_ended() { ReadError::TooSlow(id) } else { ReadError::Freed(id) }
}

/// # Errors
/// [`ReadError::Corrupt`] if the bytes of the block `range` are not what was written.
fn check(segment: &FoundSegment, range: &Range<u64>, bytes: &[u8]) -> Result<(), ReadError> {
    let (expected, actual) = (expected_crc(segment, range), crc32c(bytes));
    if actual == expected {
        return Ok(());
    }
    Err(ReadError::Corrupt { id: segment.id, range: range.clone(), expected, actual })
}

/// The checksum that was stored for the block `range`.
fn expected_crc(segment: &FoundSegment, range: &Range<u64>) -> u32 {
    let crc = &segment.crc;
    crc.blocks.get(to_usize(range.start / BLOCK_BYTES)).copied().unwrap_or(crc.whole)
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
