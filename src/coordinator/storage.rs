//! What a coordinator asks of storage: to record, to complete, to free, to read metadata.
//!
//! The metadata of a checkpoint is a segment of the job, written for that checkpoint: it becomes free with the checkpoint, in
//! the same commit, and no crash leaves one without the other. In a directory (`dir`, that of a savepoint) stands a copy of it as
//! an object, for people and for other jobs. It is put before the checkpoint completes, and deleted before that is freed: what
//! it names is there.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use parking_lot::Mutex;

use super::ack::StateEntry;
use super::metadata::{self, CheckpointMetadata, MetadataSubject, StoredState, UnreadableCheckpoint};
use super::reason::FailureReason;
use super::topology::{TaskId, Topology};
use crate::config::PublishDir;
use crate::engine::intake::{Body, Digests, Rejected};
use crate::engine::jobs::CheckpointStep;
use crate::engine::objects::NewObject;
use crate::engine::{Condition, Engine, EngineError, ObjectToDelete, SegmentView};
use crate::error::{ErrorKind, chain};
use crate::model::{
    About, CheckpointId, CheckpointKind, CheckpointState, JobId, JobRun, ObjectHeaders, SegmentId, StateScope, Writer,
};
use crate::runtime::PaidBytes;

/// The name of the copy of a savepoint's metadata in its folder.
pub const PUBLISHED_NAME: &str = "metadata.json";
/// Names that are tried for the folder of a savepoint, as in Flink.
const NAMES_TRIED: usize = 10;
/// Bytes of published metadata that are read.
const PUBLISHED_BYTES_MAX: u64 = 256 << 20;
/// Bytes of states that are in no file, which go into the metadata; beyond that it says where they are and no more.
const EMBEDDED_BYTES_MAX: u64 = 8 << 20;

/// Where a copy of the metadata goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// Nowhere.
    Nowhere,
    /// Under this key of this bucket.
    At(String, String),
    /// In a new folder of this directory, named after the savepoint.
    NewFolder(PublishDir),
}

/// A checkpoint that all tasks have acknowledged.
#[derive(Debug)]
pub struct AcknowledgedCheckpoint {
    /// Its number.
    pub id: CheckpointId,
    /// What it is.
    pub kind: CheckpointKind,
    /// The attempt that took it.
    pub attempt: u64,
    /// When it was triggered.
    pub triggered_ms: u64,
    /// Whether barriers might overtake records.
    pub unaligned: bool,
    /// The operators.
    pub topology: Topology,
    /// What the tasks have acknowledged: whether each was finished, and its states.
    pub snapshots: BTreeMap<TaskId, (bool, Vec<StateEntry>)>,
    /// Where a copy goes.
    pub publish: Publish,
}

/// Where copies of the metadata of a completed checkpoint may stand.
#[derive(Debug)]
pub struct CopyPlaces {
    /// Bucket and key of that which the job has put.
    pub own: Option<(String, String)>,
    /// Those of what somebody named the checkpoint by, when the job claimed it.
    pub named: Option<(String, String)>,
    /// Directories in which another job may have published before this one claimed it, and whether in a folder of its name.
    pub dirs: Vec<(PublishDir, bool)>,
}

/// A checkpoint that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableCheckpoint {
    /// The handle of its metadata.
    pub metadata: String,
    /// Bucket and key of the copy.
    pub published: Option<(String, String)>,
}

/// Why metadata was not read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataFault {
    /// The engine did not give it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No coordinator has completed it.
    #[error("checkpoint {1} of job {0} was not completed by a coordinator: it has no metadata")]
    None(JobId, CheckpointId),
    /// It is not understood.
    #[error(transparent)]
    Unreadable(#[from] UnreadableCheckpoint),
    /// It is published, and the checkpoint that it is of is gone: another one of the job's name has its number.
    #[error(
        "the savepoint is not there any more: checkpoint {1} of job {0} is another one, of a later job of that name. Published metadata \
         stays until people delete it"
    )]
    Gone(String, CheckpointId),
    /// No coordinator has published so much.
    #[error(
        "the object has {0} bytes, and published metadata has at most {PUBLISHED_BYTES_MAX}: give the folder of a savepoint, or go on \
         from the job and the number of the checkpoint (from, checkpoint)"
    )]
    TooLarge(u64),
    /// Its bytes are wrong.
    #[error("the metadata cannot be read: {0}")]
    Bytes(String),
}

