//! Makes a state of what the files say: which copy of a segment counts, which segments are one object, who holds what.
//!
//! A plain computation: what has to be read for it is read in between, by [`super`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use md5::{Digest, Md5};

use super::survey::{Bytewise, FileContent, SurveyedFile};
use crate::catalog::command::{
    Bind, Command, Condition, MadeBy, NewSegment, ObjectContent, Outcome, PutObject, Refusal, Store, StoreFile,
    StoreItem,
};
use crate::catalog::state::CatalogState;
use crate::config::MergingSettings;
use crate::format::FooterEntry;
use crate::merge::lane::LaneKey;
use crate::model::{
    About, BLOCK_BYTES, CheckpointId, CheckpointKind, JobId, KeyLayout, Label, Lane, Location, Millis, NewUpload,
    ObjectHead, ObjectHeaders, PartHead, PhysicalFileId, Segment, SegmentCrc, SegmentId, StateScope, Writer,
};

/// The job of what cannot be told whose it is.
pub const LOST_AND_FOUND: &str = "lost+found";
/// A name of so many bytes may have been cut.
const NAME_BYTES_CUT: usize = 1197;

/// The role of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// State of a checkpoint, or of a savepoint.
    State { savepoint: bool },
    /// The whole of this object.
    Object(usize),
    /// This part of this object.
    Part(usize, u16),
    /// Nobody's, and kept.
    Found,
}

/// A segment that was found.
#[derive(Debug, Clone)]
pub(super) struct AssembledSegment {
    pub id: SegmentId,
    pub about: About,
    pub place: Segment,
    /// None if nobody wrote it down.
    pub crc32c: Option<u32>,
    /// Where older copies of it are, newest first.
    pub older: Vec<Segment>,
    /// Some of it was given back.
    pub holed: bool,
    pub role: Role,
    pub read: Option<Bytewise>,
}

impl AssembledSegment {
    /// Whether its bytes are what was written; `None` if that is not known.
    pub(super) fn is_right(&self) -> Option<bool> {
        match &self.read {
            None => None,
            Some(Bytewise::Read(crc, _)) => Some(self.crc32c.is_none_or(|written| written == crc.whole)),
            Some(Bytewise::Unreadable(_)) => Some(false),
        }
    }

    /// Whether the catalog cannot do without a look at its bytes.
    pub(super) fn has_to_be_read(&self, md5: bool) -> bool {
        let tagged = matches!(self.role, Role::Object(_) | Role::Part(..));
        self.holed || self.crc32c.is_none() || self.place.len > BLOCK_BYTES || md5 && tagged
    }

    /// The checksums for the catalog. Those of wrong bytes are wrong, so that nobody is given them.
    fn crc(&self) -> SegmentCrc {
        let whole = match (&self.read, self.crc32c) {
            (Some(Bytewise::Read(crc, _)), Some(written)) if crc.whole == written => return crc.clone(),
            (Some(Bytewise::Read(crc, _)), None) => return crc.clone(),
            (_, written) => written.unwrap_or_default(),
        };
        if self.place.len <= BLOCK_BYTES {
            return SegmentCrc { whole, ..SegmentCrc::default() };
        }
        let block = |crc: u32| crc ^ 0xdead_beef;
        let blocks = match &self.read {
            Some(Bytewise::Read(crc, _)) => crc.blocks.iter().map(|crc| block(*crc)).collect(),
            _ => vec![block(whole); usize::try_from(self.place.len.div_ceil(BLOCK_BYTES)).unwrap_or(0)].into(),
        };
        SegmentCrc { whole, blocks }
    }

    fn md5(&self) -> Option<[u8; 16]> {
        match &self.read {
            Some(Bytewise::Read(_, md5)) => *md5,
            _ => None,
        }
    }
}

/// An S3 object that was found.
#[derive(Debug, Clone)]
pub(super) struct AssembledObject {
    pub bucket: String,
    pub key: String,
    /// Its segments, in order.
    pub segments: Vec<usize>,
    pub multipart: bool,
}

/// Everything that was made out.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub segments: Vec<AssembledSegment>,
    pub objects: Vec<AssembledObject>,
    /// Segments that a later file has, too.
    pub copies: u64,
    /// Files without a footer.
    pub damaged: usize,
    pub notes: Vec<String>,
    pub faults: Vec<String>,
}

