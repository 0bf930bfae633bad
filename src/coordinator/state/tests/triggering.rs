//! Sections 5.1 to 5.4: when a checkpoint begins, and when it is given up.

use super::*;
use crate::coordinator::state::queue::QUEUE_MAX;

#[test]
fn s5_1_without_an_interval_there_are_no_periodic_checkpoints() {
    let mut scene = Scene::new(&[]);

    scene.pass(1_000_000);

    assert_eq!(scene.triggered(), [0; 0]);
}

#[test]
fn s5_1_intervals_and_timeouts_are_at_least_ten_milliseconds() {
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
    for key in ["interval", "timeout"] {
        let key = format!("execution.checkpointing.{key}");
        assert!(defaults.with([(&*key, "9 ms")]).unwrap_err().to_string().contains("at least 10 ms"));
        assert!(defaults.with([(&*key, "10 ms")]).is_ok());
    }
}

#[test]
fn s5_1_the_interval_is_not_below_min_pause() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("min-pause", "300 ms")]);

    scene.pass(299);
    assert_eq!(scene.triggered(), [0; 0]);
    scene.pass(1);

    assert_eq!(scene.triggered(), [1]);
}

#[test]
fn s5_1_the_first_checkpoint_comes_between_min_pause_and_the_interval() {
    let keys = [("interval", "100 ms"), ("min-pause", "40 ms")];
    for (draw, due) in [(0.0, 40), (0.5, 70), (1.0, 100)] {
        let mut scene = Scene::begun(Beginning {
            rules: rules(&keys),
            topology: Topology::new(vec![operator("a", 1)]),
            attempt: 1,
            first_attempt: 1,
            ran: None,
            next_id: chk(1),
            retained: vec![],
            full: false,
            draw,
        });
        scene.all_run();
        assert_eq!(scene.coordinator.next_wake(), Some(ms(due)), "{draw}");
    }
}

#[test]
fn s5_1_checkpoints_come_at_a_fixed_rate_without_drift() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("max-concurrent-checkpoints", "9")]);

    scene.pass(95);
    scene.now += ms(35); // a timer that is late by 30 ms
    scene.act(Coordinator::tick);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(69);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(1);

    assert_eq!((scene.triggered(), scene.now), (vec![1, 2], ms(200)));
}

#[test]
fn s5_1_a_scheduler_that_stops_gives_up_what_is_pending_and_queued() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("tolerable-failed-checkpoints", "0")]);
    scene.pass(100);
    let queued = scene.ask(WantedCheckpoint::Checkpoint);

    scene.act(Coordinator::halt);

    assert_eq!(scene.aborted(), [(1, FailureReason::CoordinatorSuspend)]);
    assert_eq!(scene.failed_with(queued), Some(FailureReason::CoordinatorSuspend));
    assert_eq!(scene.restarts(), 0, "that does not count as a failure");
    scene.pass(1000);
    assert_eq!(scene.triggered(), [1]);
}

#[test]
fn s5_1_a_periodic_request_that_runs_after_the_stop_fails() {
    let mut scene = Scene::new(&[]);

    let number = scene.ask(WantedCheckpoint::Periodic);

    assert_eq!((scene.triggered(), scene.pending().len()), (vec![], 0), "{number:?}");
}

#[test]
fn s5_2_an_interval_during_backlog_that_is_not_set_is_the_interval() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("max-concurrent-checkpoints", "9")]);

    scene.act(|coordinator, now| coordinator.report_backlog(0, true, now));
    scene.pass(200);

    assert_eq!(scene.triggered(), [1, 2]);
}

#[test]
fn s5_2_values_of_the_interval_during_backlog_follow_flinks_rules() {
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
    let with = |interval: Option<&str>, backlog: &str| {
        let interval = interval.map(|text| ("execution.checkpointing.interval", text));
        let backlog = ("execution.checkpointing.interval-during-backlog", backlog);
        defaults.with(interval.into_iter().chain([backlog])).is_ok()
    };
    assert!(with(Some("100 ms"), "0"));
    assert!(with(Some("100 ms"), "100 ms"));
    assert!(!with(Some("20 ms"), "9 ms"));
    assert!(!with(Some("100 ms"), "99 ms"));
    assert!(!with(None, "1 s"));
    assert!(with(None, "0"));
}

