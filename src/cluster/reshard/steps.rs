//! The steps of a change of the number of shards. See the module's docs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;

use super::jobs::NeededPlaces;
use super::report::{
    OnReshard, PlacedJob, ReshardError, ReshardOptions, ReshardProgress, ReshardReport, ReshardState, ShardTransfer,
};
use crate::catalog::slate::{HowFarDeleted, Journal, Present, Replaced, Resharding, RootMark};
use crate::catalog::state::{DividedBuckets, Division};
use crate::cluster::map::ClusterMap;
use crate::cluster::maps::{ClusterMaps, Written};
use crate::cluster::peer::{PeerError, PeerLink};
use crate::cluster::place::ClusterPlace;
use crate::config::Settings;
use crate::engine::reshard::fill::Filling;
use crate::engine::reshard::fillings::Fillings;
use crate::engine::reshard::{RefillError, Source, Tools, remove, settle};
use crate::model::{SHARDS_MAX, ShardOf, StoreShards};
use crate::runtime::network::ThisMachine;
use crate::store::{DataStore, OpenedStore, Placement};

/// The name in maps that this writes.
const BY: &str = "esker cluster reshard";
/// New catalogs that are opened at a time: most of that is waiting.
const OPENED_AT_ONCE: usize = 8;
/// Storage tells within this time which epoch a catalog has.
const EPOCH_PATIENCE: Duration = Duration::from_secs(60);
/// A member that is there answers within this time.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// Of the files of a shard that are not there so many are named.
const MISSING_NAMED_MAX: usize = 5;

/// A store whose number of shards is changed.
pub(super) struct Reshard {
    settings: Settings,
    opened: OpenedStore,
    pub(super) maps: ClusterMaps,
    pub(super) tools: Tools,
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
pub(super) struct ShardPlace {
    shard: ShardOf,
    pub(super) settings: Settings,
    pub(super) opened: OpenedStore,
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

    pub(super) fn root(&self) -> &Placement {
        &self.opened.catalog
    }

    pub(super) async fn mark(&self) -> Result<RootMark, ReshardError> {
        let nothing = || ReshardError::Nothing(self.settings.store.url.to_string());
        let mark = Journal::root_mark(self.root()).await?.ok_or_else(nothing)?;
        let is_empty = mark.shards.is_undivided() && mark.resharding.is_none();
        // A marker may be older than the first record.
        if is_empty && self.opened.data.identity_slot().read().await.map_err(RefillError::from)?.is_none() {
            return Err(nothing());
        }
        Ok(mark)
    }

    pub(super) async fn place(&self, shard: ShardOf) -> ShardPlace {
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
            report.notes.push(format!("what is left of before, with {shards}, is still to be deleted: --run does so"));
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
        let mut obstacles = vec![];
        for shard in mark.shards.all() {
            on(ReshardProgress::At(format!("looking at {shard}")));
            if let Some(source) = self.source(shard, generation).await? {
                let needed = NeededPlaces::of(&source.state, &self.settings, to.routing());
                let division = Division::new(&source.state, to.routing(), needed.wishes());
                obstacles.extend(needed.obstacles(&division));
                count_in(&mut report, shard, &division);
                if begun.is_none() {
                    report.missing.extend(missing_of(shard, &source, &division).await?);
                }
                close(source).await?;
            }
        }
        if obstacles.is_empty() { Ok(report) } else { Err(ReshardError::Obstacles(obstacles)) }
    }

