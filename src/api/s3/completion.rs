//! Completing a multipart upload: from its parts to an object.
//!
//! Parts on storage become an object's by one durable commit, whatever their number. Parts of an upload that lives in memory
//! become segments together with the object, likewise. If some are here and some there, those in memory go to storage
//! first: so a completion that fails loses nothing, and may be repeated.
//!
//! The object remembers the upload that made it. So a completion whose answer was lost is answered again with the same
//! entity tag, as long as its object is the one under the key. Of several at once, one does it and the others wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{ChecksumType, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, ETag};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use tokio::sync::oneshot;

use super::S3Door;
use super::checksums::{self, Algorithm, bad_digest, checksum_field, set_checksum};
use super::conditions::{self, etag};
use super::errors::{OrS3, refuse, unavailable};
use super::multipart::no_such_upload;
use super::objects::{Put, checksum_type, put_answer};
use super::uploads::{ChecksumPlan, PartView, Upload};
use crate::catalog::command::{Bind, Condition, MadeBy, ObjectContent, PutObject, Stored};
use crate::catalog::record::ObjectChecksum;
use crate::merge::{Parcel, Piece};
use crate::model::SegmentId;
use crate::runtime::Failure;

/// The smallest part but the last one, as in S3.
const PART_BYTES_MIN: u64 = 5 << 20;
/// Parts that are sent to storage at a time.
const PARTS_AT_ONCE: usize = 8;

/// A part that the object is made of.
struct Chosen {
    number: u16,
    part: PartView,
}

/// The object that comes out.
struct Assembled {
    len: u64,
    etag: String,
    checksum: Option<ObjectChecksum>,
    part_lens: Vec<u64>,
}

