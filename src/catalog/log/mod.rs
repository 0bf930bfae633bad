//! The catalog's log on stores that append: SlateDB's write-ahead log as a file that only grows.
//!
//! SlateDB's own log writes one object per commit. On an object store that is one request; on a
//! local disk it is a small file each time, the very disease this daemon cures, and on HDFS five calls and an object of the
//! NameNode. This log appends to a few large files instead: whatever was committed while the last sync ran becomes one
//! *frame* and shares the next one.
//!
//! ```text
//! append -> current frame -> (flusher thread) -> write, sync -> SlateDB's durable sequence
//!                                                               number -> waiters
//! ```
//!
//! Bytes are in `format.rs`, reading those of one file in `scan.rs`, appending in `writer.rs`, deleting in `gc.rs`. Two kinds
//! of log share these: the one on a local disk, which the rest of this text is about, and the one on HDFS, where files have
//! leases and nobody sees the end of an open one: `leased/mod.rs`. SlateDB calls a frame a *WAL file*; its ids are our frame
//! ids. Who may open the folder at all, and which log a database was written with, is [`super::slate`]'s business: SlateDB
//! checks neither.
//!
//! On a local disk frames go to `disk.rs`, earlier owners are shut out in `fence.rs`, and the order in which a new owner takes
//! over is in `open.rs`.
//!
//! ```text
//! <folder>/TURN   locked by the one opener that is fencing
//! <folder>/FENCE  the highest epoch that may write: u64 and its CRC32C, both little-endian; then likewise the first
//!                 id of the newest log file that has a durable frame
//! <folder>/DATA   locked shared around every flush, exclusive by the fencer
//! <folder>/<epoch>-<first id>.log   log files
//! ```
//!
//! # Invariants
//! - A batch is in one frame, whole. Frames are in the order of their sequence numbers and ids.
//! - An id at or below one that was durable is never used again.
//! - Nothing counts as durable before its `fdatasync` returned. After a failed one nothing more is
//!   written; the log has to be opened again.
//! - While epoch `e` is in FENCE, no frame of an epoch below `e` reaches a log file.
//! - Only the last log file may have a torn tail: a new one is begun after the old one was synced,
//!   or after a fencer cut and synced it.
//! - A write for which the disk has no room is taken back and repeated in what is kept back for the catalog
//!   ([`DiskSpace`]). With nothing left it waits.
//! - What is not known to be durable at an open is written anew before it is replayed: after a failed sync the pages of a
//!   file may be what was written while the disk has something else, and the next sync says nothing of it.
//! - A log file is deleted when the latest manifest needs none of its frames, and never the newest. Ids have no gaps, so a file
//!   that somebody else has deleted is missed.
//! - What is synced is where the next start looks for it.
//!
//! # Crash
//!
//! | crash during | leaves | healed at the next open by |
//! | --- | --- | --- |
//! | creating a log file | a file without a frame, perhaps without a whole header | writing the header; the next one begins with the same id |
//! | recording it in FENCE | a FENCE that names the one before | nothing to do: then only a loss of this one goes unnoticed |
//! | writing a frame | a torn tail, never answered | copying it to `lost+found`, cutting it, `fdatasync` |
//! | `fdatasync`, or after it failed | a whole frame in the page cache | writing it again, `fdatasync`, before it is replayed |
//! | answering | a durable frame | replay: it counts |
//! | fencing, after FENCE | a FENCE without a log file | the next opener has a higher epoch |
//! | fencing, after the cut | a clean log | nothing to do |
//! | deleting | log files that nobody needs | the next collection |
//!
//! A bad frame that a later frame calls durable is damage, not a tail: the log is then not opened,
//! so that nothing acknowledged is cut. Nothing tells a last frame that was damaged from one that was never synced: what is
//! cut is kept in `lost+found` beside the log, see `kept.rs`.

mod abort;
mod disk;
mod fence;
mod format;
mod gc;
mod kept;
mod leased;
mod open;
mod scan;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::anchor::Anchor;
use crate::store::{DiskSpace, Traffic};
use abort::AbortHandle;

pub use gc::LogGc;
pub use leased::{LeasedLog, LeasedLogInit, LeasedLogLimits, LeasedLogReader};
pub use open::LogInit;

/// One log: where it is and what is known about it. Shared by its writer, collector and owner.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    /// The anchor of the folder that it is in.
    anchor: Anchor,
    /// A log file that is longer than this is followed by a new one.
    file_bytes_max: u64,
    traffic: Traffic,
    space: DiskSpace,
    newest_tick: AtomicI64,
    abort: AbortHandle,
    #[cfg(test)]
    fail_next: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    full_writes: std::sync::atomic::AtomicU64,
}

impl Log {
    /// A log in `folder`, which is created when the log is opened. Where `anchor` finds that all this was moved, no
    /// log file is begun or deleted any more.
    pub fn new(folder: PathBuf, anchor: Anchor, file_bytes_max: u64, traffic: Traffic, space: DiskSpace) -> Arc<Self> {
        Arc::new(Self {
            folder,
            anchor,
            file_bytes_max,
            traffic,
            space,
            newest_tick: AtomicI64::default(),
            abort: AbortHandle::default(),
            #[cfg(test)]
            fail_next: Default::default(),
            #[cfg(test)]
            full_writes: Default::default(),
        })
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

    /// Makes the next write fail.
    #[cfg(test)]
    pub fn fail_next_write(&self) {
        self.fail_next.store(true, Ordering::Release);
    }

    /// Makes so many writes find the disk full.
    #[cfg(test)]
    pub fn find_the_disk_full(&self, writes: u64) {
        self.full_writes.store(writes, Ordering::Release);
    }
}
