//! Writing a state by hand: for a start, a repair and a rebuild, which change it before the catalog has its owner.

use super::slate::{Haste, Journal, JournalError};
use super::state::CatalogState;

/// Changes that are written at once.
const BATCH_MUTATIONS: usize = 10_000;

/// Writes what has changed in a state, and waits until that is durable. Returns how many changes there were.
///
/// # Errors
/// Why the journal does not take them.
///
/// # Crash
/// A prefix of the changes is there.
pub async fn save(state: &mut CatalogState, journal: &Journal) -> Result<usize, JournalError> {
    save_in_batches(state, journal, BATCH_MUTATIONS, || {}).await
}

/// The same in batches of so many changes, and tells of each that is durable.
///
/// # Errors
/// As [`save`].
pub async fn save_in_batches(
    state: &mut CatalogState,
    journal: &Journal,
    mutations_max: usize,
    wrote: impl Fn(),
) -> Result<usize, JournalError> {
    let mutations = state.take_mutations();
    for batch in mutations.chunks(mutations_max) {
        journal.write(batch.to_vec(), Haste::Now).await?.durable().await?;
        wrote();
    }
    Ok(mutations.len())
}
