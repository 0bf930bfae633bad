//! Reading ahead: a restoring engine reads many small objects of one file, one request each.
//!
//! When a read comes near an earlier one of the same file, a window around it is read as one request and kept for a
//! short time, so that its neighbours cost none. Only for object stores: a local disk has the page cache.
//!
//! Windows are paid for with memory that is free right then, are few, and go when they were not used for
//! [`IDLE_MAX`] or another needs their place. A file most of whose windows went unused is not read ahead any more.
//!
//! # Invariants
//! - Which segment is where is the catalog's to say: its caller looks a segment up first, so that the bytes of a freed
//!   one are never asked for. A name of a file is never used again, so what is kept is never out of date.
//! - What is handed out is checked by the caller, who forgets a window that is wrong ([`Ahead::forget`]) and reads
//!   again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::to_usize;
use crate::metrics::Metrics;
use crate::metrics::labels::ReadAheadOutcome;
use crate::model::PhysicalFileId;
use crate::runtime::{ByteBudget, Clock, PaidBytes};
use crate::store::DataStore;

/// Bytes of a file's first window; each further one has twice as many, up to a limit.
const WINDOW_BYTES_FIRST: u64 = 1 << 20;
const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// Windows at a time, and the share of the budget that they may be.
const WINDOWS_MAX: u64 = 16;
const WINDOWS_SHARE: u64 = 8;
/// Time for which a window stays that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Files whose last read is remembered.
const FILES_MAX: usize = 64;
/// Windows of a file that may go with less than an eighth of them used.
const WASTED_MAX: u32 = 2;
/// With more reads than this on their way no window is begun: so many hide each other's latency, and windows would only
/// wait for each other.
const READS_MAX: usize = 8;

/// Windows of files that are being read. Clones share them.
#[derive(Clone)]
pub(super) struct Ahead {
    store: DataStore,
    budget: ByteBudget,
    metrics: Metrics,
    windows_max: usize,
    reads: Arc<AtomicUsize>,
    state: Arc<Mutex<AheadState>>,
}

/// A read on its way.
pub(super) struct ReadInFlight(Arc<AtomicUsize>);

impl Drop for ReadInFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct AheadState {
    /// The one used last comes last.
    windows: VecDeque<Arc<AheadWindow>>,
    /// The one read last comes last.
    files: VecDeque<Recent>,
}

/// The last read of a file.
struct Recent {
    file: PhysicalFileId,
    last: Range<u64>,
    /// Bytes of its next window.
    window_bytes: u64,
    wasted: u32,
}

/// Bytes of a file that are there or on their way. Whoever asks first reads them, others wait for them.
struct AheadWindow {
    file: PhysicalFileId,
    range: Range<u64>,
    bytes: OnceCell<Option<Bytes>>,
    used: Mutex<Used>,
    _paid: PaidBytes,
}

struct Used {
    bytes: u64,
    last: Instant,
}

/// The next step for a read.
enum ReadStep {
    /// It is in this window.
    Wait(Arc<AheadWindow>),
    /// It is near an earlier one: a window is worth it.
    ReadAhead {
        /// Whether it comes after that one.
        forward: bool,
        /// The size in bytes.
        bytes: u64,
    },
    Nothing,
}

impl Ahead {
    pub(super) fn new(store: DataStore, budget: ByteBudget, metrics: Metrics) -> Self {
        let windows = match store.capabilities().page_cache {
            true => 0,
            false => (budget.total() / WINDOWS_SHARE / WINDOW_BYTES_MAX).min(WINDOWS_MAX),
        };
        Self { store, budget, metrics, windows_max: to_usize(windows), reads: Arc::default(), state: Arc::default() }
    }

    /// A read begins, whether or not it needs a request; it ends with what is returned.
    pub(super) fn begin_read(&self) -> ReadInFlight {
        self.reads.fetch_add(1, Ordering::Relaxed);
        ReadInFlight(Arc::clone(&self.reads))
    }

