//! An S3 server in memory, on a free port of this machine.
//!
//! Conditions (`If-None-Match: *`, `If-Match`) are checked and the write carried out under one lock, for single puts
//! and for the completion of multipart uploads: of any number of racing writers exactly one wins. Requests are
//! authenticated as on S3. What the wire does to a request is up to [`crate::faults`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use esker::runtime::Clock;
use futures::TryStreamExt;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use crate::faults::{Faults, Wired};

pub const BUCKET: &str = "state";
pub const REGION: &str = "us-east-1";
pub const ACCESS_KEY: &str = "tester";
pub const SECRET_KEY: &str = "tester-secret";

/// Which conditions of a write the server looks at. Real servers that ignore some exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    Honoured,
    CreateIgnored,
    UpdateIgnored,
}

/// A running server; ends when dropped.
pub struct S3Server {
    objects: Objects,
    wired: Wired,
}

impl S3Server {
    pub async fn start() -> Self {
        Self::start_with(Conditions::Honoured).await
    }

    pub async fn start_with(conditions: Conditions) -> Self {
        let objects = Objects { shared: Arc::new(Shared { conditions, ..Shared::default() }) };
        let mut service = S3ServiceBuilder::new(objects.clone());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let wired = Wired::start(service.build()).await;
        Self { objects, wired }
    }

    pub fn endpoint(&self) -> String {
        self.wired.endpoint()
    }

    /// What is stored.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What the wire does, and what came over it.
    pub fn faults(&self) -> &Faults {
        self.wired.faults()
    }
}

/// What is stored in the one bucket. Clones share it.
#[derive(Clone)]
pub struct Objects {
    shared: Arc<Shared>,
}

struct Shared {
    conditions: Conditions,
    contents: Mutex<Contents>,
    /// Makes entity tags and upload ids that were never used before.
    names: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { conditions: Conditions::Honoured, contents: Mutex::default(), names: AtomicU64::new(1) }
    }
}

#[derive(Default, Clone)]
pub struct Contents {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Clone)]
struct Object {
    data: Bytes,
    e_tag: ETag,
    modified_ms: u64,
    metadata: Option<Metadata>,
}

#[derive(Clone)]
struct Upload {
    key: String,
    metadata: Option<Metadata>,
    parts: BTreeMap<i32, (ETag, Bytes)>,
}

