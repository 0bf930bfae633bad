//! The end of a closed file: a footer with an entry for each segment, and the trailer that finds it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header::{Header, decode_header};
use super::layout::{FormatError, HEADER_BYTES, ReadAt, TRAILER_BYTES, VERSION, checked};
use crate::model::{About, CheckpointId, Label, Segment, SegmentId, StateScope, SubtaskKey, Writer, crc32c};

const FOOTER_MAGIC: &[u8; 4] = b"EFTR";
const TRAILER_MAGIC: &[u8; 8] = b"ESKEREND";

/// One segment in the footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterEntry {
    /// Its identity.
    pub id: SegmentId,
    /// First byte of its data.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// CRC-32C of its data.
    pub crc32c: u32,
    /// The segment's description. On the S3 door its name is `s3://<bucket>/<key>`.
    pub about: About,
    /// Whether its checkpoint is a savepoint.
    pub savepoint: bool,
}

impl FooterEntry {
    /// The entry of a segment at this place of the file.
    pub fn new(id: SegmentId, about: About, place: &Segment, crc32c: u32, savepoint: bool) -> Self {
        Self { id, offset: place.offset, len: place.len, crc32c, about, savepoint }
    }
}

/// The last bytes of a closed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the footer begins.
    pub footer_offset: u64,
    /// Its bytes.
    pub footer_len: u64,
    /// Its CRC-32C.
    pub footer_crc32c: u32,
    /// The length of the file.
    pub file_len: u64,
    /// The ULID in the file's name.
    pub ulid: u128,
}

/// Footer and trailer of a file whose frames end at `footer_offset`.
pub fn encode_end(entries: &[FooterEntry], footer_offset: u64, ulid: u128) -> Bytes {
    let mut out = BytesMut::with_capacity(entries.len() * 128 + 128);
    out.put_slice(FOOTER_MAGIC);
    out.put_u32_le(entries.len() as u32);
    entries.iter().for_each(|entry| encode_entry(entry, &mut out));
    let (footer_len, footer_crc32c) = (out.len() as u64, crc32c(&out));
    let trailer = Trailer {
        footer_offset,
        footer_len,
        footer_crc32c,
        file_len: footer_offset + footer_len + TRAILER_BYTES,
        ulid,
    };
    out.put_slice(&encode_trailer(&trailer));
    out.freeze()
}

