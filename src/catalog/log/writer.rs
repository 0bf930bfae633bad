//! Appends batches and makes them durable, many at a time.
//!
//! [`LogWriter::append`] encodes the batch into the current frame and wakes the flusher, one plain
//! thread. The flusher takes everything that has gathered, writes it with one call, syncs once,
//! tells SlateDB and starts over. Nothing waits for a timer and nothing polls.
//!
//! A full disk does not end it: the frames are written again in what is kept back for the catalog, and when that is used
//! up, it waits for room. A failed sync ends it for good.
//!
//! # Invariants
//! - The listener and the waiters are called without the lock held, since they may ask for the status.
//! - However the flusher ends, by request, error or panic, the log is closed with a reason, SlateDB
//!   hears of it and no waiter is left behind.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::thread;

use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use slatedb::RowEntry;
use slatedb::wal::{WalError, WalEvent, WalFlushResult, WalObserver, WalStatus, WalStatusListener, WalWriter};
use tokio::sync::oneshot;

use super::Log;
use super::fence::FenceFiles;
use super::format::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_LEN, FrameBuilder, LogFileHeader, row_len};
use crate::metrics::labels::StoreOperation;
use crate::runtime::reply;
use crate::store::append_file::AppendFile;
use crate::store::remove_leftover;
use crate::store::space::{DiskUse, ROOM_PAUSE, is_full};

/// A frame that has grown to this is followed by a new one, which may still share its sync.
const FRAME_BYTES_TARGET: usize = 8 << 20;
/// Number of whole log files behind the replay point at which the memtable is asked to go to storage.
const LOG_FILES_BEFORE_MEMTABLE_FLUSH: usize = 4;
/// A buffer that grew beyond this is not kept for the next frame.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// The log's writing half, which SlateDB owns.
pub(super) struct LogWriter {
    shared: Arc<WriterShared>,
    ended: Option<oneshot::Receiver<()>>,
}

impl LogWriter {
    /// Starts the flusher for `epoch`, whose first frame gets the id `last_id + 1`.
    ///
    /// # Errors
    /// `Unavailable` if no thread can be started.
    pub(super) fn start(log: Arc<Log>, fence: FenceFiles, epoch: u64, last_id: u64) -> Result<Self, WalError> {
        let shared = Arc::new(WriterShared { state: Mutex::new(WriterState::new(last_id)), wake: Condvar::new() });
        let weak = Arc::downgrade(&shared);
        log.abort.arm(Arc::new(move || {
            if let Some(shared) = weak.upgrade() {
                shared.stop(Stop::Now);
            }
        }));
        let (ended_tx, ended) = oneshot::channel();
        let flusher = Flusher { shared: Arc::clone(&shared), log, fence, epoch, log_file: None, _ended: ended_tx };
        #[expect(clippy::disallowed_methods, reason = "the writer waits for its end")]
        thread::Builder::new()
            .name("catalog-log".to_owned())
            .spawn(move || flusher.run())
            .map_err(|error| WalError::Unavailable(Arc::new(error)))?;
        Ok(Self { shared, ended: Some(ended) })
    }
}

#[async_trait]
impl WalWriter for LogWriter {
    async fn append(&mut self, batch: &[RowEntry]) -> Result<(), WalError> {
        self.shared.state.lock().append(batch)?;
        self.shared.wake.notify_one();
        Ok(())
    }

    async fn flush(&mut self) -> Result<WalFlushResult, WalError> {
        let (done, completion) = oneshot::channel();
        let wal_id = self.shared.state.lock().request_flush(done)?;
        self.shared.wake.notify_one();
        Ok(WalFlushResult { wal_id, completion: async { completion.await.unwrap_or(Err(WalError::Closed)) }.boxed() })
    }

    fn should_flush_memtable(&self, replay_after_wal_id: u64) -> bool {
        let state = self.shared.state.lock();
        state.recent_log_files.len() == LOG_FILES_BEFORE_MEMTABLE_FLUSH
            && state.recent_log_files[0] > replay_after_wal_id
    }

