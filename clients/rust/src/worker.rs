//! A task of a job with a coordinator: what it starts from, when to take snapshots, what became of them.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::ClientError;
use crate::wire::{
    AckAnswer, AckRequest, AckState, BatchHead, DeclineRequest, EndData, EventInfo, EventPage, EventsParams, HelloData,
    JobEvent, JobStateInfo, StopData, TaskReport, TaskStateInfo, TasksReport, TriggerData,
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
    /// The job has ended. Without a state if that was while nobody listened, and nothing of it is kept.
    End(EndData),
}

/// A task, and whom it asks.
#[derive(Debug, Clone)]
struct TaskOfJob {
    client: Client,
    job: String,
    operator: String,
    subtask: u32,
    /// Of the process.
    name: String,
    patience: Duration,
}

/// An answer.
#[derive(Debug)]
enum WorkerAnswer {
    Start(JobStateInfo, TaskStateInfo),
    Events(EventPage),
}

/// A question that goes on while the caller has other things to do: breaking [`Worker::next`] off does not break it off.
#[derive(Debug)]
struct Asking(JoinHandle<Result<WorkerAnswer, ClientError>>);

impl Drop for Asking {
    fn drop(&mut self) {
        // What nobody listens to is no sign of life.
        self.0.abort();
    }
}

