//! 1,000 writers that send as fast as they are let: the daemon slows them down and stays within its memory.
//!
//! Every writer has a connection of its own and always a segment under way, so that twice the memory budget waits at the
//! door, and several times more is offered than the store takes. One that is told 503 comes back after `Retry-After`.
//!
//! The same beside 700 readers that take nothing and 64 writers that send next to nothing: nobody honest is refused for
//! ever, no answered byte is lost, and what the honest writers keep of their throughput is printed. Rounds with and
//! without the others take turns, so that both see the same machine.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::api::status::RETRY_AFTER;
use esker_client::wire::PutParams;
use esker_client::{Client, ClientError};
use esker_test_support::{self as support, process};
use http::StatusCode;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use process::{Process, Ready};

const WRITERS: u64 = 1000;
const LASTS: Duration = Duration::from_secs(20);
/// Of each kind, where others stand beside the writers.
const ROUNDS: usize = 3;
const ROUND_LASTS: Duration = Duration::from_secs(10);
const STALLED_READERS: usize = 700;
const TRICKLING_WRITERS: usize = 64;
/// Until then, every writer must have been served.
const PATIENCE: Duration = Duration::from_secs(120);
/// The default of `limits.memory`, and what comes on top of it.
const MEMORY_BYTES: u64 = (512 + 128) << 20;
const LEN_MIN: usize = 64 << 10;
const LEN_MAX: usize = 4 << 20;

/// What all writers share.
struct Load {
    ready: Ready,
    /// Every segment is a piece of this.
    bytes: Bytes,
    begun: Instant,
    lasts: Duration,
    turned_away: AtomicU64,
    stored_bytes: AtomicU64,
}

/// A segment that was answered.
struct Answered {
    /// Its id, or its key.
    segment: String,
    offset: usize,
    len: usize,
}

#[test]
fn a_thousand_writers_stay_within_the_memory_budget() {
    esker::runtime::descriptors::raise_limit();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Process::spawn(folder.path(), &patient());
    let ready = daemon.wait_ready();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let (load, answered) = runtime.block_on(write(ready, LASTS));
    let peak = peak_bytes(daemon.id());
    runtime.block_on(read_back(&load, &answered));

    let segments: usize = answered.iter().map(Vec::len).sum();
    let (mib, seconds) = (|bytes: u64| bytes >> 20, load.begun.elapsed().as_secs());
    let stored = mib(load.stored_bytes.load(Ordering::Relaxed));
    let turned_away = load.turned_away.load(Ordering::Relaxed);
    println!("{segments} segments, {stored} MiB stored in {seconds} s; {turned_away} times told 503");
    println!("peak of {} MiB resident, at most {} MiB", mib(peak), mib(MEMORY_BYTES));
    assert!(peak <= MEMORY_BYTES, "{} MiB of memory were used, {} MiB are allowed", mib(peak), mib(MEMORY_BYTES));
    daemon.terminate();
}

#[test]
fn readers_that_stall_and_writers_that_trickle_leave_the_others_their_part() {
    esker::runtime::descriptors::raise_limit();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Process::spawn(folder.path(), &patient());
    let ready = daemon.wait_ready();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let mut rates = [vec![], vec![]];
    for round in 0..2 * ROUNDS {
        let beside = round % 2 == 1;
        let others = if beside { runtime.block_on(others(&ready)) } else { tokio::task::JoinSet::new() };
        let (load, answered) = runtime.block_on(write(ready.clone(), ROUND_LASTS));
        let mib = (load.stored_bytes.load(Ordering::Relaxed) >> 20) as f64;
        let rate = mib / load.begun.elapsed().as_secs_f64();
        let (begun, turned_away) = (others.len(), load.turned_away.load(Ordering::Relaxed));
        println!("round {round}, beside {begun} others: {rate:.0} MiB/s, {turned_away} times told 503");
        rates[usize::from(beside)].push(rate);
        runtime.block_on(async {
            drop(others);
            read_back(&load, &answered).await;
        });
    }

    let peak = peak_bytes(daemon.id());
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len() as f64;
    println!("beside others, writers keep {:.0} % of their throughput", mean(&rates[1]) / mean(&rates[0]) * 100.0);
    println!("peak of {} MiB resident, at most {} MiB", peak >> 20, MEMORY_BYTES >> 20);
    assert!(peak <= MEMORY_BYTES, "{} MiB of memory were used, {} MiB are allowed", peak >> 20, MEMORY_BYTES >> 20);
    daemon.terminate();
}

/// 1,000 connections are more than one client, on the cores of the daemon, gets to within seconds of opening them.
fn patient() -> [(&'static str, String); 1] {
    [("ESKER__LIMITS__HEAD_TIMEOUT", "1 min".to_owned())]
}

/// Readers that take nothing of what they ask for, and writers that send one byte; those that are cut come again.
async fn others(ready: &Ready) -> tokio::task::JoinSet<()> {
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job("read").await.unwrap();
    let params = PutParams { checkpoint: Some(1), ..PutParams::default() };
    let segment = client.put("read", &params, None, support::pattern(2, 8 << 20).into()).await.unwrap().segment;
    let get = format!("GET /v1/segments/{segment} HTTP/1.1\r\nhost: esker\r\n\r\n");
    let put = "POST /v1/jobs/read/segments?checkpoint=1 HTTP/1.1\r\nhost: esker\r\ncontent-length: 8000000\r\n\r\na";
    let readers = std::iter::repeat_n(get, STALLED_READERS);
    let writers = std::iter::repeat_n(put.to_owned(), TRICKLING_WRITERS);
    let address = ready.api.trim_start_matches("http://").parse().unwrap();
    readers.chain(writers).map(|request| stand(address, request)).collect()
}

/// Sends the same again whenever the connection has ended; takes nothing but the end.
async fn stand(address: std::net::SocketAddr, request: String) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let Ok(mut stream) = socket.connect(address).await else { continue };
        if stream.write_all(request.as_bytes()).await.is_ok() {
            ended(&mut stream).await;
        }
    }
}

