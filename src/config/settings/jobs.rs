//! [`JobCheckpointing`]: how the checkpoints of one job go. The daemon's configuration has the defaults; a job may bring some
//! of the keys itself, in Flink's names and grammar.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::choices::{CheckpointMode, CheckpointStorage, Retention};
use crate::config::error::ConfigErrors;
use crate::config::keys::ConfigKeys;
use crate::config::schema::{CheckpointingConfig, Config, ConfigEntry, Effect, ExecutionConfig, Node};
use crate::config::values::{InvalidLiteralCause, Literal, Span};

const PREFIX: &str = "execution.checkpointing";
/// Flink's keys for heartbeats. They are the job's alone.
const HEARTBEAT_INTERVAL: &str = "heartbeat.interval";
const HEARTBEAT_TIMEOUT: &str = "heartbeat.timeout";
/// Of the section, those that are about the daemon's files and not about the checkpoints of one job.
const OF_THE_DAEMON: [&str; 3] = ["data-inline-threshold", "file-merging.", "local-backup."];
/// Flink's longest pause: a year.
const PAUSE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// How the checkpoints of one job go: Flink's options, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct JobCheckpointing {
    /// Between two periodic checkpoints. `None`: there are none.
    pub interval: Option<Duration>,
    /// The same while a source reports a backlog; zero is none at all, `None` as `interval`.
    pub interval_during_backlog: Option<Duration>,
    /// From the end of a checkpoint to the next periodic one, at most a year.
    pub min_pause: Duration,
    /// Checkpoints in progress at once, at least 1.
    pub concurrent_max: usize,
    /// A checkpoint that takes longer is aborted.
    pub timeout: Duration,
    /// Consecutive failures that a job survives. `None`: any number.
    pub failures_tolerated: Option<u32>,
    /// What a restore guarantees.
    pub mode: CheckpointMode,
    /// Completed checkpoints that are kept, at least 1.
    pub retained: usize,
    /// The fate of the checkpoints when the job ends.
    pub retention: Retention,
    /// Whether checkpoints are cleaned beside each other.
    pub cleans_in_parallel: bool,
    /// Whether there are checkpoints after some tasks have finished.
    pub after_tasks_finish: bool,
    /// Whether a checkpoint may use segments of earlier ones.
    pub incremental: bool,
    /// Time for which a checkpoint stays aligned before it turns unaligned.
    pub aligned_timeout: Duration,
    /// Whether barriers overtake records; never with `AT_LEAST_ONCE`.
    pub unaligned: bool,
    /// The same for jobs with cycles.
    pub unaligned_forced: bool,
    /// Subtasks that share a file of channel state, at least 1.
    pub channel_subtasks_per_file_max: u32,
    /// Where the metadata is published beside the job. `None`: nowhere.
    pub dir: Option<PublishDir>,
    /// Where savepoints go that name no place. `None`: they must.
    pub savepoint_dir: Option<PublishDir>,
    /// Whether the job has a folder of its own in `dir`.
    pub create_subdir: bool,
    /// With Flink's storage in the job manager nothing is published.
    pub storage: Option<CheckpointStorage>,
    /// Between two reports of a worker.
    pub heartbeat_interval: Duration,
    /// A task of which nothing is heard for so long is lost.
    pub heartbeat_timeout: Duration,
    /// What it was made from, without the keys that have no effect.
    source: CheckpointingConfig,
}

/// Settings of a job that were changed and are still to be checked.
pub(super) struct ChangedSettings {
    pub config: Config,
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
}

/// A folder of the S3 door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishDir {
    /// Its bucket.
    pub bucket: String,
    /// The keys in it begin with this, which is empty or ends with a slash.
    pub prefix: String,
}

impl PublishDir {
    /// What is understood, as the end of a sentence.
    pub const EXPECTED: &str = "must be s3://bucket/prefix, a folder of the S3 door without empty parts, `.` and `..`";

    /// Reads `s3://bucket/prefix`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (bucket, prefix) = text.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, "")))?;
        let prefix = prefix.trim_end_matches('/');
        // Clients that take it for a path would look elsewhere.
        let plain = prefix.is_empty() || prefix.split('/').all(|part| !["", ".", ".."].contains(&part));
        let good = !bucket.is_empty() && plain && !text.chars().any(char::is_control);
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        good.then(|| Self { bucket: bucket.to_owned(), prefix })
    }
}

