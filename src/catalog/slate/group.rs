//! Group commit on an object store: each flush is a request, and a new object.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use slatedb::Db;
use slatedb::config::CloseOptions;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Haste;
use super::successor::Successor;

/// Makes writes on an object store durable: one flush at a time, each for all that came before it.
pub(super) struct GroupCommit {
    bells: Arc<Bells>,
    cancel: CancellationToken,
    groups: Arc<AtomicU64>,
    successor: Arc<Successor>,
    _task: JoinHandle<()>,
}

impl GroupCommit {
    /// Starts the task. It ends, and `db` with it, when the result is dropped or there is a successor.
    ///
    /// A batch that can wait does so for the first time of `company_wait` after each such batch, together for the
    /// second.
    pub(super) fn start(db: Db, company_wait: (Duration, Duration), successor: Successor) -> Self {
        let successor = Arc::new(successor);
        let bells = Arc::new(Bells::default());
        let cancel = CancellationToken::new();
        let groups = Arc::new(AtomicU64::new(0));
        #[expect(
            clippy::disallowed_methods,
            reason = "the task ends with the journal, which waits for it or aborts it"
        )]
        let task = tokio::spawn({
            let flushes = flush_groups(
                db.clone(),
                bells.clone(),
                company_wait,
                cancel.clone(),
                groups.clone(),
                successor.clone(),
            );
            let successor = successor.clone();
            async move {
                let ended = async {
                    tokio::select! {
                        ended = flushes => ended,
                        () = successor.watch() => Ok(()),
                    }
                };
                match AssertUnwindSafe(ended).catch_unwind().await {
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
        Self { bells, cancel, groups, successor, _task: task }
    }

    /// Asks for a flush of everything written so far.
    pub(super) fn wake(&self, haste: Haste) {
        match haste {
            Haste::Now => self.bells.now.notify_one(),
            Haste::Soon => self.bells.soon.notify_one(),
        }
    }

    /// Who may have taken over.
    pub(super) fn successor(&self) -> &Arc<Successor> {
        &self.successor
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

#[derive(Default)]
struct Bells {
    now: Notify,
    soon: Notify,
}

async fn flush_groups(
    db: Db,
    bells: Arc<Bells>,
    company_wait: (Duration, Duration),
    cancel: CancellationToken,
    groups: Arc<AtomicU64>,
    successor: Arc<Successor>,
) -> Result<(), slatedb::Error> {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            // A write during the flush leaves a permit, so the next turn comes at once.
            () = bells.now.notified() => {}
            () = bells.soon.notified() => wait_for_company(&bells, company_wait, &cancel).await,
        }
        // The flush is for those as well who can wait.
        bells.soon.notified().now_or_never();
        db.flush().await?;
        successor.wrote(groups.fetch_add(1, Ordering::Relaxed) + 1);
    }
}

/// Waits until a batch is urgent, or no other has come for a while.
async fn wait_for_company(bells: &Bells, (gap, most): (Duration, Duration), cancel: &CancellationToken) {
    let company = async { while tokio::time::timeout(gap, bells.soon.notified()).await.is_ok() {} };
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = bells.now.notified() => {}
        () = company => {}
        () = tokio::time::sleep(most) => {}
    }
}
