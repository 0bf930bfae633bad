//! The parts of multipart uploads. [`super::completion`] makes objects of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ulid::Ulid;

use super::{MemoryPart, PartBytes, PartView, Upload, UploadsFull};
use crate::catalog::command::{Bind, Command, Refusal};
use crate::catalog::state::{StoredPart, UploadView};
use crate::engine::intake::{Arrived, Body, Counts, Digests, Rejected, Whole};
use crate::engine::{Engine, EngineError};
use crate::metrics::labels::UploadDropReason;
use crate::model::{NewUpload, ObjectChecksum, PartHead};
use crate::runtime::{Failure, PaidBytes};

/// An upload to a key, as a client names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadName {
    /// Its id.
    pub id: String,
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

/// A part that was uploaded.
#[derive(Debug, Clone)]
pub struct UploadedPart {
    /// Its entity tag, without quotes.
    pub etag: String,
    /// The checksums that its bytes turned out to have.
    pub digests: Digests,
}

impl Engine {
    /// Creates an upload, and returns its id. One that somebody may go on with after a restart is durable then.
    ///
    /// # Errors
    /// [`EngineError::TooManyUploads`]; [`EngineError::Refused`] if there is no such bucket.
    pub async fn create_upload(&self, upload: NewUpload) -> Result<String, EngineError> {
        self.check_bucket(&upload.bucket)?;
        let id = Ulid(self.entropy.ulid()).to_string();
        let view = UploadView { id: id.clone(), upload: Arc::new(upload), created: self.clock.now() };
        let upload = self.admit(Upload::new(view))?;
        if self.outlives_the_daemon(&upload)
            && let Err(error) = self.record_upload(&upload).await
        {
            self.uploads.remove(&id);
            return Err(error);
        }
        Ok(id)
    }

    /// Whether somebody may go on with an upload after this daemon: whoever has begun it, or, where another daemon takes over at once,
    /// also who would begin anew after a restart.
    fn outlives_the_daemon(&self, upload: &Upload) -> bool {
        upload.layout.resumable || self.settings.cluster.is_some()
    }

    /// Takes in a new upload. Those that give way to it are aborted meanwhile.
    fn admit(&self, upload: Upload) -> Result<Arc<Upload>, EngineError> {
        let admitted = self.uploads.create(upload, self.clock.now());
        let (upload, gone) = admitted.map_err(|UploadsFull| EngineError::TooManyUploads)?;
        if !gone.is_empty() {
            let engine = self.clone();
            self.tasks().spawn("multipart-give-way", Failure::FailsItsWork, async move {
                engine.drop_uploads(UploadDropReason::GaveWay, gone).await;
            });
        }
        Ok(upload)
    }

    /// Returns the request that created an upload which takes parts.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such upload to this key.
    pub fn upload(&self, name: &UploadName) -> Result<Arc<NewUpload>, EngineError> {
        Ok(Arc::clone(&self.open_upload(name)?.view.upload))
    }

