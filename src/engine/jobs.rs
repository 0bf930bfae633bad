//! Jobs and their checkpoints: their lives, reuse, restore, savepoints, the end of a job.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::{Engine, EngineError, Refusal, aside};
use crate::catalog::command::{Command, Outcome, RestorePoint};
use crate::catalog::state::{CheckpointView, JobView, SegmentView};
use crate::config::Retention;
use crate::metrics::labels::ReuseOutcome;
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, Claim, JobEnd, JobId, JobRun, Leavings, SegmentId};

/// Segments that a savepoint does without and that are freed at once.
const SURPLUS_AT_ONCE: usize = 4096;
/// How often a savepoint looks for segments that it does without, while others are on their way.
const SURPLUS_LOOKS: usize = 16;

/// A step in the life of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointStep {
    /// It, or a savepoint, begins; nothing happens if it has begun.
    Begin(CheckpointKind),
    /// A job can be restored from it.
    Complete,
    /// Its segments are freed that no later one uses, and late ones refused.
    Abort,
    /// It and those before it: what none after it uses is freed.
    Subsume,
}

/// A job that goes on from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoOn {
    /// The job.
    pub job: JobId,
    /// The job whose checkpoint it was.
    pub from: JobId,
    /// The checkpoint; the newest that completed if none was named.
    pub checkpoint: Option<CheckpointId>,
    /// Whether its files are taken over.
    pub claim: Claim,
}

/// The state that a job resumes from.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The job that has the checkpoint now.
    pub owner: JobId,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its segments, in the order in which a job restores them.
    pub segments: Vec<SegmentView>,
}

