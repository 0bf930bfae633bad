//! Everything that exists: segments, physical files, jobs, checkpoints, S3 objects. State in memory, log in SlateDB.
//!
//! [`state::CatalogState`] decides; it is a plain state machine behind a lock that is held shortly. One owner
//! task takes [`Command`]s in the order of their arrival, applies what has collected, and writes all that as one
//! batch to the [`slate::Journal`]; a second task waits for the batches to become durable, in order, and answers.
//! So commands that arrive while a batch is being synced share the next one. On an object store, where a batch is a
//! request, those that store nothing wait some milliseconds for each other, and lazy ones are answered at once and become
//! durable with whatever comes next (module `lazy`); deletes may be noted on a local disk before ([`ledger`]). A command that
//! changes more than the journal takes at once is written in pieces: [`state`] orders its changes so that a crash between them
//! does no harm.
//!
//! A command that frees or hands over many segments, such as the end of a job or a claim, says at once what it means; its
//! segments follow a few at a time between other commands, and it is answered when that is done and durable. Claims wait for
//! what is left of earlier commands. So commands and questions hold the lock for half of a millisecond at a time, whatever the
//! size of the catalog (module `hold`); only an upload that ends is dealt with at once, with all of its parts.
//!
//! # What may be read, and when
//! - Nobody outside holds the lock: what can be asked is a question ([`questions`]), answered with values.
//! - New things become visible by [`Catalog::confirm`], which is called when their commit and their bytes are durable.
//! - Deleted things disappear at once; whoever finds nothing under a key that was just deleted waits until the delete
//!   is durable ([`Catalog::object`]), so that what was seen to be gone stays gone. Lazy deletes are the exception.
//!
//! # Crash
//! The journal holds a prefix of the batches, among them every one that was answered as durable.
//! [`state::CatalogState::uncertain_files`] names the files whose bytes have to be looked at before the first answer; `engine`
//! does that.
//!
//! # Two daemons
//! The second one to open the journal shuts the first one out: its next commit fails, [`Catalog::lost`] is cancelled,
//! and nothing is answered any more. One that commits nothing notices within `catalog.poll-interval`; until then it may
//! answer reads of what was there. What it answers lazily was never done, and its flush after
//! [`slate::CompanyWait::lazy`] tells it so. Whoever makes something durable without a commit after it has to ask
//! [`Catalog::check_owner`] if the successor may have given it up meanwhile.

pub mod anchor;
pub mod command;
mod hold;
mod lazy;
pub mod ledger;
pub mod log;
pub mod mutation;
mod noted;
mod owner;
pub mod questions;
mod record;
pub mod save;
mod shared;
pub mod slate;
pub mod state;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::metrics::writes::WriteKind;
use crate::model::{Millis, PhysicalFileId, SegmentId};
use crate::runtime::{Clock, Failure, TaskGroup};
use command::{Command, DeleteReach, ObjectToDelete, Outcome, Refusal, Store, StoreToken, Stored};
use ledger::{DeletedObject, Ledger};
pub use record::RecordError;
use record::RecordKey;
pub use shared::CatalogError;
use shared::{Batch, CatalogShared, PendingReply, QueuedCommand, Settle};
use slate::{Journal, JournalError, JournalKind};
use state::{CatalogState, Changes, ListPage, ListQuery, ObjectView};

/// Commands that may wait for the owner.
const COMMANDS_MAX: usize = 4096;
/// Batches that may wait for durability.
const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// A handle to the catalog. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    shared: Arc<CatalogShared>,
    commands: mpsc::Sender<QueuedCommand>,
    has_ledger: bool,
}

crate::runtime::opaque_debug!(Catalog);

impl Catalog {
    /// Starts the owner of `state`, which was loaded from `journal` and settled.
    pub fn start(state: CatalogState, journal: Journal, clock: Clock, metrics: &Metrics, tasks: &TaskGroup) -> Self {
        Self::start_with(state, journal, None, clock, metrics, tasks)
    }

