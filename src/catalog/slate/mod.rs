//! The catalog's journal: its records, durable and in one order, in SlateDB.
//!
//! [`Journal::open`] hands out every record once, but the bytes of inline segments, which [`Journal::get`] reads; from then
//! on the catalog's state is in memory and the journal is only written. [`Journal::write`] takes a batch, [`Commit::durable`] says when it
//! may be answered. What the records mean is left to the catalog.
//!
//! On an object store SlateDB writes its log itself, one object per group: a single task flushes,
//! and whatever is written meanwhile shares the next flush. On HDFS the same task flushes, to a log of ours whose files are
//! appended to; only a journal that was made before there was one keeps SlateDB's. On a local disk the log is ours, too, see
//! `log/mod.rs`. Besides that module, this is the only one that names SlateDB.
//!
//! # Invariants
//! - A batch is applied whole or not at all, and batches in the order in which `write` was called.
//! - Only [`Commit::durable`] proves anything. A fenced journal still takes writes for a while, and
//!   [`Journal::close`] may succeed on one that has failed.
//! - Stamps in the database never go back, whatever the clocks of its owners say: see `ticks.rs`.
//! - A database is only ever opened with the log it was created with: SlateDB would ignore the
//!   other one's commits without a word. The marker `FORMAT` says which it is. It never changes: an owner that writes the other
//!   log would not be shut out of it.
//! - On a local disk one process has the folder, by a lock taken before anything is touched. Without
//!   it a second daemon would shut the first out even if it then fails to open.
//!
//! On a local disk that is full, what the journal writes takes what is kept back for it ([`DiskSpace`]), and waits when that
//! is used up, too: it must not fail, because what was accepted is visible already.
//!
//! # Crash
//! Everything that was durable is there, whole; a batch that was not durable may be there as well.

mod disk;
mod giving_way;
mod group;
mod marker;
mod opening;
mod quiet;
mod reshard;
mod room;
mod scan;
mod settings;
mod snapshot;
mod successor;
mod ticks;
mod usual;

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use parking_lot::Mutex;
use slatedb::{CloseReason, Db, GarbageCollectorBuilder, WriteBatch, WriteHandle};
use tokio_util::sync::CancellationToken;

use self::disk::{Damaged, DiskObjects};
pub use self::giving_way::{Replaced, Resharding};
use self::group::GroupCommit;
pub use self::marker::Present;
use self::marker::{Checked, JournalMarker};
use self::opening::OpeningObjects;
pub use self::quiet::Quiet;
pub use self::reshard::{HowFarDeleted, RootMark};
pub use self::room::Hold;
use self::scan::{ReadAhead, visit_all};
pub use self::settings::{CompanyWait, JournalClaim, JournalSettings};
use self::settings::{Updates, block_cache, gc_options, slate_settings};
pub use self::snapshot::Snapshot;
use self::successor::Successor;
use self::ticks::{OnRecord, Ticks, tick};
use super::anchor::Anchor;
use super::log::{LeasedLog, LeasedLogInit, LeasedLogLimits, Log, LogGc, LogInit};
use super::mutation::Mutation;
use crate::model::{ShardOf, StoreShards};
use crate::runtime::Clock;
use crate::store::append_file::sync_parent;
use crate::store::{CountedStore, DiskSpace, LogFolder, Placement, Traffic};

/// The catalog's records on storage.
///
/// Dropping it without [`Journal::close`] is a crash: durable batches survive, others may not.
pub struct Journal {
    db: Db,
    epoch: u64,
    backend: Backend,
    shut_out: ShutOut,
    marker: JournalMarker,
    shard: ShardOf,
    clock: Clock,
}

/// The reason for which a journal cannot be used any more, from outside.
#[derive(Debug, Clone)]
enum ShutOut {
    /// A newer owner, once this is cancelled.
    Successor(CancellationToken),
    /// Another folder in the place of its own.
    Moved(Anchor),
}

impl ShutOut {
    /// Why the journal must not be used any more; `None` if it may be.
    fn reason(&self) -> Option<JournalError> {
        match self {
            Self::Successor(found) => found.is_cancelled().then_some(JournalError::Fenced),
            Self::Moved(anchor) => {
                anchor.moved().is_cancelled().then(|| JournalError::Moved { folder: anchor.folder().to_owned() })
            }
        }
    }

    /// Resolves when there is a reason.
    async fn watch(&self) {
        match self {
            Self::Successor(found) => found.cancelled().await,
            Self::Moved(anchor) => anchor.watch().await,
        }
    }

