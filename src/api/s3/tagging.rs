//! The operations on the tags of an object ([`super::tags`]), which stand in the catalog. Nothing else comes of them.
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html>

use s3s::dto::{
    DeleteObjectTaggingInput, DeleteObjectTaggingOutput, GetObjectTaggingInput, GetObjectTaggingOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput, Tag,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::errors::{self, OrS3, refuse};
use super::headers::check_version;
use super::tags::checked;
use crate::engine::{EngineError, Refusal};

impl S3Door {
    pub(super) async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        check_version(req.input.version_id.as_deref())?;
        let found = self.engine.object(&req.input.bucket, &req.input.key).await.or_s3()?;
        let tags = found.head().headers.tags.iter().cloned();
        let tag_set = tags.map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect();
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set, version_id: None }))
    }

    pub(super) async fn put_object_tagging(
        &self,
        req: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        let PutObjectTaggingInput { bucket, key, tagging, version_id, .. } = req.input;
        check_version(version_id.as_deref())?;
        let text = |text: Option<String>| text.unwrap_or_default();
        let tags = tagging.tag_set.into_iter().map(|tag| (text(tag.key), text(tag.value))).collect();
        self.engine.tag_object(&bucket, &key, checked(tags)?).await.map_err(|error| refused(&error))?;
        Ok(S3Response::new(PutObjectTaggingOutput::default()))
    }

    pub(super) async fn delete_object_tagging(
        &self,
        req: S3Request<DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
        let DeleteObjectTaggingInput { bucket, key, version_id, .. } = req.input;
        check_version(version_id.as_deref())?;
        let found = self.engine.object(&bucket, &key).await.or_s3()?;
        if !found.head().headers.tags.is_empty() {
            self.engine.tag_object(&bucket, &key, vec![]).await.map_err(|error| refused(&error))?;
        }
        Ok(S3Response::new(DeleteObjectTaggingOutput::default()))
    }
}

/// An error of the engine; S3 has a name of its own for tags that arrive while the object is put again.
fn refused(error: &EngineError) -> S3Error {
    match error {
        EngineError::Refused(Refusal::ConditionUndecided(key)) => {
            let message = format!("another object is being put under {key:?}, repeat the request");
            refuse(S3ErrorCode::OperationAborted, message)
        }
        other => errors::engine(other),
    }
}
