//! From the catalog to what the planner sees.

use std::collections::HashMap;

use super::plan::{Candidate, CandidateState, Life, Limits, Prices};
use crate::catalog::record::FileState;
use crate::catalog::state::{FileView, State};
use crate::config::Settings;
use crate::model::{LaneOf, PhysicalFileId, StateScope};
use crate::runtime::Ages;

/// State of one checkpoint that is younger than this will be subsumed before long: Flink's default checkpoint timeout.
const CHECKPOINT_LIFE_SECONDS: f64 = 600.0;
/// Nobody expects longer lives than this, 30 days.
const LIFE_SECONDS_MAX: f64 = 30.0 * 86_400.0;
/// Files that are copied in one round at most.
const COPY_FILES_MAX: usize = 256;
/// As many small files are packed into one.
const PACK_FILES_MIN: usize = 8;
/// Files younger than this are not packed.
const PACK_AGE_SECONDS_MIN: f64 = 600.0;
/// What a request to an object store costs, in bytes that could be copied in its time: 30 ms at 20 MB/s.
const REQUEST_PRICE_BYTES: f64 = 600_000.0;

/// Which files were punched, and how many segments lived in them then: with fewer now, there is more to give back.
pub type Punched = HashMap<PhysicalFileId, u64>;

/// Every file that is not waiting to be deleted. `punched` is none where holes cannot be punched.
pub fn candidates(state: &State, punched: Option<&Punched>, ages: Ages) -> Vec<Candidate> {
    state.files().filter_map(|file| candidate(state, file, punched, ages)).collect()
}

fn candidate(state: &State, file: FileView, punched: Option<&Punched>, ages: Ages) -> Option<Candidate> {
    let fresh = |punched: &Punched| punched.get(&file.id).is_none_or(|living| *living > file.live_segments);
    let what = match file.state {
        FileState::Forgotten { .. } => return None,
        FileState::Open { .. } => CandidateState::Open,
        FileState::Closed { .. } if punched.is_some_and(fresh) => CandidateState::Punchable,
        FileState::Closed { .. } => CandidateState::Closed,
    };
    let one = state.living_in(&file.id).next();
    let lane = file.lane?;
    let age_seconds = ages.of(file.created).as_secs_f64();
    let of_a_checkpoint =
        one.is_some_and(|record| record.scope == StateScope::Exclusive && record.checkpoint.is_some());
    let life = match lane.of {
        LaneOf::Savepoint => Life::Seconds(LIFE_SECONDS_MAX),
        _ if of_a_checkpoint && age_seconds < CHECKPOINT_LIFE_SECONDS => Life::AboutToDie,
        _ => Life::Seconds(age_seconds.clamp(1.0, LIFE_SECONDS_MAX)),
    };
    Some(Candidate {
        file: file.id,
        lane,
        occupied: file.occupied,
        live_segments: file.live_segments,
        live_bytes: file.live_bytes,
        state: what,
        age_seconds,
        life,
    })
}

/// What the settings allow one round.
pub fn limits(settings: &Settings) -> Limits {
    let reclaim = &settings.reclaim;
    let seconds = reclaim.interval.as_secs_f64().max(1.0);
    Limits {
        space_amplification_max: reclaim.space_amplification_max,
        copy_bytes_max: (reclaim.copied_bytes_per_second_max as f64 * seconds) as u64,
        copy_files_max: COPY_FILES_MAX,
        pack_bytes_max: settings.merging.file_bytes_max,
        pack_files_min: PACK_FILES_MIN,
        pack_age_seconds_min: PACK_AGE_SECONDS_MIN,
    }
}

/// What things cost: on a local disk a request is next to nothing.
pub fn prices(local: bool) -> Prices {
    Prices { request: if local { 0.0 } else { REQUEST_PRICE_BYTES } }
}
