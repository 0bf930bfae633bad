//! Flink's rules about checkpoints. Most of their keys have no effect yet; they are checked all the same, so that a
//! configuration which is good now is good then.

use super::rules::Rules;
use crate::config::choices::{CheckpointStorage, Retention};
use crate::config::schema::CheckpointingConfig;
use crate::config::values::{MemorySize, Span};

const INTERVAL_MIN: Span = Span::millis(10);
pub(super) const INLINE_BYTES_MAX: MemorySize = MemorySize::mib(1);
/// Flink's `Integer.MAX_VALUE`, which stands for "without limit".
const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// The settings of `[execution.checkpointing]` that are in effect.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct CheckpointingSettings {
    /// The fate of a job's checkpoints when it ends.
    pub(crate) retention: Retention,
    /// States up to this size are stored inside the catalog record; 0 is never.
    pub(crate) inline_bytes_max: u64,
}

impl CheckpointingSettings {
    /// Converts a section that [`check`] passed.
    pub(super) fn from_checked(config: &CheckpointingConfig) -> Self {
        Self {
            retention: config.externalized_checkpoint_retention,
            inline_bytes_max: config.data_inline_threshold.bytes(),
        }
    }
}

/// Checks `[execution.checkpointing]`; file merging is checked with the sizes it depends on.
///
/// # Source
/// `CheckpointConfig`, `CheckpointCoordinatorConfiguration` and `CheckpointingOptions` of Flink.
pub(super) fn check(rules: &mut Rules) {
    let config = &rules.config.execution.checkpointing;
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
    rules.require(
        !config.unaligned.enabled || config.max_concurrent_checkpoints <= 1,
        &["execution.checkpointing.unaligned.enabled", "execution.checkpointing.max-concurrent-checkpoints"],
        "unaligned checkpoints allow one checkpoint at a time",
    );
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
