//! The catalog's records as they stand in its database: keys, values, versions.
//!
//! | key | value |
//! | --- | --- |
//! | `f` path | [`FileRecord`] |
//! | `s` segment id (16 bytes, big endian) | [`SegmentRecord`] |
//! | `d` segment id | the bytes of an inline segment, as they are |
//! | `j` job | [`JobRecord`] |
//! | `c` job `0x00` checkpoint (8 bytes, big endian) | [`CheckpointRecord`] |
//! | `b` bucket | [`BucketRecord`] |
//! | `o` bucket `0x00` key | [`ObjectSlot`] |
//! | `u` upload id | [`UploadRecord`] |
//!
//! A value is one version byte ([`VERSION`]) and then the record in postcard's encoding
//! (<https://postcard.jamesmunns.com/wire-format>), fields in the order in which they stand here.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{
    CheckpointId, IdempotencyKey, JobId, Label, Location, Millis, SegmentCrc, SegmentId, StateScope, Writer,
};

/// Version of the records' encoding.
pub const VERSION: u8 = 1;

/// One change to the catalog's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Sets a record.
    Put {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// Removes a record; nothing happens where there is none.
    Delete {
        /// Its key.
        key: Bytes,
    },
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The key fits no kind of record.
    #[error("catalog key {0:?} is of no known kind")]
    Key(Bytes),
    /// The value was written by a later version of the daemon.
    #[error("catalog record {key:?} has version {version}, this daemon reads {VERSION}")]
    Version {
        /// Its key.
        key: Bytes,
        /// The version it has.
        version: u8,
    },
    /// The value is damaged.
    #[error("catalog record {key:?} cannot be read: {source}")]
    Value {
        /// Its key.
        key: Bytes,
        /// What the decoder says.
        source: postcard::Error,
    },
}

/// What the catalog knows of a physical file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its place in its life.
    pub state: FileState,
    /// When it was named first.
    pub created: Millis,
}

/// The life of a physical file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileState {
    /// Takes more, or is on its way to storage. After a crash, what lies beyond `durable_len` is looked up.
    Open {
        /// Bytes that are known to be durable.
        durable_len: u64,
        /// Bytes that it will have once all that was committed is written.
        len: u64,
    },
    /// Takes no more.
    Closed {
        /// Its size in bytes.
        len: u64,
    },
    /// Holds nothing that lives; to be deleted after its grace.
    Forgotten {
        /// Its size in bytes.
        len: u64,
        /// Since when.
        since: Millis,
    },
}

impl FileState {
    /// The size of the file in bytes, as far as it is committed.
    pub fn len(&self) -> u64 {
        match self {
            Self::Open { len, .. } | Self::Closed { len } | Self::Forgotten { len, .. } => *len,
        }
    }

    /// Whether the file has no bytes yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the catalog knows of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The job it belongs to.
    pub job: JobId,
    /// Its scope.
    pub scope: StateScope,
    /// Who wrote it.
    pub writer: Writer,
    /// The checkpoint it was written for, when the door could tell.
    pub checkpoint: Option<CheckpointId>,
    /// Who keeps it alive.
    pub holder: Holder,
    /// Where its bytes are.
    pub location: Location,
    /// CRC-32C of its bytes, and of each block.
    pub crc: SegmentCrc,
    /// What the worker calls it.
    pub name: Option<Label>,
    /// The key under which a repeat of its put is recognised.
    pub idempotency_key: Option<IdempotencyKey>,
    /// When it was accepted.
    pub created: Millis,
}

/// Who keeps a segment alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// The checkpoints up to `last_used`: Flink's watermark, which only grows.
    Checkpoints {
        /// The last checkpoint that uses it.
        last_used: CheckpointId,
    },
    /// So many S3 objects.
    Objects {
        /// How many.
        count: u32,
    },
    /// A multipart upload that has not ended.
    Upload,
}

/// What the catalog knows of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// When it was first named.
    pub created: Millis,
    /// Checkpoints up to here are subsumed; their segments are refused.
    pub subsumed: Option<CheckpointId>,
}

