//! Whether a place is the store that the catalog belongs to: looked at before anything there is made or changed.
//!
//! The identity ([`crate::store::StoreIdentity`]) stands on both sides. The catalog's is created first and removed never;
//! both are there before the journal is, so:
//!
//! | beside the catalog | beside the data | journal | then |
//! | --- | --- | --- | --- |
//! | one | the same | there | goes on |
//! | one | another | | refused: the volume or prefix of another store |
//! | one | none | there | refused: a volume that is not mounted, a prefix that is wrong |
//! | one | none or the same | none | a first start that was cut short, if no file and no owner is there; else refused |
//! | none | one | none | refused: a second, empty catalog over the files of another one |
//! | none | one | there | goes on if the journal names this store, and puts it back; else refused |
//! | none | none | none | a new store, if no file is there; else refused |
//! | none | none | there | a store of an older version: gets its identity if catalog and data agree |
//!
//! All of that is read without opening the journal as its owner, which would shut out a healthy daemon on an object store.
//!
//! # A catalog that is older than its data
//! Each owner first records itself in the journal, then leaves its object in `owners/` beside the data. So the newest object
//! there is that of the owner in the journal, or of an earlier one. If it is later, or the same epoch with another number,
//! this journal is not the one that was used last: it was restored from an older copy, or two of them are in use. That holds
//! however often the restored one was opened since.
//!
//! # Crash
//!
//! | crash after | leaves | healed by |
//! | --- | --- | --- |
//! | `STORE` of a new store | no `ESKER`, no journal | the next start makes it of the same identity |
//! | the identity of an older store is in the journal | neither side | the next start makes both of it |
//! | `ESKER` of an older store | no `STORE` | the journal names the store, `STORE` is made |
//! | the owner is in the journal | its object is missing | nothing: the newest object is an earlier one |

use super::agreement::{Missing, RecoverError, check_durable, check_not_missing, check_some_there};
use super::journal::journal_settings;
use super::progress::StartProgress;
use crate::catalog::save::save;
use crate::catalog::slate::{Journal, JournalError, Present, Snapshot};
use crate::catalog::state::CatalogState;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::runtime::{Clock, Entropy};
use crate::store::{
    DATA_SIDE, DataStore, IdentitySlot, NotTheStore, OpenError, OpenedStore, Placement, StoreError, StoreGuard,
    StoreIdentity, StoreLock, StoreOwner, StoreOwners, credentials_hint, missing_bucket, open_data, place_of_catalog,
};

