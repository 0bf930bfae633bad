//! Rules that can be left out. The code has no switch for that: what it is given breaks its word, in the way that is the same as
//! leaving the rule out.

use crate::scenario::About;

/// One rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A READ that began before the view was taken counts as its proof: storage answers READs with what was so a second ago.
    ProofBeforeView,
    /// A proof's age is told by a clock that stands still while the process does.
    ProofStandsStill,
    /// A new owner serves before the proofs of the one before have ended: its clock is forty times as fast.
    ServesAtOnce,
    /// The shard is opened first, and the map says so afterwards: storage says that the map is written, and writes it later.
    OpenBeforeMap,
    /// The log is written whether or not the name is taken: a fence keeps nobody out.
    BlindLogWrite,
    /// A new owner drops what has no file, and does not take the file's name: storage forgets tombstones.
    HeadWithoutTombstone,
    /// A request that a peer has passed on is for whoever has the shard, not for its owner of one epoch: the network gives the header that
    /// says the epoch a name that nobody knows.
    ForAnyEpoch,
}

impl Bug {
    pub(crate) const ALL: [Self; 7] = [
        Self::ProofBeforeView,
        Self::ProofStandsStill,
        Self::ServesAtOnce,
        Self::OpenBeforeMap,
        Self::BlindLogWrite,
        Self::HeadWithoutTombstone,
        Self::ForAnyEpoch,
    ];

    /// The runs in which it shows.
    pub(crate) fn shows_in(self) -> About {
        match self {
            Self::ProofBeforeView | Self::ServesAtOnce | Self::OpenBeforeMap => About::Silent,
            Self::ProofStandsStill => About::Stopped,
            Self::BlindLogWrite | Self::HeadWithoutTombstone => About::All,
            Self::ForAnyEpoch => About::Unheard,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}
