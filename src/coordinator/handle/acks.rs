//! What tasks acknowledge: whether they may, and the segments that they name.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::asking::JobHandle;
use crate::coordinator::ack::{InvalidState, StateEntry, StateKind, TaskSnapshot};
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::state::acks::AckOutcome;
use crate::coordinator::topology::{TaskId, key_groups_of};
use crate::error::ErrorKind;
use crate::model::{CheckpointId, SegmentId, StateScope};

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

impl JobHandle {
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
        let asked = self.ask_of_attempt(move |actor| {
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
        asked.await
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
                    self.ask_of_attempt(move |actor| refuse(id, actor.coordinator.would_take(id, task, attempt)))
                        .await?;
                    return Err(error);
                }
            },
        };
        let acknowledged = self.ask_of_attempt(move |actor| {
            let now = actor.now();
            let outcome = actor.coordinator.acknowledge(id, task, attempt, snapshot, now);
            if matches!(outcome, AckOutcome::Taken { .. }) {
                actor.keep_paid(id, paid);
            }
            refuse(id, outcome).map(|()| outcome)
        });
        acknowledged.await
    }

    /// Looks the segments of a task's states up. Those of earlier checkpoints live as long as this one from here on.
    async fn resolve(
        &self,
        id: CheckpointId,
        ticket: &AckTicket,
        states: Vec<AcknowledgedState>,
        mut snapshot: TaskSnapshot,
    ) -> Result<TaskSnapshot, CoordinatorError> {
        if snapshot.finished && !states.is_empty() {
            return Err(InvalidState::OfFinished.into());
        }
        let (engine, job) = (self.storage.engine(), self.storage.job());
        let may = key_groups_of(ticket.max_parallelism, ticket.parallelism, ticket.task.subtask);
        let mut reused = vec![];
        let mut seen = BTreeSet::new();
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
        let refusals = engine.reuse(job, id, segments(&reused), Some(self.run())).await?;
        match refusals.is_empty() {
            true => Ok(()),
            false => refused("these segments cannot be used again", refusals.into_iter().collect()),
        }
    }
}

fn refuse(id: CheckpointId, outcome: AckOutcome) -> Result<(), CoordinatorError> {
    match outcome {
        AckOutcome::Taken { .. } | AckOutcome::Repeated { .. } | AckOutcome::Completed => Ok(()),
        AckOutcome::Aborted(reason) => Err(CoordinatorError::Aborted(id, reason)),
        AckOutcome::Unknown => Err(CoordinatorError::Unknown(id)),
        AckOutcome::OtherAttempt(current) => Err(CoordinatorError::OtherAttempt(current)),
    }
}
