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

use std::collections::BTreeSet;

use super::State;
use crate::catalog::command::{Claim, Leavings, Refusal, Restore};
use crate::catalog::record::{CheckpointKind, CheckpointRecord, CheckpointState, Holder, JobEnd, RecordKey};
use crate::model::{CheckpointId, JobId, Millis, PhysicalFileId, SegmentId};

impl State {
    pub(super) fn restore(&mut self, restore: &Restore, at: Millis) -> Result<(), Refusal> {
        let Restore { job, from, checkpoint, claim } = restore;
        let known = self.completed(from, *checkpoint).map(|record| record.kind);
        let repeat = known.is_err() && *claim == Claim::Claim && self.has_claimed(job, from, *checkpoint);
        if job == from && known.is_ok() || repeat {
            self.create_job(job.clone(), at);
            self.abort_pending(job, at);
            return Ok(());
        }
        let kind = known?;
        if *claim == Claim::Claim {
            if kind == CheckpointKind::Checkpoint {
                self.nothing_newer(from, *checkpoint)?;
            }
            if let Some(entry) = self.jobs.get(job) {
                if entry.record.as_ref().is_some_and(|record| record.subsumed >= Some(*checkpoint)) {
                    return Err(Refusal::CheckpointSubsumed(job.clone(), *checkpoint));
                }
                if entry.checkpoints.contains_key(checkpoint) {
                    return Err(Refusal::CheckpointExists(job.clone(), *checkpoint));
                }
            }
        }
        self.create_job(job.clone(), at);
        self.abort_pending(job, at);
        if *claim == Claim::Claim {
            self.claim(job, from, *checkpoint, kind, at);
        }
        Ok(())
    }

    fn has_claimed(&self, job: &JobId, from: &JobId, id: CheckpointId) -> bool {
        let record = self.jobs.get(job).and_then(|entry| entry.checkpoints.get(&id));
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
        let entries = self.jobs.get(job).into_iter().flat_map(|entry| &entry.checkpoints);
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
        let mut files = BTreeSet::new();
        for segment in self.checkpoint_segment_ids(from, id) {
            files.extend(self.give_segment(segment, job, id));
        }
        files.iter().for_each(|file| self.give_file(file, from, job));
        let record = CheckpointRecord {
            state: CheckpointState::Completed,
            begun: at,
            ended: Some(at),
            kind: CheckpointKind::Checkpoint,
            claimed_from: Some(from.clone()),
        };
        self.put_checkpoint(job, id, record);
        self.drop_checkpoints(from, |dropped, _| dropped == id);
        if kind == CheckpointKind::Checkpoint {
            self.free_job(from, at);
            // What is still on its way for it is refused.
            drop(self.subsume_checkpoint(from, id, at));
        }
        self.forget_ended_job(from);
    }

    /// Returns the file it is in.
    fn give_segment(&mut self, id: SegmentId, to: &JobId, checkpoint: CheckpointId) -> Option<PhysicalFileId> {
        let mut entry = self.segments.remove(&id)?;
        self.unindex_segment(id, &entry.record);
        entry.record.job = to.clone();
        // Of the job's own checkpoints before it none has anything to do with it.
        entry.record.checkpoint = Some(checkpoint);
        entry.record.holder = Holder::Checkpoints { last_used: checkpoint };
        entry.record.idempotency_key = None;
        let file = entry.record.location.file().cloned();
        self.index_segment(id, &entry.record);
        self.segments.insert(id, entry);
        self.put_segment_record(id);
        file
    }

    /// A file that held what one job wrote counts for the one that has claimed it.
    fn give_file(&mut self, file: &PhysicalFileId, from: &JobId, to: &JobId) {
        let Some(entry) = self.files.get_mut(file) else { return };
        if let Some(lane) = &mut entry.record.lane
            && lane.job.as_ref() == Some(from)
        {
            lane.job = Some(to.clone());
            self.mutations.push(RecordKey::File(file.to_string()).put(&entry.record));
        }
    }

    /// Frees everything of a job but its savepoints. Aborted checkpoints stay known: what is on its way for them is refused.
    fn free_job(&mut self, job: &JobId, at: Millis) {
        let held = self.jobs.get(job).into_iter().flat_map(|entry| entry.by_last_used.values().flatten());
        let doomed: Vec<SegmentId> = held.copied().collect();
        self.drop_checkpoints(job, |_, record| {
            record.kind == CheckpointKind::Checkpoint && record.state != CheckpointState::Aborted
        });
        doomed.into_iter().for_each(|segment| self.free_segment(segment, at));
    }

    pub(super) fn end_job(&mut self, job: &JobId, end: JobEnd, leavings: Leavings, at: Millis) -> Result<(), Refusal> {
        match self.known_job(job) {
            // That is all that is asked for; a job that ended and left nothing is not remembered.
            Err(Refusal::UnknownJob(_)) if leavings == Leavings::Delete => return Ok(()),
            known => known.map(|_| ())?,
        }
        self.abort_pending(job, at);
        match leavings {
            Leavings::Delete => self.free_job(job, at),
            Leavings::Keep => self.free_what_no_checkpoint_uses(job, at),
        }
        self.drop_checkpoints(job, |_, record| record.state == CheckpointState::Aborted);
        if let Some(record) = self.jobs.get_mut(job).and_then(|entry| entry.record.as_mut()) {
            record.ended = Some((end, at));
            self.mutations.push(RecordKey::Job(job.clone()).put(record));
        }
        self.forget_ended_job(job);
        Ok(())
    }

    /// Of a job that ended, segments that no completed checkpoint can be restored with are of no use.
    fn free_what_no_checkpoint_uses(&mut self, job: &JobId, at: Millis) {
        let Some(entry) = self.jobs.get(job) else { return };
        let useless = |id: &&SegmentId| {
            let Some(segment) = self.segments.get(*id) else { return false };
            let Holder::Checkpoints { last_used } = segment.record.holder else { return false };
            let first = segment.record.checkpoint.unwrap_or(CheckpointId(0)).min(last_used);
            !entry.checkpoints.range(first..=last_used).any(|(_, record)| {
                record.state == CheckpointState::Completed && record.kind == CheckpointKind::Checkpoint
            })
        };
        let doomed: Vec<SegmentId> = entry.by_last_used.values().flatten().filter(useless).copied().collect();
        doomed.into_iter().for_each(|segment| self.free_segment(segment, at));
    }

    /// A job that ended and of which nothing is left is not remembered.
    pub(super) fn forget_ended_job(&mut self, job: &JobId) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let ended = entry.record.as_ref().is_some_and(|record| record.ended.is_some());
        let holds_nothing = entry.by_last_used.is_empty() && entry.by_savepoint.is_empty();
        if ended && holds_nothing && entry.checkpoints.is_empty() {
            entry.record = None;
            self.mutations.push(RecordKey::Job(job.clone()).delete());
            if entry.segments.is_empty() {
                self.jobs.remove(job);
            }
        }
    }
}
