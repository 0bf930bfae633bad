//! Plays a schedule to a [`Coordinator`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::schedule::{PlayedSchedule, ScheduledEvent};
use crate::config::Retention;
use crate::coordinator::ack::TaskSnapshot;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::state::acks::AckOutcome;
use crate::coordinator::state::decision::{Decision, RequestOutcome, RestartCause};
use crate::coordinator::state::machine::{Beginning, Coordinator};
use crate::coordinator::state::queue::{RequestNumber, StopMode, WantedCheckpoint};
use crate::coordinator::state::retained::{RetainedCheckpoint, RetainedKind};
use crate::coordinator::state::tasks::TaskState;
use crate::coordinator::state::tests::{chk, ms, operator, rules};
use crate::coordinator::topology::{OperatorSpec, TaskId, Topology};
use crate::engine::jobs::leavings;
use crate::model::{CheckpointId, JobEnd, Leavings};

/// What was seen at one moment: milliseconds, then what tasks were told, in order, then, sorted, what else.
pub(super) type Instant = (u64, Vec<String>);

/// A job, and storage that does what it is told.
pub(super) struct Player {
    coordinator: Coordinator,
    now: Duration,
    told: BTreeMap<u64, Vec<String>>,
    others: BTreeMap<u64, BTreeMap<String, usize>>,
    labels: BTreeMap<RequestNumber, String>,
    /// Checkpoints that tasks were told of and that are not over.
    running: BTreeSet<u64>,
    retained: BTreeSet<u64>,
    tasks_running: BTreeSet<TaskId>,
    tasks_at_end: BTreeSet<TaskId>,
    attempt: u64,
    holds_begin: bool,
    holds_clean: bool,
    held_begins: Vec<CheckpointId>,
    held_cleans: usize,
    begin_fails: Option<FailureReason>,
    store_fails: bool,
}

impl Player {
    pub(super) fn new(schedule: &PlayedSchedule) -> Self {
        let keys = schedule.keys();
        let keys: Vec<(&str, &str)> = keys.iter().map(|(key, text)| (&**key, &**text)).collect();
        let operators = schedule
            .operators()
            .map(|(id, parallelism, union_list_state)| OperatorSpec { union_list_state, ..operator(&id, parallelism) });
        let kind = |foreign| if foreign { RetainedKind::Foreign } else { RetainedKind::Checkpoint };
        let retained = schedule.retained().map(|(id, foreign)| RetainedCheckpoint { id: chk(id), kind: kind(foreign) });
        let retained: Vec<RetainedCheckpoint> = retained.collect();
        let newest = retained.last();
        let beginning = Beginning {
            // Workers of Flink's are not lost by silence: that is not the coordinator's there.
            rules: rules(&[&[("heartbeat.timeout", "3650 d")], &*keys].concat()),
            topology: Topology::new(operators.collect()),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: newest.map_or(chk(1), |newest| chk(newest.id.0 + 1)),
            full: newest.is_some_and(|newest| newest.kind == RetainedKind::Foreign),
            draw: schedule.draw(),
            retained,
        };
        let coordinator = Coordinator::new(beginning, Duration::ZERO);
        let mut player = Self {
            retained: coordinator.retained().iter().map(|one| one.id.0).collect(),
            coordinator,
            now: Duration::ZERO,
            told: BTreeMap::new(),
            others: BTreeMap::new(),
            labels: BTreeMap::new(),
            running: BTreeSet::new(),
            tasks_running: BTreeSet::new(),
            tasks_at_end: BTreeSet::new(),
            attempt: 1,
            holds_begin: false,
            holds_clean: false,
            held_begins: vec![],
            held_cleans: 0,
            begin_fails: None,
            store_fails: false,
        };
        player.settle();
        player
    }

    /// Plays it, and returns what was seen.
    pub(super) fn play(mut self, schedule: &PlayedSchedule) -> Vec<Instant> {
        for event in schedule.events() {
            self.pass_until(ms(event.at));
            self.happen(&event);
            self.settle();
        }
        for (at, others) in self.others {
            let named = |(what, times): (String, usize)| if times == 1 { what } else { format!("{times} x {what}") };
            self.told.entry(at).or_default().extend(others.into_iter().map(named));
        }
        self.told.into_iter().collect()
    }

    fn pass_until(&mut self, until: Duration) {
        while let Some(due) = self.coordinator.next_wake().map(|due| due.max(self.now)).filter(|due| *due <= until) {
            self.now = due;
            self.coordinator.tick(due);
            self.settle();
        }
        self.now = until;
    }

