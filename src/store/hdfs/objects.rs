//! An HDFS folder as an object store: small objects that are there whole or not at all.
//!
//! An object is written under a hidden name beside its own, synced, closed, and renamed: atomic, and refused if the name
//! is taken where that is asked for. There is no update on condition.
//!
//! # Crash
//! A hidden file stays, `.<name>.<client>.<number>.tmp`. Lists do not show it. The next owner of the store deletes it, and a
//! list does that is taken when it is old.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use hdfs_native::client::FileStatus;
use hdfs_native::file::{FileReader, FileWriter};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Mutex;

use super::client::{HdfsClient, HdfsFault, within};
use crate::runtime::Clock;

/// How an unfinished object ends; it begins with a dot.
const STAGED_END: &str = ".tmp";
/// A hidden file that was not touched for so long is nobody's any more: a put ends, or is given up, within minutes.
const STAGED_AGE: Duration = Duration::from_secs(3600);
/// An object is read in pieces of so many bytes.
const PIECE_BYTES: u64 = 4 << 20;
/// Files deleted at a time.
const DELETES_AT_ONCE: usize = 16;
/// Between two questions what became of a rename.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The objects below an HDFS folder. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct HdfsObjects {
    hdfs: HdfsClient,
    /// Whether an object that comes in parts takes the place of one that has its name by then.
    parts_replace: bool,
}

impl fmt::Display for HdfsObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HDFS {}", self.hdfs.root())
    }
}

impl HdfsObjects {
    pub(crate) fn new(hdfs: HdfsClient) -> Self {
        Self { hdfs, parts_replace: true }
    }

    /// Objects that come in parts replace nothing, either.
    pub(crate) fn creating(self) -> Self {
        Self { parts_replace: false, ..self }
    }

    fn at(&self, location: &Path) -> String {
        self.hdfs.at(location.as_ref())
    }

    /// Deletes what clients of earlier owners have not finished, wherever it is below the folder. This one's own stays.
    ///
    /// # Errors
    /// The error of the list; what could not be deleted is left.
    pub(super) async fn sweep_staged(&self) -> Result<usize, HdfsFault> {
        let listed = self.hdfs.list(self.hdfs.root(), true).await?;
        let staged = listed.into_iter().filter(|file| is_staged(&file.path) && !self.is_own(&file.path));
        let mut swept = 0;
        for file in staged {
            match self.hdfs.delete(&file.path).await {
                Ok(_) => swept += 1,
                Err(error) => tracing::debug!(path = file.path, %error, "an unfinished file of an earlier owner stays"),
            }
        }
        Ok(swept)
    }

    /// Whether this client itself is writing, or was, an object that is not finished.
    fn is_own(&self, staged: &str) -> bool {
        staged.contains(&format!(".{}.", self.hdfs.id()))
    }

    fn stage(&self, location: &Path) -> String {
        let (folder, name) = match location.as_ref().rsplit_once('/') {
            Some((folder, name)) => (folder, name),
            None => ("", location.as_ref()),
        };
        let staged = format!(".{name}.{}.{}{STAGED_END}", self.hdfs.id(), self.hdfs.next_staged());
        self.hdfs.at(&if folder.is_empty() { staged } else { format!("{folder}/{staged}") })
    }

    /// Writes a hidden file, and gives it its name.
    async fn put_staged(&self, location: &Path, payload: PutPayload, overwrite: bool) -> Result<PutResult> {
        let staged = Staged { hdfs: self.hdfs.clone(), path: self.stage(location), location: location.clone() };
        let written = async {
            let mut writer = self.hdfs.create(&staged.path).await?;
            self.hdfs.count(3);
            within(self.hdfs.write_timeout(), async {
                for bytes in payload.iter().filter(|bytes| !bytes.is_empty()) {
                    writer.write_bytes(bytes.clone()).await?;
                }
                end(&mut writer, payload.content_length() > 0).await
            })
            .await
        };
        match written.await {
            Ok(()) => staged.publish(&self.at(location), overwrite, StagedContents::Bytes(&payload)).await,
            Err(error) => {
                staged.discard().await;
                Err(to_error(location, error))
            }
        }
    }

