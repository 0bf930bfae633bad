//! [`Coordinators`]: the coordinators of all jobs of this daemon.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::checks::{check_operators, check_rules, check_savepoint_dir};
use super::error::CoordinatorError;
use super::events::EventLog;
use super::handle::JobHandle;
use super::job::{JobActor, Message, published_in};
use super::memory::AckMemory;
use super::record::{NUMBERS_MAX, RememberedJob, UnreadableJob, behind, said_of};
use super::state::machine::{Beginning, Coordinator};
use super::state::queue::StopMode;
use super::state::retained::{RetainedCheckpoint, RetainedKind};
use super::storage::{JobStorage, published_folder, published_key};
use super::topology::{OperatorSpec, Topology};
use crate::config::JobCheckpointing;
use crate::engine::{CheckpointView, Engine};
use crate::error::{ErrorKind, chain};
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, JobId};
use crate::runtime::{Entropy, Failure, reply};

/// Jobs that have ended and whose last events can be heard.
const ENDED_MAX: usize = 64;
/// Messages that wait for the coordinator of a job.
const INBOX_MAX: usize = 1024;
/// After a panic of a coordinator, until the job has another one: one that panics again and again does so at leisure.
const ANEW_AFTER: Duration = Duration::from_secs(1);

/// A job to create with a coordinator.
#[derive(Debug, Clone)]
pub struct NewCoordinatedJob {
    /// Its id.
    pub job: JobId,
    /// What it wants other than the daemon's configuration, as texts.
    pub settings: BTreeMap<String, String>,
    /// Its operators.
    pub operators: Vec<OperatorSpec>,
    /// Whether it has cycles.
    pub iterative: bool,
}

/// The coordinators of all jobs. Clones share them.
#[derive(Clone)]
pub struct Coordinators(Arc<CoordinatorsShared>);

crate::runtime::opaque_debug!(Coordinators);

struct CoordinatorsShared {
    engine: Engine,
    acks: AckMemory,
    jobs: Mutex<BTreeMap<JobId, JobHandle>>,
    /// Those that ended last: their workers may not have heard of it.
    ended: Mutex<VecDeque<(JobId, JobHandle)>>,
    /// Held by whoever creates one. A `tokio` mutex, because the others wait while storage works.
    creating: tokio::sync::Mutex<()>,
}

impl Coordinators {
    /// Starts the coordinators of all jobs that have one. They end with the engine, or when it loses its catalog.
    pub fn start(engine: &Engine) -> Self {
        let shared = CoordinatorsShared {
            engine: engine.clone(),
            acks: AckMemory::of(engine),
            jobs: Mutex::default(),
            ended: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
        };
        let coordinators = Self(Arc::new(shared));
        for (job, text) in engine.coordinated().unwrap_or_default() {
            match coordinators.load(&job, &text) {
                Ok(()) => {}
                Err(error) => tracing::error!(%job, error = chain(&error), "a job has no coordinator"),
            }
        }
        coordinators
    }

    fn load(&self, job: &JobId, text: &str) -> Result<(), UnreadableJob> {
        let remembered = RememberedJob::read(text)?;
        let rules = remembered.rules(&self.0.engine.settings().checkpointing.jobs)?;
        self.spawn(job, remembered, rules);
        Ok(())
    }