    fn observer(&self) -> Box<dyn WalObserver> {
        Box::new(LogObserver(Arc::clone(&self.shared)))
    }

    fn status(&self) -> Result<WalStatus, WalStatus> {
        self.shared.status()
    }

    async fn close(&mut self) -> Result<(), WalError> {
        self.shared.stop(Stop::WhenDurable);
        if let Some(ended) = self.ended.take() {
            // The sender is dropped, never used: the error is the signal.
            ended.await.unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.stop(Stop::Now);
    }
}

/// The log's status, for SlateDB.
struct LogObserver(Arc<WriterShared>);

#[async_trait]
impl WalObserver for LogObserver {
    fn status(&self) -> Result<WalStatus, WalStatus> {
        self.0.status()
    }

    fn subscribe(&self, listener: WalStatusListener) -> Result<(), WalError> {
        let closed = {
            let mut state = self.0.state.lock();
            state.listener = Some(Arc::clone(&listener));
            state.closed.is_some().then(|| state.status())
        };
        if let Some(status) = closed {
            listener(WalEvent::WalClosed(status));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Write what was appended, then end.
    WhenDurable,
    /// End as in a crash.
    Now,
}

struct WriterShared {
    state: Mutex<WriterState>,
    wake: Condvar,
}

impl std::fmt::Debug for WriterShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriterShared").finish_non_exhaustive()
    }
}

impl WriterShared {
    fn status(&self) -> Result<WalStatus, WalStatus> {
        let status = self.state.lock().status();
        match status.closed_reason {
            None => Ok(status),
            Some(_) => Err(status),
        }
    }

