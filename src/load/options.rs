//! The options of a bench.

use std::path::PathBuf;
use std::time::Duration;

use super::workload::LoadShape;

/// A door of the daemon, as it is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The native API: `POST /v1/jobs/{job}/segments`.
    Native,
    /// The S3 door: `PutObject` with SigV4 and `UNSIGNED-PAYLOAD`.
    S3,
    /// The S3 door: `PutObject` with SigV4 over the SHA-256 of the body.
    S3Sha256,
}

impl Door {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::S3 => "s3",
            Self::S3Sha256 => "s3-sha256",
        }
    }
}

/// Another S3 server, to be put beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name in reports.
    pub name: String,
    /// Its addresses, `http://HOST:PORT`; the clients are dealt out to them.
    pub urls: Vec<String>,
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// A bucket that exists; what is put into it stays there.
    pub bucket: String,
    /// Its processes on this machine, if their CPU time and memory are to be read.
    pub pids: Vec<u32>,
}

/// The options of a bench.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The `esker` program that is started.
    pub program: PathBuf,
    /// Sizes of segments in bytes.
    pub sizes: Vec<u64>,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Doors of the daemon.
    pub doors: Vec<Door>,
    /// Other servers.
    pub against: Vec<External>,
    /// Rounds of each cell.
    pub rounds: usize,
    /// Time for which one target is driven in one round.
    pub run: Duration,
    /// One target in one round gets no more bytes than this; bounds the disk space that is used.
    pub run_bytes_max: u64,
    /// Whether to add segments of 64 MiB, of 1 and 4 clients.
    pub big: bool,
    /// Whose segments they are.
    pub shape: LoadShape,
    /// Seed of bodies and names.
    pub seed: u64,
    /// The folder below which the daemons' folders are made.
    pub data_dir: PathBuf,
    /// Keys of the daemon's configuration.
    pub set: Vec<(String, String)>,
}
