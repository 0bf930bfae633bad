//! The load generator behind `esker bench`: how many durable answers a second, at what latency, for how much CPU.
//!
//! Every target runs in a process of its own, so that its CPU time is its own: daemons on folders that are thrown away,
//! and a bare HTTP server that drains bodies and stores nothing ([`sink`]). The sink is the baseline: what machine,
//! kernel, HTTP library and this client reach together. All targets are driven in the same round, one after the other,
//! and a target's ratio compares it with the sink of the same round; so a machine that is busy for a while
//! makes a round slow, not a target. Other S3 servers can be put beside ([`External`]).
//!
//! - [`workload`]: what is sent: sizes, clients, places in jobs, bodies. Pure.
//! - [`histogram`]: latencies and their quantiles.
//! - [`sign`]: signatures of S3 requests.
//! - [`sink`]: the baseline.
//! - [`process`]: a server in a process of its own, and what it costs.
//! - [`connection`]: a client's connection.
//! - [`targets`]: what is driven, and its requests.
//! - [`run`]: closed-loop clients against one target.
//! - [`report`]: medians, spreads, the table and the JSON.
//! - [`churn`]: another benchmark: space, not speed.
//! - [`failover`]: a third one: how long clients wait when a member of a cluster goes away.
//!
//! # Crash
//! Processes and folders go with the values that own them: when the bench ends, fails, panics or is interrupted. Only
//! when it is killed (SIGKILL) do they stay.

pub mod churn;
pub mod connection;
pub mod failover;
pub mod histogram;
mod options;
pub mod process;
pub mod report;
pub mod run;
pub mod sign;
pub mod sink;
pub mod targets;
pub mod workload;

use std::time::Duration;

use anyhow::{Context, bail};

pub use options::{BenchOptions, Door, External};
use process::{Scratch, file_system_in_memory};
use report::{BenchReport, CellReport, TargetReport};
use run::{BenchRun, Until};
use targets::{Launch, Target};
use workload::{Bodies, Cell, cells, round_order};

/// The progress of a bench.
#[derive(Debug)]
pub enum BenchProgress<'a> {
    /// Something the reader of the figures should know.
    Note(&'a str),
    /// The time that it will take, about.
    Begins(Duration),
    /// A target is driven: its name, the cell, the round from 1.
    Drives(&'a str, Cell, usize),
    /// A cell is done.
    Done(&'a CellReport),
}

/// Measures every cell, one after the other.
///
/// # Errors
/// When a server does not start or stops, or a target answers no request at all.
///
/// # Cancel safety
/// Dropped, it ends its servers and removes its folders.
pub async fn bench(options: &BenchOptions, mut tell: impl FnMut(BenchProgress<'_>)) -> anyhow::Result<BenchReport> {
    let cells = cells(&options.sizes, &options.clients, options.big);
    if cells.is_empty() || options.rounds == 0 {
        bail!("there is nothing to measure: give at least one size, one number of clients and one round");
    }
    let scratch = Scratch::below(&options.data_dir)?;
    if file_system_in_memory(scratch.path()) {
        tell(BenchProgress::Note("the folder is in memory (tmpfs): a sync costs nothing there, see --data-dir"));
    }
    if cfg!(debug_assertions) {
        tell(BenchProgress::Note("this is a debug build: its figures say nothing about speed"));
    }
    let targets = 1 + options.doors.len() + options.against.len();
    let runs = u32::try_from(cells.len() * targets * options.rounds).unwrap_or(u32::MAX);
    tell(BenchProgress::Begins((options.run + Duration::from_millis(100)).saturating_mul(runs)));
    let mut report = BenchReport::new(options);
    for (index, cell) in cells.into_iter().enumerate() {
        let folder = Scratch::new(scratch.path().join(format!("cell-{index}")))?;
        let measured = measure(options, cell, &folder, &mut tell).await;
        let measured = measured.with_context(|| format!("at {cell}"))?;
        tell(BenchProgress::Done(&measured));
        report.cells.push(measured);
    }
    Ok(report)
}

/// Measures one cell: starts the targets, warms them up, drives them in turn, ends them.
async fn measure(
    options: &BenchOptions,
    cell: Cell,
    folder: &Scratch,
    tell: &mut impl FnMut(BenchProgress<'_>),
) -> anyhow::Result<CellReport> {
    let bodies = Bodies::new(cell.bytes, options.seed);
    let launch = Launch { options, folder: folder.path(), cell };
    let mut targets = vec![launch.sink().await?];
    for door in &options.doors {
        targets.push(launch.door(*door).await.with_context(|| format!("the {} door", door.name()))?);
    }
    for external in &options.against {
        targets.push(launch.external(external)?);
    }
    let until = |time| Until { time, bytes_max: options.run_bytes_max };
    let warm_up = until((options.run / 4).min(Duration::from_millis(500)));
    for target in &targets {
        drive(target, BenchRun { number: 0, cell, until: warm_up, bodies: &bodies }).await?;
    }
    let mut reports: Vec<TargetReport> = targets.iter().map(|target| TargetReport::new(target.name())).collect();
    for round in 0..options.rounds {
        for index in round_order(round, targets.len()) {
            let target = &targets[index];
            tell(BenchProgress::Drives(target.name(), cell, round + 1));
            let run = BenchRun { number: round as u64 + 1, cell, until: until(options.run), bodies: &bodies };
            reports[index].rounds.push(drive(target, run).await?);
        }
    }
    Ok(CellReport::new(cell, reports))
}

async fn drive(target: &Target, run: BenchRun<'_>) -> anyhow::Result<run::RunFigures> {
    let number = run.number;
    let measured = run.drive(target).await.with_context(|| target.fault())?;
    target.end_checkpoint(number).await?;
    Ok(measured)
}
