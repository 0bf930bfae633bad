//! Machines whose clocks are wrong, or are set: a daemon starts, serves and deletes whatever they say.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use esker::runtime::Clock;

use crate::s3_server::S3Server;
use crate::support::{
    JOB, Running, SOON, Threads, Written, assert_exactly, create_job, data_files, eventually, metric, put, settings,
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const MONTH: i64 = 30 * 24 * HOUR;

/// Deletes soon, and has SlateDB write tables at once.
const HASTY: [(&str, &str); 3] =
    [("reclaim.delete-grace", "300 ms"), ("reclaim.interval", "50 ms"), ("catalog.poll-interval", "500 ms")];

/// A clock that is wrong by so many milliseconds, and what sets it.
fn wrong_by(millis: i64) -> (Clock, Arc<AtomicI64>) {
    let by = Arc::new(AtomicI64::new(millis));
    (Clock::Shifted(Arc::clone(&by)), by)
}

async fn start(server: &S3Server, millis: i64) -> Running {
    let (clock, _) = wrong_by(millis);
    let started = Running::try_start_by(settings(server, &HASTY), Threads::Two, clock).await;
    started.unwrap_or_else(|reason| panic!("wrong by {} s: {reason}", millis / 1000))
}

/// Stores some segments of checkpoint 1.
async fn fill(daemon: &Running, first: u64) -> Vec<Written> {
    let mut written = vec![];
    for number in first..first + 3 {
        written.push(put(&daemon.client, number, 1000).await.unwrap());
    }
    written
}

/// Drops all that is stored, and waits until nothing is left of it.
async fn empty(server: &S3Server, daemon: &Running) {
    daemon.client.abort(JOB, 1).await.unwrap();
    eventually("the files are deleted", SOON, || async { data_files(server).is_empty() }).await;
    assert!(!daemon.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_between_stop_and_start_costs_nothing() {
    for (before, after) in [(0, -MINUTE), (MONTH, 0), (0, MONTH), (HOUR, -HOUR)] {
        let server = S3Server::start().await;
        let first = start(&server, before).await;
        create_job(&first.client).await;
        let mut written = fill(&first, 1).await;
        if before == 0 {
            first.kill().await
        } else {
            first.shut_down().await.unwrap()
        }

        let second = start(&server, after).await;

        written.extend(fill(&second, 10).await);
        assert_exactly(&server, &second, &written).await;
        let behind = metric(&second.client, "esker_clock_behind_seconds").await;
        let expected = ((before - after) / 1000).max(0) as f64;
        assert!((expected - 60.0..=expected + 1.0).contains(&behind), "{behind} s of {expected} s");
        empty(&server, &second).await;
        second.shut_down().await.unwrap();
        // Once right, always right: later stamps have not drifted away.
        let third = start(&server, 0).await;
        let behind = metric(&third.client, "esker_clock_behind_seconds").await;
        assert!(behind <= (before.max(after).max(0) / 1000) as f64 + 1.0, "{behind} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_off_takes_over_and_stays() {
    for off in [-MINUTE, MINUTE, -HOUR, HOUR] {
        let server = S3Server::start().await;
        let healthy = start(&server, 0).await;
        create_job(&healthy.client).await;
        let mut written = fill(&healthy, 1).await;

        let second = start(&server, off).await;

        written.extend(fill(&second, 10).await);
        tokio::time::timeout(SOON, healthy.lost().cancelled()).await.expect("the first one is shut out");
        assert_exactly(&server, &second, &written).await;
        // And back again to a clock that is right.
        let third = start(&server, 0).await;
        written.extend(fill(&third, 20).await);
        assert_exactly(&server, &third, &written).await;
        empty(&server, &third).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_under_a_running_daemon_stops_nothing() {
    let server = S3Server::start().await;
    let (clock, by) = wrong_by(0);
    let daemon = Running::try_start_by(settings(&server, &HASTY), Threads::Two, clock).await.unwrap();
    create_job(&daemon.client).await;
    let mut written = vec![];

    for (round, off) in [(1, HOUR), (2, -HOUR), (3, MONTH), (4, 0)] {
        by.store(off, Ordering::Relaxed);
        written.extend(fill(&daemon, 10 * round).await);
    }

    assert_exactly(&server, &daemon, &written).await;
    empty(&server, &daemon).await;
    daemon.shut_down().await.unwrap();
}

/// A file was given up by a daemon whose clock was a month ahead: it does not wait for a month.
#[tokio::test(flavor = "multi_thread")]
async fn a_grace_that_began_in_the_future_ends_all_the_same() {
    let server = S3Server::start().await;
    let first = start(&server, 0).await;
    create_job(&first.client).await;
    let (gate, stale) = crate::crashes::put_held(&server, &first, 1, 1, crate::faults::Fault::Held).await;
    let (ahead, _) = wrong_by(MONTH);
    let patient = settings(&server, &[("reclaim.delete-grace", "1 min"), ("reclaim.interval", "50 ms")]);
    let second = Running::try_start_by(patient, Threads::Two, ahead).await.unwrap();
    gate.open();
    assert!(stale.await.unwrap().is_err());
    second.kill().await;
    assert_eq!(data_files(&server).len(), 1, "the name of what did not arrive is taken");

    let third = start(&server, 0).await;

    eventually("the file is deleted", SOON, || async { data_files(&server).is_empty() }).await;
    assert_exactly(&server, &third, &[]).await;
}

/// What an object store may still bring has to stay away for as long as the grace says, though the clock be set meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ahead_shortens_no_grace() {
    let patient = [("reclaim.delete-grace", "1 min"), ("reclaim.interval", "50 ms")];
    let server = S3Server::start().await;
    let (clock, by) = wrong_by(0);
    let first = Running::start(settings(&server, &patient)).await;
    create_job(&first.client).await;
    let (gate, stale) = crate::crashes::put_held(&server, &first, 1, 1, crate::faults::Fault::Held).await;
    let second = Running::try_start_by(settings(&server, &patient), Threads::Two, clock).await.unwrap();
    assert_eq!(data_files(&server).len(), 1, "the name of what did not arrive is taken");

    by.store(HOUR, Ordering::Relaxed);

    let rounds = metric(&second.client, "esker_catalog_commits_total").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(data_files(&server).len(), 1, "deleted before its time, {rounds} commits");
    gate.open();
    assert!(stale.await.unwrap().is_err());
}
