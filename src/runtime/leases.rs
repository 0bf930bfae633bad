//! Leases: who is still reading what was there a moment ago.
//!
//! A read ([`Reading`]) takes a [`Lease`] on each file that it finds something in, *while it holds the lock under which it
//! finds it*, and drops the lease when it has read what it wants of the file. Whoever wants to take bytes away first makes
//! them unfindable, under the same lock, and then asks about the file. So each reader that may have found the bytes is
//! among the leases that are looked at, and the file waits for those and for no others.
//!
//! - A whole file, in which nothing can be found any more, may go when it [`Leases::is_read`] no longer.
//! - Parts of a file, in which other things can still be found, may go when no lease is left that is older than a
//!   [`Ticket`] drawn after the parts became unfindable ([`Leases::is_read_since_before`]).
//!
//! # The deadline
//! A read that makes no progress for `limits.read-lease` keeps nothing any more: the first who wants one of its files ends
//! the read's leases, all of them and for good ([`Reading::has_ended`]). Nobody is told at that moment. The reader may go on
//! and finds its bytes, or finds them gone: then it looks up once more, and where nothing is found the leases tell that it
//! was too slow, not that storage lost something. Leases that nobody asks about do not end, so a slow reader that is in
//! nobody's way reads on.
//!
//! A descriptor that is kept open would not help the slow reader for long: its bytes would still take space on the disk.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::Clock;
use crate::model::PhysicalFileId;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Instead of the time of the last progress.
const ENDED: u64 = u64::MAX;
/// The silence of the daemon's own reads.
const NO_DEADLINE: u64 = u64::MAX;

/// All leases of one daemon. Clones share them.
#[derive(Clone)]
pub struct Leases(Arc<LeaseShards>);

struct LeaseShards {
    shards: [CachePadded<Mutex<Table>>; SHARDS],
    shard_of: RandomState,
    /// The number of the next lease or ticket: one order for both.
    next: AtomicU64,
    silence_max: Duration,
    /// The times of progress count from here.
    since: Instant,
    ended: IntCounter,
}

/// The reads that have leases, by file and number.
type Table = BTreeMap<(PhysicalFileId, u64), Arc<ReadProgress>>;

/// When a read last made progress.
#[derive(Debug)]
struct ReadProgress {
    /// In milliseconds, or [`ENDED`].
    last: AtomicU64,
    silence_max: u64,
}

/// One read, of any number of files. Clones are the same read.
#[derive(Debug, Clone)]
pub struct Reading {
    leases: Leases,
    progress: Arc<ReadProgress>,
}

/// Keeps what its read has found in one file from being taken away. Dropped, it ends.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    file: PhysicalFileId,
    number: u64,
}

/// A point in the order of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Leases {
    /// No leases. A read without progress for `silence_max` may lose its own; `ended` counts those reads.
    pub fn new(silence_max: Duration, ended: IntCounter) -> Self {
        Self(Arc::new(LeaseShards {
            shards: Default::default(),
            shard_of: RandomState::new(),
            next: AtomicU64::new(0),
            silence_max,
            since: Clock::instant(),
            ended,
        }))
    }

    /// Begins a read for somebody who may be slow.
    pub fn begin(&self) -> Reading {
        self.begin_with(millis(self.0.silence_max))
    }

    /// Begins a read of the daemon's own, which waits for nobody outside and has no deadline.
    pub fn begin_own(&self) -> Reading {
        self.begin_with(NO_DEADLINE)
    }

    fn begin_with(&self, silence_max: u64) -> Reading {
        let progress = ReadProgress { last: AtomicU64::new(self.now()), silence_max };
        Reading { leases: self.clone(), progress: Arc::new(progress) }
    }

    /// Now: what is unfindable by now is not what later leases are for.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether anybody has a lease on `file`. Ends those of reads that are over their deadline, if there are no others.
    pub fn is_read(&self, file: &PhysicalFileId) -> bool {
        self.is_read_since_before(file, Ticket(u64::MAX))
    }

    /// The same for leases from before `ticket`.
    pub fn is_read_since_before(&self, file: &PhysicalFileId, ticket: Ticket) -> bool {
        let now = self.now();
        let readers: Vec<Arc<ReadProgress>> = {
            let shard = self.shard(file).lock();
            let range = (file.clone(), 0)..(file.clone(), ticket.0);
            let readers = shard.range(range).map(|(_, progress)| progress);
            if readers.clone().any(|progress| !progress.is_over(now)) {
                return true;
            }
            readers.map(Arc::clone).collect()
        };
        // One that has just made progress keeps its leases.
        let ended: Vec<Option<bool>> = readers.iter().map(|progress| progress.end(now)).collect();
        let newly = ended.iter().flatten().filter(|newly| **newly).count();
        if newly > 0 {
            self.0.ended.inc_by(newly as u64);
            let silence_max = self.0.silence_max;
            tracing::warn!(%file, reads = newly, ?silence_max, "reads without progress do not keep a file any longer");
        }
        ended.contains(&None)
    }

    /// Number of leases.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, file: &PhysicalFileId) -> &Mutex<Table> {
        &self.0.shards[self.0.shard_of.hash_one(file) as usize % SHARDS]
    }

    fn now(&self) -> u64 {
        millis(self.0.since.elapsed())
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").finish_non_exhaustive()
    }
}

