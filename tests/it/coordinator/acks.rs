//! What tasks acknowledge, and what they may not.

use super::*;

#[tokio::test]
async fn s5_4_a_late_acknowledgement_is_refused_and_what_it_brings_is_freed() {
    let daemon = daemon().await;
    let keys = [("timeout", Value::from("3 s")), ("tolerable-failed-checkpoints", 9.into())];
    let mut events = running(&daemon, "j", &keys).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    ack_with(&daemon.client, "j", id, (events.first, 0), "in time").await;
    let stored = PutParams { checkpoint: Some(id), ..PutParams::default() };
    daemon.client.put("j", &stored, None, "beforehand".into()).await.unwrap();

    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.clone()) } else { None }).await;
    assert_eq!((abort.checkpoint, &*abort.reason), (id, "CHECKPOINT_EXPIRED"));
    let parts = [(BatchHead::default(), Bytes::from_static(b"too late"))];
    let late = daemon.client.acknowledge("j", id, &ack(events.first, 1, vec![riding(0, "count")]), &parts).await;

    refused(late, StatusCode::CONFLICT, "checkpoint", "CHECKPOINT_EXPIRED");
    let never = daemon.client.acknowledge("j", 77, &ack(events.first, 1, vec![]), &[]).await;
    refused(never, StatusCode::CONFLICT, "checkpoint", "never triggered");
    let free = async {
        while !daemon.client.segments("j", None, None).await.unwrap().segments.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("segments of the expired checkpoint stay");
    refused(
        daemon.client.put("j", &stored, None, "afterwards".into()).await,
        StatusCode::CONFLICT,
        "checkpoint",
        "aborted",
    );
}

#[tokio::test]
async fn an_acknowledgement_may_be_sent_again_and_another_one_of_the_task_is_ignored() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let attempt = events.first;
    let acknowledge = async |text: &'static str| {
        let parts = [(BatchHead::default(), Bytes::from_static(text.as_bytes()))];
        daemon.client.acknowledge("j", id, &ack(attempt, 0, vec![riding(0, "count")]), &parts).await.unwrap()
    };

    let first = acknowledge("state").await;
    let again = acknowledge("state").await;
    assert_eq!((first.missing, again.missing), (1, 1));
    assert_eq!(first.segments[0].segment, again.segments[0].segment);
    assert!(acknowledge("other").await.segments.is_empty());
    ack_with(&daemon.client, "j", id, (events.first, 1), "b").await;
    assert_eq!(events.completed().await, id);

    assert_eq!(acknowledge("state").await.state, "completed");
    let metadata = daemon.client.checkpoint_metadata("j", id).await.unwrap();
    assert_eq!(metadata["operators"][0]["tasks"][0]["state"][0]["segment"], json!(first.segments[0].segment));
}

#[tokio::test]
async fn wrong_acknowledgements_are_refused_and_the_checkpoint_goes_on() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let part = || [(BatchHead::default(), Bytes::from_static(b"12345678"))];
    let send = async |request: AckRequest, parts: &[(BatchHead, Bytes)]| {
        daemon.client.acknowledge("j", id, &request, parts).await
    };
    let (bad, conflict) = (StatusCode::BAD_REQUEST, StatusCode::CONFLICT);

    refused(
        send(ack(events.first + 8, 0, vec![]), &[]).await,
        conflict,
        "attempt",
        &format!("attempt {}", events.first),
    );
    refused(send(ack(events.first, 2, vec![]), &[]).await, bad, "subtask", "no task");
    refused(send(ack(events.first, 0, vec![riding(1, "x")]), &part()).await, bad, "state", "part 1");
    refused(send(ack(events.first, 0, vec![]), &part()).await, bad, "state", "no state is in part 0");
    let beyond = AckState { offsets: Some(vec![0, 9]), ..riding(0, "x") };
    refused(send(ack(events.first, 0, vec![beyond]), &part()).await, bad, "state", "offsets");
    let groups =
        AckState { kind: Some("keyed".into()), key_groups: Some(KeyGroups { start: 0, end: 128 }), ..riding(0, "x") };
    refused(send(ack(events.first, 0, vec![groups]), &part()).await, bad, "state", "key groups");
    let finished = AckRequest { finished: true, ..ack(events.first, 0, vec![riding(0, "x")]) };
    refused(send(finished, &part()).await, bad, "state", "finished");
    let elsewhere = [(BatchHead { checkpoint: Some(id + 1), ..BatchHead::default() }, Bytes::from_static(b"1"))];
    refused(send(ack(events.first, 0, vec![riding(0, "x")]), &elsewhere).await, bad, "checkpoint", "another one");
    let torn = [(BatchHead { crc32c: Some("00000000".into()), ..BatchHead::default() }, Bytes::from_static(b"1"))];
    refused(send(ack(events.first, 0, vec![riding(0, "x")]), &torn).await, bad, "crc32c", "CRC-32C");

    ack_with(&daemon.client, "j", id, (events.first, 0), "a").await;
    ack_with(&daemon.client, "j", id, (events.first, 1), "b").await;
    assert_eq!(events.completed().await, id);
}

