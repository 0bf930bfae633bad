//! The coordinator's settings, and Flink's rules about them.

use std::time::Duration;

use super::count;
use super::rules::Rules;
use crate::config::choices::{CheckpointMode, CheckpointStorage, Retention};
use crate::config::schema::CheckpointingConfig;
use crate::config::values::{MemorySize, Span};

const INTERVAL_MIN: Span = Span::millis(10);
const MIN_PAUSE_MAX: Span = Span::hours(365 * 24);
pub(super) const INLINE_BYTES_MAX: MemorySize = MemorySize::mib(1);
/// Flink's `Integer.MAX_VALUE`, which stands for "without limit".
const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// Defaults of jobs that the daemon coordinates.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointingSettings {
    /// Between periodic checkpoints, at least `min_pause`. `None`: none are triggered.
    pub interval: Option<Duration>,
    /// The same while a source reports a backlog.
    pub interval_during_backlog: Option<Duration>,
    /// Between the end of one checkpoint and the next periodic one.
    pub min_pause: Duration,
    /// Checkpoints in progress at once, at least 1; exactly 1 if unaligned ones are on.
    pub concurrent_max: usize,
    /// A checkpoint that takes longer is aborted.
    pub timeout: Duration,
    /// Consecutive failures that a job survives. `None`: any number.
    pub tolerable_failures: Option<u32>,
    /// Whether a record may count again after a restore, for the sake of lower latency.
    pub mode: CheckpointMode,
    /// Completed checkpoints kept per job, at least 1.
    pub num_retained: usize,
    /// What happens to a job's checkpoints when it ends.
    pub retention: Retention,
    /// Whether the files of a checkpoint are deleted in parallel.
    pub parallel_cleaning: bool,
    /// Whether checkpoints go on after some tasks finished.
    pub checkpoints_after_tasks_finish: bool,
    /// Whether a checkpoint may refer to state of earlier ones, which writes less and keeps old files longer.
    pub incremental: bool,
    /// `None`: barriers stay aligned.
    pub unaligned: Option<UnalignedSettings>,
    /// Subtasks that share one file of channel state; 1 is no sharing.
    pub channel_state_subtasks_max: usize,
    /// States up to this size are stored inside the catalog record; 0 is never.
    pub inline_bytes_max: u64,
    /// First size of a worker's own write buffer.
    pub write_buffer_bytes: u64,
    /// Where metadata is kept. `None`: beside the data.
    pub dir: Option<String>,
    /// Where savepoints go that name no place of their own. `None`: they must name one.
    pub savepoint_dir: Option<String>,
    /// Whether each job gets a directory of its own below `dir`.
    pub create_subdir: bool,
    /// Flink's choice of checkpoint storage, accepted for its sake: state is kept in the store either way.
    pub storage: Option<CheckpointStorage>,
}

/// Barriers that overtake records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnalignedSettings {
    /// Even for jobs with cycles.
    pub forced: bool,
    /// A checkpoint starts aligned and turns unaligned after this; zero is at once.
    pub aligned_timeout: Duration,
}

impl CheckpointingSettings {
    /// Converts a section that [`check`] passed.
    pub(super) fn from_checked(config: &CheckpointingConfig) -> Self {
        let min_pause = config.min_pause.min(MIN_PAUSE_MAX).duration();
        let paced = |interval: Span| interval.duration().max(min_pause);
        let backlog = config.interval_during_backlog.or(config.interval).filter(|interval| !interval.is_zero());
        Self {
            interval: config.interval.map(paced),
            interval_during_backlog: backlog.map(paced),
            min_pause,
            concurrent_max: count(config.max_concurrent_checkpoints),
            timeout: config.timeout.duration(),
            tolerable_failures: Some(config.tolerable_failed_checkpoints).filter(|limit| *limit != INT_MAX),
            mode: config.mode,
            num_retained: count(config.num_retained),
            retention: config.externalized_checkpoint_retention,
            parallel_cleaning: config.cleaner.parallel_mode,
            checkpoints_after_tasks_finish: config.checkpoints_after_tasks_finish,
            incremental: config.incremental,
            unaligned: unaligned(config),
            channel_state_subtasks_max: count(config.unaligned.max_subtasks_per_channel_state_file),
            inline_bytes_max: config.data_inline_threshold.bytes(),
            write_buffer_bytes: config.write_buffer_size.max(config.data_inline_threshold).bytes(),
            dir: config.dir.clone(),
            savepoint_dir: config.savepoint_dir.clone(),
            create_subdir: config.create_subdir,
            storage: config.storage,
        }
    }
}