    fn stop(&self, stop: Stop) {
        let mut state = self.state.lock();
        if state.stop != Stop::Now {
            state.stop = stop;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Closes the log for `reason`; only the first reason counts.
    fn close(&self, reason: WalError) {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(reason.clone());
        state.current = None;
        state.queue.clear();
        state.in_flight = PendingRows::default();
        let status = state.status();
        let listener = state.listener.clone();
        let waiters = std::mem::take(&mut state.waiters);
        // Whoever is told may call the log again.
        drop(state);
        if let Some(listener) = listener {
            listener(WalEvent::WalClosed(status));
        }
        for (_, done) in waiters {
            reply(done, Err(reason.clone()));
        }
    }
}

/// The state behind the lock.
struct WriterState {
    current: Option<FrameBuilder>,
    /// Finished frames and their ids, oldest first.
    queue: VecDeque<(u64, FrameBuilder)>,
    in_flight: PendingRows,
    /// The id the next finished frame gets.
    next_id: u64,
    last_durable_id: u64,
    last_durable_seq: Option<u64>,
    /// First ids of the latest log files of this epoch, oldest first.
    recent_log_files: VecDeque<u64>,
    /// The waiters, by the id that they wait for.
    waiters: Vec<(u64, oneshot::Sender<Result<(), WalError>>)>,
    listener: Option<WalStatusListener>,
    spare_buffer: Vec<u8>,
    stop: Stop,
    closed: Option<WalError>,
}

#[derive(Debug, Default, Clone, Copy)]
struct PendingRows {
    bytes: usize,
    rows: usize,
}

impl WriterState {
    fn new(last_id: u64) -> Self {
        Self {
            current: None,
            queue: VecDeque::new(),
            in_flight: PendingRows::default(),
            next_id: last_id + 1,
            last_durable_id: last_id,
            last_durable_seq: None,
            recent_log_files: VecDeque::with_capacity(LOG_FILES_BEFORE_MEMTABLE_FLUSH),
            waiters: Vec::new(),
            listener: None,
            spare_buffer: Vec::new(),
            stop: Stop::No,
            closed: None,
        }
    }

    fn append(&mut self, batch: &[RowEntry]) -> Result<(), WalError> {
        self.check_open()?;
        let batch_len: usize = batch.iter().map(row_len).sum();
        if batch_len > FRAME_BODY_BYTES_MAX - FRAME_HEADER_LEN {
            let error = format!("a batch of {batch_len} bytes does not fit a frame");
            return Err(WalError::InternalError(Arc::new(io::Error::other(error))));
        }
        let frame_len = self.current.as_ref().map_or(0, FrameBuilder::len);
        if frame_len + batch_len > FRAME_BYTES_TARGET {
            self.finish_frame();
        }
        let spare = &mut self.spare_buffer;
        let frame = self.current.get_or_insert_with(|| FrameBuilder::new(std::mem::take(spare)));
        batch.iter().for_each(|row| frame.push(row));
        Ok(())
    }

    /// Gives the current frame its id and returns the last id given.
    fn finish_frame(&mut self) -> u64 {
        if let Some(frame) = self.current.take_if(|frame| frame.row_count() > 0) {
            self.queue.push_back((self.next_id, frame));
            self.next_id += 1;
        }
        self.next_id - 1
    }

    fn request_flush(&mut self, done: oneshot::Sender<Result<(), WalError>>) -> Result<u64, WalError> {
        self.check_open()?;
        let id = self.finish_frame();
        if id <= self.last_durable_id {
            reply(done, Ok(()));
        } else {
            self.waiters.push((id, done));
        }
        Ok(id)
    }

    fn check_open(&self) -> Result<(), WalError> {
        match (&self.closed, self.stop) {
            (Some(reason), _) => Err(reason.clone()),
            (None, Stop::No) => Ok(()),
            (None, _) => Err(WalError::Closed),
        }
    }

    fn status(&self) -> WalStatus {
        let mut pending = self.in_flight;
        let waiting = self.queue.iter().map(|(_, frame)| frame);
        for frame in waiting.chain(&self.current) {
            pending.bytes += frame.len();
            pending.rows += frame.row_count() as usize;
        }
        WalStatus {
            closed_reason: self.closed.clone(),
            estimated_bytes: pending.bytes,
            last_flushed_wal_id: self.last_durable_id,
            last_flushed_seq: self.last_durable_seq,
            buffered_wal_entries_count: pending.rows,
        }
    }

    /// Takes everything that waits to be written.
    fn take_work(&mut self) -> VecDeque<(u64, FrameBuilder)> {
        self.finish_frame();
        let frames = std::mem::take(&mut self.queue);
        self.in_flight = PendingRows {
            bytes: frames.iter().map(|(_, frame)| frame.len()).sum(),
            rows: frames.iter().map(|(_, frame)| frame.row_count() as usize).sum(),
        };
        frames
    }

    fn note_log_file(&mut self, first_id: u64) {
        if self.recent_log_files.len() == LOG_FILES_BEFORE_MEMTABLE_FLUSH {
            self.recent_log_files.pop_front();
        }
        self.recent_log_files.push_back(first_id);
    }

    /// Takes the waiters for ids up to `id`.
    fn take_waiters(&mut self, id: u64) -> Vec<oneshot::Sender<Result<(), WalError>>> {
        let waiters = std::mem::take(&mut self.waiters);
        let (served, rest): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|(waits_for, _)| *waits_for <= id);
        self.waiters = rest;
        served.into_iter().map(|(_, done)| done).collect()
    }
}

/// The thread that writes and syncs.
struct Flusher {
    shared: Arc<WriterShared>,
    log: Arc<Log>,
    fence: FenceFiles,
    epoch: u64,
    log_file: Option<AppendFile>,
    /// Dropped when the thread ends, which is what [`LogWriter::close`] waits for.
    _ended: oneshot::Sender<()>,
}

impl Flusher {
    fn run(mut self) {
        let reason = loop {
            let Some((frames, durable_id)) = self.next_work() else {
                break WalError::Closed;
            };
            match self.write(frames, durable_id) {
                Ok(written) => self.publish(written),
                Err(error) => break error,
            }
        };
        self.shared.close(reason);
    }

    /// Waits for work; `None` when it is time to end.
    fn next_work(&self) -> Option<(VecDeque<(u64, FrameBuilder)>, u64)> {
        let mut state = self.shared.state.lock();
        loop {
            if state.stop == Stop::Now {
                return None;
            }
            // Work comes before `WhenDurable`, which ends the log only when nothing is left to write.
            let frames = state.take_work();
            if !frames.is_empty() {
                return Some((frames, state.last_durable_id));
            }
            if state.stop == Stop::WhenDurable {
                return None;
            }
            self.shared.wake.wait(&mut state);
        }
    }

