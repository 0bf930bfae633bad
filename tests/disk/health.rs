//! Writes that wait for the disk, or all fail: the log names the cause, `/readyz` says so, and it is over by itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_client::wire::PutParams;
use esker_client::{Client, ClientError};
use tempfile::tempdir;

use super::shim::Shim;
use super::{eventually, readyz};
use crate::process::Process;
use crate::support::pattern;

const JOB: &str = "job";
/// More than goes into the catalog.
const LEN: usize = 100_000;

fn params() -> PutParams {
    PutParams { checkpoint: Some(1), ..PutParams::default() }
}

fn data(seed: u64) -> Bytes {
    pattern(seed, LEN).into()
}

/// Lines of the log with these words.
fn lines(folder: &Path, words: &[&str]) -> usize {
    let log = fs::read_to_string(folder.join("log")).unwrap();
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

async fn start(folder: &Path, shim: &Shim) -> (Process, String, Client) {
    let mut environment = shim.environment();
    environment.push(("ESKER__LIMITS__ADMISSION_TIMEOUT", "500 ms".to_owned()));
    let mut daemon = Process::spawn(folder, &environment);
    let api = daemon.wait_ready().api;
    let client = Client::new(&api, None).unwrap();
    client.create_job(JOB).await.unwrap();
    client.begin(JOB, 1).await.unwrap();
    (daemon, api, client)
}

#[tokio::test]
async fn writes_that_hang_are_told_new_ones_are_refused_and_all_go_on_by_themselves() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/catalog/log/") else { return };
    let (daemon, api, client) = start(folder.path(), &shim).await;
    let before = client.put(JOB, &params(), Some("before"), data(1)).await.unwrap();

    shim.hang();
    let hangs = {
        let client = client.clone();
        tokio::spawn(async move { client.put(JOB, &params(), Some("hangs"), data(2)).await })
    };
    eventually("/readyz says that writes hang", async || readyz(&api).0 == 503).await;

    let why = readyz(&api).1;
    assert!(why.contains("no writes") && why.contains("the catalog's log") && why.contains(" s"), "{why}");
    assert_eq!(lines(folder.path(), &["WARN", "no writes", "the catalog's log"]), 1);
    let text = client.metrics().await.unwrap();
    let waits = text.lines().find_map(|line| line.strip_prefix("esker_write_wait_seconds ")).unwrap();
    assert!(waits.parse::<f64>().unwrap() >= 10.0, "{waits}");
    let begun = Instant::now();
    let refused = client.put(JOB, &params(), Some("late"), data(3)).await.unwrap_err();
    let ClientError::Refused { status, message, .. } = &refused else { panic!("{refused}") };
    assert!(*status == 503 && refused.is_transient() && message.contains("the catalog's log"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it joined the queue");
    assert_eq!(client.get(&before.segment).await.unwrap(), data(1));

    shim.go_on();
    let after = hangs.await.unwrap().unwrap();
    eventually("/readyz says that writes go on", async || readyz(&api).0 == 200).await;

    assert_eq!(lines(folder.path(), &["INFO", "writes go on"]), 1);
    assert_eq!(client.get(&after.segment).await.unwrap(), data(2));
    client.put(JOB, &params(), Some("late"), data(3)).await.unwrap();
    daemon.terminate();
}

#[tokio::test]
async fn a_store_on_which_every_write_fails_is_not_ready_until_one_succeeds() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/data/data/") else { return };
    let (daemon, api, client) = start(folder.path(), &shim).await;
    client.put(JOB, &params(), Some("before"), data(1)).await.unwrap();
    shim.fail();
    client.put(JOB, &params(), Some("fails"), data(2)).await.unwrap_err();
    assert_eq!(readyz(&api).0, 200, "one that fails says little");

    // Nobody else writes: it is tried.
    eventually("/readyz says that writes fail", async || readyz(&api).0 == 503).await;

    let why = readyz(&api).1;
    assert!(why.contains("no writes") && why.contains("Input/output error"), "{why}");
    assert_eq!(lines(folder.path(), &["WARN", "no writes", "Input/output error"]), 1);
    shim.work();
    eventually("/readyz says that writes succeed", async || readyz(&api).0 == 200).await;
    assert_eq!(lines(folder.path(), &["INFO", "writes go on"]), 1);
    client.put(JOB, &params(), Some("fails"), data(2)).await.unwrap();
    daemon.terminate();
    assert!(!folder.path().join("data/lost+found").exists(), "a write that was tried was left behind");
}

#[tokio::test]
async fn the_last_line_of_a_daemon_whose_catalog_is_lost_names_the_cause() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/catalog/log/") else { return };
    let (daemon, _, client) = start(folder.path(), &shim).await;

    shim.fail();
    client.put(JOB, &params(), None, data(1)).await.unwrap_err();

    let (status, log) = daemon.wait_end();
    let last = log.lines().last().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(last.starts_with("esker: the catalog is lost") && last.contains("Input/output error"), "{last}");
}
