//! Writing past the page cache.
//!
//! On the disks measured, a large write through the page cache and its `fdatasync` take about five times as long as the
//! same bytes written with `O_DIRECT`. Such a write has to begin and end at a block of the disk and come from aligned
//! memory, so a group is cut in three: its first bytes, up to the next block, and its last ones go through the page cache,
//! the blocks between them go directly. One `fdatasync` makes all of it durable.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use crossbeam::queue::ArrayQueue;

use super::append_file::AppendFile;

/// Offset, length and memory of a direct write are multiples of this.
const BLOCK: usize = 4096;
/// Bytes of one direct write.
const WRITE_BYTES: usize = 1 << 20;
/// Groups below this go through the page cache: the file system's own costs outweigh the copy there.
const DIRECT_BYTES_MIN: u64 = 256 << 10;
/// The first letters of the name of a trial's file.
const TRIAL: &str = ".direct-";
/// Buffers that are kept for the next write.
const BUFFERS_KEPT: usize = 8;

/// Aligned buffers, used again and again.
#[derive(Debug, Clone)]
pub(super) struct DirectBuffers {
    free: Arc<ArrayQueue<Vec<u8>>>,
}

impl Default for DirectBuffers {
    fn default() -> Self {
        Self { free: Arc::new(ArrayQueue::new(BUFFERS_KEPT)) }
    }
}

impl DirectBuffers {
    fn take(&self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| vec![0; WRITE_BYTES + BLOCK])
    }

    fn give_back(&self, buffer: Vec<u8>) {
        // `Err` gives the buffer back, to be freed: enough are kept.
        self.free.push(buffer).unwrap_or_else(drop);
    }
}

/// A second way into a file that is being appended to.
#[derive(Debug)]
pub(super) struct DirectWriter {
    file: File,
    buffers: DirectBuffers,
}

impl DirectWriter {
    /// Opens the file at `path` for direct writes; `None` where the file system does not know them.
    pub(super) fn open(path: &Path, buffers: DirectBuffers) -> Option<Self> {
        let flags = rustix::fs::OFlags::DIRECT.bits();
        let file = OpenOptions::new().write(true).custom_flags(flags.cast_signed()).open(path).ok()?;
        Some(Self { file, buffers })
    }

    /// Whether files in `folder` take direct writes: one is written that never had a name, so that no crash leaves it; where
    /// the file system has no such files, one that loses its name before its first byte. Some file systems open such a file
    /// and refuse the write.
    ///
    /// # Errors
    /// The operating system's error for the first step that fails.
    pub(super) fn probe(folder: &Path, name: &str) -> io::Result<()> {
        let (mut file, direct) = match AppendFile::nameless(folder) {
            Ok((file, path)) => (file, Self::open(&path, DirectBuffers::default())),
            Err(_) => {
                let path = folder.join(format!("{TRIAL}{name}"));
                let file = AppendFile::create(&path)?;
                let direct = Self::open(&path, DirectBuffers::default());
                std::fs::remove_file(&path)?;
                (file, direct)
            }
        };
        let direct = direct.ok_or_else(|| io::Error::other("the file system knows no direct writes"))?;
        direct.append(&mut file, vec![vec![0; 2 * WRITE_BYTES].into()])?;
        file.sync_bytes()
    }

    /// Appends `parts` to `file`, the blocks in their middle directly. Returns the offset of the first byte.
    ///
    /// # Errors
    /// The operating system's error. As after [`AppendFile::append`], `file` is as before if the disk has no room, and
    /// otherwise poisoned.
    pub(super) fn append(&self, file: &mut AppendFile, parts: Vec<Bytes>) -> io::Result<u64> {
        let offset = file.len();
        self.append_in_three(file, parts).inspect_err(|error| file.undo(offset, error))
    }

    fn append_in_three(&self, file: &mut AppendFile, mut parts: Vec<Bytes>) -> io::Result<u64> {
        let offset = file.len();
        let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let head = (offset.next_multiple_of(BLOCK as u64) - offset).min(total);
        let middle = (total - head) / BLOCK as u64 * BLOCK as u64;
        if total < DIRECT_BYTES_MIN {
            return append_all(file, &parts);
        }
        append_all(file, &take(&mut parts, head))?;
        let begin = file.len();
        self.write_blocks(begin, take(&mut parts, middle))?;
        file.grown_by(middle)?;
        append_all(file, &parts)?;
        Ok(offset)
    }

    /// Writes whole blocks at `offset`, a multiple of a block.
    fn write_blocks(&self, mut offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let mut buffer = self.buffers.take();
        let aligned = buffer.as_ptr().align_offset(BLOCK);
        let room = &mut buffer[aligned..aligned + WRITE_BYTES];
        let mut filled = 0;
        for mut part in parts {
            while !part.is_empty() {
                let now = part.len().min(WRITE_BYTES - filled);
                room[filled..filled + now].copy_from_slice(&part[..now]);
                part.advance(now);
                filled += now;
                if filled == WRITE_BYTES {
                    self.file.write_all_at(room, offset)?;
                    offset += filled as u64;
                    filled = 0;
                }
            }
        }
        self.file.write_all_at(&room[..filled], offset)?;
        self.buffers.give_back(buffer);
        Ok(())
    }
}

/// Appends through the page cache.
fn append_all(file: &mut AppendFile, parts: &[Bytes]) -> io::Result<u64> {
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.append(&slices)
}

/// Takes the first `len` bytes off `parts`.
fn take(parts: &mut Vec<Bytes>, len: u64) -> Vec<Bytes> {
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    let mut taken = vec![];
    let mut rest = std::mem::take(parts).into_iter();
    for mut part in rest.by_ref() {
        let now = part.split_to(left.min(part.len()));
        left -= now.len();
        taken.push(now);
        if left == 0 {
            parts.push(part);
            break;
        }
    }
    parts.extend(rest);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_any_length_at_any_offset_are_written_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = AppendFile::create(&path).unwrap();
        let Some(writer) = DirectWriter::open(&path, DirectBuffers::default()) else {
            eprintln!("skipped: the file system of the temporary folder knows no direct writes");
            return;
        };
        let mut expected = vec![];
        for (round, len) in [10, 300_000, 1, 5_000_000, 4096, 1 << 20, 262_144, 77].into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + round) as u8).collect();
            let parts = bytes.chunks(70_001).map(Bytes::copy_from_slice).collect();

            let offset = writer.append(&mut file, parts).unwrap();
            file.sync().unwrap();

            assert_eq!(offset, expected.len() as u64);
            expected.extend_from_slice(&bytes);
            assert_eq!(file.len(), expected.len() as u64);
        }
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}
