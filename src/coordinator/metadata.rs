//! The metadata of a checkpoint, version 1: one JSON object that tells all that a restore needs. `docs/coordinator.md` describes it
//! field by field.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::ack::{StateEntry, StateKind};
use super::assign::RestoredOperator;
use super::topology::{OperatorSpec, TaskId, Topology};
use crate::model::{Handle, Label, SegmentId};

/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
/// The name of the segment with it, beside those of the tasks.
const SEGMENT_NAME: &str = "_esker_metadata";

/// The name of the segment that has the metadata.
pub fn segment_name() -> Option<Label> {
    Label::parse("name", SEGMENT_NAME).ok()
}

/// The metadata of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMetadata {
    /// Its version.
    pub esker_checkpoint: u32,
    /// The job.
    pub job: String,
    /// Its number.
    pub checkpoint: u64,
    /// `checkpoint` or `savepoint`.
    pub kind: String,
    /// The attempt whose tasks took it.
    pub attempt: u64,
    /// When it was triggered, in milliseconds since 1970.
    pub triggered_ms: u64,
    /// When all had acknowledged.
    pub completed_ms: u64,
    /// Whether barriers might overtake records.
    pub unaligned: bool,
    /// Bucket and key of the copy that goes with the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<(String, String)>,
    /// The operators of the job.
    pub operators: Vec<OperatorMetadata>,
}

/// An operator and the state of its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatorMetadata {
    /// The operator.
    #[serde(flatten)]
    pub spec: OperatorSpec,
    /// Its tasks in order.
    pub tasks: Vec<TaskMetadata>,
}

/// A task and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskMetadata {
    /// Its index.
    pub subtask: u32,
    /// Whether it was finished.
    pub finished: bool,
    /// Its states.
    pub state: Vec<StateMetadata>,
}

/// A state of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateMetadata {
    /// How it is given out.
    pub kind: StateKind,
    /// Its name.
    pub name: String,
    /// Its segment.
    pub segment: String,
    /// The same with the place where the segment was.
    pub handle: String,
    /// `shared` or `exclusive`.
    pub scope: String,
    /// Bytes of the segment.
    pub len: u64,
    /// The key groups of keyed state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_groups: Option<Range<u32>>,
    /// First bytes of its elements.
    pub offsets: Arc<[u64]>,
    /// The end of the last one.
    pub end: u64,
    /// The bytes, in Base64, if they are in no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// What is known of a segment that a state is in.
#[derive(Debug, Clone)]
pub struct StoredState {
    /// Where it is.
    pub handle: Handle,
    /// Its scope.
    pub scope: String,
    /// Its bytes, if they are in no file.
    pub data: Option<Vec<u8>>,
}

/// Why metadata could not be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableCheckpoint {
    /// It is not what it should be.
    #[error("the metadata is damaged")]
    Damaged(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("the metadata has version {0}, this daemon reads up to {VERSION}")]
    Version(u32),
    /// A segment that it names is none.
    #[error("the metadata names {0:?}, which is no segment")]
    Segment(String),
}

/// The checkpoint that metadata is of. Jobs that had one name after the other may have had several of one number: they differ in the
/// rest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MetadataSubject {
    /// The job.
    pub job: String,
    /// Its number.
    pub checkpoint: u64,
    attempt: u64,
    triggered_ms: u64,
    completed_ms: u64,
}

