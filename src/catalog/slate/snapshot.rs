//! A journal that is only looked at.
//!
//! On an object store nothing is written and no owner is shut out, even if one is at work: what is read is the journal as of
//! the opening. On a local disk the log has a reader only in its owner, so the folder's lock is taken for as long.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slatedb::config::DbReaderOptions;
use slatedb::{DbReader, DbReaderMode};

use super::marker::Marker;
use super::{Cause, Journal, JournalError, JournalSettings, OBJECTS_LOG, Placement, Present, visit_all};

/// Longer than anybody looks: what was opened is what is read.
const NEVER: Duration = Duration::from_secs(24 * 3600);
const RETRIES_MAX: u32 = 5;

/// A journal that is only looked at.
pub struct Snapshot {
    inner: Inner,
    epoch: u64,
}

enum Inner {
    Reader(Box<DbReader>),
    Owner(Journal),
}

impl Snapshot {
    /// Opens the journal at a place and hands every record to `visit` in the order of the keys.
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
        let (store, prefix) = match placement {
            Placement::Object { store, prefix } => (store, prefix),
            local @ Placement::Local { .. } => {
                let journal = Journal::open(local, settings, visit).await?;
                return Ok(Self { epoch: journal.epoch(), inner: Inner::Owner(journal) });
            }
        };
        let epochs_before = Marker::new(Arc::clone(&store), prefix.clone(), OBJECTS_LOG).check().await?;
        let options = DbReaderOptions {
            manifest_poll_interval: NEVER,
            checkpoint_lifetime: 3 * NEVER,
            object_store_max_retries: Some(RETRIES_MAX),
            ..DbReaderOptions::default()
        };
        let reader = DbReader::builder(prefix, store)
            .with_reader_mode(DbReaderMode::FollowLatest)
            .with_options(options)
            .with_db_cache_disabled()
            .build()
            .await
            .map_err(JournalError::at_open)?;
        let epoch = epochs_before + reader.manifest().writer_epoch();
        visit_all(&reader, visit).await?;
        Ok(Self { inner: Inner::Reader(Box::new(reader)), epoch })
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// As [`Journal::get`].
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, JournalError> {
        match &self.inner {
            Inner::Reader(reader) => Ok(reader.get(key).await?),
            Inner::Owner(journal) => journal.get(key).await,
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
            Inner::Reader(reader) => Ok(reader.close().await?),
            Inner::Owner(journal) => journal.close().await,
        }
    }
}
