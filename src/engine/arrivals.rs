//! `_metadata` that came in through the S3 door, on their way to whoever compares them with what is there
//! ([`super::audit`]).

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::merged::OncePerJob;
use crate::flink::METADATA;

/// Arrivals that wait; more are not looked at.
const WAITING_MAX: usize = 256;

/// A `_metadata` that comes in.
#[derive(Debug)]
pub(super) struct Arrival {
    pub bucket: String,
    pub key: String,
}

impl Arrival {
    /// The object that is put under a key, if it is one by its name.
    pub(super) fn of(bucket: &str, key: &str) -> Option<Self> {
        is_metadata(key).then(|| Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// Whether the object under a key is a `_metadata`, by its name.
pub(super) fn is_metadata(key: &str) -> bool {
    key.rsplit('/').next() == Some(METADATA)
}

/// What audits have in common.
#[derive(Debug)]
pub(super) struct Audits {
    pub arrivals: mpsc::Sender<Arrival>,
    /// Taken by the task that looks.
    pub inbox: Mutex<Option<mpsc::Receiver<Arrival>>>,
    /// Jobs that were warned of.
    pub warned: OncePerJob,
    /// Held by whoever has a `_metadata` in memory. A `tokio` mutex, because the others wait while storage works.
    pub turn: tokio::sync::Mutex<()>,
    /// Held by whoever looks for orphans, likewise.
    pub survey: tokio::sync::Mutex<()>,
}

impl Default for Audits {
    fn default() -> Self {
        let (arrivals, inbox) = mpsc::channel(WAITING_MAX);
        let inbox = Mutex::new(Some(inbox));
        let (turn, survey) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        Self { arrivals, inbox, warned: OncePerJob::default(), turn, survey }
    }
}
