//! What exists: segments, physical files, jobs, checkpoints, S3 objects. State in memory, log in SlateDB.
//!
//! [`state::State`] decides; it is a plain state machine behind a lock that is held for microseconds. One owner
//! task takes [`Command`]s in the order of their arrival, applies what has collected, and writes all that as one
//! batch to the [`slate::Journal`]; a second task waits for the batches to become durable, in order, and answers.
//! So commands that arrive while a batch is being synced share the next one. On an object store, where a batch is a
//! request, those that store nothing wait some milliseconds for each other. A command that changes more than the journal
//! takes at once, such as a claim of a million segments, is written in pieces: [`state`] orders its changes so that after a
//! crash between them the same command, sent again, does the rest.
//!
//! # What may be read, and when
//! - New things become visible by [`Catalog::confirm`], which is called when their commit and their bytes are durable.
//! - Deleted things disappear at once; whoever finds nothing under a key that was just deleted waits until the delete
//!   is durable ([`Catalog::object`]), so that what was seen to be gone stays gone.
//!
//! # Crash
//! The journal holds a prefix of the batches, among them every one that was answered. [`state::State::uncertain_files`]
//! names the files whose bytes have to be looked at before the first answer; `daemon` does that.
//!
//! # Two daemons
//! The second one to open the journal shuts the first one out: its next commit fails, [`Catalog::lost`] is cancelled,
//! and nothing is answered any more. One that commits nothing notices within `catalog.poll-interval`; until then it may
//! answer reads of what was there. Whoever makes something durable without a commit after it has to ask
//! [`Catalog::check_owner`] if the successor may have given it up meanwhile.

pub mod anchor;
pub mod command;
pub mod log;
pub mod record;
pub mod slate;
pub mod state;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::model::{Millis, PhysicalFileId, SegmentId};
use crate::runtime::{Clock, Failure, TaskGroup};
use command::{Command, Outcome, Refusal, Store, StoreToken, Stored};
use record::RecordKey;
use slate::{Commit, Haste, Journal, JournalError};
use state::{Changes, ListPage, ListQuery, ObjectView, State};

/// Commands that may wait for the owner.
const COMMANDS_MAX: usize = 4096;
/// Commands that share a batch at most.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes after which a batch takes no more commands; with one more command the journal still takes it.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes that are written to the journal at once; it takes 64 MiB.
const PIECE_BYTES_MAX: usize = 48 << 20;
/// Batches that may wait for durability.
const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// Why the catalog did not do what it was told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// It does not fit what exists. Nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The journal cannot be written any more; this daemon answers nothing from here on.
    #[error("the catalog is lost: {0}")]
    Lost(Arc<JournalError>),
    /// The daemon is shutting down.
    #[error("the catalog is closed")]
    Closed,
}

impl CatalogError {
    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Lost(_) => ErrorKind::Unavailable,
            Self::Closed => ErrorKind::ShuttingDown,
        }
    }
}

/// A handle to the catalog. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Request>,
}

struct Shared {
    state: RwLock<State>,
    journal: Journal,
    clock: Clock,
    lost: CancellationToken,
    lost_because: Mutex<Option<Arc<JournalError>>>,
    /// Number of the last batch that is durable.
    durable: watch::Sender<u64>,
    /// Number of the last batch that was applied.
    applied: AtomicU64,
    /// What those wait for who give space back.
    changes: watch::Sender<Changes>,
    /// Keys that were deleted by a batch that is not durable yet, and the number of that batch.
    deleting: Mutex<HashMap<(String, String), u64>>,
}

struct Request {
    command: Option<Command>,
    settle: Settle,
    reply: oneshot::Sender<Result<Outcome, CatalogError>>,
}

/// Who confirms a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settle {
    /// The caller, once the bytes are durable too.
    ByCaller,
    /// The catalog, as soon as the commit is durable: there are no other bytes.
    OnCommit,
}

/// A batch on its way to durability.
struct Batch {
    number: u64,
    commit: Option<Commit>,
    answers: Vec<Answer>,
}

