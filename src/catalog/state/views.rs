//! What can be read of the state. Only what is visible is shown.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use super::uploads::arrived;
use super::{Changes, FileEntry, State, Version};
use crate::catalog::record::{
    CheckpointKind, CheckpointRecord, FileState, Forgotten, JobRecord, ObjectRecord, PartRecord, SegmentRecord,
    UploadRecord,
};
use crate::error::ErrorKind;
use crate::model::{
    CheckpointId, Handle, JobId, Label, Lane, LaneOf, Location, Millis, PhysicalFileId, Segment, SegmentId, StateScope,
    SubtaskKey,
};

/// An object of so many segments is walked from its beginning; with more, where each ends is remembered.
const SEGMENTS_FEW: usize = 64;

/// A visible segment.
#[derive(Debug, Clone)]
pub struct SegmentView {
    /// Its identity.
    pub id: SegmentId,
    /// What is known of it.
    pub record: SegmentRecord,
}

impl SegmentView {
    /// Its handle as of now.
    pub fn handle(&self) -> Handle {
        Handle { id: self.id, location: self.record.location.clone(), crc32c: self.record.crc.whole }
    }
}

/// A segment of a checkpoint. They are ordered as a job restores them: by subtask, name and identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointSegment {
    /// The subtask that wrote it.
    pub subtask: Option<SubtaskKey>,
    /// What the worker calls it.
    pub name: Option<Label>,
    /// Its identity.
    pub id: SegmentId,
}

/// A visible object. Nothing of it is copied, however large it is.
#[derive(Debug, Clone)]
pub struct ObjectView {
    /// What is known of it.
    pub record: Arc<ObjectRecord>,
    /// Where in the object each segment ends, if there are many.
    ends: Option<Arc<[u64]>>,
}

impl ObjectView {
    /// Which of the object's segments may have bytes of `range`, and where in the object the first of them begins. All of
    /// them if there are few.
    pub fn segments_for(&self, range: &Range<u64>) -> (&[SegmentId], u64) {
        let all = &self.record.segments[..];
        let Some(ends) = &self.ends else { return (all, 0) };
        let first = ends.partition_point(|end| *end <= range.start);
        let last = ends.partition_point(|end| *end < range.end);
        let begins = first.checked_sub(1).map_or(0, |before| ends[before]);
        (&all[first..all.len().min(last + 1).max(first)], begins)
    }
}

/// A physical file.
#[derive(Debug, Clone)]
pub struct FileView {
    /// Its name.
    pub id: PhysicalFileId,
    /// Its place in its life.
    pub state: FileState,
    /// Bytes that it takes on storage; less than its length where holes were punched.
    pub occupied: u64,
    /// Whose segments it holds; none if that was not recorded and nothing lives in it.
    pub lane: Option<Lane>,
    /// When it was begun.
    pub created: Millis,
    /// Living segments in it.
    pub live_segments: u64,
    /// Their bytes.
    pub live_bytes: u64,
}

/// A file to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgottenFile {
    /// Its name.
    pub id: PhysicalFileId,
    /// What became of its segments.
    pub why: Forgotten,
    /// Since when.
    pub since: Millis,
    /// Whose segments it held, if that was recorded.
    pub lane: Option<Lane>,
    /// Bytes that it takes on storage.
    pub occupied: u64,
}

/// What a lane takes on storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneSpace {
    /// Files that hold something that lives, and open ones.
    pub files: u64,
    /// Living segments.
    pub segments: u64,
    /// Their bytes.
    pub space: SpaceUsage,
}

impl LaneSpace {
    fn add_file(&mut self, entry: &FileEntry) {
        self.space.physical_bytes += entry.record.occupied();
        if let FileState::Forgotten { .. } = entry.record.state {
            self.space.forgotten_bytes += entry.record.occupied();
        } else {
            self.files += 1;
        }
        self.segments += entry.live.len() as u64;
        self.space.live_bytes += entry.live_bytes;
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        let (a, b) = (&self.space, &other.space);
        Self {
            files: self.files + other.files,
            segments: self.segments + other.segments,
            space: SpaceUsage {
                physical_bytes: a.physical_bytes + b.physical_bytes,
                forgotten_bytes: a.forgotten_bytes + b.forgotten_bytes,
                live_bytes: a.live_bytes + b.live_bytes,
                inline_bytes: a.inline_bytes + b.inline_bytes,
            },
        }
    }
}

