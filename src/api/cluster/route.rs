//! Who answers requests now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::s3::S3Service;
use crate::cluster::peer::PeerLink;
use crate::cluster::proof::Proofs;
use crate::engine::Engine;

/// The engine of this daemon for a shard, with its doors.
pub struct Here {
    /// The shard.
    pub shard: u32,
    /// The epoch of its catalog in which this daemon has it.
    pub epoch: u64,
    /// What answers at the S3 door.
    pub s3: S3Service,
    /// What answers at the native API.
    pub api: Router,
    /// The engine.
    pub engine: Engine,
    /// Whether it may answer still.
    pub proofs: Proofs,
    /// Cancelled when it may not.
    pub lost: CancellationToken,
    /// Requests that it is at work on.
    pub requests: TaskTracker,
}

crate::runtime::opaque_debug!(Here);

/// The one who answers.
#[derive(Debug, Clone)]
pub enum RouteTo {
    /// Nobody is known.
    Nobody,
    /// This daemon.
    Here(Arc<Here>),
    /// A peer.
    There(PeerOwner),
}

/// A peer, as the owner of a shard.
#[derive(Debug, Clone)]
pub struct PeerOwner {
    /// The way to it.
    pub link: Arc<PeerLink>,
    /// The epoch in which it has the shard. It may lose the shard, and come to it again: what was asked of it before may have been done by
    /// another owner since, and may be late.
    pub epoch: u64,
}

impl RouteTo {
    /// Whether both lead to the same one.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nobody, Self::Nobody) => true,
            (Self::Here(one), Self::Here(other)) => Arc::ptr_eq(one, other),
            (Self::There(one), Self::There(other)) => {
                one.epoch == other.epoch && one.link.member().incarnation == other.link.member().incarnation
            }
            _ => false,
        }
    }
}

/// The routes of all shards. Clones share them.
#[derive(Debug, Clone)]
pub struct ShardRoutes(watch::Sender<Arc<[Routes]>>);

impl Default for ShardRoutes {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::new([])))
    }
}

impl ShardRoutes {
    /// There are so many shards.
    pub fn begin(&self, shards: u32) {
        self.0.send_replace((0..shards).map(|_| Routes::default()).collect());
    }

    /// Those of all shards, by their numbers; none before it is known how many there are.
    pub fn all(&self) -> Arc<[Routes]> {
        self.0.borrow().clone()
    }

    /// The same, once it is known; none if it is not within `patience`.
    pub async fn known(&self, patience: Duration) -> Arc<[Routes]> {
        let mut all = self.0.subscribe();
        match tokio::time::timeout(patience, all.wait_for(|all| !all.is_empty())).await {
            Ok(Ok(all)) => all.clone(),
            _ => self.all(),
        }
    }

    /// Those of one shard, if there is such a shard.
    pub fn of(&self, shard: u32) -> Option<Routes> {
        self.0.borrow().get(usize::try_from(shard).ok()?).cloned()
    }

    /// The engines of this daemon, by their shards.
    pub fn here(&self) -> Vec<Arc<Here>> {
        let here = |routes: &Routes| match routes.now() {
            RouteTo::Here(here) => Some(here),
            RouteTo::Nobody | RouteTo::There(_) => None,
        };
        self.0.borrow().iter().filter_map(here).collect()
    }

    /// The shards that this daemon is about to have.
    pub fn here_soon(&self) -> Vec<u32> {
        let all = self.0.borrow();
        (0..).zip(all.iter()).filter(|(_, routes)| routes.here_soon()).map(|(shard, _)| shard).collect()
    }

    /// Nobody leads to another one any more: this daemon is about to end.
    pub fn end(&self) {
        self.0.borrow().iter().for_each(Routes::end);
    }
}

/// Leads requests to whoever answers for a shard. Clones share it.
#[derive(Debug, Clone)]
pub struct Routes {
    now: watch::Sender<RouteTo>,
    suspected: Arc<Notify>,
    opening: Arc<AtomicBool>,
    /// Since when the one who answers is missed.
    missed: watch::Sender<Option<Instant>>,
    ended: CancellationToken,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            now: watch::Sender::new(RouteTo::Nobody),
            suspected: Arc::default(),
            opening: Arc::default(),
            missed: watch::Sender::new(None),
            ended: CancellationToken::new(),
        }
    }
}