impl Engine {
    /// Creates a job; nothing happens if it exists.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn create_job(&self, job: &JobId) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::CreateJob(job.clone())).await?;
        Ok(())
    }

    /// Creates a job that has a coordinator, or goes on with it, and keeps what that remembers.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn coordinate(&self, job: &JobId, remembered: Arc<str>) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::Coordinate(job.clone(), remembered)).await?;
        Ok(())
    }

    /// Another run of a job begins. Resolves once all that was asked of the catalog before has happened; segments that are still on
    /// their way for the job are refused.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if the job is not known, or has ended.
    pub async fn begin_run(&self, job: &JobId) -> Result<JobRun, EngineError> {
        self.catalog.execute(Command::BeginRun(job.clone())).await?;
        Ok(self.run_of(job))
    }

    /// The run that a job is in; zero if nothing is known of it.
    pub fn run_of(&self, job: &JobId) -> JobRun {
        self.catalog.run_of(job)
    }

    /// Jobs that have a coordinator, with what it remembers.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub fn coordinated(&self) -> Result<Vec<(JobId, Arc<str>)>, EngineError> {
        self.check()?;
        Ok(self.catalog.coordinators())
    }

    /// Whether a job has a coordinator that goes on.
    ///
    /// # Errors
    /// As [`Self::coordinated`].
    pub fn is_coordinated(&self, job: &JobId) -> Result<bool, EngineError> {
        Ok(self.coordinated()?.iter().any(|(known, _)| known == job))
    }

    /// Whether a segment that was written for `checkpoint` may be relied on: that one has completed.
    pub fn is_confirmed(&self, job: &JobId, checkpoint: CheckpointId) -> bool {
        match self.catalog.checkpoint(job, checkpoint) {
            Some(known) => known.state == CheckpointState::Completed,
            None => self.catalog.job(job).is_ok_and(|job| job.subsumed >= Some(checkpoint)),
        }
    }

    /// The segments of a completed checkpoint, in the order in which a job restores them.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`].
    pub async fn checkpoint_segments(&self, job: &JobId, id: CheckpointId) -> Result<Vec<SegmentView>, EngineError> {
        let (catalog, job) = (self.catalog.clone(), job.clone());
        Ok(aside("the segments of a checkpoint", move || catalog.checkpoint_segments(&job, id)).await??)
    }

    /// Returns a job.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if it is not known.
    pub fn job(&self, job: &JobId) -> Result<JobView, EngineError> {
        self.check()?;
        Ok(self.catalog.job(job)?)
    }

    /// All jobs in the order of their ids.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn jobs(&self) -> Result<Vec<JobView>, EngineError> {
        self.check()?;
        let catalog = self.catalog.clone();
        aside("a list of jobs", move || catalog.jobs()).await
    }

    /// Takes a step in the life of a checkpoint. Returns what is known of the checkpoint then; `None` if it is subsumed.
    ///
    /// # Errors
    /// [`EngineError::Refused`]; nothing changed then.
    pub async fn step(
        &self,
        job: &JobId,
        id: CheckpointId,
        step: CheckpointStep,
    ) -> Result<Option<CheckpointView>, EngineError> {
        self.step_in(None, job, id, step).await
    }

    /// The same; with a run it is refused once the job is in another one.
    ///
    /// # Errors
    /// [`EngineError::Refused`]; nothing changed then.
    pub async fn step_in(
        &self,
        run: Option<JobRun>,
        job: &JobId,
        id: CheckpointId,
        step: CheckpointStep,
    ) -> Result<Option<CheckpointView>, EngineError> {
        let of = job.clone();
        let command = match step {
            CheckpointStep::Begin(kind) => Command::BeginCheckpoint(of, id, kind),
            CheckpointStep::Complete => Command::CompleteCheckpoint(of, id),
            CheckpointStep::Abort => Command::AbortCheckpoint(of, id),
            CheckpointStep::Subsume => Command::SubsumeCheckpoint(of, id),
        };
        self.catalog.execute(in_run(run, job, command)).await?;
        if !matches!(step, CheckpointStep::Begin(_)) {
            self.merger.checkpoint_barrier(job, id);
        }
        Ok(self.catalog.checkpoint(job, id))
    }

    /// Checkpoints from one on are subsumed, up to another one: what none after that uses is freed. Those before stay.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if the job is not known, or in another run.
    pub async fn subsume_since(
        &self,
        run: JobRun,
        job: &JobId,
        since: CheckpointId,
        through: CheckpointId,
    ) -> Result<(), EngineError> {
        self.catalog.execute(in_run(Some(run), job, Command::SubsumeSince(job.clone(), since, through))).await?;
        self.merger.checkpoint_barrier(job, through);
        Ok(())
    }

    /// A savepoint is complete, with these of the segments that were stored for it. The others are freed, as it is never subsumed.
    ///
    /// # Errors
    /// [`EngineError::Refused`].
    ///
    /// # Crash
    /// The others go first: they are missed by nobody, or the savepoint is aborted.
    pub async fn complete_savepoint(
        &self,
        job: &JobId,
        id: CheckpointId,
        keeps: &BTreeSet<SegmentId>,
    ) -> Result<(), EngineError> {
        for _ in 0..SURPLUS_LOOKS {
            let (catalog, of) = (self.catalog.clone(), job.clone());
            let held = aside("the segments of a savepoint", move || catalog.held_by_savepoint(&of, id)).await?;
            let (kept, surplus): (Vec<_>, Vec<_>) = held.into_iter().partition(|segment| keeps.contains(segment));
            for some in surplus.chunks(SURPLUS_AT_ONCE) {
                self.catalog.execute(Command::FreeOfSavepoint(job.clone(), id, some.to_vec())).await?;
            }
            let complete = Command::CompleteSavepoint(job.clone(), id, kept.len() as u64);
            match self.catalog.execute(complete).await.map_err(EngineError::from) {
                // One that was on its way has come: it is looked at, too.
                Err(EngineError::Refused(Refusal::SavepointHolds(..))) => {}
                done => {
                    done?;
                    self.merger.checkpoint_barrier(job, id);
                    return Ok(());
                }
            }
        }
        // Somebody goes on storing for it: better one that holds too much than none.
        tracing::warn!(%job, savepoint = %id, "segments that a savepoint does without stay with it");
        self.step(job, id, CheckpointStep::Complete).await.map(|_| ())
    }

    /// Checkpoints of a job that are not subsumed, in order.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if the job is not known.
    pub fn checkpoints(&self, job: &JobId) -> Result<Vec<CheckpointView>, EngineError> {
        self.check()?;
        Ok(self.catalog.checkpoints(job)?)
    }

    /// The newest completed checkpoint or savepoint of a job.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if there is none.
    pub fn latest_completed(&self, job: &JobId) -> Result<CheckpointView, EngineError> {
        self.check()?;
        Ok(self.catalog.latest_completed(job)?)
    }

    /// The job's workers have sent their last segment for now: its open files are closed.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if the job is not known.
    pub fn flush(&self, job: &JobId) -> Result<(), EngineError> {
        self.catalog.job(job)?;
        self.merger.close_job(job);
        Ok(())
    }

    /// Frees the segments of a savepoint. Nothing happens if there is none.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it is a checkpoint.
    pub async fn discard_savepoint(&self, job: &JobId, id: CheckpointId) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::DiscardSavepoint(job.clone(), id)).await?;
        self.merger.checkpoint_barrier(job, id);
        Ok(())
    }

    /// A checkpoint uses segments of earlier ones, which live as long as it does. Returns those that may not be reused and
    /// have to be stored again. With a run it is refused once the job is in another one.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if the checkpoint takes nothing.
    pub async fn reuse(
        &self,
        job: &JobId,
        id: CheckpointId,
        segments: Vec<SegmentId>,
        run: Option<JobRun>,
    ) -> Result<HashSet<SegmentId>, EngineError> {
        let named = segments.clone();
        self.admit_write().await?;
        let outcome = self.catalog.execute(Command::Reuse(job.clone(), id, segments, run)).await?;
        let Outcome::Reused(refused) = outcome else { return Err(EngineError::Unexpected("a reuse")) };
        let refused: HashSet<SegmentId> = refused.into_iter().collect();
        let again = named.iter().filter(|id| refused.contains(id)).count();
        self.metrics.reused.of(ReuseOutcome::Reused).inc_by((named.len() - again) as u64);
        self.metrics.reused.of(ReuseOutcome::Refused).inc_by(again as u64);
        Ok(refused)
    }

    /// A job goes on from a checkpoint. Checkpoints of the job that had begun are aborted. With a run it is refused once the job is in
    /// another one.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if there is none to go on from, [`EngineError::Refused`].
    pub async fn go_on(
        &self,
        GoOn { job, from, checkpoint, claim }: GoOn,
        run: Option<JobRun>,
    ) -> Result<Restored, EngineError> {
        let checkpoint = self.to_go_on_from(&job, &from, checkpoint, claim)?;
        let restore = RestorePoint { job: job.clone(), from: from.clone(), checkpoint, claim };
        self.admit_write().await?;
        self.catalog.execute(in_run(run, &job, Command::Restore(restore))).await?;
        self.merger.close_job(&job);
        if claim == Claim::Claim {
            self.merger.close_job(&from);
        }
        let owner = if claim == Claim::Claim { job } else { from };
        let (catalog, of) = (self.catalog.clone(), owner.clone());
        let segments = aside("a restore", move || catalog.checkpoint_segments(&of, checkpoint)).await??;
        Ok(Restored { owner, checkpoint, segments })
    }

    /// Whether a job may go on from a checkpoint, and from which: the newest if none was named.
    ///
    /// # Errors
    /// As [`Self::go_on`] would answer; nothing changes.
    pub fn may_go_on(&self, GoOn { job, from, checkpoint, claim }: GoOn) -> Result<CheckpointId, EngineError> {
        self.check()?;
        let checkpoint = self.to_go_on_from(&job, &from, checkpoint, claim)?;
        self.catalog.check_restore(&RestorePoint { job, from, checkpoint, claim })?;
        Ok(checkpoint)
    }

    fn to_go_on_from(
        &self,
        job: &JobId,
        from: &JobId,
        checkpoint: Option<CheckpointId>,
        claim: Claim,
    ) -> Result<CheckpointId, EngineError> {
        Ok(match (checkpoint, claim) {
            (Some(checkpoint), _) => checkpoint,
            (None, Claim::Claim) => self.catalog.latest_to_claim(job, from)?,
            (None, Claim::NoClaim) => self.catalog.latest_completed(from)?.id,
        })
    }

    /// A job goes on from a checkpoint that stays another job's, of another shard. Checkpoints of the job that had begun are aborted.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn go_on_from_elsewhere(&self, job: &JobId) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::GoOn(job.clone())).await?;
        self.merger.close_job(job);
        Ok(())
    }

    /// The shard that a job is in, if it was placed in another one.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub fn placed(&self, job: &JobId) -> Result<Option<u32>, EngineError> {
        self.check()?;
        Ok(self.catalog.placed(job))
    }

    /// Whether a job may go to another shard.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it has state here.
    pub fn may_be_placed(&self, job: &JobId) -> Result<(), EngineError> {
        self.check()?;
        Ok(self.catalog.may_be_placed(job)?)
    }

    /// A job is in another shard from here on. What it had begun here is given up. Nothing happens if it is there.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it has state here.
    pub async fn place_job(&self, job: &JobId, shard: u32) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::PlaceJob(job.clone(), shard)).await?;
        self.merger.close_job(job);
        Ok(())
    }

    /// A job has ended; `retention` says whether its completed checkpoints stay, or the settings do. Savepoints do, always.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if the job is not known.
    pub async fn end_job(
        &self,
        job: &JobId,
        end: JobEnd,
        retention: Option<Retention>,
    ) -> Result<Leavings, EngineError> {
        self.end_job_in(None, job, end, retention).await
    }

    /// The same; with a run it is refused once the job is in another one.
    ///
    /// # Errors
    /// [`EngineError::Refused`]; nothing changed then.
    pub async fn end_job_in(
        &self,
        run: Option<JobRun>,
        job: &JobId,
        end: JobEnd,
        retention: Option<Retention>,
    ) -> Result<Leavings, EngineError> {
        let leavings = leavings(end, retention.unwrap_or(self.settings.checkpointing.retention));
        self.admit_write().await?;
        self.catalog.execute(in_run(run, job, Command::EndJob(job.clone(), end, leavings))).await?;
        self.merger.close_job(job);
        Ok(leavings)
    }

    /// A job in this run has ended, with what it leaves. Its completed checkpoints before `since` stay in any case.
    ///
    /// # Errors
    /// [`EngineError::Refused`]; nothing changed then.
    pub async fn end_job_since(
        &self,
        run: JobRun,
        job: &JobId,
        (end, leavings): (JobEnd, Leavings),
        since: CheckpointId,
    ) -> Result<(), EngineError> {
        self.admit_write().await?;
        let command = Command::EndJobSince(job.clone(), end, leavings, since);
        self.catalog.execute(in_run(Some(run), job, command)).await?;
        self.merger.close_job(job);
        Ok(())
    }
}

