//! Room on the local disks that Esker writes to: how much there is, and what is kept back of it.
//!
//! `store.reserve` bytes of a disk are for the catalog, for deletes and for the next start. Below that, bodies are refused
//! before they are read; reads, deletes and reclaiming go on, and when there is room again, so do writes. A part of the
//! reserve is a file, the [`ballast`], so that other programs on the disk cannot take it: whatever of the catalog meets the
//! end of the disk gives up a piece of it and is done again. A disk that has data alone keeps a smaller one, for the little
//! that a start writes there.
//!
//! A file system may run out of files before it runs out of bytes: with fewer than [`FILES_KEPT`] to be made it is full, too.
//! Some empty files beside the ballast are removed then, one by one, so that the catalog can go on and a start can be made.
//!
//! One task looks at the disks, every [`LOOK_EVERY`]. In between each admitted body is taken off what the last look found,
//! so a request costs no system call, unless that seems used up.
//!
//! # Invariants
//! - A disk that is full stays so until [`Disk::resume_bytes`] are free: writes do not flap.
//! - Only the catalog is given pieces of the ballast, and what a start writes beside the data.
//!
//! # Crash
//! The rest of the ballast is a file of its length; it grows again with the first look that finds room.

mod ballast;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::ballast::Ballast;
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::{Purpose, RejectReason};

pub use self::ballast::{RESERVE_FILE, is_reserve};

/// Between two looks at the disks.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A disk stays full for so many looks after something met its end: a quota is one that the looks do not see.
const LOOKS_AFTER_THE_END: u32 = 5;
/// Between two tries of something that waits for room.
pub const ROOM_PAUSE: Duration = Duration::from_millis(200);

/// Files that may still be made on a disk that is full, where its file system counts them; a quarter of all at most.
const FILES_KEPT: u64 = 256;
/// Writes go on with so many more.
const FILES_RESUME_SHARE: u64 = 4;
/// With fewer than this, what met the end of a disk with free bytes met the end of its files.
const FILES_USED_UP: u64 = 8;

const MIB: u64 = 1 << 20;
/// Bounds of the reserve where none is configured.
const RESERVE_BYTES: std::ops::RangeInclusive<u64> = 64 * MIB..=1024 * MIB;
/// Parts of the disk that the reserve takes by default: one of so many, and at most one of so few of a small disk.
const RESERVE_SHARE: u64 = 50;
const RESERVE_SHARE_MAX: u64 = 4;
/// Writes go on when this part of the reserve is free beyond it, and at least so much.
const RESUME_SHARE: u64 = 4;
const RESUME_BYTES_MIN: u64 = 4 * MIB;
/// Bytes that a body takes beside its own: its frame, its records in the catalog, blocks that are not full.
const OVERHEAD_BYTES: u64 = 4096;
/// Bytes that a body may take in the catalog alone: groups up to this size can go into its records.
const INLINE_BYTES_MAX: u64 = MIB;

/// A disk has no room for what was to be written. A repeat may find some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: delete something or make room, and repeat the request", lacking(folder, *free_bytes, *reserve_bytes, *files))]
pub struct DiskFull {
    /// A folder on that disk.
    pub folder: PathBuf,
    /// Bytes that were free at the last look, the ballast among them.
    pub free_bytes: u64,
    /// The bytes that are kept back.
    pub reserve_bytes: u64,
    /// What the disk lacks, if that is files.
    pub files: Option<FewFiles>,
}

/// A file system on which few files can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FewFiles {
    /// Files that could be made at the last look.
    pub free: u64,
    /// The files that are kept back.
    pub kept: u64,
}

fn lacking(folder: &Path, free_bytes: u64, reserve_bytes: u64, files: Option<FewFiles>) -> String {
    let folder = folder.display();
    match files {
        Some(FewFiles { free, kept }) => {
            format!("the file system of {folder} has inodes for {free} more files and keeps {kept} of them back")
        }
        None => format!(
            "the disk of {folder} has {free_bytes} bytes free and keeps {reserve_bytes} of them back (store.reserve)"
        ),
    }
}

impl DiskFull {
    /// Returns what the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// Whether an error says, somewhere in its causes, that a disk or a quota is used up.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        // `source` of an I/O error skips the error inside it.
        cause = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The part of the daemon that writes to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// Physical files.
    Data,
    /// The catalog.
    Catalog,
}

