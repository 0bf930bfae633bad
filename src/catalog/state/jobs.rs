//! How a job goes on from a checkpoint, and what it leaves when it ends.
//!
//! | a job is restored from | claim | no claim |
//! | --- | --- | --- |
//! | its own checkpoint *n* | checkpoints that had begun are aborted, everything else stays reusable | the same |
//! | checkpoint *n* of another job | its segments are this job's, with watermark *n*; the rest of that job is freed | nothing changes |
//! | a savepoint of another job | its segments are this job's, the savepoint is gone | nothing changes |
//!
//! A claim takes the whole line of checkpoints over: older ones of the other job are subsumed by the claimed one, as they
//! would have been had that job gone on. A newer completed one would lose what it shares, so it forbids the claim.
//!
//! Every request may be sent again when its answer was lost. A claim that was carried out is told by the claimed
//! checkpoint, which remembers whose it was.

use std::sync::Arc;

use super::memory::weight_of_coordinator;
use super::work::being_claimed;
use super::{CatalogState, FIRST, JobEntry};
use crate::catalog::command::{Refusal, RestorePoint};
use crate::catalog::record::{CheckpointRecord, CoordinatorRecord, RecordKey, SegmentRecord};
use crate::model::{
    CheckpointId, CheckpointKind, CheckpointState, Claim, Holder, JobEnd, JobId, Leavings, Millis, SegmentId,
};

impl CatalogState {
    pub(super) fn restore(&mut self, restore: &RestorePoint, at: Millis) -> Result<(), Refusal> {
        let RestorePoint { job, from, checkpoint, claim } = restore;
        let changes_hands = self.check_restore(restore)?;
        self.create_job(job, at);
        self.abort_pending(job, at);
        if let (Some(kind), Claim::Claim) = (changes_hands, claim) {
            self.claim(job, from, *checkpoint, kind, at);
        }
        Ok(())
    }

    /// Whether a job may go on from a checkpoint. Returns the kind of that if it is another job's.
    ///
    /// # Errors
    /// The refusal that [`Self::restore`] would answer.
    pub fn check_restore(&self, restore: &RestorePoint) -> Result<Option<CheckpointKind>, Refusal> {
        let RestorePoint { job, from, checkpoint, claim } = restore;
        let known = self.completed(from, *checkpoint).map(|record| record.kind);
        let repeat = known.is_err() && *claim == Claim::Claim && self.has_claimed(job, from, *checkpoint);
        if job == from && known.is_ok() || repeat {
            return Ok(None);
        }
        let kind = known?;
        if *claim == Claim::Claim {
            if kind == CheckpointKind::Checkpoint {
                self.nothing_newer(from, *checkpoint)?;
            }
            if let Some(entry) = self.life(job) {
                if entry.record.as_ref().is_some_and(|record| record.subsumed >= Some(*checkpoint)) {
                    return Err(Refusal::CheckpointSubsumed(job.clone(), *checkpoint));
                }
                if entry.checkpoints.contains_key(checkpoint) {
                    return Err(Refusal::CheckpointExists(job.clone(), *checkpoint));
                }
            }
        }
        Ok(Some(kind))
    }

    /// A job goes on from a checkpoint that stays another job's.
    pub(super) fn go_on(&mut self, job: &JobId, at: Millis) {
        self.create_job(job, at);
        self.abort_pending(job, at);
    }

    pub(super) fn has_claimed(&self, job: &JobId, from: &JobId, id: CheckpointId) -> bool {
        let record = self.life(job).and_then(|life| life.checkpoints.get(&id));
        record.is_some_and(|record| record.claimed_from.as_ref() == Some(from))
    }

    fn completed(&self, job: &JobId, id: CheckpointId) -> Result<&CheckpointRecord, Refusal> {
        let record = self.known_job(job)?.0.checkpoints.get(&id);
        let record = record.ok_or_else(|| Refusal::UnknownCheckpoint(job.clone(), id))?;
        match record.state {
            CheckpointState::Completed => Ok(record),
            CheckpointState::Pending | CheckpointState::Aborted => Err(Refusal::CheckpointIncomplete(job.clone(), id)),
        }
    }

    fn nothing_newer(&self, job: &JobId, id: CheckpointId) -> Result<(), Refusal> {
        let newer = self.known_job(job)?.0.checkpoints.range(id..).skip(1);
        let mut completed = newer.filter(|(_, record)| {
            record.state == CheckpointState::Completed && record.kind == CheckpointKind::Checkpoint
        });
        completed.next().map_or(Ok(()), |(newer, _)| Err(Refusal::NewerCheckpoint(job.clone(), *newer)))
    }

    /// Gives up every checkpoint that has not completed.
    fn abort_pending(&mut self, job: &JobId, at: Millis) {
        let entries = self.life(job).into_iter().flat_map(|life| &life.checkpoints);
        let pending: Vec<CheckpointId> =
            entries.filter(|(_, record)| record.state == CheckpointState::Pending).map(|(id, _)| *id).collect();
        for id in pending {
            drop(self.abort_checkpoint(job, id, at));
        }
    }

