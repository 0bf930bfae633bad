//! Segments as they are kept in memory: a few dozen bytes each, most of which are the segment's own.
//!
//! What many segments share is a number here: their job, their file, who wrote them. A name that repeats the job, as that of
//! an S3 object's segment does, is kept without it. [`Segments::record`] makes the whole record again.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::numbered::Numbered;
use super::pages::{self, Pages};
use super::{Files, Jobs};
use crate::catalog::record::SegmentRecord;
use crate::model::{
    CheckpointId, Holder, IdempotencyKey, JobId, Label, Location, Millis, PhysicalFileId, Segment, SegmentCrc,
    SegmentId, StateScope, Writer,
};

/// What a segment takes beside its bytes: its place among the segments and in the indexes of its job, file and holder.
const ENTRY_BYTES: usize = 88;
/// What somebody who wrote segments takes beside the names.
const WRITER_BYTES: u64 = 160;

/// All segments by identity.
#[derive(Debug, Default)]
pub(super) struct Segments {
    entries: Pages<SegmentId, Packed>,
    /// How many segments each has written.
    writers: Numbered<Writer, u64>,
    bytes: u64,
    scratch: Vec<u8>,
    /// Those of which somebody wants to know whether they stay as they are: one that changes is taken out.
    pub(super) watched: HashSet<SegmentId>,
}

/// Checksums of blocks, shared with those who read them.
type BlockCrcs = Arc<[u32]>;

#[derive(Debug)]
enum Packed {
    /// A [`KeptSegment`] in postcard's encoding.
    Bytes(Box<[u8]>),
    /// One of several blocks.
    WithBlocks(Box<(Box<[u8]>, BlockCrcs)>),
}

/// A segment, as far as it can be told without what it shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptSegment<'a> {
    pub(super) visible: bool,
    /// The number of its job.
    pub(super) job: u32,
    pub(super) scope: StateScope,
    writer: u32,
    pub(super) checkpoint: Option<CheckpointId>,
    pub(super) holder: Holder,
    pub(super) len: u64,
    #[serde(borrow)]
    pub(super) place: SegmentPlace<'a>,
    crc: [u8; 4],
    pub(super) created: Millis,
    name: Name<'a>,
    pub(super) idempotency_key: Option<&'a str>,
}

/// Where a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SegmentPlace<'a> {
    Inline,
    /// In the file of this number.
    File {
        file: u32,
        offset: u64,
    },
    /// In a file that the catalog does not know: it is damaged.
    Unknown {
        path: &'a str,
        offset: u64,
    },
}

