//! The program on a real HDFS while nodes of it are killed, stopped and restarted: what was answered is read back, byte for
//! byte, by the same daemon and by the next one, and `esker verify` finds no fault.
//!
//! `tests/hdfs/run` starts a cluster and names it: `ESKER_HDFS_URL`, `ESKER_HDFS_CLUSTER` for the folder by which its nodes are
//! found, and `ESKER_HDFS_KIND` for what is particular about it. Without these nothing is tested here.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod catalog_log;
mod full;
mod ha;
mod kerberos;
mod lost;
mod memory;
mod zones;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use esker_test_support::process::{Process, Ready, esker};
use esker_test_support::watchdog::Watchdog;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

const WRITERS: usize = 6;
/// A test is over by then, however slow the machine is.
const TAKES_AT_MOST: Duration = Duration::from_secs(600);
/// A fault is over for writers by then.
const RIDES_OUT: Duration = Duration::from_secs(180);

/// One test at a time: all share the cluster.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The cluster, as `tests/hdfs/run` made it.
struct Cluster {
    url: String,
    folder: String,
}

/// What a cluster is started for. A test needs one of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One NameNode and three DataNodes.
    Plain,
    /// The same, and the DataNodes have disks of their own.
    Full,
    /// The same, and one of the DataNodes may lose all it has.
    Lost,
    /// Two NameNodes of one nameservice, with all that makes the other one active when one dies.
    Ha,
    /// Everything asks for tickets.
    Kerberos,
}

impl Cluster {
    fn of(kind: Kind) -> Option<Self> {
        let wanted = format!("{kind:?}").to_lowercase();
        let there = std::env::var("ESKER_HDFS_KIND").unwrap_or_else(|_| "plain".to_owned());
        if there != wanted {
            println!("skipped: `tests/hdfs/run {wanted}` has a cluster for it, this one is {there}");
            return None;
        }
        let named = (std::env::var("ESKER_HDFS_URL").ok(), std::env::var("ESKER_HDFS_CLUSTER").ok());
        let (Some(url), Some(folder)) = named else {
            println!("skipped: no ESKER_HDFS_URL and ESKER_HDFS_CLUSTER, tests/hdfs/run sets them");
            return None;
        };
        Some(Self { url, folder })
    }

