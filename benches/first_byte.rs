//! The first byte of a read against the size of what is read: of a segment, and of an object of many.
//!
//! The files are holes on a local disk; reader, catalog and leases are the daemon's own. The table shows medians of the time
//! until the first block is there, of reads of the whole and of the last bytes.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, unreachable_pub)]

use std::ops::Range;
use std::time::{Duration, Instant};

use esker::catalog::command::Command;
use esker::load::churn::instance::Instance;
use esker::load::churn::{ChurnSetting, ChurnStore};
use esker_test_support::zeros;
use futures::StreamExt;

use zeros::Zeros;

const MIB: u64 = 1 << 20;
const BUCKET: &str = "zeros";
const ROUNDS: usize = 101;

const OBJECTS: [Zeros; 6] = [
    Zeros { key: "1 MiB", segments: 1, segment_bytes: MIB, files: 1, number: 1 },
    Zeros { key: "1 GiB", segments: 1, segment_bytes: 1 << 30, files: 1, number: 2 },
    Zeros { key: "64 GiB", segments: 1, segment_bytes: 64 << 30, files: 1, number: 3 },
    Zeros { key: "100 parts in a file", segments: 100, segment_bytes: 8 * MIB, files: 1, number: 4 },
    Zeros { key: "10,000 parts in 100 files", segments: 10_000, segment_bytes: 8 * MIB, files: 100, number: 5 },
    Zeros { key: "10,000 parts, a file each", segments: 10_000, segment_bytes: 8 * MIB, files: 10_000, number: 6 },
];

fn main() {
    // Cargo's tests run benches, too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let setting = ChurnSetting { limit: 2.0, place: ChurnStore::Local, punch_holes: true };
    let instance = Instance::start(setting, Some(folder.path()), 1).await.unwrap();
    instance.catalog().execute(Command::CreateBucket(BUCKET.to_owned())).await.unwrap();
    println!("{:<28} {:>12} {:>12}", "", "whole", "last bytes");
    for object in OBJECTS {
        object.put(instance.catalog(), folder.path(), BUCKET).await;
        let whole = first_byte(&instance, object.key, 0..object.len()).await;
        let last = first_byte(&instance, object.key, object.len() - 1000..object.len()).await;
        println!("{:<28} {whole:>12.1?} {last:>12.1?}", object.key);
    }
    instance.stop().await.unwrap();
}

async fn first_byte(instance: &Instance, key: &str, range: Range<u64>) -> Duration {
    let mut took = vec![];
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let object = instance.engine().object(BUCKET, key).await.unwrap();
        let mut bytes = instance.engine().read_object(&object, range.clone()).await.unwrap();
        assert!(!bytes.next().await.unwrap().unwrap().is_empty());
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took[ROUNDS / 2]
}