impl MetadataSubject {
    /// The checkpoint that stored metadata is of. Nothing else of it is taken apart.
    ///
    /// # Errors
    /// [`UnreadableCheckpoint`].
    pub fn of(bytes: &[u8]) -> Result<Self, UnreadableCheckpoint> {
        check_version(bytes)?;
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Whether other metadata is of this checkpoint.
    pub fn is_that_of(&self, metadata: &CheckpointMetadata) -> bool {
        let CheckpointMetadata { job, checkpoint, attempt, triggered_ms, completed_ms, .. } = metadata;
        (&self.job, self.checkpoint, self.attempt) == (job, *checkpoint, *attempt)
            && (self.triggered_ms, self.completed_ms) == (*triggered_ms, *completed_ms)
    }
}

fn check_version(bytes: &[u8]) -> Result<(), UnreadableCheckpoint> {
    #[derive(Deserialize)]
    struct MetadataVersion {
        esker_checkpoint: u32,
    }
    let MetadataVersion { esker_checkpoint } = serde_json::from_slice(bytes)?;
    if esker_checkpoint > VERSION { Err(UnreadableCheckpoint::Version(esker_checkpoint)) } else { Ok(()) }
}

impl CheckpointMetadata {
    /// Takes stored metadata apart.
    ///
    /// # Errors
    /// [`UnreadableCheckpoint`].
    pub fn read(bytes: &[u8]) -> Result<Self, UnreadableCheckpoint> {
        check_version(bytes)?;
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain values always encode")
    }

    /// The operators with their states, as they are given out.
    ///
    /// # Errors
    /// [`UnreadableCheckpoint::Segment`].
    pub fn operators(&self) -> Result<Vec<RestoredOperator>, UnreadableCheckpoint> {
        let entry = |state: &StateMetadata| {
            let segment = state.segment.parse().map_err(|_| UnreadableCheckpoint::Segment(state.segment.clone()))?;
            let key_groups = state.key_groups.clone().unwrap_or_default();
            let (kind, name, offsets) = (state.kind, state.name.clone(), Arc::clone(&state.offsets));
            Ok::<_, UnreadableCheckpoint>(StateEntry { kind, name, segment, offsets, end: state.end, key_groups })
        };
        let task = |task: &TaskMetadata| Ok((task.finished, task.state.iter().map(entry).collect::<Result<_, _>>()?));
        let operator = |operator: &OperatorMetadata| {
            let tasks = operator.tasks.iter().map(task).collect::<Result<_, UnreadableCheckpoint>>()?;
            Ok(RestoredOperator { spec: operator.spec.clone(), tasks })
        };
        self.operators.iter().map(operator).collect()
    }

