//! Small objects under numbers, each created once and never changed: whoever creates the next number has decided it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{Placement, StoreError};

/// A request takes at most so long: it is repeated here, and not by its client, whose patience is minutes.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);
/// Numbers that are looked for one by one, before all of them are listed.
const STEPS_MAX: u64 = 4;
/// What an object has is far shorter: more is not read.
const BYTES_MAX: u64 = 1 << 20;

/// Objects `<prefix>/<20 digits><suffix>`.
#[derive(Debug, Clone)]
pub struct NumberedObjects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    suffix: &'static str,
}

/// What became of a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there, as it was to be.
    Yes,
    /// Somebody has the number: another one, or this very create, whose answer was lost.
    Taken,
    /// Nobody knows. It may still come to be.
    Unknown,
}

impl NumberedObjects {
    /// Those in `folder`, beside the folder of a catalog. `None` where a name cannot be created once: on a local disk, and on an HDFS.
    pub fn beside(catalog: &Placement, folder: &str, suffix: &'static str) -> Option<Self> {
        match catalog {
            Placement::Object { store, prefix, log: None, .. } => {
                let mut parts: Vec<_> = prefix.parts().collect();
                parts.pop();
                let root = Path::from_iter(parts);
                let prefix = folder.split('/').fold(root, |path, part| path.join(part));
                Some(Self { store: Arc::clone(store), prefix, suffix })
            }
            Placement::Object { .. } | Placement::Local { .. } => None,
        }
    }

    fn path(&self, number: u64) -> Path {
        self.prefix.clone().join(format!("{number:020}{}", self.suffix))
    }

    /// The bytes under a number; `None` if there are none.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not tell within a second.
    pub async fn get(&self, number: u64) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(number);
        let read = async {
            let found = match self.store.get(&path).await {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            if found.meta.size > BYTES_MAX {
                let source = format!("it has {} bytes, which is too long", found.meta.size).into();
                return Err(Error::Generic { store: "esker", source });
            }
            found.bytes().await.map(Some)
        };
        let read = tokio::time::timeout(REQUEST_PATIENCE, read).await;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| StoreError::failed("get", path.as_ref(), error);
        read.map_err(|late| failed(late.into()))?.map_err(|error| failed(error.into()))
    }

    /// The last number that is there, and its bytes, where `known` is one that was there; 0 is known always. `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn newest(&self, known: u64) -> Result<Option<(u64, Bytes)>, StoreError> {
        let (mut last, mut found) = (known, None);
        loop {
            let steps = last + STEPS_MAX;
            while last < steps {
                match self.get(last + 1).await? {
                    Some(bytes) => {
                        last += 1;
                        found = Some((last, bytes));
                    }
                    None => return Ok(found),
                }
            }
            // Far behind: all that is left is listed. What comes after that is found by the next steps.
            if let Some(listed) = self.last_listed(last).await? {
                last = listed - 1;
            }
        }
    }

    async fn last_listed(&self, after: u64) -> Result<Option<u64>, StoreError> {
        let listing = async {
            let objects = self.store.list_with_offset(Some(&self.prefix), &self.path(after));
            let numbers = objects.try_filter_map(|meta| async move { Ok(self.number(&meta.location)) });
            numbers.try_fold(None, |last, number| async move { Ok(last.max(Some(number))) }).await
        };
        let listed: Result<Result<Option<u64>, Error>, _> = tokio::time::timeout(REQUEST_PATIENCE * 10, listing).await;
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| StoreError::failed("list", self.prefix.as_ref(), error);
        listed.map_err(|late| failed(late.into()))?.map_err(|error| failed(error.into()))
    }

    fn number(&self, path: &Path) -> Option<u64> {
        let digits = path.filename()?.strip_suffix(self.suffix)?;
        if digits.len() == 20 { digits.parse().ok() } else { None }
    }

    /// Creates the object under a number, unless it is there.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage refused; the object is not there then, and will not be.
    pub async fn create(&self, number: u64, bytes: Bytes) -> Result<Created, StoreError> {
        let path = self.path(number);
        let put = self.store.put_opts(&path, bytes.into(), PutOptions::from(PutMode::Create));
        match tokio::time::timeout(REQUEST_PATIENCE, put).await {
            Ok(Ok(_)) => Ok(Created::Yes),
            Ok(Err(Error::AlreadyExists { .. } | Error::Precondition { .. })) => Ok(Created::Taken),
            Ok(Err(error @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }))) => {
                Err(StoreError::failed("put", path.as_ref(), error))
            }
            // A server's error may be told of what it has done all the same.
            Ok(Err(error)) => {
                tracing::debug!(%error, %path, "storage does not say whether it has created an object");
                Ok(Created::Unknown)
            }
            Err(_) => Ok(Created::Unknown),
        }
    }
}

impl fmt::Display for NumberedObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn objects() -> NumberedObjects {
        NumberedObjects { store: Arc::new(InMemory::new()), prefix: Path::from("r/cluster/map"), suffix: ".map" }
    }

    #[tokio::test]
    async fn a_number_is_created_once_and_the_last_one_is_found_from_any_that_is_known() {
        let objects = objects();
        assert_eq!(objects.newest(0).await.unwrap(), None);

        for number in 1..=30 {
            let text = Bytes::from(number.to_string());
            assert_eq!(objects.create(number, text).await.unwrap(), Created::Yes);
            assert_eq!(objects.create(number, Bytes::from_static(b"other")).await.unwrap(), Created::Taken);
        }
        objects.store.put(&objects.prefix.clone().join("odd.map"), Bytes::from_static(b"x").into()).await.unwrap();

        for known in [0, 1, 25, 26, 29] {
            assert_eq!(objects.newest(known).await.unwrap(), Some((30, Bytes::from_static(b"30"))), "from {known}");
        }
        assert_eq!(objects.newest(30).await.unwrap(), None, "nothing is newer");
        assert_eq!(objects.get(31).await.unwrap(), None);
    }
}
