//! Many segments in one answer, and what the objects of the S3 door consist of.

use serde::{Deserialize, Serialize};

use super::{ErrorDetail, ListedSegment};

/// The segments to restore: `segments`, or `job` and `checkpoint`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreEnd {
    /// Number of segments that were sent.
    pub end: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why the rest of a restore cannot be sent.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreBroken {
    /// The segment that would have come next.
    pub broken: String,
    /// The fault in it.
    pub error: ErrorDetail,
}

/// The objects of a bucket to list.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ObjectPage {
    /// In the order of their keys.
    pub objects: Vec<ObjectInfo>,
    /// Give it as `after` to get the next page; none on the last.
    pub next: Option<String>,
}
