//! What the tests and benches of a daemon share.
//!
//! - [`process`]: the real program, started and ended from outside.
//! - [`daemon`]: a daemon inside the test.
//! - [`certs`]: certificates, good and bad.
//! - [`checkpoint`]: a checkpoint of Flink's on a local disk.
//! - [`clock`]: machines whose clocks are wrong.
//! - [`signed`]: signed requests of the S3 API, one by one.
//! - [`watchdog`]: an end for what hangs.
//! - [`zeros`]: objects of any size that take no room.

// As in a test: nobody is told of an error but by a panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)]

pub mod certs;
pub mod checkpoint;
pub mod clock;
pub mod daemon;
pub mod process;
pub mod signed;
pub mod watchdog;
pub mod zeros;

/// `len` bytes that look random and are the same for the same `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
