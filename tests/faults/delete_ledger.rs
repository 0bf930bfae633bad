//! Deletes of state that are answered once they are noted on the local disk: a daemon that dies then, and a disk that fails.

use std::collections::BTreeSet;
use std::path::Path as FilePath;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use esker::runtime::Clock;
use esker_test_support::process;
use futures::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::crashes::commits;
use crate::offline;
use crate::s3_server::S3Server;
use crate::support::{INLINE, Running, SIGNED, SOON, Threads, bytes_of, eventually, seed, settings};

const BUCKET: &str = "engines";
const JOB: &str = "d/0123456789abcdef0123456789abcdef";
const LEDGER: &str = "merging.delete-ledger";
/// What is lazy becomes durable by itself only after longer than a test waits.
const DEFAULTS: [(&str, &str); 3] =
    [(INLINE, "20 kb"), ("merging.inline-group-max", "256 kb"), ("merging.lazy-linger", "10 s")];

/// A store, and a machine with a disk.
struct World {
    server: S3Server,
    disk: TempDir,
}

impl World {
    async fn new() -> Self {
        Self { server: S3Server::start().await, disk: tempfile::tempdir().unwrap() }
    }

    async fn start(&self) -> Running {
        self.start_with(&[(LEDGER, self.disk.path().to_str().unwrap())]).await
    }

    async fn start_with(&self, changed: &[(&str, &str)]) -> Running {
        Running::start(settings(&self.server, &[&SIGNED[..], &DEFAULTS[..], changed].concat())).await
    }

    async fn daemon_and_client(&self) -> (Running, AmazonS3) {
        let daemon = self.start().await;
        let client = daemon.s3_client(BUCKET).await;
        (daemon, client)
    }

    /// Kills a daemon and starts another one.
    async fn crash(&self, daemon: Running) -> (Running, AmazonS3) {
        daemon.kill().await;
        let daemon = self.start().await;
        assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
        let client = daemon.s3_client_of(BUCKET);
        (daemon, client)
    }

    /// The one folder that the store has on the disk.
    fn folder(&self) -> std::path::PathBuf {
        let mut found = std::fs::read_dir(self.disk.path()).unwrap();
        let folder = found.next().unwrap().unwrap().path();
        assert!(found.next().is_none());
        folder
    }
}

fn state(number: u64) -> String {
    format!("{JOB}/shared/{number:08x}-0000-4000-8000-000000000000")
}

async fn put(client: &AmazonS3, number: u64) {
    client.put(&Path::from(state(number)), bytes_of(number, 1000).into()).await.unwrap();
}

async fn delete(client: &AmazonS3, number: u64) {
    client.delete(&Path::from(state(number))).await.unwrap();
}

async fn get(client: &AmazonS3, number: u64) -> Option<Bytes> {
    match client.get(&Path::from(state(number))).await {
        Ok(found) => Some(found.bytes().await.unwrap()),
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{number}: {error}"),
    }
}

async fn listed(client: &AmazonS3) -> Vec<String> {
    let all: Vec<_> = client.list(None).try_collect().await.unwrap();
    let mut keys: Vec<String> = all.into_iter().map(|meta| meta.location.to_string()).collect();
    keys.sort();
    keys
}

