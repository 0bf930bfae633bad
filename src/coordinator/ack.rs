//! What a task says of its part of a checkpoint.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::SegmentId;

/// How a state is given out when a job is restored: Flink's modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// By key group.
    Keyed,
    /// Its elements are dealt out.
    #[default]
    Split,
    /// Everybody gets all of it.
    Union,
    /// Everybody has the same.
    Broadcast,
    /// Records in flight; stays with its task.
    Channel,
}

/// One state of a task: elements that lie one after the other in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// How it is given out.
    pub kind: StateKind,
    /// The name of the state.
    pub name: String,
    /// The segment.
    pub segment: SegmentId,
    /// First bytes of its elements, not falling. Empty for keyed state that is read whole.
    pub offsets: Arc<[u64]>,
    /// The end of the last element.
    pub end: u64,
    /// The key groups of keyed state; empty of all other.
    pub key_groups: Range<u32>,
}

/// What a task acknowledges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskSnapshot {
    /// Its states.
    pub state: Vec<StateEntry>,
    /// Whether its operators have finished.
    pub finished: bool,
    /// Bytes that were stored for it, and bytes of earlier checkpoints that it uses again.
    pub bytes: u64,
    /// See [`Self::bytes`].
    pub bytes_reused: u64,
    /// Bytes of records in flight.
    pub bytes_in_flight: u64,
    /// Milliseconds for which barriers were waited for.
    pub alignment_ms: u64,
}

/// Why an acknowledgement makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidState {
    /// A finished task has none.
    #[error("a task whose operators have finished has no state")]
    OfFinished,
    /// Elements overlap or lie outside.
    #[error("the offsets of state {name:?} must not fall, and lie within the {len} bytes of segment {segment}")]
    Offsets {
        /// The state.
        name: String,
        /// Its segment.
        segment: SegmentId,
        /// Bytes of it.
        len: u64,
    },
    /// Key groups do not fit.
    #[error("state {name:?} has key groups {}..{}, and its task {}..{}", .has.start, .has.end, .may.start, .may.end)]
    KeyGroups {
        /// The state.
        name: String,
        /// The key groups that it names.
        has: Range<u32>,
        /// Those of its task.
        may: Range<u32>,
    },
    /// Offsets of keyed state are one for each key group.
    #[error("keyed state {name:?} has {offsets} offsets for {groups} key groups: give one for each, or none")]
    OffsetsOfKeyGroups {
        /// The state.
        name: String,
        /// The offsets.
        offsets: usize,
        /// The key groups.
        groups: usize,
    },
}

impl StateEntry {
    /// Checks it against its segment of `len` bytes and the key groups `may` of its task.
    ///
    /// # Errors
    /// [`InvalidState`].
    pub fn check(&self, len: u64, may: &Range<u32>) -> Result<(), InvalidState> {
        let rising = self.offsets.is_sorted() && self.offsets.last().is_none_or(|last| *last <= self.end);
        if !rising || self.end > len {
            return Err(InvalidState::Offsets { name: self.name.clone(), segment: self.segment, len });
        }
        if self.kind != StateKind::Keyed {
            return Ok(());
        }
        let has = &self.key_groups;
        if has.start >= has.end || has.start < may.start || has.end > may.end {
            return Err(InvalidState::KeyGroups { name: self.name.clone(), has: has.clone(), may: may.clone() });
        }
        if !self.offsets.is_empty() && self.offsets.len() != has.len() {
            let (offsets, groups) = (self.offsets.len(), has.len());
            return Err(InvalidState::OffsetsOfKeyGroups { name: self.name.clone(), offsets, groups });
        }
        Ok(())
    }

    /// The bytes of the elements `which`; all of the segment for keyed state that is read whole.
    pub fn ranges(&self, which: Range<usize>) -> Vec<(u64, u64)> {
        if self.offsets.is_empty() {
            return vec![(0, self.end)];
        }
        let end_of = |at: usize| self.offsets.get(at + 1).copied().unwrap_or(self.end);
        which.filter_map(|at| Some((*self.offsets.get(at)?, end_of(at)))).collect()
    }
}
