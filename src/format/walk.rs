//! Walks over the frames of a file that has lost its end, and looks at single frames.

use super::end::{FooterEntry, read_end};
use super::frame::{Frame, read_frame_header};
use super::header::decode_header;
use super::layout::{FRAME_BYTES, FormatError, HEADER_BYTES, ReadAt};
use crate::model::{BLOCK_BYTES, SegmentHasher};

/// The bytes that file systems write at once.
const PAGE_BYTES: u64 = 4096;

/// The result of a walk over the frames of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileScan {
    /// The frames, in order.
    pub frames: Vec<Frame>,
    /// Everything before this offset is whole.
    pub valid_len: u64,
}

/// Walks the frames of a file of `len` bytes from `from` on (0: from its header), up to the first that is not whole.
///
/// `from` must be a place where a frame begins; what lies before it is taken as whole.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read; damage only ends the walk.
pub fn scan<R: ReadAt + ?Sized>(file: &R, from: u64, len: u64) -> Result<FileScan, FormatError> {
    let mut scan = FileScan { frames: vec![], valid_len: from };
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

/// The frame at `at`, and where it ends; `None` if it is not whole.
fn read_frame<R: ReadAt + ?Sized>(file: &R, at: u64, len: u64) -> Result<Option<(Frame, u64)>, FormatError> {
    let Some((frame, end)) = read_frame_header(file, at, len)? else { return Ok(None) };
    let whole = data_crc32c(file, frame.offset, frame.len)? == Some(frame.crc32c);
    Ok(whole.then_some((frame, end)))
}

/// Where the frame of a segment ends, in a file of `len` bytes, if its bytes are what `entry` says; `None` if they are not. A
/// frame whose own header is damaged ends with its data.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read.
pub fn frame_end<R: ReadAt + ?Sized>(file: &R, entry: &FooterEntry, len: u64) -> Result<Option<u64>, FormatError> {
    if data_crc32c(file, entry.offset, entry.len)? != Some(entry.crc32c) {
        return Ok(None);
    }
    let Some(at) = entry.offset.checked_sub(FRAME_BYTES) else { return Ok(Some(entry.offset + entry.len)) };
    let frame = read_frame_header(file, at, len)?.filter(|(frame, _)| frame.len == entry.len);
    Ok(Some(frame.map_or(entry.offset + entry.len, |(_, end)| end)))
}

/// Where the frame of a segment ends that was written as a whole and whose bytes are not what they were; `None` if they may
/// never have been written. What a crash keeps from a disk is missing by pages, which the file then shows as zeros.
///
/// # Errors
/// [`FormatError::Read`] if the bytes cannot be read.
pub fn damaged_end<R: ReadAt + ?Sized>(file: &R, entry: &FooterEntry, len: u64) -> Result<Option<u64>, FormatError> {
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

/// The CRC-32C of `len` bytes at `offset`; `None` if the file ends before.
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
