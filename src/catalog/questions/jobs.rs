//! Jobs, their checkpoints, and what a job is restored from.

use std::sync::Arc;

use crate::catalog::Catalog;
use crate::catalog::command::{Refusal, RestorePoint};
use crate::catalog::state::{CatalogState, CheckpointSegment, CheckpointView, JobView, SegmentView};
use crate::error::ErrorKind;
use crate::model::{CheckpointId, CheckpointState, JobId, JobRun, SegmentId};

/// Why a question about a job has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No such job.
    #[error("job {0} is not known")]
    UnknownJob(JobId),
    /// The job has no checkpoint to go on from.
    #[error("job {0} has no completed checkpoint")]
    NoneCompleted(JobId),
    /// No such checkpoint.
    #[error("checkpoint {1} of job {0} is not known")]
    UnknownCheckpoint(JobId, CheckpointId),
    /// The checkpoint has not completed.
    #[error("checkpoint {1} of job {0} is not complete")]
    Incomplete(JobId, CheckpointId),
    /// The checkpoint was given up.
    #[error("checkpoint {1} of job {0} is aborted")]
    Aborted(JobId, CheckpointId),
    /// Newer checkpoints took its place.
    #[error("checkpoint {1} of job {0} is subsumed: its segments may be gone")]
    Subsumed(JobId, CheckpointId),
}

impl NoAnswer {
    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownJob(_) | Self::NoneCompleted(_) | Self::UnknownCheckpoint(..) | Self::Subsumed(..) => {
                ErrorKind::NotFound
            }
            Self::Incomplete(..) | Self::Aborted(..) => ErrorKind::Conflict,
        }
    }
}

impl Catalog {
    /// What is known of a job.
    ///
    /// # Errors
    /// [`NoAnswer::UnknownJob`].
    pub fn job(&self, job: &JobId) -> Result<JobView, NoAnswer> {
        known_job(&self.view(), job)
    }

    /// Jobs that have a coordinator, with what it remembers.
    pub fn coordinators(&self) -> Vec<(JobId, Arc<str>)> {
        self.view().coordinators()
    }

    /// All jobs in the order of their ids.
    pub fn jobs(&self) -> Vec<JobView> {
        let (mut jobs, mut next) = (vec![], 0);
        self.in_pieces(|state, goes_on| state.each_job(&mut next, goes_on, |view| jobs.push(view)).then_some(()));
        jobs.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        jobs
    }

    /// Whether a segment for `checkpoint` would be refused now; a door asks before it reads a body. Returns the run of the job.
    ///
    /// # Errors
    /// The refusal that a store would be answered with.
    pub fn would_take(&self, job: &JobId, checkpoint: CheckpointId) -> Result<JobRun, Refusal> {
        self.view().would_take(job, checkpoint)
    }

    /// The run that a job is in; zero if nothing is known of it.
    pub fn run_of(&self, job: &JobId) -> JobRun {
        self.view().run_of(job)
    }

    /// All segments that are held for a savepoint, also those that are on their way.
    pub fn held_by_savepoint(&self, job: &JobId, id: CheckpointId) -> Vec<SegmentId> {
        let (mut found, mut after) = (vec![], None);
        self.in_pieces(|state, goes_on| {
            state.each_of_savepoint(job, id, &mut after, goes_on, |id| found.push(id)).then_some(())
        });
        found
    }

    /// Whether a checkpoint is a savepoint.
    pub fn is_savepoint(&self, job: &JobId, checkpoint: CheckpointId) -> bool {
        self.view().is_savepoint(job, checkpoint)
    }

    /// A checkpoint that is not subsumed.
    pub fn checkpoint(&self, job: &JobId, id: CheckpointId) -> Option<CheckpointView> {
        self.view().checkpoint(job, id)
    }

    /// Checkpoints of a job that are not subsumed, in order.
    ///
    /// # Errors
    /// [`NoAnswer::UnknownJob`].
    pub fn checkpoints(&self, job: &JobId) -> Result<Vec<CheckpointView>, NoAnswer> {
        let state = self.view();
        known_job(&state, job)?;
        Ok(state.checkpoints(job))
    }

    /// The newest completed checkpoint or savepoint of a job.
    ///
    /// # Errors
    /// [`NoAnswer::UnknownJob`], [`NoAnswer::NoneCompleted`].
    pub fn latest_completed(&self, job: &JobId) -> Result<CheckpointView, NoAnswer> {
        latest_completed(&self.view(), job)
    }

