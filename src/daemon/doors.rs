//! The doors of a daemon: bound before its storage is open, closed before its storage is.
//!
//! Until there is an engine, health and metrics answer, and everything else is told to come back; connections that were made
//! in that time go on with the engine. A member of a cluster holds requests from its first connection on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use super::member::Membership;
use super::reload::ReloadedFiles;
use crate::api::access_log::AccessLog;
use crate::api::admin::Admin;
use crate::api::cluster::door::MemberDoor;
use crate::api::exchange::Exchanges;
use crate::api::keys::{self, KeyRing};
use crate::api::native::Native;
use crate::api::opening::Opening;
use crate::api::peers::Peers;
use crate::api::s3::{S3Door, S3Service};
use crate::api::server::{Listener, Services, Serving};
use crate::api::tls::{Tls, TlsError, TlsFiles};
use crate::config::{AuthSettings, ConfigErrors, KeysFile, Settings, TlsDoors, TlsSettings};
use crate::engine::Foundation;
use crate::engine::open::step;
use crate::metrics::labels::DoorLabel;
use crate::runtime::network::{Accept, Network};
use crate::runtime::{Clock, Failure, TaskGroup};

/// A stop waits so long for the last lines of the access log: nobody may be taking them.
const ACCESS_LOG_PATIENCE: Duration = Duration::from_secs(1);
/// A start that failed waits so long for its connections, which are cut.
const ABANDON_PATIENCE: Duration = Duration::from_secs(1);

/// Where a daemon listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The S3 door.
    pub s3: SocketAddr,
    /// The native API, health and metrics.
    pub api: SocketAddr,
}

/// What answers at the doors of the native API.
type ApiService = TowerToHyperService<Router>;

/// Listeners and connections.
pub(super) struct Doors {
    addresses: Addresses,
    /// Tasks of the doors: connections and listeners.
    tasks: TaskGroup,
    /// What ends after all else: who watches the connections, and the writer of the access log.
    beside: TaskGroup,
    drain: CancellationToken,
    cut: CancellationToken,
    stop_beside: CancellationToken,
    s3: Services<Opening<S3Service>>,
    api: Services<Opening<ApiService>>,
    peers: Peers,
    tls: Option<Tls>,
    keys: KeyRing,
    log: Option<AccessLog>,
    /// What takes connections, by the names of its tasks, before it does.
    listening: Mutex<Vec<(&'static str, BoxFuture<'static, ()>)>>,
}

impl Doors {
    /// Binds the addresses of `settings`. Connections wait there until [`Self::accept`].
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub(super) async fn open(
        settings: &Settings,
        foundation: &Foundation,
        clock: &Clock,
        network: &dyn Network,
    ) -> Result<Self, StartError> {
        let Foundation { metrics, entropy, budgets, failed, progress } = foundation;
        let tls = match &settings.tls {
            Some(tls) => Some(Tls::new(tls.clone(), tls_files(tls, clock)?, metrics.clone(), clock.clone())?),
            None => None,
        };
        let keys = KeyRing::new(settings, keys_file(&settings.auth)?, metrics.clone());
        let listeners = Listeners::bind(settings, network).await?;
        let (tasks, beside) = (TaskGroup::new(failed.clone()), TaskGroup::new(failed.clone()));
        let stop_beside = CancellationToken::new();
        let log = match settings.telemetry.access_log.clone() {
            Some(place) => {
                let opened = AccessLog::open(place.clone(), metrics.clone());
                let (log, writer) = opened.map_err(|source| StartError::AccessLog { place, source })?;
                beside.spawn("access-log", Failure::FailsItsWork, writer.run(stop_beside.clone()));
                Some(log)
            }
            None => None,
        };
        let peers = Peers::new(settings.limits.clone(), metrics.clone(), budgets);
        beside.spawn("peers", Failure::StopsTheDaemon, peers.clone().watch(stop_beside.clone()));

        let s3 = S3Service::starting(entropy.clone(), metrics.clone());
        let s3 = services(s3.clone(), s3.without_tls());
        let api = TowerToHyperService::new(Admin::router_while_starting(metrics.clone(), progress.clone()));
        let api = services(api, TowerToHyperService::new(Admin::router_without_tls()));
        let addresses = listeners.addresses;
        let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
        let listening = Mutex::default();
        let doors =
            Self { addresses, tasks, beside, drain, cut, stop_beside, s3, api, peers, tls, keys, log, listening };
        *doors.listening.lock() = doors.listening(listeners, settings, foundation, clock);
        Ok(doors)
    }

    /// Takes connections. What they ask for is answered that the daemon is starting, until the doors lead somewhere.
    pub(super) fn accept(&self) {
        for (name, listening) in self.listening.lock().drain(..) {
            self.tasks.spawn(name, Failure::StopsTheDaemon, listening);
        }
    }

