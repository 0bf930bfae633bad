//! Errors of the native API: from what went wrong to a status and a body that names the field.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use esker_client::wire::ErrorBody;
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};

use super::exchange::Exchange;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::storage::MetadataFault;
use crate::engine::{EngineError, NoAnswer, Refusal};
use crate::error::ErrorKind;
use crate::model::{InvalidHandle, InvalidId};
use crate::runtime::BudgetError;

/// To plain HTTP on a port that speaks TLS.
pub const WITHOUT_TLS: &str = "this port speaks TLS: send the request to https:// instead of http://";

/// To whom comes before the storage is open.
pub const STARTING: &str =
    "the daemon is starting, repeat the request: /readyz of the native API says what it waits for";

/// To a request of HTTP/1.1 that does not say to whom it goes, or says it twice.
pub const ONE_HOST: &str = "a request of HTTP/1.1 must have one header Host";

/// Whether a request says to whom it goes, as HTTP/1.1 wants it: proxies that read another one would route it elsewhere.
///
/// # Source
/// RFC 9112, section 3.2.
pub fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    version != Version::HTTP_11 || headers.get_all(header::HOST).iter().count() == 1
}

/// After how long a client that was turned away should come back.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// The next step for the caller.
    pub kind: ErrorKind,
    /// The field of the request that is wrong, if one is.
    pub field: Option<&'static str>,
    /// A sentence that says what is wrong.
    pub message: String,
}

impl ApiError {
    /// A field of the request is wrong.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: ErrorKind::Invalid, field: Some(field), message: message.into() }
    }

    /// The same with another status.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// An error of this kind.
    pub fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status: status_of(kind), kind, field: None, message: message.into() }
    }

    /// 404: the named thing does not exist.
    pub fn not_found(what: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(what), ..Self::of(ErrorKind::NotFound, message) }
    }
}

/// The status of an error of this kind.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Precondition => StatusCode::PRECONDITION_FAILED,
        ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut body = ErrorBody::from(self);
        if let Some(exchange) = Exchange::current() {
            let code = serde_json::to_value(body.error.kind).ok();
            let code = code.as_ref().and_then(|code| code.as_str()).map(str::to_owned);
            exchange.note(|notes| notes.code = code);
            body.error.request_id = Some(exchange.id().to_owned());
        }
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = HeaderValue::from(RETRY_AFTER.as_secs());
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<InvalidId> for ApiError {
    fn from(error: InvalidId) -> Self {
        Self::invalid(error.what, error.to_string())
    }
}

impl From<InvalidHandle> for ApiError {
    fn from(error: InvalidHandle) -> Self {
        Self::invalid("handle", error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let field = match &refusal {
            Refusal::UnknownJob(_)
            | Refusal::JobEnded(_)
            | Refusal::JobBeganAnew(_)
            | Refusal::JobElsewhere(_)
            | Refusal::JobStays(_) => Some("job"),
            Refusal::NoSuchBucket(_) => Some("bucket"),
            Refusal::UnknownCheckpoint(..)
            | Refusal::CheckpointAborted(..)
            | Refusal::CheckpointSubsumed(..)
            | Refusal::CheckpointCompleted(..)
            | Refusal::CheckpointExists(..)
            | Refusal::CheckpointIncomplete(..)
            | Refusal::CheckpointKind(..)
            | Refusal::SavepointHolds(..)
            | Refusal::OtherRun(..)
            | Refusal::NewerCheckpoint(..) => Some("checkpoint"),
            Refusal::KeyReused(_) | Refusal::KeyInFlight(_) => Some("idempotency-key"),
            _ => None,
        };
        Self { field, ..Self::of(refusal.kind(), refusal.to_string()) }
    }
}

impl From<CoordinatorError> for ApiError {
    fn from(error: CoordinatorError) -> Self {
        match error {
            CoordinatorError::Engine(error) | CoordinatorError::Metadata(MetadataFault::Engine(error)) => error.into(),
            other => Self { field: other.field(), ..Self::of(other.kind(), crate::error::chain(&other)) },
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(why) => why.into(),
            EngineError::NoAnswer(why) => {
                let field = if let NoAnswer::UnknownJob(_) = why { "job" } else { "checkpoint" };
                Self { field: Some(field), ..Self::of(why.kind(), why.to_string()) }
            }
            EngineError::NoSuchSegment(_) => Self::not_found("segment", error.to_string()),
            EngineError::NoSuchSegments(_) => Self::not_found("segments", error.to_string()),
            EngineError::OtherBytes(_) => Self { field: Some("handle"), ..Self::of(error.kind(), error.to_string()) },
            EngineError::Length { announced, received } => {
                Self::invalid("body", format!("ends after {received} bytes, {announced} were announced"))
            }
            EngineError::TooLong(_) => Self::invalid("content-length", error.to_string()),
            EngineError::Memory(BudgetError::TooLarge { .. }) => {
                Self::invalid("content-length", error.to_string()).with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            EngineError::Bulk(_) => {
                let field = (error.kind() == ErrorKind::NotFound).then_some("segments");
                Self { field, ..Self::of(error.kind(), crate::error::chain(&error)) }
            }
            EngineError::Read(_) | EngineError::Reclaim(_) | EngineError::Sweep(_) => {
                Self::of(error.kind(), crate::error::chain(&error))
            }
            other => Self::of(other.kind(), other.to_string()),
        }
    }
}