impl TaskOfJob {
    /// Asks until there is an answer that is not for later.
    async fn again<T, F>(&self, ask: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let asking = async {
            loop {
                match ask().await {
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
            Err(_) => ask().await,
        }
    }

    /// The events behind those that were handled.
    async fn events(&self, after: Option<String>) -> Result<WorkerAnswer, ClientError> {
        let params = EventsParams { worker: Some(self.name.clone()), after, wait: Some("2 s".to_owned()) };
        self.again(|| self.client.events(&self.job, &params)).await.map(WorkerAnswer::Events)
    }

    /// Finds out what to start from. In a job that runs this task is a new one in the place of one that was lost: then all begin
    /// anew.
    async fn start(&self) -> Result<WorkerAnswer, ClientError> {
        loop {
            let of = Some((&*self.operator, self.subtask));
            let state = self.again(|| self.client.job_state(&self.job, of)).await?;
            let runs = state.status == "running" || state.status == "stopping";
            match state.tasks.first().cloned().filter(|_| !runs) {
                Some(task) => return Ok(WorkerAnswer::Start(state, task)),
                None => self.report(state.attempt, "failed", Some("the process began anew")).await?,
            }
        }
    }

    /// That the job is at another attempt is told by the events.
    async fn report(&self, attempt: u64, state: &str, message: Option<&str>) -> Result<(), ClientError> {
        let task = TaskReport { operator: self.operator.clone(), subtask: self.subtask, state: state.to_owned() };
        let (worker, message) = (Some(self.name.clone()), message.map(str::to_owned));
        let report = TasksReport { attempt, worker, tasks: vec![task], message };
        over_is_fine(self.again(|| self.client.report_tasks(&self.job, &report)).await.map(drop))
    }
}

/// One task of a job with a coordinator.
///
/// Call [`Self::next`] all the time: it is also the sign of life of the task. Whatever the daemon cannot do for a while is tried
/// again for as long as `patience` says.
#[derive(Debug)]
pub struct Worker {
    of: Arc<TaskOfJob>,
    /// The first attempt of the job.
    first: Option<u64>,
    attempt: u64,
    restored: Option<u64>,
    /// The last event that was handled.
    at: Option<String>,
    asking: Option<Asking>,
    /// Events that came and were not handed out.
    waiting: VecDeque<EventInfo>,
    /// Checkpoints that were handed out and are not over.
    open: BTreeSet<u64>,
    completed: Option<u64>,
    /// Whether it was told what to start from in this attempt.
    begun: bool,
    /// The state that it reported last in this attempt.
    reported: Option<&'static str>,
    /// Whether the daemon may not know of that: it is another one, or was away.
    unknown: bool,
}

impl Worker {
    /// The task `subtask` of `operator`. Nothing is sent before [`Self::next`].
    pub fn new(client: Client, job: &str, operator: &str, subtask: u32) -> Self {
        // No other process has it, wherever it runs.
        let name = format!("{operator}-{subtask}-{:x}", RandomState::new().hash_one(std::process::id()));
        let (job, operator, patience) = (job.to_owned(), operator.to_owned(), Duration::from_secs(60));
        Self {
            of: Arc::new(TaskOfJob { client, job, operator, subtask, name, patience }),
            first: None,
            attempt: 0,
            restored: None,
            at: None,
            asking: None,
            waiting: VecDeque::new(),
            open: BTreeSet::new(),
            completed: None,
            begun: false,
            reported: None,
            unknown: false,
        }
    }

    /// The same that tries again for so long.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        Arc::make_mut(&mut self.of).patience = patience;
        self
    }

    /// The attempt that it is a part of.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The checkpoint that it starts from; `None`: from nothing.
    pub fn restored(&self) -> Option<u64> {
        self.restored
    }

    /// The client that it uses.
    pub fn client(&self) -> &Client {
        &self.of.client
    }

    /// What to do next. Waits for it.
    ///
    /// # Errors
    /// [`ClientError`] if the daemon does not answer for longer than its patience, or refuses.
    ///
    /// # Cancel safety
    /// Cancel safe: what is asked goes on, and what was not handed out comes with the next call.
    pub async fn next(&mut self) -> Result<WorkerEvent, ClientError> {
        loop {
            if let Some(event) = self.hand_out_next() {
                return Ok(event);
            }
            let asking = self.asking.take().unwrap_or_else(|| self.ask());
            let asked = (&mut self.asking.insert(asking).0).await;
            self.asking = None;
            let asked = asked.unwrap_or_else(|error| Err(ClientError::Answer(error.to_string())));
            match asked {
                Ok(WorkerAnswer::Events(page)) => self.waiting.extend(page.events),
                // The job has ended meanwhile, and this is another one of its name.
                Ok(WorkerAnswer::Start(state, _)) if self.first.is_some_and(|first| first != state.first_attempt) => {
                    return Ok(WorkerEvent::End(EndData::default()));
                }
                Ok(WorkerAnswer::Start(state, task)) => {
                    (self.attempt, self.restored, self.begun) = (state.attempt, state.checkpoint, true);
                    self.first = Some(state.first_attempt);
                    self.open.clear();
                    return Ok(WorkerEvent::Start(task));
                }
                Err(error) if self.attempt > 0 && is_of_no_job(&error) => {
                    return Ok(WorkerEvent::End(EndData::default()));
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "it ends with the worker")]
    fn ask(&mut self) -> Asking {
        let (of, begun, attempt, at) = (Arc::clone(&self.of), self.begun, self.attempt, self.at.clone());
        let first = self.reported.filter(|_| std::mem::take(&mut self.unknown));
        Asking(tokio::spawn(async move {
            if !begun {
                return of.start().await;
            }
            if let Some(state) = first {
                of.report(attempt, state, None).await?;
            }
            of.events(at).await
        }))
    }

    fn hand_out_next(&mut self) -> Option<WorkerEvent> {
        while let Some(info) = self.waiting.pop_front() {
            self.at = Some(info.id.clone());
            if self.is_another_attempt(&info.event) {
                self.waiting.clear();
                (self.begun, self.reported) = (false, None);
                return None;
            }
            if let Some(event) = self.hand_out(info.event) {
                return Some(event);
            }
        }
        None
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
                self.unknown = true;
                self.catch_up(hello);
                None
            }
            JobEvent::Trigger(trigger) if trigger.attempt == self.attempt && self.reported.is_some() => {
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

    /// Says that the task has its state and processes records.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn running(&mut self) -> Result<(), ClientError> {
        self.report("running").await
    }

    /// Says that it has read all input, and waits for a last checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_of_data(&mut self) -> Result<(), ClientError> {
        self.report("end-of-data").await
    }

    /// Says that it is over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn finished(&mut self) -> Result<(), ClientError> {
        match self.report("finished").await {
            // With its last task, and the answer was lost.
            Err(error) if is_of_no_job(&error) => Ok(()),
            reported => reported,
        }
    }

    /// Says that it has failed: the job begins anew.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn failed(&mut self, message: &str) -> Result<(), ClientError> {
        self.of.report(self.attempt, "failed", Some(message)).await
    }