impl MetadataFault {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(error) => error.kind(),
            Self::None(..) | Self::Gone(..) => ErrorKind::NotFound,
            Self::Unreadable(_) => ErrorKind::Corrupt,
            Self::TooLarge(_) => ErrorKind::Invalid,
            Self::Bytes(_) => ErrorKind::Unavailable,
        }
    }
}

/// Why a checkpoint is not complete.
#[derive(Debug, thiserror::Error)]
enum CompletionFault {
    /// The engine did not do what it should.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Another job has kept what stands in its place.
    #[error(
        "s3://{bucket}/{key} is the metadata of a checkpoint that job {job} has kept: move it, or create the job with another \
         execution.checkpointing.dir"
    )]
    OtherJob { bucket: String, key: String, job: String },
}

/// Bytes in memory, as a body.
struct WholeBody {
    bytes: Option<Bytes>,
    len: u64,
}

impl WholeBody {
    fn of(bytes: Bytes) -> Self {
        Self { len: bytes.len() as u64, bytes: Some(bytes) }
    }
}

impl Body for WholeBody {
    type Fault = Infallible;

    fn announced(&self) -> u64 {
        self.len
    }

    fn waits(&self) -> bool {
        false
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Infallible> {
        Ok(self.bytes.take())
    }

    fn check(self, _: u32) -> Result<Digests, Infallible> {
        Ok(Digests::default())
    }

    fn is_of_client(_: &Infallible) -> bool {
        false
    }
}

fn of_engine(rejected: Rejected<Infallible>) -> EngineError {
    match rejected {
        Rejected::Engine(error) => error,
        Rejected::Body(never) => match never {},
    }
}

/// The storage of one job. Clones share it.
#[derive(Clone)]
pub struct JobStorage {
    engine: Engine,
    job: JobId,
    run: JobRun,
    /// Copies of metadata of checkpoints that were put, by bucket and key, with their entity tags: whatever else comes to stand there is
    /// not the job's.
    copies: Arc<Mutex<BTreeMap<(String, String), String>>>,
}

crate::runtime::opaque_debug!(JobStorage);

impl JobStorage {
    /// That of `job`, in the run that it is in.
    pub fn new(engine: Engine, job: JobId) -> Self {
        Self { run: engine.run_of(&job), engine, job, copies: Arc::default() }
    }

    /// The run that the job was in when this began.
    pub fn run(&self) -> JobRun {
        self.run
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// Keeps what the coordinator remembers. Resolves once that is durable.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn remember(&self, text: String) -> Result<(), EngineError> {
        self.engine.coordinate(&self.job, Arc::from(text)).await
    }

    /// Records that a savepoint begins. A checkpoint begins with its first segment; its number is reserved.
    ///
    /// # Errors
    /// The reason that counts, and the same for people.
    pub async fn begin_savepoint(&self, id: CheckpointId) -> Result<(), (FailureReason, String)> {
        let begin = CheckpointStep::Begin(CheckpointKind::Savepoint);
        let begun = self.engine.step(&self.job, id, begin).await;
        begun.map(|_| ()).map_err(|error| (reason_of(&error), chain(&error)))
    }

    /// Stores the metadata, and completes the checkpoint. Resolves once both are durable.
    ///
    /// # Errors
    /// Why it is not complete, for people. Then it is not; but if the catalog was lost meanwhile, only its next owner knows.
    pub async fn complete(&self, completion: AcknowledgedCheckpoint) -> Result<DurableCheckpoint, String> {
        let id = completion.id;
        let mut published = None;
        let done = self.try_complete(completion, &mut published).await;
        match done {
            Ok(metadata) => Ok(DurableCheckpoint { metadata, published }),
            // The answer may be lost, and the checkpoint complete.
            Err(_) if self.is_complete(id) => Ok(DurableCheckpoint { metadata: String::new(), published }),
            Err(error) => {
                if let Some((bucket, key)) = published {
                    self.unpublish(&bucket, &key).await;
                }
                Err(chain(&error))
            }
        }
    }

