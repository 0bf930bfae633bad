//! Takes the log over from earlier owners and says what they left.
//!
//! SlateDB has raised the writer epoch in the manifest before it calls us, so older owners can no
//! longer write there. Here the same is done for the log, in an order that leaves no gap:
//!
//! 1. Lock TURN: one fencer at a time. If FENCE has our epoch or a later one, we are the old owner.
//! 2. Write our epoch to FENCE and sync it. From now on a new flush of an older epoch refuses.
//! 3. Lock DATA exclusively and let go: a flush that was running has ended. A flush holds DATA shared
//!    from before it reads FENCE until its sync returned, so no old frame can land any more. FENCE
//!    is written before DATA is taken, otherwise a busy writer could starve us.
//! 4. Read the segments behind the replay point, keeping them open because a collector may delete
//!    names at any time. Cut the torn tail of the last. Replaying a frame calls it durable, but a whole one may so far
//!    be in the page cache only, and a sync that failed before makes the next one succeed without it: frames that no
//!    later frame knows to be durable are written again, as they are and where they are. Then all is synced.
//! 5. Continue the ids behind the last frame.
//!
//! # Source
//! The three conditions in the documentation of SlateDB's `wal::WriterInit`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use slatedb::wal::{WalError, WalIterator, WalRows, WriterInit, WriterInitResult, WriterManifest};

use super::Log;
use super::format::{Frame, Malformed, SEGMENT_HEADER_LEN, SegmentHeader, crc32c};
use super::kept::keep;
use super::scan::{ScanEnd, scan, uncertain_from};
use super::writer::LogWriter;
use crate::store::DiskSpace;
use crate::store::append_file::sync_parent;
use crate::store::space::{Content, is_full};

/// Opens a [`Log`] for SlateDB.
pub struct LogInit {
    log: Arc<Log>,
}

impl LogInit {
    /// Will open `log`.
    pub fn new(log: Arc<Log>) -> Self {
        Self { log }
    }
}

#[async_trait]
impl WriterInit for LogInit {
    async fn fence_and_init(&self, manifest: &mut WriterManifest) -> Result<WriterInitResult, WalError> {
        let (log, epoch) = (self.log.clone(), manifest.epoch());
        let replay_after = manifest.replay_after_wal_id();
        let taken = blocking(move || take_over(log, epoch, replay_after)).await?;
        Ok(WriterInitResult { replay_iterator: Box::new(taken.replay), wal_writer: Box::new(taken.writer) })
    }
}

struct TakenOver {
    replay: Replay,
    writer: LogWriter,
}

fn take_over(log: Arc<Log>, epoch: u64, replay_after: u64) -> Result<TakenOver, WalError> {
    let fence = FenceFiles::open(&log.folder).map_err(unavailable)?;
    let _turn = fence.raise(epoch, &log.space)?;
    let segments = list_segments(&log.folder).map_err(unavailable)?;
    let bytes = segments.iter().map(|(_, len)| len).sum();
    log.usage.reset(segments.len() as u64, bytes);
    let segments: Vec<_> = segments.into_iter().map(|(header, _)| header).collect();
    let (last_id, opened) = open_segments(&log, &segments, replay_after)?;
    let writer = LogWriter::start(Arc::clone(&log), fence, epoch, last_id)?;
    let replay = Replay { log, segments: opened.into_iter(), replay_after, frames: Bytes::new() };
    Ok(TakenOver { replay, writer })
}

/// Opens and checks the segments that have frames beyond `replay_after`, and makes all of them durable.
fn open_segments(
    log: &Log,
    segments: &[SegmentHeader],
    replay_after: u64,
) -> Result<(u64, Vec<OpenSegment>), WalError> {
    // An id below the first of the last segment may have been used, even if that one is empty.
    let mut last_id = replay_after;
    // Up to the replay point everything is in tables.
    let mut durable_id = replay_after;
    let mut opened = Vec::new();
    for (index, header) in segments.iter().enumerate() {
        let next = segments.get(index + 1);
        if next.is_some_and(|next| next.first_id <= replay_after + 1) {
            continue; // a collector may delete it at any time
        }
        last_id = last_id.max(header.first_id.saturating_sub(1));
        let Some((segment, last_in_segment)) = open_segment(log, *header, next.is_none())? else { continue };
        durable_id = durable_id.max(segment.durable_id);
        // Of a segment without a frame, the next owner has used the first id again.
        let used = last_in_segment.unwrap_or(header.first_id.saturating_sub(1));
        if next.is_some_and(|next| next.first_id <= used) {
            return Err(damaged(*header, Malformed::Field("order of segments")));
        }
        last_id = last_id.max(used);
        opened.push(segment);
    }
    for segment in &opened {
        segment.make_durable(log, durable_id)?;
    }
    Ok((last_id, opened))
}

