//! Segments that do not fit into memory: each is streamed into a file of its own.
//!
//! Here the bytes come first and the commit last, one after the other: an object store cannot complete a multipart
//! upload on condition, so a daemon that lost the catalog must not answer because of an upload alone.
//!
//! # Crash
//! The file is named in the catalog before its first byte is written, on an object store with the id of its multipart
//! upload. Unfinished, it holds no segment; the next start aborts the upload and closes the file, and it is deleted.
//!
//! | crash between | leaves | healed by |
//! | --- | --- | --- |
//! | upload begun, file not named | an upload without parts, which takes no space | a life-cycle rule of the bucket, if wanted |
//! | file named, upload not complete | parts, and a file in the catalog | the next start aborts the upload it is named with |
//! | upload complete, segment not committed | a file without a segment | the next start closes it, it is deleted |
//!
//! An upload that cannot be aborted keeps its file open in the catalog, so that the next start tries again.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;

use super::format::{self, FRAME_BYTES, FRAME_TAIL_BYTES, HEADER_BYTES};
use super::owner::{commit, entry_of, header_of, mark_savepoint, name_upload};
use super::{MergeError, MergerParts};
use crate::catalog::Catalog;
use crate::catalog::command::{About, Bind, Command, Item, NewSegment, StoreFile, Stored};
use crate::model::{Lane, Location, PhysicalFileId, Segment, SegmentHasher, SegmentId};
use crate::runtime::{BudgetError, ByteBudget, Failure, PaidBytes, TaskGroup};
use crate::store::{DataStore, LocalFile, ObjectFiles, StoreError, Upload};

/// Parts of one upload that are on their way at a time.
const PARTS_IN_FLIGHT_MAX: usize = 4;

/// A large segment on its way into a file of its own. Dropped before [`Self::finish`], it leaves nothing behind.
pub struct BigSegment {
    parts: MergerParts,
    id: SegmentId,
    ulid: u128,
    file: PhysicalFileId,
    lane: Lane,
    about: About,
    announced: u64,
    written: u64,
    hasher: SegmentHasher,
    sink: Option<Sink>,
    /// Whether its commit has begun, which ends by itself.
    seen_through: bool,
}

enum Sink {
    Local(LocalFile),
    Object(Box<ObjectSink>),
}

/// Collects parts of at least `part_bytes` and uploads a few of them at a time.
///
/// The part that collects and one on its way are paid for from the start, so that a segment that was begun gets on; each
/// further one on its way is paid for if there is memory.
struct ObjectSink {
    upload: Upload,
    part: Vec<Bytes>,
    part_len: u64,
    part_bytes: u64,
    in_flight: FuturesUnordered<oneshot::Receiver<Result<(), StoreError>>>,
    tasks: TaskGroup,
    budget: ByteBudget,
    _paid: PaidBytes,
}

impl BigSegment {
    pub(super) async fn begin(parts: MergerParts, id: SegmentId, about: About, len: u64) -> Result<Self, MergeError> {
        let paid = pay_for_parts(&parts).await?;
        let ulid = parts.entropy.ulid();
        let lane = Lane { job: Some(about.job.clone()), ..parts.lane_of(&about).lane };
        let file = PhysicalFileId::new(lane.job.as_ref(), parts.catalog.epoch(), ulid);
        parts.metrics.files_created.inc();
        let hasher = SegmentHasher::default();
        let mut big = Self {
            parts,
            id,
            ulid,
            file,
            lane,
            about,
            announced: len,
            written: 0,
            hasher,
            sink: None,
            seen_through: false,
        };
        big.open(paid).await?;
        let frame = Bytes::copy_from_slice(&format::encode_streamed_frame(0, len));
        let header = header_of(&big.parts, ulid);
        big.push(header).await?;
        big.push(frame).await?;
        Ok(big)
    }

    /// Names the file and opens it. An upload is begun before it is named, and given up if that fails.
    async fn open(&mut self, paid: Option<PaidBytes>) -> Result<(), MergeError> {
        match (self.parts.store.clone(), paid) {
            (DataStore::Local(store), _) => {
                name_upload(&self.parts, &self.file, &self.lane, None).await?;
                let created = store.create(&self.file).await;
                self.sink = Some(Sink::Local(created.map_err(|error| self.failed(error))?));
            }
            (DataStore::Object(_), None) => return Err(MergeError::ShuttingDown),
            (DataStore::Object(store), Some(paid)) => {
                let upload = begin_upload(&self.parts, store, &self.file).await?;
                let id = upload.id().to_owned();
                self.sink = Some(Sink::Object(Box::new(ObjectSink::new(&self.parts, upload, paid))));
                name_upload(&self.parts, &self.file, &self.lane, Some(id)).await?;
            }
        }
        Ok(())
    }

