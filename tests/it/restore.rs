//! Restoring in bulk from a daemon on a folder: the API, and the commands that write plain files.

use std::path::Path;
use std::process::Output;

use bytes::{Bytes, BytesMut};
use esker_client::wire::{ListedSegment, PutParams, RestoreRequest};
use esker_client::{Client, ClientError};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::daemon::{TestDaemon, checkpoint, files};
use crate::process;
use crate::support::pattern;

/// Inside the catalog, in a file with others, and streamed into one of its own.
const LENS: [usize; 6] = [1, 20 << 10, (20 << 10) + 1, 300_000, 1 << 20, 2_500_000];

async fn daemon() -> TestDaemon {
    let daemon = TestDaemon::start(&[("store.part-size", "1mb")]).await;
    daemon.client.create_job("j").await.unwrap();
    daemon
}

fn of_checkpoint(n: u64) -> RestoreRequest {
    RestoreRequest { job: Some("j".to_owned()), checkpoint: Some(n), ..RestoreRequest::default() }
}

fn these(ids: &[String]) -> RestoreRequest {
    RestoreRequest { segments: Some(ids.to_vec()), ..RestoreRequest::default() }
}

async fn all(client: &Client, wanted: &RestoreRequest) -> Result<Vec<(ListedSegment, Bytes)>, ClientError> {
    let mut restore = client.restore(wanted).await?;
    let mut arrived = vec![];
    while let Some(segment) = restore.next().await? {
        let mut whole = BytesMut::new();
        while let Some(bytes) = restore.bytes().await? {
            whole.extend_from_slice(&bytes);
        }
        arrived.push((segment, whole.freeze()));
    }
    Ok(arrived)
}

async fn put(daemon: &TestDaemon, params: PutParams, data: &[u8]) -> String {
    daemon.client.put("j", &params, None, data.to_vec().into()).await.unwrap().segment
}

