//! [`JobActor`]: the one task that has the coordinator of a job. It takes messages, lets time pass, carries out what is decided.
//!
//! Storage is asked beside it: whatever is recorded goes on while messages come in, what is asked of one checkpoint in the order in
//! which it was decided. What has to be durable before it is told is told when it is.
//!
//! # Crash
//! Nothing that was told is undone: numbers of checkpoints are reserved durably before they are used, a checkpoint is complete
//! in the catalog before `complete` is told, an attempt is recorded before `restore` is told. Those in progress are given up
//! by the next owner, whose workers hear of that by `hello`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::CoordinatorError;
use super::events::{CoordinatorEvent, EventLog};
use super::history::History;
use super::memory::PaidAck;
use super::reason::FailureReason;
use super::record::{CheckpointOfJob, RememberedJob, StoppingJob};
use super::recorder::Recorder;
use super::requests::{NewRequest, RequestBook, RequestView};
use super::state::decision::{Decision, RestartCause};
use super::state::machine::{Coordinator, JobPhase};
use super::state::pending::PendingCheckpoint;
use super::state::queue::{StopMode, WantedCheckpoint};
use super::state::retained::RetainedKind;
use super::steps::{StepQueue, StorageStep};
use super::storage::{AcknowledgedCheckpoint, CopyPlaces, DurableCheckpoint, JobStorage, Publish, published_key};
use super::topology::TaskId;
use super::workers::WorkerTable;
use crate::config::{CheckpointStorage, JobCheckpointing, PublishDir, Retention};
use crate::error::chain;
use crate::model::{CheckpointId, CheckpointKind, JobEnd, JobId, SegmentId};
use crate::runtime::Clock;

/// Numbers of checkpoints that are reserved at once: so many need one record.
const IDS_AT_ONCE: u64 = 64;
/// After a record that was not taken, until the next try.
const RECORD_AGAIN: Duration = Duration::from_millis(500);

/// A coordinator that wakes so much later than it wanted to stood still: the process was stopped, or the machine was too busy.
const DEAF_AFTER: Duration = Duration::from_secs(1);

/// What somebody asks of a job.
pub(super) type Message = Box<dyn FnOnce(&mut JobActor) + Send>;

/// What came of what storage was asked.
enum StorageEnd {
    Begun(CheckpointId, Result<(), (FailureReason, String)>),
    Stored(CheckpointId, Result<DurableCheckpoint, String>),
    Cleaned(CheckpointId),
    Recorded(u64, bool),
    /// A restore, or the end, goes on.
    Then(Message),
}

/// What is done once a record is durable.
type AfterRecord = Box<dyn FnOnce(&mut JobActor) + Send>;

/// Hears whether the checkpoints of the job are kept; or that it could not be ended.
pub(super) type AfterEnd = Box<dyn FnOnce(Result<bool, CoordinatorError>) + Send>;

/// A change of a job that is under way.
pub(super) enum JobChange {
    /// It is being ended.
    End {
        /// How.
        state: JobEnd,
        /// Which of its checkpoints stay.
        retention: Retention,
        /// Those who asked for just that.
        asked: Vec<AfterEnd>,
    },
    /// It is to go on from another state.
    Restore {
        /// The job whose checkpoint that is.
        from: JobId,
        /// The checkpoint; `None`: the newest.
        checkpoint: Option<CheckpointId>,
    },
}

/// Something that waits until nothing is in progress any more.
pub(super) type WhenQuiet = Box<dyn FnOnce(&mut JobActor) + Send>;

/// The coordinator of one job at work.
pub(super) struct JobActor {
    pub storage: JobStorage,
    pub coordinator: Coordinator,
    pub remembered: RememberedJob,
    pub events: Arc<EventLog>,
    pub history: History,
    begun: Instant,
    /// When those in progress were triggered, and the attempt.
    pub(super) triggered: BTreeMap<CheckpointId, (u64, u64)>,
    /// What was paid for their acknowledgements.
    pub(super) paid: BTreeMap<CheckpointId, PaidAck>,
    /// Completed ones that were just stored, until that is told.
    pub(super) durable: BTreeMap<CheckpointId, DurableCheckpoint>,
    pub(super) requests: RequestBook,
    workers: WorkerTable,
    work: FuturesUnordered<BoxFuture<'static, StorageEnd>>,
    steps: StepQueue,
    recorder: Recorder<AfterRecord>,
    after_attempt: Vec<AfterRecord>,
    /// The change of the job that is under way: one at a time.
    pub(super) changing: Option<JobChange>,
    pub(super) when_quiet: Option<WhenQuiet>,
    /// The number of the event that told of the stop, if the job is stopping with a savepoint.
    pub(super) stop_told: Option<u64>,
    /// The attempt that is durable: no task begins in another one.
    pub recorded_attempt: u64,
    /// Storage is ending the job: nothing is recorded any more, which would bring it back.
    pub(super) ending: bool,
    pub over: bool,
}

