//! Multipart uploads in progress: who uses them, when they were used last, and which have to give way.
//!
//! An upload is *recorded* in the catalog before its id is answered, and each of its parts is on storage before it is
//! answered: both are there after a restart. The exception are keys whose layout says that their engine never resumes an
//! upload ([`super::layout`]): Flink's state files and `_metadata`, most of which have one part of a few kilobytes. Such an
//! upload lives here alone, in memory, and costs one durable commit, its completion. It is recorded when a part of it is
//! too large to wait in memory.
//!
//! # Invariants
//! - The bytes of parts in memory are paid for twice: from the daemon's budget, and from this registry's share of it.
//! - An upload that a request has in hands neither expires nor gives way. Completions and an abort of one upload wait for
//!   each other.
//!
//! # Crash
//! Uploads that were not recorded are gone, and so are parts in memory: completing them fails with `NoSuchUpload` or
//! `InvalidPart`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::OnceCell;

use super::checksums::Algorithm;
use super::layout::{self, Place};
use crate::catalog::record::{PartRecord, UploadRecord};
use crate::config::LimitsSettings;
use crate::model::{JobId, Millis, SegmentCrc};
use crate::runtime::{ByteBudget, Clock, PaidBytes};

/// What a part costs beside its bytes.
const PART_OVERHEAD_BYTES: u64 = 512;
/// One in so many uploads gives way at once, so that the oldest are not looked for at each new one.
const GIVE_WAY_SHARE: usize = 100;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    pub id: String,
    /// What was said when it was created.
    pub record: Arc<UploadRecord>,
    /// The checksum that the object will have.
    pub checksum: Option<ChecksumPlan>,
    /// What its key says.
    pub place: Place,
    /// Set once the catalog knows the upload. A `tokio` cell, because recording is waited for and happens once.
    pub recorded: OnceCell<()>,
    /// Whose turn it is to complete or abort it. A `tokio` mutex, because the others wait while storage works.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// How the checksum of a multipart object is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChecksumPlan {
    pub algorithm: Algorithm,
    pub full_object: bool,
}

impl ChecksumPlan {
    /// The plan as the catalog records it.
    pub(super) fn record(self) -> (String, bool) {
        (self.algorithm.name().to_owned(), self.full_object)
    }

    /// The plan of an upload that the catalog remembers.
    pub(super) fn of(record: &UploadRecord) -> Option<Self> {
        let (name, full_object) = record.checksum.as_ref()?;
        Some(Self { algorithm: Algorithm::parse(name).ok()?, full_object: *full_object })
    }
}

impl Upload {
    /// An upload that nobody knows yet.
    pub(super) fn new(id: String, record: Arc<UploadRecord>) -> Self {
        let (checksum, place) = (ChecksumPlan::of(&record), layout::place(&record.bucket, &record.key));
        Self { id, record, checksum, place, recorded: OnceCell::new(), turn: Arc::default() }
    }

    /// An upload that the catalog knows.
    pub(super) fn known(id: &str, record: &Arc<UploadRecord>) -> Self {
        Self { recorded: OnceCell::new_with(Some(())), ..Self::new(id.to_owned(), Arc::clone(record)) }
    }

    /// Whether the catalog knows it.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorded.get().is_some()
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

/// No upload gives way to a new one: too many are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// How many uploads there may be.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    all: usize,
    of_a_job: usize,
    /// Without a request for so long, an upload may give way.
    idle: Duration,
}

/// The uploads in progress.
#[derive(Debug)]
pub(super) struct Uploads {
    registry: Mutex<Registry>,
    share: ByteBudget,
    bounds: Bounds,
    /// How many have given way since somebody asked.
    gave_way: AtomicUsize,
}

#[derive(Debug, Default)]
struct Registry {
    entries: BTreeMap<String, Entry>,
    /// How many uploads each job has.
    of_job: HashMap<JobId, usize>,
}

#[derive(Debug)]
struct Entry {
    upload: Arc<Upload>,
    touched: Millis,
    /// The same for this process, by a clock that is never set.
    active: Instant,
    parts: BTreeMap<u16, MemoryPart>,
}

impl Entry {
    /// Whether no request has it in hands. They take it while the registry is locked.
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.upload) == 1
    }
}

