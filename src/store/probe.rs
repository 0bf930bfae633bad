//! Whether an object store keeps its word about conditions. Some accept them and ignore them: two daemons on such
//! a store would both believe to own the catalog, and both answer.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use super::Capabilities;

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

/// Creates `key` twice, reads it back, updates it twice with the same tag if the store `can` do that, and deletes it. Waits
/// between writes for as long as the store wants.
///
/// # Errors
/// [`ProbeError`] if the store does not refuse what it must refuse.
pub async fn probe(store: &dyn ObjectStore, key: &Path, can: Capabilities) -> Result<(), ProbeError> {
    let answer = conditions(store, key, can).await;
    if let Err(source) = store.delete(key).await {
        tracing::warn!(%key, %source, "the probe's object could not be deleted");
    }
    answer
}

async fn conditions(store: &dyn ObjectStore, key: &Path, can: Capabilities) -> Result<(), ProbeError> {
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
    let read = store.get(key).await.map_err(failed("get"))?.bytes().await.map_err(failed("get"))?;
    if read != "first" {
        return Err(ProbeError::NotReadBack(key.clone()));
    }
    if !can.conditional_updates {
        return Ok(());
    }
    let version = UpdateVersion { e_tag: first.e_tag, version: first.version };
    put("updated", PutMode::Update(version.clone())).await.map_err(failed("conditional update"))?;
    tokio::time::sleep(can.rewrite_interval).await;
    match put("stale", PutMode::Update(version)).await {
        Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Ok(()),
        Err(source) => Err(ProbeError::Failed { step: "stale update", source }),
        Ok(_) => Err(ProbeError::UpdateIgnored),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::{CountedStore, Traffic};

    #[tokio::test]
    async fn a_store_with_conditions_passes_and_is_left_empty() {
        let store = std::sync::Arc::new(InMemory::new());
        let counted = CountedStore::new(std::sync::Arc::<InMemory>::clone(&store), Traffic::data(Metrics::new()));

        probe(&counted, &Path::from("probe/1"), Capabilities::OBJECT).await.unwrap();

        assert!(store.head(&Path::from("probe/1")).await.is_err());
    }
}
