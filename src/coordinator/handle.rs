//! [`JobHandle`]: what may be asked of the coordinator of one job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::ack::{StateEntry, StateKind, TaskSnapshot};
use super::assign::{TaskStart, assign, fit};
use super::checks::{check_dir_of_savepoints, check_operators, check_rules, check_savepoint_dir};
use super::error::CoordinatorError;
use super::events::{EventLog, TriggerNotice};
use super::history::CheckpointFigures;
use super::job::{JobActor, Message, RequestView};
use super::memory::AckMemory;
use super::metadata::CheckpointMetadata;
use super::reason::FailureReason;
use super::record::{CheckpointOfJob, ChosenStart, behind};
use super::state::acks::AckOutcome;
use super::state::machine::JobPhase;
use super::state::queue::WantedCheckpoint;
use super::state::retained::{RetainedCheckpoint, RetainedKind};
use super::state::tasks::TaskState;
use super::storage::{JobStorage, MetadataFault, PUBLISHED_NAME};
use super::topology::{OperatorSpec, TaskId, Topology, key_groups_of};
use crate::config::{JobCheckpointing, PublishDir, Retention};
use crate::engine::jobs::GoOn;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, CheckpointKind, Claim, JobEnd, JobId, SegmentId, StateScope};

/// Whoever asks waits so long for storage.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a job stands.
#[derive(Debug, Clone)]
pub struct JobStanding {
    /// Where it stands.
    pub phase: JobPhase,
    /// The attempt.
    pub attempt: u64,
    /// How often all tasks have begun anew.
    pub restarts: u64,
    /// Tasks: all, running, over.
    pub tasks: (u64, u64, u64),
    /// Checkpoints in progress.
    pub pending: Vec<CheckpointId>,
    /// Requests that wait, and checkpoints that are being freed.
    pub waiting: (usize, usize),
    /// The newest completed one.
    pub completed: Option<CheckpointId>,
    /// Whether a source has a backlog.
    pub backlog: bool,
    /// Failed checkpoints in a row.
    pub failures: u32,
    /// All settings.
    pub settings: BTreeMap<String, String>,
    /// The operators.
    pub operators: Vec<OperatorSpec>,
    /// Between two reports of a worker.
    pub heartbeat_interval: Duration,
    /// A task of which nothing is heard for so long is lost.
    pub heartbeat_timeout: Duration,
}

/// How things stand for a worker that comes in.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The job.
    pub standing: JobStanding,
    /// Checkpoints that tasks take a snapshot for.
    pub pending: Vec<TriggerNotice>,
    /// The number of the last event before this.
    pub last_event: u64,
}

/// A task that may acknowledge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckTicket {
    /// The task.
    pub task: TaskId,
    /// The parallelism of its operator.
    pub parallelism: u32,
    max_parallelism: u32,
    /// Whether nothing of earlier checkpoints may be used.
    full: bool,
    /// Subtasks that share a file of channel state.
    pub channel_subtasks_per_file_max: u32,
    /// Whether it has acknowledged before.
    pub repeated: bool,
    /// The segments that it acknowledged then, if the checkpoint is not over.
    pub earlier: Vec<SegmentId>,
}

/// A state as a task acknowledges it.
#[derive(Debug, Clone)]
pub struct AcknowledgedState {
    /// How it is given out.
    pub kind: StateKind,
    /// Its name.
    pub name: String,
    /// Its segment.
    pub segment: SegmentId,
    /// First bytes of its elements.
    pub offsets: Option<Vec<u64>>,
    /// The end of the last one.
    pub end: Option<u64>,
    /// Key groups of keyed state.
    pub key_groups: Option<std::ops::Range<u32>>,
}

impl AcknowledgedState {
    /// Bytes of memory that it takes until its checkpoint is over.
    fn kept_bytes(&self) -> usize {
        let offsets = self.offsets.as_ref().map_or(1, Vec::len);
        size_of::<StateEntry>() + self.name.len() + size_of::<u64>() * offsets
    }
}

/// What each task starts from.
#[derive(Debug, Clone)]
pub struct JobStart {
    /// Where the job stands.
    pub phase: JobPhase,
    /// The attempt, and the first one of the job.
    pub attempt: u64,
    /// See [`Self::attempt`].
    pub first_attempt: u64,
    /// The checkpoint; `None`: nothing.
    pub from: Option<CheckpointOfJob>,
    /// Each task with its operator.
    pub tasks: Vec<(OperatorSpec, u32, TaskStart)>,
}

