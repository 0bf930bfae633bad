//! Looks at a leased log that somebody else may have, and changes nothing.
//!
//! What stands in a file that is open cannot be seen before it is closed, so the last frames may be missing. Which files that
//! is about is remembered.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use slatedb::wal::{WalError, WalFileRange, WalIterator, WalReader};

use super::super::scan::damaged;
use super::index::FrameIndex;
use super::open::LeasedReplay;
use super::{LeasedLog, unavailable};

/// Reads a [`LeasedLog`] for SlateDB.
pub struct LeasedLogReader {
    log: Arc<LeasedLog>,
    hidden: Mutex<BTreeSet<String>>,
}

crate::runtime::opaque_debug!(LeasedLogReader);

impl LeasedLogReader {
    /// Will read `log`.
    pub fn new(log: Arc<LeasedLog>) -> Self {
        Self { log, hidden: Mutex::default() }
    }

    /// The files that were open when they were looked at: the last frames in them were not seen.
    pub fn hidden(&self) -> Vec<String> {
        self.hidden.lock().iter().cloned().collect()
    }

    async fn look(&self, replay_after: u64) -> Result<FrameIndex, WalError> {
        let log_files = self.log.list().await?.log_files;
        let mut index = FrameIndex::new(replay_after);
        for header in index.needed(&log_files) {
            let name = header.file_name();
            // One that is gone was collected: its frames are in tables by now.
            let Some(read) = self.log.folder().read(&name).await.map_err(unavailable)? else { continue };
            index.add(header, &read.bytes).map_err(|error| damaged(header, error))?;
            if !read.is_all() {
                self.hidden.lock().insert(name);
            }
        }
        Ok(index)
    }
}

#[async_trait]
impl WalReader for LeasedLogReader {
    async fn iterator(&self, range: WalFileRange) -> Result<Box<dyn WalIterator>, WalError> {
        let first = match range.0 {
            Bound::Included(id) => id,
            Bound::Excluded(id) => id.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.1 {
            Bound::Included(id) => id,
            Bound::Excluded(id) => id.saturating_sub(1),
            Bound::Unbounded => u64::MAX,
        };
        let index = self.look(first.saturating_sub(1)).await?;
        let last = index.last_without_gap().min(end);
        let frames = index.take(first..=last);
        Ok(Box::new(LeasedReplay::new(Arc::clone(&self.log), frames, vec![])))
    }

    async fn last_wal_file_id(&self, replay_after_wal_id: u64) -> Result<u64, WalError> {
        Ok(self.look(replay_after_wal_id).await?.last_without_gap())
    }
}
