//! What a job that has ended has kept, when there is another one of its name.

use super::*;

const KEEPS: &str = "externalized-checkpoint-retention";

fn canceled(retention: Option<&str>) -> EndRequest {
    EndRequest { state: JobEnd::Canceled, retention: retention.map(str::to_owned) }
}

async fn completed(client: &Client, job: &str) -> Vec<u64> {
    let known = client.checkpoints(job).await.unwrap().into_iter();
    let completed = known.filter(|known| known.state == esker_client::wire::CheckpointState::Completed);
    completed.map(|known| known.checkpoint).collect()
}

async fn comes_to(client: &Client, job: &str, wanted: &[u64]) {
    let begun = std::time::Instant::now();
    while completed(client, job).await != wanted {
        assert!(begun.elapsed() < PATIENCE, "{:?} are left, not {wanted:?}", completed(client, job).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn no_claim(from: &str, checkpoint: u64) -> RestoreJob {
    let (from, mode) = (Some(from.to_owned()), Some("no-claim".to_owned()));
    RestoreJob { from, checkpoint: Some(checkpoint), mode, ..RestoreJob::default() }
}

/// Two checkpoints of a job that has ended, the second of which uses what the first one has stored.
async fn two_kept(daemon: &TestDaemon) -> Vec<u64> {
    let client = &daemon.client;
    let keys =
        [(KEEPS, Value::from("RETAIN_ON_CANCELLATION")), ("num-retained", 2.into()), ("incremental", true.into())];
    let mut events = running(daemon, "j", &keys).await;
    let shared = [(BatchHead { scope: Some("shared".into()), ..BatchHead::default() }, Bytes::from_static(b"base"))];
    let mut base: Option<String> = None;
    let mut kept = vec![];
    for _ in 0..2 {
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        let id = events.triggered().await;
        match &base {
            None => {
                let stored = ack(events.first, 0, vec![riding(0, "s")]);
                let stored = client.acknowledge("j", id, &stored, &shared).await.unwrap();
                base = Some(stored.segments[0].segment.clone());
            }
            Some(base) => {
                let state = AckState { segment: Some(base.clone()), ..AckState::default() };
                client.acknowledge("j", id, &ack(events.first, 0, vec![state]), &[]).await.unwrap();
            }
        }
        ack_with(client, "j", id, (events.first, 1), "own").await;
        assert_eq!(events.completed().await, id);
        kept.push(id);
    }
    assert!(client.end_job("j", &canceled(None)).await.unwrap().kept);
    kept
}

#[tokio::test]
async fn what_a_job_has_kept_stays_when_another_one_of_its_name_subsumes_and_ends() {
    let daemon = daemon().await;
    let kept = two_kept(&daemon).await;
    let reader = job("reader", &[], vec![operator("count", 2)]);
    daemon.client.create(&reader).await.unwrap();
    daemon.client.restore_coordinated("reader", &no_claim("j", kept[1])).await.unwrap();

    let mut events = running(&daemon, "j", &[("incremental", true.into())]).await;
    let mut last = 0;
    for text in ["a", "b", "c"] {
        last = checkpoint_of(&mut events, [text, text]).await;
    }
    comes_to(&daemon.client, "j", &[kept[0], kept[1], last]).await;
    assert_eq!(daemon.client.job("j").await.unwrap().subsumed, Some(last - 1));
    let daemon = daemon.restart().await;
    let client = &daemon.client;

    for id in &kept {
        let state = client.restore_coordinated("reader", &no_claim("j", *id)).await.unwrap_err();
        assert!(state.to_string().contains("has not ended"), "{state}");
    }
    assert_eq!(starts(client, &client.job_state("reader", None).await.unwrap()).await, [["base"], ["own"]]);
    let mut events = Events::of(client, "j").await;
    client.report_tasks("j", &tasks_of(events.first, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    events.next().await;
    let last = checkpoint_of(&mut events, ["d", "d"]).await;
    comes_to(client, "j", &[kept[0], kept[1], last]).await;

    assert!(!client.end_job("j", &canceled(None)).await.unwrap().kept);

    assert_eq!(completed(client, "j").await, kept);
    let daemon = daemon.restart().await;
    let client = &daemon.client;
    for id in &kept {
        let state = client.restore_coordinated("reader", &no_claim("j", *id)).await.unwrap();
        assert_eq!(starts(client, &state).await, [["base"], ["own"]], "{id}");
    }
    // Two states of the second, one of the first alone, and the metadata of both.
    assert_eq!(client.segments("j", None, None).await.unwrap().segments.len(), 5);
    client.subsume("j", kept[1]).await.unwrap();
    assert_eq!(client.job("j").await.unwrap_err().status(), Some(StatusCode::NOT_FOUND), "somebody has deleted them");
}

#[tokio::test]
async fn a_job_that_goes_on_from_what_one_of_its_name_has_kept_frees_it_only_if_it_claims_it() {
    let daemon = daemon().await;
    let client = &daemon.client;
    for mode in ["no-claim", "claim"] {
        let kept = two_kept(&daemon).await;
        let mut events = running(&daemon, "j", &[("incremental", true.into())]).await;
        let wanted = RestoreJob { mode: Some(mode.into()), ..RestoreJob::default() };
        let state = client.restore_coordinated("j", &wanted).await.unwrap();
        assert_eq!(
            (state.checkpoint, starts(client, &state).await),
            (Some(kept[1]), vec![vec!["base".into()], vec!["own".into()]])
        );
        events.first = state.attempt;
        client.report_tasks("j", &tasks_of(state.attempt, &[("count", 0), ("count", 1)], "running")).await.unwrap();

        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        let told =
            events.find(|event| if let JobEvent::Trigger(told) = event { Some(told.clone()) } else { None }).await;
        assert_eq!(told.full, mode == "no-claim");
        for subtask in 0..2 {
            ack_with(client, "j", told.checkpoint, (events.first, subtask), "x").await;
        }
        assert_eq!(events.completed().await, told.checkpoint);
        let last = checkpoint_of(&mut events, ["y", "y"]).await;

        let left = if mode == "claim" { vec![kept[0], last] } else { vec![kept[0], kept[1], last] };
        comes_to(client, "j", &left).await;
        client.end_job("j", &canceled(None)).await.unwrap();
        assert_eq!(completed(client, "j").await, &left[..left.len() - 1]);
        client.end_job("j", &canceled(Some("NO_EXTERNALIZED_CHECKPOINTS"))).await.unwrap();
        assert!(client.job("j").await.is_err(), "nothing is left");
    }
}

async fn savepoint(events: &mut Events<'_>, texts: [&str; 2]) -> (u64, String) {
    let (client, job, attempt) = (events.client, events.job, events.first);
    let request = SavepointRequest { dir: Some("s3://checkpoints/sp".into()), ..SavepointRequest::default() };
    client.trigger_savepoint(job, &request, Some("s")).await.unwrap();
    let id = events.triggered().await;
    for (subtask, text) in (0_u32..).zip(texts) {
        ack_with(client, job, id, (attempt, subtask), text).await;
    }
    let waits = SavepointRequest { wait: Some("20 s".into()), ..request };
    let done = client.trigger_savepoint(job, &waits, Some("s")).await.unwrap();
    (id, done.path.unwrap())
}

#[tokio::test]
async fn the_path_of_a_savepoint_that_is_gone_is_not_that_of_a_later_one_of_its_number() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let (id, old) = savepoint(&mut running(&daemon, "j", &[]).await, ["old", "old"]).await;
    client.end_job("j", &canceled(None)).await.unwrap();
    client.discard_savepoint("j", id).await.unwrap();
    let (again, new) = savepoint(&mut running(&daemon, "j", &[]).await, ["new", "new"]).await;
    assert_eq!(again, id, "it has the same number");
    client.create(&job("other", &[], vec![operator("count", 2)])).await.unwrap();
    let restore = async |path: &str| {
        client
            .restore_coordinated("other", &RestoreJob { savepoint: Some(path.to_owned()), ..RestoreJob::default() })
            .await
    };

    refused(restore(&old).await, StatusCode::NOT_FOUND, "savepoint", "is another one");

    assert_eq!(client.job("other").await.unwrap().coordinator.unwrap().restarts, 0, "nothing changed");
    assert_eq!(starts(client, &restore(&new).await.unwrap()).await, [["new"], ["new"]]);
}

async fn keys_in(client: &Client, folder: &str) -> Vec<String> {
    let page = client.objects("checkpoints", folder, None).await.unwrap();
    page.objects.into_iter().map(|object| object.key).collect()
}

/// With a checkpoint or a savepoint that was claimed goes what the other job has published of it.
#[tokio::test]
async fn the_published_metadata_of_what_was_claimed_goes_with_it() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let dir = ("dir", Value::from("s3://checkpoints/meta"));
    for ends in [false, true] {
        let keeps = (KEEPS, Value::from("RETAIN_ON_CANCELLATION"));
        let mut events = running(&daemon, "from", &[dir.clone(), keeps]).await;
        let (of_savepoint, path) = savepoint(&mut events, ["saved", "saved"]).await;
        let kept = checkpoint_of(&mut events, ["one", "two"]).await;
        client.end_job("from", &canceled(None)).await.unwrap();
        assert_eq!(keys_in(client, "meta/from/").await, [format!("meta/from/metadata-{kept}.json")]);
        assert_eq!(keys_in(client, "sp/").await.len(), 1);

        let claim = |from: Option<&str>, savepoint| {
            let (from, mode) = (from.map(str::to_owned), Some("claim".to_owned()));
            RestoreJob { from, savepoint, mode, ..RestoreJob::default() }
        };
        let wishes = [("a", claim(None, Some(path)), of_savepoint), ("b", claim(Some("from"), None), kept)];
        for (name, wish, id) in wishes {
            let mut events = running(&daemon, name, std::slice::from_ref(&dir)).await;
            let state = client.restore_coordinated(name, &wish).await.unwrap();
            assert_eq!(state.checkpoint, Some(id));
            events.first = state.attempt;
            client
                .report_tasks(name, &tasks_of(state.attempt, &[("count", 0), ("count", 1)], "running"))
                .await
                .unwrap();
            if !ends {
                let last = checkpoint_of(&mut events, ["three", "four"]).await;
                comes_to(client, name, &[last]).await;
            }
            client.end_job(name, &canceled(None)).await.unwrap();
            assert!(client.job(name).await.is_err(), "{name}: nothing is left");
        }

        assert_eq!(keys_in(client, "meta/").await, [""; 0], "{ends}");
        assert_eq!(keys_in(client, "sp/").await, [""; 0], "{ends}");
        assert!(client.job("from").await.is_err(), "all of it was claimed");
    }
}

/// The answer was lost, and the job, whose workers hear of it by events, has gone on.
#[tokio::test]
async fn a_claim_that_is_repeated_late_changes_nothing() {
    let daemon = daemon().await;
    let client = &daemon.client;
    for retained in [1, 2] {
        let mut events = running(&daemon, "from", &[(KEEPS, Value::from("RETAIN_ON_CANCELLATION"))]).await;
        let kept = checkpoint_of(&mut events, ["one", "two"]).await;
        client.end_job("from", &canceled(None)).await.unwrap();
        let mut events = running(&daemon, "to", &[("num-retained", retained.into())]).await;
        let claim = |checkpoint| RestoreJob { from: Some("from".into()), checkpoint, ..RestoreJob::default() };
        let state = client.restore_coordinated("to", &claim(None)).await.unwrap();
        events.first = state.attempt;
        client.report_tasks("to", &tasks_of(state.attempt, &[("count", 0), ("count", 1)], "running")).await.unwrap();
        let last = checkpoint_of(&mut events, ["three", "four"]).await;
        let left = [kept, last];
        comes_to(client, "to", if retained == 1 { &left[1..] } else { &left }).await;

        for again in [claim(None), claim(Some(kept))] {
            let told = client.restore_coordinated("to", &again).await.unwrap();
            assert_eq!((told.attempt, &*told.status), (state.attempt, "running"), "{retained}");
        }
        let info = client.job("to").await.unwrap().coordinator.unwrap();
        assert_eq!((info.attempt, info.completed), (state.attempt, Some(last)));
        // Other operators are another wish: from there on the job has gone further.
        let rescale = RestoreJob { operators: Some(vec![operator("count", 3)]), ..claim(Some(kept)) };
        let status = client.restore_coordinated("to", &rescale).await.unwrap_err().status();
        assert_eq!(status, Some(if retained == 1 { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT }));
        // That is no excuse for another one.
        let other = RestoreJob { from: Some("nobody".into()), ..RestoreJob::default() };
        assert_eq!(client.restore_coordinated("to", &other).await.unwrap_err().status(), Some(StatusCode::NOT_FOUND));
        assert_eq!(
            client.restore_coordinated("to", &claim(Some(kept + 7))).await.unwrap_err().status(),
            Some(StatusCode::NOT_FOUND)
        );
        client.end_job("to", &canceled(None)).await.unwrap();
    }
}

#[tokio::test]
async fn a_job_that_is_forgotten_does_not_go_on_without_its_coordinator() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "from", &[(KEEPS, Value::from("RETAIN_ON_CANCELLATION"))]).await;
    let kept = checkpoint_of(&mut events, ["one", "two"]).await;
    client.end_job("from", &canceled(None)).await.unwrap();
    drop(running(&daemon, "to", &[]).await);
    client.restore_coordinated("to", &no_claim("from", kept)).await.unwrap();
    client.end_job("to", &canceled(None)).await.unwrap();

    for mode in ["no-claim", "claim"] {
        let again = RestoreJob { mode: Some(mode.into()), ..no_claim("from", kept) };
        refused(client.restore_job("to", &again).await, StatusCode::NOT_FOUND, "job", "coordinated");
    }

    assert!(client.job("to").await.is_err(), "it is not made anew");
    assert_eq!(completed(client, "from").await, [kept], "nothing is claimed");
    // Whoever drives its checkpoints itself says so.
    client.create_job("to").await.unwrap();
    assert_eq!(client.restore_job("to", &no_claim("from", kept)).await.unwrap().segments.len(), 3);
}

#[tokio::test]
async fn a_job_that_is_created_anew_begins_from_nothing_until_somebody_says_otherwise() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keeps = [("externalized-checkpoint-retention", Value::from("RETAIN_ON_CANCELLATION"))];
    let mut events = running(&daemon, "j", &keeps).await;
    let kept = checkpoint_of(&mut events, ["one", "two"]).await;
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();

    let mut events = running(&daemon, "j", &keeps).await;
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().completed, None);
    client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "failed")).await.unwrap();
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!(restore.checkpoint, None);

    let daemon = daemon.restart().await;
    assert_eq!(daemon.client.job_state("j", None).await.unwrap().checkpoint, None);
    let state = daemon.client.restore_coordinated("j", &RestoreJob::default()).await.unwrap();
    assert_eq!(
        (state.checkpoint, starts(&daemon.client, &state).await),
        (Some(kept), vec![vec!["one".to_owned()], vec!["two".to_owned()]])
    );
}

