//! The append store on a local disk: real files that grow and are synced.

use std::collections::HashSet;
use std::fs;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::append_file::{AppendFile, sync_parent};
use super::direct::{DirectBuffers, DirectWriter};
use super::space::{DiskSpace, DiskUse, is_full};
use super::{AppendStore, Capabilities, GrowingFile, StoreError, StoreGuard, Traffic};
use crate::config::DirectIo;
use crate::format::{self, Frame, ReadAt};
use crate::metrics::labels::StoreOperation;
use crate::model::PhysicalFileId;
use crate::runtime::Buffer;

/// The folder for files that the catalog does not name.
const LOST_AND_FOUND: &str = "lost+found";
/// Folders within each other, of which a link may make endless many.
const DEPTH_MAX: usize = 8;
/// Bytes that are written again at a time.
const AGAIN_BYTES: u64 = 1 << 20;
/// Holes are punched in pages of the file system's block size, within these bounds.
const PAGE_BYTES_MIN: u64 = 4096;
const PAGE_BYTES_MAX: u64 = 1 << 20;

/// Physical files in a folder of a local disk. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Path>,
    /// Folders whose names this process has made durable.
    folders: Arc<Mutex<HashSet<PathBuf>>>,
    /// Buffers for direct writes, where these work and are wanted. Not settled while the disk has no room for the trial.
    direct: Arc<OnceLock<Option<DirectBuffers>>>,
    space: DiskSpace,
    /// Looks whether this is the store; `None` for a store that is only read.
    guard: Option<StoreGuard>,
    traffic: Traffic,
}

