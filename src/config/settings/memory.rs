//! Divides `limits.memory`, and checks that everything fits into it.

use super::rules::Rules;
use crate::config::schema::Config;
use crate::config::values::MemorySize;
use crate::model::BLOCK_BYTES;

/// Fewer parts in memory at once and uploads wait for each other.
const PARTS_IN_MEMORY_MIN: u64 = 4;
/// Least memory: pieces of 1 MiB are read and written.
const MEMORY_MIN: MemorySize = MemorySize::mib(2);
/// Two parts are paid for at once, and a payment from the memory budget is less than 4 GiB.
const PART_MAX: MemorySize = MemorySize::gib(1);
/// A segment that streams through arrives in pieces of so many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// The part of `limits.memory` for buffers that wait for the next body.
pub(super) fn kept_buffer_bytes(memory: MemorySize) -> u64 {
    memory.bytes() / 16
}

/// Whether what is on the store is kept on local disk, too.
pub(super) fn has_local_copy(config: &Config) -> bool {
    config.execution.checkpointing.local_backup.enabled && config.store.url.is_service()
}

/// The part of `limits.memory` for bytes that wait for the local copy.
pub(super) fn local_copy_bytes(config: &Config) -> u64 {
    if has_local_copy(config) { config.limits.memory.bytes() / 16 } else { 0 }
}

/// The part of `limits.memory` for what stands in open files on HDFS.
pub(super) fn open_file_bytes(config: &Config) -> u64 {
    let memory = config.limits.memory.bytes();
    config.store.hdfs.open_memory.map_or(memory / 4, |open| open.bytes()).min(memory / 2)
}

/// The bytes of `limits.memory` that the other parts leave for bodies.
pub(super) fn memory_for_bodies(config: &Config) -> u64 {
    let memory = config.limits.memory;
    let open_files = if config.store.url.is_hdfs() { open_file_bytes(config) } else { 0 };
    memory.bytes() - kept_buffer_bytes(memory) - local_copy_bytes(config) - open_files
}

/// The bytes that a segment takes while it streams through: two parts, and a piece on its way to them.
fn streamed_bytes(config: &Config) -> u64 {
    2 * config.store.part_size.bytes() + PIECE_BYTES
}

/// A share of the memory for bodies, but enough for a segment that is read from storage and streams through.
pub(super) fn share_of_memory(config: &Config, share: f64) -> u64 {
    let memory = memory_for_bodies(config);
    ((memory as f64 * share) as u64).max(streamed_bytes(config) + 2 * BLOCK_BYTES).min(memory)
}

/// The part of the memory for bodies that writes leave to reads. In a small one, the least that writes need comes first.
pub(super) fn reads_kept_bytes(config: &Config) -> u64 {
    let memory = memory_for_bodies(config);
    let kept = (memory as f64 * config.limits.read_share) as u64;
    kept.min(memory.saturating_sub(streamed_bytes(config)))
}

/// The part of the memory for bodies that reads leave to writes. In a small one, a block to read comes first.
pub(super) fn writes_kept_bytes(config: &Config) -> u64 {
    let memory = memory_for_bodies(config);
    let kept = (memory as f64 * config.limits.write_share) as u64;
    kept.min(memory.saturating_sub(BLOCK_BYTES))
}

/// The part of the memory for bodies that connections themselves may take: half, but three quarters of what either reads or
/// writes may hold, and a block to read and a segment to write have room beside them.
pub(super) fn connections_bytes(config: &Config) -> u64 {
    let memory = memory_for_bodies(config);
    let left = |may_hold: u64, needed: u64| (may_hold / 4 * 3).min(may_hold.saturating_sub(needed));
    let reads = left(memory - writes_kept_bytes(config), 2 * BLOCK_BYTES);
    let multipart = config.limits.multipart_memory.bytes();
    let writes = left((memory - reads_kept_bytes(config)).saturating_sub(multipart), streamed_bytes(config));
    (memory / 2).min(reads).min(writes)
}

/// Checks that everything fits into the memory budget.
pub(super) fn check(rules: &mut Rules) {
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
        "memory, less a sixteenth (two with a local copy), open files on HDFS and what is kept for reads, must hold at least \
         one part besides the memory of multipart uploads",
    );
    if let Some(open) = config.store.hdfs.open_memory {
        rules.require(
            open.bytes() <= limits.memory.bytes() / 2,
            &["store.hdfs.open-memory", MEMORY],
            "the first must be at most half of the second",
        );
    }
    rules.require(
        !config.store.url.is_hdfs() || open_file_bytes(config) >= 4 * config.merging.group_bytes_max.bytes(),
        &["store.hdfs.open-memory", MEMORY, "merging.group-bytes-max"],
        "the first (if not set, a quarter of memory) must hold four groups",
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
