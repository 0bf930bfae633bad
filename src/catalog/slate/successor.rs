//! Whether another daemon has opened the journal, as storage tells.
//!
//! SlateDB asks that once a poll interval. That is enough for an owner that is idle, but not for one that writes: a
//! successor takes the log over at the first name that the owner has not used yet, and an owner that writes faster than
//! the successor reads would keep it out until its next poll. So an owner also looks after every few groups.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use slatedb::admin::Admin;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::JournalError;
use super::settings::JournalSettings;

/// Groups between two looks: one read for so many writes, and an owner that lost stops after so many.
const GROUPS_PER_LOOK: u64 = 16;

/// Looks for an owner that is newer than this one.
pub(super) struct Successor {
    admin: Admin,
    epoch: u64,
    /// Longest time for one look: the database repeats a failed read for ever.
    patience: Duration,
    due: Notify,
    found: CancellationToken,
}

impl Successor {
    /// Looks out for successors of the owner with this epoch.
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path, epoch: u64, settings: &JournalSettings) -> Self {
        let admin = Admin::builder(prefix, store).build();
        let patience = settings.manifest_timeout;
        Self { admin, epoch, patience, due: Notify::new(), found: CancellationToken::new() }
    }

    /// Cancelled when there is one.
    pub(super) fn found(&self) -> &CancellationToken {
        &self.found
    }

    /// Tells that so many groups were written.
    pub(super) fn wrote(&self, groups: u64) {
        if groups.is_multiple_of(GROUPS_PER_LOOK) {
            self.due.notify_one();
        }
    }

    /// Looks whenever that is due. Resolves when a successor was found, by whoever looked.
    pub(super) async fn watch(&self) {
        while !self.found.is_cancelled() {
            tokio::select! {
                () = self.found.cancelled() => {}
                () = self.due.notified() => {
                    if let Err(error) = self.look().await {
                        tracing::debug!(%error, "storage does not tell whether there is a newer owner");
                    }
                }
            }
        }
    }

    /// Looks now.
    ///
    /// # Errors
    /// `Fenced` if there is a successor; `Unavailable` or `Corrupt` if storage does not tell.
    pub(super) async fn look(&self) -> Result<(), JournalError> {
        if epoch_on_record(&self.admin, self.patience).await? > self.epoch {
            self.found.cancel();
            return Err(JournalError::Fenced);
        }
        Ok(())
    }
}

/// The epoch of the last owner; 0 if there was none.
pub(super) async fn last_epoch(
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    patience: Duration,
) -> Result<u64, JournalError> {
    epoch_on_record(&Admin::builder(prefix, store).build(), patience).await
}

async fn epoch_on_record(admin: &Admin, patience: Duration) -> Result<u64, JournalError> {
    let read = tokio::time::timeout(patience, admin.read_manifest(None)).await;
    let manifest = read.map_err(|late| JournalError::Unavailable(late.into()))??;
    Ok(manifest.map_or(0, |manifest| manifest.writer_epoch()))
}
