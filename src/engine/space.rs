//! Reports space by job, lane and checkpoint; reclaims on demand.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Engine, EngineError, aside};
use crate::catalog::questions::{CatalogFigures, Detail, OfCheckpoint, Recount, SpaceTaken, ToDelete};
pub use crate::catalog::state::{CheckpointSpace, LaneSpace};
use crate::catalog::state::{CheckpointView, FileView, ForgottenFile, SpaceUsage};
use crate::metrics::Metrics;
use crate::metrics::labels::{DeleteWait, FileStatus};
use crate::model::{CheckpointKind, JobId, Lane, LaneOf, StateScope};
pub use crate::reclaim::Round;
use crate::reclaim::guard::check_unnamed;
pub use crate::reclaim::plan::Plan;
pub use crate::reclaim::sweep::SetAside;
use crate::reclaim::sweep::{SweepError, Swept, look};
pub use crate::reclaim::watch::DeletionBacklog;
use crate::reclaim::watch::Watch;
use crate::runtime::{Ages, Failure, reply};

/// The kind of thing that space is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceBy {
    /// Job by job.
    Job,
    /// Lane by lane.
    Lane,
    /// Checkpoint by checkpoint.
    Checkpoint,
}

impl SpaceBy {
    /// The counts that this needs.
    pub(super) fn detail(by: Option<Self>) -> Detail {
        if by == Some(Self::Checkpoint) { Detail::Checkpoints } else { Detail::Lanes }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Lane => "lane",
            Self::Checkpoint => "checkpoint",
        }
    }
}

impl std::str::FromStr for SpaceBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "job" => Ok(Self::Job),
            "lane" => Ok(Self::Lane),
            "checkpoint" => Ok(Self::Checkpoint),
            other => Err(format!("must be 'job', 'lane' or 'checkpoint', is {other:?}")),
        }
    }
}

/// Space, by job, lane or checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceTable {
    /// Everything.
    pub total: SpaceOf,
    /// Job by job, lane by lane or checkpoint by checkpoint.
    pub rows: Vec<SpaceOf>,
}

/// The space of a job, lane or checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceOf {
    /// Its name.
    pub of: String,
    /// The bytes that it takes.
    pub taken: TakenBytes,
}

/// Bytes, and what is known of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakenBytes {
    /// The bytes by files, and the part of them that waits to be deleted.
    Files(LaneSpace, DeletionBacklog),
    /// The bytes by the segments of a checkpoint.
    Checkpoint(CheckpointSpace),
}

/// Files that are to be deleted, and why they are still there.
#[derive(Debug, Clone)]
pub struct GcState {
    /// Files that are to be deleted, and those that are kept.
    pub to_delete: ToDelete,
    /// The bytes by the reason for which they wait.
    pub waiting: DeletionBacklog,
    /// Files that the catalog does not name.
    pub swept: Swept,
    /// Files in `lost+found/`.
    pub set_aside: Vec<SetAside>,
    /// Why nothing of that would be deleted, if something is off.
    pub refused: Option<String>,
}

impl GcState {
    pub(super) fn new(
        to_delete: ToDelete,
        waiting: DeletionBacklog,
        swept: Swept,
        set_aside: Vec<SetAside>,
        epoch: u64,
    ) -> Self {
        let refused = check_unnamed(epoch, &swept.unnamed, swept.listed).err().map(|refused| refused.to_string());
        Self { to_delete, waiting, swept, set_aside, refused }
    }
}

impl Engine {
    /// Returns the space of all jobs or of one.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] if the job is not known.
    pub async fn space(&self, by: Option<SpaceBy>, job: Option<JobId>) -> Result<SpaceTable, EngineError> {
        self.check()?;
        let engine = self.clone();
        let counted = aside("a count", move || {
            let taken = engine.catalog.space_taken(job.as_ref(), SpaceBy::detail(by))?;
            Ok(space_table(&taken, by, job.as_ref(), &engine.reclaim.watch, engine.clock.ages()))
        });
        counted.await?
    }

