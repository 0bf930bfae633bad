//! Open physical files, and who may put a segment into one.
//!
//! A lane's pool holds its open files. A writer takes one for as long as it takes to put its parcel into the file's
//! group, never while a body arrives or a disk syncs: 64 slow clients do not need 64 files. So a file is free unless
//! its group is full and the one before it is still being written.
//!
//! | | non-blocking | blocking |
//! | --- | --- | --- |
//! | a file is free | taken | taken |
//! | all files are full | another is opened at once, up to `max-open-files` | the writer waits its turn, with a deadline |
//! | a file reaches `max-file-size` | closed; the next writer opens one | the same |
//! | a write fails | the file leaves the pool; the next writer opens one | the same |
//!
//! The size is checked after the append: a file may exceed `max-file-size` by its last parcel. A file takes parcels of
//! at most `max-subtasks-per-file` subtasks. No replacement is opened before somebody needs it.
//!
//! # Source
//! `NonBlockingPhysicalFilePool` and `BlockingPhysicalFilePool` of Flink, without the queue that a failed
//! writer leaves empty for ever.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::lane::LaneKey;
use super::{MergeError, MergeResult, Parcel};
use crate::config::{MergingSettings, PoolMode};
use crate::model::{CheckpointId, JobId, PhysicalFileId, SubtaskKey};
use crate::runtime::Clock;

/// A parcel in a group, and who waits for it.
#[derive(Debug)]
pub struct PendingParcel {
    /// The parcel.
    pub parcel: Parcel,
    /// Told once it is durable.
    pub reply: oneshot::Sender<MergeResult>,
}

/// An open physical file, as its pool and its owner share it.
#[derive(Debug)]
pub struct OpenFile {
    /// The segments that may be put into it.
    pub key: LaneKey,
    collecting: Mutex<Collecting>,
    /// Rung when there is something for the owner to do.
    pub bell: Notify,
    /// The physical file, once it has begun. Another one takes its place if it fails.
    file: Mutex<Option<PhysicalFileId>>,
}

#[derive(Debug, Default)]
struct Collecting {
    group: Vec<PendingParcel>,
    group_bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    file_bytes: u64,
    subtasks: BTreeSet<SubtaskKey>,
    /// Takes nothing more; the owner writes what there is and ends.
    closed: bool,
}

/// The parcels that have collected for the owner of a file.
#[derive(Debug, Default)]
pub struct Group {
    /// The parcels, in the order of their arrival.
    pub parcels: Vec<PendingParcel>,
    /// Whether the file takes nothing more after this.
    pub last: bool,
}

/// The time for which a group has been collecting.
#[derive(Debug, Clone, Copy)]
pub struct GroupAge {
    /// When its first parcel arrived.
    pub first: Instant,
    /// When its last parcel arrived.
    pub last: Instant,
    /// Its parcels.
    pub parcels: usize,
    /// Whether it must not wait: the file is closed, or the group is full.
    pub urgent: bool,
}

/// All open files by lane. One for the daemon.
#[derive(Debug)]
pub struct Pools {
    settings: MergingSettings,
    lanes: Mutex<Lanes>,
    /// Rung when a file may have become free, or was closed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    by_key: HashMap<LaneKey, LanePool>,
    open: usize,
    closing: bool,
}

#[derive(Debug, Default)]
struct LanePool {
    files: Vec<Arc<OpenFile>>,
    /// Waiters stand in this queue, first come, first served.
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: usize,
}

/// The result of the attempt to put a parcel into a file.
enum PlaceOutcome {
    /// It is in a group.
    Into,
    /// A file was opened for it; its owner has to be started.
    Opened(Arc<OpenFile>),
    /// Not now.
    Wait(PendingParcel),
}

impl Pools {
    /// No open files yet.
    pub fn new(settings: MergingSettings) -> Self {
        Self { settings, lanes: Mutex::default(), changed: Notify::new() }
    }

