//! The S3 door: what unmodified S3 clients speak, on top of the catalog, the merger and the reader.
//!
//! s3s routes, checks signatures and reads and writes XML. [`gate`] is the HTTP service around it. [`S3Door`] has the
//! operations, a file for each subject; none of them lists storage or reads what it need not.
//!
//! - A body's length is known, its condition is looked at and its memory is paid for before more than its first bytes are
//!   asked for, and before any is of a client that waits for `100 Continue` ([`intake`]); so such a client, when it is
//!   refused, never sends its body.
//! - A key tells whose state it is ([`layout`]), so that what dies together is packed together.
//! - A multipart upload and its parts are durable before they are answered, but for those of Flink's state files, which
//!   nobody resumes: most of these live in memory until they are completed, then cost one durable commit ([`uploads`]).
//! - Copies are references: no byte is read or written.
//!
//! # Invariants
//! - A put, a completion and a copy are answered once they are durable and visible.
//! - What differs from its checksum, breaks off or stalls is never visible.
//! - Every error that a repeat may cure is a 503 with `Retry-After` ([`errors`]).
//!
//! # Crash
//! Multipart uploads in memory are gone: completing them fails with `NoSuchUpload` or `InvalidPart`. All others go on.
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/>

mod access;
mod buckets;
mod checksums;
mod chunked;
mod completion;
mod conditions;
mod errors;
mod gate;
mod headers;
mod intake;
mod layout;
mod listing;
mod merged;
mod multipart;
mod objects;
mod ops;
mod ranges;
mod reading;
mod signature;
mod upload_lists;
mod uploads;
mod xml;

use std::sync::Arc;

use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;

pub use gate::S3Service;

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::merge::Merger;
use crate::metrics::Metrics;
use crate::read::Reader;
use crate::runtime::{ByteBudget, Clock, Entropy};
use access::{Guard, Hosts, Keys};
use gate::{Gate, SenselessRanges, Signatures, XML_BYTES_MAX};
use merged::MergedByFlink;
use ops::Operations;
use uploads::Uploads;

/// Whose state an object is, and how a footer calls it.
pub fn about_of(bucket: &str, key: &str) -> crate::catalog::command::About {
    layout::place(bucket, key).about
}

/// What the door is made of.
#[derive(Clone)]
pub struct S3DoorParts {
    /// Knows what exists.
    pub catalog: Catalog,
    /// Stores segments.
    pub merger: Merger,
    /// Reads segments.
    pub reader: Reader,
    /// Memory for bodies.
    pub budget: ByteBudget,
    /// Everything that can be set.
    pub settings: Arc<Settings>,
    /// Counts and times.
    pub metrics: Metrics,
    /// Names uploads and requests.
    pub entropy: Entropy,
    /// Stamps objects.
    pub clock: Clock,
}

/// The operations of the S3 door. Clones share the multipart uploads in progress.
#[derive(Clone)]
pub struct S3Door {
    catalog: Catalog,
    merger: Merger,
    reader: Reader,
    budget: ByteBudget,
    settings: Arc<Settings>,
    metrics: Metrics,
    entropy: Entropy,
    clock: Clock,
    keys: Arc<Keys>,
    uploads: Arc<Uploads>,
    merged: Arc<MergedByFlink>,
}

impl S3Door {
    /// A door whose uploads in progress are those that the catalog remembers.
    pub fn new(parts: S3DoorParts) -> Self {
        let S3DoorParts { catalog, merger, reader, budget, settings, metrics, entropy, clock } = parts;
        let keys = Arc::new(Keys::new(&settings.auth.keys, settings.limits.key_memory_bytes));
        let uploads = Arc::new(Uploads::new(&settings.limits));
        let merged = Arc::default();
        let door = Self { catalog, merger, reader, budget, settings, metrics, entropy, clock, keys, uploads, merged };
        door.adopt_uploads();
        door
    }
}

/// The door as an HTTP service: for `hyper`, HTTP/1 or 2.
///
/// Limits on connections and heads are the server's.
pub fn service(door: S3Door) -> S3Service {
    let guard =
        Guard { keys: Arc::clone(&door.keys), budget: door.budget.clone(), limits: door.settings.limits.clone() };
    let hosts = Hosts { domains: door.settings.server.virtual_host_domains.clone() };
    let mut config = S3Config::default();
    config.xml_max_body_size = usize::try_from(XML_BYTES_MAX).unwrap_or(usize::MAX);
    let config = Arc::new(StaticConfigProvider::new(Arc::new(config)));
    let door = Arc::new(door);
    let builder = || {
        let mut builder = S3ServiceBuilder::new(Operations(Arc::clone(&door)));
        builder.set_auth(guard.clone());
        builder.set_access(guard.clone());
        builder.set_host(hosts.clone());
        builder.set_config(config.clone());
        builder
    };
    let mut outer = builder();
    outer.set_route(SenselessRanges { s3: builder().build() });
    S3Service::new(Gate {
        s3: outer.build(),
        entropy: door.entropy.clone(),
        metrics: door.metrics.clone(),
        hosts,
        signatures: if door.keys.is_empty() { Signatures::Ignored } else { Signatures::Checked },
        body_timeout: door.settings.limits.body_timeout,
        request_timeout: door.settings.limits.request_timeout,
    })
}
