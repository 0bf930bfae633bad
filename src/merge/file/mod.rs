//! The one writer of a physical file: its header, its frames, its end.
//!
//! The next bytes are laid out in memory ([`FileWriter::push`]) and then brought to storage ([`FileWriter::write`],
//! [`FileWriter::sync`]). On an append store the file grows with each of these. On an object store the bytes collect until
//! they are put as one object, or, if they do not fit into memory, go as parts of a multipart upload.
//!
//! # Invariants
//! - Frames follow each other without a gap, each is an entry of the footer, and their order is the same.
//! - What was laid out and could not be written is as if it never had been: the next frame, or the end, stands where the
//!   last one that was written ended.
//!
//! # Crash
//! The catalog knows the file, or nobody does: naming it is left to the callers, and so is what becomes of one without an end.

use bytes::Bytes;

use super::parts::PartsUpload;
use crate::format::{self, FooterEntry, Header};
use crate::model::{About, Lane, LaneOf, Millis, PhysicalFileId, Segment, SegmentCrc, SegmentId};
use crate::store::{FileWrites, GrowingFile, ObjectFiles, Readers, StoreError};

/// A physical file that is being written.
#[derive(Debug)]
pub(crate) struct FileWriter {
    id: PhysicalFileId,
    created: Millis,
    /// Whether all in it belongs to savepoints, which have lanes of their own. The footer tells.
    savepoint: bool,
    /// Bytes of the file, with those that are laid out.
    len: u64,
    /// Its segments, with those that are laid out.
    entries: Vec<FooterEntry>,
    /// Laid out and not written yet.
    laid_out: Vec<Bytes>,
    written: Mark,
    sink: Sink,
}

/// The position up to which a file was written.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    len: u64,
    entries: usize,
}

/// The place where the bytes go.
#[derive(Debug)]
enum Sink {
    Growing(Box<dyn GrowingFile>),
    Whole(ObjectFiles),
    Parts(Box<PartsUpload>),
}

impl FileWriter {
    /// Begins a file; on an append store it is there when this returns, without a byte.
    ///
    /// # Errors
    /// [`StoreError`] of an append store.
    pub(crate) async fn create(
        writes: &FileWrites,
        id: PhysicalFileId,
        lane: &Lane,
        readers: Readers,
        now: Millis,
    ) -> Result<Self, StoreError> {
        let sink = match (writes, readers) {
            (FileWrites::Growing(store), Readers::AsItGrows) => Sink::Growing(store.create(&id).await?),
            (FileWrites::Growing(store), Readers::OnceClosed) => Sink::Growing(store.create_unread(&id).await?),
            (FileWrites::Whole(store), _) => Sink::Whole(store.clone()),
        };
        Ok(Self::new(sink, id, lane, now))
    }

    /// Begins a file that comes as a multipart upload.
    pub(super) fn of_parts(upload: PartsUpload, id: PhysicalFileId, lane: &Lane, now: Millis) -> Self {
        Self::new(Sink::Parts(Box::new(upload)), id, lane, now)
    }

    fn new(sink: Sink, id: PhysicalFileId, lane: &Lane, created: Millis) -> Self {
        let (savepoint, written) = (lane.of == LaneOf::Savepoint, Mark::default());
        Self { id, created, savepoint, len: 0, entries: vec![], laid_out: vec![], written, sink }
    }

    /// Its name.
    pub(crate) fn id(&self) -> &PhysicalFileId {
        &self.id
    }

    /// Bytes of the file, with those that are laid out.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Lays out a segment. Returns its place.
    pub(crate) fn push(&mut self, id: SegmentId, about: &About, data: Bytes, crc: &SegmentCrc) -> Segment {
        self.begin();
        let len = data.len() as u64;
        self.lay_out(&format::encode_frame(self.frames(), len, crc.whole));
        self.push_data(data);
        self.list(id, about, len, self.len - len, crc)
    }

    /// Lays out the beginning of a segment of `len` bytes that come later and whose checksum is not known yet.
    pub(super) fn push_head(&mut self, len: u64) {
        self.begin();
        self.lay_out(&format::encode_streamed_frame(self.frames(), len));
    }

    /// Lays out bytes of a segment that was begun.
    pub(super) fn push_data(&mut self, data: Bytes) {
        self.len += data.len() as u64;
        self.laid_out.push(data);
    }

    /// Lays out what stands behind the last bytes of a segment that was begun. Returns its place.
    pub(super) fn push_tail(&mut self, id: SegmentId, about: &About, len: u64, crc: &SegmentCrc) -> Segment {
        let offset = self.len - len;
        self.lay_out(&format::encode_frame_tail(self.frames(), crc.whole));
        self.list(id, about, len, offset, crc)
    }

