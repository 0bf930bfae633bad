//! Where segments are, and the leases that keep them there.
//!
//! A segment is found under the catalog's lock, and the lease on its file is taken under the same: from then on its bytes
//! stay at that place, and its checksums with the read, whatever becomes of the segment. So a read finds *everything that it
//! will read* before its first byte, not only what comes next: an object that is overwritten or deleted meanwhile is read to
//! its end as it was. (What is inline has no file to keep, and is a block at most.) That costs no bytes of the object, only some for each of its segments, of which S3 allows 10,000; for
//! more than a few they are paid for ([`FOUND_BYTES`]). Those before a range or behind it are not looked at.

use std::ops::Range;
use std::sync::Arc;

use super::{ReadError, Reader};
use crate::catalog::state::{ObjectView, State};
use crate::model::{Location, SegmentCrc, SegmentId};
use crate::runtime::{Lease, PaidBytes, Reading};

/// Segments that are found under the catalog's lock before it is given back for a moment.
const FOUND_AT_ONCE: usize = 256;
/// Segments that are found at no price.
const FREE: usize = 64;
/// What a segment that was found takes, with its lease.
const FOUND_BYTES: u64 = 256;

/// A segment where it was found. It stays there as long as this lives and its read has not ended.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub id: SegmentId,
    pub location: Location,
    pub crc: SegmentCrc,
    /// None if it is inline: then it may be gone at any time.
    lease: Option<Arc<Lease>>,
}

/// Segments in the order in which they are read.
pub(super) struct FoundMany {
    pub segments: Vec<Found>,
    /// The first byte that is wanted of the first of them.
    pub skip: u64,
    pub paid: Option<PaidBytes>,
}

impl Found {
    /// A segment as it is in `state`; `before` is one that was found by the same read and may be in the same file.
    pub(super) fn new(state: &State, id: SegmentId, reading: &Reading, before: Option<&Self>) -> Option<Self> {
        let record = state.segment_record(id)?;
        let lease = record.location.segment().map(|place| {
            let shared = before.filter(|before| before.location.segment().is_some_and(|it| it.file == place.file));
            let shared = shared.and_then(|before| before.lease.clone());
            shared.unwrap_or_else(|| Arc::new(reading.lease(&place.file)))
        });
        Some(Self { id, location: record.location.clone(), crc: record.crc.clone(), lease })
    }
}

impl Reader {
    /// Where a segment is by now.
    pub(super) fn find(&self, id: SegmentId, reading: &Reading) -> Option<Found> {
        Found::new(&self.catalog.view(), id, reading, None)
    }

    /// Those segments of an object that have bytes of `range`.
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
            let state = self.catalog.view();
            for id in ids {
                if begins >= range.end {
                    return Ok(found);
                }
                let len = state.segment_record(*id).ok_or(ReadError::Freed(*id))?.location.len();
                if begins + len > range.start {
                    let before = found.segments.last();
                    let segment = Found::new(&state, *id, reading, before).ok_or(ReadError::Freed(*id))?;
                    if before.is_none() {
                        found.skip = range.start - begins;
                    }
                    found.segments.push(segment);
                }
                begins += len;
            }
        }
        Ok(found)
    }
}
