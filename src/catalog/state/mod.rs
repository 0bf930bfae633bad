//! What exists: files, segments, jobs, checkpoints, buckets, objects, uploads. A plain state machine.
//!
//! [`State::apply`] takes a [`Command`] and changes everything it means at once, or refuses it and changes
//! nothing. Every change leaves [`Mutation`]s behind ([`State::take_mutations`]); written in that order, they make
//! the same state again. A checkpoint is recorded as over before its segments are freed, and as claimed after they have
//! changed hands; an object is recorded before the upload that it is made of ends: of a command that is too large to be written at once, a part does no harm. No async, no clock, no
//! storage: the owner ([`super::Catalog`]) brings those.
//!
//! # Invariants
//! - A segment that a worker was answered for is in `segments` with `visible` set, and its file is not forgotten.
//! - A file is forgotten only when it is closed and none of its segments lives.
//! - A segment becomes visible only through [`State::confirm`], which the owner calls once both the commit and the
//!   bytes are durable. What is not visible is not read, listed or copied.
//! - A put over an object keeps the version before it until it is confirmed. So does the upload of a part that exists.
//!
//! [`State::check`] (module `invariants`) recounts all of it.

mod checkpoints;
mod files;
mod invariants;
mod jobs;
mod objects;
mod recovery;
mod store;
mod uploads;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

pub use files::Changes;
pub use recovery::UncertainFile;
pub use views::{
    CheckpointSegment, CheckpointSpace, FileView, ForgottenFile, LaneSpace, ListPage, ListQuery, Listed, ObjectView,
    SegmentView, SpaceUsage,
};

use super::command::{Command, Outcome, Refusal, StoreToken};
use super::record::{
    BucketRecord, CheckpointRecord, FileRecord, Forgotten, JobRecord, Mutation, ObjectRecord, OwnerRecord, PartRecord,
    SegmentRecord, UploadRecord,
};
use crate::model::{CheckpointId, IdempotencyKey, JobId, Millis, PhysicalFileId, SegmentId};

/// Everything the catalog knows. See the module's docs.
#[derive(Debug, Default)]
pub struct State {
    files: BTreeMap<PhysicalFileId, FileEntry>,
    /// Files to be deleted, by the reason and the time for which and at which they were forgotten.
    forgotten: BTreeMap<(Forgotten, Millis), BTreeSet<PhysicalFileId>>,
    segments: HashMap<SegmentId, SegmentEntry>,
    jobs: BTreeMap<JobId, JobEntry>,
    buckets: BTreeMap<String, BucketEntry>,
    uploads: BTreeMap<String, UploadEntry>,
    owner: Option<OwnerRecord>,
    in_flight: BTreeMap<StoreToken, InFlight>,
    next_token: u64,
    space: SpaceUsage,
    changes: Changes,
    mutations: Vec<Mutation>,
}

#[derive(Debug)]
struct FileEntry {
    record: FileRecord,
    live: BTreeSet<SegmentId>,
    live_bytes: u64,
    /// Advised against: its segments should be stored again instead of being reused. Not remembered across starts.
    avoid: bool,
}

#[derive(Debug)]
struct SegmentEntry {
    record: SegmentRecord,
    visible: bool,
}

#[derive(Debug, Default)]
struct JobEntry {
    /// None for a job that is only known by the keys of its objects.
    record: Option<JobRecord>,
    checkpoints: BTreeMap<CheckpointId, CheckpointRecord>,
    /// Segments held by checkpoints, by the last one that uses them.
    by_last_used: BTreeMap<CheckpointId, BTreeSet<SegmentId>>,
    /// Segments held by savepoints.
    by_savepoint: BTreeMap<CheckpointId, BTreeSet<SegmentId>>,
    segments: BTreeSet<SegmentId>,
    idempotency_keys: HashMap<IdempotencyKey, SegmentId>,
}

#[derive(Debug)]
struct BucketEntry {
    record: BucketRecord,
    objects: BTreeMap<String, Vec<Version>>,
}

#[derive(Debug)]
struct UploadEntry {
    record: Arc<UploadRecord>,
    parts: BTreeMap<u16, Vec<PartVersion>>,
}

/// One version of an object; those on their way name the store that brings them.
#[derive(Debug, Clone)]
struct Version {
    /// Shared with those who read it.
    record: Arc<ObjectRecord>,
    /// Where its segments end, once a reader has asked.
    ends: OnceLock<Arc<[u64]>>,
    on_its_way: Option<StoreToken>,
}

impl Version {
    fn new(record: Arc<ObjectRecord>, on_its_way: Option<StoreToken>) -> Self {
        Self { record, ends: OnceLock::new(), on_its_way }
    }
}

/// One version of a part, likewise.
#[derive(Debug, Clone)]
struct PartVersion {
    record: PartRecord,
    on_its_way: Option<StoreToken>,
}

/// What [`State::confirm`] or [`State::fail`] will settle.
#[derive(Debug)]
struct InFlight {
    file: Option<super::command::StoreFile>,
    segments: Vec<SegmentId>,
    objects: Vec<(String, String)>,
    parts: Vec<(String, u16)>,
}

impl State {
    /// Does what `command` says, at the time `at`.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub fn apply(&mut self, command: Command, at: Millis) -> Result<Outcome, Refusal> {
        match command {
            Command::CreateJob(job) => self.create_job(job, at),
            Command::BeginCheckpoint(job, id, kind) => self.begin_checkpoint(&job, id, kind, at)?,
            Command::CompleteCheckpoint(job, id) => self.complete_checkpoint(&job, id, at)?,
            Command::AbortCheckpoint(job, id) => self.abort_checkpoint(&job, id, at)?,
            Command::SubsumeCheckpoint(job, id) => self.subsume_checkpoint(&job, id, at)?,
            Command::DiscardSavepoint(job, id) => self.discard_savepoint(&job, id, at)?,
            Command::Reuse(job, id, segments) => {
                return self.reuse(&job, id, &segments, at).map(Outcome::Reused);
            }
            Command::Restore(restore) => self.restore(&restore, at)?,
            Command::EndJob(job, end, leavings) => self.end_job(&job, end, leavings, at)?,
            Command::Store(store) => {
                let (token, answers) = self.store(store, at);
                return Ok(Outcome::Stored(token, answers));
            }
            Command::CloseFile(file, len) => {
                let why = if len == 0 { Forgotten::GivenUp } else { Forgotten::Died };
                self.close_file(&file, len, why, at);
            }
            Command::Move(moved) => {
                let (segments, bytes) = self.move_segments(moved, at);
                return Ok(Outcome::Moved(segments, bytes));
            }
            Command::FilesPunched(files) => files.iter().for_each(|(file, holes)| self.file_punched(file, *holes)),
            Command::FilesDeleted(files) => files.iter().for_each(|file| self.file_deleted(file)),
            Command::CreateBucket(bucket) => self.create_bucket(bucket, at)?,
            Command::DeleteBucket(bucket) => self.delete_bucket(&bucket, at)?,
            Command::DeleteObjects(bucket, objects) => return self.delete_objects(&bucket, objects, at),
            Command::CreateUpload(id, upload) => self.create_upload(id, upload)?,
            Command::AbortUpload(id) => self.end_upload(&id, at),
        }
        Ok(Outcome::Done)
    }

    /// Whether there are changes that no batch has taken yet.
    pub fn has_mutations(&self) -> bool {
        !self.mutations.is_empty()
    }

    /// The changes since the last call, in order.
    pub fn take_mutations(&mut self) -> Vec<Mutation> {
        std::mem::take(&mut self.mutations)
    }
}