impl S3Door {
    pub(super) async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let mut input = req.input;
        let condition = conditions::of_put(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let named = input.multipart_upload.take().and_then(|upload| upload.parts).unwrap_or_default();
        check_order(&named)?;
        let put = match self.remembered_upload(&input.upload_id, &input.bucket, &input.key) {
            Ok(upload) => self.complete(upload, &input, condition, &named).await?,
            Err(gone) => self.completed_before(&input, &named).await?.ok_or(gone)?,
        };
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&put.etag)),
            ..Default::default()
        };
        output.checksum_type = put.checksum.as_ref().map(checksum_type);
        set_checksum!(output, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        Ok(S3Response::new(output))
    }

    /// Completes an upload, or tells what another request has made of it meanwhile.
    async fn complete(
        &self,
        upload: Arc<Upload>,
        input: &CompleteMultipartUploadInput,
        condition: Condition,
        named: &[CompletedPart],
    ) -> S3Result<Put> {
        let turn = Arc::clone(&upload.turn).lock_owned().await;
        if let Some(put) = self.completed_before(input, named).await? {
            return Ok(put);
        }
        if !self.is_open(&upload) {
            return Err(no_such_upload(&upload.id));
        }
        let chosen = choose(&upload, named, self.parts(&upload))?;
        let assembled = self.assemble(&upload, input, &chosen)?;
        self.refuse_early(&input.bucket, &input.key, &condition).await?;
        if upload.place.merged_by_flink {
            self.merged.warn(&upload.place.about.job, &input.key);
        }
        let (reply, answer) = oneshot::channel();
        let door = self.clone();
        // In a task of its own: whoever repeats a completion whose client has left finds it done, not half-way.
        self.merger.tasks().spawn("multipart-completion", Failure::FailsItsWork, async move {
            let stored = door.counted(door.store_parts(&upload, condition, chosen, assembled).await);
            if stored.is_ok() {
                door.uploads.remove(&upload.id);
            }
            if let (Ok(_), Some(checkpoint)) = (&stored, upload.place.completes) {
                door.merger.checkpoint_barrier(&upload.place.about.job, checkpoint);
            }
            drop(reply.send(stored));
            drop(turn);
        });
        let stored = answer.await.map_err(|_| unavailable("the completion did not end, repeat the request"))?;
        put_answer(stored?)
    }

    /// The object that an earlier completion of this upload has made, if it is the one under the key.
    ///
    /// # Errors
    /// `InvalidPart` if it was made of other parts than are named now.
    async fn completed_before(
        &self,
        input: &CompleteMultipartUploadInput,
        named: &[CompletedPart],
    ) -> S3Result<Option<Put>> {
        let found = self.catalog.object(&input.bucket, &input.key).await.or_s3()?;
        let made = found.filter(|found| found.record.upload.as_ref() == Some(&input.upload_id));
        let Some(record) = made.map(|made| made.record) else { return Ok(None) };
        let tags: Option<Vec<&str>> = named.iter().map(|part| part.e_tag.as_ref().map(ETag::value)).collect();
        let same = match tags {
            Some(tags) => etag_of(tags.into_iter()) == record.etag,
            None => named.len() == record.part_lens.len(),
        };
        if !same {
            return Err(invalid_part());
        }
        Ok(Some(Put { etag: record.etag.clone(), modified: record.modified, checksum: record.checksum.clone() }))
    }

    /// Checks what the client says of the whole.
    fn assemble(
        &self,
        upload: &Upload,
        input: &CompleteMultipartUploadInput,
        chosen: &[Chosen],
    ) -> S3Result<Assembled> {
        let part_lens: Vec<u64> = chosen.iter().map(|part| part.part.record.len).collect();
        check_sizes(&part_lens, self.settings.limits.object_bytes_max)?;
        let len = part_lens.iter().sum();
        if input.mpu_object_size.is_some_and(|size| u64::try_from(size) != Ok(len)) {
            let message = format!("the parts have {len} bytes together, not what x-amz-mp-object-size says");
            return Err(refuse(S3ErrorCode::InvalidRequest, message));
        }
        let checksum = upload.checksum.map(|plan| object_checksum(plan, chosen)).transpose()?;
        check_claims(upload.checksum, input, checksum.as_ref())?;
        Ok(Assembled { len, etag: object_etag(chosen), checksum, part_lens })
    }

    async fn store_parts(
        &self,
        upload: &Upload,
        condition: Condition,
        chosen: Vec<Chosen>,
        assembled: Assembled,
    ) -> S3Result<Stored> {
        let ((segments, pieces), made_by) = if upload.is_recorded() {
            ((self.flush_parts(upload, chosen).await?, vec![]), MadeBy::Recorded(upload.id.clone()))
        } else {
            (self.pieces(upload, chosen), MadeBy::Unrecorded(upload.id.clone()))
        };
        let Assembled { len, etag, checksum, part_lens } = assembled;
        let content = ObjectContent::Segments {
            segments,
            len,
            etag,
            headers: upload.record.headers.clone(),
            checksum,
            part_lens,
            upload: Some(made_by),
        };
        let (bucket, key, modified) = (upload.record.bucket.clone(), upload.record.key.clone(), self.clock.now());
        let bind = Bind::Object(Box::new(PutObject { bucket, key, condition, content, modified }));
        if pieces.is_empty() {
            return self.store_without_bytes(bind).await;
        }
        // The upload keeps paying for the bytes until it is done.
        self.merger.store(Parcel { pieces, bind, paid: None }).await.or_s3()
    }

    /// Parts in memory as new segments. Each attempt names them anew, because one that failed may have stored its own.
    fn pieces(&self, upload: &Upload, chosen: Vec<Chosen>) -> (Vec<SegmentId>, Vec<Piece>) {
        let in_memory = chosen.into_iter().filter_map(|part| Some((part.number, part.part.memory?)));
        let piece = |(number, (data, crc))| Piece {
            id: self.merger.new_part_id(&upload.id, number),
            about: upload.place.about.clone(),
            data,
            crc,
        };
        let pieces: Vec<Piece> = in_memory.filter(|(_, (data, _))| !data.is_empty()).map(piece).collect();
        (pieces.iter().map(|piece| piece.id).collect(), pieces)
    }

    /// Sends the parts that are in memory to storage, and names the segments of all.
    async fn flush_parts(&self, upload: &Upload, chosen: Vec<Chosen>) -> S3Result<Vec<SegmentId>> {
        let segments = futures::stream::iter(chosen.into_iter().map(|part| self.flush_part(upload, part)));
        let segments: Vec<Option<SegmentId>> = segments.buffered(PARTS_AT_ONCE).try_collect().await?;
        Ok(segments.into_iter().flatten().collect())
    }

    async fn flush_part(&self, upload: &Upload, chosen: Chosen) -> S3Result<Option<SegmentId>> {
        let Chosen { number, part: PartView { mut record, memory } } = chosen;
        let Some((data, crc)) = memory.filter(|(data, _)| !data.is_empty()) else { return Ok(record.segment) };
        let id = self.merger.new_part_id(&upload.id, number);
        record.segment = Some(id);
        let bind = Bind::Part { upload: upload.id.clone(), number, part: record };
        let pieces = vec![Piece { id, about: upload.place.about.clone(), data, crc }];
        self.merger.store(Parcel { pieces, bind, paid: None }).await.or_s3()?;
        self.uploads.drop_part(&upload.id, number);
        Ok(Some(id))
    }
}

