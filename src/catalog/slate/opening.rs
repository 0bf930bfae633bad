//! What storage is asked again and again while a database is opened, asked for once.
//!
//! # The end of the log
//! SlateDB looks for the end of its log name by name: twice as far each time, then by halves, each a request that waits for the one
//! before; and it asks for the length of each file that it replays. While a database is opened, [`OpeningObjects`] answers those
//! questions from one list of the log, made when the first of them comes.
//!
//! The list may be out of date: an owner that is about to be shut out goes on writing. SlateDB asks for the end only to know
//! where to try its fence, which is created under a condition, so a name that is taken by now is found then. From the first file that
//! is written here on, what the list does not have is asked for again. Files of the log never change, and those behind the
//! tables are not deleted, so what it has stays true.
//!
//! # Manifests
//! The manifests, and the files about compactions, are two sequences: each file is created once, under the next number, and never
//! changed. SlateDB reads the newest one a dozen times while it opens, each time a list, the file, and `gc/<kind>.boundary`, up to which
//! old ones were collected: a name below it may be free and yet was used. Until something of that sequence is written from here, all
//! three are answered with what storage said before. What is out of date by then comes out with the write: its name is taken, or
//! below the boundary, which is read anew after each write, as everything else is.
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Mutex;

/// The folders whose files are numbered, created once and never changed.
const SEQUENCES: [&str; 2] = ["manifest", "compactions"];
/// Files of the log that one request lists. What lies behind them is asked for as before.
const LISTED_MAX: usize = 1000;

/// The objects of a database that is being opened. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct OpeningObjects {
    inner: Arc<dyn ObjectStore>,
    /// Of the database.
    prefix: Path,
    /// Of the log.
    folder: Path,
    shared: Arc<OpeningShared>,
}

#[derive(Debug)]
struct OpeningShared {
    opens: AtomicBool,
    /// Something was written to the log from here.
    wrote: AtomicBool,
    listed: Mutex<Option<ListedLog>>,
    /// By what they are of.
    sequences: [parking_lot::Mutex<KnownSequence>; SEQUENCES.len()],
}

/// What storage said of a sequence of files.
#[derive(Debug, Default)]
struct KnownSequence {
    /// Beginnings and ends of writes from here.
    writes: u64,
    /// Its list, as it was after so many of them.
    listed: Option<(u64, Vec<ObjectMeta>)>,
    /// Its boundary, likewise.
    boundary: Option<(u64, BoundaryAnswer)>,
    files: HashMap<Path, (ObjectMeta, Bytes)>,
}

impl KnownSequence {
    /// A file is not there. If the list has it, another owner has collected it since: whoever looks again, as SlateDB does until list and
    /// files agree, has to be told what is so now.
    fn misses(&mut self, location: &Path) {
        if self.listed.as_ref().is_some_and(|(_, listed)| listed.iter().any(|file| file.location == *location)) {
            (self.listed, self.boundary) = (None, None);
        }
    }
}

/// What storage said of a boundary.
#[derive(Debug, Clone)]
enum BoundaryAnswer {
    There(ObjectMeta, Bytes),
    /// The one with this entity tag.
    Same(String),
    Absent,
}

/// The log as it was listed.
#[derive(Debug)]
struct ListedLog {
    files: HashMap<Path, ObjectMeta>,
    /// The first name that was asked for: nothing is known of those before.
    first: Path,
    /// The last file, if there may be more behind it.
    cut_at: Option<Path>,
}

/// What a list says of a file.
enum ListAnswer {
    There(ObjectMeta),
    Absent,
    Nothing,
}

impl OpeningObjects {
    /// Of the database below `prefix`.
    pub(super) fn new(inner: Arc<dyn ObjectStore>, prefix: &Path) -> Self {
        let shared = OpeningShared {
            opens: AtomicBool::new(true),
            wrote: AtomicBool::new(false),
            listed: Mutex::default(),
            sequences: Default::default(),
        };
        let folder = prefix.clone().join("wal");
        Self { inner, prefix: prefix.clone(), folder, shared: Arc::new(shared) }
    }

    /// The database is open: everything is asked for from here on.
    pub(super) async fn done(&self) {
        self.shared.opens.store(false, Ordering::Release);
        *self.shared.listed.lock().await = None;
        for sequence in &self.shared.sequences {
            *sequence.lock() = KnownSequence::default();
        }
    }

    fn opens(&self) -> bool {
        self.shared.opens.load(Ordering::Acquire)
    }

    fn is_of_log(&self, location: &Path) -> bool {
        location.prefix_matches(&self.folder)
    }

