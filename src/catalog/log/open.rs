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
//! 4. Read the log files behind the replay point, keeping them open because a collector may delete
//!    names at any time. Cut the torn tail of the last. Replaying a frame calls it durable, but a whole one may so far
//!    be in the page cache only, and a sync that failed before makes the next one succeed without it: frames that no
//!    later frame knows to be durable are written again, as they are and where they are. Then all is synced.
//! 5. Continue the ids behind the last frame.
//!
//! Ids have no gaps, and the newest log file is never collected: a log of which a file is gone is not opened.
//!
//! # Source
//! The three conditions in the documentation of SlateDB's `wal::WriterInit`.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use slatedb::wal::{WalError, WalIterator, WalRows, WriterInit, WriterInitResult, WriterManifest};

use super::Log;
use super::disk::DiskSink;
use super::fence::{FenceFiles, blocking, list_log_files, unavailable};
use super::format::{LOG_FILE_HEADER_LEN, LogFileHeader, LogFrame, MalformedLog};
use super::kept::keep;
use super::scan::{ScanEnd, damaged, scan, uncertain_from};
use super::writer::{FlushOn, LogWriter};
use crate::store::space::{DiskUse, is_full};

/// Opens a [`Log`] for SlateDB.
pub struct LogInit {
    log: Arc<Log>,
}

crate::runtime::opaque_debug!(LogInit);

impl LogInit {
    /// Will open `log`.
    pub fn new(log: Arc<Log>) -> Self {
        Self { log }
    }
}

