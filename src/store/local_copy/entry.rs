//! One entry of the local copy, version 1: a run of bytes of a physical file, in a file of its own.
//!
//! All numbers are little endian, all checksums CRC-32C.
//!
//! ```text
//! head   (32 bytes)  0  magic "ESKERLC1"       8  first byte of the run u64   16 its length u64
//!                   24  CRC of the name of the physical file u32
//!                   28  CRC of bytes 0..28 and of the table u32
//! table              CRC of each page u32; a page is 64 KiB of the run, the last may be shorter
//! data               the run
//! ```
//!
//! It is called like the physical file with `@` for `/`, then `@<first byte>-<length>`. It is not synced: after a power
//! cut anything may be there, and its checksums tell.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use crc_fast::{CrcAlgorithm, Digest};

use super::run::ByteRun;
use crate::format::ReadAt;
use crate::model::{PhysicalFileId, crc32c};
use crate::runtime::Buffer;

const MAGIC: &[u8; 8] = b"ESKERLC1";
const HEAD_BYTES: u64 = 32;
/// The fewest bytes that are read and checked.
const PAGE_BYTES: u64 = 64 << 10;
/// The bytes that file systems give out at a time.
const DISK_BLOCK_BYTES: u64 = 4 << 10;

/// Bytes before the data of an entry.
fn data_offset(len: u64) -> u64 {
    HEAD_BYTES + 4 * len.div_ceil(PAGE_BYTES)
}

/// Bytes of an entry's file.
pub(super) fn file_len(run: ByteRun) -> u64 {
    data_offset(run.len) + run.len
}

/// Bytes that an entry takes on a disk.
pub(super) fn disk_bytes(run: ByteRun) -> u64 {
    file_len(run).next_multiple_of(DISK_BLOCK_BYTES)
}

/// The name of an entry's file.
pub(super) fn name(file: &PhysicalFileId, run: ByteRun) -> String {
    format!("{}@{}-{}", file.as_str().replace('/', "@"), run.start, run.len)
}

/// Reads the name of an entry's file; `None` if no entry is called so.
pub(super) fn parse_name(name: &str) -> Option<(PhysicalFileId, ByteRun)> {
    let (file, run) = name.rsplit_once('@')?;
    let (start, len) = run.split_once('-')?;
    let run = ByteRun { start: start.parse().ok()?, len: len.parse().ok()? };
    let file = file.replace('@', "/").parse().ok()?;
    (run.len > 0 && run.start.checked_add(run.len).is_some() && self::name(&file, run) == name).then_some((file, run))
}

/// Writes an entry to a new file at `path`.
///
/// # Errors
/// The operating system's error; a part of the entry may be there then.
pub(super) fn write(path: &Path, file: &PhysicalFileId, run: ByteRun, parts: &[Bytes]) -> io::Result<()> {
    let mut to = File::create(path)?;
    to.write_all(&head(file, run, parts))?;
    for part in parts {
        to.write_all(part)?;
    }
    Ok(())
}

/// Head and table.
fn head(file: &PhysicalFileId, run: ByteRun, parts: &[Bytes]) -> Vec<u8> {
    let table = table(parts);
    let mut out = Vec::with_capacity(HEAD_BYTES as usize + table.len());
    out.put_slice(MAGIC);
    out.put_u64_le(run.start);
    out.put_u64_le(run.len);
    out.put_u32_le(crc32c(file.as_str().as_bytes()));
    let sum = crc32c(&[&out, table.as_slice()].concat());
    out.put_u32_le(sum);
    out.put_slice(&table);
    out
}

fn table(parts: &[Bytes]) -> Vec<u8> {
    let mut table = vec![];
    let mut page = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut room = PAGE_BYTES as usize;
    for mut part in parts.iter().map(|part| part.as_ref()) {
        while !part.is_empty() {
            let (now, rest) = part.split_at(part.len().min(room));
            page.update(now);
            room -= now.len();
            part = rest;
            if room == 0 {
                table.put_u32_le(page.finalize() as u32);
                page = Digest::new(CrcAlgorithm::Crc32Iscsi);
                room = PAGE_BYTES as usize;
            }
        }
    }
    if room < PAGE_BYTES as usize {
        table.put_u32_le(page.finalize() as u32);
    }
    table
}

