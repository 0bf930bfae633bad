//! The commands of the catalog, and its answers. Plain values: the same ones are applied in process and, with many daemons,
//! sent by a packer to the owner of a shard.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ErrorKind;
use crate::model::{
    About, CheckpointId, CheckpointKind, Claim, Handle, IdempotencyKey, JobEnd, JobId, JobRun, Lane, Leavings,
    Location, Millis, NewUpload, ObjectChecksum, ObjectHead, ObjectHeaders, PartHead, PhysicalFileId, Segment,
    SegmentCrc, SegmentId,
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
    /// The same from this checkpoint on, up to that one: completed ones before it stay, with what they use.
    SubsumeSince(JobId, CheckpointId, CheckpointId),
    /// A savepoint is not wanted any more: frees its segments.
    DiscardSavepoint(JobId, CheckpointId),
    /// Frees segments that were stored for a savepoint in progress, which does without them.
    FreeOfSavepoint(JobId, CheckpointId, Vec<SegmentId>),
    /// A savepoint is complete, if just so many segments are held for it.
    CompleteSavepoint(JobId, CheckpointId, u64),
    /// A checkpoint uses segments that exist. With a run: of the job in that run.
    Reuse(JobId, CheckpointId, Vec<SegmentId>, Option<JobRun>),
    /// Another run of a job begins: what is on its way for it since before is refused.
    BeginRun(JobId),
    /// Does this if the job is in this run: whoever asked meant no other.
    InRun(JobId, JobRun, Box<Command>),
    /// A job goes on from a checkpoint, of its own or of another job.
    Restore(RestorePoint),
    /// A job goes on from a checkpoint that stays another job's, of another shard: it is made known, and what it had begun is aborted.
    GoOn(JobId),
    /// A job is in another shard from here on: what it had begun here is given up.
    PlaceJob(JobId, u32),
    /// A job has ended: what it leaves is kept or deleted. It has no coordinator any more.
    EndJob(JobId, JobEnd, Leavings),
    /// The same, and completed checkpoints before this one stay in any case.
    EndJobSince(JobId, JobEnd, Leavings, CheckpointId),
    /// Makes a job known, as [`Self::CreateJob`] does, and keeps what its coordinator remembers.
    Coordinate(JobId, Arc<str>),
    /// Segments that are on their way to storage, and what they mean.
    Store(Store),
    /// An open file takes no more. Without a length it was given up.
    CloseFile(PhysicalFileId, u64),
    /// Living segments were copied into another file.
    Move(Move),
    /// Bytes of closed files that are holes by now.
    FilesPunched(Vec<(PhysicalFileId, u64)>),
    /// Files that were deleted from storage.
    FilesDeleted(Vec<PhysicalFileId>),
    /// Creates a bucket.
    CreateBucket(String),
    /// Deletes an empty bucket.
    DeleteBucket(String),
    /// The same, and it is remembered that the other shards are to delete it.
    DeleteBucketEverywhere(String),
    /// The other shards have deleted it.
    BucketHasEnded(String),
    /// Deletes objects; those that do not exist count as deleted.
    DeleteObjects(String, Vec<ObjectToDelete>),
    /// Records a multipart upload that was created at this time; nothing happens if it is recorded.
    CreateUpload(String, Arc<NewUpload>, Millis),
    /// Gives up a multipart upload and frees its parts; nothing happens if it does not exist.
    AbortUpload(String),
}

impl Command {
    /// Whether it takes a checkpoint over.
    pub fn is_claim(&self) -> bool {
        match self {
            Self::InRun(_, _, command) => command.is_claim(),
            _ => matches!(self, Self::Restore(RestorePoint { claim: Claim::Claim, .. })),
        }
    }

    /// The job that it lets go on, if that had ended.
    pub fn job_that_goes_on(&self) -> Option<&JobId> {
        match self {
            Self::CreateJob(job)
            | Self::GoOn(job)
            | Self::Coordinate(job, _)
            | Self::Restore(RestorePoint { job, .. }) => Some(job),
            Self::InRun(_, _, command) => command.job_that_goes_on(),
            _ => None,
        }
    }

    /// Whether it may free or hand over many segments.
    pub fn leaves_work(&self) -> bool {
        match self {
            Self::AbortCheckpoint(..)
            | Self::SubsumeCheckpoint(..)
            | Self::SubsumeSince(..)
            | Self::DiscardSavepoint(..)
            | Self::Restore(_)
            | Self::GoOn(_)
            | Self::PlaceJob(..)
            | Self::EndJob(..)
            | Self::EndJobSince(..) => true,
            Self::InRun(_, _, command) => command.leaves_work(),
            _ => false,
        }
    }

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
            Self::Reuse(_, _, segments, _) | Self::FreeOfSavepoint(_, _, segments) => RECORD * (1 + segments.len()),
            Self::FilesPunched(files) => RECORD * (1 + files.len()),
            Self::Move(moved) => RECORD * (1 + moved.segments.len()),
            Self::Coordinate(_, text) => RECORD + text.len(),
            Self::InRun(_, _, command) => command.weight(),
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
    /// When it must have been put: with its entity tag, that it is still the same one.
    pub if_put_at: Option<Millis>,
}

/// What a delete of an object has to have reached before it is answered, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeleteReach {
    /// Memory: storage follows with the next commit of anything.
    Memory,
    /// The ledger on the local disk, where there is one; storage follows.
    Ledger,
    /// Storage.
    Storage,
}

