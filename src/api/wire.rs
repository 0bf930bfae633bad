//! Turns the daemon's values into the native API's JSON ([`esker_client::wire`]), and back.

use bytes::{BufMut, Bytes, BytesMut};
use esker_client::wire::{
    self, CheckpointInfo, ErrorBody, ErrorDetail, JobInfo, ListedSegment, RestoreHead, SegmentInfo,
};

use super::status::ApiError;
use crate::engine::{CheckpointView, JobView, SegmentView};
use crate::error::ErrorKind;
use crate::model::{CheckpointKind, CheckpointState, Handle, JobEnd, JobId, Location};

impl From<JobView> for JobInfo {
    fn from(job: JobView) -> Self {
        Self {
            job: job.id.to_string(),
            created_ms: job.created.map(|created| created.0),
            subsumed: job.subsumed.map(|checkpoint| checkpoint.0),
            ended: job.ended.map(Into::into),
            segments: job.segments as u64,
            coordinator: None,
        }
    }
}

/// A head of an answer to `POST /v1/restore`, with its length before it.
pub fn frame(head: &RestoreHead) -> Bytes {
    let head = serde_json::to_vec(head).unwrap_or_default();
    let mut frame = BytesMut::with_capacity(4 + head.len());
    frame.put_u32_le(u32::try_from(head.len()).unwrap_or_default());
    frame.put_slice(&head);
    frame.freeze()
}

/// A checkpoint of a job, as the API shows it.
pub fn checkpoint_info(job: &JobId, checkpoint: &CheckpointView) -> CheckpointInfo {
    CheckpointInfo {
        job: job.to_string(),
        checkpoint: checkpoint.id.0,
        state: checkpoint.state.into(),
        begun_ms: checkpoint.begun.0,
        ended_ms: checkpoint.ended.map(|at| at.0),
        kind: checkpoint.kind.into(),
    }
}

impl From<&Handle> for SegmentInfo {
    fn from(handle: &Handle) -> Self {
        let (file, offset) = match &handle.location {
            Location::Inline { .. } => (None, 0),
            Location::File(segment) => (Some(segment.file.to_string()), segment.offset),
        };
        Self {
            segment: handle.id.to_string(),
            handle: handle.to_string(),
            file,
            offset,
            len: handle.location.len(),
            crc32c: format!("{:08x}", handle.crc32c),
        }
    }
}

impl From<&SegmentView> for ListedSegment {
    fn from(view: &SegmentView) -> Self {
        let about = &view.about;
        Self {
            info: (&view.handle()).into(),
            scope: about.scope.to_string(),
            checkpoint: about.checkpoint.map(|checkpoint| checkpoint.0),
            subtask: about.writer.subtask.as_ref().map(ToString::to_string),
            task_manager: about.writer.task_manager.as_ref().map(ToString::to_string),
            name: about.name.as_ref().map(ToString::to_string),
        }
    }
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        let ApiError { kind, field, message, .. } = error;
        Self { error: ErrorDetail { kind: kind.into(), field: field.map(str::to_owned), message, request_id: None } }
    }
}

impl From<ErrorKind> for wire::ErrorKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Precondition => Self::Precondition,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::ShuttingDown => Self::ShuttingDown,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

impl From<CheckpointState> for wire::CheckpointState {
    fn from(state: CheckpointState) -> Self {
        match state {
            CheckpointState::Pending => Self::Pending,
            CheckpointState::Completed => Self::Completed,
            CheckpointState::Aborted => Self::Aborted,
        }
    }
}

impl From<CheckpointKind> for wire::CheckpointKind {
    fn from(kind: CheckpointKind) -> Self {
        match kind {
            CheckpointKind::Checkpoint => Self::Checkpoint,
            CheckpointKind::Savepoint => Self::Savepoint,
        }
    }
}

impl From<wire::CheckpointKind> for CheckpointKind {
    fn from(kind: wire::CheckpointKind) -> Self {
        match kind {
            wire::CheckpointKind::Checkpoint => Self::Checkpoint,
            wire::CheckpointKind::Savepoint => Self::Savepoint,
        }
    }
}

impl From<JobEnd> for wire::JobEnd {
    fn from(end: JobEnd) -> Self {
        match end {
            JobEnd::Finished => Self::Finished,
            JobEnd::Canceled => Self::Canceled,
            JobEnd::Failed => Self::Failed,
            JobEnd::Suspended => Self::Suspended,
        }
    }
}

impl From<wire::JobEnd> for JobEnd {
    fn from(end: wire::JobEnd) -> Self {
        match end {
            wire::JobEnd::Finished => Self::Finished,
            wire::JobEnd::Canceled => Self::Canceled,
            wire::JobEnd::Failed => Self::Failed,
            wire::JobEnd::Suspended => Self::Suspended,
        }
    }
}