    fn spawn(&self, job: &JobId, mut remembered: RememberedJob, rules: JobCheckpointing) -> JobHandle {
        let engine = &self.0.engine;
        let known = engine.checkpoints(job).unwrap_or_default();
        let retained = retained_of(job, &known, &remembered);
        let used = remembered.start.iter().map(|start| start.checkpoint);
        let next_id = CheckpointId(remembered.ids_before.max(behind_known(engine, job, &known)).max(behind(used)));
        remembered.ids_before = next_id.0;
        let newest = retained.iter().rev().find(|one| one.kind == RetainedKind::Checkpoint).map(|one| one.id.0);
        let full = remembered
            .start
            .as_ref()
            .is_some_and(|start| !start.claimed && newest.is_none_or(|newest| newest < start.until));
        let stop = stop_of(&retained, &remembered);
        let published = published_in(&rules).cloned().map(|dir| (dir, rules.create_subdir));
        let beginning = Beginning {
            rules,
            topology: Topology::new(remembered.operators.clone()),
            attempt: remembered.attempt,
            first_attempt: remembered.first_attempt,
            ran: remembered.ran.then(|| remembered.finished_tasks()),
            next_id,
            retained,
            full,
            draw: draw(engine),
        };
        let storage = JobStorage::new(engine.clone(), job.clone());
        let folder = published.as_ref().map(|(dir, subdir)| published_folder(dir, job, *subdir));
        let events = Arc::new(EventLog::new(engine.entropy().hex(6)));
        let mut coordinator = Coordinator::new(beginning, Duration::ZERO);
        remembered.backlog.iter().for_each(|operator| coordinator.report_backlog(*operator, true, Duration::ZERO));
        if let Some((id, mode)) = stop {
            coordinator.stops_with(id, mode);
        }
        let actor = JobActor::new(storage.clone(), coordinator, remembered, Arc::clone(&events));
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let handle = JobHandle {
            inbox,
            events,
            storage: storage.clone(),
            start: Arc::default(),
            acks: self.0.acks.of_another_job(),
            folder,
        };
        let pending = known.into_iter().filter(|known| known.state == CheckpointState::Pending).map(|known| known.id);
        let pending: Vec<CheckpointId> = pending.collect();
        let published = published
            .map(|(dir, subdir)| pending.iter().map(|id| published_key(&dir, job, subdir, *id)).collect::<Vec<_>>());
        let (coordinators, job, own) = (Arc::downgrade(&self.0), job.clone(), handle.inbox.clone());
        let (stopping, lost) = (engine.stopping(), engine.lost());
        self.0.jobs.lock().insert(job.clone(), handle.clone());
        let (over, ended) = oneshot::channel();
        self.watch(job.clone(), own.clone(), ended);
        engine.tasks().spawn("coordinator", Failure::FailsItsWork, async move {
            // What an owner before had begun: nobody has its acknowledgements any more.
            storage.unpublish_all(published.unwrap_or_default()).await;
            for id in pending {
                storage.clean_aborted(id).await;
            }
            actor.run(messages, stopping, lost).await;
            // Only now: a panic drops it, and is known by that.
            reply(over, ());
            if let Some(shared) = coordinators.upgrade() {
                let mut jobs = shared.jobs.lock();
                // It may have been created anew meanwhile.
                let gone = jobs.get(&job).is_some_and(|known| known.inbox.same_channel(&own));
                if let Some(handle) = gone.then(|| jobs.remove(&job)).flatten() {
                    drop(jobs);
                    let mut ended = shared.ended.lock();
                    ended.push_front((job, handle));
                    ended.truncate(ENDED_MAX);
                }
            }
        });
        handle
    }