    async fn said(&self, location: &Path) -> Result<ListAnswer> {
        if !self.opens() || !self.is_of_log(location) {
            return Ok(ListAnswer::Nothing);
        }
        let mut listed = self.shared.listed.lock().await;
        let listed = match &mut *listed {
            Some(listed) => listed,
            none => none.insert(self.list_from(location).await?),
        };
        Ok(match listed.files.get(location) {
            Some(file) => ListAnswer::There(file.clone()),
            None if self.shared.wrote.load(Ordering::Acquire) || !listed.covers(location) => ListAnswer::Nothing,
            None => ListAnswer::Absent,
        })
    }

    /// Begins or ends a write.
    fn writes(&self, location: &Path) {
        if self.is_of_log(location) {
            self.shared.wrote.store(true, Ordering::Release);
        } else if let Some(sequence) = self.sequence(location) {
            sequence.lock().writes += 1;
        }
    }

    /// The sequence that a file or its folder is of, or whose boundary it is.
    fn sequence(&self, location: &Path) -> Option<&parking_lot::Mutex<KnownSequence>> {
        let is_of = |name: &&str| {
            let boundary = || self.prefix.clone().join("gc").join(format!("{name}.boundary"));
            location.prefix_matches(&self.prefix.clone().join(*name)) || *location == boundary()
        };
        self.shared.sequences.get(SEQUENCES.iter().position(is_of)?)
    }

    fn is_boundary(location: &Path) -> bool {
        location.extension() == Some("boundary")
    }

    /// Reads a file of a sequence.
    async fn file(&self, sequence: &parking_lot::Mutex<KnownSequence>, location: &Path) -> Result<GetResult> {
        let known = sequence.lock().files.get(location).cloned();
        let (meta, bytes) = match known {
            Some(known) => known,
            None => {
                let found = self.inner.get_opts(location, GetOptions::default()).await;
                if let Err(Error::NotFound { .. }) = &found {
                    sequence.lock().misses(location);
                }
                let found = found?;
                let read = (found.meta.clone(), found.bytes().await?);
                if self.opens() {
                    sequence.lock().files.insert(location.clone(), read.clone());
                }
                read
            }
        };
        Ok(here(meta, bytes))
    }

    /// Lists a sequence.
    async fn list_of(&self, sequence: &parking_lot::Mutex<KnownSequence>, folder: &Path) -> Result<Vec<ObjectMeta>> {
        let writes = {
            let known = sequence.lock();
            match &known.listed {
                Some((at, listed)) if *at == known.writes => return Ok(listed.clone()),
                _ => known.writes,
            }
        };
        let listed: Vec<_> = self.inner.list(Some(folder)).try_collect().await?;
        self.remember(sequence, writes, |known| known.listed = Some((writes, listed.clone())));
        Ok(listed)
    }

    /// What was asked beside a write may be from before it.
    fn remember(
        &self,
        sequence: &parking_lot::Mutex<KnownSequence>,
        writes: u64,
        what: impl FnOnce(&mut KnownSequence),
    ) {
        let mut known = sequence.lock();
        if self.opens() && known.writes == writes {
            what(&mut known);
        }
    }

    /// Reads the boundary of a sequence.
    async fn boundary(
        &self,
        sequence: &parking_lot::Mutex<KnownSequence>,
        location: &Path,
        options: GetOptions,
    ) -> Result<GetResult> {
        let tag = options.if_none_match.clone();
        let writes = {
            let known = sequence.lock();
            let said = known.boundary.clone().filter(|(at, _)| *at == known.writes);
            if let Some(answer) = said.and_then(|(_, said)| said.answer(location, tag.as_deref())) {
                return answer;
            }
            known.writes
        };
        let (said, answer) = match (self.inner.get_opts(location, options).await, &tag) {
            (Ok(found), _) => {
                let (meta, bytes) = (found.meta.clone(), found.bytes().await?);
                (BoundaryAnswer::There(meta.clone(), bytes.clone()), Ok(here(meta, bytes)))
            }
            (Err(error @ Error::NotFound { .. }), _) => (BoundaryAnswer::Absent, Err(error)),
            (Err(error @ Error::NotModified { .. }), Some(tag)) => (BoundaryAnswer::Same(tag.clone()), Err(error)),
            (Err(error), _) => return Err(error),
        };
        self.remember(sequence, writes, |known| known.boundary = Some((writes, said)));
        answer
    }

    /// Lists the log from `first` on.
    async fn list_from(&self, first: &Path) -> Result<ListedLog> {
        // A list begins behind a name: this one sorts just before the first.
        let before = Path::parse(first.as_ref().strip_suffix(".sst").unwrap_or(first.as_ref()))?;
        let files = self.inner.list_with_offset(Some(&self.folder), &before).take(LISTED_MAX);
        let files: Vec<_> = files.try_collect().await?;
        let last = files.iter().map(|file| file.location.clone()).max();
        let cut_at = last.filter(|_| files.len() == LISTED_MAX);
        let files = files.into_iter().map(|file| (file.location.clone(), file)).collect();
        Ok(ListedLog { files, first: first.clone(), cut_at })
    }
}

