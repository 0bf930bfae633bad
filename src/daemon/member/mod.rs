//! The life of a daemon that is one of several: it joins; of each shard it follows the owner of the catalog, takes over when that is
//! gone, serves, and gives the catalog away when it is to end.
//!
//! The rules are those of `docs/cluster.md`, and the steps have their numbers from there. What a step leaves behind when the daemon
//! dies in it, the next one that acts finds in the map: an owner that never opened its catalog is dead, or silent, like any.
//!
//! - [`balance`]: how shards are spread over members.
//! - [`follow`]: what it does while another one has the catalog of a shard.
//! - [`own`]: how it takes it over, serves, and gives it away.

mod balance;
mod follow;
mod own;

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use crate::api::cluster::dispatch::Dispatcher;
use crate::api::cluster::door::Drain;
use crate::api::cluster::route::{RouteTo, Routes, ShardRoutes};
use crate::api::keys::KeyRing;
use crate::cluster::links::PeerLinks;
use crate::cluster::map::{ClusterMap, Member, Succession};
use crate::cluster::maps::{ClusterMaps, MapError, Written};
use crate::cluster::place::ClusterPlace;
use crate::config::{ClusterSettings, Secret, Settings};
use crate::engine::open::step;
use crate::engine::{Foundation, OpeningError, StopError};
use crate::error::chain;
use crate::model::{ShardOf, StoreShards};
use crate::runtime::network::Network;
use crate::runtime::{Clock, Failure, TaskGroup};

/// Between two tries while storage does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// A daemon among others. Clones are the same one.
#[derive(Clone)]
pub(super) struct Membership(Arc<MemberShared>);

struct MemberShared {
    me: Member,
    /// Shows other processes of this machine that this one is there.
    _presence: Box<dyn Any + Send + Sync>,
    network: Arc<dyn Network>,
    cluster: ClusterSettings,
    clock: Clock,
    foundation: Foundation,
    store: Arc<ClusterPlace>,
    keys: KeyRing,
    maps: Arc<ClusterMaps>,
    links: Arc<PeerLinks>,
    routes: ShardRoutes,
    dispatcher: Dispatcher,
    /// Shards, once it is known how many there are.
    shards: OnceLock<Vec<Arc<ShardState>>>,
    /// Told to give all shards away, and to take none.
    drain: Arc<Drain>,
    stop: CancellationToken,
    /// Cancelled when it neither follows nor serves any more.
    over: CancellationToken,
    tasks: TaskGroup,
    joined: Mutex<JoinedAt>,
    /// Held by whoever joins again. A `tokio` mutex, because the others wait while storage works.
    joining: tokio::sync::Mutex<()>,
}

crate::runtime::opaque_debug!(Membership);

/// A shard, as a member sees it.
struct ShardState {
    shard: ShardOf,
    store: Arc<ClusterPlace>,
    routes: Routes,
    drain: Notify,
    /// The member that is to have it next, if it is one that was chosen.
    give_to: Mutex<Option<String>>,
    seen: Mutex<OwnerSeen>,
    /// Cancelled when it is found that nobody can have it: the others are served all the same.
    refused: CancellationToken,
    /// Resolves when the engine that was there before has ended.
    ending: Mutex<Option<oneshot::Receiver<()>>>,
}

/// A member's part in a shard. Clones are the same one.
#[derive(Clone)]
struct ShardMember(Arc<MemberShared>, Arc<ShardState>);

/// The owner that was seen last.
#[derive(Debug, Default)]
struct OwnerSeen {
    /// Its process; empty before the first.
    owner: String,
    since: Option<tokio::time::Instant>,
    /// For how long it is left alone when it is only silent.
    hold_down: Duration,
}

/// A member's beginning.
#[derive(Debug, Clone, Default)]
struct JoinedAt {
    /// The number of the map with which it joined.
    number: u64,
    /// When that was, in time since the boot.
    at: Duration,
    /// The processes, and their hosts, that the map before named: members, and the owner of the catalog.
    found: Vec<(String, String)>,
}

