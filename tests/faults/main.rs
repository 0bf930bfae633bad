//! Daemons on an S3 server that fails: lost answers, 503s, resets, hanging requests, damaged bytes, crashes and stale
//! twins. What they defend: a segment that was answered can be read, whatever happened since.
//!
//! The server ([`s3_server`]) runs in this process and decides conditional writes atomically, the faults ([`faults`])
//! happen on the wire, and each daemon lives in a runtime of its own that can be killed or stopped ([`support`]).
//! Races are set up with gates that hold a request until the test opens them, not with sleeps. Random runs print their
//! seed; `FAULTS_SEED` replays one.

#![allow(
    clippy::clone_on_ref_ptr,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod big;
mod clocks;
mod cluster;
mod conflicts;
mod coordinator;
mod crashes;
mod delete_ledger;
mod door;
mod faults;
mod identity;
mod lazy;
mod load;
mod local_copy;
mod offline;
mod reads;
mod rebuild;
mod reclaim;
mod requests;
mod reshard;
mod reshard_given_up;
mod restore;
mod s3_server;
mod shards;
mod shards_audit;
mod shards_jobs;
mod shards_restore;
mod start;
mod support;
mod takeover;
mod uploads;
mod writes;
