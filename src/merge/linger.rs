//! Decides how long a group waits for more segments before it goes to an object store. A pure function.
//!
//! A request costs money and a round trip; a segment that just misses a group costs one more. Segments come in bursts,
//! a checkpoint each, from clients that need some milliseconds between two requests. So a group waits as long as
//! segments keep coming, each within a quarter of the backend's latency of the last, and at least `linger-min`, up to
//! `linger-max`. A segment that comes alone to an idle lane waits for `linger-min` only: it may be the first of a burst.
//! On an append store a group never lingers: what arrives while the last group is synced is the next group.
//!
//! Writers that were answered together come back together, and a burst has the segments that bursts of its lane usually have.
//! Three kinds of them would be late by a whole put:
//!
//! - Half of them or more are back and not all. The group waits for four times as much.
//! - A burst has begun, and groups of the lane have had more segments of late: the same.
//! - A few have missed the group that is on its way. If that is a commit, theirs waits for it in any case: so the group stays
//!   open until then, and for those that come back after it, as for any segment.
//!
//! Where fewer are back, they may have said all that they had to say, and nobody waits for them.

use std::time::Duration;

use crate::config::LingerSettings;

/// The state of a lane when its group could go.
#[derive(Debug, Clone, Copy)]
pub struct LaneLoad {
    /// Groups of the lane that are on their way to storage.
    pub in_flight: usize,
    /// Segments of those of them that are a commit and nothing else.
    pub committing: usize,
    /// Segments of the group that was answered a moment ago, and since when it is.
    pub answered: Option<(usize, Duration)>,
    /// Segments that groups of the lane have had of late.
    pub usual: usize,
    /// Since the first segment of the group arrived.
    pub oldest: Duration,
    /// Since the last segment of the group arrived.
    pub newest: Duration,
    /// Segments in the group.
    pub segments: usize,
    /// The time that a put took recently.
    pub latency: Duration,
}

/// How many times as long a group waits for writers of whom most are back.
const FOR_LATE_WRITERS: f64 = 4.0;

/// The time for which the group waits from now on; zero means that it goes. Asked again whenever a segment arrives, and when a
/// group of the lane is over.
pub fn linger(load: &LaneLoad, settings: &LingerSettings) -> Duration {
    let left = settings.max.saturating_sub(load.oldest);
    if load.is_few_of(load.committing) {
        return left;
    }
    let idle = load.in_flight == 0 && load.segments <= 1;
    let expected = if idle { Duration::ZERO } else { load.latency.mul_f64(load.fraction(settings)) };
    let gap = expected.max(settings.min).min(settings.max);
    gap.saturating_sub(load.quiet()).min(left)
}

impl LaneLoad {
    /// Whether the group has less than half of so many segments.
    fn is_few_of(&self, segments: usize) -> bool {
        self.segments * 2 < segments
    }

    /// The part of the latency for which the group waits for the next segment.
    fn fraction(&self, settings: &LingerSettings) -> f64 {
        let more = (settings.latency_fraction * FOR_LATE_WRITERS).min(1.0);
        match self.answered {
            Some((answered, _)) if self.segments < answered && !self.is_few_of(answered) => more,
            _ if self.segments < self.usual => more,
            _ => settings.latency_fraction,
        }
    }