#[test]
fn s5_2_backlog_is_on_while_the_last_report_of_a_source_says_so() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("interval-during-backlog", "0")]);
    assert!(!scene.coordinator.has_backlog());

    scene.act(|coordinator, now| coordinator.report_backlog(0, true, now));
    scene.act(|coordinator, now| coordinator.report_backlog(1, true, now));
    scene.act(|coordinator, now| coordinator.report_backlog(0, false, now));
    assert!(scene.coordinator.has_backlog());
    scene.act(|coordinator, now| coordinator.report_backlog(1, false, now));

    assert!(!scene.coordinator.has_backlog());
}

#[test]
fn s5_2_a_shorter_interval_plans_anew_and_a_longer_one_counts_after_the_planned_trigger() {
    let keys = [("interval", "100 ms"), ("interval-during-backlog", "1 s"), ("max-concurrent-checkpoints", "99")];
    let mut scene = Scene::new(&keys);
    scene.pass(50);

    scene.act(|coordinator, now| coordinator.report_backlog(0, true, now));
    scene.pass(50);
    assert_eq!(scene.triggered(), [1], "the planned one stays");
    scene.pass(900);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(50);
    assert_eq!(scene.now, ms(1050));
    scene.act(|coordinator, now| coordinator.report_backlog(0, false, now));
    scene.pass(50);
    assert_eq!(scene.triggered(), [1, 2], "it was planned for 1100 ms: now + 100 is later");
    scene.pass(100);

    assert_eq!(scene.triggered(), [1, 2, 3]);
}

#[test]
fn s5_2_an_interval_that_is_off_fires_once_more_and_goes_on_when_the_backlog_ends() {
    let keys = [("interval", "100 ms"), ("interval-during-backlog", "0"), ("max-concurrent-checkpoints", "99")];
    let mut scene = Scene::new(&keys);

    scene.act(|coordinator, now| coordinator.report_backlog(0, true, now));
    scene.pass(1000);
    assert_eq!(scene.triggered(), [1]);
    scene.act(|coordinator, now| coordinator.report_backlog(0, false, now));
    scene.pass(99);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(1);

    assert_eq!(scene.triggered(), [1, 2]);
}

#[test]
fn s5_3_max_concurrent_checkpoints_is_at_least_one() {
    let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;

    assert!(defaults.with([("execution.checkpointing.max-concurrent-checkpoints", "0")]).is_err());
}

#[test]
fn s5_3_nothing_begins_while_another_one_is_in_its_trigger_phase() {
    let mut scene = Scene::new(&[("max-concurrent-checkpoints", "9")]);
    scene.holds_begin = true;

    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ask(WantedCheckpoint::Savepoint);
    assert_eq!(scene.pending().len(), 1);
    scene.holds_begin = false;
    scene.act(|coordinator, now| coordinator.begun(chk(1), Ok(()), now));

    assert_eq!(scene.triggered(), [1, 2]);
}

#[test]
fn s5_3_more_checkpoints_being_cleaned_than_may_be_concurrent_block_everything() {
    let keys = [("max-concurrent-checkpoints", "2"), ("tolerable-failed-checkpoints", "99")];
    let mut scene = Scene::new(&keys);
    scene.holds_clean = true;
    for id in 1..=3 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.decline(id, FailureReason::Declined);
    }
    assert_eq!(scene.coordinator.waiting(), (0, 3));

    scene.ask(WantedCheckpoint::Savepoint);
    assert_eq!(scene.triggered(), [1, 2, 3]);
    scene.act(Coordinator::cleaned);

    assert_eq!(scene.triggered(), [1, 2, 3, 4], "as many as may be concurrent block nothing");
}

#[test]
fn s5_3_at_the_bound_only_a_forced_request_at_the_head_begins_and_others_wait() {
    let mut scene = Scene::new(&[]);
    scene.ask(WantedCheckpoint::Checkpoint);

    let waiting = scene.ask(WantedCheckpoint::Checkpoint);
    assert_eq!(scene.triggered(), [1]);
    scene.ask(WantedCheckpoint::Savepoint);
    assert_eq!(scene.triggered(), [1, 2], "a savepoint is forced");
    scene.ack_all(1);
    assert_eq!(scene.triggered(), [1, 2], "the savepoint counts");
    scene.ack_all(2);

    assert_eq!(scene.triggered(), [1, 2, 3]);
    assert_eq!(scene.end_of(waiting), None, "it waited, and did not fail");
}

