//! A job goes on from a state that somebody chose: a checkpoint of its own or of another job, or a savepoint.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::asking::{JobHandle, KnownStart};
use crate::config::PublishDir;
use crate::coordinator::assign::fit;
use crate::coordinator::checks::check_operators;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::job::{JobActor, JobChange, Message};
use crate::coordinator::metadata::{CheckpointMetadata, MetadataSubject};
use crate::coordinator::record::{CheckpointOfJob, ChosenStart, behind};
use crate::coordinator::state::retained::{RetainedCheckpoint, RetainedKind};
use crate::coordinator::storage::{JobStorage, MetadataFault, PUBLISHED_NAME};
use crate::coordinator::topology::{OperatorSpec, Topology};
use crate::engine::jobs::GoOn;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, Claim, JobId};

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

impl JobHandle {
    /// The job goes on from a state that somebody chose. Resolves once the new attempt has begun.
    ///
    /// # Errors
    /// [`CoordinatorError`]; what is wrong with the wish is found before anything changes.
    pub async fn restore(&self, wanted: RestoreWanted) -> Result<(), CoordinatorError> {
        self.restore_to(wanted).await.map_err(|error| self.of_this_job(error))
    }

    async fn restore_to(&self, wanted: RestoreWanted) -> Result<(), CoordinatorError> {
        let RestoreWanted { from, checkpoint, savepoint, claim, operators, allow_non_restored } = wanted;
        let job = self.storage.job().clone();
        let (from, checkpoint, published) = match savepoint {
            None => (from.unwrap_or_else(|| job.clone()), checkpoint, None),
            Some(place) => {
                let key = format!("{}{PUBLISHED_NAME}", place.prefix);
                if !self.storage.engine().holds_key(&place.bucket, &key) {
                    return Err(CoordinatorError::OtherShard("savepoint", "the savepoint".to_owned()));
                }
                let subject = self.storage.published(&place.bucket, &key).await?;
                let of =
                    subject.job.parse().map_err(|_| MetadataFault::Bytes(format!("{:?} is no job", subject.job)))?;
                (of, Some(CheckpointId(subject.checkpoint)), Some((subject, (place.bucket, key))))
            }
        };
        if !self.storage.engine().holds_job(&from) {
            return Err(CoordinatorError::OtherShard("from", format!("job {from}")));
        }
        let read = Mutex::default();
        let wish = RestoreWish { from, checkpoint, published, claim, operators, allow_non_restored, read };
        let now = self.ask(|actor| actor.may_change().map(|()| JobNow::of(actor))).await??;
        if self.has_gone_on_from(&wish).await? {
            return Ok(());
        }
        // What is wrong is found before anything changes; then once more, as what is being stored may complete before that.
        match wish.choose(&self.storage, now).await {
            // A newer one has completed just now, and this one goes.
            Err(error) if wish.checkpoint.is_none() && wish.from == job && error.kind() == ErrorKind::NotFound => {}
            chosen => drop(chosen?),
        }
        self.go_on(wish).await
    }

    /// Whether the answer to an earlier request was lost, and the job has completed checkpoints since it has claimed what that named: it
    /// is where it should be, and begun again from there it would undo what it has done since.
    async fn has_gone_on_from(&self, wish: &RestoreWish) -> Result<bool, CoordinatorError> {
        let (engine, from, checkpoint) = (self.storage.engine(), wish.from.clone(), wish.checkpoint);
        let known = engine.checkpoints(&from).unwrap_or_default();
        let mut there = known.iter().filter(|known| known.state == CheckpointState::Completed);
        if wish.claim == Some(Claim::NoClaim) || there.any(|known| checkpoint.is_none_or(|id| id == known.id)) {
            return Ok(false);
        }
        let operators = wish.operators.clone().map(Topology::new);
        let asked = move |actor: &mut JobActor| {
            let newest = actor.newest_own().map(|id| id.0);
            let same = operators.is_none_or(|wanted| actor.coordinator.topology().is_as_wanted(&wanted));
            actor.remembered.start.as_ref().is_some_and(|start| {
                let is_it = start.claimed_from.as_deref() == Some(from.as_str())
                    && checkpoint.is_none_or(|id| id.0 == start.checkpoint);
                is_it && same && newest >= Some(start.until)
            })
        };
        self.ask(asked).await
    }