    /// The bytes `place` of a file, if they are or should be in a window. `len` tells how many bytes the file has.
    ///
    /// # Cancel safety
    /// Cancel safe: who waits for the same window reads it instead.
    pub(super) async fn read(
        &self,
        file: &PhysicalFileId,
        place: &Range<u64>,
        len: impl FnOnce() -> u64,
    ) -> Option<Bytes> {
        let copied = self.store.local_copy().is_some_and(|copy| copy.has(file, place));
        if self.windows_max == 0 || copied {
            return None;
        }
        let step = self.state.lock().look(file, place);
        let window = match step {
            ReadStep::Nothing => return None,
            ReadStep::Wait(window) => window,
            ReadStep::ReadAhead { .. } if self.reads.load(Ordering::Relaxed) > READS_MAX => return None,
            ReadStep::ReadAhead { forward, bytes } => self.begin(file, around(place, len(), forward, bytes)?)?,
        };
        let read = window.bytes.get_or_init(|| self.fetch(&window)).await;
        let Some(read) = read else {
            self.forget(file);
            return None;
        };
        window.touch(place);
        self.metrics.read_ahead.of(ReadAheadOutcome::Hit).inc();
        let from = to_usize(place.start - window.range.start);
        // A copy: a receiver that is slow with a few bytes does not hold the whole window.
        Some(Bytes::copy_from_slice(&read[from..from + to_usize(place.end - place.start)]))
    }

    /// Adds a window that nobody reads yet; `None` without memory.
    fn begin(&self, file: &PhysicalFileId, range: Range<u64>) -> Option<Arc<AheadWindow>> {
        let mut state = self.state.lock();
        // Another read may have begun it since the look.
        if let Some(window) = state.window(file, &range) {
            return Some(window);
        }
        if state.windows.len() >= self.windows_max {
            // One that is waited for stays.
            let at = state.windows.iter().position(|window| Arc::strong_count(window) == 1)?;
            state.evict(at, &self.metrics);
        }
        let paid = self.budget.try_pay(range.end - range.start)?;
        let used = Mutex::new(Used { bytes: 0, last: Clock::instant() });
        let window = Arc::new(AheadWindow { file: file.clone(), range, bytes: OnceCell::new(), used, _paid: paid });
        state.windows.push_back(Arc::clone(&window));
        Some(window)
    }

    async fn fetch(&self, window: &AheadWindow) -> Option<Bytes> {
        self.metrics.read_ahead.of(ReadAheadOutcome::Window).inc();
        match self.store.read(&window.file, window.range.clone()).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::debug!(file = %window.file, error = crate::error::chain(&error), "a file could not be read ahead");
                None
            }
        }
    }

    /// Drops the windows of a file.
    pub(super) fn forget(&self, file: &PhysicalFileId) {
        self.state.lock().windows.retain(|window| window.file != *file);
    }

    /// Drops windows that nobody uses, until `stop`, and all of them then.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break self.state.lock().windows.clear(),
                () = tokio::time::sleep(IDLE_MAX / 2) => self.state.lock().drop_idle(&self.metrics),
            }
        }
    }
}

impl AheadState {
    /// Decides the next step for a read, and remembers the read.
    fn look(&mut self, file: &PhysicalFileId, place: &Range<u64>) -> ReadStep {
        let known = self.files.iter().position(|recent| recent.file == *file);
        let before = known.and_then(|at| self.files.remove(at));
        let (wasted, bytes) =
            before.as_ref().map_or((0, WINDOW_BYTES_FIRST), |recent| (recent.wasted, recent.window_bytes));
        let window = self.window(file, place);
        let after = before.map(|recent| recent.last).filter(|last| wasted < WASTED_MAX && near(last, place));
        let step = match (window, after) {
            (Some(window), _) => ReadStep::Wait(window),
            (None, Some(last)) => ReadStep::ReadAhead { forward: place.start >= last.end, bytes },
            (None, None) => ReadStep::Nothing,
        };
        let begins = matches!(step, ReadStep::ReadAhead { .. });
        let window_bytes = if begins { (bytes * 2).min(WINDOW_BYTES_MAX) } else { bytes };
        self.files.push_back(Recent { file: file.clone(), last: place.clone(), window_bytes, wasted });
        if self.files.len() > FILES_MAX {
            self.files.pop_front();
        }
        step
    }

