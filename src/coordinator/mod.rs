//! The checkpoint coordinator, for workers that have none of their own: triggers, collects, completes, aborts, subsumes, restores,
//! by Flink's rules.
//!
//! - [`topology`]: operators, tasks, key groups.
//! - [`reason`]: why checkpoints fail.
//! - [`ack`]: what a task says of its part.
//! - [`state`]: decides; a plain state machine.
//! - [`assign`]: what each task starts from, at any parallelism.
//! - [`metadata`], [`record`]: what is durable: of a checkpoint, of a job.
//! - [`events`]: what workers are told. [`history`]: how checkpoints went.
//! - [`storage`]: records, completes, frees. [`places`]: which jobs have to be in which shard for that.
//! - `memory`: pays for what tasks have acknowledged.
//! - `workers`: which worker has which tasks.
//! - `requests`: what people have asked for. `steps`: what storage is asked, in order. `recorder`: what waits for a record.
//! - `job`: the one task that drives all that for a job. `changes`: its end, and what else is one at a time. `telling`: what it tells.
//! - [`handle`]: what may be asked of it. `checks`: whether that makes sense.
//! - [`registry`]: the coordinators of all jobs.
//!
//! `docs/coordinator.md` is the contract with workers.

pub mod ack;
pub mod assign;
mod changes;
mod checks;
pub mod copies;
pub mod error;
pub mod events;
pub mod handle;
pub mod history;
mod job;
mod memory;
pub mod metadata;
pub mod places;
pub mod reason;
pub mod record;
mod recorder;
pub mod registry;
mod requests;
pub mod state;
mod steps;
pub mod storage;
mod telling;
pub mod topology;
mod workers;

pub use requests::RequestView;
