//! Sections 5.6 to 5.8, 5.10, 5.11: how a checkpoint completes, what goes for it, savepoints.

use super::*;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::state::queue::StopMode;
use crate::coordinator::state::retained::{RetainedCheckpoint, RetainedCheckpoints, RetainedKind};

fn kept(id: u64, kind: RetainedKind) -> RetainedCheckpoint {
    RetainedCheckpoint { id: chk(id), kind }
}

#[test]
fn s5_6_a_checkpoint_completes_in_flinks_order() {
    let mut scene = Scene::new(&[("max-concurrent-checkpoints", "3")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);
    scene.ask(WantedCheckpoint::Checkpoint);
    let number = scene.ask(WantedCheckpoint::Checkpoint);
    scene.log.clear();

    scene.ack_all(3);

    let message = FailureReason::Subsumed.message().to_owned();
    let (wanted, reason) = (WantedCheckpoint::Checkpoint, FailureReason::Subsumed);
    let RequestOutcome::Failed(..) = scene.end_of(RequestNumber(1)).unwrap() else { panic!("the second one failed") };
    let expected = [
        Decision::Store(chk(3)),
        Decision::Answer(number, RequestOutcome::Completed(chk(3))),
        Decision::Aborted { id: chk(2), wanted, reason, message: message.clone() },
        Decision::CleanAborted(chk(2)),
        Decision::Answer(RequestNumber(1), RequestOutcome::Failed(Some(chk(2)), reason, message)),
        Decision::Completed { id: chk(3), wanted, last_subsumed: Some(chk(1)) },
        Decision::Subsumed(chk(1)),
        Decision::CleanSubsumed(chk(1)),
    ];
    assert_eq!(scene.log, expected);
}

#[test]
fn s5_6_nothing_completes_before_it_is_stored() {
    let mut scene = Scene::new(&[]);
    scene.holds_store = true;
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);

    assert_eq!(scene.completed(), [0; 0]);
    scene.pass(3_600_000);
    assert_eq!(scene.aborted(), [], "it does not expire any more");
    scene.act(|coordinator, now| coordinator.stored(chk(1), Ok(()), now));

    assert_eq!(scene.completed(), [1]);
}