    /// Writes the frames and returns once they are durable.
    fn write(&mut self, mut frames: VecDeque<(u64, FrameBuilder)>, durable_id: u64) -> Result<WrittenFrames, WalError> {
        let (Some(first_id), Some((last_id, last))) = (frames.front().map(|(id, _)| *id), frames.back()) else {
            return Err(WalError::InternalError(Arc::new(io::Error::other("nothing to write"))));
        };
        let (last_id, last_seq) = (*last_id, last.last_seq());
        let parts: Vec<_> =
            frames.iter_mut().map(|(id, frame)| IoSlice::new(frame.seal(*id, self.epoch, durable_id))).collect();
        let mut is_new = false;
        let mut waits = false;
        loop {
            // For each try anew: a later owner may have taken over while this one waited for room.
            let permit = self.fence.enter(self.epoch)?;
            let written = begin_log_file_if_full(&mut self.log_file, &self.log, self.epoch, first_id).and_then(
                |(log_file, begun)| {
                    is_new |= begun;
                    append(&self.log, log_file, &parts)
                },
            );
            if is_new && written.is_ok() {
                self.note_newest(first_id);
            }
            // Not held while this waits for room: a successor must not wait for the same.
            drop(permit);
            match written {
                Ok(()) => break,
                Err(error) if is_full(&error) && !self.log_file.as_ref().is_some_and(AppendFile::is_poisoned) => {
                    if !self.log.space.give_up(DiskUse::Catalog) {
                        self.wait_for_room(error, &mut waits)?;
                    }
                }
                Err(error) => return Err(WalError::Unavailable(Arc::new(error))),
            }
        }
        Ok(WrittenFrames {
            last_id,
            last_seq,
            log_file_first_id: is_new.then_some(first_id),
            buffer: frames.pop_back().map(|(_, frame)| frame.into_buffer()),
        })
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
    fn wait_for_room(&self, error: io::Error, waits: &mut bool) -> Result<(), WalError> {
        if !std::mem::replace(waits, true) {
            tracing::warn!(folder = %self.log.folder.display(), %error, "the catalog's log waits for room on its disk");
        }
        let mut state = self.shared.state.lock();
        if state.stop == Stop::No {
            self.shared.wake.wait_for(&mut state, ROOM_PAUSE);
        }
        match state.stop {
            Stop::No => Ok(()),
            Stop::WhenDurable | Stop::Now => Err(WalError::Unavailable(Arc::new(error))),
        }
    }

    /// Tells everyone that the frames are durable.
    fn publish(&self, written: WrittenFrames) {
        let mut state = self.shared.state.lock();
        state.in_flight = PendingRows::default();
        state.last_durable_id = written.last_id;
        state.last_durable_seq = Some(written.last_seq);
        if let Some(first_id) = written.log_file_first_id {
            state.note_log_file(first_id);
        }
        if let Some(buffer) = written.buffer.filter(|b| b.capacity() <= BUFFER_BYTES_KEPT) {
            state.spare_buffer = buffer;
        }
        let status = state.status();
        let listener = state.listener.clone();
        let waiters = state.take_waiters(written.last_id);
        // Whoever is told may call the log again.
        drop(state);
        if let Some(listener) = listener {
            listener(WalEvent::WalFlushed(status));
        }
        for done in waiters {
            reply(done, Ok(()));
        }
    }
}

impl Drop for Flusher {
    /// Does something only if the thread panicked.
    fn drop(&mut self) {
        let error = io::Error::other("the log's thread panicked");
        self.shared.close(WalError::InternalError(Arc::new(error)));
    }
}

struct WrittenFrames {
    last_id: u64,
    last_seq: u64,
    /// Set if the frames began a new log file.
    log_file_first_id: Option<u64>,
    buffer: Option<Vec<u8>>,
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
            let header = LogFileHeader { epoch, first_id };
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
