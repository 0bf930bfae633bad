//! Writes that are in progress, and those that failed, for whoever watches that they get on. Counted without a lock, but
//! for the cause of a failure.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::labels::{Purpose, StoreOperation};

/// Seconds that are told apart; writes that began as many apart share a slot, which keeps the older second.
const SLOTS: usize = 64;
/// The bits of a slot that count; the others are the second in which the first of them began.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// What is written, or waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// Physical files.
    Data,
    /// The log of the catalog, where it grows.
    CatalogLog,
    /// The objects of the catalog; on an object store its log is among them.
    CatalogObjects,
    /// A batch that the catalog's journal is to take.
    CommitTaken,
    /// A batch that is to become durable.
    CommitDurable,
}

impl WriteKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Data, Self::CatalogLog, Self::CatalogObjects, Self::CommitTaken, Self::CommitDurable];

    /// The kind of a request to the backend; `None` if nobody's write waits for it.
    pub fn of(operation: StoreOperation, purpose: Purpose) -> Option<Self> {
        use StoreOperation::{Append, MultipartComplete, MultipartCreate, MultipartPart, Put};
        match (operation, purpose) {
            (Append | Put | MultipartCreate | MultipartPart | MultipartComplete, Purpose::Data) => Some(Self::Data),
            (Append, Purpose::Catalog) => Some(Self::CatalogLog),
            (Put | MultipartCreate | MultipartPart | MultipartComplete, Purpose::Catalog) => Some(Self::CatalogObjects),
            _ => None,
        }
    }
}

/// The writes of a daemon.
#[derive(Debug, Default)]
pub struct WritesSeen {
    base: OnceLock<Instant>,
    kinds: [WritesOfKind; WriteKind::ALL.len()],
}

#[derive(Debug)]
struct WritesOfKind {
    slots: [AtomicU64; SLOTS],
    /// Milliseconds, from 1, of the first failure since the last success; 0 if the last one succeeded.
    failing_since: AtomicU64,
    failed_last: AtomicU64,
    /// The operation that failed last.
    failed_at: AtomicUsize,
    cause: Mutex<String>,
}

impl Default for WritesOfKind {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            failing_since: AtomicU64::new(0),
            failed_last: AtomicU64::new(0),
            failed_at: AtomicUsize::new(0),
            cause: Mutex::default(),
        }
    }
}

/// Writes that all fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// Between the first that failed and the last one.
    pub lasts: Duration,
    /// How long ago the last one failed.
    pub last: Duration,
    /// Why it did.
    pub cause: String,
}

/// A write that is in progress until this is dropped.
#[derive(Debug)]
pub struct InProgress<'a> {
    of: &'a WritesOfKind,
    slot: usize,
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.of.slots[self.slot].fetch_sub(1, Ordering::Relaxed);
    }
}

