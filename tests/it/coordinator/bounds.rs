//! What nobody may make a coordinator keep, whatever is sent.

use super::*;

const KEY: &str = "execution.checkpointing.";

async fn decline(client: &TestDaemon, job: &str, id: u64, message: String) {
    let declined = esker_client::wire::DeclineRequest {
        operator: "count".to_owned(),
        subtask: 0,
        attempt: first_attempt(&client.client, job).await,
        reason: Some("CHECKPOINT_DECLINED_TASK_NOT_READY".to_owned()),
        message: Some(message),
    };
    client.client.decline(job, id, &declined).await.unwrap();
}

#[tokio::test]
async fn long_messages_are_cut_and_say_so() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;

    decline(&daemon, "j", id, format!("{}é{}", "m".repeat(1023), "n".repeat(40_000))).await;

    let message =
        events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.message.clone()) } else { None }).await;
    assert!(message.ends_with("mm... (cut, it had 41025 bytes)"), "{message}");
    assert!(message.len() < 1200);
    let failed =
        TasksReport { message: Some("f".repeat(7 << 20)), ..tasks_of(events.first, &[("count", 1)], "failed") };
    daemon.client.report_tasks("j", &failed).await.unwrap();
    let message =
        events.find(|event| if let JobEvent::Restore(restore) = event { Some(restore.message.clone()) } else { None });
    let message = message.await;
    assert!(message.contains(": fff") && message.ends_with("f... (cut, it had 7340032 bytes)"), "{message}");
    assert!(message.len() < 1200);
}

#[tokio::test]
async fn figures_that_add_up_to_more_than_there_is_are_as_large_as_can_be() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    for subtask in 0..2 {
        let request =
            AckRequest { bytes_in_flight: u64::MAX, alignment_ms: u64::MAX, ..ack(events.first, subtask, vec![]) };
        daemon.client.acknowledge("j", id, &request, &[]).await.unwrap();
    }

    assert_eq!(events.completed().await, id);
    let history = daemon.client.checkpoint_history("j").await.unwrap();
    assert_eq!(history[0].bytes_in_flight, u64::MAX);
    assert_eq!(daemon.client.job("j").await.unwrap().coordinator.unwrap().status, "running");
}

#[tokio::test]
async fn requests_that_are_not_over_are_never_forgotten() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[("min-pause", "0".into())]).await;
    let savepoint = SavepointRequest { dir: Some("s3://checkpoints/s".to_owned()), ..SavepointRequest::default() };
    let first = client.trigger_savepoint("j", &savepoint, Some("first")).await.unwrap();
    let id = events.triggered().await;
    for _ in 0..999 {
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    }

    let more = client.trigger_checkpoint("j", &TriggerRequest::default(), None).await;
    let overloaded =
        |error: ClientError| matches!(error, ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. });
    assert!(more.is_err_and(overloaded));
    let again = client.trigger_savepoint("j", &savepoint, Some("first")).await.unwrap();
    assert_eq!((again.request, &*again.state), (first.request.clone(), "pending"));
    for subtask in 0..2 {
        ack_with(client, "j", id, (events.first, subtask), "state").await;
    }
    let waits = SavepointRequest { wait: Some("20 s".to_owned()), ..savepoint.clone() };
    let over = client.trigger_savepoint("j", &waits, Some("first")).await.unwrap();
    assert_eq!((&*over.state, over.checkpoint), ("completed", Some(id)));
    assert!(over.path.is_some(), "it is published where it should be");
    // One is over: another one has room in its place.
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let stop = StopRequest { dir: savepoint.dir.clone(), ..StopRequest::default() };
    let stopping = client.stop_job("j", &stop, Some("stop")).await.unwrap();
    assert_ne!(stopping.state, "failed");
    assert_eq!(client.stop_job("j", &stop, Some("other")).await.unwrap().state, "failed", "the first one goes on");
    let again = client.stop_job("j", &stop, Some("stop")).await.unwrap();
    assert_eq!(again.request, stopping.request);
}

#[tokio::test]
async fn a_key_names_one_request() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let _events = running(&daemon, "j", &[("savepoint-dir", "s3://checkpoints/s".into())]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), Some("k")).await.unwrap();
    let conflict = StatusCode::CONFLICT;

    client.trigger_checkpoint("j", &TriggerRequest { wait: Some("1 ms".to_owned()) }, Some("k")).await.unwrap();
    let stop = StopRequest::default();
    refused(client.stop_job("j", &stop, Some("k")).await, conflict, "idempotency-key", "another request");
    let status = client.job("j").await.unwrap().coordinator.unwrap().status;
    assert_eq!(status, "running", "nothing stops");
    let savepoint = SavepointRequest::default();
    client.trigger_savepoint("j", &savepoint, Some("s")).await.unwrap();
    let elsewhere = SavepointRequest { dir: Some("s3://checkpoints/t".to_owned()), ..savepoint };
    let other = client.trigger_savepoint("j", &elsewhere, Some("s")).await;
    refused(other, conflict, "idempotency-key", "another request");
}

#[tokio::test]
async fn settings_name_buckets_that_exist() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 1)])).await.unwrap();
    let set = async |key: &str, value: &str| {
        let settings = [(format!("{KEY}{key}"), Value::from(value))].into();
        client.change_settings("j", &JobSettings { settings }).await
    };

    refused(set("savepoint-dir", "s3://nowhere/x").await, StatusCode::NOT_FOUND, "bucket", "nowhere");

    let info = client.job("j").await.unwrap().coordinator.unwrap();
    assert_eq!(info.settings.get(&format!("{KEY}savepoint-dir")).filter(|dir| dir.contains("nowhere")), None);
    set("savepoint-dir", "s3://checkpoints/x").await.unwrap();
}

#[tokio::test]
async fn the_same_job_again_is_the_same_after_it_took_key_groups_over() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let many = JobOperator { max_parallelism: Some(256), ..operator("count", 2) };
    client.create(&job("from", &[], vec![many])).await.unwrap();
    let mut events = Events::of(client, "from").await;
    client.report_tasks("from", &tasks_of(events.first, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    let savepoint = SavepointRequest { dir: Some("s3://checkpoints/s".to_owned()), ..SavepointRequest::default() };
    assert!(matches!(events.next().await, JobEvent::Hello(_)));
    client.trigger_savepoint("from", &savepoint, Some("s")).await.unwrap();
    let id = events.triggered().await;
    for subtask in 0..2 {
        ack_with(client, "from", id, (events.first, subtask), "state").await;
    }
    let waits = SavepointRequest { wait: Some("20 s".to_owned()), ..savepoint };
    let path = client.trigger_savepoint("from", &waits, Some("s")).await.unwrap().path;
    let new = job("j", &[], vec![operator("count", 2)]);
    client.create(&new).await.unwrap();
    client.restore_coordinated("j", &RestoreJob { savepoint: path, ..RestoreJob::default() }).await.unwrap();
    let info = client.job("j").await.unwrap().coordinator.unwrap();
    assert_eq!(info.operators[0].max_parallelism, Some(256));

    client.create(&new).await.unwrap();

    let chosen = JobOperator { max_parallelism: Some(512), ..operator("count", 2) };
    let other = client.create(&job("j", &[], vec![chosen])).await;
    refused(other, StatusCode::CONFLICT, "job", "operators");
}
