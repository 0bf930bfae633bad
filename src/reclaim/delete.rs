//! Deleting the files that the catalog has forgotten.
//!
//! A file is forgotten in the catalog first, by a durable commit; then it is deleted from storage, at once if it died, after
//! a grace if its segments were moved away or its upload was given up; then the catalog drops its last trace. The queue is
//! the catalog's list of forgotten files, so a crash between any two steps leaves a file that is deleted again, which is
//! harmless, and what storage refuses is tried until it is gone.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::sweep::Sweeper;
use crate::catalog::command::Command;
use crate::catalog::record::Forgotten;
use crate::catalog::state::ForgottenFile;
use crate::catalog::{Catalog, CatalogError};
use crate::config::ReclaimSettings;
use crate::metrics::Metrics;
use crate::model::PhysicalFileId;
use crate::runtime::Leases;
use crate::store::DataStore;

/// Files deleted at a time; an object store takes up to 1,000 in one request.
const BATCH_FILES_MAX: usize = 500;
/// Pause before a look for readers that have left meanwhile.
const READERS_PAUSE: Duration = Duration::from_secs(1);

/// Deletes what the catalog has forgotten, and sweeps.
pub struct Deleter {
    catalog: Catalog,
    store: DataStore,
    settings: ReclaimSettings,
    metrics: Metrics,
    leases: Leases,
    sweeper: Sweeper,
    /// Files that wait for their readers.
    waiting: HashSet<PhysicalFileId>,
    /// What storage did not delete the last time.
    refused: HashSet<PhysicalFileId>,
}

impl Deleter {
    /// One for the daemon; `leases` are those of its readers.
    pub fn new(
        catalog: Catalog,
        store: DataStore,
        settings: ReclaimSettings,
        metrics: Metrics,
        leases: Leases,
        sweeper: Sweeper,
    ) -> Self {
        Self { catalog, store, settings, metrics, leases, sweeper, waiting: HashSet::new(), refused: HashSet::new() }
    }

    /// Returns the pause until the next one.
    pub(super) async fn round_at_interval(&mut self, stop: &CancellationToken) -> Duration {
        if self.store.is_lost()
            && let Err(error) = self.store.look().await
        {
            tracing::debug!(error = crate::error::chain(&error), "deleting waits for the store");
            return self.settings.interval;
        }
        match self.round(stop).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted files that nobody needs"),
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "files could not be deleted"),
        }
        self.sweeper.round_if_due(self.settings.sweep_interval).await;
        if self.waiting.is_empty() { self.settings.interval } else { READERS_PAUSE.min(self.settings.interval) }
    }

    /// The next sweep deletes what it found twice, though it be most of what is there.
    pub fn force_sweep(&mut self) {
        self.sweeper.force();
    }

    /// Deletes every file whose time has come. Returns how many were deleted.
    ///
    /// # Errors
    /// [`CatalogError`]; what was not deleted is deleted later.
    pub async fn round(&mut self, stop: &CancellationToken) -> Result<usize, CatalogError> {
        let mut deleted = 0;
        while !stop.is_cancelled() {
            let due = self.due();
            if due.is_empty() {
                self.waiting.clear();
                self.refused.clear();
                break;
            }
            if due.iter().all(|file| self.has_readers(file)) {
                break;
            }
            // That they are forgotten must survive a crash before they are gone; and it must be ours to say.
            self.catalog.sync().await?;
            if let DataStore::Object(_) = self.store {
                self.catalog.check_owner().await?;
            }
            let ready = self.without_readers(due);
            if ready.is_empty() {
                break;
            }
            let wanted: Vec<PhysicalFileId> = ready.iter().map(|file| file.id.clone()).collect();
            let gone = self.store.delete(wanted).await;
            let all = gone.len() == ready.len();
            deleted += gone.len();
            self.count(&ready, &gone);
            self.waiting.retain(|file| !gone.contains(file));
            self.refused = ready.iter().map(|file| file.id.clone()).filter(|file| !gone.contains(file)).collect();
            self.catalog.execute(Command::FilesDeleted(gone)).await?;
            if !all {
                break;
            }
            let rate = f64::from(self.settings.deletes_per_second_max.max(1));
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1).mul_f64(ready.len() as f64 / rate)) => {}
            }
        }
        Ok(deleted)
    }

    /// The first of the files whose grace is over.
    fn due(&self) -> Vec<ForgottenFile> {
        // Those that wait for readers, or that storage refused, must not keep the others from their turn.
        let max = BATCH_FILES_MAX + self.waiting.len() + self.refused.len();
        let local = matches!(self.store, DataStore::Local(_));
        let ages = self.catalog.clock().ages();
        let is_due = |why, since| match why {
            Forgotten::Died => true,
            // Nothing arrives late on a disk of one's own.
            Forgotten::GivenUp if local => true,
            // As watched by this process: had the machine's clock been set, the grace would not have passed for others.
            Forgotten::GivenUp | Forgotten::Moved => ages.watched(since) >= self.settings.delete_grace,
        };
        let mut due = self.catalog.view().forgotten_files(is_due, max);
        due.sort_by_key(|file| self.waiting.contains(&file.id) || self.refused.contains(&file.id));
        due.truncate(BATCH_FILES_MAX);
        due
    }

    /// Whether it was seen to have readers, and has them still.
    fn has_readers(&self, file: &ForgottenFile) -> bool {
        self.waiting.contains(&file.id) && self.leases.is_read(&file.id)
    }

    /// Those that nobody reads. Nothing is found any more in a file that is forgotten, so it gets no new readers.
    fn without_readers(&mut self, due: Vec<ForgottenFile>) -> Vec<ForgottenFile> {
        let (waiting, ready): (Vec<_>, Vec<_>) = due.into_iter().partition(|file| self.leases.is_read(&file.id));
        self.waiting.extend(waiting.into_iter().map(|file| file.id));
        ready
    }

    fn count(&self, ready: &[ForgottenFile], gone: &[PhysicalFileId]) {
        self.metrics.files_deleted.inc_by(gone.len() as u64);
        for file in ready.iter().filter(|file| gone.contains(&file.id)) {
            self.metrics.reclaim_bytes.with_label_values(&["freed"]).inc_by(file.occupied);
            if file.why == Forgotten::Died {
                self.metrics.reclaim_files.with_label_values(&["died_whole"]).inc();
            }
        }
    }
}
