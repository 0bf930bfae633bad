//! A member takes the catalog of a shard over, serves, and gives it away. The numbers of steps are those of `docs/cluster.md`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{JoinedAt, MemberShared, PAUSE, ShardMember, ShardState, now};
use crate::api::cluster::route::{Here, PeerOwner, RouteTo, Routes};
use crate::api::native::Native;
use crate::api::s3::S3Door;
use crate::api::shards::siblings::Siblings;
use crate::cluster::map::{ClusterMap, Member, Ownership, Succession};
use crate::cluster::maps::{Changed, ClusterMaps, NumberedMap};
use crate::cluster::peer::PeerLink;
use crate::cluster::proof::{ALONE_ENDS, Evidence, NotProven, PROOF_COUNTS, Proofs, Standing};
use crate::daemon::error::StartError;
use crate::engine::{CatalogClaim, Engine, EngineOptions, OpeningError, Running};
use crate::error::chain;
use crate::metrics::labels::TakeOverCause;
use crate::model::ShardOf;
use crate::runtime::presence::ProcessSeen;
use crate::runtime::{Clock, Failure};

/// Beyond [`PROOF_COUNTS`] a new owner waits so much longer: clocks run differently, and milliseconds are cut off.
const MARGIN: Duration = Duration::from_millis(100);
/// An owner reads the map so often, whatever it is told.
const MAP_READ_EVERY: Duration = Duration::from_secs(60);
/// A member that the owner has not reached for so long is one no more.
const UNREACHED: Duration = Duration::from_secs(600);
/// Requests that an owner is at work on, which gives its catalog away, have so long.
const REQUESTS_PATIENCE: Duration = Duration::from_secs(5);

/// Why an owner is one no more.
enum OwnerEnd {
    /// Another one has the catalog, or may have it.
    Lost,
    /// It was told to give the catalog away.
    Drain,
    /// It was told to stop.
    Stop,
}

