//! Reads what Apache Flink leaves beside its state: `_metadata`, the list of everything that a checkpoint or savepoint needs.
//!
//! - [`cursor`]: bytes as Java's `DataOutputStream` writes them.
//! - [`properties`]: the serialized Java object at the end of newer files, which is walked over.
//! - [`metadata`]: the file itself, versions 3 to 6.
//! - [`relocate`]: the same file with other paths in it, for a checkpoint that moves.
//! - [`place`]: the bucket and key that a path of Flink's means.
//! - [`survey`]: which objects of a job nothing names any more.
//!
//! # Invariants
//! - Nothing is written, and nothing here knows storage.
//! - Whatever the bytes are, reading them ends in time proportional to their number, panics never, and takes no memory for a
//!   length that they merely claim.

pub mod cursor;
pub mod metadata;
pub mod place;
pub mod properties;
pub mod relocate;
pub mod survey;

pub use cursor::{MetadataDamage, MetadataError};
pub use metadata::{METADATA, MetadataSummary, NamedPath, NamedState, read_metadata};
pub use place::{Place, decoded, place_of, places_meant};
pub use relocate::{RelocateError, WrittenPath, relocate_metadata};
pub use survey::{Kept, Orphan, OrphanVerdict, Survey};
