//! The owner: applies commands and writes batches, in order.
//!
//! Between batches it does what earlier commands have left: short pieces, as long as no other command waits. What they change
//! is written with the next batch, or as one of its own.
//!
//! A batch of lazy commands alone is answered here, once it is written, and nobody is told when it is durable. Deletes that are
//! noted in a ledger are handed over to whoever keeps it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::command::{Bind, Command, DeleteReach, Move, ObjectToDelete, Outcome, Refusal, Store};
use super::hold::WriteHold;
use super::lazy::{LazyBacklog, refuses};
use super::ledger::DeletedObject;
use super::mutation::Mutation;
use super::shared::{Batch, CatalogError, CatalogShared, NotedBatch, PendingReply, QueuedCommand, Settle};
use super::slate::{Commit, Haste, JournalError};
use super::state::CatalogState;
use crate::metrics::Metrics;
use crate::metrics::writes::WriteKind;
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
    lazy: LazyBacklog,
    /// Who keeps the ledger, if there is one.
    ledger: Option<mpsc::Sender<NotedBatch>>,
}

/// A batch that was applied, and is not in the journal yet.
struct AppliedBatch {
    number: u64,
    pieces: JournalPieces,
    /// Answers that wait until it is durable.
    answers: Vec<PendingReply>,
    /// Answers that wait until it is written.
    early: Vec<PendingReply>,
    /// Answers that wait until the ledger has them, and what it has to have.
    noted: Vec<PendingReply>,
    deleted: Vec<DeletedObject>,
    /// Whether answers may be founded on what is lazy, though nothing was changed.
    founded_on_lazy: bool,
}

