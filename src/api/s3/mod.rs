//! The S3 door: what unmodified S3 clients speak, on top of the engine.
//!
//! s3s routes, checks signatures and reads and writes XML. [`gate`] is the HTTP service around it. [`S3Door`] has the
//! operations, a file for each subject; none of them lists storage or reads what it need not.
//!
//! - A body's length is known, its condition is looked at and its memory is paid for before more than its first bytes are
//!   asked for, and before any is of a client that waits for `100 Continue` ([`intake`]); so such a client, when it is
//!   refused, never sends its body.
//! - A key tells whose state it is ([`crate::model::KeyLayout`]), so that what dies together is packed together.
//! - A multipart upload and its parts are durable before they are answered, but for those of Flink's state files, which
//!   nobody resumes: most of these live in memory until they are completed, then cost one durable commit ([`crate::engine::uploads`]).
//! - Copies are references: no byte is written, and none is read but for a checksum that the source does not have.
//! - What is not honoured is refused by its name, whether it is known or not ([`surface`]).
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
mod again;
mod buckets;
mod checksums;
mod chunked;
mod combine;
mod completion;
mod conditions;
mod copies;
mod errors;
mod gate;
mod grants;
mod headers;
mod heads;
mod hosts;
mod intake;
mod listing;
mod mismatch;
mod multipart;
mod objects;
mod ops;
mod ranges;
mod reading;
mod request_xml;
mod signature;
pub mod surface;
mod tagging;
mod tags;
mod upload_lists;
mod xml;

use std::sync::Arc;

use s3s::S3Result;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;

pub use gate::{InPlace, PassedBody, S3Service};
pub use hosts::Hosts;

use crate::api::keys::KeyRing;
use crate::api::shards::siblings::Siblings;
use crate::engine::Engine;
use access::Guard;
use again::Again;
use errors::OrS3;
use gate::{Gate, Signatures, XML_BYTES_MAX};
use mismatch::Checker;
use ops::Operations;

/// The operations of the S3 door.
#[derive(Clone)]
pub struct S3Door {
    engine: Engine,
    keys: KeyRing,
    /// The other shards, if the engine's is one of several.
    siblings: Option<Siblings>,
}

crate::runtime::opaque_debug!(S3Door);

impl S3Door {
    /// A door to `engine` for holders of `keys`.
    pub fn new(engine: Engine, keys: KeyRing) -> Self {
        Self { engine, keys, siblings: None }
    }

    /// The same, whose engine has one shard of several.
    #[must_use]
    pub fn of_shard(self, siblings: Siblings) -> Self {
        Self { siblings: Some(siblings), ..self }
    }

    /// Whether there is a bucket, for what is about all of its keys.
    pub(super) async fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        match &self.siblings {
            None => self.engine.check_bucket(bucket).or_s3(),
            Some(siblings) => siblings.check_bucket(&self.engine, bucket).await.or_s3(),
        }
    }
}

/// The door as an HTTP service: for `hyper`, HTTP/1 or 2.
///
/// Limits on connections and heads are the server's.
pub fn service(door: S3Door) -> S3Service {
    let settings = Arc::clone(door.engine.settings());
    let guard = Guard {
        keys: door.keys.clone(),
        budget: door.engine.budgets().writes.clone(),
        limits: settings.limits.clone(),
        shard: door.siblings.clone().map(|siblings| (siblings, door.engine.clone())),
    };
    let hosts = Hosts { domains: settings.server.virtual_host_domains.clone() };
    let mut config = S3Config::default();
    config.xml_max_body_size = usize::try_from(XML_BYTES_MAX).unwrap_or(usize::MAX);
    let config = Arc::new(StaticConfigProvider::new(Arc::new(config)));
    let door = Arc::new(door);
    let builder = || {
        let mut builder = S3ServiceBuilder::new(Operations(Arc::clone(&door)));
        builder.set_auth(guard.clone());
        builder.set_access(guard.clone());
        builder.set_host(hosts.clone());
        builder.set_config(Arc::<StaticConfigProvider>::clone(&config));
        builder
    };
    let mut outer = builder();
    outer.set_route(Again { s3: builder().build(), guard: guard.clone() });
    S3Service::new(Gate {
        s3: outer.build(),
        checker: Checker::new(builder()),
        entropy: door.engine.entropy().clone(),
        metrics: door.engine.metrics().clone(),
        hosts,
        signatures: if door.keys.current().is_open() { Signatures::Ignored } else { Signatures::Checked },
        body_timeout: settings.limits.body_timeout,
        request_timeout: settings.limits.request_timeout,
    })
}
