//! Identifiers. Each is checked once, where it enters the daemon, and carried as a type of its own.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {why}")]
pub struct InvalidId {
    /// Which identifier, in the words of the API.
    pub what: &'static str,
    /// A text that says what is wrong with it, and what is allowed.
    pub why: String,
}

fn invalid(what: &'static str, why: impl Into<String>) -> InvalidId {
    InvalidId { what, why: why.into() }
}

/// The longest job id in bytes: an S3 key prefix, a bucket and their separators fit.
const JOB_BYTES_MAX: usize = 1200;
/// The longest label (operator, task manager, segment name) in bytes.
const LABEL_BYTES_MAX: usize = 1200;

/// Names a job. On the S3 door it is `<bucket>/<folder>/<job>`, because Flink repeats job ids across clusters.
///
/// Parts are separated by `/`; no part is empty, `.` or `..`, and none holds a control character.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(Arc<str>);

impl JobId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() || text.len() > JOB_BYTES_MAX {
            return Err(invalid("job", format!("must have 1 to {JOB_BYTES_MAX} bytes, has {}", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid("job", "must not hold control characters"));
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid("job", "must not have empty, '.' or '..' path parts"));
        }
        Ok(Self(text.into()))
    }
}

/// A short free text with no control characters: an operator, a task manager, the name of a segment.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label(Arc<str>);

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A label that is kept as text: it was checked when it came in.
    pub(crate) fn kept(text: &str) -> Self {
        Self(text.into())
    }

    /// Checks `text`, naming `what` in the error.
    ///
    /// # Errors
    /// [`InvalidId`] if it is empty, too long or holds control characters.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() || text.len() > LABEL_BYTES_MAX {
            return Err(invalid(what, format!("must have 1 to {LABEL_BYTES_MAX} bytes, has {}", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid(what, "must not hold control characters"));
        }
        Ok(Self(text.into()))
    }
}

/// A run of a job: from when it is made known, or another coordinator of it begins, to its end or to the next one. Counts within one
/// process: what a request began in one run is of no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobRun(pub u64);

/// A client's mark on a put, so that a repeat of it is recognised. Unique within a job.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdempotencyKey(Arc<str>);

impl FromStr for IdempotencyKey {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() || text.len() > 256 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid("idempotency-key", "must have 1 to 256 visible ASCII characters"));
        }
        Ok(Self(text.into()))
    }
}

impl IdempotencyKey {
    /// A key that is kept as text: it was checked when it came in.
    pub(crate) fn kept(text: &str) -> Self {
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Number of a checkpoint within its job. Grows with each trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckpointId(pub u64);

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CheckpointId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse()
            .map(Self)
            .map_err(|_| invalid("checkpoint", format!("must be a whole number from 0 to {}, is {text:?}", u64::MAX)))
    }
}

/// Identity of a segment, apart from where it lives: reclaiming moves it, the id stays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SegmentId(pub u128);

/// The meaning of the identity of a part of a multipart upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartTag {
    /// The same for all parts of an upload.
    pub upload: u32,
    /// The number of the part.
    pub number: u16,
}

/// Bits of an identity behind its time: tag of the upload, number of the part, randomness, check.
const TAG_BITS: u32 = 24;
const NUMBER_BITS: u32 = 14;
const RANDOM_BITS: u32 = 16;
const CHECK_BITS: u32 = 26;

impl SegmentId {
    /// Milliseconds since 1970 at which it was made.
    pub fn made(self) -> Millis {
        Millis(Ulid(self.0).timestamp_ms())
    }

    /// The identity of a part: it tells its upload and number, so that parts find together without the catalog.
    ///
    /// Behind the time of `ulid`: 24 bits of the upload's name, 14 of the number, 16 random ones, 26 that check the others.
    pub fn of_part(ulid: u128, upload: &str, number: u16) -> Self {
        let tag = u128::from(super::crc32c(upload.as_bytes()) >> (32 - TAG_BITS));
        let random = (ulid >> CHECK_BITS) & ((1 << RANDOM_BITS) - 1);
        let time = ulid >> (128 - 48);
        let numbered = (((time << TAG_BITS) | tag) << NUMBER_BITS) | (u128::from(number) & ((1 << NUMBER_BITS) - 1));
        let said = (numbered << RANDOM_BITS) | random;
        Self((said << CHECK_BITS) | check(said))
    }

    /// Reads it as the identity of a part, if it is one. One in 67 million others looks like one.
    pub fn part(self) -> Option<PartTag> {
        let said = self.0 >> CHECK_BITS;
        if check(said) != self.0 & ((1 << CHECK_BITS) - 1) {
            return None;
        }
        let numbered = said >> RANDOM_BITS;
        let number = u16::try_from(numbered & ((1 << NUMBER_BITS) - 1)).ok()?;
        let upload = u32::try_from((numbered >> NUMBER_BITS) & ((1 << TAG_BITS) - 1)).ok()?;
        Some(PartTag { upload, number })
    }
}

fn check(said: u128) -> u128 {
    u128::from(super::crc32c(&said.to_le_bytes()) >> (32 - CHECK_BITS))
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Ulid(self.0).array_to_str(&mut [0; ulid::ULID_LEN]))
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SegmentId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Ulid::from_string(text)
            .map(|ulid| Self(ulid.0))
            .map_err(|_| invalid("segment", format!("must be a ULID of 26 characters, is {text:?}")))
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Millis(pub u64);

macro_rules! text_newtype {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    )*};
}
text_newtype!(JobId, Label, IdempotencyKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_that_would_climb_out_of_their_folder_are_refused() {
        for bad in ["", "..", "a/../b", "a//b", "/a", "a/", "a\nb", "."] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
        assert_eq!("checkpoints/jobs/ab".parse::<JobId>().unwrap().as_str(), "checkpoints/jobs/ab");
    }

    #[test]
    fn the_identity_of_a_part_tells_its_upload_and_number() {
        let ulid = Ulid::from_parts(1_700_000_000_000, 0x0123_4567_89ab_cdef_0123).0;

        let ids: Vec<SegmentId> = [1, 2, 10_000].map(|number| SegmentId::of_part(ulid, "upload", number)).into();
        let tags: Vec<PartTag> = ids.iter().map(|id| id.part().unwrap()).collect();

        assert_eq!(tags.iter().map(|tag| tag.number).collect::<Vec<_>>(), [1, 2, 10_000]);
        assert!(tags.iter().all(|tag| tag.upload == tags[0].upload));
        assert!(ids.iter().all(|id| id.made() == Millis(1_700_000_000_000)));
        assert_ne!(SegmentId::of_part(ulid, "another", 1).part().unwrap().upload, tags[0].upload);
        assert_eq!(SegmentId(ulid).part(), None);
    }

    #[test]
    fn segment_ids_survive_their_text_form() {
        let id = SegmentId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

        assert_eq!(id.to_string().parse::<SegmentId>().unwrap(), id);
        assert!("not a ulid".parse::<SegmentId>().is_err());
    }
}
