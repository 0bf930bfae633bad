//! A new catalog of one shard, which nobody else opens before it is filled.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{RefillError, Tools};
use crate::catalog::slate::{Journal, JournalClaim, JournalSettings, Snapshot};
use crate::catalog::state::{CatalogState, DividedRecord, SegmentView};
use crate::config::Settings;
use crate::engine::identity::{self, Owned, Taker};
use crate::engine::open::take_over;
use crate::engine::progress::StartProgress;
use crate::error::chain;
use crate::model::{Holder, PhysicalFileId, ShardOf};
use crate::store::{DataStore, OpenedStore, Placement};

/// Records, and bytes of them, that are written at once.
pub(super) const BATCH_RECORDS: usize = 5_000;
const BATCH_BYTES: usize = 4 << 20;
/// A catalog that is not finished is closed within this time, or not.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A new catalog, and the files beside it.
pub struct Filling {
    shard: ShardOf,
    catalog: Placement,
    journal: Journal,
    owned: Owned,
    /// Files that an earlier run has recorded.
    recorded: BTreeSet<PhysicalFileId>,
    is_resumed: bool,
    /// Whether several catalogs bring something.
    is_shared: bool,
}

crate::runtime::opaque_debug!(Filling);

/// Records on their way into a catalog.
#[derive(Default)]
pub(super) struct RecordBatch {
    records: Vec<DividedRecord>,
    bytes: usize,
}

impl Filling {
    /// Makes the catalog of a shard at its place, or goes on with it. Uploads that an earlier run had begun are given up.
    /// `epochs_before` are those of all that it takes the place of.
    ///
    /// # Errors
    /// [`RefillError`].
    pub async fn open(
        settings: &Settings,
        opened: &OpenedStore,
        shard: ShardOf,
        epochs_before: u64,
        tools: &Tools,
    ) -> Result<Self, RefillError> {
        let Tools { metrics, entropy, clock } = tools;
        let standing = identity::look(settings, Some(opened), metrics).await?;
        let progress = StartProgress::default();
        let taker = Taker { settings, entropy, metrics, clock, progress: &progress };
        let mut state = CatalogState::default();
        let claim = (JournalClaim::Fill { shard, epochs_before }, None);
        let taking = take_over(opened.data.clone(), opened.catalog.clone(), standing, &taker, claim, &mut state);
        let (journal, owned) = taking.await?;
        owned.data.remove_owners(&owned.earlier, journal.epoch()).await;
        for file in state.uncertain_files() {
            if let Some(upload) = &file.upload {
                owned.data.abort(&file.id, upload).await?;
            }
        }
        let recorded: BTreeSet<PhysicalFileId> = state.files().map(|view| view.id).collect();
        let is_resumed = state.segment_count() > 0 || !recorded.is_empty();
        let catalog = opened.catalog.clone();
        Ok(Self { shard, catalog, journal, owned, recorded, is_resumed, is_shared: false })
    }

    /// Several catalogs bring something.
    #[must_use]
    pub(super) fn shared(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    pub(super) fn data(&self) -> &DataStore {
        &self.owned.data
    }

    pub(super) fn epoch(&self) -> u64 {
        self.journal.epoch()
    }

    /// Those of some segments that are not here: an earlier run may have brought them, or another catalog, since objects of several shards
    /// may share a segment.
    pub(super) async fn missing(&self, segments: &[SegmentView]) -> Result<Vec<SegmentView>, RefillError> {
        let mut missing = vec![];
        for view in segments {
            let may_be_here = self.is_resumed || self.is_shared && matches!(view.holder, Holder::Objects { .. });
            if !may_be_here || !self.journal.has_segment(view.id).await? {
                missing.push(view.clone());
            }
        }
        Ok(missing)
    }

    /// Reads all that was written, and puts right by how many objects segments are held of which several catalogs have brought some.
    async fn put_right(&self, tools: &Tools) -> Result<(), RefillError> {
        let mut state = CatalogState::default();
        let settings = JournalSettings { block_cache_bytes: 0, ..JournalSettings::default() };
        let read = Snapshot::open(self.catalog.clone(), settings, |key, value| state.load(&key, &value)).await?;
        read.close().await?;
        let recounted = state.recount_divided(tools.clock.now());
        self.write(recounted.map_err(|fault| RefillError::Miscounted { shard: self.shard, fault })?).await
    }

    /// Writes records, and waits until they are durable.
    pub(super) async fn write(&self, records: Vec<DividedRecord>) -> Result<(), RefillError> {
        if !records.is_empty() {
            self.journal.write_divided(records).await?;
        }
        Ok(())
    }

    /// Closes the catalog as it is: nothing is written to it from here on. It may be one that another command has taken over, or deleted.
    pub async fn close(self) {
        match tokio::time::timeout(CLOSE_PATIENCE, self.journal.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "a new catalog was not closed"),
            Err(_) => tracing::debug!("a new catalog is still being closed"),
        }
    }

    /// All is here: deletes files that the catalog does not name, and closes it. `files` are those that this run has written.
    ///
    /// # Errors
    /// [`RefillError`]; it can be begun anew.
    pub async fn finish(self, files: &BTreeSet<(u32, PhysicalFileId)>, tools: &Tools) -> Result<(), RefillError> {
        if let Err(error) = self.put_all_right(files, tools).await {
            self.close().await;
            return Err(error);
        }
        Ok(self.journal.close().await?)
    }

    async fn put_all_right(&self, files: &BTreeSet<(u32, PhysicalFileId)>, tools: &Tools) -> Result<(), RefillError> {
        self.put_right(tools).await?;
        let listed = self.owned.data.list().await?;
        let listed = listed.into_iter().filter_map(|(name, _)| name.parse::<PhysicalFileId>().ok());
        let unnamed =
            listed.filter(|file| !self.recorded.contains(file) && !files.contains(&(self.shard.shard, file.clone())));
        // What a run that was cut short has put, and not recorded.
        let unnamed: Vec<PhysicalFileId> = unnamed.collect();
        if !unnamed.is_empty() {
            self.journal.check_owner().await?;
            self.owned.data.delete(unnamed).await;
        }
        Ok(())
    }
}

impl RecordBatch {
    /// Adds some; writes them when there are enough.
    pub(super) async fn add(&mut self, filling: &Filling, records: Vec<DividedRecord>) -> Result<(), RefillError> {
        for record in records {
            self.bytes += record.weight();
            self.records.push(record);
            if self.records.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES {
                self.flush(filling).await?;
            }
        }
        Ok(())
    }

    /// Writes what there is.
    pub(super) async fn flush(&mut self, filling: &Filling) -> Result<(), RefillError> {
        self.bytes = 0;
        filling.write(std::mem::take(&mut self.records)).await
    }
}
