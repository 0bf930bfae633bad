//! Builds every part, starts them in order, stops them in reverse.
//!
//! Start: it is looked up whether the place is the store that it should be ([`identity`]), the store is opened and probed, the
//! catalog is opened, which shuts out an older daemon, what that one left is settled, the configured buckets are created, the
//! owner of the catalog starts.
//!
//! Stop, with the doors closed: open files are written to their end; then the local copy, if there is one; the catalog is
//! written and closed. Each of these steps is given up after `server.drain-timeout`, so a stop ends while storage is out,
//! too; what was answered is durable before.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::arrivals::Audits;
use super::deletes;
use super::elsewhere::Shards;
use super::identity::{self, IdentityError, Owned, StoreStanding, Taker};
use super::journal::journal_settings;
use super::merged::MergedByFlink;
use super::progress::StartProgress;
use super::recover::{self, Missing, RecoverError, recover};
use super::uploads::Uploads;
use super::writes::{WriteHealth, WriteProbe};
use super::{Engine, clock};
use crate::catalog::command::{Command, Refusal};
use crate::catalog::save::save;
use crate::catalog::slate::{Journal, JournalClaim, JournalError, JournalSettings};
use crate::catalog::state::CatalogState;
use crate::catalog::{Catalog, CatalogError};
use crate::config::{LimitsSettings, Settings};
use crate::merge::{Merger, WriteContext};
use crate::metrics::Metrics;
use crate::model::{Millis, ShardOf};
use crate::read::Reader;
use crate::reclaim::ReclaimControl;
use crate::runtime::{Budgets, Buffer, Clock, Entropy, Failure, TaskGroup};
use crate::store::{self, DataStore, DiskSpace, LocalCopy, OpenedStore, Placement, StoreLock};

/// Why an engine did not start. Nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The catalog cannot be opened.
    #[error("the catalog cannot be opened")]
    Journal(#[from] JournalError),
    /// The catalog does not take a configured bucket.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The place is not the store that the catalog belongs to.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The files that an older daemon left open cannot be settled.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The folder in which deletes are to be noted cannot be used.
    #[error(
        "deletes cannot be noted in {}: give merging.delete-ledger a folder on a local disk that this user can write, or set \
         merging.delete-durability to \"commit\"",
        folder.display()
    )]
    Ledger {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Meanwhile the catalog was given to another member of the cluster.
    #[error("another daemon of the cluster has the catalog: {0}")]
    NotMine(String),
}

impl OpeningError {
    /// Whether the storage was found not to be what it should be: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Identity(error) => error.is_refusal(),
            Self::Recover(error) => error.is_refusal(),
            Self::Journal(error) => error.is_damage(),
            Self::Store(error) => error.is_refusal(),
            Self::Catalog(_) | Self::NotMine(_) | Self::Ledger { .. } => false,
        }
    }
}

/// Why an engine did not stop as it should. What was answered is durable all the same.
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

/// Work that is done without being asked for: reclaiming, deleting, forgetting uploads, watching disk and clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Background {
    /// All of it, in its own time.
    #[default]
    Runs,
    /// Only what is called for: for those who measure it.
    OnCall,
}

/// The right of a member of a cluster to open the catalog.
pub struct CatalogClaim {
    /// The epoch that the catalog has now, as [`Journal::last_epoch`] tells: it is opened for the next one exactly.
    pub epoch_before: u64,
    /// The part of the store that it is the catalog of.
    pub shard: ShardOf,
    /// Asked once the catalog is open, before anything is changed: whether the map still gives it to this member, and if not, why.
    pub still_mine: StillMine,
}

/// Tells whether a catalog is this one's, and if not, why.
pub type StillMine = BoxFuture<'static, Result<(), String>>;

crate::runtime::opaque_debug!(CatalogClaim);

/// A store that was found to be the right one, and does what it should.
#[derive(Debug, Clone)]
pub struct TriedStore {
    standing: StoreStanding,
    opened: OpenedStore,
}

