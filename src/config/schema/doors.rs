//! `[server]`, `[tls]`, `[limits]` and `[auth]`: the doors, what may pass them, and who.

use std::path::PathBuf;

use super::super::choices::{ClientAuth, EtagKind, KeyAccess, TlsDoors};
use super::super::values::{Fields, InvalidLiteral, Literal, MemorySize, Secret, Setting, Span, ValueError};

section! {
    /// `[server]`: where the daemon listens.
    ServerConfig {
        /// IP address and port of the S3 door, default `127.0.0.1:9000`; port 0 picks a free one.
        s3: String = "127.0.0.1:9000".to_owned(),
        /// IP address and port of the native API, health, metrics and admin pages, default `127.0.0.1:9001`.
        api: String = "127.0.0.1:9001".to_owned(),
        /// Path of a Unix socket that serves the native API too. Not set: none. File permissions guard it.
        api_unix_socket: Option<PathBuf> = None,
        /// Host names below which a bucket may be the first label (`bucket.s3.local` for `s3.local`), also aliases of
        /// this host. Default none: a host name is never taken for a bucket, path style only.
        virtual_host_domains: Vec<String> = Vec::new(),
        /// Buckets of the S3 door that exist from the start, default `checkpoints`. Clients may create more.
        buckets: Vec<String> = vec!["checkpoints".to_owned()],
        /// Time that each step of a shutdown gets, default 30 s: requests in progress, open files, the catalog.
        /// Longer fails fewer requests and delays a restart.
        drain_timeout: Span = Span::seconds(30),
        /// Region the S3 door answers and expects in signatures, default `us-east-1`.
        region: String = "us-east-1".to_owned(),
        /// `md5` (default; clients may compare it) or `opaque` (saves about 1.5 s of CPU per GB).
        etag: EtagKind = EtagKind::Md5,
        /// How often files are looked at that may change while the daemon runs, default 10 s: those of `[tls]`, `auth.keys-file`. 0: on SIGHUP
        /// alone.
        reload_interval: Span = Span::seconds(10),
    }
}

section! {
    /// `[tls]`: encryption at the doors. Without a certificate they speak plain HTTP.
    TlsConfig {
        /// `both` (default), `s3` or `api`. Unix sockets never speak TLS.
        doors: TlsDoors = TlsDoors::Both,
        /// PEM file with the certificate, and those between it and its authority after it.
        cert: Option<PathBuf> = None,
        /// PEM file with the private key of the certificate.
        key: Option<PathBuf> = None,
        /// PEM file with the authorities that sign certificates of clients.
        client_ca: Option<PathBuf> = None,
        /// `off`, `optional` (checked if sent) or `required`. Not set: `required` with `client-ca`, `off` without.
        client_auth: Option<ClientAuth> = None,
    }
}

section! {
    /// `[limits]`: bounds on memory and on everything a client controls.
    LimitsConfig {
        /// Bytes in flight in the whole daemon, default 512 mb. A body waits until its bytes are paid for from it,
        /// and a connection takes 96 kb of it.
        memory: MemorySize = MemorySize::mib(512),
        /// Bytes of memory for what exists, default 1 gb, besides `memory`: 400 to 600 for an S3 object. At the bound whatever
        /// would add to it is answered 503; reads and deletes go on. 0 is no bound.
        catalog_memory: MemorySize = MemorySize::gib(1),
        /// Part of `memory` that is kept for reads whatever writers take, default 0.125.
        read_share: f64 = 0.125,
        /// Part of `memory` that is kept for writes whatever readers take, default 0.5.
        write_share: f64 = 0.5,
        /// Part of `memory` that one connection holds at most, default 0.25.
        connection_share: f64 = 0.25,
        /// Part of `memory` that one access key or token holds at most, where there are several; default 0.5.
        key_share: f64 = 0.5,
        /// Share of `memory` for parts of Flink's own multipart uploads that wait for their completion, default 128 mb.
        multipart_memory: MemorySize = MemorySize::mib(128),
        /// A part of such an upload up to this size may wait in memory, a larger one goes to storage at once; default 8 mb.
        multipart_part_in_memory_max: MemorySize = MemorySize::mib(8),
        /// A multipart upload without a request for this long is aborted, default 24 h.
        multipart_expiry: Span = Span::hours(24),
        /// Multipart uploads in progress, default 100000; at so many the oldest idle ones give way to new ones.
        multipart_uploads_max: u32 = 100_000,
        /// The same for the keys of one job, or of one folder where keys name no job; default 25000.
        multipart_uploads_per_job_max: u32 = 25_000,
        /// A multipart upload without a request for this long may give way, default 5 min.
        multipart_idle: Span = Span::minutes(5),
        /// The largest segment, or single PUT, default 64 gb: 8,192 parts of the default `store.part-size`, where S3
        /// allows 10,000.
        segment_size_max: MemorySize = MemorySize::gib(64),
        /// The largest object of the S3 door, default 5 tb as in S3. Above `segment-size-max` only by multipart.
        object_size_max: MemorySize = MemorySize::tib(5),
        /// Bytes of an S3 key in UTF-8, default and maximum 1024.
        key_bytes_max: u32 = 1024,
        /// Names and values of `x-amz-meta-*` headers together, default 2 kb as in S3.
        metadata_bytes_max: MemorySize = MemorySize::kib(2),
        /// Request line and all headers, default 32 kb, at least 8 kb.
        header_bytes_max: MemorySize = MemorySize::kib(32),
        /// Segments in one native request, default 10000.
        segments_per_request_max: u32 = 10_000,
        /// Connections over all doors, default 4096. At the bound idle ones give way. Each needs a file descriptor.
        connections_max: u32 = 4096,
        /// Places on top of them, default 16: health and metrics are answered there, everything else with 503.
        connections_reserved: u32 = 16,
        /// Wait for bytes of `memory` before 503, default 5 s. Longer smooths bursts, shorter tells clients sooner.
        admission_timeout: Span = Span::seconds(5),
        /// Time from a connection to the whole head of its first request, and for each further head, default 10 s.
        head_timeout: Span = Span::seconds(10),
        /// A connection without a request for this long is closed, default 2 min.
        idle_timeout: Span = Span::minutes(2),
        /// Bytes a second that a client sends or takes at least, on average over `rate-window`; default 1 kb, 0 is off.
        rate_min: MemorySize = MemorySize::kib(1),
        /// How long a client may fall behind `rate-min`, default 1 min. Time in which it waits for the daemon is free.
        rate_window: Span = Span::minutes(1),
        /// A body that brings no byte for this long is dropped, default 60 s.
        body_timeout: Span = Span::seconds(60),
        /// Time for one request from head to answer, default 1 h: a segment of 64 gb needs 20 MB/s.
        request_timeout: Span = Span::hours(1),
        /// A read that takes nothing for this long may find its bytes deleted, default 15 min. Until then they stay on
        /// storage, whatever became of what it reads.
        read_lease: Span = Span::minutes(15),
    }
}