    /// The newest checkpoint of `from` that `job` may claim. If it has claimed one before, its answer was lost.
    ///
    /// # Errors
    /// As [`Self::latest_completed`] of `from`.
    pub fn latest_to_claim(&self, job: &JobId, from: &JobId) -> Result<CheckpointId, NoAnswer> {
        let state = self.view();
        let latest = latest_completed(&state, from).map(|latest| latest.id);
        match (latest, state.claimed_from(job, from)) {
            (Ok(latest), claimed) => Ok(claimed.map_or(latest, |claimed| claimed.max(latest))),
            (Err(_), Some(claimed)) => Ok(claimed),
            (Err(why), None) => Err(why),
        }
    }

    /// Whether a job may go on from a checkpoint.
    ///
    /// # Errors
    /// The refusal that [`crate::catalog::command::Command::Restore`] would be answered with.
    pub fn check_restore(&self, restore: &RestorePoint) -> Result<(), Refusal> {
        self.view().check_restore(restore).map(|_| ())
    }

    /// The shard that a job is in, if it was placed in another one.
    pub fn placed(&self, job: &JobId) -> Option<u32> {
        self.view().placed(job)
    }

    /// Whether a job may go to another shard.
    ///
    /// # Errors
    /// [`Refusal::JobStays`].
    pub fn may_be_placed(&self, job: &JobId) -> Result<(), Refusal> {
        self.view().may_be_placed(job)
    }

    /// Buckets that are deleted here, and maybe not in other shards yet.
    pub fn ending_buckets(&self) -> Vec<String> {
        self.view().ending_buckets()
    }

    /// The segments of a completed checkpoint, in the order in which a job restores them. If the checkpoint is gone at the end of
    /// the question, it cannot be restored; if not, they are all there.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub fn segments_to_restore(&self, job: &JobId, checkpoint: CheckpointId) -> Result<Vec<SegmentId>, NoAnswer> {
        self.while_it_can_be_restored(job, checkpoint, |ids| ids)
    }

    /// The same with what is known of each.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub fn checkpoint_segments(&self, job: &JobId, checkpoint: CheckpointId) -> Result<Vec<SegmentView>, NoAnswer> {
        self.while_it_can_be_restored(job, checkpoint, |ids| self.segments(ids))
    }

    fn while_it_can_be_restored<T>(
        &self,
        job: &JobId,
        checkpoint: CheckpointId,
        ask: impl FnOnce(Vec<SegmentId>) -> T,
    ) -> Result<T, NoAnswer> {
        let before = to_restore(&self.view(), job, checkpoint)?;
        let told = ask(self.look_at_checkpoint(job, checkpoint).into_iter().map(|segment| segment.id).collect());
        // Last: what was freed meanwhile was left out.
        if to_restore(&self.view(), job, checkpoint)? != before {
            return Err(NoAnswer::Subsumed(job.clone(), checkpoint));
        }
        Ok(told)
    }

    fn look_at_checkpoint(&self, job: &JobId, checkpoint: CheckpointId) -> Vec<CheckpointSegment> {
        let mut look = self.view().begin_checkpoint_look(job, checkpoint);
        self.in_pieces(|state, goes_on| state.look_at_checkpoint(job, checkpoint, &mut look, goes_on).then_some(()));
        // Without the lock: there may be millions of them.
        look.found.sort_unstable();
        look.found.dedup();
        look.found
    }
}

/// A checkpoint that can be restored.
fn to_restore(state: &CatalogState, job: &JobId, checkpoint: CheckpointId) -> Result<CheckpointView, NoAnswer> {
    let known = known_job(state, job)?;
    let Some(found) = state.checkpoint(job, checkpoint) else {
        return Err(match known.subsumed >= Some(checkpoint) {
            true => NoAnswer::Subsumed(job.clone(), checkpoint),
            false => NoAnswer::UnknownCheckpoint(job.clone(), checkpoint),
        });
    };
    match found.state {
        CheckpointState::Completed => Ok(found),
        CheckpointState::Pending => Err(NoAnswer::Incomplete(job.clone(), checkpoint)),
        CheckpointState::Aborted => Err(NoAnswer::Aborted(job.clone(), checkpoint)),
    }
}

fn known_job(state: &CatalogState, job: &JobId) -> Result<JobView, NoAnswer> {
    state.job(job).ok_or_else(|| NoAnswer::UnknownJob(job.clone()))
}

fn latest_completed(state: &CatalogState, job: &JobId) -> Result<CheckpointView, NoAnswer> {
    known_job(state, job)?;
    let latest = state.checkpoints(job).into_iter().rev().find(|known| known.state == CheckpointState::Completed);
    latest.ok_or_else(|| NoAnswer::NoneCompleted(job.clone()))
}