    /// Puts a parcel into an open file of its lane. Returns a file that was opened for it, whose owner the caller
    /// has to start.
    ///
    /// # Errors
    /// [`MergeError::NoFile`] after `take-deadline`; [`MergeError::ShuttingDown`].
    pub async fn put(&self, lane: &LaneKey, pending: PendingParcel) -> Result<Option<Arc<OpenFile>>, MergeError> {
        let mut pending = match self.try_put(lane, pending, QueueTurn::New)? {
            PlaceOutcome::Into => return Ok(None),
            PlaceOutcome::Opened(file) => return Ok(Some(file)),
            PlaceOutcome::Wait(pending) => pending,
        };
        let waiting = self.enqueue(lane);
        let deadline = self.settings.take_deadline;
        let wait = async {
            // A tokio mutex hands the lane's turn out in the order of arrival.
            let _turn = waiting.turn.lock().await;
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // Before the attempt: `notify_waiters` wakes only those who are enabled, and room that comes between the
                // attempt and the wait would wake nobody.
                changed.as_mut().enable();
                pending = match self.try_put(lane, pending, QueueTurn::First)? {
                    PlaceOutcome::Into => return Ok(None),
                    PlaceOutcome::Opened(file) => return Ok(Some(file)),
                    PlaceOutcome::Wait(pending) => pending,
                };
                changed.await;
            }
        };
        tokio::time::timeout(deadline, wait).await.unwrap_or(Err(MergeError::NoFile(deadline)))
    }

    fn enqueue<'a>(&'a self, lane: &'a LaneKey) -> LaneWaiter<'a> {
        let mut lanes = self.lanes.lock();
        let entry = lanes.by_key.entry(lane.clone()).or_default();
        entry.waiting += 1;
        LaneWaiter { pools: self, lane, turn: Arc::clone(&entry.turn) }
    }

    fn try_put(&self, key: &LaneKey, pending: PendingParcel, standing: QueueTurn) -> Result<PlaceOutcome, MergeError> {
        // Lock order: lanes, then a file's group.
        let mut lanes = self.lanes.lock();
        if lanes.closing {
            return Err(MergeError::ShuttingDown);
        }
        let open = lanes.open;
        let lane = lanes.by_key.entry(key.clone()).or_default();
        if standing == QueueTurn::New && lane.waiting > 0 {
            return Ok(PlaceOutcome::Wait(pending));
        }
        let mut pending = pending;
        let mut would_take_later = false;
        for index in 0..lane.files.len() {
            match self.append(&lane.files[index], pending) {
                Appended::Yes => return Ok(PlaceOutcome::Into),
                Appended::YesAndFull => {
                    lane.files.remove(index);
                    return Ok(PlaceOutcome::Into);
                }
                Appended::NotNow(back) => (pending, would_take_later) = (back, true),
                Appended::Never(back) => pending = back,
            }
        }
        let may_open = match self.settings.pool {
            PoolMode::NonBlocking => true,
            PoolMode::Blocking => !would_take_later,
        };
        if !may_open {
            return Ok(PlaceOutcome::Wait(pending));
        }
        if open >= self.settings.open_files_max {
            close_one_elsewhere(&lanes, key);
            return Ok(PlaceOutcome::Wait(pending));
        }
        let file = Arc::new(OpenFile {
            key: key.clone(),
            collecting: Mutex::default(),
            bell: Notify::new(),
            file: Mutex::default(),
        });
        let full = !matches!(self.append(&file, pending), Appended::Yes);
        if !full {
            lane.files.push(Arc::clone(&file));
        }
        lanes.open += 1;
        Ok(PlaceOutcome::Opened(file))
    }

    fn append(&self, file: &OpenFile, pending: PendingParcel) -> Appended {
        let mut collecting = file.collecting.lock();
        let len = pending.parcel.len();
        let group_full = collecting.group_bytes > 0 && collecting.group_bytes + len > self.settings.group_bytes_max;
        let subtask = pending.parcel.pieces.first().and_then(|piece| piece.about.writer.subtask.clone());
        let crowded = subtask.as_ref().is_some_and(|subtask| {
            collecting.subtasks.len() >= self.settings.subtasks_per_file_max && !collecting.subtasks.contains(subtask)
        });
        if collecting.closed || crowded {
            return Appended::Never(pending);
        }
        if group_full {
            return Appended::NotNow(pending);
        }
        collecting.subtasks.extend(subtask);
        collecting.group.push(pending);
        collecting.group_bytes += len;
        collecting.file_bytes += len;
        let now = Clock::instant();
        collecting.first.get_or_insert(now);
        collecting.last = Some(now);
        let full = collecting.file_bytes >= self.settings.file_bytes_max || !self.settings.enabled;
        collecting.closed = full;
        // Without the lock, which the owner that wakes up takes at once.
        drop(collecting);
        file.bell.notify_one();
        if full { Appended::YesAndFull } else { Appended::Yes }
    }

    /// Takes what has collected in a file; its owner alone calls this.
    pub fn take_group(&self, file: &OpenFile) -> Group {
        let group = {
            let mut collecting = file.collecting.lock();
            collecting.group_bytes = 0;
            collecting.first = None;
            Group { parcels: std::mem::take(&mut collecting.group), last: collecting.closed }
        };
        // After the group is empty: a writer that wakes up earlier finds no room, and sleeps on.
        if !group.parcels.is_empty() {
            self.changed.notify_waiters();
        }
        group
    }

    /// Asks that a file takes nothing more. What is in its group is still written.
    pub fn close(&self, file: &Arc<OpenFile>) {
        // Lock order: lanes, then a file's group. Both are held, so that no writer takes the file for one that takes more.
        let mut lanes = self.lanes.lock();
        file.collecting.lock().closed = true;
        if let Some(lane) = lanes.by_key.get_mut(&file.key) {
            lane.files.retain(|open| !Arc::ptr_eq(open, file));
            if lane.files.is_empty() && lane.waiting == 0 {
                lanes.by_key.remove(&file.key);
            }
        }
        drop(lanes);
        // The owner looks once more, for its last group; the writers who waited for this file look for another.
        file.bell.notify_one();
        self.changed.notify_waiters();
    }

    /// A file's owner has ended. Called once for each file that was opened.
    pub fn ended(&self, file: &Arc<OpenFile>) {
        self.close(file);
        // Its place is free only now: the woken writer may open a file in it.
        self.lanes.lock().open -= 1;
        self.changed.notify_waiters();
    }

    /// Closes the open files of a job that hold only what checkpoints up to `checkpoint` wrote.
    pub fn close_checkpoint(&self, job: &JobId, checkpoint: CheckpointId) {
        self.close_where(|key| key.lane.job.as_ref() == Some(job) && key.checkpoint.is_some_and(|n| n <= checkpoint));
    }

    /// Closes the open files of one writer's job, so that what it wrote is complete.
    pub fn close_job(&self, job: &JobId) {
        self.close_where(|key| key.lane.job.as_ref() == Some(job));
    }

    /// Takes nothing more, and closes every file.
    pub fn close_all(&self) {
        // First: a writer that is turned away from a closed file would open another one.
        self.lanes.lock().closing = true;
        self.close_where(|_| true);
    }

    /// Closes an open file by its name. False if there is none of that name.
    pub fn close_file(&self, file: &PhysicalFileId) -> bool {
        let found = {
            // Lock order: lanes, then a file's name.
            let lanes = self.lanes.lock();
            let mut open = lanes.by_key.values().flat_map(|lane| &lane.files);
            open.find(|open| open.file.lock().as_ref() == Some(file)).cloned()
        };
        found.inspect(|open| self.close(open)).is_some()
    }

    fn close_where(&self, wanted: impl Fn(&LaneKey) -> bool) {
        let files: Vec<Arc<OpenFile>> = {
            let lanes = self.lanes.lock();
            let matching = lanes.by_key.iter().filter(|(key, _)| wanted(key));
            matching.flat_map(|(_, lane)| lane.files.iter().cloned()).collect()
        };
        files.iter().for_each(|file| self.close(file));
    }

    /// Files that are open, those whose owners are still writing their end among them.
    pub fn open_files(&self) -> usize {
        self.lanes.lock().open
    }
}

