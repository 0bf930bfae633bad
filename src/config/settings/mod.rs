//! [`Settings`]: a checked configuration in the types that the code works with.
//!
//! Made from a [`Config`] in one step. What is off is `None`, what has no limit is `None`, and no value here needs
//! another check: counts and sizes that must not be zero are not, and sums fit their budgets.
//!
//! # Invariants
//! - A key that is marked as without effect changes nothing here, every other one does (tested).
//! - The daemon reads every field: one that it does not read is an error of the compiler. For that, fields are
//!   `pub(crate)`, but for the few that benches read, and only tests compare settings, as comparing reads everything.

#![deny(dead_code)]

mod bounds;
mod checkpointing;
pub(super) mod doors;
mod jobs;
mod memory;
mod rules;
mod shard;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use checkpointing::CheckpointingSettings;
pub use jobs::{JobCheckpointing, JobSettingError, PublishDir};
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;

use self::rules::Rules;
use super::choices::{
    Boundary, ClientAuth, DeleteDurability, DirectIo, EtagKind, KeyAccess, LogFormat, ReclaimMode, TemporaryNames,
    TlsDoors,
};
use super::error::ConfigErrors;
use super::schema::{AuthConfig, AuthKeyConfig, Config};
use super::url::StoreUrl;
use super::values::Secret;

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Settings {
    /// Defaults of jobs that the daemon coordinates.
    pub(crate) checkpointing: CheckpointingSettings,
    /// Where the daemon listens.
    pub(crate) server: ServerSettings,
    /// Encryption at the doors. `None`: plain HTTP.
    pub(crate) tls: Option<TlsSettings>,
    /// The storage behind the daemon.
    pub store: StoreSettings,
    /// The packing of segments into physical files.
    pub(crate) merging: MergingSettings,
    /// The daemon's memory of what exists.
    pub catalog: CatalogSettings,
    /// Bounds on memory and on what clients may ask for.
    pub limits: LimitsSettings,
    /// Getting dead bytes back.
    pub(crate) reclaim: ReclaimSettings,
    /// Several daemons as one. `None`: this one is by itself.
    pub(crate) cluster: Option<ClusterSettings>,
    /// Who may come in.
    pub(crate) auth: AuthSettings,
    /// Logs and traces of the daemon.
    pub(crate) telemetry: TelemetrySettings,
    /// Warnings to be logged at start, one sentence each: settings that are legal but hardly meant.
    pub(crate) warnings: Vec<String>,
}

/// Where the daemon listens.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct ServerSettings {
    /// The S3 door.
    pub(crate) s3: SocketAddr,
    /// Native API, health, metrics, admin pages.
    pub(crate) api: SocketAddr,
    /// Path of a Unix socket that serves the native API too, 1 to 107 bytes. `None`: there is none.
    pub(crate) api_unix_socket: Option<PathBuf>,
    /// Lower case. Empty: path style only.
    pub(crate) virtual_host_domains: Vec<String>,
    /// Buckets that exist from the start.
    pub(crate) buckets: Vec<String>,
    /// Time that requests in progress get at shutdown.
    pub(crate) drain_timeout: Duration,
    /// The region that the S3 door answers, and that signatures of clients name.
    pub(crate) region: String,
    /// The ETag of an object at the S3 door. MD5 costs about 1.5 s of CPU time per GB.
    pub(crate) etag: EtagKind,
    /// How often files are looked at that may change while the daemon runs. `None`: when it is told to.
    pub(crate) reload_interval: Option<Duration>,
}

/// A daemon among others.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct ClusterSettings {
    /// Its name; `None`: host and port of its URL.
    pub(crate) id: Option<String>,
    /// Where its peers reach it; `None`: where its native API listens.
    pub(crate) url: Option<String>,
    /// What peers show each other.
    pub(crate) token: Option<Secret>,
    /// How long an owner may be silent.
    pub(crate) lease_timeout: Duration,
    /// Into how many shards a new store is divided.
    pub(crate) shards: u32,
    /// Members have been the same for so long before a shard is moved between them.
    pub(crate) balance_after: Duration,
}

