//! What a marker says of shards that give way to others.

use crate::model::{SHARDS_MAX, StoreShards};

/// A change of the number of shards that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resharding {
    /// What is being made.
    pub to: StoreShards,
    /// The one who makes it, at the root alone.
    pub by: Option<String>,
}

/// Shards that others have taken the place of, and that are still to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// They.
    pub shards: StoreShards,
    /// Whether no physical file is left of them.
    pub emptied: bool,
}

/// Reads `<count>, generation <generation>` and what stands behind it.
fn shards_of(text: &str) -> Option<(StoreShards, Option<&str>)> {
    let (count, rest) = text.split_once(", generation ")?;
    let (generation, behind) = match rest.split_once(", ") {
        Some((generation, behind)) => (generation, Some(behind)),
        None => (rest, None),
    };
    let count = count.parse().ok().filter(|count| (1..=SHARDS_MAX).contains(count))?;
    Some((StoreShards { count, generation: generation.parse().ok()? }, behind))
}

impl Resharding {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (to, behind) = shards_of(line.strip_prefix("resharding to ")?)?;
        let by = match behind {
            Some(behind) => Some(behind.strip_prefix("by ")?.to_owned()),
            None => None,
        };
        (to.generation > 0).then_some(Self { to, by })
    }
}

impl Replaced {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (shards, behind) = shards_of(line.strip_prefix("replaces ")?)?;
        let emptied = match behind {
            None => false,
            Some("emptied") => true,
            Some(_) => return None,
        };
        Some(Self { shards, emptied })
    }
}
