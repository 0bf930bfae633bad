//! Deletes segments that no open of the database would read.
//!
//! SlateDB's collector reads the manifests and passes the ranges of frame ids they refer to: one
//! without an end for the latest manifest, and one for each checkpoint. Only the first counts
//! here. The compactor writes a checkpoint with every change, to protect tables that a scan may
//! still read; honouring those would keep every segment as long as a checkpoint lives. It would
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
use super::fence::{blocking, list_segments, unavailable};
use super::format::SegmentHeader;

/// The log's collector, which SlateDB calls.
pub struct LogGc {
    log: Arc<Log>,
}

impl LogGc {
    /// Will collect segments of `log`.
    pub fn new(log: Arc<Log>) -> Self {
        Self { log }
    }
}

#[async_trait]
impl WalGc for LogGc {
    /// A segment's age does not matter: what the latest manifest does not need is needed by nobody.
    async fn collect(
        &self,
        referenced_ranges: Vec<WalFileRange>,
        _min_age: Duration,
        dry_run: bool,
    ) -> Result<(), WalError> {
        let Some(needed_from) = latest_start(&referenced_ranges) else {
            return Ok(()); // no manifest, nothing known
        };
        let log = self.log.clone();
        blocking(move || collect(&log, needed_from, dry_run).map_err(unavailable)).await
    }
}

fn collect(log: &Log, needed_from: u64, dry_run: bool) -> io::Result<()> {
    log.anchor.look()?;
    let segments = list_segments(&log.folder)?;
    let headers: Vec<_> = segments.iter().map(|(header, _)| *header).collect();
    for (header, len) in segments.iter().take(unneeded(&headers, needed_from)) {
        let name = header.file_name();
        tracing::debug!(%name, dry_run, "deleting a segment of the catalog log");
        if dry_run {
            continue;
        }
        log.anchor.look()?;
        match fs::remove_file(log.folder.join(name)) {
            Ok(()) => log.usage.remove_segment(*len),
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

/// How many of the oldest segments lie wholly below `needed_from`. Never all of them.
fn unneeded(segments: &[SegmentHeader], needed_from: u64) -> usize {
    segments.windows(2).take_while(|pair| pair[1].first_id <= needed_from).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(first_ids: &[u64]) -> Vec<SegmentHeader> {
        let header = |first_id: &u64| SegmentHeader { epoch: 1, first_id: *first_id };
        first_ids.iter().map(header).collect()
    }

    #[test]
    fn a_segment_goes_when_the_next_one_begins_below_the_needed_ids() {
        let segments = headers(&[1, 10, 20]);

        let counts = [0, 9, 10, 19, 20, 99].map(|from| unneeded(&segments, from));

        assert_eq!(counts, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn the_newest_segment_stays() {
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