#[tokio::test]
async fn s5_8_segments_of_completed_checkpoints_are_used_again_if_the_job_is_incremental() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[("incremental", true.into())]).await;
    let shared = |text: &'static str| {
        [(BatchHead { scope: Some("shared".into()), ..BatchHead::default() }, Bytes::from_static(text.as_bytes()))]
    };
    let trigger = async || daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    trigger().await;
    let first = events.triggered().await;
    let stored = daemon
        .client
        .acknowledge("j", first, &ack(events.first, 0, vec![riding(0, "s")]), &shared("base"))
        .await
        .unwrap();
    let base = stored.segments[0].handle.clone();
    ack_with(&daemon.client, "j", first, (events.first, 1), "exclusive").await;
    events.completed().await;
    trigger().await;
    let second = events.triggered().await;

    let of = |segment: &str| AckState { segment: Some(segment.to_owned()), ..AckState::default() };
    let unknown = daemon
        .client
        .acknowledge("j", second, &ack(events.first, 1, vec![of("01ARZ3NDEKTSV4RRFFQ69G5FAV")]), &[])
        .await;
    refused(unknown, StatusCode::CONFLICT, "state", "do not exist");
    let metadata = daemon.client.checkpoint_metadata("j", first).await.unwrap();
    let exclusive = metadata["operators"][0]["tasks"][1]["state"][0]["segment"].as_str().unwrap().to_owned();
    let refusal = daemon.client.acknowledge("j", second, &ack(events.first, 1, vec![of(&exclusive)]), &[]).await;
    refused(refusal, StatusCode::CONFLICT, "state", &exclusive);
    daemon.client.acknowledge("j", second, &ack(events.first, 0, vec![of(&base)]), &[]).await.unwrap();
    daemon.client.acknowledge("j", second, &ack(events.first, 1, vec![]), &[]).await.unwrap();
    assert_eq!(events.completed().await, second);

    assert_eq!(daemon.client.get_handle(&base).await.unwrap(), "base", "it lives on though the first is subsumed");
    let history = daemon.client.checkpoint_history("j").await.unwrap();
    assert_eq!((history[0].checkpoint, history[0].bytes, history[0].bytes_reused), (second, 0, 4));
}

#[tokio::test]
async fn numbers_that_nobody_triggered_are_refused_and_leave_a_job_that_starts() {
    const HIGHEST: u64 = u64::MAX;
    let daemon = daemon().await;
    // Before there is a coordinator any number may be used.
    daemon.client.create_job("j").await.unwrap();
    let highest = PutParams { checkpoint: Some(HIGHEST), ..PutParams::default() };
    daemon.client.put("j", &highest, None, "x".into()).await.unwrap();
    daemon.client.complete("j", HIGHEST).await.unwrap();
    let mut events = running(&daemon, "j", &[]).await;

    for id in [7, HIGHEST - 1] {
        let params = PutParams { checkpoint: Some(id), ..PutParams::default() };
        let put = daemon.client.put("j", &params, None, "x".into()).await;
        refused(put, StatusCode::CONFLICT, "checkpoint", "never triggered");
    }
    let first = checkpoint_of(&mut events, ["one", "two"]).await;
    let daemon = daemon.restart().await;

    let mut events = Events::of(&daemon.client, "j").await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    events.next().await;
    let next = checkpoint_of(&mut events, ["three", "four"]).await;
    assert!(first < next && next < 1000, "{next} after {first}");
}

#[tokio::test]
async fn an_acknowledgement_may_have_as_many_key_groups_as_there_are() {
    let daemon = daemon().await;
    let wide = JobOperator { max_parallelism: Some(32_768), ..operator("count", 1) };
    daemon.client.create(&job("j", &[], vec![wide])).await.unwrap();
    let mut events = Events::of(&daemon.client, "j").await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "running")).await.unwrap();
    assert!(matches!(events.next().await, JobEvent::Hello(_)));
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;

    let keyed = AckState {
        kind: Some("keyed".into()),
        offsets: Some((0..32_768).collect()),
        key_groups: Some(KeyGroups { start: 0, end: 32_768 }),
        ..riding(0, "s")
    };
    let parts = [(BatchHead::default(), Bytes::from(vec![7; 32_768]))];
    daemon.client.acknowledge("j", id, &ack(events.first, 0, vec![keyed]), &parts).await.unwrap();

    assert_eq!(events.completed().await, id);
}
