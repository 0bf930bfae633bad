//! A running daemon, seen from outside, and the parts whose promises outlive it: bytes on storage and the catalog.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod access_log;
mod audit;
mod bad_input;
mod catalog;
mod clocks;
mod command_line;
mod coordinator;
mod engine;
mod flink;
mod format;
mod full;
mod http2;
mod identity;
mod keep_alive;
mod keys;
mod large;
mod native;
mod peers;
mod pipes;
mod proxies;
mod raw;
mod rebuild;
mod restore;
mod space;
mod surface;
mod tls;
mod transfer;
mod verify;
mod virtual_hosts;

use esker_test_support::{self as support, certs, clock, daemon, process, zeros};
