//! Segments, and the objects and uploads made of them.

use std::collections::HashSet;

use super::NoAnswer;
use crate::catalog::state::{ListQuery, Listed, ObjectView, SegmentView, StoredPart, UploadView};
use crate::catalog::{Catalog, CatalogError};
use crate::model::{CheckpointId, Handle, JobId, Location, Millis, NewUpload, SegmentId};

/// Objects of a bucket with what is known of them.
#[derive(Debug, Clone)]
pub struct ObjectsPage {
    /// In the order of their keys.
    pub objects: Vec<ObjectListed>,
    /// The last key of a page that is followed by another.
    pub next: Option<String>,
}

/// An object of a listing.
#[derive(Debug, Clone)]
pub struct ObjectListed {
    /// Its key.
    pub key: String,
    /// The object.
    pub object: ObjectView,
}

/// A multipart upload that the catalog knows.
#[derive(Debug, Clone)]
pub struct RecordedUpload {
    /// The upload.
    pub view: UploadView,
    /// When its last part came.
    pub last_use: Millis,
}

impl Catalog {
    /// A segment, if it is visible.
    pub fn segment(&self, id: SegmentId) -> Option<SegmentView> {
        self.view().segment(id)
    }

    /// Those of `ids` that are visible, in their order.
    pub fn segments(&self, ids: Vec<SegmentId>) -> Vec<SegmentView> {
        let mut found = Vec::with_capacity(ids.len());
        self.for_each(ids, |state, id| found.extend(state.segment(id)));
        found
    }

    /// The segment that a handle names. One that a rebuilt catalog has under another identity is known by its place.
    pub fn segment_of(&self, handle: &Handle) -> Option<SegmentView> {
        let state = self.view();
        state.segment(handle.id).or_else(|| match &handle.location {
            Location::File(place) => state.segment_at(place),
            Location::Inline { .. } => None,
        })
    }

    /// Where a visible segment is.
    pub fn location(&self, id: SegmentId) -> Option<Location> {
        self.view().segment_place(id).map(|(location, _)| location)
    }

    /// The first of these segments that are not visible, at most `max`.
    pub fn unknown_segments(&self, ids: &[SegmentId], max: usize) -> Vec<SegmentId> {
        self.view().unknown_segments(ids, max)
    }

    /// The visible segments of a job after `after`, by identity, of one checkpoint or of all; at most `max`.
    ///
    /// # Errors
    /// [`NoAnswer::UnknownJob`].
    pub fn segments_of(
        &self,
        job: &JobId,
        checkpoint: Option<CheckpointId>,
        after: Option<SegmentId>,
        max: usize,
    ) -> Result<Vec<SegmentView>, NoAnswer> {
        self.job(job)?;
        let (mut segments, mut after) = (vec![], after);
        self.in_pieces(|state, goes_on| {
            let wanted = |view| {
                segments.push(view);
                segments.len() < max
            };
            state.each_of_job(job, checkpoint, &mut after, goes_on, wanted).then_some(())
        });
        Ok(segments)
    }

    /// Whether a bucket exists.
    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.view().has_bucket(bucket)
    }

    /// All buckets with the times of their creation.
    pub fn buckets(&self) -> Vec<(String, Millis)> {
        self.view().buckets()
    }

    /// One page of a bucket's objects with their segments; deletes that it shows are durable.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn objects(&self, bucket: &str, query: &ListQuery<'_>) -> Result<ObjectsPage, CatalogError> {
        let page = self.list(bucket, query).await?;
        let next = page.entries.last().filter(|_| page.truncated).map(|last| last.name().to_owned());
        let mut objects = Vec::with_capacity(page.entries.len());
        self.for_each(page.entries, |state, entry: Listed| {
            let key = entry.name().to_owned();
            // One that was deleted since is left out.
            objects.extend(state.object(bucket, &key).map(|object| ObjectListed { key, object }));
        });
        Ok(ObjectsPage { objects, next })
    }

    /// The lengths of these objects, by bucket and key, in order; `None` for one that is not there.
    pub fn object_lens<'a>(&self, objects: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Option<u64>> {
        let mut lens = vec![];
        self.for_each(objects, |state, (bucket, key)| {
            lens.push(state.object_len(bucket, key));
        });
        lens
    }

    /// A recorded multipart upload.
    pub fn upload(&self, id: &str) -> Option<UploadView> {
        self.view().upload(id)
    }

    /// The parts of a recorded upload that have arrived, by number.
    pub fn parts(&self, upload: &str) -> Vec<StoredPart> {
        self.view().parts(upload).collect()
    }

    /// The recorded uploads to keys of `bucket` that begin with `prefix`, by id.
    pub fn uploads_below(&self, bucket: &str, prefix: &str) -> Vec<UploadView> {
        let is_below = |upload: &NewUpload| upload.bucket == bucket && upload.key.starts_with(prefix);
        self.view().uploads().filter(|view| is_below(&view.upload)).collect()
    }

    /// The recorded uploads that are not among `known`, by id.
    pub fn uploads_beside(&self, known: &HashSet<String>) -> Vec<RecordedUpload> {
        let state = self.view();
        let beside = state.uploads().filter(|view| !known.contains(&view.id));
        beside.map(|view| RecordedUpload { last_use: state.last_use_of_upload(&view), view }).collect()
    }
}
