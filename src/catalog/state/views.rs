//! What can be read of the state. Only what is visible is shown.

use std::ops::{Bound, Range};
use std::sync::Arc;

use super::segments::{KeptSegment, SegmentPlace};
use super::slot::{Brief, ChecksumKind, SEGMENTS_FEW, Version};
use super::uploads::arrived;
use super::{CatalogState, Changes, FileEntry, JobEntry};
use crate::catalog::record::{CheckpointRecord, ObjectRecord, PartRecord, SegmentRecord, UploadRecord};
use crate::model::{
    About, CheckpointId, CheckpointKind, CheckpointState, FileState, Forgotten, Handle, Holder, JobEnd, JobId, JobRun,
    Label, Lane, LaneOf, Location, Millis, NewUpload, ObjectHead, PartHead, PhysicalFileId, Segment, SegmentCrc,
    SegmentId, SubtaskKey,
};

/// A segment.
#[derive(Debug, Clone)]
pub struct SegmentView {
    /// Its identity.
    pub id: SegmentId,
    /// Who wrote it, and for what.
    pub about: About,
    /// Who keeps it alive.
    pub holder: Holder,
    /// Where its bytes are.
    pub location: Location,
    /// CRC-32C of its bytes, and of each block.
    pub crc: SegmentCrc,
    /// When it was accepted.
    pub created: Millis,
}

impl SegmentView {
    fn of(id: SegmentId, record: SegmentRecord) -> Self {
        let SegmentRecord { job, scope, writer, checkpoint, holder, location, crc, name, created, .. } = record;
        let about = About { job, scope, writer, checkpoint, name };
        Self { id, about, holder, location, crc, created }
    }

    /// Its handle as of now.
    pub fn handle(&self) -> Handle {
        Handle { id: self.id, location: self.location.clone(), crc32c: self.crc.whole }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// When it was first named; `None` for one that is only known by its segments.
    pub created: Option<Millis>,
    /// Checkpoints up to here are subsumed; their segments are refused.
    pub subsumed: Option<CheckpointId>,
    /// How it ended, if what it left is kept; it takes no segments then.
    pub ended: Option<JobEnd>,
    /// How many segments it has.
    pub segments: usize,
}

/// A checkpoint or savepoint that is not subsumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointView {
    /// Its number.
    pub id: CheckpointId,
    /// Whose it is.
    pub kind: CheckpointKind,
    /// Its place in its life.
    pub state: CheckpointState,
    /// When it began.
    pub begun: Millis,
    /// When it completed or was aborted.
    pub ended: Option<Millis>,
    /// The job whose it was before this one has claimed it.
    pub claimed_from: Option<JobId>,
}

impl CheckpointView {
    pub(super) fn of(id: CheckpointId, record: &CheckpointRecord) -> Self {
        let CheckpointRecord { state, begun, ended, kind, claimed_from } = record.clone();
        Self { id, kind, state, begun, ended, claimed_from }
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
    record: Arc<ObjectRecord>,
    /// Where in the object each segment ends, if there are many.
    ends: Option<Arc<[u64]>>,
}

impl ObjectView {
    /// What a reader is told of it.
    pub fn head(&self) -> &ObjectHead {
        &self.record.head
    }

    /// Its bytes, in order.
    pub fn segments(&self) -> &[SegmentId] {
        &self.record.segments
    }