impl OpenFile {
    /// The time for which the group has been collecting; `None` while it is empty.
    pub fn group_age(&self, group_bytes_max: u64) -> Option<GroupAge> {
        let collecting = self.collecting.lock();
        Some(GroupAge {
            first: collecting.first?,
            last: collecting.last?,
            parcels: collecting.group.len(),
            urgent: collecting.closed || collecting.group_bytes >= group_bytes_max,
        })
    }

    /// Whether its owner has something to do: there is a group, or the file is closed.
    pub fn has_work(&self) -> bool {
        let collecting = self.collecting.lock();
        collecting.closed || !collecting.group.is_empty()
    }

    /// Its physical file begins.
    pub fn begins(&self, file: &PhysicalFileId) {
        *self.file.lock() = Some(file.clone());
    }

    /// Whether it takes nothing more.
    pub fn is_closed(&self) -> bool {
        self.collecting.lock().closed
    }
}

/// Whether a writer has waited for its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum QueueTurn {
    New,
    First,
}

enum Appended {
    Yes,
    YesAndFull,
    NotNow(PendingParcel),
    Never(PendingParcel),
}

/// One writer in the queue of a lane.
struct LaneWaiter<'a> {
    pools: &'a Pools,
    lane: &'a LaneKey,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for LaneWaiter<'_> {
    fn drop(&mut self) {
        let mut lanes = self.pools.lanes.lock();
        if let Some(lane) = lanes.by_key.get_mut(self.lane) {
            lane.waiting -= 1;
            if lane.files.is_empty() && lane.waiting == 0 {
                lanes.by_key.remove(self.lane);
            }
        }
    }
}

