//! Spreads shards over members: whoever has two more than another one gives one away, one at a time.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;

use super::{MemberShared, Membership, PAUSE};
use crate::api::cluster::route::RouteTo;
use crate::cluster::map::ClusterMap;
use crate::cluster::peer::Pong;
use crate::cluster::plan::{ShardMove, plan};
use crate::runtime::Clock;

/// Looks at least so often, and at most.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);

impl Membership {
    /// Gives shards away until it is told to stop.
    pub(super) async fn balance(self) {
        let MemberShared { me, maps, cluster, stop, over, .. } = &*self.0;
        let every = (cluster.balance_after / 4).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        let (mut members, mut since) = (members_of(&maps.known().map), Clock::instant());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = over.cancelled() => return,
                () = self.0.drain.told() => self.drain_all(),
                () = tokio::time::sleep(every) => {}
            }
            let last = maps.known();
            if self.0.drain.is_drained() && self.somebody_takes(&last.map).await {
                self.drain_all();
            }
            let now = members_of(&last.map);
            if now != members {
                (members, since) = (now, Clock::instant());
            }
            let owns_most = plan(&last.map, |_| true).is_some_and(|next| next.from == me.id);
            if last.map.shards == 1 || since.elapsed() < cluster.balance_after || !owns_most {
                continue;
            }
            if let Some(next) = self.plan_for_who_takes(&last.map).await {
                self.give(&next);
            }
        }
    }

    /// Whether this member has something that another one takes, which was not drained itself.
    async fn somebody_takes(&self, map: &ClusterMap) -> bool {
        if !(0..map.shards).any(|shard| self.has(shard)) {
            return false;
        }
        self.pongs(map).await.iter().any(|pong| !pong.drained)
    }

    /// What the other members say of themselves, as far as they answer.
    async fn pongs(&self, map: &ClusterMap) -> Vec<Pong> {
        let (others, number) = (self.0.links.others(map, None), self.0.maps.known().number);
        join_all(others.iter().map(|link| link.ping(number, PAUSE))).await.into_iter().flatten().collect()
    }

    /// The next move of a shard of this member to one that takes it; none while the one before is not over.
    async fn plan_for_who_takes(&self, map: &ClusterMap) -> Option<ShardMove> {
        let MemberShared { me, routes, drain, .. } = &*self.0;
        let pongs = self.pongs(map).await;
        let serves = |shard: u32| pongs.iter().any(|pong| pong.has(shard)) || self.has(shard);
        if pongs.iter().any(|pong| !pong.opening.is_empty())
            || !routes.here_soon().is_empty()
            || !(0..map.shards).all(serves)
        {
            return None;
        }
        let takes: HashSet<&str> = pongs.iter().filter(|pong| !pong.drained).map(|pong| pong.id.as_str()).collect();
        plan(map, |id| takes.contains(id) || id == me.id && !drain.is_drained()).filter(|next| next.from == me.id)
    }

    fn has(&self, shard: u32) -> bool {
        self.0.routes.of(shard).is_some_and(|routes| matches!(routes.now(), RouteTo::Here(_)))
    }

    fn give(&self, next: &ShardMove) {
        let Some(state) = self.0.shards.get().and_then(|all| all.iter().find(|state| state.shard.shard == next.shard))
        else {
            return;
        };
        tracing::info!(shard = %state.shard, to = next.to, "a shard is moved to a member that has fewer");
        *state.give_to.lock() = Some(next.to.clone());
        state.drain.notify_one();
    }

    /// Gives all shards away.
    fn drain_all(&self) {
        for state in self.0.shards.get().into_iter().flatten() {
            state.give_to.lock().take();
            state.drain.notify_one();
        }
    }
}

/// The processes of a cluster.
fn members_of(map: &ClusterMap) -> Vec<String> {
    map.members.iter().map(|member| member.incarnation.clone()).collect()
}