/// A name without what can be told in fewer bytes: the job in front, as `s3://<job>/`, and a UUID at the end, in lower case and
/// with hyphens, by which workers tell their files apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Name<'a> {
    Unnamed,
    Text(&'a str),
    BelowJob(&'a str),
    Uuid(&'a str, [u8; 16]),
    BelowJobUuid(&'a str, [u8; 16]),
}

const SCHEME: &str = "s3://";
const UUID_CHARS: usize = 36;

impl<'a> Name<'a> {
    fn of(name: &'a str, job: &JobId) -> Self {
        let below = name.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix(job.as_str())?.strip_prefix('/'));
        let rest = below.unwrap_or(name);
        let parted = rest.len().checked_sub(UUID_CHARS).and_then(|at| rest.split_at_checked(at));
        let uuid = parted.and_then(|(text, last)| Some((text, uuid_of(last)?)));
        match (below, uuid) {
            (None, None) => Self::Text(name),
            (Some(rest), None) => Self::BelowJob(rest),
            (None, Some((text, uuid))) => Self::Uuid(text, uuid),
            (Some(_), Some((text, uuid))) => Self::BelowJobUuid(text, uuid),
        }
    }

    fn whole(&self, job: &JobId) -> Option<String> {
        let job = job.as_str();
        Some(match self {
            Self::Unnamed => return None,
            Self::Text(text) => (*text).to_owned(),
            Self::BelowJob(rest) => [SCHEME, job, "/", rest].concat(),
            Self::Uuid(text, uuid) => [text, &uuid_text(uuid)[..]].concat(),
            Self::BelowJobUuid(text, uuid) => [SCHEME, job, "/", text, &uuid_text(uuid)].concat(),
        })
    }
}

/// The bytes of a UUID that is written as [`uuid_text`] writes it.
fn uuid_of(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    hex::decode_to_slice(text.replace('-', ""), &mut uuid).ok()?;
    (uuid_text(&uuid) == text).then_some(uuid)
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = hex::encode(uuid);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl Packed {
    /// Encodes by way of `scratch`, so that it allocates once and what it needs.
    fn new(kept: &KeptSegment<'_>, blocks: &Arc<[u32]>, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        *scratch = postcard::to_extend(kept, std::mem::take(scratch)).expect("plain values always encode");
        let bytes = Box::from(&scratch[..]);
        if blocks.is_empty() { Self::Bytes(bytes) } else { Self::WithBlocks(Box::new((bytes, Arc::clone(blocks)))) }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::WithBlocks(both) => &both.0,
        }
    }

    fn kept(&self) -> KeptSegment<'_> {
        postcard::from_bytes(self.bytes()).expect("it was encoded by this process")
    }

    fn blocks(&self) -> Arc<[u32]> {
        match self {
            Self::Bytes(_) => Arc::default(),
            Self::WithBlocks(both) => Arc::clone(&both.1),
        }
    }

    /// Bytes in memory, about.
    fn weight(&self) -> u64 {
        let blocks = match self {
            Self::Bytes(_) => 0,
            Self::WithBlocks(both) => 48 + 4 * both.1.len(),
        };
        (ENTRY_BYTES + self.bytes().len().next_multiple_of(16) + blocks) as u64
    }
}

impl KeptSegment<'_> {
    pub(super) fn is_inline(&self) -> bool {
        matches!(self.place, SegmentPlace::Inline)
    }

    /// The number of its file, if the catalog knows it.
    pub(super) fn file(&self) -> Option<u32> {
        match self.place {
            SegmentPlace::File { file, .. } => Some(file),
            SegmentPlace::Inline | SegmentPlace::Unknown { .. } => None,
        }
    }

    /// Where its bytes are.
    pub(super) fn location(&self, files: &Files) -> Location {
        let len = self.len;
        match self.place {
            SegmentPlace::Inline => Location::Inline { len },
            SegmentPlace::File { file, offset } => {
                let (file, _) = files.at(file).expect("a file that holds segments has a number");
                Location::File(Segment { file: file.clone(), offset, len })
            }
            SegmentPlace::Unknown { path, offset } => {
                Location::File(Segment { file: PhysicalFileId::kept(path), offset, len })
            }
        }
    }

    /// Where it begins in its file.
    pub(super) fn offset(&self) -> Option<u64> {
        match self.place {
            SegmentPlace::Inline => None,
            SegmentPlace::File { offset, .. } | SegmentPlace::Unknown { offset, .. } => Some(offset),
        }
    }

    /// Where it ends in its file.
    pub(super) fn end(&self) -> Option<u64> {
        match self.place {
            SegmentPlace::Inline => None,
            SegmentPlace::File { offset, .. } | SegmentPlace::Unknown { offset, .. } => Some(offset + self.len),
        }
    }

    pub(super) fn crc(&self) -> u32 {
        u32::from_le_bytes(self.crc)
    }

    /// What the worker calls it, if it is of this job.
    pub(super) fn name(&self, job: &JobId) -> Option<Label> {
        self.name.whole(job).map(|name| Label::kept(&name))
    }
}