    /// A database that was closed for such a reason says only that it is closed.
    fn explain(&self, error: slatedb::Error) -> JournalError {
        self.reason().unwrap_or_else(|| error.into())
    }
}

enum Backend {
    Object(GroupCommit),
    Local {
        /// Stops the log when the journal is dropped.
        _log: AbortOnDrop,
        /// Held as long as the journal is open.
        lock: Mutex<Option<File>>,
        /// It is being opened until everything was read.
        opens: disk::OpeningFlag,
    },
}

impl Backend {
    fn read_ahead(&self) -> ReadAhead {
        match self {
            Self::Object(_) => ReadAhead::Requests,
            Self::Local { .. } => ReadAhead::Disk,
        }
    }
}

/// The two kinds of [`Placement`], for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalKind {
    /// On an object store.
    Object,
    /// On a local disk.
    Local,
}

/// The error of a failed part of the journal.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the journal did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another daemon has opened the journal; this one is of no more use.
    #[error("another daemon has taken the journal over")]
    Fenced,
    /// Another daemon, or another part of this one, has the folder.
    #[error("folder {} is in use by another daemon", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// Its folder is not where it was, and what is there is another one. Nothing was written to that.
    #[error("the catalog's folder {} was moved or replaced while the daemon was running", folder.display())]
    Moved {
        /// Where it was.
        folder: PathBuf,
    },
    /// Storage failed. The outcome of writes that were not durable is unknown until the next open.
    #[error("the storage of the journal failed")]
    Unavailable(#[source] Cause),
    /// The bytes on storage are not those that were written.
    #[error(
        "the catalog is damaged or was written by another version (`esker rebuild --replace` makes a new one from the files)"
    )]
    Corrupt(#[source] Cause),
    /// The log was used by a later owner than the manifests know.
    #[error(
        "manifests of the catalog are missing or damaged: its log was used by a later owner than they know of, and no other \
         daemon has it. Put {0}/manifest back as it was, or make a new catalog from the files with `esker rebuild --replace`"
    )]
    ManifestsMissing(String),
    /// The database was written with another log, or by a later version.
    #[error("{}", wrong_format(place, found, expected))]
    WrongFormat {
        /// The marker.
        place: String,
        /// The text of the marker; empty if there is a database without one.
        found: String,
        /// The text that it would have to have.
        expected: String,
    },
    /// It belongs to a cluster, and the one who opens it says nothing of one.
    #[error(
        "{0} says that this catalog belongs to a cluster of daemons. A daemon needs cluster.enabled = true, as they have it. For a \
         command on its storage stop them all; then `esker cluster dissolve` makes it a catalog of one daemon, which the command \
         takes, and a start with cluster.enabled makes it theirs again"
    )]
    OfCluster(String),
    /// It has another shard than the one who opens it takes it for.
    #[error(
        "{place} says that this catalog has {found}, and not {expected}: it was moved, or the cluster's maps are another's"
    )]
    WrongShard {
        /// The marker.
        place: String,
        /// What it says.
        found: ShardOf,
        /// What it was taken for.
        expected: ShardOf,
    },
    /// There is no catalog here: each shard has its own.
    #[error(
        "{place} says that this store is divided into {}, each with a catalog of its own. A daemon needs cluster.enabled = true; a command on the storage needs to know which: --shard 0{}",
        StoreShards::first(*.shards), match .shards { 1 => String::new(), shards => format!(" to {}", shards - 1) }
    )]
    Divided {
        /// The marker.
        place: String,
        /// Their number.
        shards: u32,
    },
    /// The number of shards is being changed.
    #[error(
        "{place} says that the shards of this store give way to {to}: a change of their number has begun. Nothing else opens it \
         meanwhile. `esker cluster reshard --shards {} --run` goes on where it was cut short, `--abandon` gives it up. After its end \
         nothing opens this catalog any more", to.count
    )]
    Resharding {
        /// The marker.
        place: String,
        /// What they give way to.
        to: StoreShards,
    },
    /// Somebody else has changed the marker.
    #[error("{0} was changed by another command meanwhile: look at `esker cluster reshard`, and run this again")]
    MarkChanged(String),
    /// There is no journal to be looked at.
    #[error("there is no catalog")]
    Nothing,
    /// A rebuild that was cut short has left it.
    #[error("the catalog was being rebuilt and is not whole: run `esker rebuild` again")]
    Unfinished,
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
    /// The batch or the settings cannot be used; nothing was done.
    #[error("{0}")]
    Invalid(String),
    /// The visitor refused a record.
    #[error("a record of the journal was refused")]
    Visit(#[source] Cause),
    /// SlateDB ended in a way it should not.
    #[error("the journal failed by a bug")]
    Internal(#[source] Cause),
}

fn wrong_format(place: &str, found: &str, expected: &str) -> String {
    let found: String = found.trim().chars().take(100).collect();
    let what = match found.as_str() {
        "" => format!("{place} is missing or empty, but a catalog is there"),
        _ => format!("{place} says {found:?} and not {expected:?}: it is damaged, or of another kind or version"),
    };
    format!("{what}. Put it back as it was, or make a new catalog from the files with `esker rebuild --replace`")
}

impl JournalError {
    /// Whether what is on storage has to be mended first: trying again changes nothing.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::ManifestsMissing(_) | Self::WrongFormat { .. } | Self::Unfinished => true,
            Self::OfCluster(_) | Self::WrongShard { .. } | Self::Divided { .. } => true,
            Self::Resharding { .. } | Self::MarkChanged(_) => true,
            Self::Fenced | Self::Moved { .. } | Self::Locked { .. } | Self::Unavailable(_) => false,
            Self::Nothing | Self::Closed => false,
            Self::Invalid(_) | Self::Visit(_) | Self::Internal(_) => false,
        }
    }

    /// An error of a database that is being opened: what it makes no sense of then is on storage.
    fn at_open(error: slatedb::Error) -> Self {
        match error.kind() {
            slatedb::ErrorKind::Invalid | slatedb::ErrorKind::Internal => Self::Corrupt(error.into()),
            _ if Damaged::is_in(&error) => Self::Corrupt(error.into()),
            _ => error.into(),
        }
    }
}