impl TriedStore {
    /// Looks at the store of `settings`, opens and tries it. Nobody is shut out.
    ///
    /// # Errors
    /// [`OpeningError`].
    pub async fn open(
        settings: &Settings,
        metrics: &Metrics,
        entropy: &Entropy,
        progress: &StartProgress,
    ) -> Result<Self, OpeningError> {
        // Before anything is made there: it may be the mount point of a volume that is not mounted.
        let url = settings.store.url.to_string();
        let looking = identity::look(settings, None, metrics);
        let standing = progress.told("looking which store is", &url, looking).await?;
        let opening = store::open(&settings.store, settings.catalog.url.as_ref(), metrics, entropy);
        let opened = progress.told("opening the store", &url, opening).await?;
        Ok(Self { standing, opened })
    }

    /// Looks at the place of a shard in a store that is `opened`, and was tried. `settings` are the shard's. Nobody is shut out.
    ///
    /// # Errors
    /// [`OpeningError`].
    pub async fn of_shard(
        opened: OpenedStore,
        settings: &Settings,
        metrics: &Metrics,
        progress: &StartProgress,
    ) -> Result<Self, OpeningError> {
        let looking = identity::look(settings, Some(&opened), metrics);
        let standing = progress.told("looking which store is", &settings.store.url.to_string(), looking).await?;
        Ok(Self { standing, opened })
    }

    /// Whether there is no store yet.
    pub fn is_new(&self) -> bool {
        matches!(self.standing, StoreStanding::New)
    }

    /// The store.
    pub fn opened(&self) -> &OpenedStore {
        &self.opened
    }

    /// Whether nothing about the store is still to be made: what was found holds for later, too.
    pub fn is_whole(&self) -> bool {
        matches!(self.standing, StoreStanding::Known(_))
    }
}

/// The way in which an engine is opened.
#[derive(Debug, Default)]
pub struct EngineOptions {
    /// Stamps what is recorded. A daemon's is floored.
    pub clock: Clock,
    /// Draws the same names again; without one, the operating system's randomness is used.
    pub seed: Option<u64>,
    /// Where physical files go, in place of `store.url`.
    pub data: Option<DataStore>,
    /// The work that is done without being asked for.
    pub background: Background,
    /// What doors that are open already share with it; else it makes its own.
    pub foundation: Option<Foundation>,
    /// The store of the settings, if it was looked at, opened and tried already.
    pub tried: Option<TriedStore>,
    /// For a member of a cluster.
    pub claim: Option<CatalogClaim>,
    /// All shards of the store, if its own is one of several.
    pub shards: Option<Arc<dyn Shards>>,
}

/// What there is before an engine is, for doors that open before it does.
#[derive(Debug, Clone)]
pub struct Foundation {
    /// Everything that is counted.
    pub metrics: Metrics,
    /// Draws names.
    pub entropy: Entropy,
    /// Memory for bytes on their way in and out.
    pub budgets: Budgets,
    /// Cancelled when a vital task fails.
    pub failed: CancellationToken,
    /// The step that the start is at.
    pub progress: StartProgress,
}

impl Foundation {
    /// Everything at zero.
    pub fn new(limits: &LimitsSettings, clock: &Clock, seed: Option<u64>) -> Self {
        let metrics = Metrics::new();
        let entropy = match seed {
            Some(seed) => Entropy::from_seed(seed, clock.clone()),
            None => Entropy::from_os(clock.clone()),
        };
        let budgets = Budgets::new(
            limits.memory_bytes,
            limits.reads_kept_bytes,
            limits.writes_kept_bytes,
            limits.connections_bytes_max,
            metrics.in_flight_bytes.clone(),
        );
        Self { metrics, entropy, budgets, failed: CancellationToken::new(), progress: StartProgress::default() }
    }
}