impl ReadProgress {
    fn is_over(&self, now: u64) -> bool {
        self.is_over_since(self.last.load(Ordering::Acquire), now)
    }

    fn is_over_since(&self, last: u64, now: u64) -> bool {
        last == ENDED || self.silence_max != NO_DEADLINE && now.saturating_sub(last) >= self.silence_max
    }

    /// Ends a read that is over, and tells whether it had not ended before; `None` if it has made progress.
    fn end(&self, now: u64) -> Option<bool> {
        let over = |last| self.is_over_since(last, now).then_some(ENDED);
        self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, over).ok().map(|last| last != ENDED)
    }
}

impl Reading {
    /// A lease on a file that something was just found in. The lock under which it was found has to be held still.
    pub fn lease(&self, file: &PhysicalFileId) -> Lease {
        let mut shard = self.leases.shard(file).lock();
        // The one who makes this file's contents unfindable has to wait for the lock of the state that the caller holds, so
        // that its ticket is younger; and finds this lease in the table.
        let number = self.leases.0.next.fetch_add(1, Ordering::Relaxed);
        shard.insert((file.clone(), number), Arc::clone(&self.progress));
        drop(shard);
        Lease { leases: self.leases.clone(), file: file.clone(), number }
    }

    /// It has got on. Too late if its leases have ended.
    pub fn progressed(&self) {
        // ENDED is larger than any time, and stays.
        self.progress.last.fetch_max(self.leases.now(), Ordering::AcqRel);
    }

    /// Whether its leases were ended because it made no progress. Who finds bytes gone asks afterwards.
    pub fn has_ended(&self) -> bool {
        self.progress.last.load(Ordering::Acquire) == ENDED
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Names are two words each: cheaper to clone than to look for.
        let key = (self.file.clone(), self.number);
        self.leases.shard(&self.file).lock().remove(&key);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NO_DEADLINE)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;

    use parking_lot::RwLock;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn leases(silence_max: Duration) -> Leases {
        Leases::new(silence_max, IntCounter::new("ended", "help").unwrap())
    }

    fn file(number: u64) -> PhysicalFileId {
        PhysicalFileId::new(None, 1, number.into())
    }

    #[test]
    fn a_file_waits_for_its_own_readers_and_a_part_of_it_for_those_from_before() {
        let leases = leases(LONG);
        let reading = leases.begin();
        let (old, other) = (reading.lease(&file(1)), reading.lease(&file(2)));
        let ticket = leases.ticket();
        let new = leases.begin().lease(&file(1));
        assert!(leases.is_read_since_before(&file(1), ticket));

        drop(old);

        assert!(!leases.is_read_since_before(&file(1), ticket));
        assert!(leases.is_read(&file(1)) && leases.is_read(&file(2)) && !leases.is_read(&file(3)));
        drop((new, other));
        assert!(!leases.is_read(&file(1)) && !leases.is_read(&file(2)));
        assert_eq!(leases.held(), 0);
    }

