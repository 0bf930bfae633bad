//! Decides about the checkpoints of one job: a plain state machine.
//!
//! Events go in by methods of [`Coordinator`](machine::Coordinator), each with the time; what is to be done comes out of
//! [`decisions`](machine::Coordinator::decisions), in order. No clock, no async, no storage. The time is that since some moment, and never
//! goes back.
//!
//! - [`queue`]: requests that wait for their turn.
//! - [`schedule`]: when a periodic checkpoint is due.
//! - [`failures`]: failed checkpoints in a row.
//! - [`retained`]: completed checkpoints that are kept.
//! - [`tasks`]: which tasks run.
//! - [`pending`]: a checkpoint in progress.
//! - [`decision`]: what comes out.
//! - [`machine`]: what is known, and the time; [`trigger`]: how a checkpoint begins; [`acks`]: how it ends; [`reports`]: what else happens.
//!
//! # Invariants
//! - A checkpoint that began ends once: completed, or given up.
//! - It completes after every task that was not over has acknowledged it, and after its metadata is stored.
//! - Whatever is to be cleaned is counted until somebody says that it was.

pub mod acks;
pub mod decision;
pub mod failures;
pub mod machine;
pub mod pending;
pub mod queue;
pub mod reports;
pub mod retained;
pub mod schedule;
pub mod tasks;
pub mod trigger;

#[cfg(test)]
mod tests;
