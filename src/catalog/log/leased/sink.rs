//! Where the frames of a leased log go: one file after the other, and to another one after any error.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use slatedb::wal::WalError;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::super::format::LogFileHeader;
use super::super::writer::{FrameSink, SealedFrames, StopBell};
use super::{LeasedLog, OwnerMark, unavailable};
use crate::runtime::Clock;
use crate::store::{GrowingFile, StoreError};

/// First pause before a group is written again; doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// While a group is written, time between two looks whether the log is to end.
const STOP_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait at the end for the last group, and then for files to be closed. What stays open the next owner releases.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// The log files of one owner.
pub(super) struct LeasedSink {
    log: Arc<LeasedLog>,
    mark: OwnerMark,
    file: Option<LeasedFile>,
    /// Files that were begun, or may have been.
    number: u32,
    /// Files that are being closed or deleted.
    leaving: Vec<JoinHandle<()>>,
    runtime: Handle,
}

struct LeasedFile {
    file: Box<dyn GrowingFile>,
    header: LogFileHeader,
    len: u64,
}

/// Why a group is not in the file that it was to be in.
enum LogWriteFault {
    /// A later owner has taken over.
    Fenced,
    /// Nobody knows.
    Failed(StoreError),
}

impl From<StoreError> for LogWriteFault {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl LeasedSink {
    /// No log file is begun yet. `mark` is in the folder. Call it where a runtime is.
    pub(super) fn new(log: Arc<LeasedLog>, mark: OwnerMark) -> Self {
        Self { log, mark, file: None, number: 0, leaving: vec![], runtime: Handle::current() }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.mark.epoch
    }

