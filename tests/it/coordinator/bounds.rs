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

async fn rest(daemon: &TestDaemon, path: &str, body: String) -> (u16, Value) {
    let mut stream = TcpStream::connect(daemon.api()).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        daemon.api(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test]
async fn acknowledgements_have_so_many_offsets_and_pending_ones_so_much_memory() {
    let keys = [("server.buckets", "checkpoints"), ("limits.memory", "256 mb")];
    let daemon = TestDaemon::start(&keys).await;
    let client = &daemon.client;
    let timeout = [("timeout", Value::from("1 h")), ("tolerable-failed-checkpoints", 9.into())];
    client.create(&job("j", &timeout, vec![operator("count", 64)])).await.unwrap();
    let mut events = Events::of(client, "j").await;
    let tasks: Vec<(&str, u32)> = (0..64).map(|subtask| ("count", subtask)).collect();
    client.report_tasks("j", &tasks_of(events.first, &tasks, "running")).await.unwrap();
    assert!(matches!(events.next().await, JobEvent::Hello(_)));
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let stored = PutParams { checkpoint: Some(id), ..PutParams::default() };
    let segment = client.put("j", &stored, None, "xx".into()).await.unwrap().segment;
    let attempt = events.first;
    let zeros = async |subtask: u32, id: u64, offsets: usize| {
        let offsets = format!("{}0", "0,".repeat(offsets - 1));
        let state = format!(r#"[{{"segment":"{segment}","offsets":[{offsets}]}}]"#);
        let ack = format!(r#"{{"operator":"count","subtask":{subtask},"attempt":{attempt},"state":{state}}}"#);
        rest(&daemon, &format!("/v1/jobs/j/checkpoints/{id}/ack"), ack).await
    };

    let (status, error) = zeros(0, id, (1 << 20) + 1).await;
    assert_eq!((status, &error["error"]["field"]), (400, &json!("state")), "{error}");
    let mut taken = 0;
    let error = loop {
        let (status, answer) = zeros(taken, id, 1 << 20).await;
        if status != 200 {
            assert_eq!(status, 503, "{answer}");
            break answer;
        }
        taken += 1;
        assert!(taken < 32, "32 x 8 MiB are all the memory that there is");
    };
    assert!(taken > 0);
    assert_eq!((&error["error"]["kind"], &error["error"]["field"]), (&json!("overloaded"), &json!("state")));
    // What is given up gives its memory back.
    decline(&daemon, "j", id, String::new()).await;
    events.find(|event| matches!(event, JobEvent::Abort(_)).then_some(())).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let next = events.triggered().await;
    let stored = PutParams { checkpoint: Some(next), ..PutParams::default() };
    let segment = client.put("j", &stored, None, "xx".into()).await.unwrap().segment;
    for subtask in 0..taken {
        let offsets = Some(vec![0; 1 << 20]);
        let state = AckState { segment: Some(segment.clone()), offsets, ..AckState::default() };
        client.acknowledge("j", next, &ack(attempt, subtask, vec![state]), &[]).await.unwrap();
    }
}

#[tokio::test]
async fn reports_of_tasks_are_paid_for_like_other_bodies() {
    const BYTES: usize = 4 << 20;
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 1)])).await.unwrap();
    let free = daemon.metric("esker_in_flight_bytes").await;
    let report =
        serde_json::to_string(&tasks_of(first_attempt(client, "j").await, &[("count", 0)], "running")).unwrap();
    let body = format!("{report}{}", " ".repeat(BYTES - report.len()));

    let mut raw = crate::raw::Raw::connect(daemon.api()).await;
    raw.send(format!("POST /v1/jobs/j/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: {BYTES}\r\n\r\n")).await;
    raw.send(&body[..1000]).await;
    let begun = std::time::Instant::now();
    while daemon.metric("esker_in_flight_bytes").await < free + BYTES as f64 {
        assert!(begun.elapsed() < PATIENCE, "nobody pays for it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    raw.send(&body[1000..]).await;

    let answer = raw.answer().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(raw);
    let begun = std::time::Instant::now();
    while daemon.metric("esker_in_flight_bytes").await >= free + BYTES as f64 {
        assert!(begun.elapsed() < PATIENCE, "it is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn metadata_that_nobody_published_is_not_read_into_memory() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 1)])).await.unwrap();
    let len = (256 << 20) + 1;
    let mut stream = TcpStream::connect(daemon.s3()).await.unwrap();
    let head = format!(
        "PUT /checkpoints/s/metadata.json HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n",
        daemon.s3()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b' '; 1 << 20];
    for _ in 0..256 {
        stream.write_all(&piece).await.unwrap();
    }
    stream.write_all(b"{").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let savepoint = Some("s3://checkpoints/s".to_owned());
    let refused_one = client.restore_coordinated("j", &RestoreJob { savepoint, ..RestoreJob::default() }).await;

    refused(refused_one, StatusCode::BAD_REQUEST, "savepoint", "268435457 bytes");
}
