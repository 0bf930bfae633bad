//! What exists: files, segments, jobs, checkpoints, buckets, objects, uploads. A plain state machine.
//!
//! [`CatalogState::apply`] takes a [`Command`] and changes everything it means at once, or refuses it and changes
//! nothing. Every change leaves [`Mutation`]s behind ([`CatalogState::take_mutations`]); written in that order, they make
//! the same state again. A checkpoint is recorded as over or claimed before its segments are freed or change hands, and what
//! is left of that is known from the records (module `work`); an object is recorded before the upload that it is made of ends: of
//! a command that is too large to be applied or written at once, a part does no harm. No async, no clock, no storage: the
//! owner ([`super::Catalog`]) brings those.
//!
//! # Invariants
//! - A segment that a worker was answered for is in `segments` with `visible` set, and its file is not forgotten.
//! - A file is forgotten only when it is closed and none of its segments lives.
//! - A segment becomes visible only through [`CatalogState::confirm`], which the owner calls once both the commit and the
//!   bytes are durable. What is not visible is not read, listed or copied.
//! - A put over an object keeps the version before it until it is confirmed. So does the upload of a part that exists.
//!
//! [`CatalogState::check`] (module `invariants`) recounts all of it.
//!
//! # Memory
//! What exists by the million is small: `segments` and `slot` keep what is its own of a segment or an object, `numbered`
//! what many share, `pages` holds them. [`CatalogState::memory_bytes`] tells about how much all of it takes; at the bound that was
//! set by [`CatalogState::bound_memory`] nothing is taken in that would make it more.

mod checkpoints;
mod division;
mod files;
mod invariants;
mod jobs;
mod looks;
mod memory;
mod numbered;
mod objects;
mod pages;
mod recovery;
mod segments;
mod shards;
mod slot;
mod store;
mod uploads;
mod views;
mod walks;
mod work;
#[cfg(test)]
pub(crate) mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use division::{DividedBuckets, DividedCounts, DividedRecord, Division, PlaceWishes};
pub use files::Changes;
pub use invariants::{Count, LargeFile, Often, SecondLook};
pub use looks::{CheckpointCount, CheckpointLook, GoesOn, LaneCount};
pub use recovery::UncertainFile;
pub use slot::ChecksumKind;
pub use views::{
    CheckpointSegment, CheckpointSpace, CheckpointView, FileView, ForgottenFile, JobView, LaneSpace, ListPage,
    ListQuery, Listed, ObjectView, SegmentView, SpaceUsage, StoredPart, UploadView,
};

use self::memory::Memory;
use self::numbered::Numbered;
use self::pages::Pages;
use self::segments::Segments;
use self::slot::Slot;
use self::walks::Work;
use super::command::{Command, Outcome, Refusal, StoreToken};
use super::mutation::Mutation;
use super::record::{BucketRecord, CheckpointRecord, FileRecord, JobRecord, OwnerRecord, PartRecord, UploadRecord};
use crate::model::{CheckpointId, Forgotten, JobId, JobRun, Millis, PhysicalFileId, SegmentId};

/// No checkpoint is before this one.
const FIRST: CheckpointId = CheckpointId(0);

type Files = Numbered<PhysicalFileId, FileEntry>;
type Jobs = Numbered<JobId, JobEntry>;
/// Segments by identity.
type Ids = Pages<SegmentId, ()>;

/// Everything the catalog knows. See the module's docs.
#[derive(Debug, Default)]
pub struct CatalogState {
    files: Files,
    /// Files to be deleted, by the reason and the time for which and at which they were forgotten.
    forgotten: BTreeMap<(Forgotten, Millis), BTreeSet<PhysicalFileId>>,
    segments: Segments,
    jobs: Jobs,
    buckets: BTreeMap<String, BucketEntry>,
    uploads: BTreeMap<String, UploadEntry>,
    /// Jobs that are in other shards.
    placed: BTreeMap<JobId, u32>,
    /// Buckets that are deleted, and maybe not in all shards.
    ending: BTreeSet<String>,
    owner: Option<OwnerRecord>,
    in_flight: BTreeMap<StoreToken, InFlight>,
    next_token: u64,
    /// Runs of jobs that have begun in this process.
    runs: u64,
    space: SpaceUsage,
    memory: Memory,
    changes: Changes,
    work: Work,
    /// See [`CatalogState::keep_failed_files_open`].
    failed_files_stay_open: bool,
    /// How often somebody could change it.
    revision: u64,
    mutations: Vec<Mutation>,
}

#[derive(Debug)]
struct FileEntry {
    record: FileRecord,
    live: Ids,
    live_bytes: u64,
    /// Advised against: its segments should be stored again instead of being reused. Not remembered across starts.
    avoid: bool,
}

#[derive(Debug, Default)]
struct JobEntry {
    segments: Ids,
    /// `None` for a job that is only known by the keys of its objects, which may be as many as those.
    life: Option<Box<JobLife>>,
}

