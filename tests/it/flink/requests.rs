//! Requests about the life of checkpoints that cannot be, and those that are sent again because their answer was lost.

use esker_client::wire::{CheckpointState, JobEnd, RestoreJob};
use http::StatusCode;

use super::{
    JOB, assert_all_live, assert_files_of, assert_lives, daemon, ends, exclusive, ids, ids_of, is_gone, put, put_for,
    restore, shared, states, status, try_put,
};
use crate::daemon::TestDaemon;
use crate::raw::{ask, request};

/// The status, and the field that the error names.
async fn post(daemon: &TestDaemon, target: &str, body: &str) -> (u16, String) {
    let answer = ask(daemon.api(), request("POST", target, "", body.as_bytes())).await;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    (answer.status, body["error"]["field"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_field_and_changes_nothing() {
    let daemon = daemon(&[("limits.segments-per-request-max", "2")]).await;
    let client = &daemon.client;
    let written = put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    let pending = put(client, &shared(0, 3), 3).await;
    let id = written.id();
    let three = format!(r#"{{"segments":["{id}","{id}","{id}"]}}"#);
    let long = format!(r#"{{"segments":["{}"]}}"#, "x".repeat(5000));
    let cases = [
        ("/v1/jobs/j/checkpoints/2/reuse", r#"{"segments":["x"]}"#, 400, "segments"),
        ("/v1/jobs/j/checkpoints/2/reuse", &three, 400, "segments"),
        ("/v1/jobs/j/checkpoints/2/reuse", &long, 400, "body"),
        ("/v1/jobs/j/checkpoints/2/reuse", "{}", 400, "body"),
        ("/v1/jobs/j/checkpoints/2/reuse", "", 400, "body"),
        ("/v1/jobs/j/checkpoints/x/reuse", r#"{"segments":[]}"#, 400, "checkpoint"),
        ("/v1/jobs/j/checkpoints/-1", "", 400, "checkpoint"),
        ("/v1/jobs/j/checkpoints/2?kind=tea", "", 400, "query"),
        ("/v1/jobs/nobody/checkpoints/2/reuse", r#"{"segments":[]}"#, 404, "job"),
        ("/v1/jobs/nobody/checkpoints/2", "", 404, "job"),
        ("/v1/jobs/j/restore", r#"{"mode":"steal"}"#, 400, "mode"),
        ("/v1/jobs/j/restore", r#"{"from":"a//b"}"#, 400, "from"),
        ("/v1/jobs/j/restore", r#"{"from":"nobody"}"#, 404, "from"),
        ("/v1/jobs/j/restore", r#"{"from":"nobody","checkpoint":1}"#, 404, "from"),
        ("/v1/jobs/j/restore", r#"{"checkpoint":2}"#, 404, "checkpoint"),
        ("/v1/jobs/j/restore", r#"{"checkpoint":-2}"#, 400, "body"),
        ("/v1/jobs/new/restore", r#"{"from":"j","checkpoint":2}"#, 404, "checkpoint"),
        ("/v1/jobs/new/restore", "{}", 404, "job"),
        ("/v1/jobs/%00/restore", "{}", 400, "job"),
        ("/v1/jobs/new/restore", r#"{"from":"j","checkpoint":3}"#, 409, "checkpoint"),
        ("/v1/jobs/j/checkpoints/3?kind=savepoint", "", 409, "checkpoint"),
        ("/v1/jobs/j/end", r#"{"state":"TIRED"}"#, 400, "body"),
        ("/v1/jobs/j/end", r#"{"state":"FAILED","retention":"SOME"}"#, 400, "retention"),
        ("/v1/jobs/nobody/end", r#"{"state":"SUSPENDED"}"#, 404, "job"),
    ];
    for (target, body, wanted, field) in cases {
        let (status, named) = post(&daemon, target, body).await;
        assert_eq!((status, named.as_str()), (wanted, field), "{target} {body}");
    }

    assert_eq!(states(client, JOB).await, [(1, CheckpointState::Completed), (3, CheckpointState::Pending)]);
    assert_eq!(client.jobs().await.unwrap().len(), 1, "no job was made on the way");
    assert_files_of(&daemon, [&written, &pending]).await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_answered_again() {
    for (kind, names_it, ended) in [
        ("checkpoint", true, true),
        ("checkpoint", false, true),
        ("checkpoint", false, false),
        ("savepoint", true, false),
        ("savepoint", false, true),
    ] {
        let mut daemon = daemon(&[]).await;
        let client = &daemon.client;
        // What the other job keeps must not be taken for what was asked for.
        client.begin_savepoint(JOB, 1).await.unwrap();
        let kept = put(client, &shared(0, 1), 1).await;
        client.complete(JOB, 1).await.unwrap();
        if kind == "savepoint" {
            client.begin_savepoint(JOB, 2).await.unwrap();
        }
        let written = put(client, &shared(0, 2), 2).await;
        client.complete(JOB, 2).await.unwrap();
        if ended {
            client.end_job(JOB, &ends(JobEnd::Failed, "RETAIN_ON_CANCELLATION")).await.unwrap();
        }
        let from =
            RestoreJob { from: Some(JOB.to_owned()), checkpoint: names_it.then_some(2), ..RestoreJob::default() };
        let first = client.restore_job("next", &from).await.unwrap();

        daemon = daemon.restart().await;
        let again = daemon.client.restore_job("next", &from).await.unwrap();

        let segments = |restored: &esker_client::wire::RestoredJob| serde_json::to_value(&restored.segments).unwrap();
        assert_eq!((again.job.as_str(), again.checkpoint), ("next", 2), "{kind}");
        assert_eq!(segments(&again), segments(&first));
        assert_eq!(ids(&daemon.client, "next").await, ids_of([&written]));
        assert_all_live(&daemon.client, [&kept, &written]).await;
        // Nobody else may claim it, and it is no excuse for another one.
        assert_eq!(status(restore(&daemon.client, "other", JOB, 2, "claim").await), 404);
        assert_eq!(status(restore(&daemon.client, "next", "nobody", 2, "claim").await), 404);
    }
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_is_answered_again() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    for (end, keeps) in [(JobEnd::Failed, true), (JobEnd::Finished, false)] {
        client.create_job(JOB).await.unwrap();
        let written = put(client, &shared(0, 1), 1).await;
        client.complete(JOB, 1).await.unwrap();
        for _ in 0..3 {
            let answer = client.end_job(JOB, &ends(end, "RETAIN_ON_CANCELLATION")).await.unwrap();
            assert_eq!((answer.kept, is_gone(client, &written).await), (keeps, !keeps));
        }
        client.end_job(JOB, &ends(JobEnd::Finished, "RETAIN_ON_CANCELLATION")).await.unwrap();
    }
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn a_job_that_ended_and_loses_its_last_checkpoint_is_forgotten() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    client.end_job(JOB, &ends(JobEnd::Suspended, "NO_EXTERNALIZED_CHECKPOINTS")).await.unwrap();
    // Nothing is on its way for it, so there is nothing to remember.
    client.abort(JOB, 7).await.unwrap();
    assert_eq!(states(client, JOB).await, [(1, CheckpointState::Completed)]);

    client.subsume(JOB, 1).await.unwrap();

    assert_eq!(client.jobs().await.unwrap().len(), 0);
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn a_segment_of_a_later_checkpoint_is_not_reused_by_an_earlier_one() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let later = put(client, &shared(0, 5), 5).await;

    let answer = client.reuse(JOB, 4, vec![later.id()]).await.unwrap();

    assert_eq!((answer.reused, answer.refused), (0, vec![later.id()]), "5 may be aborted, and takes it along");
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_claim_is_told_and_nothing_changes() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let mut written = vec![];
    for n in 1..=2 {
        written.push(put(client, &shared(0, n), n).await);
        client.complete(JOB, n).await.unwrap();
    }
    written.push(put_for(client, JOB, &shared(0, 3), 3).await);
    client.create_job("next").await.unwrap();

    let newer = restore(client, "next", JOB, 1, "claim").await.unwrap_err();
    assert_eq!(newer.status(), Some(StatusCode::CONFLICT));
    assert_eq!(status(restore(client, "next", JOB, 3, "claim").await), 409, "it has not completed");
    put_for(client, "next", &shared(0, 2), 2).await;
    assert_eq!(status(restore(client, "next", JOB, 2, "claim").await), 409, "it has a 2 of its own");
    client.subsume("next", 2).await.unwrap();
    assert_eq!(status(restore(client, "next", JOB, 2, "claim").await), 409, "its own 2 is subsumed");

    assert_all_live(client, &written).await;
    assert_eq!(ids(client, JOB).await, ids_of(&written));
}

#[tokio::test]
async fn after_a_claim_late_segments_of_the_other_job_are_refused_and_no_file_stays_open() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let claimed = put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    let lost = put(client, &exclusive(0, 2), 2).await;

    // Some arrive before it, some beside it, some after it.
    let params = exclusive(0, 2);
    let puts = (0..8).map(|seed| try_put(client, JOB, &params, seed));
    let (answers, restored) = tokio::join!(futures::future::join_all(puts), restore(client, "next", JOB, 1, "claim"));

    assert_eq!(restored.unwrap().segments.len(), 1);
    answers.into_iter().for_each(|answer| assert!([200, 409].contains(&status(answer))));
    for n in [1, 2] {
        assert_eq!(status(try_put(client, JOB, &exclusive(0, n), n).await), 409);
    }
    assert!(is_gone(client, &lost).await);
    assert_lives(client, &claimed).await;
    assert_files_of(&daemon, [&claimed]).await;
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
}

#[tokio::test]
async fn the_end_of_a_job_beside_its_segments_leaves_nothing() {
    for round in 0..10 {
        let daemon = daemon(&[]).await;
        let client = &daemon.client;
        let params = exclusive(0, 1);
        let puts = (0..8).map(|seed| try_put(client, JOB, &params, seed));
        let end = ends(JobEnd::Canceled, "DELETE_ON_CANCELLATION");
        let (answers, ended) = tokio::join!(futures::future::join_all(puts), async {
            tokio::time::sleep(std::time::Duration::from_millis(round)).await;
            client.end_job(JOB, &end).await
        });

        ended.unwrap();
        answers.into_iter().for_each(|answer| assert!([200, 404, 409].contains(&status(answer))));
        assert_eq!(client.jobs().await.unwrap().len(), 0);
        assert_files_of(&daemon, []).await;
        daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
    }
}

#[tokio::test]
async fn a_job_that_is_known_by_the_keys_of_its_objects_alone_has_no_checkpoints_to_go_on_from() {
    let daemon = daemon(&[("execution.checkpointing.data-inline-threshold", "0")]).await;
    let client = &daemon.client;
    let key = "cp/0123456789abcdef0123456789abcdef/chk-1/11111111-1111-1111-1111-111111111111";
    let store = object_store::aws::AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", daemon.s3()))
        .with_bucket_name("checkpoints")
        .with_region("us-east-1")
        .with_access_key_id("esker")
        .with_secret_access_key("esker-secret")
        .with_allow_http(true)
        .build()
        .unwrap();
    use object_store::ObjectStoreExt;
    let path = object_store::path::Path::from(key);
    store.put(&path, vec![7; 1000].into()).await.unwrap();
    let jobs = client.jobs().await.unwrap();
    let by_keys = &jobs.iter().find(|job| job.created_ms.is_none()).expect("the object names its job").job;

    for mode in ["claim", "no-claim"] {
        assert_eq!(status(restore(client, "next", by_keys, 1, mode).await), 404);
        assert_eq!(status(restore(client, by_keys, by_keys, 1, mode).await), 404);
    }
    // As a target it becomes a job like others, and its end leaves the objects alone.
    let written = put(client, &shared(0, 5), 5).await;
    client.complete(JOB, 5).await.unwrap();
    restore(client, by_keys, JOB, 5, "claim").await.unwrap();
    assert_lives(client, &written).await;
    for _ in 0..2 {
        client.end_job(by_keys, &ends(JobEnd::Finished, "NO_EXTERNALIZED_CHECKPOINTS")).await.unwrap();
    }
    assert!(is_gone(client, &written).await);
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), vec![7; 1000]);
}