    /// The multipart upload that made it.
    pub fn made_by(&self) -> Option<&str> {
        self.record.upload.as_deref()
    }

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

/// A multipart upload.
#[derive(Debug, Clone)]
pub struct UploadView {
    /// Its id.
    pub id: String,
    /// What was said of the object.
    pub upload: Arc<NewUpload>,
    /// When it was created.
    pub created: Millis,
}

/// A part of a multipart upload that is on storage.
#[derive(Debug, Clone)]
pub struct StoredPart {
    /// Its number.
    pub number: u16,
    /// What a client is told of it.
    pub head: PartHead,
    /// The segment with its bytes; `None` for a part of 0 bytes.
    pub segment: Option<SegmentId>,
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
    pub(super) fn add_file(&mut self, entry: &FileEntry) {
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

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            physical_bytes: self.physical_bytes + other.physical_bytes,
            forgotten_bytes: self.forgotten_bytes + other.forgotten_bytes,
            live_bytes: self.live_bytes + other.live_bytes,
            inline_bytes: self.inline_bytes + other.inline_bytes,
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
        /// The storage class, if it is not `STANDARD`.
        class: Option<String>,
        /// The checksum that it has.
        checksum: Option<ChecksumKind>,
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

impl CatalogState {
    /// A segment, if it is visible.
    pub fn segment(&self, id: SegmentId) -> Option<SegmentView> {
        self.visible(id)?;
        self.segments.record(id, &self.jobs, &self.files).map(|record| SegmentView::of(id, record))
    }

    /// Where a segment is and its checksums, if it is visible: all that a read needs, of which an object may have 10,000.
    pub fn segment_place(&self, id: SegmentId) -> Option<(Location, SegmentCrc)> {
        if !self.is_idle() {
            self.visible(id)?;
        }
        self.segments.place(id, &self.files)
    }

    pub(super) fn visible(&self, id: SegmentId) -> Option<KeptSegment<'_>> {
        self.segments.get(id).filter(|kept| kept.visible && !self.is_gone(kept))
    }

    /// The first of these segments that are not visible, at most `max`.
    pub fn unknown_segments(&self, ids: &[SegmentId], max: usize) -> Vec<SegmentId> {
        let unknown = ids.iter().filter(|id| self.visible(**id).is_none());
        unknown.copied().take(max).collect()
    }

    /// The visible segment that lives at a place.
    pub fn segment_at(&self, place: &Segment) -> Option<SegmentView> {
        let file = self.files.number(&place.file)?;
        let wanted = SegmentPlace::File { file, offset: place.offset };
        let here =
            |id: &&SegmentId| self.segments.get(**id).is_some_and(|kept| kept.place == wanted && kept.len == place.len);
        let (_, entry) = self.files.at(file)?;
        entry.live.keys().find(here).and_then(|id| self.segment(*id))
    }

    /// The visible segments that a checkpoint or savepoint consists of, in no order: who needs one sorts them after the lock
    /// is gone.
    pub fn checkpoint_segments(&self, job: &JobId, checkpoint: CheckpointId) -> Vec<CheckpointSegment> {
        let mut look = self.begin_checkpoint_look(job, checkpoint);
        self.look_at_checkpoint(job, checkpoint, &mut look, &mut || true);
        look.found
    }

    /// Whether the catalog knows a physical file, and what of it.
    pub fn file(&self, id: &PhysicalFileId) -> Option<FileView> {
        self.files.get(id).map(|entry| self.file_view(id, entry))
    }

    pub(super) fn file_view(&self, id: &PhysicalFileId, entry: &FileEntry) -> FileView {
        FileView {
            id: id.clone(),
            state: entry.record.state,
            occupied: entry.record.occupied(),
            lane: self.lane_of(entry),
            created: entry.record.created,
            live_segments: entry.live.len() as u64,
            live_bytes: entry.live_bytes,
        }
    }

    /// The segments that live in a file, in the order of their places. Those that are not visible yet are left out.
    pub fn segments_in(&self, file: &PhysicalFileId) -> Vec<SegmentView> {
        let living = self.files.get(file).into_iter().flat_map(|entry| entry.live.keys());
        let mut found: Vec<SegmentView> = living.filter_map(|id| self.segment(*id)).collect();
        found.sort_by_key(|view| view.location.segment().map(|place| place.offset));
        found
    }

    /// Whether a checkpoint is a savepoint.
    pub fn is_savepoint(&self, job: &JobId, id: CheckpointId) -> bool {
        let record = self.life(job).and_then(|life| life.checkpoints.get(&id));
        record.is_some_and(|record| record.kind == CheckpointKind::Savepoint)
    }

    /// Whose segments a file holds; of one whose lane was not recorded, what one of its segments tells.
    pub(super) fn lane_of(&self, entry: &FileEntry) -> Option<Lane> {
        entry.record.lane.clone().or_else(|| {
            let kept = self.segments.get(*entry.live.first()?.0)?;
            Some(self.lane_of_segment(&kept))
        })
    }

    /// The lane of a segment whose lane is not recorded.
    pub(super) fn lane_of_segment(&self, kept: &KeptSegment<'_>) -> Lane {
        Lane { job: self.jobs.at(kept.job).map(|(job, _)| job.clone()), scope: kept.scope, of: LaneOf::All }
    }

    /// Bytes of the checkpoints of a job: all that each uses, and what it alone uses.
    pub fn space_by_checkpoint(&self, job: &JobId) -> Vec<(CheckpointView, CheckpointSpace)> {
        let mut count = self.begin_checkpoint_count(job);
        self.count_checkpoints(job, &mut count, &mut || true);
        count.finish()
    }

    /// All physical files, by name.
    pub fn files(&self) -> impl Iterator<Item = FileView> + '_ {
        self.files.sorted().map(|(id, entry)| self.file_view(id, entry))
    }