struct Answer {
    outcome: Result<Outcome, Refusal>,
    settle: Settle,
    reply: oneshot::Sender<Result<Outcome, CatalogError>>,
}

impl Catalog {
    /// Starts the owner of `state`, which was loaded from `journal` and settled.
    pub fn start(state: State, journal: Journal, clock: Clock, metrics: &Metrics, tasks: &TaskGroup) -> Self {
        let changes = state.changes();
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            journal,
            clock,
            lost: CancellationToken::new(),
            lost_because: Mutex::default(),
            durable: watch::Sender::new(0),
            applied: AtomicU64::new(0),
            changes: watch::Sender::new(changes),
            deleting: Mutex::default(),
        });
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (batches, in_flight) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
        let ended = shared.journal.ended();
        tasks.spawn("catalog-watch", Failure::StopsTheDaemon, watch(Arc::downgrade(&shared), ended));
        tasks.spawn(
            "catalog-owner",
            Failure::StopsTheDaemon,
            own(Arc::clone(&shared), inbox, batches, metrics.clone()),
        );
        tasks.spawn("catalog-answers", Failure::StopsTheDaemon, answer(Arc::clone(&shared), in_flight));
        Self { shared, commands }
    }

    /// Does what `command` says. Resolves once that is durable.
    ///
    /// A [`Command::Store`] is not visible before [`Self::confirm`].
    ///
    /// # Errors
    /// [`CatalogError::Refused`] if it does not fit what exists; nothing changed then, and what the refusal is founded
    /// on is durable.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn execute(&self, command: Command) -> Result<Outcome, CatalogError> {
        self.request(Some(command), Settle::ByCaller).await
    }

    /// Stores items that have no bytes outside the catalog. Resolves once they are durable and visible.
    ///
    /// # Errors
    /// As [`Self::execute`]; each item may be refused by itself.
    pub async fn store(&self, store: Store) -> Result<Vec<Result<Stored, Refusal>>, CatalogError> {
        debug_assert!(store.file.is_none(), "bytes in a file are confirmed by whoever writes them");
        match self.request(Some(Command::Store(store)), Settle::OnCommit).await? {
            Outcome::Stored(_, answers) => Ok(answers),
            _ => Ok(vec![]),
        }
    }

    /// Writes whatever confirmations left to be written. Resolves once everything up to now is durable.
    ///
    /// # Errors
    /// [`CatalogError`] if the journal is lost or closed.
    pub async fn sync(&self) -> Result<(), CatalogError> {
        self.request(None, Settle::ByCaller).await.map(|_| ())
    }

    async fn request(&self, command: Option<Command>, settle: Settle) -> Result<Outcome, CatalogError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { command, settle, reply };
        self.commands.send(request).await.map_err(|_| self.gone())?;
        let mut awaited = Awaited { catalog: self, answer };
        (&mut awaited.answer).await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> CatalogError {
        self.shared.lost_error().unwrap_or(CatalogError::Closed)
    }

    /// The bytes of a store and its commit are durable: it is visible from now on.
    pub fn confirm(&self, token: StoreToken) {
        self.shared.change(|state, now| state.confirm(token, now));
    }

    /// The bytes of a store are lost, or nobody knows: it never happened.
    pub fn fail(&self, token: StoreToken) {
        self.shared.change(|state, now| state.fail(token, now));
    }

    /// Does what `command` says at once; the next commit makes it durable, and nobody waits for that. For what is found
    /// again after a crash: that files are gone, that a file takes nothing more.
    ///
    /// # Errors
    /// [`CatalogError::Refused`]; nothing changed then.
    pub fn note(&self, command: Command) -> Result<(), CatalogError> {
        self.shared.change(|state, now| state.apply(command, now))?;
        Ok(())
    }

    /// Tells when there is something to do for those who give space back.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// The same for a store whose bytes were cut off again: its file ends at `len`.
    pub fn fail_at(&self, token: StoreToken, len: u64) {
        self.shared.change(|state, now| state.fail_at(token, len, now));
    }

    /// Workers should not reuse the segments of these files any more, and may reuse those of all others.
    pub fn advise_against(&self, files: &std::collections::BTreeSet<PhysicalFileId>) {
        self.shared.state.write().advise_against(files);
    }

    /// The state as of now. Hold it shortly and never across an await.
    pub fn view(&self) -> RwLockReadGuard<'_, State> {
        self.shared.state.read()
    }

    /// The object under a key. When there is none because it is being deleted, waits until that is durable.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] if this daemon may no longer answer.
    pub async fn object(&self, bucket: &str, key: &str) -> Result<Option<ObjectView>, CatalogError> {
        self.check()?;
        let found = self.view().object(bucket, key);
        if found.is_none() {
            let deleting = self.shared.deleting.lock().get(&(bucket.to_owned(), key.to_owned())).copied();
            self.wait_durable(deleting).await?;
        }
        Ok(found)
    }

    /// One page of a bucket's keys; deletes that it shows are durable.
    ///
    /// # Errors
    /// [`CatalogError`] if there is no such bucket, or this daemon may no longer answer.
    pub async fn list(&self, bucket: &str, query: &ListQuery<'_>) -> Result<ListPage, CatalogError> {
        self.check()?;
        let page = {
            let state = self.view();
            if !state.has_bucket(bucket) {
                return Err(Refusal::NoSuchBucket(bucket.to_owned()).into());
            }
            state.list(bucket, query)
        };
        let deleting = self.shared.deleting.lock().values().max().copied();
        self.wait_durable(deleting).await?;
        Ok(page)
    }

    async fn wait_durable(&self, batch: Option<u64>) -> Result<(), CatalogError> {
        let Some(batch) = batch else { return Ok(()) };
        let mut durable = self.shared.durable.subscribe();
        tokio::select! {
            reached = durable.wait_for(|durable| *durable >= batch) => reached.map(|_| ()).map_err(|_| self.gone()),
            () = self.shared.lost.cancelled() => Err(self.gone()),
        }
    }

    /// The bytes of an inline segment; none if it was freed.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] if the journal does not answer.
    pub async fn inline_data(&self, id: SegmentId) -> Result<Option<Bytes>, CatalogError> {
        let key = RecordKey::Data(id).encode();
        self.shared.journal.get(&key).await.map_err(|error| CatalogError::Lost(Arc::new(error)))
    }

    /// Whether this daemon may still answer.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] with the reason.
    pub fn check(&self) -> Result<(), CatalogError> {
        self.shared.lost_error().map_or(Ok(()), Err)
    }

    /// Asks storage whether this daemon still owns the catalog; costs requests. What was on storage before the call is
    /// seen by every later owner.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] if there is a newer owner, or storage does not tell.
    pub async fn check_owner(&self) -> Result<(), CatalogError> {
        match self.shared.journal.check_owner().await {
            Ok(()) => self.check(),
            Err(error @ (JournalError::Fenced | JournalError::Moved { .. })) => Err(self.shared.lose(error)),
            Err(error) => Err(CatalogError::Lost(Arc::new(error))),
        }
    }

    /// Cancelled when the journal cannot be written any more.
    pub fn lost(&self) -> CancellationToken {
        self.shared.lost.clone()
    }

    /// The epoch of this owner; grows with each.
    pub fn epoch(&self) -> u64 {
        self.shared.journal.epoch()
    }

    /// The time, as the catalog stamps it.
    pub fn now(&self) -> Millis {
        self.shared.clock.now()
    }

    /// The clock behind [`Self::now`], for ages.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Writes what is left and closes the journal.
    ///
    /// # Errors
    /// [`CatalogError`] if something could not be written; everything that was answered is durable all the same.
    pub async fn close(&self) -> Result<(), CatalogError> {
        self.sync().await?;
        self.shared.journal.close().await.map_err(|error| CatalogError::Lost(Arc::new(error)))
    }
}

