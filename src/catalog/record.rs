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
//! | `u` upload id `0x00` part number (2 bytes, big endian) | [`PartSlot`] |
//! | `w` | [`OwnerRecord`] |
//!
//! A value is one version byte ([`VERSION`]) and then the record in postcard's encoding
//! (<https://postcard.jamesmunns.com/wire-format>), fields in the order in which they stand here. Older versions are still
//! read. Version 2 had no upload in an object, and the parts of an upload stood in its record, which ended with them.
//! Version 1 had, besides, no lane, holes, upload and moves in a file, no reason in [`FileState::Forgotten`], no end in a
//! job, and in a checkpoint no kind and no word of where it was claimed from.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{
    CheckpointId, IdempotencyKey, JobId, Label, Lane, Location, Millis, SegmentCrc, SegmentId, StateScope, Writer,
};

/// Version of the records' encoding that is written.
pub const VERSION: u8 = 3;

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

impl Mutation {
    /// Bytes of the key and the value.
    pub fn weight(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The key fits no kind of record.
    #[error("catalog key {0:?} is of no known kind")]
    Key(Bytes),
    /// The value was written by a later version of the daemon.
    #[error("catalog record {key:?} has version {version}, this daemon reads up to {VERSION}")]
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
    /// Whose segments it holds; none if a version that did not record it wrote it.
    pub lane: Option<Lane>,
    /// Bytes of it that were given back to a local disk by punching holes.
    pub holes: u64,
    /// The multipart upload that brings it, while it is open: aborted if the daemon ends before it is complete.
    pub upload: Option<String>,
    /// Whether segments that lived were moved away: who looked them up before may still read them here.
    pub moved_from: bool,
}

impl FileRecord {
    /// Bytes that it takes on storage.
    pub fn occupied(&self) -> u64 {
        self.state.len().saturating_sub(self.holes)
    }
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
        /// What became of its segments.
        why: Forgotten,
    },
}

/// Why a file holds nothing that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Forgotten {
    /// The last of its segments was freed: nobody has a right to read it.
    Died,
    /// Its last living segments were moved: who looked them up before may still read them here.
    Moved,
    /// Its upload was given up, and may still arrive.
    GivenUp,
}

impl Forgotten {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Died, Self::Moved, Self::GivenUp];
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
    /// A savepoint; only its discarding frees it.
    Savepoint {
        /// Which one.
        id: CheckpointId,
    },
}

impl Holder {
    /// Whether a segment that was written for `written` is part of `checkpoint`. The watermark tells first and last use:
    /// a checkpoint between them counts as a user.
    pub fn is_part_of(&self, written: Option<CheckpointId>, checkpoint: CheckpointId) -> bool {
        match self {
            Self::Checkpoints { last_used } => written.is_none_or(|n| n <= checkpoint) && checkpoint <= *last_used,
            Self::Savepoint { id } => *id == checkpoint,
            Self::Objects { .. } | Self::Upload => false,
        }
    }
}

/// What the catalog knows of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// When it was first named.
    pub created: Millis,
    /// Checkpoints up to here are subsumed; their segments are refused.
    pub subsumed: Option<CheckpointId>,
    /// How and when it ended, if what it left is kept; it takes no segments then.
    pub ended: Option<(JobEnd, Millis)>,
}

/// How a job ended: Flink's `JobStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobEnd {
    /// It read all its input.
    Finished,
    /// A user cancelled it.
    Canceled,
    /// It failed for good.
    Failed,
    /// Its job manager stopped; another one may go on with it.
    Suspended,
}

/// Whether a checkpoint belongs to the system or to the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// Subsumed by newer ones.
    #[default]
    Checkpoint,
    /// Self-contained, never subsumed; lives until it is discarded.
    Savepoint,
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
    /// Whose it is.
    pub kind: CheckpointKind,
    /// The job that it was claimed from.
    pub claimed_from: Option<JobId>,
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
    pub versions: Vec<Arc<ObjectRecord>>,
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
    /// The multipart upload that made it: whoever repeats its completion is answered as the first time.
    pub upload: Option<String>,
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

/// A multipart upload that survives a restart. Never changes; its parts have records of their own.
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
}

/// An upload as any version wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StoredUpload {
    /// The upload.
    pub record: UploadRecord,
    /// Its parts by number, if version 2 or an older one wrote it.
    #[serde(skip)]
    pub parts: Vec<(u16, PartRecord)>,
}

/// What stands under one number of an upload: its versions, newest first.
///
/// More than one stands there only while a part is uploaded again: should its bytes not arrive, the part before it is
/// still the one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSlot {
    /// Newest first.
    pub versions: Vec<PartRecord>,
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

