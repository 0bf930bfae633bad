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

mod end;
mod frame;
mod header;
mod layout;
mod walk;

pub use end::{FooterEntry, Trailer, decode_footer, decode_trailer, encode_end, read_end, read_index};
pub use frame::{Frame, encode_frame, encode_frame_tail, encode_streamed_frame};
pub use header::{Header, decode_header, encode_header};
pub use layout::{FRAME_BYTES, FRAME_TAIL_BYTES, FormatError, HEADER_BYTES, ReadAt, TRAILER_BYTES, VERSION};
pub use walk::{FileScan, damaged_end, frame_end, holds_data_from, scan, walk};
