//! Many segments as one stream: what a job that restores wants.
//!
//! The segments are handed out in the order asked, in blocks. They are looked up and fetched by *windows* of that
//! order: the blocks of a window are sorted by file and offset, near ones share a request ([`super::plan`]), and the
//! requests of a window run beside each other, each in a task of its own that also checks the blocks. While a window is
//! handed out, the requests of the next one are on their way.
//!
//! # Memory
//! A window is paid for as a whole before its first request, with what is free right then: when that is too little, the
//! window is made smaller. Only the smallest, one block, waits for memory, and only when nothing is left to hand out.
//! So nobody waits for memory while they hold any that others wait for, and any number of restores get on in a budget
//! that holds one block; and a restore is as large as it likes. Windows of all restores together use no more than
//! half of the budget.
//!
//! # Invariants
//! - Bytes come in the order asked, whole, and checked: a block with a wrong checksum ends the stream with an error.
//! - A segment that is freed before its window is begun ends the stream; one that is moved is looked up again.
//! - What a window found keeps its place ([`super::find`]) until it is read, which waits for no receiver. So a receiver that
//!   is slow keeps memory, but no file.
//!
//! # Crash
//! Nothing is written. A stream that ends early ends with an error; its receiver asks again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};
use prometheus::IntGauge;
use tokio::sync::{Semaphore, oneshot};

use super::plan::{ByteSpan, RangeRequest, ReadLimits, plan};
use super::{Paid, ReadError, Reader, check, gone, to_usize};
use crate::catalog::questions::FoundSegment;
use crate::catalog::state::SegmentView;
use crate::error::ErrorKind;
use crate::model::{BLOCK_BYTES, Location, SegmentId};
use crate::runtime::{ByteBudget, Failure, PaidBytes, Reading, reply};
use crate::store::{DataStore, RequestPrice, StoreError};

/// Requests to a local disk cost little, and so may gaps.
const LOCAL: ReadLimits = ReadLimits { gap_bytes_max: 64 << 10, waste_max: 1, span_bytes_max: 8 << 20 };
/// A request to an object store takes the time of megabytes. A file of a task manager holds the segments of its
/// subtasks by turns: each of four that asks for its own finds three gaps for each segment.
const OBJECT: ReadLimits = ReadLimits { gap_bytes_max: 256 << 10, waste_max: 3, span_bytes_max: 8 << 20 };
/// Bytes of segments in one window, and the share of the budget that one may be.
const WINDOW_BYTES_MAX: u64 = 64 << 20;
const WINDOW_SHARE: u64 = 8;
/// Blocks in one window: they are looked up under one lock.
const WINDOW_PIECES_MAX: usize = 4096;
/// Share of the budget for the windows of all restores.
const ALL_WINDOWS_SHARE: u64 = 2;
/// In the middle of a restore, memory is waited for so many times longer: to begin again costs more.
const PATIENCE_BEGUN: u32 = 12;
/// Requests of all restores at a time.
const REQUESTS_MAX: usize = 32;
/// Inline segments that one task reads.
const INLINE_OF_A_TASK: usize = 64;
/// Pieces that one task reads at a time, when each has to be read by itself.
const PIECES_AT_ONCE: usize = 8;

/// The next bytes of a bulk read.
#[derive(Debug)]
pub struct BulkPiece {
    /// The segment that begins with these bytes, if one does.
    pub begins: Option<SegmentView>,
    /// Checked bytes.
    pub bytes: Bytes,
}

/// A bulk read ended early.
#[derive(Debug, thiserror::Error)]
#[error("the bytes of segment {segment} cannot be handed out")]
pub struct BulkError {
    /// The segment whose bytes would have come next.
    pub segment: SegmentId,
    /// The fault in it.
    #[source]
    pub source: ReadError,
}

impl BulkError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        self.source.kind()
    }
}

/// The limits that all bulk reads share.
#[derive(Debug)]
pub(super) struct BulkReads {
    requests: Semaphore,
    windows: ByteBudget,
    window_bytes: u64,
    limits: ReadLimits,
}

