//! Whether writes get on. What waits for too long, or fails each time, is told once, and turns `/readyz` until that is over.
//!
//! Nothing is measured here: every request to storage and every commit says when it begins and how it ends
//! ([`crate::metrics::writes`]); a task looks at that once in a while.
//!
//! While a write waits for longer than [`WriteHealth::bound`], new ones wait for `limits.admission-timeout` and are then
//! refused: they would only join the queue. Where writes fail they fail by themselves; a small file is written and deleted
//! from time to time, so that their end is seen though nobody writes.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::EngineError;
use crate::catalog::Catalog;
use crate::config::{Settings, StoreUrl};
use crate::metrics::Metrics;
use crate::metrics::writes::{Failing, WriteKind};
use crate::model::PhysicalFileId;
use crate::runtime::{Clock, Entropy};
use crate::store::{Capabilities, DataStore, DiskSpace};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A write on a local disk may take so long.
const WAITS_MAX: Duration = Duration::from_secs(10);
/// Writes may fail for so long.
const FAILS_MAX: Duration = Duration::from_secs(10);
/// Between two tries while writes fail and nobody else tries.
const TRY_EVERY: Duration = Duration::from_secs(5);
/// Where nothing is tried, writes are taken for possible when the last failure is so long ago: the next one shows.
const FAILURE_LASTS: Duration = Duration::from_secs(30);

/// What keeps writes from being answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WriteTrouble {
    /// One waits, and with it all that come after it.
    Waits(String),
    /// They all fail.
    Fails(String),
}

impl WriteTrouble {
    fn text(&self) -> &str {
        match self {
            Self::Waits(text) | Self::Fails(text) => text,
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Whether writes get on. Clones share it.
#[derive(Debug, Clone)]
pub struct WriteHealth(Arc<HealthShared>);

#[derive(Debug)]
struct HealthShared {
    metrics: Metrics,
    bound: Duration,
    trouble: watch::Sender<Option<WriteTrouble>>,
}

impl WriteHealth {
    /// Of writes to this store and its catalog; none is in trouble yet.
    pub fn new(metrics: Metrics, can: Capabilities, settings: &Settings) -> Self {
        // Where requests are repeated, a write that waits may yet succeed.
        let on_disk = can.appends && !can.leases;
        let store = &settings.store;
        let repeats = match &settings.catalog.url {
            None | Some(StoreUrl::File(_)) if on_disk => Duration::ZERO,
            _ => store.request_timeout.saturating_add(store.retry_timeout),
        };
        let (bound, trouble) = (WAITS_MAX.saturating_add(repeats), watch::Sender::new(None));
        Self(Arc::new(HealthShared { metrics, bound, trouble }))
    }

    /// The time for which a write may wait.
    pub fn bound(&self) -> Duration {
        self.0.bound
    }

    /// What keeps writes from being answered, if anything does.
    pub fn trouble(&self) -> Option<String> {
        self.0.trouble.borrow().as_ref().map(|trouble| trouble.text().to_owned())
    }

    /// Lets a new write in, at once unless others wait for too long already; then for `patience` at most.
    ///
    /// # Errors
    /// [`EngineError::Stalled`].
    pub async fn admit(&self, patience: Duration) -> Result<(), EngineError> {
        let waits = |trouble: &Option<WriteTrouble>| matches!(trouble, Some(WriteTrouble::Waits(_)));
        if !waits(&self.0.trouble.borrow()) {
            return Ok(());
        }
        let mut trouble = self.0.trouble.subscribe();
        match tokio::time::timeout(patience, trouble.wait_for(|trouble| !waits(trouble))).await {
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Stalled(self.trouble().unwrap_or_default())),
        }
    }

    /// Brings the gauge up to date.
    pub fn refresh(&self) {
        let oldest = self.0.metrics.writes().oldest(Clock::instant());
        self.0.metrics.write_wait.set(oldest.map_or(0.0, |(_, waits)| waits.as_secs_f64()));
    }

    /// Looks until `stop`.
    pub(super) async fn watch(self, probe: WriteProbe, stop: CancellationToken) {
        let (mut tables_told, mut tried) = (false, Clock::instant());
        // One that hangs is in progress, and told as such; another one would hang, too.
        let mut trying: Option<BoxFuture<'_, ()>> = None;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = OptionFuture::from(trying.as_mut()).map(drop), if trying.is_some() => {
                    (trying, tried) = (None, Clock::instant());
                }
            }
            let now = Clock::instant();
            self.look(now);
            self.look_at_tables(now, &mut tables_told);
            let fails = self.0.metrics.writes().failing(WriteKind::Data, now);
            let fails = fails.is_some_and(|failing| failing.last < FAILURE_LASTS);
            if fails && trying.is_none() && now.duration_since(tried) >= TRY_EVERY {
                trying = Some(probe.write().boxed());
            }
        }
    }

    fn look(&self, now: Instant) {
        self.refresh();
        let found = self.find(now);
        let before = self.0.trouble.borrow().clone();
        match (&before, &found) {
            (None, None) => return,
            (Some(before), Some(found)) if before.is_like(found) => {}
            (_, Some(found)) => tracing::warn!("no writes: {}", found.text()),
            (Some(_), None) => tracing::info!("writes go on"),
        }
        self.0.trouble.send_replace(found);
    }

    fn find(&self, now: Instant) -> Option<WriteTrouble> {
        let writes = self.0.metrics.writes();
        if let Some((kind, waits)) = writes.oldest(now)
            && waits >= self.0.bound
        {
            let cause = |kind| Some(format!("; one failed with: {}", writes.failed_within(kind, now, FAILURE_LASTS)?));
            // What is written in the end is what a commit waits for.
            let because = match kind {
                WriteKind::CommitTaken | WriteKind::CommitDurable => {
                    cause(WriteKind::CatalogObjects).or_else(|| cause(WriteKind::CatalogLog))
                }
                kind => cause(kind),
            };
            let because = because.unwrap_or_default();
            return Some(WriteTrouble::Waits(format!("{} for {} s{because}", waits_for(kind), waits.as_secs())));
        }
        let Failing { lasts, last, cause } = writes.failing(WriteKind::Data, now)?;
        (lasts >= FAILS_MAX && last < FAILURE_LASTS).then(|| {
            WriteTrouble::Fails(format!("each one has failed for {} s, the last one with: {cause}", lasts.as_secs()))
        })
    }

    /// Tables of the catalog that cannot be written stop commits only later, when memory for them is used up.
    fn look_at_tables(&self, now: Instant, told: &mut bool) {
        let failing = self.0.metrics.writes().failing(WriteKind::CatalogObjects, now);
        let failing = failing.filter(|failing| failing.lasts >= FAILS_MAX);
        let before = std::mem::replace(told, failing.is_some());
        match failing {
            Some(Failing { lasts, cause, .. }) if !before => tracing::warn!(
                seconds = lasts.as_secs(),
                error = cause,
                "the catalog's objects cannot be written: commits stop once catalog.unflushed-max bytes wait for that"
            ),
            None if before => tracing::info!("the catalog's objects are written again"),
            _ => {}
        }
    }
}

