//! The catalog against the files, and what of that can be put right.
//!
//! Looked at: whether the catalog adds up; every file that it calls closed, whether it is there, as long as it should be,
//! and has what lives in it where the catalog says; and of a share of the segments, every byte. What is dead in a file may
//! be zeros. A segment that lives where a file has a hole is read in any case.
//!
//! [`repair`] does what the next start would do, and more only when told so. It deletes nothing that anybody wrote down.

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;
use serde::Serialize;

use super::rebuild::survey::{self, Bytewise, FileContent, RangeToRead, SurveyedFile};
use super::recover::{Missing, RecoverError, recover};
use crate::catalog::slate::Snapshot;
use crate::catalog::state::{CatalogState, SegmentView};
use crate::format::HEADER_BYTES;
use crate::model::{FileState, Location, Millis, PhysicalFileId, Segment, SegmentId, crc32c};
use crate::reclaim::sweep::unnamed;
use crate::store::{DataStore, StoreError};

/// The progress of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyProgress {
    /// Number of files that have to be looked at.
    Files(usize),
    /// One of them was.
    Looked,
    /// Bytes that have to be read.
    Reading(u64),
    /// Bytes that were read.
    Read(u64),
}

/// The result of a check.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files in the catalog.
    pub files: usize,
    /// Segments in it.
    pub segments: usize,
    /// Segments that were read.
    pub read: usize,
    /// Their bytes.
    pub read_bytes: u64,
    /// The repairs that were made.
    pub actions: Vec<String>,
    /// Leftovers of a crash that the next start sets aside or a sweep deletes, for which nobody was answered; and what could
    /// not be seen.
    pub notes: Vec<String>,
    /// The faults that were found.
    pub faults: Vec<String>,
}

/// Compares a catalog with the files it names.
///
/// # Errors
/// [`StoreError`] if storage does not say what is there.
pub async fn verify(
    state: &CatalogState,
    store: &DataStore,
    catalog: &Snapshot,
    read_percent: u8,
    on: &(dyn Fn(VerifyProgress) + Send + Sync),
) -> Result<VerifyReport, StoreError> {
    let listed = store.list().await?;
    let lens: HashMap<String, u64> = listed.iter().cloned().collect();
    let swept = unnamed(listed, |files| state.unknown_files(files));
    let mut verified = VerifyReport { faults: state.check(), ..VerifyReport::default() };
    let foreign = swept.foreign.iter().map(|name| format!("{name} is no physical file, and nothing deletes it"));
    verified.faults.extend(foreign);
    let deletes = match store.capabilities().sets_aside {
        true => "the next start moves it to lost+found",
        false => "a sweep deletes it after reclaim.sweep-grace",
    };
    verified.notes.extend(swept.unnamed.iter().map(|file| format!("{file} is not in the catalog; {deletes}")));
    let holed = check_files(state, store, &lens, &mut verified, on).await;
    check_segments(state, store, catalog, &holed, read_percent, &mut verified, on).await;
    verified.faults.sort();
    Ok(verified)
}

/// Identity, CRC-32C and place of segments in one file.
type LiveSegments = Vec<(SegmentId, u32, Segment)>;

fn living(state: &CatalogState) -> HashMap<PhysicalFileId, LiveSegments> {
    let mut living: HashMap<PhysicalFileId, LiveSegments> = HashMap::new();
    for view in state.all_segments() {
        if let Location::File(place) = view.location {
            living.entry(place.file.clone()).or_default().push((view.id, view.crc.whole, place));
        }
    }
    living
}

