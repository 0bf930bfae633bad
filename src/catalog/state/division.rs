//! What goes to which shard when the number of shards changes: of one catalog, which is settled and of which nothing changes any more.
//!
//! | what | goes to the shard |
//! | --- | --- |
//! | an object, a multipart upload with its parts | of its key |
//! | a segment that objects or an upload hold | of each of them: with as many objects as hold it there |
//! | a job, its checkpoints, its coordinator, the segments that they hold | that somebody wishes for it (its coordinator's directories), or of the job whose checkpoint it has claimed, or of its id |
//! | that a job is in another shard than its id tells | that its id tells |
//! | a physical file | of each segment that lives in it; one that holds nothing goes nowhere |
//!
//! A job that has claimed a checkpoint is with the job that had it, as it was before: who repeats the claim is answered there. What is
//! said of jobs that had been placed in another shard is decided anew. Buckets are decided on over all catalogs, and not here.
//!
//! Records are made anew, as the ones who fill the new catalogs write them: in any order, and as often as they like.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;

use super::{CatalogState, JobEntry};
use crate::catalog::mutation::Mutation;
use crate::catalog::record::{
    BucketRecord, CoordinatorRecord, FileRecord, ObjectSlot, PartSlot, PlacedRecord, RecordKey, SegmentRecord,
};
use crate::catalog::state::SegmentView;
use crate::model::{FileState, Holder, JobId, Lane, Location, Millis, PhysicalFileId, Routing, Segment, SegmentId};

/// A catalog, and where everything in it goes.
#[derive(Debug)]
pub struct Division<'a> {
    state: &'a CatalogState,
    to: Routing,
    /// Segments that objects and uploads hold, each as often as it is held, with the shard of the holder. In order.
    held: Vec<(SegmentId, u32)>,
    jobs: BTreeMap<JobId, u32>,
}

/// A record of a new catalog.
#[derive(Debug, Clone)]
pub struct DividedRecord(pub(in crate::catalog) Mutation);

impl DividedRecord {
    /// About how many bytes it has.
    pub fn weight(&self) -> usize {
        self.0.weight()
    }
}

impl CatalogState {
    /// Of a catalog that was filled: the records of segments that another number of objects holds than their record says, because they came
    /// from several catalogs. Nothing else may be to be put right.
    ///
    /// # Errors
    /// What does not add up.
    pub fn recount_divided(&mut self, at: Millis) -> Result<Vec<DividedRecord>, String> {
        let count = |state: &Self| {
            let objects: usize = state.buckets.values().map(|entry| entry.objects.len()).sum();
            (state.segments.len(), objects, state.part_versions().count(), state.files.len())
        };
        let before = count(self);
        self.finish_recovery(at);
        let after = count(self);
        if before != after {
            return Err(format!("segments, objects, parts and files are {before:?}, and {after:?} of them hold"));
        }
        let segment = |mutation: &Mutation| match mutation {
            Mutation::Put { key, .. } => matches!(RecordKey::decode(key), Ok(RecordKey::Segment(_))),
            Mutation::Delete { .. } => false,
        };
        let recounted = self.take_mutations();
        if let Some(other) = recounted.iter().find(|mutation| !segment(mutation)) {
            return Err(format!("{other:?} would be done at its first start"));
        }
        match self.check().into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(recounted.into_iter().map(DividedRecord).collect()),
        }
    }
}

/// Where jobs have to be, for reasons that the catalog does not know.
#[derive(Debug, Default, Clone)]
pub struct PlaceWishes {
    /// In these shards.
    pub shards: BTreeMap<JobId, u32>,
    /// Where another job is.
    pub with: BTreeMap<JobId, JobId>,
}

/// What one shard has, or is to have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DividedCounts {
    /// Objects.
    pub keys: u64,
    /// Multipart uploads.
    pub uploads: u64,
    /// Jobs that are known by more than their keys.
    pub jobs: u64,
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Physical files.
    pub files: u64,
}

