//! Buckets, objects and multipart uploads.

use std::collections::BTreeMap;

use super::store::is_new;
use super::{BucketEntry, State, Version};
use crate::catalog::command::{
    Condition, NewSegment, ObjectContent, ObjectToDelete, Outcome, PutObject, Refusal, StoreToken, Stored,
};
use crate::catalog::record::{BucketRecord, Holder, ObjectRecord, ObjectSlot, PartRecord, RecordKey, UploadRecord};
use crate::model::{Millis, SegmentId};

impl State {
    pub(super) fn create_bucket(&mut self, bucket: String, at: Millis) -> Result<(), Refusal> {
        if self.buckets.contains_key(&bucket) {
            return Err(Refusal::BucketExists(bucket));
        }
        let record = BucketRecord { created: at };
        self.mutations.push(RecordKey::Bucket(bucket.clone()).put(&record));
        self.buckets.insert(bucket, BucketEntry { record, objects: BTreeMap::new() });
        Ok(())
    }

    pub(super) fn delete_bucket(&mut self, bucket: &str) -> Result<(), Refusal> {
        let entry = self.bucket(bucket)?;
        if !entry.objects.is_empty() || self.uploads.values().any(|upload| upload.bucket == bucket) {
            return Err(Refusal::BucketNotEmpty(bucket.to_owned()));
        }
        self.buckets.remove(bucket);
        self.mutations.push(RecordKey::Bucket(bucket.to_owned()).delete());
        Ok(())
    }

    pub(super) fn bucket(&self, bucket: &str) -> Result<&BucketEntry, Refusal> {
        self.buckets.get(bucket).ok_or_else(|| Refusal::NoSuchBucket(bucket.to_owned()))
    }

    /// Checks everything that could refuse a put, and says what the new object is.
    pub(super) fn object_content(&self, put: &PutObject, new: &[NewSegment]) -> Result<ObjectRecord, Refusal> {
        self.check_condition(&put.bucket, &put.key, &put.condition)?;
        match &put.content {
            ObjectContent::Segments { segments, len, etag, headers, checksum, part_lens, upload } => {
                if let Some(upload) = upload {
                    self.check_parts(upload, segments, new)?;
                }
                Ok(ObjectRecord {
                    segments: segments.clone(),
                    len: *len,
                    etag: etag.clone(),
                    modified: put.modified,
                    headers: headers.clone(),
                    checksum: checksum.clone(),
                    part_lens: part_lens.clone(),
                })
            }
            ObjectContent::CopyOf { bucket, key, if_match, headers } => {
                let versions = self.bucket(bucket)?.objects.get(key).map_or(&[][..], |versions| versions);
                let source = versions.iter().find(|version| version.on_its_way.is_none());
                let source = &source.ok_or_else(|| Refusal::NoSuchKey(key.clone()))?.record;
                if if_match.as_ref().is_some_and(|etag| *etag != source.etag) {
                    return Err(Refusal::ConditionFailed(key.clone()));
                }
                let headers = headers.clone().unwrap_or_else(|| source.headers.clone());
                Ok(ObjectRecord { modified: put.modified, headers, ..source.clone() })
            }
        }
    }

    /// Decides a condition against the newest version, the one that a put of now would replace.
    fn check_condition(&self, bucket: &str, key: &str, condition: &Condition) -> Result<(), Refusal> {
        let newest = self.bucket(bucket)?.objects.get(key).and_then(|versions| versions.first());
        let etag = newest.map(|version| &version.record.etag);
        let holds = match condition {
            Condition::None => return Ok(()),
            Condition::Absent => newest.is_none(),
            Condition::Match(wanted) => match etag {
                None => return Err(Refusal::NoSuchKey(key.to_owned())),
                Some(etag) => etag == wanted,
            },
            Condition::NoneMatch(unwanted) => etag != Some(unwanted),
        };
        match newest {
            Some(version) if version.on_its_way.is_some() => Err(Refusal::ConditionUndecided(key.to_owned())),
            _ if holds => Ok(()),
            _ => Err(Refusal::ConditionFailed(key.to_owned())),
        }
    }

    fn check_parts(&self, upload: &str, segments: &[SegmentId], new: &[NewSegment]) -> Result<(), Refusal> {
        let gone = || Refusal::NoSuchUpload(upload.to_owned());
        let record = self.uploads.get(upload).ok_or_else(gone)?;
        let is_part = |id: &SegmentId| {
            record.parts.iter().any(|(_, part)| part.segment == Some(*id))
                && self.segments.get(id).is_some_and(|segment| segment.visible)
        };
        if segments.iter().all(|id| is_new(new, *id) || is_part(id)) { Ok(()) } else { Err(gone()) }
    }

    /// Sets the newest version of a key; [`Self::object_content`] has checked it.
    pub(super) fn put_object(&mut self, put: PutObject, record: ObjectRecord, token: StoreToken, at: Millis) -> Stored {
        let answer =
            Stored::Object { etag: record.etag.clone(), modified: record.modified, checksum: record.checksum.clone() };
        for id in record.segments.clone() {
            self.hold_for_object(id);
        }
        if let ObjectContent::Segments { upload: Some(upload), .. } = &put.content {
            self.end_upload(upload, at);
        }
        if let Some(bucket) = self.buckets.get_mut(&put.bucket) {
            let versions = bucket.objects.entry(put.key.clone()).or_default();
            versions.insert(0, Version { record, on_its_way: Some(token) });
        }
        self.put_slot(&put.bucket, &put.key);
        answer
    }

