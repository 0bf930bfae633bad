//! Section 5.12 and what goes with it: tasks that finish, fail or fall silent.

use super::*;
use crate::coordinator::state::decision::RestartCause;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::state::queue::StopMode;

fn finished() -> TaskSnapshot {
    TaskSnapshot { finished: true, ..TaskSnapshot::default() }
}

fn with_union() -> Scene {
    let union = OperatorSpec { union_list_state: true, ..operator("union", 2) };
    let mut scene = Scene::created(&[("tolerable-failed-checkpoints", "0")], vec![operator("source", 2), union]);
    scene.all_run();
    scene
}

#[test]
fn s5_3_nothing_is_triggered_before_all_tasks_run() {
    let mut scene = Scene::created(&[("interval", "100 ms")], vec![operator("a", 2)]);
    scene.report(&[task(0, 0)], TaskState::Running);

    let number = scene.ask(WantedCheckpoint::Checkpoint);
    assert_eq!(scene.failed_with(number), Some(FailureReason::NotAllTasksRunning));
    scene.pass(10_000);
    assert_eq!((scene.triggered(), scene.coordinator.phase()), (vec![], JobPhase::Created));
    scene.report(&[task(0, 1)], TaskState::Running);
    scene.pass(100);

    assert_eq!((scene.triggered(), scene.coordinator.phase()), (vec![1], JobPhase::Running));
}

#[test]
fn s5_12_checkpoints_go_on_without_tasks_that_have_finished() {
    let mut scene = Scene::new(&[]);
    scene.report(&[task(0, 0)], TaskState::Finished);
    scene.ask(WantedCheckpoint::Checkpoint);

    let pending = &scene.coordinator.pending()[&chk(1)];
    assert_eq!((pending.missing.len(), &pending.finished), (3, &[task(0, 0)].into()));
    scene.ack_all(1);

    assert_eq!(scene.completed(), [1]);
}

#[test]
fn s5_12_checkpoints_end_with_the_first_finished_task_if_so_configured() {
    let mut scene = Scene::new(&[("checkpoints-after-tasks-finish", "false")]);
    scene.report(&[task(0, 0)], TaskState::Finished);

    let number = scene.ask(WantedCheckpoint::Checkpoint);

    assert_eq!(scene.failed_with(number), Some(FailureReason::NotAllTasksRunning));
}

#[test]
fn s5_12_union_list_state_wants_none_or_all_of_its_tasks_finished() {
    let mut scene = with_union();
    scene.report(&[task(1, 0)], TaskState::Finished);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);
    assert_eq!(scene.aborted(), [(1, FailureReason::DeclinedClosing)]);
    assert_eq!(scene.restarts(), 0, "that does not count");

    scene.report(&[task(1, 1)], TaskState::Finished);
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(2);

    assert_eq!(scene.completed(), [2]);
}

#[test]
fn s5_12_union_list_state_wants_none_or_all_of_its_running_tasks_to_have_finished_operators() {
    for (first, second, completes) in [(true, false, false), (true, true, true), (false, false, true)] {
        let mut scene = with_union();
        scene.ask(WantedCheckpoint::Checkpoint);
        for (subtask, done) in [(0, first), (1, second)] {
            let snapshot = if done { finished() } else { TaskSnapshot::default() };
            scene.ack_with(1, task(1, subtask), snapshot);
        }
        scene.ack_all(1);
        assert_eq!(scene.completed() == [1], completes, "{first} {second}");
    }
}

#[test]
fn s5_12_a_task_that_finishes_without_acknowledging_ends_the_checkpoint() {
    let mut scene = Scene::new(&[]);
    scene.ask(WantedCheckpoint::Checkpoint);

    scene.report(&[task(0, 0)], TaskState::Finished);

    assert_eq!((scene.aborted(), scene.restarts()), (vec![(1, FailureReason::DeclinedClosing)], 0));
}