fn states(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_was_answered_costs_no_commit_and_lasts() {
    let world = World::new().await;
    let (daemon, client) = world.daemon_and_client().await;
    for number in 1..=4 {
        put(&client, number).await;
    }
    let before = commits(&world.server);

    delete(&client, 1).await;
    let keys = [2, 3].map(|number| Ok(Path::from(state(number))));
    let deleted: Vec<Path> = client.delete_stream(Box::pin(futures::stream::iter(keys))).try_collect().await.unwrap();
    // Gone already, and so it is answered.
    delete(&client, 1).await;

    assert_eq!((deleted.len(), commits(&world.server)), (2, before));
    assert_eq!(listed(&client).await, states([4]));
    let (daemon, client) = world.crash(daemon).await;
    assert_eq!(listed(&client).await, states([4]));
    // What was done again is durable, whatever becomes of the disk.
    daemon.kill().await;
    std::fs::remove_dir_all(world.folder()).unwrap();
    let daemon = world.start().await;
    assert_eq!(listed(&daemon.s3_client_of(BUCKET)).await, states([4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_disk_the_last_deletes_are_lost_and_nothing_else() {
    let world = World::new().await;
    let (daemon, client) = world.daemon_and_client().await;
    for number in 1..=3 {
        put(&client, number).await;
    }
    delete(&client, 1).await;
    put(&client, 4).await;
    delete(&client, 2).await;

    daemon.kill().await;
    std::fs::remove_dir_all(world.folder()).unwrap();
    let daemon = world.start().await;

    let client = daemon.s3_client_of(BUCKET);
    assert_eq!(listed(&client).await, states([2, 3, 4]), "deleted before something that is durable is deleted");
    assert_eq!(get(&client, 2).await, Some(bytes_of(2, 1000)), "whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_again_stays_though_the_ledger_names_its_key() {
    let world = World::new().await;
    let (daemon, client) = world.daemon_and_client().await;
    for number in 1..=2 {
        put(&client, number).await;
        delete(&client, number).await;
    }
    // The same bytes under the same key, and a copy.
    put(&client, 1).await;
    client.copy(&Path::from(state(1)), &Path::from(state(2))).await.unwrap();

    let (daemon, client) = world.crash(daemon).await;
    assert_eq!((get(&client, 1).await, get(&client, 2).await), (Some(bytes_of(1, 1000)), Some(bytes_of(1, 1000))));
    // A start that died before it removed what it had done does it once more.
    let (_daemon, client) = world.crash(daemon).await;
    assert_eq!(listed(&client).await, states([1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_makes_deletes_wait_for_their_commit() {
    let world = World::new().await;
    let (daemon, client) = world.daemon_and_client().await;
    for number in 1..=3 {
        put(&client, number).await;
    }
    let folder = world.folder();
    std::fs::remove_dir_all(&folder).unwrap();
    let before = commits(&world.server);

    delete(&client, 1).await;
    let after = commits(&world.server);
    delete(&client, 2).await;
    assert!(after > before && commits(&world.server) > after);
    let metrics = daemon.client.metrics().await.unwrap();
    assert!(metrics.contains("esker_delete_ledger_failures_total 2"), "{metrics}");
    // It is tried again each time.
    std::fs::create_dir(&folder).unwrap();
    let before = commits(&world.server);
    delete(&client, 3).await;
    assert_eq!(commits(&world.server), before);

    let (_daemon, client) = world.crash(daemon).await;
    assert_eq!(listed(&client).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used_refuses_the_start_and_leaves_nothing() {
    let world = World::new().await;
    let file = world.disk.path().join("file");
    std::fs::write(&file, b"").unwrap();

    let changed = [&SIGNED[..], &DEFAULTS[..], &[(LEDGER, file.to_str().unwrap())]].concat();
    let old = world.start_with(&[]).await;
    let told = Running::try_start(settings(&world.server, &changed), Threads::Two).await.err().unwrap();

    assert!(told.contains("merging.delete-ledger") && told.contains(file.to_str().unwrap()), "{told}");
    // Whoever has the store keeps it.
    put(&old.s3_client(BUCKET).await, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_folder_and_for_other_keys_a_delete_is_a_commit() {
    let world = World::new().await;
    let daemon = world.start_with(&[]).await;
    let client = daemon.s3_client(BUCKET).await;
    put(&client, 1).await;
    let before = commits(&world.server);
    delete(&client, 1).await;
    assert!(commits(&world.server) > before);
    daemon.kill().await;

    let daemon = world.start().await;
    let client = daemon.s3_client_of(BUCKET);
    for key in ["q/offsets/7", "pictures/cat.png"] {
        client.put(&Path::from(key), bytes_of(1, 1000).into()).await.unwrap();
        let before = commits(&world.server);
        client.delete(&Path::from(key)).await.unwrap();
        assert!(commits(&world.server) > before, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_takes_the_folder_of_a_service() {
    let world = World::new().await;
    let mut command = process::esker();
    command
        .args(["serve", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--ready-file"])
        .arg(world.disk.path().join("ready"));
    command.args(offline::keys(&world.server)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("STATE_DIRECTORY", world.disk.path());

    let mut daemon = command.spawn().unwrap();
    eventually("the daemon is ready", SOON, || async { world.disk.path().join("ready").exists() }).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    assert_eq!(folders(&world.disk.path().join("deletes")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_finds_its_own_deletes_alone() {
    let (world, other) = (World::new().await, S3Server::start().await);
    let (daemon, client) = world.daemon_and_client().await;
    put(&client, 1).await;
    delete(&client, 1).await;
    daemon.kill().await;

    // Another store with the same key, on the same disk.
    let ledger = [(LEDGER, world.disk.path().to_str().unwrap())];
    let of_other = settings(&other, &[&SIGNED[..], &DEFAULTS[..], &ledger[..]].concat());
    let daemon = Running::start(of_other.clone()).await;
    put(&daemon.s3_client(BUCKET).await, 1).await;
    daemon.kill().await;
    let daemon = Running::start(of_other).await;

    assert_eq!(listed(&daemon.s3_client_of(BUCKET)).await, states([1]));
    assert_eq!(folders(world.disk.path()), 2);
    let daemon = world.start().await;
    assert_eq!(listed(&daemon.s3_client_of(BUCKET)).await, Vec::<String>::new());
}

fn folders(disk: &FilePath) -> usize {
    std::fs::read_dir(disk).unwrap().count()
}

/// The objects that a writer knows.
#[derive(Default)]
struct Known {
    there: BTreeSet<u64>,
    deleted: BTreeSet<u64>,
    in_doubt: Option<u64>,
}

/// Puts objects, and deletes most of them, until the daemon ends.
async fn put_and_delete(client: AmazonS3, first: u64, known: &Mutex<Known>) {
    for number in first.. {
        known.lock().in_doubt = Some(number);
        let path = Path::from(state(number));
        if client.put(&path, bytes_of(number, 1000).into()).await.is_err() {
            return;
        }
        known.lock().there.insert(number);
        if !number.is_multiple_of(4) {
            known.lock().there.remove(&number);
            if client.delete(&path).await.is_err() {
                return;
            }
            known.lock().deleted.insert(number);
        }
        known.lock().in_doubt = None;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_stays_so_whenever_the_daemon_is_killed() {
    let mut dice = StdRng::seed_from_u64(seed());
    let begun = Clock::instant();
    let world = World::new().await;
    let (mut daemon, _) = world.daemon_and_client().await;
    let known: Vec<Mutex<Known>> = (0..4).map(|_| Mutex::default()).collect();
    let mut rounds = 0;
    while rounds < 10 && begun.elapsed() < Duration::from_secs(20) {
        rounds += 1;
        let client = daemon.s3_client_that_gives_up(BUCKET);
        let writers = known
            .iter()
            .enumerate()
            .map(|(writer, known)| put_and_delete(client.clone(), rounds * 100_000 + writer as u64 * 10_000, known));
        let wanted = commits(&world.server) + dice.random_range(1..20);
        let kill = async {
            eventually("the backend gets commits", SOON, || async { commits(&world.server) >= wanted }).await;
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..20))).await;
            daemon.kill().await;
        };

        tokio::join!(futures::future::join_all(writers), kill);

        daemon = world.start().await;
        assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
        let found: BTreeSet<String> = listed(&daemon.s3_client_of(BUCKET)).await.into_iter().collect();
        for known in &known {
            let mut known = known.lock();
            for number in &known.deleted {
                assert!(!found.contains(&state(*number)), "{number} was deleted, in round {rounds}");
            }
            for number in &known.there {
                assert!(found.contains(&state(*number)), "{number} was put, in round {rounds}");
            }
            known.in_doubt = None;
        }
    }
    let deleted: usize = known.iter().map(|known| known.lock().deleted.len()).sum();
    assert!(rounds > 1 && deleted > 10, "{rounds} rounds, {deleted} deletes");
}
