//! One folder of the local copy: its entries on disk, and what waits to become one.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::entry;
use super::run::ByteRun;
use super::shelf::{Shelf, ShelfEntry};
use crate::metrics::Metrics;
use crate::model::PhysicalFileId;
use crate::runtime::Clock;
use crate::store::remove_leftover;

const LOCK: &str = "LOCK";
/// The name of an entry until it is whole.
const STAGED: &str = "staged";
/// Daemons on one store that have a folder of their own below one directory.
const DAEMONS_MAX: usize = 16;
/// Runs that wait to be written; more are not kept.
const WAITING_MAX: usize = 1024;
/// After an error of the disk it is left alone for so long.
const REST: Duration = Duration::from_secs(60);
/// A disk that takes longer is as good as broken.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// The part of a folder that is given back when the disk is full.
const PART_OF_A_FULL_DISK: u64 = 16;

/// One folder, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
    bytes_max: u64,
    waiting_bytes_max: u64,
    state: Mutex<FolderState>,
    bell: Notify,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct FolderState {
    shelf: Shelf,
    waiting: VecDeque<WaitingWrite>,
    waiting_bytes: u64,
    /// The entry that is being written; `None` if nothing is, or it is not wanted any more.
    writing: Option<ShelfEntry>,
    /// Entries off the shelf whose files are still there.
    doomed: Vec<ShelfEntry>,
    reads: Trouble,
    writes: Trouble,
    closing: bool,
}

#[derive(Debug)]
struct WaitingWrite {
    file: PhysicalFileId,
    run: ByteRun,
    parts: Vec<Bytes>,
}

/// Whether the disk fails.
#[derive(Debug, Default)]
struct Trouble {
    /// Nothing is tried before.
    until: Option<Instant>,
}

impl Trouble {
    fn is_off(&self) -> bool {
        self.until.is_some_and(|until| Clock::instant() < until)
    }

    /// Whether this is news.
    fn failed(&mut self) -> bool {
        self.until.replace(Clock::instant() + REST).is_none()
    }

    /// Whether this is news.
    fn worked(&mut self) -> bool {
        self.until.take().is_some()
    }
}

impl Folder {
    /// Opens the folder of this daemon below `dir`: `<name>`, or `<name>-<n>` while other daemons have those before.
    /// Entries that earlier daemons left in it are found again.
    ///
    /// # Errors
    /// The operating system's error; also if the folder belongs to another user.
    pub(super) fn open(
        dir: &Path,
        name: &str,
        bytes_max: u64,
        waiting_bytes_max: u64,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let (path, lock) = take_folder(dir, name)?;
        let shelf = find_entries(&path)?;
        metrics.local_copy_bytes.add(signed(shelf.bytes()));
        let folder = Self {
            path,
            _lock: lock,
            bytes_max,
            waiting_bytes_max,
            state: Mutex::new(FolderState { shelf, ..FolderState::default() }),
            bell: Notify::new(),
            metrics,
        };
        folder.make_room(0);
        let (entries, bytes) = {
            let state = folder.state.lock();
            (state.shelf.len(), state.shelf.bytes())
        };
        tracing::info!(folder = %folder.path.display(), entries, bytes, bytes_max, "local copy opened");
        Ok(folder)
    }

    /// Keeps a run of bytes of `file`, soon, if there is time and room for it.
    pub(super) fn keep(&self, file: &PhysicalFileId, run: ByteRun, parts: Vec<Bytes>) {
        {
            let mut state = self.state.lock();
            let behind = !state.waiting.is_empty()
                && (state.waiting.len() >= WAITING_MAX || state.waiting_bytes + run.len > self.waiting_bytes_max);
            if behind || state.closing || state.writes.is_off() || entry::disk_bytes(run) > self.bytes_max {
                self.metrics.local_copy_dropped.inc();
                return;
            }
            if state.knows(file, run) {
                return;
            }
            state.waiting_bytes += run.len;
            state.waiting.push_back(WaitingWrite { file: file.clone(), run, parts });
        }
        self.bell.notify_one();
    }

    /// Bytes `range` of `file`; `None` if they are not here, or not whole.
    pub(super) async fn read(self: &Arc<Self>, file: &PhysicalFileId, range: Range<u64>) -> Option<Bytes> {
        let runs = {
            let mut state = self.state.lock();
            if state.reads.is_off() { None } else { state.shelf.find(file, &range) }
        };
        let read = match runs {
            Some(runs) => self.read_runs(file, runs, range).await,
            None => None,
        };
        if read.is_some() {
            self.metrics.local_copy_hits.inc()
        } else {
            self.metrics.local_copy_misses.inc()
        }
        read
    }

    async fn read_runs(
        self: &Arc<Self>,
        file: &PhysicalFileId,
        runs: Vec<ByteRun>,
        range: Range<u64>,
    ) -> Option<Bytes> {
        let (folder, name) = (Arc::clone(self), file.clone());
        #[expect(clippy::disallowed_methods, reason = "awaited for a while, and without it storage is read")]
        let read = tokio::task::spawn_blocking(move || folder.read_now(&name, &runs, range));
        match tokio::time::timeout(READ_PATIENCE, read).await {
            Ok(read) => read.ok().flatten(),
            Err(_late) => {
                self.read_failed(&io::ErrorKind::TimedOut.into());
                None
            }
        }
    }

