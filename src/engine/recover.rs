//! Before the first answer: what did the daemon before this one leave open?
//!
//! | found | then |
//! | --- | --- |
//! | a file that holds what is durable is missing or too short | the start is refused; nothing was changed |
//! | such a file is in `lost+found/` on a local disk | it is moved back |
//! | a file the catalog calls open, on HDFS | it is released first, which shuts its writer out; then as on a local disk |
//! | the same, and it cannot be released, because DataNodes are away | the start is refused; an operator can have what cannot be read of it dropped |
//! | a file the catalog calls open, on a local disk | each segment beyond what was confirmed is checked by its own CRC; the right ones are written once more, the file gets a footer behind all that is there, and is closed |
//! | the same, with data behind all that the catalog knows | the same, but it stays open in the catalog for `reclaim.sweep-grace`, so that nothing of it is given back |
//! | the same on an object store, and it is there | it counts, closed |
//! | the same, and it is not there | its name is taken, so that it cannot arrive any more; its segments are dropped |
//! | the same, and it came as a multipart upload | first of all the upload is aborted, which deletes its parts |
//! | a file on a local disk that the catalog does not name | moved to `lost+found/`; the sweep deletes it there after `reclaim.sweep-grace` |
//!
//! Confirmed segments are never contradicted by what is seen now: a segment up to a file's `durable_len` stays, and a read
//! tells if it is damaged. Beyond that, a segment of which something was never written was torn by the crash, and nobody
//! was answered for it; one torn segment says nothing about the next. One that was written as a whole and is damaged may
//! have been answered: it stays, and a read tells. A damaged header says nothing about the segments. Nothing is cut off:
//! should a newer catalog come back, what it knows of the file is still there.
//!
//! Data behind all that the catalog knows is a last group that nobody was answered for, or all that was written since an older
//! copy of the catalog was made, and nothing tells the two apart. Such a file stays open in the catalog, though nobody writes
//! it: so it is neither punched nor copied nor deleted, and the next start finds it as this one did. The deleter closes it
//! once this daemon has run for `reclaim.sweep-grace` ([`crate::reclaim::delete`]).
//!
//! On a disk a file is made, with its name durable, before a commit says that something is in it. So there a file that is
//! missing was never "never written", not even one of which nothing was confirmed yet. On an object store put and commit run
//! side by side, and it may be.
//!
//! Nothing here is needed for what was answered: that is durable and committed. Interrupted at any point, it is done
//! again by the next start. Storage is listed once for it: a request per 1,000 files on an object store.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::agreement::{LostFile, check_durable, check_not_missing, drop_lost, names, shorten};
pub use super::agreement::{Missing, RecoverError};
use crate::catalog::state::{CatalogState, UncertainFile};
use crate::format::{self, FooterEntry, FormatError};
use crate::model::{Holder, Millis, PhysicalFileId, SegmentId};
use crate::reclaim::guard::check_unnamed;
use crate::reclaim::sweep::unnamed;
use crate::store::{DataStore, StoreError};

/// Files that are looked at at a time.
const FILES_AT_ONCE: usize = 64;

/// The findings and the changes of a start.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Files that had not been closed.
    pub open_files: usize,
    /// Segments that were never answered and are not there.
    pub lost_segments: usize,
    /// Files that the catalog does not name, and that were moved to `lost+found/`.
    pub set_aside: usize,
    /// Files that came back from there.
    pub brought_back: usize,
    /// Files that hold data of which the catalog knows nothing.
    pub kept: usize,
    /// Segments that were dropped because their file is missing or too short, a line for each file.
    pub dropped: Vec<String>,
}

