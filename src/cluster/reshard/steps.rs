//! The steps of a change of the number of shards. See the module's docs.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};

use super::jobs::NeededPlaces;
use super::report::{
    OnReshard, PlacedJob, ReshardError, ReshardOptions, ReshardProgress, ReshardReport, ReshardState, ShardTransfer,
};
use crate::catalog::slate::{HowFarDeleted, Journal, Present, Replaced, Resharding, RootMark};
use crate::catalog::state::{DividedBuckets, Division};
use crate::cluster::map::ClusterMap;
use crate::cluster::maps::{ClusterMaps, Written};
use crate::cluster::place::ClusterPlace;
use crate::config::Settings;
use crate::engine::reshard::fill::Filling;
use crate::engine::reshard::fillings::Fillings;
use crate::engine::reshard::{RefillError, Source, Tools, remove, settle};
use crate::error::chain;
use crate::model::{SHARDS_MAX, ShardOf, StoreShards};
use crate::store::{DataStore, OpenedStore, Placement};

/// The name in maps that this writes.
const BY: &str = "esker cluster reshard";
/// New catalogs that are opened at a time: most of that is waiting.
const OPENED_AT_ONCE: usize = 8;
/// Storage tells within this time which epoch a catalog has.
const EPOCH_PATIENCE: Duration = Duration::from_secs(60);

/// A store whose number of shards is changed.
pub(super) struct Reshard {
    settings: Settings,
    opened: OpenedStore,
    maps: ClusterMaps,
    tools: Tools,
}

/// A catalog that nobody changes any more.
struct SettledShard {
    shard: ShardOf,
    /// Its epoch.
    epoch: u64,
    /// The same without those before a rebuild.
    written: u64,
}

/// One shard's part of it.
struct ShardPlace {
    shard: ShardOf,
    settings: Settings,
    opened: OpenedStore,
}