    /// The segments that it names, with their states.
    pub fn states(&self) -> impl Iterator<Item = &StateMetadata> {
        self.operators.iter().flat_map(|operator| &operator.tasks).flat_map(|task| &task.state)
    }
}

/// The operators of a checkpoint: what its tasks acknowledged, each state with its segment.
pub fn operators(
    topology: &Topology,
    snapshots: &BTreeMap<TaskId, (bool, Vec<StateEntry>)>,
    segments: &BTreeMap<SegmentId, StoredState>,
) -> Vec<OperatorMetadata> {
    let state = |entry: &StateEntry| {
        let stored = segments.get(&entry.segment)?;
        Some(StateMetadata {
            kind: entry.kind,
            name: entry.name.clone(),
            segment: entry.segment.to_string(),
            handle: stored.handle.to_string(),
            scope: stored.scope.clone(),
            len: stored.handle.location.len(),
            key_groups: (entry.kind == StateKind::Keyed).then(|| entry.key_groups.clone()),
            offsets: Arc::clone(&entry.offsets),
            end: entry.end,
            data: stored.data.as_ref().map(|data| STANDARD.encode(data)),
        })
    };
    let task = |operator: usize, subtask: u32| {
        // Of a task that was over when the checkpoint began there is nothing.
        let snapshot = snapshots.get(&TaskId { operator, subtask });
        let state = snapshot.map(|(_, entries)| entries.iter().filter_map(state).collect()).unwrap_or_default();
        TaskMetadata { subtask, finished: snapshot.is_none_or(|(finished, _)| *finished), state }
    };
    let of = |(at, spec): (usize, &OperatorSpec)| OperatorMetadata {
        spec: spec.clone(),
        tasks: (0..spec.parallelism).map(|subtask| task(at, subtask)).collect(),
    };
    topology.operators().iter().enumerate().map(of).collect()
}

/// The version that is written.
pub fn version() -> u32 {
    VERSION
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Location;

    fn metadata() -> CheckpointMetadata {
        let spec = OperatorSpec { two_phase_commit: true, ..OperatorSpec::plain("count", 2) };
        let topology = Topology::new(vec![spec]);
        let entry = StateEntry {
            kind: StateKind::Keyed,
            name: "counts".into(),
            segment: SegmentId(7),
            offsets: [].into(),
            end: 3,
            key_groups: 0..64,
        };
        let handle = Handle { id: SegmentId(7), location: Location::Inline { len: 3 }, crc32c: 9 };
        let stored = StoredState { handle, scope: "shared".into(), data: Some(b"abc".to_vec()) };
        let snapshots = [(TaskId { operator: 0, subtask: 0 }, (false, vec![entry]))].into();
        CheckpointMetadata {
            esker_checkpoint: VERSION,
            job: "wordcount".into(),
            checkpoint: 7,
            kind: "checkpoint".into(),
            attempt: 1,
            triggered_ms: 5,
            completed_ms: 6,
            unaligned: false,
            published: None,
            operators: operators(&topology, &snapshots, &[(SegmentId(7), stored)].into()),
        }
    }

    /// A stored sample: a change here is a change of the format.
    #[test]
    fn version_1_of_the_metadata_reads_as_it_did() {
        let text = concat!(
            r#"{"esker_checkpoint":1,"job":"wordcount","checkpoint":7,"kind":"checkpoint","attempt":1,"triggered_ms":5,"#,
            r#""completed_ms":6,"unaligned":false,"operators":[{"id":"count","parallelism":2,"max_parallelism":128,"#,
            r#""max_parallelism_given":false,"inputs":[],"union_list_state":false,"two_phase_commit":true,"unaligned":true,"#,
            r#""tasks":[{"subtask":0,"finished":false,"state":[{"kind":"keyed","name":"counts","#,
            r#""segment":"00000000000000000000000007","handle":"esker1:00000000000000000000000007::0:3:00000009","#,
            r#""scope":"shared","len":3,"key_groups":{"start":0,"end":64},"offsets":[],"end":3,"data":"YWJj"}]},"#,
            r#"{"subtask":1,"finished":true,"state":[]}]}]}"#
        );

        assert_eq!(String::from_utf8(metadata().write()).unwrap(), text);
        assert_eq!(CheckpointMetadata::read(text.as_bytes()).unwrap(), metadata());
        let copied = text.replace(r#","operators""#, r#","published":["bucket","meta/metadata-7.json"],"operators""#);
        let published = Some(("bucket".to_owned(), "meta/metadata-7.json".to_owned()));
        assert_eq!(CheckpointMetadata::read(copied.as_bytes()).unwrap().published, published);
        assert_eq!(String::from_utf8(CheckpointMetadata { published, ..metadata() }.write()).unwrap(), copied);
        let subject = MetadataSubject::of(text.as_bytes()).unwrap();
        assert!(subject.is_that_of(&metadata()));
        for other in [
            CheckpointMetadata { checkpoint: 8, ..metadata() },
            CheckpointMetadata { attempt: 2, ..metadata() },
            CheckpointMetadata { triggered_ms: 4, ..metadata() },
        ] {
            assert!(!subject.is_that_of(&other), "{other:?}");
        }
    }

    #[test]
    fn fields_that_are_not_known_are_ignored_and_later_versions_refused() {
        let mut json = serde_json::to_value(metadata()).unwrap();
        json["weather"] = "fine".into();
        assert_eq!(CheckpointMetadata::read(json.to_string().as_bytes()).unwrap(), metadata());

        json["esker_checkpoint"] = 2.into();
        json["operators"] = "elsewhere".into();

        let refused = CheckpointMetadata::read(json.to_string().as_bytes());
        assert!(matches!(refused, Err(UnreadableCheckpoint::Version(2))), "{refused:?}");
    }
}
