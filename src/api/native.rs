//! The native API, version 1.
//!
//! A worker says job, operator, subtask, task manager, scope and checkpoint itself, and drives the life of its
//! checkpoints. `clients/openapi.json` describes it for clients in other languages.

use std::ops::Range;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Body as HttpBody;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::de::DeserializeOwned;
use subtle::{ConditionallySelectable, ConstantTimeEq};
use utoipa::OpenApi;

use super::body::{Admission, CRC_HEADER, Source, announced_len, check_crc, too_slow};
use super::status::ApiError;
use super::unread::BodyError;
use super::wire::{
    BatchAnswer, BatchHead, BeginParams, CheckpointInfo, ErrorBody, ErrorDetail, JobInfo, ListParams, ListedSegment,
    NewJob, PutParams, RestoreHead, SegmentInfo, SegmentPage,
};
use crate::catalog::Catalog;
use crate::catalog::command::{About, Bind, Command, Stored};
use crate::catalog::record::{CheckpointRecord, CheckpointState};
use crate::catalog::state::SegmentView;
use crate::config::{Secret, Settings};
use crate::error::ErrorKind;
use crate::merge::{Merger, Parcel, Piece};
use crate::metrics::Metrics;
use crate::model::{
    CheckpointId, Handle, IdempotencyKey, JobId, Label, Location, SegmentId, StateScope, SubtaskKey, Writer,
};
use crate::read::Reader;
use crate::reclaim::ReclaimControl;
use crate::runtime::{Clock, Payer, Share};

/// The native API's parts. Clones share them.
#[derive(Clone)]
pub struct Native {
    /// What exists.
    pub catalog: Catalog,
    /// The write path.
    pub merger: Merger,
    /// The read path.
    pub reader: Reader,
    /// What gives space back.
    pub reclaim: ReclaimControl,
    /// Memory and patience.
    pub admission: Admission,
    /// The settings.
    pub settings: Arc<Settings>,
    /// The metrics.
    pub metrics: Metrics,
    /// What each token may hold of the memory, where there are several.
    pub shares: Arc<[Share]>,
}

/// Describes the API; `clients/openapi.json` is this.
#[derive(OpenApi)]
#[openapi(
    info(title = "Esker", description = "Stores the state segments of stream workers"),
    paths(
        create_job,
        list_jobs,
        show_job,
        put_segment,
        super::batch::put_segments,
        list_segments,
        get_segment,
        get_handle,
        begin_checkpoint,
        complete_checkpoint,
        abort_checkpoint,
        subsume_checkpoint,
        list_checkpoints,
        latest_checkpoint,
        flush,
        super::lifecycle::discard_savepoint,
        super::lifecycle::reuse,
        super::lifecycle::restore_job,
        super::lifecycle::end_job,
        super::space::show_space,
        super::space::verify,
        super::space::show_plan,
        super::space::reclaim_now,
        super::space::show_gc,
        super::space::gc_now,
        super::restore::restore,
        super::restore::list_objects
    ),
    components(schemas(ErrorBody, ErrorDetail, BatchHead, BatchAnswer, RestoreHead))
)]
pub struct ApiDoc;