/// A state that a job is to go on from.
#[derive(Debug, Clone, Default)]
pub struct RestoreWanted {
    /// The job whose checkpoint it is; `None`: the job itself.
    pub from: Option<JobId>,
    /// The checkpoint; `None`: the newest.
    pub checkpoint: Option<CheckpointId>,
    /// Bucket and key of published metadata, or its folder, in place of both.
    pub savepoint: Option<PublishDir>,
    /// Whether it is taken over; `None`: unless it is a savepoint.
    pub claim: Option<Claim>,
    /// Other operators.
    pub operators: Option<Vec<OperatorSpec>>,
    /// Whether state may be left behind.
    pub allow_non_restored: bool,
}

/// The metadata of a checkpoint that was read last.
pub(super) type KnownStart = Option<(CheckpointOfJob, Arc<CheckpointMetadata>)>;

/// The coordinator of one job. Clones share it.
#[derive(Clone)]
pub struct JobHandle {
    pub(super) inbox: mpsc::Sender<Message>,
    /// What its workers are told.
    pub events: Arc<EventLog>,
    pub(super) storage: JobStorage,
    /// The metadata that tasks start from now: all of them ask.
    pub(super) start: Arc<Mutex<KnownStart>>,
    pub(super) acks: AckMemory,
}

crate::runtime::opaque_debug!(JobHandle);

