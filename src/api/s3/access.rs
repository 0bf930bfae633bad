//! Who may come in, what they may touch, and which host names carry a bucket.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;
use http::header::CONTENT_LENGTH;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{Credentials, S3Auth, SecretKey};
use s3s::dto::{
    CopyObjectInput, ListMultipartUploadsInput, ListObjectVersionsInput, ListObjectsInput, ListObjectsV2Input,
    UploadPartCopyInput,
};
use s3s::host::{S3Host, VirtualHost};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result};

use super::errors::{OrS3, refuse};
use super::gate::{Operation, SignedBy, XML_BYTES_MAX};
use super::objects::bucket_source;
use crate::config::{LimitsSettings, S3Key};
use crate::runtime::{ByteBudget, Payer, Share};

/// Operations on a bucket whose prefix tells what they touch; it is looked at once it is parsed.
const LISTINGS: [&str; 4] = ["ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads"];
/// Operations whose body does not end up in memory as a whole.
const STREAMING: [&str; 2] = ["PutObject", "UploadPart"];

/// The access keys, and what each may touch.
#[derive(Debug)]
pub(super) struct Keys {
    keys: HashMap<String, (SecretKey, Grants)>,
    unknown: Grants,
    /// What each may hold of the memory, where there are several.
    shares: HashMap<String, Share>,
}

/// What an access key may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grants {
    All,
    None,
    /// What lies below these `bucket/key` prefixes.
    Below(Vec<String>),
}

impl Keys {
    /// The configured keys. Without any, everybody may touch everything.
    pub(super) fn new(keys: &[S3Key], memory_bytes: u64) -> Self {
        let grants = |key: &S3Key| match &key.prefixes[..] {
            [] => Grants::All,
            prefixes => Grants::Below(prefixes.iter().map(|prefix| whole_buckets(prefix)).collect()),
        };
        let entry = |key: &S3Key| {
            let secret = SecretKey::from(key.secret_key.expose());
            (key.access_key.clone(), (secret, grants(key)))
        };
        let unknown = if keys.is_empty() { Grants::All } else { Grants::None };
        let share = |key: &S3Key| (key.access_key.clone(), Share::new(memory_bytes));
        let shares = if keys.len() > 1 { keys.iter().map(share).collect() } else { HashMap::new() };
        Self { keys: keys.iter().map(entry).collect(), unknown, shares }
    }

    /// Whether nobody has to sign anything.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What the signer of a request may touch.
    pub(super) fn grants(&self, credentials: Option<&Credentials>) -> &Grants {
        self.grants_of(credentials.map(|credentials| credentials.access_key.as_str()))
    }

    fn grants_of(&self, access_key: Option<&str>) -> &Grants {
        access_key.and_then(|key| self.keys.get(key)).map_or(&self.unknown, |(_, grants)| grants)
    }
}

/// A prefix that names a bucket alone is meant for that bucket, not for those whose names begin so.
fn whole_buckets(prefix: &str) -> String {
    if prefix.contains('/') { prefix.to_owned() } else { format!("{prefix}/") }
}

impl Grants {
    /// Whether every key that begins so may be touched.
    pub(super) fn covers(&self, bucket: &str, key_or_prefix: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Below(prefixes) => {
                let path = format!("{bucket}/{key_or_prefix}");
                prefixes.iter().any(|prefix| path.starts_with(prefix.as_str()))
            }
        }
    }

    /// Whether deleting `key` may be answered with success and left undone: it is a directory above what may be touched.
    ///
    /// # Errors
    /// `AccessDenied` if it is not.
    pub(super) fn ignores(&self, bucket: &str, key: &str) -> S3Result<bool> {
        match self {
            Self::Below(prefixes) if key.ends_with('/') => {
                let path = format!("{bucket}/{key}");
                if prefixes.iter().any(|prefix| prefix.starts_with(&path)) { Ok(false) } else { Err(denied()) }
            }
            _ => Err(denied()),
        }
    }

    /// Whether there is anything in a bucket that may be touched.
    pub(super) fn sees_bucket(&self, bucket: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Below(prefixes) => {
                prefixes.iter().any(|prefix| prefix.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('/')))
            }
        }
    }
}

fn denied() -> S3Error {
    refuse(S3ErrorCode::AccessDenied, "the access key may not do this here")
}

fn allow(allowed: bool) -> S3Result<()> {
    if allowed { Ok(()) } else { Err(denied()) }
}

/// Checks signatures and grants, and pays for bodies that s3s reads whole.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub keys: Arc<Keys>,
    pub budget: ByteBudget,
    pub limits: LimitsSettings,
}

#[async_trait::async_trait]
impl S3Auth for Guard {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let found = self.keys.keys.get(access_key).map(|(secret, _)| secret.clone());
        found.ok_or_else(|| refuse(S3ErrorCode::InvalidAccessKeyId, "the access key is not known here"))
    }
}

