//! The values that labels of metrics take. They are enums, so that a slip of the pen cannot begin a new series.

/// A label of a metric.
pub trait MetricLabel: Copy {
    /// The label's name.
    const NAME: &'static str;

    /// This value, as it is exposed.
    fn as_str(self) -> &'static str;
}

/// The labels of a metric, in order.
pub trait MetricLabels: Copy {
    /// Their names.
    const NAMES: &'static [&'static str];

    /// Hands the values to `use_them`.
    fn with<T>(self, use_them: impl FnOnce(&[&str]) -> T) -> T;
}

impl<A: MetricLabel> MetricLabels for A {
    const NAMES: &'static [&'static str] = &[A::NAME];

    fn with<T>(self, use_them: impl FnOnce(&[&str]) -> T) -> T {
        use_them(&[self.as_str()])
    }
}

impl<A: MetricLabel, B: MetricLabel> MetricLabels for (A, B) {
    const NAMES: &'static [&'static str] = &[A::NAME, B::NAME];

    fn with<T>(self, use_them: impl FnOnce(&[&str]) -> T) -> T {
        use_them(&[self.0.as_str(), self.1.as_str()])
    }
}

/// Writes the enum of each label: its name in Rust, the label's name, and its values.
macro_rules! labels {
    ($($(#[$doc:meta])* $label:ident = $name:literal { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum $label {
                $($(#[$value_doc])* $value,)+
            }

            impl $label {
                /// Every value.
                pub const ALL: &'static [Self] = &[$(Self::$value),+];
            }

            impl MetricLabel for $label {
                const NAME: &'static str = $name;

                fn as_str(self) -> &'static str {
                    match self {
                        $(Self::$value => $text,)+
                    }
                }
            }
        )+
    };
}

labels! {
    /// The door that a request came in by.
    DoorLabel = "door" {
        /// The native API over TCP.
        Native = "native",
        /// S3.
        S3 = "s3",
        /// The native API over a Unix socket. Only connections are told apart by it.
        Unix = "unix",
    }

    /// What a coordinator has taken.
    TakenKind = "kind" {
        /// A checkpoint.
        Checkpoint = "checkpoint",
        /// A savepoint.
        Savepoint = "savepoint",
    }

    /// The proof with which an owner in a cluster answered what it had read from its memory.
    ProofKind = "how" {
        /// There is no other member.
        Alone = "alone",
        /// A commit, or a look at the map, was recent enough.
        Recent = "recent",
        /// The map was looked at.
        Read = "read",
    }

    /// Why a daemon of a cluster took a shard over.
    TakeOverCause = "cause" {
        /// Nobody had it.
        Unowned = "unowned",
        /// Its owner was dead.
        Dead = "dead",
        /// Its owner did not answer.
        Silent = "silent",
        /// Its owner had not got it any more.
        GivenUp = "given-up",
        /// Its owner gave it away.
        HandedOver = "handed-over",
        /// It was this daemon's, which was shut out for a moment.
        Again = "again",
    }

    /// What came of a request that was held.
    HeldOutcome = "outcome" {
        /// Somebody answered.
        Answered = "answered",
        /// It was given up.
        GivenUp = "given_up",
    }

    /// A call from one daemon of a cluster to another.
    PeerCall = "op" {
        /// Whether it is there.
        Ping = "ping",
        /// Whether it reaches a third one.
        Reach = "reach",
        /// To give its shards away.
        Drain = "drain",
        /// A client's request, passed on.
        Request = "request",
    }

    /// The end of a request for a segment.
    SegmentOutcome = "outcome" {
        /// It was stored.
        Answered = "answered",
        /// The client has to change it.
        Refused = "refused",
        /// It is not the client's fault.
        Failed = "failed",
    }

    /// The state of a physical file.
    FileStatus = "state" {
        /// It takes segments.
        Open = "open",
        /// It takes no more.
        Closed = "closed",
        /// It waits to be deleted.
        Forgotten = "forgotten",
    }

    /// A request to the backend.
    StoreOperation = "operation" {
        /// Writes the end of a file, and syncs it.
        Append = "append",
        /// Copies an object.
        Copy = "copy",
        /// Deletes a file.
        Delete = "delete",
        /// Reads bytes.
        Get = "get",
        /// Asks for a length.
        Head = "head",
        /// Lists files.
        List = "list",
        /// Gives a multipart upload up.
        MultipartAbort = "multipart_abort",
        /// Makes an object of parts.
        MultipartComplete = "multipart_complete",
        /// Begins a multipart upload.
        MultipartCreate = "multipart_create",
        /// Uploads a part.
        MultipartPart = "multipart_part",
        /// Gives a range of a file back to the disk.
        Punch = "punch",
        /// Creates a file.
        Put = "put",
        /// Closes a file that its writer has open, or takes it from a writer that is gone.
        Release = "release",
    }

    /// The purpose of a request to the backend, or of a disk.
    Purpose = "of" {
        /// Physical files.
        Data = "data",
        /// The catalog.
        Catalog = "catalog",
    }

    /// Why a client and a door did not shake hands.
    HandshakeFailure = "reason" {
        /// The client refused: it does not trust the certificate, most likely.
        Alert = "alert",
        /// The connection ended in the middle.
        Broken = "broken",
        /// The client has no certificate, or one that is not good.
        Certificate = "certificate",
        /// A request without TLS.
        Plaintext = "plaintext",
        /// What came is no handshake, or one of other versions.
        Protocol = "protocol",
        /// It took longer than a head may.
        Timeout = "timeout",
    }

    /// A file that may change while the daemon runs.
    Reloadable = "of" {
        /// Certificate, key and authorities of TLS.
        Certificate = "certificate",
        /// Access keys and tokens.
        Keys = "keys",
    }

    /// What came of a file that changed.
    ReloadOutcome = "outcome" {
        /// It is in use.
        Loaded = "loaded",
        /// It cannot be used, the old one stays.
        Refused = "refused",
    }

    /// Why a line is not in the access log.
    AccessLogLoss = "reason" {
        /// Lines came faster than they could be written.
        Behind = "behind",
        /// They could not be written.
        Failed = "failed",
    }

    /// The reason for which a request or a connection was turned away.
    RejectReason = "reason" {
        /// No valid token.
        Auth = "auth",
        /// A body that broke off, or of another length than announced.
        Body = "body",
        /// All connections are taken.
        Connections = "connections",
        /// A checksum that does not match the body.
        Digest = "digest",
        /// The disk is full.
        Disk = "disk",
        /// An error of the daemon.
        Internal = "internal",
        /// No memory for the body.
        Memory = "memory",
        /// The key or signature does not allow it.
        NotAllowed = "not_allowed",
        /// An operation that there is not.
        NotImplemented = "not_implemented",
        /// No request came in time.
        Silent = "silent",
        /// The body came in too slowly.
        Slow = "slow",
        /// S3's `SlowDown`.
        SlowDown = "slow_down",
        /// The answer was taken too slowly.
        SlowReader = "slow_reader",
        /// A read that made no progress lost its hold of the file.
        StalledRead = "stalled_read",
        /// A body, key or header above its limit.
        TooLarge = "too_large",
        /// S3's `ServiceUnavailable`.
        Unavailable = "unavailable",
    }

    /// The way in which a group became durable.
    GroupWrite = "backend" {
        /// Appended to a file.
        Append = "append",
        /// A large segment in a file of its own.
        Big = "big",
        /// An object of its own.
        Object = "object",
    }

    /// Whether a segment could be used again.
    ReuseOutcome = "outcome" {
        /// It could.
        Reused = "reused",
        /// The catalog refused it.
        Refused = "refused",
    }

    /// A step of reading ahead.
    ReadAheadOutcome = "outcome" {
        /// A read needed no request.
        Hit = "hit",
        /// Less than an eighth of a window was used.
        Unused = "unused",
        /// A window was read.
        Window = "window",
    }

    /// The part of reclaiming that bytes belong to.
    ReclaimedBytes = "kind" {
        /// Given back.
        Freed = "freed",
        /// Read to be copied.
        Read = "read",
        /// Written as copies.
        Written = "written",
    }

    /// The way in which a file was given back.
    ReclaimedFiles = "how" {
        /// Nothing in it lived any more.
        DiedWhole = "died_whole",
        /// Its living segments were copied.
        Rewritten = "rewritten",
    }

    /// The reason for which a file is not deleted yet.
    DeleteWait = "why" {
        /// Its grace has not passed.
        Grace = "grace",
        /// It is next in turn.
        Rate = "rate",
        /// It is being read.
        Readers = "readers",
        /// Storage refused to delete it.
        Refused = "refused",
    }

    /// What came of the look at a checkpoint of Flink's that came in.
    AuditOutcome = "outcome" {
        /// Everything that it names is there.
        Complete = "complete",
        /// Something that it names is not there.
        Incomplete = "incomplete",
        /// Its `_metadata` is damaged, or too large.
        Unreadable = "unreadable",
        /// It was not looked at: too many waited, or it was discarded before.
        Skipped = "skipped",
    }

    /// The reason for which a multipart upload was aborted.
    UploadDropReason = "reason" {
        /// It had no request for too long.
        Expired = "expired",
        /// It made room for a new one.
        GaveWay = "gave_way",
    }
}

/// Writes the enum of the operations, whose names in S3 are those of its values.
macro_rules! operations {
    ($($s3:ident)+) => {
        /// The operation that a request asked for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            /// Nothing that is known, such as a request that was refused before it was looked at.
            None,
            /// The native API reads.
            Read,
            /// The native API changes something.
            Write,
            $(#[doc = concat!("S3's `", stringify!($s3), "`.")] $s3,)+
        }

        impl Operation {
            /// The operation of S3 with this name. [`Self::None`] if there is no such operation.
            pub fn of_s3(name: &str) -> Self {
                match name {
                    $(stringify!($s3) => Self::$s3,)+
                    _ => Self::None,
                }
            }
        }

        impl MetricLabel for Operation {
            const NAME: &'static str = "operation";

            fn as_str(self) -> &'static str {
                match self {
                    Self::None => "none",
                    Self::Read => "read",
                    Self::Write => "write",
                    $(Self::$s3 => stringify!($s3),)+
                }
            }
        }
    };
}

