//! What tasks acknowledge and decline. Segments may ride in an acknowledgement, framed as in a batch ([`super::batch`]): the first
//! frame is the acknowledgement itself, each further one a segment.

use axum::Json;
use axum::extract::{Path, Request, State};
use bytes::Bytes;
use esker_client::wire::{AckAnswer, AckRequest, AckState, BatchHead, DeclineRequest, ErrorBody, SegmentInfo};
use futures::Stream;
use http::{StatusCode, header};
use tokio::sync::oneshot;

use super::ack_size::ack_of;
use super::batch::{check, next_bytes, next_head, next_text};
use super::parts::{Native, cut, in_field, job_of, json, object, pay_for_text, text};
use crate::api::body::BodySource;
use crate::api::status::ApiError;
use crate::coordinator::ack::{StateKind, TaskSnapshot};
use crate::coordinator::handle::{AckTicket, AcknowledgedState, JobHandle};
use crate::coordinator::reason::{FailureReason, UnknownReason};
use crate::coordinator::state::acks::AckOutcome;
use crate::engine::EngineError;
use crate::model::{CheckpointId, Handle, JobId, JobRun, SegmentId};
use crate::runtime::{Failure, Payer, reply};

/// Bytes of an acknowledgement beside its states, and for each of them, rather more.
const ACK_BYTES: usize = 64 << 10;
const STATE_BYTES: usize = 1 << 10;
/// An acknowledgement is not larger, however many states it may have.
const ACK_BYTES_MAX: usize = 64 << 20;

/// Acknowledges a checkpoint, with or without segments in the request.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/ack",
    params(("job" = String, Path), ("checkpoint" = u64, Path)),
    request_body(content((AckRequest = "application/json"), (Vec<u8> = "application/octet-stream")),
        description = "As JSON; or as frames, as in a batch: the first one is the acknowledgement, the others are segments"),
    responses((status = 200, body = AckAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn acknowledge(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    request: Request,
) -> Result<Json<AckAnswer>, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    let coordinator = native.coordinators.get(&job)?;
    let framed = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/octet-stream");
    let states = native.engine.settings().limits.segments_per_request_max;
    let max = STATE_BYTES.saturating_mul(states).saturating_add(ACK_BYTES).min(ACK_BYTES_MAX);
    if !framed {
        let body = text(&native, request, max).await?;
        let ack = ack_of(&body, states)?;
        let ticket = admit(&coordinator, id, &ack).await?;
        return take(&coordinator, id, &ticket, ack, vec![]).await;
    }
    let mut source = BodySource::new(request.into_body().into_data_stream());
    let head = next_text(&native, &mut source, "the acknowledgement", max as u64).await?;
    let head = head.ok_or_else(|| ApiError::invalid("body", "begins with a frame that is the acknowledgement"))?;
    let _paid = pay_for_text(&native, head.len()).await?;
    let ack = ack_of(&head, states)?;
    let ticket = match admit(&coordinator, id, &ack).await {
        Ok(ticket) => ticket,
        Err(error) => {
            // Nobody wants what follows.
            source.drop_rest().await;
            return Err(error);
        }
    };
    let riding = Riding { native: &native, job: &job, id, ack: &ack, ticket: &ticket, run: coordinator.run() };
    let parts = match riding.store(&mut source).await {
        Ok(parts) => parts,
        Err(error) => {
            source.drop_rest().await;
            return Err(error);
        }
    };
    take(&coordinator, id, &ticket, ack, parts).await
}

async fn admit(coordinator: &JobHandle, id: CheckpointId, ack: &AckRequest) -> Result<AckTicket, ApiError> {
    Ok(coordinator.admit(id, ack.operator.clone(), ack.subtask, ack.attempt).await?)
}

/// The segments of an acknowledgement.
struct Riding<'a> {
    native: &'a Native,
    job: &'a JobId,
    id: CheckpointId,
    ack: &'a AckRequest,
    ticket: &'a AckTicket,
    /// The run that the coordinator is of, which has admitted the task: should the job end meanwhile, nothing of it lands in another one
    /// of its name.
    run: JobRun,
}

