//! The physical file: damage is noticed, a torn end loses nothing before it, and version 1 stays readable.

use bytes::Bytes;
use esker::format::{self, FileScan, FooterEntry, Frame, Header, ReadAt};
use esker::model::{About, CheckpointId, Label, Millis, SegmentId, StateScope, SubtaskKey, Writer, crc32c};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::pattern;

/// Written again with `ESKER_WRITE_SAMPLES=1`; a change of it is a change of the format.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/physical-file-v1.bin");
const ULID: u128 = 0x0193_5b1e_7c00_0102_0304_0506_0708_090a;

/// What is laid into a file.
#[derive(Debug, Clone)]
enum Part {
    Data(Vec<u8>),
    Streamed(Vec<u8>),
}

/// A file and what it holds.
struct Built {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    /// Where each frame ends.
    ends: Vec<u64>,
    entries: Vec<FooterEntry>,
    data_len: u64,
}

fn header() -> Header {
    Header { epoch: 7, ulid: ULID, created: Millis(1_700_000_000_123) }
}

fn build(parts: &[Part]) -> Built {
    let mut bytes = format::encode_header(&header()).to_vec();
    let (mut frames, mut ends, mut entries) = (vec![], vec![], vec![]);
    for part in parts {
        let index = frames.len() as u32;
        let offset = bytes.len() as u64 + format::FRAME_BYTES;
        match part {
            Part::Data(data) => {
                bytes.extend(format::encode_frame(index, data.len() as u64, crc32c(data)));
                bytes.extend(data);
            }
            Part::Streamed(data) => {
                bytes.extend(format::encode_streamed_frame(index, data.len() as u64));
                bytes.extend(data);
                bytes.extend(format::encode_frame_tail(index, crc32c(data)));
            }
        }
        let (Part::Data(data) | Part::Streamed(data)) = part;
        frames.push(Frame { index, offset, len: data.len() as u64, crc32c: crc32c(data) });
        entries.push(entry(index, offset, data));
        ends.push(bytes.len() as u64);
    }
    let data_len = bytes.len() as u64;
    bytes.extend(format::encode_end(&entries, data_len, ULID));
    Built { bytes, frames, ends, entries, data_len }
}

/// Every combination of fields that may be absent appears in the first four entries.
fn entry(index: u32, offset: u64, data: &[u8]) -> FooterEntry {
    let label = |text: &str| Some(Label::parse("label", text).unwrap());
    let known = index.is_multiple_of(2);
    let subtask = SubtaskKey { operator: label("map→sink").unwrap(), index, parallelism: 128 };
    FooterEntry {
        id: SegmentId(ULID + 1 + u128::from(index)),
        offset,
        len: data.len() as u64,
        crc32c: crc32c(data),
        about: About {
            job: "checkpoints/jobs/wörd-count".parse().unwrap(),
            scope: if known { StateScope::Shared } else { StateScope::Exclusive },
            writer: Writer {
                subtask: known.then_some(subtask),
                task_manager: if index < 2 { label("tm-1") } else { None },
            },
            checkpoint: (index != 1).then_some(CheckpointId(u64::from(index) + 40)),
            name: if index == 3 { None } else { label("s3://bucket/chk-41/0b5c") },
        },
        savepoint: false,
    }
}

fn sample() -> Built {
    build(&[
        Part::Data(pattern(1, 1)),
        Part::Streamed(pattern(2, 300)),
        Part::Data(pattern(3, 64)),
        Part::Data(pattern(4, 5)),
    ])
}

fn scan(bytes: &[u8]) -> FileScan {
    format::scan(bytes, 0, bytes.len() as u64).unwrap()
}

#[test]
fn the_stored_sample_of_version_1_is_read_back_exactly() {
    let wanted = sample();
    if std::env::var_os("ESKER_WRITE_SAMPLES").is_some() {
        std::fs::write(SAMPLE, &wanted.bytes).unwrap();
    }

    let stored = std::fs::read(SAMPLE).unwrap();
    let (found, entries) = format::read_index(&stored[..], stored.len() as u64).unwrap();
    let scan = scan(&stored);

    assert_eq!(found, header());
    assert_eq!(entries, wanted.entries);
    assert_eq!((scan.frames, scan.valid_len), (wanted.frames, wanted.data_len));
    assert!(stored == wanted.bytes, "the encoder writes other bytes than the stored sample");
}

#[test]
fn any_single_flipped_bit_is_noticed_or_harmless() {
    let built = sample();
    let len = built.bytes.len() as u64;

    for at in 0..built.bytes.len() {
        for bit in 0..8 {
            let mut bytes = built.bytes.clone();
            bytes[at] ^= 1 << bit;

            let found = scan(&bytes);
            assert!(built.frames.starts_with(&found.frames), "byte {at}: a frame that was never written");
            for frame in &found.frames {
                assert_eq!(crc32c(data_at(&bytes, frame.offset, frame.len)), frame.crc32c, "byte {at}");
            }
            if let Ok((found, entries)) = format::read_index(&bytes[..], len) {
                assert_eq!((found, &entries), (header(), &built.entries), "byte {at}");
                for entry in &entries {
                    let now = data_at(&bytes, entry.offset, entry.len);
                    let same = now == data_at(&built.bytes, entry.offset, entry.len);
                    assert_eq!(crc32c(now) == entry.crc32c, same, "byte {at}: changed data that still checks out");
                }
            }
        }
    }
}

fn data_at(bytes: &[u8], offset: u64, len: u64) -> &[u8] {
    &bytes[offset as usize..(offset + len) as usize]
}

