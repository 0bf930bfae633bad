//! What a job does with its checkpoints beyond storing them: reuse, restore, savepoints, and its own end.

use axum::Json;
use axum::extract::{Path, Request, State};
use http::StatusCode;

use super::native::{Native, job_of, json};
use super::status::ApiError;
use super::wire::{
    EndAnswer, EndRequest, ErrorBody, ListedSegment, RestoreJob, RestoredJob, ReuseAnswer, ReuseRequest,
};
use crate::catalog::command::{Claim, Command, Leavings, Outcome, Restore};
use crate::catalog::record::JobEnd;
use crate::config::Retention;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, Handle, InvalidId, JobId, SegmentId};

/// Bytes of a reference to a segment in JSON, rather more.
const REFERENCE_BYTES_MAX: usize = 512;

/// Discards a savepoint: frees its segments. Nothing happens if there is none.
#[utoipa::path(delete, path = "/v1/jobs/{job}/checkpoints/{checkpoint}",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 204), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn discard_savepoint(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    native.catalog.execute(Command::DiscardSavepoint(job.clone(), id)).await?;
    native.merger.checkpoint_barrier(&job, id);
    Ok(StatusCode::NO_CONTENT)
}

/// Says that a checkpoint uses segments of earlier ones. They live as long as it does; those that may not be reused are
/// named and have to be stored again.
#[utoipa::path(post, path = "/v1/jobs/{job}/checkpoints/{checkpoint}/reuse", request_body = ReuseRequest,
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = ReuseAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn reuse(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
    request: Request,
) -> Result<Json<ReuseAnswer>, ApiError> {
    let (job, id): (JobId, CheckpointId) = (job_of(&job)?, checkpoint.parse()?);
    let max = native.settings.limits.segments_per_request_max;
    let ReuseRequest { segments: named } = json(&native, request, max.saturating_mul(REFERENCE_BYTES_MAX)).await?;
    if named.len() > max {
        let message = format!("{} segments in one request, limits.segments-per-request-max is {max}", named.len());
        return Err(ApiError::invalid("segments", message));
    }
    let ids = named.iter().map(|text| segment_of(text)).collect::<Result<Vec<SegmentId>, ApiError>>()?;
    let outcome = native.catalog.execute(Command::Reuse(job, id, ids.clone())).await?;
    let Outcome::Reused(refused) = outcome else {
        return Err(ApiError::of(ErrorKind::Internal, "a reuse was answered with something else"));
    };
    let refused: std::collections::HashSet<SegmentId> = refused.into_iter().collect();
    let all = named.len();
    let refused: Vec<String> =
        named.into_iter().zip(ids).filter(|(_, id)| refused.contains(id)).map(|(text, _)| text).collect();
    let reused = all as u64 - refused.len() as u64;
    native.metrics.reused.with_label_values(&["reused"]).inc_by(reused);
    native.metrics.reused.with_label_values(&["refused"]).inc_by(refused.len() as u64);
    Ok(Json(ReuseAnswer { reused, refused }))
}