/// A physical file that grows.
#[derive(Debug)]
struct LocalFile {
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
        let (folders, space) = (Arc::default(), DiskSpace::default());
        Self { root: root.into(), folders, direct: Arc::new(OnceLock::from(None)), space, guard: None, traffic }
    }

    /// Tells `space` what it finds of its disk.
    pub fn with_space(mut self, space: DiskSpace) -> Self {
        self.space = space;
        self
    }

    pub(super) fn guarded(self, guard: StoreGuard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let direct_writes = matches!(self.direct.get(), Some(Some(_)));
        Capabilities { direct_writes, ..Capabilities::LOCAL }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn space(&self) -> &DiskSpace {
        &self.space
    }

    pub(super) fn guard(&self) -> Option<&StoreGuard> {
        self.guard.as_ref()
    }

    /// Looks whether this is the store, on a thread that may block. Every step that destroys something or begins a file
    /// does so first, each time: a volume that goes away leaves an empty folder under the same name.
    fn look_first(&self) -> impl Fn() -> io::Result<()> + Send + 'static {
        let (guard, root, folders) = (self.guard.clone(), Arc::clone(&self.root), Arc::clone(&self.folders));
        move || {
            let Some(guard) = &guard else { return Ok(()) };
            // What comes back may not have the folders that were made.
            guard.look_at_folder(&root).inspect_err(|_| folders.lock().clear())
        }
    }

    pub(super) async fn look(&self) -> Result<(), StoreError> {
        let look = self.look_first();
        blocking("get", super::identity::DATA_SIDE, look).await
    }

    /// Writes large groups past the page cache where `wanted` says so. `name` names the file of the trial.
    ///
    /// # Errors
    /// The operating system's error, if direct writes are demanded and do not work. On a full disk nobody can tell: it is
    /// tried again with the first file that is created.
    pub fn with_direct_io(mut self, wanted: DirectIo, name: &str) -> io::Result<Self> {
        self.direct = Arc::default();
        match wanted {
            DirectIo::Off => self.direct = Arc::new(OnceLock::from(None)),
            DirectIo::On => try_direct(&self.direct, &self.root, name)?,
            DirectIo::Auto => {
                if let Err(error) = try_direct(&self.direct, &self.root, name) {
                    tracing::debug!(root = %self.root.display(), %error, "writes go through the page cache");
                }
            }
        }
        Ok(self)
    }

    fn path(&self, file: &PhysicalFileId) -> PathBuf {
        self.root.join(file.as_str())
    }

    pub(super) async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (path, name) = (self.path(file), file.to_string());
        let read = async {
            #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
            let read = tokio::task::spawn_blocking(move || read_range(&path, &name, range));
            read.await.map_err(|error| StoreError::failed("get", file.as_str(), error))?
        };
        self.traffic.time(StoreOperation::Get, read).await
    }

    pub(super) async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        let path = self.path(file);
        let len = blocking("head", file.as_str(), move || match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        self.traffic.time(StoreOperation::Head, len).await
    }

    pub(super) async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        let mut gone = vec![];
        for file in files {
            let (path, look) = (self.path(&file), self.look_first());
            let deleted = blocking("delete", file.as_str(), move || {
                look()?;
                delete(&path)
            });
            match self.traffic.time(StoreOperation::Delete, deleted).await {
                Ok(()) => gone.push(file),
                // It has been told, and would be again for each of them.
                Err(_) if self.guard.as_ref().is_some_and(StoreGuard::is_lost) => break,
                Err(error) => {
                    tracing::warn!(%file, error = crate::error::chain(&error), "a file could not be deleted, it will be tried again");
                }
            }
        }
        gone
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let root = Arc::clone(&self.root);
        let listed = blocking("list", PhysicalFileId::FOLDER, move || {
            let mut found = vec![];
            walk(&root, &root.join(PhysicalFileId::FOLDER), &mut found)?;
            found.sort();
            Ok(found)
        });
        self.traffic.time(StoreOperation::List, listed).await
    }

    pub(super) async fn set_aside_files(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let root = Arc::clone(&self.root);
        let listed = blocking("list", LOST_AND_FOUND, move || {
            let (mut found, lost) = (vec![], root.join(LOST_AND_FOUND));
            match walk(&lost, &lost.join(PhysicalFileId::FOLDER), &mut found) {
                // That of a file system's root is its superuser's alone: nothing was ever set aside there.
                Err(error) if is_not_ours(&error) => {
                    tracing::debug!(%error, folder = %lost.display(), "files cannot be set aside there");
                    found.clear();
                }
                walked => walked?,
            }
            found.sort();
            Ok(found)
        });
        self.traffic.time(StoreOperation::List, listed).await
    }

    pub(super) async fn seal(
        &self,
        file: &PhysicalFileId,
        unsure: Range<u64>,
        len: u64,
        end: Bytes,
    ) -> Result<u64, StoreError> {
        let (path, look, name, space) = (self.path(file), self.look_first(), file.to_string(), self.space.clone());
        let sealed = blocking("append", file.as_str(), move || {
            look()?;
            let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
            // A sync that failed before the crash may have dropped pages that still read well: written again, they are synced.
            // And before the end, which says that everything before it is there.
            write_again(&file, unsure)?;
            file.sync_all()?;
            // A start must succeed on a full disk, so this may use what is kept back.
            match space.insist(DiskUse::Data, || write_end(&file, len, &end)) {
                // What lives in it is safe, and it reads without its end.
                Err(error) if is_full(&error) => {
                    tracing::warn!(file = name, "the disk is full: a file is closed without its footer");
                    Ok(len)
                }
                ended => ended.map(|()| len + end.len() as u64),
            }
        });
        self.traffic.time(StoreOperation::Append, sealed).await
    }

    pub(super) async fn frames(&self, file: &PhysicalFileId) -> Result<Vec<Frame>, StoreError> {
        let path = self.path(file);
        let walked = blocking("get", file.as_str(), move || {
            let file = fs::File::open(path)?;
            format::walk(&file, file.metadata()?.len()).map_err(io::Error::other)
        });
        self.traffic.time(StoreOperation::Get, walked).await
    }

    pub(super) async fn punch(&self, file: &PhysicalFileId, ranges: Vec<Range<u64>>) -> Result<u64, StoreError> {
        let (path, look) = (self.path(file), self.look_first());
        let punched = blocking("punch", file.as_str(), move || {
            look()?;
            punch(&path, &ranges)
        });
        let punched = self.traffic.time(StoreOperation::Punch, punched).await?;
        punched.ok_or(StoreError::Unsupported("punching holes"))
    }

    pub(super) async fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        self.rename(PathBuf::from(name), Path::new(LOST_AND_FOUND).join(name)).await
    }

    pub(super) async fn bring_back(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        let name = PathBuf::from(file.as_str());
        self.rename(Path::new(LOST_AND_FOUND).join(&name), name).await.map(|_| ())
    }

    async fn rename(&self, from: PathBuf, to: PathBuf) -> Result<PathBuf, StoreError> {
        let (root, look, name) = (Arc::clone(&self.root), self.look_first(), from.display().to_string());
        let moved = blocking("rename", &name, move || {
            look()?;
            let (from, to) = (root.join(from), root.join(to));
            if to.exists() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, to.display().to_string()));
            }
            if let Some(folder) = to.parent() {
                create_folders(&root, folder)?;
            }
            fs::rename(&from, &to)?;
            // The new name first: a power cut between the two leaves the file under both, never under none.
            sync_parent(&to)?;
            sync_parent(&from)?;
            Ok(to)
        });
        self.traffic.time(StoreOperation::Put, moved).await
    }

    pub(super) async fn delete_set_aside(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        let (path, look) = (self.root.join(LOST_AND_FOUND).join(file.as_str()), self.look_first());
        let deleted = blocking("delete", file.as_str(), move || {
            look()?;
            delete(&path)
        });
        self.traffic.time(StoreOperation::Delete, deleted).await
    }

    pub(super) async fn holes(&self, file: &PhysicalFileId) -> Result<Vec<Range<u64>>, StoreError> {
        let path = self.path(file);
        let found = blocking("get", file.as_str(), move || holes(&fs::File::open(path)?));
        self.traffic.time(StoreOperation::Get, found).await
    }

    pub(super) fn open(&self, file: &PhysicalFileId) -> io::Result<fs::File> {
        fs::File::open(self.path(file))
    }
}

