//! When the next periodic checkpoint is due: at a fixed rate, so that delays do not add up.
//!
//! # Source
//! `CheckpointCoordinator.ScheduledTrigger` of Flink.

use std::time::Duration;

/// The plan for periodic checkpoints.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    runs: bool,
    /// `None` while none is planned, because the interval is off.
    planned: Option<Duration>,
}

impl Schedule {
    /// Begins: the first one is due after `delay`.
    pub fn start(&mut self, now: Duration, delay: Duration) {
        *self = Self { runs: true, planned: Some(now + delay) };
    }

    /// Ends; nothing is planned.
    pub fn stop(&mut self) {
        *self = Self::default();
    }

    /// Whether it was begun.
    pub fn runs(&self) -> bool {
        self.runs
    }

    /// When the next one is due.
    pub fn planned(&self) -> Option<Duration> {
        self.planned
    }

    /// Whether one is due. The next one is planned an interval after this one was planned; none if the interval is off.
    pub fn fires(&mut self, now: Duration, interval: Option<Duration>) -> bool {
        let Some(planned) = self.planned.filter(|planned| *planned <= now) else { return false };
        self.planned = interval.map(|interval| planned + interval);
        true
    }

    /// The interval is another one: one that is due sooner now is planned anew, a later one stays.
    pub fn interval_changed(&mut self, now: Duration, interval: Option<Duration>) {
        let Some(interval) = interval.filter(|_| self.runs) else { return };
        if self.planned.is_none_or(|planned| now + interval < planned) {
            self.planned = Some(now + interval);
        }
    }

    /// The next one is due after `delay`.
    pub fn put_off(&mut self, now: Duration, delay: Duration) {
        if self.runs {
            self.planned = Some(now + delay);
        }
    }
}
