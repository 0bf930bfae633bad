//! Checkpoints: Flink's rules for what a notification frees.

use std::ops::RangeBounds;

use super::memory::CHECKPOINT_BYTES;
use super::{CatalogState, JobLife};
use crate::catalog::command::{Command, Refusal};
use crate::catalog::record::{CheckpointRecord, JobRecord, RecordKey};
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, Holder, JobId, JobRun, Millis, SegmentId};

impl CatalogState {
    pub(super) fn create_job(&mut self, job: &JobId, at: Millis) {
        let run = self.next_run();
        let life = self.job_entry(job).1.life_mut();
        let record = match &life.record {
            Some(JobRecord { ended: None, .. }) => return,
            Some(record) => JobRecord { ended: None, ..record.clone() },
            None => JobRecord { created: at, subsumed: None, ended: None },
        };
        let put = RecordKey::Job(job.clone()).put(&record);
        (life.record, life.run) = (Some(record), run);
        self.mutations.push(put);
    }

    fn next_run(&mut self) -> JobRun {
        self.runs += 1;
        JobRun(self.runs)
    }

    /// Another run of a job begins. Whoever dies in it leaves nothing on its way, so it is not recorded.
    pub(super) fn begin_run(&mut self, job: &JobId) -> Result<(), Refusal> {
        if self.known_job(job)?.1.ended.is_some() {
            return Err(Refusal::JobEnded(job.clone()));
        }
        let run = self.next_run();
        self.life_mut(job).into_iter().for_each(|life| life.run = run);
        Ok(())
    }

    /// The run that a job is in; zero if nothing is known of it.
    pub fn run_of(&self, job: &JobId) -> JobRun {
        self.life(job).map_or(JobRun(0), |life| life.run)
    }

    /// Refuses what was begun for a checkpoint in another run of its job.
    pub(super) fn is_of_run(&self, job: &JobId, id: CheckpointId, run: Option<JobRun>) -> Result<(), Refusal> {
        match run.is_none_or(|run| run == self.run_of(job)) {
            true => Ok(()),
            false => Err(Refusal::OtherRun(job.clone(), id)),
        }
    }

    /// Refuses what was asked of a job in another run. The end of one that is forgotten has come, whoever brought it.
    pub(super) fn is_asked_in_run(&self, job: &JobId, run: JobRun, command: &Command) -> Result<(), Refusal> {
        let is_known = self.life(job).is_some_and(|life| life.record.is_some());
        match run == self.run_of(job) || !is_known && matches!(command, Command::EndJob(..) | Command::EndJobSince(..))
        {
            true => Ok(()),
            false => Err(Refusal::JobBeganAnew(job.clone())),
        }
    }