impl ShardMember {
    /// Takes the catalog over, and serves until that ends.
    pub(super) async fn take_over(
        &self,
        last: &NumberedMap,
        since: Instant,
        how: Succession,
    ) -> Result<(), StartError> {
        let MemberShared { me, maps, foundation, .. } = &*self.0;
        let ShardState { shard, routes, store, .. } = &*self.1;
        routes.lead_to(RouteTo::Nobody);
        let opening = OpensHere::told(routes);
        // 1
        let epoch_before = store.last_epoch().await.map_err(OpeningError::from)?;
        let previous = last.map.ownership(shard.shard).cloned();
        let is_given = |ownership: &&Ownership| {
            ownership.incarnation == me.incarnation
                && ownership.how != Succession::Ended
                && ownership.epoch_before == epoch_before
        };
        // 2
        let (number, mine) = match previous.as_ref().filter(is_given) {
            Some(mine) => (last.number, mine.clone()),
            None => {
                let mine = self.ownership(me, epoch_before, how);
                let (decided_on, taken) = (previous.clone(), mine.clone());
                let take = move |map: &ClusterMap| {
                    let is_member = map.member(&taken.member).is_some_and(|me| me.incarnation == taken.incarnation);
                    let as_before = map.ownership(taken.shard) == decided_on.as_ref();
                    (is_member && as_before).then(|| map.clone().owned(taken.clone()))
                };
                match maps.change(&me.id, take).await? {
                    Changed::Yes(map) => (map.number, mine),
                    Changed::No => return Ok(()),
                }
            }
        };
        // 3 to 5
        let fenced = Arc::new(AtomicU64::new(0));
        let still_mine = self.still_mine(epoch_before, Arc::clone(&fenced));
        let claim = CatalogClaim { epoch_before, shard: *shard, still_mine };
        let before = self.1.ending.lock().take();
        if let Some(before) = before {
            // It says nothing, it only ends.
            drop(before.await);
        }
        let options = EngineOptions {
            clock: self.0.clock.clone(),
            foundation: Some(foundation.clone()),
            tried: Some(store.tried(&foundation.progress).await?),
            claim: Some(claim),
            shards: self.siblings().map(|siblings| Arc::new(siblings) as _),
            ..EngineOptions::default()
        };
        let running = match Engine::open(store.settings().clone(), options).boxed().await {
            Ok(running) => running,
            Err(OpeningError::NotMine(why)) => {
                tracing::info!(%shard, why, map = number, "another daemon of the cluster was faster");
                return Ok(());
            }
            // What looks wrong may only be another owner's doing.
            Err(error) if error.is_refusal() && !is_mine(&maps.read().await?.last.map, *shard, me, epoch_before) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        // 6
        let handed_over = mine.how == Succession::HandedOver;
        let ended = previous.as_ref().is_none_or(|previous| previous.how == Succession::Ended);
        if !handed_over && !ended {
            let fenced = Duration::from_millis(fenced.load(Ordering::Acquire));
            let proofs_end = fenced + PROOF_COUNTS + MARGIN;
            self.wait_until(proofs_end.max(self.somebody_believes_to_be_alone_until().await)).await;
        }
        let here = self.serving(&running, epoch_before);
        if self.0.stop.is_cancelled() {
            // Only who has served gives it away: the next owner does not wait then.
            self.end(running);
            return Ok(());
        }
        if let Err(error) = here.proofs.read().await {
            tracing::warn!(%shard, %error, "the catalog was opened in vain");
            self.end(running);
            return Ok(());
        }
        let cause = cause_of(mine.how);
        foundation.metrics.failover_seconds.of(cause).observe(since.elapsed().as_secs_f64());
        foundation.metrics.shards_owned.inc();
        tracing::info!(
            %shard,
            how = mine.how.as_str(),
            map = number,
            epoch = epoch_before + 1,
            millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            segments = here.engine.segment_count(),
            "this daemon has the catalog"
        );
        routes.lead_to(RouteTo::Here(Arc::clone(&here)));
        drop(opening);
        if let Some(siblings) = self.siblings().filter(|_| shard.decides_on_buckets()) {
            let here = Arc::clone(&here);
            self.0.tasks.spawn("bucket-ends", Failure::FailsItsWork, async move {
                let (lost, engine) = (here.lost.clone(), here.engine.clone());
                drop(here);
                lost.run_until_cancelled(siblings.end_buckets(&engine)).await;
            });
        }
        let end = self.serve(&here).await;
        foundation.metrics.shards_owned.dec();
        routes.lead_to(RouteTo::Nobody);
        here.lost.cancel();
        match end {
            OwnerEnd::Lost => {
                foundation.metrics.fenced.inc();
                self.end(running);
                Ok(())
            }
            OwnerEnd::Drain | OwnerEnd::Stop => self.give_away(running, &here, epoch_before).await,
        }
    }

    fn ownership(&self, member: &Member, epoch_before: u64, how: Succession) -> Ownership {
        Ownership {
            shard: self.1.shard.shard,
            member: member.id.clone(),
            incarnation: member.incarnation.clone(),
            host: member.host.clone(),
            epoch_before,
            how,
            since: now(&self.0.clock),
        }
    }

    /// READs the map after the fence: step 4. Tells in `fenced` when the fence was there at the latest.
    fn still_mine(&self, epoch_before: u64, fenced: Arc<AtomicU64>) -> BoxFuture<'static, Result<(), String>> {
        let member = self.clone();
        async move {
            fenced.store(u64::try_from(member.0.clock.since_boot().as_millis()).unwrap_or(u64::MAX), Ordering::Release);
            let read = member.0.maps.read().await.map_err(|error| chain(&error))?;
            match is_mine(&read.last.map, member.1.shard, &member.0.me, epoch_before) {
                true => Ok(()),
                false => Err(format!("map {} gives it to another one", read.last.number)),
            }
        }
        .boxed()
    }

    /// Until when, in time since the boot, somebody may believe to be the only member who was one before this daemon joined: each of
    /// those is known to be dead, or has told of the map with which this one joined, or 15 s have passed since then.
    async fn somebody_believes_to_be_alone_until(&self) -> Duration {
        let MemberShared { maps, links, joined, .. } = &*self.0;
        let JoinedAt { number, at, found } = joined.lock().clone();
        let until = at + ALONE_ENDS;
        if until <= self.0.clock.since_boot() {
            return Duration::ZERO;
        }
        let known = maps.known();
        for (incarnation, host) in found {
            if self.0.network.look(&incarnation, &host) == ProcessSeen::Dead {
                continue;
            }
            let link = known.map.members.iter().find(|member| member.incarnation == incarnation);
            let Some(link) = link.map(|member| links.to(member)) else { return until };
            if link.told() < number && !link.ping(known.number, PAUSE).await.is_ok_and(|pong| pong.map >= number) {
                return until;
            }
        }
        Duration::ZERO
    }

    async fn wait_until(&self, until: Duration) {
        loop {
            let left = until.saturating_sub(self.0.clock.since_boot());
            if left.is_zero() || self.0.stop.is_cancelled() {
                return;
            }
            if left > PROOF_COUNTS + MARGIN {
                tracing::info!(
                    seconds = left.as_secs_f64().ceil(),
                    "waiting: the owner before may only be stopped, and believe that it is alone"
                );
            }
            self.pause(left).await;
        }
    }

