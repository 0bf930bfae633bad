//! How a job stands, for those who look and for workers that come in.

use std::collections::BTreeMap;
use std::time::Duration;

use super::asking::JobHandle;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::events::TriggerNotice;
use crate::coordinator::job::JobActor;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::state::pending::CheckpointPhase;
use crate::coordinator::state::retained::{RetainedCheckpoint, RetainedKind};
use crate::coordinator::topology::OperatorSpec;
use crate::model::CheckpointId;

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

impl JobHandle {
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
            if actor.coordinator.attempt() != actor.recorded_attempt {
                return Err(CoordinatorError::Busy);
            }
            let told =
                actor.coordinator.pending().iter().filter(|(_, pending)| pending.phase != CheckpointPhase::Beginning);
            let pending = told.map(|(id, pending)| actor.notice(*id, pending)).collect();
            Ok(Greeting { standing: standing_of(actor), pending, last_event: actor.last_event_for_whoever_comes() })
        });
        asked.await?
    }
}

pub(super) fn standing_of(actor: &JobActor) -> JobStanding {
    let coordinator = &actor.coordinator;
    let (running, finished) = coordinator.tasks().counts();
    // The savepoint that the job stops with is told to be complete, too.
    let own = |one: &&RetainedCheckpoint| one.kind != RetainedKind::Foreign;
    JobStanding {
        phase: coordinator.phase(),
        // One that is not durable is told to nobody.
        attempt: actor.recorded_attempt,
        restarts: actor.recorded_attempt.saturating_sub(coordinator.first_attempt()),
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