/// An engine that runs. Dropping it is a crash.
pub struct Running {
    engine: Engine,
    /// Keeps other daemons off the data.
    store_lock: StoreLock,
    catalog_tasks: TaskGroup,
    /// The local copy, where there is one, and its tasks.
    local_copy: Option<LocalCopy>,
    local_copy_tasks: TaskGroup,
    stopping: CancellationToken,
    failed: CancellationToken,
}

crate::runtime::opaque_debug!(Running);

impl Engine {
    /// Opens the store of `settings`, and takes it over.
    ///
    /// # Errors
    /// [`OpeningError`]; nothing runs then.
    pub async fn open(settings: Settings, opening: EngineOptions) -> Result<Running, OpeningError> {
        let settings = Arc::new(settings);
        let EngineOptions { clock, seed, data, background, foundation, tried, claim, shards } = opening;
        let foundation = foundation.unwrap_or_else(|| Foundation::new(&settings.limits, &clock, seed));
        let Foundation { metrics, entropy, budgets, failed, progress } = foundation;
        let group = || TaskGroup::new(failed.clone());
        let (tasks, catalog_tasks, local_copy_tasks) = (group(), group(), group());

        let folder = settings.merging.delete_ledger.as_ref().filter(|_| claim.is_none());
        let unusable = |source| OpeningError::Ledger { folder: folder.cloned().unwrap_or_default(), source };
        if let Some(folder) = folder {
            deletes::try_folder(folder).await.map_err(unusable)?;
        }
        let tried = match tried {
            Some(tried) => tried,
            None => TriedStore::open(&settings, &metrics, &entropy, &progress).await?,
        };
        let TriedStore { standing, opened } = tried;
        let opened = OpenedStore { data: data.unwrap_or(opened.data), ..opened };
        let space = opened.space.clone();
        let taker =
            Taker { settings: &settings, entropy: &entropy, metrics: &metrics, clock: &clock, progress: &progress };
        let (state, journal, Owned { data, lock: store_lock, .. }) = load(opened, standing, &taker, claim).await?;
        let shard = journal.shard();
        let opened = deletes::open(folder, &state, &journal).await;
        let (ledger, noted) = opened.map_err(unusable)?.unzip();
        let catalog = Catalog::start_with(state, journal, ledger, clock.clone(), &metrics, &catalog_tasks);
        if let Some(noted) = noted {
            deletes::do_again(&catalog, noted).await?;
        }
        let local_copy = data.local_copy().cloned();
        if let Some(copy) = &local_copy {
            copy.run(&local_copy_tasks);
        }
        let stopping = CancellationToken::new();
        let parts = Parts { settings, shard, shards, data, space, catalog, metrics, entropy, budgets, clock, tasks };
        let engine = parts.wire(&stopping);
        // Before the task that expires uploads, and before a request can name one.
        engine.adopt_uploads();
        if background == Background::Runs {
            engine.run(&stopping);
        }
        Ok(Running { engine, store_lock, catalog_tasks, local_copy, local_copy_tasks, stopping, failed })
    }

    /// Starts what is done without being asked for.
    fn run(&self, stopping: &CancellationToken) {
        let (tasks, vital) = (self.tasks(), Failure::StopsTheDaemon);
        let interval = self.settings.reclaim.interval;
        tasks.spawn("clock", vital, clock::watch(self.clock.clone(), stopping.clone()));
        tasks.spawn("deleter", vital, self.reclaim.clone().run_deleter(interval));
        tasks.spawn("reclaimer", vital, self.reclaim.clone().run_reclaimer(interval));
        tasks.spawn("disk-space", vital, self.merger.space().clone().run(stopping.clone()));
        tasks.spawn("read-ahead", vital, self.reader.clone().run_ahead(stopping.clone()));
        let probe = WriteProbe {
            data: self.data.clone(),
            catalog: self.catalog.clone(),
            entropy: self.entropy.clone(),
            space: self.merger.space().clone(),
        };
        tasks.spawn("write-watch", vital, self.writes.clone().watch(probe, stopping.clone()));
        // Not vital: without it checkpoints are stored all the same.
        tasks.spawn("audits", Failure::FailsItsWork, self.clone().run_audits(stopping.clone()));
        tasks.spawn("multipart-expiry", vital, self.clone().run_expiry(stopping.clone()));
    }
}

