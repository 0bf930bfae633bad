//! Flink's own behaviours of file merging, on a running daemon.
//!
//! The numbers are those of the list that was collected from Flink's sources, tests and tickets. Where Flink counts
//! references by subtask, the daemon counts by job: its checkpoints are completed, aborted and subsumed once, by the job's
//! coordinator. Where Flink has directories, the daemon has lanes: whose segments may share a file.
//!
//! | behaviour | shown by |
//! | --- | --- |
//! | 1 shared state by subtask, exclusive state together | [`pools`]: `subtasks_share_files_of_exclusive_state_and_not_of_shared_state`; `src/merge/lane.rs` |
//! | 2 jobs with the same subtasks | [`pools`]: `jobs_with_the_same_subtasks_share_no_file` |
//! | 3 one manager by job | does not apply: one daemon serves all jobs |
//! | 4 ids with unusual characters | [`pools`]: `ids_with_unusual_characters_name_jobs_and_subtasks` |
//! | 5 initialised twice | [`pools`]: `a_job_that_is_created_again_is_the_same_job`; other paths do not apply, there is one store |
//! | 6 a plain file where a directory should be | does not apply: no directory is made for a job, and no name is used twice |
//! | 7 a file that is taken is not given again | `src/merge/pool.rs`: `a_non_blocking_pool_opens_another_file_when_the_group_is_full` |
//! | 8, 9 within a checkpoint files are reused, in the next one not | [`pools`]: `within_a_checkpoint_a_file_is_used_again_and_by_the_next_checkpoint_never` |
//! | 10 across checkpoints files are reused | [`pools`]: `across_checkpoints_a_file_is_used_again` |
//! | 11 a full file | [`pools`]: `a_full_file_takes_no_more_and_goes_with_its_last_segment`; `src/merge/pool.rs`: `a_file_may_exceed_its_size_by_the_last_parcel_and_takes_no_more_then` |
//! | 12 a blocking pool | `src/merge/pool.rs`: `writers_of_a_blocking_pool_wait_in_order_until_the_owner_takes_the_group`, `a_file_whose_owner_failed_does_not_hang_the_next_writer` |
//! | 13 ten streams, one file | [`pools`]: `ten_segments_in_sequence_are_one_file_and_each_reads_back_its_own_bytes` |
//! | 14 concurrent streams | [`pools`]: `concurrent_segments_never_interleave` |
//! | 15 positions inside a segment, over 8 checkpoints | [`pools`]: `positions_count_from_the_begin_of_the_segment_over_eight_checkpoints` |
//! | 16 a stream with nothing in it | [`pools`]: `an_empty_state_is_refused_and_makes_no_file` |
//! | 17 a handle of zero bytes | does not apply: there are no segments without bytes |
//! | 18 the write buffer | does not apply: buffers are the worker's; here bytes are paid for before they are read |
//! | 19 a closed stream | does not apply: a segment is one request; one that breaks off: `bad_input.rs`: `a_body_that_breaks_off_or_stalls_leaves_nothing` |
//! | 20 a stream that fails | `tests/faults/writes.rs`: `a_segment_whose_data_cannot_be_written_is_refused_and_nothing_refers_to_it`; `src/merge/pool.rs`: `a_file_whose_owner_failed_does_not_hang_the_next_writer` |
//! | 21 positions on a reused file | as 15 |
//! | 22 the watermark of a segment | [`references`]: `a_watermark_only_grows_and_frees_once` |
//! | 23 open and closed files without references | [`references`]: `an_open_file_without_segments_stays_and_goes_when_it_is_closed` |
//! | 24 a shrinking prefix | [`references`]: `of_a_shrinking_prefix_exactly_what_is_not_reused_vanishes` |
//! | 25 subsumed by one subtask after the other | [`references`]: `subsuming_frees_what_every_subtask_wrote_but_what_one_reuses`; a notification by subtask does not apply |
//! | 26 aborted by one subtask after the other | [`references`]: `an_abort_frees_what_every_subtask_wrote_and_nothing_else`; as 25 |
//! | 27 the same in files across checkpoints | [`references`]: `in_a_file_across_checkpoints_the_segments_go_and_the_file_stays` |
//! | 28 a missed notification | [`references`]: `a_later_subsumption_heals_a_missed_one` |
//! | 29 aborted twice, or while a write fails | [`references`]: `an_abort_twice_frees_once`; `catalog.rs`: `the_state_agrees_with_the_model_after_any_history` |
//! | 30 counters | [`space`]: `counters_follow_the_segments_and_end_at_zero` |
//! | 31 the worked example | [`space`]: `across_checkpoints_what_is_in_the_file_with_much_waste_is_refused`, `within_a_checkpoint_only_its_own_file_is_refused` |
//! | 32 a limit below 1 | [`space`]: `below_one_nothing_is_ever_refused`; `src/reclaim/plan.rs`: `below_1_nothing_is_ever_copied` |
//! | 33 gauges | [`space`]: `counters_follow_the_segments_and_end_at_zero`; there are more than four |
//! | 34 equal waste | [`space`]: `two_files_with_equal_waste_are_both_refused`; `src/reclaim/plan.rs`: `equal_waste_makes_both_files_candidates` |
//! | 35 a crash while a file is compacted | `tests/faults/reclaim.rs`: `a_crash_before_any_request_of_reclaiming_loses_and_leaks_nothing`, `a_crash_after_any_request_of_reclaiming_loses_and_leaks_nothing` |
//! | 36 a snapshot with every kind of state | [`restore`]: `every_kind_of_state_is_restored_counted_and_freed` |
//! | 37 merging switched off and on | [`restore`]: `merging_is_switched_off_and_on_between_runs` |
//! | 38 claim and no claim over several runs | [`restore`]: `claimed_runs_leave_nothing_of_the_runs_before`, `runs_that_do_not_claim_leave_the_first_one_intact` |
//! | 39 a job that is cancelled | [`restore`]: `what_a_job_leaves_follows_its_end_and_its_retention` |
//! | 40 resumed again and again | [`restore`]: `a_job_is_resumed_again_and_again_in_every_mode` |
//! | 41 empty handles | does not apply, see 17 |
//! | 42, 43 directories of a job without a completed checkpoint | [`restore`]: `a_job_without_a_completed_checkpoint_leaves_nothing` |
//! | 44, 45 directories that existed, or of empty state | does not apply: there are none |
//! | 46 killed after the last answer | `tests/faults/crashes.rs`: `what_was_answered_is_there_whenever_the_daemon_is_killed`; `tests/crash`: `what_was_answered_survives_kill_9` |
//! | 47 a completion that is never told | [`references`]: `what_was_never_completed_is_durable_and_freed_once` |
//! | 48 a segment after the abort | [`references`]: `a_late_segment_is_refused_and_leaves_no_open_file`; `bad_input.rs`: `a_segment_for_a_checkpoint_that_is_over_is_refused` |
//! | 49 deletes that are refused | `tests/faults/reclaim.rs`: `a_delete_that_is_refused_is_tried_until_the_file_is_gone`; `tests/faults/writes.rs`: `dead_files_are_deleted_though_deletes_fail_and_live_ones_stay` |
//! | 50 a subtask that moves | [`restore`]: `after_a_fail_over_another_worker_reuses_without_storing_again` |
//!
//! Savepoints, which Flink keeps away from merging, are in [`savepoints`]; requests whose answer was lost, and requests that
//! cannot be, in [`requests`].

