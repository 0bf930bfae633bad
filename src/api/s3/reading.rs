//! Reading objects: GET, HEAD, attributes.

use std::borrow::Cow;

use futures::{StreamExt, TryStreamExt};
use http::header::EXPIRES;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::dto::{
    Checksum, ChecksumMode, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, Metadata, ObjectPart, StorageClass,
    StreamingBlob,
};
use s3s::{Body, S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, set_checksum};
use super::conditions::{ReadConditions, TagLists, etag, range_counts, timestamp};
use super::errors::{self, OrS3, refuse};
use super::headers::{STANDARD, check_version};
use super::listing::page_size;
use super::objects::checksum_type;
use super::ranges::{self, RequestedRange};
use super::tags::TAGGING_COUNT;
use super::xml::MoreElements;
use crate::api::exchange::Exchange;
use crate::engine::ObjectView;
use crate::error::ErrorKind;
use crate::model::{ObjectChecksum, ObjectHead};

/// The content type of an object that has none.
const CONTENT_TYPE_DEFAULT: &str = "binary/octet-stream";
/// An object whose file vanished is looked up again: it was replaced meanwhile.
const LOOK_UPS_MAX: usize = 3;

/// The fields that the outputs of GET and HEAD have in common.
macro_rules! describe {
    ($output:ty, $head:expr, $wanted:expr, $checksum:expr) => {{
        let (head, wanted): (&ObjectHead, &RequestedRange) = ($head, $wanted);
        let checksum: Option<&ObjectChecksum> = $checksum;
        let headers = &head.headers;
        let content_type = headers.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT);
        let mut output = <$output>::default();
        output.accept_ranges = Some("bytes".to_owned());
        output.content_length = i64::try_from(wanted.bytes.end - wanted.bytes.start).ok();
        output.content_range = wanted.content_range(head.len);
        output.content_type = Some(content_type.to_owned());
        output.cache_control = headers.cache_control.clone();
        output.content_disposition = headers.content_disposition.clone();
        output.content_encoding = headers.content_encoding.clone();
        output.content_language = headers.content_language.clone();
        output.e_tag = Some(etag(&head.etag));
        output.last_modified = Some(timestamp(head.modified));
        output.metadata = Some(headers.metadata.iter().cloned().collect::<Metadata>());
        output.checksum_type = checksum.map(|sum| checksum_type(sum.composite));
        output.storage_class = headers.storage_class.clone().map(StorageClass::from);
        set_checksum!(output, checksum.map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        output
    }};
}

/// The conditions that an input of s3s has.
macro_rules! read_conditions {
    ($input:expr, $lists:expr) => {
        ReadConditions {
            if_match: $input.if_match.take(),
            if_none_match: $input.if_none_match.take(),
            if_modified_since: $input.if_modified_since.take(),
            if_unmodified_since: $input.if_unmodified_since.take(),
            lists: $lists.unwrap_or_default(),
        }
    };
}

impl S3Door {
    pub(super) async fn get_object(&self, mut req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let conditions = read_conditions!(req.input, req.extensions.remove::<TagLists>());
        let (input, headers) = (req.input, req.headers);
        check_version(input.version_id.as_deref())?;
        let mut look_ups = 1;
        let (found, wanted, body) = loop {
            let found = self.engine.object(&input.bucket, &input.key).await.or_s3()?;
            conditions.check_read(found.head())?;
            let wanted = wanted(&found, input.range, input.part_number, &headers)?;
            match self.body(&found, &wanted).await {
                Ok(body) => break (found, wanted, body),
                Err(ReadFailed::Gone) if look_ups < LOOK_UPS_MAX => look_ups += 1,
                Err(ReadFailed::Gone) => {
                    return Err(errors::unavailable("the object is being moved, repeat the request"));
                }
                Err(ReadFailed::Other(error)) => return Err(error),
            }
        };
        let asked = input.checksum_mode.as_ref();
        let checksum = shown_checksum(found.head(), asked, &wanted, input.part_number);
        let mut output = describe!(GetObjectOutput, found.head(), &wanted, checksum.as_deref());
        output.parts_count = parts_count(found.head(), input.part_number);
        output.body = Some(body);
        Ok(S3Response::with_headers(output, raw_headers(found.head(), checksum.as_deref())))
    }

