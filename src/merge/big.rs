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
use tokio::sync::oneshot;

use super::MergeError;
use super::context::{WriteContext, commit};
use super::file::FileWriter;
use super::parts::PartsUpload;
use crate::catalog::Catalog;
use crate::catalog::command::{Bind, Command, NewSegment, StoreFile, StoreItem, Stored};
use crate::metrics::labels::GroupWrite;
use crate::model::{About, Lane, Location, PhysicalFileId, SegmentHasher, SegmentId};
use crate::runtime::{BudgetError, Failure, PaidBytes, reply};
use crate::store::{FileUpload, FileWrites, ObjectFiles, Readers, StoreError};

/// A large segment on its way into a file of its own. Dropped before [`Self::finish`], it leaves nothing behind.
pub struct BigSegment {
    context: WriteContext,
    id: SegmentId,
    name: PhysicalFileId,
    lane: Lane,
    about: About,
    announced: u64,
    written: u64,
    hasher: SegmentHasher,
    /// None before it has begun.
    file: Option<FileWriter>,
    /// Whether its commit has begun, which ends by itself.
    seen_through: bool,
}

crate::runtime::opaque_debug!(BigSegment);

impl BigSegment {
    pub(super) async fn begin(
        context: WriteContext,
        id: SegmentId,
        about: About,
        len: u64,
    ) -> Result<Self, MergeError> {
        let paid = pay_for_parts(&context).await?;
        let lane = Lane { job: Some(about.job.clone()), ..context.lane_of(&about).lane };
        let name = context.file_id(&lane, context.entropy.ulid());
        context.metrics.files_created.inc();
        let hasher = SegmentHasher::default();
        let mut big = Self {
            context,
            id,
            name,
            lane,
            about,
            announced: len,
            written: 0,
            hasher,
            file: None,
            seen_through: false,
        };
        let file = big.open(paid).await?;
        file.push_head(len);
        big.send().await?;
        Ok(big)
    }

    /// Names the file and opens it. An upload is begun before it is named, and given up if that fails.
    async fn open(&mut self, paid: Option<PaidBytes>) -> Result<&mut FileWriter, MergeError> {
        let now = self.context.catalog.now();
        match (self.context.store.writes(), paid) {
            (growing @ FileWrites::Growing(_), _) => {
                // Before the file is there, so that no crash leaves one that nobody names.
                self.context.name_file(&self.name, &self.lane, None).await?;
                let created =
                    FileWriter::create(&growing, self.name.clone(), &self.lane, Readers::OnceClosed, now).await;
                let file = created.map_err(|error| self.failed(error))?;
                Ok(self.file.insert(file))
            }
            (FileWrites::Whole(_), None) => Err(MergeError::ShuttingDown),
            (FileWrites::Whole(store), Some(paid)) => {
                let upload = begin_upload(&self.context, store, &self.name).await?;
                let id = upload.id().to_owned();
                let WriteContext { settings, budget, tasks, .. } = &self.context;
                let upload = PartsUpload::new(upload, settings.store.part_bytes, paid, budget.clone(), tasks.clone());
                // Kept before it is named: should that fail, the upload is given up with the segment.
                self.file = Some(FileWriter::of_parts(upload, self.name.clone(), &self.lane, now));
                self.context.name_file(&self.name, &self.lane, Some(id)).await?;
                self.file.as_mut().ok_or(MergeError::ShuttingDown)
            }
        }
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
        self.context.space.admit(bytes.len() as u64)?;
        self.hasher.update(&bytes);
        self.file.as_mut().ok_or(MergeError::ShuttingDown)?.push_data(bytes);
        self.send().await
    }

    fn failed(&self, error: StoreError) -> MergeError {
        MergeError::of_store(error, &self.context.space)
    }