#[async_trait]
impl WriterInit for LogInit {
    async fn fence_and_init(&self, manifest: &mut WriterManifest) -> Result<WriterInitResult, WalError> {
        let (log, epoch) = (Arc::clone(&self.log), manifest.epoch());
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
    // Before anything is read: from here on no older owner adds a frame behind what is read.
    let _turn = fence.raise(epoch, &log.space)?;
    let log_files = list_log_files(&log.folder).map_err(unavailable)?;
    let newest = fence.newest().map_err(unavailable)?;
    // Before anything is cut.
    check_newest(&log_files, newest, replay_after)?;
    let (last_id, opened) = open_log_files(&log, &log_files, newest, replay_after)?;
    let sink = DiskSink::new(Arc::clone(&log), fence, epoch);
    let writer = LogWriter::start(sink, &log.abort, epoch, last_id, FlushOn::Append)?;
    let replay = Replay { log, log_files: opened.into_iter(), replay_after, frames: Bytes::new() };
    Ok(TakenOver { replay, writer })
}

/// Opens and checks the log files that have frames beyond `replay_after`, and makes all of them durable.
fn open_log_files(
    log: &Log,
    log_files: &[LogFileHeader],
    newest: Option<u64>,
    replay_after: u64,
) -> Result<(u64, Vec<OpenLogFile>), WalError> {
    // An id below the first of the last log file may have been used, even if that one is empty.
    let mut last_id = replay_after;
    // Up to the replay point everything is in tables.
    let mut durable_id = replay_after;
    let mut opened = Vec::new();
    for (index, header) in log_files.iter().enumerate() {
        let next = log_files.get(index + 1);
        if next.is_some_and(|next| next.first_id <= replay_after + 1) {
            continue; // a collector may delete it at any time
        }
        if header.first_id > last_id + 1 {
            return Err(gone(last_id + 1..header.first_id));
        }
        let had_frame = newest == Some(header.first_id);
        let log_file = open_log_file(log, *header, next.is_none(), had_frame)?;
        durable_id = durable_id.max(log_file.durable_id);
        // Of a log file without a frame, the next owner has used the first id again.
        let used = log_file.last_id.unwrap_or(header.first_id.saturating_sub(1));
        if next.is_some_and(|next| next.first_id <= used) {
            return Err(damaged(*header, MalformedLog::Field("order of log files")));
        }
        last_id = last_id.max(used);
        opened.push(log_file);
    }
    // Before the first new frame: it will say that all before it are durable.
    for log_file in &opened {
        log_file.make_durable(log, durable_id)?;
    }
    Ok((last_id, opened))
}

/// Checks that the newest log file is there: `newest` is the first id of it, where somebody has told.
fn check_newest(log_files: &[LogFileHeader], newest: Option<u64>, replay_after: u64) -> Result<(), WalError> {
    let last = log_files.last();
    match newest {
        // A log file that is newer may have been begun, and not have come to a frame.
        Some(newest) if last.is_none_or(|last| last.first_id < newest) => Err(gone(newest..newest + 1)),
        Some(_) => Ok(()),
        // Where there are tables there was a log, and its newest file is never deleted.
        None if last.is_none() && replay_after > 0 => Err(gone(replay_after + 1..replay_after + 2)),
        None => Ok(()),
    }
}

/// Opens one log file. If it is the last and there is no whole frame in it, its header alone is left: the newest log file stays,
/// so that its loss is noticed. Nothing is changed of one that `had_frame`: that was answered.
fn open_log_file(log: &Log, header: LogFileHeader, is_last: bool, had_frame: bool) -> Result<OpenLogFile, WalError> {
    let path = log.folder.join(header.file_name());
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(unavailable)?;
    let bytes = read_up_to(&file, None).map_err(unavailable)?;
    let scan = scan(&bytes, header).map_err(|error| damaged(header, error))?;
    if is_last && scan.last_id.is_none() && !matches!(scan.end, ScanEnd::Damaged(_)) {
        match scan.end {
            ScanEnd::Torn(error) if had_frame && bytes.len() > LOG_FILE_HEADER_LEN => {
                return Err(damaged(header, error));
            }
            _ if had_frame => return Err(gone(header.first_id..header.first_id + 1)),
            _ => {}
        }
        if let ScanEnd::Torn(error) = scan.end
            && bytes.len() > LOG_FILE_HEADER_LEN
        {
            keep_tail(log, header, &bytes, 0, error)?;
        }
        let reset =
            || file.set_len(0).and_then(|()| file.write_all_at(&header.encode(), 0)).and_then(|()| file.sync_all());
        log.space.insist(DiskUse::Catalog, reset).map_err(unavailable)?;
        let good_len = LOG_FILE_HEADER_LEN as u64;
        return Ok(OpenLogFile { header, file, good_len, last_id: None, durable_id: 0 });
    }
    match scan.end {
        ScanEnd::Clean => {}
        ScanEnd::Torn(error) if is_last => {
            keep_tail(log, header, &bytes, scan.good_len, error)?;
            file.set_len(scan.good_len as u64).map_err(unavailable)?;
        }
        ScanEnd::Torn(error) | ScanEnd::Damaged(error) => return Err(damaged(header, error)),
    }
    let good_len = scan.good_len as u64;
    Ok(OpenLogFile { header, file, good_len, last_id: scan.last_id, durable_id: scan.durable_id })
}

/// Copies aside what is about to be cut off a log file, and says so.
///
/// # Errors
/// `Unavailable` if it cannot be kept. What is plainly torn may be cut all the same for want of room: it was never durable.
fn keep_tail(log: &Log, header: LogFileHeader, bytes: &[u8], from: usize, error: MalformedLog) -> Result<(), WalError> {
    let (log_file, cut_bytes) = (header.file_name(), bytes.len() - from);
    let frame = &bytes[from.max(LOG_FILE_HEADER_LEN)..];
    let is_whole = LogFrame::peek(frame).is_ok_and(|last| last.len == frame.len());
    match keep(log, header, from, &bytes[from..]) {
        Ok(kept) if is_whole => tracing::warn!(
            log_file, cut_bytes, %error, kept = %kept.display(),
            "cutting the last frame, which has its full length: it was either never synced or damaged"
        ),
        Ok(kept) => tracing::warn!(log_file, cut_bytes, %error, kept = %kept.display(), "cutting a torn tail"),
        Err(full) if is_full(&full) && !is_whole => {
            tracing::warn!(log_file, cut_bytes, %error, %full, "cutting a torn tail, with no room to keep it");
        }
        Err(failed) => return Err(unavailable(failed)),
    }
    Ok(())
}

/// A log file that stays readable when its name is deleted.
struct OpenLogFile {
    header: LogFileHeader,
    file: File,
    good_len: u64,
    last_id: Option<u64>,
    /// The last frame that its own frames know to be durable.
    durable_id: u64,
}

/// Hands out all frames beyond the replay point, reading one log file at a time.
struct Replay {
    log: Arc<Log>,
    log_files: std::vec::IntoIter<OpenLogFile>,
    replay_after: u64,
    /// The rest of the current log file.
    frames: Bytes,
}

#[async_trait]
impl WalIterator for Replay {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        loop {
            while !self.frames.is_empty() {
                let frame = LogFrame::decode(&self.frames).map_err(data_error)?;
                let bytes = self.frames.split_to(frame.len);
                if frame.wal_id > self.replay_after {
                    let rows = frame.rows(&bytes).map_err(data_error)?;
                    rows.iter().filter_map(|row| row.create_ts).for_each(|tick| self.log.saw_tick(tick));
                    return Ok(Some(WalRows { rows, last_consumed_wal_file_id: frame.wal_id }));
                }
            }
            let Some(log_file) = self.log_files.next() else {
                return Ok(None);
            };
            self.frames = blocking(move || log_file.read_frames()).await?;
        }
    }
}

