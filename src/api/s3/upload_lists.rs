//! Listing multipart uploads and their parts.

use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CommonPrefix, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part, StorageClass,
};
use s3s::{S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, ChecksumPlan, set_checksum};
use super::conditions::{etag, timestamp};
use super::errors::OrS3;
use super::headers::STANDARD;
use super::listing::{Encoding, given, owner, page_size};
use super::multipart::upload_name;
use super::objects::checksum_type;
use super::xml::MoreElements;
use crate::engine::UploadView;
use crate::model::{NewUpload, PartHead};

impl S3Door {
    pub(super) fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let max_parts = page_size(input.max_parts, "max-parts")?;
        let marker = input.part_number_marker.unwrap_or(0);
        let name = upload_name(&input.upload_id, &input.bucket, &input.key);
        let (upload, parts) = self.engine.upload_parts(&name).or_s3()?;
        let plan = ChecksumPlan::of(&upload);
        let mut rest = parts.into_iter().filter(|(number, _)| i32::from(*number) > marker);
        let take = usize::try_from(max_parts).unwrap_or(0);
        let (mut page, mut more) = (vec![], vec![]);
        for (number, part) in rest.by_ref().take(take) {
            let checksum = plan.zip(part.checksum.as_deref());
            more.push((
                "Part",
                checksum
                    .map_or_else(String::new, |(plan, value)| checksums::more_element(plan.algorithm.name(), value)),
            ));
            page.push(listed_part(number, &part, plan));
        }
        let truncated = take > 0 && rest.next().is_some();
        let mut response = S3Response::new(ListPartsOutput {
            next_part_number_marker: page.last().and_then(|part| part.part_number).filter(|_| truncated),
            parts: (!page.is_empty()).then_some(page),
            is_truncated: Some(truncated),
            max_parts: Some(max_parts),
            part_number_marker: Some(marker),
            checksum_algorithm: plan.map(algorithm),
            checksum_type: plan.map(kind),
            owner: Some(owner()),
            initiator: Some(initiator()),
            storage_class: Some(class(&upload)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..Default::default()
        });
        response.extensions.insert(MoreElements(more));
        Ok(response)
    }

    pub(super) async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let encoding = Encoding::asked(input.encoding_type.as_ref())?;
        let max_uploads = page_size(input.max_uploads, "max-uploads")?;
        let prefix = input.prefix.unwrap_or_default();
        let (delimiter, key_marker) = (given(input.delimiter), input.key_marker.unwrap_or_default());
        let id_marker = given(input.upload_id_marker);

        let uploads = match &self.siblings {
            None => self.engine.uploads_below(&input.bucket, &prefix).or_s3()?,
            Some(siblings) => siblings.uploads_below(&self.engine, &input.bucket, &prefix).await.or_s3()?,
        };
        let after = UploadMarker { key: &key_marker, id: id_marker.as_deref() };
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
}

/// After which upload a page begins.
struct UploadMarker<'a> {
    key: &'a str,
    id: Option<&'a str>,
}

impl UploadMarker<'_> {
    /// Without an id, all uploads to the key come before.
    fn is_before(&self, UploadView { id, upload, .. }: &UploadView) -> bool {
        match self.id {
            None => upload.key.as_str() > self.key,
            Some(after) => (upload.key.as_str(), id.as_str()) > (self.key, after),
        }
    }
}

#[derive(Default)]
struct UploadPage<'a> {
    uploads: Vec<&'a UploadView>,
    prefixes: Vec<&'a str>,
    /// Key and id of the last entry, if there are more.
    next: Option<(String, String)>,
}

/// One page of `uploads`, which are sorted; those with a delimiter after the prefix are rolled up.
fn cut<'a>(
    uploads: &'a [UploadView],
    prefix: &str,
    delimiter: Option<&str>,
    after: &UploadMarker<'_>,
    max: usize,
) -> UploadPage<'a> {
    let mut page = UploadPage::default();
    let mut last = None;
    for upload in uploads.iter().filter(|upload| after.is_before(upload)) {
        let key = &upload.upload.key;
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
            page.next = last.map(|last: &UploadView| (last.upload.key.clone(), last.id.clone()));
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

fn listed_part(number: u16, head: &PartHead, plan: Option<ChecksumPlan>) -> Part {
    let mut part = Part {
        e_tag: Some(etag(&head.etag)),
        last_modified: Some(timestamp(head.modified)),
        part_number: Some(number.into()),
        size: i64::try_from(head.len).ok(),
        ..Default::default()
    };
    let checksum = plan.zip(head.checksum.clone());
    set_checksum!(part, checksum.map(|(plan, value)| (plan.algorithm.name(), value)));
    part
}

fn listed_upload(UploadView { id, upload, created }: &UploadView, encoding: Encoding) -> MultipartUpload {
    let checksum = ChecksumPlan::of(upload);
    MultipartUpload {
        checksum_algorithm: checksum.map(algorithm),
        checksum_type: checksum.map(kind),
        initiated: Some(timestamp(*created)),
        initiator: Some(initiator()),
        key: Some(encoding.write(&upload.key)),
        owner: Some(owner()),
        storage_class: Some(class(upload)),
        upload_id: Some(id.clone()),
    }
}

fn class(upload: &NewUpload) -> StorageClass {
    upload.headers.storage_class.clone().map_or_else(|| StorageClass::from_static(STANDARD), StorageClass::from)
}

fn initiator() -> Initiator {
    let owner = owner();
    Initiator { display_name: owner.display_name, id: owner.id }
}

fn algorithm(plan: ChecksumPlan) -> ChecksumAlgorithm {
    ChecksumAlgorithm::from_static(plan.algorithm.name())
}

fn kind(plan: ChecksumPlan) -> ChecksumType {
    checksum_type(!plan.full_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Millis, NewUpload, ObjectHeaders};

    fn upload(key: &str, id: &str) -> UploadView {
        let (bucket, key, headers) = ("b".into(), key.into(), ObjectHeaders::default());
        let upload = NewUpload { bucket, key, headers, checksum: None };
        UploadView { id: id.into(), upload: upload.into(), created: Millis(0) }
    }

    fn names(page: &UploadPage<'_>) -> Vec<String> {
        let uploads = page.uploads.iter().map(|view| format!("{}:{}", view.upload.key, view.id));
        uploads.chain(page.prefixes.iter().map(|prefix| (*prefix).to_owned())).collect()
    }

    #[test]
    fn pages_of_one_cover_everything_once() {
        let uploads =
            [upload("p/a", "1"), upload("p/a", "2"), upload("p/d/x", "3"), upload("p/d/y", "4"), upload("p/e", "5")];
        let (mut seen, mut marker) = (vec![], (String::new(), None));
        for _ in 0..10 {
            let after = UploadMarker { key: &marker.0, id: marker.1.as_deref() };
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
        let start = UploadMarker { key: "", id: None };

        assert!(cut(&uploads, "", None, &start, 2).next.is_none());
        assert_eq!(cut(&uploads, "", None, &start, 1).next, Some(("a".into(), "1".into())));
        assert_eq!(names(&cut(&uploads, "", None, &UploadMarker { key: "a", id: None }, 9)), ["b:2"]);
    }
}