impl Registry {
    fn insert(&mut self, upload: Upload, touched: Millis) -> Arc<Upload> {
        let upload = Arc::new(upload);
        *self.of_job.entry(upload.place.about.job.clone()).or_default() += 1;
        let entry =
            Entry { upload: Arc::clone(&upload), touched, active: Clock::instant(), parts: BTreeMap::default() };
        self.entries.insert(upload.id.clone(), entry);
        upload
    }

    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        let job = &entry.upload.place.about.job;
        if let Some(count) = self.of_job.get_mut(job) {
            *count -= 1;
            if *count == 0 {
                self.of_job.remove(job);
            }
        }
        Some(entry)
    }

    fn take(&mut self, doomed: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let doomed = self.entries.iter().filter(|(_, entry)| entry.is_free() && doomed(entry));
        let ids: Vec<String> = doomed.map(|(id, _)| id.clone()).collect();
        ids.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes out the oldest idle uploads of a job, or of all: some of `count`.
    fn give_way(&mut self, job: Option<&JobId>, count: usize, idle: Duration) -> Vec<Entry> {
        let now = Clock::instant();
        let may = |entry: &Entry| {
            let of_it = job.is_none_or(|job| entry.upload.place.about.job == *job);
            of_it && entry.is_free() && now.saturating_duration_since(entry.active) >= idle
        };
        let idle = self.entries.iter().filter(|(_, entry)| may(entry));
        let mut idle: Vec<_> = idle.map(|(id, entry)| (entry.active, entry.touched, id.clone())).collect();
        idle.sort_unstable();
        idle.truncate(count.div_ceil(GIVE_WAY_SHARE));
        idle.iter().filter_map(|(_, _, id)| self.remove(id)).collect()
    }
}

fn uploads_of(entries: Vec<Entry>) -> Vec<Arc<Upload>> {
    entries.into_iter().map(|entry| entry.upload).collect()
}

impl Uploads {
    /// A registry within these limits.
    pub(super) fn new(limits: &LimitsSettings) -> Self {
        let gauge = IntGauge::new("multipart_memory_bytes", "Bytes of parts in memory");
        let gauge = gauge.expect("the name and help of the gauge are constants");
        let bounds = Bounds {
            all: limits.multipart_uploads_max,
            of_a_job: limits.multipart_uploads_per_job_max,
            idle: limits.multipart_idle,
        };
        let share = ByteBudget::new(limits.multipart_memory_bytes, gauge);
        Self { registry: Mutex::default(), share, bounds, gave_way: AtomicUsize::new(0) }
    }

