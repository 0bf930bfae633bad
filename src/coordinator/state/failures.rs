//! Counts failed checkpoints in a row: a job that cannot take any more checkpoints fails.
//!
//! # Source
//! `CheckpointFailureManager` of Flink.

use std::collections::BTreeSet;

use super::queue::WantedCheckpoint;
use crate::coordinator::reason::FailureReason;
use crate::model::CheckpointId;

/// Who failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The coordinator, or nobody in particular.
    Coordinator,
    /// A task.
    Task,
}

/// Failed checkpoints since the last one that completed.
#[derive(Debug, Clone, Default)]
pub struct FailureCount {
    in_a_row: u32,
    /// Each counts once.
    counted: BTreeSet<CheckpointId>,
    last_success: Option<CheckpointId>,
}

impl FailureCount {
    /// A checkpoint failed, or none was begun; with `tolerated` failures in a row (`None`: any number) the job goes on. Returns
    /// whether it fails.
    pub fn failed(
        &mut self,
        id: Option<CheckpointId>,
        wanted: WantedCheckpoint,
        reason: FailureReason,
        blame: Blame,
        tolerated: Option<u32>,
    ) -> bool {
        let of_a_task = blame == Blame::Task && !reason.is_of_the_coordinator();
        if of_a_task && wanted.is_stop() {
            return true;
        }
        if !of_a_task && wanted.is_savepoint() {
            return false;
        }
        if !reason.counts() || id.is_some_and(|id| self.last_success >= Some(id)) {
            return false;
        }
        let Some(tolerated) = tolerated else { return false };
        if id.is_none_or(|id| self.counted.insert(id)) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        let fails = self.in_a_row > tolerated;
        if fails {
            self.clear();
        }
        fails
    }

    /// A checkpoint or savepoint completed.
    pub fn succeeded(&mut self, id: CheckpointId) {
        if self.last_success < Some(id) {
            self.last_success = Some(id);
            self.clear();
        }
    }

    /// How many failed in a row.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    fn clear(&mut self) {
        self.in_a_row = 0;
        self.counted.clear();
    }
}