    /// Starts the coordinator of a job anew, from what is recorded, if a bug ends it: as another daemon would after a crash of this
    /// one. What it had not told by then is not known to anybody.
    fn watch(&self, job: JobId, own: mpsc::Sender<Message>, ended: oneshot::Receiver<()>) {
        let (coordinators, engine) = (Arc::downgrade(&self.0), &self.0.engine);
        let (stopping, lost) = (engine.stopping(), engine.lost());
        engine.tasks().spawn("coordinator-watch", Failure::StopsTheDaemon, async move {
            if ended.await.is_ok() {
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = lost.cancelled() => return,
                () = tokio::time::sleep(ANEW_AFTER) => {}
            }
            let Some(coordinators) = coordinators.upgrade().map(Self) else { return };
            let _creating = coordinators.0.creating.lock().await;
            // A job that has ended meanwhile needs none.
            if !coordinators.find(&job).is_some_and(|known| known.inbox.same_channel(&own)) {
                return;
            }
            // First: what the one before had asked of the catalog has happened then, and what its workers still store is refused.
            if let Err(error) = coordinators.0.engine.begin_run(&job).await
                && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict)
            {
                return tracing::error!(%job, error = chain(&error), "the coordinator of a job does not begin anew");
            }
            let known = coordinators.0.engine.coordinated().unwrap_or_default();
            let loaded = match known.iter().find(|(of, _)| *of == job) {
                Some((_, text)) => coordinators.load(&job, text),
                // It has ended with the last that was asked.
                None => {
                    coordinators.0.jobs.lock().remove(&job);
                    return;
                }
            };
            match loaded {
                Ok(()) => tracing::warn!(%job, "the coordinator of a job panicked and begins anew from its record"),
                Err(error) => {
                    coordinators.0.jobs.lock().remove(&job);
                    tracing::error!(%job, error = chain(&error), "a job has no coordinator");
                }
            }
        });
    }

    /// The coordinator of a job, if it has one.
    pub fn find(&self, job: &JobId) -> Option<JobHandle> {
        self.0.jobs.lock().get(job).cloned()
    }

    /// The same, also of a job that has ended a short time ago: what its workers were told last is still there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn last_of(&self, job: &JobId) -> Result<JobHandle, CoordinatorError> {
        let ended = || self.0.ended.lock().iter().find(|(known, _)| known == job).map(|(_, handle)| handle.clone());
        self.find(job).or_else(ended).map_or_else(|| self.get(job), Ok)
    }

    /// The coordinator of a job.
    ///
    /// # Errors
    /// [`CoordinatorError::NotCoordinated`], [`CoordinatorError::HasEnded`]; [`CoordinatorError::Engine`] if there is no such job.
    pub fn get(&self, job: &JobId) -> Result<JobHandle, CoordinatorError> {
        match self.find(job) {
            Some(handle) => Ok(handle),
            None => match self.0.engine.job(job)?.ended {
                Some(_) => Err(CoordinatorError::HasEnded(job.clone())),
                None => Err(CoordinatorError::NotCoordinated(job.clone())),
            },
        }
    }

    /// Refuses to have a checkpoint deleted that some job takes or begins from. One that is restored in the same moment may begin from what
    /// is just being deleted: it is told so when its tasks ask for their state.
    ///
    /// # Errors
    /// [`CoordinatorError::InProgress`], [`CoordinatorError::InUse`].
    pub async fn check_unused(&self, of: &JobId, id: CheckpointId) -> Result<(), CoordinatorError> {
        let all: Vec<JobHandle> = self.0.jobs.lock().values().cloned().collect();
        for handle in all {
            handle.does_without(of, id).await?;
        }
        Ok(())
    }

    /// Creates a job with a coordinator; nothing happens if there is the same one.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn create(&self, new: NewCoordinatedJob) -> Result<(), CoordinatorError> {
        let _creating = self.0.creating.lock().await;
        if let Some(handle) = self.find(&new.job) {
            return self.is_the_same(&handle, new).await;
        }
        let NewCoordinatedJob { job, settings, operators, iterative } = new;
        let defaults = &self.0.engine.settings().checkpointing.jobs;
        let rules = defaults.with(settings.iter().map(|(key, text)| (&**key, &**text)))?;
        check_rules(&rules, iterative)?;
        check_operators(&operators, iterative)?;
        if let Some(dir) = &rules.dir {
            self.0.engine.check_bucket(&dir.bucket)?;
        }
        let published = rules.dir.as_ref().map(|dir| published_key(dir, &job, rules.create_subdir, CheckpointId(1)));
        if published.is_some_and(|(bucket, key)| !self.0.engine.holds_key(&bucket, &key)) {
            return Err(CoordinatorError::OtherShard("settings", "execution.checkpointing.dir".to_owned()));
        }
        check_savepoint_dir(&self.0.engine, &rules)?;
        self.check_folder(&job, &rules)?;
        let topology = Topology::new(operators);
        let engine = &self.0.engine;
        let before = engine.checkpoints(&job).unwrap_or_default();
        let first = (first_attempt(engine.entropy()), behind_known(engine, &job, &before));
        let remembered = RememberedJob::new((&rules, &settings), &topology, iterative, first);
        engine.coordinate(&job, Arc::from(remembered.write())).await?;
        // Segments that are on their way are not for its checkpoints, which nobody knows yet.
        engine.begin_run(&job).await?;
        self.spawn(&job, remembered, rules);
        Ok(())
    }

    /// Whether a job that exists is the one that somebody wants to create: by what was said, whatever the daemon's defaults are by now.
    async fn is_the_same(&self, handle: &JobHandle, new: NewCoordinatedJob) -> Result<(), CoordinatorError> {
        let NewCoordinatedJob { job, settings, operators, iterative } = new;
        let (defaults, topology) = (self.0.engine.settings().checkpointing.jobs.clone(), Topology::new(operators));
        let same = handle.ask(move |actor| {
            let texts = || settings.iter().map(|(key, text)| (&**key, &**text));
            let rules = actor.coordinator.rules();
            let same_settings = match &actor.remembered.said {
                Some(said) => said_of(&rules.with(texts())?, &settings) == *said,
                None => defaults.with(texts())? == *rules,
            };
            let same_flow =
                actor.coordinator.topology().is_as_wanted(&topology) && actor.remembered.iterative == iterative;
            Ok::<_, CoordinatorError>((same_flow, same_settings))
        });
        match same.await?? {
            (true, true) => Ok(()),
            (false, _) => Err(CoordinatorError::Exists(job, "operators", "change them by a restore")),
            (_, false) => Err(CoordinatorError::Exists(job, "settings", "change them at its settings")),
        }
    }

    /// Refuses a folder for metadata in which another job publishes its own: they have the same names.
    fn check_folder(&self, job: &JobId, rules: &JobCheckpointing) -> Result<(), CoordinatorError> {
        let Some(folder) = published_in(rules).map(|dir| published_folder(dir, job, rules.create_subdir)) else {
            return Ok(());
        };
        let same = |(_, other): &(&JobId, &JobHandle)| other.folder.as_ref() == Some(&folder);
        let others: Vec<JobId> = self.0.jobs.lock().iter().filter(same).map(|(other, _)| other.clone()).collect();
        for other in others {
            // One that has just ended may still be in the list.
            if self.0.engine.is_coordinated(&other)? {
                return Err(CoordinatorError::FolderOfAnother(format!("s3://{}/{}", folder.0, folder.1), other));
            }
        }
        Ok(())
    }
}

