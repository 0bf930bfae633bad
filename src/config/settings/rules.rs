//! Bounds of single values and rules between them. Every broken one is collected, none hides another.

use std::net::SocketAddr;

use super::checkpointing::INLINE_BYTES_MAX;
use super::{checkpointing, doors};
use crate::config::choices::{Boundary, ReclaimMode};
use crate::config::error::{ConfigError, ConfigErrors, NamedValue};
use crate::config::keys;
use crate::config::schema::Config;
use crate::config::url::StoreUrl;
use crate::config::values::MemorySize;
use crate::model::BLOCK_BYTES;

/// Parts of one multipart upload, by S3's rules.
const PARTS_MAX: u64 = 10_000;
const S3_PART_MIN: MemorySize = MemorySize::mib(5);
/// The largest part, and the largest single PUT, by S3's rules.
const S3_PART_MAX: MemorySize = MemorySize::gib(5);
const PART_MIN: MemorySize = MemorySize::kib(64);
/// Fewer parts in memory at once and uploads wait for each other.
const PARTS_IN_MEMORY_MIN: u64 = 4;
/// Least memory: pieces of 1 MiB are read and written.
const MEMORY_MIN: MemorySize = MemorySize::mib(2);
/// Two parts are paid for at once, and a payment from the memory budget is less than 4 GiB.
const PART_MAX: MemorySize = MemorySize::gib(1);
/// A segment that streams through arrives in pieces of so many bytes.
const PIECE_BYTES: u64 = 1 << 20;
const CACHE_MIN: MemorySize = MemorySize::mib(1);
const UNFLUSHED_MIN: MemorySize = MemorySize::mib(8);
const LOG_SEGMENT_MIN: MemorySize = MemorySize::kib(64);
/// The least that the HTTP server takes.
const HEADER_BYTES_MIN: MemorySize = MemorySize::kib(8);
/// By S3's rules.
const KEY_BYTES_MAX: u32 = 1024;

/// What checking a configuration brings out besides its values.
#[derive(Debug)]
pub(super) struct Checked {
    pub s3: SocketAddr,
    pub api: SocketAddr,
    pub warnings: Vec<String>,
}

/// Checks all rules.
pub(super) fn check(config: &Config) -> Result<Checked, ConfigErrors> {
    let mut rules = Rules { config, broken: Vec::new(), warnings: Vec::new() };
    checkpointing::check(&mut rules, &config.execution.checkpointing);
    check_not_zero(&mut rules);
    check_memory(&mut rules);
    check_sizes(&mut rules);
    check_merging(&mut rules);
    check_local_copy(&mut rules);
    check_catalog(&mut rules);
    check_limits(&mut rules);
    check_reclaim(&mut rules);
    let addresses = doors::check(&mut rules);
    rules.into_checked(addresses)
}

/// Collects what is broken.
pub(super) struct Rules<'a> {
    pub config: &'a Config,
    broken: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Rules<'_> {
    /// Unless `ok`, reports `keys`, their values and the `rule` they break.
    pub fn require(&mut self, ok: bool, keys: &[&str], rule: impl Into<String>) {
        if !ok {
            let settings = self.named(keys);
            self.broken.push(ConfigError::Rule { settings, rule: rule.into() });
        }
    }

    /// If `odd`, warns about `keys` and their values.
    pub fn warn_if(&mut self, odd: bool, keys: &[&str], warning: &str) {
        if odd {
            let settings: Vec<String> = self.named(keys).iter().map(NamedValue::to_string).collect();
            self.warnings.push(format!("{}: {warning}", settings.join(", ")));
        }
    }

    fn named(&self, keys: &[&str]) -> Vec<NamedValue> {
        let tree = keys::tree_of(self.config);
        let value = |key: &str| tree.find_ref(key).map(keys::written).unwrap_or_default();
        keys.iter().map(|key| NamedValue { key: (*key).to_owned(), value: value(key), origin: None }).collect()
    }

    fn into_checked(self, addresses: Option<(SocketAddr, SocketAddr)>) -> Result<Checked, ConfigErrors> {
        let (s3, api) =
            ConfigErrors::none_or(self.broken, addresses)?.expect("an address that did not parse is a broken rule");
        Ok(Checked { s3, api, warnings: self.warnings })
    }
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
        ("cluster.lease-timeout", config.cluster.lease_timeout),
    ] {
        rules.require(!span.is_zero(), &[key], "must be more than 0 ms");
    }
}

/// The part of `limits.memory` for buffers that wait for the next body.
pub(super) fn kept_buffer_bytes(memory: MemorySize) -> u64 {
    memory.bytes() / 16
}

/// Whether what is on the store is kept on local disk, too.
pub(super) fn has_local_copy(config: &Config) -> bool {
    config.execution.checkpointing.local_backup.enabled && config.store.url.is_s3()
}

/// The part of `limits.memory` for bytes that wait for the local copy.
pub(super) fn local_copy_bytes(config: &Config) -> u64 {
    if has_local_copy(config) { config.limits.memory.bytes() / 16 } else { 0 }
}

/// What the other parts leave of `limits.memory`.
pub(super) fn memory_for_bodies(config: &Config) -> u64 {
    let memory = config.limits.memory;
    memory.bytes() - kept_buffer_bytes(memory) - local_copy_bytes(config)
}

