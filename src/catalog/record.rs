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
//! | `p` job | [`PlacedRecord`]; only of jobs that are in another shard: a daemon that knows of none refuses the catalog |
//! | `e` bucket | [`BucketEndRecord`]; likewise, in the first shard of several, while others are told |
//! | `k` job | [`CoordinatorRecord`]; only of jobs that have a coordinator: a daemon that knows of none refuses the catalog |
//!
//! A value is one version byte ([`VERSION`]) and then the record in postcard's encoding
//! (<https://postcard.jamesmunns.com/wire-format>), fields in the order in which they stand here. Older versions are still
//! read. Objects with a storage class or with checksums of their parts, and uploads with a storage class, have version
//! [`VERSION_WITH_MORE`]: behind the record stands [`MoreOfRecord`], for a slot a list of them, one for each version. Those with
//! tags have [`VERSION_WITH_TAGS`], and the tags stand behind that. Version 2 had no upload in an object, and the parts of an upload stood in its record, which ended with them.
//! Version 1 had, besides, no lane, holes, upload and moves in a file, no reason in [`FileState::Forgotten`], no end in a
//! job, and in a checkpoint no kind and no word of where it was claimed from.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mutation::Mutation;
use crate::model::{
    CheckpointId, CheckpointKind, CheckpointState, FileState, Forgotten, Holder, IdempotencyKey, JobEnd, JobId, Label,
    Lane, Location, Millis, NewUpload, ObjectChecksum, ObjectHead, ObjectHeaders, PartHead, SegmentCrc, SegmentId,
    StateScope, Writer,
};
use crate::store::StoreOwner;

/// Version of the records' encoding that is written.
pub(super) const VERSION: u8 = 3;
/// Version of those that say more than version 3 can. Only they have it, so that others are read by older daemons.
pub(super) const VERSION_WITH_MORE: u8 = 4;
/// The same, of objects and uploads with tags.
pub(super) const VERSION_WITH_TAGS: u8 = 5;

/// Keys from one bound to another.
pub(super) type KeyRange = (Bound<&'static [u8]>, Bound<&'static [u8]>);

/// The ranges that a start reads, in this order: of a list, all ranges at the same time, and each in the order of its keys.
/// So files are read before segments, buckets before objects, uploads before their parts. Bytes of inline segments are not
/// read.
pub(super) const READ_AT_OPEN: &[&[KeyRange]] = &[
    &[(Bound::Unbounded, Bound::Excluded(b"d"))],
    &[(Bound::Included(b"e"), Bound::Excluded(b"o"))],
    &[(Bound::Included(b"p"), Bound::Excluded(b"s"))],
    &[(Bound::Included(b"t"), Bound::Unbounded)],
    &[(Bound::Included(b"o"), Bound::Excluded(b"p")), (Bound::Included(b"s"), Bound::Excluded(b"t"))],
];

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The key fits no kind of record.
    #[error("catalog key {0:?} is of no known kind")]
    Key(Bytes),
    /// The value was written by a later version of the daemon.
    #[error("catalog record {key:?} has version {version}, this daemon reads up to {VERSION_WITH_TAGS}")]
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
        /// The decoder's error.
        source: postcard::Error,
    },
}

/// A physical file in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    /// Its place in its life.
    pub(super) state: FileState,
    /// When it was named first.
    pub(super) created: Millis,
    /// Whose segments it holds; `None` if a version that did not record it wrote it.
    pub(super) lane: Option<Lane>,
    /// Bytes of it that were given back to a local disk by punching holes.
    pub(super) holes: u64,
    /// The multipart upload that brings it, while it is open: aborted if the daemon ends before it is complete.
    pub(super) upload: Option<String>,
    /// Whether segments that lived were moved away: who looked them up before may still read them here.
    pub(super) moved_from: bool,
}

impl FileRecord {
    /// Bytes that it takes on storage.
    pub(super) fn occupied(&self) -> u64 {
        self.state.len().saturating_sub(self.holes)
    }
}