    /// The window that has all of these bytes; it is now the one used last.
    fn window(&mut self, file: &PhysicalFileId, place: &Range<u64>) -> Option<Arc<AheadWindow>> {
        let has = |window: &Arc<AheadWindow>| {
            window.file == *file && window.range.start <= place.start && place.end <= window.range.end
        };
        let at = self.windows.iter().rposition(has)?;
        let window = self.windows.remove(at)?;
        self.windows.push_back(Arc::clone(&window));
        Some(window)
    }

    fn evict(&mut self, at: usize, metrics: &Metrics) {
        let Some(window) = self.windows.remove(at) else { return };
        let used = window.used.lock().bytes;
        if used < (window.range.end - window.range.start) / 8 {
            metrics.read_ahead.of(ReadAheadOutcome::Unused).inc();
            self.files.iter_mut().filter(|recent| recent.file == window.file).for_each(|recent| recent.wasted += 1);
        }
    }

    fn drop_idle(&mut self, metrics: &Metrics) {
        for at in (0..self.windows.len()).rev() {
            // A window on its way is held by those who wait for it.
            let idle = self.windows[at].used.lock().last.elapsed() > IDLE_MAX;
            if idle && Arc::strong_count(&self.windows[at]) == 1 {
                self.evict(at, metrics);
            }
        }
    }
}

impl AheadWindow {
    fn touch(&self, place: &Range<u64>) {
        let mut used = self.used.lock();
        used.bytes += place.end - place.start;
        used.last = Clock::instant();
    }
}

/// Whether a window around one read may hold the other.
fn near(last: &Range<u64>, place: &Range<u64>) -> bool {
    place.start < last.end + WINDOW_BYTES_MAX && last.start < place.end + WINDOW_BYTES_MAX
}