    /// Lays out the end, behind which nothing comes. Returns the length of the file.
    pub(crate) fn push_end(&mut self) -> u64 {
        self.begin();
        let end = format::encode_end(&self.entries, self.len, self.id.ulid());
        self.push_data(end);
        self.len
    }

    /// Brings what is laid out on its way to storage; a later [`Self::sync`] makes it durable. A file that is put whole stays
    /// in memory until then.
    ///
    /// # Errors
    /// [`StoreError`]; what was laid out is taken back.
    pub(crate) async fn write(&mut self) -> Result<(), StoreError> {
        let written = match &mut self.sink {
            Sink::Growing(file) => file.append_unsynced(std::mem::take(&mut self.laid_out)).await,
            Sink::Whole(_) => return Ok(()),
            Sink::Parts(upload) => upload.push(std::mem::take(&mut self.laid_out)).await,
        };
        self.note(written)
    }

    /// Writes what is laid out, and waits until all of the file is durable. Only one that grows takes more after that.
    ///
    /// # Errors
    /// [`StoreError`]; what was laid out is taken back. A file that grows takes more if [`Self::is_usable`].
    pub(crate) async fn sync(&mut self) -> Result<(), StoreError> {
        let laid_out = std::mem::take(&mut self.laid_out);
        let written = match &mut self.sink {
            Sink::Growing(file) => file.append(laid_out).await,
            Sink::Whole(store) => store.put(&self.id, laid_out).await,
            Sink::Parts(upload) => match upload.push(laid_out).await {
                Ok(()) => upload.complete().await,
                failed => failed,
            },
        };
        self.note(written)
    }

    /// Writes the end behind what is written, and waits until it is durable. Nothing comes behind it.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(super) async fn sync_end(&mut self) -> Result<(), StoreError> {
        debug_assert!(self.laid_out.is_empty(), "a segment would not be kept for its readers");
        self.push_end();
        let Sink::Growing(file) = &mut self.sink else { return self.sync().await };
        let written = file.append_end(std::mem::take(&mut self.laid_out)).await;
        self.note(written)
    }

    /// Nothing comes any more, and all is synced: when this returns all of it can be read, and no store keeps it for its
    /// writer.
    ///
    /// # Errors
    /// [`StoreError`]; what was synced is durable all the same.
    pub(crate) async fn finish(&mut self) -> Result<(), StoreError> {
        match &mut self.sink {
            Sink::Growing(file) => file.close().await,
            Sink::Whole(_) | Sink::Parts(_) => Ok(()),
        }
    }

    /// Whether the store wants the file to end.
    pub(super) fn should_end(&self) -> bool {
        match &self.sink {
            Sink::Growing(file) => file.should_end(),
            Sink::Whole(_) | Sink::Parts(_) => false,
        }
    }

    /// Whether it takes more after a failure.
    pub(super) fn is_usable(&self) -> bool {
        match &self.sink {
            Sink::Growing(file) => file.is_usable(),
            Sink::Whole(_) | Sink::Parts(_) => false,
        }
    }

    /// Gives the file up. Returns whether the store keeps nothing that the catalog has to remember.
    pub(super) async fn give_up(self) -> bool {
        match self.sink {
            Sink::Parts(upload) => upload.abort().await,
            Sink::Growing(_) | Sink::Whole(_) => true,
        }
    }

    /// The header goes with the first bytes, so that it costs no write of its own.
    fn begin(&mut self) {
        if self.len == 0 {
            let header = Header { epoch: self.id.epoch(), ulid: self.id.ulid(), created: self.created };
            self.lay_out(&format::encode_header(&header));
        }
    }

    fn lay_out(&mut self, bytes: &[u8]) {
        self.push_data(Bytes::copy_from_slice(bytes));
    }

    fn frames(&self) -> u32 {
        self.entries.len() as u32
    }

    fn list(&mut self, id: SegmentId, about: &About, len: u64, offset: u64, crc: &SegmentCrc) -> Segment {
        let place = Segment { file: self.id.clone(), offset, len };
        self.entries.push(FooterEntry::new(id, about.clone(), &place, crc.whole, self.savepoint));
        place
    }

    fn note(&mut self, written: Result<(), StoreError>) -> Result<(), StoreError> {
        match written {
            Ok(()) => self.written = Mark { len: self.len, entries: self.entries.len() },
            Err(_) => {
                self.len = self.written.len;
                self.entries.truncate(self.written.entries);
            }
        }
        written
    }
}

#[cfg(test)]
mod tests;
