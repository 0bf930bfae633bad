//! Any history: the coordinator beside a model that only remembers who acknowledged what.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Ask(bool),
    Ack { which: usize, task: usize },
    AckAll { which: usize },
    Decline { which: usize },
    Begun { fails: bool },
    Stored { fails: bool },
    Cleaned,
    Backlog(bool),
    Finish(usize),
    Fail(usize),
    Run,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..150).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(Step::Ask),
        6 => (0_usize..3, 0_usize..4).prop_map(|(which, task)| Step::Ack { which, task }),
        4 => (0_usize..3).prop_map(|which| Step::AckAll { which }),
        1 => (0_usize..3).prop_map(|which| Step::Decline { which }),
        4 => prop::bool::weighted(0.1).prop_map(|fails| Step::Begun { fails }),
        4 => prop::bool::weighted(0.1).prop_map(|fails| Step::Stored { fails }),
        3 => Just(Step::Cleaned),
        1 => any::<bool>().prop_map(Step::Backlog),
        1 => (0_usize..4).prop_map(Step::Finish),
        1 => (0_usize..4).prop_map(Step::Fail),
        3 => Just(Step::Run),
    ]
}

/// What a bookkeeper without any rule would know.
#[derive(Debug, Default)]
struct Ledger {
    begun: BTreeSet<u64>,
    completed: Vec<u64>,
    aborted: BTreeSet<u64>,
    told: BTreeSet<u64>,
    to_begin: Vec<CheckpointId>,
    to_store: Vec<CheckpointId>,
    to_clean: usize,
    /// Own completed ones that were not subsumed.
    kept: BTreeSet<u64>,
    acked: BTreeMap<u64, BTreeSet<TaskId>>,
    expected: BTreeMap<u64, BTreeSet<TaskId>>,
    restarts: usize,
}

impl Ledger {
    fn note(&mut self, coordinator: &Coordinator, decision: Decision) {
        match decision {
            Decision::Begin { id, .. } => {
                assert!(self.begun.insert(id.0), "{id} begins twice");
                self.to_begin.push(id);
                let missing = coordinator.pending().get(&id).map(|pending| pending.missing.clone());
                self.expected.insert(id.0, missing.unwrap_or_default());
            }
            Decision::Trigger(id) => assert!(self.told.insert(id.0), "{id} is told twice"),
            Decision::Store(id) => self.to_store.push(id),
            Decision::Completed { id, wanted, .. } => {
                assert!(self.begun.contains(&id.0) && !self.aborted.contains(&id.0) && !self.completed.contains(&id.0));
                assert_eq!(self.acked.get(&id.0), self.expected.get(&id.0), "all that had to have acknowledged {id}");
                self.completed.push(id.0);
                if !wanted.is_savepoint() {
                    self.kept.insert(id.0);
                }
            }
            Decision::Aborted { id, .. } => {
                assert!(!self.completed.contains(&id.0) && self.aborted.insert(id.0), "{id} ends twice");
            }
            Decision::CleanAborted(_) => self.to_clean += 1,
            Decision::CleanSubsumed(id) => {
                self.to_clean += 1;
                assert!(self.kept.remove(&id.0), "{id} is subsumed, and was not kept");
                assert!(self.kept.iter().all(|newer| *newer > id.0), "the oldest goes first");
            }
            Decision::Restart { .. } => self.restarts += 1,
            Decision::Subsumed(_) | Decision::Answer(..) | Decision::Note | Decision::Stop(..) | Decision::Finished => {
            }
        }
    }
}

fn nth_pending(coordinator: &Coordinator, which: usize) -> Option<CheckpointId> {
    coordinator.pending().keys().nth(which).copied()
}