impl DiskUse {
    const ALL: [Self; 2] = [Self::Data, Self::Catalog];

    fn purpose(self) -> Purpose {
        match self {
            Self::Data => Purpose::Data,
            Self::Catalog => Purpose::Catalog,
        }
    }
}

/// The local disks in use, none or up to two. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct DiskSpace(Option<Arc<Disks>>);

#[derive(Debug)]
struct Disks {
    all: Vec<Disk>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    contents: Vec<DiskUse>,
    reserve_bytes: u64,
    /// None where nothing is kept back.
    ballast: Option<Ballast>,
    /// Bytes that may still be admitted before the next look.
    left: AtomicI64,
    /// The same right after the last look.
    left_then: AtomicI64,
    /// Bytes that were free at the last look, the ballast among them.
    free_bytes: AtomicU64,
    /// Files that are kept back; 0 where they are not counted.
    files_kept: u64,
    /// Files that could be made at the last look.
    free_files: AtomicU64,
    full: AtomicBool,
    /// Number of looks for which it stays full, whatever they find.
    looks_full: AtomicU32,
}

impl DiskSpace {
    /// Looks at the disks of the folders for data and catalog; `reserve` is what is configured.
    ///
    /// # Errors
    /// The operating system's error for a folder.
    pub fn open(
        data: Option<&Path>,
        catalog: Option<&Path>,
        reserve: Option<u64>,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let mut all: Vec<(u64, Disk)> = vec![];
        for (content, folder) in DiskUse::ALL.into_iter().zip([data, catalog]) {
            let Some(folder) = folder else { continue };
            // The catalog's folder is made by whoever opens it.
            let there = if folder.exists() { folder } else { folder.parent().unwrap_or(folder) };
            let device = std::fs::metadata(there)?.dev();
            let index = match all.iter().position(|(known, _)| *known == device) {
                Some(index) => index,
                None => {
                    all.push((device, Disk::open(there, reserve)?));
                    all.len() - 1
                }
            };
            let disk = &mut all[index].1;
            disk.contents.push(content);
            // The catalog's comes last, and is the one of a disk that both share.
            disk.ballast = Some(match content {
                DiskUse::Data => Ballast::beside_data(folder, disk.reserve_bytes),
                DiskUse::Catalog => Ballast::new(folder, disk.reserve_bytes),
            });
        }
        if all.is_empty() {
            return Ok(Self::default());
        }
        let disks = Disks { all: all.into_iter().map(|(_, disk)| disk).collect(), metrics: metrics.clone() };
        disks.all.iter().for_each(|disk| disk.look(metrics));
        Ok(Self(Some(Arc::new(disks))))
    }

    fn disks(&self) -> &[Disk] {
        self.0.as_ref().map_or(&[], |disks| &disks.all)
    }

    fn disk_of(&self, content: DiskUse) -> Option<&Disk> {
        self.disks().iter().find(|disk| disk.contents.contains(&content))
    }

