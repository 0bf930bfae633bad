//! Words for checkpoints and for the ends of jobs, as Flink has them. Variants stand in the catalog's records: their order
//! may not change.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a checkpoint belongs to the system or to the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckpointKind {
    /// Subsumed by newer ones.
    #[default]
    Checkpoint,
    /// Self-contained, never subsumed; lives until it is discarded.
    Savepoint,
}

/// The life of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckpointState {
    /// Takes segments.
    Pending,
    /// Complete: a job can be restored from it.
    Completed,
    /// Given up; its segments are freed and late ones refused.
    Aborted,
}

/// Whether a restored checkpoint becomes the job's own: Flink's `RestoreMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Its segments are the job's, which reuses and frees them. The job it came from has no say in them any more.
    Claim,
    /// The job reads it, and never reuses or frees it.
    NoClaim,
}

/// The way in which a job ended: Flink's `JobStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEnd {
    /// It read all its input.
    Finished,
    /// A user cancelled it.
    Canceled,
    /// It failed for good.
    Failed,
    /// Its job manager stopped; another one may go on with it.
    Suspended,
}

/// As Flink names it.
impl fmt::Display for JobEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "FINISHED",
            Self::Canceled => "CANCELED",
            Self::Failed => "FAILED",
            Self::Suspended => "SUSPENDED",
        })
    }
}

/// The fate of the checkpoints of a job that ended. Savepoints stay either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leavings {
    /// Completed ones stay, to be restored from; everything else is freed.
    Keep,
    /// All are freed, and the job is forgotten.
    Delete,
}
