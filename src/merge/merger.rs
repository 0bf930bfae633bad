//! The door to the write path.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::lane::LaneKey;
use super::owner::{Owned, Pace, own_growing_file, own_whole_file, store_inline};
use super::pool::{OpenFile, Pending, Pools};
use super::{BigSegment, MergeError, Parcel};
use crate::catalog::Catalog;
use crate::catalog::command::{About, Stored};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{CheckpointId, JobId, SegmentId};
use crate::runtime::{ByteBudget, Entropy, Failure, TaskGroup};
use crate::store::{DataStore, DiskSpace};

/// Stores segments. Clones share everything.
#[derive(Clone)]
pub struct Merger {
    parts: MergerParts,
}

/// What the write path works with.
#[derive(Clone)]
pub struct MergerParts {
    /// The settings.
    pub settings: Arc<Settings>,
    /// Where physical files go.
    pub store: DataStore,
    /// What exists.
    pub catalog: Catalog,
    /// Memory for the parts of streamed segments.
    pub budget: ByteBudget,
    /// Names.
    pub entropy: Entropy,
    /// The metrics.
    pub metrics: Metrics,
    /// Runs the owners.
    pub tasks: TaskGroup,
    /// Open files.
    pub pools: Arc<Pools>,
    /// How fast the backend is.
    pub pace: Arc<Pace>,
    /// What local disks have room for.
    pub space: DiskSpace,
}

impl MergerParts {
    /// With no file open yet.
    pub fn new(
        settings: Arc<Settings>,
        store: DataStore,
        catalog: Catalog,
        budget: ByteBudget,
        entropy: Entropy,
        metrics: Metrics,
        tasks: TaskGroup,
    ) -> Self {
        let pools = Arc::new(Pools::new(settings.merging.clone()));
        let (pace, space) = (Arc::default(), DiskSpace::default());
        Self { settings, store, catalog, budget, entropy, metrics, tasks, pools, pace, space }
    }

    /// The same with local disks that may be full.
    pub fn with_space(self, space: DiskSpace) -> Self {
        Self { space, ..self }
    }

    /// Which open files may take a segment.
    pub fn lane_of(&self, about: &About) -> LaneKey {
        match about.checkpoint {
            Some(checkpoint) if self.catalog.view().is_savepoint(&about.job, checkpoint) => {
                LaneKey::of_savepoint(about)
            }
            _ => LaneKey::of(about, &self.settings.merging),
        }
    }
}

impl Merger {
    /// A merger with these parts.
    pub fn new(parts: MergerParts) -> Self {
        Self { parts }
    }

    /// An identity for a new segment.
    pub fn new_id(&self) -> SegmentId {
        SegmentId(self.parts.entropy.ulid())
    }

    /// An identity for a new segment that is a part of a multipart upload.
    pub fn new_part_id(&self, upload: &str, number: u16) -> SegmentId {
        SegmentId::of_part(self.parts.entropy.ulid(), upload, number)
    }

    /// What local disks have room for. Whoever receives a body has it admitted first.
    pub fn space(&self) -> &DiskSpace {
        &self.parts.space
    }

    /// Stores the segments of a parcel. Resolves once they are durable, in the catalog, and visible.
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
        self.parts.catalog.check()?;
        self.parts.space.check_write()?;
        let Some(first) = parcel.pieces.first() else { return Err(MergeError::Length { announced: 1, sent: 0 }) };
        let lane = self.parts.lane_of(&first.about);
        let (reply, answer) = oneshot::channel();
        let tiny = parcel.len() <= self.parts.settings.checkpointing.inline_bytes_max && !parcel.belongs_in_a_file();
        let pending = Pending { parcel, reply };
        if tiny && matches!(self.parts.store, DataStore::Local(_)) {
            // In a task of its own: a commit that was begun is seen through, whether or not the writer waits.
            let parts = self.parts.clone();
            self.parts.tasks.spawn("inline", Failure::FailsItsWork, async move {
                store_inline(&parts, vec![pending]).await;
            });
        } else if let Some(file) = self.parts.pools.put(&lane, pending).await? {
            self.own(file);
        }
        answer.await.unwrap_or(Err(MergeError::Abandoned))
    }

    fn own(&self, file: Arc<OpenFile>) {
        // Before its task begins, which may never happen.
        let owned = Owned::new(self.parts.clone(), file);
        match self.parts.store.clone() {
            DataStore::Local(store) => {
                self.parts.tasks.spawn("file-owner", Failure::FailsItsWork, own_growing_file(owned, store));
            }
            DataStore::Object(store) => {
                self.parts.tasks.spawn("file-owner", Failure::FailsItsWork, own_whole_file(owned, store));
            }
        }
    }

    /// Begins a segment `id` of `len` bytes that is streamed into a file of its own.
    ///
    /// # Errors
    /// [`MergeError`]; nothing is left behind then.
    pub async fn begin(&self, id: SegmentId, about: About, len: u64) -> Result<BigSegment, MergeError> {
        self.parts.space.would_admit(len)?;
        BigSegment::begin(self.parts.clone(), id, about, len).await
    }

    /// Checkpoints up to this one get no more segments: closes the open files that hold theirs.
    pub fn checkpoint_barrier(&self, job: &JobId, checkpoint: CheckpointId) {
        self.parts.pools.close_checkpoint(job, checkpoint);
    }

    /// What a job has written is complete: closes its open files.
    pub fn close_job(&self, job: &JobId) {
        self.parts.pools.close_job(job);
    }

    /// Where work that outlives a request runs.
    pub fn tasks(&self) -> TaskGroup {
        self.parts.tasks.clone()
    }

    /// Takes nothing more. The owners of open files write what there is, and end.
    pub fn close(&self) {
        self.parts.pools.close_all();
    }
}
