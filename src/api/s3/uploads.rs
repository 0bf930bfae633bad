//! Multipart uploads in progress. Until a part has to go to storage, an upload lives here alone, in memory.
//!
//! Most multipart uploads that stream workers send have one part of a few kilobytes. Kept here until their completion,
//! such an upload costs one durable commit. An upload with a part that is too large to wait in memory is *recorded* in
//! the catalog, and that part goes to storage at once.
//!
//! # Invariants
//! - The bytes of parts in memory are paid for twice: from the daemon's budget, and from this registry's share of it.
//! - An upload that is being completed is neither completed a second time, nor aborted, nor expired.
//!
//! # Crash
//! Parts in memory are gone, and with them uploads that were not recorded: completing them fails with `NoSuchUpload`
//! or `InvalidPart`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::OnceCell;

use super::checksums::Algorithm;
use crate::catalog::record::{ObjectHeaders, PartRecord, UploadRecord};
use crate::model::{Millis, SegmentCrc};
use crate::runtime::{ByteBudget, PaidBytes};

/// Uploads that may be in progress at a time.
const UPLOADS_MAX: usize = 10_000;
/// What a part costs beside its bytes.
const PART_OVERHEAD_BYTES: u64 = 512;

/// What was said when an upload was created.
#[derive(Debug)]
pub(super) struct Upload {
    pub id: String,
    pub bucket: String,
    pub key: String,
    pub headers: ObjectHeaders,
    /// The checksum that the object will have.
    pub checksum: Option<ChecksumPlan>,
    pub created: Millis,
    /// Set once the catalog knows the upload. A `tokio` cell, because recording is waited for and happens once.
    pub recorded: OnceCell<()>,
}

/// How the checksum of a multipart object is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChecksumPlan {
    pub algorithm: Algorithm,
    pub full_object: bool,
}

impl Upload {
    /// The upload as the catalog records it.
    pub(super) fn record(&self) -> UploadRecord {
        UploadRecord {
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            headers: self.headers.clone(),
            checksum: self.checksum.map(|plan| (plan.algorithm.name().to_owned(), plan.full_object)),
            created: self.created,
            parts: vec![],
        }
    }

    /// An upload that the catalog remembers from before a restart.
    pub(super) fn from_record(id: &str, record: &UploadRecord) -> Self {
        let plan = |(name, full_object): &(String, bool)| {
            Some(ChecksumPlan { algorithm: Algorithm::parse(name).ok()?, full_object: *full_object })
        };
        Self {
            id: id.to_owned(),
            bucket: record.bucket.clone(),
            key: record.key.clone(),
            headers: record.headers.clone(),
            checksum: record.checksum.as_ref().and_then(plan),
            created: record.created,
            recorded: OnceCell::new_with(Some(())),
        }
    }
}

/// A part that waits in memory.
#[derive(Debug)]
pub(super) struct MemoryPart {
    pub data: Bytes,
    pub crc: SegmentCrc,
    pub record: PartRecord,
    /// Paid to the daemon.
    pub _paid: Option<PaidBytes>,
    /// Taken from the share of multipart uploads.
    pub _share: PaidBytes,
}

/// A part as it is seen by listings and completions.
#[derive(Debug, Clone)]
pub(super) struct PartView {
    pub record: PartRecord,
    /// Its bytes, if they are in memory.
    pub memory: Option<(Bytes, SegmentCrc)>,
}

/// Why an upload cannot be completed or aborted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotNow {
    /// It is not here.
    Gone,
    /// Somebody is completing it.
    Completing,
}

/// The uploads in progress.
#[derive(Debug)]
pub(super) struct Uploads {
    entries: Mutex<BTreeMap<String, Entry>>,
    share: ByteBudget,
}

#[derive(Debug)]
struct Entry {
    upload: Arc<Upload>,
    touched: Millis,
    parts: BTreeMap<u16, MemoryPart>,
    completing: bool,
}

/// The right to complete an upload. Dropped without [`Completion::done`], the upload is as it was before.
#[derive(Debug)]
pub(super) struct Completion {
    uploads: Arc<Uploads>,
    id: String,
    done: bool,
}

