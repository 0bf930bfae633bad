//! Whether an object store keeps its word about conditions. Some accept them and ignore them: two daemons on such
//! a store would both believe to own the catalog, and both answer.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use super::Capabilities;

/// No probe takes so long: what is older was left by a daemon that was killed meanwhile.
pub(super) const ABANDONED_AFTER: TimeDelta = TimeDelta::minutes(10);

/// Why a store is not fit to hold the catalog.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A second create of the same key succeeded.
    #[error(
        "the store accepts 'If-None-Match: *' ('x-goog-if-generation-match: 0' on Google Cloud Storage) and ignores it: two \
         daemons could both own the catalog and lose what they answered. Use a store with conditional writes (AWS S3, Google \
         Cloud Storage, Azure, MinIO, versitygw, Ceph from Squid on, ...)"
    )]
    CreateIgnored,
    /// An update with a stale entity tag succeeded.
    #[error(
        "the store accepts 'If-Match' with a stale entity tag (a stale generation on Google Cloud Storage): two daemons could \
         both own the catalog and lose what they answered. Use a store with conditional writes"
    )]
    UpdateIgnored,
    /// There is no such bucket or container.
    #[error("its bucket or container does not exist: create it, or correct store.url (or catalog.url)")]
    NoBucket(#[source] Error),
    /// The bytes that were read are not those that were written.
    #[error("the store gave back other bytes than the probe had written to {0}")]
    NotReadBack(Path),
    /// A request of the probe failed.
    #[error("the store does not answer the probe's {step}")]
    Failed {
        /// The step that was tried.
        step: &'static str,
        /// The error of the step.
        #[source]
        source: Error,
    },
}

/// Creates an object `name` in `folder` twice, reads it back, updates it twice with the same tag if the store `can` do that, and
/// deletes it, and with it what daemons that were killed have left in the folder. Waits between writes for as long as the store
/// wants.
///
/// # Errors
/// [`ProbeError`] if the store does not refuse what it must refuse.
pub async fn probe(store: &dyn ObjectStore, folder: &Path, name: &str, can: Capabilities) -> Result<(), ProbeError> {
    let key = folder.clone().join(name);
    let answer = conditions(store, &key, can).await;
    if let Err(source) = store.delete(&key).await {
        tracing::warn!(%key, %source, "the probe's object could not be deleted");
    }
    let created = answer?;
    if let Err(source) = delete_abandoned(store, folder, created - ABANDONED_AFTER).await {
        tracing::warn!(%folder, %source, "what killed daemons have left of their probes could not be deleted");
    }
    Ok(())
}

/// Deletes what is older, all by the clock of the store.
async fn delete_abandoned(store: &dyn ObjectStore, folder: &Path, before: DateTime<Utc>) -> Result<(), Error> {
    let found: Vec<_> = store.list(Some(folder)).try_collect().await?;
    for object in found.into_iter().filter(|object| object.last_modified < before) {
        store.delete(&object.location).await?;
    }
    Ok(())
}

/// When the store says that the object was created.
async fn conditions(store: &dyn ObjectStore, key: &Path, can: Capabilities) -> Result<DateTime<Utc>, ProbeError> {
    let failed = |step| move |source| ProbeError::Failed { step, source };
    let put = |text: &'static str, mode| store.put_opts(key, Bytes::from(text).into(), PutOptions::from(mode));
    let first = match put("first", PutMode::Create).await {
        // Only what the object would be in can be missing.
        Err(source @ Error::NotFound { .. }) => return Err(ProbeError::NoBucket(source)),
        first => first.map_err(failed("create"))?,
    };
    tokio::time::sleep(can.rewrite_interval).await;
    match put("second", PutMode::Create).await {
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        Err(source) => return Err(ProbeError::Failed { step: "second create", source }),
        Ok(_) => return Err(ProbeError::CreateIgnored),
    }
    let read = store.get(key).await.map_err(failed("get"))?;
    let created = read.meta.last_modified;
    if read.bytes().await.map_err(failed("get"))? != "first" {
        return Err(ProbeError::NotReadBack(key.clone()));
    }
    if !can.conditional_updates {
        return Ok(created);
    }
    let version = UpdateVersion { e_tag: first.e_tag, version: first.version };
    put("updated", PutMode::Update(version.clone())).await.map_err(failed("conditional update"))?;
    tokio::time::sleep(can.rewrite_interval).await;
    match put("stale", PutMode::Update(version)).await {
        Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Ok(created),
        Err(source) => Err(ProbeError::Failed { step: "stale update", source }),
        Ok(_) => Err(ProbeError::UpdateIgnored),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::{CountedStore, Traffic};

    fn folder() -> Path {
        Path::from("probe")
    }

    #[tokio::test]
    async fn a_store_with_conditions_passes_and_is_left_empty() {
        let store = Arc::new(InMemory::new());
        let counted = CountedStore::new(Arc::<InMemory>::clone(&store), Traffic::data(Metrics::new()));

        probe(&counted, &folder(), "1", Capabilities::OBJECT).await.unwrap();

        assert!(store.head(&Path::from("probe/1")).await.is_err());
    }

    #[tokio::test]
    async fn what_killed_daemons_have_left_is_deleted_when_it_is_old() {
        let store = InMemory::new();
        for name in ["probe/killed", "probes/other", "data/file"] {
            store.put(&Path::from(name), Bytes::from_static(b"first").into()).await.unwrap();
        }
        let created = store.head(&Path::from("probe/killed")).await.unwrap().last_modified;
        let names = async || -> Vec<String> {
            let found: Vec<_> = store.list(None).try_collect().await.unwrap();
            found.into_iter().map(|object| object.location.to_string()).collect()
        };

        probe(&store, &folder(), "1", Capabilities::OBJECT).await.unwrap();
        assert_eq!(names().await, ["data/file", "probe/killed", "probes/other"], "another daemon may be using it");

        delete_abandoned(&store, &folder(), created).await.unwrap();
        assert_eq!(names().await.len(), 3, "it is as old as that, not older");
        delete_abandoned(&store, &folder(), created + TimeDelta::milliseconds(1)).await.unwrap();
        assert_eq!(names().await, ["data/file", "probes/other"]);
    }
}