    /// Looks at the disks until `stop`, and fills the ballast when there is room.
    pub async fn run(self, stop: CancellationToken) {
        let Some(disks) = self.0 else { return };
        while !stop.is_cancelled() {
            let looking = Arc::clone(&disks);
            #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic is told")]
            let looked = tokio::task::spawn_blocking(move || {
                for disk in &looking.all {
                    disk.look(&looking.metrics);
                    disk.fill_ballast();
                }
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "looking at the disks failed");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Takes room for a body of so many bytes, before it is read.
    ///
    /// # Errors
    /// [`DiskFull`], counted.
    pub fn admit(&self, bytes: u64) -> Result<(), DiskFull> {
        let Some(disks) = &self.0 else { return Ok(()) };
        disks.all.iter().try_for_each(|disk| disk.admit(bytes, &disks.metrics)).map_err(|full| self.refused(full))
    }

    /// Whether there is room for so many bytes that come piece by piece; each is to be admitted.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn would_admit(&self, bytes: u64) -> Result<(), DiskFull> {
        let lacks = |disk: &&Disk| disk.is_full() || disk.left.load(Ordering::Relaxed) < disk.taken_by(bytes);
        self.disks().iter().find(lacks).map_or(Ok(()), |disk| Err(self.refused(disk.refusal())))
    }

    /// Whether what was admitted may still be written.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn check_write(&self) -> Result<(), DiskFull> {
        self.check().map_err(|full| self.refused(full))
    }

    /// Whether writes are taken.
    ///
    /// # Errors
    /// [`DiskFull`].
    pub fn check(&self) -> Result<(), DiskFull> {
        self.disks().iter().find(|disk| disk.is_full()).map_or(Ok(()), |disk| Err(disk.refusal()))
    }

    /// Whether writes are refused.
    pub fn is_full(&self) -> bool {
        self.check().is_err()
    }

    fn refused(&self, full: DiskFull) -> DiskFull {
        if let Some(disks) = &self.0 {
            disks.metrics.rejected.of(RejectReason::Disk).inc();
        }
        full
    }

    /// Data that can be done without met the end of its disk: writes are refused from now on.
    pub fn meets_the_end(&self) {
        self.disk_of(DiskUse::Data).into_iter().for_each(Disk::meets_the_end);
    }

    /// The same for data that a writer waits for, and its refusal.
    pub fn data_met_the_end(&self) -> DiskFull {
        let disk = self.disk_of(DiskUse::Data).inspect(|disk| disk.meets_the_end());
        let nowhere = DiskFull { folder: PathBuf::new(), free_bytes: 0, reserve_bytes: 0, files: None };
        self.refused(disk.map_or(nowhere, Disk::refusal))
    }

    /// `content`, which cannot be refused, met the end of its disk: gives up a piece of the ballast there. False if
    /// none is left.
    pub fn give_up(&self, content: DiskUse) -> bool {
        let Some(disk) = self.disk_of(content) else { return false };
        disk.meets_the_end();
        let Some(ballast) = &disk.ballast else { return false };
        // Bytes would not help: it lacks files.
        if disk.has_bytes_alone() { ballast.give_up_file() } else { ballast.give_up() }
    }

    /// The same until `done` has the room that it needs, or nothing is left to be given up. `done` must be safe to repeat.
    ///
    /// # Errors
    /// The last one of `done`.
    pub fn insist<T>(&self, content: DiskUse, mut done: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match done() {
                Err(error) if is_full(&error) && self.give_up(content) => {}
                other => return other,
            }
        }
    }

    /// Bytes that are kept back on the disk of the catalog; `None` if it is on none.
    pub fn catalog_reserve(&self) -> Option<u64> {
        self.disk_of(DiskUse::Catalog).map(|disk| disk.reserve_bytes)
    }
}

