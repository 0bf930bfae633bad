//! Decides who may come in, what a key may touch, and which host names carry a bucket.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    CopyObjectInput, ListMultipartUploadsInput, ListObjectVersionsInput, ListObjectsInput, ListObjectsV2Input,
    UploadPartCopyInput,
};
use s3s::path::S3Path;
use s3s::{S3ErrorCode, S3Request, S3Result};

use super::copies::bucket_source;
use super::errors::{OrS3, refuse};
use super::gate::{OperationCell, XML_BYTES_MAX};
use super::grants::{denied, grants, signer};
use super::surface;
use crate::api::keys::KeyRing;
use crate::api::shards::siblings::Siblings;
use crate::config::LimitsSettings;
use crate::engine::{Engine, EngineError};
use crate::runtime::{ByteBudget, PaidBytes, Payer};

/// Operations whose body does not end up in memory as a whole.
const STREAMING: [&str; 2] = ["PutObject", "UploadPart"];

fn allow(allowed: bool) -> S3Result<()> {
    if allowed { Ok(()) } else { Err(denied()) }
}

/// Checks signatures and grants, and pays for bodies that s3s reads whole.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub keys: KeyRing,
    pub budget: ByteBudget,
    pub limits: LimitsSettings,
    /// Where the keys of other shards are, if the engine has one shard of several.
    pub shard: Option<(Siblings, Engine)>,
}

#[async_trait::async_trait]
impl S3Auth for Guard {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let keys = self.keys.current();
        let found = keys.get(access_key).map(|known| SecretKey::from(known.secret.expose()));
        found.ok_or_else(|| refuse(S3ErrorCode::InvalidAccessKeyId, "the access key is not known here"))
    }
}

#[async_trait::async_trait]
impl S3Access for Guard {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = cx.s3_op().name().to_owned();
        if let Some(cell) = cx.extensions_mut().get::<OperationCell>() {
            cell.set(&operation);
        }
        let access_key = match cx.credentials() {
            Some(credentials) => Some(credentials.access_key.clone()),
            None => signer(None, cx.extensions_mut()).map(str::to_owned),
        };
        let grants = self.keys.current().grants_of(access_key.as_deref());
        if grants.are_none() {
            return Err(refuse(S3ErrorCode::AccessDenied, "the request is not signed"));
        }
        self.also_from_share(access_key.as_deref());
        let writes = surface::writes(&operation, cx.method());
        allow(match cx.s3_path() {
            S3Path::Root => true,
            S3Path::Object { bucket, key } if writes => grants.write(bucket, key),
            S3Path::Object { bucket, key } => grants.read(bucket, key),
            // The keys of a batch are looked at one by one, and the prefix of a listing once it is parsed.
            S3Path::Bucket { bucket } if !writes || operation == "DeleteObjects" => grants.see_bucket(bucket),
            S3Path::Bucket { bucket } => grants.write(bucket, ""),
        })?;
        // Only who may come in learns what is done here.
        surface::check(&operation, cx.headers(), cx.uri())?;
        if let (Some((siblings, engine)), S3Path::Object { bucket, key }) = (&self.shard, cx.s3_path()) {
            if siblings.elsewhere(bucket, key).is_some() {
                // Never stored where nobody looks for it.
                return Err(refuse(S3ErrorCode::InternalError, "the request was led to the owner of another key"));
            }
            if matches!(engine.check_bucket(bucket), Err(EngineError::Refused(_))) {
                siblings.adopt_bucket(engine, bucket).await.or_s3()?;
            }
        }
        self.pay(&operation, cx).await
    }

    async fn list_objects(&self, req: &mut S3Request<ListObjectsInput>) -> S3Result<()> {
        self.listing(req, &req.input.bucket, req.input.prefix.as_deref())
    }

    async fn list_objects_v2(&self, req: &mut S3Request<ListObjectsV2Input>) -> S3Result<()> {
        self.listing(req, &req.input.bucket, req.input.prefix.as_deref())
    }

    async fn list_object_versions(&self, req: &mut S3Request<ListObjectVersionsInput>) -> S3Result<()> {
        self.listing(req, &req.input.bucket, req.input.prefix.as_deref())
    }

    async fn list_multipart_uploads(&self, req: &mut S3Request<ListMultipartUploadsInput>) -> S3Result<()> {
        self.listing(req, &req.input.bucket, req.input.prefix.as_deref())
    }

    async fn copy_object(&self, req: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        let (bucket, key) = bucket_source(&req.input.copy_source)?;
        allow(grants(&self.keys, req).read(bucket, key))
    }

    async fn upload_part_copy(&self, req: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        let (bucket, key) = bucket_source(&req.input.copy_source)?;
        allow(grants(&self.keys, req).read(bucket, key))
    }
}

impl Guard {
    fn listing<T>(&self, req: &S3Request<T>, bucket: &str, prefix: Option<&str>) -> S3Result<()> {
        allow(grants(&self.keys, req).read(bucket, prefix.unwrap_or_default()))
    }

    /// Takes bytes that are paid for from here on from the share of the access key, too.
    fn also_from_share(&self, access_key: Option<&str>) {
        let keys = self.keys.current();
        if let Some(share) = access_key.and_then(|key| keys.get(key)?.share.as_ref()) {
            Payer::also(share);
        }
    }

    /// Pays for a body of XML before it is read.
    ///
    /// # Errors
    /// 503 `SlowDown` if there is no memory for it in time.
    pub(super) async fn pay_for_xml(&self, access_key: Option<&str>, len: u64) -> S3Result<PaidBytes> {
        self.also_from_share(access_key);
        self.budget.pay(len, self.limits.admission_timeout).await.map_err(EngineError::Memory).or_s3()
    }

    /// Pays for a body that s3s is about to read whole, unless it is paid for; given back with the request.
    async fn pay(&self, operation: &str, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.extensions_mut().get::<Arc<PaidBytes>>().is_some() {
            return Ok(());
        }
        let len = cx.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let len = len.unwrap_or(0).min(XML_BYTES_MAX);
        if len == 0 || STREAMING.contains(&operation) {
            return Ok(());
        }
        let paid = self.budget.pay(len, self.limits.admission_timeout).await;
        let paid = paid.map_err(EngineError::Memory).or_s3()?;
        cx.extensions_mut().insert(Arc::new(paid));
        Ok(())
    }
}
