//! Stops the log's writer from outside: SlateDB has taken it.

use std::sync::Arc;

use parking_lot::Mutex;

type StopWriter = Arc<dyn Fn() + Send + Sync>;

/// Lets the owner of the database stop the writer.
#[derive(Default)]
pub(super) struct AbortHandle(Mutex<Option<StopWriter>>);

crate::runtime::opaque_debug!(AbortHandle);

impl AbortHandle {
    /// `stop` stops the writer from here on, if there is still one.
    pub(super) fn arm(&self, stop: StopWriter) {
        *self.0.lock() = Some(stop);
    }

    pub(super) fn abort(&self) {
        // Called without the lock: it takes the writer's own.
        let stop = self.0.lock().clone();
        if let Some(stop) = stop {
            stop();
        }
    }
}
