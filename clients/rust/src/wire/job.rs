//! Jobs and their checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CoordinatorInfo, JobOperator, ListedSegment};

/// A job to create.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(example = "wordcount"))]
    pub job: String,
    /// It has a coordinator; the fields below are for those that have one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub coordinated: bool,
    /// Flink's keys, with texts, numbers or booleans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub settings: Option<BTreeMap<String, serde_json::Value>>,
    /// The operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operators: Option<Vec<JobOperator>>,
    /// It has cycles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterative: Option<bool>,
}

/// A job.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobInfo {
    /// Its id.
    pub job: String,
    /// When it was created, in milliseconds since 1970; none for a job that is known by its S3 keys alone.
    pub created_ms: Option<u64>,
    /// Checkpoints up to here are subsumed.
    pub subsumed: Option<u64>,
    /// The way in which it ended, if something of it is kept: `FINISHED`, `CANCELED`, `FAILED` or `SUSPENDED`.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ended: Option<JobEnd>,
    /// Its segments, whoever keeps them alive.
    pub segments: u64,
    /// How it stands, if it has a coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorInfo>,
}

/// A checkpoint that is not subsumed.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckpointInfo {
    /// The job.
    pub job: String,
    /// Its number.
    pub checkpoint: u64,
    /// `pending`, `completed` or `aborted`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: CheckpointState,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// When it completed or was aborted.
    pub ended_ms: Option<u64>,
    /// `checkpoint` or `savepoint`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: CheckpointKind,
}

/// The parameters of a beginning checkpoint.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct BeginParams {
    /// `checkpoint` (default) or `savepoint`: self-contained, never subsumed, kept until it is deleted.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", param(value_type = Option<String>))]
    pub kind: CheckpointKind,
}

/// Segments that a checkpoint uses again.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReuseRequest {
    /// Identities or handles.
    pub segments: Vec<String>,
}

/// The answer to a reuse.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReuseAnswer {
    /// Segments that live as long as the checkpoint now.
    pub reused: u64,
    /// Those that may not be reused, as they were named: store them again.
    pub refused: Vec<String>,
}

/// From where a job goes on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreJob {
    /// The job whose checkpoint it is; not given: the job itself, after a fail-over.
    pub from: Option<String>,
    /// The checkpoint or savepoint. Not given: the newest completed checkpoint.
    pub checkpoint: Option<u64>,
    /// `claim` (default): its segments become the job's, which may reuse and free them. `no-claim`: the job only reads.
    pub mode: Option<String>,
    /// Of a job with a coordinator: the folder of a savepoint, in place of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savepoint: Option<String>,
    /// Of a job with a coordinator: other operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operators: Option<Vec<JobOperator>>,
    /// Of a job with a coordinator: state of operators that it has not may be left behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_non_restored_state: Option<bool>,
}

/// A checkpoint that a job goes on from.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RestoredJob {
    /// The job whose checkpoint it is now.
    pub job: String,
    /// The checkpoint.
    pub checkpoint: u64,
    /// Its segments.
    pub segments: Vec<ListedSegment>,
}

/// The end of a job.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EndRequest {
    /// `FINISHED`, `CANCELED`, `FAILED` or `SUSPENDED`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: JobEnd,
    /// Flink's `externalized-checkpoint-retention`; not given: that of the daemon's configuration.
    pub retention: Option<String>,
}

/// The fate of a job's checkpoints.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndAnswer {
    /// Whether its completed checkpoints are kept.
    pub kept: bool,
}

/// The way in which a job ended: Flink's `JobStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
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

/// Whether a checkpoint belongs to the system or to the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// Subsumed by newer ones.
    #[default]
    Checkpoint,
    /// Self-contained, never subsumed; lives until it is discarded.
    Savepoint,
}

/// The life of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// Takes segments.
    Pending,
    /// Complete: a job can be restored from it.
    Completed,
    /// Given up; its segments are freed and late ones refused.
    Aborted,
}
