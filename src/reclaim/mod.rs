//! Getting space back.
//!
//! Two tasks. The *reclaimer* looks at all files, makes a [`plan`](mod@plan) and carries it out: open files with dead bytes
//! are closed, on a local disk dead ranges are given back in place ([`punch`]), elsewhere the living segments of files with
//! too many dead bytes are copied into new files ([`rewrite`]), and small survivors are packed together. The *deleter*
//! deletes what the catalog has forgotten ([`delete`]) and looks for files that the catalog does not name ([`sweep`]).
//!
//! - [`plan`](mod@plan): what to do. Pure.
//! - [`survey`]: from the catalog to what the planner sees.
//! - [`pressure`]: whether writers or the backend need the bandwidth now.
//! - [`guard`]: when something is off, and nothing is destroyed.
//!
//! # Invariants
//! - Nothing is destroyed before the store was seen to be the one that the catalog belongs to ([`crate::store::StoreGuard`]).
//! - Nothing is destroyed before a durable commit says that nobody needs it.
//! - Nothing is destroyed under a read that may have looked it up, unless the read makes no progress for
//!   `limits.read-lease`; and a read keeps the files alone that it looked something up in ([`crate::runtime::Leases`]).
//! - A file whose segments were moved stays for `reclaim.delete-grace`, for those who hold handles of the old place; so does
//!   the name of one whose upload was given up, because it may still arrive. One that died does not stay.
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

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::config::{ReclaimMode, Settings};
use crate::merge::{MergeError, MergerParts};
use crate::model::PhysicalFileId;
use crate::runtime::{Ages, Clock, Leases};
use crate::store::{DataStore, StoreError};
use delete::Deleter;
use plan::{Plan, plan};
use pressure::Pressure;
use survey::Punched;
use sweep::Sweeper;

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

/// What one round did.
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
    /// Of them, bytes that lived before.
    pub copied_live_bytes: u64,
    /// Jobs that are still above their limit.
    pub jobs_above: usize,
}

/// The reclaimer and the deleter, for those who want them to act now. Clones share them.
#[derive(Clone)]
pub struct ReclaimControl {
    /// Copies and punches.
    pub reclaimer: Arc<Mutex<Reclaimer>>,
    /// Deletes and sweeps.
    pub deleter: Arc<Mutex<Deleter>>,
    /// Cancelled when the daemon stops.
    pub stop: CancellationToken,
}

impl ReclaimControl {
    /// The daemon's, with the leases of its readers. Nothing happens before [`Self::run`].
    pub fn new(parts: MergerParts, leases: Leases, stop: CancellationToken) -> Self {
        let sweeper = Sweeper::new(parts.catalog.clone(), parts.store.clone(), &parts.settings, parts.metrics.clone());
        let deleter = Deleter::new(
            parts.catalog.clone(),
            parts.store.clone(),
            parts.settings.reclaim.clone(),
            parts.metrics.clone(),
            leases.clone(),
            sweeper,
        );
        let reclaimer = Reclaimer::new(parts, leases);
        Self { reclaimer: Arc::new(Mutex::new(reclaimer)), deleter: Arc::new(Mutex::new(deleter)), stop }
    }

    /// Reclaims at every interval, until the daemon stops.
    pub async fn run_reclaimer(self, interval: Duration) {
        while self.pause(interval).await {
            self.reclaimer.lock().await.round_at_interval(&self.stop).await;
        }
    }

    /// Deletes at every interval and sweeps at its own, until the daemon stops.
    pub async fn run_deleter(self, interval: Duration) {
        let mut pause = interval;
        while self.pause(pause).await {
            pause = self.deleter.lock().await.round_at_interval(&self.stop).await;
        }
    }

    /// False when the daemon stops.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// Keeps the space within its limit.
pub struct Reclaimer {
    parts: MergerParts,
    leases: Leases,
    pressure: Pressure,
    /// None where holes are not punched.
    punched: Option<Punched>,
    /// Files that cannot be read whole; a copy would lose what is left of them.
    damaged: HashSet<PhysicalFileId>,
    above_since: Option<Instant>,
    /// When the catalog was last searched for old inline segments.
    looked_inline: Option<Instant>,
}

impl Reclaimer {
    /// One for the daemon; `leases` are those of its readers.
    pub fn new(parts: MergerParts, leases: Leases) -> Self {
        let local = matches!(parts.store, DataStore::Local(_));
        let punched = punches(&parts.settings, local).then(Punched::default);
        let pressure = Pressure::new(parts.metrics.clone(), parts.budget.clone(), Arc::clone(&parts.pace));
        Self { parts, leases, pressure, punched, damaged: HashSet::new(), above_since: None, looked_inline: None }
    }