    fn listening(
        &self,
        listeners: Listeners,
        settings: &Settings,
        foundation: &Foundation,
        clock: &Clock,
    ) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let serving = |door| {
            Serving::new(
                settings.limits.clone(),
                self.peers.clone(),
                Exchanges::new(door, foundation.entropy.clone(), clock.clone(), self.log.clone()),
                foundation.metrics.connections.of(door),
                self.tasks.clone(),
                self.drain.clone(),
                self.cut.clone(),
            )
        };
        let doors = settings.tls.as_ref().map(|tls| tls.doors);
        let tls_of = |other: TlsDoors| self.tls.clone().filter(|_| doors != Some(other));
        let (s3, api) = (listeners.s3.listener(tls_of(TlsDoors::Api)), listeners.api.listener(tls_of(TlsDoors::S3)));
        let mut listening = vec![
            ("s3-door", serving(DoorLabel::S3).accept(s3, self.s3.clone()).boxed()),
            ("api-door", serving(DoorLabel::Native).accept(api, self.api.clone()).boxed()),
        ];
        if let Some(unix) = listeners.unix {
            listening.push(("unix-door", serving(DoorLabel::Unix).accept(unix, self.api.clone()).boxed()));
        }
        listening
    }

    /// From here on the engine of `admin` answers.
    pub(super) fn lead_to(&self, admin: &Admin) {
        let engine = &admin.engine;
        let s3 = crate::api::s3::service(S3Door::new(engine.clone(), self.keys.clone()));
        self.s3.when_full.open(s3.full(self.peers.clone()));
        self.s3.usual.open(s3);
        let native = Native::new(engine.clone(), self.keys.clone()).ending_with(self.drain.clone());
        let api = native.router().merge(admin.clone().router());
        self.api.usual.open(TowerToHyperService::new(api));
        self.api.when_full.open(TowerToHyperService::new(admin.clone().router_when_full(self.peers.clone())));
    }

    /// From here on whichever daemon of the cluster has a shard answers for it.
    pub(super) fn lead_to_cluster(&self, member: &Membership, ready: Arc<AtomicBool>) {
        let Foundation { metrics, entropy, .. } = member.foundation();
        let (routes, maps) = (member.routes().clone(), Arc::clone(member.maps()));
        let dispatcher = member.dispatcher().clone();
        let s3 = S3Service::in_place(entropy.clone(), Arc::new(dispatcher.clone()));
        self.s3.when_full.open(s3.full(self.peers.clone()));
        self.s3.usual.open(s3);
        let door = MemberDoor {
            dispatcher,
            routes,
            maps,
            links: Arc::clone(member.links()),
            token: member.token(),
            keys: self.keys.clone(),
            drain: Arc::clone(member.drain()),
            ready,
            ending: self.drain.clone(),
            metrics: metrics.clone(),
        };
        self.api.when_full.open(TowerToHyperService::new(door.clone().router_when_full(self.peers.clone())));
        self.api.usual.open(TowerToHyperService::new(door.router()));
    }

    /// Who may come in.
    pub(super) fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The files that they use and that may change.
    pub(super) fn files(&self, every: Option<Duration>) -> ReloadedFiles {
        ReloadedFiles { tls: self.tls.clone(), keys: self.keys.clone(), log: self.log.clone(), every }
    }

    /// Takes no new connections, and waits for the requests in progress; cuts those that take longer than `patience`.
    pub(super) async fn drain(&self, patience: Duration) {
        self.drain.cancel();
        step("doors", patience, self.tasks.wait()).await;
        self.cut.cancel();
    }

    /// Ends the rest, once the catalog is closed: the lines of the access log are not worth a moment in which another daemon
    /// could have the store. Returns why a door had failed, if one had.
    pub(super) async fn close(self) -> Option<String> {
        self.stop_beside.cancel();
        step("access log", ACCESS_LOG_PATIENCE, self.beside.wait()).await;
        self.tasks.failure().or_else(|| self.beside.failure())
    }

    /// Ends all at once: there will be no engine. The addresses are free again.
    pub(super) async fn abandon(self) {
        self.drain.cancel();
        self.cut.cancel();
        self.stop_beside.cancel();
        let ended = async { tokio::join!(self.tasks.wait(), self.beside.wait()) };
        if tokio::time::timeout(ABANDON_PATIENCE, ended).await.is_err() {
            tracing::debug!("connections outlive the start that failed");
        }
    }
}

/// One service for whoever has a place, a regular or a reserved one, and another for those without TLS.
fn services<S: Clone>(first: S, without_tls: S) -> Services<Opening<S>> {
    let opening = |first| Opening::new(first);
    Services { usual: opening(first.clone()), when_full: opening(first), without_tls: opening(without_tls) }
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

/// The bound addresses.
struct Listeners {
    s3: BoundTo,
    api: BoundTo,
    unix: Option<Listener>,
    addresses: Addresses,
}

impl Listeners {
    async fn bind(settings: &Settings, network: &dyn Network) -> Result<Self, StartError> {
        let server = &settings.server;
        let (s3, s3_address) = bound(network, "the S3 door", server.s3, "server.s3").await?;
        let (api, api_address) = bound(network, "the native API", server.api, "server.api").await?;
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

/// An address that is listened on.
enum BoundTo {
    Tcp(TcpListener),
    Given(Box<dyn Accept>),
}

impl BoundTo {
    fn listener(self, tls: Option<Tls>) -> Listener {
        match self {
            Self::Tcp(listener) => Listener::Tcp(listener, tls),
            Self::Given(listener) => Listener::Given(listener),
        }
    }
}

async fn bound(
    network: &dyn Network,
    door: &'static str,
    address: SocketAddr,
    key: &'static str,
) -> Result<(BoundTo, SocketAddr), StartError> {
    let bind = async {
        if let Some(listening) = network.listen(address) {
            return listening.map(|(listener, local)| (BoundTo::Given(listener), local));
        }
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((BoundTo::Tcp(listener), local))
    };
    bind.await.map_err(|source| StartError::Bind { door, address: address.to_string(), key, source })
}
