//! Copying objects, whole and as parts of uploads.
//!
//! Within a shard a copy is a reference: no byte is read or written. The bytes of a source in another shard are read there and written
//! here, like those of a client: the source is looked at once, and read only if it has the same entity tag still, so another put of it
//! is before the copy or behind it.

use futures::{Stream, StreamExt};
use s3s::dto::{CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETagCondition, MetadataDirective};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, Algorithm, Claims, EtagNeeds, set_checksum};
use super::conditions::{self, ReadConditions, etag, timestamp};
use super::errors::{self, OrS3, not_implemented, refuse};
use super::headers::{self, object_headers};
use super::intake::Intake;
use super::objects::checksum_type;
use super::tags::{replaces_tags, sent_tags};
use super::xml::MoreElements;
use crate::engine::objects::{NewCopy, NewObject, Put};
use crate::engine::{Condition, EngineError, ObjectView};
use crate::error::ErrorKind;
use crate::model::{ObjectChecksum, ObjectHead, ObjectHeaders};

/// What is said of a copy, beside what s3s reads.
struct CopyAcross {
    /// The shard of the source.
    shard: u32,
    /// Headers in place of those of the source.
    headers: Option<ObjectHeaders>,
    /// Tags in place of those of the source.
    tags: Option<Vec<(String, String)>>,
    condition: Condition,
    /// The storage class of the copy.
    storage_class: Option<String>,
    /// The checksum that is asked for.
    algorithm: Option<Algorithm>,
}

/// The object that a part is copied of.
pub(super) enum PartSource {
    Here(ObjectView),
    There(u32, Box<ObjectHead>),
}

impl PartSource {
    pub(super) fn head(&self) -> &ObjectHead {
        match self {
            Self::Here(object) => object.head(),
            Self::There(_, head) => head,
        }
    }
}

impl S3Door {
    /// The object that a copy is made of, if the conditions on it hold; and its entity tag if there are any.
    pub(super) async fn copy_source(
        &self,
        source: &CopySource,
        conditions: ReadConditions,
    ) -> S3Result<(ObjectView, Option<String>)> {
        let (bucket, key) = bucket_source(source)?;
        let found = self.engine.object(bucket, key).await.or_s3()?;
        conditions.check_source(found.head())?;
        let etag = conditions.any().then(|| found.head().etag.clone());
        Ok((found, etag))
    }

    /// Copies by reference: no byte is read or written, unless a checksum is asked for that the source does not have; then
    /// its bytes are read.
    pub(super) async fn copy_object(
        &self,
        mut req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        headers::check_storage_class(&req.headers)?;
        let replace = match req.input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
            None | Some("COPY") => false,
            Some("REPLACE") => true,
            Some(other) => {
                let message = format!("x-amz-metadata-directive must be COPY or REPLACE, is {other:?}");
                return Err(refuse(S3ErrorCode::InvalidArgument, message));
            }
        };
        let headers = if replace { Some(object_headers!(req)) } else { None };
        let tags = if replaces_tags(&req.headers)? { Some(sent_tags(&req.headers)?) } else { None };
        let condition = write_condition(&req)?;
        let storage_class = headers::storage_class(&req.headers);
        let algorithm =
            req.input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?;
        let CopyObjectInput { bucket, key, copy_source, .. } = &req.input;
        self.check_write(key, headers.as_ref().unwrap_or(&ObjectHeaders::default()))?;
        let (from_bucket, from_key) = bucket_source(copy_source)?;
        let changes =
            replace || tags.is_some() || algorithm.is_some() || req.headers.contains_key("x-amz-storage-class");
        if (from_bucket, from_key) == (bucket, key) && !changes {
            let message = "a copy of an object onto itself has to change something: set x-amz-metadata-directive";
            return Err(refuse(S3ErrorCode::InvalidRequest, message));
        }
        self.engine.check_bucket(bucket).or_s3()?;
        if let Some(shard) = self.siblings.as_ref().and_then(|siblings| siblings.elsewhere(from_bucket, from_key)) {
            let copy = CopyAcross { shard, headers, tags, condition, storage_class, algorithm };
            return self.copy_from_another_shard(req.input, copy).await;
        }
        let (source, mut if_match) = self.copy_source(copy_source, source_conditions!(req.input)).await?;
        let checksum = match algorithm {
            Some(algorithm) => self.other_checksum(&source, algorithm).await?,
            None => None,
        };
        if checksum.is_some() {
            // It is that of the bytes that were read.
            if_match = Some(source.head().etag.clone());
        }

