//! Closed-loop clients: each has one connection and sends its next request when the last one was answered.
//!
//! A request is made, and signed, before its time begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::Connection;
use super::histogram::Histogram;
use super::process::{cpu_seconds, rss_peak_bytes};
use super::targets::{Requests, Target};
use super::workload::{Bodies, Cell};
use crate::runtime::Clock;

/// Requests that were begun in time get so long to end.
const OVERTIME: Duration = Duration::from_secs(60);
/// A client that was refused waits before it tries again.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);
/// A client that failed so often gives up.
const FAILURES_MAX: u64 = 1000;

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// After this time.
    pub time: Duration,
    /// Or when so many bytes were sent to a target that stores them.
    pub bytes_max: u64,
}

/// One target, driven once.
#[derive(Debug)]
pub struct BenchRun<'a> {
    /// Its number, from 0 for the warm-up: every run is a checkpoint of its own.
    pub number: u64,
    /// Size and number of clients.
    pub cell: Cell,
    /// When it ends.
    pub until: Until,
    /// The bodies that are sent.
    pub bodies: &'a Bodies,
}

/// The figures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunFigures {
    /// Requests that were answered with success.
    pub answered: u64,
    /// Requests that were refused or broke.
    pub failed: u64,
    /// Bytes of those that were answered.
    pub bytes: u64,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// Latency that half of the answers did not exceed.
    pub p50_seconds: f64,
    /// Latency that 99 % of the answers did not exceed.
    pub p99_seconds: f64,
    /// The longest latency.
    pub max_seconds: f64,
    /// CPU seconds that the server used.
    pub server_cpu_seconds: Option<f64>,
    /// CPU seconds that the clients used.
    pub client_cpu_seconds: f64,
    /// Syncs and puts of physical files.
    pub data_writes: Option<u64>,
    /// Syncs and puts of the catalog's log.
    pub catalog_writes: Option<u64>,
    /// The most memory that the server had so far.
    pub rss_peak_bytes: Option<u64>,
}

impl BenchRun<'_> {
    /// Drives a target.
    ///
    /// # Errors
    /// When it cannot be reached, or answers nothing with success.
    pub async fn drive(self, target: &Target) -> anyhow::Result<RunFigures> {
        let requests = target.requests(self.number, self.bodies)?;
        let mut connections = vec![];
        for client in 0..requests.len() {
            connections.push(Connection::open(target.address(client)).await?);
        }
        let writes_before = target.writes().await?;
        // Of all its processes, or of none.
        let all = |figures: Option<Vec<f64>>| figures.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<f64>());
        let cpu = || all(target.pids().iter().map(|pid| cpu_seconds(*pid)).collect());
        let own_cpu = || cpu_seconds(std::process::id()).unwrap_or_default();
        let (cpu_before, own_cpu_before) = (cpu(), own_cpu());
        let begun = Clock::instant();
        let bytes_max = if target.stores() { self.until.bytes_max } else { u64::MAX };
        let limit = Arc::new(Limit {
            end: begun + self.until.time,
            requests_left: AtomicU64::new(bytes_max / self.cell.bytes),
        });
        let mut clients = JoinSet::new();
        for (number, (connection, requests)) in connections.into_iter().zip(requests).enumerate() {
            let authority = target.address(number).to_owned();
            #[expect(clippy::disallowed_methods, reason = "the run waits for each of its clients")]
            clients.spawn(client(authority, connection, requests, Arc::clone(&limit)));
        }
        let tally = tokio::time::timeout(self.until.time + OVERTIME, sum(&mut clients)).await;
        let tally = tally.with_context(|| format!("requests were not answered within {OVERTIME:?}"))??;
        let (ended, cpu_after, own_cpu_after) = (Clock::instant(), cpu(), own_cpu());
        if tally.answered == 0 {
            let why = tally.first_failure.unwrap_or_else(|| "no request was sent".to_owned());
            bail!("nothing was answered with success: {why}");
        }
        let writes = target.writes().await?.zip(writes_before).map(|(after, before)| after.since(before));
        Ok(RunFigures {
            answered: tally.answered,
            failed: tally.failed,
            bytes: tally.answered * self.cell.bytes,
            seconds: (ended - begun).as_secs_f64(),
            p50_seconds: tally.latencies.quantile(0.5).as_secs_f64(),
            p99_seconds: tally.latencies.quantile(0.99).as_secs_f64(),
            max_seconds: tally.latencies.max().as_secs_f64(),
            server_cpu_seconds: cpu_after.zip(cpu_before).map(|(after, before)| after - before),
            client_cpu_seconds: own_cpu_after - own_cpu_before,
            data_writes: writes.map(|writes| writes.data),
            catalog_writes: writes.map(|writes| writes.catalog),
            rss_peak_bytes: target
                .pids()
                .iter()
                .map(|pid| rss_peak_bytes(*pid))
                .sum::<Option<u64>>()
                .filter(|sum| *sum > 0),
        })
    }
}

async fn sum(clients: &mut JoinSet<anyhow::Result<ClientTally>>) -> anyhow::Result<ClientTally> {
    let mut sum = ClientTally::default();
    while let Some(client) = clients.join_next().await {
        let tally = client.context("a client")??;
        sum.answered += tally.answered;
        sum.failed += tally.failed;
        sum.latencies.add(&tally.latencies);
        sum.first_failure = sum.first_failure.or(tally.first_failure);
    }
    Ok(sum)
}

/// The limits that all clients of a run share.
#[derive(Debug)]
struct Limit {
    end: Instant,
    requests_left: AtomicU64,
}

impl Limit {
    fn allows_one_more(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        Clock::instant() < self.end
            && self.requests_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// The figures of one client.
#[derive(Debug, Default)]
struct ClientTally {
    answered: u64,
    failed: u64,
    latencies: Histogram,
    first_failure: Option<String>,
}

async fn client(
    authority: String,
    mut connection: Connection,
    mut requests: Requests,
    limit: Arc<Limit>,
) -> anyhow::Result<ClientTally> {
    let mut tally = ClientTally::default();
    while limit.allows_one_more() && tally.failed < FAILURES_MAX {
        let request = requests.make()?;
        let begun = Clock::instant();
        match connection.send(request).await {
            Ok(answer) if answer.status.is_success() => {
                tally.latencies.record(begun.elapsed());
                tally.answered += 1;
            }
            Ok(answer) => {
                tally.failed += 1;
                tally.first_failure.get_or_insert_with(|| format!("{} {}", answer.status, answer.text()));
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Err(error) => {
                tally.failed += 1;
                tally.first_failure.get_or_insert_with(|| format!("{error:#}"));
                match Connection::open(&authority).await {
                    Ok(another) => connection = another,
                    Err(_) => break,
                }
            }
        }
    }
    Ok(tally)
}