    /// Takes in a new upload, and tells which ones gave way to it.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn create(&self, upload: Upload, now: Millis) -> Result<(Arc<Upload>, Vec<Arc<Upload>>), Full> {
        let mut registry = self.registry.lock();
        let Bounds { all, of_a_job, idle } = self.bounds;
        let job = &upload.place.about.job;
        let gone = if registry.of_job.get(job).is_some_and(|count| *count >= of_a_job) {
            registry.give_way(Some(job), of_a_job, idle)
        } else if registry.entries.len() >= all {
            registry.give_way(None, all, idle)
        } else {
            return Ok((registry.insert(upload, now), vec![]));
        };
        if gone.is_empty() {
            return Err(Full);
        }
        let upload = registry.insert(upload, now);
        drop(registry);
        self.gave_way.fetch_add(gone.len(), Ordering::Relaxed);
        Ok((upload, uploads_of(gone)))
    }

    /// How many uploads have given way since the last call.
    pub(super) fn take_gave_way(&self) -> usize {
        self.gave_way.swap(0, Ordering::Relaxed)
    }

    /// Takes in an upload that the catalog remembers, and that was used last at `touched`, unless it is here.
    pub(super) fn adopt(&self, upload: Upload, touched: Millis) -> Arc<Upload> {
        let mut registry = self.registry.lock();
        match registry.entries.get_mut(&upload.id) {
            Some(entry) => Arc::clone(&entry.upload),
            None => registry.insert(upload, touched),
        }
    }

    /// An upload, by its id; it counts as used at `now`.
    pub(super) fn find(&self, id: &str, now: Millis) -> Option<Arc<Upload>> {
        let mut registry = self.registry.lock();
        let entry = registry.entries.get_mut(id)?;
        entry.touched = now;
        entry.active = Clock::instant();
        Some(Arc::clone(&entry.upload))
    }

    /// Room for a part of `len` bytes, if there is some.
    pub(super) fn share(&self, len: u64) -> Option<PaidBytes> {
        self.share.try_pay(len + PART_OVERHEAD_BYTES)
    }

    /// Keeps a part, in place of one with the same number; false if the upload is gone.
    pub(super) fn put_part(&self, id: &str, number: u16, part: MemoryPart) -> bool {
        let replaced = {
            let mut registry = self.registry.lock();
            let Some(entry) = registry.entries.get_mut(id) else { return false };
            entry.parts.insert(number, part)
        };
        drop(replaced);
        true
    }

    /// Forgets a part whose successor is on storage.
    pub(super) fn drop_part(&self, id: &str, number: u16) {
        let dropped = self.registry.lock().entries.get_mut(id).and_then(|entry| entry.parts.remove(&number));
        drop(dropped);
    }

    /// The parts in memory.
    pub(super) fn parts(&self, id: &str) -> BTreeMap<u16, PartView> {
        let registry = self.registry.lock();
        let parts = registry.entries.get(id).into_iter().flat_map(|entry| &entry.parts);
        let view = |part: &MemoryPart| PartView {
            record: part.record.clone(),
            memory: Some((part.data.clone(), part.crc.clone())),
        };
        parts.map(|(number, part)| (*number, view(part))).collect()
    }

    /// Forgets an upload; false if it is not here.
    pub(super) fn remove(&self, id: &str) -> bool {
        let removed = self.registry.lock().remove(id);
        removed.is_some()
    }

    /// The uploads to keys of `bucket` that begin with `prefix`, and that the catalog does not know.
    pub(super) fn list_unrecorded(&self, bucket: &str, prefix: &str) -> Vec<(String, Arc<UploadRecord>)> {
        let registry = self.registry.lock();
        let listed = |upload: &Upload| {
            !upload.is_recorded() && upload.record.bucket == bucket && upload.record.key.starts_with(prefix)
        };
        let uploads = registry.entries.values().map(|entry| &entry.upload).filter(|upload| listed(upload));
        uploads.map(|upload| (upload.id.clone(), Arc::clone(&upload.record))).collect()
    }

    /// Forgets the uploads to a bucket that is gone.
    pub(super) fn drop_bucket(&self, bucket: &str) {
        let taken = self.registry.lock().take(|entry| entry.upload.record.bucket == bucket);
        drop(taken);
    }

    /// Forgets uploads whose last request was too long ago, and names those that were forgotten.
    pub(super) fn expire(&self, too_old: impl Fn(Millis) -> bool) -> Vec<Arc<Upload>> {
        let taken = self.registry.lock().take(|entry| too_old(entry.touched));
        uploads_of(taken)
    }

    /// Whether an upload is here.
    pub(super) fn has(&self, id: &str) -> bool {
        self.registry.lock().entries.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::record::ObjectHeaders;
    use crate::config::{Config, Settings};

    fn record(key: &str) -> UploadRecord {
        let (bucket, key) = ("b".into(), key.into());
        UploadRecord { bucket, key, headers: ObjectHeaders::default(), checksum: None, created: Millis(0) }
    }

    fn upload(id: &str) -> Upload {
        Upload::new(id.into(), Arc::new(record("out/k")))
    }

    fn limits() -> LimitsSettings {
        Settings::try_from(&Config::default()).unwrap().limits
    }

    fn uploads(memory_bytes: u64) -> Uploads {
        Uploads::new(&LimitsSettings { multipart_memory_bytes: memory_bytes, ..limits() })
    }

    fn bounded(all: usize, of_a_job: usize, idle: Duration) -> Uploads {
        Uploads::new(&LimitsSettings {
            multipart_uploads_max: all,
            multipart_uploads_per_job_max: of_a_job,
            multipart_idle: idle,
            ..limits()
        })
    }

    fn part(uploads: &Uploads, len: u64) -> MemoryPart {
        let record = PartRecord { segment: None, len, etag: String::new(), checksum: None, modified: Millis(0) };
        let share = uploads.share(len).unwrap();
        MemoryPart { data: Bytes::new(), crc: SegmentCrc::default(), record, _paid: None, _share: share }
    }

    fn ids(uploads: &[Arc<Upload>]) -> Vec<&str> {
        uploads.iter().map(|upload| upload.id.as_str()).collect()
    }

    #[test]
    fn parts_share_a_bounded_memory_and_give_it_back() {
        let uploads = uploads(2000);
        uploads.create(upload("u"), Millis(0)).unwrap();

        assert!(uploads.put_part("u", 1, part(&uploads, 1000)));
        assert!(uploads.share(1000).is_none());
        uploads.drop_part("u", 1);

        assert!(uploads.share(1000).is_some());
        assert!(!uploads.put_part("other", 1, part(&uploads, 1)));
    }

    #[test]
    fn the_last_upload_of_a_part_counts() {
        let uploads = uploads(10_000);
        uploads.create(upload("u"), Millis(0)).unwrap();

        uploads.put_part("u", 1, part(&uploads, 1));
        uploads.put_part("u", 1, part(&uploads, 2));

        assert_eq!(uploads.parts("u")[&1].record.len, 2);
    }

    #[test]
    fn uploads_without_requests_expire() {
        let uploads = uploads(0);
        for id in ["old", "used", "in hands"] {
            uploads.create(upload(id), Millis(0)).unwrap();
        }
        uploads.find("used", Millis(500));
        let in_hands = uploads.find("in hands", Millis(0)).unwrap();

        let expired = uploads.expire(|touched| touched < Millis(400));

        assert_eq!(ids(&expired), ["old"]);
        assert!(uploads.has("used") && uploads.has(&in_hands.id));
    }

    #[test]
    fn the_oldest_idle_uploads_give_way_to_new_ones() {
        let uploads = bounded(3, 3, Duration::ZERO);
        for id in ["1", "2", "3"] {
            uploads.create(upload(id), Millis(0)).unwrap();
        }
        uploads.find("1", Millis(0));
        let in_hands = uploads.find("2", Millis(0)).unwrap();

        let (_, gone) = uploads.create(upload("4"), Millis(0)).unwrap();
        assert_eq!(ids(&gone), ["3"]);
        let (_, gone) = uploads.create(upload("5"), Millis(0)).unwrap();
        assert_eq!(ids(&gone), ["1"]);
        assert!(uploads.has(&in_hands.id));
    }

    #[test]
    fn uploads_in_use_do_not_give_way() {
        let uploads = bounded(2, 2, Duration::from_secs(600));
        for id in ["1", "2"] {
            uploads.create(upload(id), Millis(0)).unwrap();
        }

        assert_eq!(uploads.create(upload("3"), Millis(0)).unwrap_err(), Full);

        uploads.remove("1");
        assert!(uploads.create(upload("3"), Millis(0)).is_ok());
    }

    #[test]
    fn a_job_with_many_uploads_makes_room_for_its_own() {
        let uploads = bounded(100, 2, Duration::ZERO);
        uploads.create(Upload::new("other".into(), Arc::new(record("other/k"))), Millis(0)).unwrap();
        for id in ["1", "2"] {
            uploads.create(upload(id), Millis(0)).unwrap();
        }

        let (_, gone) = uploads.create(upload("3"), Millis(0)).unwrap();

        assert_eq!(ids(&gone), ["1"]);
    }

    #[test]
    fn one_in_a_hundred_gives_way_at_once() {
        let uploads = bounded(250, 1000, Duration::ZERO);
        for id in 0..250 {
            uploads.create(upload(&format!("{id:03}")), Millis(0)).unwrap();
        }

        let (_, gone) = uploads.create(upload("new"), Millis(0)).unwrap();

        assert_eq!(ids(&gone), ["000", "001", "002"]);
    }

    #[test]
    fn checksum_plans_survive_their_form_in_the_catalog() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc64Nvme, full_object: true };
        let record = Arc::new(UploadRecord { checksum: Some(plan.record()), ..record("k") });

        let upload = Upload::known("u", &record);

        assert_eq!(upload.checksum, Some(plan));
        assert!(upload.is_recorded());
    }
}
