//! Deletes a catalog that others have taken the place of, and the files that it knew. What it did not know stays, and is told.
//!
//! # Crash
//! All physical files go before the first catalog, which knows them. Each step can be taken again.

use std::collections::BTreeSet;

use super::{RefillError, Source};
use crate::catalog::slate::Journal;
use crate::model::PhysicalFileId;
use crate::store::{DataStore, OpenedStore};

/// Files that are deleted with one call.
const FILES_AT_ONCE: usize = 1_000;

/// Deletes the physical files that a catalog knows. Returns their number, and the names of those below `data/` that it did not know.
///
/// # Errors
/// [`RefillError::NotDeleted`] if some are still there; it can be repeated.
pub async fn files(source: &Source) -> Result<(u64, Vec<String>), RefillError> {
    let known: BTreeSet<PhysicalFileId> = source.state.files().map(|view| view.id).collect();
    let mut deleted = 0;
    let all: Vec<PhysicalFileId> = known.iter().cloned().collect();
    for some in all.chunks(FILES_AT_ONCE) {
        let gone = source.data.delete(some.to_vec()).await;
        if gone.len() < some.len() {
            let left = some.iter().find(|file| !gone.contains(file)).map(ToString::to_string).unwrap_or_default();
            return Err(RefillError::NotDeleted(left));
        }
        deleted += gone.len() as u64;
    }
    let unknown = source.data.list().await?.into_iter().map(|(name, _)| name);
    Ok((deleted, unknown.filter(|name| name.parse().map_or(true, |id| !known.contains(&id))).collect()))
}

/// Deletes a catalog and what says which store it was. Returns what else is there.
///
/// # Errors
/// [`RefillError`]; it can be repeated.
pub async fn catalog(opened: &OpenedStore) -> Result<Vec<String>, RefillError> {
    let others = Journal::delete_replaced(&opened.catalog).await?;
    opened.data.remove_identity().await?;
    Ok(others)
}

/// Deletes the place of a shard that never came to be.
///
/// # Errors
/// [`RefillError`]; it can be repeated.
pub async fn place(opened: &OpenedStore, begun: Option<&Source>) -> Result<(), RefillError> {
    let data: &DataStore = &opened.data;
    for file in begun.map(|source| source.state.uncertain_files()).unwrap_or_default() {
        if let Some(upload) = &file.upload {
            data.abort(&file.id, upload).await?;
        }
    }
    data.delete_everything().await?;
    Ok(Journal::delete_unfinished(&opened.catalog).await?)
}
