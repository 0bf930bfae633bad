//! The task that writes one physical file.
//!
//! On an append store it writes group after group into a file that grows: what arrives while a group is synced is the
//! next group. On an object store it lets one group collect, closes the file, and puts it whole.
//!
//! A group for which the disk has no room is cut off again, the file is closed with what it had before, and the next group
//! gets another one, once there is room.
//!
//! Either way the group's commit to the catalog runs beside the write, and both must be durable before anybody is
//! answered. If the write fails, the catalog forgets the group and the file takes nothing more. The same happens when the
//! owner panics: guards see to it.
//!
//! # Crash
//! The commit may be there without the bytes: the next start looks at the file and drops what is not whole. The bytes
//! may be there without the commit: they are dead, and the file, if it has no name in the catalog, is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::format::{self, Entry, FRAME_BYTES, HEADER_BYTES, Header};
use super::linger::{LaneLoad, linger};
use super::pool::{Group, OpenFile, Pending};
use super::{Answer, MergeError, MergerParts, Piece};
use crate::catalog::command::{About, Command, Item, NewSegment, Outcome, Store, StoreFile, StoreToken, Stored};
use crate::catalog::record::{Holder, SegmentRecord};
use crate::catalog::{Catalog, CatalogError};
use crate::model::{Lane, LaneOf, Location, PhysicalFileId, Segment, SegmentCrc, SegmentId};
use crate::runtime::{Clock, PaidBytes};
use crate::store::{LocalFile, LocalStore, ObjectFiles, StoreError};

/// What the owners of an object store know of its recent speed, lane by lane.
#[derive(Debug, Default)]
pub struct Pace {
    latency_micros: AtomicUsize,
    in_flight: Mutex<std::collections::HashMap<super::lane::LaneKey, usize>>,
}

impl Pace {
    /// What a put takes of late; zero before the first.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_micros.load(Ordering::Relaxed) as u64)
    }

    /// Takes in what a put took: an average in which the last eight puts count for two thirds.
    fn took(&self, latency: Duration) {
        let now = usize::try_from(latency.as_micros()).unwrap_or(usize::MAX);
        let before = self.latency_micros.load(Ordering::Relaxed);
        let after = if before == 0 { now } else { before - before / 8 + now / 8 };
        self.latency_micros.store(after, Ordering::Relaxed);
    }

    fn in_flight(&self, lane: &super::lane::LaneKey) -> usize {
        self.in_flight.lock().get(lane).copied().unwrap_or(0)
    }

    fn begin<'a>(&'a self, lane: &'a super::lane::LaneKey) -> OnItsWay<'a> {
        *self.in_flight.lock().entry(lane.clone()).or_default() += 1;
        OnItsWay { pace: self, lane }
    }
}

struct OnItsWay<'a> {
    pace: &'a Pace,
    lane: &'a super::lane::LaneKey,
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.pace.in_flight.lock();
        if let Some(count) = in_flight.get_mut(self.lane) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(self.lane);
            }
        }
    }
}

/// A group as it goes to storage and to the catalog.
struct Packed {
    /// What is written, in order.
    parts: Vec<Bytes>,
    items: Vec<Item>,
    entries: Vec<Entry>,
    replies: Vec<oneshot::Sender<Answer>>,
    /// Held until the group is durable.
    _paid: Vec<PaidBytes>,
    segments: usize,
}

/// An open file in its owner's hands. However its owner ends, by a panic as well: the file takes nothing more, those
/// whose parcels it holds are told, and the pool counts one open file less.
pub(super) struct Owned {
    parts: MergerParts,
    open: Arc<OpenFile>,
    /// What has begun on an append store and has no end yet.
    file: Option<Growing>,
}

impl Owned {
    /// A file that was just opened: its pool counts it from now on.
    pub(super) fn new(parts: MergerParts, open: Arc<OpenFile>) -> Self {
        Self { parts, open, file: None }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // First of all, so that nothing is put into the file any more when what it holds is refused.
        self.parts.pools.ended(&self.open);
        refuse(&self.parts, self.parts.pools.take_group(&self.open));
        if let Some(Growing { id, len, .. }) = self.file.take()
            && let Err(error) = self.parts.catalog.note(Command::CloseFile(id.clone(), len))
        {
            tracing::debug!(file = %id, %error, "a file could not be closed in the catalog");
        }
    }
}