/// However it ends, by a panic, too.
impl Drop for JobActor {
    fn drop(&mut self) {
        let in_progress = i64::try_from(self.triggered.len()).unwrap_or(0);
        self.storage.engine().metrics().checkpoints_in_progress.sub(in_progress);
        self.events.close();
    }
}

impl JobActor {
    pub(super) fn new(
        storage: JobStorage,
        coordinator: Coordinator,
        remembered: RememberedJob,
        events: Arc<EventLog>,
    ) -> Self {
        let recorded_attempt = remembered.attempt;
        Self {
            storage,
            coordinator,
            remembered,
            recorded_attempt,
            ending: false,
            events,
            history: History::default(),
            begun: Clock::instant(),
            triggered: BTreeMap::new(),
            paid: BTreeMap::new(),
            durable: BTreeMap::new(),
            requests: RequestBook::default(),
            workers: WorkerTable::default(),
            work: FuturesUnordered::new(),
            steps: StepQueue::default(),
            recorder: Recorder::default(),
            after_attempt: vec![],
            changing: None,
            when_quiet: None,
            stop_told: None,
            over: false,
        }
    }

    /// The time of this coordinator.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Works until the job is over, or this daemon may not go on with it.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        stopping: CancellationToken,
        lost: CancellationToken,
    ) {
        loop {
            self.carry_out();
            if self.over && self.work.is_empty() {
                break;
            }
            let asleep = self.now();
            let wake = self.coordinator.next_wake().map(|due| due.saturating_sub(asleep));
            tokio::select! {
                biased; // what must end ends first; then what storage did, as much follows from it
                () = stopping.cancelled() => break,
                () = lost.cancelled() => break,
                Some(end) = self.work.next() => self.apply(end),
                // Of a job that is over nothing is asked any more: its name may be another one's.
                message = inbox.recv(), if !self.over => match message {
                    Some(message) => message(&mut self),
                    None => break,
                },
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {}
            }
            let now = self.now();
            let late = wake.map_or(Duration::ZERO, |wake| (now - asleep).saturating_sub(wake));
            if late > DEAF_AFTER {
                self.coordinator.was_deaf(late, now);
            }
            self.coordinator.tick(now);
        }
    }

    /// Does what was decided, before whoever asked is answered.
    pub(super) fn settle(&mut self) {
        self.carry_out();
    }

    /// Does what was decided, until nothing is.
    fn carry_out(&mut self) {
        loop {
            let decided = self.coordinator.decisions();
            if decided.is_empty() {
                break;
            }
            decided.into_iter().for_each(|decision| self.carry_out_one(decision));
        }
        if self.when_quiet.is_some() && !self.coordinator.is_storing() && self.work.is_empty() {
            let then = self.when_quiet.take();
            then.into_iter().for_each(|then| then(self));
        }
    }

    fn carry_out_one(&mut self, decision: Decision) {
        match decision {
            Decision::Begin { id, wanted, .. } => {
                let attempt = self.coordinator.pending().get(&id).map_or(self.coordinator.attempt(), |one| one.attempt);
                self.triggered.insert(id, (self.storage.engine().now().0, attempt));
                let metrics = self.storage.engine().metrics();
                metrics.checkpoints_begun.inc();
                metrics.checkpoints_in_progress.inc();
                self.ask_storage(StorageStep::Begin { id, savepoint: wanted.is_savepoint() });
            }
            Decision::Trigger(id) => self.tell_trigger(id),
            Decision::Store(id) => self.ask_storage(StorageStep::Store(id)),
            Decision::Completed { id, wanted, last_subsumed } => self.tell_completed(id, wanted, last_subsumed),
            Decision::Subsumed(id) => self.events.publish(CoordinatorEvent::Subsume(id)),
            Decision::Aborted { id, wanted, reason, message } => {
                let (triggered, attempt) = self.count_end(id);
                self.show_failed(id, triggered, reason);
                self.storage.engine().metrics().checkpoints_failed.inc();
                tracing::info!(job = %self.storage.job(), checkpoint = %id, %reason, message, "a checkpoint was given up");
                self.events.publish(CoordinatorEvent::Abort { checkpoint: id, attempt, wanted, reason, message });
            }
            Decision::CleanAborted(id) => self.ask_storage(StorageStep::CleanAborted(id)),
            Decision::CleanSubsumed(id) => self.ask_storage(StorageStep::CleanSubsumed(id)),
            Decision::Answer(number, end) => self.answer(number, end),
            Decision::Restart { cause, message } => self.restart(cause, message),
            Decision::Note => self.note_tasks(),
            Decision::Stop(id, mode) => self.tell_stop(id, mode),
            Decision::Finished => self.end(JobEnd::Finished, None, Box::new(|_| {})),
        }
    }

    // ---- requests of people ----

    /// Somebody asks for a checkpoint or savepoint; with a key that was used before, for that one.
    ///
    /// # Errors
    /// [`CoordinatorError::KeyOfAnother`], [`CoordinatorError::TooManyRequests`].
    pub(super) fn request(&mut self, new: NewRequest) -> Result<watch::Receiver<RequestView>, CoordinatorError> {
        if let Some(earlier) = self.requests.earlier(&new)? {
            return Ok(earlier);
        }
        // A stop is taken all the same: it ends those that wait.
        self.requests.make_room(new.wanted.is_stop() && self.coordinator.phase() != JobPhase::Stopping)?;
        let id = SegmentId(self.storage.engine().entropy().ulid()).to_string();
        let now = self.now();
        let number = match new.wanted {
            WantedCheckpoint::Stop(mode) => self.coordinator.stop(mode, now),
            wanted => self.coordinator.request(wanted, now),
        };
        Ok(self.requests.add(id, number, new))
    }

    // ---- storage ----

    fn ask_storage(&mut self, step: StorageStep) {
        if let Some(step) = self.steps.add(step, self.coordinator.rules().cleans_in_parallel) {
            self.start(step);
        }
    }

    fn start(&mut self, step: StorageStep) {
        let id = step.id();
        let storage = self.storage.clone();
        match step {
            StorageStep::Begin { savepoint, .. } => self.begin(id, savepoint),
            StorageStep::Store(_) => {
                let Some(completion) = self.completion(id) else {
                    self.work.push(Box::pin(async move { StorageEnd::Stored(id, Err("it was given up".into())) }));
                    return;
                };
                let wanted = self.coordinator.pending().get(&id).map(PendingCheckpoint::wanted);
                let complete: AfterRecord = Box::new(move |actor| {
                    let completing = async move { StorageEnd::Stored(id, storage.complete(completion).await) };
                    actor.work.push(Box::pin(completing));
                });
                match wanted {
                    Some(WantedCheckpoint::Stop(mode)) => {
                        self.remembered.stop_savepoint = Some(id.0);
                        self.remembered.stopping = Some(StoppingJob { drain: mode == StopMode::Drain, path: None });
                        self.record(complete);
                    }
                    _ => complete(self),
                }
            }
            StorageStep::CleanAborted(_) => self.work.push(Box::pin(async move {
                storage.clean_aborted(id).await;
                StorageEnd::Cleaned(id)
            })),
            StorageStep::CleanSubsumed(_) => {
                let (since, copies) = (self.remembered.first(), self.copies_of(id));
                self.work.push(Box::pin(async move {
                    storage.clean_subsumed(since, id, copies).await;
                    StorageEnd::Cleaned(id)
                }));
            }
        }
    }

    /// Its number is reserved; a savepoint is recorded as one.
    fn begin(&mut self, id: CheckpointId, savepoint: bool) {
        let storage = self.storage.clone();
        let record = async move |storage: JobStorage| match savepoint {
            true => storage.begin_savepoint(id).await,
            false => Ok(()),
        };
        if id.0 < self.remembered.ids_before {
            self.work.push(Box::pin(async move { StorageEnd::Begun(id, record(storage).await) }));
            return;
        }
        self.remembered.ids_before = id.0 + IDS_AT_ONCE;
        self.record(Box::new(move |actor| {
            let storage = actor.storage.clone();
            actor.work.push(Box::pin(async move { StorageEnd::Begun(id, record(storage).await) }));
        }));
    }

    /// Where copies of the metadata of a checkpoint may stand.
    pub(super) fn copies_of(&self, id: CheckpointId) -> CopyPlaces {
        let rules = self.coordinator.rules();
        let own = published_in(rules).map(|dir| published_key(dir, self.storage.job(), rules.create_subdir, id));
        let start = self.remembered.start.as_ref().filter(|start| start.claimed && start.checkpoint == id.0);
        let defaults = &self.storage.engine().settings().checkpointing.jobs;
        let dirs = [rules, defaults].into_iter().filter_map(|of| Some((published_in(of)?.clone(), of.create_subdir)));
        CopyPlaces { own, named: start.and_then(|start| start.published.clone()), dirs: dirs.collect() }
    }

    fn completion(&self, id: CheckpointId) -> Option<AcknowledgedCheckpoint> {
        let pending = self.coordinator.pending().get(&id)?;
        let wanted = pending.wanted();
        let rules = self.coordinator.rules();
        let publish = match wanted.is_savepoint() {
            true => self.requests.dir(pending.request.number).map_or(Publish::Nowhere, Publish::NewFolder),
            false => published_in(rules).map_or(Publish::Nowhere, |dir| {
                let (bucket, key) = published_key(dir, self.storage.job(), rules.create_subdir, id);
                Publish::At(bucket, key)
            }),
        };
        let snapshots = pending.snapshots.iter();
        Some(AcknowledgedCheckpoint {
            id,
            kind: if wanted.is_savepoint() { CheckpointKind::Savepoint } else { CheckpointKind::Checkpoint },
            attempt: pending.attempt,
            triggered_ms: self.triggered_ms(id),
            unaligned: rules.unaligned && !wanted.is_savepoint(),
            topology: self.coordinator.topology().clone(),
            snapshots: snapshots.map(|(task, snapshot)| (*task, (snapshot.finished, snapshot.state.clone()))).collect(),
            publish,
        })
    }

    fn apply(&mut self, end: StorageEnd) {
        let now = self.now();
        match end {
            StorageEnd::Begun(id, begun) => {
                self.coordinator.begun(id, begun, now);
                self.step_ended(id, false);
            }
            StorageEnd::Stored(id, stored) => {
                self.show_figures(id, stored.is_ok());
                let stored = stored.map(|durable| {
                    self.durable.insert(id, durable);
                });
                self.coordinator.stored(id, stored, now);
                self.step_ended(id, false);
            }
            StorageEnd::Cleaned(id) => {
                self.coordinator.cleaned(now);
                self.step_ended(id, true);
            }
            StorageEnd::Recorded(number, durable) => self.recorded(number, durable),
            StorageEnd::Then(then) => then(self),
        }
    }

    fn step_ended(&mut self, id: CheckpointId, cleaned: bool) {
        let begin = self.steps.ended(id, cleaned, self.coordinator.rules().cleans_in_parallel);
        begin.into_iter().for_each(|step| self.start(step));
    }

    // ---- records ----

    /// Keeps what is remembered now; `then` is done once that is durable.
    pub(super) fn record(&mut self, then: AfterRecord) {
        self.recorder.changed(then);
        self.write_record(Duration::ZERO);
    }

    pub(super) fn write_record(&mut self, after: Duration) {
        if self.ending {
            return;
        }
        let Some(number) = self.recorder.begin() else { return };
        let (text, storage) = (self.remembered.write(), self.storage.clone());
        self.work.push(Box::pin(async move {
            tokio::time::sleep(after).await;
            let kept = storage.remember(text).await;
            if let Err(error) = &kept {
                tracing::warn!(job = %storage.job(), error = chain(error), "what the coordinator remembers was not stored yet");
            }
            StorageEnd::Recorded(number, kept.is_ok())
        }));
    }

    fn recorded(&mut self, number: u64, durable: bool) {
        self.recorder.ended(number, durable).into_iter().for_each(|then| then(self));
        self.write_record(if durable { Duration::ZERO } else { RECORD_AGAIN });
    }

    /// Answers once what is remembered so far is durable.
    pub(super) fn once_recorded(&mut self, then: AfterRecord) {
        if let Some(then) = self.recorder.behind(then) {
            then(self);
        }
    }

    fn note_tasks(&mut self) {
        self.remembered.ran |= self.coordinator.tasks().is_settled();
        let finished = self.coordinator.tasks().finished();
        self.remembered.set_finished(&finished);
        self.record(Box::new(|_| {}));
    }

    /// The last report of each source counts with the next owner, too.
    pub(super) fn note_backlog(&mut self) {
        if self.remembered.backlog != *self.coordinator.backlog() {
            self.remembered.backlog.clone_from(self.coordinator.backlog());
            self.record(Box::new(|_| {}));
        }
    }

    // ---- attempts ----

    /// Does `then` once the attempt at which the job is is durable: until then nobody is told its number.
    pub(super) fn once_attempt_is_durable(&mut self, then: AfterRecord) {
        match self.recorded_attempt == self.coordinator.attempt() {
            true => then(self),
            false => self.after_attempt.push(then),
        }
    }

    /// The checkpoint that tasks begin from now: the newest, unless somebody chose another one since.
    pub(super) fn newest(&self) -> Option<CheckpointOfJob> {
        let own = self.newest_own().map(|id| id.0);
        if let Some(start) = self.remembered.start.as_ref().filter(|start| own.is_none_or(|own| own < start.until)) {
            return Some(CheckpointOfJob { job: start.job.clone(), checkpoint: start.checkpoint });
        }
        own.map(|checkpoint| CheckpointOfJob { job: self.storage.job().to_string(), checkpoint })
    }

    /// The newest that is the job's, or that it has stopped with.
    pub(super) fn newest_own(&self) -> Option<CheckpointId> {
        self.coordinator.retained().iter().rev().find(|one| one.kind != RetainedKind::Foreign).map(|one| one.id)
    }

    /// Whether a completed checkpoint is among those of the job that go when newer ones have come.
    pub(super) fn counts(&self, id: CheckpointId) -> bool {
        self.coordinator.retained().iter().any(|one| one.id == id && one.kind == RetainedKind::Checkpoint)
    }

    fn restart(&mut self, cause: RestartCause, message: String) {
        tracing::warn!(job = %self.storage.job(), cause = cause.as_str(), message, "the job begins anew");
        self.storage.engine().metrics().job_restarts.inc();
        let attempt = self.coordinator.attempt();
        self.remembered.attempt = attempt;
        self.remembered.from = self.newest();
        self.remembered.ran = false;
        self.remembered.finished.clear();
        self.remembered.backlog.clone_from(self.coordinator.backlog());
        (self.remembered.stopping, self.stop_told) = (None, None);
        self.workers.clear();
        self.record(Box::new(move |actor| {
            actor.recorded_attempt = actor.recorded_attempt.max(attempt);
            let from = actor.remembered.from.clone();
            let job = from.as_ref().map_or_else(|| actor.storage.job().to_string(), |from| from.job.clone());
            let checkpoint = from.map(|from| CheckpointId(from.checkpoint));
            actor.events.publish(CoordinatorEvent::Restore { attempt, job, checkpoint, cause, message });
            if actor.recorded_attempt == actor.coordinator.attempt() {
                std::mem::take(&mut actor.after_attempt).into_iter().for_each(|then| then(actor));
            }
        }));
    }

    // ---- workers ----

    /// Tasks are those of this worker.
    pub(super) fn know_worker(&mut self, worker: &str, tasks: impl IntoIterator<Item = TaskId>) {
        self.workers.know(worker, tasks);
    }

    /// Whether another worker than this one has reported that the task runs.
    pub(super) fn runs_elsewhere(&self, task: TaskId, worker: &str) -> bool {
        self.coordinator.tasks().runs(task) && self.workers.is_of_another(task, worker)
    }

    /// A worker gave a sign of life.
    pub(super) fn heard_of_worker(&mut self, worker: &str) {
        let now = self.now();
        self.coordinator.heard_of(self.workers.tasks_of(worker), now);
    }

    /// Does `work` with storage, once nothing is in progress; its end is another message.
    pub(super) fn alongside(&mut self, work: BoxFuture<'static, Message>) {
        self.work.push(Box::pin(async move { StorageEnd::Then(work.await) }));
    }
}

/// The directory in which metadata is published.
pub(super) fn published_in(rules: &JobCheckpointing) -> Option<&PublishDir> {
    rules.dir.as_ref().filter(|_| rules.storage != Some(CheckpointStorage::JobManager))
}
