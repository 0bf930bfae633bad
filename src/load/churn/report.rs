//! Figures of the churn benchmark, as a table and as JSON. Pure.

use std::time::Duration;

use serde::Serialize;

use super::flink::{Boundary, FlinkFigures};
use super::workload::JobShape;
use super::{CHECKPOINT_INTERVAL, ChurnOptions, Preset};
use crate::reclaim::Round;

/// The figures of Flink 2.3.0 itself, measured elsewhere with the churn of [`Preset::Flink`] at a limit of 2.0: the mean
/// and the largest amplification. It refused no reuse.
const FLINK_MEASURED: ChurnFigures = ChurnFigures { limit: 2.0, mean: 3.12, max: 5.25, refused: 0 };

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct ChurnReport {
    /// Version of the daemon.
    pub version: &'static str,
    /// `release` or `debug`.
    pub build: &'static str,
    /// The workload's name.
    pub preset: &'static str,
    /// The shape of the job.
    pub shape: JobShape,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Checkpoints that were retained.
    pub retain: u64,
    /// Virtual seconds between two checkpoints.
    pub checkpoint_interval_seconds: f64,
    /// Seed of everything.
    pub seed: u64,
    /// The runs, in order.
    pub runs: Vec<RunReport>,
    /// Flink's merging, simulated on the same checkpoints.
    pub flink: Vec<FlinkReport>,
    /// Flink's merging, measured elsewhere, where that was the same churn.
    pub flink_measured: Option<ChurnFigures>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// Store and limit.
    pub name: String,
    /// Limit of the space amplification.
    pub limit: f64,
    /// Amplification when the reclaimer found nothing more to do.
    pub amplification_after: Distribution,
    /// Amplification after a checkpoint, before the reclaimer looked.
    pub amplification_between: Distribution,
    /// As `amplification_after`, files that only waited to be deleted counted in.
    pub amplification_on_storage: Distribution,
    /// When it was above the limit.
    pub above: Above,
    /// Checkpoints that the figures are of: those after the first that was subsumed.
    pub checkpoints: u64,
    /// The work of reclaiming.
    pub reclaimed: Reclaimed,
    /// Files that died as a whole.
    pub files_died_whole: u64,
    /// Files whose segments were copied away.
    pub files_rewritten: u64,
    /// Files that were made, by writers and by reclaiming.
    pub files_created: u64,
    /// Most bytes that waited to be deleted.
    pub waiting_bytes_max: u64,
    /// The result of reading everything back in the end.
    pub verified: ReadBack,
    /// Real seconds of all of it.
    pub real_seconds: f64,
}

/// Flink's merging.
#[derive(Debug, Clone, Serialize)]
pub struct FlinkReport {
    /// Whether files hold segments of one checkpoint.
    pub boundary: Boundary,
    /// Limit of the space amplification.
    pub limit: f64,
    /// Amplification after a checkpoint.
    pub amplification: Distribution,
    /// Its figures.
    #[serde(flatten)]
    pub figures: FlinkFigures,
}

/// Figures that were measured elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChurnFigures {
    /// Limit of the space amplification.
    pub limit: f64,
    /// Mean amplification.
    pub mean: f64,
    /// Largest amplification.
    pub max: f64,
    /// Reuses that were refused.
    pub refused: u64,
}

/// Values that are collected.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

/// The summary of the values; zeros when there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// The mean.
    pub mean: f64,
    /// Half of them are no larger.
    pub p50: f64,
    /// 99 % of them are no larger.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Samples {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Number of values.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The summary of the values.
    pub fn spread(&self) -> Distribution {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(max) = sorted.last().copied() else { return Distribution::default() };
        let rank = |part: f64| sorted[((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1];
        Distribution { mean: sorted.iter().sum::<f64>() / sorted.len() as f64, p50: rank(0.5), p99: rank(0.99), max }
    }
}

/// When the amplification was above the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Above {
    /// After how many checkpoints.
    pub checkpoints: u64,
    /// Virtual seconds in total: of each such time, until reclaiming was done.
    pub seconds: f64,
    /// The longest time.
    pub seconds_max: f64,
}