/// Writes a file of an append store until it is full, closed or idle.
pub(super) async fn own_growing_file(mut owned: Owned, store: LocalStore) {
    loop {
        let group = next_group(&owned.parts, &owned.open).await;
        if !group.parcels.is_empty() && !write_group(&mut owned, &store, group.parcels).await {
            return;
        }
        if group.last {
            if let Some(file) = owned.file.take() {
                close(&owned.parts, file).await;
            }
            return;
        }
    }
}

/// A file of an append store that has begun.
struct Growing {
    id: PhysicalFileId,
    ulid: u128,
    file: LocalFile,
    len: u64,
    frames: u32,
    entries: Vec<Entry>,
}

/// Waits for a group. A file to which nothing comes for a while is closed.
async fn next_group(parts: &MergerParts, open: &Arc<OpenFile>) -> Group {
    loop {
        let bell = open.bell.notified();
        let group = parts.pools.take_group(open);
        if group.last || !group.parcels.is_empty() {
            return group;
        }
        if tokio::time::timeout(parts.settings.merging.idle_close, bell).await.is_err() {
            parts.pools.close(open);
        }
    }
}

/// Writes and commits one group, then answers. False if the file takes nothing more because of a failure.
async fn write_group(owned: &mut Owned, store: &LocalStore, parcels: Vec<Pending>) -> bool {
    let Owned { parts, open, file } = owned;
    let growing = match file {
        Some(growing) => growing,
        None => match begin(parts, store, open).await {
            Ok(growing) => file.insert(growing),
            Err(error) => {
                let failed = MergeError::of_store(error, &parts.space);
                answer_all(parcels.into_iter().map(|pending| pending.reply), &failed);
                return false;
            }
        },
    };
    let header = (growing.len == 0).then(|| header_of(parts, growing.ulid));
    let mut packed = pack(&growing.id, growing.len, growing.frames, header, parcels);
    mark_savepoint(&open.key.lane, &mut packed.entries);
    let len = growing.len + packed.parts.iter().map(|part| part.len() as u64).sum::<u64>();
    let lane = open.key.lane.clone();
    let store_file = StoreFile { id: growing.id.clone(), lane, len, closes: false, upload: None };
    let commit = commit(parts, Some(store_file), std::mem::take(&mut packed.items));
    let write = growing.file.append(std::mem::take(&mut packed.parts));
    let (written, mut committed) = tokio::join!(write, commit);
    parts.metrics.group_segments.with_label_values(&["append"]).observe(packed.segments as f64);
    if written.is_ok() {
        growing.frames += packed.segments as u32;
        growing.len = len;
        growing.entries.append(&mut packed.entries);
    } else if growing.file.is_usable()
        && let Some(mut growing) = file.take()
        && let Ok((unsettled, _)) = &mut committed
    {
        // In one batch with taking the group back: no crash may leave its segments in a closed file.
        unsettled.fail_at(end(&mut growing).await);
    }
    settle(parts, written, committed, packed.replies)
}

async fn begin(parts: &MergerParts, store: &LocalStore, open: &OpenFile) -> Result<Growing, StoreError> {
    let ulid = parts.entropy.ulid();
    let id = PhysicalFileId::new(open.key.lane.job.as_ref(), parts.catalog.epoch(), ulid);
    let file = store.create(&id).await?;
    parts.metrics.files_created.inc();
    open.begins(&id);
    Ok(Growing { id, ulid, file, len: 0, frames: 0, entries: vec![] })
}

/// Writes the end of a file and tells the catalog. Whatever fails here, the next start does it.
async fn close(parts: &MergerParts, mut growing: Growing) {
    let len = end(&mut growing).await;
    let closed = parts.catalog.execute(Command::CloseFile(growing.id.clone(), len)).await;
    if let Err(error) = closed {
        tracing::debug!(file = %growing.id, %error, "a file could not be closed in the catalog");
    }
}

