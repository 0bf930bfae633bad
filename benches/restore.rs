//! A restore over a store that is far away: one bulk restore against one GET for each segment, through the native API.
//!
//! The store is in memory; each of its GETs waits 30 ms and brings 100 MB/s. Everything else is the daemon's own: the
//! native API and the engine behind it. Every way of reading is driven in every round, in turn; the table shows medians.
//!
//! `ESKER_BENCH_SEGMENTS` and `ESKER_BENCH_ROUNDS` change how much.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::clone_on_ref_ptr, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::api::exchange::Exchanges;
use esker::api::keys::KeyRing;
use esker::api::native::Native;
use esker::api::peers::Peers;
use esker::api::server::{Listener, Services, Serving};
use esker::config::{Config, KeysFile};
use esker::engine::{Engine, EngineOptions, Running};
use esker::metrics::Metrics;
use esker::metrics::labels::{DoorLabel, Purpose, StoreOperation};
use esker::runtime::{Clock, TaskGroup};
use esker::store::{Capabilities, CountedStore, DataStore, Multipart, ObjectFiles, Traffic};
use esker_client::Client;
use esker_client::wire::{BatchAnswer, BatchHead, RestoreRequest};
use futures::StreamExt;
use hyper_util::service::TowerToHyperService;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const JOB: &str = "job";
const SEGMENT_BYTES: usize = 64 << 10;
const LATENCY: Duration = Duration::from_millis(30);
const TIME_OF_A_BYTE: Duration = Duration::from_nanos(10);
const SUBTASKS: usize = 32;
const TASK_MANAGERS: usize = 8;
/// Below this, nothing is read ahead.
const MEMORY_WITHOUT_READ_AHEAD: u64 = 31 << 20;

/// A way to read everything.
#[derive(Debug, Clone, Copy)]
enum Way {
    Bulk,
    /// One GET each, so many at a time, with or without reading ahead.
    Single {
        at_once: usize,
        ahead: bool,
    },
}

fn main() {
    // Cargo's tests run benches, too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

async fn run() {
    let (segments, rounds) = (number("ESKER_BENCH_SEGMENTS", 10_000), number("ESKER_BENCH_ROUNDS", 5));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let daemons = Daemons::start(folder.path(), segments).await;
    let singles = [(16, true), (64, true), (16, false), (64, false)];
    let single = |(at_once, ahead)| Way::Single { at_once, ahead };
    let ways: Vec<Way> = [Way::Bulk].into_iter().chain(singles.map(single)).collect();
    let mut measured: Vec<Vec<(f64, u64)>> = vec![vec![]; ways.len()];
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let index = (turn + round) % ways.len();
            let (gets, begun) = (daemons.gets(), Instant::now());
            daemons.read(ways[index]).await;
            measured[index].push((begun.elapsed().as_secs_f64(), daemons.gets() - gets));
            // What was read ahead goes, so that the next way finds nothing of it.
            tokio::time::sleep(Duration::from_millis(3500)).await;
        }
    }
    println!("{segments} segments of {SEGMENT_BYTES} bytes, {LATENCY:?} a GET, {rounds} rounds: median (min..max)");
    for (way, mut rounds) in ways.into_iter().zip(measured) {
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, gets) = rounds[rounds.len() / 2];
        let (fastest, slowest) = (rounds[0].0, rounds[rounds.len() - 1].0);
        println!("{:<32} {gets:>6} GETs {seconds:>8.2} s ({fastest:.2}..{slowest:.2})", format!("{way:?}"));
    }
}

/// Two daemons with the same segments; one of them does not read ahead.
struct Daemons {
    ahead: Door,
    plain: Door,
}

impl Daemons {
    async fn start(folder: &Path, segments: usize) -> Self {
        Self {
            ahead: Door::open(&folder.join("ahead"), None, segments).await,
            plain: Door::open(&folder.join("plain"), Some(MEMORY_WITHOUT_READ_AHEAD), segments).await,
        }
    }

    async fn read(&self, way: Way) {
        match way {
            Way::Bulk => {
                let mut restore = self.ahead.client.restore(&checkpoint()).await.unwrap();
                let mut segments = 0;
                while restore.next().await.unwrap().is_some() {
                    segments += 1;
                }
                assert_eq!(segments, self.ahead.ids.len());
            }
            Way::Single { at_once, ahead } => {
                let Door { client, ids, .. } = if ahead { &self.ahead } else { &self.plain };
                let reads = futures::stream::iter(ids.iter().cloned()).map(|id| {
                    let client = client.clone();
                    tokio::spawn(async move { client.get(&id).await.unwrap().len() })
                });
                let bytes =
                    reads.buffer_unordered(at_once).map(Result::unwrap).fold(0, |sum, len| async move { sum + len });
                assert_eq!(bytes.await, ids.len() * SEGMENT_BYTES);
            }
        }
    }

