//! Parts that the handlers share.

use std::ops::Deref;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::api::body::{Admission, too_slow};
use crate::api::exchange::{Exchange, ExchangeNotes};
use crate::api::keys::KeyRing;
use crate::api::shards::siblings::Siblings;
use crate::api::status::{ApiError, ONE_HOST, names_one_host};
use crate::api::unread::BodyError;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::handle::JobHandle;
use crate::coordinator::registry::Coordinators;
use crate::engine::intake::Rejected;
use crate::engine::{Engine, EngineError};
use crate::metrics::labels::{DoorLabel, Operation, RejectReason};
use crate::model::{About, CheckpointId, Claim, IdempotencyKey, JobId, JobRun, Label, StateScope, SubtaskKey, Writer};
use crate::runtime::{Clock, PaidBytes, Payer};
use bytes::Bytes;
use esker_client::wire::PutParams;

/// The native API. Clones share everything.
#[derive(Clone)]
pub struct Native {
    /// The engine behind the door.
    pub(super) engine: Engine,
    /// The limits for bodies.
    pub(super) admission: Admission,
    /// The coordinators of jobs that have one.
    pub(super) coordinators: Coordinators,
    /// Cancelled when answers without an end have to end.
    pub(super) ending: CancellationToken,
    /// The other shards, if the engine's is one of several.
    pub(super) siblings: Option<Siblings>,
    keys: KeyRing,
}

crate::runtime::opaque_debug!(Native);

impl Native {
    /// A door to `engine` for holders of tokens of `keys`. Starts the coordinators of the jobs of the engine, which end with it.
    pub fn new(engine: Engine, keys: KeyRing) -> Self {
        let limits = &engine.settings().limits;
        let admission = Admission { silence_max: limits.body_timeout, metrics: engine.metrics().clone() };
        let (coordinators, ending) = (Coordinators::start(&engine), engine.stopping());
        Self { engine, admission, coordinators, ending, siblings: None, keys }
    }

    /// Refuses a checkpoint that the coordinator of the job, if it has one, has not triggered.
    ///
    /// # Errors
    /// 409.
    pub(super) async fn check_pending(
        &self,
        job: &JobId,
        checkpoint: Option<CheckpointId>,
    ) -> Result<(), CoordinatorError> {
        match (self.coordinators.find(job), checkpoint) {
            (Some(coordinator), Some(checkpoint)) => coordinator.check_pending(checkpoint).await,
            _ => Ok(()),
        }
    }

    /// The same, whose engine has one shard of several.
    #[must_use]
    pub fn of_shard(self, siblings: Siblings) -> Self {
        Self { siblings: Some(siblings), ..self }
    }

    /// The same, whose answers without an end last until `ending` is cancelled.
    pub fn ending_with(self, ending: CancellationToken) -> Self {
        Self { ending, ..self }
    }

    /// An error of the engine as it is answered. Who is turned away counts.
    pub(super) fn turned_away(&self, error: EngineError) -> ApiError {
        let reason = match &error {
            EngineError::Memory(_) => Some(RejectReason::Memory),
            EngineError::Length { .. } => Some(RejectReason::Body),
            _ => None,
        };
        if let Some(reason) = reason {
            self.engine.metrics().rejected.of(reason).inc();
        }
        error.into()
    }

    /// The same of a body that was not taken in.
    pub(super) fn rejected(&self, rejected: Rejected<ApiError>) -> ApiError {
        match rejected {
            Rejected::Body(error) => error,
            Rejected::Engine(error) => self.turned_away(error),
        }
    }
}

/// The job that a request is about, as there was one of this name when the request came: by the time that its body is there, that may
/// have ended, and another one have been created.
pub(super) struct AskedJob {
    /// The run that it was in.
    pub run: JobRun,
    /// Its coordinator, if it had one.
    pub coordinator: Option<JobHandle>,
}

