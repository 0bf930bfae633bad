//! Jobs that are created again, and what is still on its way from before; what two jobs, or two processes, may not share.

use super::*;
use crate::raw::{Answer, Raw};

/// Bytes of a segment that takes its time.
const SLOW_BYTES: usize = 1 << 20;
/// Of them, those that come at first.
const FIRST_BYTES: usize = 64 << 10;

/// Begins a request whose body is `before` and a segment, of which the first bytes come.
async fn begins(daemon: &TestDaemon, path: &str, before: &[u8]) -> Raw {
    let in_flight = daemon.metric("esker_in_flight_bytes").await;
    let mut raw = Raw::connect(daemon.api()).await;
    let len = before.len() + SLOW_BYTES;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {len}\r\n\r\n"
    );
    raw.send(head).await;
    raw.send(before).await;
    raw.send(vec![7; FIRST_BYTES]).await;
    let begun = std::time::Instant::now();
    while daemon.metric("esker_in_flight_bytes").await < in_flight + SLOW_BYTES as f64 {
        assert!(begun.elapsed() < PATIENCE, "nobody receives it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    raw
}

async fn ends(mut raw: Raw) -> Answer {
    raw.send(vec![7; SLOW_BYTES - FIRST_BYTES]).await;
    raw.answer().await.unwrap()
}

fn framed(head: &Value) -> Vec<u8> {
    let head = head.to_string();
    let mut frame = u32::try_from(head.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(head.as_bytes());
    frame
}

#[tokio::test]
async fn an_upload_that_began_for_a_job_that_has_ended_is_not_of_the_next_one_of_its_name() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut old = running(&daemon, "j", &[]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = old.triggered().await;
    let put = begins(&daemon, &format!("/v1/jobs/j/segments?checkpoint={id}"), b"").await;
    let state = json!([{"part": 0, "name": "count"}]);
    let head = framed(&json!({"operator": "count", "subtask": 0, "attempt": old.first, "state": state}));
    let before = [head, framed(&json!({"len": SLOW_BYTES}))].concat();
    let riding = begins(&daemon, &format!("/v1/jobs/j/checkpoints/{id}/ack"), &before).await;
    let batch =
        begins(&daemon, "/v1/jobs/j/segments/batch", &framed(&json!({"checkpoint": id, "len": SLOW_BYTES}))).await;
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();

    let mut new = running(&daemon, "j", &[("savepoint-dir", "s3://checkpoints/sp".into())]).await;
    let savepoint = SavepointRequest { wait: Some("1 ms".into()), ..SavepointRequest::default() };
    client.trigger_savepoint("j", &savepoint, Some("s")).await.unwrap();
    assert_eq!(new.triggered().await, id, "it has the same number");
    let (put, riding) = (ends(put).await, ends(riding).await);
    let batch = ends(batch).await;

    assert_eq!((put.status, put.error()), (409, ("conflict".into(), "checkpoint".into())), "{}", put.text());
    assert_eq!((riding.status, riding.error()), (409, ("conflict".into(), "checkpoint".into())), "{}", riding.text());
    assert!(batch.text().contains("has begun anew since the request came"), "{}", batch.text());
    assert!(client.segments("j", None, None).await.unwrap().segments.is_empty());
    for subtask in 0..2 {
        ack_with(client, "j", id, (new.first, subtask), "mine").await;
    }
    let waits = SavepointRequest { wait: Some("20 s".into()), ..savepoint };
    let done = client.trigger_savepoint("j", &waits, Some("s")).await.unwrap();
    assert_eq!((&*done.state, done.checkpoint), ("completed", Some(id)));
    assert_eq!(client.segments("j", None, None).await.unwrap().segments.len(), 3, "two states, and the metadata");
}

#[tokio::test]
async fn a_savepoint_holds_what_its_tasks_have_acknowledged_and_nothing_else() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[("savepoint-dir", "s3://checkpoints/sp".into())]).await;
    client.trigger_savepoint("j", &SavepointRequest::default(), Some("s")).await.unwrap();
    let id = events.triggered().await;
    let parts = |text: &'static str| [(BatchHead::default(), Bytes::from_static(text.as_bytes()))];

    let wrong = AckRequest { finished: true, ..ack(events.first, 0, vec![riding(0, "count")]) };
    refused(client.acknowledge("j", id, &wrong, &parts("refused")).await, StatusCode::BAD_REQUEST, "state", "finished");
    let stray = PutParams { checkpoint: Some(id), ..PutParams::default() };
    client.put("j", &stray, None, "never named".into()).await.unwrap();
    // The same bytes once more: it is the same segment, and now it is wanted.
    let right = ack(events.first, 0, vec![riding(0, "count")]);
    let taken = client.acknowledge("j", id, &right, &parts("refused")).await.unwrap();
    client.acknowledge("j", id, &ack(events.first, 1, vec![riding(1, "x")]), &parts("again")).await.unwrap_err();
    ack_with(client, "j", id, (events.first, 1), "last").await;
    let waits = SavepointRequest { wait: Some("20 s".into()), ..SavepointRequest::default() };
    assert_eq!(client.trigger_savepoint("j", &waits, Some("s")).await.unwrap().state, "completed");

    let mut held: Vec<u64> =
        client.segments("j", None, None).await.unwrap().segments.iter().map(|one| one.info.len).collect();
    held.sort_unstable();
    assert_eq!(held.len(), 3, "{held:?}");
    assert_eq!(held[..2], ["last".len() as u64, "refused".len() as u64]);
    let daemon = daemon.restart().await;
    assert_eq!(daemon.client.get(&taken.segments[0].segment).await.unwrap(), "refused");
    assert_eq!(daemon.client.segments("j", None, None).await.unwrap().segments.len(), 3);
}