impl JobHandle {
    /// Asks the coordinator.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut JobActor) -> T + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        self.ask_later(|actor, reply| crate::runtime::reply(reply, ask(actor))).await
    }

    /// Asks the coordinator, which answers when it can.
    async fn ask_later<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut JobActor, oneshot::Sender<T>) + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let (reply, answer) = oneshot::channel();
        let message: Message = Box::new(move |actor| ask(actor, reply));
        self.inbox.send(message).await.map_err(|_| CoordinatorError::Ended)?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|_| CoordinatorError::Ended),
            Err(_) => Err(CoordinatorError::Busy),
        }
    }

    /// How the job stands.
    ///
    /// # Errors
    /// [`CoordinatorError::Ended`].
    pub async fn standing(&self) -> Result<JobStanding, CoordinatorError> {
        self.ask(|actor| standing_of(actor)).await
    }

    /// How things stand for a worker that comes in.
    ///
    /// # Errors
    /// [`CoordinatorError::Ended`]; [`CoordinatorError::Busy`] while the attempt is not durable.
    pub async fn greet(&self) -> Result<Greeting, CoordinatorError> {
        let asked = self.ask(|actor| {
            use super::state::pending::CheckpointPhase;
            // Another owner would give the number of an attempt that is not durable to another one.
            if actor.coordinator.attempt() != actor.recorded_attempt {
                return Err(CoordinatorError::Busy);
            }
            let told =
                actor.coordinator.pending().iter().filter(|(_, pending)| pending.phase != CheckpointPhase::Beginning);
            let pending = told.map(|(id, pending)| actor.notice(*id, pending)).collect();
            Ok(Greeting { standing: standing_of(actor), pending, last_event: actor.events.last() })
        });
        asked.await?
    }

    /// Refuses a checkpoint that tasks take no snapshot for.
    ///
    /// # Errors
    /// [`CoordinatorError::Unknown`].
    pub async fn check_pending(&self, id: CheckpointId) -> Result<(), CoordinatorError> {
        match self.ask(move |actor| actor.coordinator.pending().contains_key(&id)).await? {
            true => Ok(()),
            false => Err(CoordinatorError::Unknown(id)),
        }
    }

    /// A worker gave a sign of life.
    ///
    /// # Errors
    /// [`CoordinatorError::Ended`].
    pub async fn heard_of(&self, worker: String) -> Result<(), CoordinatorError> {
        self.ask(move |actor| actor.heard_of_worker(&worker)).await
    }

    /// Tasks report how they are. Resolves once what follows from it for another owner is durable.
    ///
    /// # Errors
    /// [`CoordinatorError::OtherAttempt`], [`CoordinatorError::NoSuchTask`]; nothing changed then.
    pub async fn report(
        &self,
        attempt: u64,
        worker: Option<String>,
        tasks: Vec<(String, u32, TaskState)>,
        message: Option<String>,
    ) -> Result<JobStanding, CoordinatorError> {
        let reported = self.ask_later(move |actor, reply| {
            let found = tasks.iter().map(|(operator, subtask, state)| {
                let task = actor.coordinator.topology().task(operator, *subtask);
                let task = task.ok_or_else(|| CoordinatorError::NoSuchTask(operator.clone(), *subtask))?;
                Ok((task, *state))
            });
            let found: Vec<(TaskId, TaskState)> = match found.collect::<Result<_, CoordinatorError>>() {
                Ok(found) => found,
                Err(error) => return crate::runtime::reply(reply, Err(error)),
            };
            if attempt != actor.recorded_attempt || attempt != actor.coordinator.attempt() {
                let current = actor.coordinator.attempt();
                return crate::runtime::reply(reply, Err(CoordinatorError::OtherAttempt(current)));
            }
            let now = actor.now();
            if let Some(worker) = &worker {
                let begins = |state: TaskState| matches!(state, TaskState::Running | TaskState::EndOfData);
                let replaces =
                    |(task, state): &&(TaskId, TaskState)| begins(*state) && actor.runs_elsewhere(*task, worker);
                if let Some((task, _)) = found.iter().find(replaces) {
                    // What the one before did since the last checkpoint is lost with it, and this one did not begin from there.
                    actor.coordinator.replaced(*task, worker, now);
                    actor.settle();
                    let current = actor.coordinator.attempt();
                    return crate::runtime::reply(reply, Err(CoordinatorError::OtherAttempt(current)));
                }
                actor.know_worker(worker, found.iter().map(|(task, _)| *task));
            }
            actor.coordinator.report(attempt, &found, message.as_deref(), now);
            actor.settle();
            actor.once_recorded(Box::new(move |actor| crate::runtime::reply(reply, Ok(standing_of(actor)))));
        });
        reported.await?
    }

    /// Whether a task may acknowledge a checkpoint; asked before its bytes are taken.
    ///
    /// # Errors
    /// Why not.
    pub async fn admit(
        &self,
        id: CheckpointId,
        operator: String,
        subtask: u32,
        attempt: u64,
    ) -> Result<AckTicket, CoordinatorError> {
        let asked = self.ask(move |actor| {
            let coordinator = &actor.coordinator;
            let no_task = || CoordinatorError::NoSuchTask(operator.clone(), subtask);
            let task = coordinator.topology().task(&operator, subtask).ok_or_else(no_task)?;
            let spec = coordinator.topology().of(task).ok_or_else(no_task)?;
            let outcome = coordinator.would_take(id, task, attempt);
            refuse(id, outcome)?;
            let earlier = coordinator.pending().get(&id).and_then(|pending| pending.snapshots.get(&task));
            Ok(AckTicket {
                task,
                parallelism: spec.parallelism,
                max_parallelism: spec.max_parallelism,
                full: coordinator.pending().get(&id).is_none_or(|pending| pending.full),
                channel_subtasks_per_file_max: coordinator.rules().channel_subtasks_per_file_max,
                repeated: !matches!(outcome, AckOutcome::Taken { .. }),
                earlier: earlier
                    .map(|snapshot| snapshot.state.iter().map(|state| state.segment).collect())
                    .unwrap_or_default(),
            })
        });
        asked.await?
    }

    /// A task acknowledges a checkpoint. Returns what became of it.
    ///
    /// # Errors
    /// Why it is not taken; what was stored for it is freed with the checkpoint.
    pub async fn acknowledge(
        &self,
        id: CheckpointId,
        ticket: &AckTicket,
        attempt: u64,
        states: Vec<AcknowledgedState>,
        snapshot: TaskSnapshot,
    ) -> Result<AckOutcome, CoordinatorError> {
        let task = ticket.task;
        let paid = match ticket.repeated {
            true => None,
            false => Some(self.acks.pay(states.iter().map(AcknowledgedState::kept_bytes).sum()).await?),
        };
        let snapshot = match ticket.repeated {
            // Ignored, whatever it says.
            true => snapshot,
            false => match self.resolve(id, ticket, states, snapshot).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    // Perhaps because the checkpoint is over meanwhile, and what it had stored is freed.
                    let outcome = self.ask(move |actor| actor.coordinator.would_take(id, task, attempt)).await?;
                    refuse(id, outcome)?;
                    return Err(error);
                }
            },
        };
        let outcome = self
            .ask(move |actor| {
                let now = actor.now();
                let outcome = actor.coordinator.acknowledge(id, task, attempt, snapshot, now);
                if matches!(outcome, AckOutcome::Taken { .. }) {
                    actor.keep_paid(id, paid);
                }
                outcome
            })
            .await?;
        refuse(id, outcome)?;
        Ok(outcome)
    }

    /// Looks the segments of a task's states up. Those of earlier checkpoints live as long as this one from here on.
    async fn resolve(
        &self,
        id: CheckpointId,
        ticket: &AckTicket,
        states: Vec<AcknowledgedState>,
        mut snapshot: TaskSnapshot,
    ) -> Result<TaskSnapshot, CoordinatorError> {
        use super::ack::InvalidState;
        if snapshot.finished && !states.is_empty() {
            return Err(InvalidState::OfFinished.into());
        }
        let (engine, job) = (self.storage.engine(), self.storage.job());
        let may = key_groups_of(ticket.max_parallelism, ticket.parallelism, ticket.task.subtask);
        let mut reused = vec![];
        let mut seen = std::collections::BTreeSet::new();
        for state in states {
            let view = match engine.segment(state.segment) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let why = "these segments do not exist, or not any more";
                    return Err(CoordinatorError::NotReusable { why, segments: vec![state.segment] });
                }
                view => view?,
            };
            if view.about.job != *job {
                return Err(CoordinatorError::OtherJob(view.id));
            }
            let len = view.location.len();
            let keyed = state.kind == StateKind::Keyed;
            let entry = StateEntry {
                kind: state.kind,
                name: state.name,
                segment: view.id,
                offsets: state.offsets.map_or_else(|| if keyed { [].into() } else { [0].into() }, Arc::from),
                end: state.end.unwrap_or(len),
                key_groups: state.key_groups.unwrap_or_default(),
            };
            entry.check(len, &may)?;
            let is_new = view.about.checkpoint == Some(id);
            if seen.insert(view.id) {
                let bytes = if is_new { &mut snapshot.bytes } else { &mut snapshot.bytes_reused };
                *bytes += len;
                if !is_new {
                    reused.push((view.id, view.about.scope, view.about.checkpoint));
                }
            }
            snapshot.state.push(entry);
        }
        self.reuse(id, ticket, reused).await?;
        Ok(snapshot)
    }

    async fn reuse(
        &self,
        id: CheckpointId,
        ticket: &AckTicket,
        reused: Vec<(SegmentId, StateScope, Option<CheckpointId>)>,
    ) -> Result<(), CoordinatorError> {
        if reused.is_empty() {
            return Ok(());
        }
        let segments = |of: &[(SegmentId, StateScope, Option<CheckpointId>)]| of.iter().map(|(id, ..)| *id).collect();
        let refused = |why, segments| Err(CoordinatorError::NotReusable { why, segments });
        if ticket.full {
            return refused("this checkpoint uses no segments of earlier ones", segments(&reused));
        }
        let (engine, job) = (self.storage.engine(), self.storage.job());
        let unconfirmed = |written: Option<CheckpointId>| written.is_none_or(|of| !engine.is_confirmed(job, of));
        let wrong: Vec<_> = reused
            .iter()
            .filter(|(_, scope, written)| *scope != StateScope::Shared || unconfirmed(*written))
            .copied()
            .collect();
        if !wrong.is_empty() {
            return refused("these segments are not shared, or of no completed checkpoint", segments(&wrong));
        }
        let refusals = engine.reuse(job, id, segments(&reused)).await?;
        match refusals.is_empty() {
            true => Ok(()),
            false => refused("these segments cannot be used again", refusals.into_iter().collect()),
        }
    }

    /// A task declines a checkpoint.
    ///
    /// # Errors
    /// [`CoordinatorError::OtherAttempt`], [`CoordinatorError::NoSuchTask`].
    pub async fn decline(
        &self,
        id: CheckpointId,
        (operator, subtask): (String, u32),
        attempt: u64,
        why: (FailureReason, String),
    ) -> Result<(), CoordinatorError> {
        let declined = self.ask(move |actor| {
            let task = actor.coordinator.topology().task(&operator, subtask);
            let task = task.ok_or(CoordinatorError::NoSuchTask(operator, subtask))?;
            let (now, current) = (actor.now(), actor.coordinator.attempt());
            match actor.coordinator.decline(id, task, attempt, why, now) {
                true => Ok(()),
                false => Err(CoordinatorError::OtherAttempt(current)),
            }
        });
        declined.await?
    }

    /// A source reports whether it has a backlog.
    ///
    /// # Errors
    /// [`CoordinatorError::Operators`] if it is no operator of the job.
    pub async fn report_backlog(&self, source: String, backlog: bool) -> Result<(), CoordinatorError> {
        let reported = self.ask(move |actor| {
            let Some((operator, _)) = actor.coordinator.topology().operator(&source) else {
                return Err(CoordinatorError::Operators(format!("the job has no operator {source:?}")));
            };
            let now = actor.now();
            actor.coordinator.report_backlog(operator, backlog, now);
            Ok(())
        });
        reported.await?
    }

    /// Somebody asks for a checkpoint or savepoint. The answer shows how that goes.
    ///
    /// # Errors
    /// [`CoordinatorError::NoSavepointDir`], [`CoordinatorError::KeyOfAnother`], [`CoordinatorError::TooManyRequests`];
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn request(
        &self,
        wanted: WantedCheckpoint,
        dir: Option<PublishDir>,
        key: Option<String>,
    ) -> Result<watch::Receiver<RequestView>, CoordinatorError> {
        let given = dir.clone();
        let dir = match wanted.is_savepoint() {
            false => None,
            true => {
                let default = self.ask(|actor| actor.coordinator.rules().savepoint_dir.clone()).await?;
                let dir = dir.or(default).ok_or(CoordinatorError::NoSavepointDir)?;
                check_dir_of_savepoints(self.storage.engine(), &dir, ("dir", "the directory"))?;
                Some(dir)
            }
        };
        self.ask(move |actor| actor.request(wanted, (given, dir), key)).await?
    }

    /// Checkpoints in progress, and the last ones that are over, the newest first.
    ///
    /// # Errors
    /// [`CoordinatorError::Ended`].
    pub async fn figures(&self) -> Result<Vec<CheckpointFigures>, CoordinatorError> {
        self.ask(|actor| actor.figures()).await
    }

    /// The metadata of a completed checkpoint.
    ///
    /// # Errors
    /// [`CoordinatorError::Metadata`].
    pub async fn metadata(&self, id: CheckpointId) -> Result<CheckpointMetadata, CoordinatorError> {
        Ok(self.storage.metadata(self.storage.job(), id).await?)
    }

    /// Other settings from here on. Those of directories stay.
    ///
    /// # Errors
    /// [`CoordinatorError`]; nothing changed then.
    pub async fn reconfigure(&self, settings: BTreeMap<String, String>) -> Result<(), CoordinatorError> {
        let changed = self.ask_later(move |actor, reply| {
            let before = actor.coordinator.rules();
            let rules = match before.with(settings.iter().map(|(key, text)| (&**key, &**text))) {
                Ok(rules) => rules,
                Err(error) => return crate::runtime::reply(reply, Err(error.into())),
            };
            let place = |rules: &JobCheckpointing| (rules.dir.clone(), rules.create_subdir, rules.storage);
            if place(before) != place(&rules) {
                let fixed = "execution.checkpointing.dir, create-subdir and storage".to_owned();
                return crate::runtime::reply(reply, Err(CoordinatorError::FixedSetting(fixed)));
            }
            let checked = check_rules(&rules, actor.remembered.iterative);
            // The one that it has may be gone since, and other settings are to change.
            let moved = rules.savepoint_dir != before.savepoint_dir;
            let checked = checked.and_then(|()| match moved {
                true => check_savepoint_dir(actor.storage.engine(), &rules),
                false => Ok(()),
            });
            if let Err(error) = checked {
                return crate::runtime::reply(reply, Err(error));
            }
            actor.remembered.settings = rules.texts();
            let now = actor.now();
            actor.coordinator.reconfigure(rules, now);
            actor.record(Box::new(move |_| crate::runtime::reply(reply, Ok(()))));
        });
        changed.await?
    }

    /// What the tasks of the attempt start from; of one task, or of all. No tasks if nobody starts any more, and what they started
    /// from is gone.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn start(&self, of: Option<(String, u32)>) -> Result<JobStart, CoordinatorError> {
        let asked = self.ask(|actor| {
            let coordinator = &actor.coordinator;
            // A checkpoint is being stored, and the new attempt may begin from it; or the attempt is not durable: another owner would
            // give its number to another one.
            if coordinator.attempt() != actor.recorded_attempt {
                return Err(CoordinatorError::Busy);
            }
            let operators = coordinator.topology().operators().to_vec();
            let attempts = (coordinator.attempt(), coordinator.first_attempt());
            Ok((coordinator.phase(), attempts, actor.remembered.from.clone(), operators))
        });
        let (phase, (attempt, first_attempt), from, operators) = asked.await??;
        if let Some((operator, subtask)) = &of
            && !operators.iter().any(|spec| spec.id == *operator && *subtask < spec.parallelism)
        {
            return Err(CoordinatorError::NoSuchTask(operator.clone(), *subtask));
        }
        let restored = match &from {
            None => vec![],
            Some(checkpoint) => match self.metadata_of(checkpoint).await {
                Err(CoordinatorError::Metadata(fault)) if phase.has_begun() && fault.kind() == ErrorKind::NotFound => {
                    return Ok(JobStart { phase, attempt, first_attempt, from, tasks: vec![] });
                }
                metadata => metadata?.operators().map_err(MetadataFault::from)?,
            },
        };
        let mut tasks = vec![];
        for spec in operators {
            let which = match &of {
                None => 0..spec.parallelism,
                Some((operator, one)) if *operator == spec.id => *one..one + 1,
                Some(_) => continue,
            };
            let restored = restored.iter().find(|restored| restored.spec.id == spec.id);
            let starts = which.clone().zip(assign(&spec, restored, which));
            tasks.extend(starts.map(|(subtask, start)| (spec.clone(), subtask, start)));
        }
        Ok(JobStart { phase, attempt, first_attempt, from, tasks })
    }

    async fn metadata_of(&self, from: &CheckpointOfJob) -> Result<Arc<CheckpointMetadata>, CoordinatorError> {
        let known = self.start.lock().clone();
        if let Some((_, metadata)) = known.filter(|(of, _)| of == from) {
            return Ok(metadata);
        }
        let job: JobId = from.job.parse().map_err(|_| MetadataFault::Bytes(format!("{:?} is no job", from.job)))?;
        let metadata = Arc::new(self.storage.metadata(&job, CheckpointId(from.checkpoint)).await?);
        *self.start.lock() = Some((from.clone(), Arc::clone(&metadata)));
        Ok(metadata)
    }

    /// The job goes on from a state that somebody chose. Resolves once the new attempt has begun.
    ///
    /// # Errors
    /// [`CoordinatorError`]; what is wrong with the wish is found before anything changes.
    pub async fn restore(&self, wanted: RestoreWanted) -> Result<(), CoordinatorError> {
        let RestoreWanted { from, checkpoint, savepoint, claim, operators, allow_non_restored } = wanted;
        let job = self.storage.job().clone();
        let source = match savepoint {
            None => (from.unwrap_or_else(|| job.clone()), checkpoint),
            Some(place) => {
                let key = format!("{}{PUBLISHED_NAME}", place.prefix);
                if !self.storage.engine().holds_key(&place.bucket, &key) {
                    return Err(CoordinatorError::OtherShard("savepoint", "the savepoint".to_owned()));
                }
                let metadata = self.storage.published(&place.bucket, &key).await?;
                let of =
                    metadata.job.parse().map_err(|_| MetadataFault::Bytes(format!("{:?} is no job", metadata.job)))?;
                (of, Some(CheckpointId(metadata.checkpoint)))
            }
        };
        let (from, checkpoint) = source;
        if !self.storage.engine().holds_job(&from) {
            return Err(CoordinatorError::OtherShard("from", format!("job {from}")));
        }
        let wish = RestoreWish { from, checkpoint, claim, operators, allow_non_restored };
        let asked = self.ask(|actor| (JobNow::of(actor), actor.when_quiet.is_some()));
        let (now, busy) = asked.await?;
        if busy {
            return Err(CoordinatorError::Busy);
        }
        // What is wrong is found before anything changes; then once more, as what is being stored may complete before that.
        match wish.choose(&self.storage, now).await {
            // A newer one has completed just now, and this one goes.
            Err(error) if wish.checkpoint.is_none() && wish.from == job && error.kind() == ErrorKind::NotFound => {}
            chosen => drop(chosen?),
        }
        self.go_on(wish).await
    }

    async fn go_on(&self, wish: RestoreWish) -> Result<(), CoordinatorError> {
        let storage = self.storage.clone();
        let restored = self.ask_later(move |actor, reply| {
            if actor.when_quiet.is_some() {
                return crate::runtime::reply(reply, Err(CoordinatorError::Busy));
            }
            let now = actor.now();
            actor.coordinator.halt(now);
            actor.when_quiet = Some(Box::new(move |actor| {
                let now = JobNow::of(actor);
                actor.alongside(Box::pin(async move {
                    let chosen = wish.take(&storage, now).await;
                    let message: Message = Box::new(move |actor| begin_attempt(actor, chosen, reply));
                    message
                }));
            }));
            actor.settle();
        });
        restored.await?
    }

    /// Ends the job. Returns whether its checkpoints are kept.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn end(&self, state: JobEnd, retention: Option<Retention>) -> Result<bool, CoordinatorError> {
        let ended = self.ask_later(move |actor, reply| {
            if actor.when_quiet.is_some() {
                return crate::runtime::reply(reply, Err(CoordinatorError::Busy));
            }
            actor.end(state, retention, Box::new(move |_, ended| crate::runtime::reply(reply, ended)));
            actor.settle();
        });
        ended.await?
    }
}