    /// How many segments there are, also those that are not visible yet.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// All segments by identity, also those that are not visible yet.
    pub fn all_segments(&self) -> impl Iterator<Item = SegmentView> {
        self.segments.records(&self.jobs, &self.files).map(|(id, record)| SegmentView::of(id, record))
    }

    /// Files to be deleted from storage: those that `due` says yes to, by why and when they were forgotten, in that order; at
    /// most `max`, which is not zero.
    pub fn forgotten_files(&self, due: impl Fn(Forgotten, Millis) -> bool, max: usize) -> Vec<ForgottenFile> {
        let (mut files, mut left) = (vec![], max);
        let mut goes_on = || {
            left -= 1;
            left > 0
        };
        self.each_forgotten(&mut None, &mut goes_on, &due, |file| files.push(file));
        files
    }

    /// Why and when files were forgotten that are still there.
    pub fn forgotten(&self) -> impl Iterator<Item = (Forgotten, Millis)> {
        self.forgotten.keys().copied()
    }

    /// What those wait for who give space back.
    pub fn changes(&self) -> Changes {
        self.changes
    }

    /// What is known of the segments that live in a file; those that are not visible yet among them.
    pub(in crate::catalog) fn living_in(&self, file: &PhysicalFileId) -> impl Iterator<Item = SegmentRecord> {
        let living = self.files.get(file).into_iter().flat_map(|entry| entry.live.keys());
        living.filter_map(|id| self.segments.record(*id, &self.jobs, &self.files))
    }

    /// Where the last of what lives in a file ends.
    pub fn living_end(&self, file: &PhysicalFileId) -> u64 {
        let living = self.files.get(file).into_iter().flat_map(|entry| entry.live.keys());
        living.filter_map(|id| self.segments.get(*id)?.end()).max().unwrap_or(0)
    }

    /// Jobs that were created, in the order of their ids.
    pub fn jobs(&self) -> Vec<JobView> {
        self.jobs.sorted().map(|(id, entry)| job_view(id, entry)).collect()
    }

    /// What is known of a job.
    pub fn job(&self, job: &JobId) -> Option<JobView> {
        self.jobs.get(job).map(|entry| job_view(job, entry))
    }

    /// A checkpoint that is not subsumed.
    pub fn checkpoint(&self, job: &JobId, id: CheckpointId) -> Option<CheckpointView> {
        self.life(job)?.checkpoints.get(&id).map(|record| CheckpointView::of(id, record))
    }

    /// Checkpoints of a job that are not subsumed, in order.
    pub fn checkpoints(&self, job: &JobId) -> Vec<CheckpointView> {
        let entries = self.life(job).into_iter().flat_map(|life| &life.checkpoints);
        entries.map(|(id, record)| CheckpointView::of(*id, record)).collect()
    }

    /// The newest checkpoint of `job` that it has claimed from another one.
    pub fn claimed_from(&self, job: &JobId, from: &JobId) -> Option<CheckpointId> {
        let life = self.life(job)?;
        let mut newest = life.checkpoints.iter().rev();
        newest.find(|(_, record)| record.claimed_from.as_ref() == Some(from)).map(|(id, _)| *id)
    }

    /// Whether a segment for `checkpoint` would be refused now; a door asks before it reads a body. Returns the run of the job.
    ///
    /// # Errors
    /// The refusal that [`CatalogState::apply`] would answer.
    pub fn would_take(
        &self,
        job: &JobId,
        checkpoint: CheckpointId,
    ) -> Result<JobRun, crate::catalog::command::Refusal> {
        self.checkpoint_takes_segments(job, checkpoint)?;
        Ok(self.run_of(job))
    }

    /// All buckets with the times of their creation.
    pub fn buckets(&self) -> Vec<(String, Millis)> {
        self.buckets.iter().map(|(name, entry)| (name.clone(), entry.record.created)).collect()
    }

    /// Whether a bucket exists.
    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    /// Whether an object stands under a key, or is on its way there.
    pub fn has_versions(&self, bucket: &str, key: &str) -> bool {
        self.buckets.get(bucket).is_some_and(|bucket| bucket.objects.get(key).is_some())
    }