impl DividedCounts {
    /// With others.
    pub fn add(&mut self, other: &Self) {
        self.keys += other.keys;
        self.uploads += other.uploads;
        self.jobs += other.jobs;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.files += other.files;
    }
}

/// The buckets of some catalogs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DividedBuckets {
    /// Those that there are, and since when, by the catalog that decides.
    decided: BTreeMap<String, Millis>,
    /// Those that something is in or is being put into: since when, and in which new shards.
    used: BTreeMap<String, (Millis, BTreeSet<u32>)>,
}

impl DividedBuckets {
    /// Those of one more catalog.
    pub fn add(&mut self, division: &Division<'_>, decides: bool) {
        let state = division.state;
        for (bucket, entry) in &state.buckets {
            let created = entry.record.created;
            if decides && !state.ending.contains(bucket) {
                self.decided.insert(bucket.clone(), created);
            }
            let shards = entry.objects.keys().map(|key| division.to.of_key(bucket, key));
            let shards: BTreeSet<u32> = shards.chain(division.uploads_to(bucket)).collect();
            if !shards.is_empty() {
                let used = self.used.entry(bucket.clone()).or_insert((created, BTreeSet::new()));
                used.0 = used.0.min(created);
                used.1.extend(shards);
            }
        }
    }

    /// The records that the new shards get. One whose end had begun stays if something is in it, and is gone if not: that is how its end
    /// goes on anyway.
    pub fn records(&self) -> impl Iterator<Item = (u32, DividedRecord)> + '_ {
        let names: BTreeSet<&String> = self.decided.keys().chain(self.used.keys()).collect();
        names.into_iter().flat_map(|bucket| {
            let used = self.used.get(bucket);
            let created = self.decided.get(bucket).copied().or(used.map(|(created, _)| *created)).unwrap_or(Millis(0));
            let record = RecordKey::Bucket(bucket.clone()).put(&BucketRecord { created });
            let mut shards: BTreeSet<u32> = used.map(|(_, shards)| shards.clone()).unwrap_or_default();
            // The first one decides which there are.
            shards.insert(0);
            shards.into_iter().map(move |shard| (shard, DividedRecord(record.clone())))
        })
    }
}

impl<'a> Division<'a> {
    /// Of `state`.
    pub fn new(state: &'a CatalogState, to: Routing, wishes: &PlaceWishes) -> Self {
        let mut held = vec![];
        for (bucket, entry) in &state.buckets {
            for (key, slot) in entry.objects.iter() {
                let shard = to.of_key(bucket, key);
                slot.each_segment(|id| held.push((id, shard)));
            }
        }
        for (upload, _, version) in state.part_versions() {
            let (Some(id), Some(entry)) = (version.record.segment, state.uploads.get(upload)) else { continue };
            held.push((id, to.of_key(&entry.record.upload.bucket, &entry.record.upload.key)));
        }
        held.sort_unstable();
        let known = state.jobs.iter().filter(|(job, entry)| {
            // What a job that was placed elsewhere has left here is of no use there.
            entry.life.is_some() && !state.placed.contains_key(*job)
        });
        let jobs = known.map(|(job, _)| (job.clone(), shard_of_job(state, to, wishes, job))).collect();
        Self { state, to, held, jobs }
    }

