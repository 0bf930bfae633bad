//! Statements of Flink's rules that only a whole daemon shows; `docs/coordinator.md` lists them.

use std::collections::BTreeSet;

use super::*;

const KEEPS: (&str, &str) = ("externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION");

async fn ends(client: &Client, job: &str, state: JobEnd) -> bool {
    client.end_job(job, &EndRequest { state, retention: None }).await.unwrap().kept
}

async fn segments_of(client: &Client, job: &str) -> usize {
    client.segments(job, None, None).await.map_or(0, |page| page.segments.len())
}

async fn savepoint_of(events: &mut Events<'_>) -> u64 {
    let (client, job, attempt) = (events.client, events.job, events.first);
    let request = SavepointRequest { dir: Some("s3://checkpoints/sp".into()), ..SavepointRequest::default() };
    client.trigger_savepoint(job, &request, Some("s")).await.unwrap();
    let id = events.triggered().await;
    for subtask in 0..2 {
        ack_with(client, job, id, (attempt, subtask), "saved").await;
    }
    let waits = SavepointRequest { wait: Some("20 s".into()), ..request };
    assert_eq!(client.trigger_savepoint(job, &waits, Some("s")).await.unwrap().checkpoint, Some(id));
    id
}

#[tokio::test]
async fn s5_8_what_a_job_has_claimed_goes_when_no_checkpoint_uses_it_and_what_it_has_not_stays() {
    let daemon = daemon().await;
    let client = &daemon.client;
    for (from, to, mode) in [("a", "b", "claim"), ("c", "d", "no-claim")] {
        let mut events = running(&daemon, from, &[(KEEPS.0, KEEPS.1.into())]).await;
        let kept = checkpoint_of(&mut events, ["one", "two"]).await;
        assert!(ends(client, from, JobEnd::Canceled).await);
        let mut events = running(&daemon, to, &[]).await;
        let restore = RestoreJob { from: Some(from.into()), mode: Some(mode.into()), ..RestoreJob::default() };
        let state = client.restore_coordinated(to, &restore).await.unwrap();
        assert_eq!(state.checkpoint, Some(kept));
        // The answer was lost: the same again begins one more attempt, from the same state.
        let again = client.restore_coordinated(to, &restore).await.unwrap();
        assert_eq!((again.attempt, again.checkpoint), (state.attempt + 1, Some(kept)), "{mode}");
        assert_eq!(starts(client, &again).await, [["one"], ["two"]], "{mode}");
        let by_number = RestoreJob { checkpoint: Some(kept), ..restore };
        let state = client.restore_coordinated(to, &by_number).await.unwrap();
        client.report_tasks(to, &tasks_of(state.attempt, &[("count", 0), ("count", 1)], "running")).await.unwrap();
        events.first = state.attempt;
        checkpoint_of(&mut events, ["three", "four"]).await;

        // Two states and the metadata of the new one, and of the old one if it is not its own.
        let begun = std::time::Instant::now();
        while segments_of(client, to).await != 3 {
            assert!(begun.elapsed() < PATIENCE, "{mode}: what it does not use any more stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(segments_of(client, from).await, if mode == "claim" { 0 } else { 3 }, "{mode}");
    }
}

#[tokio::test]
async fn s5_8_only_segments_of_completed_checkpoints_are_used_again() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keys = [("incremental", Value::from(true)), ("max-concurrent-checkpoints", 2.into())];
    let mut events = running(&daemon, "j", &keys).await;
    let mut ids = vec![];
    for _ in 0..2 {
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        ids.push(events.triggered().await);
    }
    let shared = [(BatchHead { scope: Some("shared".into()), ..BatchHead::default() }, Bytes::from_static(b"base"))];
    let stored = client.acknowledge("j", ids[0], &ack(events.first, 0, vec![riding(0, "s")]), &shared).await.unwrap();
    let segment = stored.segments[0].segment.clone();
    let names = || vec![AckState { segment: Some(segment.clone()), ..AckState::default() }];

    let early = client.acknowledge("j", ids[1], &ack(events.first, 0, names()), &[]).await;
    refused(early, StatusCode::CONFLICT, "state", "of no completed checkpoint");
    client.acknowledge("j", ids[0], &ack(events.first, 1, vec![]), &[]).await.unwrap();
    assert_eq!(events.completed().await, ids[0]);
    client.acknowledge("j", ids[1], &ack(events.first, 0, names()), &[]).await.unwrap();
}

#[tokio::test]
async fn s5_9_savepoints_stay_however_the_job_ends_and_a_suspended_one_keeps_its_checkpoints_too() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let ways =
        [("a", JobEnd::Finished, 1), ("b", JobEnd::Canceled, 1), ("c", JobEnd::Failed, 1), ("d", JobEnd::Suspended, 2)];
    for (name, state, left) in ways {
        let mut events = running(&daemon, name, &[]).await;
        checkpoint_of(&mut events, ["one", "two"]).await;
        let savepoint = savepoint_of(&mut events).await;

        assert_eq!(ends(client, name, state).await, state == JobEnd::Suspended, "{state:?}");

        let known = client.checkpoints(name).await.unwrap();
        assert_eq!(known.len(), left, "{state:?}");
        assert!(known.iter().any(|known| known.checkpoint == savepoint), "{state:?}");
        assert_eq!(segments_of(client, name).await, 3 * left, "{state:?}");
    }
}

