//! A bounded copy, on local disk, of what was written to an object store and read from it: a daemon that starts again on
//! the same node reads it here.
//!
//! [`LocalCopy::keep`] notes a run of bytes and returns at once; a task per folder ([`LocalCopy::run`]) writes it to a
//! file of its own, and removes the entries used longest ago to stay within the bound. [`LocalCopy::read`] gives a range
//! that the entries of a file cover, checked page by page. Nothing is synced: after a power cut, checksums tell what is
//! whole. After a start the order of use is that of writing.
//!
//! # Invariants
//! - Never the source of truth: what is missing, damaged or foreign is a miss. A read that finds wrong bytes all the
//!   same, because they were wrong when they came, says so ([`LocalCopy::forget`]) and reads again.
//! - Nobody waits for it: when it is behind, or its disk fails, it keeps nothing for a while.
//! - Entries never take more than the bound on disk, each counted in whole blocks of 4 KiB.
//! - A folder has one daemon, by a lock.
//!
//! # Crash
//! The runs that waited are not kept; a half-written entry is removed at the next start.

mod entry;
mod folder;
mod run;
mod shelf;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use folder::Folder;
use run::ByteRun;

use crate::config::LocalCopySettings;
use crate::metrics::Metrics;
use crate::model::{PhysicalFileId, crc32c};
use crate::runtime::{Failure, TaskGroup};

/// Folders of copies. Clones share them.
#[derive(Debug, Clone)]
pub struct LocalCopy {
    /// The folder of a file is chosen by the checksum of its name; `None` for a folder that cannot be used.
    folders: Arc<[Option<Arc<Folder>>]>,
}

impl LocalCopy {
    /// Opens a folder below each directory of `settings`; `store` tells stores apart. A folder that cannot be opened is a
    /// warning. None if there is no other. Blocks.
    pub fn open(settings: &LocalCopySettings, store: &str, metrics: &Metrics) -> Option<Self> {
        let name = format!("esker-local-copy-{:08x}", crc32c(store.as_bytes()));
        let shares = settings.dirs.len().max(1) as u64;
        let (bytes_max, waiting_max) = (settings.bytes_max / shares, settings.waiting_bytes_max / shares);
        let open = |dir| match Folder::open(dir, &name, bytes_max, waiting_max, metrics.clone()) {
            Ok(folder) => Some(Arc::new(folder)),
            Err(error) => {
                let dir = dir.display();
                tracing::warn!(%dir, %error, "no local copy there; set execution.checkpointing.local-backup.dirs to folders that can be written");
                None
            }
        };
        let folders: Arc<[_]> = settings.dirs.iter().map(|dir| open(dir)).collect();
        folders.iter().any(Option::is_some).then_some(Self { folders })
    }

    /// Starts the tasks that write. They end after [`Self::close`].
    pub fn run(&self, tasks: &TaskGroup) {
        for folder in self.folders.iter().flatten() {
            tasks.spawn("local-copy", Failure::FailsItsWork, Arc::clone(folder).run());
        }
    }

    /// Keeps bytes of `file` from `start` on, soon, if there is time and room for them. They must be on storage.
    pub fn keep(&self, file: &PhysicalFileId, start: u64, parts: Vec<Bytes>) {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        if let Some(folder) = self.folder(file)
            && len > 0
        {
            folder.keep(file, ByteRun { start, len }, parts);
        }
    }

    /// Bytes `range` of `file`; `None` if not all of them are here and whole.
    pub async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Option<Bytes> {
        if range.is_empty() {
            return None;
        }
        self.folder(file)?.read(file, range).await
    }

    /// Whether a read of this range needs no request, as far as is known.
    pub fn has(&self, file: &PhysicalFileId, range: &Range<u64>) -> bool {
        self.folder(file).is_some_and(|folder| folder.has(file, range))
    }

    /// Drops everything of `file`. Returns whether there was anything.
    pub fn forget(&self, file: &PhysicalFileId) -> bool {
        self.folder(file).is_some_and(|folder| folder.forget(file))
    }

    /// Takes nothing more; the tasks write what waits and end.
    pub fn close(&self) {
        self.folders.iter().flatten().for_each(|folder| folder.close());
    }

    fn folder(&self, file: &PhysicalFileId) -> Option<&Arc<Folder>> {
        let number = u64::from(crc32c(file.as_str().as_bytes())) % self.folders.len().max(1) as u64;
        self.folders.get(usize::try_from(number).unwrap_or(0))?.as_ref()
    }
}

#[cfg(test)]
mod tests;