impl Native {
    /// Every route below `/v1`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/jobs", post(create_job).get(list_jobs))
            .route("/v1/jobs/{job}", get(show_job))
            .route("/v1/jobs/{job}/segments", post(put_segment).get(list_segments))
            .route("/v1/jobs/{job}/segments/batch", post(super::batch::put_segments))
            .route("/v1/jobs/{job}/flush", post(flush))
            .route("/v1/jobs/{job}/restore", post(super::lifecycle::restore_job))
            .route("/v1/jobs/{job}/end", post(super::lifecycle::end_job))
            .route("/v1/space", get(super::space::show_space))
            .route("/v1/verify", get(super::space::verify))
            .route("/v1/reclaim", get(super::space::show_plan).post(super::space::reclaim_now))
            .route("/v1/gc", get(super::space::show_gc).post(super::space::gc_now))
            .route("/v1/jobs/{job}/checkpoints", get(list_checkpoints))
            .route("/v1/jobs/{job}/checkpoints/latest", get(latest_checkpoint))
            .route(
                "/v1/jobs/{job}/checkpoints/{checkpoint}",
                post(begin_checkpoint).delete(super::lifecycle::discard_savepoint),
            )
            .route("/v1/jobs/{job}/checkpoints/{checkpoint}/reuse", post(super::lifecycle::reuse))
            .route("/v1/jobs/{job}/checkpoints/{checkpoint}/complete", post(complete_checkpoint))
            .route("/v1/jobs/{job}/checkpoints/{checkpoint}/abort", post(abort_checkpoint))
            .route("/v1/jobs/{job}/checkpoints/{checkpoint}/subsume", post(subsume_checkpoint))
            .route("/v1/segments/{segment}", get(get_segment))
            .route("/v1/handles/{handle}", get(get_handle))
            .route("/v1/restore", post(super::restore::restore))
            .route("/v1/objects", get(super::restore::list_objects))
            .fallback(|uri: Uri| async move { ApiError::not_found("path", format!("there is no {}", uri.path())) })
            .method_not_allowed_fallback(|| async {
                ApiError::invalid("method", "this path does not take this method")
                    .with_status(StatusCode::METHOD_NOT_ALLOWED)
            })
            .layer(middleware::from_fn_with_state(self.clone(), authorize))
            .with_state(self)
    }

    /// Stores a body that fits into memory, and counts what came of it.
    pub(super) async fn store(
        &self,
        about: About,
        key: Option<IdempotencyKey>,
        body: super::body::Body,
    ) -> Result<Handle, ApiError> {
        let len = body.data.len() as u64;
        let piece = Piece { id: self.merger.new_id(), about, data: body.data, crc: body.crc };
        let bind = Bind::Checkpoint { idempotency_key: key };
        let stored = self.merger.store(Parcel { pieces: vec![piece], bind, paid: Some(body.paid) }).await;
        self.counted(len, stored.map_err(ApiError::from))
    }

    fn counted(&self, len: u64, stored: Result<Stored, ApiError>) -> Result<Handle, ApiError> {
        let handle = stored.and_then(|stored| {
            match stored {
                Stored::Handles(mut handles) => handles.pop(),
                Stored::Repeat(handle) => Some(handle),
                Stored::Object { .. } | Stored::Part => None,
            }
            .ok_or_else(|| ApiError::of(ErrorKind::Internal, "a segment was stored without a handle"))
        });
        let outcome = match &handle {
            Ok(_) => "answered",
            Err(error) if error.status.is_client_error() => "refused",
            Err(_) => "failed",
        };
        self.metrics.segments.with_label_values(&["native", outcome]).inc();
        if handle.is_ok() {
            self.metrics.segment_bytes.with_label_values(&["native"]).inc_by(len);
        }
        handle
    }

    /// Stores a body that does not fit into memory while it arrives.
    async fn stream<S, E>(
        &self,
        about: About,
        key: Option<IdempotencyKey>,
        len: u64,
        announced_crc: Option<&str>,
        source: &mut Source<S>,
    ) -> Result<Handle, ApiError>
    where
        S: futures::Stream<Item = Result<bytes::Bytes, E>> + Unpin,
        E: std::error::Error + 'static,
    {
        const PIECE_BYTES: u64 = 1 << 20;
        // One piece is on its way from the socket to the store. It is paid for first: what was begun gets on.
        let _piece = self.admission.pay(PIECE_BYTES).await?;
        let mut big = self.merger.begin(self.merger.new_id(), about, len).await?;
        let mut hasher = crate::model::SegmentHasher::default();
        let mut left = len;
        while left > 0 {
            let data = self.admission.read(source, left.min(PIECE_BYTES), &mut hasher).await?;
            left -= data.len() as u64;
            big.write(data).await?;
        }
        check_crc(announced_crc, hasher.finish().whole)?;
        let stored = big.finish(Bind::Checkpoint { idempotency_key: key }).await;
        self.counted(len, stored.map_err(ApiError::from))
    }
}

