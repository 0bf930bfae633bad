//! A file on a local disk that only grows, for bytes that must survive a power cut.
//!
//! The catalog's log and the physical files on a local disk are written this way: create under a
//! name that never existed, append, `fdatasync`, answer. Which bytes go where, and what they mean,
//! is left to the callers.
//!
//! # Invariants
//! - A name is created once: an existing file is never opened, let alone overwritten.
//! - After any failed write or sync the file is *poisoned*: every later call fails. A kernel may
//!   drop the dirty pages of a failed `fdatasync` and report success on the next one, so a second
//!   try proves nothing.
//! - A write for which the disk has no room is the exception: what it left is cut off, and the file is as before.
//! - What is synced is where the next start looks for it: a file that was deleted, moved or cut, or whose folder was covered by a
//!   mount, fails its next sync.
//!
//! # Crash
//! The name survives from [`AppendFile::create`] on, the bytes from the [`AppendFile::sync`] that
//! followed them. Anything appended later may be there in part, in any order of disk blocks, or as
//! zeros: readers need a checksum per record.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Inode;
use super::space::is_full;

/// A new file that is appended to and synced, and refuses everything after its first failure.
#[derive(Debug)]
pub struct AppendFile {
    file: File,
    path: PathBuf,
    /// The file that is to be at the path.
    inode: Inode,
    len: u64,
    poisoned: AtomicBool,
}

impl AppendFile {
    /// Creates the file and makes its name durable.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken, otherwise what the operating system says. If syncing
    /// the folder fails, an empty file may stay behind.
    pub fn create(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        // Its bytes will be synced alone: without a durable name nobody would find them after a power cut.
        sync_parent(&path)?;
        Self::of(file, path)
    }

    fn of(file: File, path: PathBuf) -> io::Result<Self> {
        let inode = Inode::from(&file.metadata()?);
        Ok(Self { file, path, inode, len: 0, poisoned: AtomicBool::new(false) })
    }

    /// Creates a file in `folder` that has no name, so that nothing stays of it. Returns it, and a path by which this process
    /// can open it once more.
    ///
    /// # Errors
    /// The operating system's error; some file systems have no such files.
    pub(super) fn nameless(folder: &Path) -> io::Result<(Self, PathBuf)> {
        let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
        let file = OpenOptions::new().append(true).custom_flags(flags).open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok((Self::of(file, path.clone())?, path))
    }

    /// Appends `parts` one after the other and returns the offset of the first byte.
    ///
    /// The bytes are durable after the next [`AppendFile::sync`], not before.
    ///
    /// # Errors
    /// The operating system's error. If the disk has no room, nothing was appended; otherwise some bytes may have been
    /// written, and the file is poisoned.
    pub fn append(&mut self, parts: &[IoSlice<'_>]) -> io::Result<u64> {
        self.check()?;
        let offset = self.len;
        match write_all(&mut self.file, parts) {
            Ok(written) => {
                self.len += written;
                Ok(offset)
            }
            Err(error) => {
                self.undo(self.len, &error);
                Err(error)
            }
        }
    }

    /// After `error`: cuts the file back to `len` if all that is wrong is that the disk has no room, else poisons it.
    pub(super) fn undo(&mut self, len: u64, error: &io::Error) {
        // Nothing behind `len` was synced, so there is nothing that a sync has failed for.
        if self.is_poisoned() || !is_full(error) || self.file.set_len(len).is_err() {
            self.poison();
        } else {
            self.len = len;
        }
    }

    /// Takes note of bytes that were written behind the last one by other means; they are synced with the others.
    ///
    /// # Errors
    /// As after any failure, if the file is poisoned.
    pub fn grown_by(&mut self, bytes: u64) -> io::Result<()> {
        self.check()?;
        self.len += bytes;
        Ok(())
    }

    /// Waits until all appended bytes are durable (`fdatasync`), and looks that they are where they will be looked for.
    ///
    /// # Errors
    /// The operating system's error, or that the file is not there any more. Which of the unsynced bytes survive is unknown;
    /// the file is poisoned.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_bytes()?;
        self.look().inspect_err(|_| self.poison())
    }

