//! Restoring in bulk: many segments in one answer, and the list of what an S3 bucket holds.
//!
//! The answer to `POST /v1/restore` is a sequence of frames as in the upload of a batch ([`super::batch`]): `head length
//! u32 (little endian), head, bytes`. The head is JSON ([`RestoreHead`]). A segment's head says how many bytes follow
//! it; the last frame has no bytes and says how many segments there were. A fault in the middle ends the connection
//! without the end of the answer, and before it, where it is between two segments, with a frame that says which one it
//! befell and why.
//!
//! # Invariants
//! - Whatever is known to be missing is an error before the first byte.
//! - An answer without its last frame is not whole.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use esker_client::wire::{
    ErrorBody, ErrorDetail, ListedSegment, ObjectInfo, ObjectPage, ObjectsParams, RestoreBroken, RestoreEnd,
    RestoreHead, RestoreRequest,
};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::{HeaderValue, Uri, header};

use super::parts::{Native, job_of, json, query};
use crate::api::exchange::Exchange;
use crate::api::status::ApiError;
use crate::api::wire::frame;
use crate::engine::{BulkError, BulkPiece, ListQuery, ObjectListed, ObjectsPage};
use crate::model::{CheckpointId, JobId, SegmentId};

/// Bytes of a request beside its identities, and for each of them.
const REQUEST_BYTES: usize = 4 << 10;
const ID_BYTES: usize = 64;
/// Objects of one page at most.
const PAGE_OBJECTS_MAX: u32 = 1000;