/// Why a place is not used. Nothing there was made, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data is not that of the catalog.
    #[error(
        "{why}. Nothing was changed. Mount the volume, or set store.url to where the store is now. Its catalog is at \
         {catalog}; if the data is right and only {DATA_SIDE} was lost, put that back as a copy of {catalog}"
    )]
    WrongData {
        /// The thing that is there.
        why: NotTheStore,
        /// The identity that stands beside the catalog.
        catalog: String,
    },
    /// The data has a catalog, and this is not it.
    #[error(
        "{data} says that {found} is here, but {catalog} does not exist: its catalog was lost, or is elsewhere. Nothing was \
         changed. Set catalog.url to where it is (or store.url, if this is not the store you mean), put it back, or make a \
         new one with `esker rebuild`"
    )]
    CatalogGone {
        /// The identity that stands beside the data.
        data: String,
        /// The store.
        found: Box<StoreIdentity>,
        /// The identity that should stand beside the catalog.
        catalog: String,
    },
    /// The catalog is not the one that was used last.
    #[error(
        "the catalog is older than its data: an owner of epoch {there} has used the data since, and the last one that the \
         catalog knows has epoch {known}. It was restored from an older copy, or two catalogs are in use. Nothing was changed. \
         Put the newer catalog back, or make one from the files with `esker rebuild --replace`. To go on with this one all the \
         same, remove {owners} below the data: what the catalog does not know is then set aside"
    )]
    CatalogOlder {
        /// The owner that the data has seen.
        there: u64,
        /// The last owner that the catalog knows; 0 if it knows none.
        known: u64,
        /// The folder of the owners' objects.
        owners: &'static str,
    },
    /// The last owner's mark cannot be read, so it does not tell whether this catalog was the last one in use.
    #[error(
        "{0} below the data is empty or damaged: it does not tell whether this catalog was used last with the data. Nothing \
         was changed. If no other catalog was used with it, and this one was not restored from an older copy, remove {0} and \
         start again; else make a new catalog from the files with `esker rebuild --replace`"
    )]
    OwnerUnreadable(String),
    /// A daemon with another catalog is at work there.
    #[error("the data in {0} is in use by another daemon, with another catalog")]
    InUse(String),
    /// Catalog and data do not agree.
    #[error(transparent)]
    Disagree(#[from] RecoverError),
    /// Something that says which store it is cannot be understood.
    #[error(transparent)]
    Unreadable(#[from] NotTheStore),
    /// Nothing can be said of the place.
    #[error("it cannot be told whether {url} is the right store{}", after(*.hint))]
    Unknown {
        /// The place.
        url: String,
        /// A setting that is missing, if that may be the reason.
        hint: Option<&'static str>,
        /// Why not.
        #[source]
        source: Box<IdentityError>,
    },
    /// Storage does not answer.
    #[error("{}", did_not(.0))]
    Store(#[from] StoreError),
    /// There is no client for the storage.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The catalog cannot be read or written.
    #[error("the catalog cannot be opened")]
    Journal(#[from] JournalError),
}

impl IdentityError {
    /// Whether a place was found not to be the right one: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::WrongData { .. } | Self::CatalogGone { .. } | Self::CatalogOlder { .. } => true,
            Self::OwnerUnreadable(_) | Self::Unreadable(_) => true,
            Self::Disagree(error) => error.is_refusal(),
            Self::Journal(error) => error.is_damage(),
            Self::Open(error) => error.is_refusal(),
            Self::InUse(_) | Self::Unknown { .. } | Self::Store(_) => false,
        }
    }
}

fn after(hint: Option<&'static str>) -> String {
    hint.map_or_else(String::new, |hint| format!(" ({hint})"))
}

fn did_not(error: &StoreError) -> &'static str {
    match error {
        StoreError::Failed { operation: "put", .. } => "what says which store it is, and who has it, cannot be written",
        _ => "storage does not tell which store it is",
    }
}

/// The result of a look at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreStanding {
    /// This store.
    Known(StoreIdentity),
    /// This store, of which one side is still to be made.
    Begun(StoreIdentity),
    /// A place with nothing in it yet.
    New,
    /// A store of an older version.
    Older,
}

/// Tells what is where `settings` say, which is `opened` if it was opened already, and makes nothing there.
///
/// # Errors
/// [`IdentityError`] if it is not the right place, or if that cannot be told.
pub async fn look(
    settings: &Settings,
    opened: Option<&OpenedStore>,
    metrics: &Metrics,
) -> Result<StoreStanding, IdentityError> {
    let mut looked = look_once(settings, opened, metrics).await;
    if looked.as_ref().is_err_and(IdentityError::is_refusal) {
        // What was read in turn may be of two moments, while another daemon makes its first start there.
        looked = look_once(settings, opened, metrics).await;
    }
    let error = match looked {
        Err(error) if !error.is_refusal() => error,
        looked => return looked,
    };
    let (store, catalog_url) = (&settings.store, settings.catalog.url.as_ref());
    // To an object storage service, what is in a bucket that is not there is missing like anything else, or an error like any.
    let source = match &error {
        IdentityError::Store(_) | IdentityError::Journal(_) => missing_bucket(store, catalog_url, metrics).await,
        _ => None,
    };
    let hint = credentials_hint(&store.url, store)
        .or_else(|| credentials_hint(catalog_url?, store))
        .filter(|_| source.is_none());
    let source = source.map_or(error, IdentityError::Open).into();
    Err(IdentityError::Unknown { url: store.url.to_string(), hint, source })
}

