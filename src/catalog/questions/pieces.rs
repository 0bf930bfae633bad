//! Looks at the state in pieces, between which others are let in.
//!
//! A look sees each thing as it is when its turn comes; the question says why that is enough.

use parking_lot::RwLockReadGuard;

use crate::catalog::Catalog;
use crate::catalog::hold::LockHold;
use crate::catalog::state::CatalogState;

impl Catalog {
    /// Looks at the state in pieces: `step` goes on until it is told to stop, and says what came out when it has seen all.
    pub(in crate::catalog) fn in_pieces<T>(
        &self,
        mut step: impl FnMut(&CatalogState, &mut dyn FnMut() -> bool) -> Option<T>,
    ) -> T {
        loop {
            if let Some(seen) = self.one_piece(&mut step) {
                return seen;
            }
        }
    }

    /// The same for a look that may go over every segment: other tasks run between the pieces, too.
    pub(in crate::catalog) async fn in_pieces_async<T>(
        &self,
        mut step: impl FnMut(&CatalogState, &mut dyn FnMut() -> bool) -> Option<T>,
    ) -> T {
        loop {
            if let Some(seen) = self.one_piece(&mut step) {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks at the state for each of `all`, in pieces.
    pub(in crate::catalog) fn for_each<T>(
        &self,
        all: impl IntoIterator<Item = T>,
        mut look: impl FnMut(&CatalogState, T),
    ) {
        let mut all = all.into_iter();
        self.in_pieces(|state, goes_on| {
            for one in all.by_ref() {
                look(state, one);
                if !goes_on() {
                    return None;
                }
            }
            Some(())
        });
    }

    fn one_piece<T>(&self, step: &mut impl FnMut(&CatalogState, &mut dyn FnMut() -> bool) -> Option<T>) -> Option<T> {
        let state = self.view();
        let mut hold = LockHold::begin();
        let seen = step(&state, &mut || hold.goes_on());
        // To whoever waits: otherwise the next piece would often be first.
        RwLockReadGuard::unlock_fair(state);
        seen
    }
}
