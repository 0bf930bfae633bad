//! A store on HDFS: physical files that grow and are synced, and the small objects beside them.
//!
//! A group is durable when it was written and synced (`hsync`) through the pipeline of DataNodes, within one deadline. After
//! any error, or without an answer in time, the writer is given up for good: a second sync after a failed one can succeed
//! with bytes missing. Whoever writes the group again does so in another file.
//!
//! An open file is its writer's: the NameNode keeps a lease for it, and nobody else sees its last block. So what stands in
//! open files is kept in memory ([`OpenFiles`]) until they are closed. A file that was given up, and one that a daemon left
//! which is gone, is closed for its writer by recovering the lease. That shuts the writer out: nothing that it has sent, or
//! sends, is added to the file any more.
//!
//! - `client`: calls, each with a deadline.
//! - `synced`: a file that grows.
//! - `objects`: whole objects under names that are taken once: the catalog, identities, owners.
//! - `open_files`: what cannot be read from DataNodes yet.
//! - `log_folder`: the catalog's log.
//! - `probe`: whether a folder keeps its word.
//!
//! # Crash
//! Open files stay open in the NameNode. The next owner of the catalog closes them before it counts what is in them, and it is
//! the catalog that says which they are: a file is closed there only after it was closed here.

mod client;
mod log_folder;
mod objects;
mod open_files;
mod probe;
mod synced;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use hdfs_native::file::FileReader;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use self::client::within;
pub(crate) use self::client::{HdfsClient, HdfsFault};
pub(crate) use self::log_folder::HdfsLogFolder;
pub(crate) use self::objects::HdfsObjects;
use self::objects::is_staged;
use self::open_files::{OpenFiles, joined};
pub use self::probe::HdfsProbeError;
pub(crate) use self::probe::probe_hdfs;
use self::synced::{RECOVERY_PATIENCE, Sync, SyncedFile};
use super::{AppendStore, GrowingFile, Readers, StoreError, StoreGuard, TOMBSTONE, Traffic};
use crate::config::HdfsSettings;
use crate::metrics::labels::StoreOperation;
use crate::model::PhysicalFileId;
use crate::runtime::Clock;

/// The folder for files that the catalog does not name.
const LOST_AND_FOUND: &str = "lost+found";
/// Files whose blocks are remembered.
const READERS_MAX: usize = 1024;
/// Bytes of a file that the library may have on their way to DataNodes, in two queues of a hundred packets.
const ON_ITS_WAY_BYTES: u64 = 12 << 20;
/// Files deleted at a time.
const DELETES_AT_ONCE: usize = 16;
/// First pause between two tries to read; doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Physical files in an HDFS folder. Clones share it.
#[derive(Clone)]
pub struct HdfsStore {
    hdfs: HdfsClient,
    /// The same folder as an object store, counted.
    objects: Arc<dyn ObjectStore>,
    open: OpenFiles,
    /// Where the blocks of files are that were read lately.
    readers: Arc<Mutex<HashMap<PhysicalFileId, Arc<FileReader>>>>,
    /// Looks whether this is the store; `None` for a store that is only read.
    guard: Option<StoreGuard>,
    traffic: Traffic,
}

impl fmt::Debug for HdfsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HdfsStore").field("hdfs", &self.hdfs).finish_non_exhaustive()
    }
}

impl HdfsStore {
    /// Files below the folder of `hdfs`, which `objects` shows, too.
    pub(super) fn new(
        hdfs: HdfsClient,
        objects: Arc<dyn ObjectStore>,
        settings: &HdfsSettings,
        traffic: Traffic,
    ) -> Self {
        let open = OpenFiles::new(settings.open_bytes_max, settings.writers_max);
        Self { hdfs, objects, open, readers: Arc::default(), guard: None, traffic }
    }

