//! Which frames of a log count, when some of them are in two files, and some files end in the middle of one.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::super::format::{LOG_FILE_HEADER_LEN, LogFileHeader, LogFrame, MalformedLog};
use super::super::scan::{ScanEnd, scan};

/// Where a frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FramePlace {
    pub log_file: LogFileHeader,
    pub at: usize,
    pub len: usize,
}

/// The frames behind the replay point, by their ids.
#[derive(Debug)]
pub(super) struct FrameIndex {
    replay_after: u64,
    frames: BTreeMap<u64, FramePlace>,
    /// Something says that the frames up to this one are durable.
    durable_id: u64,
}

/// Frames that something calls durable are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames {first} to {last} of the catalog's log are missing, although later ones are there")]
pub(super) struct MissingFrames {
    first: u64,
    last: u64,
}

impl FrameIndex {
    /// Up to frame `replay_after` everything is in tables.
    pub(super) fn new(replay_after: u64) -> Self {
        Self { replay_after, frames: BTreeMap::new(), durable_id: replay_after }
    }

    /// The log files of `log_files`, in their order, that may have frames behind the replay point. A collector may delete the
    /// others at any time.
    ///
    /// A file may have frames with the ids of the next one, and be the only one that has all of them: when the owner that wrote
    /// them again has died meanwhile. Not so once the replay point has reached the next one's first id: then some owner had
    /// them durable in a later file.
    pub(super) fn needed(&self, log_files: &[LogFileHeader]) -> Vec<LogFileHeader> {
        let next = |index: usize| log_files.get(index + 1);
        let is_needed = |index: &usize| next(*index).is_none_or(|next| next.first_id > self.replay_after);
        (0..log_files.len()).filter(is_needed).map(|index| log_files[index]).collect()
    }

    /// Adds the frames of a log file whose name says `header`; later ones come later. A torn tail is left out.
    ///
    /// # Errors
    /// The fault in the file, if that is not only torn.
    pub(super) fn add(&mut self, header: LogFileHeader, bytes: &[u8]) -> Result<(), MalformedLog> {
        let scanned = scan(bytes, header)?;
        match scanned.end {
            ScanEnd::Clean => {}
            // Who wrote it was told that nobody knows, or died.
            ScanEnd::Torn(_) if bytes.is_empty() => {}
            ScanEnd::Torn(error) => {
                let (log_file, skipped) = (header.file_name(), bytes.len() - scanned.good_len);
                tracing::info!(log_file, skipped, %error, "a file of the catalog's log ends with a torn tail");
            }
            ScanEnd::Damaged(error) => return Err(error),
        }
        self.durable_id = self.durable_id.max(scanned.durable_id).max(header.first_id.saturating_sub(1));
        let mut at = LOG_FILE_HEADER_LEN;
        while at < scanned.good_len {
            let frame = LogFrame::peek(&bytes[at..])?;
            if frame.wal_id > self.replay_after {
                self.frames.insert(frame.wal_id, FramePlace { log_file: header, at, len: frame.len });
            }
            at += frame.len;
        }
        Ok(())
    }

    /// Looks whether all frames are there.
    ///
    /// # Errors
    /// [`MissingFrames`]: the log is damaged, or not all of it was seen.
    pub(super) fn check(&self) -> Result<(), MissingFrames> {
        let seen = self.last_without_gap();
        let known = self.last_id().max(self.durable_id);
        if seen == known { Ok(()) } else { Err(MissingFrames { first: seen + 1, last: known }) }
    }

    /// The last frame behind which one is missing, or none comes.
    pub(super) fn last_without_gap(&self) -> u64 {
        let mut last = self.replay_after;
        while self.frames.contains_key(&(last + 1)) {
            last += 1;
        }
        last
    }

    fn last_id(&self) -> u64 {
        self.frames.keys().next_back().map_or(self.replay_after, |id| *id)
    }

    /// The last frame that something calls durable.
    pub(super) fn durable_id(&self) -> u64 {
        self.durable_id
    }

    /// The frames that nothing calls durable, with their ids.
    pub(super) fn uncertain(&self) -> Vec<(u64, FramePlace)> {
        self.frames.range(self.durable_id + 1..).map(|(id, place)| (*id, *place)).collect()
    }

