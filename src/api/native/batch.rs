//! Many segments in one request.
//!
//! The body is a sequence of frames, each `head length u32 (little endian), head, bytes`; the head is JSON
//! ([`BatchHead`]) and says how many bytes follow it. The answer is one line of JSON a segment
//! ([`BatchAnswer`]), in the order of the request, each written once its segment is durable. A frame that
//! cannot be read ends the request with an error line: what comes after it is not looked at.

use std::convert::Infallible;

use axum::body::Body as HttpBody;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use esker_client::wire::{BatchAnswer, BatchHead, ErrorBody, SegmentInfo};
use futures::Stream;
use http::{HeaderValue, header};
use tokio::sync::{mpsc, oneshot};

use super::parts::{Native, about_of, check_crc_form, idempotency_key, job_of, object};
use crate::api::body::{BodySource, Framed, check_crc, check_len};
use crate::api::status::ApiError;
use crate::engine::intake::Whole;
use crate::model::{About, IdempotencyKey, JobId, JobRun};
use crate::runtime::{Failure, Payer, reply};

/// Longest head of a segment in bytes.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Answers that may wait for their turn to be written.
const ANSWERS_MAX: usize = 1024;

type SegmentResult = Result<SegmentInfo, ApiError>;

/// Stores many segments. Answers each once it is durable.
#[utoipa::path(post, tag = "Segments", path = "/v1/jobs/{job}/segments/batch", params(("job" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream",
        description = "For each segment: length of the head (u32, little endian), the head (BatchHead as JSON), the bytes"),
    responses((status = 200, body = BatchAnswer, content_type = "application/x-ndjson",
        description = "One line a segment, in order"), (status = 404, body = ErrorBody)))]
