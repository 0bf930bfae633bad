//! Which store this is, and who owns it now.
//!
//! A store has an identity from its first start on: `ESKER` beside its data, the same text as `STORE` beside its catalog.
//! Both are created once and never changed. A folder below which a volume is not mounted, or a prefix that was mistyped,
//! has none or another one: then nothing is concluded from what is, or is not, there. Each owner of the catalog leaves its
//! epoch and a number of its own in `owners/`, by which a catalog that is older than its data is told.
//!
//! [`StoreGuard`] looks at the identity again before every step that destroys something or begins a file. What the rules at
//! a start are, `engine::identity` says.
//!
//! ```text
//! ESKER, STORE     one line of JSON: {"id":"<32 hex digits>","format":1,"made":"<RFC 3339>","url":"<where it was made>"}
//! owners/<epoch>   the epoch in 20 decimal digits; inside, 32 hex digits that the owner drew at its start
//! ```
//!
//! # Crash
//! Each of these objects is there whole or not at all.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::append_file::sync_parent;
use super::space::{DiskSpace, DiskUse};
use super::{DataStore, HeldInode, Inode, StoreError, remove_leftover};
use crate::metrics::Metrics;
use crate::model::{Millis, PhysicalFileId};
use crate::runtime::{Clock, Entropy};

/// The name beside the data.
pub const DATA_SIDE: &str = "ESKER";
/// The name beside the catalog.
pub const CATALOG_SIDE: &str = "STORE";
/// Below it each owner has its object.
const OWNERS: &str = "owners";
/// The format that is written.
const FORMAT: u32 = 1;
/// On an object store a look that went well counts for so long: looking costs requests.
const LOOK_COUNTS: Duration = Duration::from_secs(10);

/// An identity and an owner are far shorter: more is not read.
const READ_BYTES_MAX: u64 = 64 << 10;
/// The text in the place of one of them where no file is.
const NOT_A_FILE: &str = "(not a regular file)";
/// Of what cannot be understood, so much is shown.
const SHOWN_CHARS_MAX: usize = 100;

/// Text from storage for a message: it may be anything.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect()
}

/// Which store this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// 128 random bits in hex.
    pub id: String,
    /// The version of this text.
    pub format: u32,
    /// When it was made, for people.
    pub made: String,
    /// The place where it was when it was made, for people: a store may be moved.
    pub url: String,
}

impl StoreIdentity {
    /// A new one.
    pub fn new(entropy: &Entropy, now: Millis, url: &str) -> Self {
        let made = std::time::UNIX_EPOCH + Duration::from_millis(now.0);
        let made = humantime::format_rfc3339_seconds(made).to_string();
        Self { id: entropy.hex(16), format: FORMAT, made, url: url.to_owned() }
    }

    /// As it stands on storage.
    pub fn text(&self) -> String {
        let line = serde_json::to_string(self).expect("plain text always encodes");
        format!("{line}\n")
    }

    /// Reads what stands at a place.
    ///
    /// # Errors
    /// [`NotTheStore::Unreadable`] if that is no identity.
    pub fn parse(text: &str, place: &str) -> Result<Self, NotTheStore> {
        let read: Option<Self> = serde_json::from_str(text).ok();
        let known = read.filter(|identity| identity.format == FORMAT && !identity.id.is_empty());
        known.ok_or_else(|| NotTheStore::Unreadable {
            place: place.to_owned(),
            found: text.trim().chars().take(SHOWN_CHARS_MAX).collect(),
        })
    }
}

impl fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {} (made {} at {})", shown(&self.id), shown(&self.made), shown(&self.url))
    }
}

/// The store at a place is not the one that belongs there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTheStore {
    /// There is no identity.
    #[error("{place} does not exist, but {expected} was there: its volume may not be mounted")]
    Missing {
        /// The object that tells.
        place: String,
        /// The store that was there.
        expected: Box<StoreIdentity>,
    },
    /// It is a copy, or the volume is another one.
    #[error(
        "{place} is not the file that was opened at the start: the folder of {expected} was moved or replaced while the \
         daemon was running"
    )]
    Replaced {
        /// The object that tells.
        place: String,
        /// The store that was there.
        expected: Box<StoreIdentity>,
    },
    /// It is another one.
    #[error("{place} says that this is {found}, and not {expected}")]
    Another {
        /// The object that tells.
        place: String,
        /// The store that is there.
        found: Box<StoreIdentity>,
        /// The store that should be.
        expected: Box<StoreIdentity>,
    },
    /// The object that tells cannot be understood.
    #[error("{place} does not say which store this is, or is of a later version: {found:?}")]
    Unreadable {
        /// The object.
        place: String,
        /// The text that was found.
        found: String,
    },
    /// Another daemon has it by now.
    #[error("a daemon of the later epoch {epoch} owns the store by now")]
    Owned {
        /// Its epoch.
        epoch: u64,
    },
}