async fn look_once(
    settings: &Settings,
    opened: Option<&OpenedStore>,
    metrics: &Metrics,
) -> Result<StoreStanding, IdentityError> {
    let (data, catalog) = match opened {
        Some(opened) => (opened.data.clone(), opened.catalog.clone()),
        None => (
            open_data(&settings.store, metrics)?,
            place_of_catalog(&settings.store, settings.catalog.url.as_ref(), metrics)?,
        ),
    };
    let (data_slot, catalog_slot) = (data.identity_slot(), catalog.identity_slot());
    let expected = read(&catalog_slot).await?;
    let found = read(&data_slot).await?;
    let has_journal = Journal::present(&catalog).await? != Present::Nothing;
    let wrong = |why| IdentityError::WrongData { why, catalog: catalog_slot.to_string() };
    match (expected, found) {
        (Some(expected), Some(found)) if expected.id != found.id => {
            let (found, expected) = (found.into(), expected.into());
            Err(wrong(NotTheStore::Another { place: data_slot.to_string(), found, expected }))
        }
        (Some(expected), None) if has_journal => {
            Err(wrong(NotTheStore::Missing { place: data_slot.to_string(), expected: expected.into() }))
        }
        (Some(expected), Some(_)) if has_journal => Ok(StoreStanding::Known(expected)),
        (Some(expected), found) => {
            check_not_missing(&CatalogState::default(), &data.list().await?)?;
            match (found, data.owners().await?.newest) {
                (Some(found), Some(_)) => Err(gone(&data_slot, found, &catalog_slot)),
                _ => Ok(StoreStanding::Begun(expected)),
            }
        }
        (None, Some(found)) if has_journal && names(&catalog, settings, &found).await? => {
            Ok(StoreStanding::Begun(found))
        }
        (None, Some(found)) => Err(gone(&data_slot, found, &catalog_slot)),
        (None, None) if has_journal => look_at_older(&data, catalog, settings).await,
        (None, None) => {
            check_not_missing(&CatalogState::default(), &data.list().await?)?;
            Ok(StoreStanding::New)
        }
    }
}

fn gone(data: &IdentitySlot, found: StoreIdentity, catalog: &IdentitySlot) -> IdentityError {
    IdentityError::CatalogGone { data: data.to_string(), found: found.into(), catalog: catalog.to_string() }
}

async fn read(slot: &IdentitySlot) -> Result<Option<StoreIdentity>, IdentityError> {
    let text = slot.read().await?;
    Ok(text.map(|text| StoreIdentity::parse(&text, &slot.to_string())).transpose()?)
}

/// Reads the journal without shutting anybody out.
async fn read_journal(catalog: &Placement, settings: &Settings) -> Result<CatalogState, IdentityError> {
    let mut state = CatalogState::default();
    let journal = journal_settings(catalog, &settings.catalog);
    let snapshot = Snapshot::open(catalog.clone(), journal, |key, value| state.load(&key, &value)).await?;
    snapshot.close().await?;
    Ok(state)
}

/// Whether the journal is that of this store, though its side of the identity is missing.
async fn names(catalog: &Placement, settings: &Settings, found: &StoreIdentity) -> Result<bool, IdentityError> {
    let state = read_journal(catalog, settings).await?;
    let known = state.store_identity().and_then(|text| StoreIdentity::parse(text, "the catalog").ok());
    Ok(known.is_some_and(|known| known.id == found.id))
}

/// A catalog of files of which not one is there belongs elsewhere. Whether all are is looked at once more by its owner: until
/// then a daemon may be at work here.
async fn look_at_older(
    data: &DataStore,
    catalog: Placement,
    settings: &Settings,
) -> Result<StoreStanding, IdentityError> {
    let state = read_journal(&catalog, settings).await?;
    let listed = data.list().await?;
    check_not_missing(&state, &listed)?;
    check_some_there(&state, &listed)?;
    Ok(StoreStanding::Older)
}