/// Every closed file is there, as long as the catalog says, and lists the segments that live in it. Returns the segments
/// that live in holes.
async fn check_files(
    state: &CatalogState,
    store: &DataStore,
    lens: &HashMap<String, u64>,
    verified: &mut VerifyReport,
    on: &(dyn Fn(VerifyProgress) + Send + Sync),
) -> Vec<SegmentId> {
    let living = living(state);
    let mut looks = vec![];
    for view in state.files() {
        verified.files += 1;
        let Some(living) = living.get(&view.id) else { continue };
        // One that is still called open here is missing, on a disk: it was made before anything was said to be in it.
        let (FileState::Closed { len } | FileState::Open { durable_len: len, .. }) = view.state else { continue };
        match lens.get(view.id.as_str()).copied() {
            None => verified.faults.push(format!("{}: does not exist, {} segments live in it", view.id, living.len())),
            Some(there) if there < len => {
                verified.faults.push(format!("{}: has {there} bytes, the catalog says {len}", view.id));
            }
            Some(there) => looks.push((view.id, there, living)),
        }
    }
    on(VerifyProgress::Files(looks.len()));
    let looks = looks.into_iter().map(|(id, len, living)| async move {
        let found = survey::look(store, id, len).await;
        let fault = check_file(store, &found, living).await.err().map(|fault| format!("{}: {fault}", found.id));
        (fault, in_holes(&found, living))
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(survey::at_once(store));
    let mut holed = vec![];
    while let Some((fault, mut in_holes)) = looks.next().await {
        on(VerifyProgress::Looked);
        verified.faults.extend(fault);
        holed.append(&mut in_holes);
    }
    holed
}

fn in_holes(found: &SurveyedFile, living: &LiveSegments) -> Vec<SegmentId> {
    let in_hole = |place: &Segment| found.holes.iter().any(|hole| hole.start < place.end() && place.offset < hole.end);
    living.iter().filter(|(_, _, place)| in_hole(place)).map(|(id, ..)| *id).collect()
}

async fn check_file(store: &DataStore, found: &SurveyedFile, living: &LiveSegments) -> Result<(), String> {
    let entries: HashMap<u64, (Option<SegmentId>, u64, u32)> = match &found.content {
        FileContent::Unreadable(why) => return Err(why.clone()),
        FileContent::Index(entries) => {
            entries.iter().map(|entry| (entry.offset, (Some(entry.id), entry.len, entry.crc32c))).collect()
        }
        // It was not closed when its catalog was lost: only frames tell what is in it, and no names.
        FileContent::Frames(..) | FileContent::Nothing(_) | FileContent::Tombstone => {
            let frames = survey::frames(store, &found.id, found.len).await.map_err(|error| error.to_string())?;
            frames.into_iter().map(|frame| (frame.offset, (None, frame.len, frame.crc32c))).collect()
        }
    };
    let listed: HashMap<SegmentId, u64> =
        entries.iter().filter_map(|(offset, (id, ..))| Some(((*id)?, *offset))).collect();
    for (id, crc, place) in living {
        let here = entries.get(&place.offset).filter(|(listed, ..)| listed.is_none_or(|listed| listed == *id));
        match here {
            // A rebuild has kept the file as one segment.
            _ if place.offset < HEADER_BYTES => {}
            Some((_, len, crc32c)) if (*len, *crc32c) == (place.len, *crc) => {}
            None if !listed.contains_key(id) && matches!(found.content, FileContent::Index(_)) => {
                return Err(format!("its footer does not list segment {id}"));
            }
            None if !matches!(found.content, FileContent::Index(_)) => {
                return Err(format!("segment {id} is beyond the last whole frame"));
            }
            _ => return Err(format!("its footer places segment {id} elsewhere than the catalog")),
        }
    }
    Ok(())
}

/// Reads a share of the segments. Which ones depends on their identity alone.
async fn check_segments(
    state: &CatalogState,
    store: &DataStore,
    catalog: &Snapshot,
    holed: &[SegmentId],
    percent: u8,
    verified: &mut VerifyReport,
    on: &(dyn Fn(VerifyProgress) + Send + Sync),
) {
    let mut by_file: BTreeMap<PhysicalFileId, LiveSegments> = BTreeMap::new();
    let mut bytes = 0;
    for SegmentView { id, location, crc, .. } in state.all_segments() {
        verified.segments += 1;
        if (id.0 % 100) as u8 >= percent && !holed.contains(&id) {
            continue;
        }
        verified.read += 1;
        verified.read_bytes += location.len();
        match location {
            Location::File(place) => {
                bytes += place.len;
                by_file.entry(place.file.clone()).or_default().push((id, crc.whole, place));
            }
            Location::Inline { .. } => {
                let data = catalog.inline_data(id).await.ok().flatten();
                verified.faults.extend(judge(id, "the catalog", crc.whole, data.map(|data| crc32c(&data))));
            }
        }
    }
    on(VerifyProgress::Reading(bytes));
    let reads = by_file.into_iter().map(|(file, mut living)| async move {
        living.sort_by_key(|(_, _, place)| place.offset);
        let wanted = living.iter().map(|(_, _, place)| RangeToRead { range: place.offset..place.end(), md5: false });
        let read = survey::read(store, file, wanted.collect()).await;
        (living, read)
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(survey::at_once(store));
    while let Some((living, read)) = reads.next().await {
        for ((id, stored, place), bytewise) in living.into_iter().zip(read) {
            on(VerifyProgress::Read(place.len));
            let crc = match bytewise {
                Bytewise::Read(crc, _) => Some(crc.whole),
                Bytewise::Unreadable(_) => None,
            };
            verified.faults.extend(judge(id, place.file.as_str(), stored, crc));
        }
    }
}

fn judge(id: SegmentId, place: &str, stored: u32, found: Option<u32>) -> Option<String> {
    match found {
        Some(found) if found == stored => None,
        Some(found) => Some(format!("segment {id} in {place} has CRC-32C {found:08x}, {stored:08x} was stored")),
        None => Some(format!("segment {id} in {place} cannot be read")),
    }
}

/// Puts right in `state` and on storage what can be: settles what a crash left open, as the next start would; moves foreign
/// files on a local disk to `lost+found/`; and drops the records of segments whose file is gone or too short, if told so.
/// Returns what was done, a line each. The state's changes are left to be written.
///
/// # Errors
/// [`RecoverError`]; it can be repeated.
pub async fn repair(
    state: &mut CatalogState,
    store: &DataStore,
    epoch: u64,
    at: Millis,
    missing: Missing,
) -> Result<Vec<String>, RecoverError> {
    let recovered = recover(state, store, epoch, at, missing).await?;
    // A daemon does it a little at a time.
    state.finish_work(at);
    let mut actions = recovered.dropped;
    if recovered.brought_back > 0 {
        actions.push(format!("moved {} files back from lost+found", recovered.brought_back));
    }
    if recovered.open_files > recovered.kept {
        let settled = recovered.open_files - recovered.kept;
        actions.push(format!("settled {settled} files that had not been closed"));
    }
    if recovered.kept > 0 {
        actions.push(format!("kept {} files open that hold data which is not in the catalog", recovered.kept));
    }
    if recovered.lost_segments > 0 {
        actions.push(format!("freed {} segments that nobody was answered for or holds", recovered.lost_segments));
    }
    if recovered.set_aside > 0 {
        actions.push(format!("moved {} files that are not in the catalog to lost+found", recovered.set_aside));
    }
    let listed = store.list().await?;
    if store.capabilities().sets_aside {
        for (name, _) in listed.iter().filter(|(name, _)| name.parse::<PhysicalFileId>().is_err()) {
            let moved = store.set_aside(name).await?;
            actions.push(format!("moved {name}, which is no physical file, to {}", moved.display()));
        }
    }
    Ok(actions)
}
