//! A member looks at the map, joins again if it has to, and follows whoever has the catalog of a shard.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{MemberShared, Membership, OwnerSeen, PAUSE, ShardMember, ShardState};
use crate::api::cluster::route::{PeerOwner, RouteTo};
use crate::cluster::map::{Member, Succession};
use crate::cluster::maps::NumberedMap;
use crate::cluster::watch::{OwnerVerdict, PINGS, judge};
use crate::daemon::error::StartError;
use crate::error::chain;
use crate::model::StoreShards;
use crate::runtime::Clock;

/// The next candidate waits so much longer than the one before.
const RANK_WAIT: Duration = Duration::from_millis(400);
/// An owner that is only silent is left alone for so long after it came to the catalog; twice as long after each time, up to the
/// second. Two members that do not see each other must not take it from each other over and over.
const HOLD_DOWN: Duration = Duration::from_secs(5);
const HOLD_DOWN_MAX: Duration = Duration::from_secs(60);
/// An owner that says that it has not got the catalog has so long to come to it.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// A catalog that nobody can open is tried again after so long.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// An owner that says that it is about to have the catalog has so long. Whoever takes over needs as long again.
const OPENS_MAX: Duration = Duration::from_secs(600);

/// What a member that follows an owner does next.
enum NextStep {
    /// It looks at the map.
    Look,
    /// It takes over: since when the owner is missed, and what is the matter with it.
    TakeOver(Instant, Succession),
    /// It stops.
    Stop,
}

