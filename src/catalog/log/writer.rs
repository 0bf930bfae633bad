//! Appends batches and makes them durable, many at a time.
//!
//! [`LogWriter::append`] encodes the batch into the current frame. The flusher, one plain thread, takes everything that has
//! gathered, writes it with one call, syncs once, tells SlateDB and starts over. Where a sync is cheap an append wakes it;
//! elsewhere a flush does, so that batches can wait for each other. Nothing polls.
//!
//! Where the frames go, and what becomes of a write that fails, is the matter of a [`FrameSink`]. One that gives up ends the
//! log for good.
//!
//! # Invariants
//! - The listener and the waiters are called without the lock held, since they may ask for the status.
//! - However the flusher ends, by request, error or panic, the log is closed with a reason, SlateDB
//!   hears of it and no waiter is left behind.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use slatedb::RowEntry;
use slatedb::wal::{WalError, WalEvent, WalFlushResult, WalObserver, WalStatus, WalStatusListener, WalWriter};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::abort::AbortHandle;
use super::format::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_LEN, FrameBuilder, row_len};
use crate::runtime::reply;

/// A frame that has grown to this is followed by a new one, which may still share its sync.
const FRAME_BYTES_TARGET: usize = 8 << 20;
/// Number of whole log files behind the replay point at which the memtable is asked to go to storage.
const LOG_FILES_BEFORE_MEMTABLE_FLUSH: usize = 4;
/// A buffer that grew beyond this is not kept for the next frame.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Where the frames of one owner go.
pub(super) trait FrameSink: Send + 'static {
    /// Writes the frames and returns once they are durable. True if they began a new log file.
    ///
    /// # Errors
    /// The reason for which the log ends.
    fn write(&mut self, frames: &SealedFrames<'_>, stop: &StopBell) -> Result<bool, WalError>;

    /// The time without a frame after which [`Self::rest`] is called.
    fn rests_after(&self) -> Option<Duration> {
        None
    }

    /// Nothing was written for a while.
    fn rest(&mut self) {}

    /// Nothing comes any more, and all that came is durable.
    fn end(&mut self) {}
}

/// Frames that are written and synced together.
pub(super) struct SealedFrames<'a> {
    /// The bytes of each.
    pub parts: Vec<&'a [u8]>,
    /// The id of the first.
    pub first_id: u64,
}

/// When a flusher is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushOn {
    /// By each batch.
    Append,
    /// By a flush, or when a frame is full.
    Request,
}

/// The log's writing half, which SlateDB owns.
pub(super) struct LogWriter {
    shared: Arc<WriterShared>,
    ended: Option<oneshot::Receiver<()>>,
}