impl Uploads {
    /// A registry whose parts take `memory_bytes` at most.
    pub(super) fn new(memory_bytes: u64) -> Self {
        let gauge = IntGauge::new("multipart_memory_bytes", "Bytes of parts in memory");
        let gauge = gauge.expect("the name and help of the gauge are constants");
        Self { entries: Mutex::default(), share: ByteBudget::new(memory_bytes, gauge) }
    }

    /// Takes in a new upload; false if there are too many.
    pub(super) fn create(&self, upload: Upload) -> bool {
        let mut entries = self.entries.lock();
        let room = entries.len() < UPLOADS_MAX;
        if room {
            let entry = Entry::new(Arc::new(upload));
            entries.insert(entry.upload.id.clone(), entry);
        }
        room
    }

    /// Takes in an upload that the catalog remembers, unless it is here.
    pub(super) fn adopt(&self, upload: Upload, now: Millis) -> Arc<Upload> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(upload.id.clone()).or_insert_with(|| Entry::new(Arc::new(upload)));
        entry.touched = now;
        Arc::clone(&entry.upload)
    }

    /// An upload, by its id; it counts as used at `now`.
    pub(super) fn find(&self, id: &str, now: Millis) -> Option<Arc<Upload>> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(id)?;
        entry.touched = now;
        Some(Arc::clone(&entry.upload))
    }

    /// Room for a part of `len` bytes, if there is some.
    pub(super) fn share(&self, len: u64) -> Option<PaidBytes> {
        self.share.try_pay(len + PART_OVERHEAD_BYTES)
    }

    /// Keeps a part, in place of one with the same number; false if the upload is gone.
    pub(super) fn put_part(&self, id: &str, number: u16, part: MemoryPart) -> bool {
        let replaced = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(id) else { return false };
            entry.parts.insert(number, part)
        };
        drop(replaced);
        true
    }

    /// Forgets a part whose successor is on storage.
    pub(super) fn drop_part(&self, id: &str, number: u16) {
        let dropped = self.entries.lock().get_mut(id).and_then(|entry| entry.parts.remove(&number));
        drop(dropped);
    }

    /// The parts in memory.
    pub(super) fn parts(&self, id: &str) -> BTreeMap<u16, PartView> {
        let entries = self.entries.lock();
        let parts = entries.get(id).into_iter().flat_map(|entry| &entry.parts);
        let view = |part: &MemoryPart| PartView {
            record: part.record.clone(),
            memory: Some((part.data.clone(), part.crc.clone())),
        };
        parts.map(|(number, part)| (*number, view(part))).collect()
    }

    /// Begins to complete an upload, which nobody else may then.
    pub(super) fn begin_completion(self: &Arc<Self>, id: &str) -> Result<Completion, NotNow> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(id).ok_or(NotNow::Gone)?;
        if std::mem::replace(&mut entry.completing, true) {
            return Err(NotNow::Completing);
        }
        Ok(Completion { uploads: Arc::clone(self), id: id.to_owned(), done: false })
    }

    /// Forgets an upload.
    pub(super) fn remove(&self, id: &str) -> Result<Arc<Upload>, NotNow> {
        let removed = {
            let mut entries = self.entries.lock();
            match entries.get(id) {
                None => return Err(NotNow::Gone),
                Some(entry) if entry.completing => return Err(NotNow::Completing),
                Some(_) => entries.remove(id),
            }
        };
        removed.map(|entry| entry.upload).ok_or(NotNow::Gone)
    }

    /// The uploads to keys of `bucket` that begin with `prefix`.
    pub(super) fn list(&self, bucket: &str, prefix: &str) -> Vec<Arc<Upload>> {
        let entries = self.entries.lock();
        let uploads = entries.values().map(|entry| &entry.upload);
        uploads.filter(|upload| upload.bucket == bucket && upload.key.starts_with(prefix)).cloned().collect()
    }

    /// Forgets the uploads to a bucket that is gone.
    pub(super) fn drop_bucket(&self, bucket: &str) {
        self.take(|entry| entry.upload.bucket == bucket);
    }

    /// Forgets uploads whose last request was too long ago, and names those that were forgotten.
    pub(super) fn expire(&self, too_old: impl Fn(Millis) -> bool) -> Vec<Arc<Upload>> {
        self.take(|entry| too_old(entry.touched))
    }

    fn take(&self, doomed: impl Fn(&Entry) -> bool) -> Vec<Arc<Upload>> {
        let taken: BTreeMap<_, _> =
            self.entries.lock().extract_if(.., |_, entry| !entry.completing && doomed(entry)).collect();
        taken.into_values().map(|entry| entry.upload).collect()
    }

    /// Whether an upload is here.
    pub(super) fn has(&self, id: &str) -> bool {
        self.entries.lock().contains_key(id)
    }
}

