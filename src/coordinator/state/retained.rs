//! Completed checkpoints, of which the newest are kept.
//!
//! # Source
//! `CheckpointSubsumeHelper` of Flink.

use crate::model::CheckpointId;

/// The owner of a completed checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainedKind {
    /// The job: it goes when newer ones have come.
    Checkpoint,
    /// The user, and the job has stopped with it.
    StopSavepoint,
    /// Somebody else: it was restored without being claimed, and nothing of it is deleted.
    Foreign,
}

/// A completed checkpoint that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainedCheckpoint {
    /// Its number.
    pub id: CheckpointId,
    /// Whose it is.
    pub kind: RetainedKind,
}

/// Completed checkpoints, the oldest first.
#[derive(Debug, Clone, Default)]
pub struct RetainedCheckpoints {
    kept: Vec<RetainedCheckpoint>,
}

impl RetainedCheckpoints {
    /// These, the oldest first.
    pub fn new(kept: Vec<RetainedCheckpoint>) -> Self {
        Self { kept }
    }

    /// The oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &RetainedCheckpoint> {
        self.kept.iter()
    }

    /// The newest one.
    pub fn newest(&self) -> Option<&RetainedCheckpoint> {
        self.kept.last()
    }

    /// Adds the newest one. Returns those that go for it: at most so many stay as are retained, but never goes the newest one,
    /// nor the newest that is the job's own, unless the job has stopped with a savepoint.
    pub fn add(&mut self, newest: RetainedCheckpoint, retained: usize) -> Vec<RetainedCheckpoint> {
        self.kept.push(newest);
        self.subsume(retained)
    }

    /// Returns those that go when so many are retained.
    pub fn subsume(&mut self, retained: usize) -> Vec<RetainedCheckpoint> {
        let Some(newest) = self.kept.last().copied() else { return vec![] };
        let own = self.kept.iter().rev().find(|one| one.kind == RetainedKind::Checkpoint).map(|one| one.id);
        let may_go = |one: &RetainedCheckpoint| {
            let protected = Some(one.id) == own && newest.kind != RetainedKind::StopSavepoint;
            one.id != newest.id && !protected
        };
        let mut gone = vec![];
        let mut left = self.kept.len();
        self.kept.retain(|one| {
            let goes = left > retained && may_go(one);
            if goes {
                left -= 1;
                gone.push(*one);
            }
            !goes
        });
        gone
    }
}
