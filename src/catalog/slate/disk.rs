//! The database's objects on a local disk that may be full.
//!
//! A write that must be done takes a piece of the reserve and is repeated; with nothing left it waits, since a database
//! whose write fails closes for good. Compactions only save reads and space later: they wait until there is room beside the
//! reserve. A streamed object that met the end of the disk cannot be repeated here; the database begins it anew.
//!
//! Nothing is written or deleted where the folder of the catalog is not the one that was locked: see `anchor.rs`.
//!
//! While the database is being opened, an error that no repeat cures ends that: a folder that may not be written, an object
//! that is shorter than it should be. The database would repeat the request for a minute, or for ever.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use slatedb::object_store_tag::{ObjectStoreCallTag, TableStoreKind};
use slatedb_common::retry::NonRetryable;

use super::Cause;
use crate::catalog::anchor::Anchor;
use crate::store::DiskSpace;
use crate::store::space::{DiskUse, LOOK_EVERY, ROOM_PAUSE, is_full};

/// Objects of a database on a local disk.
#[derive(Debug)]
pub(super) struct DiskObjects {
    inner: Arc<dyn ObjectStore>,
    space: DiskSpace,
    anchor: Anchor,
    opening: OpeningFlag,
}

impl DiskObjects {
    /// Wraps `inner`, which is on the disk of the catalog and in its folder.
    pub(super) fn new(inner: Arc<dyn ObjectStore>, space: DiskSpace, anchor: Anchor, opening: OpeningFlag) -> Self {
        Self { inner, space, anchor, opening }
    }
}

/// Looks whether the folder is the one that was locked.
async fn look(anchor: &Anchor) -> Result<()> {
    let looked = anchor.look_aside().await;
    looked.map_err(|error| Error::Generic { store: "catalog", source: error.into() })
}

/// Whether a database is being opened; it is until [`Self::done`]. Clones share that.
#[derive(Debug, Clone)]
pub(super) struct OpeningFlag {
    goes_on: Arc<AtomicBool>,
    warned: Arc<AtomicBool>,
}

impl OpeningFlag {
    pub(super) fn begin() -> Self {
        Self { goes_on: Arc::new(AtomicBool::new(true)), warned: Arc::default() }
    }

    /// It is open: from now on it waits for its disk, whatever that says.
    pub(super) fn done(&self) {
        self.goes_on.store(false, Ordering::Release);
    }

    /// Gives up what is hopeless, and says once what is not.
    fn judge<T>(&self, location: &Path, done: Result<T>) -> Result<T> {
        done.map_err(|error| self.judged(location, error))
    }

    fn judged(&self, location: &Path, error: Error) -> Error {
        if !self.goes_on.load(Ordering::Acquire) {
            return error;
        }
        let Error::Generic { store, source } = error else { return error };
        let hopeless: Cause = match io_kind(&*source) {
            Some(kind) if is_hopeless(kind) => source,
            None => Damaged { object: location.to_string(), source }.into(),
            Some(_) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let error = crate::error::chain(&*source);
                    tracing::warn!(object = %location, error, "the catalog cannot be opened yet, its disk does not do as asked");
                }
                return Error::Generic { store, source };
            }
        };
        Error::Generic { store, source: Box::new(NonRetryable(hopeless)) }
    }
}

/// An object is not what the database takes it for: no call of the operating system failed.
#[derive(Debug, thiserror::Error)]
#[error("{object} is damaged: {source}")]
pub(super) struct Damaged {
    object: String,
    source: Cause,
}

impl Damaged {
    /// Whether that is the cause of an error.
    pub(super) fn is_in(error: &(dyn std::error::Error + 'static)) -> bool {
        NonRetryable::find(error).is_some_and(|found| found.0.is::<Self>())
    }
}

/// The operating system's error, if it is the cause.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

fn is_hopeless(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(kind, PermissionDenied | ReadOnlyFilesystem | IsADirectory | NotADirectory)
}

/// Whether a write can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The database stands still without it.
    Now,
    /// A compaction.
    Later,
}

