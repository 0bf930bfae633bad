//! A disk that is filled: by what is put, and by another program.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use esker_client::wire::PutParams;
use esker_client::{Client, ClientError};
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use super::small_disk::{Files, Filler, on_a_small_disk};
use super::{eventually, readyz};
use crate::process::{Process, Ready};
use crate::support::pattern;

const OBJECT_BYTES: usize = 256 << 10;
const JOB: &str = "job";

/// Starts a daemon that looks for dead bytes often.
fn start(folder: &Path) -> (Process, Ready) {
    let mut daemon = Process::spawn(folder, &[("ESKER__RECLAIM__INTERVAL", "300 ms".to_owned())]);
    let ready = daemon.wait_ready();
    (daemon, ready)
}

/// A client that repeats nothing.
fn s3(ready: &Ready) -> AmazonS3 {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    ready.s3_builder(ClientOptions::new()).with_retry(retry).build().unwrap()
}

fn native(ready: &Ready) -> Client {
    Client::new(&ready.api, None).unwrap()
}

fn key(n: usize) -> Key {
    Key::from(format!("{JOB}/shared/{n}"))
}

/// Objects that were answered.
#[derive(Default)]
struct Answered(BTreeMap<usize, Bytes>);

impl Answered {
    async fn put(&mut self, s3: &AmazonS3, n: usize, len: usize) -> Result<(), String> {
        let data = Bytes::from(pattern(n as u64, len));
        let put = s3.put(&key(n), data.clone().into()).await;
        put.map_err(|error| esker::error::chain(&error))?;
        self.0.insert(n, data);
        Ok(())
    }

    /// Puts until one is refused. Returns the refusal.
    async fn fill(&mut self, s3: &AmazonS3, from: usize) -> String {
        for n in from..from + 1000 {
            if let Err(refused) = self.put(s3, n, OBJECT_BYTES).await {
                return refused;
            }
        }
        panic!("the disk took 250 MiB")
    }

    async fn assert_readable(&self, s3: &AmazonS3) {
        for (n, data) in &self.0 {
            let found = s3.get(&key(*n)).await.unwrap_or_else(|error| panic!("object {n}: {error}"));
            assert!(found.bytes().await.unwrap() == data, "object {n} has other bytes");
        }
    }

    async fn delete(&mut self, s3: &AmazonS3, doomed: impl Fn(usize) -> bool) {
        let doomed: Vec<usize> = self.0.keys().copied().filter(|n| doomed(*n)).collect();
        for n in doomed {
            s3.delete(&key(n)).await.unwrap_or_else(|error| panic!("object {n} cannot be deleted: {error}"));
            self.0.remove(&n);
        }
    }
}

fn assert_says_why(refused: &str) {
    assert!(refused.contains("503") && refused.contains("ServiceUnavailable"), "{refused}");
    assert!(refused.contains("store.reserve") && refused.contains("bytes free"), "{refused}");
}

/// The value of a metric, with its labels as they are written.
async fn metric(ready: &Ready, name: &str) -> f64 {
    let text = native(ready).metrics().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
    value.map_or(0.0, |value| value.parse().unwrap())
}

