//! Several daemons as one.

use serde::{Deserialize, Serialize};

/// What a cluster is, as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The number of the last map that it knows.
    pub map: u64,
    /// The daemons.
    pub members: Vec<ClusterMember>,
    /// The shards, and who has them.
    pub shards: Vec<ClusterShard>,
}

/// A daemon of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMember {
    /// Its name.
    pub id: String,
    /// Where its peers reach it.
    pub url: String,
    /// Its process; another one after each restart.
    pub incarnation: String,
    /// When it joined.
    pub since: String,
    /// Whether the member that was asked reaches it.
    pub reachable: bool,
}

/// A shard of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterShard {
    /// Its number.
    pub shard: u32,
    /// The member that has it; none if nobody does.
    pub owner: Option<String>,
    /// Segments in it; none if its owner does not say.
    pub segments: Option<usize>,
    /// When the owner came to it.
    pub since: String,
    /// How it came to it: `unowned`, `dead`, `silent`, `given-up`, `handed-over` or `again`; `ended` if nobody has it any more.
    pub cause: String,
}
