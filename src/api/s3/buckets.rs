//! Buckets, and what clients ask about them out of habit.

use http::StatusCode;
use s3s::dto::{
    Bucket, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, DeleteBucketInput, DeleteBucketOutput,
    GetBucketAclInput, GetBucketAclOutput, GetBucketLocationInput, GetBucketLocationOutput, GetBucketVersioningInput,
    GetBucketVersioningOutput, GetObjectAclInput, GetObjectAclOutput, GetObjectTaggingInput, GetObjectTaggingOutput,
    Grant, Grantee, HeadBucketInput, HeadBucketOutput, ListBucketsInput, ListBucketsOutput, Owner, Permission, Type,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::conditions::timestamp;
use super::errors::{OrS3, not_implemented, refuse_as};
use super::headers::{check_version, refuse_what_is_not_done};
use crate::catalog::command::Command;

/// Who owns everything.
const OWNER: &str = "esker";
/// The region whose buckets have no location.
const REGION_WITHOUT_NAME: &str = "us-east-1";

/// The owner of everything.
pub(super) fn owner() -> Owner {
    Owner { display_name: Some(OWNER.to_owned()), id: Some(OWNER.to_owned()) }
}

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
        refuse_what_is_not_done(&req.headers)?;
        if req.input.object_lock_enabled_for_bucket == Some(true) {
            return Err(not_implemented("object lock"));
        }
        let bucket = req.input.bucket;
        self.catalog.execute(Command::CreateBucket(bucket.clone())).await.or_s3()?;
        Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{bucket}")) }))
    }

    pub(super) async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = req.input.bucket;
        self.catalog.execute(Command::DeleteBucket(bucket.clone())).await.or_s3()?;
        self.uploads.drop_bucket(&bucket);
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    pub(super) fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&req.input.bucket)?;
        let bucket_region = Some(self.settings.server.region.clone());
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..Default::default() }))
    }

    /// The buckets that the client may see.
    pub(super) fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.catalog.check().or_s3()?;
        let grants = self.keys.grants(req.credentials.as_ref());
        let prefix = req.input.prefix.unwrap_or_default();
        let known = self.catalog.view().buckets();
        let seen = known.into_iter().filter(|(name, _)| name.starts_with(&prefix) && grants.sees_bucket(name));
        let buckets = seen.map(|(name, created)| Bucket {
            bucket_region: None,
            creation_date: Some(timestamp(created)),
            name: Some(name),
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            owner: Some(owner()),
            ..Default::default()
        }))
    }

    pub(super) fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.check_bucket(&req.input.bucket)?;
        let region = Some(self.settings.server.region.clone()).filter(|region| region != REGION_WITHOUT_NAME);
        let location_constraint = region.map(BucketLocationConstraint::from);
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
    }

    /// Never enabled.
    pub(super) fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    pub(super) fn get_bucket_acl(&self, req: S3Request<GetBucketAclInput>) -> S3Result<S3Response<GetBucketAclOutput>> {
        self.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketAclOutput { grants: Some(full_control()), owner: Some(owner()) }))
    }

    pub(super) async fn get_object_acl(
        &self,
        req: S3Request<GetObjectAclInput>,
    ) -> S3Result<S3Response<GetObjectAclOutput>> {
        check_version(req.input.version_id.as_deref())?;
        self.existing(&req.input.bucket, &req.input.key).await?;
        let output = GetObjectAclOutput { grants: Some(full_control()), owner: Some(owner()), ..Default::default() };
        Ok(S3Response::new(output))
    }

    pub(super) async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        check_version(req.input.version_id.as_deref())?;
        self.existing(&req.input.bucket, &req.input.key).await?;
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set: vec![], version_id: None }))
    }

    /// A configuration that is empty unless it is set, which it cannot be.
    pub(super) fn empty<T: Default>(&self, bucket: &str) -> S3Result<S3Response<T>> {
        self.check_bucket(bucket)?;
        Ok(S3Response::new(T::default()))
    }

    /// A configuration that was never set, because it cannot be.
    pub(super) fn never_set<T>(&self, bucket: &str, code: S3ErrorCode, what: &str) -> S3Result<S3Response<T>> {
        self.check_bucket(bucket)?;
        let message = format!("the bucket {bucket} has no {what}");
        Err(refuse_as(StatusCode::NOT_FOUND, code, message))
    }
}
