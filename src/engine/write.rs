//! Storing segments.

use super::intake::{Body, Counts, Rejected, Whole};
use super::{Engine, EngineError};
use crate::catalog::command::{Bind, Stored};
use crate::model::{About, CheckpointId, Handle, IdempotencyKey, JobId, JobRun};

impl Engine {
    /// Whether a segment for `checkpoint` would be refused now; a door asks before it reads a body. Returns the run of the job, which
    /// goes with the segment: should the job end meanwhile, it is none of another one of its name.
    ///
    /// # Errors
    /// [`EngineError::Refused`].
    pub fn would_take(&self, job: &JobId, checkpoint: CheckpointId) -> Result<JobRun, EngineError> {
        Ok(self.catalog.would_take(job, checkpoint)?)
    }

    /// Whether many segments of a job may come.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if the job is not known; [`EngineError::Full`].
    pub fn check_writes(&self, job: &JobId) -> Result<(), EngineError> {
        self.check()?;
        self.catalog.job(job)?;
        Ok(self.merger.space().check_write()?)
    }

    /// Receives a body and stores it as one segment. Resolves once it is durable and visible. A repeat with the same key
    /// gets the same segment. With a run it is refused once the job is in another one.
    ///
    /// # Errors
    /// [`Rejected`]; a segment that was not answered may exist, which aborting its checkpoint frees.
    ///
    /// # Cancel safety
    /// A dropped call may still store it.
    pub async fn put_segment<B: Body>(
        &self,
        about: About,
        key: Option<IdempotencyKey>,
        run: Option<JobRun>,
        body: B,
    ) -> Result<Handle, Rejected<B::Fault>> {
        let len = body.announced();
        let bind = Bind::Checkpoint { idempotency_key: key, run };
        let put = self.take_in(self.merger.new_id(), about, body, |_| bind);
        let (stored, _) = self.counted::<B, _>(Counts::Segment, put.await)?;
        self.count_bytes(Counts::Segment, len);
        handle_of(stored).map_err(Rejected::from)
    }

    /// Stores one segment that is in memory.
    ///
    /// # Errors
    /// As [`Self::put_segment`].
    ///
    /// # Cancel safety
    /// A dropped call may still store it.
    pub async fn store(
        &self,
        about: About,
        key: Option<IdempotencyKey>,
        run: Option<JobRun>,
        segment: Whole,
    ) -> Result<Handle, EngineError> {
        let len = segment.data.len() as u64;
        let bind = Bind::Checkpoint { idempotency_key: key, run };
        let stored = self.store_whole(self.merger.new_id(), about, segment, bind).await;
        let stored = self.counted_store(Counts::Segment, stored)?;
        self.count_bytes(Counts::Segment, len);
        handle_of(stored)
    }
}

fn handle_of(stored: Stored) -> Result<Handle, EngineError> {
    let handle = match stored {
        Stored::Handles(mut handles) => handles.pop(),
        Stored::Repeat(handle) => Some(handle),
        Stored::Object { .. } | Stored::Part => None,
    };
    handle.ok_or(EngineError::Unexpected("a store"))
}
