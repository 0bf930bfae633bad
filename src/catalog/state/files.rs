//! Segments and the files that hold them: who is born, who is freed, which file nobody needs.

use super::{FileEntry, SegmentEntry, State};
use crate::catalog::command::StoreFile;
use crate::catalog::record::{FileRecord, FileState, Holder, RecordKey, SegmentRecord};
use crate::model::{Location, Millis, PhysicalFileId, SegmentId};

impl State {
    pub(super) fn file_grows(&mut self, file: &StoreFile, at: Millis) {
        let entry = self.files.entry(file.id.clone()).or_insert_with(|| FileEntry {
            record: FileRecord { state: FileState::Open { durable_len: 0, len: 0 }, created: at },
            live_segments: 0,
            live_bytes: 0,
        });
        if let FileState::Open { len, .. } = &mut entry.record.state {
            self.space.physical_bytes += file.len.saturating_sub(*len);
            *len = file.len.max(*len);
        }
        self.mutations.push(RecordKey::File(file.id.to_string()).put(&entry.record));
    }

    /// What was stored up to `file.len` is durable.
    pub(super) fn file_confirmed(&mut self, file: &StoreFile, at: Millis) {
        if let Some(entry) = self.files.get_mut(&file.id)
            && let FileState::Open { durable_len, .. } = &mut entry.record.state
        {
            *durable_len = file.len;
            if file.closes {
                self.close_file(&file.id, file.len, at);
            }
        }
    }

    pub(super) fn close_file(&mut self, file: &PhysicalFileId, len: u64, at: Millis) {
        let Some(entry) = self.files.get_mut(file) else { return };
        if let FileState::Open { len: before, .. } = entry.record.state {
            entry.record.state = FileState::Closed { len };
            self.space.physical_bytes = self.space.physical_bytes + len - before;
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
            self.forget_if_dead(file, at);
        }
    }

    fn forget_if_dead(&mut self, file: &PhysicalFileId, at: Millis) {
        let Some(entry) = self.files.get_mut(file) else { return };
        if let FileState::Closed { len } = entry.record.state
            && entry.live_segments == 0
        {
            entry.record.state = FileState::Forgotten { len, since: at };
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    pub(super) fn file_deleted(&mut self, file: &PhysicalFileId) {
        if let Some(entry) = self.files.get(file)
            && let FileState::Forgotten { len, .. } = entry.record.state
        {
            self.files.remove(file);
            self.space.physical_bytes -= len;
            self.mutations.push(RecordKey::File(file.to_string()).delete());
        }
    }

    pub(super) fn insert_segment(&mut self, id: SegmentId, record: SegmentRecord, visible: bool) {
        let len = record.location.len();
        self.space.live_bytes += len;
        match &record.location {
            Location::Inline { .. } => self.space.inline_bytes += len,
            Location::File(segment) => {
                if let Some(file) = self.files.get_mut(&segment.file) {
                    file.live_segments += 1;
                    file.live_bytes += len;
                }
            }
        }
        let job = self.jobs.entry(record.job.clone()).or_default();
        job.segments.insert(id);
        if let Holder::Checkpoints { last_used } = record.holder {
            job.by_last_used.entry(last_used).or_default().insert(id);
        }
        if let Some(key) = &record.idempotency_key {
            job.idempotency_keys.insert(key.clone(), id);
        }
        self.segments.insert(id, SegmentEntry { record, visible });
    }

    /// Frees a segment; nothing happens if that was done before.
    pub(super) fn free_segment(&mut self, id: SegmentId, at: Millis) {
        let Some(SegmentEntry { record, .. }) = self.segments.remove(&id) else { return };
        let len = record.location.len();
        self.space.live_bytes -= len;
        self.mutations.push(RecordKey::Segment(id).delete());
        self.unindex_segment(id, &record);
        match &record.location {
            Location::Inline { .. } => {
                self.space.inline_bytes -= len;
                self.mutations.push(RecordKey::Data(id).delete());
            }
            Location::File(segment) => {
                if let Some(file) = self.files.get_mut(&segment.file) {
                    file.live_segments -= 1;
                    file.live_bytes -= len;
                }
                self.forget_if_dead(&segment.file, at);
            }
        }
    }

    fn unindex_segment(&mut self, id: SegmentId, record: &SegmentRecord) {
        let Some(job) = self.jobs.get_mut(&record.job) else { return };
        job.segments.remove(&id);
        if let Holder::Checkpoints { last_used } = record.holder
            && let Some(set) = job.by_last_used.get_mut(&last_used)
        {
            set.remove(&id);
            if set.is_empty() {
                job.by_last_used.remove(&last_used);
            }
        }
        if let Some(key) = &record.idempotency_key
            && job.idempotency_keys.get(key) == Some(&id)
        {
            job.idempotency_keys.remove(key);
        }
        if job.record.is_none() && job.segments.is_empty() {
            self.jobs.remove(&record.job);
        }
    }

    pub(super) fn put_segment_record(&mut self, id: SegmentId) {
        if let Some(entry) = self.segments.get(&id) {
            self.mutations.push(RecordKey::Segment(id).put(&entry.record));
        }
    }

    /// One S3 object more holds the segment.
    pub(super) fn hold_for_object(&mut self, id: SegmentId) {
        let Some(entry) = self.segments.get_mut(&id) else { return };
        entry.record.holder = match entry.record.holder {
            Holder::Objects { count } => Holder::Objects { count: count + 1 },
            _ => Holder::Objects { count: 1 },
        };
        self.put_segment_record(id);
    }

    /// One S3 object less holds the segment; freed when it was the last.
    pub(super) fn release_from_object(&mut self, id: SegmentId, at: Millis) {
        let Some(entry) = self.segments.get_mut(&id) else { return };
        match &mut entry.record.holder {
            Holder::Objects { count } if *count > 1 => {
                *count -= 1;
                self.put_segment_record(id);
            }
            _ => self.free_segment(id, at),
        }
    }
}