    /// The same wherever the file is by now.
    pub(super) fn sync_bytes(&self) -> io::Result<()> {
        self.check()?;
        // A second sync after a failed one may succeed without having written anything: the kernel has marked the pages clean.
        self.file.sync_data().inspect_err(|_| self.poison())
    }

    /// Whether the path leads to this file, and to all that was appended.
    fn look(&self) -> io::Result<()> {
        let path = self.path.display();
        match std::fs::metadata(&self.path) {
            Ok(found) if Inode::from(&found) == self.inode && found.len() >= self.len => Ok(()),
            Ok(found) if Inode::from(&found) == self.inode => {
                let (found, written) = (found.len(), self.len);
                Err(io::Error::other(format!(
                    "{path} was cut to {found} bytes while it was written, {written} were there"
                )))
            }
            Ok(_) => Err(io::Error::other(format!("another file is at {path}, which was written until now"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(io::Error::other(format!("{path} was deleted or moved while it was written")))
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes appended so far, synced or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses every later call, for a caller that no longer trusts the file.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Whether a write or sync has failed, or [`AppendFile::poison`] was called.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn check(&self) -> io::Result<()> {
        if self.is_poisoned() {
            return Err(io::Error::other(format!("{} failed earlier and takes no more writes", self.path.display())));
        }
        Ok(())
    }

    /// Appends to an open file, so that tests can use a device that fails.
    #[cfg(test)]
    fn over(file: File, path: &Path) -> Self {
        Self::of(file, path.to_owned()).unwrap()
    }
}

/// Makes the names inside the folder of `path` durable: new, renamed and removed files.
///
/// # Errors
/// The operating system's error.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn write_all(file: &mut File, parts: &[IoSlice<'_>]) -> io::Result<u64> {
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let mut parts = parts.to_vec();
    let mut rest = &mut parts[..];
    IoSlice::advance_slices(&mut rest, 0); // drops empty parts in front
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_parts_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AppendFile::create(folder.path().join("a")).unwrap();
        let many: Vec<_> = (0..3000u32).map(|n| n.to_le_bytes()).collect();
        let slices: Vec<_> = many.iter().map(|part| IoSlice::new(part)).collect();

        let first = file.append(&[IoSlice::new(b""), IoSlice::new(b"ab"), IoSlice::new(b"c")]);
        let second = file.append(&slices);
        file.sync().unwrap();

        assert_eq!((first.unwrap(), second.unwrap()), (0, 3));
        assert_eq!(file.len(), 12_003);
        let read = std::fs::read(file.path()).unwrap();
        assert_eq!(read[..3], *b"abc");
        assert_eq!(read[3..], many.concat());
    }

    #[test]
    fn an_existing_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"old").unwrap();

        let error = AppendFile::create(&path).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_file_that_is_not_where_it_was_fails_its_sync() {
        let hurts: [fn(&Path); 4] = [
            |path| std::fs::remove_file(path).unwrap(),
            |path| std::fs::rename(path, path.with_extension("moved")).unwrap(),
            |path| File::options().write(true).open(path).unwrap().set_len(1).unwrap(),
            |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::write(path, b"another file").unwrap();
            },
        ];
        for hurt in hurts {
            let folder = tempfile::tempdir().unwrap();
            let mut file = AppendFile::create(folder.path().join("a")).unwrap();
            file.append(&[IoSlice::new(b"abc")]).unwrap();
            file.sync().unwrap();

            hurt(file.path());

            file.sync().unwrap_err();
            assert!(file.is_poisoned());
        }
    }

    #[test]
    fn a_file_that_cannot_be_cut_back_after_a_full_disk_is_poisoned() {
        let full = Path::new("/dev/full");
        let Ok(device) = OpenOptions::new().write(true).open(full) else {
            return; // not a Linux machine
        };
        let mut file = AppendFile::over(device, full);

        let error = file.append(&[IoSlice::new(b"x")]).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(file.is_poisoned());
        assert!(file.append(&[IoSlice::new(b"x")]).is_err());
        assert!(file.sync().is_err());
        assert_eq!(file.len(), 0);
    }
}
