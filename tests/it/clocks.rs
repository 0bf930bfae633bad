//! The real program on machines whose clocks are wrong, by Debian's `faketime`.
//!
//! Where that is not installed the tests say so and check nothing; the same is shown inside one process by the clocks of
//! `tests/faults`.

use std::path::Path;
use std::time::Duration;

use esker_client::Client;

use crate::clock;
use crate::daemon::{checkpoint, files};
use crate::process::{Process, Ready};
use crate::support::pattern;

/// More than is kept inside the catalog.
const LEN: usize = 30_000;

/// Starts the program on a folder, `off` from the right time; none without `faketime`.
fn start(folder: &Path, off: &str) -> Option<(Process, Ready)> {
    let hasty = [("ESKER__RECLAIM__INTERVAL", "50 ms"), ("ESKER__RECLAIM__DELETE_GRACE", "0")];
    let hasty = hasty.map(|(key, value)| (key, value.to_owned()));
    let environment: Vec<_> = clock::wrong_by(off)?.into_iter().chain(hasty).collect();
    let mut process = Process::spawn(folder, &environment);
    let ready = process.wait_ready();
    Some((process, ready))
}

async fn put(client: &Client, seed: u64) -> String {
    client.put("j", &checkpoint(1), None, pattern(seed, LEN).into()).await.unwrap().segment
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_clock_was_set_starts_serves_and_deletes() {
    for (before, after, behind) in [("+0", "-60s", true), ("+30d", "+0", true), ("+0", "+30d", false)] {
        let folder = tempfile::tempdir().unwrap();
        let Some((process, ready)) = start(folder.path(), before) else {
            println!("skipped: Debian's faketime is not installed; tests/faults shows the same inside one process");
            return;
        };
        let client = Client::new(&ready.api, None).unwrap();
        client.create_job("j").await.unwrap();
        let first = put(&client, 1).await;
        process.terminate();

        let (process, ready) = start(folder.path(), after).unwrap();

        let client = Client::new(&ready.api, None).unwrap();
        let second = put(&client, 2).await;
        assert_eq!(client.get(&first).await.unwrap(), pattern(1, LEN));
        assert_eq!(client.get(&second).await.unwrap(), pattern(2, LEN));
        let warned = process.log().contains("the machine's clock is behind what is on record");
        assert_eq!(warned, behind, "{before} then {after}:\n{}", process.log());
        client.abort("j", 1).await.unwrap();
        let data = folder.path().join("data/data");
        let begun = std::time::Instant::now();
        while !files(&data).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{before} then {after}: {:?}", files(&data));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(process); // killed
        let (process, ready) = start(folder.path(), "+0").unwrap();
        let client = Client::new(&ready.api, None).unwrap();
        client.begin("j", 2).await.unwrap();
        process.terminate();
    }
}
