//! Commands on an object store without a daemon, and beside one.

use std::process::{Output, Stdio};

use esker_test_support::process;

use crate::faults::{Op, data};
use crate::s3_server::{ACCESS_KEY, BUCKET, REGION, S3Server, SECRET_KEY};
use crate::support::{
    PREFIX, Running, Written, assert_exactly, data_files, object_key, put, server_and_daemon, settings,
};

/// The keys of the configuration that name the server's store, for the program.
pub fn keys(server: &S3Server) -> impl Iterator<Item = String> {
    let keys = [
        ("store.url", format!("s3://{BUCKET}/{PREFIX}")),
        ("store.endpoint", server.endpoint()),
        ("store.region", REGION.to_owned()),
        ("store.access-key", ACCESS_KEY.to_owned()),
        ("store.secret-key", SECRET_KEY.to_owned()),
        ("store.allow-http", "true".to_owned()),
        ("store.retry-timeout", "1 s".to_owned()),
        ("catalog.poll-interval", "1 s".to_owned()),
    ];
    keys.into_iter().map(|(key, value)| format!("--set={key}={value}"))
}

/// Runs the program on the server's store, named key by key.
pub async fn esker(server: &S3Server, args: &[&str]) -> (Option<i32>, Output) {
    let mut command = process::esker();
    command.args(args).args(keys(server)).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code(), output)
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn written() -> (S3Server, Running, Vec<Written>) {
    let (server, daemon) = server_and_daemon(&[]).await;
    let mut written = vec![];
    for (seed, len) in [(1, 1000), (2, 100_000), (3, 3 << 20)] {
        written.push(put(&daemon.client, seed, len).await.unwrap());
    }
    (server, daemon, written)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_is_read_with_one_request_while_the_daemon_is_down() {
    let (server, daemon, written) = written().await;
    daemon.kill().await;

    for written in &written {
        let before = server.faults().requests().len();
        let (code, output) = esker(&server, &["get", "--handle", &written.info.handle]).await;
        assert_eq!(code, Some(0), "{}", text(&output));
        assert!(output.stdout == written.data);
        assert_eq!(server.faults().requests().len() - before, 1);
        assert!(server.faults().requests().last().is_some_and(|last| last.op == Op::Get && data(&last.key)));
        let wrong = written.info.handle.replace(&written.info.crc32c, "01020304");
        let (code, output) = esker(&server, &["get", "--handle", &wrong]).await;
        assert_eq!((code, output.stdout.len()), (Some(1), 0));
    }
    let place = format!("s3://{BUCKET}/{PREFIX}");
    let (code, output) =
        esker(&server, &["get", "--handle", &written[1].info.handle, "--store", &place, "--set", "store.url=memory:"])
            .await;
    assert_eq!(code, Some(0), "{}", text(&output));
    assert!(output.stdout == written[1].data);
    server.objects().remove(&object_key(written[0].info.file.as_ref().unwrap()));
    let (code, output) = esker(&server, &["get", "--handle", &written[0].info.handle]).await;
    assert_eq!(code, Some(1));
    assert!(text(&output).contains("does not exist"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_is_verified_beside_its_daemon_which_goes_on() {
    let (server, daemon, mut written) = written().await;

    let (code, output) = esker(&server, &["verify", "--read-data", "100"]).await;

    assert_eq!(code, Some(0), "{}", text(&output));
    assert!(text(&output).contains("3 files, 3 segments, 3 of them read: 0 faults"), "{}", text(&output));
    written.push(put(&daemon.client, 9, 1000).await.unwrap());
    assert_exactly(&server, &daemon, &written).await;
    daemon.kill().await;
    let (code, output) = esker(&server, &["verify", "--json", "--read-data", "100"]).await;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code, &report["segments"]), (Some(0), &4.into()), "{report}");
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_told_and_forgotten_when_asked() {
    let (server, daemon, mut written) = written().await;
    daemon.shut_down().await.unwrap();
    let lost = written.remove(1);
    server.objects().remove(&object_key(lost.info.file.as_ref().unwrap()));

    let (code, output) = esker(&server, &["verify"]).await;
    assert_eq!(code, Some(1));
    assert!(text(&output).contains("does not exist"), "{}", text(&output));
    let (code, _) = esker(&server, &["verify", "--repair"]).await;
    assert_eq!(code, Some(1));
    let (code, output) = esker(&server, &["verify", "--repair", "--drop-lost"]).await;
    assert_eq!(code, Some(0), "{}", text(&output));

    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &written).await;
    assert_eq!(data_files(&server).len(), written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_is_rebuilt_by_the_command() {
    let (server, daemon, written) = written().await;
    daemon.shut_down().await.unwrap();
    let (code, output) = esker(&server, &["rebuild"]).await;
    assert_eq!(code, Some(2), "{}", text(&output));

    let (code, output) = esker(&server, &["rebuild", "--replace", "--read-data", "--json"]).await;

    assert_eq!(code, Some(0), "{}", text(&output));
    let (code, output) = esker(&server, &["verify", "--read-data", "100"]).await;
    assert_eq!(code, Some(0), "{}", text(&output));
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &written).await;
}