/// The number behind those that the job has, or had.
fn behind_known(engine: &Engine, job: &JobId, known: &[CheckpointView]) -> u64 {
    let subsumed = engine.job(job).ok().and_then(|job| job.subsumed);
    behind(known.iter().map(|known| known.id).chain(subsumed).map(|id| id.0))
}

/// Completed checkpoints that count, the oldest first.
fn retained_of(job: &JobId, known: &[CheckpointView], remembered: &RememberedJob) -> Vec<RetainedCheckpoint> {
    let completed = known.iter().filter(|known| known.state == CheckpointState::Completed);
    let own = completed.filter(|known| known.kind == CheckpointKind::Checkpoint);
    // One from before the job was created, or that it has claimed, counts if the job has gone on from it. If it has not, somebody died
    // between the claim and the record of it: the tasks are those of before.
    let chosen = remembered.start.as_ref().filter(|start| start.claimed).map(|start| start.checkpoint);
    let own = own.filter(|known| {
        let (id, came) = (known.id.0, known.claimed_from.is_some() || known.id.0 < remembered.first_checkpoint);
        id < NUMBERS_MAX && (!came || Some(id) == chosen)
    });
    let mut retained: Vec<RetainedCheckpoint> =
        own.map(|known| RetainedCheckpoint { id: known.id, kind: RetainedKind::Checkpoint }).collect();
    if let Some(start) = remembered.start.as_ref().filter(|start| !start.claimed) {
        let id = CheckpointId(start.checkpoint);
        // A savepoint of the job itself does not count, as it never goes.
        let is_checkpoint = |known: &CheckpointView| known.id == id && known.kind == CheckpointKind::Checkpoint;
        let counts = start.job != *job.as_str() || known.iter().any(is_checkpoint);
        if counts && retained.iter().all(|one| one.id != id) {
            retained.push(RetainedCheckpoint { id, kind: RetainedKind::Foreign });
        }
    }
    retained.sort_unstable_by_key(|one| one.id);
    // If a later stop came to nothing, the one from which all have begun anew.
    let of_chosen = |id: u64| remembered.start.as_ref().is_some_and(|start| start.checkpoint == id);
    let begun = remembered.from.as_ref().filter(|from| from.job == *job.as_str() && !of_chosen(from.checkpoint));
    let begun = begun.map(|from| from.checkpoint);
    let stopped_with = known.iter().rev().find(|known| {
        let is_it = [remembered.stop_savepoint, begun].contains(&Some(known.id.0));
        is_it && known.kind == CheckpointKind::Savepoint && known.state == CheckpointState::Completed
    });
    let stopped_with = stopped_with.filter(|known| retained.last().is_none_or(|newest| newest.id < known.id));
    retained.extend(stopped_with.map(|known| RetainedCheckpoint { id: known.id, kind: RetainedKind::StopSavepoint }));
    retained
}