/// Encryption at the doors.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct TlsSettings {
    /// The doors that speak it.
    pub(crate) doors: TlsDoors,
    /// A PEM file: the certificate, then those between it and its authority.
    pub(crate) cert: PathBuf,
    /// A PEM file: the private key of the certificate.
    pub(crate) key: PathBuf,
    /// A PEM file: authorities of clients' certificates. There unless `client_auth` is off.
    pub(crate) client_ca: Option<PathBuf>,
    /// What is asked of clients.
    pub(crate) client_auth: ClientAuth,
}

/// The storage behind the daemon.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct StoreSettings {
    /// Where the data lives, and the catalog too unless it has a place of its own.
    pub(crate) url: StoreUrl,
    /// An `http(s)` URL. `None`: the service that the URL names.
    pub(crate) endpoint: Option<String>,
    /// Region of the S3 bucket. `None`: `AWS_REGION`, then what the store assumes.
    pub(crate) region: Option<String>,
    /// `None`: the sources that AWS clients know.
    pub(crate) credentials: Option<Credentials>,
    /// Whether an endpoint may be without TLS, which shows the data to the network between.
    pub(crate) allow_http: bool,
    /// For one request.
    pub(crate) request_timeout: Duration,
    /// For all tries of a request.
    pub(crate) retry_timeout: Duration,
    /// Requests to the store at once, at least 1. More hides latency until the store answers 503.
    pub(crate) concurrent_requests_max: usize,
    /// Bytes of uploads and downloads at once, part of `memory_bytes` of the limits and at least one part.
    pub(crate) in_flight_bytes_max: u64,
    /// Whether files on local disk are written past the page cache. Others ignore it.
    pub(crate) direct_io: DirectIo,
    /// Bytes of a local disk that are kept back. `None`: a share of the disk. Others ignore it.
    pub(crate) reserve_bytes: Option<u64>,
    /// Segments above this are streamed, in parts of this size.
    pub(crate) part_bytes: u64,
    /// `None`: nothing of the store is kept on local disk, too. There is none of a local disk.
    pub(crate) local_copy: Option<LocalCopySettings>,
    /// For a store, or a catalog, on Google Cloud Storage: the file with a service account's key. `None`: the sources that
    /// Google's clients know.
    pub(crate) gcs_service_account: Option<PathBuf>,
    /// For a store, or a catalog, on Azure Blob Storage.
    pub(crate) azure: AzureSettings,
    /// For a store, or a catalog, on HDFS.
    pub(crate) hdfs: HdfsSettings,
    /// In place of the client that the URL of an object storage service makes.
    pub(crate) given: Option<GivenObjects>,
}

/// A client of an object storage service that is there already.
#[derive(Clone)]
pub struct GivenObjects {
    /// Its objects.
    pub objects: Arc<dyn ObjectStore>,
    /// Its uploads in parts.
    pub multipart: Arc<dyn MultipartStore>,
}

impl fmt::Debug for GivenObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GivenObjects({})", self.objects)
    }
}

#[cfg(test)]
impl PartialEq for GivenObjects {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.objects, &other.objects)
    }
}

impl Settings {
    /// The same on objects that are there already: `store.url` is an `s3://` URL, of which only the prefix counts.
    #[must_use]
    pub fn on(mut self, objects: GivenObjects) -> Self {
        self.store.given = Some(objects);
        self
    }
}

/// A store on Azure Blob Storage.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct AzureSettings {
    /// The storage account. `None`: what the URL says, then the environment.
    pub(crate) account: Option<String>,
    /// Its key, in Base64. `None`: the sources that Azure's clients know.
    pub(crate) account_key: Option<Secret>,
}

