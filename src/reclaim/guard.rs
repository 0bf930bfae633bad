//! When something is off: nothing is destroyed then, and the log says why.

use std::time::{Duration, Instant};

use crate::model::{Millis, PhysicalFileId};
use crate::runtime::Clock;

/// Two clocks that drift apart by more than this between two looks: one of them was set.
const DRIFT_MAX: Duration = Duration::from_secs(60);
/// More unnamed files than this, and than [`UNNAMED_SHARE_MAX`] of all: this is not the catalog that belongs to them.
const UNNAMED_FILES_MAX: usize = 64;
const UNNAMED_SHARE_MAX: f64 = 0.5;

/// Why nothing is deleted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The wall clock jumped, and with it the age of everything.
    #[error("the clock jumped by {0:?}: nothing is deleted for {1:?}")]
    ClockJumped(Duration, Duration),
    /// Files of a later epoch than the catalog's own.
    #[error(
        "{0} was written in a later epoch than the catalog's ({1}): the catalog is older than the files. Nothing is swept. Put \
         the newer catalog back, or rebuild it with `esker rebuild`"
    )]
    CatalogOlder(PhysicalFileId, u64),
    /// Most of what is there is unknown.
    #[error(
        "{unnamed} of {listed} files are not in the catalog: it may be the wrong one. Nothing is swept. If it is the right one, \
         run `esker gc --force`"
    )]
    TooMuch {
        /// Files that the catalog does not name.
        unnamed: usize,
        /// Files that are there.
        listed: usize,
    },
}

/// Watches the wall clock against one that only measures durations.
#[derive(Debug)]
pub struct ClockGuard {
    seen: Option<(Millis, Instant)>,
    jumped: Option<(Duration, Instant)>,
    /// For how long after a jump ages count for nothing.
    rest: Duration,
}

impl ClockGuard {
    /// After a jump nothing is destroyed for `rest`: by then every grace has passed on the other clock.
    pub fn new(rest: Duration) -> Self {
        Self { seen: None, jumped: None, rest }
    }

    /// Looks at both clocks.
    ///
    /// # Errors
    /// [`Refused::ClockJumped`] while ages cannot be trusted.
    pub fn check(&mut self, now: Millis) -> Result<(), Refused> {
        self.check_at(now, Clock::instant())
    }

    fn check_at(&mut self, now: Millis, instant: Instant) -> Result<(), Refused> {
        if let Some((before, then)) = self.seen.replace((now, instant)) {
            let wall = i128::from(now.0) - i128::from(before.0);
            let other = i128::try_from(instant.saturating_duration_since(then).as_millis()).unwrap_or(i128::MAX);
            let drift = Duration::from_millis(u64::try_from((wall - other).unsigned_abs()).unwrap_or(u64::MAX));
            if drift > DRIFT_MAX {
                self.jumped = Some((drift, instant));
            }
        }
        match self.jumped {
            Some((by, at)) if instant.saturating_duration_since(at) < self.rest => {
                Err(Refused::ClockJumped(by, self.rest))
            }
            _ => {
                self.jumped = None;
                Ok(())
            }
        }
    }
}

/// Whether files that the catalog does not name may be taken for litter.
///
/// # Errors
/// [`Refused`] if the catalog does not look like the one that wrote the files.
pub fn check_unnamed(epoch: u64, unnamed: &[PhysicalFileId], listed: usize) -> Result<(), Refused> {
    if let Some(newer) = unnamed.iter().find(|file| file.epoch() > epoch) {
        return Err(Refused::CatalogOlder(newer.clone(), epoch));
    }
    if unnamed.len() > UNNAMED_FILES_MAX && unnamed.len() as f64 > listed as f64 * UNNAMED_SHARE_MAX {
        return Err(Refused::TooMuch { unnamed: unnamed.len(), listed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_stops_deleting_until_every_grace_has_passed_again() {
        let mut guard = ClockGuard::new(Duration::from_secs(300));
        let start = Clock::instant();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(guard.check_at(Millis(1_000_000), start), Ok(()));
        assert_eq!(guard.check_at(Millis(1_010_000), after(10)), Ok(()));

        let jumped = guard.check_at(Millis(9_020_000), after(20));

        assert!(matches!(jumped, Err(Refused::ClockJumped(by, _)) if by == Duration::from_secs(8000)));
        assert!(guard.check_at(Millis(9_120_000), after(120)).is_err());
        assert_eq!(guard.check_at(Millis(9_320_000), after(320)), Ok(()));
        assert!(guard.check_at(Millis(9_000_000), after(330)).is_err(), "back is a jump, too");
    }

    #[test]
    fn a_catalog_that_does_not_belong_to_the_files_is_noticed() {
        let file = |epoch, n| PhysicalFileId::new(None, epoch, n);
        let many: Vec<PhysicalFileId> = (0..100).map(|n| file(1, n)).collect();

        assert_eq!(check_unnamed(5, &[file(4, 1), file(5, 2)], 2), Ok(()));
        assert!(matches!(check_unnamed(5, &[file(6, 1)], 2), Err(Refused::CatalogOlder(..))));
        assert!(matches!(check_unnamed(5, &many, 150), Err(Refused::TooMuch { unnamed: 100, listed: 150 })));
        assert_eq!(check_unnamed(5, &many, 1000), Ok(()));
    }
}