/// Lets requests with a known token pass, or all if none is configured.
async fn authorize(State(native): State<Native>, request: Request, next: Next) -> Response {
    let tokens = &native.settings.auth.tokens;
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer "));
    let known = sent.and_then(|sent| place_of(tokens, sent));
    if !tokens.is_empty() && known.is_none() {
        native.metrics.rejected.with_label_values(&["auth"]).inc();
        let error = ApiError::invalid("authorization", "a bearer token of auth.tokens is needed");
        return error.with_status(StatusCode::UNAUTHORIZED).into_response();
    }
    if let Some(share) = known.and_then(|token| native.shares.get(token)) {
        Payer::also(share);
    }
    let restores = request.uri().path() == "/v1/restore";
    let operation = if restores { "read" } else { operation_of(request.method()) };
    let begun = Clock::instant();
    let response = next.run(request).await;
    let seconds = begun.elapsed().as_secs_f64();
    native.metrics.answer_seconds.with_label_values(&["native", operation]).observe(seconds);
    response
}

/// Which token it is. Compares with all of them, in a time that tells neither which one was meant nor where it differs.
fn place_of(tokens: &[Secret], sent: &str) -> Option<usize> {
    let mut found = u64::MAX;
    for (place, token) in (0..).zip(tokens) {
        found.conditional_assign(&place, token.expose().as_bytes().ct_eq(sent.as_bytes()));
    }
    usize::try_from(found).ok().filter(|place| *place < tokens.len())
}

fn operation_of(method: &http::Method) -> &'static str {
    if method == http::Method::GET || method == http::Method::HEAD { "read" } else { "write" }
}

/// Reads the query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let parsed = axum::extract::Query::<T>::try_from_uri(uri);
    parsed.map(|query| query.0).map_err(|error| ApiError::invalid("query", error.body_text()))
}

/// Reads a body of JSON of at most `max` bytes, within the time that a body may stall.
pub(super) async fn json<T: DeserializeOwned>(native: &Native, request: Request, max: usize) -> Result<T, ApiError> {
    let patience = native.settings.limits.body_timeout;
    let body = tokio::time::timeout(patience, axum::body::to_bytes(request.into_body(), max)).await;
    let late = |_| ApiError::invalid("body", format!("did not arrive within {patience:?}"));
    let body = body.map_err(|error| late(error).with_status(StatusCode::REQUEST_TIMEOUT))?;
    let body = body.map_err(|error| match BodyError::is_slow(&error) {
        true => too_slow(&native.metrics),
        false => ApiError::invalid("body", format!("cannot be read, at most {max} bytes: {error}")),
    })?;
    serde_json::from_slice(&body).map_err(|error| ApiError::invalid("body", error.to_string()))
}

pub(super) fn job_of(text: &str) -> Result<JobId, ApiError> {
    Ok(text.parse()?)
}

/// What a put says of its segment.
pub(super) fn about_of(job: JobId, params: &PutParams) -> Result<About, ApiError> {
    let checkpoint = params.checkpoint.map(CheckpointId);
    let checkpoint = checkpoint.ok_or_else(|| ApiError::invalid("checkpoint", "a segment must name its checkpoint"))?;
    let scope = params.scope.as_deref().map_or(Ok(StateScope::Exclusive), str::parse)?;
    let label =
        |what: &'static str, text: &Option<String>| text.as_deref().map(|text| Label::parse(what, text)).transpose();
    let subtask = match (label("operator", &params.operator)?, params.subtask, params.parallelism) {
        (None, None, None) => None,
        (Some(operator), Some(index), Some(parallelism)) if index < parallelism => {
            Some(SubtaskKey { operator, index, parallelism })
        }
        _ => {
            let message = "operator, subtask and parallelism go together, and subtask must be below parallelism";
            return Err(ApiError::invalid("subtask", message));
        }
    };
    let writer = Writer { subtask, task_manager: label("task_manager", &params.task_manager)? };
    Ok(About { job, scope, writer, checkpoint: Some(checkpoint), name: label("name", &params.name)? })
}