/// Bytes in total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Bytes of physical files, until they are deleted.
    pub physical_bytes: u64,
    /// Bytes of files that hold nothing that lives and wait to be deleted.
    pub forgotten_bytes: u64,
    /// Bytes of living segments, inline ones among them.
    pub live_bytes: u64,
    /// Bytes of living segments that are inline.
    pub inline_bytes: u64,
}

impl SpaceUsage {
    /// Physical bytes, files that wait to be deleted among them, divided by the living bytes in them: what is inline is
    /// left out of both. 1.0 when there are no files, infinite when nothing in them lives.
    pub fn amplification(&self) -> f64 {
        match self.physical_bytes {
            0 => 1.0,
            stored => stored as f64 / (self.live_bytes - self.inline_bytes) as f64,
        }
    }
}

/// What a checkpoint takes on storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckpointSpace {
    /// Segments that it uses.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that no other checkpoint uses: what its end would free.
    pub own_bytes: u64,
}

/// What to list of a bucket.
#[derive(Debug, Clone, Default)]
pub struct ListQuery<'a> {
    /// Only keys that begin so.
    pub prefix: &'a str,
    /// Keys with this text after the prefix are rolled up into one entry; empty for none.
    pub delimiter: &'a str,
    /// Only keys after this one.
    pub after: &'a str,
    /// At most so many entries, rolled up ones among them.
    pub max: usize,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// In the order of their keys.
    pub entries: Vec<Listed>,
    /// Whether there are more.
    pub truncated: bool,
}

/// One entry of a listing.
#[derive(Debug, Clone)]
pub enum Listed {
    /// An object: its key, length, entity tag and time.
    Object {
        /// The key.
        key: String,
        /// Number of bytes.
        len: u64,
        /// The entity tag, without quotes.
        etag: String,
        /// When it was put.
        modified: Millis,
    },
    /// Keys that share everything up to the delimiter.
    Prefix(String),
}

impl Listed {
    /// The key or prefix.
    pub fn name(&self) -> &str {
        match self {
            Self::Object { key, .. } | Self::Prefix(key) => key,
        }
    }
}

impl State {
    /// A segment, if it is visible.
    pub fn segment(&self, id: SegmentId) -> Option<SegmentView> {
        self.segment_record(id).map(|record| SegmentView { id, record: record.clone() })
    }

    /// What is known of a segment, if it is visible.
    pub fn segment_record(&self, id: SegmentId) -> Option<&SegmentRecord> {
        self.segments.get(&id).filter(|entry| entry.visible).map(|entry| &entry.record)
    }

    /// The first of these segments that are not visible, at most `max`.
    pub fn unknown_segments(&self, ids: &[SegmentId], max: usize) -> Vec<SegmentId> {
        let unknown = ids.iter().filter(|id| !self.segments.get(id).is_some_and(|entry| entry.visible));
        unknown.copied().take(max).collect()
    }

    /// The visible segment that lives at a place.
    pub fn segment_at(&self, place: &Segment) -> Option<SegmentView> {
        let living = &self.files.get(&place.file)?.live;
        let here = |id: &&SegmentId| {
            self.segments
                .get(*id)
                .is_some_and(|entry| matches!(&entry.record.location, Location::File(at) if at == place))
        };
        living.iter().find(here).and_then(|id| self.segment(*id))
    }

