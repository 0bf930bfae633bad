//! Where the log on an object store ends, by one request in place of a dozen.
//!
//! SlateDB looks for the end of its log name by name: twice as far each time, then by halves, each a request that waits for the one
//! before; and it asks for the length of each file that it replays. While a database is opened, [`LogTail`] answers those
//! questions from one list of the log, made when the first of them comes.
//!
//! The list may be out of date: an owner that is about to be shut out goes on writing. SlateDB asks for the end only to know
//! where to try its fence, which is created under a condition, so a name that is taken by now is found then. From the first file that
//! is written here on, what the list does not have is asked for again. Files of the log never change, and those behind the
//! tables are not deleted, so what it has stays true.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Mutex;

/// Files of the log that one request lists. What lies behind them is asked for as before.
const LISTED_MAX: usize = 1000;

/// The objects of a database that is being opened. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct LogTail {
    inner: Arc<dyn ObjectStore>,
    folder: Path,
    shared: Arc<TailShared>,
}

#[derive(Debug)]
struct TailShared {
    opens: AtomicBool,
    /// Something was written to the log from here.
    wrote: AtomicBool,
    listed: Mutex<Option<ListedLog>>,
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

impl LogTail {
    /// Of the database below `prefix`.
    pub(super) fn new(inner: Arc<dyn ObjectStore>, prefix: &Path) -> Self {
        let shared =
            TailShared { opens: AtomicBool::new(true), wrote: AtomicBool::new(false), listed: Mutex::default() };
        Self { inner, folder: prefix.clone().join("wal"), shared: Arc::new(shared) }
    }

    /// The database is open: everything is asked for from here on.
    pub(super) async fn done(&self) {
        self.shared.opens.store(false, Ordering::Release);
        *self.shared.listed.lock().await = None;
    }

    fn is_of_log(&self, location: &Path) -> bool {
        location.prefix_matches(&self.folder)
    }

    async fn said(&self, location: &Path) -> Result<ListAnswer> {
        if !self.shared.opens.load(Ordering::Acquire) || !self.is_of_log(location) {
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

impl ListedLog {
    fn covers(&self, location: &Path) -> bool {
        *location >= self.first && self.cut_at.as_ref().is_none_or(|last| location <= last)
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for LogTail {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if self.is_of_log(location) {
            self.shared.wrote.store(true, Ordering::Release);
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        if self.is_of_log(location) {
            self.shared.wrote.store(true, Ordering::Release);
        }
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            match self.said(location).await? {
                ListAnswer::There(meta) => {
                    let payload = GetResultPayload::Stream(futures::stream::empty().boxed());
                    let (attributes, extensions) = (Attributes::default(), Extensions::default());
                    return Ok(GetResult { payload, range: 0..meta.size, meta, attributes, extensions });
                }
                ListAnswer::Absent => {
                    let source = "it is not in the list of the log".into();
                    return Err(Error::NotFound { path: location.to_string(), source });
                }
                ListAnswer::Nothing => {}
            }
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
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
