//! The store of a stopped daemon, for commands that need no daemon. But for a repair, nothing is made or changed there, save
//! the epoch of a catalog on a local disk.

use super::identity::{self, IdentityError, StoreStanding, Taker};
use super::journal::journal_settings;
use super::open::take_over;
use super::progress::StartProgress;
use super::recover::{Missing, RecoverError, imagine};
use super::space::{GcState, SpaceBy, SpaceTable, space_table};
use super::verify::repair;
use crate::catalog::save::save;
use crate::catalog::slate::{JournalClaim, JournalError, Snapshot};
use crate::catalog::state::CatalogState;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{JobId, Millis};
use crate::reclaim::plan::Plan;
use crate::reclaim::preview;
use crate::reclaim::sweep::{list_aside, set_aside, unnamed};
use crate::reclaim::watch::Watch;
use crate::runtime::{Clock, Entropy};
use crate::store::{DataStore, OpenError, StoreError, open_data, place_of_catalog};

/// Why a stopped store cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    /// There is no catalog.
    #[error("{0} holds no catalog")]
    NoCatalog(String),
    /// The place is not the store that the catalog belongs to.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no client for the storage.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The catalog cannot be read.
    #[error("the catalog cannot be opened")]
    Journal(#[source] JournalError),
    /// The files that were left open cannot be judged.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// It cannot be taken over.
    #[error(transparent)]
    TakeOver(#[from] super::OpeningError),
    /// Storage does not tell what is there.
    #[error(transparent)]
    List(StoreError),
    /// The catalog does not take what was put right.
    #[error(transparent)]
    Write(JournalError),
    /// The catalog does not give its folder free.
    #[error("the catalog cannot be closed")]
    Close(#[source] JournalError),
}

/// A catalog and the files that belong to it, as the next start would find them.
pub struct Stopped {
    /// The state of the catalog.
    pub state: CatalogState,
    /// Where the files are.
    pub data: DataStore,
    /// The catalog itself.
    pub catalog: Snapshot,
}

crate::runtime::opaque_debug!(Stopped);

impl Stopped {
    /// Makes sure that the store of `settings` is there, for whoever starts a daemon on it and wants no new one.
    ///
    /// # Errors
    /// [`StoppedError`].
    pub async fn exists(settings: &Settings) -> Result<(), StoppedError> {
        match identity::look(settings, None, &Metrics::new()).await? {
            StoreStanding::New => Err(StoppedError::NoCatalog(settings.store.url.to_string())),
            _ => Ok(()),
        }
    }

    /// Opens the store of `settings`, as the next start would find it.
    ///
    /// # Errors
    /// [`StoppedError`].
    pub async fn open(settings: &Settings) -> Result<Self, StoppedError> {
        let mut stopped = Self::recorded(settings).await?;
        imagine(&mut stopped.state, &stopped.data, Millis(0)).await?;
        Ok(stopped)
    }

    /// The same as the catalog has it: no file is looked at. One that a lost DataNode keeps open cannot be.
    async fn recorded(settings: &Settings) -> Result<Self, StoppedError> {
        let metrics = Metrics::new();
        let no_catalog = || StoppedError::NoCatalog(settings.store.url.to_string());
        if identity::look(settings, None, &metrics).await? == StoreStanding::New {
            return Err(no_catalog());
        }
        let mut state = CatalogState::default();
        let placement = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
        let journal = journal_settings(&placement, &settings.catalog);
        let opened = Snapshot::open(placement, journal, |key, value| state.load(&key, &value)).await;
        let catalog = opened.map_err(|error| match error {
            JournalError::Nothing => no_catalog(),
            other => StoppedError::Journal(other),
        })?;
        let data = open_data(&settings.store, &metrics)?;
        Ok(Self { state, data, catalog })
    }

    /// Returns the space of all jobs or of one.
    pub fn space(&self, settings: &Settings, by: Option<SpaceBy>, job: Option<&JobId>) -> SpaceTable {
        let taken = self.state.space_taken(job, SpaceBy::detail(by));
        space_table(&taken, by, job, &self.watch(settings), Clock::System.ages())
    }

    /// Returns the plan for the next round of reclaiming.
    pub fn reclaim_plan(&self, settings: &Settings) -> Plan {
        preview(self.state.survey_files(), settings, self.data.capabilities(), Clock::System.ages())
    }

    /// Returns the files that are to be deleted. Lists the store.
    ///
    /// # Errors
    /// [`StoppedError::List`].
    pub async fn gc_state(&self, settings: &Settings) -> Result<GcState, StoppedError> {
        let listed = self.data.list().await.map_err(StoppedError::List)?;
        let swept = unnamed(listed, |files| self.state.unknown_files(files));
        let epoch = self.catalog.epoch();
        // The next owner keeps what it finds open.
        let to_delete = self.state.to_delete(epoch + 1);
        let waiting = self.watch(settings).waiting(&to_delete.forgotten, Clock::System.ages());
        // The grace begins with the first sweep of the next start.
        let set_aside = set_aside(list_aside(&self.data).await.map_err(StoppedError::List)?, |_| None);
        Ok(GcState::new(to_delete, waiting, swept, set_aside, epoch))
    }

    fn watch(&self, settings: &Settings) -> Watch {
        Watch::new(settings, self.data.capabilities())
    }

    /// Does what the next start would do, and with [`Missing::Drop`] more. Shuts out a daemon. Returns what was done.
    ///
    /// # Errors
    /// [`StoppedError`]; it can be repeated.
    pub async fn repair(settings: &Settings, missing: Missing) -> Result<Vec<String>, StoppedError> {
        // Opened and closed first: there must be a catalog, and a new one is not wanted.
        Self::recorded(settings).await?.close().await?;
        let (metrics, clock) = (Metrics::new(), Clock::System.floored());
        let standing = identity::look(settings, None, &metrics).await?;
        let placement = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
        let entropy = Entropy::from_os(clock.clone());
        let progress = StartProgress::default();
        let taker = Taker { settings, entropy: &entropy, metrics: &metrics, clock: &clock, progress: &progress };
        let (mut state, data) = (CatalogState::default(), open_data(&settings.store, &metrics)?);
        // As any owner: what is put right here is what a daemon would do.
        let (journal, owned) =
            take_over(data, placement, standing, &taker, (JournalClaim::Alone, None), &mut state).await?;
        owned.data.remove_owners(&owned.earlier, journal.epoch()).await;
        let mut actions = repair(&mut state, &owned.data, journal.epoch(), clock.now(), missing).await?;
        let written = save(&mut state, &journal).await.map_err(StoppedError::Write)?;
        if written > 0 {
            actions.push(format!("wrote {written} changes of the catalog"));
        }
        journal.close().await.map_err(StoppedError::Close)?;
        Ok(actions)
    }

    /// Tells what could not be seen.
    pub fn notes(&self) -> Vec<String> {
        let hidden = self.catalog.hidden().into_iter();
        let note = |log_file| {
            format!(
                "file {log_file} of the catalog's log is open, and HDFS shows nobody the end of it: the last commits are not \
                 counted, so what was stored or deleted since may look wrong. A start of the daemon closes the file, and so \
                 does a daemon that runs and has nothing to do"
            )
        };
        hidden.map(note).collect()
    }

    /// Gives the folder free.
    ///
    /// # Errors
    /// [`StoppedError::Close`].
    pub async fn close(self) -> Result<(), StoppedError> {
        self.catalog.close().await.map_err(StoppedError::Close)
    }
}
