//! Multipart uploads that survive a restart, and their parts.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::store::is_new;
use super::{PartVersion, State, UploadEntry};
use crate::catalog::command::{NewSegment, Refusal, StoreToken};
use crate::catalog::record::{Holder, PartRecord, PartSlot, RecordKey, UploadRecord};
use crate::model::{Millis, SegmentId};

impl State {
    pub(super) fn create_upload(&mut self, id: String, record: Arc<UploadRecord>) -> Result<(), Refusal> {
        self.bucket(&record.bucket)?;
        if !self.uploads.contains_key(&id) {
            self.mutations.push(RecordKey::Upload(id.clone()).put(&*record));
            self.uploads.insert(id, UploadEntry { record, parts: BTreeMap::new() });
        }
        Ok(())
    }

    /// Forgets an upload; parts that no object took are freed.
    pub(super) fn end_upload(&mut self, id: &str, at: Millis) {
        let Some(upload) = self.uploads.remove(id) else { return };
        self.mutations.push(RecordKey::Upload(id.to_owned()).delete());
        for (number, versions) in upload.parts {
            self.mutations.push(RecordKey::Part(id.to_owned(), number).delete());
            self.free_parts(versions, at);
        }
    }

    pub(super) fn end_uploads_to(&mut self, bucket: &str, at: Millis) {
        let to_it = |(id, entry): (&String, &UploadEntry)| (entry.record.bucket == bucket).then(|| id.clone());
        let ended: Vec<String> = self.uploads.iter().filter_map(to_it).collect();
        ended.iter().for_each(|id| self.end_upload(id, at));
    }

    fn free_parts(&mut self, versions: Vec<PartVersion>, at: Millis) {
        for id in versions.into_iter().filter_map(|version| version.record.segment) {
            if self.segments.get(&id).is_some_and(|segment| segment.record.holder == Holder::Upload) {
                self.free_segment(id, at);
            }
        }
    }

    /// Whether an object of these segments can be made: each is new, or a part that has arrived.
    pub(super) fn check_parts(&self, upload: &str, segments: &[SegmentId], new: &[NewSegment]) -> Result<(), Refusal> {
        let entry = self.uploads.get(upload).ok_or_else(|| Refusal::NoSuchUpload(upload.to_owned()))?;
        let arrived = entry.parts.values().filter_map(|versions| arrived(versions)?.segment);
        let parts: HashSet<SegmentId> = arrived.collect();
        let there = |id: &SegmentId| is_new(new, *id) || parts.contains(id) && self.segment(*id).is_some();
        if segments.iter().all(there) { Ok(()) } else { Err(Refusal::NoSuchPart(upload.to_owned())) }
    }

    /// Takes in a part that is on its way; the one before it stays until it has arrived.
    pub(super) fn put_part(&mut self, id: &str, number: u16, record: PartRecord, token: StoreToken) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        let versions = upload.parts.entry(number).or_default();
        versions.insert(0, PartVersion { record, on_its_way: Some(token) });
        self.put_part_slot(id, number);
    }

    /// The part that `token` brought has arrived: it is the one now, unless a newer one is.
    pub(super) fn promote_part(&mut self, id: &str, number: u16, token: StoreToken, at: Millis) {
        let Some(versions) = self.part_versions_mut(id, number) else { return };
        let Some(arrived) = versions.iter().position(|version| version.on_its_way == Some(token)) else { return };
        versions[arrived].on_its_way = None;
        let replaced = versions.split_off(arrived + 1);
        if !replaced.is_empty() {
            self.put_part_slot(id, number);
        }
        self.free_parts(replaced, at);
    }

    /// The part that `token` should have brought is lost.
    pub(super) fn demote_part(&mut self, id: &str, number: u16, token: StoreToken) {
        let Some(versions) = self.part_versions_mut(id, number) else { return };
        versions.retain(|version| version.on_its_way != Some(token));
        self.put_part_slot(id, number);
    }

    fn part_versions_mut(&mut self, id: &str, number: u16) -> Option<&mut Vec<PartVersion>> {
        self.uploads.get_mut(id)?.parts.get_mut(&number)
    }

    /// Writes what stands under a number now.
    pub(super) fn put_part_slot(&mut self, id: &str, number: u16) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        let key = RecordKey::Part(id.to_owned(), number);
        let versions = upload.parts.get(&number).map_or(&[][..], |versions| versions);
        if versions.is_empty() {
            upload.parts.remove(&number);
            self.mutations.push(key.delete());
        } else {
            let versions = versions.iter().map(|version| version.record.clone()).collect();
            self.mutations.push(key.put(&PartSlot { versions }));
        }
    }
}

/// The version of a part that counts.
pub(super) fn arrived(versions: &[PartVersion]) -> Option<&PartRecord> {
    versions.iter().find(|version| version.on_its_way.is_none()).map(|version| &version.record)
}
