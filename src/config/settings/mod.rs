//! [`Settings`]: a checked configuration in the types that the code works with.
//!
//! Made from a [`Config`] in one step. What is off is `None`, what has no limit is `None`, and no value here needs
//! another check: counts and sizes that must not be zero are not, and sums fit their budgets.

mod checkpointing;
mod doors;
mod rules;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use checkpointing::{CheckpointingSettings, UnalignedSettings};

use super::choices::{Boundary, DirectIo, EtagKind, LogFormat, ReclaimMode};
use super::error::ConfigErrors;
use super::schema::{AuthConfig, Config};
use super::url::StoreUrl;
use super::values::Secret;

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Defaults of jobs that the daemon coordinates.
    pub checkpointing: CheckpointingSettings,
    /// Where the daemon listens.
    pub server: ServerSettings,
    /// The storage behind the daemon.
    pub store: StoreSettings,
    /// How segments are packed into physical files.
    pub merging: MergingSettings,
    /// The daemon's memory of what exists.
    pub catalog: CatalogSettings,
    /// Bounds on memory and on what clients may ask for.
    pub limits: LimitsSettings,
    /// Getting dead bytes back.
    pub reclaim: ReclaimSettings,
    /// Who may come in.
    pub auth: AuthSettings,
    /// Several daemons as one.
    pub cluster: ClusterSettings,
    /// What the daemon says about itself.
    pub telemetry: TelemetrySettings,
    /// What is legal but hardly meant, one sentence each, to be logged at start.
    pub warnings: Vec<String>,
}

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSettings {
    /// The S3 door.
    pub s3: SocketAddr,
    /// Native API, health, metrics, admin pages.
    pub api: SocketAddr,
    /// Path of a Unix socket that serves the native API too, 1 to 107 bytes. `None`: there is none.
    pub api_unix_socket: Option<PathBuf>,
    /// Lower case. Empty: path style only.
    pub virtual_host_domains: Vec<String>,
    /// Buckets that exist from the start.
    pub buckets: Vec<String>,
    /// Time that requests in progress get at shutdown.
    pub drain_timeout: Duration,
    /// The region that the S3 door answers, and that signatures of clients name.
    pub region: String,
    /// What the S3 door answers as an object's ETag. MD5 costs about 1.5 s of CPU time per GB.
    pub etag: EtagKind,
}

/// The storage behind the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSettings {
    /// Where the data lives, and the catalog too unless it has a place of its own.
    pub url: StoreUrl,
    /// An `http(s)` URL. `None`: AWS.
    pub endpoint: Option<String>,
    /// Region of the S3 bucket. `None`: `AWS_REGION`, then what the store assumes.
    pub region: Option<String>,
    /// `None`: the sources that AWS clients know.
    pub credentials: Option<Credentials>,
    /// Whether an endpoint may be without TLS, which shows the data to the network between.
    pub allow_http: bool,
    /// For one request.
    pub request_timeout: Duration,
    /// For all tries of a request.
    pub retry_timeout: Duration,
    /// Requests to the store at once, at least 1. More hides latency until the store answers 503.
    pub concurrent_requests_max: usize,
    /// Bytes of uploads and downloads at once, part of `memory_bytes` of the limits and at least one part.
    pub in_flight_bytes_max: u64,
    /// Whether files on local disk are written past the page cache. S3 ignores it.
    pub direct_io: DirectIo,
    /// Bytes of a local disk that are kept back. `None`: a share of the disk. S3 ignores it.
    pub reserve_bytes: Option<u64>,
    /// Segments above this are streamed, in parts of this size.
    pub part_bytes: u64,
    /// `None`: nothing of S3 is kept on local disk. There is none of a local disk.
    pub local_copy: Option<LocalCopySettings>,
}

/// A copy on local disk of what is on S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCopySettings {
    /// Where; at least one.
    pub dirs: Vec<PathBuf>,
    /// Bytes on disk, shared evenly by the directories.
    pub bytes_max: u64,
    /// Bytes in memory that wait to be written. They are no part of `memory_bytes` of the limits.
    pub waiting_bytes_max: u64,
}

/// An access key and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name of the pair, sent with every request.
    pub access_key: String,
    /// Signs the requests and is never sent.
    pub secret_key: Secret,
}

