//! The statements of Flink's behaviour, each as a test that is named after its section; `docs/coordinator.md` lists them.

mod completion;
mod model;
mod rules;
mod side_by_side;
mod tasks;
mod triggering;

use std::collections::BTreeSet;
use std::time::Duration;

use super::acks::AckOutcome;
use super::decision::{Decision, RequestOutcome};
use super::machine::{Beginning, Coordinator};
use super::queue::{RequestNumber, WantedCheckpoint};
use super::tasks::TaskState;
use crate::config::{Config, JobCheckpointing, Settings};
use crate::coordinator::ack::TaskSnapshot;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::topology::{OperatorSpec, TaskId, Topology};
use crate::model::CheckpointId;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn chk(id: u64) -> CheckpointId {
    CheckpointId(id)
}

/// Settings with these keys below `execution.checkpointing`.
fn rules(keys: &[(&str, &str)]) -> JobCheckpointing {
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
    let keys: Vec<(String, &str)> = keys
        .iter()
        .map(|(key, text)| match key.starts_with("heartbeat") {
            true => ((*key).to_owned(), *text),
            false => (format!("execution.checkpointing.{key}"), *text),
        })
        .collect();
    defaults.with(keys.iter().map(|(key, text)| (&**key, *text))).unwrap()
}

fn operator(id: &str, parallelism: u32) -> OperatorSpec {
    OperatorSpec::plain(id, parallelism)
}

const fn task(operator: usize, subtask: u32) -> TaskId {
    TaskId { operator, subtask }
}

/// A job with a made-up clock, whose storage does what it is told at once unless told to wait.
struct Scene {
    coordinator: Coordinator,
    now: Duration,
    /// All that was decided, in order.
    log: Vec<Decision>,
    /// Decisions that are not carried out until somebody does.
    holds_begin: bool,
    holds_store: bool,
    holds_clean: bool,
}

impl Scene {
    /// All tasks of two operators with two tasks each run; the first periodic checkpoint comes after a whole interval.
    fn new(keys: &[(&str, &str)]) -> Self {
        let mut scene = Self::created(keys, vec![operator("source", 2), operator("count", 2)]);
        scene.all_run();
        scene
    }

    fn created(keys: &[(&str, &str)], operators: Vec<OperatorSpec>) -> Self {
        Self::begun(Beginning {
            rules: rules(keys),
            topology: Topology::new(operators),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: chk(1),
            retained: vec![],
            full: false,
            draw: 1.0,
        })
    }

    fn begun(beginning: Beginning) -> Self {
        let coordinator = Coordinator::new(beginning, Duration::ZERO);
        let (now, log) = (Duration::ZERO, vec![]);
        let mut scene = Self { coordinator, now, log, holds_begin: false, holds_store: false, holds_clean: false };
        scene.settle();
        scene
    }

    /// Carries out what was decided.
    fn settle(&mut self) {
        loop {
            let decided = self.coordinator.decisions();
            if decided.is_empty() {
                return;
            }
            for decision in decided {
                self.log.push(decision.clone());
                match decision {
                    Decision::Begin { id, .. } if !self.holds_begin => self.coordinator.begun(id, Ok(()), self.now),
                    Decision::Store(id) if !self.holds_store => self.coordinator.stored(id, Ok(()), self.now),
                    Decision::CleanAborted(_) | Decision::CleanSubsumed(_) if !self.holds_clean => {
                        self.coordinator.cleaned(self.now);
                    }
                    _ => {}
                }
            }
        }
    }

    fn act<T>(&mut self, act: impl FnOnce(&mut Coordinator, Duration) -> T) -> T {
        let done = act(&mut self.coordinator, self.now);
        self.settle();
        done
    }

    fn report(&mut self, tasks: &[TaskId], state: TaskState) {
        let attempt = self.coordinator.attempt();
        let reports: Vec<(TaskId, TaskState)> = tasks.iter().map(|task| (*task, state)).collect();
        assert!(self.act(|coordinator, now| coordinator.report(attempt, &reports, None, now)));
    }

    fn all_run(&mut self) {
        let tasks: Vec<TaskId> = self.coordinator.topology().tasks().collect();
        self.report(&tasks, TaskState::Running);
    }

    /// Lets time pass, and everything happen that is due meanwhile, at its time. The tasks report as often as they should.
    fn pass(&mut self, millis: u64) {
        self.pass_silently(millis, true);
    }

