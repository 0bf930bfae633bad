//! The append store on a local disk: real files that grow and are synced.

use std::collections::HashSet;
use std::fs;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::append_file::{AppendFile, sync_parent};
use super::direct::{DirectBuffers, DirectWriter};
use super::{StoreError, Traffic};
use crate::config::DirectIo;
use crate::merge::format::{self, Frame, ReadAt};
use crate::model::PhysicalFileId;
use crate::runtime::Buffer;

/// Holes are punched in pages of the file system's block size, within these bounds.
const PAGE_BYTES_MIN: u64 = 4096;
const PAGE_BYTES_MAX: u64 = 1 << 20;

/// Physical files in a folder of a local disk. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Path>,
    /// Folders whose names this process has made durable.
    folders: Arc<Mutex<HashSet<PathBuf>>>,
    /// Where direct writes work and are wanted.
    direct: Option<DirectBuffers>,
    traffic: Traffic,
}

/// A physical file that grows. One task owns it.
#[derive(Debug)]
pub struct LocalFile {
    file: Arc<Mutex<Growing>>,
    path: String,
    traffic: Traffic,
}

#[derive(Debug)]
struct Growing {
    file: AppendFile,
    direct: Option<DirectWriter>,
}

impl Growing {
    fn append(&mut self, parts: Vec<Bytes>) -> io::Result<u64> {
        match &self.direct {
            Some(direct) => direct.append(&mut self.file, parts),
            None => {
                let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                self.file.append(&slices)
            }
        }
    }
}

impl LocalStore {
    /// Files below `root`, which exists.
    pub fn new(root: PathBuf, traffic: Traffic) -> Self {
        Self { root: root.into(), folders: Arc::default(), direct: None, traffic }
    }

    /// Writes large groups past the page cache where `wanted` says so. `name` names the file of the trial.
    ///
    /// # Errors
    /// What the operating system says, if direct writes are demanded and do not work.
    pub fn with_direct_io(mut self, wanted: DirectIo, name: &str) -> io::Result<Self> {
        self.direct = match wanted {
            DirectIo::Off => None,
            DirectIo::On => Some(DirectWriter::probe(&self.root, name).map(|()| DirectBuffers::default())?),
            DirectIo::Auto => DirectWriter::probe(&self.root, name).ok().map(|()| DirectBuffers::default()),
        };
        Ok(self)
    }

    fn path(&self, file: &PhysicalFileId) -> PathBuf {
        self.root.join(file.as_str())
    }

    /// Creates a file; its name is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when the name is taken.
    pub async fn create(&self, file: &PhysicalFileId) -> Result<LocalFile, StoreError> {
        let (path, root, folders) = (self.path(file), Arc::clone(&self.root), Arc::clone(&self.folders));
        let buffers = self.direct.clone();
        let name = file.to_string();
        let created = blocking("create", &name, move || {
            if let Some(folder) = path.parent()
                && !folders.lock().contains(folder)
            {
                create_folders(&root, folder)?;
                folders.lock().insert(folder.to_owned());
            }
            let file = AppendFile::create(&path)?;
            let direct = buffers.and_then(|buffers| DirectWriter::open(&path, buffers));
            Ok(Growing { file, direct })
        });
        let file = self.traffic.time("put", created).await?;
        Ok(LocalFile { file: Arc::new(Mutex::new(file)), path: name, traffic: self.traffic.clone() })
    }

    pub(super) async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (path, name) = (self.path(file), file.to_string());
        let read = async {
            let read = tokio::task::spawn_blocking(move || read_range(&path, &name, range));
            read.await.map_err(|error| StoreError::failed("get", file.as_str(), error))?
        };
        self.traffic.time("get", read).await
    }

    pub(super) async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        let path = self.path(file);
        let len = blocking("head", file.as_str(), move || match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        self.traffic.time("head", len).await
    }

    pub(super) async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        let mut gone = vec![];
        for file in files {
            let path = self.path(&file);
            let deleted = blocking("delete", file.as_str(), move || delete(&path));
            match self.traffic.time("delete", deleted).await {
                Ok(()) => gone.push(file),
                Err(error) => {
                    tracing::warn!(%file, error = crate::error::chain(&error), "a file could not be deleted, it will be tried again");
                }
            }
        }
        gone
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let root = Arc::clone(&self.root);
        let listed = blocking("list", "data", move || {
            let mut found = vec![];
            walk(&root, &root.join("data"), &mut found)?;
            found.sort();
            Ok(found)
        });
        self.traffic.time("list", listed).await
    }

    /// Removes what starts that were cut short have left beside the physical files.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated.
    pub async fn remove_trials(&self) -> Result<(), StoreError> {
        let root = Arc::clone(&self.root);
        blocking("delete", "trials", move || DirectWriter::remove_trials(&root)).await
    }

    /// Ends a file that a crash left open: cuts it to `data_len` bytes, appends `end`, and syncs it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated.
    pub async fn seal(&self, file: &PhysicalFileId, data_len: u64, end: Bytes) -> Result<u64, StoreError> {
        let path = self.path(file);
        let sealed = blocking("append", file.as_str(), move || {
            let file = fs::OpenOptions::new().write(true).open(path)?;
            file.set_len(data_len)?;
            std::os::unix::fs::FileExt::write_all_at(&file, &end, data_len)?;
            file.sync_all()?;
            Ok(data_len + end.len() as u64)
        });
        self.traffic.time("append", sealed).await
    }

    /// The frames of a closed file, by their headers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn frames(&self, file: &PhysicalFileId) -> Result<Vec<Frame>, StoreError> {
        let path = self.path(file);
        let walked = blocking("get", file.as_str(), move || {
            let file = fs::File::open(path)?;
            format::walk(&file, file.metadata()?.len()).map_err(io::Error::other)
        });
        self.traffic.time("get", walked).await
    }

    /// Gives the inner pages of these ranges of a closed file back to the file system; they read as zeros afterwards.
    /// Returns how many bytes that are. It can be repeated.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if the file system cannot do that; [`StoreError::Failed`].
    pub async fn punch(&self, file: &PhysicalFileId, ranges: Vec<Range<u64>>) -> Result<u64, StoreError> {
        let path = self.path(file);
        let punched = blocking("punch", file.as_str(), move || punch(&path, &ranges));
        let punched = self.traffic.time("punch", punched).await?;
        punched.ok_or(StoreError::Unsupported("punching holes"))
    }

    /// Moves what is called `name` below the root to `lost+found/` there. Returns where it is now.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when something of that name is there.
    pub async fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        let root = Arc::clone(&self.root);
        let path = name.to_owned();
        let moved = blocking("rename", name, move || {
            let (from, to) = (root.join(&path), root.join("lost+found").join(&path));
            if to.exists() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, to.display().to_string()));
            }
            if let Some(folder) = to.parent() {
                create_folders(&root, folder)?;
            }
            fs::rename(&from, &to)?;
            sync_parent(&to)?;
            sync_parent(&from)?;
            Ok(to)
        });
        self.traffic.time("put", moved).await
    }

    /// The holes of a file, in order; none where the file system does not tell.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub async fn holes(&self, file: &PhysicalFileId) -> Result<Vec<Range<u64>>, StoreError> {
        let path = self.path(file);
        let found = blocking("get", file.as_str(), move || holes(&fs::File::open(path)?));
        self.traffic.time("get", found).await
    }

    /// Opens a file for reading from a blocking thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(&self, file: &PhysicalFileId) -> io::Result<fs::File> {
        fs::File::open(self.path(file))
    }
}

