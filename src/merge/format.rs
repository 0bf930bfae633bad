//! The physical file, version 1: bytes on storage.
//!
//! Self-describing and readable from either end. All numbers are little endian, all checksums CRC-32C.
//!
//! ```text
//! file    = header frame* [footer trailer]
//!
//! header  (64 bytes)  0  magic "ESKERPF1"      8  version u16 = 1    10 reserved u16
//!                    12  header length u32    16  epoch u64          24 ULID of the file u128
//!                    40  created u64, ms      48  reserved 12 bytes  60 CRC of bytes 0..60
//! frame   (32 bytes)  0  magic "EFRM"          4  kind u8: 1 = data
//!                     5  flags u8: bit 0 = streamed                   6 reserved u16
//!                     8  index u32, from 0    12  length u64
//!                    20  CRC of the data u32 (0 when streamed)       24 reserved u32
//!                    28  CRC of bytes 0..28,  then `length` bytes
//!         streamed frames end in (16 bytes): 0 magic "EFTL"  4 index u32  8 CRC of the data u32  12 CRC of bytes 0..12
//! footer              0  magic "EFTR"          4  number of entries u32, then the entries
//! entry               0  length of what follows u32
//!                     4  segment id u128      20  offset u64         28 length u64       36 CRC of the data u32
//!                    40  scope u8: 0 shared, 1 exclusive             41 has checkpoint u8
//!                    42  checkpoint u64       50  has subtask u8     51 subtask index u32 55 parallelism u32
//!                    59  four texts, each length u16 and UTF-8: job, operator, task manager, name (empty: none)
//!                        u8, may be missing: 1 = the checkpoint is a savepoint
//! trailer (64 bytes)  0  footer offset u64     8  footer length u64  16 CRC of the footer u32
//!                    20  reserved u32         24  length of the file u64
//!                    32  ULID of the file u128 48 version u16         50 reserved u16
//!                    52  CRC of bytes 0..52   56  magic "ESKEREND"
//! ```
//!
//! A streamed frame is written before its checksum is known. A reader takes fields that it does not know at an entry's end as reserved.
//!
//! # Crash
//! A file whose end was torn off has no valid trailer; [`scan`] walks its frames up to the first that is not whole.
//! Nothing here trusts a length before it has checked what vouches for it, and nothing panics on any bytes.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::model::{
    BLOCK_BYTES, CheckpointId, JobId, Label, Millis, SegmentHasher, SegmentId, StateScope, SubtaskKey, Writer, crc32c,
};

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
/// What file systems write at once.
const PAGE_BYTES: u64 = 4096;

const HEADER_MAGIC: &[u8; 8] = b"ESKERPF1";
const FRAME_MAGIC: &[u8; 4] = b"EFRM";
const TAIL_MAGIC: &[u8; 4] = b"EFTL";
const FOOTER_MAGIC: &[u8; 4] = b"EFTR";
const TRAILER_MAGIC: &[u8; 8] = b"ESKEREND";
const KIND_DATA: u8 = 1;
const FLAG_STREAMED: u8 = 1;

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

/// What the head of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Epoch of the daemon that wrote it.
    pub epoch: u64,
    /// The ULID in its name.
    pub ulid: u128,
    /// When it was begun.
    pub created: Millis,
}

/// One segment in the footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its identity.
    pub id: SegmentId,
    /// First byte of its data.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// CRC-32C of its data.
    pub crc32c: u32,
    /// The job.
    pub job: JobId,
    /// The scope.
    pub scope: StateScope,
    /// Who wrote it.
    pub writer: Writer,
    /// The checkpoint it was written for.
    pub checkpoint: Option<CheckpointId>,
    /// Whether that is a savepoint.
    pub savepoint: bool,
    /// What the worker calls it; on the S3 door `s3://<bucket>/<key>`.
    pub name: Option<Label>,
}

/// What the end of a closed file says.
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

/// What a walk over the frames of a file found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// The frames, in order.
    pub frames: Vec<Frame>,
    /// Everything before this offset is whole.
    pub valid_len: u64,
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

/// What stands before the data of a frame.
pub fn encode_frame(index: u32, len: u64, data_crc32c: u32) -> [u8; FRAME_BYTES as usize] {
    frame(0, index, len, data_crc32c)
}

/// What stands before the data of a frame whose checksum follows it.
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

/// What stands after the data of a streamed frame.
pub fn encode_frame_tail(index: u32, data_crc32c: u32) -> [u8; FRAME_TAIL_BYTES as usize] {
    let mut out = BytesMut::with_capacity(16);
    out.put_slice(TAIL_MAGIC);
    out.put_u32_le(index);
    out.put_u32_le(data_crc32c);
    seal(&mut out)
}