    #[test]
    fn a_read_without_progress_loses_its_leases_when_somebody_asks_and_not_before() {
        let leases = leases(Duration::ZERO);
        let (slow, own) = (leases.begin(), leases.begin_own());
        let (_of_slow, _also_of_slow, of_own) = (slow.lease(&file(1)), slow.lease(&file(2)), own.lease(&file(1)));

        assert!(leases.is_read(&file(1)), "the daemon's own reads have no deadline");
        assert!(!slow.has_ended(), "the file has to stay anyway");
        drop(of_own);
        assert!(!leases.is_read(&file(1)));

        assert!(slow.has_ended() && !own.has_ended());
        slow.progressed();
        assert!(slow.has_ended(), "what was promised away is not kept again");
        assert!(!leases.is_read(&file(2)));
        assert_eq!(leases.0.ended.get(), 1, "one read was too slow");
    }

    #[test]
    fn progress_puts_the_deadline_off() {
        let progress = ReadProgress { last: AtomicU64::new(100), silence_max: 50 };

        assert_eq!((progress.is_over(149), progress.end(149)), (false, None));
        progress.last.store(140, Ordering::Release);
        assert_eq!((progress.is_over(189), progress.end(190), progress.end(190)), (false, Some(true), Some(false)));
        assert!(progress.is_over(0));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Lease { file: u64 },
        Drop { nth: usize },
        Ticket,
        Ask { file: u64 },
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..4_u64).prop_map(|file| Op::Lease { file }),
            (0..8_usize).prop_map(|nth| Op::Drop { nth }),
            Just(Op::Ticket),
            (0..4_u64).prop_map(|file| Op::Ask { file }),
        ]
    }

    proptest! {
        #[test]
        fn leases_match_a_list_after_any_history(ops in vec(any_op(), 1..100)) {
            let leases = leases(LONG);
            let mut held: Vec<(usize, u64, Lease)> = vec![];
            let mut ticket = (0, leases.ticket());
            for (time, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Lease { file: of } => held.push((time, of, leases.begin().lease(&file(of)))),
                    Op::Drop { nth } if nth < held.len() => drop(held.remove(nth)),
                    Op::Drop { .. } => {}
                    Op::Ticket => ticket = (time, leases.ticket()),
                    Op::Ask { file: of } => {
                        let before = held.iter().any(|(since, file, _)| *file == of && *since < ticket.0);
                        prop_assert_eq!(leases.is_read(&file(of)), held.iter().any(|(_, file, _)| *file == of));
                        prop_assert_eq!(leases.is_read_since_before(&file(of), ticket.1), before);
                    }
                }
                prop_assert_eq!(leases.held(), held.len());
            }
        }
    }

    /// Files that can be found, and whether each was deleted, as a state and a disk would have them.
    type Findable = RwLock<HashMap<u64, Arc<AtomicBool>>>;

    fn read_on_and_on(findable: &Findable, leases: &Leases, files: u64) {
        loop {
            let found = {
                let state = findable.read();
                let newest = state.iter().max_by_key(|(number, _)| **number);
                newest.map(|(number, deleted)| (*number, Arc::clone(deleted), leases.begin().lease(&file(*number))))
            };
            let Some((number, deleted, lease)) = found else { continue };
            for _ in 0..10 {
                assert!(!deleted.load(Ordering::SeqCst), "file {number} was deleted under its reader");
                std::thread::yield_now();
            }
            drop(lease);
            if number == files {
                return;
            }
        }
    }

    #[test]
    fn nothing_is_deleted_under_a_reader_that_found_it_however_threads_interleave() {
        const FILES: u64 = 3000;
        let (leases, findable) = (leases(LONG), Findable::default());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| read_on_and_on(&findable, &leases, FILES));
            }
            for number in 0..=FILES {
                findable.write().insert(number, Arc::default());
                std::thread::yield_now();
                let Some(before) = number.checked_sub(1) else { continue };
                let deleted = findable.write().remove(&before).unwrap();
                while leases.is_read(&file(before)) {
                    std::thread::yield_now();
                }
                deleted.store(true, Ordering::SeqCst);
            }
        });
        assert_eq!(leases.held(), 0);
    }
}
