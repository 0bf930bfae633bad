//! How long a segment lives: behaviours 22 to 29, 47 and 48.

use std::collections::BTreeSet;

use esker_client::wire::CheckpointState;

use super::{
    ACROSS, JOB, LEN, Written, assert_all_live, assert_files_of, assert_lives, daemon, exclusive, ids, ids_of, is_gone,
    put, shared, states, status, try_put,
};

#[tokio::test]
async fn a_watermark_only_grows_and_frees_once() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let written = put(client, &shared(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();

    // Used by 3 and then, in another order, by 2.
    for n in [3, 2] {
        assert_eq!(client.reuse(JOB, n, vec![written.id()]).await.unwrap().reused, 1);
        client.complete(JOB, n).await.unwrap();
    }

    client.subsume(JOB, 1).await.unwrap();
    client.subsume(JOB, 2).await.unwrap();
    assert_lives(client, &written).await;
    client.subsume(JOB, 3).await.unwrap();
    assert!(is_gone(client, &written).await);
    client.subsume(JOB, 3).await.unwrap();
    assert_eq!(daemon.metric("esker_live_bytes").await, 0.0);
}

#[tokio::test]
async fn an_open_file_without_segments_stays_and_goes_when_it_is_closed() {
    let daemon = daemon(&[(ACROSS, "true")]).await;
    let client = &daemon.client;
    put(client, &shared(0, 1), 1).await;
    client.subsume(JOB, 1).await.unwrap();
    client.gc(false).await.unwrap();
    assert_eq!(daemon.files().len(), 1, "it is open: the next segment goes there");
    let first = put(client, &shared(0, 2), 2).await;
    let second = put(client, &shared(0, 3), 3).await;
    assert_eq!(daemon.files().len(), 1);

    client.flush(JOB).await.unwrap();
    daemon.metric_becomes("esker_physical_files{state=\"closed\"}", 1.0).await;
    client.subsume(JOB, 2).await.unwrap();

    assert!(is_gone(client, &first).await);
    assert_files_of(&daemon, [&second]).await;
    client.subsume(JOB, 3).await.unwrap();
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn of_a_shrinking_prefix_exactly_what_is_not_reused_vanishes() {
    for across in ["false", "true"] {
        let daemon = daemon(&[(ACROSS, across)]).await;
        let client = &daemon.client;
        let mut written = vec![];
        for seed in 0..20 {
            written.push(put(client, &shared(0, 1), seed).await);
        }
        client.complete(JOB, 1).await.unwrap();
        for n in 2..=10 {
            let prefix = &written[..22 - 2 * n as usize];
            let reused = client.reuse(JOB, n, prefix.iter().map(Written::id).collect()).await.unwrap();
            assert_eq!((reused.reused, reused.refused), (prefix.len() as u64, vec![]));
            client.complete(JOB, n).await.unwrap();

            client.subsume(JOB, n - 1).await.unwrap();

            assert_eq!(ids(client, JOB).await, ids_of(prefix), "after {n}");
            let of_it = client.restore_job(JOB, &serde_json::from_str("{}").unwrap()).await.unwrap();
            let of_it: BTreeSet<String> = of_it.segments.into_iter().map(|segment| segment.info.segment).collect();
            assert_eq!(of_it, ids_of(prefix));
        }
        assert_all_live(client, &written[..2]).await;
        client.subsume(JOB, 10).await.unwrap();
        client.flush(JOB).await.unwrap();
        assert_files_of(&daemon, []).await;
    }
}

#[tokio::test]
async fn subsuming_frees_what_every_subtask_wrote_but_what_one_reuses() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let first = [put(client, &shared(0, 1), 1).await, put(client, &shared(1, 1), 2).await];
    client.complete(JOB, 1).await.unwrap();
    let second = [put(client, &shared(0, 2), 3).await, put(client, &shared(1, 2), 4).await];
    client.reuse(JOB, 2, vec![first[1].id()]).await.unwrap();
    client.complete(JOB, 2).await.unwrap();

    client.subsume(JOB, 1).await.unwrap();

    assert_files_of(&daemon, [&first[1], &second[0], &second[1]]).await;
    assert_all_live(client, [&first[1], &second[0], &second[1]]).await;
    assert_eq!(states(client, JOB).await, [(2, CheckpointState::Completed)]);
}

#[tokio::test]
async fn an_abort_frees_what_every_subtask_wrote_and_nothing_else() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let before = put(client, &shared(0, 2), 1).await;
    client.complete(JOB, 2).await.unwrap();
    let doomed = [put(client, &shared(0, 3), 2).await, put(client, &exclusive(1, 3), 3).await];
    client.reuse(JOB, 3, vec![before.id()]).await.unwrap();
    let used_by_the_next = put(client, &shared(1, 3), 4).await;
    client.reuse(JOB, 4, vec![used_by_the_next.id()]).await.unwrap();

    client.abort(JOB, 3).await.unwrap();

    assert!(is_gone(client, &doomed[0]).await && is_gone(client, &doomed[1]).await);
    assert_all_live(client, [&before, &used_by_the_next]).await;
    assert_files_of(&daemon, [&before, &used_by_the_next]).await;
}

