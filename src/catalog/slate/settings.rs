//! The knobs of the journal and what they mean to SlateDB.

use std::sync::Arc;
use std::time::Duration;

use slatedb::Settings;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions,
    SizeTieredCompactionSchedulerOptions,
};
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};

use crate::model::ShardOf;
use crate::runtime::Clock;
use crate::store::Capabilities;

/// Settings of a journal. [`JournalSettings::default`] suits an object store, [`JournalSettings::local`] a local disk.
#[derive(Debug, Clone)]
pub struct JournalSettings {
    /// Stamps what is written. An open raises it to what is on record, so the caller's own stamps are not behind either.
    pub clock: Clock,
    /// Memory for cached tables, in bytes. Default 32 MiB. Records are read once, at open, and that
    /// bypasses the cache, so only indexes and filters need it; without a limit it takes 640 MiB.
    pub block_cache_bytes: u64,
    /// A table of this size is uploaded. Default 16 MiB. Larger means fewer uploads and compactions,
    /// but more log to replay after a crash.
    pub l0_bytes: u64,
    /// Writes wait while more than this is neither in a table on storage nor durable in the log.
    /// Default 64 MiB; at least twice `l0_bytes`, because SlateDB busy-waits if a table that is
    /// still growing fills it alone. Bounds memory, and the log together with `gc_interval`.
    pub unflushed_bytes_max: u64,
    /// Interval at which storage is asked for changes by others and for compactions to do. Default 60 s: each question is a
    /// request, and an idle daemon should cost a handful a minute. A newer owner is noticed by the next durable write, and
    /// by one that writes much within 16 groups. On a local disk 5 s.
    pub poll_interval: Duration,
    /// Who may open it, and for which epoch.
    pub claim: JournalClaim,
    /// Interval at which a compaction that is being done says so, each a request. Default 10 s, on a local disk 1 s. One that
    /// has not said so for three intervals is done anew.
    pub compaction_heartbeat: Duration,
    /// Interval at which superseded files are collected. Default 600 s, on a local disk 10 s, where it bounds the length of
    /// the log.
    pub gc_interval: Duration,
    /// Files younger than this are not collected. Default 300 s. On a local disk 30 s: it protects
    /// against owners that were shut out but do not know it yet, and the lock leaves none.
    pub gc_age_min: Duration,
    /// Time for which tables that a compaction replaced stay. Default 300 s: the scan at open reads them and must be over
    /// by then. On a local disk 120 s, since reading is faster and space is short. SlateDB's own default of 15 minutes only
    /// keeps more garbage.
    pub superseded_tables_kept: Duration,
    /// Number of times that a failed request is repeated, after 0.1 to 2 s each, on top of the store client's own repeats.
    /// Default 30, about 40 s; then the journal closes as `Unavailable`. Without a limit an outage would look like a
    /// hanging daemon.
    pub object_retries_max: u32,
    /// Longest time for which a change of the manifest is tried. Default 60 s.
    pub manifest_timeout: Duration,
    /// How long what can wait does so for others. Object stores only, where each group is a request.
    pub company_wait: CompanyWait,
    /// A log segment of this length is followed by a new one. Default 16 MiB: large enough that
    /// creating files does not matter, small enough to give space back. Local disk and HDFS, where it ends with its block at
    /// the latest.
    pub log_segment_bytes: u64,
    /// A log segment to which nothing was written for so long is closed. Default 5 min: an open one costs the NameNode a lease,
    /// and nobody else sees what is in it; each one that was closed is one more to be collected. HDFS only.
    pub log_idle_close: Duration,
    /// A group that could not be written to the log for so long closes the journal as `Unavailable`. Default 15 min: a NameNode
    /// offers a DataNode that is dead for 10.5 min, and with no more DataNodes than replicas no file can be written meanwhile.
    /// Ending sooner helps nobody, since a start has to write as well, and reads go on until then. HDFS only.
    pub log_patience: Duration,
}

/// Who opens a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JournalClaim {
    /// A daemon by itself, which shuts out whoever had it before. Never one that is a cluster's.
    #[default]
    Alone,
    /// A member of a cluster, to whom the cluster's map gives it: for the epoch after this one exactly.
    Member {
        /// The epoch before, of SlateDB's.
        epoch_before: u64,
        /// The part of the store that it is about.
        shard: ShardOf,
    },
    /// Whoever changes the number of shards, to settle and read what is there: only one that is marked so.
    Reshard {
        /// The generation that takes its place.
        generation: u64,
    },
    /// The same, to make a new one: of nobody else before it is filled.
    Fill {
        /// The part of the store that it is about.
        shard: ShardOf,
        /// Epochs of all those that it takes the place of.
        epochs_before: u64,
    },
}

/// How long batches that can wait do so for others, to share their request.
#[derive(Debug, Clone, Copy)]
pub struct CompanyWait {
    /// After each batch. Default 5 ms.
    pub gap: Duration,
    /// Altogether. Default 20 ms.
    pub most: Duration,
    /// Altogether, if all of them are deletes and fewer than lately. Default 200 ms.
    pub deletes: Duration,
    /// Altogether, if nobody waits for them to become durable. Default 1 s.
    pub lazy: Duration,
}