#[test]
fn s5_3_a_full_queue_refuses_requests_of_people_or_drops_the_periodic_one() {
    let mut scene = Scene::new(&[("interval", "1 s"), ("timeout", "1 h")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.pass(1000);
    assert_eq!(scene.coordinator.waiting(), (1, 0), "the periodic one waits");
    for _ in 1..QUEUE_MAX {
        scene.ask(WantedCheckpoint::Checkpoint);
    }
    assert_eq!(scene.coordinator.waiting().0, QUEUE_MAX);

    let before = scene.ask(WantedCheckpoint::Checkpoint);
    assert_eq!(scene.failed_with(before), None, "it took the place of the periodic one");
    let refused = scene.ask(WantedCheckpoint::Savepoint);
    assert_eq!(scene.failed_with(refused), Some(FailureReason::TooManyRequests));

    assert_eq!(scene.coordinator.waiting().0, QUEUE_MAX);
}

#[test]
fn s5_3_queue_orders_savepoints_first_then_forced_then_people_then_age() {
    let keys = [("interval", "1 s"), ("unaligned.enabled", "true"), ("timeout", "1 h")];
    let mut scene = Scene::new(&keys);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.pass(1000);
    let older = scene.ask(WantedCheckpoint::Checkpoint);
    scene.pass(1);
    let newer = scene.ask(WantedCheckpoint::Checkpoint);
    let savepoint = scene.ask(WantedCheckpoint::Savepoint);

    for id in 1..=5 {
        scene.ack_all(id);
    }

    let begun: Vec<(u64, WantedCheckpoint, RequestNumber)> = scene
        .log
        .iter()
        .filter_map(|decision| match decision {
            Decision::Begin { id, wanted, request } => Some((id.0, *wanted, *request)),
            _ => None,
        })
        .skip(1)
        .collect();
    let [(_, _, periodic)] = begun[3..] else { panic!("{begun:?}") };
    let expected = [
        (2, WantedCheckpoint::Savepoint, savepoint),
        (3, WantedCheckpoint::Checkpoint, older),
        (4, WantedCheckpoint::Checkpoint, newer),
        (5, WantedCheckpoint::Periodic, periodic),
    ];
    assert_eq!(begun, expected);
}

#[test]
fn s5_3_min_pause_counts_from_completions_and_moves_the_timer() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("min-pause", "80 ms")]);
    scene.pass(100);
    scene.pass(50);

    scene.ack_all(1);
    assert_eq!(scene.now, ms(150));
    scene.pass(79);
    assert_eq!(scene.triggered(), [1], "due at 200, too early until 230");
    scene.pass(1);

    assert_eq!((scene.triggered(), scene.now), (vec![1, 2], ms(230)));
}

#[test]
fn s5_3_min_pause_is_for_periodic_requests_alone() {
    let mut scene = Scene::new(&[("interval", "1 s"), ("min-pause", "1 s")]);
    scene.pass(1000);
    scene.ack_all(1);

    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ask(WantedCheckpoint::Savepoint);

    assert_eq!(scene.triggered(), [1, 2, 3]);
}

#[test]
fn s5_3_min_pause_is_at_most_a_year() {
    assert_eq!(rules(&[("min-pause", "1000 d")]).min_pause, Duration::from_secs(365 * 24 * 3600));
}

#[test]
fn s5_3_failed_attempts_begin_no_pause() {
    let keys = [("interval", "100 ms"), ("min-pause", "90 ms"), ("tolerable-failed-checkpoints", "9")];
    let mut scene = Scene::new(&keys);
    scene.pass(100);
    scene.pass(95);

    scene.decline(1, FailureReason::Declined);
    scene.pass(5);

    assert_eq!(scene.triggered(), [1, 2]);
}

#[test]
fn s5_3_a_savepoint_that_completes_begins_a_pause_too() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("min-pause", "90 ms")]);
    scene.pass(95);
    scene.ask(WantedCheckpoint::Savepoint);
    scene.ack_all(1);

    scene.pass(89);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(1);

    assert_eq!(scene.triggered(), [1, 2]);
}

/// Where Flink's documents forbid it, its code does not.
#[test]
fn s5_3_min_pause_and_several_concurrent_checkpoints_go_together() {
    let keys = [("interval", "100 ms"), ("min-pause", "50 ms"), ("max-concurrent-checkpoints", "2")];
    let mut scene = Scene::new(&keys);

    scene.pass(200);

    assert_eq!(scene.triggered(), [1, 2], "the pause counts from completions alone");
}

