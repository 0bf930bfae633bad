//! Values that are one of a few words.

use std::fmt;
use std::str::FromStr;

use super::values::{ValueError, WrittenValue};

/// An enum that is written as one of a few words, in any case, `-` and `_` being the same.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every choice, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that stands for this choice.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl WrittenValue for $name {
            const EXPECTED: &'static str = concat!("one of" $(, " `", $text, "`")+);
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let found = Self::ALL.iter().find(|choice| same_word(choice.as_str(), text.trim()));
                found.copied().ok_or(ValueError::Unexpected { expected: Self::EXPECTED })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// Whether `a` and `b` are the same word to a user.
fn same_word(a: &str, b: &str) -> bool {
    let plain = |c: u8| {
        if c == b'-' { b'_' } else { c.to_ascii_lowercase() }
    };
    a.bytes().map(plain).eq(b.bytes().map(plain))
}

choices! {
    /// The guarantee that a job wants from its checkpoints.
    CheckpointMode {
        /// Every record counts once.
        ExactlyOnce = "EXACTLY_ONCE",
        /// A record may count again after a restore.
        AtLeastOnce = "AT_LEAST_ONCE",
    }
}

choices! {
    /// The fate of a job's checkpoints when it ends. Checkpoints of a suspended job are always kept.
    Retention {
        /// Deleted when the job ends, however it ends.
        NoExternalizedCheckpoints = "NO_EXTERNALIZED_CHECKPOINTS",
        /// Kept when the job fails, deleted when it is cancelled.
        DeleteOnCancellation = "DELETE_ON_CANCELLATION",
        /// Kept when the job fails or is cancelled.
        RetainOnCancellation = "RETAIN_ON_CANCELLATION",
    }
}

choices! {
    /// Where Flink would keep a checkpoint's metadata.
    CheckpointStorage {
        /// In the job manager's memory.
        JobManager = "jobmanager",
        /// Below `execution.checkpointing.dir`.
        FileSystem = "filesystem",
    }
}

choices! {
    /// Who may share a physical file, from narrow to wide.
    Boundary {
        /// One subtask's segments only.
        Subtask = "subtask",
        /// The subtasks of one task manager.
        TaskManager = "task-manager",
        /// The task managers of one job.
        Job = "job",
        /// All jobs of this daemon.
        Daemon = "daemon",
    }
}

choices! {
    /// When an object is durable whose name is temporary by its engine's contract.
    TemporaryNames {
        /// With its rename: until then it is in memory alone, for `merging.lazy-linger` at most.
        WithRename = "with-rename",
        /// Before its put is answered, like all others.
        AtOnce = "at-once",
    }
}

choices! {
    /// When a delete of an engine's state is durable.
    DeleteDurability {
        /// Before it is answered.
        Commit = "commit",
        /// Before it is answered on a local disk, in `merging.delete-ledger`; on storage with the next commit of anything, after
        /// `merging.lazy-linger` at most.
        Ledger = "ledger",
        /// With the next commit of anything, after `merging.lazy-linger` at most.
        Lazy = "lazy",
    }
}

choices! {
    /// The ETag of an object at the S3 door.
    EtagKind {
        /// The MD5 of the content, as S3 does for a single PUT.
        Md5 = "md5",
        /// A token without meaning: saves the CPU time of MD5.
        Opaque = "opaque",
    }
}

choices! {
    /// What an access key may do with what it may touch.
    KeyAccess {
        /// Everything.
        ReadWrite = "read-write",
        /// Read and list.
        Read = "read",
    }
}

choices! {
    /// The doors that speak TLS.
    TlsDoors {
        /// Both TCP doors.
        Both = "both",
        /// The S3 door.
        S3 = "s3",
        /// The native API, health and metrics.
        Api = "api",
    }
}

choices! {
    /// What is asked of a client's certificate.
    ClientAuth {
        /// None is asked for.
        Off = "off",
        /// One is asked for, and checked if it is sent.
        Optional = "optional",
        /// Who has none is refused.
        Required = "required",
    }
}

choices! {
    /// Whether local files are written past the page cache.
    DirectIo {
        /// Where the file system supports it.
        Auto = "auto",
        /// Always; a file system without it is refused at start.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choices! {
    /// Who re-uploads live segments when too much of their files is dead.
    ReclaimMode {
        /// The daemon.
        Server = "server",
        /// The workers, told by `POST ../reuse` which handles they may no longer reuse.
        Advise = "advise",
        /// Nobody.
        Off = "off",
    }
}

choices! {
    /// The form of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_in_any_case_and_printed_in_one() {
        for text in ["EXACTLY_ONCE", "exactly_once", "exactly-once", " Exactly-Once "] {
            assert_eq!(text.parse(), Ok(CheckpointMode::ExactlyOnce), "{text}");
        }
        assert_eq!("TASK_MANAGER".parse::<Boundary>().unwrap().to_string(), "task-manager");
    }

    #[test]
    fn an_unknown_word_is_answered_with_all_known_ones() {
        let error = "host".parse::<Boundary>().unwrap_err();

        assert_eq!(error.to_string(), "expected one of `subtask` `task-manager` `job` `daemon`");
    }
}
