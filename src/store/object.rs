//! Physical files on an object store: each is put whole, once, under a name of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Capabilities, LocalCopy, Multipart, StoreError, StoreGuard};
use crate::config::StoreSettings;
use crate::model::PhysicalFileId;
use crate::runtime::Clock;

/// The bytes under the name of a file whose upload was given up by a daemon that took over.
pub const TOMBSTONE: &[u8] = b"esker: this file was never written\n";
/// First pause between two tries; doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Physical files below a prefix of an object store. Clones share it.
#[derive(Debug, Clone)]
pub struct ObjectFiles {
    store: Arc<dyn ObjectStore>,
    multipart: Multipart,
    prefix: Path,
    can: Capabilities,
    retry_timeout: Duration,
    /// Bytes of files that are on their way to storage.
    bytes_in_flight: Arc<Semaphore>,
    bytes_in_flight_max: u32,
    copy: Option<LocalCopy>,
    /// Looks whether this is the store; `None` for a store that is only read.
    guard: Option<StoreGuard>,
}

/// A multipart upload of one large file.
#[derive(Debug)]
pub struct FileUpload {
    files: ObjectFiles,
    path: Path,
    id: String,
    /// The store's names of the parts, by their place.
    parts: Arc<Mutex<Vec<Option<PartId>>>>,
    file: PhysicalFileId,
    /// Bytes of the parts so far.
    len: u64,
}