/// The savepoint that the job is stopping with, and how. Before that is complete the job is not: what its owner was asked for is gone
/// with it.
fn stop_of(retained: &[RetainedCheckpoint], remembered: &RememberedJob) -> Option<(CheckpointId, StopMode)> {
    let stopping = remembered.stopping.as_ref()?;
    let newest = retained.last().filter(|newest| newest.kind == RetainedKind::StopSavepoint)?;
    let mode = if stopping.drain { StopMode::Drain } else { StopMode::Suspend };
    (remembered.stop_savepoint == Some(newest.id.0)).then_some((newest.id, mode))
}

/// The first attempt of a job: a thousand by chance, and one. Of a job that ended and left nothing nothing is known, and workers of it
/// may be alive when there is another one of its name: what they say is of no attempt of that.
fn first_attempt(entropy: &Entropy) -> u64 {
    u64::from_str_radix(&entropy.hex(5), 16).unwrap_or_default() % 1_000_000 * 1000 + 1
}

/// A number between 0 and 1.
fn draw(engine: &Engine) -> f64 {
    let drawn = u32::from_str_radix(&engine.entropy().hex(4), 16).unwrap_or_default();
    f64::from(drawn) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::coordinator::record::ChosenStart;
    use crate::coordinator::state::queue::WantedCheckpoint;
    use crate::coordinator::state::tasks::TaskState;
    use crate::engine::EngineOptions;
    use crate::engine::intake::Whole;
    use crate::engine::jobs::{CheckpointStep, GoOn};
    use crate::model::{About, Claim, SegmentCrc, StateScope, Writer};

    fn job() -> NewCoordinatedJob {
        let (job, settings) = ("j".parse().unwrap(), BTreeMap::new());
        NewCoordinatedJob { job, settings, operators: vec![OperatorSpec::plain("a", 1)], iterative: false }
    }

    fn about(checkpoint: Option<CheckpointId>) -> About {
        let (scope, writer) = (StateScope::Exclusive, Writer::default());
        About { job: job().job, scope, writer, checkpoint, name: None }
    }

    fn state() -> Whole {
        Whole { data: "state".into(), crc: SegmentCrc::of(b"state"), paid: None }
    }

    /// Whoever waits for a checkpoint would take it for complete if a higher one were told to be.
    #[tokio::test]
    async fn a_checkpoint_that_was_claimed_counts_once_the_job_has_gone_on_from_it() {
        let flags = [("store.url".to_owned(), "memory:".to_owned())];
        let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        let running = Engine::open(settings, EngineOptions::default()).await.unwrap();
        let (engine, from) = (running.engine(), "from".parse::<JobId>().unwrap());
        Coordinators::start(engine).create(job()).await.unwrap();
        engine.create_job(&from).await.unwrap();
        let of_from = About { job: from.clone(), ..about(Some(CheckpointId(40))) };
        engine.store(of_from, None, None, state()).await.unwrap();
        engine.step(&from, CheckpointId(40), CheckpointStep::Complete).await.unwrap();
        let claim = GoOn { job: job().job, from, checkpoint: None, claim: Claim::Claim };
        engine.go_on(claim, None).await.unwrap();
        let known = engine.checkpoints(&job().job).unwrap();
        assert_eq!(known.len(), 1);
        let (_, text) = engine.coordinated().unwrap().remove(0);
        let mut remembered = RememberedJob::read(&text).unwrap();

        assert_eq!(retained_of(&job().job, &known, &remembered), []);
        let (claimed_from, published) = (Some("from".to_owned()), None);
        let start = ChosenStart { job: "j".into(), checkpoint: 40, claimed: true, until: 41, claimed_from, published };
        remembered.start = Some(start);
        let kind = RetainedKind::Checkpoint;
        assert_eq!(retained_of(&job().job, &known, &remembered), [RetainedCheckpoint { id: CheckpointId(40), kind }]);
    }

    #[tokio::test]
    async fn a_coordinator_that_panics_is_followed_by_another_one_from_its_record() {
        let flags = [("store.url".to_owned(), "memory:".to_owned())];
        let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        let running = Engine::open(settings, EngineOptions::default()).await.unwrap();
        let coordinators = Coordinators::start(running.engine());
        coordinators.create(job()).await.unwrap();
        let first = coordinators.get(&job().job).unwrap();
        let attempt = first.standing().await.unwrap().attempt;
        let runs = || vec![("a".to_owned(), 0, TaskState::Running)];
        first.report(attempt, None, runs(), None).await.unwrap();
        let request = first.request(WantedCheckpoint::Checkpoint, None, None).await.unwrap();
        while request.borrow().checkpoint.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(running.engine().metrics().checkpoints_in_progress.get(), 1);
        // A task has begun to store its state by now.
        let run = running.engine().would_take(&job().job, request.borrow().checkpoint.unwrap()).unwrap();

        let panicked = first.ask(|_| -> () { panic!("a bug") }).await;

        assert!(matches!(panicked, Err(CoordinatorError::Ended)), "{panicked:?}");
        let next = async {
            loop {
                let handle = coordinators.get(&job().job).unwrap();
                match handle.standing().await {
                    Ok(standing) => return (handle, standing),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let (next, standing) = tokio::time::timeout(Duration::from_secs(20), next).await.unwrap();
        assert_eq!((standing.attempt, standing.restarts), (attempt, 0));
        assert_eq!(running.engine().metrics().checkpoints_in_progress.get(), 0);
        assert_eq!(first.events.after(first.events.last(), 1), super::super::events::EventsAfter::Closed);
        next.report(attempt, None, runs(), None).await.unwrap();
        let earlier = request.borrow().checkpoint;
        let again = next.request(WantedCheckpoint::Checkpoint, None, None).await.unwrap();
        while again.borrow().checkpoint.is_none() {
            tokio::task::yield_now().await;
        }
        assert!(again.borrow().checkpoint > earlier, "a number is not used twice");
        let late = running.engine().store(about(earlier), None, Some(run), state()).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
        let known = running.engine().checkpoints(&job().job).unwrap();
        assert!(known.iter().all(|known| known.state != CheckpointState::Pending), "{known:?}");
        drop(coordinators);
    }
}