/// Who opened the catalog last, and for which store. Written before the owner's object beside the data is: data with a later
/// owner's object than this one is newer than the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// The identity of the store, as it stands beside the data.
    pub store: String,
    /// The owner's epoch.
    pub epoch: u64,
    /// What it drew at its start.
    pub incarnation: String,
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
    /// The last owner; there is one record.
    Owner,
    /// A part of a multipart upload, by number.
    Part(String, u16),
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
            Self::Owner => join(&mut out, b'w', &[]),
            Self::Part(id, number) => join(&mut out, b'u', &[id.as_bytes(), b"\0", &number.to_be_bytes()]),
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
            b'u' => match rest.iter().position(|b| *b == 0) {
                None => Self::Upload(text(rest)?),
                Some(at) => Self::Part(text(&rest[..at])?, u16::from_be_bytes(rest[at + 1..].try_into().ok()?)),
            },
            b'w' if rest.is_empty() => Self::Owner,
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

/// A record, in every version that was ever written.
pub trait Record: DeserializeOwned {
    /// Reads version 1; most records did not change in the next one.
    ///
    /// # Errors
    /// What the decoder says.
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        Self::decode_version_2(body)
    }

    /// Reads version 2; most records have not changed since.
    ///
    /// # Errors
    /// What the decoder says.
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        postcard::from_bytes(body)
    }
}

impl Record for SegmentRecord {}
impl Record for BucketRecord {}
impl Record for OwnerRecord {}
impl Record for PartSlot {}

impl Record for ObjectSlot {
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        type Object = (Vec<SegmentId>, u64, String, Millis, ObjectHeaders, Option<ObjectChecksum>, Vec<u64>);
        let versions: Vec<Object> = postcard::from_bytes(body)?;
        let object = |(segments, len, etag, modified, headers, checksum, part_lens)| {
            Arc::new(ObjectRecord { segments, len, etag, modified, headers, checksum, part_lens, upload: None })
        };
        Ok(Self { versions: versions.into_iter().map(object).collect() })
    }
}

impl Record for StoredUpload {
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        let (record, parts) = postcard::from_bytes(body)?;
        Ok(Self { record, parts })
    }
}

impl Record for FileRecord {
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        #[derive(Deserialize)]
        enum State {
            Open { durable_len: u64, len: u64 },
            Closed { len: u64 },
            Forgotten { len: u64, since: Millis },
        }
        let (state, created): (State, Millis) = postcard::from_bytes(body)?;
        let state = match state {
            State::Open { durable_len, len } => FileState::Open { durable_len, len },
            State::Closed { len } => FileState::Closed { len },
            State::Forgotten { len, since } => FileState::Forgotten { len, since, why: Forgotten::Moved },
        };
        Ok(Self { state, created, lane: None, holes: 0, upload: None, moved_from: false })
    }
}

impl Record for JobRecord {
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        let (created, subsumed) = postcard::from_bytes(body)?;
        Ok(Self { created, subsumed, ended: None })
    }
}

impl Record for CheckpointRecord {
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        let (state, begun, ended) = postcard::from_bytes(body)?;
        Ok(Self { state, begun, ended, kind: CheckpointKind::Checkpoint, claimed_from: None })
    }
}