impl Membership {
    /// Of the store of `settings`; nothing is asked of that yet. `address` is where the native API listens.
    ///
    /// # Errors
    /// [`StartError`] if there can be no cluster.
    pub(super) fn new(
        settings: Settings,
        cluster: ClusterSettings,
        address: std::net::SocketAddr,
        keys: KeyRing,
        foundation: Foundation,
        clock: Clock,
        network: Arc<dyn Network>,
    ) -> Result<Self, StartError> {
        let Foundation { metrics, entropy, failed, .. } = &foundation;
        let url = cluster.url.clone().unwrap_or_else(|| format!("http://{address}"));
        let id = cluster.id.clone().unwrap_or_else(|| url.trim_start_matches("http://").to_owned());
        let me = Member { id, incarnation: entropy.hex(16), url, host: network.host(), since: now(&clock) };
        let presence = network.show(&me.incarnation).map_err(StartError::Presence)?;
        let store = Arc::new(ClusterPlace::new(&settings, metrics, &clock, entropy).map_err(OpeningError::from)?);
        let maps = store.maps().ok_or_else(|| StartError::NoCluster(settings.store.url.to_string()))?;
        let maps = Arc::new(maps);
        let links =
            PeerLinks::new(me.clone(), cluster.token.clone(), Arc::clone(&network), clock.clone(), metrics.clone());
        let links = Arc::new(links);
        let routes = ShardRoutes::default();
        let domains = settings.server.virtual_host_domains.clone();
        let kept_bytes_max = foundation.budgets.writes.total() / 8;
        let dispatcher =
            Dispatcher::new(routes.clone(), Arc::clone(&maps), domains, kept_bytes_max, foundation.metrics.clone());
        Ok(Self(Arc::new(MemberShared {
            me,
            _presence: presence,
            network,
            tasks: TaskGroup::new(failed.clone()),
            cluster,
            clock,
            store,
            keys,
            maps,
            links,
            routes,
            dispatcher,
            shards: OnceLock::new(),
            drain: Arc::default(),
            stop: CancellationToken::new(),
            over: CancellationToken::new(),
            joined: Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            foundation,
        })))
    }

    /// Joins the cluster.
    ///
    /// # Errors
    /// [`StartError`]; then it has not joined, or is a member that nobody reaches.
    pub(super) async fn join(&self) -> Result<(), StartError> {
        let MemberShared { maps, store, cluster, foundation, routes, keys, .. } = &*self.0;
        let last = maps.read().await?.last;
        let shards = match last.number {
            0 => match store.shards().await.map_err(OpeningError::from)? {
                Some(shards) => shards,
                // A store that has a catalog stays as it is.
                None if store.tried(&foundation.progress).await?.is_new() => {
                    store.divide(cluster.shards).await.map_err(OpeningError::from)?
                }
                None => StoreShards::UNDIVIDED,
            },
            _ => last.map.store_shards(),
        };
        if shards.count > 1 && cluster.token.is_none() && !keys.current().lets_everybody_in() {
            return Err(StartError::NoToken(shards.count));
        }
        // It has to do what it should before anybody joins.
        let opened = match shards.is_undivided() {
            true => store.tried(&foundation.progress).await.map(|_| None)?,
            false => Some(store.opened().await.map_err(OpeningError::from)?),
        };
        let store_of = |shard| match &opened {
            Some(opened) => Arc::new(store.of_shard(shard, opened)),
            None => Arc::clone(store),
        };
        routes.begin(shards.count);
        let all = routes.all();
        let states = shards.all().zip(all.iter().cloned()).map(|(shard, routes)| {
            Arc::new(ShardState {
                shard,
                store: store_of(shard),
                routes,
                drain: Notify::new(),
                give_to: Mutex::default(),
                seen: Mutex::default(),
                refused: CancellationToken::new(),
                ending: Mutex::default(),
            })
        });
        // It joins once.
        drop(self.0.shards.set(states.collect()));
        self.join_map(shards).await
    }

    fn shards(&self) -> Vec<ShardMember> {
        let states = self.0.shards.get().map_or(&[][..], Vec::as_slice);
        states.iter().map(|state| ShardMember(Arc::clone(&self.0), Arc::clone(state))).collect()
    }

    pub(super) fn routes(&self) -> &ShardRoutes {
        &self.0.routes
    }

    pub(super) fn dispatcher(&self) -> &Dispatcher {
        &self.0.dispatcher
    }

    pub(super) fn maps(&self) -> &Arc<ClusterMaps> {
        &self.0.maps
    }

    pub(super) fn links(&self) -> &Arc<PeerLinks> {
        &self.0.links
    }

    pub(super) fn drain(&self) -> &Arc<Drain> {
        &self.0.drain
    }

    pub(super) fn foundation(&self) -> &Foundation {
        &self.0.foundation
    }

    pub(super) fn tasks(&self) -> &TaskGroup {
        &self.0.tasks
    }

    /// `cluster.token`.
    pub(super) fn token(&self) -> Option<Secret> {
        self.0.cluster.token.clone()
    }

