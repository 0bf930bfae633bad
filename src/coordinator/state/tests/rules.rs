//! Sections 5.5, 5.13, 5.15: failures that count, unaligned checkpoints, settings that change.

use super::*;
use crate::config::CheckpointMode;
use crate::coordinator::state::failures::{Blame, FailureCount};

fn fail(scene: &mut Scene, times: u64, reason: FailureReason) {
    for _ in 0..times {
        scene.ask(WantedCheckpoint::Checkpoint);
        let id = *scene.pending().last().unwrap();
        scene.decline(id, reason);
        if scene.restarts() > 0 {
            return;
        }
    }
}

#[test]
fn s5_5_the_job_fails_with_the_first_failure_that_is_not_tolerated() {
    for tolerated in [0_u64, 1, 3] {
        let text = tolerated.to_string();
        let mut scene = Scene::new(&[("tolerable-failed-checkpoints", &text)]);

        fail(&mut scene, tolerated, FailureReason::Declined);
        assert_eq!(scene.restarts(), 0, "{tolerated}");
        fail(&mut scene, 1, FailureReason::Declined);

        assert_eq!(scene.restarts(), 1, "{tolerated}");
        assert_eq!(scene.coordinator.failures_in_a_row(), 0, "it begins anew");
    }
}

#[test]
fn s5_5_the_largest_number_is_without_limit() {
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "2147483647")]);

    fail(&mut scene, 50, FailureReason::Declined);

    assert_eq!((scene.restarts(), scene.aborted().len()), (0, 50));
}

#[test]
fn s5_5_five_reasons_count_and_no_other() {
    let counted = [
        FailureReason::IoException,
        FailureReason::AsyncException,
        FailureReason::Declined,
        FailureReason::Expired,
        FailureReason::Finalize,
    ];
    for reason in FailureReason::ALL {
        let mut count = FailureCount::default();
        let fails = count.failed(Some(chk(1)), WantedCheckpoint::Periodic, *reason, Blame::Coordinator, Some(0));
        assert_eq!(fails, counted.contains(reason), "{reason}");
    }
}

#[test]
fn s5_5_a_reason_that_nobody_knows_is_an_error() {
    assert!("CHECKPOINT_WAS_TIRED".parse::<FailureReason>().is_err());
    assert_eq!("CHECKPOINT_DECLINED".parse(), Ok(FailureReason::Declined));
}

#[test]
fn s5_5_a_trigger_that_storage_fails_counts_and_metadata_that_cannot_be_stored_does_too() {
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "1")]);
    scene.holds_store = true;
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);
    scene.act(|coordinator, now| coordinator.stored(chk(1), Err("no answer".into()), now));
    assert_eq!((scene.aborted(), scene.restarts()), (vec![(1, FailureReason::Finalize)], 0));

    scene.holds_begin = true;
    scene.ask(WantedCheckpoint::Checkpoint);
    let failed = Err((FailureReason::IoException, "no answer".into()));
    scene.act(|coordinator, now| coordinator.begun(chk(2), failed, now));

    assert_eq!(scene.restarts(), 1);
}

#[test]
fn s5_5_a_checkpoint_counts_once_and_failures_without_one_each_time() {
    let mut count = FailureCount::default();
    let mut failed =
        |id| count.failed(id, WantedCheckpoint::Periodic, FailureReason::Expired, Blame::Coordinator, Some(9));

    failed(Some(chk(1)));
    failed(Some(chk(1)));
    failed(None);
    failed(None);

    assert_eq!(count.in_a_row(), 3);
}

#[test]
fn s5_5_failures_up_to_the_last_success_do_not_count() {
    let mut count = FailureCount::default();
    count.succeeded(chk(5));

    for id in [3, 5, 6] {
        count.failed(Some(chk(id)), WantedCheckpoint::Periodic, FailureReason::Expired, Blame::Coordinator, Some(9));
    }

    assert_eq!(count.in_a_row(), 1);
}

#[test]
fn s5_5_a_newer_success_begins_to_count_anew_and_an_older_one_does_not() {
    let mut count = FailureCount::default();
    let failed = |count: &mut FailureCount, id| {
        count.failed(Some(chk(id)), WantedCheckpoint::Periodic, FailureReason::Expired, Blame::Coordinator, Some(9))
    };
    count.succeeded(chk(5));
    failed(&mut count, 6);
    count.succeeded(chk(4));
    assert_eq!(count.in_a_row(), 1);

    count.succeeded(chk(7));

    assert_eq!(count.in_a_row(), 0);
}

#[test]
fn s5_5_a_savepoint_that_completes_is_a_success() {
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "1")]);
    fail(&mut scene, 1, FailureReason::Declined);
    scene.ask(WantedCheckpoint::Savepoint);
    scene.ack_all(2);

    fail(&mut scene, 1, FailureReason::Declined);

    assert_eq!(scene.restarts(), 0);
}

#[test]
fn s5_5_a_savepoint_that_the_coordinator_fails_does_not_count_and_one_that_a_task_fails_does() {
    let mut scene = Scene::new(&[("timeout", "1 s")]);
    scene.ask(WantedCheckpoint::Savepoint);
    scene.pass(1000);
    assert_eq!((scene.aborted(), scene.restarts()), (vec![(1, FailureReason::Expired)], 0));

    scene.ask(WantedCheckpoint::Savepoint);
    scene.decline(2, FailureReason::AsyncException);

    assert_eq!(scene.restarts(), 1);
}

#[test]
fn s5_5_a_task_that_fails_the_savepoint_of_a_stop_fails_the_job() {
    use crate::coordinator::state::queue::StopMode;
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "99")]);
    let number = scene.act(|coordinator, now| coordinator.stop(StopMode::Suspend, now));

    scene.decline(1, FailureReason::DeclinedNotReady);

    assert_eq!(scene.failed_with(number), Some(FailureReason::DeclinedNotReady));
    assert_eq!(scene.restarts(), 1);
}

#[test]
fn s5_13_unaligned_checkpoints_are_one_at_a_time_and_exactly_once() {
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
    let unaligned = ("execution.checkpointing.unaligned.enabled", "true");

    assert!(defaults.with([unaligned, ("execution.checkpointing.max-concurrent-checkpoints", "2")]).is_err());
    let job = defaults.with([unaligned, ("execution.checkpointing.mode", "AT_LEAST_ONCE")]).unwrap();
    assert_eq!((job.mode, job.unaligned), (CheckpointMode::AtLeastOnce, false));
    assert!(defaults.with([unaligned]).unwrap().unaligned);
}

#[test]
fn s5_15_an_interval_that_changes_counts_from_now_on() {
    let mut scene = Scene::new(&[("interval", "1 h"), ("max-concurrent-checkpoints", "9")]);
    scene.pass(1000);

    scene.act(|coordinator, now| coordinator.reconfigure(rules(&[("interval", "100 ms")]), now));
    scene.pass(100);
    assert_eq!(scene.triggered(), [1]);
    scene.ack_all(1);
    scene.act(|coordinator, now| coordinator.reconfigure(rules(&[]), now));
    scene.pass(10_000);
    assert_eq!(scene.triggered(), [1]);
    scene.act(|coordinator, now| coordinator.reconfigure(rules(&[("interval", "100 ms")]), now));
    scene.pass(100);

    assert_eq!(scene.triggered(), [1, 2]);
}
