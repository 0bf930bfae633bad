//! What the catalog can be told, and what it answers. Plain values: the same ones are applied in process
//! and, with many daemons, sent by a packer to the owner of a shard.

use std::sync::Arc;

use bytes::Bytes;

use super::record::{CheckpointKind, JobEnd, ObjectChecksum, ObjectHeaders, PartRecord, SegmentRecord, UploadRecord};
use crate::error::ErrorKind;
use crate::model::{
    CheckpointId, Handle, IdempotencyKey, JobId, Label, Lane, Location, Millis, PhysicalFileId, Segment, SegmentCrc,
    SegmentId, StateScope, Writer,
};

/// One thing the catalog is told to do. Applied whole or refused whole.
#[derive(Debug, Clone)]
pub enum Command {
    /// Makes a job known; nothing happens if it is. One that has ended goes on.
    CreateJob(JobId),
    /// A checkpoint or savepoint begins.
    BeginCheckpoint(JobId, CheckpointId, CheckpointKind),
    /// A checkpoint is complete. Changes no segment.
    CompleteCheckpoint(JobId, CheckpointId),
    /// A checkpoint is given up: frees its segments that no later one uses.
    AbortCheckpoint(JobId, CheckpointId),
    /// Every checkpoint up to this one is subsumed: frees what none after it uses. Savepoints stay.
    SubsumeCheckpoint(JobId, CheckpointId),
    /// A savepoint is not wanted any more: frees its segments.
    DiscardSavepoint(JobId, CheckpointId),
    /// A checkpoint uses segments that exist.
    Reuse(JobId, CheckpointId, Vec<SegmentId>),
    /// A job goes on from a checkpoint, of its own or of another job.
    Restore(Restore),
    /// A job has ended: what it leaves is kept or deleted.
    EndJob(JobId, JobEnd, Leavings),
    /// Segments that are on their way to storage, and what they mean.
    Store(Store),
    /// An open file takes no more. Without a length it was given up.
    CloseFile(PhysicalFileId, u64),
    /// Living segments were copied into another file.
    Move(Move),
    /// So many bytes of closed files are holes by now.
    FilesPunched(Vec<(PhysicalFileId, u64)>),
    /// Files that were deleted from storage.
    FilesDeleted(Vec<PhysicalFileId>),
    /// Creates a bucket.
    CreateBucket(String),
    /// Deletes an empty bucket.
    DeleteBucket(String),
    /// Deletes objects; those that do not exist count as deleted.
    DeleteObjects(String, Vec<ObjectToDelete>),
    /// Records a multipart upload; nothing happens if it is recorded.
    CreateUpload(String, Arc<UploadRecord>),
    /// Gives up a multipart upload and frees its parts; nothing happens if it does not exist.
    AbortUpload(String),
}

impl Command {
    /// About how many bytes it writes to the journal, rather more.
    pub fn weight(&self) -> usize {
        const RECORD: usize = 512;
        let inline = |segment: &NewSegment| segment.inline.as_ref().map_or(0, Bytes::len);
        match self {
            Self::Store(store) => {
                let segments = store.items.iter().flat_map(|item| &item.segments);
                let parts: usize = store.items.iter().map(|item| item.bind.parts()).sum();
                let segments = segments.map(|segment| RECORD + inline(segment)).sum::<usize>();
                (store.items.len() + parts) * RECORD + segments
            }
            Self::DeleteObjects(_, objects) => objects.iter().map(|object| RECORD + object.key.len()).sum(),
            Self::Reuse(_, _, segments) => RECORD * (1 + segments.len()),
            Self::FilesPunched(files) => RECORD * (1 + files.len()),
            Self::Move(moved) => RECORD * (1 + moved.segments.len()),
            _ => RECORD,
        }
    }
}

/// A key to delete, and on what condition.
#[derive(Debug, Clone)]
pub struct ObjectToDelete {
    /// The key.
    pub key: String,
    /// The entity tag that it must have.
    pub if_match: Option<String>,
}

/// From where a job goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// The job that goes on; created if it is not known.
    pub job: JobId,
    /// The job whose checkpoint it is; the same one after a fail-over.
    pub from: JobId,
    /// The checkpoint or savepoint; complete.
    pub checkpoint: CheckpointId,
    /// Whose it is from now on.
    pub claim: Claim,
}

/// Whether a restored checkpoint becomes the job's own: Flink's `RestoreMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Its segments are the job's, which reuses and frees them. The job it came from has no say in them any more.
    Claim,
    /// The job reads it, and never reuses or frees it.
    NoClaim,
}

/// What becomes of the checkpoints of a job that ended. Savepoints stay either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leavings {
    /// Completed ones stay, to be restored from; everything else is freed.
    Keep,
    /// All are freed, and the job is forgotten.
    Delete,
}