    async fn go_on(&self, wish: RestoreWish) -> Result<(), CoordinatorError> {
        let (storage, start) = (self.storage.clone(), Arc::clone(&self.start));
        let restored = self.ask_later(move |actor, reply| {
            if let Err(error) = actor.may_change() {
                return crate::runtime::reply(reply, Err(error));
            }
            actor.changing = Some(JobChange::Restore { from: wish.from.clone(), checkpoint: wish.checkpoint });
            let now = actor.now();
            actor.coordinator.halt(now);
            actor.when_quiet = Some(Box::new(move |actor| {
                let now = JobNow::of(actor);
                actor.alongside(Box::pin(async move {
                    let chosen = wish.take(&storage, now).await;
                    let message: Message = Box::new(move |actor| begin_attempt(actor, chosen, &start, reply));
                    message
                }));
            }));
            actor.settle();
        });
        restored.await?
    }
}

/// A state that somebody wants a job to go on from, and how.
struct RestoreWish {
    from: JobId,
    checkpoint: Option<CheckpointId>,
    /// What its published metadata says of it, if it was named by that, and where that is.
    published: Option<(MetadataSubject, (String, String))>,
    claim: Option<Claim>,
    operators: Option<Vec<OperatorSpec>>,
    allow_non_restored: bool,
    /// The metadata that was read for it: what a checkpoint that has completed consists of does not change.
    read: Mutex<KnownStart>,
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
    metadata: Option<Arc<CheckpointMetadata>>,
    /// Where the metadata that it was named by is published.
    published: Option<(String, String)>,
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
        let known = match engine.checkpoints(from) {
            // One that was claimed, and whose job had ended, leaves nothing behind.
            Err(error) if from != job && error.kind() == ErrorKind::NotFound => vec![],
            known => known?,
        };
        let target = match (self.checkpoint, &newest) {
            (Some(id), _) => Some((from.clone(), id)),
            (None, Some(newest)) if from == job => {
                newest.job.parse().ok().map(|of| (of, CheckpointId(newest.checkpoint)))
            }
            // One of a job of this name that has ended.
            (None, None) if from == job => engine.latest_completed(job).ok().map(|known| (job.clone(), known.id)),
            (None, _) => Some((from.clone(), self.newest_of_another(storage)?)),
        };
        let kind = |id: CheckpointId| known.iter().find(|known| known.id == id).map(|known| known.kind);
        let is_savepoint = target.as_ref().is_some_and(|(_, id)| kind(*id) == Some(CheckpointKind::Savepoint));
        let is_claimed = |of: &JobId, id: CheckpointId| {
            let own = engine.checkpoints(job).unwrap_or_default();
            own.iter().any(|known| known.id == id && known.claimed_from.as_ref() == Some(of))
        };
        if let Some((of, id)) = &target
            && !is_savepoint
            && let Some(newest) = newest.as_ref().filter(|newest| newest.job == job.as_str())
            // A claim that is not recorded, as its owner died, is above what the job has completed.
            && (of == job && newest.checkpoint != id.0 || newest.checkpoint > id.0 && is_claimed(of, *id))
        {
            return Err(CoordinatorError::NotNewest(*id));
        }
        if is_savepoint && from == job && self.claim == Some(Claim::Claim) {
            return Err(CoordinatorError::OwnSavepoint(target.map_or(CheckpointId(0), |(_, id)| id)));
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
        let metadata = match &target {
            None => None,
            // The answer to an earlier request was lost: by now it is this job's.
            Some((of, id)) if of != job && kind(*id).is_none() => Some(self.metadata(storage, job, *id).await?),
            Some((of, id)) => Some(self.metadata(storage, of, *id).await?),
        };
        if let (Some((published, _)), Some(metadata)) = (&self.published, &metadata)
            && !published.is_that_of(metadata)
        {
            return Err(MetadataFault::Gone(published.job.clone(), CheckpointId(published.checkpoint)).into());
        }
        let topology = match &metadata {
            None => topology,
            Some(metadata) => {
                fit(&topology, &metadata.operators().map_err(MetadataFault::from)?, self.allow_non_restored)?
            }
        };
        let published = self.published.as_ref().map(|(_, place)| place.clone());
        Ok(ChosenRestore { target, is_savepoint, claim, topology, metadata, published })
    }

    /// The newest checkpoint of the other job, or that which this one has claimed from it before.
    fn newest_of_another(&self, storage: &JobStorage) -> Result<CheckpointId, CoordinatorError> {
        let (job, engine, from) = (storage.job().clone(), storage.engine(), self.from.clone());
        let missing = match engine.latest_completed(&from) {
            Ok(newest) => return Ok(newest.id),
            Err(missing) => missing,
        };
        let again = GoOn { job, from, checkpoint: None, claim: Claim::Claim };
        Ok(match self.claim {
            None | Some(Claim::Claim) => engine.may_go_on(again).map_err(|_| missing)?,
            Some(Claim::NoClaim) => return Err(missing.into()),
        })
    }

