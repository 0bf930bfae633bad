//! `[execution.checkpointing]`: Flink's own keys, values and defaults.

use super::super::choices::{CheckpointMode, CheckpointStorage, Retention};
use super::super::values::{MemorySize, Span};

section! {
    /// `[execution]`, as in Flink.
    ExecutionConfig {
        /// Flink's checkpointing options.
        checkpointing: CheckpointingConfig = CheckpointingConfig::default(),
    }
}

section! {
    /// `[execution.checkpointing]`: defaults of jobs that the daemon coordinates; a job may bring its own.
    ///
    /// # Source
    /// `CheckpointingOptions` of Flink 2.
    CheckpointingConfig {
        /// Time between two periodic checkpoints, at least 10 ms. Not set: none are triggered.
        interval: Option<Span> = None,
        /// The same while a source reports a backlog: 0 stops them, else not below `interval`. Not set: `interval`.
        interval_during_backlog: Option<Span> = None,
        /// Least time between the end of one checkpoint and the next periodic one, default 0, at most 365 days.
        min_pause: Span = Span::millis(0),
        /// Checkpoints in progress at once, default 1; more needs aligned checkpoints.
        max_concurrent_checkpoints: u32 = 1,
        /// A checkpoint that takes longer is aborted, default 10 min, at least 10 ms.
        timeout: Span = Span::minutes(10),
        /// Consecutive failures a job survives, default 0; 2147483647 is without limit.
        tolerable_failed_checkpoints: u32 = 0,
        /// `EXACTLY_ONCE` (default) or `AT_LEAST_ONCE`.
        mode: CheckpointMode = CheckpointMode::ExactlyOnce,
        /// Completed checkpoints kept per job, default 1. Each more keeps its state alive on storage.
        num_retained: u32 = 1,
        /// What happens to checkpoints when the job ends, default `NO_EXTERNALIZED_CHECKPOINTS` (deleted).
        externalized_checkpoint_retention: Retention = Retention::NoExternalizedCheckpoints,
        /// `cleaner.*`.
        cleaner: CleanerConfig = CleanerConfig::default(),
        /// Whether checkpoints go on after some tasks finished, default true.
        checkpoints_after_tasks_finish: bool = true,
        /// Whether a checkpoint may refer to state of earlier ones, default false.
        incremental: bool = false,
        /// Time a checkpoint starts aligned before it turns unaligned, default 0 (unaligned at once).
        aligned_checkpoint_timeout: Span = Span::millis(0),
        /// `unaligned.*`.
        unaligned: UnalignedConfig = UnalignedConfig::default(),
        /// States up to this size are stored inside the catalog record, default 20 kb, at most 1 mb, 0 is never.
        /// Larger saves requests and grows the catalog.
        data_inline_threshold: MemorySize = MemorySize::kib(20),
        /// First size of a worker's own write buffer, default 4 kb, at least `data-inline-threshold`. No effect here.
        write_buffer_size: MemorySize = MemorySize::kib(4); Elsewhere,
        /// Directory of the checkpoints' metadata. Not set: beside the data.
        dir: Option<String> = None,
        /// Default directory of savepoints. Not set: a savepoint names its own.
        savepoint_dir: Option<String> = None,
        /// Whether each job gets a directory of its own below `dir`, default true.
        create_subdir: bool = true,
        /// Flink's `filesystem` (needs `dir`), or `jobmanager`: the metadata is not published in `dir`. State is kept in
        /// `store.url` either way.
        storage: Option<CheckpointStorage> = None,
        /// `local-backup.*`.
        local_backup: LocalBackupConfig = LocalBackupConfig::default(),
        /// `file-merging.*`.
        file_merging: FileMergingConfig = FileMergingConfig::default(),
    }
}

section! {
    /// `execution.checkpointing.cleaner.*`.
    CleanerConfig {
        /// Whether the files of a checkpoint are deleted in parallel, default true.
        parallel_mode: bool = true,
    }
}

section! {
    /// `execution.checkpointing.unaligned.*`.
    UnalignedConfig {
        /// Whether barriers overtake records, default false. Needs `EXACTLY_ONCE` and one concurrent checkpoint.
        enabled: bool = false,
        /// Unaligned even for jobs with cycles, default false.
        forced: bool = false,
        /// Subtasks that share one file of channel state, default 5; 1 is no sharing.
        max_subtasks_per_channel_state_file: u32 = 5,
        /// `interruptible-timers.*`.
        interruptible_timers: InterruptibleTimersConfig = InterruptibleTimersConfig::default(); Elsewhere,
    }
}

section! {
    /// `execution.checkpointing.unaligned.interruptible-timers.*`.
    InterruptibleTimersConfig {
        /// The worker's business, default false. No effect here.
        enabled: bool = false,
    }
}

section! {
    /// `execution.checkpointing.local-backup.*`.
    LocalBackupConfig {
        /// Whether a copy of what was written to S3 or read from it stays on local disk, default false.
        enabled: bool = false,
        /// Directories of the copies, which share `max-size` evenly. Empty: below the system's temporary directory.
        dirs: Vec<String> = Vec::new(),
        /// Bytes of all copies on disk, default 10 gb; each directory's share holds at least
        /// `file-merging.max-file-size`. At the bound, what was used longest ago goes. Not in Flink.
        max_size: MemorySize = MemorySize::gib(10),
    }
}

section! {
    /// `[execution.checkpointing.file-merging]`: Flink's keys (FLIP-306).
    FileMergingConfig {
        /// Whether segments are merged; **true here, false in Flink**. Off, every segment is a file of its own.
        enabled: bool = true,
        /// Whether one file may hold segments of several checkpoints, default false. Fewer files, but a file
        /// lives as long as its longest-lived segment.
        across_checkpoint_boundary: bool = false,
        /// A file takes no more segments from this size on, default 32 mb. Larger means fewer requests, more memory
        /// and more to copy when reclaiming.
        max_file_size: MemorySize = MemorySize::mib(32),
        /// Physical bytes over live bytes that reclaiming keeps to, default 2.0; below 1 turns it off.
        max_space_amplification: f64 = 2.0,
        /// Whether a writer waits for the lane's one open file, default false: another is opened.
        pool_blocking: bool = false,
        /// Subtasks that share one file, default 4 (Flink documents it and never reads it).
        max_subtasks_per_file: u32 = 4,
    }
}
