//! The owner: applies commands and writes batches, in order.
//!
//! Between batches it does what earlier commands have left: short pieces, as long as no other command waits. What they change
//! is written with the next batch, or as one of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::command::{Command, Move, Outcome, Refusal, Store};
use super::hold::WriteHold;
use super::mutation::Mutation;
use super::shared::{Batch, CatalogError, CatalogShared, PendingReply, QueuedCommand};
use super::slate::{Commit, Haste, JournalError};
use crate::metrics::Metrics;
use crate::model::Millis;
use crate::runtime::{Clock, reply};

/// Commands that share a batch at most.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes after which a batch takes no more commands; with one more command the journal still takes it.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes that are written to the journal at once; it takes 64 MiB.
const PIECE_BYTES_MAX: usize = 48 << 20;
/// Things of one command that are done before others are let in.
const STEP: usize = 64;
/// Objects, which may have many segments each.
const OBJECTS_STEP: usize = 4;
/// Work on what earlier commands have left that shares a batch: a larger one would keep the journal from those that wait.
const WORK_BYTES_MAX: usize = 256 << 10;
const WORK_TIME_MAX: Duration = Duration::from_millis(5);

/// The owner's own state.
struct CatalogOwner {
    shared: Arc<CatalogShared>,
    waiting: VecDeque<QueuedCommand>,
    requests: Vec<QueuedCommand>,
    /// Commands that wait until nothing is left of earlier ones, and what waits behind them.
    deferred: VecDeque<QueuedCommand>,
    /// Answers that wait until as many pieces of work are done.
    held: VecDeque<(u64, PendingReply)>,
}

/// Takes commands until there are no more.
pub(super) async fn own(
    shared: Arc<CatalogShared>,
    mut inbox: mpsc::Receiver<QueuedCommand>,
    batches: mpsc::Sender<Batch>,
    metrics: Metrics,
) {
    let (waiting, requests) = (VecDeque::new(), Vec::with_capacity(BATCH_COMMANDS_MAX));
    let mut owner = CatalogOwner { shared, waiting, requests, deferred: VecDeque::new(), held: VecDeque::new() };
    while owner.next_batch(&mut inbox).await {
        // Before the state changes: what is applied from here on would never be durable.
        if let Some(error) = owner.shared.lost_error() {
            owner.give_up(&error);
            continue;
        }
        let haste = owner.haste();
        let (number, pieces, answers) = owner.apply(|| !inbox.is_empty());
        if pieces.all.is_empty() && answers.is_empty() {
            continue;
        }
        metrics.commits.inc_by(pieces.all.len() as u64);
        metrics.committed_bytes.inc_by(pieces.weight());
        let commit = match owner.shared.write(pieces, haste).await {
            Ok(commit) => commit,
            Err(error) => {
                let error = owner.shared.lose(error);
                answers.into_iter().for_each(|answer| reply(answer.reply, Err(error.clone())));
                owner.give_up(&error);
                continue;
            }
        };
        let full = match batches.try_send(Batch { number, commit, answers }) {
            Ok(()) => continue,
            Err(TrySendError::Full(batch)) => batch,
            Err(TrySendError::Closed(_)) => return,
        };
        // All of them may be waiting for deletes that come behind this one, and whoever is in a hurry waits behind it, too.
        owner.shared.journal.hurry();
        if batches.send(full).await.is_err() {
            return;
        }
    }
}

impl CatalogOwner {
    /// Moves into `requests` what shares the next batch: all that has collected, up to a number of bytes; perhaps nothing
    /// while there is something else to do. False at the end.
    async fn next_batch(&mut self, inbox: &mut mpsc::Receiver<QueuedCommand>) -> bool {
        if self.shared.closing.load(Ordering::Relaxed) {
            // They are told that the catalog is closed.
            self.deferred.clear();
            self.held.clear();
        }
        // Answers that are held are given up as soon as the catalog is lost, whether or not anything else comes.
        let busy = self.has_work() || !self.deferred.is_empty() || !self.held.is_empty();
        if busy {
            tokio::task::yield_now().await;
        }
        if self.waiting.is_empty() {
            let mut collected = Vec::new();
            if busy {
                collected.extend(std::iter::from_fn(|| inbox.try_recv().ok()).take(BATCH_COMMANDS_MAX));
            } else {
                inbox.recv_many(&mut collected, BATCH_COMMANDS_MAX).await;
            }
            self.waiting.extend(collected);
        }
        let mut bytes = 0;
        while let Some(request) = self.waiting.pop_front() {
            bytes += request.command.as_ref().map_or(0, Command::weight);
            self.requests.push(request);
            if bytes > BATCH_BYTES_MAX {
                break;
            }
        }
        busy || !self.requests.is_empty()
    }

