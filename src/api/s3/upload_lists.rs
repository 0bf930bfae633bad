//! Listing multipart uploads and their parts, and forgetting those that nobody continues.

use std::sync::Arc;
use std::time::Duration;

use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CommonPrefix, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part, StorageClass,
};
use s3s::{S3Request, S3Response, S3Result};
use tokio_util::sync::CancellationToken;

use super::S3Door;
use super::buckets::owner;
use super::checksums::set_checksum;
use super::conditions::{etag, timestamp};
use super::listing::{Encoding, given, page_size};
use super::uploads::{ChecksumPlan, Upload};
use crate::catalog::command::Command;
use crate::catalog::record::{PartRecord, UploadRecord};
use crate::model::Millis;

/// The longest pause between two looks for expired uploads.
const EXPIRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// For how long this process itself has to see that nobody uses an upload.
const EXPIRY_WATCHED_MAX: Duration = Duration::from_secs(3600);

impl S3Door {
    pub(super) fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let max_parts = page_size(input.max_parts, "max-parts")?;
        let marker = input.part_number_marker.unwrap_or(0);
        let upload = self.upload(&input.upload_id, &input.bucket, &input.key)?;
        let parts = self.parts(&upload);
        let mut rest = parts.into_iter().filter(|(number, _)| i32::from(*number) > marker);
        let take = usize::try_from(max_parts).unwrap_or(0);
        let page: Vec<Part> =
            rest.by_ref().take(take).map(|(number, part)| listed_part(number, &part.record, upload.checksum)).collect();
        let truncated = take > 0 && rest.next().is_some();
        Ok(S3Response::new(ListPartsOutput {
            next_part_number_marker: page.last().and_then(|part| part.part_number).filter(|_| truncated),
            parts: (!page.is_empty()).then_some(page),
            is_truncated: Some(truncated),
            max_parts: Some(max_parts),
            part_number_marker: Some(marker),
            checksum_algorithm: upload.checksum.map(algorithm),
            checksum_type: upload.checksum.map(kind),
            owner: Some(owner()),
            initiator: Some(initiator()),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..Default::default()
        }))
    }

    pub(super) fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let encoding = Encoding::asked(input.encoding_type.as_ref())?;
        let max_uploads = page_size(input.max_uploads, "max-uploads")?;
        let prefix = input.prefix.unwrap_or_default();
        let (delimiter, key_marker) = (given(input.delimiter), input.key_marker.unwrap_or_default());
        let id_marker = given(input.upload_id_marker);
        self.check_bucket(&input.bucket)?;

        let uploads = self.uploads_below(&input.bucket, &prefix);
        let after = Marker { key: &key_marker, id: id_marker.as_deref() };
        let max = usize::try_from(max_uploads).unwrap_or(0);
        let page = cut(&uploads, &prefix, delimiter.as_deref(), &after, max);
        let prefixes: Vec<CommonPrefix> =
            page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(encoding.write(prefix)) }).collect();
        let listed: Vec<MultipartUpload> = page.uploads.iter().map(|upload| listed_upload(upload, encoding)).collect();
        let (next_key, next_id) = page.next.map_or((None, None), |(key, id)| (Some(key), Some(id)));
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: (!listed.is_empty()).then_some(listed),
            common_prefixes: (!prefixes.is_empty()).then_some(prefixes),
            is_truncated: Some(next_key.is_some()),
            next_key_marker: next_key.map(|key| encoding.write(&key)),
            next_upload_id_marker: next_id,
            prefix: Some(encoding.write(&prefix)),
            key_marker: Some(encoding.write(&key_marker)),
            upload_id_marker: id_marker,
            delimiter: delimiter.as_deref().map(|delimiter| encoding.write(delimiter)),
            encoding_type: encoding.name(),
            max_uploads: Some(max_uploads),
            bucket: Some(input.bucket),
            ..Default::default()
        }))
    }

    /// All uploads to keys with a prefix, by key and then by age.
    fn uploads_below(&self, bucket: &str, prefix: &str) -> Vec<Arc<Upload>> {
        let mut uploads = self.uploads.list(bucket, prefix);
        let remembered: Vec<Arc<Upload>> = {
            let state = self.catalog.view();
            let matching =
                state.uploads().filter(|(_, upload)| upload.bucket == bucket && upload.key.starts_with(prefix));
            matching.map(|(id, record)| Arc::new(Upload::from_record(id, record))).collect()
        };
        uploads.extend(remembered);
        uploads.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        uploads.dedup_by(|a, b| a.id == b.id);
        uploads
    }

    /// Forgets uploads without a request for `limits.multipart-expiry`, with their parts.
    pub async fn expire_uploads(&self) {
        let expiry = self.settings.limits.multipart_expiry;
        // What this process did not watch may be the time by which the machine's clock was set, and parts were answered: so
        // the last of it has to pass here.
        let unwatched = expiry.saturating_sub(EXPIRY_WATCHED_MAX);
        let ages = self.clock.ages();
        let too_old = |used| ages.of(used) > expiry && ages.watched(used).saturating_add(unwatched) > expiry;
        let forgotten = self.uploads.expire(too_old);
        let mut recorded: Vec<String> =
            forgotten.iter().filter(|upload| upload.recorded.get().is_some()).map(|upload| upload.id.clone()).collect();
        let unknown: Vec<String> = {
            let state = self.catalog.view();
            let old = state.uploads().filter(|(_, upload)| too_old(last_use(upload)));
            old.map(|(id, _)| id.clone()).collect()
        };
        recorded.extend(unknown.into_iter().filter(|id| !self.uploads.has(id)));
        recorded.sort_unstable();
        recorded.dedup();
        if !forgotten.is_empty() || !recorded.is_empty() {
            tracing::info!(forgotten = forgotten.len(), recorded = recorded.len(), "multipart uploads expired");
        }
        for id in recorded {
            if let Err(error) = self.catalog.execute(Command::AbortUpload(id.clone())).await {
                tracing::warn!(upload = id, error = crate::error::chain(&error), "an expired upload was not aborted");
            }
        }
    }

    /// Forgets expired uploads from time to time, until `stop`.
    pub async fn run_expiry(self, stop: CancellationToken) {
        let pause = (self.settings.limits.multipart_expiry / 10).clamp(Duration::from_millis(100), EXPIRY_PAUSE_MAX);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.expire_uploads().await;
        }
    }
}

