//! Lists which parts of the S3 API are honoured, refused, or ignored because that harms nobody: every operation, and every
//! header and query parameter that may change what an operation does.
//!
//! s3s ignores what it does not know, and much of what it knows reaches no code here. So a `DELETE /bucket?accelerate` would
//! delete the bucket, and a header that asks for encryption would be answered with success. [`check`] looks at each request
//! once its signature is checked and its operation is known: what is in no row is refused by its name. But for parameters with
//! a value of a read of an object, if S3 has no such name: they change nothing.
//!
//! - A row is about a header that begins with `x-amz-` or `if-`, or about a parameter. Other headers belong to HTTP; RFC 9110
//!   says what becomes of those that are not known.
//! - A parameter that begins with `x-` belongs to a client: S3 lets them through for the sake of access logs.
//! - `tests/it/surface.rs` sends every row to a daemon, and compares the README's list of what is absent with [`absent`].
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use http::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use s3s::{S3ErrorCode, S3Result};

use super::errors::{not_implemented, refuse};

/// An operation of S3.
#[derive(Debug)]
pub struct ApiOperation {
    /// Its name in S3's reference.
    pub name: &'static str,
    /// Its method.
    pub method: &'static str,
    /// What its address names.
    pub named: Named,
    /// The parameters that tell it from others.
    pub query: &'static str,
    /// What comes of it.
    pub served: Served,
}

/// What an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The server.
    Server,
    /// A bucket.
    Bucket,
    /// A key of a bucket.
    Object,
}

/// What comes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is done; the test that shows it.
    Done(&'static str),
    /// It is answered, with this status, as for a bucket or an object of which nothing of the kind was ever set.
    Unset(u16),
    /// `NotImplemented`.
    Refused,
}

/// A header or a parameter of some operations.
#[derive(Debug)]
pub struct Row {
    /// Whether it is a header.
    pub carrier: Carrier,
    /// Its name; of a family, what they begin with, and `*`.
    pub name: &'static str,
    /// The operations. None named: all that no other row of the name is about.
    pub on: &'static [&'static str],
    /// What becomes of it.
    pub treatment: Treatment,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// In a header.
    Header,
    /// In the query of the address.
    Query,
}

/// What becomes of a header or a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It means what it means on S3; the test that shows it.
    Honoured(&'static str),
    /// It may be left out without harm, and why.
    Harmless(&'static str),
    /// Any other value than these is refused with the code; what is asked for then.
    Only(&'static [&'static str], &'static str, &'static str),
}

use Treatment::{Harmless, Honoured, Only};

const fn operation(
    name: &'static str,
    method: &'static str,
    named: Named,
    query: &'static str,
    served: Served,
) -> ApiOperation {
    ApiOperation { name, method, named, query, served }
}