/// Looks at every file that was open, settles it in `state`, and sets aside what nobody names.
///
/// # Errors
/// [`RecoverError`]; the daemon must not answer then.
pub async fn recover(
    state: &mut CatalogState,
    store: &DataStore,
    epoch: u64,
    at: Millis,
    missing: Missing,
) -> Result<Recovered, RecoverError> {
    let mut recovered = Recovered::default();
    let before = state.segment_count();
    // Before the list: of another store's list, or an empty one, everything would count as lost.
    store.look().await?;
    let mut listed = store.list().await?;
    // Before anything is moved or dropped.
    check_not_missing(state, &listed)?;
    if store.capabilities().sets_aside {
        recovered.brought_back = bring_back(state, store, &mut listed).await?;
    }
    let lost = check_durable(state, store, &listed, missing)?;
    if missing != Missing::Keep {
        let shorter = shorten(state, &listed, at);
        if !shorter.is_empty() {
            let (files, named) = (shorter.len(), names(&shorter));
            tracing::warn!(files, named, "files are shorter than recorded, all that lives in them is there");
        }
    }
    // An operator's command alone asks for them, no start.
    let counted = if missing == Missing::Drop { listed.as_slice() } else { &[] };
    let mut lens: HashMap<PhysicalFileId, u64> =
        counted.iter().filter_map(|(name, len)| Some((name.parse().ok()?, *len))).collect();
    if store.capabilities().sets_aside {
        recovered.set_aside = set_aside_unnamed(state, store, epoch, listed).await;
    }
    if missing == Missing::Drop {
        recovered.dropped = lost.iter().map(|lost| drop_lost(state, lost, at)).collect();
    }
    let left_alone: HashSet<&PhysicalFileId> = lost.iter().map(|lost| &lost.id).collect();
    let mut entries = entries_by_file(state);
    let uncertain = state.uncertain_files();
    let settling = uncertain.into_iter().filter(|file| !left_alone.contains(&file.id)).map(|file| {
        let entries = entries.remove(&file.id).unwrap_or_default();
        async move { (settle(store, &file, entries).await, file.id) }
    });
    // All of them end before an error counts: nothing is under way any more when the next start looks.
    let settled: Vec<_> = stream::iter(settling).buffered(FILES_AT_ONCE).collect().await;
    let mut kept = vec![];
    for (settled, id) in settled {
        recovered.open_files += 1;
        match settled {
            Ok(Some(found)) => {
                if matches!(found, SurvivingBytes::Local { unknown_from: Some(_), .. }) {
                    kept.push(id.clone());
                }
                found.tell(&id, state, at);
            }
            Ok(None) => {}
            Err(RecoverError::Store(StoreError::StillOpen(_))) if missing == Missing::Drop => {
                let there = store.len_while_open(lens.remove(&id).unwrap_or(0));
                let lost = LostFile::still_open(state, id, there);
                recovered.dropped.push(drop_lost(state, &lost, at));
            }
            Err(error) => return Err(error),
        }
    }
    tell_kept(&kept);
    recovered.kept = kept.len();
    if left_alone.is_empty() || missing == Missing::Drop {
        state.end_loading(at);
    } else {
        // What is lost still counts as there, and would free what stands behind it. The next owner comes back to all of it.
        tracing::warn!("what else the last daemon left is not brought in order while files are missing or too short");
    }
    recovered.lost_segments = before.saturating_sub(state.segment_count());
    Ok(recovered)
}

/// The same as [`recover`], in `state` alone: nothing on storage changes, and what is missing stays in the catalog.
///
/// # Errors
/// [`RecoverError`].
pub async fn imagine(state: &mut CatalogState, store: &DataStore, at: Millis) -> Result<(), RecoverError> {
    let mut entries = entries_by_file(state);
    for file in state.uncertain_files() {
        let entries = entries.remove(&file.id).unwrap_or_default();
        let found = match store.capabilities().appends {
            true => match judge(store, &file, entries).await? {
                Some(judged) => {
                    let unknown_from = judged.unknown_from();
                    Some(SurvivingBytes::Local { torn: judged.torn, len: judged.len, unknown_from })
                }
                None if file.len > 0 => None,
                None => Some(SurvivingBytes::Object { data_len: 0, len: 0 }),
            },
            false => match store.len(&file.id).await? {
                Some(len) if len == file.len => Some(SurvivingBytes::Object { data_len: len, len }),
                _ => Some(SurvivingBytes::Object { data_len: 0, len: 0 }),
            },
        };
        if let Some(found) = found {
            found.tell(&file.id, state, at);
        }
    }
    state.finish_recovery(at);
    Ok(())
}