    fn happen(&mut self, event: &ScheduledEvent) {
        let (first, second, now) = (event.argument(0), event.argument(1), self.now);
        match &*event.what {
            "run" => self.report_each(first, TaskState::Running),
            "finish" => self.report_each(first, TaskState::Finished),
            "end-of-data" => self.report_each(first, TaskState::EndOfData),
            "fail" => self.report(self.task(first), TaskState::Failed),
            "checkpoint" => {
                let times = if second == "*" { 1 } else { second.parse().expect("a number") };
                (0..times).for_each(|_| self.ask(first, WantedCheckpoint::Checkpoint));
            }
            "savepoint" => self.ask(first, WantedCheckpoint::Savepoint),
            "stop" => {
                let mode = if second == "drain" { StopMode::Drain } else { StopMode::Suspend };
                let number = self.coordinator.stop(mode, now);
                self.labels.insert(number, first.to_owned());
            }
            "ack" => self.acknowledge_each(first, second, event.argument(2) == "finished"),
            "ack-of-attempt-before" => self.acknowledge(self.id(first), self.task(second), self.attempt - 1, false),
            "decline" => self.decline(first, second, event.argument(2)),
            "backlog" => {
                let (at, _) = self.coordinator.topology().operator(first).expect("an operator");
                self.coordinator.report_backlog(at, second == "true", now);
            }
            "hold" => self.hold(first),
            "release" => self.release(first),
            "clean-one" => self.clean(1),
            "fail-begin" => {
                self.begin_fails =
                    Some(if first == "io" { FailureReason::IoException } else { FailureReason::Trigger });
            }
            "fail-store" => self.store_fails = true,
            "heal" => (self.begin_fails, self.store_fails) = (None, false),
            "halt" => {
                // There, what tasks report next goes on.
                self.coordinator.halt(now);
                self.coordinator.go_on();
            }
            "end" => self.end(first),
            "pass" => {}
            what => panic!("nobody knows what {what} is"),
        }
    }

    /// Carries out what was decided.
    fn settle(&mut self) {
        loop {
            let decided = self.coordinator.decisions();
            if decided.is_empty() {
                break;
            }
            decided.into_iter().for_each(|decision| self.carry_out(decision));
        }
        if self.attempt != self.coordinator.attempt() {
            self.attempt = self.coordinator.attempt();
            self.tasks_running.clear();
            self.tasks_at_end.clear();
        }
        let retained = self.coordinator.retained().iter().map(|one| one.id.0).collect();
        let gone: Vec<u64> = self.retained.difference(&retained).copied().collect();
        gone.into_iter().for_each(|id| self.other(format!("subsume {id}")));
        self.retained = retained;
    }

    fn carry_out(&mut self, decision: Decision) {
        let now = self.now;
        match decision {
            Decision::Begin { id, .. } if self.holds_begin => self.held_begins.push(id),
            Decision::Begin { id, .. } => self.begin(id),
            Decision::Trigger(id) => {
                self.running.insert(id.0);
                let full = self.coordinator.pending().get(&id).is_some_and(|pending| {
                    pending.full && !pending.wanted().is_savepoint() && self.coordinator.rules().incremental
                });
                self.tell(format!("trigger {id}{}", if full { " full" } else { "" }));
            }
            Decision::Store(id) => {
                let stored =
                    if std::mem::take(&mut self.store_fails) { Err("it was told to fail".into()) } else { Ok(()) };
                self.coordinator.stored(id, stored, now);
            }
            Decision::Completed { id, wanted, last_subsumed } => {
                self.running.remove(&id.0);
                let over = last_subsumed.map(|last| format!(" over {last}")).unwrap_or_default();
                let untold = if wanted == WantedCheckpoint::Savepoint { " untold" } else { "" };
                self.tell(format!("complete {id}{over}{untold}"));
            }
            Decision::Aborted { id, reason, .. } => {
                self.running.remove(&id.0);
                self.tell(format!("abort {id} {reason}"));
            }
            Decision::CleanAborted(id) | Decision::CleanSubsumed(id) => {
                self.other(format!("discard {id}"));
                self.held_cleans += 1;
                if !self.holds_clean {
                    self.clean(1);
                }
            }
            Decision::Answer(number, end) => self.answer(number, &end),
            Decision::Restart { cause: RestartCause::CheckpointFailures, .. } => self.other("job-failed".to_owned()),
            Decision::Subsumed(_) | Decision::Restart { .. } | Decision::Note | Decision::Stop(..) => {}
            Decision::Finished => {}
        }
    }

    fn begin(&mut self, id: CheckpointId) {
        let begun = self.begin_fails.take().map_or(Ok(()), |reason| Err((reason, "it was told to fail".to_owned())));
        self.coordinator.begun(id, begun, self.now);
    }

    fn answer(&mut self, number: RequestNumber, end: &RequestOutcome) {
        let Some(label) = self.labels.get(&number) else { return };
        self.other(match end {
            RequestOutcome::Completed(id) => format!("answer {label} completed {id}"),
            RequestOutcome::Failed(_, reason, _) => format!("answer {label} failed {reason}"),
        });
    }

    fn tell(&mut self, what: String) {
        self.told.entry(self.millis()).or_default().push(what);
    }

    fn other(&mut self, what: String) {
        *self.others.entry(self.millis()).or_default().entry(what).or_default() += 1;
    }

    fn millis(&self) -> u64 {
        self.now.as_millis().try_into().expect("a short story")
    }

