//! Decides how long a group waits for more segments before it goes to an object store. A pure function.
//!
//! A request costs money and a round trip; a segment that just misses a group costs one more. Segments come in bursts,
//! a checkpoint each, from clients that need some milliseconds between two requests. So a group waits as long as
//! segments keep coming, each within a quarter of the backend's latency of the last, and at least `linger-min`, up to
//! `linger-max`. A segment that comes alone to an idle lane waits for `linger-min` only: it may be the first of a burst.
//! On an append store a group never lingers: what arrives while the last group is synced is the next group.

use std::time::Duration;

use crate::config::LingerSettings;

/// The state of a lane when its group could go.
#[derive(Debug, Clone, Copy)]
pub struct LaneLoad {
    /// Groups of the lane that are on their way to storage.
    pub in_flight: usize,
    /// Since the first segment of the group arrived.
    pub oldest: Duration,
    /// Since the last segment of the group arrived.
    pub newest: Duration,
    /// Segments in the group.
    pub segments: usize,
    /// The time that a put took recently.
    pub latency: Duration,
}

/// The time for which the group waits from now on; zero means that it goes. Asked again whenever a segment arrives.
pub fn linger(load: &LaneLoad, settings: &LingerSettings) -> Duration {
    let idle = load.in_flight == 0 && load.segments <= 1;
    let expected = if idle { Duration::ZERO } else { load.latency.mul_f64(settings.latency_fraction) };
    let gap = expected.max(settings.min).min(settings.max);
    let quiet = gap.saturating_sub(load.newest);
    let left = settings.max.saturating_sub(load.oldest);
    quiet.min(left)
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
        LaneLoad { in_flight, segments, oldest: ms(oldest), newest: ms(newest), latency: ms(40) }
    }

    #[test]
    fn a_lone_segment_on_an_idle_lane_waits_for_a_burst_to_begin() {
        assert_eq!(linger(&load(0, 1, 0, 0), &SETTINGS), ms(5));
        assert_eq!(linger(&load(0, 1, 5, 5), &SETTINGS), Duration::ZERO);
        assert_eq!(linger(&load(0, 1, 0, 0), &LingerSettings { min: Duration::ZERO, ..SETTINGS }), Duration::ZERO);
    }

    #[test]
    fn a_group_waits_while_segments_keep_coming() {
        assert_eq!(linger(&load(1, 5, 30, 0), &SETTINGS), ms(10));
        assert_eq!(linger(&load(1, 5, 30, 10), &SETTINGS), Duration::ZERO);
    }

    #[test]
    fn a_group_never_waits_longer_than_the_limit() {
        assert_eq!(linger(&load(3, 50, 95, 0), &SETTINGS), ms(5));
        assert_eq!(linger(&load(3, 50, 100, 0), &SETTINGS), Duration::ZERO);
    }

    #[test]
    fn linger_max_zero_turns_it_off() {
        let off = LingerSettings { max: Duration::ZERO, ..SETTINGS };

        assert_eq!(linger(&load(3, 50, 0, 0), &off), Duration::ZERO);
    }
}