/// Says that a job goes on from a checkpoint, and tells its segments. Checkpoints of the job that had begun are aborted.
#[utoipa::path(post, path = "/v1/jobs/{job}/restore", request_body = RestoreJob, params(("job" = String, Path)),
    responses((status = 200, body = RestoredJob), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn restore_job(
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
    let claim = match mode.as_deref() {
        None | Some("claim") => Claim::Claim,
        Some("no-claim") => Claim::NoClaim,
        Some(other) => {
            return Err(ApiError::invalid("mode", format!("must be 'claim' or 'no-claim', is {other:?}")));
        }
    };
    let checkpoint = match checkpoint {
        Some(number) => CheckpointId(number),
        None => latest_of(&native, &job, &from, claim).map_err(unknown)?,
    };
    let restore = Restore { job: job.clone(), from: from.clone(), checkpoint, claim };
    native.catalog.execute(Command::Restore(restore)).await.map_err(|error| unknown(error.into()))?;
    native.merger.close_job(&job);
    if claim == Claim::Claim {
        native.merger.close_job(&from);
    }
    let owner = if claim == Claim::Claim { job } else { from };
    let mut parts = native.catalog.view().checkpoint_segments(&owner, checkpoint);
    parts.sort_unstable();
    let segments = {
        let state = native.catalog.view();
        parts.iter().filter_map(|part| state.segment(part.id).as_ref().map(ListedSegment::from)).collect()
    };
    Ok(Json(RestoredJob { job: owner.to_string(), checkpoint: checkpoint.0, segments }))
}

/// The newest checkpoint of `from` that completed. If `job` has claimed that before, its answer was lost.
fn latest_of(native: &Native, job: &JobId, from: &JobId, claim: Claim) -> Result<CheckpointId, ApiError> {
    let latest = super::native::latest_completed(&native.catalog, from).map(|(id, _)| id);
    let claimed = (claim == Claim::Claim).then(|| native.catalog.view().claimed_from(job, from)).flatten();
    match (latest, claimed) {
        (Ok(latest), claimed) => Ok(claimed.map_or(latest, |claimed| claimed.max(latest))),
        (Err(_), Some(claimed)) => Ok(claimed),
        (Err(error), None) => Err(error),
    }
}

/// Says that a job has ended. Its retention mode says whether its completed checkpoints are kept; savepoints are, always.
#[utoipa::path(post, path = "/v1/jobs/{job}/end", request_body = EndRequest, params(("job" = String, Path)), responses(
    (status = 200, body = EndAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn end_job(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<EndAnswer>, ApiError> {
    let job = job_of(&job)?;
    let EndRequest { state, retention } = json(&native, request, 64 << 10).await?;
    let retention = match retention {
        Some(text) => text.parse().map_err(|error| ApiError::invalid("retention", format!("{error}")))?,
        None => native.settings.checkpointing.retention,
    };
    let leavings = leavings(state, retention);
    native.catalog.execute(Command::EndJob(job.clone(), state, leavings)).await?;
    native.merger.close_job(&job);
    Ok(Json(EndAnswer { kept: leavings == Leavings::Keep }))
}

/// What a job leaves.
///
/// A suspended job is not over: another job manager may go on with it, so its checkpoints stay.
///
/// # Source
/// `CheckpointRetentionPolicy` and `CheckpointProperties` of Flink.
fn leavings(end: JobEnd, retention: Retention) -> Leavings {
    match (retention, end) {
        (_, JobEnd::Suspended) => Leavings::Keep,
        (Retention::NoExternalizedCheckpoints, _) | (_, JobEnd::Finished) => Leavings::Delete,
        (Retention::DeleteOnCancellation, JobEnd::Canceled) => Leavings::Delete,
        (Retention::DeleteOnCancellation, JobEnd::Failed) => Leavings::Keep,
        (Retention::RetainOnCancellation, JobEnd::Canceled | JobEnd::Failed) => Leavings::Keep,
    }
}

/// A segment by its identity or by a handle.
fn segment_of(text: &str) -> Result<SegmentId, ApiError> {
    let parsed = match text.parse::<Handle>() {
        Ok(handle) => Ok(handle.id),
        Err(_) => text.parse::<SegmentId>(),
    };
    parsed.map_err(|error| in_field("segments", &error))
}

fn in_field(field: &'static str, error: &impl std::fmt::Display) -> ApiError {
    ApiError::invalid(field, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Flink's `CheckpointRetentionPolicy`, but that a suspended job keeps its checkpoints.
    #[test]
    fn what_a_job_leaves_depends_on_its_end_and_on_its_retention_mode() {
        use JobEnd::{Canceled, Failed, Finished, Suspended};
        use Leavings::{Delete, Keep};
        let table = [
            (Retention::NoExternalizedCheckpoints, [Delete, Delete, Delete, Keep]),
            (Retention::DeleteOnCancellation, [Delete, Delete, Keep, Keep]),
            (Retention::RetainOnCancellation, [Delete, Keep, Keep, Keep]),
        ];
        for (retention, expected) in table {
            let left = [Finished, Canceled, Failed, Suspended].map(|end| leavings(end, retention));
            assert_eq!(left, expected, "{retention}");
        }
    }
}