    pub(super) fn known_job(&self, job: &JobId) -> Result<(&JobLife, &JobRecord), Refusal> {
        self.is_here(job)?;
        let known = self.life(job).and_then(|life| Some((life, life.record.as_ref()?)));
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
                // Until nothing is left of it, another one of its number would be taken for it.
                if self.is_being_cleared(job, id) {
                    return Err(Refusal::CheckpointCompleted(job.clone(), id));
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

    /// Frees segments that are held for a savepoint in progress. Others stay.
    pub(super) fn free_of_savepoint(
        &mut self,
        job: &JobId,
        id: CheckpointId,
        segments: &[SegmentId],
        at: Millis,
    ) -> Result<(), Refusal> {
        self.checkpoint_takes_segments(job, id)?;
        if !self.is_savepoint(job, id) {
            return Err(Refusal::CheckpointKind(job.clone(), id, "a checkpoint: abort or subsume it"));
        }
        for segment in segments {
            let held =
                self.life(job).and_then(|life| life.by_savepoint.get(&id)).is_some_and(|held| held.contains(segment));
            if held {
                self.free_segment(*segment, at);
            }
        }
        Ok(())
    }

    /// A savepoint is complete, if as many segments are held for it as somebody knows of.
    pub(super) fn complete_savepoint(
        &mut self,
        job: &JobId,
        id: CheckpointId,
        count: u64,
        at: Millis,
    ) -> Result<(), Refusal> {
        let held = self.life(job).and_then(|life| life.by_savepoint.get(&id)).map_or(0, |held| held.len() as u64);
        if held != count {
            return Err(Refusal::SavepointHolds(job.clone(), id, held));
        }
        self.complete_checkpoint(job, id, at)
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
            None if self.is_being_cleared(job, id) => return Ok(()),
            // Remembered, so that a segment on its way for it is refused.
            None => (at, CheckpointKind::Checkpoint),
        };
        let record =
            CheckpointRecord { state: CheckpointState::Aborted, begun, ended: Some(at), kind, claimed_from: None };
        self.put_checkpoint(job, id, record);
        // What a later checkpoint reuses has a higher watermark and is not among them; what it reused itself was not written
        // for it, and stays.
        self.clear(job, id, id);
        self.clear_savepoint(job, id);
        Ok(())
    }

    pub(super) fn subsume_checkpoint(
        &mut self,
        job: &JobId,
        since: CheckpointId,
        through: CheckpointId,
    ) -> Result<(), Refusal> {
        let ended = self.known_job(job)?.1.ended.is_some();
        self.set_subsumed(job, since, through);
        // Of a job that has ended, later checkpoints that are not there any more may have used it last.
        self.clear(job, CheckpointId(0), if ended { CheckpointId(u64::MAX) } else { through });
        self.forget_ended_job(job);
        Ok(())
    }

    /// Checkpoints up to `through` are over, and what they alone use is dead; completed ones before `since` are kept.
    pub(super) fn set_subsumed(&mut self, job: &JobId, since: CheckpointId, through: CheckpointId) {
        if let Some(record) = self.life_mut(job).and_then(|life| life.record.as_mut())
            && record.subsumed < Some(through)
        {
            record.subsumed = Some(through);
            let put = RecordKey::Job(job.clone()).put(record);
            self.mutations.push(put);
        }
        let is_over = |record: &CheckpointRecord| {
            record.kind == CheckpointKind::Checkpoint || record.state == CheckpointState::Aborted
        };
        self.drop_checkpoints(job, since.min(through)..=through, is_over);
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
        self.drop_checkpoints(job, id..=id, |_| true);
        self.clear_savepoint(job, id);
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
        let Some(kept) = self.segments.get(id) else { return false };
        let Holder::Checkpoints { last_used } = kept.holder else { return false };
        let avoid = kept.file().and_then(|file| self.files.at(file)).is_some_and(|(_, file)| file.avoid);
        // A later checkpoint may be aborted, and takes its segments along.
        let of_a_later_one = kept.checkpoint > Some(by);
        if Some(kept.job) != self.jobs.number(job) || !kept.visible || of_a_later_one || avoid || self.is_leaving(&kept)
        {
            return false;
        }
        if last_used < by {
            self.hold_by(id, Holder::Checkpoints { last_used: by });
        }
        true
    }

    /// Another holder keeps a segment alive from now on.
    pub(super) fn hold_by(&mut self, id: SegmentId, holder: Holder) {
        let Some(kept) = self.segments.get(id) else { return };
        if let Some((_, job)) = self.jobs.at_mut(kept.job) {
            let life = job.life_mut();
            life.release(id, &kept.holder);
            life.hold(id, &holder);
        }
        self.segments.update(id, |kept| kept.holder = holder);
        self.put_segment_record(id);
    }

    /// Forgets checkpoints, not their segments.
    pub(super) fn drop_checkpoints(
        &mut self,
        job: &JobId,
        among: impl RangeBounds<CheckpointId>,
        doomed: impl Fn(&CheckpointRecord) -> bool,
    ) {
        for id in self.forget_checkpoints(job, among, doomed) {
            self.mutations.push(RecordKey::Checkpoint(job.clone(), id).delete());
        }
    }

    /// The same, but their records stay.
    pub(super) fn forget_checkpoints(
        &mut self,
        job: &JobId,
        among: impl RangeBounds<CheckpointId>,
        doomed: impl Fn(&CheckpointRecord) -> bool,
    ) -> Vec<CheckpointId> {
        let Some(life) = self.jobs.get_mut(job).and_then(|entry| entry.life.as_mut()) else { return vec![] };
        let forgotten = life.checkpoints.extract_if(among, |_, record| doomed(record));
        let forgotten: Vec<CheckpointId> = forgotten.map(|(id, _)| id).collect();
        self.memory.others -= forgotten.len() as u64 * CHECKPOINT_BYTES;
        forgotten
    }

    pub(super) fn put_checkpoint(&mut self, job: &JobId, id: CheckpointId, record: CheckpointRecord) {
        self.mutations.push(RecordKey::Checkpoint(job.clone(), id).put(&record));
        self.insert_checkpoint(job, id, record);
    }

    pub(super) fn insert_checkpoint(&mut self, job: &JobId, id: CheckpointId, record: CheckpointRecord) {
        let life = self.job_entry(job).1.life_mut();
        if life.checkpoints.insert(id, record).is_none() {
            self.memory.others += CHECKPOINT_BYTES;
        }
    }
}
