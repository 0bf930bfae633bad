//! Deleting the files that the catalog has forgotten.
//!
//! A file is forgotten in the catalog first, by a durable commit; then it is deleted from storage, at once if it died, after
//! a grace if its segments were moved away or its upload was given up; then the catalog drops its last trace. The queue is
//! the catalog's list of forgotten files, so a crash between any two steps leaves a file that is deleted again, which is
//! harmless, and what storage refuses is tried until it is gone. A file that is still read waits for its readers, within
//! their deadline, and no other file waits for them.
//!
//! The catalog wakes the deleter when files are forgotten. A moment later it takes all that have been, so that what dies
//! with one checkpoint is deleted by one request to an object store. A file that waits for its grace, for readers, or for
//! storage that refused is looked at again when its time comes.
//!
//! On a local disk a file that holds data of which the catalog knows nothing was left open by the start. Once this daemon has
//! run for `reclaim.sweep-grace`, or by `esker gc --force`, it is closed, and from then on it is a file like any other.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sweep::{SetAside, SweepError, Sweeper};
use super::timing::{Pause, Timing};
use super::watch::{DeletionBacklog, Watch};
use crate::catalog::command::Command;
use crate::catalog::state::ForgottenFile;
use crate::catalog::{Catalog, CatalogError};
use crate::config::ReclaimSettings;
use crate::metrics::Metrics;
use crate::metrics::labels::{ReclaimedBytes, ReclaimedFiles};
use crate::model::{Forgotten, Millis, PhysicalFileId};
use crate::runtime::{Clock, Leases};
use crate::store::DataStore;

/// Files deleted at a time; an object store takes up to 1,000 in one request.
const BATCH_FILES_MAX: usize = 500;

/// Deletes what the catalog has forgotten, and sweeps.
pub struct Deleter {
    catalog: Catalog,
    store: DataStore,
    settings: ReclaimSettings,
    metrics: Metrics,
    leases: Leases,
    watch: Watch,
    sweeper: Sweeper,
    /// Files that wait for their readers.
    waiting: HashSet<PhysicalFileId>,
    /// The files that storage did not delete the last time.
    refused: HashSet<PhysicalFileId>,
    /// When that is tried again.
    retry_at: Option<Instant>,
    told: Told,
    begun: Instant,
    /// Whether the files that the start left open may be there.
    has_kept: bool,
}

crate::runtime::opaque_debug!(Deleter);

/// The files that were deleted since the log last told of it. Files die all the time; a line for each moment tells nobody
/// anything.
#[derive(Debug, Default)]
struct Told {
    deleted: usize,
    at: Option<Instant>,
}

impl Deleter {
    /// One for the daemon; `leases` are those of its readers.
    pub fn new(
        catalog: Catalog,
        store: DataStore,
        settings: ReclaimSettings,
        metrics: Metrics,
        leases: Leases,
        watch: Watch,
        sweeper: Sweeper,
    ) -> Self {
        let has_kept = store.capabilities().appends;
        Self {
            catalog,
            store,
            settings,
            metrics,
            leases,
            watch,
            sweeper,
            waiting: HashSet::new(),
            refused: HashSet::new(),
            retry_at: None,
            told: Told::default(),
            begun: Clock::instant(),
            has_kept,
        }
    }