/// The answer to a request. Dropped before it was taken, a store that it brings would be settled by nobody.
struct Awaited<'a> {
    catalog: &'a Catalog,
    answer: oneshot::Receiver<Result<Outcome, CatalogError>>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        // From here on an answer cannot be sent any more; one that was is looked at.
        self.answer.close();
        if let Ok(Ok(Outcome::Stored(token, _))) = self.answer.try_recv() {
            self.catalog.fail(token);
        }
    }
}

impl Shared {
    /// Changes the state, and tells those who give space back what there is to do.
    fn change<T>(&self, change: impl FnOnce(&mut State, Millis) -> T) -> T {
        let now = self.clock.now();
        let mut state = self.state.write();
        let changed = change(&mut state, now);
        let changes = state.changes();
        drop(state);
        self.tell(changes);
        changed
    }

    fn tell(&self, changes: Changes) {
        self.changes.send_if_modified(|told| {
            // Another thread may have told of later ones meanwhile.
            let before = std::mem::replace(told, changes.max(*told));
            before != *told
        });
    }

    fn lost_error(&self) -> Option<CatalogError> {
        self.lost_because.lock().clone().map(CatalogError::Lost)
    }

    fn lose(&self, error: JournalError) -> CatalogError {
        let error = {
            let mut because = self.lost_because.lock();
            Arc::clone(because.get_or_insert_with(|| Arc::new(error)))
        };
        if !self.lost.is_cancelled() {
            tracing::error!(error = crate::error::chain(&*error), "the catalog is lost, nothing is answered any more");
            self.lost.cancel();
        }
        CatalogError::Lost(error)
    }

