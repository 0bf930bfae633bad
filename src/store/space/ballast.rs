//! A file without content that holds room for the catalog, and gets shorter when the catalog needs it. On a disk of data
//! alone it holds room for the next start. Empty files beside it hold inodes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::store::identity::DATA_SIDE;

/// Its name in the folder of the catalog, or beside data that is on another disk.
pub const RESERVE_FILE: &str = "RESERVE";
/// Whether a file of this name is there to hold room: the ballast, or an empty file beside it.
pub fn is_reserve(name: &OsStr) -> bool {
    let spare = name.to_str().and_then(|name| name.strip_prefix(RESERVE_FILE)?.strip_prefix('.'));
    name == RESERVE_FILE || spare.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Of the reserve, the half that other programs cannot take, up to so much: the catalog itself is small.
const SHARE: u64 = 2;
const BYTES_MAX: u64 = 64 << 20;
/// A start writes a few blocks beside the data.
const BYTES_MAX_BESIDE_DATA: u64 = 4 << 20;
/// It is given up in so many pieces, none smaller than this.
const PIECES: u64 = 16;
const PIECE_BYTES_MIN: u64 = 256 << 10;
/// Empty files: a start makes fewer.
const SPARE_FILES: u32 = 16;

/// The file, once there is one.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    /// It is not made where this is not: a volume may be gone.
    beside: Option<PathBuf>,
    bytes_max: u64,
    state: Mutex<BallastState>,
}

#[derive(Debug, Default)]
struct BallastState {
    file: Option<File>,
    /// The file system cannot allocate what is not written.
    unsupported: bool,
    /// Whether all empty files are there.
    spares: bool,
}

impl Ballast {
    /// In `folder`, which is made by whoever opens the catalog. Nothing is allocated yet.
    pub(super) fn new(folder: &Path, reserve_bytes: u64) -> Self {
        Self::up_to(folder, None, (reserve_bytes / SHARE).min(BYTES_MAX))
    }

    /// The same in the folder of data whose catalog is elsewhere.
    pub(super) fn beside_data(folder: &Path, reserve_bytes: u64) -> Self {
        Self::up_to(folder, Some(folder.join(DATA_SIDE)), (reserve_bytes / SHARE).min(BYTES_MAX_BESIDE_DATA))
    }

    fn up_to(folder: &Path, beside: Option<PathBuf>, bytes_max: u64) -> Self {
        let path = folder.join(RESERVE_FILE);
        // A pipe would have whoever opens it wait.
        let there = std::fs::metadata(&path).is_ok_and(|there| there.is_file());
        let file = if there { OpenOptions::new().write(true).open(&path).ok() } else { None };
        let state = Mutex::new(BallastState { file, unsupported: false, spares: false });
        Self { path, beside, bytes_max, state }
    }

    /// Bytes that it holds.
    pub(super) fn held(&self) -> u64 {
        self.state.lock().held()
    }

    /// Makes it shorter by a piece. False if nothing is left.
    pub(super) fn give_up(&self) -> bool {
        let state = self.state.lock();
        let held = state.held();
        let Some(file) = state.file.as_ref().filter(|_| held > 0) else { return false };
        let piece = (self.bytes_max / PIECES).max(PIECE_BYTES_MIN);
        // Some file systems hand freed blocks out again only once that they are free is on disk.
        let shorter = file.set_len(held.saturating_sub(piece)).and_then(|()| file.sync_all());
        if let Err(error) = &shorter {
            tracing::warn!(path = %self.path.display(), %error, "the reserve could not be given up");
        }
        shorter.is_ok()
    }

    /// Removes one of the empty files. False if none is left.
    pub(super) fn give_up_file(&self) -> bool {
        let mut state = self.state.lock();
        state.spares = false;
        let removed = self.spares().find(|spare| match std::fs::symlink_metadata(spare) {
            // What is not empty is not ours.
            Ok(there) => there.is_file() && there.len() == 0 && std::fs::remove_file(spare).is_ok(),
            Err(_) => false,
        });
        removed.is_some()
    }