    /// Writes frames and returns once they are durable. True if they began a new log file.
    ///
    /// # Errors
    /// `Fenced`; or `Unavailable` if no file has taken them in all the time that there is.
    pub(super) async fn append(&mut self, parts: &[Bytes], first_id: u64) -> Result<bool, WalError> {
        let (begun, mut pause, mut is_new) = (Clock::instant(), RETRY_PAUSE, false);
        loop {
            match self.try_append(parts, first_id, &mut is_new).await {
                Ok(()) => return Ok(is_new),
                Err(LogWriteFault::Fenced) => return Err(WalError::Fenced),
                Err(LogWriteFault::Failed(error)) => {
                    // Whatever of the group is there: nothing more comes behind it.
                    self.close_file();
                    if begun.elapsed() + pause > self.log.limits.patience {
                        return Err(unavailable(error));
                    }
                    let error = crate::error::chain(&error);
                    if pause == RETRY_PAUSE {
                        tracing::warn!(first_id, error, "the catalog's log is written again, to another file");
                    } else {
                        tracing::debug!(first_id, error, "the catalog's log is written once more, to another file");
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn try_append(&mut self, parts: &[Bytes], first_id: u64, is_new: &mut bool) -> Result<(), LogWriteFault> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let has_no_room = |file: &LeasedFile| {
            let block = self.log.folder.file_bytes_max().filter(|block| *block > 0);
            file.len >= self.log.limits.file_bytes_max || block.is_some_and(|block| file.len + bytes > block)
        };
        if self.file.as_ref().is_some_and(has_no_room) {
            self.close_file();
        }
        let mut all = Vec::with_capacity(parts.len() + 1);
        if self.file.is_none() {
            let begun = self.begin_file(first_id).await?;
            all.push(Bytes::copy_from_slice(&begun.header.encode()));
            self.file = Some(begun);
            *is_new = true;
        }
        all.extend_from_slice(parts);
        let written = all.iter().map(|part| part.len() as u64).sum::<u64>();
        let Some(file) = &mut self.file else { return Err(LogWriteFault::Fenced) };
        file.file.append(all).await?;
        file.len += written;
        Ok(())
    }

    /// Creates a log file, and looks who else is there before anything is written to it: see `mod.rs`.
    async fn begin_file(&mut self, first_id: u64) -> Result<LeasedFile, LogWriteFault> {
        self.number += 1;
        let header = LogFileHeader { epoch: self.mark.epoch, first_id, number: self.number };
        let name = header.file_name();
        let file = match self.log.folder.create(&name).await {
            Ok(file) => file,
            Err(error) => {
                // It may be there. Its name is not used again.
                self.discard(name, None);
                return Err(error.into());
            }
        };
        let refused = match self.log.list().await {
            Ok(listing) => match listing.check_owner(&self.mark) {
                Ok(()) => {
                    tracing::debug!(name, "catalog log begins a log file");
                    return Ok(LeasedFile { file, header, len: 0 });
                }
                Err(_) => LogWriteFault::Fenced,
            },
            Err(WalError::Unavailable(error)) => {
                let why = StoreError::Failed { operation: "list", path: name.clone(), source: Box::new(error) };
                LogWriteFault::Failed(why)
            }
            Err(_) => LogWriteFault::Fenced,
        };
        self.discard(name, Some(file));
        Err(refused)
    }

    /// Deletes a file that nothing was written to, aside.
    fn discard(&mut self, name: String, file: Option<Box<dyn GrowingFile>>) {
        let log = Arc::clone(&self.log);
        self.aside(async move {
            // Its writer is dropped first: it must not be busy with a file that is gone.
            drop(file);
            if let Err(error) = log.folder.delete(&name).await {
                tracing::debug!(name, error = crate::error::chain(&error), "an empty file of the catalog's log stays");
            }
        });
    }

    /// Closes the file, aside. What is durable in it is so whether or not that succeeds.
    fn close_file(&mut self) {
        let Some(LeasedFile { mut file, header, .. }) = self.file.take() else { return };
        self.aside(async move {
            if let Err(error) = file.close().await {
                let (log_file, error) = (header.file_name(), crate::error::chain(&error));
                tracing::debug!(log_file, error, "a file of the catalog's log is left to the next owner to close");
            }
        });
    }

    #[expect(clippy::disallowed_methods, reason = "its end is awaited at the end of the log, for a while")]
    fn aside(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.leaving.retain(|task| !task.is_finished());
        self.leaving.push(self.runtime.spawn(work));
    }

    /// Waits for what is done aside.
    pub(super) async fn settle(&mut self) {
        let leaving = futures::future::join_all(self.leaving.drain(..));
        if tokio::time::timeout(END_PATIENCE, leaving).await.is_err() {
            tracing::debug!("a file of the catalog's log is left to the next owner to close");
        }
    }

    /// Closes the file and waits for it.
    pub(super) async fn finish(&mut self) {
        self.close_file();
        self.settle().await;
    }
}

/// Resolves when the log is to end and has had some time for that.
async fn rung_for_long(stop: &StopBell) {
    while !stop.is_rung() {
        tokio::time::sleep(STOP_LOOK_EVERY).await;
    }
    tokio::time::sleep(END_PATIENCE).await;
}

impl FrameSink for LeasedSink {
    fn write(&mut self, frames: &SealedFrames<'_>, stop: &StopBell) -> Result<bool, WalError> {
        let parts: Vec<Bytes> = frames.parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
        let (runtime, now) = (self.runtime.clone(), stop.now().clone());
        let written = async {
            tokio::select! {
                biased;
                // As in a crash: what is on its way may arrive, and nobody is told.
                () = now.cancelled() => Err(WalError::Closed),
                () = rung_for_long(stop) => {
                    let why = io::Error::other("the log was to end, and storage did not take what was left");
                    Err(WalError::Unavailable(Arc::new(why)))
                }
                written = self.append(&parts, frames.first_id) => written,
            }
        };
        runtime.block_on(written.boxed())
    }

    fn rests_after(&self) -> Option<Duration> {
        Some(self.log.limits.idle_close).filter(|_| self.file.is_some())
    }

    /// An open file costs the NameNode a lease and the DataNodes threads, and nobody else can read it.
    fn rest(&mut self) {
        self.close_file();
    }

    fn end(&mut self) {
        let runtime = self.runtime.clone();
        runtime.block_on(self.finish());
    }
}