/// Segments that were copied into a new file, whose bytes are durable.
#[derive(Debug, Clone)]
pub struct Move {
    /// The file they are in now; closed.
    pub file: StoreFile,
    /// What was moved; one that was freed or moved meanwhile stays as it is.
    pub segments: Vec<Moved>,
    /// Whether nobody but this daemon reads its files: then what objects leave behind is read by nobody else, because nobody
    /// is told the places of objects.
    pub private: bool,
}

/// One segment that was copied.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The segment.
    pub id: SegmentId,
    /// Where it was read.
    pub from: Location,
    /// Where it is now.
    pub to: Segment,
}

/// Segments of one group, committed side by side with the upload of their bytes.
#[derive(Debug, Clone)]
pub struct Store {
    /// The physical file that holds them; none when all are inline.
    pub file: Option<StoreFile>,
    /// Each accepted or refused by itself.
    pub items: Vec<Item>,
}

/// The physical file of a [`Store`].
#[derive(Debug, Clone)]
pub struct StoreFile {
    /// Its name. Made known by the first store that names it.
    pub id: PhysicalFileId,
    /// Whose segments it holds.
    pub lane: Lane,
    /// Its length in bytes once this store's bytes are written.
    pub len: u64,
    /// Whether it is closed then.
    pub closes: bool,
    /// The multipart upload that brings it, if it is one.
    pub upload: Option<String>,
}

/// Segments that belong together, and what they mean.
#[derive(Debug, Clone)]
pub struct Item {
    /// New segments.
    pub segments: Vec<NewSegment>,
    /// What they mean.
    pub bind: Bind,
}

/// A segment that is on its way to storage.
#[derive(Debug, Clone)]
pub struct NewSegment {
    /// Its identity.
    pub id: SegmentId,
    /// What it is.
    pub about: About,
    /// Where its bytes will be.
    pub location: Location,
    /// Its bytes, if inline.
    pub inline: Option<Bytes>,
    /// CRC-32C of its bytes, and of each block.
    pub crc: SegmentCrc,
}

/// Who wrote a segment, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The job.
    pub job: JobId,
    /// Its scope.
    pub scope: StateScope,
    /// Who wrote it.
    pub writer: Writer,
    /// For which checkpoint, if the door could tell.
    pub checkpoint: Option<CheckpointId>,
    /// What the worker calls it.
    pub name: Option<Label>,
}

impl SegmentRecord {
    /// Who wrote it, and for what.
    pub fn about(&self) -> About {
        About {
            job: self.job.clone(),
            scope: self.scope,
            writer: self.writer.clone(),
            checkpoint: self.checkpoint,
            name: self.name.clone(),
        }
    }
}

/// What new segments mean.
#[derive(Debug, Clone)]
pub enum Bind {
    /// State of a checkpoint; the worker keeps the handle.
    Checkpoint {
        /// The key under which a repeat is recognised.
        idempotency_key: Option<IdempotencyKey>,
    },
    /// An S3 object.
    Object(Box<PutObject>),
    /// A part of a multipart upload.
    Part {
        /// The upload.
        upload: String,
        /// The number of the part.
        number: u16,
        /// The part.
        part: PartRecord,
    },
}

impl Bind {
    /// Parts of a recorded upload that become an object's.
    fn parts(&self) -> usize {
        match self {
            Self::Object(put) => match &put.content {
                ObjectContent::Segments { segments, upload: Some(MadeBy::Recorded(_)), .. } => segments.len(),
                _ => 0,
            },
            Self::Checkpoint { .. } | Self::Part { .. } => 0,
        }
    }
}

/// An S3 object to be put.
#[derive(Debug, Clone)]
pub struct PutObject {
    /// The bucket; must exist.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// What must hold.
    pub condition: Condition,
    /// What it consists of.
    pub content: ObjectContent,
    /// When it was put.
    pub modified: Millis,
}

/// What an S3 object consists of.
#[derive(Debug, Clone)]
pub enum ObjectContent {
    /// These segments in this order: new ones of the same item, and parts of `upload`.
    Segments {
        /// In order.
        segments: Vec<SegmentId>,
        /// Their bytes in total.
        len: u64,
        /// The entity tag, without quotes.
        etag: String,
        /// Headers that the client set.
        headers: ObjectHeaders,
        /// The checksum, if one was sent or asked for.
        checksum: Option<ObjectChecksum>,
        /// Sizes of the parts, for a multipart upload.
        part_lens: Vec<u64>,
        /// The multipart upload that it comes from.
        upload: Option<MadeBy>,
    },
    /// The segments of another object, by reference.
    CopyOf {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
        /// The entity tag that it must have.
        if_match: Option<String>,
        /// Headers in place of its own.
        headers: Option<ObjectHeaders>,
    },
}

/// The multipart upload that makes an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeBy {
    /// One that the catalog knows, which ends with the put.
    Recorded(String),
    /// One that it never knew: the put brings all its bytes.
    Unrecorded(String),
}

impl MadeBy {
    /// The upload's id.
    pub fn id(&self) -> &str {
        match self {
            Self::Recorded(id) | Self::Unrecorded(id) => id,
        }
    }
}

