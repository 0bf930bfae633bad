//! The head of a file.

use bytes::{Buf, BufMut, BytesMut};

use super::layout::{FormatError, HEADER_BYTES, VERSION, checked, seal};
use crate::model::Millis;

const HEADER_MAGIC: &[u8; 8] = b"ESKERPF1";

/// The first bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Epoch of the daemon that wrote it.
    pub epoch: u64,
    /// The ULID in its name.
    pub ulid: u128,
    /// When it was begun.
    pub created: Millis,
}

/// The header of a new file.
pub fn encode_header(header: &Header) -> [u8; HEADER_BYTES as usize] {
    let mut out = BytesMut::with_capacity(64);
    out.put_slice(HEADER_MAGIC);
    out.put_u16_le(VERSION);
    out.put_u16_le(0);
    out.put_u32_le(HEADER_BYTES as u32);
    out.put_u64_le(header.epoch);
    out.put_u128_le(header.ulid);
    out.put_u64_le(header.created.0);
    out.put_bytes(0, 12);
    seal(&mut out)
}

/// Reads the first [`HEADER_BYTES`] of a file.
///
/// # Errors
/// [`FormatError`] if they are not a header of this version.
pub fn decode_header(bytes: &[u8]) -> Result<Header, FormatError> {
    let bytes = bytes.get(..HEADER_BYTES as usize).ok_or(FormatError::Damaged("the header is cut off"))?;
    if &bytes[..8] != HEADER_MAGIC {
        return Err(FormatError::Damaged("the file does not begin like a physical file of esker"));
    }
    let mut fields = checked(bytes).ok_or(FormatError::Damaged("the header's checksum is wrong"))?;
    fields.advance(8);
    let version = fields.get_u16_le();
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    fields.advance(6);
    Ok(Header { epoch: fields.get_u64_le(), ulid: fields.get_u128_le(), created: Millis(fields.get_u64_le()) })
}
