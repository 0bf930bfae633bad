//! Space, and getting it back.

use serde::{Deserialize, Serialize};

/// By what space is told apart.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct SpaceParams {
    /// `job`, `lane` or `checkpoint`; not given: the total alone.
    pub by: Option<String>,
    /// Only this job.
    pub job: Option<String>,
}

/// Bytes on storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpaceInfo {
    /// Everything.
    pub total: SpaceRow,
    /// Job by job, lane by lane or checkpoint by checkpoint.
    pub rows: Vec<SpaceRow>,
}

/// One row of a space table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpaceRow {
    /// The job, lane or checkpoint.
    pub of: String,
    /// Physical files that are not waiting to be deleted.
    pub files: u64,
    /// Living segments.
    pub segments: u64,
    /// Bytes of physical files, holes left out; open ones, and those that wait to be deleted, are among them.
    pub physical_bytes: u64,
    /// Of them, bytes of files that wait to be deleted.
    pub forgotten_bytes: u64,
    /// Their bytes, by the reason for which they wait.
    pub waiting: WaitingBytes,
    /// Bytes of living segments.
    pub live_bytes: u64,
    /// Of them inside the catalog.
    pub inline_bytes: u64,
    /// Physical bytes divided by the living bytes in physical files; none where nothing lives in them.
    pub amplification: Option<f64>,
    /// Of a checkpoint: bytes that no other checkpoint of the job uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_bytes: Option<u64>,
}

/// Bytes of files that wait to be deleted, by what they wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaitingBytes {
    /// They are being read.
    pub readers: u64,
    /// Their segments were moved, or their uploads were given up, less than `reclaim.delete-grace` ago.
    pub grace: u64,
    /// They are next: what dies together is deleted together, at `reclaim.delete-rate`.
    pub rate: u64,
    /// Storage refused to delete them, and is asked again.
    pub refused: u64,
}

/// The plan for the next round of reclaiming.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReclaimPlan {
    /// Open files with dead bytes that would be closed.
    pub close: Vec<String>,
    /// Files whose dead ranges would be given back in place, by punching holes.
    pub punch: Vec<String>,
    /// Files whose living segments would be copied, because too much of them is dead.
    pub copy: Vec<String>,
    /// Lists of small files that would be packed into one each.
    pub pack: Vec<Vec<String>>,
    /// Bytes that would be read.
    pub read_bytes: u64,
    /// Bytes that would be written again.
    pub written_bytes: u64,
    /// Bytes that copying would give back, what is written again taken off.
    pub freed_bytes: u64,
    /// Requests to the store, about.
    pub requests: u64,
    /// Jobs that would still be above their limit, though all that waits to be deleted were.
    pub jobs_above: u64,
}

/// The work of a round of reclaiming.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReclaimRound {
    /// Open files that were closed.
    pub closed_files: u64,
    /// Bytes that were given back in place.
    pub punched_bytes: u64,
    /// Files whose living segments were copied.
    pub rewritten_files: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written again.
    pub written_bytes: u64,
    /// Bytes of files that nobody needs any more because of that; they are deleted after their grace.
    pub freed_bytes: u64,
    /// Jobs that are above their limit, what waits to be deleted counted in.
    pub jobs_above: u64,
}

/// The options of deleting what nobody needs.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct GcParams {
    /// Whether the next sweep deletes what the catalog does not name even if that is most of what is there, and files are
    /// no longer kept for data in them that it does not know.
    pub force: Option<bool>,
}

/// The files that wait to be deleted, and those that were.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GcReport {
    /// Files that hold nothing that lives.
    pub forgotten_files: u64,
    /// Their bytes.
    pub forgotten_bytes: u64,
    /// Their bytes, by the reason for which they wait.
    pub waiting: WaitingBytes,
    /// Files below `data/` that the catalog does not name. On an object store they are deleted after
    /// `reclaim.sweep-grace`, on a local disk moved to `lost+found/`.
    pub unnamed: Vec<String>,
    /// The files in `lost+found/` of a local disk.
    #[serde(default)]
    pub set_aside: Vec<SetAsideFile>,
    /// Files that hold data of which the catalog knows nothing: nothing of them is given back for `reclaim.sweep-grace`.
    #[serde(default)]
    pub kept: Vec<String>,
    /// Names below `data/` that no daemon gives; never deleted.
    pub foreign: Vec<String>,
    /// Why nothing would be swept, if something is off.
    pub refused: Option<String>,
    /// Files that this call deleted.
    pub deleted: u64,
}

/// A file that the catalog did not name, in `lost+found/` of a local disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetAsideFile {
    /// Its name below `lost+found/`: the one that it had.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Since when the running daemon has seen it there, in milliseconds since 1970. None of a stopped daemon, before the first
    /// sweep after a start, and of a name that no daemon gives: that one is never deleted.
    pub since_ms: Option<u64>,
    /// When it will have been seen there for `reclaim.sweep-grace`, and the next sweep deletes it; a restart begins anew.
    pub until_ms: Option<u64>,
}

/// The result of a recount of the catalog.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyInfo {
    /// Files in the catalog.
    pub files: u64,
    /// Segments in it.
    pub segments: u64,
    /// The mismatches; empty if all is well.
    pub faults: Vec<String>,
}