    /// Its identity.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Takes the next bytes. Returns when there is room for more; on an append store they are written then.
    ///
    /// # Errors
    /// [`MergeError::Length`] if these are more bytes than were announced; [`MergeError::Full`]; [`MergeError::Store`].
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the segment with the call.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), MergeError> {
        self.written += bytes.len() as u64;
        if self.written > self.announced {
            return Err(MergeError::Length { announced: self.announced, sent: self.written });
        }
        self.parts.space.admit(bytes.len() as u64)?;
        self.hasher.update(&bytes);
        self.push(bytes).await
    }

    fn failed(&self, error: StoreError) -> MergeError {
        MergeError::of_store(error, &self.parts.space)
    }

    async fn push(&mut self, bytes: Bytes) -> Result<(), MergeError> {
        match &mut self.sink {
            Some(Sink::Local(file)) => {
                let appended = file.append_unsynced(vec![bytes]).await;
                appended.map_err(|error| self.failed(error))?;
            }
            Some(Sink::Object(sink)) => sink.push(bytes).await?,
            None => return Err(MergeError::ShuttingDown),
        }
        Ok(())
    }

    /// All bytes are written: makes them durable, then commits what they mean.
    ///
    /// # Errors
    /// [`MergeError`]; nothing is left behind then.
    pub async fn finish(mut self, bind: Bind) -> Result<Stored, MergeError> {
        if self.written != self.announced {
            return Err(MergeError::Length { announced: self.announced, sent: self.written });
        }
        let crc = std::mem::take(&mut self.hasher).finish();
        let offset = HEADER_BYTES + FRAME_BYTES;
        let data_len = offset + self.written + FRAME_TAIL_BYTES;
        let mut entry = entry_of(self.id, &self.about, offset, self.written, &crc);
        mark_savepoint(&self.lane, std::slice::from_mut(&mut entry));
        let tail = Bytes::copy_from_slice(&format::encode_frame_tail(0, crc.whole));
        let end = format::encode_end(&[entry], data_len, self.ulid);
        let len = data_len + end.len() as u64;
        match self.sink.take() {
            Some(Sink::Local(mut file)) => {
                let appended = file.append(vec![tail, end]).await;
                appended.map_err(|error| self.failed(error))?;
            }
            Some(Sink::Object(mut sink)) => {
                let completed = sink.complete([tail, end]).await;
                if let Err(error) = completed {
                    // If it was completed all the same, its file holds no segment and is deleted.
                    self.sink = Some(Sink::Object(sink));
                    return Err(error.into());
                }
            }
            None => return Err(MergeError::ShuttingDown),
        }
        let location = Location::File(Segment { file: self.file.clone(), offset, len: self.written });
        let segment = NewSegment { id: self.id, about: self.about.clone(), location, inline: None, crc };
        let file = StoreFile { id: self.file.clone(), lane: self.lane.clone(), len, closes: true, upload: None };
        // The bytes are there: from here on it is seen through, whether or not the writer waits.
        self.seen_through = true;
        let (parts, (reply, answer)) = (self.parts.clone(), oneshot::channel());
        self.parts.tasks.spawn("big-segment-commit", Failure::FailsItsWork, async move {
            let stored = commit_whole(&parts, file, Item { segments: vec![segment], bind }).await;
            // A writer that has left is not waiting for its answer.
            drop(reply.send(stored));
        });
        answer.await.unwrap_or(Err(MergeError::ShuttingDown))
    }
}

impl Drop for BigSegment {
    /// Unless it was finished, its file takes nothing more and is deleted like any file without living segments.
    fn drop(&mut self) {
        let (catalog, file) = (self.parts.catalog.clone(), self.file.clone());
        let sink = self.sink.take();
        if self.seen_through || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.parts.tasks.spawn("big-segment-end", Failure::FailsItsWork, async move {
            if let Some(Sink::Object(sink)) = sink
                && !sink.abort().await
            {
                return; // the next start tries again
            }
            give_up(&catalog, file).await;
        });
    }
}

