//! Daemons on the S3 server, each in a runtime of its own so that it can be killed, and writers that remember.

use std::collections::BTreeMap;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use esker::catalog::command::Command;
use esker::config::{Config, Settings};
use esker::daemon::{Addresses, Daemon};
use esker::error::chain;
use esker::runtime::Clock;
use esker_client::wire::{PutParams, SegmentInfo};
use esker_client::{Client, ClientError};
use object_store::RetryConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::faults::data;
pub use crate::faults::eventually;
use crate::s3_server::{ACCESS_KEY, BUCKET, REGION, S3Server, SECRET_KEY};

pub const JOB: &str = "wordcount";
/// Where the daemons keep everything in the bucket.
pub const PREFIX: &str = "esker";
/// Longest time that anything may take that should happen soon.
pub const SOON: Duration = Duration::from_secs(20);

/// Signs requests at the S3 door of a daemon with the keys of its backend.
pub const SIGNED: [(&str, &str); 2] = [("auth.access-key", ACCESS_KEY), ("auth.secret-key", SECRET_KEY)];
/// Everything takes longer in this build, and beside other tests: so the backend does too, and the daemon waits for
/// more segments as much longer. What counts is how a burst compares with the time in which nothing arrives.
pub const SLOW_BACKEND: Duration = Duration::from_millis(400);
/// Time that S3 takes for a small object, at least.
pub const LATENCY_OF_S3: Duration = Duration::from_millis(30);
pub const INLINE: &str = "execution.checkpointing.data-inline-threshold";

/// Memory for two streamed segments, with patience for more.
pub const LITTLE_MEMORY: [(&str, &str); 6] = [
    ("limits.memory", "32 mb"),
    ("limits.multipart-memory", "8 mb"),
    ("limits.multipart-part-in-memory-max", "5 mb"),
    ("limits.admission-timeout", "20 s"),
    ("store.max-bytes-in-flight", "32 mb"),
    ("execution.checkpointing.file-merging.max-file-size", "8 mb"),
];

/// Settings of a daemon on `server`: as by default, but impatient, and every segment in a file.
pub fn settings(server: &S3Server, changed: &[(&str, &str)]) -> Settings {
    let url = format!("s3://{BUCKET}/{PREFIX}");
    let endpoint = server.endpoint();
    let base = [
        ("store.url", url.as_str()),
        ("store.endpoint", &endpoint),
        ("store.region", REGION),
        ("store.access-key", ACCESS_KEY),
        ("store.secret-key", SECRET_KEY),
        ("store.allow-http", "true"),
        ("store.request-timeout", "5 s"),
        ("store.retry-timeout", "2 s"),
        ("server.s3", "127.0.0.1:0"),
        ("server.api", "127.0.0.1:0"),
        ("server.drain-timeout", "5 s"),
        ("limits.segment-size-max", "1 gb"),
        (INLINE, "0"),
        ("merging.inline-group-max", "0"),
    ];
    let all: BTreeMap<&str, &str> = base.into_iter().chain(changed.iter().copied()).collect();
    let flags: Vec<_> = all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Config::load_with(None, [], &flags).unwrap().settings().unwrap()
}

/// A server and a daemon on it, which knows the job.
pub async fn server_and_daemon(changed: &[(&str, &str)]) -> (S3Server, Running) {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, changed)).await;
    create_job(&daemon.client).await;
    (server, daemon)
}

/// The seed of a random run, from `FAULTS_SEED` or fresh. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let given = std::env::var("FAULTS_SEED").ok().map(|text| text.parse().expect("FAULTS_SEED is a number"));
    let seed = given.unwrap_or_else(|| rand::rng().next_u64());
    println!("FAULTS_SEED={seed}");
    seed
}

/// The runtime of a daemon.
#[derive(Debug, Clone, Copy)]
pub enum Threads {
    Two,
    /// One, which a test can stop: see [`Running::pause`].
    One,
}

/// A daemon on a thread, and in a runtime, of its own.
pub struct Running {
    addresses: Addresses,
    lost: CancellationToken,
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
    pub client: Client,
}

enum Order {
    Pause { paused: oneshot::Sender<()>, until: blocking::Receiver<()> },
    Check(oneshot::Sender<Vec<String>>),
    CreateBucket(&'static str, oneshot::Sender<()>),
    ShutDown(oneshot::Sender<Result<(), String>>),
    Die,
}

struct Started {
    addresses: Addresses,
    lost: CancellationToken,
}

impl Running {
    /// Starts a daemon, which must succeed.
    pub async fn start(settings: Settings) -> Self {
        Self::try_start(settings, Threads::Two).await.unwrap()
    }