/// Why settings of a job were not taken.
#[derive(Debug, thiserror::Error)]
pub enum JobSettingError {
    /// There is no such key.
    #[error("unknown key `{key}`, the nearest known key is `{nearest}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key that looks most like it.
        nearest: String,
    },
    /// The key is about the files of all jobs.
    #[error("`{0}` is about the files of all jobs: set it in the configuration of the daemon")]
    OfTheDaemon(String),
    /// The key does not take the value.
    #[error("{key} = {value:?}: {reason}")]
    WrongValue {
        /// The key.
        key: String,
        /// The value as it was given.
        value: String,
        /// The values that it takes.
        reason: String,
    },
    /// Values do not go together.
    #[error("{0}")]
    Rules(ConfigErrors),
}

impl JobCheckpointing {
    /// Converts a section that was checked.
    pub(super) fn from_checked(config: &CheckpointingConfig) -> Self {
        let default = CheckpointingConfig::default();
        let source = CheckpointingConfig {
            data_inline_threshold: default.data_inline_threshold,
            write_buffer_size: default.write_buffer_size,
            local_backup: default.local_backup,
            file_merging: default.file_merging,
            unaligned: crate::config::schema::UnalignedConfig {
                interruptible_timers: default.unaligned.interruptible_timers,
                ..config.unaligned.clone()
            },
            ..config.clone()
        };
        Self {
            interval: config.interval.map(Span::duration),
            interval_during_backlog: config.interval_during_backlog.map(Span::duration),
            min_pause: config.min_pause.duration().min(PAUSE_MAX),
            concurrent_max: config.max_concurrent_checkpoints as usize,
            timeout: config.timeout.duration(),
            failures_tolerated: Some(config.tolerable_failed_checkpoints).filter(|count| *count < INT_MAX),
            mode: config.mode,
            retained: config.num_retained as usize,
            retention: config.externalized_checkpoint_retention,
            cleans_in_parallel: config.cleaner.parallel_mode,
            after_tasks_finish: config.checkpoints_after_tasks_finish,
            incremental: config.incremental,
            aligned_timeout: config.aligned_checkpoint_timeout.duration(),
            unaligned: config.unaligned.enabled && config.mode == CheckpointMode::ExactlyOnce,
            unaligned_forced: config.unaligned.forced,
            channel_subtasks_per_file_max: config.unaligned.max_subtasks_per_channel_state_file,
            dir: config.dir.as_deref().and_then(PublishDir::parse),
            savepoint_dir: config.savepoint_dir.as_deref().and_then(PublishDir::parse),
            create_subdir: config.create_subdir,
            storage: config.storage,
            heartbeat_interval: Duration::from_secs(10),
            heartbeat_timeout: Duration::from_secs(50),
            source,
        }
    }

    /// What it was made from, with other values for some keys, as texts; rules between them are not checked.
    pub(super) fn changed<'a>(
        &self,
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<ChangedSettings, JobSettingError> {
        let mut execution = ExecutionConfig { checkpointing: self.source.clone() };
        let (mut interval, mut timeout) = (self.heartbeat_interval, self.heartbeat_timeout);
        for (key, text) in texts {
            let span = || text.parse::<Span>().map_err(|error| wrong(key, text, &error.to_string()));
            match key {
                HEARTBEAT_INTERVAL => interval = span()?.duration(),
                HEARTBEAT_TIMEOUT => timeout = span()?.duration(),
                _ => set(&mut execution, key, text)?,
            }
        }
        if interval.is_zero() || timeout <= interval {
            let text = format!("{} ms", timeout.as_millis());
            return Err(wrong(HEARTBEAT_TIMEOUT, &text, "must be longer than heartbeat.interval, which is above 0"));
        }
        let config = Config { execution, ..Config::default() };
        Ok(ChangedSettings { config, heartbeat_interval: interval, heartbeat_timeout: timeout })
    }

    /// Every key of a job with its value, as [`with`](Self::with) takes them.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let span = |duration: Duration| format!("{} ms", duration.as_millis());
        let heartbeats = [(HEARTBEAT_INTERVAL, self.heartbeat_interval), (HEARTBEAT_TIMEOUT, self.heartbeat_timeout)];
        let heartbeats = heartbeats.map(|(key, duration)| (key.to_owned(), span(duration)));
        let of_job = entries(&self.source).into_iter().filter(|entry| !is_of_the_daemon(&entry.key));
        let texts = of_job.filter_map(|entry| match entry.value {
            Literal::Unset => None,
            Literal::Text(text) => Some((entry.key, text)),
            other => Some((entry.key, other.to_string())),
        });
        texts.chain(heartbeats).collect()
    }
}

fn entries(config: &CheckpointingConfig) -> Vec<ConfigEntry> {
    let mut entries = Vec::new();
    config.collect(PREFIX, Effect::Now, &mut entries);
    entries
}

