//! Ways through what checkpoints and savepoints hold, and how far somebody is on them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::pages::Pages;
use crate::model::{CheckpointId, CheckpointKind, JobId, SegmentId};

/// The work that is left to be done, in order.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) walks: VecDeque<HeldWalk>,
    /// Number of the last walk that was added, and of the last one that has ended.
    pub(super) added: u64,
    pub(super) ended: u64,
    /// The claim that is being carried out. There is one at a time.
    pub(super) handing: Option<Handing>,
}

/// A way through some segments of a job that checkpoints hold.
#[derive(Debug)]
pub(super) struct HeldWalk {
    pub(super) job: JobId,
    pub(super) index: HeldIndex,
    pub(super) at: HeldAt,
    pub(super) through: CheckpointId,
    /// Whether it carries out the claim; otherwise it frees what is dead.
    pub(super) hands_over: bool,
}

/// The index that a walk goes along.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeldIndex {
    LastUsed,
    Savepoints,
}

/// A checkpoint of one job whose segments become another's.
#[derive(Debug)]
pub(super) struct Handing {
    pub(super) from: JobId,
    pub(super) to: JobId,
    pub(super) checkpoint: CheckpointId,
    pub(super) kind: CheckpointKind,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.walks.is_empty()
    }

    pub(super) fn add(&mut self, walk: HeldWalk) {
        self.walks.push_back(walk);
        self.added += 1;
    }
}

/// A place in an index of what checkpoints or savepoints hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldAt {
    pub(super) checkpoint: CheckpointId,
    /// The last segment that was passed there.
    pub(super) after: Option<SegmentId>,
}

impl HeldAt {
    /// Before all that `checkpoint` holds.
    pub(super) fn before(checkpoint: CheckpointId) -> Self {
        Self { checkpoint, after: None }
    }
}

/// Tells what is held from `at` to the checkpoint `through`, while `goes_on`. True at the end; otherwise `at` is where it goes
/// on.
pub(super) fn each_held(
    index: &BTreeMap<CheckpointId, Pages<SegmentId, ()>>,
    at: &mut HeldAt,
    through: CheckpointId,
    goes_on: &mut dyn FnMut() -> bool,
    mut tell: impl FnMut(SegmentId),
) -> bool {
    let begin = *at;
    for (checkpoint, held) in index.range(begin.checkpoint..=through) {
        let after = begin.after.filter(|_| *checkpoint == begin.checkpoint);
        for (id, ()) in held.iter_from(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)) {
            tell(*id);
            *at = HeldAt { checkpoint: *checkpoint, after: Some(*id) };
            if !goes_on() {
                return false;
            }
        }
    }
    true
}