    async fn body(&self, found: &ObjectView, wanted: &RequestedRange) -> Result<StreamingBlob, ReadFailed> {
        if wanted.bytes.is_empty() {
            return Ok(StreamingBlob::from(Body::empty()));
        }
        let stream = self.engine.read_object(found, wanted.bytes.clone()).await;
        let stream = stream.map_err(|error| match error.kind() {
            ErrorKind::NotFound => ReadFailed::Gone,
            _ => ReadFailed::Other(errors::engine(&error)),
        })?;
        let frames = stream.map_ok(Frame::data).inspect(|chunk| {
            if let Err(error) = chunk {
                tracing::warn!(
                    request = Exchange::current_id(),
                    error = crate::error::chain(error),
                    "a read of the S3 door broke off"
                );
            }
        });
        Ok(StreamingBlob::from(Body::http_body_unsync(StreamBody::new(frames))))
    }

    pub(super) async fn head_object(
        &self,
        mut req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let conditions = read_conditions!(req.input, req.extensions.remove::<TagLists>());
        let (input, headers) = (req.input, req.headers);
        check_version(input.version_id.as_deref())?;
        let found = self.engine.object(&input.bucket, &input.key).await.or_s3()?;
        conditions.check_read(found.head())?;
        let wanted = wanted(&found, input.range, input.part_number, &headers)?;
        let asked = input.checksum_mode.as_ref();
        let checksum = shown_checksum(found.head(), asked, &wanted, input.part_number);
        let mut output = describe!(HeadObjectOutput, found.head(), &wanted, checksum.as_deref());
        output.parts_count = parts_count(found.head(), input.part_number);
        Ok(S3Response::with_headers(output, raw_headers(found.head(), checksum.as_deref())))
    }

    pub(super) async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let found = self.engine.object(&input.bucket, &input.key).await.or_s3()?;
        let head = found.head();
        // The header may hold several names in one value.
        let asked: Vec<&str> =
            input.object_attributes.iter().flat_map(|names| names.as_str().split(',')).map(str::trim).collect();
        let asks = |name: &str| asked.contains(&name);
        let parts =
            asks("ObjectParts").then(|| listed_parts(head, input.max_parts, input.part_number_marker)).transpose()?;
        let mut more = vec![];
        if let Some(checksum) = head.checksum.as_ref().filter(|_| asks("Checksum")) {
            more.push(("Checksum", checksums::more_element(&checksum.algorithm, &checksum.value)));
        }
        let parts = parts.flatten().map(|(parts, elements)| {
            more.extend(elements.into_iter().map(|element| ("Part", element)));
            parts
        });
        let class = head.headers.storage_class.clone().unwrap_or_else(|| STANDARD.to_owned());
        let output = GetObjectAttributesOutput {
            checksum: head.checksum.as_ref().filter(|_| asks("Checksum")).map(checksum_attribute),
            e_tag: asks("ETag").then(|| etag(&head.etag)),
            last_modified: Some(timestamp(head.modified)),
            object_parts: parts,
            object_size: i64::try_from(head.len).ok().filter(|_| asks("ObjectSize")),
            storage_class: asks("StorageClass").then(|| StorageClass::from(class)),
            ..Default::default()
        };
        let mut response = S3Response::new(output);
        response.extensions.insert(MoreElements(more));
        Ok(response)
    }
}

/// Why a body cannot be read.
enum ReadFailed {
    /// Its bytes are not where they were.
    Gone,
    Other(s3s::S3Error),
}

fn wanted(
    found: &ObjectView,
    range: Option<s3s::dto::Range>,
    part_number: Option<i32>,
    headers: &HeaderMap,
) -> S3Result<RequestedRange> {
    let range = range.filter(|_| range_counts(headers, found.head()));
    ranges::of_read(range, part_number, found.head().len, &found.head().part_lens)
}

