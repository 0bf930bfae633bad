//! The real program on machines whose clocks are wrong, by Debian's `faketime`.
//!
//! Where that is not installed the tests say so and check nothing; the same is shown inside one process by the clocks of
//! `tests/faults`.

use std::path::PathBuf;
use std::time::Duration;

use esker::client::Client;

use crate::daemon::{checkpoint, files};
use crate::process::{Process, Ready};
use crate::support::pattern;

/// More than is kept inside the catalog.
const LEN: usize = 30_000;

/// The library that `faketime` preloads.
fn library() -> Option<String> {
    let mut found = vec![PathBuf::from("/usr/lib/faketime")];
    found.extend(std::fs::read_dir("/usr/lib").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("faketime"))));
    let library = found.into_iter().map(|folder| folder.join("libfaketime.so.1")).find(|library| library.exists());
    if library.is_none() {
        println!("skipped: Debian's faketime is not installed; tests/faults shows the same inside one process");
    }
    library.map(|library| library.display().to_string())
}

/// A folder, and the program on it.
struct World {
    folder: tempfile::TempDir,
    library: String,
}

impl World {
    /// Starts the program `off` from the right time.
    fn start(&self, off: &str) -> (Process, Ready) {
        let environment = [
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME", off.to_owned()),
            // Wall clocks are wrong; what measures durations is not.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("ESKER__RECLAIM__INTERVAL", "50 ms".to_owned()),
            ("ESKER__RECLAIM__DELETE_GRACE", "0".to_owned()),
        ];
        let mut process = Process::spawn(self.folder.path(), &environment);
        let ready = process.wait_ready();
        (process, ready)
    }
}

async fn put(client: &Client, seed: u64) -> String {
    client.put("j", &checkpoint(1), None, pattern(seed, LEN).into()).await.unwrap().segment
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_clock_was_set_starts_serves_and_deletes() {
    let Some(library) = library() else { return };
    for (before, after, behind) in [("+0", "-60s", true), ("+30d", "+0", true), ("+0", "+30d", false)] {
        let world = World { folder: tempfile::tempdir().unwrap(), library: library.clone() };
        let (process, ready) = world.start(before);
        let client = Client::new(&ready.api, None).unwrap();
        client.create_job("j").await.unwrap();
        let first = put(&client, 1).await;
        assert!(process.terminate().success());

        let (process, ready) = world.start(after);

        let client = Client::new(&ready.api, None).unwrap();
        let second = put(&client, 2).await;
        assert_eq!(client.get(&first).await.unwrap(), pattern(1, LEN));
        assert_eq!(client.get(&second).await.unwrap(), pattern(2, LEN));
        let warned = process.log().contains("the machine's clock is behind what is on record");
        assert_eq!(warned, behind, "{before} then {after}:\n{}", process.log());
        client.abort("j", 1).await.unwrap();
        let data = world.folder.path().join("data/data");
        let begun = std::time::Instant::now();
        while !files(&data).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{before} then {after}: {:?}", files(&data));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(process); // killed
        let (process, ready) = world.start("+0");
        let client = Client::new(&ready.api, None).unwrap();
        client.begin("j", 2).await.unwrap();
        assert!(process.terminate().success());
    }
}
