//! Jobs, what they go on from, and their ends.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::coordinated;
use super::elsewhere::{self, WantedRestore};
use super::parts::{AskedJob, Native, claim_of, in_field, job_of, json};
use crate::api::status::ApiError;
use crate::config::Retention;
use crate::coordinator::copies::unpublish_kept;
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::storage;
use crate::engine::Engine;
use crate::engine::jobs::{GoOn, Restored, leavings};
use crate::error::ErrorKind;
use crate::model::{CheckpointId, CheckpointKind, Claim, InvalidId, JobEnd, JobId, Leavings};
use esker_client::wire::{EndAnswer, EndRequest, ErrorBody, JobInfo, ListedSegment, NewJob, RestoreJob, RestoredJob};

/// Bytes of a description of a job.
const JOB_BYTES_MAX: usize = 1 << 20;

/// Creates a job, with a coordinator or without; nothing happens if it exists.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs", request_body = NewJob, responses(
    (status = 201, body = JobInfo), (status = 400, body = ErrorBody)))]
pub(super) async fn create_job(State(native): State<Native>, request: Request) -> Result<Response, ApiError> {
    let new: NewJob = json(&native, request, JOB_BYTES_MAX).await?;
    let job = job_of(&new.job)?;
    match new.coordinated {
        true => native.coordinators.create(coordinated::new_job(job.clone(), new)?).await?,
        false if new.settings.is_some() || new.operators.is_some() || new.iterative.is_some() => {
            return Err(ApiError::invalid(
                "coordinated",
                "settings, operators and iterative are of a job with a coordinator",
            ));
        }
        false => native.engine.create_job(&job).await?,
    }
    Ok((StatusCode::CREATED, Json(coordinated::job_info(&native, native.engine.job(&job)?).await?)).into_response())
}

/// Lists all jobs.
#[utoipa::path(get, tag = "Jobs", path = "/v1/jobs", responses((status = 200, body = Vec<JobInfo>)))]
pub(super) async fn list_jobs(State(native): State<Native>) -> Result<Json<Vec<JobInfo>>, ApiError> {
    let mut jobs = vec![];
    for job in native.engine.jobs().await? {
        jobs.push(coordinated::job_info(&native, job).await?);
    }
    Ok(Json(jobs))
}

/// Shows a job.
#[utoipa::path(get, tag = "Jobs", path = "/v1/jobs/{job}", params(("job" = String, Path)), responses(
    (status = 200, body = JobInfo), (status = 404, body = ErrorBody)))]
pub(super) async fn show_job(State(native): State<Native>, Path(job): Path<String>) -> Result<Json<JobInfo>, ApiError> {
    Ok(Json(coordinated::job_info(&native, native.engine.job(&job_of(&job)?)?).await?))
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
) -> Result<Response, ApiError> {
    let job = job_of(&job)?;
    // First: whoever asks means the job that there is now, and not one of its name that there is when the body has come.
    let AskedJob { run, coordinator } = AskedJob::of(&native, &job);
    let (head, body) = request.into_parts();
    let wanted: RestoreJob = json(&native, Request::from_parts(head.clone(), body), JOB_BYTES_MAX).await?;
    if let Some(coordinator) = coordinator {
        return Ok(Json(coordinated::restore(&native, &job, &coordinator, wanted).await?).into_response());
    }
    let RestoreJob { from, checkpoint, mode, savepoint, operators, allow_non_restored_state } = &wanted;
    if savepoint.is_some() || operators.is_some() || allow_non_restored_state.is_some() {
        return Err(ApiError::invalid(
            "savepoint",
            "savepoint, operators and allow_non_restored_state are for a job with a coordinator",
        ));
    }
    // The job that goes on is made where there is none: what is not known is where it should go on from.
    let of_from = from.is_some();
    let unknown = |error: ApiError| match error.field {
        Some("job") if of_from && error.kind == ErrorKind::NotFound => ApiError { field: Some("from"), ..error },
        _ => error,
    };
    let from =
        from.as_ref().map_or(Ok(job.clone()), |from| from.parse().map_err(|e: InvalidId| in_field("from", &e)))?;
    let claim = claim_of(mode.as_deref())?.unwrap_or(Claim::Claim);
    if claim == Claim::Claim && native.engine.is_coordinated(&from)? {
        return Err(CoordinatorError::Runs(from).into());
    }
    let checkpoint = checkpoint.map(CheckpointId);
    let go_on = GoOn { job: job.clone(), from: from.clone(), checkpoint, claim };
    has_to_be_created(&native.engine, &go_on).await?;
    let restore = WantedRestore { head: &head, wanted: &wanted, job: &job, from: &from, claim };
    if let Some(answer) = elsewhere::restore(&native, restore).await? {
        return Ok(answer);
    }
    let restored = native.engine.go_on(go_on, Some(run)).await.map_err(|error| unknown(error.into()))?;
    let Restored { owner, checkpoint, segments } = restored;
    let segments = segments.iter().map(ListedSegment::from).collect();
    Ok(Json(RestoredJob { job: owner.to_string(), checkpoint: checkpoint.0, segments }).into_response())
}

