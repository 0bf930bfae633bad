//! The rules of Flink about checkpoints.

use super::*;
use crate::config::LocalCopySettings;

const INTERVAL: &str = "execution.checkpointing.interval";
const BACKLOG: &str = "execution.checkpointing.interval-during-backlog";
const CONCURRENT: &str = "execution.checkpointing.max-concurrent-checkpoints";
const UNALIGNED: &str = "execution.checkpointing.unaligned.enabled";
const INLINE: &str = "execution.checkpointing.data-inline-threshold";

#[test]
fn intervals_follow_flinks_rules() {
    refused(&[(INTERVAL, "9 ms")], &[INTERVAL], "at least 10 ms");
    refused(&[(INTERVAL, "5 s"), (BACKLOG, "4 s")], &[BACKLOG, INTERVAL], "not below the interval");
    refused(&[(BACKLOG, "4 s")], &[BACKLOG, INTERVAL], "needs an interval");
    refused(&[("execution.checkpointing.timeout", "9 ms")], &["execution.checkpointing.timeout"], "at least 10 ms");
    let errors = loaded(&[(INTERVAL, "1 s"), (BACKLOG, "9 ms")]).settings().unwrap_err().to_string();
    assert!(errors.contains("must be 0 (no checkpoints during a backlog) or at least 10 ms"), "{errors}");
}

#[test]
fn unaligned_checkpoints_follow_flinks_rules() {
    refused(&[(UNALIGNED, "true"), (CONCURRENT, "2")], &[UNALIGNED, CONCURRENT], "one checkpoint at a time");
    assert!(settings(&[(UNALIGNED, "true")]).checkpointing.jobs.unaligned);
    let mode = ("execution.checkpointing.mode", "AT_LEAST_ONCE");
    assert!(!warned(&[(UNALIGNED, "true"), mode], "checkpoints are aligned").checkpointing.jobs.unaligned);
}

#[test]
fn bounds_of_flinks_numbers_hold() {
    for key in [
        CONCURRENT,
        "execution.checkpointing.num-retained",
        "execution.checkpointing.unaligned.max-subtasks-per-channel-state-file",
        "execution.checkpointing.file-merging.max-subtasks-per-file",
    ] {
        refused(&[(key, "0")], &[key], "at least 1");
    }
    let tolerable = "execution.checkpointing.tolerable-failed-checkpoints";
    refused(&[(tolerable, "2147483648")], &[tolerable], "at most 2147483647");
    assert_eq!(settings(&[(tolerable, "2147483647")]).checkpointing.jobs.failures_tolerated, None);
    assert_eq!(settings(&[(tolerable, "7")]).checkpointing.jobs.failures_tolerated, Some(7));
    refused(&[(AMPLIFICATION, "-1")], &[AMPLIFICATION], "must be a number");
    let off = warned(&[(AMPLIFICATION, "0.9")], "nothing is reclaimed but files that are dead as a whole");
    assert_eq!(off.reclaim.space_amplification_max, None);
}

#[test]
fn s5_14_states_of_up_to_a_mebibyte_may_be_inside_the_catalog_and_20_kb_are_unless_somebody_says_so() {
    refused(&[(INLINE, "1048577")], &[INLINE], "at most 1 mb");
    let inline = |settings: Settings| settings.checkpointing.inline_bytes_max;
    assert_eq!(inline(settings(&[(INLINE, "1mb")])), 1 << 20);
    assert_eq!(inline(settings(&[(INLINE, "0")])), 0);
    assert_eq!(inline(settings(&[])), 20 << 10);
}

#[test]
fn s5_14_filesystem_storage_wants_a_directory() {
    let (storage, dir) = ("execution.checkpointing.storage", "execution.checkpointing.dir");
    refused(&[(storage, "filesystem")], &[storage, dir], "needs a directory");
    assert_eq!(settings(&[(storage, "filesystem"), (dir, "s3://b/c")]).warnings.len(), 0);
    assert_eq!(settings(&[(storage, "jobmanager")]).warnings.len(), 0);
    refused(&[(dir, "hdfs://namenode/c")], &[dir], "s3://bucket/prefix");
}

#[test]
fn a_local_copy_is_for_s3_and_takes_a_part_of_the_memory() {
    const ENABLED: &str = "execution.checkpointing.local-backup.enabled";
    const DIRS: &str = "execution.checkpointing.local-backup.dirs";
    const SIZE: &str = "execution.checkpointing.local-backup.max-size";
    let s3 = ("store.url", "s3://bucket");

    let copy = settings(&[s3, (ENABLED, "true"), (DIRS, "/a, /b"), (SIZE, "64 mb")]);
    let elsewhere = settings(&[s3, (ENABLED, "true")]).store.local_copy.unwrap();
    let local = warned(&[(ENABLED, "true")], "has no effect");

    let expected =
        LocalCopySettings { dirs: vec!["/a".into(), "/b".into()], bytes_max: 64 << 20, waiting_bytes_max: 32 << 20 };
    assert_eq!(copy.store.local_copy, Some(expected));
    assert_eq!(copy.limits.memory_bytes, (512 - 64) << 20);
    assert_eq!(elsewhere.dirs, [std::env::temp_dir()]);
    assert_eq!((local.store.local_copy, local.limits.memory_bytes), (None, (512 - 32) << 20));
    assert_eq!(settings(&[s3]).store.local_copy, None);
    refused(&[s3, (ENABLED, "true"), (DIRS, "/a, /b"), (SIZE, "63 mb")], &[SIZE, DIRS, FILE_SIZE], "must hold a file");
}
