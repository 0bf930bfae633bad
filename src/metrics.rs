//! Every metric of the daemon: name, help, unit, labels, buckets. Labels are enums, never ids.

use std::ops::Deref;
use std::sync::Arc;

use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Seconds of the histograms: 50 µs to 30 s.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];

/// Handles of all metrics. Clones share them, and cost nothing: every request has some.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.0
    }
}

/// All metrics.
#[derive(Debug)]
pub struct Families {
    registry: Registry,
    /// Segments by door (`native`, `s3`) and outcome (`answered`, `refused`, `failed`).
    pub segments: IntCounterVec,
    /// Bytes of answered segments by door.
    pub segment_bytes: IntCounterVec,
    /// Physical files that were begun.
    pub files_created: IntCounter,
    /// Physical files by state (`open`, `closed`, `forgotten`).
    pub files: IntGaugeVec,
    /// Bytes of physical files, until they are deleted.
    pub physical_bytes: IntGauge,
    /// Bytes of living segments.
    pub live_bytes: IntGauge,
    /// Of them inside the catalog.
    pub inline_bytes: IntGauge,
    /// Physical bytes divided by the living bytes in physical files.
    pub space_amplification: Gauge,
    /// Requests to the backend by operation and by what they are for (`data`, `catalog`).
    pub store_requests: IntCounterVec,
    /// Requests to the backend that failed, likewise.
    pub store_errors: IntCounterVec,
    /// Seconds that requests to the backend took, likewise.
    pub store_seconds: HistogramVec,
    /// Bytes in memory that are paid for.
    pub in_flight_bytes: IntGauge,
    /// Requests and connections that were turned away, by reason.
    pub rejected: IntCounterVec,
    /// Seconds from the first byte of a request to its answer, by door and operation.
    pub answer_seconds: HistogramVec,
    /// Segments in one group that became durable together.
    pub group_segments: HistogramVec,
    /// Bytes read whose checksum was not what was stored.
    pub corrupt_reads: IntCounter,
    /// Segments that checkpoints asked to use again, by outcome (`reused`, `refused`).
    pub reused: IntCounterVec,
    /// Reads that the local copy answered.
    pub local_copy_hits: IntCounter,
    /// Reads that it did not.
    pub local_copy_misses: IntCounter,
    /// Entries of the local copy that were damaged.
    pub local_copy_damaged: IntCounter,
    /// Runs of bytes that the local copy did not keep: it was behind, its disk failed, or they are larger than it.
    pub local_copy_dropped: IntCounter,
    /// Entries of the local copy that made room for others.
    pub local_copy_evictions: IntCounter,
    /// Bytes of the local copy on disk.
    pub local_copy_bytes: IntGauge,
    /// Segments handed out by bulk restores.
    pub restore_segments: IntCounter,
    /// Their bytes.
    pub restore_bytes: IntCounter,
    /// Requests to storage for them.
    pub restore_requests: IntCounter,
    /// Requests more that one for each would have taken.
    pub restore_requests_saved: IntCounter,
    /// Windows of files that were read ahead, by what came of it: `window` (one was read), `hit` (a read needed no
    /// request), `unused` (less than an eighth of one was used).
    pub read_ahead: IntCounterVec,
    /// Connections that are open, by door.
    pub connections: IntGaugeVec,
    /// Physical files waiting to be deleted.
    pub delete_queue: IntGauge,
    /// Files deleted from storage.
    pub files_deleted: IntCounter,
    /// Bytes that reclaiming has `read`, `written` and `freed`.
    pub reclaim_bytes: IntCounterVec,
    /// Files that were given back, by `how`: `rewritten`, or `died_whole`.
    pub reclaim_files: IntCounterVec,
    /// Seconds for which some job has been above its limit, what waits to be deleted counted in.
    pub reclaim_lag: Gauge,
    /// Rounds of reclaiming that were put off for writers or the backend.
    pub reclaim_paused: IntCounter,
    /// Files that the catalog did not name and that were deleted.
    pub swept_files: IntCounter,
    /// Files that the catalog did not name and that were moved to `lost+found/` on a local disk.
    pub set_aside_files: IntCounter,
    /// Files that the catalog did not name at the last look.
    pub unnamed_files: IntGauge,
    /// 1 while the store is not the one that the catalog belongs to: nothing is deleted, and no file begun.
    pub store_lost: IntGauge,
    /// Bytes of files that wait to be deleted, by why (`readers`, `grace`, `rate`, `refused`).
    pub forgotten_bytes: IntGaugeVec,
    /// Bytes free on the disk of `data` or `catalog`, those kept back among them.
    pub disk_free_bytes: IntGaugeVec,
    /// Bytes kept back there.
    pub disk_reserve_bytes: IntGaugeVec,
    /// Commits to the catalog.
    pub commits: IntCounter,
    /// Seconds by which the machine's clock is behind what is on record.
    pub clock_behind: Gauge,
    /// Bytes of keys and values in them.
    pub committed_bytes: IntCounter,
    /// Multipart uploads that were given up for their clients, by reason (`expired`, `gave_way`).
    pub uploads_dropped: IntCounterVec,
    resident: IntGauge,
    cpu_seconds: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own, with every metric at zero.
    pub fn new() -> Self {
        let r = Registry::new();
        Self(Arc::new(Families {
            segments: counters(&r, "esker_segments_total", "Segments by door and outcome", &["door", "outcome"]),
            segment_bytes: counters(&r, "esker_segment_bytes_total", "Bytes of answered segments by door", &["door"]),
            files_created: counter(&r, "esker_physical_files_created_total", "Physical files that were begun"),
            files: gauges(&r, "esker_physical_files", "Physical files by state", &["state"]),
            physical_bytes: gauge(&r, "esker_physical_bytes", "Bytes of physical files, until they are deleted"),
            live_bytes: gauge(&r, "esker_live_bytes", "Bytes of living segments"),
            inline_bytes: gauge(&r, "esker_inline_bytes", "Bytes of living segments that are inside the catalog"),
            space_amplification: float(
                &r,
                "esker_space_amplification",
                "Physical bytes, also those waiting to be deleted, divided by the living bytes in physical files",
            ),
            store_requests: counters(
                &r,
                "esker_store_requests_total",
                "Requests to the backend by operation, for data files and for the catalog",
                &["operation", "of"],
            ),
            store_errors: counters(
                &r,
                "esker_store_errors_total",
                "Requests to the backend that failed",
                &["operation", "of"],
            ),
            store_seconds: histogram(
                &r,
                "esker_store_seconds",
                "Seconds that requests to the backend took",
                &["operation", "of"],
                SECONDS,
            ),
            in_flight_bytes: gauge(&r, "esker_in_flight_bytes", "Bytes in memory that are paid for"),
            rejected: counters(
                &r,
                "esker_rejected_total",
                "Requests and connections that were turned away, by reason",
                &["reason"],
            ),
            answer_seconds: histogram(
                &r,
                "esker_answer_seconds",
                "Seconds from the head of a request to its answer",
                &["door", "operation"],
                SECONDS,
            ),
            group_segments: histogram(
                &r,
                "esker_group_segments",
                "Segments that became durable by one write",
                &["backend"],
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            corrupt_reads: counter(&r, "esker_corrupt_reads_total", "Reads whose checksum was not the stored one"),
            reused: counters(&r, "esker_reused_segments_total", "Segments used again, or refused", &["outcome"]),
            local_copy_hits: counter(&r, "esker_local_copy_hits_total", "Reads that the local copy answered"),
            local_copy_misses: counter(
                &r,
                "esker_local_copy_misses_total",
                "Reads that the local copy left to the store",
            ),
            local_copy_damaged: counter(&r, "esker_local_copy_damaged_total", "Damaged entries of the local copy"),
            local_copy_dropped: counter(
                &r,
                "esker_local_copy_dropped_total",
                "Runs of bytes that the local copy had no time, room or disk for",
            ),
            local_copy_evictions: counter(
                &r,
                "esker_local_copy_evictions_total",
                "Entries of the local copy that made room for others",
            ),
            local_copy_bytes: gauge(&r, "esker_local_copy_bytes", "Bytes of the local copy on disk"),
            restore_segments: counter(&r, "esker_restore_segments_total", "Segments handed out by bulk restores"),
            restore_bytes: counter(&r, "esker_restore_bytes_total", "Bytes handed out by bulk restores"),
            restore_requests: counter(&r, "esker_restore_requests_total", "Requests to storage for bulk restores"),
            restore_requests_saved: counter(
                &r,
                "esker_restore_requests_saved_total",
                "Requests that bulk restores did without because one brought several segments or blocks",
            ),
            read_ahead: counters(
                &r,
                "esker_read_ahead_total",
                "Windows read ahead (window), reads that needed no request (hit), windows that went unused (unused)",
                &["outcome"],
            ),
            connections: gauges(&r, "esker_connections", "Open connections by door", &["door"]),
            delete_queue: gauge(&r, "esker_delete_queue_files", "Physical files waiting to be deleted"),
            files_deleted: counter(&r, "esker_physical_files_deleted_total", "Physical files deleted from storage"),
            reclaim_bytes: counters(
                &r,
                "esker_reclaim_bytes_total",
                "Bytes read and written to copy what lives, and bytes given back",
                &["kind"],
            ),
            reclaim_files: counters(
                &r,
                "esker_reclaim_files_total",
                "Physical files given back: rewritten, or dead as a whole",
                &["how"],
            ),
            reclaim_lag: float(
                &r,
                "esker_reclaim_lag_seconds",
                "Seconds for which a job has been above its space limit, what waits to be deleted counted in",
            ),
            reclaim_paused: counter(&r, "esker_reclaim_paused_total", "Rounds put off for writers or the backend"),
            swept_files: counter(&r, "esker_swept_files_total", "Files deleted that the catalog did not name"),
            set_aside_files: counter(
                &r,
                "esker_set_aside_files_total",
                "Files moved to lost+found that the catalog did not name",
            ),
            unnamed_files: gauge(&r, "esker_unnamed_files", "Files that the catalog did not name at the last look"),
            store_lost: gauge(
                &r,
                "esker_store_lost",
                "1 while the store is not the one that the catalog belongs to, and nothing is deleted",
            ),
            forgotten_bytes: gauges(
                &r,
                "esker_forgotten_bytes",
                "Bytes of physical files waiting to be deleted: being read, in their grace, next in turn, refused by storage",
                &["why"],
            ),
            disk_free_bytes: gauges(
                &r,
                "esker_disk_free_bytes",
                "Bytes free on the local disk of data or catalog, those kept back among them",
                &["of"],
            ),
            disk_reserve_bytes: gauges(
                &r,
                "esker_disk_reserve_bytes",
                "Bytes of that disk that are kept back: with less free, writes are refused",
                &["of"],
            ),
            commits: counter(&r, "esker_catalog_commits_total", "Batches committed to the catalog"),
            clock_behind: float(
                &r,
                "esker_clock_behind_seconds",
                "Seconds by which the machine's clock is behind the newest stamp on record",
            ),
            committed_bytes: counter(
                &r,
                "esker_catalog_committed_bytes_total",
                "Bytes of records in the batches committed to the catalog",
            ),
            uploads_dropped: counters(
                &r,
                "esker_multipart_uploads_dropped_total",
                "Multipart uploads without requests that were aborted, by reason",
                &["reason"],
            ),
            resident: gauge(&r, "process_resident_memory_bytes", "Resident memory of the process in bytes"),
            cpu_seconds: float(&r, "process_cpu_seconds_total", "User and system CPU seconds of the process"),
            registry: r,
        }))
    }

    /// Requests to the backend that failed, of all kinds.
    pub fn store_errors_total(&self) -> f64 {
        let families = prometheus::core::Collector::collect(&self.store_errors);
        families.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Source
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    pub fn render(&self) -> String {
        if let Some(process) = process_usage() {
            self.resident.set(process.resident_bytes);
            self.cpu_seconds.set(process.cpu_seconds);
        }
        let mut out = vec![];
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8(out).unwrap_or_default(),
            Err(error) => format!("# metrics could not be encoded: {error}\n"),
        }
    }
}

/// What the process used so far.
struct ProcessUsage {
    resident_bytes: i64,
    cpu_seconds: f64,
}

/// Reads `/proc/self`; none where there is no such thing.
///
/// # Source
/// proc(5): `statm` counts pages, `stat` fields 14 and 15 clock ticks of 1/100 s.
fn process_usage() -> Option<ProcessUsage> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after_name: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = after_name.get(11)?.parse::<f64>().ok()? + after_name.get(12)?.parse::<f64>().ok()?;
    Some(ProcessUsage { resident_bytes: pages * 4096, cpu_seconds: ticks / 100.0 })
}

const VALID: &str = "metric names and labels are constants and registered once";

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect(VALID);
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help).expect(VALID))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels).expect(VALID))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help).expect(VALID))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect(VALID))
}

fn float(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::new(name, help).expect(VALID))
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(opts, labels).expect(VALID))
}
