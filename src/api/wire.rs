//! The native API's JSON, version 1. `clients/openapi.json` is made from these types.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::catalog::record::{CheckpointKind, CheckpointRecord, CheckpointState, JobEnd, JobRecord};
use crate::catalog::state::SegmentView;
use crate::model::{CheckpointId, Handle, JobId, Location};

/// Body of every error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// What to do next: `invalid`, `not_found`, `conflict`, `precondition`, `overloaded`, `unavailable`, `corrupt`,
    /// `shutting_down` or `internal`.
    pub kind: String,
    /// The field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, in a sentence.
    pub message: String,
}

/// A job to create.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// Its id.
    #[schema(example = "wordcount")]
    pub job: String,
}

/// A job.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JobInfo {
    /// Its id.
    pub job: String,
    /// When it was created, in milliseconds since 1970; none for a job that is known by its S3 keys alone.
    pub created_ms: Option<u64>,
    /// Checkpoints up to here are subsumed.
    pub subsumed: Option<u64>,
    /// How it ended, if something of it is kept: `FINISHED`, `CANCELED`, `FAILED` or `SUSPENDED`.
    #[schema(value_type = Option<String>)]
    pub ended: Option<JobEnd>,
    /// Its segments, whoever keeps them alive.
    pub segments: u64,
}

impl JobInfo {
    /// What is known of a job, and how many segments it has.
    pub fn of(job: &JobId, record: Option<&JobRecord>, segments: usize) -> Self {
        Self {
            job: job.to_string(),
            created_ms: record.map(|record| record.created.0),
            subsumed: record.and_then(|record| record.subsumed).map(|checkpoint| checkpoint.0),
            ended: record.and_then(|record| record.ended).map(|(end, _)| end),
            segments: segments as u64,
        }
    }
}

/// Who writes a segment, and for what.
#[derive(Debug, Default, Clone, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PutParams {
    /// The checkpoint that the segment is written for.
    pub checkpoint: Option<u64>,
    /// `shared` (may be used by later checkpoints) or `exclusive`; default `exclusive`.
    pub scope: Option<String>,
    /// The operator; goes with `subtask` and `parallelism`.
    pub operator: Option<String>,
    /// Index of the subtask, from 0.
    pub subtask: Option<u32>,
    /// Parallelism of the operator.
    pub parallelism: Option<u32>,
    /// The task manager that writes.
    pub task_manager: Option<String>,
    /// What the worker calls it.
    pub name: Option<String>,
}

/// Head of one segment in a request with many; in JSON, before the segment's bytes.
#[derive(Debug, Default, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchHead {
    /// Bytes of the segment.
    pub len: u64,
    /// The checkpoint that the segment is written for.
    pub checkpoint: Option<u64>,
    /// `shared` or `exclusive`; default `exclusive`.
    pub scope: Option<String>,
    /// The operator; goes with `subtask` and `parallelism`.
    pub operator: Option<String>,
    /// Index of the subtask, from 0.
    pub subtask: Option<u32>,
    /// Parallelism of the operator.
    pub parallelism: Option<u32>,
    /// The task manager that writes.
    pub task_manager: Option<String>,
    /// What the worker calls it.
    pub name: Option<String>,
    /// CRC-32C of the bytes, 8 hex digits.
    pub crc32c: Option<String>,
    /// A repeat with the same key gets the same segment.
    pub idempotency_key: Option<String>,
}

impl BatchHead {
    /// What a put of one segment would say.
    pub fn params(&self) -> PutParams {
        PutParams {
            checkpoint: self.checkpoint,
            scope: self.scope.clone(),
            operator: self.operator.clone(),
            subtask: self.subtask,
            parallelism: self.parallelism,
            task_manager: self.task_manager.clone(),
            name: self.name.clone(),
        }
    }
}

/// One answer to a request with many segments: a segment or an error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum BatchAnswer {
    /// It is stored.
    Stored(SegmentInfo),
    /// It is not.
    Error(ErrorBody),
}

/// A stored segment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SegmentInfo {
    /// Its identity.
    pub segment: String,
    /// Enough to read it while the daemon is down: `esker1:<segment>:<file>:<offset>:<len>:<crc32c>`.
    pub handle: String,
    /// The physical file below the store's root; none when it is inside the catalog.
    pub file: Option<String>,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// CRC-32C of its bytes, 8 hex digits.
    pub crc32c: String,
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

/// A segment in a listing.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ListedSegment {
    /// The segment.
    #[serde(flatten)]
    pub info: SegmentInfo,
    /// `shared` or `exclusive`.
    pub scope: String,
    /// The checkpoint it was written for.
    pub checkpoint: Option<u64>,
    /// The subtask that wrote it, as `<operator>_<index>_<parallelism>`.
    pub subtask: Option<String>,
    /// The task manager that wrote it.
    pub task_manager: Option<String>,
    /// What the worker calls it.
    pub name: Option<String>,
}

