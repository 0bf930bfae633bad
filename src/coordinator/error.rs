//! Why a coordinator did not do what it was asked.

use super::ack::InvalidState;
use super::assign::Misfit;
use super::reason::FailureReason;
use super::storage::MetadataFault;
use crate::config::JobSettingError;
use crate::engine::EngineError;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, JobEnd, JobId, SegmentId};

/// Why a coordinator did not do what it was asked. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The job drives its checkpoints itself, or there is none.
    #[error("job {0} has no coordinator: create it with coordinated = true")]
    NotCoordinated(JobId),
    /// The job had a coordinator, or none, and is over.
    #[error("job {0} has ended")]
    HasEnded(JobId),
    /// Nothing of the job is known, and what it is to go on from is a coordinator's.
    #[error(
        "job {0} is not there, and a coordinator has completed checkpoint {2} of job {1}: create job {0} first, with coordinated = true; \
         or without, if it drives its checkpoints itself"
    )]
    NotCreated(JobId, JobId, CheckpointId),
    /// The job is there, with other operators or settings.
    #[error("job {0} exists with other {1}: {2}")]
    Exists(JobId, &'static str, &'static str),
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] JobSettingError),
    /// Two jobs would write under the same names.
    #[error(
        "job {1} publishes its metadata in {0}, under the names that this one would take: choose another execution.checkpointing.dir, or \
         leave execution.checkpointing.create-subdir at true"
    )]
    FolderOfAnother(String, JobId),
    /// A setting stays as it is.
    #[error("{0} cannot change while the job exists")]
    FixedSetting(String),
    /// Unaligned checkpoints of a job with cycles.
    #[error(
        "the job is iterative: unaligned checkpoints of it count records in flight twice. Set execution.checkpointing.unaligned.forced to take them all the same"
    )]
    Iterative,
    /// An operator is wrong.
    #[error("{0}")]
    Operators(String),
    /// No such task.
    #[error("the job has no task {0:?} {1}")]
    NoSuchTask(String, u32),
    /// The job has restarted since.
    #[error("the job is at attempt {0} by now: get the state of that")]
    OtherAttempt(u64),
    /// The checkpoint is over.
    #[error("checkpoint {0} is over: {1}, {message}", message = .1.message())]
    Aborted(CheckpointId, FailureReason),
    /// The checkpoint is over, or never was.
    #[error("checkpoint {0} is over, or was never triggered")]
    Unknown(CheckpointId),
    /// What a task acknowledges makes no sense.
    #[error(transparent)]
    State(#[from] InvalidState),
    /// A segment is of another job.
    #[error("segment {0} is of another job")]
    OtherJob(SegmentId),
    /// Acknowledgements of checkpoints in progress take too much memory.
    #[error(
        "acknowledgements {0} take all of the {1} bytes of memory that those may take, until their checkpoints are over: repeat \
         it then, name fewer offsets, or raise limits.memory"
    )]
    AcksFull(&'static str, u64),
    /// Segments cannot be used again.
    #[error("{why}: store again, then acknowledge again: {}", names(.segments))]
    NotReusable {
        /// Why.
        why: &'static str,
        /// The segments.
        segments: Vec<SegmentId>,
    },
    /// Its coordinator goes on, and takes away what another job goes on from.
    #[error(
        "job {0} has a coordinator that has not ended, which frees its checkpoints: end it first, or go on from a savepoint of it, with mode \
         no-claim"
    )]
    Runs(JobId),
    /// What is named is not in the job's part of the store.
    #[error(
        "{1} is in another shard of the store than the job, which is not implemented: jobs are in one shard if the first two parts of their \
         ids are the same, objects if their bucket and their first folder are"
    )]
    OtherShard(&'static str, String),
    /// A savepoint has to go somewhere.
    #[error("give the directory of the savepoint, or set execution.checkpointing.savepoint-dir")]
    NoSavepointDir,
    /// Requests are remembered until they are over.
    #[error("1,000 requests for checkpoints of the job are not over: wait for some of them, then repeat the request")]
    TooManyRequests,
    /// A key names one request.
    #[error("was used for another request: repeat that one, or take another key")]
    KeyOfAnother,
    /// A checkpoint does not fit the job.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// A number of the job that is not its newest.
    #[error(
        "checkpoint {0} is not the newest of the job, and later ones have used and freed what it had: go on from it in another job, with mode no-claim"
    )]
    NotNewest(CheckpointId),
    /// A savepoint of the job's own name is the user's, and stays so.
    #[error(
        "{0} is a savepoint of the job itself, or of one of its name, which no job of that name claims: go on from it with mode no-claim, and \
         delete it (checkpoints/{0}) when the job has completed a checkpoint"
    )]
    OwnSavepoint(CheckpointId),
    /// It cannot be deleted, as nobody has it yet.
    #[error(
        "checkpoint {0} is in progress: wait until it is over, or have a task decline it (checkpoints/{0}/decline), which gives it up"
    )]
    InProgress(CheckpointId),
    /// A job begins from it.
    #[error(
        "job {1} begins from checkpoint {0} if a task of it fails: delete it when that job has completed a later checkpoint, or has ended"
    )]
    InUse(CheckpointId, JobId),
    /// The end of the job is on its way, and nothing is begun beside it.
    #[error("the job is being ended as {0}: see whether it was, then repeat the request")]
    BeingEnded(JobEnd),
    /// Another restore is on its way; or storage does not get on.
    #[error("the coordinator of the job is busy, or its job is being restored: repeat the request")]
    Busy,
    /// Metadata was not read.
    #[error(transparent)]
    Metadata(#[from] MetadataFault),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The daemon goes away, or the job has ended.
    #[error("the coordinator of the job has ended")]
    Ended,
}