impl OpenLogFile {
    /// Makes the frames durable; up to `durable_id` they are.
    fn make_durable(&self, log: &Log, durable_id: u64) -> Result<(), WalError> {
        if self.last_id.is_some_and(|last| last > durable_id) {
            let bytes = read_up_to(&self.file, Some(self.good_len)).map_err(unavailable)?;
            let from = uncertain_from(&bytes, durable_id).map_err(|error| damaged(self.header, error))?;
            let write = || self.file.write_all_at(&bytes[from..], from as u64);
            log.space.insist(DiskUse::Catalog, write).map_err(unavailable)?;
            let written_again = bytes.len() - from;
            tracing::debug!(log_file = self.header.file_name(), from, written_again, "wrote frames of the log again");
        }
        self.file.sync_all().map_err(unavailable)
    }

    fn read_frames(self) -> Result<Bytes, WalError> {
        let bytes = read_up_to(&self.file, Some(self.good_len)).map_err(unavailable)?;
        if (bytes.len() as u64) < self.good_len {
            return Err(damaged(self.header, MalformedLog::Short("log file")));
        }
        let mut bytes = Bytes::from(bytes);
        bytes.advance(LOG_FILE_HEADER_LEN);
        Ok(bytes)
    }
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

fn data_error(error: MalformedLog) -> WalError {
    WalError::DataError(Arc::new(error))
}

fn gone(frames: Range<u64>) -> WalError {
    WalError::DataError(Arc::new(LostLogFile { first: frames.start, next: frames.end }))
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a file of the catalog log is gone, or empty: there is no frame {first}{}. Bring catalog/log back as it was; without it \
     answered writes are lost, and `esker rebuild --replace` makes a catalog of what is in the physical files",
    match next - first { 1 => String::new(), _ => format!(" to {}", next - 1) }
)]
struct LostLogFile {
    first: u64,
    next: u64,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use slatedb::{RowEntry, ValueDeletable};

    use super::super::format::FrameBuilder;
    use super::*;
    use crate::catalog::anchor::Anchor;
    use crate::metrics::Metrics;
    use crate::store::{DiskSpace, Traffic};

    fn log_in(folder: &Path) -> Arc<Log> {
        let lock = folder.join("LOCK");
        let anchor = Anchor::new(lock.clone(), &File::create(lock).unwrap(), &[]).unwrap();
        Log::new(folder.to_owned(), anchor, 1 << 20, Traffic::catalog(Metrics::new()), DiskSpace::default())
    }

    /// Writes a log file with these frames.
    fn write_log_file(folder: &Path, epoch: u64, first_id: u64, frames: &[u64]) -> LogFileHeader {
        let header = LogFileHeader { epoch, first_id, number: 0 };
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
        open_beyond(folder, None, 0)
    }

    /// Opens what is beyond a replay point; the log file that begins with `newest` had a frame.
    fn open_beyond(folder: &Path, newest: Option<u64>, replay_after: u64) -> Result<u64, WalError> {
        let log_files = list_log_files(folder).unwrap();
        check_newest(&log_files, newest, replay_after)?;
        open_log_files(&log_in(folder), &log_files, newest, replay_after).map(|(last_id, _)| last_id)
    }

    fn is_refused(opened: Result<u64, WalError>) -> bool {
        matches!(opened, Err(WalError::DataError(_)))
    }

    #[test]
    fn an_owner_that_died_before_its_first_frame_leaves_nothing_in_the_way() {
        for torn in [0, 4, LOG_FILE_HEADER_LEN] {
            let folder = tempfile::tempdir().unwrap();
            write_log_file(folder.path(), 1, 1, &[1, 2]);
            let empty = write_log_file(folder.path(), 2, 3, &[]);
            let path = folder.path().join(empty.file_name());
            File::options().write(true).open(&path).unwrap().set_len(torn as u64).unwrap();

            assert_eq!(open_beyond(folder.path(), Some(1), 0).unwrap(), 2);
            // The next owner begins with the same id, and the collector may have deleted all but the newest.
            assert_eq!(fs::read(&path).unwrap(), empty.encode());
            fs::remove_file(folder.path().join(LogFileHeader { epoch: 1, first_id: 1, number: 0 }.file_name()))
                .unwrap();
            assert_eq!(open_beyond(folder.path(), Some(1), 2).unwrap(), 2);
            write_log_file(folder.path(), 3, 3, &[3]);
            assert_eq!(open_beyond(folder.path(), Some(3), 2).unwrap(), 3);
        }
    }

