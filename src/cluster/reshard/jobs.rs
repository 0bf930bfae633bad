//! Which jobs of a catalog have to be in which of the new shards, and what cannot be.

use crate::catalog::state::{CatalogState, Division, PlaceWishes};
use crate::config::Settings;
use crate::coordinator::places::{JobPlaces, places};
use crate::model::{JobId, Routing};

/// What the jobs of one catalog need.
pub(super) struct NeededPlaces(JobPlaces);

impl NeededPlaces {
    pub(super) fn of(state: &CatalogState, settings: &Settings, to: Routing) -> Self {
        if to.shards() == 1 {
            return Self(JobPlaces::default());
        }
        Self(places(state.coordinators(), &settings.checkpointing.jobs, to))
    }

    pub(super) fn wishes(&self) -> &PlaceWishes {
        &self.0.wishes
    }

    /// What cannot be, a sentence each.
    pub(super) fn obstacles(&self, division: &Division<'_>) -> Vec<String> {
        let JobPlaces { both, obstacles, .. } = &self.0;
        let apart = both.iter().filter(|(job, from)| division.shard_of(job) != division.shard_of(from));
        let apart = apart.map(|(job, from): &(JobId, JobId)| {
            format!(
                "job {job} begins from a checkpoint of job {from}, which would be in another shard than the directories of its coordinator: \
                 let it complete a checkpoint of its own first"
            )
        });
        obstacles.iter().cloned().chain(apart).collect()
    }
}
