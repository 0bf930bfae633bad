//! Reading: segments by identity or handle, objects, and many segments at once.

use std::ops::Range;

use futures::stream::BoxStream;

use super::error::NAMED_MAX;
use super::{Engine, EngineError, aside};
use crate::catalog::command::Refusal;
use crate::catalog::questions::ObjectsPage;
use crate::catalog::state::{ListPage, ListQuery, ObjectView, SegmentView};
use crate::model::{CheckpointId, Handle, JobId, Millis, SegmentId, ShardOf};
use crate::read::{BulkError, BulkPiece, ByteStream};

impl Engine {
    /// Whether this daemon may still answer.
    ///
    /// # Errors
    /// [`EngineError::Catalog`] with the reason.
    pub fn check(&self) -> Result<(), EngineError> {
        Ok(self.catalog.check()?)
    }

    /// A segment.
    ///
    /// # Errors
    /// [`EngineError::NoSuchSegment`].
    pub fn segment(&self, id: SegmentId) -> Result<SegmentView, EngineError> {
        self.check()?;
        self.catalog.segment(id).ok_or(EngineError::NoSuchSegment(id))
    }

    /// The segment that a handle names, wherever it is now.
    ///
    /// # Errors
    /// [`EngineError::NoSuchSegment`]; [`EngineError::OtherBytes`] if it is not what the handle says.
    pub fn segment_of(&self, handle: &Handle) -> Result<SegmentView, EngineError> {
        self.check()?;
        let view = self.catalog.segment_of(handle).ok_or(EngineError::NoSuchSegment(handle.id))?;
        let now = view.handle();
        if now.crc32c != handle.crc32c || now.location.len() != handle.location.len() {
            return Err(EngineError::OtherBytes(handle.id));
        }
        Ok(view)
    }

    /// The segments of a job after `after`, by identity, of one checkpoint or of all; at most `max`.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if the job is not known.
    pub async fn segments_of(
        &self,
        job: &JobId,
        checkpoint: Option<CheckpointId>,
        after: Option<SegmentId>,
        max: usize,
    ) -> Result<Vec<SegmentView>, EngineError> {
        self.check()?;
        let (catalog, job) = (self.catalog.clone(), job.clone());
        Ok(aside("a list of segments", move || catalog.segments_of(&job, checkpoint, after, max)).await??)
    }

    /// The bytes `range` of a segment. Its first block is read before this resolves.
    ///
    /// # Errors
    /// [`EngineError::Read`]; a later block may still end the stream with an error.
    pub async fn read_segment(&self, id: SegmentId, range: Range<u64>) -> Result<ByteStream, EngineError> {
        Ok(self.reader.segment(id, range).await?)
    }

    /// The bytes of many segments, one after the other in this order.
    ///
    /// # Errors
    /// [`EngineError::NoSuchSegments`] for those that are known to be missing, [`EngineError::Bulk`]; a stream that breaks
    /// off ends with an error.
    pub async fn read_segments(
        &self,
        ids: Vec<SegmentId>,
    ) -> Result<BoxStream<'static, Result<BulkPiece, BulkError>>, EngineError> {
        let unknown = self.catalog.unknown_segments(&ids, NAMED_MAX);
        if !unknown.is_empty() {
            return Err(EngineError::NoSuchSegments(unknown));
        }
        Ok(self.reader.bulk(ids).await?)
    }

    /// The bytes of all segments of a completed checkpoint, in the order in which a job restores them.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if it cannot be restored, and as [`Self::read_segments`].
    pub async fn read_checkpoint(
        &self,
        job: &JobId,
        checkpoint: CheckpointId,
    ) -> Result<BoxStream<'static, Result<BulkPiece, BulkError>>, EngineError> {
        let (catalog, job) = (self.catalog.clone(), job.clone());
        let ids = aside("a restore", move || catalog.segments_to_restore(&job, checkpoint)).await??;
        Ok(self.reader.bulk(ids).await?)
    }

    /// All buckets with the times of their creation.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub fn buckets(&self) -> Result<Vec<(String, Millis)>, EngineError> {
        self.check()?;
        Ok(self.catalog.buckets())
    }

    /// Whether a bucket is there.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it is not.
    pub fn check_bucket(&self, bucket: &str) -> Result<(), EngineError> {
        self.check()?;
        if self.catalog.has_bucket(bucket) { Ok(()) } else { Err(Refusal::NoSuchBucket(bucket.to_owned()).into()) }
    }

    /// The part of the store that it has.
    pub fn shard(&self) -> ShardOf {
        self.shard
    }

    /// The number of bytes of each of these objects, by bucket and key; `None` if it is not there.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub fn object_lens(&self, objects: &[(String, String)]) -> Result<Vec<Option<u64>>, EngineError> {
        self.check()?;
        Ok(self.catalog.object_lens(objects.iter().map(|(bucket, key)| (bucket.as_str(), key.as_str()))))
    }

    /// Whether an object with this key is in the engine's part of the store, or would be.
    pub fn holds_key(&self, bucket: &str, key: &str) -> bool {
        self.shard.has_key(bucket, key)
    }

    /// Whether a job of this name is, or would be. One that has claimed a checkpoint of another part is there.
    pub fn holds_job(&self, job: &JobId) -> bool {
        let was_placed_here = || self.catalog.job(job).is_ok_and(|job| job.created.is_some());
        self.catalog.placed(job).is_none() && (self.shard.has_job(job.as_str()) || was_placed_here())
    }

    /// The object under a key, if there is one. What was seen to be gone stays gone.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn find_object(&self, bucket: &str, key: &str) -> Result<Option<ObjectView>, EngineError> {
        self.check_bucket(bucket)?;
        Ok(self.catalog.object(bucket, key).await?)
    }

    /// The object under a key.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket or key.
    pub async fn object(&self, bucket: &str, key: &str) -> Result<ObjectView, EngineError> {
        let found = self.find_object(bucket, key).await?;
        found.ok_or_else(|| Refusal::NoSuchKey(key.to_owned()).into())
    }

    /// The bytes `range` of an object as it was when it was looked up. Its first block is read before this resolves.
    ///
    /// # Errors
    /// [`EngineError::Read`], of the kind `NotFound` if the object was replaced since: look it up again.
    pub async fn read_object(&self, object: &ObjectView, range: Range<u64>) -> Result<ByteStream, EngineError> {
        Ok(self.reader.object(object, range).await?)
    }

    /// One page of a bucket's keys; deletes that it shows are durable.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn list(&self, bucket: &str, query: &ListQuery<'_>) -> Result<ListPage, EngineError> {
        Ok(self.catalog.list(bucket, query).await?)
    }

    /// The same with the segments of the objects.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn objects(&self, bucket: &str, query: &ListQuery<'_>) -> Result<ObjectsPage, EngineError> {
        Ok(self.catalog.objects(bucket, query).await?)
    }
}