/// A store on HDFS.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct HdfsSettings {
    /// Where Hadoop's configuration is. `None`: where Hadoop's variables say.
    pub(crate) conf_dir: Option<PathBuf>,
    /// Hadoop's keys and their values, over those that are there.
    pub(crate) conf: Vec<(String, String)>,
    /// The user; `None`: `HADOOP_USER_NAME`, then that of this process.
    pub(crate) user: Option<String>,
    /// Files open at once, at least 1.
    pub(crate) writers_max: usize,
    /// Replicas of each block; `None`: the cluster's default.
    pub(crate) replication: Option<u32>,
    /// Bytes of a block; `None`: the cluster's default.
    pub(crate) block_bytes: Option<u64>,
    /// For a group to be durable.
    pub(crate) write_timeout: Duration,
    /// Bytes of open files in memory. No part of `memory_bytes` of the limits where the data is on HDFS.
    pub(crate) open_bytes_max: u64,
}

/// A copy on local disk of what is on an object storage service.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct LocalCopySettings {
    /// Where; at least one.
    pub(crate) dirs: Vec<PathBuf>,
    /// Bytes on disk, shared evenly by the directories.
    pub(crate) bytes_max: u64,
    /// Bytes in memory that wait to be written. They are no part of `memory_bytes` of the limits.
    pub(crate) waiting_bytes_max: u64,
}

/// An access key and its secret.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Credentials {
    /// The name of the pair, sent with every request.
    pub(crate) access_key: String,
    /// Signs the requests and is never sent.
    pub(crate) secret_key: Secret,
}

/// The packing of segments into physical files.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct MergingSettings {
    /// Off: every segment is a file of its own.
    pub(crate) enabled: bool,
    /// Whether one file may hold segments of several checkpoints.
    pub(crate) checkpoint_boundary: CheckpointBoundary,
    /// Who shares a file of shared state. Wider is fewer files, whose segments die at more different times.
    pub(crate) shared_boundary: Boundary,
    /// Who shares a file of exclusive state.
    pub(crate) exclusive_boundary: Boundary,
    /// `Job` or `Daemon`.
    pub(crate) s3_boundary: Boundary,
    /// A file of this size or more takes no more segments.
    pub(crate) file_bytes_max: u64,
    /// The behaviour of a writer when its lane has no free open file.
    pub(crate) pool: PoolMode,
    /// Subtasks that share one file, at least 1. More is fewer files; fewer lets a subtask's files die together.
    pub(crate) subtasks_per_file_max: usize,
    /// At most `file_bytes_max`.
    pub(crate) group_bytes_max: u64,
    /// The time for which a group waits for more segments. Longer makes larger groups and later answers.
    pub(crate) linger: LingerSettings,
    /// Object stores: groups up to this size go into the catalog's record, at most 1 MiB, 0 is never.
    pub(crate) inline_group_bytes_max: u64,
    /// Object stores: when an object is durable whose name is temporary.
    pub(crate) temporary_names: TemporaryNames,
    /// Object stores: when a delete of an engine's state is durable.
    pub(crate) delete_durability: DeleteDurability,
    /// Object stores: the folder of the ledger of deletes; without one, they are durable on storage.
    pub(crate) delete_ledger: Option<PathBuf>,
    /// Physical files open at once, at least 1; at the bound writers wait, as each file holds a buffer or a
    /// descriptor.
    pub(crate) open_files_max: usize,
    /// An open file without a new segment for this long is closed. Shorter frees memory, longer fills files.
    pub(crate) idle_close: Duration,
    /// Longest wait for a file.
    pub(crate) take_deadline: Duration,
}

/// The time for which a group waits for more segments on an object store.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(PartialEq))]
pub struct LingerSettings {
    /// Part of the store's recent latency, 0 to 1.
    pub(crate) latency_fraction: f64,
    /// Least time in which a next segment is expected.
    pub(crate) min: Duration,
    /// Upper bound of the whole wait of a group. Zero is no wait.
    pub(crate) max: Duration,
}

/// Whether segments of several checkpoints share a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointBoundary {
    /// A file belongs to one checkpoint.
    Within,
    /// A file takes segments of any checkpoint.
    Across,
}

/// The behaviour of a writer when no open file is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// It waits for one.
    Blocking,
    /// It opens another.
    NonBlocking,
}

