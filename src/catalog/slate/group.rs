//! Group commit on an object store.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use slatedb::Db;
use slatedb::config::CloseOptions;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Makes writes on an object store durable: one flush at a time, each for all that came before it.
pub(super) struct GroupCommit {
    wake: Arc<Notify>,
    cancel: CancellationToken,
    groups: Arc<AtomicU64>,
    _task: JoinHandle<()>,
}

impl GroupCommit {
    /// Starts the task. It ends, and `db` with it, when the result is dropped.
    pub(super) fn start(db: Db) -> Self {
        let wake = Arc::new(Notify::new());
        let cancel = CancellationToken::new();
        let groups = Arc::new(AtomicU64::new(0));
        #[expect(
            clippy::disallowed_methods,
            reason = "the task ends with the journal, which waits for it or aborts it"
        )]
        let task = tokio::spawn({
            let flushes = flush_groups(db.clone(), wake.clone(), cancel.clone(), groups.clone());
            async move {
                match AssertUnwindSafe(flushes).catch_unwind().await {
                    Ok(Ok(())) => {}
                    // Those who wait, or write next, get this error and report it.
                    Ok(Err(error)) => tracing::debug!(%error, "flushing the journal ended"),
                    Err(_) => tracing::error!("flushing the journal panicked"),
                }
                // Whoever waits must not wait for ever, and a dropped journal not keep its tasks.
                let options = CloseOptions { flush_type: None };
                if let Err(error) = db.close_with_options(options).await {
                    tracing::debug!(%error, "the journal was closed already");
                }
            }
        });
        Self { wake, cancel, groups, _task: task }
    }

    /// Asks for a flush of everything written so far.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// How many flushes there were.
    pub(super) fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn flush_groups(
    db: Db,
    wake: Arc<Notify>,
    cancel: CancellationToken,
    groups: Arc<AtomicU64>,
) -> Result<(), slatedb::Error> {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            // A write during the flush leaves a permit, so the next turn comes at once.
            () = wake.notified() => {}
        }
        db.flush().await?;
        groups.fetch_add(1, Ordering::Relaxed);
    }
}