/// The checkpoint that a job resumes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// The job that goes on; created if it is not known.
    pub job: JobId,
    /// The job whose checkpoint it is; the same one after a fail-over.
    pub from: JobId,
    /// The checkpoint or savepoint; complete.
    pub checkpoint: CheckpointId,
    /// The owner of its files from now on.
    pub claim: Claim,
}

/// Segments that were copied into a new file, whose bytes are durable.
#[derive(Debug, Clone)]
pub struct Move {
    /// The file they are in now; closed.
    pub file: StoreFile,
    /// The segments that were moved; one that was freed or moved meanwhile stays as it is.
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
    /// The place where it was read.
    pub from: Location,
    /// The place where it is now.
    pub to: Segment,
}

/// Segments of one group, committed side by side with the upload of their bytes.
#[derive(Debug, Clone)]
pub struct Store {
    /// The physical file that holds them; `None` when all are inline.
    pub file: Option<StoreFile>,
    /// Each accepted or refused by itself.
    pub items: Vec<StoreItem>,
}

/// The physical file of a [`Store`].
#[derive(Debug, Clone)]
pub struct StoreFile {
    /// Its name. Made known by the first store that names it.
    pub id: PhysicalFileId,
    /// The lane whose segments it holds.
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
pub struct StoreItem {
    /// New segments.
    pub segments: Vec<NewSegment>,
    /// The meaning of the segments.
    pub bind: Bind,
}

/// A segment that is on its way to storage.
#[derive(Debug, Clone)]
pub struct NewSegment {
    /// Its identity.
    pub id: SegmentId,
    /// The segment's description.
    pub about: About,
    /// The place where its bytes will be.
    pub location: Location,
    /// Its bytes, if inline.
    pub inline: Option<Bytes>,
    /// CRC-32C of its bytes, and of each block.
    pub crc: SegmentCrc,
}

/// The meaning of new segments.
#[derive(Debug, Clone)]
pub enum Bind {
    /// State of a checkpoint; the worker keeps the handle.
    Checkpoint {
        /// The key under which a repeat is recognised.
        idempotency_key: Option<IdempotencyKey>,
        /// The run of the job in which it was begun, if that matters: it is of no other.
        run: Option<JobRun>,
    },
    /// An S3 object.
    Object(Box<PutObject>),
    /// A part of a multipart upload: of one new segment, or of none if it is empty.
    Part {
        /// The upload.
        upload: String,
        /// The number of the part.
        number: u16,
        /// The answer that a client will get about it.
        part: PartHead,
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
    /// The condition that must hold.
    pub condition: Condition,
    /// The bytes that it consists of.
    pub content: ObjectContent,
}

/// The bytes that an S3 object consists of.
#[derive(Debug, Clone)]
pub enum ObjectContent {
    /// These segments in this order: new ones of the same item, and parts of `upload`.
    Segments {
        /// In order.
        segments: Vec<SegmentId>,
        /// The answer that a reader will get about it.
        head: ObjectHead,
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
        /// Tags in place of its own.
        tags: Option<Vec<(String, String)>>,
        /// When the copy was made.
        modified: Millis,
        /// The storage class of the copy; that of the source does not go with it.
        storage_class: Option<String>,
        /// The checksum in place of its own.
        checksum: Option<ObjectChecksum>,
    },
    /// What stands under the key already, with these tags in place of its own.
    Tagged(Vec<(String, String)>),
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

/// The condition that the object under a key must meet before a put replaces it.
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

/// The catalog's answer to an accepted command.
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

/// The result of an accepted [`StoreItem`].
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
    /// More or fewer segments are held for a savepoint.
    #[error("{2} segments are held for savepoint {1} of job {0}")]
    SavepointHolds(JobId, CheckpointId, u64),
    /// What was begun in one run of a job is of no other.
    #[error("checkpoint {1} of job {0} is over: the job, or its coordinator, has begun anew since the request came")]
    OtherRun(JobId, CheckpointId),
    /// The same of what was asked of the job itself.
    #[error("job {0} has ended, or begun anew, since the request came: look at the job, then repeat the request")]
    JobBeganAnew(JobId),
    /// Another job's newer checkpoint stands in the way of a claim.
    #[error(
        "job {0} has completed checkpoint {1} since, which shares state with this one: claim that one, or do not claim"
    )]
    NewerCheckpoint(JobId, CheckpointId),
    /// The job has ended.
    #[error("job {0} has ended: create it again to go on with it")]
    JobEnded(JobId),
    /// The job is in another shard by now.
    #[error("job {0} is in another shard of the store by now: repeat the request")]
    JobElsewhere(JobId),
    /// A job that has state may not go to another shard.
    #[error(
        "job {0} has a completed checkpoint of its own, and the one to claim is in another shard of the store: claim for a job that \
         has none yet, or do not claim"
    )]
    JobStays(JobId),
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
    /// There is no memory for more.
    #[error(
        "the catalog takes {used_bytes} bytes of memory and may take {limit_bytes} (limits.catalog-memory): delete \
         something or raise the limit; reads and deletes go on"
    )]
    CatalogFull {
        /// Bytes that it takes, about.
        used_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
}

impl Refusal {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownJob(_)
            | Self::UnknownCheckpoint(..)
            | Self::NoSuchBucket(_)
            | Self::NoSuchKey(_)
            | Self::NoSuchUpload(_)
            | Self::NoSuchPart(_) => ErrorKind::NotFound,
            Self::ConditionFailed(_) => ErrorKind::Precondition,
            Self::KeyInFlight(_) | Self::JobElsewhere(_) => ErrorKind::Unavailable,
            Self::CatalogFull { .. } => ErrorKind::Overloaded,
            _ => ErrorKind::Conflict,
        }
    }
}
