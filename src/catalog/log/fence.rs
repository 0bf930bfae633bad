//! Shuts earlier owners of the log out.
//!
//! A flush holds DATA shared from before it reads FENCE until its sync returned. A new owner writes its epoch to FENCE, and then
//! takes DATA exclusively once: whatever began before is over then, and whatever begins later refuses. [`super::open`] says
//! what comes around that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Buf;
use slatedb::wal::WalError;

use super::format::{LogFileHeader, crc32c};
use crate::store::DiskSpace;
use crate::store::append_file::sync_parent;
use crate::store::space::DiskUse;

/// The three files by which owners agree on who writes.
///
/// FENCE also says which log file is the newest that has a durable frame. The newest is never collected, so a folder without
/// it has lost frames that were answered, though nothing that is there says so.
pub(super) struct FenceFiles {
    turn: File,
    fence: File,
    data: File,
}

/// A number and its checksum.
const FENCE_LEN: usize = 12;
/// Where the first id of the newest log file is.
const NEWEST_AT: u64 = FENCE_LEN as u64;

impl FenceFiles {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        // The names must survive a power cut: with a FENCE that is lost, an owner of an older epoch could raise its own.
        sync_parent(folder)?;
        let open =
            |name| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(name));
        let files = Self { turn: open("TURN")?, fence: open("FENCE")?, data: open("DATA")? };
        File::open(folder)?.sync_all()?;
        Ok(files)
    }

    /// Shuts out every epoch below `epoch`. The turn is held until the result is dropped.
    ///
    /// Blocks while another opener has its turn, and while an older owner finishes its flush; a
    /// process that was stopped during its flush has to go on or die first.
    pub(super) fn raise(&self, epoch: u64, space: &DiskSpace) -> Result<Turn, WalError> {
        let turn = self.turn.try_clone().map_err(unavailable)?;
        turn.lock().map_err(unavailable)?;
        let turn = Turn(turn);
        // Bad bytes here were torn by a power cut, which no writer survived.
        if self.read().map_err(unavailable)?.is_some_and(|highest| highest >= epoch) {
            return Err(WalError::Fenced);
        }
        let bytes = sealed(epoch);
        // FENCE first, then DATA, the other way round than a writer (`enter`): every write that did not see the new epoch is
        // over when DATA can be locked. Some file systems need room even where there was something before.
        space
            .insist(DiskUse::Catalog, || self.fence.write_all_at(&bytes, 0))
            .and_then(|()| self.fence.sync_data())
            .and_then(|()| self.data.lock())
            .and_then(|()| self.data.unlock())
            .map_err(unavailable)?;
        Ok(turn)
    }

    /// Lets `epoch` write until the permit is dropped.
    ///
    /// # Errors
    /// `Fenced` if a later epoch has taken over, or is doing so right now.
    pub(super) fn enter(&self, epoch: u64) -> Result<WritePermit<'_>, WalError> {
        // DATA first, then FENCE: a later owner waits for this lock after it has written FENCE, so either it waits for this
        // write, or its epoch is seen here.
        self.data.lock_shared().map_err(unavailable)?;
        let permit = WritePermit(&self.data);
        match self.read().map_err(unavailable)? {
            Some(highest) if highest == epoch => Ok(permit),
            _ => Err(WalError::Fenced),
        }
    }

    /// Records that the log file that begins with `first_id` is the newest one. Its first frame is durable.
    ///
    /// # Errors
    /// The operating system's. The log goes on as well without: it then knows of the one before alone.
    pub(super) fn note_newest(&self, first_id: u64, space: &DiskSpace) -> io::Result<()> {
        space.insist(DiskUse::Catalog, || self.fence.write_all_at(&sealed(first_id), NEWEST_AT))?;
        self.fence.sync_data()
    }

    /// The first id of the newest log file that has a durable frame; `None` if nobody has told.
    pub(super) fn newest(&self) -> io::Result<Option<u64>> {
        self.read_at(NEWEST_AT)
    }

    /// The epoch in FENCE; `None` if there is none, or it is being written.
    fn read(&self) -> io::Result<Option<u64>> {
        self.read_at(0)
    }

    fn read_at(&self, at: u64) -> io::Result<Option<u64>> {
        let mut bytes = [0; FENCE_LEN];
        match self.fence.read_exact_at(&mut bytes, at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut rest = &bytes[..];
        let number = rest.get_u64_le();
        let good = rest.get_u32_le() == crc32c(&[&number.to_le_bytes()]);
        Ok(good.then_some(number))
    }
}