/// Opens one segment and returns it with the id of its last frame; `None` if it was the last and there was no frame in it,
/// it is deleted then.
fn open_segment(
    log: &Log,
    header: SegmentHeader,
    is_last: bool,
) -> Result<Option<(OpenSegment, Option<u64>)>, WalError> {
    let path = log.folder.join(header.file_name());
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(unavailable)?;
    let bytes = read_up_to(&file, None).map_err(unavailable)?;
    let scan = scan(&bytes, header).map_err(|error| damaged(header, error))?;
    if is_last && scan.last_id.is_none() && !matches!(scan.end, ScanEnd::Damaged(_)) {
        if let ScanEnd::Torn(error) = scan.end
            && bytes.len() > SEGMENT_HEADER_LEN
        {
            keep_tail(log, header, &bytes, 0, error)?;
        }
        fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(unavailable)?;
        log.usage.remove_segment(bytes.len() as u64);
        return Ok(None);
    }
    match scan.end {
        ScanEnd::Clean => {}
        ScanEnd::Torn(error) if is_last => {
            keep_tail(log, header, &bytes, scan.good_len, error)?;
            file.set_len(scan.good_len as u64).map_err(unavailable)?;
            log.usage.remove_bytes((bytes.len() - scan.good_len) as u64);
        }
        ScanEnd::Torn(error) | ScanEnd::Damaged(error) => return Err(damaged(header, error)),
    }
    let good_len = scan.good_len as u64;
    let segment = OpenSegment { header, file, good_len, last_id: scan.last_id, durable_id: scan.durable_id };
    Ok(Some((segment, scan.last_id)))
}

/// Copies aside what is about to be cut off a segment, and says so.
///
/// # Errors
/// `Unavailable` if it cannot be kept. What is plainly torn may be cut all the same for want of room: it was never durable.
fn keep_tail(log: &Log, header: SegmentHeader, bytes: &[u8], from: usize, error: Malformed) -> Result<(), WalError> {
    let (segment, cut_bytes) = (header.file_name(), bytes.len() - from);
    let frame = &bytes[from.max(SEGMENT_HEADER_LEN)..];
    let is_whole = Frame::peek(frame).is_ok_and(|last| last.len == frame.len());
    match keep(log, header, from, &bytes[from..]) {
        Ok(kept) if is_whole => tracing::warn!(
            segment, cut_bytes, %error, kept = %kept.display(),
            "cutting the last frame, which has its full length: it was either never synced or damaged"
        ),
        Ok(kept) => tracing::warn!(segment, cut_bytes, %error, kept = %kept.display(), "cutting a torn tail"),
        Err(full) if is_full(&full) && !is_whole => {
            tracing::warn!(segment, cut_bytes, %error, %full, "cutting a torn tail, with no room to keep it");
        }
        Err(failed) => return Err(unavailable(failed)),
    }
    Ok(())
}

/// A segment that stays readable when its name is deleted.
struct OpenSegment {
    header: SegmentHeader,
    file: File,
    good_len: u64,
    last_id: Option<u64>,
    /// What its frames know to be durable.
    durable_id: u64,
}

/// Hands out all frames beyond the replay point, reading one segment at a time.
struct Replay {
    log: Arc<Log>,
    segments: std::vec::IntoIter<OpenSegment>,
    replay_after: u64,
    /// What is left of the current segment.
    frames: Bytes,
}

#[async_trait]
impl WalIterator for Replay {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        loop {
            while !self.frames.is_empty() {
                let frame = Frame::decode(&self.frames).map_err(data_error)?;
                let bytes = self.frames.split_to(frame.len);
                if frame.wal_id > self.replay_after {
                    let rows = frame.rows(&bytes).map_err(data_error)?;
                    rows.iter().filter_map(|row| row.create_ts).for_each(|tick| self.log.usage.saw_tick(tick));
                    return Ok(Some(WalRows { rows, last_consumed_wal_file_id: frame.wal_id }));
                }
            }
            let Some(segment) = self.segments.next() else {
                return Ok(None);
            };
            self.frames = blocking(move || segment.read_frames()).await?;
        }
    }
}

