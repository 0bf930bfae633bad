//! Builds every part, starts them in order, stops them in reverse. The only module that knows all parts.
//!
//! Start: doors are bound (a port in use is the cheapest error), it is looked up whether the place is the store that it
//! should be ([`identity`]), the store is opened and probed, the catalog is opened, which shuts out an older daemon, what that
//! one left is settled, the owner of the catalog starts, the configured buckets are created, then the doors open.
//!
//! Stop: not ready any more; the doors take no new connections and requests in progress end, for at most
//! `server.drain-timeout`; open files are written to their end; then the local copy, if there is one; the catalog is
//! written and closed. Each of these steps is given up after that time, so a shutdown ends while storage is out, too; what
//! was answered is durable before.

mod agreement;
mod clock;
pub mod identity;
pub mod rebuild;
mod recover;
pub mod verify;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use identity::{IdentityError, Owned, Standing, Taker};
pub use recover::{Missing, RecoverError, Recovered, imagine, recover};

use crate::api::admin::Admin;
use crate::api::body::Admission;
use crate::api::native::Native;
use crate::api::peers::Peers;
use crate::api::s3::{S3Door, S3DoorParts};
use crate::api::server::{Listener, Serving};
use crate::catalog::Catalog;
use crate::catalog::CatalogError;
use crate::catalog::command::{Command, Refusal};
use crate::catalog::record::Mutation;
use crate::catalog::slate::{Haste, Journal, JournalError, JournalSettings, Placement};
use crate::catalog::state::State;
use crate::config::{CatalogSettings, Settings};
use crate::merge::{Merger, MergerParts};
use crate::metrics::Metrics;
use crate::read::Reader;
use crate::reclaim::ReclaimControl;
use crate::runtime::{Budgets, Buffer, Clock, Entropy, Failure, Share, TaskGroup};
use crate::store::{DataStore, LocalCopy, OpenError, Opened, StoreLock, open};

/// Why the daemon did not start. Nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{door} cannot listen on {address}: set {key} to another address, or end what uses it")]
    Bind {
        /// Which door.
        door: &'static str,
        /// The address.
        address: String,
        /// The key that sets it.
        key: &'static str,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The catalog cannot be opened.
    #[error("the catalog cannot be opened")]
    Journal(#[from] JournalError),
    /// The catalog was lost before it had the configured buckets.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The place is not the store that the catalog belongs to.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What an older daemon left cannot be settled.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

impl StartError {
    /// Whether the storage was found not to be what it should be: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Identity(error) => error.is_refusal(),
            Self::Recover(error) => error.is_refusal(),
            Self::Journal(error) => error.is_damage(),
            Self::Bind { .. } | Self::Store(_) | Self::Catalog(_) => false,
        }
    }
}

/// Why the daemon did not stop as it should. What was answered is durable all the same.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The catalog was lost or could not be closed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Storage did not take the end of the catalog in time.
    #[error("the catalog could not be closed within {0:?}")]
    Late(Duration),
    /// A vital task had failed.
    #[error("{0}")]
    Task(String),
}

impl StopError {
    /// Whether it ended because what is in its place is not its own.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Catalog(CatalogError::Lost(error)) if matches!(**error, JournalError::Moved { .. }))
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

/// What a daemon did in its life.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Segments that were answered.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Physical files that were begun.
    pub files: u64,
}

