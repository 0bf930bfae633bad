//! Turns the engine's figures of space and reclaiming into the native API's JSON. The command line prints the same.

use esker_client::wire::{GcReport, ReclaimPlan, ReclaimRound, SetAsideFile, SpaceInfo, SpaceRow, WaitingBytes};

use crate::engine::space::{
    DeletionBacklog, GcState, LaneSpace, Plan, Round, SetAside, SpaceOf, SpaceTable, TakenBytes,
};
use crate::model::PhysicalFileId;

impl From<DeletionBacklog> for WaitingBytes {
    fn from(waiting: DeletionBacklog) -> Self {
        let DeletionBacklog { readers, grace, rate, refused } = waiting;
        Self { readers, grace, rate, refused }
    }
}

impl From<&SpaceTable> for SpaceInfo {
    fn from(table: &SpaceTable) -> Self {
        Self { total: (&table.total).into(), rows: table.rows.iter().map(SpaceRow::from).collect() }
    }
}

impl From<&SpaceOf> for SpaceRow {
    fn from(row: &SpaceOf) -> Self {
        let of = row.of.clone();
        match &row.taken {
            TakenBytes::Files(LaneSpace { files, segments, space }, waiting) => Self {
                of,
                files: *files,
                segments: *segments,
                physical_bytes: space.physical_bytes,
                forgotten_bytes: space.forgotten_bytes,
                waiting: (*waiting).into(),
                live_bytes: space.live_bytes,
                inline_bytes: space.inline_bytes,
                amplification: Some(space.amplification()).filter(|amplification| amplification.is_finite()),
                own_bytes: None,
            },
            TakenBytes::Checkpoint(space) => Self {
                of,
                segments: space.segments,
                live_bytes: space.bytes,
                own_bytes: Some(space.own_bytes),
                ..Self::default()
            },
        }
    }
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

impl From<&SetAside> for SetAsideFile {
    fn from(aside: &SetAside) -> Self {
        let SetAside { name, bytes, kept } = aside;
        let (since_ms, until_ms) = kept.map(|kept| (kept.since.0, kept.until.0)).unzip();
        Self { file: name.clone(), bytes: *bytes, since_ms, until_ms }
    }
}

impl From<&GcState> for GcReport {
    fn from(gc: &GcState) -> Self {
        let GcState { to_delete, waiting, swept, set_aside, refused } = gc;
        Self {
            forgotten_files: to_delete.forgotten.len() as u64,
            forgotten_bytes: to_delete.forgotten.iter().map(|file| file.occupied).sum(),
            waiting: (*waiting).into(),
            unnamed: swept.unnamed.iter().map(ToString::to_string).collect(),
            set_aside: set_aside.iter().map(SetAsideFile::from).collect(),
            kept: to_delete.kept.iter().map(ToString::to_string).collect(),
            foreign: swept.foreign.clone(),
            refused: refused.clone(),
            deleted: 0,
        }
    }
}