/// A segment in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentRecord {
    /// The job it belongs to.
    pub(super) job: JobId,
    /// Its scope.
    pub(super) scope: StateScope,
    /// The writer.
    pub(super) writer: Writer,
    /// The checkpoint it was written for, when the door could tell.
    pub(super) checkpoint: Option<CheckpointId>,
    /// The holder that keeps it alive.
    pub(super) holder: Holder,
    /// The place of its bytes.
    pub(super) location: Location,
    /// CRC-32C of its bytes, and of each block.
    pub(super) crc: SegmentCrc,
    /// The worker's name for it.
    pub(super) name: Option<Label>,
    /// The key under which a repeat of its put is recognised.
    pub(super) idempotency_key: Option<IdempotencyKey>,
    /// When it was accepted.
    pub(super) created: Millis,
}

/// A job in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// When it was first named.
    pub(super) created: Millis,
    /// Checkpoints up to here are subsumed; their segments are refused.
    pub(super) subsumed: Option<CheckpointId>,
    /// The way and the time of its end, if something of it is kept; it takes no segments then.
    pub(super) ended: Option<(JobEnd, Millis)>,
}

/// A checkpoint in the catalog that is not subsumed.
///
/// One that is complete, has not ended and was claimed from a job is that job's by now: its segments are changing hands, and
/// with the last one the record goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckpointRecord {
    /// Its place in its life.
    pub(super) state: CheckpointState,
    /// When it began.
    pub(super) begun: Millis,
    /// When it completed or was aborted.
    pub(super) ended: Option<Millis>,
    /// Whether it is the system's or the user's.
    pub(super) kind: CheckpointKind,
    /// The job that it was claimed from.
    pub(super) claimed_from: Option<JobId>,
}

/// Stands behind the record of a checkpoint whose segments are changing hands: a daemon that does not know of that would free
/// them as subsumed.
const CHANGING_HANDS: u8 = 1;

impl CheckpointRecord {
    /// Whether it is another job's by now, and some of its segments are not yet.
    pub(super) fn is_changing_hands(&self) -> bool {
        self.state == CheckpointState::Completed && self.ended.is_none() && self.claimed_from.is_some()
    }
}

/// A bucket in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketRecord {
    /// When it was created.
    pub(super) created: Millis,
}

/// The versions under one key of a bucket, newest first.
///
/// More than one stands there only while a put over an existing object is on its way: should its bytes not
/// arrive, the object before it is still the one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectSlot {
    /// Newest first.
    pub(super) versions: Vec<Arc<ObjectRecord>>,
}

/// One S3 object in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectRecord {
    /// Its bytes, in order. Empty for an object of 0 bytes.
    pub(super) segments: Vec<SegmentId>,
    /// The part of it that a reader is told.
    pub(super) head: ObjectHead,
    /// The multipart upload that made it: whoever repeats its completion is answered as the first time.
    pub(super) upload: Option<String>,
}

/// A multipart upload that survives a restart. Never changes; its parts have records of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UploadRecord {
    /// The client's request for the object.
    pub(super) upload: Arc<NewUpload>,
    /// When it was created.
    pub(super) created: Millis,
}

/// An upload as any version wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct StoredUpload {
    /// The upload.
    pub(super) record: UploadRecord,
    /// Its parts by number, if version 2 or an older one wrote it.
    #[serde(skip)]
    pub(super) parts: Vec<(u16, PartRecord)>,
}

/// The versions under one number of an upload, newest first.
///
/// More than one stands there only while a part is uploaded again: should its bytes not arrive, the part before it is
/// still the one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartSlot {
    /// Newest first.
    pub(super) versions: Vec<PartRecord>,
}

/// One part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    /// The segment with its bytes; `None` for a part of 0 bytes.
    pub(super) segment: Option<SegmentId>,
    /// The part of it that a client is told.
    pub(super) head: PartHead,
}

/// Who opened the catalog last, and for which store. RecordValue before the owner's object beside the data is: data with a later
/// owner's object than this one is newer than the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnerRecord {
    /// The identity of the store, as it stands beside the data.
    pub(super) store: String,
    /// Its epoch, and what it drew at its start.
    pub(super) owner: StoreOwner,
}

/// What the coordinator of a job has to remember besides checkpoints. The catalog keeps it, and knows no more of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoordinatorRecord {
    /// As the coordinator wrote it: JSON with a version of its own.
    pub(super) text: String,
}

/// Where a job is that would be in this shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlacedRecord {
    /// The shard.
    pub(super) shard: u32,
}