fn unaligned(config: &CheckpointingConfig) -> Option<UnalignedSettings> {
    let effective = config.unaligned.enabled && config.mode == CheckpointMode::ExactlyOnce;
    effective.then(|| UnalignedSettings {
        forced: config.unaligned.forced,
        aligned_timeout: config.aligned_checkpoint_timeout.duration(),
    })
}

/// Checks `[execution.checkpointing]`; file merging is checked with the sizes it depends on.
///
/// # Source
/// `CheckpointConfig`, `CheckpointCoordinatorConfiguration` and `CheckpointingOptions` of Flink.
pub(super) fn check(rules: &mut Rules, config: &CheckpointingConfig) {
    check_intervals(rules, config);
    rules.require(
        config.timeout >= INTERVAL_MIN,
        &["execution.checkpointing.timeout"],
        format!("must be at least {INTERVAL_MIN}"),
    );
    for (key, value) in [
        ("execution.checkpointing.max-concurrent-checkpoints", config.max_concurrent_checkpoints),
        ("execution.checkpointing.num-retained", config.num_retained),
        (
            "execution.checkpointing.unaligned.max-subtasks-per-channel-state-file",
            config.unaligned.max_subtasks_per_channel_state_file,
        ),
    ] {
        rules.require(value >= 1, &[key], "must be at least 1");
    }
    rules.require(
        config.tolerable_failed_checkpoints <= INT_MAX,
        &["execution.checkpointing.tolerable-failed-checkpoints"],
        format!("must be at most {INT_MAX}, which is without limit"),
    );
    rules.require(
        config.data_inline_threshold <= INLINE_BYTES_MAX,
        &["execution.checkpointing.data-inline-threshold"],
        format!("must be at most {INLINE_BYTES_MAX}"),
    );
    check_unaligned(rules, config);
    check_directories(rules, config);
}

fn check_intervals(rules: &mut Rules, config: &CheckpointingConfig) {
    const INTERVAL: &str = "execution.checkpointing.interval";
    const BACKLOG: &str = "execution.checkpointing.interval-during-backlog";
    if let Some(interval) = config.interval {
        rules.require(interval >= INTERVAL_MIN, &[INTERVAL], format!("must be at least {INTERVAL_MIN}"));
    }
    let Some(backlog) = config.interval_during_backlog.filter(|interval| !interval.is_zero()) else {
        return;
    };
    rules.require(
        backlog >= INTERVAL_MIN,
        &[BACKLOG],
        format!("must be 0 (no checkpoints during a backlog) or at least {INTERVAL_MIN}"),
    );
    rules.require(
        config.interval.is_some(),
        &[BACKLOG, INTERVAL],
        "an interval during backlog needs an interval outside of it",
    );
    rules.require(
        config.interval.is_none_or(|interval| backlog >= interval),
        &[BACKLOG, INTERVAL],
        "the interval during backlog must be 0 or not below the interval",
    );
}

fn check_unaligned(rules: &mut Rules, config: &CheckpointingConfig) {
    const ENABLED: &str = "execution.checkpointing.unaligned.enabled";
    rules.require(
        !config.unaligned.enabled || config.max_concurrent_checkpoints <= 1,
        &[ENABLED, "execution.checkpointing.max-concurrent-checkpoints"],
        "unaligned checkpoints allow one checkpoint at a time",
    );
    rules.warn_if(
        config.unaligned.enabled && config.mode == CheckpointMode::AtLeastOnce,
        &[ENABLED, "execution.checkpointing.mode"],
        "checkpoints stay aligned, unaligned ones need EXACTLY_ONCE",
    );
    rules.warn_if(
        config.unaligned.forced && !config.unaligned.enabled,
        &["execution.checkpointing.unaligned.forced", ENABLED],
        "has no effect while unaligned checkpoints are off",
    );
}

fn check_directories(rules: &mut Rules, config: &CheckpointingConfig) {
    for (key, dir) in
        [("execution.checkpointing.dir", &config.dir), ("execution.checkpointing.savepoint-dir", &config.savepoint_dir)]
    {
        rules.require(dir.as_deref() != Some(""), &[key], "must not be empty");
    }
    rules.require(
        config.storage != Some(CheckpointStorage::FileSystem) || config.dir.is_some(),
        &["execution.checkpointing.storage", "execution.checkpointing.dir"],
        "file system storage needs a directory",
    );
}
