//! Copies one file, or finds that it is there.
//!
//! What is there is taken for the same if it is as long and says that it was copied from these very bytes (a store that keeps
//! what is said of an object), else if it is read and is the same.

use std::ops::Range;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Attributes, Error, GetOptions, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions};
use sha2::{Digest, Sha256};

use super::control::TransferControl;
use super::location::StorageLocation;
use crate::store::{NewFile, WholeStore};

/// Bytes that are read and written at a time.
pub const PIECE_BYTES: u64 = 8 << 20;
/// Parts of an upload; S3 takes ten thousand.
const PARTS_MAX: u64 = 9000;
/// What services say of a bucket, or container, that is not there.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

/// A file and the storage that it is on.
#[derive(Debug, Clone)]
pub struct FileAt {
    /// The storage.
    pub store: WholeStore,
    /// The file.
    pub location: StorageLocation,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOutcome {
    /// It was copied.
    Copied,
    /// The same was there.
    There,
}

/// Why a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something else has its place.
    #[error("{0} is there with other content: choose another place, or remove it")]
    OtherContent(String),
    /// It went away, or was replaced, while it was copied.
    #[error("{0} changed or went away while it was copied: is a job running that discards the checkpoint?")]
    Changed(String),
    /// It is a pipe, a device or a folder.
    #[error("{0} is {1} and not a regular file")]
    NotRegular(String, &'static str),
    /// The transfer ended before.
    #[error("{0} was not copied, because the transfer was stopped")]
    Stopped(String),
    /// The bucket that it would be in does not exist.
    #[error("{0} cannot be written: its bucket does not exist, create it first")]
    NoBucket(String),
    /// It cannot be read.
    #[error("{0} cannot be read")]
    Read(String, #[source] Error),
    /// It cannot be written.
    #[error("{0} cannot be written")]
    Write(String, #[source] Error),
}

impl FileAt {
    fn path(&self) -> Result<Path, Error> {
        Path::parse(self.location.path()).map_err(Error::from)
    }

    fn read_error(&self, error: Error) -> FileError {
        match error {
            Error::NotFound { .. } | Error::Precondition { .. } => FileError::Changed(self.location.to_string()),
            error => FileError::Read(self.location.to_string(), error),
        }
    }

    fn write_error(&self, error: Error) -> FileError {
        match error {
            // An upload that a daemon has lost is not found either.
            error if NO_BUCKET.iter().any(|code| crate::error::chain(&error).contains(code)) => {
                FileError::NoBucket(self.location.to_string())
            }
            error => FileError::Write(self.location.to_string(), error),
        }
    }

    /// What is there, if anything is.
    ///
    /// # Errors
    /// [`FileError::NotRegular`], [`FileError::Read`].
    pub async fn look(&self) -> Result<Option<GetResult>, FileError> {
        // Whoever opens a pipe waits for somebody at its other end.
        if let Some(what) = self.path().ok().and_then(|path| self.store.irregular(&path)) {
            return Err(FileError::NotRegular(self.location.to_string(), what));
        }
        let looked = async {
            let options = GetOptions { head: true, ..GetOptions::default() };
            self.store.objects.get_opts(&self.path()?, options).await
        };
        match looked.await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(FileError::Read(self.location.to_string(), error)),
        }
    }

    /// Bytes of it as long as it is the one that was looked at.
    async fn read(&self, of: &ObjectMeta, range: Range<u64>) -> Result<Bytes, FileError> {
        let (wanted, if_match) = (range.end - range.start, of.e_tag.clone());
        let read = async {
            let options = GetOptions { if_match, range: Some(range.into()), ..GetOptions::default() };
            self.store.objects.get_opts(&self.path()?, options).await?.bytes().await
        };
        let bytes = read.await.map_err(|error| self.read_error(error))?;
        if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(FileError::Changed(self.location.to_string())) }
    }
}

/// Copies a file of which `meta` is known to `to`, unless the same is there. `progress` is told bytes that are done.
///
/// # Errors
/// [`FileError`].
pub async fn copy_file(
    from: &FileAt,
    meta: &ObjectMeta,
    to: &FileAt,
    control: &TransferControl,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<FileOutcome, FileError> {
    if control.is_stopped() {
        return Err(FileError::Stopped(from.location.to_string()));
    }
    let source = fingerprint(from, meta);
    if is_there(from, meta, to, &source).await? {
        progress(meta.size);
        return Ok(FileOutcome::There);
    }
    let mut attributes = Attributes::new();
    if let Some(note) = &to.store.source_note {
        attributes.insert(note.clone(), source.clone().into());
    }
    if meta.size > PIECE_BYTES {
        copy_in_parts(from, meta, to, attributes, control, progress).await?;
        return Ok(FileOutcome::Copied);
    }
    let bytes = if meta.size == 0 { Bytes::new() } else { from.read(meta, 0..meta.size).await? };
    match put_new(to, bytes.clone(), attributes).await? {
        PutOutcome::Put => {}
        // Of a try before this one whose answer was lost, or of somebody who does the same: it has to be the same.
        PutOutcome::Taken => {
            if !holds(to, &bytes).await? {
                return Err(FileError::OtherContent(to.location.to_string()));
            }
        }
    }
    progress(meta.size);
    Ok(FileOutcome::Copied)
}

/// Whether the file is there already.
///
/// # Errors
/// [`FileError::OtherContent`] if something else is, or why that is not known.
async fn is_there(from: &FileAt, meta: &ObjectMeta, to: &FileAt, source: &str) -> Result<bool, FileError> {
    let Some(there) = to.look().await? else { return Ok(false) };
    let says_so = to.store.source_note.as_ref().and_then(|note| there.attributes.get(note));
    let is_same = there.meta.size == meta.size
        && (says_so.is_some_and(|value| **value == *source) || are_same(from, meta, to, &there.meta).await?);
    if is_same { Ok(true) } else { Err(FileError::OtherContent(to.location.to_string())) }
}

/// Whether something was put under a name that was free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// It was.
    Put,
    /// The name is taken.
    Taken,
}

/// Puts a file, unless there is one.
///
/// # Errors
/// [`FileError::Write`].
pub async fn put_new(to: &FileAt, bytes: Bytes, attributes: Attributes) -> Result<PutOutcome, FileError> {
    let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
    let put = async { to.store.objects.put_opts(&to.path()?, bytes.into(), options).await };
    match put.await {
        Ok(_) => Ok(PutOutcome::Put),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(PutOutcome::Taken),
        Err(error) => Err(to.write_error(error)),
    }
}

/// Whether a file has these bytes.
///
/// # Errors
/// [`FileError`] if it cannot be read.
pub async fn holds(file: &FileAt, bytes: &Bytes) -> Result<bool, FileError> {
    let Some(there) = file.look().await? else { return Ok(false) };
    if there.meta.size != bytes.len() as u64 {
        return Ok(false);
    }
    Ok(bytes.is_empty() || file.read(&there.meta, 0..there.meta.size).await? == bytes)
}

async fn are_same(from: &FileAt, meta: &ObjectMeta, to: &FileAt, there: &ObjectMeta) -> Result<bool, FileError> {
    for range in pieces(meta.size, PIECE_BYTES) {
        let (one, other) = futures::future::try_join(from.read(meta, range.clone()), to.read(there, range)).await?;
        if one != other {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One part after the other, so that one is in memory; many files go side by side.
async fn copy_in_parts(
    from: &FileAt,
    meta: &ObjectMeta,
    to: &FileAt,
    attributes: Attributes,
    control: &TransferControl,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), FileError> {
    let begun = async { to.store.begin(&to.path()?, attributes).await };
    // Before it is begun: whoever ends meanwhile knows of it.
    control.upload_begins(to.location.to_string());
    let begun = begun.await.map_err(|error| to.write_error(error));
    let mut new = begun.inspect_err(|_| control.upload_ended(&to.location.to_string()))?;
    let copied = match copy_pieces(from, meta, to, &mut new, control, progress).await {
        Ok(()) => complete(from, meta, to, &mut new).await,
        failed => failed,
    };
    if copied.is_ok() || new.abort().await {
        control.upload_ended(&to.location.to_string());
    }
    copied
}

async fn copy_pieces(
    from: &FileAt,
    meta: &ObjectMeta,
    to: &FileAt,
    new: &mut NewFile,
    control: &TransferControl,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), FileError> {
    for range in pieces(meta.size, PIECE_BYTES.max(meta.size.div_ceil(PARTS_MAX))) {
        if control.is_stopped() {
            return Err(FileError::Stopped(from.location.to_string()));
        }
        let bytes = from.read(meta, range.clone()).await?;
        new.put_part(bytes).await.map_err(|error| to.write_error(error))?;
        progress(range.end - range.start);
    }
    Ok(())
}

/// Gives the file its name. If that fails, it may be there all the same, because an answer was lost; or somebody else's is,
/// who does the same.
async fn complete(from: &FileAt, meta: &ObjectMeta, to: &FileAt, new: &mut NewFile) -> Result<(), FileError> {
    let Err(error) = new.complete().await else { return Ok(()) };
    match is_there(from, meta, to, &fingerprint(from, meta)).await {
        Ok(true) => Ok(()),
        Err(other @ FileError::OtherContent(_)) => Err(other),
        Ok(false) | Err(_) => Err(to.write_error(error)),
    }
}

fn pieces(size: u64, bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(bytes)).map(move |piece| piece * bytes..((piece + 1) * bytes).min(size))
}

/// Tells the bytes that are under a name now from those before and after, as far as the store does.
fn fingerprint(from: &FileAt, meta: &ObjectMeta) -> String {
    let mut hash = Sha256::new();
    for part in [&from.location.to_string(), meta.e_tag.as_deref().unwrap_or_default()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(meta.size.to_be_bytes());
    hash.update(meta.last_modified.timestamp_millis().to_be_bytes());
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    /// A file of a storage that keeps what is said of an object, and one of a storage that does not.
    fn sides() -> (FileAt, FileAt) {
        let side = |uri: &str, store| FileAt { store, location: StorageLocation::of(uri).unwrap() };
        let (one, other) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        (side("hdfs://n/a/file", WholeStore::unnoted(one)), side("s3://b/a/file", WholeStore::noted(other)))
    }

    async fn put(file: &FileAt, bytes: Vec<u8>) -> ObjectMeta {
        let path = file.path().unwrap();
        file.store.objects.put(&path, bytes.into()).await.unwrap();
        file.store.objects.head(&path).await.unwrap()
    }

    async fn copy(from: &FileAt, meta: &ObjectMeta, to: &FileAt) -> Result<FileOutcome, FileError> {
        let told = AtomicU64::new(0);
        let control = TransferControl::default();
        let copied = copy_file(from, meta, to, &control, &|bytes| {
            told.fetch_add(bytes, Ordering::SeqCst);
        })
        .await;
        assert_eq!(control.uploads_left(), Vec::<String>::new());
        assert!(copied.is_err() || told.into_inner() == meta.size);
        copied
    }

    #[tokio::test]
    async fn files_of_all_sizes_are_copied_once() {
        for len in [0, 1, PIECE_BYTES as usize, PIECE_BYTES as usize + 1, 2 * PIECE_BYTES as usize + 5] {
            let (from, to) = sides();
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let meta = put(&from, bytes.clone()).await;

            assert_eq!(copy(&from, &meta, &to).await.unwrap(), FileOutcome::Copied);
            assert_eq!(copy(&from, &meta, &to).await.unwrap(), FileOutcome::There);
            let copied = to.store.objects.get(&to.path().unwrap()).await.unwrap().bytes().await.unwrap();
            assert!(copied == bytes, "{len}");
            // Back, to where it is already and nothing says what it came from.
            let meta = to.look().await.unwrap().unwrap().meta;
            assert_eq!(copy(&to, &meta, &from).await.unwrap(), FileOutcome::There);
        }
    }

    #[tokio::test]
    async fn what_is_there_with_other_bytes_is_left_alone() {
        let (from, to) = sides();
        let meta = put(&from, vec![7; 100]).await;
        for other in [vec![8; 100], vec![7; 99], vec![]] {
            put(&to, other.clone()).await;

            let error = copy(&from, &meta, &to).await.unwrap_err();

            assert!(matches!(&error, FileError::OtherContent(at) if at == "s3://b/a/file"), "{error}");
            assert!(holds(&to, &other.into()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_source_that_is_replaced_meanwhile_is_noticed() {
        for len in [100, 2 * PIECE_BYTES as usize] {
            let (from, to) = sides();
            let meta = put(&from, vec![7; len]).await;
            put(&from, vec![8; len]).await;

            let error = copy(&from, &meta, &to).await.unwrap_err();

            assert!(matches!(error, FileError::Changed(_)), "{error}");
            assert!(to.look().await.unwrap().is_none());
        }
    }
}