impl Riding<'_> {
    /// Stores each segment while the next one arrives. Returns their handles, in order.
    async fn store<S, E>(&self, source: &mut BodySource<S>) -> Result<Vec<Handle>, ApiError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
        E: std::error::Error + Send + 'static,
    {
        let max = self.native.engine.settings().limits.segments_per_request_max;
        let (mut stored, mut known) = (vec![], vec![]);
        while let Some(head) = next_head(self.native, source).await? {
            if stored.len() == max {
                let message = format!("more than limits.segments-per-request-max, {max}, segments in one request");
                return Err(ApiError::invalid("body", message));
            }
            let head: BatchHead = object("head", &head)?;
            let head = self.complete(head, stored.len())?;
            let whole = next_bytes(self.native, source, head.len).await?;
            if self.ticket.repeated {
                known.extend(self.earlier(whole.data.len() as u64, whole.crc.whole));
                continue;
            }
            let head = self.named(head, stored.len(), whole.crc.whole);
            let (about, key) = check(self.native, self.job, &head, whole.crc.whole)?;
            let (writer, answer) = oneshot::channel();
            let native = self.native.clone();
            let run = Some(self.run);
            let storing = async move { reply(writer, native.engine.store(about, key, run, whole).await) };
            let storing = Payer::inherit(Payer::current(), storing);
            self.native.engine.tasks().spawn("ack-segment", Failure::FailsItsWork, storing);
            stored.push(answer);
        }
        let mut handles = known;
        for answer in stored {
            let dropped = || EngineError::Unexpected("a segment of an acknowledgement");
            match answer.await.unwrap_or_else(|_| Err(dropped())) {
                Ok(handle) => handles.push(handle),
                Err(error) => return Err(self.native.turned_away(error)),
            }
        }
        Ok(handles)
    }

    /// What is known of a segment need not be said, and nothing else may.
    fn complete(&self, mut head: BatchHead, part: usize) -> Result<BatchHead, ApiError> {
        let differs = |field: &'static str| ApiError::invalid(field, "is another one than that of the acknowledgement");
        let (operator, subtask) = (&self.ack.operator, self.ack.subtask);
        if head.checkpoint.is_some_and(|of| of != self.id.0) {
            return Err(differs("checkpoint"));
        }
        if head.operator.as_ref().is_some_and(|of| of != operator) || head.subtask.is_some_and(|of| of != subtask) {
            return Err(differs("subtask"));
        }
        if head.parallelism.is_some_and(|of| of != self.ticket.parallelism) {
            return Err(differs("parallelism"));
        }
        head.checkpoint = Some(self.id.0);
        (head.operator, head.subtask) = (Some(operator.clone()), Some(subtask));
        head.parallelism = Some(self.ticket.parallelism);
        let of_part = |state: &&AckState| state.part.is_some_and(|of| of as usize == part);
        if self.ack.state.iter().find(of_part).is_some_and(|state| state.kind.as_deref() == Some("channel")) {
            // Exclusive state is merged across a task manager: these subtasks are one, and share a file.
            let group = subtask / self.ticket.channel_subtasks_per_file_max.max(1);
            // By the operator's place: its id may be as long as a label.
            let operator = self.ticket.task.operator;
            head.task_manager = Some(format!("channel-state-{operator}-{group}"));
        }
        Ok(head)
    }

    /// The same bytes again are the same segment; others are not, as what was refused may be sent anew.
    fn named(&self, mut head: BatchHead, part: usize, crc32c: u32) -> BatchHead {
        let (id, attempt, operator) = (self.id, self.ack.attempt, self.ticket.task.operator);
        let (subtask, len) = (self.ack.subtask, head.len);
        let key = || format!("ack/{id}/{attempt}/{operator}/{subtask}/{part}/{len}/{crc32c:08x}");
        head.idempotency_key.get_or_insert_with(key);
        head
    }

    /// The segment with such bytes that the task has acknowledged.
    fn earlier(&self, len: u64, crc32c: u32) -> Option<Handle> {
        let handles = self.ticket.earlier.iter().filter_map(|id| Some(self.native.engine.segment(*id).ok()?.handle()));
        let mut same = handles.filter(|handle| handle.crc32c == crc32c && handle.location.len() == len);
        same.next()
    }
}

