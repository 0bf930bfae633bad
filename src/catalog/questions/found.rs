//! Where segments are, and the leases that keep them there.
//!
//! A segment is found under the catalog's lock, and the lease on its file is taken before or under the same: from then on its
//! bytes stay at that place, and its checksums with the read, whatever becomes of the segment.

use std::ops::Range;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::catalog::state::{CatalogState, SegmentView};
use crate::model::{Location, PhysicalFileId, SegmentCrc, SegmentId};
use crate::runtime::{Lease, Reading};

/// A segment where it was found. It stays there as long as this lives and its read has not ended.
#[derive(Debug, Clone)]
pub struct FoundSegment {
    /// Its identity.
    pub id: SegmentId,
    /// Its place.
    pub location: Location,
    /// Its checksums.
    pub crc: SegmentCrc,
    /// None if it is inline: then it may be gone at any time.
    lease: Option<Arc<Lease>>,
}

/// Those of some segments of an object that have bytes of a range.
#[derive(Debug)]
pub struct FoundInRange {
    /// In order.
    pub segments: Vec<FoundSegment>,
    /// Where in the object the first of them begins.
    pub begins: u64,
    /// Where in the object the last segment ends that was looked at.
    pub ends: u64,
}

/// The segments of some files.
#[derive(Debug)]
pub struct FoundFiles {
    /// In the order of the files and of their places.
    pub segments: Vec<SegmentView>,
    /// What keeps each file.
    pub leases: Vec<(PhysicalFileId, Arc<Lease>)>,
}

impl FoundSegment {
    /// A segment as it is in `state`; `before` is one that was found by the same read and may be in the same file.
    fn new(state: &CatalogState, id: SegmentId, reading: &Reading, before: Option<&Self>) -> Option<Self> {
        let (location, crc) = state.segment_place(id)?;
        Some(Self::at(id, location, crc, reading, before))
    }

    fn at(id: SegmentId, location: Location, crc: SegmentCrc, reading: &Reading, before: Option<&Self>) -> Self {
        let lease = location.segment().map(|place| {
            let shared = before.filter(|before| before.location.segment().is_some_and(|it| it.file == place.file));
            let shared = shared.and_then(|before| before.lease.clone());
            shared.unwrap_or_else(|| Arc::new(reading.lease(&place.file)))
        });
        Self { id, location, crc, lease }
    }
}

impl Catalog {
    /// Where a segment is by now.
    pub fn find(&self, id: SegmentId, reading: &Reading) -> Option<FoundSegment> {
        FoundSegment::new(&self.view(), id, reading, None)
    }

    /// Those of `ids`, segments of an object the first of which begins at `begins`, that have bytes of `range`. Those behind
    /// it are not looked at. `before` is what the same read has found last.
    ///
    /// # Errors
    /// The first segment that is not there any more.
    pub fn find_in_range(
        &self,
        ids: &[SegmentId],
        begins: u64,
        range: &Range<u64>,
        before: Option<&FoundSegment>,
        reading: &Reading,
    ) -> Result<FoundInRange, SegmentId> {
        let mut found = FoundInRange { segments: Vec::with_capacity(ids.len()), begins, ends: begins };
        let state = self.view();
        for id in ids {
            if found.ends >= range.end {
                break;
            }
            let begins = found.ends;
            let (location, crc) = state.segment_place(*id).ok_or(*id)?;
            found.ends += location.len();
            if found.ends <= range.start {
                continue;
            }
            let last = found.segments.last();
            let segment = FoundSegment::at(*id, location, crc, reading, last.or(before));
            if last.is_none() {
                found.begins = begins;
            }
            found.segments.push(segment);
        }
        Ok(found)
    }

    /// The first of `ids` with what is known of them, until they have `bytes_max` together, are `max`, or one is not there
    /// any more.
    pub fn find_next(
        &self,
        ids: &[SegmentId],
        bytes_max: u64,
        max: usize,
        reading: &Reading,
    ) -> Vec<(FoundSegment, SegmentView)> {
        let mut found: Vec<(FoundSegment, SegmentView)> = vec![];
        let mut bytes = 0;
        let state = self.view();
        for id in ids.iter().take(max) {
            let before = found.last().map(|(found, _)| found);
            let Some(next) = FoundSegment::new(&state, *id, reading, before).zip(state.segment(*id)) else { break };
            bytes += next.0.location.len();
            found.push(next);
            if bytes >= bytes_max {
                break;
            }
        }
        found
    }

    /// The visible segments that live in `files`, which stay as long as their leases.
    pub fn find_files(&self, files: &[PhysicalFileId], reading: &Reading) -> FoundFiles {
        // First: a file in which something lives after this stays.
        let leases = files.iter().map(|file| (file.clone(), Arc::new(reading.lease(file)))).collect();
        FoundFiles { segments: files.iter().flat_map(|file| self.segments_in(file)).collect(), leases }
    }

    /// The visible segments that live in a file, in the order of their places.
    fn segments_in(&self, file: &PhysicalFileId) -> Vec<SegmentView> {
        let (mut places, mut after) = (vec![], None);
        self.in_pieces(|state, goes_on| {
            state.each_living(file, &mut after, goes_on, |id, offset| places.push((offset, id))).then_some(())
        });
        places.sort_unstable();
        let mut found = self.segments(places.into_iter().map(|(_, id)| id).collect());
        found.retain(|view| view.location.file() == Some(file));
        found
    }
}
