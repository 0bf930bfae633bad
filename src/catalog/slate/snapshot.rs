//! A journal that is only looked at.
//!
//! On an object store nothing is written and no owner is shut out, even if one is at work: what is read is the journal as of
//! the opening, but for the end of a log whose last file is open: on HDFS nobody sees that. On a local disk the log has a reader only in its owner, so the folder's lock is taken for as long.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slatedb::config::DbReaderOptions;
use slatedb::{DbReader, DbReaderMode};

use super::scan::{ReadAhead, visit_all};
use super::{Cause, Journal, JournalError, JournalSettings, Present, leased_log, marker_of};
use crate::catalog::log::LeasedLogReader;
use crate::catalog::record::RecordKey;
use crate::model::SegmentId;
use crate::store::Placement;

/// Longer than anybody looks: what was opened is what is read.
const NEVER: Duration = Duration::from_secs(24 * 3600);
const RETRIES_MAX: u32 = 5;

/// A journal that is only looked at.
pub struct Snapshot {
    inner: SnapshotSource,
    epoch: u64,
}

crate::runtime::opaque_debug!(Snapshot);

enum SnapshotSource {
    /// And the log, if its files are appended to.
    Reader(Arc<DbReader>, Option<Arc<LeasedLogReader>>),
    Owner(Journal),
}

impl Snapshot {
    /// Opens the journal at a place and hands every record to `visit`, as [`Journal::open`] does.
    ///
    /// # Errors
    /// `Nothing` if there is none; otherwise as [`Journal::open`].
    pub async fn open<E: Into<Cause>>(
        placement: Placement,
        settings: JournalSettings,
        visit: impl FnMut(Bytes, Bytes) -> Result<(), E> + Send,
    ) -> Result<Self, JournalError> {
        if Journal::present(&placement).await? == Present::Nothing {
            return Err(JournalError::Nothing);
        }
        let (store, prefix, folder) = match placement {
            Placement::Object { store, prefix, log, .. } => (store, prefix, log),
            local @ Placement::Local { .. } => {
                let journal = Journal::open(local, settings, visit).await?;
                return Ok(Self { epoch: journal.epoch(), inner: SnapshotSource::Owner(journal) });
            }
        };
        let marker = marker_of(&store, &prefix, folder.is_some()).await?;
        let epochs_before = marker.check(settings.claim).await?;
        let log = leased_log(&marker, folder, &settings).map(|log| Arc::new(LeasedLogReader::new(log)));
        let options = DbReaderOptions {
            manifest_poll_interval: NEVER,
            checkpoint_lifetime: 3 * NEVER,
            object_store_max_retries: Some(RETRIES_MAX),
            ..DbReaderOptions::default()
        };
        let building = DbReader::builder(prefix, store)
            .with_reader_mode(DbReaderMode::FollowLatest)
            .with_options(options)
            .with_db_cache_disabled();
        let building = match &log {
            Some(log) => building.with_wal_reader(Arc::<LeasedLogReader>::clone(log)),
            None => building,
        };
        let reader = building.build().await.map_err(JournalError::at_open)?;
        let epoch = epochs_before + reader.manifest().writer_epoch();
        let reader = Arc::new(reader);
        visit_all(&reader, ReadAhead::Requests, visit).await?;
        Ok(Self { inner: SnapshotSource::Reader(reader, log), epoch })
    }

    /// Files of the log that somebody has open, or had when its daemon was killed: the last commits in them were not seen.
    pub fn hidden(&self) -> Vec<String> {
        match &self.inner {
            SnapshotSource::Reader(_, Some(log)) => log.hidden(),
            SnapshotSource::Reader(_, None) | SnapshotSource::Owner(_) => vec![],
        }
    }

    /// The bytes of an inline segment; `None` if it was freed.
    ///
    /// # Errors
    /// As [`Journal::get`].
    pub async fn inline_data(&self, id: SegmentId) -> Result<Option<Bytes>, JournalError> {
        let key = RecordKey::Data(id).encode();
        match &self.inner {
            SnapshotSource::Reader(reader, _) => Ok(reader.get(&key).await?),
            SnapshotSource::Owner(journal) => journal.get(&key).await,
        }
    }

    /// The epoch of the last owner; on a local disk that is the snapshot itself.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Gives the folder free.
    ///
    /// # Errors
    /// As [`Journal::close`].
    pub async fn close(self) -> Result<(), JournalError> {
        match self.inner {
            SnapshotSource::Reader(reader, _) => Ok(reader.close().await?),
            SnapshotSource::Owner(journal) => journal.close().await,
        }
    }
}
