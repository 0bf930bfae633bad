//! What is wanted of a change of the number of shards, how far it has come, what it did, and why it did not.

use serde::Serialize;
use tokio::time::Instant;

use crate::catalog::slate::JournalError;
use crate::catalog::state::DividedCounts;
use crate::cluster::maps::MapError;
use crate::engine::reshard::RefillError;
use crate::model::{JobId, SHARDS_MAX, ShardOf, StoreShards};
use crate::store::OpenError;

/// Why the number of shards is not changed, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum ReshardError {
    /// There is no client for the storage.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store has one shard, whatever is wanted.
    #[error(
        "{0} has one shard, and stays so: only a store whose files and catalog are on an object store can be divided. A disk and an HDFS have \
         one daemon a folder"
    )]
    OneShard(String),
    /// There is nothing.
    #[error(
        "{0} holds no store, or one that no daemon of a later version has opened yet. The first daemon makes a new one, with cluster.shards"
    )]
    Nothing(String),
    /// That many there cannot be.
    #[error("--shards is {0}, and a store has 1 to {SHARDS_MAX}")]
    Count(u32),
    /// Daemons may be at work.
    #[error("members of the cluster have not left it: {0}. Stop them; if they are dead, say --force")]
    Members(String),
    /// Another change has begun.
    #[error(
        "a change to {0} has begun, and has not ended: run this with --shards {count} --run, which goes on with it, or with --abandon, which \
         gives it up", count = .0.count
    )]
    Begun(StoreShards),
    /// One is being given up.
    #[error("a change to {0} is being given up, and has not ended: run this with --abandon once more")]
    BeingAbandoned(StoreShards),
    /// Nothing is being changed.
    #[error("the number of shards is not being changed: the store has {0}")]
    NothingBegun(StoreShards),
    /// Some jobs would not find what they need.
    #[error("the number of shards is not changed, because some jobs would not find what they need: {}", .0.join("; "))]
    Obstacles(Vec<String>),
    /// Some files are not there.
    #[error(
        "nothing was begun, because not all that the store has is there: {}. Bring it back; or have the segments that are lost dropped by \
         `esker verify --repair --drop-lost`", .0.join("; ")
    )]
    Missing(Vec<String>),
    /// What a catalog has is damaged.
    #[error(
        "{shard} is damaged, so the change cannot come to its end; the shards of before are still the store. First give the change up with \
         `esker cluster reshard --abandon`: nothing else opens the store until then, and commands on it {} after that", named(*.shard)
    )]
    Damaged {
        /// The shard that has it.
        shard: ShardOf,
        /// What is wrong.
        #[source]
        source: RefillError,
    },
    /// Somebody else has opened a catalog, or changed what the root says.
    #[error(
        "{0}. The store is as it was, and the change goes on when this is run again: first end whoever else is at work"
    )]
    NotAlone(String),
    /// Another command goes on with it.
    #[error(
        "another run of this command has taken the change to {0} over, and this one ends here: it has to be let alone. `esker cluster \
         reshard --shards {count}` says how far the change has come", count = .0.count
    )]
    TakenOver(StoreShards),
    /// Another command has brought it to its end.
    #[error(
        "another run of this command was faster: the store has {0} now. Run this again: it deletes what may be left of those before"
    )]
    DoneMeanwhile(StoreShards),
    /// Another command has given it up.
    #[error(
        "the change to {0} was given up by another command, and this one ends here: it has changed nothing of the store since{1}. Do not \
         run it again unless the number of shards is to be changed after all"
    )]
    GivenUpMeanwhile(StoreShards, &'static str),
    /// The map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The marker cannot be read or written.
    #[error("what the store says of its shards cannot be read or changed")]
    Journal(#[from] JournalError),
    /// A catalog is not made anew.
    #[error(transparent)]
    Refill(#[from] RefillError),
}

/// How commands on the storage name a shard.
fn named(shard: ShardOf) -> String {
    match shard.folder() {
        Some(_) => format!("need --shard {}", shard.shard),
        None => "need no --shard".to_owned(),
    }
}

impl ReshardError {
    /// Whether nothing was begun, and trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::OneShard(_) | Self::Nothing(_) | Self::Count(_) | Self::Members(_) | Self::Begun(_) => true,
            Self::Missing(_) => true,
            Self::BeingAbandoned(_) | Self::NothingBegun(_) | Self::Obstacles(_) | Self::Open(_) => true,
            Self::NotAlone(_) | Self::TakenOver(_) | Self::DoneMeanwhile(_) | Self::GivenUpMeanwhile(..) => false,
            Self::Damaged { .. } | Self::Map(_) | Self::Journal(_) | Self::Refill(_) => false,
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct ReshardOptions {
    /// So many shards.
    pub shards: u32,
    /// Also if members have not left.
    pub force: bool,
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReshardState {
    /// Nothing was changed: this is what would be.
    Planned,
    /// An earlier run has begun it: this is what it is about. Nothing was changed now.
    Begun,
    /// The new shards are the store. What was there before is still to be deleted. Nothing was changed now.
    ToBeDeleted,
    /// The store has as many already.
    NothingToDo,
    /// It is done.
    Done,
    /// It was given up.
    Abandoned,
}

/// What goes from one shard to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShardTransfer {
    /// The shard that has it.
    pub from: u32,
    /// The shard that gets it.
    pub to: u32,
    /// What.
    #[serde(flatten)]
    pub counts: DividedCounts,
}

/// A job that is in another shard than its id tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlacedJob {
    /// The job.
    pub job: JobId,
    /// The shard.
    pub shard: u32,
}

/// What a change is about, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReshardReport {
    /// How far it has come.
    pub state: ReshardState,
    /// What the store had.
    pub from: StoreShards,
    /// What it gets.
    pub to: StoreShards,
    /// What goes where. A segment that objects of several shards share goes to each of them.
    pub transfers: Vec<ShardTransfer>,
    /// All of it.
    pub total: DividedCounts,
    /// What each of the new shards gets.
    pub shards: Vec<DividedCounts>,
    /// Jobs that are in another shard than their ids tell: with what they have claimed, or where their coordinators have directories.
    pub placed: Vec<PlacedJob>,
    /// Segments, files and bytes that this run has copied. What an earlier one had copied is not copied again.
    pub copied: DividedCounts,
    /// Physical files of before that were deleted.
    pub deleted_files: u64,
    /// Files with living segments that are not there, by the shards that should have them. Looked for before anything is begun.
    pub missing: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl ReshardReport {
    pub(super) fn new(state: ReshardState, from: StoreShards, to: StoreShards) -> Self {
        let shards = vec![DividedCounts::default(); to.count as usize];
        let (transfers, placed, missing, notes) = (vec![], vec![], vec![], vec![]);
        let (total, copied) = (DividedCounts::default(), DividedCounts::default());
        let (deleted_files, seconds) = (0, 0.0);
        Self { state, from, to, transfers, total, shards, placed, copied, deleted_files, missing, notes, seconds }
    }

    pub(super) fn took(mut self, begun: Instant) -> Self {
        self.seconds = begun.elapsed().as_secs_f64();
        self
    }
}

/// The steps of a change, as they are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReshardProgress {
    /// What it is at now.
    At(String),
    /// So many bytes have to be copied.
    Copying(u64),
    /// So many were.
    Copied(u64),
}

/// Whom a change tells.
pub type OnReshard<'a> = &'a (dyn Fn(ReshardProgress) + Send + Sync);
