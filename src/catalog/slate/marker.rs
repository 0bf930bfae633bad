//! The marker `FORMAT` beside a database: with which log it was created, whether it is whole, and where its epochs begin.
//!
//! ```text
//! esker journal 1, log <log> 1            or, while it is being rebuilt: esker journal being rebuilt, log <log> 1
//! epochs after <number>                   if it was rebuilt: added to SlateDB's writer epoch
//! cluster 1                               if only members of a cluster may open it, as the cluster's map says
//! ```
//!
//! The last line keeps out daemons that know of no cluster: releases before there were any refuse a line that they do not know.
//!
//! # Crash
//! A database that is being rebuilt has that marker before its first record, and the other one after its last. Until then
//! nobody opens it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::JournalError;
use super::settings::JournalClaim;

/// The line of a database that belongs to a cluster.
const OF_CLUSTER: &str = "cluster 1\n";

/// The thing that stands where a journal could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Nothing.
    Nothing,
    /// The rest of a rebuild that was cut short.
    Unfinished,
    /// A journal.
    Journal,
}

/// The marker of one database.
#[derive(Debug, Clone)]
pub(super) struct JournalMarker {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    log: &'static str,
    /// The folder of `store`, if it is one.
    folder: Option<PathBuf>,
}

impl JournalMarker {
    /// The marker of the database below `prefix` with the log called `log`.
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path, log: &'static str) -> Self {
        Self { store, prefix, log, folder: None }
    }

    /// The marker of the database below `prefix`, whichever of the logs it has; a new one gets `new`.
    pub(super) async fn find(
        store: &Arc<dyn ObjectStore>,
        prefix: &Path,
        new: &'static str,
        other: &'static str,
    ) -> Result<Self, JournalError> {
        let marker = |log| Self::new(Arc::clone(store), prefix.clone(), log);
        let found = marker(new).read().await?;
        let has_other = found.is_some_and(|found| marker(other).is_of_its_log(&found));
        Ok(marker(if has_other { other } else { new }))
    }

    fn is_of_its_log(&self, found: &str) -> bool {
        found == self.unfinished() || found.starts_with(&self.whole())
    }

    /// The log of the database.
    pub(super) fn log(&self) -> &'static str {
        self.log
    }

    /// The store is this folder.
    pub(super) fn in_folder(self, folder: &FilePath) -> Self {
        Self { folder: Some(folder.to_owned()), ..self }
    }

    fn place(&self) -> String {
        let path = self.path();
        self.folder.as_ref().map_or_else(|| path.to_string(), |folder| folder.join(path.as_ref()).display().to_string())
    }

    /// Whether something is there that is no file: reading a named pipe would never end.
    fn is_no_file(&self) -> bool {
        let file = self.folder.as_ref().map(|folder| folder.join(self.path().as_ref()));
        file.and_then(|file| file.metadata().ok()).is_some_and(|there| !there.is_file())
    }

    fn path(&self) -> Path {
        self.prefix.clone().join("FORMAT")
    }

    fn whole(&self) -> String {
        format!("esker journal 1, log {} 1\n", self.log)
    }

    fn unfinished(&self) -> String {
        format!("esker journal being rebuilt, log {} 1\n", self.log)
    }

    pub(super) async fn read(&self) -> Result<Option<String>, JournalError> {
        if self.is_no_file() {
            return Ok(Some("(not a regular file)".to_owned()));
        }
        match self.store.get(&self.path()).await {
            Ok(found) => Ok(Some(String::from_utf8_lossy(&found.bytes().await?).into_owned())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn has_manifest(&self) -> Result<bool, JournalError> {
        let manifests = self.prefix.clone().join("manifest");
        Ok(self.store.list(Some(&manifests)).next().await.transpose()?.is_some())
    }

    async fn create(&self, text: String) -> Result<bool, JournalError> {
        match self.store.put_opts(&self.path(), text.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn wrong(&self, found: &str) -> JournalError {
        let (found, expected) = (found.trim().to_owned(), self.whole().trim().to_owned());
        JournalError::WrongFormat { place: self.place(), found, expected }
    }

    /// Number of epochs before those of the database, if the marker is that of a whole one.
    fn epochs_before(&self, found: &str) -> Result<u64, JournalError> {
        if found == self.unfinished() {
            return Err(JournalError::Unfinished);
        }
        let alone = found.strip_suffix(OF_CLUSTER).unwrap_or(found);
        let rest = alone.strip_prefix(&self.whole()).ok_or_else(|| self.wrong(found))?;
        if rest.is_empty() {
            return Ok(0);
        }
        let number = rest.trim_end().strip_prefix("epochs after ").and_then(|number| number.parse().ok());
        number.ok_or_else(|| self.wrong(found))
    }

    /// Checks that the database may be opened, or records it if it is new. Returns how many epochs went before its own.
    pub(super) async fn check(&self) -> Result<u64, JournalError> {
        let found = self.found_or_made().await?;
        self.epochs_before(&found)
    }

    /// The same for the one who opens it with this claim.
    pub(super) async fn check_claim(&self, claim: JournalClaim) -> Result<u64, JournalError> {
        let found = self.found_or_made().await?;
        let epochs_before = self.epochs_before(&found)?;
        match (claim, found.ends_with(OF_CLUSTER)) {
            (JournalClaim::Alone, true) => Err(JournalError::OfCluster(self.place())),
            (JournalClaim::Alone, false) | (JournalClaim::Member { .. }, true) => Ok(epochs_before),
            // From here on nobody opens it who does not know of the map.
            (JournalClaim::Member { .. }, false) => {
                self.put_back(found + OF_CLUSTER).await?;
                Ok(epochs_before)
            }
        }
    }

    /// The text of the marker. A new database gets one.
    async fn found_or_made(&self) -> Result<String, JournalError> {
        if let Some(found) = self.read().await? {
            return Ok(found);
        }
        if self.has_manifest().await? {
            return Err(self.wrong(""));
        }
        if self.create(self.whole()).await? {
            return Ok(self.whole());
        }
        // Another daemon was faster, or the answer to our own first try was lost.
        Ok(self.read().await?.unwrap_or_default())
    }

    /// Whether only members of a cluster may open the database.
    pub(super) async fn is_of_cluster(&self) -> Result<bool, JournalError> {
        Ok(self.read().await?.is_some_and(|found| found.ends_with(OF_CLUSTER)))
    }

    /// Whoever is alone may open the database again.
    pub(super) async fn leave_cluster(&self) -> Result<(), JournalError> {
        let found = self.read().await?.unwrap_or_default();
        match found.strip_suffix(OF_CLUSTER) {
            Some(alone) => self.put_back(alone.to_owned()).await,
            None => Ok(()),
        }
    }

    /// Looks at the place.
    pub(super) async fn present(&self) -> Result<Present, JournalError> {
        Ok(match self.read().await? {
            Some(found) if found == self.unfinished() => Present::Unfinished,
            Some(_) => Present::Journal,
            None if self.has_manifest().await? => Present::Journal,
            None => Present::Nothing,
        })
    }

    /// Nobody opens the database from now on.
    pub(super) async fn begin_rebuild(&self) -> Result<(), JournalError> {
        if self.has_manifest().await? || !self.create(self.unfinished()).await? {
            return Err(self.wrong(&self.read().await?.unwrap_or_default()));
        }
        Ok(())
    }

    /// Marks the rest of the database as of no use.
    pub(super) async fn shut(&self) -> Result<(), JournalError> {
        self.store.put(&self.path(), self.unfinished().into()).await?;
        Ok(())
    }

    /// It is of use after all, and has the marker that it had.
    pub(super) async fn put_back(&self, text: String) -> Result<(), JournalError> {
        self.store.put(&self.path(), text.into()).await?;
        Ok(())
    }

    /// The database is whole.
    pub(super) async fn finish_rebuild(&self, epochs_before: u64) -> Result<(), JournalError> {
        let text = format!("{}epochs after {epochs_before}\n", self.whole());
        self.store.put(&self.path(), text.into()).await?;
        Ok(())
    }
}
