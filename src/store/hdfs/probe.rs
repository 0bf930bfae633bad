//! Whether an HDFS folder keeps its word: names are taken once, what is synced counts, and a writer can be shut out.

use std::time::Duration;

use bytes::Bytes;
use hdfs_native::HdfsError;

use super::client::{HdfsClient, HdfsFault, within};
use crate::store::probe::ABANDONED_AFTER;

/// The bytes that are written.
const TEXT: &[u8] = b"esker\n";
/// A lease has to be recovered within so long.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);

/// Why a folder is not fit to be a store.
#[derive(Debug, thiserror::Error)]
pub enum HdfsProbeError {
    /// Its files are erasure-coded.
    #[error(
        "{folder} is erasure-coded, and such files cannot be synced while they are open: take a folder that is replicated \
         (`hdfs ec -setPolicy -replicate -path {folder}`)"
    )]
    ErasureCoded {
        /// The folder.
        folder: String,
    },
    /// Its files are encrypted by their clients.
    #[error(
        "{folder} is in an encryption zone, whose files the client of HDFS in Esker can neither write nor read: take a folder \
         outside of it (`hdfs crypto -listZones` tells which there are)"
    )]
    EncryptionZone {
        /// The folder.
        folder: String,
    },
    /// Two creates or renames of one name succeeded.
    #[error("a name that is taken was given once more by {0}: two daemons could both own the store")]
    TakenTwice(&'static str),
    /// A synced file has another length than was written.
    #[error("a synced file of {written} bytes has {found}")]
    Length {
        /// Bytes that were synced.
        written: u64,
        /// The length that the NameNode tells.
        found: u64,
    },
    /// A call failed.
    #[error("HDFS does not do the probe's {step}")]
    Failed {
        /// The step that was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Tries what the store relies on with two files in `name` of `folder`, and deletes them, and with them what daemons that were
/// killed have left in the folder. Remembers the size of a block.
///
/// # Errors
/// [`HdfsProbeError`].
pub(crate) async fn probe_hdfs(hdfs: &HdfsClient, folder: &str, name: &str) -> Result<(), HdfsProbeError> {
    let (folder, own) = (hdfs.at(folder), hdfs.at(&format!("{folder}/{name}")));
    let (first, second) = (format!("{own}/1"), format!("{own}/2"));
    let answer = try_out(hdfs, &first, &second).await;
    for path in [&first, &second, &own] {
        if let Err(error) = hdfs.delete(path).await {
            tracing::warn!(path, %error, "what the probe wrote could not be deleted");
        }
    }
    let created = answer?;
    let age = u64::try_from(ABANDONED_AFTER.num_milliseconds()).unwrap_or(u64::MAX);
    if let Err(error) = delete_abandoned(hdfs, &folder, created.saturating_sub(age)).await {
        tracing::warn!(folder, %error, "what killed daemons have left of their probes could not be deleted");
    }
    Ok(())
}

/// Deletes what is older, all by the clock of the NameNode, and the folder itself if that was all.
pub(super) async fn delete_abandoned(hdfs: &HdfsClient, folder: &str, before: u64) -> Result<(), HdfsFault> {
    let mut found = hdfs.list(folder, true).await?;
    found.retain(|status| status.modification_time < before);
    // Folders behind what is in them.
    found.sort_by(|one, other| other.path.cmp(&one.path));
    let paths = found.iter().map(|status| status.path.as_str());
    for path in paths.chain([folder]) {
        match hdfs.delete(path).await {
            Err(error) if !error.is_not_empty() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// When the NameNode says that the first file was written.
async fn try_out(hdfs: &HdfsClient, first: &str, second: &str) -> Result<u64, HdfsProbeError> {
    let failed = |step| move |source: HdfsFault| HdfsProbeError::Failed { step, source: source.into() };
    let created = hdfs.create(first).await;
    let mut writer = created.map_err(|error| match error.is_encryption_zone() {
        true => HdfsProbeError::EncryptionZone { folder: hdfs.root().to_owned() },
        false => failed("create")(error),
    })?;
    match hdfs.create(first).await {
        Err(error) if error.is_taken() => {}
        Err(error) => return Err(failed("second create")(error)),
        Ok(_) => return Err(HdfsProbeError::TakenTwice("create")),
    }
    let synced = within(hdfs.write_timeout(), async {
        writer.write_bytes(Bytes::from_static(TEXT)).await?;
        writer.hsync().await
    });
    synced.await.map_err(|error| match &error {
        HdfsFault::Hdfs(HdfsError::OperationFailed(why)) if why.contains("erasure-coded") => {
            HdfsProbeError::ErasureCoded { folder: hdfs.root().to_owned() }
        }
        _ => failed("write and sync")(error),
    })?;
    // As a successor does: without it, a daemon that was shut out might go on writing.
    let found = hdfs.close_for(first, RECOVERY_PATIENCE).await.map_err(failed("recovery of a lease"))?;
    drop(writer);
    if found != TEXT.len() as u64 {
        return Err(HdfsProbeError::Length { written: TEXT.len() as u64, found });
    }
    let mut other = hdfs.create(second).await.map_err(failed("create"))?;
    within(hdfs.write_timeout(), other.close()).await.map_err(failed("close"))?;
    match hdfs.rename(second, first, false).await {
        Err(error) if error.is_taken() => {}
        Err(error) => return Err(failed("rename to a name that is taken")(error)),
        Ok(()) => return Err(HdfsProbeError::TakenTwice("a rename")),
    }
    let status = hdfs.info(first).await.map_err(failed("look"))?;
    if status.replication == Some(1) {
        tracing::warn!(
            folder = hdfs.root(),
            "files here have one replica: a lost disk loses what was answered, and a DataNode that is away makes it unreadable; \
             set store.hdfs.replication"
        );
    }
    hdfs.learn_block_bytes(status.blocksize);
    Ok(status.modification_time)
}