/// Writes the end of a file, as far as that is possible. Returns its length.
async fn end(growing: &mut Growing) -> u64 {
    if growing.len == 0 {
        return 0;
    }
    let end = format::encode_end(&growing.entries, growing.len, growing.ulid);
    let len = growing.len + end.len() as u64;
    match growing.file.append(vec![end]).await {
        Ok(_) => len,
        Err(error) => {
            if !error.is_full() {
                tracing::warn!(file = %growing.id, error = crate::error::chain(&error), "the end of a file could not be written");
            }
            growing.len
        }
    }
}

/// Lets one group collect, then puts it as one file of an object store, or into the catalog if it is tiny.
pub(super) async fn own_whole_file(owned: Owned, store: ObjectFiles) {
    let Owned { parts, open, .. } = &owned;
    wait_for_the_end_of_the_group(parts, open).await;
    parts.pools.close(open);
    let group = parts.pools.take_group(open);
    if !group.parcels.is_empty() {
        let _on_its_way = parts.pace.begin(&open.key);
        if fits_the_catalog(parts, &group) {
            store_inline(parts, group.parcels).await;
        } else {
            put_group(parts, &store, open, group.parcels).await;
        }
    }
}

/// Whether a group is so small that its bytes go into the catalog's record: one request instead of two.
fn fits_the_catalog(parts: &MergerParts, group: &Group) -> bool {
    if group.parcels.iter().any(|pending| pending.parcel.belongs_in_a_file()) {
        return false;
    }
    let settings = &parts.settings;
    let bytes: u64 = group.parcels.iter().map(|pending| pending.parcel.len()).sum();
    let inline = parts.catalog.view().space().inline_bytes;
    bytes <= settings.checkpointing.inline_bytes_max
        || (bytes <= settings.merging.inline_group_bytes_max && inline + bytes <= settings.catalog.inline_bytes_max)
}

