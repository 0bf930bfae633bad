//! What people want of a job: checkpoints, savepoints, other settings, its end; how its checkpoints went.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::asking::JobHandle;
use crate::config::{JobCheckpointing, PublishDir, Retention};
use crate::coordinator::checks::{check_dir_of_savepoints, check_rules, check_savepoint_dir};
use crate::coordinator::error::CoordinatorError;
use crate::coordinator::history::CheckpointFigures;
use crate::coordinator::metadata::CheckpointMetadata;
use crate::coordinator::record::said_of;
use crate::coordinator::requests::{NewRequest, RequestView};
use crate::coordinator::state::queue::WantedCheckpoint;
use crate::model::{CheckpointId, JobEnd, JobId};

impl JobHandle {
    /// Somebody asks for a checkpoint or savepoint. The answer shows how that goes.
    ///
    /// # Errors
    /// [`CoordinatorError::NoSavepointDir`], [`CoordinatorError::KeyOfAnother`], [`CoordinatorError::TooManyRequests`];
    /// [`EngineError::Refused`] if there is no such bucket.
    pub async fn request(
        &self,
        wanted: WantedCheckpoint,
        dir: Option<PublishDir>,
        key: Option<String>,
    ) -> Result<watch::Receiver<RequestView>, CoordinatorError> {
        let given = dir.clone();
        let of_this_job = |error| self.of_this_job(error);
        let dir = match wanted.is_savepoint() {
            false => None,
            true => {
                let default = self.ask(|actor| actor.coordinator.rules().savepoint_dir.clone()).await;
                let default = default.map_err(of_this_job)?;
                let dir = dir.or(default).ok_or(CoordinatorError::NoSavepointDir)?;
                check_dir_of_savepoints(self.storage.engine(), &dir, ("dir", "the directory"))?;
                Some(dir)
            }
        };
        let asked = self.ask(move |actor| actor.request(NewRequest { wanted, given, dir, key }));
        asked.await.map_err(of_this_job)?
    }

    /// Checkpoints in progress, and the last ones that are over, the newest first.
    ///
    /// # Errors
    /// [`CoordinatorError::Ended`].
    pub async fn figures(&self) -> Result<Vec<CheckpointFigures>, CoordinatorError> {
        self.ask(|actor| actor.figures()).await
    }

    /// The metadata of a completed checkpoint.
    ///
    /// # Errors
    /// [`CoordinatorError::Metadata`].
    pub async fn metadata(&self, id: CheckpointId) -> Result<CheckpointMetadata, CoordinatorError> {
        Ok(self.storage.metadata(self.storage.job(), id).await?)
    }

    /// Other settings from here on. Those of directories stay.
    ///
    /// # Errors
    /// [`CoordinatorError`]; nothing changed then.
    pub async fn reconfigure(&self, settings: BTreeMap<String, String>) -> Result<(), CoordinatorError> {
        let changed = self.ask_later(move |actor, reply| {
            if let Err(error) = actor.may_change() {
                return crate::runtime::reply(reply, Err(error));
            }
            let before = actor.coordinator.rules();
            let rules = match before.with(settings.iter().map(|(key, text)| (&**key, &**text))) {
                Ok(rules) => rules,
                Err(error) => return crate::runtime::reply(reply, Err(error.into())),
            };
            let place = |rules: &JobCheckpointing| (rules.dir.clone(), rules.create_subdir, rules.storage);
            if place(before) != place(&rules) {
                let fixed = "execution.checkpointing.dir, create-subdir and storage".to_owned();
                return crate::runtime::reply(reply, Err(CoordinatorError::FixedSetting(fixed)));
            }
            let checked = check_rules(&rules, actor.remembered.iterative);
            // The one that it has may be gone since, and other settings are to change.
            let moved = rules.savepoint_dir != before.savepoint_dir;
            let checked = checked.and_then(|()| match moved {
                true => check_savepoint_dir(actor.storage.engine(), &rules),
                false => Ok(()),
            });
            if let Err(error) = checked {
                return crate::runtime::reply(reply, Err(error));
            }
            actor.remembered.settings = rules.texts();
            if let Some(said) = &mut actor.remembered.said {
                said.extend(said_of(&rules, &settings));
            }
            let now = actor.now();
            actor.coordinator.reconfigure(rules, now);
            actor.record(Box::new(move |_| crate::runtime::reply(reply, Ok(()))));
        });
        changed.await.map_err(|error| self.of_this_job(error))?
    }

    /// Refuses to have a checkpoint of a job, this one or another, deleted that this job takes or begins from.
    ///
    /// # Errors
    /// [`CoordinatorError::InProgress`], [`CoordinatorError::InUse`].
    pub async fn does_without(&self, of: &JobId, id: CheckpointId) -> Result<(), CoordinatorError> {
        let of = of.clone();
        match self.ask(move |actor| actor.does_without(&of, id)).await {
            // It needs nothing any more.
            Err(CoordinatorError::Ended) => Ok(()),
            asked => asked?,
        }
    }

    /// Ends the job. Returns whether its checkpoints are kept.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn end(&self, state: JobEnd, retention: Option<Retention>) -> Result<bool, CoordinatorError> {
        let ended = self.ask_later(move |actor, reply| {
            actor.end(state, retention, Box::new(move |ended| crate::runtime::reply(reply, ended)));
            actor.settle();
        });
        ended.await.map_err(|error| self.of_this_job(error))?
    }
}