fn play(steps: Vec<Step>, concurrent: u64, retained: u64) {
    let (concurrent, retained) = (concurrent.to_string(), retained.to_string());
    let keys = [
        ("interval", "100 ms"),
        ("interval-during-backlog", "300 ms"),
        ("timeout", "400 ms"),
        ("min-pause", "20 ms"),
        ("max-concurrent-checkpoints", &*concurrent),
        ("num-retained", &*retained),
        ("tolerable-failed-checkpoints", "2"),
    ];
    let mut coordinator = Coordinator::new(
        Beginning {
            rules: rules(&keys),
            topology: Topology::new(vec![operator("source", 2), operator("count", 2)]),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: chk(1),
            retained: vec![],
            full: false,
            draw: 0.5,
        },
        Duration::ZERO,
    );
    let tasks: Vec<TaskId> = coordinator.topology().tasks().collect();
    let (mut ledger, mut now) = (Ledger::default(), Duration::ZERO);
    for step in steps {
        let attempt = coordinator.attempt();
        match step {
            Step::Pass(millis) => now += ms(millis),
            Step::Ask(savepoint) => {
                coordinator
                    .request(if savepoint { WantedCheckpoint::Savepoint } else { WantedCheckpoint::Checkpoint }, now);
            }
            Step::Ack { which, task } => {
                if let Some(id) = nth_pending(&coordinator, which) {
                    let outcome = coordinator.acknowledge(id, tasks[task], attempt, TaskSnapshot::default(), now);
                    if matches!(outcome, AckOutcome::Taken { .. }) {
                        assert!(ledger.acked.entry(id.0).or_default().insert(tasks[task]));
                    }
                }
            }
            Step::AckAll { which } => {
                for task in &tasks {
                    let Some(id) = nth_pending(&coordinator, which) else { break };
                    let outcome = coordinator.acknowledge(id, *task, attempt, TaskSnapshot::default(), now);
                    if matches!(outcome, AckOutcome::Taken { .. }) {
                        ledger.acked.entry(id.0).or_default().insert(*task);
                    }
                }
            }
            Step::Decline { which } => {
                if let Some(id) = nth_pending(&coordinator, which) {
                    coordinator.decline(id, tasks[0], attempt, (FailureReason::Declined, String::new()), now);
                }
            }
            Step::Begun { fails } => {
                for id in std::mem::take(&mut ledger.to_begin) {
                    let failed = Err((FailureReason::IoException, String::new()));
                    coordinator.begun(id, if fails { failed } else { Ok(()) }, now);
                }
            }
            Step::Stored { fails } => {
                for id in std::mem::take(&mut ledger.to_store) {
                    coordinator.stored(id, if fails { Err(String::new()) } else { Ok(()) }, now);
                }
            }
            Step::Cleaned if ledger.to_clean > 0 => {
                ledger.to_clean -= 1;
                coordinator.cleaned(now);
            }
            Step::Cleaned => {}
            Step::Backlog(backlog) => coordinator.report_backlog(0, backlog, now),
            Step::Finish(task) => {
                coordinator.report(attempt, &[(tasks[task], TaskState::Finished)], None, now);
            }
            Step::Fail(task) => {
                coordinator.report(attempt, &[(tasks[task], TaskState::Failed)], None, now);
            }
            Step::Run => {
                let all: Vec<_> = tasks.iter().map(|task| (*task, TaskState::Running)).collect();
                coordinator.report(attempt, &all, None, now);
            }
        }
        coordinator.tick(now);
        for decision in coordinator.decisions() {
            ledger.note(&coordinator, decision);
        }
        check(&coordinator, &ledger, now);
    }
}

fn check(coordinator: &Coordinator, ledger: &Ledger, now: Duration) {
    let rules = coordinator.rules();
    let over = |id: &u64| ledger.aborted.contains(id) || ledger.completed.contains(id);
    let pending: BTreeSet<u64> = coordinator.pending().keys().map(|id| id.0).collect();
    let open: BTreeSet<u64> = ledger.begun.iter().copied().filter(|id| !over(id)).collect();
    assert_eq!(pending, open, "what began and is not over is pending");
    let unforced = coordinator.pending().values().filter(|pending| !pending.request.forced).count();
    assert!(unforced <= rules.concurrent_max);
    assert!(ledger.kept.len() <= rules.retained, "{:?}", ledger.kept);
    assert_eq!(coordinator.waiting().1, ledger.to_clean);
    assert!(coordinator.failures_in_a_row() <= 2);
    assert!(
        coordinator
            .next_wake()
            .is_none_or(|due| due > now || coordinator.phase() != super::super::machine::JobPhase::Ended)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_coordinator_agrees_with_the_ledger_after_any_history(
        steps in vec(any_step(), 1..200),
        concurrent in 1_u64..4,
        retained in 1_u64..4,
    ) {
        play(steps, concurrent, retained);
    }
}