#[test]
fn a_tail_torn_off_at_any_length_leaves_the_frames_before_it() {
    let built = sample();

    for cut in 0..=built.data_len {
        let whole = built.ends.iter().filter(|end| **end <= cut).count();
        let frames = built.frames[..whole].to_vec();
        let valid = if cut < format::HEADER_BYTES { 0 } else { built.ends[..whole].last().copied().unwrap_or(64) };

        let mut torn = built.bytes[..cut as usize].to_vec();
        assert_eq!(scan(&torn), FileScan { frames: frames.clone(), valid_len: valid }, "cut at {cut}");
        assert!(format::read_index(&torn[..], cut).is_err(), "cut at {cut}");

        // A disk that had grown the file but not written its last blocks shows zeros there.
        torn.resize(built.bytes.len(), 0);
        let padded = scan(&torn);
        assert!(built.frames.starts_with(&padded.frames), "zeros from {cut} on");
        assert!(padded.frames.len() >= frames.len(), "zeros from {cut} on");
    }
}

#[test]
fn a_walk_from_the_middle_finds_the_rest() {
    let built = sample();

    let found = format::scan(&built.bytes[..], built.ends[1], built.bytes.len() as u64).unwrap();

    assert_eq!(found, FileScan { frames: built.frames[2..].to_vec(), valid_len: built.data_len });
}

#[test]
fn a_later_version_is_told_apart_from_damage() {
    let mut bytes = format::encode_header(&header()).to_vec();
    bytes[8] = 2;
    let sum = crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());

    assert!(matches!(format::decode_header(&bytes), Err(format::FormatError::Version(2))));
}

#[test]
fn the_ends_of_two_files_do_not_make_one() {
    let one = build(&[Part::Data(vec![1])]);
    let mut bytes = one.bytes[..one.data_len as usize].to_vec();
    bytes.extend(format::encode_end(&one.entries, one.data_len, ULID + 1));

    let error = format::read_index(&bytes[..], bytes.len() as u64).unwrap_err();

    assert_eq!(error.to_string(), "header and trailer are of two files");
}

/// Everything that reads bytes, on any bytes; `len` may lie.
fn read_all_ways(bytes: &[u8], len: u64) {
    drop(format::decode_header(bytes));
    drop(format::decode_trailer(bytes, len));
    drop(format::read_index(bytes, len));
    drop(format::scan(bytes, 0, len));
    drop(format::scan(bytes, len / 2, len));
    if let Some(trailer) = bytes.last_chunk::<64>().and_then(|end| format::decode_trailer(end, len).ok()) {
        drop(format::decode_footer(bytes, &trailer));
    }
    let mut buffer = [0; 16];
    drop(bytes.read_at(len, &mut buffer));
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => vec(any::<u8>(), 1..200).prop_map(Part::Data),
        2 => vec(any::<u8>(), 1..200).prop_map(Part::Streamed),
    ]
}

/// Frames with right checksums around lengths that are lies.
fn any_lie() -> impl Strategy<Value = Vec<u8>> {
    let len = || prop_oneof![any::<u64>(), Just(u64::MAX), Just(0), 0..300_u64];
    prop_oneof![
        (any::<u32>(), len(), any::<u32>()).prop_map(|(i, len, crc)| format::encode_frame(i, len, crc).to_vec()),
        (any::<u32>(), len()).prop_map(|(i, len)| format::encode_streamed_frame(i, len).to_vec()),
        (any::<u32>(), any::<u32>()).prop_map(|(i, crc)| format::encode_frame_tail(i, crc).to_vec()),
        (0..1_u64 << 40).prop_map(|offset| format::encode_end(&[entry(0, offset, b"x")], offset, ULID).to_vec()),
        vec(any::<u8>(), 0..100),
    ]
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(parts in vec(any_part(), 0..12)) {
        let built = build(&parts);

        let (found, entries) = format::read_index(&built.bytes[..], built.bytes.len() as u64).unwrap();

        prop_assert_eq!((found, entries), (header(), built.entries));
        prop_assert_eq!(scan(&built.bytes), FileScan { frames: built.frames, valid_len: built.data_len });
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..2000), len in any::<u64>()) {
        read_all_ways(&bytes, bytes.len() as u64);
        read_all_ways(&bytes, len / 2);
    }

    #[test]
    fn no_lie_makes_the_parser_panic(lies in vec(any_lie(), 0..8), len in 0..5000_u64) {
        let mut bytes = format::encode_header(&header()).to_vec();
        lies.iter().for_each(|lie| bytes.extend(lie));

        read_all_ways(&bytes, bytes.len() as u64);
        read_all_ways(&bytes, len);
        let found = scan(&bytes);
        prop_assert!(found.valid_len <= bytes.len() as u64);
    }

    #[test]
    fn damage_never_brings_a_frame_that_was_not_written(
        parts in vec(any_part(), 1..8),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let built = build(&parts);
        let mut bytes = built.bytes.clone();
        for (at, value) in &damage {
            *at.get_mut(&mut bytes) = *value;
        }

        let found = scan(&bytes);

        prop_assert!(built.frames.starts_with(&found.frames));
        for frame in &found.frames {
            prop_assert_eq!(crc32c(data_at(&bytes, frame.offset, frame.len)), frame.crc32c);
        }
        if let Ok((_, entries)) = format::read_index(&bytes[..], bytes.len() as u64) {
            prop_assert_eq!(entries, built.entries);
        }
    }
}

#[test]
fn an_end_without_segments_is_still_an_end() {
    let mut bytes = format::encode_header(&header()).to_vec();
    let end: Bytes = format::encode_end(&[], 64, ULID);
    bytes.extend(&end);

    let (_, entries) = format::read_index(&bytes[..], bytes.len() as u64).unwrap();

    assert_eq!(entries, vec![]);
}