    async fn meta(&self, location: &Path) -> Result<ObjectMeta> {
        let status = self.hdfs.info(&self.at(location)).await.map_err(|error| to_error(location, error))?;
        if status.isdir {
            let path = location.to_string();
            return Err(Error::NotFound { path, source: "it is a folder".into() });
        }
        Ok(meta_of(location.clone(), &status))
    }

    /// The objects below a prefix, and the folders right below it.
    async fn list_below(&self, prefix: Option<&Path>, recursive: bool) -> Result<(Vec<ObjectMeta>, Vec<Path>)> {
        let folder = prefix.map(ToString::to_string).unwrap_or_default();
        let listed = self.hdfs.list(&self.hdfs.at(&folder), recursive).await;
        let listed = listed.map_err(|error| to_error(&Path::from(folder.as_str()), error))?;
        let (mut objects, mut folders) = (vec![], BTreeSet::new());
        for status in listed {
            let Some(name) = status.path.strip_prefix(self.hdfs.root()).map(|name| name.trim_start_matches('/')) else {
                continue;
            };
            // The list of a file is the file itself.
            let inside = folder.is_empty() || name.strip_prefix(&folder).is_some_and(|rest| rest.starts_with('/'));
            let Ok(location) = Path::parse(name) else { continue };
            match (inside, status.isdir) {
                (true, true) => drop(folders.insert(location)),
                (true, false) if is_staged(name) => self.drop_if_old(&status).await,
                (true, false) => objects.push(meta_of(location, &status)),
                (false, _) => {}
            }
        }
        Ok((objects, folders.into_iter().collect()))
    }

    async fn drop_if_old(&self, staged: &FileStatus) {
        // By the NameNode's clock, which may differ from the one here by more than that: what is written now is never old.
        if self.is_own(&staged.path) {
            return;
        }
        let age = Clock::System.now().0.saturating_sub(staged.modification_time);
        if Duration::from_millis(age) > STAGED_AGE
            && let Err(error) = self.hdfs.delete(&staged.path).await
        {
            tracing::debug!(path = staged.path, %error, "an unfinished file stays");
        }
    }
}

/// Syncs what was written, and closes the file.
async fn end(writer: &mut FileWriter, has_bytes: bool) -> Result<(), hdfs_native::HdfsError> {
    // A file that is only closed is in the DataNodes' memory: a power cut would take it.
    if has_bytes {
        writer.hsync().await?;
    }
    writer.close().await
}

/// Whether a path is that of an object which is not finished.
pub(super) fn is_staged(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.starts_with('.') && name.ends_with(STAGED_END)
}

fn meta_of(location: Path, status: &FileStatus) -> ObjectMeta {
    let modified = i64::try_from(status.modification_time).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    let size = status.length as u64;
    let e_tag = Some(format!("{:x}-{size:x}", status.modification_time));
    ObjectMeta { location, last_modified: modified.unwrap_or_default(), size, e_tag, version: None }
}

fn to_error(location: &Path, error: HdfsFault) -> Error {
    let path = location.to_string();
    match &error {
        error_ if error_.is_not_found() => Error::NotFound { path, source: error.into() },
        error_ if error_.is_taken() => Error::AlreadyExists { path, source: error.into() },
        HdfsFault::Hdfs(hdfs_native::HdfsError::RPCError(class, _)) if class.contains("AccessControl") => {
            Error::PermissionDenied { path, source: error.into() }
        }
        _ => Error::Generic { store: "HDFS", source: error.into() },
    }
}

/// A file under a hidden name.
#[derive(Debug)]
struct Staged {
    hdfs: HdfsClient,
    path: String,
    location: Path,
}

