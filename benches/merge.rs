//! The write path without a door: segments through the merger onto a local disk, until they are durable.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::clone_on_ref_ptr, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::config::Config;
use esker::engine::intake::Whole;
use esker::engine::{Background, Engine, EngineOptions, Running};
use esker::model::{About, CheckpointId, JobId, SegmentCrc, StateScope, Writer};

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
            let running = runtime.block_on(open(folder.path()));
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(size.to_string(), writers), |b| {
                b.iter_custom(|segments| runtime.block_on(store_all(running.engine(), size, writers, segments)));
            });
            runtime.block_on(running.stop()).unwrap();
        }
    }
    group.finish();
}

async fn open(folder: &Path) -> Running {
    let flags = [("store.url".to_owned(), format!("file:{}", folder.display()))];
    let settings = Config::load(None, &flags).unwrap().settings().unwrap();
    let running = Engine::open(settings, EngineOptions { background: Background::OnCall, ..EngineOptions::default() })
        .await
        .unwrap();
    running.engine().create_job(&job()).await.unwrap();
    running
}

async fn store_all(engine: &Engine, size: usize, writers: usize, segments: u64) -> Duration {
    let data = Bytes::from(vec![0x5a; size]);
    let crc = SegmentCrc::of(&data);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers as u64 {
        let (engine, data, crc) = (engine.clone(), data.clone(), crc.clone());
        tasks.spawn(async move {
            for _ in (writer..segments).step_by(writers) {
                let whole = Whole { data: data.clone(), crc: crc.clone(), paid: None };
                engine.store(about(), None, None, whole).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    begun.elapsed()
}

fn about() -> About {
    About {
        job: job(),
        scope: StateScope::Exclusive,
        writer: Writer { subtask: None, task_manager: None },
        checkpoint: Some(CheckpointId(1)),
        name: None,
    }
}

criterion_group!(benches, store);
criterion_main!(benches);
