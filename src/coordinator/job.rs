//! [`JobActor`]: the one task that has the coordinator of a job. It takes messages, lets time pass, carries out what is decided.
//!
//! Storage is asked beside it: whatever is recorded goes on while messages come in, what is asked of one checkpoint in the order in
//! which it was decided. What has to be durable before it is told is told when it is.
//!
//! # Crash
//! Nothing that was told is undone: numbers of checkpoints are reserved durably before they are used, a checkpoint is complete
//! in the catalog before `complete` is told, an attempt is recorded before `restore` is told. Those in progress are given up
//! by the next owner, whose workers hear of that by `hello`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::CoordinatorError;
use super::events::{CoordinatorEvent, EventLog, TriggerNotice};
use super::history::{CheckpointFigures, History};
use super::memory::PaidAck;
use super::reason::FailureReason;
use super::record::{CheckpointOfJob, RememberedJob};
use super::state::decision::{Decision, RequestOutcome, RestartCause};
use super::state::machine::{Coordinator, JobPhase};
use super::state::pending::PendingCheckpoint;
use super::state::queue::{RequestNumber, StopMode, WantedCheckpoint};
use super::state::retained::RetainedKind;
use super::storage::{AcknowledgedCheckpoint, DurableCheckpoint, JobStorage, Publish, published_key};
use super::topology::TaskId;
use super::workers::WorkerTable;
use crate::config::{CheckpointStorage, JobCheckpointing, PublishDir};
use crate::engine::jobs::leavings;
use crate::error::chain;
use crate::metrics::labels::TakenKind;
use crate::model::{CheckpointId, CheckpointKind, JobEnd, Leavings};
use crate::runtime::Clock;

/// Numbers of checkpoints that are reserved at once: so many need one record.
const IDS_AT_ONCE: u64 = 64;
/// Requests of people that are remembered: all that are not over, and the last ones that are.
const REQUESTS_KEPT: usize = 1000;
/// After a record that was not taken, until the next try.
const RECORD_AGAIN: Duration = Duration::from_millis(500);

/// A coordinator that wakes so much later than it wanted to stood still: the process was stopped, or the machine was too busy.
const DEAF_AFTER: Duration = Duration::from_secs(1);

/// What somebody asks of a job.
pub(super) type Message = Box<dyn FnOnce(&mut JobActor) + Send>;

/// How a request of people stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestView {
    /// Names it.
    pub id: String,
    /// The checkpoint that it began.
    pub checkpoint: Option<CheckpointId>,
    /// Where the savepoint is.
    pub path: Option<String>,
    /// `None` while it is not over.
    pub ended: Option<Result<(), (FailureReason, String)>>,
}

struct KnownRequest {
    number: RequestNumber,
    wanted: WantedCheckpoint,
    key: Option<String>,
    /// The directory that was given with it.
    given: Option<PublishDir>,
    dir: Option<PublishDir>,
    view: watch::Sender<RequestView>,
}

/// What storage is asked about a checkpoint.
enum StorageStep {
    Begin { id: CheckpointId, savepoint: bool },
    Store(CheckpointId),
    CleanAborted(CheckpointId),
    CleanSubsumed(CheckpointId),
}

impl StorageStep {
    fn id(&self) -> CheckpointId {
        match self {
            Self::Begin { id, .. } | Self::Store(id) | Self::CleanAborted(id) | Self::CleanSubsumed(id) => *id,
        }
    }

    fn cleans(&self) -> bool {
        matches!(self, Self::CleanAborted(_) | Self::CleanSubsumed(_))
    }
}

/// What came of it.
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

/// What is done once the job has ended, and whether its checkpoints are kept; or could not be ended.
type AfterEnd = Box<dyn FnOnce(&mut JobActor, Result<bool, CoordinatorError>) + Send>;

/// Something that waits until nothing is in progress any more.
type WhenQuiet = Box<dyn FnOnce(&mut JobActor) + Send>;