/// The parts of an engine.
struct Parts {
    settings: Arc<Settings>,
    shard: ShardOf,
    shards: Option<Arc<dyn Shards>>,
    data: DataStore,
    space: DiskSpace,
    catalog: Catalog,
    metrics: Metrics,
    entropy: Entropy,
    budgets: Budgets,
    clock: Clock,
    tasks: TaskGroup,
}

impl Parts {
    fn wire(self, stopping: &CancellationToken) -> Engine {
        let Self { settings, shard, shards, data, space, catalog, metrics, entropy, budgets, clock, tasks } = self;
        let (limits, can) = (&settings.limits, data.capabilities());
        Buffer::keep(usize::try_from(limits.kept_buffer_bytes).unwrap_or(usize::MAX));
        let parts = WriteContext::new(
            Arc::clone(&settings),
            data.clone(),
            catalog.clone(),
            budgets.writes.clone(),
            entropy.clone(),
            metrics.clone(),
            tasks.clone(),
        )
        .with_space(space);
        let reader = Reader::new(
            data.clone(),
            catalog.clone(),
            budgets.reads.clone(),
            limits.admission_timeout,
            metrics.clone(),
            tasks,
            limits.read_lease,
        );
        Engine {
            merger: Merger::new(parts.clone()),
            reclaim: ReclaimControl::new(parts, reader.leases(), stopping.clone()),
            uploads: Arc::new(Uploads::new(limits)),
            merged: Arc::<MergedByFlink>::default(),
            audits: Arc::<Audits>::default(),
            catalog,
            reader,
            data,
            budgets,
            writes: WriteHealth::new(metrics.clone(), can, &settings),
            settings,
            shard,
            shards,
            metrics,
            entropy,
            clock,
        }
    }
}

impl Running {
    /// The engine that runs.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The catalog, for tests that make up what no client could store.
    pub fn catalog(&self) -> &Catalog {
        &self.engine.catalog
    }

    /// Cancelled when it stops: what serves it should end.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled when the catalog is lost: nothing is answered any more, and the engine should be stopped.
    pub fn lost(&self) -> CancellationToken {
        self.engine.catalog.lost()
    }

    /// Cancelled when a vital task failed, and the engine should be stopped.
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Writes everything, and closes the catalog. Nobody may want anything more.
    ///
    /// # Errors
    /// [`StopError`] if the catalog was lost before or cannot be closed in time, or a vital task had failed.
    pub async fn stop(self) -> Result<(), StopError> {
        let Self { engine, store_lock, catalog_tasks, local_copy, local_copy_tasks, stopping, .. } = self;
        let patience = engine.settings.server.drain_timeout;
        // From the writers down to what they write into: each step leaves nothing to do for the one before.
        stopping.cancel();
        engine.merger.close();
        step("open files", patience, engine.tasks().wait()).await;
        if let Some(copy) = &local_copy {
            copy.close();
            step("local copy", patience, local_copy_tasks.wait()).await;
        }
        let closed = step("catalog", patience, engine.catalog.close()).await;
        // Not before the catalog is closed: from here on another daemon may open the store.
        drop((catalog_tasks, store_lock));
        closed.ok_or(StopError::Late(patience))??;
        engine.tasks().failure().map_or(Ok(()), |reason| Err(StopError::Task(reason)))
    }
}

