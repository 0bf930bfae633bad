//! Durable answers on an HDFS, beside a bare loop of the client library.
//!
//! ```text
//! ESKER_HDFS_URL=hdfs://namenode:8020/bench cargo bench --bench hdfs -- [seconds, default 3] [rounds, default 5]
//! ```
//!
//! `tests/hdfs/run bench` starts a cluster for it. `bare` has as many files open as a daemon may have, or one for each client
//! if these are fewer; in each a task writes the segments that a group of clients would have sent at once and syncs them, over
//! and over: what the library can do if it always has a full group. `bare, 2 files` does the same with two files at most, so
//! that its groups are as large as those of an engine. The others are an engine without doors, each client of which waits for
//! its answer before it sends the next segment, with the catalog on the HDFS or on a local disk. They take turns, round by
//! round.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::config::Config;
use esker::engine::intake::Whole;
use esker::engine::{Background, Engine, EngineOptions, Running};
use esker::load::histogram::Histogram;
use esker::model::{About, CheckpointId, JobId, SegmentCrc, StateScope, Writer};
use hdfs_native::client::WriteOptions;
use hdfs_native::{Client, ClientBuilder};
use tokio::task::JoinSet;

const SIZES: [usize; 2] = [4 << 10, 64 << 10];
const CLIENTS: [usize; 3] = [1, 16, 64];
/// `store.hdfs.max-writers`, as it is by default, and fewer, whose groups are larger.
const WRITERS: [usize; 2] = [16, 2];

fn main() {
    let Ok(url) = std::env::var("ESKER_HDFS_URL") else {
        println!("hdfs: skipped, ESKER_HDFS_URL is not set (tests/hdfs/run bench sets it)");
        return;
    };
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let lasts = Duration::from_secs(numbers.next().unwrap_or(3));
    let rounds = numbers.next().unwrap_or(5);
    tokio::runtime::Runtime::new().unwrap().block_on(measure(&url, lasts, rounds));
}

/// What one target did in one round.
struct Round {
    answers_per_second: f64,
    p99: Duration,
    /// Segments that shared a sync of their file.
    shared: f64,
}

async fn measure(url: &str, lasts: Duration, rounds: u64) {
    let run = std::process::id();
    let local = tempfile::tempdir().unwrap();
    let on_disk = format!("file:{}", local.path().display());
    let engines = [
        ("catalog on HDFS", open(&format!("{url}/bench-{run}-a"), None).await),
        ("catalog on disk", open(&format!("{url}/bench-{run}-b"), Some(on_disk)).await),
    ];
    let (host, path) = split(url);
    let bare = ClientBuilder::new().with_url(host).build().unwrap();
    bare.mkdirs(&format!("{path}/bare-{run}"), 0o755, true).await.unwrap();
    println!(
        "{:<8} {:>7}  {:<16} {:>9} {:>14} {:>7} {:>8} {:>8}",
        "bytes", "clients", "", "answers/s", "(least, most)", "of bare", "p99 ms", "a sync"
    );
    let mut files = 0;
    for size in SIZES {
        for clients in CLIENTS {
            let mut rounds_of: [Vec<Round>; 4] = Default::default();
            for _ in 0..rounds {
                for (place, writers) in WRITERS.into_iter().enumerate() {
                    files += 1;
                    let folder = format!("{path}/bare-{run}/{files}");
                    rounds_of[place].push(bare_loop(&bare, &folder, size, (clients, writers), lasts).await);
                }
                for (place, (_, running)) in engines.iter().enumerate() {
                    rounds_of[WRITERS.len() + place].push(engine_round(running.engine(), size, clients, lasts).await);
                }
            }
            let baseline = median(&rounds_of[0], |round| round.answers_per_second);
            for (name, rounds) in ["bare", "bare, 2 files", engines[0].0, engines[1].0].iter().zip(&rounds_of) {
                print(size, clients, name, rounds, baseline);
            }
        }
    }
    for (_, running) in engines {
        running.stop().await.unwrap();
    }
    bare.delete(&format!("{path}/bare-{run}"), true).await.unwrap();
}

/// The part of a URL that names the cluster, and the folder in it.
fn split(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + 3);
    let folder = url[host..].find('/').map_or(url.len(), |at| host + at);
    (&url[..folder], url[folder..].trim_end_matches('/'))
}

fn job() -> JobId {
    "00000000000000000000000000000001".parse().unwrap()
}