/// Every segment, once.
pub(super) fn segments(found: &[SurveyedFile]) -> Assembly {
    let mut assembly = Assembly::default();
    let mut copies: BTreeMap<SegmentId, Vec<(&SurveyedFile, &FooterEntry)>> = BTreeMap::new();
    for file in found {
        match &file.content {
            FileContent::Index(entries) => {
                entries.iter().for_each(|entry| copies.entry(entry.id).or_default().push((file, entry)));
            }
            FileContent::Tombstone => {}
            FileContent::Frames(frames, why) => {
                assembly.damaged += 1;
                let bytes: u64 = frames.iter().map(|frame| frame.len).sum();
                assembly.faults.push(format!(
                    "{}: {why}; the {} segments in it ({bytes} bytes) are kept under the job {LOST_AND_FOUND}, whose they \
                     are is lost; handles of them still work",
                    file.id,
                    frames.len(),
                ));
                for (index, frame) in (1u128..).zip(frames) {
                    let range = frame.offset..frame.offset + frame.len;
                    assembly.segments.push(keep(file, index, range, Some(frame.crc32c)));
                }
            }
            FileContent::Nothing(why) | FileContent::Unreadable(why) if file.len > 0 => {
                assembly.damaged += 1;
                let readable = matches!(file.content, FileContent::Nothing(_));
                assembly
                    .faults
                    .push(format!("{}: {why}; it is kept as one segment of the job {LOST_AND_FOUND}", file.id));
                let crc32c = (!readable).then_some(0);
                assembly.segments.push(keep(file, 1, 0..file.len, crc32c));
            }
            FileContent::Nothing(_) | FileContent::Unreadable(_) => {}
        }
    }
    // A copy of a damaged file that somebody made has the same name in another folder.
    let mut taken: BTreeSet<SegmentId> = copies.keys().copied().collect();
    for segment in &mut assembly.segments {
        while !taken.insert(segment.id) {
            segment.id.0 = segment.id.0.wrapping_add(1 << 32);
        }
    }
    for (id, mut places) in copies {
        places.sort_by_key(|(file, _)| std::cmp::Reverse((file.id.epoch(), file.id.ulid())));
        assembly.copies += places.len() as u64 - 1;
        let mut places = places.into_iter().map(|(file, entry)| (file, entry, place_of(file, entry)));
        let Some((file, entry, place)) = places.next() else { continue };
        let older = places.map(|(_, _, place)| place).collect();
        let holed = file.holes.iter().any(|hole| hole.start < place.end() && place.offset < hole.end);
        let about = entry.about.clone();
        let role = Role::State { savepoint: entry.savepoint };
        let crc32c = Some(entry.crc32c);
        assembly.segments.push(AssembledSegment { id, about, place, crc32c, older, holed, role, read: None });
    }
    assembly
}

fn place_of(file: &SurveyedFile, entry: &FooterEntry) -> Segment {
    Segment { file: file.id.clone(), offset: entry.offset, len: entry.len }
}

/// Bytes that nobody can say anything of. The identity is the same whenever the file is looked at.
fn keep(file: &SurveyedFile, index: u128, range: std::ops::Range<u64>, crc32c: Option<u32>) -> AssembledSegment {
    let name = format!("{} {}..{}", file.id, range.start, range.end);
    AssembledSegment {
        id: SegmentId(file.id.ulid().wrapping_add(index)),
        about: nobodys(Label::parse("name", &name).ok()),
        place: Segment { file: file.id.clone(), offset: range.start, len: range.end - range.start },
        crc32c,
        older: vec![],
        holed: false,
        role: Role::Found,
        read: None,
    }
}

fn nobodys(name: Option<Label>) -> About {
    let job = LOST_AND_FOUND.parse().expect("a plain text is a job id");
    About { job, scope: StateScope::Exclusive, writer: Writer::default(), checkpoint: None, name }
}

impl Assembly {
    /// Finds the objects of the S3 door.
    pub(super) fn find_objects(&mut self) {
        let mut by_key: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        for (index, segment) in self.segments.iter().enumerate() {
            if let Role::State { .. } = segment.role
                && let Some(key) = key_of(&segment.about)
            {
                by_key.entry(key).or_default().push(index);
            }
        }
        for ((bucket, key), indexes) in by_key {
            self.find_object(bucket, key, indexes);
        }
        let multipart = self.objects.iter().filter(|object| object.multipart).count();
        if self.damaged > 0 && multipart > 0 {
            self.faults.push(format!(
                "the last parts of multipart objects may have been in the {} damaged files: {multipart} objects may be cut off",
                self.damaged
            ));
        }
    }