    fn read_now(&self, file: &PhysicalFileId, runs: &[ByteRun], range: Range<u64>) -> Option<Bytes> {
        let mut found = vec![];
        let mut at = range.start;
        for run in runs {
            let to = run.end().min(range.end);
            found.push(self.read_entry(file, *run, at..to)?);
            at = to;
        }
        match found.as_slice() {
            [one] => Some(one.clone()),
            several => {
                let mut all = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
                several.iter().for_each(|part| all.extend_from_slice(part));
                Some(all.freeze())
            }
        }
    }

    fn read_entry(&self, file: &PhysicalFileId, run: ByteRun, range: Range<u64>) -> Option<Bytes> {
        match entry::read(&self.path.join(entry::name(file, run)), file, run, range) {
            Ok(Some(bytes)) => {
                if self.state.lock().reads.worked() {
                    tracing::info!(folder = %self.path.display(), "the local copy can be read again");
                }
                return Some(bytes);
            }
            Ok(None) => {
                self.metrics.local_copy_damaged.inc();
                tracing::debug!(%file, ?run, "an entry of the local copy is damaged, it is dropped");
            }
            // Evicted under this read, or deleted by somebody.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.read_failed(&error),
        }
        self.drop_entry(file, run);
        None
    }

    fn drop_entry(&self, file: &PhysicalFileId, run: ByteRun) {
        let dropped = {
            let mut state = self.state.lock();
            let dropped = state.shelf.remove(file, run);
            if dropped {
                state.doomed.push((file.clone(), run));
            }
            dropped
        };
        if dropped {
            self.metrics.local_copy_bytes.sub(signed(entry::disk_bytes(run)));
            self.bell.notify_one();
        }
    }

    /// Whether the range is there, or about to be.
    pub(super) fn has(&self, file: &PhysicalFileId, range: &Range<u64>) -> bool {
        self.state.lock().knows(file, ByteRun { start: range.start, len: range.end - range.start })
    }

    /// Drops everything of `file`. Returns whether there was anything.
    pub(super) fn forget(&self, file: &PhysicalFileId) -> bool {
        let (known, freed) = {
            let mut state = self.state.lock();
            let items = state.shelf.remove_file(file);
            let freed: u64 = items.iter().map(|(_, run)| entry::disk_bytes(*run)).sum();
            let mut known = !items.is_empty() || state.writing.take_if(|(writing, _)| writing == file).is_some();
            state.doomed.extend(items);
            let waiting = state.waiting.len();
            state.waiting.retain(|waiting| waiting.file != *file);
            known |= state.waiting.len() < waiting;
            state.waiting_bytes = state.waiting.iter().map(|waiting| waiting.run.len).sum();
            (known, freed)
        };
        self.metrics.local_copy_bytes.sub(signed(freed));
        self.bell.notify_one();
        known
    }

