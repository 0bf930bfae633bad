//! How much space what takes, and getting it back now.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use http::Uri;

use super::figures::{GcParams, GcReport, ReclaimPlan, ReclaimRound, SpaceInfo, SpaceParams, SpaceRow, VerifyInfo};
use super::native::{Native, job_of, query};
use super::status::ApiError;
use super::wire::ErrorBody;
use crate::catalog::record::{CheckpointKind, CheckpointRecord};
use crate::catalog::state::{CheckpointSpace, ForgottenFile, LaneSpace, State as CatalogState};
use crate::error::ErrorKind;
use crate::model::{CheckpointId, JobId, Lane, LaneOf, StateScope};
use crate::reclaim::sweep::look;
use crate::reclaim::watch::{Waiting, Watch};
use crate::runtime::{Ages, Failure};

/// Tells how much space jobs, lanes or checkpoints take.
#[utoipa::path(get, path = "/v1/space", params(SpaceParams), responses(
    (status = 200, body = SpaceInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show_space(State(native): State<Native>, uri: Uri) -> Result<Json<SpaceInfo>, ApiError> {
    native.catalog.check()?;
    let params: SpaceParams = query(&uri)?;
    let job = params.job.as_deref().map(job_of).transpose()?;
    let by = params.by.as_deref().map(str::parse).transpose().map_err(|why: String| ApiError::invalid("by", why))?;
    if let Some(job) = &job
        && native.catalog.view().job(job).is_none()
    {
        return Err(ApiError::not_found("job", format!("job {job} is not known")));
    }
    let catalog = native.catalog.clone();
    let watch = native.reclaim.watch.clone();
    let counted =
        tokio::task::spawn_blocking(move || space(&catalog.view(), by, job.as_ref(), &watch, catalog.clock().ages()))
            .await;
    counted.map(Json).map_err(|error| ApiError::of(ErrorKind::Internal, error.to_string()))
}

/// Counts the catalog anew and tells what does not add up. Costs time proportional to the catalog, in which nothing is
/// committed.
#[utoipa::path(get, path = "/v1/verify", responses((status = 200, body = VerifyInfo)))]
pub async fn verify(State(native): State<Native>) -> Result<Json<VerifyInfo>, ApiError> {
    native.catalog.check()?;
    let catalog = native.catalog.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let state = catalog.view();
        let (files, segments) = (state.files().count() as u64, state.all_segments().count() as u64);
        VerifyInfo { files, segments, faults: state.check() }
    });
    let counted = counted.await.map_err(|error| ApiError::of(ErrorKind::Internal, error.to_string()))?;
    Ok(Json(counted))
}

/// Tells what the next round of reclaiming would do.
#[utoipa::path(get, path = "/v1/reclaim", responses((status = 200, body = ReclaimPlan)))]
pub async fn show_plan(State(native): State<Native>) -> Result<Json<ReclaimPlan>, ApiError> {
    native.catalog.check()?;
    Ok(Json((&native.reclaim.reclaimer.lock().await.plan()).into()))
}

/// Reclaims now instead of at the next interval, and tells what was done.
#[utoipa::path(post, path = "/v1/reclaim", responses(
    (status = 200, body = ReclaimRound), (status = 503, body = ErrorBody)))]
pub async fn reclaim_now(State(native): State<Native>) -> Result<Json<ReclaimRound>, ApiError> {
    native.catalog.check()?;
    // In a task of its own: what was begun is seen through, whether or not somebody waits for it.
    let (control, (reply, answer)) = (native.reclaim.clone(), tokio::sync::oneshot::channel());
    native.merger.tasks().spawn("reclaim-now", Failure::FailsItsWork, async move {
        drop(reply.send(control.reclaimer.lock().await.round(&control.stop).await));
    });
    let round = answer.await.map_err(|_| ApiError::of(ErrorKind::ShuttingDown, "the daemon is shutting down"))?;
    let unavailable = |error| ApiError::of(ErrorKind::Unavailable, crate::error::chain(&error));
    Ok(Json((&round.map_err(unavailable)?).into()))
}

/// Tells what is waiting to be deleted. Lists the store.
#[utoipa::path(get, path = "/v1/gc", responses((status = 200, body = GcReport), (status = 503, body = ErrorBody)))]
pub async fn show_gc(State(native): State<Native>) -> Result<Json<GcReport>, ApiError> {
    native.catalog.check()?;
    let swept = look(&native.catalog, native.reader.store()).await;
    let swept = swept.map_err(|error| ApiError::of(ErrorKind::Unavailable, crate::error::chain(&error)))?;
    let (state, epoch) = (native.catalog.view(), native.catalog.epoch());
    let waiting = native.reclaim.watch.waiting(&state, native.catalog.clock().ages());
    let forgotten = state.forgotten_files(|_, _| true, usize::MAX);
    Ok(Json(GcReport::of(&forgotten, waiting, &swept, epoch).with_kept(&state, epoch)))
}

