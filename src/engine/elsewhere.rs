//! What an engine that has one shard of several asks of all of them, its own among them: answers are proven by whoever owns the shard
//! then, also if this engine is no owner any more and has not noticed.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::error::EngineError;
use crate::catalog::command::ObjectToDelete;
use crate::catalog::state::{ListPage, ListQuery};
use crate::model::ObjectHead;

/// Bytes of an object as they come.
pub type ShardBytes = BoxStream<'static, Result<Bytes, EngineError>>;

/// The shards of a store. A bucket that a shard was not told of has nothing in it there.
pub trait Shards: std::fmt::Debug + Send + Sync {
    /// Whether there is a bucket.
    fn has_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<bool, EngineError>>;

    /// One page of a bucket's keys in a shard.
    fn list<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        query: ListQuery<'a>,
    ) -> BoxFuture<'a, Result<ListPage, EngineError>>;

    /// The number of bytes of each of these objects of a shard, by bucket and key; `None` if it is not there.
    fn lens(&self, shard: u32, objects: Vec<(String, String)>) -> BoxFuture<'_, Result<Vec<Option<u64>>, EngineError>>;

    /// The head of an object of a shard, if it is there.
    fn head<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<ObjectHead>, EngineError>>;

    /// All bytes of an object of a shard, if it still is the one with this head.
    fn read<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        key: &'a str,
        head: &'a ObjectHead,
    ) -> BoxFuture<'a, Result<ShardBytes, EngineError>>;

    /// Deletes objects of a shard. An answer for each, in order.
    fn delete<'a>(
        &'a self,
        shard: u32,
        bucket: &'a str,
        objects: Vec<ObjectToDelete>,
    ) -> BoxFuture<'a, Result<Vec<Result<(), EngineError>>, EngineError>>;
}
