//! From the database's records to a state: loading, looking at what a crash left open, settling it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{BucketEntry, FileEntry, PartVersion, State, UploadEntry, Version};
use crate::catalog::record::{
    self, BucketRecord, CheckpointRecord, FileRecord, FileState, Forgotten, Holder, JobRecord, ObjectSlot, OwnerRecord,
    PartRecord, PartSlot, RecordError, RecordKey, SegmentRecord, StoredUpload,
};
use crate::model::{Location, Millis, PhysicalFileId, SegmentId};

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

impl State {
    /// Takes in one record. Records come in the order of their keys, files before segments.
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
                self.files.insert(id, FileEntry::new(record));
            }
            RecordKey::Segment(id) => {
                let record: SegmentRecord = record::decode(key, value)?;
                self.insert_segment(id, record, true);
            }
            RecordKey::Data(_) => {}
            RecordKey::Job(job) => {
                let record: JobRecord = record::decode(key, value)?;
                self.jobs.entry(job).or_default().record = Some(record);
            }
            RecordKey::Checkpoint(job, id) => {
                let record: CheckpointRecord = record::decode(key, value)?;
                self.jobs.entry(job).or_default().checkpoints.insert(id, record);
            }
            RecordKey::Bucket(bucket) => {
                let record: BucketRecord = record::decode(key, value)?;
                self.buckets.insert(bucket, BucketEntry { record, objects: Default::default() });
            }
            RecordKey::Object(bucket, object) => {
                let slot: ObjectSlot = record::decode(key, value)?;
                let versions = slot.versions.into_iter().map(|record| Version::new(record, None));
                if let Some(entry) = self.buckets.get_mut(&bucket) {
                    entry.objects.insert(object, versions.collect());
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
                    Some(upload) => drop(upload.parts.insert(number, versions.collect())),
                    None => self.mutations.push(RecordKey::Part(id, number).delete()),
                }
            }
            RecordKey::Owner => self.owner = Some(record::decode(key, value)?),
        }
        Ok(())
    }

    /// Who opened the catalog last; none before its first owner, or if an older version wrote it.
    pub fn owner(&self) -> Option<&OwnerRecord> {
        self.owner.as_ref()
    }

    /// Another one has opened it.
    pub fn set_owner(&mut self, owner: OwnerRecord) {
        self.mutations.push(RecordKey::Owner.put(&owner));
        self.owner = Some(owner);
    }

    /// Takes in an upload. Its parts come after it, but those of an old version, which get records of their own.
    fn load_upload(&mut self, id: String, stored: StoredUpload) {
        let StoredUpload { record, parts: old } = stored;
        let version = |record| vec![PartVersion { record, on_its_way: None }];
        let parts: BTreeMap<_, _> = old.into_iter().map(|(number, record)| (number, version(record))).collect();
        let numbers: Vec<u16> = parts.keys().copied().collect();
        let upload = RecordKey::Upload(id.clone()).put(&record);
        self.uploads.insert(id.clone(), UploadEntry { record: Arc::new(record), parts });
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
        self.files.iter().filter_map(uncertain).collect()
    }

    /// These segments of files that were open are not what was written: nobody was answered for them.
    pub fn drop_torn(&mut self, segments: &[SegmentId], at: Millis) {
        segments.iter().for_each(|id| self.free_segment(*id, at));
    }

    /// What was found on storage: bytes up to `data_len` can be read, the file has `len` bytes and is closed.
    pub fn settle_file(&mut self, file: &PhysicalFileId, data_len: u64, len: u64, at: Millis) {
        let beyond = |id: &&SegmentId| {
            let place = self.segments.get(*id).map(|entry| &entry.record.location);
            matches!(place, Some(Location::File(segment)) if segment.end() > data_len)
        };
        let living = self.files.get(file).into_iter().flat_map(|entry| &entry.live);
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

    /// Ends loading: objects fall back to the version before one that was lost, and holders are counted anew.
    pub fn finish_recovery(&mut self, at: Millis) {
        self.drop_lost_versions(at);
        self.drop_lost_parts();
        self.recount_holders(at);
        self.end_completed_uploads(at);
        self.free_subsumed(at);
        self.forget_dead_files(at);
    }

    /// What changes of more than is written at once have left: the last segment of a file was freed, and the file was not
    /// forgotten.
    fn forget_dead_files(&mut self, at: Millis) {
        let dead = self.files.iter().filter(|(_, entry)| entry.live.is_empty());
        let dead: Vec<PhysicalFileId> = dead.map(|(id, _)| id.clone()).collect();
        dead.iter().for_each(|file| self.forget_if_dead(file, Forgotten::Died, at));
    }

    /// What a subsumption of more segments than are written at once has left.
    fn free_subsumed(&mut self, at: Millis) {
        let subsumed = |entry: &super::JobEntry| entry.record.as_ref().and_then(|record| record.subsumed);
        let left = self.jobs.values().filter_map(|entry| Some(entry.by_last_used.range(..=subsumed(entry)?)));
        let left: Vec<SegmentId> = left.flatten().flat_map(|(_, segments)| segments).copied().collect();
        left.into_iter().for_each(|id| self.free_segment(id, at));
    }

    fn drop_lost_versions(&mut self, at: Millis) {
        let mut dropped = vec![];
        let mut changed = vec![];
        for (bucket, entry) in &mut self.buckets {
            for (key, versions) in &mut entry.objects {
                let whole = |version: &Version| version.record.segments.iter().all(|id| self.segments.contains_key(id));
                let current = versions.iter().position(whole);
                if versions.len() == 1 && current == Some(0) {
                    continue;
                }
                let before = std::mem::take(versions);
                for (index, version) in before.into_iter().enumerate() {
                    if Some(index) == current { versions.push(version) } else { dropped.push(version) }
                }
                changed.push((bucket.clone(), key.clone()));
            }
        }
        for (bucket, key) in changed {
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
                    record.segment.is_none_or(|segment| self.segments.contains_key(&segment))
                };
                let before = versions.len();
                let current = versions.iter().position(there).map(|current| versions.swap_remove(current));
                *versions = current.into_iter().collect();
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
            let objects = &self.buckets.get(&entry.record.bucket)?.objects;
            let current = objects.get(&entry.record.key)?.first()?;
            (current.record.upload.as_ref() == Some(id)).then(|| id.clone())
        };
        let completed: Vec<String> = self.uploads.iter().filter_map(completed).collect();
        completed.iter().for_each(|id| self.end_upload(id, at));
    }

    /// Objects and uploads say who holds their segments; what nobody holds is freed.
    fn recount_holders(&mut self, at: Millis) {
        let counts = self.object_counts();
        let parts: HashSet<SegmentId> =
            self.part_versions().filter_map(|(_, _, version)| version.record.segment).collect();
        let ids: Vec<SegmentId> = self.segments.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.segments.get_mut(&id) else { continue };
            match (entry.record.holder, counts.get(&id)) {
                (Holder::Checkpoints { .. } | Holder::Savepoint { .. }, _) => {}
                (Holder::Objects { count }, Some(counted)) if count == *counted => {}
                (_, Some(counted)) => {
                    entry.record.holder = Holder::Objects { count: *counted };
                    self.put_segment_record(id);
                }
                (Holder::Upload, None) if parts.contains(&id) => {}
                (_, None) => self.free_segment(id, at),
            }
        }
    }

    /// Every version of every part, with its upload and number.
    pub(super) fn part_versions(&self) -> impl Iterator<Item = (&String, u16, &PartVersion)> {
        let parts = self.uploads.iter().flat_map(|(id, upload)| upload.parts.iter().map(move |part| (id, part)));
        parts.flat_map(|(id, (number, versions))| versions.iter().map(move |version| (id, *number, version)))
    }

    /// How many object versions name each segment.
    pub(super) fn object_counts(&self) -> HashMap<SegmentId, u32> {
        let mut counts = HashMap::new();
        let versions = self.buckets.values().flat_map(|bucket| bucket.objects.values().flatten());
        for id in versions.flat_map(|version| &version.record.segments) {
            *counts.entry(*id).or_default() += 1;
        }
        counts
    }
}
