//! Multipart uploads that survive a restart, and their parts.

use std::collections::{BTreeMap, HashSet};

use super::memory::{PART_BYTES, weight_of_upload};
use super::store::is_new;
use super::{CatalogState, PartVersion, UploadEntry};
use crate::catalog::command::{NewSegment, Refusal, StoreToken};
use crate::catalog::record::{PartRecord, PartSlot, RecordKey, UploadRecord};
use crate::model::{Holder, Millis, SegmentId};

impl CatalogState {
    pub(super) fn create_upload(&mut self, id: String, record: UploadRecord) -> Result<(), Refusal> {
        self.bucket(&record.upload.bucket)?;
        if !self.uploads.contains_key(&id) {
            self.mutations.push(RecordKey::Upload(id.clone()).put(&record));
            self.insert_upload(id, UploadEntry { record, parts: BTreeMap::new() });
        }
        Ok(())
    }

    pub(super) fn insert_upload(&mut self, id: String, entry: UploadEntry) {
        let versions: usize = entry.parts.values().map(Vec::len).sum();
        self.memory.others += weight_of_upload(&id, &entry) + versions as u64 * PART_BYTES;
        self.uploads.insert(id, entry);
    }

    /// Forgets an upload; parts that no object took are freed.
    pub(super) fn end_upload(&mut self, id: &str, at: Millis) {
        let Some(upload) = self.uploads.remove(id) else { return };
        let versions: usize = upload.parts.values().map(Vec::len).sum();
        self.memory.others -= weight_of_upload(id, &upload) + versions as u64 * PART_BYTES;
        self.mutations.push(RecordKey::Upload(id.to_owned()).delete());
        for (number, versions) in upload.parts {
            self.mutations.push(RecordKey::Part(id.to_owned(), number).delete());
            self.free_parts(versions, at);
        }
    }

    pub(super) fn end_uploads_to(&mut self, bucket: &str, at: Millis) {
        let to_it = |(id, entry): (&String, &UploadEntry)| (entry.record.upload.bucket == bucket).then(|| id.clone());
        let ended: Vec<String> = self.uploads.iter().filter_map(to_it).collect();
        ended.iter().for_each(|id| self.end_upload(id, at));
    }

    fn free_parts(&mut self, versions: Vec<PartVersion>, at: Millis) {
        for id in versions.into_iter().filter_map(|version| version.record.segment) {
            if self.segments.get(id).is_some_and(|kept| kept.holder == Holder::Upload) {
                self.free_segment(id, at);
            }
        }
    }

    /// Whether an object of these segments can be made: each is new, or a part that has arrived.
    pub(super) fn check_parts(&self, upload: &str, segments: &[SegmentId], new: &[NewSegment]) -> Result<(), Refusal> {
        let entry = self.uploads.get(upload).ok_or_else(|| Refusal::NoSuchUpload(upload.to_owned()))?;
        let arrived = entry.parts.values().filter_map(|versions| arrived(versions)?.segment);
        let parts: HashSet<SegmentId> = arrived.collect();
        let there = |id: &SegmentId| {
            is_new(new, *id) || parts.contains(id) && self.segments.get(*id).is_some_and(|kept| kept.visible)
        };
        if segments.iter().all(there) { Ok(()) } else { Err(Refusal::NoSuchPart(upload.to_owned())) }
    }

