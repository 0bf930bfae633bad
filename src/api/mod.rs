//! The doors: the only module that knows HTTP.
//!
//! - [`server`]: connections, how they are served and ended.
//! - [`opening`]: a door before there is a daemon behind it.
//! - [`exchange`]: a request and its answer, and their id.
//! - [`access_log`]: a line for each of them.
//! - [`keys`]: who may come in.
//! - [`tls`]: encryption, and certificates that change.
//! - [`peers`]: who is connected, and who has to go.
//! - [`unread`]: errors that are sent before the body was read.
//! - [`wire`]: values as the native API's JSON has them.
//! - [`figures`]: the same on space and reclaiming.
//! - [`status`]: what an error looks like.
//! - [`body`]: the bytes of a request as they arrive.
//! - [`shards`]: what is about several shards of a store, for the doors.
//! - [`native`]: the native API.
//! - [`s3`]: the S3 API.
//! - [`admin`]: health and metrics.
//! - [`cluster`]: several daemons as one.

pub mod access_log;
pub mod admin;
pub mod body;
pub mod cluster;
pub mod exchange;
pub mod figures;
pub mod keys;
pub mod native;
pub mod opening;
pub mod peers;
pub mod s3;
pub mod server;
pub mod shards;
pub mod socket;
pub mod status;
pub mod tls;
pub mod unread;
pub mod wire;