/// Refuses a list of parts that is empty or not in order.
fn check_order(named: &[CompletedPart]) -> S3Result<()> {
    if named.is_empty() || named.iter().any(|part| part.part_number.is_none()) {
        return Err(refuse(S3ErrorCode::MalformedXML, "the body must name at least one part, each by its number"));
    }
    if named.windows(2).any(|pair| pair[0].part_number >= pair[1].part_number) {
        return Err(refuse(S3ErrorCode::InvalidPartOrder, "the parts must be named in the order of their numbers"));
    }
    Ok(())
}

/// Finds the parts that are named.
fn choose(upload: &Upload, named: &[CompletedPart], mut parts: BTreeMap<u16, PartView>) -> S3Result<Vec<Chosen>> {
    let find = |named: &CompletedPart| {
        let number = named.part_number.and_then(|number| u16::try_from(number).ok())?;
        let part = parts.remove(&number)?;
        let same_etag = named.e_tag.as_ref().map(ETag::value).is_none_or(|value| value == part.record.etag);
        let same_checksum = upload.checksum.is_none_or(|plan| {
            let value = checksum_field!(named, plan.algorithm);
            value.is_none() || value == part.record.checksum.as_deref()
        });
        (same_etag && same_checksum).then_some(Chosen { number, part })
    };
    let found: Option<Vec<Chosen>> = named.iter().map(find).collect();
    found.ok_or_else(invalid_part)
}

fn invalid_part() -> S3Error {
    let message = "a named part was not uploaded, or its entity tag or checksum is another";
    refuse(S3ErrorCode::InvalidPart, message)
}

fn check_sizes(part_lens: &[u64], object_bytes_max: u64) -> S3Result<()> {
    if part_lens.split_last().is_some_and(|(_, others)| others.iter().any(|len| *len < PART_BYTES_MIN)) {
        let message = format!("a part other than the last has less than {PART_BYTES_MIN} bytes");
        return Err(refuse(S3ErrorCode::EntityTooSmall, message));
    }
    if part_lens.iter().sum::<u64>() > object_bytes_max {
        let message = format!("the object would have more than {object_bytes_max} bytes");
        return Err(refuse(S3ErrorCode::EntityTooLarge, message));
    }
    Ok(())
}

fn object_checksum(plan: ChecksumPlan, chosen: &[Chosen]) -> S3Result<ObjectChecksum> {
    let value = |part: &Chosen| part.part.record.checksum.clone();
    let values: Vec<Option<String>> = chosen.iter().map(value).collect();
    let texts = values.iter().map(Option::as_deref);
    let value = if plan.full_object {
        checksums::full_object(plan.algorithm, texts.zip(chosen.iter().map(|part| part.part.record.len)))?
    } else {
        checksums::composite(plan.algorithm, texts)?
    };
    Ok(ObjectChecksum { algorithm: plan.algorithm.name().to_owned(), value, composite: !plan.full_object })
}

/// Compares the checksum that the client says the object has.
fn check_claims(
    plan: Option<ChecksumPlan>,
    input: &CompleteMultipartUploadInput,
    checksum: Option<&ObjectChecksum>,
) -> S3Result<()> {
    let invalid = |message: &'static str| Err(refuse(S3ErrorCode::InvalidRequest, message));
    if let Some(kind) = &input.checksum_type {
        let planned =
            plan.map(|plan| if plan.full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE });
        if planned != Some(kind.as_str()) {
            return invalid("x-amz-checksum-type is not what the upload was created with");
        }
    }
    for algorithm in Algorithm::ALL {
        let Some(claimed) = checksum_field!(input, algorithm) else { continue };
        let Some(checksum) = checksum.filter(|checksum| checksum.algorithm == algorithm.name()) else {
            return invalid("the upload was created without the checksum algorithm that its completion uses");
        };
        // Of a composite one, the number of parts may be left out.
        let bare = checksum.value.split_once('-').map_or(checksum.value.as_str(), |(bare, _)| bare);
        if claimed != checksum.value && claimed != bare {
            return Err(bad_digest(algorithm.name()));
        }
    }
    Ok(())
}

fn object_etag(chosen: &[Chosen]) -> String {
    etag_of(chosen.iter().map(|part| part.part.record.etag.as_str()))
}

