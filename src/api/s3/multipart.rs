//! Multipart uploads: their parts. [`super::completion`] makes objects of them, [`super::uploads`] keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, UploadPartCopyInput, UploadPartCopyOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use ulid::Ulid;

use super::S3Door;
use super::checksums::{self, Algorithm, Digests, set_checksum};
use super::conditions::{etag, timestamp};
use super::errors::{self, OrS3, refuse, slow_down};
use super::headers::{self, object_headers};
use super::intake::{Intake, Received, Whole};
use super::objects::source_conditions;
use super::ranges;
use super::uploads::{ChecksumPlan, Full, MemoryPart, PartView, Upload};
use crate::catalog::command::{Bind, Command, Refusal};
use crate::catalog::record::{PartRecord, UploadRecord};
use crate::runtime::{Failure, PaidBytes};

/// Numbers that a part may have.
const PART_NUMBERS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// A part that was uploaded, as it is answered.
struct Uploaded {
    etag: String,
    digests: Digests,
}

impl S3Door {
    /// Creates an upload. One that somebody may go on with after a restart is durable before its id is answered.
    pub(super) async fn create_multipart_upload(
        &self,
        mut req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        headers::refuse_what_is_not_done(&req.headers)?;
        let headers = object_headers!(req);
        let input = req.input;
        self.check_write(&input.key, &headers)?;
        let checksum = checksum_plan(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        self.check_bucket(&input.bucket)?;
        let id = Ulid(self.entropy.ulid()).to_string();
        let record = UploadRecord {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            headers,
            checksum: checksum.map(ChecksumPlan::record),
            created: self.clock.now(),
        };
        let upload = self.admit(Upload::new(id.clone(), Arc::new(record)))?;
        if upload.place.resumable
            && let Err(error) = self.record_upload(&upload).await
        {
            self.uploads.remove(&id);
            return Err(error);
        }
        let kind =
            |plan: ChecksumPlan| if plan.full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: checksum.map(|plan| ChecksumAlgorithm::from_static(plan.algorithm.name())),
            checksum_type: checksum.map(|plan| ChecksumType::from_static(kind(plan))),
            ..Default::default()
        }))
    }

    /// Takes in a new upload. Those that give way to it are aborted meanwhile.
    fn admit(&self, upload: Upload) -> S3Result<Arc<Upload>> {
        let admitted = self.uploads.create(upload, self.clock.now());
        let (upload, gone) = admitted.map_err(|Full| {
            slow_down("too many multipart uploads are in progress, and none is idle: complete or abort some")
        })?;
        if !gone.is_empty() {
            let door = self.clone();
            self.merger.tasks().spawn("multipart-give-way", Failure::FailsItsWork, async move {
                door.drop_uploads("gave_way", gone).await;
            });
        }
        Ok(upload)
    }

    /// The upload of this id to this key, which takes parts.
    ///
    /// # Errors
    /// `NoSuchUpload`.
    pub(super) fn upload(&self, id: &str, bucket: &str, key: &str) -> S3Result<Arc<Upload>> {
        let upload = self.remembered_upload(id, bucket, key)?;
        if self.is_open(&upload) { Ok(upload) } else { Err(no_such_upload(id)) }
    }

    /// The upload of this id to this key, wherever it is remembered. Its end may be on its way: whoever wants to end it has
    /// to wait for its turn, and then see whether it is still open.
    ///
    /// # Errors
    /// `NoSuchUpload`.
    pub(super) fn remembered_upload(&self, id: &str, bucket: &str, key: &str) -> S3Result<Arc<Upload>> {
        self.check_bucket(bucket)?;
        let now = self.clock.now();
        let upload = self.uploads.find(id, now).or_else(|| {
            let known = self.catalog.view().upload(id).cloned();
            known.map(|record| self.uploads.adopt(Upload::known(id, &record), now))
        });
        let asked_for = |upload: &Arc<Upload>| upload.record.bucket == bucket && upload.record.key == key;
        upload.filter(asked_for).ok_or_else(|| no_such_upload(id))
    }

    /// Whether an upload has not been completed or aborted, even if that is not durable yet.
    pub(super) fn is_open(&self, upload: &Upload) -> bool {
        self.uploads.has(&upload.id) && (!upload.is_recorded() || self.catalog.view().upload(&upload.id).is_some())
    }

    /// The parts of an upload: those in memory, and those on storage that they do not replace.
    pub(super) fn parts(&self, upload: &Upload) -> BTreeMap<u16, PartView> {
        let mut parts: BTreeMap<u16, PartView> = {
            let state = self.catalog.view();
            let stored = state.parts(&upload.id);
            stored.map(|(number, part)| (number, PartView { record: part.clone(), memory: None })).collect()
        };
        parts.extend(self.uploads.parts(&upload.id));
        parts
    }

    pub(super) async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        headers::refuse_what_is_not_done(&req.headers)?;
        let number = part_number(req.input.part_number)?;
        let upload = self.upload(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        let body = req.input.body.take();
        let intake = Intake::of(&mut req, body)?;
        let part = self.counted(self.receive_part(&upload, number, intake).await)?;
        let mut output = UploadPartOutput { e_tag: Some(etag(&part.etag)), ..Default::default() };
        for algorithm in Algorithm::ALL {
            set_checksum!(output, part.digests.get(algorithm).map(|value| (algorithm.name(), value)));
        }
        Ok(S3Response::new(output))
    }

    /// Copies bytes of an object into a part. They are read and written: a part is a segment of its own.
    pub(super) async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        headers::refuse_what_is_not_done(&req.headers)?;
        let input = req.input;
        let number = part_number(input.part_number)?;
        let upload = self.upload(&input.upload_id, &input.bucket, &input.key)?;
        let (source, _) = self.copy_source(&input.copy_source, source_conditions!(input)).await?;
        let range = ranges::of_copy(input.copy_source_range.as_deref(), source.record.len)?;
        let len = range.end - range.start;
        let intake = if len == 0 {
            Intake::of_stored(futures::stream::empty(), 0)
        } else {
            let stream = self.reader.object(&source, range).await.or_s3()?;
            Intake::of_stored(stream.map_err(|error| errors::read(&error)), len)
        };
        let part = self.counted(self.receive_part(&upload, number, intake).await)?;
        let mut result = CopyPartResult {
            e_tag: Some(etag(&part.etag)),
            last_modified: Some(timestamp(self.clock.now())),
            ..Default::default()
        };
        for algorithm in Algorithm::ALL {
            set_checksum!(result, part.digests.get(algorithm).map(|value| (algorithm.name(), value)));
        }
        Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() }))
    }

    /// Receives a part: into memory if it may be lost there, else to storage.
    async fn receive_part(&self, upload: &Arc<Upload>, number: u16, mut intake: Intake) -> S3Result<Uploaded> {
        let limits = &self.settings.limits;
        let len = intake.len();
        self.check_body_len(len, limits.object_bytes_max)?;
        if let Some(plan) = upload.checksum {
            intake.claims_mut().also(plan.algorithm);
        }
        let fits = len <= limits.multipart_part_in_memory_bytes_max.min(self.settings.store.part_bytes);
        let share = if fits && !upload.place.resumable { self.uploads.share(len) } else { None };
        let uploaded = match share {
            Some(share) => self.keep_part(upload, number, intake, share).await?,
            None => self.store_part(upload, number, intake).await?,
        };
        // The upload counts as used when the part has arrived, which may be long after it was begun.
        self.uploads.find(&upload.id, self.clock.now());
        self.metrics.segment_bytes.with_label_values(&["s3"]).inc_by(len);
        Ok(uploaded)
    }

    async fn keep_part(
        &self,
        upload: &Upload,
        number: u16,
        mut intake: Intake,
        share: PaidBytes,
    ) -> S3Result<Uploaded> {
        let len = intake.len();
        self.merger.space().admit(len).or_s3()?;
        intake.await_first().await;
        let mut paid = if len > 0 { Some(self.pay(len).await?) } else { None };
        let Whole { data, crc, digests } = intake.whole(self.etag_needs()).await?;
        // It waits for the completion of its upload, whatever becomes of the connection that brought it.
        paid.iter_mut().for_each(PaidBytes::belongs_to_nobody);
        let etag = self.etag(None, &digests);
        let record = self.part_record(upload, None, len, &etag, &digests);
        if !self.uploads.put_part(&upload.id, number, MemoryPart { data, crc, record, _paid: paid, _share: share }) {
            return Err(no_such_upload(&upload.id));
        }
        Ok(Uploaded { etag, digests })
    }

    async fn store_part(&self, upload: &Arc<Upload>, number: u16, intake: Intake) -> S3Result<Uploaded> {
        self.record_upload(upload).await?;
        let about = upload.place.about.clone();
        let bind = |received: &Received| {
            let Received { segment, len, etag, digests } = received;
            let part = self.part_record(upload, *segment, *len, etag, digests);
            Bind::Part { upload: upload.id.clone(), number, part }
        };
        let id = self.merger.new_part_id(&upload.id, number);
        let (_, received) = self.store_body(id, intake, about, bind).await?;
        self.uploads.drop_part(&upload.id, number);
        Ok(Uploaded { etag: received.etag, digests: received.digests })
    }

    fn part_record(
        &self,
        upload: &Upload,
        segment: Option<crate::model::SegmentId>,
        len: u64,
        etag: &str,
        digests: &Digests,
    ) -> PartRecord {
        let checksum = upload.checksum.and_then(|plan| digests.get(plan.algorithm));
        PartRecord { segment, len, etag: etag.to_owned(), checksum, modified: self.clock.now() }
    }

    /// Has the catalog know the upload; once.
    async fn record_upload(&self, upload: &Arc<Upload>) -> S3Result<()> {
        let record = || async {
            let command = Command::CreateUpload(upload.id.clone(), Arc::clone(&upload.record));
            self.catalog.execute(command).await.or_s3().map(|_| ())
        };
        upload.recorded.get_or_try_init(record).await?;
        if self.uploads.has(&upload.id) {
            return Ok(());
        }
        // It was aborted meanwhile, perhaps before the catalog knew it.
        self.catalog.execute(Command::AbortUpload(upload.id.clone())).await.or_s3()?;
        Err(no_such_upload(&upload.id))
    }

    pub(super) async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let upload = self.remembered_upload(&input.upload_id, &input.bucket, &input.key)?;
        let _turn = upload.turn.lock().await;
        if !self.uploads.remove(&upload.id) {
            return Err(no_such_upload(&upload.id));
        }
        if upload.is_recorded() {
            self.catalog.execute(Command::AbortUpload(upload.id.clone())).await.or_s3()?;
        }
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// How the object's checksum is to be made: of the parts' checksums, or of the whole where that can be computed.
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
        Some(ChecksumType::FULL_OBJECT) if algorithm.crc().is_none() => {
            return Err(checksums::cannot_be_full(algorithm));
        }
        Some(ChecksumType::FULL_OBJECT) => true,
        Some(ChecksumType::COMPOSITE) if algorithm != Algorithm::Crc64Nvme => false,
        Some(other) => return invalid(format!("the checksum type {other:?} cannot be used with {}", algorithm.name())),
    };
    Ok(Some(ChecksumPlan { algorithm, full_object }))
}

fn part_number(number: i32) -> S3Result<u16> {
    let number = u16::try_from(number).ok().filter(|_| PART_NUMBERS.contains(&number));
    number.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the part number must be 1 to 10000"))
}

pub(super) fn no_such_upload(id: &str) -> S3Error {
    errors::refusal(&Refusal::NoSuchUpload(id.to_owned()))
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

    #[test]
    fn part_numbers_are_1_to_10000() {
        assert_eq!(part_number(1).unwrap(), 1);
        assert_eq!(part_number(10_000).unwrap(), 10_000);
        for bad in [0, -1, 10_001, i32::MIN] {
            assert!(part_number(bad).is_err());
        }
    }
}