/// The coordinator of one job at work.
pub(super) struct JobActor {
    pub storage: JobStorage,
    pub coordinator: Coordinator,
    pub remembered: RememberedJob,
    pub events: Arc<EventLog>,
    pub history: History,
    begun: Instant,
    /// When those in progress were triggered, and the attempt.
    triggered: BTreeMap<CheckpointId, (u64, u64)>,
    /// What was paid for their acknowledgements.
    paid: BTreeMap<CheckpointId, PaidAck>,
    /// Completed ones that were just stored, until that is told.
    durable: BTreeMap<CheckpointId, DurableCheckpoint>,
    requests: VecDeque<KnownRequest>,
    workers: WorkerTable,
    work: FuturesUnordered<BoxFuture<'static, StorageEnd>>,
    /// Steps of checkpoints that wait for another step of the same.
    queued: BTreeMap<CheckpointId, VecDeque<StorageStep>>,
    /// Cleaning that waits for its turn, one after the other.
    clean_queue: VecDeque<StorageStep>,
    cleaning: bool,
    record_wanted: u64,
    record_durable: u64,
    record_on_its_way: bool,
    after_record: Vec<(u64, AfterRecord)>,
    pub when_quiet: Option<WhenQuiet>,
    /// The attempt that is durable: no task begins in another one.
    pub recorded_attempt: u64,
    /// The job is being ended: nothing is recorded any more, which would bring it back.
    ending: bool,
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
            requests: VecDeque::new(),
            workers: WorkerTable::default(),
            work: FuturesUnordered::new(),
            queued: BTreeMap::new(),
            clean_queue: VecDeque::new(),
            cleaning: false,
            record_wanted: 0,
            record_durable: 0,
            record_on_its_way: false,
            after_record: vec![],
            when_quiet: None,
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
                message = inbox.recv() => match message {
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
            Decision::Finished => self.end(JobEnd::Finished, None, Box::new(|_, _| {})),
        }
    }

    // ---- telling ----

    /// What is told of a checkpoint that tasks take a snapshot for.
    pub(super) fn notice(&self, id: CheckpointId, pending: &PendingCheckpoint) -> TriggerNotice {
        let rules = self.coordinator.rules();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let unaligned = rules.unaligned && !pending.wanted().is_savepoint();
        TriggerNotice {
            checkpoint: id,
            attempt: pending.attempt,
            wanted: pending.wanted(),
            timestamp_ms: self.triggered_ms(id),
            timeout_ms: millis(rules.timeout),
            mode: rules.mode,
            unaligned_after_ms: unaligned.then(|| millis(rules.aligned_timeout)),
            incremental: !pending.full,
            full: pending.full,
            channel_subtasks_per_file_max: rules.channel_subtasks_per_file_max,
        }
    }

    fn tell_trigger(&self, id: CheckpointId) {
        if let Some(pending) = self.coordinator.pending().get(&id) {
            // Not before: whoever is told of a checkpoint may acknowledge it.
            self.show_request(pending.request.number, |view| view.checkpoint = Some(id));
            self.events.publish(CoordinatorEvent::Trigger(self.notice(id, pending)));
        }
    }

    fn tell_completed(&mut self, id: CheckpointId, wanted: WantedCheckpoint, last_subsumed: Option<CheckpointId>) {
        let durable = self.durable.remove(&id);
        let (_, attempt) = self.count_end(id);
        self.storage.engine().metrics().checkpoints_completed.inc();
        let (metadata, published) = durable.map(|durable| (durable.metadata, durable.published)).unwrap_or_default();
        let path = published.map(|(bucket, key)| path_of(wanted, &bucket, &key));
        if wanted == WantedCheckpoint::Savepoint {
            return;
        }
        self.events.publish(CoordinatorEvent::Complete {
            checkpoint: id,
            attempt,
            wanted,
            metadata,
            path,
            last_subsumed,
        });
    }

    fn tell_stop(&self, id: CheckpointId, mode: StopMode) {
        let stop = |request: &&KnownRequest| request.view.borrow().checkpoint == Some(id);
        let path = self.requests.iter().find(stop).and_then(|request| request.view.borrow().path.clone());
        self.events.publish(CoordinatorEvent::Stop { checkpoint: id, path, mode });
    }

    /// One in progress is over. Returns when it was triggered, and its attempt.
    fn count_end(&mut self, id: CheckpointId) -> (u64, u64) {
        self.paid.remove(&id);
        let known = self.triggered.remove(&id);
        if known.is_some() {
            self.storage.engine().metrics().checkpoints_in_progress.dec();
        }
        known.unwrap_or((0, self.coordinator.attempt()))
    }

    /// An acknowledgement is kept until its checkpoint is over.
    pub(super) fn keep_paid(&mut self, id: CheckpointId, paid: Option<PaidAck>) {
        let Some(paid) = paid else { return };
        match self.paid.get_mut(&id) {
            Some(known) => known.merge(paid),
            None => drop(self.paid.insert(id, paid)),
        }
    }

    fn show_failed(&mut self, id: CheckpointId, triggered: u64, reason: FailureReason) {
        if let Some(pending) = self.coordinator.take_given_up(id) {
            let figures = CheckpointFigures::of(id, &pending, triggered, self.coordinator.topology(), self.now());
            self.history.add(CheckpointFigures { ended: Some(Err(reason)), ..figures });
        }
    }

    fn triggered_ms(&self, id: CheckpointId) -> u64 {
        self.triggered.get(&id).map_or(0, |(at, _)| *at)
    }

    // ---- requests of people ----

    /// Somebody asks for a checkpoint or savepoint; with a key that was used before, for that one. `dir` is where it goes, as it was
    /// `given` or not.
    ///
    /// # Errors
    /// [`CoordinatorError::KeyOfAnother`], [`CoordinatorError::TooManyRequests`].
    pub(super) fn request(
        &mut self,
        wanted: WantedCheckpoint,
        (given, dir): (Option<PublishDir>, Option<PublishDir>),
        key: Option<String>,
    ) -> Result<watch::Receiver<RequestView>, CoordinatorError> {
        if let Some(known) =
            key.as_ref().and_then(|key| self.requests.iter().find(|known| known.key.as_ref() == Some(key)))
        {
            return match known.wanted == wanted && known.given == given {
                true => Ok(known.view.subscribe()),
                false => Err(CoordinatorError::KeyOfAnother),
            };
        }
        if self.requests.len() >= REQUESTS_KEPT {
            match self.requests.iter().position(|known| known.view.borrow().ended.is_some()) {
                Some(oldest) => drop(self.requests.remove(oldest)),
                // A stop is taken all the same: it ends those that wait.
                None if wanted.is_stop() && self.coordinator.phase() != JobPhase::Stopping => {}
                None => return Err(CoordinatorError::TooManyRequests),
            }
        }
        let id = crate::model::SegmentId(self.storage.engine().entropy().ulid()).to_string();
        let view = watch::Sender::new(RequestView { id, checkpoint: None, path: None, ended: None });
        let answer = view.subscribe();
        let now = self.now();
        let number = match wanted {
            WantedCheckpoint::Stop(mode) => self.coordinator.stop(mode, now),
            wanted => self.coordinator.request(wanted, now),
        };
        self.requests.push_back(KnownRequest { number, wanted, key, given, dir, view });
        Ok(answer)
    }

    fn show_request(&self, number: RequestNumber, show: impl FnOnce(&mut RequestView)) {
        if let Some(known) = self.requests.iter().find(|known| known.number == number) {
            known.view.send_modify(show);
        }
    }

    fn answer(&self, number: RequestNumber, end: RequestOutcome) {
        let wanted = self.requests.iter().find(|known| known.number == number).map(|known| known.wanted);
        self.show_request(number, |view| match end {
            RequestOutcome::Completed(id) => {
                let published = self.durable.get(&id).and_then(|durable| durable.published.as_ref());
                view.path = published.zip(wanted).map(|((bucket, key), wanted)| path_of(wanted, bucket, key));
                view.checkpoint = Some(id);
                view.ended = Some(Ok(()));
            }
            RequestOutcome::Failed(id, reason, message) => {
                view.checkpoint = id;
                view.ended = Some(Err((reason, message)));
            }
        });
    }

    // ---- storage ----

    fn ask_storage(&mut self, step: StorageStep) {
        match self.queued.get_mut(&step.id()) {
            // Another step of the same checkpoint is on its way.
            Some(queue) => queue.push_back(step),
            None if step.cleans() && !self.coordinator.rules().cleans_in_parallel && self.cleaning => {
                self.clean_queue.push_back(step);
            }
            None => self.start(step),
        }
    }

    fn start(&mut self, step: StorageStep) {
        let id = step.id();
        self.queued.entry(id).or_default();
        self.cleaning |= step.cleans();
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
                    Some(WantedCheckpoint::Stop(_)) => {
                        self.remembered.stop_savepoint = Some(id.0);
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
                let published = published_in(self.coordinator.rules())
                    .map(|dir| published_key(dir, storage.job(), self.coordinator.rules().create_subdir, id));
                self.work.push(Box::pin(async move {
                    storage.clean_subsumed(id, published).await;
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

    fn completion(&self, id: CheckpointId) -> Option<AcknowledgedCheckpoint> {
        let pending = self.coordinator.pending().get(&id)?;
        let wanted = pending.wanted();
        let rules = self.coordinator.rules();
        let publish = match wanted.is_savepoint() {
            true => {
                let known = self.requests.iter().find(|known| known.number == pending.request.number);
                known.and_then(|known| known.dir.clone()).map_or(Publish::Nowhere, Publish::NewFolder)
            }
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
                self.next_step(id);
            }
            StorageEnd::Stored(id, stored) => {
                self.show_figures(id, stored.is_ok());
                let stored = stored.map(|durable| {
                    self.durable.insert(id, durable);
                });
                self.coordinator.stored(id, stored, now);
                self.next_step(id);
            }
            StorageEnd::Cleaned(id) => {
                self.cleaning = false;
                self.coordinator.cleaned(now);
                self.next_step(id);
                if let Some(step) = self.clean_queue.pop_front() {
                    self.ask_storage(step);
                }
            }
            StorageEnd::Recorded(number, durable) => self.recorded(number, durable),
            StorageEnd::Then(then) => then(self),
        }
    }

    fn next_step(&mut self, id: CheckpointId) {
        match self.queued.get_mut(&id).and_then(VecDeque::pop_front) {
            Some(step) => self.start(step),
            None => drop(self.queued.remove(&id)),
        }
    }

    fn show_figures(&mut self, id: CheckpointId, completed: bool) {
        let Some(pending) = self.coordinator.pending().get(&id).filter(|_| completed) else { return };
        let triggered = self.triggered_ms(id);
        let figures = CheckpointFigures::of(id, pending, triggered, self.coordinator.topology(), self.now());
        let metrics = self.storage.engine().metrics();
        let kind = if figures.savepoint { TakenKind::Savepoint } else { TakenKind::Checkpoint };
        metrics.checkpoint_seconds.of(kind).observe(figures.duration.as_secs_f64());
        metrics.last_checkpoint_seconds.set(figures.duration.as_secs_f64());
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.last_checkpoint_bytes.set(bytes(figures.bytes));
        metrics.last_checkpoint_full_bytes.set(bytes(figures.bytes.saturating_add(figures.bytes_reused)));
        self.history.add(CheckpointFigures { ended: Some(Ok(())), ..figures });
    }

    // ---- records ----

    /// Keeps what is remembered now; `then` is done once that is durable.
    pub(super) fn record(&mut self, then: AfterRecord) {
        self.record_wanted += 1;
        self.after_record.push((self.record_wanted, then));
        self.write_record(Duration::ZERO);
    }

    fn write_record(&mut self, after: Duration) {
        if self.record_on_its_way || self.record_durable == self.record_wanted || self.ending {
            return;
        }
        self.record_on_its_way = true;
        let (number, text, storage) = (self.record_wanted, self.remembered.write(), self.storage.clone());
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
        self.record_on_its_way = false;
        if durable {
            self.record_durable = number;
            let (due, later) = std::mem::take(&mut self.after_record).into_iter().partition(|(of, _)| *of <= number);
            self.after_record = later;
            let due: Vec<(u64, AfterRecord)> = due;
            due.into_iter().for_each(|(_, then)| then(self));
        }
        self.write_record(if durable { Duration::ZERO } else { RECORD_AGAIN });
    }

    fn note_tasks(&mut self) {
        self.remembered.ran |= self.coordinator.tasks().is_settled();
        let finished = self.coordinator.tasks().finished();
        self.remembered.set_finished(&finished);
        self.record(Box::new(|_| {}));
    }

    /// Answers once what is remembered so far is durable.
    pub(super) fn once_recorded(&mut self, then: AfterRecord) {
        if self.record_durable == self.record_wanted {
            return then(self);
        }
        self.after_record.push((self.record_wanted, then));
    }

    // ---- attempts ----

    /// The checkpoint that tasks begin from now: the newest, unless somebody chose another one since.
    pub(super) fn newest(&self) -> Option<CheckpointOfJob> {
        let own =
            self.coordinator.retained().iter().rev().find(|one| one.kind != RetainedKind::Foreign).map(|one| one.id.0);
        if let Some(start) = self.remembered.start.as_ref().filter(|start| own.is_none_or(|own| own < start.until)) {
            return Some(CheckpointOfJob { job: start.job.clone(), checkpoint: start.checkpoint });
        }
        own.map(|checkpoint| CheckpointOfJob { job: self.storage.job().to_string(), checkpoint })
    }

    fn restart(&mut self, cause: RestartCause, message: String) {
        tracing::warn!(job = %self.storage.job(), cause = cause.as_str(), message, "the job begins anew");
        self.storage.engine().metrics().job_restarts.inc();
        let attempt = self.coordinator.attempt();
        self.remembered.attempt = attempt;
        self.remembered.from = self.newest();
        self.remembered.ran = false;
        self.remembered.finished.clear();
        self.workers.clear();
        self.record(Box::new(move |actor| {
            actor.recorded_attempt = actor.recorded_attempt.max(attempt);
            let from = actor.remembered.from.clone();
            let job = from.as_ref().map_or_else(|| actor.storage.job().to_string(), |from| from.job.clone());
            let checkpoint = from.map(|from| CheckpointId(from.checkpoint));
            actor.events.publish(CoordinatorEvent::Restore { attempt, job, checkpoint, cause, message });
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

    /// All checkpoints that are known, the newest first.
    pub(super) fn figures(&self) -> Vec<CheckpointFigures> {
        let now = self.now();
        let topology = self.coordinator.topology();
        let pending = self.coordinator.pending().iter().rev().map(|(id, pending)| {
            let triggered = self.triggered_ms(*id);
            CheckpointFigures::of(*id, pending, triggered, topology, now)
        });
        pending.chain(self.history.iter().cloned()).collect()
    }

    // ---- the end ----

    /// Does `then` with storage, once nothing is in progress; its end is another message.
    pub(super) fn alongside(&mut self, work: BoxFuture<'static, Message>) {
        self.work.push(Box::pin(async move { StorageEnd::Then(work.await) }));
    }

    /// Ends the job, once nothing is being stored any more. `then` is told whether its checkpoints are kept.
    pub(super) fn end(&mut self, state: JobEnd, retention: Option<crate::config::Retention>, then: AfterEnd) {
        let now = self.now();
        self.coordinator.halt(now);
        self.when_quiet = Some(Box::new(move |actor| {
            let rules = actor.coordinator.rules();
            let retention = retention.unwrap_or(rules.retention);
            let kept = leavings(state, retention) == Leavings::Keep;
            let own = actor.coordinator.retained().iter().filter(|one| one.kind == RetainedKind::Checkpoint);
            let published = published_in(rules).filter(|_| !kept).map(|dir| {
                own.map(|one| published_key(dir, actor.storage.job(), rules.create_subdir, one.id)).collect()
            });
            let storage = actor.storage.clone();
            actor.ending = true;
            actor.alongside(Box::pin(async move {
                storage.unpublish_all(published.unwrap_or_default()).await;
                let ended = storage.engine().end_job(storage.job(), state, Some(retention)).await;
                let message: Message = Box::new(move |actor| match ended {
                    Ok(_) => {
                        let now = actor.now();
                        actor.coordinator.end(now);
                        actor.events.publish(CoordinatorEvent::End { state, kept });
                        actor.over = true;
                        then(actor, Ok(kept));
                    }
                    Err(error) => {
                        tracing::warn!(job = %actor.storage.job(), error = chain(&error), "the job was not ended");
                        let now = actor.now();
                        actor.coordinator.resume(now);
                        actor.ending = false;
                        actor.write_record(Duration::ZERO);
                        then(actor, Err(error.into()));
                    }
                });
                message
            }));
        }));
    }
}

/// The directory in which metadata is published.
pub(super) fn published_in(rules: &JobCheckpointing) -> Option<&PublishDir> {
    rules.dir.as_ref().filter(|_| rules.storage != Some(CheckpointStorage::JobManager))
}

/// How people name what is published: a checkpoint by its metadata, a savepoint by its folder.
fn path_of(wanted: WantedCheckpoint, bucket: &str, key: &str) -> String {
    let key = match wanted.is_savepoint() {
        true => key.rsplit_once('/').map_or(key, |(folder, _)| folder),
        false => key,
    };
    format!("s3://{bucket}/{key}")
}