impl Need {
    fn of(extensions: &Extensions) -> Self {
        match ObjectStoreCallTag::from_extensions(extensions) {
            Some(tag) if tag.kind == TableStoreKind::Compactor => Self::Later,
            _ => Self::Now,
        }
    }
}

/// Waits while a write that can wait should.
async fn wait_for_room(space: &DiskSpace, need: Need) {
    while need == Need::Later && space.is_full() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Gives up a piece of what is kept back. False if nothing is left.
#[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic gave up nothing")]
async fn give_up(space: &DiskSpace) -> bool {
    let space = space.clone();
    tokio::task::spawn_blocking(move || space.give_up(DiskUse::Catalog)).await.unwrap_or(false)
}

impl fmt::Display for DiskObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for DiskObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let need = Need::of(&opts.extensions);
        let mut waits = false;
        loop {
            wait_for_room(&self.space, need).await;
            look(&self.anchor).await?;
            match self.inner.put_opts(location, payload.clone(), opts.clone()).await {
                // Nothing of it is there: objects are written under another name first.
                Err(error) if is_full(&error) && (need == Need::Later || !give_up(&self.space).await) => {
                    if !std::mem::replace(&mut waits, true) {
                        tracing::warn!(object = %location, %error, "the catalog waits for room on its disk");
                    }
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Err(error) if is_full(&error) => {}
                // Moved in between, it may be elsewhere.
                Ok(put) => return look(&self.anchor).await.map(|()| put),
                failed => return self.opening.judge(location, failed),
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let need = Need::of(&opts.extensions);
        wait_for_room(&self.space, need).await;
        look(&self.anchor).await?;
        let inner = self.opening.judge(location, self.inner.put_multipart_opts(location, opts).await);
        let inner = noted(&self.space, need, inner).await?;
        let upload = DiskUpload { inner, space: self.space.clone(), anchor: self.anchor.clone(), need };
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.opening.judge(location, self.inner.get_opts(location, options).await)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.opening.judge(location, self.inner.get_ranges(location, ranges).await)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let anchor = self.anchor.clone();
        let looked_for = locations.and_then(move |location| {
            let anchor = anchor.clone();
            async move { look(&anchor).await.map(|()| location) }
        });
        self.inner.delete_stream(looked_for.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let opening = self.opening.clone();
        let at = prefix.cloned().unwrap_or_default();
        self.inner.list(prefix).map_err(move |error| opening.judged(&at, error)).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        self.opening.judge(&at, self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        look(&self.anchor).await?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// Makes room for the next try of something that met the end of the disk.
async fn noted<T>(space: &DiskSpace, need: Need, done: Result<T>) -> Result<T> {
    if need == Need::Now && done.as_ref().is_err_and(|error| is_full(error)) {
        give_up(space).await;
    }
    done
}

#[derive(Debug)]
struct DiskUpload {
    inner: Box<dyn MultipartUpload>,
    space: DiskSpace,
    anchor: Anchor,
    need: Need,
}

#[async_trait]
impl MultipartUpload for DiskUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, space, need) = (self.inner.put_part(data), self.space.clone(), self.need);
        async move {
            wait_for_room(&space, need).await;
            noted(&space, need, part.await).await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        look(&self.anchor).await?;
        let completed = noted(&self.space, self.need, self.inner.complete().await).await?;
        look(&self.anchor).await.map(|()| completed)
    }

    async fn abort(&mut self) -> Result<()> {
        look(&self.anchor).await?;
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    /// Says that the disk is full to so many puts.
    #[derive(Debug)]
    struct Full(InMemory, AtomicUsize);

    impl fmt::Display for Full {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    #[async_trait]
    impl ObjectStore for Full {
        async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
            if self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(Error::Generic { store: "full", source: Box::new(source) });
            }
            self.0.put_opts(location, payload, opts).await
        }

        async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, opts).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(location, options).await
        }

        fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    fn anchor_in(folder: &std::path::Path) -> Anchor {
        let lock = folder.join("LOCK");
        Anchor::new(lock.clone(), &std::fs::File::create(lock).unwrap(), &[]).unwrap()
    }

    #[tokio::test]
    async fn nothing_is_written_or_deleted_where_the_folder_was() {
        let folder = tempfile::tempdir().unwrap();
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let objects =
            DiskObjects::new(Arc::clone(&memory), DiskSpace::default(), anchor_in(folder.path()), OpeningFlag::begin());
        let (first, second) = (Path::from("manifest/1"), Path::from("manifest/2"));
        objects.put(&first, PutPayload::from_static(b"x")).await.unwrap();
        let mut upload = objects.put_multipart(&second).await.unwrap();

        std::fs::rename(folder.path().join("LOCK"), folder.path().join("moved")).unwrap();

        objects.put(&second, PutPayload::from_static(b"x")).await.unwrap_err();
        objects.delete(&first).await.unwrap_err();
        objects.copy(&first, &second).await.unwrap_err();
        upload.complete().await.unwrap_err();
        memory.head(&first).await.unwrap();
        memory.head(&second).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_be_written_waits_for_room_when_nothing_is_left_to_be_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let full = Arc::new(Full(InMemory::new(), 5.into()));
        let objects = DiskObjects::new(full, DiskSpace::default(), anchor_in(folder.path()), OpeningFlag::begin());
        let at = Path::from("manifest/1");

        let put = objects.put(&at, PutPayload::from_static(b"x"));
        tokio::time::timeout(Duration::from_secs(60), put).await.unwrap().unwrap();

        assert_eq!(objects.get(&at).await.unwrap().bytes().await.unwrap(), "x");
    }

    #[tokio::test(start_paused = true)]
    async fn a_compaction_waits_until_there_is_room_beside_what_is_kept_back() {
        let folder = tempfile::tempdir().unwrap();
        let space = DiskSpace::open(None, Some(folder.path()), Some(0), &crate::metrics::Metrics::new()).unwrap();
        let (memory, anchor) = (Arc::new(InMemory::new()), anchor_in(folder.path()));
        let objects = DiskObjects::new(memory, space.clone(), anchor, OpeningFlag::begin());
        space.give_up(DiskUse::Catalog);
        let put = |kind| {
            let tag = ObjectStoreCallTag::new(kind, slatedb::object_store_tag::SstType::Compacted);
            let opts = PutOptions { extensions: tag.into(), ..PutOptions::default() };
            let objects = &objects;
            async move {
                let at = Path::from("compacted/1");
                let put = objects.put_opts(&at, PutPayload::from_static(b"x"), opts);
                tokio::time::timeout(Duration::from_secs(60), put).await.is_ok()
            }
        };

        assert!(!put(TableStoreKind::Compactor).await);
        assert!(put(TableStoreKind::Main).await);
    }

    #[test]
    fn while_a_database_is_opened_what_no_repeat_cures_is_not_repeated() {
        let (at, opening) = (Path::from("manifest/1"), OpeningFlag::begin());
        let generic = |source: Cause| Error::Generic { store: "disk", source };
        let io = |kind: io::ErrorKind| generic(io::Error::from(kind).into());
        let given_up = |error| NonRetryable::find(&opening.judged(&at, error)).is_some();

        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::IsADirectory] {
            assert!(given_up(io(kind)), "{kind}");
            assert!(!Damaged::is_in(&opening.judged(&at, io(kind))));
        }
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::TimedOut, io::ErrorKind::Other] {
            assert!(!given_up(io(kind)), "{kind}");
        }
        assert!(Damaged::is_in(&opening.judged(&at, generic("the range is beyond the end".into()))));

        opening.done();
        assert!(!given_up(io(io::ErrorKind::PermissionDenied)), "one that is open waits");
    }
}