/// Takes commands until there are no more.
pub(super) async fn own(
    shared: Arc<CatalogShared>,
    mut inbox: mpsc::Receiver<QueuedCommand>,
    batches: mpsc::Sender<Batch>,
    ledger: Option<mpsc::Sender<NotedBatch>>,
    metrics: Metrics,
) {
    let (waiting, requests) = (VecDeque::new(), Vec::with_capacity(BATCH_COMMANDS_MAX));
    let (deferred, held, lazy) = (VecDeque::new(), VecDeque::new(), LazyBacklog::default());
    let mut owner = CatalogOwner { shared, waiting, requests, deferred, held, lazy, ledger };
    while owner.next_batch(&mut inbox).await {
        // Before the state changes: what is applied from here on would never be durable.
        if let Some(error) = owner.shared.lost_error() {
            owner.give_up(&error);
            continue;
        }
        owner.settle_deletes();
        owner.bound_lazy();
        let haste = owner.haste();
        let batch = owner.apply(|| !inbox.is_empty());
        if batch.is_empty() {
            continue;
        }
        metrics.commits.inc_by(batch.pieces.all.len() as u64);
        metrics.committed_bytes.inc_by(batch.pieces.weight());
        metrics.early_answers.inc_by((batch.early.len() + batch.noted.len()) as u64);
        // The journal takes nothing for as long as its tables cannot be written.
        let waits = metrics.writes().begin(WriteKind::CommitTaken, Clock::instant());
        let written = owner.write(batch, haste).await;
        drop(waits);
        let Some(batch) = written else { continue };
        let full = match batches.try_send(batch) {
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

    /// Looks at what deletes would delete now; when they are applied is what counts.
    fn settle_deletes(&mut self) {
        if self.requests.iter().any(|request| !request.reaches.is_empty()) {
            let mut requests = std::mem::take(&mut self.requests);
            let state = self.shared.state.read();
            requests.iter_mut().for_each(|request| request.settle = self.settle(request, &state));
            drop(state);
            self.requests = requests;
        }
    }

    /// How a request is settled. Of a delete, those objects ask for what they have to reach that are there, or whose delete
    /// is on its way; the others for no more than an answer behind those before.
    fn settle(&self, request: &QueuedCommand, state: &CatalogState) -> Settle {
        let QueuedCommand { command: Some(Command::DeleteObjects(bucket, objects)), reaches, .. } = request else {
            return request.settle;
        };
        let nothing = if self.ledger.is_some() { DeleteReach::Ledger } else { DeleteReach::Memory };
        let deleting = self.shared.deleting.lock();
        let counts = |key: &str| {
            let named = || (bucket.clone(), key.to_owned());
            state.has_versions(bucket, key) || self.lazy.names(&named()) || deleting.contains_key(&named())
        };
        let reaches = objects.iter().zip(reaches);
        let asked = reaches.map(|(object, reach)| if counts(&object.key) { *reach } else { nothing.min(*reach) });
        asked.max().map_or(request.settle, Settle::of_delete)
    }

    /// Lazy commands for which there is no room wait for their commit like others.
    fn bound_lazy(&mut self) {
        let mut weight = 0;
        for request in self.requests.iter_mut().filter(|request| request.settle.is_lazy()) {
            weight += request.command.as_ref().map_or(0, Command::weight);
            if !self.lazy.has_room(weight) {
                request.settle = Settle::OnCommit;
                request.reaches.fill(DeleteReach::Storage);
            }
        }
    }

    /// A store has waited for company already, and its bytes are on their way; a change of a checkpoint can wait, and deletes
    /// longer, unless others are with them. Nobody waits for what is lazy.
    fn haste(&self) -> Haste {
        let mut waiting = self.requests.iter().filter(|request| !request.settle.is_lazy());
        let urgent = |request: &QueuedCommand| matches!(request.command, None | Some(Command::Store(_)));
        let delete = |request: &QueuedCommand| matches!(request.command, Some(Command::DeleteObjects(..)));
        let nothing_else = self.deferred.is_empty() && self.held.is_empty() && !self.requests.is_empty();
        let deletes = waiting.clone().filter(|request| delete(request)).count();
        if waiting.clone().any(urgent) {
            Haste::Now
        } else if !nothing_else || !waiting.all(delete) {
            Haste::Soon
        } else if deletes > 0 {
            Haste::Deletes(deletes)
        } else {
            Haste::Lazy
        }
    }

    /// Writes a batch to the journal, and answers those who do not wait until it is durable. None if nobody does, or the
    /// journal is lost.
    async fn write(&mut self, batch: AppliedBatch, haste: Haste) -> Option<Batch> {
        let AppliedBatch { number, pieces, answers, early, noted, deleted, founded_on_lazy } = batch;
        let nobody_waits = answers.is_empty();
        // Something lazy was refused, and that is told once what it is founded on is durable.
        let haste = if haste == Haste::Lazy && !nobody_waits { Haste::Soon } else { haste };
        let written = match self.shared.write(pieces, haste).await {
            Ok(written) => written,
            Err(error) => {
                let error = self.shared.lose(error);
                answers
                    .into_iter()
                    .chain(early)
                    .chain(noted)
                    .for_each(|answer| reply(answer.reply, Err(error.clone())));
                self.give_up(&error);
                return None;
            }
        };
        if let Some(ledger) = self.ledger.as_ref().filter(|_| !noted.is_empty()) {
            let batch = NotedBatch { deleted, commit: written.clone(), answers: noted };
            if let Err(mpsc::error::SendError(batch)) = ledger.send(batch).await {
                let gone = CatalogError::Closed;
                batch.answers.into_iter().for_each(|answer| reply(answer.reply, Err(gone.clone())));
            }
        }
        let commit = match written {
            Some(commit) if haste == Haste::Lazy => {
                self.lazy.wrote(commit.clone());
                Some(commit)
            }
            None if founded_on_lazy => {
                let lazy = self.lazy.clear();
                if lazy.is_some() {
                    self.shared.journal.hurry();
                }
                lazy
            }
            Some(commit) => {
                self.lazy.clear();
                Some(commit)
            }
            None => {
                self.lazy.wrote_nothing();
                None
            }
        };
        self.shared.answer_early(early);
        (haste != Haste::Lazy).then_some(Batch { number, commit, answers })
    }

    fn give_up(&mut self, error: &CatalogError) {
        let requests = self.requests.drain(..).chain(self.deferred.drain(..));
        let replies = requests.map(|request| request.reply);
        let held = self.held.drain(..).map(|(_, answer)| answer.reply);
        replies.chain(held).for_each(|waiting| reply(waiting, Err(error.clone())));
    }

    /// Applies requests in order, and does some of what is left of earlier ones unless somebody waits; what that changed, and
    /// what confirmations changed since, is one batch.
    fn apply(&mut self, somebody_waits: impl Fn() -> bool) -> AppliedBatch {
        let shared = Arc::clone(&self.shared);
        let number = shared.applied.load(Ordering::Relaxed) + 1;
        let now = shared.clock.now();
        let mut writing = WriteHold::begin(shared.state.write());
        let (mut answers, mut early) = (Vec::with_capacity(self.requests.len()), vec![]);
        let (mut noted, mut deleted) = (vec![], vec![]);
        let (mut pieces, mut founded_on_lazy) = (JournalPieces::default(), false);
        // Confirmations and notes since the last batch come first: the commands below build on them.
        pieces.add(writing.state.take_mutations());
        let requests: Vec<QueuedCommand> = self.deferred.drain(..).chain(self.requests.drain(..)).collect();
        for request in requests {
            if request.command.as_ref().is_some_and(|command| self.has_to_wait(command, &writing)) {
                self.deferred.push_back(request);
                continue;
            }
            let settle = self.settle(&request, &writing.state);
            let QueuedCommand { command, reply, .. } = request;
            let settle = match &command {
                Some(command) if settle.is_lazy() && self.replaces(command, &writing) => Settle::OnCommit,
                _ => settle,
            };
            match &command {
                Some(command) if settle.is_lazy() => {
                    if settle == Settle::OnLedger {
                        deleted.extend(deleted_by(command, &writing));
                    }
                    self.lazy.take(command, |bucket, key| writing.state.has_versions(bucket, key));
                }
                Some(Command::DeleteObjects(bucket, objects)) => {
                    // Under the state's lock, before the state forgets them: a reader that finds nothing finds the key here.
                    let mut deleting = shared.deleting.lock();
                    deleting.extend(objects.iter().map(|object| ((bucket.clone(), object.key.clone()), number)));
                }
                _ => {}
            }
            founded_on_lazy |= !settle.is_lazy() && self.lazy.may_found(command.as_ref());
            let (before, _) = writing.state.work_counts();
            let outcome = command.map_or(Ok(Outcome::Done), |command| carry_out(&mut writing, command, now));
            pieces.add(writing.state.take_mutations());
            founded_on_lazy |= refuses(&outcome);
            let (added, ended) = writing.state.work_counts();
            let is_early = settle.is_lazy() && !refuses(&outcome);
            let answer = PendingReply { outcome, settle, reply };
            if added > before.max(ended) {
                self.held.push_back((added, answer));
            } else if is_early && settle == Settle::OnLedger {
                noted.push(answer);
            } else if is_early {
                early.push(answer);
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
        AppliedBatch { number, pieces, answers, early, noted, deleted, founded_on_lazy }
    }

    /// Whether a command stores an object where one stands or stood a moment ago: a crash that undid it would bring that back,
    /// in place of what was answered.
    fn replaces(&self, command: &Command, writing: &WriteHold<'_>) -> bool {
        let Command::Store(store) = command else { return false };
        let stands = |bind: &Bind| match bind {
            Bind::Object(put) => writing.state.object(&put.bucket, &put.key).is_some(),
            _ => false,
        };
        self.lazy.may_found(Some(command)) || store.items.iter().any(|item| stands(&item.bind))
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

impl AppliedBatch {
    /// Whether nothing changed, and nobody waits.
    fn is_empty(&self) -> bool {
        self.pieces.all.is_empty() && self.answers.is_empty() && self.early.is_empty() && self.noted.is_empty()
    }
}

/// The objects that a command is about to delete.
fn deleted_by(command: &Command, writing: &WriteHold<'_>) -> Vec<DeletedObject> {
    let Command::DeleteObjects(bucket, objects) = command else { return vec![] };
    let known = |object: &ObjectToDelete| {
        let view = writing.state.object(bucket, &object.key)?;
        let (bucket, key, etag) = (bucket.clone(), object.key.clone(), view.head().etag.clone());
        Some(DeletedObject {
            bucket,
            key,
            etag,
            modified: view.head().modified,
            first: view.segments().first().copied(),
        })
    };
    objects.iter().filter_map(known).collect()
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
        Command::Reuse(job, id, segments, run) if segments.len() > STEP => {
            let mut all = vec![];
            for some in segments.chunks(STEP) {
                let command = Command::Reuse(job.clone(), id, some.to_vec(), run);
                if let Outcome::Reused(refused) = writing.state.begin(command, now)? {
                    all.extend(refused);
                }
                writing.breathe();
            }
            Ok(Outcome::Reused(all))
        }
        Command::FreeOfSavepoint(job, id, segments) => {
            for some in segments.chunks(STEP) {
                writing.state.begin(Command::FreeOfSavepoint(job.clone(), id, some.to_vec()), now)?;
                writing.breathe();
            }
            Ok(Outcome::Done)
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
mod tests;