impl From<slatedb::Error> for JournalError {
    fn from(error: slatedb::Error) -> Self {
        match error.kind() {
            slatedb::ErrorKind::Closed(CloseReason::Fenced) => Self::Fenced,
            slatedb::ErrorKind::Closed(CloseReason::Clean) => Self::Closed,
            slatedb::ErrorKind::Unavailable => Self::Unavailable(error.into()),
            slatedb::ErrorKind::Data => Self::Corrupt(error.into()),
            _ => Self::Internal(error.into()),
        }
    }
}

impl From<object_store::Error> for JournalError {
    fn from(error: object_store::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

/// The urgency of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// At once.
    Now,
    /// On an object store it may wait some milliseconds for others, to share their request.
    Soon,
    /// So many deletes and nothing else: they may wait longer, as [`CompanyWait`] says.
    Deletes(usize),
    /// With the next one that is more urgent: nobody waits for it.
    Lazy,
}

/// An accepted batch, durable or not yet.
#[derive(Debug, Clone)]
pub struct Commit {
    handle: WriteHandle,
    shut_out: ShutOut,
    begun: Duration,
}

impl Commit {
    /// Resolves when the batch, and with it every earlier one, is durable.
    ///
    /// # Errors
    /// Why the journal closed first: `Fenced`, `Moved`, `Unavailable`, `Closed`, `Corrupt` or `Internal`. The
    /// batch may then be there or not; the next open shows.
    ///
    /// # Cancel safety
    /// Cancel safe, and can be called by many and again.
    pub async fn durable(&self) -> Result<(), JournalError> {
        self.handle.await_durable().await.map_err(|error| self.shut_out.explain(error))
    }

    /// The time since the machine's boot at which the batch was handed over: what made it durable began later.
    pub fn begun(&self) -> Duration {
        self.begun
    }

