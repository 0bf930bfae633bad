//! Files below `data/` that the catalog does not name: uploads that arrived after they were given up, what a daemon left
//! that lost its catalog.
//!
//! A file that a daemon is just about to name looks the same. So a file is litter only if it was seen twice, with more than
//! a grace between, and was not named either time; and only if the catalog looks like the one that belongs to the files
//! ([`super::guard`]). On a local disk the start has deleted what was there, under the folder's lock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::guard::{Refused, check_unnamed};
use crate::catalog::state::State;
use crate::catalog::{Catalog, CatalogError};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::PhysicalFileId;
use crate::runtime::Clock;
use crate::store::{DataStore, StoreError};

/// Why a sweep did not delete what it might have.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Something is off.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Storage does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog is lost.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What one sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files below `data/`.
    pub listed: usize,
    /// Files that the catalog does not name.
    pub unnamed: Vec<PhysicalFileId>,
    /// Names that no daemon gives, as they are; never deleted.
    pub foreign: Vec<String>,
    /// Of the unnamed ones, those that were deleted.
    pub deleted: usize,
}

/// Looks for litter.
pub struct Sweeper {
    catalog: Catalog,
    store: DataStore,
    metrics: Metrics,
    /// A file is not litter before it was unnamed for so long.
    apart: Duration,
    seen: HashMap<PhysicalFileId, Instant>,
    last: Option<Instant>,
    forced: bool,
}

impl Sweeper {
    /// One for the daemon.
    pub fn new(catalog: Catalog, store: DataStore, settings: &Settings, metrics: Metrics) -> Self {
        // Whoever writes a file names it within the time of its requests, or gives it up.
        let writing = 2 * (settings.store.request_timeout + settings.store.retry_timeout);
        let apart = settings.reclaim.delete_grace.max(writing);
        Self { catalog, store, metrics, apart, seen: HashMap::new(), last: None, forced: false }
    }

    pub(super) fn force(&mut self) {
        self.forced = true;
        self.last = None;
    }

    /// Sweeps if the last time is `interval` ago; sooner while there are files to be seen a second time.
    pub(super) async fn round_if_due(&mut self, interval: Option<Duration>) {
        let Some(interval) = interval else { return };
        let interval = if self.seen.is_empty() { interval } else { interval.min(self.apart) };
        if self.last.is_some_and(|last| last.elapsed() < interval) {
            return;
        }
        self.last = Some(Clock::instant());
        match self.round().await {
            Ok(swept) if swept.deleted > 0 => {
                tracing::info!(
                    deleted = swept.deleted,
                    listed = swept.listed,
                    "swept files that the catalog does not name"
                );
            }
            Ok(_) => {}
            Err(SweepError::Refused(refused)) => tracing::error!(%refused, "the sweep refuses to act"),
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "the sweep goes on later"),
        }
    }

    /// Lists what is there and deletes what has been litter for long enough.
    ///
    /// # Errors
    /// [`SweepError`]; nothing was deleted then.
    pub async fn round(&mut self) -> Result<Swept, SweepError> {
        let mut swept = look(&self.catalog, &self.store).await?;
        if swept.unnamed.is_empty() {
            self.forced = false;
        }
        let now = Clock::instant();
        let before = std::mem::take(&mut self.seen);
        let first_seen = |file: &PhysicalFileId| before.get(file).copied().unwrap_or(now);
        self.seen = swept.unnamed.iter().map(|file| (file.clone(), first_seen(file))).collect();
        match check_unnamed(self.catalog.epoch(), &swept.unnamed, swept.listed) {
            Err(Refused::TooMuch { .. }) if self.forced => {}
            other => other?,
        }
        let old = |file: &&PhysicalFileId| self.seen.get(*file).is_some_and(|seen| now - *seen >= self.apart);
        let litter: Vec<PhysicalFileId> = swept.unnamed.iter().filter(old).cloned().collect();
        if litter.is_empty() {
            return Ok(swept);
        }
        self.catalog.check_owner().await?;
        let gone = self.store.delete(litter).await;
        self.seen.retain(|file, _| !gone.contains(file));
        swept.deleted = gone.len();
        self.forced = false;
        self.metrics.swept_files.inc_by(gone.len() as u64);
        Ok(swept)
    }
}

/// What is there that the catalog does not name. The list is taken first: what it shows and is named since is named.
///
/// # Errors
/// [`SweepError::Store`].
pub async fn look(catalog: &Catalog, store: &DataStore) -> Result<Swept, SweepError> {
    let listed = store.list().await?;
    Ok(unnamed(&catalog.view(), listed))
}

/// What of a list of names and lengths the catalog does not name.
pub fn unnamed(state: &State, listed: Vec<(String, u64)>) -> Swept {
    let mut swept = Swept { listed: listed.len(), ..Swept::default() };
    for (name, _) in listed {
        match name.parse::<PhysicalFileId>() {
            Ok(file) if state.file(&file).is_none() => swept.unnamed.push(file),
            Ok(_) => {}
            Err(_) => swept.foreign.push(name),
        }
    }
    swept
}