    /// The state that is divided.
    pub fn state(&self) -> &'a CatalogState {
        self.state
    }

    fn uploads_to<'b>(&'b self, bucket: &'b str) -> impl Iterator<Item = u32> + 'b {
        let all = self.state.uploads.values().map(|entry| &entry.record.upload);
        all.filter(move |upload| upload.bucket == bucket).map(|upload| self.to.of_key(&upload.bucket, &upload.key))
    }

    /// The shard that a job goes to.
    pub fn shard_of(&self, job: &JobId) -> u32 {
        self.jobs.get(job).copied().unwrap_or_else(|| self.to.of_job(job.as_str()))
    }

    /// The shards of a segment with so many objects that hold it there.
    fn shards_of(&self, id: SegmentId, holder: Holder, job: &JobId) -> Vec<(u32, u32)> {
        if !matches!(holder, Holder::Objects { .. } | Holder::Upload) {
            return vec![(self.shard_of(job), 0)];
        }
        let first = self.held.partition_point(|(held, _)| *held < id);
        let mut shards: Vec<(u32, u32)> = vec![];
        for (_, shard) in self.held[first..].iter().take_while(|(held, _)| *held == id) {
            match shards.last_mut() {
                Some((last, count)) if last == shard => *count += 1,
                _ => shards.push((*shard, 1)),
            }
        }
        shards
    }

    /// Jobs that are to be in another shard than their ids tell, and in which.
    pub fn placed(&self) -> impl Iterator<Item = (&JobId, u32)> {
        self.jobs.iter().map(|(job, shard)| (job, *shard)).filter(|(job, shard)| self.to.of_job(job.as_str()) != *shard)
    }

    /// What each of the new shards gets.
    pub fn counts(&self) -> Vec<DividedCounts> {
        let mut counts = vec![DividedCounts::default(); self.to.shards() as usize];
        for (bucket, entry) in &self.state.buckets {
            entry.objects.keys().for_each(|key| counts[self.to.of_key(bucket, key) as usize].keys += 1);
        }
        for upload in self.state.uploads.values().map(|entry| &entry.record.upload) {
            counts[self.to.of_key(&upload.bucket, &upload.key) as usize].uploads += 1;
        }
        self.jobs.values().for_each(|shard| counts[*shard as usize].jobs += 1);
        for file in self.files() {
            for (shard, segments) in self.parts(&file) {
                let counts = &mut counts[shard as usize];
                counts.files += 1;
                counts.segments += segments.len() as u64;
                counts.bytes += segments.iter().map(|view| view.location.len()).sum::<u64>();
            }
        }
        for (id, kept) in self.state.segments.iter().filter(|(_, kept)| kept.is_inline()) {
            let Some((job, _)) = self.state.jobs.at(kept.job) else { continue };
            for (shard, _) in self.shards_of(id, kept.holder, job) {
                counts[shard as usize].segments += 1;
                counts[shard as usize].bytes += kept.len;
            }
        }
        counts
    }

    /// Files in which something lives, in the order of their names.
    pub fn files(&self) -> Vec<PhysicalFileId> {
        let living = self.state.files.iter().filter(|(_, entry)| !entry.live.is_empty());
        let mut files: Vec<PhysicalFileId> = living.map(|(id, _)| id.clone()).collect();
        files.sort_unstable();
        files
    }

    /// The length of a file that is closed; `None` of one that is not, or not known.
    pub fn len_of(&self, file: &PhysicalFileId) -> Option<u64> {
        match self.state.files.get(file)?.record.state {
            FileState::Closed { len } => Some(len),
            FileState::Open { .. } | FileState::Forgotten { .. } => None,
        }
    }

    /// What lives in a file, in the order in which it stands there: for each shard that has some of it.
    pub fn parts(&self, file: &PhysicalFileId) -> BTreeMap<u32, Vec<SegmentView>> {
        let mut living = self.state.segments_in(file);
        living.sort_by_key(|view| view.location.segment().map(|place| place.offset));
        let mut parts: BTreeMap<u32, Vec<SegmentView>> = BTreeMap::new();
        for view in living {
            for (shard, _) in self.shards_of(view.id, view.holder, &view.about.job) {
                parts.entry(shard).or_default().push(view.clone());
            }
        }
        parts
    }

    /// Segments inside the catalog, after one of them, with the shards that they go to.
    pub fn inline(&self, after: Option<SegmentId>, max: usize) -> Vec<(SegmentId, Vec<u32>)> {
        let inline = self.state.segments.iter_after(after).filter(|(_, kept)| kept.is_inline());
        let shards = inline.filter_map(|(id, kept)| {
            let (job, _) = self.state.jobs.at(kept.job)?;
            Some((id, self.shards_of(id, kept.holder, job).into_iter().map(|(shard, _)| shard).collect()))
        });
        shards.take(max).collect()
    }

    /// The bytes of one, beside its record.
    pub fn inline_data(id: SegmentId, data: Bytes) -> DividedRecord {
        DividedRecord(Mutation::Put { key: RecordKey::Data(id).encode(), value: data })
    }

    /// The checksum that its bytes should have.
    pub fn crc_of(&self, id: SegmentId) -> Option<u32> {
        self.state.segments.get(id).map(|kept| kept.crc())
    }

    /// The record of a segment in a shard: where it was, or at `place`.
    pub fn segment(&self, id: SegmentId, shard: u32, place: Option<Segment>) -> Option<DividedRecord> {
        let record = self.state.segments.record(id, &self.state.jobs, &self.state.files)?;
        let there = self.shards_of(id, record.holder, &record.job);
        let count = there.iter().find(|(there, _)| *there == shard).map_or(0, |(_, count)| *count);
        let holder = match record.holder {
            Holder::Objects { .. } => Holder::Objects { count },
            other => other,
        };
        let location = place.map_or(record.location, Location::File);
        Some(DividedRecord(RecordKey::Segment(id).put(&SegmentRecord { holder, location, ..record })))
    }

    /// The record of a file that is copied as it is, once it is.
    pub fn file(&self, file: &PhysicalFileId) -> Option<DividedRecord> {
        let record = &self.state.files.get(file)?.record;
        Some(DividedRecord(RecordKey::File(file.to_string()).put(record)))
    }

    /// The record of a new file of the same lane with `len` bytes.
    pub fn new_file(&self, like: &PhysicalFileId, file: &PhysicalFileId, len: u64) -> Option<DividedRecord> {
        let like = self.state.files.get(like)?;
        let lane = self.state.lane_of(like);
        let record = FileRecord {
            state: FileState::Closed { len },
            lane,
            holes: 0,
            upload: None,
            moved_from: false,
            ..like.record.clone()
        };
        Some(DividedRecord(RecordKey::File(file.to_string()).put(&record)))
    }

    /// The record of a file that is on its way with this upload.
    pub fn coming_file(&self, file: &PhysicalFileId, upload: &str) -> Option<DividedRecord> {
        let record = self.state.files.get(file)?.record.clone();
        let (state, upload) = (FileState::Open { durable_len: 0, len: 0 }, Some(upload.to_owned()));
        Some(DividedRecord(RecordKey::File(file.to_string()).put(&FileRecord { state, upload, ..record })))
    }

    /// Whose segments a file holds.
    pub fn lane(&self, file: &PhysicalFileId) -> Option<Lane> {
        self.state.files.get(file).and_then(|entry| self.state.lane_of(entry))
    }

    /// All other records, with the shards that they go to: but those of buckets, files and segments.
    pub fn records(&self) -> impl Iterator<Item = (u32, DividedRecord)> + '_ {
        self.records_of_objects().chain(self.records_of_uploads()).chain(self.records_of_jobs())
    }

    fn records_of_objects(&self) -> impl Iterator<Item = (u32, DividedRecord)> + '_ {
        self.state.buckets.iter().flat_map(move |(bucket, entry)| {
            entry.objects.iter().map(move |(key, slot)| {
                let versions = slot.versions().into_iter().map(|version| version.record).collect();
                let record = RecordKey::Object(bucket.clone(), key.to_string()).put(&ObjectSlot { versions });
                (self.to.of_key(bucket, key), DividedRecord(record))
            })
        })
    }

    fn records_of_uploads(&self) -> impl Iterator<Item = (u32, DividedRecord)> + '_ {
        self.state.uploads.iter().flat_map(move |(id, entry)| {
            let upload = &entry.record.upload;
            let shard = self.to.of_key(&upload.bucket, &upload.key);
            let parts = entry.parts.iter().map(move |(number, versions)| {
                let versions = versions.iter().map(|version| version.record.clone()).collect();
                RecordKey::Part(id.clone(), *number).put(&PartSlot { versions })
            });
            std::iter::once(RecordKey::Upload(id.clone()).put(&entry.record))
                .chain(parts)
                .map(move |record| (shard, DividedRecord(record)))
        })
    }

    fn records_of_jobs(&self) -> impl Iterator<Item = (u32, DividedRecord)> + '_ {
        self.jobs.iter().flat_map(move |(job, shard)| {
            let entry = self.state.jobs.get(job).map(JobEntry::life);
            let record = entry.and_then(|life| life.record.as_ref());
            let record = record.map(|record| RecordKey::Job(job.clone()).put(record));
            let coordinator = entry
                .and_then(|life| life.coordinator.as_ref())
                .map(|text| RecordKey::Coordinator(job.clone()).put(&CoordinatorRecord { text: text.to_string() }));
            let checkpoints = entry.into_iter().flat_map(|life| &life.checkpoints);
            let checkpoints = checkpoints.map(|(id, record)| RecordKey::Checkpoint(job.clone(), *id).put(record));
            let home = self.to.of_job(job.as_str());
            let placed =
                (home != *shard).then(|| (home, RecordKey::Placed(job.clone()).put(&PlacedRecord { shard: *shard })));
            let there = record.into_iter().chain(coordinator).chain(checkpoints);
            there
                .map(move |record| (*shard, record))
                .chain(placed)
                .map(|(shard, record)| (shard, DividedRecord(record)))
        })
    }
}

