//! Every metric of the daemon: name, help, unit, labels, buckets. Labels are enums ([`labels`]), never ids. Beside them,
//! writes in progress are counted for those who watch them ([`writes`]).

pub mod labels;
pub mod writes;

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use prometheus::core::Collector;
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use labels::{
    AccessLogLoss, AuditOutcome, DeleteWait, DoorLabel, FileStatus, GroupWrite, HandshakeFailure, HeldOutcome,
    MetricLabels, Operation, PeerCall, ProofKind, Purpose, ReadAheadOutcome, ReclaimedBytes, ReclaimedFiles,
    RejectReason, ReloadOutcome, Reloadable, ReuseOutcome, SegmentOutcome, StoreOperation, TakeOverCause, TakenKind,
    UploadDropReason,
};
use writes::WritesSeen;

/// Seconds of the histograms: 50 µs to 30 s.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];

/// Segments that may become durable together.
const SEGMENTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Handles of all metrics. Clones share them, and cost nothing: every request has some.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.0
    }
}

/// A metric with labels: one series for each of their values.
#[derive(Debug)]
pub struct Labelled<V, L> {
    all: V,
    labels: PhantomData<fn(L)>,
}

/// Counters with labels.
pub type Counters<L> = Labelled<IntCounterVec, L>;
/// Gauges with labels.
pub type Gauges<L> = Labelled<IntGaugeVec, L>;
/// Histograms with labels.
pub type Histograms<L> = Labelled<HistogramVec, L>;

/// Declares each metric once: its field, its kind with its labels, its name, its buckets, its help.
macro_rules! families {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $name:literal $(in $buckets:ident)?, $help:literal;)+) => {
        /// All metrics.
        #[derive(Debug)]
        pub struct Families {
            registry: Registry,
            writes: WritesSeen,
            $(
                $(#[$doc])*
                #[doc = concat!("\n\n`", $name, "`")]
                pub $field: $kind,
            )+
        }

        impl Families {
            /// Every metric at zero.
            fn new(registry: Registry) -> Self {
                $(
                    let buckets: &[&[f64]] = &[$($buckets)?];
                    let $field = <$kind as Family>::new($name, $help, buckets.first().unwrap_or(&NONE)).expect(VALID);
                    registry.register($field.collector()).expect(VALID);
                )+
                Self { registry, writes: WritesSeen::default(), $($field),+ }
            }
        }
    };
}

