//! Requests of the native API that are about several shards: every owner is asked as the client has asked, and their answers are one.
//!
//! Who asks is looked at first, because one request becomes several; each owner looks once more, at what is asked for. An answer that is
//! no success is the answer to all.

use std::collections::BTreeMap;

use axum::body::Body as AxumBody;
use axum::response::IntoResponse;
use bytes::Bytes;
use esker_client::wire::RestoreRequest;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value};

use super::dispatch::{Dispatcher, Unanswered};
use super::gather::{WantedSegment, gather};
use super::target::{Joined, RequestTarget, parameter};
use crate::api::shards::calls::{ANSWER_BYTES_MAX, CALL_BYTES_MAX, EngineCall, read};
use crate::api::status::ApiError;
use crate::error::ErrorKind;
use crate::model::{OF_BUCKETS, Routing, SegmentId};

/// A body is at most so long, but for one that lists segments.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Objects of a page, if it is not said.
const PAGE_OBJECTS: usize = 1000;
/// Segments that an error names.
const NAMED_MAX: usize = 10;

/// Answers a request that came to the native API. `admit` says who may ask several shards.
///
/// # Errors
/// [`Unanswered`].
pub async fn answer(
    dispatcher: &Dispatcher,
    request: Request<AxumBody>,
    admit: impl FnOnce(&HeaderMap) -> Result<(), ApiError>,
) -> Result<Response<AxumBody>, Unanswered> {
    let routing = dispatcher.routing().await?;
    let (head, body) = request.into_parts();
    match RequestTarget::of_api(&head, routing) {
        _ if routing.shards() == 1 => dispatcher.api(0, Request::from_parts(head, body)).await,
        RequestTarget::Shard(shard) => dispatcher.api(shard, Request::from_parts(head, body)).await,
        target => match admit(&head.headers) {
            Ok(()) => answer_by_target(dispatcher.clone(), routing, target, head, body).boxed().await,
            Err(refused) => Ok(refused.into_response()),
        },
    }
}

/// Answers one that is about several shards, or whose body tells which one.
async fn answer_by_target(
    dispatcher: Dispatcher,
    routing: Routing,
    target: RequestTarget,
    head: Parts,
    body: AxumBody,
) -> Result<Response<AxumBody>, Unanswered> {
    let most = if target == RequestTarget::Restore { CALL_BYTES_MAX } else { BODY_BYTES_MAX };
    let (body, _paid) = dispatcher.read(body, most).await?;
    let asked = SpreadRequest { dispatcher, routing, head, body };
    match target {
        RequestTarget::All(joined) => asked.all(joined).await,
        RequestTarget::WhoKnows => asked.who_knows().await,
        RequestTarget::JobOfBody => {
            let job = serde_json::from_slice::<Value>(&asked.body).ok();
            let job = job.as_ref().and_then(|new| new.get("job")?.as_str());
            let Some(job) = job else { return asked.of(OF_BUCKETS).await };
            asked.of(asked.shard_of(job).await?).await
        }
        RequestTarget::Restore => asked.restore().await,
        RequestTarget::Shard(shard) => asked.of(shard).await,
        RequestTarget::Any => asked.of(OF_BUCKETS).await,
    }
}

/// A request that can be sent to several owners.
struct SpreadRequest {
    dispatcher: Dispatcher,
    routing: Routing,
    head: Parts,
    body: Bytes,
}

impl SpreadRequest {
    fn shards(&self) -> std::ops::Range<u32> {
        0..self.routing.shards()
    }

    async fn of(&self, shard: u32) -> Result<Response<AxumBody>, Unanswered> {
        let body = AxumBody::from(self.body.clone());
        self.dispatcher.api(shard, Request::from_parts(self.head.clone(), body)).await
    }

    /// The shard that a job is in: the one that its id tells, or the one in which that has placed it.
    async fn shard_of(&self, job: &str) -> Result<u32, Unanswered> {
        let home = self.routing.of_job(job);
        let answer = self.dispatcher.call(home, &EngineCall::PlaceOf(job.to_owned())).await?;
        let placed: Option<u32> = read(answer).await.map_err(|_| Unanswered::Nobody)?;
        Ok(placed.unwrap_or(home))
    }

