//! The operations, as s3s calls them. What is not here answers 501 with its name.

use std::sync::Arc;

#[allow(clippy::wildcard_imports, reason = "each operation has an input and an output, over seventy names")]
use s3s::dto::*;
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::errors::custom;

/// The door, as s3s wants it.
#[derive(Clone)]
pub(super) struct Operations(pub Arc<S3Door>);

/// Writes the trait's methods: some *wait* for the door, some only *look*; some answer that the bucket has no such
/// configuration, because nobody can set one, or that it is *empty*.
macro_rules! operations {
    ($($kind:ident $name:ident($input:ty) -> $output:ty $(, $code:tt, $what:literal)?;)*) => {
        #[async_trait::async_trait]
        impl S3 for Operations {
            $(async fn $name(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                operations!(@$kind self.0, $name, req $(, $code, $what)?)
            })*
        }
    };
    (@waits $door:expr, $name:ident, $req:expr) => { $door.$name($req).await };
    (@looks $door:expr, $name:ident, $req:expr) => { $door.$name($req) };
    (@never_set $door:expr, $name:ident, $req:expr, $code:ident, $what:literal) => {
        $door.never_set(&$req.input.bucket, S3ErrorCode::$code, $what)
    };
    (@never_set $door:expr, $name:ident, $req:expr, $code:literal, $what:literal) => {
        $door.never_set(&$req.input.bucket, custom($code), $what)
    };
    (@empty $door:expr, $name:ident, $req:expr) => { $door.empty(&$req.input.bucket) };
}

operations! {
    waits abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
    waits complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    waits copy_object(CopyObjectInput) -> CopyObjectOutput;
    waits create_bucket(CreateBucketInput) -> CreateBucketOutput;
    waits create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    waits delete_bucket(DeleteBucketInput) -> DeleteBucketOutput;
    waits delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    waits delete_object_tagging(DeleteObjectTaggingInput) -> DeleteObjectTaggingOutput;
    waits delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput;
    looks get_bucket_acl(GetBucketAclInput) -> GetBucketAclOutput;
    looks get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput;
    looks get_bucket_request_payment(GetBucketRequestPaymentInput) -> GetBucketRequestPaymentOutput;
    looks get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput;
    waits get_object(GetObjectInput) -> GetObjectOutput;
    waits get_object_acl(GetObjectAclInput) -> GetObjectAclOutput;
    waits get_object_attributes(GetObjectAttributesInput) -> GetObjectAttributesOutput;
    waits get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput;
    waits get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput;
    waits get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput;
    looks head_bucket(HeadBucketInput) -> HeadBucketOutput;
    waits head_object(HeadObjectInput) -> HeadObjectOutput;
    looks list_buckets(ListBucketsInput) -> ListBucketsOutput;
    waits list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput;
    waits list_object_versions(ListObjectVersionsInput) -> ListObjectVersionsOutput;
    waits list_objects(ListObjectsInput) -> ListObjectsOutput;
    waits list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
    looks list_parts(ListPartsInput) -> ListPartsOutput;
    waits put_object(PutObjectInput) -> PutObjectOutput;
    waits put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput;
    waits upload_part(UploadPartInput) -> UploadPartOutput;
    waits upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput;

    empty delete_bucket_cors(DeleteBucketCorsInput) -> DeleteBucketCorsOutput;
    empty delete_bucket_encryption(DeleteBucketEncryptionInput) -> DeleteBucketEncryptionOutput;
    empty delete_bucket_lifecycle(DeleteBucketLifecycleInput) -> DeleteBucketLifecycleOutput;
    empty delete_bucket_ownership_controls(DeleteBucketOwnershipControlsInput) -> DeleteBucketOwnershipControlsOutput;
    empty delete_bucket_policy(DeleteBucketPolicyInput) -> DeleteBucketPolicyOutput;
    empty delete_bucket_replication(DeleteBucketReplicationInput) -> DeleteBucketReplicationOutput;
    empty delete_bucket_tagging(DeleteBucketTaggingInput) -> DeleteBucketTaggingOutput;
    empty delete_bucket_website(DeleteBucketWebsiteInput) -> DeleteBucketWebsiteOutput;
    empty delete_public_access_block(DeletePublicAccessBlockInput) -> DeletePublicAccessBlockOutput;
    empty get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput)
        -> GetBucketAccelerateConfigurationOutput;
    empty get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput;
    empty get_bucket_notification_configuration(GetBucketNotificationConfigurationInput)
        -> GetBucketNotificationConfigurationOutput;

    never_set get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput,
        NoSuchCORSConfiguration, "CORS configuration";
    never_set get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput,
        ServerSideEncryptionConfigurationNotFoundError, "encryption configuration";
    never_set get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput)
        -> GetBucketLifecycleConfigurationOutput,
        NoSuchLifecycleConfiguration, "lifecycle configuration";
    never_set get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput,
        OwnershipControlsNotFoundError, "ownership controls";
    never_set get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput,
        NoSuchBucketPolicy, "policy";
    never_set get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput,
        NoSuchBucketPolicy, "policy";
    never_set get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput,
        ReplicationConfigurationNotFoundError, "replication configuration";
    never_set get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput,
        NoSuchTagSet, "tags";
    never_set get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput,
        NoSuchWebsiteConfiguration, "website configuration";
    never_set get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput,
        ObjectLockConfigurationNotFoundError, "object lock configuration";
    never_set get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput,
        "NoSuchPublicAccessBlockConfiguration", "public access block";
}