/// Makes what is missing of a new store's identity, before its journal is made. `data` and `catalog` were tried.
///
/// # Errors
/// [`IdentityError`]; it can be repeated.
pub async fn begin(
    standing: StoreStanding,
    data: &DataStore,
    catalog: &Placement,
    new: impl FnOnce() -> StoreIdentity,
) -> Result<Option<StoreIdentity>, IdentityError> {
    let identity = match standing {
        StoreStanding::Older => return Ok(None),
        StoreStanding::Known(identity) => return Ok(Some(identity)),
        StoreStanding::Begun(identity) => identity,
        StoreStanding::New => new(),
    };
    // The catalog's side first: a data folder that has one has a catalog somewhere.
    let slot = catalog.identity_slot();
    let identity = StoreIdentity::parse(&slot.create(&identity.text()).await?, &slot.to_string())?;
    mark_data(data, &identity, &slot).await?;
    tracing::info!(store = %identity, "the store has its identity now");
    Ok(Some(identity))
}

async fn mark_data(data: &DataStore, identity: &StoreIdentity, catalog: &IdentitySlot) -> Result<(), IdentityError> {
    let slot = data.identity_slot();
    let found = StoreIdentity::parse(&slot.create(&identity.text()).await?, &slot.to_string())?;
    if found.id != identity.id {
        let (found, expected) = (found.into(), identity.clone().into());
        let why = NotTheStore::Another { place: slot.to_string(), found, expected };
        return Err(IdentityError::WrongData { why, catalog: catalog.to_string() });
    }
    Ok(())
}

/// A store that this daemon may change.
pub struct Owned {
    /// Looks before every step that destroys something.
    pub data: DataStore,
    /// Keeps others off for as long as it is held.
    pub lock: StoreLock,
    /// Whose marks were there.
    pub earlier: StoreOwners,
}

crate::runtime::opaque_debug!(Owned);

/// The daemon that takes a store over.
pub struct Taker<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Draws the number of the owner.
    pub entropy: &'a Entropy,
    /// The metrics for the guard.
    pub metrics: &'a Metrics,
    /// Stamps new identities.
    pub clock: &'a Clock,
    /// Knows the step that it is at.
    pub progress: &'a StartProgress,
}

crate::runtime::opaque_debug!(Taker<'_>);

impl Taker<'_> {
    /// An identity for a store that has none.
    pub fn new_identity(&self) -> StoreIdentity {
        StoreIdentity::new(self.entropy, self.clock.now(), &self.settings.store.url.to_string())
    }

    /// Makes sure that the journal, which was opened and loaded into `state`, was the last one in use; gives an older store
    /// its identity; and leaves word that this is the owner now. `earlier` are those who did so before, where they were looked
    /// for since the journal was opened, and nobody has to be locked out for that.
    ///
    /// # Errors
    /// [`IdentityError`]; the data was not touched then.
    pub async fn take(
        &self,
        identity: Option<StoreIdentity>,
        state: &mut CatalogState,
        journal: &Journal,
        data: DataStore,
        catalog: &IdentitySlot,
        earlier: Option<StoreOwners>,
    ) -> Result<Owned, IdentityError> {
        let is_marked = identity.is_some();
        let identity = match identity {
            Some(identity) => identity,
            None => self.adopt(state, &data).await?,
        };
        let in_use = || IdentityError::InUse(self.settings.store.url.to_string());
        let mut lock = None;
        if is_marked {
            // First of all: whoever holds it may be at work.
            lock = Some(StoreLock::take(&data).await?.ok_or_else(in_use)?);
        }
        let earlier = match earlier {
            Some(earlier) => earlier,
            None => data.owners().await?,
        };
        check_owner(state, earlier.newest.clone())?;
        let owner = StoreOwner { epoch: journal.epoch(), incarnation: self.entropy.hex(16) };
        // In the journal before beside the data: a crash between leaves an older object there, never a newer one.
        state.set_owner(identity.text(), owner.clone());
        let guarded = |identity, lock: &StoreLock| -> Result<DataStore, StoreError> {
            let guard = StoreGuard::new(identity, owner.epoch, lock, self.metrics.clone())?;
            Ok(data.clone().guarded(guard))
        };
        let (lock, data) = match lock {
            Some(lock) => {
                let data = guarded(identity, &lock)?;
                let (saved, looked) = futures::join!(save(state, journal), data.look());
                saved?;
                looked?;
                (lock, data)
            }
            None => {
                save(state, journal).await?;
                mark_data(&data, &identity, catalog).await?;
                catalog.create(&identity.text()).await?;
                tracing::info!(store = %identity, "the store of an older version has its identity now");
                let lock = StoreLock::take(&data).await?.ok_or_else(in_use)?;
                let data = guarded(identity, &lock)?;
                data.look().await?;
                (lock, data)
            }
        };
        let there = data.leave_owner(&owner).await?;
        if there != owner {
            let known = state.owner().map_or(0, |owner| owner.epoch);
            return Err(IdentityError::CatalogOlder { there: there.epoch, known, owners: OWNERS });
        }
        Ok(Owned { data, lock, earlier })
    }

    /// The identity of an older store, if all that its catalog knows is there.
    async fn adopt(&self, state: &CatalogState, data: &DataStore) -> Result<StoreIdentity, IdentityError> {
        let listed = data.list().await?;
        check_not_missing(state, &listed)?;
        check_durable(state, data, &listed, Missing::Refuse)?;
        let begun = state.store_identity().and_then(|text| StoreIdentity::parse(text, "the catalog").ok());
        Ok(begun.unwrap_or_else(|| self.new_identity()))
    }
}

