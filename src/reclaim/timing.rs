//! Tells how soon reclaimer and deleter act.

use std::time::Duration;

use crate::config::ReclaimSettings;
use crate::store::RequestPrice;

/// Longest pause before a look for readers that have left.
const READERS_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The times after which reclaimer and deleter act when something happened: fixed parts of `reclaim.interval`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// From the first file that is forgotten to the deletion of all that are by then. On a disk a deletion costs next to
    /// nothing; on an object store it is a request, and others to look whether the catalog is still ours.
    pub(super) collect: Duration,
    /// Before a look for readers that have left.
    pub(super) readers: Duration,
    /// From the first byte that dies to a look at all files. On an object store a look may end in copies, which are the
    /// fewer the more has died.
    pub(super) look: Duration,
}

/// Between two rounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    /// If nothing happens.
    pub(super) longest: Duration,
    /// After something has happened.
    pub(super) rest: Duration,
}

impl Timing {
    pub(super) fn of(settings: &ReclaimSettings, request: RequestPrice) -> Self {
        let interval = settings.interval;
        let readers = (interval / 40).min(READERS_PAUSE_MAX);
        match request {
            RequestPrice::Free => Self { collect: interval / 400, readers, look: interval / 40 },
            RequestPrice::RoundTrip => Self { collect: interval / 2, readers, look: interval / 4 },
        }
    }
}