/// A bucket that is deleted here, and maybe not in other shards yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketEndRecord {
    /// When it was deleted.
    pub(super) begun: Millis,
}

/// A key of the database, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RecordKey {
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
    /// What the coordinator of a job remembers.
    Coordinator(JobId),
    /// The shard of a job that is not in this one.
    Placed(JobId),
    /// The end of a bucket in other shards.
    BucketEnd(String),
}

impl RecordKey {
    /// The key's bytes.
    pub(super) fn encode(&self) -> Bytes {
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
            Self::Coordinator(job) => join(&mut out, b'k', &[job.as_str().as_bytes()]),
            Self::Placed(job) => join(&mut out, b'p', &[job.as_str().as_bytes()]),
            Self::BucketEnd(bucket) => join(&mut out, b'e', &[bucket.as_bytes()]),
            Self::Part(id, number) => join(&mut out, b'u', &[id.as_bytes(), b"\0", &number.to_be_bytes()]),
        }
        out.into()
    }

    /// Takes a key apart.
    ///
    /// # Errors
    /// [`RecordError::Key`] for bytes that [`Self::encode`] does not make.
    pub(super) fn decode(key: &Bytes) -> Result<Self, RecordError> {
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
            b'k' => Self::Coordinator(text(rest)?.parse().ok()?),
            b'p' => Self::Placed(text(rest)?.parse().ok()?),
            b'e' => Self::BucketEnd(text(rest)?),
            b'w' if rest.is_empty() => Self::Owner,
            _ => return None,
        })
    }

    /// The change that sets this record.
    pub(super) fn put<T: RecordValue>(&self, value: &T) -> Mutation {
        let (version, more) = value.more().unwrap_or((VERSION, vec![]));
        let mut out = postcard::to_extend(value, vec![version]).expect("plain records always encode");
        out.extend_from_slice(&more);
        Mutation::Put { key: self.encode(), value: out.into() }
    }

    /// The change that removes this record.
    pub(super) fn delete(&self) -> Mutation {
        Mutation::Delete { key: self.encode() }
    }
}

fn join(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    out.push(kind);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The fields of an object or an upload that version 3 does not have.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MoreOfRecord {
    /// The storage class.
    pub(super) storage_class: Option<String>,
    /// Checksums of the parts.
    pub(super) part_checksums: Vec<String>,
}

/// Tags of an object or an upload.
type Tags = Vec<(String, String)>;

impl MoreOfRecord {
    fn of(headers: &ObjectHeaders, checksum: Option<&ObjectChecksum>) -> Self {
        let part_checksums = checksum.map(|checksum| checksum.parts.clone()).unwrap_or_default();
        Self { storage_class: headers.storage_class.clone(), part_checksums }
    }

    fn is_needed(headers: &ObjectHeaders, checksum: Option<&ObjectChecksum>) -> bool {
        headers.storage_class.is_some() || checksum.is_some_and(|checksum| !checksum.parts.is_empty())
    }
}

/// A record as it is written.
pub(super) trait RecordValue: Serialize {
    /// What version 3 cannot say: the version that can, and the bytes behind the record.
    fn more(&self) -> Option<(u8, Vec<u8>)> {
        None
    }
}

impl RecordValue for FileRecord {}
impl RecordValue for SegmentRecord {}
impl RecordValue for JobRecord {}

impl RecordValue for CheckpointRecord {
    fn more(&self) -> Option<(u8, Vec<u8>)> {
        self.is_changing_hands().then(|| (VERSION_WITH_MORE, vec![CHANGING_HANDS]))
    }
}

impl RecordValue for BucketRecord {}
impl RecordValue for OwnerRecord {}
impl RecordValue for CoordinatorRecord {}
impl RecordValue for PlacedRecord {}
impl RecordValue for BucketEndRecord {}
impl RecordValue for PartSlot {}

impl RecordValue for ObjectSlot {
    fn more(&self) -> Option<(u8, Vec<u8>)> {
        let heads = || self.versions.iter().map(|version| &version.head);
        let more = |head: &ObjectHead| MoreOfRecord::of(&head.headers, head.checksum.as_ref());
        if heads().any(|head| !head.headers.tags.is_empty()) {
            let with_tags: Vec<_> = heads().map(|head| (more(head), &head.headers.tags)).collect();
            return Some((VERSION_WITH_TAGS, encoded(&with_tags)));
        }
        let is_needed = heads().any(|head| MoreOfRecord::is_needed(&head.headers, head.checksum.as_ref()));
        is_needed.then(|| (VERSION_WITH_MORE, encoded(&heads().map(more).collect::<Vec<_>>())))
    }
}

impl RecordValue for UploadRecord {
    fn more(&self) -> Option<(u8, Vec<u8>)> {
        let headers = &self.upload.headers;
        let more = || MoreOfRecord::of(headers, None);
        if !headers.tags.is_empty() {
            return Some((VERSION_WITH_TAGS, encoded(&(more(), &headers.tags))));
        }
        MoreOfRecord::is_needed(headers, None).then(|| (VERSION_WITH_MORE, encoded(&more())))
    }
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain records always encode")
}

/// A record, in every version that was ever written.
pub(super) trait Record: DeserializeOwned {
    /// Reads version 1; most records did not change in the next one.
    ///
    /// # Errors
    /// The decoder's error.
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        Self::decode_version_2(body)
    }

    /// Reads version 2; most records have not changed since.
    ///
    /// # Errors
    /// The decoder's error.
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        postcard::from_bytes(body)
    }

    /// Reads version 4, which few records have.
    ///
    /// # Errors
    /// The decoder's error.
    fn decode_with_more(body: &[u8]) -> postcard::Result<Self> {
        postcard::from_bytes(body)
    }

    /// Reads version 5, which objects and uploads alone have.
    ///
    /// # Errors
    /// The decoder's error.
    fn decode_with_tags(_: &[u8]) -> postcard::Result<Self> {
        Err(postcard::Error::DeserializeBadEncoding)
    }
}