    pub(super) fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Begins to follow and to serve. Resolves when requests can be answered.
    ///
    /// # Errors
    /// [`StartError`] if that is not to be.
    pub(super) async fn begin(&self) -> Result<(), StartError> {
        let broken = Arc::new(Mutex::new(None));
        let over = self.0.over.clone();
        // Dropped by the last of them.
        let all_end = Arc::new(EndsAll { routes: self.0.routes.clone(), over: over.clone() });
        for shard in self.shards() {
            let (broken, all_end, stop) = (Arc::clone(&broken), Arc::clone(&all_end), self.0.stop.clone());
            let living = async move {
                if let Err(error) = shard.live().await {
                    broken.lock().get_or_insert(error);
                    stop.cancel();
                }
                drop(all_end);
            };
            self.0.tasks.spawn("member", Failure::StopsTheDaemon, living);
        }
        drop(all_end);
        self.0.tasks.spawn("member-balance", Failure::StopsTheDaemon, self.clone().balance());
        let begun = async {
            for ShardMember(_, state) in self.shards() {
                tokio::select! {
                    _ = state.routes.other_than(&RouteTo::Nobody, Duration::MAX) => {}
                    () = state.refused.cancelled() => {}
                }
            }
        };
        tokio::select! {
            () = begun => {}
            () = over.cancelled() => {}
        }
        if let Some(error) = broken.lock().take() {
            return Err(error);
        }
        let tasks = self.0.tasks.clone();
        // Later there is nobody who would be told but by the end of the daemon.
        self.0.tasks.spawn("member-watch", Failure::StopsTheDaemon, async move {
            over.cancelled().await;
            if let Some(error) = broken.lock().take() {
                tasks.fail(chain(&error));
            }
        });
        Ok(())
    }

    /// Gives the catalogs away, or closes them, within `patience`. Requests go on to be passed on.
    pub(super) async fn stop(&self, patience: Duration) {
        self.0.stop.cancel();
        step("cluster", patience.saturating_mul(3), self.0.over.cancelled()).await;
    }

    /// Is a member no more.
    ///
    /// # Errors
    /// [`StopError::Task`] if something had failed before.
    pub(super) async fn leave(&self, patience: Duration) -> Result<(), StopError> {
        let leaving = async {
            loop {
                let last = self.0.maps.read().await?.last;
                if last.map.member(&self.0.me.id).is_none_or(|member| member.incarnation != self.0.me.incarnation) {
                    return Ok(());
                }
                let map = last.map.clone().left(&self.0.me.id, &self.0.me.incarnation);
                if let Written::Ours(_) = self.0.maps.write(&last, &self.0.me.id, map).await? {
                    return Ok::<_, MapError>(());
                }
            }
        };
        match tokio::time::timeout(patience, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the cluster was not told that this daemon ends"),
            Err(_) => tracing::warn!("the cluster was not told in time that this daemon ends"),
        }
        self.0.tasks.failure().map_or(Ok(()), |reason| Err(StopError::Task(reason)))
    }

    /// Joins the map of a store with these shards, unless that says so already.
    async fn join_map(&self, shards: StoreShards) -> Result<(), StartError> {
        let MemberShared { me, maps, store, joining, .. } = &*self.0;
        let _turn = joining.lock().await;
        loop {
            let last = maps.read().await?.last;
            if last.map.member(&me.id).is_some_and(|member| member.incarnation == me.incarnation) {
                return Ok(());
            }
            if last.number > 0 && last.map.store_shards() != shards {
                return Err(StartError::OtherShards { found: last.map.store_shards(), expected: shards });
            }
            // Once more: the first member may just have begun.
            if store.misses(maps).await.map_err(OpeningError::from)? && maps.read().await?.last.number == 0 {
                return Err(StartError::MapsMissing);
            }
            let replaced = last.map.member(&me.id).cloned();
            let members = last.map.members.iter().map(|member| (member.incarnation.clone(), member.host.clone()));
            let owners = last.map.owners.iter().filter(|owner| owner.how != Succession::Ended);
            let owners = owners.map(|owner| (owner.incarnation.clone(), owner.host.clone()));
            let found: Vec<_> = members.chain(owners).filter(|(found, _)| *found != me.incarnation).collect();
            let (count, generation) = (shards.count, shards.generation);
            let map = ClusterMap { shards: count, generation, ..last.map.clone() }.joined(me.clone());
            match maps.write(&last, &me.id, map).await? {
                Written::Ours(map) => {
                    *self.0.joined.lock() = JoinedAt { number: map.number, at: self.0.clock.since_boot(), found };
                    tracing::info!(
                        id = me.id,
                        url = me.url,
                        map = map.number,
                        members = map.map.members.len(),
                        replaced = replaced.map(|other| other.since),
                        "joined the cluster"
                    );
                    return Ok(());
                }
                Written::Other(other) => {
                    if let Some(to) = other.map.resharding {
                        return Err(MapError::Resharding { number: other.number, to }.into());
                    }
                }
            }
        }
    }
}

impl ShardMember {
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Ends what leads to others, once nobody follows or serves.
struct EndsAll {
    routes: ShardRoutes,
    over: CancellationToken,
}

impl Drop for EndsAll {
    fn drop(&mut self) {
        self.routes.end();
        self.over.cancel();
    }
}

fn now(clock: &Clock) -> String {
    let since = std::time::UNIX_EPOCH + Duration::from_millis(clock.now().0);
    humantime::format_rfc3339_seconds(since).to_string()
}