/// Reads the value of the record under `key`.
///
/// # Errors
/// [`RecordError`] for an unknown version, or bytes that are no such record.
pub fn decode<T: Record>(key: &Bytes, value: &[u8]) -> Result<T, RecordError> {
    let (version, body) = value.split_first().unwrap_or((&0, &[]));
    let record = match *version {
        VERSION => postcard::from_bytes(body),
        2 => T::decode_version_2(body),
        1 => T::decode_version_1(body),
        version => return Err(RecordError::Version { key: key.clone(), version }),
    };
    record.map_err(|source| RecordError::Value { key: key.clone(), source })
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
            RecordKey::Owner,
            RecordKey::Part("u".into(), 10_000),
        ] {
            assert_eq!(RecordKey::decode(&key.encode()).unwrap(), key);
        }
    }

    fn sample<T: Record>(hex: &str) -> T {
        decode(&Bytes::new(), &hex::decode(hex).unwrap()).unwrap()
    }

    fn bytes_of(mutation: &Mutation) -> String {
        let Mutation::Put { value, .. } = mutation else { unreachable!("a put") };
        hex::encode(value)
    }

    /// Stored samples of version 1.
    #[test]
    fn version_1_of_the_records_that_changed_reads_as_it_did() {
        let file =
            |state| FileRecord { state, created: Millis(9), lane: None, holes: 0, upload: None, moved_from: false };

        assert_eq!(sample::<FileRecord>("0100030509"), file(FileState::Open { durable_len: 3, len: 5 }));
        assert_eq!(sample::<FileRecord>("01010509"), file(FileState::Closed { len: 5 }));
        let forgotten = FileState::Forgotten { len: 5, since: Millis(7), why: Forgotten::Moved };
        assert_eq!(sample::<FileRecord>("0102050709"), file(forgotten));
        let job = JobRecord { created: Millis(4), subsumed: Some(CheckpointId(2)), ended: None };
        assert_eq!(sample::<JobRecord>("01040102"), job);
        let kind = CheckpointKind::Checkpoint;
        let state = CheckpointState::Completed;
        let checkpoint = CheckpointRecord { state, begun: Millis(1), ended: Some(Millis(2)), kind, claimed_from: None };
        assert_eq!(sample::<CheckpointRecord>("0101010102"), checkpoint);
    }

    /// Stored samples of version 2, which had other objects and uploads.
    #[test]
    fn version_2_of_the_records_reads_as_it_did() {
        let lane = Lane { job: Some("j".parse().unwrap()), scope: StateScope::Shared, of: crate::model::LaneOf::All };
        let state = FileState::Forgotten { len: 5, since: Millis(7), why: Forgotten::Died };
        let (lane, upload) = (Some(lane), Some("u".into()));
        let file = FileRecord { state, created: Millis(9), lane, holes: 3, upload, moved_from: true };
        let job = JobRecord { created: Millis(4), subsumed: None, ended: Some((JobEnd::Failed, Millis(6))) };
        let checkpoint = CheckpointRecord {
            state: CheckpointState::Pending,
            begun: Millis(1),
            ended: None,
            kind: CheckpointKind::Savepoint,
            claimed_from: Some("j".parse().unwrap()),
        };

        assert_eq!(sample::<FileRecord>("0202050700090101016a00020301017501"), file);
        assert_eq!(sample::<JobRecord>("020400010206"), job);
        assert_eq!(sample::<CheckpointRecord>("020001000101016a"), checkpoint);
        let slot = ObjectSlot { versions: vec![Arc::new(ObjectRecord { upload: None, ..object() })] };
        let stored = StoredUpload { record: an_upload(), parts: vec![(2, part())] };
        for version in ["01", "02"] {
            let object = format!("{version}0101070501650900000000000000000105");
            let upload = format!("{version}0162016b000000000000000004010201070501650009");
            assert_eq!(sample::<ObjectSlot>(&object), slot);
            assert_eq!(sample::<StoredUpload>(&upload), stored);
        }
    }

    /// Stored samples of version 3: a change here is a change of the format.
    #[test]
    fn version_3_of_the_records_reads_as_it_did() {
        let slot = ObjectSlot { versions: vec![Arc::new(object())] };
        let parts = PartSlot { versions: vec![part()] };
        let stored = StoredUpload { record: an_upload(), parts: vec![] };

        let in_slot = "03010107050165090000000000000000010501017a";
        let (in_upload, in_part) = ("030162016b000000000000000004", "030101070501650009");
        assert_eq!(bytes_of(&RecordKey::Object("b".into(), "k".into()).put(&slot)), in_slot);
        assert_eq!(bytes_of(&RecordKey::Upload("z".into()).put(&an_upload())), in_upload);
        assert_eq!(bytes_of(&RecordKey::Part("z".into(), 2).put(&parts)), in_part);
        assert_eq!(sample::<ObjectSlot>(in_slot), slot);
        assert_eq!(sample::<StoredUpload>(in_upload), stored);
        assert_eq!(sample::<PartSlot>(in_part), parts);
    }

    fn object() -> ObjectRecord {
        ObjectRecord {
            segments: vec![SegmentId(7)],
            len: 5,
            etag: "e".into(),
            modified: Millis(9),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![5],
            upload: Some("z".into()),
        }
    }

    fn an_upload() -> UploadRecord {
        let (bucket, key) = ("b".into(), "k".into());
        UploadRecord { bucket, key, headers: ObjectHeaders::default(), checksum: None, created: Millis(4) }
    }

    fn part() -> PartRecord {
        PartRecord { segment: Some(SegmentId(7)), len: 5, etag: "e".into(), checksum: None, modified: Millis(9) }
    }

    /// There is one form of it since version 2.
    #[test]
    fn an_owner_record_reads_as_it_did() {
        let owner = OwnerRecord { store: "s".into(), epoch: 5, incarnation: "i".into() };

        assert_eq!(sample::<OwnerRecord>("020173050169"), owner);
        assert_eq!(bytes_of(&RecordKey::Owner.put(&owner))[2..], *"0173050169");
    }

    /// The stored samples of all versions, which are alike.
    #[test]
    fn a_segment_record_reads_as_it_did() {
        let record = SegmentRecord {
            job: "j".parse().unwrap(),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(2)),
            holder: Holder::Objects { count: 1 },
            location: Location::Inline { len: 1 },
            crc: SegmentCrc { whole: 5, ..SegmentCrc::default() },
            name: None,
            idempotency_key: None,
            created: Millis(10),
        };
        assert_eq!(bytes_of(&RecordKey::Segment(SegmentId(1)).put(&record)), "03016a000000010201010001050000000a");
        for version in 1..=VERSION {
            let text = format!("{version:02x}016a000000010201010001050000000a");
            assert_eq!(sample::<SegmentRecord>(&text), record);
        }
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
            let _ = decode::<StoredUpload>(&key, &value);
            let _ = decode::<PartSlot>(&key, &value);
        }
    }
}
