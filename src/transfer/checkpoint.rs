//! All files of a checkpoint, then its `_metadata`.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Attributes, ObjectMeta, ObjectStoreExt};
use parking_lot::Mutex;
use serde::Serialize;

use super::control::TransferControl;
use super::files::{FileAt, FileError, FileOutcome, PutOutcome, copy_file, holds, put_new};
use super::location::{StorageLocation, StorageRoot};
use super::plan::{PlannedFile, TransferPlan, plan};
use crate::config::StoreSettings;
use crate::error::ErrorKind;
use crate::flink::{METADATA, RelocateError};
use crate::store::{OpenError, WholeStore};

/// A larger `_metadata` is no list of files.
const METADATA_BYTES_MAX: u64 = 1 << 30;
/// Folders that are looked into for a `_metadata`, to say which there are.
const HINTS_MAX: usize = 1000;
/// Files that are named in a message.
const NAMED_MAX: usize = 20;

/// One side of a transfer.
#[derive(Debug)]
pub struct TransferSide {
    /// The folder of the checkpoint; on the other side, the folder below which its job's folder goes.
    pub location: StorageLocation,
    reach: SideReach,
    opened: Mutex<HashMap<StorageRoot, WholeStore>>,
}

/// How a storage is reached.
#[derive(Debug)]
enum SideReach {
    Plain(StoreSettings),
    Door { settings: StoreSettings, ca: Option<Vec<u8>> },
}

impl TransferSide {
    /// A storage that is reached as `settings` say, but for their URL.
    pub fn plain(location: StorageLocation, settings: StoreSettings) -> Self {
        Self { location, reach: SideReach::Plain(settings), opened: Mutex::default() }
    }

    /// The S3 door of a daemon, at the endpoint and with the keys of `settings`. `ca` are authorities in PEM.
    pub fn door(location: StorageLocation, settings: StoreSettings, ca: Option<Vec<u8>>) -> Self {
        Self { location, reach: SideReach::Door { settings, ca }, opened: Mutex::default() }
    }

    fn file(&self, location: StorageLocation) -> Result<FileAt, OpenError> {
        let opened = self.opened.lock().get(location.root()).cloned();
        if let Some(store) = opened {
            return Ok(FileAt { store, location });
        }
        let store = match (&self.reach, location.root()) {
            (SideReach::Door { settings, ca }, StorageRoot::Bucket(bucket)) => {
                WholeStore::open_door(settings, bucket, ca.as_deref())?
            }
            (SideReach::Plain(settings) | SideReach::Door { settings, .. }, root) => {
                WholeStore::open(&StoreSettings { url: root.url(), ..settings.clone() })?
            }
        };
        self.opened.lock().insert(location.root().clone(), store.clone());
        Ok(FileAt { store, location })
    }
}

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct TransferOptions {
    /// Files at a time, at least 1.
    pub at_once: usize,
    /// Only looks, and writes nothing.
    pub dry_run: bool,
}