/// Takes the names of files that a daemon may still be uploading, of which `state` was the catalog: what it was still to
/// answer arrives before this, or never. On a local disk it is not at work any more.
///
/// # Errors
/// [`RecoverError`] if storage does not answer.
pub(super) async fn take_names(state: &CatalogState, store: &DataStore) -> Result<(), RecoverError> {
    if store.capabilities().exclusive {
        return Ok(());
    }
    let grows = store.capabilities().appends;
    let settling = state.uncertain_files().into_iter().map(|file| async move {
        match grows {
            true => store.claim(&file.id).await.map(|_| ()).map_err(RecoverError::from),
            false => settle_object(store, &file).await.map(|_| ()),
        }
    });
    let settled: Vec<_> = stream::iter(settling).buffered(FILES_AT_ONCE).collect().await;
    settled.into_iter().collect()
}

/// The entries for the footer of each open file.
fn entries_by_file(state: &CatalogState) -> HashMap<PhysicalFileId, Vec<FooterEntry>> {
    let mut entries: HashMap<PhysicalFileId, Vec<FooterEntry>> = HashMap::new();
    for file in state.uncertain_files() {
        let living = state.segments_in(&file.id);
        let listed = living.iter().filter_map(|view| {
            let place = view.location.segment()?;
            let savepoint = matches!(view.holder, Holder::Savepoint { .. });
            Some(FooterEntry::new(view.id, view.about.clone(), place, view.crc.whole, savepoint))
        });
        entries.insert(file.id, listed.collect());
    }
    entries
}

/// The part of an open file that survived.
enum SurvivingBytes {
    /// Without these segments all that is committed is there. From `unknown_from` on there is more.
    Local { torn: Vec<SegmentId>, len: u64, unknown_from: Option<u64> },
    /// It is there up to here, which is all or nothing.
    Object { data_len: u64, len: u64 },
}

impl SurvivingBytes {
    fn tell(self, file: &PhysicalFileId, state: &mut CatalogState, at: Millis) {
        match self {
            Self::Local { torn, len, unknown_from } => {
                state.drop_torn(&torn, at);
                match unknown_from {
                    Some(from) => state.keep_open(file, from.min(len), len),
                    None => state.settle_file(file, u64::MAX, len, at),
                }
            }
            Self::Object { data_len, len } => state.settle_file(file, data_len, len, at),
        }
    }
}

/// None if the file has to be looked at again by the next start.
async fn settle(
    store: &DataStore,
    file: &UncertainFile,
    entries: Vec<FooterEntry>,
) -> Result<Option<SurvivingBytes>, RecoverError> {
    match store.capabilities().appends {
        true => settle_local(store, file, entries).await.map(Some),
        false => {
            let found = settle_object(store, file).await?;
            Ok(found.map(|(data_len, len)| SurvivingBytes::Object { data_len, len }))
        }
    }
}

/// The part of an open file on a local disk that is as it was written.
struct Judged {
    len: u64,
    /// The end of what is right.
    whole_end: u64,
    /// The segments that are.
    whole: Vec<FooterEntry>,
    /// The segments whose bytes are damaged.
    damaged: Vec<SegmentId>,
    /// The segments whose bytes were never written.
    torn: Vec<SegmentId>,
    /// The end of all that the catalog knows.
    known_end: u64,
    /// Whether there is data behind it.
    has_unknown: bool,
    /// Whether an earlier start has written the file's end.
    has_end: bool,
}

impl Judged {
    fn unknown_from(&self) -> Option<u64> {
        self.has_unknown.then_some(self.known_end)
    }
}

async fn settle_local(
    store: &DataStore,
    file: &UncertainFile,
    entries: Vec<FooterEntry>,
) -> Result<SurvivingBytes, RecoverError> {
    if store.capabilities().leases {
        // Whoever was writing it may still be at it. What it was about to answer is there now, or never will be.
        store.release(&file.id).await?;
    }
    let Some(mut judged) = judge(store, file, entries).await? else {
        // Named before it was made, and nothing is in it.
        return Ok(SurvivingBytes::Local { torn: vec![], len: 0, unknown_from: None });
    };
    let unknown_from = judged.unknown_from();
    if !judged.torn.is_empty() {
        let (torn, whole) = (judged.torn.len(), judged.whole.len());
        tracing::warn!(file = %file.id, torn, whole, "segments that were not confirmed are not whole, they are dropped");
    }
    if !judged.damaged.is_empty() {
        tracing::warn!(file = %file.id, segments = names(&judged.damaged), "segments that were written as a whole are damaged, they are kept");
    }
    if judged.whole.is_empty() {
        // It is deleted like any file that nobody needs, and left as it is until then.
        return Ok(SurvivingBytes::Local { torn: judged.torn, len: judged.len, unknown_from });
    }
    judged.whole.sort_by_key(|entry| entry.offset);
    let end = match judged.has_end {
        true => Bytes::new(),
        false => format::encode_end(&judged.whole, judged.len, file.id.ulid()),
    };
    let unsure = file.durable_len.min(judged.whole_end)..judged.whole_end;
    let len = store.seal(&file.id, unsure, judged.len, end).await?;
    Ok(SurvivingBytes::Local { torn: judged.torn, len, unknown_from })
}