    /// The batch's place in the order of all batches ever written.
    pub fn seq(&self) -> u64 {
        self.handle.seqnum()
    }
}

impl Journal {
    /// Opens or creates the journal, shuts out older owners, and hands every record but bytes of inline
    /// segments to `visit`, in the order of [`super::record::READ_AT_OPEN`].
    ///
    /// # Errors
    /// `Locked`, `WrongFormat` and `Invalid` before anything was touched; `Fenced` if a newer
    /// owner came in between; `Corrupt` or `Unavailable` if storage is so; `Visit` if `visit` failed.
    /// Except for the first three, older owners are shut out even then.
    ///
    /// # Cancel safety
    /// A dropped call leaves what a crash leaves.
    pub async fn open<E: Into<Cause>>(
        placement: Placement,
        settings: JournalSettings,
        visit: impl FnMut(Bytes, Bytes) -> Result<(), E> + Send,
    ) -> Result<Self, JournalError> {
        if settings.unflushed_bytes_max / 2 < settings.l0_bytes {
            let reason = "unflushed_bytes_max is less than twice l0_bytes";
            return Err(JournalError::Invalid(reason.to_owned()));
        }
        let journal = match placement {
            Placement::Object { store, prefix, can, log } => {
                open_object(store, prefix, Updates::of(can), log, &settings, OpenMode::Whole).await?
            }
            Placement::Local { folder, traffic, space } => {
                open_local(folder, traffic, space, &settings, OpenMode::Whole).await?
            }
        };
        match visit_all(&Arc::new(journal.db.clone()), journal.backend.read_ahead(), visit).await {
            Ok(()) => {
                if let Backend::Local { opens, .. } = &journal.backend {
                    opens.done();
                }
                Ok(journal)
            }
            Err(error) => {
                if let Err(error) = journal.close().await {
                    tracing::warn!(%error, "closing a journal that could not be read");
                }
                Err(error)
            }
        }
    }

    /// Looks at a place.
    ///
    /// # Errors
    /// `Unavailable` if storage does not tell.
    pub async fn present(placement: &Placement) -> Result<Present, JournalError> {
        match placement {
            Placement::Object { store, prefix, log, .. } => {
                marker_of(store, prefix, log.is_some()).await?.present().await
            }
            Placement::Local { folder, .. } if !folder.is_dir() => Ok(Present::Nothing),
            Placement::Local { folder, .. } => {
                let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
                JournalMarker::new(store, Path::from(LOCAL_DB), LOCAL_LOG).in_folder(folder).present().await
            }
        }
    }

    /// The epoch of the last owner of a journal on an object store, as SlateDB counts them; 0 if there is none. Shuts nobody out.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` if storage does not tell; `Invalid` for another kind of place.
    pub async fn last_epoch(placement: &Placement, patience: Duration) -> Result<u64, JournalError> {
        match placement {
            Placement::Object { store, prefix, log: None, .. } => {
                successor::last_epoch(Arc::clone(store), prefix.clone(), patience).await
            }
            _ => Err(JournalError::Invalid(format!("{placement} is not on an object store"))),
        }
    }

    /// Whether only members of a cluster may open the journal at a place.
    ///
    /// # Errors
    /// `Unavailable` if storage does not tell.
    pub async fn is_of_cluster(placement: &Placement) -> Result<bool, JournalError> {
        match placement {
            Placement::Object { store, prefix, log, .. } => {
                marker_of(store, prefix, log.is_some()).await?.is_of_cluster().await
            }
            Placement::Local { .. } => Ok(false),
        }
    }

    /// Makes a journal of a cluster one that a daemon by itself may open. No member of the cluster may be at work.
    ///
    /// # Errors
    /// `Unavailable` if storage does not take it.
    pub async fn leave_cluster(placement: &Placement) -> Result<(), JournalError> {
        match placement {
            Placement::Object { store, prefix, log, .. } => {
                marker_of(store, prefix, log.is_some()).await?.leave_cluster().await
            }
            Placement::Local { .. } => Ok(()),
        }
    }

    /// The shards that the store with this root is divided into; `None` if it is not.
    ///
    /// # Errors
    /// `Unavailable` if storage does not tell; `Resharding` while their number is changed.
    pub async fn shards(placement: &Placement) -> Result<Option<StoreShards>, JournalError> {
        match placement {
            Placement::Object { store, prefix, log: None, .. } => marker_of(store, prefix, false).await?.shards().await,
            Placement::Object { .. } | Placement::Local { .. } => Ok(None),
        }
    }

    /// Says that the store with this root is divided into `shards`, if it is new. Returns whether it is, and into which.
    ///
    /// # Errors
    /// `Unavailable` if storage does not take it; `Resharding`.
    pub async fn divide(placement: &Placement, shards: u32) -> Result<Option<StoreShards>, JournalError> {
        match placement {
            Placement::Object { store, prefix, log: None, .. } => {
                marker_of(store, prefix, false).await?.divide(shards).await
            }
            Placement::Object { .. } | Placement::Local { .. } => Ok(None),
        }
    }