/// Whoever deletes it: else it names what is not there, and another job in that folder cannot publish its own.
#[tokio::test]
async fn the_published_metadata_of_what_a_job_has_kept_goes_with_it() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keys = [
        ("dir", Value::from("s3://checkpoints/flat")),
        ("create-subdir", false.into()),
        ("num-retained", 2.into()),
        (KEEPS, "RETAIN_ON_CANCELLATION".into()),
    ];
    let copies = |ids: &[u64]| ids.iter().map(|id| format!("flat/metadata-{id}.json")).collect::<Vec<_>>();
    for (by_hand, names) in [(false, ["a", "b"]), (true, ["c", "d"])] {
        let mut events = running(&daemon, names[0], &keys).await;
        let kept = [checkpoint_of(&mut events, ["1", "2"]).await, checkpoint_of(&mut events, ["3", "4"]).await];
        assert!(client.end_job(names[0], &canceled(None)).await.unwrap().kept);
        assert_eq!(keys_in(client, "flat/").await, copies(&kept));

        if by_hand {
            client.subsume(names[0], kept[0]).await.unwrap();
            assert_eq!(keys_in(client, "flat/").await, copies(&kept[1..]));
            client.subsume(names[0], kept[1]).await.unwrap();
        } else {
            let all = canceled(Some("NO_EXTERNALIZED_CHECKPOINTS"));
            assert!(!client.end_job(names[0], &all).await.unwrap().kept);
        }

        assert_eq!(keys_in(client, "flat/").await, copies(&[]));
        let mut events = running(&daemon, names[1], &keys).await;
        assert_eq!(checkpoint_of(&mut events, ["5", "6"]).await, kept[0], "of the same number");
        client.end_job(names[1], &canceled(Some("NO_EXTERNALIZED_CHECKPOINTS"))).await.unwrap();
    }
}