/// Deletes what is due now instead of at the next interval, and tells what is left.
#[utoipa::path(post, path = "/v1/gc", params(GcParams), responses(
    (status = 200, body = GcReport), (status = 503, body = ErrorBody)))]
pub async fn gc_now(state: State<Native>, uri: Uri) -> Result<Json<GcReport>, ApiError> {
    let GcParams { force } = query(&uri)?;
    let native = &state.0;
    native.catalog.check()?;
    let deleted = {
        let mut deleter = native.reclaim.deleter.lock().await;
        if force == Some(true) {
            deleter.force_sweep();
        }
        deleter.round(&native.reclaim.stop).await?
    };
    let Json(report) = show_gc(state).await?;
    Ok(Json(GcReport { deleted: deleted as u64, ..report }))
}

/// By what space is told apart.
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

/// The space table of a catalog, of all jobs or of one, with what waits to be deleted by its age.
pub fn space(state: &CatalogState, by: Option<SpaceBy>, job: Option<&JobId>, watch: &Watch, ages: Ages) -> SpaceInfo {
    let mut lanes: BTreeMap<Lane, Counted> =
        state.space_by_lane().into_iter().map(|(lane, space)| (lane, (space, Waiting::default()))).collect();
    for file in state.forgotten_files(|_, _| true, usize::MAX) {
        let (_, waiting) = lanes.entry(lane_of(&file)).or_default();
        waiting.add(watch.why(&file, ages), file.occupied);
    }
    lanes.retain(|lane, _| job.is_none_or(|job| lane.job.as_ref() == Some(job)));
    let total = lanes.values().fold(Counted::default(), plus);
    let name = job.map_or_else(|| "total".to_owned(), ToString::to_string);
    let rows = match by {
        None => vec![],
        Some(SpaceBy::Lane) => lanes.iter().map(|(lane, counted)| row(lane.to_string(), counted)).collect(),
        Some(SpaceBy::Job) => by_job(&lanes).iter().map(|(job, counted)| row(job.clone(), counted)).collect(),
        Some(SpaceBy::Checkpoint) => {
            let jobs =
                job.map_or_else(|| state.jobs().into_iter().map(|(job, ..)| job).collect(), |job| vec![job.clone()]);
            jobs.iter().flat_map(|job| checkpoints(state, job)).collect()
        }
    };
    SpaceInfo { total: row(name, &total), rows }
}

/// What a lane takes, and what of it waits to be deleted.
type Counted = (LaneSpace, Waiting);

fn plus((space, waiting): Counted, (more, and): &Counted) -> Counted {
    (space.plus(more), waiting.plus(and))
}

/// The lane that a file counts for whose lane was not recorded is the one of [`CatalogState::space_by_lane`].
fn lane_of(file: &ForgottenFile) -> Lane {
    file.lane.clone().unwrap_or(Lane { job: None, scope: StateScope::Shared, of: LaneOf::All })
}

fn by_job(lanes: &BTreeMap<Lane, Counted>) -> BTreeMap<String, Counted> {
    let mut jobs: BTreeMap<String, Counted> = BTreeMap::new();
    for (lane, counted) in lanes {
        let job = lane.job.as_ref().map_or("(all jobs)", JobId::as_str);
        let entry = jobs.entry(job.to_owned()).or_default();
        *entry = plus(entry.clone(), counted);
    }
    jobs
}

fn row(of: String, (lane, waiting): &Counted) -> SpaceRow {
    SpaceRow::of(of, lane.files, lane.segments, &lane.space, *waiting)
}

fn checkpoints(state: &CatalogState, job: &JobId) -> Vec<SpaceRow> {
    let row = |(id, record, space): (CheckpointId, CheckpointRecord, CheckpointSpace)| SpaceRow {
        of: match record.kind {
            CheckpointKind::Checkpoint => format!("{job} checkpoint {id}"),
            CheckpointKind::Savepoint => format!("{job} savepoint {id}"),
        },
        segments: space.segments,
        live_bytes: space.bytes,
        own_bytes: Some(space.own_bytes),
        ..SpaceRow::default()
    };
    state.space_by_checkpoint(job).into_iter().map(row).collect()
}
