//! The daemon: an engine with doors. Opens the listeners, starts both in order, stops them in reverse.
//!
//! Start: [`doors`] are bound (a port in use is the cheapest error) and answer that the daemon is starting, the engine is
//! opened ([`crate::engine::open`]), then the doors lead to it.
//!
//! Stop: not ready any more; the doors take no new connections and requests in progress end, for at most
//! `server.drain-timeout`; then the engine stops. The access log is last: what is told there happened, and nobody waits for it.

mod doors;
mod error;
mod reload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
use crate::runtime::{Clock, Failure};
pub use doors::Addresses;
use doors::Doors;
pub use error::StartError;

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

/// A running daemon. Dropping it is a crash.
pub struct Daemon {
    running: Running,
    doors: Doors,
    ready: Arc<AtomicBool>,
    /// Has files that may have changed looked at.
    reload: Arc<Notify>,
}

crate::runtime::opaque_debug!(Daemon);

impl Daemon {
    /// Starts a daemon. Resolves when both doors answer.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        Self::start_by(settings, Clock::System).await
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start_by(settings: Settings, clock: Clock) -> Result<Self, StartError> {
        let clock = clock.floored();
        let foundation = Foundation::new(&settings.limits, &clock, None);
        let doors = Doors::open(&settings, &foundation, &clock).await?;
        // In a box: it is the largest of all, and whoever starts several daemons would have it on the stack for each.
        let options = EngineOptions { clock, foundation: Some(foundation), ..EngineOptions::default() };
        let running = match Engine::open(settings, options).boxed().await {
            Ok(running) => running,
            Err(error) => {
                doors.abandon().await;
                return Err(error.into());
            }
        };
        let daemon = Self { running, doors, ready: Arc::new(AtomicBool::new(true)), reload: Arc::default() };
        daemon.serve();
        Ok(daemon)
    }

    /// Has the engine answer at the doors.
    fn serve(&self) {
        let engine = self.running.engine();
        let admin = Admin { engine: engine.clone(), ready: Arc::clone(&self.ready) };
        self.doors.lead_to(&admin);
        let files = self.doors.files(engine.settings().server.reload_interval);
        let watching = files.watch(Arc::clone(&self.reload), self.running.stopping());
        engine.tasks().spawn("reload", Failure::StopsTheDaemon, watching);
    }

    /// Looks at the files that may change while the daemon runs, and uses what is new in them. Does not wait for that.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        self.doors.addresses()
    }

    /// The engine behind the doors.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Cancelled when the catalog is lost: nothing is answered any more, and the daemon should stop.
    pub fn lost(&self) -> CancellationToken {
        self.running.lost()
    }

    /// Cancelled when a vital task failed, and the daemon should stop.
    pub fn failed(&self) -> CancellationToken {
        self.running.failed()
    }

    /// Ends requests in progress, writes everything, and closes the catalog.
    ///
    /// # Errors
    /// [`StopError`] if the catalog was lost before or cannot be closed in time, or a vital task had failed.
    pub async fn shut_down(self) -> Result<DaemonSummary, StopError> {
        let Self { running, doors, ready, .. } = self;
        ready.store(false, Ordering::Release);
        let metrics = running.engine().metrics().clone();
        let patience = running.engine().settings().server.drain_timeout;
        doors.drain(patience).await;
        let stopped = running.stop().await;
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
