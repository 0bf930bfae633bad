//! Makes room for a journal where another one is: the old one is moved aside, never deleted.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::marker::Marker;
use super::{Journal, JournalError, JournalSettings, OBJECTS_LOG, Placement, Present};
use crate::store::append_file::sync_parent;
use crate::store::space::RESERVE_FILE;

/// Objects that are copied at a time.
const COPIES_AT_ONCE: usize = 4;

impl Journal {
    /// Moves what is at a place to `<place>.old-<suffix>`; what a rebuild that was cut short has left is deleted. Returns
    /// where the old journal is.
    ///
    /// # Errors
    /// `Locked` if a daemon has the folder. On an object store a daemon that still runs is shut out first.
    ///
    /// # Crash
    /// In a folder it is one rename. On an object store all copies are there before the first original is deleted; a repeat
    /// goes on.
    pub async fn make_room(
        placement: &Placement,
        settings: &JournalSettings,
        suffix: &str,
    ) -> Result<Option<String>, JournalError> {
        let present = Self::present(placement).await?;
        match placement {
            Placement::Local { folder, .. } => {
                let (folder, suffix) = (folder.clone(), suffix.to_owned());
                let moved = tokio::task::spawn_blocking(move || make_room_in_folder(&folder, &suffix, present));
                moved.await.map_err(|error| JournalError::Internal(error.into()))?
            }
            Placement::Object { store, prefix } => {
                if present == Present::Journal {
                    shut_out(placement.clone(), settings).await;
                }
                if present != Present::Unfinished && !keys(store, prefix).await?.is_empty() {
                    let old = Path::from(format!("{prefix}.old-{suffix}"));
                    copy_all(store, prefix, &old).await?;
                    Marker::new(Arc::clone(store), prefix.clone(), OBJECTS_LOG).shut().await?;
                    delete_all(store, prefix).await?;
                    return Ok(Some(old.to_string()));
                }
                delete_all(store, prefix).await?;
                Ok(None)
            }
        }
    }
}

fn make_room_in_folder(folder: &FilePath, suffix: &str, present: Present) -> Result<Option<String>, JournalError> {
    let unavailable = |error: io::Error| JournalError::Unavailable(error.into());
    let lock = match File::options().write(true).open(folder.join("LOCK")) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(unavailable(error)),
    };
    if let Some(lock) = &lock {
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Locked { folder: folder.to_owned() },
            TryLockError::Error(error) => unavailable(error),
        })?;
    }
    match present {
        Present::Nothing if !holds_anything(folder).map_err(unavailable)? => Ok(None),
        Present::Unfinished => {
            // The marker goes last: until then nobody takes what is left for a journal.
            for part in ["log", "db/manifest", "db/wal", "db/compacted", "db"] {
                match fs::remove_dir_all(folder.join(part)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unavailable(error)),
                    _ => {}
                }
            }
            Ok(None)
        }
        Present::Nothing | Present::Journal => {
            // What it keeps back is for a journal that is used.
            match fs::remove_file(folder.join(RESERVE_FILE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unavailable(error)),
                _ => {}
            }
            let mut name = folder.file_name().unwrap_or_default().to_owned();
            name.push(format!(".old-{suffix}"));
            let old: PathBuf = folder.with_file_name(name);
            fs::rename(folder, &old).and_then(|()| sync_parent(folder)).map_err(unavailable)?;
            Ok(Some(old.display().to_string()))
        }
    }
}

/// Whether there are files but a lock and a reserve.
fn holds_anything(folder: &FilePath) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let holds =
            if entry.file_type()?.is_dir() { holds_anything(&entry.path())? } else { !is_apart(&entry.file_name()) };
        if holds {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_apart(name: &OsStr) -> bool {
    name == "LOCK" || name == RESERVE_FILE
}

/// Shuts out a daemon that still runs, and gives it time to notice. A journal that cannot be opened has none.
async fn shut_out(placement: Placement, settings: &JournalSettings) {
    match Journal::open(placement, settings.clone(), |_, _| Ok::<_, JournalError>(())).await {
        Ok(journal) => {
            if let Err(error) = journal.close().await {
                tracing::debug!(%error, "closing the old catalog");
            }
            tokio::time::sleep(settings.poll_interval + Duration::from_secs(1)).await;
        }
        Err(error) => tracing::warn!(error = crate::error::chain(&error), "the old catalog cannot be opened"),
    }
}

async fn keys(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Vec<Path>, JournalError> {
    Ok(store.list(Some(prefix)).map_ok(|meta| meta.location).try_collect().await?)
}

async fn copy_all(store: &Arc<dyn ObjectStore>, from: &Path, to: &Path) -> Result<(), JournalError> {
    let copy = |key: Path| async move {
        let bytes: Bytes = store.get(&key).await?.bytes().await?;
        let parts = key.prefix_match(from).into_iter().flatten();
        let target = parts.fold(to.clone(), |path, part| path.join(part));
        match store.put_opts(&target, bytes.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(JournalError::from(error)),
        }
    };
    let copies = stream::iter(keys(store, from).await?.into_iter().map(copy));
    copies.buffer_unordered(COPIES_AT_ONCE).try_collect().await
}

/// The marker goes last: until then nobody takes what is left for a journal, or begins one among it.
async fn delete_all(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<(), JournalError> {
    let marker = prefix.clone().join("FORMAT");
    let mut keys = keys(store, prefix).await?;
    keys.sort_by_key(|key| *key == marker);
    for key in keys {
        match store.delete(&key).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
