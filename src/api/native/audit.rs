//! What the checkpoints of Apache Flink name, and objects that none of them names.
//!
//! Orphans are told line by line, as they are found: whoever reads slowly is waited for, and nothing is collected here.

use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use esker_client::wire::{
    self, AuditParams, AuditedCheckpoint, AuditedObject, AuditedPart, ErrorBody, KeptObject, KeptObjects, OrphanLine,
    OrphanObject, OrphansEnd, OrphansOfJob, OrphansParams, UnreadableMetadata,
};
use futures::StreamExt;
use http::{HeaderValue, Uri, header};
use http_body_util::BodyExt;

use super::parts::{Native, query};
use crate::api::status::ApiError;
use crate::engine::audit::look::{LookedAt, NameList};
use crate::engine::audit::{
    AuditQuery, CheckpointAudit, JobTally, JudgedObject, Judgement, MissingObject, NamedObject, OrphanQuery,
    OrphanReport, RetainedPage,
};
use crate::engine::{EngineError, Refusal};
use crate::flink::{Kept, Orphan};
use crate::model::ShardOf;

/// Checkpoints of one page.
const PAGE: u32 = 20;
const PAGE_MAX: u32 = 100;
/// The age of an orphan that is asked for if none is.
const OLDER_THAN: Duration = Duration::from_secs(3600);

/// Compares the checkpoints and savepoints of Flink that are there with the objects that they name, in pages.
#[utoipa::path(get, tag = "Audit", path = "/v1/audit", params(AuditParams), responses(
    (status = 200, body = wire::AuditPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn audit(State(native): State<Native>, uri: Uri) -> Result<Response, ApiError> {
    let AuditParams { bucket, prefix, job, after, limit, names } = query(&uri)?;
    let max = match limit.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => limit as usize,
        limit => return Err(ApiError::invalid("limit", format!("must be 1 to {PAGE_MAX}, is {limit}"))),
    };
    // A daemon that has one of several by itself knows of no others to go on with.
    let shard = native.siblings.as_ref().map_or(ShardOf::WHOLE, |_| native.engine.shard());
    let after = after.map(|after| place_after(shard, &after)).transpose()?.flatten();
    // With names, an answer holds one checkpoint: it may have very many.
    let (names, max) = if names == Some(true) { (NameList::Listed, 1) } else { (NameList::Counted, max) };
    let asked = AuditQuery { bucket, prefix: prefix.unwrap_or_default(), job, after, max, names };
    let page = match native.engine.audit(&asked).await {
        // The first shard has said that it is there: nothing is in it here.
        Err(EngineError::Refused(Refusal::NoSuchBucket(_))) if !shard.decides_on_buckets() => RetainedPage::default(),
        page => page.map_err(|error| native.turned_away(error))?,
    };
    let next = next_page(shard, page.next);
    let paid_of = |audit: &CheckpointAudit| audit.looked.needs.as_ref().ok()?.paid.clone();
    let paid: Vec<_> = page.checkpoints.iter().filter_map(paid_of).collect();
    let page = wire::AuditPage { checkpoints: page.checkpoints.into_iter().map(audited).collect(), next };
    // The names stay paid for until the answer is gone.
    let keep = move |frame| {
        let _paid = &paid;
        frame
    };
    Ok(Json(page).into_response().map(|body| HttpBody::new(body.map_frame(keep))))
}

/// The bucket and key after which a page begins, and `None` for the first one of a shard. One shard comes after the other, so where
/// there are several, the number of the shard stands before it.
fn place_after(shard: ShardOf, after: &str) -> Result<Option<(String, String)>, ApiError> {
    let wrong = || ApiError::invalid("after", "must be `next` of the page before");
    let place = match shard.is_whole() {
        true => after,
        false => match after.split_once(':') {
            Some((number, place)) if number.parse() == Ok(shard.shard) => place,
            _ => return Err(wrong()),
        },
    };
    if place.is_empty() && !shard.is_whole() {
        return Ok(None);
    }
    let (bucket, key) = place.split_once('/').ok_or_else(wrong)?;
    Ok(Some((bucket.to_owned(), key.to_owned())))
}

fn next_page(shard: ShardOf, next: Option<(String, String)>) -> Option<String> {
    let next = next.map(|(bucket, key)| format!("{bucket}/{key}"));
    match next {
        next if shard.is_whole() => next,
        Some(next) => Some(format!("{}:{next}", shard.shard)),
        None => (shard.shard + 1 < shard.of).then(|| format!("{}:", shard.shard + 1)),
    }
}

fn audited(audit: CheckpointAudit) -> AuditedCheckpoint {
    let kind = if audit.is_checkpoint() { "checkpoint" } else { "savepoint" };
    let folder = audit.folder().to_owned();
    let CheckpointAudit { bucket, key, looked: LookedAt { modified, len, needs } } = audit;
    let known = AuditedCheckpoint {
        bucket,
        key,
        folder,
        kind: kind.to_owned(),
        modified_ms: modified.0,
        metadata_bytes: len,
        ..AuditedCheckpoint::default()
    };
    let needs = match needs {
        Ok(needs) => needs,
        Err(why) => return AuditedCheckpoint { unreadable: Some(crate::error::chain(&why)), ..known },
    };
    AuditedCheckpoint {
        version: needs.summary.version,
        checkpoint: needs.summary.checkpoint,
        objects: needs.objects,
        state_bytes: needs.state_bytes.saturating_add(needs.summary.inline_bytes),
        inline_bytes: needs.summary.inline_bytes,
        elsewhere: needs.elsewhere,
        elsewhere_first: needs.elsewhere_first,
        missing: needs.missing,
        missing_objects: needs.missing_first.into_iter().map(missing).collect(),
        copy_of: needs.copy_of,
        of_others: needs.of_others,
        of_others_first: needs.of_others_first,
        named: needs.named.into_iter().map(named).collect(),
        ..known
    }
}

