//! Sizes, errors and checksums that all parts of a physical file share.

use std::io;

use bytes::{BufMut, BytesMut};

use crate::model::crc32c;

/// Version of the format that is written.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: u64 = 64;
/// Bytes before the data of a frame.
pub const FRAME_BYTES: u64 = 32;
/// Bytes after the data of a streamed frame.
pub const FRAME_TAIL_BYTES: u64 = 16;
/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 64;

/// Why bytes are not what this format says.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes are not a physical file, or damaged at this place.
    #[error("{0}")]
    Damaged(&'static str),
    /// A later version of the daemon wrote it.
    #[error("the file has version {0} of the format, this daemon reads {VERSION}")]
    Version(u16),
    /// The bytes could not be read.
    #[error("the file could not be read")]
    Read(#[from] io::Error),
}

/// Bytes of a file, wherever it is.
pub trait ReadAt {
    /// Reads `buffer.len()` bytes at `offset`, or fewer at the end of the file.
    ///
    /// # Errors
    /// Whatever the storage says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Appends the checksum of what stands there.
pub(super) fn seal<const N: usize>(out: &mut BytesMut) -> [u8; N] {
    out.put_u32_le(crc32c(out));
    let mut array = [0; N];
    array.copy_from_slice(out);
    array
}

/// `bytes` without the checksum at their end, if it is right.
pub(super) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (fields, sum) = bytes.split_last_chunk::<4>()?;
    (crc32c(fields) == u32::from_le_bytes(*sum)).then_some(fields)
}