    /// Begins a new journal where nothing is. Nobody else opens it before [`Self::finish_rebuild`].
    ///
    /// # Errors
    /// `WrongFormat` if something is there; otherwise as [`Self::open`].
    pub async fn rebuild(placement: Placement, settings: &JournalSettings) -> Result<Self, JournalError> {
        match placement {
            Placement::Object { store, prefix, can, log } => {
                open_object(store, prefix, Updates::of(can), log, settings, OpenMode::Rebuild).await
            }
            Placement::Local { folder, traffic, space } => {
                open_local(folder, traffic, space, settings, OpenMode::Rebuild).await
            }
        }
    }

    /// Closes a journal that was begun with [`Self::rebuild`]: it is whole. The epochs of its owners are later than
    /// `epochs_before`.
    ///
    /// # Errors
    /// As [`Self::close`]; it is not whole then.
    pub async fn finish_rebuild(self, epochs_before: u64) -> Result<(), JournalError> {
        self.db.close().await.map_err(|error| self.shut_out.explain(error))?;
        self.marker.finish_rebuild(epochs_before).await
    }

    /// Applies one batch atomically; later entries win over earlier ones for the same key.
    ///
    /// Returns once the batch is accepted in memory, which is no promise yet. Calls that do not
    /// overlap are applied in their order.
    ///
    /// # Errors
    /// `Invalid` if the batch is empty, larger than 64 MiB, or has a key that is empty or too
    /// long. Otherwise why the journal is closed.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call may still apply the batch.
    pub async fn write(&self, batch: Vec<Mutation>, haste: Haste) -> Result<Commit, JournalError> {
        let (batch, begun) = (write_batch(batch)?, self.clock.since_boot());
        let written = self.db.write(batch).await;
        let handle = written.map_err(|error| self.shut_out.explain(error))?;
        if let Backend::Object(group_commit) = &self.backend {
            group_commit.wake(haste);
        }
        Ok(Commit { handle, shut_out: self.shut_out.clone(), begun })
    }

    /// What was written and waits for others, to share their request, waits no longer.
    pub fn hurry(&self) {
        if let Backend::Object(group_commit) = &self.backend {
            group_commit.wake(Haste::Now);
        }
    }

    /// Asks storage whether this owner is still the newest. Whoever opens the journal after an `Ok` finds all that was
    /// on storage before the call.
    ///
    /// # Errors
    /// `Fenced` if there is a newer owner, `Moved` if the folder is not its own any more; `Unavailable` or `Corrupt` if
    /// storage does not tell.
    pub async fn check_owner(&self) -> Result<(), JournalError> {
        match (&self.backend, &self.shut_out) {
            (Backend::Object(group_commit), _) => group_commit.successor().look().await,
            // It has the lock of the folder that it opened.
            (Backend::Local { .. }, ShutOut::Moved(anchor)) => {
                let looked = anchor.look_aside().await;
                looked.map_err(|error| self.shut_out.reason().unwrap_or(JournalError::Unavailable(error.into())))
            }
            (Backend::Local { .. }, ShutOut::Successor(_)) => Ok(()),
        }
    }

    /// Resolves when the journal is found to be of no more use, whether or not anybody writes: a newer owner is noticed
    /// within `poll_interval`, another folder in a second. Resolves to `None` when it was closed or dropped.
    pub fn ended(&self) -> impl Future<Output = Option<JournalError>> + Send + 'static {
        let mut status = self.db.subscribe();
        let shut_out = self.shut_out.clone();
        async move {
            let reason = tokio::select! {
                closed = status.wait_for(|status| status.close_reason.is_some()) => closed.ok()?.close_reason,
                () = shut_out.watch() => None,
            };
            match reason {
                _ if shut_out.reason().is_some() => shut_out.reason(),
                Some(CloseReason::Fenced) => Some(JournalError::Fenced),
                Some(CloseReason::Clean) | None => None,
                // Whatever else closes a database is called a panic there.
                Some(_) => Some(JournalError::Internal("a task of the database failed".into())),
            }
        }
    }

    /// Why the journal cannot be used any more, as a call is told; `None` if it can.
    pub async fn failure(&self) -> Option<JournalError> {
        let asked = self.db.get(b"?").await;
        asked.err().map(|error| self.shut_out.explain(error))
    }

