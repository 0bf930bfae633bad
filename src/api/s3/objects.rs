//! Writing and deleting objects.

use futures::StreamExt;
use s3s::dto::{
    ChecksumType, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETagCondition, Error,
    MetadataDirective, PutObjectInput, PutObjectOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, Algorithm, Claims, EtagNeeds, set_checksum};
use super::conditions::{self, ReadConditions, etag, timestamp};
use super::errors::{OrS3, not_implemented, refuse};
use super::grants::{denied, grants};
use super::headers::{self, object_headers};
use super::intake::Intake;
use super::xml::MoreElements;
use crate::config::EtagKind;
use crate::engine::objects::{NewCopy, NewObject};
use crate::engine::{Condition, ObjectToDelete, ObjectView};
use crate::model::{ObjectChecksum, ObjectHeaders};

/// The largest object that one PUT may bring, as in S3.
const SINGLE_PUT_BYTES_MAX: u64 = 5 << 30;
/// The conditions on which nothing is deleted.
const DELETE_CONDITIONS: &str = "deleting on the condition of a size or a time";
/// Keys that one request may delete, as in S3.
const DELETED_KEYS_MAX: usize = 1000;

impl S3Door {
    pub(super) async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        headers::check_storage_class(&req.headers)?;
        let headers = object_headers!(req);
        self.check_write(&req.input.key, &headers)?;
        let condition = conditions::of_put(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let body = req.input.body.take();
        let mut intake = Intake::of(&mut req, body)?;
        intake.claims_mut().or_default();
        self.check_body_len(intake.len(), self.engine.settings().limits.object_bytes_max)?;
        let PutObjectInput { bucket, key, .. } = req.input;
        let object = NewObject { bucket, key, condition, headers };
        let put = self.engine.put_object(object, intake.hashed(self.etag_needs())).await.or_s3()?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&put.etag)), ..Default::default() };
        output.checksum_type = put.checksum.as_ref().map(|sum| checksum_type(sum.composite));
        set_checksum!(output, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        let mut response = S3Response::new(output);
        if let Some(checksum) = &put.checksum {
            checksums::add_header(&mut response.headers, &checksum.algorithm, &checksum.value);
        }
        Ok(response)
    }

    /// Refuses keys and metadata beyond the limits.
    pub(super) fn check_write(&self, key: &str, headers: &ObjectHeaders) -> S3Result<()> {
        let limits = &self.engine.settings().limits;
        if key.len() > limits.key_bytes_max {
            let message = format!("the key has {} bytes, at most {} are allowed", key.len(), limits.key_bytes_max);
            return Err(refuse(S3ErrorCode::KeyTooLongError, message));
        }
        headers::check_metadata(headers, limits.metadata_bytes_max)
    }

    /// Refuses bodies beyond the limits.
    pub(super) fn check_body_len(&self, len: u64, object_bytes_max: u64) -> S3Result<()> {
        let bytes_max = SINGLE_PUT_BYTES_MAX.min(self.engine.settings().limits.segment_bytes_max).min(object_bytes_max);
        if len > bytes_max {
            let message = format!("{len} bytes are more than one request may bring, which is {bytes_max}");
            return Err(refuse(S3ErrorCode::EntityTooLarge, message));
        }
        Ok(())
    }

    /// The digest that the entity tag of this object needs.
    pub(super) fn etag_needs(&self) -> EtagNeeds {
        match self.engine.settings().server.etag {
            EtagKind::Md5 => EtagNeeds::Md5,
            EtagKind::Opaque => EtagNeeds::Nothing,
        }
    }

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
        let condition = write_condition(&req)?;
        let storage_class = headers::storage_class(&req.headers);
        let algorithm =
            req.input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?;
        let CopyObjectInput { bucket, key, copy_source, .. } = &req.input;
        self.check_write(key, headers.as_ref().unwrap_or(&ObjectHeaders::default()))?;
        let (from_bucket, from_key) = bucket_source(copy_source)?;
        let changes = replace || algorithm.is_some() || req.headers.contains_key("x-amz-storage-class");
        if (from_bucket, from_key) == (bucket, key) && !changes {
            let message = "a copy of an object onto itself has to change something: set x-amz-metadata-directive";
            return Err(refuse(S3ErrorCode::InvalidRequest, message));
        }
        self.engine.check_bucket(bucket).or_s3()?;
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
        let copy = NewCopy { bucket, key, condition, from, if_match, headers, storage_class, checksum };
        let put = self.engine.copy_object(copy).await.or_s3()?;

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
        Ok(response)
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

    pub(super) async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let DeleteObjectInput { bucket, key, if_match, version_id, .. } = req.input;
        headers::check_version(version_id.as_deref())?;
        let if_match = if_match.map(|condition| match condition {
            ETagCondition::Any => "*".to_owned(),
            ETagCondition::ETag(etag) => etag.into_value(),
        });
        let doomed = vec![ObjectToDelete { key, if_match, if_put_at: None }];
        let answers = self.engine.delete_objects(&bucket, doomed).await.or_s3()?;
        answers.into_iter().try_for_each(|answer| answer).or_s3()?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    /// Deletes many keys. Those that do not exist count as deleted, and so do directories that a client may not touch
    /// because they lie above what it may: S3A deletes the markers of all ancestors and would never stop trying.
    pub(super) async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let grants = grants(&self.keys, &req);
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if delete.objects.is_empty() || delete.objects.len() > DELETED_KEYS_MAX {
            let message = format!("{} keys are named, 1 to {DELETED_KEYS_MAX} are allowed", delete.objects.len());
            return Err(refuse(S3ErrorCode::MalformedXML, message));
        }
        if delete.objects.iter().any(|object| object.size.is_some() || object.last_modified_time.is_some()) {
            // Of a general purpose bucket, S3 does not know them either.
            return Err(not_implemented(DELETE_CONDITIONS));
        }
        self.engine.check_bucket(&bucket).or_s3()?;
        let mut answers: Vec<(String, S3Result<()>)> = Vec::with_capacity(delete.objects.len());
        let (mut doomed, mut places) = (vec![], vec![]);
        for object in delete.objects {
            let checked = headers::check_version(object.version_id.as_deref()).and_then(|()| {
                let may = grants.write(&bucket, &object.key);
                if may || grants.ignore_delete(&bucket, &object.key) { Ok(may) } else { Err(denied()) }
            });
            if matches!(checked, Ok(true)) {
                places.push(answers.len());
                let if_match = object.e_tag.map(|etag| etag.into_value());
                doomed.push(ObjectToDelete { key: object.key.clone(), if_match, if_put_at: None });
            }
            answers.push((object.key, checked.map(|_| ())));
        }
        if !doomed.is_empty() {
            let deleted = self.engine.delete_objects(&bucket, doomed).await.or_s3()?;
            for (place, answer) in places.into_iter().zip(deleted) {
                answers[place].1 = answer.or_s3();
            }
        }
        Ok(S3Response::new(deleted(answers, delete.quiet.unwrap_or(false))))
    }
}

fn deleted(answers: Vec<(String, S3Result<()>)>, quiet: bool) -> DeleteObjectsOutput {
    let (mut deleted, mut failed) = (vec![], vec![]);
    for (key, answer) in answers {
        match answer {
            Ok(()) if quiet => {}
            Ok(()) => deleted.push(DeletedObject { key: Some(key), ..Default::default() }),
            Err(error) => failed.push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id: None,
            }),
        }
    }
    let some = |errors: Vec<Error>| (!errors.is_empty()).then_some(errors);
    DeleteObjectsOutput {
        deleted: (!deleted.is_empty()).then_some(deleted),
        errors: some(failed),
        ..Default::default()
    }
}

/// The type of a checksum: over its parts or over the whole object.
pub(super) fn checksum_type(composite: bool) -> ChecksumType {
    let name = if composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
    ChecksumType::from_static(name)
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