#[tokio::test]
async fn two_jobs_do_not_publish_their_metadata_in_one_folder() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let own = |dir: &str| vec![("dir", Value::from(dir)), ("create-subdir", false.into())];
    let create =
        async |name, settings: &[(&str, Value)]| client.create(&job(name, settings, vec![operator("count", 2)])).await;
    let keeps = ("externalized-checkpoint-retention", Value::from("RETAIN_ON_CANCELLATION"));
    let settings = [own("s3://checkpoints/one"), vec![keeps]].concat();
    let mut events = running(&daemon, "a", &settings).await;
    let kept = checkpoint_of(&mut events, ["one", "two"]).await;

    refused(create("b", &own("s3://checkpoints/one/")).await, StatusCode::CONFLICT, "settings", "job a publishes");
    create("c", &[("dir", "s3://checkpoints/two".into())]).await.unwrap();
    refused(create("b", &own("s3://checkpoints/two/c")).await, StatusCode::CONFLICT, "settings", "job c publishes");
    create("d", &[("dir", "s3://checkpoints/one".into())]).await.unwrap();
    let nowhere = [own("s3://checkpoints/one"), vec![("storage", "jobmanager".into())]].concat();
    create("e", &nowhere).await.unwrap();

    // What a job has kept that is not there any more is not written over, nor deleted.
    client.end_job("a", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let settings = [own("s3://checkpoints/one"), vec![("tolerable-failed-checkpoints", 9.into())]].concat();
    let mut events = running(&daemon, "b", &settings).await;
    client.trigger_checkpoint("b", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    assert_eq!(id, kept, "it has the same number");
    for subtask in 0..2 {
        ack_with(client, "b", id, (events.first, subtask), "x").await;
    }
    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.clone()) } else { None }).await;
    assert_eq!(&*abort.reason, "FINALIZE_CHECKPOINT_FAILURE");
    assert!(abort.message.contains("job a has kept"), "{}", abort.message);
    let next = checkpoint_of(&mut events, ["three", "four"]).await;
    assert!(next > kept);
    client.end_job("b", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let left = client.objects("checkpoints", "one/", None).await.unwrap().objects;
    let left: Vec<String> = left.into_iter().map(|object| object.key).collect();
    assert_eq!(left, [format!("one/metadata-{kept}.json")]);
}

/// A job may be told to publish in the folder that another one has by its name.
#[tokio::test]
async fn what_a_job_has_kept_in_a_folder_with_the_name_of_another_one_stays() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keeps = ("externalized-checkpoint-retention", Value::from("RETAIN_ON_CANCELLATION"));
    let settings = [("dir", Value::from("s3://checkpoints/meta/b")), ("create-subdir", false.into()), keeps];
    let mut events = running(&daemon, "a", &settings).await;
    let kept = checkpoint_of(&mut events, ["one", "two"]).await;
    client.end_job("a", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let published = async || {
        let page = client.objects("checkpoints", "meta/b/", None).await.unwrap();
        page.objects.into_iter().map(|object| (object.key, object.etag)).collect::<Vec<_>>()
    };
    let before = published().await;
    assert_eq!(before.len(), 1);

    let settings = [("dir", Value::from("s3://checkpoints/meta")), ("tolerable-failed-checkpoints", 9.into())];
    let mut events = running(&daemon, "b", &settings).await;
    client.trigger_checkpoint("b", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    assert_eq!(id, kept, "it has the same number");
    for subtask in 0..2 {
        ack_with(client, "b", id, (events.first, subtask), "x").await;
    }
    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.clone()) } else { None }).await;
    assert!(abort.message.contains("job a has kept"), "{}", abort.message);
    checkpoint_of(&mut events, ["three", "four"]).await;
    client.end_job("b", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();

    assert_eq!(published().await, before);
}

