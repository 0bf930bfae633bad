//! The store of physical files, whatever it is on.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;

use super::{
    AppendStore, Capabilities, HdfsStore, LocalCopy, LocalStore, ObjectFiles, OpenedFile, StoreError, StoreGuard,
};
use crate::format::Frame;
use crate::model::PhysicalFileId;

/// Where physical files are. Clones share it.
#[derive(Debug, Clone)]
pub enum DataStore {
    /// A folder on a local disk.
    Local(LocalStore),
    /// An object store.
    Object(ObjectFiles),
    /// A folder of an HDFS.
    Hdfs(HdfsStore),
}

/// The way in which physical files get onto a store.
#[derive(Debug, Clone)]
pub enum FileWrites {
    /// They grow.
    Growing(Arc<dyn AppendStore>),
    /// Each is put whole.
    Whole(ObjectFiles),
}

impl DataStore {
    /// The store's abilities.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Local(store) => store.capabilities(),
            Self::Object(store) => store.capabilities(),
            Self::Hdfs(_) => Capabilities::HDFS,
        }
    }

    /// The way in which files get there.
    pub fn writes(&self) -> FileWrites {
        match self {
            Self::Local(store) => FileWrites::Growing(Arc::new(store.clone())),
            Self::Object(store) => FileWrites::Whole(store.clone()),
            Self::Hdfs(store) => FileWrites::Growing(Arc::new(store.clone())),
        }
    }

    /// Looks through `guard` before every step that destroys something.
    pub fn guarded(self, guard: StoreGuard) -> Self {
        match self {
            Self::Local(store) => Self::Local(store.guarded(guard)),
            Self::Object(store) => Self::Object(store.guarded(guard)),
            Self::Hdfs(store) => Self::Hdfs(store.guarded(guard)),
        }
    }

    /// Looks whether this is the store that it should be.
    ///
    /// # Errors
    /// [`StoreError`] if it is not, or if storage does not tell.
    pub async fn look(&self) -> Result<(), StoreError> {
        match self {
            Self::Local(store) => store.look().await,
            Self::Object(store) => store.look().await,
            Self::Hdfs(store) => store.look().boxed().await,
        }
    }

    /// Whether the last look found another store, or none. Nothing is deleted then.
    pub fn is_lost(&self) -> bool {
        self.guard().is_some_and(StoreGuard::is_lost)
    }

    fn is_guarded(&self) -> bool {
        self.guard().is_some()
    }

    fn guard(&self) -> Option<&StoreGuard> {
        match self {
            Self::Local(store) => store.guard(),
            Self::Object(store) => store.guard(),
            Self::Hdfs(store) => store.guard(),
        }
    }

    /// The thing that the last look found instead of the store, in words. `None` if the store is there.
    pub fn lost(&self) -> Option<String> {
        self.guard().and_then(StoreGuard::lost)
    }

    /// Reads a range of a file. That a file, or its end, is missing is only said of the store itself: where that is not
    /// there at the moment, so is everything in it.
    ///
    /// # Errors
    /// [`StoreError`]; never fewer bytes than asked for.
    pub async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.read_once(file, range.clone()).await {
            Err(StoreError::NotFound(_) | StoreError::Short { .. }) if self.is_guarded() => {
                self.look().await?;
                // It may have come back just before the look.
                self.read_once(file, range).await
            }
            read => read,
        }
    }

    async fn read_once(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self {
            Self::Local(store) => store.read(file, range).await,
            Self::Object(store) => store.read(file, range).await,
            Self::Hdfs(store) => store.read(file, range).boxed().await,
        }
    }

    /// Reports that wrong bytes of a file were read: forgets the local copy's bytes of it. Returns whether that is a reason
    /// to read again, because the bytes may have come from there.
    pub fn distrust(&self, file: &PhysicalFileId) -> bool {
        let Some(copy) = self.local_copy() else { return false };
        // Whether it had anything does not count: another reader may have told it a moment ago.
        copy.forget(file);
        true
    }

    /// The copy on local disk, where there is one.
    pub fn local_copy(&self) -> Option<&LocalCopy> {
        match self {
            Self::Local(_) | Self::Hdfs(_) => None,
            Self::Object(store) => store.copy(),
        }
    }

    /// The length of a file in bytes; `None` if there is no such file.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not say.
    pub async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Local(store) => store.len(file).await,
            Self::Object(store) => store.len(file).await,
            Self::Hdfs(store) => store.len(file).boxed().await,
        }
    }

    /// Deletes files and returns those that are gone now; one that did not exist is gone, too.
    pub async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        match self {
            Self::Local(store) => store.delete(files).await,
            Self::Object(store) => store.delete(files).await,
            Self::Hdfs(store) => store.delete(files).boxed().await,
        }
    }

    /// Deletes everything that is there, whoever has made it: the place of a shard that never came to be. Only on an object store.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated. [`StoreError::Unsupported`].
    pub async fn delete_everything(&self) -> Result<(), StoreError> {
        match self {
            Self::Object(store) => store.delete_everything().await,
            Self::Local(_) | Self::Hdfs(_) => Err(StoreError::Unsupported("deleting the place of a shard")),
        }
    }

    /// Writes a small file under a new name, and deletes it.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written.
    pub async fn try_write(&self, file: PhysicalFileId) -> Result<(), StoreError> {
        let bytes = vec![Bytes::from_static(b"a write that was tried")];
        let written = match self.writes() {
            FileWrites::Growing(store) => store.create(&file).await?.append(bytes).await,
            FileWrites::Whole(store) => store.put(&file, bytes).await,
        };
        self.delete(vec![file]).await;
        written
    }

    /// Names and lengths of everything below `data/`.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not say.
    pub async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        match self {
            Self::Local(store) => store.list().await,
            Self::Object(store) => store.list().await,
            Self::Hdfs(store) => store.list().boxed().await,
        }
    }

    /// Ends a file of `len` bytes that a crash left open: writes the bytes of `unsure` once more, appends `end`, and syncs
    /// it. Returns its length: on a full disk, where the reserve is used up as well, the file goes without its end. Nothing
    /// is cut off: what the catalog does not know may be known to a newer one.
    ///
    /// After a `fdatasync` that failed the kernel may show bytes that are not on the disk, and call the next sync a success:
    /// only bytes that are written again are written.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated. [`StoreError::Unsupported`] where files do not grow.
    pub async fn seal(
        &self,
        file: &PhysicalFileId,
        unsure: Range<u64>,
        len: u64,
        end: Bytes,
    ) -> Result<u64, StoreError> {
        match self {
            Self::Local(store) => store.seal(file, unsure, len, end).await,
            Self::Object(_) => Err(StoreError::Unsupported("files that grow")),
            // Its bytes are on as many disks as its pipeline had nodes when they were synced.
            Self::Hdfs(store) => store.seal(file, len, end).boxed().await,
        }
    }

    /// How much can be read of a file that is listed with `len` bytes and that nobody can close.
    pub fn len_while_open(&self, len: u64) -> u64 {
        match self {
            Self::Local(_) | Self::Object(_) => len,
            Self::Hdfs(store) => store.len_while_open(len),
        }
    }

    /// Closes a file for whoever writes it: a daemon that is gone or was shut out, or a writer that failed. When this returns
    /// nothing is added to it any more, and all that is durable in it can be read. Returns its length; `None` if there is no
    /// such file.
    ///
    /// # Errors
    /// [`StoreError::Failed`] and [`StoreError::StillOpen`]; it can be repeated. [`StoreError::Unsupported`] where an open file
    /// is nobody's.
    pub async fn release(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Local(_) | Self::Object(_) => Err(StoreError::Unsupported("releasing files")),
            Self::Hdfs(store) => store.release(file).boxed().await,
        }
    }

    /// Takes the name of a file that an older daemon may still be uploading, so that it cannot arrive any more.
    /// Returns the file's length if it did arrive.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not answer; [`StoreError::NotTheStore`]; [`StoreError::Unsupported`] where
    /// nothing arrives late.
    pub async fn claim(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Local(_) => Err(StoreError::Unsupported("taking a name")),
            Self::Object(store) => store.claim(file).await,
            Self::Hdfs(store) => store.claim(file).boxed().await,
        }
    }

    /// Gives up the upload `id` of a file; its parts are deleted. Nothing happens if it was completed or aborted before.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated. [`StoreError::Unsupported`] where files are not put.
    pub async fn abort(&self, file: &PhysicalFileId, id: &str) -> Result<(), StoreError> {
        match self {
            Self::Local(_) | Self::Hdfs(_) => Err(StoreError::Unsupported("multipart uploads")),
            Self::Object(store) => store.abort(file, id).await,
        }
    }

    /// The frames of a closed file, by their headers.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Unsupported`] where dead ranges cannot be given back, which alone needs them.
    pub async fn frames(&self, file: &PhysicalFileId) -> Result<Vec<Frame>, StoreError> {
        match self {
            Self::Local(store) => store.frames(file).await,
            Self::Object(_) | Self::Hdfs(_) => Err(NO_HOLES),
        }
    }

    /// Gives the inner pages of these ranges of a closed file back to the file system; they read as zeros afterwards.
    /// Returns how many bytes that are. It can be repeated.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if the store or its file system cannot do that; [`StoreError::Failed`].
    pub async fn punch(&self, file: &PhysicalFileId, ranges: Vec<Range<u64>>) -> Result<u64, StoreError> {
        match self {
            Self::Local(store) => store.punch(file, ranges).await,
            Self::Object(_) | Self::Hdfs(_) => Err(NO_HOLES),
        }
    }

    /// The holes of a file, in order; empty where there are no holes, or nobody tells.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub async fn holes(&self, file: &PhysicalFileId) -> Result<Vec<Range<u64>>, StoreError> {
        match self {
            Self::Local(store) => store.holes(file).await,
            Self::Object(_) | Self::Hdfs(_) => Ok(vec![]),
        }
    }

    /// Moves what is called `name` to `lost+found/`. Returns where it is now.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when something of that name is there; [`StoreError::Unsupported`].
    pub async fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        match self {
            Self::Local(store) => store.set_aside(name).await,
            Self::Hdfs(store) => store.set_aside(name).boxed().await,
            Self::Object(_) => Err(NOT_SET_ASIDE),
        }
    }

    /// The names and lengths of what is in `lost+found/`, by name.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not say; [`StoreError::Unsupported`].
    pub async fn set_aside_files(&self) -> Result<Vec<(String, u64)>, StoreError> {
        match self {
            Self::Local(store) => store.set_aside_files().await,
            Self::Hdfs(store) => store.set_aside_files().boxed().await,
            Self::Object(_) => Err(NOT_SET_ASIDE),
        }
    }

    /// Moves a file from `lost+found/` back to its place.
    ///
    /// # Errors
    /// As [`Self::set_aside`].
    pub async fn bring_back(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        match self {
            Self::Local(store) => store.bring_back(file).await,
            Self::Hdfs(store) => store.bring_back(file).boxed().await,
            Self::Object(_) => Err(NOT_SET_ASIDE),
        }
    }

    /// Deletes a file in `lost+found/` for good.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated. [`StoreError::Unsupported`].
    pub async fn delete_set_aside(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        match self {
            Self::Local(store) => store.delete_set_aside(file).await,
            Self::Hdfs(store) => store.delete_set_aside(file).boxed().await,
            Self::Object(_) => Err(NOT_SET_ASIDE),
        }
    }

    /// Opens a file of `len` bytes for reading from a blocking thread of a runtime. On remote storage what is wanted of its last
    /// `tail_bytes` brings all of them.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(&self, file: &PhysicalFileId, len: u64, tail_bytes: u64) -> io::Result<OpenedFile> {
        match self {
            Self::Local(store) => store.open(file).map(OpenedFile::local),
            Self::Object(_) | Self::Hdfs(_) => Ok(OpenedFile::remote(self, file, len, tail_bytes)),
        }
    }
}

