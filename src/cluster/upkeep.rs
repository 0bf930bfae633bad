//! What an operator does to a cluster whose daemons are all stopped.

use super::map::ClusterMap;
use super::maps::{ClusterMaps, MapError, Written};
use super::place::maps_beside;
use crate::catalog::slate::{Journal, JournalError};
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::runtime::{Clock, Entropy};
use crate::store::{OpenError, Placement, place_of_catalog};

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

fn maps_of(settings: &Settings) -> Result<(ClusterMaps, Placement), UpkeepError> {
    let metrics = Metrics::new();
    let placement = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
    let maps = maps_beside(&placement, Entropy::from_os(Clock::System), metrics);
    Ok((maps.ok_or_else(|| UpkeepError::NoCluster(settings.store.url.to_string()))?, placement))
}

/// Makes the store one for a daemon by itself. `force` does so though members have not left.
///
/// # Errors
/// [`UpkeepError`].
pub async fn dissolve(settings: &Settings, force: bool) -> Result<(), UpkeepError> {
    let (maps, placement) = maps_of(settings)?;
    if !Journal::is_of_cluster(&placement).await? {
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
    Ok(Journal::leave_cluster(&placement).await?)
}

/// Makes a first map where the catalog belongs to a cluster and there is none: somebody has deleted them. No daemon may run that knows of
/// one.
///
/// # Errors
/// [`UpkeepError`].
pub async fn repair(settings: &Settings) -> Result<(), UpkeepError> {
    let (maps, placement) = maps_of(settings)?;
    let last = maps.read().await?.last;
    if last.number > 0 {
        let message = format!("map {} is there, with {} members", last.number, last.map.members.len());
        return Err(UpkeepError::NotNeeded(message));
    }
    if !Journal::is_of_cluster(&placement).await? {
        return Err(UpkeepError::NotNeeded("the store is no cluster's: its first member makes the map".to_owned()));
    }
    match maps.write(&last, "esker cluster repair", ClusterMap::empty()).await? {
        Written::Ours(_) => Ok(()),
        Written::Other(other) => {
            Err(UpkeepError::NotNeeded(format!("somebody else has made map {} meanwhile", other.number)))
        }
    }
}
