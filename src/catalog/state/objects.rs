//! Buckets and objects.

use std::sync::Arc;

use super::memory::weight_of_bucket;
use super::pages::Pages;
use super::slot::{Slot, Version};
use super::{BucketEntry, CatalogState};
use crate::catalog::command::{
    Condition, MadeBy, NewSegment, ObjectContent, ObjectToDelete, Outcome, PutObject, Refusal, StoreToken, Stored,
};
use crate::catalog::record::{BucketRecord, ObjectRecord, ObjectSlot, RecordKey};
use crate::model::{Millis, ObjectHead, ObjectHeaders, SegmentId};

impl CatalogState {
    pub(super) fn create_bucket(&mut self, bucket: String, at: Millis) -> Result<(), Refusal> {
        if self.buckets.contains_key(&bucket) {
            return Err(Refusal::BucketExists(bucket));
        }
        self.bucket_has_ended(&bucket);
        let record = BucketRecord { created: at };
        self.mutations.push(RecordKey::Bucket(bucket.clone()).put(&record));
        self.insert_bucket(bucket, record);
        Ok(())
    }

    pub(super) fn insert_bucket(&mut self, bucket: String, record: BucketRecord) {
        self.memory.others += weight_of_bucket(&bucket);
        self.buckets.insert(bucket, BucketEntry { record, objects: Pages::new() });
    }