impl ShardMember {
    /// Follows and takes over in turn until it is told to stop.
    ///
    /// # Errors
    /// [`StartError`] if it cannot go on, and trying again changes nothing.
    pub(super) async fn live(&self) -> Result<(), StartError> {
        let MemberShared { me, maps, stop, .. } = &*self.0;
        let ShardState { shard, routes, refused, .. } = &*self.1;
        let mut silent_storage = false;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            let last = match maps.read().await {
                Ok(read) => read.last,
                Err(error) if error.is_refusal() => return Err(error.into()),
                Err(error) => {
                    if !std::mem::replace(&mut silent_storage, true) {
                        tracing::warn!(error = chain(&error), "the map of the cluster cannot be read, trying on");
                    }
                    self.pause(PAUSE).await;
                    continue;
                }
            };
            silent_storage = false;
            match last.map.member(&me.id) {
                Some(member) if member.incarnation == me.incarnation => {}
                Some(member) => return Err(StartError::Replaced(me.id.clone(), member.url.clone())),
                None => {
                    let shards = StoreShards { count: shard.of, generation: shard.generation };
                    if let Err(error) = Membership(Arc::clone(&self.0)).join_map(shards).await {
                        if matches!(error, StartError::OtherShards { .. }) {
                            return Err(error);
                        }
                        tracing::warn!(error = chain(&error), "joining the cluster again");
                        self.pause(PAUSE).await;
                    }
                    continue;
                }
            }
            let next = match last.map.owner(shard.shard) {
                Some((owned, owner)) if owner.incarnation != me.incarnation => {
                    self.follow(&last, owner, owned.epoch()).await
                }
                Some(_) => NextStep::TakeOver(Clock::instant(), Succession::Again),
                None => self.wait_for_rank(&last, None, Succession::Unowned, Clock::instant()).await,
            };
            let (since, how) = match next {
                NextStep::Look => continue,
                NextStep::Stop => return Ok(()),
                NextStep::TakeOver(since, how) => (since, how),
            };
            if let Err(error) = self.take_over(&last, since, how).await {
                routes.lead_to(RouteTo::Nobody);
                match error.is_refusal() {
                    true if shard.is_whole() => return Err(error),
                    // The others are well.
                    true => {
                        tracing::error!(%shard, error = chain(&error), "nobody can have this shard until that is mended");
                        refused.cancel();
                        self.pause(REFUSED_PAUSE).await;
                    }
                    false => {
                        tracing::warn!(%shard, error = chain(&error), "taking the catalog over, trying on");
                        self.pause(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Passes requests on to the owner, which has the catalog in this epoch, until there is another one, or it is gone.
    async fn follow(&self, last: &NumberedMap, owner: &Member, epoch: u64) -> NextStep {
        let MemberShared { maps, links, stop, cluster, .. } = &*self.0;
        let ShardState { shard, routes, .. } = &*self.1;
        let interval = cluster.lease_timeout / PINGS;
        let link = links.to(owner);
        let (owned_since, hold_down) = self.owned_since(last, owner);
        tracing::info!(%shard, owner = owner.id, url = owner.url, map = last.number, "requests go to the owner of the catalog");
        routes.miss(None);
        routes.lead_to(RouteTo::There(PeerOwner { link: Arc::clone(&link), epoch }));
        let (mut missed_since, mut idle_since, mut opens_since) = (None, None::<Instant>, None::<Instant>);
        loop {
            maps.hint(link.told());
            if maps.is_later_known(last.number) {
                return NextStep::Look;
            }
            let since = Clock::instant();
            let others = links.others(&last.map, Some(owner));
            let how = match judge(&link, shard.shard, &others, maps.known().number, cluster.lease_timeout).await {
                verdict @ (OwnerVerdict::Alive | OwnerVerdict::Opens)
                    if verdict == OwnerVerdict::Alive
                        || opens_since.get_or_insert_with(Clock::instant).elapsed() < OPENS_MAX =>
                {
                    (missed_since, idle_since) = (None, None);
                    routes.miss(None);
                    if verdict == OwnerVerdict::Alive {
                        opens_since = None;
                    }
                    tokio::select! {
                        () = stop.cancelled() => return NextStep::Stop,
                        () = maps.later_than(last.number) => return NextStep::Look,
                        () = routes.suspected() => {}
                        () = tokio::time::sleep(interval) => {}
                    }
                    continue;
                }
                OwnerVerdict::TooSlow => continue,
                OwnerVerdict::Dead => Succession::Dead,
                OwnerVerdict::Silent => Succession::Silent,
                // It may just have come to it, and know of that in a moment.
                OwnerVerdict::Idle if idle_since.get_or_insert_with(Clock::instant).elapsed() < IDLE_MAX => {
                    tokio::select! {
                        () = stop.cancelled() => return NextStep::Stop,
                        () = maps.later_than(last.number) => return NextStep::Look,
                        () = tokio::time::sleep(interval) => {}
                    }
                    continue;
                }
                OwnerVerdict::Alive | OwnerVerdict::Opens | OwnerVerdict::Idle => Succession::GivenUp,
            };
            let since = *missed_since.get_or_insert(since);
            routes.miss(Some(since));
            if stop.is_cancelled() {
                return NextStep::Stop;
            }
            if how == Succession::Silent && owned_since.elapsed() < hold_down {
                continue;
            }
            tracing::warn!(%shard, owner = owner.id, how = how.as_str(), "the owner of the catalog is missed");
            return self.wait_for_rank(last, Some(&owner.id), how, since).await;
        }
    }

    /// Waits while better candidates than this member may take over: all members but `without` are. Of a store that is not divided,
    /// whoever comes first takes what nobody has.
    async fn wait_for_rank(
        &self,
        last: &NumberedMap,
        without: Option<&str>,
        how: Succession,
        since: Instant,
    ) -> NextStep {
        let MemberShared { me, maps, stop, .. } = &*self.0;
        let shard = self.1.shard;
        if without.is_none() && shard.is_whole() {
            return NextStep::TakeOver(since, how);
        }
        let candidates = last.map.candidates(shard.shard, without);
        let rank = candidates.iter().position(|member| member.id == me.id).unwrap_or_default();
        // One that was drained is the last resort.
        let rank = if self.0.drain.is_drained() { candidates.len() } else { rank };
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let mut over = std::pin::pin!(tokio::time::sleep(RANK_WAIT.saturating_mul(rank)));
        let mut number = last.number;
        loop {
            tokio::select! {
                () = stop.cancelled() => return NextStep::Stop,
                () = &mut over => return NextStep::TakeOver(since, how),
                () = maps.later_than(number) => {}
            }
            // When a member is gone, there are maps about its other shards.
            match maps.read().await {
                Ok(read)
                    if read.last.map.ownership(shard.shard) == last.map.ownership(shard.shard) && !shard.is_whole() =>
                {
                    number = read.last.number;
                }
                _ => return NextStep::Look,
            }
        }
    }

    /// Since when this owner has the catalog, as far as this daemon has seen, and for how long it is left alone when it is silent: for
    /// longer each time that the catalog went from one that was only silent.
    fn owned_since(&self, last: &NumberedMap, owner: &Member) -> (Instant, Duration) {
        let mut seen = self.1.seen.lock();
        if seen.owner != owner.incarnation {
            let was_silent =
                last.map.ownership(self.1.shard.shard).is_some_and(|ownership| ownership.how == Succession::Silent);
            let hold_down = match was_silent {
                true => (seen.hold_down.max(HOLD_DOWN) * 2).min(HOLD_DOWN_MAX),
                false => HOLD_DOWN,
            };
            *seen = OwnerSeen { owner: owner.incarnation.clone(), since: Some(Clock::instant()), hold_down };
        }
        (seen.since.unwrap_or_else(Clock::instant), seen.hold_down)
    }
}
