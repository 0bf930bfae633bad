//! A checkpoint in progress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::queue::{CheckpointRequest, WantedCheckpoint};
use crate::coordinator::ack::TaskSnapshot;
use crate::coordinator::topology::TaskId;

/// Where a checkpoint in progress stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointPhase {
    /// It is being recorded; no task knows of it.
    Beginning,
    /// Tasks take their snapshots.
    Collecting,
    /// All have acknowledged; its metadata is being stored.
    Storing,
}

/// A checkpoint in progress.
#[derive(Debug, Clone)]
pub struct PendingCheckpoint {
    /// The request that it comes from.
    pub request: CheckpointRequest,
    /// Where it stands.
    pub phase: CheckpointPhase,
    /// The attempt whose tasks take it.
    pub attempt: u64,
    /// When it was made.
    pub begun: Duration,
    /// When it is given up.
    pub expires: Duration,
    /// Whether it uses nothing of earlier ones.
    pub full: bool,
    /// Tasks that have not acknowledged.
    pub missing: BTreeSet<TaskId>,
    /// Tasks that were over when it was made.
    pub finished: BTreeSet<TaskId>,
    /// What the others have acknowledged.
    pub snapshots: BTreeMap<TaskId, TaskSnapshot>,
    /// Who acknowledged last, and when.
    pub last: Option<(TaskId, Duration)>,
}

impl PendingCheckpoint {
    /// What was asked for.
    pub fn wanted(&self) -> WantedCheckpoint {
        self.request.wanted
    }
}
