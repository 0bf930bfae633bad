//! Esker packs the small state files of stream workers into large physical files on S3 or local disk, answers when they
//! are durable, knows which checkpoint still needs which of them, and gives space back when too much of a file is dead.
//!
//! The map, in reading order; a module uses only those above it:
//!
//! - [`model`]: plain values: ids, segments, handles, checksums.
//! - [`error`]: what the receiver of an error should do next.
//! - [`config`]: what `config.toml` says, checked once.
//! - [`metrics`]: every metric.
//! - [`runtime`]: time, randomness, tasks, the budget of bytes in memory.
//! - [`store`]: the only module that talks to a disk or an S3 backend.
//! - [`catalog`]: which segments, files, checkpoints and objects exist.
//! - [`merge`]: the write path, and the format of physical files.
//! - [`read`]: the read path.
//! - [`reclaim`]: keeps space within its limit, and deletes what nobody needs.
//! - [`api`]: the doors: native HTTP, S3, health and metrics.
//! - [`client`]: talks to the native API.
//! - [`daemon`]: builds every part, starts and stops them; checks and rebuilds what a stopped one left.
//! - [`load`]: the load generator behind `esker bench`.
//! - [`cli`]: the `esker` command.
//!
//! To follow a write, read [`api::native`], [`merge`], `merge/owner.rs`, and [`catalog::state`].

// Tests may race real tasks, read a real clock and drop results; product code may not.
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::let_underscore_must_use))]

pub mod api;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod error;
pub mod load;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod read;
pub mod reclaim;
pub mod runtime;
pub mod store;
