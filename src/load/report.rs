//! Medians and spreads over the rounds, as a table and as JSON. Pure.

use serde::Serialize;

use super::options::BenchOptions;
use super::run::RunFigures;
use super::workload::{Cell, LoadShape, size_text};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// Version of the daemon.
    pub version: &'static str,
    /// `release` or `debug`.
    pub build: &'static str,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Seed of the bodies.
    pub seed: u64,
    /// Rounds of each cell.
    pub rounds: usize,
    /// Seconds that a target was driven in each round.
    pub run_seconds: f64,
    /// The owners of the segments.
    pub shape: LoadShape,
    /// Keys of the daemon's configuration that were set.
    pub set: Vec<String>,
    /// The cells, in the order in which they were measured.
    pub cells: Vec<CellReport>,
}

/// One combination of size and clients.
#[derive(Debug, Serialize)]
pub struct CellReport {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Clients.
    pub clients: usize,
    /// The targets, the sink first.
    pub targets: Vec<TargetReport>,
}

/// One target of a cell.
#[derive(Debug, Serialize)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// Over the rounds.
    pub summary: BenchSummary,
    /// Each round.
    pub rounds: Vec<RunFigures>,
}

/// Medians and spreads over the rounds; `None` where it does not apply or was not measured.
#[derive(Debug, Default, Serialize)]
pub struct BenchSummary {
    /// Answers a second; durable ones, except of the sink.
    pub answers_per_second: Option<Spread>,
    /// Answers a second over those of the sink in the same round.
    pub of_sink: Option<Spread>,
    /// Bytes a second in MB (10^6).
    pub megabytes_per_second: Option<Spread>,
    /// Milliseconds that half of the answers did not exceed.
    pub p50_ms: Option<Spread>,
    /// Milliseconds that 99 % of the answers did not exceed.
    pub p99_ms: Option<Spread>,
    /// CPU seconds of the server for 1,000 answers.
    pub server_cpu_per_1000: Option<Spread>,
    /// CPU seconds of the clients for 1,000 answers. Where it is near the server's, the clients limit the rate.
    pub client_cpu_per_1000: Option<Spread>,
    /// Answers for each sync (put) of a physical file; `None` when all segments went into the catalog.
    pub answers_per_data_write: Option<Spread>,
    /// Answers for each sync or put at all, physical files and the catalog's log together.
    pub answers_per_write: Option<Spread>,
    /// The most memory that the server had, in bytes.
    pub rss_peak_bytes: Option<u64>,
    /// Requests that were refused or broke, in all rounds.
    pub failed: u64,
}

/// A median and the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of some values; `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

impl BenchReport {
    /// Without cells yet.
    pub fn new(options: &BenchOptions) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            seed: options.seed,
            rounds: options.rounds,
            run_seconds: options.run.as_secs_f64(),
            shape: options.shape,
            // Values may be secrets.
            set: options.set.iter().map(|(key, _)| key.clone()).collect(),
            cells: vec![],
        }
    }
}

impl TargetReport {
    /// Without rounds yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), summary: BenchSummary::default(), rounds: vec![] }
    }
}

impl CellReport {
    /// Sums the rounds up. The first target is the sink.
    pub fn new(cell: Cell, mut targets: Vec<TargetReport>) -> Self {
        let sink: Vec<f64> = targets.first().map_or(vec![], |sink| sink.rounds.iter().map(rate).collect());
        for (index, target) in targets.iter_mut().enumerate() {
            target.summary = summary(&target.rounds, &sink, index == 0);
        }
        Self { segment_bytes: cell.bytes, clients: cell.clients, targets }
    }

    /// The cell as a table of a line for each target: medians over the rounds, with the smallest and the largest of
    /// those that matter most.
    pub fn table(&self) -> String {
        let Cell { bytes, clients } = Cell { bytes: self.segment_bytes, clients: self.clients };
        let title = format!("{} x {clients}", size_text(bytes));
        let mut text = format!(
            "{title:<14}{:>24}{:>23}{:>8}{:>8}{:>22}{:>12}{:>8}{:>7}{:>7}{:>8}{:>8}\n",
            "answers/s",
            "of sink",
            "MB/s",
            "p50 ms",
            "p99 ms",
            "cpu s/1000",
            "client",
            "/data",
            "/sync",
            "RSS MB",
            "failed"
        );
        for TargetReport { name, summary, .. } in &self.targets {
            let cells = [
                (24, spread(summary.answers_per_second)),
                (23, spread(summary.of_sink)),
                (8, median(summary.megabytes_per_second)),
                (8, median(summary.p50_ms)),
                (22, spread(summary.p99_ms)),
                (12, median(summary.server_cpu_per_1000)),
                (8, median(summary.client_cpu_per_1000)),
                (7, median(summary.answers_per_data_write)),
                (7, median(summary.answers_per_write)),
                (8, summary.rss_peak_bytes.map_or_else(dash, |bytes| (bytes / 1_000_000).to_string())),
                (8, summary.failed.to_string()),
            ];
            text.push_str(&format!("  {name:<12}"));
            for (width, cell) in cells {
                text.push_str(&format!("{cell:>width$}"));
            }
            text.push('\n');
        }
        text
    }
}