/// How segments are packed into physical files.
#[derive(Debug, Clone, PartialEq)]
pub struct MergingSettings {
    /// Off: every segment is a file of its own.
    pub enabled: bool,
    /// Whether one file may hold segments of several checkpoints.
    pub checkpoint_boundary: CheckpointBoundary,
    /// Who shares a file of shared state. Wider is fewer files, whose segments die at more different times.
    pub shared_boundary: Boundary,
    /// Who shares a file of exclusive state.
    pub exclusive_boundary: Boundary,
    /// `Job` or `Daemon`.
    pub s3_boundary: Boundary,
    /// A file of this size or more takes no more segments.
    pub file_bytes_max: u64,
    /// What a writer does when its lane has no free open file.
    pub pool: PoolMode,
    /// Subtasks that share one file, at least 1. More is fewer files; fewer lets a subtask's files die together.
    pub subtasks_per_file_max: usize,
    /// At most `file_bytes_max`.
    pub group_bytes_max: u64,
    /// How long a group waits for more segments. Longer makes larger groups and later answers.
    pub linger: LingerSettings,
    /// Object stores: groups up to this size go into the catalog's record, at most 1 MiB, 0 is never.
    pub inline_group_bytes_max: u64,
    /// Physical files open at once, at least 1; at the bound writers wait, as each file holds a buffer or a
    /// descriptor.
    pub open_files_max: usize,
    /// An open file without a new segment for this long is closed. Shorter frees memory, longer fills files.
    pub idle_close: Duration,
    /// Longest wait for a file.
    pub take_deadline: Duration,
}

/// How long a group waits for more segments on an object store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LingerSettings {
    /// Part of the store's recent latency, 0 to 1.
    pub latency_fraction: f64,
    /// Least time in which a next segment is expected.
    pub min: Duration,
    /// Upper bound of the whole wait of a group. Zero is no wait.
    pub max: Duration,
}

/// Whether segments of several checkpoints share a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointBoundary {
    /// A file belongs to one checkpoint.
    Within,
    /// A file takes segments of any checkpoint.
    Across,
}

/// What a writer does when no open file is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// It waits for one.
    Blocking,
    /// It opens another.
    NonBlocking,
}

/// The daemon's memory of what exists.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogSettings {
    /// `None`: beside the data.
    pub url: Option<StoreUrl>,
    /// Memory for blocks of the catalog, at least 1 MiB. Less means more requests per look-up.
    pub cache_bytes: u64,
    /// Catalog bytes that are only in memory and the log, at least 8 MiB; at the bound catalog writes wait. Larger is
    /// fewer files and a longer replay at start.
    pub unflushed_bytes_max: u64,
    /// Object stores: bytes of inline segments above which groups go into files whatever their size.
    pub inline_bytes_max: u64,
    /// How often the catalog looks for a successor and for work. Each look costs requests, also when idle.
    pub poll_interval: Duration,
    /// A log file on local disk is closed at this size, at least 64 KiB. Smaller gives space back sooner.
    pub log_segment_bytes: u64,
}

