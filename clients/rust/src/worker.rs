//! A task of a job with a coordinator: what it starts from, when to take snapshots, what became of them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::client::Client;
use crate::error::ClientError;
use crate::wire::{
    AckRequest, AckState, BatchHead, DeclineRequest, EndData, EventInfo, EventsParams, HelloData, JobEvent, StopData,
    TaskReport, TaskStateInfo, TasksReport, TriggerData,
};

/// Between two tries of what may work later.
const AGAIN: Duration = Duration::from_millis(200);

/// What a task is to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// Drop all state, begin from this one, then say so: [`Worker::running`]. It is the first event, and comes again when the job
    /// begins anew.
    Start(TaskStateInfo),
    /// Take a snapshot, and acknowledge it: [`Worker::acknowledge`].
    Snapshot(TriggerData),
    /// A checkpoint is durable: commit what waits for it.
    Complete(u64),
    /// A checkpoint is given up: forget what was made for it.
    Abort(u64),
    /// This checkpoint and those before it are gone.
    Subsume(u64),
    /// End: the savepoint that the job stops with is durable. Then say so: [`Worker::finished`].
    Stop(StopData),
    /// The job has ended.
    End(EndData),
}

/// One task of a job with a coordinator.
///
/// Call [`Self::next`] all the time: it is also the sign of life of the task. Whatever the daemon cannot do for a while is tried
/// again for as long as `patience` says.
#[derive(Debug)]
pub struct Worker {
    client: Client,
    job: String,
    operator: String,
    subtask: u32,
    name: String,
    patience: Duration,
    attempt: u64,
    /// The last event that was handled.
    at: Option<String>,
    /// Events that came and were not handed out.
    waiting: std::collections::VecDeque<EventInfo>,
    /// Checkpoints that were handed out and are not over.
    open: std::collections::BTreeSet<u64>,
    completed: Option<u64>,
    begun: bool,
    ran: bool,
}

impl Worker {
    /// The task `subtask` of `operator`. Nothing is sent before [`Self::next`].
    pub fn new(client: Client, job: &str, operator: &str, subtask: u32) -> Self {
        Self {
            client,
            job: job.to_owned(),
            operator: operator.to_owned(),
            subtask,
            name: format!("{operator}-{subtask}-{}", std::process::id()),
            patience: Duration::from_secs(60),
            attempt: 0,
            at: None,
            waiting: std::collections::VecDeque::new(),
            open: std::collections::BTreeSet::new(),
            completed: None,
            begun: false,
            ran: false,
        }
    }

    /// The same that tries again for so long.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The attempt that it is a part of.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The client that it uses.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What to do next. Waits for it.
    ///
    /// # Errors
    /// [`ClientError`] if the daemon does not answer for longer than its patience, or refuses.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not handed out comes with the next call.
    pub async fn next(&mut self) -> Result<WorkerEvent, ClientError> {
        if !self.begun {
            return self.start().await;
        }
        loop {
            while let Some(info) = self.waiting.pop_front() {
                self.at = Some(info.id.clone());
                if self.is_another_attempt(&info.event) {
                    self.waiting.clear();
                    self.ran = false;
                    return self.start().await;
                }
                if let Some(event) = self.hand_out(info.event) {
                    return Ok(event);
                }
            }
            let params =
                EventsParams { worker: Some(self.name.clone()), after: self.at.clone(), wait: Some("2 s".to_owned()) };
            let page = self.again(|worker| {
                let (client, job, params) = (worker.client.clone(), worker.job.clone(), params.clone());
                async move { client.events(&job, &params).await }
            });
            self.waiting.extend(page.await?.events);
        }
    }

    fn is_another_attempt(&self, event: &JobEvent) -> bool {
        match event {
            JobEvent::Hello(hello) => hello.attempt != self.attempt,
            JobEvent::Restore(restore) => restore.attempt > self.attempt,
            _ => false,
        }
    }

