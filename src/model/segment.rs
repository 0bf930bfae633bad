//! Segments: where they live, whose they are, who keeps them alive, and the handle a worker keeps of one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CheckpointId, JobId, Label, PhysicalFileId, SegmentId};

/// Where one logical file lives: bytes `offset..offset + len` of a physical file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The physical file.
    pub file: PhysicalFileId,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Number of bytes. Never zero.
    pub len: u64,
}

impl Segment {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Which subtasks may share state files: Flink's `CheckpointedStateScope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateScope {
    /// May be used by several checkpoints; merged within a subtask.
    Shared,
    /// Belongs to one checkpoint; merged across the subtasks of a task manager.
    Exclusive,
}

impl FromStr for StateScope {
    type Err = super::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "shared" => Ok(Self::Shared),
            "exclusive" => Ok(Self::Exclusive),
            other => {
                Err(super::InvalidId { what: "scope", why: format!("must be 'shared' or 'exclusive', is {other:?}") })
            }
        }
    }
}

impl fmt::Display for StateScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        })
    }
}

/// A subtask, stable across its attempts: the same index at the same parallelism is the same subtask.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SubtaskKey {
    /// The operator it belongs to.
    pub operator: Label,
    /// Its index, from 0.
    pub index: u32,
    /// The parallelism of the operator.
    pub parallelism: u32,
}

impl fmt::Display for SubtaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.operator, self.index, self.parallelism)
    }
}

/// The writer of a segment, as far as the door could tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Writer {
    /// The subtask, unknown on the S3 door.
    pub subtask: Option<SubtaskKey>,
    /// The task manager, unknown on the S3 door.
    pub task_manager: Option<Label>,
}

/// The writer of a segment, and its purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The job.
    pub job: JobId,
    /// Its scope.
    pub scope: StateScope,
    /// The writer.
    pub writer: Writer,
    /// The checkpoint it was written for, if the door could tell.
    pub checkpoint: Option<CheckpointId>,
    /// The worker's name for it.
    pub name: Option<Label>,
}

/// The holder that keeps a segment alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// The checkpoints up to `last_used`: Flink's watermark, which only grows.
    Checkpoints {
        /// The last checkpoint that uses it.
        last_used: CheckpointId,
    },
    /// S3 objects.
    Objects {
        /// Number of subtasks.
        count: u32,
    },
    /// A multipart upload that has not ended.
    Upload,
    /// A savepoint; only its discarding frees it.
    Savepoint {
        /// The checkpoint.
        id: CheckpointId,
    },
}

impl Holder {
    /// Whether a segment that was written for `written` is part of `checkpoint`. The watermark tells first and last use:
    /// a checkpoint between them counts as a user.
    pub fn is_part_of(&self, written: Option<CheckpointId>, checkpoint: CheckpointId) -> bool {
        match self {
            Self::Checkpoints { last_used } => written.is_none_or(|n| n <= checkpoint) && checkpoint <= *last_used,
            Self::Savepoint { id } => *id == checkpoint,
            Self::Objects { .. } | Self::Upload => false,
        }
    }
}

/// Where the bytes of a segment are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// In the catalog, beside the segment's record.
    Inline {
        /// Number of bytes.
        len: u64,
    },
    /// In a physical file.
    File(Segment),
}

impl Location {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline { len } => *len,
            Self::File(segment) => segment.len,
        }
    }

    /// Whether there are no bytes; never true for a stored segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place in a physical file, unless inline.
    pub fn segment(&self) -> Option<&Segment> {
        match self {
            Self::Inline { .. } => None,
            Self::File(segment) => Some(segment),
        }
    }

    /// The physical file, unless inline.
    pub fn file(&self) -> Option<&PhysicalFileId> {
        self.segment().map(|segment| &segment.file)
    }
}

/// The handle that a worker keeps: enough to read the bytes with any S3 client while the daemon is down.
///
/// Text form: `esker1:<segment>:<file>:<offset>:<len>:<crc32c as 8 hex digits>`; an inline segment has an
/// empty file and offset 0, and needs the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The segment's identity.
    pub id: SegmentId,
    /// Where it was when the handle was made.
    pub location: Location,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

/// Why a text is not a handle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("handle must be esker1:<segment>:<file>:<offset>:<len>:<crc32c as 8 hex digits>: {0}")]
pub struct InvalidHandle(String);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, offset) = match &self.location {
            Location::Inline { .. } => ("", 0),
            Location::File(segment) => (segment.file.as_str(), segment.offset),
        };
        write!(f, "esker1:{}:{file}:{offset}:{}:{:08x}", self.id, self.location.len(), self.crc32c)
    }
}

impl FromStr for Handle {
    type Err = InvalidHandle;

    fn from_str(text: &str) -> Result<Self, InvalidHandle> {
        let bad = |why: &dyn fmt::Display| InvalidHandle(why.to_string());
        let parts: Vec<&str> = text.split(':').collect();
        let ["esker1", id, file, offset, len, crc] = parts[..] else {
            return Err(bad(&"wrong number of parts or version"));
        };
        let id = id.parse().map_err(|e: super::InvalidId| bad(&e))?;
        let number = |what: &str, text: &str| text.parse::<u64>().map_err(|_| bad(&format!("{what} is {text:?}")));
        let (offset, len) = (number("offset", offset)?, number("len", len)?);
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(bad(&"len is zero or too large"));
        }
        let location = if file.is_empty() {
            Location::Inline { len }
        } else {
            let file = file.parse().map_err(|e: super::InvalidFileId| bad(&e))?;
            Location::File(Segment { file, offset, len })
        };
        if crc.len() != 8 {
            return Err(bad(&format!("crc32c is {crc:?}")));
        }
        let crc32c = u32::from_str_radix(crc, 16).map_err(|_| bad(&format!("crc32c is {crc:?}")))?;
        Ok(Self { id, location, crc32c })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_survive_their_text_form() {
        let file = PhysicalFileId::new(None, 1, 2);
        for location in [Location::Inline { len: 3 }, Location::File(Segment { file, offset: 4, len: 5 })] {
            let handle = Handle { id: SegmentId(9), location, crc32c: 0xab };

            assert_eq!(handle.to_string().parse::<Handle>().unwrap(), handle);
        }
    }

    #[test]
    fn handles_that_point_nowhere_are_refused() {
        let id = SegmentId(1);
        for bad in [
            "".to_owned(),
            format!("esker1:{id}:../etc/passwd:0:1:00000000"),
            format!("esker1:{id}::0:0:00000000"),
            format!("esker1:{id}::{}:2:00000000", u64::MAX),
            format!("esker1:{id}::0:1:0"),
            format!("esker2:{id}::0:1:00000000"),
        ] {
            assert!(bad.parse::<Handle>().is_err(), "{bad:?}");
        }
    }
}
