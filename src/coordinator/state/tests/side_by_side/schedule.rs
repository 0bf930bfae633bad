//! A schedule: what happens to a job, and when. `tests/coordinator/README.md` has the format.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What happens to a job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlayedSchedule {
    pub(super) name: String,
    #[serde(default)]
    pub(super) settings: Map<String, Value>,
    #[serde(default = "usual_operators")]
    operators: Vec<Vec<Value>>,
    events: Vec<Vec<Value>>,
}

fn usual_operators() -> Vec<Vec<Value>> {
    ["source", "count"].map(|id| vec![Value::from(id), Value::from(2)]).to_vec()
}

/// Something that happens.
#[derive(Debug)]
pub(super) struct ScheduledEvent {
    /// Milliseconds from the beginning.
    pub(super) at: u64,
    pub(super) what: String,
    arguments: Vec<String>,
}

impl ScheduledEvent {
    /// An argument, or the word for all.
    pub(super) fn argument(&self, number: usize) -> &str {
        self.arguments.get(number).map_or("*", |argument| argument)
    }
}

impl PlayedSchedule {
    /// One schedule a line.
    pub(super) fn read(lines: &str) -> Vec<Self> {
        lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Operators: id, parallelism, whether with union list state.
    pub(super) fn operators(&self) -> impl Iterator<Item = (String, u32, bool)> {
        self.operators.iter().map(|operator| {
            let parallelism =
                operator[1].as_u64().and_then(|number| u32::try_from(number).ok()).expect("a parallelism");
            (text(&operator[0]), parallelism, operator.get(2).is_some_and(|kind| kind == "union"))
        })
    }

    pub(super) fn events(&self) -> impl Iterator<Item = ScheduledEvent> {
        self.events.iter().map(|event| ScheduledEvent {
            at: event[0].as_u64().expect("milliseconds"),
            what: text(&event[1]),
            arguments: event[2..].iter().map(text).collect(),
        })
    }

    /// The keys of the job below `execution.checkpointing`, as texts.
    pub(super) fn keys(&self) -> Vec<(String, String)> {
        let of_the_schedule = ["draw", "retained", "one-periodic-request"];
        let keys = self.settings.iter().filter(|(key, _)| !of_the_schedule.contains(&key.as_str()));
        let text = |key: &str, value: &Value| match key {
            "interval" | "interval-during-backlog" | "min-pause" | "timeout" => format!("{value} ms"),
            _ => text(value),
        };
        keys.map(|(key, value)| (key.clone(), text(key, value))).collect()
    }

    /// Which moment the first periodic checkpoint comes at: 0 is the earliest, 1 the latest.
    pub(super) fn draw(&self) -> f64 {
        self.settings.get("draw").and_then(Value::as_f64).unwrap_or(1.0)
    }

    /// The checkpoints that the job begins with: number, whether they are somebody else's.
    pub(super) fn retained(&self) -> impl Iterator<Item = (u64, bool)> {
        let retained = self.settings.get("retained").and_then(Value::as_array);
        retained.into_iter().flatten().map(|one| (one[0].as_u64().expect("a number"), one[1] == "foreign"))
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