    async fn round_at_interval(&mut self, stop: &CancellationToken) {
        if self.pressure.is_high() {
            let planned = self.plan();
            self.watch_lag(&planned);
            self.parts.metrics.reclaim_paused.inc();
            tracing::debug!("reclaiming waits: the backend or the writers are under pressure");
            return;
        }
        match self.round(stop).await {
            Ok(round) => log(&round),
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "reclaiming goes on later"),
        }
    }

    /// Makes a plan and carries it out.
    ///
    /// # Errors
    /// [`ReclaimError`]; what was done until then stays done.
    pub async fn round(&mut self, stop: &CancellationToken) -> Result<Round, ReclaimError> {
        let mut round = Round::default();
        let mode = self.parts.settings.reclaim.mode;
        let planned = self.plan();
        self.watch_lag(&planned);
        match mode {
            ReclaimMode::Off => return Ok(round),
            ReclaimMode::Advise => {
                let advised: BTreeSet<PhysicalFileId> = planned.copy.iter().cloned().collect();
                self.parts.catalog.advise_against(&advised);
                return Ok(round);
            }
            ReclaimMode::Server => {}
        }
        for file in &planned.close {
            round.closed += usize::from(self.parts.pools.close_file(file));
        }
        self.punch(&planned.punch, stop, &mut round).await?;
        // What punching did not give back has to be copied.
        let planned = if planned.punch.is_empty() { planned } else { self.plan() };
        let rewritten = self.rewrite(&planned, stop, &mut round).await;
        round.jobs_above = planned.jobs_above;
        self.parts.metrics.reclaim_bytes.with_label_values(&["freed"]).inc_by(round.punched_bytes);
        rewritten.map(|()| round)
    }

    /// What the next round would do.
    pub fn plan(&self) -> Plan {
        let local = matches!(self.parts.store, DataStore::Local(_));
        let catalog = &self.parts.catalog;
        let mut candidates = survey::candidates(&catalog.view(), self.punched.as_ref(), catalog.clock().ages());
        candidates.retain(|candidate| !self.damaged.contains(&candidate.file));
        plan(&candidates, &survey::limits(&self.parts.settings), &survey::prices(local))
    }

    /// For how long some job has been above its limit.
    fn watch_lag(&mut self, planned: &Plan) {
        let above = !planned.copy.is_empty() || !planned.punch.is_empty() || planned.jobs_above > 0;
        self.above_since = if above { self.above_since.or_else(|| Some(Clock::instant())) } else { None };
        let lag = self.above_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.parts.metrics.reclaim_lag.set(lag.as_secs_f64());
    }
}

/// Whether dead ranges are given back where they are. One that only advises changes no file, so what is worth storing
/// again is worth advice also where it could be punched.
fn punches(settings: &Settings, local: bool) -> bool {
    local && settings.reclaim.punch_holes && settings.reclaim.mode != ReclaimMode::Advise
}

/// What the next round of a daemon with these settings would do to `state`, for `--dry-run`.
pub fn preview(state: &crate::catalog::state::State, settings: &Settings, local: bool, ages: Ages) -> Plan {
    let punched = Punched::default();
    let candidates = survey::candidates(state, punches(settings, local).then_some(&punched), ages);
    plan(&candidates, &survey::limits(settings), &survey::prices(local))
}

fn log(round: &Round) {
    if *round != (Round { jobs_above: round.jobs_above, ..Round::default() }) {
        let Round { closed, punched_bytes, rewritten, read_bytes, written_bytes, freed_bytes, jobs_above, .. } = round;
        tracing::info!(
            closed,
            punched_bytes,
            rewritten,
            read_bytes,
            written_bytes,
            freed_bytes,
            jobs_above,
            "reclaimed"
        );
    }
}