    async fn try_complete(
        &self,
        completion: AcknowledgedCheckpoint,
        published: &mut Option<(String, String)>,
    ) -> Result<String, CompletionFault> {
        let (id, kind, publish) = (completion.id, completion.kind, completion.publish.clone());
        let named = completion.snapshots.values().flat_map(|(_, state)| state).map(|entry| entry.segment);
        let mut keeps: BTreeSet<SegmentId> = named.collect();
        let bytes = Bytes::from(self.metadata_of(completion).await?.write());
        let about = About {
            job: self.job.clone(),
            scope: StateScope::Exclusive,
            writer: Writer::default(),
            checkpoint: Some(id),
            name: metadata::segment_name(),
        };
        let stored = self.engine.put_segment(about, None, Some(self.run), WholeBody::of(bytes.clone())).await;
        let handle = stored.map_err(of_engine)?;
        *published = self.publish(publish, bytes).await?;
        match kind {
            CheckpointKind::Checkpoint => drop(self.engine.step(&self.job, id, CheckpointStep::Complete).await?),
            // It stays until somebody deletes it: what refused acknowledgements have brought would, too.
            CheckpointKind::Savepoint => {
                keeps.insert(handle.id);
                self.engine.complete_savepoint(&self.job, id, &keeps).await?;
            }
        }
        Ok(handle.to_string())
    }

    fn is_complete(&self, id: CheckpointId) -> bool {
        let known = self.engine.checkpoints(&self.job).unwrap_or_default();
        known.iter().any(|known| known.id == id && known.state == CheckpointState::Completed)
    }

    async fn metadata_of(&self, completion: AcknowledgedCheckpoint) -> Result<CheckpointMetadata, EngineError> {
        let AcknowledgedCheckpoint { id, kind, attempt, triggered_ms, unaligned, topology, snapshots, publish } =
            completion;
        let named = snapshots.values().flat_map(|(_, state)| state).map(|entry| entry.segment);
        let mut segments: BTreeMap<SegmentId, StoredState> = BTreeMap::new();
        let mut embedded = 0;
        for segment in named {
            if segments.contains_key(&segment) {
                continue;
            }
            let view = self.engine.segment(segment)?;
            let handle = view.handle();
            let len = handle.location.len();
            let inside = handle.location.file().is_none() && embedded + len <= EMBEDDED_BYTES_MAX;
            let data = if inside { Some(self.bytes_of(&view).await?) } else { None };
            embedded += data.as_ref().map_or(0, |data| data.len() as u64);
            segments.insert(segment, StoredState { handle, scope: view.about.scope.to_string(), data });
        }
        Ok(CheckpointMetadata {
            esker_checkpoint: metadata::version(),
            job: self.job.to_string(),
            checkpoint: id.0,
            kind: if kind == CheckpointKind::Savepoint { "savepoint" } else { "checkpoint" }.to_owned(),
            attempt,
            triggered_ms,
            completed_ms: self.engine.now().0,
            unaligned,
            published: match publish {
                Publish::At(bucket, key) => Some((bucket, key)),
                // People move and copy the folders of savepoints, and delete what is in them.
                Publish::NewFolder(_) | Publish::Nowhere => None,
            },
            operators: metadata::operators(&topology, &snapshots, &segments),
        })
    }