    /// Returns the pause until the next one.
    pub(super) async fn round_at_interval(&mut self, stop: &CancellationToken) -> Pause {
        if self.store.is_lost()
            && let Err(error) = self.store.look().await
        {
            tracing::debug!(error = crate::error::chain(&error), "deleting waits for the store");
            return Pause { longest: self.settings.interval, rest: self.settings.interval };
        }
        let sweeps = self.settings.sweep_interval.is_some();
        if sweeps && self.begun.elapsed() >= self.settings.sweep_grace {
            self.let_go();
        }
        match self.delete_due(stop).await {
            Ok(deleted) => self.told.deleted += deleted,
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "files could not be deleted"),
        }
        self.tell();
        self.sweeper.round_if_due(self.settings.sweep_interval).await;
        self.pause()
    }

    fn tell(&mut self) {
        let lately = self.told.at.is_some_and(|at| at.elapsed() < self.settings.interval);
        if self.told.deleted == 0 || lately {
            return;
        }
        let deleted = std::mem::take(&mut self.told.deleted);
        self.told.at = Some(Clock::instant());
        let DeletionBacklog { readers, grace, rate, refused } =
            self.watch.waiting(&self.catalog.forgotten_files(), self.catalog.clock().ages());
        tracing::info!(
            deleted,
            bytes_being_read = readers,
            bytes_in_grace = grace,
            bytes_next = rate,
            bytes_refused = refused,
            "deleted files that nobody needs"
        );
    }

    /// Until the next file's grace is over, a reader may have left, or the round is due anyway.
    fn pause(&self) -> Pause {
        let Timing { collect, readers, .. } = Timing::of(&self.settings, self.store.capabilities().request);
        let ages = self.catalog.clock().ages();
        let forgotten = self.catalog.forgotten_times().into_iter();
        let graces = forgotten.map(|(why, since)| self.watch.grace.left(why, since, ages));
        // With those whose grace is over a moment later.
        let graces = graces.filter(|left| !left.is_zero()).map(|left| left + collect);
        let readers = (!self.waiting.is_empty()).then_some(readers);
        let soonest = graces.chain(readers).min();
        let longest = soonest.map_or(self.settings.interval, |soonest| soonest.min(self.settings.interval));
        Pause { longest, rest: collect }
    }

    /// Lists the files in `lost+found/`, and for how long each stays; it is `now`.
    ///
    /// # Errors
    /// [`SweepError::Store`].
    pub async fn set_aside_files(&self, now: Millis) -> Result<Vec<SetAside>, SweepError> {
        self.sweeper.set_aside_files(now).await
    }

    /// The next sweep deletes what it found twice, though it be most of what is there, and no file is kept any longer for
    /// data that the catalog does not know.
    pub fn force_sweep(&mut self) {
        self.sweeper.force();
        self.let_go();
    }

    /// Closes the files that the start left open.
    fn let_go(&mut self) {
        if !std::mem::take(&mut self.has_kept) {
            return;
        }
        for (file, len) in self.catalog.kept_files() {
            tracing::warn!(%file, "data in it that the catalog does not know is not kept any longer");
            if let Err(error) = self.catalog.note(Command::CloseFile(file, len)) {
                tracing::warn!(error = crate::error::chain(&error), "a file could not be closed");
            }
        }
    }

    /// Deletes every file whose time has come, what storage refused before among them. Returns how many were deleted.
    ///
    /// # Errors
    /// [`CatalogError`]; what was not deleted is deleted later.
    pub async fn round(&mut self, stop: &CancellationToken) -> Result<usize, CatalogError> {
        self.retry_at = None;
        self.delete_due(stop).await
    }

    async fn delete_due(&mut self, stop: &CancellationToken) -> Result<usize, CatalogError> {
        let deleted = self.delete_batches(stop).await;
        self.watch.held(self.waiting.iter(), self.refused.iter());
        deleted
    }

    async fn delete_batches(&mut self, stop: &CancellationToken) -> Result<usize, CatalogError> {
        let rate = self.settings.deletes_per_second_max.max(1);
        let mut deleted = 0;
        while !stop.is_cancelled() {
            let due = self.due(BATCH_FILES_MAX.min(usize::try_from(rate).unwrap_or(BATCH_FILES_MAX)));
            if due.is_empty() {
                self.waiting.clear();
                break;
            }
            if due.iter().all(|file| self.has_readers(file)) {
                break;
            }
            // That they are forgotten must survive a crash before they are gone; and it must be ours to say.
            self.catalog.sync().await?;
            if !self.store.capabilities().exclusive {
                self.catalog.check_owner().await?;
            }
            // After the sync, which takes a while: the later the look, the fewer readers are left.
            let ready = self.without_readers(due);
            if ready.is_empty() {
                break;
            }
            let wanted: Vec<PhysicalFileId> = ready.iter().map(|file| file.id.clone()).collect();
            let gone = self.store.delete(wanted).await;
            let (all, none) = (gone.len() == ready.len(), gone.is_empty());
            deleted += gone.len();
            self.count(&ready, &gone);
            self.waiting.retain(|file| !gone.contains(file));
            self.refused.retain(|file| !gone.contains(file));
            self.refused.extend(ready.iter().map(|file| file.id.clone()).filter(|file| !gone.contains(file)));
            // A crash before the next commit has them deleted again, which is harmless; nothing is spent on saying it now.
            self.catalog.note(Command::FilesDeleted(gone))?;
            if !all {
                self.retry_at = Some(Clock::instant() + self.settings.interval);
            }
            if none {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1).mul_f64(ready.len() as f64 / f64::from(rate))) => {}
            }
        }
        Ok(deleted)
    }

    /// The first `max` of the files whose grace is over. What storage has just refused is left out.
    fn due(&self, max: usize) -> Vec<ForgottenFile> {
        let ages = self.catalog.clock().ages();
        // Those that wait for readers, or that storage refused, must not keep the others from their turn.
        let most = max + self.waiting.len() + self.refused.len();
        let is_due = |why, since| self.watch.grace.left(why, since, ages).is_zero();
        let mut due = self.catalog.forgotten_files_due(is_due, most);
        if self.retry_at.is_some_and(|at| at > Clock::instant()) {
            due.retain(|file| !self.refused.contains(&file.id));
        }
        due.sort_by_key(|file| self.waiting.contains(&file.id) || self.refused.contains(&file.id));
        due.truncate(max);
        due
    }

    /// Whether it was seen to have readers, and has them still.
    fn has_readers(&self, file: &ForgottenFile) -> bool {
        self.waiting.contains(&file.id) && self.leases.is_read(&file.id)
    }

    /// The files that nobody reads. Nothing is found any more in a file that is forgotten, so it gets no new readers.
    fn without_readers(&mut self, due: Vec<ForgottenFile>) -> Vec<ForgottenFile> {
        let (waiting, ready): (Vec<_>, Vec<_>) = due.into_iter().partition(|file| self.leases.is_read(&file.id));
        self.waiting.extend(waiting.into_iter().map(|file| file.id));
        ready
    }

    fn count(&self, ready: &[ForgottenFile], gone: &[PhysicalFileId]) {
        self.metrics.files_deleted.inc_by(gone.len() as u64);
        for file in ready.iter().filter(|file| gone.contains(&file.id)) {
            self.metrics.reclaim_bytes.of(ReclaimedBytes::Freed).inc_by(file.occupied);
            if file.why == Forgotten::Died {
                self.metrics.reclaim_files.of(ReclaimedFiles::DiedWhole).inc();
            }
        }
    }
}