    fn hand_out(&mut self, event: JobEvent) -> Option<WorkerEvent> {
        match event {
            JobEvent::Hello(hello) => {
                self.catch_up(hello);
                None
            }
            JobEvent::Trigger(trigger) if trigger.attempt == self.attempt && self.ran => {
                self.open.insert(trigger.checkpoint).then_some(WorkerEvent::Snapshot(trigger))
            }
            JobEvent::Trigger(_) | JobEvent::Restore(_) => None,
            JobEvent::Complete(complete) => {
                self.open.remove(&complete.checkpoint);
                let newer = self.completed < Some(complete.checkpoint);
                self.completed = self.completed.max(Some(complete.checkpoint));
                newer.then_some(WorkerEvent::Complete(complete.checkpoint))
            }
            JobEvent::Abort(abort) => {
                self.open.remove(&abort.checkpoint).then_some(WorkerEvent::Abort(abort.checkpoint))
            }
            JobEvent::Subsume(subsume) => Some(WorkerEvent::Subsume(subsume.checkpoint)),
            JobEvent::Stop(stop) => Some(WorkerEvent::Stop(stop)),
            JobEvent::End(end) => Some(WorkerEvent::End(end)),
        }
    }

    /// What happened while nobody listened: those that are open here and not there have ended.
    fn catch_up(&mut self, hello: HelloData) {
        let event = |event| EventInfo { id: self.at.clone().unwrap_or_default(), event };
        let mut missed = vec![];
        if let Some(completed) = hello.completed.filter(|completed| self.open.contains(completed)) {
            let complete = crate::wire::CompleteData { checkpoint: completed, ..Default::default() };
            missed.push(event(JobEvent::Complete(complete)));
        }
        let pending = |checkpoint: &u64| hello.pending.iter().any(|trigger| trigger.checkpoint == *checkpoint);
        for checkpoint in self.open.iter().filter(|open| !pending(open) && Some(**open) != hello.completed) {
            let abort = crate::wire::AbortData { checkpoint: *checkpoint, ..Default::default() };
            missed.push(event(JobEvent::Abort(abort)));
        }
        missed.extend(hello.pending.into_iter().map(|trigger| event(JobEvent::Trigger(trigger))));
        missed.into_iter().rev().for_each(|missed| self.waiting.push_front(missed));
    }

    /// Finds out what to start from. In a job that runs this task is a new one in the place of one that was lost: then all begin
    /// anew.
    async fn start(&mut self) -> Result<WorkerEvent, ClientError> {
        loop {
            let state = self.again(|worker| {
                let (client, job, task) = (worker.client.clone(), worker.job.clone(), worker.operator.clone());
                let subtask = worker.subtask;
                async move { client.job_state(&job, Some((&task, subtask))).await }
            });
            let state = state.await?;
            self.attempt = state.attempt;
            let runs = state.status == "running" || state.status == "stopping";
            let Some(task) = state.tasks.into_iter().next().filter(|_| !runs) else {
                self.report("failed", Some("the process began anew")).await?;
                continue;
            };
            self.open.clear();
            self.begun = true;
            return Ok(WorkerEvent::Start(task));
        }
    }