impl OpenSegment {
    /// Makes the frames durable; up to `durable_id` they are.
    fn make_durable(&self, log: &Log, durable_id: u64) -> Result<(), WalError> {
        if self.last_id.is_some_and(|last| last > durable_id) {
            let bytes = read_up_to(&self.file, Some(self.good_len)).map_err(unavailable)?;
            let from = uncertain_from(&bytes, durable_id).map_err(|error| damaged(self.header, error))?;
            let write = || self.file.write_all_at(&bytes[from..], from as u64);
            log.space.insist(Content::Catalog, write).map_err(unavailable)?;
            let written_again = bytes.len() - from;
            tracing::debug!(segment = self.header.file_name(), from, written_again, "wrote frames of the log again");
        }
        self.file.sync_all().map_err(unavailable)
    }

    fn read_frames(self) -> Result<Bytes, WalError> {
        let bytes = read_up_to(&self.file, Some(self.good_len)).map_err(unavailable)?;
        if (bytes.len() as u64) < self.good_len {
            return Err(damaged(self.header, Malformed::Short("segment")));
        }
        let mut bytes = Bytes::from(bytes);
        bytes.advance(SEGMENT_HEADER_LEN);
        Ok(bytes)
    }
}

/// The three files by which owners agree on who writes.
pub(super) struct FenceFiles {
    turn: File,
    fence: File,
    data: File,
}

const FENCE_LEN: usize = 12;

impl FenceFiles {
    fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
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
    fn raise(&self, epoch: u64, space: &DiskSpace) -> Result<Turn, WalError> {
        let turn = self.turn.try_clone().map_err(unavailable)?;
        turn.lock().map_err(unavailable)?;
        let turn = Turn(turn);
        // Bad bytes here were torn by a power cut, which no writer survived.
        if self.read().map_err(unavailable)?.is_some_and(|highest| highest >= epoch) {
            return Err(WalError::Fenced);
        }
        let mut bytes = [0; FENCE_LEN];
        bytes[..8].copy_from_slice(&epoch.to_le_bytes());
        bytes[8..].copy_from_slice(&crc32c(&[&epoch.to_le_bytes()]).to_le_bytes());
        // Some file systems need room even where there was something before.
        space
            .insist(Content::Catalog, || self.fence.write_all_at(&bytes, 0))
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
        self.data.lock_shared().map_err(unavailable)?;
        let permit = WritePermit(&self.data);
        match self.read().map_err(unavailable)? {
            Some(highest) if highest == epoch => Ok(permit),
            _ => Err(WalError::Fenced),
        }
    }

    /// The epoch in FENCE; `None` if there is none, or it is being written.
    fn read(&self) -> io::Result<Option<u64>> {
        let mut bytes = [0; FENCE_LEN];
        match self.fence.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut rest = &bytes[..];
        let epoch = rest.get_u64_le();
        let good = rest.get_u32_le() == crc32c(&[&epoch.to_le_bytes()]);
        Ok(good.then_some(epoch))
    }
}

/// The right to fence, given back on drop.
struct Turn(File);

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

/// The segments in `folder` and their lengths, oldest first.
///
/// # Errors
/// What the operating system says. A segment that vanishes meanwhile is left out.
pub(super) fn list_segments(folder: &Path) -> io::Result<Vec<(SegmentHeader, u64)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(header) = name.to_str().and_then(SegmentHeader::from_file_name) else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) => segments.push((header, metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

fn read_up_to(file: &File, limit: Option<u64>) -> io::Result<Vec<u8>> {
    let len = limit.unwrap_or(file.metadata()?.len());
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WalError> + Send + 'static,
) -> Result<T, WalError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(WalError::InternalError(Arc::new(error))))
}

pub(super) fn unavailable(error: io::Error) -> WalError {
    WalError::Unavailable(Arc::new(error))
}

fn data_error(error: Malformed) -> WalError {
    WalError::DataError(Arc::new(error))
}