    /// Starts a daemon; the error is its whole chain of causes.
    pub async fn try_start(settings: Settings, threads: Threads) -> Result<Self, String> {
        Self::try_start_by(settings, threads, Clock::System).await
    }

    /// The same with a clock that may be wrong.
    pub async fn try_start_by(settings: Settings, threads: Threads, clock: Clock) -> Result<Self, String> {
        let (orders, inbox) = mpsc::channel(4);
        let (started, answer) = oneshot::channel();
        let thread = std::thread::spawn(move || live(threads, settings, clock, started, inbox));
        let Started { addresses, lost } = answer.await.expect("the daemon's start panicked")?;
        let client = Client::new(&format!("http://{}", addresses.api), None).unwrap();
        Ok(Self { addresses, lost, orders, thread: Some(thread), client })
    }

    /// Where the native API listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.addresses.api
    }

    /// Another client, with connections of its own.
    pub fn new_client(&self) -> Client {
        Client::new(&format!("http://{}", self.addresses.api), None).unwrap()
    }

    /// Cancelled when the daemon has lost the catalog.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Kills the daemon: every task of it is dropped where it stands, nothing is closed. Resolves when it is dead.
    pub async fn kill(mut self) {
        self.orders.send(Order::Die).await.expect("the daemon's thread has ended");
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
    }

    /// Shuts the daemon down as a signal would.
    pub async fn shut_down(mut self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::ShutDown(reply)).await.expect("the daemon's thread has ended");
        let answer = answer.await.unwrap();
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
        answer
    }

    /// A client of the S3 door that signs with [`ACCESS_KEY`], on a new bucket.
    pub async fn s3_client(&self, bucket: &'static str) -> AmazonS3 {
        let (reply, created) = oneshot::channel();
        self.orders.send(Order::CreateBucket(bucket, reply)).await.expect("the daemon's thread has ended");
        created.await.unwrap();
        self.s3_client_of(bucket)
    }

    /// The same on a bucket that exists.
    pub fn s3_client_of(&self, bucket: &str) -> AmazonS3 {
        self.s3_builder(bucket).build().unwrap()
    }

    /// One that repeats nothing.
    pub fn s3_client_that_gives_up(&self, bucket: &str) -> AmazonS3 {
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        self.s3_builder(bucket).with_retry(retry).build().unwrap()
    }

    fn s3_builder(&self, bucket: &str) -> AmazonS3Builder {
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.addresses.s3))
            .with_allow_http(true)
            .with_region(REGION)
            .with_bucket_name(bucket);
        builder.with_access_key_id(ACCESS_KEY).with_secret_access_key(SECRET_KEY)
    }

    /// What does not add up in the daemon's catalog.
    pub async fn inconsistencies(&self) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Check(reply)).await.expect("the daemon's thread has ended");
        answer.await.unwrap()
    }

    /// Stops the only thread of the daemon, as SIGSTOP or a host without a free core would, until the result is
    /// dropped.
    pub async fn pause(&self) -> blocking::Sender<()> {
        let (go_on, until) = blocking::channel();
        let (paused, stopped) = oneshot::channel();
        self.orders.send(Order::Pause { paused, until }).await.expect("the daemon's thread has ended");
        stopped.await.unwrap();
        go_on
    }
}

/// The life of a daemon.
fn live(
    threads: Threads,
    settings: Settings,
    clock: Clock,
    started: oneshot::Sender<Result<Started, String>>,
    orders: mpsc::Receiver<Order>,
) {
    let runtime = match threads {
        Threads::Two => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        Threads::One => Builder::new_current_thread().enable_all().build(),
    };
    let runtime: Runtime = runtime.unwrap();
    let left = runtime.block_on(async {
        match Daemon::start_by(settings, clock).await {
            Ok(daemon) => {
                let told = Started { addresses: *daemon.addresses(), lost: daemon.lost() };
                drop(started.send(Ok(told)));
                obey(daemon, orders).await
            }
            Err(error) => {
                drop(started.send(Err(chain(&error))));
                None
            }
        }
    });
    // First the tasks, then the handle: a process that dies closes nothing.
    runtime.shutdown_timeout(SOON);
    drop(left);
}

/// Returns a daemon that died.
async fn obey(daemon: Daemon, mut orders: mpsc::Receiver<Order>) -> Option<Daemon> {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Pause { paused, until } => {
                paused.send(()).expect("the test waits for it");
                // Blocks the thread on purpose, until the other end is dropped.
                while until.recv().is_ok() {}
            }
            Order::CreateBucket(bucket, reply) => {
                daemon
                    .running()
                    .expect("a daemon by itself")
                    .catalog()
                    .execute(Command::CreateBucket(bucket.to_owned()))
                    .await
                    .unwrap();
                reply.send(()).expect("the test waits for it");
            }
            Order::Check(reply) => {
                drop(reply.send(daemon.running().expect("a daemon by itself").catalog().recount().faults))
            }
            Order::ShutDown(reply) => {
                let ended = daemon.shut_down().await;
                drop(reply.send(ended.map(|_| ()).map_err(|error| chain(&error))));
                return None;
            }
            Order::Die => break,
        }
    }
    Some(daemon)
}