impl Segments {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, id: SegmentId) -> bool {
        self.entries.contains(&id)
    }

    pub(super) fn get(&self, id: SegmentId) -> Option<KeptSegment<'_>> {
        self.entries.get(&id).map(Packed::kept)
    }

    /// Their identities in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = SegmentId> {
        self.entries.keys().copied()
    }

    /// All of them in the order of their identities.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SegmentId, KeptSegment<'_>)> {
        self.entries.iter().map(|(id, packed)| (*id, packed.kept()))
    }

    /// Those after `after` in the order of their identities.
    pub(super) fn iter_after(&self, after: Option<SegmentId>) -> impl Iterator<Item = (SegmentId, KeptSegment<'_>)> {
        let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.iter_from(from).map(|(id, packed)| (*id, packed.kept()))
    }

    /// Bytes in memory, about.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a segment is and its checksums, if it is visible.
    pub(super) fn place(&self, id: SegmentId, files: &Files) -> Option<(Location, SegmentCrc)> {
        let packed = self.entries.get(&id)?;
        let kept = packed.kept();
        let crc = || SegmentCrc { whole: kept.crc(), blocks: packed.blocks() };
        kept.visible.then(|| (kept.location(files), crc()))
    }

    /// The whole record of a segment.
    pub(super) fn record(&self, id: SegmentId, jobs: &Jobs, files: &Files) -> Option<SegmentRecord> {
        self.entries.get(&id).map(|packed| self.unpack(packed, jobs, files))
    }

    /// All records in the order of their identities.
    pub(super) fn records(&self, jobs: &Jobs, files: &Files) -> impl Iterator<Item = (SegmentId, SegmentRecord)> {
        let entries: pages::Iter<'_, _, _> = self.entries.iter();
        entries.map(move |(id, packed)| (*id, self.unpack(packed, jobs, files)))
    }

    fn unpack(&self, packed: &Packed, jobs: &Jobs, files: &Files) -> SegmentRecord {
        let kept = packed.kept();
        let (job, _) = jobs.at(kept.job).expect("a job that has segments has a number");
        SegmentRecord {
            job: job.clone(),
            scope: kept.scope,
            writer: self.writer(&kept).clone(),
            checkpoint: kept.checkpoint,
            holder: kept.holder,
            location: kept.location(files),
            crc: SegmentCrc { whole: kept.crc(), blocks: packed.blocks() },
            name: kept.name(job),
            idempotency_key: kept.idempotency_key.map(IdempotencyKey::kept),
            created: kept.created,
        }
    }

    /// Who wrote a segment.
    pub(super) fn writer(&self, kept: &KeptSegment<'_>) -> &Writer {
        self.writers.at(kept.writer).expect("somebody who wrote segments has a number").0
    }

    /// Takes in a segment of the job with this number; its file has a number, or it is inline.
    pub(super) fn insert(&mut self, id: SegmentId, record: &SegmentRecord, visible: bool, job: u32, file: Option<u32>) {
        let (writer, segments) = self.writers.entry(&record.writer, || 0);
        *segments += 1;
        if *segments == 1 {
            self.bytes += weight_of(&record.writer);
        }
        let place = match (&record.location, file) {
            (Location::Inline { .. }, _) => SegmentPlace::Inline,
            (Location::File(at), Some(file)) => SegmentPlace::File { file, offset: at.offset },
            (Location::File(at), None) => SegmentPlace::Unknown { path: at.file.as_str(), offset: at.offset },
        };
        let kept = KeptSegment {
            visible,
            job,
            scope: record.scope,
            writer,
            checkpoint: record.checkpoint,
            holder: record.holder,
            len: record.location.len(),
            place,
            crc: record.crc.whole.to_le_bytes(),
            created: record.created,
            name: record.name.as_ref().map_or(Name::Unnamed, |name| Name::of(name.as_str(), &record.job)),
            idempotency_key: record.idempotency_key.as_ref().map(IdempotencyKey::as_str),
        };
        let packed = Packed::new(&kept, &record.crc.blocks, &mut self.scratch);
        self.bytes += packed.weight();
        if let Some(before) = self.entries.insert(id, packed) {
            self.gone(&before);
        }
    }

    /// Changes what stands in a segment itself.
    pub(super) fn update(&mut self, id: SegmentId, change: impl FnOnce(&mut KeptSegment<'_>)) {
        self.watched.remove(&id);
        let Some(packed) = self.entries.get_mut(&id) else { return };
        let mut kept = packed.kept();
        change(&mut kept);
        let changed = Packed::new(&kept, &packed.blocks(), &mut self.scratch);
        self.bytes = self.bytes + changed.weight() - packed.weight();
        *packed = changed;
    }

    /// The catalog does not know the file of a segment any more.
    pub(super) fn lose_file(&mut self, id: SegmentId, file: &PhysicalFileId) {
        let Some(packed) = self.entries.get_mut(&id) else { return };
        let mut kept = packed.kept();
        if let SegmentPlace::File { offset, .. } = kept.place {
            kept.place = SegmentPlace::Unknown { path: file.as_str(), offset };
        }
        let changed = Packed::new(&kept, &packed.blocks(), &mut self.scratch);
        self.bytes = self.bytes + changed.weight() - packed.weight();
        *packed = changed;
    }

    pub(super) fn remove(&mut self, id: SegmentId) {
        self.watched.remove(&id);
        if let Some(packed) = self.entries.remove(&id) {
            self.gone(&packed);
        }
    }

    fn gone(&mut self, packed: &Packed) {
        self.bytes -= packed.weight();
        let Some((writer, segments)) = self.writers.at_mut(packed.kept().writer) else { return };
        *segments -= 1;
        if *segments == 0 {
            let writer = writer.clone();
            self.bytes -= weight_of(&writer);
            self.writers.remove(&writer);
        }
    }
}