impl Above {
    /// One more time.
    pub fn add(&mut self, time: Duration) {
        self.checkpoints += 1;
        self.seconds += time.as_secs_f64();
        self.seconds_max = self.seconds_max.max(time.as_secs_f64());
    }
}

/// The work of reclaiming.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Reclaimed {
    /// Rounds that had something to do.
    pub rounds: u64,
    /// Bytes that were read to be copied.
    pub read_bytes: u64,
    /// Bytes of segments that were written again, packed ones among them.
    pub written_bytes: u64,
    /// Bytes that were given back by copying: what was stored before, less what was after.
    pub freed_bytes: u64,
    /// Bytes that were given back by punching holes.
    pub punched_bytes: u64,
    /// Bytes of files that were copied because too much of them was dead.
    pub copied_file_bytes: u64,
    /// Of them, bytes that lived.
    pub copied_live_bytes: u64,
    /// Real seconds of all rounds.
    pub real_seconds: f64,
}

impl Reclaimed {
    /// One round, after which `less` bytes less were stored.
    pub fn add(&mut self, round: &Round, less: u64) {
        self.rounds += 1;
        self.read_bytes += round.read_bytes;
        self.written_bytes += round.written_bytes;
        self.freed_bytes += less.saturating_sub(round.punched_bytes);
        self.punched_bytes += round.punched_bytes;
        self.copied_file_bytes += round.copied_file_bytes;
        self.copied_live_bytes += round.copied_live_bytes;
    }

    /// The living part *u* of the files that were copied.
    pub fn live_share(&self) -> Option<f64> {
        (self.copied_file_bytes > 0).then(|| self.copied_live_bytes as f64 / self.copied_file_bytes as f64)
    }

    /// Bytes written again for each byte that copying gave back.
    pub fn written_per_freed(&self) -> Option<f64> {
        (self.freed_bytes > 0).then(|| self.written_bytes as f64 / self.freed_bytes as f64)
    }

    /// *u* / (1 - *u*): what copying costs when nothing is written beside what lives.
    pub fn written_per_freed_ideal(&self) -> Option<f64> {
        self.live_share().filter(|share| *share < 1.0).map(|share| share / (1.0 - share))
    }
}

/// The segments that were read in the end and found as they were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReadBack {
    /// Segments that live.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files on storage, all of which the catalog knows.
    pub files: u64,
}

impl ChurnReport {
    /// Without runs yet.
    pub fn new(options: &ChurnOptions) -> Self {
        let same_churn = options.preset == Preset::Flink && options.shape == Preset::Flink.shape();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            preset: options.preset.name(),
            shape: options.shape,
            checkpoints: options.checkpoints,
            retain: options.retain,
            checkpoint_interval_seconds: CHECKPOINT_INTERVAL.as_secs_f64(),
            seed: options.seed,
            runs: vec![],
            flink: vec![],
            flink_measured: (same_churn && options.retain == 10).then_some(FLINK_MEASURED),
        }
    }

    /// Flink's merging, a line each.
    pub fn flink_table(&self) -> String {
        let mut text = format!(
            "{:<44}{:>9}{:>9}{:>9}{:>14}{:>14}\n",
            "Flink's merging, same checkpoints", "mean", "p99", "max", "refused", "rewritten MB"
        );
        for FlinkReport { boundary, limit, amplification, figures } in &self.flink {
            let name = match boundary {
                Boundary::Within => format!("simulated, within checkpoints, limit {limit}"),
                Boundary::Across => format!("simulated, across checkpoints, limit {limit}"),
            };
            text.push_str(&format!(
                "  {name:<42}{:>9.2}{:>9.2}{:>9.2}{:>14}{:>14.0}\n",
                amplification.mean,
                amplification.p99,
                amplification.max,
                figures.refused,
                figures.rewritten_bytes as f64 / 1e6
            ));
        }
        if let Some(ChurnFigures { limit, mean, max, refused }) = self.flink_measured {
            let name = format!("Flink 2.3.0, measured elsewhere, limit {limit}");
            text.push_str(&format!("  {name:<42}{mean:>9.2}{:>9}{max:>9.2}{refused:>14}{:>14}\n", "-", "-"));
        }
        text
    }
}