/// Bounds on memory and on what clients may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsSettings {
    /// Bytes in flight in the whole daemon: `limits.memory` without `kept_buffer_bytes` and what waits for a local copy.
    pub memory_bytes: u64,
    /// Part of `memory_bytes` that writes leave to reads; writes have two parts of the store left all the same.
    pub reads_kept_bytes: u64,
    /// Part of `memory_bytes` that reads leave to writes; reads have a block left all the same.
    pub writes_kept_bytes: u64,
    /// Bytes of `memory_bytes` that one connection holds at most; enough for a segment that streams through.
    pub connection_memory_bytes: u64,
    /// The same for one access key or token, where there are several.
    pub key_memory_bytes: u64,
    /// Bytes of buffers that wait for the next body.
    pub kept_buffer_bytes: u64,
    /// Part of `memory_bytes`, and smaller by a part at least.
    pub multipart_memory_bytes: u64,
    /// At most `multipart_memory_bytes`.
    pub multipart_part_in_memory_bytes_max: u64,
    /// A multipart upload without a request for this long is aborted, as its client has probably died.
    pub multipart_expiry: Duration,
    /// Multipart uploads in progress, at least 1.
    pub multipart_uploads_max: usize,
    /// Those of one job, at least 1.
    pub multipart_uploads_per_job_max: usize,
    /// A multipart upload without a request for this long may be aborted to make room.
    pub multipart_idle: Duration,
    /// The largest segment or single PUT. On S3 it fits into 10,000 parts.
    pub segment_bytes_max: u64,
    /// The largest object of the S3 door. Above `segment_bytes_max` it takes a multipart upload.
    pub object_bytes_max: u64,
    /// Bytes of an S3 key in UTF-8, 1 to 1024.
    pub key_bytes_max: usize,
    /// Bytes of the names and values of an object's `x-amz-meta-*` headers together, at most `header_bytes_max`.
    pub metadata_bytes_max: u64,
    /// Bytes of the request line and all headers together, at least 8 KiB, which is the least the HTTP server takes.
    pub header_bytes_max: u64,
    /// Segments in one request of the native API, at least 1.
    pub segments_per_request_max: usize,
    /// Connections over all doors, at least 1. Each needs a file descriptor.
    pub connections_max: usize,
    /// Places on top of them for health and metrics, at least 1.
    pub connections_reserved: usize,
    /// Wait for memory before a request is refused.
    pub admission_timeout: Duration,
    /// From a connection to the whole head of its first request, and for each further head.
    pub head_timeout: Duration,
    /// Without a request, a connection is closed after this long.
    pub idle_timeout: Duration,
    /// Bytes a second that a client moves at least, on average over `rate_window`; 0 is no bound.
    pub rate_bytes_min: u64,
    /// How long a client may fall behind.
    pub rate_window: Duration,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// From head to answer.
    pub request_timeout: Duration,
    /// A read without progress for this long keeps no file from being deleted any more.
    pub read_lease: Duration,
}

/// Getting dead bytes back.
#[derive(Debug, Clone, PartialEq)]
pub struct ReclaimSettings {
    /// Who re-uploads the live segments of files with too many dead bytes.
    pub mode: ReclaimMode,
    /// Physical bytes over live bytes, at least 1. `None`: no limit, nothing is re-uploaded.
    pub space_amplification_max: Option<f64>,
    /// Between forgetting a file and deleting it.
    pub delete_grace: Duration,
    /// Files deleted per second, at least 1. S3 answers 503 above a few thousand.
    pub deletes_per_second_max: u32,
    /// Bytes re-uploaded per second, never zero. More gives space back sooner and takes bandwidth from writers.
    pub copied_bytes_per_second_max: u64,
    /// Whether dead ranges of closed files are given back in place, where the disk can.
    pub punch_holes: bool,
    /// How often reclaimer and deleter look for work at least. How soon they act when something died is a part of it.
    pub interval: Duration,
    /// How often storage is listed for files that nobody names. `None`: never.
    pub sweep_interval: Option<Duration>,
    /// For how long a file must have been unnamed before it is deleted.
    pub sweep_grace: Duration,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthSettings {
    /// Of the S3 door, each access key once. Empty: no credentials are asked for.
    pub keys: Vec<S3Key>,
    /// Of the native API. Empty: no token is asked for.
    pub tokens: Vec<Secret>,
    /// Whether other hosts are served without credentials.
    pub insecure: bool,
}

/// One pair of keys of the S3 door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Key {
    /// The name of the pair, sent by the client with every request.
    pub access_key: String,
    /// Checks the client's signatures and is never sent.
    pub secret_key: Secret,
    /// `bucket/key` prefixes it may touch. Empty: all.
    pub prefixes: Vec<String>,
}

/// Several daemons as one.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSettings {
    /// `None`: made up at every start.
    pub daemon_id: Option<String>,
    /// `None`: the address of the native API.
    pub advertised_url: Option<String>,
    /// Into how many catalogs jobs are split, at least 1. It is fixed once there is data.
    pub shards: usize,
    /// How long a silent owner keeps its shards. Shorter takes over sooner, and more often by mistake.
    pub lease_timeout: Duration,
}

