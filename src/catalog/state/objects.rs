//! Buckets and objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BucketEntry, State, Version};
use crate::catalog::command::{
    Condition, MadeBy, NewSegment, ObjectContent, ObjectToDelete, Outcome, PutObject, Refusal, StoreToken, Stored,
};
use crate::catalog::record::{BucketRecord, ObjectRecord, ObjectSlot, RecordKey};
use crate::model::Millis;

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

    /// Deletes a bucket without objects, with the uploads to it that nobody completed.
    pub(super) fn delete_bucket(&mut self, bucket: &str, at: Millis) -> Result<(), Refusal> {
        if !self.bucket(bucket)?.objects.is_empty() {
            return Err(Refusal::BucketNotEmpty(bucket.to_owned()));
        }
        self.end_uploads_to(bucket, at);
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
                if let Some(MadeBy::Recorded(upload)) = upload {
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
                    upload: upload.as_ref().map(|upload| upload.id().to_owned()),
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
                Ok(ObjectRecord { modified: put.modified, headers, upload: None, ..ObjectRecord::clone(source) })
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

    /// Sets the newest version of a key; [`Self::object_content`] has checked it.
    pub(super) fn put_object(&mut self, put: PutObject, record: ObjectRecord, token: StoreToken, at: Millis) -> Stored {
        let answer =
            Stored::Object { etag: record.etag.clone(), modified: record.modified, checksum: record.checksum.clone() };
        let segments = record.segments.clone();
        if let Some(bucket) = self.buckets.get_mut(&put.bucket) {
            let versions = bucket.objects.entry(put.key.clone()).or_default();
            versions.insert(0, Version::new(Arc::new(record), Some(token)));
        }
        // The object first, the upload last: of so many parts that their records are not written at once, none is lost.
        self.put_slot(&put.bucket, &put.key);
        for id in segments {
            self.hold_for_object(id);
        }
        if let ObjectContent::Segments { upload: Some(MadeBy::Recorded(upload)), .. } = &put.content {
            self.end_upload(upload, at);
        }
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
        for id in versions.iter().flat_map(|version| &version.record.segments) {
            self.release_from_object(*id, at);
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
            let versions = versions.iter().map(|version| Arc::clone(&version.record)).collect();
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
}