    /// Whether something is left of earlier commands that is to be done now.
    fn has_work(&self) -> bool {
        let given_up = self.shared.closing.load(Ordering::Relaxed) || self.shared.lost.is_cancelled();
        !given_up && !self.shared.state.read().is_idle()
    }

    /// A store has waited for company already, and its bytes are on their way; a change of a checkpoint can wait, and deletes
    /// longer, unless others are with them.
    fn haste(&self) -> Haste {
        let urgent = |request: &QueuedCommand| matches!(request.command, None | Some(Command::Store(_)));
        let delete = |request: &QueuedCommand| matches!(request.command, Some(Command::DeleteObjects(..)));
        let nothing_else = self.deferred.is_empty() && self.held.is_empty();
        if self.requests.iter().any(urgent) {
            Haste::Now
        } else if nothing_else && !self.requests.is_empty() && self.requests.iter().all(delete) {
            Haste::Deletes(self.requests.len())
        } else {
            Haste::Soon
        }
    }

    fn give_up(&mut self, error: &CatalogError) {
        let requests = self.requests.drain(..).chain(self.deferred.drain(..));
        let replies = requests.map(|request| request.reply);
        let held = self.held.drain(..).map(|(_, answer)| answer.reply);
        replies.chain(held).for_each(|waiting| reply(waiting, Err(error.clone())));
    }

    /// Applies requests in order, and does some of what is left of earlier ones unless somebody waits; what that changed, and
    /// what confirmations changed since, is one batch.
    fn apply(&mut self, somebody_waits: impl Fn() -> bool) -> (u64, JournalPieces, Vec<PendingReply>) {
        let shared = Arc::clone(&self.shared);
        let number = shared.applied.load(Ordering::Relaxed) + 1;
        let now = shared.clock.now();
        let mut writing = WriteHold::begin(shared.state.write());
        let mut answers = Vec::with_capacity(self.requests.len());
        let mut pieces = JournalPieces::default();
        // Confirmations and notes since the last batch come first: the commands below build on them.
        pieces.add(writing.state.take_mutations());
        let requests: Vec<QueuedCommand> = self.deferred.drain(..).chain(self.requests.drain(..)).collect();
        for request in requests {
            if request.command.as_ref().is_some_and(|command| self.has_to_wait(command, &writing)) {
                self.deferred.push_back(request);
                continue;
            }
            let QueuedCommand { command, settle, reply } = request;
            if let Some(Command::DeleteObjects(bucket, objects)) = &command {
                // Under the state's lock, before the state forgets them: a reader that finds nothing finds the key here.
                let mut deleting = shared.deleting.lock();
                deleting.extend(objects.iter().map(|object| ((bucket.clone(), object.key.clone()), number)));
            }
            let (before, _) = writing.state.work_counts();
            let outcome = command.map_or(Ok(Outcome::Done), |command| carry_out(&mut writing, command, now));
            pieces.add(writing.state.take_mutations());
            let (added, ended) = writing.state.work_counts();
            let answer = PendingReply { outcome, settle, reply };
            if added > before.max(ended) {
                self.held.push_back((added, answer));
            } else {
                answers.push(answer);
            }
            writing.breathe();
        }
        if self.has_turn(&writing) {
            work(&mut writing, &mut pieces, now, somebody_waits);
        }
        let (_, ended) = writing.state.work_counts();
        while let Some((_, answer)) = self.held.pop_front_if(|(work, _)| *work <= ended) {
            answers.push(answer);
        }
        shared.applied.store(number, Ordering::Relaxed);
        let changes = writing.state.changes();
        drop(writing);
        shared.tell(changes);
        (number, pieces, answers)
    }

    /// Some commands wait until nothing is left of earlier ones; what would leave more waits behind them, so that they have
    /// their turn.
    fn has_to_wait(&self, command: &Command, writing: &WriteHold<'_>) -> bool {
        writing.state.waits_for_work(command) || command.leaves_work() && !self.deferred.is_empty()
    }

    fn has_turn(&self, writing: &WriteHold<'_>) -> bool {
        !writing.state.is_idle() && !self.shared.closing.load(Ordering::Relaxed)
    }
}

