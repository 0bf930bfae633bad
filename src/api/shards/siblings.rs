//! The other shards, for the S3 door of the owner of one: what is about several of them.
//!
//! A page of a listing is linearizable shard by shard, and each part of it begins after its request did; what is put while it is asked
//! for may be in it or not, as with any listing. Buckets are known to shard 0 first and last; the other shards have them, too, and are
//! told of one when they are asked for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AxumBody;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all, try_join_all};
use futures::{Stream, TryStreamExt};
use http::{Request, Response};
use serde::de::DeserializeOwned;

use super::calls::{self, BucketSeen, CallFailure, Doomed, EngineCall, ListedPage, ListedUpload, SeenHead};
use crate::engine::{Engine, EngineError, ListPage, ListQuery, Listed, ObjectToDelete, Refusal, UploadView};
use crate::error::ErrorKind;
use crate::model::{OF_BUCKETS, ObjectHead, Routing, ShardOf};

/// Half of the time for which a bucket that is to be deleted in all shards is left to the request that has asked for it.
const ENDS_EVERY: Duration = Duration::from_secs(5);

/// Has the engine of a shard answer, wherever it is. If nobody can, says why in a sentence; the call may be repeated.
pub trait CallEngine: Send + Sync {
    /// Makes a call.
    fn call_engine(&self, shard: u32, call: &EngineCall) -> BoxFuture<'static, Result<Response<AxumBody>, String>>;

    /// Has a client's request to the native API answered by a shard, as it came.
    fn pass_on(&self, shard: u32, request: Request<AxumBody>)
    -> BoxFuture<'static, Result<Response<AxumBody>, String>>;
}

/// Names a request that has the same outcome when it is sent again.
pub const IDEMPOTENT: &str = "idempotency-key";

/// The shards of a store, as the owner of one sees them. Clones are the same.
#[derive(Clone)]
pub struct Siblings {
    own: ShardOf,
    others: Arc<dyn CallEngine>,
}

crate::runtime::opaque_debug!(Siblings);

impl Siblings {
    /// Those of `own`.
    pub fn new(own: ShardOf, others: Arc<dyn CallEngine>) -> Self {
        Self { own, others }
    }

    fn routing(&self) -> Routing {
        self.own.routing()
    }

    /// The shard that a key is in, if it is another one's.
    pub fn elsewhere(&self, bucket: &str, key: &str) -> Option<u32> {
        Some(self.routing().of_key(bucket, key)).filter(|shard| *shard != self.own.shard)
    }

    /// What the engine of a shard answers: `own` is asked itself, whose answers are proven with that of the request.
    async fn ask<T: DeserializeOwned>(&self, own: &Engine, shard: u32, call: &EngineCall) -> Result<T, EngineError> {
        calls::read(self.send(own, shard, call).await?).await
    }

    async fn send(&self, own: &Engine, shard: u32, call: &EngineCall) -> Result<Response<AxumBody>, EngineError> {
        if shard == self.own.shard {
            let bytes = serde_json::to_vec(call).unwrap_or_default();
            return Ok(calls::answer(own, AxumBody::from(bytes)).await);
        }
        self.call_raw(shard, call).await
    }

    /// What the owner of a shard answers, also of the own one: so it is proven by itself.
    pub(in crate::api) async fn call<T: DeserializeOwned>(
        &self,
        shard: u32,
        call: &EngineCall,
    ) -> Result<T, EngineError> {
        calls::read(self.call_raw(shard, call).await?).await
    }

    pub(in crate::api) async fn call_raw(
        &self,
        shard: u32,
        call: &EngineCall,
    ) -> Result<Response<AxumBody>, EngineError> {
        let answer = self.others.call_engine(shard, call).await;
        answer.map_err(|message| EngineError::Elsewhere { kind: ErrorKind::Unavailable, message })
    }

    /// What the native API of a shard answers to a client's request.
    ///
    /// # Errors
    /// [`EngineError::Elsewhere`] if nobody answers for it.
    pub async fn pass_on(&self, shard: u32, request: Request<AxumBody>) -> Result<Response<AxumBody>, EngineError> {
        let (mut head, body) = request.into_parts();
        // What the router here has found out about it.
        head.extensions.clear();
        let answer = self.others.pass_on(shard, Request::from_parts(head, body)).await;
        answer.map_err(|message| EngineError::Elsewhere { kind: ErrorKind::Unavailable, message })
    }

    fn all(&self) -> std::ops::Range<u32> {
        0..self.own.of
    }

