//! Which jobs have to be in which shard because of what their coordinators remember: where they publish metadata, where their savepoints
//! go, and the job that they begin from.

use std::sync::Arc;

use super::job::published_in;
use super::record::RememberedJob;
use super::storage::{PUBLISHED_NAME, published_key};
use crate::catalog::state::PlaceWishes;
use crate::config::JobCheckpointing;
use crate::error::chain;
use crate::model::{CheckpointId, JobId, Routing};

/// What the coordinators of some jobs need.
#[derive(Debug, Default)]
pub struct JobPlaces {
    /// Where jobs have to be.
    pub wishes: PlaceWishes,
    /// Jobs that have to be in a shard, and where another job is, too.
    pub both: Vec<(JobId, JobId)>,
    /// What cannot be, a sentence each.
    pub obstacles: Vec<String>,
}

/// What these coordinators need in a store with other shards. `defaults` are the settings of a job that says nothing.
pub fn places(coordinators: Vec<(JobId, Arc<str>)>, defaults: &JobCheckpointing, to: Routing) -> JobPlaces {
    let mut places = JobPlaces::default();
    for (job, text) in coordinators {
        let read = RememberedJob::read(&text).and_then(|record| Ok((record.rules(defaults)?, record)));
        let (rules, record) = match read {
            Ok(read) => read,
            Err(error) => {
                places.obstacles.push(format!("the coordinator of job {job} is not understood: {}", chain(&error)));
                continue;
            }
        };
        let published = published_in(&rules).map(|dir| published_key(dir, &job, rules.create_subdir, CheckpointId(1)));
        let published = published.map(|(bucket, key)| to.of_key(&bucket, &key));
        // Of a bucket's own folders each may be in another shard: one is found.
        let savepoints = rules.savepoint_dir.as_ref().filter(|dir| !dir.prefix.is_empty());
        let savepoints =
            savepoints.map(|dir| to.of_key(&dir.bucket, &format!("{}savepoint/{PUBLISHED_NAME}", dir.prefix)));
        if let (Some(published), Some(savepoints)) = (published, savepoints)
            && published != savepoints
        {
            places.obstacles.push(format!(
                "job {job} has a coordinator whose execution.checkpointing.dir would be in shard {published} and its savepoint-dir in shard \
                 {savepoints}: give both the same bucket and first folder"
            ));
        }
        let begins = record.start.map(|start| start.job).or(record.from.map(|from| from.job));
        let begins = begins.and_then(|from| from.parse::<JobId>().ok()).filter(|from| *from != job);
        match (published.or(savepoints), begins) {
            (Some(shard), from) => {
                places.both.extend(from.map(|from| (job.clone(), from)));
                places.wishes.shards.insert(job, shard);
            }
            (None, Some(from)) => drop(places.wishes.with.insert(job, from)),
            (None, None) => {}
        }
    }
    places
}