const NO_HOLES: StoreError = StoreError::Unsupported("punching holes");
const NOT_SET_ASIDE: StoreError = StoreError::Unsupported("setting files aside");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::Traffic;

    /// Tries what each capability says, and compares.
    async fn assert_capable(store: &DataStore, missing: &PhysicalFileId) {
        let can = store.capabilities();
        let supported = |error: StoreError| !matches!(error, StoreError::Unsupported(_));

        assert_eq!(matches!(store.writes(), FileWrites::Growing(_)), can.appends);
        let sealed = store.seal(missing, 0..0, 0, Bytes::new()).await;
        assert_eq!(sealed.map_or_else(supported, |_| true), can.appends);
        assert_eq!(store.punch(missing, vec![]).await.map_or_else(supported, |_| true), can.punches);
        assert_eq!(store.frames(missing).await.map_or_else(supported, |_| true), can.punches);
        assert_eq!(store.set_aside_files().await.map_or_else(supported, |_| true), can.sets_aside);
        assert_eq!(store.set_aside(missing.as_str()).await.map_or_else(supported, |_| true), can.sets_aside);
        assert_eq!(store.bring_back(missing).await.map_or_else(supported, |_| true), can.sets_aside);
        assert_eq!(store.delete_set_aside(missing).await.map_or_else(supported, |_| true), can.sets_aside);
        assert_eq!(store.release(missing).await.map_or_else(supported, |_| true), can.leases);
        assert_eq!(store.abort(missing, "an id").await.map_or_else(supported, |()| true), !can.appends);
        assert_eq!(store.claim(missing).await.map_or_else(supported, |_| true), !can.exclusive);
    }

    #[tokio::test]
    async fn a_store_does_what_it_says_it_can_and_refuses_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let local = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let object = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);

        for store in [DataStore::Local(local), DataStore::Object(object)] {
            assert_capable(&store, &PhysicalFileId::new(None, 1, 7)).await;
        }
    }
}