impl BulkReads {
    pub(super) fn new(store: &DataStore, budget: &ByteBudget) -> Self {
        // The bytes count in the budget itself; this one only divides it.
        let unseen = IntGauge::new("windows", "bytes of windows").expect("a constant name is valid");
        Self {
            requests: Semaphore::new(REQUESTS_MAX),
            windows: ByteBudget::new(budget.total() / ALL_WINDOWS_SHARE, unseen),
            window_bytes: WINDOW_BYTES_MAX.min(budget.total() / WINDOW_SHARE).max(1),
            limits: match store.capabilities().request {
                RequestPrice::Free => LOCAL,
                RequestPrice::RoundTrip => OBJECT,
            },
        }
    }
}

impl Reader {
    /// The bytes of the segments, one after the other in this order. The same may be named twice.
    ///
    /// The first block is read before this returns, so that what is missing or damaged there is an error, not a stream
    /// that breaks off. A stream whose receiver is slow waits, and holds its window.
    ///
    /// # Errors
    /// [`BulkError`]; a stream ends with it.
    pub async fn bulk(
        &self,
        ids: Vec<SegmentId>,
    ) -> Result<BoxStream<'static, Result<BulkPiece, BulkError>>, BulkError> {
        let mut bulk = Bulk::new(self.clone(), ids);
        let Some(first) = bulk.next().await? else { return Ok(stream::empty().boxed()) };
        let rest = stream::unfold(Some(bulk), |bulk| async move {
            let mut bulk = bulk?;
            match bulk.next().await.transpose()? {
                Ok(piece) => Some((Ok(piece), Some(bulk))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    /// Reads what one task reads. An answer for each piece, in order.
    async fn fetch(
        &self,
        work: TaskSource,
        pieces: Vec<Arc<SegmentBlock>>,
        mut paid: Payment,
        reading: Reading,
    ) -> Vec<Result<Bytes, ReadError>> {
        let read = match &work {
            TaskSource::Inline => self.inline_pieces(&pieces).await,
            TaskSource::File(request) => self.file_pieces(request, &pieces, &reading).await,
        };
        reading.progressed();
        let wanted = read.iter().flatten().map(|bytes| bytes.len() as u64).sum();
        let sparse = wanted < paid.budget.len() / 2;
        if sparse {
            paid.shrink_to(wanted);
        }
        let paid = Arc::new(paid);
        let mut checked = vec![];
        for (read, piece) in read.into_iter().zip(&pieces) {
            let bytes = match read {
                // Freed, moved, or wrong in a local copy: the long way tells.
                Ok(bytes) if check(&piece.segment, &piece.range, &bytes).is_err() => {
                    self.read_checked(&piece.segment, &piece.range, &reading).await
                }
                // An inline one may have been moved into a file.
                Err(ReadError::Freed(_)) => self.read_checked(&piece.segment, &piece.range, &reading).await,
                other => other,
            };
            // Copied out of what nobody wants, which goes.
            let bytes = bytes.map(|bytes| if sparse { Bytes::copy_from_slice(&bytes) } else { bytes });
            checked.push(bytes.map(|bytes| Bytes::from_owner(Paid { bytes, _paid: Arc::clone(&paid) })));
        }
        checked
    }

    async fn file_pieces(
        &self,
        request: &RangeRequest,
        pieces: &[Arc<SegmentBlock>],
        reading: &Reading,
    ) -> Vec<Result<Bytes, ReadError>> {
        let place = self.bulk.requests.acquire().await;
        let read = self.store.read(&request.file, request.range.clone()).await;
        drop(place);
        self.metrics.restore_requests.inc();
        self.metrics.restore_requests_saved.inc_by(pieces.len() as u64 - 1);
        let error = match read {
            Ok(bytes) => return pieces.iter().map(|piece| Ok(piece.cut_from(request, &bytes))).collect(),
            Err(error) => Arc::new(error),
        };
        tracing::warn!(file = %request.file, error = crate::error::chain(&*error), "a file could not be read for a restore");
        let again = |piece| self.clone().piece_again(Arc::clone(piece), Arc::clone(&error), reading.clone()).boxed();
        let reads: Vec<_> = pieces.iter().map(again).collect();
        stream::iter(reads).buffered(PIECES_AT_ONCE).collect().await
    }

    /// A piece whose request failed: where it is now, if that is elsewhere, and by itself, if the file is too short for
    /// others.
    async fn piece_again(
        self,
        piece: Arc<SegmentBlock>,
        error: Arc<StoreError>,
        reading: Reading,
    ) -> Result<Bytes, ReadError> {
        let id = piece.segment.id;
        let now = self.catalog.location(id);
        let moved = now.as_ref() != Some(&piece.segment.location);
        match now {
            None => Err(gone(id, &reading)),
            Some(_) if moved || matches!(*error, StoreError::Short { .. }) => {
                self.metrics.restore_requests.inc();
                self.read_checked(&piece.segment, &piece.range, &reading).await
            }
            Some(_) => Err(ReadError::Store { id, source: the_same(&error) }),
        }
    }

    async fn inline_pieces(&self, pieces: &[Arc<SegmentBlock>]) -> Vec<Result<Bytes, ReadError>> {
        let reads = pieces.iter().cloned().map(|piece| {
            let reader = self.clone();
            async move { reader.inline_piece(&piece).await }.boxed()
        });
        let reads: Vec<_> = reads.collect();
        stream::iter(reads).buffered(PIECES_AT_ONCE).collect().await
    }

    async fn inline_piece(&self, piece: &SegmentBlock) -> Result<Bytes, ReadError> {
        let id = piece.segment.id;
        let all = self.catalog.inline_data(id).await?.ok_or(ReadError::Freed(id))?;
        let end = to_usize(piece.range.end).min(all.len());
        Ok(all.slice(to_usize(piece.range.start).min(end)..end))
    }
}

/// The error once more, for another piece of the same request.
fn the_same(error: &Arc<StoreError>) -> StoreError {
    match &**error {
        StoreError::NotFound(path) => StoreError::NotFound(path.clone()),
        StoreError::Failed { operation, path, .. } => {
            StoreError::Failed { operation, path: path.clone(), source: Box::new(Arc::clone(error)) }
        }
        other => StoreError::Failed { operation: "get", path: String::new(), source: other.to_string().into() },
    }
}

/// One block of a segment.
#[derive(Debug)]
struct SegmentBlock {
    segment: Arc<FoundSegment>,
    /// The bytes, counted from the start of the segment.
    range: Range<u64>,
}

impl SegmentBlock {
    /// Its place in a file, unless it is inline.
    fn place(&self, number: usize) -> Option<ByteSpan> {
        let Location::File(segment) = &self.segment.location else { return None };
        let range = segment.offset + self.range.start..segment.offset + self.range.end;
        Some(ByteSpan { piece: number, file: segment.file.clone(), range })
    }

    fn cut_from(&self, request: &RangeRequest, bytes: &Bytes) -> Bytes {
        let Some(place) = self.place(0) else { return Bytes::new() };
        bytes.slice(to_usize(place.range.start - request.range.start)..to_usize(place.range.end - request.range.start))
    }
}

/// The source that one task reads.
#[derive(Debug)]
enum TaskSource {
    Inline,
    File(RangeRequest),
}

/// The price of a task's bytes, in the budget and in the share of all windows.
struct Payment {
    budget: PaidBytes,
    share: Option<PaidBytes>,
}

impl Payment {
    fn shrink_to(&mut self, bytes: u64) {
        self.budget.shrink_to(bytes);
        if let Some(share) = &mut self.share {
            share.shrink_to(bytes);
        }
    }
}

/// A bulk read in progress.
struct Bulk {
    reader: Reader,
    ids: Vec<SegmentId>,
    /// The first segment that is in no window yet, and its first byte that is in none.
    next: (usize, u64),
    now: BulkWindow,
    ahead: BulkWindow,
    reading: Reading,
}

/// Blocks that are on their way, in the order in which they are handed out.
#[derive(Default)]
struct BulkWindow {
    pieces: VecDeque<Next>,
    tasks: Vec<Task>,
}

/// A block that is handed out when it is its turn.
struct Next {
    segment: SegmentId,
    /// The segment, if this is its first block.
    begins: Option<SegmentView>,
    slot: BlockSlot,
}

/// The task, and the number of its answer, that a block comes from.
#[derive(Debug, Clone, Copy)]
struct BlockSlot {
    task: usize,
    answer: usize,
}

enum Task {
    Running(oneshot::Receiver<Vec<Result<Bytes, ReadError>>>),
    Ended(Vec<Option<Result<Bytes, ReadError>>>),
}

impl BulkWindow {
    /// The next block, and the segment that it begins; `None` at the end.
    async fn next(&mut self) -> Option<Result<BulkPiece, BulkError>> {
        // Taken off the queue only once it is there: a dropped call loses nothing.
        let slot = self.pieces.front()?.slot;
        let task = &mut self.tasks[slot.task];
        if let Task::Running(answers) = task {
            let answers = answers.await.unwrap_or_default();
            *task = Task::Ended(answers.into_iter().map(Some).collect());
        }
        let read = match task {
            Task::Ended(answers) => answers.get_mut(slot.answer).and_then(Option::take),
            Task::Running(_) => None,
        };
        let Next { segment, begins, .. } = self.pieces.pop_front()?;
        Some(match read.unwrap_or(Err(ReadError::Dropped(segment))) {
            Ok(bytes) => Ok(BulkPiece { begins, bytes }),
            Err(source) => Err(BulkError { segment, source }),
        })
    }
}

/// Blocks that may become a window.
struct Draft {
    pieces: Vec<Arc<SegmentBlock>>,
    /// For each piece the segment that it begins, if it does.
    begins: Vec<Option<SegmentView>>,
    next: (usize, u64),
}

impl Draft {
    /// The reads to do, the price of each, and the numbers of its pieces.
    fn works(&self, limits: ReadLimits) -> Vec<(TaskSource, u64, Vec<usize>)> {
        let places = self.pieces.iter().enumerate().filter_map(|(number, piece)| piece.place(number)).collect();
        let mut works = vec![];
        for request in plan(places, limits) {
            let (bytes, pieces) = (request.range.end - request.range.start, request.pieces.clone());
            works.push((TaskSource::File(request), bytes, pieces));
        }
        let inline: Vec<usize> = (0..self.pieces.len()).filter(|number| self.is_inline(*number)).collect();
        for pieces in inline.chunks(INLINE_OF_A_TASK) {
            let range = |number: &usize| self.pieces[*number].range.clone();
            let bytes = pieces.iter().map(range).map(|range| range.end - range.start).sum();
            works.push((TaskSource::Inline, bytes, pieces.to_vec()));
        }
        works.sort_by_key(|(_, _, pieces)| pieces.iter().copied().min());
        works
    }

    fn is_inline(&self, number: usize) -> bool {
        matches!(self.pieces[number].segment.location, Location::Inline { .. })
    }
}

impl Bulk {
    fn new(reader: Reader, ids: Vec<SegmentId>) -> Self {
        let reading = reader.leases.begin();
        Self { reader, ids, next: (0, 0), now: BulkWindow::default(), ahead: BulkWindow::default(), reading }
    }

    async fn next(&mut self) -> Result<Option<BulkPiece>, BulkError> {
        self.reading.progressed();
        loop {
            if let Some(piece) = self.now.next().await {
                let piece = piece?;
                self.reader.metrics.restore_segments.inc_by(u64::from(piece.begins.is_some()));
                self.reader.metrics.restore_bytes.inc_by(piece.bytes.len() as u64);
                return Ok(Some(piece));
            }
            if self.ahead.pieces.is_empty() && !self.begin()? {
                self.begin_smallest().await?;
            }
            self.now = std::mem::take(&mut self.ahead);
            if self.now.pieces.is_empty() {
                return Ok(None);
            }
            // What is wrong with the next window is told when it is its turn.
            if let Ok(false) | Err(_) = self.begin() {
                tracing::trace!("the next window waits until this one is handed out");
            }
        }
    }

    /// Begins the window ahead, as large as the free memory allows; false if that is too little for one block.
    fn begin(&mut self) -> Result<bool, BulkError> {
        let mut bytes_max = self.reader.bulk.window_bytes;
        loop {
            let draft = self.draft(bytes_max)?;
            let works = draft.works(self.reader.bulk.limits);
            let paid: Option<Vec<Payment>> = works.iter().map(|(_, bytes, _)| self.try_pay(*bytes)).collect();
            match paid {
                Some(paid) => {
                    self.start(draft, works, paid);
                    return Ok(true);
                }
                None if draft.pieces.len() <= 1 => return Ok(false),
                None => bytes_max /= 2,
            }
        }
    }

    /// The same with one block, for whose memory it waits. Nothing is held meanwhile.
    async fn begin_smallest(&mut self) -> Result<(), BulkError> {
        let draft = self.draft(1)?;
        let works = draft.works(self.reader.bulk.limits);
        let mut paid = vec![];
        let patience = self.reader.patience * if self.next == (0, 0) { 1 } else { PATIENCE_BEGUN };
        for (_, bytes, _) in &works {
            let waiting = self.reader.budget.pay(*bytes, patience).await;
            let budget = waiting.map_err(|error| BulkError { segment: self.ids[self.next.0], source: error.into() })?;
            paid.push(Payment { budget, share: None });
        }
        self.start(draft, works, paid);
        Ok(())
    }

    fn try_pay(&self, bytes: u64) -> Option<Payment> {
        let share = self.reader.bulk.windows.try_pay(bytes)?;
        Some(Payment { budget: self.reader.budget.try_pay(bytes)?, share: Some(share) })
    }

    /// The next blocks, one at least unless this is the end.
    fn draft(&self, bytes_max: u64) -> Result<Draft, BulkError> {
        let (at, from) = self.next;
        let ids = self.ids.get(at..).unwrap_or_default();
        let wanted = bytes_max.saturating_add(from);
        let found = self.reader.catalog.find_next(ids, wanted, WINDOW_PIECES_MAX, &self.reading);
        if let (true, Some(gone)) = (found.is_empty(), ids.first()) {
            return Err(BulkError { segment: *gone, source: ReadError::Freed(*gone) });
        }
        let mut draft = Draft { pieces: vec![], begins: vec![], next: self.next };
        let mut bytes = 0;
        for (segment, view) in found {
            let (len, segment, mut view) = (segment.location.len(), Arc::new(segment), Some(view));
            while draft.next.1 < len {
                let range = draft.next.1..(draft.next.1 + BLOCK_BYTES).min(len);
                let more = range.end - range.start;
                let full = bytes + more > bytes_max || draft.pieces.len() == WINDOW_PIECES_MAX;
                if full && !draft.pieces.is_empty() {
                    return Ok(draft);
                }
                bytes += more;
                draft.next.1 = range.end;
                draft.begins.push(view.take().filter(|_| range.start == 0));
                draft.pieces.push(Arc::new(SegmentBlock { segment: Arc::clone(&segment), range }));
            }
            draft.next = (draft.next.0 + 1, 0);
        }
        Ok(draft)
    }

    fn start(&mut self, draft: Draft, works: Vec<(TaskSource, u64, Vec<usize>)>, paid: Vec<Payment>) {
        self.next = draft.next;
        let mut slots = vec![BlockSlot { task: 0, answer: 0 }; draft.pieces.len()];
        for (task, ((work, _, numbers), paid)) in works.into_iter().zip(paid).enumerate() {
            for (answer, number) in numbers.iter().enumerate() {
                slots[*number] = BlockSlot { task, answer };
            }
            let pieces: Vec<Arc<SegmentBlock>> =
                numbers.iter().map(|number| Arc::clone(&draft.pieces[*number])).collect();
            let (mut waiting, answers) = oneshot::channel();
            let (reader, reading) = (self.reader.clone(), self.reading.clone());
            self.reader.tasks.spawn("restore", Failure::FailsItsWork, async move {
                let read = tokio::select! {
                    // In this order: for a reader that has left nothing is read any more.
                    biased;
                    () = waiting.closed() => return,
                    read = reader.fetch(work, pieces, paid, reading) => read,
                };
                reply(waiting, read);
            });
            self.ahead.tasks.push(Task::Running(answers));
        }
        let waiting = draft.pieces.iter().zip(draft.begins).zip(slots);
        let next =
            |((piece, begins), slot): ((&Arc<SegmentBlock>, _), _)| Next { segment: piece.segment.id, begins, slot };
        self.ahead.pieces = waiting.map(next).collect();
    }
}
