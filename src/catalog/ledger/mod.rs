//! Notes deletes on a local disk, so that they can be answered before their commit is durable on an object store.
//!
//! A delete is applied, and its changes go into the journal behind those before it, to become durable with the next commit
//! of anything, like what is lazy. It is answered once it stands here and is synced. After a crash, the next start does what
//! stands here and was undone, before anybody can see that it was.
//!
//! The files are in a folder of their store, each of one owner: a new one whenever the last is long and all that it notes is
//! durable in the journal.
//!
//! # Invariants
//! - A file is removed only after everything that it notes is durable in the journal.
//! - A delete is done again only to the very object that was deleted: it has that key, entity tag, time and first segment.
//!   Object names may come back under the same key; a segment's id never does.
//!
//! # Crash
//! Entries that are whole were perhaps answered, and are done again; doing so twice changes nothing. One that is torn was not
//! answered. Where the folder is lost with its machine, what was answered in the last moment (`merging.lazy-linger`) is undone.

mod entry;

use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

pub use entry::DeletedObject;
use entry::{decode, encode, encode_header};

use crate::store::append_file::{AppendFile, sync_parent};
use crate::store::remove_leftover;

/// A file of this size is followed by another one, once what it notes is durable.
const FILE_BYTES: u64 = 256 << 10;
/// A file of this size takes no more.
const FILE_BYTES_MAX: u64 = 16 << 20;
const EXTENSION: &str = "deletes";
/// Files that one owner may have.
const FILES_MAX: u64 = 1 << 20;

/// The ledger of one owner.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    epoch: u64,
    file: AppendFile,
    /// The number of the next file.
    next: u64,
    /// Files that note what was perhaps not durable when they were left.
    left: Vec<PathBuf>,
}

/// What earlier owners have noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// The deletes, in order.
    pub deleted: Vec<DeletedObject>,
    /// The files.
    files: Vec<PathBuf>,
}

impl Ledger {
    /// Opens the ledger of a store, which is a folder below `folder`, and reads what is there. Blocks.
    ///
    /// # Errors
    /// The operating system's error, if the folder or a file in it cannot be made or read.
    pub fn open(folder: &Path, store: &str, epoch: u64) -> io::Result<(Self, Noted)> {
        let folder = folder.join(store);
        fs::create_dir_all(&folder)?;
        sync_parent(&folder)?;
        let noted = Noted::read(&folder)?;
        let (file, next) = create(&folder, epoch, 0)?;
        Ok((Self { folder, epoch, file, next, left: vec![] }, noted))
    }

    /// Notes deletes; they are durable here when this returns. `settled` says that everything that was noted before is
    /// durable in the journal. Blocks.
    ///
    /// # Errors
    /// The operating system's error: whether they are noted is not known.
    pub fn note(&mut self, deleted: &[DeletedObject], settled: bool) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(128 * deleted.len());
        if !deleted.iter().all(|deleted| encode(deleted, &mut bytes)) {
            return Err(io::Error::other("a key is too long to be noted"));
        }
        if settled {
            self.left.drain(..).for_each(|path| remove_leftover(&path));
        }
        if self.file.is_poisoned() || settled && self.file.len() >= FILE_BYTES {
            let (file, next) = create(&self.folder, self.epoch, self.next)?;
            self.next = next;
            let before = std::mem::replace(&mut self.file, file);
            match settled {
                true => remove_leftover(before.path()),
                false => self.left.push(before.path().to_owned()),
            }
        }
        if self.file.len() + bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other("the ledger is full of deletes that are not durable in the catalog yet"));
        }
        self.file.append(&[IoSlice::new(&bytes)])?;
        self.file.sync()
    }
}

/// Creates a file of an owner, with this number or the next one that is free. Returns it and the number after its own.
fn create(folder: &Path, epoch: u64, from: u64) -> io::Result<(AppendFile, u64)> {
    for number in from..FILES_MAX {
        let path = folder.join(format!("{epoch:020}-{number:06}.{EXTENSION}"));
        match AppendFile::create(&path) {
            // Of another daemon with an older copy of the catalog, say.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(mut file) => {
                let begun = file.append(&[IoSlice::new(&encode_header(epoch))]).and_then(|_| file.sync());
                return match begun {
                    Ok(()) => Ok((file, number + 1)),
                    Err(error) => {
                        remove_leftover(&path);
                        Err(error)
                    }
                };
            }
        }
    }
    Err(io::Error::other(format!("{} has too many files of epoch {epoch}", folder.display())))
}