/// Does some of what is left of earlier commands.
fn work(writing: &mut WriteHold<'_>, pieces: &mut JournalPieces, now: Millis, somebody_waits: impl Fn() -> bool) {
    let begun = Clock::instant();
    let mut bytes = 0;
    while !writing.state.is_idle() && bytes < WORK_BYTES_MAX && begun.elapsed() < WORK_TIME_MAX {
        writing.work(now);
        let mutations = writing.state.take_mutations();
        bytes += mutations.iter().map(Mutation::weight).sum::<usize>();
        pieces.add(mutations);
        writing.breathe();
        if somebody_waits() {
            break;
        }
    }
}

/// Does what `command` says; of many things some at a time. Nothing else is applied in between.
fn carry_out(writing: &mut WriteHold<'_>, command: Command, now: Millis) -> Result<Outcome, Refusal> {
    match command {
        Command::Store(store) if store.items.len() > STEP => Ok(store_in_steps(writing, store, now)),
        Command::Move(moved) if moved.segments.len() > STEP => Ok(move_in_steps(writing, moved, now)),
        Command::DeleteObjects(bucket, objects) if objects.len() > OBJECTS_STEP => {
            let mut all = Vec::with_capacity(objects.len());
            for some in objects.chunks(OBJECTS_STEP) {
                let command = Command::DeleteObjects(bucket.clone(), some.to_vec());
                if let Outcome::Deleted(answers) = writing.state.begin(command, now)? {
                    all.extend(answers);
                }
                writing.breathe();
            }
            Ok(Outcome::Deleted(all))
        }
        Command::Reuse(job, id, segments) if segments.len() > STEP => {
            let mut all = vec![];
            for some in segments.chunks(STEP) {
                let command = Command::Reuse(job.clone(), id, some.to_vec());
                if let Outcome::Reused(refused) = writing.state.begin(command, now)? {
                    all.extend(refused);
                }
                writing.breathe();
            }
            Ok(Outcome::Reused(all))
        }
        Command::FilesPunched(files) => {
            for some in files.chunks(STEP) {
                writing.state.begin(Command::FilesPunched(some.to_vec()), now)?;
                writing.breathe();
            }
            Ok(Outcome::Done)
        }
        other => writing.state.begin(other, now),
    }
}

fn store_in_steps(writing: &mut WriteHold<'_>, Store { file, items }: Store, now: Millis) -> Outcome {
    let token = writing.state.begin_store(file, now);
    let mut answers = Vec::with_capacity(items.len());
    let mut items = items.into_iter();
    while items.len() > 0 {
        answers.extend(writing.state.add_to_store(token, items.by_ref().take(STEP), now));
        writing.breathe();
    }
    Outcome::Stored(token, answers)
}

fn move_in_steps(writing: &mut WriteHold<'_>, moved: Move, now: Millis) -> Outcome {
    let Move { file, segments, private } = moved;
    let (mut count, mut bytes) = (0, 0);
    for some in segments.chunks(STEP) {
        let (more, and) = writing.state.move_some(&file, some.to_vec(), private, now);
        (count, bytes) = (count + more, bytes + and);
        writing.breathe();
    }
    writing.state.end_move(&file, now);
    Outcome::Moved(count, bytes)
}

impl CatalogShared {
    /// Writes the pieces of a batch in order. Returns the commit of the last one, with which all are durable.
    async fn write(&self, pieces: JournalPieces, haste: Haste) -> Result<Option<Commit>, JournalError> {
        let mut commit = None;
        for piece in pieces.all {
            // One after the other: a crash between two pieces leaves a prefix, which `state` is made for.
            commit = Some(self.journal.write(piece, haste).await?);
        }
        Ok(commit)
    }
}

/// The changes of a batch. Those of one command stand in one piece, unless they are more than a piece takes.
#[derive(Default)]
struct JournalPieces {
    all: Vec<Vec<Mutation>>,
    /// Bytes of the last piece.
    bytes: usize,
}

