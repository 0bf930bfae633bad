//! Deletes log files that no open of the database would read.
//!
//! SlateDB's collector reads the manifests and passes the ranges of frame ids they refer to: one
//! without an end for the latest manifest, and one for each checkpoint. Only the first counts
//! here. The compactor writes a checkpoint with every change, to protect tables that a scan may
//! still read; honouring those would keep every log file as long as a checkpoint lives. It would
//! protect nothing, since only a reader or a clone of a checkpoint replays the log from there, and
//! nothing but [`crate::catalog::slate`] opens this database.
//!
//! # Crash
//! Any subset of the deletions may have happened; the next collection does the rest.

use std::fs;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use slatedb::wal::{WalError, WalFileRange, WalGc};

use super::Log;
use super::fence::{blocking, list_log_files, unavailable};
use super::format::LogFileHeader;
use super::leased::LeasedLog;

/// The log's collector, which SlateDB calls.
pub struct LogGc {
    log: CollectedLog,
}

crate::runtime::opaque_debug!(LogGc);

/// The log whose files are collected.
enum CollectedLog {
    Disk(Arc<Log>),
    Leased(Arc<LeasedLog>),
}

impl LogGc {
    /// Will collect log files of a log on a local disk.
    pub fn on_disk(log: Arc<Log>) -> Self {
        Self { log: CollectedLog::Disk(log) }
    }

    /// Will collect log files of a log whose files are leased.
    pub fn leased(log: Arc<LeasedLog>) -> Self {
        Self { log: CollectedLog::Leased(log) }
    }
}

#[async_trait]
impl WalGc for LogGc {
    /// A log file's age does not matter: what the latest manifest does not need is needed by nobody.
    async fn collect(
        &self,
        referenced_ranges: Vec<WalFileRange>,
        _min_age: Duration,
        dry_run: bool,
    ) -> Result<(), WalError> {
        let Some(needed_from) = latest_start(&referenced_ranges) else {
            return Ok(()); // no manifest, nothing known
        };
        match &self.log {
            CollectedLog::Disk(log) => {
                let log = Arc::clone(log);
                blocking(move || collect(&log, needed_from, dry_run).map_err(unavailable)).await
            }
            CollectedLog::Leased(log) => collect_leased(log, needed_from, dry_run).await,
        }
    }
}

/// Deletes what is not needed behind the replay point `needed_from`.
pub(super) async fn collect_leased(log: &LeasedLog, needed_from: u64, dry_run: bool) -> Result<(), WalError> {
    let log_files = log.list().await?.log_files;
    for header in log_files.iter().take(unneeded(&log_files, needed_from)) {
        let name = header.file_name();
        tracing::debug!(%name, dry_run, "deleting a file of the catalog log");
        if !dry_run {
            // One that is still open goes, too: a write that failed has left it, and what is in it is in a later one.
            log.folder().delete(&name).await.map_err(|error| WalError::Unavailable(Arc::new(error)))?;
        }
    }
    Ok(())
}

fn collect(log: &Log, needed_from: u64, dry_run: bool) -> io::Result<()> {
    log.anchor.look()?;
    let log_files = list_log_files(&log.folder)?;
    for header in log_files.iter().take(unneeded(&log_files, needed_from)) {
        let name = header.file_name();
        tracing::debug!(%name, dry_run, "deleting a file of the catalog log");
        if dry_run {
            continue;
        }
        // Before each one: the folder may be moved at any time, and another catalog's log must not be deleted.
        log.anchor.look()?;
        match fs::remove_file(log.folder.join(name)) {
            Ok(()) => {}
            // An older owner's collector may run at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The first id that the latest manifest may need: the start of the range without an end.
fn latest_start(ranges: &[WalFileRange]) -> Option<u64> {
    ranges
        .iter()
        .filter(|range| range.1 == Bound::Unbounded)
        .map(|range| match range.0 {
            Bound::Included(id) => id,
            Bound::Excluded(id) => id.saturating_add(1),
            Bound::Unbounded => 0,
        })
        .min()
}

/// Number of the oldest log files that lie wholly below `needed_from`. Never all of them.
fn unneeded(log_files: &[LogFileHeader], needed_from: u64) -> usize {
    log_files.windows(2).take_while(|pair| pair[1].first_id <= needed_from).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(first_ids: &[u64]) -> Vec<LogFileHeader> {
        let header = |first_id: &u64| LogFileHeader { epoch: 1, first_id: *first_id, number: 0 };
        first_ids.iter().map(header).collect()
    }

    #[test]
    fn a_log_file_goes_when_the_next_one_begins_below_the_needed_ids() {
        let log_files = headers(&[1, 10, 20]);

        let counts = [0, 9, 10, 19, 20, 99].map(|from| unneeded(&log_files, from));

        assert_eq!(counts, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn the_newest_log_file_stays() {
        assert_eq!(unneeded(&headers(&[1]), u64::MAX), 0);
        assert_eq!(unneeded(&[], u64::MAX), 0);
    }

    #[test]
    fn checkpoints_pin_nothing_and_an_unknown_manifest_everything() {
        let latest = WalFileRange(Bound::Included(7), Bound::Unbounded);
        let checkpoint = WalFileRange(Bound::Excluded(2), Bound::Excluded(5));

        assert_eq!(latest_start(&[checkpoint.clone(), latest]), Some(7));
        assert_eq!(latest_start(&[checkpoint]), None);
    }
}
