//! Storing: a group of segments is accepted, then confirmed when its bytes are durable, or failed.

use std::ops::Bound;

use super::numbered::hash_of;
use super::segments::KeptSegment;
use super::{CatalogState, InFlight};
use crate::catalog::command::{Bind, NewSegment, Refusal, Store, StoreFile, StoreItem, StoreToken, Stored};
use crate::catalog::mutation::Mutation;
use crate::catalog::record::{PartRecord, RecordKey, SegmentRecord};
use crate::model::{CheckpointId, FileState, Forgotten, Handle, Holder, IdempotencyKey, Millis, SegmentId};

/// Segments that become visible at once.
const SEGMENTS_AT_ONCE: usize = 512;
/// Objects or parts that begin to count at once, or segments that go.
const NAMED_AT_ONCE: usize = 64;

impl CatalogState {
    pub(super) fn store(&mut self, store: Store, at: Millis) -> (StoreToken, Vec<Result<Stored, Refusal>>) {
        let token = self.begin_store(store.file, at);
        (token, self.add_to_store(token, store.items, at))
    }

    /// Begins a store whose items follow.
    pub fn begin_store(&mut self, file: Option<StoreFile>, at: Millis) -> StoreToken {
        self.next_token += 1;
        let token = StoreToken(self.next_token);
        if let Some(file) = &file {
            self.file_grows(file, at);
        }
        self.in_flight.insert(token, InFlight { file, segments: vec![], objects: vec![], parts: vec![] });
        token
    }

    /// Takes in some items of a store that nobody has settled. Answers each, in order.
    pub fn add_to_store(
        &mut self,
        token: StoreToken,
        items: impl IntoIterator<Item = StoreItem>,
        at: Millis,
    ) -> Vec<Result<Stored, Refusal>> {
        let Some(mut in_flight) = self.in_flight.remove(&token) else { return vec![] };
        let answers = items.into_iter().map(|item| self.store_item(item, token, &mut in_flight, at)).collect();
        self.in_flight.insert(token, in_flight);
        answers
    }

    fn store_item(
        &mut self,
        item: StoreItem,
        token: StoreToken,
        in_flight: &mut InFlight,
        at: Millis,
    ) -> Result<Stored, Refusal> {
        let room = self.has_room_for_item(&item);
        let StoreItem { segments, bind } = item;
        match bind {
            Bind::Checkpoint { idempotency_key, run } => {
                for segment in &segments {
                    if let Some(checkpoint) = segment.about.checkpoint {
                        self.checkpoint_takes_segments(&segment.about.job, checkpoint)?;
                        self.is_of_run(&segment.about.job, checkpoint, run)?;
                    }
                }
                if let (Some(key), [segment]) = (&idempotency_key, &segments[..])
                    && let Some(handle) = self.repeat_of(key, segment)?
                {
                    return Ok(Stored::Repeat(handle));
                }
                room?;
                let handles = segments.iter().map(handle_of).collect();
                for segment in segments {
                    let holder = match segment.about.checkpoint {
                        Some(checkpoint) => self.checkpoint_gets_segment(&segment.about.job, checkpoint, at)?,
                        None => Holder::Checkpoints { last_used: CheckpointId(0) },
                    };
                    self.new_segment(segment, holder, idempotency_key.clone(), in_flight, at);
                }
                Ok(Stored::Handles(handles))
            }
            Bind::Object(put) => {
                room?;
                let content = self.object_content(&put, &segments)?;
                let mut new = Vec::with_capacity(segments.len());
                for segment in segments {
                    let names = content.segments.iter().filter(|id| **id == segment.id).count();
                    let count = u32::try_from(names).unwrap_or(u32::MAX);
                    new.push(segment.id);
                    self.new_segment(segment, Holder::Objects { count }, None, in_flight, at);
                }
                in_flight.objects.push((put.bucket.clone(), put.key.clone()));
                Ok(self.put_object(*put, content, &new, token, at))
            }
            Bind::Part { upload, number, part } => {
                room?;
                if !self.uploads.contains_key(&upload) {
                    return Err(Refusal::NoSuchUpload(upload));
                }
                let record = PartRecord { segment: segments.first().map(|segment| segment.id), head: part };
                for segment in segments {
                    self.new_segment(segment, Holder::Upload, None, in_flight, at);
                }
                in_flight.parts.push((upload.clone(), number));
                self.put_part(&upload, number, record, token);
                Ok(Stored::Part)
            }
        }
    }

