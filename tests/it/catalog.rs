//! The catalog's state machine against a model too simple to be wrong.
//!
//! The state counts references; the model has none: what lives is what checkpoints, object versions and uploads name,
//! collected anew at every step. After every step both agree, nothing that [`CatalogState::check`] looks at is off, and the
//! records that were written make the same state again, with and without the bytes that were on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use esker::catalog::command::{
    Bind, Command, Condition, MadeBy, Move, Moved, NewSegment, ObjectContent, ObjectToDelete, Outcome, PutObject,
    Refusal, RestorePoint, Store, StoreFile, StoreItem, StoreToken, Stored,
};
use esker::catalog::mutation::Mutation;
use esker::catalog::state::{CatalogState, ListQuery, Listed};
use esker::model::{
    About, CheckpointId, CheckpointKind, Claim, FileState, IdempotencyKey, JobEnd, JobId, Lane, LaneOf, Leavings,
    Location, Millis, NewUpload, ObjectHead, ObjectHeaders, PartHead, PhysicalFileId, Segment, SegmentCrc, SegmentId,
    StateScope, Writer,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// What one store brings.
#[derive(Debug, Clone)]
enum Brings {
    /// A segment of a checkpoint, perhaps with an idempotency key and bytes of this kind.
    Segment { job: u8, checkpoint: u64, key: Option<u8>, content: u8 },
    /// An object, perhaps on condition.
    Object { key: u8, condition: Wanted },
    /// A copy of an object.
    Copy { from: u8, to: u8 },
    /// Other tags for an object.
    Tag { key: u8 },
    /// A part of the upload.
    Part { upload: u8, number: u16 },
    /// An object made of the arrived parts of the upload, with a last new part.
    Complete { upload: u8, key: u8 },
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    Anything,
    Absent,
    /// The entity tag that a reader would see now.
    Current,
    /// An entity tag that no object ever has.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Inline,
    NewFile,
    WholeFile,
    OpenFile,
}

#[derive(Debug, Clone)]
enum Op {
    CreateJob(u8),
    Begin(u8, u64),
    Complete(u8, u64),
    Abort(u8, u64),
    Subsume(u8, u64),
    Store(Vec<Brings>, Place),
    Confirm(prop::sample::Index),
    Fail(prop::sample::Index),
    CloseFile(prop::sample::Index),
    /// A checkpoint uses some of all segments there ever were.
    Reuse(u8, u64, Vec<prop::sample::Index>),
    Savepoint(u8, u64),
    Discard(u8, u64),
    Restore {
        job: u8,
        from: u8,
        checkpoint: u64,
        claim: bool,
    },
    End {
        job: u8,
        keep: bool,
    },
    /// What can be seen of a closed file is copied, with a segment that is elsewhere by now.
    Move(prop::sample::Index),
    Delete(u8, Wanted),
    CreateUpload(u8),
    AbortUpload(u8),
    FilesDeleted,
    DeleteBucket,
    /// A crash; the bytes of every second store on its way arrived, or all, or none.
    Reload(u8),
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![4 => Just(Wanted::Anything), 1 => Just(Wanted::Absent), 1 => Just(Wanted::Current), 1 => Just(Wanted::Wrong)]
}

fn any_brings() -> impl Strategy<Value = Brings> {
    prop_oneof![
        6 => (0..2_u8, 0..5_u64, proptest::option::weighted(0.3, 0..3_u8), 0..2_u8)
            .prop_map(|(job, checkpoint, key, content)| Brings::Segment { job, checkpoint, key, content }),
        4 => (0..3_u8, any_wanted()).prop_map(|(key, condition)| Brings::Object { key, condition }),
        1 => (0..3_u8, 0..3_u8).prop_map(|(from, to)| Brings::Copy { from, to }),
        1 => (0..3_u8).prop_map(|key| Brings::Tag { key }),
        2 => (0..2_u8, 1..4_u16).prop_map(|(upload, number)| Brings::Part { upload, number }),
        1 => (0..2_u8, 0..3_u8).prop_map(|(upload, key)| Brings::Complete { upload, key }),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let place = prop_oneof![Just(Place::Inline), Just(Place::NewFile), Just(Place::WholeFile), Just(Place::OpenFile)];
    prop_oneof![
        1 => (0..2_u8).prop_map(Op::CreateJob),
        1 => (0..2_u8, 0..5_u64).prop_map(|(job, n)| Op::Begin(job, n)),
        1 => (0..2_u8, 0..5_u64).prop_map(|(job, n)| Op::Complete(job, n)),
        1 => (0..2_u8, 0..5_u64).prop_map(|(job, n)| Op::Abort(job, n)),
        1 => (0..2_u8, 0..3_u64).prop_map(|(job, n)| Op::Subsume(job, n)),
        2 => (0..2_u8, 0..5_u64, vec(any::<prop::sample::Index>(), 1..4)).prop_map(|(job, n, which)| Op::Reuse(job, n, which)),
        1 => (0..2_u8, 0..5_u64).prop_map(|(job, n)| Op::Savepoint(job, n)),
        1 => (0..2_u8, 0..5_u64).prop_map(|(job, n)| Op::Discard(job, n)),
        2 => (0..2_u8, 0..2_u8, 0..5_u64, any::<bool>())
            .prop_map(|(job, from, checkpoint, claim)| Op::Restore { job, from, checkpoint, claim }),
        1 => (0..2_u8, any::<bool>()).prop_map(|(job, keep)| Op::End { job, keep }),
        3 => any::<prop::sample::Index>().prop_map(Op::Move),
        12 => (vec(any_brings(), 1..4), place).prop_map(|(brings, place)| Op::Store(brings, place)),
        10 => any::<prop::sample::Index>().prop_map(Op::Confirm),
        2 => any::<prop::sample::Index>().prop_map(Op::Fail),
        2 => any::<prop::sample::Index>().prop_map(Op::CloseFile),
        2 => (0..3_u8, any_wanted()).prop_map(|(key, wanted)| Op::Delete(key, wanted)),
        1 => (0..2_u8).prop_map(Op::CreateUpload),
        1 => (0..2_u8).prop_map(Op::AbortUpload),
        1 => Just(Op::FilesDeleted),
        1 => Just(Op::DeleteBucket),
        1 => (0..3_u8).prop_map(Op::Reload),
    ]
}

const BUCKET: &str = "bucket";

fn job(n: u8) -> JobId {
    format!("bucket/jobs/{n}").parse().unwrap()
}

fn lane() -> Lane {
    Lane { job: Some(job(0)), scope: StateScope::Shared, of: LaneOf::All }
}

fn key(n: u8) -> String {
    format!("jobs/{n}/key")
}

/// What should exist, as plain lists.
#[derive(Debug, Default)]
struct Model {
    jobs: BTreeMap<JobId, ModelJob>,
    bucket: bool,
    /// Segments that checkpoints hold.
    held: BTreeMap<SegmentId, Held>,
    /// Newest first.
    objects: BTreeMap<String, Vec<ModelVersion>>,
    /// Parts by number, each with its versions, newest first.
    uploads: BTreeMap<String, BTreeMap<u16, Vec<ModelPart>>>,
    /// How many uploads each number has had.
    uploads_made: [u32; 2],
    /// Length of every segment there ever was.
    lens: BTreeMap<SegmentId, u64>,
    places: BTreeMap<SegmentId, Option<PhysicalFileId>>,
    keys: BTreeMap<(JobId, IdempotencyKey), (SegmentId, u32)>,
    in_flight: Vec<ModelStore>,
    /// Files that still take segments, with their length.
    open: BTreeMap<PhysicalFileId, u64>,
    closed: BTreeSet<PhysicalFileId>,
}

#[derive(Debug, Clone, PartialEq)]
struct Held {
    job: JobId,
    written_for: u64,
    /// The last checkpoint that uses it, or its savepoint.
    last: u64,
    savepoint: bool,
}

impl Held {
    fn is_part_of(&self, job: &JobId, n: u64, savepoint: bool) -> bool {
        let between = if self.savepoint { self.last == n } else { self.written_for <= n && n <= self.last };
        self.job == *job && self.savepoint == savepoint && between
    }
}

#[derive(Debug, Default)]
struct ModelJob {
    subsumed: Option<u64>,
    ended: bool,
    /// Their states, and whether each is a savepoint.
    checkpoints: BTreeMap<u64, (&'static str, bool)>,
    /// Those that were claimed, and from whom.
    claimed: BTreeMap<u64, JobId>,
}

impl ModelJob {
    fn keep(&mut self, wanted: impl Fn(u64, &str, bool) -> bool) {
        self.checkpoints.retain(|n, (state, savepoint)| wanted(*n, state, *savepoint));
        self.claimed.retain(|n, _| self.checkpoints.contains_key(n));
    }
}

#[derive(Debug, Clone)]
struct ModelVersion {
    etag: String,
    segments: Vec<SegmentId>,
    on_its_way: Option<u64>,
}

#[derive(Debug)]
struct ModelPart {
    segment: SegmentId,
    on_its_way: Option<u64>,
}

#[derive(Debug)]
struct ModelStore {
    number: u64,
    token: StoreToken,
    file: Option<StoreFile>,
    segments: Vec<SegmentId>,
}

impl Model {
    fn takes(&self, id: &JobId, checkpoint: u64) -> bool {
        self.jobs.get(id).is_some_and(|job| {
            let late = job.subsumed.is_some_and(|subsumed| checkpoint <= subsumed);
            let open = match job.checkpoints.get(&checkpoint) {
                Some(("pending", true)) => true,
                None | Some(("pending", false)) => !late,
                Some(_) => false,
            };
            open && !job.ended
        })
    }

    fn is_savepoint(&self, id: &JobId, checkpoint: u64) -> bool {
        self.jobs.get(id).and_then(|job| job.checkpoints.get(&checkpoint)).is_some_and(|(_, savepoint)| *savepoint)
    }

    fn abort(&mut self, id: &JobId, n: u64) {
        self.held.retain(|_, held| !(held.job == *id && held.last == n && (held.savepoint || held.written_for == n)));
        let savepoint = self.is_savepoint(id, n);
        self.jobs.get_mut(id).unwrap().checkpoints.insert(n, ("aborted", savepoint));
    }

    fn abort_pending(&mut self, id: &JobId) {
        let known = self.jobs.get(id).map(|job| job.checkpoints.clone()).unwrap_or_default();
        known.iter().filter(|(_, (state, _))| *state == "pending").for_each(|(n, _)| self.abort(id, *n));
    }

    fn subsume(&mut self, id: &JobId, through: u64) {
        self.held.retain(|_, held| held.job != *id || held.savepoint || held.last > through);
        let job = self.jobs.get_mut(id).unwrap();
        job.subsumed = job.subsumed.max(Some(through));
        job.keep(|n, state, savepoint| n > through || savepoint && state != "aborted");
        self.forget_if_over(id);
    }

    fn free(&mut self, id: &JobId) {
        self.held.retain(|_, held| held.job != *id || held.savepoint);
        self.jobs.get_mut(id).unwrap().keep(|_, state, savepoint| savepoint || state == "aborted");
    }

    fn forget_if_over(&mut self, id: &JobId) {
        let holds = self.held.values().any(|held| held.job == *id);
        if self.jobs.get(id).is_some_and(|job| job.ended && job.checkpoints.is_empty() && !holds) {
            self.jobs.remove(id);
        }
    }

    /// Everything that somebody names.
    fn live(&self) -> BTreeSet<SegmentId> {
        let objects = self.objects.values().flatten().flat_map(|version| version.segments.iter());
        let parts = self.uploads.values().flat_map(BTreeMap::values).flatten().map(|part| &part.segment);
        self.held.keys().chain(objects).chain(parts).copied().collect()
    }

    fn live_bytes(&self) -> u64 {
        self.live().iter().map(|id| self.lens[id]).sum()
    }

    fn is_arriving(&self, id: SegmentId) -> bool {
        self.in_flight.iter().any(|store| store.segments.contains(&id))
    }

    fn visible(&self) -> BTreeSet<SegmentId> {
        self.live().into_iter().filter(|id| !self.is_arriving(*id)).collect()
    }

    fn current(&self, key: &str) -> Option<&ModelVersion> {
        self.objects.get(key)?.iter().find(|version| version.on_its_way.is_none())
    }

    /// The entity tags of what a reader sees, by key.
    fn listing(&self) -> BTreeMap<String, String> {
        let current = |key: &String| Some((key.clone(), self.current(key)?.etag.clone()));
        self.objects.keys().filter_map(current).collect()
    }

    fn confirm(&mut self, store: ModelStore) {
        for versions in self.objects.values_mut() {
            if let Some(at) = versions.iter().position(|version| version.on_its_way == Some(store.number)) {
                versions[at].on_its_way = None;
                versions.truncate(at + 1);
            }
        }
        for versions in self.uploads.values_mut().flat_map(BTreeMap::values_mut) {
            if let Some(at) = versions.iter().position(|part| part.on_its_way == Some(store.number)) {
                versions[at].on_its_way = None;
                versions.truncate(at + 1);
            }
        }
        if let Some(file) = store.file
            && file.closes
        {
            self.close(&file.id);
        }
    }

    fn fail(&mut self, store: ModelStore) {
        self.held.retain(|id, _| !store.segments.contains(id));
        self.drop_versions(|version| version.on_its_way == Some(store.number));
        for parts in self.uploads.values_mut() {
            parts.values_mut().for_each(|versions| versions.retain(|part| part.on_its_way != Some(store.number)));
            parts.retain(|_, versions| !versions.is_empty());
        }
        if let Some(file) = store.file {
            self.close(&file.id);
        }
    }

    fn drop_versions(&mut self, doomed: impl Fn(&ModelVersion) -> bool) {
        self.objects.values_mut().for_each(|versions| versions.retain(|version| !doomed(version)));
        self.objects.retain(|_, versions| !versions.is_empty());
    }

    fn close(&mut self, file: &PhysicalFileId) {
        if self.open.remove(file).is_some() {
            self.closed.insert(file.clone());
        }
    }

    fn files_with_life(&self) -> BTreeSet<PhysicalFileId> {
        self.live().iter().filter_map(|id| self.places[id].clone()).collect()
    }
}

/// The state, what was written of it, and the model.
struct World {
    state: CatalogState,
    model: Model,
    /// What the journal holds.
    written: BTreeMap<Bytes, Bytes>,
    next: u128,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { state: CatalogState::default(), model: Model::default(), written: BTreeMap::new(), next: 1 };
        world.apply(Command::CreateBucket(BUCKET.to_owned())).unwrap();
        world.model.bucket = true;
        world
    }

    fn now(&self) -> Millis {
        Millis(self.next as u64)
    }

    /// What the owner of the catalog does: the command and everything before it is one batch.
    fn apply(&mut self, command: Command) -> Result<Outcome, Refusal> {
        let outcome = self.state.apply(command, self.now());
        self.write();
        outcome
    }

    fn write(&mut self) {
        for mutation in self.state.take_mutations() {
            match mutation {
                Mutation::Put { key, value } => drop(self.written.insert(key, value)),
                Mutation::Delete { key } => drop(self.written.remove(&key)),
            }
        }
    }

    fn new_number(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::CreateJob(n) => {
                self.apply(Command::CreateJob(job(*n))).unwrap();
                self.model.jobs.entry(job(*n)).or_default().ended = false;
            }
            Op::Begin(n, checkpoint) => self.begin(*n, *checkpoint, CheckpointKind::Checkpoint),
            Op::Savepoint(n, checkpoint) => self.begin(*n, *checkpoint, CheckpointKind::Savepoint),
            Op::Reuse(n, checkpoint, which) => self.reuse(*n, *checkpoint, which),
            Op::Discard(n, checkpoint) => self.discard(*n, *checkpoint),
            Op::Restore { job: n, from, checkpoint, claim } => self.restore(*n, *from, *checkpoint, *claim),
            Op::End { job: n, keep } => self.end(*n, *keep),
            Op::Move(which) => self.move_segments(which),
            Op::Complete(n, checkpoint) => self.complete(*n, *checkpoint),
            Op::Abort(n, checkpoint) => self.abort(*n, *checkpoint),
            Op::Subsume(n, through) => self.subsume(*n, *through),
            Op::Store(brings, place) => self.store(brings, *place),
            Op::Confirm(which) => {
                if let Some(store) = self.take_in_flight(which) {
                    self.state.confirm(store.token, self.now());
                    self.model.confirm(store);
                }
            }
            Op::Fail(which) => {
                if let Some(store) = self.take_in_flight(which) {
                    self.state.fail(store.token, self.now());
                    self.state.fail(store.token, self.now());
                    self.model.fail(store);
                    // The next batch takes it along. A crash before that is a crash with the store on its way.
                    self.write();
                }
            }
            Op::CloseFile(which) => self.close_file(which),
            Op::Delete(n, wanted) => self.delete(&key(*n), *wanted),
            Op::CreateUpload(n) => self.create_upload(*n),
            Op::AbortUpload(n) => {
                let id = self.upload(*n);
                self.apply(Command::AbortUpload(id.clone())).unwrap();
                self.model.uploads.remove(&id);
            }
            Op::FilesDeleted => {
                let due = self.state.forgotten_files(|_, since| since <= self.now(), 100);
                let due: Vec<PhysicalFileId> = due.into_iter().map(|file| file.id).collect();
                self.apply(Command::FilesDeleted(due.clone())).unwrap();
                due.iter().for_each(|file| assert!(self.model.closed.remove(file), "{file} is not closed"));
            }
            Op::DeleteBucket => self.delete_bucket(),
            Op::Reload(arrived) => self.reload(*arrived),
        }
    }

    fn take_in_flight(&mut self, which: &prop::sample::Index) -> Option<ModelStore> {
        let count = self.model.in_flight.len();
        (count > 0).then(|| self.model.in_flight.remove(which.index(count)))
    }

    fn complete(&mut self, n: u8, checkpoint: u64) {
        let state = self.model.jobs.get(&job(n)).and_then(|job| job.checkpoints.get(&checkpoint).copied());
        let outcome = self.apply(Command::CompleteCheckpoint(job(n), CheckpointId(checkpoint)));
        assert_eq!(outcome.is_ok(), matches!(state, Some(("pending" | "completed", _))), "{outcome:?}");
        if let (true, Some((_, savepoint))) = (outcome.is_ok(), state) {
            self.model.jobs.entry(job(n)).or_default().checkpoints.insert(checkpoint, ("completed", savepoint));
        }
    }

    fn abort(&mut self, n: u8, checkpoint: u64) {
        let known = self.model.jobs.get(&job(n));
        let record = known.and_then(|job| job.checkpoints.get(&checkpoint));
        let wanted = known.is_some() && !matches!(record, Some(("completed", _)));
        let over = |job: &ModelJob| job.subsumed >= Some(checkpoint) || job.ended;
        let known_to_be_over = record.is_none() && known.is_some_and(over);
        let outcome = self.apply(Command::AbortCheckpoint(job(n), CheckpointId(checkpoint)));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        if wanted && !known_to_be_over {
            self.model.abort(&job(n), checkpoint);
        }
    }

    fn begin(&mut self, n: u8, checkpoint: u64, kind: CheckpointKind) {
        let savepoint = kind == CheckpointKind::Savepoint;
        let known = self.model.jobs.get(&job(n)).and_then(|job| job.checkpoints.get(&checkpoint));
        let same = known.is_none_or(|(_, is)| *is == savepoint);
        let wanted = self.model.takes(&job(n), checkpoint) && same;
        let outcome = self.apply(Command::BeginCheckpoint(job(n), CheckpointId(checkpoint), kind));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        if wanted {
            self.model.jobs.entry(job(n)).or_default().checkpoints.insert(checkpoint, ("pending", savepoint));
        }
    }

    fn reuse(&mut self, n: u8, checkpoint: u64, which: &[prop::sample::Index]) {
        let all: Vec<SegmentId> = self.model.lens.keys().copied().collect();
        let segments: Vec<SegmentId> = which.iter().filter(|_| !all.is_empty()).map(|which| *which.get(&all)).collect();
        let wanted = self.model.takes(&job(n), checkpoint) && !self.model.is_savepoint(&job(n), checkpoint);
        let outcome = self.apply(Command::Reuse(job(n), CheckpointId(checkpoint), segments.clone(), None));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        let Ok(Outcome::Reused(refused)) = outcome else { return };
        self.model.jobs.get_mut(&job(n)).unwrap().checkpoints.insert(checkpoint, ("pending", false));
        for id in segments {
            let arriving = self.model.is_arriving(id);
            let reusable = |held: &&mut Held| held.job == job(n) && !held.savepoint && held.written_for <= checkpoint;
            let held = self.model.held.get_mut(&id).filter(|held| reusable(held) && !arriving);
            assert_eq!(refused.contains(&id), held.is_none(), "{id}");
            if let Some(held) = held {
                held.last = held.last.max(checkpoint);
            }
        }
    }

    fn discard(&mut self, n: u8, checkpoint: u64) {
        let known = self.model.jobs.get(&job(n));
        let record = known.and_then(|job| job.checkpoints.get(&checkpoint)).copied();
        let wanted = !matches!(record, Some((_, false)));
        let outcome = self.apply(Command::DiscardSavepoint(job(n), CheckpointId(checkpoint)));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        if let Some(("pending", true)) = record {
            self.model.abort(&job(n), checkpoint);
        } else if let Some(("completed", true)) = record {
            self.model.held.retain(|_, held| !held.is_part_of(&job(n), checkpoint, true));
            self.model.jobs.get_mut(&job(n)).unwrap().checkpoints.remove(&checkpoint);
            self.model.forget_if_over(&job(n));
        }
    }

    fn restore(&mut self, n: u8, from: u8, checkpoint: u64, claim: bool) {
        let (to, from) = (job(n), job(from));
        let record = self.model.jobs.get(&from).and_then(|job| job.checkpoints.get(&checkpoint)).copied();
        let savepoint = self.model.is_savepoint(&from, checkpoint);
        let newer = |job: &ModelJob| {
            let mut after = job.checkpoints.range(checkpoint + 1..);
            after.any(|(_, (state, savepoint))| *state == "completed" && !savepoint)
        };
        let moves = claim && to != from;
        let in_the_way =
            moves && !savepoint && self.model.jobs.get(&from).is_some_and(newer)
                || moves
                    && self.model.jobs.get(&to).is_some_and(|job| {
                        job.subsumed >= Some(checkpoint) || job.checkpoints.contains_key(&checkpoint)
                    });
        let completed = matches!(record, Some(("completed", _)));
        let claimed = self.model.jobs.get(&to).and_then(|job| job.claimed.get(&checkpoint));
        let repeat = moves && !completed && claimed == Some(&from);
        let wanted = completed && !in_the_way || repeat;
        let claim = if claim { Claim::Claim } else { Claim::NoClaim };
        let restore = RestorePoint { job: to.clone(), from: from.clone(), checkpoint: CheckpointId(checkpoint), claim };
        let outcome = self.apply(Command::Restore(restore));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        if !wanted {
            return;
        }
        self.model.jobs.entry(to.clone()).or_default().ended = false;
        self.model.abort_pending(&to);
        if !moves || repeat {
            return;
        }
        if !savepoint {
            self.model.abort_pending(&from);
        }
        let mut moved = BTreeSet::new();
        for (id, held) in &mut self.model.held {
            if held.is_part_of(&from, checkpoint, savepoint) {
                *held = Held { job: to.clone(), written_for: checkpoint, last: checkpoint, savepoint: false };
                moved.insert(*id);
            }
        }
        self.model.keys.retain(|_, (id, _)| !moved.contains(id));
        let entry = self.model.jobs.get_mut(&to).unwrap();
        entry.checkpoints.insert(checkpoint, ("completed", false));
        entry.claimed.insert(checkpoint, from.clone());
        if savepoint {
            self.model.jobs.get_mut(&from).unwrap().checkpoints.remove(&checkpoint);
        } else {
            self.model.free(&from);
            self.model.subsume(&from, checkpoint);
        }
        self.model.forget_if_over(&from);
    }

    fn end(&mut self, n: u8, keep: bool) {
        let known = self.model.jobs.contains_key(&job(n));
        let leavings = if keep { Leavings::Keep } else { Leavings::Delete };
        let outcome = self.apply(Command::EndJob(job(n), JobEnd::Failed, leavings));
        assert_eq!(outcome.is_ok(), known || !keep, "{outcome:?}");
        if !known {
            return;
        }
        self.model.abort_pending(&job(n));
        if keep {
            let checkpoints = self.model.jobs[&job(n)].checkpoints.clone();
            self.model.held.retain(|_, held| {
                let used = |n: u64, (state, savepoint): (&str, bool)| {
                    state == "completed" && !savepoint && held.written_for <= n && n <= held.last
                };
                held.job != job(n) || held.savepoint || checkpoints.iter().any(|(n, record)| used(*n, *record))
            });
        } else {
            self.model.free(&job(n));
        }
        let entry = self.model.jobs.get_mut(&job(n)).unwrap();
        entry.checkpoints.retain(|_, (state, _)| *state != "aborted");
        entry.ended = true;
        self.model.forget_if_over(&job(n));
    }

    /// Copies what can be seen of a closed file, or what is inside the catalog, into a new file.
    fn move_segments(&mut self, which: &prop::sample::Index) {
        let mut sources: Vec<Option<PhysicalFileId>> = self.model.closed.iter().cloned().map(Some).collect();
        sources.push(None);
        let source = which.get(&sources).clone();
        let to = PhysicalFileId::new(Some(&job(0)), 2, self.new_number());
        let mut at = 64;
        let mut segments = vec![];
        for id in self.model.live() {
            let Some(view) = self.state.segment(id) else { continue };
            let elsewhere = view.location.file() != source.as_ref();
            if elsewhere && segments.len() % 3 != 1 {
                continue;
            }
            let len = view.location.len();
            let place = Segment { file: to.clone(), offset: at, len };
            // What is elsewhere was moved since it was read: it stays where it is.
            let from = if elsewhere { Location::Inline { len: len + 1 } } else { view.location };
            if !elsewhere {
                self.model.places.insert(id, Some(to.clone()));
            }
            segments.push(Moved { id, from, to: place });
            at += len + 32;
        }
        let file = StoreFile { id: to.clone(), lane: lane(), len: at + 100, closes: true, upload: None };
        self.apply(Command::Move(Move { file, segments, private: false })).unwrap();
        self.model.closed.insert(to);
    }

    fn subsume(&mut self, n: u8, through: u64) {
        let known = self.model.jobs.contains_key(&job(n));
        let outcome = self.apply(Command::SubsumeCheckpoint(job(n), CheckpointId(through)));
        assert_eq!(outcome.is_ok(), known, "{outcome:?}");
        if known {
            self.model.subsume(&job(n), through);
        }
    }

    fn close_file(&mut self, which: &prop::sample::Index) {
        let busy: BTreeSet<_> =
            self.model.in_flight.iter().filter_map(|store| store.file.as_ref().map(|file| file.id.clone())).collect();
        let idle: Vec<_> =
            self.model.open.iter().filter(|(id, _)| !busy.contains(id)).map(|(id, len)| (id.clone(), *len)).collect();
        if !idle.is_empty() {
            let (file, len) = which.get(&idle).clone();
            self.apply(Command::CloseFile(file.clone(), len + 100)).unwrap();
            self.model.close(&file);
        }
    }

    fn condition(&self, key: &str, wanted: Wanted) -> (Condition, Option<bool>) {
        let newest = self.model.objects.get(key).and_then(|versions| versions.first());
        let decided = newest.is_none_or(|version| version.on_its_way.is_none());
        let (condition, holds) = match wanted {
            Wanted::Anything => return (Condition::None, Some(true)),
            Wanted::Absent => (Condition::Absent, newest.is_none()),
            Wanted::Wrong => (Condition::Match("wrong".to_owned()), false),
            Wanted::Current => match self.model.current(key) {
                None => return (Condition::Absent, newest.is_none().then_some(true)),
                Some(version) => {
                    let same = newest.is_some_and(|newest| newest.etag == version.etag);
                    (Condition::Match(version.etag.clone()), same)
                }
            },
        };
        (condition, decided.then_some(holds))
    }

    fn delete(&mut self, key: &str, wanted: Wanted) {
        let (condition, holds) = self.condition(key, wanted);
        let (if_match, holds) = match condition {
            Condition::Match(etag) => (Some(etag), holds == Some(true)),
            _ => (None, true),
        };
        let object = ObjectToDelete { key: key.to_owned(), if_match, if_put_at: None };
        let outcome = self.apply(Command::DeleteObjects(BUCKET.to_owned(), vec![object]));
        match outcome {
            Err(refusal) => assert!(!self.model.bucket, "{refusal}"),
            Ok(Outcome::Deleted(answers)) => {
                assert_eq!(answers[0].is_ok(), holds, "{answers:?}");
                if holds {
                    self.model.objects.remove(key);
                }
            }
            Ok(other) => panic!("{other:?}"),
        }
    }

    /// The last upload that was made of this number. Ids are never given twice.
    fn upload(&self, n: u8) -> String {
        format!("upload-{n}-{}", self.model.uploads_made[usize::from(n)])
    }

    fn create_upload(&mut self, n: u8) {
        // A repeat changes nothing.
        if !self.model.uploads.contains_key(&self.upload(n)) {
            self.model.uploads_made[usize::from(n)] += 1;
        }
        let (bucket, headers) = (BUCKET.to_owned(), ObjectHeaders::default());
        let upload = NewUpload { bucket, key: key(n), headers, checksum: None };
        let outcome = self.apply(Command::CreateUpload(self.upload(n), Arc::new(upload), self.now()));
        assert_eq!(outcome.is_ok(), self.model.bucket);
        if self.model.bucket {
            self.model.uploads.entry(self.upload(n)).or_default();
        }
    }

    fn delete_bucket(&mut self) {
        let wanted = self.model.bucket && self.model.objects.is_empty();
        let outcome = self.apply(Command::DeleteBucket(BUCKET.to_owned()));
        assert_eq!(outcome.is_ok(), wanted, "{outcome:?}");
        if wanted {
            self.model.uploads.clear();
            self.apply(Command::CreateBucket(BUCKET.to_owned())).unwrap();
        }
    }

    /// One store with one item for each of `brings`, as the owner of a file would send it.
    fn store(&mut self, brings: &[Brings], place: Place) {
        // Copies and tags bring no bytes, and so never come with a file.
        let without_bytes = brings.iter().any(|brings| matches!(brings, Brings::Copy { .. } | Brings::Tag { .. }));
        let place = if without_bytes { Place::Inline } else { place };
        let busy: Vec<_> = self.model.in_flight.iter().filter_map(|store| store.file.as_ref()).collect();
        let reused = self.model.open.iter().find(|(id, _)| busy.iter().all(|file| file.id != **id));
        let (file, mut at) = match (place, reused) {
            (Place::Inline, _) => (None, 0),
            (Place::OpenFile, Some((id, len))) => (Some(id.clone()), *len),
            _ => (Some(PhysicalFileId::new(Some(&job(0)), 1, self.next)), 64),
        };
        let mut items = vec![];
        for brings in brings {
            let id = SegmentId(self.new_number());
            let len = 10 + (id.0 % 7) as u64;
            if file.is_some() {
                at += 32;
            }
            let location = match &file {
                None => Location::Inline { len },
                Some(file) => Location::File(Segment { file: file.clone(), offset: at, len }),
            };
            if file.is_some() {
                at += len;
            }
            self.model.lens.insert(id, len);
            self.model.places.insert(id, file.clone());
            items.push((id, self.item(brings, id, location)));
        }
        let store_file = file.clone().map(|id| StoreFile {
            id,
            lane: lane(),
            len: at,
            closes: place == Place::WholeFile,
            upload: None,
        });
        let store =
            Store { file: store_file.clone(), items: items.iter().map(|(_, (item, _))| item.clone()).collect() };
        let outcome = self.apply(Command::Store(store)).unwrap();
        let Outcome::Stored(token, answers) = outcome else { panic!("{outcome:?}") };
        if let Some(file) = &store_file {
            self.model.open.insert(file.id.clone(), file.len);
        }
        let number = self.new_number() as u64;
        let mut arriving = ModelStore { number, token, file: store_file, segments: vec![] };
        for ((id, (item, what)), answer) in items.iter().zip(answers) {
            self.stored(*id, item, what, answer, &mut arriving);
        }
        self.model.in_flight.push(arriving);
    }

    fn item(&self, brings: &Brings, id: SegmentId, location: Location) -> (StoreItem, Brings) {
        let (owner, checkpoint, content) = match brings {
            Brings::Segment { job, checkpoint, content, .. } => (*job, Some(CheckpointId(*checkpoint)), *content),
            _ => (0, None, 0),
        };
        let about =
            About { job: job(owner), scope: StateScope::Shared, writer: Writer::default(), checkpoint, name: None };
        let len = location.len();
        let inline = matches!(location, Location::Inline { .. }).then(|| Bytes::from(vec![content; len as usize]));
        let crc = SegmentCrc { whole: u32::from(content), ..SegmentCrc::default() };
        let segment = NewSegment { id, about, location, inline, crc };
        let object = |key: &str, condition, content| {
            Bind::Object(Box::new(PutObject { bucket: BUCKET.to_owned(), key: key.to_owned(), condition, content }))
        };
        let content = |segments: Vec<SegmentId>, upload: Option<MadeBy>| {
            let head = ObjectHead {
                len: segments.iter().map(|id| self.model.lens[id]).sum(),
                part_lens: vec![],
                etag: id.to_string(),
                modified: self.now(),
                headers: ObjectHeaders::default(),
                checksum: None,
            };
            ObjectContent::Segments { segments, head, upload }
        };
        let (segments, bind) = match brings {
            Brings::Segment { key, .. } => {
                let idempotency_key = key.map(|n| format!("key-{n}").parse().unwrap());
                (vec![segment], Bind::Checkpoint { idempotency_key, run: None })
            }
            Brings::Object { key: n, condition } => {
                let (condition, _) = self.condition(&key(*n), *condition);
                (vec![segment], object(&key(*n), condition, content(vec![id], None)))
            }
            Brings::Copy { from, to } => {
                let copy = ObjectContent::CopyOf {
                    bucket: BUCKET.to_owned(),
                    key: key(*from),
                    if_match: None,
                    headers: None,
                    tags: None,
                    modified: self.now(),
                    storage_class: None,
                    checksum: None,
                };
                (vec![], object(&key(*to), Condition::None, copy))
            }
            Brings::Tag { key: n } => {
                let tagged = ObjectContent::Tagged(vec![("tag".to_owned(), id.to_string())]);
                (vec![], object(&key(*n), Condition::None, tagged))
            }
            Brings::Part { upload: n, number } => {
                let part = PartHead { len, etag: String::new(), checksum: None, modified: self.now() };
                (vec![segment], Bind::Part { upload: self.upload(*n), number: *number, part })
            }
            Brings::Complete { upload: n, key: k } => {
                let parts = self.model.uploads.get(&self.upload(*n)).into_iter().flat_map(BTreeMap::values);
                let segments: Vec<_> = parts.map(|versions| versions[0].segment).chain([id]).collect();
                let made_by = Some(MadeBy::Recorded(self.upload(*n)));
                (vec![segment], object(&key(*k), Condition::None, content(segments, made_by)))
            }
        };
        (StoreItem { segments, bind }, brings.clone())
    }

    /// Compares the answer with what the model says, and lets the model follow.
    fn stored(
        &mut self,
        id: SegmentId,
        item: &StoreItem,
        brings: &Brings,
        answer: Result<Stored, Refusal>,
        arriving: &mut ModelStore,
    ) {
        match brings {
            Brings::Segment { job: n, checkpoint, key, content } => {
                let takes = self.model.takes(&job(*n), *checkpoint);
                let key: Option<IdempotencyKey> = key.map(|n| format!("key-{n}").parse().unwrap());
                let first = key.as_ref().and_then(|key| self.model.keys.get(&(job(*n), key.clone())).copied());
                let first = first.filter(|(first, _)| self.model.live().contains(first));
                match (takes, first) {
                    (false, _) => assert!(answer.is_err(), "{answer:?}"),
                    (true, Some((first, crc))) => {
                        let same = crc == u32::from(*content) && self.model.lens[&first] == self.model.lens[&id];
                        let here = arriving.segments.contains(&first) || self.model.is_arriving(first);
                        match answer {
                            Err(Refusal::KeyReused(_)) => assert!(!same),
                            Err(Refusal::KeyInFlight(_)) => assert!(same && here),
                            Ok(Stored::Repeat(handle)) => assert!(same && !here && handle.id == first),
                            other => panic!("{other:?}"),
                        }
                    }
                    (true, None) => {
                        assert!(matches!(answer, Ok(Stored::Handles(_))), "{answer:?}");
                        let owner = self.model.jobs.entry(job(*n)).or_default();
                        let (_, savepoint) = *owner.checkpoints.entry(*checkpoint).or_insert(("pending", false));
                        let held = Held { job: job(*n), written_for: *checkpoint, last: *checkpoint, savepoint };
                        self.model.held.insert(id, held);
                        if let Some(key) = key {
                            self.model.keys.insert((job(*n), key), (id, u32::from(*content)));
                        }
                        arriving.segments.push(id);
                    }
                }
            }
            Brings::Part { upload: n, number } => {
                let upload = self.upload(*n);
                assert_eq!(answer.is_ok(), self.model.uploads.contains_key(&upload), "{answer:?}");
                if let Some(parts) = self.model.uploads.get_mut(&upload) {
                    let part = ModelPart { segment: id, on_its_way: Some(arriving.number) };
                    parts.entry(*number).or_default().insert(0, part);
                    arriving.segments.push(id);
                }
            }
            Brings::Object { .. } | Brings::Copy { .. } | Brings::Tag { .. } | Brings::Complete { .. } => {
                let Bind::Object(put) = &item.bind else { panic!("{item:?}") };
                let Some((segments, etag)) = self.new_object(put, brings, arriving) else {
                    return assert!(answer.is_err(), "{answer:?}");
                };
                assert!(matches!(answer, Ok(Stored::Object { .. })), "{answer:?}");
                if let Brings::Complete { upload: n, .. } = brings {
                    let upload = self.upload(*n);
                    self.model.uploads.remove(&upload);
                }
                let version = ModelVersion { etag, segments, on_its_way: Some(arriving.number) };
                self.model.objects.entry(put.key.clone()).or_default().insert(0, version);
                if !item.segments.is_empty() {
                    arriving.segments.push(id);
                }
            }
        }
    }

    /// The segments and the entity tag of an object that should be accepted.
    fn new_object(&self, put: &PutObject, brings: &Brings, arriving: &ModelStore) -> Option<(Vec<SegmentId>, String)> {
        if !self.model.bucket || !self.holds(put) {
            return None;
        }
        match &put.content {
            ObjectContent::CopyOf { key, .. } => {
                let source = self.model.current(key)?;
                Some((source.segments.clone(), source.etag.clone()))
            }
            ObjectContent::Tagged(_) => {
                let newest = self.model.objects.get(&put.key)?.first()?;
                newest.on_its_way.is_none().then(|| (newest.segments.clone(), newest.etag.clone()))
            }
            ObjectContent::Segments { segments, head, .. } => {
                if let Brings::Complete { upload: n, .. } = brings {
                    let parts = self.model.uploads.get(&self.upload(*n))?;
                    let old = &segments[..segments.len() - 1];
                    let arrived = |id: &SegmentId| {
                        parts.values().flatten().any(|part| part.segment == *id && part.on_its_way.is_none())
                            && !self.model.is_arriving(*id)
                            && !arriving.segments.contains(id)
                    };
                    if !old.iter().all(arrived) {
                        return None;
                    }
                }
                Some((segments.clone(), head.etag.clone()))
            }
        }
    }

    /// Whether the condition holds now; an earlier item of the same store may have changed that.
    fn holds(&self, put: &PutObject) -> bool {
        let newest = self.model.objects.get(&put.key).and_then(|versions| versions.first());
        let arrived = newest.is_none_or(|version| version.on_its_way.is_none());
        match &put.condition {
            Condition::None => true,
            Condition::Absent => newest.is_none(),
            Condition::Match(etag) => arrived && newest.is_some_and(|version| version.etag == *etag),
            Condition::NoneMatch(_) => unreachable!("not drawn"),
        }
    }

    /// A crash: what was not written is gone, and of what was on its way some bytes arrived.
    fn reload(&mut self, arrived: u8) {
        let stores = std::mem::take(&mut self.model.in_flight);
        let mut there = BTreeMap::new();
        let mut alive = BTreeMap::new();
        for (index, store) in stores.into_iter().enumerate() {
            let arrives = store.file.is_none() || arrived == 2 || (arrived == 1 && index % 2 == 0);
            if let Some(file) = &store.file {
                there.insert(file.id.clone(), arrives);
            }
            alive.insert(store.number, (arrives, store));
        }
        // Oldest first, so that the newest version that arrived is the one.
        for (_, (arrives, store)) in alive {
            if arrives { self.model.confirm(store) } else { self.model.fail(store) }
        }
        let mut state = CatalogState::default();
        for (key, value) in &self.written {
            state.load(key, value).unwrap();
        }
        for file in state.uncertain_files() {
            let whole = there.get(&file.id).copied().unwrap_or(true);
            let data_len = if whole { file.len } else { self.durable_len(&file.id).max(file.durable_len) };
            state.settle_file(&file.id, data_len, data_len + 90, self.now());
        }
        state.finish_recovery(self.now());
        self.state = state;
        self.write();
        for file in self.model.open.keys().cloned().collect::<Vec<_>>() {
            self.model.close(&file);
        }
    }

    /// Where the last group ends that is known to have arrived.
    fn durable_len(&self, file: &PhysicalFileId) -> u64 {
        match self.state.file(file).map(|view| view.state) {
            Some(FileState::Open { durable_len, .. }) => durable_len,
            Some(FileState::Closed { .. } | FileState::Forgotten { .. }) | None => 0,
        }
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.state.check(), Vec::<String>::new());
        let alive: BTreeSet<SegmentId> = self.state.all_segments().map(|view| view.id).collect();
        prop_assert_eq!(&alive, &self.model.live());
        prop_assert_eq!(self.state.space().live_bytes, self.model.live_bytes());
        let visible: BTreeSet<SegmentId> = alive.into_iter().filter(|id| self.state.segment(*id).is_some()).collect();
        prop_assert_eq!(visible, self.model.visible());

        let page = self.state.list(BUCKET, &ListQuery { max: 100, ..ListQuery::default() });
        let listed: BTreeMap<String, String> = page
            .entries
            .into_iter()
            .filter_map(|entry| match entry {
                Listed::Object { key, etag, .. } => Some((key, etag)),
                Listed::Prefix(_) => None,
            })
            .collect();
        prop_assert_eq!(&listed, &self.model.listing());
        for (key, etag) in listed {
            let object = self.state.object(BUCKET, &key).unwrap();
            prop_assert_eq!(&object.head().etag, &etag);
            let len: u64 = object
                .segments()
                .iter()
                .filter_map(|id| self.state.segment(*id))
                .map(|segment| segment.location.len())
                .sum();
            prop_assert_eq!(len, object.head().len, "{} names a segment that cannot be read", key);
        }
        self.compare_files()
    }

    fn compare_files(&self) -> Result<(), TestCaseError> {
        let with_life = self.model.files_with_life();
        for file in self.state.files() {
            let wanted = match (self.model.open.contains_key(&file.id), with_life.contains(&file.id)) {
                (true, _) => "open",
                (false, true) => "closed",
                (false, false) => "forgotten",
            };
            let is = match file.state {
                FileState::Open { .. } => "open",
                FileState::Closed { .. } => "closed",
                FileState::Forgotten { .. } => "forgotten",
            };
            prop_assert_eq!(is, wanted, "{}", file.id);
        }
        let known: BTreeSet<PhysicalFileId> = self.state.files().map(|file| file.id).collect();
        prop_assert!(with_life.is_subset(&known), "a file with living segments is gone");
        Ok(())
    }
}