impl Record for SegmentRecord {}
impl Record for BucketRecord {}
impl Record for OwnerRecord {}
impl Record for CoordinatorRecord {}
impl Record for PlacedRecord {}
impl Record for BucketEndRecord {}
impl Record for PartSlot {}

impl Record for ObjectSlot {
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        let versions: Vec<(Vec<SegmentId>, ObjectHead)> = postcard::from_bytes(body)?;
        let object = |(segments, head)| Arc::new(ObjectRecord { segments, head, upload: None });
        Ok(Self { versions: versions.into_iter().map(object).collect() })
    }

    fn decode_with_more(body: &[u8]) -> postcard::Result<Self> {
        let (slot, rest): (Self, _) = postcard::take_from_bytes(body)?;
        let more: Vec<MoreOfRecord> = postcard::from_bytes(rest)?;
        slot.with(more.into_iter().map(|more| (more, Tags::new())).collect())
    }

    fn decode_with_tags(body: &[u8]) -> postcard::Result<Self> {
        let (slot, rest): (Self, _) = postcard::take_from_bytes(body)?;
        slot.with(postcard::from_bytes(rest)?)
    }
}

impl ObjectSlot {
    /// Adds to each version what stands behind the record about it.
    fn with(mut self, more: Vec<(MoreOfRecord, Tags)>) -> postcard::Result<Self> {
        if more.len() != self.versions.len() {
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        for (version, (more, tags)) in self.versions.iter_mut().zip(more) {
            let head = &mut Arc::make_mut(version).head;
            (head.headers.storage_class, head.headers.tags) = (more.storage_class, tags);
            if let Some(checksum) = &mut head.checksum {
                checksum.parts = more.part_checksums;
            }
        }
        Ok(self)
    }
}

impl Record for StoredUpload {
    fn decode_version_2(body: &[u8]) -> postcard::Result<Self> {
        let (record, parts) = postcard::from_bytes(body)?;
        Ok(Self { record, parts })
    }

    fn decode_with_more(body: &[u8]) -> postcard::Result<Self> {
        let (stored, rest): (Self, _) = postcard::take_from_bytes(body)?;
        Ok(stored.with(postcard::from_bytes(rest)?, Tags::new()))
    }

