//! The states that jobs go on from.

use super::*;

#[tokio::test]
async fn s5_11_a_savepoint_is_restored_by_another_job_at_another_parallelism() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    let client = &daemon.client;
    refused(
        client.trigger_savepoint("j", &SavepointRequest::default(), None).await,
        StatusCode::BAD_REQUEST,
        "dir",
        "savepoint-dir",
    );
    let request = SavepointRequest { dir: Some("s3://checkpoints/sp".into()), ..SavepointRequest::default() };
    let begun = client.trigger_savepoint("j", &request, Some("key-1")).await.unwrap();
    let id = events.triggered().await;
    ack_with(client, "j", id, (events.first, 0), "one").await;
    ack_with(client, "j", id, (events.first, 1), "two").await;
    let waiting = SavepointRequest { wait: Some("20 s".into()), ..request };
    let done = client.trigger_savepoint("j", &waiting, Some("key-1")).await.unwrap();

    assert_eq!((&done.request, &*done.state, done.checkpoint), (&begun.request, "completed", Some(id)));
    let path = done.path.unwrap();
    assert!(path.starts_with("s3://checkpoints/sp/savepoint-j-"), "{path}");
    checkpoint_of(&mut events, ["three", "four"]).await;
    client.create(&job("other", &[("incremental", true.into())], vec![operator("count", 3)])).await.unwrap();
    let from = RestoreJob { savepoint: Some(path), ..RestoreJob::default() };
    let state = client.restore_coordinated("other", &from).await.unwrap();
    assert_eq!((state.from.as_deref(), state.checkpoint), (Some("j"), Some(id)));
    assert_eq!(starts(client, &state).await, [vec!["one"], vec!["two"], vec![]]);

    let tasks = [("count", 0), ("count", 1), ("count", 2)];
    client.report_tasks("other", &tasks_of(state.attempt, &tasks, "running")).await.unwrap();
    let mut others = Events::of(client, "other").await;
    assert!(matches!(others.next().await, JobEvent::Hello(_)));
    client.trigger_checkpoint("other", &TriggerRequest::default(), None).await.unwrap();
    let full =
        others.find(|event| if let JobEvent::Trigger(trigger) = event { Some(trigger.full) } else { None }).await;
    assert!(full, "the first checkpoint after no-claim is full");
    assert_eq!(client.checkpoints("j").await.unwrap().iter().filter(|known| known.checkpoint == id).count(), 1);
}

#[tokio::test]
async fn a_job_is_rescaled_and_rescaled_again() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    let id = checkpoint_of(&mut events, ["one", "two"]).await;

    for (restarts, parallelism) in [(1, 5), (2, 1), (3, 2)] {
        let attempt = events.first + restarts;
        let rescale = RestoreJob { operators: Some(vec![operator("count", parallelism)]), ..RestoreJob::default() };
        let state = client.restore_coordinated("j", &rescale).await.unwrap();
        assert_eq!((state.attempt, state.checkpoint), (attempt, Some(id)));
        let mut texts: Vec<String> = starts(client, &state).await.into_iter().flatten().collect();
        texts.sort();
        assert_eq!(texts, ["one", "two"]);
        let restore =
            events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
        assert_eq!((restore.attempt, &*restore.cause, restore.checkpoint), (attempt, "RESTORE", Some(id)));
    }
    let given = JobOperator { max_parallelism: Some(64), ..operator("count", 2) };
    let other_groups = RestoreJob { operators: Some(vec![given]), ..RestoreJob::default() };
    refused(client.restore_coordinated("j", &other_groups).await, StatusCode::CONFLICT, "operators", "max_parallelism");
    let renamed = RestoreJob { operators: Some(vec![operator("sum", 2)]), ..RestoreJob::default() };
    refused(client.restore_coordinated("j", &renamed).await, StatusCode::CONFLICT, "operators", "count");
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 3, "nothing changed");
    let allowed = RestoreJob { allow_non_restored_state: Some(true), ..renamed };
    assert_eq!(client.restore_coordinated("j", &allowed).await.unwrap().attempt, events.first + 4);
}

