//! The catalog: what a commit costs in memory, and how many are durable in a second on a local disk.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::catalog::Catalog;
use esker::catalog::command::{Bind, Command, NewSegment, Store, StoreFile, StoreItem};
use esker::catalog::slate::{Journal, JournalSettings};
use esker::catalog::state::CatalogState;
use esker::metrics::Metrics;
use esker::model::{
    About, CheckpointId, JobId, Lane, LaneOf, Location, Millis, PhysicalFileId, Segment, SegmentCrc, SegmentId,
    StateScope, Writer,
};
use esker::runtime::{Clock, TaskGroup};
use esker::store::{DiskSpace, Placement, Traffic};
use tokio_util::sync::CancellationToken;

/// Commands of one run of the state.
const COMMANDS: u64 = 256;
/// Bytes of an inline segment.
const INLINE_BYTES: usize = 4 << 10;

fn job() -> JobId {
    "00000000000000000000000000000001".parse().unwrap()
}

fn segment(id: u64, location: Location, inline: Option<Bytes>) -> StoreItem {
    let about = About {
        job: job(),
        scope: StateScope::Exclusive,
        writer: Writer { subtask: None, task_manager: None },
        checkpoint: Some(CheckpointId(1)),
        name: None,
    };
    let new = NewSegment { id: SegmentId(u128::from(id)), about, location, inline, crc: SegmentCrc::default() };
    StoreItem { segments: vec![new], bind: Bind::Checkpoint { idempotency_key: None, run: None } }
}

fn in_file(id: u64) -> Command {
    let (len, file) = (64 << 10, PhysicalFileId::new(Some(&job()), 1, 1));
    let location = Location::File(Segment { file: file.clone(), offset: id * len, len });
    let lane = Lane { job: Some(job()), scope: StateScope::Exclusive, of: LaneOf::All };
    let file = StoreFile { id: file, lane, len: (id + 1) * len, closes: false, upload: None };
    Command::Store(Store { file: Some(file), items: vec![segment(id, location, None)] })
}

/// The pure state machine: one segment in one command, and the records that it leaves to be written.
fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("catalog");
    group.throughput(Throughput::Elements(COMMANDS));
    let setup = || {
        let mut state = CatalogState::default();
        state.apply(Command::CreateJob(job()), Millis(1)).unwrap();
        (state, (0..COMMANDS).map(in_file).collect::<Vec<_>>())
    };
    group.bench_function("apply_store", |b| {
        b.iter_batched(
            setup,
            |(mut state, commands)| {
                for command in commands {
                    state.apply(command, Millis(2)).unwrap();
                }
                (state.take_mutations(), state)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// Inline segments of 4 KiB, committed by so many at the same time: they share the syncs of the log.
fn commit(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let catalog = runtime.block_on(async {
        let metrics = Metrics::new();
        let traffic = Traffic::catalog(metrics.clone());
        let placement =
            Placement::Local { folder: folder.path().join("catalog"), traffic, space: DiskSpace::default() };
        let mut state = CatalogState::default();
        let journal = Journal::open(placement, JournalSettings::local(), |key, value| state.load(&key, &value));
        let journal = journal.await.unwrap();
        let tasks = TaskGroup::new(CancellationToken::new());
        let catalog = Catalog::start(state, journal, Clock::System, &metrics, &tasks);
        catalog.execute(Command::CreateJob(job())).await.unwrap();
        catalog
    });
    let mut group = c.benchmark_group("catalog_commit");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for committers in [1, 16, 64] {
        group.bench_function(BenchmarkId::from_parameter(committers), |b| {
            b.iter_custom(|commits| runtime.block_on(commit_all(&catalog, committers, commits)));
        });
    }
    group.finish();
    runtime.block_on(catalog.close()).unwrap();
}

async fn commit_all(catalog: &Catalog, committers: usize, commits: u64) -> Duration {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = NEXT.fetch_add(commits, Ordering::Relaxed);
    let data = Bytes::from_static(&[0x5a; INLINE_BYTES]);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for committer in 0..committers {
        let (catalog, data) = (catalog.clone(), data.clone());
        tasks.spawn(async move {
            for id in (first..first + commits).skip(committer).step_by(committers) {
                let location = Location::Inline { len: INLINE_BYTES as u64 };
                let items = vec![segment(id, location, Some(data.clone()))];
                catalog.store(Store { file: None, items }).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    begun.elapsed()
}

criterion_group!(benches, apply, commit);
criterion_main!(benches);