    /// Makes the empty files that are missing.
    pub(super) fn fill_files(&self) {
        let mut state = self.state.lock();
        if state.spares || state.file.is_none() {
            return;
        }
        let make = |spare: PathBuf| match OpenOptions::new().write(true).create_new(true).open(spare) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        };
        let made = self.spares().try_for_each(make);
        state.spares = made.is_ok();
        if let Err(error) = made {
            tracing::debug!(path = %self.path.display(), %error, "files could not be kept back");
        }
    }

    fn spares(&self) -> impl Iterator<Item = PathBuf> {
        (1..=SPARE_FILES).map(|number| self.path.with_extension(number.to_string()))
    }

    /// Lets it grow by up to `room` bytes.
    pub(super) fn fill(&self, room: u64) {
        let mut state = self.state.lock();
        if state.file.is_none() && self.beside.as_ref().is_some_and(|beside| !beside.exists()) {
            return;
        }
        let held = state.held();
        let wanted = held.saturating_add(room).min(self.bytes_max);
        let grown = match held.cmp(&self.bytes_max) {
            // It was made with a larger reserve.
            std::cmp::Ordering::Greater => state.set_len(self.bytes_max),
            std::cmp::Ordering::Less if wanted > held && !state.unsupported => state.grow(&self.path, held, wanted),
            _ => Ok(()),
        };
        if let Err(error) = grown {
            tracing::debug!(path = %self.path.display(), %error, "the reserve could not be filled");
        }
    }
}

impl BallastState {
    fn held(&self) -> u64 {
        // Its length, not a count: another program of ours may look after it, too.
        self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.set_len(len))
    }

    fn grow(&mut self, path: &Path, held: u64, wanted: u64) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().write(true).create(true).truncate(false).open(path)?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        match rustix::fs::fallocate(file, FallocateFlags::empty(), held, wanted - held) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.unsupported = true;
                tracing::info!(path = %path.display(), "the file system holds no room back");
                Ok(())
            }
            // It may have grown by a part.
            Err(error) => self.set_len(held).and(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_files_are_given_up_one_by_one_and_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(folder.path(), 16 << 20);
        ballast.fill_files();
        assert!(!ballast.give_up_file(), "there is no ballast");
        ballast.fill(1 << 20);
        ballast.fill_files();
        std::fs::write(folder.path().join("RESERVE.3"), "another's").unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| is_reserve(&name)) && !is_reserve(OsStr::new("RESERVE.old")));

        let given_up = std::iter::from_fn(|| ballast.give_up_file().then_some(())).count();

        assert_eq!(given_up, SPARE_FILES as usize - 1);
        assert_eq!(std::fs::read(folder.path().join("RESERVE.3")).unwrap(), b"another's");
        ballast.fill_files();
        assert!(Ballast::new(folder.path(), 16 << 20).give_up_file(), "a start finds what was left");
    }

    #[test]
    fn it_grows_as_there_is_room_and_is_given_up_piece_by_piece() {
        let folder = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(folder.path(), 16 << 20);
        assert!(!ballast.give_up());

        ballast.fill(1 << 20);
        assert_eq!(ballast.held(), 1 << 20);
        ballast.fill(u64::MAX);
        assert_eq!(ballast.held(), 8 << 20);
        assert!(ballast.give_up());
        assert_eq!(ballast.held(), (8 << 20) - (512 << 10));

        let again = Ballast::new(folder.path(), 16 << 20);
        assert_eq!(again.held(), ballast.held(), "a start finds what was left");
        let pieces = std::iter::from_fn(|| again.give_up().then_some(())).count();
        assert_eq!((pieces, again.held()), (15, 0));
        let smaller = Ballast::new(folder.path(), 2 << 20);
        smaller.fill(u64::MAX);
        assert_eq!(smaller.held(), 1 << 20);
    }
}
