//! Jobs that stop with a savepoint, or end.

use super::*;

#[tokio::test]
async fn a_job_stops_with_a_savepoint_and_ends_with_its_tasks() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keys = [("interval", Value::from("1 h")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;

    let request = StopRequest { drain: true, ..StopRequest::default() };
    client.stop_job("j", &request, None).await.unwrap();
    let trigger = events.find(|event| if let JobEvent::Trigger(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((trigger.stop.as_deref(), &*trigger.kind), (Some("drain"), "savepoint"));
    for subtask in 0..2 {
        ack_with(client, "j", trigger.checkpoint, (events.first, subtask), "end").await;
    }
    assert_eq!(events.completed().await, trigger.checkpoint);
    let stop = events.find(|event| if let JobEvent::Stop(stop) = event { Some(stop.clone()) } else { None }).await;
    assert!(stop.drain && stop.path.as_deref().is_some_and(|path| path.starts_with("s3://checkpoints/sp/savepoint-")));
    client.report_tasks("j", &tasks_of(events.first, &[("count", 0), ("count", 1)], "finished")).await.unwrap();
    let end = events.find(|event| if let JobEvent::End(end) = event { Some(end.clone()) } else { None }).await;

    assert_eq!((&*end.state, end.kept), ("FINISHED", false));
    let left = client.checkpoints("j").await.unwrap();
    assert_eq!(
        left.iter().map(|known| known.checkpoint).collect::<Vec<_>>(),
        [trigger.checkpoint],
        "the savepoint stays"
    );
    assert!(client.job("j").await.unwrap().coordinator.is_none());
}

/// What its tasks have committed with the savepoint must not be done once more.
#[tokio::test]
async fn a_job_that_stops_with_a_savepoint_begins_from_that_if_a_task_fails_after_the_daemon_has_died() {
    let daemon = daemon().await;
    let keys = [("interval", Value::from("1 h")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    daemon.client.stop_job("j", &StopRequest::default(), None).await.unwrap();
    let savepoint = events.triggered().await;
    for subtask in 0..2 {
        ack_with(&daemon.client, "j", savepoint, (events.first, subtask), "end").await;
    }
    assert_eq!(events.completed().await, savepoint);

    let daemon = daemon.restart().await;

    let mut events = Events::of(&daemon.client, "j").await;
    assert!(matches!(events.next().await, JobEvent::Hello(hello) if hello.completed == Some(savepoint)));
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "failed")).await.unwrap();
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((restore.attempt, restore.checkpoint), (events.first + 1, Some(savepoint)));
    let state = daemon.client.job_state("j", None).await.unwrap();
    assert_eq!(starts(&daemon.client, &state).await, [["end"], ["end"]]);
}

/// Its answer was that it is complete. What completes behind it would have no state of the tasks that have ended with it.
#[tokio::test]
async fn a_stop_whose_savepoint_is_complete_goes_on_after_the_daemon_has_died() {
    let daemon = daemon().await;
    let keys = [("interval", Value::from("50 ms")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    daemon.client.stop_job("j", &StopRequest { drain: true, ..StopRequest::default() }, None).await.unwrap();
    let of_stop = |event: &JobEvent| match event {
        JobEvent::Trigger(trigger) if trigger.stop.is_some() => Some(trigger.checkpoint),
        _ => None,
    };
    let savepoint = events.find(of_stop).await;
    for subtask in 0..2 {
        ack_with(&daemon.client, "j", savepoint, (events.first, subtask), "end").await;
    }
    let told = events.find(|event| if let JobEvent::Stop(stop) = event { Some(stop.clone()) } else { None }).await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "finished")).await.unwrap();

    let daemon = daemon.restart().await;

    let client = &daemon.client;
    let first = first_attempt(client, "j").await;
    let answer = client.report_tasks("j", &tasks_of(first, &[("count", 1)], "running")).await.unwrap();
    assert_eq!(answer.status, "stopping");
    for _ in 0..2 {
        let mut events = Events::of(client, "j").await;
        assert!(matches!(events.next().await, JobEvent::Hello(hello) if hello.status == "stopping"));
        let JobEvent::Stop(stop) = events.next().await else { panic!("whoever comes is told to stop") };
        assert_eq!((stop.checkpoint, stop.path, stop.drain), (savepoint, told.path.clone(), true));
    }
    let waits = Some("20 s".to_owned());
    let trigger = client.trigger_checkpoint("j", &TriggerRequest { wait: waits.clone() }, None).await.unwrap();
    let stop = client.stop_job("j", &StopRequest { wait: waits, ..StopRequest::default() }, None).await.unwrap();
    for refused in [trigger, stop] {
        assert_eq!((&*refused.state, refused.message.as_deref()), ("failed", Some("the job is stopping")));
    }
    let mut events = Events::of(client, "j").await;
    events.next().await;
    client.report_tasks("j", &tasks_of(first, &[("count", 1)], "failed")).await.unwrap();
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!(restore.checkpoint, Some(savepoint));
    assert_eq!(starts(client, &client.job_state("j", None).await.unwrap()).await, [["end"], ["end"]]);

    let daemon = daemon.restart().await;
    assert_eq!(daemon.client.job("j").await.unwrap().coordinator.unwrap().status, "restarting", "it has not stopped");
    assert_eq!(daemon.client.job_state("j", None).await.unwrap().checkpoint, Some(savepoint));
}

#[tokio::test]
async fn s5_9_the_end_of_a_job_keeps_or_frees_its_checkpoints_as_its_settings_say() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let names = ["a", "b", "c", "d", "e", "f"];
    let modes = ["NO_EXTERNALIZED_CHECKPOINTS", "DELETE_ON_CANCELLATION", "RETAIN_ON_CANCELLATION"];
    let table = [(JobEnd::Canceled, [false, false, true]), (JobEnd::Failed, [false, true, true])];
    let mut names = names.into_iter();
    for (end, kept) in table {
        for (mode, kept) in modes.into_iter().zip(kept) {
            let name = names.next().unwrap();
            let mut events = running(&daemon, name, &[("externalized-checkpoint-retention", mode.into())]).await;
            checkpoint_of(&mut events, ["one", "two"]).await;

            let ended = client.end_job(name, &EndRequest { state: end, retention: None }).await.unwrap();

            assert_eq!(ended.kept, kept, "{mode} {end:?}");
            let there = client.checkpoints(name).await.map_or(0, |known| known.len());
            assert_eq!(there > 0, kept, "{mode} {end:?}");
        }
    }
}
