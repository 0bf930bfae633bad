//! Bounds of single values, and rules between those of packing, storage, catalog, limits and reclaiming.

use super::checkpointing::INLINE_BYTES_MAX;
use super::rules::Rules;
use crate::config::choices::{Boundary, DeleteDurability, ReclaimMode};
use crate::config::url::StoreUrl;
use crate::config::values::{MemorySize, Span};
use crate::model::SHARDS_MAX;

/// Parts of one multipart upload, by S3's rules.
const PARTS_MAX: u64 = 10_000;
const S3_PART_MIN: MemorySize = MemorySize::mib(5);
/// The largest part, and the largest single PUT, by S3's rules.
const S3_PART_MAX: MemorySize = MemorySize::gib(5);
/// The largest single PUT by Azure's rules.
const AZURE_PUT_MAX: MemorySize = MemorySize::mib(5000);
/// A quarter of them are not in pools.
const HDFS_WRITERS_MIN: u32 = 4;
/// The least block that a NameNode takes, unless it was told otherwise.
const HDFS_BLOCK_MIN: MemorySize = MemorySize::mib(1);
/// A block is a multiple of what one checksum covers.
const HDFS_CHECKSUM_BYTES: u64 = 512;
const PART_MIN: MemorySize = MemorySize::kib(64);
const CACHE_MIN: MemorySize = MemorySize::mib(1);
const UNFLUSHED_MIN: MemorySize = MemorySize::mib(8);
const LOG_SEGMENT_MIN: MemorySize = MemorySize::kib(64);
const LAZY_LINGER_MAX: Span = Span::seconds(10);
/// A ping that takes longer than a third of it is none.
const LEASE_TIMEOUT_MIN: Span = Span::millis(300);
/// The least that the HTTP server takes.
const HEADER_BYTES_MIN: MemorySize = MemorySize::kib(8);
/// By S3's rules.
const KEY_BYTES_MAX: u32 = 1024;

/// Checks the rules of this module.
pub(super) fn check(rules: &mut Rules) {
    check_not_zero(rules);
    check_sizes(rules);
    check_merging(rules);
    check_local_copy(rules);
    check_catalog(rules);
    check_hdfs(rules);
    check_limits(rules);
    check_reclaim(rules);
}

/// Counts, sizes and times that bound nothing, or everything, at zero.
fn check_not_zero(rules: &mut Rules) {
    let config = rules.config;
    let merging = &config.execution.checkpointing.file_merging;
    let (store, limits) = (&config.store, &config.limits);
    for (key, count) in [
        ("execution.checkpointing.file-merging.max-subtasks-per-file", merging.max_subtasks_per_file),
        ("store.max-concurrent-requests", store.max_concurrent_requests),
        ("merging.max-open-files", config.merging.max_open_files),
        ("limits.key-bytes-max", limits.key_bytes_max),
        ("limits.segments-per-request-max", limits.segments_per_request_max),
        ("limits.connections-max", limits.connections_max),
        ("limits.multipart-uploads-max", limits.multipart_uploads_max),
        ("limits.multipart-uploads-per-job-max", limits.multipart_uploads_per_job_max),
        ("limits.connections-reserved", limits.connections_reserved),
        ("reclaim.delete-rate", config.reclaim.delete_rate),
        ("cluster.shards", config.cluster.shards),
        ("store.hdfs.replication", store.hdfs.replication.unwrap_or(1)),
    ] {
        rules.require(count >= 1, &[key], "must be at least 1");
    }
    for (key, size) in [
        ("execution.checkpointing.file-merging.max-file-size", merging.max_file_size),
        ("merging.group-bytes-max", config.merging.group_bytes_max),
        ("limits.segment-size-max", limits.segment_size_max),
        ("limits.object-size-max", limits.object_size_max),
        ("reclaim.copy-rate", config.reclaim.copy_rate),
    ] {
        rules.require(size.bytes() > 0, &[key], "must be more than 0 bytes");
    }
    for (key, span) in [
        ("store.request-timeout", store.request_timeout),
        ("store.hdfs.write-timeout", store.hdfs.write_timeout),
        ("merging.idle-close", config.merging.idle_close),
        ("merging.take-deadline", config.merging.take_deadline),
        ("catalog.poll-interval", config.catalog.poll_interval),
        ("limits.multipart-expiry", limits.multipart_expiry),
        ("limits.head-timeout", limits.head_timeout),
        ("limits.idle-timeout", limits.idle_timeout),
        ("limits.rate-window", limits.rate_window),
        ("limits.body-timeout", limits.body_timeout),
        ("limits.request-timeout", limits.request_timeout),
        ("limits.read-lease", limits.read_lease),
        ("reclaim.interval", config.reclaim.interval),
    ] {
        rules.require(!span.is_zero(), &[key], "must be more than 0 ms");
    }
    rules.require(config.cluster.shards <= SHARDS_MAX, &["cluster.shards"], format!("must be at most {SHARDS_MAX}"));
    rules.require(
        config.cluster.lease_timeout >= LEASE_TIMEOUT_MIN,
        &["cluster.lease-timeout"],
        format!("must be at least {LEASE_TIMEOUT_MIN}"),
    );
}