fn damaged(segment: SegmentHeader, source: Malformed) -> WalError {
    WalError::DataError(Arc::new(DamagedSegment { name: segment.file_name(), source }))
}

#[derive(Debug, thiserror::Error)]
#[error("segment {name} of the catalog log is damaged")]
struct DamagedSegment {
    name: String,
    #[source]
    source: Malformed,
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use slatedb::{RowEntry, ValueDeletable};

    use super::super::format::FrameBuilder;
    use super::*;
    use crate::catalog::anchor::Anchor;
    use crate::metrics::Metrics;
    use crate::store::Traffic;

    fn log_in(folder: &Path) -> Arc<Log> {
        let lock = folder.join("LOCK");
        let anchor = Anchor::new(lock.clone(), &File::create(lock).unwrap()).unwrap();
        Log::new(folder.to_owned(), anchor, 1 << 20, Traffic::catalog(Metrics::new()), DiskSpace::default())
    }

    /// Writes a segment with these frames.
    fn write_segment(folder: &Path, epoch: u64, first_id: u64, frames: &[u64]) -> SegmentHeader {
        let header = SegmentHeader { epoch, first_id };
        let mut bytes = header.encode().to_vec();
        for id in frames {
            let mut frame = FrameBuilder::new(Vec::new());
            let value = ValueDeletable::Value(Bytes::from_static(b"value"));
            frame.push(&RowEntry {
                key: Bytes::from_static(b"key"),
                value,
                seq: *id,
                create_ts: None,
                expire_ts: None,
            });
            bytes.extend_from_slice(frame.seal(*id, epoch, id - 1));
        }
        fs::write(folder.join(header.file_name()), bytes).unwrap();
        header
    }

    fn open_all(folder: &Path) -> Result<u64, WalError> {
        let segments: Vec<_> = list_segments(folder).unwrap().into_iter().map(|(header, _)| header).collect();
        open_segments(&log_in(folder), &segments, 0).map(|(last_id, _)| last_id)
    }

    #[test]
    fn an_owner_that_died_before_its_first_frame_leaves_nothing_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        write_segment(folder.path(), 1, 1, &[1, 2]);
        let empty = write_segment(folder.path(), 2, 3, &[]);

        let last_id = open_all(folder.path()).unwrap();

        assert_eq!(last_id, 2);
        assert!(!folder.path().join(empty.file_name()).exists());
    }

    #[test]
    fn a_first_id_is_used_again_after_a_segment_without_a_frame_only() {
        let folder = tempfile::tempdir().unwrap();
        write_segment(folder.path(), 1, 1, &[1, 2]);
        write_segment(folder.path(), 2, 3, &[]);
        write_segment(folder.path(), 3, 3, &[3]);
        assert_eq!(open_all(folder.path()).unwrap(), 3);

        write_segment(folder.path(), 4, 3, &[3]);
        assert!(matches!(open_all(folder.path()), Err(WalError::DataError(_))));
    }

    #[test]
    fn what_is_cut_is_kept_beside_the_log() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("log");
        fs::create_dir(&folder).unwrap();
        let kept = |header: SegmentHeader, at: usize| {
            fs::read(root.path().join(format!("lost+found/{}-{at:020}", header.file_name()))).unwrap()
        };
        let first = write_segment(&folder, 1, 1, &[1, 2]);
        let path = folder.join(first.file_name());
        let mut bytes = fs::read(&path).unwrap();
        let at = SEGMENT_HEADER_LEN + (bytes.len() - SEGMENT_HEADER_LEN) / 2;
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();

        assert_eq!(open_all(&folder).unwrap(), 1);
        assert_eq!(fs::read(&path).unwrap(), bytes[..at]);
        assert_eq!(kept(first, at), bytes[at..]);

        // Its only frame is damaged, and the segment goes.
        let second = write_segment(&folder, 2, 2, &[2]);
        let path = folder.join(second.file_name());
        let mut bytes = fs::read(&path).unwrap();
        bytes[SEGMENT_HEADER_LEN + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();

        assert_eq!(open_all(&folder).unwrap(), 1);
        assert!(!path.exists());
        assert_eq!(kept(second, 0), bytes);
        assert_eq!(fs::read_dir(root.path().join("lost+found")).unwrap().count(), 2);
    }

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
