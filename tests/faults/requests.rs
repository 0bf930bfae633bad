//! What the backend is asked to write for a checkpoint of Flink and for a micro-batch of Spark, as their S3 clients send
//! them: each thread sends a request when the one before was answered. What counts is the number of writes, not their time.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{CopyOptions, ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

use crate::faults::{Op, data, log};
use crate::s3_server::S3Server;
use crate::support::{INLINE, LATENCY_OF_S3, Running, SIGNED, bytes_of, settings};

const BUCKET: &str = "engines";
/// What the product does by default, and the other tests turn off. `esker serve` finds a folder for the ledger itself.
const DEFAULTS: [(&str, &str); 2] = [(INLINE, "20 kb"), ("merging.inline-group-max", "1 mb")];

const JOB: &str = "checkpoints/0123456789abcdef0123456789abcdef";
const SUBTASKS: u64 = 4;
/// Files of RocksDB that a subtask uploads for a checkpoint, and of those how many the next one does without.
const SHARED_FILES: u64 = 4;
const SHARED_BYTES: usize = 30_000;
const EXCLUSIVE_BYTES: usize = 6_000;
const CHECKPOINTS: u64 = 6;
/// Threads of a JobManager that delete, which by default are as many as it has cores.
const THREADS_OF_TWO_CORES: usize = 2;

const BATCHES: u64 = 4;
/// A micro-batch of 22 files: the log of offsets, the state of 20 partitions, the log of commits.
const PARTITIONS: u64 = 20;
const TASKS_AT_ONCE: usize = 2;
const DELTA_BYTES: usize = 3_000;

/// Writes that came to the backend.
#[derive(Debug, Clone, Copy, Default)]
struct Writes {
    data: usize,
    commits: usize,
    others: usize,
}

impl Writes {
    fn of(server: &S3Server) -> Self {
        let count = |wanted: fn(&str) -> bool| server.faults().count(|it| it.op == Op::Put && wanted(&it.key));
        let (data, commits) = (count(data), count(log));
        let all = server.faults().count(|it| it.op.writes() && it.op != Op::Delete);
        Self { data, commits, others: all - data - commits }
    }

    fn since(self, before: Self) -> Self {
        Self {
            data: self.data - before.data,
            commits: self.commits - before.commits,
            others: self.others - before.others,
        }
    }

    fn per(self, rounds: u64) -> (f64, f64) {
        (self.data as f64 / rounds as f64, self.commits as f64 / rounds as f64)
    }
}

/// What a client does before a write: S3A and Flink look whether something is there.
async fn look(client: &AmazonS3, key: &str) {
    drop(client.head(&Path::from(key)).await);
    client.list(Some(&Path::from(key))).next().await;
}

async fn put(client: &AmazonS3, key: &str, data: Bytes) {
    look(client, key).await;
    client.put(&Path::from(key), data.into()).await.unwrap();
}

/// Flink's native file system deletes one by one.
async fn delete(client: &AmazonS3, key: &str) {
    let key = Path::from(key);
    client.head(&key).await.unwrap();
    client.delete(&key).await.unwrap();
}

fn uuid(number: u64) -> String {
    format!("{number:08x}-0000-4000-8000-{number:012x}")
}

fn shared_file(checkpoint: u64, subtask: u64, file: u64) -> String {
    format!("{JOB}/shared/{}", uuid(checkpoint * 1000 + subtask * 100 + file))
}

fn exclusive_file(checkpoint: u64, subtask: u64) -> String {
    format!("{JOB}/chk-{checkpoint}/{}", uuid(checkpoint * 1000 + subtask))
}

/// One subtask's part of a checkpoint: its files of RocksDB four at a time, then what is its own.
async fn snapshot(client: &AmazonS3, checkpoint: u64, subtask: u64) {
    let files = (0..SHARED_FILES).map(|file| {
        let key = shared_file(checkpoint, subtask, file);
        async move { put(client, &key, bytes_of(file, SHARED_BYTES)).await }
    });
    join_all(files).await;
    put(client, &exclusive_file(checkpoint, subtask), bytes_of(subtask, EXCLUSIVE_BYTES)).await;
}

