//! What the coordinator decides. Whoever drives it does so in this order.

use crate::coordinator::reason::FailureReason;
use crate::coordinator::state::queue::{RequestNumber, StopMode, WantedCheckpoint};
use crate::model::CheckpointId;

/// Why all tasks have to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCause {
    /// A task has failed.
    TaskFailure,
    /// Nothing was heard of a task.
    TaskLost,
    /// Too many checkpoints failed in a row.
    CheckpointFailures,
    /// Somebody asked for it.
    Restore,
}

impl RestartCause {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TaskFailure => "TASK_FAILURE",
            Self::TaskLost => "TASK_LOST",
            Self::CheckpointFailures => "CHECKPOINT_FAILURES",
            Self::Restore => "RESTORE",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// By this checkpoint.
    Completed(CheckpointId),
    /// There is none; or the one that there was failed.
    Failed(Option<CheckpointId>, FailureReason, String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Record that a checkpoint begins, then say so ([`begun`](super::machine::Coordinator::begun)).
    Begin {
        /// Its number.
        id: CheckpointId,
        /// What it is.
        wanted: WantedCheckpoint,
        /// The request that it comes from.
        request: RequestNumber,
    },
    /// Tell the tasks to take a snapshot.
    Trigger(CheckpointId),
    /// Store the metadata of a checkpoint and record that it is complete, then say so
    /// ([`stored`](super::machine::Coordinator::stored)).
    Store(CheckpointId),
    /// It is complete and durable. Tell the tasks, if it is theirs to know.
    Completed {
        /// Its number.
        id: CheckpointId,
        /// What it was.
        wanted: WantedCheckpoint,
        /// The highest that went for it.
        last_subsumed: Option<CheckpointId>,
    },
    /// Tell the tasks that these and those before them went, after the one that they went for.
    Subsumed(CheckpointId),
    /// Tell the tasks that a checkpoint is given up.
    Aborted {
        /// Its number.
        id: CheckpointId,
        /// What it was.
        wanted: WantedCheckpoint,
        /// Why.
        reason: FailureReason,
        /// The same for people.
        message: String,
    },
    /// Free what a checkpoint that was given up has stored, then say so ([`cleaned`](super::machine::Coordinator::cleaned)).
    CleanAborted(CheckpointId),
    /// Free what only this completed checkpoint and those before it use, then say so.
    CleanSubsumed(CheckpointId),
    /// Tell whoever asked.
    Answer(RequestNumber, RequestOutcome),
    /// Record the next attempt, then tell the tasks to begin anew.
    Restart {
        /// Why.
        cause: RestartCause,
        /// The same for people.
        message: String,
    },
    /// Record what is known of the tasks: all have run, or more of them are over.
    Note,
    /// Tell the tasks to end: the savepoint that the job stops with is durable.
    Stop(CheckpointId, StopMode),
    /// All tasks are over, and so is the job.
    Finished,
}
