//! The real program on a disk that is full, and on one that fails to sync.
//!
//! The full disk is an ext4 image of 96 MiB, mounted over a loop device in a mount namespace of the test's own, so that
//! nothing of it is left. That takes a user who may mount; elsewhere these tests say that they are skipped, and what stands
//! in for them are the unit tests of `catalog/slate/disk.rs`, `catalog/slate/tests` and `store/space`, where a full disk is
//! made up. The disk that fails is a library in front of libc ([`shim`]), built with `cc`.

#![allow(
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod eio;
mod full;
mod health;
mod shim;
mod small_disk;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use esker_test_support::{self as support, process};

/// Longest time that anything may take that should happen soon.
const SOON: Duration = Duration::from_secs(60);

/// Waits until `true`; what is waited for stands in the panic.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < SOON, "it never came that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `GET /readyz`: status and body.
fn readyz(api: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(api.trim_start_matches("http://")).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}