// Those that s3s tells apart, also what the door answers with 501.
operations! {
    AbortMultipartUpload
    CompleteMultipartUpload
    CopyObject
    CreateBucket
    CreateBucketMetadataTableConfiguration
    CreateMultipartUpload
    CreateSession
    DeleteBucket
    DeleteBucketAnalyticsConfiguration
    DeleteBucketCors
    DeleteBucketEncryption
    DeleteBucketIntelligentTieringConfiguration
    DeleteBucketInventoryConfiguration
    DeleteBucketLifecycle
    DeleteBucketMetadataTableConfiguration
    DeleteBucketMetricsConfiguration
    DeleteBucketOwnershipControls
    DeleteBucketPolicy
    DeleteBucketReplication
    DeleteBucketTagging
    DeleteBucketWebsite
    DeleteObject
    DeleteObjectTagging
    DeleteObjects
    DeletePublicAccessBlock
    GetBucketAccelerateConfiguration
    GetBucketAcl
    GetBucketAnalyticsConfiguration
    GetBucketCors
    GetBucketEncryption
    GetBucketIntelligentTieringConfiguration
    GetBucketInventoryConfiguration
    GetBucketLifecycleConfiguration
    GetBucketLocation
    GetBucketLogging
    GetBucketMetadataTableConfiguration
    GetBucketMetricsConfiguration
    GetBucketNotificationConfiguration
    GetBucketOwnershipControls
    GetBucketPolicy
    GetBucketPolicyStatus
    GetBucketReplication
    GetBucketRequestPayment
    GetBucketTagging
    GetBucketVersioning
    GetBucketWebsite
    GetObject
    GetObjectAcl
    GetObjectAttributes
    GetObjectLegalHold
    GetObjectLockConfiguration
    GetObjectRetention
    GetObjectTagging
    GetObjectTorrent
    GetPublicAccessBlock
    HeadBucket
    HeadObject
    ListBucketAnalyticsConfigurations
    ListBucketIntelligentTieringConfigurations
    ListBucketInventoryConfigurations
    ListBucketMetricsConfigurations
    ListBuckets
    ListDirectoryBuckets
    ListMultipartUploads
    ListObjectVersions
    ListObjects
    ListObjectsV2
    ListParts
    PostObject
    PutBucketAccelerateConfiguration
    PutBucketAcl
    PutBucketAnalyticsConfiguration
    PutBucketCors
    PutBucketEncryption
    PutBucketIntelligentTieringConfiguration
    PutBucketInventoryConfiguration
    PutBucketLifecycleConfiguration
    PutBucketLogging
    PutBucketMetricsConfiguration
    PutBucketNotificationConfiguration
    PutBucketOwnershipControls
    PutBucketPolicy
    PutBucketReplication
    PutBucketRequestPayment
    PutBucketTagging
    PutBucketVersioning
    PutBucketWebsite
    PutObject
    PutObjectAcl
    PutObjectLegalHold
    PutObjectLockConfiguration
    PutObjectRetention
    PutObjectTagging
    PutPublicAccessBlock
    RestoreObject
    SelectObjectContent
    UploadPart
    UploadPartCopy
    WriteGetObjectResponse
}