/// The daemon's memory of what exists.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct CatalogSettings {
    /// `None`: beside the data.
    pub(crate) url: Option<StoreUrl>,
    /// Memory for blocks of the catalog, at least 1 MiB. Less means more requests per look-up.
    pub(crate) cache_bytes: u64,
    /// Catalog bytes that are only in memory and the log, at least 8 MiB; at the bound catalog writes wait. Larger is
    /// fewer files and a longer replay at start.
    pub(crate) unflushed_bytes_max: u64,
    /// Bytes of one of its tables at most; `None`: as many as suit the storage.
    pub(crate) table_bytes_max: Option<u64>,
    /// Object stores: bytes of inline segments above which groups go into files whatever their size.
    pub(crate) inline_bytes_max: u64,
    /// Interval at which the catalog looks for a successor and for work. Each look costs requests, also when idle.
    pub(crate) poll_interval: Duration,
    /// Object stores: the longest time for which deletes wait for each other, to share their request.
    pub(crate) delete_linger: Duration,
    /// Object stores: the longest time for which what was answered before it is durable waits for a commit.
    pub(crate) lazy_linger: Duration,
    /// A log file on local disk is closed at this size, at least 64 KiB. Smaller gives space back sooner.
    pub(crate) log_segment_bytes: u64,
}

/// Bounds on memory and on what clients may ask for.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct LimitsSettings {
    /// Bytes in flight in the whole daemon: `limits.memory` without `kept_buffer_bytes` and what waits for a local copy.
    pub memory_bytes: u64,
    /// Bytes of memory that the catalog may take, about, before whatever would add to it is refused. 0: no bound.
    pub catalog_memory_bytes: u64,
    /// Part of `memory_bytes` that writes leave to reads; writes have two parts of the store left all the same.
    pub reads_kept_bytes: u64,
    /// Part of `memory_bytes` that reads leave to writes; reads have a block left all the same.
    pub writes_kept_bytes: u64,
    /// Part of `memory_bytes` that connections themselves take at most, whatever they carry.
    pub connections_bytes_max: u64,
    /// Bytes of `memory_bytes` that one connection holds at most; enough for a segment that streams through.
    pub(crate) connection_memory_bytes: u64,
    /// The same for one access key or token, where there are several.
    pub(crate) key_memory_bytes: u64,
    /// Bytes of buffers that wait for the next body.
    pub(crate) kept_buffer_bytes: u64,
    /// Part of `memory_bytes`, and smaller by a part at least.
    pub(crate) multipart_memory_bytes: u64,
    /// At most `multipart_memory_bytes`.
    pub(crate) multipart_part_in_memory_bytes_max: u64,
    /// A multipart upload without a request for this long is aborted, as its client has probably died.
    pub(crate) multipart_expiry: Duration,
    /// Multipart uploads in progress, at least 1.
    pub(crate) multipart_uploads_max: usize,
    /// Those of one job, at least 1.
    pub(crate) multipart_uploads_per_job_max: usize,
    /// A multipart upload without a request for this long may be aborted to make room.
    pub(crate) multipart_idle: Duration,
    /// The largest segment or single PUT. On S3 it fits into 10,000 parts.
    pub(crate) segment_bytes_max: u64,
    /// The largest object of the S3 door. Above `segment_bytes_max` it takes a multipart upload.
    pub(crate) object_bytes_max: u64,
    /// Bytes of an S3 key in UTF-8, 1 to 1024.
    pub(crate) key_bytes_max: usize,
    /// Bytes of the names and values of an object's `x-amz-meta-*` headers together, at most `header_bytes_max`.
    pub(crate) metadata_bytes_max: u64,
    /// Bytes of the request line and all headers together, at least 8 KiB, which is the least the HTTP server takes.
    pub(crate) header_bytes_max: u64,
    /// Segments in one request of the native API, at least 1.
    pub(crate) segments_per_request_max: usize,
    /// Connections over all doors, at least 1. Each needs a file descriptor.
    pub(crate) connections_max: usize,
    /// Places on top of them for health and metrics, at least 1.
    pub(crate) connections_reserved: usize,
    /// Wait for memory before a request is refused.
    pub admission_timeout: Duration,
    /// From a connection to the whole head of its first request, and for each further head.
    pub(crate) head_timeout: Duration,
    /// Without a request, a connection is closed after this long.
    pub(crate) idle_timeout: Duration,
    /// Bytes a second that a client moves at least, on average over `rate_window`; 0 is no bound.
    pub(crate) rate_bytes_min: u64,
    /// The time by which a client may fall behind.
    pub(crate) rate_window: Duration,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// From head to answer.
    pub(crate) request_timeout: Duration,
    /// A read without progress for this long keeps no file from being deleted any more.
    pub read_lease: Duration,
}

