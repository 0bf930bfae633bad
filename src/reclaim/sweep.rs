//! Files below `data/` that the catalog does not name: uploads that arrived after they were given up, what a daemon left
//! that lost its catalog.
//!
//! A file that a daemon is just about to name looks the same, and so does every file if the catalog is the wrong one. So a
//! file is litter only if this daemon has seen it unnamed for all of `reclaim.sweep-grace`, and only if the catalog looks like
//! the one that belongs to the files ([`super::guard`]). It is named in the log as soon as nobody can be about to name it, and
//! in `esker gc --dry-run` from the start.
//!
//! On a local disk such a file of an earlier owner is moved to `lost+found/`, by the start or when it is seen later; it is
//! deleted there after the same grace, and `esker gc --dry-run` lists it until then. A catalog that names it gets it back at
//! its next start.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::guard::{Refused, check_unnamed};
use crate::catalog::{Catalog, CatalogError};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{Millis, PhysicalFileId};
use crate::runtime::Clock;
use crate::store::{DataStore, StoreError};

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

/// The result of one sweep.
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

/// A file in `lost+found/` of a local disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The name that it had.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The time for which it is kept. `None` before a sweep has seen it there, and for a name that no daemon gives, which
    /// is never deleted.
    pub kept: Option<Retention>,
}

/// The time for which a file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// When this daemon first saw it there.
    pub since: Millis,
    /// The time from which on a sweep deletes it.
    pub until: Millis,
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
    /// Time within which whoever writes a file names it, or gives it up.
    writing: Duration,
    /// A file is not litter before it was unnamed for so long.
    grace: Duration,
    seen: HashMap<PhysicalFileId, Seen>,
    /// The files in `lost+found/`, and since when this daemon knows of them.
    aside: HashMap<PhysicalFileId, Instant>,
    last: Option<Instant>,
    forced: bool,
    /// As many of them as the metric has been told of, beside those of other shards.
    told: i64,
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.metrics.unnamed_files.sub(self.told);
    }
}

crate::runtime::opaque_debug!(Sweeper);

