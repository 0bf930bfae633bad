//! Checkpoints as people look at them: how long, how large, who was late.

use std::collections::VecDeque;
use std::time::Duration;

use super::reason::FailureReason;
use super::state::pending::PendingCheckpoint;
use super::topology::{TaskId, Topology};
use crate::model::CheckpointId;

/// Checkpoints that are remembered.
const REMEMBERED: usize = 100;
/// Tasks that are named of those that are waited for.
const NAMED: usize = 16;

/// How a checkpoint went, or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFigures {
    /// Its number.
    pub id: CheckpointId,
    /// Whether it is a savepoint.
    pub savepoint: bool,
    /// `None` while it is in progress.
    pub ended: Option<Result<(), FailureReason>>,
    /// When it was triggered, in milliseconds since 1970.
    pub triggered_ms: u64,
    /// How long it took, so far.
    pub duration: Duration,
    /// Tasks that have acknowledged, and all that had to.
    pub acknowledged: (usize, usize),
    /// Bytes that were stored for it.
    pub bytes: u64,
    /// Bytes of earlier ones that it uses.
    pub bytes_reused: u64,
    /// Bytes of records in flight.
    pub bytes_in_flight: u64,
    /// The longest that a task waited for barriers.
    pub alignment_ms_max: u64,
    /// Who acknowledged last, and how long after the trigger.
    pub last: Option<(String, u32, Duration)>,
    /// Some of the tasks that have not.
    pub waiting_for: Vec<(String, u32)>,
}

impl CheckpointFigures {
    /// Of one in progress.
    pub fn of(
        id: CheckpointId,
        pending: &PendingCheckpoint,
        triggered_ms: u64,
        topology: &Topology,
        now: Duration,
    ) -> Self {
        let name = |task: TaskId| (topology.of(task).map(|spec| spec.id.clone()).unwrap_or_default(), task.subtask);
        let sum = |of: fn(&crate::coordinator::ack::TaskSnapshot) -> u64| {
            // Of what tasks say, which may be any number.
            pending.snapshots.values().map(of).fold(0, u64::saturating_add)
        };
        Self {
            id,
            savepoint: pending.wanted().is_savepoint(),
            ended: None,
            triggered_ms,
            duration: now.saturating_sub(pending.begun),
            acknowledged: (pending.snapshots.len(), pending.snapshots.len() + pending.missing.len()),
            bytes: sum(|snapshot| snapshot.bytes),
            bytes_reused: sum(|snapshot| snapshot.bytes_reused),
            bytes_in_flight: sum(|snapshot| snapshot.bytes_in_flight),
            alignment_ms_max: pending.snapshots.values().map(|snapshot| snapshot.alignment_ms).max().unwrap_or(0),
            last: pending.last.map(|(task, at)| {
                let (operator, subtask) = name(task);
                (operator, subtask, at.saturating_sub(pending.begun))
            }),
            waiting_for: pending.missing.iter().take(NAMED).map(|task| name(*task)).collect(),
        }
    }
}

/// The last checkpoints that are over, the newest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<CheckpointFigures>);

impl History {
    /// One is over.
    pub fn add(&mut self, figures: CheckpointFigures) {
        self.0.push_front(figures);
        self.0.truncate(REMEMBERED);
    }

    /// The newest first.
    pub fn iter(&self) -> impl Iterator<Item = &CheckpointFigures> {
        self.0.iter()
    }
}
