//! `esker verify` names what is wrong with a folder.

use std::path::{Path, PathBuf};
use std::process::Output;

use esker_client::wire::SegmentInfo;
use tempfile::TempDir;

use crate::daemon::{TestDaemon, checkpoint, files};
use crate::process::esker;
use crate::support::pattern;

/// A folder that a daemon has left in order, with one closed file in it, and a segment in that.
async fn folder() -> (TempDir, SegmentInfo) {
    let daemon = TestDaemon::start(&[]).await;
    daemon.client.create_job("j").await.unwrap();
    daemon.client.put("j", &checkpoint(1), None, pattern(1, 1000).into()).await.unwrap();
    let info = daemon.client.put("j", &checkpoint(1), None, pattern(2, 100_000).into()).await.unwrap();
    (daemon.shut_down().await, info)
}

fn verify(folder: &Path, more: &[&str]) -> Output {
    let mut command = esker();
    command.args(["verify", "--data-dir"]).arg(folder).args(more).output().unwrap()
}

/// What it says with all data read, and its exit code.
fn said(folder: &Path) -> (Option<i32>, String) {
    let output = verify(folder, &["--read-data", "100"]);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn only_file(folder: &Path) -> (PathBuf, String) {
    let path = files(&folder.join("data")).pop().unwrap();
    let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
    (path, name)
}

#[tokio::test]
async fn a_folder_in_order_has_no_fault() {
    let (folder, _) = folder().await;

    assert_eq!(said(folder.path()), (Some(0), "1 files, 2 segments, 2 of them read: 0 faults\n".to_owned()));
}

#[tokio::test]
async fn a_file_that_nobody_knows_is_a_fault() {
    let (folder, _) = folder().await;
    std::fs::write(folder.path().join("data/stray"), b"?").unwrap();

    let (code, text) = said(folder.path());

    assert_eq!(code, Some(1));
    assert!(text.contains("fault: data/stray is no physical file"), "{text}");
}

#[tokio::test]
async fn a_file_that_the_next_start_sets_aside_is_named() {
    let (folder, _) = folder().await;
    let (path, name) = only_file(folder.path());
    let (stray, stray_name) = (path.with_file_name("00000001-00000000000000000000000042"), &name[..name.len() - 35]);
    std::fs::copy(&path, stray).unwrap();

    let (code, text) = said(folder.path());

    assert_eq!(code, Some(0));
    assert!(
        text.contains(&format!("note: {stray_name}00000001-00000000000000000000000042 is not in the catalog")),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_that_was_cut_is_a_fault() {
    let (folder, _) = folder().await;
    let (path, name) = only_file(folder.path());
    let len = path.metadata().unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(len - 1).unwrap();

    let (code, text) = said(folder.path());

    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("fault: {name}: has {} bytes, the catalog says {len}", len - 1)), "{text}");
}

#[tokio::test]
async fn a_file_that_is_gone_is_a_fault() {
    let (folder, _) = folder().await;
    let (path, name) = only_file(folder.path());
    std::fs::remove_file(path).unwrap();

    let (code, text) = said(folder.path());

    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("fault: {name}: ")), "{text}");
}

#[tokio::test]
async fn a_flipped_byte_is_found_where_data_is_read() {
    let (folder, info) = folder().await;
    let (path, name) = only_file(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[info.offset as usize + 7] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();

    assert_eq!(verify(folder.path(), &[]).status.code(), Some(0), "without --read-data");
    let (code, text) = said(folder.path());

    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("fault: segment {} in {name} has CRC-32C", info.segment)), "{text}");
}

#[tokio::test]
async fn a_folder_that_is_none_cannot_be_verified() {
    let folder = tempfile::tempdir().unwrap();

    for folder in [folder.path().to_owned(), folder.path().join("missing")] {
        let output = verify(&folder, &[]);

        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("holds no catalog"));
    }
}