impl Default for CompanyWait {
    fn default() -> Self {
        let millis = Duration::from_millis;
        Self { gap: millis(5), most: millis(20), deletes: millis(200), lazy: millis(1000) }
    }
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            clock: Clock::System.floored(),
            block_cache_bytes: 32 << 20,
            l0_bytes: 16 << 20,
            unflushed_bytes_max: 64 << 20,
            poll_interval: Duration::from_secs(60),
            claim: JournalClaim::Alone,
            compaction_heartbeat: Duration::from_secs(10),
            gc_interval: Duration::from_secs(600),
            gc_age_min: Duration::from_secs(300),
            superseded_tables_kept: Duration::from_secs(300),
            object_retries_max: 30,
            manifest_timeout: Duration::from_secs(60),
            company_wait: CompanyWait::default(),
            log_segment_bytes: 16 << 20,
            log_idle_close: Duration::from_secs(300),
            log_patience: Duration::from_secs(900),
        }
    }
}

impl JournalSettings {
    /// The defaults for a local disk, where asking costs nothing.
    pub fn local() -> Self {
        Self {
            poll_interval: Duration::from_secs(5),
            compaction_heartbeat: Duration::from_secs(1),
            gc_interval: Duration::from_secs(10),
            gc_age_min: Duration::from_secs(30),
            superseded_tables_kept: Duration::from_secs(120),
            ..Self::default()
        }
    }

    /// The time without a word after which a compaction is taken for given up.
    pub(super) fn compaction_silence(&self) -> Duration {
        3 * self.compaction_heartbeat
    }
}

/// Whether the store can replace an object only if it is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Updates {
    /// Object stores.
    Conditional,
    /// A local disk, HDFS.
    Unconditional,
}

impl Updates {
    pub(super) fn of(store: Capabilities) -> Self {
        if store.conditional_updates { Self::Conditional } else { Self::Unconditional }
    }
}

pub(super) fn block_cache(settings: &JournalSettings) -> Arc<MokaCache> {
    Arc::new(MokaCache::new_with_opts(MokaCacheOptions {
        max_capacity: settings.block_cache_bytes,
        time_to_live: None,
        time_to_idle: None,
    }))
}

pub(super) fn slate_settings(settings: &JournalSettings, updates: Updates) -> Settings {
    // Nobody reads single records, so many tables in level 0 cost nothing until the next open. At the limit writes wait, and
    // the close, too, for compactions, which only begin with a poll; a daemon that is killed again and again lives for none.
    const L0_TABLES_MAX: usize = 256;
    // Each is read ahead of, in memory.
    const COMPACTED_AT_ONCE: usize = 64;
    Settings {
        // A timer would add its interval to every lone commit.
        flush_interval: None,
        manifest_poll_interval: settings.poll_interval,
        manifest_update_timeout: settings.manifest_timeout,
        l0_sst_size_bytes: in_memory(settings.l0_bytes),
        max_unflushed_bytes: in_memory(settings.unflushed_bytes_max),
        l0_max_ssts: L0_TABLES_MAX,
        l0_max_ssts_per_key: L0_TABLES_MAX,
        compactor_options: Some(CompactorOptions {
            poll_interval: settings.poll_interval,
            manifest_update_timeout: settings.manifest_timeout,
            max_concurrent_compactions: 2,
            checkpoint_lifetime: settings.superseded_tables_kept,
            worker_heartbeat_timeout: settings.compaction_silence(),
            object_store_max_retries: Some(settings.object_retries_max),
            scheduler_options: SizeTieredCompactionSchedulerOptions {
                // One round takes all of level 0, unless it is very full, since rounds are far apart.
                max_compaction_sources: COMPACTED_AT_ONCE,
                ..SizeTieredCompactionSchedulerOptions::default()
            }
            .into(),
            worker: Some(CompactionWorkerOptions {
                compactions_poll_interval: settings.poll_interval,
                heartbeat_interval: settings.compaction_heartbeat,
                max_concurrent_compactions: 2,
                max_subcompactions: 1, // the catalog is small, the cores are for segments
                ..CompactionWorkerOptions::default()
            }),
            ..CompactorOptions::default()
        }),
        garbage_collector_options: Some(gc_options(settings, updates)),
        object_store_max_retries: Some(settings.object_retries_max),
        ..Settings::default()
    }
}

pub(super) fn gc_options(settings: &JournalSettings, updates: Updates) -> GarbageCollectorOptions {
    let folder = Some(GarbageCollectorDirectoryOptions {
        interval: Some(settings.gc_interval),
        min_age: settings.gc_age_min,
        dry_run: false,
    });
    GarbageCollectorOptions {
        manifest_options: folder,
        wal_options: folder,
        // Fences are empty objects, one per open. Deleting one could let a stale owner write again.
        wal_fence_options: None,
        compacted_options: folder,
        compactions_options: folder,
        detach_options: None, // there are no clones
        // Without conditional updates SlateDB would collect no manifest at all with these.
        boundary_files_enabled: updates == Updates::Conditional,
        object_store_max_retries: Some(settings.object_retries_max),
        ..GarbageCollectorOptions::default()
    }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
