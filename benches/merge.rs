//! The write path without a door: segments through the merger onto a local disk, until they are durable.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::catalog::Catalog;
use esker::catalog::command::{About, Bind, Command};
use esker::catalog::slate::Journal;
use esker::catalog::state::State;
use esker::config::Config;
use esker::daemon::journal_settings;
use esker::merge::{Merger, MergerParts, Parcel, Piece};
use esker::metrics::Metrics;
use esker::model::{CheckpointId, JobId, SegmentCrc, StateScope, Writer};
use esker::runtime::{ByteBudget, Clock, Entropy, TaskGroup};
use tokio_util::sync::CancellationToken;

fn job() -> JobId {
    "00000000000000000000000000000001".parse().unwrap()
}

/// 4 KiB go into the catalog, 64 KiB into a physical file.
fn store(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut group = c.benchmark_group("merge_store");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for size in [4 << 10, 64 << 10] {
        for writers in [1, 64] {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let (merger, catalog) = runtime.block_on(open(folder.path()));
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(size.to_string(), writers), |b| {
                b.iter_custom(|segments| runtime.block_on(store_all(&merger, size, writers, segments)));
            });
            runtime.block_on(async {
                merger.close();
                merger.tasks().wait().await;
                catalog.close().await.unwrap();
            });
        }
    }
    group.finish();
}

async fn open(folder: &Path) -> (Merger, Catalog) {
    let flags = [("store.url".to_owned(), format!("file:{}", folder.display()))];
    let settings = Config::load(None, &flags).unwrap().settings().unwrap();
    let (clock, metrics) = (Clock::System, Metrics::new());
    let entropy = Entropy::from_os(clock.clone());
    let opened = esker::store::open(&settings.store, None, &metrics, &entropy).await.unwrap();
    let mut state = State::default();
    let journal_settings = journal_settings(&opened.catalog, &settings.catalog);
    let journal = Journal::open(opened.catalog, journal_settings, |key, value| state.load(&key, &value)).await;
    let tasks = || TaskGroup::new(CancellationToken::new());
    let catalog = Catalog::start(state, journal.unwrap(), clock, &metrics, &tasks());
    catalog.execute(Command::CreateJob(job())).await.unwrap();
    let budget = ByteBudget::new(settings.limits.memory_bytes, metrics.in_flight_bytes.clone());
    let parts = MergerParts::new(Arc::new(settings), opened.data, catalog.clone(), budget, entropy, metrics, tasks());
    (Merger::new(parts), catalog)
}

async fn store_all(merger: &Merger, size: usize, writers: usize, segments: u64) -> Duration {
    let data = Bytes::from(vec![0x5a; size]);
    let crc = SegmentCrc::of(&data);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers as u64 {
        let (merger, data, crc) = (merger.clone(), data.clone(), crc.clone());
        tasks.spawn(async move {
            for _ in (writer..segments).step_by(writers) {
                merger.store(parcel(&merger, data.clone(), crc.clone())).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    begun.elapsed()
}

fn parcel(merger: &Merger, data: Bytes, crc: SegmentCrc) -> Parcel {
    let about = About {
        job: job(),
        scope: StateScope::Exclusive,
        writer: Writer { subtask: None, task_manager: None },
        checkpoint: Some(CheckpointId(1)),
        name: None,
    };
    let pieces = vec![Piece { id: merger.new_id(), about, data, crc }];
    Parcel { pieces, bind: Bind::Checkpoint { idempotency_key: None }, paid: None }
}

criterion_group!(benches, store);
criterion_main!(benches);
