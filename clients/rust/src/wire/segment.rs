//! Segments: what is said with one that is stored, and what is told of it.

use serde::{Deserialize, Serialize};

use super::ErrorBody;

/// Who writes a segment, and for what.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema, utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
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
    /// The worker's name for it.
    pub name: Option<String>,
}

/// Head of one segment in a request with many; in JSON, before the segment's bytes.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// The worker's name for it.
    pub name: Option<String>,
    /// CRC-32C of the bytes, 8 hex digits.
    pub crc32c: Option<String>,
    /// A repeat with the same key gets the same segment.
    pub idempotency_key: Option<String>,
}

impl BatchHead {
    /// The parameters with which a put of one segment would say the same.
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
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum BatchAnswer {
    /// It is stored.
    Stored(SegmentInfo),
    /// It is not.
    Error(ErrorBody),
}

/// A stored segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// A segment in a listing.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// The worker's name for it.
    pub name: Option<String>,
}

/// One page of a job's segments.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SegmentPage {
    /// In the order of their identities.
    pub segments: Vec<ListedSegment>,
    /// Give it as `after` to get the next page; none on the last.
    pub next: Option<String>,
}

/// The segments to list.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct ListParams {
    /// Only segments that were written for this checkpoint.
    pub checkpoint: Option<u64>,
    /// Only segments after this one.
    pub after: Option<String>,
    /// At most so many; 1 to 10,000, default 1,000.
    pub limit: Option<u32>,
}
