//! What stands in the open files of an HDFS, in memory: no DataNode shows the last block of a file before it is closed.
//!
//! # Invariants
//! - What is held is paid for before it is written, and at most `store.hdfs.open-memory` is.
//! - A range is found here from the moment it is durable until the file was closed, by its writer or for it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::PhysicalFileId;

/// Memory is paid for in units of so many bytes, so that a number of them fits a semaphore's request.
const UNIT_BYTES: u64 = 1024;

/// The open files of a store. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct OpenFiles(Arc<Open>);

#[derive(Debug)]
struct Open {
    files: Mutex<HashMap<PhysicalFileId, OpenBytes>>,
    memory: Arc<Semaphore>,
    units_max: u32,
    writers: Arc<Semaphore>,
}

#[derive(Debug)]
struct OpenBytes {
    /// The groups by their offsets, without gaps.
    groups: Vec<(u64, Bytes)>,
    /// Gives the memory back when the file leaves.
    paid: Vec<OwnedSemaphorePermit>,
    /// Gives the place back when the file leaves.
    _writer: OwnedSemaphorePermit,
}

impl OpenBytes {
    fn len(&self) -> u64 {
        self.groups.last().map_or(0, |(offset, bytes)| offset + bytes.len() as u64)
    }
}

impl OpenFiles {
    /// None open; at most `writers_max` will be, which hold at most `bytes_max`.
    pub(super) fn new(bytes_max: u64, writers_max: usize) -> Self {
        let units_max = u32::try_from(bytes_max / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        let units = usize::try_from(units_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let writers = writers_max.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Open {
            files: Mutex::default(),
            memory: Arc::new(Semaphore::new(units)),
            units_max,
            writers: Arc::new(Semaphore::new(writers)),
        }))
    }

    /// Waits for a place for one more file.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0.writers).acquire_owned().await.expect("it is never closed")
    }

    /// Waits for memory. What is larger than all of it goes alone.
    pub(super) async fn pay(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.0.units_max);
        Arc::clone(&self.0.memory).acquire_many_owned(units).await.expect("it is never closed")
    }

    /// A file was created.
    pub(super) fn begin(&self, file: &PhysicalFileId, writer: OwnedSemaphorePermit) {
        let open = OpenBytes { groups: vec![], paid: vec![], _writer: writer };
        self.0.files.lock().insert(file.clone(), open);
    }

    /// Bytes of a file became durable behind those that were there.
    pub(super) fn push(&self, file: &PhysicalFileId, bytes: Bytes, paid: OwnedSemaphorePermit) {
        if let Some(open) = self.0.files.lock().get_mut(file) {
            let offset = open.len();
            open.groups.push((offset, bytes));
            open.paid.push(paid);
        }
    }

    /// The file was closed: from here on it is read from its DataNodes.
    pub(super) fn end(&self, file: &PhysicalFileId) {
        // Dropped without the lock: it may be much.
        let open = self.0.files.lock().remove(file);
        drop(open);
    }

    /// Whether a file holds so much, while memory gets short, that it should end.
    pub(super) fn is_too_much(&self, file: &PhysicalFileId) -> bool {
        let free = self.0.memory.available_permits() as u64;
        if free > u64::from(self.0.units_max) / 2 {
            return false;
        }
        let files = self.0.files.lock();
        let own = files.get(file).map_or(0, OpenBytes::len);
        // One that is at least of average size: the largest go first, and one of them is always found. It may be idle, though:
        // when little is left, whoever writes ends.
        own > 0
            && (free <= u64::from(self.0.units_max) / 4
                || own * files.len() as u64 >= files.values().map(OpenBytes::len).sum())
    }

    /// A range of an open file; `None` if it is not all here.
    pub(super) fn read(&self, file: &PhysicalFileId, range: &Range<u64>) -> Option<Bytes> {
        let files = self.0.files.lock();
        let open = files.get(file).filter(|open| range.end <= open.len())?;
        let first = open.groups.partition_point(|(offset, bytes)| offset + bytes.len() as u64 <= range.start);
        let parts: Vec<Bytes> = open.groups[first..]
            .iter()
            .take_while(|(offset, _)| *offset < range.end)
            .map(|(offset, bytes)| {
                let from = range.start.saturating_sub(*offset) as usize;
                let to = (range.end - offset).min(bytes.len() as u64) as usize;
                bytes.slice(from..to)
            })
            .collect();
        drop(files);
        Some(joined(parts))
    }
}

/// The parts as one. A single one is not copied.
pub(super) fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> PhysicalFileId {
        PhysicalFileId::new(None, 1, number)
    }

    async fn with(open: &OpenFiles, file: &PhysicalFileId, groups: &[&'static [u8]]) {
        open.begin(file, open.place().await);
        for group in groups {
            open.push(file, Bytes::from_static(group), open.pay(group.len() as u64).await);
        }
    }

    #[tokio::test]
    async fn every_range_of_an_open_file_is_found_until_it_is_closed() {
        let (open, file) = (OpenFiles::new(1 << 20, 4), id(1));
        with(&open, &file, &[b"abc", b"", b"defg", b"h"]).await;

        for from in 0..8 {
            for to in from + 1..=8 {
                let read = open.read(&file, &(from..to)).unwrap();
                assert_eq!(read, &b"abcdefgh"[from as usize..to as usize], "{from}..{to}");
            }
        }
        assert_eq!(open.read(&file, &(0..9)), None);
        assert_eq!(open.read(&id(2), &(0..1)), None);
        open.end(&file);
        assert_eq!(open.read(&file, &(0..1)), None);
    }

    #[tokio::test]
    async fn memory_and_places_come_back_when_a_file_is_closed() {
        let (open, first) = (OpenFiles::new(4 * UNIT_BYTES, 1), id(1));
        static GROUP: [u8; 3 * UNIT_BYTES as usize] = [1; 3 * UNIT_BYTES as usize];
        with(&open, &first, &[&GROUP]).await;

        let mut more = std::pin::pin!(open.pay(2 * UNIT_BYTES));
        let mut place = std::pin::pin!(open.place());
        assert!(futures::poll!(more.as_mut()).is_pending() && futures::poll!(place.as_mut()).is_pending());
        open.end(&first);

        drop((more.await, place.await));
        drop(open.pay(100 * UNIT_BYTES).await);
    }

    #[tokio::test]
    async fn the_largest_files_end_when_more_than_half_of_the_memory_is_taken() {
        let (open, small, large) = (OpenFiles::new(8 * UNIT_BYTES, 4), id(1), id(2));
        static GROUP: [u8; 2 * UNIT_BYTES as usize] = [1; 2 * UNIT_BYTES as usize];
        with(&open, &small, &[&GROUP[..UNIT_BYTES as usize]]).await;
        with(&open, &large, &[&GROUP]).await;
        assert!(!open.is_too_much(&large), "there is memory");

        open.push(&large, Bytes::from_static(&GROUP), open.pay(GROUP.len() as u64).await);

        assert!(open.is_too_much(&large));
        assert!(!open.is_too_much(&small));
    }

    #[tokio::test]
    async fn any_file_ends_when_less_than_a_quarter_of_the_memory_is_left() {
        let (open, small, idle) = (OpenFiles::new(8 * UNIT_BYTES, 4), id(1), id(2));
        static GROUP: [u8; 5 * UNIT_BYTES as usize] = [1; 5 * UNIT_BYTES as usize];
        with(&open, &idle, &[&GROUP]).await;
        with(&open, &small, &[&GROUP[..UNIT_BYTES as usize / 2]]).await;

        assert!(open.is_too_much(&small));
    }
}
