//! What happens in a round: how the daemon is set, how long it lives, how it ends, and what is written.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::clock;

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Terminated,
}

/// One round.
#[derive(Debug)]
pub struct Plan {
    pub environment: Vec<(&'static str, String)>,
    /// What stands before the round's own start.
    pub before: Before,
    /// Whether a reader asks for an object and then takes nothing of it.
    pub stalled_reader: bool,
    /// How long the writers have.
    pub lives: Duration,
    /// The daemon stands still for so long in the middle of it.
    pub stands_still: Option<Duration>,
    pub end: End,
}

/// What happens before a round's own start.
#[derive(Debug, Clone, Copy)]
pub enum Before {
    Nothing,
    /// A start that is killed after this long.
    KilledStart(Duration),
    /// A start on an empty volume, which must be refused.
    EmptyVolume,
    /// A start without room for what is new, which reads and refuses to write.
    FullDisk,
}

impl Plan {
    pub fn draw(rng: &mut StdRng) -> Self {
        let mut environment = environment();
        let mut set = |key, values: &[&str]| environment.push((key, pick(rng, values).to_owned()));
        set("ESKER__STORE__PART_SIZE", &["1mb", "1mb", "8mb"]);
        set("ESKER__STORE__DIRECT_IO", &["auto", "off"]);
        set("ESKER__EXECUTION__CHECKPOINTING__DATA_INLINE_THRESHOLD", &["20kb", "20kb", "0"]);
        set("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_FILE_SIZE", &["1mb", "4mb", "32mb"]);
        set("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__POOL_BLOCKING", &["false", "true"]);
        set("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__ACROSS_CHECKPOINT_BOUNDARY", &["false", "true"]);
        set("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_SPACE_AMPLIFICATION", &["2.0", "1.2", "1.0"]);
        // A quarter of an hour is as much as signatures bear.
        environment
            .extend(clock::wrong_by(pick(rng, &["+0", "+0", "-60s", "+60s", "-10m", "+10m"])).into_iter().flatten());
        Self {
            environment,
            before: Before::draw(rng),
            stalled_reader: rng.random_bool(0.2),
            lives: millis(rng.random_range(5..400)),
            stands_still: rng.random_bool(0.1).then(|| millis(rng.random_range(50..500))),
            end: if rng.random_bool(0.1) { End::Terminated } else { End::Killed },
        }
    }
}

impl Plan {
    /// Leaves out what only a folder on a disk suffers.
    pub fn is_not_on_a_disk(&mut self, url: &str) {
        if matches!(self.before, Before::EmptyVolume | Before::FullDisk) {
            self.before = Before::Nothing;
        }
        give_time(&mut self.environment, url);
    }
}

/// A store that other machines make up needs longer to answer, and leases need longer to be recovered. An object storage
/// service takes no smaller parts.
pub fn give_time(environment: &mut [(&'static str, String)], url: &str) {
    for (key, value) in environment {
        if *key == "ESKER__STORE__PART_SIZE" && !url.starts_with("hdfs:") {
            *value = "8 mb".to_owned();
        }
        if ["ESKER__STORE__REQUEST_TIMEOUT", "ESKER__STORE__RETRY_TIMEOUT"].contains(key) {
            *value = "20 s".to_owned();
        }
    }
}

impl Before {
    fn draw(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..15 => Self::KilledStart(millis(rng.random_range(0..250))),
            15..25 => Self::EmptyVolume,
            25..35 => Self::FullDisk,
            _ => Self::Nothing,
        }
    }
}

/// What every round sets: files are deleted soon, so that deleting is killed, too, and what a kill left is not kept for all
/// of the run.
pub fn environment() -> Vec<(&'static str, String)> {
    let pairs = [
        ("ESKER__STORE__REQUEST_TIMEOUT", "500 ms"),
        ("ESKER__STORE__RETRY_TIMEOUT", "500 ms"),
        ("ESKER__RECLAIM__DELETE_GRACE", "1 s"),
        ("ESKER__RECLAIM__SWEEP_GRACE", "500 ms"),
        ("ESKER__RECLAIM__INTERVAL", "50 ms"),
        ("ESKER__MERGING__GROUP_BYTES_MAX", "1mb"),
        ("ESKER__CATALOG__LOG_SEGMENT_SIZE", "64kb"),
    ];
    pairs.map(|(key, value)| (key, value.to_owned())).to_vec()
}

fn pick<'a>(rng: &mut StdRng, values: &[&'a str]) -> &'a str {
    values[rng.random_range(0..values.len())]
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The length of a segment or an object: mostly tiny, rarely larger than a part or a whole file.
pub fn any_len(rng: &mut StdRng) -> usize {
    match rng.random_range(0..1000) {
        0..500 => rng.random_range(0..20 << 10),
        500..750 => 64 << 10,
        750..880 => rng.random_range(20 << 10..400 << 10),
        880..970 => 1 << 20,
        970..997 => rng.random_range(1 << 20..9 << 20),
        _ => rng.random_range(32 << 20..34 << 20),
    }
}