/// What is told on the way.
#[derive(Debug, Clone, Copy)]
pub enum TransferNote {
    /// So much is to be done.
    Planned {
        /// Files.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// So many bytes more are done.
    Bytes(u64),
}

/// Whoever hears it.
pub type TransferListener<'a> = &'a (dyn Fn(TransferNote) + Sync);

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TransferReport {
    /// The number of the checkpoint.
    pub checkpoint: u64,
    /// Where it is now: what `flink run -s` takes.
    pub to: String,
    /// The files that it names, without `_metadata`.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these files, those that were there before.
    pub there: u64,
    /// Whether nothing was written because nothing was to be.
    pub dry_run: bool,
}

/// Why a checkpoint was not moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// There is no checkpoint.
    #[error("{at} has no _metadata, so it is no checkpoint that is complete{}", Hints(.hints))]
    NoMetadata {
        /// The folder.
        at: String,
        /// Folders in it, or beside it, that have one.
        hints: Vec<String>,
    },
    /// Its list of files cannot be read, or not be written anew.
    #[error("{at}/_metadata")]
    Metadata {
        /// The folder.
        at: String,
        /// What is wrong with it.
        #[source]
        source: RelocateError,
    },
    /// Files that it names are not there.
    #[error("{} of the files that the checkpoint names cannot be had, so it cannot be restored: {}", .0.len(), Few(.0))]
    Incomplete(Vec<String>),
    /// Another checkpoint is in its place.
    #[error("{0} is there with other content: choose another place, or remove it")]
    Taken(String),
    /// A file that was copied is not there.
    #[error("{0} was copied, and is not there now with as many bytes: somebody removes what is written here")]
    Gone(String),
    /// Somebody ended it.
    #[error("interrupted: the same command goes on where this one ended")]
    Interrupted,
    /// It failed, and left uploads that nobody goes on with.
    #[error(
        "uploads of {} files were begun and could not be given up; their parts take room until the storage drops them: {}", 
        .uploads.len(), Few(.uploads)
    )]
    UploadsLeft {
        /// The files.
        uploads: Vec<String>,
        /// Why it failed.
        #[source]
        source: Box<TransferError>,
    },
    /// A storage does not answer the first question.
    #[error("it was not begun")]
    NotReached(#[source] FileError),
    /// A storage cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file was not copied.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TransferError {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMetadata { .. } => ErrorKind::NotFound,
            Self::Metadata { .. } | Self::Incomplete(_) => ErrorKind::Corrupt,
            Self::Taken(_) | Self::Gone(_) | Self::File(FileError::OtherContent(_) | FileError::Changed(_)) => {
                ErrorKind::Conflict
            }
            Self::Open(_) | Self::File(FileError::NotRegular(..)) => ErrorKind::Invalid,
            Self::File(FileError::NoBucket(_)) => ErrorKind::NotFound,
            Self::UploadsLeft { source, .. } => source.kind(),
            Self::Interrupted | Self::File(FileError::Stopped(_)) => ErrorKind::ShuttingDown,
            Self::NotReached(_) | Self::File(FileError::Read(..) | FileError::Write(..)) => ErrorKind::Unavailable,
        }
    }

    /// Whether nothing was begun: there is nothing to move, or no storage that answers.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NoMetadata { .. } | Self::NotReached(_) | Self::Open(_))
    }
}

struct Few<'a>(&'a [String]);

impl std::fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0[..self.0.len().min(NAMED_MAX)].join("; "))?;
        if self.0.len() > NAMED_MAX { write!(f, "; and {} more", self.0.len() - NAMED_MAX) } else { Ok(()) }
    }
}

struct Hints<'a>(&'a [String]);

impl std::fmt::Display for Hints<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; these are: {}", Few(self.0)) }
    }
}

/// Copies the checkpoint in the folder `from` below the folder `to`, unless `control` ends it. `tell` hears how far it is.
///
/// # Errors
/// [`TransferError`]. What was copied by then stays, and a repeat goes on with the rest. Uploads in parts that were begun are
/// given up, or named.
///
/// # Cancel safety
/// A dropped call leaves the uploads that it has begun: `control` knows them.
pub async fn copy_checkpoint(
    from: &TransferSide,
    to: &TransferSide,
    options: TransferOptions,
    control: &TransferControl,
    tell: TransferListener<'_>,
) -> Result<TransferReport, TransferError> {
    let copied = try_copy(from, to, options, control, tell).await;
    copied.map_err(|error| match error {
        TransferError::File(FileError::Stopped(_)) => interrupted(control),
        error => with_uploads(error, control),
    })
}

/// What is to be told of a transfer that was stopped.
pub fn interrupted(control: &TransferControl) -> TransferError {
    with_uploads(TransferError::Interrupted, control)
}

fn with_uploads(error: TransferError, control: &TransferControl) -> TransferError {
    match control.uploads_left() {
        uploads if uploads.is_empty() => error,
        uploads => TransferError::UploadsLeft { uploads, source: error.into() },
    }
}

