//! A job with a checkpoint every 500 ms that retains three, as Flink writes it with RocksDB and incremental checkpoints:
//! each subtask adds a small file to `shared/`, and now and then replaces some by the file that they were compacted into;
//! its own small state goes to `chk-<n>/`, and `_metadata` completes the checkpoint. What no retained checkpoint uses is
//! deleted, object by object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::process::{Process, Ready};
use crate::support::pattern;
use crate::{AMPLIFICATION_MAX, JOB, client, du};

const INTERVAL: Duration = Duration::from_millis(500);
const RETAINED: u64 = 3;
const SUBTASKS: usize = 4;
/// Files that a subtask's state is compacted into, and their size.
const BASE_FILES: usize = 12;
const BASE_BYTES: std::ops::Range<usize> = 350_000..450_000;
/// What a checkpoint adds, and how many of these are compacted at a time.
const DELTA_BYTES: std::ops::Range<usize> = 80_000..250_000;
const DELTAS: usize = 4;
/// State of one checkpoint alone: some of it goes into files, some into the catalog.
const OWN_BYTES: std::ops::Range<usize> = 5_000..40_000;
/// Flink deletes and uploads from a few threads.
const AT_ONCE: usize = 8;
/// A page for each file and folder: that much above the limit is nobody's.
const FLOOR_BYTES: u64 = 64 << 10;
/// How long the job runs, unless `ESKER_SPACE_SECONDS` says otherwise.
const SECONDS: u64 = 20;
const AFTER_ITS_END: Duration = Duration::from_secs(15);

/// A key and its length.
type Object = (Key, usize);
/// What a checkpoint uses of `shared/`, and what it alone has.
type Checkpoint = (BTreeSet<Object>, Vec<Object>);

/// The objects of a job and what its checkpoints use. What lives is counted so that it is never too much: from an answered
/// put to the first word of a delete.
struct Job {
    store: AmazonS3,
    rng: StdRng,
    objects: u64,
    living: Arc<AtomicU64>,
    /// Files of each subtask, base files first.
    subtasks: Vec<VecDeque<Object>>,
    checkpoints: BTreeMap<u64, Checkpoint>,
}

impl Job {
    fn new(store: AmazonS3) -> Self {
        let (rng, subtasks) = (StdRng::seed_from_u64(9), vec![VecDeque::new(); SUBTASKS]);
        Self { store, rng, objects: 0, living: Arc::default(), subtasks, checkpoints: BTreeMap::new() }
    }

    fn object(&mut self, folder: &str, lens: std::ops::Range<usize>) -> Object {
        self.objects += 1;
        (Key::from(format!("{JOB}/{folder}/{:08}", self.objects)), self.rng.random_range(lens))
    }

    /// What the subtasks upload to `shared/` for the next checkpoint.
    fn next_files(&mut self) -> Vec<Object> {
        let mut new = vec![];
        for subtask in 0..SUBTASKS {
            let delta = self.object("shared", DELTA_BYTES);
            if self.subtasks[subtask].is_empty() {
                new.extend((0..BASE_FILES).map(|_| self.object("shared", BASE_BYTES)).collect::<Vec<_>>());
                self.subtasks[subtask].extend(new[new.len() - BASE_FILES..].iter().cloned());
            } else if self.subtasks[subtask].len() >= BASE_FILES + DELTAS {
                // The deltas and two of the base files become two base files.
                self.subtasks[subtask].truncate(BASE_FILES);
                self.subtasks[subtask].drain(..2);
                new.extend((0..2).map(|_| self.object("shared", BASE_BYTES)).collect::<Vec<_>>());
                self.subtasks[subtask].extend(new[new.len() - 2..].iter().cloned());
            }
            self.subtasks[subtask].push_back(delta.clone());
            new.push(delta);
        }
        new
    }

