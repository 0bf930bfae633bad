//! Files below `data/` that the catalog does not name: uploads that arrived after they were given up, what a daemon left
//! that lost its catalog.
//!
//! A file that a daemon is just about to name looks the same, and so does every file if the catalog is the wrong one. So a
//! file is litter only if this daemon has seen it unnamed for all of `reclaim.sweep-grace`, and only if the catalog looks like
//! the one that belongs to the files ([`super::guard`]). It is named in the log as soon as nobody can be about to name it, and
//! in `esker gc --dry-run` from the start.
//!
//! On a local disk such a file of an earlier owner is moved to `lost+found/`, by the start or when it is seen later; it is
//! deleted there after the same grace. A catalog that names it gets it back at its next start.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::guard::{Refused, check_unnamed};
use crate::catalog::state::State;
use crate::catalog::{Catalog, CatalogError};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::PhysicalFileId;
use crate::runtime::Clock;
use crate::store::{DataStore, LocalStore, StoreError};

/// Names in one line of the log.
const NAMES_MAX: usize = 10;

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
    /// Files that were deleted.
    pub deleted: usize,
    /// Files on a local disk that were moved to `lost+found/`.
    pub set_aside: usize,
}

/// A file that nobody names.
#[derive(Debug, Clone, Copy)]
struct Seen {
    since: Instant,
    /// Whether the log has its name.
    told: bool,
}

/// Looks for litter.
pub struct Sweeper {
    catalog: Catalog,
    store: DataStore,
    metrics: Metrics,
    /// Whoever writes a file names it within this time, or gives it up.
    writing: Duration,
    /// A file is not litter before it was unnamed for so long.
    grace: Duration,
    seen: HashMap<PhysicalFileId, Seen>,
    /// The files in `lost+found/`, and since when this daemon knows of them.
    aside: HashMap<PhysicalFileId, Instant>,
    last: Option<Instant>,
    forced: bool,
}

impl Sweeper {
    /// One for the daemon.
    pub fn new(catalog: Catalog, store: DataStore, settings: &Settings, metrics: Metrics) -> Self {
        let writing = 2 * (settings.store.request_timeout + settings.store.retry_timeout);
        let writing = settings.reclaim.delete_grace.max(writing);
        let grace = settings.reclaim.sweep_grace.max(writing);
        let (seen, aside) = (HashMap::new(), HashMap::new());
        Self { catalog, store, metrics, writing, grace, seen, aside, last: None, forced: false }
    }

    pub(super) fn force(&mut self) {
        self.forced = true;
        self.last = None;
    }

    /// Sweeps if the last time is `interval` ago; sooner while there are files to be seen a second time.
    pub(super) async fn round_if_due(&mut self, interval: Option<Duration>) {
        let Some(interval) = interval else { return };
        let interval = match self.seen.values().all(|seen| seen.told) {
            false => interval.min(self.writing),
            true if self.seen.is_empty() && self.aside.is_empty() => interval,
            true => interval.min(self.grace),
        };
        if self.last.is_some_and(|last| last.elapsed() < interval) {
            return;
        }
        self.last = Some(Clock::instant());
        match self.round().await {
            Ok(Swept { deleted, set_aside, listed, .. }) if deleted + set_aside > 0 => {
                tracing::info!(deleted, set_aside, listed, "swept files that the catalog does not name");
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
        self.metrics.unnamed_files.set(swept.unnamed.len() as i64);
        if swept.unnamed.is_empty() {
            self.forced = false;
        }
        self.see(&swept.unnamed);
        match check_unnamed(self.catalog.epoch(), &swept.unnamed, swept.listed) {
            Err(Refused::TooMuch { .. }) if self.forced => {}
            other => other?,
        }
        let now = Clock::instant();
        let old = |file: &&PhysicalFileId, age: Duration| {
            self.seen.get(*file).is_some_and(|seen| now.saturating_duration_since(seen.since) >= age)
        };
        match self.store.clone() {
            DataStore::Local(store) => {
                // Not this daemon's own: a commit that hangs as long as the disk does would name a file that is gone.
                let earlier = |file: &&PhysicalFileId| file.epoch() < self.catalog.epoch();
                let strays = swept.unnamed.iter().filter(|file| earlier(file) && old(file, self.writing));
                let strays = strays.cloned().collect();
                swept.set_aside = self.set_aside(&store, strays).await;
                swept.deleted = self.delete_aside(&store).await?;
            }
            DataStore::Object(_) => {
                let litter: Vec<_> = swept.unnamed.iter().filter(|file| old(file, self.grace)).cloned().collect();
                if litter.is_empty() {
                    return Ok(swept);
                }
                self.catalog.check_owner().await?;
                let gone = self.store.delete(litter).await;
                self.seen.retain(|file, _| !gone.contains(file));
                swept.deleted = gone.len();
            }
        }
        self.forced = false;
        self.metrics.swept_files.inc_by(swept.deleted as u64);
        Ok(swept)
    }

    /// Remembers what is unnamed, and tells of it once nobody can be about to name it.
    fn see(&mut self, unnamed: &[PhysicalFileId]) {
        let now = Clock::instant();
        let before = std::mem::take(&mut self.seen);
        let mut news = vec![];
        for file in unnamed {
            let mut seen = before.get(file).copied().unwrap_or(Seen { since: now, told: false });
            let ours = file.epoch() == self.catalog.epoch();
            if !seen.told && (!ours || now.saturating_duration_since(seen.since) >= self.writing) {
                seen.told = true;
                news.push(file);
            }
            self.seen.insert(file.clone(), seen);
        }
        if !news.is_empty() {
            let named: Vec<String> = news.iter().take(NAMES_MAX).map(ToString::to_string).collect();
            let (files, grace) = (news.len(), self.grace);
            tracing::warn!(
                files,
                names = named.join(" "),
                ?grace,
                "there are files that the catalog does not name; they are deleted after the grace"
            );
        }
    }

    async fn set_aside(&mut self, store: &LocalStore, strays: Vec<PhysicalFileId>) -> usize {
        let mut moved = 0;
        for file in strays {
            match store.set_aside(file.as_str()).await {
                Ok(_) => {
                    self.seen.remove(&file);
                    moved += 1;
                }
                Err(error) => {
                    tracing::warn!(%file, error = crate::error::chain(&error), "a file could not be set aside");
                }
            }
        }
        self.metrics.set_aside_files.inc_by(moved as u64);
        moved
    }

    /// Deletes what has lain in `lost+found/` for long enough.
    async fn delete_aside(&mut self, store: &LocalStore) -> Result<usize, SweepError> {
        let now = Clock::instant();
        let before = std::mem::take(&mut self.aside);
        let since = |file: &PhysicalFileId| before.get(file).copied().unwrap_or(now);
        let aside = store.set_aside_files().await?;
        self.aside = aside.into_iter().map(|file| (file.clone(), since(&file))).collect();
        let old = |since: &Instant| now.saturating_duration_since(*since) >= self.grace;
        let litter: Vec<_> = self.aside.iter().filter(|(_, since)| old(since)).map(|(file, _)| file.clone()).collect();
        let mut deleted = 0;
        for file in litter {
            store.delete_set_aside(&file).await?;
            self.aside.remove(&file);
            deleted += 1;
        }
        Ok(deleted)
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
