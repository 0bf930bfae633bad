//! The catalog's log on a store where files are appended to, and an open file is its writer's: HDFS.
//!
//! Frames, groups and their ids are those of the log on a local disk. Different is what a file can be trusted with:
//!
//! - Nobody sees the last bytes of a file that is open. Whoever takes the log over closes the files of earlier owners first, by
//!   *releasing* them (recovering the lease), and reads only then.
//! - After an error, or without an answer in time, nobody knows what of a group is there, and the file takes nothing more. The
//!   writer writes the group again, with the same ids, to another file, and seals the first one meanwhile. So a frame may be in
//!   two files.
//! - Nothing is ever cut off or written over.
//!
//! ```text
//! <folder>/<epoch>-<owner>.fence               a mark: an owner of this epoch has taken over. Empty
//! <folder>/<epoch>-<first id>-<number>.log     log files, ../format.rs; the number tells those of an epoch apart
//! ```
//!
//! Which frames count is decided in `index.rs`, without a store; taking over is in `open.rs`, appending in `sink.rs`, looking
//! at a log that others have in `reader.rs`.
//!
//! # Fencing
//! An old owner `e` must answer nothing that a new owner `E` does not replay. SlateDB has raised the epoch in the manifest
//! before either step.
//!
//! - *Bytes in files that `E` knows.* `E` releases every file of an earlier epoch before it reads one. An answer of `e` needs
//!   all DataNodes of the pipeline and then the NameNode to say that the group is synced, and the NameNode refuses that once
//!   the file is released. So what `e` has answered is in the file when `E` reads it, and nothing is answered later.
//! - *Files that `E` does not know.* `E` creates its mark, and then lists. `e` creates a file, and then lists, before it writes
//!   a byte to it; it goes on only if its own mark is there and no name of a later epoch is. If the file is missing in the list
//!   of `E`, it was created after that list, hence after the mark, so `e` sees the mark and ends. If `e` does not see it, the file
//!   was created before the list of `E`, which then releases it.
//! - *Folders that were replaced.* `e` ends as well when its own mark is gone: `E` deletes the marks of earlier owners, and a
//!   catalog that was moved aside and made anew has the marks of others. The mark carries the name of the opening, so an
//!   epoch that comes again does not help.
//!
//! A create whose answer was lost may be carried out later, by a NameNode that was slow: an empty file then, which nobody
//! writes to, since names are never used twice.
//!
//! # Invariants
//! - Ids have no gaps. A log file says with its name that all frames before its first one are durable, a frame says it of those
//!   up to its `durable_id`: if one of them is missing behind the replay point, that is damage, and the log is not opened.
//! - What no frame and no name calls durable may be in the memory of DataNodes alone. It is written again, by the new owner and
//!   as its own, before it is replayed.
//! - Two copies of a frame are the same batches; that of the later file counts.
//!
//! # Crash
//!
//! | crash of the owner | leaves | healed at the next open by |
//! | --- | --- | --- |
//! | before its mark was created | nothing | nothing to do |
//! | with its mark | a mark, perhaps open | the next mark has a higher epoch; older ones are deleted |
//! | releasing files | closed files, and open ones | releasing is repeated |
//! | writing uncertain frames again | some of them in a file of its own | both copies are read; what is uncertain is written again |
//! | creating a file | an empty one, open | releasing it; it says only what its first id says |
//! | writing or syncing a group | frames and a torn tail, not answered | frames that are whole count, the tail is skipped |
//! | after the sync, before the answer | whole frames | they count |
//! | after a failed write, before the next file | frames that may be whole | as above |
//! | writing a group again | the same frames in two files | one copy counts |
//! | closing a full or idle file | an open file, all of it synced | releasing it |
//! | deleting files that are not needed | some of them | the next collection |

mod index;
mod open;
mod reader;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use slatedb::wal::WalError;

use super::abort::AbortHandle;
use super::format::LogFileHeader;
use crate::store::{LogFolder, StoreError};

pub use self::open::LeasedLogInit;
pub use self::reader::LeasedLogReader;

/// How the files of a leased log end, and how long a write is tried.
#[derive(Debug, Clone, Copy)]
pub struct LeasedLogLimits {
    /// A log file that is longer than this is followed by a new one.
    pub file_bytes_max: u64,
    /// A log file to which nothing was written for so long is closed.
    pub idle_close: Duration,
    /// A group that could not be written for so long, to one file after the other, ends the log.
    pub patience: Duration,
}

/// One log: where it is and what is known about it. Shared by its writer, collector and owner.
#[derive(Debug)]
pub struct LeasedLog {
    folder: Arc<dyn LogFolder>,
    limits: LeasedLogLimits,
    newest_tick: AtomicI64,
    abort: AbortHandle,
}

impl LeasedLog {
    /// A log in `folder`.
    pub fn new(folder: Arc<dyn LogFolder>, limits: LeasedLogLimits) -> Arc<Self> {
        Arc::new(Self { folder, limits, newest_tick: AtomicI64::default(), abort: AbortHandle::default() })
    }

    /// The largest tick that was replayed.
    pub fn newest_tick(&self) -> i64 {
        self.newest_tick.load(Ordering::Relaxed)
    }

    fn saw_tick(&self, tick: i64) {
        self.newest_tick.fetch_max(tick, Ordering::Relaxed);
    }

    /// Stops the writer as a crash would: what is not durable yet never will be.
    pub fn abort(&self) {
        self.abort.abort();
    }

    pub(super) fn folder(&self) -> &Arc<dyn LogFolder> {
        &self.folder
    }

    /// What is in the folder now.
    pub(super) async fn list(&self) -> Result<Listing, WalError> {
        let names = self.folder.list().await.map_err(unavailable)?;
        let mut log_files: Vec<_> = names.iter().filter_map(|name| LogFileHeader::from_file_name(name)).collect();
        log_files.sort_unstable();
        let marks = names.iter().filter_map(|name| OwnerMark::from_file_name(name)).collect();
        Ok(Listing { log_files, marks })
    }
}

fn unavailable(error: StoreError) -> WalError {
    WalError::Unavailable(Arc::new(error))
}

/// The contents of the folder.
pub(super) struct Listing {
    /// The log files, oldest first.
    pub log_files: Vec<LogFileHeader>,
    marks: Vec<OwnerMark>,
}

impl Listing {
    /// Whether the owner with this mark may write: nobody has taken over from it, and this is the folder that it opened.
    fn check_owner(&self, own: &OwnerMark) -> Result<(), WalError> {
        let has_own = self.marks.contains(own);
        let has_later = self.marks.iter().any(|mark| mark != own && mark.epoch >= own.epoch)
            || self.log_files.iter().any(|header| header.epoch > own.epoch);
        if has_own && !has_later { Ok(()) } else { Err(WalError::Fenced) }
    }
}

/// An owner, as it says in the folder that it has taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnerMark {
    epoch: u64,
    /// The name of the opening.
    owner: String,
}

impl OwnerMark {
    fn file_name(&self) -> String {
        format!("{:020}-{}.fence", self.epoch, self.owner)
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let (epoch, owner) = name.strip_suffix(".fence")?.split_once('-')?;
        let mark = Self { epoch: epoch.parse().ok()?, owner: owner.to_owned() };
        (mark.file_name() == name).then_some(mark)
    }
}

#[cfg(test)]
mod tests;
