//! One segment in a request.

use std::ops::Range;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::parts::{Native, about_of, check_crc_form, header_text, idempotency_key, job_of, query};
use crate::api::body::{BodySource, Framed, announced_len};
use crate::api::status::ApiError;
use crate::engine::SegmentView;
use crate::model::{CheckpointId, Handle};
use esker_client::wire::{CRC_HEADER, ErrorBody, ListParams, ListedSegment, PutParams, SegmentInfo, SegmentPage};

/// Stores one segment. Answers once it is durable.
#[utoipa::path(post, tag = "Segments", path = "/v1/jobs/{job}/segments", params(("job" = String, Path), PutParams,
    ("idempotency-key" = Option<String>, Header, description = "A repeat with the same key gets the same segment"),
    ("x-esker-crc32c" = Option<String>, Header, description = "CRC-32C of the body, 8 hex digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 201, body = SegmentInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 408, body = ErrorBody), (status = 409, body = ErrorBody), (status = 411, body = ErrorBody),
    (status = 413, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn put_segment(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let about = about_of(job_of(&job)?, &query(&head.uri)?)?;
    let crc = header_text(&head.headers, CRC_HEADER)?.map(str::to_owned);
    check_crc_form(crc.as_deref())?;
    let key = idempotency_key(header_text(&head.headers, "idempotency-key")?)?;
    let len = announced_len(&head.headers, native.engine.settings().limits.segment_bytes_max)?;
    // First: whatever becomes of the job while the body comes, the segment is of this run of it.
    let run = native.engine.would_take(&about.job, about.checkpoint.unwrap_or(CheckpointId(0)))?;
    native.check_pending(&about.job, about.checkpoint).await?;
    let mut source = BodySource::new(body.into_data_stream());
    let body = Framed::new(&mut source, &native.admission, len)
        .with_crc(crc.as_deref())
        .waiting(head.headers.contains_key(header::EXPECT));
    let stored = native.engine.put_segment(about, key, Some(run), body).await;
    let handle = stored.map_err(|rejected| native.rejected(rejected))?;
    Ok((StatusCode::CREATED, Json(SegmentInfo::from(&handle))).into_response())
}

/// Lists segments of a job in pages.
#[utoipa::path(get, tag = "Segments", path = "/v1/jobs/{job}/segments", params(("job" = String, Path), ListParams), responses(
    (status = 200, body = SegmentPage), (status = 404, body = ErrorBody)))]
pub(super) async fn list_segments(
    State(native): State<Native>,
    Path(job): Path<String>,
    uri: Uri,
) -> Result<Json<SegmentPage>, ApiError> {
    let (job, params) = (job_of(&job)?, query::<ListParams>(&uri)?);
    let after = params.after.as_deref().map(str::parse).transpose()?;
    let limit = match params.limit.unwrap_or(1000) {
        limit @ 1..=10_000 => limit as usize,
        limit => return Err(ApiError::invalid("limit", format!("must be 1 to 10000, is {limit}"))),
    };
    let checkpoint = params.checkpoint.map(CheckpointId);
    let mut views = native.engine.segments_of(&job, checkpoint, after, limit + 1).await?;
    let more = views.len() > limit;
    views.truncate(limit);
    let next = views.last().filter(|_| more).map(|view| view.id.to_string());
    Ok(Json(SegmentPage { segments: views.iter().map(ListedSegment::from).collect(), next }))
}

/// Reads a segment or a range of it.
#[utoipa::path(get, tag = "Segments", path = "/v1/segments/{segment}", params(("segment" = String, Path),
    ("range" = Option<String>, Header, description = "bytes=a-b, bytes=a- or bytes=-n")), responses(
    (status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
    (status = 404, body = ErrorBody), (status = 416, body = ErrorBody)))]
pub(super) async fn get_segment(
    State(native): State<Native>,
    Path(segment): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let view = native.engine.segment(segment.parse()?)?;
    read(&native, &view, &headers).await
}

/// Reads the segment that a handle names, wherever it is now. The slashes of the handle may be encoded or not.
#[utoipa::path(get, tag = "Segments", path = "/v1/handles/{*handle}", params(("handle" = String, Path)), responses(
    (status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 416, body = ErrorBody)))]
pub(super) async fn get_handle(
    State(native): State<Native>,
    Path(handle): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let handle: Handle = handle.parse()?;
    let view = native.engine.segment_of(&handle)?;
    read(&native, &view, &headers).await
}

async fn read(native: &Native, view: &SegmentView, headers: &HeaderMap) -> Result<Response, ApiError> {
    let len = view.location.len();
    let crc = format!("{:08x}", view.crc.whole);
    let range = header_text(headers, "range")?.map(|text| parse_range(text, len)).transpose()?.flatten();
    let wanted = range.clone().unwrap_or(0..len);
    let bytes = native.engine.read_segment(view.id, wanted.clone()).await?;
    let body = HttpBody::from_stream(bytes.map(|piece| {
        piece.inspect_err(|error| {
            let request = crate::api::exchange::Exchange::current_id();
            tracing::warn!(request, error = crate::error::chain(error), "an answer broke off");
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

/// One range of `bytes=`; `None` for a header that is not of this form, which RFC 9110 says to ignore.
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
}