#[async_trait::async_trait]
impl S3Access for Guard {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = cx.s3_op().name().to_owned();
        if let Some(cell) = cx.extensions_mut().get::<Operation>() {
            cell.set(&operation);
        }
        let signed_by = cx.extensions_mut().get::<SignedBy>().map(|by| by.0.clone());
        let access_key = cx.credentials().map(|credentials| credentials.access_key.clone()).or(signed_by);
        let grants = self.keys.grants_of(access_key.as_deref());
        if *grants == Grants::None {
            return Err(refuse(S3ErrorCode::AccessDenied, "the request is not signed"));
        }
        if let Some(share) = access_key.and_then(|key| self.keys.shares.get(&key)) {
            Payer::also(share);
        }
        match cx.s3_path() {
            S3Path::Root => {}
            S3Path::Object { bucket, key } => allow(grants.covers(bucket, key))?,
            // The keys of a batch are looked at one by one.
            S3Path::Bucket { bucket } if LISTINGS.contains(&operation.as_str()) || operation == "DeleteObjects" => {
                allow(grants.sees_bucket(bucket))?;
            }
            S3Path::Bucket { bucket } if matches!(*cx.method(), Method::GET | Method::HEAD) => {
                allow(grants.sees_bucket(bucket))?;
            }
            S3Path::Bucket { bucket } => allow(grants.covers(bucket, ""))?,
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
        allow(self.keys.grants(req.credentials.as_ref()).covers(bucket, key))
    }

    async fn upload_part_copy(&self, req: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        let (bucket, key) = bucket_source(&req.input.copy_source)?;
        allow(self.keys.grants(req.credentials.as_ref()).covers(bucket, key))
    }
}

impl Guard {
    fn listing<T>(&self, req: &S3Request<T>, bucket: &str, prefix: Option<&str>) -> S3Result<()> {
        allow(self.keys.grants(req.credentials.as_ref()).covers(bucket, prefix.unwrap_or_default()))
    }

    /// Pays for a body that s3s is about to read whole; given back with the request.
    async fn pay(&self, operation: &str, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let len = cx.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let len = len.unwrap_or(0).min(XML_BYTES_MAX);
        if len == 0 || STREAMING.contains(&operation) {
            return Ok(());
        }
        let paid = self.budget.pay(len, self.limits.admission_timeout).await.or_s3()?;
        cx.extensions_mut().insert(Arc::new(paid));
        Ok(())
    }
}

/// Host names below which the first label is a bucket. No other host name ever is one.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    /// In lower case.
    pub domains: Vec<String>,
}

impl Hosts {
    /// The bucket in a host name.
    pub(super) fn bucket<'a>(&self, host: &'a str) -> Option<&'a str> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        self.domains.iter().find_map(|domain| {
            let at = name.len().checked_sub(domain.len())?;
            let (below, found) = (name.get(..at)?, name.get(at..)?);
            let bucket = below.strip_suffix('.').filter(|_| found.eq_ignore_ascii_case(domain))?;
            (!bucket.is_empty()).then_some(bucket)
        })
    }
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let found = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => found.with_bucket(bucket.to_ascii_lowercase()),
            None => found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn keys(prefixes: &[&str]) -> Keys {
        Keys::new(
            &[S3Key {
                access_key: "K".into(),
                secret_key: Secret::new("S"),
                prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
            }],
            1,
        )
    }

    #[test]
    fn without_keys_everybody_may_touch_everything() {
        assert_eq!(*Keys::new(&[], 1).grants_of(None), Grants::All);
        assert_eq!(*Keys::new(&[], 1).grants_of(Some("any")), Grants::All);
        assert_eq!(*keys(&[]).grants_of(None), Grants::None);
        assert_eq!(*keys(&[]).grants_of(Some("other")), Grants::None);
        assert_eq!(*keys(&[]).grants_of(Some("K")), Grants::All);
    }

    #[test]
    fn a_prefix_covers_what_lies_below_it() {
        let keys = keys(&["b/jobs/", "whole"]);
        let grants = keys.grants_of(Some("K"));

        assert!(grants.covers("b", "jobs/1"));
        assert!(grants.covers("whole", "") && grants.covers("whole", "x"));
        assert!(!grants.covers("b", "job") && !grants.covers("b", "") && !grants.covers("whole-2", "x"));
        assert!(grants.sees_bucket("b") && grants.sees_bucket("whole") && !grants.sees_bucket("whole-2"));
    }

    #[test]
    fn markers_of_directories_above_are_deleted_in_name_only() {
        let keys = keys(&["b/jobs/a/"]);
        let grants = keys.grants_of(Some("K"));

        assert!(!grants.ignores("b", "jobs/").unwrap());
        assert!(grants.ignores("b", "jobs").is_err());
        assert!(grants.ignores("b", "other/").is_err());
        assert!(Grants::None.ignores("b", "jobs/").is_err());
    }

    #[test]
    fn only_configured_domains_carry_buckets() {
        let hosts = Hosts { domains: vec!["s3.local".into()] };

        assert_eq!(hosts.bucket("b.s3.local"), Some("b"));
        assert_eq!(hosts.bucket("my.b.S3.Local:9000"), Some("my.b"));
        for host in
            ["s3.local", "s3.local:9000", ".s3.local", "xs3.local", "esker.svc.cluster.local", "localhost:9000", "ü"]
        {
            assert_eq!(hosts.bucket(host), None, "{host}");
        }
        assert_eq!(Hosts { domains: vec![] }.bucket("b.s3.local"), None);
    }
}
