//! Bytes that were written can be read back, and bytes that could not be written never were.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::{SegmentHasher, StateScope};
use crate::store::DataStore;
use crate::store::memory::{Fault, MemoryFiles};

const ULID: u128 = 42;

fn id() -> PhysicalFileId {
    PhysicalFileId::new(None, 3, ULID)
}

fn lane(of: LaneOf) -> Lane {
    Lane { job: None, scope: StateScope::Shared, of }
}

fn about() -> About {
    let job = "j".parse().unwrap();
    About { job, scope: StateScope::Shared, writer: Default::default(), checkpoint: None, name: None }
}

fn data(number: u128, len: usize) -> Bytes {
    vec![number as u8; len].into()
}

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Streamed(Vec<usize>),
    Write(Option<Fault>),
    Sync(Option<Fault>),
}

fn any_op() -> impl Strategy<Value = Op> {
    let fault = prop_oneof![6 => Just(None), 2 => Just(Some(Fault::Full)), 1 => Just(Some(Fault::Torn))];
    prop_oneof![
        4 => (1..200usize).prop_map(Op::Push),
        1 => vec(1..100usize, 1..4).prop_map(Op::Streamed),
        1 => fault.clone().prop_map(Op::Write),
        2 => fault.prop_map(Op::Sync),
    ]
}

/// Lays out a segment of these pieces. Returns its place.
fn push(file: &mut FileWriter, number: u128, op: &Op) -> (Segment, Bytes) {
    match op {
        Op::Streamed(lens) => {
            let all = data(number, lens.iter().sum());
            let mut hasher = SegmentHasher::default();
            hasher.update(&all);
            file.push_head(all.len() as u64);
            lens.iter().for_each(|len| file.push_data(data(number, *len)));
            let place = file.push_tail(SegmentId(number), &about(), all.len() as u64, &hasher.finish());
            (place, all)
        }
        Op::Push(len) => {
            let all = data(number, *len);
            (file.push(SegmentId(number), &about(), all.clone(), &SegmentCrc::of(&all)), all)
        }
        Op::Write(_) | Op::Sync(_) => panic!("no segment"),
    }
}

/// The segments that were written, and those that are laid out.
#[derive(Default)]
struct Model {
    written: Vec<(Segment, Bytes)>,
    laid_out: Vec<(Segment, Bytes)>,
}

fn check(model: &Model, bytes: &[u8]) {
    let (trailer, entries) = format::read_end(bytes, bytes.len() as u64).unwrap();
    let header = format::decode_header(bytes).unwrap();
    let frames = format::scan(bytes, 0, trailer.footer_offset).unwrap();

    assert_eq!((header.epoch, header.ulid, header.created, trailer.ulid), (3, ULID, Millis(9), ULID));
    assert_eq!(frames.valid_len, trailer.footer_offset);
    assert_eq!(frames.frames.len(), model.written.len());
    assert_eq!(entries.len(), model.written.len());
    for ((entry, frame), (place, data)) in entries.iter().zip(&frames.frames).zip(&model.written) {
        assert_eq!((entry.offset, entry.len), (place.offset, place.len));
        assert_eq!((frame.offset, frame.len, frame.crc32c), (entry.offset, entry.len, entry.crc32c));
        assert_eq!(&bytes[place.offset as usize..place.end() as usize], data);
        assert!(entry.savepoint);
    }
}

proptest! {
    #[test]
    fn a_growing_file_holds_what_was_written_whatever_failed_between(ops in vec(any_op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = MemoryFiles::default();
            let writes = FileWrites::Growing(Arc::new(store.clone()));
            let mut file = FileWriter::create(&writes, id(), &lane(LaneOf::Savepoint), Readers::AsItGrows, Millis(9)).await.unwrap();
            let mut model = Model::default();
            for (number, op) in (1..).zip(&ops) {
                let done = match op {
                    Op::Push(_) | Op::Streamed(_) => {
                        model.laid_out.push(push(&mut file, number, op));
                        continue;
                    }
                    Op::Write(fault) => {
                        store.plan(*fault);
                        file.write().await
                    }
                    Op::Sync(fault) => {
                        store.plan(*fault);
                        file.sync().await
                    }
                };
                let laid_out = std::mem::take(&mut model.laid_out);
                if done.is_ok() {
                    model.written.extend(laid_out);
                }
                if !file.is_usable() {
                    assert!(file.sync().await.is_err());
                    return;
                }
            }

            model.written.append(&mut model.laid_out);
            let len = file.push_end();
            file.sync().await.unwrap();

            let bytes = store.durable(&id());
            assert_eq!(bytes.len() as u64, len);
            check(&model, &bytes);
        });
    }
}

#[tokio::test]
async fn a_file_that_is_put_whole_has_the_same_bytes_as_one_that_grew() {
    let memory = MemoryFiles::default();
    let objects = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);
    let mut lens = vec![];
    for writes in [FileWrites::Growing(Arc::new(memory.clone())), FileWrites::Whole(objects.clone())] {
        let mut file =
            FileWriter::create(&writes, id(), &lane(LaneOf::All), Readers::AsItGrows, Millis(9)).await.unwrap();
        for (number, op) in (1..).zip([Op::Push(10), Op::Streamed(vec![3, 4]), Op::Push(1)]) {
            push(&mut file, number, &op);
            file.write().await.unwrap();
        }
        lens.push(file.push_end());
        file.sync().await.unwrap();
    }

    let grown = memory.durable(&id());
    let whole = DataStore::Object(objects).read(&id(), 0..lens[1]).await.unwrap();
    assert_eq!(lens[0], lens[1]);
    assert_eq!(whole, grown);
}

#[tokio::test]
async fn an_end_that_could_not_be_written_leaves_the_file_as_it_was() {
    let store = MemoryFiles::default();
    let writes = FileWrites::Growing(Arc::new(store.clone()));
    let mut file = FileWriter::create(&writes, id(), &lane(LaneOf::All), Readers::AsItGrows, Millis(9)).await.unwrap();
    push(&mut file, 1, &Op::Push(10));
    file.sync().await.unwrap();
    let len = file.len();

    file.push_end();
    store.plan(Some(Fault::Full));
    assert!(file.sync().await.is_err());

    assert_eq!((file.len(), store.durable(&id()).len() as u64), (len, len));
}
