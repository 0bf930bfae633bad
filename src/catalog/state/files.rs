//! Segments and the files that hold them: who is born, who is freed, which file nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::{CHECKPOINT_BYTES, weight_of_file, weight_of_job};
use super::numbered::hash_of;
use super::pages::Pages;
use super::segments::{KeptSegment, SegmentPlace};
use super::{CatalogState, FileEntry, Ids, JobEntry, JobLife};
use crate::catalog::command::{Move, Moved, StoreFile};
use crate::catalog::record::{FileRecord, RecordKey, SegmentRecord};
use crate::model::{
    CheckpointId, FileState, Forgotten, Holder, JobId, JobRun, Location, Millis, PhysicalFileId, SegmentId,
};

/// Files of which [`CatalogState::advise_against_some`] says at once whether they should be reused.
const ADVISED_AT_ONCE: usize = 1024;

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
        Self { record, live: Ids::new(), live_bytes: 0, avoid: false }
    }
}

impl JobEntry {
    /// What it has besides segments; nothing for one that is only known by the keys of its objects.
    pub(super) fn life(&self) -> &JobLife {
        static NOTHING: JobLife = JobLife::new();
        self.life.as_deref().unwrap_or(&NOTHING)
    }

    pub(super) fn life_mut(&mut self) -> &mut JobLife {
        self.life.get_or_insert_default()
    }
}

impl JobLife {
    const fn new() -> Self {
        Self {
            record: None,
            run: JobRun(0),
            coordinator: None,
            checkpoints: BTreeMap::new(),
            by_last_used: BTreeMap::new(),
            by_savepoint: BTreeMap::new(),
            by_idempotency_key: Pages::new(),
        }
    }

    /// The index that knows what a holder holds, and under which number.
    fn index_of(&mut self, holder: &Holder) -> Option<(&mut BTreeMap<CheckpointId, Ids>, CheckpointId)> {
        match holder {
            Holder::Checkpoints { last_used } => Some((&mut self.by_last_used, *last_used)),
            Holder::Savepoint { id } => Some((&mut self.by_savepoint, *id)),
            Holder::Objects { .. } | Holder::Upload => None,
        }
    }