/// A state that somebody wants a job to go on from, and how.
struct RestoreWish {
    from: JobId,
    checkpoint: Option<CheckpointId>,
    claim: Option<Claim>,
    operators: Option<Vec<OperatorSpec>>,
    allow_non_restored: bool,
}

/// What a restore depends on, of the job at a moment.
struct JobNow {
    newest: Option<CheckpointOfJob>,
    topology: Topology,
    iterative: bool,
}

/// What a restore comes to.
struct ChosenRestore {
    target: Option<(JobId, CheckpointId)>,
    is_savepoint: bool,
    claim: Claim,
    topology: Topology,
}

impl JobNow {
    fn of(actor: &JobActor) -> Self {
        let (topology, iterative) = (actor.coordinator.topology().clone(), actor.remembered.iterative);
        Self { newest: actor.newest(), topology, iterative }
    }
}

impl RestoreWish {
    /// What it comes to now. Changes nothing.
    async fn choose(&self, storage: &JobStorage, now: JobNow) -> Result<ChosenRestore, CoordinatorError> {
        let (job, engine, from) = (storage.job(), storage.engine(), &self.from);
        let JobNow { newest, topology, iterative } = now;
        let known = engine.checkpoints(from)?;
        let target = match (self.checkpoint, &newest) {
            (Some(id), _) => Some((from.clone(), id)),
            (None, Some(newest)) if from == job => {
                newest.job.parse().ok().map(|of| (of, CheckpointId(newest.checkpoint)))
            }
            // One of a job of this name that has ended.
            (None, None) if from == job => engine.latest_completed(job).ok().map(|known| (job.clone(), known.id)),
            (None, _) => Some((from.clone(), engine.latest_completed(from)?.id)),
        };
        let kind = |id: CheckpointId| known.iter().find(|known| known.id == id).map(|known| known.kind);
        let is_savepoint = target.as_ref().is_some_and(|(_, id)| kind(*id) == Some(CheckpointKind::Savepoint));
        if let Some((of, id)) = &target
            && of == job
            && !is_savepoint
            && newest.as_ref().is_some_and(|newest| newest.job == job.as_str() && newest.checkpoint != id.0)
        {
            return Err(CoordinatorError::NotNewest(*id));
        }
        let claim = self.claim.unwrap_or(if is_savepoint { Claim::NoClaim } else { Claim::Claim });
        if from != job && (claim == Claim::Claim || !is_savepoint) && engine.is_coordinated(from)? {
            return Err(CoordinatorError::Runs(from.clone()));
        }
        if let Some((of, id)) = target.as_ref().filter(|(of, _)| of != job) {
            engine.may_go_on(GoOn { job: job.clone(), from: of.clone(), checkpoint: Some(*id), claim })?;
        }
        let topology = match &self.operators {
            None => topology,
            Some(operators) => {
                check_operators(operators, iterative)?;
                Topology::new(operators.clone())
            }
        };
        let topology = match &target {
            None => topology,
            Some((of, id)) => {
                let restored = storage.metadata(of, *id).await?.operators().map_err(MetadataFault::from)?;
                fit(&topology, &restored, self.allow_non_restored)?
            }
        };
        Ok(ChosenRestore { target, is_savepoint, claim, topology })
    }