impl Reshard {
    /// Opens the store of `settings`, which has to be one that can be divided.
    pub(super) async fn open(settings: &Settings, shards: u32) -> Result<Self, ReshardError> {
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(ReshardError::Count(shards));
        }
        let mut settings = settings.clone();
        // It is no member, and has no copy.
        settings.cluster = None;
        settings.store.local_copy = None;
        let tools = Tools::new();
        let place = ClusterPlace::new(&settings, &tools.metrics, &tools.clock, &tools.entropy)?;
        let one = || ReshardError::OneShard(settings.store.url.to_string());
        let maps = place.maps().ok_or_else(one)?;
        let opened = place.opened().await?;
        if !matches!((&opened.data, &opened.catalog), (DataStore::Object(_), Placement::Object { log: None, .. })) {
            return Err(one());
        }
        Ok(Self { settings, opened, maps, tools })
    }

    fn root(&self) -> &Placement {
        &self.opened.catalog
    }

    async fn mark(&self) -> Result<RootMark, ReshardError> {
        let nothing = || ReshardError::Nothing(self.settings.store.url.to_string());
        let mark = Journal::root_mark(self.root()).await?.ok_or_else(nothing)?;
        let is_empty = mark.shards.is_undivided() && mark.resharding.is_none();
        // A marker may be older than the first record.
        if is_empty && self.opened.data.identity_slot().read().await.map_err(RefillError::from)?.is_none() {
            return Err(nothing());
        }
        Ok(mark)
    }

    async fn place(&self, shard: ShardOf) -> ShardPlace {
        let settings = self.settings.of_shard(shard);
        let opened = self.opened.of_shard(shard, &settings.store, &self.tools.metrics).await;
        ShardPlace { shard, settings, opened }
    }

    async fn source(&self, shard: ShardOf, generation: u64) -> Result<Option<Source>, ReshardError> {
        let place = self.place(shard).await;
        Ok(Source::open(&place.settings, &place.opened, generation, &self.tools).await?)
    }

    /// What a change would do, or has still to do.
    pub(super) async fn plan(&self, count: u32, on: OnReshard<'_>) -> Result<ReshardReport, ReshardError> {
        let mark = self.mark().await?;
        if let Some(Replaced { shards, .. }) = mark.replaces {
            let mut report = ReshardReport::new(ReshardState::ToBeDeleted, shards, mark.shards);
            report.notes.push(format!("the {shards} of before are still to be deleted: --run does so"));
            return Ok(report);
        }
        let in_map = self.maps.read_any().await?.last.map.resharding;
        let begun = mark.resharding.as_ref().map(|resharding| resharding.to).or(in_map);
        match begun {
            Some(to) if mark.has_given_up(to) => return Err(ReshardError::BeingAbandoned(to)),
            Some(to) if to.count != count => return Err(ReshardError::Begun(to)),
            None if mark.shards.count == count => {
                return Ok(ReshardReport::new(ReshardState::NothingToDo, mark.shards, mark.shards));
            }
            _ => {}
        }
        // The number of the map that is not written yet.
        let to = begun.unwrap_or(StoreShards { count, generation: mark.shards.generation + 1 });
        let state = if begun.is_some() { ReshardState::Begun } else { ReshardState::Planned };
        let mut report = ReshardReport::new(state, mark.shards, to);
        let members = self.members().await?;
        if !members.is_empty() {
            report.notes.push(format!("members of the cluster have not left it: {members}"));
        }
        let generation = begun.map_or(0, |to| to.generation);
        on(ReshardProgress::Looking(mark.shards.count));
        let mut obstacles = vec![];
        for shard in mark.shards.all() {
            if let Some(source) = self.source(shard, generation).await? {
                let needed = NeededPlaces::of(&source.state, &self.settings, to.routing());
                let division = Division::new(&source.state, to.routing(), needed.wishes());
                obstacles.extend(needed.obstacles(&division));
                count_in(&mut report, shard, &division);
                close(source).await?;
            }
            on(ReshardProgress::Looked);
        }
        if obstacles.is_empty() { Ok(report) } else { Err(ReshardError::Obstacles(obstacles)) }
    }

    async fn members(&self) -> Result<String, ReshardError> {
        let last = self.maps.read_any().await?.last;
        let names = last.map.members.iter().map(|member| format!("{} ({})", member.id, member.url));
        Ok(names.collect::<Vec<_>>().join(", "))
    }

    /// All of it, from wherever an earlier run was cut short.
    pub(super) async fn run(&self, options: ReshardOptions, on: OnReshard<'_>) -> Result<ReshardReport, ReshardError> {
        let mut mark = self.mark().await?;
        let mut deleted = None;
        if mark.replaces.is_some() {
            let mut report = ReshardReport::new(ReshardState::Done, mark.shards, mark.shards);
            self.tell_map(mark.shards, mark.shards).await?;
            self.delete_replaced(&mark, &mut report, on).await?;
            mark = self.mark().await?;
            if mark.shards.count == options.shards {
                return Ok(report);
            }
            deleted = Some(report);
        }
        let mut report = self.plan(options.shards, on).await?;
        if report.state == ReshardState::NothingToDo {
            return Ok(report);
        }
        if let Some(before) = deleted {
            report.deleted_files = before.deleted_files;
            report.notes.extend(before.notes);
        }
        let to = self.begin_in_map(&mark, options).await?;
        report.to = to;
        let mine = Resharding { to, by: Some(self.tools.entropy.hex(16)), given_up: false };
        let marked = Journal::mark_resharding(self.root(), &mine).await;
        let was_mine = marked.is_ok();
        let made = match marked {
            Ok(()) => self.make(mark.shards, &mine, &mut report, on).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            return Err(self.why_it_ended(mark.shards, &mine, was_mine, error).await);
        }
        tracing::info!(shards = to.count, generation = to.generation, "the store has other shards now");
        self.tell_map(to, to).await?;
        let mark = self.mark().await?;
        self.delete_replaced(&mark, &mut report, on).await?;
        report.state = ReshardState::Done;
        Ok(report)
    }

    /// Steps 2 to 5, once the root is marked.
    async fn make(
        &self,
        from: StoreShards,
        mine: &Resharding,
        report: &mut ReshardReport,
        on: OnReshard<'_>,
    ) -> Result<(), ReshardError> {
        self.mark_all(from, mine).await?;
        let settled = self.settle_all(from, mine).await?;
        Box::pin(self.fill(from, mine, &settled, report, on)).await?;
        // Whoever has opened an old catalog since may have answered.
        for SettledShard { shard, written, .. } in &settled {
            if self.written_epoch(*shard).await? != *written {
                return Err(ReshardError::NotAlone(format!("somebody has opened the catalog of {shard} meanwhile")));
            }
        }
        Ok(Journal::finish_resharding(self.root(), mine).await?)
    }

    /// Step 2: nobody else opens the store.
    async fn mark_all(&self, from: StoreShards, mine: &Resharding) -> Result<(), ReshardError> {
        tracing::info!(
            from = from.count,
            to = mine.to.count,
            generation = mine.to.generation,
            "the number of shards is being changed: no daemon runs on the store meanwhile"
        );
        for catalog in self.catalogs(from).await? {
            self.still_mine(mine).await?;
            Journal::mark_resharding(&catalog, &Resharding { by: None, ..mine.clone() }).await?;
        }
        Ok(())
    }

    /// The catalogs of the shards that are there, but the one at the root.
    async fn catalogs(&self, shards: StoreShards) -> Result<Vec<Placement>, ReshardError> {
        let mut all = vec![];
        for shard in shards.all().filter(|shard| shard.folder().is_some()) {
            let catalog = self.place(shard).await.opened.catalog;
            if Journal::present(&catalog).await? != Present::Nothing {
                all.push(catalog);
            }
        }
        Ok(all)
    }

    /// Why a run did not come to its end, as far as the root tells. One whose change was given up meanwhile takes back what it has made since
    /// then.
    async fn why_it_ended(
        &self,
        from: StoreShards,
        mine: &Resharding,
        was_mine: bool,
        error: ReshardError,
    ) -> ReshardError {
        let Ok(mark) = self.mark().await else { return error };
        if mark.has_given_up(mine.to) {
            let cleared = async {
                self.delete_begun(mine.to).await?;
                self.take_marks_back(from, mine.to.generation).await
            };
            if let Err(error) = cleared.await {
                tracing::warn!(error = chain(&error), "something is left of a change that was given up");
                return ReshardError::GivenUpMeanwhile(mine.to, "; run --abandon once more, which deletes what is left of it");
            }
            return ReshardError::GivenUpMeanwhile(mine.to, "");
        }
        if mark.shards.generation >= mine.to.generation {
            return ReshardError::DoneMeanwhile(mark.shards);
        }
        match mark.resharding {
            Some(other) if was_mine && other.by != mine.by => ReshardError::TakenOver(other.to),
            _ => error,
        }
    }

    /// Step 1.
    async fn begin_in_map(&self, mark: &RootMark, options: ReshardOptions) -> Result<StoreShards, ReshardError> {
        let marked = mark.resharding.as_ref().map(|resharding| resharding.to);
        let from = mark.shards;
        loop {
            let last = self.maps.read_any().await?.last;
            // After that: whoever makes another change from here on writes a map, too, and this one's is refused.
            if self.mark().await? != *mark {
                return Err(ReshardError::NotAlone("another command has changed what the root says".to_owned()));
            }
            match (marked, last.map.resharding) {
                (Some(to), _) | (_, Some(to)) if mark.has_given_up(to) => return Err(ReshardError::BeingAbandoned(to)),
                (Some(to), None) => return Err(ReshardError::BeingAbandoned(to)),
                (_, Some(to)) if to.count != options.shards => return Err(ReshardError::Begun(to)),
                (None, Some(to)) => return Ok(to),
                (Some(marked), Some(to)) if marked == to => return Ok(to),
                (Some(marked), Some(_)) => return Err(ReshardError::Begun(marked)),
                (None, None) => {}
            }
            if !last.map.members.is_empty() && !options.force {
                return Err(ReshardError::Members(self.members().await?));
            }
            // The number of a map is never used again, and neither is the generation's.
            let generation = (last.number + 1).max(from.generation + 1).max(mark.given_up + 1);
            let to = StoreShards { count: options.shards, generation };
            let map = ClusterMap { resharding: Some(to), ..ClusterMap::of(from) };
            if let Written::Ours(_) = self.maps.write(&last, BY, map).await? {
                return Ok(to);
            }
        }
    }

    /// Step 3.
    async fn settle_all(&self, from: StoreShards, mine: &Resharding) -> Result<Vec<SettledShard>, ReshardError> {
        let mut all = vec![];
        for shard in from.all() {
            let place = self.place(shard).await;
            let settled = Box::pin(settle(&place.settings, &place.opened, mine.to.generation, &self.tools)).await?;
            // After the fence: whoever has taken this one's place fences it after that.
            self.still_mine(mine).await?;
            if let Some(epoch) = settled {
                tracing::info!(%shard, epoch, "a catalog was settled");
                all.push(SettledShard { shard, epoch, written: self.written_epoch(shard).await? });
            }
        }
        Ok(all)
    }

    /// The epoch of the last owner of a shard's catalog, as its database has it.
    async fn written_epoch(&self, shard: ShardOf) -> Result<u64, ReshardError> {
        let place = self.place(shard).await;
        Ok(Journal::last_epoch(&place.opened.catalog, EPOCH_PATIENCE).await?)
    }

    async fn still_mine(&self, mine: &Resharding) -> Result<(), ReshardError> {
        match self.mark().await?.resharding.as_ref() == Some(mine) {
            true => Ok(()),
            false => Err(ReshardError::NotAlone("another command has changed what the root says".to_owned())),
        }
    }

    /// Step 4.
    async fn fill(
        &self,
        from: StoreShards,
        mine: &Resharding,
        settled: &[SettledShard],
        report: &mut ReshardReport,
        on: OnReshard<'_>,
    ) -> Result<(), ReshardError> {
        let epochs_before = settled.iter().map(|settled| settled.epoch).max().unwrap_or(0);
        let mut fillings = Fillings::new(self.open_new(mine, epochs_before).await?, settled.len());
        on(ReshardProgress::Copying(report.total.bytes));
        // What was counted before the catalogs were settled is counted again.
        let (notes, deleted_files) = (std::mem::take(&mut report.notes), report.deleted_files);
        *report = ReshardReport { notes, deleted_files, ..ReshardReport::new(report.state, from, mine.to) };
        let mut buckets = DividedBuckets::default();
        for SettledShard { shard, .. } in settled {
            self.still_mine(mine).await?;
            let Some(source) = self.source(*shard, mine.to.generation).await? else { continue };
            let needed = NeededPlaces::of(&source.state, &self.settings, mine.to.routing());
            let division = Division::new(&source.state, mine.to.routing(), needed.wishes());
            count_in(report, *shard, &division);
            buckets.add(&division, shard.decides_on_buckets());
            fillings.take(&source, &division, &self.tools, &|bytes| on(ReshardProgress::Copied(bytes))).await?;
            tracing::info!(%shard, segments = source.state.segment_count(), "all of a shard is where it goes");
            close(source).await?;
        }
        self.still_mine(mine).await?;
        fillings.put(buckets.records()).await?;
        for copied in fillings.finish(&self.tools).await? {
            report.copied.add(&copied);
        }
        Ok(())
    }

    /// Opens all new catalogs, which shuts out whoever was filling them.
    async fn open_new(&self, mine: &Resharding, epochs_before: u64) -> Result<Vec<Filling>, ReshardError> {
        let opening = mine.to.all().map(|shard| async move {
            let place = self.place(shard).await;
            // In a box: each is large, and several are opened at a time.
            Box::pin(Filling::open(&place.settings, &place.opened, place.shard, epochs_before, &self.tools)).await
        });
        let opened = futures::stream::iter(opening).buffered(OPENED_AT_ONCE).try_collect().await?;
        // After the fences, as in step 3: a command that was stopped all the while writes nothing into what daemons use by now.
        self.still_mine(mine).await?;
        Ok(opened)
    }

    /// Step 6: the map names these shards, if it still says that `change` is being made. Any other map is somebody else's by now.
    async fn tell_map(&self, shards: StoreShards, change: StoreShards) -> Result<(), ReshardError> {
        loop {
            let last = self.maps.read_any().await?.last;
            // Somebody has deleted all of them.
            let is_none = last.number == 0 && !shards.is_undivided();
            if last.map.resharding != Some(change) && !is_none {
                return Ok(());
            }
            if let Written::Ours(map) = self.maps.write(&last, BY, ClusterMap::of(shards)).await? {
                tracing::info!(map = map.number, shards = shards.count, "daemons may start");
                return Ok(());
            }
        }
    }

    /// Step 7.
    async fn delete_replaced(
        &self,
        mark: &RootMark,
        report: &mut ReshardReport,
        on: OnReshard<'_>,
    ) -> Result<(), ReshardError> {
        let Some(Replaced { shards, emptied }) = mark.replaces else { return Ok(()) };
        on(ReshardProgress::Deleting);
        if !emptied {
            for shard in shards.all() {
                let Some(source) = self.source(shard, mark.shards.generation).await? else { continue };
                let (deleted, unknown) = remove::files(&source).await?;
                report.deleted_files += deleted;
                let notes = unknown.iter().map(|name| format!("{name} of {shard} was in no catalog, and stays"));
                report.notes.extend(notes);
                close(source).await?;
            }
            Journal::mark_replaced(self.root(), shards, HowFarDeleted::Emptied).await?;
        }
        for shard in shards.all() {
            let place = self.place(shard).await;
            if Journal::present(&place.opened.catalog).await? == Present::Nothing {
                continue;
            }
            let others = remove::catalog(&place.opened).await?;
            report
                .notes
                .extend(others.iter().map(|name| format!("{name} is none of the catalog's objects, and stays")));
        }
        Journal::mark_replaced(self.root(), shards, HowFarDeleted::Gone).await?;
        tracing::info!(files = report.deleted_files, shards = shards.count, "what was there before is deleted");
        Ok(())
    }

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
}

fn count_in(report: &mut ReshardReport, from: ShardOf, division: &Division<'_>) {
    for (to, counts) in (0..).zip(division.counts()) {
        if counts != Default::default() {
            report.transfers.push(ShardTransfer { from: from.shard, to, counts });
            report.total.add(&counts);
            report.shards[to as usize].add(&counts);
        }
    }
    report.placed.extend(division.placed().map(|(job, shard)| PlacedJob { job: job.clone(), shard }));
}

async fn close(source: Source) -> Result<(), ReshardError> {
    Ok(source.catalog.close().await?)
}