    fn find_object(&mut self, bucket: String, key: String, indexes: Vec<usize>) {
        for index in &indexes {
            let segment = &mut self.segments[*index];
            segment.role = Role::Found;
        }
        if key.contains('\u{fffd}') || format!("s3://{bucket}/{key}").len() >= NAME_BYTES_CUT {
            self.faults.push(format!(
                "s3://{bucket}/{key}: the whole of the key was not written down; its bytes are kept under the job \
                 {LOST_AND_FOUND}"
            ));
            return self.leave(&indexes);
        }
        let object = self.objects.len();
        let newest = versions(&self.segments, &indexes).into_iter().max_by_key(FoundVersion::time);
        let chosen = match newest {
            None => vec![],
            Some(FoundVersion::Put(_, index)) => {
                self.segments[index].role = Role::Object(object);
                vec![index]
            }
            Some(FoundVersion::Parts(_, parts)) if parts.keys().copied().eq(1..=parts.len() as u16) => {
                for (number, index) in &parts {
                    self.segments[*index].role = Role::Part(object, *number);
                }
                parts.into_values().collect()
            }
            Some(FoundVersion::Parts(_, parts)) => {
                self.faults.push(format!(
                    "s3://{bucket}/{key}: parts {:?} of a multipart upload were found, which are not all; they are kept under \
                     the job {LOST_AND_FOUND}",
                    parts.keys().collect::<Vec<_>>()
                ));
                vec![]
            }
        };
        let rest: Vec<usize> = indexes.iter().copied().filter(|index| !chosen.contains(index)).collect();
        if !chosen.is_empty() {
            let multipart = matches!(self.segments[chosen[0]].role, Role::Part(..));
            if !rest.is_empty() {
                self.notes.push(format!(
                    "s3://{bucket}/{key}: {} older segments of this name are kept under the job {LOST_AND_FOUND}, in case the \
                     newest was an upload that never completed, or copies of the object needed them",
                    rest.len()
                ));
            }
            self.objects.push(AssembledObject { bucket, key, segments: chosen, multipart });
        }
        self.leave(&rest);
    }

    /// Keeps segments of which it cannot be told what they are.
    fn leave(&mut self, indexes: &[usize]) {
        for index in indexes {
            let segment = &mut self.segments[*index];
            segment.about = nobodys(segment.about.name.take());
        }
    }
}

/// The bucket and key that a segment of the S3 door names.
fn key_of(about: &About) -> Option<(String, String)> {
    let (bucket, key) = about.name.as_ref()?.as_str().strip_prefix("s3://")?.split_once('/')?;
    (KeyLayout::of(bucket, key).about == *about).then(|| (bucket.to_owned(), key.to_owned()))
}

/// Something that stood under a key.
enum FoundVersion {
    Put(SegmentId, usize),
    /// The newest of each part of one upload, by number.
    Parts(SegmentId, BTreeMap<u16, usize>),
}

impl FoundVersion {
    /// Identities grow with time.
    fn time(&self) -> SegmentId {
        match self {
            Self::Put(id, _) | Self::Parts(id, _) => *id,
        }
    }
}

fn versions(segments: &[AssembledSegment], indexes: &[usize]) -> Vec<FoundVersion> {
    let mut found = vec![];
    let mut uploads: BTreeMap<u32, BTreeMap<u16, usize>> = BTreeMap::new();
    for index in indexes {
        let id = segments[*index].id;
        match id.part() {
            None => found.push(FoundVersion::Put(id, *index)),
            Some(tag) => {
                let newest = uploads.entry(tag.upload).or_default().entry(tag.number).or_insert(*index);
                if segments[*newest].id < id {
                    *newest = *index;
                }
            }
        }
    }
    let newest_of = |parts: &BTreeMap<u16, usize>| parts.values().map(|index| segments[*index].id).max();
    found.extend(uploads.into_values().filter_map(|parts| Some(FoundVersion::Parts(newest_of(&parts)?, parts))));
    found
}

/// Tells a state everything, by the commands by which it happened.
pub(super) struct Teller<'a> {
    pub state: &'a mut CatalogState,
    pub merging: &'a MergingSettings,
    pub now: Millis,
    pub faults: Vec<String>,
}

