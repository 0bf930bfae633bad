//! Lanes: whose segments share physical files.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{JobId, Label, StateScope, SubtaskKey};

/// The segments that share physical files. A physical file belongs to one lane for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lane {
    /// The job; `None` when the files of all jobs are merged.
    pub job: Option<JobId>,
    /// The scope.
    pub scope: StateScope,
    /// The owner of the segments within the job.
    pub of: LaneOf,
}

/// The owner of segments, within a job, that share a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LaneOf {
    /// One subtask.
    Subtask(SubtaskKey),
    /// One task manager.
    TaskManager(Label),
    /// The whole job, or all jobs.
    All,
    /// One savepoint, which is self-contained.
    Savepoint,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = self.job.as_ref().map_or("(all jobs)", JobId::as_str);
        write!(f, "{job} {}", self.scope)?;
        match &self.of {
            LaneOf::Subtask(subtask) => write!(f, " subtask {subtask}"),
            LaneOf::TaskManager(task_manager) => write!(f, " task manager {task_manager}"),
            LaneOf::All => Ok(()),
            LaneOf::Savepoint => f.write_str(" savepoint"),
        }
    }
}