/// `_metadata` comes as a multipart upload of one part.
async fn complete(client: &AmazonS3, checkpoint: u64) {
    let key = format!("{JOB}/chk-{checkpoint}/_metadata");
    look(client, &key).await;
    let mut upload = client.put_multipart(&Path::from(key)).await.unwrap();
    upload.put_part(bytes_of(checkpoint, 12_000).into()).await.unwrap();
    upload.complete().await.unwrap();
}

/// A checkpoint is subsumed: its own files and those of RocksDB that the next one does without, one by one from some threads,
/// then `_metadata`; then what is left of its folder is looked for.
async fn discard(client: &AmazonS3, checkpoint: u64, threads: usize) {
    let mut keys = vec![];
    for subtask in 0..SUBTASKS {
        keys.push(exclusive_file(checkpoint, subtask));
        let shared = 0..SHARED_FILES - u64::from(subtask % 2 == 0);
        keys.extend(shared.map(|file| shared_file(checkpoint, subtask, file)));
    }
    let deletes = keys.into_iter().map(|key| async move { delete(client, &key).await });
    futures::stream::iter(deletes).buffer_unordered(threads).collect::<Vec<()>>().await;
    delete(client, &format!("{JOB}/chk-{checkpoint}/_metadata")).await;
    look(client, &format!("{JOB}/chk-{checkpoint}")).await;
}

async fn checkpoint(client: &AmazonS3, number: u64, threads: usize) {
    join_all((0..SUBTASKS).map(|subtask| snapshot(client, number, subtask))).await;
    complete(client, number).await;
    if number > 1 {
        discard(client, number - 1, threads).await;
    }
}

/// A file as Spark's file manager writes it: under a temporary name, which is then renamed; S3A copies and deletes.
async fn write_and_rename(client: &AmazonS3, folder: &str, name: &str, task: Option<u64>, data: Bytes) {
    let task = task.map_or_else(String::new, |task| format!(".TID{task}"));
    let temporary = format!("{folder}/.{name}.{}{task}.tmp", uuid(data.len() as u64));
    let (from, to) = (Path::from(temporary.as_str()), Path::from(format!("{folder}/{name}")));
    client.put(&from, data.into()).await.unwrap();
    client.head(&from).await.unwrap();
    look(client, to.as_ref()).await;
    client.copy_opts(&from, &to, CopyOptions::default()).await.unwrap();
    client.delete(&from).await.unwrap();
}

async fn micro_batch(client: &AmazonS3, number: u64) {
    write_and_rename(client, "query/offsets", &number.to_string(), None, bytes_of(number, 1200)).await;
    let tasks = (0..PARTITIONS).map(|partition| async move {
        let (folder, name) = (format!("query/state/0/{partition}"), format!("{}.delta", number + 1));
        let task = number * PARTITIONS + partition;
        write_and_rename(client, &folder, &name, Some(task), bytes_of(task, DELTA_BYTES)).await;
    });
    futures::stream::iter(tasks).buffer_unordered(TASKS_AT_ONCE).collect::<Vec<()>>().await;
    write_and_rename(client, "query/commits", &number.to_string(), None, bytes_of(number, 29)).await;
}

/// Ends a daemon in order, and compares what another one finds.
async fn assert_objects(server: &S3Server, daemon: Running, expected: &BTreeMap<String, Bytes>) {
    daemon.shut_down().await.unwrap();
    let daemon = Running::start(settings(server, &SIGNED)).await;
    let client = daemon.s3_client_of(BUCKET);
    let listed: Vec<_> = client.list(None).try_collect().await.unwrap();
    let mut listed: Vec<String> = listed.into_iter().map(|meta| meta.location.to_string()).collect();
    listed.sort();
    assert_eq!(listed, expected.keys().cloned().collect::<Vec<_>>());
    for (key, data) in expected {
        let read = client.get(&Path::from(key.as_str())).await.unwrap().bytes().await.unwrap();
        assert!(read == data, "{key} has other bytes");
    }
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}

async fn daemon_and_client(disk: &TempDir, way: &[(&str, &str)]) -> (S3Server, Running, AmazonS3) {
    let server = S3Server::start().await;
    let ledger = [("merging.delete-ledger", disk.path().to_str().unwrap())];
    let daemon = Running::start(settings(&server, &[&SIGNED[..], &DEFAULTS[..], &ledger[..], way].concat())).await;
    let client = daemon.s3_client(BUCKET).await;
    server.faults().set_latency(LATENCY_OF_S3);
    (server, daemon, client)
}

