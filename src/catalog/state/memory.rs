//! About how much memory the state takes, and the bound on it.
//!
//! Counted is what was put in and taken out, at what it takes with its share of the indexes: rather more than less, and
//! without looking at the allocator. What is on its way is not counted by itself; that is bounded by what may be in flight.
//!
//! At the bound whatever makes the state larger is refused. What makes it smaller or leaves it as it is goes on, and so does
//! what a checkpoint or an upload needs to come to its end: a state that is full can always be made smaller.

use super::{CatalogState, FileEntry, JobLife, UploadEntry};
use crate::catalog::command::{Bind, Command, ObjectContent, PutObject, Refusal, StoreItem};
use crate::model::{JobId, PhysicalFileId};

/// What each takes beside its names.
const JOB_BYTES: u64 = 160;
const FILE_BYTES: u64 = 432;
const BUCKET_BYTES: u64 = 160;
pub(super) const CHECKPOINT_BYTES: u64 = 160;
const UPLOAD_BYTES: u64 = 640;
pub(super) const PART_BYTES: u64 = 256;

/// What is counted, and the bound.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Bytes of everything but segments, which count themselves.
    pub(super) others: u64,
    bound: Option<u64>,
}

pub(super) fn weight_of_job(job: &JobId) -> u64 {
    JOB_BYTES + job.as_str().len() as u64
}

pub(super) fn weight_of_file(file: &PhysicalFileId) -> u64 {
    FILE_BYTES + 2 * file.as_str().len() as u64
}

/// What a coordinator remembers.
pub(super) fn weight_of_coordinator(text: &str) -> u64 {
    JOB_BYTES + text.len() as u64
}

/// Without its objects.
pub(super) fn weight_of_bucket(bucket: &str) -> u64 {
    BUCKET_BYTES + bucket.len() as u64
}

/// Without its parts.
pub(super) fn weight_of_upload(id: &str, entry: &UploadEntry) -> u64 {
    UPLOAD_BYTES + (id.len() + entry.record.upload.key.len()) as u64
}

impl CatalogState {
    /// Bytes of memory that the state takes, about.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.others + self.segments.bytes()
    }

    /// From so many bytes on nothing is taken in that would make it more. `None`: there is no bound.
    pub fn bound_memory(&mut self, bytes: Option<u64>) {
        self.memory.bound = bytes;
    }

    /// The bound that was set.
    pub fn memory_bound(&self) -> Option<u64> {
        self.memory.bound
    }

    /// Whether there is room for more. Whoever receives a body asks before.
    ///
    /// # Errors
    /// [`Refusal::CatalogFull`].
    pub fn has_room(&self) -> Result<(), Refusal> {
        let used_bytes = self.memory_bytes();
        match self.memory.bound {
            Some(limit_bytes) if used_bytes >= limit_bytes => Err(Refusal::CatalogFull { used_bytes, limit_bytes }),
            _ => Ok(()),
        }
    }

    pub(super) fn has_room_for(&self, command: &Command) -> Result<(), Refusal> {
        let more = match command {
            Command::CreateJob(job) | Command::GoOn(job) | Command::Coordinate(job, _) => !self.jobs.contains(job),
            Command::PlaceJob(job, _) => self.placed(job).is_none(),
            Command::BeginCheckpoint(job, id, _) => {
                !self.life(job).is_some_and(|life| life.checkpoints.contains_key(id))
            }
            Command::CreateBucket(bucket) => !self.has_bucket(bucket),
            Command::CreateUpload(id, _, _) => self.upload(id).is_none(),
            Command::InRun(_, _, command) => return self.has_room_for(command),
            _ => false,
        };
        if more { self.has_room() } else { Ok(()) }
    }

    /// The same for what a store brings. An upload may complete, also with parts that were in memory until then: whoever
    /// received them had asked, and answered.
    pub(super) fn has_room_for_item(&self, item: &StoreItem) -> Result<(), Refusal> {
        match &item.bind {
            Bind::Part { .. } => Ok(()),
            Bind::Object(put) if completes_upload(put) => Ok(()),
            _ => self.has_room(),
        }
    }

    /// Everything but segments, counted anew.
    pub(super) fn recount_others(&self) -> u64 {
        let jobs: u64 = self.jobs.iter().map(|(job, _)| weight_of_job(job)).sum();
        let lives = self.jobs.values().filter_map(|entry| entry.life.as_deref());
        let checkpoints = lives.map(|life: &JobLife| life.checkpoints.len() as u64 * CHECKPOINT_BYTES).sum::<u64>();
        let texts = self.jobs.values().filter_map(|entry| entry.life.as_deref()?.coordinator.as_deref());
        let coordinators: u64 = texts.map(weight_of_coordinator).sum();
        let files: u64 = self.files.iter().map(|(file, _): (_, &FileEntry)| weight_of_file(file)).sum();
        let buckets: u64 = self.buckets.keys().map(|bucket| weight_of_bucket(bucket)).sum();
        let objects = self.buckets.values().flat_map(|bucket| bucket.objects.iter());
        let objects: u64 = objects.map(|(key, slot)| slot.weight(key)).sum();
        let uploads: u64 = self.uploads.iter().map(|(id, entry)| weight_of_upload(id, entry)).sum();
        let placed: u64 = self.placed.keys().map(weight_of_job).sum();
        let ending: u64 = self.ending.iter().map(|bucket| weight_of_bucket(bucket)).sum();
        jobs + checkpoints
            + placed
            + ending
            + coordinators
            + files
            + buckets
            + objects
            + uploads
            + self.part_versions().count() as u64 * PART_BYTES
    }
}