    /// Since when nothing has happened for which the group waits. For a few that stayed open behind a commit, its answer is that.
    fn quiet(&self) -> Duration {
        match self.answered {
            Some((answered, ago)) if self.is_few_of(answered) && ago < self.oldest => self.newest.min(ago),
            _ => self.newest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: LingerSettings =
        LingerSettings { latency_fraction: 0.25, min: Duration::from_millis(5), max: Duration::from_millis(100) };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn load(in_flight: usize, segments: usize, oldest: u64, newest: u64) -> LaneLoad {
        let (oldest, newest) = (ms(oldest), ms(newest));
        LaneLoad { in_flight, committing: 0, answered: None, usual: 0, oldest, newest, segments, latency: ms(40) }
    }

    #[test]
    fn a_lone_segment_on_an_idle_lane_waits_for_a_burst_to_begin() {
        assert_eq!(linger(&load(0, 1, 0, 0), &SETTINGS), ms(5));
        assert_eq!(linger(&load(0, 1, 5, 5), &SETTINGS), Duration::ZERO);
        assert_eq!(linger(&load(0, 1, 0, 0), &LingerSettings { min: Duration::ZERO, ..SETTINGS }), Duration::ZERO);
    }

    #[test]
    fn a_lone_writer_and_the_first_of_many_wait_no_longer_than_any_lone_segment() {
        for answered in [1, 64] {
            let lone = LaneLoad { answered: Some((answered, ms(1))), ..load(0, 1, 0, 0) };
            assert_eq!(linger(&lone, &SETTINGS), ms(5));
        }
    }

    #[test]
    fn a_group_waits_while_segments_keep_coming() {
        assert_eq!(linger(&load(1, 5, 30, 0), &SETTINGS), ms(10));
        assert_eq!(linger(&load(1, 5, 30, 10), &SETTINGS), Duration::ZERO);
    }

    #[test]
    fn a_group_waits_longer_for_the_rest_of_writers_of_whom_most_are_back() {
        let load = |segments, newest| LaneLoad { answered: Some((64, ms(60))), ..load(0, segments, 45, newest) };

        assert_eq!(linger(&load(32, 0), &SETTINGS), ms(40));
        assert_eq!(linger(&load(63, 15), &SETTINGS), ms(25));
        assert_eq!(linger(&load(63, 40), &SETTINGS), Duration::ZERO);
        assert_eq!(linger(&load(64, 0), &SETTINGS), ms(10), "all are back, others may come");
        assert_eq!(linger(&load(31, 0), &SETTINGS), ms(10), "most may have nothing more to say");
    }

    #[test]
    fn a_burst_waits_longer_until_it_has_the_segments_that_bursts_usually_have() {
        let load = |in_flight, segments, newest| LaneLoad { usual: 8, ..load(in_flight, segments, 50, newest) };

        assert_eq!(linger(&load(0, 2, 0), &SETTINGS), ms(40));
        assert_eq!(linger(&load(1, 1, 15), &SETTINGS), ms(25));
        assert_eq!(linger(&load(0, 7, 40), &SETTINGS), Duration::ZERO, "the others do not come");
        assert_eq!(linger(&load(0, 8, 0), &SETTINGS), ms(10), "all are here, others may come");
        assert_eq!(linger(&load(0, 2, 0), &LingerSettings { latency_fraction: 0.0, ..SETTINGS }), ms(5));
        let lone = LaneLoad { usual: 8, ..LaneLoad { oldest: ms(0), ..load(0, 1, 0) } };
        assert_eq!(linger(&lone, &SETTINGS), ms(5), "one that comes alone waits no longer than before");
    }

    #[test]
    fn a_few_that_missed_a_commit_wait_for_it_and_for_those_that_come_back() {
        let few = |committing, segments| LaneLoad { committing, ..load(1, segments, 30, 25) };
        assert_eq!(linger(&few(64, 3), &SETTINGS), ms(70));
        assert_eq!(linger(&few(64, 32), &SETTINGS), Duration::ZERO, "they are many themselves");
        assert_eq!(linger(&few(2, 1), &SETTINGS), Duration::ZERO);
        assert_eq!(linger(&few(0, 1), &SETTINGS), Duration::ZERO, "a file does not keep the next one waiting");

        let behind = |ago| LaneLoad { answered: Some((64, ms(ago))), ..load(0, 3, 60, 55) };
        assert_eq!(linger(&behind(0), &SETTINGS), ms(10));
        assert_eq!(linger(&behind(10), &SETTINGS), Duration::ZERO, "nobody came back");
    }

    #[test]
    fn a_group_never_waits_longer_than_the_limit() {
        assert_eq!(linger(&load(3, 50, 95, 0), &SETTINGS), ms(5));
        assert_eq!(linger(&load(3, 50, 100, 0), &SETTINGS), Duration::ZERO);
        assert_eq!(linger(&LaneLoad { committing: 64, ..load(3, 1, 100, 0) }, &SETTINGS), Duration::ZERO);
    }

    #[test]
    fn linger_max_zero_turns_it_off() {
        let off = LingerSettings { max: Duration::ZERO, ..SETTINGS };

        assert_eq!(linger(&load(3, 50, 0, 0), &off), Duration::ZERO);
        assert_eq!(linger(&LaneLoad { committing: 64, ..load(3, 1, 0, 0) }, &off), Duration::ZERO);
    }
}
