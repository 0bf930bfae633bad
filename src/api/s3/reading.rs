//! Reading objects: GET, HEAD, attributes.

use futures::{StreamExt, TryStreamExt};
use http::header::EXPIRES;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::dto::{
    Checksum, ChecksumMode, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, Metadata, StorageClass, StreamingBlob,
};
use s3s::{Body, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::set_checksum;
use super::conditions::{ReadConditions, etag, timestamp};
use super::errors::{self, OrS3};
use super::headers::check_version;
use super::objects::checksum_type;
use super::ranges::{self, Wanted};
use crate::catalog::record::{ObjectChecksum, ObjectRecord};
use crate::catalog::state::ObjectView;
use crate::error::ErrorKind;

/// What an object without a type is.
const CONTENT_TYPE_DEFAULT: &str = "binary/octet-stream";
/// An object whose file vanished is looked up again: it was replaced meanwhile.
const LOOK_UPS_MAX: usize = 3;

/// The fields that the outputs of GET and HEAD have in common.
macro_rules! describe {
    ($output:ty, $record:expr, $wanted:expr, $checksum:expr) => {{
        let (record, wanted): (&ObjectRecord, &Wanted) = ($record, $wanted);
        let checksum: Option<&ObjectChecksum> = $checksum;
        let headers = &record.headers;
        let content_type = headers.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT);
        let mut output = <$output>::default();
        output.accept_ranges = Some("bytes".to_owned());
        output.content_length = i64::try_from(wanted.bytes.end - wanted.bytes.start).ok();
        output.content_range = wanted.content_range(record.len);
        output.content_type = Some(content_type.to_owned());
        output.cache_control = headers.cache_control.clone();
        output.content_disposition = headers.content_disposition.clone();
        output.content_encoding = headers.content_encoding.clone();
        output.content_language = headers.content_language.clone();
        output.e_tag = Some(etag(&record.etag));
        output.last_modified = Some(timestamp(record.modified));
        output.metadata = Some(headers.metadata.iter().cloned().collect::<Metadata>());
        output.checksum_type = checksum.map(checksum_type);
        set_checksum!(output, checksum.map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        output
    }};
}

/// The conditions that an input of s3s has.
macro_rules! read_conditions {
    ($input:expr) => {
        ReadConditions {
            if_match: $input.if_match.take(),
            if_none_match: $input.if_none_match.take(),
            if_modified_since: $input.if_modified_since.take(),
            if_unmodified_since: $input.if_unmodified_since.take(),
        }
    };
}

impl S3Door {
    pub(super) async fn get_object(&self, mut req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let conditions = read_conditions!(req.input);
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let mut look_ups = 1;
        let (found, wanted, body) = loop {
            let found = self.existing(&input.bucket, &input.key).await?;
            conditions.check_read(&found.record)?;
            let wanted = wanted(&found, input.range, input.part_number)?;
            match self.body(&found, &wanted).await {
                Ok(body) => break (found, wanted, body),
                Err(ReadFailed::Gone) if look_ups < LOOK_UPS_MAX => look_ups += 1,
                Err(ReadFailed::Gone) => {
                    return Err(errors::unavailable("the object is being moved, repeat the request"));
                }
                Err(ReadFailed::Other(error)) => return Err(error),
            }
        };
        let checksum = shown_checksum(&found.record, input.checksum_mode.as_ref(), &wanted);
        let mut output = describe!(GetObjectOutput, &found.record, &wanted, checksum);
        output.parts_count = parts_count(&found.record, input.part_number);
        output.body = Some(body);
        Ok(S3Response::with_headers(output, raw_headers(&found.record)))
    }

    async fn body(&self, found: &ObjectView, wanted: &Wanted) -> Result<StreamingBlob, ReadFailed> {
        if wanted.bytes.is_empty() {
            return Ok(StreamingBlob::from(Body::empty()));
        }
        let stream = self.reader.object(found, wanted.bytes.clone()).await;
        let stream = stream.map_err(|error| match error.kind() {
            ErrorKind::NotFound => ReadFailed::Gone,
            _ => ReadFailed::Other(Err::<(), _>(error).or_s3().err().unwrap_or_else(|| errors::unavailable(""))),
        })?;
        let frames = stream.map_ok(Frame::data).inspect(|chunk| {
            if let Err(error) = chunk {
                tracing::warn!(error = crate::error::chain(error), "a read of the S3 door broke off");
            }
        });
        Ok(StreamingBlob::from(Body::http_body_unsync(StreamBody::new(frames))))
    }

    pub(super) async fn head_object(
        &self,
        mut req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let conditions = read_conditions!(req.input);
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let found = self.existing(&input.bucket, &input.key).await?;
        conditions.check_read(&found.record)?;
        let wanted = wanted(&found, input.range, input.part_number)?;
        let checksum = shown_checksum(&found.record, input.checksum_mode.as_ref(), &wanted);
        let mut output = describe!(HeadObjectOutput, &found.record, &wanted, checksum);
        output.parts_count = parts_count(&found.record, input.part_number);
        Ok(S3Response::with_headers(output, raw_headers(&found.record)))
    }

    pub(super) async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let record = self.existing(&input.bucket, &input.key).await?.record;
        // The header may hold several names in one value.
        let asked: Vec<&str> =
            input.object_attributes.iter().flat_map(|names| names.as_str().split(',')).map(str::trim).collect();
        let asks = |name: &str| asked.contains(&name);
        let parts = record.part_lens.len();
        let output = GetObjectAttributesOutput {
            checksum: record.checksum.as_ref().filter(|_| asks("Checksum")).map(checksum_attribute),
            e_tag: asks("ETag").then(|| etag(&record.etag)),
            last_modified: Some(timestamp(record.modified)),
            object_parts: (asks("ObjectParts") && parts > 0).then(|| GetObjectAttributesParts {
                total_parts_count: i32::try_from(parts).ok(),
                ..Default::default()
            }),
            object_size: i64::try_from(record.len).ok().filter(|_| asks("ObjectSize")),
            storage_class: asks("StorageClass").then(|| StorageClass::from_static(StorageClass::STANDARD)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}

/// Why a body cannot be read.
enum ReadFailed {
    /// Its bytes are not where they were.
    Gone,
    Other(s3s::S3Error),
}

fn wanted(found: &ObjectView, range: Option<s3s::dto::Range>, part_number: Option<i32>) -> S3Result<Wanted> {
    ranges::of_read(range, part_number, found.record.len, &found.record.part_lens)
}

/// The checksum of the whole does not belong to a part of it.
fn shown_checksum<'a>(
    record: &'a ObjectRecord,
    mode: Option<&ChecksumMode>,
    wanted: &Wanted,
) -> Option<&'a ObjectChecksum> {
    let asked = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    record.checksum.as_ref().filter(|_| asked && !wanted.partial)
}

fn checksum_attribute(checksum: &ObjectChecksum) -> Checksum {
    let mut attribute = Checksum { checksum_type: Some(checksum_type(checksum)), ..Default::default() };
    set_checksum!(attribute, Some((checksum.algorithm.as_str(), checksum.value.clone())));
    attribute
}

fn parts_count(record: &ObjectRecord, part_number: Option<i32>) -> Option<i32> {
    let count = i32::try_from(record.part_lens.len()).ok()?;
    part_number.filter(|_| count > 0).map(|_| count)
}

/// What is given back as the client wrote it, not as s3s would.
fn raw_headers(record: &ObjectRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(value) = record.headers.expires.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(EXPIRES, value);
    }
    headers
}
