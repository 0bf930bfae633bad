//! Bodies of the native API: the bytes of a request as they arrive, and what was said of them. The engine pays for them
//! and reads them ([`crate::engine::intake`]).

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode};

use super::status::ApiError;
use super::unread::{BodyError, drop_rest};
use crate::engine::intake::{Body, Digests};
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::RejectReason;

/// The limits for bodies at a door.
#[derive(Clone)]
pub struct Admission {
    /// Longest time between two pieces of a body.
    pub silence_max: Duration,
    /// Counts what is turned away.
    pub metrics: Metrics,
}

crate::runtime::opaque_debug!(Admission);

impl Admission {
    /// A body that ended before it was whole.
    pub fn cut_short(&self, announced: u64, received: usize) -> ApiError {
        self.metrics.rejected.of(RejectReason::Body).inc();
        ApiError::invalid("body", format!("ends after {received} bytes, {announced} were announced"))
    }
}

/// A body of a known length, out of the bytes of a request.
pub struct Framed<'a, S> {
    source: &'a mut BodySource<S>,
    admission: &'a Admission,
    len: u64,
    left: u64,
    crc32c: Option<&'a str>,
    waits: bool,
}

crate::runtime::opaque_debug!(Framed<'a, S>);

impl<'a, S> Framed<'a, S> {
    /// The next `len` bytes of `source`, of which nothing was said.
    pub fn new(source: &'a mut BodySource<S>, admission: &'a Admission, len: u64) -> Self {
        Self { source, admission, len, left: len, crc32c: None, waits: false }
    }

    /// The same with the CRC-32C that was announced, 8 hex digits.
    pub fn with_crc(self, crc32c: Option<&'a str>) -> Self {
        Self { crc32c, ..self }
    }

    /// The same of a client that may wait for `100 Continue`.
    pub fn waiting(self, waits: bool) -> Self {
        Self { waits, ..self }
    }
}

impl<S, E> Body for Framed<'_, S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Error + Send + 'static,
{
    type Fault = ApiError;

    fn announced(&self) -> u64 {
        self.len
    }

    fn waits(&self) -> bool {
        self.waits
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let piece = self.source.next(self.admission, usize::try_from(self.left).unwrap_or(usize::MAX)).await?;
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    fn check(self, crc32c: u32) -> Result<Digests, ApiError> {
        check_crc(self.crc32c, crc32c)?;
        Ok(Digests::default())
    }

    fn is_of_client(fault: &ApiError) -> bool {
        fault.status.is_client_error()
    }
}

/// The bytes of a request as they arrive.
pub struct BodySource<S> {
    stream: S,
    rest: Bytes,
}

crate::runtime::opaque_debug!(BodySource<S>);

impl<S, E> BodySource<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Error + 'static,
{
    /// Bytes from `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, rest: Bytes::new() }
    }

    /// The next bytes, at most `max`; `None` at the end.
    ///
    /// # Errors
    /// 400 if the connection breaks, 408 if it stalls.
    pub async fn next(&mut self, admission: &Admission, max: usize) -> Result<Option<Bytes>, ApiError> {
        while self.rest.is_empty() {
            self.rest = match self.pull(admission).await? {
                Some(piece) => piece,
                None => return Ok(None),
            };
        }
        Ok(Some(self.rest.split_to(max.min(self.rest.len()))))
    }

    /// Returns the next bytes, in a piece of any size.
    async fn pull(&mut self, admission: &Admission) -> Result<Option<Bytes>, ApiError> {
        let reject = |reason| admission.metrics.rejected.of(reason).inc();
        match tokio::time::timeout(admission.silence_max, self.stream.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) if BodyError::is_slow(&error) => Err(too_slow(&admission.metrics)),
            Ok(Some(Err(_))) => {
                reject(RejectReason::Body);
                Err(ApiError::invalid("body", "the body broke off"))
            }
            Ok(None) => Ok(None),
            Err(_) => {
                reject(RejectReason::Slow);
                let message = format!("no byte of the body arrived for {:?}", admission.silence_max);
                Err(ApiError::invalid("body", message).with_status(StatusCode::REQUEST_TIMEOUT))
            }
        }
    }

    /// Reads and drops what is left, as far as [`super::unread`] does: nobody wants it.
    pub async fn drop_rest(&mut self) {
        // What is left even then closes the connection.
        drop_rest(&mut self.stream).await;
    }
}

/// 408: a body that comes in too slowly, which counts.
pub(super) fn too_slow(metrics: &Metrics) -> ApiError {
    metrics.rejected.of(RejectReason::Slow).inc();
    ApiError::invalid("body", "comes in at less than limits.rate-min").with_status(StatusCode::REQUEST_TIMEOUT)
}

/// The announced length of a body.
///
/// # Errors
/// 411 if there is none, 413 if it is over `max`.
pub fn announced_len(headers: &HeaderMap, max: u64) -> Result<u64, ApiError> {
    let header = headers.get(http::header::CONTENT_LENGTH);
    let Some(header) = header else {
        let error = ApiError::invalid("content-length", "a segment must announce its length");
        return Err(error.with_status(StatusCode::LENGTH_REQUIRED));
    };
    let len = header.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let len = len.ok_or_else(|| ApiError::invalid("content-length", "is not a number"))?;
    check_len("content-length", len, max)?;
    Ok(len)
}

/// Checks the length of a segment.
///
/// # Errors
/// 400 for 0 bytes, 413 for more than `max`.
pub fn check_len(field: &'static str, len: u64, max: u64) -> Result<(), ApiError> {
    if len == 0 {
        return Err(ApiError::invalid(field, "a segment must have at least one byte; leave an empty one out"));
    }
    if len > max {
        let error = ApiError::invalid(field, format!("{len} bytes are more than limits.segment-size-max, {max}"));
        return Err(error.with_status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    Ok(())
}

/// Compares what was announced with what arrived.
///
/// # Errors
/// 400 if they differ, or what was announced is not 8 hex digits.
pub fn check_crc(announced: Option<&str>, actual: u32) -> Result<(), ApiError> {
    let Some(text) = announced else { return Ok(()) };
    let wanted = (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok()).flatten();
    let wanted = wanted.ok_or_else(|| ApiError::invalid("crc32c", format!("must be 8 hex digits, is {text:?}")))?;
    if wanted != actual {
        let message = format!("the body has CRC-32C {actual:08x}, {wanted:08x} was announced");
        return Err(ApiError { kind: ErrorKind::Invalid, ..ApiError::invalid("crc32c", message) });
    }
    Ok(())
}
