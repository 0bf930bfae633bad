//! From the database's records to a state: loading, looking at what a crash left open, settling it.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::memory::PART_BYTES;
use super::slot::{Slot, Version};
use super::{CatalogState, FileEntry, PartVersion, UploadEntry};
use crate::catalog::record::{
    self, BucketEndRecord, BucketRecord, CheckpointRecord, CoordinatorRecord, FileRecord, JobRecord, ObjectSlot,
    OwnerRecord, PartRecord, PartSlot, PlacedRecord, RecordError, RecordKey, SegmentRecord, StoredUpload,
};
use crate::model::{FileState, Forgotten, Holder, Millis, PhysicalFileId, SegmentId};
use crate::store::StoreOwner;

/// A file that was on its way to storage when the daemon before this one ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncertainFile {
    /// The file.
    pub id: PhysicalFileId,
    /// Bytes known to be durable.
    pub durable_len: u64,
    /// Bytes it should have.
    pub len: u64,
    /// The multipart upload that should have brought it.
    pub upload: Option<String>,
}

impl CatalogState {
    /// Takes in one record. Records come in the order of [`record::READ_AT_OPEN`].
    ///
    /// # Errors
    /// [`RecordError`] for a record that this version cannot read.
    pub fn load(&mut self, key: &Bytes, value: &[u8]) -> Result<(), RecordError> {
        match RecordKey::decode(key)? {
            RecordKey::File(path) => {
                let id: PhysicalFileId = path.parse().map_err(|_| RecordError::Key(key.clone()))?;
                let record: FileRecord = record::decode(key, value)?;
                self.space.physical_bytes += record.occupied();
                if let FileState::Forgotten { since, why, .. } = record.state {
                    self.space.forgotten_bytes += record.occupied();
                    self.forgotten.entry((why, since)).or_default().insert(id.clone());
                }
                self.file_entry(&id, || record);
            }
            RecordKey::Segment(id) => {
                let record: SegmentRecord = record::decode(key, value)?;
                self.insert_segment(id, &record, true);
            }
            RecordKey::Data(_) => {}
            RecordKey::Job(job) => {
                let record: JobRecord = record::decode(key, value)?;
                self.job_entry(&job).1.life_mut().record = Some(record);
            }
            RecordKey::Checkpoint(job, id) => {
                let record: CheckpointRecord = record::decode(key, value)?;
                self.insert_checkpoint(&job, id, record);
            }
            RecordKey::Bucket(bucket) => {
                let record: BucketRecord = record::decode(key, value)?;
                self.insert_bucket(bucket, record);
            }
            RecordKey::Object(bucket, object) => {
                let slot: ObjectSlot = record::decode(key, value)?;
                let versions = slot.versions.into_iter().map(|record| Version::new(record, None)).collect();
                if let (Some(entry), Some(slot)) = (self.buckets.get_mut(&bucket), Slot::of(versions)) {
                    self.memory.others += slot.weight(&object);
                    entry.objects.insert(object.into(), slot);
                }
            }
            RecordKey::Upload(id) => {
                let stored: StoredUpload = record::decode(key, value)?;
                self.load_upload(id, stored);
            }
            RecordKey::Part(id, number) => {
                let slot: PartSlot = record::decode(key, value)?;
                let versions = slot.versions.into_iter().map(|record| PartVersion { record, on_its_way: None });
                match self.uploads.get_mut(&id) {
                    Some(upload) => {
                        let versions: Vec<PartVersion> = versions.collect();
                        self.memory.others += versions.len() as u64 * PART_BYTES;
                        let before = upload.parts.insert(number, versions).unwrap_or_default();
                        self.memory.others -= before.len() as u64 * PART_BYTES;
                    }
                    None => self.mutations.push(RecordKey::Part(id, number).delete()),
                }
            }
            RecordKey::Coordinator(job) => {
                let CoordinatorRecord { text } = record::decode(key, value)?;
                self.set_coordinator(&job, Some(text.into()));
            }
            RecordKey::Placed(job) => {
                let PlacedRecord { shard } = record::decode(key, value)?;
                self.keep_placed(job, shard);
            }
            RecordKey::BucketEnd(bucket) => {
                record::decode::<BucketEndRecord>(key, value)?;
                self.keep_ending(bucket);
            }
            RecordKey::Owner => self.owner = Some(record::decode(key, value)?),
        }
        Ok(())
    }

    /// Who opened the catalog last; `None` before its first owner, or if an older version wrote it.
    pub fn owner(&self) -> Option<&StoreOwner> {
        self.owner.as_ref().map(|record| &record.owner)
    }

    /// The identity of the store that it was opened for, as it stands beside the data.
    pub fn store_identity(&self) -> Option<&str> {
        self.owner.as_ref().map(|record| &*record.store)
    }

    /// Another one has opened it, for the store of this identity.
    pub fn set_owner(&mut self, store: String, owner: StoreOwner) {
        let record = OwnerRecord { store, owner };
        self.mutations.push(RecordKey::Owner.put(&record));
        self.owner = Some(record);
    }