/// Getting dead bytes back.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct ReclaimSettings {
    /// Who re-uploads the live segments of files with too many dead bytes.
    pub(crate) mode: ReclaimMode,
    /// Physical bytes over live bytes, at least 1. `None`: no limit, nothing is re-uploaded.
    pub(crate) space_amplification_max: Option<f64>,
    /// Between forgetting a file and deleting it.
    pub(crate) delete_grace: Duration,
    /// Files deleted per second, at least 1. S3 answers 503 above a few thousand.
    pub(crate) deletes_per_second_max: u32,
    /// Bytes re-uploaded per second, never zero. More gives space back sooner and takes bandwidth from writers.
    pub(crate) copied_bytes_per_second_max: u64,
    /// Whether dead ranges of closed files are given back in place, where the disk can.
    pub(crate) punch_holes: bool,
    /// Longest interval at which reclaimer and deleter look for work. A part of it is the time in which they act when
    /// something died.
    pub(crate) interval: Duration,
    /// Interval at which storage is listed for files that nobody names. `None`: never.
    pub(crate) sweep_interval: Option<Duration>,
    /// For how long a file must have been unnamed before it is deleted.
    pub(crate) sweep_grace: Duration,
}

/// Who may come in.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct AuthSettings {
    /// Of the S3 door, each access key once. Empty: no credentials are asked for.
    pub(crate) keys: Vec<S3Key>,
    /// Of the native API. Empty: no token is asked for.
    pub(crate) tokens: Vec<Secret>,
    /// Holds more of both, and may change. With one, both doors ask for credentials.
    pub(crate) keys_file: Option<PathBuf>,
}

/// One pair of keys of the S3 door.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct S3Key {
    /// The name of the pair, sent by the client with every request.
    pub(crate) access_key: String,
    /// Checks the client's signatures and is never sent.
    pub(crate) secret_key: Secret,
    /// `bucket/key` prefixes it may touch. Empty: all.
    pub(crate) prefixes: Vec<String>,
    /// What it may do there.
    pub(crate) access: KeyAccess,
}

impl From<&AuthKeyConfig> for S3Key {
    fn from(key: &AuthKeyConfig) -> Self {
        Self {
            access_key: key.access_key.clone(),
            secret_key: key.secret_key.clone(),
            prefixes: key.prefixes.clone(),
            access: key.access,
        }
    }
}

/// Logs and traces of the daemon.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct TelemetrySettings {
    /// The form of log lines: text for people or JSON for machines.
    pub(crate) log_format: LogFormat,
    /// In the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) log_filter: String,
    /// Where each request is told of. `None`: nowhere.
    pub(crate) access_log: Option<AccessLogPlace>,
}

/// Where lines of the access log go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogPlace {
    /// The program's standard output.
    Stdout,
    /// A file that grows, and is opened again when somebody says so.
    File(PathBuf),
}

impl fmt::Display for AccessLogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl TryFrom<&Config> for Settings {
    type Error = ConfigErrors;

    /// Checks every rule and converts.
    ///
    /// # Errors
    /// Every broken rule, with the keys and values it is about.
    fn try_from(config: &Config) -> Result<Self, ConfigErrors> {
        let mut rules = Rules::about(config);
        checkpointing::check(&mut rules);
        bounds::check(&mut rules);
        memory::check(&mut rules);
        let addresses = doors::check(&mut rules);
        let warnings = rules.finish()?;
        let addresses = addresses.expect("an address that did not parse is a broken rule");
        Ok(Self {
            checkpointing: CheckpointingSettings::from_checked(&config.execution.checkpointing),
            server: server(config, addresses),
            tls: tls(config),
            store: store(config),
            merging: merging(config),
            catalog: catalog(config),
            limits: limits(config),
            reclaim: reclaim(config),
            cluster: cluster(config),
            auth: auth(&config.auth),
            telemetry: telemetry(config),
            warnings,
        })
    }
}