impl AskedJob {
    /// The one of this name now.
    pub(super) fn of(native: &Native, job: &JobId) -> Self {
        Self { run: native.engine.run_of(job), coordinator: native.coordinators.find(job) }
    }
}

/// Lets requests with a known token pass, or all if none is configured.
pub(super) async fn authorize(State(native): State<Native>, request: Request, next: Next) -> Response {
    if !names_one_host(request.version(), request.headers()) {
        return ApiError::invalid("host", ONE_HOST).into_response();
    }
    if percent_decode_str(request.uri().path()).decode_utf8().is_err() {
        return ApiError::invalid("path", "must be UTF-8 once percent signs are decoded").into_response();
    }
    let keys = native.keys.current();
    let restores = request.uri().path() == "/v1/restore";
    let operation = if restores { Operation::Read } else { operation_of(request.method()) };
    let token = match keys.bearer(request.headers(), operation == Operation::Write) {
        Ok(token) => token,
        Err(error) => {
            native.engine.metrics().rejected.of(RejectReason::Auth).inc();
            return error.into_response();
        }
    };
    if let Some(share) = token.and_then(|token| token.share.as_ref()) {
        Payer::also(share);
    }
    drop(keys);
    if let Some(exchange) = Exchange::current() {
        exchange.note(|notes| note_head(&request, notes));
    }
    let begun = Clock::instant();
    let response = next.run(request).await;
    let seconds = begun.elapsed().as_secs_f64();
    native.engine.metrics().answer_seconds.of((DoorLabel::Native, operation)).observe(seconds);
    response
}

fn note_head(request: &Request, notes: &mut ExchangeNotes) {
    let path = request.extensions().get::<MatchedPath>().map_or(request.uri().path(), MatchedPath::as_str);
    notes.operation = Some(format!("{} {path}", request.method()));
    let job = request.uri().path().strip_prefix("/v1/jobs/").and_then(|rest| rest.split('/').next());
    notes.job = job.map(|job| percent_decode_str(job).decode_utf8_lossy().into_owned());
}

fn operation_of(method: &http::Method) -> Operation {
    if method == http::Method::GET || method == http::Method::HEAD { Operation::Read } else { Operation::Write }
}

/// Reads the query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let parsed = axum::extract::Query::<T>::try_from_uri(uri);
    parsed.map(|query| query.0).map_err(|error| ApiError::invalid("query", error.body_text()))
}

/// Reads a body of JSON of at most `max` bytes, within the time that a body may stall.
pub(super) async fn json<T: DeserializeOwned>(native: &Native, request: Request, max: usize) -> Result<T, ApiError> {
    object("body", &text(native, request, max).await?)
}

/// A text of this many bytes is free: a connection has buffers for that.
const FREE_BYTES: usize = 64 << 10;

/// The text of a request; dropping it gives its memory back. Whoever takes it apart keeps it for as long as what it was taken into.
pub(super) struct PaidText {
    text: Bytes,
    _paid: Option<PaidBytes>,
}

impl Deref for PaidText {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.text
    }
}

/// Pays for a text of so many bytes. Of more than half of all memory for writes that half.
pub(super) async fn pay_for_text(native: &Native, bytes: usize) -> Result<Option<PaidBytes>, ApiError> {
    if bytes <= FREE_BYTES {
        return Ok(None);
    }
    let bytes = (bytes as u64).min(native.engine.budgets().writes.total() / 2);
    native.engine.pay(bytes).await.map(Some).map_err(|error| native.turned_away(error))
}

