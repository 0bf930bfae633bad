//! What tasks report of themselves, and workers by signs of life.

use super::asking::{JobHandle, tell_other_attempt};
use super::standing::{JobStanding, standing_of};
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::job::JobActor;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::state::pending::CheckpointPhase;
use crate::coordinator::state::tasks::TaskState;
use crate::coordinator::topology::TaskId;
use crate::model::CheckpointId;

impl JobHandle {
    /// Refuses a checkpoint that tasks take no snapshot for, or have all acknowledged.
    ///
    /// # Errors
    /// [`CoordinatorError::Unknown`].
    pub async fn check_pending(&self, id: CheckpointId) -> Result<(), CoordinatorError> {
        let takes = move |actor: &mut JobActor| {
            let pending = actor.coordinator.pending().get(&id);
            pending.is_some_and(|pending| pending.phase != CheckpointPhase::Storing)
        };
        match self.ask(takes).await? {
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
                return tell_other_attempt(actor, reply);
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
                    return tell_other_attempt(actor, reply);
                }
                actor.know_worker(worker, found.iter().map(|(task, _)| *task));
            }
            actor.coordinator.report(attempt, &found, message.as_deref(), now);
            actor.settle();
            actor.note_backlog();
            actor.once_recorded(Box::new(move |actor| {
                actor.once_attempt_is_durable(Box::new(move |actor| {
                    crate::runtime::reply(reply, Ok(standing_of(actor)))
                }));
            }));
        });
        reported.await?
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
        let declined = self.ask_of_attempt(move |actor| {
            let task = actor.coordinator.topology().task(&operator, subtask);
            let task = task.ok_or(CoordinatorError::NoSuchTask(operator, subtask))?;
            let (now, current) = (actor.now(), actor.coordinator.attempt());
            match actor.coordinator.decline(id, task, attempt, why, now) {
                true => Ok(()),
                false => Err(CoordinatorError::OtherAttempt(current)),
            }
        });
        declined.await
    }

    /// A source reports whether it has a backlog. Resolves once another owner would know.
    ///
    /// # Errors
    /// [`CoordinatorError::Operators`] if it is no operator of the job.
    pub async fn report_backlog(&self, source: String, backlog: bool) -> Result<(), CoordinatorError> {
        let reported = self.ask_later(move |actor, reply| {
            let Some((operator, _)) = actor.coordinator.topology().operator(&source) else {
                let unknown = CoordinatorError::Operators(format!("the job has no operator {source:?}"));
                return crate::runtime::reply(reply, Err(unknown));
            };
            let now = actor.now();
            actor.coordinator.report_backlog(operator, backlog, now);
            actor.note_backlog();
            actor.once_recorded(Box::new(move |_| crate::runtime::reply(reply, Ok(()))));
        });
        reported.await?
    }
}
