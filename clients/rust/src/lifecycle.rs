//! Requests of reuse, restore, savepoints, the end of a job, and space.

use bytes::Bytes;
use http::Method;

use crate::client::{Client, part};
use crate::error::ClientError;
use crate::wire::{
    EndAnswer, EndRequest, GcReport, ReclaimPlan, ReclaimRound, RestoreJob, RestoredJob, ReuseAnswer, ReuseRequest,
    SpaceInfo, VerifyInfo,
};

impl Client {
    /// Begins a savepoint: self-contained, never subsumed, kept until it is discarded.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin_savepoint(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        self.checkpoint(job, checkpoint, "?kind=savepoint").await
    }

    /// Discards a savepoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn discard_savepoint(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}", part(job));
        self.send(self.request(Method::DELETE, &path), Bytes::new()).await.map(|_| ())
    }

    /// A checkpoint uses segments of earlier ones, by identity or handle. Those that are refused have to be stored again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reuse(&self, job: &str, checkpoint: u64, segments: Vec<String>) -> Result<ReuseAnswer, ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}/reuse", part(job));
        self.post_json(&path, &ReuseRequest { segments }).await
    }

    /// A job goes on from a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restore_job(&self, job: &str, from: &RestoreJob) -> Result<RestoredJob, ClientError> {
        self.post_json(&format!("/v1/jobs/{}/restore", part(job)), from).await
    }

    /// A job has ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_job(&self, job: &str, end: &EndRequest) -> Result<EndAnswer, ClientError> {
        self.post_json(&format!("/v1/jobs/{}/end", part(job)), end).await
    }

    /// Returns the space that jobs, lanes or checkpoints take.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn space(&self, by: Option<&str>, job: Option<&str>) -> Result<SpaceInfo, ClientError> {
        let by = by.map(|by| format!("by={}", part(by)));
        let job = job.map(|job| format!("job={}", part(job)));
        let query: Vec<String> = by.into_iter().chain(job).collect();
        self.json(self.request(Method::GET, &format!("/v1/space?{}", query.join("&"))), Bytes::new()).await
    }

    /// Recounts the catalog and returns the mismatches.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn verify(&self) -> Result<VerifyInfo, ClientError> {
        self.json(self.request(Method::GET, "/v1/verify"), Bytes::new()).await
    }

    /// Returns the plan for the next round of reclaiming.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reclaim_plan(&self) -> Result<ReclaimPlan, ClientError> {
        self.json(self.request(Method::GET, "/v1/reclaim"), Bytes::new()).await
    }

    /// Reclaims now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reclaim(&self) -> Result<ReclaimRound, ClientError> {
        self.json(self.request(Method::POST, "/v1/reclaim"), Bytes::new()).await
    }

    /// Lists the files that wait to be deleted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn gc_report(&self) -> Result<GcReport, ClientError> {
        self.json(self.request(Method::GET, "/v1/gc"), Bytes::new()).await
    }

    /// Deletes what is due now. `force`: the next sweep deletes what is not known though it be most of what is there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn gc(&self, force: bool) -> Result<GcReport, ClientError> {
        self.json(self.request(Method::POST, &format!("/v1/gc?force={force}")), Bytes::new()).await
    }
}