/// Reads a body of at most `max` bytes, within the time that a body may stall. It is paid for before it is read.
pub(super) async fn text(native: &Native, request: Request, max: usize) -> Result<PaidText, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let paid = pay_for_text(native, announced.unwrap_or(max).min(max)).await?;
    let patience = native.engine.settings().limits.body_timeout;
    let body = tokio::time::timeout(patience, axum::body::to_bytes(request.into_body(), max)).await;
    let late = |_| ApiError::invalid("body", format!("did not arrive within {patience:?}"));
    let body = body.map_err(|error| late(error).with_status(StatusCode::REQUEST_TIMEOUT))?;
    let text = body.map_err(|error| match BodyError::is_slow(&error) {
        true => too_slow(native.engine.metrics()),
        false => ApiError::invalid("body", format!("cannot be read, at most {max} bytes: {error}")),
    })?;
    Ok(PaidText { text, _paid: paid })
}

/// Reads a JSON object; nothing is one without fields. Without this check a list of values would do, in the order of the fields.
pub(super) fn object<T: DeserializeOwned>(field: &'static str, text: &[u8]) -> Result<T, ApiError> {
    parse_object(text).map_err(|why| ApiError::invalid(field, why))
}

fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    match text.trim_ascii_start().first() {
        None => serde_json::from_slice(b"{}").map_err(|error| error.to_string()),
        Some(first) if *first != b'{' => Err("must be a JSON object".to_owned()),
        _ => serde_json::from_slice(text).map_err(|error| error.to_string()),
    }
}

/// Bytes of a message of a worker that are kept and told on.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// A message as it is kept: of a long one its beginning, and that it was cut.
pub(super) fn cut(mut message: String) -> String {
    let len = message.len();
    if len > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push_str(&format!("... (cut, it had {len} bytes)"));
        message.shrink_to_fit();
    }
    message
}

/// Bytes of a body that says nothing.
const NOTHING_BYTES_MAX: usize = 4 << 10;

/// A body without fields.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Reads the body of a request that needs none: what stands in it would be left undone without a word.
pub(super) async fn nothing(native: &Native, request: Request) -> Result<(), ApiError> {
    if http_body::Body::is_end_stream(request.body()) {
        return Ok(());
    }
    let patience = native.engine.settings().limits.body_timeout;
    let body = tokio::time::timeout(patience, axum::body::to_bytes(request.into_body(), NOTHING_BYTES_MAX)).await;
    let refused =
        |why: String| ApiError::invalid("body", format!("this request has no body, or an empty object: {why}"));
    let body = body.map_err(|_| refused(format!("it did not arrive within {patience:?}")))?;
    let body = body.map_err(|error| refused(error.to_string()))?;
    if body.is_empty() {
        return Ok(());
    }
    parse_object::<Nothing>(&body).map(|_| ()).map_err(refused)
}

pub(super) fn job_of(text: &str) -> Result<JobId, ApiError> {
    Ok(text.parse()?)
}

/// Reads the description of a segment from the parameters of its put.
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

/// Reads `mode` of a restore.
pub(super) fn claim_of(mode: Option<&str>) -> Result<Option<Claim>, ApiError> {
    match mode {
        None => Ok(None),
        Some("claim") => Ok(Some(Claim::Claim)),
        Some("no-claim") => Ok(Some(Claim::NoClaim)),
        Some(other) => Err(ApiError::invalid("mode", format!("must be 'claim' or 'no-claim', is {other:?}"))),
    }
}

pub(super) fn idempotency_key(text: Option<&str>) -> Result<Option<IdempotencyKey>, ApiError> {
    Ok(text.map(str::parse).transpose()?)
}

/// The text of a header, if it is sent.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let text = headers.get(name).map(|value| value.to_str());
    text.transpose().map_err(|_| ApiError::invalid(name, "must be ASCII text"))
}

/// Rejects a malformed checksum before reading the body.
pub(super) fn check_crc_form(text: Option<&str>) -> Result<(), ApiError> {
    match text {
        Some(text) if text.len() != 8 || u32::from_str_radix(text, 16).is_err() => {
            Err(ApiError::invalid("crc32c", format!("must be 8 hex digits, is {text:?}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn in_field(field: &'static str, error: &impl std::fmt::Display) -> ApiError {
    ApiError::invalid(field, error.to_string())
}
