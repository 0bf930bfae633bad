//! All shards, for an engine that looks at the whole store.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::calls::{self, BucketSeen, CallFailure, Doomed, EngineCall, ListedPage};
use super::siblings::Siblings;
use crate::engine::elsewhere::{ShardBytes, Shards};
use crate::engine::{EngineError, ListPage, ListQuery, ObjectToDelete, Refusal};
use crate::error::ErrorKind;
use crate::model::{OF_BUCKETS, ObjectHead};

/// An answer of a shard, or another one if it was not told of the bucket.
fn or_without_bucket<T>(answer: Result<T, EngineError>, otherwise: impl FnOnce() -> T) -> Result<T, EngineError> {
    match answer {
        Err(EngineError::Refused(Refusal::NoSuchBucket(_))) => Ok(otherwise()),
        answer => answer,
    }
}

impl Shards for Siblings {
    fn has_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<bool, EngineError>> {
        async move {
            let seen: BucketSeen = self.call(OF_BUCKETS, &EngineCall::LookForBucket(bucket.to_owned())).await?;
            Ok(seen != BucketSeen::Missing)
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        query: ListQuery<'a>,
    ) -> BoxFuture<'a, Result<ListPage, EngineError>> {
        async move {
            let call = EngineCall::list(bucket, &query);
            let page = self.call::<ListedPage>(shard, &call).await.map(ListPage::from);
            or_without_bucket(page, || ListPage { entries: vec![], truncated: false })
        }
        .boxed()
    }

    fn lens(&self, shard: u32, objects: Vec<(String, String)>) -> BoxFuture<'_, Result<Vec<Option<u64>>, EngineError>> {
        async move { self.call(shard, &EngineCall::Lens(objects)).await }.boxed()
    }

    fn head<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<ObjectHead>, EngineError>> {
        async move {
            let call = EngineCall::Head { bucket: bucket.to_owned(), key: key.to_owned() };
            match or_without_bucket(self.call(shard, &call).await.map(Some), || None) {
                Err(EngineError::Refused(Refusal::NoSuchKey(_))) => Ok(None),
                found => found,
            }
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        key: &'a str,
        head: &'a ObjectHead,
    ) -> BoxFuture<'a, Result<ShardBytes, EngineError>> {
        async move {
            let (bucket, key, etag) = (bucket.to_owned(), key.to_owned(), head.etag.clone());
            let call = EngineCall::Read { bucket, key, etag, start: 0, end: head.len };
            let answer = calls::succeeded(self.call_raw(shard, &call).await?).await?;
            let cut = |error: axum::Error| EngineError::Elsewhere {
                kind: ErrorKind::Unavailable,
                message: format!("bytes of another shard did not come: {error}"),
            };
            Ok(answer.into_body().into_data_stream().map_err(cut).boxed())
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        objects: Vec<ObjectToDelete>,
    ) -> BoxFuture<'a, Result<Vec<Result<(), EngineError>>, EngineError>> {
        async move {
            let objects = objects.into_iter().map(Doomed::from).collect();
            let call = EngineCall::Delete { bucket: bucket.to_owned(), objects };
            let answers: Vec<Option<CallFailure>> = self.call(shard, &call).await?;
            Ok(answers.into_iter().map(|failure| failure.map_or(Ok(()), |failure| Err(failure.into()))).collect())
        }
        .boxed()
    }
}
