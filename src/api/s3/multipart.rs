//! Multipart uploads: their parts. [`super::completion`] makes objects of them; the engine keeps them.

use futures::TryStreamExt;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, UploadPartCopyInput, UploadPartCopyOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, Algorithm, ChecksumPlan, set_checksum};
use super::conditions::{etag, timestamp};
use super::copies::{PartSource, source_conditions};
use super::errors::{self, OrS3, refuse};
use super::headers::{self, object_headers};
use super::intake::Intake;
use super::objects::checksum_type;
use super::ranges::{self, part_number};
use super::tags::sent_tags;
use super::xml::MoreElements;
use crate::engine::uploads::{UploadName, UploadedPart};
use crate::model::NewUpload;

impl S3Door {
    /// Creates an upload. One that somebody may go on with after a restart is durable before its id is answered.
    pub(super) async fn create_multipart_upload(
        &self,
        mut req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        headers::check_storage_class(&req.headers)?;
        let mut headers = object_headers!(req);
        headers.tags = sent_tags(&req.headers)?;
        let input = req.input;
        self.check_write(&input.key, &headers)?;
        let checksum = checksum_plan(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        let new = NewUpload { bucket, key, headers, checksum: checksum.map(ChecksumPlan::record) };
        let id = self.engine.create_upload(new).await.or_s3()?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: checksum.map(|plan| ChecksumAlgorithm::from_static(plan.algorithm.name())),
            checksum_type: checksum.map(|plan| checksum_type(!plan.full_object)),
            ..Default::default()
        }))
    }

    pub(super) async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let number = part_number(req.input.part_number)?;
        let name = upload_name(&req.input.upload_id, &req.input.bucket, &req.input.key);
        let upload = self.engine.upload(&name).or_s3()?;
        let body = req.input.body.take();
        let intake = Intake::of(&mut req, body)?;
        let part = self.put_part(&name, &upload, number, intake).await?;
        let mut response = S3Response::new(UploadPartOutput { e_tag: Some(etag(&part.etag)), ..Default::default() });
        for checksum in &part.digests.checksums {
            set_checksum!(response.output, Some((checksum.algorithm.as_str(), checksum.value.clone())));
            checksums::add_header(&mut response.headers, &checksum.algorithm, &checksum.value);
        }
        Ok(response)
    }

    /// Copies bytes of an object into a part. They are read and written: a part is a segment of its own.
    pub(super) async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = req.input;
        let number = part_number(input.part_number)?;
        let name = upload_name(&input.upload_id, &input.bucket, &input.key);
        let upload = self.engine.upload(&name).or_s3()?;
        let source = self.part_source(&input.copy_source, source_conditions!(input)).await?;
        let range = ranges::of_copy(input.copy_source_range.as_deref(), source.head().len)?;
        let len = range.end - range.start;
        let intake = match &source {
            _ if len == 0 => Intake::of_stored(futures::stream::empty(), 0),
            PartSource::Here(object) => {
                let stream = self.engine.read_object(object, range).await.or_s3()?;
                Intake::of_stored(stream.map_err(|error| errors::read(&error)), len)
            }
            PartSource::There(shard, head) => self.intake_of(*shard, &input.copy_source, head, range).await?,
        };
        let part = self.put_part(&name, &upload, number, intake).await?;
        let mut result = CopyPartResult {
            e_tag: Some(etag(&part.etag)),
            last_modified: Some(timestamp(self.engine.now())),
            ..Default::default()
        };
        let mut more = String::new();
        for checksum in &part.digests.checksums {
            set_checksum!(result, Some((checksum.algorithm.as_str(), checksum.value.clone())));
            more += &checksums::more_element(&checksum.algorithm, &checksum.value);
        }
        let output = UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() };
        let mut response = S3Response::new(output);
        response.extensions.insert(MoreElements(vec![("CopyPartResult", more)]));
        Ok(response)
    }

    async fn put_part(
        &self,
        name: &UploadName,
        upload: &NewUpload,
        number: u16,
        mut intake: Intake,
    ) -> S3Result<UploadedPart> {
        self.check_body_len(intake.len(), self.engine.settings().limits.object_bytes_max)?;
        let plan = ChecksumPlan::of(upload);
        let asked = intake.claims_mut().checksums();
        intake.claims_mut().also(plan.unwrap_or(ChecksumPlan::DEFAULT).algorithm);
        let mut part = self.engine.put_part(name, number, intake.hashed(self.etag_needs())).await.or_s3()?;
        if plan.is_none() {
            // The default one is for the whole object. A client that brought another is told its own alone, lest it takes both
            // into its list of parts.
            part.digests.checksums.truncate(asked.max(1));
        }
        Ok(part)
    }

    pub(super) async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let name = upload_name(&input.upload_id, &input.bucket, &input.key);
        self.engine.abort_upload(&name).await.or_s3()?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// Plans the object's checksum: over the parts' checksums, or over the whole where that can be computed.
fn checksum_plan(algorithm: Option<&ChecksumAlgorithm>, kind: Option<&ChecksumType>) -> S3Result<Option<ChecksumPlan>> {
    let invalid = |message: String| Err(refuse(S3ErrorCode::InvalidRequest, message));
    let Some(algorithm) = algorithm else {
        return match kind {
            None => Ok(None),
            Some(_) => invalid("x-amz-checksum-type needs x-amz-checksum-algorithm".to_owned()),
        };
    };
    let algorithm = Algorithm::parse(algorithm.as_str())?;
    let full_object = match kind.map(ChecksumType::as_str) {
        None => algorithm == Algorithm::Crc64Nvme,
        Some(ChecksumType::FULL_OBJECT) if algorithm.combination().is_none() => {
            return Err(checksums::cannot_be_full(algorithm));
        }
        Some(ChecksumType::FULL_OBJECT) => true,
        Some(ChecksumType::COMPOSITE) if algorithm != Algorithm::Crc64Nvme => false,
        Some(other) => return invalid(format!("the checksum type {other:?} cannot be used with {}", algorithm.name())),
    };
    Ok(Some(ChecksumPlan { algorithm, full_object }))
}

pub(super) fn upload_name(id: &str, bucket: &str, key: &str) -> UploadName {
    UploadName { id: id.to_owned(), bucket: bucket.to_owned(), key: key.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(algorithm: &str, kind: Option<&str>) -> Option<bool> {
        let algorithm = ChecksumAlgorithm::from(algorithm.to_owned());
        let kind = kind.map(|kind| ChecksumType::from(kind.to_owned()));
        checksum_plan(Some(&algorithm), kind.as_ref()).ok().flatten().map(|plan| plan.full_object)
    }

    #[test]
    fn checksum_types_are_those_that_s3_allows() {
        assert_eq!(
            [plan("CRC32", None), plan("CRC64NVME", None), plan("SHA256", None)],
            [Some(false), Some(true), Some(false)]
        );
        assert_eq!(plan("CRC32C", Some("FULL_OBJECT")), Some(true));
        assert_eq!(plan("SHA1", Some("FULL_OBJECT")), None);
        assert_eq!(plan("CRC64NVME", Some("COMPOSITE")), None);
        assert_eq!(plan("CRC32", Some("OTHER")), None);
        assert_eq!(plan("MD4", None), None);
        assert!(checksum_plan(None, None).unwrap().is_none());
    }
}
