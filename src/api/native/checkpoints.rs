//! The life of a checkpoint, reuse, savepoints.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};

use super::parts::{AskedJob, Native, in_field, job_of, nothing, object, query, text};
use crate::api::status::ApiError;
use crate::api::wire::checkpoint_info;
use crate::coordinator::copies::unpublish_kept;
use crate::engine::jobs::CheckpointStep;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, Handle, JobId, SegmentId};
use esker_client::wire::{BeginParams, CheckpointInfo, ErrorBody, ReuseAnswer, ReuseRequest};

/// Bytes of a reference to a segment in JSON, rather more.
const REFERENCE_BYTES_MAX: usize = 512;

/// Begins a checkpoint or savepoint; nothing happens if it has begun.
#[utoipa::path(post, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}",
    params(("job" = String, Path), ("checkpoint" = u64, Path), BeginParams), responses(
    (status = 200, body = CheckpointInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn begin_checkpoint(
    state: State<Native>,
    path: Path<(String, String)>,
    uri: Uri,
    request: Request,
) -> Result<Response, ApiError> {
    let kind = query::<BeginParams>(&uri)?.kind.into();
    take_step(state, path, request, CheckpointStep::Begin(kind)).await
}

/// Completes a checkpoint: a job can be restored from it.
#[utoipa::path(post, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/complete",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn complete_checkpoint(
    state: State<Native>,
    path: Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    take_step(state, path, request, CheckpointStep::Complete).await
}

/// Aborts a checkpoint: frees its segments that no later one uses, and refuses late ones.
#[utoipa::path(post, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/abort",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn abort_checkpoint(
    state: State<Native>,
    path: Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    take_step(state, path, request, CheckpointStep::Abort).await
}

/// Subsumes every checkpoint up to this one: frees what none after it uses.
#[utoipa::path(post, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/subsume",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn subsume_checkpoint(
    state: State<Native>,
    path: Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    take_step(state, path, request, CheckpointStep::Subsume).await
}

async fn take_step(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    request: Request,
    step: CheckpointStep,
) -> Result<Response, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    let AskedJob { run, coordinator } = AskedJob::of(&native, &job);
    if coordinator.is_some() {
        let message = format!("job {job} has a coordinator, which begins and ends its checkpoints");
        return Err(ApiError { field: Some("job"), ..ApiError::of(ErrorKind::Conflict, message) });
    }
    nothing(&native, request).await?;
    if step == CheckpointStep::Subsume && native.engine.job(&job).is_ok_and(|job| job.ended.is_some()) {
        unpublish_kept(&native.engine, &job, Some(id)).await;
    }
    Ok(match native.engine.step_in(Some(run), &job, id, step).await? {
        Some(checkpoint) => Json(checkpoint_info(&job, &checkpoint)).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Lists the checkpoints of a job that are not subsumed, in order.
#[utoipa::path(get, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints", params(("job" = String, Path)), responses(
    (status = 200, body = Vec<CheckpointInfo>), (status = 404, body = ErrorBody)))]
pub(super) async fn list_checkpoints(
    State(native): State<Native>,
    Path(job): Path<String>,
) -> Result<Json<Vec<CheckpointInfo>>, ApiError> {
    let job = job_of(&job)?;
    let found = native.engine.checkpoints(&job)?;
    Ok(Json(found.iter().map(|checkpoint| checkpoint_info(&job, checkpoint)).collect()))
}

/// The newest completed checkpoint of a job.
#[utoipa::path(get, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/latest", params(("job" = String, Path)), responses(
    (status = 200, body = CheckpointInfo), (status = 404, body = ErrorBody)))]
pub(super) async fn latest_checkpoint(
    State(native): State<Native>,
    Path(job): Path<String>,
) -> Result<Json<CheckpointInfo>, ApiError> {
    let job = job_of(&job)?;
    let latest = native.engine.latest_completed(&job)?;
    Ok(Json(checkpoint_info(&job, &latest)))
}

/// Discards a savepoint: frees its segments. Nothing happens if there is none. One that is in progress in a job with a coordinator, or
/// from which such a job would begin, is not discarded.
#[utoipa::path(delete, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 204), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn discard_savepoint(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    native.coordinators.check_unused(&job, id).await?;
    native.engine.discard_savepoint(&job, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says that a checkpoint uses segments of earlier ones. They live as long as it does; those that may not be reused are
/// named and have to be stored again.
#[utoipa::path(post, tag = "Checkpoints", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/reuse", request_body = ReuseRequest,
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = ReuseAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn reuse(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    request: Request,
) -> Result<Json<ReuseAnswer>, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    let max = native.engine.settings().limits.segments_per_request_max;
    let run = native.engine.run_of(&job);
    let body = text(&native, request, max.saturating_mul(REFERENCE_BYTES_MAX)).await?;
    let ReuseRequest { segments: named } = object("body", &body)?;
    if named.len() > max {
        let message = format!("{} segments in one request, limits.segments-per-request-max is {max}", named.len());
        return Err(ApiError::invalid("segments", message));
    }
    let ids = named.iter().map(|text| segment_of(text)).collect::<Result<Vec<SegmentId>, ApiError>>()?;
    native.check_pending(&job, Some(id)).await?;
    let refused = native.engine.reuse(&job, id, ids.clone(), Some(run)).await?;
    let all = named.len();
    let refused: Vec<String> =
        named.into_iter().zip(ids).filter(|(_, id)| refused.contains(id)).map(|(text, _)| text).collect();
    Ok(Json(ReuseAnswer { reused: all as u64 - refused.len() as u64, refused }))
}

/// A segment by its identity or by a handle.
fn segment_of(text: &str) -> Result<SegmentId, ApiError> {
    let parsed = match text.parse::<Handle>() {
        Ok(handle) => Ok(handle.id),
        Err(_) => text.parse::<SegmentId>(),
    };
    parsed.map_err(|error| in_field("segments", &error))
}