    /// The version that `token` brought has arrived: it is the one now, unless a newer one is.
    pub(super) fn promote_object(&mut self, bucket: &str, key: &str, token: StoreToken, at: Millis) {
        let Some(versions) = self.versions_mut(bucket, key) else { return };
        let Some(arrived) = versions.iter().position(|version| version.on_its_way == Some(token)) else { return };
        versions[arrived].on_its_way = None;
        let replaced = versions.split_off(arrived + 1);
        if !replaced.is_empty() {
            self.put_slot(bucket, key);
        }
        self.release_versions(replaced, at);
    }

    /// The version that `token` should have brought is lost.
    pub(super) fn demote_object(&mut self, bucket: &str, key: &str, token: StoreToken, at: Millis) {
        let Some(versions) = self.versions_mut(bucket, key) else { return };
        let Some(lost) = versions.iter().position(|version| version.on_its_way == Some(token)) else { return };
        let lost = versions.remove(lost);
        self.put_slot(bucket, key);
        self.release_versions(vec![lost], at);
    }

    fn versions_mut(&mut self, bucket: &str, key: &str) -> Option<&mut Vec<Version>> {
        self.buckets.get_mut(bucket)?.objects.get_mut(key)
    }

    pub(super) fn release_versions(&mut self, versions: Vec<Version>, at: Millis) {
        for id in versions.into_iter().flat_map(|version| version.record.segments) {
            self.release_from_object(id, at);
        }
    }

    /// Writes what stands under a key now.
    pub(super) fn put_slot(&mut self, bucket: &str, key: &str) {
        let Some(entry) = self.buckets.get_mut(bucket) else { return };
        let record_key = RecordKey::Object(bucket.to_owned(), key.to_owned());
        let versions = entry.objects.get(key).map_or(&[][..], |versions| versions);
        if versions.is_empty() {
            entry.objects.remove(key);
            self.mutations.push(record_key.delete());
        } else {
            let versions = versions.iter().map(|version| version.record.clone()).collect();
            self.mutations.push(record_key.put(&ObjectSlot { versions }));
        }
    }

    pub(super) fn delete_objects(
        &mut self,
        bucket: &str,
        objects: Vec<ObjectToDelete>,
        at: Millis,
    ) -> Result<Outcome, Refusal> {
        self.bucket(bucket)?;
        let answers = objects.into_iter().map(|object| self.delete_object(bucket, &object, at)).collect();
        Ok(Outcome::Deleted(answers))
    }

    fn delete_object(&mut self, bucket: &str, object: &ObjectToDelete, at: Millis) -> Result<(), Refusal> {
        if let Some(etag) = &object.if_match {
            let condition = if etag == "*" { Condition::None } else { Condition::Match(etag.clone()) };
            self.check_condition(bucket, &object.key, &condition)?;
        }
        let entry = self.buckets.get_mut(bucket);
        if let Some(versions) = entry.and_then(|entry| entry.objects.remove(&object.key)) {
            self.mutations.push(RecordKey::Object(bucket.to_owned(), object.key.clone()).delete());
            self.release_versions(versions, at);
        }
        Ok(())
    }

    pub(super) fn create_upload(&mut self, id: String, upload: UploadRecord) -> Result<(), Refusal> {
        self.bucket(&upload.bucket)?;
        self.mutations.push(RecordKey::Upload(id.clone()).put(&upload));
        self.uploads.insert(id, upload);
        Ok(())
    }

    pub(super) fn abort_upload(&mut self, id: &str, at: Millis) {
        self.end_upload(id, at);
    }

    /// Forgets an upload; parts that no object took are freed.
    fn end_upload(&mut self, id: &str, at: Millis) {
        let Some(upload) = self.uploads.remove(id) else { return };
        self.mutations.push(RecordKey::Upload(id.to_owned()).delete());
        for segment in upload.parts.into_iter().filter_map(|(_, part)| part.segment) {
            self.free_part(segment, at);
        }
    }

    fn free_part(&mut self, id: SegmentId, at: Millis) {
        if self.segments.get(&id).is_some_and(|segment| segment.record.holder == Holder::Upload) {
            self.free_segment(id, at);
        }
    }

    pub(super) fn put_part(&mut self, id: &str, number: u16, part: PartRecord, at: Millis) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        let replaced = match upload.parts.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(found) => std::mem::replace(&mut upload.parts[found].1, part).segment,
            Err(place) => {
                upload.parts.insert(place, (number, part));
                None
            }
        };
        self.mutations.push(RecordKey::Upload(id.to_owned()).put(upload));
        if let Some(segment) = replaced {
            self.free_part(segment, at);
        }
    }

    /// Takes back a part whose bytes did not arrive.
    pub(super) fn drop_part(&mut self, id: &str, number: u16, segments: &[SegmentId]) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        upload
            .parts
            .retain(|(n, part)| *n != number || !part.segment.is_some_and(|segment| segments.contains(&segment)));
        self.mutations.push(RecordKey::Upload(id.to_owned()).put(upload));
    }
}
