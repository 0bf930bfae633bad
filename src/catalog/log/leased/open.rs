//! Takes a leased log over from earlier owners and says what they left.
//!
//! SlateDB has raised the writer epoch in the manifest before it calls us, so older owners can no longer write there, and the
//! replay point is final. The order is what `mod.rs` proves with:
//!
//! 1. Create the mark. From now on no older owner begins another file.
//! 2. List the folder. If there is anything of a later epoch, we are the old owner.
//! 3. Release every log file. From now on nothing is added to one.
//! 4. Read those that may have frames behind the replay point, and choose the frames that count.
//! 5. Write again what nothing calls durable, as our own.
//! 6. Delete the marks of older owners, and continue the ids behind the last frame.
//!
//! # Source
//! The three conditions in the documentation of SlateDB's `wal::WriterInit`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use slatedb::wal::{WalError, WalIterator, WalRows, WriterInit, WriterInitResult, WriterManifest};

use super::super::format::{LogFileHeader, LogFrame, MalformedLog, sealed_anew};
use super::super::scan::damaged;
use super::super::writer::{FlushOn, LogWriter};
use super::index::{FrameIndex, FramePlace};
use super::sink::LeasedSink;
use super::{LeasedLog, Listing, OwnerMark, unavailable};
use crate::store::StoreError;

/// Files that are released at a time.
const RELEASED_AT_ONCE: usize = 8;

/// Opens a [`LeasedLog`] for SlateDB.
pub struct LeasedLogInit {
    log: Arc<LeasedLog>,
}

crate::runtime::opaque_debug!(LeasedLogInit);

impl LeasedLogInit {
    /// Will open `log`.
    pub fn new(log: Arc<LeasedLog>) -> Self {
        Self { log }
    }
}

#[async_trait]
impl WriterInit for LeasedLogInit {
    async fn fence_and_init(&self, manifest: &mut WriterManifest) -> Result<WriterInitResult, WalError> {
        let (epoch, replay_after) = (manifest.epoch(), manifest.replay_after_wal_id());
        let taken = take_over(&self.log, epoch, replay_after).await?;
        let writer = LogWriter::start(taken.sink, &self.log.abort, epoch, taken.last_id, FlushOn::Request)?;
        Ok(WriterInitResult { replay_iterator: Box::new(taken.replay), wal_writer: Box::new(writer) })
    }
}

/// A log that was taken over.
pub(super) struct TakenLog {
    pub sink: LeasedSink,
    pub replay: LeasedReplay,
    /// The id of the last frame that counts.
    pub last_id: u64,
}

/// Takes the log over for `epoch`.
///
/// # Errors
/// `Fenced` if a later owner did so; `DataError` if the log is damaged; `Unavailable` if storage does not do as asked.
pub(super) async fn take_over(log: &Arc<LeasedLog>, epoch: u64, replay_after: u64) -> Result<TakenLog, WalError> {
    let mark = OwnerMark { epoch, owner: log.folder.owner().to_owned() };
    let mut index = FrameIndex::new(replay_after);
    let listing = fence(log, &mark, &index).await?;
    for header in index.needed(&listing.log_files) {
        let bytes = read_closed(log, header).await?;
        index.add(header, &bytes).map_err(|error| damaged(header, error))?;
    }
    index.check().map_err(|missing| WalError::DataError(Arc::new(missing)))?;
    let last_id = index.last_without_gap();
    let mut sink = LeasedSink::new(Arc::clone(log), mark.clone());
    let rewritten = write_again(log, &mut sink, &index).await?;
    for old in listing.marks.into_iter().filter(|old| *old != mark) {
        if let Err(error) = log.folder.delete(&old.file_name()).await {
            tracing::debug!(?old, error = crate::error::chain(&error), "the mark of an older owner stays");
        }
    }
    let frames = index.take(replay_after.saturating_add(1)..=last_id);
    Ok(TakenLog { sink, replay: LeasedReplay::new(Arc::clone(log), frames, rewritten), last_id })
}

/// Shuts older owners out. Returns what they have left.
async fn fence(log: &LeasedLog, mark: &OwnerMark, index: &FrameIndex) -> Result<Listing, WalError> {
    let mut file = log.folder.create(&mark.file_name()).await.map_err(unavailable)?;
    file.close().await.map_err(unavailable)?;
    let listing = log.list().await?;
    listing.check_owner(mark)?;
    // All of them: an owner may go on writing to one whose frames, so far, are in tables.
    let needed = index.needed(&listing.log_files);
    let released = listing.log_files.clone().into_iter().map(|header| {
        let (folder, name) = (Arc::clone(&log.folder), header.file_name());
        let has_nothing = !needed.contains(&header) || listing.log_files.iter().any(|later| later.replaces(&header));
        async move {
            match folder.release(&name).await {
                // Its last replica may be gone for good. Who writes it cannot go on either when the name is gone.
                Err(error) if has_nothing => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(name, error, "a file of the log that nobody needs cannot be closed, it is deleted");
                    folder.delete(&name).await
                }
                released => released.map(|_| ()),
            }
            .map_err(unavailable)
        }
    });
    stream::iter(released).buffer_unordered(RELEASED_AT_ONCE).try_collect::<()>().await?;
    Ok(listing)
}