impl LogWriter {
    /// Starts the flusher for `epoch`, whose first frame gets the id `last_id + 1`. `abort` ends it from outside.
    ///
    /// # Errors
    /// `Unavailable` if no thread can be started.
    pub(super) fn start(
        sink: impl FrameSink,
        abort: &AbortHandle,
        epoch: u64,
        last_id: u64,
        flush_on: FlushOn,
    ) -> Result<Self, WalError> {
        let state = Mutex::new(WriterState::new(last_id, flush_on));
        let shared = Arc::new(WriterShared { state, wake: Condvar::new(), now: CancellationToken::new() });
        let weak = Arc::downgrade(&shared);
        abort.arm(Arc::new(move || {
            if let Some(shared) = weak.upgrade() {
                shared.stop(Stop::Now);
            }
        }));
        let (ended_tx, ended) = oneshot::channel();
        let flusher = Flusher { shared: Arc::clone(&shared), sink, epoch, rested: true, _ended: ended_tx };
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
        if self.shared.state.lock().append(batch)? {
            self.shared.wake.notify_one();
        }
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
    /// Cancelled when the log is to end as in a crash.
    now: CancellationToken,
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
        if stop == Stop::Now {
            self.now.cancel();
        }
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
    flush_on: FlushOn,
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
    fn new(last_id: u64, flush_on: FlushOn) -> Self {
        Self {
            flush_on,
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

    /// Adds a batch. True if there is something to be written now.
    fn append(&mut self, batch: &[RowEntry]) -> Result<bool, WalError> {
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
        Ok(self.flush_on == FlushOn::Append || !self.queue.is_empty())
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

    /// Whether nothing waits to be written.
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.as_ref().is_none_or(|frame| frame.row_count() == 0)
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

    /// Takes what is to be written.
    fn take_work(&mut self) -> VecDeque<(u64, FrameBuilder)> {
        if self.flush_on == FlushOn::Append || self.stop == Stop::WhenDurable {
            self.finish_frame();
        }
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

/// Tells a sink that the log is to end.
pub(super) struct StopBell(Arc<WriterShared>);

impl StopBell {
    /// Waits so long, or until the log is to end. True if it is.
    pub(super) fn wait(&self, pause: Duration) -> bool {
        let mut state = self.0.state.lock();
        if state.stop == Stop::No {
            self.0.wake.wait_for(&mut state, pause);
        }
        state.stop != Stop::No
    }

    /// Whether the log is to end.
    pub(super) fn is_rung(&self) -> bool {
        self.0.state.lock().stop != Stop::No
    }

    /// Cancelled when the log is to end as in a crash, in the middle of a write.
    pub(super) fn now(&self) -> &CancellationToken {
        &self.0.now
    }
}

/// The thread that writes and syncs.
struct Flusher<S> {
    shared: Arc<WriterShared>,
    sink: S,
    epoch: u64,
    /// Whether the sink was told that nothing comes for a while.
    rested: bool,
    /// Dropped when the thread ends, which is what [`LogWriter::close`] waits for.
    _ended: oneshot::Sender<()>,
}

/// The next thing that a flusher does.
enum FlusherWork {
    /// Write these frames, when so much is durable.
    Write(VecDeque<(u64, FrameBuilder)>, u64),
    Rest,
    End(Stop),
}

impl<S: FrameSink> Flusher<S> {
    fn run(mut self) {
        let reason = loop {
            match self.next_work() {
                FlusherWork::Write(frames, durable_id) => match self.write(frames, durable_id) {
                    Ok(written) => self.shared.publish(written),
                    Err(error) => break error,
                },
                FlusherWork::Rest => self.sink.rest(),
                FlusherWork::End(stop) => {
                    if stop == Stop::WhenDurable {
                        self.sink.end();
                    }
                    break WalError::Closed;
                }
            }
        };
        self.shared.close(reason);
    }

    /// Waits for work.
    fn next_work(&mut self) -> FlusherWork {
        let mut state = self.shared.state.lock();
        loop {
            if state.stop == Stop::Now {
                return FlusherWork::End(Stop::Now);
            }
            // Work comes before `WhenDurable`, which ends the log only when nothing is left to write.
            let frames = state.take_work();
            if !frames.is_empty() {
                self.rested = false;
                return FlusherWork::Write(frames, state.last_durable_id);
            }
            if state.stop == Stop::WhenDurable {
                return FlusherWork::End(Stop::WhenDurable);
            }
            match self.sink.rests_after().filter(|_| !self.rested) {
                None => self.shared.wake.wait(&mut state),
                Some(pause) => {
                    if self.shared.wake.wait_for(&mut state, pause).timed_out() && state.is_idle() {
                        self.rested = true;
                        return FlusherWork::Rest;
                    }
                }
            }
        }
    }

    /// Writes the frames and returns once they are durable.
    fn write(&mut self, mut frames: VecDeque<(u64, FrameBuilder)>, durable_id: u64) -> Result<WrittenFrames, WalError> {
        let (Some(first_id), Some((last_id, last))) = (frames.front().map(|(id, _)| *id), frames.back()) else {
            return Err(WalError::InternalError(Arc::new(io::Error::other("nothing to write"))));
        };
        let (last_id, last_seq) = (*last_id, last.last_seq());
        let parts = frames.iter_mut().map(|(id, frame)| frame.seal(*id, self.epoch, durable_id)).collect();
        let began = self.sink.write(&SealedFrames { parts, first_id }, &StopBell(Arc::clone(&self.shared)))?;
        Ok(WrittenFrames {
            last_id,
            last_seq,
            log_file_first_id: began.then_some(first_id),
            buffer: frames.pop_back().map(|(_, frame)| frame.into_buffer()),
        })
    }
}

impl WriterShared {
    /// Tells everyone that the frames are durable.
    fn publish(&self, written: WrittenFrames) {
        let mut state = self.state.lock();
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

impl<S> Drop for Flusher<S> {
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