    /// Takes in an upload. Its parts come after it, but those of an old version, which get records of their own.
    fn load_upload(&mut self, id: String, stored: StoredUpload) {
        let StoredUpload { record, parts: old } = stored;
        let version = |record| vec![PartVersion { record, on_its_way: None }];
        let parts: BTreeMap<_, _> = old.into_iter().map(|(number, record)| (number, version(record))).collect();
        let numbers: Vec<u16> = parts.keys().copied().collect();
        let upload = RecordKey::Upload(id.clone()).put(&record);
        self.insert_upload(id.clone(), UploadEntry { record, parts });
        if !numbers.is_empty() {
            numbers.into_iter().for_each(|number| self.put_part_slot(&id, number));
            self.mutations.push(upload);
        }
    }

    /// Files whose end has to be looked up on storage before anything is answered.
    pub fn uncertain_files(&self) -> Vec<UncertainFile> {
        let uncertain = |(id, entry): (&PhysicalFileId, &FileEntry)| match entry.record.state {
            FileState::Open { durable_len, len } => {
                Some(UncertainFile { id: id.clone(), durable_len, len, upload: entry.record.upload.clone() })
            }
            _ => None,
        };
        let mut found: Vec<UncertainFile> = self.files.iter().filter_map(uncertain).collect();
        found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// These segments of files that were open are not what was written: nobody was answered for them.
    pub fn drop_torn(&mut self, segments: &[SegmentId], at: Millis) {
        segments.iter().for_each(|id| self.free_segment(*id, at));
    }

    /// What was found on storage: bytes up to `data_len` can be read, the file has `len` bytes and is closed.
    pub fn settle_file(&mut self, file: &PhysicalFileId, data_len: u64, len: u64, at: Millis) {
        let beyond = |id: &&SegmentId| {
            let end = self.segments.get(**id).and_then(|kept| kept.end());
            end.is_some_and(|end| end > data_len)
        };
        let living = self.files.get(file).into_iter().flat_map(|entry| entry.live.keys());
        let lost: Vec<SegmentId> = living.filter(beyond).copied().collect();
        for id in lost {
            self.free_segment(id, at);
        }
        self.close_file(file, len, Forgotten::GivenUp, at);
        self.shorten_file(file, len);
    }

    /// What was found on storage: the file has `len` bytes, all that is known of it lies before `durable_len`, and there is
    /// more. It is left as it is until somebody closes it.
    pub fn keep_open(&mut self, file: &PhysicalFileId, durable_len: u64, len: u64) {
        let Some(entry) = self.files.get_mut(file) else { return };
        let before = entry.record.occupied();
        entry.record.state = FileState::Open { durable_len, len };
        entry.record.upload = None;
        self.space.physical_bytes = self.space.physical_bytes + entry.record.occupied() - before;
        self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
    }

    /// Files that an owner before the one of `epoch` left open and that were kept so, with their lengths.
    pub fn kept_files(&self, epoch: u64) -> impl Iterator<Item = (PhysicalFileId, u64)> {
        self.files.iter().filter_map(move |(id, entry)| match entry.record.state {
            FileState::Open { len, .. } if id.epoch() < epoch => Some((id.clone(), len)),
            _ => None,
        })
    }

    /// A closed file has fewer bytes than it had.
    fn shorten_file(&mut self, file: &PhysicalFileId, there: u64) {
        if let Some(entry) = self.files.get_mut(file)
            && let FileState::Closed { len } = entry.record.state
            && there < len
        {
            let before = entry.record.occupied();
            entry.record.state = FileState::Closed { len: there };
            self.space.physical_bytes = self.space.physical_bytes + entry.record.occupied() - before;
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    /// Ends loading, and does all that is left of earlier commands.
    pub fn finish_recovery(&mut self, at: Millis) {
        self.end_loading(at);
        self.finish_work(at);
    }

    /// Ends loading: objects fall back to the version before one that was lost, and holders are counted anew. What is left of
    /// earlier commands is left to [`Self::work`]: it may be more than is written at once.
    pub fn end_loading(&mut self, at: Millis) {
        let mut held = Held::new(self);
        if held.several_versions || held.names_what_is_not_there(self) {
            self.drop_lost_versions(at);
            held = Held::new(self);
        }
        self.drop_lost_parts();
        self.recount_holders(held, at);
        self.end_completed_uploads(at);
        self.resume(at);
        self.forget_dead_files(at);
    }

    /// What changes of more than is written at once have left: the last segment of a file was freed, and the file was not
    /// forgotten.
    fn forget_dead_files(&mut self, at: Millis) {
        let dead = self.files.iter().filter(|(_, entry)| entry.live.is_empty());
        let dead: Vec<PhysicalFileId> = dead.map(|(id, _)| id.clone()).collect();
        dead.iter().for_each(|file| self.forget_if_dead(file, Forgotten::Died, at));
    }

    fn drop_lost_versions(&mut self, at: Millis) {
        let mut changed = vec![];
        for (bucket, entry) in &self.buckets {
            for (key, slot) in entry.objects.iter() {
                let mut whole = slot.len() == 1;
                slot.each_segment(|id| whole &= self.segments.contains(id));
                if !whole {
                    changed.push((bucket.clone(), key.clone()));
                }
            }
        }
        let mut dropped = vec![];
        for (bucket, key) in changed {
            let versions = self.change_versions(&bucket, &key, std::mem::take);
            let whole = |version: &Version| version.record.segments.iter().all(|id| self.segments.contains(*id));
            let current = versions.iter().position(whole);
            for (index, version) in versions.into_iter().enumerate() {
                if Some(index) == current {
                    self.change_versions(&bucket, &key, |versions| versions.push(version));
                } else {
                    dropped.push(version);
                }
            }
            self.put_slot(&bucket, &key);
        }
        self.release_versions(dropped, at);
    }

    /// Of each part the newest version whose bytes arrived stays. What the others have nobody holds any more.
    fn drop_lost_parts(&mut self) {
        let mut changed = vec![];
        for (id, upload) in &mut self.uploads {
            for (number, versions) in &mut upload.parts {
                let there = |version: &PartVersion| {
                    let record: &PartRecord = &version.record;
                    record.segment.is_none_or(|segment| self.segments.contains(segment))
                };
                let before = versions.len();
                let current = versions.iter().position(there).map(|current| versions.swap_remove(current));
                *versions = current.into_iter().collect();
                self.memory.others -= (before - versions.len()) as u64 * PART_BYTES;
                if versions.len() != before {
                    changed.push((id.clone(), *number));
                }
            }
        }
        changed.into_iter().for_each(|(id, number)| self.put_part_slot(&id, number));
    }

    /// What a completion of more parts than are written at once has left. Its object holds the parts by now.
    fn end_completed_uploads(&mut self, at: Millis) {
        let completed = |(id, entry): (&String, &UploadEntry)| {
            let objects = &self.buckets.get(&entry.record.upload.bucket)?.objects;
            let newest = objects.get(&*entry.record.upload.key)?.versions().into_iter().next()?;
            (newest.record.upload.as_ref() == Some(id)).then(|| id.clone())
        };
        let completed: Vec<String> = self.uploads.iter().filter_map(completed).collect();
        completed.iter().for_each(|id| self.end_upload(id, at));
    }

    /// Objects and uploads say who holds their segments; what nobody holds is freed.
    fn recount_holders(&mut self, mut held: Held, at: Millis) {
        let parts: HashSet<SegmentId> =
            self.part_versions().filter_map(|(_, _, version)| version.record.segment).collect();
        let mut miscounted = vec![];
        for (id, kept) in self.segments.iter() {
            let objects = held.count(id);
            match kept.holder {
                Holder::Checkpoints { .. } | Holder::Savepoint { .. } => {}
                Holder::Objects { count } if count == objects && count > 0 => {}
                Holder::Upload if objects == 0 && parts.contains(&id) => {}
                _ => miscounted.push((id, objects)),
            }
        }
        for (id, objects) in miscounted {
            if objects > 0 { self.set_objects(id, objects) } else { self.free_segment(id, at) }
        }
    }

    /// Every version of every part, with its upload and number.
    pub(super) fn part_versions(&self) -> impl Iterator<Item = (&String, u16, &PartVersion)> {
        let parts = self.uploads.iter().flat_map(|(id, upload)| upload.parts.iter().map(move |part| (id, part)));
        parts.flat_map(|(id, (number, versions))| versions.iter().map(move |version| (id, *number, version)))
    }
}

/// How many object versions name each segment, for those who go through all segments in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Named segments in order, each as often as it is named.
    named: Vec<SegmentId>,
    /// How many of them were passed.
    passed: usize,
    /// Whether something stands in several versions.
    several_versions: bool,
}

impl Held {
    pub(super) fn new(state: &CatalogState) -> Self {
        let mut held = Self { named: Vec::with_capacity(state.segments.len()), passed: 0, several_versions: false };
        for (_, slot) in state.buckets.values().flat_map(|bucket| bucket.objects.iter()) {
            held.several_versions |= slot.len() > 1;
            slot.each_segment(|id| held.named.push(id));
        }
        held.named.sort_unstable();
        held
    }

    /// The same of segments that were named, each as often as it was.
    pub(super) fn of(mut named: Vec<SegmentId>) -> Self {
        named.sort_unstable();
        Self { named, passed: 0, several_versions: false }
    }

    fn names_what_is_not_there(&self, state: &CatalogState) -> bool {
        let mut there = state.segments.ids();
        let mut before = None;
        self.named.iter().any(|id| before.replace(*id) != Some(*id) && !there.any(|other| other == *id))
    }

    /// Of a segment; each after those before it.
    pub(super) fn count(&mut self, id: SegmentId) -> u32 {
        let rest = &self.named[self.passed..];
        let smaller = rest.iter().take_while(|named| **named < id).count();
        let same = rest[smaller..].iter().take_while(|named| **named == id).count();
        self.passed += smaller + same;
        u32::try_from(same).unwrap_or(u32::MAX)
    }
}