    async fn run(&self, command: &str, arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hdfs/cluster");
        let mut cluster = Command::new(script);
        cluster.arg(command).arg(&self.folder).args(arguments);
        let output = tokio::task::spawn_blocking(move || cluster.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "cluster {command} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A daemon on a folder of its own, and what was answered so far.
struct World {
    cluster: Cluster,
    folder: TempDir,
    url: String,
    answered: BTreeMap<String, Vec<u8>>,
    /// What the environment of the program says besides.
    environment: Vec<(&'static str, String)>,
}

impl World {
    fn new(name: &str) -> Option<Self> {
        Self::on(Kind::Plain, name)
    }

    fn on(kind: Kind, name: &str) -> Option<Self> {
        let cluster = Cluster::of(kind)?;
        let url = format!("{}/{name}-{:08x}", cluster.url, rand::random::<u32>());
        let folder = tempfile::tempdir().unwrap();
        Some(Self { cluster, folder, url, answered: BTreeMap::new(), environment: vec![] })
    }

    /// The same with this in the environment.
    fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    /// The same with its catalog on a local disk.
    fn with_catalog_on_disk(self) -> Self {
        let catalog = format!("file:{}", self.folder.path().join("catalog").display());
        self.with("ESKER__CATALOG__URL", catalog)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    async fn start(&self) -> (Process, Ready) {
        let mut daemon = self.spawn();
        tokio::task::spawn_blocking(move || {
            let ready = daemon.wait_ready();
            (daemon, ready)
        })
        .await
        .unwrap()
    }

    fn spawn(&self) -> Process {
        let environment = [
            ("ESKER__STORE__HDFS__WRITE_TIMEOUT", "4 s"),
            ("ESKER__STORE__REQUEST_TIMEOUT", "10 s"),
            ("ESKER__EXECUTION__CHECKPOINTING__DATA_INLINE_THRESHOLD", "0"),
            ("ESKER__MERGING__IDLE_CLOSE", "2 s"),
            ("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_FILE_SIZE", "8mb"),
        ];
        let environment = environment.map(|(key, value)| (key, value.to_owned())).into_iter();
        let environment: Vec<_> = environment.chain(self.environment.iter().cloned()).collect();
        Process::serve(self.folder.path(), &self.url, &environment)
    }

    /// Everything that was answered is there.
    async fn check(&self, ready: &Ready) {
        let store = client(ready);
        for (key, bytes) in &self.answered {
            let read = async { store.get(&Path::from(key.as_str())).await?.bytes().await };
            let read = read.await.unwrap_or_else(|error| panic!("{key} was answered: {error}"));
            assert!(read == bytes[..], "{key} was answered with other bytes");
        }
    }

    /// The same by the next daemon, and with none running.
    async fn check_after_the_end(&self, daemon: Process) {
        tokio::task::spawn_blocking(move || daemon.terminate()).await.unwrap();
        self.verify().await;
        let (daemon, ready) = self.start().await;
        self.check(&ready).await;
        tokio::task::spawn_blocking(move || daemon.terminate()).await.unwrap();
        self.verify().await;
    }

    async fn verify(&self) {
        let (code, said) = self.esker(&["verify", "--read-data", "100"]).await;
        assert_eq!(code, Some(0), "{said}");
    }

    /// A command on the storage: its exit code, and what it says.
    async fn esker(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut esker = esker();
        esker.args(arguments).args(["--store", &self.url]).envs(self.environment.iter().cloned());
        let output = tokio::task::spawn_blocking(move || esker.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said + &String::from_utf8_lossy(&output.stderr))
    }
}

fn client(ready: &Ready) -> AmazonS3 {
    let options = ClientOptions::new().with_timeout(Duration::from_secs(60));
    let no_repeats = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    ready.s3_builder(options).with_retry(no_repeats).build().unwrap()
}

/// Writers that put objects until they are told to end.
struct Writers {
    answers: Arc<AtomicUsize>,
    refusals: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<BTreeMap<String, Vec<u8>>>,
}

impl Writers {
    fn begin(ready: &Ready, name: &str) -> Self {
        let mut writers = Self {
            answers: Arc::default(),
            refusals: Arc::default(),
            ending: Arc::default(),
            tasks: Default::default(),
        };
        for writer in 0..WRITERS {
            let (store, name) = (client(ready), format!("jobs/job-{}/{name}-{writer}", writer % 3));
            let (answers, refusals) = (writers.answers.clone(), writers.refusals.clone());
            let ending = writers.ending.clone();
            writers.tasks.spawn(async move {
                let mut rng = StdRng::seed_from_u64(writer as u64);
                let mut answered = BTreeMap::new();
                for number in 0.. {
                    if ending.load(Ordering::SeqCst) {
                        break;
                    }
                    let mut bytes = vec![0; [100, 5_000, 70_000, 900_000][rng.random_range(0..4)]];
                    rng.fill(&mut bytes[..]);
                    let key = format!("{name}/{number}");
                    match store.put(&Path::from(key.as_str()), bytes.clone().into()).await {
                        Ok(_) => {
                            answered.insert(key, bytes);
                            answers.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(_) => {
                            refusals.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                answered
            });
        }
        writers
    }

    /// Waits for so many more answers.
    async fn answers(&self, more: usize) {
        let (begun, before) = (Instant::now(), self.answers.load(Ordering::SeqCst));
        while self.answers.load(Ordering::SeqCst) < before + more {
            let refused = self.refusals.load(Ordering::SeqCst);
            assert!(begun.elapsed() < RIDES_OUT, "no {more} answers after {before}, {refused} refusals");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self, world: &mut World) {
        self.ending.store(true, Ordering::SeqCst);
        for answered in self.tasks.join_all().await {
            world.answered.extend(answered);
        }
        let refused = self.refusals.load(Ordering::SeqCst);
        println!("{} objects were answered, {refused} puts refused", world.answered.len());
    }
}

/// Lets writers loose, does something to the cluster, and looks what became of it all.
///
/// A daemon whose catalog cannot be written for most of a minute ends, as on any store: whoever watches over it starts the
/// next one.
async fn survives(name: &str, hurt: impl AsyncFn(&Cluster, &Writers)) {
    let _turn = TURN.lock().await;
    if let Some(world) = World::new(name) {
        world_survives(world, name, hurt).await;
    }
}

async fn world_survives(mut world: World, name: &str, hurt: impl AsyncFn(&Cluster, &Writers)) {
    let _watchdog = Watchdog::watch(name.to_owned(), TAKES_AT_MOST, world.log());
    let (mut daemon, mut ready) = world.start().await;
    let mut writers = Writers::begin(&ready, name);
    writers.answers(50).await;

    hurt(&world.cluster, &writers).await;
    let answers = tokio::select! {
        () = writers.answers(50) => true,
        () = ended(&mut daemon) => false,
    };
    if !answers {
        println!("the daemon has ended, the next one goes on");
        writers.end(&mut world).await;
        (daemon, ready) = world.start().await;
        world.check(&ready).await;
        writers = Writers::begin(&ready, "next");
        writers.answers(50).await;
    }
    writers.end(&mut world).await;

    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}

/// The daemon is killed in the middle of groups, so many times. Whatever it answered is there each time, and in the end.
async fn survives_kills(mut world: World, name: &str, rounds: usize) {
    let _watchdog = Watchdog::watch(name.to_owned(), TAKES_AT_MOST, world.log());
    for round in 0..rounds {
        let (daemon, ready) = world.start().await;
        world.check(&ready).await;
        let writers = Writers::begin(&ready, &format!("round-{round}"));
        writers.answers(40).await;
        drop(daemon);
        writers.end(&mut world).await;
    }

    let (daemon, ready) = world.start().await;
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}

async fn ended(daemon: &mut Process) {
    while !daemon.has_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datanode_that_is_killed_and_comes_back_costs_nothing_that_was_answered() {
    survives("killed", async |cluster, writers| {
        cluster.run("kill", &["dn1"]).await;
        writers.answers(50).await;
        cluster.run("up", &["dn1"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datanode_that_stands_still_costs_nothing_that_was_answered() {
    survives("stopped", async |cluster, writers| {
        cluster.run("kill", &["dn2", "STOP"]).await;
        writers.answers(50).await;
        cluster.run("kill", &["dn2", "CONT"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namenode_that_is_restarted_costs_nothing_that_was_answered() {
    survives("namenode", async |cluster, _| {
        cluster.run("kill", &["nn"]).await;
        cluster.run("up", &["nn"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namenode_that_stands_still_costs_nothing_that_was_answered() {
    survives("paused", async |cluster, _| {
        cluster.run("kill", &["nn", "STOP"]).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        cluster.run("kill", &["nn", "CONT"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_safe_mode_what_is_there_is_read_and_afterwards_writes_go_on() {
    survives("safe-mode", async |cluster, writers| {
        cluster.run("sh", &["admin", "-safemode", "enter"]).await;
        let (begun, before) = (Instant::now(), writers.refusals.load(Ordering::SeqCst));
        while writers.refusals.load(Ordering::SeqCst) == before {
            assert!(begun.elapsed() < RIDES_OUT, "nothing was refused in safe mode");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster.run("sh", &["admin", "-safemode", "leave"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_in_the_middle_of_groups_leaves_what_it_answered() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("crash") else { return };
    survives_kills(world, "crash", 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_takes_the_store_over_and_the_first_answers_nothing_more() {
    let _turn = TURN.lock().await;
    let Some(mut world) = World::new("second") else { return };
    let _watchdog = Watchdog::watch("second".to_owned(), TAKES_AT_MOST, world.log());
    let (first, ready) = world.start().await;
    let writers = Writers::begin(&ready, "first");
    writers.answers(50).await;

    // Its log and ready file are its own, the store is the same.
    let successor = World { cluster: Cluster::of(Kind::Plain).unwrap(), folder: tempfile::tempdir().unwrap(), ..world };
    let (second, second_ready) = successor.start().await;
    let (status, log) = tokio::task::spawn_blocking(move || first.wait_end()).await.unwrap();
    assert!(!status.success(), "it noticed that it was shut out: {status}\n{log}");
    world = successor;
    writers.end(&mut world).await;

    world.check(&second_ready).await;
    let writers = Writers::begin(&second_ready, "second");
    writers.answers(20).await;
    writers.end(&mut world).await;
    world.check_after_the_end(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_of_its_try_of_the_folder_a_later_start_deletes() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("probes") else { return };
    let probes = format!("/{}/probe", world.url.splitn(4, '/').nth(3).unwrap());
    let (old, young) = (format!("{probes}/old"), format!("{probes}/young"));
    for folder in [&old, &young] {
        world.cluster.run("sh", &["fs", "-mkdir", "-p", folder]).await;
        world.cluster.run("sh", &["fs", "-touchz", &format!("{folder}/1")]).await;
    }
    world.cluster.run("sh", &["fs", "-touch", "-m", "-t", "20200101:000000", &format!("{old}/1"), &old]).await;

    let (daemon, _) = world.start().await;

    let left = world.cluster.run("sh", &["fs", "-ls", "-C", &probes]).await;
    assert_eq!(left.trim(), young, "another daemon may be trying the folder");
    world.cluster.run("sh", &["fs", "-rm", "-r", "-skipTrash", &probes]).await;
    world.check_after_the_end(daemon).await;
}