    /// The same with the parts that have arrived, by number.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub fn upload_parts(&self, name: &UploadName) -> Result<(Arc<NewUpload>, BTreeMap<u16, PartHead>), EngineError> {
        let upload = self.open_upload(name)?;
        let parts = self.part_views(&upload).into_iter().map(|(number, part)| (number, part.head)).collect();
        Ok((Arc::clone(&upload.view.upload), parts))
    }

    /// The uploads to keys of a bucket that begin with `prefix`, by key and then by age.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket.
    pub fn uploads_below(&self, bucket: &str, prefix: &str) -> Result<Vec<UploadView>, EngineError> {
        self.check_bucket(bucket)?;
        let mut uploads = self.uploads.list_unrecorded(bucket, prefix);
        uploads.extend(self.catalog.uploads_below(bucket, prefix));
        uploads.sort_by(|a, b| (&a.upload.key, &a.id).cmp(&(&b.upload.key, &b.id)));
        uploads.dedup_by(|a, b| a.id == b.id);
        Ok(uploads)
    }

    /// Receives a body as a part of an upload: into memory if it may be lost there, else to storage.
    ///
    /// # Errors
    /// [`Rejected`]; a part of that number that was there is there still.
    pub async fn put_part<B: Body>(
        &self,
        name: &UploadName,
        number: u16,
        body: B,
    ) -> Result<UploadedPart, Rejected<B::Fault>> {
        let upload = self.open_upload(name)?;
        let len = body.announced();
        let received = self.receive_part(&upload, number, body).await;
        let part = self.counted::<B, _>(Counts::Object, received)?;
        // The upload counts as used when the part has arrived, which may be long after it was begun.
        self.uploads.find(upload.id(), self.clock.now());
        self.count_bytes(Counts::Object, len);
        Ok(part)
    }

    async fn receive_part<B: Body>(
        &self,
        upload: &Arc<Upload>,
        number: u16,
        body: B,
    ) -> Result<UploadedPart, Rejected<B::Fault>> {
        let len = body.announced();
        let fits = self.settings.limits.multipart_part_in_memory_bytes_max.min(self.settings.store.part_bytes) >= len;
        let share = if fits && !self.outlives_the_daemon(upload) { self.uploads.share(len) } else { None };
        match share {
            Some(share) => self.keep_part(upload, number, body, share).await,
            None => self.store_part(upload, number, body).await,
        }
    }

    async fn keep_part<B: Body>(
        &self,
        upload: &Upload,
        number: u16,
        body: B,
        share: PaidBytes,
    ) -> Result<UploadedPart, Rejected<B::Fault>> {
        let len = body.announced();
        let (Whole { data, crc, mut paid }, digests) = self.receive(body).await?;
        // It waits for the completion of its upload, whatever becomes of the connection that brought it.
        paid.iter_mut().for_each(PaidBytes::belongs_to_nobody);
        let etag = self.etag(None, &digests);
        let head = self.part_head(upload, len, &etag, &digests);
        if !self.uploads.put_part(upload.id(), number, MemoryPart { data, crc, head, _paid: paid, _share: share }) {
            return Err(no_such_upload(upload.id()).into());
        }
        Ok(UploadedPart { etag, digests })
    }

    async fn store_part<B: Body>(
        &self,
        upload: &Arc<Upload>,
        number: u16,
        body: B,
    ) -> Result<UploadedPart, Rejected<B::Fault>> {
        self.record_upload(upload).await?;
        let about = upload.layout.about.clone();
        let mut etag = String::new();
        let bind = |arrived: &Arrived| {
            etag = self.etag(arrived.segment, &arrived.digests);
            let part = self.part_head(upload, arrived.len, &etag, &arrived.digests);
            Bind::Part { upload: upload.id().to_owned(), number, part }
        };
        let id = self.merger.new_part_id(upload.id(), number);
        let (_, arrived) = self.take_in(id, about, body, bind).await?;
        self.uploads.drop_part(upload.id(), number);
        Ok(UploadedPart { etag, digests: arrived.digests })
    }

    fn part_head(&self, upload: &Upload, len: u64, etag: &str, digests: &Digests) -> PartHead {
        let asked = upload.view.upload.checksum.as_ref().map(|(algorithm, _)| algorithm.as_str());
        let checksum = digests.get(asked.unwrap_or(ObjectChecksum::DEFAULT_ALGORITHM)).map(str::to_owned);
        PartHead { len, etag: etag.to_owned(), checksum, modified: self.clock.now() }
    }

    /// Gives up an upload, with its parts.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such upload to this key.
    pub async fn abort_upload(&self, name: &UploadName) -> Result<(), EngineError> {
        let upload = self.remembered_upload(name)?;
        // A completion that is on its way has its turn first: afterwards there is nothing to abort.
        let _turn = upload.turn.lock().await;
        if !self.uploads.remove(upload.id()) {
            return Err(no_such_upload(upload.id()));
        }
        if upload.is_recorded() {
            self.catalog.execute(Command::AbortUpload(upload.id().to_owned())).await?;
        }
        Ok(())
    }

    /// The upload of this id to this key, which takes parts.
    fn open_upload(&self, name: &UploadName) -> Result<Arc<Upload>, EngineError> {
        let upload = self.remembered_upload(name)?;
        if self.is_open(&upload) { Ok(upload) } else { Err(no_such_upload(&name.id)) }
    }

    /// The upload of this id to this key, wherever it is remembered. Its end may be on its way: whoever wants to end it has
    /// to wait for its turn, and then see whether it is still open.
    pub(super) fn remembered_upload(&self, name: &UploadName) -> Result<Arc<Upload>, EngineError> {
        let UploadName { id, bucket, key } = name;
        self.check_bucket(bucket)?;
        let now = self.clock.now();
        let upload = self.uploads.find(id, now).or_else(|| {
            let known = self.catalog.upload(id);
            known.map(|view| self.uploads.adopt(Upload::known(view), now))
        });
        let asked_for = |upload: &Arc<Upload>| upload.bucket() == bucket && upload.key() == key;
        upload.filter(asked_for).ok_or_else(|| no_such_upload(id))
    }

    /// Whether an upload has not been completed or aborted, even if that is not durable yet.
    pub(super) fn is_open(&self, upload: &Upload) -> bool {
        self.uploads.has(upload.id()) && (!upload.is_recorded() || self.catalog.upload(upload.id()).is_some())
    }

    /// The parts of an upload: those in memory, and those on storage that they do not replace.
    pub(super) fn part_views(&self, upload: &Upload) -> BTreeMap<u16, PartView> {
        let stored = self.catalog.parts(upload.id()).into_iter();
        let view = |StoredPart { number, head, segment }| {
            let bytes = PartBytes::Stored(segment);
            (number, PartView { head, bytes })
        };
        let mut parts: BTreeMap<u16, PartView> = stored.map(view).collect();
        parts.extend(self.uploads.parts(upload.id()));
        parts
    }

    /// Records the upload in the catalog; once.
    async fn record_upload(&self, upload: &Arc<Upload>) -> Result<(), EngineError> {
        let record = || async {
            let UploadView { id, upload, created } = upload.view.clone();
            self.catalog
                .execute(Command::CreateUpload(id, upload, created))
                .await
                .map(|_| ())
                .map_err(EngineError::from)
        };
        upload.recorded.get_or_try_init(record).await?;
        if self.uploads.has(upload.id()) {
            return Ok(());
        }
        // It was aborted meanwhile, perhaps before the catalog knew it.
        self.catalog.execute(Command::AbortUpload(upload.id().to_owned())).await?;
        Err(no_such_upload(upload.id()))
    }
}

pub(super) fn no_such_upload(id: &str) -> EngineError {
    Refusal::NoSuchUpload(id.to_owned()).into()
}
