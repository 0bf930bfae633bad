//! Plain values that every part of the daemon shares. No I/O, no clock, no randomness.

mod checksum;
mod file;
mod ids;
mod lane;
mod segment;

pub use checksum::{BLOCK_BYTES, SegmentCrc, SegmentHasher, crc32c};
pub use file::{InvalidFileId, PhysicalFileId};
pub use ids::{CheckpointId, IdempotencyKey, InvalidId, JobId, Label, Millis, PartTag, SegmentId};
pub use lane::{Lane, LaneOf};
pub use segment::{Handle, InvalidHandle, Location, Segment, StateScope, SubtaskKey, Writer};