pub(super) fn idempotency_key(text: Option<&str>) -> Result<Option<IdempotencyKey>, ApiError> {
    Ok(text.map(str::parse).transpose()?)
}

/// The text of a header, if it is sent.
fn header_text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let text = headers.get(name).map(|value| value.to_str());
    text.transpose().map_err(|_| ApiError::invalid(name, "must be ASCII text"))
}

/// Creates a job; nothing happens if it exists.
#[utoipa::path(post, path = "/v1/jobs", request_body = NewJob, responses(
    (status = 201, body = JobInfo), (status = 400, body = ErrorBody)))]
async fn create_job(State(native): State<Native>, request: Request) -> Result<Response, ApiError> {
    let new: NewJob = json(&native, request, 64 << 10).await?;
    let job = job_of(&new.job)?;
    native.catalog.execute(Command::CreateJob(job.clone())).await?;
    Ok((StatusCode::CREATED, Json(job_info(&native.catalog, &job)?)).into_response())
}

pub(super) fn job_info(catalog: &Catalog, job: &JobId) -> Result<JobInfo, ApiError> {
    let known = catalog.view().job(job);
    let (record, segments) = known.ok_or_else(|| ApiError::not_found("job", format!("job {job} is not known")))?;
    Ok(JobInfo::of(job, record.as_ref(), segments))
}

/// Lists all jobs.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = Vec<JobInfo>)))]
async fn list_jobs(State(native): State<Native>) -> Result<Json<Vec<JobInfo>>, ApiError> {
    native.catalog.check()?;
    let jobs = native.catalog.view().jobs();
    Ok(Json(jobs.iter().map(|(job, record, segments)| JobInfo::of(job, record.as_ref(), *segments)).collect()))
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/jobs/{job}", params(("job" = String, Path)), responses(
    (status = 200, body = JobInfo), (status = 404, body = ErrorBody)))]
async fn show_job(State(native): State<Native>, Path(job): Path<String>) -> Result<Json<JobInfo>, ApiError> {
    native.catalog.check()?;
    Ok(Json(job_info(&native.catalog, &job_of(&job)?)?))
}

/// Stores one segment. Answers once it is durable.
#[utoipa::path(post, path = "/v1/jobs/{job}/segments", params(("job" = String, Path), PutParams,
    ("idempotency-key" = Option<String>, Header, description = "A repeat with the same key gets the same segment"),
    ("x-esker-crc32c" = Option<String>, Header, description = "CRC-32C of the body, 8 hex digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 201, body = SegmentInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 408, body = ErrorBody), (status = 409, body = ErrorBody), (status = 411, body = ErrorBody),
    (status = 413, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn put_segment(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let about = about_of(job_of(&job)?, &query(&head.uri)?)?;
    let crc = header_text(&head.headers, CRC_HEADER)?.map(str::to_owned);
    check_crc_form(crc.as_deref())?;
    let key = idempotency_key(header_text(&head.headers, "idempotency-key")?)?;
    let len = announced_len(&head.headers, native.settings.limits.segment_bytes_max)?;
    let checkpoint = about.checkpoint.unwrap_or(CheckpointId(0));
    native.catalog.view().would_take(&about.job, checkpoint)?;
    let mut source = Source::new(body.into_data_stream());
    if !head.headers.contains_key(header::EXPECT) {
        source.await_first(&native.admission, len).await?;
    }
    let handle = if len <= native.settings.store.part_bytes {
        native.merger.space().admit(len)?;
        let body = native.admission.receive(&mut source, len).await?;
        check_crc(crc.as_deref(), body.crc.whole)?;
        native.store(about, key, body).await?
    } else {
        native.stream(about, key, len, crc.as_deref(), &mut source).await?
    };
    Ok((StatusCode::CREATED, Json(SegmentInfo::from(&handle))).into_response())
}

/// Refuses a checksum that is none before the body is read.
pub(super) fn check_crc_form(text: Option<&str>) -> Result<(), ApiError> {
    match text {
        Some(text) if text.len() != 8 || u32::from_str_radix(text, 16).is_err() => {
            Err(ApiError::invalid("crc32c", format!("must be 8 hex digits, is {text:?}")))
        }
        _ => Ok(()),
    }
}

/// Lists segments of a job in pages.
#[utoipa::path(get, path = "/v1/jobs/{job}/segments", params(("job" = String, Path), ListParams), responses(
    (status = 200, body = SegmentPage), (status = 404, body = ErrorBody)))]
