//! Several daemons as one, at their doors: which of them answers a request, and what they say to each other.
//!
//! A daemon of a cluster answers at its doors what its own engine has, if it is the owner; else it passes the request on to the owner
//! as it came ([`crate::cluster::peer`]), and the owner's answer back. While nobody is known to be the owner, requests are held.
//!
//! - [`route`]: who answers now.
//! - [`dispatch`]: has a request answered, wherever.
//! - [`door`]: what a member answers to its peers, to health checks, and about the cluster.

pub mod dispatch;
pub mod door;
pub mod route;