/// Checks the limits of object storage services, and the size that many parts add up to. Those of S3 hold on all of them, but
/// for Azure's of a single PUT.
fn check_sizes(rules: &mut Rules) {
    const PART: &str = "store.part-size";
    let config = rules.config;
    let (limits, part) = (&config.limits, config.store.part_size);
    let service = config.store.url.is_service();
    let least = if service { S3_PART_MIN } else { PART_MIN };
    let put_max = if config.store.url.is_azure() { AZURE_PUT_MAX } else { S3_PART_MAX };
    rules.require(
        (least..=S3_PART_MAX).contains(&part),
        &[PART, "store.url"],
        format!("a part must be {least} to {S3_PART_MAX} there"),
    );
    rules.require(
        !service || limits.segment_size_max.bytes() <= part.bytes().saturating_mul(PARTS_MAX),
        &["limits.segment-size-max", PART],
        format!("a segment has at most {PARTS_MAX} parts there"),
    );
    rules.require(
        !service || config.execution.checkpointing.file_merging.max_file_size <= put_max,
        &["execution.checkpointing.file-merging.max-file-size", "store.url"],
        format!("a single PUT holds at most {put_max} there"),
    );
    rules.require(
        limits.object_size_max.bytes() <= S3_PART_MAX.bytes() * PARTS_MAX,
        &["limits.object-size-max"],
        format!("must be at most {PARTS_MAX} parts of {S3_PART_MAX}"),
    );
}

fn check_merging(rules: &mut Rules) {
    let config = rules.config;
    let (flink, ours) = (&config.execution.checkpointing.file_merging, &config.merging);
    rules.require(
        ours.group_bytes_max <= flink.max_file_size,
        &["merging.group-bytes-max", "execution.checkpointing.file-merging.max-file-size"],
        "a group must fit into a file",
    );
    rules.require(
        flink.max_space_amplification.is_finite() && flink.max_space_amplification >= 0.0,
        &["execution.checkpointing.file-merging.max-space-amplification"],
        "must be a number from 0, below 1 is off",
    );
    rules.require(
        (0.0..=1.0).contains(&ours.linger_fraction),
        &["merging.linger-fraction"],
        "must be a number from 0 to 1",
    );
    rules.require(
        ours.inline_group_max <= INLINE_BYTES_MAX,
        &["merging.inline-group-max"],
        format!("must be at most {INLINE_BYTES_MAX}"),
    );
    rules.require(
        ours.linger_min <= ours.linger_max,
        &["merging.linger-min", "merging.linger-max"],
        "the lower bound must not be above the upper bound",
    );
    rules.require(
        ours.lazy_linger <= LAZY_LINGER_MAX,
        &["merging.lazy-linger"],
        format!("must be at most {LAZY_LINGER_MAX}: a crash undoes what was answered in that time"),
    );
    rules.require(
        matches!(ours.s3_boundary, Boundary::Job | Boundary::Daemon),
        &["merging.s3-boundary"],
        "S3 keys name neither subtask nor task manager, must be `job` or `daemon`",
    );
}

fn check_local_copy(rules: &mut Rules) {
    const ENABLED: &str = "execution.checkpointing.local-backup.enabled";
    const SIZE: &str = "execution.checkpointing.local-backup.max-size";
    const DIRS: &str = "execution.checkpointing.local-backup.dirs";
    let checkpointing = &rules.config.execution.checkpointing;
    let (backup, file) = (&checkpointing.local_backup, checkpointing.file_merging.max_file_size);
    let dirs = backup.dirs.len().max(1) as u64;
    rules.require(backup.dirs.iter().all(|dir| !dir.is_empty()), &[DIRS], "a directory must not be empty");
    rules.require(
        !backup.enabled || backup.max_size.bytes() / dirs >= file.bytes(),
        &[SIZE, DIRS, "execution.checkpointing.file-merging.max-file-size"],
        "the share of a directory must hold a file",
    );
    rules.warn_if(
        backup.enabled && !rules.config.store.url.is_service(),
        &[ENABLED, "store.url"],
        "has no effect: a copy on local disk is for a store on S3, Google Cloud Storage or Azure",
    );
}

fn check_catalog(rules: &mut Rules) {
    let (store, catalog) = (&rules.config.store, &rules.config.catalog);
    rules.require(
        catalog.url != Some(StoreUrl::Memory) || store.url == StoreUrl::Memory,
        &["catalog.url", "store.url"],
        "a catalog in memory forgets data that outlives it",
    );
    let on_a_disk = matches!(catalog.url.as_ref().unwrap_or(&store.url), StoreUrl::File(_));
    rules.warn_if(
        rules.config.merging.delete_durability == DeleteDurability::Lazy && on_a_disk,
        &["merging.delete-durability", "store.url", "catalog.url"],
        "has no effect: on a local disk a commit costs no request",
    );
    let merging = &rules.config.merging;
    let (durability, has_ledger) = (merging.delete_durability, merging.delete_ledger.is_some());
    rules.warn_if(
        has_ledger && (on_a_disk || durability != DeleteDurability::Ledger || rules.config.cluster.enabled),
        &["merging.delete-ledger"],
        "has no effect: it is for `merging.delete-durability = \"ledger\"` on an object store, without a cluster",
    );
    for (key, size, least) in [
        ("catalog.cache", catalog.cache, CACHE_MIN),
        ("catalog.unflushed-max", catalog.unflushed_max, UNFLUSHED_MIN),
        ("catalog.log-segment-size", catalog.log_segment_size, LOG_SEGMENT_MIN),
    ] {
        rules.require(size >= least, &[key], format!("must be at least {least}"));
    }
}