/// What a job has that was created, or whose segments are held by checkpoints.
#[derive(Debug, Default)]
struct JobLife {
    record: Option<JobRecord>,
    /// The run that it is in.
    run: JobRun,
    /// What its coordinator remembers, if it has one.
    coordinator: Option<Arc<str>>,
    checkpoints: BTreeMap<CheckpointId, CheckpointRecord>,
    /// Segments held by checkpoints, by the last one that uses them.
    by_last_used: BTreeMap<CheckpointId, Ids>,
    /// Segments held by savepoints.
    by_savepoint: BTreeMap<CheckpointId, Ids>,
    /// Segments that have an idempotency key, by its hash: the key itself stands in the segment.
    by_idempotency_key: Pages<(u64, SegmentId), ()>,
}

#[derive(Debug)]
struct BucketEntry {
    record: BucketRecord,
    objects: Pages<Box<str>, Slot>,
}

#[derive(Debug)]
struct UploadEntry {
    record: UploadRecord,
    parts: BTreeMap<u16, Vec<PartVersion>>,
}

/// One version of a part; those on their way name the store that brings them.
#[derive(Debug, Clone)]
struct PartVersion {
    record: PartRecord,
    on_its_way: Option<StoreToken>,
}

/// What [`CatalogState::confirm`] or [`CatalogState::fail`] will settle.
#[derive(Debug)]
struct InFlight {
    file: Option<super::command::StoreFile>,
    segments: Vec<SegmentId>,
    objects: Vec<(String, String)>,
    parts: Vec<(String, u16)>,
}

impl CatalogState {
    /// Does what `command` says, at the time `at`.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub fn apply(&mut self, command: Command, at: Millis) -> Result<Outcome, Refusal> {
        let outcome = self.begin(command, at)?;
        self.finish_work(at);
        Ok(outcome)
    }

    /// The same, but most of what it frees or hands over is left to [`Self::work`]. Some commands wait for all earlier work
    /// ([`Self::waits_for_work`]): whoever cannot hold the state so long does that first.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn begin(&mut self, command: Command, at: Millis) -> Result<Outcome, Refusal> {
        self.has_room_for(&command)?;
        if self.waits_for_work(&command) {
            self.finish_work(at);
        }
        let before = self.work_counts();
        let outcome = self.carry_out(command, at)?;
        self.work_at_once(before, at);
        Ok(outcome)
    }

    /// Whether nothing may be left of earlier commands before this one: before a claim, and before a job goes on that had
    /// ended, whose remains would be taken for what it stores next.
    pub fn waits_for_work(&self, command: &Command) -> bool {
        let has_ended = |job| self.known_job(job).is_ok_and(|(_, record)| record.ended.is_some());
        !self.is_idle() && (command.is_claim() || command.job_that_goes_on().is_some_and(has_ended))
    }

    fn carry_out(&mut self, command: Command, at: Millis) -> Result<Outcome, Refusal> {
        if let Some(job) = command.job_that_goes_on() {
            self.is_here(job)?;
        }
        match command {
            Command::CreateJob(job) => self.create_job(&job, at),
            Command::BeginCheckpoint(job, id, kind) => self.begin_checkpoint(&job, id, kind, at)?,
            Command::CompleteCheckpoint(job, id) => self.complete_checkpoint(&job, id, at)?,
            Command::AbortCheckpoint(job, id) => self.abort_checkpoint(&job, id, at)?,
            Command::SubsumeCheckpoint(job, id) => self.subsume_checkpoint(&job, FIRST, id)?,
            Command::SubsumeSince(job, since, id) => self.subsume_checkpoint(&job, since, id)?,
            Command::DiscardSavepoint(job, id) => self.discard_savepoint(&job, id, at)?,
            Command::FreeOfSavepoint(job, id, segments) => self.free_of_savepoint(&job, id, &segments, at)?,
            Command::CompleteSavepoint(job, id, count) => self.complete_savepoint(&job, id, count, at)?,
            Command::BeginRun(job) => self.begin_run(&job)?,
            Command::InRun(job, run, command) => {
                self.is_asked_in_run(&job, run, &command)?;
                return self.carry_out(*command, at);
            }
            Command::Reuse(job, id, segments, run) => {
                self.is_of_run(&job, id, run)?;
                return self.reuse(&job, id, &segments, at).map(Outcome::Reused);
            }
            Command::Restore(restore) => self.restore(&restore, at)?,
            Command::GoOn(job) => self.go_on(&job, at),
            Command::PlaceJob(job, shard) => self.place_job(&job, shard, at)?,
            Command::EndJob(job, end, leavings) => self.end_job(&job, end, (leavings, FIRST), at)?,
            Command::EndJobSince(job, end, leavings, since) => self.end_job(&job, end, (leavings, since), at)?,
            Command::Coordinate(job, text) => self.coordinate(&job, text, at),
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
            Command::DeleteBucketEverywhere(bucket) => self.begin_end_of_bucket(&bucket, at)?,
            Command::BucketHasEnded(bucket) => self.bucket_has_ended(&bucket),
            Command::DeleteObjects(bucket, objects) => return self.delete_objects(&bucket, objects, at),
            Command::CreateUpload(id, upload, created) => self.create_upload(id, UploadRecord { upload, created })?,
            Command::AbortUpload(id) => self.end_upload(&id, at),
        }
        Ok(Outcome::Done)
    }

    /// Somebody may change it from here on, to whom it was not open before.
    pub fn opened(&mut self) {
        self.revision += 1;
    }

    /// The changes since the last call, in order.
    pub fn take_mutations(&mut self) -> Vec<Mutation> {
        std::mem::take(&mut self.mutations)
    }
}