    /// The handle of the segment that an earlier put with `key` stored.
    fn repeat_of(&self, key: &IdempotencyKey, segment: &NewSegment) -> Result<Option<Handle>, Refusal> {
        let Some(life) = self.life(&segment.about.job) else { return Ok(None) };
        let hash = hash_of(key.as_str());
        let from = (hash, SegmentId(0));
        let alike =
            life.by_idempotency_key.iter_from(Bound::Included(&from)).take_while(|((other, _), ())| *other == hash);
        let alike = alike.filter_map(|((_, id), ())| Some((*id, self.segments.get(*id)?)));
        let with_key = |(_, kept): &(SegmentId, KeptSegment<'_>)| {
            kept.idempotency_key == Some(key.as_str()) && !self.is_leaving(kept)
        };
        let Some((id, kept)) = alike.filter(with_key).last() else { return Ok(None) };
        if kept.crc() != segment.crc.whole || kept.len != segment.location.len() {
            return Err(Refusal::KeyReused(key.clone()));
        }
        if !kept.visible {
            return Err(Refusal::KeyInFlight(key.clone()));
        }
        Ok(Some(Handle { id, location: kept.location(&self.files), crc32c: kept.crc() }))
    }

    fn new_segment(
        &mut self,
        segment: NewSegment,
        holder: Holder,
        idempotency_key: Option<IdempotencyKey>,
        in_flight: &mut InFlight,
        at: Millis,
    ) {
        let NewSegment { id, about, location, inline, crc } = segment;
        let record = SegmentRecord {
            job: about.job,
            scope: about.scope,
            writer: about.writer,
            checkpoint: about.checkpoint,
            holder,
            location,
            crc,
            name: about.name,
            idempotency_key,
            created: at,
        };
        if let Some(data) = inline {
            self.mutations.push(Mutation::Put { key: RecordKey::Data(id).encode(), value: data });
        }
        self.mutations.push(RecordKey::Segment(id).put(&record));
        self.insert_segment(id, &record, false);
        in_flight.segments.push(id);
    }

    /// The bytes of a store are durable, and so is its commit: what it brought can be read from now on.
    ///
    /// Nothing happens for a token that was settled.
    pub fn confirm(&mut self, token: StoreToken, at: Millis) {
        while !self.confirm_some(token, at) {}
    }

    /// The same, but of many things only some. True when it is done.
    pub fn confirm_some(&mut self, token: StoreToken, at: Millis) -> bool {
        let Some(mut in_flight) = self.in_flight.remove(&token) else { return true };
        let InFlight { file, segments, objects, parts } = &mut in_flight;
        let rest = segments.len().saturating_sub(SEGMENTS_AT_ONCE);
        for id in segments.drain(rest..) {
            self.segments.update(id, |kept| kept.visible = true);
        }
        if segments.is_empty() {
            // In the order in which they were put: of two under one key the later one counts.
            for (bucket, key) in objects.drain(..objects.len().min(NAMED_AT_ONCE)) {
                self.promote_object(&bucket, &key, token, at);
            }
            for (upload, number) in parts.drain(..parts.len().min(NAMED_AT_ONCE)) {
                self.promote_part(&upload, number, token, at);
            }
        }
        if segments.is_empty() && objects.is_empty() && parts.is_empty() {
            if let Some(file) = file {
                self.file_confirmed(file, at);
            }
            return true;
        }
        self.in_flight.insert(token, in_flight);
        false
    }

    /// The same as [`Self::fail`] for a store whose file has `len` bytes: what the store brought was cut off again.
    pub fn fail_at(&mut self, token: StoreToken, len: u64, at: Millis) {
        while !self.fail_some(token, Some(len), at) {}
    }

    /// From now on a file that grows stays open when a group of it fails: its writer may still have it, and whoever releases
    /// it closes it.
    pub fn keep_failed_files_open(&mut self) {
        self.failed_files_stay_open = true;
    }