    /// Takes in a part that is on its way; the one before it stays until it has arrived.
    pub(super) fn put_part(&mut self, id: &str, number: u16, record: PartRecord, token: StoreToken) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        let versions = upload.parts.entry(number).or_default();
        versions.insert(0, PartVersion { record, on_its_way: Some(token) });
        self.memory.others += PART_BYTES;
        self.put_part_slot(id, number);
    }

    /// The part that `token` brought has arrived: it is the one now, unless a newer one is.
    pub(super) fn promote_part(&mut self, id: &str, number: u16, token: StoreToken, at: Millis) {
        let Some(versions) = self.part_versions_mut(id, number) else { return };
        let Some(arrived) = versions.iter().position(|version| version.on_its_way == Some(token)) else { return };
        versions[arrived].on_its_way = None;
        let replaced = versions.split_off(arrived + 1);
        self.memory.others -= replaced.len() as u64 * PART_BYTES;
        if !replaced.is_empty() {
            self.put_part_slot(id, number);
        }
        self.free_parts(replaced, at);
    }

    /// The part that `token` should have brought is lost.
    pub(super) fn demote_part(&mut self, id: &str, number: u16, token: StoreToken) {
        let Some(versions) = self.part_versions_mut(id, number) else { return };
        let before = versions.len();
        versions.retain(|version| version.on_its_way != Some(token));
        let lost = before - versions.len();
        self.memory.others -= lost as u64 * PART_BYTES;
        self.put_part_slot(id, number);
    }

    fn part_versions_mut(&mut self, id: &str, number: u16) -> Option<&mut Vec<PartVersion>> {
        self.uploads.get_mut(id)?.parts.get_mut(&number)
    }

    /// Writes what stands under a number now.
    pub(super) fn put_part_slot(&mut self, id: &str, number: u16) {
        let Some(upload) = self.uploads.get_mut(id) else { return };
        let key = RecordKey::Part(id.to_owned(), number);
        let versions = upload.parts.get(&number).map_or(&[][..], |versions| versions);
        if versions.is_empty() {
            upload.parts.remove(&number);
            self.mutations.push(key.delete());
        } else {
            let versions = versions.iter().map(|version| version.record.clone()).collect();
            self.mutations.push(key.put(&PartSlot { versions }));
        }
    }
}