#[test]
fn s5_12_at_the_end_of_data_a_last_checkpoint_is_triggered_at_once() {
    let mut scene = Scene::new(&[("interval", "1 h")]);
    let tasks: Vec<TaskId> = scene.coordinator.topology().tasks().collect();

    scene.report(&tasks[..3], TaskState::EndOfData);
    assert_eq!(scene.triggered(), [0; 0]);
    scene.report(&tasks[3..], TaskState::EndOfData);
    assert_eq!(scene.triggered(), [1]);
    scene.report(&tasks, TaskState::EndOfData);
    assert_eq!(scene.triggered(), [1], "once");
    scene.ack_all(1);
    scene.report(&tasks, TaskState::Finished);

    assert_eq!(scene.log.last(), Some(&Decision::Finished));
    assert_eq!(scene.coordinator.phase(), JobPhase::Ended);
}

#[test]
fn s5_12_a_job_ends_after_the_checkpoint_that_is_being_stored() {
    let mut scene = Scene::new(&[]);
    scene.holds_store = true;
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);
    let tasks: Vec<TaskId> = scene.coordinator.topology().tasks().collect();

    scene.report(&tasks, TaskState::Finished);
    assert!(!scene.log.contains(&Decision::Finished));
    scene.act(|coordinator, now| coordinator.stored(chk(1), Ok(()), now));

    assert_eq!((scene.completed(), scene.log.last()), (vec![1], Some(&Decision::Finished)));
}

#[test]
fn a_job_that_is_being_changed_does_not_end_with_its_tasks_until_that_has_failed() {
    let mut scene = Scene::new(&[]);
    let tasks: Vec<TaskId> = scene.coordinator.topology().tasks().collect();
    let finished = |scene: &Scene| scene.log.iter().filter(|decision| **decision == Decision::Finished).count();
    scene.act(Coordinator::halt);

    scene.report(&tasks, TaskState::Finished);
    scene.pass(10_000);
    assert_eq!((finished(&scene), scene.coordinator.phase()), (0, JobPhase::Running));

    scene.act(Coordinator::resume);
    scene.pass(1000);
    assert_eq!((finished(&scene), scene.coordinator.phase()), (1, JobPhase::Ended));

    // Storage did not take the end.
    scene.act(Coordinator::halt);
    scene.act(Coordinator::resume);
    scene.pass(999);
    assert_eq!(finished(&scene), 1, "not at once: storage has just failed");
    scene.pass(1);
    assert_eq!(finished(&scene), 2);
}

#[test]
fn a_job_whose_owner_died_between_its_last_task_and_its_end_ends_with_the_next_owner() {
    let topology = Topology::new(vec![operator("a", 2)]);
    let (tasks, next_id) = (topology.tasks().collect(), chk(1));
    let ran = Some(tasks);
    let (rules, retained) = (rules(&[]), vec![]);

    let scene = Scene::begun(Beginning {
        rules,
        topology,
        attempt: 1,
        first_attempt: 1,
        ran,
        next_id,
        retained,
        full: false,
        draw: 1.0,
    });

    assert_eq!(scene.log, [Decision::Finished]);
}

#[test]
fn a_task_that_fails_restarts_the_job_and_gives_up_what_is_pending() {
    let mut scene = Scene::new(&[("interval", "100 ms")]);
    scene.pass(100);

    scene.report(&[task(1, 1)], TaskState::Failed);

    assert_eq!(scene.aborted(), [(1, FailureReason::CoordinatorSuspend)]);
    assert_eq!((scene.coordinator.attempt(), scene.coordinator.phase()), (2, JobPhase::Restarting));
    scene.pass(1000);
    assert_eq!(scene.triggered(), [1]);
    scene.all_run();
    scene.pass(100);
    assert_eq!(scene.triggered(), [1, 2]);
}