    /// The same with a ledger in which deletes are noted.
    pub fn start_with(
        state: CatalogState,
        journal: Journal,
        ledger: Option<Ledger>,
        clock: Clock,
        metrics: &Metrics,
        tasks: &TaskGroup,
    ) -> Self {
        let changes = state.changes();
        let shared = Arc::new(CatalogShared {
            state: RwLock::new(state),
            journal,
            clock,
            lost: CancellationToken::new(),
            lost_because: Mutex::default(),
            proven: AtomicU64::new(0),
            durable: watch::Sender::new(0),
            applied: AtomicU64::new(0),
            changes: watch::Sender::new(changes),
            deleting: Mutex::default(),
            closing: AtomicBool::new(false),
            recounting: Mutex::default(),
        });
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (batches, in_flight) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
        let ended = shared.journal.ended();
        tasks.spawn("catalog-watch", Failure::StopsTheDaemon, watch(Arc::downgrade(&shared), ended));
        let has_ledger = ledger.is_some();
        let noting = ledger.map(|ledger| {
            let (noting, noted) = mpsc::channel(COMMANDS_MAX);
            let keep = noted::keep(ledger, Arc::clone(&shared), noted, metrics.clone());
            tasks.spawn("delete-ledger", Failure::StopsTheDaemon, keep);
            noting
        });
        tasks.spawn(
            "catalog-owner",
            Failure::StopsTheDaemon,
            owner::own(Arc::clone(&shared), inbox, batches, noting, metrics.clone()),
        );
        tasks.spawn(
            "catalog-answers",
            Failure::StopsTheDaemon,
            answer(Arc::clone(&shared), in_flight, metrics.clone()),
        );
        Self { shared, commands, has_ledger }
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
        self.store_settled(store, Settle::OnCommit).await
    }

    /// Whether a commit is a request, so that what need not be durable at once may wait for another one.
    pub fn commits_cost_requests(&self) -> bool {
        self.shared.journal.kind() == JournalKind::Object
    }

