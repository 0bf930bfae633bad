//! What the catalog of one shard remembers because of others: jobs that are in another one, and buckets whose end it has begun.
//!
//! A job that claims a checkpoint of another shard goes there, and the checkpoint stays where its files are. The shard in which
//! the job would be remembers that for ever: whoever asks for the job there is led on. The first shard decides which buckets there
//! are. It remembers that it has deleted one until all others have: an owner that comes after it goes on.

use super::CatalogState;
use super::memory::{weight_of_bucket, weight_of_job};
use crate::catalog::command::Refusal;
use crate::catalog::record::{BucketEndRecord, PlacedRecord, RecordKey};
use crate::model::{CheckpointState, JobEnd, JobId, Leavings, Millis};

impl CatalogState {
    /// The job is in another shard from here on. What it has here is given up.
    pub(super) fn place_job(&mut self, job: &JobId, shard: u32, at: Millis) -> Result<(), Refusal> {
        match self.placed.get(job) {
            Some(known) if *known == shard => return Ok(()),
            Some(_) => return Err(Refusal::JobElsewhere(job.clone())),
            None => {}
        }
        self.may_be_placed(job)?;
        if self.known_job(job).is_ok() {
            self.end_job(job, JobEnd::Canceled, (Leavings::Delete, super::FIRST), at)?;
        }
        self.mutations.push(RecordKey::Placed(job.clone()).put(&PlacedRecord { shard }));
        self.keep_placed(job.clone(), shard);
        Ok(())
    }

    /// Whether a job may go to another shard.
    ///
    /// # Errors
    /// [`Refusal::JobStays`] if it has state here.
    pub fn may_be_placed(&self, job: &JobId) -> Result<(), Refusal> {
        let mut checkpoints = self.life(job).into_iter().flat_map(|life| life.checkpoints.values());
        let has_state = checkpoints.any(|checkpoint| checkpoint.state == CheckpointState::Completed);
        if has_state { Err(Refusal::JobStays(job.clone())) } else { Ok(()) }
    }

    pub(super) fn keep_placed(&mut self, job: JobId, shard: u32) {
        let weight = weight_of_job(&job);
        if self.placed.insert(job, shard).is_none() {
            self.memory.others += weight;
        }
    }

    /// The shard that a job is in, if it was placed in another one.
    pub fn placed(&self, job: &JobId) -> Option<u32> {
        self.placed.get(job).copied()
    }

    /// Refuses what is about a job that is in another shard.
    pub(super) fn is_here(&self, job: &JobId) -> Result<(), Refusal> {
        if self.placed.contains_key(job) { Err(Refusal::JobElsewhere(job.clone())) } else { Ok(()) }
    }

    /// Deletes a bucket here, and remembers that all other shards are to delete it, too.
    pub(super) fn begin_end_of_bucket(&mut self, bucket: &str, at: Millis) -> Result<(), Refusal> {
        self.delete_bucket(bucket, at)?;
        self.mutations.push(RecordKey::BucketEnd(bucket.to_owned()).put(&BucketEndRecord { begun: at }));
        self.keep_ending(bucket.to_owned());
        Ok(())
    }

    pub(super) fn keep_ending(&mut self, bucket: String) {
        let weight = weight_of_bucket(&bucket);
        if self.ending.insert(bucket) {
            self.memory.others += weight;
        }
    }

    /// The others have deleted it, or it is there again.
    pub(super) fn bucket_has_ended(&mut self, bucket: &str) {
        if self.ending.remove(bucket) {
            self.memory.others -= weight_of_bucket(bucket);
            self.mutations.push(RecordKey::BucketEnd(bucket.to_owned()).delete());
        }
    }

    /// Buckets that are deleted here, and maybe not in other shards yet.
    pub fn ending_buckets(&self) -> Vec<String> {
        self.ending.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::Command;
    use crate::catalog::state::written::WrittenRecords;
    use crate::model::{CheckpointId, CheckpointKind};

    const NOW: Millis = Millis(7);

    fn job(name: &str) -> JobId {
        name.parse().unwrap()
    }

    /// What a restart knows.
    fn reloaded(state: &mut CatalogState) -> CatalogState {
        let again = WrittenRecords::of(state).loaded();
        assert_eq!(again.check(), Vec::<String>::new());
        again
    }

    #[test]
    fn a_job_that_was_placed_takes_nothing_here_and_a_restart_knows_where_it_is() {
        let mut state = CatalogState::default();
        state.apply(Command::CreateJob(job("new")), NOW).unwrap();
        let begin = Command::BeginCheckpoint(job("new"), CheckpointId(1), CheckpointKind::Checkpoint);
        state.apply(begin.clone(), NOW).unwrap();

        state.apply(Command::PlaceJob(job("new"), 3), NOW).unwrap();
        state.apply(Command::PlaceJob(job("new"), 3), NOW).unwrap();

        let elsewhere = Refusal::JobElsewhere(job("new"));
        for command in
            [Command::CreateJob(job("new")), Command::GoOn(job("new")), begin, Command::PlaceJob(job("new"), 2)]
        {
            assert_eq!(state.apply(command, NOW).unwrap_err(), elsewhere);
        }
        assert_eq!(state.check(), Vec::<String>::new());
        let again = reloaded(&mut state);
        assert_eq!((again.placed(&job("new")), again.placed(&job("other"))), (Some(3), None));
        assert!(again.known_job(&job("new")).is_err());
    }

    #[test]
    fn a_job_with_a_completed_checkpoint_stays() {
        let mut state = CatalogState::default();
        state.apply(Command::CreateJob(job("new")), NOW).unwrap();
        state.apply(Command::BeginCheckpoint(job("new"), CheckpointId(1), CheckpointKind::Checkpoint), NOW).unwrap();
        state.apply(Command::CompleteCheckpoint(job("new"), CheckpointId(1)), NOW).unwrap();

        assert_eq!(state.apply(Command::PlaceJob(job("new"), 3), NOW).unwrap_err(), Refusal::JobStays(job("new")));
        assert!(state.known_job(&job("new")).is_ok() && state.placed(&job("new")).is_none());
    }

    #[test]
    fn the_end_of_a_bucket_is_remembered_until_it_is_over_or_the_bucket_is_there_again() {
        let mut state = CatalogState::default();
        for bucket in ["a", "b"] {
            state.apply(Command::CreateBucket(bucket.into()), NOW).unwrap();
            state.apply(Command::DeleteBucketEverywhere(bucket.into()), NOW).unwrap();
        }
        assert_eq!(state.ending_buckets(), ["a", "b"]);

        state.apply(Command::BucketHasEnded("a".into()), NOW).unwrap();
        assert_eq!(state.check(), Vec::<String>::new());
        let mut again = reloaded(&mut state);
        assert_eq!(again.ending_buckets(), ["b"]);
        again.apply(Command::CreateBucket("b".into()), NOW).unwrap();

        assert!(again.ending_buckets().is_empty() && again.bucket("b").is_ok());
        assert_eq!(again.check(), Vec::<String>::new());
    }
}