async fn writes_go_on(answered: &mut Answered, s3: &AmazonS3, n: usize) {
    let begun = std::time::Instant::now();
    while let Err(refused) = answered.put(s3, n, OBJECT_BYTES).await {
        assert_says_why(&refused);
        assert!(begun.elapsed() < super::SOON, "writes do not go on: {refused}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn warnings(folder: &Path) -> usize {
    let log = fs::read_to_string(folder.join("log")).unwrap();
    log.lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .inspect(|line| println!("{line}"))
        .count()
}

#[test]
fn puts_fill_the_disk_up_to_the_reserve_and_go_on_once_objects_are_deleted() {
    on_a_small_disk("full::puts_fill_the_disk_up_to_the_reserve_and_go_on_once_objects_are_deleted", async |folder| {
        let (daemon, ready) = start(folder);
        let warnings_before = warnings(folder);
        let (s3, native, mut answered) = (s3(&ready), native(&ready), Answered::default());
        native.create_job(JOB).await.unwrap();
        native.begin(JOB, 1).await.unwrap();

        let refused = answered.fill(&s3, 0).await;

        assert_says_why(&refused);
        assert!(answered.0.len() * OBJECT_BYTES > 40 << 20, "most of the disk is for objects: {}", answered.0.len());
        let (status, reason) = readyz(&ready.api);
        assert!(status == 503 && reason.contains("store.reserve"), "{status} {reason}");
        // Both doors, without flapping, whatever the size.
        let params = PutParams { checkpoint: Some(1), ..PutParams::default() };
        for n in 0..50 {
            assert_says_why(&answered.put(&s3, 10_000 + n, 1).await.unwrap_err());
            let native = native.put(JOB, &params, None, Bytes::from_static(b"x")).await.unwrap_err();
            let ClientError::Refused { status, message, .. } = native else { panic!("{native}") };
            assert!(status == 503 && message.contains("store.reserve"), "{status} {message}");
        }
        assert_eq!(metric(&ready, r#"esker_rejected_total{reason="disk"}"#).await, 101.0);
        assert_eq!(metric(&ready, r#"esker_rejected_total{reason="unavailable"}"#).await, 0.0);
        let reserve = metric(&ready, r#"esker_disk_reserve_bytes{of="data"}"#).await;
        let free = metric(&ready, r#"esker_disk_free_bytes{of="catalog"}"#).await;
        assert!(free < 1.25 * reserve && reserve > 2e7, "{free} bytes are free, {reserve} are kept back");
        assert_eq!(warnings(folder), warnings_before + 1, "one line for all of it");
        answered.assert_readable(&s3).await;
        native.complete(JOB, 1).await.unwrap();

        // No file dies as a whole: their dead ranges are given back in place.
        answered.delete(&s3, |n| n % 2 == 0).await;

        writes_go_on(&mut answered, &s3, 20_000).await;
        eventually("the daemon is ready", async || readyz(&ready.api).0 == 200).await;
        answered.fill(&s3, 30_000).await;
        answered.assert_readable(&s3).await;
        drop(daemon);
    });
}

#[test]
fn a_daemon_on_a_disk_that_another_program_filled_starts_reads_deletes_and_recovers() {
    on_a_small_disk(
        "full::a_daemon_on_a_disk_that_another_program_filled_starts_reads_deletes_and_recovers",
        async |folder| {
            let (mut daemon, mut ready) = start(folder);
            let mut answered = Answered::default();
            for n in 0..40 {
                // Into files, and into the catalog.
                answered.put(&s3(&ready), n, if n % 2 == 0 { OBJECT_BYTES } else { 500 }).await.unwrap();
            }
            let reserve = folder.join("data/catalog/RESERVE");
            eventually("the ballast is there", async || fs::metadata(&reserve).is_ok_and(|file| file.len() > 8 << 20))
                .await;
            let filler = Filler::fill(folder);

            // Whatever is under way when the disk ends is refused, not lost.
            let refused = answered.fill(&s3(&ready), 100).await;
            assert_says_why(&refused);
            answered.delete(&s3(&ready), |n| n < 4).await;
            for round in 0..3 {
                drop(daemon); // kill -9
                (daemon, ready) = start(folder);
                let s3 = s3(&ready);
                answered.assert_readable(&s3).await;
                assert_says_why(&answered.put(&s3, 1000, OBJECT_BYTES).await.unwrap_err());
                assert_says_why(&answered.put(&s3, 1001, 10).await.unwrap_err());
                answered.delete(&s3, |n| n < 8 + 4 * round).await;
                assert_eq!(
                    s3.list_with_delimiter(Some(&Key::from("job/shared"))).await.unwrap().objects.len(),
                    answered.0.len()
                );
            }
            filler.remove();

            writes_go_on(&mut answered, &s3(&ready), 2000).await;
            eventually("the ballast is filled again", async || fs::metadata(&reserve).unwrap().len() > 8 << 20).await;
            daemon.terminate();
            let (_daemon, ready) = start(folder);
            answered.assert_readable(&s3(&ready)).await;
        },
    );
}

#[test]
fn a_daemon_whose_catalog_is_elsewhere_starts_on_a_full_disk_of_data() {
    on_a_small_disk("full::a_daemon_whose_catalog_is_elsewhere_starts_on_a_full_disk_of_data", async |folder| {
        let start = || {
            let catalog = format!("file:{}", folder.join("elsewhere").display());
            let mut daemon = Process::spawn(folder, &[("ESKER__CATALOG__URL", catalog)]);
            let ready = daemon.wait_ready();
            (daemon, ready)
        };
        let (mut daemon, mut ready) = start();
        let mut answered = Answered::default();
        for n in 0..5 {
            answered.put(&s3(&ready), n, OBJECT_BYTES).await.unwrap();
        }
        let reserve = folder.join("data/RESERVE");
        eventually("the ballast is there", async || fs::metadata(&reserve).is_ok_and(|file| file.len() == 4 << 20))
            .await;

        for _ in 0..3 {
            // Whatever was given up by the last start is taken, too.
            Filler::fill(folder);
            drop(daemon); // kill -9
            (daemon, ready) = start();
            answered.assert_readable(&s3(&ready)).await;
            assert_says_why(&answered.put(&s3(&ready), 1000, OBJECT_BYTES).await.unwrap_err());
            assert_eq!(fs::read_dir(folder.join("data/owners")).unwrap().count(), 1, "something was left behind");
        }
        fs::remove_file(folder.join("data/filler")).unwrap();

        writes_go_on(&mut answered, &s3(&ready), 2000).await;
        daemon.terminate();
    });
}

#[test]
fn a_file_system_without_inodes_takes_no_writes_serves_reads_and_deletes_and_lets_a_daemon_start() {
    let name = "full::a_file_system_without_inodes_takes_no_writes_serves_reads_and_deletes_and_lets_a_daemon_start";
    on_a_small_disk(name, async |folder| {
        let (daemon, ready) = start(folder);
        let mut answered = Answered::default();
        let client = s3(&ready);
        for n in 0..20 {
            answered.put(&client, n, OBJECT_BYTES).await.unwrap();
        }
        let reserve = folder.join("data/catalog/RESERVE");
        eventually("the reserve is there", async || folder.join("data/catalog/RESERVE.16").exists()).await;
        let reserve_bytes = fs::metadata(&reserve).unwrap().len();

        let files = Files::fill(folder);
        eventually("/readyz names inodes", async || readyz(&ready.api).1.contains("inodes")).await;

        assert_eq!(readyz(&ready.api).0, 503);
        let refused = answered.put(&client, 100, OBJECT_BYTES).await.unwrap_err();
        assert!(refused.contains("503") && refused.contains("inodes"), "{refused}");
        answered.assert_readable(&client).await;
        answered.delete(&client, |n| n < 5).await;
        drop(daemon);
        let (daemon, ready) = start(folder);
        let client = s3(&ready);
        assert!(readyz(&ready.api).1.contains("inodes"), "{}", readyz(&ready.api).1);
        answered.assert_readable(&client).await;
        answered.delete(&client, |n| n < 10).await;
        assert_eq!(fs::metadata(&reserve).unwrap().len(), reserve_bytes, "bytes were given up for files");

        files.remove();
        eventually("/readyz says that there is room", async || readyz(&ready.api).0 == 200).await;
        answered.put(&client, 100, OBJECT_BYTES).await.unwrap();
        answered.assert_readable(&client).await;
        daemon.terminate();
    });
}
