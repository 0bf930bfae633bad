//! Values that the handles of the catalog, its owner and whoever answers share: the state behind its lock, the journal, and the
//! messages from one to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::command::{Command, DeleteReach, Outcome, Refusal, StoreToken};
use super::ledger::DeletedObject;
use super::slate::{Commit, Journal, JournalError};
use super::state::{CatalogState, Changes};
use crate::error::ErrorKind;
use crate::model::Millis;
use crate::runtime::{Clock, reply};

/// Why the catalog did not do what it was told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// It does not fit what exists. Nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The journal cannot be written any more; this daemon answers nothing from here on.
    #[error("the catalog is lost: {}", crate::error::chain(&**.0))]
    Lost(Arc<JournalError>),
    /// The daemon is shutting down.
    #[error("the catalog is closed")]
    Closed,
}

impl CatalogError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Lost(_) => ErrorKind::Unavailable,
            Self::Closed => ErrorKind::ShuttingDown,
        }
    }
}

/// The state behind its lock, and everything else that the handles share with the owner and with whoever answers.
pub(super) struct CatalogShared {
    pub(super) state: RwLock<CatalogState>,
    pub(super) journal: Journal,
    pub(super) clock: Clock,
    pub(super) lost: CancellationToken,
    pub(super) lost_because: Mutex<Option<Arc<JournalError>>>,
    /// When the last batch that is durable was handed to the journal, in milliseconds since the machine's boot; 0 before the first.
    pub(super) proven: AtomicU64,
    /// Number of the last batch that is durable.
    pub(super) durable: watch::Sender<u64>,
    /// Number of the last batch that was applied.
    pub(super) applied: AtomicU64,
    /// Counts of the events that those wait for who give space back.
    pub(super) changes: watch::Sender<Changes>,
    /// Keys that were deleted by a batch that is not durable yet, and the number of that batch.
    pub(super) deleting: Mutex<HashMap<(String, String), u64>>,
    /// Nothing more is begun of what is left of earlier commands: the next start does it.
    pub(super) closing: AtomicBool,
    /// Held by whoever counts the catalog anew: one at a time watches segments, and it takes time.
    pub(super) recounting: Mutex<()>,
}

/// A command that waits for the owner; without one, somebody waits for what came before.
pub(super) struct QueuedCommand {
    pub(super) command: Option<Command>,
    pub(super) settle: Settle,
    /// Of a delete of objects: what that of each has to reach. Only those that are there decide how it is settled.
    pub(super) reaches: Vec<DeleteReach>,
    pub(super) reply: oneshot::Sender<Result<Outcome, CatalogError>>,
}

/// The one who confirms a store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    /// The caller, once the bytes are durable too.
    ByCaller,
    /// The catalog, as soon as the commit is durable: there are no other bytes.
    OnCommit,
    /// The catalog, as soon as it is applied, which is answered then, too: see [`super::lazy`].
    Lazily,
    /// The same, and it is answered once it stands in the ledger on the local disk: a delete.
    OnLedger,
}

impl Settle {
    /// How a delete is settled, by what it has to reach.
    pub(super) fn of_delete(reach: DeleteReach) -> Self {
        match reach {
            DeleteReach::Memory => Self::Lazily,
            DeleteReach::Ledger => Self::OnLedger,
            DeleteReach::Storage => Self::OnCommit,
        }
    }

    /// Whether its commit is durable with the next one of anything.
    pub(super) fn is_lazy(self) -> bool {
        matches!(self, Self::Lazily | Self::OnLedger)
    }
}

/// A batch on its way to durability.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) commit: Option<Commit>,
    pub(super) answers: Vec<PendingReply>,
}

/// Deletes that are answered once they stand in the ledger.
pub(super) struct NotedBatch {
    /// Whom they concern; those before them stand there already.
    pub(super) deleted: Vec<DeletedObject>,
    /// That of the deletes; without one they changed nothing.
    pub(super) commit: Option<Commit>,
    pub(super) answers: Vec<PendingReply>,
}

/// An answer that waits for its batch to become durable.
pub(super) struct PendingReply {
    pub(super) outcome: Result<Outcome, Refusal>,
    pub(super) settle: Settle,
    pub(super) reply: oneshot::Sender<Result<Outcome, CatalogError>>,
}

impl CatalogShared {
    /// Changes the state, and tells those who give space back what there is to do.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut CatalogState, Millis) -> T) -> T {
        let now = self.clock.now();
        let mut state = self.state.write();
        state.opened();
        let changed = change(&mut state, now);
        let changes = state.changes();
        // Whoever is told asks the state at once.
        drop(state);
        self.tell(changes);
        changed
    }

    /// A part at a time, so that a store of many segments lets others in.
    pub(super) fn confirm(&self, token: StoreToken) {
        while !self.change(|state, now| state.confirm_some(token, now)) {}
    }

    /// The same for one that failed; its file has `len` bytes, if that is known.
    pub(super) fn fail(&self, token: StoreToken, len: Option<u64>) {
        while !self.change(|state, now| state.fail_some(token, len, now)) {}
    }

    pub(super) fn tell(&self, changes: Changes) {
        self.changes.send_if_modified(|told| {
            // Another thread may have told of later ones meanwhile.
            let before = std::mem::replace(told, changes.max(*told));
            before != *told
        });
    }

    /// Answers what is as durable as it has to be, though its commit may not be.
    pub(super) fn answer_early(&self, early: Vec<PendingReply>) {
        // As for those that are durable: once the catalog is lost, nothing is answered.
        let error = self.lost_error();
        for PendingReply { outcome, reply: waiting, .. } in early {
            if error.is_none()
                && let Ok(Outcome::Stored(token, _)) = &outcome
            {
                // Before the answer: whoever is told that it is stored finds it.
                self.confirm(*token);
            }
            let answer = error.clone().map_or_else(|| outcome.map_err(CatalogError::Refused), Err);
            reply(waiting, answer);
        }
    }

    pub(super) fn lost_error(&self) -> Option<CatalogError> {
        self.lost_because.lock().clone().map(CatalogError::Lost)
    }

    pub(super) fn lose(&self, error: JournalError) -> CatalogError {
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
}
