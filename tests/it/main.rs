//! A running daemon, seen from outside, and the parts whose promises outlive it: bytes on storage and the catalog.

mod catalog;
mod format;

#[path = "../support/mod.rs"]
mod support;
