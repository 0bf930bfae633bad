//! CRC-32C of a segment: of the whole, and of each block, so that a part of a large segment can be checked.

use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest, checksum, checksum_combine};
use serde::{Deserialize, Serialize};

/// Bytes of a block. The last block of a segment may be shorter.
pub const BLOCK_BYTES: u64 = 1 << 20;

const CRC32C: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// CRC-32C (Castagnoli) of `bytes`.
///
/// # Source
/// RFC 3720, appendix B.4.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CRC32C, bytes) as u32
}

/// The checksums of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCrc {
    /// The CRC-32C of the whole segment.
    pub whole: u32,
    /// Of each block of [`BLOCK_BYTES`]; empty when the segment fits into one. Shared, because a large segment has many and
    /// every read takes them along.
    pub blocks: Arc<[u32]>,
}

impl SegmentCrc {
    /// The checksums of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = SegmentHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Computes a [`SegmentCrc`] while the bytes arrive.
#[derive(Debug)]
pub struct SegmentHasher {
    block: Digest,
    block_len: u64,
    done: Vec<u32>,
}

impl Default for SegmentHasher {
    fn default() -> Self {
        Self { block: Digest::new(CRC32C), block_len: 0, done: vec![] }
    }
}

impl SegmentHasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.block_len == BLOCK_BYTES {
                self.end_block();
            }
            let room = usize::try_from(BLOCK_BYTES - self.block_len).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            self.block_len += now.len() as u64;
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        self.done.push(self.block.finalize() as u32);
        self.block.reset();
        self.block_len = 0;
    }

    /// The checksums of everything taken in.
    pub fn finish(mut self) -> SegmentCrc {
        if self.done.is_empty() {
            return SegmentCrc { whole: self.block.finalize() as u32, blocks: Arc::default() };
        }
        let last_len = self.block_len;
        self.end_block();
        let mut whole = u64::from(self.done[0]);
        for (index, block) in self.done.iter().enumerate().skip(1) {
            let len = if index + 1 == self.done.len() { last_len } else { BLOCK_BYTES };
            whole = checksum_combine(CRC32C, whole, u64::from(*block), len);
        }
        SegmentCrc { whole: whole as u32, blocks: self.done.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32c_is_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_whole_is_the_same_however_the_bytes_arrive() {
        let block = BLOCK_BYTES as usize;
        for len in [0, 1, block - 1, block, block + 1, 3 * block, 3 * block + 77] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();

            let mut hasher = SegmentHasher::default();
            bytes.chunks(70_001).for_each(|chunk| hasher.update(chunk));
            let crc = hasher.finish();

            assert_eq!(crc.whole, crc32c(&bytes), "{len} bytes");
            let blocks: Vec<u32> = bytes.chunks(block).map(crc32c).collect();
            assert_eq!(crc.blocks[..], if blocks.len() > 1 { blocks } else { vec![] }, "{len} bytes");
        }
    }
}
