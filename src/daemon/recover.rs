//! Before the first answer: what did the daemon before this one leave open?
//!
//! | found | then |
//! | --- | --- |
//! | a file the catalog calls open, on a local disk | its whole frames count; it is cut there, sealed, closed |
//! | the same on an object store, and it is there | it counts, closed |
//! | the same, and it is not there | its name is taken, so that it cannot arrive any more; its segments are dropped |
//! | the same, and it came as a multipart upload | first of all the upload is aborted, which deletes its parts |
//! | a file on a local disk that the catalog does not name | deleted: its commit never was, nobody was answered |
//! | the file of a trial whether the disk takes direct writes | deleted: the start that wrote it was cut short |
//!
//! Nothing here is needed for what was answered: that is durable and committed. Interrupted at any point, it is done
//! again by the next start.

use std::collections::HashMap;

use crate::catalog::state::{State, UncertainFile};
use crate::merge::entry_of_record;
use crate::merge::format::{self, Entry, FormatError};
use crate::model::{Location, Millis, PhysicalFileId};
use crate::reclaim::guard::check_unnamed;
use crate::store::{DataStore, LocalStore, ObjectFiles, StoreError};

/// Why the daemon could not bring its state in order.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Storage does not answer.
    #[error("storage does not tell what the daemon before this one left")]
    Store(#[from] StoreError),
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Read {
        /// The file.
        file: PhysicalFileId,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The catalog knows nothing, and yet there are files: this is not the catalog that wrote them.
    #[error(
        "the catalog is empty, but {files} physical files are there ({example}): the catalog was lost or moved. Nothing was \
         deleted. Put the catalog back, make a new one with `esker rebuild --replace`, or move the data away to begin anew"
    )]
    CatalogMissing {
        /// How many there are.
        files: usize,
        /// One of them.
        example: String,
    },
}

/// What a start found and did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Files that had not been closed.
    pub open_files: usize,
    /// Segments that were never answered and are not there.
    pub lost_segments: usize,
    /// Files that the catalog does not name.
    pub unnamed_files: usize,
}

/// Looks at every file that was open, settles it in `state`, and deletes what nobody names.
///
/// # Errors
/// [`RecoverError`]; the daemon must not answer then.
pub async fn recover(state: &mut State, store: &DataStore, epoch: u64, at: Millis) -> Result<Recovered, RecoverError> {
    let mut recovered = Recovered::default();
    let before = state.all_segments().count();
    check_not_missing(state, store).await?;
    if let DataStore::Local(store) = store {
        recovered.unnamed_files = delete_unnamed(state, store, epoch).await?;
        store.remove_trials().await?;
    }
    let mut entries = entries_by_file(state);
    for file in state.uncertain_files() {
        recovered.open_files += 1;
        let entries = entries.remove(&file.id).unwrap_or_default();
        let (data_len, len) = match store {
            DataStore::Local(store) => settle_local(store, &file, entries, Repair::Seal).await?,
            DataStore::Object(store) => match settle_object(store, &file).await? {
                Some(found) => found,
                None => continue,
            },
        };
        state.settle_file(&file.id, data_len, len, at);
    }
    state.finish_recovery(at);
    recovered.lost_segments = before.saturating_sub(state.all_segments().count());
    Ok(recovered)
}

/// The same as [`recover`], in `state` alone: nothing on storage changes.
///
/// # Errors
/// [`RecoverError`].
pub async fn imagine(state: &mut State, store: &DataStore, at: Millis) -> Result<(), RecoverError> {
    let mut entries = entries_by_file(state);
    for file in state.uncertain_files() {
        let entries = entries.remove(&file.id).unwrap_or_default();
        let (data_len, len) = match store {
            DataStore::Local(store) => settle_local(store, &file, entries, Repair::Nothing).await?,
            DataStore::Object(_) => match store.len(&file.id).await? {
                Some(len) if len == file.len => (len, len),
                _ => (0, 0),
            },
        };
        state.settle_file(&file.id, data_len, len, at);
    }
    state.finish_recovery(at);
    Ok(())
}

