//! Restoring many segments from a store that is far away, damaged or slow: few requests, right bytes or an error.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use esker_client::wire::{BatchAnswer, BatchHead, ErrorKind, RestoreRequest, SegmentInfo};
use esker_client::{Client, ClientError, Restore};
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::faults::{Fault, Logged, Op, Rule, data};
use crate::s3_server::S3Server;
use crate::support::{JOB, LITTLE_MEMORY, Running, SIGNED, bytes_of, metric, put, server_and_daemon, settings};

const LATENCY_OF_S3: Duration = Duration::from_millis(30);
const SEGMENT_BYTES: usize = 16 << 10;

/// Stores segments in batches, in the order of their seeds. They are of one checkpoint, which is complete then.
async fn stored(client: &Client, segments: u64, len: usize) -> Vec<SegmentInfo> {
    let mut infos = vec![];
    for batch in (0..segments).collect::<Vec<_>>().chunks(500) {
        let head = |seed: &u64| BatchHead {
            checkpoint: Some(1),
            task_manager: Some("tm-1".to_owned()),
            name: Some(format!("{seed:06}")),
            ..BatchHead::default()
        };
        let heads: Vec<_> = batch.iter().map(|seed| (head(seed), bytes_of(*seed, len))).collect();
        for answer in client.put_many(JOB, &heads).await.unwrap() {
            match answer {
                BatchAnswer::Stored(info) => infos.push(info),
                BatchAnswer::Error(error) => panic!("{error:?}"),
            }
        }
    }
    client.complete(JOB, 1).await.unwrap();
    infos
}

pub fn these(infos: &[SegmentInfo]) -> RestoreRequest {
    let segments = infos.iter().map(|info| info.segment.clone()).collect();
    RestoreRequest { segments: Some(segments), ..RestoreRequest::default() }
}

/// Everything that arrives: identities and bytes.
pub async fn all(mut restore: Restore) -> Result<Vec<(String, Bytes)>, ClientError> {
    let mut arrived = vec![];
    while let Some(segment) = restore.next().await? {
        let mut whole = BytesMut::new();
        while let Some(bytes) = restore.bytes().await? {
            whole.extend_from_slice(&bytes);
        }
        arrived.push((segment.info.segment, whole.freeze()));
    }
    Ok(arrived)
}