fn rate(run: &RunFigures) -> f64 {
    run.answered as f64 / run.seconds
}

fn summary(rounds: &[RunFigures], sink: &[f64], is_sink: bool) -> BenchSummary {
    let each = |value: &dyn Fn(&RunFigures) -> Option<f64>| Spread::of(rounds.iter().filter_map(value));
    let per_1000 = |seconds: f64, run: &RunFigures| seconds * 1000.0 / run.answered as f64;
    let of_sink = rounds.iter().zip(sink).map(|(run, sink)| rate(run) / sink);
    BenchSummary {
        answers_per_second: each(&|run| Some(rate(run))),
        of_sink: if is_sink { None } else { Spread::of(of_sink) },
        megabytes_per_second: each(&|run| Some(run.bytes as f64 / run.seconds / 1e6)),
        p50_ms: each(&|run| Some(run.p50_seconds * 1e3)),
        p99_ms: each(&|run| Some(run.p99_seconds * 1e3)),
        server_cpu_per_1000: each(&|run| run.server_cpu_seconds.map(|seconds| per_1000(seconds, run))),
        client_cpu_per_1000: each(&|run| Some(per_1000(run.client_cpu_seconds, run))),
        answers_per_data_write: each(&|run| per_write(run, run.data_writes?)),
        answers_per_write: each(&|run| per_write(run, run.data_writes? + run.catalog_writes?)),
        rss_peak_bytes: rounds.iter().filter_map(|run| run.rss_peak_bytes).max(),
        failed: rounds.iter().map(|run| run.failed).sum(),
    }
}

fn per_write(run: &RunFigures, writes: u64) -> Option<f64> {
    (writes > 0).then(|| run.answered as f64 / writes as f64)
}

fn median(spread: Option<Spread>) -> String {
    spread.map_or_else(dash, |spread| number(spread.median))
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(dash, |Spread { median, min, max }| {
        format!("{} ({}..{})", number(median), number(min), number(max))
    })
}

fn dash() -> String {
    "-".to_owned()
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(answered: u64, cpu: Option<f64>) -> RunFigures {
        RunFigures {
            answered,
            failed: 1,
            bytes: answered * 1000,
            seconds: 2.0,
            p50_seconds: 0.001,
            p99_seconds: 0.004,
            max_seconds: 0.01,
            server_cpu_seconds: cpu,
            client_cpu_seconds: 0.5,
            data_writes: cpu.map(|_| answered / 10),
            catalog_writes: cpu.map(|_| answered / 10),
            rss_peak_bytes: Some(answered * 1_000_000),
        }
    }

    fn target(name: &str, rounds: Vec<RunFigures>) -> TargetReport {
        TargetReport { rounds, ..TargetReport::new(name) }
    }

    #[test]
    fn a_spread_is_the_median_and_the_extremes() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_ratio_compares_runs_of_the_same_round() {
        let sink = target("sink", vec![run(1000, None), run(100, None)]);
        let native = target("native", vec![run(500, Some(1.0)), run(50, Some(0.2))]);

        let report = CellReport::new(Cell { bytes: 1000, clients: 2 }, vec![sink, native]);

        let summary = &report.targets[1].summary;
        assert_eq!(summary.of_sink, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
        assert_eq!(summary.server_cpu_per_1000, Some(Spread { median: 3.0, min: 2.0, max: 4.0 }));
        assert_eq!(summary.answers_per_data_write, Some(Spread { median: 10.0, min: 10.0, max: 10.0 }));
        assert_eq!(summary.answers_per_write, Some(Spread { median: 5.0, min: 5.0, max: 5.0 }));
        assert_eq!((summary.failed, summary.rss_peak_bytes), (2, Some(500_000_000)));
        assert_eq!(report.targets[0].summary.of_sink, None);
    }

    #[test]
    fn the_table_has_a_line_for_each_target_and_dashes_for_what_is_not_known() {
        let sink = target("sink", vec![run(1000, None)]);
        let native = target("native", vec![run(500, Some(1.0))]);

        let table = CellReport::new(Cell { bytes: 4096, clients: 2 }, vec![sink, native]).table();

        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("4 kb x 2"));
        assert!(lines[1].contains("500 (500..500)") && lines[1].contains(" - "));
        assert!(lines[2].contains("0.500 (0.500..0.500)") && lines[2].contains(" 10.0 "));
        let widths: Vec<usize> = lines.iter().map(|line| line.len()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    }
}
