//! The folder of the catalog's log.
//!
//! Its files are no part of the budget of open files: the catalog must never wait for files of data, which wait for it. Nobody
//! reads what stands in one that is open, so nothing is kept in memory either.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::client::{HdfsClient, HdfsFault};
use super::open_files::joined;
use super::synced::{RECOVERY_PATIENCE, Sync, SyncedFile};
use super::{RETRY_PAUSE, RETRY_PAUSE_MAX};
use crate::metrics::labels::StoreOperation;
use crate::runtime::Clock;
use crate::store::{GrowingFile, LogFolder, StoreError, Traffic, VisibleBytes};

/// The folder of a catalog's log on HDFS.
pub(crate) struct HdfsLogFolder {
    hdfs: HdfsClient,
    /// Below the folder of `hdfs`.
    name: String,
    traffic: Traffic,
}

impl fmt::Debug for HdfsLogFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HdfsLogFolder").field("hdfs", &self.hdfs).field("name", &self.name).finish_non_exhaustive()
    }
}

impl HdfsLogFolder {
    /// The folder `name` below that of `hdfs`.
    pub(crate) fn new(hdfs: HdfsClient, name: String, traffic: Traffic) -> Self {
        Self { hdfs, name, traffic }
    }

    fn at(&self, file: &str) -> String {
        self.hdfs.at(&format!("{}/{file}", self.name))
    }

    /// Counts a call that may be repeated, and repeats it while that may help.
    async fn repeated<T, F: Future<Output = Result<T, HdfsFault>> + Send>(
        &self,
        operation: StoreOperation,
        what: (&'static str, &str),
        call: impl Fn(HdfsClient) -> F + Send + std::marker::Sync,
    ) -> Result<T, StoreError> {
        let (begun, mut pause) = (Clock::instant(), RETRY_PAUSE);
        let (name, file) = what;
        loop {
            let called = async { call(self.hdfs.clone()).await.map_err(|error| StoreError::failed(name, file, error)) };
            let error = match self.traffic.time(operation, called).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if begun.elapsed() + pause > self.hdfs.retry_timeout() || fault(&error).is_none_or(HdfsFault::is_lasting) {
                return Err(error);
            }
            tracing::debug!(file, error = crate::error::chain(&error), "a call for the catalog's log is repeated");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }
}

/// Reads what can be seen of a file.
async fn visible(hdfs: HdfsClient, path: String) -> Result<Option<VisibleBytes>, HdfsFault> {
    let opened = async {
        // First the length, then where the blocks are: of a file that is closed in between all is seen.
        let len = hdfs.info(&path).await?.length as u64;
        let file = hdfs.open(&path).await?;
        let bytes = match file.file_length() as u64 {
            0 => Bytes::new(),
            visible => hdfs.read(&file, 0, visible).await?,
        };
        Ok(VisibleBytes { bytes, len })
    };
    match opened.await {
        Ok(visible) => Ok(Some(visible)),
        Err(error) if HdfsFault::is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn fault(error: &StoreError) -> Option<&HdfsFault> {
    let StoreError::Failed { source, .. } = error else { return None };
    source.downcast_ref()
}

#[async_trait]
impl LogFolder for HdfsLogFolder {
    fn owner(&self) -> &str {
        self.hdfs.id()
    }

    fn file_bytes_max(&self) -> Option<u64> {
        self.hdfs.block_bytes()
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        let folder = self.hdfs.at(&self.name);
        let list = |hdfs: HdfsClient| {
            let folder = folder.clone();
            async move { hdfs.list(&folder, false).await }
        };
        let listed = self.repeated(StoreOperation::List, ("list", &self.name), list).await?;
        let files = listed.iter().filter(|status| !status.isdir);
        Ok(files.filter_map(|status| Some(status.path.rsplit_once('/')?.1.to_owned())).collect())
    }

    async fn create(&self, name: &str) -> Result<Box<dyn GrowingFile>, StoreError> {
        let created = async {
            let created = SyncedFile::create(&self.hdfs, self.at(name)).await;
            created.map_err(|error| StoreError::failed("create", name, error))
        };
        let file = self.traffic.time(StoreOperation::Put, created).await?;
        let (patience, traffic) = (self.hdfs.write_timeout(), self.traffic.clone());
        Ok(Box::new(HdfsLogFile { file, name: name.to_owned(), patience, traffic }))
    }

    async fn release(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.at(name);
        let released = async {
            match self.hdfs.close_for(&path, RECOVERY_PATIENCE).await {
                Ok(len) => Ok(Some(len)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(StoreError::failed("release", name, error)),
            }
        };
        self.traffic.time(StoreOperation::Release, released).await
    }

    async fn read(&self, name: &str) -> Result<Option<VisibleBytes>, StoreError> {
        let path = self.at(name);
        self.repeated(StoreOperation::Get, ("get", name), |hdfs| visible(hdfs, path.clone())).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let deleted = async {
            let deleted = self.hdfs.delete(&self.at(name)).await;
            deleted.map(|_| ()).map_err(|error| StoreError::failed("delete", name, error))
        };
        self.traffic.time(StoreOperation::Delete, deleted).await
    }
}

/// A file of the log.
struct HdfsLogFile {
    file: SyncedFile,
    name: String,
    patience: Duration,
    traffic: Traffic,
}

impl fmt::Debug for HdfsLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HdfsLogFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl HdfsLogFile {
    async fn write(&mut self, parts: Vec<Bytes>, sync: Sync, as_what: StoreOperation) -> Result<(), StoreError> {
        let written = async {
            let written = self.file.append(joined(parts), sync, self.patience).await;
            written.map_err(|error| StoreError::failed("append", &self.name, error))
        };
        self.traffic.time(as_what, written).await
    }
}

#[async_trait]
impl GrowingFile for HdfsLogFile {
    async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.write(parts, Sync::Now, StoreOperation::Append).await
    }

    async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.write(parts, Sync::Later, StoreOperation::MultipartPart).await
    }

    fn is_usable(&self) -> bool {
        self.file.is_usable()
    }

    async fn close(&mut self) -> Result<(), StoreError> {
        let closed = async {
            let closed = self.file.close().await.map_err(|error| StoreError::failed("close", &self.name, error));
            closed.and_then(|len| match len < self.file.len() {
                true => Err(StoreError::Short { path: self.name.clone(), len, wanted: 0..self.file.len() }),
                false => Ok(()),
            })
        };
        self.traffic.time(StoreOperation::Release, closed).await
    }
}
