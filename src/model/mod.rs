//! Plain values that every part of the daemon shares. No I/O, no clock, no randomness.

mod checkpoint;
mod checksum;
mod contract;
mod file;
mod ids;
mod lane;
mod layout;
mod object;
mod routing;
mod segment;

pub use checkpoint::{CheckpointKind, CheckpointState, Claim, JobEnd, Leavings};
pub use checksum::{BLOCK_BYTES, SegmentCrc, SegmentHasher, crc32c};
pub use contract::KeyContract;
pub use file::{FileState, Forgotten, InvalidFileId, PhysicalFileId};
pub use ids::{CheckpointId, IdempotencyKey, InvalidId, JobId, JobRun, Label, Millis, PartTag, SegmentId};
pub use lane::{Lane, LaneOf};
pub use layout::{FlinkKey, FlinkPlace, KeyLayout};
pub use object::{NewUpload, ObjectChecksum, ObjectHead, ObjectHeaders, PartHead};
pub use routing::{OF_BUCKETS, ROUTING, Routing, SHARDS_MAX, ShardOf, StoreShards};
pub use segment::{About, Handle, Holder, InvalidHandle, Location, Segment, StateScope, SubtaskKey, Writer};
