//! Writing and deleting objects.

use s3s::dto::{
    ChecksumType, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETagCondition, Error,
    MetadataDirective, PutObjectInput, PutObjectOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::set_checksum;
use super::conditions::{self, ReadConditions, etag, timestamp};
use super::errors::{self, OrS3, not_implemented, refuse};
use super::headers::{self, object_headers};
use super::intake::Intake;
use super::layout::{self, Place};
use crate::catalog::command::{
    Bind, Command, Condition, ObjectContent, ObjectToDelete, Outcome, PutObject, Refusal, Stored,
};
use crate::catalog::record::{ObjectChecksum, ObjectHeaders};
use crate::catalog::state::ObjectView;
use crate::model::Millis;

/// The largest object that one PUT may bring, as in S3.
const SINGLE_PUT_BYTES_MAX: u64 = 5 << 30;
/// Keys that one request may delete, as in S3.
const DELETED_KEYS_MAX: usize = 1000;

/// An object that was put, as it is answered.
pub(super) struct Put {
    pub etag: String,
    pub modified: Millis,
    pub checksum: Option<ObjectChecksum>,
}

impl S3Door {
    pub(super) async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        headers::refuse_what_is_not_done(&req.headers)?;
        let headers = object_headers!(req);
        self.check_write(&req.input.key, &headers)?;
        let condition = conditions::of_put(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let body = req.input.body.take();
        let intake = Intake::of(&mut req, body)?;
        self.check_body_len(intake.len(), self.settings.limits.object_bytes_max)?;
        let PutObjectInput { bucket, key, .. } = req.input;
        self.refuse_early(&bucket, &key, &condition).await?;

        let Place { about, completes, merged_by_flink, .. } = layout::place(&bucket, &key);
        let job = about.job.clone();
        if merged_by_flink {
            self.merged.warn(&job, &key);
        }
        let modified = self.clock.now();
        let put = self.store_body(self.merger.new_id(), intake, about, |received| {
            let content = ObjectContent::Segments {
                segments: received.segment.into_iter().collect(),
                len: received.len,
                etag: received.etag.clone(),
                headers,
                checksum: received.digests.first(),
                part_lens: vec![],
                upload: None,
            };
            Bind::Object(Box::new(PutObject { bucket, key, condition, content, modified }))
        });
        let (stored, received) = self.counted(put.await)?;
        self.metrics.segment_bytes.with_label_values(&["s3"]).inc_by(received.len);
        if let Some(checkpoint) = completes {
            self.merger.checkpoint_barrier(&job, checkpoint);
        }
        let put = put_answer(stored)?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&put.etag)), ..Default::default() };
        output.checksum_type = put.checksum.as_ref().map(checksum_type);
        set_checksum!(output, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        Ok(S3Response::new(output))
    }

    /// Counts a segment by what became of it.
    pub(super) fn counted<T>(&self, result: S3Result<T>) -> S3Result<T> {
        let outcome = match &result {
            Ok(_) => "answered",
            Err(error) if error.status_code().is_some_and(|status| status.is_client_error()) => "refused",
            Err(_) => "failed",
        };
        self.metrics.segments.with_label_values(&["s3", outcome]).inc();
        result
    }

    /// Refuses keys and metadata beyond the limits.
    pub(super) fn check_write(&self, key: &str, headers: &ObjectHeaders) -> S3Result<()> {
        let limits = &self.settings.limits;
        if key.len() > limits.key_bytes_max {
            let message = format!("the key has {} bytes, at most {} are allowed", key.len(), limits.key_bytes_max);
            return Err(refuse(S3ErrorCode::KeyTooLongError, message));
        }
        headers::check_metadata(headers, limits.metadata_bytes_max)
    }

    /// Refuses bodies beyond the limits.
    pub(super) fn check_body_len(&self, len: u64, object_bytes_max: u64) -> S3Result<()> {
        let bytes_max = SINGLE_PUT_BYTES_MAX.min(self.settings.limits.segment_bytes_max).min(object_bytes_max);
        if len > bytes_max {
            let message = format!("{len} bytes are more than one request may bring, which is {bytes_max}");
            return Err(refuse(S3ErrorCode::EntityTooLarge, message));
        }
        Ok(())
    }

    /// Refuses a put that cannot succeed any more, before its body is asked for.
    pub(super) async fn refuse_early(&self, bucket: &str, key: &str, condition: &Condition) -> S3Result<()> {
        self.check_bucket(bucket)?;
        if *condition != Condition::None {
            let existing = self.catalog.object(bucket, key).await.or_s3()?;
            conditions::fails_already(condition, key, existing.as_ref().map(|view| &*view.record)).or_s3()?;
        }
        Ok(())
    }

    /// Refuses requests to a bucket that is not there.
    pub(super) fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        self.catalog.check().or_s3()?;
        if self.catalog.view().has_bucket(bucket) { Ok(()) } else { Err(Refusal::NoSuchBucket(bucket.into())).or_s3() }
    }

    /// The object under a key.
    ///
    /// # Errors
    /// `NoSuchBucket`, `NoSuchKey`.
    pub(super) async fn existing(&self, bucket: &str, key: &str) -> S3Result<ObjectView> {
        self.check_bucket(bucket)?;
        let found = self.catalog.object(bucket, key).await.or_s3()?;
        found.ok_or_else(|| Refusal::NoSuchKey(key.to_owned())).or_s3()
    }

    /// The object that a copy is made of, if the conditions on it hold; and its entity tag if there are any.
    pub(super) async fn copy_source(
        &self,
        source: &CopySource,
        conditions: ReadConditions,
    ) -> S3Result<(ObjectView, Option<String>)> {
        let (bucket, key) = bucket_source(source)?;
        let found = self.existing(bucket, key).await?;
        conditions.check_source(&found.record)?;
        let etag = conditions.any().then(|| found.record.etag.clone());
        Ok((found, etag))
    }

    /// Copies by reference: no byte is read or written.
    pub(super) async fn copy_object(
        &self,
        mut req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        headers::refuse_what_is_not_done(&req.headers)?;
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
        let CopyObjectInput { bucket, key, copy_source, .. } = &req.input;
        self.check_write(key, headers.as_ref().unwrap_or(&ObjectHeaders::default()))?;
        let (from_bucket, from_key) = bucket_source(copy_source)?;
        if (from_bucket, from_key) == (bucket, key) && !replace {
            let message = "a copy of an object onto itself has to change something: set x-amz-metadata-directive";
            return Err(refuse(S3ErrorCode::InvalidRequest, message));
        }
        self.check_bucket(bucket)?;
        let (_, if_match) = self.copy_source(copy_source, source_conditions!(req.input)).await?;

        let content = ObjectContent::CopyOf { bucket: from_bucket.into(), key: from_key.into(), if_match, headers };
        let (bucket, key, modified) = (bucket.clone(), key.clone(), self.clock.now());
        let put = PutObject { bucket, key, condition, content, modified };
        let put = put_answer(self.store_without_bytes(Bind::Object(Box::new(put))).await?)?;

        let mut result = CopyObjectResult {
            e_tag: Some(etag(&put.etag)),
            last_modified: Some(timestamp(put.modified)),
            ..Default::default()
        };
        result.checksum_type = put.checksum.as_ref().map(checksum_type);
        set_checksum!(result, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
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
        let answers = self.delete(&bucket, vec![ObjectToDelete { key, if_match }]).await?;
        answers.into_iter().try_for_each(|answer| answer).or_s3()?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete(&self, bucket: &str, objects: Vec<ObjectToDelete>) -> S3Result<Vec<Result<(), Refusal>>> {
        match self.catalog.execute(Command::DeleteObjects(bucket.to_owned(), objects)).await.or_s3()? {
            Outcome::Deleted(answers) => Ok(answers),
            _ => Ok(vec![]),
        }
    }

    /// Deletes many keys. Those that do not exist count as deleted, and so do directories that a client may not touch
    /// because they lie above what it may: S3A deletes the markers of all ancestors and would never stop trying.
    pub(super) async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let grants = self.keys.grants(req.credentials.as_ref());
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if delete.objects.is_empty() || delete.objects.len() > DELETED_KEYS_MAX {
            let message = format!("{} keys are named, 1 to {DELETED_KEYS_MAX} are allowed", delete.objects.len());
            return Err(refuse(S3ErrorCode::MalformedXML, message));
        }
        self.check_bucket(&bucket)?;
        let mut answers: Vec<(String, S3Result<()>)> = Vec::with_capacity(delete.objects.len());
        let (mut doomed, mut places) = (vec![], vec![]);
        for object in delete.objects {
            let checked = headers::check_version(object.version_id.as_deref()).and_then(|()| {
                if grants.covers(&bucket, &object.key) { Ok(true) } else { grants.ignores(&bucket, &object.key) }
            });
            if matches!(checked, Ok(true)) {
                places.push(answers.len());
                let if_match = object.e_tag.map(|etag| etag.into_value());
                doomed.push(ObjectToDelete { key: object.key.clone(), if_match });
            }
            answers.push((object.key, checked.map(|_| ())));
        }
        if !doomed.is_empty() {
            for (place, answer) in places.into_iter().zip(self.delete(&bucket, doomed).await?) {
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

/// What the catalog answers to an object.
pub(super) fn put_answer(stored: Stored) -> S3Result<Put> {
    match stored {
        Stored::Object { etag, modified, checksum } => Ok(Put { etag, modified, checksum }),
        Stored::Handles(_) | Stored::Repeat(_) | Stored::Part => {
            Err(errors::unavailable("the catalog gave another answer than asked for, repeat the request"))
        }
    }
}

/// How a checksum covers its object.
pub(super) fn checksum_type(checksum: &ObjectChecksum) -> ChecksumType {
    let name = if checksum.composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
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
        }
    };
}
pub(super) use source_conditions;