async fn try_copy(
    from: &TransferSide,
    to: &TransferSide,
    options: TransferOptions,
    control: &TransferControl,
    tell: TransferListener<'_>,
) -> Result<TransferReport, TransferError> {
    let at = &from.location;
    let bytes = read_metadata_of(from).await?;
    let plan = plan(at, &bytes, &to.location);
    let plan = plan.map_err(|source| TransferError::Metadata { at: at.to_string(), source })?;
    let files = find_all(from, &plan, options.at_once, control).await?;
    let bytes_of_all = files.iter().map(|(_, meta)| meta.size).sum();
    tell(TransferNote::Planned { files: files.len() as u64, bytes: bytes_of_all });
    let metadata = to.file(plan.to.clone())?;
    let new = Bytes::from(plan.metadata);
    if metadata.look().await.map_err(TransferError::NotReached)?.is_some() && !holds(&metadata, &new).await? {
        return Err(TransferError::Taken(metadata.location.to_string()));
    }
    let there = match options.dry_run {
        true => count_there(to, &files, options.at_once).await?,
        false => {
            let there = copy_all(from, to, &files, options.at_once, control, tell).await?;
            // Somebody may delete there what looks like nobody's: only what is there in the end is a checkpoint.
            if let Some(gone) = first_gone(to, &files, options.at_once).await? {
                return Err(TransferError::Gone(gone));
            }
            if put_new(&metadata, new.clone(), Attributes::new()).await? == PutOutcome::Taken
                && !holds(&metadata, &new).await?
            {
                return Err(TransferError::Taken(metadata.location.to_string()));
            }
            there
        }
    };
    Ok(TransferReport {
        checkpoint: plan.checkpoint,
        to: plan.to.parent().to_string(),
        files: files.len() as u64,
        bytes: bytes_of_all,
        there,
        dry_run: options.dry_run,
    })
}

async fn read_metadata_of(from: &TransferSide) -> Result<Bytes, TransferError> {
    let file = from.file(from.location.join(METADATA))?;
    let Some(found) = file.look().await.map_err(TransferError::NotReached)? else {
        let at = from.location.to_string();
        return Err(TransferError::NoMetadata { at, hints: checkpoints_near(from).await });
    };
    let read_error = |source| FileError::Read(file.location.to_string(), source);
    if found.meta.size > METADATA_BYTES_MAX {
        let source = format!("it has {} bytes, and at most {METADATA_BYTES_MAX} are read", found.meta.size);
        return Err(read_error(object_store::Error::Generic { store: "transfer", source: source.into() }).into());
    }
    let read = async { file.store.objects.get(&found.meta.location).await?.bytes().await };
    Ok(read.await.map_err(read_error)?)
}

/// Checkpoints in the folder, else in the one that it is in. Nobody needs them: whatever goes wrong, there are none.
async fn checkpoints_near(from: &TransferSide) -> Vec<String> {
    for folder in [from.location.clone(), from.location.parent()] {
        let found = checkpoints_in(from, &folder).await.unwrap_or_default();
        if !found.is_empty() {
            return found;
        }
    }
    vec![]
}

async fn checkpoints_in(from: &TransferSide, folder: &StorageLocation) -> Result<Vec<String>, TransferError> {
    let store = from.file(folder.clone())?.store;
    let prefix = Path::parse(folder.path()).ok();
    let listed = store.objects.list_with_delimiter(prefix.as_ref()).await;
    let listed = listed.map_err(|error| FileError::Read(folder.to_string(), error))?;
    let mut found = vec![];
    for folder in listed.common_prefixes.iter().take(HINTS_MAX) {
        let checkpoint = from.location.at(folder.as_ref());
        if from.file(checkpoint.join(METADATA))?.look().await?.is_some() {
            found.push(checkpoint.to_string());
        }
    }
    Ok(found)
}

type FoundFile = (PlannedFile, ObjectMeta);