    pub(super) fn hold(&mut self, id: SegmentId, holder: &Holder) {
        if let Some((index, number)) = self.index_of(holder) {
            index.entry(number).or_default().insert(id, ());
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

fn needs_life(holder: &Holder, idempotency_key: bool) -> bool {
    idempotency_key || matches!(holder, Holder::Checkpoints { .. } | Holder::Savepoint { .. })
}

impl CatalogState {
    /// What a job has besides segments, if it is known.
    pub(super) fn life(&self, job: &JobId) -> Option<&JobLife> {
        self.jobs.get(job).map(JobEntry::life)
    }

    pub(super) fn life_mut(&mut self, job: &JobId) -> Option<&mut JobLife> {
        self.jobs.get_mut(job).map(JobEntry::life_mut)
    }

    /// The entry of a job and its number; made if there is none.
    pub(super) fn job_entry(&mut self, job: &JobId) -> (u32, &mut JobEntry) {
        let others = &mut self.memory.others;
        self.jobs.entry(job, || {
            *others += weight_of_job(job);
            JobEntry::default()
        })
    }

    pub(super) fn remove_job(&mut self, job: &JobId) {
        if let Some(entry) = self.jobs.remove(job) {
            let checkpoints = entry.life().checkpoints.len() as u64;
            self.memory.others -= weight_of_job(job) + checkpoints * CHECKPOINT_BYTES;
        }
    }

    /// The entry of a file; made if there is none.
    pub(super) fn file_entry(&mut self, file: &PhysicalFileId, make: impl FnOnce() -> FileRecord) -> &mut FileEntry {
        let others = &mut self.memory.others;
        let made = || {
            *others += weight_of_file(file);
            FileEntry::new(make())
        };
        self.files.entry(file, made).1
    }

    pub(super) fn file_grows(&mut self, file: &StoreFile, at: Millis) {
        let entry = self.file_entry(&file.id, || FileRecord {
            state: FileState::Open { durable_len: 0, len: 0 },
            created: at,
            lane: Some(file.lane.clone()),
            holes: 0,
            upload: file.upload.clone(),
            moved_from: false,
        });
        let mut grown = 0;
        if let FileState::Open { len, .. } = &mut entry.record.state {
            grown = file.len.saturating_sub(*len);
            *len = file.len.max(*len);
        }
        let put = RecordKey::File(file.id.to_string()).put(&entry.record);
        self.space.physical_bytes += grown;
        self.mutations.push(put);
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
        if let Some(number) = self.files.number(file) {
            self.forget_number_if_dead(number, why, at);
        }
    }

    fn forget_number_if_dead(&mut self, file: u32, why: Forgotten, at: Millis) {
        let Some((file, entry)) = self.files.at_mut(file) else { return };
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
            // Whoever named it again after it was forgotten may not keep its number.
            entry.live.keys().for_each(|id| self.segments.lose_file(*id, file));
            self.files.remove(file);
            self.memory.others -= weight_of_file(file);
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

    /// Workers should not reuse the segments of these files, and may reuse those of all others. Says so of some files, from the
    /// one of number `next` on. True when it is done.
    pub fn advise_against_some(&mut self, files: &BTreeSet<PhysicalFileId>, next: &mut u32) -> bool {
        let mut left = ADVISED_AT_ONCE;
        let mut goes_on = || {
            left -= 1;
            left > 0
        };
        self.files.each_mut(next, &mut goes_on, |id, entry| entry.avoid = files.contains(id))
    }

    /// Segments are where they were copied to, unless they were freed or moved before. Returns how many, and their bytes.
    pub(super) fn move_segments(&mut self, moved: Move, at: Millis) -> (u64, u64) {
        let Move { file, segments, private } = moved;
        let moved = self.move_some(&file, segments, private, at);
        self.end_move(&file, at);
        moved
    }

    /// The same for some of the segments. Their new file is closed by [`Self::end_move`]: until then a crash has it looked up,
    /// and its bytes are there.
    pub fn move_some(&mut self, file: &StoreFile, segments: Vec<Moved>, private: bool, at: Millis) -> (u64, u64) {
        self.file_grows(file, at);
        let Some(number) = self.files.number(&file.id) else { return (0, 0) };
        let (mut count, mut bytes) = (0, 0);
        // Files that something was moved away from, and whether anybody may know the places there.
        let mut left: BTreeMap<PhysicalFileId, bool> = BTreeMap::new();
        for Moved { id, from, to } in segments {
            let Some(kept) = self.segments.get(id) else { continue };
            if !kept.visible || kept.location(&self.files) != from || to.file != file.id {
                continue;
            }
            count += 1;
            bytes += to.len;
            let of_the_door = matches!(kept.holder, Holder::Objects { .. } | Holder::Upload);
            let before = Left::of(&kept);
            self.segments.update(id, |kept| {
                kept.place = SegmentPlace::File { file: number, offset: to.offset };
                kept.len = to.len;
            });
            self.put_segment_record(id);
            self.leave_place(id, before, to.len);
            if let Some((_, entry)) = self.files.at_mut(number) {
                entry.live.insert(id, ());
                entry.live_bytes += to.len;
            }
            if let Some(file) = from.file() {
                *left.entry(file.clone()).or_default() |= !(private && of_the_door);
            }
        }
        for (file, known) in left {
            self.was_left(&file, known, at);
        }
        (count, bytes)
    }

    /// Nothing more is moved into the file.
    pub fn end_move(&mut self, file: &StoreFile, at: Millis) {
        self.close_file(&file.id, file.len, Forgotten::Died, at);
    }

    /// Segments were moved away from a file, and their places there may be `known` to others.
    fn was_left(&mut self, file: &PhysicalFileId, known: bool, at: Millis) {
        if !known && self.files.get(file).is_some_and(|entry| !entry.record.moved_from) {
            // Nobody but a reader with a lease can be there: as if its grace were over.
            return self.forget_if_dead(file, Forgotten::Moved, Millis(0));
        }
        if let Some(entry) = self.files.get_mut(file)
            && !std::mem::replace(&mut entry.record.moved_from, true)
            && !entry.live.is_empty()
        {
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
        self.forget_if_dead(file, Forgotten::Moved, at);
    }

    /// A segment's bytes at this place are not needed any more.
    fn leave_place(&mut self, id: SegmentId, place: Left, len: u64) {
        match place {
            Left::Inline => {
                self.space.inline_bytes -= len;
                self.mutations.push(RecordKey::Data(id).delete());
            }
            Left::File(file) => {
                if let Some((_, file)) = self.files.at_mut(file) {
                    file.live.remove(&id);
                    file.live_bytes -= len;
                    self.changes.died += 1;
                }
            }
            Left::Unknown => {}
        }
    }

    pub(super) fn insert_segment(&mut self, id: SegmentId, record: &SegmentRecord, visible: bool) {
        let len = record.location.len();
        self.space.live_bytes += len;
        let file = match &record.location {
            Location::Inline { .. } => {
                self.space.inline_bytes += len;
                None
            }
            Location::File(segment) => self.files.number(&segment.file),
        };
        if let Some((_, file)) = file.and_then(|file| self.files.at_mut(file)) {
            file.live.insert(id, ());
            file.live_bytes += len;
        }
        let job = self.index_segment(id, record);
        self.segments.insert(id, record, visible, job, file);
    }

    /// Frees a segment; nothing happens if that was done before.
    pub(super) fn free_segment(&mut self, id: SegmentId, at: Millis) {
        let Some(kept) = self.segments.get(id) else { return };
        let (len, place) = (kept.len, Left::of(&kept));
        self.space.live_bytes -= len;
        self.mutations.push(RecordKey::Segment(id).delete());
        self.unindex_segment(id);
        self.segments.remove(id);
        self.leave_place(id, place, len);
        if let Left::File(file) = place {
            self.forget_number_if_dead(file, Forgotten::Died, at);
        }
    }

    /// Returns the number of its job.
    pub(super) fn index_segment(&mut self, id: SegmentId, record: &SegmentRecord) -> u32 {
        let (number, job) = self.job_entry(&record.job);
        job.segments.insert(id, ());
        if needs_life(&record.holder, record.idempotency_key.is_some()) {
            let life = job.life_mut();
            life.hold(id, &record.holder);
            if let Some(key) = &record.idempotency_key {
                life.by_idempotency_key.insert((hash_of(key.as_str()), id), ());
            }
        }
        number
    }

    /// Takes a segment, which is still there, out of its job's indexes.
    pub(super) fn unindex_segment(&mut self, id: SegmentId) {
        let Some(kept) = self.segments.get(id) else { return };
        let Some((name, job)) = self.jobs.at_mut(kept.job) else { return };
        job.segments.remove(&id);
        if let Some(life) = &mut job.life {
            life.release(id, &kept.holder);
            if let Some(key) = kept.idempotency_key {
                life.by_idempotency_key.remove(&(hash_of(key), id));
            }
        }
        if job.life().record.is_none() && job.segments.is_empty() {
            let name = name.clone();
            self.remove_job(&name);
        }
    }

    pub(super) fn put_segment_record(&mut self, id: SegmentId) {
        if let Some(record) = self.segments.record(id, &self.jobs, &self.files) {
            self.mutations.push(RecordKey::Segment(id).put(&record));
        }
    }

    /// So many S3 objects hold the segment.
    pub(super) fn set_objects(&mut self, id: SegmentId, count: u32) {
        self.segments.update(id, |kept| kept.holder = Holder::Objects { count });
        self.put_segment_record(id);
    }

    /// One S3 object more holds the segment.
    pub(super) fn hold_for_object(&mut self, id: SegmentId) {
        let Some(kept) = self.segments.get(id) else { return };
        let count = match kept.holder {
            Holder::Objects { count } => count + 1,
            _ => 1,
        };
        self.set_objects(id, count);
    }

    /// One S3 object less holds the segment; freed when it was the last.
    pub(super) fn release_from_object(&mut self, id: SegmentId, at: Millis) {
        match self.segments.get(id).map(|kept| kept.holder) {
            None => {}
            Some(Holder::Objects { count }) if count > 1 => self.set_objects(id, count - 1),
            Some(_) => self.free_segment(id, at),
        }
    }
}

/// Where a segment was.
#[derive(Debug, Clone, Copy)]
enum Left {
    Inline,
    File(u32),
    /// In a file that the catalog does not know.
    Unknown,
}

impl Left {
    fn of(kept: &KeptSegment<'_>) -> Self {
        match kept.place {
            SegmentPlace::Inline => Self::Inline,
            SegmentPlace::File { file, .. } => Self::File(file),
            SegmentPlace::Unknown { .. } => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::{Bind, Command, NewSegment, Outcome, Store, StoreItem};
    use crate::catalog::state::CatalogState;
    use crate::catalog::state::written::WrittenRecords;
    use crate::model::{About, Lane, LaneOf, Segment, SegmentCrc, StateScope, Writer};

    fn place(file: &PhysicalFileId, number: u64) -> Segment {
        Segment { file: file.clone(), offset: 100 * number, len: 10 }
    }

    /// A closed file of a job's first checkpoint in which segments 1 and 2 live; the second checkpoint uses the first.
    fn two_in_a_file(file: &PhysicalFileId, lane: &Lane) -> CatalogState {
        let mut state = CatalogState::default();
        let job = lane.job.clone().unwrap();
        state.apply(Command::CreateJob(job.clone()), Millis(1)).unwrap();
        let items = [1, 2].map(|number: u64| {
            let checkpoint = Some(CheckpointId(1));
            let (job, scope, writer) = (job.clone(), StateScope::Shared, Writer::default());
            let about = About { job, scope, writer, checkpoint, name: None };
            let location = Location::File(place(file, number));
            let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
            let bind = Bind::Checkpoint { idempotency_key: None, run: None };
            StoreItem { segments: vec![NewSegment { id, about, location, inline: None, crc }], bind }
        });
        let store_file = StoreFile { id: file.clone(), lane: lane.clone(), len: 300, closes: true, upload: None };
        let stored = state.apply(Command::Store(Store { file: Some(store_file), items: items.into() }), Millis(1));
        let Ok(Outcome::Stored(token, _)) = stored else { panic!("{stored:?}") };
        state.confirm(token, Millis(1));
        state.apply(Command::Reuse(job, CheckpointId(2), vec![SegmentId(1)], None), Millis(1)).unwrap();
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
        let reloaded = WrittenRecords::of(&mut state).loaded();
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