/// What the daemon says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetrySettings {
    /// How log lines look: text for people or JSON for machines.
    pub log_format: LogFormat,
    /// In the syntax of `tracing_subscriber::EnvFilter`.
    pub log_filter: String,
}

impl TryFrom<&Config> for Settings {
    type Error = ConfigErrors;

    /// Checks every rule and converts.
    ///
    /// # Errors
    /// Every broken rule, with the keys and values it is about.
    fn try_from(config: &Config) -> Result<Self, ConfigErrors> {
        let checked = rules::check(config)?;
        Ok(Self {
            checkpointing: CheckpointingSettings::from_checked(&config.execution.checkpointing),
            server: server(config, &checked),
            store: store(config),
            merging: merging(config),
            catalog: catalog(config),
            limits: limits(config),
            reclaim: reclaim(config),
            auth: auth(&config.auth),
            cluster: cluster(config),
            telemetry: telemetry(config),
            warnings: checked.warnings,
        })
    }
}

/// A count that bounds something in memory.
fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn server(config: &Config, checked: &rules::Checked) -> ServerSettings {
    let server = &config.server;
    ServerSettings {
        s3: checked.s3,
        api: checked.api,
        api_unix_socket: server.api_unix_socket.clone(),
        virtual_host_domains: server.virtual_host_domains.iter().map(|name| name.to_ascii_lowercase()).collect(),
        buckets: server.buckets.clone(),
        drain_timeout: server.drain_timeout.duration(),
        region: server.region.clone(),
        etag: server.etag,
    }
}

fn store(config: &Config) -> StoreSettings {
    let store = &config.store;
    let pair = store.access_key.clone().zip(store.secret_key.clone());
    StoreSettings {
        url: store.url.clone(),
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        credentials: pair.map(|(access_key, secret_key)| Credentials { access_key, secret_key }),
        allow_http: store.allow_http,
        request_timeout: store.request_timeout.duration(),
        retry_timeout: store.retry_timeout.duration(),
        concurrent_requests_max: count(store.max_concurrent_requests),
        in_flight_bytes_max: store.max_bytes_in_flight.bytes(),
        direct_io: store.direct_io,
        reserve_bytes: store.reserve.map(|reserve| reserve.bytes()),
        part_bytes: store.part_size.bytes(),
        local_copy: local_copy(config),
    }
}

fn local_copy(config: &Config) -> Option<LocalCopySettings> {
    let backup = &config.execution.checkpointing.local_backup;
    rules::has_local_copy(config).then(|| LocalCopySettings {
        dirs: match backup.dirs.as_slice() {
            [] => vec![std::env::temp_dir()],
            dirs => dirs.iter().map(PathBuf::from).collect(),
        },
        bytes_max: backup.max_size.bytes(),
        waiting_bytes_max: rules::local_copy_bytes(config),
    })
}

fn merging(config: &Config) -> MergingSettings {
    let (flink, ours) = (&config.execution.checkpointing.file_merging, &config.merging);
    MergingSettings {
        enabled: flink.enabled,
        checkpoint_boundary: match flink.across_checkpoint_boundary {
            true => CheckpointBoundary::Across,
            false => CheckpointBoundary::Within,
        },
        shared_boundary: ours.shared_boundary,
        exclusive_boundary: ours.exclusive_boundary,
        s3_boundary: ours.s3_boundary,
        file_bytes_max: flink.max_file_size.bytes(),
        pool: if flink.pool_blocking { PoolMode::Blocking } else { PoolMode::NonBlocking },
        subtasks_per_file_max: count(flink.max_subtasks_per_file),
        group_bytes_max: ours.group_bytes_max.bytes(),
        linger: LingerSettings {
            latency_fraction: ours.linger_fraction,
            min: ours.linger_min.duration(),
            max: ours.linger_max.duration(),
        },
        inline_group_bytes_max: ours.inline_group_max.bytes(),
        open_files_max: count(ours.max_open_files),
        idle_close: ours.idle_close.duration(),
        take_deadline: ours.take_deadline.duration(),
    }
}