/// Looks at the segments that were not confirmed. None if there is no such file.
async fn judge(
    store: &DataStore,
    file: &UncertainFile,
    entries: Vec<FooterEntry>,
) -> Result<Option<Judged>, RecoverError> {
    let Some(len) = store.len(&file.id).await? else { return Ok(None) };
    let judged = {
        let (store, file) = (store.clone(), file.clone());
        #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
        let judging = tokio::task::spawn_blocking(move || judge_blocking(&store, &file, len, entries));
        judging.await
    };
    let failed = |error: tokio::task::JoinError| StoreError::Failed {
        operation: "get",
        path: file.id.to_string(),
        source: error.into(),
    };
    judged.map_err(failed)?.map_err(|source| RecoverError::Read { file: file.id.clone(), source })
}

fn judge_blocking(
    store: &DataStore,
    file: &UncertainFile,
    len: u64,
    entries: Vec<FooterEntry>,
) -> Result<Option<Judged>, FormatError> {
    let open = match store.open(&file.id, len, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut judged = Judged {
        len,
        whole_end: file.durable_len.min(len),
        whole: vec![],
        damaged: vec![],
        torn: vec![],
        known_end: file.durable_len,
        has_unknown: false,
        has_end: false,
    };
    for entry in entries {
        let data_end = entry.offset + entry.len;
        let mut end = match data_end <= file.durable_len {
            true => Some(data_end),
            false => format::frame_end(&open, &entry, len)?,
        };
        if end.is_none() {
            end = format::damaged_end(&open, &entry, len)?;
            judged.damaged.extend(end.map(|_| entry.id));
        }
        judged.known_end = judged.known_end.max(end.unwrap_or(data_end));
        match end {
            Some(end) => {
                judged.whole_end = judged.whole_end.max(end);
                judged.whole.push(entry);
            }
            None => judged.torn.push(entry.id),
        }
    }
    judged.has_unknown = format::holds_data_from(&open, judged.known_end, len)?;
    if let Ok((_, listed)) = format::read_end(&open, len) {
        let listed: HashSet<SegmentId> = listed.iter().map(|entry| entry.id).collect();
        judged.has_end = judged.whole.iter().all(|entry| listed.contains(&entry.id));
    }
    Ok(Some(judged))
}

fn tell_kept(kept: &[PhysicalFileId]) {
    if !kept.is_empty() {
        tracing::warn!(
            files = kept.len(),
            names = names(kept),
            "files hold data that the catalog does not know: nobody was answered for it, or the catalog is older than its data; \
             they are kept as they are for reclaim.sweep-grace"
        );
    }
}

/// The length of a file's whole frames and its length; `None` if it has to be looked at again by the next start.
async fn settle_object(store: &DataStore, file: &UncertainFile) -> Result<Option<(u64, u64)>, RecoverError> {
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

/// Moves files that the catalog names and that were set aside back to their places: the catalog that was in use then was
/// not the one that had named them.
async fn bring_back(
    state: &CatalogState,
    store: &DataStore,
    listed: &mut Vec<(String, u64)>,
) -> Result<usize, RecoverError> {
    let there: HashSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let missing = |file: &PhysicalFileId| state.file(file).is_some() && !there.contains(file.as_str());
    let aside = store.set_aside_files().await?;
    let aside: Vec<PhysicalFileId> = aside.iter().filter_map(|(name, _)| name.parse().ok()).filter(missing).collect();
    for file in &aside {
        store.bring_back(file).await?;
    }
    if !aside.is_empty() {
        tracing::warn!(
            files = aside.len(),
            names = names(&aside),
            "files came back from lost+found: the catalog names them"
        );
        *listed = store.list().await?;
    }
    Ok(aside.len())
}

/// Moves the files on a local disk that the catalog does not name to `lost+found/`. What cannot be moved stays, which harms
/// nothing.
async fn set_aside_unnamed(state: &CatalogState, store: &DataStore, epoch: u64, listed: Vec<(String, u64)>) -> usize {
    let swept = unnamed(listed, |files| state.unknown_files(files));
    if let Err(refused) = check_unnamed(epoch, &swept.unnamed, swept.listed) {
        tracing::error!(%refused, "files that the catalog does not name are left where they are");
        return 0;
    }
    let mut moved = vec![];
    for file in swept.unnamed {
        match store.set_aside(file.as_str()).await {
            Ok(_) => moved.push(file),
            Err(error) => tracing::warn!(%file, error = crate::error::chain(&error), "a file could not be set aside"),
        }
    }
    if !moved.is_empty() {
        tracing::warn!(
            files = moved.len(),
            names = names(&moved),
            "moved files that the catalog does not name to lost+found"
        );
    }
    moved.len()
}

/// Logs what a start found, if anything.
pub(super) fn log(recovered: &Recovered) {
    if *recovered != Recovered::default() {
        let Recovered { open_files, lost_segments, set_aside, brought_back, kept, .. } = recovered;
        tracing::info!(
            open_files,
            lost_segments,
            set_aside,
            brought_back,
            kept,
            "took over what the daemon before this one left open"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::command::{
        Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, Store, StoreFile, StoreItem,
    };
    use crate::catalog::mutation::Mutation;
    use crate::catalog::state::written::WrittenRecords;
    use crate::format::{FRAME_BYTES, Header};
    use crate::metrics::Metrics;
    use crate::model::{
        About, FileState, Lane, LaneOf, Location, ObjectHead, ObjectHeaders, Segment, SegmentHasher, StateScope, Writer,
    };
    use crate::store::{AppendStore, LocalStore, Traffic};

    const LEN: u64 = 1000;

    /// A file that a crash left open with three segments of which nothing was confirmed, and the catalog that names it.
    async fn left_open(store: &LocalStore) -> (CatalogState, PhysicalFileId, Vec<u64>) {
        let job: crate::model::JobId = "j".parse().unwrap();
        let id = PhysicalFileId::new(Some(&job), 1, 42);
        let header = Header { epoch: 1, ulid: 42, created: Millis(1) };
        let mut bytes = format::encode_header(&header).to_vec();
        let (mut items, mut offsets) = (vec![], vec![]);
        for number in 0..3u8 {
            let data = vec![number + 1; LEN as usize];
            let mut hasher = SegmentHasher::default();
            hasher.update(&data);
            let crc = hasher.finish();
            bytes.extend(format::encode_frame(number.into(), LEN, crc.whole));
            let place = Segment { file: id.clone(), offset: bytes.len() as u64, len: LEN };
            offsets.push(place.offset);
            bytes.extend(data);
            let (scope, writer) = (StateScope::Shared, Writer::default());
            let about = About { job: job.clone(), scope, writer, checkpoint: None, name: None };
            let location = Location::File(place);
            let segment = NewSegment { id: SegmentId(number.into()), about, location, inline: None, crc };
            items.push(StoreItem {
                segments: vec![segment],
                bind: Bind::Checkpoint { idempotency_key: None, run: None },
            });
        }
        let mut file = store.create(&id).await.unwrap();
        file.append(vec![Bytes::from(bytes.clone())]).await.unwrap();
        let lane = Lane { job: Some(job.clone()), scope: StateScope::Shared, of: LaneOf::All };
        let file = StoreFile { id: id.clone(), lane, len: bytes.len() as u64, closes: false, upload: None };
        let mut running = CatalogState::default();
        running.apply(Command::CreateJob(job), Millis(1)).unwrap();
        running.apply(Command::Store(Store { file: Some(file), items }), Millis(1)).unwrap();
        let mut state = CatalogState::default();
        for mutation in running.take_mutations() {
            let Mutation::Put { key, value } = mutation else { panic!("nothing was deleted") };
            state.load(&key, &value).unwrap();
        }
        (state, id, offsets)
    }

    fn flip(folder: &std::path::Path, file: &PhysicalFileId, at: u64) {
        let path = folder.join(file.as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[usize::try_from(at).unwrap()] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    fn overwrite(folder: &std::path::Path, file: &PhysicalFileId, at: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(folder.join(file.as_str())).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    }

    #[tokio::test]
    async fn segments_that_were_not_confirmed_are_judged_each_by_its_own_crc() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let (mut state, file, offsets) = left_open(&store).await;
        flip(folder.path(), &file, 3); // the header of the file
        flip(folder.path(), &file, offsets[0] - FRAME_BYTES + 5); // the header of a frame
        overwrite(folder.path(), &file, offsets[1], &[0; LEN as usize]); // a segment that was never written
        flip(folder.path(), &file, offsets[2] + 7); // the bytes of one that was
        let before = std::fs::metadata(folder.path().join(file.as_str())).unwrap().len();

        let all = DataStore::Local(store.clone());
        let recovered = recover(&mut state, &all, 2, Millis(2), Missing::Refuse).await.unwrap();

        assert_eq!((recovered.open_files, recovered.lost_segments, recovered.kept), (1, 1, 0));
        let left: Vec<SegmentId> = state.segments_in(&file).iter().map(|view| view.id).collect();
        assert_eq!(left, [SegmentId(0), SegmentId(2)]);
        let bytes = std::fs::read(folder.path().join(file.as_str())).unwrap();
        assert!(bytes.len() as u64 > before, "nothing is cut off");
        let (_, entries) = format::read_end(&bytes[..], bytes.len() as u64).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), left);
        let len = bytes.len() as u64;
        assert!(matches!(state.file(&file).unwrap().state, FileState::Closed { len: closed } if closed == len));
        assert_eq!(state.check(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_with_data_that_the_catalog_does_not_know_stays_open_at_each_start() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let (mut state, file, _) = left_open(&store).await;
        let path = folder.path().join(file.as_str());
        let known = std::fs::metadata(&path).unwrap().len();
        let mut data = SegmentHasher::default();
        data.update(&[9; LEN as usize]);
        let mut unknown = format::encode_frame(3, LEN, data.finish().whole).to_vec();
        unknown.extend([9; LEN as usize]);
        overwrite(folder.path(), &file, known, &unknown);

        let all = DataStore::Local(store.clone());
        let mut lens = vec![];
        for _ in 0..2 {
            let recovered = recover(&mut state, &all, 2, Millis(2), Missing::Refuse).await.unwrap();
            assert_eq!((recovered.open_files, recovered.lost_segments, recovered.kept), (1, 0, 1));
            let len = std::fs::metadata(&path).unwrap().len();
            assert_eq!(state.file(&file).unwrap().state, FileState::Open { durable_len: known, len });
            assert_eq!(state.check(), Vec::<String>::new());
            lens.push(len);
        }

        assert_eq!(lens[0], lens[1], "an end was written twice");
        assert_eq!(state.kept_files(2).collect::<Vec<_>>(), [(file.clone(), lens[0])]);
        state.drop_torn(&[0, 1, 2].map(SegmentId), Millis(3));
        recover(&mut state, &all, 2, Millis(3), Missing::Refuse).await.unwrap();
        assert!(matches!(state.file(&file).unwrap().state, FileState::Open { .. }), "though all that is known is dead");
        state.apply(Command::CloseFile(file.clone(), lens[0]), Millis(4)).unwrap();
        assert!(matches!(state.file(&file).unwrap().state, FileState::Forgotten { .. }));
    }

    #[tokio::test]
    async fn a_file_that_is_missing_on_a_disk_was_never_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let (mut state, file, _) = left_open(&store).await;
        std::fs::remove_file(folder.path().join(file.as_str())).unwrap();
        let all = DataStore::Local(store);

        let refused = recover(&mut state, &all, 2, Millis(2), Missing::Refuse).await;

        assert!(matches!(refused, Err(RecoverError::Lost { files: 1, segments: 3, .. })), "{refused:?}");
        let kept = recover(&mut state, &all, 2, Millis(2), Missing::Keep).await.unwrap();
        assert_eq!((kept.lost_segments, state.all_segments().count()), (0, 3));
        let dropped = recover(&mut state, &all, 2, Millis(2), Missing::Drop).await.unwrap();
        assert_eq!((dropped.dropped.len(), state.all_segments().count()), (1, 0));
    }

    #[tokio::test]
    async fn a_closed_file_that_is_shorter_than_recorded_is_taken_as_it_is_if_all_that_lives_in_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let (mut state, file, offsets) = left_open(&store).await;
        let there = offsets[2] + LEN;
        state.settle_file(&file, u64::MAX, there + 5000, Millis(1));
        let closed_at = |state: &CatalogState| match state.file(&file).unwrap().state {
            FileState::Closed { len } => len,
            other => panic!("{other:?}"),
        };
        assert_eq!(closed_at(&state), there + 5000);
        let all = DataStore::Local(store);

        recover(&mut state, &all, 2, Millis(2), Missing::Refuse).await.unwrap();

        assert_eq!((closed_at(&state), state.all_segments().count()), (there, 3));
        assert_eq!(state.space().physical_bytes, there);
        let path = folder.path().join(file.as_str());
        std::fs::File::options().write(true).open(path).unwrap().set_len(there - 1).unwrap();
        let refused = recover(&mut state, &all, 2, Millis(2), Missing::Refuse).await;
        assert!(matches!(refused, Err(RecoverError::Lost { files: 1, segments: 3, .. })), "{refused:?}");
    }

    /// A put of an object with one segment in a file of its own.
    fn put(file: &PhysicalFileId, id: u128) -> Command {
        let job: crate::model::JobId = "bucket/sink".parse().unwrap();
        let (scope, writer) = (StateScope::Exclusive, Writer::default());
        let about = About { job: job.clone(), scope, writer, checkpoint: None, name: None };
        let location = Location::File(Segment { file: file.clone(), offset: 0, len: LEN });
        let crc = SegmentHasher::default().finish();
        let segment = NewSegment { id: SegmentId(id), about, location, inline: None, crc };
        let head = ObjectHead {
            len: LEN,
            part_lens: vec![],
            etag: format!("e-{id}"),
            modified: Millis(1),
            headers: ObjectHeaders::default(),
            checksum: None,
        };
        let content = ObjectContent::Segments { segments: vec![SegmentId(id)], head, upload: None };
        let (bucket, key) = ("bucket".into(), "k".into());
        let object = PutObject { bucket, key, condition: Condition::None, content };
        let items = vec![StoreItem { segments: vec![segment], bind: Bind::Object(Box::new(object)) }];
        let lane = Lane { job: Some(job), scope: StateScope::Exclusive, of: LaneOf::All };
        let file = StoreFile { id: file.clone(), lane, len: LEN, closes: true, upload: None };
        Command::Store(Store { file: Some(file), items })
    }

    #[tokio::test]
    async fn what_stands_behind_a_version_in_a_lost_file_stays_until_that_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
        let [whole, lost] = [1, 2].map(|ulid| PhysicalFileId::new(None, 1, ulid));
        store.create(&whole).await.unwrap().append(vec![vec![1; LEN as usize].into()]).await.unwrap();
        let mut running = CatalogState::default();
        running.apply(Command::CreateBucket("bucket".into()), Millis(1)).unwrap();
        let Outcome::Stored(token, _) = running.apply(put(&whole, 1), Millis(1)).unwrap() else { panic!("not stored") };
        running.confirm(token, Millis(1));
        running.apply(put(&lost, 2), Millis(1)).unwrap();
        let mut state = WrittenRecords::of(&mut running).loaded();
        let all = DataStore::Local(store);

        for _ in 0..2 {
            recover(&mut state, &all, 2, Millis(2), Missing::Keep).await.unwrap();
            assert_eq!(state.all_segments().count(), 2);
        }
        let dropped = recover(&mut state, &all, 2, Millis(2), Missing::Drop).await.unwrap();

        assert_eq!(dropped.dropped.len(), 1, "{dropped:?}");
        assert_eq!(state.object("bucket", "k").unwrap().segments(), [SegmentId(1)]);
        assert_eq!(state.check(), Vec::<String>::new());
    }
}
