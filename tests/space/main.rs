//! Space as an operator sees it, of the real program on a local disk with its default settings: objects of a job's
//! `shared/` are put and deleted through the S3 door, and `du` on the data folder follows what lives. Meanwhile reads go
//! on, and the daemon is killed. [`checkpoints`] plays a job with fast checkpoints.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod checkpoints;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_test_support::{self as support, process};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use process::{Process, Ready};
use support::pattern;

const OBJECTS: u64 = 3000;
const JOB: &str = "jobs/0123456789abcdef0123456789abcdef";
/// Physical over living bytes, as `du` counts them.
const AMPLIFICATION_MAX: f64 = 2.0;
/// How soon after a delete.
const SOON: Duration = Duration::from_secs(30);

/// What lives: the seed and the length of each object.
type Living = BTreeMap<u64, usize>;

fn client(ready: &Ready) -> AmazonS3 {
    // A restart is bridged by the test, not hidden by the client.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    ready.s3_builder(ClientOptions::new()).with_retry(retry).build().unwrap()
}

fn key(number: u64) -> Key {
    Key::from(format!("{JOB}/shared/{number:08}"))
}

async fn put_all(store: &AmazonS3, living: &mut Living, numbers: std::ops::Range<u64>, rng: &mut StdRng) {
    let new: Vec<(u64, usize)> = numbers.map(|number| (number, rng.random_range(50_000..70_000))).collect();
    let puts = new
        .iter()
        .map(|(number, len)| async move { store.put(&key(*number), Bytes::from(pattern(*number, *len)).into()).await });
    stream::iter(puts).buffer_unordered(32).try_collect::<Vec<_>>().await.unwrap();
    living.extend(new);
}

async fn delete_most(store: &AmazonS3, living: &mut Living, rng: &mut StdRng) {
    let doomed = living.keys().copied().choose_multiple(rng, living.len() * 65 / 100);
    let keys = doomed.iter().map(|number| Ok(key(*number))).collect::<Vec<_>>();
    store.delete_stream(stream::iter(keys).boxed()).try_collect::<Vec<_>>().await.unwrap();
    living.retain(|number, _| !doomed.contains(number));
}

/// Bytes that a folder takes on disk.
fn disk_usage(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        // A file may be deleted while it is counted.
        let Ok(metadata) = entry.as_ref().unwrap().metadata() else { continue };
        let path = entry.unwrap().path();
        bytes +=
            if metadata.is_dir() { disk_usage(&path) } else { std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 };
    }
    bytes
}

/// Waits until the data folder is small enough; panics if that takes too long.
async fn shrinks(folder: &Path, living: &Living, daemon: &Process) {
    let live: u64 = living.values().map(|len| *len as u64).sum();
    let begun = Instant::now();
    loop {
        let amplification = disk_usage(folder) as f64 / live as f64;
        if amplification <= AMPLIFICATION_MAX {
            println!("amplification {amplification:.2} after {:?}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < SOON, "still {amplification:.2} bytes per living byte:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Reads living objects one after the other until told to stop, one at least. Returns how many.
fn keep_reading(store: AmazonS3, living: Living, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut read = 0;
        let mut rng = StdRng::seed_from_u64(7);
        loop {
            let (number, len) = living.iter().choose(&mut rng).unwrap();
            let bytes = store.get(&key(*number)).await.unwrap().bytes().await.unwrap();
            assert!(bytes == pattern(*number, *len), "object {number} has other bytes");
            read += 1;
            if stop.load(Ordering::Relaxed) {
                return read;
            }
        }
    })
}

/// What `esker du` says of the job.
fn du(ready: &Ready) -> serde_json::Value {
    let job = format!("{}/{JOB}", ready.bucket);
    let output =
        process::esker().args(["du", "--json", "--by", "lane", "--job", &job, "--api", &ready.api]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn check_all(store: &AmazonS3, living: &Living) {
    let listed: Vec<_> = store.list(Some(&Key::from(format!("{JOB}/shared")))).try_collect().await.unwrap();
    assert_eq!(listed.len(), living.len(), "objects that are listed");
    for (number, len) in living {
        let bytes = store.get(&key(*number)).await.unwrap().bytes().await.unwrap();
        assert!(bytes == pattern(*number, *len), "object {number} has other bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_folder_follows_what_lives_while_reads_go_on_and_the_daemon_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data/data");
    let mut rng = StdRng::seed_from_u64(4);
    let mut daemon = Process::spawn(folder.path(), &[]);
    let mut ready = daemon.wait_ready();
    let mut store = client(&ready);
    let mut living = Living::new();

    for round in 0..3_u64 {
        put_all(&store, &mut living, round * OBJECTS..(round + 1) * OBJECTS, &mut rng).await;
        delete_most(&store, &mut living, &mut rng).await;
        if round == 2 {
            // In the middle of whatever the reclaimer does about that.
            tokio::time::sleep(Duration::from_millis(rng.random_range(9_500..10_500))).await;
            drop(daemon);
            daemon = Process::spawn(folder.path(), &[]);
            ready = daemon.wait_ready();
            store = client(&ready);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let reader = keep_reading(store.clone(), living.clone(), Arc::clone(&stop));
        shrinks(&data, &living, &daemon).await;
        stop.store(true, Ordering::Relaxed);
        assert!(reader.await.unwrap() > 0);
        check_all(&store, &living).await;
        let total = du(&ready)["total"].clone();
        assert_eq!(total["live_bytes"], living.values().sum::<usize>(), "{total}");
        assert_eq!(total["segments"], living.len(), "{total}");
        assert!(total["amplification"].as_f64().unwrap() <= AMPLIFICATION_MAX, "{total}");
    }
    daemon.terminate();
    let verified = process::esker()
        .args(["verify", "--read-data", "100", "--data-dir"])
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
