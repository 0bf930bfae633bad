//! Savepoints that somebody deletes while a job needs them.

use super::*;

async fn delete(client: &Client, job: &str, id: u64) -> Result<(), ClientError> {
    client.discard_savepoint(job, id).await
}

fn savepoint_dir() -> Option<String> {
    Some("s3://checkpoints/sp".to_owned())
}

#[tokio::test]
async fn a_savepoint_in_progress_is_not_deleted() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[("tolerable-failed-checkpoints", 9.into())]).await;
    let request = SavepointRequest { dir: savepoint_dir(), ..SavepointRequest::default() };
    client.trigger_savepoint("j", &request, Some("s")).await.unwrap();
    let id = events.triggered().await;
    ack_with(client, "j", id, (events.first, 0), "one").await;

    refused(delete(client, "j", id).await, StatusCode::CONFLICT, "checkpoint", "in progress");

    ack_with(client, "j", id, (events.first, 1), "two").await;
    let waits = SavepointRequest { wait: Some("20 s".into()), ..request };
    assert_eq!(client.trigger_savepoint("j", &waits, Some("s")).await.unwrap().state, "completed");
    delete(client, "j", id).await.unwrap();
    assert!(client.checkpoints("j").await.unwrap().is_empty(), "the job has no need of it");
    assert!(client.segments("j", None, None).await.unwrap().segments.is_empty());
}

#[tokio::test]
async fn the_savepoint_that_a_job_stops_with_is_not_deleted_before_it_has_ended() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    client.stop_job("j", &StopRequest { dir: savepoint_dir(), ..StopRequest::default() }, None).await.unwrap();
    let id = events.triggered().await;
    for subtask in 0..2 {
        ack_with(client, "j", id, (events.first, subtask), "end").await;
    }
    assert_eq!(events.completed().await, id);

    refused(delete(client, "j", id).await, StatusCode::CONFLICT, "checkpoint", "job j begins from");

    client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "failed")).await.unwrap();
    let state = client.job_state("j", None).await.unwrap();
    assert_eq!((state.checkpoint, starts(client, &state).await), (Some(id), vec![vec!["end".to_owned()]; 2]));
    refused(delete(client, "j", id).await, StatusCode::CONFLICT, "checkpoint", "job j begins from");
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    delete(client, "j", id).await.unwrap();
    assert_eq!(client.job("j").await.unwrap_err().status(), Some(StatusCode::NOT_FOUND), "nothing is left of it");
}

#[tokio::test]
async fn a_savepoint_that_another_job_would_begin_from_is_not_deleted() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    let request = SavepointRequest { dir: savepoint_dir(), ..SavepointRequest::default() };
    client.trigger_savepoint("j", &request, Some("s")).await.unwrap();
    let id = events.triggered().await;
    for subtask in 0..2 {
        ack_with(client, "j", id, (events.first, subtask), "saved").await;
    }
    let waits = SavepointRequest { wait: Some("20 s".into()), ..request };
    let path = client.trigger_savepoint("j", &waits, Some("s")).await.unwrap().path;
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let mut others = running(&daemon, "other", &[]).await;
    let restore = RestoreJob { savepoint: path, ..RestoreJob::default() };
    others.first = client.restore_coordinated("other", &restore).await.unwrap().attempt;

    for begun in [false, true] {
        if begun {
            let both = [("count", 0), ("count", 1)];
            client.report_tasks("other", &tasks_of(others.first, &both, "running")).await.unwrap();
        }
        refused(delete(client, "j", id).await, StatusCode::CONFLICT, "checkpoint", "job other begins from");
    }
    checkpoint_of(&mut others, ["one", "two"]).await;
    delete(client, "j", id).await.unwrap();
    assert!(client.job("j").await.is_err());
}
