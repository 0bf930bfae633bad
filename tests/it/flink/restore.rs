//! Restoring, switching merging, claiming, and the end of a job: behaviours 36 to 43 and 50.

use std::collections::BTreeSet;

use bytes::Bytes;
use esker_client::Client;
use esker_client::wire::{CheckpointState, JobEnd, RestoredJob};

use super::{
    ACROSS, JOB, LEN, MERGING, Written, assert_all_live, assert_files_of, assert_lives, by, daemon, ends, exclusive,
    ids, ids_of, is_gone, put, put_for, restore, shared, states, status, try_put,
};
use crate::daemon::checkpoint;
use crate::support::pattern;

fn named_in(restored: &RestoredJob) -> BTreeSet<String> {
    restored.segments.iter().map(|segment| segment.info.segment.clone()).collect()
}

async fn completed(client: &Client, job: &str) -> Vec<u64> {
    let known = states(client, job).await.into_iter();
    known.filter(|(_, state)| *state == CheckpointState::Completed).map(|(n, _)| n).collect()
}

#[tokio::test]
async fn every_kind_of_state_is_restored_counted_and_freed() {
    let mut daemon = daemon(&[("store.part-size", "256kb")]).await;
    // Keyed and operator state, managed and raw: tiny in the catalog, small in shared files, large in files of their own.
    let mut written = vec![];
    for scope in ["shared", "exclusive"] {
        for (operator, len) in
            [("keyed-managed", 100), ("keyed-raw", LEN), ("operator-managed", LEN), ("operator-raw", 400_000)]
        {
            let params = esker_client::wire::PutParams { operator: Some(operator.to_owned()), ..by(scope, 0, 1) };
            let data = Bytes::from(pattern(len as u64, len));
            let info = daemon.client.put(JOB, &params, None, data.clone()).await.unwrap();
            written.push(Written { info, data });
        }
    }
    daemon.client.complete(JOB, 1).await.unwrap();
    daemon.client.flush(JOB).await.unwrap();
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
    let before = daemon.client.space(None, Some(JOB)).await.unwrap().total;

    daemon = daemon.restart().await;
    let restored = restore(&daemon.client, JOB, JOB, 1, "claim").await.unwrap();

    assert_eq!(named_in(&restored), ids_of(&written));
    assert_all_live(&daemon.client, &written).await;
    let after = daemon.client.space(None, Some(JOB)).await.unwrap().total;
    assert_eq!((after.files, after.segments, after.live_bytes), (before.files, before.segments, before.live_bytes));
    assert_eq!(after.physical_bytes, before.physical_bytes);
    daemon.client.subsume(JOB, 1).await.unwrap();
    assert_files_of(&daemon, []).await;
    assert_eq!(daemon.metric("esker_live_bytes").await, 0.0);
}

#[tokio::test]
async fn merging_is_switched_off_and_on_between_runs() {
    let mut daemon = daemon(&[(ACROSS, "true")]).await;
    let mut living: Vec<Written> = vec![];
    for (run, merging) in ["true", "false", "true", "false"].into_iter().enumerate() {
        daemon = daemon.restart_with(&[(MERGING, merging)]).await;
        let client = &daemon.client;
        let n = run as u64 + 1;
        if run > 0 {
            let restored = restore(client, JOB, JOB, n - 1, "claim").await.unwrap();
            assert_eq!(named_in(&restored), ids_of(&living));
        }
        assert_all_live(client, &living).await;

        let written = [put(client, &exclusive(0, n), 10 * n).await, put(client, &exclusive(0, n), 10 * n + 1).await];
        // What was merged stays reusable, whatever the switch says now.
        let reused = client.reuse(JOB, n, living.iter().map(Written::id).collect()).await.unwrap();

        assert_eq!(reused.refused, Vec::<String>::new());
        assert_eq!(written[0].file() == written[1].file(), merging == "true");
        client.complete(JOB, n).await.unwrap();
        client.subsume(JOB, n - 1).await.unwrap();
        living.extend(written);
    }
    assert_all_live(&daemon.client, &living).await;
    assert_files_of(&daemon, &living).await;
    daemon.client.subsume(JOB, 4).await.unwrap();
    daemon.client.flush(JOB).await.unwrap();
    assert_files_of(&daemon, []).await;
}

/// Four checkpoints of a run: each writes anew and uses what the run before left, or its own first segment, again.
async fn run(client: &Client, job: &str, first: u64, before: &[Written]) -> Vec<Written> {
    let mut shared_state = before.to_vec();
    for n in first..first + 4 {
        let reused = client.reuse(job, n, shared_state.iter().map(Written::id).collect()).await.unwrap();
        shared_state.retain(|written| !reused.refused.contains(&written.id()));
        if n == first {
            shared_state.push(put_for(client, job, &shared(0, n), n).await);
        }
        put_for(client, job, &exclusive(1, n), 100 + n).await;
        client.complete(job, n).await.unwrap();
        client.subsume(job, n - 1).await.unwrap();
    }
    // The last one's own, and what it has in common with those before it.
    let living = ids(client, job).await;
    assert_eq!(living.len(), shared_state.len() + 1);
    shared_state
}