    /// The visible segments of a job after `after`, by identity, of one checkpoint or of all.
    pub fn segments_of(
        &self,
        job: &JobId,
        checkpoint: Option<CheckpointId>,
        after: Option<SegmentId>,
        max: usize,
    ) -> Vec<SegmentView> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = self.jobs.get(job).into_iter().flat_map(|job| job.segments.range((from, Bound::Unbounded)));
        ids.filter_map(|id| self.segment(*id))
            .filter(|view| checkpoint.is_none() || view.record.checkpoint == checkpoint)
            .take(max)
            .collect()
    }

    /// The visible segments that a checkpoint or savepoint consists of, in no order: who needs one sorts them after the lock
    /// is gone.
    pub fn checkpoint_segments(&self, job: &JobId, checkpoint: CheckpointId) -> Vec<CheckpointSegment> {
        let ids = self.checkpoint_segment_ids(job, checkpoint).into_iter();
        let entries = ids.filter_map(|id| Some((id, self.segments.get(&id)?))).filter(|(_, entry)| entry.visible);
        let listed = entries.map(|(id, entry)| CheckpointSegment {
            subtask: entry.record.writer.subtask.clone(),
            name: entry.record.name.clone(),
            id,
        });
        listed.collect()
    }

    /// Whether the catalog knows a physical file, and what of it.
    pub fn file(&self, id: &PhysicalFileId) -> Option<FileView> {
        self.files.get(id).map(|entry| FileView {
            id: id.clone(),
            state: entry.record.state,
            occupied: entry.record.occupied(),
            lane: self.lane_of(entry),
            created: entry.record.created,
            live_segments: entry.live.len() as u64,
            live_bytes: entry.live_bytes,
        })
    }

    /// The segments that live in a file, in the order of their places. Those that are not visible yet are left out.
    pub fn segments_in(&self, file: &PhysicalFileId) -> Vec<SegmentView> {
        let living = self.files.get(file).into_iter().flat_map(|entry| &entry.live);
        let mut found: Vec<SegmentView> = living.filter_map(|id| self.segment(*id)).collect();
        found.sort_by_key(|view| view.record.location.segment().map(|place| place.offset));
        found
    }

    /// Whether a checkpoint is a savepoint.
    pub fn is_savepoint(&self, job: &JobId, id: CheckpointId) -> bool {
        let record = self.jobs.get(job).and_then(|entry| entry.checkpoints.get(&id));
        record.is_some_and(|record| record.kind == CheckpointKind::Savepoint)
    }

    /// The segments of a checkpoint or savepoint, those that are not visible yet among them.
    pub(super) fn checkpoint_segment_ids(&self, job: &JobId, checkpoint: CheckpointId) -> Vec<SegmentId> {
        let Some(entry) = self.jobs.get(job) else { return vec![] };
        if self.is_savepoint(job, checkpoint) {
            return entry.by_savepoint.get(&checkpoint).into_iter().flatten().copied().collect();
        }
        let held = entry.by_last_used.range(checkpoint..).flat_map(|(_, segments)| segments);
        let written_before = |id: &&SegmentId| {
            self.segments
                .get(*id)
                .is_some_and(|entry| entry.record.holder.is_part_of(entry.record.checkpoint, checkpoint))
        };
        held.filter(written_before).copied().collect()
    }

    /// Whose segments a file holds; of one whose lane was not recorded, what one of its segments tells.
    fn lane_of(&self, entry: &FileEntry) -> Option<Lane> {
        entry.record.lane.clone().or_else(|| {
            let record = &self.segments.get(entry.live.first()?)?.record;
            Some(Lane { job: Some(record.job.clone()), scope: record.scope, of: LaneOf::All })
        })
    }

    /// What each lane takes on storage. Files of versions that did not record their lane, and inline segments, count for
    /// a lane of their job.
    pub fn space_by_lane(&self) -> BTreeMap<Lane, LaneSpace> {
        let mut lanes: BTreeMap<Lane, LaneSpace> = BTreeMap::new();
        for entry in self.files.values() {
            let lane = self.lane_of(entry);
            let all = Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
            let of = lanes.entry(lane.unwrap_or(all)).or_default();
            of.add_file(entry);
        }
        for entry in self.segments.values() {
            if let Location::Inline { len } = entry.record.location {
                let record = &entry.record;
                let lane = Lane { job: Some(record.job.clone()), scope: record.scope, of: LaneOf::All };
                let of = lanes.entry(lane).or_default();
                of.segments += 1;
                of.space.live_bytes += len;
                of.space.inline_bytes += len;
            }
        }
        lanes
    }

    /// Bytes of the checkpoints of a job: all that each uses, and what it alone uses.
    pub fn space_by_checkpoint(&self, job: &JobId) -> Vec<(CheckpointId, CheckpointRecord, CheckpointSpace)> {
        let uses = |id: &SegmentId| self.segments.get(id).map(|entry| &entry.record);
        let known = self.checkpoints(job);
        let space = |checkpoint| {
            let mut space = CheckpointSpace::default();
            for record in self.checkpoint_segment_ids(job, checkpoint).iter().filter_map(uses) {
                space.segments += 1;
                space.bytes += record.location.len();
                let users = known.iter().filter(|(id, _)| record.holder.is_part_of(record.checkpoint, *id)).take(2);
                if users.count() < 2 {
                    space.own_bytes += record.location.len();
                }
            }
            space
        };
        known.iter().map(|(id, record)| (*id, record.clone(), space(*id))).collect()
    }

    /// All physical files, by name.
    pub fn files(&self) -> impl Iterator<Item = FileView> + '_ {
        self.files.keys().filter_map(|id| self.file(id))
    }

    /// All segments, also those that are not visible yet.
    pub fn all_segments(&self) -> impl Iterator<Item = (SegmentId, &SegmentRecord)> {
        self.segments.iter().map(|(id, entry)| (*id, &entry.record))
    }

    /// Files to be deleted from storage: those that `due` says yes to, by why and when they were forgotten, in that order.
    pub fn forgotten_files(&self, due: impl Fn(Forgotten, Millis) -> bool, max: usize) -> Vec<ForgottenFile> {
        let due = self.forgotten.iter().filter(|((why, since), _)| due(*why, *since));
        let files = due.flat_map(|((why, since), files)| files.iter().map(|id| (*why, *since, id)));
        let forgotten = |(why, since, id): (Forgotten, Millis, &PhysicalFileId)| {
            let record = &self.files.get(id)?.record;
            Some(ForgottenFile { id: id.clone(), why, since, lane: record.lane.clone(), occupied: record.occupied() })
        };
        files.filter_map(forgotten).take(max).collect()
    }

    /// Why and when files were forgotten that are still there.
    pub fn forgotten(&self) -> impl Iterator<Item = (Forgotten, Millis)> {
        self.forgotten.keys().copied()
    }

    /// What the physical files of each job take, until they are deleted, and what lives in them. What is inline is left out.
    pub fn files_by_job(&self) -> BTreeMap<Option<&JobId>, LaneSpace> {
        let mut jobs: BTreeMap<Option<&JobId>, LaneSpace> = BTreeMap::new();
        for entry in self.files.values() {
            let job = match &entry.record.lane {
                Some(lane) => lane.job.as_ref(),
                None => entry.live.first().and_then(|id| Some(&self.segments.get(id)?.record.job)),
            };
            jobs.entry(job).or_default().add_file(entry);
        }
        jobs
    }

    /// What those wait for who give space back.
    pub fn changes(&self) -> Changes {
        self.changes
    }

    /// What is known of the segments that live in a file; those that are not visible yet among them.
    pub fn living_in(&self, file: &PhysicalFileId) -> impl Iterator<Item = &SegmentRecord> {
        let living = self.files.get(file).into_iter().flat_map(|entry| &entry.live);
        living.filter_map(|id| self.segments.get(id).map(|entry| &entry.record))
    }

    /// Where the last of what lives in a file ends.
    pub fn living_end(&self, file: &PhysicalFileId) -> u64 {
        self.living_in(file).filter_map(|record| record.location.segment()).map(Segment::end).max().unwrap_or(0)
    }

    /// The visible segments inside the catalog.
    pub fn inline_segments(&self) -> impl Iterator<Item = SegmentView> + '_ {
        let inline = self.segments.iter().filter(|(_, entry)| matches!(entry.record.location, Location::Inline { .. }));
        inline.filter_map(|(id, _)| self.segment(*id))
    }

    /// Jobs that were created, in the order of their ids.
    pub fn jobs(&self) -> Vec<(JobId, Option<JobRecord>, usize)> {
        self.jobs.iter().map(|(id, entry)| (id.clone(), entry.record.clone(), entry.segments.len())).collect()
    }

    /// What is known of a job, and how many segments it has.
    pub fn job(&self, job: &JobId) -> Option<(Option<JobRecord>, usize)> {
        self.jobs.get(job).map(|entry| (entry.record.clone(), entry.segments.len()))
    }

    /// Checkpoints of a job that are not subsumed, in order.
    pub fn checkpoints(&self, job: &JobId) -> Vec<(CheckpointId, CheckpointRecord)> {
        let entries = self.jobs.get(job).into_iter().flat_map(|job| &job.checkpoints);
        entries.map(|(id, record)| (*id, record.clone())).collect()
    }

    /// The newest checkpoint of `job` that it has claimed from another one.
    pub fn claimed_from(&self, job: &JobId, from: &JobId) -> Option<CheckpointId> {
        let entry = self.jobs.get(job)?;
        let mut newest = entry.checkpoints.iter().rev();
        newest.find(|(_, record)| record.claimed_from.as_ref() == Some(from)).map(|(id, _)| *id)
    }

    /// Whether a segment for `checkpoint` would be refused now; a door asks before it reads a body.
    ///
    /// # Errors
    /// The refusal that [`State::apply`] would answer.
    pub fn would_take(&self, job: &JobId, checkpoint: CheckpointId) -> Result<(), crate::catalog::command::Refusal> {
        self.checkpoint_takes_segments(job, checkpoint)
    }

    /// All buckets with the times of their creation.
    pub fn buckets(&self) -> Vec<(String, Millis)> {
        self.buckets.iter().map(|(name, entry)| (name.clone(), entry.record.created)).collect()
    }

    /// Whether a bucket exists.
    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    /// The object that stands under a key.
    pub fn object(&self, bucket: &str, key: &str) -> Option<ObjectView> {
        let versions = self.buckets.get(bucket)?.objects.get(key)?;
        let version = versions.iter().find(|version| version.on_its_way.is_none())?;
        Some(ObjectView { record: Arc::clone(&version.record), ends: self.ends_of(version) })
    }

    /// Where the segments of a version of many end, counted once: a move changes no length. None if one is not known.
    fn ends_of(&self, version: &Version) -> Option<Arc<[u64]>> {
        let segments = &version.record.segments;
        if segments.len() <= SEGMENTS_FEW {
            return None;
        }
        if let Some(ends) = version.ends.get() {
            return Some(Arc::clone(ends));
        }
        let mut end = 0;
        let ends = segments.iter().map(|id| {
            end += self.segments.get(id)?.record.location.len();
            Some(end)
        });
        let ends: Arc<[u64]> = ends.collect::<Option<_>>()?;
        Some(Arc::clone(version.ends.get_or_init(|| ends)))
    }

    /// One page of a bucket's keys in UTF-8 order.
    pub fn list(&self, bucket: &str, query: &ListQuery<'_>) -> ListPage {
        let Some(entry) = self.buckets.get(bucket) else { return ListPage::default() };
        let mut page = ListPage::default();
        let mut from = start(query);
        'keys: loop {
            let range = (from.as_ref().map(String::as_str), Bound::Unbounded);
            for (key, versions) in entry.objects.range::<str, _>(range) {
                if !key.starts_with(query.prefix) {
                    break 'keys;
                }
                let Some(version) = versions.iter().find(|version| version.on_its_way.is_none()) else { continue };
                if page.entries.len() >= query.max {
                    page.truncated = true;
                    break 'keys;
                }
                match rolled_up(key, query) {
                    Some(common) => {
                        page.entries.push(Listed::Prefix(common.to_owned()));
                        match after_prefix(common) {
                            Some(next) => from = next,
                            None => break 'keys,
                        }
                        continue 'keys;
                    }
                    None => page.entries.push(Listed::Object {
                        key: key.clone(),
                        len: version.record.len,
                        etag: version.record.etag.clone(),
                        modified: version.record.modified,
                    }),
                }
            }
            break;
        }
        page
    }

    /// A recorded multipart upload.
    pub fn upload(&self, id: &str) -> Option<&Arc<UploadRecord>> {
        self.uploads.get(id).map(|entry| &entry.record)
    }

    /// All recorded multipart uploads by id.
    pub fn uploads(&self) -> impl Iterator<Item = (&String, &Arc<UploadRecord>)> {
        self.uploads.iter().map(|(id, entry)| (id, &entry.record))
    }

    /// The parts of a recorded upload that have arrived, by number.
    pub fn parts(&self, upload: &str) -> impl Iterator<Item = (u16, &PartRecord)> {
        let parts = self.uploads.get(upload).into_iter().flat_map(|entry| &entry.parts);
        parts.filter_map(|(number, versions)| Some((*number, arrived(versions)?)))
    }

    /// Bytes in total.
    pub fn space(&self) -> SpaceUsage {
        self.space
    }

    /// How many files are open, closed and forgotten.
    pub fn file_counts(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for entry in self.files.values() {
            counts[match entry.record.state {
                FileState::Open { .. } => 0,
                FileState::Closed { .. } => 1,
                FileState::Forgotten { .. } => 2,
            }] += 1;
        }
        counts
    }
}

