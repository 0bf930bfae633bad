//! Copies of the metadata of checkpoints that jobs have kept when they ended: they go with those, whoever deletes them.

use super::job::published_in;
use super::storage::JobStorage;
use crate::engine::Engine;
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, JobId};

/// Deletes the copies of the metadata of completed checkpoints of a job without a coordinator, up to `through`: these are about to be
/// freed. A savepoint, and its copy, stay.
pub async fn unpublish_kept(engine: &Engine, job: &JobId, through: Option<CheckpointId>) {
    let defaults = &engine.settings().checkpointing.jobs;
    let dirs: Vec<_> = published_in(defaults).map(|dir| (dir.clone(), defaults.create_subdir)).into_iter().collect();
    let storage = JobStorage::new(engine.clone(), job.clone());
    let known = engine.checkpoints(job).unwrap_or_default().into_iter();
    let completed = known.filter(|known| known.state == CheckpointState::Completed);
    let going = completed.filter(|known| through.is_none_or(|through| known.id <= through));
    for known in going.filter(|known| known.kind == CheckpointKind::Checkpoint) {
        storage.unpublish_found(known.id, None, &dirs).await;
    }
}