async fn list_segments(
    State(native): State<Native>,
    Path(job): Path<String>,
    uri: Uri,
) -> Result<Json<SegmentPage>, ApiError> {
    native.catalog.check()?;
    let (job, params) = (job_of(&job)?, query::<ListParams>(&uri)?);
    let after = params.after.as_deref().map(str::parse).transpose()?;
    let limit = match params.limit.unwrap_or(1000) {
        limit @ 1..=10_000 => limit as usize,
        limit => return Err(ApiError::invalid("limit", format!("must be 1 to 10000, is {limit}"))),
    };
    job_info(&native.catalog, &job)?;
    let checkpoint = params.checkpoint.map(CheckpointId);
    let mut views = native.catalog.view().segments_of(&job, checkpoint, after, limit + 1);
    let more = views.len() > limit;
    views.truncate(limit);
    let next = views.last().filter(|_| more).map(|view| view.id.to_string());
    Ok(Json(SegmentPage { segments: views.iter().map(ListedSegment::from).collect(), next }))
}

/// Reads a segment or a range of it.
#[utoipa::path(get, path = "/v1/segments/{segment}", params(("segment" = String, Path),
    ("range" = Option<String>, Header, description = "bytes=a-b, bytes=a- or bytes=-n")), responses(
    (status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
    (status = 404, body = ErrorBody), (status = 416, body = ErrorBody)))]
async fn get_segment(
    State(native): State<Native>,
    Path(segment): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id: SegmentId = segment.parse()?;
    read(&native, id, &headers).await
}

/// Reads the segment that a handle names, wherever it is now.
#[utoipa::path(get, path = "/v1/handles/{handle}", params(("handle" = String, Path)), responses(
    (status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 416, body = ErrorBody)))]
async fn get_handle(
    State(native): State<Native>,
    Path(handle): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let handle: Handle = handle.parse()?;
    let view = view_of_handle(&native, &handle)?;
    let now = view.handle();
    if now.crc32c != handle.crc32c || now.location.len() != handle.location.len() {
        let message = format!("segment {} has other bytes than the handle says", handle.id);
        return Err(ApiError { field: Some("handle"), ..ApiError::of(ErrorKind::Conflict, message) });
    }
    read(&native, view.id, &headers).await
}

/// The segment that a handle names. One that a rebuilt catalog has under another identity is known by its place.
fn view_of_handle(native: &Native, handle: &Handle) -> Result<SegmentView, ApiError> {
    let named = view_of(native, handle.id);
    match &handle.location {
        Location::File(place) if named.is_err() => native.catalog.view().segment_at(place).map_or(named, Ok),
        _ => named,
    }
}

