//! The bytes of the log: log file header, frame, row.
//!
//! All integers are little-endian and unaligned. A log file is one header and then frames without
//! gaps; one frame is one group of batches that became durable together.
//!
//! ```text
//! log file header, 36 bytes
//!   magic      8   "ESKERLOG"
//!   version    u32 1
//!   number     u32 the place of this log file among those of its epoch, also in the file name; 0 on a local disk,
//!                  where no two log files of an epoch begin with the same frame
//!   epoch      u64 the writer epoch of every frame in this log file, also in the file name
//!   first_id   u64 the id of the first frame, also in the file name
//!   crc        u32 CRC32C of the 32 bytes before it
//!
//! frame, 36 bytes and the rows
//!   body_len   u32 bytes after the field `crc`, at least 28: zeros are never a frame
//!   crc        u32 CRC32C of `body_len` and of the body
//!   body:
//!   wal_id     u64 grows from frame to frame
//!   epoch      u64 as in the log file header
//!   durable_id u64 the last frame known to be durable when this one was written: a bad frame with
//!                  an id up to that was damaged later, it is not the tail of a crash
//!   row_count  u32 at least 1
//!   row*
//!
//! row
//!   flags      u8  bits 0 and 1: 0 value, 1 merge operand, 2 tombstone;
//!                  bit 2: has create_ts; bit 3: has expire_ts; the others are zero
//!   seq        u64 sequence number, shared by the rows of one batch
//!   key_len    u32
//!   value_len  u32 zero for a tombstone
//!   create_ts  i64 if flagged, milliseconds since 1970
//!   expire_ts  i64 if flagged, milliseconds since 1970
//!   key        key_len bytes
//!   value      value_len bytes
//! ```
//!
//! # Invariants
//! - No input makes a decoder panic or allocate more than the input justifies.
//! - What was encoded decodes to the same rows; SlateDB relies on every field.

use bytes::{Buf, Bytes};
use crc_fast::{CrcAlgorithm, Digest};
use slatedb::{RowEntry, ValueDeletable};

/// Bytes of a log file header.
pub(super) const LOG_FILE_HEADER_LEN: usize = 36;
/// Bytes of a frame in front of its rows.
pub(super) const FRAME_HEADER_LEN: usize = 36;
/// The largest body a frame may have; more than any group, less than `u32::MAX`.
pub(super) const FRAME_BODY_BYTES_MAX: usize = 1 << 30;

const MAGIC: [u8; 8] = *b"ESKERLOG";
const VERSION: u32 = 1;
/// Bytes of a frame that its own length does not count.
const FRAME_PREFIX_LEN: usize = 8;
const FRAME_BODY_LEN_MIN: usize = FRAME_HEADER_LEN - FRAME_PREFIX_LEN;
const ROW_LEN_MIN: usize = 17;

const KIND_MASK: u8 = 0b11;
const KIND_VALUE: u8 = 0;
const KIND_MERGE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const HAS_CREATE_TS: u8 = 1 << 2;
const HAS_EXPIRE_TS: u8 = 1 << 3;
const FLAGS_KNOWN: u8 = KIND_MASK | HAS_CREATE_TS | HAS_EXPIRE_TS;

