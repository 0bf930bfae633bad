//! Multipart uploads in progress: who uses them, when they were used last, and which have to give way.
//!
//! An upload is *recorded* in the catalog before its id is answered, and each of its parts is on storage before it is
//! answered: both are there after a restart. The exception are keys whose layout says that their engine never resumes an
//! upload ([`KeyLayout`]): Flink's state files and `_metadata`, most of which have one part of a few kilobytes. Such an
//! upload lives here alone, in memory, and costs one durable commit, its completion. It is recorded when a part of it is
//! too large to wait in memory.
//!
//! - [`parts`]: creating, finding and aborting uploads, and their parts.
//! - [`completion`]: from parts to an object.
//!
//! # Invariants
//! - The bytes of parts in memory are paid for twice: from the daemon's budget, and from this registry's share of it.
//! - An upload that a request has in hands neither expires nor gives way. Completions and an abort of one upload wait for
//!   each other.
//!
//! # Crash
//! Uploads that were not recorded are gone, and so are parts in memory: completing them fails with `NoSuchUpload` or
//! `InvalidPart`.

mod completion;
mod parts;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::catalog::command::Command;
use crate::catalog::questions::RecordedUpload;
use crate::catalog::state::UploadView;
use crate::config::LimitsSettings;
use crate::metrics::labels::UploadDropReason;
use crate::model::{JobId, KeyLayout, Millis, PartHead, SegmentCrc, SegmentId};
use crate::runtime::{ByteBudget, Clock, PaidBytes};
pub use completion::{Completion, NamedParts, ToComplete};
pub use parts::{UploadName, UploadedPart};

/// Bytes that a part costs beside its own.
const PART_OVERHEAD_BYTES: u64 = 512;
/// One in so many uploads gives way at once, so that the oldest are not looked for at each new one.
const GIVE_WAY_SHARE: usize = 100;

/// The longest pause between two looks for expired uploads.
const EXPIRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time for which this process itself has to see that nobody uses an upload.
const EXPIRY_WATCHED_MAX: Duration = Duration::from_secs(3600);
/// Uploads that are aborted at a time.
const ABORTS_AT_ONCE: usize = 64;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    /// Its id, what was said of the object, and when.
    pub view: UploadView,
    /// The meaning of its key.
    pub layout: KeyLayout,
    /// Set once the catalog knows the upload. A `tokio` cell, because recording is waited for and happens once.
    pub recorded: OnceCell<()>,
    /// Held by whoever completes or aborts it. A `tokio` mutex, because the others wait while storage works.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

impl Upload {
    /// An upload that nobody knows yet.
    pub(super) fn new(view: UploadView) -> Self {
        let layout = KeyLayout::of(&view.upload.bucket, &view.upload.key);
        Self { view, layout, recorded: OnceCell::new(), turn: Arc::default() }
    }

    /// An upload that the catalog knows.
    pub(super) fn known(view: UploadView) -> Self {
        Self { recorded: OnceCell::new_with(Some(())), ..Self::new(view) }
    }

    pub(super) fn id(&self) -> &str {
        &self.view.id
    }

    pub(super) fn bucket(&self) -> &str {
        &self.view.upload.bucket
    }

    pub(super) fn key(&self) -> &str {
        &self.view.upload.key
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
    pub head: PartHead,
    /// Paid to the daemon.
    pub _paid: Option<PaidBytes>,
    /// Taken from the share of multipart uploads.
    pub _share: PaidBytes,
}

/// A part as it is seen by listings and completions.
#[derive(Debug, Clone)]
pub(super) struct PartView {
    pub head: PartHead,
    pub bytes: PartBytes,
}

/// Where the bytes of a part are.
#[derive(Debug, Clone)]
pub(super) enum PartBytes {
    /// On storage, as this segment; `None` for a part of 0 bytes.
    Stored(Option<SegmentId>),
    Memory(Bytes, SegmentCrc),
}

/// No upload gives way to a new one: too many are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UploadsFull;

/// The limits on the number of uploads.
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
    /// Number of uploads that have given way since somebody asked.
    gave_way: AtomicUsize,
}

#[derive(Debug, Default)]
struct Registry {
    entries: BTreeMap<String, TrackedUpload>,
    /// Number of uploads of each job.
    of_job: HashMap<JobId, usize>,
}

#[derive(Debug)]
struct TrackedUpload {
    upload: Arc<Upload>,
    touched: Millis,
    /// The same for this process, by a clock that is never set.
    active: Instant,
    parts: BTreeMap<u16, MemoryPart>,
}

impl TrackedUpload {
    /// Whether no request has it in hands. They take it while the registry is locked.
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.upload) == 1
    }
}

impl Registry {
    fn insert(&mut self, upload: Upload, touched: Millis) -> Arc<Upload> {
        let upload = Arc::new(upload);
        *self.of_job.entry(upload.layout.about.job.clone()).or_default() += 1;
        let entry = TrackedUpload {
            upload: Arc::clone(&upload),
            touched,
            active: Clock::instant(),
            parts: BTreeMap::default(),
        };
        self.entries.insert(upload.id().to_owned(), entry);
        upload
    }