impl Noted {
    fn read(folder: &Path) -> io::Result<Self> {
        let mut files = vec![];
        for found in fs::read_dir(folder)? {
            let path = found?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push(path);
            }
        }
        files.sort_unstable();
        let mut noted = Self::default();
        for path in files {
            let bytes = fs::read(&path)?;
            match decode(&bytes) {
                Some((deleted, torn)) => {
                    if torn {
                        tracing::debug!(path = %path.display(), "a ledger of deletes ends with one that nobody was answered for");
                    }
                    noted.deleted.extend(deleted);
                    noted.files.push(path);
                }
                // Cut short at its creation: nothing was noted in it.
                None if bytes.len() < entry::HEADER_LEN => noted.files.push(path),
                None => tracing::warn!(
                    path = %path.display(),
                    "this is no ledger of deletes of this version, or its beginning is damaged: it is left alone. Deletes that it \
                     notes may have been undone; `esker orphans` finds what is left of Flink's"
                ),
            }
        }
        Ok(noted)
    }

    /// Removes the files: what they note is done, durably. Blocks.
    pub fn remove(self) {
        self.files.iter().for_each(|path| remove_leftover(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Millis, SegmentId};

    fn deleted(number: u64) -> DeletedObject {
        DeletedObject {
            bucket: "b".to_owned(),
            key: format!("{number}-{}", "k".repeat(1000)),
            etag: "e".to_owned(),
            modified: Millis(number),
            first: Some(SegmentId(number.into())),
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let names =
            fs::read_dir(folder.join("store")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn keys(noted: &Noted) -> Vec<u64> {
        noted.deleted.iter().map(|deleted| deleted.modified.0).collect()
    }

    #[test]
    fn the_next_owner_finds_what_was_noted_until_it_has_done_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, nothing) = Ledger::open(folder.path(), "store", 3).unwrap();
        assert_eq!(keys(&nothing), Vec::<u64>::new());
        first.note(&[deleted(1), deleted(2)], false).unwrap();
        first.note(&[deleted(3)], true).unwrap();
        drop(first);

        let (_, noted) = Ledger::open(folder.path(), "store", 4).unwrap();
        assert_eq!(keys(&noted), [1, 2, 3]);
        drop(noted);
        let (_, noted) = Ledger::open(folder.path(), "store", 5).unwrap();
        assert_eq!(keys(&noted), [1, 2, 3], "whoever read it before may have died then");
        noted.remove();

        assert_eq!(files(folder.path()), ["00000000000000000005-000000.deletes"]);
    }

    #[test]
    fn a_long_file_is_followed_by_another_once_all_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(folder.path(), "store", 3).unwrap();
        let many: Vec<_> = (0..300).map(deleted).collect();

        ledger.note(&many, false).unwrap();
        ledger.note(&many[..1], false).unwrap();
        assert_eq!(files(folder.path()).len(), 1);
        ledger.note(&[deleted(7)], true).unwrap();

        assert_eq!(files(folder.path()), ["00000000000000000003-000001.deletes"]);
        assert_eq!(keys(&Noted::read(&folder.path().join("store")).unwrap()), [7]);
    }

    #[test]
    fn a_file_that_failed_is_followed_by_another_and_stays_until_all_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(folder.path(), "store", 3).unwrap();
        ledger.note(&[deleted(1)], false).unwrap();
        ledger.file.poison();

        ledger.note(&[deleted(2)], false).unwrap();
        assert_eq!(keys(&Noted::read(&folder.path().join("store")).unwrap()), [1, 2]);
        ledger.note(&[deleted(3)], true).unwrap();

        assert_eq!(keys(&Noted::read(&folder.path().join("store")).unwrap()), [2, 3]);
    }

    #[test]
    fn a_file_takes_only_so_much_that_is_not_settled() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(folder.path(), "store", 3).unwrap();
        let many: Vec<_> = (0..4000).map(deleted).collect();
        let full = (0..5).map(|_| ledger.note(&many, false)).find_map(Result::err).unwrap();

        assert!(full.to_string().contains("not durable in the catalog yet"), "{full}");
        ledger.note(&many[..1], true).unwrap();
    }

    #[test]
    fn a_folder_that_went_away_fails_what_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(folder.path(), "store", 3).unwrap();
        fs::rename(folder.path().join("store"), folder.path().join("moved")).unwrap();

        ledger.note(&[deleted(1)], false).unwrap_err();
        ledger.note(&[deleted(1)], false).unwrap_err();
    }

    #[test]
    fn what_is_no_ledger_stays_and_what_was_cut_short_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("1.deletes"), b"ESKERDL").unwrap();
        fs::write(store.join("2.deletes"), b"something else that is long enough").unwrap();
        fs::write(store.join("notes.txt"), b"").unwrap();

        let (_, noted) = Ledger::open(folder.path(), "store", 3).unwrap();
        noted.remove();

        assert_eq!(files(folder.path()), ["00000000000000000003-000000.deletes", "2.deletes", "notes.txt"]);
    }
}