#[tokio::test]
async fn s5_13_unaligned_checkpoints_begin_aligned_for_as_long_as_was_said_and_savepoints_stay_so() {
    let daemon = daemon().await;
    let keys = [("unaligned.enabled", Value::from(true)), ("aligned-checkpoint-timeout", "3 s".into())];
    let mut events = running(&daemon, "j", &keys).await;
    let mut how = vec![];
    for savepoint in [false, true] {
        let client = events.client;
        if savepoint {
            let request = SavepointRequest { dir: Some("s3://checkpoints/sp".into()), ..SavepointRequest::default() };
            client.trigger_savepoint("j", &request, None).await.unwrap();
        } else {
            client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        }
        let told =
            events.find(|event| if let JobEvent::Trigger(told) = event { Some(told.clone()) } else { None }).await;
        how.push((told.unaligned, told.aligned_timeout_ms));
        for subtask in 0..2 {
            ack_with(client, "j", told.checkpoint, (events.first, subtask), "x").await;
        }
    }

    assert_eq!(how, [(true, 3000), (false, 0)]);
}

#[tokio::test]
async fn s5_13_iterative_jobs_have_unaligned_checkpoints_only_if_forced() {
    let daemon = daemon().await;
    let unaligned = ("unaligned.enabled", Value::from(true));
    let wanted =
        |keys: &[(&str, Value)]| NewJob { iterative: Some(true), ..job("j", keys, vec![operator("count", 1)]) };

    let refusal = daemon.client.create(&wanted(std::slice::from_ref(&unaligned))).await;
    refused(refusal, StatusCode::BAD_REQUEST, "iterative", "unaligned.forced");

    daemon.client.create(&wanted(&[unaligned, ("unaligned.forced", true.into())])).await.unwrap();
}

#[tokio::test]
async fn s5_13_so_many_subtasks_share_a_file_of_channel_state_and_no_more() {
    let keys = [("server.buckets", "checkpoints"), ("execution.checkpointing.data-inline-threshold", "0")];
    let daemon = TestDaemon::start(&keys).await;
    let client = &daemon.client;
    for (name, together) in [("two", 2), ("one", 1)] {
        let settings = [
            ("unaligned.enabled", Value::from(true)),
            ("unaligned.max-subtasks-per-channel-state-file", together.into()),
        ];
        client.create(&job(name, &settings, vec![operator("count", 4)])).await.unwrap();
        let mut events = Events::of(client, name).await;
        let tasks: Vec<(&str, u32)> = (0..4).map(|subtask| ("count", subtask)).collect();
        client.report_tasks(name, &tasks_of(events.first, &tasks, "running")).await.unwrap();
        events.next().await;
        client.trigger_checkpoint(name, &TriggerRequest::default(), None).await.unwrap();
        let id = events.triggered().await;
        let mut files = vec![];
        for subtask in 0..4 {
            let state = AckState { kind: Some("channel".into()), ..riding(0, "") };
            let parts = [(BatchHead::default(), Bytes::from_static(b"records"))];
            let taken = client.acknowledge(name, id, &ack(events.first, subtask, vec![state]), &parts).await.unwrap();
            files.push(taken.segments[0].handle.split(':').nth(2).unwrap().to_owned());
        }

        let groups: Vec<BTreeSet<&String>> =
            files.chunks(together as usize).map(|group| group.iter().collect()).collect();
        assert!(groups.iter().all(|group| group.len() == 1), "{name}: {files:?}");
        let all: BTreeSet<&String> = files.iter().collect();
        assert_eq!(all.len(), 4 / together as usize, "{name}: {files:?}");
    }
}

#[tokio::test]
async fn s5_14_metadata_stands_below_the_job_or_in_the_directory_itself_or_nowhere() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let ways = [
        ("a", "one", vec![], vec!["one/a/metadata-1.json"]),
        ("b", "two", vec![("create-subdir", Value::from(false))], vec!["two/metadata-1.json"]),
        ("c", "three", vec![("storage", "filesystem".into())], vec!["three/c/metadata-1.json"]),
        ("d", "four", vec![("storage", "jobmanager".into())], vec![]),
    ];
    for (name, folder, keys, stands) in ways {
        let dir = ("dir", Value::from(format!("s3://checkpoints/{folder}")));
        let mut events = running(&daemon, name, &[&[dir], &keys[..]].concat()).await;
        assert_eq!(checkpoint_of(&mut events, ["one", "two"]).await, 1);

        let page = client.objects("checkpoints", &format!("{folder}/"), None).await.unwrap();
        let keys: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
        assert_eq!(keys, stands, "{name}");
        assert_eq!(client.checkpoint_metadata(name, 1).await.unwrap()["job"], json!(name), "it is told in any case");
    }
}