/// Commits a file whose bytes are durable, with the one segment in it.
async fn commit_whole(parts: &MergerParts, file: StoreFile, item: Item) -> Result<Stored, MergeError> {
    let id = file.id.clone();
    let (unsettled, mut answers) = match commit(parts, Some(file), vec![item]).await {
        Ok(committed) => committed,
        Err(error) => {
            give_up(&parts.catalog, id).await;
            return Err(error.into());
        }
    };
    unsettled.confirm();
    parts.metrics.group_segments.with_label_values(&["big"]).observe(1.0);
    answers.pop().map_or(Err(MergeError::ShuttingDown), |answer| answer.map_err(MergeError::Refused))
}

/// A file will not be finished. Nothing happens if it is closed.
async fn give_up(catalog: &Catalog, file: PhysicalFileId) {
    if let Err(error) = catalog.execute(Command::CloseFile(file.clone(), 0)).await {
        tracing::debug!(%file, %error, "an unfinished file is left to the next start");
    }
}

/// Two parts, on an object store; a disk takes the bytes as they come.
async fn pay_for_parts(parts: &MergerParts) -> Result<Option<PaidBytes>, BudgetError> {
    let DataStore::Object(_) = parts.store else { return Ok(None) };
    let bytes = 2 * parts.settings.store.part_bytes;
    parts.budget.pay(bytes, parts.settings.limits.admission_timeout).await.map(Some)
}

/// Begins an upload, and gives it up if nobody waits for it any more.
async fn begin_upload(parts: &MergerParts, store: ObjectFiles, file: &PhysicalFileId) -> Result<Upload, MergeError> {
    let (done, begun) = oneshot::channel();
    let file = file.clone();
    parts.tasks.spawn("upload-begin", Failure::FailsItsWork, async move {
        if let Err(Ok(upload)) = done.send(store.begin(&file).await) {
            upload.abort().await;
        }
    });
    Ok(begun.await.map_err(|_| MergeError::ShuttingDown)??)
}

impl ObjectSink {
    fn new(parts: &MergerParts, upload: Upload, paid: PaidBytes) -> Self {
        Self {
            upload,
            part: vec![],
            part_len: 0,
            part_bytes: parts.settings.store.part_bytes,
            in_flight: FuturesUnordered::new(),
            tasks: parts.tasks.clone(),
            budget: parts.budget.clone(),
            _paid: paid,
        }
    }

    async fn push(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.part_len += bytes.len() as u64;
        self.part.push(bytes);
        if self.part_len >= self.part_bytes {
            self.send_part().await?;
        }
        Ok(())
    }

    /// Sends the part off as soon as its way is paid for.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        let mut paid = None;
        while !self.in_flight.is_empty() && paid.is_none() {
            if self.in_flight.len() < PARTS_IN_FLIGHT_MAX {
                paid = self.budget.try_pay(self.part_bytes);
            }
            if paid.is_none() {
                self.next_part().await?;
            }
        }
        let part = self.upload.part(std::mem::take(&mut self.part));
        self.part_len = 0;
        let (done, uploaded) = oneshot::channel();
        // A task of its own, so that a part goes on while the next one arrives.
        self.tasks.spawn("part-upload", Failure::FailsItsWork, async move {
            let sent = part.await;
            drop(paid);
            drop(done.send(sent));
        });
        self.in_flight.push(uploaded);
        Ok(())
    }

    async fn complete(&mut self, end: [Bytes; 2]) -> Result<(), StoreError> {
        for bytes in end {
            self.push(bytes).await?;
        }
        if !self.part.is_empty() {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.next_part().await?;
        }
        self.upload.complete().await
    }

    /// Gives the upload up. Parts that are on their way arrive before, or they would stay. Returns whether nothing is left.
    async fn abort(mut self) -> bool {
        while self.in_flight.next().await.is_some() {}
        self.upload.abort().await
    }

    /// Waits for one of the parts that are on their way.
    async fn next_part(&mut self) -> Result<(), StoreError> {
        match self.in_flight.next().await {
            Some(Ok(uploaded)) => uploaded,
            Some(Err(gone)) => Err(StoreError::Failed {
                operation: "multipart_part",
                path: "a large file".to_owned(),
                source: gone.into(),
            }),
            None => Ok(()),
        }
    }
}