    fn gets(&self) -> u64 {
        self.ahead.gets() + self.plain.gets()
    }
}

/// An engine on a store that is far away, with a native API.
struct Door {
    /// Kept: dropping it is a crash.
    _running: Running,
    /// What the store was asked for.
    metrics: Metrics,
    client: Client,
    /// Its segments, in the order of a restore.
    ids: Vec<String>,
}

impl Door {
    async fn open(folder: &Path, memory: Option<u64>, segments: usize) -> Self {
        let flags = [("store.url".to_owned(), format!("file:{}", folder.display()))];
        let mut settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        if let Some(memory) = memory {
            settings.limits.memory_bytes = memory;
            (settings.limits.reads_kept_bytes, settings.limits.writes_kept_bytes) = (0, 0);
            settings.limits.connections_bytes_max = 0;
        }
        let far = ThrottleConfig {
            wait_get_per_call: LATENCY,
            wait_get_per_byte: TIME_OF_A_BYTE,
            ..ThrottleConfig::default()
        };
        let store = Arc::new(ThrottledStore::new(InMemory::new(), far));
        // Counted here: what the engine counts is what it does on the folder.
        let metrics = Metrics::new();
        // Segments of this size are never uploaded in parts.
        let unused = Multipart::new(Arc::new(InMemory::new()), 1, Traffic::data(metrics.clone()));
        let far = CountedStore::new(store, Traffic::data(metrics.clone()));
        let data = DataStore::Object(ObjectFiles::new(
            Arc::new(far),
            unused,
            "bench".into(),
            Capabilities::OBJECT,
            &settings.store,
        ));
        let running =
            Engine::open(settings, EngineOptions { data: Some(data), ..EngineOptions::default() }).await.unwrap();
        let client = serve(&running).await;
        let ids = fill(&client, segments).await;
        Self { _running: running, metrics, client, ids }
    }

    fn gets(&self) -> u64 {
        self.metrics.store_requests.of((StoreOperation::Get, Purpose::Data)).get()
    }
}

/// Opens a native API.
async fn serve(running: &Running) -> Client {
    let engine = running.engine();
    let (limits, metrics) = (engine.settings().limits.clone(), engine.metrics());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Serving::new(
        limits.clone(),
        Peers::new(limits, metrics.clone(), engine.budgets()),
        Exchanges::new(DoorLabel::Native, engine.entropy().clone(), Clock::System, None),
        metrics.connections.of(DoorLabel::Native),
        TaskGroup::new(CancellationToken::new()),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let keys = KeyRing::new(engine.settings(), (KeysFile::default(), None), metrics.clone());
    let service = TowerToHyperService::new(Native::new(engine.clone(), keys).router());
    let services = Services { usual: service.clone(), when_full: service.clone(), without_tls: service };
    tokio::spawn(serving.accept(Listener::Tcp(listener, None), services));
    Client::new(&format!("http://{address}"), None).unwrap()
}

/// Stores the segments as subtasks do: all of them at the same time. Returns them in the order of a restore.
async fn fill(client: &Client, segments: usize) -> Vec<String> {
    client.create_job(JOB).await.unwrap();
    let numbers: Vec<usize> = (0..segments).collect();
    for batch in numbers.chunks(500) {
        let heads: Vec<(BatchHead, Bytes)> = batch.iter().map(|n| (head(*n), body(*n))).collect();
        let answers = client.put_many(JOB, &heads).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, BatchAnswer::Stored(_))));
    }
    client.complete(JOB, 1).await.unwrap();
    let mut ids = vec![];
    let mut restore = client.restore(&checkpoint()).await.unwrap();
    while let Some(segment) = restore.next().await.unwrap() {
        ids.push(segment.info.segment);
    }
    assert_eq!(ids.len(), segments);
    ids
}

fn checkpoint() -> RestoreRequest {
    RestoreRequest { job: Some(JOB.to_owned()), checkpoint: Some(1), ..RestoreRequest::default() }
}

fn head(n: usize) -> BatchHead {
    let subtask = n % SUBTASKS;
    BatchHead {
        checkpoint: Some(1),
        operator: Some("window".to_owned()),
        subtask: u32::try_from(subtask).ok(),
        parallelism: u32::try_from(SUBTASKS).ok(),
        task_manager: Some(format!("tm-{}", subtask * TASK_MANAGERS / SUBTASKS)),
        name: Some(format!("{n:08}")),
        ..BatchHead::default()
    }
}

fn body(n: usize) -> Bytes {
    (0..SEGMENT_BYTES / 8)
        .flat_map(|word| ((n * SEGMENT_BYTES + word) as u64).to_le_bytes())
        .collect::<Vec<u8>>()
        .into()
}
