//! Reports space by job, lane and checkpoint; reclaims on demand.

use axum::Json;
use axum::extract::{Request, State};
use esker_client::wire::{
    ErrorBody, GcParams, GcReport, ReclaimPlan, ReclaimRound, SpaceInfo, SpaceParams, VerifyInfo,
};
use http::Uri;

use super::parts::{Native, job_of, nothing, query};
use crate::api::status::ApiError;
use crate::engine::Recount;

/// Tells how much space jobs, lanes or checkpoints take.
#[utoipa::path(get, tag = "Space", path = "/v1/space", params(SpaceParams), responses(
    (status = 200, body = SpaceInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show_space(State(native): State<Native>, uri: Uri) -> Result<Json<SpaceInfo>, ApiError> {
    let params: SpaceParams = query(&uri)?;
    let job = params.job.as_deref().map(job_of).transpose()?;
    let by = params.by.as_deref().map(str::parse).transpose().map_err(|why: String| ApiError::invalid("by", why))?;
    Ok(Json((&native.engine.space(by, job).await?).into()))
}

/// Counts the catalog anew, while everything goes on, and tells what does not add up. Costs time proportional to the
/// catalog.
#[utoipa::path(get, tag = "Space", path = "/v1/verify", responses((status = 200, body = VerifyInfo)))]
pub(super) async fn verify(State(native): State<Native>) -> Result<Json<VerifyInfo>, ApiError> {
    let Recount { files, segments, faults } = native.engine.recount().await?;
    Ok(Json(VerifyInfo { files: files as u64, segments: segments as u64, faults }))
}

/// Tells what the next round of reclaiming would do.
#[utoipa::path(get, tag = "Space", path = "/v1/reclaim", responses((status = 200, body = ReclaimPlan)))]
pub(super) async fn show_plan(State(native): State<Native>) -> Result<Json<ReclaimPlan>, ApiError> {
    Ok(Json((&native.engine.reclaim_plan().await?).into()))
}

/// Reclaims now instead of at the next interval, and tells what was done.
#[utoipa::path(post, tag = "Space", path = "/v1/reclaim", responses(
    (status = 200, body = ReclaimRound), (status = 503, body = ErrorBody)))]
pub(super) async fn reclaim_now(
    State(native): State<Native>,
    request: Request,
) -> Result<Json<ReclaimRound>, ApiError> {
    nothing(&native, request).await?;
    Ok(Json((&native.engine.reclaim_now().await?).into()))
}

/// Tells what is waiting to be deleted. Lists the store.
#[utoipa::path(get, tag = "Space", path = "/v1/gc", responses((status = 200, body = GcReport), (status = 503, body = ErrorBody)))]
pub(super) async fn show_gc(State(native): State<Native>) -> Result<Json<GcReport>, ApiError> {
    Ok(Json((&native.engine.gc_state().await?).into()))
}

/// Deletes what is due now instead of at the next interval, and tells what is left.
#[utoipa::path(post, tag = "Space", path = "/v1/gc", params(GcParams), responses(
    (status = 200, body = GcReport), (status = 503, body = ErrorBody)))]
pub(super) async fn gc_now(state: State<Native>, uri: Uri, request: Request) -> Result<Json<GcReport>, ApiError> {
    let GcParams { force } = query(&uri)?;
    nothing(&state.0, request).await?;
    let engine = &state.0.engine;
    if force == Some(true) {
        engine.force_sweep().await;
    }
    let deleted = engine.delete_now().await?;
    let Json(report) = show_gc(state).await?;
    Ok(Json(GcReport { deleted: deleted as u64, ..report }))
}