fn waits_for(kind: WriteKind) -> &'static str {
    match kind {
        WriteKind::Data => "storage has not answered a write of a data file",
        WriteKind::CatalogLog => "storage has not answered a write of the catalog's log",
        WriteKind::CatalogObjects => "storage has not answered a write of the catalog",
        WriteKind::CommitTaken => "a commit has waited for the catalog's objects to be written",
        WriteKind::CommitDurable => "a commit of the catalog has waited to become durable",
    }
}

/// Tries whether a data file can be written.
pub(super) struct WriteProbe {
    pub data: DataStore,
    pub catalog: Catalog,
    pub entropy: Entropy,
    pub space: DiskSpace,
}

impl WriteProbe {
    /// Writes a small file and deletes it; how that ends is counted where every write is. A crash leaves it to the sweep. Not
    /// where a file that fails stays its writer's.
    async fn write(&self) {
        // On a full disk it would take what others need.
        if self.data.capabilities().leases || self.space.is_full() {
            return;
        }
        let id = PhysicalFileId::new(None, self.catalog.epoch(), self.entropy.ulid());
        if let Err(error) = self.data.try_write(id).await {
            tracing::debug!(error = crate::error::chain(&error), "a write that was tried failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::StoreOperation;

    fn health() -> WriteHealth {
        let (bound, trouble) = (WAITS_MAX, watch::Sender::new(None));
        WriteHealth(Arc::new(HealthShared { metrics: Metrics::new(), bound, trouble }))
    }

    #[tokio::test(start_paused = true)]
    async fn new_writes_are_refused_after_a_while_as_long_as_one_waits_for_too_long() {
        let (health, begun) = (health(), Instant::now());
        let metrics = health.0.metrics.clone();
        let stuck = metrics.writes().begin(WriteKind::CommitTaken, begun);
        metrics.writes().failed(WriteKind::CatalogObjects, StoreOperation::Put, begun, "not permitted".to_owned());
        let patience = Duration::from_secs(5);
        health.look(begun + WAITS_MAX / 2);
        assert!(health.admit(patience).await.is_ok() && health.trouble().is_none());

        health.look(begun + WAITS_MAX);

        let why = health.trouble().unwrap();
        assert!(why.contains("a commit") && why.contains("10 s") && why.contains("not permitted"), "{why}");
        let refused = health.admit(patience).await.unwrap_err();
        assert!(refused.to_string().contains("not permitted"), "{refused}");
        // One that is let in as soon as it is over.
        drop(stuck);
        let (admitted, ()) = tokio::join!(health.admit(patience), async { health.look(begun + WAITS_MAX * 2) });
        assert!(admitted.is_ok() && health.trouble().is_none());
    }

    #[test]
    fn writes_that_all_fail_are_told_until_one_succeeds_or_nobody_tries_any_more() {
        let (health, begun) = (health(), Instant::now());
        let writes = health.0.metrics.writes();
        writes.failed(WriteKind::Data, StoreOperation::Put, begun, "read-only".to_owned());
        health.look(begun + FAILS_MAX / 2);
        assert_eq!(health.trouble(), None, "it may be one alone");

        writes.failed(WriteKind::Data, StoreOperation::Put, begun + FAILS_MAX, "read-only".to_owned());
        health.look(begun + FAILS_MAX);
        assert!(health.trouble().unwrap().contains("read-only"));
        health.look(begun + FAILS_MAX + FAILURE_LASTS);
        assert_eq!(health.trouble(), None);

        writes.failed(WriteKind::Data, StoreOperation::Put, begun + FAILURE_LASTS * 2, "read-only".to_owned());
        health.look(begun + FAILURE_LASTS * 2);
        assert!(health.trouble().is_some());
        writes.succeeded(WriteKind::Data, StoreOperation::Put);
        health.look(begun + FAILURE_LASTS * 2);
        assert_eq!(health.trouble(), None);
    }
}