impl From<&SegmentView> for ListedSegment {
    fn from(view: &SegmentView) -> Self {
        let record = &view.record;
        Self {
            info: (&view.handle()).into(),
            scope: record.scope.to_string(),
            checkpoint: record.checkpoint.map(|checkpoint| checkpoint.0),
            subtask: record.writer.subtask.as_ref().map(ToString::to_string),
            task_manager: record.writer.task_manager.as_ref().map(ToString::to_string),
            name: record.name.as_ref().map(ToString::to_string),
        }
    }
}

/// One page of a job's segments.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SegmentPage {
    /// In the order of their identities.
    pub segments: Vec<ListedSegment>,
    /// Give it as `after` to get the next page; none on the last.
    pub next: Option<String>,
}

/// What to list.
#[derive(Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only segments that were written for this checkpoint.
    pub checkpoint: Option<u64>,
    /// Only segments after this one.
    pub after: Option<String>,
    /// At most so many; 1 to 10,000, default 1,000.
    pub limit: Option<u32>,
}

/// A checkpoint that is not subsumed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointInfo {
    /// The job.
    pub job: String,
    /// Its number.
    pub checkpoint: u64,
    /// `pending`, `completed` or `aborted`.
    #[schema(value_type = String)]
    pub state: CheckpointState,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// When it completed or was aborted.
    pub ended_ms: Option<u64>,
    /// `checkpoint` or `savepoint`.
    #[schema(value_type = String)]
    pub kind: CheckpointKind,
}

/// What begins.
#[derive(Debug, Default, Clone, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BeginParams {
    /// `checkpoint` (default) or `savepoint`: self-contained, never subsumed, kept until it is deleted.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    pub kind: CheckpointKind,
}

/// Segments that a checkpoint uses again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReuseRequest {
    /// Identities or handles.
    pub segments: Vec<String>,
}

/// What came of a reuse.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReuseAnswer {
    /// Segments that live as long as the checkpoint now.
    pub reused: u64,
    /// Those that may not be reused, as they were named: store them again.
    pub refused: Vec<String>,
}

/// From where a job goes on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreJob {
    /// The job whose checkpoint it is; not given: the job itself, after a fail-over.
    pub from: Option<String>,
    /// The checkpoint or savepoint. Not given: the newest completed checkpoint.
    pub checkpoint: Option<u64>,
    /// `claim` (default): its segments become the job's, which may reuse and free them. `no-claim`: the job only reads.
    pub mode: Option<String>,
}

/// A checkpoint that a job goes on from.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RestoredJob {
    /// The job whose checkpoint it is now.
    pub job: String,
    /// The checkpoint.
    pub checkpoint: u64,
    /// Its segments.
    pub segments: Vec<ListedSegment>,
}

/// How a job ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndRequest {
    /// `FINISHED`, `CANCELED`, `FAILED` or `SUSPENDED`.
    #[schema(value_type = String)]
    pub state: JobEnd,
    /// Flink's `externalized-checkpoint-retention`; not given: that of the daemon's configuration.
    pub retention: Option<String>,
}

/// What became of a job's checkpoints.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EndAnswer {
    /// Whether its completed checkpoints are kept.
    pub kept: bool,
}

impl CheckpointInfo {
    /// What is known of a checkpoint.
    pub fn of(job: &JobId, id: CheckpointId, record: &CheckpointRecord) -> Self {
        Self {
            job: job.to_string(),
            checkpoint: id.0,
            state: record.state,
            begun_ms: record.begun.0,
            ended_ms: record.ended.map(|at| at.0),
            kind: record.kind,
        }
    }
}

/// What to restore: `segments`, or `job` and `checkpoint`.
#[derive(Debug, Default, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Identities of segments, in the order in which their bytes are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<String>>,
    /// A job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// A completed checkpoint of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
}

/// Head of a frame in the answer to a restore; in JSON.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum RestoreHead {
    /// A segment, whose bytes follow.
    Segment(ListedSegment),
    /// Everything was sent. Nothing follows.
    End(RestoreEnd),
    /// The rest cannot be sent. The connection breaks off.
    Broken(RestoreBroken),
}

/// Ends the answer to a restore. Without it, the answer was cut off.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreEnd {
    /// How many segments were sent.
    pub end: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why the rest of a restore cannot be sent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBroken {
    /// The segment that would have come next.
    pub broken: String,
    /// What is wrong with it.
    pub error: ErrorDetail,
}

/// What to list of a bucket.
#[derive(Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ObjectsParams {
    /// The bucket.
    pub bucket: String,
    /// Only objects whose keys begin so.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Only objects whose keys come after this one.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many; 1 to 1,000, default 1,000.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// An object of the S3 door, and what it consists of.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// Number of bytes.
    pub len: u64,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// Identities of the segments whose bytes it is, in order; none for an object without bytes.
    pub segments: Vec<String>,
}

/// One page of a bucket's objects.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectPage {
    /// In the order of their keys.
    pub objects: Vec<ObjectInfo>,
    /// Give it as `after` to get the next page; none on the last.
    pub next: Option<String>,
}
