//! Esker packs the small state files of stream workers into large physical files on an object store, HDFS or local disk,
//! answers when they are durable, knows which checkpoint still needs which of them, and gives space back when too much of a
//! file is dead.
//!
//! The map, in reading order; a module uses only those above it:
//!
//! - [`model`]: plain values: ids, segments, handles, checksums, words for checkpoints, key layouts.
//! - [`error`]: what the receiver of an error should do next.
//! - [`config`]: what `config.toml` says, checked once.
//! - [`metrics`]: every metric.
//! - [`runtime`]: time, randomness, tasks, the budget of bytes in memory.
//! - [`mod@format`]: bytes of a physical file.
//! - [`flink`]: the list of files that a checkpoint of Flink's names.
//! - [`store`]: the only module that talks to a disk, an object storage service or an HDFS.
//! - [`transfer`]: moves a checkpoint of Flink's from one storage to another.
//! - [`catalog`]: which segments, files, checkpoints and objects exist.
//! - [`merge`]: the write path.
//! - [`read`]: the read path.
//! - [`reclaim`]: keeps space within its limit, and deletes what nobody needs.
//! - [`engine`]: the daemon without doors: typed calls that return values; checks and rebuilds what a stopped one left.
//! - [`coordinator`]: the life cycle of checkpoints for workers without a coordinator of their own.
//! - [`cluster`]: several daemons on one store, and which of them has which shard.
//! - [`api`]: the doors: native HTTP, S3, health and metrics.
//! - [`daemon`]: an engine with doors, started and stopped in order.
//! - [`load`]: the load generator behind `esker bench`.
//! - [`cli`]: the `esker` command.
//!
//! The JSON of the native API and the client of it are a crate of their own, `clients/rust`.
//!
//! To follow a write, read `api/native/segments.rs`, [`engine::write`], [`engine::intake`], `merge/owner`, and
//! [`catalog::state`].

// Tests may race real tasks, read a real clock and drop results; product code may not.
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::let_underscore_must_use))]

pub mod api;
pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod coordinator;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod flink;
pub mod format;
pub mod load;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod read;
pub mod reclaim;
pub mod runtime;
pub mod store;
pub mod transfer;
