//! Savepoints belong to the user: self-contained, never subsumed, kept until they are discarded or claimed.

use std::collections::BTreeSet;

use esker_client::wire::{CheckpointState, JobEnd};

use super::{
    ACROSS, JOB, Written, assert_all_live, assert_files_of, assert_lives, daemon, ends, exclusive, ids, ids_of,
    is_gone, put, put_for, restore, shared, states, status, try_put,
};

#[tokio::test]
async fn a_savepoint_shares_no_file_with_anything_else() {
    for across in ["false", "true"] {
        let daemon = daemon(&[(ACROSS, across)]).await;
        let client = &daemon.client;
        for n in [2, 4] {
            client.begin_savepoint(JOB, n).await.unwrap();
        }
        let mut files: Vec<BTreeSet<String>> = vec![];
        for n in 1..=5 {
            let written = [put(client, &shared(0, n), n).await, put(client, &exclusive(0, n), n).await];
            files.push(written.iter().map(Written::file).collect());
        }

        for (n, other) in [(2, 1), (2, 3), (2, 4), (2, 5), (4, 1), (4, 3), (4, 5)] {
            assert!(files[n - 1].is_disjoint(&files[other - 1]), "savepoint {n} shares a file with {other}");
        }
    }
}

#[tokio::test]
async fn nothing_is_reused_into_a_savepoint_and_nothing_out_of_it() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let of_checkpoint = put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    client.begin_savepoint(JOB, 2).await.unwrap();
    let of_savepoint = put(client, &shared(0, 2), 2).await;

    assert_eq!(status(client.reuse(JOB, 2, vec![of_checkpoint.id()]).await), 409);
    client.complete(JOB, 2).await.unwrap();
    let answer = client.reuse(JOB, 3, vec![of_savepoint.id(), of_checkpoint.id()]).await.unwrap();

    assert_eq!((answer.reused, answer.refused), (1, vec![of_savepoint.id()]));
    let restored = restore(client, JOB, JOB, 2, "no-claim").await.unwrap();
    assert_eq!(restored.segments.len(), 1);
    assert_eq!(restored.segments[0].info.segment, of_savepoint.id());
}

#[tokio::test]
async fn a_savepoint_is_never_subsumed_and_goes_when_it_is_discarded() {
    let mut daemon = daemon(&[]).await;
    daemon.client.begin_savepoint(JOB, 1).await.unwrap();
    let written = put(&daemon.client, &exclusive(0, 1), 1).await;
    daemon.client.complete(JOB, 1).await.unwrap();
    put(&daemon.client, &exclusive(0, 2), 2).await;

    daemon.client.subsume(JOB, 2).await.unwrap();
    assert_eq!(status(daemon.client.discard_savepoint(JOB, 1).await), 200);
    assert!(is_gone(&daemon.client, &written).await);

    daemon.client.begin_savepoint(JOB, 3).await.unwrap();
    let written = put(&daemon.client, &exclusive(0, 3), 3).await;
    daemon.client.complete(JOB, 3).await.unwrap();
    daemon.client.end_job(JOB, &ends(JobEnd::Finished, "NO_EXTERNALIZED_CHECKPOINTS")).await.unwrap();
    daemon = daemon.restart().await;
    assert_lives(&daemon.client, &written).await;
    assert_files_of(&daemon, [&written]).await;
    // Again and again: the answer may have been lost. With it, the job that ended is forgotten.
    for _ in 0..3 {
        daemon.client.discard_savepoint(JOB, 3).await.unwrap();
    }
    assert_files_of(&daemon, []).await;
    assert_eq!(daemon.client.jobs().await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_checkpoint_is_not_discarded_as_a_savepoint_is() {
    let daemon = daemon(&[]).await;
    let written = put(&daemon.client, &shared(0, 1), 1).await;

    assert_eq!(status(daemon.client.discard_savepoint(JOB, 1).await), 409);
    assert_eq!(status(daemon.client.begin_savepoint(JOB, 1).await), 409);

    assert_lives(&daemon.client, &written).await;
}

#[tokio::test]
async fn a_savepoint_that_is_given_up_takes_nothing_more_and_is_forgotten_in_time() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    for (n, discards) in [(1, true), (2, false)] {
        client.begin_savepoint(JOB, n).await.unwrap();
        let written = put(client, &shared(0, n), n).await;
        for _ in 0..2 {
            let given_up = if discards { client.discard_savepoint(JOB, n).await } else { client.abort(JOB, n).await };
            given_up.unwrap();
        }
        assert!(is_gone(client, &written).await);
        assert_eq!(status(try_put(client, JOB, &shared(0, n), n).await), 409, "a late one is refused");
    }
    assert_files_of(&daemon, []).await;
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;

    put(client, &shared(0, 3), 3).await;
    client.complete(JOB, 3).await.unwrap();
    client.subsume(JOB, 2).await.unwrap();

    assert_eq!(states(client, JOB).await, [(3, CheckpointState::Completed)]);
    assert_eq!(status(try_put(client, JOB, &shared(0, 1), 1).await), 409);
}

#[tokio::test]
async fn a_savepoint_is_read_by_many_jobs_and_claimed_by_one() {
    let mut daemon = daemon(&[]).await;
    let client = &daemon.client;
    let checkpoint = put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    client.begin_savepoint(JOB, 2).await.unwrap();
    let written = [put(client, &shared(0, 2), 2).await, put(client, &exclusive(1, 2), 3).await];
    client.complete(JOB, 2).await.unwrap();
    for reader in ["one", "two"] {
        let read = restore(client, reader, JOB, 2, "no-claim").await.unwrap();
        assert_eq!((read.job.as_str(), read.segments.len()), (JOB, 2));
        assert_eq!(client.reuse(reader, 3, vec![written[0].id()]).await.unwrap().reused, 0);
    }

    let claimed = restore(client, "three", JOB, 2, "claim").await.unwrap();

    assert_eq!((claimed.job.as_str(), claimed.segments.len()), ("three", 2));
    assert_eq!(ids(client, JOB).await, ids_of([&checkpoint]), "the job it came from goes on");
    assert_eq!(status(restore(client, "one", JOB, 2, "no-claim").await), 404);
    daemon = daemon.restart().await;
    let client = &daemon.client;
    assert_all_live(client, &written).await;
    assert_eq!(client.reuse("three", 3, vec![written[0].id()]).await.unwrap().reused, 1);
    client.complete("three", 3).await.unwrap();
    client.subsume("three", 2).await.unwrap();
    assert!(is_gone(client, &written[1]).await);
    assert_files_of(&daemon, [&checkpoint, &written[0]]).await;
    put_for(client, JOB, &shared(0, 3), 3).await;
}
