//! From what went wrong inside to what an S3 client understands.
//!
//! Clients go by the code: they repeat a 503 with growing pauses and give up on a 4xx. So whatever a repeat may cure is
//! `SlowDown` or `ServiceUnavailable` with `Retry-After`, and only a bug is a 500.

use std::borrow::Cow;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use s3s::{S3Error, S3ErrorCode, S3Result, StdError};

use super::chunked::{SIGNED_CHUNK_BYTES_MAX, SIGNED_CHUNK_TOO_LARGE};
use crate::catalog::CatalogError;
use crate::catalog::command::Refusal;
use crate::error::{ErrorKind, chain};
use crate::merge::MergeError;
use crate::read::ReadError;
use crate::runtime::BudgetError;
use crate::store::DiskFull;

/// Seconds after which a refused client may come again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The answer of a body that brought too little for too long. Its text is how it is recognised inside other errors.
#[derive(Debug, thiserror::Error)]
#[error("the request body stalled")]
pub(super) struct BodyStalled;

/// An error with a code, a status and a message.
pub(super) fn refuse(code: S3ErrorCode, message: impl Into<Cow<'static, str>>) -> S3Error {
    let mut error = S3Error::with_message(code, message);
    if error.status_code().is_none() {
        error.set_status_code(StatusCode::BAD_REQUEST);
    }
    error
}

/// An error whose code s3s does not know, or knows with another status.
pub(super) fn refuse_as(
    status: StatusCode,
    code: impl Into<S3ErrorCode>,
    message: impl Into<Cow<'static, str>>,
) -> S3Error {
    let mut error = S3Error::with_message(code.into(), message);
    error.set_status_code(status);
    error
}

/// A code that s3s does not know.
pub(super) fn custom(code: &'static str) -> S3ErrorCode {
    S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InvalidRequest)
}

/// What is not implemented says so, by name.
pub(super) fn not_implemented(what: &str) -> S3Error {
    refuse(S3ErrorCode::NotImplemented, format!("{what} is not implemented by this server"))
}

/// 503: too much at once.
pub(super) fn slow_down(message: impl Into<Cow<'static, str>>) -> S3Error {
    retry_later(S3ErrorCode::SlowDown, message)
}

/// 503: not now.
pub(super) fn unavailable(message: impl Into<Cow<'static, str>>) -> S3Error {
    retry_later(S3ErrorCode::ServiceUnavailable, message)
}

/// 503 of a refusal that is counted where it was decided.
const COUNTED: &str = "x-esker-reason";

/// 503: the disk has no room.
pub(super) fn disk_full(full: &DiskFull) -> S3Error {
    let mut error = unavailable(full.to_string());
    let mut headers = error.headers().cloned().unwrap_or_default();
    headers.insert(COUNTED, HeaderValue::from_static("disk"));
    error.set_headers(headers);
    error
}

/// Whether an answer is a refusal that is counted already.
pub(super) fn is_counted(headers: &HeaderMap) -> bool {
    headers.contains_key(COUNTED)
}

fn retry_later(code: S3ErrorCode, message: impl Into<Cow<'static, str>>) -> S3Error {
    let mut error = refuse_as(StatusCode::SERVICE_UNAVAILABLE, code, message);
    // These headers take the place of all others.
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    error.set_headers(headers);
    error
}

/// An error by its kind; what an operator has to know is logged here.
fn by_kind(kind: ErrorKind, error: &dyn std::error::Error) -> S3Error {
    let text = error.to_string();
    match kind {
        ErrorKind::Invalid => refuse(S3ErrorCode::InvalidRequest, text),
        ErrorKind::NotFound => refuse_as(StatusCode::NOT_FOUND, S3ErrorCode::NoSuchKey, text),
        ErrorKind::Conflict => refuse(S3ErrorCode::OperationAborted, text),
        ErrorKind::Precondition => refuse(S3ErrorCode::PreconditionFailed, text),
        ErrorKind::Overloaded => slow_down("too much at once, repeat the request more slowly"),
        ErrorKind::Unavailable => {
            tracing::warn!(error = chain(error), "storage did not answer a request of the S3 door");
            unavailable("storage does not answer, repeat the request")
        }
        ErrorKind::Corrupt => {
            tracing::error!(error = chain(error), "the S3 door was asked for damaged bytes");
            unavailable("the stored bytes are not what was written")
        }
        ErrorKind::ShuttingDown => unavailable("the server is shutting down, repeat the request elsewhere"),
        ErrorKind::Internal => {
            tracing::error!(error = chain(error), "a request of the S3 door failed for no good reason");
            refuse_as(StatusCode::INTERNAL_SERVER_ERROR, S3ErrorCode::InternalError, "an internal error, see the log")
        }
    }
}