impl JournalPieces {
    fn add(&mut self, mutations: Vec<Mutation>) {
        let bytes: usize = mutations.iter().map(Mutation::weight).sum();
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

    fn append(&mut self, mutations: Vec<Mutation>, bytes: usize) {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::future::join_all;
    use futures::stream::FuturesUnordered;
    use futures::{FutureExt, StreamExt};
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::catalog::Catalog;
    use crate::catalog::command::{
        Bind, Condition, NewSegment, ObjectContent, ObjectToDelete, PutObject, RestorePoint, StoreItem,
    };
    use crate::catalog::slate::{CompanyWait, Journal, JournalSettings};
    use crate::catalog::state::CatalogState;
    use crate::model::{
        About, CheckpointId, Claim, JobEnd, JobId, Leavings, Location, ObjectHead, ObjectHeaders, SegmentCrc,
        SegmentId, StateScope, Writer,
    };
    use crate::runtime::TaskGroup;
    use crate::store::{Capabilities, Placement};

    const MANY: u64 = 3000;

    fn job(name: &str) -> JobId {
        name.parse().unwrap()
    }

    fn items(job: &JobId, numbers: std::ops::Range<u64>) -> Store {
        let items = numbers.map(|number| {
            let about = About {
                job: job.clone(),
                scope: StateScope::Shared,
                writer: Writer::default(),
                checkpoint: Some(CheckpointId(1)),
                name: None,
            };
            let location = Location::Inline { len: 1 };
            let inline = Some(Bytes::from_static(b"x"));
            let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
            let bind = Bind::Checkpoint { idempotency_key: None };
            StoreItem { segments: vec![NewSegment { id, about, location, inline, crc }], bind }
        });
        Store { file: None, items: items.collect() }
    }

    async fn open(store: &Arc<InMemory>) -> Catalog {
        open_with(store, JournalSettings::default()).await
    }

    async fn open_with(store: &Arc<InMemory>, settings: JournalSettings) -> Catalog {
        let placement = Placement::Object {
            store: Arc::<InMemory>::clone(store),
            prefix: Path::from("catalog"),
            can: Capabilities::OBJECT,
        };
        let mut state = CatalogState::default();
        let load = |key, value: Bytes| state.load(&key, &value);
        let journal = Journal::open(placement, settings, load).await.unwrap();
        state.end_loading(Millis(1));
        let tasks = TaskGroup::new(CancellationToken::new());
        Catalog::start(state, journal, Clock::System, &Metrics::new(), &tasks)
    }

    /// A catalog with a completed checkpoint of many segments.
    async fn filled(store: &Arc<InMemory>) -> Catalog {
        let (catalog, a) = (open(store).await, job("a"));
        catalog.execute(Command::CreateJob(a.clone())).await.unwrap();
        let stored = catalog.store(items(&a, 0..MANY)).await.unwrap();
        assert!(stored.len() as u64 == MANY && stored.iter().all(Result::is_ok));
        catalog.execute(Command::CompleteCheckpoint(a, CheckpointId(1))).await.unwrap();
        catalog
    }

    /// An object of one byte under each of these keys.
    fn objects(numbers: std::ops::Range<u64>) -> Store {
        let items = numbers.map(|number| {
            let head = ObjectHead {
                len: 1,
                etag: "e".to_owned(),
                modified: Millis(1),
                headers: ObjectHeaders::default(),
                checksum: None,
                part_lens: vec![],
            };
            let StoreItem { segments, .. } = items(&job("a"), number..number + 1).items.remove(0);
            let content = ObjectContent::Segments { segments: vec![segments[0].id], head, upload: None };
            let (bucket, key) = ("bucket".to_owned(), number.to_string());
            let put = PutObject { bucket, key, condition: Condition::None, content };
            StoreItem { segments, bind: Bind::Object(Box::new(put)) }
        });
        Store { file: None, items: items.collect() }
    }

    fn delete(number: u64) -> Command {
        let object = ObjectToDelete { key: number.to_string(), if_match: None, if_put_at: None };
        Command::DeleteObjects("bucket".to_owned(), vec![object])
    }

    #[tokio::test]
    async fn nobody_waits_behind_deletes_that_wait_for_more_than_are_let_in() {
        const TOGETHER: u64 = 200;
        let company_wait = CompanyWait { deletes: Duration::from_secs(3600), ..CompanyWait::default() };
        let settings = JournalSettings { company_wait, ..JournalSettings::default() };
        let catalog = open_with(&Arc::default(), settings).await;
        catalog.execute(Command::CreateBucket("bucket".to_owned())).await.unwrap();
        catalog.store(objects(0..2 * TOGETHER)).await.unwrap();
        // From now on so many are expected.
        let together = (0..TOGETHER).map(|number| catalog.execute(delete(number)));
        join_all(together).await.into_iter().for_each(|answer| drop(answer.unwrap()));

        // Each is a batch of its own, as far as they are let in.
        let mut waiting = FuturesUnordered::new();
        for number in TOGETHER..TOGETHER + 100 {
            let before = catalog.shared.applied.load(Ordering::Relaxed);
            waiting.push(catalog.execute(delete(number)));
            for _ in 0..20 {
                assert!(waiting.next().now_or_never().is_none() || number > TOGETHER + 60, "{number}");
                if catalog.shared.applied.load(Ordering::Relaxed) > before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let stored = tokio::time::timeout(Duration::from_secs(60), catalog.store(objects(1000..1001)));

        assert!(stored.await.expect("it is urgent").unwrap().iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn others_are_answered_while_a_job_ends_and_a_claim_waits_for_it() {
        let (store, a, b) = (Arc::default(), job("a"), job("b"));
        let catalog = filled(&store).await;
        catalog.execute(Command::CreateJob(b.clone())).await.unwrap();
        let claim = Command::Restore(RestorePoint {
            job: job("c"),
            from: a.clone(),
            checkpoint: CheckpointId(1),
            claim: Claim::Claim,
        });

        let end = catalog.execute(Command::EndJob(a.clone(), JobEnd::Finished, Leavings::Delete));
        let (mut end, mut claim) = (Box::pin(end), Box::pin(catalog.execute(claim)));
        let mut behind = Box::pin(catalog.execute(Command::SubsumeCheckpoint(b.clone(), CheckpointId(0))));
        assert!((&mut end).now_or_never().is_none() && (&mut claim).now_or_never().is_none());
        assert!((&mut behind).now_or_never().is_none());
        catalog.store(items(&b, MANY..MANY + 1)).await.unwrap();

        assert!((&mut end).now_or_never().is_none(), "thousands of segments take longer than one");
        assert!((&mut behind).now_or_never().is_none(), "what may leave more work lets the claim have its turn");
        assert!(matches!(claim.await, Err(CatalogError::Refused(Refusal::UnknownJob(_)))));
        end.await.unwrap();
        behind.await.unwrap();
        let recount = catalog.recount();
        assert_eq!((recount.segments, recount.faults), (1, vec![]));
    }

    #[tokio::test]
    async fn what_a_stop_leaves_of_a_command_is_done_by_the_next_start() {
        let (store, a) = (Arc::default(), job("a"));
        let catalog = filled(&store).await;

        let mut end = Box::pin(catalog.execute(Command::EndJob(a.clone(), JobEnd::Finished, Leavings::Delete)));
        assert!((&mut end).now_or_never().is_none());
        catalog.close().await.unwrap();
        assert!(matches!(end.await, Err(CatalogError::Closed)));
        assert!(catalog.recount().segments > 0, "only a part is done");

        let catalog = open(&store).await;
        assert_eq!(catalog.recount().faults, Vec::<String>::new());
        // The job goes on once nothing of it is left.
        catalog.execute(Command::CreateJob(a.clone())).await.unwrap();
        let recount = catalog.recount();
        assert_eq!((recount.segments, recount.faults), (0, vec![]));
        assert!(catalog.job(&a).is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_recount_finds_no_fault_in_what_changes_meanwhile() {
        let (store, a) = (Arc::default(), job("a"));
        let catalog = filled(&store).await;
        let counting = catalog.clone();
        let (done, mut counted) = tokio::sync::oneshot::channel();
        let counts = std::thread::scope(|scope| {
            let counts = scope.spawn(|| {
                let counts: Vec<_> = (0..20).map(|_| counting.recount().faults).collect();
                done.send(()).unwrap();
                counts
            });
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let mut next = MANY;
                    while counted.try_recv().is_err() {
                        let b: JobId = format!("job-{next}").parse().unwrap();
                        catalog.execute(Command::CreateJob(b.clone())).await.unwrap();
                        catalog.store(items(&b, next..next + 100)).await.unwrap();
                        catalog.execute(Command::CompleteCheckpoint(b.clone(), CheckpointId(1))).await.unwrap();
                        catalog.execute(Command::EndJob(b, JobEnd::Finished, Leavings::Delete)).await.unwrap();
                        next += 100;
                    }
                });
            });
            counts.join().unwrap()
        });

        assert_eq!(counts, vec![Vec::<String>::new(); 20]);
        assert_eq!(catalog.segments_to_restore(&a, CheckpointId(1)).unwrap().len() as u64, MANY);
    }
}