    async fn bytes_of(&self, view: &SegmentView) -> Result<Vec<u8>, EngineError> {
        let stream = self.engine.read_segment(view.id, 0..view.location.len()).await?;
        let read = stream.try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        });
        Ok(read.await?)
    }

    /// Puts a copy of the metadata where it should be. Returns bucket and key.
    async fn publish(&self, publish: Publish, bytes: Bytes) -> Result<Option<(String, String)>, CompletionFault> {
        let put = async |bucket: &str, key: &str, condition: Condition| {
            let content_type = Some("application/json".to_owned());
            let headers = ObjectHeaders { content_type, ..ObjectHeaders::default() };
            let object = NewObject { bucket: bucket.to_owned(), key: key.to_owned(), condition, headers };
            self.engine.put_object(object, WholeBody::of(bytes.clone())).await.map(|put| put.etag).map_err(of_engine)
        };
        match publish {
            Publish::Nowhere => Ok(None),
            Publish::At(bucket, key) => {
                // Whatever the folder is called: another job may have been told to publish there, and have kept what it did.
                let etag = match put(&bucket, &key, Condition::Absent).await {
                    Err(error) if error.kind() == ErrorKind::Precondition => {
                        if let Some(job) = self.of_another_job(&bucket, &key).await {
                            return Err(CompletionFault::OtherJob { bucket, key, job });
                        }
                        put(&bucket, &key, Condition::None).await?
                    }
                    done => done?,
                };
                self.copies.lock().insert((bucket.clone(), key.clone()), etag);
                Ok(Some((bucket, key)))
            }
            Publish::NewFolder(PublishDir { bucket, prefix }) => {
                let mut keys = std::iter::repeat_with(|| {
                    let folder = savepoint_folder(&self.job, &self.engine.entropy().hex(6));
                    format!("{prefix}{folder}/{PUBLISHED_NAME}")
                });
                // Of a bucket's own folders each may be in another shard.
                let is_here = |key: &String| !prefix.is_empty() || self.engine.holds_key(&bucket, key);
                for tried in 1.. {
                    let Some(key) = keys.find(is_here) else { break };
                    match put(&bucket, &key, Condition::Absent).await {
                        Ok(_) => return Ok(Some((bucket, key))),
                        Err(error) if error.kind() == ErrorKind::Precondition && tried < NAMES_TRIED => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(None)
            }
        }
    }

    /// The job that has published what stands there, if it is another one: one that has ended, and kept it.
    async fn of_another_job(&self, bucket: &str, key: &str) -> Option<String> {
        let known = self.published(bucket, key).await.ok()?;
        (known.job != self.job.as_str()).then_some(known.job)
    }

    /// Deletes a copy. What is not there counts as deleted; a failure is logged: the copy then names what is not there.
    async fn unpublish(&self, bucket: &str, key: &str) {
        let if_match = self.copies.lock().remove(&(bucket.to_owned(), key.to_owned()));
        // What an owner before has put is known by what it says.
        if if_match.is_none() && self.of_another_job(bucket, key).await.is_some() {
            return;
        }
        self.delete_copy(bucket, key, if_match).await;
    }

    async fn delete_copy(&self, bucket: &str, key: &str, if_match: Option<String>) {
        let object = ObjectToDelete { key: key.to_owned(), if_match, if_put_at: None };
        if let Err(error) = self.engine.delete_objects(bucket, vec![object]).await {
            let error = chain(&error);
            tracing::warn!(job = %self.job, bucket, key, error, "a published copy of metadata was not deleted");
        }
    }

    /// Frees what a checkpoint that was given up has stored. A failure is logged: the catalog frees it with what subsumes it.
    pub async fn clean_aborted(&self, id: CheckpointId) {
        if let Err(error) = self.engine.step(&self.job, id, CheckpointStep::Abort).await
            && error.kind() != ErrorKind::Conflict
        {
            tracing::warn!(job = %self.job, checkpoint = %id, error = chain(&error), "a checkpoint was not aborted");
        }
    }

    /// Frees what completed checkpoints from `since` on up to this one have alone: first the copy of its metadata. Those before are of a
    /// job of this name that has ended, and kept them.
    pub async fn clean_subsumed(&self, since: CheckpointId, id: CheckpointId, copies: CopyPlaces) {
        self.unpublish_copies(id, copies).await;
        self.free_subsumed(since, id).await;
    }

    /// The same of one whose copies are gone.
    pub async fn free_subsumed(&self, since: CheckpointId, id: CheckpointId) {
        if let Err(error) = self.engine.subsume_since(self.run, &self.job, since.min(id), id).await {
            tracing::warn!(job = %self.job, checkpoint = %id, error = chain(&error), "a checkpoint was not subsumed");
        }
    }

    /// Deletes the copies of the metadata of a completed checkpoint. That of one that was claimed was put by another job.
    pub async fn unpublish_copies(&self, id: CheckpointId, CopyPlaces { own, named, dirs }: CopyPlaces) {
        if let Some((bucket, key)) = own {
            self.unpublish(&bucket, &key).await;
        }
        let known = self.engine.checkpoints(&self.job).unwrap_or_default();
        if known.iter().any(|known| known.id == id && known.claimed_from.is_some()) {
            self.unpublish_found(id, named, &dirs).await;
        }
    }

    /// The same of one that an owner or a job before has put: it is where the metadata says, or, from before that said so, in one of these
    /// directories.
    pub(super) async fn unpublish_found(
        &self,
        id: CheckpointId,
        named: Option<(String, String)>,
        dirs: &[(PublishDir, bool)],
    ) {
        let Ok(metadata) = self.metadata(&self.job, id).await else { return };
        let of = metadata.job.parse::<JobId>().ok();
        let places = of.iter().flat_map(|of| dirs.iter().map(|(dir, subdir)| published_key(dir, of, *subdir, id)));
        let said = named.into_iter().chain(metadata.published.clone());
        let places: BTreeSet<(String, String)> = said.chain(places).collect();
        for (bucket, key) in places.into_iter().filter(|(bucket, key)| self.engine.holds_key(bucket, key)) {
            if self.published(&bucket, &key).await.is_ok_and(|subject| subject.is_that_of(&metadata)) {
                self.delete_copy(&bucket, &key, None).await;
            }
        }
    }

    /// Deletes copies of metadata.
    pub async fn unpublish_all(&self, published: Vec<(String, String)>) {
        for (bucket, key) in published {
            self.unpublish(&bucket, &key).await;
        }
    }

    /// The metadata of a completed checkpoint of `job`.
    ///
    /// # Errors
    /// [`MetadataFault`].
    pub async fn metadata(&self, job: &JobId, id: CheckpointId) -> Result<CheckpointMetadata, MetadataFault> {
        let found = metadata_segment(&self.engine, job, id).await?;
        let view = found.ok_or_else(|| MetadataFault::None(job.clone(), id))?;
        let _paid = self.pay(view.location.len()).await?;
        Ok(CheckpointMetadata::read(&self.bytes_of(&view).await?)?)
    }

    /// The checkpoint whose metadata was published as an object, by bucket and key.
    ///
    /// # Errors
    /// [`MetadataFault`].
    pub async fn published(&self, bucket: &str, key: &str) -> Result<MetadataSubject, MetadataFault> {
        let object = self.engine.object(bucket, key).await?;
        let len = object.head().len;
        if len > PUBLISHED_BYTES_MAX {
            return Err(MetadataFault::TooLarge(len));
        }
        let _paid = self.pay(len).await?;
        let stream = self.engine.read_object(&object, 0..len).await?;
        let room = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let bytes = stream.try_fold(room, |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        });
        let bytes = bytes.await.map_err(|error| MetadataFault::Bytes(chain(&error)))?;
        Ok(MetadataSubject::of(&bytes)?)
    }

    /// Pays for metadata while it is read: as the daemon's own, as reading it pays, too, maybe from the same share. Of more than half
    /// of all memory for writes that half.
    async fn pay(&self, len: u64) -> Result<PaidBytes, EngineError> {
        let mut paid = self.engine.pay(len.min(self.engine.budgets().writes.total() / 2)).await?;
        paid.belongs_to_nobody();
        Ok(paid)
    }
}

