//! The clock that SlateDB sees, and the newest stamp that it has on record.
//!
//! SlateDB refuses to write with a smaller tick than the last one, to add a table or a compaction whose name is older than
//! those there are, and a refusal closes the database. All of them are stamps of the owner before, whose clock may have been
//! ahead. So an open first raises our clock to what is on record: before the database is built, since it may write a table
//! while it replays its log, and again once older owners are shut out, since until then they go on writing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::ObjectStore;
use object_store::path::Path;
use slatedb::admin::Admin;
use slatedb::compactor::CompactionStatus;
use slatedb::{VersionedManifest, WalFile, WalReader};
use slatedb_common::clock::{SystemClock, SystemClockTicker};

use super::JournalError;
use crate::model::Millis;
use crate::runtime::Clock;

/// Our clock, as SlateDB wants it.
#[derive(Debug)]
pub(super) struct Ticks(pub(super) Clock);

impl SystemClock for Ticks {
    fn now(&self) -> DateTime<Utc> {
        let millis = i64::try_from(self.0.now().0).unwrap_or(i64::MAX);
        DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    fn sleep<'a>(&'a self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn ticker<'a>(&'a self, duration: Duration) -> SystemClockTicker<'a> {
        SystemClockTicker::new(self, duration)
    }
}

/// The places where stamps of one database are found.
pub(super) struct OnRecord {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    admin: Admin,
    clock: Clock,
    /// How old the last word of a compaction has to be.
    silence: Duration,
}

impl OnRecord {
    /// Looks at the database below `prefix`, and raises `clock`.
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path, clock: Clock) -> Self {
        let admin = Admin::builder(prefix.clone(), Arc::clone(&store)).build();
        Self { store, prefix, admin, clock, silence: Duration::ZERO }
    }

    /// The same where the owner before is gone: its compactions are given up, of which each would have to have been silent for
    /// longer than `silence`.
    pub(super) fn with_silence(self, silence: Duration) -> Self {
        Self { silence: silence + Duration::from_millis(1), ..self }
    }

    /// Raises the clock to the stamps of tables and compactions. Returns whether there were later ones than before.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` if storage does not tell.
    pub(super) async fn raise_to_tables(&self) -> Result<bool, JournalError> {
        let (manifest, compactions) =
            futures::future::join(self.admin.read_manifest(None), self.admin.read_compactions(None)).await;
        let manifest = manifest.map_err(JournalError::at_open)?;
        let compactions = compactions.map_err(JournalError::at_open)?;
        let compactions = compactions.iter().flat_map(|compactions| compactions.recent_compactions());
        let silence = u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX);
        let stamps = compactions.map(|compaction| {
            let worker = compaction.worker().filter(|_| compaction.status() == CompactionStatus::Running);
            let silent = worker.map_or(0, |worker| worker.last_heartbeat_ms.saturating_add(silence));
            compaction.id().timestamp_ms().max(silent)
        });
        let scheduled = stamps.max();
        let newest = manifest.as_ref().map(newest_of_tables).max(scheduled).unwrap_or(0);
        let later = Millis(newest) > self.clock.now();
        self.clock.raise(Millis(newest));
        Ok(later)
    }

    /// Raises the clock to the last tick in SlateDB's own log. Ticks do not go back, so only its end has to be read.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` if storage does not tell.
    pub(super) async fn raise_to_log(&self, manifest: &VersionedManifest) -> Result<(), JournalError> {
        let log = WalReader::new(self.prefix.clone(), Arc::clone(&self.store));
        let files = log.list(manifest.replay_after_wal_id() + 1..).await?;
        for file in files.into_iter().rev() {
            match newest_in(&file).await {
                // Whoever opens the database begins with a file without rows.
                Ok(None) => {}
                Ok(Some(newest)) => {
                    self.clock.raise(newest);
                    break;
                }
                Err(error) => {
                    // Its rows may be in a table by now, and itself be collected.
                    self.raise_to_tables().await?;
                    let latest = self.admin.read_manifest(None).await?;
                    if latest.is_none_or(|latest| latest.replay_after_wal_id() < file.id) {
                        return Err(error.into());
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A tick of SlateDB's; it has none from before 1970.
pub(super) fn tick(millis: i64) -> Millis {
    Millis(u64::try_from(millis).unwrap_or(0))
}

async fn newest_in(file: &WalFile) -> Result<Option<Millis>, slatedb::Error> {
    let mut newest = None;
    let mut rows = file.iterator().await?;
    while let Some(row) = rows.next().await? {
        newest = newest.max(row.create_ts);
    }
    Ok(newest.map(tick))
}

fn newest_of_tables(manifest: &VersionedManifest) -> u64 {
    let tables = manifest.all_sst_views().flat_map(|view| [view.id, view.sst.id.value()]);
    let stamps = tables.chain(manifest.last_compacted_l0_sst_view_id()).map(|ulid| ulid.timestamp_ms());
    stamps.max().unwrap_or(0).max(tick(manifest.last_l0_clock_tick()).0)
}
