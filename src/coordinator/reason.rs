//! Why a checkpoint failed, or was never begun: Flink's reasons.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident = $text:literal, $message:literal;)+) => {
        /// Why a checkpoint failed, or was never begun.
        ///
        /// # Source
        /// `CheckpointFailureReason` of Flink.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FailureReason {
            $($(#[$doc])* $reason,)+
        }

        impl FailureReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// Flink's name of it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $text,)+
                }
            }

            /// A sentence for people.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Self::$reason => $message,)+
                }
            }
        }
    };
}

reasons! {
    /// A periodic trigger came after the scheduler was stopped.
    PeriodicSchedulerShutdown = "PERIODIC_SCHEDULER_SHUTDOWN", "periodic checkpoints were stopped";
    /// The queue is full.
    TooManyRequests = "TOO_MANY_CHECKPOINT_REQUESTS", "too many requests for checkpoints are queued";
    /// The last one ended too short ago.
    MinimumTime = "MINIMUM_TIME_BETWEEN_CHECKPOINTS", "execution.checkpointing.min-pause has not passed since the last one";
    /// Not all tasks run, or some have finished and that ends checkpoints.
    NotAllTasksRunning = "NOT_ALL_REQUIRED_TASKS_RUNNING", "not all tasks that it needs are running";
    /// Storage failed.
    IoException = "IO_EXCEPTION", "storage failed";
    /// A task failed to store what it had taken.
    AsyncException = "CHECKPOINT_ASYNC_EXCEPTION", "a task failed to store its state";
    /// It took too long.
    Expired = "CHECKPOINT_EXPIRED", "not all tasks have acknowledged within execution.checkpointing.timeout";
    /// A later one completed.
    Subsumed = "CHECKPOINT_SUBSUMED", "a later checkpoint has completed";
    /// A task declined.
    Declined = "CHECKPOINT_DECLINED", "a task has declined it";
    /// A task was not ready.
    DeclinedNotReady = "CHECKPOINT_DECLINED_TASK_NOT_READY", "a task was not ready for it";
    /// A task is finishing.
    DeclinedClosing = "CHECKPOINT_DECLINED_TASK_CLOSING", "a task is finishing";
    /// A task saw a newer one.
    DeclinedSubsumed = "CHECKPOINT_DECLINED_SUBSUMED", "a task has seen a newer one";
    /// A task saw that it is over.
    DeclinedOnCancellation = "CHECKPOINT_DECLINED_ON_CANCELLATION_BARRIER", "a task was told that it is over";
    /// An input of a task ended.
    DeclinedEndOfStream = "CHECKPOINT_DECLINED_INPUT_END_OF_STREAM", "an input of a task has ended";
    /// There is no coordinator any more.
    CoordinatorShutdown = "CHECKPOINT_COORDINATOR_SHUTDOWN", "the job has ended";
    /// The job restarts or stops.
    CoordinatorSuspend = "CHECKPOINT_COORDINATOR_SUSPEND", "the job restarts or stops";
    /// The job failed.
    JobFailure = "JOB_FAILURE", "the job has failed";
    /// A task failed.
    TaskFailure = "TASK_FAILURE", "a task has failed";
    /// The metadata could not be stored.
    Finalize = "FINALIZE_CHECKPOINT_FAILURE", "its metadata could not be stored";
    /// It could not be begun.
    Trigger = "TRIGGER_CHECKPOINT_FAILURE", "it could not be begun";
}

impl FailureReason {
    /// Whether it counts against `tolerable-failed-checkpoints`.
    ///
    /// # Source
    /// `CheckpointFailureManager.checkFailureCounter` of Flink.
    pub fn counts(self) -> bool {
        matches!(self, Self::IoException | Self::AsyncException | Self::Declined | Self::Expired | Self::Finalize)
    }

    /// Whether the coordinator's side failed, whoever told of it.
    ///
    /// # Source
    /// `CheckpointFailureReason.isPreFlight` of Flink.
    pub fn is_of_the_coordinator(self) -> bool {
        matches!(
            self,
            Self::PeriodicSchedulerShutdown
                | Self::TooManyRequests
                | Self::MinimumTime
                | Self::NotAllTasksRunning
                | Self::IoException
                | Self::Trigger
        )
    }

    /// Whether a task may give it.
    pub fn is_of_a_task(self) -> bool {
        matches!(
            self,
            Self::IoException
                | Self::AsyncException
                | Self::Declined
                | Self::DeclinedNotReady
                | Self::DeclinedClosing
                | Self::DeclinedSubsumed
                | Self::DeclinedOnCancellation
                | Self::DeclinedEndOfStream
        )
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no reason of Flink's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no reason of Flink's for a checkpoint that failed")]
pub struct UnknownReason(pub String);

impl FromStr for FailureReason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        let found = Self::ALL.iter().find(|reason| reason.as_str() == text);
        found.copied().ok_or_else(|| UnknownReason(text.to_owned()))
    }
}