impl Teller<'_> {
    pub(super) fn tell(&mut self, found: &[SurveyedFile], assembly: &Assembly) {
        self.begin(assembly);
        let mut by_file: HashMap<&PhysicalFileId, Vec<&AssembledSegment>> = HashMap::new();
        for segment in &assembly.segments {
            by_file.entry(&segment.place.file).or_default().push(segment);
        }
        for file in found {
            let mut living = by_file.remove(&file.id).unwrap_or_default();
            if living.is_empty() && !matches!(file.content, FileContent::Index(_)) {
                continue;
            }
            living.sort_by_key(|segment| segment.place.offset);
            self.file(file, &living, assembly);
        }
        for (number, object) in assembly.objects.iter().enumerate().filter(|(_, object)| object.multipart) {
            self.complete(number, object, assembly);
        }
        self.end(assembly);
    }

    fn apply(&mut self, command: Command, at: Millis) -> Option<Outcome> {
        match self.state.apply(command, at) {
            Ok(outcome) => Some(outcome),
            Err(Refusal::BucketExists(_)) => None,
            Err(refusal) => {
                self.faults.push(refusal.to_string());
                None
            }
        }
    }

    /// Jobs, checkpoints, buckets, uploads.
    fn begin(&mut self, assembly: &Assembly) {
        let mut jobs: BTreeMap<&JobId, Millis> = BTreeMap::new();
        let mut checkpoints: BTreeMap<(&JobId, CheckpointId), (bool, Millis)> = BTreeMap::new();
        for segment in &assembly.segments {
            let made = segment.id.made();
            let savepoint = match segment.role {
                Role::State { savepoint } => savepoint,
                Role::Found => false,
                Role::Object(_) | Role::Part(..) => continue,
            };
            let job = jobs.entry(&segment.about.job).or_insert(made);
            *job = made.min(*job);
            if let Some(id) = segment.about.checkpoint {
                let begun = checkpoints.entry((&segment.about.job, id)).or_insert((false, made));
                *begun = (begun.0 | savepoint, begun.1.min(made));
            }
        }
        for (job, made) in jobs {
            self.apply(Command::CreateJob(job.clone()), made);
        }
        for ((job, id), (savepoint, made)) in checkpoints {
            let kind = if savepoint { CheckpointKind::Savepoint } else { CheckpointKind::Checkpoint };
            self.apply(Command::BeginCheckpoint(job.clone(), id, kind), made);
        }
        for (number, object) in assembly.objects.iter().enumerate() {
            let created = object.segments.iter().map(|index| assembly.segments[*index].id.made()).min();
            let created = created.unwrap_or(self.now);
            self.apply(Command::CreateBucket(object.bucket.clone()), created);
            if object.multipart {
                let upload = NewUpload {
                    bucket: object.bucket.clone(),
                    key: object.key.clone(),
                    headers: ObjectHeaders::default(),
                    checksum: None,
                };
                self.apply(Command::CreateUpload(upload_id(number), Arc::new(upload), created), created);
            }
        }
    }

    fn file(&mut self, file: &SurveyedFile, living: &[&AssembledSegment], assembly: &Assembly) {
        let made = SegmentId(file.id.ulid()).made();
        let store_file =
            StoreFile { id: file.id.clone(), lane: self.lane(file, living), len: file.len, closes: true, upload: None };
        let items = living.iter().map(|segment| item(segment, assembly)).collect();
        let stored = self.apply(Command::Store(Store { file: Some(store_file), items }), made);
        if let Some(Outcome::Stored(token, answers)) = stored {
            self.faults.extend(answers.iter().filter_map(|answer| answer.as_ref().err()).map(ToString::to_string));
            self.state.confirm(token, self.now);
        }
        let lives = |hole: &&std::ops::Range<u64>| {
            living.iter().any(|segment| hole.start < segment.place.end() && segment.place.offset < hole.end)
        };
        let holes: u64 = file.holes.iter().filter(|hole| !lives(hole)).map(|hole| hole.end - hole.start).sum();
        if holes > 0 {
            self.apply(Command::FilesPunched(vec![(file.id.clone(), holes)]), self.now);
        }
    }

    /// The lane in which segments like these would be written now.
    fn lane(&self, file: &SurveyedFile, living: &[&AssembledSegment]) -> Lane {
        let first = match (&file.content, living.first()) {
            (_, Some(segment)) => segment.about.clone(),
            (FileContent::Index(entries), None) if !entries.is_empty() => entries[0].about.clone(),
            _ => nobodys(None),
        };
        match living.first().map(|segment| &segment.role) {
            Some(Role::State { savepoint: true }) => LaneKey::of_savepoint(&first).lane,
            _ => LaneKey::of(&first, self.merging).lane,
        }
    }

    /// The parts are there: makes the object of them.
    fn complete(&mut self, number: usize, object: &AssembledObject, assembly: &Assembly) {
        let parts: Vec<&AssembledSegment> = object.segments.iter().map(|index| &assembly.segments[*index]).collect();
        let mut md5 = Md5::new();
        parts.iter().for_each(|part| match part.md5() {
            Some(sum) => md5.update(sum),
            None => md5.update(etag_of(part).as_bytes()),
        });
        let modified = parts.iter().map(|part| part.id.made()).max().unwrap_or(self.now);
        let head = ObjectHead {
            len: parts.iter().map(|part| part.place.len).sum(),
            etag: format!("{}-{}", hex::encode(md5.finalize()), parts.len()),
            modified,
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: parts.iter().map(|part| part.place.len).collect(),
        };
        let segments = parts.iter().map(|part| part.id).collect();
        let upload = Some(MadeBy::Recorded(upload_id(number)));
        let put = put(object, ObjectContent::Segments { segments, head, upload });
        let store = Store { file: None, items: vec![StoreItem { segments: vec![], bind: put }] };
        if let Some(Outcome::Stored(token, answers)) = self.apply(Command::Store(store), modified) {
            self.faults.extend(answers.iter().filter_map(|answer| answer.as_ref().err()).map(ToString::to_string));
            self.state.confirm(token, self.now);
        }
    }

    /// Which later checkpoints used shared state was in the catalog alone: the last one counts as a user of all of it.
    fn end(&mut self, assembly: &Assembly) {
        let mut shared: BTreeMap<&JobId, Vec<SegmentId>> = BTreeMap::new();
        for segment in &assembly.segments {
            if segment.role == (Role::State { savepoint: false }) && segment.about.scope == StateScope::Shared {
                shared.entry(&segment.about.job).or_default().push(segment.id);
            }
        }
        let jobs: BTreeSet<&JobId> = assembly.segments.iter().map(|segment| &segment.about.job).collect();
        for job in jobs {
            let known = self.state.checkpoints(job);
            let last = known.iter().rfind(|known| known.kind == CheckpointKind::Checkpoint);
            if let (Some(last), Some(shared)) = (last, shared.remove(job)) {
                self.apply(Command::Reuse(job.clone(), last.id, shared, None), self.now);
            }
            for checkpoint in known {
                self.apply(Command::CompleteCheckpoint(job.clone(), checkpoint.id), self.now);
            }
        }
    }
}

