//! A restore over a store that is far away: one bulk restore against one GET for each segment, through the native API.
//!
//! The store is in memory; each of its GETs waits 30 ms and brings 100 MB/s. Everything else is the daemon's own: doors,
//! catalog, merger, reader. Every way of reading is driven in every round, in turn; the table shows medians.
//!
//! `ESKER_BENCH_SEGMENTS` and `ESKER_BENCH_ROUNDS` change how much.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::api::body::Admission;
use esker::api::native::Native;
use esker::api::peers::Peers;
use esker::api::server::{Listener, Serving};
use esker::api::wire::{BatchAnswer, BatchHead, RestoreRequest};
use esker::catalog::Catalog;
use esker::catalog::slate::Journal;
use esker::catalog::state::State;
use esker::client::Client;
use esker::config::{Config, Settings};
use esker::daemon::journal_settings;
use esker::merge::{Merger, MergerParts};
use esker::metrics::Metrics;
use esker::read::Reader;
use esker::reclaim::ReclaimControl;
use esker::runtime::{Budgets, Clock, Entropy, TaskGroup};
use esker::store::{Counted, DataStore, Multipart, ObjectFiles, Traffic};
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
    let daemons = Daemons::start(folder.path()).await;
    let ids = daemons.fill(segments).await;
    let singles = [(16, true), (64, true), (16, false), (64, false)];
    let single = |(at_once, ahead)| Way::Single { at_once, ahead };
    let ways: Vec<Way> = [Way::Bulk].into_iter().chain(singles.map(single)).collect();
    let mut measured: Vec<Vec<(f64, u64)>> = vec![vec![]; ways.len()];
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let index = (turn + round) % ways.len();
            let (gets, begun) = (daemons.gets(), Instant::now());
            daemons.read(ways[index], &ids).await;
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

/// Two doors on the same catalog and store; one of them does not read ahead.
struct Daemons {
    ahead: Client,
    plain: Client,
    metrics: Metrics,
}

impl Daemons {
    async fn start(folder: &Path) -> Self {
        let flags = [("store.url".to_owned(), format!("file:{}", folder.display()))];
        let settings = Arc::new(Config::load_with(None, [], &flags).unwrap().settings().unwrap());
        let (clock, metrics) = (Clock::System, Metrics::new());
        let entropy = Entropy::from_os(clock.clone());
        let opened = esker::store::open(&settings.store, None, &metrics, &entropy).await.unwrap();
        let far = ThrottleConfig {
            wait_get_per_call: LATENCY,
            wait_get_per_byte: TIME_OF_A_BYTE,
            ..ThrottleConfig::default()
        };
        // Segments of this size are never uploaded in parts.
        let unused = Multipart::new(Arc::new(InMemory::new()), 1, Traffic::data(metrics.clone()));
        let far = Counted::new(Arc::new(ThrottledStore::new(InMemory::new(), far)), Traffic::data(metrics.clone()));
        let data = DataStore::Object(ObjectFiles::new(Arc::new(far), unused, "bench".into(), &settings.store));
        let mut state = State::default();
        let journal_settings = journal_settings(&opened.catalog, &settings.catalog);
        let journal = Journal::open(opened.catalog, journal_settings, |key, value| state.load(&key, &value)).await;
        let tasks = TaskGroup::new(CancellationToken::new());
        let catalog = Catalog::start(state, journal.unwrap(), clock, &metrics, &tasks);
        let all = settings.limits.memory_bytes;
        let parts = Parts { settings, data, catalog, entropy, metrics: metrics.clone(), tasks };
        Self { ahead: parts.door(all).await, plain: parts.door(MEMORY_WITHOUT_READ_AHEAD).await, metrics }
    }

    /// Stores the segments as subtasks do: all of them at the same time. Returns them in the order of a restore.
    async fn fill(&self, segments: usize) -> Vec<String> {
        self.ahead.create_job(JOB).await.unwrap();
        let numbers: Vec<usize> = (0..segments).collect();
        for batch in numbers.chunks(500) {
            let heads: Vec<(BatchHead, Bytes)> = batch.iter().map(|n| (head(*n), body(*n))).collect();
            let answers = self.ahead.put_many(JOB, &heads).await.unwrap();
            assert!(answers.iter().all(|answer| matches!(answer, BatchAnswer::Stored(_))));
        }
        self.ahead.complete(JOB, 1).await.unwrap();
        let mut ids = vec![];
        let mut restore = self.ahead.restore(&checkpoint()).await.unwrap();
        while let Some(segment) = restore.next().await.unwrap() {
            ids.push(segment.info.segment);
        }
        assert_eq!(ids.len(), segments);
        ids
    }

    async fn read(&self, way: Way, ids: &[String]) {
        match way {
            Way::Bulk => {
                let mut restore = self.ahead.restore(&checkpoint()).await.unwrap();
                let mut segments = 0;
                while restore.next().await.unwrap().is_some() {
                    segments += 1;
                }
                assert_eq!(segments, ids.len());
            }
            Way::Single { at_once, ahead } => {
                let client = if ahead { &self.ahead } else { &self.plain };
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
        self.metrics.store_requests.with_label_values(&["get", "data"]).get()
    }
}

struct Parts {
    settings: Arc<Settings>,
    data: DataStore,
    catalog: Catalog,
    entropy: Entropy,
    metrics: Metrics,
    tasks: TaskGroup,
}

impl Parts {
    /// A native API whose reader has this much memory.
    async fn door(&self, memory: u64) -> Client {
        let Self { settings, data, catalog, entropy, metrics, tasks } = self;
        let budgets = Budgets::new(memory, 0, 0, metrics.in_flight_bytes.clone());
        let parts = MergerParts::new(
            Arc::clone(settings),
            data.clone(),
            catalog.clone(),
            budgets.writes.clone(),
            entropy.clone(),
            metrics.clone(),
            tasks.clone(),
        );
        let merger = Merger::new(parts.clone());
        let patience = settings.limits.admission_timeout;
        let reader = Reader::new(
            data.clone(),
            catalog.clone(),
            budgets.reads.clone(),
            patience,
            metrics.clone(),
            tasks.clone(),
            settings.limits.read_lease,
        );
        tokio::spawn(reader.clone().run_ahead(CancellationToken::new()));
        let silence_max = settings.limits.body_timeout;
        let reclaim = ReclaimControl::new(parts, reader.leases(), CancellationToken::new());
        let native = Native {
            catalog: catalog.clone(),
            merger,
            reader,
            reclaim,
            admission: Admission { budget: budgets.writes.clone(), patience, silence_max, metrics: metrics.clone() },
            settings: Arc::clone(settings),
            metrics: metrics.clone(),
            shares: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Serving::new(
            settings.limits.clone(),
            Peers::new(settings.limits.clone(), metrics.clone(), &budgets),
            metrics.connections.with_label_values(&["native"]),
            tasks.clone(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let service = TowerToHyperService::new(native.router());
        tokio::spawn(serving.accept(Listener::Tcp(listener), service.clone(), service));
        Client::new(&format!("http://{address}"), None).unwrap()
    }
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