    /// The shards that keys with this prefix may be in.
    fn with_prefix(&self, bucket: &str, prefix: &str) -> Vec<u32> {
        self.routing().of_prefix(bucket, prefix).map_or_else(|| self.all().collect(), |shard| vec![shard])
    }

    /// Whether there is a bucket.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is none.
    pub async fn check_bucket(&self, own: &Engine, bucket: &str) -> Result<(), EngineError> {
        match self.ask(own, OF_BUCKETS, &EngineCall::LookForBucket(bucket.to_owned())).await? {
            BucketSeen::Missing => Err(Refusal::NoSuchBucket(bucket.to_owned()).into()),
            BucketSeen::Empty | BucketSeen::Filled => Ok(()),
        }
    }

    /// Makes a bucket here that the others have and this shard has not been told of.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn adopt_bucket(&self, own: &Engine, bucket: &str) -> Result<(), EngineError> {
        if self.own.decides_on_buckets() {
            return own.check_bucket(bucket);
        }
        self.check_bucket(own, bucket).await?;
        self.ask(own, self.own.shard, &EngineCall::CreateBucket(bucket.to_owned())).await
    }

    /// Creates a bucket: here, where it is decided, then elsewhere. Shards that cannot be told now are when they are asked for it.
    ///
    /// # Errors
    /// As [`Engine::create_bucket`].
    pub async fn create_bucket(&self, own: &Engine, bucket: &str) -> Result<(), EngineError> {
        let created = own.create_bucket(bucket).await;
        if !matches!(created, Ok(()) | Err(EngineError::Refused(Refusal::BucketExists(_)))) {
            return created;
        }
        let call = EngineCall::CreateBucket(bucket.to_owned());
        let others = self.all().filter(|shard| *shard != self.own.shard);
        for told in join_all(others.map(|shard| self.ask::<()>(own, shard, &call))).await {
            if let Err(error) = told {
                tracing::debug!(%error, bucket, "a shard was not told of a new bucket");
            }
        }
        created
    }

    /// Deletes a bucket that has nothing in any shard, no upload either: here first, so that no shard is told of it any more. One into
    /// which something is put meanwhile is there again. If this owner ends half-way, the one after it goes on ([`Self::end_buckets`]).
    ///
    /// # Errors
    /// As [`Engine::delete_bucket`].
    pub async fn delete_bucket(&self, own: &Engine, bucket: &str) -> Result<(), EngineError> {
        let others = || self.all().filter(|shard| *shard != self.own.shard);
        let look = EngineCall::LookForBucket(bucket.to_owned());
        let seen = try_join_all(self.all().map(|shard| self.ask::<BucketSeen>(own, shard, &look))).await?;
        let not_empty = || EngineError::Refused(Refusal::BucketNotEmpty(bucket.to_owned()));
        if seen.contains(&BucketSeen::Filled) && own.check_bucket(bucket).is_ok() {
            return Err(not_empty());
        }
        let deleted = own.delete_bucket_everywhere(bucket).await;
        if !matches!(deleted, Ok(()) | Err(EngineError::Refused(Refusal::NoSuchBucket(_)))) {
            return deleted;
        }
        let call = EngineCall::DeleteBucket(bucket.to_owned());
        let elsewhere = join_all(others().map(|shard| self.ask::<()>(own, shard, &call))).await;
        let Some(error) = elsewhere.into_iter().find_map(Result::err) else {
            own.bucket_has_ended(bucket).await?;
            return deleted;
        };
        // What a shard has may have been answered: the bucket is there as before, and whoever deletes it begins anew.
        self.create_bucket(own, bucket).await?;
        Err(match error {
            EngineError::Refused(Refusal::BucketNotEmpty(_)) => not_empty(),
            error => error,
        })
    }

    /// Goes on with what was begun to be deleted in all shards, by an owner before or by a request that was given up. Never ends.
    pub async fn end_buckets(&self, own: &Engine) {
        let mut seen = own.ending_buckets();
        loop {
            for bucket in &seen {
                if let Err(error) = self.end_bucket(own, bucket).await {
                    tracing::debug!(%error, bucket, "a bucket is deleted in some shards only: it is tried again");
                }
            }
            tokio::time::sleep(ENDS_EVERY).await;
            // What came since the last look is still at work, mostly.
            let ending = own.ending_buckets();
            tokio::time::sleep(ENDS_EVERY).await;
            seen = own.ending_buckets().into_iter().filter(|bucket| ending.contains(bucket)).collect();
        }
    }

    async fn end_bucket(&self, own: &Engine, bucket: &str) -> Result<(), EngineError> {
        let call = EngineCall::DeleteBucket(bucket.to_owned());
        for shard in self.all().filter(|shard| *shard != self.own.shard) {
            match self.ask::<()>(own, shard, &call).await {
                // What a shard has may have been answered.
                Err(EngineError::Refused(Refusal::BucketNotEmpty(_))) => return self.create_bucket(own, bucket).await,
                told => told?,
            }
        }
        own.bucket_has_ended(bucket).await?;
        tracing::info!(bucket, "a bucket whose end an owner before has begun is deleted in all shards");
        Ok(())
    }

    /// One page of a bucket's keys, of all shards.
    ///
    /// # Errors
    /// As [`Engine::list`].
    pub async fn list(&self, own: &Engine, bucket: &str, query: &ListQuery<'_>) -> Result<ListPage, EngineError> {
        let call = EngineCall::list(bucket, query);
        let shards = self.with_prefix(bucket, query.prefix);
        let pages = self.ask_of_bucket::<ListedPage>(own, bucket, &shards, &call).await?;
        Ok(merged(pages.into_iter().map(ListPage::from).collect(), query.max))
    }

    /// The answers of shards to a question about a bucket. One that was not told of it has nothing in it.
    async fn ask_of_bucket<T: DeserializeOwned>(
        &self,
        own: &Engine,
        bucket: &str,
        shards: &[u32],
        call: &EngineCall,
    ) -> Result<Vec<T>, EngineError> {
        let mut answers = vec![];
        for (shard, answer) in shards.iter().zip(join_all(shards.iter().map(|shard| self.ask(own, *shard, call))).await)
        {
            match answer {
                Err(EngineError::Refused(Refusal::NoSuchBucket(_))) if *shard != OF_BUCKETS => {
                    self.check_bucket(own, bucket).await?;
                }
                answer => answers.push(answer?),
            }
        }
        Ok(answers)
    }

    /// The uploads to keys of a bucket, of all shards, by key and id.
    ///
    /// # Errors
    /// As [`Engine::uploads_below`].
    pub async fn uploads_below(
        &self,
        own: &Engine,
        bucket: &str,
        prefix: &str,
    ) -> Result<Vec<UploadView>, EngineError> {
        let call = EngineCall::Uploads { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        let shards = self.with_prefix(bucket, prefix);
        let found = self.ask_of_bucket::<Vec<ListedUpload>>(own, bucket, &shards, &call).await?;
        let mut uploads: Vec<UploadView> = found.into_iter().flatten().map(UploadView::from).collect();
        uploads.sort_by(|a, b| (&a.upload.key, &a.id).cmp(&(&b.upload.key, &b.id)));
        Ok(uploads)
    }

    /// Deletes objects of all shards. An answer for each, in order. Each shard's are deleted at once, those of two shards are not.
    ///
    /// # Errors
    /// As [`Engine::delete_objects`]; then those of some shards may be deleted.
    pub async fn delete_objects(
        &self,
        own: &Engine,
        bucket: &str,
        objects: Vec<ObjectToDelete>,
    ) -> Result<Vec<Result<(), EngineError>>, EngineError> {
        let mut by_shard: BTreeMap<u32, Vec<(usize, Doomed)>> = BTreeMap::new();
        let all = objects.len();
        for (place, object) in objects.into_iter().enumerate() {
            let doomed = by_shard.entry(self.routing().of_key(bucket, &object.key)).or_default();
            doomed.push((place, Doomed::from(object)));
        }
        let parts = by_shard.into_iter().map(|(shard, doomed)| async move {
            let (places, objects): (Vec<usize>, Vec<Doomed>) = doomed.into_iter().unzip();
            let call = EngineCall::Delete { bucket: bucket.to_owned(), objects };
            let answers = match self.ask::<Vec<Option<CallFailure>>>(own, shard, &call).await {
                Err(EngineError::Refused(Refusal::NoSuchBucket(_))) if shard != OF_BUCKETS => {
                    self.check_bucket(own, bucket).await?;
                    vec![None; places.len()]
                }
                answers => answers?,
            };
            Ok::<_, EngineError>(places.into_iter().zip(answers))
        });
        let mut answers: Vec<Result<(), EngineError>> =
            (0..all).map(|_| Err(EngineError::Unexpected("a delete"))).collect();
        for (place, answer) in try_join_all(parts).await?.into_iter().flatten() {
            answers[place] = answer.map_or(Ok(()), |failure| Err(failure.into()));
        }
        Ok(answers)
    }

    /// The head of an object of another shard.
    ///
    /// # Errors
    /// As [`Engine::object`].
    pub async fn head(&self, own: &Engine, shard: u32, bucket: &str, key: &str) -> Result<ObjectHead, EngineError> {
        let call = EngineCall::Head { bucket: bucket.to_owned(), key: key.to_owned() };
        match self.ask::<SeenHead>(own, shard, &call).await {
            Err(EngineError::Refused(Refusal::NoSuchBucket(_))) if shard != OF_BUCKETS => {
                self.check_bucket(own, bucket).await?;
                Err(Refusal::NoSuchKey(key.to_owned()).into())
            }
            found => {
                let SeenHead { mut head, tags } = found?;
                head.headers.tags = tags;
                Ok(head)
            }
        }
    }

    /// Bytes of an object of another shard, if it still has this entity tag.
    ///
    /// # Errors
    /// As [`Engine::read_object`].
    pub async fn read(
        &self,
        own: &Engine,
        shard: u32,
        (bucket, key): (&str, &str),
        etag: &str,
        range: std::ops::Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, axum::Error>> + Send + use<>, EngineError> {
        let (bucket, key, etag) = (bucket.to_owned(), key.to_owned(), etag.to_owned());
        let call = EngineCall::Read { bucket, key, etag, start: range.start, end: range.end };
        let answer = calls::succeeded(self.send(own, shard, &call).await?).await?;
        Ok(answer.into_body().into_data_stream().into_stream())
    }
}

/// One page of at most `max` entries, of one page of each shard.
fn merged(pages: Vec<ListPage>, max: usize) -> ListPage {
    // What a shard has behind its page is not known.
    let ends = pages.iter().filter(|page| page.truncated).filter_map(|page| page.entries.last().map(Listed::name));
    let end = ends.min().map(str::to_owned);
    let mut truncated = pages.iter().any(|page| page.truncated);
    let mut entries: Vec<Listed> = pages.into_iter().flat_map(|page| page.entries).collect();
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    // Keys of one folder may be in several shards.
    entries.dedup_by(|a, b| a.name() == b.name());
    let known = entries.len();
    entries.retain(|entry| end.as_deref().is_none_or(|end| entry.name() <= end));
    entries.truncate(max);
    truncated |= entries.len() < known;
    ListPage { entries, truncated }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Millis;

    /// A page of keys, rolled up and cut as a catalog does it.
    fn page(keys: &[String], after: &str, max: usize) -> ListPage {
        let rolled = |key: &String| key.split_once('/').map_or_else(|| key.clone(), |(folder, _)| format!("{folder}/"));
        let mut names: Vec<String> = keys.iter().map(rolled).filter(|name| name.as_str() > after).collect();
        names.sort();
        names.dedup();
        let truncated = names.len() > max;
        names.truncate(max);
        let entry = |name: String| match name.ends_with('/') {
            true => Listed::Prefix(name),
            false => {
                let (len, etag, modified) = (0, String::new(), Millis(0));
                Listed::Object { key: name, len, etag, modified, class: None, checksum: None }
            }
        };
        ListPage { entries: names.into_iter().map(entry).collect(), truncated }
    }

    proptest! {
        #[test]
        fn pages_of_shards_are_those_of_one(
            keys in proptest::collection::btree_set("[a-d]{1,2}(/[xy])?", 0..30),
            max in 1_usize..6,
            shards in 1_u32..5,
        ) {
            let keys: Vec<String> = keys.into_iter().collect();
            let routing = Routing::over(shards);
            let of_shard = |shard| keys.iter().filter(|key| routing.of_key("b", key) == shard).cloned().collect::<Vec<_>>();
            let (mut after, mut seen) = (String::new(), vec![]);
            loop {
                let pages = (0..shards).map(|shard| page(&of_shard(shard), &after, max)).collect();
                let one = merged(pages, max);
                let whole = page(&keys, &after, max);
                let names = |page: &ListPage| page.entries.iter().map(|entry| entry.name().to_owned()).collect::<Vec<_>>();
                prop_assert_eq!(names(&one), names(&whole));
                prop_assert_eq!(one.truncated, whole.truncated);
                seen.extend(names(&one));
                if !one.truncated {
                    break;
                }
                after = names(&one).pop().unwrap();
            }
            prop_assert_eq!(seen.len(), page(&keys, "", usize::MAX).entries.len());
        }
    }
}