#[tokio::test]
async fn segments_of_every_kind_come_in_the_order_asked_also_twice() {
    let daemon = daemon().await;
    let mut stored = vec![];
    for (n, len) in LENS.into_iter().enumerate() {
        let data = pattern(n as u64, len);
        stored.push((put(&daemon, checkpoint(1), &data).await, data));
    }
    let order = [5, 0, 3, 3, 1, 4, 2, 0, 5];
    let ids: Vec<String> = order.iter().map(|n| stored[*n].0.clone()).collect();

    let arrived = all(&daemon.client, &these(&ids)).await.unwrap();

    assert_eq!(arrived.len(), order.len());
    for ((segment, bytes), n) in arrived.iter().zip(order) {
        assert_eq!((&segment.info.segment, bytes.len()), (&stored[n].0, LENS[n]));
        assert!(*bytes == stored[n].1, "segment {n} has other bytes");
    }
    assert!(all(&daemon.client, &these(&[])).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_checkpoint_comes_by_subtask_and_name_without_what_is_not_of_it() {
    let daemon = daemon().await;
    let of = |n: u64, subtask: u32, name: &str| PutParams {
        operator: Some("sum".to_owned()),
        subtask: Some(subtask),
        parallelism: Some(2),
        name: Some(name.to_owned()),
        ..checkpoint(n)
    };
    for params in [of(2, 1, "a"), of(2, 0, "b"), of(1, 0, "old"), of(2, 0, "a"), of(3, 0, "new"), checkpoint(2)] {
        put(&daemon, params, b"state").await;
    }
    daemon.client.complete("j", 2).await.unwrap();

    let arrived = all(&daemon.client, &of_checkpoint(2)).await.unwrap();

    let shown: Vec<_> =
        arrived.iter().map(|(segment, _)| (segment.subtask.as_deref(), segment.name.as_deref())).collect();
    let (first, second) = (Some("sum_0_2"), Some("sum_1_2"));
    assert_eq!(shown, [(None, None), (first, Some("a")), (first, Some("b")), (second, Some("a"))]);
}

#[tokio::test]
async fn what_cannot_be_restored_is_an_error_that_names_the_field() {
    let daemon = TestDaemon::start(&[("limits.segments-per-request-max", "3")]).await;
    daemon.client.create_job("j").await.unwrap();
    let id = put(&daemon, checkpoint(1), b"state").await;
    daemon.client.complete("j", 1).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();
    daemon.client.begin("j", 2).await.unwrap();
    daemon.client.begin("j", 3).await.unwrap();
    daemon.client.abort("j", 3).await.unwrap();
    let unknown = "01JD0000000000000000000000".to_owned();
    let other_job = RestoreRequest { job: Some("other".to_owned()), ..of_checkpoint(1) };
    let both = RestoreRequest { segments: Some(vec![]), ..of_checkpoint(2) };
    let half = RestoreRequest { checkpoint: None, ..of_checkpoint(2) };
    let cases = [
        (of_checkpoint(1), StatusCode::NOT_FOUND, "subsumed"),
        (of_checkpoint(2), StatusCode::CONFLICT, "not complete"),
        (of_checkpoint(3), StatusCode::CONFLICT, "aborted"),
        (of_checkpoint(9), StatusCode::NOT_FOUND, "not known"),
        (other_job, StatusCode::NOT_FOUND, "other"),
        (both, StatusCode::BAD_REQUEST, "either"),
        (half, StatusCode::BAD_REQUEST, "go together"),
        (RestoreRequest::default(), StatusCode::BAD_REQUEST, "either"),
        (these(&["x".to_owned()]), StatusCode::BAD_REQUEST, "segment"),
        (these(&vec![unknown.clone(); 4]), StatusCode::BAD_REQUEST, "segments-per-request-max"),
        (these(std::slice::from_ref(&unknown)), StatusCode::NOT_FOUND, &unknown),
        (these(std::slice::from_ref(&id)), StatusCode::NOT_FOUND, &id),
    ];

    for (wanted, status, text) in cases {
        let error = daemon.client.restore(&wanted).await.err();

        let error = error.unwrap_or_else(|| panic!("{wanted:?} was answered"));
        assert_eq!(error.status(), Some(status), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_checkpoint_is_subsumed_meanwhile_breaks_off_and_names_the_segment() {
    let daemon = TestDaemon::start(&[
        ("limits.memory", "2mb"),
        ("limits.multipart-memory", "1mb"),
        ("limits.multipart-part-in-memory-max", "256kb"),
        ("store.part-size", "512kb"),
        ("store.max-bytes-in-flight", "1mb"),
        ("execution.checkpointing.file-merging.max-file-size", "1mb"),
        ("merging.group-bytes-max", "1mb"),
    ]);
    let daemon = daemon.await;
    daemon.client.create_job("j").await.unwrap();
    let mut ids = vec![];
    for n in 0..100 {
        ids.push(put(&daemon, checkpoint(1), &pattern(n, 300_000)).await);
    }
    daemon.client.complete("j", 1).await.unwrap();

    let mut restore = daemon.client.restore(&of_checkpoint(1)).await.unwrap();
    restore.next().await.unwrap().unwrap();
    daemon.client.subsume("j", 1).await.unwrap();
    let mut begun = 1;
    let error = loop {
        match restore.next().await {
            Ok(segment) => begun += usize::from(segment.expect("a restore of freed segments ended well").info.len > 0),
            Err(error) => break error,
        }
    };

    let ClientError::BrokenOff { whole, segment: Some(segment), message, .. } = &error else { panic!("{error}") };
    assert_eq!(*whole as usize, begun);
    assert!(ids.contains(segment) && message.contains("freed"), "{error}");
}

/// A server that answers one request with these frames of a restore, well formed as far as HTTP goes.
async fn answering(frames: Vec<u8>) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", frames.len());
        stream.write_all(&[head.as_bytes(), &frames].concat()).await.unwrap();
    });
    Client::new(&format!("http://{address}"), None).unwrap()
}

fn frame(head: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let head = head.to_string();
    [&(head.len() as u32).to_le_bytes(), head.as_bytes(), data].concat()
}

#[tokio::test]
async fn an_answer_without_its_end_with_wrong_bytes_or_a_wrong_count_is_not_whole() {
    let head = |crc: &str| {
        serde_json::json!({ "segment": "S", "handle": "", "file": null, "offset": 0, "len": 3, "crc32c": crc,
            "scope": "shared", "checkpoint": 1, "subtask": null, "task_manager": null, "name": null })
    };
    let end = |segments: u64, bytes: u64| frame(&serde_json::json!({ "end": segments, "bytes": bytes }), b"");
    // CRC-32C of "abc".
    let good = frame(&head("364b3fb7"), b"abc");
    let cases = [
        ([good.clone(), end(1, 3)].concat(), None),
        (good.clone(), Some("too early")),
        (good[..good.len() - 1].to_vec(), Some("too early")),
        ([good.clone(), end(2, 6)].concat(), Some("2")),
        ([good.clone(), end(1, 4)].concat(), Some("1")),
        ([frame(&head("00000000"), b"abc"), end(1, 3)].concat(), Some("364b3fb7")),
        ([good.clone(), vec![0; 4]].concat(), Some("head")),
        ([good, frame(&serde_json::json!({ "x": 1 }), b"")].concat(), Some("head")),
    ];

    for (frames, wrong) in cases {
        let read = all(&answering(frames).await, &these(&[])).await;

        match (read, wrong) {
            (Ok(segments), None) => assert_eq!(segments.len(), 1),
            (Err(error @ ClientError::BrokenOff { .. }), Some(text)) => {
                assert!(error.to_string().contains(text), "{error}");
            }
            (read, wrong) => panic!("{wrong:?}: {read:?}"),
        }
    }
}

/// Runs the program with `--json`. Its exit code, and what it says.
fn esker(daemon: &TestDaemon, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let api = format!("http://{}", daemon.api());
    let mut command = process::esker();
    let Output { status, stdout, stderr } = command.args(arguments).args(["--json", "--api", &api]).output().unwrap();
    let said = serde_json::from_slice(&stdout);
    (status.code(), said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&stderr))))
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_becomes_plain_files_with_a_manifest() {
    let daemon = daemon().await;
    let named = |name: &str| PutParams { name: Some(name.to_owned()), ..checkpoint(1) };
    let (first, second) = (pattern(1, 10), pattern(2, 300_000));
    put(&daemon, named("state/a.sst"), &first).await;
    let again = put(&daemon, named("state/a.sst"), &second).await;
    let evil = put(&daemon, named("../evil"), &first).await;
    daemon.client.complete("j", 1).await.unwrap();
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("out");
    let arguments = ["restore", "--job", "j", "--checkpoint", "1", "--to", to.to_str().unwrap()];

    let (code, said) = esker(&daemon, &arguments);

    assert_eq!((code, said["files"].as_u64(), said["bytes"].as_u64()), (Some(0), Some(3), Some(300_020)), "{said}");
    assert_eq!(read(&to, "state/a.sst"), first);
    assert_eq!(read(&to, &format!("state/a.sst.{again}")), second);
    assert_eq!(read(&to, &evil), first);
    let manifest = String::from_utf8(read(&to, "manifest.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(manifest.lines().next().unwrap()).unwrap();
    assert_eq!((manifest.lines().count(), line["len"].as_u64()), (3, Some(10)), "{manifest}");
    assert_eq!(files(target.path()).len(), 4);
    let (code, said) = esker(&daemon, &arguments);
    assert_eq!(code, Some(2), "{said}");
    assert!(said["faults"][0].as_str().unwrap().contains("not empty"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_cannot_be_or_breaks_off_leaves_nothing() {
    let daemon = daemon().await;
    for n in 0..20 {
        put(&daemon, checkpoint(1), &pattern(n, 300_000)).await;
    }
    daemon.client.complete("j", 1).await.unwrap();
    let target = tempfile::tempdir().unwrap();
    let to = target.path().to_str().unwrap();

    let (code, said) = esker(&daemon, &["restore", "--job", "j", "--checkpoint", "2", "--to", to]);
    assert_eq!((code, files(target.path()).len()), (Some(1), 0), "{said}");

    let damaged = daemon.client.segments("j", None, None).await.unwrap().segments.remove(10).info;
    let path = daemon.folder().join(damaged.file.as_ref().unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[damaged.offset as usize + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (code, said) = esker(&daemon, &["restore", "--job", "j", "--checkpoint", "1", "--to", to]);
    assert_eq!((code, files(target.path()).len()), (Some(1), 0), "{said}");
    assert!(said["faults"][0].as_str().unwrap().contains(&damaged.segment), "{said}");

    let (code, said) = esker(&daemon, &["export", "--job", "j", "--to", to]);
    assert_eq!((code, said["files"].as_u64()), (Some(1), Some(19)), "{said}");
    assert!(said["faults"][0].as_str().unwrap().contains(&damaged.segment), "{said}");
    assert_eq!(files(target.path()).len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemons_folder_is_restored_from_and_exported_alike() {
    let daemon = daemon().await;
    let (small, large) = (pattern(1, 10), pattern(2, 300_000));
    let named = |name: &str| PutParams { name: Some(name.to_owned()), ..checkpoint(1) };
    put(&daemon, named("small"), &small).await;
    put(&daemon, named("large"), &large).await;
    daemon.client.complete("j", 1).await.unwrap();
    let folder = daemon.shut_down().await;
    let target = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], to: &Path, from: [&str; 2]| {
        let mut command = process::esker();
        command.args(arguments).arg("--to").arg(to).args(from).output().unwrap()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().to_str().unwrap(), elsewhere.path().join("config.toml"));
    let url = format!("file:{data}");
    // Its doors and tokens are not in the way.
    let whole = format!("[store]\nurl = \"{url}\"\n[server]\napi = \"127.0.0.1:1\"\n[auth]\ntokens = [\"secret\"]\n");
    std::fs::write(&config, whole).unwrap();

    let restore = &["restore", "--job", "j", "--checkpoint", "1"][..];
    let export = &["export", "--job", "j"][..];
    let cases = [
        (restore, ["--data-dir", data]),
        (export, ["--data-dir", data]),
        (restore, ["--config", config.to_str().unwrap()]),
        (export, ["--store", &url]),
    ];
    for (n, (arguments, from)) in cases.into_iter().enumerate() {
        let to = target.path().join(n.to_string());
        let done = run(arguments, &to, from);
        assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!((read(&to, "small"), read(&to, "large")), (small.clone(), large.clone()));
    }
    let nowhere =
        run(&["export", "--job", "j"], &target.path().join("none"), ["--data-dir", target.path().to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", String::from_utf8_lossy(&nowhere.stderr));
    assert_eq!(files(target.path()).len(), 12);
}