mod pools;
mod references;
mod requests;
mod restore;
mod savepoints;
mod space;

use std::collections::BTreeSet;

use bytes::Bytes;
use esker_client::wire::{CheckpointState, EndRequest, JobEnd, PutParams, RestoreJob, RestoredJob, SegmentInfo};
use esker_client::{Client, ClientError};
use http::StatusCode;

use crate::daemon::{TestDaemon, checkpoint};
use crate::support::pattern;

pub const JOB: &str = "j";
/// More than what is kept inside the catalog.
pub const LEN: usize = 30_000;
pub const ACROSS: &str = "execution.checkpointing.file-merging.across-checkpoint-boundary";
pub const MERGING: &str = "execution.checkpointing.file-merging.enabled";

/// A segment that was answered, and its bytes.
#[derive(Debug, Clone)]
pub struct Written {
    pub info: SegmentInfo,
    pub data: Bytes,
}

impl Written {
    pub fn id(&self) -> String {
        self.info.segment.clone()
    }

    pub fn file(&self) -> String {
        self.info.file.clone().unwrap()
    }
}

/// A daemon with a job [`JOB`] that reclaims and deletes when it is told.
pub async fn daemon(flags: &[(&str, &str)]) -> TestDaemon {
    let mut all = vec![("reclaim.interval", "1 h"), ("reclaim.delete-grace", "0")];
    all.extend(flags);
    let daemon = TestDaemon::start(&all).await;
    daemon.client.create_job(JOB).await.unwrap();
    daemon
}

