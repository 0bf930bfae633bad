//! Bounds how long the state's lock is held at a time: whoever has much to look at or to change lets others in after [`HOLD`].

use std::time::Duration;

use parking_lot::RwLockWriteGuard;
use tokio::time::Instant;

use super::state::CatalogState;
use crate::runtime::Clock;

/// Nobody holds the lock much longer: half of a millisecond, so that one more step still ends within one.
const HOLD: Duration = Duration::from_micros(500);
/// Steps between two looks at the clock, of those that take a fraction of a microsecond.
const STEPS_PER_LOOK: u32 = 8;

/// One hold of the lock.
#[derive(Debug)]
pub(super) struct LockHold {
    begun: Instant,
    steps: u32,
}

impl LockHold {
    pub(super) fn begin() -> Self {
        Self { begun: Clock::instant(), steps: 0 }
    }

    /// Whether others should be let in.
    pub(super) fn is_over(&self) -> bool {
        self.begun.elapsed() >= HOLD
    }

    /// The same after one small step of many.
    pub(super) fn goes_on(&mut self) -> bool {
        self.steps += 1;
        !self.steps.is_multiple_of(STEPS_PER_LOOK) || !self.is_over()
    }
}

/// The state, held by somebody who changes it in many steps.
pub(super) struct WriteHold<'a> {
    pub(super) state: RwLockWriteGuard<'a, CatalogState>,
    hold: LockHold,
}

impl<'a> WriteHold<'a> {
    pub(super) fn begin(mut state: RwLockWriteGuard<'a, CatalogState>) -> Self {
        state.opened();
        Self { state, hold: LockHold::begin() }
    }

    /// Between two steps: lets others in if it has been long.
    pub(super) fn breathe(&mut self) {
        if self.hold.is_over() {
            RwLockWriteGuard::bump(&mut self.state);
            self.state.opened();
            self.hold = LockHold::begin();
        }
    }

    /// Does some of what is left of earlier commands.
    pub(super) fn work(&mut self, at: crate::model::Millis) {
        let Self { state, hold } = self;
        state.work(at, || !hold.is_over());
    }
}