#[tokio::test]
async fn in_a_file_across_checkpoints_the_segments_go_and_the_file_stays() {
    let daemon = daemon(&[(ACROSS, "true")]).await;
    let client = &daemon.client;
    let first = put(client, &exclusive(0, 1), 1).await;
    client.complete(JOB, 1).await.unwrap();
    let second = put(client, &exclusive(1, 2), 2).await;
    let third = put(client, &exclusive(0, 3), 3).await;
    assert_eq!((second.file(), third.file()), (first.file(), first.file()));
    client.complete(JOB, 2).await.unwrap();

    client.subsume(JOB, 1).await.unwrap();
    client.abort(JOB, 3).await.unwrap();

    assert_eq!(daemon.metric("esker_live_bytes").await, LEN as f64);
    let space = client.space(None, Some(JOB)).await.unwrap().total;
    assert_eq!((space.files, space.segments, space.live_bytes), (1, 1, LEN as u64));
    assert!(space.physical_bytes >= 3 * LEN as u64);
    assert_files_of(&daemon, [&second]).await;
    assert_lives(client, &second).await;
}

#[tokio::test]
async fn a_later_subsumption_heals_a_missed_one() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    for n in 1..=5 {
        put(client, &shared(0, n), n).await;
        // Of 2 nobody ever hears again, 3 is aborted.
        match n {
            2 => {}
            3 => client.abort(JOB, n).await.unwrap(),
            _ => client.complete(JOB, n).await.unwrap(),
        }
    }
    let last = put(client, &shared(0, 6), 6).await;
    client.complete(JOB, 6).await.unwrap();

    client.subsume(JOB, 5).await.unwrap();

    assert_eq!(ids(client, JOB).await, ids_of([&last]));
    assert_eq!(states(client, JOB).await, [(6, CheckpointState::Completed)]);
    assert_files_of(&daemon, [&last]).await;
}

#[tokio::test]
async fn an_abort_twice_frees_once() {
    let daemon = daemon(&[(ACROSS, "true")]).await;
    let client = &daemon.client;
    let kept = put(client, &shared(0, 1), 1).await;
    put(client, &shared(0, 2), 2).await;

    for _ in 0..3 {
        client.abort(JOB, 2).await.unwrap();
        assert_eq!(daemon.metric("esker_live_bytes").await, LEN as f64);
    }

    assert_lives(client, &kept).await;
}

#[tokio::test]
async fn what_was_never_completed_is_durable_and_freed_once() {
    let mut daemon = daemon(&[]).await;
    let mut written = vec![];
    for n in 1..=3 {
        written.push(put(&daemon.client, &shared(0, n), n).await);
    }
    daemon = daemon.restart().await;
    assert_all_live(&daemon.client, &written).await;

    for _ in 0..2 {
        daemon.client.subsume(JOB, 3).await.unwrap();
    }

    assert_files_of(&daemon, []).await;
    assert_eq!(daemon.metric("esker_live_bytes").await, 0.0);
    assert_eq!(daemon.metric("esker_physical_files_deleted_total").await, 3.0);
}

#[tokio::test]
async fn a_late_segment_is_refused_and_leaves_no_open_file() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    // Some arrive before the abort, some beside it, some after it.
    for n in 1..=20 {
        let params = shared(0, n);
        let puts = (0..8).map(|seed| try_put(client, JOB, &params, seed));
        let (answers, abort) = tokio::join!(futures::future::join_all(puts), client.abort(JOB, n));
        abort.unwrap();
        for answer in answers {
            assert!([200, 409].contains(&status(answer)));
        }
        assert_eq!(status(try_put(client, JOB, &params, 9).await), 409);
        assert_eq!(ids(client, JOB).await, BTreeSet::new());
    }

    assert_files_of(&daemon, []).await;
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
    client.subsume(JOB, 20).await.unwrap();
    assert_eq!(status(try_put(client, JOB, &shared(0, 20), 1).await), 409);
}