/// What the catalog knows of a checkpoint that is not subsumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Its place in its life.
    pub state: CheckpointState,
    /// When it began.
    pub begun: Millis,
    /// When it completed or was aborted.
    pub ended: Option<Millis>,
}

/// The life of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// Takes segments.
    Pending,
    /// Complete: a job can be restored from it.
    Completed,
    /// Given up; its segments are freed and late ones refused.
    Aborted,
}

/// What the catalog knows of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRecord {
    /// When it was created.
    pub created: Millis,
}

/// What stands under one key of a bucket: its versions, newest first.
///
/// More than one stands there only while a put over an existing object is on its way: should its bytes not
/// arrive, the object before it is still the one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectSlot {
    /// Newest first.
    pub versions: Vec<ObjectRecord>,
}

/// What the catalog knows of one S3 object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Its bytes, in order. Empty for an object of 0 bytes.
    pub segments: Vec<SegmentId>,
    /// Number of bytes.
    pub len: u64,
    /// The entity tag without quotes: the MD5 in hex, `<md5 of md5s>-<parts>`, or an opaque one.
    pub etag: String,
    /// When it was put.
    pub modified: Millis,
    /// Headers that the client set.
    pub headers: ObjectHeaders,
    /// The checksum that the client sent or asked for.
    pub checksum: Option<ObjectChecksum>,
    /// The sizes of its parts in bytes, for an object that came as a multipart upload.
    pub part_lens: Vec<u64>,
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
}

/// A checksum of an S3 object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChecksum {
    /// `CRC32`, `CRC32C`, `CRC64NVME`, `SHA1` or `SHA256`.
    pub algorithm: String,
    /// The value in base64; a composite one ends in `-<parts>`.
    pub value: String,
    /// Whether it is a checksum of checksums.
    pub composite: bool,
}

/// A multipart upload some of whose parts are on storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// Headers for the object.
    pub headers: ObjectHeaders,
    /// The checksum algorithm asked for, and whether of the full object.
    pub checksum: Option<(String, bool)>,
    /// When it was created.
    pub created: Millis,
    /// Its parts by number.
    pub parts: Vec<(u16, PartRecord)>,
}

/// One part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// The segment with its bytes; none for a part of 0 bytes.
    pub segment: Option<SegmentId>,
    /// Number of bytes.
    pub len: u64,
    /// MD5 in hex.
    pub etag: String,
    /// The checksum in base64, if one was sent or asked for.
    pub checksum: Option<String>,
    /// When it was put.
    pub modified: Millis,
}

/// A key of the database, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
    /// A physical file, by path.
    File(String),
    /// A segment.
    Segment(SegmentId),
    /// The bytes of an inline segment.
    Data(SegmentId),
    /// A job.
    Job(JobId),
    /// A checkpoint of a job.
    Checkpoint(JobId, CheckpointId),
    /// A bucket.
    Bucket(String),
    /// A key of a bucket.
    Object(String, String),
    /// A multipart upload.
    Upload(String),
}