fn is_of_the_daemon(key: &str) -> bool {
    let below = key.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.'));
    below.is_some_and(|below| OF_THE_DAEMON.iter().any(|own| below.starts_with(own)))
}

fn set(execution: &mut ExecutionConfig, key: &str, text: &str) -> Result<(), JobSettingError> {
    if is_of_the_daemon(key) {
        return Err(JobSettingError::OfTheDaemon(key.to_owned()));
    }
    let Some(below) = key.strip_prefix("execution.") else { return Err(unknown(key)) };
    let mut refusal = None;
    // Flink reads `TRUE` as it reads `true`.
    let yes_or_no = text.trim().to_ascii_lowercase().parse().ok().map(Literal::Bool);
    for reading in Literal::readings(text).into_iter().chain(yes_or_no) {
        match execution.set(below, &reading) {
            None => return Err(unknown(key)),
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => refusal = refusal.or(Some(why)),
        }
    }
    let reason = match refusal.map(|refusal| refusal.cause) {
        Some(InvalidLiteralCause::Value(error)) => error.to_string(),
        _ => "is no value of this key".to_owned(),
    };
    Err(wrong(key, text, &reason))
}

fn unknown(key: &str) -> JobSettingError {
    let names = entries(&CheckpointingConfig::default()).into_iter().map(|entry| entry.key);
    let names = names.filter(|name| !is_of_the_daemon(name));
    let known = ConfigKeys::of(names.chain([HEARTBEAT_INTERVAL.to_owned(), HEARTBEAT_TIMEOUT.to_owned()]));
    JobSettingError::UnknownKey { key: key.to_owned(), nearest: known.nearest(key) }
}

fn wrong(key: &str, value: &str, reason: &str) -> JobSettingError {
    JobSettingError::WrongValue { key: key.to_owned(), value: value.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Settings;

    fn defaults() -> JobCheckpointing {
        Settings::try_from(&Config::default()).unwrap().checkpointing.jobs
    }

    #[test]
    fn a_job_brings_some_keys_and_keeps_the_rest() {
        let job = defaults()
            .with([
                ("execution.checkpointing.interval", "1 s"),
                ("execution.checkpointing.num-retained", "3"),
                ("execution.checkpointing.mode", "at_least_once"),
                ("execution.checkpointing.incremental", "TRUE"),
                ("execution.checkpointing.create-subdir", "False"),
                ("heartbeat.timeout", "20 s"),
            ])
            .unwrap();

        assert_eq!((job.interval, job.retained), (Some(Duration::from_secs(1)), 3));
        assert_eq!((job.mode, job.timeout), (CheckpointMode::AtLeastOnce, Duration::from_secs(600)));
        assert_eq!((job.incremental, job.create_subdir), (true, false));
        assert_eq!(job.heartbeat_timeout, Duration::from_secs(20));
    }

    #[test]
    fn what_a_job_has_is_told_in_full_and_read_as_the_same() {
        let job = defaults()
            .with([("execution.checkpointing.interval", "90 s"), ("execution.checkpointing.dir", "s3://b/c")])
            .unwrap();

        let texts = job.texts();
        let again = defaults().with(texts.iter().map(|(key, text)| (&**key, &**text))).unwrap();

        assert_eq!(again, job);
        assert_eq!(texts["execution.checkpointing.interval"], "90 s");
        assert!(texts.keys().all(|key| !key.contains("file-merging") && !key.contains("local-backup")), "{texts:?}");
    }

    #[test]
    fn wrong_settings_of_a_job_are_named() {
        let refused = |key, text| defaults().with([(key, text)]).unwrap_err().to_string();

        let misspelt = refused("execution.checkpointing.intervall", "1 s");
        assert!(misspelt.contains("the nearest known key is `execution.checkpointing.interval`"), "{misspelt}");
        let half = refused("min-pause", "1 s");
        assert!(half.contains("`execution.checkpointing.min-pause`"), "{half}");
        let below = refused("execution.checkpointing.interval", "9 ms");
        assert!(below.contains("must be at least 10 ms"), "{below}");
        let unit = refused("execution.checkpointing.timeout", "5 parsecs");
        assert!(unit.contains("parsecs"), "{unit}");
        let file = refused("execution.checkpointing.file-merging.max-file-size", "1 mb");
        assert!(file.contains("configuration of the daemon"), "{file}");
        let beats = refused("heartbeat.timeout", "1 s");
        assert!(beats.contains("longer than heartbeat.interval"), "{beats}");
    }
}
