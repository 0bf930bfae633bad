//! Time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::floor::{Ages, Floored};
use crate::model::Millis;

/// The clocks of a machine.
pub trait MachineClocks: fmt::Debug + Send + Sync {
    /// The wall clock, in milliseconds since 1970.
    fn wall(&self) -> Millis;

    /// The time since the boot: see [`Clock::since_boot`].
    fn since_boot(&self) -> Duration;
}

/// Tells the time. A clone tells the same time.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// The machine's clock, wrong by so many milliseconds: tests step it.
    Shifted(Arc<AtomicI64>),
    /// A clock that tests set, in milliseconds since 1970.
    Manual(Arc<AtomicU64>),
    /// The clocks of a machine that is not this one: a simulated one's.
    Given(Arc<dyn MachineClocks>),
    /// One of the above that never says less than was recorded before: see [`Clock::floored`].
    Floored(Arc<Floored>),
}

impl Clock {
    /// The clock of a daemon: [`Self::now`] never goes back, nor below what [`Self::raise`] was told, and ages are right
    /// whatever the machine's clock does.
    pub fn floored(self) -> Self {
        match self {
            Self::Floored(_) => self,
            wall => Self::Floored(Arc::new(Floored::new(wall))),
        }
    }

    /// Milliseconds since 1970-01-01 UTC, for what is recorded.
    pub fn now(&self) -> Millis {
        match self {
            Self::Floored(floored) => floored.now(),
            plain => plain.wall(),
        }
    }

    /// The same as the machine says, right or wrong.
    pub fn wall(&self) -> Millis {
        match self {
            Self::System => system(),
            Self::Shifted(by) => Millis(system().0.saturating_add_signed(by.load(Ordering::Relaxed))),
            Self::Manual(now) => Millis(now.load(Ordering::Relaxed)),
            Self::Given(clocks) => clocks.wall(),
            Self::Floored(floored) => floored.wall(),
        }
    }

    /// Lets [`Self::now`] say at least `floor` from here on: somebody has recorded it.
    pub fn raise(&self, floor: Millis) {
        if let Self::Floored(floored) = self {
            floored.raise(floor);
        }
    }

    /// Returns the ages of stamps as of now.
    pub fn ages(&self) -> Ages {
        match self {
            Self::Floored(floored) => floored.ages(),
            plain => Ages::by(plain.wall()),
        }
    }

    /// The time by which the machine's clock is behind the newest stamp on record.
    pub fn behind(&self) -> Duration {
        since(self.wall(), self.now())
    }

    /// The time by which the machine's clock jumped, forward or back, if it did so since the last call.
    pub fn jumped(&self) -> Option<Duration> {
        match self {
            Self::Floored(floored) => floored.jumped(),
            _ => None,
        }
    }

    /// The time since the machine was booted, that in which it was suspended or this process stopped among it.
    pub fn since_boot(&self) -> Duration {
        match self {
            Self::Given(clocks) => return clocks.since_boot(),
            Self::Floored(floored) => return floored.since_boot(),
            Self::System | Self::Shifted(_) | Self::Manual(_) => {}
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
    }

    /// A point in time that only measures durations, by the clock that the sleeps of the runtime go by.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn instant() -> Instant {
        Instant::now()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn system() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time from one stamp to another; zero if that is earlier.
pub(super) fn since(stamp: Millis, now: Millis) -> Duration {
    Duration::from_millis(now.0.saturating_sub(stamp.0))
}