impl Staged {
    /// Gives a file that is whole its name. `whole` is what is in it.
    ///
    /// The answer to a rename may be lost. What became of it is then told by the hidden name: if that can be deleted, it was
    /// not renamed, and never will be. If it is gone, either it was renamed, or a later owner has swept it away: what is
    /// under the name tells.
    async fn publish(self, to: &str, overwrite: bool, whole: StagedContents<'_>) -> Result<PutResult> {
        let done = PutResult { e_tag: None, version: None, extensions: Default::default() };
        let error = match self.hdfs.rename(&self.path, to, overwrite).await {
            Ok(()) => return Ok(done),
            Err(error) if error.is_not_found() => return Err(failed(to, error)),
            Err(error) if error.is_taken() => {
                self.discard().await;
                return Err(to_error(&self.location, error));
            }
            Err(error) => error,
        };
        let begun = Clock::instant();
        loop {
            let renamed = match self.hdfs.delete(&self.path).await {
                Ok(true) => Ok(false),
                Ok(false) => whole.are_at(&self.hdfs, to).await,
                Err(late) => Err(late),
            };
            match renamed {
                Ok(true) => return Ok(done),
                Ok(false) => return Err(to_error(&self.location, error)),
                Err(late) if begun.elapsed() > self.hdfs.retry_timeout() => {
                    tracing::debug!(path = self.path, %late, "what became of a rename is not known");
                    return Err(to_error(&self.location, error));
                }
                Err(_) => tokio::time::sleep(LOOK_PAUSE).await,
            }
        }
    }

    /// Removes a file that is not wanted.
    async fn discard(&self) {
        if let Err(error) = self.hdfs.delete(&self.path).await {
            tracing::debug!(path = self.path, %error, "an unfinished file stays");
        }
    }
}

/// What is in a file that was put.
enum StagedContents<'a> {
    Bytes(&'a PutPayload),
    /// So many bytes, under a name that nobody else uses.
    Length(u64),
}

impl StagedContents<'_> {
    /// Whether this is what is under a path. Nothing is claimed of an empty file, which looks like anybody's.
    async fn are_at(&self, hdfs: &HdfsClient, path: &str) -> Result<bool, HdfsFault> {
        let there = match hdfs.info(path).await {
            Ok(status) => status.length as u64,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        match self {
            Self::Length(len) => Ok(there == *len),
            Self::Bytes(payload) if there == 0 || there != payload.content_length() as u64 => Ok(false),
            Self::Bytes(payload) => {
                let file = hdfs.open(path).await?;
                let found = hdfs.read(&file, 0, there).await?;
                Ok(found[..] == Bytes::from((*payload).clone())[..])
            }
        }
    }
}

#[async_trait]
impl ObjectStore for HdfsObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match opts.mode {
            PutMode::Create => self.put_staged(location, payload, false).await,
            PutMode::Overwrite => self.put_staged(location, payload, true).await,
            PutMode::Update(_) => Err(Error::NotImplemented {
                operation: "an update on condition".to_owned(),
                implementer: self.to_string(),
            }),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let staged = Staged { hdfs: self.hdfs.clone(), path: self.stage(location), location: location.clone() };
        let writer = self.hdfs.create(&staged.path).await.map_err(|error| to_error(location, error))?;
        let upload = StagedUpload {
            to: self.at(location),
            staged: Some(staged),
            hdfs: self.hdfs.clone(),
            writer: Arc::new(Mutex::new(Some(writer))),
            last: futures::future::ready(()).boxed().shared(),
            len: 0,
            replaces: self.parts_replace,
        };
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let meta = self.meta(location).await?;
        options.check_preconditions(&meta)?;
        let range = match (&options.range, options.head) {
            (_, true) => 0..0,
            (None, false) => 0..meta.size,
            (Some(wanted), false) => range_of(wanted, meta.size)?,
        };
        let payload = match range.is_empty() {
            true => stream::empty().boxed(),
            false => {
                let file = self.hdfs.open(&self.at(location)).await.map_err(|error| to_error(location, error))?;
                pieces(self.hdfs.clone(), file, location.clone(), range.clone())
            }
        };
        let payload = GetResultPayload::Stream(payload);
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let hdfs = self.hdfs.clone();
        let deleted = locations.map(move |location| {
            let hdfs = hdfs.clone();
            async move {
                let location = location?;
                match hdfs.delete(&hdfs.at(location.as_ref())).await {
                    Ok(true) => Ok(location),
                    Ok(false) => Err(Error::NotFound { path: location.to_string(), source: "it is not there".into() }),
                    Err(error) => Err(to_error(&location, error)),
                }
            }
        });
        deleted.buffered(DELETES_AT_ONCE).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let (objects, _) = store.list_below(prefix.as_ref(), true).await?;
            Ok::<_, Error>(stream::iter(objects.into_iter().map(Ok)))
        };
        listed.into_stream().try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (objects, common_prefixes) = self.list_below(prefix, false).await?;
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self.get_opts(from, GetOptions::default()).await?.bytes().await?;
        self.put_staged(to, bytes.into(), options.mode == CopyMode::Overwrite).await.map(|_| ())
    }
}