fn missing(object: MissingObject) -> AuditedObject {
    let MissingObject { bucket, key, needed, len, merged } = object;
    AuditedObject { bucket, key, needed_bytes: needed, len, merged_by_flink: merged }
}

fn named(part: NamedObject) -> AuditedPart {
    let NamedObject { bucket, key, start, len } = part;
    AuditedPart { bucket, key, start, len }
}

/// Finds objects of Flink's jobs that no checkpoint and no savepoint names, and none in progress will. The answer is a line of
/// JSON for each, one for each job, and a last one.
#[utoipa::path(get, tag = "Audit", path = "/v1/orphans", params(OrphansParams), responses(
    (status = 200, body = OrphanLine, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn find_orphans(State(native): State<Native>, uri: Uri) -> Result<Response, ApiError> {
    orphans(&native, query(&uri)?, false).await
}

/// The same, and deletes them, each if it is still the object that was judged.
#[utoipa::path(post, tag = "Audit", path = "/v1/orphans", params(OrphansParams), responses(
    (status = 200, body = OrphanLine, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn delete_orphans(State(native): State<Native>, uri: Uri) -> Result<Response, ApiError> {
    orphans(&native, query(&uri)?, true).await
}

async fn orphans(native: &Native, params: OrphansParams, delete: bool) -> Result<Response, ApiError> {
    let OrphansParams { bucket, prefix, job, older_than_ms, kept, risk_running_checkpoints } = params;
    let asked = OrphanQuery {
        bucket,
        prefix: prefix.unwrap_or_default(),
        job,
        older_than: older_than_ms.map_or(OLDER_THAN, Duration::from_millis),
        delete,
        risk_running_checkpoints: risk_running_checkpoints == Some(true),
        kept: kept == Some(true),
    };
    let reports = native.engine.orphans(asked).map_err(|error| match error {
        EngineError::TooYoung(_) => ApiError::invalid("older_than_ms", error.to_string()),
        error => error.into(),
    })?;
    // What fails before anything is told is an error of the request: mostly there is no memory for all names.
    let mut reports = Box::pin(reports.peekable());
    if let Some(Err(error)) = reports.as_mut().next_if(Result::is_err).await {
        return Err(native.turned_away(error));
    }
    let lines = reports.map(|report| Ok::<_, std::convert::Infallible>(line(report)));
    let mut response = Response::new(HttpBody::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// A report as a line of the answer.
fn line(report: Result<OrphanReport, EngineError>) -> Bytes {
    let line = match report {
        Ok(OrphanReport::Object(object)) => judged(object),
        Ok(OrphanReport::Unreadable { bucket, key, why }) => {
            OrphanLine::Unreadable(UnreadableMetadata { bucket, key, why: crate::error::chain(&why) })
        }
        Ok(OrphanReport::Job(tally)) => OrphanLine::Job(of_job(tally)),
        Ok(OrphanReport::End { objects, orphans, orphan_bytes, deleted, others }) => {
            OrphanLine::End(OrphansEnd { objects, orphans, orphan_bytes, deleted, others })
        }
        Err(error) => OrphanLine::Broken(crate::error::chain(&error)),
    };
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn judged(object: JudgedObject) -> OrphanLine {
    let JudgedObject { bucket, key, len, modified, judgement } = object;
    let (why, deleted, not_deleted) = match judgement {
        Judgement::Kept(why) => {
            return OrphanLine::Kept(KeptObject { bucket, key, len, why: kept_because(why).into() });
        }
        Judgement::Orphan(why) => (why, false, None),
        Judgement::Deleted(why) => (why, true, None),
        Judgement::NotDeleted(why, refusal) => (why, false, Some(refusal)),
    };
    let why = orphaned_because(why).to_owned();
    OrphanLine::Orphan(OrphanObject { bucket, key, len, modified_ms: modified.0, why, deleted, not_deleted })
}

fn of_job(tally: JobTally) -> OrphansOfJob {
    let JobTally { bucket, folder, objects, orphans, deleted, kept } = tally;
    let kept = kept.into_iter().map(|(why, count)| KeptObjects {
        why: kept_because(why).to_owned(),
        objects: count.objects,
        bytes: count.bytes,
    });
    OrphansOfJob {
        bucket,
        folder,
        objects: objects.objects,
        bytes: objects.bytes,
        orphans: orphans.objects,
        orphan_bytes: orphans.bytes,
        deleted: deleted.objects,
        kept: kept.collect(),
    }
}

fn orphaned_because(why: Orphan) -> &'static str {
    match why {
        Orphan::AbortedCheckpoint(_) => "aborted_checkpoint",
        Orphan::LateUpload(_) => "late_upload",
        Orphan::Unnamed => "unnamed",
        Orphan::UnnamedMerged => "unnamed_merged",
    }
}

fn kept_because(why: Kept) -> &'static str {
    match why {
        Kept::Metadata => "metadata",
        Kept::Folder => "folder",
        Kept::Named => "named",
        Kept::Savepoint => "savepoint",
        Kept::TaskOwned => "task_owned",
        Kept::Working => "working",
        Kept::Changelog => "changelog",
        Kept::Unreadable => "unreadable",
        Kept::UnreadableCopy => "unreadable_copy",
        Kept::Elsewhere => "elsewhere",
        Kept::NoCheckpoint => "no_checkpoint",
        Kept::Running => "running",
        Kept::Young => "young",
        Kept::Recent => "recent",
    }
}
