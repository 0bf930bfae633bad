//! Frames: what stands before and after the data of a segment.

use bytes::{Buf, BufMut, BytesMut};

use super::layout::{FRAME_BYTES, FRAME_TAIL_BYTES, FormatError, ReadAt, checked, seal};

const FRAME_MAGIC: &[u8; 4] = b"EFRM";
const TAIL_MAGIC: &[u8; 4] = b"EFTL";
const KIND_DATA: u8 = 1;
const FLAG_STREAMED: u8 = 1;

/// A frame that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its number, from 0.
    pub index: u32,
    /// First byte of its data.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// CRC-32C of its data.
    pub crc32c: u32,
}

/// The bytes before the data of a frame.
pub fn encode_frame(index: u32, len: u64, data_crc32c: u32) -> [u8; FRAME_BYTES as usize] {
    frame(0, index, len, data_crc32c)
}

/// The bytes before the data of a frame whose checksum follows it.
pub fn encode_streamed_frame(index: u32, len: u64) -> [u8; FRAME_BYTES as usize] {
    frame(FLAG_STREAMED, index, len, 0)
}

fn frame(flags: u8, index: u32, len: u64, data_crc32c: u32) -> [u8; FRAME_BYTES as usize] {
    let mut out = BytesMut::with_capacity(32);
    out.put_slice(FRAME_MAGIC);
    out.put_u8(KIND_DATA);
    out.put_u8(flags);
    out.put_u16_le(0);
    out.put_u32_le(index);
    out.put_u64_le(len);
    out.put_u32_le(data_crc32c);
    out.put_u32_le(0);
    seal(&mut out)
}

/// The bytes behind the data of a streamed frame.
pub fn encode_frame_tail(index: u32, data_crc32c: u32) -> [u8; FRAME_TAIL_BYTES as usize] {
    let mut out = BytesMut::with_capacity(16);
    out.put_slice(TAIL_MAGIC);
    out.put_u32_le(index);
    out.put_u32_le(data_crc32c);
    seal(&mut out)
}

/// Reads the header of the frame at `at`, and its tail if it was streamed.
pub(super) fn read_frame_header<R: ReadAt + ?Sized>(
    file: &R,
    at: u64,
    len: u64,
) -> Result<Option<(Frame, u64)>, FormatError> {
    let mut header = [0; FRAME_BYTES as usize];
    if file.read_at(at, &mut header)? < header.len() || &header[..4] != FRAME_MAGIC {
        return Ok(None);
    }
    let Some(mut fields) = checked(&header) else { return Ok(None) };
    fields.advance(4);
    let (kind, flags) = (fields.get_u8(), fields.get_u8());
    fields.advance(2);
    let (index, data_len, mut crc32c) = (fields.get_u32_le(), fields.get_u64_le(), fields.get_u32_le());
    let offset = at + FRAME_BYTES;
    let Some(data_end) = offset.checked_add(data_len).filter(|end| *end <= len) else { return Ok(None) };
    let mut end = data_end;
    if flags & FLAG_STREAMED != 0 {
        let mut tail = [0; FRAME_TAIL_BYTES as usize];
        if file.read_at(data_end, &mut tail)? < tail.len() || &tail[..4] != TAIL_MAGIC {
            return Ok(None);
        }
        let Some(mut fields) = checked(&tail) else { return Ok(None) };
        fields.advance(8);
        crc32c = fields.get_u32_le();
        end += FRAME_TAIL_BYTES;
    }
    Ok((kind == KIND_DATA).then_some((Frame { index, offset, len: data_len, crc32c }, end)))
}