/// Asks the file of another lane that was idle for longest to end, so that one more may be opened.
fn close_one_elsewhere(lanes: &Lanes, key: &LaneKey) {
    let others = lanes.by_key.iter().filter(|(other, _)| *other != key).flat_map(|(_, lane)| &lane.files);
    let idle = others.filter_map(|file| {
        let collecting = file.collecting.lock();
        (collecting.group.is_empty() && !collecting.closed).then_some((collecting.last, file))
    });
    if let Some((_, file)) = idle.min_by_key(|(last, _)| *last) {
        // The lanes are still locked: nothing was put into it since it was found to be empty.
        file.collecting.lock().closed = true;
        file.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::command::Bind;
    use crate::config::{Config, Settings};
    use crate::merge::WholeSegment;
    use crate::model::{About, Label, Lane, LaneOf, SegmentCrc, SegmentId, StateScope, Writer};

    fn settings(change: impl FnOnce(&mut MergingSettings)) -> MergingSettings {
        let mut settings = Settings::try_from(&Config::default()).unwrap().merging;
        settings.group_bytes_max = 100;
        settings.file_bytes_max = 1000;
        settings.take_deadline = Duration::from_secs(1);
        change(&mut settings);
        settings
    }

    fn lane(n: u32) -> LaneKey {
        let job = format!("job-{n}").parse().unwrap();
        LaneKey { lane: Lane { job: Some(job), scope: StateScope::Exclusive, of: LaneOf::All }, checkpoint: None }
    }

    /// A parcel of `len` bytes that `subtask` wrote.
    fn parcel(len: usize, subtask: u32) -> PendingParcel {
        let operator = Label::parse("operator", "op").unwrap();
        let about = About {
            job: "job".parse().unwrap(),
            scope: StateScope::Exclusive,
            writer: Writer {
                subtask: Some(SubtaskKey { operator, index: subtask, parallelism: 100 }),
                task_manager: None,
            },
            checkpoint: None,
            name: None,
        };
        let data: bytes::Bytes = vec![7; len].into();
        let piece = WholeSegment { id: SegmentId(1), about, crc: SegmentCrc::of(&data), data };
        let bind = Bind::Checkpoint { idempotency_key: None, run: None };
        let parcel = Parcel { pieces: vec![piece], bind, paid: None };
        PendingParcel { parcel, reply: oneshot::channel().0 }
    }

    async fn put(pools: &Pools, n: u32, pending: PendingParcel) -> Option<Arc<OpenFile>> {
        pools.put(&lane(n), pending).await.unwrap()
    }

    #[tokio::test]
    async fn parcels_of_a_lane_share_one_file_and_those_of_another_do_not() {
        let pools = Pools::new(settings(|_| {}));

        let first = put(&pools, 1, parcel(10, 0)).await.unwrap();
        assert!(put(&pools, 1, parcel(10, 0)).await.is_none());
        assert!(put(&pools, 2, parcel(10, 0)).await.is_some());

        assert_eq!(pools.take_group(&first).parcels.len(), 2);
    }

    #[tokio::test]
    async fn a_non_blocking_pool_opens_another_file_when_the_group_is_full() {
        let pools = Pools::new(settings(|_| {}));

        put(&pools, 1, parcel(90, 0)).await.unwrap();

        assert!(put(&pools, 1, parcel(20, 0)).await.is_some());
    }

    #[tokio::test]
    async fn writers_of_a_blocking_pool_wait_in_order_until_the_owner_takes_the_group() {
        let pools = Arc::new(Pools::new(settings(|s| s.pool = PoolMode::Blocking)));
        let file = put(&pools, 1, parcel(90, 0)).await.unwrap();
        let order = Arc::new(Mutex::new(vec![]));
        let mut writers = vec![];
        for n in 0..3 {
            let (pools, order) = (Arc::clone(&pools), Arc::clone(&order));
            let writer = async move {
                assert!(put(&pools, 1, parcel(90, n)).await.is_none());
                order.lock().push(n);
            };
            writers.push(tokio::task::spawn(writer));
            tokio::task::yield_now().await;
        }
        assert!(order.lock().is_empty());

        for taken in 1..=3 {
            pools.take_group(&file);
            while order.lock().len() < taken {
                tokio::task::yield_now().await;
            }
        }

        assert_eq!(*order.lock(), [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_waits_too_long_is_told_and_leaves_no_trace() {
        let pools = Pools::new(settings(|s| s.pool = PoolMode::Blocking));
        let file = put(&pools, 1, parcel(90, 0)).await.unwrap();

        let refused = pools.put(&lane(1), parcel(90, 1)).await.unwrap_err();

        assert!(matches!(refused, MergeError::NoFile(_)));
        assert_eq!(pools.take_group(&file).parcels.len(), 1);
        assert!(put(&pools, 1, parcel(90, 1)).await.is_none());
    }

    #[tokio::test]
    async fn a_writer_that_panics_while_it_waits_leaves_its_place_to_the_next_one() {
        let pools = Arc::new(Pools::new(settings(|s| s.pool = PoolMode::Blocking)));
        let file = put(&pools, 1, parcel(90, 0)).await.unwrap();
        let panicking = tokio::task::spawn({
            let pools = Arc::clone(&pools);
            async move { tokio::join!(put(&pools, 1, parcel(90, 1)), async { panic!("a bug of the writer") }) }
        });
        assert!(panicking.await.unwrap_err().is_panic());
        let waiting = tokio::task::spawn({
            let pools = Arc::clone(&pools);
            async move { put(&pools, 1, parcel(90, 2)).await }
        });

        assert_eq!(pools.take_group(&file).parcels.len(), 1);

        assert!(waiting.await.unwrap().is_none());
        assert_eq!(pools.take_group(&file).parcels.len(), 1);
        pools.ended(&file);
        assert!(pools.lanes.lock().by_key.is_empty(), "nothing is left of the lane");
    }

    #[tokio::test]
    async fn a_file_whose_owner_failed_does_not_hang_the_next_writer() {
        let pools = Pools::new(settings(|s| s.pool = PoolMode::Blocking));
        let file = put(&pools, 1, parcel(90, 0)).await.unwrap();

        pools.ended(&file);

        assert!(put(&pools, 1, parcel(90, 0)).await.is_some());
        assert_eq!(pools.open_files(), 1);
    }

    #[tokio::test]
    async fn a_file_may_exceed_its_size_by_the_last_parcel_and_takes_no_more_then() {
        let pools = Pools::new(settings(|s| {
            s.file_bytes_max = 50;
        }));
        let file = put(&pools, 1, parcel(40, 0)).await.unwrap();
        assert!(put(&pools, 1, parcel(40, 0)).await.is_none());

        assert!(file.is_closed());
        assert!(put(&pools, 1, parcel(1, 0)).await.is_some());
        assert!(pools.take_group(&file).last);
    }

    #[tokio::test]
    async fn a_file_takes_segments_of_so_many_subtasks_and_no_more() {
        let pools = Pools::new(settings(|s| {
            s.subtasks_per_file_max = 2;
            s.pool = PoolMode::Blocking;
        }));
        put(&pools, 1, parcel(1, 0)).await.unwrap();
        assert!(put(&pools, 1, parcel(1, 1)).await.is_none());

        assert!(put(&pools, 1, parcel(1, 2)).await.is_some(), "a third subtask gets a file of its own");
        assert!(put(&pools, 1, parcel(1, 0)).await.is_none(), "the first two still share theirs");
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_bound_of_open_files_an_idle_one_of_another_lane_is_asked_to_end() {
        let pools = Arc::new(Pools::new(settings(|s| s.open_files_max = 1)));
        let idle = put(&pools, 1, parcel(1, 0)).await.unwrap();
        pools.take_group(&idle);

        let waiting = tokio::task::spawn({
            let pools = Arc::clone(&pools);
            async move { put(&pools, 2, parcel(1, 0)).await }
        });
        while !idle.is_closed() {
            tokio::task::yield_now().await;
        }
        pools.ended(&idle);

        assert!(waiting.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_end_of_a_checkpoint_closes_its_files_alone() {
        let pools = Pools::new(settings(|_| {}));
        let of = |n| LaneKey { checkpoint: Some(CheckpointId(n)), ..lane(1) };
        let first = pools.put(&of(1), parcel(1, 0)).await.unwrap().unwrap();
        let second = pools.put(&of(2), parcel(1, 0)).await.unwrap().unwrap();

        pools.close_checkpoint(&"job-1".parse().unwrap(), CheckpointId(1));

        assert!(first.is_closed() && !second.is_closed());
        assert_eq!(pools.take_group(&first).parcels.len(), 1);
    }

    #[tokio::test]
    async fn without_merging_every_parcel_has_a_file_of_its_own() {
        let pools = Pools::new(settings(|s| s.enabled = false));

        assert!(put(&pools, 1, parcel(1, 0)).await.is_some());
        assert!(put(&pools, 1, parcel(1, 0)).await.is_some());
    }
}
