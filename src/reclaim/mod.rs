//! Getting space back.
//!
//! Two tasks. The *reclaimer* looks at all files, makes a [`plan`](mod@plan) and carries it out: open files with dead bytes
//! are closed, on a local disk dead ranges are given back in place ([`punch`]), elsewhere the living segments of files with
//! too many dead bytes are copied into new files ([`rewrite`]), and small survivors are packed together. The *deleter*
//! deletes what the catalog has forgotten ([`delete`]) and looks for files that the catalog does not name ([`sweep`]).
//!
//! The catalog wakes both when there may be something to do, and `timing` says how soon they act then: an idle daemon
//! stays idle, and what a look costs stays a small part of the time.
//!
//! - [`plan`](mod@plan): what to do. Pure.
//! - [`survey`]: from the catalog to what the planner sees.
//! - [`pressure`]: whether writers or the backend need the bandwidth now.
//! - [`guard`]: when something is off, and nothing is destroyed.
//! - [`watch`](mod@watch): what operators see of it.
//!
//! On a full disk nothing is copied: what is dead as a whole is deleted, other dead ranges are punched, whatever the limit.
//!
//! # Invariants
//! - Nothing is destroyed before the store was seen to be the one that the catalog belongs to ([`crate::store::StoreGuard`]).
//! - Nothing is destroyed before a durable commit says that nobody needs it.
//! - Nothing is destroyed under a read that may have looked it up, unless the read makes no progress for
//!   `limits.read-lease`; and a read keeps the files alone that it looked something up in ([`crate::runtime::Leases`]).
//! - A file whose segments were moved stays for `reclaim.delete-grace`, for those who hold handles of the old place; so does
//!   the name of one whose upload was given up, because it may still arrive. One that died does not stay, and on a local
//!   disk neither does one that held objects alone: nobody is told their places.
//!
//! # Crash
//!
//! | crash after | leaves | healed by |
//! | --- | --- | --- |
//! | a new file is named in the catalog | an open file without segments | the next start closes it, it is deleted |
//! | its bytes are written | the same, with bytes | the same |
//! | the move is committed | nothing: the old file is in the queue of forgotten files | the deleter |
//! | a hole is punched | a hole that the catalog does not count | punched again, which changes nothing, and counted |
//! | a file is deleted | a forgotten file that does not exist | deleted again, which counts as done |
//! | a file that nobody names is seen once | nothing | it is seen again, and its grace begins anew |

pub mod delete;
pub mod guard;
pub mod plan;
pub mod pressure;
pub mod punch;
pub mod rewrite;
pub mod survey;
pub mod sweep;
mod timing;
pub mod watch;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch as signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::catalog::questions::FileSurvey;
use crate::catalog::state::Changes;
use crate::config::{ReclaimMode, Settings};
use crate::merge::{MergeError, WriteContext};
use crate::metrics::labels::ReclaimedBytes;
use crate::model::PhysicalFileId;
use crate::runtime::{Ages, Clock, Leases};
use crate::store::space::is_full;
use crate::store::{Capabilities, StoreError};
use delete::Deleter;
use plan::{Plan, PlanLimits, plan};
use pressure::Pressure;
use survey::Punched;
use sweep::Sweeper;
use timing::{Pause, Timing};
use watch::{DeletionBacklog, Watch};

/// Why a round of reclaiming ended early. The next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// The catalog did not take a commit.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Storage did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no memory for what is copied.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A segment has other bytes than were written; its file is left alone from now on.
    #[error("segment {segment} in {file} is not what was written, the file is left as it is")]
    Corrupt {
        /// The segment.
        segment: crate::model::SegmentId,
        /// Its file.
        file: PhysicalFileId,
    },
}

/// The work of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Open files that were closed.
    pub closed: usize,
    /// Bytes that were given back by punching.
    pub punched_bytes: u64,
    /// Files whose living segments were copied.
    pub rewritten: usize,
    /// Bytes that were read to be copied.
    pub read_bytes: u64,
    /// Bytes that were written again.
    pub written_bytes: u64,
    /// Bytes of the files that nobody needs any more because of that.
    pub freed_bytes: u64,
    /// Bytes of those that were copied because too much of them was dead, without those that were packed.
    pub copied_file_bytes: u64,
    /// Bytes of them that lived before.
    pub copied_live_bytes: u64,
    /// Jobs that are above their limit, files that wait to be deleted counted in.
    pub jobs_above: usize,
}

