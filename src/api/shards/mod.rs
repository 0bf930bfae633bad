//! A store of several shards, for the doors of the owner of one: what is about several of them is asked of the engines of all.
//!
//! - [`calls`]: what owners ask each other's engines.
//! - [`siblings`]: asks the engines of all shards. [`looks`]: the same for an engine that looks at the whole store.

pub mod calls;
mod looks;
pub mod siblings;