    /// Counts the catalog anew, while everything goes on. Takes time proportional to the catalog.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn recount(&self) -> Result<Recount, EngineError> {
        self.check()?;
        let catalog = self.catalog.clone();
        aside("a recount", move || catalog.recount()).await
    }

    /// Returns the plan for the next round of reclaiming.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub async fn reclaim_plan(&self) -> Result<Plan, EngineError> {
        self.check()?;
        Ok(self.reclaim.reclaimer.lock().await.plan())
    }

    /// Reclaims now instead of at the next interval.
    ///
    /// # Errors
    /// [`EngineError::Reclaim`]; what was done until then stays done. [`EngineError::ShuttingDown`].
    ///
    /// # Cancel safety
    /// A round that was begun is seen through.
    pub async fn reclaim_now(&self) -> Result<Round, EngineError> {
        self.check()?;
        // In a task of its own: what was begun is seen through, whether or not somebody waits for it.
        let (control, (caller, answer)) = (self.reclaim.clone(), tokio::sync::oneshot::channel());
        self.tasks().spawn("reclaim-now", Failure::FailsItsWork, async move {
            reply(caller, control.reclaimer.lock().await.round(&control.stop).await);
        });
        Ok(answer.await.map_err(|_| EngineError::ShuttingDown)??)
    }

    /// Returns the files that are to be deleted. Lists the store.
    ///
    /// # Errors
    /// [`EngineError::Sweep`] if storage does not answer.
    pub async fn gc_state(&self) -> Result<GcState, EngineError> {
        self.check()?;
        let swept = look(&self.catalog, &self.data).await?;
        let set_aside = self.reclaim.deleter.lock().await.set_aside_files(self.clock.now()).await?;
        let to_delete = self.catalog.to_delete();
        let waiting = self.reclaim.watch.waiting(&to_delete.forgotten, self.clock.ages());
        Ok(GcState::new(to_delete, waiting, swept, set_aside, self.catalog.epoch()))
    }

    /// Deletes what is due now instead of at the next interval. Returns how many files were deleted.
    ///
    /// # Errors
    /// [`EngineError::Catalog`]; what was not deleted is deleted later.
    pub async fn delete_now(&self) -> Result<usize, EngineError> {
        self.check()?;
        Ok(self.reclaim.deleter.lock().await.round(&self.reclaim.stop).await?)
    }

    /// The next sweep deletes what it found twice, though it be most of what is there, and no file is kept any longer for
    /// data that the catalog does not know.
    pub async fn force_sweep(&self) {
        self.reclaim.deleter.lock().await.force_sweep();
    }

    /// Why nothing can be written now, if so.
    pub fn writes_refused(&self) -> Option<String> {
        if let Some(why) = self.data.lost() {
            return Some(format!("the store is not there: {why}"));
        }
        let full = self.catalog.check_room().err().map(|full| full.to_string());
        let full = full.or_else(|| self.merger.space().check().err().map(|full| full.to_string()));
        full.or_else(|| self.writes.trouble())
    }

    /// Brings the gauges that describe the catalog up to date.
    pub fn refresh_metrics(&self) {
        Self::refresh_metrics_of(&self.metrics, std::iter::once(self));
    }

    /// The same for all `engines` of a daemon that share `metrics`: what they have is added up.
    pub fn refresh_metrics_of<'a>(metrics: &Metrics, engines: impl Iterator<Item = &'a Self>) {
        let mut all = GaugeFigures::default();
        engines.for_each(|engine| all.add(engine));
        all.show(metrics);
    }

    /// All physical files that the catalog knows, by name.
    pub fn files(&self) -> Vec<FileView> {
        self.catalog.files()
    }

    /// The names and lengths of all that storage has of physical files.
    ///
    /// # Errors
    /// [`EngineError::Sweep`] if storage does not answer.
    pub async fn list_store(&self) -> Result<Vec<(String, u64)>, EngineError> {
        Ok(self.data.list().await.map_err(SweepError::from)?)
    }

    /// Bytes in total.
    pub fn space_usage(&self) -> SpaceUsage {
        self.catalog.space()
    }
}

/// What gauges show of the engines of a daemon.
#[derive(Default)]
struct GaugeFigures {
    files: [u64; 3],
    waiting: DeletionBacklog,
    space: SpaceUsage,
    memory: u64,
    memory_limit: u64,
    clock_behind: Duration,
    lag: Duration,
}

impl GaugeFigures {
    fn add(&mut self, engine: &Engine) {
        let CatalogFigures { space, file_counts, forgotten, jobs } = engine.catalog.figures();
        let (_, lag) = engine.reclaim.watch.above(&jobs);
        engine.writes.refresh();
        for (all, count) in self.files.iter_mut().zip(file_counts) {
            *all += count;
        }
        self.waiting = self.waiting.plus(&engine.reclaim.watch.waiting(&forgotten, engine.clock.ages()));
        self.space = self.space.plus(&space);
        let (memory, memory_limit) = engine.catalog.memory_bytes();
        self.memory += memory;
        self.memory_limit += memory_limit;
        self.clock_behind = self.clock_behind.max(engine.clock.behind());
        self.lag = self.lag.max(lag);
    }

