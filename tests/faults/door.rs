//! A checkpoint as an unmodified S3 client writes it: many small files of one job, through the S3 door.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::faults::Logged;
use crate::s3_server::S3Server;
use crate::support::{INLINE, LATENCY_OF_S3, Running, SIGNED, bytes_of, data_files, metric, settings};

const BUCKET: &str = "flink";
const FILES: u64 = 257;
/// Longer than the pause of a client between two requests, on a machine that does much else.
const PATIENT: [(&str, &str); 2] = [("merging.linger-min", "1 s"), ("merging.linger-max", "5 s")];
/// What the product does by default, and the other tests turn off.
const DEFAULTS: [(&str, &str); 2] = [(INLINE, "20 kb"), ("merging.inline-group-max", "1 mb")];

/// Where Flink puts an exclusive state file of checkpoint 1.
fn key(file: u64) -> Path {
    Path::from(format!(
        "checkpoints/0123456789abcdef0123456789abcdef/chk-1/{:08x}-0000-4000-8000-{file:012x}",
        file * 31
    ))
}

fn data_of(file: u64) -> Bytes {
    bytes_of(file, 1500 + usize::try_from(file).unwrap() * 7)
}

/// Puts all files, so many at a time: the subtasks of a job, when the barrier has passed them.
async fn put_checkpoint(client: &AmazonS3, at_once: usize) {
    let puts = futures::stream::iter((0..FILES).map(|file| {
        let client = client.clone();
        tokio::spawn(async move { client.put(&key(file), data_of(file).into()).await.unwrap() })
    }));
    puts.buffer_unordered(at_once).for_each(|put| async { drop(put.unwrap()) }).await;
}

async fn assert_checkpoint(client: &AmazonS3) {
    for file in 0..FILES {
        let read = client.get(&key(file)).await.unwrap().bytes().await.unwrap();
        assert!(read == data_of(file), "{} has other bytes", key(file));
    }
    assert_eq!(client.list(None).count().await, usize::try_from(FILES).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_257_small_files_becomes_at_most_5_backend_writes_on_s3() {
    let all = usize::try_from(FILES).unwrap();
    // 64 at a time are five groups, each a commit: a few that miss one go with the next. All at once are a file and its commit,
    // and perhaps a group before it. What is more than that comes of a machine on which half of the requests take longer than a
    // group may wait.
    for (at_once, patience, at_most) in [(all, &PATIENT[..], 5), (64, &PATIENT[..], 5), (all, &[], 8), (64, &[], 6)] {
        let server = S3Server::start().await;
        let daemon = Running::start(settings(&server, &[&SIGNED[..], &DEFAULTS[..], patience].concat())).await;
        let client = daemon.s3_client(BUCKET).await;
        server.faults().set_latency(LATENCY_OF_S3);
        let before = server.faults().requests().len();

        put_checkpoint(&client, at_once).await;

        let writes: Vec<Logged> = server.faults().requests().split_off(before);
        let writes: Vec<&Logged> = writes.iter().filter(|request| request.op.writes()).collect();
        println!("{at_once} at once: {} writes, {} physical files", writes.len(), data_files(&server).len());
        writes.iter().for_each(|write| println!("    {:?} {}", write.op, write.key));
        assert!(writes.len() <= at_most, "{at_once} at once: {} backend writes: {writes:#?}", writes.len());
        server.faults().set_latency(Duration::ZERO);
        assert_checkpoint(&client).await;
        daemon.kill().await;
        let daemon = Running::start(settings(&server, &SIGNED)).await;
        assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_257_small_files_becomes_at_most_5_physical_files_on_a_local_disk() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start().await;
    let url = format!("file:{}", folder.path().display());
    let changed = [&SIGNED[..], &[("store.url", url.as_str())]].concat();
    let daemon = Running::start(settings(&server, &changed)).await;
    let client = daemon.s3_client(BUCKET).await;

    put_checkpoint(&client, 257).await;

    let files = metric(&daemon.client, "esker_physical_files_created_total").await;
    assert!((1.0..=5.0).contains(&files), "{files} physical files");
    assert_checkpoint(&client).await;
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}
