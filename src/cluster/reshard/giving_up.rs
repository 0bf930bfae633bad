//! A change that is given up, and a run that finds that it was, or that another one took its place.

use super::report::{ReshardError, ReshardReport, ReshardState};
use super::steps::Reshard;
use crate::catalog::slate::{Journal, Present, Resharding, RootMark};
use crate::engine::reshard::{Source, remove};
use crate::error::chain;
use crate::model::StoreShards;

impl Reshard {
    /// Gives up what has begun. Every step can be taken again, by several at once, and at any time later: what it is about is this one
    /// generation, which nobody goes on with from the first step on.
    pub(super) async fn abandon(&self) -> Result<ReshardReport, ReshardError> {
        let mark = self.mark().await?;
        let in_map = self.maps.read_any().await?.last.map.resharding;
        let begun = mark.resharding.as_ref().map(|resharding| resharding.to).or(in_map);
        let Some(to) = begun.filter(|to| mark.replaces.is_none() && to.generation > mark.shards.generation) else {
            return self.take_back_late_marks(&mark).await;
        };
        let mut report = ReshardReport::new(ReshardState::Abandoned, mark.shards, to);
        // First: whoever still makes it does not bring it to its end.
        if let Err(error) = Journal::begin_giving_up(self.root(), to, self.tools.entropy.hex(16)).await {
            let now = self.mark().await?.shards;
            return Err(if now.generation >= to.generation { ReshardError::NothingBegun(now) } else { error.into() });
        }
        report.notes = self.delete_begun(to).await?;
        self.tell_map(mark.shards, to).await?;
        self.take_marks_back(mark.shards, to.generation).await?;
        // Last: until then this is run again.
        Journal::give_up(self.root(), to.generation).await?;
        tracing::info!(shards = mark.shards.count, "the change of the number of shards was given up");
        Ok(report)
    }

    /// Deletes the shards of a change that is given up. Returns what was found of them that was not whole.
    async fn delete_begun(&self, to: StoreShards) -> Result<Vec<String>, ReshardError> {
        let mut notes = vec![];
        for shard in to.all() {
            let place = self.place(shard).await;
            let begun = match Source::open(&place.settings, &place.opened, 0, &self.tools).await {
                Ok(begun) => begun,
                // One that was cut short before its first record, mostly.
                Err(error) => {
                    notes.push(format!("{shard} was not whole: {}", chain(&error)));
                    None
                }
            };
            remove::place(&place.opened, begun.as_ref()).await?;
        }
        Ok(notes)
    }

    /// Takes the marks of a change that is given up back, from the catalogs; those that had none yet are never marked so.
    async fn take_marks_back(&self, from: StoreShards, generation: u64) -> Result<(), ReshardError> {
        for catalog in self.catalogs(from).await? {
            Journal::give_up(&catalog, generation).await?;
        }
        Ok(())
    }

    /// A command that stood still may have marked a catalog that was made after its change was given up, and have died with that.
    async fn take_back_late_marks(&self, mark: &RootMark) -> Result<ReshardReport, ReshardError> {
        let is_late = |to: StoreShards| to.generation <= mark.given_up;
        for catalog in self.catalogs(mark.shards).await? {
            if let Some(to) = Journal::resharding(&catalog).await?.filter(|to| is_late(*to)) {
                self.delete_begun(to).await?;
                self.take_marks_back(mark.shards, mark.given_up).await?;
                return Ok(ReshardReport::new(ReshardState::Abandoned, mark.shards, to));
            }
        }
        Err(ReshardError::NothingBegun(mark.shards))
    }

    /// Why a run did not come to its end, as far as the root tells. One whose change was given up meanwhile takes back what it has made since
    /// then.
    pub(super) async fn why_it_ended(
        &self,
        from: StoreShards,
        mine: &Resharding,
        was_mine: bool,
        error: ReshardError,
    ) -> ReshardError {
        let Ok(mark) = self.mark().await else { return error };
        let is_done = mark.shards.generation >= mine.to.generation;
        // Who makes another change has given this one up before.
        if mark.has_given_up(mine.to) || is_done && mark.shards != mine.to {
            let cleared = async {
                self.delete_begun(mine.to).await?;
                match is_done {
                    true => self.delete_late(from, &mark).await,
                    false => self.take_marks_back(from, mine.to.generation).await,
                }
            };
            if let Err(error) = cleared.await {
                tracing::warn!(error = chain(&error), "something is left of a change that was given up");
                return ReshardError::GivenUpMeanwhile(
                    mine.to,
                    "; run --abandon once more, which deletes what is left of it",
                );
            }
            return ReshardError::GivenUpMeanwhile(mine.to, "");
        }
        if is_done {
            if let Err(error) = self.delete_late(from, &mark).await {
                tracing::warn!(
                    error = chain(&error),
                    "something is left of catalogs that others have taken the place of"
                );
            }
            return ReshardError::DoneMeanwhile(mark.shards);
        }
        match mark.resharding {
            Some(other) if was_mine && other.by != mine.by => ReshardError::TakenOver(other.to),
            _ => error,
        }
    }

    /// Deletes what this run has written to catalogs of before after all of them was deleted.
    async fn delete_late(&self, from: StoreShards, mark: &RootMark) -> Result<(), ReshardError> {
        // Somebody still deletes them.
        let is_deleted = mark.replaces.as_ref().is_none_or(|replaced| replaced.shards != from);
        for shard in from.all().filter(|_| is_deleted) {
            let place = self.place(shard).await;
            if Journal::present(&place.opened.catalog).await? != Present::Nothing {
                remove::catalog(&place.opened).await?;
            }
        }
        Ok(())
    }
}
