//! What the workers of a job are told: as server-sent events, or by long poll.
//!
//! # Invariants
//! - A stream holds no events of its own: it reads from those that the job keeps. Who reads too slowly is told how things stand.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use esker_client::wire::{
    AbortData, CompleteData, EndData, ErrorBody, EventInfo, EventPage, EventsParams, HelloData, JobEvent, RestoreData,
    StopData, SubsumeData, TriggerData,
};
use futures::Stream;
use futures::stream;
use http::{HeaderValue, header};
use std::convert::Infallible;

use super::coordinated::{millis, status_of, wait_of};
use super::parts::{Native, header_text, job_of, query};
use crate::api::status::ApiError;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::events::{CoordinatorEvent, EventLog, EventsAfter, TriggerNotice};
use crate::coordinator::handle::JobHandle;
use crate::coordinator::state::queue::{StopMode, WantedCheckpoint};
use crate::model::{JobId, Label};

/// Between two lines that say that a stream is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events that are told at once.
const EVENTS_AT_ONCE: usize = 64;
/// A long poll waits so long if it does not say how long.
const WAIT: Duration = Duration::from_secs(20);

/// Tells the events of a job.
#[utoipa::path(get, tag = "Coordinator", path = "/v1/jobs/{job}/events", params(("job" = String, Path), EventsParams,
    ("last-event-id" = Option<String>, Header, description = "The id of the last event that was handled")),
    responses((status = 200, body = EventPage, description = "Or, with Accept: text/event-stream, server-sent events"),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn events(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let job = job_of(&job)?;
    let EventsParams { worker, after, wait } = query(request.uri())?;
    let coordinator = native.coordinators.last_of(&job)?;
    if let Some(worker) = worker {
        Label::parse("worker", &worker)?;
        match coordinator.heard_of(worker).await {
            // Of a job that has ended only the last events are left.
            Ok(()) | Err(CoordinatorError::Ended) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let last = header_text(request.headers(), "last-event-id")?.map(str::to_owned).or(after);
    let at = last.as_deref().and_then(|id| coordinator.events.number(id));
    let streams = header_text(request.headers(), "accept")?.is_some_and(|accept| accept.contains("text/event-stream"));
    let told = EventReader { native, job, coordinator, at };
    if streams {
        let mut response = Response::new(HttpBody::from_stream(told.stream()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return Ok(response);
    }
    Ok(Json(told.poll(wait_of(wait.as_deref(), WAIT)?).await?).into_response())
}

/// Somebody who is told events.
struct EventReader {
    native: Native,
    job: JobId,
    coordinator: JobHandle,
    /// The last event that it knows; `None`: it has to be told how things stand.
    at: Option<u64>,
}

/// What there is to tell.
enum News {
    Events(Vec<EventInfo>),
    Nothing,
    Over,
}

impl EventReader {
    /// The next events. Waits for them for at most `patience`.
    async fn next(&mut self, patience: Duration) -> Result<News, CoordinatorError> {
        let Some(at) = self.at else { return self.hello().await };
        // Before the look: an event that comes between the two is not missed.
        let mut news = self.coordinator.events.news();
        match self.coordinator.events.after(at, EVENTS_AT_ONCE) {
            EventsAfter::TooOld => return self.hello().await,
            EventsAfter::Closed => return Ok(News::Over),
            EventsAfter::Events(events) if !events.is_empty() => return Ok(self.tell(events)),
            EventsAfter::Events(_) => {}
        }
        tokio::select! {
            _ = tokio::time::timeout(patience, news.changed()) => {}
            () = self.native.ending.cancelled() => return Ok(News::Over),
        }
        match self.coordinator.events.after(at, EVENTS_AT_ONCE) {
            EventsAfter::Events(events) if events.is_empty() => Ok(News::Nothing),
            EventsAfter::Events(events) => Ok(self.tell(events)),
            EventsAfter::TooOld => self.hello().await,
            EventsAfter::Closed => Ok(News::Over),
        }
    }

    fn tell(&mut self, events: Vec<(u64, CoordinatorEvent)>) -> News {
        self.at = events.last().map(|(number, _)| *number).or(self.at);
        let log: &Arc<EventLog> = &self.coordinator.events;
        News::Events(events.into_iter().map(|(number, event)| info(log.id(number), told(event))).collect())
    }

    async fn hello(&mut self) -> Result<News, CoordinatorError> {
        let greeting = match self.coordinator.greet().await {
            // The last event says how it ended.
            Err(CoordinatorError::Ended) => {
                let last = self.coordinator.events.after(self.coordinator.events.last().saturating_sub(1), 1);
                return match last {
                    EventsAfter::Events(events) if matches!(events[..], [(_, CoordinatorEvent::End { .. })]) => {
                        Ok(self.tell(events))
                    }
                    _ => Err(CoordinatorError::Ended),
                };
            }
            greeting => greeting?,
        };
        let standing = greeting.standing;
        self.at = Some(greeting.last_event);
        let subsumed = self.native.engine.job(&self.job).ok().and_then(|job| job.subsumed).map(|id| id.0);
        let hello = HelloData {
            attempt: standing.attempt,
            status: status_of(standing.phase).to_owned(),
            completed: standing.completed.map(|id| id.0),
            subsumed,
            pending: greeting.pending.into_iter().map(trigger).collect(),
            heartbeat_ms: millis(standing.heartbeat_interval),
            heartbeat_timeout_ms: millis(standing.heartbeat_timeout),
        };
        let id = self.coordinator.events.id(greeting.last_event);
        Ok(News::Events(vec![info(id, JobEvent::Hello(hello))]))
    }

    async fn poll(mut self, wait: Duration) -> Result<EventPage, ApiError> {
        let events = match self.next(wait).await? {
            News::Events(events) => events,
            News::Nothing | News::Over => vec![],
        };
        let next = self.coordinator.events.id(self.at.unwrap_or_default());
        Ok(EventPage { events, next })
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(Some(self), |told| async move {
            let mut told = told?;
            match told.next(HEARTBEAT).await {
                Ok(News::Events(events)) => Some((Ok(lines(&events)), Some(told))),
                Ok(News::Nothing) => Some((Ok(Bytes::from_static(b": heartbeat\n\n")), Some(told))),
                // The client comes again, and hears why.
                Ok(News::Over) | Err(_) => None,
            }
        })
    }
}

fn info(id: String, event: JobEvent) -> EventInfo {
    EventInfo { id, event }
}

/// Events as they stand in a stream.
fn lines(events: &[EventInfo]) -> Bytes {
    let mut out = String::new();
    for info in events {
        let value = serde_json::to_value(&info.event).unwrap_or_default();
        let name = value["event"].as_str().unwrap_or_default();
        out.push_str(&format!("id: {}\nevent: {name}\ndata: {}\n\n", info.id, value["data"]));
    }
    Bytes::from(out)
}

fn kind_of(wanted: WantedCheckpoint) -> String {
    if wanted.is_savepoint() { "savepoint" } else { "checkpoint" }.to_owned()
}

fn trigger(notice: TriggerNotice) -> TriggerData {
    TriggerData {
        checkpoint: notice.checkpoint.0,
        attempt: notice.attempt,
        kind: kind_of(notice.wanted),
        timestamp_ms: notice.timestamp_ms,
        timeout_ms: notice.timeout_ms,
        mode: notice.mode.to_string(),
        unaligned: notice.unaligned_after_ms.is_some(),
        aligned_timeout_ms: notice.unaligned_after_ms.unwrap_or_default(),
        incremental: notice.incremental,
        full: notice.full,
        stop: match notice.wanted {
            WantedCheckpoint::Stop(StopMode::Drain) => Some("drain".to_owned()),
            WantedCheckpoint::Stop(StopMode::Suspend) => Some("suspend".to_owned()),
            _ => None,
        },
        max_subtasks_per_channel_state_file: notice.channel_subtasks_per_file_max,
    }
}

fn told(event: CoordinatorEvent) -> JobEvent {
    match event {
        CoordinatorEvent::Trigger(notice) => JobEvent::Trigger(trigger(notice)),
        CoordinatorEvent::Complete { checkpoint, attempt, wanted, metadata, path, last_subsumed } => {
            JobEvent::Complete(CompleteData {
                checkpoint: checkpoint.0,
                attempt,
                kind: kind_of(wanted),
                metadata,
                path,
                last_subsumed: last_subsumed.map(|id| id.0),
            })
        }
        CoordinatorEvent::Subsume(id) => JobEvent::Subsume(SubsumeData { checkpoint: id.0 }),
        CoordinatorEvent::Abort { checkpoint, attempt, wanted, reason, message } => JobEvent::Abort(AbortData {
            checkpoint: checkpoint.0,
            attempt,
            kind: kind_of(wanted),
            reason: reason.as_str().to_owned(),
            message,
        }),
        CoordinatorEvent::Restore { attempt, job, checkpoint, cause, message } => {
            let (checkpoint, cause) = (checkpoint.map(|id| id.0), cause.as_str().to_owned());
            JobEvent::Restore(RestoreData { attempt, job, checkpoint, cause, message })
        }
        CoordinatorEvent::Stop { checkpoint, path, mode } => {
            JobEvent::Stop(StopData { checkpoint: checkpoint.0, path, drain: mode == StopMode::Drain })
        }
        CoordinatorEvent::End { state, kept } => JobEvent::End(EndData { state: state.to_string(), kept }),
    }
}