    /// The answer of the owner that has what is asked for.
    async fn who_knows(&self) -> Result<Response<AxumBody>, Unanswered> {
        let mut asked: FuturesUnordered<_> = self.shards().map(|shard| self.of(shard)).collect();
        let (mut missing, mut failed, mut unanswered) = (None, None, None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => missing = Some(answer),
                Ok(answer) if answer.status().is_server_error() => failed = Some(answer),
                Ok(answer) => return Ok(answer),
                Err(error) => unanswered = Some(error),
            }
        }
        // One that does not answer, or fails, may have it.
        match (unanswered, failed.or(missing)) {
            (None, Some(answer)) => Ok(answer),
            (error, _) => Err(error.unwrap_or(Unanswered::Nobody)),
        }
    }

    async fn restore(&self) -> Result<Response<AxumBody>, Unanswered> {
        let wanted = serde_json::from_slice::<RestoreRequest>(&self.body).unwrap_or_default();
        if let Some(job) = &wanted.job {
            return self.of(self.shard_of(job).await?).await;
        }
        let ids = wanted.segments.unwrap_or_default();
        let ids = ids.iter().map(|text| text.parse::<SegmentId>()).collect::<Result<Vec<_>, _>>();
        // What is wrong with it any owner can tell.
        let Some(ids) = ids.ok().filter(|ids| !ids.is_empty()) else { return self.of(OF_BUCKETS).await };
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let call = EngineCall::Segments(ids.clone());
        let asked = try_join_all(self.shards().map(async |shard| {
            let answer = self.dispatcher.call(shard, &call).await?;
            Ok::<_, Unanswered>(read::<Vec<Option<u64>>>(answer).await)
        }));
        let mut found: Vec<Option<(u32, u64)>> = vec![None; ids.len()];
        for (shard, lens) in self.shards().zip(asked.await?) {
            match lens {
                Err(error) if error.kind() == ErrorKind::Invalid => return self.of(OF_BUCKETS).await,
                Err(_) => return Err(Unanswered::Nobody),
                Ok(lens) => {
                    for (found, len) in found.iter_mut().zip(lens) {
                        *found = found.or(len.map(|len| (shard, len)));
                    }
                }
            }
        }
        let missing = ids.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(id, _)| id.as_str());
        let missing: Vec<&str> = missing.take(NAMED_MAX).collect();
        if !missing.is_empty() {
            return Err(Unanswered::NoSegments(missing.join(", ")));
        }
        let wanted = ids.into_iter().zip(found).filter_map(|(id, found)| {
            let (shard, len) = found?;
            Some(WantedSegment { id, shard, len })
        });
        let wanted: Vec<WantedSegment> = wanted.collect();
        match wanted.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other.shard == first.shard) => self.of(first.shard).await,
            _ => gather(self.dispatcher.clone(), self.head.clone(), wanted).await,
        }
    }

    async fn all(&self, joined: Joined) -> Result<Response<AxumBody>, Unanswered> {
        let answers = try_join_all(self.shards().map(|shard| self.of(shard))).await?;
        let mut values = vec![];
        for (shard, answer) in self.shards().zip(answers) {
            // One that was not told of a bucket has nothing in it; the first one knows whether it is there.
            if joined == Joined::Objects && shard != OF_BUCKETS && answer.status() == StatusCode::NOT_FOUND {
                continue;
            }
            if !answer.status().is_success() {
                return Ok(answer);
            }
            let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = read.map_err(|_| Unanswered::Nobody)?.to_bytes();
            values.push(serde_json::from_slice::<Value>(&bytes).map_err(|_| Unanswered::Nobody)?);
        }
        let value = match joined {
            Joined::Jobs => jobs(values),
            Joined::Objects => {
                let limit = parameter(&self.head.uri, "limit").and_then(|limit| limit.parse().ok());
                objects(values, limit.unwrap_or(PAGE_OBJECTS))
            }
            Joined::Space => space(values),
            Joined::Counts => sum(values),
        };
        let mut answer = Response::new(AxumBody::from(value.to_string()));
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(answer)
    }
}

/// Adds up what is counted, and puts together what is listed.
fn add(to: &mut Value, more: Value) {
    match (to, more) {
        (Value::Number(to), Value::Number(more)) => {
            if let (Some(one), Some(other)) = (to.as_u64(), more.as_u64()) {
                *to = one.saturating_add(other).into();
            }
        }
        (Value::Array(to), Value::Array(more)) => to.extend(more),
        (Value::Object(to), Value::Object(more)) => {
            for (name, value) in more {
                match to.get_mut(&name) {
                    Some(to) => add(to, value),
                    None => drop(to.insert(name, value)),
                }
            }
        }
        (to @ Value::Null, more) => *to = more,
        _ => {}
    }
}