#[tokio::test]
async fn a_segment_is_read_from_its_handle_alone() {
    let (folder, info) = folder().await;

    let read = |handle: &str| {
        let mut command = esker();
        command.args(["get", "--handle", handle, "--data-dir"]).arg(folder.path()).output().unwrap()
    };

    assert_eq!(read(&info.handle).stdout, pattern(2, 100_000));
    let wrong = read(&info.handle.replace(&info.crc32c, "01020304"));
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("holds other bytes"));
}

#[tokio::test]
async fn nothing_is_put_right_unasked_and_everything_that_can_be_when_asked() {
    let (folder, _) = folder().await;
    let (path, name) = only_file(folder.path());
    let stray = folder.path().join("data/stray");
    std::fs::write(&stray, b"?").unwrap();
    let unnamed = path.with_file_name("00000001-00000000000000000000000042");
    std::fs::copy(&path, &unnamed).unwrap();

    assert_eq!(said(folder.path()).0, Some(1));
    assert!(stray.exists() && unnamed.exists());
    let output = verify(folder.path(), &["--repair", "--read-data", "100"]);

    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("done: moved data/stray"), "{text}");
    assert!(text.contains("done: moved 1 files that are not in the catalog to lost+found"), "{text}");
    assert_eq!(std::fs::read(folder.path().join("lost+found/data/stray")).unwrap(), b"?");
    assert!(!stray.exists() && !unnamed.exists() && path.exists());
    std::fs::remove_file(&path).unwrap();
    let kept = verify(folder.path(), &["--repair"]);
    assert_eq!(kept.status.code(), Some(1), "records are kept");
    let dropped = verify(folder.path(), &["--repair", "--drop-lost"]);
    let text = String::from_utf8(dropped.stdout).unwrap();
    assert_eq!(dropped.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("dropped 1 segments of {name}")), "{text}");
}

#[tokio::test]
async fn json_says_what_the_lines_say() {
    let (folder, _) = folder().await;
    std::fs::write(folder.path().join("data/stray"), b"?").unwrap();

    let output = verify(folder.path(), &["--json", "--read-data", "100"]);

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&report["files"], &report["segments"], &report["read"]), (&1.into(), &2.into(), &2.into()));
    assert_eq!(report["faults"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_counts_for_itself() {
    let daemon = TestDaemon::start(&[]).await;
    daemon.client.create_job("j").await.unwrap();
    daemon.client.put("j", &checkpoint(1), None, pattern(2, 100_000).into()).await.unwrap();
    let api = format!("http://{}", daemon.api());

    let ask = |more: &'static [&'static str]| {
        let mut command = esker();
        command.args(["verify", "--api", &api]).args(more);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };

    let output = ask(&[]).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1 files, 1 segments, 0 of them read: 0 faults\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(ask(&["--repair"]).await.unwrap().status.code(), Some(2));
    daemon.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_where_nothing_lives_are_no_fault_and_a_rebuild_does_not_bring_them_back() {
    let daemon =
        TestDaemon::start(&[("execution.checkpointing.file-merging.across-checkpoint-boundary", "true")]).await;
    daemon.client.create_job("j").await.unwrap();
    let dead = daemon.client.put("j", &checkpoint(1), None, pattern(1, 4 << 20).into()).await.unwrap();
    let alive = daemon.client.put("j", &checkpoint(2), None, pattern(2, 100_000).into()).await.unwrap();
    assert_eq!(dead.file, alive.file, "one file");
    daemon.client.complete("j", 2).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();
    daemon.client.flush("j").await.unwrap();
    let punched = daemon.client.reclaim().await.unwrap().punched_bytes;
    if punched == 0 {
        println!("this file system has no holes");
        return;
    }
    let folder = daemon.shut_down().await;

    assert_eq!(said(folder.path()).0, Some(0));
    std::fs::rename(folder.path().join("catalog"), folder.path().join("lost")).unwrap();
    let mut command = esker();
    let output = command.args(["rebuild", "--json", "--data-dir"]).arg(folder.path()).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["given_back"], &report["segments"]), (&1.into(), &1.into()));
    assert_eq!(said(folder.path()).0, Some(0));
}