    async fn report(&mut self, state: &'static str) -> Result<(), ClientError> {
        self.reported = Some(state);
        self.of.report(self.attempt, state, None).await
    }

    /// Acknowledges a checkpoint with these states, each in a segment that is stored with it. A state without bytes is left out.
    /// Returns the segments; `None` if it is over, which the events tell.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn acknowledge(
        &self,
        checkpoint: u64,
        states: Vec<(AckState, Bytes)>,
    ) -> Result<Option<AckAnswer>, ClientError> {
        let (mut state, mut parts) = (vec![], vec![]);
        for (mut named, bytes) in states.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
            named.part = u32::try_from(parts.len()).ok();
            parts.push((BatchHead { name: named.name.clone(), ..BatchHead::default() }, bytes));
            state.push(named);
        }
        self.acknowledge_with(checkpoint, AckRequest { state, ..AckRequest::default() }, parts).await
    }

    /// The same with everything that can be said. Operator, subtask and attempt are those of the task. States may name segments of
    /// completed checkpoints ([`AckState::segment`]) if the trigger is `incremental`.
    ///
    /// # Errors
    /// [`ClientError`]; its field is `state` if segments cannot be named again: then they have to be stored anew.
    pub async fn acknowledge_with(
        &self,
        checkpoint: u64,
        ack: AckRequest,
        parts: Vec<(BatchHead, Bytes)>,
    ) -> Result<Option<AckAnswer>, ClientError> {
        let of = &self.of;
        let ack = AckRequest { operator: of.operator.clone(), subtask: of.subtask, attempt: self.attempt, ..ack };
        let acknowledged = of.again(|| of.client.acknowledge(&of.job, checkpoint, &ack, &parts));
        match acknowledged.await {
            // Segments that cannot be used again are the caller's to store.
            Err(ClientError::Refused { field: Some(field), .. }) if field == "checkpoint" || field == "attempt" => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Declines a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn decline(&self, checkpoint: u64, message: &str) -> Result<(), ClientError> {
        let of = &self.of;
        let decline = DeclineRequest {
            operator: of.operator.clone(),
            subtask: of.subtask,
            attempt: self.attempt,
            reason: None,
            message: Some(message.to_owned()),
        };
        let declined = of.again(|| of.client.decline(&of.job, checkpoint, &decline));
        over_is_fine(declined.await)
    }

    /// The bytes of a state that the task starts from: those of its ranges, one element after the other.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn elements(&self, state: &crate::wire::AssignedStateInfo) -> Result<Vec<Bytes>, ClientError> {
        let whole = self.of.again(|| self.of.client.get(&state.segment)).await?;
        let element = |(start, end): &(u64, u64)| {
            let range = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
            (range.end <= whole.len() && range.start <= range.end).then(|| whole.slice(range))
        };
        let elements: Option<Vec<Bytes>> = state.ranges.iter().map(element).collect();
        elements.ok_or_else(|| ClientError::Answer(format!("a range of {} is outside of it", state.segment)))
    }
}

/// Whether the daemon knows of no such job, or of none that it coordinates: of one that had a task it has ended.
fn is_of_no_job(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: StatusCode::NOT_FOUND, field: Some(field), .. } if field == "job")
}

/// What is refused because it is over, or of another attempt, is told by the events.
fn over_is_fine(answer: Result<(), ClientError>) -> Result<(), ClientError> {
    match answer {
        Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(()),
        other => other,
    }
}
