//! Turns the catalog's files into candidates for the planner.

use std::collections::HashMap;

use super::plan::{Candidate, CandidateState, LifeExpectancy, PlanLimits, Prices};
use crate::catalog::questions::FileSurvey;
use crate::config::Settings;
use crate::model::{FileState, LaneOf, PhysicalFileId};
use crate::runtime::Ages;
use crate::store::RequestPrice;

/// State of one checkpoint that is younger than this will be subsumed before long: Flink's default checkpoint timeout.
const CHECKPOINT_LIFE_SECONDS: f64 = 600.0;
/// Nobody expects longer lives than this, 30 days.
const LIFE_SECONDS_MAX: f64 = 30.0 * 86_400.0;
/// Files that are copied in one round at most.
const COPY_FILES_MAX: usize = 256;
/// Number of small files that are packed into one.
const PACK_FILES_MIN: usize = 8;
/// Files younger than this are not packed.
const PACK_AGE_SECONDS_MIN: f64 = 600.0;
/// The price of a round trip to a store, in bytes that could be copied in its time: 30 ms at 20 MB/s.
const REQUEST_PRICE_BYTES: f64 = 600_000.0;

/// The files that were punched, and the number of segments in them then: with fewer now, there is more to give back.
pub type Punched = HashMap<PhysicalFileId, u64>;

/// Makes candidates of `files`. `punched` is `None` where holes cannot be punched.
pub fn candidates(files: Vec<FileSurvey>, punched: Option<&Punched>, ages: Ages) -> Vec<Candidate> {
    files.into_iter().filter_map(|file| candidate(file, punched, ages)).collect()
}

fn candidate(file: FileSurvey, punched: Option<&Punched>, ages: Ages) -> Option<Candidate> {
    let FileSurvey { view: file, of_a_checkpoint } = file;
    let fresh = |punched: &Punched| punched.get(&file.id).is_none_or(|living| *living > file.live_segments);
    let what = match file.state {
        FileState::Forgotten { .. } => return None,
        FileState::Open { .. } => CandidateState::Open,
        FileState::Closed { .. } if punched.is_some_and(fresh) => CandidateState::Punchable,
        FileState::Closed { .. } => CandidateState::Closed,
    };
    let lane = file.lane?;
    let age_seconds = ages.of(file.created).as_secs_f64();
    let life = match lane.of {
        LaneOf::Savepoint => LifeExpectancy::Seconds(LIFE_SECONDS_MAX),
        _ if of_a_checkpoint && age_seconds < CHECKPOINT_LIFE_SECONDS => LifeExpectancy::AboutToDie,
        _ => LifeExpectancy::Seconds(age_seconds.clamp(1.0, LIFE_SECONDS_MAX)),
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

/// The limits that the settings set one round.
pub fn limits(settings: &Settings) -> PlanLimits {
    let reclaim = &settings.reclaim;
    let seconds = reclaim.interval.as_secs_f64().max(1.0);
    PlanLimits {
        space_amplification_max: reclaim.space_amplification_max,
        copy_bytes_max: (reclaim.copied_bytes_per_second_max as f64 * seconds) as u64,
        copy_files_max: COPY_FILES_MAX,
        pack_bytes_max: settings.merging.file_bytes_max,
        pack_files_min: PACK_FILES_MIN,
        pack_age_seconds_min: PACK_AGE_SECONDS_MIN,
    }
}

/// The prices of a store.
pub fn prices(request: RequestPrice) -> Prices {
    match request {
        RequestPrice::Free => Prices { request: 0.0 },
        RequestPrice::RoundTrip => Prices { request: REQUEST_PRICE_BYTES },
    }
}
