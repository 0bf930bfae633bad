//! The daemon: an engine with doors. Opens the listeners, starts both in order, stops them in reverse.
//!
//! Start: doors are bound (a port in use is the cheapest error), the engine is opened ([`crate::engine::open`]), then the
//! doors open.
//!
//! Stop: not ready any more; the doors take no new connections and requests in progress end, for at most
//! `server.drain-timeout`; then the engine stops. The access log is last: what is told there happened, and nobody waits for it.

mod reload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::access_log::AccessLog;
use crate::api::admin::Admin;
use crate::api::exchange::Exchanges;
use crate::api::keys::{self, KeyRing};
use crate::api::native::Native;
use crate::api::peers::Peers;
use crate::api::s3::S3Door;
use crate::api::server::{Listener, Services, Serving};
use crate::api::tls::{Tls, TlsError, TlsFiles};
use crate::config::{AccessLogPlace, AuthSettings, ConfigErrors, KeysFile, Settings, TlsDoors, TlsSettings};
use crate::engine::open::step;
use crate::engine::{Engine, EngineOptions, OpeningError, Running, StopError};
use crate::metrics::Metrics;
use crate::metrics::labels::{DoorLabel, SegmentOutcome};
use crate::runtime::{Clock, Failure, TaskGroup};
use reload::ReloadedFiles;

/// A stop waits so long for the last lines of the access log: nobody may be taking them.
const ACCESS_LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Why the daemon did not start. Nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{door} cannot listen on {address}: set {key} to another address, or end what uses it")]
    Bind {
        /// The door.
        door: &'static str,
        /// The address.
        address: String,
        /// The key that sets it.
        key: &'static str,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// Certificate, key or authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of access keys cannot be used.
    #[error("auth.keys-file: {0}")]
    Keys(#[from] ConfigErrors),
    /// The access log cannot be opened.
    #[error("telemetry.access-log = {place:?}: cannot be opened")]
    AccessLog {
        /// Where it is to be.
        place: AccessLogPlace,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot be opened.
    #[error(transparent)]
    Engine(#[from] OpeningError),
}

impl StartError {
    /// Whether the storage was found not to be what it should be: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_refusal(),
            Self::Bind { .. } | Self::AccessLog { .. } => false,
            Self::Tls(_) | Self::Keys(_) => true,
        }
    }
}

/// Where a daemon listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The S3 door.
    pub s3: SocketAddr,
    /// The native API, health and metrics.
    pub api: SocketAddr,
}

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
    addresses: Addresses,
    running: Running,
    ready: Arc<AtomicBool>,
    /// Tasks of the doors: connections and listeners.
    doors: TaskGroup,
    /// The writer of the access log, and what ends it.
    log: (TaskGroup, CancellationToken),
    drain: CancellationToken,
    cut: CancellationToken,
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
        let files = settings.tls.as_ref().map(|tls| tls_files(tls, &clock)).transpose()?;
        let keys = keys_file(&settings.auth)?;
        let listeners = Listeners::bind(&settings).await?;
        let clock = clock.floored();
        // In a box: it is the largest of all, and whoever starts several daemons would have it on the stack for each.
        let opening =
            Engine::open(settings, EngineOptions { clock: clock.clone(), ..EngineOptions::default() }).boxed();
        let running = opening.await?;
        let daemon = Self {
            addresses: listeners.addresses,
            ready: Arc::default(),
            doors: TaskGroup::new(running.failed()),
            log: (TaskGroup::new(running.failed()), CancellationToken::new()),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            reload: Arc::default(),
            running,
        };
        let tls = daemon.tls(files, clock.clone())?;
        let log = daemon.access_log()?;
        daemon.serve(listeners, tls, keys, &clock, log);
        daemon.ready.store(true, Ordering::Release);
        Ok(daemon)
    }

    fn tls(&self, files: Option<TlsFiles>, clock: Clock) -> Result<Option<Tls>, TlsError> {
        let engine = self.running.engine();
        let (settings, metrics) = (engine.settings().tls.clone(), engine.metrics().clone());
        settings.zip(files).map(|(tls, files)| Tls::new(tls, files, metrics, clock)).transpose()
    }

    fn access_log(&self) -> Result<Option<AccessLog>, StartError> {
        let engine = self.running.engine();
        let Some(place) = engine.settings().telemetry.access_log.clone() else { return Ok(None) };
        let opened = AccessLog::open(place.clone(), engine.metrics().clone());
        let (log, writer) = opened.map_err(|source| StartError::AccessLog { place, source })?;
        let (tasks, stop) = &self.log;
        tasks.spawn("access-log", Failure::FailsItsWork, writer.run(stop.clone()));
        Ok(Some(log))
    }

    /// Opens the doors.
    fn serve(&self, listeners: Listeners, tls: Option<Tls>, keys: ReadKeys, clock: &Clock, log: Option<AccessLog>) {
        let engine = self.running.engine();
        let (limits, metrics) = (&engine.settings().limits, engine.metrics());
        let vital = Failure::StopsTheDaemon;
        let peers = Peers::new(limits.clone(), metrics.clone(), engine.budgets());
        engine.tasks().spawn("peers", vital, peers.clone().watch(self.running.stopping()));
        let serving = |door| {
            Serving::new(
                limits.clone(),
                peers.clone(),
                Exchanges::new(door, engine.entropy().clone(), clock.clone(), log.clone()),
                metrics.connections.of(door),
                self.doors.clone(),
                self.drain.clone(),
                self.cut.clone(),
            )
        };
        let keys = KeyRing::new(engine.settings(), keys, metrics.clone());
        let doors = engine.settings().tls.as_ref().map(|tls| tls.doors);
        let tls_of = |other: TlsDoors| tls.clone().filter(|_| doors != Some(other));
        let s3 = crate::api::s3::service(S3Door::new(engine.clone(), keys.clone()));
        let s3 = Services { when_full: s3.full(peers.clone()), without_tls: s3.without_tls(), usual: s3 };
        let listener = Listener::Tcp(listeners.s3, tls_of(TlsDoors::Api));
        self.doors.spawn("s3-door", vital, serving(DoorLabel::S3).accept(listener, s3));

        let admin = Admin { engine: engine.clone(), ready: Arc::clone(&self.ready) };
        let api = Native::new(engine.clone(), keys.clone()).router().merge(admin.clone().router());
        let api = Services {
            usual: TowerToHyperService::new(api),
            when_full: TowerToHyperService::new(admin.router_when_full(peers.clone())),
            without_tls: TowerToHyperService::new(Admin::router_without_tls()),
        };
        if let Some(unix) = listeners.unix {
            self.doors.spawn("unix-door", vital, serving(DoorLabel::Unix).accept(unix, api.clone()));
        }
        let listener = Listener::Tcp(listeners.api, tls_of(TlsDoors::S3));
        self.doors.spawn("api-door", vital, serving(DoorLabel::Native).accept(listener, api));
        let files = ReloadedFiles { tls, keys, log, every: engine.settings().server.reload_interval };
        engine.tasks().spawn("reload", vital, files.watch(Arc::clone(&self.reload), self.running.stopping()));
    }

    /// Looks at the files that may change while the daemon runs, and uses what is new in them. Does not wait for that.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
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
        let Self { running, ready, doors, log: (log, log_stop), drain, cut, .. } = self;
        ready.store(false, Ordering::Release);
        drain.cancel();
        let metrics = running.engine().metrics().clone();
        let patience = running.engine().settings().server.drain_timeout;
        step("doors", patience, doors.wait()).await;
        cut.cancel();
        let stopped = running.stop().await;
        // Not before the catalog is closed: lines are not worth a moment in which another daemon could have the store.
        log_stop.cancel();
        step("access log", ACCESS_LOG_PATIENCE, log.wait()).await;
        let summary = DaemonSummary::of(&metrics);
        // Why the catalog is not closed says more than why a door had failed, and that more than what failed behind it.
        match (stopped, doors.failure()) {
            (Ok(()), None) => Ok(summary),
            (Ok(()) | Err(StopError::Task(_)), Some(reason)) => Err(StopError::Task(reason)),
            (Err(error), _) => Err(error),
        }
    }
}