/// The segment with the metadata of a completed checkpoint of `job`, if a coordinator has completed it.
async fn metadata_segment(engine: &Engine, job: &JobId, id: CheckpointId) -> Result<Option<SegmentView>, EngineError> {
    let name = metadata::segment_name();
    let segments = engine.checkpoint_segments(job, id).await?;
    let own = segments.into_iter().filter(|view| view.about.name == name && view.about.writer == Writer::default());
    // The coordinator's is the last one that was stored.
    Ok(own.filter(|view| view.about.checkpoint == Some(id)).max_by_key(|view| view.id))
}

/// Whether a coordinator has completed a checkpoint.
pub async fn is_of_a_coordinator(engine: &Engine, job: &JobId, id: CheckpointId) -> bool {
    metadata_segment(engine, job, id).await.is_ok_and(|found| found.is_some())
}

fn reason_of(error: &EngineError) -> FailureReason {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Overloaded => FailureReason::IoException,
        _ => FailureReason::Trigger,
    }
}

/// The folder of a savepoint: `savepoint-<six characters of the job>-<random>`, as Flink names it.
fn savepoint_folder(job: &JobId, random: &str) -> String {
    let last = job.as_str().rsplit('/').next().unwrap_or_default();
    let short: String = last.chars().filter(char::is_ascii_alphanumeric).take(6).collect();
    format!("savepoint-{}-{random}", short.to_lowercase())
}

/// Whether a job of this engine can have savepoints in a directory.
pub fn holds_savepoints(engine: &Engine, dir: &PublishDir) -> bool {
    dir.prefix.is_empty() || engine.holds_key(&dir.bucket, &format!("{}savepoint/{PUBLISHED_NAME}", dir.prefix))
}

/// Where metadata of checkpoints is published in a directory: its bucket, and what all keys begin with.
pub fn published_folder(dir: &PublishDir, job: &JobId, subdir: bool) -> (String, String) {
    let folder = if subdir { format!("{job}/") } else { String::new() };
    (dir.bucket.clone(), format!("{}{folder}", dir.prefix))
}

/// Where the metadata of a checkpoint is published in a directory.
pub fn published_key(dir: &PublishDir, job: &JobId, subdir: bool, id: CheckpointId) -> (String, String) {
    let (bucket, folder) = published_folder(dir, job, subdir);
    (bucket, format!("{folder}metadata-{id}.json"))
}