    /// Makes everything durable, closes the database and gives the folder free.
    ///
    /// # Errors
    /// Why the last writes could not be made durable. Success is no proof that they are, on a journal
    /// that failed before: see [`Commit::durable`].
    pub async fn close(&self) -> Result<(), JournalError> {
        let closed = match self.db.close().await {
            // SlateDB calls itself closed before it flushes for the last time, and a flush that has to repeat a request then
            // finds that. What it would have taken out of the log is still in the log.
            Err(error) if matches!(error.kind(), slatedb::ErrorKind::Closed(CloseReason::Clean)) => Ok(()),
            closed => closed,
        };
        // Only after the database has written its last byte may another daemon come in.
        if let Backend::Local { lock, .. } = &self.backend {
            lock.lock().take();
        }
        closed.map_err(|error| self.shut_out.explain(error))
    }

    /// The value under `key`, durable or not.
    ///
    /// # Errors
    /// Why the journal is closed, or `Unavailable` or `Corrupt` if storage is so.
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, JournalError> {
        Ok(self.db.get(key).await?)
    }

    /// SlateDB's writer epoch, and what went before a rebuild: grows with every open, so no two owners have the same.
    /// Failed opens leave gaps.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The shard of a store whose catalog it is, as its marker says; a daemon by itself may open one of several.
    pub fn shard(&self) -> ShardOf {
        self.shard
    }