impl Entry {
    fn new(upload: Arc<Upload>) -> Self {
        Self { touched: upload.created, upload, parts: BTreeMap::new(), completing: false }
    }
}

impl Completion {
    /// The object is stored: forgets the upload.
    pub(super) fn done(mut self) {
        self.done = true;
        let removed = self.uploads.entries.lock().remove(&self.id);
        drop(removed);
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if !self.done
            && let Some(entry) = self.uploads.entries.lock().get_mut(&self.id)
        {
            entry.completing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(id: &str) -> Upload {
        Upload {
            id: id.into(),
            bucket: "b".into(),
            key: "k".into(),
            headers: ObjectHeaders::default(),
            checksum: None,
            created: Millis(0),
            recorded: OnceCell::new(),
        }
    }

    fn part(uploads: &Uploads, len: u64) -> MemoryPart {
        let record = PartRecord { segment: None, len, etag: String::new(), checksum: None, modified: Millis(0) };
        let share = uploads.share(len).unwrap();
        MemoryPart { data: Bytes::new(), crc: SegmentCrc::default(), record, _paid: None, _share: share }
    }

    #[test]
    fn an_upload_is_completed_once_at_a_time() {
        let uploads = Arc::new(Uploads::new(1000));
        uploads.create(upload("u"));

        let first = uploads.begin_completion("u").unwrap();
        assert_eq!(uploads.begin_completion("u").unwrap_err(), NotNow::Completing);
        assert_eq!(uploads.remove("u").unwrap_err(), NotNow::Completing);
        assert!(uploads.expire(|_| true).is_empty());

        drop(first); // It failed: the upload is as before.
        uploads.begin_completion("u").unwrap().done();
        assert_eq!(uploads.begin_completion("u").unwrap_err(), NotNow::Gone);
    }

    #[test]
    fn parts_share_a_bounded_memory_and_give_it_back() {
        let uploads = Uploads::new(2000);
        uploads.create(upload("u"));

        assert!(uploads.put_part("u", 1, part(&uploads, 1000)));
        assert!(uploads.share(1000).is_none());
        uploads.drop_part("u", 1);

        assert!(uploads.share(1000).is_some());
        assert!(!uploads.put_part("other", 1, part(&uploads, 1)));
    }

    #[test]
    fn the_last_upload_of_a_part_counts() {
        let uploads = Uploads::new(10_000);
        uploads.create(upload("u"));

        uploads.put_part("u", 1, part(&uploads, 1));
        uploads.put_part("u", 1, part(&uploads, 2));

        assert_eq!(uploads.parts("u")[&1].record.len, 2);
    }

    #[test]
    fn uploads_without_requests_expire() {
        let uploads = Uploads::new(0);
        uploads.create(upload("old"));
        uploads.create(upload("used"));
        uploads.find("used", Millis(500));

        let expired = uploads.expire(|touched| touched < Millis(400));

        assert_eq!(expired.iter().map(|upload| upload.id.as_str()).collect::<Vec<_>>(), ["old"]);
        assert!(uploads.has("used"));
    }

    #[test]
    fn records_survive_their_form_in_the_catalog() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc64Nvme, full_object: true };
        let before = Upload { checksum: Some(plan), ..upload("u") };

        let after = Upload::from_record("u", &before.record());

        assert_eq!(after.checksum, Some(plan));
        assert!(after.recorded.get().is_some());
    }
}