fn range_of(wanted: &GetRange, size: u64) -> Result<Range<u64>> {
    let range = match *wanted {
        GetRange::Bounded(ref range) => range.start..range.end.min(size),
        GetRange::Offset(from) => from..size,
        GetRange::Suffix(len) => size.saturating_sub(len)..size,
    };
    if range.start >= size || range.start >= range.end {
        let source = format!("{wanted} of an object of {size} bytes");
        return Err(Error::Generic { store: "HDFS", source: source.into() });
    }
    Ok(range)
}

/// The bytes of a range, piece by piece.
fn pieces(hdfs: HdfsClient, file: FileReader, location: Path, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let next = move |(hdfs, file, location, range): (HdfsClient, FileReader, Path, Range<u64>)| async move {
        if range.is_empty() {
            return None;
        }
        let len = (range.end - range.start).min(PIECE_BYTES);
        let read = hdfs.read(&file, range.start, len).await.map_err(|error| to_error(&location, error));
        // Nothing comes after a failure.
        let rest = if read.is_ok() { range.start + len..range.end } else { range.end..range.end };
        Some((read, (hdfs, file, location, rest)))
    };
    stream::unfold((hdfs, file, location, range), next).boxed()
}

/// An object that comes in parts, which are written in the order in which they were given.
struct StagedUpload {
    to: String,
    staged: Option<Staged>,
    hdfs: HdfsClient,
    /// `None` after a failure.
    writer: Arc<Mutex<Option<FileWriter>>>,
    /// The part before the next one.
    last: futures::future::Shared<futures::future::BoxFuture<'static, ()>>,
    /// Bytes of the parts so far.
    len: u64,
    /// Whether it takes the place of what has its name.
    replaces: bool,
}

impl fmt::Debug for StagedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedUpload").field("to", &self.to).finish_non_exhaustive()
    }
}

impl StagedUpload {
    fn failed(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        failed(&self.to, source)
    }
}

fn failed(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source: Box<dyn std::error::Error + Send + Sync> = source.into();
    Error::Generic { store: "HDFS", source: format!("{path}: {source}").into() }
}

#[async_trait]
impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.len += data.content_length() as u64;
        let (done, ended) = tokio::sync::oneshot::channel::<()>();
        let before = std::mem::replace(&mut self.last, ended.map(|_| ()).boxed().shared());
        let (writer, hdfs, to) = (Arc::clone(&self.writer), self.hdfs.clone(), self.to.clone());
        async move {
            before.await;
            // Dropped when this ends, however it ends: the next part goes on then, and finds no writer after a failure.
            let _done = done;
            let mut writer = writer.lock().await;
            let Some(mut open) = writer.take() else { return Err(failed(&to, "an earlier part failed")) };
            hdfs.count(data.content_length() as u64 >> 27);
            let written = within(hdfs.write_timeout(), async {
                for bytes in data.iter().filter(|bytes| !bytes.is_empty()) {
                    open.write_bytes(bytes.clone()).await?;
                }
                Ok(())
            });
            written.await.map_err(|error| failed(&to, error))?;
            *writer = Some(open);
            Ok(())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.last.clone().await;
        let (writer, staged) = (self.writer.lock().await.take(), self.staged.take());
        let (Some(mut writer), Some(staged)) = (writer, staged) else { return Err(self.failed("a part failed")) };
        self.hdfs.count(3);
        match within(self.hdfs.write_timeout(), end(&mut writer, true)).await {
            Ok(()) => staged.publish(&self.to, self.replaces, StagedContents::Length(self.len)).await,
            Err(error) => {
                staged.discard().await;
                Err(self.failed(error))
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.writer.lock().await.take();
        if let Some(staged) = self.staged.take() {
            staged.discard().await;
        }
        Ok(())
    }
}