    /// Says that the task has its state and processes records.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn running(&mut self) -> Result<(), ClientError> {
        self.ran = true;
        self.report("running", None).await
    }

    /// Says that it has read all input, and waits for a last checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_of_data(&mut self) -> Result<(), ClientError> {
        self.report("end-of-data", None).await
    }

    /// Says that it is over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn finished(&mut self) -> Result<(), ClientError> {
        self.report("finished", None).await
    }

    /// Says that it has failed: the job begins anew.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn failed(&mut self, message: &str) -> Result<(), ClientError> {
        self.report("failed", Some(message)).await
    }

    /// That the job is at another attempt is told by the events.
    async fn report(&self, state: &str, message: Option<&str>) -> Result<(), ClientError> {
        let task = TaskReport { operator: self.operator.clone(), subtask: self.subtask, state: state.to_owned() };
        let report = TasksReport {
            attempt: self.attempt,
            worker: Some(self.name.clone()),
            tasks: vec![task],
            message: message.map(str::to_owned),
        };
        let reported = self.again(|worker| {
            let (client, job, report) = (worker.client.clone(), worker.job.clone(), report.clone());
            async move { client.report_tasks(&job, &report).await }
        });
        over_is_fine(reported.await.map(drop))
    }

    /// Acknowledges a checkpoint with these states, each in a segment that is stored with it. A state without bytes is left out.
    /// That it is over meanwhile is told by the events.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn acknowledge(&self, checkpoint: u64, states: Vec<(AckState, Bytes)>) -> Result<(), ClientError> {
        let (mut state, mut parts) = (vec![], vec![]);
        for (mut named, bytes) in states.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
            named.part = u32::try_from(parts.len()).ok();
            parts.push((BatchHead { name: named.name.clone(), ..BatchHead::default() }, bytes));
            state.push(named);
        }
        self.acknowledge_with(checkpoint, AckRequest { state, ..AckRequest::default() }, parts).await
    }

    /// The same with everything that can be said. Operator, subtask and attempt are those of the task.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn acknowledge_with(
        &self,
        checkpoint: u64,
        ack: AckRequest,
        parts: Vec<(BatchHead, Bytes)>,
    ) -> Result<(), ClientError> {
        let (operator, subtask, attempt) = (self.operator.clone(), self.subtask, self.attempt);
        let ack = AckRequest { operator, subtask, attempt, ..ack };
        let acknowledged = self.again(|worker| {
            let (client, job) = (worker.client.clone(), worker.job.clone());
            let (ack, parts) = (ack.clone(), parts.clone());
            async move { client.acknowledge(&job, checkpoint, &ack, &parts).await }
        });
        match acknowledged.await {
            // Segments that cannot be used again are the caller's to store.
            Err(ClientError::Refused { field: Some(field), .. }) if field == "checkpoint" || field == "attempt" => {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Declines a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn decline(&self, checkpoint: u64, message: &str) -> Result<(), ClientError> {
        let decline = DeclineRequest {
            operator: self.operator.clone(),
            subtask: self.subtask,
            attempt: self.attempt,
            reason: None,
            message: Some(message.to_owned()),
        };
        let declined = self.again(|worker| {
            let (client, job, decline) = (worker.client.clone(), worker.job.clone(), decline.clone());
            async move { client.decline(&job, checkpoint, &decline).await }
        });
        over_is_fine(declined.await)
    }

    /// The bytes of a state that the task starts from: those of its ranges, one element after the other.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn elements(&self, state: &crate::wire::AssignedStateInfo) -> Result<Vec<Bytes>, ClientError> {
        let whole = self.again(|worker| {
            let (client, segment) = (worker.client.clone(), state.segment.clone());
            async move { client.get(&segment).await }
        });
        let whole = whole.await?;
        let element = |(start, end): &(u64, u64)| {
            let range = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
            (range.end <= whole.len() && range.start <= range.end).then(|| whole.slice(range))
        };
        let elements: Option<Vec<Bytes>> = state.ranges.iter().map(element).collect();
        elements.ok_or_else(|| ClientError::Answer(format!("a range of {} is outside of it", state.segment)))
    }

    /// Asks until there is an answer that is not for later.
    async fn again<T, F>(&self, ask: impl Fn(&Self) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let asking = async {
            loop {
                match ask(self).await {
                    Err(error) if error.is_transient() => {
                        tokio::time::sleep(error.retry_after().unwrap_or(AGAIN)).await;
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(self.patience, asking).await {
            Ok(answer) => answer,
            // The last try tells why.
            Err(_) => ask(self).await,
        }
    }
}

/// What is refused because it is over, or of another attempt, is told by the events.
fn over_is_fine(answer: Result<(), ClientError>) -> Result<(), ClientError> {
    match answer {
        Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(()),
        other => other,
    }
}