    fn pass_silently(&mut self, millis: u64, heard: bool) {
        let until = self.now + ms(millis);
        loop {
            let due = self.coordinator.next_wake().map(|due| due.max(self.now)).filter(|due| *due <= until);
            self.now = due.unwrap_or(until);
            if heard {
                let tasks: Vec<TaskId> = self.coordinator.topology().tasks().collect();
                self.act(|coordinator, now| coordinator.heard_of(tasks, now));
            }
            if due.is_none() {
                return;
            }
            self.act(Coordinator::tick);
        }
    }

    fn ask(&mut self, wanted: WantedCheckpoint) -> RequestNumber {
        self.act(|coordinator, now| coordinator.request(wanted, now))
    }

    fn ack(&mut self, id: u64, of: TaskId) -> AckOutcome {
        self.ack_with(id, of, TaskSnapshot::default())
    }

    fn ack_with(&mut self, id: u64, of: TaskId, snapshot: TaskSnapshot) -> AckOutcome {
        let attempt = self.coordinator.attempt();
        self.act(|coordinator, now| coordinator.acknowledge(chk(id), of, attempt, snapshot, now))
    }

    /// Every task that has to acknowledges.
    fn ack_all(&mut self, id: u64) {
        let missing = self.coordinator.pending().get(&chk(id)).map(|pending| pending.missing.clone());
        for of in missing.unwrap_or_default() {
            self.ack(id, of);
        }
    }

    fn decline(&mut self, id: u64, reason: FailureReason) {
        let attempt = self.coordinator.attempt();
        self.act(|coordinator, now| coordinator.decline(chk(id), task(0, 0), attempt, (reason, String::new()), now));
    }

    fn triggered(&self) -> Vec<u64> {
        let triggered = self.log.iter().filter_map(|decision| match decision {
            Decision::Trigger(id) => Some(id.0),
            _ => None,
        });
        triggered.collect()
    }

    fn completed(&self) -> Vec<u64> {
        let completed = self.log.iter().filter_map(|decision| match decision {
            Decision::Completed { id, .. } => Some(id.0),
            _ => None,
        });
        completed.collect()
    }

    fn aborted(&self) -> Vec<(u64, FailureReason)> {
        let aborted = self.log.iter().filter_map(|decision| match decision {
            Decision::Aborted { id, reason, .. } => Some((id.0, *reason)),
            _ => None,
        });
        aborted.collect()
    }

    fn subsumed(&self) -> Vec<u64> {
        let subsumed = self.log.iter().filter_map(|decision| match decision {
            Decision::CleanSubsumed(id) => Some(id.0),
            _ => None,
        });
        subsumed.collect()
    }

    fn restarts(&self) -> usize {
        self.log.iter().filter(|decision| matches!(decision, Decision::Restart { .. })).count()
    }

    fn end_of(&self, number: RequestNumber) -> Option<RequestOutcome> {
        self.log.iter().find_map(|decision| match decision {
            Decision::Answer(of, end) if *of == number => Some(end.clone()),
            _ => None,
        })
    }

    fn failed_with(&self, number: RequestNumber) -> Option<FailureReason> {
        match self.end_of(number)? {
            RequestOutcome::Failed(_, reason, _) => Some(reason),
            RequestOutcome::Completed(_) => None,
        }
    }

    fn pending(&self) -> BTreeSet<u64> {
        self.coordinator.pending().keys().map(|id| id.0).collect()
    }
}

/// The names of functions in a folder that begin with the section of a statement.
fn statements_in(path: &std::path::Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| statements_in(&entry.unwrap().path(), found));
        return;
    }
    let text = std::fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn s5_"));
    found.extend(names.filter_map(|rest| Some(format!("s5_{}", rest.split_once('(')?.0))));
}

#[test]
fn the_table_of_statements_names_every_test_of_one_and_no_other() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tested = BTreeSet::new();
    statements_in(&root.join("src/coordinator"), &mut tested);
    statements_in(&root.join("src/config"), &mut tested);
    statements_in(&root.join("tests/it/coordinator"), &mut tested);

    let text = std::fs::read_to_string(root.join("docs/coordinator.md")).unwrap();
    let named = text.split('`').filter(|word| word.starts_with("s5_")).map(str::to_owned).collect();

    assert_eq!(tested, named);
}