fn completes_upload(put: &PutObject) -> bool {
    matches!(&put.content, ObjectContent::Segments { upload: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::{Condition, MadeBy, NewSegment, ObjectToDelete, Outcome, Store, Stored};
    use crate::model::{
        About, CheckpointId, CheckpointKind, Location, Millis, NewUpload, ObjectHead, ObjectHeaders, PartHead,
        SegmentCrc, SegmentId, StateScope, Writer,
    };

    const NOW: Millis = Millis(1);

    fn segment(id: u128) -> NewSegment {
        let (job, scope, writer) = ("bucket/j".parse().unwrap(), StateScope::Shared, Writer::default());
        let about = About { job, scope, writer, checkpoint: None, name: None };
        let location = Location::Inline { len: 1 };
        NewSegment { id: SegmentId(id), about, location, inline: None, crc: SegmentCrc::default() }
    }

    fn put(key: &str, id: u128, upload: Option<MadeBy>) -> StoreItem {
        let head = ObjectHead {
            len: 1,
            etag: "e".into(),
            modified: NOW,
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![],
        };
        let content = ObjectContent::Segments { segments: vec![SegmentId(id)], head, upload: upload.clone() };
        let (bucket, key) = ("bucket".into(), key.into());
        let put = PutObject { bucket, key, condition: Condition::None, content };
        let segments = if upload.is_some() { vec![] } else { vec![segment(id)] };
        StoreItem { segments, bind: Bind::Object(Box::new(put)) }
    }

    fn store(state: &mut CatalogState, item: StoreItem) -> Result<Stored, Refusal> {
        let stored = state.apply(Command::Store(Store { file: None, items: vec![item] }), NOW);
        let Ok(Outcome::Stored(token, mut answers)) = stored else { panic!("{stored:?}") };
        state.confirm(token, NOW);
        answers.remove(0)
    }

    fn is_full<T>(result: Result<T, Refusal>) -> bool {
        matches!(result, Err(Refusal::CatalogFull { .. }))
    }

    /// A state with an object, a checkpoint and an upload of one part.
    fn some() -> CatalogState {
        let mut state = CatalogState::default();
        state.apply(Command::CreateBucket("bucket".into()), NOW).unwrap();
        store(&mut state, put("old", 1, None)).unwrap();
        let job: JobId = "j".parse().unwrap();
        state.apply(Command::CreateJob(job.clone()), NOW).unwrap();
        state.apply(Command::BeginCheckpoint(job, CheckpointId(1), CheckpointKind::Checkpoint), NOW).unwrap();
        let (bucket, key) = ("bucket".into(), "large".into());
        let upload = NewUpload { bucket, key, headers: ObjectHeaders::default(), checksum: None };
        state.apply(Command::CreateUpload("u".into(), upload.into(), NOW), NOW).unwrap();
        let part = PartHead { len: 1, etag: "e".into(), checksum: None, modified: NOW };
        let bind = Bind::Part { upload: "u".into(), number: 1, part };
        store(&mut state, StoreItem { segments: vec![segment(2)], bind }).unwrap();
        state
    }

    #[test]
    fn at_the_bound_nothing_new_is_taken_in_and_what_there_is_comes_to_its_end() {
        let mut state = some();
        let (job, new): (JobId, JobId) = ("j".parse().unwrap(), "new".parse().unwrap());
        let begin = |id| Command::BeginCheckpoint(job.clone(), CheckpointId(id), CheckpointKind::Checkpoint);
        state.bound_memory(Some(state.memory_bytes()));

        assert!(is_full(store(&mut state, put("new", 3, None))));
        assert!(is_full(store(&mut state, put("old", 3, None))), "it is larger until it has taken the place");
        assert!(is_full(state.apply(Command::CreateJob(new), NOW)));
        assert!(is_full(state.apply(Command::CreateBucket("new".into()), NOW)));
        assert!(is_full(state.apply(begin(2), NOW)));
        state.apply(begin(1), NOW).unwrap();
        state.apply(Command::CreateJob(job.clone()), NOW).unwrap();
        state.apply(Command::CompleteCheckpoint(job.clone(), CheckpointId(1)), NOW).unwrap();
        store(&mut state, put("large", 2, Some(MadeBy::Recorded("u".into())))).unwrap();
        let old = ObjectToDelete { key: "old".into(), if_match: None, if_put_at: None };
        state.apply(Command::DeleteObjects("bucket".into(), vec![old]), NOW).unwrap();

        store(&mut state, put("new", 3, None)).unwrap();
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[test]
    fn a_repeat_of_what_is_stored_is_answered_at_the_bound() {
        let mut state = some();
        let repeated = || {
            let mut segment = segment(7);
            segment.about.job = "j".parse().unwrap();
            segment.about.checkpoint = Some(CheckpointId(1));
            let bind = Bind::Checkpoint { idempotency_key: Some("key".parse().unwrap()), run: None };
            StoreItem { segments: vec![segment], bind }
        };
        let first = store(&mut state, repeated()).unwrap();
        state.bound_memory(Some(1));

        let Stored::Handles(handles) = first else { panic!("{first:?}") };
        assert_eq!(store(&mut state, repeated()), Ok(Stored::Repeat(handles[0].clone())));
    }

    #[test]
    fn at_the_bound_uploads_complete_with_parts_that_were_in_memory() {
        let mut state = some();
        state.bound_memory(Some(state.memory_bytes()));

        // The last part of an upload that the state knows goes to storage first.
        let part = PartHead { len: 1, etag: "e".into(), checksum: None, modified: NOW };
        let bind = Bind::Part { upload: "u".into(), number: 2, part };
        store(&mut state, StoreItem { segments: vec![segment(3)], bind }).unwrap();
        store(&mut state, put("large", 3, Some(MadeBy::Recorded("u".into())))).unwrap();
        // Of one that it does not know, the parts become segments together with the object.
        state.bound_memory(Some(state.memory_bytes()));
        let small = put("small", 4, Some(MadeBy::Unrecorded("v".into())));
        store(&mut state, StoreItem { segments: vec![segment(4)], ..small }).unwrap();

        assert!(is_full(store(&mut state, put("new", 5, None))));
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[test]
    fn a_bucket_counts_until_it_is_deleted() {
        let mut state = some();
        let before = state.memory_bytes();

        state.apply(Command::CreateBucket("another".into()), NOW).unwrap();
        assert_eq!(state.memory_bytes(), before + 167);
        state.bound_memory(Some(before + 167));
        assert!(is_full(state.apply(Command::CreateBucket("new".into()), NOW)));
        state.apply(Command::DeleteBucket("another".into()), NOW).unwrap();

        assert_eq!(state.memory_bytes(), before);
    }

    #[test]
    fn what_is_taken_out_counts_no_more() {
        let mut state = some();
        let before = state.memory_bytes();
        for number in 10..1000 {
            store(&mut state, put(&format!("key-{number}"), number, None)).unwrap();
        }
        assert!(state.memory_bytes() > before + 990 * 200);

        let keys =
            (10..1000).map(|number| ObjectToDelete { key: format!("key-{number}"), if_match: None, if_put_at: None });
        state.apply(Command::DeleteObjects("bucket".into(), keys.collect()), NOW).unwrap();

        assert_eq!(state.memory_bytes(), before);
    }
}
