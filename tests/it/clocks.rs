//! The real program on machines whose clocks are wrong, by Debian's `faketime`.
//!
//! Where that is not installed the tests say so and check nothing; the same is shown inside one process by the clocks of
//! `tests/faults`.

use std::path::Path;
use std::time::Duration;

use esker_client::wire::{JobOperator, NewJob};
use esker_client::{Client, Worker, WorkerEvent};

use crate::clock;
use crate::daemon::{checkpoint, files};
use crate::process::{Process, Ready};
use crate::support::pattern;

/// More than is kept inside the catalog.
const LEN: usize = 30_000;

const SKIPPED: &str = "skipped: Debian's faketime is not installed; tests/faults shows the same inside one process";

/// Starts the program on a folder, `off` from the right time; none without `faketime`.
fn start(folder: &Path, off: &str) -> Option<(Process, Ready)> {
    Some(start_with(folder, clock::wrong_by(off)?))
}

fn start_with<const N: usize>(folder: &Path, clock: [(&'static str, String); N]) -> (Process, Ready) {
    let hasty = [("ESKER__RECLAIM__INTERVAL", "50 ms"), ("ESKER__RECLAIM__DELETE_GRACE", "0")];
    let hasty = hasty.map(|(key, value)| (key, value.to_owned()));
    let environment: Vec<_> = clock.into_iter().chain(hasty).collect();
    let mut process = Process::spawn(folder, &environment);
    let ready = process.wait_ready();
    (process, ready)
}

async fn put(client: &Client, seed: u64) -> String {
    client.put("j", &checkpoint(1), None, pattern(seed, LEN).into()).await.unwrap().segment
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_clock_was_set_starts_serves_and_deletes() {
    for (before, after, behind) in [("+0", "-60s", true), ("+30d", "+0", true), ("+0", "+30d", false)] {
        let folder = tempfile::tempdir().unwrap();
        let Some((process, ready)) = start(folder.path(), before) else {
            println!("{SKIPPED}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinated_job_goes_on_while_the_clock_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clock");
    std::fs::write(&file, "+0").unwrap();
    let Some(clock) = clock::set_by(&file) else {
        println!("{SKIPPED}");
        return;
    };
    let (process, ready) = start_with(folder.path(), clock);
    let client = Client::new(&ready.api, None).unwrap();
    let keys =
        [("execution.checkpointing.interval", "50 ms"), ("heartbeat.interval", "200 ms"), ("heartbeat.timeout", "3 s")];
    let job = NewJob {
        job: "j".to_owned(),
        coordinated: true,
        settings: Some(keys.map(|(key, value)| (key.to_owned(), value.into())).into()),
        operators: Some(vec![JobOperator { id: "a".to_owned(), parallelism: 1, ..JobOperator::default() }]),
        iterative: None,
    };
    client.create(&job).await.unwrap();
    let mut worker = Worker::new(client.clone(), "j", "a", 0);

    let (mut completed, mut told) = (vec![], vec![]);
    for off in ["+0", "+30d", "-60d", "+0"] {
        std::fs::write(&file, off).unwrap();
        let until = completed.len() + 10;
        while completed.len() < until {
            let event = tokio::time::timeout(Duration::from_secs(20), worker.next());
            match event.await.unwrap_or_else(|_| panic!("{off}: no checkpoint comes")).unwrap() {
                WorkerEvent::Start(_) => worker.running().await.unwrap(),
                WorkerEvent::Snapshot(trigger) => {
                    told.push(trigger.timestamp_ms);
                    worker.acknowledge(trigger.checkpoint, vec![]).await.unwrap();
                }
                WorkerEvent::Complete(checkpoint) => completed.push(checkpoint),
                WorkerEvent::Subsume(_) => {}
                other => panic!("{off}: {other:?}"),
            }
        }
    }

    assert!(completed.is_sorted_by(|one, next| one + 1 == *next), "none is given up: {completed:?}");
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 0);
    let day = 86_400_000;
    assert!(told[15] > told[5] + 29 * day, "the clock was set: {told:?}");
    process.terminate();
}
