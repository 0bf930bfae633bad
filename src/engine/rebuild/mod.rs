//! A new catalog, made from the physical files alone: for when the old one is lost.
//!
//! Every file's footer is read, one request each; what the footers say is told to a fresh [`CatalogState`] by the same commands by
//! which it happened, and its records are written to a new journal. It errs towards keeping.
//!
//! | comes back | how |
//! | --- | --- |
//! | segments, their ids, jobs, scopes, writers, names | from the footers; of several copies the one in the latest file counts |
//! | checkpoints | those that segments were written for, as completed |
//! | savepoints | the footer says so of their segments |
//! | reuse of shared state | the last checkpoint known counts as a user of all shared state of its job |
//! | S3 objects | of each key the newest; parts of a multipart upload know each other by their ids |
//! | entity tags | recomputed from the bytes, which are read for it |
//!
//! Everything that was in the catalog alone is lost: segments inside it (`data-inline-threshold`, and small groups on an
//! object store), objects of 0 bytes, headers and checksums of objects, copies of objects (the bytes stay under the first
//! name), idempotency keys, multipart uploads in progress, which checkpoints were aborted, and which jobs claimed others'.
//! Segments that were freed and are still in a file come back; on a local disk not where their bytes were given back as
//! holes. So does an object that was deleted, or that was last overwritten with one that was inside the catalog. Of
//! multipart objects only those come back whose parts are numbered without a gap; whether an upload had been completed is
//! not told. So an upload that was in progress is lost as such: its parts may come back as an object, and its client has to
//! begin anew.
//!
//! A file without a footer has only frames, which name no segment: each is kept as a segment of the job
//! [`LOST_AND_FOUND`], and a handle that names its place still reads it. The same job has what stood under a key before, and
//! files that nothing can be made out of; ending that job with its state deleted frees all of it. A start of the daemon writes the footers that a crash left unwritten; so a
//! crash costs names only if the catalog is lost with it.
//!
//! # Epochs
//! The new journal's epochs begin after the latest that any file's name or any owner has, so that names stay unused and the
//! sweep knows its catalog. The store keeps its identity.
//!
//! # A daemon that still runs
//! Nothing is listed before a catalog that is there can have no new answer: on a local disk its lock and that of the data
//! are taken and held to the end; on an object store its daemon is shut out, as a daemon that takes over does it, and the
//! names of files that may be on their way are taken. A daemon that is started in between has the catalog: the rebuild
//! ends with nothing changed. A daemon whose catalog is gone or unreadable has to be stopped by hand.
//!
//! # Crash
//! Nobody opens the new journal before its last record is durable ([`Journal::finish_rebuild`]). What a rebuild that was
//! cut short has left is deleted by the next one. The old catalog is moved aside whole, and physical files are only read;
//! until then a daemon that is started goes on with the old one.

mod assemble;
pub(super) mod survey;

use std::collections::BTreeMap;

use futures::StreamExt;
use serde::Serialize;

pub use assemble::LOST_AND_FOUND;
use assemble::{AssembledSegment, Assembly, Teller};
use survey::{Bytewise, FileContent, RangeToRead, SurveyedFile, at_once};

use super::identity::{self, IdentityError};
use super::journal::journal_settings;
use super::recover::{RecoverError, take_names};
use crate::catalog::save::save_in_batches;
use crate::catalog::slate::{Hold, Journal, JournalError, Present};
use crate::catalog::state::CatalogState;
use crate::config::{EtagKind, Settings};
use crate::metrics::Metrics;
use crate::model::{FileState, Millis, PhysicalFileId, Segment};
use crate::runtime::{Clock, Entropy};
use crate::store::{
    DataStore, OpenError, Placement, StoreError, StoreIdentity, StoreLock, open, open_data, place_of_catalog,
};

/// Why there is no new catalog.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store does not say which one it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store does not say what is there.
    #[error("storage does not tell what is there")]
    List(#[from] StoreError),
    /// There is one.
    #[error("there is a catalog: --replace moves it aside and makes a new one")]
    CatalogThere,
    /// A daemon has it now.
    #[error("a daemon was started meanwhile and has the catalog, nothing was changed: stop it, and run this again")]
    Started,
    /// It cannot be told whether all that the old daemon is to answer is there.
    #[error("what the daemon of the old catalog left cannot be settled")]
    Left(#[from] RecoverError),
    /// There is nothing to make one from.
    #[error("there are no physical files")]
    NoFiles,
    /// The journal cannot be written.
    #[error("the catalog cannot be written")]
    Journal(#[source] JournalError),
}

impl From<JournalError> for RebuildError {
    fn from(error: JournalError) -> Self {
        if matches!(error, JournalError::Fenced) { Self::Started } else { Self::Journal(error) }
    }
}

/// The options of a rebuild.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebuildOptions {
    /// Moves a catalog that is there aside.
    pub replace: bool,
    /// Reads every segment and checks its bytes.
    pub read_data: bool,
}

/// The steps of a rebuild, as they are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebuildProgress {
    /// Number of files that are there.
    Listed(usize),
    /// One of them was looked at.
    Looked,
    /// Bytes that have to be read.
    Reading(u64),
    /// Bytes that were read.
    Read(u64),
    /// The old catalog is here now, if there was one.
    RoomMade(Option<String>),
    /// The new journal takes records.
    Begun,
    /// A batch of records is durable.
    Wrote,
    /// All are.
    Written,
}