const OWNERS: &str = "owners/";

/// The newest owner that left its object beside the data is the last one that the catalog knows, or an earlier one.
fn check_owner(state: &CatalogState, newest: Option<StoreOwner>) -> Result<(), IdentityError> {
    let Some(newest) = newest else { return Ok(()) };
    let known = state.owner().map_or(0, |owner| owner.epoch);
    let same = state.owner().is_some_and(|owner| owner.incarnation == newest.incarnation);
    if newest.epoch < known || newest.epoch == known && same {
        return Ok(());
    }
    if newest.epoch == known && !newest.is_readable() {
        return Err(IdentityError::OwnerUnreadable(newest.name()));
    }
    Err(IdentityError::CatalogOlder { there: newest.epoch, known, owners: OWNERS })
}

/// The identity and the newest owner of data whose catalog is made anew. Data that has no identity gets one.
///
/// # Errors
/// [`IdentityError`] if storage does not tell.
pub(super) async fn of_data(
    data: &DataStore,
    new: impl FnOnce() -> StoreIdentity,
) -> Result<(StoreIdentity, StoreOwner), IdentityError> {
    let slot = data.identity_slot();
    let identity = match read(&slot).await? {
        Some(identity) => identity,
        None => StoreIdentity::parse(&slot.create(&new().text()).await?, &slot.to_string())?,
    };
    let newest = data.owners().await?.newest.unwrap_or(StoreOwner { epoch: 0, incarnation: String::new() });
    Ok((identity, newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(epoch: u64, incarnation: &str) -> CatalogState {
        let mut state = CatalogState::default();
        state.set_owner(String::new(), StoreOwner { epoch, incarnation: incarnation.to_owned() });
        state
    }

    #[test]
    fn a_catalog_is_told_from_one_that_was_used_later_however_the_epochs_stand() {
        let newest = |epoch, incarnation: &str| Some(StoreOwner { epoch, incarnation: incarnation.to_owned() });

        assert!(check_owner(&CatalogState::default(), None).is_ok(), "a new store");
        assert!(check_owner(&known(5, "a"), None).is_ok(), "an operator removed them");
        assert!(check_owner(&known(5, "a"), newest(5, "a")).is_ok());
        assert!(check_owner(&known(5, "a"), newest(4, "z")).is_ok(), "a start was cut short");

        for (state, newest) in [
            (known(5, "a"), newest(6, "b")),
            (known(5, "a"), newest(5, "b")),
            (CatalogState::default(), newest(1, "a")),
        ] {
            assert!(matches!(check_owner(&state, newest), Err(IdentityError::CatalogOlder { .. })));
        }
        for damaged in ["", "\u{fffd}x"] {
            let said = check_owner(&known(5, "a"), newest(5, damaged)).unwrap_err();
            assert!(said.is_refusal() && said.to_string().starts_with("owners/00000000000000000005 "), "{said}");
        }
    }
}