#[tokio::test]
async fn claimed_runs_leave_nothing_of_the_runs_before() {
    let mut daemon = daemon(&[]).await;
    let mut state = vec![];
    for number in 0..4_u64 {
        // Merging is on, off, on, off; files are within a checkpoint and across, in turn.
        let merging = if number % 2 == 0 { "true" } else { "false" };
        let across = if number / 2 == 0 { "true" } else { "false" };
        daemon = daemon.restart_with(&[(MERGING, merging), (ACROSS, across)]).await;
        let client = &daemon.client;
        let (job, before) = (format!("run-{number}"), format!("run-{}", number.wrapping_sub(1)));
        let first = 10 * number + 1;
        client.create_job(&job).await.unwrap();
        if number > 0 {
            let restored = restore(client, &job, &before, first - 7, "claim").await.unwrap();
            assert_eq!(restored.job, job);
            assert!(ids_of(&state).is_subset(&named_in(&restored)));
            assert_eq!(ids(client, &before).await, BTreeSet::new());
        }
        state = run(client, &job, first, &state).await;
        assert_eq!(state.len() as u64, number + 1, "claimed state is used again and not stored again");
        assert_all_live(client, &state).await;
    }
    let last = "run-3";
    daemon.client.end_job(last, &ends(JobEnd::Finished, "NO_EXTERNALIZED_CHECKPOINTS")).await.unwrap();
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn runs_that_do_not_claim_leave_the_first_one_intact() {
    let mut daemon = daemon(&[]).await;
    daemon.client.create_job("first").await.unwrap();
    let state = run(&daemon.client, "first", 1, &[]).await;
    let first = ids(&daemon.client, "first").await;
    for (number, merging) in ["true", "false", "true"].into_iter().enumerate() {
        daemon = daemon.restart_with(&[(MERGING, merging)]).await;
        let client = &daemon.client;
        let job = format!("run-{number}");

        let restored = restore(client, &job, "first", 4, "no-claim").await.unwrap();
        let own = run(client, &job, 5, &state).await;

        assert_eq!((restored.job.as_str(), named_in(&restored)), ("first", first.clone()));
        assert!(ids_of(&own).is_disjoint(&first), "what is not claimed is not used again");
        client.end_job(&job, &ends(JobEnd::Canceled, "DELETE_ON_CANCELLATION")).await.unwrap();
        assert_eq!(ids(client, "first").await, first);
        assert_all_live(client, &state).await;
    }
    assert_eq!(completed(&daemon.client, "first").await, [4]);
}

#[tokio::test]
async fn what_a_job_leaves_follows_its_end_and_its_retention() {
    use JobEnd::{Canceled, Failed, Finished, Suspended};
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let table = [
        ("NO_EXTERNALIZED_CHECKPOINTS", [(Finished, false), (Canceled, false), (Failed, false), (Suspended, true)]),
        ("DELETE_ON_CANCELLATION", [(Finished, false), (Canceled, false), (Failed, true), (Suspended, true)]),
        ("RETAIN_ON_CANCELLATION", [(Finished, false), (Canceled, true), (Failed, true), (Suspended, true)]),
    ];
    for (retention, ends_with) in table {
        for (end, keeps) in ends_with {
            let job = format!("{retention}-{end:?}");
            client.create_job(&job).await.unwrap();
            let kept = put_for(client, &job, &shared(0, 1), 1).await;
            client.complete(&job, 1).await.unwrap();
            let useless = put_for(client, &job, &shared(0, 2), 2).await;

            let answer = client.end_job(&job, &ends(end, retention)).await.unwrap();

            assert_eq!(answer.kept, keeps, "{job}");
            assert!(is_gone(client, &useless).await, "{job}: it never completed");
            if keeps {
                assert_lives(client, &kept).await;
                assert_eq!(status(try_put(client, &job, &shared(0, 3), 3).await), 409, "{job} has ended");
                // It is resumed, and this time leaves nothing.
                restore(client, &job, &job, 1, "claim").await.unwrap();
                let again = put_for(client, &job, &shared(0, 2), 2).await;
                assert_all_live(client, [&kept, &again]).await;
                client.end_job(&job, &ends(Finished, retention)).await.unwrap();
            }
            assert!(is_gone(client, &kept).await, "{job}");
            assert_eq!(status(client.checkpoints(&job).await), 404, "{job} is forgotten");
        }
    }
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn a_job_is_resumed_again_and_again_in_every_mode() {
    for mode in ["claim", "no-claim"] {
        for across in ["false", "true"] {
            let mut daemon = daemon(&[(ACROSS, across)]).await;
            let mut first = put(&daemon.client, &shared(0, 1), 1).await;
            daemon.client.complete(JOB, 1).await.unwrap();
            let mut job = JOB.to_owned();
            for number in 1..=4_u64 {
                let client = &daemon.client;
                client.end_job(&job, &ends(JobEnd::Canceled, "RETAIN_ON_CANCELLATION")).await.unwrap();
                let next = format!("resumed-{number}");

                restore(client, &next, &job, number, mode).await.unwrap();

                assert_lives(client, &first).await;
                // Incremental in two of the resumes, full in the others.
                let reused = client.reuse(&next, number + 1, vec![first.id()]).await.unwrap();
                assert_eq!(reused.refused.is_empty(), mode == "claim");
                if mode == "no-claim" || number % 2 == 0 {
                    first = put_for(client, &next, &shared(0, number + 1), number).await;
                }
                client.complete(&next, number + 1).await.unwrap();
                client.subsume(&next, number).await.unwrap();
                daemon = daemon.restart().await;
                assert_lives(&daemon.client, &first).await;
                job = next;
            }
        }
    }
}

#[tokio::test]
async fn a_job_without_a_completed_checkpoint_leaves_nothing() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    for (end, retention) in [(JobEnd::Failed, "RETAIN_ON_CANCELLATION"), (JobEnd::Suspended, "DELETE_ON_CANCELLATION")]
    {
        for job in ["never-began", "aborted", "pending"] {
            client.create_job(job).await.unwrap();
            match job {
                "never-began" => {}
                "aborted" => {
                    put_for(client, job, &exclusive(0, 1), 1).await;
                    client.abort(job, 1).await.unwrap();
                }
                _ => drop(put_for(client, job, &shared(0, 1), 1).await),
            }

            client.end_job(job, &ends(end, retention)).await.unwrap();

            assert_eq!(status(client.checkpoints(job).await), 404, "{job} is forgotten");
        }
    }
    assert_files_of(&daemon, []).await;
}

#[tokio::test]
async fn after_a_fail_over_another_worker_reuses_without_storing_again() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let old = [put(client, &shared(0, 1), 1).await, put(client, &shared(1, 1), 2).await];
    client.complete(JOB, 1).await.unwrap();
    let lost = put(client, &shared(0, 2), 3).await;

    // Both subtasks move to another task manager, and are three from now on.
    let restored = restore(client, JOB, JOB, 1, "claim").await.unwrap();
    let moved =
        esker_client::wire::PutParams { task_manager: Some("other".to_owned()), parallelism: Some(3), ..shared(2, 3) };
    let reused = client.reuse(JOB, 3, restored.segments.iter().map(|segment| segment.info.handle.clone()).collect());
    let reused = reused.await.unwrap();

    assert_eq!((reused.reused, reused.refused), (2, vec![]));
    assert!(is_gone(client, &lost).await, "it had not completed");
    assert_eq!(status(try_put(client, JOB, &shared(0, 2), 3).await), 409, "the worker that is gone may still write");
    let new = put(client, &moved, 4).await;
    client.complete(JOB, 3).await.unwrap();
    client.subsume(JOB, 2).await.unwrap();
    assert_eq!(ids(client, JOB).await, ids_of(old.iter().chain([&new])));
    assert_files_of(&daemon, old.iter().chain([&new])).await;
}

