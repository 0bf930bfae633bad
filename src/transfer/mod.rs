//! Moves a checkpoint or savepoint of Flink's between storages: `esker import` and `esker export`.
//!
//! [`plan`] reads `_metadata` and says which files go where, and what `_metadata` says then; [`copy_checkpoint`] carries that
//! out. One side is the S3 door of a running daemon, which is an S3 server like any other here.
//!
//! - [`location`]: the place that a URI of Flink's names.
//! - [`plan`]: which file goes where. Pure.
//! - [`files`]: copies one file, or finds that it is there.
//! - [`checkpoint`]: all files of a checkpoint, then its `_metadata`.
//!
//! # Invariants
//! - The source is read and never written to, and nothing in the new `_metadata` names it: whoever discards the copy does not
//!   reach the original.
//! - Nothing is overwritten that is there when its turn comes: it is the same, byte for byte, or the transfer ends.
//! - `_metadata` comes last. A copy that is not whole has none, so nobody takes it for a checkpoint.
//! - Bytes in memory are those of `_metadata`, twice, and a part of each file that is on its way.
//!
//! # Crash
//! Files that were copied stay, and a repeat finds them. An upload that was begun is dropped by the daemon as any upload of
//! Flink's that nobody goes on with; on HDFS and local disks a hidden file stays.

pub mod checkpoint;
pub mod files;
pub mod location;
pub mod plan;

pub use checkpoint::{
    TransferError, TransferListener, TransferNote, TransferOptions, TransferReport, TransferSide, copy_checkpoint,
};
pub use location::{LocationError, StorageLocation, StorageRoot};
pub use plan::{PlannedFile, TransferPlan, plan};