fn names(segments: &[SegmentId]) -> String {
    segments.iter().take(16).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl CoordinatorError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotCoordinated(_) | Self::NotCreated(..) | Self::HasEnded(_) => ErrorKind::NotFound,
            Self::Exists(..)
            | Self::FolderOfAnother(..)
            | Self::OtherAttempt(_)
            | Self::Aborted(..)
            | Self::Unknown(_)
            | Self::NotReusable { .. }
            | Self::Misfit(_)
            | Self::Runs(_)
            | Self::KeyOfAnother
            | Self::BeingEnded(_)
            | Self::InProgress(_)
            | Self::InUse(..)
            | Self::NotNewest(_) => ErrorKind::Conflict,
            Self::Setting(_)
            | Self::FixedSetting(_)
            | Self::Iterative
            | Self::Operators(_)
            | Self::NoSuchTask(..)
            | Self::State(_)
            | Self::OtherJob(_)
            | Self::OtherShard(..)
            | Self::OwnSavepoint(_)
            | Self::NoSavepointDir => ErrorKind::Invalid,
            Self::Busy => ErrorKind::Unavailable,
            Self::TooManyRequests | Self::AcksFull(..) => ErrorKind::Overloaded,
            Self::Metadata(fault) => fault.kind(),
            Self::Engine(error) => error.kind(),
            Self::Ended => ErrorKind::ShuttingDown,
        }
    }

    /// The field of a request that is wrong.
    pub fn field(&self) -> Option<&'static str> {
        Some(match self {
            Self::OtherShard(field, _) => field,
            Self::Runs(_) => "from",
            Self::NotCoordinated(_)
            | Self::NotCreated(..)
            | Self::HasEnded(_)
            | Self::Exists(..)
            | Self::BeingEnded(_) => "job",
            Self::Setting(_) | Self::FixedSetting(_) | Self::FolderOfAnother(..) => "settings",
            Self::Iterative => "iterative",
            Self::Operators(_) | Self::Misfit(_) => "operators",
            Self::NoSuchTask(..) => "subtask",
            Self::OtherAttempt(_) => "attempt",
            Self::Aborted(..) | Self::Unknown(_) | Self::NotNewest(_) | Self::InProgress(_) | Self::InUse(..) => {
                "checkpoint"
            }
            Self::State(_) | Self::OtherJob(_) | Self::NotReusable { .. } | Self::AcksFull(..) => "state",
            Self::NoSavepointDir => "dir",
            Self::OwnSavepoint(_) => "mode",
            Self::KeyOfAnother => "idempotency-key",
            Self::Metadata(MetadataFault::None(..)) => "checkpoint",
            Self::Metadata(MetadataFault::TooLarge(_) | MetadataFault::Gone(..)) => "savepoint",
            Self::Busy | Self::TooManyRequests | Self::Metadata(_) | Self::Engine(_) | Self::Ended => return None,
        })
    }
}
