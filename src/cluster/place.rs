//! The store that several daemons share: where the cluster's maps and its catalog are.

use std::time::Duration;

use parking_lot::Mutex;

use super::maps::ClusterMaps;
use crate::catalog::slate::{Journal, JournalError};
use crate::config::Settings;
use crate::engine::{OpeningError, StartProgress, TriedStore};
use crate::metrics::Metrics;
use crate::runtime::Entropy;
use crate::store::{NumberedObjects, OpenError, Placement, place_of_catalog};

/// The folder of the maps, beside that of the catalog.
const MAPS: &str = "cluster/map";
/// Storage tells within this time which epoch a catalog has, or is asked again.
const EPOCH_PATIENCE: Duration = Duration::from_secs(3);

/// The store of a cluster, as a member sees it.
#[derive(Debug)]
pub struct ClusterPlace {
    catalog: Placement,
    settings: Settings,
    metrics: Metrics,
    entropy: Entropy,
    /// The store as it was found, once all of it was there.
    whole: Mutex<Option<TriedStore>>,
}

impl ClusterPlace {
    /// Of the store of `settings`. Nothing is asked of it.
    ///
    /// # Errors
    /// [`OpenError`] if there is no client for it.
    pub fn new(settings: &Settings, metrics: &Metrics, entropy: &Entropy) -> Result<Self, OpenError> {
        let catalog = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), metrics)?;
        let (settings, metrics, entropy) = (settings.clone(), metrics.clone(), entropy.clone());
        Ok(Self { catalog, settings, metrics, entropy, whole: Mutex::default() })
    }

    /// Looks at the store, opens and tries it. One that ignores conditions has no maps to agree on.
    ///
    /// # Errors
    /// [`OpeningError`].
    pub async fn tried(&self, progress: &StartProgress) -> Result<TriedStore, OpeningError> {
        if let Some(whole) = self.whole.lock().clone() {
            return Ok(whole);
        }
        let tried = TriedStore::open(&self.settings, &self.metrics, &self.entropy, progress).await?;
        // A local copy ends with the engine that has it.
        let stays = tried.is_whole() && self.settings.store.local_copy.is_none();
        *self.whole.lock() = stays.then(|| tried.clone());
        Ok(tried)
    }

    /// The maps; `None` where a name cannot be created once.
    pub fn maps(&self) -> Option<ClusterMaps> {
        let objects = NumberedObjects::beside(&self.catalog, MAPS, ".map")?;
        Some(ClusterMaps::new(objects, self.entropy.clone(), self.metrics.clone()))
    }

    /// The epoch of the last owner of the catalog. Shuts nobody out.
    ///
    /// # Errors
    /// As [`Journal::last_epoch`].
    pub async fn last_epoch(&self) -> Result<u64, JournalError> {
        Journal::last_epoch(&self.catalog, EPOCH_PATIENCE).await
    }

    /// Whether maps that were there are gone: the catalog belongs to a cluster, and `maps` are none.
    ///
    /// # Errors
    /// As [`Journal::is_of_cluster`].
    pub async fn misses(&self, maps: &ClusterMaps) -> Result<bool, JournalError> {
        Ok(maps.known().number == 0 && self.is_of_cluster().await?)
    }

    /// Whether the catalog belongs to a cluster.
    ///
    /// # Errors
    /// As [`Journal::is_of_cluster`].
    pub async fn is_of_cluster(&self) -> Result<bool, JournalError> {
        Journal::is_of_cluster(&self.catalog).await
    }

    /// Makes the catalog one of a daemon by itself.
    ///
    /// # Errors
    /// As [`Journal::leave_cluster`].
    pub async fn leave_cluster(&self) -> Result<(), JournalError> {
        Journal::leave_cluster(&self.catalog).await
    }
}