/// A running daemon. Dropping it is a crash.
pub struct Daemon {
    addresses: Addresses,
    settings: Arc<Settings>,
    catalog: Catalog,
    merger: Merger,
    metrics: Metrics,
    /// Keeps other daemons off the data.
    store_lock: StoreLock,
    ready: Arc<AtomicBool>,
    /// Tasks of the doors: connections and listeners.
    doors: TaskGroup,
    /// Everything else but the catalog.
    work: TaskGroup,
    catalog_tasks: TaskGroup,
    /// Where there is one, and its tasks.
    local_copy: Option<LocalCopy>,
    local_copy_tasks: TaskGroup,
    drain: CancellationToken,
    cut: CancellationToken,
    stop_work: CancellationToken,
    failed: CancellationToken,
}

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
        let settings = Arc::new(settings);
        let listeners = Listeners::bind(&settings).await?;
        let clock = clock.floored();
        let entropy = Entropy::from_os(clock.clone());
        let metrics = Metrics::new();
        let failed = CancellationToken::new();
        let group = || TaskGroup::new(failed.clone());
        let (doors, work, catalog_tasks, local_copy_tasks) = (group(), group(), group(), group());

        // Before anything is made there: it may be the mount point of a volume that is not mounted.
        let url = settings.store.url.to_string();
        let standing = told("looking which store is", &url, identity::look(&settings, &metrics)).await?;
        let opening = open(&settings.store, settings.catalog.url.as_ref(), &metrics, &entropy);
        let opened = told("opening the store", &url, opening).await?;
        let space = opened.space.clone();
        let taker = Taker { settings: &settings, entropy: &entropy, metrics: &metrics, clock: &clock };
        let (state, journal, Owned { data, lock: store_lock }) = load(opened, standing, &taker).await?;
        let catalog = Catalog::start(state, journal, clock.clone(), &metrics, &catalog_tasks);
        let local_copy = data.local_copy().cloned();
        if let Some(copy) = &local_copy {
            copy.run(&local_copy_tasks);
        }
        for bucket in &settings.server.buckets {
            ensure_bucket(&catalog, bucket).await?;
        }

        Buffer::keep(usize::try_from(settings.limits.kept_buffer_bytes).unwrap_or(usize::MAX));
        let limits = &settings.limits;
        let (reads_kept, writes_kept) = (limits.reads_kept_bytes, limits.writes_kept_bytes);
        let budgets = Budgets::new(limits.memory_bytes, reads_kept, writes_kept, metrics.in_flight_bytes.clone());
        let parts = MergerParts::new(
            Arc::clone(&settings),
            data.clone(),
            catalog.clone(),
            budgets.writes.clone(),
            entropy.clone(),
            metrics.clone(),
            work.clone(),
        )
        .with_space(space.clone());
        let merger = Merger::new(parts.clone());
        let reader = Reader::new(
            data.clone(),
            catalog.clone(),
            budgets.reads.clone(),
            limits.admission_timeout,
            metrics.clone(),
            work.clone(),
            limits.read_lease,
        );
        let daemon = Self {
            addresses: listeners.addresses,
            ready: Arc::default(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            stop_work: CancellationToken::new(),
            settings: Arc::clone(&settings),
            catalog,
            merger,
            metrics,
            store_lock,
            doors,
            work,
            catalog_tasks,
            local_copy,
            local_copy_tasks,
            failed,
        };
        daemon.work.spawn("clock", Failure::StopsTheDaemon, clock::watch(clock.clone(), daemon.stop_work.clone()));
        let control = ReclaimControl::new(parts, reader.leases(), daemon.stop_work.clone());
        daemon.reclaim(&control);
        let watching = space.run(daemon.stop_work.clone());
        daemon.work.spawn("disk-space", Failure::StopsTheDaemon, watching);
        daemon.serve(listeners, reader, control, &budgets, (data, entropy, clock))?;
        daemon.ready.store(true, Ordering::Release);
        Ok(daemon)
    }

    /// Starts what gives space back.
    fn reclaim(&self, control: &ReclaimControl) {
        let (vital, interval) = (Failure::StopsTheDaemon, self.settings.reclaim.interval);
        self.work.spawn("deleter", vital, control.clone().run_deleter(interval));
        self.work.spawn("reclaimer", vital, control.clone().run_reclaimer(interval));
    }

    fn serve(
        &self,
        listeners: Listeners,
        reader: Reader,
        reclaim: ReclaimControl,
        budgets: &Budgets,
        (data, entropy, clock): (DataStore, Entropy, Clock),
    ) -> Result<(), StartError> {
        let limits = &self.settings.limits;
        let dropping = reader.clone().run_ahead(self.stop_work.clone());
        self.work.spawn("read-ahead", Failure::StopsTheDaemon, dropping);
        let s3 = S3Door::new(S3DoorParts {
            catalog: self.catalog.clone(),
            merger: self.merger.clone(),
            reader: reader.clone(),
            budget: budgets.writes.clone(),
            settings: Arc::clone(&self.settings),
            metrics: self.metrics.clone(),
            entropy,
            clock,
        });
        self.work.spawn("multipart-expiry", Failure::StopsTheDaemon, s3.clone().run_expiry(self.stop_work.clone()));
        let s3_service = crate::api::s3::service(s3);
        let watch = reclaim.watch.clone();
        let native = Native {
            catalog: self.catalog.clone(),
            merger: self.merger.clone(),
            reader,
            reclaim,
            admission: Admission {
                budget: budgets.writes.clone(),
                patience: limits.admission_timeout,
                silence_max: limits.body_timeout,
                metrics: self.metrics.clone(),
            },
            settings: Arc::clone(&self.settings),
            metrics: self.metrics.clone(),
            shares: self.token_shares(),
        };
        let admin = Admin {
            catalog: self.catalog.clone(),
            metrics: self.metrics.clone(),
            watch,
            ready: Arc::clone(&self.ready),
            space: self.merger.space().clone(),
            data,
        };
        let router = native.router().merge(admin.clone().router());
        let peers = Peers::new(limits.clone(), self.metrics.clone(), budgets);
        self.work.spawn("peers", Failure::StopsTheDaemon, peers.clone().watch(self.stop_work.clone()));
        let s3_when_full = s3_service.full(peers.clone());
        let api_when_full = TowerToHyperService::new(admin.router_when_full(peers.clone()));
        let serving = |door: &str| {
            Serving::new(
                limits.clone(),
                peers.clone(),
                self.metrics.connections.with_label_values(&[door]),
                self.doors.clone(),
                self.drain.clone(),
                self.cut.clone(),
            )
        };
        let vital = Failure::StopsTheDaemon;
        self.doors.spawn("s3-door", vital, serving("s3").accept(Listener::Tcp(listeners.s3), s3_service, s3_when_full));
        let api = TowerToHyperService::new(router);
        if let Some(unix) = listeners.unix {
            self.doors.spawn("unix-door", vital, serving("unix").accept(unix, api.clone(), api_when_full.clone()));
        }
        self.doors.spawn("api-door", vital, serving("native").accept(Listener::Tcp(listeners.api), api, api_when_full));
        Ok(())
    }

    /// What each token of the native API may hold of the memory; a single one has nobody to leave any to.
    fn token_shares(&self) -> Arc<[Share]> {
        let (tokens, bytes) = (self.settings.auth.tokens.len(), self.settings.limits.key_memory_bytes);
        (0..tokens).filter(|_| tokens > 1).map(|_| Share::new(bytes)).collect()
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What exists.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Cancelled when the catalog is lost: nothing is answered any more, and the daemon should stop.
    pub fn lost(&self) -> CancellationToken {
        self.catalog.lost()
    }

    /// Cancelled when a vital task failed, and the daemon should stop.
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Ends requests in progress, writes everything, and closes the catalog.
    ///
    /// # Errors
    /// [`StopError`] if the catalog was lost before or cannot be closed in time, or a vital task had failed.
    pub async fn shut_down(self) -> Result<Summary, StopError> {
        self.ready.store(false, Ordering::Release);
        self.drain.cancel();
        let patience = self.settings.server.drain_timeout;
        step("doors", patience, self.doors.wait()).await;
        self.cut.cancel();
        self.stop_work.cancel();
        self.merger.close();
        step("open files", patience, self.work.wait()).await;
        if let Some(copy) = &self.local_copy {
            copy.close();
            step("local copy", patience, self.local_copy_tasks.wait()).await;
        }
        let closed = step("catalog", patience, self.catalog.close()).await;
        let summary = self.summary();
        drop((self.catalog_tasks, self.store_lock));
        closed.ok_or(StopError::Late(patience))??;
        self.doors.failure().or(self.work.failure()).map_or(Ok(summary), |reason| Err(StopError::Task(reason)))
    }

    fn summary(&self) -> Summary {
        let of = |door| self.metrics.segments.with_label_values(&[door, "answered"]).get();
        let bytes = |door| self.metrics.segment_bytes.with_label_values(&[door]).get();
        Summary {
            segments: of("native") + of("s3"),
            bytes: bytes("native") + bytes("s3"),
            files: self.metrics.files_created.get(),
        }
    }
}