#[tokio::test]
async fn a_task_that_fails_or_falls_silent_begins_a_new_attempt_from_the_newest_checkpoint() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let beats = [("heartbeat.interval", Value::from("100 ms")), ("heartbeat.timeout", "1 s".into())];
    let mut events = running(&daemon, "j", &beats).await;
    let id = checkpoint_of(&mut events, ["one", "two"]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    events.triggered().await;

    client.report_tasks("j", &tasks_of(events.first, &[("count", 1)], "failed")).await.unwrap();
    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.reason.clone()) } else { None });
    assert_eq!(abort.await, "CHECKPOINT_COORDINATOR_SUSPEND");
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((restore.attempt, &*restore.cause, restore.checkpoint), (events.first + 1, "TASK_FAILURE", Some(id)));
    let old = client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "running")).await;
    refused(old, StatusCode::CONFLICT, "attempt", &format!("attempt {}", events.first + 1));
    let state = client.job_state("j", Some(("count", 1))).await.unwrap();
    assert_eq!((state.attempt, starts(client, &state).await), (events.first + 1, vec![vec!["two".to_owned()]]));

    client.report_tasks("j", &tasks_of(events.first + 1, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    let silent = EventsParams { worker: None, after: events.at.clone(), wait: Some("20 s".into()) };
    let lost = loop {
        let page = client.events("j", &silent).await.unwrap();
        if let Some(JobEvent::Restore(restore)) = page.events.into_iter().map(|info| info.event).next() {
            break restore;
        }
    };
    assert_eq!((lost.attempt, &*lost.cause), (events.first + 2, "TASK_LOST"));
}

#[tokio::test]
async fn what_a_running_job_still_needs_is_not_taken_from_it() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    client.create(&job("k", &[], vec![operator("count", 2)])).await.unwrap();

    for mode in [None, Some("claim"), Some("no-claim")] {
        let from = RestoreJob { from: Some("j".into()), mode: mode.map(str::to_owned), ..RestoreJob::default() };
        let taken = client.restore_coordinated("k", &from).await;
        refused(taken, StatusCode::CONFLICT, "from", "has not ended");
    }
    checkpoint_of(&mut events, ["three", "four"]).await;
}