/// A refusal of the catalog.
pub(super) fn refusal(refusal: &Refusal) -> S3Error {
    let code = match refusal {
        Refusal::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
        Refusal::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
        Refusal::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
        Refusal::NoSuchKey(_) => S3ErrorCode::NoSuchKey,
        Refusal::ConditionFailed(_) => S3ErrorCode::PreconditionFailed,
        Refusal::ConditionUndecided(_) => S3ErrorCode::ConditionalRequestConflict,
        Refusal::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
        Refusal::NoSuchPart(_) => S3ErrorCode::InvalidPart,
        other => return by_kind(other.kind(), other),
    };
    refuse(code, refusal.to_string())
}

/// An error of the catalog.
pub(super) fn catalog(error: &CatalogError) -> S3Error {
    match error {
        CatalogError::Refused(why) => refusal(why),
        other => by_kind(other.kind(), other),
    }
}

/// An error of the merger.
pub(super) fn merge(error: &MergeError) -> S3Error {
    match error {
        MergeError::Refused(why) => refusal(why),
        MergeError::Catalog(error) => catalog(error),
        MergeError::Full(full) => disk_full(full),
        other => by_kind(other.kind(), other),
    }
}

/// An error of the reader.
pub(super) fn read(error: &ReadError) -> S3Error {
    by_kind(error.kind(), error)
}

/// Memory that was not granted.
pub(super) fn budget(error: &BudgetError) -> S3Error {
    match error {
        BudgetError::TooLarge { .. } => refuse(S3ErrorCode::EntityTooLarge, error.to_string()),
        BudgetError::Exhausted { .. } => slow_down(error.to_string()),
    }
}

/// A body that could not be read to its end.
///
/// s3s keeps the types of these errors to itself, so their texts have to tell them apart; a test of the whole service
/// watches that.
pub(super) fn body(error: &StdError) -> S3Error {
    let text = chain(&**error);
    let is = |what: &str| text.contains(what);
    if is("SignatureMismatch") {
        refuse(S3ErrorCode::SignatureDoesNotMatch, "the signature of a chunk of the body does not match")
    } else if is("Sha256Mismatch") {
        payload_hash_mismatch()
    } else if is(&BodyStalled.to_string()) {
        refuse(S3ErrorCode::RequestTimeout, "the body brought nothing, or too little, for too long")
    } else if is(SIGNED_CHUNK_TOO_LARGE) {
        // Not as a broken body, which clients send again.
        let message =
            format!("a signed chunk of the body is larger than {SIGNED_CHUNK_BYTES_MAX} bytes: send smaller ones");
        refuse(S3ErrorCode::InvalidRequest, message)
    } else {
        incomplete_body("the body broke off or is malformed")
    }
}

/// The body is not what `x-amz-content-sha256` says.
pub(super) fn payload_hash_mismatch() -> S3Error {
    let message = "the body is not what x-amz-content-sha256 says";
    refuse_as(StatusCode::BAD_REQUEST, custom("XAmzContentSHA256Mismatch"), message)
}

/// The body is shorter or longer than declared.
pub(super) fn incomplete_body(message: impl Into<Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::IncompleteBody, message)
}

/// Turns an error of the parts below into an answer.
pub(super) trait OrS3<T> {
    /// The value, or the error as S3 says it.
    fn or_s3(self) -> S3Result<T>;
}

macro_rules! or_s3 {
    ($($error:ty => $convert:path),* $(,)?) => {$(
        impl<T> OrS3<T> for Result<T, $error> {
            fn or_s3(self) -> S3Result<T> {
                self.map_err(|error| $convert(&error))
            }
        }
    )*};
}
or_s3! {
    Refusal => refusal,
    CatalogError => catalog,
    MergeError => merge,
    ReadError => read,
    BudgetError => budget,
    DiskFull => disk_full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_codes_that_clients_know() {
        let key = || "k".to_owned();
        for (why, code, status) in [
            (Refusal::NoSuchBucket(key()), "NoSuchBucket", 404),
            (Refusal::BucketExists(key()), "BucketAlreadyOwnedByYou", 409),
            (Refusal::BucketNotEmpty(key()), "BucketNotEmpty", 409),
            (Refusal::NoSuchKey(key()), "NoSuchKey", 404),
            (Refusal::ConditionFailed(key()), "PreconditionFailed", 412),
            (Refusal::ConditionUndecided(key()), "ConditionalRequestConflict", 409),
            (Refusal::NoSuchUpload(key()), "NoSuchUpload", 404),
        ] {
            let error = refusal(&why);

            assert_eq!((error.code().as_str(), error.status_code().unwrap().as_u16()), (code, status));
            assert!(error.message().is_some());
        }
    }

    #[test]
    fn whatever_may_pass_is_503_with_a_time_to_come_back() {
        for error in [slow_down("x"), unavailable("x"), catalog(&CatalogError::Closed)] {
            assert_eq!(error.status_code(), Some(StatusCode::SERVICE_UNAVAILABLE));
            assert!(error.headers().unwrap().contains_key(RETRY_AFTER));
        }
    }

    #[test]
    fn a_stalled_body_is_recognised_inside_other_errors() {
        let wrapped: StdError = format!("UploadStreamError: Underlying: {BodyStalled}").into();

        assert_eq!(body(&wrapped).code(), &S3ErrorCode::RequestTimeout);
    }
}
