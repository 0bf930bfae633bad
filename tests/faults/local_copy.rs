//! The copy on local disk: what it saves, and that nothing depends on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use esker::config::Settings;
use tempfile::TempDir;

use crate::faults::{Fault, Op, Rule, data};
use crate::s3_server::S3Server;
use crate::support::{
    JOB, Running, SOON, Written, assert_exactly, assert_readable, create_job, data_files, eventually, metric, put,
    settings,
};

const ENABLED: (&str, &str) = ("execution.checkpointing.local-backup.enabled", "true");
const DIRS: &str = "execution.checkpointing.local-backup.dirs";
const BYTES: &str = "esker_local_copy_bytes";

/// Settings with a copy below `dir`.
fn with_copy(server: &S3Server, dir: &Path, changed: &[(&str, &str)]) -> Settings {
    let dir = dir.to_str().unwrap();
    let all: Vec<_> = [ENABLED, (DIRS, dir)].into_iter().chain(changed.iter().copied()).collect();
    settings(server, &all)
}

async fn server_and_daemon(dir: &Path, changed: &[(&str, &str)]) -> (S3Server, Running) {
    let server = S3Server::start().await;
    let daemon = Running::start(with_copy(&server, dir, changed)).await;
    create_job(&daemon.client).await;
    (server, daemon)
}

/// Requests that read physical files.
fn reads(server: &S3Server) -> usize {
    server.faults().count(|logged| logged.op == Op::Get && data(&logged.key))
}

/// Small and large segments, and one in parts.
async fn write_some(daemon: &Running) -> Vec<Written> {
    let mut written = vec![];
    for (seed, len) in [(1, 1000), (2, 300_000), (3, 3 << 20), (4, 12 << 20), (5, 100_000)] {
        written.push(put(&daemon.client, seed, len).await.unwrap());
    }
    written
}