fn view_of(native: &Native, id: SegmentId) -> Result<SegmentView, ApiError> {
    native.catalog.check()?;
    let view = native.catalog.view().segment(id);
    view.ok_or_else(|| ApiError::not_found("segment", format!("segment {id} does not exist")))
}

async fn read(native: &Native, id: SegmentId, headers: &HeaderMap) -> Result<Response, ApiError> {
    let view = view_of(native, id)?;
    let len = view.record.location.len();
    let crc = format!("{:08x}", view.record.crc.whole);
    let range = header_text(headers, "range")?.map(|text| parse_range(text, len)).transpose()?.flatten();
    let wanted = range.clone().unwrap_or(0..len);
    let bytes = native.reader.segment(id, wanted.clone()).await?;
    let body = HttpBody::from_stream(bytes.map(|piece| {
        piece.inspect_err(|error| {
            tracing::warn!(error = crate::error::chain(error), "an answer broke off");
        })
    }));
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(wanted.end - wanted.start));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(crc) = HeaderValue::from_str(&crc) {
        out.insert(CRC_HEADER, crc);
    }
    if range.is_some() {
        if let Ok(text) = HeaderValue::from_str(&format!("bytes {}-{}/{len}", wanted.start, wanted.end - 1)) {
            out.insert(header::CONTENT_RANGE, text);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// One range of `bytes=`; none for a header that is not of this form, which RFC 9110 says to ignore.
///
/// # Errors
/// 416 if the range holds no byte of `len`.
fn parse_range(text: &str, len: u64) -> Result<Option<Range<u64>>, ApiError> {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return Ok(None) };
    let unsatisfiable = || {
        ApiError::invalid("range", format!("{text} holds no byte of {len}"))
            .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
    };
    let range = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => from..to.saturating_add(1).min(len),
        (Ok(from), Err(_)) if to.is_empty() => from..len,
        (Err(_), Ok(last)) if from.is_empty() => len.saturating_sub(last)..len,
        _ => return Ok(None),
    };
    if range.start >= range.end { Err(unsatisfiable()) } else { Ok(Some(range)) }
}

/// Begins a checkpoint or savepoint; nothing happens if it has begun.
#[utoipa::path(post, path = "/v1/jobs/{job}/checkpoints/{checkpoint}",
    params(("job" = String, Path), ("checkpoint" = u64, Path), BeginParams), responses(
    (status = 200, body = CheckpointInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
async fn begin_checkpoint(state: State<Native>, path: Path<(String, String)>, uri: Uri) -> Result<Response, ApiError> {
    let kind = query::<BeginParams>(&uri)?.kind;
    change_checkpoint(state, path, |job, id| Command::BeginCheckpoint(job, id, kind)).await
}

/// Completes a checkpoint: a job can be restored from it.
#[utoipa::path(post, path = "/v1/jobs/{job}/checkpoints/{checkpoint}/complete",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn complete_checkpoint(state: State<Native>, path: Path<(String, String)>) -> Result<Response, ApiError> {
    change_checkpoint(state, path, Command::CompleteCheckpoint).await
}

/// Aborts a checkpoint: frees its segments that no later one uses, and refuses late ones.
#[utoipa::path(post, path = "/v1/jobs/{job}/checkpoints/{checkpoint}/abort",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn abort_checkpoint(state: State<Native>, path: Path<(String, String)>) -> Result<Response, ApiError> {
    change_checkpoint(state, path, Command::AbortCheckpoint).await
}

/// Subsumes every checkpoint up to this one: frees what none after it uses.
#[utoipa::path(post, path = "/v1/jobs/{job}/checkpoints/{checkpoint}/subsume",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 204), (status = 404, body = ErrorBody)))]
async fn subsume_checkpoint(state: State<Native>, path: Path<(String, String)>) -> Result<Response, ApiError> {
    change_checkpoint(state, path, Command::SubsumeCheckpoint).await
}