        let from = (from_bucket.to_owned(), from_key.to_owned());
        let (bucket, key) = (bucket.clone(), key.clone());
        let copy = NewCopy { bucket, key, condition, from, if_match, headers, tags, storage_class, checksum };
        Ok(copied(self.engine.copy_object(copy).await.or_s3()?))
    }

    /// The checksum of an object's bytes, if it is not the one that the object has.
    async fn other_checksum(&self, source: &ObjectView, algorithm: Algorithm) -> S3Result<Option<ObjectChecksum>> {
        let record = source.head();
        let has = record.checksum.as_ref();
        if has.is_some_and(|checksum| checksum.algorithm == algorithm.name() && !checksum.composite) {
            return Ok(None);
        }
        let mut claims = Claims::default();
        claims.also(algorithm);
        let mut hasher = claims.hasher(EtagNeeds::Nothing);
        if record.len > 0 {
            let mut bytes = self.engine.read_object(source, 0..record.len).await.or_s3()?;
            while let Some(chunk) = bytes.next().await {
                hasher.update(&chunk.or_s3()?);
            }
        }
        Ok(hasher.finish(None)?.checksums.pop())
    }

    async fn copy_from_another_shard(
        &self,
        input: CopyObjectInput,
        copy: CopyAcross,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let CopyAcross { shard, headers, tags, condition, storage_class, algorithm } = copy;
        let head = self.head_elsewhere(shard, &input.copy_source, source_conditions!(input)).await?;
        self.check_body_len(head.len, self.engine.settings().limits.object_bytes_max)?;
        let mut intake = self.intake_of(shard, &input.copy_source, &head, 0..head.len).await?;
        // It gets the kind of checksum that the source has, where one over all bytes can be.
        let of_source = head.checksum.as_ref().filter(|checksum| !checksum.composite);
        let of_source = of_source.and_then(|checksum| Algorithm::parse(&checksum.algorithm).ok());
        match algorithm.or(of_source) {
            Some(algorithm) => intake.claims_mut().also(algorithm),
            None => intake.claims_mut().or_default(),
        }
        let tags = tags.unwrap_or_else(|| head.headers.tags.clone());
        let headers = ObjectHeaders { storage_class, tags, ..headers.unwrap_or(head.headers) };
        let object = NewObject { bucket: input.bucket, key: input.key, condition, headers };
        let put = self.engine.put_object(object, intake.hashed(self.etag_needs())).await.or_s3()?;
        Ok(copied(put))
    }

    /// The object that a part is copied of, wherever it is, if the conditions on it hold.
    pub(super) async fn part_source(&self, source: &CopySource, conditions: ReadConditions) -> S3Result<PartSource> {
        let (bucket, key) = bucket_source(source)?;
        match self.siblings.as_ref().and_then(|siblings| siblings.elsewhere(bucket, key)) {
            Some(shard) => Ok(PartSource::There(shard, self.head_elsewhere(shard, source, conditions).await?.into())),
            None => Ok(PartSource::Here(self.copy_source(source, conditions).await?.0)),
        }
    }

    async fn head_elsewhere(
        &self,
        shard: u32,
        source: &CopySource,
        conditions: ReadConditions,
    ) -> S3Result<ObjectHead> {
        let (bucket, key) = bucket_source(source)?;
        let siblings = self.siblings.as_ref().ok_or(EngineError::Unexpected("a copy")).or_s3()?;
        let head = siblings.head(&self.engine, shard, bucket, key).await.or_s3()?;
        conditions.check_source(&head)?;
        Ok(head)
    }

    /// Bytes of an object of another shard, as if they came with a request.
    pub(super) async fn intake_of(
        &self,
        shard: u32,
        source: &CopySource,
        head: &ObjectHead,
        range: std::ops::Range<u64>,
    ) -> S3Result<Intake> {
        let len = range.end - range.start;
        if len == 0 {
            return Ok(Intake::of_stored(futures::stream::empty(), 0));
        }
        let siblings = self.siblings.as_ref().ok_or(EngineError::Unexpected("a copy")).or_s3()?;
        let bytes = siblings.read(&self.engine, shard, bucket_source(source)?, &head.etag, range).await.or_s3()?;
        Ok(Intake::of_stored(whole(bytes, len), len))
    }
}