/// The copy's entries.
fn entries(dir: &TempDir) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(dir.path()).unwrap().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.filter(|path| path.to_string_lossy().contains('@')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_node_reads_nothing_from_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let (server, daemon) = server_and_daemon(dir.path(), &[]).await;
    let written = write_some(&daemon).await;
    daemon.shut_down().await.unwrap();

    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;

    assert_readable(&daemon.client, &written).await;
    let part = daemon.client.get_range(&written[3].info.segment, 5_000_000..5_000_100).await.unwrap();
    assert_eq!(part, written[3].data[5_000_000..5_000_100]);
    assert_eq!(reads(&server), 0);
    assert!(metric(&daemon.client, "esker_local_copy_hits_total").await > 30.0);
    assert_eq!(metric(&daemon.client, "esker_local_copy_misses_total").await, 0.0);
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_a_start_after_a_crash_but_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let (server, daemon) = server_and_daemon(dir.path(), &[]).await;
    let written = write_some(&daemon).await;
    let all: usize = written.iter().map(|written| written.data.len()).sum();
    eventually("the copy is written", SOON, || async { metric(&daemon.client, BYTES).await > all as f64 }).await;
    let newest = put(&daemon.client, 6, 200_000).await.unwrap();
    daemon.kill().await;

    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;

    assert_readable(&daemon.client, &written).await;
    assert_eq!(reads(&server), 0);
    assert_readable(&daemon.client, &[newest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_once_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    let written = write_some(&daemon).await;
    daemon.shut_down().await.unwrap();
    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;
    for one in &written {
        assert!(daemon.client.get(&one.info.segment).await.unwrap() == one.data);
    }
    let before = reads(&server);
    daemon.shut_down().await.unwrap();

    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;

    assert!(before >= written.len());
    assert_readable(&daemon.client, &written).await;
    assert_eq!(reads(&server), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_entries_are_misses() {
    let dir = tempfile::tempdir().unwrap();
    let (server, daemon) = server_and_daemon(dir.path(), &[]).await;
    let written = write_some(&daemon).await;
    daemon.shut_down().await.unwrap();
    for (n, entry) in entries(&dir).iter().enumerate() {
        let mut bytes = std::fs::read(entry).unwrap();
        match n % 3 {
            0 => bytes.iter_mut().step_by(10_000).for_each(|byte| *byte ^= 1),
            1 => bytes[..40].fill(0),
            _ => bytes.truncate(bytes.len() / 2),
        }
        std::fs::write(entry, bytes).unwrap();
    }

    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;

    assert_readable(&daemon.client, &written).await;
    assert!(reads(&server) >= written.len());
    assert!(metric(&daemon.client, "esker_local_copy_damaged_total").await > 0.0);
    assert_eq!(metric(&daemon.client, "esker_corrupt_reads_total").await, 0.0);
    daemon.shut_down().await.unwrap();
    let before = reads(&server);
    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;
    assert_readable(&daemon.client, &written).await;
    assert_eq!(reads(&server), before, "what was read instead is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_arrive_damaged_are_read_again_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    let written = put(&daemon.client, 1, 300_000).await.unwrap();
    daemon.shut_down().await.unwrap();
    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;
    let always = server.faults().add(Rule::on(Op::Get, data), Fault::BitFlipped);
    let error = daemon.client.get(&written.info.segment).await.unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    always.lift();
    let once = server.faults().add(Rule::on(Op::Get, data).times(1), Fault::BitFlipped);

    let read = daemon.client.get(&written.info.segment).await.unwrap();

    assert!(read == written.data);
    assert_eq!(once.hits(), 1);
    daemon.shut_down().await.unwrap();
    let before = reads(&server);
    let daemon = Running::start(with_copy(&server, dir.path(), &[])).await;
    assert_readable(&daemon.client, &[written]).await;
    assert_eq!(reads(&server), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_is_kept() {
    const SMALL: [(&str, &str); 3] = [
        ("execution.checkpointing.local-backup.max-size", "2 mb"),
        ("execution.checkpointing.file-merging.max-file-size", "1 mb"),
        ("merging.group-bytes-max", "1 mb"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (server, daemon) = server_and_daemon(dir.path(), &SMALL).await;
    let mut written = vec![];
    for seed in 0..12 {
        written.push(put(&daemon.client, seed, 500_000).await.unwrap());
    }

    assert_exactly(&server, &daemon, &written).await;

    assert!(metric(&daemon.client, "esker_local_copy_evictions_total").await > 0.0);
    daemon.shut_down().await.unwrap();
    let used: u64 = entries(&dir).iter().map(|entry| std::fs::metadata(entry).unwrap().len()).sum();
    assert!((1 << 20..=2 << 20).contains(&used), "{used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_files_leave_the_copy() {
    const SOONER: [(&str, &str); 2] = [("reclaim.delete-grace", "0 ms"), ("reclaim.interval", "50 ms")];
    let dir = tempfile::tempdir().unwrap();
    let (server, daemon) = server_and_daemon(dir.path(), &SOONER).await;
    write_some(&daemon).await;
    eventually("the copy is written", SOON, || async { entries(&dir).len() >= 5 }).await;

    daemon.client.abort(JOB, 1).await.unwrap();

    eventually("the files are deleted", SOON, || async { data_files(&server).is_empty() }).await;
    eventually("the copy is empty", SOON, || async { entries(&dir).is_empty() }).await;
    assert_eq!(metric(&daemon.client, BYTES).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let a_file = dir.path().join("a file");
    std::fs::write(&a_file, "").unwrap();
    let (server, daemon) = server_and_daemon(&a_file, &[]).await;
    let written = write_some(&daemon).await;
    assert_exactly(&server, &daemon, &written).await;
    daemon.shut_down().await.unwrap();

    // Another one vanishes while it is in use.
    let folder = dir.path().join("a folder");
    let daemon = Running::start(with_copy(&server, &folder, &[])).await;
    assert_readable(&daemon.client, &written[..2]).await;
    std::fs::remove_dir_all(&folder).unwrap();
    let last = put(&daemon.client, 7, 100_000).await.unwrap();

    assert_exactly(&server, &daemon, &[written, vec![last]].concat()).await;
    assert!(metric(&daemon.client, "esker_local_copy_dropped_total").await > 0.0);
    tokio::time::timeout(Duration::from_secs(10), daemon.shut_down()).await.unwrap().unwrap();
}
