//! A clock for what is recorded, above a machine's clock that may be wrong and may be set at any time.
//!
//! Recorded stamps must not go back: SlateDB refuses a write with a smaller tick than the last one, and a machine whose
//! clock was right today may have been a month ahead yesterday, or belong to a daemon that was. So the clock has a floor,
//! the newest stamp on record. While the machine's clock is behind it, the clock goes on from there at a tenth of the speed:
//! it runs ahead of real time by less and less, until real time has caught up. Were it to stand still, nothing could tell
//! what was recorded sooner from what was recorded later, and whatever waits for a time to come (SlateDB's superseded
//! tables) would wait until then.
//!
//! Ages are measured where they can be: by the machine's clock for a stamp that it has reached, by the monotonic clock for
//! one that it has not.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::clock::{Clock, since};
use crate::model::Millis;

/// While the machine's clock is behind, so many milliseconds are recorded as one.
const SLOWDOWN: u64 = 10;
/// Two clocks that drift apart by more than this between two looks: one of them was set.
const DRIFT_MAX: Duration = Duration::from_secs(60);
/// A stamp that is later than the last one by no more may have been recorded while ages were compared.
const MEANWHILE: Duration = Duration::from_secs(60);
/// No stamp is later: the largest time of a ULID.
const STAMP_MAX: u64 = (1 << 48) - 1;

/// The clock that [`Clock::floored`] makes.
#[derive(Debug)]
pub struct Floored {
    wall: Clock,
    /// Since when this process can have seen a stamp.
    begun: Instant,
    line: Mutex<LastStamp>,
}

/// The ages of stamps at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    wall: Millis,
    last: Millis,
    /// From which stamp the clock goes on slowly, and for how long it has.
    lead: Option<(Millis, Duration)>,
    /// For how long this process can have seen a stamp.
    begun: Duration,
    /// For how long it has seen both clocks agree.
    watched: Duration,
}

impl Ages {
    /// Ages by a machine's clock alone.
    pub(super) fn by(wall: Millis) -> Self {
        Self { wall, last: wall, lead: None, begun: Duration::ZERO, watched: Duration::MAX }
    }

    /// The time since `stamp` was recorded, as far as the clocks tell. A stamp that the machine's clock has not reached
    /// counts from when this process first saw it.
    pub fn of(&self, stamp: Millis) -> Duration {
        if stamp <= self.wall {
            return since(stamp, self.wall);
        }
        match self.lead {
            Some((from, passed)) if stamp <= self.last => {
                let made_after = Duration::from_millis(stamp.0.saturating_sub(from.0).saturating_mul(SLOWDOWN));
                passed.saturating_sub(made_after)
            }
            // Later than anything that this process recorded or knew of: it was there before.
            _ if since(self.last, stamp) > MEANWHILE => self.begun,
            _ => Duration::ZERO,
        }
    }

    /// The same, and no more than this process has watched itself since it started and since the machine's clock was last
    /// set. For what cannot be undone: an age may be as wrong as the clock.
    pub fn watched(&self, stamp: Millis) -> Duration {
        self.of(stamp).min(self.watched)
    }
}

#[derive(Debug)]
struct LastStamp {
    /// The newest stamp that was recorded, or given out to be.
    last: u64,
    /// While the machine's clock is behind that: from which stamp the clock goes on slowly, and since when.
    lead: Option<(u64, Instant)>,
    /// The last look at both clocks.
    looked: (Millis, Instant),
    /// Since when they agree.
    agree: Instant,
    /// A jump that nobody was told of yet.
    untold: Option<Duration>,
}

impl Floored {
    pub(super) fn new(wall: Clock) -> Self {
        let (now, begun) = (wall.wall(), Clock::instant());
        let line = LastStamp { last: 0, lead: None, looked: (now, begun), agree: begun, untold: None };
        Self { wall, begun, line: Mutex::new(line) }
    }

    pub(super) fn since_boot(&self) -> Duration {
        self.wall.since_boot()
    }

    pub(super) fn wall(&self) -> Millis {
        self.wall.wall()
    }

    pub(super) fn now(&self) -> Millis {
        let mut line = self.line.lock();
        // Read under the lock: another thread's earlier look must not seem to be a step back.
        line.look(self.wall.wall(), Clock::instant())
    }

    pub(super) fn raise(&self, floor: Millis) {
        let mut line = self.line.lock();
        if floor.0.min(STAMP_MAX) > line.last {
            line.last = floor.0.min(STAMP_MAX);
            line.lead = None;
        }
    }