#[test]
fn a_task_that_runs_and_falls_silent_before_all_run_is_lost() {
    let mut scene = Scene::created(&[("heartbeat.timeout", "20 s")], vec![operator("a", 2)]);
    scene.pass_silently(100_000, false);
    assert_eq!(scene.restarts(), 0, "none has begun");

    scene.report(&[task(0, 0)], TaskState::Running);
    scene.pass_silently(19_000, false);
    assert_eq!(scene.restarts(), 0);
    scene.pass_silently(4_000, false);
    assert_eq!(scene.restarts(), 1, "what it has sent would be sent once more by the process that takes its place");
}

#[test]
fn a_process_that_takes_the_place_of_a_task_has_all_begin_anew() {
    let mut scene = Scene::created(&[], vec![operator("a", 2)]);
    scene.report(&[task(0, 0)], TaskState::Running);

    scene.act(|coordinator, now| coordinator.replaced(task(0, 0), "w", now));

    assert_eq!((scene.restarts(), scene.coordinator.attempt()), (1, 2));
}

#[test]
fn nothing_begins_while_another_state_is_being_chosen() {
    let mut scene = Scene::new(&[("interval", "100 ms")]);
    scene.act(Coordinator::halt);
    let number = scene.ask(WantedCheckpoint::Checkpoint);
    scene.all_run();
    scene.pass(1000);
    assert_eq!(scene.triggered(), [0; 0]);

    scene.act(Coordinator::resume);
    assert_eq!(scene.triggered(), [1], "the one that was asked for meanwhile: {number:?}");
    scene.ack_all(1);
    scene.pass(99);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(1);
    assert_eq!(scene.triggered(), [1, 2], "periodic ones after an interval");
}

#[test]
fn the_last_checkpoint_is_asked_for_again_if_it_is_given_up() {
    let mut scene = Scene::new(&[("tolerable-failed-checkpoints", "100"), ("timeout", "2 s")]);
    let tasks: Vec<TaskId> = scene.coordinator.topology().tasks().collect();
    scene.report(&tasks, TaskState::EndOfData);
    scene.decline(1, FailureReason::DeclinedNotReady);
    assert_eq!(scene.triggered(), [1]);
    scene.pass(1000);
    assert_eq!(scene.triggered(), [1, 2]);

    scene.act(|coordinator, now| coordinator.stop(StopMode::Suspend, now));
    scene.pass(2000);
    assert_eq!(scene.aborted().last(), Some(&(3, FailureReason::Expired)));
    scene.pass(1000);
    assert_eq!(scene.triggered(), [1, 2, 3, 4], "and after a stop that failed");
}

#[test]
fn a_task_that_falls_silent_is_lost_once_all_have_run() {
    let mut scene = Scene::created(&[("heartbeat.timeout", "20 s")], vec![operator("a", 2)]);
    scene.all_run();
    scene.pass_silently(19_000, false);
    scene.report(&[task(0, 0)], TaskState::Running);
    assert_eq!(scene.restarts(), 0);
    scene.pass_silently(4_000, false);

    let restart = scene.log.iter().find(|decision| matches!(decision, Decision::Restart { .. }));
    let Some(Decision::Restart { cause: RestartCause::TaskLost, message }) = restart else { panic!("{restart:?}") };
    assert!(message.contains("task a/1"), "{message}");
}

#[test]
fn what_tasks_said_while_the_daemon_stood_still_is_waited_for() {
    let mut scene = Scene::created(&[("heartbeat.timeout", "20 s")], vec![operator("a", 2)]);
    scene.all_run();
    scene.now += ms(60_000);

    scene.act(|coordinator, now| coordinator.was_deaf(ms(59_000), now));
    scene.act(Coordinator::tick);
    assert_eq!(scene.restarts(), 0);
    scene.pass_silently(25_000, false);
    assert_eq!(scene.restarts(), 1, "nothing came from then on");
}

