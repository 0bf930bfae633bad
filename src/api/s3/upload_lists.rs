//! Listing multipart uploads and their parts, and forgetting those that nobody continues.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
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
/// Uploads that are aborted at a time.
const ABORTS_AT_ONCE: usize = 64;

/// An upload in a listing, with its id.
type Listed = (String, Arc<UploadRecord>);

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
    fn uploads_below(&self, bucket: &str, prefix: &str) -> Vec<Listed> {
        let mut uploads = self.uploads.list_unrecorded(bucket, prefix);
        {
            let state = self.catalog.view();
            let matching =
                state.uploads().filter(|(_, upload)| upload.bucket == bucket && upload.key.starts_with(prefix));
            uploads.extend(matching.map(|(id, record)| (id.clone(), Arc::clone(record))));
        }
        uploads.sort_by(|(a, left), (b, right)| (&left.key, a).cmp(&(&right.key, b)));
        uploads.dedup_by(|(a, _), (b, _)| a == b);
        uploads
    }

    /// Takes in the uploads that the catalog knows and the registry does not: those of the daemon before this one, and what
    /// a request has left that ended half-way. They were used last when their last part came.
    pub(super) fn adopt_uploads(&self) {
        let mut unknown: Vec<(Millis, Upload)> = {
            let state = self.catalog.view();
            let last_use = |id: &str, record: &UploadRecord| {
                state.parts(id).map(|(_, part)| part.modified).fold(record.created, Ord::max)
            };
            let unknown = state.uploads().filter(|(id, _)| !self.uploads.has(id));
            unknown.map(|(id, record)| (last_use(id, record), Upload::known(id, record))).collect()
        };
        // In the order of their use, because the oldest give way first.
        unknown.sort_by_key(|(last_use, _)| *last_use);
        for (last_use, upload) in unknown {
            self.uploads.adopt(upload, last_use);
        }
    }

    /// Forgets uploads without a request for `limits.multipart-expiry`, with their parts.
    pub async fn expire_uploads(&self) {
        let expiry = self.settings.limits.multipart_expiry;
        // What this process did not watch may be the time by which the machine's clock was set, and parts were answered: so
        // the last of it has to pass here.
        let unwatched = expiry.saturating_sub(EXPIRY_WATCHED_MAX);
        self.adopt_uploads();
        let ages = self.clock.ages();
        let too_old = |used| ages.of(used) > expiry && ages.watched(used).saturating_add(unwatched) > expiry;
        let expired = self.uploads.expire(too_old);
        if !expired.is_empty() {
            tracing::info!(uploads = expired.len(), "multipart uploads expired");
        }
        let gave_way = self.uploads.take_gave_way();
        if gave_way > 0 {
            tracing::info!(uploads = gave_way, "idle multipart uploads gave way to new ones");
        }
        self.drop_uploads("expired", expired).await;
    }

    /// Gives up uploads that nobody continues, and that are not in the registry any more.
    pub(super) async fn drop_uploads(&self, reason: &'static str, uploads: Vec<Arc<Upload>>) {
        let drops = uploads.into_iter().map(|upload| self.clone().drop_upload(reason, upload));
        futures::stream::iter(drops).buffer_unordered(ABORTS_AT_ONCE).for_each(|()| async {}).await;
    }

    async fn drop_upload(self, reason: &'static str, upload: Arc<Upload>) {
        self.metrics.uploads_dropped.with_label_values(&[reason]).inc();
        // While one is being recorded a request has it in hands: it was not taken.
        if upload.is_recorded()
            && let Err(error) = self.catalog.execute(Command::AbortUpload(upload.id.clone())).await
        {
            let error = crate::error::chain(&error);
            tracing::warn!(upload = upload.id, error, "a multipart upload that nobody continues was not aborted");
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

/// After which upload a page begins.
struct Marker<'a> {
    key: &'a str,
    id: Option<&'a str>,
}

impl Marker<'_> {
    /// Without an id, all uploads to the key come before.
    fn is_before(&self, (id, upload): &Listed) -> bool {
        match self.id {
            None => upload.key.as_str() > self.key,
            Some(after) => (upload.key.as_str(), id.as_str()) > (self.key, after),
        }
    }
}

#[derive(Default)]
struct UploadPage<'a> {
    uploads: Vec<&'a Listed>,
    prefixes: Vec<&'a str>,
    /// Key and id of the last entry, if there are more.
    next: Option<(String, String)>,
}

/// One page of `uploads`, which are sorted; those with a delimiter after the prefix are rolled up.
fn cut<'a>(
    uploads: &'a [Listed],
    prefix: &str,
    delimiter: Option<&str>,
    after: &Marker<'_>,
    max: usize,
) -> UploadPage<'a> {
    let mut page = UploadPage::default();
    let mut last = None;
    for upload in uploads.iter().filter(|upload| after.is_before(upload)) {
        let key = &upload.1.key;
        let rolled_up = delimiter.and_then(|delimiter| {
            let at = key.get(prefix.len()..)?.find(delimiter)?;
            Some(&key[..prefix.len() + at + delimiter.len()])
        });
        let known = rolled_up.is_some_and(|name| page.prefixes.last() == Some(&name) || after.key.starts_with(name));
        if known {
            last = Some(upload);
            continue;
        }
        if page.uploads.len() + page.prefixes.len() >= max {
            page.next = last.map(|(id, upload): &Listed| (upload.key.clone(), id.clone()));
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

fn listed_upload((id, upload): &Listed, encoding: Encoding) -> MultipartUpload {
    let checksum = ChecksumPlan::of(upload);
    MultipartUpload {
        checksum_algorithm: checksum.map(algorithm),
        checksum_type: checksum.map(kind),
        initiated: Some(timestamp(upload.created)),
        initiator: Some(initiator()),
        key: Some(encoding.write(&upload.key)),
        owner: Some(owner()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(id.clone()),
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
    use super::*;
    use crate::catalog::record::ObjectHeaders;

    fn upload(key: &str, id: &str) -> Listed {
        let (bucket, key, headers) = ("b".into(), key.into(), ObjectHeaders::default());
        (id.into(), Arc::new(UploadRecord { bucket, key, headers, checksum: None, created: Millis(0) }))
    }

    fn names(page: &UploadPage<'_>) -> Vec<String> {
        let uploads = page.uploads.iter().map(|(id, upload)| format!("{}:{id}", upload.key));
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
