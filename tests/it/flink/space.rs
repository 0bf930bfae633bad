//! How much space is taken, and what workers are told of it: behaviours 30 to 34.

use bytes::Bytes;

use super::{ACROSS, JOB, Written, assert_files_of, daemon, put, shared};
use crate::daemon::{TestDaemon, checkpoint};
use crate::support::pattern;

const AMPLIFICATION: &str = "execution.checkpointing.file-merging.max-space-amplification";
/// Eight segments fill a file.
const SEGMENT_BYTES: usize = 100 << 10;

#[tokio::test]
async fn counters_follow_the_segments_and_end_at_zero() {
    let daemon = daemon(&[("execution.checkpointing.data-inline-threshold", "0"), (ACROSS, "true")]).await;
    let client = &daemon.client;
    let figures = async || {
        let space = client.space(None, Some(JOB)).await.unwrap().total;
        let (physical, live) = (daemon.metric("esker_physical_bytes").await, daemon.metric("esker_live_bytes").await);
        assert_eq!((physical as u64, live as u64), (space.physical_bytes, space.live_bytes));
        (space.files, space.segments, physical as u64, space.live_bytes)
    };
    assert_eq!(figures().await, (0, 0, 0, 0));

    for (n, len) in [(1, 123), (2, 456)] {
        client.put(JOB, &checkpoint(n), None, pattern(n, len).into()).await.unwrap();
    }
    let (files, segments, physical, live) = figures().await;
    assert_eq!((files, segments, live), (1, 2, 579));
    assert!(physical >= 579);

    client.subsume(JOB, 1).await.unwrap();
    assert_eq!(figures().await, (1, 1, physical, 456));
    client.flush(JOB).await.unwrap();
    client.subsume(JOB, 2).await.unwrap();
    assert_files_of(&daemon, []).await;
    assert_eq!(figures().await, (0, 0, 0, 0));
}

async fn advising(across: &str, limit: &str) -> TestDaemon {
    daemon(&[
        ("execution.checkpointing.file-merging.max-file-size", "800kb"),
        ("merging.group-bytes-max", "800kb"),
        ("store.part-size", "800kb"),
        ("reclaim.mode", "advise"),
        (ACROSS, across),
        (AMPLIFICATION, limit),
    ])
    .await
}

async fn put_large(daemon: &TestDaemon, n: u64, seeds: std::ops::RangeInclusive<u64>) -> Vec<Written> {
    let mut written = vec![];
    for seed in seeds {
        let data = Bytes::from(pattern(seed, SEGMENT_BYTES));
        let info = daemon.client.put(JOB, &shared(0, n), None, data.clone()).await.unwrap();
        written.push(Written { info, data });
    }
    daemon.client.complete(JOB, n).await.unwrap();
    written
}

/// Checkpoint 1 writes segments 1 to 6; checkpoint 2 writes 7 to 9 and uses 1 again; 1 is subsumed. Returns all nine.
async fn worked_example(daemon: &TestDaemon) -> Vec<Written> {
    let mut written = put_large(daemon, 1, 1..=6).await;
    assert_eq!(daemon.client.reuse(JOB, 2, vec![written[0].id()]).await.unwrap().reused, 1);
    written.extend(put_large(daemon, 2, 7..=9).await);
    daemon.client.subsume(JOB, 1).await.unwrap();
    daemon.client.reclaim().await.unwrap();
    written
}

/// Which of segments 1, 7 and 9 the next checkpoint may not use again.
async fn refused(daemon: &TestDaemon, written: &[Written]) -> Vec<usize> {
    let ids = [1, 7, 9].map(|number| written[number - 1].id());
    let answer = daemon.client.reuse(JOB, 3, ids.to_vec()).await.unwrap();
    assert_eq!(answer.reused + answer.refused.len() as u64, 3);
    [1, 7, 9].into_iter().filter(|number| answer.refused.contains(&written[number - 1].id())).collect()
}

#[tokio::test]
async fn across_checkpoints_what_is_in_the_file_with_much_waste_is_refused() {
    let daemon = advising("true", "2.0").await;
    let written = worked_example(&daemon).await;
    assert_eq!(written[0].file(), written[7].file());
    assert_ne!(written[7].file(), written[8].file());

    assert_eq!(refused(&daemon, &written).await, [1, 7]);
}

#[tokio::test]
async fn within_a_checkpoint_only_its_own_file_is_refused() {
    let daemon = advising("false", "2.0").await;
    let written = worked_example(&daemon).await;

    assert_eq!(refused(&daemon, &written).await, [1]);
}

#[tokio::test]
async fn below_one_nothing_is_ever_refused() {
    for across in ["false", "true"] {
        let daemon = advising(across, "0.9").await;
        let written = worked_example(&daemon).await;

        assert_eq!(refused(&daemon, &written).await, [0; 0]);
    }
}

#[tokio::test]
async fn two_files_with_equal_waste_are_both_refused() {
    let daemon = advising("false", "1.1").await;
    let mut written = vec![];
    for n in [1, 2] {
        written.extend(put_large(&daemon, n, 10 * n..=10 * n + 5).await);
    }
    // Until both have their ends, they do not have the same length.
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
    let kept = vec![written[0].id(), written[6].id()];
    assert_eq!(daemon.client.reuse(JOB, 3, kept.clone()).await.unwrap().reused, 2);
    daemon.client.complete(JOB, 3).await.unwrap();
    daemon.client.subsume(JOB, 2).await.unwrap();

    daemon.client.reclaim().await.unwrap();

    assert_eq!(daemon.client.reuse(JOB, 4, kept.clone()).await.unwrap().refused, kept);
    // What is stored again in their place lets both go.
    let again = put(&daemon.client, &shared(0, 4), 1).await;
    daemon.client.complete(JOB, 4).await.unwrap();
    daemon.client.subsume(JOB, 3).await.unwrap();
    assert_files_of(&daemon, [&again]).await;
}