/// Reads the files of TLS. What is wrong with them ends a start at once.
fn tls_files(settings: &TlsSettings, clock: &Clock) -> Result<TlsFiles, TlsError> {
    let files = TlsFiles::read(settings)?;
    files.check(settings, clock)?;
    files.warnings(settings, clock).iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(files)
}

/// A file of access keys, and the text that it was read from.
type ReadKeys = (KeysFile, Option<String>);

/// Reads the file of access keys, if there is to be one. Once: what comes later is found by the first look.
fn keys_file(auth: &AuthSettings) -> Result<ReadKeys, ConfigErrors> {
    let Some(path) = &auth.keys_file else { return Ok(ReadKeys::default()) };
    let (file, text) = KeysFile::read(path, auth)?;
    keys::warning(auth).iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok((file, Some(text)))
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

/// The bound addresses.
struct Listeners {
    s3: TcpListener,
    api: TcpListener,
    unix: Option<Listener>,
    addresses: Addresses,
}

impl Listeners {
    async fn bind(settings: &Settings) -> Result<Self, StartError> {
        let server = &settings.server;
        let (s3, s3_address) = tcp("the S3 door", server.s3, "server.s3").await?;
        let (api, api_address) = tcp("the native API", server.api, "server.api").await?;
        let unix = server.api_unix_socket.as_ref().map(|path| {
            crate::api::socket::bind(path).map(|(listener, name)| Listener::Unix(listener, name)).map_err(|source| {
                let (door, key) = ("the native API", "server.api-unix-socket");
                StartError::Bind { door, address: path.display().to_string(), key, source }
            })
        });
        let addresses = Addresses { s3: s3_address, api: api_address };
        Ok(Self { s3, api, unix: unix.transpose()?, addresses })
    }
}

async fn tcp(
    door: &'static str,
    address: SocketAddr,
    key: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    bind.await.map_err(|source| StartError::Bind { door, address: address.to_string(), key, source })
}
