//! Changes of a job that people ask for: its end, a restore, other settings. One is under way at a time, and comes to its end as it was
//! asked for. The same end again is answered with it; anything else is refused meanwhile: begun beside it, it would act on what the
//! first one leaves.

use super::error::CoordinatorError;
use super::events::CoordinatorEvent;
use super::job::{AfterEnd, JobActor, JobChange, Message};
use super::record::CheckpointOfJob;
use super::state::retained::RetainedKind;
use crate::config::Retention;
use crate::engine::EngineError;
use crate::engine::jobs::leavings;
use crate::error::chain;
use crate::model::{CheckpointId, JobEnd, JobId, Leavings};

impl JobActor {
    /// Refuses a change of the job while another one is under way.
    ///
    /// # Errors
    /// [`CoordinatorError::BeingEnded`]; [`CoordinatorError::Busy`] during a restore, which is over soon.
    pub(super) fn may_change(&self) -> Result<(), CoordinatorError> {
        match &self.changing {
            None => Ok(()),
            Some(JobChange::End { state, .. }) => Err(CoordinatorError::BeingEnded(*state)),
            Some(JobChange::Restore { .. }) => Err(CoordinatorError::Busy),
        }
    }

    /// Refuses to have a checkpoint deleted that the job takes, that it would begin from if a task failed now, or that it is about to
    /// begin from.
    ///
    /// # Errors
    /// [`CoordinatorError::InProgress`], [`CoordinatorError::InUse`].
    pub(super) fn does_without(&self, of: &JobId, id: CheckpointId) -> Result<(), CoordinatorError> {
        let job = self.storage.job();
        if job == of && self.coordinator.pending().contains_key(&id) {
            return Err(CoordinatorError::InProgress(id));
        }
        let is_it = |from: &CheckpointOfJob| from.job == of.as_str() && from.checkpoint == id.0;
        let begins = !self.coordinator.phase().has_begun() && self.remembered.from.as_ref().is_some_and(is_it);
        let chosen = match &self.changing {
            Some(JobChange::Restore { from, checkpoint }) => from == of && checkpoint.is_none_or(|chosen| chosen == id),
            Some(JobChange::End { .. }) | None => false,
        };
        match begins || chosen || self.newest().as_ref().is_some_and(is_it) {
            true => Err(CoordinatorError::InUse(id, job.clone())),
            false => Ok(()),
        }
    }

    /// Ends the job, once nothing is being stored any more.
    pub(super) fn end(&mut self, state: JobEnd, retention: Option<Retention>, then: AfterEnd) {
        let wanted = (state, retention.unwrap_or(self.coordinator.rules().retention));
        if let Some(JobChange::End { state, retention, asked }) = &mut self.changing
            && (*state, *retention) == wanted
        {
            return asked.push(then);
        }
        if let Err(error) = self.may_change() {
            return then(Err(error));
        }
        let (state, retention) = wanted;
        self.changing = Some(JobChange::End { state, retention, asked: vec![then] });
        let now = self.now();
        self.coordinator.halt(now);
        self.when_quiet = Some(Box::new(move |actor| actor.end_in_storage(state, retention)));
    }

    fn end_in_storage(&mut self, state: JobEnd, retention: Retention) {
        let kept = leavings(state, retention) == Leavings::Keep;
        let own = self.coordinator.retained().iter().filter(|one| one.kind == RetainedKind::Checkpoint);
        let own: Vec<_> = own.filter(|_| !kept).map(|one| (one.id, self.copies_of(one.id))).collect();
        let (storage, since) = (self.storage.clone(), self.remembered.first());
        self.ending = true;
        self.alongside(Box::pin(async move {
            // Those before its first are not its own, and stay, but for what it has claimed.
            let claimed: Vec<CheckpointId> = own.iter().map(|(id, _)| *id).filter(|id| *id < since).collect();
            for (id, copies) in own {
                storage.unpublish_copies(id, copies).await;
            }
            let left = leavings(state, retention);
            let ended = storage.engine().end_job_since(storage.run(), storage.job(), (state, left), since).await;
            // Not before: a job that was not ended goes on from them.
            for id in claimed.into_iter().filter(|_| ended.is_ok()) {
                storage.free_subsumed(since, id).await;
            }
            let message: Message = Box::new(move |actor| match ended {
                Ok(()) => actor.has_ended(state, kept),
                Err(error) => actor.was_not_ended(error),
            });
            message
        }));
    }

    fn has_ended(&mut self, state: JobEnd, kept: bool) {
        let now = self.now();
        self.coordinator.end(now);
        self.events.publish(CoordinatorEvent::End { state, kept });
        self.over = true;
        self.who_asked_for_the_end().into_iter().for_each(|asked| asked(Ok(kept)));
    }

    /// The job goes on as it was; if all its tasks are over, it tries again in a moment.
    fn was_not_ended(&mut self, error: EngineError) {
        tracing::warn!(job = %self.storage.job(), error = chain(&error), "the job was not ended");
        let asked = self.who_asked_for_the_end();
        let now = self.now();
        self.coordinator.resume(now);
        self.ending = false;
        self.write_record(std::time::Duration::ZERO);
        let mut told = Some(CoordinatorError::from(error));
        for asked in asked {
            asked(Err(told.take().unwrap_or(CoordinatorError::Busy)));
        }
    }

    fn who_asked_for_the_end(&mut self) -> Vec<AfterEnd> {
        match self.changing.take() {
            Some(JobChange::End { asked, .. }) => asked,
            Some(JobChange::Restore { .. }) | None => vec![],
        }
    }
}