impl Disk {
    fn open(folder: &Path, reserve: Option<u64>) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            contents: vec![],
            reserve_bytes: reserve.unwrap_or_else(|| default_reserve(stat.f_blocks.saturating_mul(stat.f_frsize))),
            ballast: None,
            left: AtomicI64::new(0),
            left_then: AtomicI64::new(0),
            free_bytes: AtomicU64::new(0),
            files_kept: FILES_KEPT.min(stat.f_files / RESERVE_SHARE_MAX),
            free_files: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            looks_full: AtomicU32::new(0),
        })
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Free bytes with which a full disk takes writes again.
    fn resume_bytes(&self) -> u64 {
        self.reserve_bytes + (self.reserve_bytes / RESUME_SHARE).max(RESUME_BYTES_MIN)
    }

    fn refusal(&self) -> DiskFull {
        DiskFull {
            folder: self.folder.clone(),
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            reserve_bytes: self.reserve_bytes,
            files: self.few_files(),
        }
    }

    fn few_files(&self) -> Option<FewFiles> {
        let (free, kept) = (self.free_files.load(Ordering::Relaxed), self.files_kept);
        (free < kept).then_some(FewFiles { free, kept })
    }

    /// Whether the last look found bytes beside the ballast, and no files.
    fn has_bytes_alone(&self) -> bool {
        let held = self.ballast.as_ref().map_or(0, Ballast::held);
        let free = self.free_bytes.load(Ordering::Relaxed).saturating_sub(held);
        self.files_kept > 0 && self.free_files.load(Ordering::Relaxed) < FILES_USED_UP && free >= RESUME_BYTES_MIN
    }

    /// Bytes that a body of this length takes of this disk.
    fn taken_by(&self, bytes: u64) -> i64 {
        let bytes = if self.contents.contains(&DiskUse::Data) { bytes } else { bytes.min(INLINE_BYTES_MAX) };
        signed(bytes.saturating_add(OVERHEAD_BYTES))
    }

    fn admit(&self, bytes: u64, metrics: &Metrics) -> Result<(), DiskFull> {
        if self.is_full() {
            return Err(self.refusal());
        }
        let taken = self.taken_by(bytes);
        if self.take(taken) {
            return Ok(());
        }
        // What was admitted since the last look counts twice once it is written.
        self.look(metrics);
        if self.is_full() {
            return Err(self.refusal());
        }
        if self.take(taken) {
            return Ok(());
        }
        // A large body is refused for itself; with a small one, the reserve is reached.
        if taken <= signed(self.resume_bytes() - self.reserve_bytes) {
            self.becomes_full();
        }
        Err(self.refusal())
    }

    fn take(&self, bytes: i64) -> bool {
        // Taken before it is compared: two bodies at a time must not both get the last room.
        let enough = self.left.fetch_sub(bytes, Ordering::Relaxed) >= bytes;
        if !enough {
            self.left.fetch_add(bytes, Ordering::Relaxed);
        }
        enough
    }

    fn meets_the_end(&self) {
        // What the last look found is not what is free now.
        self.measure();
        // Before it becomes full: a look that came in between would find room and clear it.
        self.looks_full.store(LOOKS_AFTER_THE_END, Ordering::Release);
        self.becomes_full();
    }

    fn becomes_full(&self) {
        if !self.full.swap(true, Ordering::AcqRel) {
            let DiskFull { folder, free_bytes, reserve_bytes, files } = self.refusal();
            if let Some(FewFiles { free, kept }) = files {
                return tracing::warn!(
                    disk = %folder.display(),
                    free_inodes = free,
                    kept_inodes = kept,
                    free_bytes,
                    "the file system has no inodes for more files: writes are refused until it has. Delete files on it, or make \
                     it with more inodes"
                );
            }
            tracing::warn!(
                disk = %folder.display(),
                free_bytes,
                reserve_bytes,
                resume_bytes = self.resume_bytes(),
                "the disk is full: writes are refused until resume_bytes are free. Delete state, make room on the disk, or \
                 set store.reserve lower"
            );
        }
    }

    /// Asks the operating system how much is free; `None` if it does not say.
    fn measure(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.folder);
        let refused = |error: rustix::io::Errno| tracing::debug!(disk = %self.folder.display(), %error, "it is not known how much is free");
        let stat = stat.map_err(refused).ok()?;
        let held = self.ballast.as_ref().map_or(0, Ballast::held);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(held);
        self.free_bytes.store(free, Ordering::Relaxed);
        let files = if self.files_kept > 0 { stat.f_favail } else { u64::MAX };
        self.free_files.store(files, Ordering::Relaxed);
        Some(free)
    }

    /// Looks how much is free, and decides whether writes are taken.
    fn look(&self, metrics: &Metrics) {
        let Some(free) = self.measure() else { return };
        // What was admitted since the last look may not be written yet, if it is still in memory.
        let admitted = (self.left_then.load(Ordering::Relaxed) - self.left.load(Ordering::Relaxed)).max(0);
        let unwritten = admitted.min(metrics.in_flight_bytes.get().max(0));
        let left = signed(free).saturating_sub(signed(self.reserve_bytes)).saturating_sub(unwritten);
        self.left_then.store(left, Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
        let looks_full =
            self.looks_full.fetch_update(Ordering::AcqRel, Ordering::Acquire, |looks| looks.checked_sub(1)).is_ok();
        let files = self.free_files.load(Ordering::Relaxed);
        let enough_files = files >= self.files_kept + self.files_kept / FILES_RESUME_SHARE;
        if free < self.reserve_bytes || files < self.files_kept {
            self.becomes_full();
        } else if free >= self.resume_bytes() && enough_files && !looks_full && self.full.swap(false, Ordering::AcqRel)
        {
            tracing::info!(disk = %self.folder.display(), free_bytes = free, "the disk has room again, writes go on");
        }
        for content in &self.contents {
            let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            metrics.disk_free_bytes.of(content.purpose()).set(gauge(free));
            metrics.disk_reserve_bytes.of(content.purpose()).set(gauge(self.reserve_bytes));
        }
    }

    /// Lets the ballast grow, but never to the last byte: the catalog would take it back at once.
    fn fill_ballast(&self) {
        let Some(ballast) = &self.ballast else { return };
        let free = self.free_bytes.load(Ordering::Relaxed);
        let beside = free.saturating_sub(ballast.held());
        ballast.fill(beside.saturating_sub(self.reserve_bytes / RESUME_SHARE));
        if self.files_kept > 0 && self.few_files().is_none() {
            ballast.fill_files();
        }
    }
}