/// Everything that can be seen of a state in which nothing is on its way.
fn picture(state: &CatalogState) -> String {
    let mut segments: Vec<_> = state.all_segments().map(|view| format!("{view:?}")).collect();
    segments.sort();
    let files: Vec<_> = state.files().map(|file| format!("{file:?}")).collect();
    let jobs: Vec<_> =
        state.jobs().into_iter().map(|job| format!("{job:?} {:?}", state.checkpoints(&job.id))).collect();
    let uploads: Vec<_> =
        state.uploads().map(|view| format!("{view:?} {:?}", state.parts(&view.id).collect::<Vec<_>>())).collect();
    let objects: Vec<_> = (0..3).map(|n| format!("{:?}", state.object(BUCKET, &key(n)))).collect();
    format!("{segments:#?}{files:#?}{jobs:#?}{uploads:#?}{objects:#?}{:?}", state.space())
}

proptest! {


    #[test]
    fn the_state_agrees_with_the_model_after_any_history(ops in vec(any_op(), 1..80)) {
        let mut world = World::new();
        world.step(&Op::CreateJob(0));
        for op in &ops {
            world.step(op);
            world.compare()?;
        }

        // With all bytes arrived and everything written, the records make the same state again.
        world.reload(2);
        world.compare()?;
        let before = picture(&world.state);
        world.reload(2);
        prop_assert_eq!(picture(&world.state), before);
    }

    #[test]
    fn settling_what_was_on_its_way_leaves_what_a_clean_history_leaves(ops in vec(any_op(), 1..60)) {
        let mut world = World::new();
        world.step(&Op::CreateJob(0));
        world.step(&Op::CreateJob(1));
        for op in ops.iter().filter(|op| !matches!(op, Op::Reload(_) | Op::Fail(_))) {
            world.step(op);
        }
        while !world.model.in_flight.is_empty() {
            let store = world.model.in_flight.remove(0);
            world.state.confirm(store.token, world.now());
            world.model.confirm(store);
        }
        for (file, len) in world.model.open.clone() {
            world.apply(Command::CloseFile(file.clone(), len)).unwrap();
            world.model.close(&file);
        }
        world.write();
        world.compare()?;

        let before = picture(&world.state);
        world.reload(2);

        prop_assert_eq!(picture(&world.state), before);
    }
}