/// Where a listing begins: after `after`, and past everything below it when it is a rolled-up prefix.
fn start(query: &ListQuery<'_>) -> Bound<String> {
    if query.after < query.prefix {
        return Bound::Included(query.prefix.to_owned());
    }
    match rolled_up(query.after, query) {
        Some(common) if common == query.after => {
            after_prefix(common).unwrap_or_else(|| Bound::Excluded(query.after.to_owned()))
        }
        _ => Bound::Excluded(query.after.to_owned()),
    }
}

/// The part of `key` up to the first delimiter after the prefix.
fn rolled_up<'a>(key: &'a str, query: &ListQuery<'_>) -> Option<&'a str> {
    if query.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(query.prefix)?;
    let at = rest.find(query.delimiter)?;
    Some(&key[..query.prefix.len() + at + query.delimiter.len()])
}

/// The first place after all keys that begin with `prefix`.
fn after_prefix(prefix: &str) -> Option<Bound<String>> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            last => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(Bound::Included(chars.into_iter().collect()));
        }
    }
    None
}

impl super::super::command::Refusal {
    /// Whether a repeat of the same request may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::ConditionUndecided(_)) || self.kind() == ErrorKind::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_many_segments_begins_in_the_middle_of_them() {
        let segments: Vec<SegmentId> = (0..4).map(SegmentId).collect();
        let record = ObjectRecord {
            segments: segments.clone(),
            len: 40,
            etag: String::new(),
            modified: Millis(0),
            headers: Default::default(),
            checksum: None,
            part_lens: vec![],
            upload: None,
        };
        let many = ObjectView { record: Arc::new(record), ends: Some([10, 15, 16, 40].into()) };
        let few = ObjectView { ends: None, ..many.clone() };

        for (range, among, begins) in [
            (0..40, 0..4, 0),
            (0..1, 0..1, 0),
            (9..10, 0..1, 0),
            (10..11, 1..2, 10),
            (9..16, 0..3, 0),
            (15..17, 2..4, 15),
        ] {
            assert_eq!(many.segments_for(&range), (&segments[among], begins), "{range:?}");
            assert_eq!(few.segments_for(&range), (&segments[..], 0));
        }
    }
}
