//! A slow backend: one round trip a put, bounded memory; and an idle daemon, which costs next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use esker::runtime::Clock;

use crate::faults::{Fault, Rule, any};
use crate::s3_server::S3Server;
use crate::support::{
    INLINE, Running, SOON, assert_exactly, assert_readable, create_job, eventually, metric, put, put_until_answered,
    server_and_daemon, settings,
};

const LATENCY: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_put_takes_one_round_trip_of_a_slow_backend() {
    for inline in ["0", "20 kb"] {
        let (server, daemon) = server_and_daemon(&[(INLINE, inline)]).await;
        server.faults().set_latency(LATENCY);
        let mut took = vec![];
        for number in 0..5 {
            let begun = Clock::instant();
            put(&daemon.client, number, 1000).await.unwrap();
            took.push(begun.elapsed());
        }

        // The median, as this machine runs other tests beside this one.
        took.sort();
        assert!(took[2] >= LATENCY && took[2] < LATENCY.mul_f64(2.5), "inline below {inline}: {took:?}");
        assert!(took[0] < LATENCY.mul_f64(1.8), "inline below {inline}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_its_limit_while_a_slow_backend_is_flooded() {
    const LIMIT: u64 = 32 << 20;
    let (server, daemon) = server_and_daemon(&[
        ("limits.memory", "32 mb"),
        ("limits.multipart-memory", "8 mb"),
        ("limits.multipart-part-in-memory-max", "5 mb"),
        ("limits.admission-timeout", "1 s"),
        ("store.part-size", "5 mb"),
        ("store.max-bytes-in-flight", "32 mb"),
        ("execution.checkpointing.file-merging.max-file-size", "8 mb"),
        ("store.request-timeout", "30 s"),
    ])
    .await;
    server.faults().set_latency(LATENCY);
    let peak = Arc::new(AtomicU64::new(0));
    let watch = {
        let (client, peak) = (daemon.new_client(), Arc::clone(&peak));
        tokio::spawn(async move {
            loop {
                let bytes = metric(&client, "esker_in_flight_bytes").await as u64;
                peak.fetch_max(bytes, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };

    // Three times the memory, all at once; some are told to come back, and do.
    let patience = Duration::from_secs(60);
    let puts = (0..48).map(|number| put_until_answered(&daemon.client, number, 2 << 20, patience));
    let (written, tries): (Vec<_>, Vec<_>) = futures::future::join_all(puts).await.into_iter().unzip();

    watch.abort();
    let peak = peak.load(Ordering::Relaxed);
    println!("peak {} MiB of {} MiB, {} tries", peak >> 20, LIMIT >> 20, tries.iter().sum::<usize>());
    assert!(peak > LIMIT / 2 && peak <= LIMIT, "{peak} bytes in flight");
    server.faults().set_latency(Duration::ZERO);
    assert_exactly(&server, &daemon, &written).await;
    assert_eq!(metric(&daemon.client, "esker_in_flight_bytes").await, 0.0, "memory was not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_slow_backend_is_not_taken_for_a_slow_one() {
    let (server, daemon) = server_and_daemon(&[
        ("limits.rate-min", "1 mb"),
        ("limits.rate-window", "500 ms"),
        ("limits.head-timeout", "500 ms"),
        ("limits.idle-timeout", "500 ms"),
        ("store.part-size", "5 mb"),
    ])
    .await;
    server.faults().set_latency(Duration::from_millis(1500));

    // The second streams through: its body waits for each part before it.
    let written = [put(&daemon.client, 1, 1000).await.unwrap(), put(&daemon.client, 2, 24 << 20).await.unwrap()];

    assert_readable(&daemon.client, &written).await;
    assert_eq!(metric(&daemon.client, "esker_rejected_total{reason=\"slow\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_during_an_outage_ends_and_what_was_answered_is_there() {
    let (server, daemon) = server_and_daemon(&[("server.drain-timeout", "500 ms")]).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    let outage = server.faults().add(Rule::everything(any), Fault::Refused);
    let client = daemon.new_client();
    let hanging = tokio::spawn(async move { put(&client, 2, 1000).await });

    // However it ends, it has to end.
    let ended = tokio::time::timeout(Duration::from_secs(60), daemon.shut_down()).await;

    assert!(ended.is_ok(), "the shutdown hangs");
    assert!(hanging.await.unwrap().is_err());
    outage.lift();
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_sends_a_handful_of_requests() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    put(&daemon.client, 1, 1000).await.unwrap();
    let window = Duration::from_secs(5);
    // The database's own tasks look around once when they start.
    eventually("the daemon is idle", SOON, || async {
        let before = server.faults().requests().len();
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.faults().requests().len() == before
    })
    .await;
    let before = server.faults().requests().len();

    tokio::time::sleep(window).await;

    let sent = server.faults().requests().split_off(before);
    assert!(sent.len() <= 6, "{} requests in {window:?}: {sent:?}", sent.len());
    assert!(sent.iter().all(|request| !request.op.writes()), "an idle daemon writes: {sent:?}");
}