impl LocalFile {
    /// Appends `parts` and waits until they are durable. Returns the offset of their first byte.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; the file takes nothing more then, and what of `parts` is there is not known.
    pub async fn append(&mut self, parts: Vec<Bytes>) -> Result<u64, StoreError> {
        let file = Arc::clone(&self.file);
        let appended = blocking("append", &self.path, move || {
            let mut file = file.lock();
            let offset = file.append(parts)?;
            file.file.sync()?;
            Ok(offset)
        });
        self.traffic.time("append", appended).await
    }

    /// Appends `parts` without waiting for the disk; a later [`Self::append`] makes them durable, too.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<u64, StoreError> {
        let file = Arc::clone(&self.file);
        let appended = blocking("append", &self.path, move || file.lock().append(parts));
        self.traffic.time("multipart_part", appended).await
    }

    /// Bytes appended so far.
    pub fn len(&self) -> u64 {
        self.file.lock().file.len()
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Runs file system calls on a thread that may block.
async fn blocking<T, F>(operation: &'static str, path: &str, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StoreError::failed(operation, path, error)),
        Err(error) => Err(StoreError::failed(operation, path, error)),
    }
}

/// Creates `folder` below `root`, and makes each new name durable in the folder above it.
fn create_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folders(root, parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(folder),
    }
}

fn read_range(path: &Path, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
    let failed = |error| StoreError::failed("get", name, error);
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::NotFound(name.to_owned())),
        other => other.map_err(failed)?,
    };
    let wanted = usize::try_from(range.end - range.start).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let mut buffer = Buffer::with_capacity(wanted);
    let read = ReadAt::read_at(&file, range.start, buffer.room()).map_err(failed)?;
    if read < wanted {
        return Err(StoreError::Short { path: name.to_owned(), len: range.start + read as u64, wanted: range });
    }
    buffer.advance(read);
    Ok(buffer.freeze())
}

/// Punches the whole pages within `ranges`; none if the file system cannot.
fn punch(path: &Path, ranges: &[Range<u64>]) -> io::Result<Option<u64>> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let page = std::os::unix::fs::MetadataExt::blksize(&file.metadata()?).clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
    let mut punched = 0;
    for range in ranges {
        let (from, to) = (range.start.next_multiple_of(page), range.end / page * page);
        if from >= to {
            continue;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, from, to - from) {
            Ok(()) => punched += to - from,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    file.sync_all()?;
    Ok(Some(punched))
}

fn holes(file: &fs::File) -> io::Result<Vec<Range<u64>>> {
    let len = file.metadata()?.len();
    let mut found = vec![];
    let mut at = 0;
    while at < len {
        // The end of a file counts as a hole.
        let begin = match rustix::fs::seek(file, SeekFrom::Hole(at)) {
            Ok(begin) if begin < len => begin,
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        };
        at = match rustix::fs::seek(file, SeekFrom::Data(begin)) {
            Ok(end) => end.min(len),
            Err(Errno::NXIO) => len,
            Err(error) => return Err(error.into()),
        };
        found.push(begin..at);
    }
    Ok(found)
}

fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The name must not come back after a power cut: the catalog forgets the file next.
    match sync_parent(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, u64)>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            walk(root, &entry.path(), found)?;
        } else if let Ok(name) = entry.path().strip_prefix(root) {
            found.push((name.to_string_lossy().into_owned(), metadata.len()));
        }
    }
    Ok(())
}
