//! The abilities of a store, and its prices.
//!
//! Callers ask for what they need to know, and never which kind of store it is: so one more kind is a matter of this folder
//! alone.

use std::time::Duration;

/// The abilities of an opened store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A physical file grows and is synced, and is there before a commit says that something is in it. Where this is false
    /// each file is put whole, once, beside its commit.
    pub appends: bool,
    /// Dead ranges of a closed file can be given back in place.
    pub punches: bool,
    /// Files can be moved to `lost+found/`, and back.
    pub sets_aside: bool,
    /// An open file is its writer's: until it is closed, or released for a writer that is gone, others may not see its last
    /// bytes, and it may still grow.
    pub leases: bool,
    /// An object can be replaced only if it is still the one that was read.
    pub conditional_updates: bool,
    /// One process has the store at a time, by a lock that ends with it. Where this is false, a daemon that was shut out may
    /// still read, and what it has sent may still arrive.
    pub exclusive: bool,
    /// Bytes that were written or read lately are read again from memory, for nothing.
    pub page_cache: bool,
    /// Large writes go past the page cache.
    pub direct_writes: bool,
    /// The least time between two writes of one name, deletes included; earlier ones are refused for a while. Zero where
    /// nobody counts.
    pub rewrite_interval: Duration,
    /// An upload in parts can be given up: nothing stays of it. Where this is false it is completed with none of its parts,
    /// and an empty object stays.
    pub aborts_uploads: bool,
    /// The price of a request.
    pub request: RequestPrice,
}

/// The price of a request to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPrice {
    /// Next to nothing: it does not leave the machine.
    Free,
    /// A round trip, and money.
    RoundTrip,
}

impl Capabilities {
    /// The abilities of a folder on a local disk.
    pub(super) const LOCAL: Self = Self {
        appends: true,
        punches: true,
        sets_aside: true,
        leases: false,
        conditional_updates: false,
        exclusive: true,
        page_cache: true,
        direct_writes: false,
        rewrite_interval: Duration::ZERO,
        aborts_uploads: false,
        request: RequestPrice::Free,
    };

    /// The abilities of a folder of an HDFS.
    pub(super) const HDFS: Self = Self {
        appends: true,
        punches: false,
        sets_aside: true,
        leases: true,
        conditional_updates: false,
        exclusive: false,
        page_cache: false,
        direct_writes: false,
        rewrite_interval: Duration::ZERO,
        aborts_uploads: false,
        request: RequestPrice::RoundTrip,
    };

    /// The abilities of an object store: S3, and memory.
    pub const OBJECT: Self = Self {
        appends: false,
        punches: false,
        sets_aside: false,
        leases: false,
        conditional_updates: true,
        exclusive: false,
        page_cache: false,
        direct_writes: false,
        rewrite_interval: Duration::ZERO,
        aborts_uploads: true,
        request: RequestPrice::RoundTrip,
    };

    /// The abilities of a bucket of Google Cloud Storage.
    pub(super) const GCS: Self = Self { rewrite_interval: Duration::from_secs(1), ..Self::OBJECT };

    /// The abilities of a container of Azure Blob Storage.
    pub(super) const AZURE: Self = Self { aborts_uploads: false, ..Self::OBJECT };
}
