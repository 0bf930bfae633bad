//! Warns of jobs whose own file merging is on: on S3 it declares a checkpoint complete before its bytes are stored, and loses
//! it.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;

use crate::model::JobId;

/// Jobs that are remembered; of more, those that were warned of first are forgotten, and warned of again.
const JOBS_MAX: usize = 1024;

/// Warns of jobs that merge files themselves.
#[derive(Debug, Default)]
pub(super) struct MergedByFlink(OncePerJob);

/// The jobs that were warned of.
#[derive(Debug, Default)]
pub(super) struct OncePerJob(Mutex<Warned>);

#[derive(Debug, Default)]
struct Warned {
    jobs: HashSet<JobId>,
    in_order: VecDeque<JobId>,
}

impl MergedByFlink {
    /// Warns of a job, once.
    pub(super) fn warn(&self, job: &JobId, key: &str) {
        if self.0.is_first(job) {
            tracing::warn!(
                %job,
                key,
                "Flink's own file merging is on: on S3 it loses checkpoints that it has declared complete. Set \
                 execution.checkpointing.file-merging.enabled to false in Flink's configuration"
            );
        }
    }
}

impl OncePerJob {
    /// Whether a job was not asked for before.
    pub(super) fn is_first(&self, job: &JobId) -> bool {
        let mut warned = self.0.lock();
        if !warned.jobs.insert(job.clone()) {
            return false;
        }
        warned.in_order.push_back(job.clone());
        if warned.in_order.len() > JOBS_MAX
            && let Some(oldest) = warned.in_order.pop_front()
        {
            warned.jobs.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_warned_of_once_and_only_so_many_are_remembered() {
        let merged = OncePerJob::default();
        let job = |n: usize| format!("bucket/job-{n}").parse().unwrap();

        assert!((0..JOBS_MAX).all(|n| merged.is_first(&job(n))));
        assert!(!(0..JOBS_MAX).any(|n| merged.is_first(&job(n))));
        assert!(merged.is_first(&job(JOBS_MAX)));
        assert!(merged.is_first(&job(0)), "the oldest made room");
        assert_eq!(merged.0.lock().jobs.len(), JOBS_MAX);
    }
}
