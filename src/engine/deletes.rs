//! The ledger of deletes of a store on an object store: opened before the first answer, and what it notes is done again.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::aside;
use crate::catalog::ledger::{Ledger, Noted};
use crate::catalog::slate::{Journal, JournalKind};
use crate::catalog::state::CatalogState;
use crate::catalog::{Catalog, CatalogError};
use crate::store::StoreIdentity;

/// Makes the folder, before anything else is touched.
///
/// # Errors
/// The operating system's, if it cannot be used.
pub(super) async fn try_folder(folder: &Path) -> io::Result<()> {
    let folder = folder.to_owned();
    let tried = aside("the ledger of deletes", move || {
        std::fs::create_dir_all(&folder)?;
        Ok(rustix::fs::access(&folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?)
    });
    tried.await.map_err(io::Error::other).flatten()
}

/// Opens the ledger of deletes, where there is to be one: older owners are shut out of the catalog by now.
///
/// # Errors
/// The operating system's error.
pub(super) async fn open(
    folder: Option<&PathBuf>,
    state: &CatalogState,
    journal: &Journal,
) -> io::Result<Option<(Ledger, Noted)>> {
    let store = state.store_identity().and_then(|text| StoreIdentity::parse(text, "the catalog").ok());
    let (Some(folder), Some(store)) = (folder, store) else { return Ok(None) };
    if journal.kind() != JournalKind::Object {
        return Ok(None);
    }
    let (at, epoch) = (folder.clone(), journal.epoch());
    let opened = aside("the ledger of deletes", move || Ledger::open(&at, &store.id, epoch)).await;
    opened.map_err(io::Error::other).flatten().map(Some)
}

/// Does what was noted and undone by a crash, before anybody can see that it was.
///
/// # Errors
/// [`CatalogError`] if the catalog is lost; the next start does it.
pub(super) async fn do_again(catalog: &Catalog, noted: Noted) -> Result<(), CatalogError> {
    let again = catalog.delete_again(&noted.deleted).await?;
    if again > 0 {
        tracing::info!(
            deletes = again,
            "deletes that a crash had undone were done again, as merging.delete-ledger has noted"
        );
    }
    if aside("the ledger of deletes", move || noted.remove()).await.is_err() {
        tracing::warn!("old ledgers of deletes stay: what they note is done");
    }
    Ok(())
}