/// Why some bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MalformedLog {
    /// The bytes end too early.
    #[error("the bytes end inside a {0}")]
    Short(&'static str),
    /// A checksum does not match.
    #[error("the checksum of a {0} does not match")]
    Checksum(&'static str),
    /// A field has a value that was never written.
    #[error("impossible {0}")]
    Field(&'static str),
    /// Written by a later version of this program.
    #[error("log format version {0} is unknown, this program knows up to {VERSION}")]
    Version(u32),
}

/// The first bytes of a log file, and its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogFileHeader {
    /// The writer epoch.
    pub epoch: u64,
    /// The id of the first frame.
    pub first_id: u64,
    /// Its place among the log files of the epoch; zero where the first id tells.
    pub number: u32,
}

impl LogFileHeader {
    /// Whether its owner began this log file because it could not write the first group of `earlier`, which so holds nothing that
    /// is not here.
    pub(super) fn replaces(&self, earlier: &Self) -> bool {
        (self.epoch, self.first_id) == (earlier.epoch, earlier.first_id) && self.number > earlier.number
    }

    /// The bytes at the start of the log file.
    pub(super) fn encode(self) -> [u8; LOG_FILE_HEADER_LEN] {
        let mut out = [0; LOG_FILE_HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_id.to_le_bytes());
        let crc = crc32c(&[&out[..32]]);
        out[32..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Short` if a crash cut it, otherwise what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MalformedLog> {
        let mut bytes = bytes.get(..LOG_FILE_HEADER_LEN).ok_or(MalformedLog::Short("log file header"))?;
        let crc = crc32c(&[&bytes[..32]]);
        let magic = bytes.copy_to_bytes(8);
        let version = bytes.get_u32_le();
        let number = bytes.get_u32_le();
        let header = Self { epoch: bytes.get_u64_le(), first_id: bytes.get_u64_le(), number };
        if bytes.get_u32_le() != crc {
            return Err(MalformedLog::Checksum("log file header"));
        }
        if magic != MAGIC[..] {
            return Err(MalformedLog::Field("magic of a log file"));
        }
        if version != VERSION {
            return Err(MalformedLog::Version(version));
        }
        Ok(header)
    }

    /// `<epoch>-<first id>.log`, both with twenty digits, so that names sort as log files do. A number goes behind them, with
    /// ten digits.
    pub(super) fn file_name(self) -> String {
        let Self { epoch, first_id, number } = self;
        match number {
            0 => format!("{epoch:020}-{first_id:020}.log"),
            _ => format!("{epoch:020}-{first_id:020}-{number:010}.log"),
        }
    }

    /// Reads a file name; `None` if the file is not a log file.
    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".log")?.split('-');
        let (epoch, first_id) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let number = parts.next().map_or(Ok(0), str::parse).ok()?;
        let header = Self { epoch, first_id, number };
        (header.file_name() == name).then_some(header)
    }
}

/// Collects rows and becomes one frame.
#[derive(Debug)]
pub(super) struct FrameBuilder {
    /// Room for the header, then the rows.
    bytes: Vec<u8>,
    row_count: u32,
    last_seq: u64,
}

impl FrameBuilder {
    /// Starts a frame in `buffer`, whose contents are dropped.
    pub(super) fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(FRAME_HEADER_LEN, 0);
        Self { bytes: buffer, row_count: 0, last_seq: 0 }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: &RowEntry) {
        let (kind, value): (u8, &[u8]) = match &row.value {
            ValueDeletable::Value(value) => (KIND_VALUE, value),
            ValueDeletable::Merge(value) => (KIND_MERGE, value),
            ValueDeletable::Tombstone => (KIND_TOMBSTONE, &[]),
        };
        let flags = kind | row.create_ts.map_or(0, |_| HAS_CREATE_TS) | row.expire_ts.map_or(0, |_| HAS_EXPIRE_TS);
        let out = &mut self.bytes;
        out.push(flags);
        out.extend_from_slice(&row.seq.to_le_bytes());
        out.extend_from_slice(&(row.key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        for timestamp in [row.create_ts, row.expire_ts].into_iter().flatten() {
            out.extend_from_slice(&timestamp.to_le_bytes());
        }
        out.extend_from_slice(&row.key);
        out.extend_from_slice(value);
        self.row_count += 1;
        self.last_seq = row.seq;
    }

    /// Number of rows in the frame.
    pub(super) fn row_count(&self) -> u32 {
        self.row_count
    }

    /// The sequence number of the last row.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Bytes of the frame so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Fills in the header and returns the finished frame.
    pub(super) fn seal(&mut self, wal_id: u64, epoch: u64, durable_id: u64) -> &[u8] {
        let body_len = (self.bytes.len() - FRAME_PREFIX_LEN) as u32;
        self.bytes[..4].copy_from_slice(&body_len.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&wal_id.to_le_bytes());
        self.bytes[32..36].copy_from_slice(&self.row_count.to_le_bytes());
        seal(&mut self.bytes, epoch, durable_id);
        &self.bytes
    }

    /// Gives the buffer back.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// Says in a frame who writes it and what is known to be durable, and makes its checksum right.
fn seal(frame: &mut [u8], epoch: u64, durable_id: u64) {
    frame[16..24].copy_from_slice(&epoch.to_le_bytes());
    frame[24..32].copy_from_slice(&durable_id.to_le_bytes());
    let crc = crc32c(&[&frame[..4], &frame[FRAME_PREFIX_LEN..]]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The same rows under the same id, as another owner writes them.
pub(super) fn sealed_anew(frame: &[u8], epoch: u64, durable_id: u64) -> Bytes {
    let mut frame = frame.to_vec();
    seal(&mut frame, epoch, durable_id);
    frame.into()
}

/// Bytes a row takes in a frame.
pub(super) fn row_len(row: &RowEntry) -> usize {
    let timestamps = usize::from(row.create_ts.is_some()) + usize::from(row.expire_ts.is_some());
    ROW_LEN_MIN + 8 * timestamps + row.key.len() + row.value.len()
}

/// A frame whose checksum is right; its rows are still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogFrame {
    /// The id.
    pub wal_id: u64,
    /// The writer epoch.
    pub epoch: u64,
    /// The last frame known to be durable when this one was written.
    pub durable_id: u64,
    /// Number of rows behind the header.
    pub row_count: u32,
    /// Bytes of header and rows.
    pub len: usize,
}

impl LogFrame {
    /// Reads and checks the frame at the start of `bytes`.
    ///
    /// # Errors
    /// The fault in the bytes; every torn or zero-filled frame ends here.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MalformedLog> {
        let frame = Self::peek(bytes)?;
        let crc = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if crc32c(&[&bytes[..4], &bytes[FRAME_PREFIX_LEN..frame.len]]) != crc {
            return Err(MalformedLog::Checksum("frame"));
        }
        if frame.row_count == 0 {
            return Err(MalformedLog::Field("row count of a frame"));
        }
        Ok(frame)
    }

    /// Reads the frame at the start of `bytes` without checking it.
    ///
    /// # Errors
    /// `Short` or `Field` if there cannot be a frame.
    pub(super) fn peek(bytes: &[u8]) -> Result<Self, MalformedLog> {
        let mut header = bytes.get(..FRAME_HEADER_LEN).ok_or(MalformedLog::Short("frame header"))?;
        let body_len = header.get_u32_le() as usize;
        if !(FRAME_BODY_LEN_MIN..=FRAME_BODY_BYTES_MAX).contains(&body_len) {
            return Err(MalformedLog::Field("length of a frame"));
        }
        let len = FRAME_PREFIX_LEN + body_len;
        if bytes.len() < len {
            return Err(MalformedLog::Short("frame"));
        }
        let _crc = header.get_u32_le();
        Ok(Self {
            wal_id: header.get_u64_le(),
            epoch: header.get_u64_le(),
            durable_id: header.get_u64_le(),
            row_count: header.get_u32_le(),
            len,
        })
    }

    /// Decodes the rows of this frame, which starts at the start of `bytes`.
    ///
    /// The rows share the memory of `bytes`.
    ///
    /// # Errors
    /// The fault in the rows, although the checksum was right: a bug, or another program's file.
    pub(super) fn rows(&self, bytes: &Bytes) -> Result<Vec<RowEntry>, MalformedLog> {
        if bytes.len() < self.len {
            return Err(MalformedLog::Short("frame"));
        }
        let mut rest = bytes.slice(FRAME_HEADER_LEN..self.len);
        let count = self.row_count as usize;
        if count > rest.len() / ROW_LEN_MIN {
            return Err(MalformedLog::Field("row count of a frame"));
        }
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            rows.push(decode_row(&mut rest)?);
        }
        if rest.is_empty() { Ok(rows) } else { Err(MalformedLog::Field("bytes behind the last row of a frame")) }
    }
}

fn decode_row(rest: &mut Bytes) -> Result<RowEntry, MalformedLog> {
    const SHORT: MalformedLog = MalformedLog::Short("row");
    if rest.len() < ROW_LEN_MIN {
        return Err(SHORT);
    }
    let flags = rest.get_u8();
    if flags & !FLAGS_KNOWN != 0 {
        return Err(MalformedLog::Field("flags of a row"));
    }
    let seq = rest.get_u64_le();
    let key_len = rest.get_u32_le() as usize;
    let value_len = rest.get_u32_le() as usize;
    let mut timestamp = |flag: u8| match flags & flag {
        0 => Ok(None),
        _ => rest.try_get_i64_le().map(Some).map_err(|_| SHORT),
    };
    let create_ts = timestamp(HAS_CREATE_TS)?;
    let expire_ts = timestamp(HAS_EXPIRE_TS)?;
    // Both came from a u32, so the sum fits a u64 on every machine this runs on.
    if (rest.len() as u64) < key_len as u64 + value_len as u64 {
        return Err(SHORT);
    }
    let key = rest.split_to(key_len);
    let value = rest.split_to(value_len);
    let value = match flags & KIND_MASK {
        KIND_VALUE => ValueDeletable::Value(value),
        KIND_MERGE => ValueDeletable::Merge(value),
        KIND_TOMBSTONE if value.is_empty() => ValueDeletable::Tombstone,
        _ => return Err(MalformedLog::Field("kind of a row")),
    };
    Ok(RowEntry { key, value, seq, create_ts, expire_ts })
}

/// CRC32C of the parts as if they were one.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_row() -> impl Strategy<Value = RowEntry> {
        let bytes = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let value = prop_oneof![
            bytes().prop_map(ValueDeletable::Value),
            bytes().prop_map(ValueDeletable::Merge),
            Just(ValueDeletable::Tombstone),
        ];
        let timestamp = || proptest::option::of(any::<i64>());
        (bytes(), value, any::<u64>(), timestamp(), timestamp())
            .prop_map(|(key, value, seq, create_ts, expire_ts)| RowEntry { key, value, seq, create_ts, expire_ts })
    }

    fn frame_of(rows: &[RowEntry]) -> Bytes {
        let mut builder = FrameBuilder::new(Vec::new());
        rows.iter().for_each(|row| builder.push(row));
        Bytes::copy_from_slice(builder.seal(7, 3, 5))
    }

    fn sample_rows() -> Vec<RowEntry> {
        let row = |key: &'static str, value, create_ts, expire_ts| RowEntry {
            key: Bytes::from(key),
            value,
            seq: 9,
            create_ts,
            expire_ts,
        };
        let value = ValueDeletable::Value(Bytes::from("v"));
        let merge = ValueDeletable::Merge(Bytes::from("m"));
        vec![
            row("a", value, Some(-1), None),
            row("b", merge, None, Some(2)),
            row("c", ValueDeletable::Tombstone, None, None),
        ]
    }

    /// Never change these: they are what older daemons left on disks.
    const STORED_HEADER_1: &str = "45534b45524c4f47010000000000000003000000000000000700000000000000346b3b6a";
    const STORED_FRAME_1: &str = "64000000fc360ba10700000000000000030000000000000005000000000000000300000004090000\
        00000000000100000001000000ffffffffffffffff61760909000000000000000100000001000000\
        0200000000000000626d020900000000000000010000000000000063";

    #[test]
    fn version_1_is_as_it_was_stored() {
        let header = LogFileHeader { epoch: 3, first_id: 7, number: 0 };
        let frame = frame_of(&sample_rows());

        assert_eq!(hex::encode(header.encode()), STORED_HEADER_1);
        assert_eq!(hex::encode(&frame), STORED_FRAME_1);
        let stored = Bytes::from(hex::decode(STORED_FRAME_1).unwrap());
        let rows = LogFrame::decode(&stored).unwrap().rows(&stored).unwrap();
        assert_eq!(rows, sample_rows());
    }

    #[test]
    fn file_names_sort_as_log_files_do_and_read_back() {
        let header = |epoch, first_id, number| LogFileHeader { epoch, first_id, number };
        let in_order = [header(9, 100, 1), header(9, 100, 2), header(9, 101, 3), header(10, 101, 1)];

        assert!(header(9, 100, 0).file_name() < header(10, 101, 0).file_name());
        assert!(in_order.is_sorted() && in_order.map(LogFileHeader::file_name).is_sorted());
        for header in in_order.into_iter().chain([header(9, 100, 0)]) {
            assert_eq!(LogFileHeader::from_file_name(&header.file_name()), Some(header));
            assert_eq!(LogFileHeader::decode(&header.encode()), Ok(header));
        }
        for other in ["FENCE", "1-2.log", "+0000000000000000009-00000000000000000100.log", "x"] {
            assert_eq!(LogFileHeader::from_file_name(other), None);
        }
    }

    #[test]
    fn zeros_are_not_a_frame() {
        assert_eq!(LogFrame::decode(&[0; 4096]), Err(MalformedLog::Field("length of a frame")));
    }

    proptest! {
        #[test]
        fn rows_survive_the_round_trip(rows in vec(any_row(), 1..20)) {
            let bytes = frame_of(&rows);

            let frame = LogFrame::decode(&bytes).unwrap();

            let lens: usize = rows.iter().map(row_len).sum();
            prop_assert_eq!(frame.len, FRAME_HEADER_LEN + lens);
            prop_assert_eq!((frame.wal_id, frame.epoch, frame.durable_id), (7, 3, 5));
            prop_assert_eq!(frame.rows(&bytes).unwrap(), rows);
        }

        #[test]
        fn a_frame_that_is_sealed_anew_has_the_same_rows(rows in vec(any_row(), 1..20)) {
            let bytes = sealed_anew(&frame_of(&rows), 8, 6);

            let frame = LogFrame::decode(&bytes).unwrap();

            prop_assert_eq!((frame.wal_id, frame.epoch, frame.durable_id), (7, 8, 6));
            prop_assert_eq!(frame.rows(&bytes).unwrap(), rows);
        }

        #[test]
        fn any_flipped_bit_is_noticed(rows in vec(any_row(), 1..4), at: usize, bit in 0..8u8) {
            let mut bytes = frame_of(&rows).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;

            prop_assert!(LogFrame::decode(&bytes).is_err());
        }

        #[test]
        fn any_cut_is_noticed(rows in vec(any_row(), 1..4), at: usize) {
            let bytes = frame_of(&rows);

            prop_assert!(LogFrame::decode(&bytes[..at % bytes.len()]).is_err());
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..400)) {
            let _ = LogFileHeader::decode(&bytes);
            let _ = LogFrame::decode(&bytes);
        }

        #[test]
        fn no_rows_make_the_decoder_panic(
            rows in vec(any_row(), 1..4),
            row_count: u32,
            flips in vec((any::<usize>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = frame_of(&rows).to_vec();
            let frame = LogFrame { row_count: row_count % 5, ..LogFrame::peek(&bytes).unwrap() };
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }

            let _ = frame.rows(&Bytes::from(bytes));
        }
    }
}
