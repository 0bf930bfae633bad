//! Storing: a group of segments is accepted, then confirmed when its bytes are durable, or failed.

use super::{InFlight, State};
use crate::catalog::command::{Bind, Item, NewSegment, Refusal, Store, StoreFile, StoreToken, Stored};
use crate::catalog::record::{FileState, Forgotten, Holder, Mutation, RecordKey, SegmentRecord};
use crate::model::{CheckpointId, Handle, IdempotencyKey, Millis, SegmentId};

impl State {
    pub(super) fn store(&mut self, store: Store, at: Millis) -> (StoreToken, Vec<Result<Stored, Refusal>>) {
        self.next_token += 1;
        let token = StoreToken(self.next_token);
        if let Some(file) = &store.file {
            self.file_grows(file, at);
        }
        let mut in_flight = InFlight { file: store.file, segments: vec![], objects: vec![], parts: vec![] };
        let answers = store.items.into_iter().map(|item| self.store_item(item, token, &mut in_flight, at)).collect();
        self.in_flight.insert(token, in_flight);
        (token, answers)
    }

    fn store_item(
        &mut self,
        item: Item,
        token: StoreToken,
        in_flight: &mut InFlight,
        at: Millis,
    ) -> Result<Stored, Refusal> {
        let Item { segments, bind } = item;
        match bind {
            Bind::Checkpoint { idempotency_key } => {
                for segment in &segments {
                    if let Some(checkpoint) = segment.about.checkpoint {
                        self.checkpoint_takes_segments(&segment.about.job, checkpoint)?;
                    }
                }
                if let (Some(key), [segment]) = (&idempotency_key, &segments[..])
                    && let Some(handle) = self.repeat_of(key, segment)?
                {
                    return Ok(Stored::Repeat(handle));
                }
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
                let content = self.object_content(&put, &segments)?;
                for segment in segments {
                    self.new_segment(segment, Holder::Objects { count: 0 }, None, in_flight, at);
                }
                in_flight.objects.push((put.bucket.clone(), put.key.clone()));
                Ok(self.put_object(*put, content, token, at))
            }
            Bind::Part { upload, number, part } => {
                if !self.uploads.contains_key(&upload) {
                    return Err(Refusal::NoSuchUpload(upload));
                }
                for segment in segments {
                    self.new_segment(segment, Holder::Upload, None, in_flight, at);
                }
                in_flight.parts.push((upload.clone(), number));
                self.put_part(&upload, number, part, token);
                Ok(Stored::Part)
            }
        }
    }

    /// The handle of the segment that an earlier put with `key` stored.
    fn repeat_of(&self, key: &IdempotencyKey, segment: &NewSegment) -> Result<Option<Handle>, Refusal> {
        let job = self.jobs.get(&segment.about.job);
        let Some(id) = job.and_then(|job| job.idempotency_keys.get(key)) else { return Ok(None) };
        let Some(entry) = self.segments.get(id) else { return Ok(None) };
        let same = entry.record.crc.whole == segment.crc.whole && entry.record.location.len() == segment.location.len();
        if !same {
            return Err(Refusal::KeyReused(key.clone()));
        }
        if !entry.visible {
            return Err(Refusal::KeyInFlight(key.clone()));
        }
        Ok(Some(Handle { id: *id, location: entry.record.location.clone(), crc32c: entry.record.crc.whole }))
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
        self.insert_segment(id, record, false);
        in_flight.segments.push(id);
    }

    /// The bytes of a store are durable, and so is its commit: what it brought can be read from now on.
    ///
    /// Nothing happens for a token that was settled.
    pub fn confirm(&mut self, token: StoreToken, at: Millis) {
        let Some(in_flight) = self.in_flight.remove(&token) else { return };
        for id in &in_flight.segments {
            if let Some(entry) = self.segments.get_mut(id) {
                entry.visible = true;
            }
        }
        for (bucket, key) in &in_flight.objects {
            self.promote_object(bucket, key, token, at);
        }
        for (upload, number) in &in_flight.parts {
            self.promote_part(upload, *number, token, at);
        }
        if let Some(file) = &in_flight.file {
            self.file_confirmed(file, at);
        }
    }

    /// The same as [`Self::fail`] for a store whose file has `len` bytes: what the store brought was cut off again.
    pub fn fail_at(&mut self, token: StoreToken, len: u64, at: Millis) {
        self.take_back(token, Some(len), at);
    }

    /// The bytes of a store did not arrive, or nobody knows: what it brought is dropped, its file takes no more.
    ///
    /// Nothing happens for a token that was settled.
    pub fn fail(&mut self, token: StoreToken, at: Millis) {
        self.take_back(token, None, at);
    }

    fn take_back(&mut self, token: StoreToken, len: Option<u64>, at: Millis) {
        let Some(in_flight) = self.in_flight.remove(&token) else { return };
        for (bucket, key) in &in_flight.objects {
            self.demote_object(bucket, key, token, at);
        }
        for (upload, number) in &in_flight.parts {
            self.demote_part(upload, *number, token);
        }
        for id in in_flight.segments {
            self.free_segment(id, at);
        }
        if let Some(file) = in_flight.file {
            let len = len.unwrap_or_else(|| self.len_without(&file));
            self.close_file(&file.id, len, Forgotten::GivenUp, at);
        }
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
    use crate::model::{Lane, LaneOf, PhysicalFileId, StateScope};

    const NOW: Millis = Millis(1);

    fn file_state(closes: bool, take_back: impl FnOnce(&mut State, StoreToken)) -> (Option<FileState>, u64) {
        let mut state = State::default();
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

    #[test]
    fn a_file_whose_last_group_failed_ends_where_what_was_confirmed_ends() {
        let ended = |len| (Some(FileState::Forgotten { len, since: NOW, why: Forgotten::GivenUp }), len);

        assert_eq!(file_state(false, |state, token| state.fail(token, NOW)), ended(100));
        assert_eq!(file_state(false, |state, token| state.fail_at(token, 120, NOW)), ended(120));
        assert_eq!(file_state(true, |state, token| state.fail(token, NOW)), ended(300), "it may have arrived");
    }
}
