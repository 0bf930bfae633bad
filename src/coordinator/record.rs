//! What a coordinator has to remember beside checkpoints, version 1: JSON in the catalog, one record a job.
//!
//! Checkpoints, what they use and which of them completed are the catalog's. Acknowledgements of one in progress are in
//! memory alone: with another owner it is given up, as in Flink.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::topology::{OperatorSpec, TaskId, Topology};
use crate::config::{JobCheckpointing, JobSettingError};
use crate::model::CheckpointId;

const VERSION: u32 = 1;
/// No coordinator comes to a number of a checkpoint from here on.
pub const NUMBERS_MAX: u64 = 1 << 62;

/// The number behind those that are used. Workers may have named any before there was a coordinator: one that no coordinator comes to
/// is none.
pub fn behind(used: impl Iterator<Item = u64>) -> u64 {
    used.filter(|number| *number < NUMBERS_MAX).max().map_or(1, |number| number + 1)
}

/// The state that somebody chose for the job to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenStart {
    /// The job whose checkpoint it is.
    pub job: String,
    /// The checkpoint.
    pub checkpoint: u64,
    /// Whether the job has taken it over.
    pub claimed: bool,
    /// It holds until a checkpoint from this number on has completed.
    pub until: u64,
    /// The job that it was claimed from, which is known by the checkpoint alone, and by that only until it is subsumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_from: Option<String>,
    /// Bucket and key of the published metadata that it was named by, if it was claimed: with the checkpoint that goes, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<(String, String)>,
}

/// How a job stops with a savepoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppingJob {
    /// Whether its sources have emitted their last watermark.
    pub drain: bool,
    /// Where the savepoint is; not known before that is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A checkpoint, by the job that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointOfJob {
    /// The job.
    pub job: String,
    /// The checkpoint.
    pub checkpoint: u64,
}

/// What is remembered of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedJob {
    /// The version of this record.
    pub version: u32,
    /// The settings, all of them.
    pub settings: BTreeMap<String, String>,
    /// Those that somebody has said, as they are kept: the others are what the daemon had at that time. `None`: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<BTreeMap<String, String>>,
    /// The operators.
    pub operators: Vec<OperatorSpec>,
    /// Whether it has cycles.
    pub iterative: bool,
    /// The attempt.
    pub attempt: u64,
    /// The one that it began with: no job of the same name before had it, as far as chance goes.
    #[serde(default = "one")]
    pub first_attempt: u64,
    /// Checkpoints below this were there before the job was created: it does not begin from them unless somebody says so, and does not
    /// free them.
    #[serde(default)]
    pub first_checkpoint: u64,
    /// What its tasks begin from; `None`: from nothing.
    pub from: Option<CheckpointOfJob>,
    /// Whether all tasks have run in it.
    pub ran: bool,
    /// Tasks that are over in it, by operator.
    pub finished: BTreeMap<usize, BTreeSet<u32>>,
    /// Numbers of checkpoints below this may have been used.
    pub ids_before: u64,
    /// The state that somebody chose.
    pub start: Option<ChosenStart>,
    /// The savepoint that the job stops with. Known before that can complete: what its tasks have committed then must not be
    /// done once more, whoever the owner is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_savepoint: Option<u64>,
    /// How the job stops with that, once it is complete, until all begin anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<StoppingJob>,
    /// The operators whose last report is that they have a backlog.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub backlog: BTreeSet<usize>,
}

/// Settings as they were said, as they are kept.
pub fn said_of(rules: &JobCheckpointing, said: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    rules.texts().into_iter().filter(|(key, _)| said.contains_key(key)).collect()
}

/// The first attempt of jobs whose record does not tell it.
fn one() -> u64 {
    1
}

/// Why a record was not understood.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableJob {
    /// It is not what it should be.
    #[error("what its coordinator remembers is damaged")]
    Damaged(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("its coordinator wrote version {0}, this daemon reads up to {VERSION}")]
    Version(u32),
    /// Its settings are not taken any more.
    #[error("its settings are not understood")]
    Settings(#[from] JobSettingError),
}

