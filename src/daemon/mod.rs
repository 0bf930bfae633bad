//! The daemon: an engine with doors. Opens the listeners, starts both in order, stops them in reverse.
//!
//! Start: [`doors`] are bound (a port in use is the cheapest error) and answer that the daemon is starting, the engine is
//! opened ([`crate::engine::open`]), then the doors lead to it.
//!
//! One of several daemons on a store joins its cluster in place of opening an engine ([`member`]): its engine is opened when the
//! catalog is its own, and until then others' answers pass through its doors.
//!
//! Stop: not ready any more; the doors take no new connections and requests in progress end, for at most
//! `server.drain-timeout`; then the engine stops. The access log is last: what is told there happened, and nobody waits for it.

mod doors;
mod error;
mod member;
mod reload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::admin::Admin;
use crate::api::keys;
use crate::api::tls::TlsFiles;
use crate::config::{KeysFile, Settings};
use crate::engine::{Engine, EngineOptions, Foundation, Running, StopError};
use crate::metrics::Metrics;
use crate::metrics::labels::{DoorLabel, SegmentOutcome};
use crate::runtime::network::{Network, ThisMachine};
use crate::runtime::{Clock, Failure, TaskGroup};
pub use doors::Addresses;
use doors::Doors;
pub use error::StartError;
use member::Membership;

/// The work of a daemon over its life.
#[derive(Debug, Clone, Copy, Default)]
pub struct DaemonSummary {
    /// Segments that were answered.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Physical files that were begun.
    pub files: u64,
}

impl DaemonSummary {
    fn of(metrics: &Metrics) -> Self {
        let segments = |door| metrics.segments.of((door, SegmentOutcome::Answered)).get();
        let bytes = |door| metrics.segment_bytes.of(door).get();
        Self {
            segments: segments(DoorLabel::Native) + segments(DoorLabel::S3),
            bytes: bytes(DoorLabel::Native) + bytes(DoorLabel::S3),
            files: metrics.files_created.get(),
        }
    }
}

/// What a daemon finds around it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The time.
    pub clock: Clock,
    /// Draws the same names again; without one, the operating system's randomness is used.
    pub seed: Option<u64>,
    /// Those who talk to it, and to whom it talks.
    pub network: Arc<dyn Network>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { clock: Clock::System, seed: None, network: Arc::new(ThisMachine) }
    }
}

/// A running daemon. Dropping it is a crash.
pub struct Daemon {
    life: Life,
    metrics: Metrics,
    drain_timeout: Duration,
    doors: Doors,
    ready: Arc<AtomicBool>,
    /// Has files that may have changed looked at.
    reload: Arc<Notify>,
}

crate::runtime::opaque_debug!(Daemon);

/// A daemon by itself, or one of several.
enum Life {
    Alone(Box<Running>),
    Member(Membership),
}

impl Daemon {
    /// Starts a daemon. Resolves when both doors answer.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        Self::start_in(settings, Surroundings::default()).await
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start_by(settings: Settings, clock: Clock) -> Result<Self, StartError> {
        Self::start_in(settings, Surroundings { clock, ..Surroundings::default() }).await
    }