impl RunReport {
    /// The part of all files that nobody needs any more that died as a whole; `None` if there were no such files.
    pub fn died_whole(&self) -> Option<f64> {
        let all = self.files_died_whole + self.files_rewritten;
        (all > 0).then(|| self.files_died_whole as f64 / all as f64)
    }

    /// The run as a table of a line for each figure.
    pub fn table(&self) -> String {
        let spread = |spread: &Distribution| {
            format!("mean {:.3}, median {:.3}, p99 {:.3}, max {:.3}", spread.mean, spread.p50, spread.p99, spread.max)
        };
        let mb = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
        let Above { checkpoints, seconds, seconds_max } = self.above;
        let share = checkpoints as f64 / self.checkpoints.max(1) as f64 * 100.0;
        let of = &self.reclaimed;
        let figure = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let lines = [
            ("after catch-up", spread(&self.amplification_after)),
            ("between", spread(&self.amplification_between)),
            (
                "above the limit",
                format!("after {checkpoints} checkpoints ({share:.0} %), {seconds:.0} s, longest {seconds_max:.1} s"),
            ),
            ("with what waits for its deletion", spread(&self.amplification_on_storage)),
            ("most that waited", mb(self.waiting_bytes_max)),
            ("copied, given back by it", format!("{}, {}", mb(of.written_bytes), mb(of.freed_bytes))),
            ("punched", mb(of.punched_bytes)),
            ("u of copied files", figure(of.live_share(), 3)),
            (
                "copied / given back, u/(1-u)",
                format!("{}, {}", figure(of.written_per_freed(), 3), figure(of.written_per_freed_ideal(), 3)),
            ),
            (
                "files died whole, rewritten",
                format!(
                    "{}, {} ({} % died whole)",
                    self.files_died_whole,
                    self.files_rewritten,
                    figure(self.died_whole().map(|part| part * 100.0), 1)
                ),
            ),
            (
                "verified",
                format!(
                    "{} segments, {}, {} files",
                    self.verified.segments,
                    mb(self.verified.bytes),
                    self.verified.files
                ),
            ),
            ("real seconds, of reclaiming", format!("{:.1}, {:.1}", self.real_seconds, of.real_seconds)),
        ];
        let mut text = format!("{}\n", self.name);
        lines.iter().for_each(|(name, value)| text.push_str(&format!("  {name:<36}{value}\n")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_mean_and_what_most_do_not_exceed() {
        let mut samples = Samples::default();
        (1..=200).rev().for_each(|n| samples.push(f64::from(n)));

        assert_eq!(samples.spread(), Distribution { mean: 100.5, p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Samples::default().spread(), Distribution::default());
    }

    #[test]
    fn what_copying_costs_is_compared_with_the_living_part_of_what_was_copied() {
        let mut reclaimed = Reclaimed::default();
        assert_eq!((reclaimed.live_share(), reclaimed.written_per_freed()), (None, None));
        let round = Round {
            written_bytes: 30,
            punched_bytes: 5,
            copied_file_bytes: 100,
            copied_live_bytes: 25,
            ..Round::default()
        };

        reclaimed.add(&round, 80);

        assert_eq!(reclaimed.live_share(), Some(0.25));
        assert_eq!(reclaimed.written_per_freed(), Some(30.0 / 75.0));
        assert!((reclaimed.written_per_freed_ideal().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    }
}