#[async_trait]
impl AppendStore for LocalStore {
    async fn create(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError> {
        let (path, root, folders) = (self.path(file), Arc::clone(&self.root), Arc::clone(&self.folders));
        let (direct, look) = (Arc::clone(&self.direct), self.look_first());
        let name = file.to_string();
        let created = blocking("create", &name, move || {
            look()?;
            if let Some(folder) = path.parent()
                && !folders.lock().contains(folder)
            {
                create_folders(&root, folder)?;
                // Only once it is durable: the next file in it relies on that.
                folders.lock().insert(folder.to_owned());
            }
            if direct.get().is_none() {
                let trial = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Err(error) = try_direct(&direct, &root, &trial) {
                    tracing::warn!(%error, "the disk takes no direct writes, files are written through the page cache");
                }
            }
            let file = match AppendFile::create(&path) {
                // Somebody has tidied empty folders away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    folders.lock().clear();
                    create_folders(&root, path.parent().unwrap_or(&root))?;
                    AppendFile::create(&path)
                }
                created => created,
            }?;
            let buffers = direct.get().cloned().flatten();
            let direct = buffers.and_then(|buffers| DirectWriter::open(&path, buffers));
            Ok(Growing { file, direct })
        });
        let file = self.traffic.time(StoreOperation::Put, created).await?;
        Ok(Box::new(LocalFile { file: Arc::new(Mutex::new(file)), path: name, traffic: self.traffic.clone() }))
    }
}

#[async_trait]
impl GrowingFile for LocalFile {
    async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let file = Arc::clone(&self.file);
        let appended = blocking("append", &self.path, move || {
            let mut file = file.lock();
            file.append(parts)?;
            file.file.sync()
        });
        self.traffic.time(StoreOperation::Append, appended).await
    }

    async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let file = Arc::clone(&self.file);
        let appended = blocking("append", &self.path, move || file.lock().append(parts).map(|_| ()));
        self.traffic.time(StoreOperation::MultipartPart, appended).await
    }

    fn is_usable(&self) -> bool {
        !self.file.lock().file.is_poisoned()
    }
}

/// Runs file system calls on a thread that may block.
#[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
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

/// Finds out whether files in `folder` take direct writes, unless the disk has no room for the trial.
///
/// # Errors
/// The operating system's error, if they do not.
fn try_direct(direct: &OnceLock<Option<DirectBuffers>>, folder: &Path, name: &str) -> io::Result<()> {
    let tried = DirectWriter::probe(folder, name);
    if tried.as_ref().is_err_and(|error| is_full(error)) {
        return Ok(());
    }
    // Another file may have settled it meanwhile, in the same way.
    direct.get_or_init(|| tried.is_ok().then(DirectBuffers::default));
    tried
}