/// Waits for one step of a stop, and says how long it took. None if that was too long.
pub async fn step<T>(name: &'static str, patience: Duration, done: impl Future<Output = T>) -> Option<T> {
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

/// Opens the catalog's journal, loads the state, takes the store, and settles what was left open.
async fn load(
    opened: OpenedStore,
    standing: StoreStanding,
    taker: &Taker<'_>,
    claim: Option<CatalogClaim>,
) -> Result<(CatalogState, Journal, Owned), OpeningError> {
    let mut state = CatalogState::default();
    let decides_on_buckets = claim.as_ref().is_none_or(|claim| claim.shard.decides_on_buckets());
    let of_member =
        |CatalogClaim { epoch_before, shard, still_mine }| (JournalClaim::Member { epoch_before, shard }, still_mine);
    let (claim, still_mine) = claim.map(of_member).unzip();
    let claim = (claim.unwrap_or(JournalClaim::Alone), still_mine);
    let (journal, owned) = take_over(opened.data, opened.catalog, standing, taker, claim, &mut state).await?;
    if owned.data.capabilities().leases {
        state.keep_failed_files_open();
    }
    let url = taker.settings.store.url.to_string();
    let recovering = recover(&mut state, &owned.data, journal.epoch(), taker.clock.now(), Missing::Refuse);
    let recovering = async { futures::join!(recovering, owned.data.remove_owners(&owned.earlier, journal.epoch())).0 };
    let recovered = taker.progress.told("settling what was left open", &url, recovering).await?;
    taker.metrics.set_aside_files.inc_by(recovered.set_aside as u64);
    recover::log(&recovered);
    for bucket in taker.settings.server.buckets.iter().filter(|_| decides_on_buckets) {
        ensure_bucket(&mut state, bucket, taker.clock.now())?;
    }
    save(&mut state, &journal).await?;
    // Last: what is configured is there however full the catalog is.
    state.bound_memory(Some(taker.settings.limits.catalog_memory_bytes).filter(|bytes| *bytes > 0));
    #[cfg(debug_assertions)]
    for fault in state.check() {
        tracing::error!(fault, "the catalog does not add up after the start");
    }
    Ok((state, journal, owned))
}

/// Opens the catalog's journal into `state`, and takes the store: an older daemon is shut out from here on.
pub(super) async fn take_over(
    data: DataStore,
    catalog: Placement,
    standing: StoreStanding,
    taker: &Taker<'_>,
    (claim, still_mine): (JournalClaim, Option<StillMine>),
    state: &mut CatalogState,
) -> Result<(Journal, Owned), OpeningError> {
    let identity = identity::begin(standing, &data, &catalog, || taker.new_identity()).await?;
    let slot = catalog.identity_slot();
    let settings = JournalSettings {
        clock: clock_of_journal(taker.clock),
        claim,
        ..journal_settings(&catalog, &taker.settings.catalog)
    };
    let (place, url) = (catalog.to_string(), taker.settings.store.url.to_string());
    let opening = Journal::open(catalog, settings, |key, value| state.load(&key, &value));
    let journal = taker.progress.told("opening the catalog", &place, opening).await?;
    let mut earlier = None;
    if let Some(still_mine) = still_mine {
        // Both are asked at once: the shorter nobody has the catalog, the better.
        let (still_mine, owners) = futures::join!(still_mine, data.owners());
        if let Err(why) = still_mine {
            if let Err(error) = journal.close().await {
                tracing::debug!(%error, "closing a catalog that is another one's by now");
            }
            return Err(OpeningError::NotMine(why));
        }
        earlier = Some(owners.map_err(IdentityError::from)?);
    }
    let taking = taker.take(identity, state, &journal, data, &slot, earlier);
    let owned = taker.progress.told("taking over the store", &url, taking).await?;
    Ok((journal, owned))
}

/// The journal's own upkeep goes by the machine's clock, whatever clock somebody sets by hand.
fn clock_of_journal(clock: &Clock) -> Clock {
    match clock {
        Clock::Manual(_) => Clock::System.floored(),
        other => other.clone(),
    }
}

fn ensure_bucket(state: &mut CatalogState, bucket: &str, now: Millis) -> Result<(), CatalogError> {
    match state.apply(Command::CreateBucket(bucket.to_owned()), now) {
        Ok(_) | Err(Refusal::BucketExists(_)) => Ok(()),
        Err(refusal) => Err(refusal.into()),
    }
}
