//! A file that grows and is synced.

use std::time::Duration;

use bytes::Bytes;
use hdfs_native::HdfsError;
use hdfs_native::file::FileWriter;

use super::client::{HdfsClient, HdfsFault, within};

/// A lease takes about a second to recover, and some minutes while a DataNode that alone has a replica is away.
pub(super) const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);

/// Whether bytes have to be durable when a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    Now,
    Later,
}

/// A file that this client has created and alone writes.
pub(super) struct SyncedFile {
    hdfs: HdfsClient,
    path: String,
    /// `None` after a failure, and while a call is on its way: one that is dropped takes the writer along.
    writer: Option<FileWriter>,
    len: u64,
    block_bytes: Option<u64>,
}

impl SyncedFile {
    /// Creates a file. Fails if the name is taken.
    ///
    /// # Errors
    /// As [`HdfsClient::create`]; the file may be there all the same.
    pub(super) async fn create(hdfs: &HdfsClient, path: String) -> Result<Self, HdfsFault> {
        let writer = hdfs.create(&path).await?;
        let block_bytes = hdfs.block_bytes();
        Ok(Self { hdfs: hdfs.clone(), path, writer: Some(writer), len: 0, block_bytes })
    }

    /// Bytes that were written.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_usable(&self) -> bool {
        self.writer.is_some()
    }

    /// Appends, and waits no longer than `patience`.
    ///
    /// # Errors
    /// [`HdfsFault`]; the file takes nothing more.
    pub(super) async fn append(&mut self, bytes: Bytes, sync: Sync, patience: Duration) -> Result<(), HdfsFault> {
        let gone = || HdfsFault::from(HdfsError::OperationFailed("an earlier call failed".into()));
        // Whatever happens from here on, it is not used again unless all went well.
        let mut writer = self.writer.take().ok_or_else(gone)?;
        let (at, block, added) = (self.len, self.block_bytes, bytes.len() as u64);
        let written = async {
            write_blocks(&mut writer, at, block, bytes).await?;
            if sync == Sync::Now {
                writer.hsync().await?;
            }
            Ok(())
        };
        within(patience, written).await?;
        self.hdfs.count(u64::from(sync == Sync::Now) + u64::from(at == 0));
        self.len += added;
        self.writer = Some(writer);
        Ok(())
    }

    /// Ends the file: by its writer, or if that fails or has failed by recovering the lease. Returns its length.
    ///
    /// # Errors
    /// As [`HdfsClient::close_for`].
    pub(super) async fn close(&mut self) -> Result<u64, HdfsFault> {
        self.hdfs.count(1);
        if let Some(mut writer) = self.writer.take() {
            match within(self.hdfs.write_timeout(), writer.close()).await {
                Ok(()) => return Ok(self.len),
                Err(error) => tracing::debug!(path = self.path, %error, "a file is closed for its writer"),
            }
        }
        // A close that failed is never repeated: the lease is recovered instead.
        self.hdfs.close_for(&self.path, RECOVERY_PATIENCE).await
    }
}

/// Writes bytes behind the `at` that are there. A block that becomes full is synced before the next one begins: the library
/// only closes it, and what is closed may be in the memory of DataNodes alone.
async fn write_blocks(
    writer: &mut FileWriter,
    mut at: u64,
    block: Option<u64>,
    mut bytes: Bytes,
) -> Result<(), HdfsError> {
    while let Some(block) = block.filter(|block| *block > 0) {
        let left = block - at % block;
        if left > bytes.len() as u64 {
            break;
        }
        let head = bytes.split_to(left as usize);
        at += left;
        writer.write_bytes(head).await?;
        writer.hsync().await?;
    }
    if !bytes.is_empty() {
        writer.write_bytes(bytes).await?;
    }
    Ok(())
}