/// Whoever begins then is told what to do by status and attempt; the state of all others is in use.
#[tokio::test]
async fn what_a_running_job_began_from_may_be_gone() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    let both = [("count", 0), ("count", 1)];
    client.report_tasks("j", &tasks_of(events.first, &both[..1], "failed")).await.unwrap();
    let state = client.job_state("j", None).await.unwrap();
    assert_eq!((&*state.status, state.tasks.len()), ("restarting", 2));
    events.first += 1;
    client.report_tasks("j", &tasks_of(events.first, &both, "running")).await.unwrap();
    checkpoint_of(&mut events, ["three", "four"]).await;

    let told = async |client: &Client| {
        let state = client.job_state("j", Some(("count", 1))).await.unwrap();
        (state.status, state.attempt, state.tasks.len())
    };
    let gone = ("running".to_owned(), events.first, 0);
    let begun = std::time::Instant::now();
    while told(client).await != gone {
        assert!(begun.elapsed() < PATIENCE, "{:?}", told(client).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = events.first;
    let daemon = daemon.restart().await;
    assert_eq!(told(&daemon.client).await, ("running".to_owned(), first, 0), "nobody has read it there before");
    daemon.client.report_tasks("j", &tasks_of(first, &both[1..], "failed")).await.unwrap();
    let state = daemon.client.job_state("j", None).await.unwrap();
    assert_eq!(starts(&daemon.client, &state).await, [["three"], ["four"]]);
}

/// Whatever completes just then: the state that was told to be complete last is where the job goes on.
#[tokio::test]
async fn a_restore_goes_on_from_what_completes_meanwhile() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["0", "0"]).await;
    let both = [("count", 0), ("count", 1)];
    for round in 1..=25 {
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        let id = events.triggered().await;
        let text = round.to_string();
        ack_with(client, "j", id, (events.first, 0), &text).await;
        let last = async {
            tokio::time::sleep(Duration::from_micros(200 * (round % 10))).await;
            let parts = [(BatchHead::default(), Bytes::from(text.clone()))];
            drop(client.acknowledge("j", id, &ack(events.first, 1, vec![riding(0, "count")]), &parts).await);
        };
        let restore = async {
            tokio::time::sleep(Duration::from_micros(150 * round)).await;
            client.restore_coordinated("j", &RestoreJob::default()).await
        };
        let ((), state) = tokio::join!(last, restore);
        let state = state.unwrap();

        let completed = events
            .find(|event| match event {
                JobEvent::Complete(complete) if complete.checkpoint == id => Some(true),
                JobEvent::Restore(_) => Some(false),
                _ => None,
            })
            .await;
        if completed {
            assert_eq!(state.checkpoint, Some(id), "round {round}: it was told to be complete");
        }
        assert!(starts(client, &state).await.concat().iter().all(|text| !text.is_empty()), "it is there");
        events.first = state.attempt;
        client.report_tasks("j", &tasks_of(state.attempt, &both, "running")).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_that_is_refused_leaves_a_savepoint_in_progress() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut others =
        running(&daemon, "other", &[("externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION".into())]).await;
    let of_other = checkpoint_of(&mut others, ["a", "b"]).await;
    client.end_job("other", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let keys = [("interval", Value::from("1 d")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    client.trigger_savepoint("j", &SavepointRequest::default(), Some("s")).await.unwrap();
    let savepoint = events.triggered().await;

    let claim = RestoreJob {
        from: Some("other".into()),
        checkpoint: Some(of_other),
        mode: Some("claim".into()),
        ..RestoreJob::default()
    };
    assert_eq!(client.restore_coordinated("j", &claim).await.unwrap_err().status(), Some(StatusCode::CONFLICT));

    for subtask in 0..2 {
        ack_with(client, "j", savepoint, (events.first, subtask), "x").await;
    }
    let waiting = SavepointRequest { wait: Some("20 s".into()), ..SavepointRequest::default() };
    let done = client.trigger_savepoint("j", &waiting, Some("s")).await.unwrap();
    assert_eq!((&*done.state, done.checkpoint), ("completed", Some(savepoint)));
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 0);
}

/// It is the user's: no claim of it is one, and it counts for nothing that goes.
#[tokio::test]
async fn a_job_goes_on_from_a_savepoint_of_its_own_which_stays_the_users() {
    let daemon = daemon().await;
    let keys = [("num-retained", Value::from(2)), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    let older = checkpoint_of(&mut events, ["1", "1"]).await;
    let newer = checkpoint_of(&mut events, ["2", "2"]).await;
    daemon.client.trigger_savepoint("j", &SavepointRequest::default(), None).await.unwrap();
    let savepoint = events.triggered().await;
    for subtask in 0..2 {
        ack_with(&daemon.client, "j", savepoint, (events.first, subtask), "3").await;
    }
    let known = async |client: &Client| {
        let all = client.checkpoints("j").await.unwrap().into_iter();
        let completed = all.filter(|known| known.state == esker_client::wire::CheckpointState::Completed);
        completed.map(|known| known.checkpoint).collect::<Vec<_>>()
    };
    while known(&daemon.client).await.len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let wish = |mode: Option<&str>| {
        let (checkpoint, mode) = (Some(savepoint), mode.map(str::to_owned));
        RestoreJob { checkpoint, mode, ..RestoreJob::default() }
    };

    let claimed = daemon.client.restore_coordinated("j", &wish(Some("claim"))).await;

    refused(claimed, StatusCode::BAD_REQUEST, "mode", "no-claim");
    let state = daemon.client.restore_coordinated("j", &wish(None)).await.unwrap();
    let daemon = daemon.restart().await;
    let client = &daemon.client;
    let mut events = Events::of(client, "j").await;
    events.first = state.attempt;
    client.report_tasks("j", &tasks_of(state.attempt, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    events.next().await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let last = events.triggered().await;
    for subtask in 0..2 {
        ack_with(client, "j", last, (events.first, subtask), "4").await;
    }
    let complete = events.find(|event| if let JobEvent::Complete(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((complete.checkpoint, complete.last_subsumed), (last, Some(older)));
    let begun = std::time::Instant::now();
    while known(client).await != [newer, savepoint, last] {
        assert!(begun.elapsed() < PATIENCE, "{:?} are left", known(client).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