impl WritesSeen {
    /// A write begins.
    pub fn begin(&self, kind: WriteKind, now: Instant) -> InProgress<'_> {
        let second = self.millis(now) / 1000;
        let (of, slot) = (self.of(kind), usize::try_from(second).unwrap_or_default() % SLOTS);
        let one_more = |slot: u64| Some(if slot & COUNT_MASK == 0 { (second << COUNT_BITS) | 1 } else { slot + 1 });
        let counted = of.slots[slot].fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        debug_assert!(counted.is_ok(), "there is always one more");
        InProgress { of, slot }
    }

    /// One was carried out. Writes of its kind fail no longer, unless it was an earlier step than the one that failed: where no
    /// byte is synced, a file may be created all the same.
    pub fn succeeded(&self, kind: WriteKind, at: StoreOperation) {
        use StoreOperation::{Append, MultipartComplete, Put};
        let of = self.of(kind);
        if of.failing_since.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failed_at = of.failed_at.load(Ordering::Relaxed);
        let is_whole = matches!(at, Put | MultipartComplete) && failed_at != Append as usize;
        if at == Append || is_whole || failed_at == at as usize {
            of.failing_since.store(0, Ordering::Relaxed);
        }
    }

    /// One failed.
    pub fn failed(&self, kind: WriteKind, at: StoreOperation, now: Instant, cause: String) {
        let (of, millis) = (self.of(kind), self.millis(now) + 1);
        *of.cause.lock() = cause;
        of.failed_at.store(at as usize, Ordering::Relaxed);
        of.failed_last.store(millis, Ordering::Relaxed);
        // Not in place of an earlier one.
        let _first = of.failing_since.compare_exchange(0, millis, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    }

    /// The write that has been in progress for longest, to the second.
    pub fn oldest(&self, now: Instant) -> Option<(WriteKind, Duration)> {
        let millis = self.millis(now);
        let begun = |kind: WriteKind| {
            let slots = self.of(kind).slots.iter().map(|slot| slot.load(Ordering::Relaxed));
            slots.filter(|slot| slot & COUNT_MASK > 0).map(|slot| slot >> COUNT_BITS).min()
        };
        let oldest = WriteKind::ALL.into_iter().filter_map(|kind| Some((begun(kind)?, kind)));
        let oldest: Vec<_> = oldest.collect();
        let first = oldest.iter().map(|(second, _)| *second).min()?;
        // Of those that began at about the same time: what is written before what waits for that.
        let (second, kind) = *oldest.iter().find(|(second, _)| *second <= first + 1)?;
        Some((kind, Duration::from_millis(millis.saturating_sub(second * 1000))))
    }

    /// Whether all writes of a kind have failed lately.
    pub fn failing(&self, kind: WriteKind, now: Instant) -> Option<Failing> {
        let of = self.of(kind);
        let since = of.failing_since.load(Ordering::Relaxed).checked_sub(1)?;
        let ago = |millis: u64| Duration::from_millis(self.millis(now).saturating_sub(millis));
        let last = of.failed_last.load(Ordering::Relaxed).saturating_sub(1);
        let lasts = Duration::from_millis(last.saturating_sub(since));
        Some(Failing { lasts, last: ago(last), cause: of.cause.lock().clone() })
    }

    /// Why the last write of a kind failed, if that was lately: others of its kind may have succeeded since.
    pub fn failed_within(&self, kind: WriteKind, now: Instant, within: Duration) -> Option<String> {
        let of = self.of(kind);
        let last = of.failed_last.load(Ordering::Relaxed).checked_sub(1)?;
        let ago = Duration::from_millis(self.millis(now).saturating_sub(last));
        (ago < within).then(|| of.cause.lock().clone())
    }

    fn of(&self, kind: WriteKind) -> &WritesOfKind {
        &self.kinds[kind as usize]
    }

    fn millis(&self, now: Instant) -> u64 {
        let base = *self.base.get_or_init(|| now);
        u64::try_from(now.saturating_duration_since(base).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_write_in_progress_is_told_whatever_comes_and_goes_beside_it() {
        let (writes, begun) = (WritesSeen::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(writes.oldest(at(0)), None);
        drop(writes.begin(WriteKind::Data, at(0)));
        let stuck = writes.begin(WriteKind::CatalogLog, at(3));
        for second in 4..200 {
            drop(writes.begin(WriteKind::CatalogLog, at(second)));
            drop(writes.begin(WriteKind::Data, at(second)));
        }
        let young = writes.begin(WriteKind::CommitDurable, at(200));

        assert_eq!(writes.oldest(at(201)), Some((WriteKind::CatalogLog, Duration::from_secs(198))));
        drop(stuck);
        assert_eq!(writes.oldest(at(201)), Some((WriteKind::CommitDurable, Duration::from_secs(1))));
        drop(young);
        assert_eq!(writes.oldest(at(202)), None);
    }

    #[test]
    fn writes_fail_from_the_first_failure_on_until_one_succeeds() {
        let (writes, begun) = (WritesSeen::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(writes.failing(WriteKind::Data, at(0)), None);

        writes.failed(WriteKind::Data, StoreOperation::Append, at(1), "first".to_owned());
        writes.failed(WriteKind::Data, StoreOperation::Append, at(7), "second".to_owned());
        writes.succeeded(WriteKind::CatalogLog, StoreOperation::Append);
        writes.succeeded(WriteKind::Data, StoreOperation::Put);

        let failing = writes.failing(WriteKind::Data, at(11)).unwrap();
        assert_eq!((failing.lasts.as_secs(), failing.last.as_secs()), (6, 4));
        assert_eq!(failing.cause, "second");
        writes.succeeded(WriteKind::Data, StoreOperation::Append);
        assert_eq!(writes.failing(WriteKind::Data, at(11)), None);
        assert_eq!(writes.failed_within(WriteKind::Data, at(11), Duration::from_secs(5)).unwrap(), "second");
        assert_eq!(writes.failed_within(WriteKind::Data, at(12), Duration::from_secs(5)), None);

        // A part of a large file that failed, and whole files that are written all the while.
        writes.failed(WriteKind::Data, StoreOperation::MultipartPart, at(20), "a part".to_owned());
        writes.succeeded(WriteKind::Data, StoreOperation::MultipartCreate);
        assert!(writes.failing(WriteKind::Data, at(20)).is_some());
        writes.succeeded(WriteKind::Data, StoreOperation::Put);
        assert_eq!(writes.failing(WriteKind::Data, at(20)), None);
    }
}