async fn read_closed(log: &LeasedLog, header: LogFileHeader) -> Result<Bytes, WalError> {
    let name = header.file_name();
    match log.folder.read(&name).await.map_err(unavailable)? {
        Some(read) if read.is_all() => Ok(read.bytes),
        Some(read) => {
            let wanted = read.bytes.len() as u64..read.len;
            Err(unavailable(StoreError::Short { path: name, len: wanted.start, wanted }))
        }
        // Whether something is missing shows when all is read.
        None => Ok(Bytes::new()),
    }
}

/// Writes the frames again that nothing calls durable. Returns them, with their ids.
async fn write_again(
    log: &LeasedLog,
    sink: &mut LeasedSink,
    index: &FrameIndex,
) -> Result<Vec<(u64, Bytes)>, WalError> {
    let mut frames = Frames::default();
    let mut rewritten = vec![];
    for (id, place) in index.uncertain() {
        let frame = frames.read(log, place).await?;
        rewritten.push((id, sealed_anew(&frame, sink.epoch(), index.durable_id())));
    }
    if let Some((first_id, _)) = rewritten.first() {
        let (parts, first_id): (Vec<_>, _) = (rewritten.iter().map(|(_, frame)| frame.clone()).collect(), *first_id);
        tracing::debug!(first_id, frames = parts.len(), "wrote frames of the log again");
        sink.append(&parts, first_id).await?;
    }
    Ok(rewritten)
}

/// Reads frames, and keeps the file of the last one in memory.
#[derive(Default)]
struct Frames(Option<(LogFileHeader, Bytes)>);

impl Frames {
    async fn read(&mut self, log: &LeasedLog, place: FramePlace) -> Result<Bytes, WalError> {
        let bytes = match self.0.take() {
            Some((header, bytes)) if header == place.log_file => bytes,
            _ => log
                .folder
                .read(&place.log_file.file_name())
                .await
                .map_err(unavailable)?
                .map_or(Bytes::new(), |r| r.bytes),
        };
        let short = || damaged(place.log_file, MalformedLog::Short("log file"));
        if bytes.len() < place.at + place.len {
            return Err(short());
        }
        let frame = bytes.slice(place.at..place.at + place.len);
        self.0 = Some((place.log_file, bytes));
        Ok(frame)
    }
}

/// Hands out frames in the order of their ids, reading one log file at a time.
pub(super) struct LeasedReplay {
    log: Arc<LeasedLog>,
    places: std::vec::IntoIter<(u64, FramePlace)>,
    /// The last frames, which are in a file that is open.
    rewritten: std::iter::Peekable<std::vec::IntoIter<(u64, Bytes)>>,
    frames: Frames,
    last_seq: u64,
}

impl LeasedReplay {
    pub(super) fn new(log: Arc<LeasedLog>, places: Vec<(u64, FramePlace)>, rewritten: Vec<(u64, Bytes)>) -> Self {
        let (places, rewritten) = (places.into_iter(), rewritten.into_iter().peekable());
        Self { log, places, rewritten, frames: Frames::default(), last_seq: 0 }
    }
}

#[async_trait]
impl WalIterator for LeasedReplay {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        let Some((id, place)) = self.places.next() else { return Ok(None) };
        let bytes = match self.rewritten.next_if(|(rewritten, _)| *rewritten == id) {
            Some((_, bytes)) => bytes,
            // A copy: the rows must not keep a whole file in memory.
            None => BytesMut::from(&self.frames.read(&self.log, place).await?[..]).freeze(),
        };
        let decoded = LogFrame::decode(&bytes).and_then(|frame| frame.rows(&bytes));
        let rows = decoded.map_err(|error| damaged(place.log_file, error))?;
        // Whatever happened to the files: a batch must not be undone by an older one.
        if rows.first().is_some_and(|row| row.seq <= self.last_seq) {
            return Err(damaged(place.log_file, MalformedLog::Field("order of sequence numbers")));
        }
        self.last_seq = rows.last().map_or(self.last_seq, |row| row.seq);
        rows.iter().filter_map(|row| row.create_ts).for_each(|tick| self.log.saw_tick(tick));
        Ok(Some(WalRows { rows, last_consumed_wal_file_id: id }))
    }
}