/// Reads bytes `range` of the physical file, which are in `run`, from the entry at `path`. None if the entry is
/// damaged, or another's.
///
/// # Errors
/// The operating system's error.
pub(super) fn read(path: &Path, file: &PhysicalFileId, run: ByteRun, range: Range<u64>) -> io::Result<Option<Bytes>> {
    let entry = File::open(path)?;
    let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let mut head = vec![0; usize::try_from(data_offset(run.len)).map_err(too_large)?];
    if entry.read_at(0, &mut head)? < head.len() {
        return Ok(None);
    }
    let Some(table) = checked_table(&head, file, run) else { return Ok(None) };
    let wanted = range.start - run.start..range.end - run.start;
    let pages = wanted.start / PAGE_BYTES..wanted.end.div_ceil(PAGE_BYTES);
    let from = pages.start * PAGE_BYTES;
    let to = (pages.end * PAGE_BYTES).min(run.len);
    let mut buffer = Buffer::with_capacity(usize::try_from(to - from).map_err(too_large)?);
    let read = entry.read_at(data_offset(run.len) + from, buffer.room())?;
    buffer.advance(read);
    let bytes = buffer.freeze();
    let sums = table.chunks_exact(4).map(|mut sum| sum.get_u32_le()).skip(pages.start as usize);
    let whole = bytes.len() as u64 == to - from;
    if !whole || !bytes.chunks(PAGE_BYTES as usize).zip(sums).all(|(page, sum)| crc32c(page) == sum) {
        return Ok(None);
    }
    Ok(Some(bytes.slice((wanted.start - from) as usize..(wanted.end - from) as usize)))
}

/// The table behind a head that is whole and belongs to this run of this file.
fn checked_table<'a>(head: &'a [u8], file: &PhysicalFileId, run: ByteRun) -> Option<&'a [u8]> {
    let (mut fields, table) = head.split_at_checked(HEAD_BYTES as usize)?;
    let vouched = &fields[..28];
    let magic = fields.copy_to_bytes(8);
    let (start, len, name, sum) = (fields.get_u64_le(), fields.get_u64_le(), fields.get_u32_le(), fields.get_u32_le());
    let ours = magic == MAGIC.as_slice() && (ByteRun { start, len }) == run && name == crc32c(file.as_str().as_bytes());
    (ours && sum == crc32c(&[vouched, table].concat())).then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PhysicalFileId {
        PhysicalFileId::new(None, 1, 2)
    }

    fn bytes(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    #[test]
    fn any_range_of_an_entry_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        for len in [1, 65_536, 65_537, 200_001] {
            let (path, data) = (folder.path().join("e"), bytes(len));
            let run = ByteRun { start: 1000, len: len as u64 };
            let parts = [data.slice(..len / 3), data.slice(len / 3..len / 3), data.slice(len / 3..)];
            write(&path, &file(), run, &parts).unwrap();

            for (from, to) in [(0, len), (0, 1), (len - 1, len), (len / 2, len), (len / 3, (len / 3 + 70_000).min(len))]
            {
                let read = read(&path, &file(), run, 1000 + from as u64..1000 + to as u64).unwrap();
                assert!(read.unwrap() == data[from..to], "{from}..{to} of {len}");
            }
            assert_eq!(std::fs::metadata(&path).unwrap().len(), file_len(run));
        }
    }

    #[test]
    fn an_entry_with_any_bit_flipped_cut_short_or_of_another_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (path, data) = (folder.path().join("e"), bytes(70_000));
        let run = ByteRun { start: 0, len: 70_000 };
        write(&path, &file(), run, std::slice::from_ref(&data)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read_all = || read(&path, &file(), run, 0..70_000).unwrap();
        assert!(read_all().unwrap() == data);

        for at in (0..60).chain([5000, 65_576, 70_039]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            assert!(read_all().is_none(), "byte {at}");
        }
        for len in [0, 20, 36, 40, 40_000, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(read_all().is_none(), "{len} bytes");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(read(&path, &PhysicalFileId::new(None, 1, 3), run, 0..10).unwrap().is_none());
        assert!(read(&path, &file(), ByteRun { start: 5, ..run }, 5..10).unwrap().is_none());
    }

    #[test]
    fn a_name_says_what_an_entry_holds() {
        let run = ByteRun { start: 7, len: 9 };
        let name = name(&file(), run);

        assert_eq!(name, "data@_daemon@00000001-00000000000000000000000002@7-9");
        assert_eq!(parse_name(&name), Some((file(), run)));
        let whole = name.strip_suffix("@7-9").unwrap();
        for bad in ["", "LOCK", whole, &format!("{whole}@07-9"), &format!("{whole}@7-0"), &format!("{name}0@")] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    /// Entries that an older daemon wrote stay readable, or are replaced, by a version of their own.
    #[test]
    fn version_1_is_as_specified() {
        let head = head(&file(), ByteRun { start: 1, len: 3 }, &[Bytes::from_static(b"abc")]);

        assert_eq!(hex::encode(head), SAMPLE);
    }

    const SAMPLE: &str = "45534b45524c433101000000000000000300\
        000000000000ca12089a17a31354b73f4b36";
}