    /// Applies requests in order; what they changed, and what confirmations changed since, is one batch.
    fn apply(&self, requests: &mut Vec<Request>) -> (u64, Pieces, Vec<Answer>) {
        let number = self.applied.load(Ordering::Relaxed) + 1;
        let now = self.clock.now();
        let mut state = self.state.write();
        let mut answers = Vec::with_capacity(requests.len());
        let mut pieces = Pieces::default();
        pieces.add(state.take_mutations());
        for Request { command, settle, reply } in requests.drain(..) {
            if let Some(Command::DeleteObjects(bucket, objects)) = &command {
                let mut deleting = self.deleting.lock();
                deleting.extend(objects.iter().map(|object| ((bucket.clone(), object.key.clone()), number)));
            }
            let outcome = command.map_or(Ok(Outcome::Done), |command| state.apply(command, now));
            pieces.add(state.take_mutations());
            answers.push(Answer { outcome, settle, reply });
        }
        self.applied.store(number, Ordering::Relaxed);
        let changes = state.changes();
        drop(state);
        self.tell(changes);
        (number, pieces, answers)
    }

    /// Writes the pieces of a batch in order. Returns the commit of the last one, with which all are durable.
    async fn write(&self, pieces: Pieces, haste: Haste) -> Result<Option<Commit>, JournalError> {
        let mut commit = None;
        for piece in pieces.all {
            commit = Some(self.journal.write(piece, haste).await?);
        }
        Ok(commit)
    }
}

/// The changes of a batch. Those of one command stand in one piece, unless they are more than a piece takes.
#[derive(Default)]
struct Pieces {
    all: Vec<Vec<record::Mutation>>,
    /// Bytes of the last piece.
    bytes: usize,
}

impl Pieces {
    fn add(&mut self, mutations: Vec<record::Mutation>) {
        let bytes: usize = mutations.iter().map(record::Mutation::weight).sum();
        if self.bytes + bytes <= PIECE_BYTES_MAX {
            self.append(mutations, bytes);
            return;
        }
        self.bytes = PIECE_BYTES_MAX;
        for mutation in mutations {
            let len = mutation.weight();
            self.append(vec![mutation], len);
        }
    }

    /// Bytes of all pieces.
    fn weight(&self) -> u64 {
        self.all.iter().flatten().map(|mutation| mutation.weight() as u64).sum()
    }