/// Says that a job has ended. Its retention mode says whether its completed checkpoints are kept; savepoints are, always.
#[utoipa::path(post, tag = "Jobs", path = "/v1/jobs/{job}/end", request_body = EndRequest, params(("job" = String, Path)), responses(
    (status = 200, body = EndAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn end_job(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<EndAnswer>, ApiError> {
    let job = job_of(&job)?;
    let AskedJob { run, coordinator } = AskedJob::of(&native, &job);
    let EndRequest { state, retention } = json(&native, request, 64 << 10).await?;
    let retention = retention.map(|text| text.parse().map_err(|error| in_field("retention", &error))).transpose()?;
    if let Some(coordinator) = coordinator {
        return Ok(Json(EndAnswer { kept: coordinator.end(state.into(), retention).await? }));
    }
    if let Some(kept) = left_by_an_end(&native, &job, state.into(), retention)? {
        return Ok(Json(EndAnswer { kept }));
    }
    let known = retention.unwrap_or(native.engine.settings().checkpointing.retention);
    if leavings(state.into(), known) == Leavings::Delete {
        unpublish_kept(&native.engine, &job, None).await;
    }
    let leavings = native.engine.end_job_in(Some(run), &job, state.into(), retention).await?;
    Ok(Json(EndAnswer { kept: leavings == Leavings::Keep }))
}

/// Whether a job that has ended has kept checkpoints, if that is the answer to the end of it: nobody says which of them stay, and by what
/// the job had said of that, which is not known any more, they may have been kept. One that is suspended may still end otherwise.
fn left_by_an_end(
    native: &Native,
    job: &JobId,
    state: JobEnd,
    retention: Option<Retention>,
) -> Result<Option<bool>, ApiError> {
    let ended = native.engine.job(job).ok().and_then(|job| job.ended);
    match ended.filter(|_| retention.is_none()) {
        Some(was) if was == state => {
            let mut left = native.engine.checkpoints(job)?.into_iter();
            Ok(Some(left.any(|one| one.kind == CheckpointKind::Checkpoint)))
        }
        Some(was) if was != JobEnd::Suspended => {
            let message = format!("job {job} has ended as {was}: say which of its checkpoints stay (retention)");
            Err(ApiError { field: Some("state"), ..ApiError::of(ErrorKind::Conflict, message) })
        }
        _ => Ok(None),
    }
}

/// Refuses to make a job known by having it go on from a checkpoint that a coordinator has completed: it may be one that had a
/// coordinator, has ended and is forgotten, and would go on without.
async fn has_to_be_created(engine: &Engine, go_on: &GoOn) -> Result<(), CoordinatorError> {
    if engine.job(&go_on.job).is_ok_and(|known| known.created.is_some() && known.ended.is_none()) {
        return Ok(());
    }
    // One that is not here is not of this shard, or wrong: that is told by the restore itself.
    let Ok(id) = engine.may_go_on(go_on.clone()) else { return Ok(()) };
    match storage::is_of_a_coordinator(engine, &go_on.from, id).await {
        true => Err(CoordinatorError::NotCreated(go_on.job.clone(), go_on.from.clone(), id)),
        false => Ok(()),
    }
}