fn last_use(upload: &UploadRecord) -> Millis {
    let parts = upload.parts.iter().map(|(_, part)| part.modified);
    parts.max().unwrap_or(upload.created).max(upload.created)
}

/// After which upload a page begins.
struct Marker<'a> {
    key: &'a str,
    id: Option<&'a str>,
}

impl Marker<'_> {
    /// Without an id, all uploads to the key come before.
    fn is_before(&self, upload: &Upload) -> bool {
        match self.id {
            None => upload.key.as_str() > self.key,
            Some(id) => (upload.key.as_str(), upload.id.as_str()) > (self.key, id),
        }
    }
}

#[derive(Default)]
struct UploadPage<'a> {
    uploads: Vec<&'a Upload>,
    prefixes: Vec<&'a str>,
    /// Key and id of the last entry, if there are more.
    next: Option<(String, String)>,
}

/// One page of `uploads`, which are sorted; those with a delimiter after the prefix are rolled up.
fn cut<'a>(
    uploads: &'a [Arc<Upload>],
    prefix: &str,
    delimiter: Option<&str>,
    after: &Marker<'_>,
    max: usize,
) -> UploadPage<'a> {
    let mut page = UploadPage::default();
    let mut last = None;
    for upload in uploads.iter().filter(|upload| after.is_before(upload)) {
        let rolled_up = delimiter.and_then(|delimiter| {
            let at = upload.key.get(prefix.len()..)?.find(delimiter)?;
            Some(&upload.key[..prefix.len() + at + delimiter.len()])
        });
        let known = rolled_up.is_some_and(|name| page.prefixes.last() == Some(&name) || after.key.starts_with(name));
        if known {
            last = Some(upload);
            continue;
        }
        if page.uploads.len() + page.prefixes.len() >= max {
            page.next = last.map(|upload: &Arc<Upload>| (upload.key.clone(), upload.id.clone()));
            break;
        }
        match rolled_up {
            Some(name) => page.prefixes.push(name),
            None => page.uploads.push(upload),
        }
        last = Some(upload);
    }
    page
}

