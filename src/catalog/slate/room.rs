//! Makes room for a journal where another one is: its daemon is kept off, and it is moved aside, never deleted.

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

use super::marker::JournalMarker;
use super::settings::Updates;
use super::{Cause, Journal, JournalError, JournalSettings, OpenMode, Present, marker_of, open_object, visit_all};
use crate::store::append_file::sync_parent;
use crate::store::space::{RESERVE_FILE, is_reserve};
use crate::store::{LogFolder, Placement, StoreError};

/// Objects that are copied at a time.
const COPIES_AT_ONCE: usize = 4;

/// A place for a journal that no daemon uses for as long as this lives, and that another journal may be made at.
pub struct Hold {
    placement: Placement,
    present: Present,
    /// The lock of a folder.
    lock: Option<File>,
    /// The last owner of the journal on an object store; it is closed.
    owner: Option<Journal>,
    unread: Option<JournalError>,
}

crate::runtime::opaque_debug!(Hold);

impl Journal {
    /// Keeps daemons off a place. In a folder it is the lock of the journal; on an object store the journal gets a new
    /// owner, so that the one before it can commit nothing any more, and has the time to notice. What the journal there
    /// holds then is handed to `visit`.
    ///
    /// # Errors
    /// `Locked` if a daemon has the folder, or had it after `present` was told; `Fenced` if a daemon started meanwhile. A
    /// journal on an object store that cannot be opened or read is no error: see [`Hold::unread`].
    ///
    /// # Crash
    /// The journal is what it was, and the next owner goes on with it.
    pub async fn hold<E: Into<Cause>>(
        placement: Placement,
        present: Present,
        settings: &JournalSettings,
        visit: impl FnMut(Bytes, Bytes) -> Result<(), E> + Send,
    ) -> Result<Hold, JournalError> {
        let mut hold = Hold { placement: placement.clone(), present, lock: None, owner: None, unread: None };
        match &placement {
            Placement::Local { folder, .. } => {
                let locking = folder.clone();
                #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
                let locked = tokio::task::spawn_blocking(move || lock_what_is_there(&locking));
                hold.lock = locked.await.map_err(|error| JournalError::Internal(error.into()))??;
                if Self::present(&placement).await? != present {
                    return Err(JournalError::Locked { folder: folder.clone() });
                }
            }
            Placement::Object { store, prefix, can, log } if present == Present::Journal => {
                let (place, can, log) = (prefix.clone(), Updates::of(*can), log.clone());
                match open_object(Arc::clone(store), place, can, log, settings, OpenMode::Whole).await {
                    Ok(journal) => {
                        hold.unread =
                            visit_all(&Arc::new(journal.db.clone()), journal.backend.read_ahead(), visit).await.err();
                        if let Err(error) = journal.close().await {
                            tracing::debug!(%error, "closing the old catalog");
                        }
                        hold.owner = Some(journal);
                    }
                    Err(
                        error @ (JournalError::Fenced
                        | JournalError::OfCluster(_)
                        | JournalError::Divided { .. }
                        | JournalError::Resharding { .. }),
                    ) => return Err(error),
                    Err(error) => hold.unread = Some(error),
                }
                if let Some(error) = &hold.unread {
                    tracing::warn!(error = crate::error::chain(error), "the old catalog cannot be read");
                }
                tokio::time::sleep(settings.poll_interval + Duration::from_secs(1)).await;
                hold.check().await?;
            }
            Placement::Object { .. } => {}
        }
        Ok(hold)
    }
}

impl Hold {
    /// Why the journal could not be read. A daemon that still uses it may then go on for a while.
    pub fn unread(&self) -> Option<&JournalError> {
        self.unread.as_ref()
    }

    async fn check(&self) -> Result<(), JournalError> {
        match &self.owner {
            Some(owner) => owner.check_owner().await,
            None => Ok(()),
        }
    }

    /// Moves what is at the place to `<place>.old-<suffix>`; what a rebuild that was cut short has left is deleted. Returns
    /// where the old journal is.
    ///
    /// # Errors
    /// `Fenced` if a daemon was started since on an object store; it has the journal then.
    ///
    /// # Crash
    /// In a folder it is one rename. On an object store all copies are there before the first original is deleted; a repeat
    /// goes on.
    pub async fn make_room(&mut self, suffix: &str) -> Result<Option<String>, JournalError> {
        match &self.placement {
            Placement::Local { folder, .. } => {
                let (folder, suffix, present) = (folder.clone(), suffix.to_owned(), self.present);
                #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
                let moved = tokio::task::spawn_blocking(move || make_room_in_folder(&folder, &suffix, present));
                let moved = moved.await.map_err(|error| JournalError::Internal(error.into()))??;
                if moved.is_none() {
                    // The new journal takes the same file. One that was moved is kept: somebody may have opened it before.
                    self.lock = None;
                }
                Ok(moved)
            }
            Placement::Object { store, prefix, log, .. } => {
                if self.present != Present::Unfinished && !keys(store, prefix).await?.is_empty() {
                    let old = Path::from(format!("{prefix}.old-{suffix}"));
                    self.check().await?;
                    if let Some(log) = log {
                        close_all(&**log).await?;
                    }
                    copy_all(store, prefix, &old).await?;
                    self.shut(&marker_of(store, prefix, log.is_some()).await?).await?;
                    delete_all(store, prefix).await?;
                    return Ok(Some(old.to_string()));
                }
                delete_all(store, prefix).await?;
                Ok(None)
            }
        }
    }

    /// Nobody opens the journal any more. If somebody did while it was copied, it stays.
    async fn shut(&self, marker: &JournalMarker) -> Result<(), JournalError> {
        let before = marker.read().await?;
        marker.shut().await?;
        if let Err(error) = self.check().await {
            if let Some(before) = before {
                marker.put_back(before).await?;
            }
            return Err(error);
        }
        Ok(())
    }
}

/// Locks a folder, if there is one.
fn lock_what_is_there(folder: &FilePath) -> Result<Option<File>, JournalError> {
    let unavailable = |error: io::Error| JournalError::Unavailable(error.into());
    let lock = match File::options().write(true).create(true).truncate(false).open(folder.join("LOCK")) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unavailable(error)),
    };
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => JournalError::Locked { folder: folder.to_owned() },
        TryLockError::Error(error) => unavailable(error),
    })?;
    Ok(Some(lock))
}

fn make_room_in_folder(folder: &FilePath, suffix: &str, present: Present) -> Result<Option<String>, JournalError> {
    let unavailable = |error: io::Error| JournalError::Unavailable(error.into());
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
            // Durable before the new journal begins under the name: a power cut must not bring both together.
            fs::rename(folder, &old).and_then(|()| sync_parent(folder)).map_err(unavailable)?;
            Ok(Some(old.display().to_string()))
        }
    }
}

/// Whether there are files but a lock and what is kept back.
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
    name == "LOCK" || is_reserve(name)
}

async fn keys(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Vec<Path>, JournalError> {
    Ok(store.list(Some(prefix)).map_ok(|meta| meta.location).try_collect().await?)
}

/// Closes the files of a log for whoever has them open, which cannot be copied.
async fn close_all(log: &dyn LogFolder) -> Result<(), JournalError> {
    let unavailable = |error: StoreError| JournalError::Unavailable(error.into());
    for name in log.list().await.map_err(unavailable)? {
        log.release(&name).await.map_err(unavailable)?;
    }
    Ok(())
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
pub(super) async fn delete_all(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<(), JournalError> {
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
