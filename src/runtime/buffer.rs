//! Memory for bytes that are paid for.
//!
//! Bodies are large, of all sizes, and die in any order: an allocator keeps about as much again in fragments as is in
//! use, and the budget would bound half of the truth. So a large buffer is a mapping of its own, and goes back to the
//! system with the last of its bytes.

use bytes::Bytes;
use memmap2::MmapMut;

/// Smaller buffers come from the allocator: they are many, alike, and soon used again.
const MAPPED_BYTES_MIN: usize = 64 << 10;

/// A buffer of a fixed size that is filled from its start.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    filled: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Heap(memory) => memory,
            Self::Mapped(memory) => memory,
        }
    }
}

impl Buffer {
    /// Room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mapped = (capacity >= MAPPED_BYTES_MIN).then(|| MmapMut::map_anon(capacity).ok()).flatten();
        let memory = mapped.map_or_else(|| Memory::Heap(vec![0; capacity]), Memory::Mapped);
        Self { memory, filled: 0 }
    }

    /// Bytes that were filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing was filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// What is not filled yet; zeros.
    pub fn room(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(memory) => &mut memory[self.filled..],
            Memory::Mapped(memory) => &mut memory[self.filled..],
        }
    }

    /// The first `len` bytes of the room were written.
    ///
    /// # Panics
    /// If there was no such room.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.room().len(), "more bytes were written than there was room for");
        self.filled += len;
    }

    /// Fills in `bytes`.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// What was filled.
    pub fn freeze(self) -> Bytes {
        let filled = self.filled;
        match self.memory {
            Memory::Heap(mut memory) => {
                memory.truncate(filled);
                memory.into()
            }
            mapped @ Memory::Mapped(_) => Bytes::from_owner(mapped).slice(..filled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_size_holds_what_was_filled_in() {
        for capacity in [0, 1, MAPPED_BYTES_MIN - 1, MAPPED_BYTES_MIN, 3_000_001] {
            let bytes: Vec<u8> = (0..capacity).map(|n| n as u8).collect();
            let mut buffer = Buffer::with_capacity(capacity);

            buffer.extend_from_slice(&bytes[..capacity / 2]);
            buffer.room().copy_from_slice(&bytes[capacity / 2..]);
            buffer.advance(capacity - capacity / 2);

            assert_eq!((buffer.len(), buffer.room().len()), (capacity, 0));
            assert!(buffer.freeze() == bytes);
        }
    }

    #[test]
    fn a_buffer_that_was_not_filled_is_as_long_as_what_was() {
        for capacity in [10, 1 << 20] {
            let mut buffer = Buffer::with_capacity(capacity);

            buffer.extend_from_slice(b"abc");

            assert_eq!(buffer.freeze(), b"abc".as_slice());
        }
    }
}
