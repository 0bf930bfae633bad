//! What a marker says of shards that give way to others.

use crate::model::{SHARDS_MAX, StoreShards};

/// Stands behind the one who gives a change up.
const GIVEN_UP: &str = ", given up";

/// A change of the number of shards that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resharding {
    /// What is being made.
    pub to: StoreShards,
    /// The one who makes it, or gives it up, at the root alone.
    pub by: Option<String>,
    /// Whether it is being given up: nobody goes on with it any more.
    pub given_up: bool,
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
        let (by, given_up) = match behind.map(|behind| behind.strip_suffix(GIVEN_UP).unwrap_or(behind)) {
            Some(by) => {
                (Some(by.strip_prefix("by ")?.to_owned()), behind.is_some_and(|behind| behind.ends_with(GIVEN_UP)))
            }
            None => (None, false),
        };
        (to.generation > 0).then_some(Self { to, by, given_up })
    }

    pub(super) fn line(&self) -> String {
        let Self { to, by, given_up } = self;
        let by = by.as_ref().map_or_else(String::new, |by| format!(", by {by}"));
        let given_up = if *given_up { GIVEN_UP } else { "" };
        format!("resharding to {}, generation {}{by}{given_up}\n", to.count, to.generation)
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
