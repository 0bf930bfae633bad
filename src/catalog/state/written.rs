//! [`WrittenRecords`]: what the journal holds, for tests of what the next daemon makes of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::CatalogState;
use crate::catalog::mutation::Mutation;
use crate::model::Millis;

/// The records that were written, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct WrittenRecords(pub(crate) BTreeMap<Bytes, Bytes>);

impl WrittenRecords {
    /// Writes changes, in their order.
    pub(crate) fn write(&mut self, mutations: &[Mutation]) {
        for mutation in mutations {
            match mutation {
                Mutation::Put { key, value } => drop(self.0.insert(key.clone(), value.clone())),
                Mutation::Delete { key } => drop(self.0.remove(key)),
            }
        }
    }

    /// What was written of a state up to now.
    pub(crate) fn of(state: &mut CatalogState) -> Self {
        let mut written = Self::default();
        written.write(&state.take_mutations());
        written
    }

    /// What the next daemon reads, before it has looked at files.
    pub(crate) fn loaded(&self) -> CatalogState {
        let mut state = CatalogState::default();
        self.0.iter().for_each(|(key, value)| state.load(key, value).unwrap());
        state
    }

    /// What the next daemon makes of it.
    pub(crate) fn recovered(&self, at: Millis) -> CatalogState {
        let mut state = self.loaded();
        state.finish_recovery(at);
        state
    }
}