impl Objects {
    /// Keys that start with `prefix`.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let contents = self.shared.contents.lock();
        contents.objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// The bytes under a key.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.shared.contents.lock().objects.get(key).map(|object| object.data.clone())
    }

    /// Puts an object there behind everybody's back.
    pub fn insert(&self, key: &str, data: Bytes) {
        let e_tag = ETag::Strong(self.name());
        let object = Object { data, e_tag, modified_ms: Clock::System.now().0, metadata: None };
        self.shared.contents.lock().objects.insert(key.to_owned(), object);
    }

    /// All that is stored, to be put back.
    pub fn contents(&self) -> Contents {
        self.shared.contents.lock().clone()
    }

    /// Puts back what was stored, and nothing else.
    pub fn put_back(&self, contents: &Contents) {
        *self.shared.contents.lock() = contents.clone();
    }

    /// Changes an object behind everybody's back.
    pub fn set(&self, key: &str, data: Bytes) {
        if let Some(object) = self.shared.contents.lock().objects.get_mut(key) {
            object.data = data;
        }
    }

    /// Takes an object away behind everybody's back.
    pub fn remove(&self, key: &str) {
        self.shared.contents.lock().objects.remove(key);
    }

    /// Multipart uploads that were neither completed nor aborted, by key.
    pub fn open_uploads(&self) -> Vec<String> {
        self.shared.contents.lock().uploads.values().map(|upload| upload.key.clone()).collect()
    }

    fn name(&self) -> String {
        format!("{:032x}", self.shared.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes an object if the conditions hold, in one step.
    fn write(
        &self,
        contents: &mut Contents,
        key: String,
        data: Bytes,
        metadata: Option<Metadata>,
        conditions: (Option<IfNoneMatch>, Option<IfMatch>),
    ) -> S3Result<ETag> {
        let there = contents.objects.get(&key);
        let (if_none_match, if_match) = conditions;
        if if_none_match.is_some() && there.is_some() && self.shared.conditions != Conditions::CreateIgnored {
            return Err(s3_error!(PreconditionFailed, "there is an object"));
        }
        if let Some(wanted) = if_match
            && self.shared.conditions != Conditions::UpdateIgnored
        {
            let there = there.ok_or_else(|| s3_error!(NoSuchKey))?;
            if wanted.as_etag().is_some_and(|wanted| *wanted != there.e_tag) {
                return Err(s3_error!(PreconditionFailed, "another entity tag"));
            }
        }
        let e_tag = ETag::Strong(self.name());
        let object = Object { data, e_tag: e_tag.clone(), modified_ms: Clock::System.now().0, metadata };
        contents.objects.insert(key, object);
        Ok(e_tag)
    }

    fn find(&self, key: &str) -> S3Result<Object> {
        self.shared.contents.lock().objects.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

fn modified(object: &Object) -> LastModified {
    LastModified::from(UNIX_EPOCH + Duration::from_millis(object.modified_ms))
}

fn len_of(bytes: &Bytes) -> i64 {
    i64::try_from(bytes.len()).unwrap()
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let whole = body.try_fold(BytesMut::new(), |mut whole, piece| async move {
        whole.extend_from_slice(&piece);
        Ok(whole)
    });
    // The signature of the payload is checked while it is read.
    Ok(whole.await.map_err(|error| s3_error!(BadDigest, "{error}"))?.freeze())
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let data = collect(input.body).await?;
        let mut contents = self.shared.contents.lock();
        let conditions = (input.if_none_match, input.if_match);
        let e_tag = self.write(&mut contents, input.key, data, input.metadata, conditions)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(e_tag), ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let object = self.find(&req.input.key)?;
        let whole = object.data.len() as u64;
        let range = req.input.range.map(|range| range.check(whole)).transpose();
        let range = range.map_err(|_| s3_error!(InvalidRange))?;
        let data = range.as_ref().map_or(object.data.clone(), |range| {
            object.data.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
        });
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(len_of(&data)),
            content_range: range.map(|range| format!("bytes {}-{}/{whole}", range.start, range.end - 1)),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(object.e_tag.clone()),
            last_modified: Some(modified(&object)),
            metadata: object.metadata,
            body: Some(s3s::Body::from(data).into()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.find(&req.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(len_of(&object.data)),
            e_tag: Some(object.e_tag.clone()),
            last_modified: Some(modified(&object)),
            metadata: object.metadata,
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let keys = req.input.delete.objects.into_iter().map(|object| object.key);
        let deleted = keys.map(|key| {
            self.remove(&key);
            DeletedObject { key: Some(key), ..Default::default() }
        });
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted.collect()), ..Default::default() }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after).unwrap_or_default();
        let max = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(1000);
        let all = self.shared.contents.lock().objects.clone();
        let mut common: Vec<String> = vec![];
        let mut found = vec![];
        let mut more = false;
        for (key, object) in all.into_iter().filter(|(key, _)| key.starts_with(&prefix) && *key > after) {
            let folder = input.delimiter.as_ref().and_then(|delimiter| {
                key[prefix.len()..].find(delimiter.as_str()).map(|at| key[..prefix.len() + at + 1].to_owned())
            });
            match folder {
                Some(folder) if folder <= after || common.last() == Some(&folder) => continue,
                _ if common.len() + found.len() == max => {
                    more = true;
                    break;
                }
                Some(folder) => common.push(folder),
                None => found.push((key, object)),
            }
        }
        let last = found.last().map(|(key, _)| key.clone()).max(common.last().cloned());
        let contents = found.into_iter().map(|(key, object)| s3s::dto::Object {
            size: Some(len_of(&object.data)),
            e_tag: Some(object.e_tag.clone()),
            last_modified: Some(modified(&object)),
            key: Some(key),
            ..Default::default()
        });
        let common = common.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            contents: Some(contents.collect()),
            common_prefixes: Some(common.collect()),
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let id = self.name();
        let upload = Upload { key: req.input.key.clone(), metadata: req.input.metadata, parts: BTreeMap::new() };
        self.shared.contents.lock().uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let data = collect(req.input.body).await?;
        let e_tag = ETag::Strong(self.name());
        let mut contents = self.shared.contents.lock();
        let upload = contents.uploads.get_mut(&req.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(req.input.part_number, (e_tag.clone(), data));
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(e_tag), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let mut contents = self.shared.contents.lock();
        let upload = contents.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let mut whole = BytesMut::new();
        for part in input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default() {
            let uploaded = part.part_number.and_then(|number| upload.parts.get(&number));
            let (e_tag, data) = uploaded.ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref() != Some(e_tag) {
                return Err(s3_error!(InvalidPart));
            }
            whole.extend_from_slice(data);
        }
        let metadata = upload.metadata.clone();
        let conditions = (input.if_none_match, input.if_match);
        let e_tag = self.write(&mut contents, input.key.clone(), whole.freeze(), metadata, conditions)?;
        contents.uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(e_tag),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let aborted = self.shared.contents.lock().uploads.remove(&req.input.upload_id);
        aborted.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