/// A number as it stands in FENCE.
fn sealed(number: u64) -> [u8; FENCE_LEN] {
    let mut bytes = [0; FENCE_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&crc32c(&[&number.to_le_bytes()]).to_le_bytes());
    bytes
}

/// The right to fence, given back on drop.
pub(super) struct Turn(File);

impl Drop for Turn {
    fn drop(&mut self) {
        // The clone shares its lock with the original, so closing it would not release it.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "unlocking the turn of the catalog log");
        }
    }
}

/// The right to write one flush, given back on drop.
pub(super) struct WritePermit<'a>(&'a File);

impl Drop for WritePermit<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "unlocking the data of the catalog log");
        }
    }
}

/// The log files in `folder`, oldest first. A collector may delete some of them at any time.
///
/// # Errors
/// The operating system's, if the folder cannot be read.
pub(super) fn list_log_files(folder: &Path) -> io::Result<Vec<LogFileHeader>> {
    let mut log_files = Vec::new();
    for entry in fs::read_dir(folder)? {
        log_files.extend(entry?.file_name().to_str().and_then(LogFileHeader::from_file_name));
    }
    log_files.sort_unstable();
    Ok(log_files)
}

/// Runs file work off the async threads.
#[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WalError> + Send + 'static,
) -> Result<T, WalError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(WalError::InternalError(Arc::new(error))))
}

pub(super) fn unavailable(error: io::Error) -> WalError {
    WalError::Unavailable(Arc::new(error))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn only_the_latest_epoch_may_write() {
        let folder = tempfile::tempdir().unwrap();
        let older = FenceFiles::open(folder.path()).unwrap();
        let newer = FenceFiles::open(folder.path()).unwrap();
        drop(older.raise(4, &DiskSpace::default()).unwrap());
        drop(older.enter(4).unwrap());

        drop(newer.raise(5, &DiskSpace::default()).unwrap());

        assert!(matches!(older.enter(4), Err(WalError::Fenced)));
        assert!(newer.enter(5).is_ok());
        assert!(matches!(older.raise(4, &DiskSpace::default()), Err(WalError::Fenced)));
        assert!(matches!(newer.raise(5, &DiskSpace::default()), Err(WalError::Fenced)));
        assert!(newer.raise(6, &DiskSpace::default()).is_ok());
    }

    #[test]
    fn a_fencer_waits_for_the_flush_that_is_running() {
        let folder = tempfile::tempdir().unwrap();
        let older = FenceFiles::open(folder.path()).unwrap();
        let newer = FenceFiles::open(folder.path()).unwrap();
        drop(older.raise(1, &DiskSpace::default()).unwrap());
        let permit = older.enter(1).unwrap();
        let (raised_tx, raised) = mpsc::channel();

        thread::scope(|scope| {
            scope.spawn(move || {
                drop(newer.raise(2, &DiskSpace::default()).unwrap());
                raised_tx.send(()).unwrap();
            });
            while older.read().unwrap() != Some(2) {
                thread::yield_now();
            }
            assert!(raised.try_recv().is_err());
            drop(permit);
            raised.recv().unwrap();
        });

        assert!(matches!(older.enter(1), Err(WalError::Fenced)));
    }

    #[test]
    fn a_fence_torn_by_a_power_cut_stops_nobody_new() {
        let folder = tempfile::tempdir().unwrap();
        let files = FenceFiles::open(folder.path()).unwrap();
        files.fence.write_all_at(&[0xff; FENCE_LEN], 0).unwrap();

        assert!(matches!(files.enter(1), Err(WalError::Fenced)));
        drop(files.raise(2, &DiskSpace::default()).unwrap());
        assert!(files.enter(2).is_ok());
    }
}
