//! Moves a checkpoint or savepoint of Flink's between storages: `esker import` and `esker export`.
//!
//! [`plan`] reads `_metadata` and says which files go where, and what `_metadata` says then; [`copy_checkpoint`] carries that
//! out. One side is the S3 door of a running daemon, which is an S3 server like any other here.
//!
//! - [`location`]: the place that a URI of Flink's names.
//! - [`plan`]: which file goes where. Pure.
//! - [`control`]: ends a transfer early.
//! - [`files`]: copies one file, or finds that it is there.
//! - [`checkpoint`]: all files of a checkpoint, then its `_metadata`.
//!
//! # Invariants
//! - The source is read and never written to, and nothing in the new `_metadata` names it: whoever discards the copy does not
//!   reach the original.
//! - Nothing is overwritten: what is there is the same, byte for byte, or the transfer ends. Where the store can, that holds for
//!   what appears meanwhile, too ([`WholeStore`](crate::store::WholeStore)).
//! - `_metadata` comes last. A copy that is not whole has none, so nobody takes it for a checkpoint.
//! - Uploads that were begun are complete or given up when it ends, whatever ends it; those that could not be are named.
//! - Bytes in memory are those of `_metadata`, twice, and a part of each file that is on its way.
//!
//! # Crash
//! Files that were copied stay, and a repeat finds them. Of an upload that was begun the parts stay: in Esker as of any upload of
//! Flink's that nobody goes on with, elsewhere until a rule of the bucket drops them, in Azure for a week. On HDFS and local disks a
//! hidden file stays.

pub mod checkpoint;
pub mod control;
pub mod files;
pub mod location;
pub mod plan;

pub use checkpoint::{
    TransferError, TransferListener, TransferNote, TransferOptions, TransferReport, TransferSide, copy_checkpoint,
    interrupted,
};
pub use control::TransferControl;
pub use location::{LocationError, StorageLocation, StorageRoot};
pub use plan::{PlannedFile, TransferPlan, plan};
