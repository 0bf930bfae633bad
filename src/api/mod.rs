//! The doors: the only module that knows HTTP.
//!
//! - [`server`]: connections, how they are served and ended.
//! - [`peers`]: who is connected, and who has to go.
//! - [`unread`]: errors that are sent before the body was read.
//! - [`wire`]: what the native API's JSON looks like.
//! - [`figures`]: the same on space and reclaiming.
//! - [`status`]: what an error looks like.
//! - [`body`]: bodies, paid for before they are read.
//! - [`batch`]: many segments in one request.
//! - [`restore`]: many segments in one answer.
//! - [`native`]: the native API.
//! - [`lifecycle`]: reuse, restore, savepoints, the end of a job.
//! - [`space`]: how much space what takes.
//! - [`s3`]: the S3 API.
//! - [`admin`]: health and metrics.

pub mod admin;
pub mod batch;
pub mod body;
pub mod figures;
pub mod lifecycle;
pub mod native;
pub mod peers;
pub mod restore;
pub mod s3;
pub mod server;
pub mod socket;
pub mod space;
pub mod status;
pub mod unread;
pub mod wire;
