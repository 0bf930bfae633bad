//! Several daemons on one store: what they agree on, and how one of them knows that it may answer.
//!
//! The protocol, its reasons and its model are in `docs/cluster.md`. The store has one shard or several ([`crate::model::ShardOf`]): of each
//! one member has the catalog open, the others pass requests on to it and take over when it is gone. The object store's conditional
//! create, and SlateDB's fence, are the only consensus.
//!
//! - [`map`]: members and owners, as plain values.
//! - [`maps`]: READ and WRITE of the map on storage.
//! - [`plan`]: which shard should have another owner.
//! - [`place`]: the store that they share.
//! - [`proof`]: whether what was read may be answered.
//! - [`peer`]: calls to other members.
//! - [`links`]: the ways to all of them.
//! - [`watch`]: whether another member is there.
//! - [`upkeep`]: what an operator does to a cluster that is stopped. [`reshard`]: and to the number of its shards.
//!
//! A member's life, which needs all the rest of a daemon, is `daemon::member`; its door for peers, and who answers which request,
//! `api::cluster`.

pub mod links;
pub mod map;
pub mod maps;
pub mod peer;
pub mod place;
pub mod plan;
pub mod proof;
pub mod reshard;
pub mod upkeep;
pub mod watch;