/// The version of a part that counts.
pub(super) fn arrived(versions: &[PartVersion]) -> Option<&PartRecord> {
    versions.iter().find(|version| version.on_its_way.is_none()).map(|version| &version.record)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::command::{
        Bind, Command, Condition, MadeBy, ObjectContent, Outcome, PutObject, Store, StoreFile, StoreItem,
    };
    use crate::catalog::mutation::Mutation;
    use crate::catalog::state::written::WrittenRecords;
    use crate::model::{
        About, Label, Lane, LaneOf, Location, NewUpload, ObjectHead, ObjectHeaders, PartHead, PhysicalFileId, Segment,
        SegmentCrc, StateScope, Writer,
    };

    const UPLOAD: &str = "01JDSW0000000000000000000";
    const KEY: &str = "sink/2026-11-28--22/part-5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f-0";
    const NOW: Millis = Millis(1);

    fn about() -> About {
        About {
            job: "bucket/sink".parse().unwrap(),
            scope: StateScope::Exclusive,
            writer: Writer::default(),
            checkpoint: None,
            name: Some(Label::parse("name", &format!("s3://bucket/{KEY}")).unwrap()),
        }
    }

    fn upload() -> Arc<NewUpload> {
        let (bucket, key) = ("bucket".into(), KEY.into());
        Arc::new(NewUpload { bucket, key, headers: ObjectHeaders::default(), checksum: None })
    }

    fn part() -> PartHead {
        let etag = "25f9e794323b453885f5181f1b624d0b".into();
        PartHead { len: 10, etag, checksum: None, modified: NOW }
    }

    /// A part of 10 bytes, whose segment is `id`, in a file of its own.
    fn store(number: u16, id: u128) -> Command {
        let job = about().job;
        let file = PhysicalFileId::new(Some(&job), 1, id);
        let place = Segment { file: file.clone(), offset: 100, len: 10 };
        let segment = NewSegment {
            id: SegmentId(id),
            about: about(),
            location: Location::File(place),
            inline: None,
            crc: SegmentCrc { whole: u32::MAX, blocks: [].into() },
        };
        let lane = Lane { job: Some(job), scope: StateScope::Exclusive, of: LaneOf::All };
        let file = StoreFile { id: file, lane, len: 300, closes: true, upload: None };
        let bind = Bind::Part { upload: UPLOAD.into(), number, part: part() };
        Command::Store(Store { file: Some(file), items: vec![StoreItem { segments: vec![segment], bind }] })
    }

    fn completion(ids: impl Iterator<Item = u128>) -> Command {
        let segments: Vec<SegmentId> = ids.map(SegmentId).collect();
        let head = ObjectHead {
            len: 10 * segments.len() as u64,
            part_lens: vec![10; segments.len()],
            etag: "e-1".into(),
            modified: NOW,
            headers: ObjectHeaders::default(),
            checksum: None,
        };
        let content = ObjectContent::Segments { segments, head, upload: Some(MadeBy::Recorded(UPLOAD.into())) };
        let (bucket, key) = ("bucket".into(), KEY.into());
        let put = PutObject { bucket, key, condition: Condition::None, content };
        let bind = Bind::Object(Box::new(put));
        Command::Store(Store { file: None, items: vec![StoreItem { segments: vec![], bind }] })
    }

    fn stored(state: &mut CatalogState, command: Command) -> StoreToken {
        match state.apply(command, NOW).unwrap() {
            Outcome::Stored(token, answers) if answers.iter().all(Result::is_ok) => token,
            other => panic!("{other:?}"),
        }
    }

    /// An upload whose parts have the segments 1 to `parts`, and what was written of it.
    fn uploaded(parts: u16) -> (CatalogState, WrittenRecords) {
        let (mut state, mut journal) = (CatalogState::default(), WrittenRecords::default());
        state.apply(Command::CreateBucket("bucket".into()), NOW).unwrap();
        state.apply(Command::CreateUpload(UPLOAD.into(), upload(), NOW), NOW).unwrap();
        for number in 1..=parts {
            let token = stored(&mut state, store(number, number.into()));
            state.confirm(token, NOW);
        }
        journal.write(&state.take_mutations());
        (state, journal)
    }

    fn living(state: &CatalogState) -> Vec<u128> {
        let mut ids: Vec<u128> = state.all_segments().map(|view| view.id.0).collect();
        ids.sort_unstable();
        ids
    }

    fn numbers(state: &CatalogState) -> Vec<u16> {
        state.parts(UPLOAD).map(|part| part.number).collect()
    }

    /// The states after a crash behind each of the changes of `command`.
    fn crashes(state: &mut CatalogState, journal: &WrittenRecords, command: Command) -> Vec<CatalogState> {
        state.apply(command, NOW).unwrap();
        let mutations = state.take_mutations();
        let crash = |written| {
            let mut journal = journal.clone();
            journal.write(&mutations[..written]);
            let mut state = journal.recovered(NOW);
            assert_eq!(state.check(), Vec::<String>::new(), "after {written} of {mutations:?}");
            journal.write(&state.take_mutations());
            assert_eq!(living(&journal.recovered(NOW)), living(&state));
            state
        };
        (0..=mutations.len()).map(crash).collect()
    }

    #[test]
    fn a_completion_that_is_written_in_part_loses_and_leaks_nothing() {
        let (mut state, journal) = uploaded(3);

        let states = crashes(&mut state, &journal, completion([1, 3].into_iter()));

        for (written, state) in states.iter().enumerate() {
            let object = state.object("bucket", KEY).map(|found| found.made_by().unwrap().to_owned());
            if written == 0 {
                assert_eq!((object, numbers(state), living(state)), (None, vec![1, 2, 3], vec![1, 2, 3]));
            } else {
                let there = (object.as_deref(), state.upload(UPLOAD).is_some(), living(state));
                assert_eq!(there, (Some(UPLOAD), false, vec![1, 3]), "{written}");
            }
        }
    }

    #[test]
    fn an_abort_that_is_written_in_part_leaks_nothing() {
        let (mut state, journal) = uploaded(3);

        let states = crashes(&mut state, &journal, Command::AbortUpload(UPLOAD.into()));

        assert_eq!(numbers(&states[0]), [1, 2, 3]);
        for state in &states[1..] {
            assert!(state.upload(UPLOAD).is_none() && living(state).is_empty());
        }
    }

    #[test]
    fn a_part_that_is_uploaded_again_takes_the_place_of_the_old_one_when_it_has_arrived() {
        let (mut state, mut journal) = uploaded(1);
        let etag = |state: &CatalogState| state.parts(UPLOAD).map(|part| part.segment.unwrap().0).next();

        let lost = stored(&mut state, store(1, 7));
        journal.write(&state.take_mutations());
        assert_eq!((etag(&state), living(&state)), (Some(1), vec![1, 7]));
        assert_eq!(living(&journal.recovered(NOW)), [7], "a crash after which the bytes were found");
        state.fail(lost, NOW);
        assert_eq!((etag(&state), living(&state)), (Some(1), vec![1]));

        let arrives = stored(&mut state, store(1, 8));
        state.confirm(arrives, NOW);
        assert_eq!((etag(&state), living(&state)), (Some(8), vec![8]));
        journal.write(&state.take_mutations());
        assert_eq!(living(&journal.recovered(NOW)), [8]);
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[test]
    fn ten_thousand_parts_are_written_once_each_and_completed_by_one_batch() {
        let (mut state, mut journal) = uploaded(0);
        let (mut halves, mut bytes) = (vec![], 0);
        for number in 1..=10_000 {
            let token = stored(&mut state, store(number, number.into()));
            state.confirm(token, NOW);
            let mutations = state.take_mutations();
            bytes += mutations.iter().map(Mutation::weight).sum::<usize>();
            journal.write(&mutations);
            if number % 5000 == 0 {
                halves.push(std::mem::take(&mut bytes));
            }
        }
        assert!(halves[1] < halves[0] + halves[0] / 10 && halves[0] < 5000 * 1024, "{halves:?} bytes");

        let command = completion(1..=10_000);
        assert!(command.weight() <= 16 << 20);
        let token = stored(&mut state, command);
        state.confirm(token, NOW);

        let mutations = state.take_mutations();
        assert!(mutations.iter().map(Mutation::weight).sum::<usize>() < 8 << 20);
        journal.write(&mutations);
        let state = journal.recovered(NOW);
        assert_eq!(state.check(), Vec::<String>::new());
        assert_eq!(state.object("bucket", KEY).unwrap().segments().len(), 10_000);
        assert_eq!(state.uploads().count(), 0);
    }

    #[test]
    fn an_upload_of_version_2_goes_on_and_its_parts_get_records_of_their_own() {
        let (mut state, mut journal) = uploaded(2);
        let record = UploadRecord { upload: upload(), created: NOW };
        let old_part = |id| PartRecord { segment: Some(SegmentId(id)), head: part() };
        let old = (record, vec![(1_u16, old_part(1)), (2, old_part(2))]);
        let value: Vec<u8> = postcard::to_extend(&old, vec![2_u8]).unwrap();
        journal.0.retain(|key, _| !key.starts_with(b"u"));
        journal.0.insert(RecordKey::Upload(UPLOAD.into()).encode(), value.into());

        let mut migrated = journal.recovered(NOW);

        assert_eq!((numbers(&migrated), living(&migrated)), (numbers(&state), living(&state)));
        journal.write(&migrated.take_mutations());
        let token = stored(&mut state, completion(1..=2));
        state.confirm(token, NOW);
        journal.write(&state.take_mutations());
        let completed = journal.recovered(NOW);
        assert_eq!(completed.check(), Vec::<String>::new());
        assert!(journal.0.keys().all(|key| !key.starts_with(b"u")), "records of the upload are left");
    }
}