    fn append(&mut self, mutations: Vec<record::Mutation>, bytes: usize) {
        if mutations.is_empty() {
            return;
        }
        match self.all.last_mut() {
            Some(last) if self.bytes + bytes <= PIECE_BYTES_MAX => {
                last.extend(mutations);
                self.bytes += bytes;
            }
            _ => {
                self.all.push(mutations);
                self.bytes = bytes;
            }
        }
    }
}

/// Notices that the journal has ended, though nobody writes. Does not keep it open.
async fn watch(shared: Weak<Shared>, ended: impl Future<Output = Option<JournalError>>) {
    if let (Some(error), Some(shared)) = (ended.await, shared.upgrade()) {
        shared.lose(error);
    }
}

/// The owner: applies commands and writes batches, in order.
async fn own(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Request>, batches: mpsc::Sender<Batch>, metrics: Metrics) {
    let mut waiting = VecDeque::with_capacity(BATCH_COMMANDS_MAX);
    let mut requests = Vec::with_capacity(BATCH_COMMANDS_MAX);
    while next_batch(&mut inbox, &mut waiting, &mut requests).await {
        if let Some(error) = shared.lost_error() {
            requests.drain(..).for_each(|request| drop(request.reply.send(Err(error.clone()))));
            continue;
        }
        let haste = haste(&requests);
        let (number, pieces, answers) = shared.apply(&mut requests);
        metrics.commits.inc_by(pieces.all.len() as u64);
        metrics.committed_bytes.inc_by(pieces.weight());
        let commit = match shared.write(pieces, haste).await {
            Ok(commit) => commit,
            Err(error) => {
                let error = shared.lose(error);
                answers.into_iter().for_each(|answer| drop(answer.reply.send(Err(error.clone()))));
                continue;
            }
        };
        if batches.send(Batch { number, commit, answers }).await.is_err() {
            return;
        }
    }
}

/// Moves into `requests` what shares the next batch: all that has collected, up to a number of bytes. False at
/// the end.
async fn next_batch(
    inbox: &mut mpsc::Receiver<Request>,
    waiting: &mut VecDeque<Request>,
    requests: &mut Vec<Request>,
) -> bool {
    if waiting.is_empty() {
        let mut collected = Vec::new();
        inbox.recv_many(&mut collected, BATCH_COMMANDS_MAX).await;
        waiting.extend(collected);
    }
    let mut bytes = 0;
    while let Some(request) = waiting.pop_front() {
        bytes += request.command.as_ref().map_or(0, Command::weight);
        requests.push(request);
        if bytes > BATCH_BYTES_MAX {
            break;
        }
    }
    !requests.is_empty()
}

/// A store has waited for company already, and its bytes are on their way; a delete or a change of a checkpoint can wait.
fn haste(requests: &[Request]) -> Haste {
    let urgent = |request: &Request| matches!(request.command, None | Some(Command::Store(_)));
    if requests.iter().any(urgent) { Haste::Now } else { Haste::Soon }
}