/// The result of a rebuild.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Physical files in the catalog.
    pub files: usize,
    /// Segments in it.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Jobs.
    pub jobs: usize,
    /// S3 objects.
    pub objects: usize,
    /// Segments that nobody can say whose they are, under the job `lost+found`.
    pub lost_and_found: usize,
    /// Older copies of segments, which count for nothing.
    pub copies: u64,
    /// Segments whose bytes had been given back: they were dead.
    pub given_back: usize,
    /// Bytes that were read and checked.
    pub read_bytes: u64,
    /// Where the old catalog is.
    pub moved_aside: Option<String>,
    /// Notes for the operator.
    pub notes: Vec<String>,
    /// Losses and damage.
    pub faults: Vec<String>,
}

/// Makes a catalog for the store of `settings`.
///
/// # Errors
/// [`RebuildError`]. Damage is no error: it is told in [`Rebuilt::faults`].
///
/// # Cancel safety
/// A dropped call leaves what a crash leaves: no catalog, or the old one, or the whole new one.
pub async fn rebuild(
    settings: &Settings,
    options: RebuildOptions,
    on: &(dyn Fn(RebuildProgress) + Send + Sync),
) -> Result<Rebuilt, RebuildError> {
    let clock = Clock::System;
    let metrics = Metrics::new();
    let entropy = Entropy::from_os(clock.clone());
    let catalog = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
    if let Some(shards) = Journal::shards(&catalog).await? {
        return Err(JournalError::Divided { place: catalog.to_string(), shards: shards.count }.into());
    }
    let present = Journal::present(&catalog).await?;
    if present == Present::Journal && !options.replace {
        return Err(RebuildError::CatalogThere);
    }
    let mut rebuilt = Rebuilt::default();
    let data = open_data(&settings.store, &metrics)?;
    // Before the first file is listed: what is answered after that would be missing.
    let mut kept = keep_off(settings, catalog, present, &data, &mut rebuilt).await?;
    // Looked at before the store is tried: nothing is made where no file is.
    let (found, latest_file) = look(&data, &mut rebuilt, on).await?;
    let opened = open(&settings.store, settings.catalog.url.as_ref(), &metrics, &entropy).await?;
    let new = || StoreIdentity::new(&entropy, clock.now(), &settings.store.url.to_string());
    let (identity, owner) = identity::of_data(&opened.data, new).await?;
    lock_data(settings, &data, &mut kept.data).await?;
    let epochs_before = latest_file.max(owner.epoch);
    let mut assembly = assemble::segments(&found);
    assembly.copies = assembly.copies.saturating_sub(drop_given_back(&opened.data, &mut assembly, &mut rebuilt).await);
    assembly.find_objects();
    let md5 = settings.server.etag == EtagKind::Md5;
    read(&opened.data, &mut assembly, |segment| options.read_data || segment.has_to_be_read(md5), md5, on).await;
    for segment in &assembly.segments {
        judge(segment, &mut assembly.faults, &mut rebuilt);
    }
    let mut state = CatalogState::default();
    let mut teller = Teller {
        state: &mut state,
        merging: &settings.merging,
        now: clock.now(),
        faults: std::mem::take(&mut assembly.faults),
    };
    teller.tell(&found, &assembly);
    rebuilt.faults.append(&mut teller.faults);
    rebuilt.faults.extend(state.check());
    rebuilt.notes.append(&mut assembly.notes);
    count(&state, &assembly, &mut rebuilt);

    // It knows of all owners that the files have seen.
    state.set_owner(identity.text(), owner);
    let now = clock.now();
    let catalog = (&mut kept.catalog, opened.catalog);
    rebuilt.moved_aside = write(catalog, state, settings, &identity, (epochs_before, now), on).await?;
    Ok(rebuilt)
}

/// Daemons are kept off for as long as it lives.
struct ExclusiveAccess {
    catalog: Hold,
    data: Option<StoreLock>,
}