/// Flink queues one for each tick.
#[test]
fn s5_3_at_most_one_periodic_request_waits() {
    let mut scene = Scene::new(&[("interval", "100 ms"), ("timeout", "1 h")]);

    scene.pass(2000);

    assert_eq!((scene.triggered(), scene.coordinator.waiting().0), (vec![1], 1));
}

#[test]
fn s5_4_the_clock_of_a_checkpoint_starts_before_it_is_recorded() {
    let mut scene = Scene::new(&[("timeout", "1 s"), ("tolerable-failed-checkpoints", "9")]);
    scene.holds_begin = true;
    let number = scene.ask(WantedCheckpoint::Savepoint);

    scene.pass(999);
    assert_eq!(scene.end_of(number), None);
    scene.pass(1);

    assert_eq!(scene.failed_with(number), Some(FailureReason::Expired));
    scene.act(|coordinator, now| coordinator.begun(chk(1), Ok(()), now));
    assert_eq!(scene.triggered(), [0; 0], "no task hears of it");
    assert!(scene.log.contains(&Decision::CleanAborted(chk(1))), "what was recorded is undone");
}

#[test]
fn s5_4_an_expired_checkpoint_is_told_and_remembered_among_sixteen() {
    let mut scene = Scene::new(&[("timeout", "10 ms"), ("tolerable-failed-checkpoints", "99")]);
    for _ in 0..17 {
        scene.ask(WantedCheckpoint::Checkpoint);
        scene.pass(10);
    }

    assert_eq!(scene.aborted().len(), 17);
    assert!(scene.aborted().iter().all(|(_, reason)| *reason == FailureReason::Expired));
    assert_eq!(scene.ack(1, task(0, 0)), AckOutcome::Unknown, "the oldest one is forgotten");
    assert_eq!(scene.ack(2, task(0, 0)), AckOutcome::Aborted(FailureReason::Expired));
}

/// Flink registers shared state of a late acknowledgement first, to free it with what subsumes it. Here it is freed at once.
#[test]
fn s5_4_a_late_acknowledgement_is_refused_and_the_checkpoint_is_cleaned_once() {
    let mut scene = Scene::new(&[("timeout", "1 s"), ("tolerable-failed-checkpoints", "9")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack(1, task(0, 0));
    scene.pass(1000);

    assert_eq!(scene.ack(1, task(0, 1)), AckOutcome::Aborted(FailureReason::Expired));
    let cleaned = scene.log.iter().filter(|decision| **decision == Decision::CleanAborted(chk(1)));
    assert_eq!(cleaned.count(), 1);
    assert_eq!(scene.ack(77, task(0, 1)), AckOutcome::Unknown);
}

#[test]
fn s5_4_a_second_acknowledgement_of_a_task_is_ignored() {
    let mut scene = Scene::new(&[]);
    scene.ask(WantedCheckpoint::Checkpoint);

    assert_eq!(scene.ack(1, task(0, 0)), AckOutcome::Taken { missing: 3 });
    let other = TaskSnapshot { bytes: 7, ..TaskSnapshot::default() };
    assert_eq!(scene.ack_with(1, task(0, 0), other), AckOutcome::Repeated { missing: 3 });

    let pending = &scene.coordinator.pending()[&chk(1)];
    assert_eq!(pending.snapshots[&task(0, 0)].bytes, 0);
}

#[test]
fn s5_4_an_acknowledgement_of_another_attempt_is_refused() {
    let mut scene = Scene::new(&[]);
    scene.ask(WantedCheckpoint::Checkpoint);

    let refused =
        scene.act(|coordinator, now| coordinator.acknowledge(chk(1), task(0, 0), 0, TaskSnapshot::default(), now));

    assert_eq!(refused, AckOutcome::OtherAttempt(1));
    assert_eq!(scene.coordinator.pending()[&chk(1)].missing.len(), 4);
}

#[test]
fn s5_4_a_decline_gives_the_checkpoint_up() {
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "9")]);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack(1, task(1, 1));

    scene.decline(1, FailureReason::DeclinedNotReady);

    assert_eq!(scene.aborted(), [(1, FailureReason::DeclinedNotReady)]);
    assert_eq!(scene.pending().len(), 0);
}
