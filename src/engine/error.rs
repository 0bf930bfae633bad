//! Why the engine did not do what it was asked.

use std::time::Duration;

use crate::catalog::CatalogError;
use crate::catalog::command::Refusal;
use crate::catalog::questions::NoAnswer;
use crate::error::ErrorKind;
use crate::merge::MergeError;
use crate::model::{SegmentId, ShardOf};
use crate::read::{BulkError, ReadError};
use crate::reclaim::ReclaimError;
use crate::reclaim::sweep::SweepError;
use crate::runtime::BudgetError;
use crate::store::DiskFull;

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It does not fit what exists. Nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A question about a job has no answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// No such segment.
    #[error("segment {0} does not exist")]
    NoSuchSegment(SegmentId),
    /// Some of many segments do not exist; these are the first of them.
    #[error("there are no segments {}{}", names(.0), if .0.len() == NAMED_MAX { " and maybe more" } else { "" })]
    NoSuchSegments(Vec<SegmentId>),
    /// A handle does not fit its segment.
    #[error("segment {0} has other bytes than the handle says")]
    OtherBytes(SegmentId),
    /// The catalog is lost or closed.
    #[error(transparent)]
    Catalog(CatalogError),
    /// The disk has no room.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// There is no memory for a body.
    #[error(transparent)]
    Memory(#[from] BudgetError),
    /// Writes do not get on, and a new one would only wait with them.
    #[error("writes wait: {0}; repeat the request")]
    Stalled(String),
    /// A body has not the length that was announced.
    #[error("the body ends after {received} bytes, {announced} were announced")]
    Length {
        /// The length that was announced.
        announced: u64,
        /// The bytes that came; more may have followed.
        received: u64,
    },
    /// A body is longer than memory can be.
    #[error("a body of {0} bytes is too large")]
    TooLong(u64),
    /// The catalog did not say what became of it.
    #[error("the catalog gave no answer, repeat the request")]
    NoAnswerGiven,
    /// Segments could not be stored.
    #[error(transparent)]
    Write(MergeError),
    /// Segments could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// One of many segments could not be read.
    #[error(transparent)]
    Bulk(#[from] BulkError),
    /// A round of reclaiming ended early.
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
    /// Storage does not tell what is there.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// Orphans are not deleted so soon.
    #[error(
        "must be at least {} to delete orphans: files of a checkpoint in progress are none, and may look like some. Give \
         risk_running_checkpoints (--risk-running-checkpoints) if no job runs",
        humantime::format_duration(*.0)
    )]
    TooYoung(Duration),
    /// There are too many names to look for orphans.
    #[error(
        "the names of all checkpoints and of what they need take more than {0} bytes of memory, a quarter of what reads may \
         have: raise limits.memory to look for orphans"
    )]
    TooManyNames(u64),
    /// What is named changes while it is read.
    #[error(
        "checkpoints came and went faster than they were read, {0} times: look for orphans again later; nothing was deleted"
    )]
    NamesChange(usize),
    /// It has one shard of several, and no way to the others.
    #[error("this daemon has {0} alone, and what checkpoints name may be in the others: ask a daemon of the cluster")]
    OneOfSeveral(ShardOf),
    /// Too many multipart uploads are in progress, and none is idle.
    #[error("too many multipart uploads are in progress, and none is idle: complete or abort some")]
    TooManyUploads,
    /// An upload was completed with other parts.
    #[error("the upload was completed with other parts")]
    OtherParts,
    /// A part of an upload that is to be completed was uploaded again since it was chosen.
    #[error("a part of the upload was uploaded again meanwhile, repeat the request")]
    PartsChanged,
    /// A completion ended without a word.
    #[error("the completion did not end, repeat the request")]
    NotEnded,
    /// The engine of another shard says so.
    #[error("{message}")]
    Elsewhere {
        /// The next step for the caller.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// The daemon is going away.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A bug.
    #[error("{0} was answered with something else")]
    Unexpected(&'static str),
}

/// Unknown segments that an error names.
pub(super) const NAMED_MAX: usize = 10;

fn names(segments: &[SegmentId]) -> String {
    segments.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl EngineError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(why) => why.kind(),
            Self::NoAnswer(why) => why.kind(),
            Self::NoSuchSegment(_) | Self::NoSuchSegments(_) => ErrorKind::NotFound,
            Self::OtherBytes(_) => ErrorKind::Conflict,
            Self::Catalog(error) => error.kind(),
            Self::Full(full) => full.kind(),
            Self::Memory(_) => ErrorKind::Overloaded,
            Self::Length { .. } | Self::TooLong(_) => ErrorKind::Invalid,
            Self::NoAnswerGiven | Self::Stalled(_) => ErrorKind::Unavailable,
            Self::Write(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Bulk(error) => error.kind(),
            Self::Reclaim(_) | Self::Sweep(_) => ErrorKind::Unavailable,
            Self::TooManyUploads | Self::TooManyNames(_) => ErrorKind::Overloaded,
            Self::OtherParts | Self::TooYoung(_) | Self::OneOfSeveral(_) => ErrorKind::Invalid,
            Self::PartsChanged | Self::NotEnded | Self::NamesChange(_) => ErrorKind::Unavailable,
            Self::Elsewhere { kind, .. } => *kind,
            Self::ShuttingDown => ErrorKind::ShuttingDown,
            Self::Unexpected(_) => ErrorKind::Internal,
        }
    }
}

impl From<CatalogError> for EngineError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Refused(why) => Self::Refused(why),
            other => Self::Catalog(other),
        }
    }
}

impl From<MergeError> for EngineError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Refused(why) => Self::Refused(why),
            MergeError::Catalog(error) => error.into(),
            MergeError::Full(full) => Self::Full(full),
            other => Self::Write(other),
        }
    }
}
