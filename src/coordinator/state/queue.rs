//! Requests for checkpoints that wait for their turn.
//!
//! # Source
//! `CheckpointRequestDecider` of Flink, but that at most one periodic request waits, where Flink queues one for each tick.

use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that may wait.
pub const QUEUE_MAX: usize = 1000;

/// Names a request, in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestNumber(pub u64);

/// How a job ends with its savepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// The last watermark is emitted before: no timer will fire any more.
    Drain,
    /// It may go on later.
    Suspend,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedCheckpoint {
    /// A checkpoint, because its time has come.
    Periodic,
    /// A checkpoint, because somebody asked.
    Checkpoint,
    /// A savepoint.
    Savepoint,
    /// A savepoint that the job stops with.
    Stop(StopMode),
}

impl WantedCheckpoint {
    /// Whether it belongs to the user.
    pub fn is_savepoint(self) -> bool {
        matches!(self, Self::Savepoint | Self::Stop(_))
    }

    /// Whether the job stops with it: Flink's synchronous savepoint.
    pub fn is_stop(self) -> bool {
        matches!(self, Self::Stop(_))
    }
}

/// A request that waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Its number.
    pub number: RequestNumber,
    /// What is asked for.
    pub wanted: WantedCheckpoint,
    /// Whether it may begin beside as many others as there may be.
    pub forced: bool,
    /// When it came.
    pub at: Duration,
}

impl CheckpointRequest {
    /// Savepoints first, then forced ones, then those of people, then the oldest.
    fn rank(&self) -> Rank {
        let periodic = self.wanted == WantedCheckpoint::Periodic;
        (!self.wanted.is_savepoint(), !self.forced, periodic, self.at, self.number)
    }
}

type Rank = (bool, bool, bool, Duration, RequestNumber);

/// Requests that wait, in the order in which they begin.
#[derive(Debug, Clone, Default)]
pub struct RequestQueue {
    waiting: BTreeMap<Rank, CheckpointRequest>,
}

impl RequestQueue {
    /// Adds a request. Returns the one that has no place: the new one among requests of people alone, the last one otherwise.
    pub fn add(&mut self, request: CheckpointRequest) -> Option<CheckpointRequest> {
        let last_is_periodic =
            || self.waiting.values().next_back().is_some_and(|last| last.wanted == WantedCheckpoint::Periodic);
        if request.wanted == WantedCheckpoint::Periodic && last_is_periodic() {
            // The one that waits is as good.
            return Some(request);
        }
        if self.waiting.len() >= QUEUE_MAX && !last_is_periodic() {
            return Some(request);
        }
        self.waiting.insert(request.rank(), request);
        if self.waiting.len() <= QUEUE_MAX {
            return None;
        }
        self.waiting.pop_last().map(|(_, dropped)| dropped)
    }

    /// The one whose turn it is.
    pub fn first(&self) -> Option<&CheckpointRequest> {
        self.waiting.values().next()
    }

    /// Takes the first one out.
    pub fn take(&mut self) -> Option<CheckpointRequest> {
        self.waiting.pop_first().map(|(_, request)| request)
    }

    /// Takes all of them out.
    pub fn take_all(&mut self) -> Vec<CheckpointRequest> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
