//! Files that may change while the daemon runs.
//!
//! They are looked at once in a while, and when somebody says so; what is new in them is used from then on. A look compares
//! contents: a time or an inode says nothing where a volume swaps links.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::access_log::AccessLog;
use crate::api::keys::KeyRing;
use crate::api::tls::Tls;

/// What is looked at.
pub(super) struct ReloadedFiles {
    pub tls: Option<Tls>,
    pub keys: KeyRing,
    /// Opened again when it is said.
    pub log: Option<AccessLog>,
    /// `None`: only when it is said.
    pub every: Option<Duration>,
}

impl ReloadedFiles {
    /// Looks until `stop`.
    pub(super) async fn watch(self, now: Arc<Notify>, stop: CancellationToken) {
        loop {
            let pause = async {
                match self.every {
                    Some(every) => tokio::time::sleep(every).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
                () = now.notified() => self.log.iter().for_each(AccessLog::reopen),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look() => {}
            }
        }
    }

    async fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.reload().await;
        }
        self.keys.reload().await;
    }
}
