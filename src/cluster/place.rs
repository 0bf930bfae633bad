//! The store that several daemons share: where the cluster's maps and its catalog are.

use std::time::Duration;

use parking_lot::Mutex;

use super::maps::ClusterMaps;
use crate::catalog::slate::{Journal, JournalError, Present};
use crate::config::{Settings, StoreSettings};
use crate::engine::{OpeningError, StartProgress, TriedStore};
use crate::metrics::Metrics;
use crate::model::{ShardOf, StoreShards};
use crate::runtime::{Clock, Entropy};
use crate::store::{NumberedObjects, OpenError, OpenedStore, Placement, open, place_of_catalog};

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
    clock: Clock,
    entropy: Entropy,
    /// The store that it is a shard of, which was tried; `None` if it is no shard.
    parent: Option<OpenedStore>,
    shard: ShardOf,
    /// The store as it was found, once all of it was there.
    whole: Mutex<Option<TriedStore>>,
}

impl ClusterPlace {
    /// Of the store of `settings`. Nothing is asked of it.
    ///
    /// # Errors
    /// [`OpenError`] if there is no client for it.
    pub fn new(settings: &Settings, metrics: &Metrics, clock: &Clock, entropy: &Entropy) -> Result<Self, OpenError> {
        let catalog = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), metrics)?;
        let (settings, metrics, clock, entropy) = (settings.clone(), metrics.clone(), clock.clone(), entropy.clone());
        let (parent, shard) = (None, ShardOf::WHOLE);
        Ok(Self { catalog, settings, metrics, clock, entropy, parent, shard, whole: Mutex::default() })
    }

    /// The place of one shard of this store, as it was opened.
    pub fn of_shard(&self, shard: ShardOf, opened: &OpenedStore) -> Self {
        let settings = self.settings.of_shard(shard);
        let (metrics, clock, entropy) = (self.metrics.clone(), self.clock.clone(), self.entropy.clone());
        let catalog = shard.folder().map_or_else(|| self.catalog.clone(), |folders| self.catalog.below(&folders));
        let parent = Some(opened.clone());
        Self { catalog, settings, metrics, clock, entropy, parent, shard, whole: Mutex::default() }
    }

    /// Opens and tries a store that is divided: there is nothing at its root that could be looked at.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn opened(&self) -> Result<OpenedStore, OpenError> {
        // Each shard has a local copy of its own.
        let store = StoreSettings { local_copy: None, ..self.settings.store.clone() };
        open(&store, self.settings.catalog.url.as_ref(), &self.metrics, &self.entropy).await
    }

    /// The shards of the store, if it is divided.
    ///
    /// # Errors
    /// As [`Journal::shards`].
    pub async fn shards(&self) -> Result<Option<StoreShards>, JournalError> {
        Journal::shards(&self.catalog).await
    }

    /// Divides the store, if it is new, into `shards`. Returns those that it has then.
    ///
    /// # Errors
    /// As [`Journal::divide`].
    pub async fn divide(&self, shards: u32) -> Result<StoreShards, JournalError> {
        let divided = match shards {
            1 => self.shards().await?,
            _ => Journal::divide(&self.catalog, shards).await?,
        };
        Ok(divided.unwrap_or(StoreShards::UNDIVIDED))
    }

    /// Where the catalog is; that of the whole store, at its root.
    pub fn catalog(&self) -> &Placement {
        &self.catalog
    }

    /// The settings of its engine.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Looks at the store, opens and tries it. One that ignores conditions has no maps to agree on.
    ///
    /// # Errors
    /// [`OpeningError`].
    pub async fn tried(&self, progress: &StartProgress) -> Result<TriedStore, OpeningError> {
        if let Some(whole) = self.whole.lock().clone() {
            return Ok(whole);
        }
        let Self { settings, metrics, entropy, .. } = self;
        let tried = match &self.parent {
            None => TriedStore::open(settings, metrics, entropy, progress).await?,
            Some(parent) => {
                let opened = parent.of_shard(self.shard, &settings.store, metrics).await;
                TriedStore::of_shard(opened, settings, metrics, progress).await?
            }
        };
        // A local copy ends with the engine that has it.
        let stays = tried.is_whole() && self.settings.store.local_copy.is_none();
        *self.whole.lock() = stays.then(|| tried.clone());
        Ok(tried)
    }

    /// The maps; `None` where a name cannot be created once.
    pub fn maps(&self) -> Option<ClusterMaps> {
        let objects = NumberedObjects::beside(&self.catalog, MAPS, ".map")?;
        Some(ClusterMaps::new(objects, self.clock.clone(), self.entropy.clone(), self.metrics.clone()))
    }

    /// The epoch of the last owner of the catalog. Shuts nobody out.
    ///
    /// # Errors
    /// As [`Journal::last_epoch`].
    pub async fn last_epoch(&self) -> Result<u64, JournalError> {
        Journal::last_epoch(&self.catalog, EPOCH_PATIENCE).await
    }

    /// Whether maps that were there are gone: the catalog belongs to a cluster, and `maps` are none. Of a store that is divided: that of
    /// a shard does. The mark at its root is older than the first map.
    ///
    /// # Errors
    /// As [`Journal::is_of_cluster`].
    pub async fn misses(&self, maps: &ClusterMaps) -> Result<bool, JournalError> {
        if maps.known().number > 0 {
            return Ok(false);
        }
        let Some(shards) = self.shards().await? else { return self.is_of_cluster().await };
        for shard in shards.all() {
            if Journal::present(&self.catalog.below(&shard.folder().unwrap_or_default())).await? != Present::Nothing {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the catalog belongs to a cluster.
    ///
    /// # Errors
    /// As [`Journal::is_of_cluster`].
    pub async fn is_of_cluster(&self) -> Result<bool, JournalError> {
        Journal::is_of_cluster(&self.catalog).await
    }

    /// Makes the catalog one of a daemon by itself; of a store that is divided, those of all shards.
    ///
    /// # Errors
    /// As [`Journal::leave_cluster`].
    pub async fn leave_cluster(&self) -> Result<(), JournalError> {
        let Some(shards) = self.shards().await? else { return Journal::leave_cluster(&self.catalog).await };
        for shard in shards.all() {
            Journal::leave_cluster(&self.catalog.below(&shard.folder().unwrap_or_default())).await?;
        }
        Ok(())
    }
}