/// Looks at every file, before any is copied.
async fn find_all(
    from: &TransferSide,
    plan: &TransferPlan,
    at_once: usize,
    control: &TransferControl,
) -> Result<Vec<FoundFile>, TransferError> {
    let looked = stream::iter(plan.files.iter().cloned()).map(async |planned| {
        if control.is_stopped() {
            return Err(TransferError::Interrupted);
        }
        match from.file(planned.from.clone())?.look().await {
            Ok(found) => Ok((planned, Ok(found.map(|found| found.meta)))),
            Err(FileError::NotRegular(_, what)) => Ok((planned, Err(what))),
            Err(error) => Err(error.into()),
        }
    });
    let looked: Vec<_> = looked.buffered(at_once.max(1)).try_collect().await?;
    let mut faults: Vec<String> = plan.elsewhere.iter().map(|uri| format!("{uri} (not on this storage)")).collect();
    let mut files = Vec::with_capacity(looked.len());
    for (planned, meta) in looked {
        match meta {
            Err(what) => faults.push(format!("{} (is {what} and not a regular file)", planned.from)),
            Ok(None) => faults.push(format!("{} (not there)", planned.from)),
            Ok(Some(meta)) if meta.size < planned.needed_bytes => {
                let (has, needs) = (meta.size, planned.needed_bytes);
                faults.push(format!("{} (has {has} bytes, {needs} are named)", planned.from));
            }
            Ok(Some(meta)) => files.push((planned, meta)),
        }
    }
    if faults.is_empty() { Ok(files) } else { Err(TransferError::Incomplete(faults)) }
}

/// Copies them, and returns how many were there already. The first that fails ends it, once the others have given up what
/// they have begun.
async fn copy_all(
    from: &TransferSide,
    to: &TransferSide,
    files: &[FoundFile],
    at_once: usize,
    control: &TransferControl,
    tell: TransferListener<'_>,
) -> Result<u64, TransferError> {
    let copied = stream::iter(files).map(async |(planned, meta)| {
        let (source, target) = (from.file(planned.from.clone())?, to.file(planned.to.clone())?);
        let progress = |bytes| tell(TransferNote::Bytes(bytes));
        let outcome = copy_file(&source, meta, &target, control, &progress).await?;
        Ok::<_, TransferError>(u64::from(outcome == FileOutcome::There))
    });
    let mut copied = copied.buffer_unordered(at_once.max(1));
    let mut sum = Ok(0);
    while let Some(outcome) = copied.next().await {
        match outcome {
            Ok(there) => sum = sum.map(|sum| sum + there),
            Err(error) => {
                control.stop();
                sum = sum.and(Err(error));
            }
        }
    }
    sum
}

/// The size of each on the other side, in no order.
async fn sizes_there<'a>(
    to: &TransferSide,
    files: &'a [FoundFile],
    at_once: usize,
) -> Result<Vec<(&'a FoundFile, Option<u64>)>, TransferError> {
    let looked = stream::iter(files).map(async |file| {
        let found = to.file(file.0.to.clone())?.look().await?;
        Ok::<_, TransferError>((file, found.map(|found| found.meta.size)))
    });
    looked.buffer_unordered(at_once.max(1)).try_collect().await
}

async fn count_there(to: &TransferSide, files: &[FoundFile], at_once: usize) -> Result<u64, TransferError> {
    let mut there = 0;
    for ((planned, meta), size) in sizes_there(to, files, at_once).await? {
        match size {
            Some(size) if size != meta.size => return Err(FileError::OtherContent(planned.to.to_string()).into()),
            Some(_) => there += 1,
            None => {}
        }
    }
    Ok(there)
}

async fn first_gone(to: &TransferSide, files: &[FoundFile], at_once: usize) -> Result<Option<String>, TransferError> {
    let sizes = sizes_there(to, files, at_once).await?;
    let gone = sizes.into_iter().find(|((_, meta), size)| *size != Some(meta.size));
    Ok(gone.map(|((planned, _), _)| planned.to.to_string()))
}
