//! Ours beside Flink's: the same schedule, played to Flink's own `CheckpointCoordinator` and to ours, shows the same.
//!
//! What Flink did is recorded in `tests/coordinator`, where `tests/coordinator/run` plays the schedules to a real Flink and fails if
//! anything is different there. `deviations.jsonl` has the schedules of which ours means to make something else, and what.

mod player;
mod schedule;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use player::{Instant, Player};
use schedule::PlayedSchedule;
use serde::Deserialize;

/// What Flink made of a schedule.
#[derive(Deserialize)]
struct Recorded {
    name: String,
    flink: Vec<Vec<serde_json::Value>>,
}

/// A schedule of which ours makes something else, on purpose.
#[derive(Deserialize)]
struct Deviation {
    name: String,
    /// The words by which `docs/coordinator.md` tells of it.
    why: String,
    esker: Vec<Vec<serde_json::Value>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/coordinator")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn instants(recorded: &[Vec<serde_json::Value>]) -> Vec<Instant> {
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let instant = |all: &Vec<serde_json::Value>| (all[0].as_u64().expect("ms"), all[1..].iter().map(text).collect());
    recorded.iter().map(instant).collect()
}

fn recorded(path: &Path) -> BTreeMap<String, Vec<Instant>> {
    let lines = read(path);
    let recorded = lines.lines().map(|line| serde_json::from_str::<Recorded>(line).expect("as `run` writes it"));
    recorded.map(|one| (one.name, instants(&one.flink))).collect()
}

fn deviations() -> BTreeMap<String, Deviation> {
    let lines = read(&folder().join("deviations.jsonl"));
    let deviations = lines.lines().map(|line| serde_json::from_str::<Deviation>(line).expect("a deviation"));
    deviations.map(|one| (one.name.clone(), one)).collect()
}

/// Where two stories part.
fn difference(expected: &[Instant], seen: &[Instant]) -> String {
    let same = expected.iter().zip(seen).take_while(|(expected, seen)| expected == seen).count();
    let mut text = String::new();
    for (who, story) in [("expected", expected), ("esker", seen)] {
        let parted: Vec<_> = story[same.saturating_sub(2)..].iter().take(5).collect();
        writeln!(text, "  {who:8} {}", serde_json::to_string(&parted).unwrap()).unwrap();
    }
    text
}

/// Plays schedules of which Flink's part is recorded, and returns the names of those that differ, with where they do.
fn compare(folder: &Path, kind: &str, deviations: &BTreeMap<String, Deviation>) -> String {
    let recorded = recorded(&folder.join(format!("{kind}.flink.jsonl")));
    let schedules = PlayedSchedule::read(&read(&folder.join(format!("{kind}.jsonl"))));
    assert_eq!(schedules.len(), recorded.len(), "run tests/coordinator/run --write");
    let mut different = String::new();
    for schedule in &schedules {
        let flink = recorded.get(&schedule.name).expect("run tests/coordinator/run --write");
        let deviation = deviations.get(&schedule.name).map(|deviation| instants(&deviation.esker));
        let expected = deviation.as_ref().unwrap_or(flink);
        let seen = Player::new(schedule).play(schedule);
        if seen != *expected {
            writeln!(different, "{}\n{}", schedule.name, difference(expected, &seen)).unwrap();
        }
    }
    different
}

#[test]
fn each_rule_shows_what_flink_shows() {
    let different = compare(&folder(), "rules", &deviations());

    assert!(different.is_empty(), "{different}");
}

#[test]
fn schedules_by_chance_show_what_flink_shows() {
    let different = compare(&folder(), "random", &BTreeMap::new());

    assert!(different.is_empty(), "{different}");
}

/// `tests/coordinator/run --seeds` plays more of them to Flink, and then this.
#[test]
#[ignore = "wants schedules that were just played to Flink, by tests/coordinator/run --seeds"]
fn schedules_in_the_folder_that_is_named_show_what_flink_shows() {
    let folder = std::env::var("ESKER_SIDE_BY_SIDE").expect("ESKER_SIDE_BY_SIDE names a folder");

    let different = compare(Path::new(&folder), "random", &BTreeMap::new());

    assert!(different.is_empty(), "{different}");
}

#[test]
fn each_deviation_is_one_and_is_explained() {
    let flink = recorded(&folder().join("rules.flink.jsonl"));
    let docs = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coordinator.md"));

    for (name, deviation) in deviations() {
        let same = flink.get(&name).is_some_and(|flink| *flink == instants(&deviation.esker));
        assert!(flink.contains_key(&name), "there is no schedule {name}");
        assert!(!same, "{name}: Flink does the same by now");
        let row = docs.lines().find(|line| line.starts_with(&format!("| {name} |")));
        assert!(row.is_some_and(|row| row.contains(&deviation.why)), "docs/coordinator.md does not say why: {name}");
    }
}