impl Sweeper {
    /// One for the daemon.
    pub fn new(catalog: Catalog, store: DataStore, settings: &Settings, metrics: Metrics) -> Self {
        let writing = 2 * (settings.store.request_timeout + settings.store.retry_timeout);
        let writing = settings.reclaim.delete_grace.max(writing);
        let grace = settings.reclaim.sweep_grace.max(writing);
        let (seen, aside) = (HashMap::new(), HashMap::new());
        Self { catalog, store, metrics, writing, grace, seen, aside, last: None, forced: false, told: 0 }
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
        if swept.unnamed.is_empty() {
            self.forced = false;
        }
        self.see(&swept.unnamed);
        self.see_aside().await?;
        self.count();
        match check_unnamed(self.catalog.epoch(), &swept.unnamed, swept.listed) {
            Err(Refused::TooMuch { .. }) if self.forced => {}
            other => other?,
        }
        let now = Clock::instant();
        let old = |file: &&PhysicalFileId, age: Duration| {
            self.seen.get(*file).is_some_and(|seen| now.saturating_duration_since(seen.since) >= age)
        };
        if self.store.capabilities().sets_aside {
            // Not this daemon's own: a commit that hangs as long as the disk does would name a file that is gone.
            let earlier = |file: &&PhysicalFileId| file.epoch() < self.catalog.epoch();
            let strays = swept.unnamed.iter().filter(|file| earlier(file) && old(file, self.writing));
            let strays = strays.cloned().collect();
            swept.set_aside = self.set_aside(strays).await;
            let deleted = self.delete_aside().await;
            self.count();
            swept.deleted = deleted?;
        } else {
            let litter: Vec<_> = swept.unnamed.iter().filter(|file| old(file, self.grace)).cloned().collect();
            if litter.is_empty() {
                return Ok(swept);
            }
            // After the list: a successor may have named a file since, and this daemon's catalog would not know.
            self.catalog.check_owner().await?;
            let gone = self.store.delete(litter).await;
            self.seen.retain(|file, _| !gone.contains(file));
            self.count();
            swept.deleted = gone.len();
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

    async fn set_aside(&mut self, strays: Vec<PhysicalFileId>) -> usize {
        let mut moved = 0;
        for file in strays {
            match self.store.set_aside(file.as_str()).await {
                Ok(_) => {
                    self.seen.remove(&file);
                    self.aside.insert(file, Clock::instant());
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

    /// Remembers what lies in `lost+found/`.
    async fn see_aside(&mut self) -> Result<(), SweepError> {
        let now = Clock::instant();
        let aside = list_aside(&self.store).await?;
        let before = std::mem::take(&mut self.aside);
        for file in aside.iter().filter_map(|(name, _)| name.parse::<PhysicalFileId>().ok()) {
            let since = before.get(&file).copied().unwrap_or(now);
            self.aside.insert(file, since);
        }
        Ok(())
    }

    fn count(&mut self) {
        let now = (self.seen.len() + self.aside.len()) as i64;
        self.metrics.unnamed_files.add(now - std::mem::replace(&mut self.told, now));
    }

    /// Lists the files in `lost+found/`, and for how long each stays; it is `now`.
    pub(super) async fn set_aside_files(&self, now: Millis) -> Result<Vec<SetAside>, SweepError> {
        let instant = Clock::instant();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let kept = |file: PhysicalFileId| {
            let since =
                Millis(now.0.saturating_sub(millis(instant.saturating_duration_since(*self.aside.get(&file)?))));
            Some(Retention { since, until: Millis(since.0.saturating_add(millis(self.grace))) })
        };
        let listed = list_aside(&self.store).await?;
        Ok(set_aside(listed, kept))
    }

    /// Deletes what has lain in `lost+found/` for long enough.
    async fn delete_aside(&mut self) -> Result<usize, SweepError> {
        let now = Clock::instant();
        let old = |since: &Instant| now.saturating_duration_since(*since) >= self.grace;
        let litter: Vec<_> = self.aside.iter().filter(|(_, since)| old(since)).map(|(file, _)| file.clone()).collect();
        let mut deleted = 0;
        for file in litter {
            self.store.delete_set_aside(&file).await?;
            self.aside.remove(&file);
            deleted += 1;
        }
        Ok(deleted)
    }
}

/// The names and lengths of what lies in `lost+found/`; nothing where there is no such folder.
///
/// # Errors
/// [`StoreError`] if storage does not say.
pub async fn list_aside(store: &DataStore) -> Result<Vec<(String, u64)>, StoreError> {
    if store.capabilities().sets_aside { store.set_aside_files().await } else { Ok(vec![]) }
}

/// Reads a list of [`list_aside`]; `kept` says for how long a file is kept.
pub fn set_aside(listed: Vec<(String, u64)>, kept: impl Fn(PhysicalFileId) -> Option<Retention>) -> Vec<SetAside> {
    let told = |(name, bytes): (String, u64)| SetAside { kept: name.parse().ok().and_then(&kept), name, bytes };
    listed.into_iter().map(told).collect()
}

/// Lists the files that the catalog does not name. The list is taken first: a file that it shows and that is named since is
/// named.
///
/// # Errors
/// [`SweepError::Store`].
pub async fn look(catalog: &Catalog, store: &DataStore) -> Result<Swept, SweepError> {
    let listed = store.list().await?;
    Ok(unnamed(listed, |files| catalog.unknown_files(files)))
}

/// Filters a list of names and lengths for those that the catalog does not name: `unknown` says which files it does not
/// know.
pub fn unnamed(listed: Vec<(String, u64)>, unknown: impl FnOnce(Vec<PhysicalFileId>) -> Vec<PhysicalFileId>) -> Swept {
    let mut swept = Swept { listed: listed.len(), ..Swept::default() };
    let mut files = vec![];
    for (name, _) in listed {
        match name.parse::<PhysicalFileId>() {
            Ok(file) => files.push(file),
            Err(_) => swept.foreign.push(name),
        }
    }
    swept.unnamed = unknown(files);
    swept
}
