//! Flink's rules about checkpoints. They hold for the defaults of the configuration and for what a job brings itself.

use super::jobs::{ChangedSettings, JobCheckpointing, JobSettingError, PublishDir};
use super::rules::Rules;
use crate::config::choices::{CheckpointMode, CheckpointStorage, Retention};
use crate::config::schema::CheckpointingConfig;
use crate::config::values::{MemorySize, Span};

const INTERVAL_MIN: Span = Span::millis(10);
pub(super) const INLINE_BYTES_MAX: MemorySize = MemorySize::mib(1);
/// Flink's `Integer.MAX_VALUE`, which stands for "without limit".
const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// The settings of `[execution.checkpointing]`.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct CheckpointingSettings {
    /// The fate of a job's checkpoints when it ends.
    pub(crate) retention: Retention,
    /// Of jobs with a coordinator, what they do not say themselves.
    pub(crate) jobs: JobCheckpointing,
    /// States up to this size are stored inside the catalog record; 0 is never.
    pub(crate) inline_bytes_max: u64,
}

impl CheckpointingSettings {
    /// Converts a section that [`check`] passed.
    pub(super) fn from_checked(config: &CheckpointingConfig) -> Self {
        Self {
            retention: config.externalized_checkpoint_retention,
            jobs: JobCheckpointing::from_checked(config),
            inline_bytes_max: config.data_inline_threshold.bytes(),
        }
    }
}

impl JobCheckpointing {
    /// The same with other values for some keys, as texts.
    ///
    /// # Errors
    /// [`JobSettingError`] for the first key that is wrong, or for rules between them.
    pub fn with<'a>(&self, texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, JobSettingError> {
        let ChangedSettings { config, heartbeat_interval, heartbeat_timeout } = self.changed(texts)?;
        let mut rules = Rules::about(&config);
        check(&mut rules);
        rules.finish().map_err(JobSettingError::Rules)?;
        let mut checked = Self::from_checked(&config.execution.checkpointing);
        (checked.heartbeat_interval, checked.heartbeat_timeout) = (heartbeat_interval, heartbeat_timeout);
        Ok(checked)
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
    rules.warn_if(
        config.unaligned.enabled && config.mode == CheckpointMode::AtLeastOnce,
        &["execution.checkpointing.unaligned.enabled", "execution.checkpointing.mode"],
        "checkpoints are aligned: unaligned ones need EXACTLY_ONCE",
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
        let of_the_door = |dir: &String| PublishDir::parse(dir).is_some();
        rules.require(dir.as_ref().is_none_or(of_the_door), &[key], PublishDir::EXPECTED);
    }
    rules.require(
        config.storage != Some(CheckpointStorage::FileSystem) || config.dir.is_some(),
        &["execution.checkpointing.storage", "execution.checkpointing.dir"],
        "file system storage needs a directory",
    );
}
