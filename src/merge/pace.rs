//! The recent speed of an object store, and what each lane has on its way to it and was answered last.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::lane::LaneKey;
use crate::runtime::Clock;

/// Lanes that are kept in mind before those to which nothing happens are looked for.
const LANES_MIN: usize = 64;

/// The owners' knowledge of the recent speed of an object store, lane by lane.
#[derive(Debug, Default)]
pub struct UploadPace {
    latency_micros: AtomicUsize,
    lanes: Mutex<LanePaces>,
    /// Rung when a group is over, for whoever waits for its writers to come back.
    over: Notify,
}

#[derive(Debug, Default)]
struct LanePaces {
    by_key: HashMap<LaneKey, LanePace>,
    /// Lanes that were left when those to which nothing happens were looked for.
    left: usize,
}

/// What a lane has on its way, and was answered last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LanePace {
    /// Groups on their way.
    pub groups: usize,
    /// Parcels of those that are a commit and nothing else.
    pub committing: usize,
    /// The group that was answered last.
    pub answered: Option<Answered>,
    /// Parcels that its groups have had of late.
    pub usual: usize,
}

/// A group that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    /// Its parcels.
    pub parcels: usize,
    pub at: Instant,
}

/// How a group is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupIn {
    /// In a file of its own.
    File,
    /// In the catalog's record. The next commit waits for it in any case.
    Commit,
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

    /// What is known of a lane.
    pub(super) fn of_lane(&self, lane: &LaneKey) -> LanePace {
        self.lanes.lock().by_key.get(lane).copied().unwrap_or_default()
    }

    /// Resolves when a group is over.
    pub(super) fn over(&self) -> Notified<'_> {
        self.over.notified()
    }

    /// A group of so many parcels is on its way, until what is returned is dropped. What was answered longer than `recent` ago
    /// may be forgotten.
    pub(super) fn begin(
        self: Arc<Self>,
        lane: LaneKey,
        parcels: usize,
        written: GroupIn,
        recent: Duration,
    ) -> UploadInFlight {
        let committing = if written == GroupIn::Commit { parcels } else { 0 };
        self.lanes.lock().begin(lane.clone(), parcels, committing, recent);
        UploadInFlight { pace: self, lane, committing }
    }
}

impl LanePaces {
    fn begin(&mut self, lane: LaneKey, parcels: usize, committing: usize, recent: Duration) {
        if self.by_key.len() >= LANES_MIN.max(self.left * 2) {
            let now = Clock::instant();
            self.by_key.retain(|_, pace| pace.groups > 0 || pace.answered.is_some_and(|it| it.is_recent(now, recent)));
            self.left = self.by_key.len();
        }
        let pace = self.by_key.entry(lane).or_default();
        pace.groups += 1;
        // That of the largest one, which the smaller ones after it make a quarter of the way to their own.
        pace.usual = parcels.max(pace.usual - pace.usual.saturating_sub(parcels).div_ceil(4));
        pace.committing += committing;
    }
}

impl Answered {
    /// Whether that was no longer than `recent` before `now`.
    pub(super) fn is_recent(&self, now: Instant, recent: Duration) -> bool {
        now.saturating_duration_since(self.at) <= recent
    }
}

/// Counts a group as on its way.
#[derive(Debug)]
pub(super) struct UploadInFlight {
    pace: Arc<UploadPace>,
    lane: LaneKey,
    committing: usize,
}

impl UploadInFlight {
    /// So many of its parcels are about to be answered: their writers may come back with the next.
    pub(super) fn answers(&self, parcels: usize) {
        if let Some(pace) = self.pace.lanes.lock().by_key.get_mut(&self.lane) {
            pace.answered = Some(Answered { parcels, at: Clock::instant() });
        }
    }
}

impl Drop for UploadInFlight {
    fn drop(&mut self) {
        if let Some(pace) = self.pace.lanes.lock().by_key.get_mut(&self.lane) {
            pace.groups -= 1;
            pace.committing -= self.committing;
        }
        self.pace.over.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lane, LaneOf, StateScope};

    const RECENT: Duration = Duration::from_secs(3600);

    fn lane(job: usize) -> LaneKey {
        let job = Some(format!("job-{job}").parse().unwrap());
        LaneKey { lane: Lane { job, scope: StateScope::Shared, of: LaneOf::All }, checkpoint: None }
    }

    fn of(pace: &UploadPace, job: usize) -> (usize, usize, Option<usize>) {
        let LanePace { groups, committing, answered, .. } = pace.of_lane(&lane(job));
        (groups, committing, answered.map(|answered| answered.parcels))
    }

    #[test]
    fn a_lane_has_groups_on_their_way_and_one_that_was_answered_last() {
        let pace = Arc::new(UploadPace::default());

        let first = Arc::clone(&pace).begin(lane(1), 7, GroupIn::Commit, RECENT);
        let second = Arc::clone(&pace).begin(lane(1), 5, GroupIn::File, RECENT);
        assert_eq!(of(&pace, 1), (2, 7, None));
        first.answers(6);
        drop(first);

        assert_eq!(of(&pace, 1), (1, 0, Some(6)));
        assert_eq!(of(&pace, 2), (0, 0, None));
        drop(second);
        assert_eq!(of(&pace, 1), (0, 0, Some(6)), "the second was not answered");
    }

    #[test]
    fn what_is_usual_is_the_size_of_the_largest_group_of_late() {
        let pace = Arc::new(UploadPace::default());
        let usual_after = |groups: &[usize]| {
            groups.iter().for_each(|parcels| drop(Arc::clone(&pace).begin(lane(1), *parcels, GroupIn::Commit, RECENT)));
            pace.of_lane(&lane(1)).usual
        };

        assert_eq!(usual_after(&[2, 8]), 8);
        assert_eq!(usual_after(&[3]), 6);
        assert_eq!(usual_after(&[8, 8, 1]), 6, "a burst of two waves, and what it ends with");
        assert_eq!(usual_after(&[1; 6]), 1, "one writer is left");
    }

    #[test]
    fn lanes_to_which_nothing_happens_are_forgotten() {
        let pace = Arc::new(UploadPace::default());
        let begin = |job, recent| Arc::clone(&pace).begin(lane(job), 1, GroupIn::Commit, recent);
        let waits = begin(0, RECENT);

        for job in 1..1000 {
            begin(job, RECENT).answers(1);
        }
        assert_eq!(pace.lanes.lock().by_key.len(), 1000, "all were answered a moment ago");
        for job in 1000..3000 {
            begin(job, Duration::ZERO);
        }

        assert!(pace.lanes.lock().by_key.len() <= LANES_MIN, "{:?}", pace.lanes.lock().left);
        assert_eq!(of(&pace, 0), (1, 1, None));
        drop(waits);
    }

    #[tokio::test]
    async fn the_end_of_a_group_is_told() {
        let pace = Arc::new(UploadPace::default());
        let group = Arc::clone(&pace).begin(lane(1), 1, GroupIn::Commit, RECENT);
        let mut over = std::pin::pin!(pace.over());
        over.as_mut().enable();

        drop(group);

        over.await;
    }
}
