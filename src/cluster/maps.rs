//! The cluster's map on storage: READ and WRITE of the protocol in `docs/cluster.md`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::map::{ClusterMap, InvalidMap};
use crate::metrics::Metrics;
use crate::model::StoreShards;
use crate::runtime::{Clock, Entropy, reply};
use crate::store::{Created, NumberedObjects, StoreError};

/// Between two tries of a create whose outcome nobody knows.
const PAUSE: Duration = Duration::from_millis(50);
/// Tries of a create before whoever asked is told.
const TRIES: u32 = 10;

/// A map and its number; 0 is the empty map, before the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedMap {
    /// Its number.
    pub number: u64,
    /// What it says.
    pub map: ClusterMap,
}

/// A READ: the last map, and when it was asked for.
#[derive(Debug, Clone)]
pub struct MapRead {
    /// The map that was the last one at some time after `begun`.
    pub last: Arc<NumberedMap>,
    /// The time since the machine's boot at which the READ began.
    pub begun: Duration,
}

/// Why the map is not known, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Storage does not answer.
    #[error("the cluster's map cannot be read or written")]
    Store(#[from] StoreError),
    /// It is there and means nothing.
    #[error(transparent)]
    Invalid(#[from] InvalidMap),
    /// Nobody may be a member while the number of shards is changed.
    #[error(
        "map {number} of the cluster says that the store is being changed to {to}: no daemon runs on it meanwhile. \
         `esker cluster reshard --shards {} --run` goes on where that was cut short, `--abandon` gives it up", to.count
    )]
    Resharding {
        /// The map.
        number: u64,
        /// What is being made.
        to: StoreShards,
    },
    /// Storage does not say whether it was written. It may still be.
    #[error("storage does not say whether map {0} of the cluster was written")]
    Unknown(u64),
}

impl MapError {
    /// Whether trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::Resharding { .. })
    }
}

/// What came of a WRITE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// This is the map now.
    Ours(Arc<NumberedMap>),
    /// Somebody else was faster: decide anew.
    Other(Arc<NumberedMap>),
}

/// What came of an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is in this map.
    Yes(Arc<NumberedMap>),
    /// The last map is not one that is to be edited so.
    No,
}

/// Makes the next map of the last one, or nothing.
type MapEdit = dyn Fn(&ClusterMap) -> Option<ClusterMap> + Send + Sync;

/// An edit that waits for its turn.
struct Waiting {
    edit: Box<MapEdit>,
    done: oneshot::Sender<Changed>,
}

/// The maps of a cluster, and the last one that this process has seen.
pub struct ClusterMaps {
    objects: NumberedObjects,
    /// Edits for the next WRITE of this process.
    waiting: Mutex<Vec<Waiting>>,
    /// Held by whoever WRITEs edits.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Arc<NumberedMap>>,
    /// The highest number that is known, or that peers have told of.
    told: watch::Sender<u64>,
    clock: Clock,
    entropy: Entropy,
    metrics: Metrics,
}

crate::runtime::opaque_debug!(ClusterMaps);

