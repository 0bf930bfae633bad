//! Finds the segments of a read, and pays for finding them.
//!
//! Segments that were found stay where they are ([`crate::catalog::questions::found`]). So a read finds *everything that it
//! will read* before its first byte, not only what comes next: an object that is overwritten or deleted meanwhile is read
//! to its end as it was. (An inline segment has no file to keep, and is a block at most.) That costs no bytes of the
//! object, only some for each of its segments, of which S3 allows 10,000; for more than a few they are paid for
//! ([`FOUND_BYTES`]). Segments before a range or behind it are not looked at.

use std::ops::Range;

use super::{ReadError, Reader};
use crate::catalog::questions::FoundSegment;
use crate::catalog::state::ObjectView;
use crate::model::SegmentId;
use crate::runtime::{PaidBytes, Reading};

/// Segments that are found under the catalog's lock before it is given back for a moment.
const FOUND_AT_ONCE: usize = 256;
/// Segments that are found at no price.
const FREE: usize = 64;
/// The bytes that a found segment takes, with its lease.
const FOUND_BYTES: u64 = 256;

/// Segments in the order in which they are read.
pub(super) struct FoundMany {
    pub segments: Vec<FoundSegment>,
    /// The first byte that is wanted of the first of them.
    pub skip: u64,
    pub paid: Option<PaidBytes>,
}

impl Reader {
    /// Where a segment is by now.
    pub(super) fn find(&self, id: SegmentId, reading: &Reading) -> Option<FoundSegment> {
        self.catalog.find(id, reading)
    }

    /// Finds the segments of an object that have bytes of `range`.
    pub(super) async fn find_range(
        &self,
        object: &ObjectView,
        range: &Range<u64>,
        reading: &Reading,
    ) -> Result<FoundMany, ReadError> {
        let (ids, mut begins) = object.segments_for(range);
        let costs = ids.len().saturating_sub(FREE) as u64 * FOUND_BYTES;
        let paid = if costs > 0 { Some(self.budget.pay(costs, self.patience).await?) } else { None };
        let mut found = FoundMany { segments: Vec::with_capacity(ids.len()), skip: 0, paid };
        for ids in ids.chunks(FOUND_AT_ONCE) {
            if begins >= range.end {
                break;
            }
            let before = found.segments.last();
            let is_first = before.is_none();
            let next = self.catalog.find_in_range(ids, begins, range, before, reading).map_err(ReadError::Freed)?;
            if is_first && !next.segments.is_empty() {
                found.skip = range.start - next.begins;
            }
            found.segments.extend(next.segments);
            begins = next.ends;
        }
        Ok(found)
    }
}
