//! Bodies: paid for before they are read, copied once, checked while they arrive.
//!
//! Memory for a body is taken once its first bytes are here: a client that announces one and sends next to nothing holds
//! nothing. Until then they are where HTTP has read them to, in the buffers that every connection has. A client that
//! waits for `100 Continue` gets its memory first, so that nobody is asked for a body that there is no room for.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode};

use super::status::ApiError;
use super::unread::{BodyError, drop_rest};
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::model::{SegmentCrc, SegmentHasher};
use crate::runtime::{Buffer, ByteBudget, PaidBytes};

/// Header with the CRC-32C of a body, 8 hex digits.
pub const CRC_HEADER: &str = "x-esker-crc32c";

/// First bytes of a body that are waited for before memory is taken for it; no more than HTTP reads ahead.
pub(super) const FIRST_BYTES: u64 = 4 << 10;

/// What limits the bodies of a door.
#[derive(Clone)]
pub struct Admission {
    /// Memory for bodies.
    pub budget: ByteBudget,
    /// How long a body waits for memory.
    pub patience: Duration,
    /// Longest time between two pieces of a body.
    pub silence_max: Duration,
    /// Counts what is turned away.
    pub metrics: Metrics,
}

/// A body in memory.
#[derive(Debug)]
pub struct Body {
    /// Its bytes.
    pub data: Bytes,
    /// Their checksums.
    pub crc: SegmentCrc,
    /// The memory they are in.
    pub paid: PaidBytes,
}

impl Admission {
    /// Pays for `bytes` before they are read.
    ///
    /// # Errors
    /// 413 if the budget never holds that many, 503 if it does not now.
    pub async fn pay(&self, bytes: u64) -> Result<PaidBytes, ApiError> {
        self.budget.pay(bytes, self.patience).await.map_err(|error| {
            self.metrics.rejected.with_label_values(&["memory"]).inc();
            error.into()
        })
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// 400 if the body ends early, 408 if it stalls, 503 if there is no memory for it.
    pub async fn receive<S, E>(&self, source: &mut Source<S>, len: u64) -> Result<Body, ApiError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Error + 'static,
    {
        let paid = self.pay(len).await?;
        let mut hasher = SegmentHasher::default();
        let data = self.read(source, len, &mut hasher).await?;
        Ok(Body { data, crc: hasher.finish(), paid })
    }

    /// Reads exactly `len` bytes, which are paid for, and shows them to `hasher`.
    ///
    /// # Errors
    /// 400 if the body ends early, 408 if it stalls.
    pub async fn read<S, E>(
        &self,
        source: &mut Source<S>,
        len: u64,
        hasher: &mut SegmentHasher,
    ) -> Result<Bytes, ApiError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Error + 'static,
    {
        let wanted = usize::try_from(len).map_err(|_| ApiError::invalid("content-length", "is too large"))?;
        let mut data = Buffer::with_capacity(wanted);
        while data.len() < wanted {
            let piece = source.next(self, wanted - data.len()).await?.ok_or_else(|| self.cut_short(len, data.len()))?;
            hasher.update(&piece);
            data.extend_from_slice(&piece);
        }
        Ok(data.freeze())
    }

    /// A body that ended before it was whole.
    pub fn cut_short(&self, announced: u64, received: usize) -> ApiError {
        self.metrics.rejected.with_label_values(&["body"]).inc();
        ApiError::invalid("body", format!("ends after {received} bytes, {announced} were announced"))
    }
}

/// The bytes of a request as they arrive.
pub struct Source<S> {
    stream: S,
    rest: Bytes,
    /// What has come after it.
    first: VecDeque<Bytes>,
}

impl<S, E> Source<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Error + 'static,
{
    /// Bytes from `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, rest: Bytes::new(), first: VecDeque::new() }
    }

    /// Waits for the first bytes of a body of `len` bytes, before memory is taken for it.
    ///
    /// # Errors
    /// 400 if the connection breaks, 408 if it stalls.
    pub async fn await_first(&mut self, admission: &Admission, len: u64) -> Result<(), ApiError> {
        let mut came = self.rest.len() as u64;
        while came < len.min(FIRST_BYTES) {
            let Some(piece) = self.pull(admission).await? else { break };
            came += piece.len() as u64;
            self.first.push_back(piece);
        }
        Ok(())
    }

    /// The next bytes, at most `max`; none at the end.
    ///
    /// # Errors
    /// 400 if the connection breaks, 408 if it stalls.
    pub async fn next(&mut self, admission: &Admission, max: usize) -> Result<Option<Bytes>, ApiError> {
        while self.rest.is_empty() {
            self.rest = match self.first.pop_front() {
                Some(piece) => piece,
                None => match self.pull(admission).await? {
                    Some(piece) => piece,
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(self.rest.split_to(max.min(self.rest.len()))))
    }

    /// What comes next, of whatever size.
    async fn pull(&mut self, admission: &Admission) -> Result<Option<Bytes>, ApiError> {
        let reject = |reason| admission.metrics.rejected.with_label_values(&[reason]).inc();
        match tokio::time::timeout(admission.silence_max, self.stream.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) if BodyError::is_slow(&error) => Err(too_slow(&admission.metrics)),
            Ok(Some(Err(_))) => {
                reject("body");
                Err(ApiError::invalid("body", "the body broke off"))
            }
            Ok(None) => Ok(None),
            Err(_) => {
                reject("slow");
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
    metrics.rejected.with_label_values(&["slow"]).inc();
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