/// Bytes that are kept back of a disk of this size where nothing is configured.
fn default_reserve(disk_bytes: u64) -> u64 {
    let share = (disk_bytes / RESERVE_SHARE).clamp(*RESERVE_BYTES.start(), *RESERVE_BYTES.end());
    share.min(disk_bytes / RESERVE_SHARE_MAX)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of which `left` bytes may be admitted.
    fn disk(left: i64, reserve_bytes: u64) -> Disk {
        Disk {
            folder: "/disk".into(),
            contents: DiskUse::ALL.into(),
            reserve_bytes,
            ballast: None,
            left: AtomicI64::new(left),
            left_then: AtomicI64::new(left),
            free_bytes: AtomicU64::new(reserve_bytes),
            files_kept: 0,
            free_files: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            looks_full: AtomicU32::new(0),
        }
    }

    #[test]
    fn the_default_is_a_share_of_the_disk_within_bounds_and_leaves_most_of_a_small_one() {
        assert_eq!(default_reserve(96 * MIB), 24 * MIB);
        assert_eq!(default_reserve(1024 * MIB), 64 * MIB);
        assert_eq!(default_reserve(20_000 * MIB), 400 * MIB);
        assert_eq!(default_reserve(10_000_000 * MIB), 1024 * MIB);
    }

    #[test]
    fn admitted_bodies_are_taken_off_what_the_last_look_found() {
        let disk = disk(signed(10 * MIB), 100 * MIB);

        assert!(disk.admit(4 * MIB, &Metrics::new()).is_ok() && disk.admit(4 * MIB, &Metrics::new()).is_ok());
        let refused = disk.admit(4 * MIB, &Metrics::new()).unwrap_err();

        assert!(disk.is_full());
        assert!(disk.admit(1, &Metrics::new()).is_err(), "a smaller one would let writes flap");
        let text = refused.to_string();
        assert!(text.contains("/disk") && text.contains("store.reserve") && text.contains("104857600"), "{text}");
    }

    #[test]
    fn a_file_system_without_inodes_is_full_and_says_so() {
        let mut disk = disk(signed(10 * MIB), 4 * MIB);
        (disk.files_kept, disk.free_files) = (FILES_KEPT, AtomicU64::new(FILES_KEPT - 1));

        disk.becomes_full();

        let text = disk.admit(1, &Metrics::new()).unwrap_err().to_string();
        assert!(text.contains("255 more files") && text.contains("inodes") && !text.contains("bytes"), "{text}");
        disk.free_bytes.store(100 * MIB, Ordering::Relaxed);
        assert!(!disk.has_bytes_alone(), "some can still be made");
        disk.free_files.store(0, Ordering::Relaxed);
        assert!(disk.has_bytes_alone());
        disk.free_bytes.store(MIB, Ordering::Relaxed);
        assert!(!disk.has_bytes_alone(), "it lacks both");
    }

    #[test]
    fn a_body_that_is_too_large_for_what_is_left_is_refused_for_itself() {
        let disk = disk(signed(10 * MIB), 4 * MIB);

        assert!(disk.admit(1024 * MIB, &Metrics::new()).is_err());

        assert!(disk.admit(4 * MIB, &Metrics::new()).is_ok());
    }

    #[test]
    fn a_look_at_a_disk_with_room_lets_writes_go_on_unless_something_just_met_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let space = DiskSpace::open(Some(folder.path()), None, Some(0), &metrics).unwrap();
        let disk = &space.disks()[0];
        assert!(space.admit(1000).is_ok());

        space.data_met_the_end();
        assert!(space.check().is_err() && space.admit(1).is_err());
        for _ in 0..LOOKS_AFTER_THE_END {
            disk.look(&metrics);
            assert!(space.is_full(), "the disk may be full in a way that a look does not see");
        }
        disk.look(&metrics);

        assert!(!space.is_full() && space.admit(1).is_ok());
        assert_eq!(metrics.rejected.of(RejectReason::Disk).get(), 2);
    }

    #[test]
    fn a_used_up_disk_is_recognised_inside_other_errors() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(full()) };

        assert!(is_full(&full()) && is_full(&io::Error::from(io::ErrorKind::QuotaExceeded)));
        assert!(is_full(&io::Error::other(wrapped)));
        assert!(!is_full(&io::Error::other("full")));
    }
}