    /// The same, and takes what is another job's.
    async fn take(&self, storage: &JobStorage, now: JobNow) -> Result<ChosenRestore, CoordinatorError> {
        let chosen = self.choose(storage, now).await?;
        if let Some((from, id)) = chosen.target.clone().filter(|(from, _)| from != storage.job()) {
            let go_on = GoOn { job: storage.job().clone(), from, checkpoint: Some(id), claim: chosen.claim };
            storage.engine().go_on(go_on).await?;
        }
        Ok(chosen)
    }
}

/// The state was taken over, or could not be: the attempt begins, or the job goes on as it was.
fn begin_attempt(
    actor: &mut JobActor,
    chosen: Result<ChosenRestore, CoordinatorError>,
    reply: oneshot::Sender<Result<(), CoordinatorError>>,
) {
    let now = actor.now();
    let ChosenRestore { target, is_savepoint, claim, topology } = match chosen {
        Ok(chosen) => chosen,
        Err(error) => {
            actor.coordinator.resume(now);
            return crate::runtime::reply(reply, Err(error));
        }
    };
    let job = actor.storage.job().clone();
    let claimed = claim == Claim::Claim;
    let own = target.as_ref().is_some_and(|(from, _)| *from == job);
    let next_id = CheckpointId(actor.coordinator.next_id().0.max(behind(target.iter().map(|(_, id)| id.0))));
    let full = target.is_some() && if own { is_savepoint } else { !claimed };
    let kind = if claimed || own { RetainedKind::Checkpoint } else { RetainedKind::Foreign };
    let from = target.as_ref().filter(|_| !own || !is_savepoint).map(|(_, id)| RetainedCheckpoint { id: *id, kind });
    actor.remembered.operators = topology.operators().to_vec();
    actor.remembered.start = target.map(|(from, id)| {
        let job = if claimed { job.to_string() } else { from.to_string() };
        ChosenStart { job, checkpoint: id.0, claimed: claimed || own && !is_savepoint, until: next_id.0 }
    });
    actor.remembered.ids_before = actor.remembered.ids_before.max(next_id.0);
    actor.coordinator.restore(topology, from, next_id, full, now);
    actor.settle();
    actor.once_recorded(Box::new(move |_| crate::runtime::reply(reply, Ok(()))));
}