/// A stream that ends with an error where it breaks off.
fn whole<E>(
    bytes: impl Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
    len: u64,
) -> impl Stream<Item = S3Result<bytes::Bytes>> + Send + 'static
where
    E: std::fmt::Display,
{
    let broken = || -> S3Error {
        let message = "the source of the copy broke off, repeat the request".to_owned();
        errors::engine(&EngineError::Elsewhere { kind: ErrorKind::Unavailable, message })
    };
    let came = bytes.scan(0_u64, |seen, piece| {
        *seen += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        std::future::ready(Some((piece.map_err(|error| error.to_string()), *seen)))
    });
    let mut last = 0;
    came.map(Some).chain(futures::stream::once(std::future::ready(None))).filter_map(move |piece| {
        std::future::ready(match piece {
            Some((Ok(piece), seen)) => {
                last = seen;
                Some(Ok(piece))
            }
            Some((Err(why), _)) => {
                tracing::debug!(why, "the source of a copy broke off");
                Some(Err(broken()))
            }
            None => (last < len).then(|| Err(broken())),
        })
    })
}

/// The answer to a copy.
fn copied(put: Put) -> S3Response<CopyObjectOutput> {
    let mut result = CopyObjectResult {
        e_tag: Some(etag(&put.etag)),
        last_modified: Some(timestamp(put.modified)),
        ..Default::default()
    };
    result.checksum_type = put.checksum.as_ref().map(|sum| checksum_type(sum.composite));
    set_checksum!(result, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
    let mut response = S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() });
    if let Some(checksum) = &put.checksum {
        let element = checksums::more_element(&checksum.algorithm, &checksum.value);
        response.extensions.insert(MoreElements(vec![("CopyObjectResult", element)]));
    }
    response
}

/// Conditions on the object that a copy replaces; s3s does not read them for this operation.
fn write_condition(req: &S3Request<CopyObjectInput>) -> S3Result<Condition> {
    let condition = |name: &str| {
        let Some(value) = req.headers.get(name) else { return Ok(None) };
        ETagCondition::parse_http_header(value.as_bytes())
            .map(Some)
            .map_err(|_| refuse(S3ErrorCode::InvalidArgument, format!("the header {name} is not an entity tag")))
    };
    conditions::of_put(condition("if-match")?.as_ref(), condition("if-none-match")?.as_ref())
}

/// Bucket and key that a copy is made of.
pub(super) fn bucket_source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => {
            headers::check_version(version_id.as_deref())?;
            if key.is_empty() {
                return Err(refuse(S3ErrorCode::InvalidArgument, "x-amz-copy-source names no key"));
            }
            Ok((bucket, key))
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(not_implemented("copying from an access point"))
        }
    }
}

/// The conditions on a copy's source that an input of s3s has.
macro_rules! source_conditions {
    ($input:expr) => {
        $crate::api::s3::conditions::ReadConditions {
            if_match: $input.copy_source_if_match.clone(),
            if_none_match: $input.copy_source_if_none_match.clone(),
            if_modified_since: $input.copy_source_if_modified_since.clone(),
            if_unmodified_since: $input.copy_source_if_unmodified_since.clone(),
            lists: Default::default(),
        }
    };
}
pub(super) use source_conditions;