    pub(super) fn guarded(self, guard: StoreGuard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    pub(super) fn guard(&self) -> Option<&StoreGuard> {
        self.guard.as_ref()
    }

    /// The store of objects beside the files, and the prefix of everything in it.
    pub(super) fn place(&self) -> (&Arc<dyn ObjectStore>, Path) {
        (&self.objects, Path::default())
    }

    /// Looks whether this is the store. Every step that destroys something does so first.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        match &self.guard {
            Some(guard) => guard.look_at_store(&self.objects, &Path::default()).await,
            None => Ok(()),
        }
    }

    /// Deletes what earlier owners have begun to put, and have not finished.
    pub(super) async fn sweep_staged(&self) {
        match HdfsObjects::new(self.hdfs.clone()).sweep_staged().await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "deleted what an earlier owner had not finished"),
            Err(error) => tracing::debug!(%error, "what an earlier owner has not finished stays for now"),
        }
    }

    fn path(&self, file: &PhysicalFileId) -> String {
        self.hdfs.at(file.as_str())
    }

    pub(super) async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.open.read(file, &range) {
            return Ok(bytes);
        }
        self.traffic.time(StoreOperation::Get, self.read_remote(file, range)).await
    }

    async fn read_remote(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        let begun = Clock::instant();
        let mut pause = RETRY_PAUSE;
        loop {
            let error = match self.read_once(file, &range).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            // Where its blocks are, or how long it is, may have changed: that is asked anew.
            let was_known = self.readers.lock().remove(file).is_some();
            match error {
                HdfsFault::Short(len) if !was_known => {
                    return Err(StoreError::Short { path: file.to_string(), len, wanted: range });
                }
                error if error.is_not_found() => return Err(StoreError::NotFound(file.to_string())),
                error if error.is_lasting() => return Err(StoreError::failed("get", file.as_str(), error)),
                error if begun.elapsed() + pause > self.hdfs.retry_timeout() => {
                    return Err(StoreError::failed("get", file.as_str(), error));
                }
                error => tracing::debug!(%file, %error, "a read is repeated"),
            }
            if !was_known {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
    }

    async fn read_once(&self, file: &PhysicalFileId, range: &Range<u64>) -> Result<Bytes, HdfsFault> {
        let known = self.readers.lock().get(file).cloned();
        let len = range.end - range.start;
        if let Some(reader) = known {
            return self.hdfs.read(&reader, range.start, len).await;
        }
        let reader = Arc::new(self.hdfs.open(&self.path(file)).await?);
        let bytes = self.hdfs.read(&reader, range.start, len).await?;
        let mut readers = self.readers.lock();
        if readers.len() >= READERS_MAX {
            // Rare, and any of them will do: each costs one call to learn again.
            readers.clear();
        }
        readers.insert(file.clone(), reader);
        Ok(bytes)
    }

    pub(super) async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        let info = async {
            match self.hdfs.info(&self.path(file)).await {
                Ok(status) => Ok(Some(status.length as u64)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(StoreError::failed("head", file.as_str(), error)),
            }
        };
        self.traffic.time(StoreOperation::Head, info).await
    }

    pub(super) async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        if let Err(error) = self.look().await {
            // That it is another store was told when it was noticed.
            if !matches!(error, StoreError::NotTheStore(_)) {
                tracing::warn!(error = crate::error::chain(&error), "nothing is deleted, it will be tried again");
            }
            return vec![];
        }
        let deleting = files.into_iter().map(|file| async move {
            let deleted = async {
                let deleted = self.hdfs.delete(&self.path(&file)).await;
                deleted.map_err(|error| StoreError::failed("delete", file.as_str(), error))
            };
            match self.traffic.time(StoreOperation::Delete, deleted).await {
                Ok(_) => Some(file),
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(%file, error, "a file could not be deleted, it will be tried again");
                    None
                }
            }
        });
        let gone: Vec<Option<PhysicalFileId>> =
            stream::iter(deleting).buffer_unordered(DELETES_AT_ONCE).collect().await;
        let gone: Vec<PhysicalFileId> = gone.into_iter().flatten().collect();
        self.forget_readers(&gone);
        let names: Vec<&str> = gone.iter().map(PhysicalFileId::as_str).collect();
        self.delete_empty_folders(&names).await;
        gone
    }

    fn forget_readers(&self, gone: &[PhysicalFileId]) {
        let mut readers = self.readers.lock();
        gone.iter().for_each(|file| drop(readers.remove(file)));
    }

    /// Deletes the folders of files that are gone, where nothing is in them: each is an object of the NameNode. Whoever creates
    /// a file makes its folder again.
    async fn delete_empty_folders(&self, gone: &[&str]) {
        let folders: BTreeSet<&str> = gone.iter().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
        for folder in folders.into_iter().filter(|folder| folder.contains('/')) {
            match self.hdfs.delete(&self.hdfs.at(folder)).await {
                Ok(_) => {}
                Err(error) if error.is_not_empty() => {}
                Err(error) => tracing::debug!(folder, %error, "an empty folder stays"),
            }
        }
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.list_below("").await
    }

    pub(super) async fn set_aside_files(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.list_below(LOST_AND_FOUND).await
    }

    /// Names and lengths below `data/` in a folder, as the names are without it.
    async fn list_below(&self, folder: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let top = self.hdfs.at(folder);
        let listing = async {
            let listed = self.hdfs.list(&format!("{top}/data"), true).await;
            listed.map_err(|error| StoreError::failed("list", "data", error))
        };
        let listed = self.traffic.time(StoreOperation::List, listing).await?;
        let files = listed.into_iter().filter(|status| !status.isdir && !is_staged(&status.path));
        let mut found: Vec<(String, u64)> = files
            .filter_map(|status| {
                let name = status.path.strip_prefix(&top)?.trim_start_matches('/').to_owned();
                Some((name, status.length as u64))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Closes a file for whoever writes it, who is shut out by that. Returns its length; `None` if there is no such file.
    pub(super) async fn release(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        let released = async {
            match self.hdfs.close_for(&self.path(file), RECOVERY_PATIENCE).await {
                Ok(len) => Ok(Some(len)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(HdfsFault::Held(_)) => Err(StoreError::StillOpen(file.to_string())),
                Err(error) => Err(StoreError::failed("release", file.as_str(), error)),
            }
        };
        let len = self.traffic.time(StoreOperation::Release, released).await?;
        self.open.end(file);
        Ok(len)
    }

    /// The last block is counted, and no DataNode shows it.
    pub(super) fn len_while_open(&self, len: u64) -> u64 {
        self.hdfs.block_bytes().filter(|block| *block > 0).map_or(0, |block| len - len % block)
    }

    pub(super) async fn seal(&self, file: &PhysicalFileId, len: u64, end: Bytes) -> Result<u64, StoreError> {
        self.look().await?;
        if end.is_empty() {
            return Ok(len);
        }
        let (path, added) = (self.path(file), end.len() as u64);
        let sealed = async {
            let appended = async {
                let mut writer = self.hdfs.append(&path).await?;
                self.hdfs.count(2);
                within(self.hdfs.write_timeout(), async {
                    writer.write_bytes(end).await?;
                    writer.hsync().await?;
                    writer.close().await
                })
                .await
            };
            let error = match appended.await {
                Ok(()) => return Ok(len + added),
                Err(error) => error,
            };
            // What lives in it is safe, and it reads without its end. But nobody may have it open.
            tracing::warn!(%file, %error, "a file is closed without its footer");
            let there = self.hdfs.close_for(&path, RECOVERY_PATIENCE).await;
            there.map_err(|error| StoreError::failed("release", file.as_str(), error))
        };
        self.traffic.time(StoreOperation::Append, sealed).await
    }

    pub(super) async fn claim(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        self.look().await?;
        let path = file.as_str().split('/').fold(Path::default(), |path, part| path.join(part));
        let tombstone = Bytes::from_static(TOMBSTONE).into();
        match self.objects.put_opts(&path, tombstone, PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(None),
            Err(object_store::Error::AlreadyExists { .. }) => {
                Ok(self.release(file).await?.filter(|len| *len != TOMBSTONE.len() as u64))
            }
            Err(error) => Err(StoreError::failed("put", file.as_str(), error)),
        }
    }

    pub(super) async fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        // Whoever was writing it is gone: the NameNode would keep it open for 20 minutes.
        if let Err(error) = self.hdfs.close_for(&self.hdfs.at(name), Duration::ZERO).await {
            tracing::debug!(name, %error, "a file that is set aside is closed later");
        }
        self.rename(name, &format!("{LOST_AND_FOUND}/{name}")).await
    }

    pub(super) async fn bring_back(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        self.rename(&format!("{LOST_AND_FOUND}/{file}"), file.as_str()).await.map(|_| ())
    }

    async fn rename(&self, from: &str, to: &str) -> Result<PathBuf, StoreError> {
        self.look().await?;
        let (source, target) = (self.hdfs.at(from), self.hdfs.at(to));
        let renamed = async {
            let folder = target.rsplit_once('/').map_or("/", |(folder, _)| folder);
            let made = self.hdfs.make_folder(folder).await;
            made.map_err(|error| StoreError::failed("rename", from, error))?;
            let renamed = self.hdfs.rename(&source, &target, false).await;
            renamed.map_err(|error| StoreError::failed("rename", from, error))
        };
        self.traffic.time(StoreOperation::Put, renamed).await?;
        self.delete_empty_folders(&[from]).await;
        Ok(PathBuf::from(target))
    }

    pub(super) async fn delete_set_aside(&self, file: &PhysicalFileId) -> Result<(), StoreError> {
        self.look().await?;
        let name = format!("{LOST_AND_FOUND}/{file}");
        let deleted = async {
            let deleted = self.hdfs.delete(&self.hdfs.at(&name)).await;
            deleted.map(|_| ()).map_err(|error| StoreError::failed("delete", &name, error))
        };
        self.traffic.time(StoreOperation::Delete, deleted).await?;
        self.delete_empty_folders(&[&name]).await;
        Ok(())
    }

    async fn create_as(&self, file: &PhysicalFileId, readers: Readers) -> Result<Box<dyn GrowingFile>, StoreError> {
        self.look().await?;
        let failed = |error: HdfsFault| StoreError::failed("create", file.as_str(), error);
        let patience = self.hdfs.write_timeout();
        let room = async {
            let place = self.open.place().await;
            // What the library has on its way, which would be nobody's otherwise.
            let paid = match readers {
                Readers::AsItGrows => None,
                Readers::OnceClosed => Some(self.open.pay(ON_ITS_WAY_BYTES).await),
            };
            (place, paid)
        };
        let room = tokio::time::timeout(patience, room).await;
        let (place, paid) = room.map_err(|_| failed(HdfsFault::NoMemory(patience)))?;
        let path = self.path(file);
        let created = async { SyncedFile::create(&self.hdfs, path.clone()).await.map_err(failed) };
        let synced = match self.traffic.time(StoreOperation::Put, created).await {
            Ok(synced) => synced,
            Err(error) => {
                self.forget_create(&path, &error).await;
                return Err(error);
            }
        };
        let held = match readers {
            Readers::AsItGrows => {
                self.open.begin(file, place);
                None
            }
            Readers::OnceClosed => Some((place, paid)),
        };
        Ok(Box::new(HdfsFile { store: self.clone(), file: file.clone(), synced, readers, _held: held }))
    }

    /// A create whose answer was lost may have been carried out. Its name is used by nobody else, and never again.
    async fn forget_create(&self, path: &str, error: &StoreError) {
        let StoreError::Failed { source, .. } = error else { return };
        if source.downcast_ref::<HdfsFault>().is_some_and(HdfsFault::is_taken) {
            return;
        }
        if let Err(error) = self.hdfs.delete(path).await {
            tracing::debug!(path, %error, "a file of which nobody knows whether it was created may stay");
        }
    }
}

#[async_trait]
impl AppendStore for HdfsStore {
    async fn create(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError> {
        self.create_as(file, Readers::AsItGrows).await
    }

    async fn create_unread(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError> {
        self.create_as(file, Readers::OnceClosed).await
    }
}

/// A physical file that grows.
struct HdfsFile {
    store: HdfsStore,
    file: PhysicalFileId,
    synced: SyncedFile,
    readers: Readers,
    /// Held by the open files otherwise.
    _held: Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)>,
}

impl fmt::Debug for HdfsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HdfsFile").field("file", &self.file).field("len", &self.synced.len()).finish_non_exhaustive()
    }
}

impl HdfsFile {
    async fn write(&mut self, parts: Vec<Bytes>, sync: Sync, readers: Readers) -> Result<(), StoreError> {
        let failed = |error: HdfsFault| StoreError::failed("append", self.file.as_str(), error);
        // Copied into one piece: what is kept must not keep the buffers of requests alive.
        let bytes = match (readers, parts.len()) {
            (Readers::AsItGrows, 1) => Bytes::copy_from_slice(&parts[0]),
            _ => joined(parts),
        };
        let (patience, begun) = (self.store.hdfs.write_timeout(), Clock::instant());
        // Before the writer is taken: for want of memory a file ends, and is not given up.
        let paid = match readers {
            Readers::AsItGrows if self.is_usable() => {
                let paying = tokio::time::timeout(patience, self.store.open.pay(bytes.len() as u64));
                Some(paying.await.map_err(|_| failed(HdfsFault::NoMemory(patience)))?)
            }
            Readers::AsItGrows | Readers::OnceClosed => None,
        };
        let left = patience.saturating_sub(begun.elapsed());
        self.synced.append(bytes.clone(), sync, left).await.map_err(failed)?;
        if let Some(paid) = paid {
            self.store.open.push(&self.file, bytes, paid);
        }
        Ok(())
    }
}

#[async_trait]
impl GrowingFile for HdfsFile {
    async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let traffic = self.store.traffic.clone();
        traffic.time(StoreOperation::Append, self.write(parts, Sync::Now, self.readers)).await
    }

    async fn append_end(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let traffic = self.store.traffic.clone();
        // Not paid for: it would wait for memory that the close behind it gives back.
        traffic.time(StoreOperation::Append, self.write(parts, Sync::Now, Readers::OnceClosed)).await
    }

    async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let traffic = self.store.traffic.clone();
        traffic.time(StoreOperation::MultipartPart, self.write(parts, Sync::Later, self.readers)).await
    }

    fn is_usable(&self) -> bool {
        self.synced.is_usable()
    }

    fn should_end(&self) -> bool {
        self.store.open.is_too_much(&self.file)
    }

    async fn close(&mut self) -> Result<(), StoreError> {
        let traffic = self.store.traffic.clone();
        let closed = async {
            let failed = |error: HdfsFault| StoreError::failed("close", self.file.as_str(), error);
            let len = self.synced.close().await.map_err(failed)?;
            match len < self.synced.len() {
                true => Err(StoreError::Short { path: self.file.to_string(), len, wanted: 0..self.synced.len() }),
                false => Ok(()),
            }
        };
        let closed = traffic.time(StoreOperation::Release, closed).await;
        if closed.is_ok() {
            self.store.open.end(&self.file);
        }
        closed
    }
}