/// What somebody asks of a job, in this run and no other if one is given.
fn in_run(run: Option<JobRun>, job: &JobId, command: Command) -> Command {
    match run {
        Some(run) => Command::InRun(job.clone(), run, Box::new(command)),
        None => command,
    }
}

/// The checkpoints that a job leaves.
///
/// A suspended job is not over: another job manager may go on with it, so its checkpoints stay.
///
/// # Source
/// `CheckpointRetentionPolicy` and `CheckpointProperties` of Flink.
pub fn leavings(end: JobEnd, retention: Retention) -> Leavings {
    match (retention, end) {
        (_, JobEnd::Suspended) => Leavings::Keep,
        (Retention::NoExternalizedCheckpoints, _) | (_, JobEnd::Finished) => Leavings::Delete,
        (Retention::DeleteOnCancellation, JobEnd::Canceled) => Leavings::Delete,
        (Retention::DeleteOnCancellation, JobEnd::Failed) => Leavings::Keep,
        (Retention::RetainOnCancellation, JobEnd::Canceled | JobEnd::Failed) => Leavings::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Flink's `CheckpointRetentionPolicy`, but that a suspended job keeps its checkpoints.
    #[test]
    fn what_a_job_leaves_depends_on_its_end_and_on_its_retention_mode() {
        use JobEnd::{Canceled, Failed, Finished, Suspended};
        use Leavings::{Delete, Keep};
        let table = [
            (Retention::NoExternalizedCheckpoints, [Delete, Delete, Delete, Keep]),
            (Retention::DeleteOnCancellation, [Delete, Delete, Keep, Keep]),
            (Retention::RetainOnCancellation, [Delete, Keep, Keep, Keep]),
        ];
        for (retention, expected) in table {
            let left = [Finished, Canceled, Failed, Suspended].map(|end| leavings(end, retention));
            assert_eq!(left, expected, "{retention}");
        }
    }
}
