//! The door to the write path.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::context::WriteContext;
use super::group::{InlineAnswer, store_inline, takes_inline};
use super::owner::Owner;
use super::pool::{OpenFile, PendingParcel};
use super::{BigSegment, MergeError, Parcel};
use crate::catalog::command::Stored;
use crate::config::TemporaryNames;
use crate::model::{About, CheckpointId, JobId, SegmentId};
use crate::runtime::{Failure, TaskGroup};
use crate::store::DiskSpace;

/// Stores segments. Clones share everything.
#[derive(Clone)]
pub struct Merger {
    context: WriteContext,
}

crate::runtime::opaque_debug!(Merger);

impl Merger {
    /// A merger that works with this.
    pub fn new(context: WriteContext) -> Self {
        Self { context }
    }

    /// An identity for a new segment.
    pub fn new_id(&self) -> SegmentId {
        SegmentId(self.context.entropy.ulid())
    }

    /// An identity for a new segment that is a part of a multipart upload.
    pub fn new_part_id(&self, upload: &str, number: u16) -> SegmentId {
        SegmentId::of_part(self.context.entropy.ulid(), upload, number)
    }

    /// The room on local disks. Whoever receives a body has it admitted first.
    pub fn space(&self) -> &DiskSpace {
        &self.context.space
    }

    /// Stores the segments of a parcel. Resolves once they are durable, in the catalog, and visible; a small object under a
    /// temporary name is not durable yet, if `merging.temporary-names` says so.
    ///
    /// # Errors
    /// [`MergeError`]. After [`MergeError::Store`] and [`MergeError::Catalog`] the segments may exist; a repeat with the
    /// same idempotency key finds them.
    ///
    /// # Cancel safety
    /// A dropped call may still store the parcel; aborting its checkpoint frees it.
    ///
    /// # Source
    /// FLIP-306; `createCheckpointStateOutputStream` of Flink's `FileMergingSnapshotManager`.
    pub async fn store(&self, parcel: Parcel) -> Result<Stored, MergeError> {
        self.context.catalog.check()?;
        self.context.space.check_write()?;
        let Some(first) = parcel.pieces.first() else { return Err(MergeError::Length { announced: 1, sent: 0 }) };
        let lane = self.context.lane_of(&first.about);
        let (reply, answer) = oneshot::channel();
        let inline = self.inline_answer(&parcel);
        let pending = PendingParcel { parcel, reply };
        if let Some(answer) = inline {
            // In a task of its own: a commit that was begun is seen through, whether or not the writer waits.
            let context = self.context.clone();
            self.context.tasks.spawn("inline", Failure::FailsItsWork, async move {
                store_inline(&context, pending, answer).await;
            });
        } else if let Some(file) = self.context.pools.put(&lane, pending).await? {
            self.own(file);
        }
        answer.await.unwrap_or(Err(MergeError::Abandoned))
    }

    /// When a parcel is answered that goes into the catalog by itself; `None` for one that goes with a group.
    fn inline_answer(&self, parcel: &Parcel) -> Option<InlineAnswer> {
        let context = &self.context;
        let tiny = parcel.len() <= context.settings.checkpointing.inline_bytes_max && !parcel.belongs_in_a_file();
        let waits = context.settings.merging.temporary_names == TemporaryNames::WithRename
            && context.catalog.commits_cost_requests()
            && parcel.is_temporary();
        if waits && takes_inline(context, parcel.len()) {
            return Some(InlineAnswer::Lazy);
        }
        (tiny && context.store.capabilities().appends).then_some(InlineAnswer::Durable)
    }

    fn own(&self, file: Arc<OpenFile>) {
        // Before its task begins, which may never happen.
        let owner = Owner::new(self.context.clone(), file, self.context.store.writes());
        self.context.tasks.spawn("file-owner", Failure::FailsItsWork, owner.run());
    }

    /// Begins a segment `id` of `len` bytes that is streamed into a file of its own.
    ///
    /// # Errors
    /// [`MergeError`]; nothing is left behind then.
    pub async fn begin(&self, id: SegmentId, about: About, len: u64) -> Result<BigSegment, MergeError> {
        self.context.catalog.check_room()?;
        self.context.space.would_admit(len)?;
        BigSegment::begin(self.context.clone(), id, about, len).await
    }

    /// Checkpoints up to this one get no more segments: closes the open files that hold theirs.
    pub fn checkpoint_barrier(&self, job: &JobId, checkpoint: CheckpointId) {
        self.context.pools.close_checkpoint(job, checkpoint);
    }

    /// Closes the open files of a job that has written everything.
    pub fn close_job(&self, job: &JobId) {
        self.context.pools.close_job(job);
    }

    /// The tasks for work that outlives a request.
    pub fn tasks(&self) -> TaskGroup {
        self.context.tasks.clone()
    }

    /// Takes nothing more. The owners of open files write what there is, and end.
    pub fn close(&self) {
        self.context.pools.close_all();
    }
}