#[tokio::test]
async fn an_operator_with_the_longest_id_brings_channel_state_and_a_longer_one_is_refused() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let longest = "o".repeat(1200);
    let too_long = client.create(&job("j", &[], vec![operator(&"o".repeat(1201), 1)])).await;
    let ClientError::Refused { status, field, message, .. } = too_long.unwrap_err() else { panic!("it is refused") };
    assert_eq!((status, field.as_deref()), (StatusCode::BAD_REQUEST, Some("operators")));
    assert!(message.contains("1 to 1200 bytes, has 1201") && message.len() < 300, "{message}");
    client.create(&job("j", &[("unaligned.enabled", true.into())], vec![operator(&longest, 1)])).await.unwrap();
    let mut events = Events::of(client, "j").await;
    client.report_tasks("j", &tasks_of(events.first, &[(&longest, 0)], "running")).await.unwrap();
    assert!(matches!(events.next().await, JobEvent::Hello(_)));
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;

    let state = AckState { kind: Some("channel".into()), part: Some(0), ..AckState::default() };
    let ack = AckRequest { operator: longest, attempt: events.first, state: vec![state], ..AckRequest::default() };
    let parts = [(BatchHead::default(), Bytes::from_static(b"records"))];
    client.acknowledge("j", id, &ack, &parts).await.unwrap();

    assert_eq!(events.completed().await, id);
}

#[tokio::test]
async fn tasks_that_run_are_those_of_a_process_that_has_a_name() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 2)])).await.unwrap();
    let first = first_attempt(client, "j").await;
    let report = async |worker: Option<&str>, state: &str| {
        let worker = worker.map(str::to_owned);
        let report = TasksReport { worker, ..tasks_of(first, &[("count", 0)], state) };
        client.report_tasks("j", &report).await
    };

    for state in ["running", "end-of-data"] {
        refused(report(None, state).await, StatusCode::BAD_REQUEST, "worker", "give it a name");
    }
    report(Some("one"), "running").await.unwrap();
    refused(report(None, "running").await, StatusCode::BAD_REQUEST, "worker", "give it a name");
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 0, "the one with a name goes on");

    // Whoever takes the place of another one is of no process yet.
    report(None, "failed").await.unwrap();
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 1);
}

#[tokio::test]
async fn the_same_job_again_is_the_same_whatever_the_defaults_of_the_daemon_are_by_now() {
    let daemon = daemon().await;
    let said = [("interval", Value::from("1 h")), ("min-pause", "1 s".into())];
    let one = || vec![operator("count", 1)];
    daemon.client.create(&job("j", &said, one())).await.unwrap();
    let before = daemon.client.job("j").await.unwrap().coordinator.unwrap().settings;

    let key = |key: &str| format!("execution.checkpointing.{key}");
    let changed = [(key("num-retained"), "7"), (key("max-concurrent-checkpoints"), "3"), (key("interval"), "2 h")];
    let changed: Vec<(&str, &str)> = changed.iter().map(|(key, value)| (&**key, *value)).collect();
    let daemon = daemon.restart_with(&changed).await;
    let client = &daemon.client;
    client.create(&job("j", &said, one())).await.unwrap();

    let again = [("interval", Value::from("60 min")), ("min-pause", 1000.into())];
    client.create(&job("j", &again, one())).await.unwrap();
    let after = client.job("j").await.unwrap().coordinator.unwrap().settings;
    assert_eq!(after, before, "what was recorded stays");
    let conflict = StatusCode::CONFLICT;
    refused(client.create(&job("j", &said[..1], one())).await, conflict, "job", "settings");
    let more = [&said[..], &[("num-retained", 1.into())]].concat();
    refused(client.create(&job("j", &more, one())).await, conflict, "job", "settings");
    let iterative = NewJob { iterative: Some(true), ..job("j", &said, one()) };
    refused(client.create(&iterative).await, conflict, "job", "operators");
    // A change is said, too.
    let change = [(key("num-retained"), Value::from(1))].into();
    client.change_settings("j", &JobSettings { settings: change }).await.unwrap();
    client.create(&job("j", &more, one())).await.unwrap();
    refused(client.create(&job("j", &said, one())).await, conflict, "job", "settings");
}