    /// The members that have not left, and whether they are there.
    async fn members(&self) -> Result<String, ReshardError> {
        let last = self.maps.read_any().await?.last;
        let Tools { metrics, clock, .. } = &self.tools;
        let named = last.map.members.iter().map(|member| async {
            // It is no member, and has no token: who is there says so in any case.
            let link = PeerLink::new(member.clone(), None, Arc::new(ThisMachine), clock.clone(), metrics.clone());
            let answer = match link.ping(last.number, PING_PATIENCE).await {
                Ok(_) => "it answers",
                Err(PeerError::Unexpected { status: StatusCode::UNAUTHORIZED, .. }) => "it answers",
                Err(PeerError::Unexpected { .. }) => "another process answers there",
                Err(PeerError::Refused(_)) => "nobody listens there",
                Err(_) => "it does not answer",
            };
            format!("{} ({}: {answer})", member.id, member.url)
        });
        Ok(join_all(named).await.join(", "))
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
        if !report.missing.is_empty() {
            return Err(ReshardError::Missing(report.missing));
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
        let settled = self.settle_all(from, mine, on).await?;
        Box::pin(self.fill(from, mine, &settled, report, on)).await?;
        on(ReshardProgress::At("looking whether anybody has opened an old catalog since".to_owned()));
        // Who did may have answered.
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
    pub(super) async fn catalogs(&self, shards: StoreShards) -> Result<Vec<Placement>, ReshardError> {
        let mut all = vec![];
        for shard in shards.all().filter(|shard| shard.folder().is_some()) {
            let catalog = self.place(shard).await.opened.catalog;
            if Journal::present(&catalog).await? != Present::Nothing {
                all.push(catalog);
            }
        }
        Ok(all)
    }

    /// Step 1.
    async fn begin_in_map(&self, mark: &RootMark, options: ReshardOptions) -> Result<StoreShards, ReshardError> {
        let marked = mark.resharding.as_ref().map(|resharding| resharding.to);
        let from = mark.shards;
        loop {
            let last = self.maps.read_any().await?.last;
            // After that: whoever makes another change from here on writes a map, too, and this one's is refused.
            let now = self.mark().await?;
            if now.shards != mark.shards {
                return Err(ReshardError::DoneMeanwhile(now.shards));
            }
            if now != *mark {
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
    async fn settle_all(
        &self,
        from: StoreShards,
        mine: &Resharding,
        on: OnReshard<'_>,
    ) -> Result<Vec<SettledShard>, ReshardError> {
        let mut all = vec![];
        for shard in from.all() {
            on(ReshardProgress::At(format!("taking the catalog of {shard} over")));
            let place = self.place(shard).await;
            let settling = Box::pin(settle(&place.settings, &place.opened, mine.to.generation, &self.tools));
            let settled = settling.await.map_err(|error| of_shard(shard, error))?;
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
        on(ReshardProgress::At(format!("making the catalogs of {}", mine.to)));
        let mut fillings = Fillings::new(self.open_new(mine, epochs_before).await?, settled.len());
        on(ReshardProgress::Copying(report.total.bytes));
        // What was counted before the catalogs were settled is counted again.
        let (notes, deleted_files) = (std::mem::take(&mut report.notes), report.deleted_files);
        *report = ReshardReport { notes, deleted_files, ..ReshardReport::new(report.state, from, mine.to) };
        if let Err(error) = self.fill_with(&mut fillings, mine, settled, report, on).await {
            // Nothing of it writes on when somebody deletes them.
            fillings.close().await;
            return Err(error);
        }
        on(ReshardProgress::At(format!("looking through the catalogs of {}", mine.to)));
        for copied in fillings.finish(&self.tools).await? {
            report.copied.add(&copied);
        }
        Ok(())
    }

    async fn fill_with(
        &self,
        fillings: &mut Fillings,
        mine: &Resharding,
        settled: &[SettledShard],
        report: &mut ReshardReport,
        on: OnReshard<'_>,
    ) -> Result<(), ReshardError> {
        let mut buckets = DividedBuckets::default();
        for SettledShard { shard, .. } in settled {
            self.still_mine(mine).await?;
            let Some(source) = self.source(*shard, mine.to.generation).await? else { continue };
            let needed = NeededPlaces::of(&source.state, &self.settings, mine.to.routing());
            let division = Division::new(&source.state, mine.to.routing(), needed.wishes());
            count_in(report, *shard, &division);
            buckets.add(&division, shard.decides_on_buckets());
            on(ReshardProgress::At(format!("copying {shard}")));
            let copied = |bytes| on(ReshardProgress::Copied(bytes));
            fillings.take(&source, &division, &self.tools, &copied).await.map_err(|error| of_shard(*shard, error))?;
            tracing::info!(%shard, segments = source.state.segment_count(), "all of a shard is where it goes");
            close(source).await?;
        }
        self.still_mine(mine).await?;
        Ok(fillings.put(buckets.records()).await?)
    }

    /// Opens all new catalogs, which shuts out whoever was filling them.
    async fn open_new(&self, mine: &Resharding, epochs_before: u64) -> Result<Vec<Filling>, ReshardError> {
        let opening = mine.to.all().map(|shard| async move {
            let place = self.place(shard).await;
            // In a box: each is large, and several are opened at a time.
            Box::pin(Filling::open(&place.settings, &place.opened, place.shard, epochs_before, &self.tools)).await
        });
        let opened: Vec<_> = futures::stream::iter(opening).buffered(OPENED_AT_ONCE).try_collect().await?;
        // After the fences, as in step 3: a command that was stopped all the while writes nothing into what daemons use by now.
        if let Err(error) = self.still_mine(mine).await {
            join_all(opened.into_iter().map(Filling::close)).await;
            return Err(error);
        }
        Ok(opened)
    }

    /// Step 6: the map names these shards, if it still says that `change` is being made. Any other map is somebody else's by now.
    pub(super) async fn tell_map(&self, shards: StoreShards, change: StoreShards) -> Result<(), ReshardError> {
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
        if !emptied {
            for shard in shards.all() {
                on(ReshardProgress::At(format!("deleting the files of {shard}, which was there before")));
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
            on(ReshardProgress::At(format!("deleting the catalog of {shard}, which was there before")));
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

/// What is damaged in a shard, and what can be done about it before the change is made anew.
fn of_shard(shard: ShardOf, error: RefillError) -> ReshardError {
    if error.is_damage() { ReshardError::Damaged { shard, source: error } } else { error.into() }
}

/// Files with living segments that are not there.
async fn missing_of(shard: ShardOf, source: &Source, division: &Division<'_>) -> Result<Vec<String>, ReshardError> {
    let there: BTreeSet<String> =
        source.data.list().await.map_err(RefillError::from)?.into_iter().map(|(name, _)| name).collect();
    let missing: Vec<_> =
        division.files().into_iter().map(|file| file.to_string()).filter(|name| !there.contains(name)).collect();
    let named = missing.iter().take(MISSING_NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    Ok(match missing.len() {
        0 => vec![],
        files @ ..=MISSING_NAMED_MAX => vec![format!("{files} of the files of {shard}: {named}")],
        files => vec![format!("{files} of the files of {shard}: {named}, and more")],
    })
}

async fn close(source: Source) -> Result<(), ReshardError> {
    Ok(source.catalog.close().await?)
}