/// What the footer of each open file has to say.
fn entries_by_file(state: &State) -> HashMap<PhysicalFileId, Vec<Entry>> {
    let open: HashMap<PhysicalFileId, ()> = state.uncertain_files().into_iter().map(|file| (file.id, ())).collect();
    let mut entries: HashMap<PhysicalFileId, Vec<Entry>> = HashMap::new();
    for (id, record) in state.all_segments() {
        if let Location::File(segment) = &record.location
            && open.contains_key(&segment.file)
        {
            let entry = entry_of_record(id, record, segment);
            entries.entry(segment.file.clone()).or_default().push(entry);
        }
    }
    entries
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repair {
    Seal,
    Nothing,
}

/// The length of the whole frames of a file, and the length it has once it is sealed.
async fn settle_local(
    store: &LocalStore,
    file: &UncertainFile,
    mut entries: Vec<Entry>,
    repair: Repair,
) -> Result<(u64, u64), RecoverError> {
    let scanned = {
        let (store, file) = (store.clone(), file.clone());
        tokio::task::spawn_blocking(move || scan(&store, &file)).await
    };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Failed {
        operation: "get",
        path: file.id.to_string(),
        source,
    };
    let found = scanned.map_err(|error| failed(error.into()))?;
    let (valid_len, ulid, len) = match found.map_err(|source| RecoverError::Read { file: file.id.clone(), source })? {
        Some(found) => found,
        None => return Ok((0, 0)),
    };
    if repair == Repair::Nothing || ulid.is_none() {
        return Ok((valid_len, len));
    }
    entries.retain(|entry| entry.offset + entry.len <= valid_len);
    entries.sort_by_key(|entry| entry.offset);
    let end = format::encode_end(&entries, valid_len, ulid.unwrap_or_default());
    let sealed = store.seal(&file.id, valid_len, end).await?;
    Ok((valid_len, sealed))
}

/// How much of a file is whole, the ULID in its header if that is whole, and its length; none if there is no file.
fn scan(store: &LocalStore, file: &UncertainFile) -> Result<Option<(u64, Option<u128>, u64)>, FormatError> {
    let open = match store.open(&file.id) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = open.metadata()?.len();
    let mut header = vec![0; format::HEADER_BYTES as usize];
    let read = format::ReadAt::read_at(&open, 0, &mut header)?;
    let Ok(header) = format::decode_header(&header[..read]) else { return Ok(Some((0, None, len))) };
    let scan = format::scan(&open, file.durable_len, len)?;
    Ok(Some((scan.valid_len, Some(header.ulid), len)))
}

/// The length of a file's whole frames and its length; none if it has to be looked at again by the next start.
async fn settle_object(store: &ObjectFiles, file: &UncertainFile) -> Result<Option<(u64, u64)>, RecoverError> {
    let mut aborted = true;
    if let Some(upload) = &file.upload
        && let Err(error) = store.abort(&file.id, upload).await
    {
        // If storage is out, the next request says so. The file stays open in the catalog, and the next start tries again.
        aborted = false;
        tracing::warn!(file = %file.id, upload, error = crate::error::chain(&error), "a multipart upload of an older daemon could not be aborted");
    }
    let found = match store.claim(&file.id).await? {
        Some(len) if len == file.len => (len, len),
        // Begun and not committed: a large segment, or a copy of the reclaimer.
        Some(len) if file.len == 0 => (0, len),
        Some(len) => {
            tracing::warn!(file = %file.id, len, expected = file.len, "a file has another length than was committed, it is dropped");
            (0, len)
        }
        None => (0, 0),
    };
    Ok(aborted.then_some(found))
}

/// A catalog that was never used does not belong to files that are there. Only then is storage listed.
async fn check_not_missing(state: &State, store: &DataStore) -> Result<(), RecoverError> {
    let nothing_known = state.files().next().is_none() && state.all_segments().next().is_none();
    let never_used = state.buckets().is_empty() && state.jobs().is_empty();
    if !nothing_known || !never_used {
        return Ok(());
    }
    let listed = store.list().await?;
    let files: Vec<PhysicalFileId> = listed.iter().filter_map(|(name, _)| name.parse().ok()).collect();
    match files.first() {
        Some(example) => Err(RecoverError::CatalogMissing { files: files.len(), example: example.to_string() }),
        None => Ok(()),
    }
}

/// Deletes the files on a local disk that the catalog does not name.
async fn delete_unnamed(state: &State, store: &LocalStore, epoch: u64) -> Result<usize, RecoverError> {
    let all = DataStore::Local(store.clone());
    let listed = all.list().await?;
    let unnamed: Vec<PhysicalFileId> = listed
        .iter()
        .filter_map(|(name, _)| name.parse().ok())
        .filter(|file: &PhysicalFileId| state.file(file).is_none())
        .collect();
    if let Err(refused) = check_unnamed(epoch, &unnamed, listed.len()) {
        tracing::error!(%refused, "files that the catalog does not name are left where they are");
        return Ok(0);
    }
    let wanted = unnamed.len();
    let gone = all.delete(unnamed).await;
    if gone.len() < wanted {
        tracing::warn!(left = wanted - gone.len(), "some files that nobody names could not be deleted");
    }
    Ok(gone.len())
}

/// Logs what a start found, if anything.
pub fn log(recovered: &Recovered) {
    if *recovered != Recovered::default() {
        let Recovered { open_files, lost_segments, unnamed_files } = recovered;
        tracing::info!(open_files, lost_segments, unnamed_files, "took over what the daemon before this one left open");
    }
}
