//! Requests of jobs with a coordinator.

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, crc32c, json_of, part};
use crate::error::ClientError;
use crate::wire::{
    AckAnswer, AckRequest, BacklogReport, BatchHead, CheckpointFiguresInfo, DeclineRequest, EventPage, EventsParams,
    JobInfo, JobSettings, JobStateInfo, NewJob, RequestAnswer, RestoreJob, SavepointRequest, StopRequest, TasksAnswer,
    TasksReport, TriggerRequest,
};

impl Client {
    /// Creates a job, with a coordinator if it says so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(&self, job: &NewJob) -> Result<JobInfo, ClientError> {
        self.post_json("/v1/jobs", job).await
    }

    /// Shows a job.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job(&self, job: &str) -> Result<JobInfo, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}", part(job))), Bytes::new()).await
    }

    /// Changes settings of a job while it runs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_settings(&self, job: &str, settings: &JobSettings) -> Result<JobInfo, ClientError> {
        self.post_json(&format!("/v1/jobs/{}/settings", part(job)), settings).await
    }

    /// Says how tasks are; the heartbeat.
    ///
    /// # Errors
    /// [`ClientError`]; 409 if the job is at another attempt.
    pub async fn report_tasks(&self, job: &str, report: &TasksReport) -> Result<TasksAnswer, ClientError> {
        self.post_json(&format!("/v1/jobs/{}/tasks", part(job)), report).await
    }

    /// The events of a job after one; waits for the first as long as `params` say.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, job: &str, params: &EventsParams) -> Result<EventPage, ClientError> {
        let fields = [("worker", &params.worker), ("after", &params.after), ("wait", &params.wait)];
        let query = fields.iter().filter_map(|(name, value)| Some(format!("{name}={}", part(value.as_deref()?))));
        let path = format!("/v1/jobs/{}/events?{}", part(job), query.collect::<Vec<_>>().join("&"));
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }

    /// Acknowledges a checkpoint, with segments that its states name by `part`. May be sent again.
    ///
    /// # Errors
    /// [`ClientError`]; 409 if the checkpoint is over, or the job is at another attempt.
    pub async fn acknowledge(
        &self,
        job: &str,
        checkpoint: u64,
        ack: &AckRequest,
        parts: &[(BatchHead, Bytes)],
    ) -> Result<AckAnswer, ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}/ack", part(job));
        if parts.is_empty() {
            return self.post_json(&path, ack).await;
        }
        let mut body = BytesMut::with_capacity(parts.iter().map(|(_, data)| data.len() + 256).sum());
        let mut frame = |head: Vec<u8>, data: &[u8]| {
            body.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
            body.put_slice(&head);
            body.put_slice(data);
        };
        frame(json_of(ack)?.to_vec(), &[]);
        for (head, data) in parts {
            let crc32c = head.crc32c.clone().or_else(|| Some(format!("{:08x}", crc32c(data))));
            let head = BatchHead { len: data.len() as u64, crc32c, ..head.clone() };
            frame(json_of(&head)?.to_vec(), data);
        }
        let request = self.request(Method::POST, &path).header(header::CONTENT_TYPE, "application/octet-stream");
        self.json(request, body.freeze()).await
    }

    /// Declines a checkpoint, which is given up.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn decline(&self, job: &str, checkpoint: u64, decline: &DeclineRequest) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}/decline", part(job));
        self.send(self.request(Method::POST, &path), json_of(decline)?).await.map(drop)
    }

    /// Says whether a source has a backlog.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn report_backlog(&self, job: &str, report: &BacklogReport) -> Result<(), ClientError> {
        let request = self.request(Method::PUT, &format!("/v1/jobs/{}/backlog", part(job)));
        self.send(request, json_of(report)?).await.map(drop)
    }

    /// Triggers a checkpoint. With a key, a repeat is the same request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn trigger_checkpoint(
        &self,
        job: &str,
        request: &TriggerRequest,
        key: Option<&str>,
    ) -> Result<RequestAnswer, ClientError> {
        self.ask(&format!("/v1/jobs/{}/checkpoints:trigger", part(job)), request, key).await
    }

    /// Triggers a savepoint. With a key, a repeat is the same request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn trigger_savepoint(
        &self,
        job: &str,
        request: &SavepointRequest,
        key: Option<&str>,
    ) -> Result<RequestAnswer, ClientError> {
        self.ask(&format!("/v1/jobs/{}/savepoints:trigger", part(job)), request, key).await
    }

    /// Stops a job with a savepoint. With a key, a repeat is the same request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop_job(
        &self,
        job: &str,
        request: &StopRequest,
        key: Option<&str>,
    ) -> Result<RequestAnswer, ClientError> {
        self.ask(&format!("/v1/jobs/{}/stop", part(job)), request, key).await
    }

    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
        key: Option<&str>,
    ) -> Result<A, ClientError> {
        let mut request = self.request(Method::POST, path);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.json(request, json_of(question)?).await
    }

    /// Tells what a task starts from; or each of them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job_state(&self, job: &str, task: Option<(&str, u32)>) -> Result<JobStateInfo, ClientError> {
        let query = task.map(|(operator, subtask)| format!("?operator={}&subtask={subtask}", part(operator)));
        let path = format!("/v1/jobs/{}/state{}", part(job), query.unwrap_or_default());
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }

    /// A job with a coordinator goes on from a state that is chosen here.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restore_coordinated(&self, job: &str, from: &RestoreJob) -> Result<JobStateInfo, ClientError> {
        self.post_json(&format!("/v1/jobs/{}/restore", part(job)), from).await
    }

    /// Tells how the last checkpoints went, the newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkpoint_history(&self, job: &str) -> Result<Vec<CheckpointFiguresInfo>, ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints:history", part(job));
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }

    /// The metadata of a completed checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkpoint_metadata(&self, job: &str, checkpoint: u64) -> Result<serde_json::Value, ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}/metadata", part(job));
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }
}
