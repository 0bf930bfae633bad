//! Segments and the files that hold them: who is born, who is freed, which file nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::{FileEntry, JobEntry, SegmentEntry, State};
use crate::catalog::command::{Move, Moved, StoreFile};
use crate::catalog::record::{FileRecord, FileState, Forgotten, Holder, RecordKey, SegmentRecord};
use crate::model::{CheckpointId, Location, Millis, PhysicalFileId, SegmentId};

/// What those wait for who give space back. Counts, which only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files were forgotten.
    pub forgotten: u64,
    /// Bytes died in files, or files that hold dead bytes were closed.
    pub died: u64,
}

impl Changes {
    /// The later one of both.
    pub fn max(self, other: Self) -> Self {
        Self { forgotten: self.forgotten.max(other.forgotten), died: self.died.max(other.died) }
    }
}

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
                moved_from: false,
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
            } else {
                // With whatever is committed next: from then on a start does not doubt what was answered.
                self.mutations.push(RecordKey::File(file.id.to_string()).put(&entry.record));
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
            self.changes.died += 1;
            self.forget_if_dead(file, why, at);
        }
    }

    pub(super) fn forget_if_dead(&mut self, file: &PhysicalFileId, why: Forgotten, at: Millis) {
        let Some(entry) = self.files.get_mut(file) else { return };
        let why = if entry.record.moved_from && why == Forgotten::Died { Forgotten::Moved } else { why };
        if let FileState::Closed { len } = entry.record.state
            && entry.live.is_empty()
        {
            entry.record.state = FileState::Forgotten { len, since: at, why };
            self.space.forgotten_bytes += entry.record.occupied();
            self.changes.forgotten += 1;
            self.forgotten.entry((why, at)).or_default().insert(file.clone());
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    pub(super) fn file_deleted(&mut self, file: &PhysicalFileId) {
        if let Some(entry) = self.files.get(file)
            && let FileState::Forgotten { since, why, .. } = entry.record.state
        {
            let occupied = entry.record.occupied();
            self.files.remove(file);
            if let Some(at_once) = self.forgotten.get_mut(&(why, since)) {
                at_once.remove(file);
                if at_once.is_empty() {
                    self.forgotten.remove(&(why, since));
                }
            }
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
        let Move { file, segments, private } = moved;
        self.file_grows(&file, at);
        let (mut count, mut bytes) = (0, 0);
        // Files that something was moved away from, and whether anybody may know the places there.
        let mut left: BTreeMap<PhysicalFileId, bool> = BTreeMap::new();
        for Moved { id, from, to } in segments {
            let Some(entry) = self.segments.get_mut(&id) else { continue };
            if !entry.visible || entry.record.location != from || to.file != file.id {
                continue;
            }
            count += 1;
            bytes += to.len;
            let of_the_door = matches!(entry.record.holder, Holder::Objects { .. } | Holder::Upload);
            entry.record.location = Location::File(to);
            self.mutations.push(RecordKey::Segment(id).put(&entry.record));
            let len = entry.record.location.len();
            self.leave_place(id, &from, len);
            if let Some(entry) = self.files.get_mut(&file.id) {
                entry.live.insert(id);
                entry.live_bytes += len;
            }
            if let Some(file) = from.file() {
                *left.entry(file.clone()).or_default() |= !(private && of_the_door);
            }
        }
        self.close_file(&file.id, file.len, Forgotten::Died, at);
        for (file, known) in &left {
            if !known && self.files.get(file).is_some_and(|entry| !entry.record.moved_from) {
                // Nobody but a reader with a lease can be there: as if its grace were over.
                self.forget_if_dead(file, Forgotten::Moved, Millis(0));
                continue;
            }
            if let Some(entry) = self.files.get_mut(file)
                && !std::mem::replace(&mut entry.record.moved_from, true)
                && !entry.live.is_empty()
            {
                self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
            }
            self.forget_if_dead(file, Forgotten::Moved, at);
        }
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
                    self.changes.died += 1;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::{About, Bind, Command, Item, NewSegment, Outcome, Store};
    use crate::catalog::state::State;
    use crate::model::{Lane, LaneOf, Segment, SegmentCrc, StateScope, Writer};

    fn place(file: &PhysicalFileId, number: u64) -> Segment {
        Segment { file: file.clone(), offset: 100 * number, len: 10 }
    }

    /// A closed file of a job's first checkpoint in which segments 1 and 2 live; the second checkpoint uses the first.
    fn two_in_a_file(file: &PhysicalFileId, lane: &Lane) -> State {
        let mut state = State::default();
        let job = lane.job.clone().unwrap();
        state.apply(Command::CreateJob(job.clone()), Millis(1)).unwrap();
        let items = [1, 2].map(|number: u64| {
            let checkpoint = Some(CheckpointId(1));
            let (job, scope, writer) = (job.clone(), StateScope::Shared, Writer::default());
            let about = About { job, scope, writer, checkpoint, name: None };
            let location = Location::File(place(file, number));
            let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
            let bind = Bind::Checkpoint { idempotency_key: None };
            Item { segments: vec![NewSegment { id, about, location, inline: None, crc }], bind }
        });
        let store_file = StoreFile { id: file.clone(), lane: lane.clone(), len: 300, closes: true, upload: None };
        let stored = state.apply(Command::Store(Store { file: Some(store_file), items: items.into() }), Millis(1));
        let Ok(Outcome::Stored(token, _)) = stored else { panic!("{stored:?}") };
        state.confirm(token, Millis(1));
        state.apply(Command::Reuse(job, CheckpointId(2), vec![SegmentId(1)]), Millis(1)).unwrap();
        state
    }

    #[test]
    fn a_file_from_which_one_segment_was_moved_is_left_to_its_readers_though_the_last_one_was_freed() {
        let job = "j".parse().unwrap();
        let lane = Lane { job: Some(job), scope: StateScope::Shared, of: LaneOf::All };
        let [from, to] = [1, 2].map(|ulid| PhysicalFileId::new(lane.job.as_ref(), 1, ulid));
        let mut state = two_in_a_file(&from, &lane);
        let moved = Moved { id: SegmentId(1), from: Location::File(place(&from, 1)), to: place(&to, 1) };
        let file = StoreFile { id: to.clone(), lane: lane.clone(), len: 300, closes: true, upload: None };
        state.apply(Command::Move(Move { file, segments: vec![moved], private: true }), Millis(2)).unwrap();
        assert!(matches!(state.file(&from).unwrap().state, FileState::Closed { .. }));

        // A start in between forgets nothing.
        let mut reloaded = State::default();
        let mut written = std::collections::BTreeMap::new();
        for mutation in state.take_mutations() {
            match mutation {
                crate::catalog::record::Mutation::Put { key, value } => drop(written.insert(key, value)),
                crate::catalog::record::Mutation::Delete { key } => drop(written.remove(&key)),
            }
        }
        written.iter().for_each(|(key, value)| reloaded.load(key, value).unwrap());
        for mut state in [state, reloaded] {
            state.apply(Command::SubsumeCheckpoint(lane.job.clone().unwrap(), CheckpointId(1)), Millis(3)).unwrap();

            let why = match state.file(&from).unwrap().state {
                FileState::Forgotten { why, .. } => why,
                other => panic!("{other:?}"),
            };
            assert_eq!(why, Forgotten::Moved);
        }
    }
}
