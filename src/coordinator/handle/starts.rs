//! What tasks start from.

use std::sync::Arc;

use super::asking::JobHandle;
use crate::coordinator::assign::{TaskStart, assign};
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::metadata::CheckpointMetadata;
use crate::coordinator::record::CheckpointOfJob;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::storage::MetadataFault;
use crate::coordinator::topology::OperatorSpec;
use crate::error::ErrorKind;
use crate::model::{CheckpointId, JobId};

/// What each task starts from.
#[derive(Debug, Clone)]
pub struct JobStart {
    /// Where the job stands.
    pub phase: JobPhase,
    /// The attempt, and the first one of the job.
    pub attempt: u64,
    /// See [`Self::attempt`].
    pub first_attempt: u64,
    /// The checkpoint; `None`: nothing.
    pub from: Option<CheckpointOfJob>,
    /// Each task with its operator.
    pub tasks: Vec<(OperatorSpec, u32, TaskStart)>,
}

impl JobHandle {
    /// What the tasks of the attempt start from; of one task, or of all. No tasks if nobody starts any more, and what they started
    /// from is gone.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn start(&self, of: Option<(String, u32)>) -> Result<JobStart, CoordinatorError> {
        let asked = self.ask(|actor| {
            let coordinator = &actor.coordinator;
            // A checkpoint is being stored, and the new attempt may begin from it; or the attempt is not durable: another owner would
            // give its number to another one.
            if coordinator.attempt() != actor.recorded_attempt {
                return Err(CoordinatorError::Busy);
            }
            let operators = coordinator.topology().operators().to_vec();
            let attempts = (coordinator.attempt(), coordinator.first_attempt());
            Ok((coordinator.phase(), attempts, actor.remembered.from.clone(), operators))
        });
        let (phase, (attempt, first_attempt), from, operators) = asked.await??;
        if let Some((operator, subtask)) = &of
            && !operators.iter().any(|spec| spec.id == *operator && *subtask < spec.parallelism)
        {
            return Err(CoordinatorError::NoSuchTask(operator.clone(), *subtask));
        }
        let restored = match &from {
            None => vec![],
            Some(checkpoint) => match self.metadata_of(checkpoint).await {
                Err(CoordinatorError::Metadata(fault)) if phase.has_begun() && fault.kind() == ErrorKind::NotFound => {
                    return Ok(JobStart { phase, attempt, first_attempt, from, tasks: vec![] });
                }
                metadata => metadata?.operators().map_err(MetadataFault::from)?,
            },
        };
        let mut tasks = vec![];
        for spec in operators {
            let which = match &of {
                None => 0..spec.parallelism,
                Some((operator, one)) if *operator == spec.id => *one..one + 1,
                Some(_) => continue,
            };
            let restored = restored.iter().find(|restored| restored.spec.id == spec.id);
            let starts = which.clone().zip(assign(&spec, restored, which));
            tasks.extend(starts.map(|(subtask, start)| (spec.clone(), subtask, start)));
        }
        Ok(JobStart { phase, attempt, first_attempt, from, tasks })
    }

    async fn metadata_of(&self, from: &CheckpointOfJob) -> Result<Arc<CheckpointMetadata>, CoordinatorError> {
        let known = self.start.lock().clone();
        if let Some((_, metadata)) = known.filter(|(of, _)| of == from) {
            return Ok(metadata);
        }
        let job: JobId = from.job.parse().map_err(|_| MetadataFault::Bytes(format!("{:?} is no job", from.job)))?;
        let metadata = Arc::new(self.storage.metadata(&job, CheckpointId(from.checkpoint)).await?);
        *self.start.lock() = Some((from.clone(), Arc::clone(&metadata)));
        Ok(metadata)
    }
}