impl RememberedJob {
    /// Of a job that is new, with the settings that were said, and the first attempt and checkpoint that are its own.
    pub fn new(
        (rules, said): (&JobCheckpointing, &BTreeMap<String, String>),
        topology: &Topology,
        iterative: bool,
        first: (u64, u64),
    ) -> Self {
        let (first_attempt, first_checkpoint) = first;
        Self {
            version: VERSION,
            settings: rules.texts(),
            said: Some(said_of(rules, said)),
            operators: topology.operators().to_vec(),
            iterative,
            attempt: first_attempt,
            first_attempt,
            first_checkpoint,
            from: None,
            ran: false,
            finished: BTreeMap::new(),
            ids_before: 1,
            start: None,
            stop_savepoint: None,
            stopping: None,
            backlog: BTreeSet::new(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`UnreadableJob`].
    pub fn read(text: &str) -> Result<Self, UnreadableJob> {
        #[derive(Deserialize)]
        struct RecordVersion {
            version: u32,
        }
        let RecordVersion { version } = serde_json::from_str(text)?;
        if version > VERSION {
            return Err(UnreadableJob::Version(version));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The first checkpoint that may be the job's own: completed ones before it are of a job of this name that has ended, and kept them.
    pub fn first(&self) -> CheckpointId {
        CheckpointId(self.first_checkpoint)
    }

    /// As it is kept.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("plain values always encode")
    }

    /// Its settings, by the names that `defaults` have.
    ///
    /// # Errors
    /// [`UnreadableJob::Settings`].
    pub fn rules(&self, defaults: &JobCheckpointing) -> Result<JobCheckpointing, UnreadableJob> {
        Ok(defaults.with(self.settings.iter().map(|(key, text)| (&**key, &**text)))?)
    }

    /// Tasks that are over.
    pub fn finished_tasks(&self) -> BTreeSet<TaskId> {
        let of = |(operator, subtasks): (&usize, &BTreeSet<u32>)| {
            let operator = *operator;
            subtasks.iter().map(move |subtask| TaskId { operator, subtask: *subtask }).collect::<Vec<_>>()
        };
        self.finished.iter().flat_map(of).collect()
    }

    /// Takes note of the tasks that are over.
    pub fn set_finished(&mut self, tasks: &BTreeSet<TaskId>) {
        self.finished.clear();
        for task in tasks {
            self.finished.entry(task.operator).or_default().insert(task.subtask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};

    /// A stored sample: a change here is a change of the format.
    #[test]
    fn version_1_of_the_record_reads_as_it_did() {
        let text = concat!(
            r#"{"version":1,"settings":{"execution.checkpointing.interval":"1 s"},"operators":[{"id":"a","parallelism":2,"#,
            r#""max_parallelism":128,"max_parallelism_given":true,"inputs":[{"from":"b","pattern":"pointwise"}],"#,
            r#""union_list_state":true,"two_phase_commit":false,"unaligned":true}],"iterative":false,"attempt":417003,"first_attempt":417001,"first_checkpoint":6,"from":{"job":"j","checkpoint":7},"ran":true,"#,
            r#""finished":{"0":[1]},"ids_before":65,"start":{"job":"j","checkpoint":7,"claimed":false,"until":9}}"#
        );
        let read = RememberedJob::read(text).unwrap();

        assert_eq!(read.write(), text);
        assert_eq!(read.finished_tasks(), [TaskId { operator: 0, subtask: 1 }].into());
        let defaults = Settings::try_from(&Config::default()).unwrap().checkpointing.jobs;
        assert_eq!(read.rules(&defaults).unwrap().interval, Some(std::time::Duration::from_secs(1)));
        let older = RememberedJob::read(&text.replace(r#""first_attempt":417001,"first_checkpoint":6,"#, "")).unwrap();
        assert_eq!(older, RememberedJob { first_attempt: 1, first_checkpoint: 0, ..read });
        assert!(matches!(RememberedJob::read(r#"{"version":2}"#), Err(UnreadableJob::Version(2))));
    }

    /// What has come since is there only if it says something, and daemons before that pass over it.
    #[test]
    fn version_1_of_the_record_tells_what_was_claimed_how_the_job_stops_and_who_has_a_backlog() {
        let text = concat!(
            r#"{"version":1,"settings":{},"said":{},"operators":[],"iterative":false,"attempt":1,"first_attempt":1,"#,
            r#""first_checkpoint":1,"from":null,"ran":false,"finished":{},"ids_before":1,"start":{"job":"j","checkpoint":7,"#,
            r#""claimed":true,"until":8,"claimed_from":"from","published":["bucket","sp/metadata.json"]},"stop_savepoint":4,"#,
            r#""stopping":{"drain":true,"path":"s3://bucket/sp/savepoint-j-1"},"backlog":[2]}"#
        );
        let read = RememberedJob::read(text).unwrap();

        assert_eq!(read.write(), text);
        let published = Some(("bucket".to_owned(), "sp/metadata.json".to_owned()));
        let claimed_from = Some("from".to_owned());
        let start = ChosenStart { job: "j".into(), checkpoint: 7, claimed: true, until: 8, claimed_from, published };
        assert_eq!((read.start, read.stop_savepoint), (Some(start), Some(4)));
        let path = Some("s3://bucket/sp/savepoint-j-1".to_owned());
        assert_eq!((read.stopping, read.backlog), (Some(StoppingJob { drain: true, path }), [2].into()));
    }
}