/// State of subtask `index` of two, which run on one task manager.
pub fn by(scope: &str, index: u32, n: u64) -> PutParams {
    PutParams {
        scope: Some(scope.to_owned()),
        operator: Some("window".to_owned()),
        subtask: Some(index),
        parallelism: Some(2),
        task_manager: Some("tm".to_owned()),
        ..checkpoint(n)
    }
}

pub fn shared(index: u32, n: u64) -> PutParams {
    by("shared", index, n)
}

pub fn exclusive(index: u32, n: u64) -> PutParams {
    by("exclusive", index, n)
}

pub async fn try_put(client: &Client, job: &str, params: &PutParams, seed: u64) -> Result<Written, ClientError> {
    let data = Bytes::from(pattern(seed, LEN));
    let info = client.put(job, params, None, data.clone()).await?;
    Ok(Written { info, data })
}

pub async fn put_for(client: &Client, job: &str, params: &PutParams, seed: u64) -> Written {
    try_put(client, job, params, seed).await.unwrap()
}

pub async fn put(client: &Client, params: &PutParams, seed: u64) -> Written {
    put_for(client, JOB, params, seed).await
}

pub async fn assert_lives(client: &Client, written: &Written) {
    let read = client.get(&written.info.segment).await.unwrap_or_else(|error| panic!("{}: {error}", written.id()));
    assert!(read == written.data, "{} has other bytes", written.id());
    assert!(client.get_handle(&written.info.handle).await.unwrap() == written.data);
}

pub async fn assert_all_live<'a>(client: &Client, all: impl IntoIterator<Item = &'a Written>) {
    for written in all {
        assert_lives(client, written).await;
    }
}

pub async fn is_gone(client: &Client, written: &Written) -> bool {
    match client.get(&written.info.segment).await {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.status(), Some(StatusCode::NOT_FOUND), "{error}");
            true
        }
    }
}

/// The identities of a job's segments.
pub async fn ids(client: &Client, job: &str) -> BTreeSet<String> {
    let page = client.segments(job, None, None).await.unwrap();
    page.segments.into_iter().map(|segment| segment.info.segment).collect()
}

pub fn ids_of<'a>(all: impl IntoIterator<Item = &'a Written>) -> BTreeSet<String> {
    all.into_iter().map(Written::id).collect()
}

/// The checkpoints of a job and their states.
pub async fn states(client: &Client, job: &str) -> Vec<(u64, CheckpointState)> {
    let known = client.checkpoints(job).await.unwrap();
    known.into_iter().map(|info| (info.checkpoint, info.state)).collect()
}

/// Deletes what nobody needs; then exactly these segments' files are on disk.
pub async fn assert_files_of<'a>(daemon: &TestDaemon, living: impl IntoIterator<Item = &'a Written>) {
    let wanted: BTreeSet<String> = living.into_iter().map(Written::file).collect();
    let begun = std::time::Instant::now();
    loop {
        daemon.client.gc(false).await.unwrap();
        let found = daemon.files();
        let found: BTreeSet<String> = found
            .iter()
            .map(|path| path.strip_prefix(daemon.folder()).unwrap().to_string_lossy().into_owned())
            .collect();
        if found == wanted {
            return;
        }
        assert!(begun.elapsed().as_secs() < 20, "there are {found:?}, not {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub async fn restore(
    client: &Client,
    job: &str,
    from: &str,
    checkpoint: u64,
    mode: &str,
) -> Result<RestoredJob, ClientError> {
    let (checkpoint, mode) = (Some(checkpoint), Some(mode.to_owned()));
    let from = RestoreJob { from: Some(from.to_owned()), checkpoint, mode, ..RestoreJob::default() };
    client.restore_job(job, &from).await
}

pub fn ends(state: JobEnd, retention: &str) -> EndRequest {
    EndRequest { state, retention: Some(retention.to_owned()) }
}

pub fn status<T>(answer: Result<T, ClientError>) -> u16 {
    answer.err().and_then(|error| error.status()).map_or(200, |status| status.as_u16())
}