#[tokio::test]
async fn claimed_segments_are_not_part_of_the_jobs_own_older_checkpoints() {
    let daemon = daemon(&[]).await;
    let client = &daemon.client;
    let own = put(client, &checkpoint(2), 1).await;
    client.complete(JOB, 2).await.unwrap();
    client.create_job("old").await.unwrap();
    let old = put_for(client, "old", &checkpoint(1), 2).await;
    client.complete("old", 1).await.unwrap();
    client.reuse("old", 5, vec![old.id()]).await.unwrap();
    client.complete("old", 5).await.unwrap();

    let claimed = restore(client, JOB, "old", 5, "claim").await.unwrap();

    assert_eq!(named_in(&claimed), ids_of([&old]));
    let of_two = restore(client, JOB, JOB, 2, "claim").await.unwrap();
    assert_eq!(named_in(&of_two), ids_of([&own]));
}

#[tokio::test]
async fn claimed_files_count_for_the_job_that_claimed_them() {
    let mut daemon = daemon(&[]).await;
    put(&daemon.client, &shared(0, 1), 1).await;
    put(&daemon.client, &exclusive(0, 1), 2).await;
    daemon.client.complete(JOB, 1).await.unwrap();
    let before = daemon.client.space(None, Some(JOB)).await.unwrap().total;

    restore(&daemon.client, "next", JOB, 1, "claim").await.unwrap();

    for _ in 0..2 {
        let by_job = daemon.client.space(Some("job"), None).await.unwrap();
        let names: Vec<&str> = by_job.rows.iter().map(|row| row.of.as_str()).collect();
        assert_eq!(names, ["next"]);
        let next = &by_job.rows[0];
        assert_eq!((next.files, next.segments, next.live_bytes), (before.files, before.segments, before.live_bytes));
        daemon = daemon.restart().await;
    }
}
