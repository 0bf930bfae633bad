//! Where the frames of a log on a local disk go: one file after the other.
//!
//! A full disk does not end the log: the frames are written again in what is kept back for the catalog, and when that is used
//! up, it waits for room. A failed sync ends it for good.

use std::io::{self, IoSlice};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering;

use slatedb::wal::WalError;

use super::Log;
use super::fence::FenceFiles;
use super::format::LogFileHeader;
use super::writer::{FrameSink, SealedFrames, StopBell};
use crate::metrics::labels::StoreOperation;
use crate::store::append_file::AppendFile;
use crate::store::remove_leftover;
use crate::store::space::{DiskUse, ROOM_PAUSE, is_full};

/// The log files of one owner on a local disk.
pub(super) struct DiskSink {
    log: Arc<Log>,
    fence: FenceFiles,
    epoch: u64,
    log_file: Option<AppendFile>,
}

impl DiskSink {
    /// No log file is begun yet. `fence` was raised to `epoch`.
    pub(super) fn new(log: Arc<Log>, fence: FenceFiles, epoch: u64) -> Self {
        Self { log, fence, epoch, log_file: None }
    }

    /// Lets the next owner know what it has to find.
    fn note_newest(&self, first_id: u64) {
        if let Err(error) = self.fence.note_newest(first_id, &self.log.space) {
            tracing::warn!(%error, first_id, "the log could not record its newest file, whose loss would go unnoticed");
        }
    }

    /// Waits a moment. `waits` is whether it has been waiting.
    ///
    /// # Errors
    /// `Unavailable` if the log is to end: nobody was told that what it cannot write is durable.
    fn wait_for_room(&self, stop: &StopBell, error: io::Error, waits: &mut bool) -> Result<(), WalError> {
        if !std::mem::replace(waits, true) {
            tracing::warn!(folder = %self.log.folder.display(), %error, "the catalog's log waits for room on its disk");
        }
        if stop.wait(ROOM_PAUSE) { Err(WalError::Unavailable(Arc::new(error))) } else { Ok(()) }
    }
}

impl FrameSink for DiskSink {
    fn write(&mut self, frames: &SealedFrames<'_>, stop: &StopBell) -> Result<bool, WalError> {
        let parts: Vec<_> = frames.parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut is_new = false;
        let mut waits = false;
        loop {
            // For each try anew: a later owner may have taken over while this one waited for room.
            let permit = self.fence.enter(self.epoch)?;
            let written = begin_log_file_if_full(&mut self.log_file, &self.log, self.epoch, frames.first_id).and_then(
                |(log_file, begun)| {
                    is_new |= begun;
                    append(&self.log, log_file, &parts)
                },
            );
            if is_new && written.is_ok() {
                self.note_newest(frames.first_id);
            }
            // Not held while this waits for room: a successor must not wait for the same.
            drop(permit);
            match written {
                Ok(()) => return Ok(is_new),
                Err(error) if is_full(&error) && !self.log_file.as_ref().is_some_and(AppendFile::is_poisoned) => {
                    if !self.log.space.give_up(DiskUse::Catalog) {
                        self.wait_for_room(stop, error, &mut waits)?;
                    }
                }
                Err(error) => return Err(WalError::Unavailable(Arc::new(error))),
            }
        }
    }
}

/// Returns the log file to append to, and whether it is new.
fn begin_log_file_if_full<'a>(
    log_file: &'a mut Option<AppendFile>,
    log: &Log,
    epoch: u64,
    first_id: u64,
) -> io::Result<(&'a mut AppendFile, bool)> {
    let full = log_file.take_if(|log_file| log_file.len() >= log.file_bytes_max).is_some();
    match log_file {
        Some(log_file) => Ok((log_file, false)),
        None => {
            let header = LogFileHeader { epoch, first_id, number: 0 };
            let path = log.folder.join(header.file_name());
            let header = header.encode();
            // Before the file is made: in a folder that took the place of the catalog's, it would be somebody else's.
            log.anchor.look()?;
            let begun = AppendFile::create(&path)
                .and_then(|mut new| new.append(&[IoSlice::new(&header)]).map(|_| new))
                .inspect_err(|error| {
                    // It holds nothing, and the name is needed for the next try. If it stays, that try fails for good.
                    if is_full(error) {
                        remove_leftover(&path);
                    }
                });
            let new = begun?;
            // Moved in between, it may be where it must not be. Wherever this path leads, nothing is in it yet.
            log.anchor.look().inspect_err(|_| remove_leftover(&path))?;
            tracing::debug!(epoch, first_id, full, "catalog log begins a log file");
            Ok((log_file.insert(new), true))
        }
    }
}

fn append(log: &Log, log_file: &mut AppendFile, parts: &[IoSlice<'_>]) -> io::Result<()> {
    #[cfg(test)]
    if log.fail_next.load(Ordering::Acquire) {
        log_file.poison();
    }
    #[cfg(test)]
    if log.full_writes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // Synced before anything more is written: only the end of a log file can be torn.
    let synced =
        log.traffic.time_blocking(StoreOperation::Append, || log_file.append(parts).and_then(|_| log_file.sync()));
    // If it is not where it was, the whole catalog may have been moved: that is then the cause.
    synced.or_else(|error| log.anchor.look().and(Err(error)))
}