/// One small object that is created once and never changed.
#[derive(Debug, Clone)]
pub enum IdentitySlot {
    /// A file; the folders above it are made when it is.
    File(PathBuf),
    /// An object.
    Object {
        /// The object's store.
        store: Arc<dyn ObjectStore>,
        /// Its key.
        path: Path,
    },
}

impl IdentitySlot {
    /// Returns the text that is there; `None` if nothing is.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not tell.
    pub async fn read(&self) -> Result<Option<String>, StoreError> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                self.blocking("get", move || read_file(&path)).await
            }
            Self::Object { store, path } => read_object(store, path).await.map_err(|error| self.failed("get", error)),
        }
    }

    /// Puts `text` there unless something is there already. Returns what is there then; it is durable.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated.
    pub async fn create(&self, text: &str) -> Result<String, StoreError> {
        self.create_in(text, DiskSpace::default()).await
    }

    /// The same beside the data, for what a start cannot do without: on a full disk it takes of what is kept back there.
    async fn create_in(&self, text: &str, space: DiskSpace) -> Result<String, StoreError> {
        let created = match self {
            Self::File(path) => {
                let (path, text) = (path.clone(), text.to_owned());
                self.blocking("put", move || space.insist(DiskUse::Data, || create_file(&path, &text))).await?
            }
            Self::Object { store, path } => {
                let put = store.put_opts(path, text.to_owned().into(), PutOptions::from(PutMode::Create)).await;
                match put {
                    Ok(_) => true,
                    Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => false,
                    Err(error) => return Err(self.failed("put", error)),
                }
            }
        };
        if created {
            return Ok(text.to_owned());
        }
        // Somebody else's, or our own whose answer was lost.
        self.read().await?.ok_or_else(|| StoreError::NotFound(self.to_string()))
    }

    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| self.failed(operation, error)),
            Err(error) => Err(self.failed(operation, error)),
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::failed(operation, &self.to_string(), error)
    }
}

impl fmt::Display for IdentitySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Object { path, .. } => write!(f, "{path}"),
        }
    }
}

fn read_file(path: &FilePath) -> io::Result<Option<String>> {
    Ok(read_file_and_inode(path)?.map(|(text, _)| text))
}

/// Returns the text that is there, and the file that holds it.
fn read_file_and_inode(path: &FilePath) -> io::Result<Option<(String, Inode)>> {
    let read = || -> io::Result<(String, Inode)> {
        // Before it is opened: a named pipe would never answer.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Ok((NOT_A_FILE.to_owned(), Inode::from(&metadata)));
        }
        let file = fs::File::open(path)?;
        let inode = Inode::from(&file.metadata()?);
        let mut bytes = vec![];
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), inode))
    };
    match read() {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a file whole: a crash leaves it as it is to be, or not at all. False if it is there.
fn create_file(path: &FilePath, text: &str) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(FilePath::new("."));
    fs::create_dir_all(folder)?;
    let staged = tempfile_beside(path);
    // Synced before it gets its name, so that the name never stands for half a file.
    let written = fs::write(&staged, text).and_then(|()| fs::File::open(&staged)?.sync_all());
    if let Err(error) = written {
        // On a full disk nothing may be left behind.
        remove_leftover(&staged);
        return Err(error);
    }
    // A link fails where there is a file; a rename would replace it.
    let linked = fs::hard_link(&staged, path);
    fs::remove_file(&staged)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => {
            linked?;
            sync_parent(path)?;
            sync_parent(folder)?;
            Ok(true)
        }
    }
}

/// A name of this process alone. What a crash leaves of it is written over by the next process of that number.
fn tempfile_beside(path: &FilePath) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