/// The window of `bytes` for a read of a file with `len`: from it on when reads go forward, else the one of a fixed grid
/// that it is in. None when there is little beside it.
fn around(place: &Range<u64>, len: u64, forward: bool, bytes: u64) -> Option<Range<u64>> {
    let start = if forward { place.start } else { place.start / bytes * bytes };
    let end = (start + bytes).min(len);
    (place.end <= end && end - start >= 2 * (place.end - place.start)).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::metrics::labels::{Purpose, StoreOperation};
    use crate::store::{CountedStore, ObjectFiles, Traffic};

    const KIB: u64 = 1 << 10;

    struct Fixture {
        ahead: Ahead,
        budget: ByteBudget,
        metrics: Metrics,
        data: Bytes,
        file: PhysicalFileId,
    }

    /// A file of 1 MiB on an object store, and memory for windows.
    async fn fixture(budget: u64) -> Fixture {
        let metrics = Metrics::new();
        let counted = CountedStore::new(Arc::new(InMemory::new()), Traffic::data(metrics.clone()));
        let files = ObjectFiles::with_retries(Arc::new(counted), Path::from("p"), Duration::from_secs(1));
        let file = PhysicalFileId::new(None, 1, 1);
        let data: Bytes = (0..1024 * KIB).map(|n| (n / 1000) as u8).collect::<Vec<_>>().into();
        files.put(&file, vec![data.clone()]).await.unwrap();
        let budget = ByteBudget::new(budget, metrics.in_flight_bytes.clone());
        let ahead = Ahead::new(DataStore::Object(files), budget.clone(), metrics.clone());
        Fixture { ahead, budget, metrics, data, file }
    }

    impl Fixture {
        async fn read(&self, place: Range<u64>) -> Option<Bytes> {
            let read = self.ahead.read(&self.file, &place, || self.data.len() as u64).await;
            let expected = &self.data[to_usize(place.start)..to_usize(place.end)];
            assert!(read.as_ref().is_none_or(|read| read == expected));
            read
        }

        fn gets(&self) -> u64 {
            self.metrics.store_requests.of((StoreOperation::Get, Purpose::Data)).get()
        }
    }

    #[tokio::test]
    async fn reads_that_follow_each_other_cost_one_request() {
        let fixture = fixture(64 << 20).await;

        assert!(fixture.read(0..KIB).await.is_none());
        for n in 1..500 {
            assert!(fixture.read(n * KIB..(n + 1) * KIB).await.is_some());
        }

        assert_eq!(fixture.gets(), 1);
        assert_eq!(fixture.metrics.read_ahead.of(ReadAheadOutcome::Hit).get(), 499);
    }

    #[tokio::test]
    async fn reads_in_any_order_and_at_once_share_a_window() {
        let fixture = fixture(64 << 20).await;
        fixture.read(700 * KIB..701 * KIB).await;

        let reads = (0..200_u64).rev().map(|n| fixture.read(n * 3 * KIB..(n * 3 + 1) * KIB));
        let reads = futures::future::join_all(reads).await;

        assert!(reads.iter().all(Option::is_some));
        assert_eq!(fixture.gets(), 1);
    }

    #[tokio::test]
    async fn a_window_is_paid_for_and_given_back_when_it_is_forgotten() {
        let fixture = fixture(64 << 20).await;
        fixture.read(0..KIB).await;
        fixture.read(KIB..2 * KIB).await;
        assert!(fixture.metrics.in_flight_bytes.get() >= 1000 * 1024);

        fixture.ahead.forget(&fixture.file);

        assert_eq!(fixture.metrics.in_flight_bytes.get(), 0);
        assert!(fixture.budget.try_pay(64 << 20).is_some());
    }

    #[tokio::test]
    async fn without_memory_nothing_is_read_ahead() {
        let fixture = fixture(64 << 20).await;
        let _all = fixture.budget.try_pay(64 << 20).unwrap();

        for n in 0..10 {
            assert!(fixture.read(n * KIB..(n + 1) * KIB).await.is_none());
        }

        assert_eq!(fixture.gets(), 0);
    }

    #[tokio::test]
    async fn a_file_whose_windows_go_unused_is_not_read_ahead_any_more() {
        let fixture = fixture(64 << 20).await;
        for round in 0..4_u64 {
            fixture.read(round..KIB).await;
            fixture.read(KIB..KIB + 1).await;
            let mut state = fixture.ahead.state.lock();
            while !state.windows.is_empty() {
                state.evict(0, &fixture.metrics);
            }
        }

        assert_eq!(fixture.gets(), u64::from(WASTED_MAX));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_left_to_the_caller() {
        let fixture = fixture(64 << 20).await;
        let other = PhysicalFileId::new(None, 1, 2);

        for n in 0..3 {
            assert!(fixture.ahead.read(&other, &(n..n + 1), || 1000).await.is_none());
        }
        assert_eq!(fixture.metrics.in_flight_bytes.get(), 0);
    }

    #[test]
    fn windows_stay_in_the_file_and_are_worth_it() {
        assert_eq!(around(&(10..20), 1000, true, 500), Some(10..510));
        assert_eq!(around(&(10..20), 300, true, 500), Some(10..300));
        assert_eq!(around(&(710..720), 1000, false, 500), Some(500..1000));
        assert_eq!(around(&(495..505), 1000, false, 500), None);
        assert_eq!(around(&(10..20), 25, true, 500), None);
        assert_eq!(around(&(10..20), 0, false, 500), None);
    }

    #[test]
    fn the_windows_of_a_file_grow() {
        let (mut state, file) = (AheadState::default(), PhysicalFileId::new(None, 1, 1));
        let sizes = (0..5_u64).filter_map(|n| match state.look(&file, &(n * 100..n * 100 + 100)) {
            ReadStep::ReadAhead { forward: true, bytes } => Some(bytes >> 20),
            _ => None,
        });

        assert_eq!(sizes.collect::<Vec<_>>(), [1, 2, 4, 4]);
    }
}
