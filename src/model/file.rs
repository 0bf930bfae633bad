//! Physical files: their names and their lives.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{JobId, Millis};

/// Longest readable part of a prefix; longer ones are cut and told apart by a checksum.
const PREFIX_BYTES_MAX: usize = 96;

/// Why a text does not name a physical file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("physical file must be named data/<prefix>/<epoch as 8 hex digits>-<ULID>, is {0:?}")]
pub struct InvalidFileId(String);

/// Names one physical file: its path below the store's root, `data/<prefix>/<epoch>-<ULID>`.
///
/// Never reused: the epoch grows with each owner of the catalog, the ULID is random within it. The path is
/// safe to join to a folder: it holds letters, digits, `.`, `_`, `-` and exactly two `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PhysicalFileId(Arc<str>);

impl PhysicalFileId {
    /// Folder of all physical files below the store's root.
    pub const FOLDER: &str = "data";

    /// Names a new file in the folder of `job`, or in the folder of the daemon when it holds several jobs.
    pub fn new(job: Option<&JobId>, epoch: u64, ulid: u128) -> Self {
        let prefix = job.map_or_else(|| "_daemon".to_owned(), prefix);
        Self(format!("{}/{prefix}/{epoch:08x}-{}", Self::FOLDER, Ulid(ulid)).into())
    }

    /// A name that is kept as text: it was made or checked when it came in.
    pub(crate) fn kept(text: &str) -> Self {
        Self(text.into())
    }

    /// The path below the store's root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The epoch of the daemon that wrote it.
    pub fn epoch(&self) -> u64 {
        let name = self.0.rsplit('/').next().unwrap_or_default();
        let hex = name.split('-').next().unwrap_or_default();
        u64::from_str_radix(hex, 16).unwrap_or_default()
    }

    /// The ULID in the name, which the file repeats in its header and trailer.
    pub fn ulid(&self) -> u128 {
        let ulid = self.0.rsplit('-').next().and_then(|text| Ulid::from_string(text).ok());
        ulid.unwrap_or_default().0
    }
}

/// The folder of a job: its id with everything unusual replaced, and a checksum when that lost something.
fn prefix(job: &JobId) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut text: String = job.as_str().chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    text.truncate(PREFIX_BYTES_MAX);
    // Azure does not keep a dot at the end of a part of a name.
    if text != job.as_str() || text.starts_with(['_', '.']) || text.ends_with('.') {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, job.as_str().as_bytes());
        text = format!("{text}-{sum:08x}");
    }
    if text.starts_with(['_', '.']) { format!("j{text}") } else { text }
}

impl FromStr for PhysicalFileId {
    type Err = InvalidFileId;

    fn from_str(text: &str) -> Result<Self, InvalidFileId> {
        let bad = || InvalidFileId(text.chars().take(200).collect());
        let mut parts = text.split('/');
        let (Some(Self::FOLDER), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let (epoch, ulid) = name.split_once('-').ok_or_else(bad)?;
        let epoch_ok = (8..=16).contains(&epoch.len()) && epoch.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain(prefix) || !epoch_ok || Ulid::from_string(ulid).is_err() {
            return Err(bad());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for PhysicalFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PhysicalFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The life of a physical file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileState {
    /// Takes more, or is on its way to storage. After a crash, what lies beyond `durable_len` is looked up.
    Open {
        /// Bytes that are known to be durable.
        durable_len: u64,
        /// Bytes that it will have once all that was committed is written.
        len: u64,
    },
    /// Takes no more.
    Closed {
        /// Its size in bytes.
        len: u64,
    },
    /// Holds nothing that lives; to be deleted after its grace.
    Forgotten {
        /// Its size in bytes.
        len: u64,
        /// Since when.
        since: Millis,
        /// The fate of its segments.
        why: Forgotten,
    },
}

impl FileState {
    /// The size of the file in bytes, as far as it is committed.
    pub fn len(&self) -> u64 {
        match self {
            Self::Open { len, .. } | Self::Closed { len } | Self::Forgotten { len, .. } => *len,
        }
    }

    /// Whether the file has no bytes yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a file holds nothing that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Forgotten {
    /// The last of its segments was freed: nobody has a right to read it.
    Died,
    /// Its last living segments were moved: who looked them up before may still read them here.
    Moved,
    /// Its upload was given up, and may still arrive.
    GivenUp,
}

impl Forgotten {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Died, Self::Moved, Self::GivenUp];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_text_form_and_tell_the_epoch() {
        let job = "checkpoints/jobs/ü{}".parse().unwrap();

        let file = PhysicalFileId::new(Some(&job), 7, 42);

        assert_eq!(file.as_str().parse::<PhysicalFileId>().unwrap(), file);
        assert_eq!((file.epoch(), file.ulid()), (7, 42));
    }

    #[test]
    fn jobs_that_look_alike_once_cleaned_have_folders_of_their_own() {
        let a = PhysicalFileId::new(Some(&"a/b".parse().unwrap()), 1, 1);
        let b = PhysicalFileId::new(Some(&"a:b".parse().unwrap()), 1, 1);

        assert_ne!(a, b);
    }

    #[test]
    fn names_that_leave_the_data_folder_are_refused() {
        let ulid = Ulid(5).to_string();
        for bad in [
            format!("data/../{ulid}"),
            format!("data/../00000001-{ulid}"),
            format!("/data/a/00000001-{ulid}"),
            format!("data/a/b/00000001-{ulid}"),
            format!("data/a/1-{ulid}"),
            "data/a/00000001-x".to_owned(),
            String::new(),
        ] {
            assert!(bad.parse::<PhysicalFileId>().is_err(), "{bad:?}");
        }
    }
}