async fn read_object(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Option<String>, Error> {
    match store.get(path).await {
        Ok(found) => Ok(Some(String::from_utf8_lossy(&found.bytes().await?).into_owned())),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mark that an owner of the catalog leaves beside the data. Stands in the catalog's records, too: the order of the fields may not
/// change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOwner {
    /// Its epoch.
    pub epoch: u64,
    /// The random name that it drew at its start.
    pub incarnation: String,
}

impl StoreOwner {
    /// Whether what stands there can be the number of an owner.
    pub fn is_readable(&self) -> bool {
        !self.incarnation.is_empty() && self.incarnation.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// The object that it left, below the data.
    pub fn name(&self) -> String {
        owner_name(self.epoch)
    }
}

/// Those who left their mark beside the data, as far as it was not removed.
#[derive(Debug, Clone, Default)]
pub struct StoreOwners {
    /// Their epochs, in order.
    pub epochs: Vec<u64>,
    /// The last of them.
    pub newest: Option<StoreOwner>,
}

fn owner_name(epoch: u64) -> String {
    format!("{OWNERS}/{epoch:020}")
}

impl DataStore {
    /// The object under a name beside the data.
    fn slot(&self, name: &str) -> IdentitySlot {
        match self {
            Self::Local(store) => IdentitySlot::File(store.root().join(name)),
            Self::Object(store) => {
                let (store, prefix) = store.place();
                let path = name.split('/').fold(prefix.clone(), |path, part| path.join(part));
                IdentitySlot::Object { store: Arc::clone(store), path }
            }
            Self::Hdfs(store) => {
                let (store, prefix) = store.place();
                let path = name.split('/').fold(prefix, |path, part| path.join(part));
                IdentitySlot::Object { store: Arc::clone(store), path }
            }
        }
    }

    /// The object that says which store it is.
    pub fn identity_slot(&self) -> IdentitySlot {
        self.slot(DATA_SIDE)
    }

    fn owner_slot(&self, epoch: u64) -> IdentitySlot {
        self.slot(&owner_name(epoch))
    }

    /// The epochs of those who left their object, in order.
    async fn owner_epochs(&self) -> Result<Vec<u64>, StoreError> {
        let names: Vec<String> = match self {
            Self::Local(store) => {
                let folder = store.root().join(OWNERS);
                let slot = IdentitySlot::File(folder.clone());
                slot.blocking("list", move || names_in(&folder)).await?
            }
            Self::Object(store) => {
                let (store, prefix) = store.place();
                owner_names(store, prefix).await?
            }
            Self::Hdfs(store) => {
                let (store, prefix) = store.place();
                owner_names(store, &prefix).await?
            }
        };
        let mut epochs: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// Those who left their object.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if storage does not tell.
    pub async fn owners(&self) -> Result<StoreOwners, StoreError> {
        let epochs = self.owner_epochs().await?;
        let Some(&epoch) = epochs.last() else { return Ok(StoreOwners::default()) };
        let incarnation = self.owner_slot(epoch).read().await?.unwrap_or_default().trim().to_owned();
        Ok(StoreOwners { epochs, newest: Some(StoreOwner { epoch, incarnation }) })
    }

    /// Leaves the object of an owner, behind which those of earlier ones say nothing more. Returns who has the epoch.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated.
    pub async fn leave_owner(&self, owner: &StoreOwner) -> Result<StoreOwner, StoreError> {
        let space = match self {
            Self::Local(store) => store.space().clone(),
            Self::Object(_) | Self::Hdfs(_) => DiskSpace::default(),
        };
        let there = self.owner_slot(owner.epoch).create_in(&format!("{}\n", owner.incarnation), space).await?;
        let there = StoreOwner { epoch: owner.epoch, incarnation: there.trim().to_owned() };
        if let Self::Hdfs(store) = self
            && there == *owner
        {
            // Whoever was putting an object is shut out, or has ended.
            store.sweep_staged().boxed().await;
        }
        Ok(there)
    }

    /// Deletes what says which store it is, and who had it: others have taken its place. Only on an object store.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; it can be repeated. [`StoreError::Unsupported`].
    pub async fn remove_identity(&self) -> Result<(), StoreError> {
        let mut slots: Vec<IdentitySlot> =
            self.owner_epochs().await?.into_iter().map(|epoch| self.owner_slot(epoch)).collect();
        // Last: without it nothing of the store is deleted any more by a daemon that believes to have it.
        slots.push(self.identity_slot());
        for slot in slots {
            let IdentitySlot::Object { store, path } = &slot else {
                return Err(StoreError::Unsupported("removing a store's identity"));
            };
            match store.delete(path).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(slot.failed("delete", error)),
            }
        }
        Ok(())
    }

    /// Removes the objects of owners before the one of `epoch`, which has left its own: whatever a stale daemon removes, the
    /// newest one's stays.
    pub async fn remove_owners(&self, owners: &StoreOwners, epoch: u64) {
        let earlier = owners.epochs.iter().filter(|earlier| **earlier < epoch);
        let slots: Vec<IdentitySlot> = earlier.map(|earlier| self.owner_slot(*earlier)).collect();
        for slot in slots {
            let removed = match &slot {
                IdentitySlot::File(path) => {
                    let path = path.clone();
                    slot.blocking("delete", move || fs::remove_file(path)).await
                }
                IdentitySlot::Object { store, path } => {
                    store.delete(path).await.map_err(|error| StoreError::failed("delete", path.as_ref(), error))
                }
            };
            if let Err(error) = removed {
                tracing::debug!(error = crate::error::chain(&error), "what an earlier owner left stays");
            }
        }
    }
}

async fn owner_names(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Vec<String>, StoreError> {
    let listed = store.list(Some(&prefix.clone().join(OWNERS))).try_collect::<Vec<_>>().await;
    let listed = listed.map_err(|error| StoreError::failed("list", OWNERS, error))?;
    Ok(listed.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect())
}

fn names_in(folder: &FilePath) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Knows which store it has to be, and looks whether it is. Clones share what was seen.
#[derive(Debug, Clone)]
pub struct StoreGuard(Arc<Guarded>);

#[derive(Debug)]
struct Guarded {
    expected: StoreIdentity,
    epoch: u64,
    /// In a folder: the file that is locked.
    inode: Option<Inode>,
    /// In a folder: the folder itself, and that of the files where there is one.
    folders: Mutex<Option<KnownFolders>>,
    /// The last look at an object store that went well.
    looked: Mutex<Option<Looked>>,
    /// The thing that the last look found instead of the store.
    lost: Mutex<Option<NotTheStore>>,
    metrics: Metrics,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.lost.get_mut().is_some() {
            self.metrics.store_lost.dec();
        }
    }
}

#[derive(Debug, Clone)]
struct Looked {
    at: Instant,
    /// The listing's entry for the object that the owner left. Another store has another one, if any, under this name.
    own: Option<ObjectMeta>,
}

/// The folders of a store on a local disk, as they were at the first look.
#[derive(Debug)]
struct KnownFolders {
    folder: HeldInode,
    /// That of the physical files, where there is one.
    files: Option<HeldInode>,
}

impl StoreGuard {
    /// Guards the store for the owner of `epoch`, which holds `lock`.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the operating system does not tell which file that is.
    pub fn new(expected: StoreIdentity, epoch: u64, lock: &StoreLock, metrics: Metrics) -> Result<Self, StoreError> {
        let inode = lock.inode().map_err(|error| StoreError::failed("get", DATA_SIDE, error))?;
        let (folders, looked, lost) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Guarded { expected, epoch, inode, folders, looked, lost, metrics })))
    }

    /// Whether the last look found another store, or none.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.lock().is_some()
    }

    /// The thing that the last look found instead, in words.
    pub(super) fn lost(&self) -> Option<String> {
        self.0.lost.lock().as_ref().map(ToString::to_string)
    }

    /// Looks at a folder. Blocks; never cached, because a volume can go away at any time.
    pub(super) fn look_at_folder(&self, root: &FilePath) -> io::Result<()> {
        let path = root.join(DATA_SIDE);
        let place = path.display().to_string();
        let (text, inode) = read_file_and_inode(&path)?.unzip();
        let is_same = inode == self.0.inode && self.has_same_folders(root)?;
        let found = self.judge(text, &place).and_then(|()| match is_same {
            true => Ok(()),
            // A copy has the same text. What is written to it, the next start on the other one does not find.
            false => Err(NotTheStore::Replaced { place, expected: self.0.expected.clone().into() }),
        });
        self.settle(found).map_err(io::Error::other)
    }

    /// Whether the folders are those of the first look: a copy of hard links has the same file in another folder, and a mount
    /// may cover the files alone. One that was empty may have been tidied away.
    fn has_same_folders(&self, root: &FilePath) -> io::Result<bool> {
        let held = |path: &FilePath| match HeldInode::open(path) {
            Ok(held) => Ok(Some(held)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let place = root.join(PhysicalFileId::FOLDER);
        let mut known = self.0.folders.lock();
        let Some(folders) = &mut *known else {
            let Some(folder) = held(root)? else { return Ok(true) };
            *known = Some(KnownFolders { folder, files: held(&place)? });
            return Ok(true);
        };
        if !folders.folder.inode().is_at(root)? {
            return Ok(false);
        }
        let is_same = match &folders.files {
            Some(files) if files.inode().is_at(&place)? => true,
            Some(_) if place.exists() => false,
            _ => {
                folders.files = held(&place)?;
                true
            }
        };
        Ok(is_same)
    }

    /// Looks at an object store, unless that was done a moment ago.
    pub(super) async fn look_at_store(&self, store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<(), StoreError> {
        let before = self.0.looked.lock().clone();
        if before.as_ref().is_some_and(|before| before.at.elapsed() < LOOK_COUNTS) {
            return Ok(());
        }
        // Taken before the question: an answer may be as old as that.
        let at = Clock::instant();
        let owners = prefix.clone().join(OWNERS);
        let name = |epoch: u64| owners.clone().join(format!("{epoch:020}"));
        let listing = store.list_with_offset(Some(&owners), &name(self.0.epoch.saturating_sub(1)));
        let listing = listing.take(2).try_collect::<Vec<_>>();
        // The first look needs both, and at once: a start waits for it.
        let (listed, found) = match before {
            Some(_) => (listing.await, None),
            None => {
                let (listed, found) = futures::join!(listing, self.look_at_identity(store, prefix));
                (listed, Some(found?))
            }
        };
        let listed = listed.map_err(|error| StoreError::failed("list", OWNERS, error))?;
        let (own, later): (Vec<_>, Vec<_>) = listed.into_iter().partition(|meta| meta.location == name(self.0.epoch));
        let (own, later) =
            (own.into_iter().next(), later.first().and_then(|meta| meta.location.filename()?.parse().ok()));
        // One request instead of two: the identity was read beside this very object.
        let same = own.is_some() && before.is_some_and(|before| before.own == own);
        let found = match found {
            Some(found) => found,
            None if same => Ok(()),
            None => self.look_at_identity(store, prefix).await?,
        };
        self.settle(found.and_then(|()| later.map_or(Ok(()), |epoch| Err(NotTheStore::Owned { epoch }))))?;
        *self.0.looked.lock() = Some(Looked { at, own });
        Ok(())
    }

    async fn look_at_identity(
        &self,
        store: &Arc<dyn ObjectStore>,
        prefix: &Path,
    ) -> Result<Result<(), NotTheStore>, StoreError> {
        let path = prefix.clone().join(DATA_SIDE);
        let text = read_object(store, &path).await.map_err(|error| StoreError::failed("get", DATA_SIDE, error))?;
        Ok(self.judge(text, path.as_ref()))
    }

    fn judge(&self, text: Option<String>, place: &str) -> Result<(), NotTheStore> {
        let expected = &self.0.expected;
        let Some(text) = text else {
            return Err(NotTheStore::Missing { place: place.to_owned(), expected: expected.clone().into() });
        };
        let found = StoreIdentity::parse(&text, place)?;
        if found.id == expected.id {
            return Ok(());
        }
        Err(NotTheStore::Another { place: place.to_owned(), found: found.into(), expected: expected.clone().into() })
    }

    /// Tells once when the store is lost, and once when it is back.
    fn settle(&self, found: Result<(), NotTheStore>) -> Result<(), NotTheStore> {
        let was_lost = std::mem::replace(&mut *self.0.lost.lock(), found.clone().err()).is_some();
        // Other shards of the daemon count, too.
        self.0.metrics.store_lost.add(i64::from(found.is_err()) - i64::from(was_lost));
        match (&found, was_lost) {
            (Err(error), false) => {
                tracing::error!(%error, "the store is not there: nothing is deleted and no file is begun until it is back");
            }
            (Ok(()), true) => tracing::warn!("the store is back"),
            _ => {}
        }
        found
    }
}

/// Keeps other daemons off a folder for as long as it lives; nothing to keep on an object store, where each step asks.
#[derive(Debug)]
pub struct StoreLock(Option<fs::File>);

impl StoreLock {
    /// Locks the store for this process. None if another one has it, with whatever catalog.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the file cannot be opened.
    pub async fn take(store: &DataStore) -> Result<Option<Self>, StoreError> {
        let slot = store.identity_slot();
        let IdentitySlot::File(path) = &slot else { return Ok(Some(Self(None))) };
        let path = path.clone();
        let locked = slot.blocking("get", move || {
            let file = fs::File::open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(Self(Some(file)))),
                Err(fs::TryLockError::WouldBlock) => Ok(None),
                Err(fs::TryLockError::Error(error)) => Err(error),
            }
        });
        locked.await
    }

    /// The file that is locked.
    fn inode(&self) -> io::Result<Option<Inode>> {
        self.0.as_ref().map(|file| file.metadata().map(|metadata| Inode::from(&metadata))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stored sample: a change here is a change of the format.
    #[test]
    fn an_identity_reads_as_it_did() {
        let text =
            r#"{"id":"00112233445566778899aabbccddeeff","format":1,"made":"2026-11-28T22:11:21Z","url":"file:/d"}"#;
        let identity = StoreIdentity::parse(text, "ESKER").unwrap();

        assert_eq!(identity.text(), format!("{text}\n"));
        assert_eq!(
            identity.to_string(),
            "store 00112233445566778899aabbccddeeff (made 2026-11-28T22:11:21Z at file:/d)"
        );
        let later = text.replace(":1,", ":2,");
        assert!(matches!(StoreIdentity::parse(&later, "ESKER"), Err(NotTheStore::Unreadable { .. })));
        assert!(matches!(StoreIdentity::parse("", "ESKER"), Err(NotTheStore::Unreadable { .. })));
    }

    #[tokio::test]
    async fn an_object_that_is_there_is_never_changed() {
        let folder = tempfile::tempdir().unwrap();
        let memory: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let slots = [
            IdentitySlot::File(folder.path().join("new/ESKER")),
            IdentitySlot::Object { store: memory, path: Path::from("new/ESKER") },
        ];
        for slot in slots {
            assert_eq!(slot.read().await.unwrap(), None);
            assert_eq!(slot.create("a").await.unwrap(), "a");
            assert_eq!(slot.create("b").await.unwrap(), "a");
            assert_eq!(slot.read().await.unwrap().as_deref(), Some("a"));
        }
        assert_eq!(names_in(&folder.path().join("new")).unwrap(), ["ESKER"], "nothing stays beside it");
    }

    #[tokio::test]
    async fn the_owners_own_object_stands_for_the_identity_that_was_read_beside_it() {
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let (prefix, clock) = (Path::from("p"), Clock::System);
        let identity = StoreIdentity::new(&Entropy::from_os(clock.clone()), clock.now(), "memory:");
        let guard = StoreGuard::new(identity.clone(), 7, &StoreLock(None), Metrics::new()).unwrap();
        let object = |name: String| IdentitySlot::Object { store: Arc::clone(&store), path: prefix.clone().join(name) };
        // `/` divides a path.
        let owner = |epoch| IdentitySlot::Object {
            store: Arc::clone(&store),
            path: Path::from(format!("p/{}", owner_name(epoch))),
        };
        let look = async || {
            let looked = &guard.0.looked;
            looked.lock().iter_mut().for_each(|looked| looked.at -= LOOK_COUNTS);
            guard.look_at_store(&store, &prefix).await.map_err(|error| crate::error::chain(&error))
        };
        object(DATA_SIDE.to_owned()).create(&identity.text()).await.unwrap();
        owner(7).create("mine").await.unwrap();

        assert_eq!(look().await, Ok(()));
        store.delete(&Path::from("p/ESKER")).await.unwrap();
        assert_eq!(look().await, Ok(()), "one request, which finds the same object");

        let mine = Path::from(format!("p/{}", owner_name(7)));
        store.delete(&mine).await.unwrap();
        owner(7).create("of another store").await.unwrap();
        assert!(look().await.unwrap_err().contains(&identity.id), "it is looked which store that is");
        object(DATA_SIDE.to_owned()).create(&identity.text()).await.unwrap();
        assert_eq!(look().await, Ok(()));

        owner(8).create("a later one").await.unwrap();
        assert!(look().await.is_err());
        store.delete(&mine).await.unwrap();
        assert!(look().await.is_err());
    }
}
