//! Any history: the coordinator beside a model that only remembers who acknowledged what, which attempt was told, and what was halted.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::state::pending::CheckpointPhase;
use crate::coordinator::state::retained::{RetainedCheckpoint, RetainedKind};

/// The first attempt of the job.
const FIRST: u64 = 417_001;

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Ask(bool),
    Ack {
        which: usize,
        task: usize,
    },
    AckAll {
        which: usize,
    },
    Decline {
        which: usize,
    },
    Begun {
        fails: bool,
    },
    Stored {
        fails: bool,
    },
    Cleaned,
    Backlog(bool),
    Finish(usize),
    Fail(usize),
    Run,
    /// A task acknowledges that has not heard of the attempt.
    AckOfBefore {
        which: usize,
        task: usize,
    },
    /// Another process begins in the place of one that runs.
    Replace(usize),
    /// Somebody has chosen another state, or the end: nothing begins any more.
    Halt,
    /// What was halted does not happen.
    Resume,
    /// It happens: the job goes on from its newest checkpoint, without claiming it, or from another one that it has claimed.
    Restore {
        claims: bool,
        parallelism: u32,
    },
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
        1 => (0_usize..3, 0_usize..4).prop_map(|(which, task)| Step::AckOfBefore { which, task }),
        1 => (0_usize..4).prop_map(Step::Replace),
        1 => Just(Step::Halt),
        1 => Just(Step::Resume),
        1 => (any::<bool>(), 1_u32..4).prop_map(|(claims, parallelism)| Step::Restore { claims, parallelism }),
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
    /// The attempt that was told last.
    told_attempt: u64,
    /// The attempt of the last look.
    attempt: u64,
    halted: bool,
    /// Whether nothing of earlier checkpoints may be used.
    full: bool,
}