    /// The frames with these ids, in their order.
    pub(super) fn take(mut self, ids: RangeInclusive<u64>) -> Vec<(u64, FramePlace)> {
        self.frames.retain(|id, _| ids.contains(id));
        self.frames.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use slatedb::{RowEntry, ValueDeletable};

    use super::super::super::format::FrameBuilder;
    use super::*;

    fn header(epoch: u64, first_id: u64, number: u32) -> LogFileHeader {
        LogFileHeader { epoch, first_id, number }
    }

    /// A log file with these frames and what each knows to be durable.
    fn log_file(header: LogFileHeader, frames: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = header.encode().to_vec();
        for (id, durable_id) in frames {
            let mut frame = FrameBuilder::new(Vec::new());
            let value = ValueDeletable::Value(Bytes::from_static(b"value"));
            let key = Bytes::from_static(b"key");
            frame.push(&RowEntry { key, value, seq: *id, create_ts: None, expire_ts: None });
            bytes.extend_from_slice(frame.seal(*id, header.epoch, *durable_id));
        }
        bytes
    }

    fn index(replay_after: u64, files: &[(LogFileHeader, Vec<u8>)]) -> FrameIndex {
        let mut index = FrameIndex::new(replay_after);
        let headers: Vec<_> = files.iter().map(|(header, _)| *header).collect();
        for header in index.needed(&headers) {
            let bytes = &files.iter().find(|(other, _)| *other == header).unwrap().1;
            index.add(header, bytes).unwrap();
        }
        index
    }

    fn file(header: LogFileHeader, frames: &[(u64, u64)]) -> (LogFileHeader, Vec<u8>) {
        (header, log_file(header, frames))
    }

    fn places(index: FrameIndex) -> Vec<(u64, u64, u32)> {
        let taken = index.take(0..=u64::MAX).into_iter();
        taken.map(|(id, place)| (id, place.log_file.epoch, place.log_file.number)).collect()
    }

    #[test]
    fn a_group_that_was_written_again_counts_once_and_the_later_copy_does() {
        let index = index(0, &[file(header(1, 1, 1), &[(1, 0), (2, 1)]), file(header(1, 2, 2), &[(2, 1), (3, 2)])]);

        index.check().unwrap();

        assert_eq!((index.durable_id(), index.last_without_gap()), (2, 3));
        assert_eq!(places(index), [(1, 1, 1), (2, 1, 2), (3, 1, 2)]);
    }

    #[test]
    fn a_copy_that_ends_early_hides_nothing_of_an_earlier_file() {
        let index = index(1, &[file(header(1, 1, 1), &[(1, 0), (2, 1), (3, 1)]), file(header(2, 2, 1), &[(2, 1)])]);

        index.check().unwrap();

        assert_eq!(index.uncertain().len(), 2);
        assert_eq!(places(index), [(2, 2, 1), (3, 1, 1)]);
    }

    #[test]
    fn a_torn_tail_and_empty_files_are_nothing() {
        let (first, mut torn) = file(header(1, 1, 1), &[(1, 0), (2, 1)]);
        torn.truncate(torn.len() - 3);
        let empty = (header(1, 2, 2), vec![]);
        let no_frame = file(header(1, 2, 3), &[]);

        let index = index(0, &[(first, torn), empty, no_frame]);

        index.check().unwrap();
        assert_eq!((index.durable_id(), index.last_without_gap()), (1, 1));
    }

    #[test]
    fn a_frame_that_something_calls_durable_must_be_there() {
        let first = file(header(1, 1, 1), &[(1, 0)]);
        let named = file(header(1, 3, 2), &[]);
        let missing = index(0, &[first.clone(), named]).check().unwrap_err();
        assert_eq!(missing, MissingFrames { first: 2, last: 2 });

        let called = file(header(2, 2, 1), &[(2, 1), (3, 2)]);
        let mut gap = FrameIndex::new(0);
        gap.add(called.0, &called.1).unwrap();
        assert_eq!(gap.check().unwrap_err(), MissingFrames { first: 1, last: 3 });
        assert_eq!(gap.last_without_gap(), 0);

        let (header, mut bytes) = file(header(1, 1, 1), &[(1, 0), (2, 1), (3, 2)]);
        let second = LOG_FILE_HEADER_LEN + (bytes.len() - LOG_FILE_HEADER_LEN) / 3;
        bytes[second + 40] ^= 1;
        FrameIndex::new(0).add(header, &bytes).unwrap_err();
    }

    #[test]
    fn what_is_in_tables_is_not_needed() {
        let files = [header(1, 1, 1), header(1, 5, 2), header(1, 5, 3), header(2, 9, 1)];

        let numbers = |replay_after| FrameIndex::new(replay_after).needed(&files).len();

        assert_eq!([0, 4, 5, 8, 9, 99].map(numbers), [4, 4, 2, 2, 1, 1]);
        let index = index(2, &[file(files[0], &[(1, 0), (2, 1), (3, 2)])]);
        assert_eq!(index.last_without_gap(), 3);
        assert_eq!(places(index).len(), 1);
    }
}