    /// The segments of a checkpoint of `from` become those of `job`.
    fn claim(&mut self, job: &JobId, from: &JobId, id: CheckpointId, kind: CheckpointKind, at: Millis) {
        if kind == CheckpointKind::Checkpoint {
            self.abort_pending(from, at);
        }
        let record = CheckpointRecord {
            state: CheckpointState::Completed,
            begun: at,
            ended: Some(at),
            kind: CheckpointKind::Checkpoint,
            claimed_from: Some(from.clone()),
        };
        self.put_checkpoint(job, id, record);
        // Until all of it has changed hands: after a crash in between, it tells to whom.
        let old = self.life(from).and_then(|life| life.checkpoints.get(&id)).cloned();
        if let Some(old) = old {
            self.forget_checkpoints(from, id..=id, |_| true);
            self.mutations.push(RecordKey::Checkpoint(from.clone(), id).put(&being_claimed(old, job)));
        }
        if kind == CheckpointKind::Checkpoint {
            // Aborted checkpoints stay known: what is on its way for them is refused.
            self.drop_checkpoints(from, .., |record| {
                record.kind == CheckpointKind::Checkpoint && record.state != CheckpointState::Aborted
            });
            // What is still on its way for it is refused.
            self.set_subsumed(from, FIRST, id);
        }
        self.hand_over(from, job, id, kind);
    }

    /// A segment of `from` becomes one of `to`, held by its claimed checkpoint.
    pub(super) fn give_segment(&mut self, id: SegmentId, from: &JobId, to: &JobId, checkpoint: CheckpointId) {
        let Some(kept) = self.segments.get(id) else { return };
        let (visible, file) = (kept.visible, kept.file());
        let Some(record) = self.segments.record(id, &self.jobs, &self.files) else { return };
        let record = SegmentRecord {
            job: to.clone(),
            // Of the job's own checkpoints before it none has anything to do with it.
            checkpoint: Some(checkpoint),
            holder: Holder::Checkpoints { last_used: checkpoint },
            idempotency_key: None,
            ..record
        };
        // In this order: a job without a record is forgotten with its last segment.
        let job = self.index_segment(id, &record);
        self.unindex_segment(id);
        self.segments.insert(id, &record, visible, job, file);
        self.mutations.push(RecordKey::Segment(id).put(&record));
        if let Some(file) = file {
            self.give_file(file, from, to);
        }
    }

    /// A file that held what one job wrote counts for the one that has claimed it.
    fn give_file(&mut self, file: u32, from: &JobId, to: &JobId) {
        let Some((file, entry)) = self.files.at_mut(file) else { return };
        if let Some(lane) = &mut entry.record.lane
            && lane.job.as_ref() == Some(from)
        {
            lane.job = Some(to.clone());
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    pub(super) fn end_job(
        &mut self,
        job: &JobId,
        end: JobEnd,
        (leavings, since): (Leavings, CheckpointId),
        at: Millis,
    ) -> Result<(), Refusal> {
        match self.known_job(job) {
            // That is all that is asked for; a job that ended and left nothing is not remembered.
            Err(Refusal::UnknownJob(_)) if leavings == Leavings::Delete => return Ok(()),
            known => known.map(|_| ())?,
        }
        self.abort_pending(job, at);
        self.set_coordinator(job, None);
        if let Some(record) = self.life_mut(job).and_then(|life| life.record.as_mut()) {
            record.ended = Some((end, at));
            let put = RecordKey::Job(job.clone()).put(record);
            self.mutations.push(put);
        }
        self.drop_checkpoints(job, .., |record| record.state == CheckpointState::Aborted);
        if leavings == Leavings::Delete {
            self.drop_checkpoints(job, since.., |record| record.kind == CheckpointKind::Checkpoint);
        }
        // What no completed checkpoint can be restored with is of no use.
        self.clear(job, CheckpointId(0), CheckpointId(u64::MAX));
        self.forget_ended_job(job);
        Ok(())
    }

    /// A job has a coordinator, which remembers this.
    pub(super) fn coordinate(&mut self, job: &JobId, text: Arc<str>, at: Millis) {
        self.create_job(job, at);
        self.mutations.push(RecordKey::Coordinator(job.clone()).put(&CoordinatorRecord { text: text.to_string() }));
        self.keep_coordinator(job, Some(text));
    }

    /// The same for what is known to be written, or for nothing any more.
    pub(super) fn set_coordinator(&mut self, job: &JobId, text: Option<Arc<str>>) {
        let had = self.life(job).is_some_and(|life| life.coordinator.is_some());
        if had && text.is_none() {
            self.mutations.push(RecordKey::Coordinator(job.clone()).delete());
        }
        if had || text.is_some() {
            self.keep_coordinator(job, text);
        }
    }

    fn keep_coordinator(&mut self, job: &JobId, text: Option<Arc<str>>) {
        let weight = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| weight_of_coordinator(text));
        let (after, life) = (weight(&text), self.job_entry(job).1.life_mut());
        let before = weight(&std::mem::replace(&mut life.coordinator, text));
        self.memory.others = self.memory.others + after - before;
    }

    /// Jobs that have a coordinator, with what it remembers, in the order of their ids.
    pub fn coordinators(&self) -> Vec<(JobId, Arc<str>)> {
        let of = |(job, entry): (&JobId, &JobEntry)| Some((job.clone(), entry.life.as_ref()?.coordinator.clone()?));
        let mut found: Vec<(JobId, Arc<str>)> = self.jobs.iter().filter_map(of).collect();
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// A job that ended and of which nothing is left is not remembered.
    pub(super) fn forget_ended_job(&mut self, job: &JobId) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let Some(life) = &mut entry.life else { return };
        let ended = life.record.as_ref().is_some_and(|record| record.ended.is_some());
        let holds_nothing = life.by_last_used.is_empty() && life.by_savepoint.is_empty();
        if ended && holds_nothing && life.checkpoints.is_empty() {
            life.record = None;
            self.mutations.push(RecordKey::Job(job.clone()).delete());
            if entry.segments.is_empty() {
                self.remove_job(job);
            }
        }
    }
}