fn listed_part(number: u16, record: &PartRecord, plan: Option<ChecksumPlan>) -> Part {
    let mut part = Part {
        e_tag: Some(etag(&record.etag)),
        last_modified: Some(timestamp(record.modified)),
        part_number: Some(number.into()),
        size: i64::try_from(record.len).ok(),
        ..Default::default()
    };
    let checksum = plan.zip(record.checksum.clone());
    set_checksum!(part, checksum.map(|(plan, value)| (plan.algorithm.name(), value)));
    part
}

fn listed_upload(upload: &Upload, encoding: Encoding) -> MultipartUpload {
    MultipartUpload {
        checksum_algorithm: upload.checksum.map(algorithm),
        checksum_type: upload.checksum.map(kind),
        initiated: Some(timestamp(upload.created)),
        initiator: Some(initiator()),
        key: Some(encoding.write(&upload.key)),
        owner: Some(owner()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(upload.id.clone()),
    }
}

fn initiator() -> Initiator {
    let owner = owner();
    Initiator { display_name: owner.display_name, id: owner.id }
}

fn algorithm(plan: ChecksumPlan) -> ChecksumAlgorithm {
    ChecksumAlgorithm::from_static(plan.algorithm.name())
}

fn kind(plan: ChecksumPlan) -> ChecksumType {
    let name = if plan.full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
    ChecksumType::from_static(name)
}

#[cfg(test)]
mod tests {
    use tokio::sync::OnceCell;

    use super::*;
    use crate::catalog::record::ObjectHeaders;

    fn upload(key: &str, id: &str) -> Arc<Upload> {
        Arc::new(Upload {
            id: id.into(),
            bucket: "b".into(),
            key: key.into(),
            headers: ObjectHeaders::default(),
            checksum: None,
            created: Millis(0),
            recorded: OnceCell::new(),
        })
    }

    fn names(page: &UploadPage<'_>) -> Vec<String> {
        let uploads = page.uploads.iter().map(|upload| format!("{}:{}", upload.key, upload.id));
        uploads.chain(page.prefixes.iter().map(|prefix| (*prefix).to_owned())).collect()
    }

    #[test]
    fn pages_of_one_cover_everything_once() {
        let uploads =
            [upload("p/a", "1"), upload("p/a", "2"), upload("p/d/x", "3"), upload("p/d/y", "4"), upload("p/e", "5")];
        let (mut seen, mut marker) = (vec![], (String::new(), None));
        for _ in 0..10 {
            let after = Marker { key: &marker.0, id: marker.1.as_deref() };
            let page = cut(&uploads, "p/", Some("/"), &after, 1);
            seen.extend(names(&page));
            let Some((key, id)) = page.next else { break };
            marker = (key, Some(id));
        }

        assert_eq!(seen, ["p/a:1", "p/a:2", "p/d/", "p/e:5"]);
    }

    #[test]
    fn a_page_tells_whether_there_is_another() {
        let uploads = [upload("a", "1"), upload("b", "2")];
        let start = Marker { key: "", id: None };

        assert!(cut(&uploads, "", None, &start, 2).next.is_none());
        assert_eq!(cut(&uploads, "", None, &start, 1).next, Some(("a".into(), "1".into())));
        assert_eq!(names(&cut(&uploads, "", None, &Marker { key: "a", id: None }, 9)), ["b:2"]);
    }
}
