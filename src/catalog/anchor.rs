//! Whether a folder is still where it was when it was locked.
//!
//! The lock is on a file that is open; objects, segments and their deletion go by path. When the folder is renamed, covered
//! by a mount or replaced by a copy, the lock keeps nobody off what stands under the path from then on, and that may be
//! another daemon's. So whoever has the folder looks before it changes a name there, and once a second, whether the path
//! leads to the file that it has locked, and to the folders that were there then: hard links make a copy whose files are the
//! same, and a mount may cover one folder of the catalog alone. Once it did not, nothing is written any more, even if the
//! folder comes back.
//!
//! Bytes that are appended to open files between two looks go into the folder that was moved, with the files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{HeldInode, Inode};

/// Time between two looks of [`Anchor::watch`].
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Knows which file a path has to lead to. Clones share what was found.
#[derive(Debug, Clone)]
pub struct Anchor(Arc<Anchored>);

#[derive(Debug)]
struct Anchored {
    path: PathBuf,
    inode: Inode,
    /// The folder of the file, and those in it that were named.
    folders: Vec<(PathBuf, HeldInode)>,
    moved: CancellationToken,
}

impl Anchor {
    /// `file` is at `path`, and stays open for as long as somebody looks; beside it are `folders`.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn new(path: PathBuf, file: &File, folders: &[&str]) -> io::Result<Self> {
        let inode = Inode::from(&file.metadata()?);
        let folder = path.parent().unwrap_or(Path::new("."));
        let folders = folders.iter().map(|name| folder.join(name)).chain([folder.to_owned()]);
        let known = |folder: PathBuf| HeldInode::open(&folder).map(|held| (folder, held));
        let folders = folders.map(known).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Anchored { path, inode, folders, moved: CancellationToken::new() })))
    }

    /// The folder that the file was in.
    pub fn folder(&self) -> &Path {
        self.0.path.parent().unwrap_or(Path::new("."))
    }

    /// Cancelled once a look has found another file, or none.
    pub fn moved(&self) -> &CancellationToken {
        &self.0.moved
    }

    /// Looks. Blocks for a moment.
    ///
    /// # Errors
    /// That the folder was moved or replaced, now or before; or what the operating system says if it does not tell.
    pub fn look(&self) -> io::Result<()> {
        let Anchored { path, inode, folders, moved } = &*self.0;
        if !moved.is_cancelled() {
            let mut is_here = inode.is_at(path)?;
            for (folder, held) in folders {
                is_here = is_here && held.inode().is_at(folder)?;
            }
            if is_here {
                return Ok(());
            }
            // For good: a folder that comes back has missed writes.
            moved.cancel();
        }
        Err(io::Error::other(format!("{} was moved or replaced", self.folder().display())))
    }

    /// The same off the async threads.
    ///
    /// # Errors
    /// As [`Self::look`].
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    pub async fn look_aside(&self) -> io::Result<()> {
        let anchor = self.clone();
        tokio::task::spawn_blocking(move || anchor.look()).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Looks from time to time. Resolves when the folder was moved, whoever found out.
    pub async fn watch(&self) {
        while !self.0.moved.is_cancelled() {
            tokio::select! {
                () = self.0.moved.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {
                    if let Err(error) = self.look_aside().await {
                        tracing::debug!(%error, "looking for the folder of the catalog");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_that_was_moved_is_lost_for_good_even_with_a_copy_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let (here, away) = (root.path().join("here"), root.path().join("away"));
        fs::create_dir_all(here.join("log")).unwrap();
        let lock = File::create(here.join("LOCK")).unwrap();
        let anchor = || Anchor::new(here.join("LOCK"), &lock, &["log"]).unwrap();
        let (first, second) = (anchor(), anchor());
        first.look().unwrap();

        fs::rename(&here, &away).unwrap();
        first.look().unwrap_err();
        fs::create_dir(&here).unwrap();
        fs::copy(away.join("LOCK"), here.join("LOCK")).unwrap();
        second.look().unwrap_err();
        assert!(second.moved().is_cancelled());

        fs::remove_dir_all(&here).unwrap();
        fs::rename(&away, &here).unwrap();
        first.look().unwrap_err();
        anchor().look().unwrap();
    }

    #[test]
    fn a_copy_of_hard_links_and_another_folder_within_are_not_the_same() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        fs::create_dir_all(here.join("log")).unwrap();
        let lock = File::create(here.join("LOCK")).unwrap();
        let anchor = || Anchor::new(here.join("LOCK"), &lock, &["log"]).unwrap();
        let (first, second) = (anchor(), anchor());

        fs::rename(here.join("log"), here.join("away")).unwrap();
        fs::create_dir(here.join("log")).unwrap();
        first.look().unwrap_err();
        fs::remove_dir(here.join("log")).unwrap();
        fs::rename(here.join("away"), here.join("log")).unwrap();
        second.look().unwrap();

        let copy = root.path().join("copy");
        fs::create_dir_all(copy.join("log")).unwrap();
        fs::hard_link(here.join("LOCK"), copy.join("LOCK")).unwrap();
        fs::rename(&here, root.path().join("away")).unwrap();
        fs::rename(&copy, &here).unwrap();
        second.look().unwrap_err();
    }
}