async fn take(
    coordinator: &JobHandle,
    id: CheckpointId,
    ticket: &AckTicket,
    ack: AckRequest,
    parts: Vec<Handle>,
) -> Result<Json<AckAnswer>, ApiError> {
    let states = match ticket.repeated {
        true => vec![],
        false => states_of(ack.state, &parts)?,
    };
    let snapshot = TaskSnapshot {
        finished: ack.finished,
        bytes_in_flight: ack.bytes_in_flight,
        alignment_ms: ack.alignment_ms,
        ..TaskSnapshot::default()
    };
    let (state, missing) = match coordinator.acknowledge(id, ticket, ack.attempt, states, snapshot).await? {
        AckOutcome::Taken { missing } | AckOutcome::Repeated { missing } => ("pending", missing),
        _ => ("completed", 0),
    };
    let segments = parts.iter().map(SegmentInfo::from).collect();
    Ok(Json(AckAnswer { checkpoint: id.0, state: state.to_owned(), missing: missing as u64, segments }))
}

fn states_of(states: Vec<AckState>, parts: &[Handle]) -> Result<Vec<AcknowledgedState>, ApiError> {
    let wrong = |message: String| ApiError::invalid("state", message);
    let mut used = vec![false; parts.len()];
    let mut all = vec![];
    for state in states {
        let segment = match (&state.segment, state.part) {
            (Some(text), None) => segment_of(text)?,
            (None, Some(part)) => {
                let handle = parts.get(part as usize);
                let none = || wrong(format!("part {part} is not in the request, which has {} segments", parts.len()));
                used.get_mut(part as usize).into_iter().for_each(|used| *used = true);
                handle.ok_or_else(none)?.id
            }
            _ => return Err(wrong("names either segment, or part".to_owned())),
        };
        all.push(AcknowledgedState {
            kind: kind_of(state.kind.as_deref())?,
            name: state.name.unwrap_or_default(),
            segment,
            offsets: state.offsets,
            end: state.end,
            key_groups: state.key_groups.map(|groups| groups.start..groups.end),
        });
    }
    match used.iter().position(|used| !used) {
        Some(part) => Err(wrong(format!("no state is in part {part}"))),
        None => Ok(all),
    }
}

fn kind_of(text: Option<&str>) -> Result<StateKind, ApiError> {
    Ok(match text {
        None | Some("split") => StateKind::Split,
        Some("keyed") => StateKind::Keyed,
        Some("union") => StateKind::Union,
        Some("broadcast") => StateKind::Broadcast,
        Some("channel") => StateKind::Channel,
        Some(other) => {
            let message = format!("kind must be 'keyed', 'split', 'union', 'broadcast' or 'channel', is {other:?}");
            return Err(ApiError::invalid("state", message));
        }
    })
}

/// A segment by its identity or by a handle.
fn segment_of(text: &str) -> Result<SegmentId, ApiError> {
    let parsed = match text.parse::<Handle>() {
        Ok(handle) => Ok(handle.id),
        Err(_) => text.parse::<SegmentId>(),
    };
    parsed.map_err(|error| in_field("state", &error))
}

/// Declines a checkpoint, which is given up.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/decline", request_body = DeclineRequest,
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn decline(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    let coordinator = native.coordinators.get(&job)?;
    let DeclineRequest { operator, subtask, attempt, reason, message } = json(&native, request, ACK_BYTES).await?;
    let reason = match reason {
        None => FailureReason::Declined,
        Some(text) => text.parse().map_err(|error: UnknownReason| in_field("reason", &error))?,
    };
    if !reason.is_of_a_task() {
        return Err(ApiError::invalid("reason", format!("{reason} is no reason for which a task declines")));
    }
    coordinator.decline(id, (operator, subtask), attempt, (reason, message.map(cut).unwrap_or_default())).await?;
    Ok(StatusCode::NO_CONTENT)
}