fn weight_of(writer: &Writer) -> u64 {
    let operator = writer.subtask.as_ref().map_or(0, |subtask| subtask.operator.as_str().len());
    let task_manager = writer.task_manager.as_ref().map_or(0, |label| label.as_str().len());
    WRITER_BYTES + (operator + task_manager) as u64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::record::FileRecord;
    use crate::catalog::state::{FileEntry, JobEntry};
    use crate::model::FileState;
    use crate::model::SubtaskKey;

    fn any_name() -> impl Strategy<Value = String> {
        let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
        prop_oneof![
            "[a-z/:.0-9-]{1,50}",
            uuid,
            "(s3://)?(bucket/job-1|bucket/job-)/?(chk-7/)?[0-9a-f-]{0,37}"
                .prop_filter("a label", |name| !name.is_empty()),
            ("(s3://bucket/job-1/|)(shared/|ü|)", uuid).prop_map(|(before, uuid)| before + &uuid),
            uuid.prop_map(|uuid| uuid.to_uppercase()),
        ]
    }

    fn any_writer() -> impl Strategy<Value = Writer> {
        let label = || "[a-c]{1,2}".prop_map(|text| Label::parse("label", &text).unwrap());
        let subtask = (label(), 0_u32..3, 1_u32..3);
        let subtask = subtask.prop_map(|(operator, index, parallelism)| SubtaskKey { operator, index, parallelism });
        (option::of(subtask), option::of(label())).prop_map(|(subtask, task_manager)| Writer { subtask, task_manager })
    }

    fn any_location() -> impl Strategy<Value = Location> {
        let file = |(ulid, offset, len): (u8, u64, u64)| {
            let file = PhysicalFileId::new(None, 1, ulid.into());
            Location::File(Segment { file, offset: offset >> 1, len: len >> 1 })
        };
        prop_oneof![
            any::<u64>().prop_map(|len| Location::Inline { len }),
            (0_u8..4, any::<u64>(), any::<u64>()).prop_map(file),
        ]
    }

    fn any_holder() -> impl Strategy<Value = Holder> {
        prop_oneof![
            any::<u64>().prop_map(|id| Holder::Checkpoints { last_used: CheckpointId(id) }),
            any::<u32>().prop_map(|count| Holder::Objects { count }),
            Just(Holder::Upload),
            any::<u64>().prop_map(|id| Holder::Savepoint { id: CheckpointId(id) }),
        ]
    }

    fn any_record() -> impl Strategy<Value = SegmentRecord> {
        let job = prop_oneof![Just("bucket/job-1"), Just("bucket/job-"), Just("j")];
        let scope = prop_oneof![Just(StateScope::Shared), Just(StateScope::Exclusive)];
        let whose = (job, scope, any_writer(), option::of(any::<u64>()), any_holder());
        let crc = (any::<u32>(), vec(any::<u32>(), 0..4));
        let what = (any_location(), crc, option::of(any_name()), option::of("[!-~]{1,9}"), any::<u64>());
        (whose, what).prop_map(|(whose, what)| {
            let (job, scope, writer, checkpoint, holder) = whose;
            let (location, (whole, blocks), name, key, created) = what;
            SegmentRecord {
                job: job.parse().unwrap(),
                scope,
                writer,
                checkpoint: checkpoint.map(CheckpointId),
                holder,
                location,
                crc: SegmentCrc { whole, blocks: blocks.into() },
                name: name.map(|name| Label::parse("name", &name).unwrap()),
                idempotency_key: key.map(|key| key.parse().unwrap()),
                created: Millis(created),
            }
        })
    }

    /// Files 0 and 1 are known, 2 and 3 are not.
    fn known_files() -> Files {
        let mut files = Files::default();
        for ulid in 0..2 {
            let state = FileState::Closed { len: u64::MAX };
            let (created, holes, moved_from) = (Millis(1), 0, false);
            let record = FileRecord { state, created, lane: None, holes, upload: None, moved_from };
            files.entry(&PhysicalFileId::new(None, 1, ulid), || FileEntry::new(record));
        }
        files
    }

    proptest! {
        #[test]
        fn segments_come_out_as_they_went_in(records in vec((any_record(), any::<bool>()), 1..20), gone in vec(any::<bool>(), 20)) {
            let (mut segments, mut jobs, files) = (Segments::default(), Jobs::default(), known_files());
            let records: Vec<_> = (0..).map(SegmentId).zip(records).collect();
            for (id, (record, visible)) in &records {
                let job = jobs.entry(&record.job, JobEntry::default).0;
                let file = record.location.file().and_then(|file| files.number(file));
                segments.insert(*id, record, !visible, job, file);
                segments.update(*id, |kept| kept.visible = *visible);
            }

            for (id, (record, visible)) in &records {
                let kept = segments.get(*id).unwrap();
                prop_assert_eq!((kept.visible, kept.len, kept.crc()), (*visible, record.location.len(), record.crc.whole));
                prop_assert_eq!(kept.end(), record.location.segment().map(Segment::end));
                prop_assert_eq!(kept.name(&record.job), record.name.clone());
                prop_assert_eq!(&segments.record(*id, &jobs, &files).unwrap(), record);
            }
            for ((id, _), _) in records.iter().zip(gone).filter(|(_, gone)| *gone) {
                segments.remove(*id);
            }
            let left: Vec<SegmentId> = segments.iter().map(|(id, _)| id).collect();
            for id in left {
                segments.remove(id);
            }
            prop_assert_eq!((segments.bytes(), segments.writers.values().count()), (0, 0));
        }
    }

    #[test]
    fn what_usual_segments_take() {
        let uuid = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";
        let mut record = SegmentRecord {
            job: "bucket/flink/0123456789abcdef0123456789abcdef".parse().unwrap(),
            scope: StateScope::Exclusive,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(7)),
            holder: Holder::Objects { count: 1 },
            location: Location::Inline { len: 100 },
            crc: SegmentCrc { whole: u32::MAX, ..SegmentCrc::default() },
            name: None,
            idempotency_key: None,
            created: Millis(1_790_000_000_000),
        };
        record.name = Label::parse("name", &format!("s3://{}/chk-7/{uuid}", record.job)).ok();
        let mut segments = Segments::default();
        segments.insert(SegmentId(1), &record, true, 1 << 20, None);

        let packed = segments.entries.get(&SegmentId(1)).unwrap();
        assert!(packed.bytes().len() <= 48, "{} bytes", packed.bytes().len());
        assert_eq!(std::mem::size_of::<Packed>(), 16);
    }
}