families! {
    /// Segments by door (`native`, `s3`) and outcome (`answered`, `refused`, `failed`).
    segments: Counters<(DoorLabel, SegmentOutcome)> = "esker_segments_total", "Segments by door and outcome";
    /// Bytes of answered segments by door.
    segment_bytes: Counters<DoorLabel> = "esker_segment_bytes_total", "Bytes of answered segments by door";
    /// Physical files that were begun.
    files_created: IntCounter = "esker_physical_files_created_total", "Physical files that were begun";
    /// Physical files by state (`open`, `closed`, `forgotten`).
    files: Gauges<FileStatus> = "esker_physical_files", "Physical files by state";
    /// Bytes of physical files, until they are deleted.
    physical_bytes: IntGauge = "esker_physical_bytes", "Bytes of physical files, until they are deleted";
    /// Bytes of living segments.
    live_bytes: IntGauge = "esker_live_bytes", "Bytes of living segments";
    /// Of them inside the catalog.
    inline_bytes: IntGauge = "esker_inline_bytes", "Bytes of living segments that are inside the catalog";
    /// Physical bytes divided by the living bytes in physical files.
    space_amplification: Gauge = "esker_space_amplification", "Physical bytes, also those waiting to be deleted, divided by the living bytes in physical files";
    /// Requests to the backend by operation and by what they are for (`data`, `catalog`).
    store_requests: Counters<(StoreOperation, Purpose)> = "esker_store_requests_total", "Requests to the backend by operation, for data files and for the catalog";
    /// Requests to the backend that failed, likewise.
    store_errors: Counters<(StoreOperation, Purpose)> = "esker_store_errors_total", "Requests to the backend that failed";
    /// Calls to the NameNode of an HDFS, as this daemon counts what it asks for.
    hdfs_calls: IntCounter = "esker_hdfs_namenode_calls_total", "Calls to the NameNode of an HDFS";
    /// Seconds that requests to the backend took, likewise.
    store_seconds: Histograms<(StoreOperation, Purpose)> = "esker_store_seconds" in SECONDS, "Seconds that requests to the backend took";
    /// Bytes in memory that are paid for.
    in_flight_bytes: IntGauge = "esker_in_flight_bytes", "Bytes in memory that are paid for";
    /// Requests and connections that were turned away, by reason.
    rejected: Counters<RejectReason> = "esker_rejected_total", "Requests and connections that were turned away, by reason";
    /// Seconds from the first byte of a request to its answer, by door and operation.
    answer_seconds: Histograms<(DoorLabel, Operation)> = "esker_answer_seconds" in SECONDS, "Seconds from the head of a request to its answer";
    /// Segments in one group that became durable together.
    group_segments: Histograms<GroupWrite> = "esker_group_segments" in SEGMENTS, "Segments that became durable by one write";
    /// Bytes read whose checksum was not what was stored.
    corrupt_reads: IntCounter = "esker_corrupt_reads_total", "Reads whose checksum was not the stored one";
    /// Segments that checkpoints asked to use again, by outcome (`reused`, `refused`).
    reused: Counters<ReuseOutcome> = "esker_reused_segments_total", "Segments used again, or refused";
    /// Reads that the local copy answered.
    local_copy_hits: IntCounter = "esker_local_copy_hits_total", "Reads that the local copy answered";
    /// Reads that it did not.
    local_copy_misses: IntCounter = "esker_local_copy_misses_total", "Reads that the local copy left to the store";
    /// Entries of the local copy that were damaged.
    local_copy_damaged: IntCounter = "esker_local_copy_damaged_total", "Damaged entries of the local copy";
    /// Runs of bytes that the local copy did not keep: it was behind, its disk failed, or they are larger than it.
    local_copy_dropped: IntCounter = "esker_local_copy_dropped_total", "Runs of bytes that the local copy had no time, room or disk for";
    /// Entries of the local copy that made room for others.
    local_copy_evictions: IntCounter = "esker_local_copy_evictions_total", "Entries of the local copy that made room for others";
    /// Bytes of the local copy on disk.
    local_copy_bytes: IntGauge = "esker_local_copy_bytes", "Bytes of the local copy on disk";
    /// Segments handed out by bulk restores.
    restore_segments: IntCounter = "esker_restore_segments_total", "Segments handed out by bulk restores";
    /// Their bytes.
    restore_bytes: IntCounter = "esker_restore_bytes_total", "Bytes handed out by bulk restores";
    /// Requests to storage for them.
    restore_requests: IntCounter = "esker_restore_requests_total", "Requests to storage for bulk restores";
    /// Requests more that one for each would have taken.
    restore_requests_saved: IntCounter = "esker_restore_requests_saved_total", "Requests that bulk restores did without because one brought several segments or blocks";
    /// Windows of files that were read ahead, by what came of it: `window` (one was read), `hit` (a read needed no
    /// request), `unused` (less than an eighth of one was used).
    read_ahead: Counters<ReadAheadOutcome> = "esker_read_ahead_total", "Windows read ahead (window), reads that needed no request (hit), windows that went unused (unused)";
    /// Handshakes that failed, by reason (`alert`, `broken`, `certificate`, `plaintext`, `protocol`, `timeout`).
    handshake_failures: Counters<HandshakeFailure> = "esker_tls_handshake_failures_total", "TLS handshakes that failed, by reason";
    /// The second since 1970 after which the certificate of the doors is good no more.
    certificate_expiry: IntGauge = "esker_tls_certificate_expiry_timestamp_seconds", "The second since 1970 after which the certificate in use expires; 0 without TLS";
    /// Files that changed while the daemon runs, by what they are and what came of it (`loaded`, `refused`).
    reloads: Counters<(Reloadable, ReloadOutcome)> = "esker_reloads_total", "Changed files that were taken into use, or refused while the old ones stay";
    /// Lines that are not in the access log, by reason (`behind`, `failed`).
    access_log_dropped: Counters<AccessLogLoss> = "esker_access_log_dropped_total", "Lines that the access log does without, by reason";
    /// Connections that are open, by door.
    connections: Gauges<DoorLabel> = "esker_connections", "Open connections by door";
    /// Physical files waiting to be deleted.
    delete_queue: IntGauge = "esker_delete_queue_files", "Physical files waiting to be deleted";
    /// Files deleted from storage.
    files_deleted: IntCounter = "esker_physical_files_deleted_total", "Physical files deleted from storage";
    /// Bytes that reclaiming has `read`, `written` and `freed`.
    reclaim_bytes: Counters<ReclaimedBytes> = "esker_reclaim_bytes_total", "Bytes read and written to copy what lives, and bytes given back";
    /// Files that were given back, by `how`: `rewritten`, or `died_whole`.
    reclaim_files: Counters<ReclaimedFiles> = "esker_reclaim_files_total", "Physical files given back: rewritten, or dead as a whole";
    /// Seconds for which some job has been above its limit, what waits to be deleted counted in.
    reclaim_lag: Gauge = "esker_reclaim_lag_seconds", "Seconds for which a job has been above its space limit, what waits to be deleted counted in";
    /// Rounds of reclaiming that were put off for writers or the backend.
    reclaim_paused: IntCounter = "esker_reclaim_paused_total", "Rounds put off for writers or the backend";
    /// Files that the catalog did not name and that were deleted.
    swept_files: IntCounter = "esker_swept_files_total", "Files deleted that the catalog did not name";
    /// Files that the catalog did not name and that were moved to `lost+found/` on a local disk.
    set_aside_files: IntCounter = "esker_set_aside_files_total", "Files moved to lost+found that the catalog did not name";
    /// Files that the catalog did not name at the last look.
    unnamed_files: IntGauge = "esker_unnamed_files", "Files that the catalog did not name at the last look, those in lost+found among them";
    /// 1 while the store is not the one that the catalog belongs to: nothing is deleted, and no file begun.
    store_lost: IntGauge = "esker_store_lost", "1 while the store is not the one that the catalog belongs to, and nothing is deleted";
    /// Bytes of files that wait to be deleted, by why (`readers`, `grace`, `rate`, `refused`).
    forgotten_bytes: Gauges<DeleteWait> = "esker_forgotten_bytes", "Bytes of physical files waiting to be deleted: being read, in their grace, next in turn, refused by storage";
    /// Bytes free on the disk of `data` or `catalog`, those kept back among them.
    disk_free_bytes: Gauges<Purpose> = "esker_disk_free_bytes", "Bytes free on the local disk of data or catalog, those kept back among them";
    /// Bytes kept back there.
    disk_reserve_bytes: Gauges<Purpose> = "esker_disk_reserve_bytes", "Bytes of that disk that are kept back: with less free, writes are refused";
    /// Bytes of memory that the catalog takes, about.
    catalog_memory_bytes: IntGauge = "esker_catalog_memory_bytes", "Bytes of memory that the catalog takes, about: nothing new is taken in at the limit";
    /// Bytes of memory that it may take.
    catalog_memory_limit_bytes: IntGauge = "esker_catalog_memory_limit_bytes", "Bytes of memory that the catalog may take (limits.catalog-memory); 0 is no limit";
    /// Commits to the catalog.
    commits: IntCounter = "esker_catalog_commits_total", "Batches committed to the catalog";
    /// Requests that were answered before they were durable.
    early_answers: IntCounter = "esker_early_answers_total", "Requests that were answered before they were durable on storage: temporary names, deletes of state";
    /// Groups of deletes that could not be noted in their ledger.
    delete_ledger_failures: IntCounter = "esker_delete_ledger_failures_total", "Groups of deletes that waited for their commit, because merging.delete-ledger could not be written";
    /// Seconds for which the oldest write in progress has waited: for storage, or for a commit of the catalog.
    write_wait: Gauge = "esker_write_wait_seconds", "Seconds for which the oldest write in progress has waited for storage or a commit of the catalog; 0 if none is";
    /// Seconds by which the machine's clock is behind what is on record.
    clock_behind: Gauge = "esker_clock_behind_seconds", "Seconds by which the machine's clock is behind the newest stamp on record";
    /// Bytes of keys and values in them.
    committed_bytes: IntCounter = "esker_catalog_committed_bytes_total", "Bytes of records in the batches committed to the catalog";
    /// Checkpoints of Flink's that came in and were compared with what is there, by outcome (`complete`, `incomplete`,
    /// `unreadable`, `skipped`).
    audits: Counters<AuditOutcome> = "esker_checkpoint_audits_total", "Checkpoints of Flink that came in, by whether everything that they name is there";
    /// Objects that they named and that were not there.
    missing_objects: IntCounter = "esker_checkpoint_missing_objects_total", "Objects that checkpoints of Flink named when they came in, and that were not there";
    /// The number of the last map of the cluster that this daemon has seen; 0 for a daemon by itself.
    map_version: IntGauge = "esker_map_version", "The number of the last map of the cluster that this daemon has seen; 0 for a daemon by itself";
    /// Shards that this daemon of a cluster has.
    shards_owned: IntGauge = "esker_shards_owned", "Shards of which this daemon of a cluster answers";
    /// Seconds from the moment in which an owner was missed until this daemon answered in its place, by cause.
    failover_seconds: Histograms<TakeOverCause> = "esker_failover_seconds" in SECONDS, "Seconds from the moment in which an owner was missed until this daemon answered in its place, by cause";
    /// Seconds for which requests were held because nobody could answer them, by what came of them (`answered`, `given_up`).
    held_seconds: Histograms<HeldOutcome> = "esker_held_seconds" in SECONDS, "Seconds for which requests were held because nobody in the cluster could answer them yet, by what came of them";
    /// Seconds until peers answered, by call.
    peer_seconds: Histograms<PeerCall> = "esker_peer_seconds" in SECONDS, "Seconds until other daemons of the cluster answered, by call";
    /// Answers out of memory by the proof that this daemon was still the owner (`alone`, `recent`, `read`).
    read_proofs: Counters<ProofKind> = "esker_read_proofs_total", "Answers by the proof that this daemon of a cluster was still the owner";
    /// Times that this daemon of a cluster found that another one had taken its shard.
    fenced: IntCounter = "esker_fenced_total", "Times that another daemon of the cluster had taken this one's shard";
    /// Checkpoints and savepoints that coordinators began.
    checkpoints_begun: IntCounter = "esker_total_number_of_checkpoints_total", "Checkpoints and savepoints that coordinators began";
    /// Those in progress.
    checkpoints_in_progress: IntGauge = "esker_number_of_in_progress_checkpoints", "Checkpoints and savepoints of coordinators in progress";
    /// Those that completed.
    checkpoints_completed: IntCounter = "esker_number_of_completed_checkpoints_total", "Checkpoints and savepoints of coordinators that completed";
    /// Those that failed.
    checkpoints_failed: IntCounter = "esker_number_of_failed_checkpoints_total", "Checkpoints and savepoints of coordinators that were given up";
    /// Seconds from trigger to complete, by kind (`checkpoint`, `savepoint`).
    checkpoint_seconds: Histograms<TakenKind> = "esker_checkpoint_duration_seconds" in SECONDS, "Seconds from the trigger of a checkpoint to its completion";
    /// The same of the last one.
    last_checkpoint_seconds: Gauge = "esker_last_checkpoint_duration_seconds", "Seconds that the last completed checkpoint took";
    /// Bytes that were stored for the last one.
    last_checkpoint_bytes: IntGauge = "esker_last_checkpoint_size_bytes", "Bytes that were stored for the last completed checkpoint";
    /// The same with what it uses of earlier ones.
    last_checkpoint_full_bytes: IntGauge = "esker_last_checkpoint_full_size_bytes", "Bytes of the state of the last completed checkpoint, those of earlier ones among them";
    /// Times that a job began anew.
    job_restarts: IntCounter = "esker_number_of_restarts_total", "Times that coordinators had a job begin anew";
    /// Multipart uploads that were given up for their clients, by reason (`expired`, `gave_way`).
    uploads_dropped: Counters<UploadDropReason> = "esker_multipart_uploads_dropped_total", "Multipart uploads without requests that were aborted, by reason";
}