fn refuse(id: CheckpointId, outcome: AckOutcome) -> Result<(), CoordinatorError> {
    match outcome {
        AckOutcome::Taken { .. } | AckOutcome::Repeated { .. } | AckOutcome::Completed => Ok(()),
        AckOutcome::Aborted(reason) => Err(CoordinatorError::Aborted(id, reason)),
        AckOutcome::Unknown => Err(CoordinatorError::Unknown(id)),
        AckOutcome::OtherAttempt(current) => Err(CoordinatorError::OtherAttempt(current)),
    }
}

fn standing_of(actor: &JobActor) -> JobStanding {
    let coordinator = &actor.coordinator;
    let (running, finished) = coordinator.tasks().counts();
    // The savepoint that the job stops with is told to be complete, too.
    let own = |one: &&RetainedCheckpoint| one.kind != RetainedKind::Foreign;
    JobStanding {
        phase: coordinator.phase(),
        attempt: coordinator.attempt(),
        restarts: coordinator.restarts(),
        tasks: (coordinator.topology().task_count(), running, finished),
        pending: coordinator.pending().keys().copied().collect(),
        waiting: coordinator.waiting(),
        completed: coordinator.retained().iter().rev().find(own).map(|one| one.id),
        backlog: coordinator.has_backlog(),
        failures: coordinator.failures_in_a_row(),
        settings: coordinator.rules().texts(),
        operators: coordinator.topology().operators().to_vec(),
        heartbeat_interval: coordinator.rules().heartbeat_interval,
        heartbeat_timeout: coordinator.rules().heartbeat_timeout,
    }
}