#[test]
fn a_report_that_comes_late_does_not_take_back_the_end_of_data() {
    let mut scene = Scene::created(&[], vec![operator("a", 2)]);
    scene.all_run();

    scene.report(&[task(0, 0)], TaskState::EndOfData);
    scene.report(&[task(0, 0)], TaskState::Running);
    scene.report(&[task(0, 1)], TaskState::EndOfData);

    assert_eq!(scene.triggered(), [1], "the last one, as all are at the end");
}

#[test]
fn another_owner_notices_a_task_that_was_lost_before_it_came() {
    let mut scene = Scene::begun(Beginning {
        rules: rules(&[]),
        topology: Topology::new(vec![operator("a", 2)]),
        attempt: 3,
        first_attempt: 1,
        ran: Some([task(0, 1)].into()),
        next_id: chk(9),
        retained: vec![],
        full: false,
        draw: 1.0,
    });

    scene.pass_silently(60_000, false);

    assert_eq!((scene.restarts(), scene.coordinator.attempt()), (1, 4), "the one that had finished is not missed");
}

#[test]
fn a_restart_waits_for_what_is_being_stored() {
    let mut scene = Scene::new(&[]);
    scene.holds_store = true;
    scene.ask(WantedCheckpoint::Checkpoint);
    scene.ack_all(1);

    scene.report(&[task(0, 0)], TaskState::Failed);
    assert_eq!(scene.restarts(), 0);
    scene.act(|coordinator, now| coordinator.stored(chk(1), Ok(()), now));

    assert_eq!((scene.completed(), scene.aborted(), scene.restarts()), (vec![1], vec![], 1));
}

#[test]
fn reports_of_an_earlier_attempt_change_nothing() {
    let mut scene = Scene::new(&[]);
    scene.report(&[task(0, 0)], TaskState::Failed);

    let taken = scene.act(|coordinator, now| coordinator.report(1, &[(task(0, 0), TaskState::Failed)], None, now));

    assert!(!taken);
    assert_eq!(scene.restarts(), 1);
}

#[test]
fn the_end_of_a_job_gives_up_what_is_pending() {
    let mut scene = Scene::new(&[("interval", "100 ms")]);
    scene.pass(100);

    scene.act(Coordinator::end);
    let number = scene.ask(WantedCheckpoint::Savepoint);

    assert_eq!(scene.aborted(), [(1, FailureReason::CoordinatorShutdown)]);
    assert_eq!(scene.failed_with(number), Some(FailureReason::CoordinatorShutdown));
    assert_eq!(scene.coordinator.next_wake(), None);
}

/// A worker hears of it in its next answer, and reports as rarely as it was told until then.
#[test]
fn a_shorter_heartbeat_timeout_counts_once_each_worker_had_to_report() {
    let shorter = || rules(&[("heartbeat.interval", "500 ms"), ("heartbeat.timeout", "2 s")]);
    let mut scene = Scene::new(&[("heartbeat.interval", "10 s"), ("heartbeat.timeout", "50 s")]);
    scene.pass_silently(9000, false);
    scene.act(|coordinator, now| coordinator.reconfigure(shorter(), now));

    scene.pass_silently(10_000, false);
    assert_eq!(scene.restarts(), 0, "nobody had to report yet");
    scene.pass(1);
    scene.pass_silently(1900, false);
    assert_eq!(scene.restarts(), 0);
    scene.pass_silently(400, false);
    assert_eq!(scene.restarts(), 1, "the new one counts");

    let mut scene = Scene::new(&[("heartbeat.interval", "10 s"), ("heartbeat.timeout", "50 s")]);
    scene.pass_silently(45_000, false);
    scene.act(|coordinator, now| coordinator.reconfigure(shorter(), now));
    scene.pass_silently(4000, false);
    assert_eq!(scene.restarts(), 0);
    scene.pass_silently(1500, false);
    assert_eq!(scene.restarts(), 1, "nobody is waited for longer than before");
}