impl Round {
    /// Both, one after the other.
    fn and(self, later: Self) -> Self {
        Self {
            closed: self.closed + later.closed,
            punched_bytes: self.punched_bytes + later.punched_bytes,
            rewritten: self.rewritten + later.rewritten,
            read_bytes: self.read_bytes + later.read_bytes,
            written_bytes: self.written_bytes + later.written_bytes,
            freed_bytes: self.freed_bytes + later.freed_bytes,
            copied_file_bytes: self.copied_file_bytes + later.copied_file_bytes,
            copied_live_bytes: self.copied_live_bytes + later.copied_live_bytes,
            jobs_above: later.jobs_above,
        }
    }
}

/// After a look at all files the reclaimer rests so many times as long as that took.
const REST_PER_LOOK: u32 = 100;
/// The reclaimer and the deleter, for those who want them to act now. Clones share them.
#[derive(Clone)]
pub struct ReclaimControl {
    /// Copies and punches.
    pub reclaimer: Arc<Mutex<Reclaimer>>,
    /// Deletes and sweeps.
    pub deleter: Arc<Mutex<Deleter>>,
    /// The operators' view of both.
    pub watch: Watch,
    changes: signal::Receiver<Changes>,
    timing: Timing,
    /// Cancelled when the daemon stops.
    pub stop: CancellationToken,
}

crate::runtime::opaque_debug!(ReclaimControl);

impl ReclaimControl {
    /// The daemon's, with the leases of its readers. Nothing happens before [`Self::run`].
    pub fn new(parts: WriteContext, leases: Leases, stop: CancellationToken) -> Self {
        let (changes, capabilities) = (parts.catalog.changes(), parts.store.capabilities());
        let timing = Timing::of(&parts.settings.reclaim, capabilities.request);
        let watch = Watch::new(&parts.settings, capabilities);
        let sweeper = Sweeper::new(parts.catalog.clone(), parts.store.clone(), &parts.settings, parts.metrics.clone());
        let deleter = Deleter::new(
            parts.catalog.clone(),
            parts.store.clone(),
            parts.settings.reclaim.clone(),
            parts.metrics.clone(),
            leases.clone(),
            watch.clone(),
            sweeper,
        );
        let reclaimer = Reclaimer::new(parts, leases, watch.clone());
        let (reclaimer, deleter) = (Arc::new(Mutex::new(reclaimer)), Arc::new(Mutex::new(deleter)));
        Self { reclaimer, deleter, watch, changes, timing, stop }
    }

    /// Reclaims at every interval and soon after bytes died, until the daemon stops.
    pub async fn run_reclaimer(mut self, interval: Duration) {
        let mut seen = 0;
        let mut pause = Pause { longest: interval, rest: self.timing.look };
        while self.pause(pause, &mut seen, |changes| changes.died).await {
            let rest = self.reclaimer.lock().await.round_at_interval(&self.stop).await;
            pause.rest = rest.max(self.timing.look);
        }
    }

    /// Deletes soon after files were forgotten, and sweeps at its own interval, until the daemon stops.
    pub async fn run_deleter(mut self, interval: Duration) {
        let mut seen = 0;
        let mut pause = Pause { longest: interval, rest: self.timing.collect };
        while self.pause(pause, &mut seen, |changes| changes.forgotten).await {
            pause = self.deleter.lock().await.round_at_interval(&self.stop).await;
        }
    }

    /// Waits until `rest` after what `of` counts has grown, `longest` at most. False when the daemon stops.
    async fn pause(&mut self, Pause { longest, rest }: Pause, seen: &mut u64, of: fn(&Changes) -> u64) -> bool {
        let known = *seen;
        let grown = async {
            // With the catalog gone nothing changes any more.
            if self.changes.wait_for(|changes| of(changes) != known).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(rest).await;
        };
        let goes_on = tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(longest) => true,
            () = grown => true,
        };
        // Before the round that looks at it: what changes while that goes on is for the next one.
        *seen = of(&self.changes.borrow());
        goes_on
    }
}