    /// Deletes a bucket without objects, with the uploads to it that nobody completed.
    pub(super) fn delete_bucket(&mut self, bucket: &str, at: Millis) -> Result<(), Refusal> {
        if !self.bucket(bucket)?.objects.is_empty() {
            return Err(Refusal::BucketNotEmpty(bucket.to_owned()));
        }
        self.end_uploads_to(bucket, at);
        self.buckets.remove(bucket);
        self.memory.others -= weight_of_bucket(bucket);
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
            ObjectContent::Segments { segments, head, upload } => {
                if let Some(MadeBy::Recorded(upload)) = upload {
                    self.check_parts(upload, segments, new)?;
                }
                Ok(ObjectRecord {
                    segments: segments.clone(),
                    head: head.clone(),
                    upload: upload.as_ref().map(|upload| upload.id().to_owned()),
                })
            }
            ObjectContent::CopyOf { bucket, key, if_match, headers, tags, modified, storage_class, checksum } => {
                let slot = self.bucket(bucket)?.objects.get(&**key);
                let source = slot.and_then(Slot::current).ok_or_else(|| Refusal::NoSuchKey(key.clone()))?;
                if if_match.as_ref().is_some_and(|etag| *etag != source.head.etag) {
                    return Err(Refusal::ConditionFailed(key.clone()));
                }
                let mut copy = ObjectRecord { upload: None, ..ObjectRecord::clone(&source) };
                copy.head.modified = *modified;
                if let Some(headers) = headers {
                    // They are told of separately.
                    let tags = std::mem::take(&mut copy.head.headers.tags);
                    copy.head.headers = ObjectHeaders { tags, ..headers.clone() };
                }
                if let Some(tags) = tags {
                    copy.head.headers.tags.clone_from(tags);
                }
                copy.head.headers.storage_class.clone_from(storage_class);
                if let Some(checksum) = checksum {
                    copy.head.checksum = Some(checksum.clone());
                }
                Ok(copy)
            }
            ObjectContent::Tagged(tags) => {
                let slot = self.bucket(&put.bucket)?.objects.get(&*put.key);
                let slot = slot.ok_or_else(|| Refusal::NoSuchKey(put.key.clone()))?;
                // It would stand before one that is on its way, and replace that when it arrives.
                if slot.newest().is_some_and(|(_, on_its_way)| on_its_way) {
                    return Err(Refusal::ConditionUndecided(put.key.clone()));
                }
                let current = slot.current().ok_or_else(|| Refusal::NoSuchKey(put.key.clone()))?;
                let mut tagged = ObjectRecord::clone(&current);
                tagged.head.headers.tags.clone_from(tags);
                Ok(tagged)
            }
        }
    }

    /// Decides a condition against the newest version, the one that a put of now would replace.
    fn check_condition(&self, bucket: &str, key: &str, condition: &Condition) -> Result<(), Refusal> {
        let objects = &self.bucket(bucket)?.objects;
        if *condition == Condition::None {
            return Ok(());
        }
        let newest = objects.get(key).and_then(Slot::newest);
        let etag = newest.as_ref().map(|(etag, _)| etag);
        let holds = match condition {
            Condition::None => true,
            Condition::Absent => newest.is_none(),
            Condition::Match(wanted) => match etag {
                None => return Err(Refusal::NoSuchKey(key.to_owned())),
                Some(etag) => etag == wanted,
            },
            Condition::NoneMatch(unwanted) => etag != Some(unwanted),
        };
        match newest {
            Some((_, true)) => Err(Refusal::ConditionUndecided(key.to_owned())),
            _ if holds => Ok(()),
            _ => Err(Refusal::ConditionFailed(key.to_owned())),
        }
    }

    /// Sets the newest version of a key; [`Self::object_content`] has checked it.
    /// Segments that are new count it among their objects already.
    pub(super) fn put_object(
        &mut self,
        put: PutObject,
        record: ObjectRecord,
        new: &[SegmentId],
        token: StoreToken,
        at: Millis,
    ) -> Stored {
        let ObjectHead { etag, modified, checksum, .. } = record.head.clone();
        let answer = Stored::Object { etag, modified, checksum };
        let held: Vec<SegmentId> = record.segments.iter().copied().filter(|id| !new.contains(id)).collect();
        self.change_versions(&put.bucket, &put.key, |versions| {
            versions.insert(0, Version::new(Arc::new(record), Some(token)));
        });
        // The object first, the upload last: of so many parts that their records are not written at once, none is lost.
        self.put_slot(&put.bucket, &put.key);
        for id in held {
            self.hold_for_object(id);
        }
        if let ObjectContent::Segments { upload: Some(MadeBy::Recorded(upload)), .. } = &put.content {
            self.end_upload(upload, at);
        }
        answer
    }

    /// The version that `token` brought has arrived: it is the one now, unless a newer one is.
    pub(super) fn promote_object(&mut self, bucket: &str, key: &str, token: StoreToken, at: Millis) {
        let replaced = self.change_versions(bucket, key, |versions| {
            let Some(arrived) = versions.iter().position(|version| version.on_its_way == Some(token)) else {
                return vec![];
            };
            versions[arrived].on_its_way = None;
            versions.split_off(arrived + 1)
        });
        if !replaced.is_empty() {
            self.put_slot(bucket, key);
        }
        self.release_versions(replaced, at);
    }

    /// The version that `token` should have brought is lost.
    pub(super) fn demote_object(&mut self, bucket: &str, key: &str, token: StoreToken, at: Millis) {
        let lost = self.change_versions(bucket, key, |versions| {
            let lost = versions.iter().position(|version| version.on_its_way == Some(token));
            lost.map(|lost| versions.remove(lost))
        });
        if let Some(lost) = lost {
            self.put_slot(bucket, key);
            self.release_versions(vec![lost], at);
        }
    }

    /// Changes the versions under a key, of which there may be none before or after.
    pub(super) fn change_versions<T: Default>(
        &mut self,
        bucket: &str,
        key: &str,
        change: impl FnOnce(&mut Vec<Version>) -> T,
    ) -> T {
        let Some(entry) = self.buckets.get_mut(bucket) else { return T::default() };
        let before = entry.objects.get(key);
        let mut versions = before.map(Slot::versions).unwrap_or_default();
        let weight = before.map_or(0, |slot| slot.weight(key));
        let changed = change(&mut versions);
        self.memory.others -= weight;
        match (Slot::of(versions), entry.objects.get_mut(key)) {
            (Some(slot), there) => {
                self.memory.others += slot.weight(key);
                match there {
                    Some(there) => *there = slot,
                    None => drop(entry.objects.insert(key.into(), slot)),
                }
            }
            (None, _) => drop(entry.objects.remove(key)),
        }
        changed
    }

    pub(super) fn release_versions(&mut self, versions: Vec<Version>, at: Millis) {
        for id in versions.iter().flat_map(|version| &version.record.segments) {
            self.release_from_object(*id, at);
        }
    }

    /// Writes what stands under a key now.
    pub(super) fn put_slot(&mut self, bucket: &str, key: &str) {
        let Some(entry) = self.buckets.get(bucket) else { return };
        let record_key = RecordKey::Object(bucket.to_owned(), key.to_owned());
        match entry.objects.get(key) {
            None => self.mutations.push(record_key.delete()),
            Some(slot) => {
                let versions = slot.versions().into_iter().map(|version| version.record).collect();
                self.mutations.push(record_key.put(&ObjectSlot { versions }));
            }
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
        if let Some(at) = object.if_put_at {
            match self.bucket(bucket)?.objects.get(&*object.key).and_then(Slot::brief) {
                None => return Err(Refusal::NoSuchKey(object.key.clone())),
                Some(there) if there.modified != at => return Err(Refusal::ConditionFailed(object.key.clone())),
                Some(_) => (),
            }
        }
        let versions = self.change_versions(bucket, &object.key, std::mem::take);
        if !versions.is_empty() {
            self.mutations.push(RecordKey::Object(bucket.to_owned(), object.key.clone()).delete());
            self.release_versions(versions, at);
        }
        Ok(())
    }
}
