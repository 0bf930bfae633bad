//! Errors of the native API: from what went wrong to a status and a body that names the field.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use super::wire::{ErrorBody, ErrorDetail};
use crate::catalog::CatalogError;
use crate::catalog::command::Refusal;
use crate::error::ErrorKind;
use crate::merge::MergeError;
use crate::model::{InvalidHandle, InvalidId};
use crate::read::ReadError;
use crate::runtime::BudgetError;
use crate::store::DiskFull;

/// After how long a client that was turned away should come back.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// What the caller should do next.
    pub kind: ErrorKind,
    /// The field of the request that is wrong, if one is.
    pub field: Option<&'static str>,
    /// What is wrong, in a sentence.
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

    /// What was named does not exist.
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
        let detail =
            ErrorDetail { kind: self.kind.to_string(), field: self.field.map(str::to_owned), message: self.message };
        let mut response = (self.status, Json(ErrorBody { error: detail })).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
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
            Refusal::UnknownJob(_) | Refusal::JobEnded(_) => Some("job"),
            Refusal::NoSuchBucket(_) => Some("bucket"),
            Refusal::UnknownCheckpoint(..)
            | Refusal::CheckpointAborted(..)
            | Refusal::CheckpointSubsumed(..)
            | Refusal::CheckpointCompleted(..)
            | Refusal::CheckpointExists(..)
            | Refusal::CheckpointIncomplete(..)
            | Refusal::CheckpointKind(..)
            | Refusal::NewerCheckpoint(..) => Some("checkpoint"),
            Refusal::KeyReused(_) | Refusal::KeyInFlight(_) => Some("idempotency-key"),
            _ => None,
        };
        Self { field, ..Self::of(refusal.kind(), refusal.to_string()) }
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Refused(refusal) => refusal.into(),
            other => Self::of(other.kind(), other.to_string()),
        }
    }
}

impl From<MergeError> for ApiError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Refused(refusal) => refusal.into(),
            MergeError::Catalog(error) => error.into(),
            other => Self::of(other.kind(), other.to_string()),
        }
    }
}

impl From<DiskFull> for ApiError {
    fn from(full: DiskFull) -> Self {
        Self::of(full.kind(), full.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::of(error.kind(), crate::error::chain(&error))
    }
}

impl From<BudgetError> for ApiError {
    fn from(error: BudgetError) -> Self {
        match error {
            BudgetError::TooLarge { .. } => {
                Self::invalid("content-length", error.to_string()).with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            BudgetError::Exhausted { .. } => Self::of(ErrorKind::Overloaded, error.to_string()),
        }
    }
}