    fn ask(&mut self, label: &str, wanted: WantedCheckpoint) {
        let number = self.coordinator.request(wanted, self.now);
        self.labels.insert(number, label.to_owned());
        self.settle();
    }

    /// The task that is named `operator.subtask`.
    fn task(&self, name: &str) -> TaskId {
        let (operator, subtask) = name.rsplit_once('.').expect("operator.subtask");
        let (operator, _) = self.coordinator.topology().operator(operator).expect("an operator");
        TaskId { operator, subtask: subtask.parse().expect("a subtask") }
    }

    fn tasks(&self, name: &str) -> Vec<TaskId> {
        if name == "*" { self.coordinator.topology().tasks().collect() } else { vec![self.task(name)] }
    }

    /// Reports what is new. Each report is by itself, as each is with Flink.
    fn report_each(&mut self, name: &str, state: TaskState) {
        for task in self.tasks(name) {
            let runs = self.tasks_running.contains(&task);
            let news = match state {
                TaskState::Running => !runs && !self.coordinator.tasks().is_finished(task),
                TaskState::EndOfData => runs && self.tasks_at_end.insert(task),
                TaskState::Finished | TaskState::Failed => runs,
            };
            if news {
                self.report(task, state);
            }
        }
    }

    fn report(&mut self, task: TaskId, state: TaskState) {
        match state {
            TaskState::Running => drop(self.tasks_running.insert(task)),
            TaskState::Finished => drop(self.tasks_running.remove(&task)),
            TaskState::EndOfData | TaskState::Failed => {}
        }
        self.coordinator.report(self.attempt, &[(task, state)], None, self.now);
        self.settle();
    }

    /// A number, or the oldest or newest that tasks were told of and that is not over; 0 if there is none.
    fn id(&self, reference: &str) -> u64 {
        match reference {
            "oldest" => self.running.first().copied().unwrap_or_default(),
            "newest" => self.running.last().copied().unwrap_or_default(),
            number => number.parse().expect("a number"),
        }
    }

    fn acknowledge_each(&mut self, reference: &str, name: &str, finished: bool) {
        let id = self.id(reference);
        for task in self.tasks(name) {
            // All that are to acknowledge do, and the last one completes it.
            let has_to = self.running.contains(&id) && !self.coordinator.tasks().is_finished(task);
            if id != 0 && (name != "*" || has_to) {
                self.acknowledge(id, task, self.attempt, finished);
            }
        }
    }

    fn acknowledge(&mut self, id: u64, task: TaskId, attempt: u64, finished: bool) {
        if self.coordinator.pending().contains_key(&chk(id)) && !self.running.contains(&id) {
            return; // No task knows of it yet.
        }
        let snapshot = TaskSnapshot { finished, ..TaskSnapshot::default() };
        let outcome = self.coordinator.acknowledge(chk(id), task, attempt, snapshot, self.now);
        self.settle();
        if !matches!(outcome, AckOutcome::Taken { .. } | AckOutcome::Repeated { .. }) {
            self.other(format!("late {id} {}", self.name(task)));
        }
    }

    fn name(&self, task: TaskId) -> String {
        format!("{}.{}", self.coordinator.topology().operators()[task.operator].id, task.subtask)
    }

    fn decline(&mut self, reference: &str, name: &str, reason: &str) {
        let (id, reason) = (self.id(reference), reason.parse().expect("a reason of Flink's"));
        if id != 0 {
            self.coordinator.decline(chk(id), self.task(name), self.attempt, (reason, String::new()), self.now);
        }
    }

    fn hold(&mut self, what: &str) {
        self.holds_begin |= what == "begin";
        self.holds_clean |= what == "clean";
    }

    fn release(&mut self, what: &str) {
        if what == "begin" {
            self.holds_begin = false;
            std::mem::take(&mut self.held_begins).into_iter().for_each(|id| self.begin(id));
        } else {
            self.holds_clean = false;
            self.clean(self.held_cleans);
        }
    }

    fn clean(&mut self, at_most: usize) {
        for _ in 0..at_most.min(self.held_cleans) {
            self.held_cleans -= 1;
            self.coordinator.cleaned(self.now);
        }
    }

    /// The job ends, and leaves what its retention leaves.
    fn end(&mut self, state: &str) {
        let end = match state {
            "FINISHED" => JobEnd::Finished,
            "CANCELED" => JobEnd::Canceled,
            "FAILED" => JobEnd::Failed,
            "SUSPENDED" => JobEnd::Suspended,
            other => panic!("nobody knows what {other} is"),
        };
        self.coordinator.end(self.now);
        self.settle();
        let retention: Retention = self.coordinator.rules().retention;
        if leavings(end, retention) == Leavings::Delete {
            let own = self.coordinator.retained().iter().filter(|one| one.kind == RetainedKind::Checkpoint);
            let own: Vec<u64> = own.map(|one| one.id.0).collect();
            own.into_iter().for_each(|id| self.other(format!("discard {id}")));
        }
    }
}