#[test]
fn s5_6_a_savepoint_subsumes_nothing_and_leaves_older_ones_in_progress() {
    let mut scene = Scene::new(&[("max-concurrent-checkpoints", "3")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ask(WantedCheckpoint::Savepoint);

    scene.ack_all(3);

    assert_eq!((scene.subsumed(), scene.aborted()), (vec![], vec![]));
    assert_eq!(scene.pending(), [2].into());
    assert_eq!(scene.coordinator.retained().newest(), Some(&kept(1, RetainedKind::Checkpoint)));
}

#[test]
fn s5_6_the_savepoint_of_a_stop_is_told_and_subsumes_nothing() {
    let mut scene = Scene::new(&[("unaligned.enabled", "true")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);

    let number = scene.act(|coordinator, now| coordinator.stop(StopMode::Drain, now));
    scene.ack_all(2);

    assert_eq!(scene.end_of(number), Some(RequestOutcome::Completed(chk(2))));
    assert_eq!(scene.subsumed(), [0; 0]);
    let wanted = WantedCheckpoint::Stop(StopMode::Drain);
    let completed = Decision::Completed { id: chk(2), wanted, last_subsumed: None };
    let at = |decision: &Decision| scene.log.iter().position(|known| known == decision).unwrap();
    assert!(at(&completed) < at(&Decision::Stop(chk(2), StopMode::Drain)));
}

#[test]
fn s5_6_a_completed_checkpoint_does_not_give_up_a_forced_savepoint() {
    let mut scene = Scene::new(&[("max-concurrent-checkpoints", "3")]);
    scene.ask(WantedCheckpoint::Savepoint);
    scene.ask(WantedCheckpoint::Checkpoint);

    scene.ack_all(2);

    assert_eq!((scene.pending(), scene.aborted()), ([1].into(), vec![]));
}

#[test]
fn s5_6_what_cannot_be_stored_is_given_up_and_cleaned() {
    let mut scene = Scene::new(&[]);
    scene.holds_store = true;
    let number = scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);

    scene.act(|coordinator, now| coordinator.stored(chk(1), Err("no answer".into()), now));

    assert_eq!(scene.aborted(), [(1, FailureReason::Finalize)]);
    assert!(scene.log.contains(&Decision::CleanAborted(chk(1))));
    assert_eq!(scene.failed_with(number), Some(FailureReason::Finalize));
}

#[test]
fn s5_7_as_many_are_retained_as_are_asked_for_and_one_at_least() {
    let mut scene = Scene::new(&[("num-retained", "2")]);

    for id in 1..=4 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.ack_all(id);
    }

    assert_eq!(scene.subsumed(), [1, 2]);
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
    assert!(defaults.with([("execution.checkpointing.num-retained", "0")]).is_err());
}

#[test]
fn s5_7_restored_ones_may_go_and_the_newest_own_one_stays() {
    use RetainedKind::{Checkpoint, Foreign, StopSavepoint};
    let ids = |gone: Vec<RetainedCheckpoint>| gone.iter().map(|one| one.id.0).collect::<Vec<_>>();

    let mut retained = RetainedCheckpoints::new(vec![kept(1, Foreign)]);
    assert_eq!(ids(retained.add(kept(2, Checkpoint), 1)), [1]);
    let mut retained = RetainedCheckpoints::new(vec![kept(1, Checkpoint)]);
    assert_eq!(ids(retained.add(kept(2, Foreign), 1)), [0; 0], "the newest own one is protected");
    let mut retained = RetainedCheckpoints::new(vec![kept(1, Checkpoint), kept(2, Foreign)]);
    assert_eq!(ids(retained.add(kept(3, Foreign), 1)), [2]);
    let mut retained = RetainedCheckpoints::new(vec![kept(1, Checkpoint)]);
    assert_eq!(ids(retained.add(kept(2, StopSavepoint), 1)), [1], "but not once the job has stopped");
}

#[test]
fn s5_7_one_that_is_not_cleaned_does_not_stop_the_walk_and_the_highest_is_told() {
    let mut scene = Scene::new(&[("num-retained", "3")]);
    for id in 1..=3 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.ack_all(id);
    }
    scene.holds_clean = true;

    scene.act(|coordinator, now| coordinator.reconfigure(rules(&[("num-retained", "1")]), now));

    assert_eq!(scene.subsumed(), [1, 2]);
    assert!(scene.log.contains(&Decision::Subsumed(chk(2))));
}

#[test]
fn s5_7_what_an_owner_before_left_over_goes() {
    for (newest, gone) in [(RetainedKind::Checkpoint, vec![1, 2]), (RetainedKind::StopSavepoint, vec![])] {
        let retained = vec![kept(1, RetainedKind::Checkpoint), kept(2, RetainedKind::Checkpoint), kept(3, newest)];
        let scene = Scene::begun(Beginning {
            rules: rules(&[]),
            topology: Topology::new(vec![operator("a", 1)]),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: chk(4),
            retained,
            full: false,
            draw: 1.0,
        });

        assert_eq!(scene.subsumed(), gone, "for the savepoint of a stop nothing goes");
    }
}

#[test]
fn s5_8_a_checkpoint_uses_earlier_ones_only_if_it_is_incremental_and_is_not_full() {
    let full_of = |keys: &[(&str, &str)], full| {
        let mut scene = Scene::begun(Beginning {
            rules: rules(keys),
            topology: Topology::new(vec![operator("a", 1)]),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: chk(1),
            retained: vec![],
            full,
            draw: 1.0,
        });
        scene.all_run();
        let mut was = vec![];
        for id in 1..=2 {
            scene.ask(WantedCheckpoint::Checkpoint);
            was.push(scene.coordinator.pending()[&chk(id)].full);
            scene.ack_all(id);
        }
        was
    };
    assert_eq!(full_of(&[], false), [true, true]);
    assert_eq!(full_of(&[("incremental", "true")], false), [false, false]);
    assert_eq!(full_of(&[("incremental", "true")], true), [true, false], "the first after no-claim");
}

