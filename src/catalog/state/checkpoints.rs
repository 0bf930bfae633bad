//! Checkpoints: Flink's rules for what a notification frees.

use super::{JobEntry, State};
use crate::catalog::command::Refusal;
use crate::catalog::record::{CheckpointKind, CheckpointRecord, CheckpointState, Holder, JobRecord, RecordKey};
use crate::model::{CheckpointId, JobId, Millis, SegmentId};

impl State {
    pub(super) fn create_job(&mut self, job: JobId, at: Millis) {
        let entry = self.jobs.entry(job.clone()).or_default();
        match &mut entry.record {
            Some(JobRecord { ended: None, .. }) => return,
            Some(record) => record.ended = None,
            None => entry.record = Some(JobRecord { created: at, subsumed: None, ended: None }),
        }
        if let Some(record) = &entry.record {
            self.mutations.push(RecordKey::Job(job).put(record));
        }
    }

    pub(super) fn known_job(&self, job: &JobId) -> Result<(&JobEntry, &JobRecord), Refusal> {
        let entry = self.jobs.get(job);
        let known = entry.and_then(|entry| Some((entry, entry.record.as_ref()?)));
        known.ok_or_else(|| Refusal::UnknownJob(job.clone()))
    }

    /// Whether `id` still takes segments; a checkpoint nobody announced does.
    pub(super) fn checkpoint_takes_segments(&self, job: &JobId, id: CheckpointId) -> Result<(), Refusal> {
        let (entry, record) = self.known_job(job)?;
        if record.ended.is_some() {
            return Err(Refusal::JobEnded(job.clone()));
        }
        match entry.checkpoints.get(&id).map(|checkpoint| (checkpoint.state, checkpoint.kind)) {
            Some((CheckpointState::Aborted, _)) => Err(Refusal::CheckpointAborted(job.clone(), id)),
            Some((CheckpointState::Completed, _)) => Err(Refusal::CheckpointCompleted(job.clone(), id)),
            Some((CheckpointState::Pending, CheckpointKind::Savepoint)) => Ok(()),
            Some((CheckpointState::Pending, CheckpointKind::Checkpoint)) | None => {
                if record.subsumed.is_some_and(|subsumed| id <= subsumed) {
                    return Err(Refusal::CheckpointSubsumed(job.clone(), id));
                }
                Ok(())
            }
        }
    }

    pub(super) fn begin_checkpoint(
        &mut self,
        job: &JobId,
        id: CheckpointId,
        kind: CheckpointKind,
        at: Millis,
    ) -> Result<(), Refusal> {
        self.checkpoint_takes_segments(job, id)?;
        match self.known_job(job)?.0.checkpoints.get(&id).map(|record| record.kind) {
            Some(known) if known == kind => {}
            Some(CheckpointKind::Checkpoint) => {
                return Err(Refusal::CheckpointKind(job.clone(), id, "a checkpoint, not a savepoint"));
            }
            Some(CheckpointKind::Savepoint) => {
                return Err(Refusal::CheckpointKind(job.clone(), id, "a savepoint, not a checkpoint"));
            }
            None => {
                let state = CheckpointState::Pending;
                let record = CheckpointRecord { state, begun: at, ended: None, kind, claimed_from: None };
                self.put_checkpoint(job, id, record);
            }
        }
        Ok(())
    }

    /// A segment is being stored for `id`, which begins with it if it has not begun. Returns who holds the segment.
    pub(super) fn checkpoint_gets_segment(
        &mut self,
        job: &JobId,
        id: CheckpointId,
        at: Millis,
    ) -> Result<Holder, Refusal> {
        if self.is_savepoint(job, id) {
            return Ok(Holder::Savepoint { id });
        }
        self.begin_checkpoint(job, id, CheckpointKind::Checkpoint, at)?;
        Ok(Holder::Checkpoints { last_used: id })
    }

    pub(super) fn complete_checkpoint(&mut self, job: &JobId, id: CheckpointId, at: Millis) -> Result<(), Refusal> {
        let (entry, _) = self.known_job(job)?;
        let mut record =
            entry.checkpoints.get(&id).cloned().ok_or_else(|| Refusal::UnknownCheckpoint(job.clone(), id))?;
        match record.state {
            CheckpointState::Completed => return Ok(()),
            CheckpointState::Aborted => return Err(Refusal::CheckpointAborted(job.clone(), id)),
            CheckpointState::Pending => {}
        }
        record.state = CheckpointState::Completed;
        record.ended = Some(at);
        self.put_checkpoint(job, id, record);
        Ok(())
    }

    pub(super) fn abort_checkpoint(&mut self, job: &JobId, id: CheckpointId, at: Millis) -> Result<(), Refusal> {
        let (entry, job_record) = self.known_job(job)?;
        let (begun, kind) = match entry.checkpoints.get(&id) {
            Some(checkpoint) => match checkpoint.state {
                CheckpointState::Completed => return Err(Refusal::CheckpointCompleted(job.clone(), id)),
                CheckpointState::Aborted => return Ok(()),
                CheckpointState::Pending => (checkpoint.begun, checkpoint.kind),
            },
            // Segments on their way for it are refused as it is.
            None if job_record.subsumed >= Some(id) || job_record.ended.is_some() => return Ok(()),
            // Remembered, so that a segment on its way for it is refused.
            None => (at, CheckpointKind::Checkpoint),
        };
        // What a later checkpoint reuses has a higher watermark and is not in this set.
        let written_for_it =
            |segment: &&SegmentId| self.segments.get(*segment).is_some_and(|entry| entry.record.checkpoint == Some(id));
        let last_used = entry.by_last_used.get(&id).into_iter().flatten().filter(written_for_it);
        let doomed: Vec<SegmentId> =
            last_used.chain(entry.by_savepoint.get(&id).into_iter().flatten()).copied().collect();
        let record =
            CheckpointRecord { state: CheckpointState::Aborted, begun, ended: Some(at), kind, claimed_from: None };
        self.put_checkpoint(job, id, record);
        doomed.into_iter().for_each(|segment| self.free_segment(segment, at));
        Ok(())
    }