fn gets(server: &S3Server) -> usize {
    server.faults().count(|logged: &Logged| logged.op == Op::Get && data(&logged.key))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_2000_small_segments_over_a_store_with_latency_takes_few_gets() {
    const SEGMENTS: u64 = 2000;
    let (server, daemon) = server_and_daemon(&[]).await;
    let infos = stored(&daemon.client, SEGMENTS, SEGMENT_BYTES).await;
    server.faults().set_latency(LATENCY_OF_S3);
    let checkpoint = RestoreRequest { job: Some(JOB.to_owned()), checkpoint: Some(1), ..RestoreRequest::default() };
    let backwards: Vec<SegmentInfo> = infos.iter().rev().cloned().collect();

    for (wanted, order) in [(checkpoint, &infos), (these(&infos), &infos), (these(&backwards), &backwards)] {
        let before = gets(&server);
        let arrived = all(daemon.client.restore(&wanted).await.unwrap()).await.unwrap();
        let requests = gets(&server) - before;

        let ids: Vec<&String> = arrived.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, order.iter().map(|info| &info.segment).collect::<Vec<_>>());
        for (id, bytes) in &arrived {
            let seed = infos.iter().position(|info| info.segment == *id).unwrap() as u64;
            assert!(*bytes == bytes_of(seed, SEGMENT_BYTES), "{id} has other bytes");
        }
        println!("{requests} GETs for {SEGMENTS} segments");
        assert!(requests <= 40, "{requests} GETs for {SEGMENTS} segments");
    }
    assert_eq!(metric(&daemon.client, "esker_restore_segments_total").await, 3.0 * SEGMENTS as f64);
    assert!(metric(&daemon.client, "esker_restore_requests_saved_total").await > 5800.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subtask_that_restores_its_own_out_of_files_of_four_takes_few_gets() {
    const SEGMENTS: usize = 1000;
    let (server, daemon) = server_and_daemon(&[]).await;
    let infos = stored(&daemon.client, SEGMENTS as u64, SEGMENT_BYTES).await;
    let own: Vec<SegmentInfo> = infos.iter().skip(1).step_by(4).cloned().collect();

    let before = gets(&server);
    let arrived = all(daemon.client.restore(&these(&own)).await.unwrap()).await.unwrap();

    let requests = gets(&server) - before;
    for (n, (id, bytes)) in arrived.iter().enumerate() {
        assert!(*id == own[n].segment && *bytes == bytes_of(n as u64 * 4 + 1, SEGMENT_BYTES), "{id} has other bytes");
    }
    println!("{requests} GETs for {} of {SEGMENTS} segments", own.len());
    assert!(arrived.len() == own.len() && requests <= 20, "{requests} GETs for {} segments", own.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_larger_than_all_memory_get_through_beside_each_other_and_idle_ones() {
    let (server, daemon) = server_and_daemon(&LITTLE_MEMORY).await;
    let infos = stored(&daemon.client, 140, 300_000).await;
    server.faults().set_latency(Duration::from_millis(5));
    // These ask and do not read: what they hold must not keep the others from theirs.
    let mut idle = vec![];
    for _ in 0..4 {
        idle.push(daemon.new_client().restore(&these(&infos)).await.unwrap());
    }

    let restores = (0..4).map(|n| {
        let (client, mut infos) = (daemon.new_client(), infos.clone());
        infos.rotate_left(n * 7);
        async move {
            let arrived = all(client.restore(&these(&infos)).await.unwrap()).await.unwrap();
            let ids: Vec<String> = arrived.into_iter().map(|(id, _)| id).collect();
            assert_eq!(ids, infos.into_iter().map(|info| info.segment).collect::<Vec<_>>());
        }
    });
    let restores = futures::future::join_all(restores);

    tokio::time::timeout(Duration::from_secs(60), restores).await.expect("restores wait for each other");
    for restore in idle {
        assert_eq!(all(restore).await.unwrap().len(), infos.len());
    }
    crate::support::eventually("the memory is free again", Duration::from_secs(20), || async {
        metric(&daemon.client, "esker_in_flight_bytes").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_bytes_are_damaged_in_the_middle_breaks_off_and_names_the_segment() {
    let (server, daemon) = server_and_daemon(&[]).await;
    // An odd number, so that the bit is one of a segment and not between two.
    let infos = stored(&daemon.client, 101, SEGMENT_BYTES).await;
    let flips = server.faults().add(Rule::on(Op::Get, data), Fault::BitFlipped);

    let mut restore = daemon.client.restore(&these(&infos)).await.unwrap();
    let mut whole = 0;
    let error = loop {
        match restore.next().await {
            Ok(Some(_)) => whole += 1,
            Ok(None) => panic!("a damaged restore ended well"),
            Err(error) => break error,
        }
    };

    let ClientError::BrokenOff { whole: told, segment, message, .. } = &error else { panic!("{error}") };
    assert_eq!((*told, segment.as_ref()), (whole, Some(&infos[usize::try_from(whole).unwrap()].segment)), "{error}");
    assert!(whole > 0 && message.contains("checksum"), "{error}");
    flips.lift();
    assert_eq!(all(daemon.client.restore(&these(&infos)).await.unwrap()).await.unwrap().len(), infos.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_a_large_segment_that_is_damaged_breaks_off_in_it() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let infos = [put(&daemon.client, 1, 20 << 20).await.unwrap().info];
    server.faults().add(Rule::on(Op::Get, data).after(1), Fault::BitFlipped);

    let error = all(daemon.client.restore(&these(&infos)).await.unwrap()).await.unwrap_err();

    assert!(matches!(&error, ClientError::BrokenOff { segment: Some(id), .. } if *id == infos[0].segment), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_store_cuts_refuses_or_resets_once_is_whole() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let infos = stored(&daemon.client, 50, SEGMENT_BYTES).await;
    for fault in [Fault::Truncated, Fault::Refused, Fault::SlowDown, Fault::ResetBeforeBody, Fault::AckLost] {
        let hit = server.faults().add(Rule::on(Op::Get, data).times(1), fault.clone());

        let arrived = all(daemon.client.restore(&these(&infos)).await.unwrap()).await;

        assert_eq!(hit.hits(), 1);
        assert_eq!(arrived.unwrap_or_else(|error| panic!("{fault:?}: {error}")).len(), infos.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_store_is_gone_is_an_error_soon() {
    let (server, daemon) = server_and_daemon(&[("store.retry-timeout", "300 ms")]).await;
    let infos = stored(&daemon.client, 50, SEGMENT_BYTES).await;
    let always = server.faults().add(Rule::on(Op::Get, data), Fault::Refused);

    let restore = tokio::time::timeout(Duration::from_secs(30), daemon.client.restore(&these(&infos))).await;

    let error = restore.expect("a restore waits for ever").unwrap_err();
    assert_eq!(error.status(), Some(http::StatusCode::SERVICE_UNAVAILABLE), "{error}");
    always.lift();
    for key in crate::support::data_files(&server) {
        server.objects().remove(&key);
    }
    let error = daemon.client.restore(&these(&infos)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { kind: ErrorKind::Corrupt, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_and_segments_read_one_by_one_in_sequence_cost_few_gets() {
    const OBJECTS: u64 = 400;
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &SIGNED)).await;
    let client = daemon.s3_client("flink").await;
    let key = |n: u64| Path::from(format!("checkpoints/job/chk-1/{n:06}"));
    let puts = futures::stream::iter((0..OBJECTS).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.put(&key(n), bytes_of(n, SEGMENT_BYTES).into()).await.unwrap() })
    }));
    puts.buffer_unordered(100).for_each(|put| async { drop(put.unwrap()) }).await;
    let files = crate::support::data_files(&server).len();
    server.faults().set_latency(LATENCY_OF_S3);

    let before = gets(&server);
    for n in 0..OBJECTS {
        let read = client.get(&key(n)).await.unwrap().bytes().await.unwrap();
        assert!(read == bytes_of(n, SEGMENT_BYTES), "{} has other bytes", key(n));
    }
    let requests = gets(&server) - before;

    println!("{requests} GETs for {OBJECTS} objects in {files} files");
    // Three for each file as a rule; on a busy machine some windows go unused for too long, and are read again.
    assert!(requests <= 5 * files && requests <= 60, "{requests} GETs for {OBJECTS} objects in {files} files");
    assert!(metric(&daemon.client, "esker_read_ahead_total").await > 300.0);
    client.delete(&key(3)).await.unwrap();
    assert!(matches!(client.get(&key(3)).await, Err(object_store::Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_bucket_become_plain_files() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &SIGNED)).await;
    let client = daemon.s3_client("flink").await;
    let multipart: Bytes = bytes_of(3, 11 << 20);
    let objects = [
        ("jobs/1/a", bytes_of(1, 100)),
        ("jobs/1/a/b", bytes_of(2, 300_000)),
        ("jobs/1/empty", Bytes::new()),
        ("jobs/1/large", multipart.clone()),
        ("other", bytes_of(4, 10)),
    ];
    for (key, data) in &objects {
        let path = Path::from(*key);
        if data.len() > 10 << 20 {
            let mut upload = client.put_multipart(&path).await.unwrap();
            upload.put_part(data.slice(..6 << 20).into()).await.unwrap();
            upload.put_part(data.slice(6 << 20..).into()).await.unwrap();
            upload.complete().await.unwrap();
        } else {
            client.put(&path, data.clone().into()).await.unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");

    let output = esker_test_support::process::esker()
        .args(["export", "--bucket", "flink", "--prefix", "jobs/", "--json", "--to", to.to_str().unwrap()])
        .args(["--api", &format!("http://{}", daemon.address())])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = std::fs::read_to_string(to.join("manifest.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for (key, data) in &objects[..4] {
        let line = lines.iter().find(|line| line["name"] == **key).unwrap();
        let written = std::fs::read(to.join(line["file"].as_str().unwrap())).unwrap();
        assert!(written == *data, "{key} has other bytes");
        assert_eq!(line["bucket"], "flink");
    }
    assert!(lines.iter().any(|line| line["file"] == "jobs/1/a"));
}
