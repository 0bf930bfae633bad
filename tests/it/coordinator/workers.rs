//! Processes that run tasks, with the worker helper of the client or without.

use super::*;

#[tokio::test]
async fn what_workers_of_a_job_say_that_has_ended_is_nothing_to_another_one_of_its_name() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let old = running(&daemon, "j", &[]).await;
    let end = EndRequest { state: JobEnd::Canceled, retention: None };
    client.end_job("j", &end).await.unwrap();

    let mut events = running(&daemon, "j", &[]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let conflict = StatusCode::CONFLICT;

    let stale = client.acknowledge("j", id, &ack(old.first, 0, vec![]), &[]).await;
    refused(stale, conflict, "attempt", &format!("attempt {}", events.first));
    let stale = client.report_tasks("j", &tasks_of(old.first, &[("count", 0)], "failed")).await;
    refused(stale, conflict, "attempt", &format!("attempt {}", events.first));
    for subtask in 0..2 {
        ack_with(client, "j", id, (events.first, subtask), "mine").await;
    }
    assert_eq!(events.completed().await, id);
}

/// The next event, for which nobody waits longer than a moment: whoever computes has other things to do.
async fn told(worker: &mut Worker) -> Result<WorkerEvent, ClientError> {
    loop {
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(1), worker.next()).await {
            return event;
        }
    }
}

/// Takes what `worker` says that it counted, for as long as `goes_on` says.
async fn count(mut worker: Worker, mut goes_on: impl FnMut(u64) -> bool) -> Result<u64, ClientError> {
    let (mut count, mut taken, mut committed) = (0_u64, BTreeMap::new(), 0);
    loop {
        match told(&mut worker).await? {
            WorkerEvent::Start(state) => {
                count = 0;
                for state in &state.state {
                    for element in worker.elements(state).await? {
                        count += std::str::from_utf8(&element).unwrap().parse::<u64>().unwrap();
                    }
                }
                taken.clear();
                worker.running().await?;
            }
            WorkerEvent::Snapshot(trigger) => {
                count += 1;
                taken.insert(trigger.checkpoint, count);
                let state = AckState::default();
                worker.acknowledge(trigger.checkpoint, vec![(state, Bytes::from(count.to_string()))]).await?;
            }
            WorkerEvent::Complete(checkpoint) => {
                if let Some(count) = taken.remove(&checkpoint) {
                    committed = count;
                    if !goes_on(committed) {
                        return Ok(committed);
                    }
                }
            }
            WorkerEvent::Abort(_) | WorkerEvent::Subsume(_) => {}
            WorkerEvent::Stop(_) => worker.finished().await?,
            WorkerEvent::End(_) => return Ok(committed),
        }
    }
}

#[tokio::test]
async fn workers_count_through_the_loss_of_a_worker() {
    let daemon = daemon().await;
    let keys = [("interval", Value::from("30 ms")), ("tolerable-failed-checkpoints", 1000.into())];
    daemon.client.create(&job("j", &keys, vec![operator("count", 2)])).await.unwrap();
    let worker = |subtask| Worker::new(daemon.client.clone(), "j", "count", subtask);

    let first = async {
        // It ends without a word after five checkpoints; another one takes its place.
        let lost = count(worker(0), |committed| committed < 5).await.unwrap();
        let last = count(worker(0), |committed| committed < 12).await.unwrap();
        (lost, last)
    };
    let other = count(worker(1), |_| true);
    let ((lost, last), ()) = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            both = first => (both, ()),
            other = other => panic!("the other one ended: {other:?}"),
        }
    })
    .await
    .expect("they do not count");

    assert_eq!((lost, last), (5, 12), "each checkpoint counts once");
    let info = daemon.client.job("j").await.unwrap().coordinator.unwrap();
    assert_eq!(info.restarts, 1, "the new worker had the job begin anew");
}

/// Only what all tasks have reported together is remembered.
#[tokio::test]
async fn a_worker_tells_the_next_daemon_that_it_runs() {
    let daemon = daemon().await;
    daemon.client.create(&job("j", &[("interval", "20 ms".into())], vec![operator("count", 2)])).await.unwrap();
    let mut first = Worker::new(daemon.client.clone(), "j", "count", 0);
    assert!(matches!(first.next().await.unwrap(), WorkerEvent::Start(_)));
    first.running().await.unwrap();
    let events = first.next();
    tokio::pin!(events);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut events).await.is_err(), "nothing happens");

    let api = daemon.api().to_string();
    let daemon = daemon.restart_with(&[("server.api", &api)]).await;
    let mut second = Worker::new(daemon.client.clone(), "j", "count", 1);
    assert!(matches!(second.next().await.unwrap(), WorkerEvent::Start(_)));
    second.running().await.unwrap();

    let event = tokio::time::timeout(PATIENCE, events).await.expect("no checkpoint is triggered").unwrap();
    assert!(matches!(event, WorkerEvent::Snapshot(_)), "{event:?}");
}

#[tokio::test]
async fn two_processes_are_never_the_same_task() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 2)])).await.unwrap();
    let first = first_attempt(client, "j").await;
    let by =
        |worker: &str| TasksReport { worker: Some(worker.to_owned()), ..tasks_of(first, &[("count", 0)], "running") };
    client.report_tasks("j", &by("one")).await.unwrap();
    client.report_tasks("j", &by("one")).await.unwrap();

    let refusal = client.report_tasks("j", &by("two")).await;

    refused(refusal, StatusCode::CONFLICT, "attempt", &format!("attempt {}", first + 1));
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().status, "restarting");
}

#[tokio::test]
async fn a_worker_of_a_job_that_has_ended_is_none_of_the_next_one() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let one = || job("j", &[], vec![operator("count", 1)]);
    client.create(&one()).await.unwrap();
    let mut old = Worker::new(client.clone(), "j", "count", 0);
    assert!(matches!(old.next().await.unwrap(), WorkerEvent::Start(_)));
    old.running().await.unwrap();
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    client.create(&one()).await.unwrap();

    let event = tokio::time::timeout(PATIENCE, old.next()).await.expect("it hears of the end").unwrap();

    assert!(matches!(event, WorkerEvent::End(_)), "{event:?}");
}

/// A source says it once, and not again because the daemon is another one.
#[tokio::test]
async fn the_last_report_of_a_backlog_counts_after_a_restart_of_the_daemon() {
    let mut daemon = daemon().await;
    let first = running(&daemon, "j", &[("interval", "1 h".into())]).await.first;
    let report = |backlog| BacklogReport { source: "count".to_owned(), backlog };
    let has_backlog = async |client: &Client| client.job("j").await.unwrap().coordinator.unwrap().backlog;

    daemon.client.report_backlog("j", &report(true)).await.unwrap();
    daemon = daemon.restart().await;
    assert!(has_backlog(&daemon.client).await);

    daemon.client.report_backlog("j", &report(false)).await.unwrap();
    daemon = daemon.restart().await;
    assert!(!has_backlog(&daemon.client).await);

    // At the end of its data a source has none.
    daemon.client.report_backlog("j", &report(true)).await.unwrap();
    let ends = tasks_of(first, &[("count", 0), ("count", 1)], "end-of-data");
    daemon.client.report_tasks("j", &ends).await.unwrap();
    daemon = daemon.restart().await;
    assert!(!has_backlog(&daemon.client).await);
}