fn catalog(config: &Config) -> CatalogSettings {
    let catalog = &config.catalog;
    CatalogSettings {
        url: catalog.url.clone(),
        cache_bytes: catalog.cache.bytes(),
        unflushed_bytes_max: catalog.unflushed_max.bytes(),
        inline_bytes_max: catalog.inline_max.bytes(),
        poll_interval: catalog.poll_interval.duration(),
        log_segment_bytes: catalog.log_segment_size.bytes(),
    }
}

fn limits(config: &Config) -> LimitsSettings {
    let limits = &config.limits;
    LimitsSettings {
        memory_bytes: rules::memory_for_bodies(config),
        reads_kept_bytes: rules::reads_kept_bytes(config),
        writes_kept_bytes: rules::writes_kept_bytes(config),
        connection_memory_bytes: rules::share_of_memory(config, limits.connection_share),
        key_memory_bytes: rules::share_of_memory(config, limits.key_share),
        kept_buffer_bytes: rules::kept_buffer_bytes(limits.memory),
        multipart_memory_bytes: limits.multipart_memory.bytes(),
        multipart_part_in_memory_bytes_max: limits.multipart_part_in_memory_max.bytes(),
        multipart_expiry: limits.multipart_expiry.duration(),
        multipart_uploads_max: count(limits.multipart_uploads_max),
        multipart_uploads_per_job_max: count(limits.multipart_uploads_per_job_max),
        multipart_idle: limits.multipart_idle.duration(),
        segment_bytes_max: limits.segment_size_max.bytes(),
        object_bytes_max: limits.object_size_max.bytes(),
        key_bytes_max: count(limits.key_bytes_max),
        metadata_bytes_max: limits.metadata_bytes_max.bytes(),
        header_bytes_max: limits.header_bytes_max.bytes(),
        segments_per_request_max: count(limits.segments_per_request_max),
        connections_max: count(limits.connections_max),
        connections_reserved: count(limits.connections_reserved),
        admission_timeout: limits.admission_timeout.duration(),
        head_timeout: limits.head_timeout.duration(),
        idle_timeout: limits.idle_timeout.duration(),
        rate_bytes_min: limits.rate_min.bytes(),
        rate_window: limits.rate_window.duration(),
        body_timeout: limits.body_timeout.duration(),
        request_timeout: limits.request_timeout.duration(),
        read_lease: limits.read_lease.duration(),
    }
}

fn reclaim(config: &Config) -> ReclaimSettings {
    let reclaim = &config.reclaim;
    let amplification = config.execution.checkpointing.file_merging.max_space_amplification;
    ReclaimSettings {
        mode: reclaim.mode,
        space_amplification_max: (amplification >= 1.0).then_some(amplification),
        delete_grace: reclaim.delete_grace.duration(),
        deletes_per_second_max: reclaim.delete_rate,
        copied_bytes_per_second_max: reclaim.copy_rate.bytes(),
        punch_holes: reclaim.punch_holes,
        interval: reclaim.interval.duration(),
        sweep_interval: Some(reclaim.sweep_interval.duration()).filter(|interval| !interval.is_zero()),
        sweep_grace: reclaim.sweep_grace.duration(),
    }
}

/// The key of the section itself, then those of the list.
fn auth(auth: &AuthConfig) -> AuthSettings {
    let pair = auth.access_key.clone().zip(auth.secret_key.clone());
    let main = pair.map(|(access_key, secret_key)| S3Key { access_key, secret_key, prefixes: Vec::new() });
    let others = auth.keys.iter().map(|key| S3Key {
        access_key: key.access_key.clone(),
        secret_key: key.secret_key.clone(),
        prefixes: key.prefixes.clone(),
    });
    AuthSettings {
        keys: main.into_iter().chain(others).collect(),
        tokens: auth.tokens.clone(),
        insecure: auth.insecure,
    }
}

fn cluster(config: &Config) -> ClusterSettings {
    let cluster = &config.cluster;
    ClusterSettings {
        daemon_id: cluster.daemon_id.clone(),
        advertised_url: cluster.advertised_url.clone(),
        shards: count(cluster.shards),
        lease_timeout: cluster.lease_timeout.duration(),
    }
}

fn telemetry(config: &Config) -> TelemetrySettings {
    let telemetry = &config.telemetry;
    TelemetrySettings { log_format: telemetry.log_format, log_filter: telemetry.log_filter.clone() }
}