impl Ledger {
    fn note(&mut self, coordinator: &Coordinator, decision: Decision) {
        match decision {
            Decision::Begin { id, wanted, .. } => {
                assert!(!self.halted, "{id} begins while another state is chosen");
                assert!(self.begun.last().is_none_or(|last| *last < id.0), "{id} was used before");
                assert!(self.begun.insert(id.0));
                let full = coordinator.pending().get(&id).map(|pending| pending.full);
                assert!(full.is_none_or(|full| full == (self.full || wanted.is_savepoint())), "{id} is full, or not");
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
                    self.full = false;
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
            Decision::Restart { .. } => {
                assert!(!coordinator.is_storing(), "tasks begin from what will be the newest");
                assert!(self.told_attempt < coordinator.attempt(), "an attempt is told once");
                self.told_attempt = coordinator.attempt();
            }
            Decision::Subsumed(_) | Decision::Answer(..) | Decision::Note | Decision::Stop(..) | Decision::Finished => {
            }
        }
    }
}

/// Storage comes to its end with all that it was asked.
fn settle(coordinator: &mut Coordinator, ledger: &mut Ledger, now: Duration) {
    loop {
        for decision in coordinator.decisions() {
            ledger.note(coordinator, decision);
        }
        if let Some(id) = ledger.to_begin.pop() {
            coordinator.begun(id, Ok(()), now);
        } else if let Some(id) = ledger.to_store.pop() {
            coordinator.stored(id, Ok(()), now);
        } else if ledger.to_clean > 0 {
            ledger.to_clean -= 1;
            coordinator.cleaned(now);
        } else {
            return;
        }
    }
}

fn restore(coordinator: &mut Coordinator, ledger: &mut Ledger, (claims, parallelism): (bool, u32), now: Duration) {
    let known = ledger.begun.iter().chain(&ledger.kept).max().copied().unwrap_or(0);
    let claimed = RetainedCheckpoint { id: chk(known + 3), kind: RetainedKind::Checkpoint };
    let from = claims.then_some(claimed);
    ledger.kept.extend(from.map(|from| from.id.0));
    (ledger.halted, ledger.full) = (false, !claims);
    let topology = Topology::new(vec![operator("source", 2), operator("count", parallelism)]);
    coordinator.restore(topology, from, chk(known + 4), !claims, now);
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
        ("incremental", "true"),
    ];
    let mut coordinator = Coordinator::new(
        Beginning {
            rules: rules(&keys),
            topology: Topology::new(vec![operator("source", 2), operator("count", 2)]),
            attempt: FIRST,
            first_attempt: FIRST,
            ran: None,
            next_id: chk(1),
            retained: vec![],
            full: false,
            draw: 0.5,
        },
        Duration::ZERO,
    );
    let mut ledger = Ledger { told_attempt: FIRST, attempt: FIRST, ..Ledger::default() };
    let mut now = Duration::ZERO;
    for step in steps {
        let attempt = coordinator.attempt();
        let tasks: Vec<TaskId> = coordinator.topology().tasks().collect();
        let task_of = |task: usize| tasks[task % tasks.len()];
        let over = coordinator.phase() == JobPhase::Ended;
        match step {
            Step::Pass(millis) => now += ms(millis),
            Step::Ask(savepoint) => {
                coordinator
                    .request(if savepoint { WantedCheckpoint::Savepoint } else { WantedCheckpoint::Checkpoint }, now);
            }
            Step::Ack { which, task } => {
                if let Some(id) = nth_pending(&coordinator, which) {
                    let outcome = coordinator.acknowledge(id, task_of(task), attempt, TaskSnapshot::default(), now);
                    if matches!(outcome, AckOutcome::Taken { .. }) {
                        assert!(ledger.acked.entry(id.0).or_default().insert(task_of(task)));
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
                coordinator.report(attempt, &[(task_of(task), TaskState::Finished)], None, now);
            }
            Step::Fail(task) => {
                coordinator.report(attempt, &[(task_of(task), TaskState::Failed)], None, now);
            }
            Step::Run => {
                let all: Vec<_> = tasks.iter().map(|task| (*task, TaskState::Running)).collect();
                coordinator.report(attempt, &all, None, now);
            }
            Step::AckOfBefore { which, task } => {
                let id = nth_pending(&coordinator, which).unwrap_or(chk(1));
                let outcome = coordinator.acknowledge(id, task_of(task), attempt - 1, TaskSnapshot::default(), now);
                assert_eq!(outcome, AckOutcome::OtherAttempt(attempt));
            }
            Step::Replace(task) => coordinator.replaced(task_of(task), "other", now),
            Step::Halt if !over => {
                ledger.halted = true;
                coordinator.halt(now);
            }
            Step::Resume if ledger.halted => {
                settle(&mut coordinator, &mut ledger, now);
                ledger.halted = false;
                coordinator.resume(now);
            }
            Step::Restore { claims, parallelism } if ledger.halted && !over => {
                settle(&mut coordinator, &mut ledger, now);
                restore(&mut coordinator, &mut ledger, (claims, parallelism), now);
                assert!(!coordinator.tasks().is_settled(), "all begin anew");
            }
            Step::Halt | Step::Resume | Step::Restore { .. } => {}
        }
        coordinator.tick(now);
        for decision in coordinator.decisions() {
            ledger.note(&coordinator, decision);
        }
        check(&coordinator, &ledger, now);
        ledger.attempt = coordinator.attempt();
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
    let attempt = coordinator.attempt();
    assert!(attempt >= ledger.attempt, "attempts only grow");
    assert_eq!((coordinator.first_attempt(), coordinator.restarts()), (FIRST, attempt - FIRST));
    if !coordinator.is_storing() {
        assert_eq!(ledger.told_attempt, attempt, "tasks are told");
    }
    for (id, pending) in coordinator.pending() {
        let storing = pending.phase == CheckpointPhase::Storing;
        assert!(storing || pending.attempt == attempt && !ledger.halted, "{id} is of an attempt that is over");
    }
    assert!(coordinator.next_wake().is_none_or(|due| due > now || coordinator.phase() != JobPhase::Ended));
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