/// Takes a byte a second until the other side has closed.
async fn ended(stream: &mut TcpStream) {
    let mut byte = [0];
    while stream.read(&mut byte).await.is_ok_and(|read| read > 0) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn client(load: &Load) -> Client {
    Client::new(&load.ready.api, None).unwrap()
}

/// Lets all writers loose until the time is over and each has been served.
async fn write(ready: Ready, lasts: Duration) -> (Arc<Load>, Vec<Vec<Answered>>) {
    let load = Arc::new(Load {
        ready,
        bytes: support::pattern(1, 2 * LEN_MAX).into(),
        begun: Instant::now(),
        lasts,
        turned_away: AtomicU64::new(0),
        stored_bytes: AtomicU64::new(0),
    });
    for job in 0..10 {
        client(&load).create_job(&job_of(job)).await.unwrap();
    }
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        if number % 4 == 3 {
            writers.spawn(s3_writer(Arc::clone(&load), number));
        } else {
            writers.spawn(writer(Arc::clone(&load), number));
        }
    }
    let answered = writers.join_all().await;
    (load, answered)
}

fn job_of(writer: u64) -> String {
    format!("job-{}", writer % 10)
}

async fn writer(load: Arc<Load>, number: u64) -> Vec<Answered> {
    let (client, mut rng) = (client(&load), StdRng::seed_from_u64(number));
    let params = PutParams {
        checkpoint: Some(1),
        // Shared state is merged within a subtask: as many files as may be open.
        scope: Some(if number.is_multiple_of(2) { "shared" } else { "exclusive" }.to_owned()),
        operator: Some("map".to_owned()),
        subtask: Some((number / 10) as u32),
        parallelism: Some(100),
        task_manager: Some(format!("tm-{}", number % 20)),
        ..PutParams::default()
    };
    let mut answered = vec![];
    while load.goes_on(&answered, number) {
        let (offset, len, data) = load.any_piece(&mut rng);
        match client.put(&job_of(number), &params, None, data).await {
            Ok(info) => {
                load.stored_bytes.fetch_add(info.len, Ordering::Relaxed);
                answered.push(Answered { segment: info.segment, offset, len });
            }
            Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. }) => {
                load.turned_away.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(RETRY_AFTER).await;
            }
            Err(error) => panic!("writer {number} was dropped: {}", esker::error::chain(&error)),
        }
    }
    answered
}

/// The same at the S3 door; the client itself comes back after a 503.
async fn s3_writer(load: Arc<Load>, number: u64) -> Vec<Answered> {
    let (client, mut rng) = (s3_client(&load), StdRng::seed_from_u64(number));
    let mut answered = vec![];
    while load.goes_on(&answered, number) {
        let (offset, len, data) = load.any_piece(&mut rng);
        let key = format!("jobs/{}/chk-1/{number}-{}", job_of(number), answered.len());
        let put = client.put(&Path::from(key.as_str()), data.into()).await;
        put.unwrap_or_else(|error| panic!("writer {number} was dropped: {}", esker::error::chain(&error)));
        load.stored_bytes.fetch_add(len as u64, Ordering::Relaxed);
        answered.push(Answered { segment: key, offset, len });
    }
    answered
}

fn s3_client(load: &Load) -> AmazonS3 {
    let options = ClientOptions::new().with_timeout(PATIENCE);
    load.ready.s3_builder(options).with_unsigned_payload(true).build().unwrap()
}

impl Load {
    /// Whether a writer goes on: the time is not over, or it has not been served yet.
    fn goes_on(&self, answered: &[Answered], writer: u64) -> bool {
        assert!(!answered.is_empty() || self.begun.elapsed() < PATIENCE, "writer {writer} was never served");
        answered.is_empty() || self.begun.elapsed() < self.lasts
    }

    /// As many small pieces as large ones.
    fn any_piece(&self, rng: &mut StdRng) -> (usize, usize, Bytes) {
        let (offset, len) = (rng.random_range(0..LEN_MAX), LEN_MIN << rng.random_range(0..=6));
        (offset, len, self.bytes.slice(offset..offset + len))
    }
}

/// Reads one segment of every seventh writer.
async fn read_back(load: &Load, answered: &[Vec<Answered>]) {
    let (client, s3) = (client(load), s3_client(load));
    for segment in answered.iter().step_by(7).filter_map(|segments| segments.last()) {
        let wanted = load.bytes.slice(segment.offset..segment.offset + segment.len);
        let bytes = match segment.segment.contains('/') {
            true => s3.get(&Path::from(segment.segment.as_str())).await.unwrap().bytes().await.unwrap(),
            false => client.get(&segment.segment).await.unwrap(),
        };
        assert!(bytes == wanted, "{} is not what was stored", segment.segment);
    }
}

/// The most memory that a process ever had resident.
fn peak_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