fn encode_entry(entry: &FooterEntry, out: &mut BytesMut) {
    let about = &entry.about;
    let start = out.len();
    out.put_u32_le(0);
    out.put_u128_le(entry.id.0);
    out.put_u64_le(entry.offset);
    out.put_u64_le(entry.len);
    out.put_u32_le(entry.crc32c);
    out.put_u8(u8::from(about.scope == StateScope::Exclusive));
    out.put_u8(u8::from(about.checkpoint.is_some()));
    out.put_u64_le(about.checkpoint.map_or(0, |checkpoint| checkpoint.0));
    let subtask = about.writer.subtask.as_ref();
    out.put_u8(u8::from(subtask.is_some()));
    out.put_u32_le(subtask.map_or(0, |subtask| subtask.index));
    out.put_u32_le(subtask.map_or(0, |subtask| subtask.parallelism));
    let operator = subtask.map_or("", |subtask| subtask.operator.as_str());
    let task_manager = about.writer.task_manager.as_ref().map_or("", Label::as_str);
    for text in [about.job.as_str(), operator, task_manager, about.name.as_ref().map_or("", Label::as_str)] {
        out.put_u16_le(text.len() as u16);
        out.put_slice(text.as_bytes());
    }
    if entry.savepoint {
        out.put_u8(1);
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

fn encode_trailer(trailer: &Trailer) -> [u8; TRAILER_BYTES as usize] {
    let mut out = BytesMut::with_capacity(64);
    out.put_u64_le(trailer.footer_offset);
    out.put_u64_le(trailer.footer_len);
    out.put_u32_le(trailer.footer_crc32c);
    out.put_u32_le(0);
    out.put_u64_le(trailer.file_len);
    out.put_u128_le(trailer.ulid);
    out.put_u16_le(VERSION);
    out.put_u16_le(0);
    out.put_u32_le(crc32c(&out));
    out.put_slice(TRAILER_MAGIC);
    let mut array = [0; TRAILER_BYTES as usize];
    array.copy_from_slice(&out);
    array
}

/// Everything a closed file says of itself.
///
/// # Errors
/// [`FormatError`] if it is damaged, or was not closed.
pub fn read_index<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<(Header, Vec<FooterEntry>), FormatError> {
    let mut header = [0; HEADER_BYTES as usize];
    let read = file.read_at(0, &mut header)?;
    let header = decode_header(&header[..read])?;
    let (trailer, entries) = read_end(file, len)?;
    if trailer.ulid != header.ulid {
        return Err(FormatError::Damaged("header and trailer are of two files"));
    }
    Ok((header, entries))
}

/// Reads the end of a closed file, and not its beginning.
///
/// # Errors
/// [`FormatError`] if it is damaged, or was not closed.
pub fn read_end<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<(Trailer, Vec<FooterEntry>), FormatError> {
    let at = len.checked_sub(TRAILER_BYTES).ok_or(FormatError::Damaged("the file is too short for a trailer"))?;
    let mut trailer = [0; TRAILER_BYTES as usize];
    let read = file.read_at(at, &mut trailer)?;
    let trailer = decode_trailer(&trailer[..read], len)?;
    let footer_len = usize::try_from(trailer.footer_len).map_err(|_| FormatError::Damaged("the footer is too long"))?;
    let mut footer = vec![0; footer_len];
    let read = file.read_at(trailer.footer_offset, &mut footer)?;
    let entries = decode_footer(&footer[..read], &trailer)?;
    Ok((trailer, entries))
}

/// Reads the last [`TRAILER_BYTES`] of a file of `file_len` bytes.
///
/// # Errors
/// [`FormatError`] if they are not the trailer of a file of that length and this version.
pub fn decode_trailer(bytes: &[u8], file_len: u64) -> Result<Trailer, FormatError> {
    let bytes: &[u8; TRAILER_BYTES as usize] =
        bytes.try_into().map_err(|_| FormatError::Damaged("the trailer is cut off"))?;
    if &bytes[56..] != TRAILER_MAGIC {
        return Err(FormatError::Damaged("the file does not end in a trailer: it was not closed"));
    }
    let mut fields = checked(&bytes[..56]).ok_or(FormatError::Damaged("the trailer's checksum is wrong"))?;
    let footer_offset = fields.get_u64_le();
    let footer_len = fields.get_u64_le();
    let footer_crc32c = fields.get_u32_le();
    fields.advance(4);
    let trailer =
        Trailer { footer_offset, footer_len, footer_crc32c, file_len: fields.get_u64_le(), ulid: fields.get_u128_le() };
    let version = fields.get_u16_le();
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let end = footer_offset.checked_add(footer_len).and_then(|end| end.checked_add(TRAILER_BYTES));
    if end != Some(trailer.file_len) || trailer.file_len != file_len || footer_offset < HEADER_BYTES {
        return Err(FormatError::Damaged("the trailer does not fit the length of the file"));
    }
    Ok(trailer)
}

/// Reads the footer that `trailer` points to.
///
/// # Errors
/// [`FormatError`] if the checksum is wrong or an entry points outside the frames.
pub fn decode_footer(bytes: &[u8], trailer: &Trailer) -> Result<Vec<FooterEntry>, FormatError> {
    if bytes.len() as u64 != trailer.footer_len || crc32c(bytes) != trailer.footer_crc32c {
        return Err(FormatError::Damaged("the footer's checksum is wrong"));
    }
    decode_entries(bytes, trailer).ok_or(FormatError::Damaged("an entry of the footer is damaged"))
}

fn decode_entries(mut bytes: &[u8], trailer: &Trailer) -> Option<Vec<FooterEntry>> {
    if bytes.len() < 8 || &bytes[..4] != FOOTER_MAGIC {
        return None;
    }
    bytes.advance(4);
    let count = bytes.get_u32_le() as usize;
    let mut entries = Vec::with_capacity(count.min(bytes.len() / 64));
    for _ in 0..count {
        let len = bytes.try_get_u32_le().ok()? as usize;
        let (entry, rest) = bytes.split_at_checked(len)?;
        let entry = decode_entry(entry)?;
        let end = entry.offset.checked_add(entry.len)?;
        if entry.len == 0 || entry.offset < HEADER_BYTES || end > trailer.footer_offset {
            return None;
        }
        entries.push(entry);
        bytes = rest;
    }
    bytes.is_empty().then_some(entries)
}

fn decode_entry(mut bytes: &[u8]) -> Option<FooterEntry> {
    let id = SegmentId(bytes.try_get_u128_le().ok()?);
    let offset = bytes.try_get_u64_le().ok()?;
    let len = bytes.try_get_u64_le().ok()?;
    let crc32c = bytes.try_get_u32_le().ok()?;
    let scope = match bytes.try_get_u8().ok()? {
        0 => StateScope::Shared,
        1 => StateScope::Exclusive,
        _ => return None,
    };
    let has_checkpoint = bytes.try_get_u8().ok()? == 1;
    let checkpoint = CheckpointId(bytes.try_get_u64_le().ok()?);
    let has_subtask = bytes.try_get_u8().ok()? == 1;
    let index = bytes.try_get_u32_le().ok()?;
    let parallelism = bytes.try_get_u32_le().ok()?;
    let mut text = || {
        let len = usize::from(bytes.try_get_u16_le().ok()?);
        let (text, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        std::str::from_utf8(text).ok()
    };
    let job = text()?.parse().ok()?;
    let (operator, task_manager, name) = (text()?, text()?, text()?);
    let label = |what, text: &str| match text {
        "" => Some(None),
        text => Label::parse(what, text).ok().map(Some),
    };
    let subtask = match label("operator", operator)? {
        Some(operator) if has_subtask => Some(SubtaskKey { operator, index, parallelism }),
        _ => None,
    };
    let about = About {
        job,
        scope,
        writer: Writer { subtask, task_manager: label("task-manager", task_manager)? },
        checkpoint: has_checkpoint.then_some(checkpoint),
        name: label("name", name)?,
    };
    Some(FooterEntry { id, offset, len, crc32c, about, savepoint: bytes.first() == Some(&1) })
}
