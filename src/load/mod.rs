//! The load generator behind `esker bench`: how many durable answers a second, at what latency, for how much CPU.
//!
//! Every target runs in a process of its own, so that its CPU time is its own: daemons on folders that are thrown away,
//! and a bare HTTP server that drains bodies and stores nothing ([`sink`]). The sink is the baseline: what machine,
//! kernel, HTTP library and this client reach together. All targets are driven in the same round, one after the other,
//! and a target's ratio compares it with the sink of the same round; so a machine that is busy for a while
//! makes a round slow, not a target. Other S3 servers can be put beside ([`External`]).
//!
//! - [`workload`]: what is sent: sizes, clients, places in jobs, bodies. Pure.
//! - [`histogram`]: latencies. Pure.
//! - [`sign`]: signatures of S3 requests.
//! - [`sink`]: the baseline.
//! - [`process`]: a server in a process of its own, and what it costs.
//! - [`targets`]: what is driven, and its requests.
//! - [`run`]: closed-loop clients against one target.
//! - [`report`]: medians, spreads, the table and the JSON.
//! - [`churn`]: another benchmark: space, not speed.
//!
//! # Crash
//! Processes and folders go with the values that own them: when the bench ends, fails, panics or is interrupted. Only
//! when it is killed (SIGKILL) do they stay.

pub mod churn;
pub mod histogram;
pub mod process;
pub mod report;
pub mod run;
pub mod sign;
pub mod sink;
pub mod targets;
pub mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use process::{Scratch, file_system_in_memory};
use report::{CellReport, Report, TargetReport};
use run::{Run, Until};
use targets::{Launch, Target};
use workload::{Bodies, Cell, Shape, cells, round_order};

/// A door of the daemon, as it is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The native API: `POST /v1/jobs/{job}/segments`.
    Native,
    /// The S3 door: `PutObject` with SigV4 and `UNSIGNED-PAYLOAD`.
    S3,
    /// The S3 door: `PutObject` with SigV4 over the SHA-256 of the body.
    S3Sha256,
}

impl Door {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::S3 => "s3",
            Self::S3Sha256 => "s3-sha256",
        }
    }
}

/// Another S3 server, to be put beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name in reports.
    pub name: String,
    /// Its address, `http://HOST:PORT`.
    pub url: String,
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// A bucket that exists; what is put into it stays there.
    pub bucket: String,
    /// Its process on this machine, if its CPU time and memory are to be read.
    pub pid: Option<u32>,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `esker` program that is started.
    pub program: PathBuf,
    /// Sizes of segments in bytes.
    pub sizes: Vec<u64>,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Doors of the daemon.
    pub doors: Vec<Door>,
    /// Other servers.
    pub against: Vec<External>,
    /// Rounds of each cell.
    pub rounds: usize,
    /// How long one target is driven in one round.
    pub run: Duration,
    /// One target in one round gets no more bytes than this; bounds the disk space that is used.
    pub run_bytes_max: u64,
    /// Whether to add segments of 64 MiB, of 1 and 4 clients.
    pub big: bool,
    /// Whose segments they are.
    pub shape: Shape,
    /// Seed of bodies and names.
    pub seed: u64,
    /// The folder below which the daemons' folders are made.
    pub data_dir: PathBuf,
    /// Keys of the daemon's configuration.
    pub set: Vec<(String, String)>,
}

/// What is told while a bench runs.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Something the reader of the figures should know.
    Note(&'a str),
    /// How long it will take about.
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
pub async fn bench(options: &Options, mut tell: impl FnMut(Progress<'_>)) -> anyhow::Result<Report> {
    let cells = cells(&options.sizes, &options.clients, options.big);
    if cells.is_empty() || options.rounds == 0 {
        bail!("there is nothing to measure: give at least one size, one number of clients and one round");
    }
    let scratch = Scratch::below(&options.data_dir)?;
    if file_system_in_memory(scratch.path()) {
        tell(Progress::Note("the folder is in memory (tmpfs): a sync costs nothing there, see --data-dir"));
    }
    if cfg!(debug_assertions) {
        tell(Progress::Note("this is a debug build: its figures say nothing about speed"));
    }
    let targets = 1 + options.doors.len() + options.against.len();
    let runs = u32::try_from(cells.len() * targets * options.rounds).unwrap_or(u32::MAX);
    tell(Progress::Begins((options.run + Duration::from_millis(100)).saturating_mul(runs)));
    let mut report = Report::new(options);
    for (index, cell) in cells.into_iter().enumerate() {
        let folder = Scratch::new(scratch.path().join(format!("cell-{index}")))?;
        let measured = measure(options, cell, &folder, &mut tell).await;
        let measured = measured.with_context(|| format!("at {cell}"))?;
        tell(Progress::Done(&measured));
        report.cells.push(measured);
    }
    Ok(report)
}

/// Measures one cell: starts the targets, warms them up, drives them in turn, ends them.
async fn measure(
    options: &Options,
    cell: Cell,
    folder: &Scratch,
    tell: &mut impl FnMut(Progress<'_>),
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
        drive(target, Run { number: 0, cell, until: warm_up, bodies: &bodies }).await?;
    }
    let mut reports: Vec<TargetReport> = targets.iter().map(|target| TargetReport::new(target.name())).collect();
    for round in 0..options.rounds {
        for index in round_order(round, targets.len()) {
            let target = &targets[index];
            tell(Progress::Drives(target.name(), cell, round + 1));
            let run = Run { number: round as u64 + 1, cell, until: until(options.run), bodies: &bodies };
            reports[index].rounds.push(drive(target, run).await?);
        }
    }
    Ok(CellReport::new(cell, reports))
}

async fn drive(target: &Target, run: Run<'_>) -> anyhow::Result<run::Measured> {
    let number = run.number;
    let measured = run.drive(target).await.with_context(|| target.fault())?;
    target.end_checkpoint(number).await?;
    Ok(measured)
}
