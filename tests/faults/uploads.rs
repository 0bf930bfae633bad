//! Multipart uploads of the S3 door across crashes and lost answers: what Flink's file sink names in its checkpoints.

use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutPayload};

use crate::crashes::data_puts;
use crate::faults::{Fault, Gate, Op, Rule, data, log};
use crate::s3_server::S3Server;
use crate::support::{LITTLE_MEMORY, Running, SIGNED, SOON, bytes_of, data_files, eventually, metric, settings};

const BUCKET: &str = "output";
/// The least that a part but the last one has.
const PART: usize = 5 << 20;
/// Above `store.part-size` of these tests: it is streamed.
const BIG: usize = 6 << 20;
const STREAMED: (&str, &str) = ("store.part-size", "5 mb");

/// A key as the file sink writes it.
fn sink(number: usize) -> Path {
    Path::from(format!("out/2026-11-28--22/part-5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f-{number}"))
}

/// A key whose uploads Flink never resumes.
fn metadata() -> Path {
    Path::from("checkpoints/0123456789abcdef0123456789abcdef/chk-1/_metadata")
}

async fn put(client: &AmazonS3, key: &Path, id: &String, part: usize, data: Bytes) -> Result<PartId, Error> {
    client.put_part(key, id, part, PutPayload::from_bytes(data)).await
}

async fn complete(client: &AmazonS3, key: &Path, id: &String, parts: &[PartId]) -> Result<String, Error> {
    let put = client.complete_multipart(key, id, parts.to_vec()).await?;
    Ok(put.e_tag.expect("a completion has an entity tag"))
}

async fn read(client: &AmazonS3, key: &Path) -> Bytes {
    client.get(key).await.unwrap().bytes().await.unwrap()
}

/// Ends the daemon, and starts the next one.
async fn restart(daemon: Running, kill: bool, with: impl Fn() -> esker::config::Settings) -> (Running, AmazonS3) {
    if kill {
        daemon.kill().await;
    } else {
        daemon.shut_down().await.unwrap();
    }
    let daemon = Running::start(with()).await;
    let client = daemon.s3_client_of(BUCKET);
    (daemon, client)
}

