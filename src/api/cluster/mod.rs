//! Several daemons as one, at their doors: which of them answers a request, and what they say to each other.
//!
//! A daemon of a cluster answers at its doors what its own engine has, if it is the owner of the shard that the request is about; else it
//! passes the request on to the owner as it came ([`crate::cluster::peer`]), and the owner's answer back. While nobody is known to be the
//! owner, requests are held. What is about several shards is answered by one owner, which asks the others ([`super::shards`]), or put
//! together from the answers of all ([`spread`]).
//!
//! - [`route`]: who answers now for each shard.
//! - [`target`]: which shards a request is about.
//! - [`dispatch`]: has a request answered, wherever.
//! - [`spread`]: answers of the native API that are put together. [`gather`]: many segments in one answer.
//! - [`door`]: what a member answers to its peers, to health checks, and about the cluster.

pub mod dispatch;
pub mod door;
mod gather;
pub mod route;
pub mod spread;
pub mod target;
