//! Which segments share a file, and what a segment is: behaviours 1 to 16.

use std::collections::BTreeSet;

use esker_client::wire::PutParams;

use super::{
    ACROSS, JOB, LEN, Written, assert_all_live, assert_files_of, assert_lives, daemon, exclusive, put, put_for, shared,
    try_put,
};
use crate::daemon::checkpoint;
use crate::raw::{ask, request};

fn files<'a>(all: impl IntoIterator<Item = &'a Written>) -> BTreeSet<String> {
    all.into_iter().map(Written::file).collect()
}

#[tokio::test]
async fn subtasks_share_files_of_exclusive_state_and_not_of_shared_state() {
    let daemon = daemon(&[]).await;

    let shared = [put(&daemon.client, &shared(0, 1), 1).await, put(&daemon.client, &shared(1, 1), 2).await];
    let exclusive = [put(&daemon.client, &exclusive(0, 1), 3).await, put(&daemon.client, &exclusive(1, 1), 4).await];

    assert_eq!((files(&shared).len(), files(&exclusive).len()), (2, 1));
    assert!(files(&shared).is_disjoint(&files(&exclusive)));
    assert_all_live(&daemon.client, shared.iter().chain(&exclusive)).await;
}

#[tokio::test]
async fn jobs_with_the_same_subtasks_share_no_file() {
    let daemon = daemon(&[]).await;
    daemon.client.create_job("other").await.unwrap();

    for params in [shared(0, 1), exclusive(0, 1)] {
        let one = put(&daemon.client, &params, 1).await;
        let other = put_for(&daemon.client, "other", &params, 1).await;
        assert_ne!(one.file(), other.file());
    }
}

#[tokio::test]
async fn ids_with_unusual_characters_name_jobs_and_subtasks() {
    let daemon = daemon(&[]).await;
    let unusual = ",;:$&+=?[]@# %ü";
    for job in [unusual, "a/b", &format!("a{unusual}"), &format!("a{unusual}b")] {
        daemon.client.create_job(job).await.unwrap();
        let params = PutParams {
            operator: Some(format!("{unusual}/")),
            task_manager: Some(format!("{unusual}..")),
            name: Some(format!("{unusual}//")),
            ..shared(0, 1)
        };

        let written = put_for(&daemon.client, job, &params, 1).await;

        assert_lives(&daemon.client, &written).await;
        let listed = daemon.client.segments(job, None, None).await.unwrap().segments;
        assert_eq!((listed.len(), &listed[0].name), (1, &params.name));
        assert!(daemon.files().iter().all(|path| path.to_str().unwrap().is_ascii()));
    }
}

#[tokio::test]
async fn a_job_that_is_created_again_is_the_same_job() {
    let daemon = daemon(&[]).await;
    let written = put(&daemon.client, &shared(0, 1), 1).await;
    daemon.client.complete(JOB, 1).await.unwrap();
    let before = daemon.client.jobs().await.unwrap();

    daemon.client.create_job(JOB).await.unwrap();

    let after = daemon.client.jobs().await.unwrap();
    assert_eq!((after.len(), after[0].created_ms), (1, before[0].created_ms));
    assert_lives(&daemon.client, &written).await;
}

#[tokio::test]
async fn within_a_checkpoint_a_file_is_used_again_and_by_the_next_checkpoint_never() {
    let daemon = daemon(&[]).await;
    for params in [shared, exclusive] {
        let first = put(&daemon.client, &params(0, 1), 1).await;
        let again = put(&daemon.client, &params(0, 1), 2).await;
        let next = put(&daemon.client, &params(0, 2), 3).await;
        let back = put(&daemon.client, &params(0, 1), 4).await;

        assert_eq!((again.file(), back.file()), (first.file(), first.file()));
        assert_ne!(next.file(), first.file());
    }
}

#[tokio::test]
async fn across_checkpoints_a_file_is_used_again() {
    let daemon = daemon(&[(ACROSS, "true")]).await;
    let shared_state = [put(&daemon.client, &shared(0, 1), 1).await, put(&daemon.client, &shared(0, 2), 2).await];
    let exclusive_state =
        [put(&daemon.client, &exclusive(0, 1), 3).await, put(&daemon.client, &exclusive(1, 2), 4).await];

    assert_eq!((files(&shared_state).len(), files(&exclusive_state).len()), (1, 1));
}

#[tokio::test]
async fn a_full_file_takes_no_more_and_goes_with_its_last_segment() {
    let full = [
        ("execution.checkpointing.file-merging.max-file-size", "64kb"),
        ("merging.group-bytes-max", "64kb"),
        ("store.part-size", "64kb"),
        (ACROSS, "true"),
    ];
    let daemon = daemon(&full).await;
    let mut written = vec![];
    for n in 1..=4 {
        written.push(put(&daemon.client, &shared(0, n), n).await);
    }
    assert_eq!(written[0].file(), written[2].file(), "the size is looked at before a segment, not after it");
    assert_ne!(written[2].file(), written[3].file());

    daemon.client.subsume(JOB, 2).await.unwrap();
    assert_files_of(&daemon, &written[2..]).await;
    daemon.client.subsume(JOB, 3).await.unwrap();

    assert_files_of(&daemon, &written[3..]).await;
    assert_lives(&daemon.client, &written[3]).await;
}

#[tokio::test]
async fn ten_segments_in_sequence_are_one_file_and_each_reads_back_its_own_bytes() {
    let daemon = daemon(&[]).await;
    let mut written = vec![];
    for seed in 0..10 {
        written.push(put(&daemon.client, &exclusive(0, 1), seed).await);
    }

    assert_eq!(files(&written).len(), 1);
    assert_all_live(&daemon.client, &written).await;
}

#[tokio::test]
async fn concurrent_segments_never_interleave() {
    let daemon = daemon(&[]).await;
    let params = exclusive(0, 1);
    let puts = (0..12).map(|seed| put(&daemon.client, &params, seed));

    let mut written = futures::future::join_all(puts).await;

    assert_all_live(&daemon.client, &written).await;
    written.sort_by_key(|written| (written.file(), written.info.offset));
    for pair in written.windows(2) {
        let apart = pair[0].file() != pair[1].file() || pair[0].info.offset + pair[0].info.len <= pair[1].info.offset;
        assert!(apart, "{pair:?}");
    }
}

#[tokio::test]
async fn positions_count_from_the_begin_of_the_segment_over_eight_checkpoints() {
    let daemon = daemon(&[(ACROSS, "true")]).await;
    let mut written = vec![];
    for n in 1..=8 {
        written.push(put(&daemon.client, &shared(0, n), n).await);
    }
    assert_eq!(files(&written).len(), 1);

    for (number, written) in written.iter().enumerate() {
        let from = 1000 * number;
        let range = daemon.client.get_range(&written.info.segment, from as u64..from as u64 + 100).await.unwrap();
        assert!(range == written.data[from..from + 100]);
        let last = daemon.client.get_range(&written.info.segment, LEN as u64 - 1..LEN as u64 + 100).await.unwrap();
        assert!(last == written.data[LEN - 1..], "no byte of the next segment");
    }
}

#[tokio::test]
async fn an_empty_state_is_refused_and_makes_no_file() {
    let daemon = daemon(&[]).await;

    let target = format!("/v1/jobs/{JOB}/segments?checkpoint=1");
    let empty = ask(daemon.api(), request("POST", &target, "", b"")).await;

    assert_eq!(empty.status, 400);
    assert_eq!(daemon.files().len(), 0);
    assert!(try_put(&daemon.client, JOB, &checkpoint(1), 1).await.is_ok());
}