/// Keeps the space within its limit.
pub struct Reclaimer {
    parts: WriteContext,
    leases: Leases,
    pressure: Pressure,
    /// None where holes are not punched.
    punched: Option<Punched>,
    /// Files that cannot be read whole; a copy would lose what is left of them.
    damaged: HashSet<PhysicalFileId>,
    /// Files that storage refused to work on, and when: they are not tried again before an interval is over.
    put_off: HashMap<PhysicalFileId, Instant>,
    watch: Watch,
    /// The time that the last look at all files took.
    look: Duration,
    /// The work since the log last told of it.
    untold: Round,
    told_at: Option<Instant>,
    /// When the catalog was last searched for old inline segments.
    looked_inline: Option<Instant>,
}

crate::runtime::opaque_debug!(Reclaimer);

impl Reclaimer {
    /// One for the daemon; `leases` are those of its readers.
    pub fn new(parts: WriteContext, leases: Leases, watch: Watch) -> Self {
        let punched = punches(&parts.settings, parts.store.capabilities()).then(Punched::default);
        let pressure = Pressure::new(parts.metrics.clone(), parts.budget.clone(), Arc::clone(&parts.pace));
        Self {
            parts,
            leases,
            pressure,
            punched,
            damaged: HashSet::new(),
            put_off: HashMap::new(),
            watch,
            look: Duration::ZERO,
            untold: Round::default(),
            told_at: None,
            looked_inline: None,
        }
    }

    /// Returns the pause that has to be kept before the next one, whatever happens.
    async fn round_at_interval(&mut self, stop: &CancellationToken) -> Duration {
        let interval = self.parts.settings.reclaim.interval;
        // Since when a job is above its limit does not depend on what can be done about it.
        self.jobs_above();
        // On a full disk nothing is copied, and what costs nothing must not wait for anybody.
        if self.pressure.is_high() && !self.parts.space.is_full() {
            self.parts.metrics.reclaim_paused.inc();
            tracing::debug!("reclaiming waits: the backend or the writers are under pressure");
            return interval;
        }
        match self.round(stop).await {
            Ok(round) => {
                self.tell(round);
                self.look * REST_PER_LOOK
            }
            Err(error) => {
                if is_full(&error) {
                    self.parts.space.meets_the_end();
                } else if self.parts.store.is_lost() {
                    // That it is gone has been told, once.
                    tracing::debug!(error = crate::error::chain(&error), "reclaiming waits for the store");
                } else {
                    tracing::warn!(error = crate::error::chain(&error), "reclaiming goes on later");
                }
                interval
            }
        }
    }

    /// Makes a plan and carries it out.
    ///
    /// # Errors
    /// [`ReclaimError`]; what was done until then stays done.
    pub async fn round(&mut self, stop: &CancellationToken) -> Result<Round, ReclaimError> {
        let mut round = Round::default();
        let mode = self.parts.settings.reclaim.mode;
        let begun = Clock::instant();
        let planned = self.plan();
        self.look = begun.elapsed();
        match mode {
            ReclaimMode::Off => return Ok(Round { jobs_above: self.jobs_above(), ..round }),
            ReclaimMode::Advise => {
                let advised: BTreeSet<PhysicalFileId> = planned.copy.iter().cloned().collect();
                self.parts.catalog.advise_against(&advised);
                return Ok(Round { jobs_above: self.jobs_above(), ..round });
            }
            ReclaimMode::Server => {}
        }
        let full = self.parts.space.is_full();
        let planned = if full { self.plan_on_a_full_disk() } else { planned };
        if planned.works_on_files() {
            // What is wrong with files of a store that is not there is not wrong with them.
            self.parts.store.look().await?;
        }
        for file in &planned.close {
            round.closed += usize::from(self.parts.pools.close_file(file));
        }
        self.punch(&planned.punch, stop, &mut round).await?;
        // What punching did not give back has to be copied.
        let planned = if planned.punch.is_empty() || full { planned } else { self.plan() };
        let rewritten = if full { Ok(()) } else { self.rewrite(&planned, stop, &mut round).await };
        round.jobs_above = self.jobs_above();
        self.parts.metrics.reclaim_bytes.of(ReclaimedBytes::Freed).inc_by(round.punched_bytes);
        rewritten.map(|()| round)
    }