/// Kinds without buckets take none.
const NONE: &[f64] = &[];
const VALID: &str = "metric names and labels are constants and registered once";

/// A kind of metric.
trait Family: Sized {
    fn new(name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Self>;

    fn collector(&self) -> Box<dyn Collector>;
}

/// A kind of metric whose series have labels.
pub trait LabelledFamily: Collector + Clone + Sized + 'static {
    /// One series.
    type Series;

    /// A family without a series.
    ///
    /// # Errors
    /// Names that Prometheus does not allow.
    fn labelled(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;

    /// The series with these values of the labels.
    fn series(&self, labels: &[&str]) -> Self::Series;
}

impl<V: LabelledFamily, L: MetricLabels> Family for Labelled<V, L> {
    fn new(name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Self> {
        Ok(Self { all: V::labelled(name, help, L::NAMES, buckets)?, labels: PhantomData })
    }

    fn collector(&self) -> Box<dyn Collector> {
        Box::new(self.all.clone())
    }
}

impl<V: LabelledFamily, L: MetricLabels> Labelled<V, L> {
    /// The series of these labels. It begins at zero when it is first asked for.
    pub fn of(&self, labels: L) -> V::Series {
        labels.with(|values| self.all.series(values))
    }
}

/// Kinds without labels.
macro_rules! plain_kinds {
    ($($kind:ty;)+) => {
        $(impl Family for $kind {
            fn new(name: &str, help: &str, _: &[f64]) -> prometheus::Result<Self> {
                Self::new(name, help)
            }

            fn collector(&self) -> Box<dyn Collector> {
                Box::new(self.clone())
            }
        })+
    };
}

plain_kinds! {
    IntCounter;
    IntGauge;
    Gauge;
}

/// Kinds with labels, and what one series of them is.
macro_rules! labelled_kinds {
    ($($kind:ty, $series:ty, |$name:ident, $help:ident, $buckets:ident| $options:expr;)+) => {
        $(impl LabelledFamily for $kind {
            type Series = $series;

            fn labelled($name: &str, $help: &str, labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> {
                Self::new($options, labels)
            }

            fn series(&self, labels: &[&str]) -> Self::Series {
                self.with_label_values(labels)
            }
        })+
    };
}

labelled_kinds! {
    IntCounterVec, IntCounter, |name, help, _buckets| Opts::new(name, help);
    IntGaugeVec, IntGauge, |name, help, _buckets| Opts::new(name, help);
    HistogramVec, Histogram, |name, help, buckets| HistogramOpts::new(name, help).buckets(buckets.to_vec());
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Writes that are in progress, and those that failed.
    pub fn writes(&self) -> &WritesSeen {
        &self.0.writes
    }

    /// A registry of its own, with every metric at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        // What the process takes, by the names that all programs have for it.
        #[cfg(target_os = "linux")]
        registry.register(Box::new(ProcessCollector::for_self())).expect(VALID);
        Self(Arc::new(Families::new(registry)))
    }

    /// Requests to the backend that failed, of all kinds.
    pub fn store_errors_total(&self) -> f64 {
        let families = self.store_errors.all.collect();
        families.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Source
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    pub fn render(&self) -> String {
        let mut out = vec![];
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8(out).unwrap_or_default(),
            Err(error) => format!("# metrics could not be encoded: {error}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::labels::MetricLabel;
    use super::*;

    /// The exposed text of these metrics, except for those of the process.
    fn exposed(metrics: &Metrics) -> String {
        let text = metrics.render();
        text.lines().filter(|line| !line.contains("process_")).map(|line| line.to_owned() + "\n").collect()
    }

    /// Begins every series: those of operations by a few of them.
    fn touch(metrics: &Metrics) {
        for door in [DoorLabel::Native, DoorLabel::S3] {
            SegmentOutcome::ALL.iter().for_each(|outcome| metrics.segments.of((door, *outcome)).inc());
            metrics.segment_bytes.of(door).inc();
        }
        DoorLabel::ALL.iter().for_each(|door| metrics.connections.of(*door).inc());
        FileStatus::ALL.iter().for_each(|status| metrics.files.of(*status).inc());
        for purpose in Purpose::ALL {
            for operation in StoreOperation::ALL {
                metrics.store_requests.of((*operation, *purpose)).inc();
                metrics.store_errors.of((*operation, *purpose)).inc();
                metrics.store_seconds.of((*operation, *purpose)).observe(0.000_5);
            }
            metrics.disk_free_bytes.of(*purpose).inc();
            metrics.disk_reserve_bytes.of(*purpose).inc();
        }
        RejectReason::ALL.iter().for_each(|reason| metrics.rejected.of(*reason).inc());
        for operation in [Operation::Read, Operation::Write] {
            metrics.answer_seconds.of((DoorLabel::Native, operation)).observe(0.000_5);
        }
        for name in ["", "PutObject", "CompleteMultipartUpload", "WriteGetObjectResponse", "AbortMultipartUpload"] {
            metrics.answer_seconds.of((DoorLabel::S3, Operation::of_s3(name))).observe(0.000_5);
        }
        GroupWrite::ALL.iter().for_each(|write| metrics.group_segments.of(*write).observe(3.0));
        ReuseOutcome::ALL.iter().for_each(|outcome| metrics.reused.of(*outcome).inc());
        ReadAheadOutcome::ALL.iter().for_each(|outcome| metrics.read_ahead.of(*outcome).inc());
        ReclaimedBytes::ALL.iter().for_each(|bytes| metrics.reclaim_bytes.of(*bytes).inc());
        ReclaimedFiles::ALL.iter().for_each(|files| metrics.reclaim_files.of(*files).inc());
        DeleteWait::ALL.iter().for_each(|wait| metrics.forgotten_bytes.of(*wait).inc());
        AuditOutcome::ALL.iter().for_each(|outcome| metrics.audits.of(*outcome).inc());
        UploadDropReason::ALL.iter().for_each(|reason| metrics.uploads_dropped.of(*reason).inc());
        HeldOutcome::ALL.iter().for_each(|outcome| metrics.held_seconds.of(*outcome).observe(0.000_5));
        ProofKind::ALL.iter().for_each(|how| metrics.read_proofs.of(*how).inc());
        TakeOverCause::ALL.iter().for_each(|cause| metrics.failover_seconds.of(*cause).observe(0.000_5));
        TakenKind::ALL.iter().for_each(|kind| metrics.checkpoint_seconds.of(*kind).observe(0.000_5));
        PeerCall::ALL.iter().for_each(|call| metrics.peer_seconds.of(*call).observe(0.000_5));
        AccessLogLoss::ALL.iter().for_each(|reason| metrics.access_log_dropped.of(*reason).inc());
        HandshakeFailure::ALL.iter().for_each(|reason| metrics.handshake_failures.of(*reason).inc());
        for of in Reloadable::ALL {
            ReloadOutcome::ALL.iter().for_each(|outcome| metrics.reloads.of((*of, *outcome)).inc());
        }
    }

    #[test]
    fn the_exposed_text_is_what_dashboards_know() {
        let metrics = Metrics::new();

        touch(&metrics);

        assert_eq!(exposed(&metrics), include_str!("../../tests/data/metrics.txt"));
    }

    #[test]
    fn no_series_of_a_label_is_there_before_it_is_used() {
        let exposed = exposed(&Metrics::new());

        assert!(!exposed.contains('{'), "{exposed}");
    }

    #[test]
    fn an_operation_of_s3_has_its_name_there() {
        assert_eq!(Operation::of_s3("GetObject").as_str(), "GetObject");
        assert_eq!(Operation::of_s3("NoSuchOperation").as_str(), "none");
    }
}