/// Bytes that only `seed` and `len` determine.
pub fn bytes_of(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// A put that is to be answered, and what it was answered.
#[derive(Debug, Clone)]
pub struct Written {
    pub key: String,
    pub data: Bytes,
    pub info: SegmentInfo,
}

/// What every put of these tests says.
pub fn params() -> PutParams {
    PutParams { checkpoint: Some(1), task_manager: Some("tm-1".to_owned()), ..PutParams::default() }
}

/// Makes the job and its checkpoint known; repeated until it is answered.
pub async fn create_job(client: &Client) {
    eventually("the job is created", SOON, || async { client.create_job(JOB).await.is_ok() }).await;
    eventually("the checkpoint begins", SOON, || async { client.begin(JOB, 1).await.is_ok() }).await;
}

/// One try to put segment `seed` under its idempotency key.
pub async fn put(client: &Client, seed: u64, len: usize) -> Result<Written, ClientError> {
    let (key, data) = (format!("key-{seed}"), bytes_of(seed, len));
    let info = client.put(JOB, &params(), Some(&key), data.clone()).await?;
    Ok(Written { key, data, info })
}

/// Puts segment `seed`, and repeats that as a worker does: only after errors that say so. Returns the answer and the
/// number of tries.
pub async fn put_until_answered(client: &Client, seed: u64, len: usize, patience: Duration) -> (Written, usize) {
    let begun = Clock::instant();
    let mut tries = 1;
    loop {
        match put(client, seed, len).await {
            Ok(written) => return (written, tries),
            Err(error) if error.is_transient() && begun.elapsed() < patience => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("segment {seed}, try {tries}: {}", chain(&error)),
        }
    }
}

/// Every segment reads back byte for byte, by its identity and by its handle.
pub async fn assert_readable(client: &Client, written: &[Written]) {
    for Written { key, data, info } in written {
        let by_id = client.get(&info.segment).await;
        let by_handle = client.get_handle(&info.handle).await;

        let told = |error: &ClientError| panic!("{key} ({}) was answered and is lost: {}", info.handle, chain(error));
        assert!(by_id.unwrap_or_else(|error| told(&error)) == data, "{key} has other bytes");
        assert!(by_handle.unwrap_or_else(|error| told(&error)) == data, "{key} has other bytes by its handle");
    }
}

/// All segments of the job.
pub async fn listed(client: &Client) -> Vec<SegmentInfo> {
    let mut all = vec![];
    let mut after: Option<String> = None;
    loop {
        let page = client.segments(JOB, None, after.as_deref()).await.unwrap();
        all.extend(page.segments.into_iter().map(|listed| listed.info));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

/// The job has exactly these segments, each reads back, each file it needs is on storage, and the catalog adds up.
pub async fn assert_exactly(server: &S3Server, daemon: &Running, written: &[Written]) {
    let mut expected: Vec<String> = written.iter().map(|written| written.info.segment.clone()).collect();
    expected.sort();
    let listed = listed(&daemon.client).await;
    let mut there: Vec<String> = listed.iter().map(|info| info.segment.clone()).collect();
    there.sort();
    assert_eq!(there, expected, "the job's segments");
    assert_readable(&daemon.client, written).await;
    assert_sound(server, daemon).await;
}

/// Each listed segment reads back, its file is on storage, and the catalog adds up.
pub async fn assert_sound(server: &S3Server, daemon: &Running) {
    for info in listed(&daemon.client).await {
        daemon.client.get(&info.segment).await.unwrap_or_else(|error| panic!("{}: {}", info.handle, chain(&error)));
        if let Some(file) = &info.file {
            assert!(
                server.objects().get(&object_key(file)).is_some(),
                "{} is in a file that is not there",
                info.handle
            );
        }
    }
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}

/// The key of a physical file in the bucket.
pub fn object_key(file: &str) -> String {
    format!("{PREFIX}/{file}")
}

/// Physical files on storage.
pub fn data_files(server: &S3Server) -> Vec<String> {
    server.objects().keys(PREFIX).into_iter().filter(|key| data(key)).collect()
}

/// The value of a metric, summed over its labels.
pub async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.metrics().await.unwrap();
    let of = |line: &str| {
        let (labelled, value) = line.rsplit_once(' ')?;
        (labelled.split('{').next() == Some(name)).then(|| value.parse::<f64>().unwrap())
    };
    text.lines().filter_map(of).sum()
}