    /// Returns the plan for the next round.
    pub fn plan(&self) -> Plan {
        self.plan_with(&survey::limits(&self.parts.settings))
    }

    /// Gives back in place whatever is dead: copies need room first.
    fn plan_on_a_full_disk(&self) -> Plan {
        let limits = survey::limits(&self.parts.settings);
        let space_amplification_max = limits.space_amplification_max.map(|_| 1.0);
        let planned = self.plan_with(&PlanLimits { space_amplification_max, ..limits });
        Plan { close: planned.close, punch: planned.punch, jobs_above: planned.jobs_above, ..Plan::default() }
    }

    fn plan_with(&self, limits: &PlanLimits) -> Plan {
        let catalog = &self.parts.catalog;
        let mut candidates = survey::candidates(catalog.survey_files(), self.punched.as_ref(), catalog.clock().ages());
        let interval = self.parts.settings.reclaim.interval;
        let waits = |file: &PhysicalFileId| self.put_off.get(file).is_some_and(|at| at.elapsed() < interval);
        // Nobody can close what an earlier owner left open; the deleter does when its grace is over.
        let kept = |candidate: &plan::Candidate| {
            candidate.state == plan::CandidateState::Open && candidate.file.epoch() < catalog.epoch()
        };
        candidates
            .retain(|candidate| !self.damaged.contains(&candidate.file) && !waits(&candidate.file) && !kept(candidate));
        plan(&candidates, limits, &survey::prices(self.parts.store.capabilities().request))
    }

    /// Logs what was done, at most once an interval: there is something to do all the time.
    fn tell(&mut self, round: Round) {
        self.untold = self.untold.and(round);
        let lately = self.told_at.is_some_and(|at| at.elapsed() < self.parts.settings.reclaim.interval);
        if self.untold != (Round { jobs_above: round.jobs_above, ..Round::default() }) && !lately {
            let waiting = self.watch.waiting(&self.parts.catalog.forgotten_files(), self.parts.catalog.clock().ages());
            log(&self.untold, &waiting);
            self.untold = Round::default();
            self.told_at = Some(Clock::instant());
        }
    }

    fn jobs_above(&self) -> usize {
        self.watch.above(&self.parts.catalog.files_by_job()).0
    }
}

/// Whether dead ranges are given back where they are. One that only advises changes no file, so what is worth storing
/// again is worth advice also where it could be punched.
fn punches(settings: &Settings, store: Capabilities) -> bool {
    store.punches && settings.reclaim.punch_holes && settings.reclaim.mode != ReclaimMode::Advise
}

/// Returns the plan that a daemon with these settings on such a store would make for `files`, for `--dry-run`.
pub fn preview(files: Vec<FileSurvey>, settings: &Settings, store: Capabilities, ages: Ages) -> Plan {
    let punched = Punched::default();
    let mut candidates = survey::candidates(files, punches(settings, store).then_some(&punched), ages);
    // Only what the next start keeps open is open without a daemon.
    candidates.retain(|candidate| candidate.state != plan::CandidateState::Open);
    plan(&candidates, &survey::limits(settings), &survey::prices(store.request))
}

fn log(round: &Round, waiting: &DeletionBacklog) {
    let Round { closed, punched_bytes, rewritten, read_bytes, written_bytes, freed_bytes, jobs_above, .. } = round;
    let DeletionBacklog { readers, grace, rate, refused } = waiting;
    tracing::info!(
        closed,
        punched_bytes,
        rewritten,
        read_bytes,
        written_bytes,
        freed_bytes,
        jobs_above,
        bytes_being_read = readers,
        bytes_in_grace = grace,
        bytes_next = rate,
        bytes_refused = refused,
        "reclaimed"
    );
}