/// What a segment that streams through takes: two parts, and a piece on its way to them.
fn streamed_bytes(config: &Config) -> u64 {
    2 * config.store.part_size.bytes() + PIECE_BYTES
}

/// A share of the memory for bodies, but enough for a segment that is read from storage and streams through.
pub(super) fn share_of_memory(config: &Config, share: f64) -> u64 {
    let memory = memory_for_bodies(config);
    ((memory as f64 * share) as u64).max(streamed_bytes(config) + 2 * BLOCK_BYTES).min(memory)
}

/// What of the memory for bodies writes leave to reads. In a small one, what writes need at least comes first.
pub(super) fn reads_kept_bytes(config: &Config) -> u64 {
    let memory = memory_for_bodies(config);
    let kept = (memory as f64 * config.limits.read_share) as u64;
    kept.min(memory.saturating_sub(streamed_bytes(config)))
}

/// What of the memory for bodies reads leave to writes. In a small one, a block to read comes first.
pub(super) fn writes_kept_bytes(config: &Config) -> u64 {
    let memory = memory_for_bodies(config);
    let kept = (memory as f64 * config.limits.write_share) as u64;
    kept.min(memory.saturating_sub(BLOCK_BYTES))
}

/// What has to fit into the memory budget.
fn check_memory(rules: &mut Rules) {
    const MEMORY: &str = "limits.memory";
    let config = rules.config;
    let (limits, part) = (&config.limits, config.store.part_size);
    let merging = &config.execution.checkpointing.file_merging;
    let for_bodies = memory_for_bodies(config);
    rules.require(
        limits.memory.bytes() / PARTS_IN_MEMORY_MIN >= part.bytes(),
        &[MEMORY, "store.part-size"],
        format!("memory must hold at least {PARTS_IN_MEMORY_MIN} parts"),
    );
    rules.require(limits.memory >= MEMORY_MIN, &[MEMORY], format!("must be at least {MEMORY_MIN}"));
    rules.require(part <= PART_MAX, &["store.part-size"], format!("must be at most {PART_MAX}"));
    for (key, size) in [
        ("limits.multipart-memory", limits.multipart_memory),
        ("store.max-bytes-in-flight", config.store.max_bytes_in_flight),
        ("execution.checkpointing.file-merging.max-file-size", merging.max_file_size),
        ("execution.checkpointing.write-buffer-size", config.execution.checkpointing.write_buffer_size),
    ] {
        rules.require(size <= limits.memory, &[key, MEMORY], "the first must fit into the second");
    }
    let for_writes = for_bodies.saturating_sub(reads_kept_bytes(config));
    let beside_multipart = for_writes.saturating_sub(limits.multipart_memory.bytes());
    rules.require(
        limits.multipart_memory > limits.memory || beside_multipart >= part.bytes(),
        &[MEMORY, "limits.multipart-memory", "store.part-size"],
        "memory, less a sixteenth (two with a local copy) and what is kept for reads, must hold at least one part besides \
         the memory of multipart uploads",
    );
    rules.require(
        limits.multipart_part_in_memory_max <= limits.multipart_memory,
        &["limits.multipart-part-in-memory-max", "limits.multipart-memory"],
        "the first must fit into the second",
    );
    rules.require(
        part <= config.store.max_bytes_in_flight,
        &["store.part-size", "store.max-bytes-in-flight"],
        "the first must fit into the second",
    );
}

/// What S3 allows, and what many parts add up to.
fn check_sizes(rules: &mut Rules) {
    const PART: &str = "store.part-size";
    let config = rules.config;
    let (limits, part) = (&config.limits, config.store.part_size);
    let s3 = config.store.url.is_s3();
    let least = if s3 { S3_PART_MIN } else { PART_MIN };
    rules.require(
        (least..=S3_PART_MAX).contains(&part),
        &[PART, "store.url"],
        format!("a part must be {least} to {S3_PART_MAX} there"),
    );
    rules.require(
        !s3 || limits.segment_size_max.bytes() <= part.bytes().saturating_mul(PARTS_MAX),
        &["limits.segment-size-max", PART],
        format!("a segment on S3 has at most {PARTS_MAX} parts"),
    );
    rules.require(
        !s3 || config.execution.checkpointing.file_merging.max_file_size <= S3_PART_MAX,
        &["execution.checkpointing.file-merging.max-file-size", "store.url"],
        format!("a single PUT to S3 holds at most {S3_PART_MAX}"),
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
        backup.enabled && !rules.config.store.url.is_s3(),
        &[ENABLED, "store.url"],
        "has no effect: a copy on local disk is for a store on S3",
    );
}

fn check_catalog(rules: &mut Rules) {
    let (store, catalog) = (&rules.config.store, &rules.config.catalog);
    rules.require(
        catalog.url != Some(StoreUrl::Memory) || store.url == StoreUrl::Memory,
        &["catalog.url", "store.url"],
        "a catalog in memory forgets data that outlives it",
    );
    for (key, size, least) in [
        ("catalog.cache", catalog.cache, CACHE_MIN),
        ("catalog.unflushed-max", catalog.unflushed_max, UNFLUSHED_MIN),
        ("catalog.log-segment-size", catalog.log_segment_size, LOG_SEGMENT_MIN),
    ] {
        rules.require(size >= least, &[key], format!("must be at least {least}"));
    }
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