impl BoundaryAnswer {
    /// What storage would answer somebody who has the one with this entity tag; `None` if that is not known.
    fn answer(self, location: &Path, tag: Option<&str>) -> Option<Result<GetResult>> {
        let same = |there: Option<&str>| tag.is_some() && tag == there;
        match self {
            Self::There(meta, _) if same(meta.e_tag.as_deref()) => Some(Err(not_modified(location))),
            Self::There(meta, bytes) => Some(Ok(here(meta, bytes))),
            Self::Same(there) if same(Some(&there)) => Some(Err(not_modified(location))),
            Self::Same(_) => None,
            Self::Absent => Some(Err(absent(location))),
        }
    }
}

/// Whether somebody wants the whole file, whatever it is.
fn is_plain(options: &GetOptions) -> bool {
    let GetOptions { if_match, if_none_match, if_modified_since, if_unmodified_since, range, version, .. } = options;
    let is_conditional =
        if_match.is_some() || if_none_match.is_some() || if_modified_since.is_some() || if_unmodified_since.is_some();
    !is_conditional && range.is_none() && version.is_none()
}

fn here(meta: ObjectMeta, bytes: Bytes) -> GetResult {
    let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed());
    let (attributes, extensions) = (Attributes::default(), Extensions::default());
    GetResult { payload, range: 0..meta.size, meta, attributes, extensions }
}

fn absent(location: &Path) -> Error {
    Error::NotFound { path: location.to_string(), source: "storage said so before".into() }
}

fn not_modified(location: &Path) -> Error {
    Error::NotModified { path: location.to_string(), source: "storage said so before".into() }
}

impl ListedLog {
    fn covers(&self, location: &Path) -> bool {
        *location >= self.first && self.cut_at.as_ref().is_none_or(|last| location <= last)
    }
}

