//! The parts of an S3 object beside its bytes. Fields stand in the catalog's records: their order may not change.

use serde::{Deserialize, Serialize};

use super::Millis;

/// An S3 object without its bytes: the answer to a HEAD request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHead {
    /// Number of bytes.
    pub len: u64,
    /// The entity tag without quotes: the MD5 in hex, `<md5 of md5s>-<parts>`, or an opaque one.
    pub etag: String,
    /// When it was put.
    pub modified: Millis,
    /// Headers that the client set.
    pub headers: ObjectHeaders,
    /// The checksum that the client sent or asked for, or the default one. `None` if a version that computed no default wrote it,
    /// or if it was rebuilt.
    pub checksum: Option<ObjectChecksum>,
    /// The sizes of its parts in bytes, for an object that came as a multipart upload.
    pub part_lens: Vec<u64>,
}

/// A client's request to begin a multipart upload of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewUpload {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// Headers for the object.
    pub headers: ObjectHeaders,
    /// The checksum that was asked for: its algorithm, and whether it is that of the whole. `None`: the default one.
    pub checksum: Option<(String, bool)>,
}

/// A part of a multipart upload without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHead {
    /// Number of bytes.
    pub len: u64,
    /// The entity tag without quotes: the MD5 in hex, or an opaque one.
    pub etag: String,
    /// The checksum in base64, of the algorithm that its upload was created with, or the default one.
    pub checksum: Option<String>,
    /// When it was put.
    pub modified: Millis,
}

/// Headers of an S3 object that are given back as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHeaders {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Expires`, as the client wrote it.
    pub expires: Option<String>,
    /// `x-amz-meta-*`, names in lower case.
    pub metadata: Vec<(String, String)>,
    /// `x-amz-storage-class`, if it is not `STANDARD`. It moves no bytes. Records hold it behind all others.
    #[serde(skip)]
    pub storage_class: Option<String>,
    /// Its tags, in the order in which they were set. Records hold them behind all others.
    #[serde(skip)]
    pub tags: Vec<(String, String)>,
}

/// A checksum of an S3 object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChecksum {
    /// Its name, as S3 writes it.
    pub algorithm: String,
    /// The value in base64; a composite one ends in `-<parts>`.
    pub value: String,
    /// Whether it is a checksum of checksums.
    pub composite: bool,
    /// The values of the parts, for an object that came as a multipart upload. Records hold them behind all others.
    #[serde(skip)]
    pub parts: Vec<String>,
}

impl ObjectChecksum {
    /// The algorithm for an object that comes without a checksum, as in S3: over the whole, never composite.
    pub const DEFAULT_ALGORITHM: &'static str = "CRC64NVME";
}