    async fn checkpoint(&mut self, number: u64) {
        let new = self.next_files();
        let mut own: Vec<_> = (0..SUBTASKS).map(|_| self.object(&format!("chk-{number}"), OWN_BYTES)).collect();
        self.put_all([new, own.clone()].concat()).await;
        let metadata = (Key::from(format!("{JOB}/chk-{number}/_metadata")), 12_000);
        self.put_all(vec![metadata.clone()]).await;
        own.push(metadata);
        let used = self.subtasks.iter().flatten().cloned().collect();
        self.checkpoints.insert(number, (used, own));
        self.subsume(number.saturating_sub(RETAINED)).await;
    }

    /// Deletes the checkpoints up to `number`, and what no later one uses.
    async fn subsume(&mut self, number: u64) {
        let later = self.checkpoints.split_off(&(number + 1));
        let gone = std::mem::replace(&mut self.checkpoints, later);
        let used: BTreeSet<_> = self.checkpoints.values().flat_map(|(shared, _)| shared).cloned().collect();
        let (mut unused, mut doomed) = (BTreeSet::new(), vec![]);
        for (shared, own) in gone.into_values() {
            unused.extend(shared);
            doomed.extend(own);
        }
        doomed.extend(unused.into_iter().filter(|file| !used.contains(file)));
        self.delete_all(doomed).await;
    }

    async fn put_all(&self, objects: Vec<Object>) {
        let puts = objects.into_iter().enumerate().map(|(seed, (key, len))| async move {
            self.store.put(&key, Bytes::from(pattern(seed as u64, len)).into()).await.unwrap();
            self.living.fetch_add(len as u64, Ordering::Relaxed);
        });
        stream::iter(puts).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    }

    async fn delete_all(&self, objects: Vec<Object>) {
        let deletes = objects.into_iter().map(|(key, len)| async move {
            self.living.fetch_sub(len as u64, Ordering::Relaxed);
            self.store.delete(&key).await.unwrap();
        });
        stream::iter(deletes).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    }
}