    async fn metadata(
        &self,
        storage: &JobStorage,
        of: &JobId,
        id: CheckpointId,
    ) -> Result<Arc<CheckpointMetadata>, CoordinatorError> {
        let wanted = CheckpointOfJob { job: of.to_string(), checkpoint: id.0 };
        let known = self.read.lock().clone();
        if let Some((_, metadata)) = known.filter(|(known, _)| *known == wanted) {
            return Ok(metadata);
        }
        let metadata = Arc::new(storage.metadata(of, id).await?);
        *self.read.lock() = Some((wanted, Arc::clone(&metadata)));
        Ok(metadata)
    }

    /// The same, and takes what is another job's.
    async fn take(&self, storage: &JobStorage, now: JobNow) -> Result<ChosenRestore, CoordinatorError> {
        let chosen = self.choose(storage, now).await?;
        if let Some((from, id)) = chosen.target.clone().filter(|(from, _)| from != storage.job()) {
            let go_on = GoOn { job: storage.job().clone(), from, checkpoint: Some(id), claim: chosen.claim };
            storage.engine().go_on(go_on, Some(storage.run())).await?;
        }
        Ok(chosen)
    }
}

/// The state was taken over, or could not be: the attempt begins, or the job goes on as it was.
fn begin_attempt(
    actor: &mut JobActor,
    chosen: Result<ChosenRestore, CoordinatorError>,
    start: &Mutex<KnownStart>,
    reply: oneshot::Sender<Result<(), CoordinatorError>>,
) {
    actor.changing = None;
    let now = actor.now();
    let ChosenRestore { target, is_savepoint, claim, topology, metadata, published } = match chosen {
        Ok(chosen) => chosen,
        Err(error) => {
            actor.coordinator.resume(now);
            return crate::runtime::reply(reply, Err(error));
        }
    };
    let job = actor.storage.job().clone();
    let claimed = claim == Claim::Claim;
    let own = target.as_ref().is_some_and(|(from, _)| *from == job);
    let checkpoint = target.as_ref().filter(|_| own && !is_savepoint).map(|(_, id)| *id);
    // Those of a job of this name that has ended are its own if it claims them.
    let kept = checkpoint.filter(|id| *id < actor.remembered.first() && !actor.counts(*id));
    let keeps = checkpoint.is_some() && (claimed || kept.is_none());
    if let Some(id) = kept.filter(|id| claimed && is_newest_before(actor, *id)) {
        actor.remembered.first_checkpoint = id.0;
    }
    let next_id = CheckpointId(actor.coordinator.next_id().0.max(behind(target.iter().map(|(_, id)| id.0))));
    let full = target.is_some() && if own { !keeps } else { !claimed };
    let kind = if claimed || keeps { RetainedKind::Checkpoint } else { RetainedKind::Foreign };
    let from = target.as_ref().filter(|_| !own || !is_savepoint).map(|(_, id)| RetainedCheckpoint { id: *id, kind });
    actor.remembered.operators = topology.operators().to_vec();
    actor.remembered.start = target.map(|(from, id)| {
        let job = if claimed { job.to_string() } else { from.to_string() };
        let other = Some(from).filter(|_| claimed && !own);
        let published = published.filter(|_| other.is_some());
        let claimed_from = other.map(|from| from.to_string());
        ChosenStart { job, checkpoint: id.0, claimed: claimed || keeps, until: next_id.0, claimed_from, published }
    });
    // All tasks ask for it next.
    *start.lock() = actor
        .remembered
        .start
        .as_ref()
        .zip(metadata)
        .map(|(from, metadata)| (CheckpointOfJob { job: from.job.clone(), checkpoint: from.checkpoint }, metadata));
    actor.remembered.ids_before = actor.remembered.ids_before.max(next_id.0);
    actor.coordinator.restore(topology, from, next_id, full, now);
    actor.settle();
    actor.once_recorded(Box::new(move |_| crate::runtime::reply(reply, Ok(()))));
}

/// Whether a completed checkpoint is the newest of those that were there before the job was created.
fn is_newest_before(actor: &JobActor, id: CheckpointId) -> bool {
    let known = actor.storage.engine().checkpoints(actor.storage.job()).unwrap_or_default();
    let newer = known.iter().filter(|known| known.id > id && known.id < actor.remembered.first());
    newer.filter(|known| known.kind == CheckpointKind::Checkpoint).count() == 0
}