    /// All shards, if there are several.
    fn siblings(&self) -> Option<Siblings> {
        let shard = self.1.shard;
        (!shard.is_whole()).then(|| Siblings::new(shard, Arc::new(self.0.dispatcher.clone())))
    }

    fn serving(&self, running: &Running, epoch_before: u64) -> Arc<Here> {
        let engine = running.engine().clone();
        let MemberShared { me, maps, keys, .. } = &*self.0;
        let shard = self.1.shard;
        let evidence =
            MapEvidence { maps: Arc::clone(maps), shard, me: me.clone(), epoch_before, engine: engine.clone() };
        let mut s3 = S3Door::new(engine.clone(), keys.clone());
        if let Some(siblings) = self.siblings() {
            s3 = s3.of_shard(siblings);
        }
        let lost = running.lost().child_token();
        // Whoever waits for events of a job is told to come back, when the shard is given away, and does not hold that up.
        let mut native = Native::new(engine.clone(), keys.clone()).ending_with(lost.clone());
        if let Some(siblings) = self.siblings() {
            native = native.of_shard(siblings);
        }
        Arc::new(Here {
            shard: shard.shard,
            epoch: epoch_before + 1,
            s3: crate::api::s3::service(s3),
            api: native.router(),
            proofs: Proofs::new(evidence, self.0.clock.clone(), self.0.foundation.metrics.clone()),
            lost,
            requests: TaskTracker::new(),
            engine,
        })
    }

    /// Looks after the catalog while requests are answered.
    async fn serve(&self, here: &Here) -> OwnerEnd {
        let MemberShared { maps, stop, .. } = &*self.0;
        let ShardState { shard, drain, .. } = &*self.1;
        // What was asked for before concerns an owner before.
        drain.notified().now_or_never();
        let mut unreached = HashMap::new();
        loop {
            let number = maps.known().number;
            tokio::select! {
                () = here.lost.cancelled() => return OwnerEnd::Lost,
                () = stop.cancelled() => return OwnerEnd::Stop,
                () = drain.notified() => match self.successor().await {
                    Some(_) => return OwnerEnd::Drain,
                    None => tracing::warn!("there is no other daemon to give the catalog to"),
                },
                () = maps.later_than(number) => {}
                () = tokio::time::sleep(MAP_READ_EVERY) => {
                    // One owner does it for all.
                    if shard.shard == 0 {
                        self.drop_unreached(&mut unreached).await;
                    }
                }
            }
            match here.proofs.read().await {
                Ok(()) => {}
                Err(NotProven::NotOwner) => return OwnerEnd::Lost,
                // Requests tell, if it goes on.
                Err(NotProven::Unknown(why)) => {
                    tracing::debug!(why, "the map of the cluster cannot be read");
                    self.pause(PAUSE).await;
                }
            }
        }
    }

    /// Drops members that were not reached for long.
    async fn drop_unreached(&self, unreached: &mut HashMap<String, Instant>) {
        let MemberShared { maps, links, me, .. } = &*self.0;
        let last = maps.known();
        for link in links.others(&last.map, None) {
            let incarnation = &link.member().incarnation;
            if link.ping(last.number, PAUSE).await.is_ok() {
                unreached.remove(incarnation);
                continue;
            }
            let since = *unreached.entry(incarnation.clone()).or_insert_with(Clock::instant);
            if since.elapsed() < UNREACHED {
                continue;
            }
            tracing::warn!(
                id = link.member().id,
                url = link.member().url,
                "a member was not reached for ten minutes, and is dropped"
            );
            let map = last.map.clone().left(&link.member().id, incarnation);
            if let Err(error) = maps.write(&last, &me.id, map).await {
                tracing::debug!(error = chain(&error), "the map was not written");
            }
            // The others have their turn with the next map.
            return;
        }
    }

    /// The member that is to have the catalog next, if one is there.
    async fn successor(&self) -> Option<Arc<PeerLink>> {
        let MemberShared { maps, links, me, .. } = &*self.0;
        let last = maps.read().await.map_or_else(|_| maps.known(), |read| read.last);
        let chosen = self.1.give_to.lock().clone();
        let mut candidates = last.map.candidates(self.1.shard.shard, Some(&me.id));
        candidates.sort_by_key(|member| Some(&member.id) != chosen.as_ref());
        let mut drained = None;
        for member in candidates {
            let link = links.to(member);
            match link.ping(last.number, PAUSE).await {
                Ok(pong) if pong.drained => drained = drained.or(Some(link)),
                Ok(_) => return Some(link),
                Err(_) => {}
            }
        }
        // Rather than nobody.
        drained
    }