/// Keeps daemons off. What they answered is on storage then, and they answer nothing more.
async fn keep_off(
    settings: &Settings,
    catalog: Placement,
    present: Present,
    data: &DataStore,
    rebuilt: &mut Rebuilt,
) -> Result<ExclusiveAccess, RebuildError> {
    let mut data_lock = None;
    if !catalog.capabilities().exclusive && present == Present::Journal {
        // Nobody is shut out in vain.
        lock_data(settings, data, &mut data_lock).await?;
        if data.list().await?.is_empty() {
            return Err(RebuildError::NoFiles);
        }
    }
    let mut state = CatalogState::default();
    let journal_settings = journal_settings(&catalog, &settings.catalog);
    let hold = Journal::hold(catalog, present, &journal_settings, |key, value| state.load(&key, &value)).await?;
    lock_data(settings, data, &mut data_lock).await?;
    if let Some(error) = hold.unread() {
        rebuilt.notes.push(format!(
            "the old catalog cannot be read ({}): if a daemon was still running on it, stop it, and run this again",
            crate::error::chain(error)
        ));
    }
    take_names(&state, data).await?;
    Ok(ExclusiveAccess { catalog: hold, data: data_lock })
}

/// Locks the data, once it has what is locked.
async fn lock_data(settings: &Settings, data: &DataStore, lock: &mut Option<StoreLock>) -> Result<(), RebuildError> {
    if lock.is_none() && data.identity_slot().read().await?.is_some() {
        let in_use = || IdentityError::InUse(settings.store.url.to_string());
        *lock = Some(StoreLock::take(data).await?.ok_or_else(in_use)?);
    }
    Ok(())
}

/// Looks at every file. Returns them with the latest epoch that a name has.
async fn look(
    store: &DataStore,
    rebuilt: &mut Rebuilt,
    on: &(dyn Fn(RebuildProgress) + Send + Sync),
) -> Result<(Vec<SurveyedFile>, u64), RebuildError> {
    let listed = store.list().await?;
    let mut files: Vec<(PhysicalFileId, u64)> = vec![];
    for (name, len) in listed {
        match name.parse() {
            Ok(id) => files.push((id, len)),
            Err(_) => rebuilt.faults.push(format!("{name} is no physical file, and is left alone")),
        }
    }
    if files.is_empty() {
        return Err(RebuildError::NoFiles);
    }
    on(RebuildProgress::Listed(files.len()));
    let epoch = files.iter().map(|(id, _)| id.epoch()).max().unwrap_or_default();
    let files = close_open(store, files, rebuilt).await;
    let looks = files.into_iter().map(|(id, len)| survey::look(store, id, len));
    let mut found: Vec<SurveyedFile> = futures::stream::iter(looks)
        .buffer_unordered(at_once(store))
        .inspect(|_| on(RebuildProgress::Looked))
        .collect()
        .await;
    found.sort_by(|a, b| a.id.cmp(&b.id));
    let tombstones = found.iter().filter(|file| matches!(file.content, FileContent::Tombstone)).count();
    if tombstones > 0 {
        rebuilt.notes.push(format!("{tombstones} names were taken by a daemon that took over; they hold nothing"));
    }
    Ok((found, epoch))
}

/// Closes files that a daemon has left open, where their ends cannot be read before. The catalog that named them may be gone,
/// so all are asked for. Returns all, with their lengths.
async fn close_open(
    store: &DataStore,
    files: Vec<(PhysicalFileId, u64)>,
    rebuilt: &mut Rebuilt,
) -> Vec<(PhysicalFileId, u64)> {
    if !store.capabilities().leases {
        return files;
    }
    let closing = files.into_iter().map(|(id, len)| async move { (store.release(&id).await, id, len) });
    let closed: Vec<_> = futures::stream::iter(closing).buffered(at_once(store)).collect().await;
    let closed = closed.into_iter().map(|(closed, id, listed)| match closed {
        Ok(len) => (id, len.unwrap_or(listed)),
        Err(error) => {
            rebuilt.faults.push(format!("{id} may not have been read to its end: {}", crate::error::chain(&error)));
            (id, listed)
        }
    });
    closed.collect()
}

/// Segments with a hole in them are dead, unless their bytes are right all the same. Returns how many older copies went
/// with them.
async fn drop_given_back(store: &DataStore, assembly: &mut Assembly, rebuilt: &mut Rebuilt) -> u64 {
    read(store, assembly, |segment| segment.holed, false, &|_| {}).await;
    let before = assembly.segments.len();
    let mut copies = 0;
    assembly.segments.retain(|segment| {
        let dead = segment.holed && segment.is_right() == Some(false);
        copies += if dead { segment.older.len() as u64 } else { 0 };
        !dead
    });
    assembly.segments.iter_mut().for_each(|segment| segment.read = None);
    rebuilt.given_back = before - assembly.segments.len();
    copies
}