/// What must hold of the object that stands under a key, for a put over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Anything.
    #[default]
    None,
    /// There is none.
    Absent,
    /// It has this entity tag.
    Match(String),
    /// There is none with this entity tag.
    NoneMatch(String),
}

/// Names one applied [`Store`] until its bytes are durable or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreToken(pub(super) u64);

/// What the catalog answers to an accepted command.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// To [`Command::Store`]: an answer for each item, in order. Confirm the token once the bytes are durable.
    Stored(StoreToken, Vec<Result<Stored, Refusal>>),
    /// To [`Command::DeleteObjects`]: an answer for each key, in order.
    Deleted(Vec<Result<(), Refusal>>),
    /// To [`Command::Reuse`]: the segments that may not be reused and have to be stored again.
    Reused(Vec<SegmentId>),
    /// To [`Command::Move`]: how many segments and bytes are in the new file.
    Moved(u64, u64),
}

/// What became of an accepted [`Item`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Handles of its segments.
    Handles(Vec<Handle>),
    /// A repeat: the handle of the segment that the first put stored.
    Repeat(Handle),
    /// The entity tag and time of the object.
    Object {
        /// The entity tag, without quotes.
        etag: String,
        /// When it was put.
        modified: Millis,
        /// Its checksum.
        checksum: Option<ObjectChecksum>,
    },
    /// The part is recorded.
    Part,
}

/// Why the catalog refused something. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such job.
    #[error("job {0} is not known: create it first")]
    UnknownJob(JobId),
    /// No such checkpoint.
    #[error("checkpoint {1} of job {0} is not known")]
    UnknownCheckpoint(JobId, CheckpointId),
    /// The checkpoint was given up.
    #[error("checkpoint {1} of job {0} is aborted and takes no segments")]
    CheckpointAborted(JobId, CheckpointId),
    /// The checkpoint was subsumed.
    #[error("checkpoint {1} of job {0} is subsumed and takes no segments")]
    CheckpointSubsumed(JobId, CheckpointId),
    /// The checkpoint is complete.
    #[error("checkpoint {1} of job {0} is complete")]
    CheckpointCompleted(JobId, CheckpointId),
    /// The job that claims a checkpoint has one of that number.
    #[error("job {0} has a checkpoint {1} of its own: claim for a job that has not got so far")]
    CheckpointExists(JobId, CheckpointId),
    /// The checkpoint has not completed.
    #[error("checkpoint {1} of job {0} is not complete")]
    CheckpointIncomplete(JobId, CheckpointId),
    /// A checkpoint is no savepoint, or the other way round.
    #[error("checkpoint {1} of job {0} is {2}")]
    CheckpointKind(JobId, CheckpointId, &'static str),
    /// Another job's newer checkpoint stands in the way of a claim.
    #[error(
        "job {0} has completed checkpoint {1} since, which shares state with this one: claim that one, or do not claim"
    )]
    NewerCheckpoint(JobId, CheckpointId),
    /// The job has ended.
    #[error("job {0} has ended: create it again to go on with it")]
    JobEnded(JobId),
    /// Another segment has this idempotency key.
    #[error("idempotency key {0} was used for other bytes")]
    KeyReused(IdempotencyKey),
    /// The first put with this key has not ended.
    #[error("a put with idempotency key {0} is still on its way: repeat it later")]
    KeyInFlight(IdempotencyKey),
    /// No such bucket.
    #[error("the bucket {0} does not exist")]
    NoSuchBucket(String),
    /// The bucket exists.
    #[error("the bucket {0} exists and is yours")]
    BucketExists(String),
    /// The bucket holds objects.
    #[error("the bucket {0} is not empty")]
    BucketNotEmpty(String),
    /// No such object.
    #[error("the key {0:?} does not exist")]
    NoSuchKey(String),
    /// The condition does not hold.
    #[error("a condition on the key {0:?} does not hold")]
    ConditionFailed(String),
    /// Whether the condition holds is not decided: a put of the same key is on its way.
    #[error("a put of the key {0:?} is on its way: repeat the request")]
    ConditionUndecided(String),
    /// No such upload.
    #[error("the multipart upload {0:?} does not exist")]
    NoSuchUpload(String),
    /// A part that an object should be made of was uploaded again meanwhile.
    #[error("a part of the multipart upload {0:?} is not there any more")]
    NoSuchPart(String),
}

impl Refusal {
    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownJob(_)
            | Self::UnknownCheckpoint(..)
            | Self::NoSuchBucket(_)
            | Self::NoSuchKey(_)
            | Self::NoSuchUpload(_)
            | Self::NoSuchPart(_) => ErrorKind::NotFound,
            Self::ConditionFailed(_) => ErrorKind::Precondition,
            Self::KeyInFlight(_) => ErrorKind::Unavailable,
            _ => ErrorKind::Conflict,
        }
    }
}