impl RecordKey {
    /// The key's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::File(path) => join(&mut out, b'f', &[path.as_bytes()]),
            Self::Segment(id) => join(&mut out, b's', &[&id.0.to_be_bytes()]),
            Self::Data(id) => join(&mut out, b'd', &[&id.0.to_be_bytes()]),
            Self::Job(job) => join(&mut out, b'j', &[job.as_str().as_bytes()]),
            Self::Checkpoint(job, id) => join(&mut out, b'c', &[job.as_str().as_bytes(), b"\0", &id.0.to_be_bytes()]),
            Self::Bucket(bucket) => join(&mut out, b'b', &[bucket.as_bytes()]),
            Self::Object(bucket, key) => join(&mut out, b'o', &[bucket.as_bytes(), b"\0", key.as_bytes()]),
            Self::Upload(id) => join(&mut out, b'u', &[id.as_bytes()]),
        }
        out.into()
    }

    /// Takes a key apart.
    ///
    /// # Errors
    /// [`RecordError::Key`] for bytes that [`Self::encode`] does not make.
    pub fn decode(key: &Bytes) -> Result<Self, RecordError> {
        Self::try_decode(key).ok_or_else(|| RecordError::Key(key.clone()))
    }

    fn try_decode(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let id = || Some(SegmentId(u128::from_be_bytes(rest.try_into().ok()?)));
        Some(match kind {
            b'f' => Self::File(text(rest)?),
            b's' => Self::Segment(id()?),
            b'd' => Self::Data(id()?),
            b'j' => Self::Job(text(rest)?.parse().ok()?),
            b'c' => {
                let (job, number) = rest.split_at_checked(rest.len().checked_sub(9)?)?;
                let number = number.strip_prefix(b"\0")?;
                Self::Checkpoint(text(job)?.parse().ok()?, CheckpointId(u64::from_be_bytes(number.try_into().ok()?)))
            }
            b'b' => Self::Bucket(text(rest)?),
            b'o' => {
                let at = rest.iter().position(|b| *b == 0)?;
                Self::Object(text(&rest[..at])?, text(&rest[at + 1..])?)
            }
            b'u' => Self::Upload(text(rest)?),
            _ => return None,
        })
    }

    /// The change that sets this record.
    pub fn put<T: Serialize>(&self, value: &T) -> Mutation {
        let out = postcard::to_extend(value, vec![VERSION]).expect("plain records always encode");
        Mutation::Put { key: self.encode(), value: out.into() }
    }

    /// The change that removes this record.
    pub fn delete(&self) -> Mutation {
        Mutation::Delete { key: self.encode() }
    }
}

fn join(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    out.push(kind);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Reads the value of the record under `key`.
///
/// # Errors
/// [`RecordError`] for another version, or bytes that are no such record.
pub fn decode<T: DeserializeOwned>(key: &Bytes, value: &[u8]) -> Result<T, RecordError> {
    let (version, body) = value.split_first().unwrap_or((&0, &[]));
    if *version != VERSION {
        return Err(RecordError::Version { key: key.clone(), version: *version });
    }
    postcard::from_bytes(body).map_err(|source| RecordError::Value { key: key.clone(), source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_survive_their_encoding() {
        let job: JobId = "bucket/dir/job".parse().unwrap();
        for key in [
            RecordKey::File("data/a/1".into()),
            RecordKey::Segment(SegmentId(7)),
            RecordKey::Data(SegmentId(8)),
            RecordKey::Job(job.clone()),
            RecordKey::Checkpoint(job, CheckpointId(0x0102_0000_0000_0003)),
            RecordKey::Bucket("b".into()),
            RecordKey::Object("b".into(), "k/ü\0x".into()),
            RecordKey::Upload("u".into()),
        ] {
            assert_eq!(RecordKey::decode(&key.encode()).unwrap(), key);
        }
    }

    /// The stored sample of version 1: a change here is a change of the format.
    #[test]
    fn version_1_of_a_segment_record_reads_as_it_did() {
        let record = SegmentRecord {
            job: "j".parse().unwrap(),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(2)),
            holder: Holder::Objects { count: 1 },
            location: Location::Inline { len: 1 },
            crc: SegmentCrc { whole: 5, blocks: vec![] },
            name: None,
            idempotency_key: None,
            created: Millis(10),
        };
        let Mutation::Put { value, .. } = RecordKey::Segment(SegmentId(1)).put(&record) else { unreachable!() };

        assert_eq!(hex::encode(&value), "01016a000000010201010001050000000a");
        assert_eq!(decode::<SegmentRecord>(&Bytes::new(), &value).unwrap(), record);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(key in proptest::collection::vec(any::<u8>(), 0..40), mut value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let key = Bytes::from(key);
            let _ = RecordKey::decode(&key);
            if let Some(first) = value.first_mut() { *first = VERSION; }
            let _ = decode::<SegmentRecord>(&key, &value);
            let _ = decode::<FileRecord>(&key, &value);
            let _ = decode::<ObjectSlot>(&key, &value);
            let _ = decode::<UploadRecord>(&key, &value);
        }
    }
}
