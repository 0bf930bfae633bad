//! The native API's JSON on space and on reclaiming, version 1. The command line prints the same.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::catalog::state::{ForgottenFile, SpaceUsage, State};
use crate::model::PhysicalFileId;
use crate::reclaim::Round;
use crate::reclaim::plan::Plan;
use crate::reclaim::sweep::Swept;
use crate::reclaim::watch::Waiting;

/// By what space is told apart.
#[derive(Debug, Default, Clone, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SpaceParams {
    /// `job`, `lane` or `checkpoint`; not given: the total alone.
    pub by: Option<String>,
    /// Only this job.
    pub job: Option<String>,
}

/// Bytes on storage.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SpaceInfo {
    /// Everything.
    pub total: SpaceRow,
    /// Job by job, lane by lane or checkpoint by checkpoint.
    pub rows: Vec<SpaceRow>,
}

/// One row of a space table.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
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
    /// What they wait for.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

impl From<Waiting> for WaitingBytes {
    fn from(waiting: Waiting) -> Self {
        let Waiting { readers, grace, rate, refused } = waiting;
        Self { readers, grace, rate, refused }
    }
}

impl SpaceRow {
    /// A row of what was counted, and of what of it waits to be deleted.
    pub fn of(of: String, files: u64, segments: u64, space: &SpaceUsage, waiting: Waiting) -> Self {
        let amplification = Some(space.amplification()).filter(|amplification| amplification.is_finite());
        Self {
            of,
            files,
            segments,
            physical_bytes: space.physical_bytes,
            forgotten_bytes: space.forgotten_bytes,
            waiting: waiting.into(),
            live_bytes: space.live_bytes,
            inline_bytes: space.inline_bytes,
            amplification,
            own_bytes: None,
        }
    }
}

/// What the next round of reclaiming would do.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
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

impl From<&Plan> for ReclaimPlan {
    fn from(plan: &Plan) -> Self {
        /// Naming, putting and committing one file.
        const REQUESTS_PER_OUTPUT: usize = 3;
        let names = |files: &[PhysicalFileId]| files.iter().map(ToString::to_string).collect::<Vec<_>>();
        let sources = plan.copy.len() + plan.pack.iter().map(Vec::len).sum::<usize>();
        let outputs = plan.pack.len() + plan.copy.len().div_ceil(2);
        Self {
            close: names(&plan.close),
            punch: names(&plan.punch),
            copy: names(&plan.copy),
            pack: plan.pack.iter().map(|files| names(files)).collect(),
            read_bytes: plan.copy_bytes,
            written_bytes: plan.copy_bytes,
            freed_bytes: plan.freed_bytes,
            requests: (sources + outputs * REQUESTS_PER_OUTPUT) as u64,
            jobs_above: plan.jobs_above as u64,
        }
    }
}

/// What a round of reclaiming did.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
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

impl From<&Round> for ReclaimRound {
    fn from(round: &Round) -> Self {
        Self {
            closed_files: round.closed as u64,
            punched_bytes: round.punched_bytes,
            rewritten_files: round.rewritten as u64,
            read_bytes: round.read_bytes,
            written_bytes: round.written_bytes,
            freed_bytes: round.freed_bytes,
            jobs_above: round.jobs_above as u64,
        }
    }
}

/// How to delete what nobody needs.
#[derive(Debug, Default, Clone, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GcParams {
    /// Whether the next sweep deletes what the catalog does not name even if that is most of what is there, and files are
    /// no longer kept for data in them that it does not know.
    pub force: Option<bool>,
}

/// What is waiting to be deleted, and what was.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// Files that hold nothing that lives.
    pub forgotten_files: u64,
    /// Their bytes.
    pub forgotten_bytes: u64,
    /// What they wait for.
    pub waiting: WaitingBytes,
    /// Files below `data/` that the catalog does not name: deleted after `reclaim.sweep-grace`.
    pub unnamed: Vec<String>,
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

impl GcReport {
    /// A report on what the catalog has forgotten and on what it does not name.
    pub fn of(forgotten: &[ForgottenFile], waiting: Waiting, swept: &Swept, epoch: u64) -> Self {
        let refused = crate::reclaim::guard::check_unnamed(epoch, &swept.unnamed, swept.listed).err();
        Self {
            forgotten_files: forgotten.len() as u64,
            forgotten_bytes: forgotten.iter().map(|file| file.occupied).sum(),
            waiting: waiting.into(),
            unnamed: swept.unnamed.iter().map(ToString::to_string).collect(),
            kept: vec![],
            foreign: swept.foreign.clone(),
            refused: refused.map(|refused| refused.to_string()),
            deleted: 0,
        }
    }

    /// The same with the files that the start of the owner of `epoch` keeps open.
    pub fn with_kept(self, state: &State, epoch: u64) -> Self {
        Self { kept: state.kept_files(epoch).map(|(file, _)| file.to_string()).collect(), ..self }
    }
}

/// What a recount of the catalog found.
#[derive(Debug, Default, Clone, Serialize, Deserialize, ToSchema)]
pub struct VerifyInfo {
    /// Files in the catalog.
    pub files: u64,
    /// Segments in it.
    pub segments: u64,
    /// What does not add up; empty if all is well.
    pub faults: Vec<String>,
}