impl ClusterMaps {
    /// Those on storage. None is known yet.
    pub fn new(objects: NumberedObjects, clock: Clock, entropy: Entropy, metrics: Metrics) -> Self {
        let known = Mutex::new(Arc::new(NumberedMap { number: 0, map: ClusterMap::empty(1) }));
        let (waiting, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { objects, waiting, turn, known, told: watch::Sender::new(0), clock, entropy, metrics }
    }

    /// The last map that was seen, without a request.
    pub fn known(&self) -> Arc<NumberedMap> {
        Arc::clone(&self.known.lock())
    }

    /// A peer knows of map `number`.
    pub fn hint(&self, number: u64) {
        self.told.send_if_modified(|told| {
            let more = number > *told;
            *told = number.max(*told);
            more
        });
    }

    /// Whether somebody knows of a later map than `number`.
    pub fn is_later_known(&self, number: u64) -> bool {
        *self.told.borrow() > number
    }

    /// Resolves when somebody knows of a later map than `number`, this process or a peer of it.
    pub async fn later_than(&self, number: u64) {
        // The sender is as old as this.
        drop(self.told.subscribe().wait_for(|told| *told > number).await);
    }

    /// READ: the last map.
    ///
    /// # Errors
    /// [`MapError::Store`], [`MapError::Invalid`], [`MapError::Resharding`].
    pub async fn read(&self) -> Result<MapRead, MapError> {
        let read = self.read_any().await?;
        match read.last.map.resharding {
            Some(to) => Err(MapError::Resharding { number: read.last.number, to }),
            None => Ok(read),
        }
    }

    /// The same, for whoever changes the number of shards: a map that says so is one, too.
    ///
    /// # Errors
    /// [`MapError::Store`], [`MapError::Invalid`].
    pub async fn read_any(&self) -> Result<MapRead, MapError> {
        let begun = self.clock.since_boot();
        let known = self.known();
        let last = match self.objects.newest(known.number).await? {
            Some((number, bytes)) => self.learn(NumberedMap { number, map: ClusterMap::parse(number, &bytes)? }),
            None => known,
        };
        // Whoever told of a later one was wrong, or will tell again.
        self.told.send_if_modified(|told| std::mem::replace(told, last.number.min(*told)) > last.number);
        Ok(MapRead { last, begun })
    }

    /// WRITE: the map after `last`, which was decided on what that says.
    ///
    /// # Errors
    /// As [`Self::read`], and [`MapError::Unknown`].
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call may still write the map.
    pub async fn write(&self, last: &NumberedMap, by: &str, map: ClusterMap) -> Result<Written, MapError> {
        let map = ClusterMap { write_id: self.entropy.hex(16), by: by.to_owned(), ..map }.formatted();
        let (number, bytes) = (last.number + 1, map.bytes());
        for tried in 1..=TRIES {
            match self.objects.create(number, bytes.clone()).await? {
                Created::Yes => return Ok(Written::Ours(self.learn(NumberedMap { number, map }))),
                Created::Unknown => {}
                // Of a name that is taken and free, storage was busy with another request for it.
                Created::Taken => {
                    if let Some(there) = self.objects.get(number).await? {
                        let there = NumberedMap { number, map: ClusterMap::parse(number, &there)? };
                        if there.map.write_id == map.write_id {
                            return Ok(Written::Ours(self.learn(there)));
                        }
                        self.learn(there);
                        return Ok(Written::Other(self.read_any().await?.last));
                    }
                }
            }
            tokio::time::sleep(PAUSE * tried).await;
        }
        Err(MapError::Unknown(number))
    }

    /// WRITEs what `edit` makes of the last map, again and again until it is that map, or `edit` makes nothing of it any more. What others
    /// of this process want to change meanwhile goes into the same map.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Cancel safety
    /// As [`Self::write`].
    pub async fn change(
        &self,
        by: &str,
        edit: impl Fn(&ClusterMap) -> Option<ClusterMap> + Send + Sync + 'static,
    ) -> Result<Changed, MapError> {
        let (done, mut told) = oneshot::channel();
        self.waiting.lock().push(Waiting { edit: Box::new(edit), done });
        // A `tokio` mutex, because the others wait while storage works.
        let turn = self.turn.lock().await;
        if let Ok(changed) = told.try_recv() {
            return Ok(changed);
        }
        let all = std::mem::take(&mut *self.waiting.lock());
        let (number, changed) = self.write_all(by, &all).await?;
        for (waiting, changed) in all.into_iter().zip(changed) {
            reply(waiting.done, changed);
        }
        // After that: whoever has the turn next has been told, if its edit was among these.
        drop(turn);
        // Whoever took this edit has failed with it.
        told.try_recv().map_err(|_| MapError::Unknown(number))
    }

    /// Returns the number of the last map, and for each edit whether it is in it.
    async fn write_all(&self, by: &str, all: &[Waiting]) -> Result<(u64, Vec<Changed>), MapError> {
        let mut last = self.known();
        loop {
            let (mut map, mut edited) = (last.map.clone(), vec![]);
            for waiting in all {
                let next = (waiting.edit)(&map);
                edited.push(next.is_some());
                map = next.unwrap_or(map);
            }
            let wrote = edited.contains(&true);
            if wrote {
                last = match self.write(&last, by, map).await? {
                    Written::Ours(map) => map,
                    Written::Other(other) => {
                        if let Some(to) = other.map.resharding {
                            return Err(MapError::Resharding { number: other.number, to });
                        }
                        last = other;
                        continue;
                    }
                };
            }
            let told = |yes: &bool| if *yes { Changed::Yes(Arc::clone(&last)) } else { Changed::No };
            let changed = edited.iter().map(told).collect();
            return Ok((last.number, changed));
        }
    }

    fn learn(&self, found: NumberedMap) -> Arc<NumberedMap> {
        let found = Arc::new(found);
        let mut known = self.known.lock();
        if found.number > known.number {
            self.metrics.map_version.set(i64::try_from(found.number).unwrap_or(i64::MAX));
            *known = Arc::clone(&found);
            self.hint(found.number);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::super::map::Member;
    use super::*;
    use crate::store::{Capabilities, Placement};

    fn maps(store: &Arc<InMemory>, seed: u64) -> ClusterMaps {
        let store = Arc::<InMemory>::clone(store);
        let catalog =
            Placement::Object { store, prefix: Path::from("c/catalog"), can: Capabilities::OBJECT, log: None };
        let objects = NumberedObjects::beside(&catalog, "cluster/map", ".map").unwrap();
        ClusterMaps::new(objects, Clock::System, Entropy::from_seed(seed, Clock::System), Metrics::new())
    }

    /// Joins a member, unless it is one.
    fn joins(id: String) -> impl Fn(&ClusterMap) -> Option<ClusterMap> + Send + Sync + 'static {
        move |map| {
            let text = || id.clone();
            let member = Member { id: text(), incarnation: text(), url: text(), host: text(), since: text() };
            map.member(&id).is_none().then(|| map.clone().joined(member))
        }
    }

    #[tokio::test]
    async fn edits_that_come_together_share_a_map_and_none_is_lost() {
        let store = Arc::new(InMemory::new());
        let processes = [maps(&store, 1), maps(&store, 2)];

        let turns = processes.each_ref().map(|maps| maps.turn.try_lock().unwrap());
        let edits = processes
            .iter()
            .zip(["a", "b"])
            .flat_map(|(maps, by)| (0..8).map(move |n| maps.change(by, joins(format!("{by}{n}")))));
        // All of them wait when the turns begin.
        let begin = async { drop(turns) };
        let (changed, ()) = tokio::join!(biased; join_all(edits), begin);

        let last = processes[0].read().await.unwrap().last;
        assert_eq!(last.map.members.len(), 16);
        assert_eq!(last.number, 2, "one of each process");
        for told in changed {
            let Changed::Yes(map) = told.unwrap() else { panic!("an edit was refused") };
            assert!(map.number <= last.number);
        }
    }

    #[tokio::test]
    async fn an_edit_that_makes_nothing_of_the_last_map_writes_none() {
        let store = Arc::new(InMemory::new());
        let (first, second) = (maps(&store, 1), maps(&store, 2));
        first.change("a", joins("x".to_owned())).await.unwrap();

        // It has not seen that map: its own is refused, and it looks again.
        assert_eq!(second.change("b", joins("x".to_owned())).await.unwrap(), Changed::No);

        assert_eq!(second.read().await.unwrap().last.number, 1);
    }
}
