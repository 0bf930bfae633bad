//! S3 objects and buckets: putting, copying, deleting. Copies are references: no byte is read or written.

use super::arrivals::Arrival;
use super::intake::{Body, Counts, Digests, Rejected};
use super::{Engine, EngineError};
use crate::catalog::command::{
    Bind, Command, Condition, DeleteReach, ObjectContent, ObjectToDelete, Outcome, PutObject, Refusal, Stored,
};
use crate::config::{DeleteDurability, EtagKind, TemporaryNames};
use crate::model::{KeyContract, KeyLayout, Millis, ObjectChecksum, ObjectHead, ObjectHeaders, SegmentId};

/// An object that is to be put.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The condition that the current object must meet.
    pub condition: Condition,
    /// The headers that the client sent for it.
    pub headers: ObjectHeaders,
}

/// A copy that is to be made.
#[derive(Debug, Clone)]
pub struct NewCopy {
    /// The bucket of the copy.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The condition that the current object must meet.
    pub condition: Condition,
    /// Bucket and key of the source.
    pub from: (String, String),
    /// The entity tag that the source must have.
    pub if_match: Option<String>,
    /// Headers in place of those of the source.
    pub headers: Option<ObjectHeaders>,
    /// Tags in place of those of the source.
    pub tags: Option<Vec<(String, String)>>,
    /// The storage class of the copy.
    pub storage_class: Option<String>,
    /// The checksum in place of that of the source.
    pub checksum: Option<ObjectChecksum>,
}

/// An object that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// Its entity tag, without quotes.
    pub etag: String,
    /// When it was put.
    pub modified: Millis,
    /// Its checksum.
    pub checksum: Option<ObjectChecksum>,
}

