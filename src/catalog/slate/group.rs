//! Group commit on an object store: each flush is a request, and a new object.
//!
//! Clients send deletes one by one from a number of threads, each the next one when the one before was answered. So a group
//! of deletes waits until as many have come as usual ([`UsualDeletes`]): they are the whole that those threads have to say.
//! One thread alone waits for nobody. What nobody waits for does not ask for a flush: it is part of the next one, and gets one of
//! its own only if none comes for a while.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use slatedb::Db;
use slatedb::config::CloseOptions;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Haste;
use super::settings::CompanyWait;
use super::successor::Successor;
use super::usual::UsualDeletes;
use crate::runtime::Clock;

/// Makes writes on an object store durable: one flush at a time, each for all that came before it.
pub(super) struct GroupCommit {
    bells: Arc<Bells>,
    cancel: CancellationToken,
    successor: Arc<Successor>,
    _task: JoinHandle<()>,
}

impl GroupCommit {
    /// Starts the task. It ends, and `db` with it, when the result is dropped or there is a successor.
    ///
    /// Batches that can wait do so as `wait` says.
    pub(super) fn start(db: Db, wait: CompanyWait, successor: Successor) -> Self {
        let successor = Arc::new(successor);
        let bells = Arc::new(Bells::default());
        let cancel = CancellationToken::new();
        #[expect(
            clippy::disallowed_methods,
            reason = "the task ends with the journal, which waits for it or aborts it"
        )]
        let task = tokio::spawn({
            let flushes = flush_groups(db.clone(), Arc::clone(&bells), wait, cancel.clone(), Arc::clone(&successor));
            let successor = Arc::clone(&successor);
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
        Self { bells, cancel, successor, _task: task }
    }

    /// Asks for a flush of everything written so far.
    pub(super) fn wake(&self, haste: Haste) {
        match haste {
            Haste::Now => self.bells.now.notify_one(),
            Haste::Soon => self.bells.soon.notify_one(),
            Haste::Deletes(deletes) => {
                // Counted first: who is woken sees it.
                self.bells.deletes.fetch_add(deletes, Ordering::Relaxed);
                self.bells.delete.notify_one();
            }
            Haste::Lazy => self.bells.lazy.notify_one(),
        }
    }

    /// The look-out for an owner who may have taken over.
    pub(super) fn successor(&self) -> &Arc<Successor> {
        &self.successor
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
    delete: Notify,
    lazy: Notify,
    /// Deletes since the last flush.
    deletes: AtomicUsize,
}

async fn flush_groups(
    db: Db,
    bells: Arc<Bells>,
    wait: CompanyWait,
    cancel: CancellationToken,
    successor: Arc<Successor>,
) -> Result<(), slatedb::Error> {
    let mut groups = 0;
    let mut usual_deletes = UsualDeletes::default();
    // When what nobody waits for is flushed by itself.
    let mut lazy_until = None;
    loop {
        let mut in_vain = false;
        tokio::select! {
            // An urgent batch before one that can wait, which would make it wait too.
            biased;
            () = cancel.cancelled() => return Ok(()),
            // A write during the flush leaves a permit, so the next turn comes at once.
            () = bells.now.notified() => {}
            () = bells.soon.notified() => bells.unless_urgent(bells.company(&wait), &cancel).await,
            () = bells.delete.notified() => {
                let expected = usual_deletes.expected();
                let company = async { in_vain = !bells.company_of_deletes(&wait, expected).await };
                bells.unless_urgent(company, &cancel).await;
            }
            () = until(lazy_until) => {}
            () = bells.lazy.notified(), if lazy_until.is_none() => {
                lazy_until = Some(Clock::instant() + wait.lazy);
                continue;
            }
        }
        // The flush is for those as well who can wait. Their permits are taken before it: one who comes during the flush
        // leaves another, for the next.
        bells.soon.notified().now_or_never();
        bells.delete.notified().now_or_never();
        bells.lazy.notified().now_or_never();
        lazy_until = None;
        usual_deletes.group(bells.deletes.swap(0, Ordering::Relaxed), in_vain);
        db.flush().await?;
        groups += 1;
        successor.wrote(groups);
    }
}

/// Waits until then, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Bells {
    /// Waits for what can wait, until something else is urgent.
    async fn unless_urgent(&self, company: impl Future<Output = ()>, cancel: &CancellationToken) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.now.notified() => {}
            () = company => {}
        }
    }

    /// Waits until no other batch has come for a while.
    async fn company(&self, wait: &CompanyWait) {
        let company = async { while tokio::time::timeout(wait.gap, self.soon.notified()).await.is_ok() {} };
        tokio::select! {
            () = company => {}
            () = tokio::time::sleep(wait.most) => {}
        }
    }

    /// Waits until there are as many deletes as expected, and no other has come for a while. False if they did not come in
    /// time.
    async fn company_of_deletes(&self, wait: &CompanyWait, expected: usize) -> bool {
        let company = async {
            loop {
                let all_here = self.deletes.load(Ordering::Relaxed) >= expected;
                let gap = if all_here { wait.gap } else { wait.deletes };
                if tokio::time::timeout(gap, self.delete.notified()).await.is_err() {
                    return all_here;
                }
            }
        };
        tokio::select! {
            all_came = company => all_came,
            () = self.soon.notified() => {
                self.company(wait).await;
                true
            }
            () = tokio::time::sleep(wait.deletes) => self.deletes.load(Ordering::Relaxed) >= expected,
        }
    }
}
