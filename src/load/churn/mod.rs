//! The churn benchmark behind `esker bench churn`: how much space incremental checkpoints take while their segments come
//! and go, what it costs to get it back, and what Flink's own merging makes of the same checkpoints.
//!
//! The engine of a daemon runs in this process, without doors, with the calls that the native API makes. Time is virtual, a
//! checkpoint every ten seconds, because the planner goes by the age of files; reclaiming is asked for, not awaited. So the
//! same seed gives the same figures; only seconds of work are real ones. (The reclaimer breaks a round off when puts become
//! four times as slow as before; the next round goes on.) Nothing is stored inline, because what that takes is the catalog's.
//!
//! - [`workload`]: which segments come and go. Pure.
//! - [`flink`]: Flink's file merging. Pure.
//! - [`instance`]: the engine of a daemon, on a clock that is set.
//! - [`run`]: checkpoint after checkpoint, catch-up after catch-up, and a check of all that lives in the end.
//! - [`report`]: figures, the table and the JSON. Pure.
//!
//! # What is measured when
//! A checkpoint is stored, completed, and the oldest one is subsumed; then space is *between*. The reclaimer looks an
//! interval later, at the worst moment for it, and works until it finds nothing to do; then space is *after catch-up*.
//! A job that is above the limit *between* is so for the interval, and for the time that the copies take at
//! `reclaim.copy-rate`.
//!
//! # Crash
//! As in [`super`]: the folder of a run goes with it.

pub mod flink;
pub mod instance;
pub mod report;
pub mod run;
pub mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::process::{Scratch, file_system_in_memory};
use flink::{Boundary, Flink};
use report::{ChurnReport, FlinkReport, RunReport, Samples};
use workload::{Churn, Heat, JobShape, LivePieces, Sizes};

/// Virtual time between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// A workload with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Sizes and lives of all kinds.
    Mixed,
    /// The churn that Flink's own merging was measured with.
    Flink,
}

impl Preset {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Flink => "flink",
        }
    }

    /// The shape of the job that this preset stores.
    pub fn shape(self) -> JobShape {
        match self {
            Self::Mixed => {
                JobShape { subtasks: 64, segments: 48, replaced: 0.3, sizes: Sizes::Mixed, heat: Heat::Skewed }
            }
            Self::Flink => {
                JobShape { subtasks: 64, segments: 10, replaced: 0.3, sizes: Sizes::Same(64 << 10), heat: Heat::Even }
            }
        }
    }
}

/// Where physical files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChurnStore {
    /// An object store in memory.
    Memory,
    /// A folder; once with holes punched, once without.
    Local,
}

/// The options of a measurement.
#[derive(Debug, Clone)]
pub struct ChurnOptions {
    /// The workload's name.
    pub preset: Preset,
    /// The shape of the job.
    pub shape: JobShape,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Checkpoints that are retained, at least 1.
    pub retain: u64,
    /// Limits of the space amplification, a run each.
    pub limits: Vec<f64>,
    /// Seed of everything.
    pub seed: u64,
    /// Where physical files go.
    pub place: ChurnStore,
    /// The folder below which those of [`ChurnStore::Local`] are made.
    pub data_dir: PathBuf,
}

/// The progress of a measurement.
#[derive(Debug)]
pub enum ChurnProgress<'a> {
    /// Something the reader of the figures should know.
    Note(&'a str),
    /// A run has got so far: its name, the checkpoint.
    Step(&'a str, u64),
    /// A run is done.
    Done(&'a RunReport),
}

/// One run with one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChurnSetting {
    /// Limit of the space amplification.
    pub limit: f64,
    /// Where physical files go.
    pub place: ChurnStore,
    /// Whether holes are punched, where they can be.
    pub punch_holes: bool,
}

impl ChurnSetting {
    /// Its name in reports.
    pub fn name(&self) -> String {
        let place = match (self.place, self.punch_holes) {
            (ChurnStore::Memory, _) => "memory",
            (ChurnStore::Local, true) => "local, holes",
            (ChurnStore::Local, false) => "local, copies",
        };
        format!("{place}, limit {}", self.limit)
    }
}

/// Measures every setting, one after the other, and Flink's merging beside.
///
/// # Errors
/// When something cannot be stored, or what was stored is not there in the end.
pub async fn churn(options: &ChurnOptions, mut tell: impl FnMut(ChurnProgress<'_>)) -> anyhow::Result<ChurnReport> {
    if options.limits.is_empty() || options.checkpoints <= options.retain || options.retain == 0 {
        bail!("there is nothing to measure: give a limit, and more checkpoints than are retained");
    }
    if cfg!(debug_assertions) {
        tell(ChurnProgress::Note("this is a debug build: its seconds say nothing"));
    }
    let scratch = match options.place {
        ChurnStore::Memory => None,
        ChurnStore::Local => Some(Scratch::below(&options.data_dir)?),
    };
    if scratch.as_ref().is_some_and(|scratch| file_system_in_memory(scratch.path())) {
        tell(ChurnProgress::Note("the folder is in memory (tmpfs): a sync costs nothing there, see --data-dir"));
    }
    let mut report = ChurnReport::new(options);
    for (index, setting) in settings(options).into_iter().enumerate() {
        let folder = scratch.as_ref().map(|scratch| Scratch::new(scratch.path().join(format!("run-{index}"))));
        let folder = folder.transpose()?;
        let name = setting.name();
        let run = run::run(options, setting, folder.as_ref().map(Scratch::path), |checkpoint| {
            tell(ChurnProgress::Step(&name, checkpoint));
        });
        let run = run.await.with_context(|| name.clone())?;
        tell(ChurnProgress::Done(&run));
        report.runs.push(run);
    }
    for limit in &options.limits {
        report.flink.extend([Boundary::Within, Boundary::Across].map(|boundary| simulate(options, boundary, *limit)));
    }
    Ok(report)
}

fn settings(options: &ChurnOptions) -> Vec<ChurnSetting> {
    let of = |limit| match options.place {
        ChurnStore::Memory => vec![ChurnSetting { limit, place: ChurnStore::Memory, punch_holes: true }],
        ChurnStore::Local => {
            [true, false].map(|punch_holes| ChurnSetting { limit, place: ChurnStore::Local, punch_holes }).to_vec()
        }
    };
    options.limits.iter().flat_map(|limit| of(*limit)).collect()
}

/// Flink's merging, on the same checkpoints.
fn simulate(options: &ChurnOptions, boundary: Boundary, limit: f64) -> FlinkReport {
    const FILE_BYTES_MAX: u64 = 32 << 20;
    let mut churn = Churn::new(options.shape, options.seed);
    let mut living = LivePieces::default();
    let mut flink = Flink::new(boundary, limit, FILE_BYTES_MAX);
    let mut samples = Samples::default();
    for _ in 0..options.checkpoints {
        let checkpoint = churn.next_checkpoint();
        let subsumed = checkpoint.number.saturating_sub(options.retain);
        flink.take(&checkpoint, subsumed);
        living.take(&checkpoint, subsumed);
        if subsumed > 0 {
            samples.push(flink.figures().physical_bytes as f64 / living.bytes() as f64);
        }
    }
    FlinkReport { boundary, limit, amplification: samples.spread(), figures: flink.figures() }
}