/// Sends the bytes of many segments in one answer.
#[utoipa::path(post, tag = "Restore", path = "/v1/restore", request_body = RestoreRequest, responses(
    (status = 200, body = RestoreHead, content_type = "application/octet-stream",
        description = "For each segment, in the order asked or by subtask and name: length of the head (u32, little \
            endian), the head (RestoreHead as JSON), the bytes. The last head has `end`; without it, the answer is not whole"),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn restore(State(native): State<Native>, request: Request) -> Result<Response, ApiError> {
    native.engine.check()?;
    let ids_max = native.engine.settings().limits.segments_per_request_max;
    let bytes_max = REQUEST_BYTES + ID_BYTES.saturating_mul(ids_max);
    let asked = asked(json(&native, request, bytes_max).await?, ids_max)?;
    let pieces = match asked {
        Asked::Segments(ids) => native.engine.read_segments(ids).await?,
        Asked::Checkpoint(job, checkpoint) => native.engine.read_checkpoint(&job, checkpoint).await?,
    };
    let mut response = Response::new(HttpBody::from_stream(frames(pieces)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// The segments that a request asks for.
enum Asked {
    Segments(Vec<SegmentId>),
    Checkpoint(JobId, CheckpointId),
}

fn asked(request: RestoreRequest, ids_max: usize) -> Result<Asked, ApiError> {
    match request {
        RestoreRequest { segments: Some(texts), job: None, checkpoint: None } => {
            if texts.len() > ids_max {
                let message = format!("more than limits.segments-per-request-max, {ids_max}: ask for the rest apart");
                return Err(ApiError::invalid("segments", message));
            }
            let ids = texts.iter().map(|text| text.parse::<SegmentId>()).collect::<Result<Vec<_>, _>>();
            Ok(Asked::Segments(ids.map_err(|error| ApiError::invalid("segments", error.to_string()))?))
        }
        RestoreRequest { segments: None, job: Some(job), checkpoint: Some(checkpoint) } => {
            Ok(Asked::Checkpoint(job_of(&job)?, CheckpointId(checkpoint)))
        }
        RestoreRequest { segments: None, job: Some(_), checkpoint: None } => {
            Err(ApiError::invalid("checkpoint", "job and checkpoint go together"))
        }
        RestoreRequest { segments: None, job: None, checkpoint: Some(_) } => {
            Err(ApiError::invalid("job", "job and checkpoint go together"))
        }
        _ => Err(ApiError::invalid("segments", "give either segments, or job and checkpoint")),
    }
}

/// The next thing to send.
enum Sends {
    Pieces {
        pieces: BoxStream<'static, Result<BulkPiece, BulkError>>,
        sent: RestoreEnd,
        left: u64,
    },
    /// The bytes that belong to a head that went out.
    Bytes(Bytes, Box<Sends>),
    Breaks(BulkError),
    Nothing,
}

fn frames(
    pieces: BoxStream<'static, Result<BulkPiece, BulkError>>,
) -> impl Stream<Item = Result<Bytes, BulkError>> + Send {
    let sends = Sends::Pieces { pieces, sent: RestoreEnd { end: 0, bytes: 0 }, left: 0 };
    stream::unfold(sends, |sends| async move {
        match sends {
            Sends::Pieces { pieces, sent, left } => Some(next_frame(pieces, sent, left).await),
            Sends::Bytes(bytes, then) => Some((Ok(bytes), *then)),
            Sends::Breaks(error) => {
                // The connection writes out what it has before it hears of the error, or it would never say why.
                tokio::task::yield_now().await;
                Some((Err(error), Sends::Nothing))
            }
            Sends::Nothing => None,
        }
    })
}

/// `left` bytes of the segment that was begun are still to come.
async fn next_frame(
    mut pieces: BoxStream<'static, Result<BulkPiece, BulkError>>,
    mut sent: RestoreEnd,
    mut left: u64,
) -> (Result<Bytes, BulkError>, Sends) {
    match pieces.next().await {
        None => (Ok(frame(&RestoreHead::End(sent))), Sends::Nothing),
        Some(Ok(BulkPiece { begins, bytes })) => {
            sent.bytes += bytes.len() as u64;
            let Some(segment) = begins else {
                left = left.saturating_sub(bytes.len() as u64);
                return (Ok(bytes), Sends::Pieces { pieces, sent, left });
            };
            sent.end += 1;
            left = segment.location.len().saturating_sub(bytes.len() as u64);
            let head = frame(&RestoreHead::Segment(ListedSegment::from(&segment)));
            (Ok(head), Sends::Bytes(bytes, Box::new(Sends::Pieces { pieces, sent, left })))
        }
        Some(Err(error)) => {
            let request = Exchange::current_id();
            tracing::error!(request, error = crate::error::chain(&error), "a restore broke off");
            if left > 0 {
                return (Err(error), Sends::Nothing);
            }
            let detail = ErrorDetail {
                kind: error.kind().into(),
                field: Some("segments".to_owned()),
                message: crate::error::chain(&error),
                request_id: Exchange::current_id(),
            };
            let broken = RestoreBroken { broken: error.segment.to_string(), error: detail };
            (Ok(frame(&RestoreHead::Broken(broken))), Sends::Breaks(error))
        }
    }
}

/// Lists the objects of a bucket with their segments, in pages, so that they can be restored in bulk.
#[utoipa::path(get, tag = "Restore", path = "/v1/objects", params(ObjectsParams), responses(
    (status = 200, body = ObjectPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn list_objects(State(native): State<Native>, uri: Uri) -> Result<Json<ObjectPage>, ApiError> {
    let params = query::<ObjectsParams>(&uri)?;
    let limit = match params.limit.unwrap_or(PAGE_OBJECTS_MAX) {
        limit @ 1..=PAGE_OBJECTS_MAX => limit as usize,
        limit => return Err(ApiError::invalid("limit", format!("must be 1 to {PAGE_OBJECTS_MAX}, is {limit}"))),
    };
    let prefix = params.prefix.as_deref().unwrap_or_default();
    let after = params.after.as_deref().unwrap_or_default();
    let listing = ListQuery { prefix, delimiter: "", after, max: limit };
    let ObjectsPage { objects, next } = native.engine.objects(&params.bucket, &listing).await?;
    let info = |ObjectListed { key, object }| {
        let segments = object.segments().iter().map(ToString::to_string).collect();
        ObjectInfo { key, len: object.head().len, etag: object.head().etag.clone(), segments }
    };
    Ok(Json(ObjectPage { objects: objects.into_iter().map(info).collect(), next }))
}