async fn open(url: &str, catalog: Option<String>) -> Running {
    let mut flags = vec![
        ("store.url".to_owned(), url.to_owned()),
        // Bytes go into files, however few they are.
        ("execution.checkpointing.data-inline-threshold".to_owned(), "0".to_owned()),
    ];
    flags.extend(catalog.map(|url| ("catalog.url".to_owned(), url)));
    let settings = Config::load(None, &flags).unwrap().settings().unwrap();
    let options = EngineOptions { background: Background::OnCall, ..EngineOptions::default() };
    let running = Engine::open(settings, options).await.unwrap();
    running.engine().create_job(&job()).await.unwrap();
    running
}

async fn engine_round(engine: &Engine, size: usize, clients: usize, lasts: Duration) -> Round {
    let data = Bytes::from(vec![0x5a; size]);
    let crc = SegmentCrc::of(&data);
    let (groups, segments) = groups(engine);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (engine, data, crc) = (engine.clone(), data.clone(), crc.clone());
        tasks.spawn(async move {
            let mut latencies = Histogram::default();
            while begun.elapsed() < lasts {
                let sent = Instant::now();
                let whole = Whole { data: data.clone(), crc: crc.clone(), paid: None };
                engine.store(about(), None, None, whole).await.unwrap();
                latencies.record(sent.elapsed());
            }
            latencies
        });
    }
    let latencies = tasks.join_all().await;
    let took = begun.elapsed().as_secs_f64();
    let (groups_then, segments_then) = self::groups(engine);
    let answers = segments_then - segments;
    round(&latencies, answers / took, answers / (groups_then - groups).max(1.0))
}

/// The groups that were written to growing files so far, and the segments in them.
fn groups(engine: &Engine) -> (f64, f64) {
    let text = engine.metrics().render();
    let of = |name: &str| {
        // There is no line before the first group.
        let line = text.lines().find(|line| line.starts_with(name) && line.contains("append"));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    };
    (of("esker_group_segments_count"), of("esker_group_segments_sum"))
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

async fn bare_loop(
    client: &Client,
    folder: &str,
    size: usize,
    (clients, writers): (usize, usize),
    lasts: Duration,
) -> Round {
    let writers = clients.min(writers);
    let shared = clients / writers;
    client.mkdirs(folder, 0o755, true).await.unwrap();
    let mut files = vec![];
    for number in 0..writers {
        let file = client.create(&format!("{folder}/{number}"), WriteOptions::default()).await.unwrap();
        files.push(file);
    }
    let group = Bytes::from(vec![0x5a; size * shared]);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut file in files {
        let group = group.clone();
        tasks.spawn(async move {
            let (mut latencies, mut synced) = (Histogram::default(), 0);
            while begun.elapsed() < lasts {
                let sent = Instant::now();
                file.write_bytes(group.clone()).await.unwrap();
                file.hsync().await.unwrap();
                latencies.record(sent.elapsed());
                synced += 1;
            }
            file.close().await.unwrap();
            (latencies, synced, begun.elapsed())
        });
    }
    let done = tasks.join_all().await;
    let took = done.iter().map(|(.., took)| took.as_secs_f64()).fold(0.0, f64::max);
    let answers = (done.iter().map(|(_, synced, _)| synced).sum::<usize>() * shared) as f64;
    client.delete(folder, true).await.unwrap();
    let latencies: Vec<Histogram> = done.into_iter().map(|(latencies, ..)| latencies).collect();
    round(&latencies, answers / took, shared as f64)
}

fn round(latencies: &[Histogram], answers_per_second: f64, shared: f64) -> Round {
    let mut all = Histogram::default();
    latencies.iter().for_each(|some| all.add(some));
    Round { answers_per_second, p99: all.quantile(0.99), shared }
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    // Of an even number it is what lies between the two in the middle.
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn print(size: usize, clients: usize, name: &str, rounds: &[Round], baseline: f64) {
    let rates = || rounds.iter().map(|round| round.answers_per_second);
    let (least, most) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    let rate = median(rounds, |round| round.answers_per_second);
    let p99 = median(rounds, |round| round.p99.as_secs_f64() * 1000.0);
    let shared = median(rounds, |round| round.shared);
    let spread = format!("({least:.0}, {most:.0})");
    println!(
        "{size:<8} {clients:>7}  {name:<16} {rate:>9.0} {spread:>14} {:>7.2} {p99:>8.0} {shared:>8.1}",
        rate / baseline
    );
}
