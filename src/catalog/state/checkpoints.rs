//! Jobs and checkpoints: Flink's rules for what a notification frees.

use super::{JobEntry, State};
use crate::catalog::command::Refusal;
use crate::catalog::record::{CheckpointRecord, CheckpointState, JobRecord, RecordKey};
use crate::model::{CheckpointId, JobId, Millis, SegmentId};

impl State {
    pub(super) fn create_job(&mut self, job: JobId, at: Millis) {
        let entry = self.jobs.entry(job.clone()).or_default();
        if entry.record.is_none() {
            let record = entry.record.insert(JobRecord { created: at, subsumed: None });
            self.mutations.push(RecordKey::Job(job).put(record));
        }
    }

    fn known_job(&mut self, job: &JobId) -> Result<&mut JobEntry, Refusal> {
        self.jobs.get_mut(job).filter(|entry| entry.record.is_some()).ok_or_else(|| Refusal::UnknownJob(job.clone()))
    }

    /// Whether `id` still takes segments; a checkpoint nobody announced does.
    pub(super) fn checkpoint_takes_segments(&self, job: &JobId, id: CheckpointId) -> Result<(), Refusal> {
        let entry = self.jobs.get(job).ok_or_else(|| Refusal::UnknownJob(job.clone()))?;
        let record = entry.record.as_ref().ok_or_else(|| Refusal::UnknownJob(job.clone()))?;
        if record.subsumed.is_some_and(|subsumed| id <= subsumed) {
            return Err(Refusal::CheckpointSubsumed(job.clone(), id));
        }
        match entry.checkpoints.get(&id).map(|checkpoint| checkpoint.state) {
            Some(CheckpointState::Aborted) => Err(Refusal::CheckpointAborted(job.clone(), id)),
            Some(CheckpointState::Completed) => Err(Refusal::CheckpointCompleted(job.clone(), id)),
            Some(CheckpointState::Pending) | None => Ok(()),
        }
    }

    pub(super) fn begin_checkpoint(&mut self, job: &JobId, id: CheckpointId, at: Millis) -> Result<(), Refusal> {
        self.checkpoint_takes_segments(job, id)?;
        let entry = self.known_job(job)?;
        if !entry.checkpoints.contains_key(&id) {
            let record = CheckpointRecord { state: CheckpointState::Pending, begun: at, ended: None };
            self.put_checkpoint(job, id, record);
        }
        Ok(())
    }

    pub(super) fn complete_checkpoint(&mut self, job: &JobId, id: CheckpointId, at: Millis) -> Result<(), Refusal> {
        let entry = self.known_job(job)?;
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
        let entry = self.known_job(job)?;
        let begun = match entry.checkpoints.get(&id) {
            Some(checkpoint) if checkpoint.state == CheckpointState::Completed => {
                return Err(Refusal::CheckpointCompleted(job.clone(), id));
            }
            Some(checkpoint) => checkpoint.begun,
            None if entry.record.as_ref().is_some_and(|r| r.subsumed >= Some(id)) => return Ok(()),
            // Remembered, so that a segment on its way for it is refused.
            None => at,
        };
        // What a later checkpoint reuses has a higher watermark and is not in this set.
        let doomed: Vec<SegmentId> = entry.by_last_used.get(&id).into_iter().flatten().copied().collect();
        for segment in doomed {
            if self.segments.get(&segment).is_some_and(|s| s.record.checkpoint == Some(id)) {
                self.free_segment(segment, at);
            }
        }
        let record = CheckpointRecord { state: CheckpointState::Aborted, begun, ended: Some(at) };
        self.put_checkpoint(job, id, record);
        Ok(())
    }

    pub(super) fn subsume_checkpoint(&mut self, job: &JobId, through: CheckpointId, at: Millis) -> Result<(), Refusal> {
        self.known_job(job)?;
        let Some(entry) = self.jobs.get_mut(job) else { return Ok(()) };
        let doomed: Vec<SegmentId> =
            entry.by_last_used.range(..=through).flat_map(|(_, segments)| segments.iter().copied()).collect();
        let ended: Vec<CheckpointId> = entry.checkpoints.range(..=through).map(|(id, _)| *id).collect();
        for id in &ended {
            entry.checkpoints.remove(id);
        }
        if let Some(record) = &mut entry.record
            && record.subsumed < Some(through)
        {
            record.subsumed = Some(through);
            self.mutations.push(RecordKey::Job(job.clone()).put(record));
        }
        for id in ended {
            self.mutations.push(RecordKey::Checkpoint(job.clone(), id).delete());
        }
        for segment in doomed {
            self.free_segment(segment, at);
        }
        Ok(())
    }

    fn put_checkpoint(&mut self, job: &JobId, id: CheckpointId, record: CheckpointRecord) {
        self.mutations.push(RecordKey::Checkpoint(job.clone(), id).put(&record));
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.checkpoints.insert(id, record);
        }
    }
}