/// The checksum of what is read: the whole, or a part by its number. A range has none.
fn shown_checksum<'a>(
    head: &'a ObjectHead,
    mode: Option<&ChecksumMode>,
    wanted: &RequestedRange,
    part_number: Option<i32>,
) -> Option<Cow<'a, ObjectChecksum>> {
    let asked = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    let whole = head.checksum.as_ref().filter(|_| asked)?;
    match part_number.and_then(|number| usize::try_from(number).ok()?.checked_sub(1)) {
        Some(part) if !head.part_lens.is_empty() => {
            let (algorithm, value) = (whole.algorithm.clone(), whole.parts.get(part)?.clone());
            Some(Cow::Owned(ObjectChecksum { algorithm, value, composite: whole.composite, parts: vec![] }))
        }
        // It came in one piece, which is part 1.
        Some(_) => Some(Cow::Borrowed(whole)),
        None => Some(Cow::Borrowed(whole)).filter(|_| !wanted.partial),
    }
}

/// A page of an object's parts, and what s3s has no fields for in each; `None` if it came in one piece. As on S3, parts are
/// named only where they have checksums.
fn listed_parts(
    head: &ObjectHead,
    max_parts: Option<i32>,
    marker: Option<i32>,
) -> S3Result<Option<(GetObjectAttributesParts, Vec<String>)>> {
    let count = head.part_lens.len();
    if count == 0 {
        return Ok(None);
    }
    let mut listed = GetObjectAttributesParts { total_parts_count: i32::try_from(count).ok(), ..Default::default() };
    let Some(checksum) = head.checksum.as_ref().filter(|checksum| checksum.parts.len() == count) else {
        return Ok(Some((listed, vec![])));
    };
    let max = page_size(max_parts, "max-parts")?;
    let marker = marker.unwrap_or(0);
    let from = usize::try_from(marker).map_err(|_| {
        refuse(S3ErrorCode::InvalidArgument, format!("part-number-marker must not be negative, is {marker}"))
    })?;
    let take = usize::try_from(max).unwrap_or(0);
    let (mut parts, mut elements) = (vec![], vec![]);
    for (index, (len, value)) in head.part_lens.iter().zip(&checksum.parts).enumerate().skip(from).take(take) {
        let part_number = i32::try_from(index + 1).ok();
        let mut part = ObjectPart { part_number, size: i64::try_from(*len).ok(), ..Default::default() };
        set_checksum!(part, Some((checksum.algorithm.as_str(), value.clone())));
        parts.push(part);
        elements.push(checksums::more_element(&checksum.algorithm, value));
    }
    listed.is_truncated = Some(from + parts.len() < count);
    listed.max_parts = Some(max);
    listed.part_number_marker = Some(marker);
    listed.next_part_number_marker = parts.last().and_then(|part| part.part_number);
    listed.parts = Some(parts);
    Ok(Some((listed, elements)))
}

fn checksum_attribute(checksum: &ObjectChecksum) -> Checksum {
    let mut attribute = Checksum { checksum_type: Some(checksum_type(checksum.composite)), ..Default::default() };
    set_checksum!(attribute, Some((checksum.algorithm.as_str(), checksum.value.clone())));
    attribute
}

fn parts_count(head: &ObjectHead, part_number: Option<i32>) -> Option<i32> {
    let count = i32::try_from(head.part_lens.len()).ok()?;
    part_number.filter(|_| count > 0).map(|_| count)
}

/// Headers that are given back as the client wrote them, not as s3s would, and those that s3s has no fields for.
fn raw_headers(head: &ObjectHead, checksum: Option<&ObjectChecksum>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(checksum) = checksum {
        checksums::add_header(&mut headers, &checksum.algorithm, &checksum.value);
    }
    if let Some(value) = head.headers.expires.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(EXPIRES, value);
    }
    if !head.headers.tags.is_empty() {
        headers.insert(TAGGING_COUNT, head.headers.tags.len().into());
    }
    headers
}