/// Waits for each batch to become durable, then answers its requests.
async fn answer(shared: Arc<Shared>, mut in_flight: mpsc::Receiver<Batch>) {
    while let Some(Batch { number, commit, answers }) = in_flight.recv().await {
        let durable = match commit {
            Some(commit) => commit.durable().await,
            None => Ok(()),
        };
        let error = match durable {
            Ok(()) => shared.lost_error(),
            Err(error) => Some(shared.lose(error)),
        };
        for Answer { outcome, settle, reply } in answers {
            if error.is_none()
                && settle == Settle::OnCommit
                && let Ok(Outcome::Stored(token, _)) = &outcome
            {
                shared.change(|state, now| state.confirm(*token, now));
            }
            let answer = match &error {
                Some(error) => Err(error.clone()),
                None => outcome.map_err(CatalogError::Refused),
            };
            // Nobody waits for the answer of a request that was given up; so nobody would settle what it stored.
            if let Err(Ok(Outcome::Stored(token, _))) = reply.send(answer) {
                shared.change(|state, now| state.fail(token, now));
            }
        }
        if error.is_none() {
            shared.durable.send_replace(number);
            shared.deleting.lock().retain(|_, batch| *batch > number);
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::command::{About, Bind, Item, NewSegment};
    use super::slate::{JournalSettings, Placement};
    use super::*;
    use crate::model::{CheckpointId, JobId, Location, SegmentCrc, StateScope, Writer};

    fn a_megabyte(number: u128, job: &JobId) -> Store {
        let data = Bytes::from(vec![number as u8; 1 << 20]);
        let about = About {
            job: job.clone(),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(1)),
            name: None,
        };
        let segment = NewSegment {
            id: SegmentId(number),
            about,
            location: Location::Inline { len: data.len() as u64 },
            crc: SegmentCrc::of(&data),
            inline: Some(data),
        };
        Store {
            file: None,
            items: vec![Item { segments: vec![segment], bind: Bind::Checkpoint { idempotency_key: None } }],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn more_bytes_at_once_than_a_batch_takes_are_several_batches() {
        let placement = Placement::Object { store: Arc::new(InMemory::new()), prefix: Path::from("catalog") };
        let visit = |_, _| Ok::<(), std::convert::Infallible>(());
        let journal = Journal::open(placement, JournalSettings::default(), visit).await.unwrap();
        let tasks = TaskGroup::new(CancellationToken::new());
        let metrics = Metrics::new();
        let catalog = Catalog::start(State::default(), journal, Clock::System, &metrics, &tasks);
        let job: JobId = "a-job".parse().unwrap();
        catalog.execute(Command::CreateJob(job.clone())).await.unwrap();

        let stores = (0..100).map(|number| catalog.store(a_megabyte(number, &job)));
        let stored = futures::future::try_join_all(stores).await.unwrap();

        assert!(stored.iter().flatten().all(Result::is_ok));
        assert_eq!(catalog.inline_data(SegmentId(99)).await.unwrap().map(|data| data.len()), Some(1 << 20));
    }

    /// Segments whose records are large: as many small ones would take minutes.
    fn large_records(numbers: std::ops::Range<u128>, job: &JobId) -> Store {
        let mut store = Store { file: None, items: vec![] };
        for number in numbers {
            let mut item = a_megabyte(number, job).items.remove(0);
            let segment = &mut item.segments[0];
            segment.location = Location::Inline { len: 1 };
            segment.inline = Some(Bytes::from_static(b"x"));
            segment.crc = SegmentCrc { whole: 1, blocks: vec![u32::MAX; 20_000].into() };
            store.items.push(item);
        }
        store
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_changes_more_than_the_journal_takes_at_once_is_written_in_pieces() {
        let store: Arc<InMemory> = Arc::default();
        let placement = || Placement::Object { store: store.clone(), prefix: Path::from("catalog") };
        let visit = |_, _| Ok::<(), std::convert::Infallible>(());
        let journal = Journal::open(placement(), JournalSettings::default(), visit).await.unwrap();
        let tasks = TaskGroup::new(CancellationToken::new());
        let catalog = Catalog::start(State::default(), journal, Clock::System, &Metrics::new(), &tasks);
        let (old, new): (JobId, JobId) = ("old".parse().unwrap(), "new".parse().unwrap());
        catalog.execute(Command::CreateJob(old.clone())).await.unwrap();
        for from in (0..1000).step_by(50) {
            catalog.store(large_records(from..from + 50, &old)).await.unwrap();
        }
        catalog.execute(Command::CompleteCheckpoint(old.clone(), CheckpointId(1))).await.unwrap();

        let claim = command::Claim::Claim;
        let restore = command::Restore { job: new.clone(), from: old, checkpoint: CheckpointId(1), claim };
        catalog.execute(Command::Restore(restore)).await.unwrap();

        catalog.close().await.unwrap();
        let mut state = State::default();
        Journal::open(placement(), JournalSettings::default(), |key, value: Bytes| state.load(&key, &value))
            .await
            .unwrap();
        assert_eq!(state.check(), Vec::<String>::new());
        assert_eq!(state.checkpoint_segments(&new, CheckpointId(1)).len(), 1000);
    }
}
