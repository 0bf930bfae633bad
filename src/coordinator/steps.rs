//! [`StepQueue`]: what storage is asked about checkpoints, and in which order: of one checkpoint one step after the other.

use std::collections::{BTreeMap, VecDeque};

use crate::model::CheckpointId;

/// What storage is asked about a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageStep {
    /// Its number is reserved.
    Begin {
        /// The checkpoint.
        id: CheckpointId,
        /// Whether it is recorded as a savepoint.
        savepoint: bool,
    },
    /// Its metadata is stored, and it completes.
    Store(CheckpointId),
    /// What it has stored is freed: it was given up.
    CleanAborted(CheckpointId),
    /// What it has alone is freed.
    CleanSubsumed(CheckpointId),
}

impl StorageStep {
    /// The checkpoint.
    pub(super) fn id(&self) -> CheckpointId {
        match self {
            Self::Begin { id, .. } | Self::Store(id) | Self::CleanAborted(id) | Self::CleanSubsumed(id) => *id,
        }
    }

    fn cleans(&self) -> bool {
        matches!(self, Self::CleanAborted(_) | Self::CleanSubsumed(_))
    }
}

/// Steps on their way, and those that wait for them.
#[derive(Debug, Default)]
pub(super) struct StepQueue {
    /// Checkpoints of which a step is on its way, with those behind it.
    queued: BTreeMap<CheckpointId, VecDeque<StorageStep>>,
    /// Cleaning that waits for its turn, one after the other.
    waits_to_clean: VecDeque<StorageStep>,
    cleaning: bool,
}

impl StepQueue {
    /// Takes a step in. Returns it if it begins now.
    pub(super) fn add(&mut self, step: StorageStep, cleans_in_parallel: bool) -> Option<StorageStep> {
        match self.queued.get_mut(&step.id()) {
            // Another step of the same checkpoint is on its way.
            Some(queue) => queue.push_back(step),
            None if step.cleans() && !cleans_in_parallel && self.cleaning => self.waits_to_clean.push_back(step),
            None => return Some(self.begin(step)),
        }
        None
    }

    fn begin(&mut self, step: StorageStep) -> StorageStep {
        self.queued.entry(step.id()).or_default();
        self.cleaning |= step.cleans();
        step
    }

    /// A step of a checkpoint has ended, maybe one that cleaned it. Returns those that begin now.
    pub(super) fn ended(&mut self, id: CheckpointId, cleaned: bool, cleans_in_parallel: bool) -> Vec<StorageStep> {
        self.cleaning &= !cleaned;
        let mut begin = vec![];
        match self.queued.get_mut(&id).and_then(VecDeque::pop_front) {
            Some(step) => begin.push(self.begin(step)),
            None => drop(self.queued.remove(&id)),
        }
        if cleaned && let Some(step) = self.waits_to_clean.pop_front() {
            begin.extend(self.add(step, cleans_in_parallel));
        }
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::StorageStep::{Begin, CleanAborted, CleanSubsumed, Store};
    use super::*;

    const fn chk(id: u64) -> CheckpointId {
        CheckpointId(id)
    }

    #[test]
    fn steps_of_one_checkpoint_follow_each_other_and_those_of_others_go_beside_them() {
        let mut queue = StepQueue::default();
        let begin = |id| Begin { id: chk(id), savepoint: false };

        assert_eq!(queue.add(begin(1), true), Some(begin(1)));
        assert_eq!(queue.add(CleanAborted(chk(1)), true), None);
        assert_eq!(queue.add(begin(2), true), Some(begin(2)));
        assert_eq!(queue.ended(chk(2), false, true), []);
        assert_eq!(queue.add(Store(chk(2)), true), Some(Store(chk(2))));
        assert_eq!(queue.ended(chk(1), false, true), [CleanAborted(chk(1))]);
        assert_eq!(queue.ended(chk(1), true, true), []);
    }

    /// `true` cleans them beside each other; `false` the next one when one is done, in the order in which they went.
    #[test]
    fn s5_10_checkpoints_are_cleaned_beside_each_other_or_one_after_the_other() {
        for parallel in [true, false] {
            let mut queue = StepQueue::default();
            let steps = [CleanSubsumed(chk(1)), CleanAborted(chk(2)), CleanSubsumed(chk(3))];

            let at_once: Vec<_> = steps.into_iter().filter_map(|step| queue.add(step, parallel)).collect();

            if parallel {
                assert_eq!(at_once, steps);
                continue;
            }
            assert_eq!(at_once, steps[..1]);
            assert_eq!(queue.add(Store(chk(4)), parallel), Some(Store(chk(4))), "only cleaning waits");
            assert_eq!(queue.ended(chk(4), false, parallel), []);
            assert_eq!(queue.ended(chk(1), true, parallel), steps[1..2]);
            assert_eq!(queue.ended(chk(2), true, parallel), steps[2..]);
            assert_eq!(queue.ended(chk(3), true, parallel), []);
        }
    }
}