const fn header(name: &'static str, on: &'static [&'static str], treatment: Treatment) -> Row {
    Row { carrier: Carrier::Header, name, on, treatment }
}

const fn parameter(name: &'static str, on: &'static [&'static str], treatment: Treatment) -> Row {
    Row { carrier: Carrier::Query, name, on, treatment }
}

/// Every operation of the S3 API.
pub static OPERATIONS: [ApiOperation; 98] = [
    operation(
        "AbortMultipartUpload",
        "DELETE",
        Named::Object,
        "uploadId",
        Served::Done("test_multipart.py::test_an_aborted_upload_is_gone"),
    ),
    operation(
        "CompleteMultipartUpload",
        "POST",
        Named::Object,
        "uploadId",
        Served::Done("test_multipart.py::test_three_large_parts_and_a_tail"),
    ),
    operation(
        "CopyObject",
        "PUT",
        Named::Object,
        "",
        Served::Done("test_copy.py::test_a_copy_has_the_body_and_the_metadata"),
    ),
    operation(
        "CreateBucket",
        "PUT",
        Named::Bucket,
        "",
        Served::Done("test_buckets.py::test_a_created_bucket_is_headed_listed_and_deleted"),
    ),
    operation("CreateBucketMetadataTableConfiguration", "POST", Named::Bucket, "metadataTable", Served::Refused),
    operation(
        "CreateMultipartUpload",
        "POST",
        Named::Object,
        "uploads",
        Served::Done("test_multipart.py::test_three_large_parts_and_a_tail"),
    ),
    operation("CreateSession", "GET", Named::Bucket, "session", Served::Refused),
    operation(
        "DeleteBucket",
        "DELETE",
        Named::Bucket,
        "",
        Served::Done("test_buckets.py::test_a_created_bucket_is_headed_listed_and_deleted"),
    ),
    operation("DeleteBucketAnalyticsConfiguration", "DELETE", Named::Bucket, "analytics", Served::Refused),
    operation("DeleteBucketCors", "DELETE", Named::Bucket, "cors", Served::Unset(204)),
    operation("DeleteBucketEncryption", "DELETE", Named::Bucket, "encryption", Served::Unset(204)),
    operation(
        "DeleteBucketIntelligentTieringConfiguration",
        "DELETE",
        Named::Bucket,
        "intelligent-tiering",
        Served::Refused,
    ),
    operation("DeleteBucketInventoryConfiguration", "DELETE", Named::Bucket, "inventory", Served::Refused),
    operation("DeleteBucketLifecycle", "DELETE", Named::Bucket, "lifecycle", Served::Unset(204)),
    operation("DeleteBucketMetadataTableConfiguration", "DELETE", Named::Bucket, "metadataTable", Served::Refused),
    operation("DeleteBucketMetricsConfiguration", "DELETE", Named::Bucket, "metrics", Served::Refused),
    operation("DeleteBucketOwnershipControls", "DELETE", Named::Bucket, "ownershipControls", Served::Unset(204)),
    operation("DeleteBucketPolicy", "DELETE", Named::Bucket, "policy", Served::Unset(204)),
    operation("DeleteBucketReplication", "DELETE", Named::Bucket, "replication", Served::Unset(204)),
    operation("DeleteBucketTagging", "DELETE", Named::Bucket, "tagging", Served::Unset(204)),
    operation("DeleteBucketWebsite", "DELETE", Named::Bucket, "website", Served::Unset(204)),
    operation(
        "DeleteObject",
        "DELETE",
        Named::Object,
        "",
        Served::Done("test_objects.py::test_delete_removes_and_may_be_repeated"),
    ),
    operation("DeleteObjectTagging", "DELETE", Named::Object, "tagging", Served::Done(TAGS)),
    operation(
        "DeleteObjects",
        "POST",
        Named::Bucket,
        "delete",
        Served::Done("test_objects.py::test_a_thousand_keys_are_deleted_at_once_whether_they_exist_or_not"),
    ),
    operation("DeletePublicAccessBlock", "DELETE", Named::Bucket, "publicAccessBlock", Served::Unset(204)),
    operation("GetBucketAccelerateConfiguration", "GET", Named::Bucket, "accelerate", Served::Unset(200)),
    operation("GetBucketAcl", "GET", Named::Bucket, "acl", Served::Unset(200)),
    operation("GetBucketAnalyticsConfiguration", "GET", Named::Bucket, "analytics&id", Served::Refused),
    operation("GetBucketCors", "GET", Named::Bucket, "cors", Served::Unset(404)),
    operation("GetBucketEncryption", "GET", Named::Bucket, "encryption", Served::Unset(404)),
    operation(
        "GetBucketIntelligentTieringConfiguration",
        "GET",
        Named::Bucket,
        "intelligent-tiering&id",
        Served::Refused,
    ),
    operation("GetBucketInventoryConfiguration", "GET", Named::Bucket, "inventory&id", Served::Refused),
    operation("GetBucketLifecycleConfiguration", "GET", Named::Bucket, "lifecycle", Served::Unset(404)),
    operation(
        "GetBucketLocation",
        "GET",
        Named::Bucket,
        "location",
        Served::Done("test_buckets.py::test_location_of_a_bucket"),
    ),
    operation("GetBucketLogging", "GET", Named::Bucket, "logging", Served::Unset(200)),
    operation("GetBucketMetadataTableConfiguration", "GET", Named::Bucket, "metadataTable", Served::Refused),
    operation("GetBucketMetricsConfiguration", "GET", Named::Bucket, "metrics&id", Served::Refused),
    operation("GetBucketNotificationConfiguration", "GET", Named::Bucket, "notification", Served::Unset(200)),
    operation("GetBucketOwnershipControls", "GET", Named::Bucket, "ownershipControls", Served::Unset(404)),
    operation("GetBucketPolicy", "GET", Named::Bucket, "policy", Served::Unset(404)),
    operation("GetBucketPolicyStatus", "GET", Named::Bucket, "policyStatus", Served::Unset(404)),
    operation("GetBucketReplication", "GET", Named::Bucket, "replication", Served::Unset(404)),
    operation("GetBucketRequestPayment", "GET", Named::Bucket, "requestPayment", Served::Unset(200)),
    operation("GetBucketTagging", "GET", Named::Bucket, "tagging", Served::Unset(404)),
    operation("GetBucketVersioning", "GET", Named::Bucket, "versioning", Served::Unset(200)),
    operation("GetBucketWebsite", "GET", Named::Bucket, "website", Served::Unset(404)),
    operation(
        "GetObject",
        "GET",
        Named::Object,
        "",
        Served::Done("test_objects.py::test_an_object_comes_back_byte_for_byte"),
    ),
    operation("GetObjectAcl", "GET", Named::Object, "acl", Served::Unset(200)),
    operation(
        "GetObjectAttributes",
        "GET",
        Named::Object,
        "attributes",
        Served::Done("test_objects.py::test_attributes_of_an_object"),
    ),
    operation("GetObjectLegalHold", "GET", Named::Object, "legal-hold", Served::Unset(400)),
    operation("GetObjectLockConfiguration", "GET", Named::Bucket, "object-lock", Served::Unset(404)),
    operation("GetObjectRetention", "GET", Named::Object, "retention", Served::Unset(400)),
    operation("GetObjectTagging", "GET", Named::Object, "tagging", Served::Done(TAGS)),
    operation("GetObjectTorrent", "GET", Named::Object, "torrent", Served::Refused),
    operation("GetPublicAccessBlock", "GET", Named::Bucket, "publicAccessBlock", Served::Unset(404)),
    operation(
        "HeadBucket",
        "HEAD",
        Named::Bucket,
        "",
        Served::Done("test_buckets.py::test_a_created_bucket_is_headed_listed_and_deleted"),
    ),
    operation(
        "HeadObject",
        "HEAD",
        Named::Object,
        "",
        Served::Done("test_objects.py::test_headers_and_user_metadata_come_back"),
    ),
    operation("ListBucketAnalyticsConfigurations", "GET", Named::Bucket, "analytics", Served::Refused),
    operation(
        "ListBucketIntelligentTieringConfigurations",
        "GET",
        Named::Bucket,
        "intelligent-tiering",
        Served::Refused,
    ),
    operation("ListBucketInventoryConfigurations", "GET", Named::Bucket, "inventory", Served::Refused),
    operation("ListBucketMetricsConfigurations", "GET", Named::Bucket, "metrics", Served::Refused),
    operation(
        "ListBuckets",
        "GET",
        Named::Server,
        "",
        Served::Done("test_buckets.py::test_buckets_are_listed_in_order_of_name"),
    ),
    operation("ListDirectoryBuckets", "GET", Named::Server, "x-id=ListDirectoryBuckets", Served::Refused),
    operation(
        "ListMultipartUploads",
        "GET",
        Named::Bucket,
        "uploads",
        Served::Done("test_multipart.py::test_uploads_are_listed_by_prefix_and_in_pages"),
    ),
    operation(
        "ListObjectVersions",
        "GET",
        Named::Bucket,
        "versions",
        Served::Done("test_listing.py::test_versions_are_listed_in_pages"),
    ),
    operation("ListObjects", "GET", Named::Bucket, "", Served::Done("test_listing.py::test_version_1_pages_by_marker")),
    operation(
        "ListObjectsV2",
        "GET",
        Named::Bucket,
        "list-type=2",
        Served::Done("test_listing.py::test_pages_of_one_cover_everything_once"),
    ),
    operation(
        "ListParts",
        "GET",
        Named::Object,
        "uploadId",
        Served::Done("test_multipart.py::test_parts_are_listed_in_pages"),
    ),
    operation("PutBucketAccelerateConfiguration", "PUT", Named::Bucket, "accelerate", Served::Refused),
    operation("PutBucketAcl", "PUT", Named::Bucket, "acl", Served::Refused),
    operation("PutBucketAnalyticsConfiguration", "PUT", Named::Bucket, "analytics", Served::Refused),
    operation("PutBucketCors", "PUT", Named::Bucket, "cors", Served::Refused),
    operation("PutBucketEncryption", "PUT", Named::Bucket, "encryption", Served::Refused),
    operation("PutBucketIntelligentTieringConfiguration", "PUT", Named::Bucket, "intelligent-tiering", Served::Refused),
    operation("PutBucketInventoryConfiguration", "PUT", Named::Bucket, "inventory", Served::Refused),
    operation("PutBucketLifecycleConfiguration", "PUT", Named::Bucket, "lifecycle", Served::Refused),
    operation("PutBucketLogging", "PUT", Named::Bucket, "logging", Served::Refused),
    operation("PutBucketMetricsConfiguration", "PUT", Named::Bucket, "metrics", Served::Refused),
    operation("PutBucketNotificationConfiguration", "PUT", Named::Bucket, "notification", Served::Refused),
    operation("PutBucketOwnershipControls", "PUT", Named::Bucket, "ownershipControls", Served::Refused),
    operation("PutBucketPolicy", "PUT", Named::Bucket, "policy", Served::Refused),
    operation("PutBucketReplication", "PUT", Named::Bucket, "replication", Served::Refused),
    operation("PutBucketRequestPayment", "PUT", Named::Bucket, "requestPayment", Served::Refused),
    operation("PutBucketTagging", "PUT", Named::Bucket, "tagging", Served::Refused),
    operation("PutBucketVersioning", "PUT", Named::Bucket, "versioning", Served::Refused),
    operation("PutBucketWebsite", "PUT", Named::Bucket, "website", Served::Refused),
    operation(
        "PutObject",
        "PUT",
        Named::Object,
        "",
        Served::Done("test_objects.py::test_an_object_comes_back_byte_for_byte"),
    ),
    operation("PutObjectAcl", "PUT", Named::Object, "acl", Served::Refused),
    operation("PutObjectLegalHold", "PUT", Named::Object, "legal-hold", Served::Refused),
    operation("PutObjectLockConfiguration", "PUT", Named::Bucket, "object-lock", Served::Refused),
    operation("PutObjectRetention", "PUT", Named::Object, "retention", Served::Refused),
    operation("PutObjectTagging", "PUT", Named::Object, "tagging", Served::Done(TAGS)),
    operation("PutPublicAccessBlock", "PUT", Named::Bucket, "publicAccessBlock", Served::Refused),
    operation("RestoreObject", "POST", Named::Object, "restore", Served::Refused),
    operation("SelectObjectContent", "POST", Named::Object, "select&select-type=2", Served::Refused),
    operation(
        "UploadPart",
        "PUT",
        Named::Object,
        "partNumber&uploadId",
        Served::Done("test_multipart.py::test_three_large_parts_and_a_tail"),
    ),
    operation(
        "UploadPartCopy",
        "PUT",
        Named::Object,
        "partNumber&uploadId",
        Served::Done("test_multipart.py::test_a_part_is_copied_from_an_object"),
    ),
    operation("WriteGetObjectResponse", "POST", Named::Bucket, "", Served::Refused),
];

const ANY: &[&str] = &[];
const READS: &[&str] = &["GetObject", "HeadObject"];
/// What makes an object, or begins to.
const WRITES: &[&str] = &["PutObject", "CopyObject", "CreateMultipartUpload"];
/// What makes an object visible.
const PUTS: &[&str] = &["PutObject", "CopyObject", "CompleteMultipartUpload"];
/// What brings a body that is stored.
const BODIES: &[&str] = &["PutObject", "UploadPart"];
const COPIES: &[&str] = &["CopyObject", "UploadPartCopy"];
const LISTINGS: &[&str] = &["ListObjects", "ListObjectsV2", "ListObjectVersions"];
const ALL_LISTINGS: &[&str] = &["ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads"];
const VERSIONED: &[&str] = &[
    "GetObject",
    "HeadObject",
    "DeleteObject",
    "DeleteObjectTagging",
    "GetObjectAcl",
    "GetObjectTagging",
    "GetObjectAttributes",
    "GetObjectLegalHold",
    "GetObjectRetention",
];

const NOT_IMPLEMENTED: &str = "NotImplemented";
/// The owner of everything.
pub(super) const OWNER: &str = "esker";

/// Every header and parameter of the S3 API that may change what an operation does.
pub static ROWS: &[Row] = &[
    // Who asks, and how the body comes.
    header("x-amz-date", ANY, Honoured("test_auth.py::test_a_wrong_clock_is_refused")),
    header("x-amz-content-sha256", ANY, Honoured("test_auth.py::test_a_payload_unlike_its_hash_is_told_apart")),
    header(
        "x-amz-decoded-content-length",
        ANY,
        Honoured("test_streaming.py::test_unsigned_chunks_with_a_trailing_checksum"),
    ),
    header("x-amz-trailer", ANY, Honoured("test_streaming.py::test_unsigned_chunks_with_a_trailing_checksum")),
    header("x-amz-security-token", ANY, Harmless("keys are not of a session: the signature decides")),
    header("x-amz-expected-bucket-owner", ANY, Only(&[OWNER], "AccessDenied", "a bucket of another owner")),
    header("x-amz-source-expected-bucket-owner", COPIES, Only(&[OWNER], "AccessDenied", "a bucket of another owner")),
    header("x-amz-request-payer", ANY, Harmless("nobody pays")),
    header("x-amz-user-agent", ANY, Harmless("names the client")),
    header("x-amz-te", ANY, Harmless("an encoding that a client would understand")),
    header("x-amz-api-version", ANY, Harmless("there is one version")),
    header("x-amz-cf-id", ANY, Harmless("names the request at a proxy")),
    header("x-amz-request-id", ANY, Harmless("names the request at a proxy")),
    header("x-amz-id-2", ANY, Harmless("names the request at a proxy")),
    header(
        "x-amz-sdk-checksum-algorithm",
        BODIES,
        Honoured("test_checksums.py::test_a_checksum_computed_by_the_client_library_is_echoed"),
    ),
    header("x-amz-sdk-*", ANY, Harmless("about the client library")),
    // Checksums.
    header(
        "x-amz-checksum-algorithm",
        WRITES,
        Honoured("test_details.py::test_a_copy_gets_the_checksum_that_it_asks_for"),
    ),
    header(
        "x-amz-checksum-type",
        &["CreateMultipartUpload", "CompleteMultipartUpload"],
        Honoured("test_checksums.py::test_a_full_object_checksum_covers_all_parts"),
    ),
    header(
        "x-amz-checksum-mode",
        READS,
        Honoured("test_checksums.py::test_a_right_checksum_is_echoed_by_put_head_and_get"),
    ),
    header("x-amz-checksum-*", BODIES, Honoured("test_checksums.py::test_a_wrong_checksum_stores_nothing")),
    header(
        "x-amz-checksum-*",
        &["DeleteObjects"],
        Honoured("test_checksums.py::test_wrong_content_md5_of_a_batch_delete_deletes_nothing"),
    ),
    header(
        "x-amz-checksum-*",
        &["CompleteMultipartUpload"],
        Honoured("test_checksums.py::test_a_wrong_full_object_checksum_completes_nothing"),
    ),
    header(
        "x-amz-checksum-*",
        &["CreateBucket", "PutObjectTagging"],
        Honoured("test_tagging.py::test_tags_that_differ_from_their_checksum_are_not_set"),
    ),
    header("x-amz-checksum-*", ANY, Harmless("of a body that is not there, as clients send it with a GET")),
    header(
        "x-amz-mp-object-size",
        &["CompleteMultipartUpload"],
        Honoured("test_surface.py::test_the_announced_size_of_a_completed_upload_is_compared"),
    ),
    // What an object keeps.
    header("x-amz-meta-*", WRITES, Honoured("test_objects.py::test_headers_and_user_metadata_come_back")),
    header("x-amz-meta-*", ANY, Harmless("nothing is stored that could keep it")),
    header("x-amz-storage-class", WRITES, Honoured("test_details.py::test_a_storage_class_is_kept_and_told")),
    header("x-amz-storage-class", ANY, Harmless("nothing is stored that could keep it")),
    header(
        "x-amz-metadata-directive",
        &["CopyObject"],
        Honoured("test_copy.py::test_directive_replace_takes_new_metadata_only"),
    ),
    header("x-amz-metadata-directive", ANY, Harmless("nothing is copied, as of clients that send it with every write")),
    header(
        "x-amz-tagging-directive",
        &["CopyObject"],
        Honoured("test_tagging.py::test_a_copy_has_the_tags_unless_others_are_sent"),
    ),
    header("x-amz-tagging", WRITES, Honoured("test_tagging.py::test_tags_are_set_with_every_kind_of_write")),
    header("x-amz-website-redirect-location", WRITES, Only(&[], NOT_IMPLEMENTED, "website redirection")),
    header("x-amz-write-offset-bytes", &["PutObject"], Only(&[], NOT_IMPLEMENTED, "appending to an object")),
    // Copies.
    header("x-amz-copy-source", COPIES, Honoured("test_copy.py::test_spellings_of_the_copy_source")),
    header(
        "x-amz-copy-source-range",
        &["UploadPartCopy"],
        Honoured("test_multipart.py::test_a_part_copy_beyond_the_source_is_refused"),
    ),
    header("x-amz-copy-source-if-match", COPIES, Honoured("test_copy.py::test_conditions_on_the_source")),
    header("x-amz-copy-source-if-none-match", COPIES, Honoured("test_copy.py::test_conditions_on_the_source")),
    header("x-amz-copy-source-if-modified-since", COPIES, Honoured("test_copy.py::test_conditions_on_the_source")),
    header("x-amz-copy-source-if-unmodified-since", COPIES, Honoured("test_copy.py::test_conditions_on_the_source")),
    // Access, locks, encryption.
    header(
        "x-amz-acl",
        ANY,
        Only(
            &["private", "bucket-owner-full-control", "bucket-owner-read"],
            NOT_IMPLEMENTED,
            "an access control list that grants something",
        ),
    ),
    header("x-amz-grant-*", ANY, Only(&[], NOT_IMPLEMENTED, "granting access by header")),
    header("x-amz-object-ownership", ANY, Harmless("everything has one owner")),
    header(
        "x-amz-bucket-object-lock-enabled",
        &["CreateBucket"],
        Only(&["false", "False", "FALSE"], NOT_IMPLEMENTED, "object lock"),
    ),
    header("x-amz-object-lock-*", ANY, Only(&[], NOT_IMPLEMENTED, "object lock")),
    header("x-amz-bypass-governance-retention", ANY, Harmless("nothing is retained")),
    header("x-amz-mfa", ANY, Harmless("deleting asks for no second factor")),
    header("x-amz-server-side-encryption*", ANY, Only(&[], NOT_IMPLEMENTED, "server-side encryption")),
    header("x-amz-copy-source-server-side-encryption*", ANY, Only(&[], NOT_IMPLEMENTED, "server-side encryption")),
    // Conditions.
    header("if-match", READS, Honoured("test_details.py::test_what_is_no_tag_of_the_object_fails_its_precondition")),
    header("if-match", PUTS, Honoured("test_conditions.py::test_if_match_leaves_any_other_version")),
    header("if-match", &["DeleteObject"], Honoured("test_conditions.py::test_conditional_delete")),
    header("if-none-match", READS, Honoured("test_details.py::test_one_of_several_tags_is_enough_for_a_read")),
    header("if-none-match", PUTS, Honoured("test_conditions.py::test_if_none_match_star_leaves_what_exists")),
    header("if-modified-since", READS, Honoured("test_details.py::test_one_of_several_tags_is_enough_for_a_read")),
    header("if-unmodified-since", READS, Honoured("test_surface.py::test_a_read_may_ask_for_what_is_not_newer")),
    header(
        "if-range",
        READS,
        Honoured("test_details.py::test_a_range_counts_only_for_the_version_that_if_range_names"),
    ),
    header(
        "if-none-match",
        &["DeleteObject"],
        Only(&[], NOT_IMPLEMENTED, "deleting on the condition of another entity tag"),
    ),
    header(
        "if-modified-since",
        &["PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject"],
        Only(&[], NOT_IMPLEMENTED, "writing on the condition of a time"),
    ),
    header(
        "if-unmodified-since",
        &["PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject"],
        Only(&[], NOT_IMPLEMENTED, "writing on the condition of a time"),
    ),
    header("x-amz-if-match-size", &["DeleteObject"], Only(&[], NOT_IMPLEMENTED, "deleting on the condition of a size")),
    header(
        "x-amz-if-match-last-modified-time",
        &["DeleteObject"],
        Only(&[], NOT_IMPLEMENTED, "deleting on the condition of a time"),
    ),
    header(
        "x-amz-if-match-initiated-time",
        &["AbortMultipartUpload"],
        Only(&[], NOT_IMPLEMENTED, "aborting on the condition of a time"),
    ),
    header("if-*", ANY, Harmless("S3 looks at no condition there either: what follows is decided by its own")),
    // Attributes.
    header(
        "x-amz-object-attributes",
        &["GetObjectAttributes"],
        Honoured("test_objects.py::test_attributes_of_an_object"),
    ),
    header(
        "x-amz-max-parts",
        &["GetObjectAttributes"],
        Honoured("test_details.py::test_a_part_is_read_with_its_own_checksum"),
    ),
    header(
        "x-amz-part-number-marker",
        &["GetObjectAttributes"],
        Honoured("test_details.py::test_a_part_is_read_with_its_own_checksum"),
    ),
    header("x-amz-optional-object-attributes", ANY, Harmless("no object is being restored")),
    // Parameters: listings.
    parameter("list-type", &["ListObjectsV2"], Honoured("test_listing.py::test_pages_of_one_cover_everything_once")),
    parameter(
        "list-type",
        &["ListObjects"],
        Only(&["1"], "InvalidArgument", "another version of listings than 1 and 2"),
    ),
    parameter("prefix", ALL_LISTINGS, Honoured("test_listing.py::test_a_prefix_selects_and_keys_are_in_order")),
    parameter("delimiter", ALL_LISTINGS, Honoured("test_listing.py::test_a_delimiter_rolls_up_what_follows_it")),
    parameter("encoding-type", ALL_LISTINGS, Honoured("test_listing.py::test_keys_are_url_encoded_only_when_asked")),
    parameter("max-keys", LISTINGS, Honoured("test_listing.py::test_max_keys_zero_is_an_empty_page")),
    parameter("marker", &["ListObjects"], Honoured("test_listing.py::test_version_1_pages_by_marker")),
    parameter(
        "continuation-token",
        &["ListObjectsV2"],
        Honoured("test_listing.py::test_a_continuation_token_that_was_never_given_is_refused"),
    ),
    parameter(
        "start-after",
        &["ListObjectsV2"],
        Honoured("test_listing.py::test_start_after_and_marker_are_exclusive_and_need_not_exist"),
    ),
    parameter("fetch-owner", &["ListObjectsV2"], Honoured("test_listing.py::test_owner_is_given_when_asked_for")),
    parameter(
        "marker",
        &["ListObjectsV2", "ListObjectVersions"],
        Harmless("a parameter of another listing, which S3 does not look at either"),
    ),
    parameter(
        "continuation-token",
        &["ListObjects", "ListObjectVersions"],
        Harmless("a parameter of another listing, which S3 does not look at either"),
    ),
    parameter(
        "start-after",
        &["ListObjects", "ListObjectVersions"],
        Harmless("a parameter of another listing, which S3 does not look at either"),
    ),
    parameter("fetch-owner", &["ListObjects", "ListObjectVersions"], Harmless("the owner is told anyway")),
    parameter("metadata", LISTINGS, Harmless("an extension of MinIO, which S3 does not look at either")),
    parameter("allow-unordered", LISTINGS, Harmless("an extension of Ceph: any order will do")),
    parameter("versions", &["ListObjectVersions"], Honoured("test_listing.py::test_versions_are_listed_in_pages")),
    parameter("key-marker", &["ListObjectVersions"], Honoured("test_listing.py::test_versions_are_listed_in_pages")),
    parameter(
        "version-id-marker",
        &["ListObjectVersions"],
        Honoured("test_listing.py::test_versions_are_listed_in_pages"),
    ),
    parameter(
        "uploads",
        &["ListMultipartUploads", "CreateMultipartUpload"],
        Honoured("test_multipart.py::test_uploads_are_listed_by_prefix_and_in_pages"),
    ),
    parameter(
        "key-marker",
        &["ListMultipartUploads"],
        Honoured("test_multipart.py::test_uploads_are_listed_by_prefix_and_in_pages"),
    ),
    parameter(
        "upload-id-marker",
        &["ListMultipartUploads"],
        Honoured("test_multipart.py::test_uploads_are_listed_by_prefix_and_in_pages"),
    ),
    parameter(
        "max-uploads",
        &["ListMultipartUploads"],
        Honoured("test_multipart.py::test_uploads_are_listed_by_prefix_and_in_pages"),
    ),
    parameter("bucket-region", &["ListBuckets"], Honoured("test_details.py::test_buckets_come_in_pages_of_a_prefix")),
    parameter("max-buckets", &["ListBuckets"], Honoured("test_details.py::test_buckets_come_in_pages_of_a_prefix")),
    parameter(
        "continuation-token",
        &["ListBuckets"],
        Honoured("test_details.py::test_buckets_come_in_pages_of_a_prefix"),
    ),
    parameter("prefix", &["ListBuckets"], Honoured("test_details.py::test_buckets_come_in_pages_of_a_prefix")),
    // Parameters: objects and uploads.
    parameter("versionId", VERSIONED, Honoured("test_objects.py::test_an_unknown_version_is_refused")),
    parameter(
        "partNumber",
        &["GetObject", "HeadObject", "UploadPart", "UploadPartCopy"],
        Honoured("test_multipart.py::test_parts_are_read_by_number"),
    ),
    parameter(
        "uploadId",
        &["UploadPart", "UploadPartCopy", "CompleteMultipartUpload", "AbortMultipartUpload", "ListParts"],
        Honoured("test_multipart.py::test_an_unknown_upload_is_404"),
    ),
    parameter("max-parts", &["ListParts"], Honoured("test_multipart.py::test_parts_are_listed_in_pages")),
    parameter("part-number-marker", &["ListParts"], Honoured("test_multipart.py::test_parts_are_listed_in_pages")),
    parameter("response-*", READS, Honoured("test_objects.py::test_a_reader_may_choose_the_headers_of_the_answer")),
    parameter("attributes", &["GetObjectAttributes"], Honoured("test_objects.py::test_attributes_of_an_object")),
    parameter("delete", &["DeleteObjects"], Honoured("test_objects.py::test_quiet_batch_delete_reports_nothing")),
    parameter("location", &["GetBucketLocation"], Honoured("test_buckets.py::test_location_of_a_bucket")),
    parameter("acl", &["GetBucketAcl", "GetObjectAcl"], Honoured("test_errors.py::test_the_owner_has_full_control")),
    parameter("tagging", &["GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"], Honoured(TAGS)),
    parameter("tagging", &["GetBucketTagging"], Honoured(UNSET)),
    parameter("tagging", &["DeleteBucketTagging"], Honoured(DELETED)),
    parameter("versioning", &["GetBucketVersioning"], Honoured("test_errors.py::test_versioning_was_never_enabled")),
    parameter("accelerate", &["GetBucketAccelerateConfiguration"], Honoured(UNSET)),
    parameter("logging", &["GetBucketLogging"], Honoured(UNSET)),
    parameter("notification", &["GetBucketNotificationConfiguration"], Honoured(UNSET)),
    parameter("cors", &["GetBucketCors"], Honoured(UNSET)),
    parameter("cors", &["DeleteBucketCors"], Honoured(DELETED)),
    parameter("encryption", &["GetBucketEncryption"], Honoured(UNSET)),
    parameter("encryption", &["DeleteBucketEncryption"], Honoured(DELETED)),
    parameter("lifecycle", &["GetBucketLifecycleConfiguration"], Honoured(UNSET)),
    parameter("lifecycle", &["DeleteBucketLifecycle"], Honoured(DELETED)),
    parameter("ownershipControls", &["GetBucketOwnershipControls"], Honoured(UNSET)),
    parameter("ownershipControls", &["DeleteBucketOwnershipControls"], Honoured(DELETED)),
    parameter("policy", &["GetBucketPolicy"], Honoured(UNSET)),
    parameter("policy", &["DeleteBucketPolicy"], Honoured(DELETED)),
    parameter("policyStatus", &["GetBucketPolicyStatus"], Honoured(UNSET)),
    parameter("replication", &["GetBucketReplication"], Honoured(UNSET)),
    parameter("replication", &["DeleteBucketReplication"], Honoured(DELETED)),
    parameter("website", &["GetBucketWebsite"], Honoured(UNSET)),
    parameter("website", &["DeleteBucketWebsite"], Honoured(DELETED)),
    parameter("object-lock", &["GetObjectLockConfiguration"], Honoured(UNSET)),
    parameter("publicAccessBlock", &["GetPublicAccessBlock"], Honoured(UNSET)),
    parameter("publicAccessBlock", &["DeletePublicAccessBlock"], Honoured(DELETED)),
    parameter("requestPayment", &["GetBucketRequestPayment"], Honoured("test_errors.py::test_the_owner_pays")),
    parameter("retention", &["GetObjectRetention"], Honoured(NO_LOCK)),
    parameter("legal-hold", &["GetObjectLegalHold"], Honoured(NO_LOCK)),
    parameter(
        "x-*",
        ANY,
        Harmless("a client's own, for access logs; x-amz-* are the headers of a presigned address, or its signature"),
    ),
];

const TAGS: &str = "test_tagging.py::test_tags_are_set_told_and_deleted";
const DELETED: &str = "test_errors.py::test_deleting_what_was_never_set_is_done";
const NO_LOCK: &str = "test_errors.py::test_nothing_is_locked";
const UNSET: &str = "test_errors.py::test_a_configuration_that_was_never_set_is_not_there";

/// Rows by name, those about named operations first; of families, those that begin with more first.
struct Index {
    operations: HashMap<&'static str, &'static ApiOperation>,
    exact: HashMap<(bool, &'static str), Vec<&'static Row>>,
    families: Vec<(bool, &'static str, &'static Row)>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let operations = OPERATIONS.iter().map(|operation| (operation.name, operation)).collect();
    let (mut exact, mut families) = (HashMap::<_, Vec<&Row>>::new(), vec![]);
    for row in ROWS {
        let header = row.carrier == Carrier::Header;
        match row.name.strip_suffix('*') {
            Some(begin) => families.push((header, begin, row)),
            None => exact.entry((header, row.name)).or_default().push(row),
        }
    }
    exact.values_mut().for_each(|rows| rows.sort_by_key(|row| row.on.is_empty()));
    families.sort_by_key(|(_, begin, row)| (std::cmp::Reverse(begin.len()), row.on.is_empty()));
    Index { operations, exact, families }
});

/// The row about a header or a parameter of an operation.
fn row(place: Carrier, name: &str, operation: &str) -> Option<&'static Row> {
    let header = place == Carrier::Header;
    let is_about = |row: &&Row| row.on.is_empty() || row.on.contains(&operation);
    let exact = INDEX.exact.get(&(header, name)).and_then(|rows| rows.iter().copied().find(is_about));
    exact.or_else(|| {
        let mut of_family = INDEX.families.iter().filter(|(of_header, ..)| *of_header == header);
        of_family.find(|(_, begin, row)| name.starts_with(begin) && is_about(row)).map(|(.., row)| *row)
    })
}

/// Whether an operation needs the right to write, or to delete: all but those that are asked for by GET and HEAD, and the one
/// that reads by POST.
pub(super) fn writes(operation: &str, method: &Method) -> bool {
    let method = INDEX.operations.get(operation).map_or(method.as_str(), |operation| operation.method);
    method != "GET" && method != "HEAD" && operation != "SelectObjectContent"
}

/// Refuses what a request asks for and would not get.
///
/// # Errors
/// `NotImplemented` by name, or the code of its row.
pub(super) fn check(operation: &str, headers: &HeaderMap, uri: &Uri) -> S3Result<()> {
    if INDEX.operations.get(operation).is_none_or(|operation| operation.served == Served::Refused) {
        return Err(not_implemented(operation));
    }
    for (name, value) in headers {
        let name = name.as_str();
        if name.starts_with("x-amz-") || name.starts_with("if-") {
            check_one(Carrier::Header, name, value.to_str().unwrap_or("?"), operation)?;
        }
    }
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy();
        // Those of a presigned address.
        if !name.get(..2).is_some_and(|begin| begin.eq_ignore_ascii_case("x-")) {
            check_one(Carrier::Query, &name, &percent_decode_str(value).decode_utf8_lossy(), operation)?;
        }
    }
    Ok(())
}