    /// Where the journal lives.
    pub fn kind(&self) -> JournalKind {
        match self.backend {
            Backend::Object(_) => JournalKind::Object,
            Backend::Local { .. } => JournalKind::Local,
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("kind", &self.kind()).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

const KEY_BYTES_MAX: usize = u16::MAX as usize;
const BATCH_BYTES_MAX: usize = 64 << 20;

fn write_batch(mutations: Vec<Mutation>) -> Result<WriteBatch, JournalError> {
    let invalid = |reason: &str| Err(JournalError::Invalid(reason.to_owned()));
    if mutations.is_empty() {
        return invalid("the batch is empty");
    }
    let mut batch = WriteBatch::new();
    let mut bytes = 0;
    for mutation in mutations {
        let (key, value) = match mutation {
            Mutation::Put { key, value } => (key, Some(value)),
            Mutation::Delete { key } => (key, None),
        };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return invalid("a key is empty or longer than 65,535 bytes");
        }
        bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        if bytes > BATCH_BYTES_MAX {
            return invalid("the batch is larger than 64 MiB");
        }
        match value {
            Some(value) => batch.put_bytes(key, value),
            None => batch.delete(key),
        }
    }
    Ok(batch)
}

/// The logs, as markers call them.
const OBJECTS_LOG: &str = "objects";
const APPEND_LOG: &str = "append-log";
const LOCAL_LOG: &str = "local-log";
/// The database below the folder of a local journal.
const LOCAL_DB: &str = "db";
const LOCAL_LOG_FOLDER: &str = "log";

/// Whether a journal is opened as it is, or begun to be rebuilt.
#[derive(Clone, Copy)]
enum OpenMode {
    Whole,
    Rebuild,
}

impl OpenMode {
    /// Returns what the database is.
    async fn check(self, marker: &JournalMarker, claim: JournalClaim) -> Result<Checked, JournalError> {
        match self {
            Self::Whole => marker.check_claim(claim).await,
            Self::Rebuild => marker.begin_rebuild().await.map(|()| Checked { epochs_before: 0, shard: ShardOf::WHOLE }),
        }
    }
}

/// The marker of a journal on an object store. Where files can be appended to, a new journal has a log of those.
async fn marker_of(store: &Arc<dyn ObjectStore>, prefix: &Path, appends: bool) -> Result<JournalMarker, JournalError> {
    match appends {
        true => JournalMarker::find(store, prefix, APPEND_LOG, OBJECTS_LOG).await,
        false => Ok(JournalMarker::new(Arc::clone(store), prefix.clone(), OBJECTS_LOG)),
    }
}

/// The log of a journal with this marker, in the folder that there is for one; `None` if it is SlateDB's own.
fn leased_log(
    marker: &JournalMarker,
    folder: Option<Arc<dyn LogFolder>>,
    settings: &JournalSettings,
) -> Option<Arc<LeasedLog>> {
    let limits = LeasedLogLimits {
        file_bytes_max: settings.log_segment_bytes,
        idle_close: settings.log_idle_close,
        patience: settings.log_patience,
    };
    folder.filter(|_| marker.log() == APPEND_LOG).map(|folder| LeasedLog::new(folder, limits))
}

async fn open_object(
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    updates: Updates,
    log_folder: Option<Arc<dyn LogFolder>>,
    settings: &JournalSettings,
    opening: OpenMode,
) -> Result<Journal, JournalError> {
    let marker = marker_of(&store, &prefix, log_folder.is_some()).await?;
    let objects = OpeningObjects::new(Arc::clone(&store), &prefix);
    // With a log of its own a database is asked as ever.
    let seen: Arc<dyn ObjectStore> = match &log_folder {
        None => Arc::new(objects.clone()),
        Some(_) => Arc::clone(&store),
    };
    let on_record = OnRecord::new(Arc::clone(&seen), prefix.clone(), settings.clock.clone());
    let (checked, raised) = futures::join!(opening.check(&marker, settings.claim), on_record.raise_to_tables());
    let Checked { epochs_before, shard } = checked?;
    raised?;
    let log = leased_log(&marker, log_folder, settings);
    let db = build_on_object(&seen, &prefix, updates, log, settings, &on_record).await?;
    objects.done().await;
    if let (OpenMode::Whole, JournalClaim::Alone) = (opening, settings.claim) {
        // Once more: whoever shut daemons out for good, or for others, may have done so between the first look and this fence.
        opening.check(&marker, settings.claim).await?;
    }
    let epoch = db.manifest().writer_epoch();
    let successor = Successor::new(store, prefix, epoch, settings);
    let shut_out = ShutOut::Successor(successor.found().clone());
    let group_commit = GroupCommit::start(db.clone(), settings.company_wait, successor);
    let clock = settings.clock.clone();
    Ok(Journal {
        epoch: epochs_before + epoch,
        backend: Backend::Object(group_commit),
        shut_out,
        db,
        marker,
        shard,
        clock,
    })
}

/// Opens the database with a clock that is not behind what is on record: it was raised to the tables before.
async fn build_on_object(
    store: &Arc<dyn ObjectStore>,
    prefix: &Path,
    updates: Updates,
    log: Option<Arc<LeasedLog>>,
    settings: &JournalSettings,
    on_record: &OnRecord,
) -> Result<Db, JournalError> {
    let ticks = Arc::new(Ticks(settings.clock.clone()));
    let db = loop {
        let building = Db::builder(prefix.clone(), Arc::clone(store))
            .with_settings(slate_settings(settings, updates))
            .with_db_cache(block_cache(settings), 0)
            .with_system_clock(Arc::<Ticks>::clone(&ticks));
        let building = match settings.claim {
            JournalClaim::Alone | JournalClaim::Reshard { .. } | JournalClaim::Fill { .. } => building,
            JournalClaim::Member { epoch_before, .. } => building.with_expected_epoch(epoch_before),
        };
        let building = match &log {
            None => building,
            Some(log) => {
                // SlateDB's own collector would look for its own log and never shorten ours.
                let gc = GarbageCollectorBuilder::new(prefix.clone(), Arc::clone(store))
                    .with_options(gc_options(settings, updates))
                    .with_system_clock(Arc::<Ticks>::clone(&ticks))
                    .with_wal_gc(Arc::new(LogGc::leased(Arc::clone(log))));
                building.with_wal_writer(Box::new(LeasedLogInit::new(Arc::clone(log)))).with_gc_builder(gc)
            }
        };
        match building.build().await {
            Ok(db) => break db,
            // An owner with a clock ahead of ours added a table meanwhile. It is shut out, so that happens once.
            Err(error) => match on_record.raise_to_tables().await {
                Ok(true) => tracing::info!(%error, "opening the catalog again, with the clock of its last owner"),
                _ => return Err(JournalError::at_open(error)),
            },
        }
    };
    // Before the first write: its stamps have to be later than those on record, and than every replayed one.
    match log {
        None => {
            let manifest = db.manifest();
            futures::future::try_join(on_record.raise_to_tables(), on_record.raise_to_log(&manifest)).await?;
        }
        Some(log) => {
            on_record.raise_to_tables().await?;
            settings.clock.raise(tick(log.newest_tick()));
        }
    }
    Ok(db)
}

async fn open_local(
    folder: PathBuf,
    traffic: Traffic,
    space: DiskSpace,
    settings: &JournalSettings,
    opening: OpenMode,
) -> Result<Journal, JournalError> {
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    let (lock, anchor, store) = {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || lock_folder(&folder))
            .await
            .map_err(|error| JournalError::Internal(error.into()))??
    };
    let store: Arc<dyn ObjectStore> = Arc::new(CountedStore::new(Arc::new(store), traffic.clone()));
    let opens = disk::OpeningFlag::begin();
    let objects = DiskObjects::new(store, space.clone(), anchor.clone(), opens.clone());
    let store: Arc<dyn ObjectStore> = Arc::new(objects);
    let prefix = Path::from(LOCAL_DB);
    let marker = JournalMarker::new(Arc::clone(&store), prefix.clone(), LOCAL_LOG).in_folder(&folder);
    let Checked { epochs_before, shard } = opening.check(&marker, settings.claim).await?;
    let log = Log::new(folder.join(LOCAL_LOG_FOLDER), anchor.clone(), settings.log_segment_bytes, traffic, space);
    let log = AbortOnDrop(log);
    let slate_settings = slate_settings(settings, Updates::Unconditional);
    let ticks = Arc::new(Ticks(settings.clock.clone()));
    let on_record = OnRecord::new(Arc::clone(&store), prefix.clone(), settings.clock.clone());
    on_record.with_silence(settings.compaction_silence()).raise_to_tables().await?;
    // SlateDB's own collector would look for its own log and never shorten ours.
    let gc = GarbageCollectorBuilder::new(prefix.clone(), Arc::clone(&store))
        .with_options(gc_options(settings, Updates::Unconditional))
        .with_system_clock(Arc::<Ticks>::clone(&ticks))
        .with_wal_gc(Arc::new(LogGc::on_disk(Arc::clone(&log.0))));
    let shut_out = ShutOut::Moved(anchor);
    let building = Db::builder(prefix, store)
        .with_settings(slate_settings)
        .with_db_cache(block_cache(settings), 0)
        .with_system_clock(ticks)
        .with_wal_writer(Box::new(LogInit::new(Arc::clone(&log.0))))
        .with_gc_builder(gc)
        .build();
    let built = tokio::select! {
        built = building => built,
        // The database repeats for ever what fails.
        () = shut_out.watch() => Err(JournalError::Moved { folder: folder.clone() })?,
    };
    let db = built.map_err(|error| match shut_out.reason().unwrap_or_else(|| JournalError::at_open(error)) {
        // Nobody else can have come in between: this one has the lock.
        JournalError::Fenced => JournalError::ManifestsMissing(folder.join(LOCAL_DB).display().to_string()),
        error => error,
    })?;
    // Before the first write: its stamps have to be later than every replayed one.
    settings.clock.raise(tick(log.0.newest_tick()));
    Ok(Journal {
        epoch: epochs_before + db.manifest().writer_epoch(),
        backend: Backend::Local { _log: log, lock: Mutex::new(Some(lock)), opens },
        shut_out,
        db,
        marker,
        shard,
        clock: settings.clock.clone(),
    })
}

/// Creates the folder and locks it for as long as the returned file is open.
fn lock_folder(folder: &FilePath) -> Result<(File, Anchor, LocalFileSystem), JournalError> {
    let unavailable = |error: io::Error| JournalError::Unavailable(error.into());
    std::fs::create_dir_all(folder.join(LOCAL_DB)).map_err(unavailable)?;
    std::fs::create_dir_all(folder.join(LOCAL_LOG_FOLDER)).map_err(unavailable)?;
    let lock =
        File::options().write(true).create(true).truncate(false).open(folder.join("LOCK")).map_err(unavailable)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => JournalError::Locked { folder: folder.to_owned() },
        TryLockError::Error(error) => unavailable(error),
    })?;
    // The folder's name and the lock's must survive a power cut together with what is written below them.
    sync_parent(&folder.join("LOCK")).and_then(|()| sync_parent(folder)).map_err(unavailable)?;
    let anchor = Anchor::new(folder.join("LOCK"), &lock, &[LOCAL_DB, LOCAL_LOG_FOLDER]).map_err(unavailable)?;
    // Under the lock: before it, the files may be those of a daemon that is writing them.
    remove_staged(&folder.join(LOCAL_DB)).map_err(unavailable)?;
    let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
    Ok((lock, anchor, store))
}

/// Removes what a crash left of objects that were being written: `object_store` writes `NAME#N` first, and renames it.
fn remove_staged(folder: &FilePath) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_staged(&entry.path())?;
        } else if entry.file_name().to_string_lossy().contains('#') {
            match std::fs::remove_file(entry.path()) {
                // A journal of this process that was dropped a moment ago has renamed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Stops the local log when the journal is dropped, so that SlateDB's tasks end too.
struct AbortOnDrop(Arc<Log>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