    fn show(&self, metrics: &Metrics) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let Self { files, waiting, space, memory, memory_limit, clock_behind, lag } = self;
        for (status, count) in [FileStatus::Open, FileStatus::Closed, FileStatus::Forgotten].into_iter().zip(files) {
            metrics.files.of(status).set(gauge(*count));
        }
        let waits = [
            (DeleteWait::Readers, waiting.readers),
            (DeleteWait::Grace, waiting.grace),
            (DeleteWait::Rate, waiting.rate),
            (DeleteWait::Refused, waiting.refused),
        ];
        for (why, bytes) in waits {
            metrics.forgotten_bytes.of(why).set(gauge(bytes));
        }
        metrics.catalog_memory_bytes.set(gauge(*memory));
        metrics.catalog_memory_limit_bytes.set(gauge(*memory_limit));
        metrics.clock_behind.set(clock_behind.as_secs_f64());
        metrics.delete_queue.set(gauge(files[2]));
        metrics.physical_bytes.set(gauge(space.physical_bytes));
        metrics.reclaim_lag.set(lag.as_secs_f64());
        metrics.live_bytes.set(gauge(space.live_bytes));
        metrics.inline_bytes.set(gauge(space.inline_bytes));
        metrics.space_amplification.set(space.amplification());
    }
}

/// The table of the space that is taken, of all jobs or of one, with what waits to be deleted by its age.
pub(super) fn space_table(
    taken: &SpaceTaken,
    by: Option<SpaceBy>,
    job: Option<&JobId>,
    watch: &Watch,
    ages: Ages,
) -> SpaceTable {
    let of_lanes = taken.lanes.iter().map(|(lane, space)| (lane.clone(), (space.clone(), DeletionBacklog::default())));
    let mut lanes: BTreeMap<Lane, LaneUsage> = of_lanes.collect();
    for file in &taken.forgotten {
        let (_, waiting) = lanes.entry(lane_of(file)).or_default();
        waiting.add(watch.why(file, ages), file.occupied);
    }
    lanes.retain(|lane, _| job.is_none_or(|job| lane.job.as_ref() == Some(job)));
    let total = lanes.values().fold(LaneUsage::default(), plus);
    let name = job.map_or_else(|| "total".to_owned(), ToString::to_string);
    let rows = match by {
        None => vec![],
        Some(SpaceBy::Lane) => lanes.iter().map(|(lane, counted)| row(lane.to_string(), counted)).collect(),
        Some(SpaceBy::Job) => by_job(&lanes).iter().map(|(job, counted)| row(job.clone(), counted)).collect(),
        Some(SpaceBy::Checkpoint) => {
            taken.checkpoints.iter().flat_map(|(job, of_job)| of_job.iter().map(|of| checkpoint(job, of))).collect()
        }
    };
    SpaceTable { total: row(name, &total), rows }
}

/// The space of a lane, and the part of it that waits to be deleted.
type LaneUsage = (LaneSpace, DeletionBacklog);

fn plus((space, waiting): LaneUsage, (more, and): &LaneUsage) -> LaneUsage {
    (space.plus(more), waiting.plus(and))
}

/// The lane that a file counts for whose lane was not recorded is the one of [`SpaceTaken::lanes`].
fn lane_of(file: &ForgottenFile) -> Lane {
    file.lane.clone().unwrap_or(Lane { job: None, scope: StateScope::Shared, of: LaneOf::All })
}

fn by_job(lanes: &BTreeMap<Lane, LaneUsage>) -> BTreeMap<String, LaneUsage> {
    let mut jobs: BTreeMap<String, LaneUsage> = BTreeMap::new();
    for (lane, counted) in lanes {
        let job = lane.job.as_ref().map_or("(all jobs)", JobId::as_str);
        let entry = jobs.entry(job.to_owned()).or_default();
        *entry = plus(entry.clone(), counted);
    }
    jobs
}

fn row(of: String, (space, waiting): &LaneUsage) -> SpaceOf {
    SpaceOf { of, taken: TakenBytes::Files(space.clone(), *waiting) }
}

fn checkpoint(job: &JobId, (CheckpointView { id, kind, .. }, space): &OfCheckpoint) -> SpaceOf {
    let of = match kind {
        CheckpointKind::Checkpoint => format!("{job} checkpoint {id}"),
        CheckpointKind::Savepoint => format!("{job} savepoint {id}"),
    };
    SpaceOf { of, taken: TakenBytes::Checkpoint(*space) }
}
