//! A running daemon, seen from outside, and the parts whose promises outlive it: bytes on storage and the catalog.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)]

mod bad_input;
mod catalog;
mod clocks;
mod command_line;
mod flink;
mod format;
mod identity;
mod keep_alive;
mod large;
mod native;
mod peers;
mod raw;
mod rebuild;
mod restore;
mod space;
mod verify;

#[path = "../support/clock.rs"]
mod clock;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/zeros.rs"]
mod zeros;
