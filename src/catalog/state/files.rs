//! Segments and the files that hold them: who is born, who is freed, which file nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::{FileEntry, JobEntry, SegmentEntry, State};
use crate::catalog::command::{Move, Moved, StoreFile};
use crate::catalog::record::{FileRecord, FileState, Forgotten, Holder, RecordKey, SegmentRecord};
use crate::model::{CheckpointId, Location, Millis, PhysicalFileId, SegmentId};

impl FileEntry {
    /// A file in which no segment lives yet.
    pub(super) fn new(record: FileRecord) -> Self {
        Self { record, live: BTreeSet::new(), live_bytes: 0, avoid: false }
    }
}

impl JobEntry {
    /// The index that knows what a holder holds, and under which number.
    fn index_of(
        &mut self,
        holder: &Holder,
    ) -> Option<(&mut BTreeMap<CheckpointId, BTreeSet<SegmentId>>, CheckpointId)> {
        match holder {
            Holder::Checkpoints { last_used } => Some((&mut self.by_last_used, *last_used)),
            Holder::Savepoint { id } => Some((&mut self.by_savepoint, *id)),
            Holder::Objects { .. } | Holder::Upload => None,
        }
    }

    pub(super) fn hold(&mut self, id: SegmentId, holder: &Holder) {
        if let Some((index, number)) = self.index_of(holder) {
            index.entry(number).or_default().insert(id);
        }
    }

    pub(super) fn release(&mut self, id: SegmentId, holder: &Holder) {
        if let Some((index, number)) = self.index_of(holder)
            && let Some(held) = index.get_mut(&number)
        {
            held.remove(&id);
            if held.is_empty() {
                index.remove(&number);
            }
        }
    }
}

impl State {
    pub(super) fn file_grows(&mut self, file: &StoreFile, at: Millis) {
        let entry = self.files.entry(file.id.clone()).or_insert_with(|| {
            FileEntry::new(FileRecord {
                state: FileState::Open { durable_len: 0, len: 0 },
                created: at,
                lane: Some(file.lane.clone()),
                holes: 0,
                upload: file.upload.clone(),
            })
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
                self.close_file(&file.id, file.len, Forgotten::Died, at);
            }
        }
    }

    /// A file takes no more. `why` it is forgotten, if nothing lives in it.
    pub(super) fn close_file(&mut self, file: &PhysicalFileId, len: u64, why: Forgotten, at: Millis) {
        let Some(entry) = self.files.get_mut(file) else { return };
        if let FileState::Open { len: before, .. } = entry.record.state {
            entry.record.state = FileState::Closed { len };
            entry.record.upload = None;
            self.space.physical_bytes = self.space.physical_bytes + len - before;
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
            self.forget_if_dead(file, why, at);
        }
    }

    fn forget_if_dead(&mut self, file: &PhysicalFileId, why: Forgotten, at: Millis) {
        let Some(entry) = self.files.get_mut(file) else { return };
        if let FileState::Closed { len } = entry.record.state
            && entry.live.is_empty()
        {
            entry.record.state = FileState::Forgotten { len, since: at, why };
            self.space.forgotten_bytes += entry.record.occupied();
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    pub(super) fn file_deleted(&mut self, file: &PhysicalFileId) {
        if let Some(entry) = self.files.get(file)
            && let FileState::Forgotten { .. } = entry.record.state
        {
            let occupied = entry.record.occupied();
            self.files.remove(file);
            self.space.physical_bytes -= occupied;
            self.space.forgotten_bytes -= occupied;
            self.mutations.push(RecordKey::File(file.to_string()).delete());
        }
    }

    /// So many bytes of a closed file are holes by now.
    pub(super) fn file_punched(&mut self, file: &PhysicalFileId, holes: u64) {
        let Some(entry) = self.files.get_mut(file) else { return };
        let FileState::Closed { len } = entry.record.state else { return };
        let before = entry.record.occupied();
        entry.record.holes = holes.min(len);
        self.space.physical_bytes = self.space.physical_bytes + entry.record.occupied() - before;
        self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
    }

    /// Workers should not reuse the segments of these files, and may reuse those of all others.
    pub fn advise_against(&mut self, files: &BTreeSet<PhysicalFileId>) {
        self.files.iter_mut().for_each(|(id, entry)| entry.avoid = files.contains(id));
    }

    /// Segments are where they were copied to, unless they were freed or moved before. Returns how many, and their bytes.
    pub(super) fn move_segments(&mut self, moved: Move, at: Millis) -> (u64, u64) {
        let Move { file, segments } = moved;
        self.file_grows(&file, at);
        let (mut count, mut bytes) = (0, 0);
        let mut left = BTreeSet::new();
        for Moved { id, from, to } in segments {
            let Some(entry) = self.segments.get_mut(&id) else { continue };
            if !entry.visible || entry.record.location != from || to.file != file.id {
                continue;
            }
            count += 1;
            bytes += to.len;
            entry.record.location = Location::File(to);
            self.mutations.push(RecordKey::Segment(id).put(&entry.record));
            let len = entry.record.location.len();
            self.leave_place(id, &from, len);
            if let Some(entry) = self.files.get_mut(&file.id) {
                entry.live.insert(id);
                entry.live_bytes += len;
            }
            left.extend(from.file().cloned());
        }
        self.close_file(&file.id, file.len, Forgotten::Died, at);
        left.iter().for_each(|file| self.forget_if_dead(file, Forgotten::Moved, at));
        (count, bytes)
    }

    /// A segment's bytes at this place are not needed any more.
    fn leave_place(&mut self, id: SegmentId, place: &Location, len: u64) {
        match place {
            Location::Inline { .. } => {
                self.space.inline_bytes -= len;
                self.mutations.push(RecordKey::Data(id).delete());
            }
            Location::File(segment) => {
                if let Some(file) = self.files.get_mut(&segment.file) {
                    file.live.remove(&id);
                    file.live_bytes -= len;
                }
            }
        }
    }

    pub(super) fn insert_segment(&mut self, id: SegmentId, record: SegmentRecord, visible: bool) {
        let len = record.location.len();
        self.space.live_bytes += len;
        match &record.location {
            Location::Inline { .. } => self.space.inline_bytes += len,
            Location::File(segment) => {
                if let Some(file) = self.files.get_mut(&segment.file) {
                    file.live.insert(id);
                    file.live_bytes += len;
                }
            }
        }
        self.index_segment(id, &record);
        self.segments.insert(id, SegmentEntry { record, visible });
    }

    /// Frees a segment; nothing happens if that was done before.
    pub(super) fn free_segment(&mut self, id: SegmentId, at: Millis) {
        let Some(SegmentEntry { record, .. }) = self.segments.remove(&id) else { return };
        let len = record.location.len();
        self.space.live_bytes -= len;
        self.mutations.push(RecordKey::Segment(id).delete());
        self.unindex_segment(id, &record);
        self.leave_place(id, &record.location, len);
        if let Location::File(segment) = &record.location {
            self.forget_if_dead(&segment.file, Forgotten::Died, at);
        }
    }

    pub(super) fn index_segment(&mut self, id: SegmentId, record: &SegmentRecord) {
        let job = self.jobs.entry(record.job.clone()).or_default();
        job.segments.insert(id);
        job.hold(id, &record.holder);
        if let Some(key) = &record.idempotency_key {
            job.idempotency_keys.insert(key.clone(), id);
        }
    }

    pub(super) fn unindex_segment(&mut self, id: SegmentId, record: &SegmentRecord) {
        let Some(job) = self.jobs.get_mut(&record.job) else { return };
        job.segments.remove(&id);
        job.release(id, &record.holder);
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