/// An upload of `lens`, with a restart after every answer.
async fn upload_across_restarts(kill: bool, store: Option<&str>, lens: &[usize]) {
    let server = S3Server::start().await;
    let changed: Vec<_> = SIGNED.into_iter().chain([STREAMED]).chain(store.map(|url| ("store.url", url))).collect();
    let with = || settings(&server, &changed);
    let mut daemon = Running::start(with()).await;
    let mut client = daemon.s3_client(BUCKET).await;
    let (key, other) = (sink(0), sink(1));
    let id = client.create_multipart(&key).await.unwrap();
    let aborted = client.create_multipart(&other).await.unwrap();
    let (mut parts, mut whole) = (vec![], vec![]);
    for (number, len) in lens.iter().enumerate() {
        (daemon, client) = restart(daemon, kill, with).await;
        let part = bytes_of(number as u64, *len);
        parts.push(put(&client, &key, &id, number, part.clone()).await.unwrap());
        put(&client, &other, &aborted, number, part.clone()).await.unwrap();
        whole.extend_from_slice(&part);
    }
    (daemon, client) = restart(daemon, kill, with).await;

    let etag = complete(&client, &key, &id, &parts).await.unwrap();
    client.abort_multipart(&other, &aborted).await.unwrap();

    (daemon, client) = restart(daemon, kill, with).await;
    assert_eq!(complete(&client, &key, &id, &parts).await.unwrap(), etag, "the completion, repeated");
    assert!(read(&client, &key).await == whole, "other bytes than were uploaded");
    assert!(matches!(put(&client, &other, &aborted, 0, Bytes::new()).await, Err(Error::NotFound { .. })));
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
    let live = metric(&daemon.client, "esker_live_bytes").await;
    assert!(live as usize == whole.len(), "{live} bytes live of {}", whole.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_uploads_and_parts_survive_a_kill_after_every_answer() {
    upload_across_restarts(true, None, &[BIG, PART, 1000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_uploads_and_parts_survive_a_stop_after_every_answer() {
    upload_across_restarts(false, None, &[PART, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_uploads_and_parts_on_a_local_disk_survive_a_kill_after_every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}", folder.path().display());
    upload_across_restarts(true, Some(&url), &[PART, BIG, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_uploaded_again_and_lost_leaves_the_one_before_it() {
    let server = S3Server::start().await;
    let with = || settings(&server, &SIGNED);
    let daemon = Running::start(with()).await;
    let client = daemon.s3_client(BUCKET).await;
    let (key, first) = (sink(0), bytes_of(1, 1000));
    let id = client.create_multipart(&key).await.unwrap();
    let part = put(&client, &key, &id, 0, first.clone()).await.unwrap();
    let gate = Gate::closed();
    server.faults().add(Rule::on(Op::Put, data).times(1), Fault::HeldThenRefused(gate.clone()));
    let again = {
        let (client, key, id) = (client.clone(), key.clone(), id.clone());
        tokio::spawn(async move { put(&client, &key, &id, 0, bytes_of(2, 2000)).await })
    };
    gate.arrived(1).await;

    let (daemon, client) = restart(daemon, true, with).await;

    gate.open();
    again.abort();
    complete(&client, &key, &id, &[part]).await.unwrap();
    assert!(read(&client, &key).await == first);
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_is_repeated_is_answered_as_the_first_time_while_its_object_is_there() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &SIGNED)).await;
    let client = daemon.s3_client(BUCKET).await;
    for key in [sink(0), metadata()] {
        let id = client.create_multipart(&key).await.unwrap();
        let part = put(&client, &key, &id, 0, bytes_of(1, 1000)).await.unwrap();
        let etag = complete(&client, &key, &id, std::slice::from_ref(&part)).await.unwrap();
        let files = data_files(&server);

        assert_eq!(complete(&client, &key, &id, std::slice::from_ref(&part)).await.unwrap(), etag);
        let other = PartId { content_id: "\"25f9e794323b453885f5181f1b624d0b\"".to_owned() };
        assert!(complete(&client, &key, &id, &[other]).await.is_err(), "other parts were completed");
        assert_eq!(data_files(&server), files, "stored twice");
        let copy = Path::from("elsewhere/copy");
        client.copy(&key, &copy).await.unwrap();
        assert!(complete(&client, &copy, &id, std::slice::from_ref(&part)).await.is_err(), "a copy is no upload's");

        client.put(&key, PutPayload::from_static(b"newer")).await.unwrap();
        let late = complete(&client, &key, &id, &[part]).await;
        assert!(matches!(late, Err(Error::NotFound { .. })), "{late:?}");
        assert_eq!(&read(&client, &key).await[..], b"newer");
    }
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_completions_at_once_one_does_it_and_all_are_answered_alike() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &SIGNED)).await;
    let client = daemon.s3_client(BUCKET).await;
    for (key, held) in [(sink(0), log as fn(&str) -> bool), (metadata(), data)] {
        let id = client.create_multipart(&key).await.unwrap();
        let part = put(&client, &key, &id, 0, bytes_of(1, 1000)).await.unwrap();
        let gate = Gate::closed();
        server.faults().add(Rule::on(Op::Put, held).times(1), Fault::Held(gate.clone()));
        let request = || {
            let (client, key, id, part) = (client.clone(), key.clone(), id.clone(), part.clone());
            tokio::spawn(async move { complete(&client, &key, &id, &[part]).await })
        };
        // The client that was first leaves before it is answered.
        let first = request();
        gate.arrived(1).await;
        first.abort();
        let others: Vec<_> = (0..8).map(|_| request()).collect();
        let put = data_puts(&server, http::StatusCode::OK);
        gate.open();

        let mut tags = vec![];
        for other in others {
            tags.push(other.await.unwrap().unwrap());
        }
        tags.dedup();
        assert_eq!(tags.len(), 1, "{tags:?}");
        assert!(data_puts(&server, http::StatusCode::OK) <= put + 1, "stored twice");
        assert!(read(&client, &key).await == bytes_of(1, 1000));
    }
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_uploads_give_way_to_new_ones_and_leave_nothing() {
    let server = S3Server::start().await;
    let changed = [&SIGNED[..], &[("limits.multipart-uploads-max", "5"), ("limits.multipart-idle", "0")]].concat();
    let with = || settings(&server, &changed);
    let mut daemon = Running::start(with()).await;
    let mut client = daemon.s3_client(BUCKET).await;
    let mut uploads = vec![];
    for number in 0..5 {
        let id = client.create_multipart(&sink(number)).await.unwrap();
        let part = put(&client, &sink(number), &id, 0, bytes_of(number as u64, 1000)).await.unwrap();
        uploads.push((sink(number), id, part));
    }
    (daemon, client) = restart(daemon, true, with).await;
    // Used now: it is the youngest.
    put(&client, &uploads[0].0, &uploads[0].1, 0, bytes_of(0, 1000)).await.unwrap();

    for number in 5..8 {
        client.create_multipart(&sink(number)).await.unwrap();
    }

    eventually("three gave way", SOON, || async {
        metric(&daemon.client, "esker_multipart_uploads_dropped_total").await == 3.0
    })
    .await;
    eventually("their bytes are free", SOON, || async { metric(&daemon.client, "esker_live_bytes").await == 2000.0 })
        .await;
    let mut gone = vec![];
    for (number, (key, id, part)) in uploads.into_iter().enumerate() {
        if complete(&client, &key, &id, &[part]).await.is_err() {
            gone.push(number);
        }
    }
    assert_eq!(gone, [1, 2, 3]);
    (daemon, _) = restart(daemon, true, with).await;
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
    assert_eq!(metric(&daemon.client, "esker_live_bytes").await, 2000.0);
}

/// Puts parts `numbers` of a few bytes each, and returns what the catalog wrote for them.
async fn committed_bytes(daemon: &Running, client: &AmazonS3, id: &str, numbers: std::ops::Range<usize>) -> f64 {
    let before = metric(&daemon.client, "esker_catalog_committed_bytes_total").await;
    let puts = futures::stream::iter(numbers.map(|number| {
        let (client, id) = (client.clone(), id.to_owned());
        async move { put(&client, &sink(0), &id, number, bytes_of(number as u64, 10)).await.unwrap() }
    }));
    drop(futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(puts, 32)).await);
    metric(&daemon.client, "esker_catalog_committed_bytes_total").await - before
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_catalog_writes_for_a_part_does_not_grow_with_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start().await;
    let url = format!("file:{}", folder.path().display());
    let changed = [&SIGNED[..], &LITTLE_MEMORY[..], &[("store.url", url.as_str())]].concat();
    let daemon = Running::start(settings(&server, &changed)).await;
    let client = daemon.s3_client(BUCKET).await;
    let id = client.create_multipart(&sink(0)).await.unwrap();

    let first = committed_bytes(&daemon, &client, &id, 0..500).await;
    committed_bytes(&daemon, &client, &id, 500..1000).await;
    let last = committed_bytes(&daemon, &client, &id, 1000..1500).await;

    assert!(first < 500.0 * 2048.0 && last < first * 1.5, "{first} bytes for the first 500 parts, {last} for the last");
    client.abort_multipart(&sink(0), &id).await.unwrap();
    eventually("all is freed", Duration::from_secs(5), || async {
        metric(&daemon.client, "esker_live_bytes").await == 0.0
    })
    .await;
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
}