async fn change_checkpoint(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    command: impl FnOnce(JobId, CheckpointId) -> Command,
) -> Result<Response, ApiError> {
    let job = job_of(&job)?;
    let id: CheckpointId = checkpoint.parse()?;
    let command = command(job.clone(), id);
    let begins = matches!(command, Command::BeginCheckpoint(..));
    native.catalog.execute(command).await?;
    if !begins {
        native.merger.checkpoint_barrier(&job, id);
    }
    let found = native.catalog.view().checkpoints(&job).into_iter().find(|(found, _)| *found == id);
    Ok(match found {
        Some((_, record)) => Json(CheckpointInfo::of(&job, id, &record)).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Lists the checkpoints of a job that are not subsumed, in order.
#[utoipa::path(get, path = "/v1/jobs/{job}/checkpoints", params(("job" = String, Path)), responses(
    (status = 200, body = Vec<CheckpointInfo>), (status = 404, body = ErrorBody)))]
async fn list_checkpoints(
    State(native): State<Native>,
    Path(job): Path<String>,
) -> Result<Json<Vec<CheckpointInfo>>, ApiError> {
    native.catalog.check()?;
    let job = job_of(&job)?;
    job_info(&native.catalog, &job)?;
    let found = native.catalog.view().checkpoints(&job);
    Ok(Json(found.iter().map(|(id, record)| CheckpointInfo::of(&job, *id, record)).collect()))
}

/// The newest completed checkpoint of a job.
#[utoipa::path(get, path = "/v1/jobs/{job}/checkpoints/latest", params(("job" = String, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody)))]
async fn latest_checkpoint(
    State(native): State<Native>,
    Path(job): Path<String>,
) -> Result<Json<CheckpointInfo>, ApiError> {
    native.catalog.check()?;
    let job = job_of(&job)?;
    let (id, record) = latest_completed(&native.catalog, &job)?;
    Ok(Json(CheckpointInfo::of(&job, id, &record)))
}

/// The newest completed checkpoint or savepoint of a job.
pub(super) fn latest_completed(catalog: &Catalog, job: &JobId) -> Result<(CheckpointId, CheckpointRecord), ApiError> {
    job_info(catalog, job)?;
    let found = catalog.view().checkpoints(job);
    let latest = found.into_iter().rev().find(|(_, record)| record.state == CheckpointState::Completed);
    latest.ok_or_else(|| ApiError::not_found("checkpoint", format!("job {job} has no completed checkpoint")))
}

/// Says that the job's workers have sent their last segment for now: its open files are closed.
#[utoipa::path(post, path = "/v1/jobs/{job}/flush", params(("job" = String, Path)), responses(
    (status = 204), (status = 404, body = ErrorBody)))]
async fn flush(State(native): State<Native>, Path(job): Path<String>) -> Result<StatusCode, ApiError> {
    let job = job_of(&job)?;
    job_info(&native.catalog, &job)?;
    native.merger.close_job(&job);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let range = |text| parse_range(text, 10).unwrap();

        assert_eq!(range("bytes=2-4"), Some(2..5));
        assert_eq!(range("bytes=2-"), Some(2..10));
        assert_eq!(range("bytes=-3"), Some(7..10));
        assert_eq!(range("bytes=-30"), Some(0..10));
        assert_eq!(range("bytes=2-400"), Some(2..10));
        assert_eq!(range("bytes=4-2"), None);
        assert_eq!(range("lines=1-2"), None);
        assert_eq!(parse_range("bytes=10-", 10).unwrap_err().status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(parse_range("bytes=-0", 10).unwrap_err().status, StatusCode::RANGE_NOT_SATISFIABLE);
    }

    #[test]
    fn the_stored_openapi_file_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/openapi.json");
        let now = ApiDoc::openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("ESKER_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &now).unwrap();
        }

        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == now,
            "clients/openapi.json is out of date: run the tests once with ESKER_WRITE_OPENAPI=1"
        );
    }
}