/// A count that bounds something in memory.
fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn server(config: &Config, (s3, api): (SocketAddr, SocketAddr)) -> ServerSettings {
    let server = &config.server;
    ServerSettings {
        s3,
        api,
        api_unix_socket: server.api_unix_socket.clone(),
        virtual_host_domains: server.virtual_host_domains.iter().map(|name| name.to_ascii_lowercase()).collect(),
        buckets: server.buckets.clone(),
        drain_timeout: server.drain_timeout.duration(),
        region: server.region.clone(),
        etag: server.etag,
        reload_interval: Some(server.reload_interval.duration()).filter(|interval| !interval.is_zero()),
    }
}

fn tls(config: &Config) -> Option<TlsSettings> {
    let tls = &config.tls;
    let (cert, key) = tls.cert.clone().zip(tls.key.clone())?;
    let client_auth = doors::client_auth(config);
    let client_ca = tls.client_ca.clone().filter(|_| client_auth != ClientAuth::Off);
    Some(TlsSettings { doors: tls.doors, cert, key, client_ca, client_auth })
}

fn store(config: &Config) -> StoreSettings {
    let store = &config.store;
    let pair = store.access_key.clone().zip(store.secret_key.clone());
    StoreSettings {
        url: store.url.clone(),
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        credentials: pair.map(|(access_key, secret_key)| Credentials { access_key, secret_key }),
        allow_http: store.allow_http || store.endpoint.as_deref().is_some_and(doors::is_loopback_url),
        request_timeout: store.request_timeout.duration(),
        retry_timeout: store.retry_timeout.duration(),
        concurrent_requests_max: count(store.max_concurrent_requests),
        in_flight_bytes_max: store.max_bytes_in_flight.bytes(),
        direct_io: store.direct_io,
        reserve_bytes: store.reserve.map(|reserve| reserve.bytes()),
        part_bytes: store.part_size.bytes(),
        local_copy: local_copy(config),
        gcs_service_account: store.gcs.service_account.clone(),
        azure: AzureSettings { account: store.azure.account.clone(), account_key: store.azure.account_key.clone() },
        hdfs: HdfsSettings {
            conf_dir: store.hdfs.conf_dir.clone(),
            conf: store.hdfs.conf.iter().filter_map(|entry| hadoop_key(entry)).collect(),
            user: store.hdfs.user.clone(),
            writers_max: count(store.hdfs.max_writers),
            replication: store.hdfs.replication,
            block_bytes: store.hdfs.block_size.map(|size| size.bytes()),
            write_timeout: store.hdfs.write_timeout.duration(),
            open_bytes_max: memory::open_file_bytes(config),
        },
        given: None,
    }
}

/// A key and its value of `key=value`.
fn hadoop_key(entry: &str) -> Option<(String, String)> {
    let (key, value) = entry.split_once('=')?;
    Some((key.trim().to_owned(), value.trim().to_owned()))
}

fn local_copy(config: &Config) -> Option<LocalCopySettings> {
    let backup = &config.execution.checkpointing.local_backup;
    memory::has_local_copy(config).then(|| LocalCopySettings {
        dirs: match backup.dirs.as_slice() {
            [] => vec![std::env::temp_dir()],
            dirs => dirs.iter().map(PathBuf::from).collect(),
        },
        bytes_max: backup.max_size.bytes(),
        waiting_bytes_max: memory::local_copy_bytes(config),
    })
}