/// Waits for one step of the shutdown, and says how long it took. None if that was too long.
async fn step<T>(name: &'static str, patience: Duration, done: impl Future<Output = T>) -> Option<T> {
    let begun = Clock::instant();
    let done = tokio::time::timeout(patience, done).await.ok();
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if done.is_some() {
        tracing::info!(step = name, millis, "shut down");
    } else {
        tracing::warn!(step = name, millis, "shutting down took too long, going on without");
    }
    done
}

/// After so long a step of the start is told of, and then after ever longer times.
const TELL_AFTER: Duration = Duration::from_secs(2);
const TELL_EVERY_MAX: Duration = Duration::from_secs(60);

/// Waits for one step of the start, and says what is being waited for.
async fn told<T>(step: &str, place: &str, done: impl Future<Output = T>) -> T {
    let begun = Clock::instant();
    let mut done = std::pin::pin!(done);
    let mut pause = TELL_AFTER;
    loop {
        match tokio::time::timeout(pause, &mut done).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(seconds = begun.elapsed().as_secs(), "still {step} at {place}"),
        }
        pause = (pause * 4).min(TELL_EVERY_MAX);
    }
}

/// Opens the catalog's journal, loads the state, takes the store, and settles what was left open.
async fn load(opened: Opened, standing: Standing, taker: &Taker<'_>) -> Result<(State, Journal, Owned), StartError> {
    let Opened { data, catalog, .. } = opened;
    let identity = identity::begin(standing, &data, &catalog, || taker.new_identity()).await?;
    let slot = catalog.identity_slot();
    let mut state = State::default();
    let journal_settings =
        JournalSettings { clock: taker.clock.clone(), ..journal_settings(&catalog, &taker.settings.catalog) };
    let (place, url) = (catalog.to_string(), taker.settings.store.url.to_string());
    let opening = Journal::open(catalog, journal_settings, |key, value| state.load(&key, &value));
    let journal = told("opening the catalog", &place, opening).await?;
    let owned = told("taking over the store", &url, taker.take(identity, &mut state, &journal, data, &slot)).await?;
    let recovering = recover(&mut state, &owned.data, journal.epoch(), taker.clock.now(), Missing::Refuse);
    let recovered = told("settling what was left open", &url, recovering).await?;
    taker.metrics.set_aside_files.inc_by(recovered.set_aside as u64);
    recover::log(&recovered);
    write(&journal, state.take_mutations()).await?;
    #[cfg(debug_assertions)]
    for fault in state.check() {
        tracing::error!(fault, "the catalog does not add up after the start");
    }
    Ok((state, journal, owned))
}