    fn decode_with_tags(body: &[u8]) -> postcard::Result<Self> {
        let (stored, rest): (Self, _) = postcard::take_from_bytes(body)?;
        let (more, tags) = postcard::from_bytes(rest)?;
        Ok(stored.with(more, tags))
    }
}

impl StoredUpload {
    /// Adds what stands behind the record.
    fn with(mut self, more: MoreOfRecord, tags: Tags) -> Self {
        let headers = &mut Arc::make_mut(&mut self.record.upload).headers;
        (headers.storage_class, headers.tags) = (more.storage_class, tags);
        self
    }
}

impl Record for FileRecord {
    fn decode_version_1(body: &[u8]) -> postcard::Result<Self> {
        #[derive(Deserialize)]
        enum FileStateV1 {
            Open { durable_len: u64, len: u64 },
            Closed { len: u64 },
            Forgotten { len: u64, since: Millis },
        }
        let (state, created): (FileStateV1, Millis) = postcard::from_bytes(body)?;
        let state = match state {
            FileStateV1::Open { durable_len, len } => FileState::Open { durable_len, len },
            FileStateV1::Closed { len } => FileState::Closed { len },
            FileStateV1::Forgotten { len, since } => FileState::Forgotten { len, since, why: Forgotten::Moved },
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

    fn decode_with_more(body: &[u8]) -> postcard::Result<Self> {
        match postcard::take_from_bytes(body)? {
            (record, [CHANGING_HANDS]) => Ok(record),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }
}

/// Reads the value of the record under `key`.
///
/// # Errors
/// [`RecordError`] for an unknown version, or bytes that are no such record.
pub(super) fn decode<T: Record>(key: &Bytes, value: &[u8]) -> Result<T, RecordError> {
    let (version, body) = value.split_first().unwrap_or((&0, &[]));
    let record = match *version {
        VERSION => postcard::from_bytes(body),
        VERSION_WITH_MORE => T::decode_with_more(body),
        VERSION_WITH_TAGS => T::decode_with_tags(body),
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
            RecordKey::Coordinator("bucket/dir/job".parse().unwrap()),
            RecordKey::Placed("team/job".parse().unwrap()),
            RecordKey::BucketEnd("b".into()),
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

    /// Of those that have not changed since version 2.
    #[test]
    fn files_jobs_and_checkpoints_are_written_as_in_version_2() {
        let lane = Lane { job: Some("j".parse().unwrap()), scope: StateScope::Shared, of: crate::model::LaneOf::All };
        let state = FileState::Forgotten { len: 5, since: Millis(7), why: Forgotten::Died };
        let (lane, upload) = (Some(lane), Some("u".into()));
        let file = FileRecord { state, created: Millis(9), lane, holes: 3, upload, moved_from: true };
        let job = JobRecord { created: Millis(4), subsumed: Some(CheckpointId(2)), ended: None };
        let ended = JobRecord { created: Millis(4), subsumed: None, ended: Some((JobEnd::Failed, Millis(6))) };
        let checkpoint = CheckpointRecord {
            state: CheckpointState::Aborted,
            begun: Millis(1),
            ended: Some(Millis(3)),
            kind: CheckpointKind::Savepoint,
            claimed_from: Some("j".parse().unwrap()),
        };
        let name: JobId = "j".parse().unwrap();

        assert_eq!(bytes_of(&RecordKey::File("f".into()).put(&file)), "0302050700090101016a00020301017501");
        assert_eq!(bytes_of(&RecordKey::Job(name.clone()).put(&job)), "0304010200");
        assert_eq!(bytes_of(&RecordKey::Job(name.clone()).put(&ended)), "030400010206");
        assert_eq!(bytes_of(&RecordKey::Checkpoint(name, CheckpointId(1)).put(&checkpoint)), "03020101030101016a");
        assert_eq!(sample::<JobRecord>("0304010200"), job);
        assert_eq!(sample::<CheckpointRecord>("03020101030101016a"), checkpoint);
    }

    /// A stored sample of version 3 in which nothing is left out.
    #[test]
    fn what_a_client_says_of_an_object_is_written_as_it_was() {
        let checksum =
            Some(ObjectChecksum { algorithm: "CRC32".into(), value: "v".into(), composite: true, parts: vec![] });
        let headers = ObjectHeaders {
            content_type: Some("t".into()),
            metadata: vec![("a".into(), "b".into())],
            ..ObjectHeaders::default()
        };
        let head = ObjectHead { headers: headers.clone(), checksum, ..object().head };
        let object = ObjectRecord { head, ..object() };
        let slot = ObjectSlot { versions: vec![Arc::new(object)] };
        let upload =
            NewUpload { headers, checksum: Some(("SHA1".into(), true)), ..NewUpload::clone(&an_upload().upload) };
        let upload = UploadRecord { upload: Arc::new(upload), ..an_upload() };
        let head = PartHead { checksum: Some("v".into()), ..part().head };
        let parts = PartSlot { versions: vec![PartRecord { segment: None, head }] };

        let in_headers = "01017400000000000101610162";
        let in_slot = format!("0301010705016509{in_headers}01054352433332017601010501017a");
        let in_upload = format!("030162016b{in_headers}0104534841310104");
        let in_part = "03010005016501017609";
        assert_eq!(bytes_of(&RecordKey::Object("b".into(), "k".into()).put(&slot)), in_slot);
        assert_eq!(bytes_of(&RecordKey::Upload("z".into()).put(&upload)), in_upload);
        assert_eq!(bytes_of(&RecordKey::Part("z".into(), 2).put(&parts)), in_part);
        assert_eq!(sample::<ObjectSlot>(&in_slot), slot);
        assert_eq!(sample::<StoredUpload>(&in_upload), StoredUpload { record: upload, parts: vec![] });
        assert_eq!(sample::<PartSlot>(in_part), parts);
    }

    /// Stored samples of version 4, which only objects and uploads have that say more.
    #[test]
    fn version_4_of_the_records_reads_as_it_did() {
        let class = Some("STANDARD_IA".to_owned());
        let headers = ObjectHeaders { storage_class: class, ..ObjectHeaders::default() };
        let parts = vec!["AAAAAA==".to_owned()];
        let checksum = ObjectChecksum { algorithm: "CRC32".into(), value: "x-1".into(), composite: true, parts };
        let object_of = |head| Arc::new(ObjectRecord { head, ..object() });
        let new = object_of(ObjectHead { headers: headers.clone(), ..object().head });
        let old = object_of(ObjectHead { checksum: Some(checksum), ..object().head });
        let slot = ObjectSlot { versions: vec![new, old] };
        let upload = NewUpload { headers, ..NewUpload::clone(&an_upload().upload) };
        let upload = UploadRecord { upload: Arc::new(upload), ..an_upload() };

        let new_object = "010107050165090000000000000000010501017a";
        let old_object = "0107050165090000000000000001054352433332".to_owned() + "03782d3101" + "010501017a";
        let more = "02".to_owned() + "010b5354414e444152445f494100" + "00010841414141414" + "13d3d";
        let in_slot = format!("0402{}{old_object}{more}", &new_object[2..]);
        let in_upload = "040162016b000000000000000004".to_owned() + "010b5354414e444152445f494100";
        assert_eq!(bytes_of(&RecordKey::Object("b".into(), "k".into()).put(&slot)), in_slot);
        assert_eq!(bytes_of(&RecordKey::Upload("z".into()).put(&upload)), in_upload);
        assert_eq!(sample::<ObjectSlot>(&in_slot), slot);
        assert_eq!(sample::<StoredUpload>(&in_upload), StoredUpload { record: upload, parts: vec![] });
    }

    /// Stored samples of version 5, which only objects and uploads with tags have.
    #[test]
    fn version_5_of_the_records_reads_as_it_did() {
        let tags = vec![("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())];
        let headers = ObjectHeaders { tags, ..ObjectHeaders::default() };
        let new = ObjectRecord { head: ObjectHead { headers: headers.clone(), ..object().head }, ..object() };
        let slot = ObjectSlot { versions: vec![Arc::new(new), Arc::new(object())] };
        let upload = NewUpload { headers, ..NewUpload::clone(&an_upload().upload) };
        let upload = UploadRecord { upload: Arc::new(upload), ..an_upload() };

        let an_object = "0107050165090000000000000000010501017a";
        let in_slot = format!("0502{an_object}{an_object}02{}{}", "000002016101620163".to_owned() + "00", "000000");
        let in_upload = "050162016b000000000000000004".to_owned() + "00000201610162016300";
        assert_eq!(bytes_of(&RecordKey::Object("b".into(), "k".into()).put(&slot)), in_slot);
        assert_eq!(bytes_of(&RecordKey::Upload("z".into()).put(&upload)), in_upload);
        assert_eq!(sample::<ObjectSlot>(&in_slot), slot);
        assert_eq!(sample::<StoredUpload>(&in_upload), StoredUpload { record: upload, parts: vec![] });
        let of_a_job = hex::decode("05040102").unwrap();
        assert!(decode::<JobRecord>(&Bytes::new(), &of_a_job).is_err());
    }

    /// A daemon that does not know of claims in pieces refuses a checkpoint that it would take for a subsumed one.
    #[test]
    fn a_checkpoint_that_changes_hands_is_not_read_by_older_daemons() {
        let claimed = CheckpointRecord {
            state: CheckpointState::Completed,
            begun: Millis(1),
            ended: None,
            kind: CheckpointKind::Checkpoint,
            claimed_from: Some("j".parse().unwrap()),
        };
        let over = CheckpointRecord { ended: Some(Millis(2)), ..claimed.clone() };
        let key = RecordKey::Checkpoint("i".parse().unwrap(), CheckpointId(1));

        assert_eq!(bytes_of(&key.put(&claimed)), "040101000001016a01");
        assert_eq!(sample::<CheckpointRecord>("040101000001016a01"), claimed);
        assert_eq!(bytes_of(&key.put(&over))[..2], *"03");
        let wrong = hex::decode("040101000001016a02").unwrap();
        assert!(decode::<CheckpointRecord>(&key.encode(), &wrong).is_err());
    }

    fn object() -> ObjectRecord {
        let head = ObjectHead {
            len: 5,
            etag: "e".into(),
            modified: Millis(9),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![5],
        };
        ObjectRecord { segments: vec![SegmentId(7)], head, upload: Some("z".into()) }
    }

    fn an_upload() -> UploadRecord {
        let (bucket, key) = ("b".into(), "k".into());
        let upload = NewUpload { bucket, key, headers: ObjectHeaders::default(), checksum: None };
        UploadRecord { upload: Arc::new(upload), created: Millis(4) }
    }

    fn part() -> PartRecord {
        let head = PartHead { len: 5, etag: "e".into(), checksum: None, modified: Millis(9) };
        PartRecord { segment: Some(SegmentId(7)), head }
    }

    /// There is one form of it since version 2.
    #[test]
    fn an_owner_record_reads_as_it_did() {
        let owner = OwnerRecord { store: "s".into(), owner: StoreOwner { epoch: 5, incarnation: "i".into() } };

        assert_eq!(sample::<OwnerRecord>("020173050169"), owner);
        assert_eq!(bytes_of(&RecordKey::Owner.put(&owner))[2..], *"0173050169");
    }

    /// A stored sample: since version 3 there is one form of it.
    #[test]
    fn a_coordinator_record_reads_as_it_did() {
        let record = CoordinatorRecord { text: "{}".into() };

        assert_eq!(sample::<CoordinatorRecord>("03027b7d"), record);
        assert_eq!(bytes_of(&RecordKey::Coordinator("j".parse().unwrap()).put(&record)), "03027b7d");
    }

    #[test]
    fn what_a_shard_remembers_because_of_others_reads_as_it_did() {
        let (placed, end) = (PlacedRecord { shard: 300 }, BucketEndRecord { begun: Millis(5) });

        assert_eq!(sample::<PlacedRecord>("03ac02"), placed);
        assert_eq!(bytes_of(&RecordKey::Placed("j".parse().unwrap()).put(&placed)), "03ac02");
        assert_eq!(sample::<BucketEndRecord>("0305"), end);
        assert_eq!(bytes_of(&RecordKey::BucketEnd("b".into()).put(&end)), "0305");
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
            for version in [VERSION, VERSION_WITH_MORE, VERSION_WITH_TAGS] {
                if let Some(first) = value.first_mut() { *first = version; }
                let _ = decode::<SegmentRecord>(&key, &value);
                let _ = decode::<FileRecord>(&key, &value);
                let _ = decode::<ObjectSlot>(&key, &value);
                let _ = decode::<StoredUpload>(&key, &value);
                let _ = decode::<PartSlot>(&key, &value);
            }
        }
    }
}
