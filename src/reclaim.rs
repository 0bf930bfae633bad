//! Getting space back: deletes physical files that hold nothing that lives.
//!
//! A file is forgotten in the catalog first, by a durable commit; after a grace it is deleted from storage; then the
//! catalog drops its last trace. The queue is the catalog's list of forgotten files, so a crash between any two steps
//! leaves a file that is deleted again, which is harmless.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::catalog::command::Command;
use crate::catalog::{Catalog, CatalogError};
use crate::config::ReclaimSettings;
use crate::metrics::Metrics;
use crate::model::Millis;
use crate::store::DataStore;

/// Files deleted at a time; an object store takes up to 1,000 in one request.
const BATCH_FILES_MAX: usize = 500;

/// Deletes what the catalog has forgotten.
pub struct Deleter {
    /// What exists.
    pub catalog: Catalog,
    /// Where the files are.
    pub store: DataStore,
    /// Grace, rate and interval.
    pub settings: ReclaimSettings,
    /// Counts what is deleted.
    pub metrics: Metrics,
}

impl Deleter {
    /// Looks for files to delete at every interval, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            match self.round(&stop).await {
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "deleted files that held nothing that lives"),
                Err(error) => tracing::warn!(error = crate::error::chain(&error), "files could not be deleted"),
            }
        }
    }

    /// Deletes every file whose grace is over. Returns how many were deleted.
    ///
    /// # Errors
    /// [`CatalogError`]; what was not deleted is deleted later.
    pub async fn round(&self, stop: &CancellationToken) -> Result<usize, CatalogError> {
        let mut deleted = 0;
        while !stop.is_cancelled() {
            let grace = u64::try_from(self.settings.delete_grace.as_millis()).unwrap_or(u64::MAX);
            let until = Millis(self.catalog.now().0.saturating_sub(grace));
            let due = self.catalog.view().deletable_files(until, BATCH_FILES_MAX);
            if due.is_empty() {
                break;
            }
            // That they are forgotten must survive a crash before they are gone; and it must be ours to say.
            self.catalog.sync().await?;
            let (wanted, gone) = (due.len(), self.store.delete(due).await);
            deleted += gone.len();
            self.metrics.files_deleted.inc_by(gone.len() as u64);
            let pause =
                Duration::from_secs(1).mul_f64(wanted as f64 / f64::from(self.settings.deletes_per_second_max.max(1)));
            let all = gone.len() == wanted;
            self.catalog.execute(Command::FilesDeleted(gone)).await?;
            if !all {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Ok(deleted)
    }
}