/// The journal's settings for where it lives.
pub fn journal_settings(placement: &Placement, settings: &CatalogSettings) -> JournalSettings {
    let mut log_segment_bytes = settings.log_segment_bytes;
    let base = match placement {
        Placement::Local { space, .. } => {
            // What the catalog writes on a full disk must fit into what is kept back for it.
            let reserve = space.catalog_reserve().filter(|bytes| *bytes > 0).unwrap_or(u64::MAX);
            log_segment_bytes = log_segment_bytes.min((reserve / 16).max(LOG_SEGMENT_BYTES_MIN));
            let base = JournalSettings::local();
            JournalSettings { l0_bytes: base.l0_bytes.min((reserve / 8).max(L0_BYTES_MIN)), ..base }
        }
        Placement::Object { .. } => {
            JournalSettings { poll_interval: settings.poll_interval, ..JournalSettings::default() }
        }
    };
    JournalSettings {
        block_cache_bytes: settings.cache_bytes,
        unflushed_bytes_max: settings.unflushed_bytes_max.max(2 * base.l0_bytes),
        log_segment_bytes,
        ..base
    }
}

/// Smaller ones would make too many files, however little a disk keeps back.
const LOG_SEGMENT_BYTES_MIN: u64 = 64 << 10;
const L0_BYTES_MIN: u64 = 1 << 20;

async fn ensure_bucket(catalog: &Catalog, bucket: &str) -> Result<(), CatalogError> {
    match catalog.execute(Command::CreateBucket(bucket.to_owned())).await {
        Ok(_) | Err(CatalogError::Refused(Refusal::BucketExists(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes changes of a state and waits until they are durable.
///
/// # Errors
/// Why the journal does not take them.
pub async fn write(journal: &Journal, mutations: Vec<Mutation>) -> Result<(), JournalError> {
    write_with(journal, mutations, 10_000, || {}).await
}

/// Writes in pieces that the journal takes, and tells of each.
async fn write_with(
    journal: &Journal,
    mutations: Vec<Mutation>,
    records: usize,
    wrote: impl Fn(),
) -> Result<(), JournalError> {
    for batch in mutations.chunks(records) {
        journal.write(batch.to_vec(), Haste::Now).await?.durable().await?;
        wrote();
    }
    Ok(())
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