/// What the disk holds, as an operator asks it.
fn disk_usage(folder: &PathBuf) -> u64 {
    // A file may go while it is counted: then the command complains, and is right all the same.
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Asks every 250 ms until told to stop. Returns the disk's bytes above the floor per living byte.
fn keep_measuring(folder: PathBuf, living: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<f64>> {
    std::thread::spawn(move || {
        let mut ratios = vec![];
        while !stop.load(Ordering::Relaxed) {
            let live = living.load(Ordering::Relaxed).max(1);
            let held = disk_usage(&folder).saturating_sub(FLOOR_BYTES);
            ratios.push(held as f64 / live.min(living.load(Ordering::Relaxed)).max(1) as f64);
            std::thread::sleep(Duration::from_millis(250));
        }
        ratios
    })
}

/// A metric without labels, or the sum over them.
fn metric(ready: &Ready, name: &str) -> f64 {
    let api = ready.api.strip_prefix("http://").unwrap();
    let mut socket = std::net::TcpStream::connect(api).unwrap();
    let mut text = String::new();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {api}\r\nconnection: close\r\n\r\n");
    std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
    std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
    let of = |line: &str| {
        let (labelled, value) = line.rsplit_once(' ')?;
        (labelled.split('{').next() == Some(name)).then(|| value.parse::<f64>().unwrap())
    };
    text.lines().filter_map(of).sum()
}

/// Waits until the disk holds no more than the limit allows.
async fn settles(folder: &PathBuf, living: u64, daemon: &Process) {
    let begun = Instant::now();
    loop {
        let held = disk_usage(folder);
        if held as f64 <= AMPLIFICATION_MAX * living as f64 + FLOOR_BYTES as f64 {
            println!("{held} bytes are held for {living} living ones after {:?}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < AFTER_ITS_END, "{held} bytes are held for {living} living ones:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What the figures say of a job at rest is what the disk says.
async fn assert_figures_agree(folder: &PathBuf, ready: &Ready, living: u64) {
    let begun = Instant::now();
    let total = loop {
        let total = du(ready)["total"].clone();
        // A file is gone from the disk a moment before the catalog knows.
        if total["forgotten_bytes"] == 0 {
            break total;
        }
        assert!(begun.elapsed() < AFTER_ITS_END, "something waits to be deleted: {total}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let bytes = |name: &str| total[name].as_u64().unwrap();
    assert_eq!(bytes("live_bytes"), living, "{total}");
    let held = disk_usage(folder);
    assert!(held.abs_diff(bytes("physical_bytes")) <= FLOOR_BYTES, "{held} bytes on disk: {total}");
    assert_eq!(metric(ready, "esker_physical_bytes") as u64, bytes("physical_bytes"));
    assert_eq!(metric(ready, "esker_forgotten_bytes"), 0.0);
    assert_eq!(metric(ready, "esker_reclaim_lag_seconds"), 0.0);
    let ratio = total["amplification"].as_f64().unwrap();
    assert!((metric(ready, "esker_space_amplification") - ratio).abs() < 1e-9, "{total}");
    assert!((ratio - bytes("physical_bytes") as f64 / (living - bytes("inline_bytes")) as f64).abs() < 1e-9, "{total}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_follows_a_job_with_a_checkpoint_every_500_ms() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data/data");
    let mut daemon = Process::spawn(folder.path(), &[]);
    let ready = daemon.wait_ready();
    let mut job = Job::new(client(&ready));
    let given = std::env::var("ESKER_SPACE_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let checkpoints = given.unwrap_or(SECONDS) * 1000 / INTERVAL.as_millis() as u64;
    job.checkpoint(1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let measured = keep_measuring(data.clone(), Arc::clone(&job.living), Arc::clone(&stop));

    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 2..=checkpoints {
        ticks.tick().await;
        job.checkpoint(number).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut ratios = measured.join().unwrap();
    ratios.sort_by(f64::total_cmp);

    let at = |part: f64| ratios[((ratios.len() - 1) as f64 * part) as usize];
    println!("{} looks: median {:.2}, p99 {:.2}, max {:.2}", ratios.len(), at(0.5), at(0.99), at(1.0));
    assert!(at(0.99) <= 1.25 * AMPLIFICATION_MAX, "p99 {:.2}, max {:.2}:\n{}", at(0.99), at(1.0), daemon.log());

    // The job is cancelled and retains its last checkpoint.
    job.subsume(checkpoints - 1).await;
    let living = job.living.load(Ordering::Relaxed);
    settles(&data, living, &daemon).await;
    // That is deleted, too, but for one small object that somebody keeps: it lives in a file of many megabytes.
    let (mut shared, _) = job.checkpoints.get(&checkpoints).cloned().unwrap();
    let kept = shared.pop_last().unwrap();
    job.checkpoints.insert(checkpoints + 1, (BTreeSet::from([kept.clone()]), vec![]));
    job.subsume(checkpoints).await;
    settles(&data, kept.1 as u64, &daemon).await;
    assert_figures_agree(&data, &ready, kept.1 as u64).await;
    job.subsume(checkpoints + 1).await;
    settles(&data, 0, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_own_merging_is_on_is_warned_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Process::spawn(folder.path(), &[]);
    let store = client(&daemon.wait_ready());
    let id = "0123456789abcdef0123456789abcdef";

    for key in ["shared/job_{}_op_a_1_4_/1", "shared/job_{}_op_a_2_4_/2", "taskowned/job_{}_tm_a/3", "shared/4"] {
        let key = Key::from(format!("{JOB}/{}", key.replace("{}", id)));
        store.put(&key, Bytes::from_static(b"state").into()).await.unwrap();
    }

    let log = daemon.log();
    assert_eq!(log.matches("execution.checkpointing.file-merging.enabled").count(), 1, "{log}");
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 4, "it is told, not refused");
}