fn check_hdfs(rules: &mut Rules) {
    const BLOCK: &str = "store.hdfs.block-size";
    let (store, catalog) = (&rules.config.store, &rules.config.catalog);
    let hdfs = &store.hdfs;
    let on_hdfs = store.url.is_hdfs() || catalog.url.as_ref().is_some_and(StoreUrl::is_hdfs);
    if let Some(block) = hdfs.block_size {
        rules.require(
            block >= HDFS_BLOCK_MIN && block.bytes() % HDFS_CHECKSUM_BYTES == 0,
            &[BLOCK],
            format!("must be at least {HDFS_BLOCK_MIN}, and a multiple of {HDFS_CHECKSUM_BYTES} bytes"),
        );
        rules.require(
            rules.config.merging.group_bytes_max <= block,
            &["merging.group-bytes-max", BLOCK],
            "a group must fit into a block",
        );
    }
    rules.require(
        hdfs.max_writers >= HDFS_WRITERS_MIN,
        &["store.hdfs.max-writers"],
        format!("must be at least {HDFS_WRITERS_MIN}: a quarter is left to large segments and to copies"),
    );
    rules.require(hdfs.user.as_deref() != Some(""), &["store.hdfs.user"], "must not be empty");
    rules.require(
        hdfs.conf.iter().all(|entry| entry.split_once('=').is_some_and(|(key, _)| !key.trim().is_empty())),
        &["store.hdfs.conf"],
        "each entry must be a key of Hadoop, =, and its value, as in \"dfs.nameservices=ns\"",
    );
    for (key, set) in [
        ("store.hdfs.conf-dir", hdfs.conf_dir.is_some()),
        ("store.hdfs.conf", !hdfs.conf.is_empty()),
        ("store.hdfs.user", hdfs.user.is_some()),
        ("store.hdfs.replication", hdfs.replication.is_some()),
        (BLOCK, hdfs.block_size.is_some()),
        ("store.hdfs.open-memory", hdfs.open_memory.is_some()),
    ] {
        rules.warn_if(set && !on_hdfs, &[key, "store.url"], "has no effect, the store is not on HDFS");
    }
    rules.warn_if(
        hdfs.replication == Some(1) && on_hdfs,
        &["store.hdfs.replication"],
        "with one replica a lost disk loses what was answered",
    );
}

fn check_limits(rules: &mut Rules) {
    let limits = &rules.config.limits;
    rules.require(
        limits.key_bytes_max <= KEY_BYTES_MAX,
        &["limits.key-bytes-max"],
        format!("must be at most {KEY_BYTES_MAX}"),
    );
    rules.require(
        limits.header_bytes_max >= HEADER_BYTES_MIN,
        &["limits.header-bytes-max"],
        format!("must be at least {HEADER_BYTES_MIN}"),
    );
    rules.require(
        limits.metadata_bytes_max <= limits.header_bytes_max,
        &["limits.metadata-bytes-max", "limits.header-bytes-max"],
        "metadata must fit into the headers that carry it",
    );
    for (key, share) in [
        ("limits.read-share", limits.read_share),
        ("limits.write-share", limits.write_share),
        ("limits.connection-share", limits.connection_share),
        ("limits.key-share", limits.key_share),
    ] {
        rules.require((0.0..=1.0).contains(&share), &[key], "must be a number from 0 to 1");
    }
    rules.require(
        limits.read_share + limits.write_share <= 1.0,
        &["limits.read-share", "limits.write-share"],
        "together they must not be more than 1",
    );
    for (key, part) in
        [("limits.admission-timeout", limits.admission_timeout), ("limits.body-timeout", limits.body_timeout)]
    {
        rules.require(
            part <= limits.request_timeout,
            &[key, "limits.request-timeout"],
            "must not be longer than the whole request",
        );
    }
}

fn check_reclaim(rules: &mut Rules) {
    let (store, reclaim) = (&rules.config.store, &rules.config.reclaim);
    let longest_request = store.request_timeout.duration().saturating_add(store.retry_timeout.duration());
    rules.warn_if(
        reclaim.delete_grace.duration() < longest_request,
        &["reclaim.delete-grace", "store.request-timeout", "store.retry-timeout"],
        "an upload that was given up may arrive after its name was deleted, and then stays until it is swept",
    );
    rules.warn_if(
        reclaim.mode != ReclaimMode::Off
            && rules.config.execution.checkpointing.file_merging.max_space_amplification < 1.0,
        &["reclaim.mode", "execution.checkpointing.file-merging.max-space-amplification"],
        "nothing is reclaimed but files that are dead as a whole",
    );
}
