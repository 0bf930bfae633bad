//! Writing and deleting objects. Copies are [`super::copies`].

use s3s::dto::{
    ChecksumType, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETagCondition, Error, PutObjectInput, PutObjectOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, EtagNeeds, set_checksum};
use super::conditions::{self, etag};
use super::errors::{OrS3, not_implemented, refuse};
use super::grants::{denied, grants};
use super::headers::{self, object_headers};
use super::intake::Intake;
use super::tags::sent_tags;
use crate::config::EtagKind;
use crate::engine::ObjectToDelete;
use crate::engine::objects::NewObject;
use crate::model::ObjectHeaders;

/// The largest object that one PUT may bring, as in S3.
const SINGLE_PUT_BYTES_MAX: u64 = 5 << 30;
/// The conditions on which nothing is deleted.
const DELETE_CONDITIONS: &str = "deleting on the condition of a size or a time";
/// Keys that one request may delete, as in S3.
const DELETED_KEYS_MAX: usize = 1000;

impl S3Door {
    pub(super) async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        headers::check_storage_class(&req.headers)?;
        let mut headers = object_headers!(req);
        headers.tags = sent_tags(&req.headers)?;
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
        self.check_bucket(&bucket).await?;
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
            let deleted: Vec<S3Result<()>> = match &self.siblings {
                None => {
                    let deleted = self.engine.delete_objects(&bucket, doomed).await.or_s3()?;
                    deleted.into_iter().map(OrS3::or_s3).collect()
                }
                Some(siblings) => {
                    let deleted = siblings.delete_objects(&self.engine, &bucket, doomed).await.or_s3()?;
                    deleted.into_iter().map(OrS3::or_s3).collect()
                }
            };
            for (place, answer) in places.into_iter().zip(deleted) {
                answers[place].1 = answer;
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