    /// Sends what is laid out in the file.
    async fn send(&mut self) -> Result<(), MergeError> {
        let sent = self.file.as_mut().ok_or(MergeError::ShuttingDown)?.write().await;
        sent.map_err(|error| self.failed(error))
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
        let file = self.file.as_mut().ok_or(MergeError::ShuttingDown)?;
        let place = file.push_tail(self.id, &self.about, self.written, &crc);
        let len = file.push_end();
        // An upload that fails here may have been completed all the same: its file holds no segment and is deleted.
        let mut ended = file.sync().await;
        if ended.is_ok() {
            // Before it is named: it is read from then on.
            ended = file.finish().await;
        }
        ended.map_err(|error| self.failed(error))?;
        let location = Location::File(place);
        let segment = NewSegment { id: self.id, about: self.about.clone(), location, inline: None, crc };
        let file = StoreFile { id: self.name.clone(), lane: self.lane.clone(), len, closes: true, upload: None };
        // The bytes are there: from here on it is seen through, whether or not the writer waits.
        self.seen_through = true;
        let (context, (writer, answer)) = (self.context.clone(), oneshot::channel());
        self.context.tasks.spawn("big-segment-commit", Failure::FailsItsWork, async move {
            let stored = commit_whole(&context, file, StoreItem { segments: vec![segment], bind }).await;
            reply(writer, stored);
        });
        answer.await.unwrap_or(Err(MergeError::ShuttingDown))
    }
}

impl Drop for BigSegment {
    /// Unless it was finished, its file takes nothing more and is deleted like any file without living segments.
    fn drop(&mut self) {
        let (catalog, name) = (self.context.catalog.clone(), self.name.clone());
        let file = self.file.take();
        if self.seen_through || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.context.tasks.spawn("big-segment-end", Failure::FailsItsWork, async move {
            // Before the catalog forgets the upload: it is what the next start tries again with.
            if let Some(file) = file
                && !file.give_up().await
            {
                return;
            }
            close_unfinished(&catalog, name).await;
        });
    }
}

/// Commits a file whose bytes are durable, with the one segment in it.
async fn commit_whole(context: &WriteContext, file: StoreFile, item: StoreItem) -> Result<Stored, MergeError> {
    let id = file.id.clone();
    let (unsettled, mut answers) = match commit(&context.catalog, Some(file), vec![item]).await {
        Ok(committed) => committed,
        Err(error) => {
            close_unfinished(&context.catalog, id).await;
            return Err(error.into());
        }
    };
    unsettled.confirm();
    context.metrics.group_segments.of(GroupWrite::Big).observe(1.0);
    answers.pop().map_or(Err(MergeError::ShuttingDown), |answer| answer.map_err(MergeError::Refused))
}

/// A file will not be finished. Nothing happens if it is closed.
async fn close_unfinished(catalog: &Catalog, file: PhysicalFileId) {
    if let Err(error) = catalog.execute(Command::CloseFile(file.clone(), 0)).await {
        tracing::debug!(%file, %error, "an unfinished file is left to the next start");
    }
}

/// Two parts, on an object store; a file that grows takes the bytes as they come.
async fn pay_for_parts(context: &WriteContext) -> Result<Option<PaidBytes>, BudgetError> {
    if context.store.capabilities().appends {
        return Ok(None);
    }
    let bytes = 2 * context.settings.store.part_bytes;
    context.budget.pay(bytes, context.settings.limits.admission_timeout).await.map(Some)
}

/// Begins an upload, and gives it up if nobody waits for it any more.
async fn begin_upload(
    context: &WriteContext,
    store: ObjectFiles,
    file: &PhysicalFileId,
) -> Result<FileUpload, MergeError> {
    let (done, begun) = oneshot::channel();
    let file = file.clone();
    context.tasks.spawn("upload-begin", Failure::FailsItsWork, async move {
        if let Err(Ok(upload)) = done.send(store.begin(&file).await) {
            upload.abort().await;
        }
    });
    Ok(begun.await.map_err(|_| MergeError::ShuttingDown)??)
}
