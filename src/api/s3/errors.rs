//! Turns the daemon's errors into those that an S3 client understands.
//!
//! Clients go by the code: they repeat a 503 with growing pauses and give up on a 4xx. So whatever a repeat may cure is
//! `SlowDown` or `ServiceUnavailable` with `Retry-After`, and only a bug is a 500.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use s3s::{S3Error, S3ErrorCode, S3Result, StdError};

use crate::api::exchange::Exchange;
use crate::engine::intake::Rejected;
use crate::engine::{DiskFull, EngineError, ReadError, Refusal};
use crate::error::{ErrorKind, chain};
use crate::runtime::BudgetError;

/// Seconds after which a refused client may come again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The answer to a body that could not be read, as it was known where the reading failed. Clones share it.
///
/// It travels beside the body, because s3s wraps the errors of a body in ones of its own and hands no cause out.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyFault(Arc<Mutex<Option<S3Error>>>);

impl BodyFault {
    pub(super) fn set(&self, error: S3Error) {
        *self.0.lock() = Some(error);
    }

    pub(super) fn take(&self) -> Option<S3Error> {
        self.0.lock().take()
    }
}

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

/// 501 with the name of the feature that is not implemented.
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
            tracing::warn!(
                request = Exchange::current_id(),
                error = chain(error),
                "storage did not answer a request of the S3 door"
            );
            unavailable("storage does not answer, repeat the request")
        }
        ErrorKind::Corrupt => {
            tracing::error!(
                request = Exchange::current_id(),
                error = chain(error),
                "the S3 door was asked for damaged bytes"
            );
            unavailable("the stored bytes are not what was written")
        }
        ErrorKind::ShuttingDown => unavailable("the server is shutting down, repeat the request elsewhere"),
        ErrorKind::Internal => {
            tracing::error!(
                request = Exchange::current_id(),
                error = chain(error),
                "a request of the S3 door failed for no good reason"
            );
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
        Refusal::CatalogFull { .. } => return slow_down(refusal.to_string()),
        other => return by_kind(other.kind(), other),
    };
    refuse(code, refusal.to_string())
}

/// An error of the engine.
pub(super) fn engine(error: &EngineError) -> S3Error {
    match error {
        EngineError::Refused(why) => refusal(why),
        EngineError::Full(full) => disk_full(full),
        EngineError::Memory(BudgetError::TooLarge { .. }) => refuse(S3ErrorCode::EntityTooLarge, error.to_string()),
        EngineError::Memory(BudgetError::Exhausted { .. }) | EngineError::TooManyUploads => {
            slow_down(error.to_string())
        }
        EngineError::Length { announced, received } if received > announced => {
            incomplete_body("the body has more bytes than declared")
        }
        EngineError::Length { announced, received } => {
            incomplete_body(format!("{announced} bytes were declared, {received} arrived"))
        }
        EngineError::TooLong(_) => refuse(S3ErrorCode::EntityTooLarge, "the body is too large"),
        EngineError::OtherParts => invalid_part(),
        EngineError::NoAnswerGiven | EngineError::NotEnded | EngineError::Stalled(_) => unavailable(error.to_string()),
        EngineError::Unexpected(_) => unavailable("the catalog gave another answer than asked for, repeat the request"),
        other => by_kind(other.kind(), other),
    }
}

/// An error of a stream of stored bytes.
pub(super) fn read(error: &ReadError) -> S3Error {
    by_kind(error.kind(), error)
}

/// A part is not the one that a completion names.
pub(super) fn invalid_part() -> S3Error {
    let message = "a named part was not uploaded, or its entity tag or checksum is another";
    refuse(S3ErrorCode::InvalidPart, message)
}

/// The answer to a body in which s3s found a fault; those that are found outside of s3s have a [`BodyFault`].
///
/// # Upstream
/// s3s 0.14.1 keeps `AwsChunkedStreamError` (`src/http/aws_chunked_stream.rs`) and `UploadStreamError`
/// (`src/sig_v4/upload_stream.rs`) in private modules, and writes the cause of their `Underlying` into the text instead of
/// returning it from `source()`. So a mismatch can only be told by its name in the text. With these types public,
/// `downcast_ref` takes the place of the text; the tests of signed bodies notice when a name changes.
pub(super) fn body(error: &StdError) -> S3Error {
    let text = chain(&**error);
    if text.contains("SignatureMismatch") {
        refuse(S3ErrorCode::SignatureDoesNotMatch, "the signature of a chunk of the body does not match")
    } else if text.contains("Sha256Mismatch") {
        payload_hash_mismatch()
    } else {
        broken_body()
    }
}

/// The body brought nothing, or too little, for too long.
pub(super) fn body_stalled() -> S3Error {
    refuse(S3ErrorCode::RequestTimeout, "the body brought nothing, or too little, for too long")
}

/// A signed chunk is larger than s3s may hold. Not a broken body, which clients send again.
pub(super) fn signed_chunk_too_large(bytes_max: u64) -> S3Error {
    let message = format!("a signed chunk of the body is larger than {bytes_max} bytes: send smaller ones");
    refuse(S3ErrorCode::InvalidRequest, message)
}

/// The body ended early or its framing is wrong.
pub(super) fn broken_body() -> S3Error {
    incomplete_body("the body broke off or is malformed")
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

impl<T> OrS3<T> for Result<T, Rejected<S3Error>> {
    fn or_s3(self) -> S3Result<T> {
        self.map_err(|rejected| match rejected {
            Rejected::Body(error) => error,
            Rejected::Engine(error) => engine(&error),
        })
    }
}

/// Turns an error of the engine into an answer.
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
    EngineError => engine,
    ReadError => read,
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
        let full = Refusal::CatalogFull { used_bytes: 2, limit_bytes: 1 };
        for error in [slow_down("x"), unavailable("x"), engine(&EngineError::ShuttingDown), refusal(&full)] {
            assert_eq!(error.status_code(), Some(StatusCode::SERVICE_UNAVAILABLE));
            assert!(error.headers().unwrap().contains_key(RETRY_AFTER));
        }
    }

    #[test]
    fn a_fault_of_the_body_is_answered_once() {
        let fault = BodyFault::default();

        fault.clone().set(body_stalled());

        assert_eq!(fault.take().unwrap().code(), &S3ErrorCode::RequestTimeout);
        assert!(fault.take().is_none());
    }
}