pub(super) async fn put_segments(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let job = job_of(&job)?;
    native.engine.check_writes(&job)?;
    // Whatever becomes of the job meanwhile, all of them are of this run of it.
    let run = native.engine.run_of(&job);
    let (answers, lines) = mpsc::channel::<oneshot::Receiver<SegmentResult>>(ANSWERS_MAX);
    let tasks = native.engine.tasks();
    let receiving = receive(native, (job, run), request.into_body().into_data_stream(), answers);
    tasks.spawn("batch", Failure::FailsItsWork, Payer::inherit(Payer::current(), receiving));
    let stream = futures::stream::unfold(lines, |mut lines| async move {
        let answer = lines.recv().await?.await;
        let dropped = || Err(ApiError::of(crate::error::ErrorKind::Internal, "the segment was dropped"));
        Some((Ok::<_, Infallible>(line(answer.unwrap_or_else(|_| dropped()))), lines))
    });
    let mut response = Response::new(HttpBody::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn line(answer: SegmentResult) -> Bytes {
    let answer = match answer {
        Ok(info) => BatchAnswer::Stored(info),
        Err(error) => BatchAnswer::Error(error.into()),
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Reads the segments of a request; each is stored by a task of its own while the next one arrives.
async fn receive<S, E>(
    native: Native,
    (job, run): (JobId, JobRun),
    body: S,
    answers: mpsc::Sender<oneshot::Receiver<SegmentResult>>,
) where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + 'static,
{
    let mut source = BodySource::new(body);
    for _ in 0..native.engine.settings().limits.segments_per_request_max {
        let (writer, answer) = oneshot::channel();
        let begun = match begin(&native, &job, &mut source).await {
            Ok(None) => return,
            Ok(Some(begun)) => Ok(begun),
            Err(error) => Err(error),
        };
        // Nobody reads the answers any more: the client has left.
        if answers.send(answer).await.is_err() {
            return;
        }
        match begun {
            Err(fatal) => {
                reply(writer, Err(fatal));
                return source.drop_rest().await;
            }
            Ok(BatchSegment { result: Err(error) }) => reply(writer, Err(error)),
            Ok(BatchSegment { result: Ok((about, key, whole)) }) => {
                let storing = native.clone();
                native.engine.tasks().spawn("batch-segment", Failure::FailsItsWork, async move {
                    let stored = storing.engine.store(about, key, Some(run), whole).await;
                    let answer = stored.map(|handle| SegmentInfo::from(&handle));
                    reply(writer, answer.map_err(|error| storing.turned_away(error)));
                });
            }
        }
    }
    if !matches!(source.next(&native.admission, 1).await, Ok(None)) {
        let (writer, answer) = oneshot::channel();
        let max = native.engine.settings().limits.segments_per_request_max;
        let message = format!("more than limits.segments-per-request-max, {max}: send the rest in another request");
        // `Err`: the client has left.
        if answers.send(answer).await.is_ok() {
            reply(writer, Err(ApiError::invalid("body", message)));
        }
        source.drop_rest().await;
    }
}

/// A segment that was read to its end, so that the next one can be found.
struct BatchSegment {
    result: Result<(About, Option<IdempotencyKey>, Whole), ApiError>,
}

/// Reads the next segment; `None` at the end.
///
/// # Errors
/// Those after which the next segment cannot be found.
async fn begin<S, E>(native: &Native, job: &JobId, source: &mut BodySource<S>) -> Result<Option<BatchSegment>, ApiError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + 'static,
{
    let Some(head) = next_head(native, source).await? else { return Ok(None) };
    let head: BatchHead = object("head", &head)?;
    let whole = next_bytes(native, source, head.len).await?;
    let result = match check(native, job, &head, whole.crc.whole) {
        Ok((about, key)) => {
            native.check_pending(job, about.checkpoint).await.map_err(ApiError::from).map(|()| (about, key, whole))
        }
        Err(error) => Err(error),
    };
    Ok(Some(BatchSegment { result }))
}

/// Reads the head of the next segment; `None` at the end.
pub(super) async fn next_head<S, E>(native: &Native, source: &mut BodySource<S>) -> Result<Option<Bytes>, ApiError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + 'static,
{
    next_text(native, source, "the head of a segment", HEAD_BYTES_MAX).await
}

/// Reads the text with which the next frame begins, `what`, of so many bytes at most; `None` at the end.
pub(super) async fn next_text<S, E>(
    native: &Native,
    source: &mut BodySource<S>,
    what: &str,
    max: u64,
) -> Result<Option<Bytes>, ApiError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + 'static,
{
    let Some(first) = source.next(&native.admission, 4).await? else { return Ok(None) };
    let mut length = first.to_vec();
    while length.len() < 4 {
        let more = source.next(&native.admission, 4 - length.len()).await?;
        length.extend_from_slice(&more.ok_or_else(|| native.admission.cut_short(4, length.len()))?);
    }
    let head_len = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    if head_len == 0 || head_len > max {
        let message =
            format!("{what} must have 1 to {max} bytes, and {head_len} are announced: 4 bytes, little-endian");
        return Err(ApiError::invalid("head", message));
    }
    let received = native.engine.receive(Framed::new(source, &native.admission, head_len)).await;
    let (head, _) = received.map_err(|rejected| native.rejected(rejected))?;
    Ok(Some(head.data))
}

/// Reads the bytes of a segment.
pub(super) async fn next_bytes<S, E>(native: &Native, source: &mut BodySource<S>, len: u64) -> Result<Whole, ApiError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + 'static,
{
    check_len("len", len, native.engine.settings().store.part_bytes)?;
    let received = native.engine.receive(Framed::new(source, &native.admission, len)).await;
    let (whole, _) = received.map_err(|rejected| native.rejected(rejected))?;
    Ok(whole)
}

/// What a segment is, by its head.
pub(super) fn check(
    native: &Native,
    job: &JobId,
    head: &BatchHead,
    crc32c: u32,
) -> Result<(About, Option<IdempotencyKey>), ApiError> {
    let about = about_of(job.clone(), &head.params())?;
    let key = idempotency_key(head.idempotency_key.as_deref())?;
    check_crc_form(head.crc32c.as_deref())?;
    check_crc(head.crc32c.as_deref(), crc32c)?;
    if let Some(checkpoint) = about.checkpoint {
        native.engine.would_take(job, checkpoint)?;
    }
    Ok((about, key))
}
