//! The read path: from handles to checked bytes.
//!
//! A segment is read block by block ([`BLOCK_BYTES`]), and each block's CRC-32C is compared with the one that was
//! stored before a byte of it is handed out. A range is read as the whole blocks that it touches. Memory for the
//! blocks is paid for, one block ahead of the receiver. [`Reader::bulk`] reads many segments as one stream.
//!
//! - [`plan`]: which requests read many pieces of files. Pure.
//! - [`bulk`]: many segments as one stream.
//! - `ahead`: windows of files whose segments are read one by one.
//!
//! A stream holds a lease until its last byte is out: what it looked up is not taken away under it. What was freed or
//! moved between the look-up and the stream is looked up once more.
//!
//! # Invariants
//! - Bytes whose checksum is wrong never leave this module; they are an error and count in `esker_corrupt_reads_total`.

mod ahead;
pub mod bulk;
pub mod plan;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

pub use bulk::{BulkError, BulkPiece};

use crate::catalog::record::FileState;
use crate::catalog::state::SegmentView;
use crate::catalog::{Catalog, CatalogError};
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::model::{BLOCK_BYTES, Handle, Location, Segment, SegmentId, crc32c};
use crate::runtime::{BudgetError, ByteBudget, Leases, TaskGroup};
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
        /// What was stored.
        expected: u32,
        /// What they have.
        actual: u32,
    },
    /// The segment was freed while it was read.
    #[error("segment {0} was freed")]
    Freed(SegmentId),
    /// Storage did not give the bytes.
    #[error("segment {id} could not be read")]
    Store {
        /// The segment.
        id: SegmentId,
        /// What storage says.
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
    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Freed(_) => ErrorKind::NotFound,
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
    bulk: Arc<bulk::Shared>,
}

/// One block, or the part of it, that a read wants.
#[derive(Debug, Clone)]
struct Want {
    segment: SegmentView,
    /// Whole blocks of the segment to fetch and check.
    fetch: Range<u64>,
    /// What of them is handed out, counted from the start of the segment.
    hand_out: Range<u64>,
}

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
    /// A reader that waits for memory for at most `patience`; what reads beside its callers runs in `tasks`.
    pub fn new(
        store: DataStore,
        catalog: Catalog,
        budget: ByteBudget,
        patience: Duration,
        metrics: Metrics,
        tasks: TaskGroup,
    ) -> Self {
        let ahead = ahead::Ahead::new(store.clone(), budget.clone(), metrics.clone());
        let bulk = Arc::new(bulk::Shared::new(&store, &budget));
        let leases = Leases::default();
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

    /// Who is reading.
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }

    /// The bytes `range` of the segments one after the other.
    ///
    /// The first block is read before this returns, so that what is missing or damaged is an error, not a stream that
    /// breaks off. A later block may still end the stream with an error.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn stream(
        &self,
        segments: Vec<SegmentView>,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ReadError>>, ReadError> {
        let lease = self.leases.begin();
        let mut wants = wants(segments, range).into_iter();
        let Some(first) = wants.next() else { return Ok(stream::empty().boxed()) };
        let first = self.read(first).await?;
        let reader = self.clone();
        let rest = stream::iter(wants).then(move |want| {
            let (reader, _held) = (reader.clone(), &lease);
            async move { reader.read(want).await }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    async fn read(&self, want: Want) -> Result<Bytes, ReadError> {
        let paid = self.budget.pay(want.fetch.end - want.fetch.start, self.patience).await?;
        let bytes = self.read_checked(&want.segment, &want.fetch).await?;
        let skip = want.hand_out.start - want.fetch.start;
        let bytes = bytes.slice(to_usize(skip)..to_usize(skip + want.hand_out.end - want.hand_out.start));
        Ok(Bytes::from_owner(Paid { bytes, _paid: paid }))
    }

    /// The checked bytes of the block `range` of a segment, wherever that is by now. They are paid for by the caller.
    async fn read_checked(&self, segment: &SegmentView, range: &Range<u64>) -> Result<Bytes, ReadError> {
        let id = segment.id;
        let mut moved: Option<SegmentView> = None;
        let mut past_the_copy = false;
        loop {
            let known = moved.as_ref().unwrap_or(segment);
            let error = match self.fetch_block(known, range).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            // It may have been freed or moved since it was looked up. Every move is one more try, and moves are rare.
            match self.catalog.view().segment(id) {
                None => return Err(ReadError::Freed(id)),
                Some(now) if now.record.location != known.record.location => moved = Some(now),
                // Wrong bytes of a local copy are read once more from the store, and wrong bytes of the store are not kept.
                Some(now) if self.distrusts(&now, &error) && !past_the_copy => past_the_copy = true,
                Some(_) => return Err(self.report(error)),
            }
        }
    }

    /// The checked bytes of a block at the place where the segment was looked up.
    async fn fetch_block(&self, segment: &SegmentView, range: &Range<u64>) -> Result<Bytes, ReadError> {
        let id = segment.id;
        let bytes = match &segment.record.location {
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
        let file_len = || match self.catalog.view().file(&segment.file).map(|file| file.state) {
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
    fn distrusts(&self, segment: &SegmentView, error: &ReadError) -> bool {
        match (&segment.record.location, error) {
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

    /// The bytes `range` of the segment that a handle names, wherever it is now.
    ///
    /// A segment that the catalog does not know is read from the place in the handle, whole.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn by_handle(
        &self,
        handle: &Handle,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ReadError>>, ReadError> {
        let id = handle.id;
        let known = self.catalog.view().segment(id);
        match known {
            Some(view) => self.stream(vec![view], range).await,
            None => Err(ReadError::Freed(id)),
        }
    }
}

/// # Errors
/// [`ReadError::Corrupt`] if the bytes of the block `range` are not what was written.
fn check(segment: &SegmentView, range: &Range<u64>, bytes: &[u8]) -> Result<(), ReadError> {
    let (expected, actual) = (expected_crc(segment, range), crc32c(bytes));
    if actual == expected {
        return Ok(());
    }
    Err(ReadError::Corrupt { id: segment.id, range: range.clone(), expected, actual })
}

/// What was stored as the checksum of the block `range`.
fn expected_crc(segment: &SegmentView, range: &Range<u64>) -> u32 {
    let crc = &segment.record.crc;
    crc.blocks.get(to_usize(range.start / BLOCK_BYTES)).copied().unwrap_or(crc.whole)
}

/// Cuts a range of concatenated segments into reads of one block each.
fn wants(segments: Vec<SegmentView>, range: Range<u64>) -> Vec<Want> {
    let mut wants = vec![];
    let mut begins = 0;
    for segment in segments {
        let len = segment.record.location.len();
        let from = range.start.saturating_sub(begins).min(len);
        let to = range.end.saturating_sub(begins).min(len);
        let mut at = from;
        while at < to {
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            let fetch = block..(block + BLOCK_BYTES).min(len);
            let hand_out = at..to.min(fetch.end);
            at = fetch.end;
            wants.push(Want { segment: segment.clone(), fetch, hand_out });
        }
        begins += len;
    }
    wants
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