section! {
    /// `[auth]`: who may come in. Without keys or tokens a door serves loopback only.
    AuthConfig {
        /// Access key of the S3 door for all prefixes. Not set: see `keys`.
        access_key: Option<String> = None,
        /// Its secret. Better given as `ESKER__AUTH__SECRET_KEY` than written to a file.
        secret_key: Option<Secret> = None,
        /// More access keys, each tied to key prefixes: `[[auth.keys]]`.
        keys: Vec<AuthKeyConfig> = Vec::new(),
        /// A file with more of them, and with tokens, that may change while the daemon runs: `[[keys]]`, `tokens`,
        /// `read-tokens`. Not set: none.
        keys_file: Option<PathBuf> = None,
        /// Bearer tokens of the native API; any of them opens all of it.
        tokens: Vec<Secret> = Vec::new(),
        /// Serve other hosts without credentials, default false. For closed networks only.
        insecure: bool = false,
    }
}

/// One entry of `[[auth.keys]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthKeyConfig {
    /// The access key.
    pub(in crate::config) access_key: String,
    /// Its secret.
    pub(in crate::config) secret_key: Secret,
    /// `bucket/key` prefixes that it may touch. Empty, which nobody can write: all.
    pub(in crate::config) prefixes: Vec<String>,
    /// What it may do there.
    pub(in crate::config) access: KeyAccess,
}

const ACCESS_KEY: &str = "access-key";
const SECRET_KEY: &str = "secret-key";
const PREFIXES: &str = "prefixes";
const ACCESS: &str = "access";
/// Somebody whose last prefix was taken away must not get all of them.
const SOME_PREFIXES: &str = "one prefix or more, or no such line if everything is meant";

impl Setting for AuthKeyConfig {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        let fields = Fields::of(literal, &[ACCESS_KEY, SECRET_KEY, PREFIXES, ACCESS])?;
        Ok(Self {
            access_key: fields.required(ACCESS_KEY)?,
            secret_key: fields.required(SECRET_KEY)?,
            prefixes: fields.optional(PREFIXES)?.map_or_else(Vec::new, |SomePrefixes(prefixes)| prefixes),
            access: fields.optional(ACCESS)?.unwrap_or(KeyAccess::ReadWrite),
        })
    }

    fn write(&self) -> Literal {
        let prefixes = (!self.prefixes.is_empty()).then(|| (PREFIXES, self.prefixes.write()));
        let fields = [
            (ACCESS_KEY, self.access_key.write()),
            (SECRET_KEY, self.secret_key.write()),
            (ACCESS, self.access.write()),
        ];
        Literal::table(fields.into_iter().chain(prefixes))
    }
}

/// At least one prefix.
struct SomePrefixes(Vec<String>);

impl Setting for SomePrefixes {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        let prefixes = Vec::<String>::read(literal)?;
        if prefixes.is_empty() {
            return Err(ValueError::Unexpected { expected: SOME_PREFIXES }.into());
        }
        Ok(Self(prefixes))
    }

    fn write(&self) -> Literal {
        self.0.write()
    }
}
