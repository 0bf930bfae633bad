//! Ends a transfer early, and knows the uploads that it has begun.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Ends a transfer early, and knows the uploads that it has begun.
#[derive(Debug, Default)]
pub struct TransferControl {
    stop: CancellationToken,
    /// The files whose uploads are neither complete nor given up.
    uploads: Mutex<BTreeSet<String>>,
}

impl TransferControl {
    /// Ends the transfer: what is under way is done, a piece of each file at most, uploads are given up, and nothing is begun.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether it is to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The files whose uploads were begun, and are neither complete nor given up.
    pub fn uploads_left(&self) -> Vec<String> {
        self.uploads.lock().iter().cloned().collect()
    }

    pub(super) fn upload_begins(&self, file: String) {
        self.uploads.lock().insert(file);
    }

    pub(super) fn upload_ended(&self, file: &str) {
        self.uploads.lock().remove(file);
    }
}