impl Engine {
    /// Creates a bucket.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it exists.
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::CreateBucket(bucket.to_owned())).await?;
        Ok(())
    }

    /// Deletes a bucket, with the uploads to it.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it is not there or not empty.
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::DeleteBucket(bucket.to_owned())).await?;
        self.uploads.drop_bucket(bucket);
        Ok(())
    }

    /// The same for a bucket that other shards have, too. It is remembered until [`Self::bucket_has_ended`] that they are to delete it.
    ///
    /// # Errors
    /// As [`Self::delete_bucket`].
    pub async fn delete_bucket_everywhere(&self, bucket: &str) -> Result<(), EngineError> {
        self.admit_write().await?;
        self.catalog.execute(Command::DeleteBucketEverywhere(bucket.to_owned())).await?;
        self.uploads.drop_bucket(bucket);
        Ok(())
    }

    /// The other shards have deleted a bucket.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn bucket_has_ended(&self, bucket: &str) -> Result<(), EngineError> {
        self.catalog.execute(Command::BucketHasEnded(bucket.to_owned())).await?;
        Ok(())
    }

    /// Buckets that are deleted here, and maybe not in other shards yet.
    pub fn ending_buckets(&self) -> Vec<String> {
        self.catalog.ending_buckets()
    }

    /// Receives a body and stores it as an object. Resolves once it is durable and visible.
    ///
    /// # Errors
    /// [`Rejected`]; what stood under the key stands there still, as far as anybody can see.
    pub async fn put_object<B: Body>(&self, object: NewObject, body: B) -> Result<Put, Rejected<B::Fault>> {
        let NewObject { bucket, key, condition, headers } = object;
        self.refuse_early(&bucket, &key, &condition).await?;
        let KeyLayout { about, completes, merged_by_flink, .. } = KeyLayout::of(&bucket, &key);
        let job = about.job.clone();
        if merged_by_flink {
            self.merged.warn(&job, &key);
        }
        let (modified, arrival) = (self.clock.now(), Arrival::of(&bucket, &key));
        let put = self.take_in(self.merger.new_id(), about, body, |arrived| {
            let head = ObjectHead {
                len: arrived.len,
                etag: self.etag(arrived.segment, &arrived.digests),
                modified,
                headers,
                checksum: arrived.digests.checksums.first().cloned(),
                part_lens: vec![],
            };
            let segments = arrived.segment.into_iter().collect();
            let content = ObjectContent::Segments { segments, head, upload: None };
            Bind::Object(Box::new(PutObject { bucket, key, condition, content }))
        });
        let (stored, arrived) = self.counted::<B, _>(Counts::Object, put.await)?;
        self.count_bytes(Counts::Object, arrived.len);
        if let Some(checkpoint) = completes {
            self.merger.checkpoint_barrier(&job, checkpoint);
        }
        self.arrived(arrival);
        Ok(put_answer(stored)?)
    }

    /// Copies an object by reference.
    ///
    /// # Errors
    /// [`EngineError::Refused`].
    pub async fn copy_object(&self, copy: NewCopy) -> Result<Put, EngineError> {
        let NewCopy { bucket, key, condition, from, if_match, headers, tags, storage_class, checksum } = copy;
        let (modified, (from_bucket, from_key)) = (self.clock.now(), from);
        let content = ObjectContent::CopyOf {
            bucket: from_bucket,
            key: from_key,
            if_match,
            headers,
            tags,
            modified,
            storage_class,
            checksum,
        };
        let arrival = Arrival::of(&bucket, &key);
        let put = PutObject { bucket, key, condition, content };
        let stored = self.store_without_bytes(Bind::Object(Box::new(put))).await?;
        self.arrived(arrival);
        put_answer(stored)
    }

    /// Sets the tags of an object in place of those that it has; everything else of it stays, the time of its put, too.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it is not there, or if another one is being put under its key.
    pub async fn tag_object(&self, bucket: &str, key: &str, tags: Vec<(String, String)>) -> Result<(), EngineError> {
        let put = PutObject {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            condition: Condition::None,
            content: ObjectContent::Tagged(tags),
        };
        put_answer(self.store_without_bytes(Bind::Object(Box::new(put))).await?)?;
        Ok(())
    }

    /// Deletes objects. An answer for each, in order; those that are not there count as deleted. Resolves once that is
    /// durable; or once it is so in memory, and perhaps on the local disk, if the keys and `merging` allow that for all
    /// that were there.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn delete_objects(
        &self,
        bucket: &str,
        objects: Vec<ObjectToDelete>,
    ) -> Result<Vec<Result<(), Refusal>>, EngineError> {
        self.admit_write().await?;
        let reaching = objects.into_iter().map(|object| {
            let reach = self.reach_of_delete(&object);
            (object, reach)
        });
        let outcome = self.catalog.delete_objects(bucket, reaching.collect()).await?;
        match outcome {
            Outcome::Deleted(answers) => Ok(answers),
            _ => Err(EngineError::Unexpected("a delete")),
        }
    }

    /// What a delete has to reach before it is answered, by its key and the settings. One with a condition has to reach
    /// storage: whoever makes conditions wants to know.
    fn reach_of_delete(&self, object: &ObjectToDelete) -> DeleteReach {
        let merging = &self.settings.merging;
        match KeyContract::of(&object.key) {
            _ if object.if_match.is_some() || object.if_put_at.is_some() => DeleteReach::Storage,
            KeyContract::Temporary if merging.temporary_names == TemporaryNames::WithRename => DeleteReach::Memory,
            KeyContract::State => match merging.delete_durability {
                DeleteDurability::Lazy => DeleteReach::Memory,
                DeleteDurability::Ledger => DeleteReach::Ledger,
                DeleteDurability::Commit => DeleteReach::Storage,
            },
            KeyContract::Temporary | KeyContract::Other => DeleteReach::Storage,
        }
    }

    /// Refuses a put that cannot succeed any more, before its body is asked for.
    pub(super) async fn refuse_early(&self, bucket: &str, key: &str, condition: &Condition) -> Result<(), EngineError> {
        self.check_bucket(bucket)?;
        if *condition != Condition::None {
            let existing = self.catalog.object(bucket, key).await?;
            fails_already(condition, key, existing.as_ref().map(|view| &*view.head().etag))?;
        }
        Ok(())
    }

    /// The entity tag of what arrived: its MD5, or a name with the `-` that keeps clients from taking it for one.
    pub(super) fn etag(&self, segment: Option<SegmentId>, digests: &Digests) -> String {
        match (self.settings.server.etag, digests.md5) {
            (EtagKind::Md5, Some(md5)) => hex::encode(md5),
            _ => format!("{:032x}-1", segment.unwrap_or_else(|| self.merger.new_id()).0),
        }
    }
}

/// Reads the catalog's answer to a put of an object.
pub(super) fn put_answer(stored: Stored) -> Result<Put, EngineError> {
    match stored {
        Stored::Object { etag, modified, checksum } => Ok(Put { etag, modified, checksum }),
        Stored::Handles(_) | Stored::Repeat(_) | Stored::Part => Err(EngineError::Unexpected("a put")),
    }
}

/// Refuses what fails already with the entity tag of the object that is there, before a body is read; the catalog decides
/// when it is stored.
///
/// # Errors
/// The refusal that the catalog would answer now.
fn fails_already(condition: &Condition, key: &str, etag: Option<&str>) -> Result<(), Refusal> {
    let failed = || Err(Refusal::ConditionFailed(key.to_owned()));
    match (condition, etag) {
        (Condition::Absent, Some(_)) => failed(),
        (Condition::Match(_), None) => Err(Refusal::NoSuchKey(key.to_owned())),
        (Condition::Match(wanted), Some(etag)) if etag != wanted => failed(),
        (Condition::NoneMatch(unwanted), Some(etag)) if etag == unwanted => failed(),
        _ => Ok(()),
    }
}
