//! The bytes of a ledger of deletes, version 1.
//!
//! # Source
//! All numbers are little endian.
//!
//! ```text
//! header, 20 bytes
//!   magic      8 bytes `ESKERDL1`
//!   epoch      u64 of the owner who writes the file
//!   crc        u32 CRC32C of the 16 bytes before it
//! entry
//!   body_len   u32 1 to 65,536
//!   crc        u32 CRC32C of `body_len` and of the body
//!   body       bucket, key, entity tag (each a length as a varint, then UTF-8), when it was put (varint, milliseconds), and
//!              the id of its first segment (0 for an object of no bytes, or 1 and a varint of 128 bits), as postcard has them
//! ```
//!
//! An entry of which not all is there, or that does not fit its checksum, ends the file: nobody was answered for it.

use serde::{Deserialize, Serialize};

use crate::model::{Millis, SegmentId, crc32c};

const MAGIC: [u8; 8] = *b"ESKERDL1";
pub(super) const HEADER_LEN: usize = 20;
const PREFIX_LEN: usize = 8;
/// Keys are not longer than a few KiB.
const BODY_LEN_MAX: usize = 64 << 10;

/// An object that was deleted: enough to know it again, and no other one under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its entity tag.
    pub etag: String,
    /// When it was put.
    pub modified: Millis,
    /// The first of its segments, if it has bytes.
    pub first: Option<SegmentId>,
}

pub(super) fn encode_header(epoch: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&epoch.to_le_bytes());
    let crc = crc32c(&header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Whether the bytes begin as a ledger does.
fn has_header(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..HEADER_LEN) else { return false };
    header[..8] == MAGIC && header[16..] == crc32c(&header[..16]).to_le_bytes()
}

/// Appends an entry to `out`. False if it is too long, which no object is.
pub(super) fn encode(deleted: &DeletedObject, out: &mut Vec<u8>) -> bool {
    let Ok(body) = postcard::to_stdvec(deleted) else { return false };
    let Ok(len) = u32::try_from(body.len()) else { return false };
    if body.len() > BODY_LEN_MAX {
        return false;
    }
    out.extend(len.to_le_bytes());
    out.extend(crc_of(len, &body).to_le_bytes());
    out.extend(body);
    true
}

fn crc_of(len: u32, body: &[u8]) -> u32 {
    crc32c(&[&len.to_le_bytes(), body].concat())
}

/// The whole entries of a ledger, in order, and whether something follows them; `None` if it is no ledger of this version.
pub(super) fn decode(bytes: &[u8]) -> Option<(Vec<DeletedObject>, bool)> {
    if !has_header(bytes) {
        return None;
    }
    let (mut rest, mut all) = (&bytes[HEADER_LEN..], vec![]);
    while let Some((deleted, after)) = decode_one(rest) {
        all.push(deleted);
        rest = after;
    }
    Some((all, !rest.is_empty()))
}

fn decode_one(bytes: &[u8]) -> Option<(DeletedObject, &[u8])> {
    let (prefix, rest) = bytes.split_at_checked(PREFIX_LEN)?;
    let number = |at: usize| prefix[at..at + 4].try_into().map(u32::from_le_bytes);
    let (len, crc) = (number(0).ok()?, number(4).ok()?);
    let body_len = usize::try_from(len).ok().filter(|len| (1..=BODY_LEN_MAX).contains(len))?;
    let (body, rest) = rest.split_at_checked(body_len)?;
    if crc_of(len, body) != crc {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deleted(number: u64) -> DeletedObject {
        DeletedObject {
            bucket: "flink".to_owned(),
            key: format!("d/chk-{number}/ä"),
            etag: format!("{number:032x}"),
            modified: Millis(1_700_000_000_000 + number),
            first: (number > 0).then_some(SegmentId(number.into())),
        }
    }

    fn ledger(entries: u64) -> Vec<u8> {
        let mut bytes = encode_header(7).to_vec();
        (0..entries).for_each(|number| assert!(encode(&deleted(number), &mut bytes)));
        bytes
    }

    #[test]
    fn a_ledger_of_version_1_is_read() {
        let stored = include_bytes!("../../../tests/data/delete-ledger-v1.bin");

        assert_eq!(decode(stored), Some(((0..3).map(deleted).collect(), false)));
        assert_eq!(ledger(3), stored);
    }

    #[test]
    fn what_is_torn_or_damaged_ends_it() {
        let (two, three) = (ledger(2).len(), ledger(3));
        for len in two + 1..three.len() {
            assert_eq!(decode(&three[..len]), Some(((0..2).map(deleted).collect(), true)), "{len}");
        }
        for at in two..three.len() {
            let mut damaged = three.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), Some(((0..2).map(deleted).collect(), true)), "{at}");
        }
        assert_eq!(decode(&[&ledger(1)[..], &[0; 4096]].concat()), Some((vec![deleted(0)], true)));
    }

    #[test]
    fn what_is_no_ledger_is_not_read() {
        for len in 0..HEADER_LEN {
            assert_eq!(decode(&ledger(1)[..len]), None);
        }
        let mut newer = ledger(1);
        newer[7] = b'2';
        assert_eq!(decode(&newer), None);
    }

    #[test]
    fn a_key_that_no_object_has_is_refused() {
        let mut bytes = vec![];
        assert!(!encode(&DeletedObject { key: "x".repeat(BODY_LEN_MAX), ..deleted(1) }, &mut bytes));
        assert!(bytes.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let behind_a_header = [&encode_header(1)[..], &bytes].concat();
            prop_assert!(decode(&behind_a_header).is_some());
            decode(&bytes);
        }
    }
}