/// Whether S3 has a parameter of this name, of whatever operation. A read ignores others that have a value, as S3 does: caches
/// and proxies add them to addresses.
fn is_of_s3(name: &str) -> bool {
    let tells_an_operation =
        |operation: &ApiOperation| operation.query.split('&').any(|pair| pair.split('=').next() == Some(name));
    INDEX.exact.contains_key(&(false, name)) || OPERATIONS.iter().any(tells_an_operation)
}

fn check_one(place: Carrier, name: &str, value: &str, operation: &str) -> S3Result<()> {
    let Some(row) = row(place, name, operation) else {
        // Without a value it may be a part of an object that S3 has by now.
        if place == Carrier::Query && !value.is_empty() && READS.contains(&operation) && !is_of_s3(name) {
            return Ok(());
        }
        let place = if place == Carrier::Header { "header" } else { "query parameter" };
        return Err(not_implemented(&format!("the {place} {name} of {operation}")));
    };
    match row.treatment {
        // An empty value asks for nothing.
        Only(values, code, what) if !value.is_empty() && !values.contains(&value) => Err(match code {
            NOT_IMPLEMENTED => not_implemented(&format!("{what} ({name}: {value:?})")),
            code => refuse(
                S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InvalidArgument),
                format!("{name} asks for {what}: {value:?}"),
            ),
        }),
        _ => Ok(()),
    }
}