    /// Writes what is to be kept, until [`Self::close`] and the end of what waits then.
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic is told")]
    pub(super) async fn run(self: Arc<Self>) {
        while self.wait_for_work().await {
            let folder = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || folder.work()).await {
                tracing::error!(%error, "the local copy's writer panicked");
                return;
            }
        }
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.bell.notify_one();
    }

    /// False if there is no work and never will be.
    async fn wait_for_work(&self) -> bool {
        loop {
            {
                let state = self.state.lock();
                if !state.waiting.is_empty() || !state.doomed.is_empty() {
                    return true;
                }
                if state.closing {
                    return false;
                }
            }
            // `notify_one` leaves a permit: a bell between the look and this wait ends it at once.
            self.bell.notified().await;
        }
    }

    /// Removes what is doomed and writes one entry.
    fn work(&self) {
        let (doomed, next) = {
            let mut state = self.state.lock();
            let next = state.waiting.pop_front();
            if let Some(next) = &next {
                state.waiting_bytes = state.waiting_bytes.saturating_sub(next.run.len);
                // Under the same lock as it leaves the queue: `knows` and `forget` find it in one of the two.
                state.writing = Some((next.file.clone(), next.run));
            }
            (std::mem::take(&mut state.doomed), next)
        };
        self.remove_files(&doomed);
        if let Some(next) = next {
            self.make_room(entry::disk_bytes(next.run));
            match self.write_entry(&next) {
                Ok(()) => self.written(&next),
                Err(error) => self.write_failed(&error),
            }
        }
    }

    fn write_entry(&self, next: &WaitingWrite) -> io::Result<()> {
        let staged = self.path.join(STAGED);
        let written = entry::write(&staged, &next.file, next.run, &next.parts)
            .and_then(|()| fs::rename(&staged, self.path.join(entry::name(&next.file, next.run))));
        if written.is_err() {
            remove_leftover(&staged);
        }
        written
    }

    fn written(&self, next: &WaitingWrite) {
        let recovered = {
            let mut state = self.state.lock();
            let before = state.shelf.bytes();
            let needless = match state.writing.take() {
                Some(_) => state.shelf.add(&next.file, next.run),
                // It was forgotten meanwhile.
                None => vec![(next.file.clone(), next.run)],
            };
            state.doomed.extend(needless);
            self.metrics.local_copy_bytes.add(signed(state.shelf.bytes()) - signed(before));
            state.writes.worked()
        };
        if recovered {
            tracing::info!(folder = %self.path.display(), "the local copy can be written again");
        }
    }

    fn write_failed(&self, error: &io::Error) {
        let (news, waiting, bytes) = {
            let mut state = self.state.lock();
            state.writing = None;
            state.waiting_bytes = 0;
            (state.writes.failed(), std::mem::take(&mut state.waiting), state.shelf.bytes())
        };
        self.metrics.local_copy_dropped.inc_by(waiting.len() as u64 + 1);
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            // Somebody needs the disk: the copy shrinks, so that it can go on with newer entries later.
            self.make_room(self.bytes_max - bytes.min(self.bytes_max) + bytes / PART_OF_A_FULL_DISK);
        }
        if news {
            tracing::warn!(
                folder = %self.path.display(),
                %error,
                rest_seconds = REST.as_secs(),
                "the local copy cannot be written, it is left alone for a while; nothing else depends on it"
            );
        }
    }

    fn read_failed(&self, error: &io::Error) {
        if self.state.lock().reads.failed() {
            tracing::warn!(
                folder = %self.path.display(),
                %error,
                rest_seconds = REST.as_secs(),
                "the local copy cannot be read, the store is read instead for a while"
            );
        }
    }

    /// Removes the entries used longest ago, until `bytes` more fit.
    fn make_room(&self, bytes: u64) {
        let room = self.bytes_max.saturating_sub(bytes);
        loop {
            let oldest = {
                let mut state = self.state.lock();
                if state.shelf.bytes() <= room { None } else { state.shelf.remove_oldest() }
            };
            let Some(oldest) = oldest else { return };
            self.metrics.local_copy_evictions.inc();
            self.metrics.local_copy_bytes.sub(signed(entry::disk_bytes(oldest.1)));
            self.remove_files(&[oldest]);
        }
    }

    fn remove_files(&self, items: &[ShelfEntry]) {
        for (file, run) in items {
            if let Err(error) = fs::remove_file(self.path.join(entry::name(file, *run)))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(%file, ?run, %error, "an entry of the local copy is left to the next start");
            }
        }
    }
}

impl FolderState {
    /// Whether a run is here already, or about to be.
    fn knows(&self, file: &PhysicalFileId, run: ByteRun) -> bool {
        let about_to_be = |there: &PhysicalFileId, its: ByteRun| there == file && its.covers(run);
        self.shelf.runs_of(file, &(run.start..run.end())).is_some()
            || self.waiting.iter().any(|waiting| about_to_be(&waiting.file, waiting.run))
            || self.writing.as_ref().is_some_and(|(writing, its)| about_to_be(writing, *its))
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The first folder that no other daemon has, and its lock. Those after it, whose daemons are gone, are emptied.
fn take_folder(dir: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(dir)?;
    let nth = |n: usize| dir.join(if n == 0 { name.to_owned() } else { format!("{name}-{n}") });
    for n in 0..DAEMONS_MAX {
        let path = nth(n);
        make_private(&path)?;
        let Some(lock) = try_lock(&path)? else { continue };
        for path in (n + 1..DAEMONS_MAX).map(nth).filter(|path| path.is_dir()) {
            if let Ok(Some(_lock)) = try_lock(&path) {
                for entry in fs::read_dir(&path)?.flatten().filter(|entry| entry.file_name() != LOCK) {
                    remove_leftover(&entry.path());
                }
            }
        }
        return Ok((path, lock));
    }
    Err(io::Error::other(format!("{DAEMONS_MAX} daemons have a folder there already")))
}

/// Creates a folder that nobody else can look into; one that is there must be ours.
fn make_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(path)?;
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} is not a folder of this user", path.display())))
}

/// None if another daemon has it.
fn try_lock(folder: &Path) -> io::Result<Option<File>> {
    let lock = File::options().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The entries of a folder, by when they were written. Everything else in it is removed.
fn find_entries(folder: &Path) -> io::Result<Shelf> {
    let mut found: Vec<(SystemTime, ShelfEntry)> = vec![];
    let mut needless = vec![];
    for there in fs::read_dir(folder)? {
        let there = there?;
        let name = there.file_name();
        let item = name.to_str().and_then(entry::parse_name);
        let metadata = there.metadata()?;
        match item {
            Some(item) if metadata.is_file() && metadata.len() == entry::file_len(item.1) => {
                found.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), item));
            }
            _ if name == LOCK => {}
            _ => needless.push(there.path()),
        }
    }
    found.sort_by_key(|(written, _)| *written);
    let mut shelf = Shelf::default();
    for (_, (file, run)) in found {
        needless.extend(shelf.add(&file, run).into_iter().map(|(file, run)| folder.join(entry::name(&file, run))));
    }
    // A folder in here is none of ours, and stays.
    needless.iter().for_each(|path| remove_leftover(path));
    Ok(shelf)
}
