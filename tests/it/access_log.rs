//! Ids of requests, and what the access log tells of each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{TestDaemon, checkpoint};
use crate::process::Process;
use crate::raw::{Raw, ask, request};
use crate::support::signed::S3Signer;

/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of a log that has so many, and each is JSON.
async fn lines(path: &Path, wanted: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        if lines.len() >= wanted {
            return lines;
        }
        assert!(begun.elapsed() < PATIENCE, "{wanted} lines are wanted: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start(folder: &Path, more: &[(&str, &str)]) -> (TestDaemon, PathBuf) {
    let path = folder.join("access.log");
    let shown = path.display().to_string();
    (TestDaemon::start(&[&[("telemetry.access-log", shown.as_str())], more].concat()).await, path)
}

#[tokio::test]
async fn each_request_of_the_s3_door_is_told_with_what_it_was_about() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [("auth.access-key", "k"), ("auth.secret-key", "s")];
    let (daemon, path) = start(folder.path(), &keys).await;
    let signer = S3Signer::new(daemon.s3(), "k", "s");
    let key = "/checkpoints/jobs/0123456789abcdef0123456789abcdef/chk-7/state";
    let headers =
        "user-agent: Hadoop 3.4.1\nreferer: https://audit.example.org/hadoop/1/op_create/?p1=a\nx-request-id: edge-1";

    let put = ask(daemon.s3(), signer.request("PUT", key, headers, b"0123456789")).await;
    let get = ask(daemon.s3(), signer.request("GET", key, "range: bytes=2-4", b"")).await;
    let missing = ask(daemon.s3(), signer.request("GET", "/checkpoints/none", "", b"")).await;
    let stranger = S3Signer::new(daemon.s3(), "nobody", "s");
    let refused = ask(daemon.s3(), stranger.request("DELETE", key, "", b"")).await;

    let mut log = lines(&path, 4).await;
    let answers = [&put, &get, &missing, &refused].map(|answer| answer.header("x-amz-request-id").unwrap());
    log.sort_by_key(|line| answers.iter().position(|id| line["request_id"] == *id));
    let told = |n: usize, name: &str| log[n][name].clone();
    for (n, (answer, operation, status)) in
        [(&put, "PutObject", 200), (&get, "GetObject", 206), (&missing, "GetObject", 404), (&refused, "none", 403)]
            .iter()
            .enumerate()
    {
        assert_eq!(answer.header("x-amz-request-id"), told(n, "request_id").as_str(), "{log:#?}");
        assert_eq!(answer.header("x-amz-id-2"), answer.header("x-amz-request-id"));
        assert_eq!((told(n, "operation"), told(n, "status")), ((*operation).into(), (*status).into()), "{log:#?}");
        assert_eq!((told(n, "door"), told(n, "bucket")), ("s3".into(), "checkpoints".into()));
        assert!(told(n, "micros").as_u64() >= told(n, "first_byte_micros").as_u64());
        assert!(told(n, "remote").as_str().unwrap().starts_with("127.0.0.1:"));
    }
    assert_eq!((told(0, "bytes_in"), told(0, "bytes_out"), told(1, "bytes_out")), (10.into(), 0.into(), 3.into()));
    assert_eq!(told(0, "key"), key.strip_prefix("/checkpoints/").unwrap());
    assert!(told(0, "job").as_str().unwrap().contains("0123456789abcdef0123456789abcdef"), "{log:#?}");
    assert_eq!((told(0, "user_agent"), told(0, "proxy_request_id")), ("Hadoop 3.4.1".into(), "edge-1".into()));
    assert!(told(0, "audit").as_str().unwrap().contains("op_create"));
    assert_eq!((told(0, "key_id"), told(3, "key_id")), ("k".into(), "nobody".into()));
    assert_eq!((told(2, "code"), told(3, "code")), ("NoSuchKey".into(), "InvalidAccessKeyId".into()));
    assert!(missing.text().contains(&format!("<RequestId>{}</RequestId>", told(2, "request_id").as_str().unwrap())));
}

#[tokio::test]
async fn each_request_of_the_native_api_is_told_and_named_in_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, path) = start(folder.path(), &[]).await;
    daemon.client.create_job("a/b").await.unwrap();
    daemon.client.begin("a/b", 1).await.unwrap();
    daemon.client.put("a/b", &checkpoint(1), None, "state".into()).await.unwrap();
    let missing = ask(daemon.api(), request("GET", "/v1/jobs/none", "", b"")).await;
    ask(daemon.api(), request("GET", "/livez", "", b"")).await;

    let mut log = lines(&path, 5).await;
    log.sort_by_key(|line| line["time"].as_str().map(str::to_owned));
    let operations: Vec<&str> = log.iter().filter_map(|line| line["operation"].as_str()).collect();
    assert_eq!(
        operations,
        [
            "POST /v1/jobs",
            "POST /v1/jobs/{job}/checkpoints/{checkpoint}",
            "POST /v1/jobs/{job}/segments",
            "GET /v1/jobs/{job}"
        ]
    );
    assert_eq!((&log[2]["job"], &log[2]["bytes_in"], &log[2]["status"]), (&"a/b".into(), &5.into(), &201.into()));
    assert_eq!((&log[3]["code"], &log[3]["door"]), (&"not_found".into(), &"native".into()));
    let id = log[3]["request_id"].as_str();
    assert_eq!(missing.header("x-request-id"), id);
    let body: Value = serde_json::from_slice(&missing.body).unwrap();
    assert_eq!(body["error"]["request_id"].as_str(), id);
}