fn merging(config: &Config) -> MergingSettings {
    let (flink, ours) = (&config.execution.checkpointing.file_merging, &config.merging);
    let hdfs = Some(&config.store.hdfs).filter(|_| config.store.url.is_hdfs());
    // A file of one block is one object of the NameNode less, and its replicas lie together.
    let block = hdfs.and_then(|hdfs| hdfs.block_size).map_or(u64::MAX, |size| size.bytes());
    // The others are for large segments, copies, and files that are being given up.
    let writers = hdfs.map_or(usize::MAX, |hdfs| count(hdfs.max_writers - hdfs.max_writers / 4));
    MergingSettings {
        enabled: flink.enabled,
        checkpoint_boundary: match flink.across_checkpoint_boundary {
            true => CheckpointBoundary::Across,
            false => CheckpointBoundary::Within,
        },
        shared_boundary: ours.shared_boundary,
        exclusive_boundary: ours.exclusive_boundary,
        s3_boundary: ours.s3_boundary,
        file_bytes_max: flink.max_file_size.bytes().min(block),
        pool: if flink.pool_blocking { PoolMode::Blocking } else { PoolMode::NonBlocking },
        subtasks_per_file_max: count(flink.max_subtasks_per_file),
        group_bytes_max: ours.group_bytes_max.bytes(),
        linger: LingerSettings {
            latency_fraction: ours.linger_fraction,
            min: ours.linger_min.duration(),
            max: ours.linger_max.duration(),
        },
        inline_group_bytes_max: ours.inline_group_max.bytes(),
        temporary_names: ours.temporary_names,
        delete_durability: ours.delete_durability,
        delete_ledger: ours.delete_ledger.clone().filter(|_| ours.delete_durability == DeleteDurability::Ledger),
        open_files_max: count(ours.max_open_files).min(writers),
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
        table_bytes_max: None,
        inline_bytes_max: catalog.inline_max.bytes(),
        poll_interval: catalog.poll_interval.duration(),
        delete_linger: config.merging.delete_linger.duration(),
        lazy_linger: config.merging.lazy_linger.duration(),
        log_segment_bytes: catalog.log_segment_size.bytes(),
    }
}

fn limits(config: &Config) -> LimitsSettings {
    let limits = &config.limits;
    LimitsSettings {
        memory_bytes: memory::memory_for_bodies(config),
        catalog_memory_bytes: limits.catalog_memory.bytes(),
        reads_kept_bytes: memory::reads_kept_bytes(config),
        writes_kept_bytes: memory::writes_kept_bytes(config),
        connections_bytes_max: memory::connections_bytes(config),
        connection_memory_bytes: memory::share_of_memory(config, limits.connection_share),
        key_memory_bytes: memory::share_of_memory(config, limits.key_share),
        kept_buffer_bytes: memory::kept_buffer_bytes(limits.memory),
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

fn cluster(config: &Config) -> Option<ClusterSettings> {
    let cluster = &config.cluster;
    cluster.enabled.then(|| ClusterSettings {
        id: cluster.daemon_id.clone(),
        url: cluster.advertised_url.as_ref().map(|url| url.trim_end_matches('/').to_owned()),
        token: cluster.token.clone(),
        lease_timeout: cluster.lease_timeout.duration(),
        shards: cluster.shards,
        balance_after: cluster.balance_after.duration(),
    })
}

/// The key of the section itself, then those of the list.
fn auth(auth: &AuthConfig) -> AuthSettings {
    let pair = auth.access_key.clone().zip(auth.secret_key.clone());
    let access = KeyAccess::ReadWrite;
    let main = pair.map(|(access_key, secret_key)| S3Key { access_key, secret_key, prefixes: Vec::new(), access });
    let keys = main.into_iter().chain(auth.keys.iter().map(S3Key::from)).collect();
    AuthSettings { keys, tokens: auth.tokens.clone(), keys_file: auth.keys_file.clone() }
}

fn telemetry(config: &Config) -> TelemetrySettings {
    let telemetry = &config.telemetry;
    let access_log = match telemetry.access_log.trim() {
        "off" => None,
        "stdout" => Some(AccessLogPlace::Stdout),
        path => Some(AccessLogPlace::File(path.into())),
    };
    TelemetrySettings { log_format: telemetry.log_format, log_filter: telemetry.log_filter.clone(), access_log }
}
