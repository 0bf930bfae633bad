//! Memory for bytes that are paid for.
//!
//! Bodies are large, of all sizes, and die in any order: an allocator keeps about as much again in fragments as is in
//! use, and the budget would bound half of the truth. So a large buffer is a mapping of its own. A new mapping costs a
//! page fault for every 4 KiB, more than reading the body does; so mappings come in sizes an eighth apart, and when the
//! last of its bytes is gone, one is kept for the next buffer, as far as [`Buffer::keep`] allows. A size is what has to be
//! paid for, see [`Buffer::cost`]: a mapping that was used before is in memory as a whole.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use memmap2::MmapMut;

/// Smaller buffers come from the allocator: they are many, alike, and soon used again.
const MAPPED_BYTES_MIN: usize = 1 << MAPPED_BITS_MIN;
const MAPPED_BITS_MIN: u32 = 16;
/// Larger mappings are not kept.
const KEPT_MAPPING_BYTES_MAX: usize = 8 << 20;
/// Mappings of one size that are kept.
const KEPT_OF_A_SIZE_MAX: usize = 1024;
/// Sizes of mappings from one power of two to the next.
const SIZES_PER_DOUBLING: usize = 8;

static KEPT: LazyLock<FreeMappings> = LazyLock::new(FreeMappings::new);

/// Mappings without an owner.
struct FreeMappings {
    /// The mappings, by size.
    mappings: Vec<ArrayQueue<MmapMut>>,
    bytes: AtomicUsize,
    bytes_max: AtomicUsize,
}

impl FreeMappings {
    fn new() -> Self {
        let sizes = (0..).map(size).take_while(|size| *size <= KEPT_MAPPING_BYTES_MAX);
        let mappings = sizes.map(|_| ArrayQueue::new(KEPT_OF_A_SIZE_MAX)).collect();
        Self { mappings, bytes: AtomicUsize::new(0), bytes_max: AtomicUsize::new(0) }
    }

    /// A mapping for `capacity` bytes; `None` if the system has no more.
    fn take(&self, capacity: usize) -> Option<MmapMut> {
        let number = number(capacity);
        let Some(mappings) = self.mappings.get(number) else { return MmapMut::map_anon(capacity).ok() };
        let Some(mapping) = mappings.pop() else { return MmapMut::map_anon(size(number)).ok() };
        self.bytes.fetch_sub(mapping.len(), Ordering::Relaxed);
        Some(mapping)
    }

    fn give_back(&self, mapping: MmapMut) {
        let len = mapping.len();
        let Some(mappings) = self.mappings.get(number(len)) else { return };
        let kept = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        let full = kept > self.bytes_max.load(Ordering::Relaxed);
        if full || mappings.push(mapping).is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
        }
    }
}

/// The sizes of mappings, from the smallest.
fn size(number: usize) -> usize {
    let power = MAPPED_BYTES_MIN << (number / SIZES_PER_DOUBLING);
    power + power / SIZES_PER_DOUBLING * (number % SIZES_PER_DOUBLING)
}

/// The number of the smallest size for at least [`MAPPED_BYTES_MIN`] bytes.
fn number(bytes: usize) -> usize {
    let doublings = (bytes.ilog2() - MAPPED_BITS_MIN) as usize;
    let power = MAPPED_BYTES_MIN << doublings;
    doublings * SIZES_PER_DOUBLING + (bytes - power).div_ceil(power / SIZES_PER_DOUBLING)
}

/// A buffer of a fixed size that is filled from its start.
#[derive(Debug)]
pub struct Buffer {
    memory: BufferMemory,
    capacity: usize,
    filled: usize,
}

#[derive(Debug)]
enum BufferMemory {
    Heap(Vec<u8>),
    Mapped(Mapping),
}

/// A mapping that is kept when it is dropped.
#[derive(Debug)]
struct Mapping(Option<MmapMut>);

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(mapping) = self.0.take() {
            KEPT.give_back(mapping);
        }
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Buffer {
    /// Keeps mappings of so many bytes at most for the next buffers of this process; none before the first call.
    pub fn keep(bytes: usize) {
        KEPT.bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of memory that a buffer of `capacity` bytes takes, an eighth more at most.
    pub fn cost(capacity: usize) -> usize {
        if (MAPPED_BYTES_MIN..=KEPT_MAPPING_BYTES_MAX).contains(&capacity) { size(number(capacity)) } else { capacity }
    }

    /// Room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mapped = (capacity >= MAPPED_BYTES_MIN).then(|| KEPT.take(capacity)).flatten();
        let memory = match mapped {
            Some(mapping) => BufferMemory::Mapped(Mapping(Some(mapping))),
            None => BufferMemory::Heap(vec![0; capacity]),
        };
        Self { memory, capacity, filled: 0 }
    }

    /// Bytes that were filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing was filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The part that is not filled yet; any bytes.
    pub fn room(&mut self) -> &mut [u8] {
        let memory = match &mut self.memory {
            BufferMemory::Heap(memory) => memory.as_mut_slice(),
            BufferMemory::Mapped(mapping) => mapping.0.as_deref_mut().unwrap_or_default(),
        };
        &mut memory[self.filled..self.capacity]
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

    /// Returns the part that was filled.
    pub fn freeze(self) -> Bytes {
        let filled = self.filled;
        match self.memory {
            BufferMemory::Heap(mut memory) => {
                memory.truncate(filled);
                memory.into()
            }
            BufferMemory::Mapped(mapping) => Bytes::from_owner(mapping).slice(..filled),
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

    #[test]
    fn every_size_is_the_smallest_that_holds_what_it_is_for() {
        for number_of in 0..100 {
            assert_eq!(number(size(number_of)), number_of);
            assert_eq!(number(size(number_of) + 1), number_of + 1);
        }
        assert_eq!([1, 65_535, 65_536, 65_537, 8 << 20].map(Buffer::cost), [1, 65_535, 65_536, 73_728, 8 << 20]);
    }

    #[test]
    fn a_mapping_that_is_kept_shows_nothing_of_its_past() {
        Buffer::keep(1 << 20);
        for capacity in [100_000, 90_000] {
            let mut buffer = Buffer::with_capacity(capacity);
            buffer.extend_from_slice(&vec![capacity as u8; capacity]);
            assert_eq!(buffer.room().len(), 0);
            let bytes = buffer.freeze();
            assert!(bytes.len() == capacity && bytes.iter().all(|byte| *byte == capacity as u8));
        }
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let kept = FreeMappings::new();
        kept.bytes_max.store(64 << 20, Ordering::Relaxed);

        let mappings: Vec<_> = (0..20).map(|_| kept.take(5 << 20).unwrap()).collect();
        mappings.into_iter().for_each(|mapping| kept.give_back(mapping));
        let after = kept.bytes.load(Ordering::Relaxed);
        let again = kept.take(5 << 20).unwrap();

        assert_eq!(after, 12 * (5 << 20));
        assert_eq!(kept.bytes.load(Ordering::Relaxed), after - again.len());
    }
}
