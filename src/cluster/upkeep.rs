//! What an operator does to a cluster whose daemons are all stopped.

use super::map::ClusterMap;
use super::maps::{ClusterMaps, MapError, Written};
use super::place::ClusterPlace;
use crate::catalog::slate::JournalError;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::StoreShards;
use crate::runtime::{Clock, Entropy};
use crate::store::OpenError;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// There is no client for the storage.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The catalog cannot be looked at.
    #[error("the catalog cannot be looked at")]
    Journal(#[from] JournalError),
    /// There is no place for a map.
    #[error("{0} cannot be the store of several daemons: that needs an object store")]
    NoCluster(String),
    /// It is as it should be, or nothing is there.
    #[error("{0}")]
    NotNeeded(String),
    /// Daemons may be at work.
    #[error("members of the cluster have not left it: {0}. Stop them; if they are dead, say --force")]
    Members(String),
}

fn place_of(settings: &Settings) -> Result<(ClusterPlace, ClusterMaps), UpkeepError> {
    let place = ClusterPlace::new(settings, &Metrics::new(), &Clock::System, &Entropy::from_os(Clock::System))?;
    let maps = place.maps().ok_or_else(|| UpkeepError::NoCluster(settings.store.url.to_string()))?;
    Ok((place, maps))
}

/// Makes the store one for a daemon by itself. `force` does so though members have not left.
///
/// # Errors
/// [`UpkeepError`].
pub async fn dissolve(settings: &Settings, force: bool) -> Result<(), UpkeepError> {
    let (place, maps) = place_of(settings)?;
    if !place.is_of_cluster().await? {
        return Err(UpkeepError::NotNeeded("the store is no cluster's: a daemon by itself may open it".to_owned()));
    }
    loop {
        let last = maps.read().await?.last;
        let members: Vec<_> = last.map.members.iter().map(|member| format!("{} ({})", member.id, member.url)).collect();
        if members.is_empty() {
            break;
        }
        if !force {
            return Err(UpkeepError::Members(members.join(", ")));
        }
        let nobody = ClusterMap { members: vec![], ..last.map.clone() };
        if let Written::Ours(_) = maps.write(&last, "esker cluster dissolve", nobody).await? {
            break;
        }
    }
    Ok(place.leave_cluster().await?)
}

/// Makes a first map where the catalog belongs to a cluster and there is none: somebody has deleted them. No daemon may run that knows of
/// one.
///
/// # Errors
/// [`UpkeepError`].
pub async fn repair(settings: &Settings) -> Result<(), UpkeepError> {
    let (place, maps) = place_of(settings)?;
    let last = maps.read().await?.last;
    if last.number > 0 {
        let message = format!("map {} is there, with {} members", last.number, last.map.members.len());
        return Err(UpkeepError::NotNeeded(message));
    }
    if !place.is_of_cluster().await? && place.shards().await?.is_none() {
        return Err(UpkeepError::NotNeeded("the store is no cluster's: its first member makes the map".to_owned()));
    }
    let empty = ClusterMap::of(place.shards().await?.unwrap_or(StoreShards::UNDIVIDED));
    match maps.write(&last, "esker cluster repair", empty).await? {
        Written::Ours(_) => Ok(()),
        Written::Other(other) => {
            Err(UpkeepError::NotNeeded(format!("somebody else has made map {} meanwhile", other.number)))
        }
    }
}