    /// Stores items that have no bytes outside the catalog, and resolves once they are visible: they become durable with the
    /// next commit of anything, and after [`slate::CompanyWait::lazy`] at the latest. A crash before that undoes it, but
    /// nothing that was answered as durable after it. Where commits cost no requests they are durable at once.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub async fn store_lazily(&self, store: Store) -> Result<Vec<Result<Stored, Refusal>>, CatalogError> {
        self.store_settled(store, self.lazily()).await
    }

    /// Deletes objects, each with what that has to reach. Resolves once all that were there have reached it: those that were
    /// not there are no reason to wait, unless their delete is on its way. Without a ledger, or where commits cost no requests, more is
    /// reached than was asked for.
    ///
    /// # Errors
    /// As [`Self::execute`]; each may be refused by itself.
    pub async fn delete_objects(
        &self,
        bucket: &str,
        objects: Vec<(ObjectToDelete, DeleteReach)>,
    ) -> Result<Outcome, CatalogError> {
        let (objects, mut reaches): (Vec<_>, Vec<_>) = objects.into_iter().unzip();
        for reach in &mut reaches {
            *reach = match *reach {
                DeleteReach::Memory if !self.commits_cost_requests() => DeleteReach::Storage,
                DeleteReach::Ledger if !self.has_ledger => DeleteReach::Storage,
                reach => reach,
            };
        }
        let settle = reaches.iter().max().map_or(Settle::OnCommit, |most| Settle::of_delete(*most));
        self.queue(Some(Command::DeleteObjects(bucket.to_owned(), objects)), settle, reaches).await
    }

    /// Deletes objects again that an earlier owner has noted as deleted, if they are the same. Resolves with their number once
    /// that is durable.
    ///
    /// # Errors
    /// [`CatalogError`] if the journal is lost or closed.
    pub async fn delete_again(&self, deleted: &[DeletedObject]) -> Result<usize, CatalogError> {
        let mut doomed: BTreeMap<&str, BTreeMap<&str, ObjectToDelete>> = BTreeMap::new();
        {
            let state = self.view();
            for DeletedObject { bucket, key, etag, modified, first } in deleted {
                let Some(view) = state.object(bucket, key) else { continue };
                let same = view.head().etag == *etag && view.head().modified == *modified;
                if same && view.segments().first() == first.as_ref() {
                    let (if_match, if_put_at) = (Some(etag.clone()), Some(*modified));
                    let object = ObjectToDelete { key: key.clone(), if_match, if_put_at };
                    doomed.entry(bucket).or_default().insert(key, object);
                }
            }
        }
        let mut number = 0;
        for (bucket, objects) in doomed {
            let objects: Vec<_> = objects.into_values().collect();
            if let Outcome::Deleted(answers) = self.execute(Command::DeleteObjects(bucket.to_owned(), objects)).await? {
                number += answers.iter().filter(|answer| answer.is_ok()).count();
            }
        }
        Ok(number)
    }

    fn lazily(&self) -> Settle {
        if self.commits_cost_requests() { Settle::Lazily } else { Settle::OnCommit }
    }

    async fn store_settled(&self, store: Store, settle: Settle) -> Result<Vec<Result<Stored, Refusal>>, CatalogError> {
        debug_assert!(store.file.is_none(), "bytes in a file are confirmed by whoever writes them");
        match self.request(Some(Command::Store(store)), settle).await? {
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
        self.queue(command, settle, vec![]).await
    }

    async fn queue(
        &self,
        command: Option<Command>,
        settle: Settle,
        reaches: Vec<DeleteReach>,
    ) -> Result<Outcome, CatalogError> {
        let (reply, answer) = oneshot::channel();
        let request = QueuedCommand { command, settle, reaches, reply };
        self.commands.send(request).await.map_err(|_| self.gone())?;
        let mut awaited = Awaited { catalog: self, answer };
        (&mut awaited.answer).await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> CatalogError {
        self.shared.lost_error().unwrap_or(CatalogError::Closed)
    }

    /// The bytes of a store and its commit are durable: it is visible from now on.
    pub fn confirm(&self, token: StoreToken) {
        self.shared.confirm(token);
    }

    /// The bytes of a store are lost, or nobody knows: it never happened.
    pub fn fail(&self, token: StoreToken) {
        self.shared.fail(token, None);
    }

    /// Does what `command` says at once; the next commit makes it durable, and nobody waits for that. For what is found
    /// again after a crash: that files are gone, that a file takes nothing more.
    ///
    /// # Errors
    /// [`CatalogError::Refused`]; nothing changed then.
    pub fn note(&self, command: Command) -> Result<(), CatalogError> {
        self.shared.change(|state, now| state.begin(command, now))?;
        Ok(())
    }

    /// Tells when there is something to do for those who give space back.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// The same for a store whose bytes were cut off again: its file ends at `len`.
    pub fn fail_at(&self, token: StoreToken, len: u64) {
        self.shared.fail(token, Some(len));
    }

    /// Workers should not reuse the segments of these files any more, and may reuse those of all others.
    pub fn advise_against(&self, files: &std::collections::BTreeSet<PhysicalFileId>) {
        let mut next = 0;
        while !self.shared.change(|state, _| state.advise_against_some(files, &mut next)) {}
    }

    /// The state as of now. Hold it shortly and never across an await; outside the catalog, ask [`questions`].
    pub(in crate::catalog) fn view(&self) -> RwLockReadGuard<'_, CatalogState> {
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
            // After the look at the state: a delete enters the key here before the state forgets it, so it cannot be
            // missed.
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
        if !self.has_bucket(bucket) {
            return Err(Refusal::NoSuchBucket(bucket.to_owned()).into());
        }
        let mut page = ListPage::default();
        self.in_pieces(|state, goes_on| state.list_on(bucket, query, &mut page, goes_on).then_some(()));
        // After the page was made: every delete that it shows was entered before.
        let deleting = self.shared.deleting.lock().values().max().copied();
        self.wait_durable(deleting).await?;
        Ok(page)
    }

    async fn wait_durable(&self, batch: Option<u64>) -> Result<(), CatalogError> {
        let Some(batch) = batch else { return Ok(()) };
        // `wait_for` looks at the present value first, so a batch that became durable meanwhile is not missed.
        let mut durable = self.shared.durable.subscribe();
        tokio::select! {
            reached = durable.wait_for(|durable| *durable >= batch) => reached.map(|_| ()).map_err(|_| self.gone()),
            () = self.shared.lost.cancelled() => Err(self.gone()),
        }
    }

    /// The bytes of an inline segment; `None` if it was freed.
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

    /// Whether there is memory for more than there is. Whoever receives a body asks before.
    ///
    /// # Errors
    /// [`Refusal::CatalogFull`].
    pub fn check_room(&self) -> Result<(), Refusal> {
        self.shared.state.read().has_room()
    }

    /// Bytes of memory that the catalog takes, about, and those that it may take; 0 is no limit.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let state = self.shared.state.read();
        (state.memory_bytes(), state.memory_bound().unwrap_or(0))
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

    /// The number of segments that there are.
    pub fn segment_count(&self) -> usize {
        self.shared.state.read().segment_count()
    }

    /// When the last commit began that is durable, in milliseconds since the machine's boot; 0 before the first. On an object
    /// store no other owner had opened the catalog by then: its log is written under names that can be created once.
    pub fn last_commit(&self) -> u64 {
        self.shared.proven.load(Ordering::Acquire)
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

    /// Writes what has changed and closes the journal. What is left of commands that free or hand over many segments is left
    /// to the next start, and they are not answered.
    ///
    /// # Errors
    /// [`CatalogError`] if something could not be written; everything that was answered is durable all the same.
    pub async fn close(&self) -> Result<(), CatalogError> {
        // Before the last batch, so that none comes after it.
        self.shared.closing.store(true, Ordering::Relaxed);
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

/// Notices that the journal has ended, though nobody writes. Does not keep it open.
async fn watch(shared: Weak<CatalogShared>, ended: impl Future<Output = Option<JournalError>>) {
    if let (Some(error), Some(shared)) = (ended.await, shared.upgrade()) {
        let told = shared.journal.failure().await;
        shared.lose(told.unwrap_or(error));
    }
}

/// Waits for each batch to become durable, then answers its requests.
async fn answer(shared: Arc<CatalogShared>, mut in_flight: mpsc::Receiver<Batch>, metrics: Metrics) {
    while let Some(Batch { number, commit, answers }) = in_flight.recv().await {
        let durable = match commit {
            Some(commit) => {
                let _waits = metrics.writes().begin(WriteKind::CommitDurable, Clock::instant());
                let durable = commit.durable().await;
                if durable.is_ok() {
                    let begun = u64::try_from(commit.begun().as_millis()).unwrap_or_default();
                    shared.proven.fetch_max(begun, Ordering::Release);
                }
                durable
            }
            None => Ok(()),
        };
        // Once the catalog is lost, not even a durable commit is answered: a successor decides what exists.
        let error = match durable {
            Ok(()) => shared.lost_error(),
            Err(error) => Some(shared.lose(error)),
        };
        for PendingReply { outcome, settle, reply } in answers {
            if error.is_none()
                && settle != Settle::ByCaller
                && let Ok(Outcome::Stored(token, _)) = &outcome
            {
                // Before the answer: whoever is told that it is stored finds it.
                shared.confirm(*token);
            }
            let answer = match &error {
                Some(error) => Err(error.clone()),
                None => outcome.map_err(CatalogError::Refused),
            };
            // Nobody waits for the answer of a request that was given up; so nobody would settle what it stored.
            if let Err(Ok(Outcome::Stored(token, _))) = reply.send(answer) {
                shared.fail(token, None);
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

    use super::command::{Bind, NewSegment, StoreItem};
    use super::slate::JournalSettings;
    use super::*;
    use crate::model::{About, CheckpointId, JobId, Location, SegmentCrc, StateScope, Writer};
    use crate::store::{Capabilities, Placement};

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
            items: vec![StoreItem {
                segments: vec![segment],
                bind: Bind::Checkpoint { idempotency_key: None, run: None },
            }],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn more_bytes_at_once_than_a_batch_takes_are_several_batches() {
        let placement = Placement::Object {
            store: Arc::new(InMemory::new()),
            prefix: Path::from("catalog"),
            can: Capabilities::OBJECT,
            log: None,
        };
        let visit = |_, _| Ok::<(), std::convert::Infallible>(());
        let journal = Journal::open(placement, JournalSettings::default(), visit).await.unwrap();
        let tasks = TaskGroup::new(CancellationToken::new());
        let metrics = Metrics::new();
        let catalog = Catalog::start(CatalogState::default(), journal, Clock::System, &metrics, &tasks);
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
        let placement = || Placement::Object {
            store: Arc::<InMemory>::clone(&store),
            prefix: Path::from("catalog"),
            can: Capabilities::OBJECT,
            log: None,
        };
        let visit = |_, _| Ok::<(), std::convert::Infallible>(());
        let journal = Journal::open(placement(), JournalSettings::default(), visit).await.unwrap();
        let tasks = TaskGroup::new(CancellationToken::new());
        let catalog = Catalog::start(CatalogState::default(), journal, Clock::System, &Metrics::new(), &tasks);
        let (old, new): (JobId, JobId) = ("old".parse().unwrap(), "new".parse().unwrap());
        catalog.execute(Command::CreateJob(old.clone())).await.unwrap();
        for from in (0..1000).step_by(50) {
            catalog.store(large_records(from..from + 50, &old)).await.unwrap();
        }
        catalog.execute(Command::CompleteCheckpoint(old.clone(), CheckpointId(1))).await.unwrap();

        let claim = crate::model::Claim::Claim;
        let restore = command::RestorePoint { job: new.clone(), from: old, checkpoint: CheckpointId(1), claim };
        catalog.execute(Command::Restore(restore)).await.unwrap();

        catalog.close().await.unwrap();
        let mut state = CatalogState::default();
        Journal::open(placement(), JournalSettings::default(), |key, value: Bytes| state.load(&key, &value))
            .await
            .unwrap();
        assert_eq!(state.check(), Vec::<String>::new());
        assert_eq!(state.checkpoint_segments(&new, CheckpointId(1)).len(), 1000);
    }
}
