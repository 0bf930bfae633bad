//! The operators' view of reclaiming: which jobs are above their limit and for how long, which bytes wait to be deleted,
//! and for what reason. `esker du`, `/v1/space`, the metrics and the log all ask here, so they agree.
//!
//! A job's space amplification is the bytes of its physical files divided by the living bytes in them. All of its files
//! count until they are deleted: open ones, and those that only wait for that. What is inside the catalog is left out of
//! both, and told beside.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::catalog::state::{ForgottenFile, LaneSpace};
use crate::config::{ReclaimSettings, Settings};
use crate::model::{Forgotten, Millis, PhysicalFileId};
use crate::runtime::{Ages, Clock};
use crate::store::Capabilities;

/// A file takes a page more than its living bytes, whatever is done: that much above the limit is not above it.
const FILE_BYTES_MIN: u64 = 4096;

/// Why a file that nobody needs is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It is being read.
    Readers,
    /// Its segments were moved, or its upload was given up, less than `reclaim.delete-grace` ago.
    Grace,
    /// It is the next files' turn: those that die together are deleted together, at `reclaim.delete-rate`.
    Rate,
    /// Storage refused to delete it; it is tried again.
    Refused,
}

/// Bytes that wait to be deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeletionBacklog {
    /// Bytes that wait for [`Wait::Readers`].
    pub readers: u64,
    /// Bytes that wait for [`Wait::Grace`].
    pub grace: u64,
    /// Bytes that wait for [`Wait::Rate`].
    pub rate: u64,
    /// Bytes that wait for [`Wait::Refused`].
    pub refused: u64,
}

impl DeletionBacklog {
    /// Both together.
    pub fn plus(self, other: &Self) -> Self {
        Self {
            readers: self.readers + other.readers,
            grace: self.grace + other.grace,
            rate: self.rate + other.rate,
            refused: self.refused + other.refused,
        }
    }

    /// Takes in a file that waits for `why`.
    pub fn add(&mut self, why: Wait, bytes: u64) {
        *match why {
            Wait::Readers => &mut self.readers,
            Wait::Grace => &mut self.grace,
            Wait::Rate => &mut self.rate,
            Wait::Refused => &mut self.refused,
        } += bytes;
    }
}

/// The time that a forgotten file has to wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grace {
    grace: Duration,
    /// Nothing arrives late.
    exclusive: bool,
}

impl Grace {
    pub(super) fn new(settings: &ReclaimSettings, store: Capabilities) -> Self {
        Self { grace: settings.delete_grace, exclusive: store.exclusive }
    }

    /// The time until a file that was forgotten for this reason at `since` may be deleted; zero if that is now.
    pub(super) fn left(self, why: Forgotten, since: Millis, ages: Ages) -> Duration {
        match why {
            Forgotten::Died => Duration::ZERO,
            // Whoever might still have sent it held the lock, and has ended.
            Forgotten::GivenUp if self.exclusive => Duration::ZERO,
            // Nobody was told the places there, and the catalog says so with a time before all.
            Forgotten::Moved if since == Millis(0) => Duration::ZERO,
            // As watched by this process: had the machine's clock been set, the grace would not have passed for others.
            Forgotten::GivenUp | Forgotten::Moved => self.grace.saturating_sub(ages.watched(since)),
        }
    }
}

/// Clones share what they know.
#[derive(Debug, Clone)]
pub struct Watch {
    pub(super) grace: Grace,
    limit: Option<f64>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    read: HashSet<PhysicalFileId>,
    refused: HashSet<PhysicalFileId>,
    above_since: Option<Instant>,
}

impl Watch {
    /// The grace of a daemon on such a store, or of what one has left there.
    pub fn new(settings: &Settings, store: Capabilities) -> Self {
        let reclaim = &settings.reclaim;
        let (grace, limit) = (Grace::new(reclaim, store), reclaim.space_amplification_max);
        Self { grace, limit, known: Arc::default() }
    }

    /// These files could not be deleted: they are `read`, or storage has `refused`.
    pub(super) fn held<'a>(
        &self,
        read: impl Iterator<Item = &'a PhysicalFileId>,
        refused: impl Iterator<Item = &'a PhysicalFileId>,
    ) {
        let (read, refused) = (read.cloned().collect(), refused.cloned().collect());
        let mut known = self.known.lock();
        (known.read, known.refused) = (read, refused);
    }

    /// The reason for which a file that is to be deleted still waits.
    pub fn why(&self, file: &ForgottenFile, ages: Ages) -> Wait {
        if !self.grace.left(file.why, file.since, ages).is_zero() {
            return Wait::Grace;
        }
        let known = self.known.lock();
        if known.refused.contains(&file.id) {
            Wait::Refused
        } else if known.read.contains(&file.id) {
            Wait::Readers
        } else {
            Wait::Rate
        }
    }

    /// The bytes of all these files by the reason for which they wait.
    pub fn waiting(&self, forgotten: &[ForgottenFile], ages: Ages) -> DeletionBacklog {
        let mut waiting = DeletionBacklog::default();
        for file in forgotten {
            waiting.add(self.why(file, ages), file.occupied);
        }
        waiting
    }

    /// The number of jobs above their limit, and the time for which some job has been.
    pub fn above(&self, jobs: &[LaneSpace]) -> (usize, Duration) {
        let jobs = self.limit.map_or(0, |limit| jobs_above(jobs, limit));
        let mut known = self.known.lock();
        known.above_since = if jobs > 0 { known.above_since.or_else(|| Some(Clock::instant())) } else { None };
        (jobs, known.above_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

fn jobs_above(jobs: &[LaneSpace], limit: f64) -> usize {
    let above = jobs.iter().filter(|job| {
        let allowed = limit * job.space.live_bytes as f64 + (FILE_BYTES_MIN * job.files) as f64;
        job.space.physical_bytes as f64 > allowed
    });
    above.count()
}