async fn wait_for_the_end_of_the_group(parts: &MergerParts, open: &OpenFile) {
    let merging = &parts.settings.merging;
    loop {
        let bell = open.bell.notified();
        let Some(age) = open.group_age(merging.group_bytes_max.max(merging.file_bytes_max)) else { return };
        if age.urgent {
            return;
        }
        let now = Clock::instant();
        let load = LaneLoad {
            in_flight: parts.pace.in_flight(&open.key),
            oldest: now.saturating_duration_since(age.first),
            newest: now.saturating_duration_since(age.last),
            segments: age.parcels,
            latency: parts.pace.latency(),
        };
        let wait = linger(&load, &merging.linger);
        if wait.is_zero() {
            return;
        }
        // A segment that arrives rings the bell, and the question is asked anew.
        if tokio::time::timeout(wait, bell).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

async fn put_group(parts: &MergerParts, store: &ObjectFiles, open: &OpenFile, parcels: Vec<Pending>) {
    let ulid = parts.entropy.ulid();
    let id = PhysicalFileId::new(open.key.lane.job.as_ref(), parts.catalog.epoch(), ulid);
    let mut packed = pack(&id, 0, 0, Some(header_of(parts, ulid)), parcels);
    mark_savepoint(&open.key.lane, &mut packed.entries);
    let data_len: u64 = packed.parts.iter().map(|part| part.len() as u64).sum();
    packed.parts.push(format::encode_end(&packed.entries, data_len, ulid));
    let len = packed.parts.iter().map(|part| part.len() as u64).sum();
    parts.metrics.files_created.inc();
    let file = StoreFile { id: id.clone(), lane: open.key.lane.clone(), len, closes: true, upload: None };
    let commit = commit(parts, Some(file), packed.items);
    let (begun, begun_at) = (Clock::instant(), parts.catalog.clock().wall());
    let put = async {
        let put = store.put(&id, packed.parts).await;
        if put.is_ok() {
            parts.pace.took(begun.elapsed());
        }
        put
    };
    let (put, mut committed) = tokio::join!(put, commit);
    // The one clock stands still while the machine sleeps, the other may be set.
    let took = begun.elapsed().max(Duration::from_millis(parts.catalog.clock().wall().0.saturating_sub(begun_at.0)));
    if put.is_ok()
        && committed.is_ok()
        && may_have_been_dropped(parts, took)
        && let Err(error) = parts.catalog.check_owner().await
    {
        committed = Err(error);
    }
    parts.metrics.group_segments.with_label_values(&["object"]).observe(packed.segments as f64);
    settle(parts, put, committed, packed.replies);
}

/// Whether a put that took so long may have arrived after a successor took the name, dropped the segments, and deleted
/// what it had put there: it waits for the grace before it deletes. Half of it is left to clocks that differ.
fn may_have_been_dropped(parts: &MergerParts, took: Duration) -> bool {
    took > parts.settings.reclaim.delete_grace / 2
}

/// Stores parcels whose bytes go into the catalog's records.
pub async fn store_inline(parts: &MergerParts, parcels: Vec<Pending>) {
    let mut items = vec![];
    let mut replies = vec![];
    let mut paid = vec![];
    for Pending { parcel, reply } in parcels {
        let segments = parcel.pieces.into_iter().map(|piece| NewSegment {
            id: piece.id,
            about: piece.about,
            location: Location::Inline { len: piece.data.len() as u64 },
            inline: Some(piece.data),
            crc: piece.crc,
        });
        items.push(Item { segments: segments.collect(), bind: parcel.bind });
        replies.push(reply);
        paid.extend(parcel.paid);
    }
    match parts.catalog.store(Store { file: None, items }).await {
        Ok(answers) => answer_each(replies, answers),
        Err(error) => answer_all(replies.into_iter(), &error.into()),
    }
}

pub(crate) fn header_of(parts: &MergerParts, ulid: u128) -> Bytes {
    let header = Header { epoch: parts.catalog.epoch(), ulid, created: parts.catalog.now() };
    Bytes::copy_from_slice(&format::encode_header(&header))
}

/// Lays out a group behind `offset` bytes and `frames` frames.
fn pack(id: &PhysicalFileId, offset: u64, frames: u32, header: Option<Bytes>, parcels: Vec<Pending>) -> Packed {
    let mut at = offset + header.as_ref().map_or(0, |_| HEADER_BYTES);
    let mut packed = Packed {
        parts: header.into_iter().collect(),
        items: vec![],
        entries: vec![],
        replies: vec![],
        _paid: vec![],
        segments: 0,
    };
    for Pending { parcel, reply } in parcels {
        let mut segments = vec![];
        for Piece { id: segment_id, about, data, crc } in parcel.pieces {
            let len = data.len() as u64;
            let index = frames + packed.segments as u32;
            packed.parts.push(Bytes::copy_from_slice(&format::encode_frame(index, len, crc.whole)));
            packed.parts.push(data);
            at += FRAME_BYTES;
            packed.entries.push(entry_of(segment_id, &about, at, len, &crc));
            let location = Location::File(Segment { file: id.clone(), offset: at, len });
            segments.push(NewSegment { id: segment_id, about, location, inline: None, crc });
            at += len;
            packed.segments += 1;
        }
        packed.items.push(Item { segments, bind: parcel.bind });
        packed.replies.push(reply);
        packed._paid.extend(parcel.paid);
    }
    packed
}

/// What a footer says of a segment that the catalog knows, at this place.
pub(crate) fn entry_of_record(id: SegmentId, record: &SegmentRecord, place: &Segment) -> Entry {
    let savepoint = matches!(record.holder, Holder::Savepoint { .. });
    Entry { savepoint, ..entry_of(id, &record.about(), place.offset, place.len, &record.crc) }
}

pub(crate) fn entry_of(id: SegmentId, about: &About, offset: u64, len: u64, crc: &SegmentCrc) -> Entry {
    Entry {
        id,
        offset,
        len,
        crc32c: crc.whole,
        job: about.job.clone(),
        scope: about.scope,
        writer: about.writer.clone(),
        checkpoint: about.checkpoint,
        savepoint: false,
        name: about.name.clone(),
    }
}

/// The footer tells what belongs to a savepoint: it has lanes of its own.
pub(super) fn mark_savepoint(lane: &Lane, entries: &mut [Entry]) {
    let savepoint = lane.of == LaneOf::Savepoint;
    entries.iter_mut().for_each(|entry| entry.savepoint = savepoint);
}

/// Names a new file in the catalog before its first byte is written, so that no crash leaves it unnamed.
pub(crate) async fn name_file(parts: &MergerParts, lane: &Lane, ulid: u128) -> Result<PhysicalFileId, CatalogError> {
    let id = PhysicalFileId::new(lane.job.as_ref(), parts.catalog.epoch(), ulid);
    name_upload(parts, &id, lane, None).await?;
    Ok(id)
}

/// The same for a file that comes as a multipart upload, whose id the catalog remembers until the file is closed.
pub(super) async fn name_upload(
    parts: &MergerParts,
    id: &PhysicalFileId,
    lane: &Lane,
    upload: Option<String>,
) -> Result<(), CatalogError> {
    let named = StoreFile { id: id.clone(), lane: lane.clone(), len: 0, closes: false, upload };
    let (unsettled, _) = commit(parts, Some(named), vec![]).await?;
    unsettled.confirm();
    Ok(())
}

/// A commit whose bytes are not known to be durable. Dropped, by a panic as well, it never happened.
pub(super) struct Unsettled {
    catalog: Catalog,
    token: Option<StoreToken>,
}

impl Unsettled {
    /// The bytes are durable.
    pub(super) fn confirm(mut self) {
        if let Some(token) = self.token.take() {
            self.catalog.confirm(token);
        }
    }

    /// The bytes were cut off again; their file ends at `len`.
    fn fail_at(&mut self, len: u64) {
        if let Some(token) = self.token.take() {
            self.catalog.fail_at(token, len);
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.catalog.fail(token);
        }
    }
}

/// What the catalog said of a group.
pub(super) type Committed = Result<(Unsettled, Vec<Result<Stored, crate::catalog::command::Refusal>>), CatalogError>;

pub(super) async fn commit(parts: &MergerParts, file: Option<StoreFile>, items: Vec<Item>) -> Committed {
    match parts.catalog.execute(Command::Store(Store { file, items })).await? {
        Outcome::Stored(token, answers) => {
            Ok((Unsettled { catalog: parts.catalog.clone(), token: Some(token) }, answers))
        }
        _ => Err(CatalogError::Closed),
    }
}

/// Both halves of a group are over: confirms and answers, or takes it all back. Returns whether the write succeeded.
fn settle<T>(
    parts: &MergerParts,
    written: Result<T, StoreError>,
    committed: Committed,
    replies: Vec<oneshot::Sender<Answer>>,
) -> bool {
    match (written, committed) {
        (Ok(_), Ok((unsettled, answers))) => {
            unsettled.confirm();
            answer_each(replies, answers);
            true
        }
        (Ok(_), Err(error)) => {
            answer_all(replies.into_iter(), &error.into());
            false
        }
        (Err(error), committed) => {
            // That the disk is full is logged once, not for each group.
            if !error.is_full() {
                tracing::error!(error = crate::error::chain(&error), "a group could not be written");
            }
            drop(committed);
            answer_all(replies.into_iter(), &MergeError::of_store(error, &parts.space));
            false
        }
    }
}

fn answer_each(replies: Vec<oneshot::Sender<Answer>>, answers: Vec<Result<Stored, crate::catalog::command::Refusal>>) {
    for (reply, answer) in replies.into_iter().zip(answers) {
        // A writer that has left is not waiting for its answer.
        drop(reply.send(answer.map_err(MergeError::Refused)));
    }
}

fn answer_all(replies: impl Iterator<Item = oneshot::Sender<Answer>>, error: &MergeError) {
    replies.for_each(|reply| drop(reply.send(Err(error.clone()))));
}

/// Tells those whose parcels were in a file that failed.
fn refuse(parts: &MergerParts, group: Group) {
    if group.parcels.is_empty() {
        return;
    }
    let earlier = || StoreError::Failed {
        operation: "append",
        path: "the physical file".to_owned(),
        source: "an earlier group of the file failed: repeat the request".into(),
    };
    let failed = parts.space.check_write().map_or_else(MergeError::Full, |()| earlier().into());
    answer_all(group.parcels.into_iter().map(|pending| pending.reply), &failed);
}

#[cfg(test)]
mod tests;