/// Appends the checksum of what stands there.
fn seal<const N: usize>(out: &mut BytesMut) -> [u8; N] {
    out.put_u32_le(crc32c(out));
    let mut array = [0; N];
    array.copy_from_slice(out);
    array
}

/// Footer and trailer of a file whose frames end at `footer_offset`.
pub fn encode_end(entries: &[Entry], footer_offset: u64, ulid: u128) -> Bytes {
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

fn encode_entry(entry: &Entry, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u128_le(entry.id.0);
    out.put_u64_le(entry.offset);
    out.put_u64_le(entry.len);
    out.put_u32_le(entry.crc32c);
    out.put_u8(u8::from(entry.scope == StateScope::Exclusive));
    out.put_u8(u8::from(entry.checkpoint.is_some()));
    out.put_u64_le(entry.checkpoint.map_or(0, |checkpoint| checkpoint.0));
    let subtask = entry.writer.subtask.as_ref();
    out.put_u8(u8::from(subtask.is_some()));
    out.put_u32_le(subtask.map_or(0, |subtask| subtask.index));
    out.put_u32_le(subtask.map_or(0, |subtask| subtask.parallelism));
    let operator = subtask.map_or("", |subtask| subtask.operator.as_str());
    let task_manager = entry.writer.task_manager.as_ref().map_or("", Label::as_str);
    for text in [entry.job.as_str(), operator, task_manager, entry.name.as_ref().map_or("", Label::as_str)] {
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
pub fn decode_footer(bytes: &[u8], trailer: &Trailer) -> Result<Vec<Entry>, FormatError> {
    if bytes.len() as u64 != trailer.footer_len || crc32c(bytes) != trailer.footer_crc32c {
        return Err(FormatError::Damaged("the footer's checksum is wrong"));
    }
    decode_entries(bytes, trailer).ok_or(FormatError::Damaged("an entry of the footer is damaged"))
}

fn decode_entries(mut bytes: &[u8], trailer: &Trailer) -> Option<Vec<Entry>> {
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

fn decode_entry(mut bytes: &[u8]) -> Option<Entry> {
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
    Some(Entry {
        id,
        offset,
        len,
        crc32c,
        job,
        scope,
        writer: Writer { subtask, task_manager: label("task-manager", task_manager)? },
        checkpoint: has_checkpoint.then_some(checkpoint),
        savepoint: bytes.first() == Some(&1),
        name: label("name", name)?,
    })
}

/// `bytes` without the checksum at their end, if it is right.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (fields, sum) = bytes.split_last_chunk::<4>()?;
    (crc32c(fields) == u32::from_le_bytes(*sum)).then_some(fields)
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

/// Walks the frames of a file of `len` bytes from `from` on (0: from its header), up to the first that is not whole.
///
/// `from` must be a place where a frame begins; what lies before it is taken as whole.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read; damage only ends the walk.
pub fn scan<R: ReadAt + ?Sized>(file: &R, from: u64, len: u64) -> Result<Scan, FormatError> {
    let mut scan = Scan { frames: vec![], valid_len: from };
    if from == 0 {
        let mut header = [0; HEADER_BYTES as usize];
        if file.read_at(0, &mut header)? < header.len() || decode_header(&header).is_err() {
            return Ok(scan);
        }
        scan.valid_len = HEADER_BYTES;
    }
    while let Some((frame, end)) = read_frame(file, scan.valid_len, len)? {
        scan.frames.push(frame);
        scan.valid_len = end;
    }
    Ok(scan)
}

/// The frames of a file of `len` bytes by their headers alone, up to the first header that is not whole: also those whose
/// data was given back.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read; damage only ends the walk.
pub fn walk<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<Vec<Frame>, FormatError> {
    let mut frames = vec![];
    let mut at = HEADER_BYTES;
    while let Some((frame, end)) = read_frame_header(file, at, len)? {
        frames.push(frame);
        at = end;
    }
    Ok(frames)
}

/// The frame at `at`, and where it ends; none if it is not whole.
fn read_frame<R: ReadAt + ?Sized>(file: &R, at: u64, len: u64) -> Result<Option<(Frame, u64)>, FormatError> {
    let Some((frame, end)) = read_frame_header(file, at, len)? else { return Ok(None) };
    let whole = data_crc32c(file, frame.offset, frame.len)? == Some(frame.crc32c);
    Ok(whole.then_some((frame, end)))
}

/// Where the frame of a segment ends, in a file of `len` bytes, if its bytes are what `entry` says; none if they are not. A
/// frame whose own header is damaged ends with its data.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read.
pub fn frame_end<R: ReadAt + ?Sized>(file: &R, entry: &Entry, len: u64) -> Result<Option<u64>, FormatError> {
    if data_crc32c(file, entry.offset, entry.len)? != Some(entry.crc32c) {
        return Ok(None);
    }
    let Some(at) = entry.offset.checked_sub(FRAME_BYTES) else { return Ok(Some(entry.offset + entry.len)) };
    let frame = read_frame_header(file, at, len)?.filter(|(frame, _)| frame.len == entry.len);
    Ok(Some(frame.map_or(entry.offset + entry.len, |(_, end)| end)))
}

/// Where the frame of a segment ends that was written as a whole and whose bytes are not what they were; none if they may
/// never have been written. What a crash keeps from a disk is missing by pages, which the file then shows as zeros.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read.
pub fn damaged_end<R: ReadAt + ?Sized>(file: &R, entry: &Entry, len: u64) -> Result<Option<u64>, FormatError> {
    let Some(at) = entry.offset.checked_sub(FRAME_BYTES) else { return Ok(None) };
    let Some((frame, end)) = read_frame_header(file, at, len)? else { return Ok(None) };
    let is_it = frame.len == entry.len && frame.crc32c == entry.crc32c;
    Ok((is_it && !has_zero_page(file, frame.offset, frame.len)?).then_some(end))
}

/// Whether a file of `len` bytes holds data at `from` or behind: a frame begins there, or its footer names one.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read.
pub fn holds_data_from<R: ReadAt + ?Sized>(file: &R, from: u64, len: u64) -> Result<bool, FormatError> {
    if read_frame_header(file, from.max(HEADER_BYTES), len)?.is_some() {
        return Ok(true);
    }
    match read_end(file, len) {
        Ok((_, entries)) => Ok(entries.iter().any(|entry| entry.offset >= from)),
        Err(error @ FormatError::Read(_)) => Err(error),
        Err(FormatError::Damaged(_) | FormatError::Version(_)) => Ok(false),
    }
}

/// Whether what these bytes have of some page is zero.
fn has_zero_page<R: ReadAt + ?Sized>(file: &R, offset: u64, len: u64) -> Result<bool, FormatError> {
    let (mut at, end) = (offset, offset + len);
    let mut page = [0; PAGE_BYTES as usize];
    while at < end {
        let want = (PAGE_BYTES - at % PAGE_BYTES).min(end - at);
        let page = &mut page[..want as usize];
        let read = file.read_at(at, page)?;
        if read < page.len() || page.iter().all(|byte| *byte == 0) {
            return Ok(true);
        }
        at += want;
    }
    Ok(false)
}

/// What the header of the frame at `at` says, and its tail if it was streamed.
fn read_frame_header<R: ReadAt + ?Sized>(file: &R, at: u64, len: u64) -> Result<Option<(Frame, u64)>, FormatError> {
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

/// The CRC-32C of `len` bytes at `offset`; none if the file ends before.
fn data_crc32c<R: ReadAt + ?Sized>(file: &R, offset: u64, len: u64) -> Result<Option<u32>, FormatError> {
    let mut hasher = SegmentHasher::default();
    let mut buffer = vec![0; usize::try_from(len.min(BLOCK_BYTES)).unwrap_or(0)];
    let mut done = 0;
    while done < len {
        let want = usize::try_from((len - done).min(BLOCK_BYTES)).unwrap_or(0);
        if file.read_at(offset + done, &mut buffer[..want])? < want {
            return Ok(None);
        }
        hasher.update(&buffer[..want]);
        done += want as u64;
    }
    Ok(Some(hasher.finish().whole))
}

/// Everything a closed file says of itself.
///
/// # Errors
/// [`FormatError`] if it is damaged, or was not closed.
pub fn read_index<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<(Header, Vec<Entry>), FormatError> {
    let mut header = [0; HEADER_BYTES as usize];
    let read = file.read_at(0, &mut header)?;
    let header = decode_header(&header[..read])?;
    let (trailer, entries) = read_end(file, len)?;
    if trailer.ulid != header.ulid {
        return Err(FormatError::Damaged("header and trailer are of two files"));
    }
    Ok((header, entries))
}

/// What the end of a closed file says; its beginning is not read.
///
/// # Errors
/// [`FormatError`] if it is damaged, or was not closed.
pub fn read_end<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<(Trailer, Vec<Entry>), FormatError> {
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
