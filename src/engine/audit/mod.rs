//! Compares what Flink's `_metadata` names with the objects that are there.
//!
//! - [`look`]: one `_metadata` and its objects.
//! - [`arriving`]: each one that comes in, in the background: a checkpoint that cannot be restored is told of while the one
//!   before still stands.
//! - [`retained`]: all that are there, on demand.
//! - [`named`]: everything that any of them names, while they come and go.
//! - [`orphans`]: objects that none of them names.
//!
//! # Invariants
//! - A put is neither delayed nor failed by what is found in it.
//! - Flink deletes `_metadata` before what it names. So what is missing counts only if `_metadata` is still there afterwards.
//! - One `_metadata` is in memory at a time, and paid for.
//! - An object is deleted only if it is the one that was judged.

pub mod arriving;
pub mod look;
mod named;
pub mod orphans;
pub mod retained;

pub use look::{MissingObject, NamedObject, Needs, Unreadable};
pub use orphans::{JobTally, JudgedObject, Judgement, OrphanQuery, OrphanReport};
pub use retained::{AuditQuery, CheckpointAudit, RetainedPage};
