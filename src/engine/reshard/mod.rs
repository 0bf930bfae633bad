//! Catalogs and files for another number of shards: the part of it that is about one catalog. What has to happen in which order, and who
//! else is kept off meanwhile, is `cluster::reshard`'s.
//!
//! - [`settle`]: takes a catalog over for the last time, so that nothing of it changes any more.
//! - [`Source`]: reads it after that.
//! - [`fill`]: a new catalog.
//! - [`copy`]: the bytes of physical files.
//! - [`fillings`]: all new catalogs, and what goes into which.
//! - [`remove`]: deletes what others have taken the place of.
//!
//! # Invariants
//! - Nothing that is there changes after it was settled, before others have taken its place.
//! - Every byte that lives is read, and checked, before it counts as copied. A file keeps its name if it is copied as it is; what is written
//!   anew has a new one.
//!
//! # Crash
//! A new catalog holds whole files, and whatever else was written of the rest, which is written again: each record is the same each time.
//! A file that the new catalog does not name is deleted before that is used ([`fill::Filling::finish`]).

pub mod copy;
pub mod fill;
pub mod fillings;
pub mod remove;

use super::OpeningError;
use super::identity::{self, IdentityError, StoreStanding, Taker};
use super::journal::journal_settings;
use super::open::take_over;
use super::progress::StartProgress;
use super::recover::{Missing, RecoverError, imagine, recover};
use crate::catalog::save::save;
use crate::catalog::slate::{JournalClaim, JournalError, JournalSettings, Snapshot};
use crate::catalog::state::CatalogState;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{PhysicalFileId, SegmentId, ShardOf};
use crate::runtime::{Clock, Entropy};
use crate::store::{DataStore, OpenedStore, StoreError};

/// Why a catalog is not made anew. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RefillError {
    /// It cannot be taken over, or made.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// What its last owner left cannot be settled.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// It is not the store that it should be.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its records cannot be read or written.
    #[error("the records of a catalog cannot be read or written")]
    Journal(#[from] JournalError),
    /// Storage does not give bytes, or take them.
    #[error("storage does not do what was asked")]
    Store(#[from] StoreError),
    /// A file is not closed.
    #[error(
        "{0} is not closed, though its catalog was settled: start the daemons once more, stop them, and run this again"
    )]
    Open(PhysicalFileId),
    /// Bytes are wrong or gone.
    #[error(
        "segment {segment} in {place} has other bytes than were written, or none: `esker verify --read-data 100` tells of all that is \
         damaged. Bring it back, or delete what is damaged, and begin anew"
    )]
    Damaged {
        /// The segment.
        segment: SegmentId,
        /// Where it is.
        place: String,
    },
    /// A new catalog is not what it should be.
    #[error(
        "the new catalog of {shard} does not add up ({fault}), so the old ones stay: please report this, and give the change up with --abandon"
    )]
    Miscounted {
        /// The shard.
        shard: ShardOf,
        /// What does not.
        fault: String,
    },
    /// Storage does not delete what nobody needs any more.
    #[error("storage has not deleted {0}: it is tried again when this is run again")]
    NotDeleted(String),
    /// The store is of an older version.
    #[error(
        "{0} has no identity yet: it is of an older version. Start a daemon on it once, stop it, and run this again"
    )]
    Older(String),
}

impl RefillError {
    /// Whether what the catalog has is damaged, or not all there: trying again changes nothing.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Recover(error) | Self::Opening(OpeningError::Recover(error)) => error.is_refusal(),
            Self::Identity(error) | Self::Opening(OpeningError::Identity(error)) => error.is_refusal(),
            Self::Opening(_) | Self::Journal(_) | Self::Store(_) | Self::Open(_) => false,
            Self::Miscounted { .. } | Self::NotDeleted(_) | Self::Older(_) => false,
        }
    }
}

/// What all steps need.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Everything that is counted.
    pub metrics: Metrics,
    /// Draws names.
    pub entropy: Entropy,
    /// Stamps what is recorded.
    pub clock: Clock,
}

impl Tools {
    /// Those of a command.
    pub fn new() -> Self {
        let clock = Clock::System.floored();
        Self { metrics: Metrics::new(), entropy: Entropy::from_os(clock.clone()), clock }
    }
}

impl Default for Tools {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the catalog of `opened` over, shuts out whoever had it, and settles what that one left. Returns its epoch; `None` if nothing is
/// there. `settings` are its own.
///
/// # Errors
/// [`RefillError`].
///
/// # Crash
/// It is what a start that was cut short leaves.
pub async fn settle(
    settings: &Settings,
    opened: &OpenedStore,
    generation: u64,
    tools: &Tools,
) -> Result<Option<u64>, RefillError> {
    let Tools { metrics, entropy, clock } = tools;
    let standing = match identity::look(settings, Some(opened), metrics).await? {
        StoreStanding::New => return Ok(None),
        StoreStanding::Older => return Err(RefillError::Older(settings.store.url.to_string())),
        standing => standing,
    };
    let progress = StartProgress::default();
    let taker = Taker { settings, entropy, metrics, clock, progress: &progress };
    let mut state = CatalogState::default();
    let claim = (JournalClaim::Reshard { generation }, None);
    let taking = take_over(opened.data.clone(), opened.catalog.clone(), standing, &taker, claim, &mut state);
    let (journal, owned) = taking.await?;
    owned.data.remove_owners(&owned.earlier, journal.epoch()).await;
    recover(&mut state, &owned.data, journal.epoch(), clock.now(), Missing::Refuse).await?;
    // A daemon does it a little at a time.
    state.finish_work(clock.now());
    save(&mut state, &journal).await?;
    let epoch = journal.epoch();
    journal.close().await?;
    Ok(Some(epoch))
}

/// A catalog that is settled, or is looked at before.
pub struct Source {
    /// Its state.
    pub state: CatalogState,
    /// Its files.
    pub data: DataStore,
    /// The catalog itself.
    pub catalog: Snapshot,
}

crate::runtime::opaque_debug!(Source);

impl Source {
    /// Reads the catalog of `opened`, which gives way to shards of `generation`; `None` if nothing is there.
    ///
    /// # Errors
    /// [`RefillError`].
    pub async fn open(
        settings: &Settings,
        opened: &OpenedStore,
        generation: u64,
        tools: &Tools,
    ) -> Result<Option<Self>, RefillError> {
        let mut state = CatalogState::default();
        let claim = JournalClaim::Reshard { generation };
        let journal = JournalSettings { claim, ..journal_settings(&opened.catalog, &settings.catalog) };
        let reading = Snapshot::open(opened.catalog.clone(), journal, |key, value| state.load(&key, &value));
        let catalog = match reading.await {
            Err(JournalError::Nothing) => return Ok(None),
            read => read?,
        };
        imagine(&mut state, &opened.data, tools.clock.now()).await?;
        Ok(Some(Self { state, data: opened.data.clone(), catalog }))
    }
}
