//! Jobs, what they go on from, and their ends.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::parts::{Native, in_field, job_of, json};
use crate::api::status::ApiError;
use crate::engine::jobs::{GoOn, Restored};
use crate::model::{CheckpointId, Claim, InvalidId, Leavings};
use esker_client::wire::{EndAnswer, EndRequest, ErrorBody, JobInfo, ListedSegment, NewJob, RestoreJob, RestoredJob};

/// Creates a job; nothing happens if it exists.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs", request_body = NewJob, responses(
    (status = 201, body = JobInfo), (status = 400, body = ErrorBody)))]
pub(super) async fn create_job(State(native): State<Native>, request: Request) -> Result<Response, ApiError> {
    let new: NewJob = json(&native, request, 64 << 10).await?;
    let job = job_of(&new.job)?;
    native.engine.create_job(&job).await?;
    Ok((StatusCode::CREATED, Json(JobInfo::from(native.engine.job(&job)?))).into_response())
}

/// Lists all jobs.
#[utoipa::path(get, tag = "Jobs", path = "/v1/jobs", responses((status = 200, body = Vec<JobInfo>)))]
pub(super) async fn list_jobs(State(native): State<Native>) -> Result<Json<Vec<JobInfo>>, ApiError> {
    Ok(Json(native.engine.jobs().await?.into_iter().map(JobInfo::from).collect()))
}

/// Shows a job.
#[utoipa::path(get, tag = "Jobs", path = "/v1/jobs/{job}", params(("job" = String, Path)), responses(
    (status = 200, body = JobInfo), (status = 404, body = ErrorBody)))]
pub(super) async fn show_job(State(native): State<Native>, Path(job): Path<String>) -> Result<Json<JobInfo>, ApiError> {
    Ok(Json(native.engine.job(&job_of(&job)?)?.into()))
}

/// Says that the job's workers have sent their last segment for now: its open files are closed.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs/{job}/flush", params(("job" = String, Path)), responses(
    (status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn flush(State(native): State<Native>, Path(job): Path<String>) -> Result<StatusCode, ApiError> {
    native.engine.flush(&job_of(&job)?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says that a job goes on from a checkpoint, and tells its segments. Checkpoints of the job that had begun are aborted.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs/{job}/restore", request_body = RestoreJob, params(("job" = String, Path)),
    responses((status = 200, body = RestoredJob), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn restore_job(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<RestoredJob>, ApiError> {
    let job = job_of(&job)?;
    let RestoreJob { from, checkpoint, mode } = json(&native, request, 64 << 10).await?;
    // The job that goes on is made where there is none: what is not known is where it should go on from.
    let of_from = from.is_some();
    let unknown = |error: ApiError| match error.field {
        Some("job") if of_from => ApiError { field: Some("from"), ..error },
        _ => error,
    };
    let from = from.map_or(Ok(job.clone()), |from| from.parse().map_err(|e: InvalidId| in_field("from", &e)))?;
    native.check_shard("from", &from)?;
    let claim = match mode.as_deref() {
        None | Some("claim") => Claim::Claim,
        Some("no-claim") => Claim::NoClaim,
        Some(other) => {
            return Err(ApiError::invalid("mode", format!("must be 'claim' or 'no-claim', is {other:?}")));
        }
    };
    let go_on = GoOn { job, from, checkpoint: checkpoint.map(CheckpointId), claim };
    let restored = native.engine.go_on(go_on).await.map_err(|error| unknown(error.into()))?;
    let Restored { owner, checkpoint, segments } = restored;
    let segments = segments.iter().map(ListedSegment::from).collect();
    Ok(Json(RestoredJob { job: owner.to_string(), checkpoint: checkpoint.0, segments }))
}

/// Says that a job has ended. Its retention mode says whether its completed checkpoints are kept; savepoints are, always.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs/{job}/end", request_body = EndRequest, params(("job" = String, Path)), responses(
    (status = 200, body = EndAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn end_job(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<EndAnswer>, ApiError> {
    let job = job_of(&job)?;
    let EndRequest { state, retention } = json(&native, request, 64 << 10).await?;
    let retention = retention.map(|text| text.parse().map_err(|error| in_field("retention", &error))).transpose()?;
    let leavings = native.engine.end_job(&job, state.into(), retention).await?;
    Ok(Json(EndAnswer { kept: leavings == Leavings::Keep }))
}
