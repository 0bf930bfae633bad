//! The recent speed of an object store, and the number of groups of each lane that are on their way to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::lane::LaneKey;

/// The owners' knowledge of the recent speed of an object store, lane by lane.
#[derive(Debug, Default)]
pub struct UploadPace {
    latency_micros: AtomicUsize,
    in_flight: Mutex<HashMap<LaneKey, usize>>,
}

impl UploadPace {
    /// The time that a put takes of late; zero before the first.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_micros.load(Ordering::Relaxed) as u64)
    }

    /// Takes in what a put took: an average in which the last eight puts count for two thirds.
    pub(super) fn took(&self, latency: Duration) {
        let now = usize::try_from(latency.as_micros()).unwrap_or(usize::MAX);
        let before = self.latency_micros.load(Ordering::Relaxed);
        let after = if before == 0 { now } else { before - before / 8 + now / 8 };
        self.latency_micros.store(after, Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self, lane: &LaneKey) -> usize {
        self.in_flight.lock().get(lane).copied().unwrap_or(0)
    }

    /// A group of the lane is on its way, until what is returned is dropped.
    pub(super) fn begin(self: Arc<Self>, lane: LaneKey) -> UploadInFlight {
        *self.in_flight.lock().entry(lane.clone()).or_default() += 1;
        UploadInFlight { pace: self, lane }
    }
}

#[derive(Debug)]
pub(super) struct UploadInFlight {
    pace: Arc<UploadPace>,
    lane: LaneKey,
}

impl Drop for UploadInFlight {
    fn drop(&mut self) {
        let mut in_flight = self.pace.in_flight.lock();
        if let Some(count) = in_flight.get_mut(&self.lane) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(&self.lane);
            }
        }
    }
}
