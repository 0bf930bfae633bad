//! The handles that owners, big segments and the rewriter work with, and the commits that go beside their bytes.

use std::sync::Arc;

use super::lane::LaneKey;
use super::pace::UploadPace;
use super::pool::Pools;
use crate::catalog::command::{Command, Outcome, Refusal, Store, StoreFile, StoreItem, StoreToken, Stored};
use crate::catalog::{Catalog, CatalogError};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{About, Lane, PhysicalFileId};
use crate::runtime::{ByteBudget, Entropy, TaskGroup};
use crate::store::{DataStore, DiskSpace};

/// The handles that the write path works with. Clones share everything.
#[derive(Clone)]
pub struct WriteContext {
    /// The settings.
    pub settings: Arc<Settings>,
    /// Where physical files go.
    pub store: DataStore,
    /// The catalog.
    pub catalog: Catalog,
    /// Memory for the parts of streamed segments.
    pub budget: ByteBudget,
    /// Names.
    pub entropy: Entropy,
    /// The metrics.
    pub metrics: Metrics,
    /// Runs the owners.
    pub tasks: TaskGroup,
    /// Open files.
    pub pools: Arc<Pools>,
    /// The recent speed of the backend.
    pub pace: Arc<UploadPace>,
    /// The room on local disks.
    pub space: DiskSpace,
}

crate::runtime::opaque_debug!(WriteContext);

impl WriteContext {
    /// With no file open yet.
    pub fn new(
        settings: Arc<Settings>,
        store: DataStore,
        catalog: Catalog,
        budget: ByteBudget,
        entropy: Entropy,
        metrics: Metrics,
        tasks: TaskGroup,
    ) -> Self {
        let pools = Arc::new(Pools::new(settings.merging.clone()));
        let (pace, space) = (Arc::default(), DiskSpace::default());
        Self { settings, store, catalog, budget, entropy, metrics, tasks, pools, pace, space }
    }

    /// The same with local disks that may be full.
    pub fn with_space(self, space: DiskSpace) -> Self {
        Self { space, ..self }
    }

    /// The lane whose open files may take a segment.
    pub fn lane_of(&self, about: &About) -> LaneKey {
        match about.checkpoint {
            Some(checkpoint) if self.catalog.is_savepoint(&about.job, checkpoint) => LaneKey::of_savepoint(about),
            _ => LaneKey::of(about, &self.settings.merging),
        }
    }

    /// The name of a new file of a lane.
    pub(crate) fn file_id(&self, lane: &Lane, ulid: u128) -> PhysicalFileId {
        PhysicalFileId::new(lane.job.as_ref(), self.catalog.epoch(), ulid)
    }

    /// Names a new file in the catalog before its first byte is written, so that no crash leaves it unnamed. The catalog
    /// remembers the id of the multipart upload that it comes as, until it is closed.
    pub(crate) async fn name_file(
        &self,
        id: &PhysicalFileId,
        lane: &Lane,
        upload: Option<String>,
    ) -> Result<(), CatalogError> {
        let named = StoreFile { id: id.clone(), lane: lane.clone(), len: 0, closes: false, upload };
        let (unsettled, _) = commit(&self.catalog, Some(named), vec![]).await?;
        unsettled.confirm();
        Ok(())
    }
}

/// A commit whose bytes are not known to be durable. Dropped, by a panic as well, it never happened.
pub(super) struct Unsettled {
    catalog: Catalog,
    token: Option<StoreToken>,
}

impl Unsettled {
    /// The bytes are durable.
    pub(super) fn confirm(mut self) {
        if let Some(token) = self.token.take() {
            self.catalog.confirm(token);
        }
    }

    /// The bytes were cut off again; their file ends at `len`.
    pub(super) fn fail_at(mut self, len: u64) {
        if let Some(token) = self.token.take() {
            self.catalog.fail_at(token, len);
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.catalog.fail(token);
        }
    }
}

/// The catalog's answer to a group: each item may be refused by itself.
pub(super) type Committed = Result<(Unsettled, Vec<Result<Stored, Refusal>>), CatalogError>;

/// Commits what is on its way to storage. It is not visible before it is confirmed.
pub(super) async fn commit(catalog: &Catalog, file: Option<StoreFile>, items: Vec<StoreItem>) -> Committed {
    match catalog.execute(Command::Store(Store { file, items })).await? {
        Outcome::Stored(token, answers) => Ok((Unsettled { catalog: catalog.clone(), token: Some(token) }, answers)),
        _ => Err(CatalogError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::catalog::slate::{Journal, JournalSettings};
    use crate::catalog::state::CatalogState;
    use crate::config::Config;
    use crate::runtime::Clock;
    use crate::store::{Capabilities, Placement};

    impl WriteContext {
        /// The write path on `store`, where every segment of the job `wordcount` goes into a file of the one lane. Its
        /// catalog is in memory.
        pub(crate) async fn for_tests(store: DataStore) -> Self {
            let flags = [
                ("execution.checkpointing.data-inline-threshold", "0"),
                ("merging.inline-group-max", "0"),
                ("execution.checkpointing.file-merging.pool-blocking", "true"),
            ];
            let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
            let placement = Placement::Object {
                store: Arc::new(InMemory::new()),
                prefix: Path::from("catalog"),
                can: Capabilities::OBJECT,
                log: None,
            };
            let visit = |_, _| Ok::<(), std::convert::Infallible>(());
            let journal = Journal::open(placement, JournalSettings::default(), visit).await.unwrap();
            let (metrics, clock) = (Metrics::new(), Clock::System);
            let tasks = || TaskGroup::new(CancellationToken::new());
            let catalog = Catalog::start(CatalogState::default(), journal, clock.clone(), &metrics, &tasks());
            catalog.execute(Command::CreateJob("wordcount".parse().unwrap())).await.unwrap();
            let budget = ByteBudget::new(settings.limits.memory_bytes, metrics.in_flight_bytes.clone());
            Self::new(Arc::new(settings), store, catalog, budget, Entropy::from_os(clock), metrics, tasks())
        }
    }
}
