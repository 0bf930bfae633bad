//! A sync that fails: what it was for may be in the page cache and nowhere else, and the next sync does not say so.

use std::fs;

use bytes::Bytes;
use esker_client::wire::PutParams;
use esker_client::{Client, ClientError};
use tempfile::tempdir;

use super::eventually;
use super::shim::Shim;
use crate::process::{Process, Ready, esker};
use crate::support::pattern;

const JOB: &str = "job";
/// More than goes into the catalog.
const LEN: usize = 100_000;

async fn create_job(ready: &Ready) -> Client {
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job(JOB).await.unwrap();
    client.begin(JOB, 1).await.unwrap();
    client
}

fn params() -> PutParams {
    PutParams { checkpoint: Some(1), ..PutParams::default() }
}

fn data(seed: u64) -> Bytes {
    pattern(seed, LEN).into()
}

#[tokio::test]
async fn frames_of_the_log_whose_sync_failed_are_written_again_before_anything_is_answered_with_them() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/catalog/log/") else { return };
    let mut daemon = Process::spawn(folder.path(), &shim.environment());
    let client = create_job(&daemon.wait_ready()).await;
    let answered = client.put(JOB, &params(), Some("first"), data(1)).await.unwrap();

    shim.fail();
    client.put(JOB, &params(), Some("second"), data(2)).await.unwrap_err();
    let state = format!("/proc/{}/stat", daemon.id());
    eventually("the daemon ends", async || fs::read_to_string(&state).unwrap().contains(") Z ")).await;
    let (status, log) = daemon.wait_end();
    assert!(!status.success(), "{log}");
    shim.work();
    let log = fs::read_dir(folder.path().join("data/catalog/log")).unwrap().map(|entry| entry.unwrap().path());
    let last = log.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap();
    let len = fs::metadata(&last).unwrap().len();
    shim.take_report();
    let mut daemon = Process::spawn(folder.path(), &shim.environment());
    let client = Client::new(&daemon.wait_ready().api, None).unwrap();

    let report: Vec<_> = shim.take_report().into_iter().filter(|(_, path, ..)| *path == last).collect();
    let written = report.iter().position(|(what, ..)| what == "write").expect("nothing was written again");
    let (_, _, offset, written_len) = &report[written];
    assert!(*offset > 0 && offset + written_len == len, "{report:?} of {len} bytes");
    assert!(report[written..].iter().any(|(what, ..)| what == "sync"), "{report:?}");
    assert_eq!(client.get(&answered.segment).await.unwrap(), data(1));
    let repeated = client.put(JOB, &params(), Some("second"), data(2)).await.unwrap();
    drop(daemon);
    let mut daemon = Process::spawn(folder.path(), &[]);
    let client = Client::new(&daemon.wait_ready().api, None).unwrap();
    assert_eq!(client.get(&answered.segment).await.unwrap(), data(1));
    assert_eq!(client.get(&repeated.segment).await.unwrap(), data(2));
}

#[tokio::test]
async fn a_data_file_whose_sync_failed_takes_nothing_more_and_its_group_is_stored_elsewhere() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/data/data/") else { return };
    let mut daemon = Process::spawn(folder.path(), &shim.environment());
    let client = create_job(&daemon.wait_ready()).await;
    let first = client.put(JOB, &params(), Some("first"), data(1)).await.unwrap();

    shim.fail();
    let refused = client.put(JOB, &params(), Some("second"), data(2)).await.unwrap_err();
    let ClientError::Refused { status, .. } = &refused else { panic!("{refused}") };
    assert!(*status == 503 && refused.is_transient(), "{refused}");
    assert_eq!(client.get(&first.segment).await.unwrap(), data(1));
    shim.work();
    let second = client.put(JOB, &params(), Some("second"), data(2)).await.unwrap();

    assert_ne!(first.file, second.file, "the file went on after its sync had failed");
    assert!(first.file.is_some() && second.file.is_some());
    drop(daemon);
    let mut daemon = Process::spawn(folder.path(), &[]);
    let client = Client::new(&daemon.wait_ready().api, None).unwrap();
    assert_eq!(client.get(&first.segment).await.unwrap(), data(1));
    assert_eq!(client.get(&second.segment).await.unwrap(), data(2));
}

#[tokio::test]
async fn a_data_file_of_which_a_write_failed_ends_with_what_was_answered_and_the_next_start_finds_it_whole() {
    let folder = tempdir().unwrap();
    let Some(shim) = Shim::build(folder.path(), "/data/data/") else { return };
    let mut daemon = Process::spawn(folder.path(), &shim.environment());
    let client = create_job(&daemon.wait_ready()).await;
    let first = client.put(JOB, &params(), Some("first"), data(1)).await.unwrap();

    shim.refuse();
    let refused = client.put(JOB, &params(), Some("second"), data(2)).await.unwrap_err();
    let ClientError::Refused { status, .. } = &refused else { panic!("{refused}") };
    assert!(*status == 503 && refused.is_transient(), "{refused}");
    daemon.terminate();

    let mut daemon = Process::spawn(folder.path(), &[]);
    let client = Client::new(&daemon.wait_ready().api, None).unwrap();
    assert_eq!(client.get(&first.segment).await.unwrap(), data(1));
    let second = client.put(JOB, &params(), Some("second"), data(2)).await.unwrap();
    assert_eq!(client.get(&second.segment).await.unwrap(), data(2));
    daemon.terminate();
    let verify = esker().args(["verify", "--data-dir"]).arg(folder.path().join("data")).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}