impl Routes {
    /// Leads to `route` from here on. Nobody has missed that one yet.
    pub fn lead_to(&self, route: RouteTo) {
        self.now.send_if_modified(|now| {
            let changed = !now.is(&route);
            if changed {
                self.miss(None);
                *now = route;
            }
            changed
        });
    }

    /// Who answers now.
    pub fn now(&self) -> RouteTo {
        self.now.borrow().clone()
    }

    /// Waits until another one than `last` answers, for at most `patience`. Returns who does then.
    pub async fn other_than(&self, last: &RouteTo, patience: Duration) -> RouteTo {
        let mut now = self.now.subscribe();
        let changed = now.wait_for(|now| !now.is(last));
        match tokio::time::timeout(patience, changed).await {
            Ok(Ok(now)) => now.clone(),
            _ => self.now(),
        }
    }

    /// The one who answers is missed since then, or not any more.
    pub fn miss(&self, since: Option<Instant>) {
        self.missed.send_if_modified(|missed| std::mem::replace(missed, since) != since);
    }

    /// Resolves when another one than `last` answers, or that one is missed for `patience`.
    pub async fn gone(&self, last: &RouteTo, patience: Duration) {
        let (mut now, mut missed) = (self.now.subscribe(), self.missed.subscribe());
        loop {
            let since = *missed.borrow_and_update();
            let over = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = now.wait_for(|now| !now.is(last)) => return drop(changed),
                () = over => return,
                changed = missed.changed() => drop(changed),
            }
        }
    }

    /// This daemon is about to answer, or not any more.
    pub fn opens_here(&self, opens: bool) {
        self.opening.store(opens, Ordering::Release);
    }

    /// Whether this daemon is about to answer.
    pub fn here_soon(&self) -> bool {
        self.opening.load(Ordering::Acquire)
    }

    /// Nobody leads to another one any more: this daemon is about to end.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// Whether that is so.
    pub fn have_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Tells that the one who answers did not: whoever watches should look at once.
    pub fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Resolves when somebody suspects.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::map::Member;
    use crate::metrics::Metrics;
    use crate::runtime::Clock;
    use crate::runtime::network::ThisMachine;

    fn there(incarnation: &str, epoch: u64) -> RouteTo {
        let [id, incarnation, url, host, since] = ["b", incarnation, "http://b:1", "", ""].map(str::to_owned);
        let member = Member { id, incarnation, url, host, since };
        let link = PeerLink::new(member, None, Arc::new(ThisMachine), Clock::System, Metrics::new());
        RouteTo::There(PeerOwner { link, epoch })
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_it_again_in_another_epoch_is_another_one() {
        let (routes, patience) = (Routes::default(), Duration::from_secs(10));
        routes.lead_to(there("1", 5));

        routes.lead_to(there("1", 7));

        let begun = Clock::instant();
        routes.gone(&there("1", 5), patience).await;
        let now = routes.other_than(&there("1", 5), patience).await;
        assert!(begun.elapsed().is_zero() && now.is(&there("1", 7)), "{now:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_who_answers_is_given_up_when_it_was_missed_for_long_or_another_one_answers() {
        let (routes, patience) = (Routes::default(), Duration::from_secs(10));
        let (first, second) = (there("1", 5), there("2", 6));
        routes.lead_to(first.clone());
        let begun = tokio::time::Instant::now();
        routes.miss(Some(begun));

        routes.gone(&first, patience).await;
        assert_eq!(begun.elapsed().as_secs(), 10);

        // Nobody has missed the next one, however long the one before was missed.
        routes.lead_to(second.clone());
        let still_there = tokio::time::timeout(patience * 2, routes.gone(&second, patience)).await;
        assert!(still_there.is_err());
        routes.lead_to(RouteTo::Nobody);
        routes.gone(&second, patience).await;
    }
}