/// Creates `folder` below `root`, and makes each new name durable in the folder above it.
fn create_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root {
        return Ok(());
    }
    // From the top: a folder is durable only if those above it are.
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

/// Punches the whole pages within `ranges`; `None` if the file system cannot.
fn punch(path: &Path, ranges: &[Range<u64>]) -> io::Result<Option<u64>> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let metadata = file.metadata()?;
    if metadata.nlink() > 1 {
        return Err(io::Error::other(
            "it has another name, as `cp -al` gives: who has that one would lose bytes. Copy the store without links",
        ));
    }
    let page = metadata.blksize().clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
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
    // Before the catalog counts the holes: it takes them for given back.
    file.sync_all()?;
    Ok(Some(punched))
}

/// Reads `range` and writes the same bytes to the same place.
fn write_again(file: &fs::File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    let mut buffer = vec![0; usize::try_from(AGAIN_BYTES.min(range.end.saturating_sub(at))).unwrap_or(0)];
    while at < range.end {
        let now = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
        FileExt::read_exact_at(file, &mut buffer[..now], at)?;
        FileExt::write_all_at(file, &buffer[..now], at)?;
        at += now as u64;
    }
    Ok(())
}

fn write_end(file: &fs::File, at: u64, end: &[u8]) -> io::Result<()> {
    FileExt::write_all_at(file, end, at)?;
    file.sync_all()
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

/// Whether a folder belongs to somebody else, or is none.
fn is_not_ours(error: &io::Error) -> bool {
    let is_loop = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    is_loop || matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory)
}

/// What an entry is. A folder may be a link to another disk; a link that leads nowhere, or to what has a name of its own here,
/// is told as a link.
fn followed(root: &Path, entry: &fs::DirEntry) -> io::Result<fs::Metadata> {
    if entry.file_type()?.is_symlink()
        && let (Ok(root), Ok(target)) = (root.canonicalize(), entry.path().canonicalize())
        && !target.starts_with(root)
    {
        return fs::metadata(target);
    }
    entry.metadata()
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, u64)>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = followed(root, &entry)?;
        if metadata.is_dir() && folder.components().count() < root.components().count() + DEPTH_MAX {
            walk(root, &entry.path(), found)?;
        } else if let Ok(name) = entry.path().strip_prefix(root) {
            found.push((name.to_string_lossy().into_owned(), metadata.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_name_is_not_punched() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        let bytes = vec![7; 4 * PAGE_BYTES_MIN as usize];
        fs::write(&path, &bytes).unwrap();
        fs::hard_link(&path, &other).unwrap();

        let all = 0..bytes.len() as u64;
        punch(&path, std::slice::from_ref(&all)).unwrap_err();

        assert_eq!(fs::read(&other).unwrap(), bytes);
        fs::remove_file(&other).unwrap();
        if punch(&path, std::slice::from_ref(&all)).unwrap().is_some() {
            assert_eq!(fs::read(&path).unwrap(), vec![0; bytes.len()]);
        }
    }

    #[test]
    fn folders_behind_links_are_walked_and_a_link_to_itself_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (folder.path().join("root"), folder.path().join("elsewhere"));
        fs::create_dir_all(root.join("data")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), b"abc").unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("data/job")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, elsewhere.join("endless")).unwrap();
        fs::create_dir(root.join("data/named")).unwrap();
        fs::write(root.join("data/named/here"), b"abc").unwrap();
        std::os::unix::fs::symlink("named", root.join("data/twice")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("data/broken")).unwrap();

        let mut found = vec![];
        walk(&root, &root.join("data"), &mut found).unwrap();

        assert!(found.contains(&("data/job/file".to_owned(), 3)), "{found:?}");
        assert!(found.iter().any(|(name, _)| name == "data/broken"), "{found:?}");
        assert_eq!(found.iter().filter(|(name, _)| name.ends_with("/here")).count(), 1, "{found:?}");
    }
}