impl ObjectFiles {
    /// Files below `prefix` of a store with these abilities.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        multipart: Multipart,
        prefix: Path,
        can: Capabilities,
        settings: &StoreSettings,
    ) -> Self {
        let max = u32::try_from(settings.in_flight_bytes_max).unwrap_or(u32::MAX);
        let permits = usize::try_from(max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            store,
            multipart,
            prefix,
            can,
            retry_timeout: settings.retry_timeout,
            bytes_in_flight: Arc::new(Semaphore::new(permits)),
            bytes_in_flight_max: max,
            copy: None,
            guard: None,
        }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.can
    }

    pub(super) fn guarded(self, guard: StoreGuard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    pub(super) fn guard(&self) -> Option<&StoreGuard> {
        self.guard.as_ref()
    }

    /// The store, and the prefix of everything in it.
    pub(super) fn place(&self) -> (&Arc<dyn ObjectStore>, &Path) {
        (&self.store, &self.prefix)
    }

    /// Looks whether this is the store. Every step that destroys something does so first.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        match &self.guard {
            Some(guard) => guard.look_at_store(&self.store, &self.prefix).await,
            None => Ok(()),
        }
    }

    /// Keeps what is written and read in `copy`, too, and reads from there first.
    pub fn with_copy(self, copy: Option<LocalCopy>) -> Self {
        Self { copy, ..self }
    }

    /// The same below folders of this place, without a local copy.
    pub(super) fn below(&self, folders: &[String]) -> Self {
        let prefix = folders.iter().fold(self.prefix.clone(), |path, folder| path.join(folder.as_str()));
        Self { prefix, copy: None, ..self.clone() }
    }

    pub(super) fn copy(&self) -> Option<&LocalCopy> {
        self.copy.as_ref()
    }

    /// Files below `prefix`, for tests of those who read them.
    #[cfg(test)]
    pub(crate) fn with_retries(store: Arc<dyn ObjectStore>, prefix: Path, retry_timeout: Duration) -> Self {
        let bytes_in_flight_max = 64 << 20;
        let bytes_in_flight = Arc::new(Semaphore::new(bytes_in_flight_max as usize));
        let unused = Arc::new(object_store::memory::InMemory::new());
        let multipart = Multipart::new(unused, 1, super::Traffic::data(crate::metrics::Metrics::new()));
        let can = Capabilities::OBJECT;
        Self {
            store,
            multipart,
            prefix,
            can,
            retry_timeout,
            bytes_in_flight,
            bytes_in_flight_max,
            copy: None,
            guard: None,
        }
    }

    fn path(&self, file: &PhysicalFileId) -> Path {
        file.as_str().split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Puts a whole file. Resolves once it is durable.
    ///
    /// A lost response is repaired: the name belongs to this put alone, so a file of this length under it is ours.
    ///
    /// # Errors
    /// [`StoreError::Taken`] if a daemon that took over has put a tombstone there; [`StoreError::Failed`] otherwise,
    /// and then nobody knows whether the file is there.
    pub async fn put(&self, file: &PhysicalFileId, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let path = self.path(file);
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        // A file larger than the limit goes alone.
        let permits = u32::try_from(len).unwrap_or(u32::MAX).min(self.bytes_in_flight_max);
        let _on_its_way = self.bytes_in_flight.acquire_many(permits).await;
        let payload: PutPayload = parts.iter().cloned().collect();
        let put = self.retrying("put", file, || async {
            let put = self.store.put_opts(&path, payload.clone(), PutOptions::from(PutMode::Create)).await;
            match put {
                Ok(_) => Ok(Ok(())),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    let there = self.store.head(&path).await?.size;
                    Ok(if there == len { Ok(()) } else { Err(StoreError::Taken(file.to_string())) })
                }
                Err(error) => Err(error),
            }
        });
        put.await??;
        if let Some(copy) = &self.copy {
            copy.keep(file, 0, parts);
        }
        Ok(())
    }

    pub(super) async fn claim(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        self.look().await?;
        let path = self.path(file);
        let len = self
            .retrying("put", file, || async {
                let tombstone = Bytes::from_static(TOMBSTONE).into();
                match self.store.put_opts(&path, tombstone, PutOptions::from(PutMode::Create)).await {
                    Ok(_) => Ok(None),
                    Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                        Ok(Some(self.store.head(&path).await?.size))
                    }
                    Err(error) => Err(error),
                }
            })
            .await?;
        Ok(len.filter(|len| *len != TOMBSTONE.len() as u64))
    }

    /// Begins the upload of a large file. Its id has to be remembered until it is completed or aborted.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    ///
    /// # Cancel safety
    /// A dropped call may leave an upload without a part, which nobody knows and which takes no space.
    pub async fn begin(&self, file: &PhysicalFileId) -> Result<FileUpload, StoreError> {
        let path = self.path(file);
        let begun = self.multipart.create(&path).await;
        let id = begun.map_err(|error| StoreError::failed("multipart_create", file.as_str(), error))?;
        Ok(FileUpload { files: self.clone(), path, id, parts: Arc::default(), file: file.clone(), len: 0 })
    }

    pub(super) async fn abort(&self, file: &PhysicalFileId, id: &str) -> Result<(), StoreError> {
        if !self.can.aborts_uploads {
            return self.drop_parts(file, id).await;
        }
        let (path, id) = (self.path(file), id.to_owned());
        match self.retrying("multipart_abort", file, || self.multipart.abort(&path, &id)).await {
            Err(StoreError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// Completes the upload with none of its parts, which drops them, unless it was completed. An empty object stays under the
    /// name and is deleted with the file; who sends the rest of the parts late completes nothing.
    ///
    /// Not with a tombstone: to some stores parts alone are an object already, and nothing can be created beside them.
    async fn drop_parts(&self, file: &PhysicalFileId, id: &str) -> Result<(), StoreError> {
        self.look().await?;
        if self.len(file).await?.is_some() {
            return Ok(());
        }
        // What is completed between the look and this was sent by nobody who may still commit it.
        let (path, id) = (self.path(file), id.to_owned());
        self.retrying("multipart_abort", file, || self.multipart.complete(&path, &id, vec![])).await.map(|_| ())
    }

    pub(super) async fn read(&self, file: &PhysicalFileId, range: Range<u64>) -> Result<Bytes, StoreError> {
        if let Some(copy) = &self.copy
            && let Some(bytes) = copy.read(file, range.clone()).await
        {
            return Ok(bytes);
        }
        let path = self.path(file);
        let wanted = range.end - range.start;
        let read = self.retrying("get", file, || self.store.get_range(&path, range.clone())).await?;
        if read.len() as u64 != wanted {
            let len = range.start + read.len() as u64;
            return Err(StoreError::Short { path: file.to_string(), len, wanted: range });
        }
        if let Some(copy) = &self.copy {
            copy.keep(file, range.start, vec![read.clone()]);
        }
        Ok(read)
    }

    pub(super) async fn len(&self, file: &PhysicalFileId) -> Result<Option<u64>, StoreError> {
        let path = self.path(file);
        match self.retrying("head", file, || self.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn delete(&self, files: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        if let Err(error) = self.look().await {
            // That it is another store was told when it was noticed.
            if !matches!(error, StoreError::NotTheStore(_)) {
                tracing::warn!(error = crate::error::chain(&error), "nothing is deleted, it will be tried again");
            }
            return vec![];
        }
        let paths: Vec<Path> = files.iter().map(|file| self.path(file)).collect();
        let results: Vec<_> = self.store.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed()).collect().await;
        let mut gone = vec![];
        let by_path: std::collections::HashMap<Path, PhysicalFileId> =
            files.into_iter().map(|file| (self.path(&file), file)).collect();
        for result in results {
            match result {
                Ok(path) => gone.extend(by_path.get(&path).cloned()),
                // It is told as it was asked for, encoded.
                Err(Error::NotFound { path, .. }) => {
                    gone.extend(Path::parse(path).ok().and_then(|path| by_path.get(&path).cloned()));
                }
                Err(error) => {
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        "a file could not be deleted, it will be tried again"
                    );
                }
            }
        }
        if let Some(copy) = &self.copy {
            for file in &gone {
                copy.forget(file);
            }
        }
        gone
    }

    /// Deletes everything below the prefix, whatever it is.
    pub(super) async fn delete_everything(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::failed("delete", self.prefix.as_ref(), error);
        let listed = self.store.list(Some(&self.prefix)).map_ok(|meta| meta.location).boxed();
        let mut deleted = self.store.delete_stream(listed);
        while let Some(gone) = deleted.next().await {
            match gone {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let prefix = self.prefix.clone().join(PhysicalFileId::FOLDER);
        let listed: Result<Vec<_>, Error> = self.store.list(Some(&prefix)).try_collect().await;
        let listed = listed.map_err(|error| StoreError::failed("list", prefix.as_ref(), error))?;
        let name = |path: &Path| {
            let parts: Option<Vec<_>> =
                path.prefix_match(&self.prefix).map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
            parts.unwrap_or_default().join("/")
        };
        let mut found: Vec<(String, u64)> = listed.iter().map(|meta| (name(&meta.location), meta.size)).collect();
        found.sort();
        Ok(found)
    }

    /// Repeats a request that is safe to repeat until it succeeds, the answer is final, or the time is up.
    async fn retrying<T, F>(
        &self,
        operation: &'static str,
        file: &PhysicalFileId,
        mut request: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Clock::instant();
        let mut pause = RETRY_PAUSE;
        loop {
            let error = match request().await {
                Ok(value) => return Ok(value),
                Err(Error::NotFound { .. }) => return Err(StoreError::NotFound(file.to_string())),
                Err(error) => error,
            };
            let lasting = matches!(
                error,
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::NotImplemented { .. }
            );
            if lasting || begun.elapsed() + pause > self.retry_timeout {
                return Err(StoreError::failed(operation, file.as_str(), error));
            }
            tracing::debug!(operation, %file, error = crate::error::chain(&error), "a request to storage is repeated");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }
}

impl FileUpload {
    /// The store's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Uploads the next part; the future may run beside others.
    pub fn part(&mut self, data: Vec<Bytes>) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let (files, path, id, file) = (self.files.clone(), self.path.clone(), self.id.clone(), self.file.clone());
        let (parts, start) = (Arc::clone(&self.parts), self.len);
        self.len += data.iter().map(|piece| piece.len() as u64).sum::<u64>();
        // Its place is taken now and not when it is uploaded: parts end in any order.
        let index = {
            let mut parts = parts.lock();
            parts.push(None);
            parts.len() - 1
        };
        async move {
            let sent = files.multipart.put_part(&path, &id, index, data.iter().cloned().collect()).await;
            let part = sent.map_err(|error| StoreError::failed("multipart_part", file.as_str(), error))?;
            if let Some(place) = parts.lock().get_mut(index) {
                *place = Some(part);
            }
            // Not before the store has it: what a copy holds must be the store's.
            if let Some(copy) = &files.copy {
                copy.keep(&file, start, data);
            }
            Ok(())
        }
    }

    /// All parts are uploaded: the file is there when this returns.
    ///
    /// # Errors
    /// [`StoreError::Failed`], and then nobody knows whether the file is there; [`Self::abort`] it.
    pub async fn complete(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::failed("multipart_complete", self.file.as_str(), error);
        let parts: Option<Vec<PartId>> = self.parts.lock().iter().cloned().collect();
        let missing = || Error::Generic { store: "esker", source: "a part was not uploaded".into() };
        let parts = parts.ok_or_else(missing).map_err(failed)?;
        let Err(error) = self.files.multipart.complete(&self.path, &self.id, parts).await else { return Ok(()) };
        // Its answer may have been lost, and a repeat of it is refused then. The name is this upload's alone.
        match self.files.len(&self.file).await {
            Ok(Some(len)) if len == self.len => Ok(()),
            _ => Err(failed(error)),
        }
    }

    /// Gives the upload up; its parts are deleted. Returns whether nothing is left of it.
    pub async fn abort(self) -> bool {
        // First: the copy must not answer for a file that will never be there.
        if let Some(copy) = &self.files.copy {
            copy.forget(&self.file);
        }
        if !self.files.can.aborts_uploads && self.parts.lock().is_empty() {
            // Nothing was sent under a name that perhaps nobody knows.
            return true;
        }
        let aborted = self.files.abort(&self.file, &self.id).await;
        if let Err(error) = &aborted {
            tracing::warn!(file = %self.file, upload = self.id, error = crate::error::chain(error), "a multipart upload could not be aborted");
        }
        aborted.is_ok()
    }
}