    /// The same in other surroundings.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start_in(settings: Settings, surroundings: Surroundings) -> Result<Self, StartError> {
        let Surroundings { clock, seed, network } = surroundings;
        let clock = clock.floored();
        let foundation = Foundation::new(&settings.limits, &clock, seed);
        let doors = Doors::open(&settings, &foundation, &clock, &*network).await?;
        let (metrics, drain_timeout) = (foundation.metrics.clone(), settings.server.drain_timeout);
        let reload_interval = settings.server.reload_interval;
        let ready = Arc::new(AtomicBool::new(true));
        // In a box: it is the largest of all, and whoever starts several daemons would have it on the stack for each.
        let life = match Life::begin(settings, foundation, clock, network, &doors, &ready).boxed().await {
            Ok(life) => life,
            Err(error) => {
                doors.abandon().await;
                return Err(error);
            }
        };
        let daemon = Self { life, metrics, drain_timeout, doors, ready, reload: Arc::default() };
        let watching = daemon.doors.files(reload_interval).watch(Arc::clone(&daemon.reload), daemon.life.stopping());
        daemon.life.tasks().spawn("reload", Failure::StopsTheDaemon, watching);
        Ok(daemon)
    }

    /// Looks at the files that may change while the daemon runs, and uses what is new in them. Does not wait for that.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        self.doors.addresses()
    }

    /// The engine behind the doors; `None` for one of several daemons, which may have none at the moment.
    pub fn running(&self) -> Option<&Running> {
        match &self.life {
            Life::Alone(running) => Some(running),
            Life::Member(_) => None,
        }
    }

    /// Cancelled when the catalog is lost: nothing is answered any more, and the daemon should stop. One of several daemons goes on
    /// then, and never cancels it.
    pub fn lost(&self) -> CancellationToken {
        match &self.life {
            Life::Alone(running) => running.lost(),
            Life::Member(_) => CancellationToken::new(),
        }
    }

    /// Cancelled when a vital task failed, and the daemon should stop.
    pub fn failed(&self) -> CancellationToken {
        match &self.life {
            Life::Alone(running) => running.failed(),
            Life::Member(member) => member.foundation().failed.clone(),
        }
    }

    /// Ends requests in progress, writes everything, and closes the catalog.
    ///
    /// # Errors
    /// [`StopError`] if the catalog was lost before or cannot be closed in time, or a vital task had failed.
    pub async fn shut_down(self) -> Result<DaemonSummary, StopError> {
        let Self { life, metrics, drain_timeout, doors, ready, .. } = self;
        ready.store(false, Ordering::Release);
        let stopped = match life {
            Life::Alone(running) => {
                doors.drain(drain_timeout).await;
                running.stop().await
            }
            Life::Member(member) => {
                // Requests go on to another daemon meanwhile.
                member.stop(drain_timeout).await;
                doors.drain(drain_timeout).await;
                member.leave(drain_timeout).await
            }
        };
        let failure = doors.close().await;
        let summary = DaemonSummary::of(&metrics);
        // Why the catalog is not closed says more than why a door had failed, and that more than what failed behind it.
        match (stopped, failure) {
            (Ok(()), None) => Ok(summary),
            (Ok(()) | Err(StopError::Task(_)), Some(reason)) => Err(StopError::Task(reason)),
            (Err(error), _) => Err(error),
        }
    }
}

impl Life {
    /// Opens the engine, or joins the cluster. Requests are answered from here on.
    async fn begin(
        settings: Settings,
        foundation: Foundation,
        clock: Clock,
        network: Arc<dyn Network>,
        doors: &Doors,
        ready: &Arc<AtomicBool>,
    ) -> Result<Self, StartError> {
        if let Some(cluster) = settings.cluster.clone() {
            let (api, keys) = (doors.addresses().api, doors.keys().clone());
            let member = Membership::new(settings, cluster, api, keys, foundation, clock, network)?;
            // Requests that come before it has joined are held like others that nobody can answer yet.
            doors.lead_to_cluster(&member, Arc::clone(ready));
            doors.accept();
            member.join().await?;
            member.begin().await?;
            return Ok(Self::Member(member));
        }
        doors.accept();
        let options = EngineOptions { clock, foundation: Some(foundation), ..EngineOptions::default() };
        let running = Engine::open(settings, options).await?;
        doors.lead_to(&Admin { engine: running.engine().clone(), ready: Arc::clone(ready) });
        Ok(Self::Alone(Box::new(running)))
    }

    fn stopping(&self) -> CancellationToken {
        match self {
            Self::Alone(running) => running.stopping(),
            Self::Member(member) => member.stopping(),
        }
    }

    fn tasks(&self) -> TaskGroup {
        match self {
            Self::Alone(running) => running.engine().tasks(),
            Self::Member(member) => member.tasks().clone(),
        }
    }
}

/// What `serve` would find in the files that the configuration names: warnings, one sentence each.
///
/// # Errors
/// [`StartError`] if it would not start with them.
pub fn check_files(settings: &Settings) -> Result<Vec<String>, StartError> {
    let mut warnings = vec![];
    if let Some(tls) = &settings.tls {
        let files = TlsFiles::read(tls)?;
        files.check(tls, &Clock::System)?;
        warnings.extend(files.warnings(tls, &Clock::System));
    }
    if let Some(path) = &settings.auth.keys_file {
        KeysFile::read(path, &settings.auth)?;
        warnings.extend(keys::warning(&settings.auth));
    }
    Ok(warnings)
}