fn sum(values: Vec<Value>) -> Value {
    let mut all = Value::Null;
    values.into_iter().for_each(|value| add(&mut all, value));
    all
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn rows(value: Value) -> Vec<Value> {
    if let Value::Array(rows) = value { rows } else { vec![] }
}

/// Jobs by their ids. One that is known by its keys alone may be in several shards.
fn jobs(values: Vec<Value>) -> Value {
    let mut jobs: BTreeMap<String, Value> = BTreeMap::new();
    for job in values.into_iter().flat_map(rows) {
        match jobs.get_mut(text(&job, "job")) {
            None => drop(jobs.insert(text(&job, "job").to_owned(), job)),
            Some(known) => {
                let segments = |job: &Value| job.get("segments").and_then(Value::as_u64).unwrap_or_default();
                let all = segments(known) + segments(&job);
                // The shard in which it was created knows all else.
                if known.get("created_ms").is_none_or(Value::is_null) {
                    *known = job;
                }
                if let Some(known) = known.as_object_mut() {
                    known.insert("segments".to_owned(), all.into());
                }
            }
        }
    }
    Value::Array(jobs.into_values().collect())
}

/// One page of at most `limit` objects, of one page of each shard.
fn objects(values: Vec<Value>, limit: usize) -> Value {
    let ends = values.iter().filter(|page| page.get("next").is_some_and(Value::is_string));
    let end = ends.map(|page| text(page, "next").to_owned()).min();
    let pages = values.into_iter().map(|mut page| page.get_mut("objects").map(Value::take).unwrap_or_default());
    let mut objects: Vec<Value> = pages.flat_map(rows).collect();
    objects.sort_by(|a, b| text(a, "key").cmp(text(b, "key")));
    let known = objects.len();
    // What a shard has behind its page is not known.
    objects.retain(|object| end.as_deref().is_none_or(|end| text(object, "key") <= end));
    objects.truncate(limit);
    let more = end.is_some() || objects.len() < known;
    let next = objects.last().filter(|_| more).map(|last| Value::from(text(last, "key")));
    Value::Object(Map::from_iter([
        ("objects".to_owned(), Value::Array(objects)),
        ("next".to_owned(), next.unwrap_or_default()),
    ]))
}

/// A table of space. Rows of the same name are one.
fn space(values: Vec<Value>) -> Value {
    let mut total = Value::Null;
    let mut all: Vec<Value> = vec![];
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for mut table in values {
        add(&mut total, table.get_mut("total").map(Value::take).unwrap_or_default());
        for row in rows(table.get_mut("rows").map(Value::take).unwrap_or_default()) {
            match places.get(text(&row, "of")) {
                Some(place) => add(&mut all[*place], row),
                None => {
                    places.insert(text(&row, "of").to_owned(), all.len());
                    all.push(row);
                }
            }
        }
    }
    for row in all.iter_mut().chain([&mut total]) {
        amplify(row);
    }
    Value::Object(Map::from_iter([("total".to_owned(), total), ("rows".to_owned(), Value::Array(all))]))
}

/// What the parts of a row have cannot be added.
fn amplify(row: &mut Value) {
    let bytes = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (physical, living) = (bytes("physical_bytes"), bytes("live_bytes").saturating_sub(bytes("inline_bytes")));
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let amplification = (living > 0).then(|| physical as f64 / living as f64);
    if let Some(known) = row.get_mut("amplification").filter(|known| !known.is_null()) {
        *known = amplification.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_that_is_in_two_shards_is_listed_once() {
        let of = |job: &str, created: Option<u64>, segments: u64| json!({"job": job, "created_ms": created, "segments": segments});
        let listed = jobs(vec![
            json!([of("b", None, 2), of("x", Some(1), 1)]),
            json!([of("a", Some(2), 3), of("b", Some(7), 4)]),
        ]);

        assert_eq!(listed, json!([of("a", Some(2), 3), of("b", Some(7), 6), of("x", Some(1), 1)]));
    }

    #[test]
    fn a_page_of_objects_ends_where_a_shard_may_have_more() {
        let of = |keys: &[&str], next: Option<&str>| json!({"objects": keys.iter().map(|key| json!({"key": key})).collect::<Vec<_>>(), "next": next});

        assert_eq!(objects(vec![of(&["b", "d"], None), of(&["a"], None)], 9), of(&["a", "b", "d"], None));
        assert_eq!(objects(vec![of(&["b", "d"], Some("d")), of(&["a", "e"], None)], 2), of(&["a", "b"], Some("b")));
        assert_eq!(objects(vec![of(&["b"], Some("b")), of(&["c", "e"], None)], 9), of(&["b"], Some("b")));
    }

    #[test]
    fn space_adds_up_and_ratios_do_not() {
        let row = |of: &str, physical: u64, live: u64, amplification: f64| json!({"of": of, "physical_bytes": physical, "live_bytes": live, "inline_bytes": 0, "amplification": amplification});
        let one = json!({"total": row("total", 30, 10, 3.0), "rows": [row("a", 30, 10, 3.0)]});
        let other = json!({"total": row("total", 20, 40, 0.5), "rows": [row("b", 10, 30, 0.3), row("a", 10, 10, 1.0)]});

        let both = space(vec![one, other]);

        assert_eq!(both["total"], row("total", 50, 50, 1.0));
        assert_eq!(both["rows"], json!([row("a", 40, 20, 2.0), row("b", 10, 30, 10.0 / 30.0)]));
    }

    #[test]
    fn counts_add_up_and_lists_are_put_together() {
        let one = json!({"files": 1, "faults": ["x"], "refused": null, "waiting": {"rate": 2}});
        let other = json!({"files": 2, "faults": [], "refused": "why", "waiting": {"rate": 3}});

        assert_eq!(
            sum(vec![one, other]),
            json!({"files": 3, "faults": ["x"], "refused": "why", "waiting": {"rate": 5}})
        );
    }
}