/// What the README says is absent, from the tables: operations by their parameter, and what is asked for by headers.
pub fn absent() -> String {
    let mut operations: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for operation in OPERATIONS.iter().filter(|operation| operation.served == Served::Refused) {
        let parameter = operation.query.split('&').next().filter(|parameter| !parameter.is_empty());
        operations.entry(parameter.unwrap_or(operation.name)).or_default().insert(operation.method);
    }
    let operations = operations.into_iter().map(|(parameter, methods)| {
        let methods: Vec<&str> = methods.into_iter().collect();
        format!("`{parameter}` ({})", methods.join(", "))
    });
    let asked: BTreeSet<&str> = ROWS
        .iter()
        .filter_map(|row| match row.treatment {
            Only(_, NOT_IMPLEMENTED, what) => Some(what),
            _ => None,
        })
        .collect();
    let (operations, asked) = (operations.collect::<Vec<_>>(), asked.into_iter().collect::<Vec<_>>());
    format!("{}; and, by header, {}.", operations.join(", "), asked.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(operation: &str, headers: &[(&'static str, &str)], uri: &str) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let checked = check(operation, &headers, &uri.parse().unwrap());
        checked.err().map(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn what_would_not_happen_is_refused() {
        for (name, value, expected) in [
            ("x-amz-server-side-encryption", "aws:kms", NOT_IMPLEMENTED),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256", NOT_IMPLEMENTED),
            ("x-amz-object-lock-mode", "GOVERNANCE", NOT_IMPLEMENTED),
            ("x-amz-acl", "public-read", NOT_IMPLEMENTED),
            ("x-amz-grant-read", "id=x", NOT_IMPLEMENTED),
            ("x-amz-expected-bucket-owner", "123456789012", "AccessDenied"),
            ("x-amz-of-next-year", "1", NOT_IMPLEMENTED),
            ("if-unmodified-since", "x", NOT_IMPLEMENTED),
        ] {
            assert_eq!(code("PutObject", &[(name, value)], "/b/k").as_deref(), Some(expected), "{name}");
        }
        assert_eq!(code("PutObjectAcl", &[], "/b/k?acl").as_deref(), Some(NOT_IMPLEMENTED));
        assert_eq!(code("OfNextYear", &[], "/b/k").as_deref(), Some(NOT_IMPLEMENTED));
    }

    #[test]
    fn what_is_the_case_anyway_is_accepted() {
        let sent = [
            ("x-amz-acl", "private"),
            ("x-amz-storage-class", "STANDARD"),
            ("x-amz-tagging", "a=b"),
            ("x-amz-api-version", "2006-03-01"),
            ("x-amz-sdk-invocation-id", "1"),
            ("x-amz-expected-bucket-owner", OWNER),
            ("x-amz-meta-x-amz-tagging", "a=b"),
        ];

        assert_eq!(code("PutObject", &sent, "/b/k?x-id=PutObject&X-Amz-Signature=0&x-mine=1"), None);
        assert_eq!(code("CopyObject", &[("x-amz-tagging-directive", "COPY")], "/b/k"), None);
    }

    #[test]
    fn a_parameter_of_another_operation_is_refused() {
        assert_eq!(code("DeleteBucket", &[], "/b?accelerate").as_deref(), Some(NOT_IMPLEMENTED));
        assert_eq!(code("PutObject", &[], "/b/k?renam%65Object").as_deref(), Some(NOT_IMPLEMENTED));
        assert_eq!(code("PutObject", &[], "/b/k?encryption").as_deref(), Some(NOT_IMPLEMENTED));
        assert_eq!(code("ListObjects", &[], "/b?list-type=3").as_deref(), Some("InvalidArgument"));
        assert_eq!(code("ListObjectsV2", &[], "/b?list-type=2&marker=a&pr%65fix=a"), None);
    }

    #[test]
    fn every_operation_stands_there_once_and_every_row_is_about_some_that_do() {
        assert_eq!(INDEX.operations.len(), OPERATIONS.len());
        for row in ROWS {
            for name in row.on {
                assert!(INDEX.operations.contains_key(name), "{name} of {}", row.name);
            }
        }
    }
}