/// The shard that a job goes to.
fn shard_of_job(state: &CatalogState, to: Routing, wishes: &PlaceWishes, job: &JobId) -> u32 {
    let mut passed = vec![job];
    loop {
        let job = passed[passed.len() - 1];
        if let Some(shard) = wishes.shards.get(job) {
            return *shard;
        }
        let with = wishes.with.get(job).or_else(|| claimed_from(state, job));
        let Some(from) = with else { return to.of_job(job.as_str()) };
        if let Some(first) = passed.iter().position(|passed| *passed == from) {
            // They have claimed from each other: all of them find the same one.
            let decides = passed[first..].iter().min().copied().unwrap_or(job);
            return to.of_job(decides.as_str());
        }
        passed.push(from);
    }
}

/// The job from which a job has claimed last, as far as that is remembered.
fn claimed_from<'a>(state: &'a CatalogState, job: &JobId) -> Option<&'a JobId> {
    let checkpoints = &state.life(job)?.checkpoints;
    checkpoints.values().rev().find_map(|record| record.claimed_from.as_ref().filter(|from| *from != job))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::{
        Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, RestorePoint, Store, StoreFile,
        StoreItem,
    };
    use crate::catalog::state::written::WrittenRecords;
    use crate::model::{
        About, CheckpointId, CheckpointKind, Claim, LaneOf, NewUpload, ObjectHead, ObjectHeaders, PartHead, SegmentCrc,
        StateScope, Writer,
    };

    const NOW: Millis = Millis(7);
    const BUCKET: &str = "b";

    fn job(name: &str) -> JobId {
        name.parse().unwrap()
    }

    fn head() -> ObjectHead {
        let (headers, checksum) = (ObjectHeaders::default(), None);
        ObjectHead { len: 10, part_lens: vec![], etag: "e".into(), modified: NOW, headers, checksum }
    }

    /// Stores one segment for each of these, in one file, or inside the catalog.
    fn store(
        state: &mut CatalogState,
        first: u128,
        of: &JobId,
        in_file: bool,
        binds: Vec<(Option<CheckpointId>, Bind)>,
    ) {
        let file = PhysicalFileId::new(None, 1, first);
        let items = (first..).zip(binds).map(|(id, (checkpoint, bind))| {
            let about =
                About { job: of.clone(), scope: StateScope::Shared, writer: Writer::default(), checkpoint, name: None };
            let place = Segment { file: file.clone(), offset: (id - first) as u64 * 10, len: 10 };
            let (location, inline) = match in_file {
                true => (Location::File(place), None),
                false => (Location::Inline { len: 10 }, Some(Bytes::from_static(b"0123456789"))),
            };
            let segment = NewSegment { id: SegmentId(id), about, location, inline, crc: SegmentCrc::default() };
            StoreItem { segments: vec![segment], bind }
        });
        let items: Vec<StoreItem> = items.collect();
        let lane = Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
        let len = items.len() as u64 * 10;
        let file = in_file.then(|| StoreFile { id: file.clone(), lane, len, closes: true, upload: None });
        let stored = state.apply(Command::Store(Store { file, items }), NOW).unwrap();
        let Outcome::Stored(token, answers) = stored else { panic!("it was to be stored") };
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        state.confirm(token, NOW);
    }

    fn object(key: &str, id: u128) -> (Option<CheckpointId>, Bind) {
        let content = ObjectContent::Segments { segments: vec![SegmentId(id)], head: head(), upload: None };
        let (bucket, key, condition) = (BUCKET.to_owned(), key.to_owned(), Condition::None);
        (None, Bind::Object(Box::new(PutObject { bucket, key, condition, content })))
    }

    fn copy_of(key: &str, of: &str) -> Command {
        let content = ObjectContent::CopyOf {
            bucket: BUCKET.to_owned(),
            key: of.to_owned(),
            if_match: None,
            headers: None,
            tags: None,
            modified: NOW,
            storage_class: None,
            checksum: None,
        };
        let (bucket, key, condition) = (BUCKET.to_owned(), key.to_owned(), Condition::None);
        let bind = Bind::Object(Box::new(PutObject { bucket, key, condition, content }));
        Command::Store(Store { file: None, items: vec![StoreItem { segments: vec![], bind }] })
    }

    /// Objects of many folders in one file and in the catalog, copies of one, an upload, jobs, and one that has claimed from another.
    fn a_catalog() -> CatalogState {
        let mut state = CatalogState::default();
        state.apply(Command::CreateBucket(BUCKET.to_owned()), NOW).unwrap();
        state.apply(Command::CreateBucket("empty".to_owned()), NOW).unwrap();
        let objects = |first: u128| (first..first + 10).map(|id| object(&format!("d{id}/x"), id)).collect();
        store(&mut state, 100, &job("b/d"), true, objects(100));
        store(&mut state, 200, &job("b/d"), false, objects(200));
        for n in 0..6 {
            for of in ["d100/x", "d200/x"] {
                let stored = state.apply(copy_of(&format!("copy{n}/{of}"), of), NOW).unwrap();
                let Outcome::Stored(token, _) = stored else { panic!("it was to be stored") };
                state.confirm(token, NOW);
            }
        }
        let upload = NewUpload {
            bucket: BUCKET.into(),
            key: "late/x".into(),
            headers: ObjectHeaders::default(),
            checksum: None,
        };
        state.apply(Command::CreateUpload("u".into(), std::sync::Arc::new(upload), NOW), NOW).unwrap();
        let part = PartHead { len: 10, etag: "p".into(), checksum: None, modified: NOW };
        store(&mut state, 300, &job("b/late"), true, vec![(None, Bind::Part { upload: "u".into(), number: 1, part })]);
        for (n, name) in (0..).zip(["one/x", "two/x", "three/x", "four/x"]) {
            let (of, checkpoint) = (job(name), CheckpointId(1));
            state.apply(Command::CreateJob(of.clone()), NOW).unwrap();
            state.apply(Command::BeginCheckpoint(of.clone(), checkpoint, CheckpointKind::Checkpoint), NOW).unwrap();
            let state_of = (Some(checkpoint), Bind::Checkpoint { idempotency_key: None, run: None });
            store(&mut state, 400 + 10 * n, &of, n % 2 == 0, vec![state_of.clone(), state_of]);
            state.apply(Command::CompleteCheckpoint(of.clone(), checkpoint), NOW).unwrap();
        }
        let (claims, from) = (job("five/x"), job("one/x"));
        state.apply(Command::CreateJob(claims.clone()), NOW).unwrap();
        let claim = RestorePoint { job: claims, from, checkpoint: CheckpointId(1), claim: Claim::Claim };
        state.apply(Command::Restore(claim), NOW).unwrap();
        state.take_mutations();
        state
    }

    fn divided(state: &CatalogState, shards: u32, wishes: &PlaceWishes) -> Vec<CatalogState> {
        let division = Division::new(state, Routing::over(shards), wishes);
        let mut written = vec![WrittenRecords::default(); shards as usize];
        let mut write = |shard: u32, record: DividedRecord| written[shard as usize].write(&[record.0]);
        for file in division.files() {
            for (shard, segments) in division.parts(&file) {
                write(shard, division.file(&file).unwrap());
                segments.iter().for_each(|view| write(shard, division.segment(view.id, shard, None).unwrap()));
            }
        }
        for (id, shards) in division.inline(None, 1000) {
            shards.into_iter().for_each(|shard| write(shard, division.segment(id, shard, None).unwrap()));
        }
        division.records().for_each(|(shard, record)| write(shard, record));
        let mut buckets = DividedBuckets::default();
        buckets.add(&division, true);
        buckets.records().for_each(|(shard, record)| write(shard, record));
        let states = written.iter().map(|written| {
            let mut state = written.recovered(NOW);
            assert_eq!(state.check(), Vec::<String>::new());
            // Nothing had to be put right.
            assert_eq!(state.take_mutations(), vec![]);
            state
        });
        states.collect()
    }

    #[test]
    fn every_part_is_a_whole_catalog_and_nothing_is_lost() {
        let state = a_catalog();
        let objects: Vec<String> = state.buckets[BUCKET].objects.keys().map(|key| key.to_string()).collect();
        for shards in [1, 2, 5, 16] {
            let parts = divided(&state, shards, &PlaceWishes::default());
            let routing = Routing::over(shards);

            for key in &objects {
                let part = &parts[routing.of_key(BUCKET, key) as usize];
                let (found, expected) = (part.object(BUCKET, key).unwrap(), state.object(BUCKET, key).unwrap());
                assert_eq!((found.head(), found.segments()), (expected.head(), expected.segments()), "{key}");
            }
            let ids = |states: &[CatalogState]| -> BTreeSet<SegmentId> {
                states.iter().flat_map(|state| state.all_segments().map(|view| view.id).collect::<Vec<_>>()).collect()
            };
            assert_eq!(ids(&parts), ids(std::slice::from_ref(&state)));
            let counted = Division::new(&state, routing, &PlaceWishes::default()).counts();
            for (part, counts) in parts.iter().zip(&counted) {
                assert_eq!(counts.segments, part.segment_count() as u64);
                assert_eq!(counts.bytes, part.space().live_bytes);
                assert_eq!(counts.files, part.files().count() as u64);
            }
            assert_eq!(parts[routing.of_key(BUCKET, "late/x") as usize].parts("u").count(), 1);
            assert!(parts[0].has_bucket("empty"), "the first one decides which buckets there are");
            let of = |job: &JobId| -> Vec<u32> {
                (0..shards)
                    .filter(|shard| parts[*shard as usize].job(job).is_some_and(|job| job.created.is_some()))
                    .collect()
            };
            for name in ["two/x", "three/x", "four/x"] {
                assert_eq!(of(&job(name)), [routing.of_job(name)], "{name}");
            }
            // With the one that it has claimed from; and its own shard knows.
            let (there, home) = (routing.of_job("one/x"), routing.of_job("five/x"));
            assert_eq!(of(&job("five/x")), [there]);
            assert_eq!(parts[home as usize].placed(&job("five/x")), (there != home).then_some(there));
            assert_eq!(parts[there as usize].checkpoint_segments(&job("five/x"), CheckpointId(1)).len(), 2);
        }
    }

    #[test]
    fn parts_that_come_together_again_are_one_catalog_with_the_counts_of_all() {
        let whole = a_catalog();
        let parts = divided(&whole, 5, &PlaceWishes::default());
        let mut written = WrittenRecords::default();
        let mut buckets = DividedBuckets::default();
        for (shard, part) in parts.iter().enumerate() {
            let division = Division::new(part, Routing::over(1), &PlaceWishes::default());
            buckets.add(&division, shard == 0);
            for file in division.files() {
                written.write(&[division.file(&file).unwrap().0]);
                for (shard, segments) in division.parts(&file) {
                    segments
                        .iter()
                        .for_each(|view| written.write(&[division.segment(view.id, shard, None).unwrap().0]));
                }
            }
            for (id, _) in division.inline(None, 1000) {
                written.write(&[division.segment(id, 0, None).unwrap().0]);
            }
            division.records().for_each(|(_, record)| written.write(&[record.0]));
        }
        buckets.records().for_each(|(_, record)| written.write(&[record.0]));

        let mut again = written.loaded();
        let recounted = again.recount_divided(NOW).unwrap();

        assert!(!recounted.is_empty(), "copies were in several shards");
        recounted.into_iter().for_each(|record| written.write(&[record.0]));
        assert_eq!(written.loaded().recount_divided(NOW).unwrap().len(), 0);
        let holders = |state: &CatalogState| -> Vec<_> {
            state.all_segments().map(|view| (view.id, view.holder, view.about.job)).collect()
        };
        assert_eq!(holders(&again), holders(&whole));
        // What is missing is no count.
        let lost = RecordKey::Segment(SegmentId(100)).encode();
        written.0.remove(&lost);
        assert!(written.loaded().recount_divided(NOW).is_err());
    }

    #[test]
    fn a_job_is_where_it_has_to_be_and_with_it_those_that_have_claimed_from_it() {
        let state = a_catalog();
        let other = (Routing::over(5).of_job("one/x") + 1) % 5;
        let wishes =
            PlaceWishes { shards: [(job("one/x"), other)].into(), with: [(job("two/x"), job("one/x"))].into() };

        let parts = divided(&state, 5, &wishes);

        for name in ["one/x", "two/x", "five/x"] {
            assert!(parts[other as usize].job(&job(name)).is_some_and(|job| job.created.is_some()), "{name}");
            let home = Routing::over(5).of_job(name);
            assert_eq!(parts[home as usize].placed(&job(name)), (home != other).then_some(other), "{name}");
        }
    }

    #[test]
    fn jobs_that_have_claimed_from_each_other_are_together() {
        let mut state = a_catalog();
        let claim =
            RestorePoint { job: job("one/x"), from: job("five/x"), checkpoint: CheckpointId(1), claim: Claim::Claim };
        // Of the claimed checkpoint only its record at the new job tells.
        state.apply(Command::BeginCheckpoint(job("five/x"), CheckpointId(2), CheckpointKind::Checkpoint), NOW).unwrap();
        state.apply(Command::CompleteCheckpoint(job("five/x"), CheckpointId(2)), NOW).unwrap();
        let again = RestorePoint { checkpoint: CheckpointId(2), ..claim };
        state.apply(Command::Restore(again), NOW).unwrap();
        for shards in 2..20 {
            let division = Division::new(&state, Routing::over(shards), &PlaceWishes::default());
            assert_eq!(division.shard_of(&job("one/x")), division.shard_of(&job("five/x")), "{shards}");
        }
    }
}
