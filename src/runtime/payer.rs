//! Makes bytes be paid by the connection, and by the access key, whose request is being worked on.
//!
//! A [`Payer`] is bound to the task, not handed through every call: whatever a request sets off while its future or the
//! body of its answer is polled, pays with it. Work outside any request has none, and no share to keep to. A task that a
//! request starts and that pays takes the payer along with [`Payer::inherit`].

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

tokio::task_local! {
    static PAYER: Payer;
}

/// Bytes of a budget that one holder may have at a time.
#[derive(Debug, Clone)]
pub struct Share {
    free: Arc<Semaphore>,
    total: u32,
}

impl Share {
    /// A share of `total` bytes.
    pub fn new(total: u64) -> Self {
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        u64::from(self.total) - self.free.available_permits() as u64
    }

    /// Takes bytes of the share. More than the share takes all of it: it has to wait for itself alone, but is not refused.
    pub(super) async fn take(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_many_owned(bytes.min(self.total)).await.ok()
    }

    pub(super) fn try_take(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_many_owned(bytes.min(self.total)).ok()
    }
}

/// The payer of what a request takes.
#[derive(Debug, Clone)]
pub struct Payer {
    connection: Share,
    /// Known once the request's signature is.
    key: Arc<OnceLock<Share>>,
}

impl Payer {
    /// A request on a connection.
    pub fn new(connection: Share) -> Self {
        Self { connection, key: Arc::default() }
    }

    /// The payer of the work right here.
    pub fn current() -> Option<Self> {
        PAYER.try_with(Clone::clone).ok()
    }

    /// Takes from the share of the access key, too, for the current request from here on.
    pub fn also(key: &Share) {
        if let Some(payer) = Self::current() {
            payer.key.get_or_init(|| key.clone());
        }
    }

    /// `future` with this payer.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        PAYER.scope(self.clone(), future)
    }

    /// `poll` with this payer.
    pub fn sync_scope<T>(&self, poll: impl FnOnce() -> T) -> T {
        PAYER.sync_scope(self.clone(), poll)
    }

    /// `future` with the payer that there is here, wherever it is polled.
    pub async fn inherit<F: Future>(payer: Option<Self>, future: F) -> F::Output {
        match payer {
            Some(payer) => payer.scope(future).await,
            None => future.await,
        }
    }

    pub(super) fn into_shares(self) -> impl Iterator<Item = Share> {
        [Some(self.connection), self.key.get().cloned()].into_iter().flatten()
    }
}