    pub(super) fn subsume_checkpoint(&mut self, job: &JobId, through: CheckpointId, at: Millis) -> Result<(), Refusal> {
        self.known_job(job)?;
        let Some(entry) = self.jobs.get_mut(job) else { return Ok(()) };
        let doomed: Vec<SegmentId> =
            entry.by_last_used.range(..=through).flat_map(|(_, segments)| segments.iter().copied()).collect();
        if let Some(record) = &mut entry.record
            && record.subsumed < Some(through)
        {
            record.subsumed = Some(through);
            self.mutations.push(RecordKey::Job(job.clone()).put(record));
        }
        let is_over = |record: &CheckpointRecord| {
            record.kind == CheckpointKind::Checkpoint || record.state == CheckpointState::Aborted
        };
        self.drop_checkpoints(job, |id, record| id <= through && is_over(record));
        for segment in doomed {
            self.free_segment(segment, at);
        }
        self.forget_ended_job(job);
        Ok(())
    }

    /// Frees a savepoint that its user does not want any more; nothing happens if that was done before. One that has not
    /// completed is aborted: what is on its way for it is refused.
    pub(super) fn discard_savepoint(&mut self, job: &JobId, id: CheckpointId, at: Millis) -> Result<(), Refusal> {
        // With its last savepoint a job that ended is forgotten, too.
        let Ok((entry, _)) = self.known_job(job) else { return Ok(()) };
        match entry.checkpoints.get(&id).map(|record| (record.kind, record.state)) {
            None => return Ok(()),
            Some((CheckpointKind::Checkpoint, _)) => {
                return Err(Refusal::CheckpointKind(job.clone(), id, "a checkpoint: abort or subsume it"));
            }
            Some((CheckpointKind::Savepoint, CheckpointState::Completed)) => {}
            Some((CheckpointKind::Savepoint, CheckpointState::Pending | CheckpointState::Aborted)) => {
                return self.abort_checkpoint(job, id, at);
            }
        }
        let doomed: Vec<SegmentId> = entry.by_savepoint.get(&id).into_iter().flatten().copied().collect();
        self.drop_checkpoints(job, |dropped, _| dropped == id);
        doomed.into_iter().for_each(|segment| self.free_segment(segment, at));
        self.forget_ended_job(job);
        Ok(())
    }

    /// `id` uses segments that exist: they live as long as it does. Returns those that may not be reused, because they are
    /// not known, not this job's, a savepoint's, written for a later checkpoint, or in a file that is advised against.
    pub(super) fn reuse(
        &mut self,
        job: &JobId,
        id: CheckpointId,
        segments: &[SegmentId],
        at: Millis,
    ) -> Result<Vec<SegmentId>, Refusal> {
        self.checkpoint_takes_segments(job, id)?;
        if self.is_savepoint(job, id) {
            return Err(Refusal::CheckpointKind(
                job.clone(),
                id,
                "a savepoint, which is self-contained: store its segments",
            ));
        }
        self.begin_checkpoint(job, id, CheckpointKind::Checkpoint, at)?;
        Ok(segments.iter().copied().filter(|segment| !self.reuse_one(job, id, *segment)).collect())
    }

    fn reuse_one(&mut self, job: &JobId, by: CheckpointId, id: SegmentId) -> bool {
        let Some(entry) = self.segments.get(&id) else { return false };
        let record = &entry.record;
        let Holder::Checkpoints { last_used } = record.holder else { return false };
        let file = record.location.file().and_then(|file| self.files.get(file));
        // A later checkpoint may be aborted, and takes its segments along.
        let of_a_later_one = record.checkpoint > Some(by);
        if record.job != *job || !entry.visible || of_a_later_one || file.is_some_and(|file| file.avoid) {
            return false;
        }
        if last_used < by {
            self.hold_by(id, Holder::Checkpoints { last_used: by });
        }
        true
    }

    /// Another holder keeps a segment alive from now on.
    pub(super) fn hold_by(&mut self, id: SegmentId, holder: Holder) {
        let Some(entry) = self.segments.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.record.holder, holder);
        if let Some(job) = self.jobs.get_mut(&entry.record.job) {
            job.release(id, &before);
            job.hold(id, &holder);
        }
        self.put_segment_record(id);
    }

    /// Forgets checkpoints, not their segments.
    pub(super) fn drop_checkpoints(&mut self, job: &JobId, doomed: impl Fn(CheckpointId, &CheckpointRecord) -> bool) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        for (id, _) in entry.checkpoints.extract_if(.., |id, record| doomed(*id, record)) {
            self.mutations.push(RecordKey::Checkpoint(job.clone(), id).delete());
        }
    }

    pub(super) fn put_checkpoint(&mut self, job: &JobId, id: CheckpointId, record: CheckpointRecord) {
        self.mutations.push(RecordKey::Checkpoint(job.clone(), id).put(&record));
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.checkpoints.insert(id, record);
        }
    }
}
