//! Buckets, and what clients ask about them out of habit.

use http::StatusCode;
use s3s::dto::{
    Bucket, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, DeleteBucketInput, DeleteBucketOutput,
    GetBucketAclInput, GetBucketAclOutput, GetBucketLocationInput, GetBucketLocationOutput,
    GetBucketRequestPaymentInput, GetBucketRequestPaymentOutput, GetBucketVersioningInput, GetBucketVersioningOutput,
    GetObjectAclInput, GetObjectAclOutput, GetObjectLegalHoldInput, GetObjectLegalHoldOutput, GetObjectRetentionInput,
    GetObjectRetentionOutput, Grant, Grantee, HeadBucketInput, HeadBucketOutput, ListBucketsInput, ListBucketsOutput,
    Payer, Permission, Type,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::conditions::timestamp;
use super::errors::{OrS3, refuse, refuse_as};
use super::grants::grants;
use super::headers::check_version;
use super::listing::{owner, read_token, write_token};
use super::surface::OWNER;
use crate::engine::{EngineError, Refusal};

/// The region whose buckets have no location.
const REGION_WITHOUT_NAME: &str = "us-east-1";
/// The values that `max-buckets` may have.
const BUCKETS_OF_A_PAGE: std::ops::RangeInclusive<i32> = 1..=10_000;

fn full_control() -> Vec<Grant> {
    let grantee = Grantee {
        display_name: Some(OWNER.to_owned()),
        email_address: None,
        id: Some(OWNER.to_owned()),
        type_: Type::from_static(Type::CANONICAL_USER),
        uri: None,
    };
    vec![Grant { grantee: Some(grantee), permission: Some(Permission::from_static(Permission::FULL_CONTROL)) }]
}

impl S3Door {
    pub(super) async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        let created = match &self.siblings {
            None => self.engine.create_bucket(&bucket).await,
            Some(siblings) => siblings.create_bucket(&self.engine, &bucket).await,
        };
        match created {
            // Whoever owns a bucket may create it again in this region, as on S3, and nowhere else.
            Err(EngineError::Refused(Refusal::BucketExists(_)))
                if self.engine.settings().server.region == REGION_WITHOUT_NAME => {}
            created => created.or_s3()?,
        }
        Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{bucket}")) }))
    }

    pub(super) async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = req.input.bucket;
        match &self.siblings {
            None => self.engine.delete_bucket(&bucket).await.or_s3()?,
            Some(siblings) => siblings.delete_bucket(&self.engine, &bucket).await.or_s3()?,
        }
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    pub(super) fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.engine.check_bucket(&req.input.bucket).or_s3()?;
        let bucket_region = Some(self.engine.settings().server.region.clone());
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..Default::default() }))
    }

    /// The buckets that the client may see, in pages if it asks for them.
    pub(super) fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let grants = grants(&self.keys, &req);
        let ListBucketsInput { bucket_region, continuation_token, max_buckets, prefix } = &req.input;
        let region = &self.engine.settings().server.region;
        let here = bucket_region.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted == region);
        let max = match max_buckets {
            None => usize::MAX,
            Some(max) if BUCKETS_OF_A_PAGE.contains(max) => usize::try_from(*max).unwrap_or(usize::MAX),
            Some(max) => {
                let message = format!("max-buckets must be 1 to {}, is {max}", BUCKETS_OF_A_PAGE.end());
                return Err(refuse(S3ErrorCode::InvalidArgument, message));
            }
        };
        let after = continuation_token.as_deref().filter(|token| !token.is_empty()).map(read_token).transpose()?;
        let begin = prefix.as_deref().unwrap_or_default();
        let mut known = self.engine.buckets().or_s3()?;
        known.retain(|(name, _)| {
            let later = after.as_ref().is_none_or(|after| name > after);
            here && later && name.starts_with(begin) && grants.see_bucket(name)
        });
        known.sort_unstable();
        let more = known.len() > max;
        known.truncate(max);
        let next = known.last().filter(|_| more).map(|(name, _)| write_token(name));
        let buckets = known.into_iter().map(|(name, created)| Bucket {
            bucket_region: Some(region.clone()),
            creation_date: Some(timestamp(created)),
            name: Some(name),
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            continuation_token: next,
            owner: Some(owner()),
            prefix: prefix.clone(),
        }))
    }

    pub(super) fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.engine.check_bucket(&req.input.bucket).or_s3()?;
        let region = Some(self.engine.settings().server.region.clone()).filter(|region| region != REGION_WITHOUT_NAME);
        let location_constraint = region.map(BucketLocationConstraint::from);
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
    }

    /// Never enabled.
    pub(super) fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.engine.check_bucket(&req.input.bucket).or_s3()?;
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    pub(super) fn get_bucket_acl(&self, req: S3Request<GetBucketAclInput>) -> S3Result<S3Response<GetBucketAclOutput>> {
        self.engine.check_bucket(&req.input.bucket).or_s3()?;
        Ok(S3Response::new(GetBucketAclOutput { grants: Some(full_control()), owner: Some(owner()) }))
    }

    pub(super) async fn get_object_acl(
        &self,
        req: S3Request<GetObjectAclInput>,
    ) -> S3Result<S3Response<GetObjectAclOutput>> {
        check_version(req.input.version_id.as_deref())?;
        self.engine.object(&req.input.bucket, &req.input.key).await.or_s3()?;
        let output = GetObjectAclOutput { grants: Some(full_control()), owner: Some(owner()), ..Default::default() };
        Ok(S3Response::new(output))
    }

    pub(super) async fn get_object_legal_hold(
        &self,
        req: S3Request<GetObjectLegalHoldInput>,
    ) -> S3Result<S3Response<GetObjectLegalHoldOutput>> {
        check_version(req.input.version_id.as_deref())?;
        self.without_lock(&req.input.bucket, &req.input.key).await
    }

    pub(super) async fn get_object_retention(
        &self,
        req: S3Request<GetObjectRetentionInput>,
    ) -> S3Result<S3Response<GetObjectRetentionOutput>> {
        check_version(req.input.version_id.as_deref())?;
        self.without_lock(&req.input.bucket, &req.input.key).await
    }

    /// As S3 answers for an object of a bucket that was made without object lock.
    async fn without_lock<T>(&self, bucket: &str, key: &str) -> S3Result<S3Response<T>> {
        self.engine.object(bucket, key).await.or_s3()?;
        Err(refuse(S3ErrorCode::InvalidRequest, "the bucket has no object lock configuration"))
    }

    /// Nobody else does.
    pub(super) fn get_bucket_request_payment(
        &self,
        req: S3Request<GetBucketRequestPaymentInput>,
    ) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
        self.engine.check_bucket(&req.input.bucket).or_s3()?;
        let payer = Some(Payer::from_static(Payer::BUCKET_OWNER));
        Ok(S3Response::new(GetBucketRequestPaymentOutput { payer }))
    }

    /// A configuration that is empty unless it is set, which it cannot be.
    pub(super) fn empty<T: Default>(&self, bucket: &str) -> S3Result<S3Response<T>> {
        self.engine.check_bucket(bucket).or_s3()?;
        Ok(S3Response::new(T::default()))
    }

    /// A configuration that was never set, because it cannot be.
    pub(super) fn never_set<T>(&self, bucket: &str, code: S3ErrorCode, what: &str) -> S3Result<S3Response<T>> {
        self.engine.check_bucket(bucket).or_s3()?;
        let message = format!("the bucket {bucket} has no {what}");
        Err(refuse_as(StatusCode::NOT_FOUND, code, message))
    }
}
