//! Jobs of other shards: requests about one that was placed there are led on, and a job goes on from a checkpoint of another shard.
//!
//! A job that does not claim stays where it is: the checkpoint stays the other job's, and is read there. One that claims goes to the
//! shard of the checkpoint, whose files stay where they are. The shard that its id tells remembers that (`PlaceJob`), before anything
//! is claimed; from then on it leads every request about the job on.
//!
//! # Crash
//! Each step may be taken again, and the same request begins anew:
//!
//! | after | the job | the same request once more |
//! | --- | --- | --- |
//! | the look at the checkpoint | is as it was | looks again |
//! | it is known in the shard of the checkpoint | is as it was; that shard lists it, without anything | finds it known |
//! | it is placed there | is there, without what it had begun | is led on, and claims |
//! | the claim | has the checkpoint | is answered as the first time |
//!
//! A checkpoint that is subsumed in between is an error, and the job stays where it is by then.

use std::str::FromStr;

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use esker_client::wire::{RestoreJob, SpaceParams};
use http::request::Parts;
use http::{HeaderValue, Uri, header};
use percent_encoding::percent_decode_str;

use super::parts::{Native, query};
use crate::api::shards::calls::{self, EngineCall, RestoreAnswer};
use crate::api::shards::siblings::{IDEMPOTENT, Siblings};
use crate::api::status::ApiError;
use crate::engine::EngineError;
use crate::error::ErrorKind;
use crate::model::{Claim, JobId};

/// Leads requests about a job on that is in another shard.
pub(super) async fn lead_on(State(native): State<Native>, request: Request, next: Next) -> Response {
    let Some(siblings) = native.siblings.clone() else { return next.run(request).await };
    let Some(job) = job_of_address(request.uri()) else { return next.run(request).await };
    match native.engine.placed(&job) {
        Ok(None) => next.run(request).await,
        Ok(Some(shard)) => match siblings.pass_on(shard, request).await {
            Ok(answer) => answer,
            Err(error) => ApiError::from(error).into_response(),
        },
        Err(error) => ApiError::from(error).into_response(),
    }
}

/// The job that an address is about.
fn job_of_address(uri: &Uri) -> Option<JobId> {
    let path = uri.path().strip_prefix("/v1/")?;
    let job = match path.strip_prefix("jobs/") {
        Some(rest) => percent_decode_str(rest.split('/').next()?).decode_utf8().ok()?.into_owned(),
        None if path == "space" => query::<SpaceParams>(uri).ok()?.job?,
        None => return None,
    };
    JobId::from_str(&job).ok()
}

/// What a job is to go on from.
pub(super) struct WantedRestore<'a> {
    /// The head of the request.
    pub head: &'a Parts,
    /// Its body.
    pub wanted: &'a RestoreJob,
    /// The job.
    pub job: &'a JobId,
    /// The job whose checkpoint it is.
    pub from: &'a JobId,
    /// Whether it takes the checkpoint over.
    pub claim: Claim,
}

/// Has a job go on from a checkpoint of another shard; `None` if it is in this one.
pub(super) async fn restore(native: &Native, restore: WantedRestore<'_>) -> Result<Option<Response>, ApiError> {
    let Some(siblings) = &native.siblings else { return Ok(None) };
    let WantedRestore { wanted, job, from, claim, .. } = restore;
    let shard = shard_of(native, siblings, from).await?;
    if shard == native.engine.shard().shard {
        return Ok(None);
    }
    let call = EngineCall::MayRestore {
        job: job.to_string(),
        from: from.to_string(),
        checkpoint: wanted.checkpoint,
        claims: claim == Claim::Claim,
    };
    let checkpoint = match siblings.call::<RestoreAnswer>(shard, &call).await? {
        RestoreAnswer::Checkpoint(checkpoint) => checkpoint,
        RestoreAnswer::Refused { kind, field, message } => {
            let field = match field.as_deref() {
                Some("job") => Some("from"),
                Some("checkpoint") => Some("checkpoint"),
                _ => None,
            };
            return Err(ApiError { field, ..ApiError::of(kind, message) });
        }
    };
    match claim {
        Claim::NoClaim => {
            native.engine.go_on_from_elsewhere(job).await?;
            let read = EngineCall::Restored { job: from.to_string(), checkpoint };
            Ok(Some(calls::succeeded(siblings.call_raw(shard, &read).await?).await?))
        }
        Claim::Claim => go_there(native, siblings, shard, &restore).await.map(Some),
    }
}

/// The shard that a job is in.
async fn shard_of(native: &Native, siblings: &Siblings, job: &JobId) -> Result<u32, EngineError> {
    let (own, home) = (native.engine.shard(), native.engine.shard().routing().of_job(job.as_str()));
    let placed = match home == own.shard {
        true => native.engine.placed(job)?,
        false => siblings.call(home, &EngineCall::PlaceOf(job.to_string())).await?,
    };
    Ok(placed.unwrap_or(home))
}

/// Places the job in a shard, which does what the request says.
async fn go_there(
    native: &Native,
    siblings: &Siblings,
    shard: u32,
    restore: &WantedRestore<'_>,
) -> Result<Response, ApiError> {
    let WantedRestore { head, wanted, job, .. } = restore;
    if !native.engine.shard().has_job(job.as_str()) {
        let message = format!(
            "job {job} is with a checkpoint that it has claimed, and the one to claim is in another shard of the store: claim for \
             another job, or do not claim"
        );
        return Err(ApiError { field: Some("job"), ..ApiError::of(ErrorKind::Conflict, message) });
    }
    native.engine.may_be_placed(job)?;
    if native.engine.job(job).is_ok_and(|known| known.created.is_some()) {
        // Whoever was answered that it is there finds it, also if nothing is claimed in the end.
        siblings.call::<()>(shard, &EngineCall::CreateJob(job.to_string())).await?;
    }
    native.engine.place_job(job, shard).await?;
    let body = serde_json::to_vec(wanted).unwrap_or_default();
    let mut head = (*head).clone();
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    head.headers.remove(header::TRANSFER_ENCODING);
    // A claim that was carried out is recognised.
    head.headers.insert(IDEMPOTENT, HeaderValue::from_static("claim"));
    Ok(siblings.pass_on(shard, Request::from_parts(head, HttpBody::from(body))).await?)
}
