//! Reading all records when a journal is opened.
//!
//! The largest part is read by two tasks at the same time, while the visitor takes in their records: a start takes as long
//! as the slowest of the three, given the cores.

use std::sync::Arc;

use bytes::Bytes;
use slatedb::DbReadOps;
use slatedb::config::ScanOptions;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Cause, JournalError};
use crate::catalog::record::{KeyRange, READ_AT_OPEN};

/// Records that are handed over together.
const BATCH: usize = 512;
/// Batches that wait for the visitor.
const BATCHES_MAX: usize = 16;

/// The distance to read ahead in each table. There may be dozens of tables, and the bytes wait in memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReadAhead {
    /// Far, because each request takes its time.
    Requests,
    /// A little.
    Disk,
}

impl ReadAhead {
    fn options(self) -> ScanOptions {
        // By default every block is a request of its own.
        let (read_ahead_bytes, max_fetch_tasks) = match self {
            Self::Requests => (1 << 20, 4),
            Self::Disk => (128 << 10, 2),
        };
        ScanOptions { read_ahead_bytes, max_fetch_tasks, cache_blocks: false, ..ScanOptions::default() }
    }
}

/// Hands every record to `visit` but bytes of inline segments: in the order of their keys, where [`READ_AT_OPEN`] says so.
#[allow(clippy::disallowed_methods, reason = "the scans end with this call, which waits for them")]
pub(super) async fn visit_all<D: DbReadOps + Send + Sync + 'static, E: Into<Cause>>(
    db: &Arc<D>,
    read_ahead: ReadAhead,
    mut visit: impl FnMut(Bytes, Bytes) -> Result<(), E> + Send,
) -> Result<(), JournalError> {
    for ranges in READ_AT_OPEN {
        let (sender, mut batches) = mpsc::channel(BATCHES_MAX);
        // Dropped with this call, and its tasks with it.
        let mut scans = JoinSet::new();
        for range in *ranges {
            #[expect(clippy::disallowed_methods, reason = "its end is awaited here, and ends the start")]
            scans.spawn(scan(Arc::clone(db), *range, read_ahead, sender.clone()));
        }
        drop(sender);
        while let Some(batch) = batches.recv().await {
            for (key, value) in batch {
                visit(key, value).map_err(|error| JournalError::Visit(error.into()))?;
            }
        }
        while let Some(scanned) = scans.join_next().await {
            scanned.map_err(|error| JournalError::Internal(error.into()))??;
        }
    }
    Ok(())
}

async fn scan<D: DbReadOps>(
    db: Arc<D>,
    range: KeyRange,
    read_ahead: ReadAhead,
    batches: mpsc::Sender<Vec<(Bytes, Bytes)>>,
) -> Result<(), JournalError> {
    let mut records = db.scan_with_options(range, &read_ahead.options()).await.map_err(JournalError::at_open)?;
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(record) = records.next().await.map_err(JournalError::at_open)? {
        batch.push((record.key, record.value));
        if batch.len() == BATCH {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            if batches.send(full).await.is_err() {
                break;
            }
        }
    }
    match batches.send(batch).await {
        // A visitor that has ended takes no more, and says why itself.
        Ok(()) | Err(_) => Ok(()),
    }
}