/// The MD5 of the parts' MD5s, and their number. Parts with opaque tags count with the text of these.
fn etag_of<'a>(tags: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (mut md5, count) = (Md5::new(), tags.len());
    for tag in tags {
        match hex::decode(tag) {
            Ok(bytes) => md5.update(&bytes),
            Err(_) => md5.update(tag.as_bytes()),
        }
    }
    format!("{}-{count}", hex::encode(md5.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::record::{ObjectHeaders, PartRecord, UploadRecord};
    use crate::model::Millis;

    const TAG: &str = "25f9e794323b453885f5181f1b624d0b";

    fn named(number: i32, tag: &str) -> CompletedPart {
        CompletedPart { part_number: Some(number), e_tag: Some(etag(tag)), ..Default::default() }
    }

    fn upload(checksum: Option<ChecksumPlan>) -> Upload {
        let record = UploadRecord {
            bucket: "b".into(),
            key: "k".into(),
            headers: ObjectHeaders::default(),
            checksum: checksum.map(ChecksumPlan::record),
            created: Millis(0),
        };
        Upload::new("u".into(), Arc::new(record))
    }

    fn parts(numbers: &[u16]) -> BTreeMap<u16, PartView> {
        let record = PartRecord {
            segment: None,
            len: 9,
            etag: TAG.into(),
            checksum: Some("y/Q5Jg==".into()),
            modified: Millis(0),
        };
        numbers.iter().map(|number| (*number, PartView { record: record.clone(), memory: None })).collect()
    }

    fn code<T>(result: S3Result<T>) -> String {
        result.err().unwrap().code().as_str().to_owned()
    }

    #[test]
    fn parts_are_named_in_order_and_at_least_one() {
        assert_eq!(code(check_order(&[])), "MalformedXML");
        assert_eq!(code(check_order(&[CompletedPart::default()])), "MalformedXML");
        assert_eq!(code(check_order(&[named(2, TAG), named(1, TAG)])), "InvalidPartOrder");
        assert_eq!(code(check_order(&[named(1, TAG), named(1, TAG)])), "InvalidPartOrder");
        assert!(check_order(&[named(1, TAG), named(900, TAG)]).is_ok());
    }

    #[test]
    fn parts_are_those_that_were_uploaded() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc32, full_object: false };
        let wrong = CompletedPart { checksum_crc32: Some("AAAAAA==".into()), ..named(1, TAG) };

        assert_eq!(choose(&upload(None), &[named(1, TAG), named(7, TAG)], parts(&[1, 3, 7])).unwrap().len(), 2);
        assert_eq!(code(choose(&upload(None), &[named(2, TAG)], parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(None), &[named(1, "other")], parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(Some(plan)), &[wrong], parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(None), &[named(-1, TAG)], parts(&[1]))), "InvalidPart");
    }

    #[test]
    fn only_the_last_part_may_be_small() {
        assert!(check_sizes(&[PART_BYTES_MIN, 1], u64::MAX).is_ok());
        assert_eq!(code(check_sizes(&[PART_BYTES_MIN - 1, 1], u64::MAX)), "EntityTooSmall");
        assert_eq!(code(check_sizes(&[PART_BYTES_MIN, 1], PART_BYTES_MIN)), "EntityTooLarge");
    }

    #[test]
    fn the_entity_tag_is_the_md5_of_md5s_with_their_number() {
        let chosen = choose(&upload(None), &[named(1, TAG)], parts(&[1])).unwrap();

        // md5 of the 16 bytes of TAG.
        assert_eq!(object_etag(&chosen), format!("{}-1", hex::encode(Md5::checksum(&hex::decode(TAG).unwrap()))));
    }

    #[test]
    fn a_claimed_checksum_is_compared_with_and_without_the_number_of_parts() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc32, full_object: false };
        let chosen = choose(&upload(Some(plan)), &[named(1, TAG)], parts(&[1])).unwrap();
        let checksum = object_checksum(plan, &chosen).unwrap();
        let claim =
            |value: &str| CompleteMultipartUploadInput { checksum_crc32: Some(value.to_owned()), ..Default::default() };

        let bare = checksum.value.strip_suffix("-1").unwrap();
        for right in [bare, &checksum.value] {
            assert!(check_claims(Some(plan), &claim(right), Some(&checksum)).is_ok());
        }
        assert_eq!(code(check_claims(Some(plan), &claim("AAAAAA=="), Some(&checksum))), "BadDigest");
        assert_eq!(code(check_claims(None, &claim(bare), None)), "InvalidRequest");
    }
}