    pub(super) fn ages(&self) -> Ages {
        let mut line = self.line.lock();
        let (wall, instant) = (self.wall.wall(), Clock::instant());
        let last = line.look(wall, instant);
        let passed = |since: Instant| instant.saturating_duration_since(since);
        let lead = line.lead.map(|(from, since)| (Millis(from), passed(since)));
        Ages { wall, last, lead, begun: passed(self.begun), watched: passed(line.agree) }
    }

    pub(super) fn jumped(&self) -> Option<Duration> {
        let mut line = self.line.lock();
        line.look(self.wall.wall(), Clock::instant());
        line.untold.take()
    }
}

impl LastStamp {
    /// Takes in what both clocks say, and returns what this one does.
    fn look(&mut self, wall: Millis, instant: Instant) -> Millis {
        let (wall_before, before) = std::mem::replace(&mut self.looked, (wall, instant));
        let passed = u64::try_from(instant.saturating_duration_since(before).as_millis()).unwrap_or(u64::MAX);
        let drift = Duration::from_millis(wall.0.abs_diff(wall_before.0.saturating_add(passed)));
        if drift > DRIFT_MAX {
            self.agree = instant;
            self.untold = Some(drift);
        }
        if wall.0 >= self.last {
            self.lead = None;
            self.last = wall.0.min(STAMP_MAX);
        } else {
            let (from, since) = *self.lead.get_or_insert((self.last, instant));
            let passed = u64::try_from(instant.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
            self.last = self.last.max(from.saturating_add(passed / SLOWDOWN)).min(STAMP_MAX);
        }
        Millis(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOON: u64 = 1_800_000_000_000;

    /// A line at noon, and what it says when so many seconds have passed and the machine's clock says that.
    fn line() -> (LastStamp, impl Fn(&mut LastStamp, u64, u64) -> u64) {
        let begun = Clock::instant();
        let looked = (Millis(NOON), begun);
        let line = LastStamp { last: 0, lead: None, looked, agree: begun, untold: None };
        (line, move |line: &mut LastStamp, seconds, wall| {
            line.look(Millis(wall), begun + Duration::from_secs(seconds)).0
        })
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let (mut line, look) = line();

        assert_eq!(look(&mut line, 0, NOON), NOON);
        assert_eq!(look(&mut line, 10, NOON + 10_000), NOON + 10_000);
        assert_eq!((line.lead, line.untold), (None, None));
    }

    #[test]
    fn a_clock_that_was_set_back_creeps_until_real_time_has_caught_up() {
        let (mut line, look) = line();
        assert_eq!(look(&mut line, 0, NOON + HOUR), NOON + HOUR);

        let crept: Vec<u64> =
            [0, 100, 1000].map(|seconds| look(&mut line, seconds, NOON + seconds * 1000) - NOON - HOUR).into();

        assert_eq!(crept, [0, 10_000, 100_000]);
        // An hour behind is made up for in an hour and seven minutes.
        assert_eq!(look(&mut line, 4000, NOON + 4_000_000), NOON + 4_000_000);
        assert_eq!(look(&mut line, 4001, NOON + 4_001_000), NOON + 4_001_000);
    }

    #[test]
    fn a_jump_is_told_once_and_ends_the_agreement() {
        let (mut line, look) = line();
        look(&mut line, 10, NOON + 10_000);
        assert_eq!(line.untold.take(), None);

        look(&mut line, 20, NOON + 20_000 + HOUR);

        assert_eq!(line.untold.take(), Some(Duration::from_secs(3600)));
        let jumped = line.agree;
        look(&mut line, 30, NOON + 30_000 + HOUR);
        assert_eq!((line.untold, line.agree), (None, jumped));
    }

    #[test]
    fn a_stamp_ahead_of_the_machine_counts_from_when_it_was_first_seen() {
        let time = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(NOON));
        let clock = Clock::Manual(std::sync::Arc::clone(&time)).floored();
        clock.raise(Millis(NOON + HOUR));
        let recorded = clock.now();
        std::thread::sleep(Duration::from_millis(30));

        let later = clock.now();
        let ages = clock.ages();

        for stamp in [Millis(NOON + HOUR), recorded, Millis(u64::MAX)] {
            let age = ages.of(stamp);
            assert!(age >= Duration::from_millis(20) && age < Duration::from_secs(60), "{stamp:?}: {age:?}");
        }
        assert_eq!(ages.of(Millis(later.0 + 5)), Duration::ZERO, "recorded meanwhile");
        assert!(later >= recorded && ages.of(later) < Duration::from_millis(20), "{:?}", ages.of(later));
        assert_eq!(ages.of(Millis(NOON - HOUR)), Duration::from_secs(3600));
        assert!(ages.watched(Millis(NOON - HOUR)) < Duration::from_secs(60), "nobody watched that hour");
        assert!(clock.behind() > Duration::from_secs(3599));
    }
}