    /// Ends an engine whose catalog is another one's, beside what comes next. Only another engine waits for that.
    fn end(&self, running: Running) {
        let (ended, end) = oneshot::channel();
        *self.1.ending.lock() = Some(end);
        self.0.tasks.spawn("engine-end", Failure::FailsItsWork, async move {
            if let Err(error) = running.stop().await {
                tracing::debug!(error = chain(&error), "the engine that had the catalog ended");
            }
            drop(ended);
        });
    }

    /// Closes the catalog, and gives it to another member, if there is one.
    async fn give_away(&self, running: Running, here: &Here, epoch_before: u64) -> Result<(), StartError> {
        let MemberShared { maps, me, .. } = &*self.0;
        let ShardState { shard, routes, .. } = &*self.1;
        // Peers wait for it meanwhile.
        let _given_away = OpensHere::told(routes);
        here.requests.close();
        if tokio::time::timeout(REQUESTS_PATIENCE, here.requests.wait()).await.is_err() {
            tracing::warn!("requests are still worked on, and end with an error");
        }
        if let Err(error) = running.stop().await {
            tracing::warn!(
                error = chain(&error),
                "the catalog was not closed: another daemon takes it over like that of a dead one"
            );
            return Ok(());
        }
        let successor = self.successor().await;
        self.1.give_to.lock().take();
        let next =
            successor.as_ref().map(|link| self.ownership(link.member(), epoch_before + 1, Succession::HandedOver));
        let (of, member) = (*shard, me.clone());
        let give = move |map: &ClusterMap| {
            let given = match next.clone() {
                Some(next) => map.clone().owned(next),
                None => map.clone().ended(of.shard),
            };
            is_mine(map, of, &member, epoch_before).then_some(given)
        };
        maps.read().await?;
        let Changed::Yes(map) = maps.change(&me.id, give).await? else { return Ok(()) };
        if let Some(link) = &successor {
            tracing::info!(%shard, to = link.member().id, map = map.number, "the catalog was given away");
            if let Err(error) = link.ping(map.number, PAUSE).await {
                tracing::debug!(error = chain(&error), "the one who has the catalog now was not told");
            }
            routes.lead_to(RouteTo::There(PeerOwner { link: Arc::clone(link), epoch: epoch_before + 2 }));
        }
        Ok(())
    }
}

fn is_mine(map: &ClusterMap, shard: ShardOf, me: &Member, epoch_before: u64) -> bool {
    map.owner(shard.shard).is_some_and(|(ownership, member)| {
        member.incarnation == me.incarnation && ownership.epoch_before == epoch_before
    })
}

fn cause_of(how: Succession) -> TakeOverCause {
    match how {
        Succession::Unowned | Succession::Ended => TakeOverCause::Unowned,
        Succession::Dead => TakeOverCause::Dead,
        Succession::Silent => TakeOverCause::Silent,
        Succession::GivenUp => TakeOverCause::GivenUp,
        Succession::HandedOver => TakeOverCause::HandedOver,
        Succession::Again => TakeOverCause::Again,
    }
}

/// Peers are told that this daemon is about to have the catalog, for as long as this is there.
struct OpensHere<'a>(&'a Routes);

impl<'a> OpensHere<'a> {
    fn told(routes: &'a Routes) -> Self {
        routes.opens_here(true);
        Self(routes)
    }
}

impl Drop for OpensHere<'_> {
    fn drop(&mut self) {
        self.0.opens_here(false);
    }
}

/// The evidence of an owner.
struct MapEvidence {
    maps: Arc<ClusterMaps>,
    shard: ShardOf,
    me: Member,
    epoch_before: u64,
    engine: Engine,
}

impl Evidence for MapEvidence {
    fn read_map(&self) -> BoxFuture<'_, Result<(Duration, Standing), String>> {
        async move {
            let read = self.maps.read().await.map_err(|error| chain(&error))?;
            let map = &read.last.map;
            let standing = match is_mine(map, self.shard, &self.me, self.epoch_before) {
                false => Standing::NotMine,
                true if map.is_alone(&self.me.id) => Standing::MineAlone,
                true => Standing::Mine,
            };
            Ok((read.begun, standing))
        }
        .boxed()
    }

    fn last_commit(&self) -> u64 {
        self.engine.last_commit()
    }

    fn is_alone(&self) -> bool {
        self.maps.known().map.is_alone(&self.me.id)
    }
}
