//! What the checkpoints of Apache Flink name, and objects that none of them names.

use serde::{Deserialize, Serialize};

/// The checkpoints to compare.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct AuditParams {
    /// Only those in this bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Only those whose keys begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only those of this job: Flink's id of it, or bucket and folder with a slash between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Only those after this one; from `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many; 1 to 100, default 20. A page may have fewer, even none, and a next one all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Whether everything that they name is listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<bool>,
}

/// Some checkpoints.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// In the order of their buckets and keys.
    pub checkpoints: Vec<AuditedCheckpoint>,
    /// Give it as `after` to get the next page; none on the last.
    pub next: Option<String>,
}

/// A checkpoint or savepoint of Flink, and whether it can be restored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditedCheckpoint {
    /// The bucket of its `_metadata`.
    pub bucket: String,
    /// The key of it.
    pub key: String,
    /// The folder of its job, or of the savepoint.
    pub folder: String,
    /// `checkpoint`, or `savepoint` for everything that no checkpoint subsumes.
    pub kind: String,
    /// When `_metadata` was put, in milliseconds since 1970-01-01 UTC.
    pub modified_ms: u64,
    /// Bytes of `_metadata`.
    pub metadata_bytes: u64,
    /// Why it cannot be read; then nothing more is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// The version of its form.
    pub version: u32,
    /// The number of the checkpoint.
    pub checkpoint: u64,
    /// Objects that it names.
    pub objects: u64,
    /// Bytes of state: in these objects, and in `_metadata` itself.
    pub state_bytes: u64,
    /// Of them in `_metadata` itself.
    pub inline_bytes: u64,
    /// Files that it names on other storage; they are not looked at.
    pub elsewhere: u64,
    /// One of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere_first: Option<String>,
    /// Objects that are not there, or too short.
    pub missing: u64,
    /// The first of them, at most 100.
    pub missing_objects: Vec<AuditedObject>,
    /// The checkpoint whose `_metadata` it is a copy of: it names that one's files, and not copies of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
    /// Objects that it names in folders of other jobs: as a copy does, or a job that has claimed a checkpoint.
    #[serde(default)]
    pub of_others: u64,
    /// One of these folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_others_first: Option<String>,
    /// Everything that it names, if that was asked for; at most 100,000 parts of objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<AuditedPart>,
}

/// An object that a checkpoint needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditedObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Bytes that it must have at least.
    pub needed_bytes: u64,
    /// Bytes that it has; none if it is not there.
    pub len: Option<u64>,
    /// Whether Flink's own file merging made it.
    pub merged_by_flink: bool,
}

/// A part of an object that a checkpoint names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditedPart {
    /// Its bucket; none for a file on other storage, whose path is the key.
    pub bucket: Option<String>,
    /// Its key.
    pub key: String,
    /// The first byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// The objects to judge.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct OrphansParams {
    /// Only those in this bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Only those whose keys begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only those of this job: Flink's id of it, or bucket and folder with a slash between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Only those that are at least so old, in milliseconds; default one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than_ms: Option<u64>,
    /// Whether objects that are kept are told of one by one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<bool>,
    /// Whether objects younger than ten minutes are deleted, too: those of a checkpoint in progress may be among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_running_checkpoints: Option<bool>,
}

/// A line of the answer, as JSON. The answer is whole if it has an `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OrphanLine {
    /// An object that nothing names.
    Orphan(OrphanObject),
    /// An object that is kept.
    Kept(KeptObject),
    /// A `_metadata` that cannot be read: everything of its job is kept.
    Unreadable(UnreadableMetadata),
    /// A job or savepoint, after all its objects.
    Job(OrphansOfJob),
    /// Everything was told.
    End(OrphansEnd),
    /// The rest cannot be told.
    Broken(String),
}

/// An object that nothing names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphanObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Number of bytes.
    pub len: u64,
    /// When it was put, in milliseconds since 1970-01-01 UTC.
    pub modified_ms: u64,
    /// `aborted_checkpoint`, `late_upload`, `unnamed` or `unnamed_merged`.
    pub why: String,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Why it was not, though that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_deleted: Option<String>,
}

/// An object that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Number of bytes.
    pub len: u64,
    /// `metadata`, `folder`, `named`, `savepoint`, `task_owned`, `working`, `changelog`, `unreadable`,
    /// `unreadable_copy`, `elsewhere`, `no_checkpoint`, `running`, `young` or `recent`.
    pub why: String,
}

/// A `_metadata` that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UnreadableMetadata {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Why.
    pub why: String,
}

/// The objects of a job or savepoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphansOfJob {
    /// Its bucket.
    pub bucket: String,
    /// Its folder.
    pub folder: String,
    /// All its objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Orphans among them.
    pub orphans: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Orphans that were deleted.
    pub deleted: u64,
    /// Those that are kept, by why.
    pub kept: Vec<KeptObjects>,
}

/// Objects that are kept for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptObjects {
    /// The reason, as of [`KeptObject::why`].
    pub why: String,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The sum of all jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphansEnd {
    /// Objects of jobs of Flink.
    pub objects: u64,
    /// Orphans among them.
    pub orphans: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Those that were deleted.
    pub deleted: u64,
    /// Objects that are none of Flink's, and not judged.
    pub others: u64,
}