    /// The object that stands under a key.
    pub fn object(&self, bucket: &str, key: &str) -> Option<ObjectView> {
        let slot = self.buckets.get(bucket)?.objects.get(key)?;
        let ends = slot.arrived().and_then(|version| self.ends_of(version));
        Some(ObjectView { record: slot.current()?, ends })
    }

    /// The length of the object that stands under a key.
    pub fn object_len(&self, bucket: &str, key: &str) -> Option<u64> {
        Some(self.buckets.get(bucket)?.objects.get(key)?.brief()?.len)
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
            end += self.segments.get(*id)?.len;
            Some(end)
        });
        let ends: Arc<[u64]> = ends.collect::<Option<_>>()?;
        Some(Arc::clone(version.ends.get_or_init(|| ends)))
    }

    /// One page of a bucket's keys in UTF-8 order.
    pub fn list(&self, bucket: &str, query: &ListQuery<'_>) -> ListPage {
        let mut page = ListPage::default();
        self.list_on(bucket, query, &mut page, &mut || true);
        page
    }

    /// Goes on with a page. A key that is there all the time is on it.
    pub fn list_on(
        &self,
        bucket: &str,
        query: &ListQuery<'_>,
        page: &mut ListPage,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        let Some(entry) = self.buckets.get(bucket) else { return true };
        let mut from = match page.entries.last() {
            Some(last) => start(&ListQuery { after: last.name(), ..query.clone() }),
            None => start(query),
        };
        'keys: loop {
            for (key, slot) in entry.objects.iter_from::<str>(from.as_ref().map(String::as_str)) {
                if !key.starts_with(query.prefix) {
                    return true;
                }
                let Some(Brief { len, etag, modified, class, checksum }) = slot.brief() else { continue };
                if page.entries.len() >= query.max {
                    page.truncated = true;
                    return true;
                }
                let common = rolled_up(key, query);
                page.entries.push(match common {
                    Some(common) => Listed::Prefix(common.to_owned()),
                    None => Listed::Object { key: key.to_string(), len, etag, modified, class, checksum },
                });
                if !goes_on() {
                    return false;
                }
                if let Some(common) = common {
                    let Some(next) = after_prefix(common) else { return true };
                    from = next;
                    continue 'keys;
                }
            }
            return true;
        }
    }

    /// A recorded multipart upload.
    pub fn upload(&self, id: &str) -> Option<UploadView> {
        self.uploads.get(id).map(|entry| upload_view(id, &entry.record))
    }

    /// All recorded multipart uploads by id.
    pub fn uploads(&self) -> impl Iterator<Item = UploadView> {
        self.uploads.iter().map(|(id, entry)| upload_view(id, &entry.record))
    }

    /// The parts of a recorded upload that have arrived, by number.
    pub fn parts(&self, upload: &str) -> impl Iterator<Item = StoredPart> {
        let arrived = self.arrived_parts(upload);
        arrived.map(|(number, part)| StoredPart { number, head: part.head.clone(), segment: part.segment })
    }

    /// When the last part of a recorded upload came; if it has none, when it was created.
    pub fn last_use_of_upload(&self, upload: &UploadView) -> Millis {
        self.arrived_parts(&upload.id).map(|(_, part)| part.head.modified).fold(upload.created, Ord::max)
    }

    fn arrived_parts(&self, upload: &str) -> impl Iterator<Item = (u16, &PartRecord)> {
        let parts = self.uploads.get(upload).into_iter().flat_map(|entry| &entry.parts);
        parts.filter_map(|(number, versions)| Some((*number, arrived(versions)?)))
    }

    /// Bytes in total.
    pub fn space(&self) -> SpaceUsage {
        self.space
    }
}

pub(super) fn job_view(id: &JobId, entry: &JobEntry) -> JobView {
    let record = entry.life().record.as_ref();
    JobView {
        id: id.clone(),
        created: record.map(|record| record.created),
        subsumed: record.and_then(|record| record.subsumed),
        ended: record.and_then(|record| record.ended).map(|(end, _)| end),
        segments: entry.segments.len(),
    }
}

fn upload_view(id: &str, record: &UploadRecord) -> UploadView {
    UploadView { id: id.to_owned(), upload: Arc::clone(&record.upload), created: record.created }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_many_segments_begins_in_the_middle_of_them() {
        let segments: Vec<SegmentId> = (0..4).map(SegmentId).collect();
        let head = ObjectHead {
            len: 40,
            etag: String::new(),
            modified: Millis(0),
            headers: Default::default(),
            checksum: None,
            part_lens: vec![],
        };
        let record = ObjectRecord { segments: segments.clone(), head, upload: None };
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
