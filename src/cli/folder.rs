//! The folder of a stopped daemon, as the commands look at it that need no daemon.

use std::path::Path;

use anyhow::{Context, bail};

use crate::catalog::slate::{Journal, JournalSettings, Placement};
use crate::catalog::state::State;
use crate::daemon::imagine;
use crate::metrics::Metrics;
use crate::model::Millis;
use crate::store::{LocalStore, Traffic};

/// What a stopped daemon left.
pub(super) struct Folder {
    /// What exists, as the next start would see it.
    pub state: State,
    /// The files.
    pub store: LocalStore,
    /// The catalog. Close it.
    pub journal: Journal,
}

impl Folder {
    /// Opens the catalog; nothing in the folder changes but the catalog's epoch.
    pub(super) async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let folder = data_dir.join("catalog");
        if !folder.is_dir() {
            bail!("{} holds no catalog", data_dir.display());
        }
        let mut state = State::default();
        let placement = Placement::Local { folder, traffic: Traffic::catalog(Metrics::new()) };
        let journal = Journal::open(placement, JournalSettings::local(), |key, value| state.load(&key, &value));
        let journal = journal.await.context("the catalog cannot be opened")?;
        let store = LocalStore::new(std::path::absolute(data_dir)?, Traffic::data(Metrics::new()));
        imagine(&mut state, &store, Millis(0)).await?;
        Ok(Self { state, store, journal })
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.journal.close().await.context("the catalog cannot be closed")
    }
}