fn upload_id(number: usize) -> String {
    format!("rebuilt-{number}")
}

/// The MD5, or the name that stands for it.
fn etag_of(segment: &AssembledSegment) -> String {
    segment.md5().map_or_else(|| format!("{:032x}-1", segment.id.0), hex::encode)
}

fn put(object: &AssembledObject, content: ObjectContent) -> Bind {
    let (bucket, key) = (object.bucket.clone(), object.key.clone());
    Bind::Object(Box::new(PutObject { bucket, key, condition: Condition::None, content }))
}

fn item(segment: &AssembledSegment, assembly: &Assembly) -> StoreItem {
    let made = segment.id.made();
    let bind = match &segment.role {
        Role::State { .. } | Role::Found => Bind::Checkpoint { idempotency_key: None, run: None },
        Role::Object(object) => {
            let head = ObjectHead {
                len: segment.place.len,
                etag: etag_of(segment),
                modified: made,
                headers: ObjectHeaders::default(),
                checksum: None,
                part_lens: vec![],
            };
            let content = ObjectContent::Segments { segments: vec![segment.id], head, upload: None };
            put(&assembly.objects[*object], content)
        }
        Role::Part(object, number) => Bind::Part {
            upload: upload_id(*object),
            number: *number,
            part: PartHead { len: segment.place.len, etag: etag_of(segment), checksum: None, modified: made },
        },
    };
    let new = NewSegment {
        id: segment.id,
        about: segment.about.clone(),
        location: Location::File(segment.place.clone()),
        inline: None,
        crc: segment.crc(),
    };
    StoreItem { segments: vec![new], bind }
}
