//! Physical files in memory: checksums, frames, footers, and the walk over the frames of a torn file.

// A bench has no callers to inform.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::format::{FRAME_BYTES, FooterEntry, HEADER_BYTES, Header, encode_end, encode_frame, encode_header, scan};
use esker::model::{About, Label, Millis, SegmentCrc, SegmentId, StateScope, Writer, crc32c};

const SIZES: [usize; 3] = [4 << 10, 64 << 10, 4 << 20];
const SEGMENTS: u32 = 256;

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment_crc");
    for size in SIZES {
        let data: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &data, |b, data| {
            b.iter(|| SegmentCrc::of(black_box(data)));
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("format");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode_frame", |b| b.iter(|| encode_frame(black_box(7), black_box(65536), black_box(9))));
    let entries: Vec<FooterEntry> = (0..SEGMENTS).map(entry).collect();
    group.throughput(Throughput::Elements(u64::from(SEGMENTS)));
    group.bench_function("encode_end", |b| b.iter(|| encode_end(black_box(&entries), 1 << 24, 1)));
    let file = torn_file(64 << 10);
    group.throughput(Throughput::Bytes(file.len() as u64));
    group.bench_function("scan", |b| {
        b.iter(|| {
            let scan = scan(black_box(&file[..]), 0, file.len() as u64).unwrap();
            assert_eq!(scan.frames.len(), SEGMENTS as usize);
        });
    });
    group.finish();
}

fn entry(index: u32) -> FooterEntry {
    let len = 64 << 10;
    FooterEntry {
        id: SegmentId(u128::from(index)),
        offset: HEADER_BYTES + u64::from(index) * (FRAME_BYTES + len) + FRAME_BYTES,
        len,
        crc32c: index,
        about: About {
            job: "00000000000000000000000000000001".parse().unwrap(),
            scope: StateScope::Exclusive,
            writer: Writer { subtask: None, task_manager: Some(Label::parse("task manager", "tm-1").unwrap()) },
            checkpoint: None,
            name: None,
        },
        savepoint: false,
    }
}

/// A file without an end, as a crash leaves it.
fn torn_file(segment: usize) -> Vec<u8> {
    let data = vec![0x5a; segment];
    let mut file = encode_header(&Header { epoch: 1, ulid: 1, created: Millis(1) }).to_vec();
    for index in 0..SEGMENTS {
        file.extend_from_slice(&encode_frame(index, segment as u64, crc32c(&data)));
        file.extend_from_slice(&data);
    }
    file
}

criterion_group!(benches, checksum, frames);
criterion_main!(benches);