impl fmt::Display for OpeningObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for OpeningObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.writes(location);
        let put = self.inner.put_opts(location, payload, opts).await;
        self.writes(location);
        put
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.writes(location);
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            match self.said(location).await? {
                ListAnswer::There(meta) => return Ok(here(meta, Bytes::new())),
                ListAnswer::Absent => return Err(absent(location)),
                ListAnswer::Nothing => {}
            }
        } else if self.opens()
            && let Some(sequence) = self.sequence(location)
        {
            if Self::is_boundary(location) {
                return self.boundary(sequence, location, options).await;
            }
            if is_plain(&options) {
                return self.file(sequence, location).await;
            }
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let Some(folder) = prefix.filter(|folder| self.opens() && self.sequence(folder).is_some()).cloned() else {
            return self.inner.list(prefix);
        };
        let this = self.clone();
        let listing = async move {
            let sequence = this.sequence(&folder).ok_or_else(|| absent(&folder))?;
            this.list_of(sequence, &folder).await
        };
        listing.map_ok(|listed| futures::stream::iter(listed.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    async fn put(store: &dyn ObjectStore, key: &str, text: &'static str) {
        store.put_opts(&Path::from(key), text.into(), PutOptions::default()).await.unwrap();
    }

    /// The boundary as somebody is told who has the one with this entity tag: its text and its own tag.
    async fn boundary(store: &OpeningObjects, tag: Option<&str>) -> Result<(String, Option<String>)> {
        let options = GetOptions { if_none_match: tag.map(str::to_owned), ..GetOptions::default() };
        let found = store.get_opts(&Path::from("db/gc/manifest.boundary"), options).await?;
        let tag = found.meta.e_tag.clone();
        Ok((String::from_utf8(found.bytes().await?.to_vec()).unwrap(), tag))
    }

    #[tokio::test]
    async fn a_boundary_is_asked_for_again_after_each_write_and_once_the_database_is_open() {
        let inner = Arc::new(InMemory::new());
        let store = OpeningObjects::new(Arc::<InMemory>::clone(&inner), &Path::from("db"));
        assert!(matches!(boundary(&store, None).await, Err(Error::NotFound { .. })));

        put(&*inner, "db/gc/manifest.boundary", "1").await;
        assert!(matches!(boundary(&store, None).await, Err(Error::NotFound { .. })), "as storage said before");
        // Of the log, which has no boundary.
        put(&store, "db/wal/00000000000000000007.sst", "log").await;
        assert!(matches!(boundary(&store, None).await, Err(Error::NotFound { .. })));
        put(&store, "db/manifest/00000000000000000002.manifest", "manifest").await;
        let (text, tag) = boundary(&store, None).await.unwrap();
        assert_eq!(text, "1", "after a write it is looked for");

        put(&*inner, "db/gc/manifest.boundary", "2").await;
        assert!(matches!(boundary(&store, tag.as_deref()).await, Err(Error::NotModified { .. })));
        assert_eq!(boundary(&store, Some("another")).await.unwrap().0, "1");
        put(&store, "db/manifest/00000000000000000003.manifest", "manifest").await;
        assert_eq!(boundary(&store, tag.as_deref()).await.unwrap().0, "2");

        put(&*inner, "db/gc/manifest.boundary", "3").await;
        store.done().await;
        assert_eq!(boundary(&store, None).await.unwrap().0, "3");
    }

    #[tokio::test]
    async fn a_sequence_is_listed_again_after_each_write_of_its_own_and_its_files_are_read_once() {
        let inner = Arc::new(InMemory::new());
        let store = OpeningObjects::new(Arc::<InMemory>::clone(&inner), &Path::from("db"));
        let [first, second] = [1, 2].map(|number| format!("db/manifest/{number:020}.manifest"));
        let listed = async || {
            let files: Vec<_> = store.list(Some(&Path::from("db/manifest"))).try_collect().await.unwrap();
            files.len()
        };
        let read = async |key: &str| Ok::<_, Error>(store.get(&Path::from(key)).await?.bytes().await?);
        put(&*inner, &first, "first").await;
        assert_eq!((listed().await, read(&first).await.unwrap().as_ref()), (1, &b"first"[..]));

        // As another owner does.
        put(&*inner, &second, "second").await;
        inner.delete(&Path::from(&*first)).await.unwrap();
        assert_eq!(
            (listed().await, read(&first).await.unwrap().as_ref()),
            (1, &b"first"[..]),
            "as storage said before"
        );
        assert_eq!(read(&second).await.unwrap().as_ref(), b"second", "what was not asked for is");
        put(&store, "db/compactions/00000000000000000001.compactions", "other").await;
        assert_eq!(listed().await, 1, "of another sequence");
        let taken = PutOptions::from(object_store::PutMode::Create);
        assert!(matches!(
            store.put_opts(&Path::from(&*second), "mine".into(), taken).await,
            Err(Error::AlreadyExists { .. })
        ));
        put(&*inner, "db/manifest/00000000000000000003.manifest", "third").await;
        assert_eq!(listed().await, 2, "who was told that the name is taken looks anew");

        store.done().await;
        put(&*inner, "db/manifest/00000000000000000004.manifest", "fourth").await;
        assert_eq!(listed().await, 3);
        assert!(matches!(read(&first).await, Err(Error::NotFound { .. })));
    }

    /// A take-over that came in between: its owner's collector is at work while this one still opens the database.
    #[tokio::test]
    async fn a_file_that_was_collected_since_it_was_listed_is_listed_no_more() {
        let inner = Arc::new(InMemory::new());
        let store = OpeningObjects::new(Arc::<InMemory>::clone(&inner), &Path::from("db"));
        let [first, second] = [1, 2].map(|number| format!("db/compactions/{number:020}.compactions"));
        let listed = async || {
            let files = store.list(Some(&Path::from("db/compactions"))).try_collect::<Vec<_>>().await.unwrap();
            files.into_iter().map(|file| file.location).collect::<Vec<_>>()
        };
        put(&*inner, &first, "first").await;
        assert_eq!(listed().await, [Path::from(&*first)]);
        put(&*inner, &second, "second").await;
        inner.delete(&Path::from(&*first)).await.unwrap();
        assert_eq!(listed().await, [Path::from(&*first)], "as storage said before");

        assert!(matches!(store.get(&Path::from(&*first)).await, Err(Error::NotFound { .. })));

        assert_eq!(listed().await, [Path::from(&*second)]);
        // One that was not listed says nothing of the list.
        put(&*inner, "db/compactions/00000000000000000003.compactions", "third").await;
        let next = Path::from("db/compactions/00000000000000000004.compactions");
        assert!(matches!(store.get(&next).await, Err(Error::NotFound { .. })));
        assert_eq!(listed().await, [Path::from(&*second)]);
    }

    #[tokio::test]
    async fn who_has_the_boundary_already_is_told_no_more_than_that() {
        let inner = Arc::new(InMemory::new());
        let store = OpeningObjects::new(Arc::<InMemory>::clone(&inner), &Path::from("db"));
        put(&*inner, "db/gc/manifest.boundary", "1").await;
        let tag = inner.head(&Path::from("db/gc/manifest.boundary")).await.unwrap().e_tag;

        assert!(matches!(boundary(&store, tag.as_deref()).await, Err(Error::NotModified { .. })));
        assert!(matches!(boundary(&store, tag.as_deref()).await, Err(Error::NotModified { .. })), "as before");
        assert_eq!(boundary(&store, None).await.unwrap().0, "1", "who does not have it gets it");
    }
}