    /// The bytes of a store did not arrive, or nobody knows: what it brought is dropped, its file takes no more.
    ///
    /// Nothing happens for a token that was settled.
    pub fn fail(&mut self, token: StoreToken, at: Millis) {
        while !self.fail_some(token, None, at) {}
    }

    /// The same, but of many things only some. True when it is done.
    pub fn fail_some(&mut self, token: StoreToken, len: Option<u64>, at: Millis) -> bool {
        let Some(mut in_flight) = self.in_flight.remove(&token) else { return true };
        let InFlight { file, segments, objects, parts } = &mut in_flight;
        for (bucket, key) in objects.drain(..objects.len().min(NAMED_AT_ONCE)) {
            self.demote_object(&bucket, &key, token, at);
        }
        for (upload, number) in parts.drain(..parts.len().min(NAMED_AT_ONCE)) {
            self.demote_part(&upload, number, token);
        }
        if objects.is_empty() && parts.is_empty() {
            for id in segments.drain(..segments.len().min(NAMED_AT_ONCE)) {
                self.free_segment(id, at);
            }
        }
        if segments.is_empty() && objects.is_empty() && parts.is_empty() {
            let stays_open = |file: &StoreFile| self.failed_files_stay_open && len.is_none() && !file.closes;
            if let Some(file) = file.take_if(|file| !stays_open(file)) {
                let file = &file;
                let len = len.unwrap_or_else(|| self.len_without(file));
                self.close_file(&file.id, len, Forgotten::GivenUp, at);
            }
            return true;
        }
        self.in_flight.insert(token, in_flight);
        false
    }

    /// How long a file is at least if what was to be stored up to `file.len` did not arrive: what was to come is not
    /// counted as there. A file that comes whole is there or not, and is counted until it is deleted.
    fn len_without(&self, file: &StoreFile) -> u64 {
        match self.files.get(&file.id).map(|entry| entry.record.state) {
            Some(FileState::Open { durable_len, .. }) if !file.closes => durable_len,
            _ => file.len,
        }
    }
}

fn handle_of(segment: &NewSegment) -> Handle {
    Handle { id: segment.id, location: segment.location.clone(), crc32c: segment.crc.whole }
}

