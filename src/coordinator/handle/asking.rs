//! [`JobHandle`]: asks the task that has the coordinator, and waits for its answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::coordinator::error::CoordinatorError;
use crate::coordinator::events::EventLog;
use crate::coordinator::job::{JobActor, Message};
use crate::coordinator::memory::AckMemory;
use crate::coordinator::metadata::CheckpointMetadata;
use crate::coordinator::record::CheckpointOfJob;
use crate::coordinator::storage::JobStorage;
use crate::engine::{EngineError, Refusal};
use crate::model::JobRun;

/// Whoever asks waits so long for storage.
const PATIENCE: Duration = Duration::from_secs(60);

/// The metadata of a checkpoint that was read last.
pub(in crate::coordinator) type KnownStart = Option<(CheckpointOfJob, Arc<CheckpointMetadata>)>;

/// The coordinator of one job. Clones share it.
#[derive(Clone)]
pub struct JobHandle {
    pub(in crate::coordinator) inbox: mpsc::Sender<Message>,
    /// What its workers are told.
    pub events: Arc<EventLog>,
    pub(in crate::coordinator) storage: JobStorage,
    /// The metadata that tasks start from now: all of them ask.
    pub(in crate::coordinator) start: Arc<Mutex<KnownStart>>,
    pub(in crate::coordinator) acks: AckMemory,
    /// Where metadata of checkpoints is published, in which bucket and behind which prefix.
    pub(in crate::coordinator) folder: Option<(String, String)>,
}

crate::runtime::opaque_debug!(JobHandle);

impl JobHandle {
    /// Asks the coordinator.
    pub(in crate::coordinator) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut JobActor) -> T + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        self.ask_later(|actor, reply| crate::runtime::reply(reply, ask(actor))).await
    }

    /// Asks the coordinator, which answers when it can.
    pub(super) async fn ask_later<T: Send + 'static>(
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

    /// Asks the coordinator what depends on the attempt. That the job is at another one is told once that is durable: another owner
    /// would give its number to another one.
    pub(super) async fn ask_of_attempt<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut JobActor) -> Result<T, CoordinatorError> + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let asked = self.ask_later(|actor, reply| match ask(actor) {
            Err(CoordinatorError::OtherAttempt(_)) => tell_other_attempt(actor, reply),
            answer => crate::runtime::reply(reply, answer),
        });
        asked.await?
    }

    /// An error as whoever wanted to change the job is told it: where another job has its name by now, to repeat the request would
    /// change that one.
    pub(super) fn of_this_job(&self, error: CoordinatorError) -> CoordinatorError {
        let (job, now) = (self.storage.job(), self.storage.engine().run_of(self.storage.job()));
        match error {
            CoordinatorError::Ended if now != self.run() && now != JobRun::default() => {
                EngineError::Refused(Refusal::JobBeganAnew(job.clone())).into()
            }
            error => error,
        }
    }

    /// The run of the job that it coordinates.
    pub fn run(&self) -> JobRun {
        self.storage.run()
    }
}

/// The job is at another attempt, or will be as soon as that is durable.
pub(super) fn tell_other_attempt<T: Send + 'static>(
    actor: &mut JobActor,
    reply: oneshot::Sender<Result<T, CoordinatorError>>,
) {
    actor.once_attempt_is_durable(Box::new(move |actor| {
        crate::runtime::reply(reply, Err(CoordinatorError::OtherAttempt(actor.recorded_attempt)));
    }));
}