#[test]
fn s5_10_what_is_being_cleaned_is_counted_until_it_is_over_and_queued_requests_are_tried_again() {
    let keys = [("max-concurrent-checkpoints", "1"), ("tolerable-failed-checkpoints", "99")];
    let mut scene = Scene::new(&keys);
    scene.holds_clean = true;
    for id in 1..=2 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.decline(id, FailureReason::Declined);
    }
    assert_eq!(scene.coordinator.waiting(), (0, 2));
    scene.ask(WantedCheckpoint::Checkpoint);
    assert_eq!(scene.coordinator.waiting(), (1, 2));

    scene.act(Coordinator::cleaned);

    assert_eq!(scene.coordinator.waiting(), (0, 1));
    assert_eq!(scene.triggered(), [1, 2, 3]);
}

#[test]
fn s5_11_savepoints_are_forced_unless_checkpoints_are_unaligned() {
    for (unaligned, begun) in [("false", vec![1, 2]), ("true", vec![1])] {
        let mut scene = Scene::new(&[("unaligned.enabled", unaligned)]);
        scene.ask(WantedCheckpoint::Checkpoint);

        scene.ask(WantedCheckpoint::Savepoint);

        assert_eq!(scene.triggered(), begun, "{unaligned}");
    }
}

#[test]
fn s5_11_a_savepoint_is_always_full_and_never_goes() {
    let mut scene = Scene::new(&[("incremental", "true")]);
    scene.ask(WantedCheckpoint::Savepoint);
    assert!(scene.coordinator.pending()[&chk(1)].full);
    scene.ack_all(1);

    for id in 2..=5 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.ack_all(id);
    }

    assert_eq!(scene.subsumed(), [2, 3, 4]);
}

#[test]
fn s5_11_a_stop_suspends_periodic_checkpoints_and_a_failed_one_lets_the_job_go_on() {
    let keys = [("interval", "100 ms"), ("timeout", "1 s")];
    let mut scene = Scene::new(&keys);
    scene.pass(100);

    let number = scene.act(|coordinator, now| coordinator.stop(StopMode::Suspend, now));
    assert_eq!(scene.aborted(), [(1, FailureReason::CoordinatorSuspend)]);
    scene.pass(999);
    assert_eq!(scene.triggered(), [1, 2]);
    let refused = scene.ask(WantedCheckpoint::Checkpoint);
    assert_eq!(scene.failed_with(refused), Some(FailureReason::CoordinatorShutdown));
    scene.pass(1);
    assert_eq!(scene.failed_with(number), Some(FailureReason::Expired));
    scene.pass(100);

    assert_eq!(scene.triggered(), [1, 2, 3]);
}

#[test]
fn a_task_that_fails_while_the_savepoint_of_a_stop_is_being_stored_has_the_job_go_on() {
    let mut scene = Scene::new(&[("interval", "100 ms")]);
    scene.holds_store = true;
    scene.act(|coordinator, now| coordinator.stop(StopMode::Suspend, now));
    scene.ack_all(1);
    scene.report(&[task(0, 0)], TaskState::Failed);

    scene.act(|coordinator, now| coordinator.stored(chk(1), Ok(()), now));
    assert_eq!((scene.restarts(), scene.completed()), (1, vec![1]));
    assert!(!scene.log.iter().any(|decision| matches!(decision, Decision::Stop(..))), "{:?}", scene.log);
    assert_eq!(scene.coordinator.phase(), JobPhase::Restarting);

    scene.holds_store = false;
    scene.all_run();
    scene.pass(100);
    assert_eq!(scene.triggered(), [1, 2], "periodic ones go on");
}