    fn remove(&mut self, id: &str) -> Option<TrackedUpload> {
        let entry = self.entries.remove(id)?;
        let job = &entry.upload.layout.about.job;
        if let Some(count) = self.of_job.get_mut(job) {
            *count -= 1;
            if *count == 0 {
                self.of_job.remove(job);
            }
        }
        Some(entry)
    }

    fn take(&mut self, doomed: impl Fn(&TrackedUpload) -> bool) -> Vec<TrackedUpload> {
        let doomed = self.entries.iter().filter(|(_, entry)| entry.is_free() && doomed(entry));
        let ids: Vec<String> = doomed.map(|(id, _)| id.clone()).collect();
        ids.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes out the oldest idle uploads of a job, or of all: some of `count`.
    fn give_way(&mut self, job: Option<&JobId>, count: usize, idle: Duration) -> Vec<TrackedUpload> {
        let now = Clock::instant();
        let may = |entry: &TrackedUpload| {
            let of_it = job.is_none_or(|job| entry.upload.layout.about.job == *job);
            of_it && entry.is_free() && now.saturating_duration_since(entry.active) >= idle
        };
        let idle = self.entries.iter().filter(|(_, entry)| may(entry));
        let mut idle: Vec<_> = idle.map(|(id, entry)| (entry.active, entry.touched, id.clone())).collect();
        idle.sort_unstable();
        idle.truncate(count.div_ceil(GIVE_WAY_SHARE));
        idle.iter().filter_map(|(_, _, id)| self.remove(id)).collect()
    }
}

fn uploads_of(entries: Vec<TrackedUpload>) -> Vec<Arc<Upload>> {
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
    /// [`UploadsFull`].
    pub(super) fn create(&self, upload: Upload, now: Millis) -> Result<(Arc<Upload>, Vec<Arc<Upload>>), UploadsFull> {
        let mut registry = self.registry.lock();
        let Bounds { all, of_a_job, idle } = self.bounds;
        let job = &upload.layout.about.job;
        let gone = if registry.of_job.get(job).is_some_and(|count| *count >= of_a_job) {
            registry.give_way(Some(job), of_a_job, idle)
        } else if registry.entries.len() >= all {
            registry.give_way(None, all, idle)
        } else {
            return Ok((registry.insert(upload, now), vec![]));
        };
        if gone.is_empty() {
            return Err(UploadsFull);
        }
        let upload = registry.insert(upload, now);
        drop(registry);
        self.gave_way.fetch_add(gone.len(), Ordering::Relaxed);
        Ok((upload, uploads_of(gone)))
    }

    /// Number of uploads that have given way since the last call.
    pub(super) fn take_gave_way(&self) -> usize {
        self.gave_way.swap(0, Ordering::Relaxed)
    }

    /// Takes in an upload that the catalog remembers, and that was used last at `touched`, unless it is here.
    pub(super) fn adopt(&self, upload: Upload, touched: Millis) -> Arc<Upload> {
        let mut registry = self.registry.lock();
        match registry.entries.get_mut(upload.id()) {
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
        // Its bytes are freed without the lock.
        drop(replaced);
        true
    }

    /// Forgets a part whose successor is on storage.
    pub(super) fn drop_part(&self, id: &str, number: u16) {
        let dropped = self.registry.lock().entries.get_mut(id).and_then(|entry| entry.parts.remove(&number));
        // Its bytes are freed without the lock.
        drop(dropped);
    }

    /// The parts in memory.
    pub(super) fn parts(&self, id: &str) -> BTreeMap<u16, PartView> {
        let registry = self.registry.lock();
        let parts = registry.entries.get(id).into_iter().flat_map(|entry| &entry.parts);
        let view = |part: &MemoryPart| PartView {
            head: part.head.clone(),
            bytes: PartBytes::Memory(part.data.clone(), part.crc.clone()),
        };
        parts.map(|(number, part)| (*number, view(part))).collect()
    }

    /// Forgets an upload; false if it is not here.
    pub(super) fn remove(&self, id: &str) -> bool {
        let removed = self.registry.lock().remove(id);
        removed.is_some()
    }

    /// The uploads to keys of `bucket` that begin with `prefix`, and that the catalog does not know.
    pub(super) fn list_unrecorded(&self, bucket: &str, prefix: &str) -> Vec<UploadView> {
        let registry = self.registry.lock();
        let listed =
            |upload: &Upload| !upload.is_recorded() && upload.bucket() == bucket && upload.key().starts_with(prefix);
        let uploads = registry.entries.values().map(|entry| &entry.upload).filter(|upload| listed(upload));
        uploads.map(|upload| upload.view.clone()).collect()
    }

    /// Forgets the uploads to a bucket that is gone.
    pub(super) fn drop_bucket(&self, bucket: &str) {
        let taken = self.registry.lock().take(|entry| entry.upload.bucket() == bucket);
        drop(taken);
    }

    /// Forgets uploads whose last request was too long ago, and names those that were forgotten.
    pub(super) fn expire(&self, too_old: impl Fn(Millis) -> bool) -> Vec<Arc<Upload>> {
        let taken = self.registry.lock().take(|entry| too_old(entry.touched));
        uploads_of(taken)
    }

    /// The ids of all uploads that are here.
    pub(super) fn ids(&self) -> HashSet<String> {
        self.registry.lock().entries.keys().cloned().collect()
    }

    /// Whether an upload is here.
    pub(super) fn has(&self, id: &str) -> bool {
        self.registry.lock().entries.contains_key(id)
    }
}

impl Engine {
    /// Takes in the uploads that the catalog knows and the registry does not: those of the daemon before this one, and what
    /// a request has left that ended half-way. They were used last when their last part came.
    pub(super) fn adopt_uploads(&self) {
        let mut unknown = self.catalog.uploads_beside(&self.uploads.ids());
        // In the order of their use, because the oldest give way first.
        unknown.sort_by_key(|upload| upload.last_use);
        for RecordedUpload { view, last_use } in unknown {
            self.uploads.adopt(Upload::known(view), last_use);
        }
    }

    /// Forgets uploads without a request for `limits.multipart-expiry`, with their parts.
    pub(super) async fn expire_uploads(&self) {
        let expiry = self.settings.limits.multipart_expiry;
        // What this process did not watch may be the time by which the machine's clock was set, and parts were answered: so
        // the last of it has to pass here.
        let unwatched = expiry.saturating_sub(EXPIRY_WATCHED_MAX);
        self.adopt_uploads();
        let ages = self.clock.ages();
        let too_old = |used| ages.of(used) > expiry && ages.watched(used).saturating_add(unwatched) > expiry;
        let expired = self.uploads.expire(too_old);
        if !expired.is_empty() {
            tracing::info!(uploads = expired.len(), "multipart uploads expired");
        }
        let gave_way = self.uploads.take_gave_way();
        if gave_way > 0 {
            tracing::info!(uploads = gave_way, "idle multipart uploads gave way to new ones");
        }
        self.drop_uploads(UploadDropReason::Expired, expired).await;
    }

    /// Gives up uploads that nobody continues, and that are not in the registry any more.
    pub(super) async fn drop_uploads(&self, reason: UploadDropReason, uploads: Vec<Arc<Upload>>) {
        let drops = uploads.into_iter().map(|upload| self.clone().drop_upload(reason, upload));
        futures::stream::iter(drops).buffer_unordered(ABORTS_AT_ONCE).for_each(|()| async {}).await;
    }

    async fn drop_upload(self, reason: UploadDropReason, upload: Arc<Upload>) {
        self.metrics.uploads_dropped.of(reason).inc();
        // While one is being recorded a request has it in hands: it was not taken.
        if upload.is_recorded()
            && let Err(error) = self.catalog.execute(Command::AbortUpload(upload.id().to_owned())).await
        {
            let error = crate::error::chain(&error);
            tracing::warn!(upload = upload.id(), error, "a multipart upload that nobody continues was not aborted");
        }
    }

    /// Forgets expired uploads from time to time, until `stop`.
    pub(super) async fn run_expiry(self, stop: CancellationToken) {
        let pause = (self.settings.limits.multipart_expiry / 10).clamp(Duration::from_millis(100), EXPIRY_PAUSE_MAX);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.expire_uploads().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};
    use crate::model::{NewUpload, ObjectHeaders};

    fn view(id: &str, key: &str) -> UploadView {
        let (bucket, key) = ("b".into(), key.into());
        let upload = NewUpload { bucket, key, headers: ObjectHeaders::default(), checksum: None };
        UploadView { id: id.into(), upload: Arc::new(upload), created: Millis(0) }
    }

    fn upload(id: &str) -> Upload {
        Upload::new(view(id, "out/k"))
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
        let head = PartHead { len, etag: String::new(), checksum: None, modified: Millis(0) };
        let share = uploads.share(len).unwrap();
        MemoryPart { data: Bytes::new(), crc: SegmentCrc::default(), head, _paid: None, _share: share }
    }

    fn ids(uploads: &[Arc<Upload>]) -> Vec<&str> {
        uploads.iter().map(|upload| upload.id()).collect()
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

        assert_eq!(uploads.parts("u")[&1].head.len, 2);
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
        assert!(uploads.has("used") && uploads.has(in_hands.id()));
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
        assert!(uploads.has(in_hands.id()));
    }

    #[test]
    fn uploads_in_use_do_not_give_way() {
        let uploads = bounded(2, 2, Duration::from_secs(600));
        for id in ["1", "2"] {
            uploads.create(upload(id), Millis(0)).unwrap();
        }

        assert_eq!(uploads.create(upload("3"), Millis(0)).unwrap_err(), UploadsFull);

        uploads.remove("1");
        assert!(uploads.create(upload("3"), Millis(0)).is_ok());
    }

    #[test]
    fn a_job_with_many_uploads_makes_room_for_its_own() {
        let uploads = bounded(100, 2, Duration::ZERO);
        uploads.create(Upload::new(view("other", "other/k")), Millis(0)).unwrap();
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
    fn an_upload_that_the_catalog_remembers_is_recorded() {
        assert!(Upload::known(view("u", "k")).is_recorded());
        assert!(!upload("u").is_recorded());
    }
}