/// Reads some of the segments. One whose bytes are wrong is taken from an older copy where that is right.
async fn read(
    store: &DataStore,
    assembly: &mut Assembly,
    wanted: impl Fn(&AssembledSegment) -> bool,
    md5: bool,
    on: &(dyn Fn(RebuildProgress) + Send + Sync),
) {
    let mut by_file: BTreeMap<PhysicalFileId, Vec<(usize, Segment)>> = BTreeMap::new();
    let mut bytes = 0;
    for (index, segment) in assembly.segments.iter().enumerate().filter(|(_, segment)| wanted(segment)) {
        bytes += segment.place.len;
        by_file.entry(segment.place.file.clone()).or_default().push((index, segment.place.clone()));
    }
    on(RebuildProgress::Reading(bytes));
    let reads = by_file.into_iter().map(|(file, mut segments)| async move {
        segments.sort_by_key(|(_, place)| place.offset);
        let wanted = segments.iter().map(|(_, place)| RangeToRead { range: place.offset..place.end(), md5 }).collect();
        let read = survey::read(store, file, wanted).await;
        segments.into_iter().zip(read).collect::<Vec<_>>()
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(at_once(store));
    while let Some(read) = reads.next().await {
        for ((index, place), bytewise) in read {
            on(RebuildProgress::Read(place.len));
            assembly.segments[index].read = Some(bytewise);
        }
    }
    for segment in assembly.segments.iter_mut().filter(|segment| segment.is_right() == Some(false) && !segment.holed) {
        older_copy(store, segment, md5).await;
    }
}

async fn older_copy(store: &DataStore, segment: &mut AssembledSegment, md5: bool) {
    for place in std::mem::take(&mut segment.older) {
        let wanted = vec![RangeToRead { range: place.offset..place.end(), md5 }];
        let read = survey::read(store, place.file.clone(), wanted).await.pop();
        let right = matches!(&read, Some(Bytewise::Read(crc, _)) if segment.crc32c == Some(crc.whole));
        if right {
            (segment.place, segment.read) = (place, read);
            return;
        }
    }
}

fn judge(segment: &AssembledSegment, faults: &mut Vec<String>, rebuilt: &mut Rebuilt) {
    match (&segment.read, segment.is_right()) {
        (Some(Bytewise::Unreadable(why)), _) => {
            faults.push(format!("segment {} in {} cannot be read: {why}", segment.id, segment.place.file));
        }
        (Some(Bytewise::Read(crc, _)), Some(false)) => {
            let (found, wanted) = (crc.whole, segment.crc32c.unwrap_or_default());
            faults.push(format!(
                "segment {} in {} has CRC-32C {found:08x}, {wanted:08x} was written",
                segment.id, segment.place.file
            ));
        }
        (Some(Bytewise::Read(..)), _) => rebuilt.read_bytes += segment.place.len,
        (None, _) => {}
    }
}

fn count(state: &CatalogState, assembly: &Assembly, rebuilt: &mut Rebuilt) {
    rebuilt.files = state.files().filter(|file| matches!(file.state, FileState::Closed { .. })).count();
    rebuilt.segments = state.segment_count();
    rebuilt.bytes = state.space().live_bytes;
    rebuilt.jobs = state.jobs().len();
    rebuilt.objects = assembly.objects.len();
    rebuilt.copies = assembly.copies;
    let nobodys = |segment: &&AssembledSegment| segment.about.job.as_str() == LOST_AND_FOUND;
    rebuilt.lost_and_found = assembly.segments.iter().filter(nobodys).count();
}

/// Writes a state to a new journal. Returns where the old one is.
async fn write(
    (hold, placement): (&mut Hold, Placement),
    mut state: CatalogState,
    settings: &Settings,
    identity: &StoreIdentity,
    (epochs_before, now): (u64, Millis),
    on: &(dyn Fn(RebuildProgress) + Send + Sync),
) -> Result<Option<String>, RebuildError> {
    let journal_settings = journal_settings(&placement, &settings.catalog);
    let moved = hold.make_room(&now.0.to_string()).await?;
    on(RebuildProgress::RoomMade(moved.clone()));
    // Before the journal, as at a first start: a catalog that is whole says whose it is.
    placement.identity_slot().create(&identity.text()).await?;
    let journal = Journal::rebuild(placement, &journal_settings).await?;
    on(RebuildProgress::Begun);
    save_in_batches(&mut state, &journal, BATCH_RECORDS, || on(RebuildProgress::Wrote)).await?;
    on(RebuildProgress::Written);
    journal.finish_rebuild(epochs_before).await?;
    Ok(moved)
}

/// Records of a batch.
const BATCH_RECORDS: usize = 2_000;
