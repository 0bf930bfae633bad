//! Rules of the protocol that can be left out. The model has to notice each.

/// One rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// A READ that began before the view was taken counts as its proof, however long it took.
    ProofBeforeView,
    /// A proof counts from its answer, not from its request.
    ProofFromAnswer,
    /// The proof's age is told by a clock that stands still while the process does.
    ProofStandsStill,
    /// The proof's age is told by a clock that can be set.
    ProofByWallClock,
    /// A new owner serves as soon as it has loaded, though the owner before may still have a proof.
    ServesAtOnce,
    /// A member that was alone needs no proof, however long ago it read the map.
    AloneForEver,
    /// A second member takes over without waiting until the first knows of it.
    JoinerDoesNotWait,
    /// A new incarnation of the only member takes over without waiting until the old one knows of it, or is known to be dead.
    RestartDoesNotWait,
    /// The shard is opened first, and the map says so afterwards.
    OpenBeforeMap,
    /// The map is written whether or not the number is taken.
    BlindMapWrite,
    /// A number of the map that is taken is somebody else's, unseen.
    LostIsFailure,
    /// Who is fenced while it opens gives up, though the map still says that the shard is its own.
    FencedIsFinal,
    /// Members are told apart by their id alone, and nothing else is compared.
    IncarnationIgnored,
    /// "Mine" is told by the owner's name alone, not by the epoch.
    EpochIgnored,
    /// 409 on the map counts as a number that is taken.
    ConflictAtMap,
    /// 409 on the log counts as a name that is taken.
    ConflictAtLog,
    /// A name of the log that is taken is passed over for the next one.
    NextNameWhenTaken,
    /// A fence is removed from the log once it was replayed.
    FenceCollected,
    /// An owner that gives its shard away answers reads until it has seen the map.
    HandOverServesOn,
    /// A client is answered when its file is there, whether or not the commit is.
    AnswerBeforeDurable,
    /// A new owner drops what has no file, and does not take the file's name.
    HeadWithoutTombstone,
    /// An upload that took longer than a tombstone stays is answered without a look at who owns the shard.
    SlowPutUnchecked,
    /// A file is deleted when the client asks, before that is durable.
    DeleteBeforeForgotten,
    /// What the catalog does not name is deleted without a look at who owns the shard.
    SweepUnchecked,
    /// The owner is looked at before the files are listed.
    SweepCheckedBeforeList,
}
