//! A run of bytes: what an entry of the local copy holds.

/// A run of bytes of a physical file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ByteRun {
    /// Its first byte.
    pub start: u64,
    /// Number of bytes, never zero.
    pub len: u64,
}

impl ByteRun {
    pub(super) fn end(self) -> u64 {
        self.start + self.len
    }

    pub(super) fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}