/// The new segments of an item by identity, for those who look them up.
pub(super) fn is_new(segments: &[NewSegment], id: SegmentId) -> bool {
    segments.iter().any(|segment| segment.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::Command;
    use crate::error::ErrorKind;
    use crate::model::{
        About, CheckpointKind, JobEnd, JobId, JobRun, Lane, LaneOf, Leavings, Location, PhysicalFileId, SegmentCrc,
        StateScope, Writer,
    };

    const NOW: Millis = Millis(1);

    fn file_state(closes: bool, take_back: impl FnOnce(&mut CatalogState, StoreToken)) -> (Option<FileState>, u64) {
        let mut state = CatalogState::default();
        let id = PhysicalFileId::new(None, 1, 42);
        let lane = Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
        let grows = |len, closes| StoreFile { id: id.clone(), lane: lane.clone(), len, closes, upload: None };
        let (first, _) = state.store(Store { file: Some(grows(100, false)), items: vec![] }, NOW);
        state.confirm(first, NOW);
        let (second, _) = state.store(Store { file: Some(grows(300, closes)), items: vec![] }, NOW);
        take_back(&mut state, second);
        assert_eq!(state.check(), Vec::<String>::new());
        (state.file(&id).map(|view| view.state), state.space().physical_bytes)
    }

    fn segment(job: &JobId, id: u128, checkpoint: u64) -> NewSegment {
        let (scope, writer) = (StateScope::Shared, Writer::default());
        let about = About { job: job.clone(), scope, writer, checkpoint: Some(CheckpointId(checkpoint)), name: None };
        let (location, inline) = (Location::Inline { len: 5 }, Some("bytes".into()));
        NewSegment { id: SegmentId(id), about, location, inline, crc: SegmentCrc::of(b"bytes") }
    }

    fn stores(state: &mut CatalogState, segment: NewSegment, run: Option<JobRun>) -> Result<Stored, Refusal> {
        let bind = Bind::Checkpoint { idempotency_key: None, run };
        let items = vec![StoreItem { segments: vec![segment], bind }];
        let (token, mut answers) = state.store(Store { file: None, items }, NOW);
        state.confirm(token, NOW);
        answers.remove(0)
    }

    #[test]
    fn what_began_in_one_run_of_a_job_is_of_no_other() {
        let (mut state, job, one) = (CatalogState::default(), "j".parse::<JobId>().unwrap(), CheckpointId(1));
        state.apply(Command::CreateJob(job.clone()), NOW).unwrap();
        let first = state.would_take(&job, one).unwrap();
        assert!(stores(&mut state, segment(&job, 1, 1), Some(first)).is_ok());
        let refused = Refusal::OtherRun(job.clone(), one);

        state.apply(Command::CreateJob(job.clone()), NOW).unwrap();
        assert_eq!(state.run_of(&job), first, "it is there");
        for end in [Command::EndJob(job.clone(), JobEnd::Canceled, Leavings::Delete), Command::BeginRun(job.clone())] {
            let before = state.run_of(&job);
            state.apply(end, NOW).unwrap();
            state.apply(Command::CreateJob(job.clone()), NOW).unwrap();

            assert_eq!(stores(&mut state, segment(&job, 2, 1), Some(before)), Err(refused.clone()));
            let reuse = Command::Reuse(job.clone(), one, vec![SegmentId(1)], Some(before));
            assert_eq!(state.apply(reuse, NOW).unwrap_err(), refused);
            assert!(state.checkpoints(&job).is_empty(), "no checkpoint has begun");
        }
        assert_eq!(state.apply(Command::BeginRun("k".parse().unwrap()), NOW).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[test]
    fn a_savepoint_completes_with_the_segments_that_it_is_to_hold_and_others_are_freed_before() {
        let (mut state, job, id) = (CatalogState::default(), "j".parse::<JobId>().unwrap(), CheckpointId(3));
        state.apply(Command::CreateJob(job.clone()), NOW).unwrap();
        state.apply(Command::BeginCheckpoint(job.clone(), id, CheckpointKind::Savepoint), NOW).unwrap();
        for number in 1..=4 {
            stores(&mut state, segment(&job, number, 3), None).unwrap();
        }
        stores(&mut state, segment(&job, 9, 4), None).unwrap();
        let free = |state: &mut CatalogState, id, segments: &[u128]| {
            let segments = segments.iter().copied().map(SegmentId).collect();
            state.apply(Command::FreeOfSavepoint(job.clone(), id, segments), NOW)
        };
        let complete =
            |state: &mut CatalogState, count| state.apply(Command::CompleteSavepoint(job.clone(), id, count), NOW);

        // One is on its way.
        let bind = Bind::Checkpoint { idempotency_key: None, run: None };
        let items = vec![StoreItem { segments: vec![segment(&job, 5, 3)], bind }];
        let (token, _) = state.store(Store { file: None, items }, NOW);
        assert_eq!(complete(&mut state, 4).unwrap_err(), Refusal::SavepointHolds(job.clone(), id, 5));
        free(&mut state, id, &[2, 5, 9, 77]).unwrap();
        state.confirm(token, NOW);
        assert!(free(&mut state, CheckpointId(4), &[9]).is_err(), "it is no savepoint");
        complete(&mut state, 3).unwrap();

        let held: Vec<u128> = state.all_segments().map(|view| view.id.0).collect();
        assert_eq!(held, [1, 3, 4, 9]);
        assert!(free(&mut state, id, &[1]).is_err(), "it is complete");
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[test]
    fn a_file_whose_last_group_failed_ends_where_what_was_confirmed_ends() {
        let ended = |len| (Some(FileState::Forgotten { len, since: NOW, why: Forgotten::GivenUp }), len);

        assert_eq!(file_state(false, |state, token| state.fail(token, NOW)), ended(100));
        assert_eq!(file_state(false, |state, token| state.fail_at(token, 120, NOW)), ended(120));
        assert_eq!(file_state(true, |state, token| state.fail(token, NOW)), ended(300), "it may have arrived");
    }
}