async fn writes_per_checkpoint(way: &[(&str, &str)], threads: usize) -> f64 {
    let disk = tempfile::tempdir().unwrap();
    let (server, daemon, client) = daemon_and_client(&disk, way).await;
    checkpoint(&client, 1, threads).await;
    let before = Writes::of(&server);

    for number in 2..2 + CHECKPOINTS {
        checkpoint(&client, number, threads).await;
    }

    let writes = Writes::of(&server).since(before);
    let (data, commits) = writes.per(CHECKPOINTS);
    println!(
        "a checkpoint, {way:?}, {threads} threads: {data:.1} puts of data, {commits:.1} commits; {} other writes",
        writes.others
    );
    server.faults().set_latency(std::time::Duration::ZERO);
    let newest = 1 + CHECKPOINTS;
    let mut expected = BTreeMap::new();
    for subtask in 0..SUBTASKS {
        expected.insert(exclusive_file(newest, subtask), bytes_of(subtask, EXCLUSIVE_BYTES));
        for number in 1..=newest {
            for file in
                (0..SHARED_FILES).filter(|file| number == newest || subtask % 2 == 0 && *file == SHARED_FILES - 1)
            {
                expected.insert(shared_file(number, subtask, file), bytes_of(file, SHARED_BYTES));
            }
        }
    }
    expected.insert(format!("{JOB}/chk-{newest}/_metadata"), bytes_of(newest, 12_000));
    assert_objects(&server, daemon, &expected).await;
    data + commits
}

async fn writes_per_batch(way: &[(&str, &str)]) -> f64 {
    let disk = tempfile::tempdir().unwrap();
    let (server, daemon, client) = daemon_and_client(&disk, way).await;
    micro_batch(&client, 0).await;
    let before = Writes::of(&server);

    for number in 1..=BATCHES {
        micro_batch(&client, number).await;
    }

    let writes = Writes::of(&server).since(before);
    let (data, commits) = writes.per(BATCHES);
    println!("a micro-batch, {way:?}: {data:.1} puts of data, {commits:.1} commits; {} other writes", writes.others);
    server.faults().set_latency(std::time::Duration::ZERO);
    let mut expected = BTreeMap::new();
    for number in 0..=BATCHES {
        expected.insert(format!("query/offsets/{number}"), bytes_of(number, 1200));
        expected.insert(format!("query/commits/{number}"), bytes_of(number, 29));
        for partition in 0..PARTITIONS {
            let data = bytes_of(number * PARTITIONS + partition, DELTA_BYTES);
            expected.insert(format!("query/state/0/{partition}/{}.delta", number + 1), data);
        }
    }
    assert_objects(&server, daemon, &expected).await;
    data + commits
}

const AT_ONCE: (&str, &str) = ("merging.temporary-names", "at-once");
const LAZY: (&str, &str) = ("merging.delete-durability", "lazy");
const ON_STORAGE: (&str, &str) = ("merging.delete-durability", "commit");

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_flink_costs_at_most_6_writes() {
    let writes = writes_per_checkpoint(&[], THREADS_OF_TWO_CORES).await;

    assert!(writes <= 6.0, "{writes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lazy_deletes_save_no_writes_over_those_that_are_noted() {
    let writes = writes_per_checkpoint(&[LAZY], THREADS_OF_TWO_CORES).await;

    assert!(writes <= 6.0, "{writes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_flink_costs_a_write_for_as_many_deletes_as_come_together_on_storage() {
    let few = writes_per_checkpoint(&[ON_STORAGE], THREADS_OF_TWO_CORES).await;
    let many = writes_per_checkpoint(&[ON_STORAGE], 16).await;

    assert!(few >= 10.0, "{few}: the deletes of two threads are ten commits at least");
    assert!(many <= few - 4.0, "{many} instead of {few}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_micro_batch_of_spark_costs_at_most_24_writes() {
    let writes = writes_per_batch(&[]).await;

    assert!(writes <= 24.0, "{writes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_micro_batch_of_spark_costs_more_with_temporary_names_at_once() {
    let writes = writes_per_batch(&[AT_ONCE]).await;

    assert!(writes >= 30.0, "{writes}: the other test shows nothing");
}