    #[test]
    fn a_log_of_which_a_file_is_gone_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let files = [(1, 1..4), (2, 4..6), (2, 6..9)];
        let files = files.map(|(epoch, ids)| write_log_file(folder.path(), epoch, ids.start, &ids.collect::<Vec<_>>()));
        assert_eq!(open_beyond(folder.path(), Some(6), 0).unwrap(), 8);

        for (index, file) in files.iter().enumerate() {
            let path = folder.path().join(file.file_name());
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            assert!(is_refused(open_beyond(folder.path(), Some(6), 0)), "without file {index}");
            // Where its frames are in tables, the collector may have deleted it, unless it is the newest.
            let in_tables =
                open_beyond(folder.path(), Some(6), files.get(index + 1).map_or(8, |next| next.first_id - 1));
            assert_eq!(in_tables.is_ok(), index < 2, "without file {index}");
            fs::write(&path, bytes).unwrap();
        }
        let newest = folder.path().join(files[2].file_name());
        for len in [0, LOG_FILE_HEADER_LEN] {
            File::options().write(true).open(&newest).unwrap().set_len(len as u64).unwrap();
            assert!(is_refused(open_beyond(folder.path(), Some(6), 7)), "the newest cut to {len} bytes");
        }
    }

    #[test]
    fn the_only_frame_of_the_newest_log_file_is_not_cut_when_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let header = write_log_file(folder.path(), 1, 1, &[1]);
        let path = folder.path().join(header.file_name());
        let mut bytes = fs::read(&path).unwrap();
        bytes[LOG_FILE_HEADER_LEN + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();

        assert!(is_refused(open_beyond(folder.path(), Some(1), 0)));
        assert_eq!(fs::read(&path).unwrap(), bytes);
        // Nobody knows that it was durable.
        assert_eq!(open_beyond(folder.path(), None, 0).unwrap(), 0);
    }

    #[test]
    fn a_log_whose_folder_is_empty_is_not_opened_where_there_are_tables() {
        let folder = tempfile::tempdir().unwrap();

        assert_eq!(open_beyond(folder.path(), None, 0).unwrap(), 0);
        assert!(is_refused(open_beyond(folder.path(), None, 1)));
        assert!(is_refused(open_beyond(folder.path(), Some(1), 0)));
    }

    #[test]
    fn a_first_id_is_used_again_after_a_log_file_without_a_frame_only() {
        let folder = tempfile::tempdir().unwrap();
        write_log_file(folder.path(), 1, 1, &[1, 2]);
        write_log_file(folder.path(), 2, 3, &[]);
        write_log_file(folder.path(), 3, 3, &[3]);
        assert_eq!(open_all(folder.path()).unwrap(), 3);

        write_log_file(folder.path(), 4, 3, &[3]);
        assert!(is_refused(open_all(folder.path())));
    }

    #[test]
    fn what_is_cut_is_kept_beside_the_log() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("log");
        fs::create_dir(&folder).unwrap();
        let kept = |header: LogFileHeader, at: usize| {
            fs::read(root.path().join(format!("lost+found/{}-{at:020}", header.file_name()))).unwrap()
        };
        let first = write_log_file(&folder, 1, 1, &[1, 2]);
        let path = folder.join(first.file_name());
        let mut bytes = fs::read(&path).unwrap();
        let at = LOG_FILE_HEADER_LEN + (bytes.len() - LOG_FILE_HEADER_LEN) / 2;
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();

        assert_eq!(open_all(&folder).unwrap(), 1);
        assert_eq!(fs::read(&path).unwrap(), bytes[..at]);
        assert_eq!(kept(first, at), bytes[at..]);

        // Its only frame is damaged, and the log file goes.
        let second = write_log_file(&folder, 2, 2, &[2]);
        let path = folder.join(second.file_name());
        let mut bytes = fs::read(&path).unwrap();
        bytes[LOG_FILE_HEADER_LEN + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();

        assert_eq!(open_all(&folder).unwrap(), 1);
        assert_eq!(fs::read(&path).unwrap(), second.encode());
        assert_eq!(kept(second, 0), bytes);
        assert_eq!(fs::read_dir(root.path().join("lost+found")).unwrap().count(), 2);
    }
}