#[tokio::test]
async fn what_a_client_sends_does_not_write_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, path) = start(folder.path(), &[]).await;

    let evil = "/checkpoints/a%0D%0A%7B%22status%22:200%7D%1B%5B2J%00%22";
    ask(daemon.s3(), request("GET", evil, "user-agent: a\t\"}{\u{e9}\r\n", b"")).await;

    let log = lines(&path, 1).await;
    assert_eq!(log.len(), 1, "{log:#?}");
    assert_eq!(log[0]["key"], "a\r\n{\"status\":200}\u{1b}[2J\u{0}\"");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
}

#[tokio::test]
async fn a_client_that_leaves_early_is_told_of_without_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, path) = start(folder.path(), &[]).await;

    let mut raw = Raw::connect(daemon.s3()).await;
    raw.send("PUT /checkpoints/k HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n0123456789").await;
    raw.finish().await;
    while raw.more().await {}
    drop(raw);

    let log = lines(&path, 1).await;
    assert_eq!((&log[0]["key"], &log[0]["bytes_in"]), (&"k".into(), &10.into()), "{log:#?}");
    assert!(log[0]["status"] != 200, "{log:#?}");
}

#[tokio::test]
async fn a_log_that_was_moved_away_is_begun_anew_after_a_hangup() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let mut process = Process::spawn(folder.path(), &[("ESKER__TELEMETRY__ACCESS_LOG", path.display().to_string())]);
    let ready = process.wait_ready();
    let api = ready.api.strip_prefix("http://").unwrap().parse().unwrap();
    ask(api, request("GET", "/first", "", b"")).await;
    assert_eq!(lines(&path, 1).await.len(), 1);

    std::fs::rename(&path, &moved).unwrap();
    process.signal("HUP");
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < PATIENCE, "it is not begun anew");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ask(api, request("GET", "/second", "", b"")).await;

    assert_eq!(lines(&path, 1).await.len(), 1);
    assert_eq!(lines(&moved, 1).await.len(), 1);
    process.terminate();
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let environment = [
        ("ESKER__TELEMETRY__ACCESS_LOG", pipe.display().to_string()),
        // Longer than the test waits for the end.
        ("ESKER__SERVER__DRAIN_TIMEOUT", "10 min".to_owned()),
    ];
    let mut process = Process::spawn(folder.path(), &environment);
    let api = process.wait_ready().api.strip_prefix("http://").unwrap().parse().unwrap();
    // A pipe takes 64 KiB.
    let agent = format!("user-agent: {}\r\n", "a".repeat(1500));
    for _ in 0..100 {
        assert_eq!(ask(api, request("GET", "/livez", &agent, b"")).await.status, 200);
    }

    process.signal("TERM");

    let (status, log) = process.wait_end();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("step=\"access log\"") && log.contains("took too long"), "{log}");
}

#[tokio::test]
async fn standard_output_has_lines_of_the_log_alone() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("ESKER__TELEMETRY__ACCESS_LOG", "stdout".to_owned())];
    let mut process = Process::spawn(folder.path(), &environment);
    let api = process.wait_ready().api.strip_prefix("http://").unwrap().parse().unwrap();
    ask(api, request("GET", "/livez", "", b"")).await;

    process.signal("TERM");

    let (status, log) = process.wait_end();
    let output = std::fs::read_to_string(folder.path().join("stdout")).unwrap();
    assert!(status.success(), "{status}: {log}");
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(log.contains("physical files") && log.contains("Ctrl-C"), "{log}");
}

#[tokio::test]
async fn lines_that_cannot_be_written_are_counted_and_nobody_waits() {
    let daemon = TestDaemon::start(&[("telemetry.access-log", "/dev/full")]).await;

    for _ in 0..3 {
        assert_eq!(ask(daemon.api(), request("GET", "/livez", "", b"")).await.status, 200);
    }

    let begun = Instant::now();
    loop {
        let metrics = daemon.client.metrics().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("esker_access_log_dropped_total{reason=\"failed\"} "));
        if line.is_some_and(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 3.0) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{metrics}");
    }
}
