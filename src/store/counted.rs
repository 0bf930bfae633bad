//! Counting requests to the backend by operation, and telling a name that is taken from one that the backend was busy with.
//!
//! S3 may answer a conditional create with 409 `ConditionalRequestConflict`: another request for the name was on its way, and
//! this one was not carried out; Azure has its own reasons for a 409. `object_store` calls that `AlreadyExists`, too. To whoever puts a physical file it would
//! mean that a successor took the name, and to SlateDB that it is shut out. So before that is said, the name is looked at.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::time::Instant;

use tokio::sync::Semaphore;

use super::StoreError;
use crate::metrics::Metrics;
use crate::metrics::labels::{Purpose, StoreOperation};
use crate::metrics::writes::{InProgress, WriteKind};
use crate::runtime::Clock;

/// Number of times that a create is repeated whose name turns out to be free, and the pause before the first repeat.
const CREATES_REPEATED: u32 = 3;
const CREATE_PAUSE: Duration = Duration::from_millis(50);

/// Counts the requests of one kind of traffic: `data` or `catalog`.
#[derive(Debug, Clone)]
pub struct Traffic {
    metrics: Metrics,
    of: Purpose,
}

impl Traffic {
    /// Requests for physical files.
    pub fn data(metrics: Metrics) -> Self {
        Self { metrics, of: Purpose::Data }
    }

    /// Requests for the catalog.
    pub fn catalog(metrics: Metrics) -> Self {
        Self { metrics, of: Purpose::Catalog }
    }

    /// Counts a request and how long it takes.
    pub async fn time<T, E: BackendError>(
        &self,
        operation: StoreOperation,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let timer = self.begin(operation);
        let answer = request.await;
        timer.end(answer)
    }

    /// The same for a request that blocks.
    pub fn time_blocking<T, E: BackendError>(
        &self,
        operation: StoreOperation,
        request: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let timer = self.begin(operation);
        timer.end(request())
    }

    fn begin(&self, operation: StoreOperation) -> Timer<'_> {
        self.count(operation);
        let begun = Clock::instant();
        let kind = WriteKind::of(operation, self.of);
        let write = kind.map(|kind| (kind, self.metrics.writes().begin(kind, begun)));
        Timer { metrics: &self.metrics, labels: (operation, self.of), begun, write }
    }

    fn count(&self, operation: StoreOperation) {
        self.metrics.store_requests.of((operation, self.of)).inc();
    }
}

/// Tells the answers of a backend that works from its failures: both are errors to whoever asked.
pub trait BackendError: std::error::Error {
    /// Whether the backend answered as it should: there is no such file, a condition does not hold.
    fn is_answer(&self) -> bool;
}

impl BackendError for object_store::Error {
    fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::AlreadyExists { .. } | Self::Precondition { .. } | Self::NotModified { .. }
        )
    }
}

impl BackendError for StoreError {
    fn is_answer(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::Unsupported(_))
    }
}

impl BackendError for std::io::Error {
    fn is_answer(&self) -> bool {
        false
    }
}

/// A request in progress.
struct Timer<'a> {
    metrics: &'a Metrics,
    labels: (StoreOperation, Purpose),
    begun: Instant,
    write: Option<(WriteKind, InProgress<'a>)>,
}

impl Timer<'_> {
    fn end<T, E: BackendError>(self, answer: Result<T, E>) -> Result<T, E> {
        self.metrics.store_seconds.of(self.labels).observe(self.begun.elapsed().as_secs_f64());
        let failure = answer.as_ref().err().filter(|error| !error.is_answer());
        if failure.is_some() {
            self.metrics.store_errors.of(self.labels).inc();
        }
        if let Some((kind, _)) = self.write {
            let (writes, at) = (self.metrics.writes(), self.labels.0);
            match failure {
                Some(error) => writes.failed(kind, at, Clock::instant(), crate::error::chain(error)),
                None => writes.succeeded(kind, at),
            }
        }
        answer
    }
}

/// An object store whose requests are counted.
#[derive(Debug)]
pub struct CountedStore {
    inner: Arc<dyn ObjectStore>,
    traffic: Traffic,
}

impl CountedStore {
    /// Counts the requests to `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, traffic: Traffic) -> Self {
        Self { inner, traffic }
    }
}

impl fmt::Display for CountedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for CountedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Create {
            return self.traffic.time(StoreOperation::Put, self.inner.put_opts(location, payload, opts)).await;
        }
        let mut tries = 0;
        loop {
            let create = self.inner.put_opts(location, payload.clone(), opts.clone());
            let taken = match self.traffic.time(StoreOperation::Put, create).await {
                Err(error @ Error::AlreadyExists { .. }) => error,
                answer => return answer,
            };
            match self.head(location).await {
                Ok(_) => return Err(taken),
                Err(Error::NotFound { .. }) if tries < CREATES_REPEATED => {}
                // Nobody knows who has the name: whoever asked may ask again.
                Err(Error::NotFound { .. }) => return Err(Error::Generic { store: "esker", source: taken.into() }),
                Err(error) => return Err(error),
            }
            tries += 1;
            tokio::time::sleep(CREATE_PAUSE * tries).await;
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload =
            self.traffic.time(StoreOperation::MultipartCreate, self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(CountedUpload { inner: upload, traffic: self.traffic.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { StoreOperation::Head } else { StoreOperation::Get };
        self.traffic.time(operation, self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.traffic.time(StoreOperation::Get, self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.traffic.count(StoreOperation::Delete);
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.traffic.count(StoreOperation::List);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.traffic.count(StoreOperation::List);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.traffic.time(StoreOperation::List, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.traffic.time(StoreOperation::Copy, self.inner.copy_opts(from, to, options)).await
    }
}

/// Multipart uploads by their ids, so that one can be given up by a daemon that did not begin it. Requests are counted, and
/// so many at a time. Clones share it.
#[derive(Clone)]
pub struct Multipart {
    inner: Arc<dyn MultipartStore>,
    requests: Arc<Semaphore>,
    traffic: Traffic,
}

impl fmt::Debug for Multipart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multipart").field("traffic", &self.traffic).finish_non_exhaustive()
    }
}

impl Multipart {
    /// At most `requests_max` requests to `inner` at a time.
    pub fn new(inner: Arc<dyn MultipartStore>, requests_max: usize, traffic: Traffic) -> Self {
        let requests = Arc::new(Semaphore::new(requests_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { inner, requests, traffic }
    }

    async fn time<T>(&self, operation: StoreOperation, request: impl Future<Output = Result<T>>) -> Result<T> {
        let _permit = self.requests.acquire().await;
        self.traffic.time(operation, request).await
    }

    pub(super) async fn create(&self, path: &Path) -> Result<MultipartId> {
        self.time(StoreOperation::MultipartCreate, self.inner.create_multipart(path)).await
    }

    pub(super) async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        index: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        self.time(StoreOperation::MultipartPart, self.inner.put_part(path, id, index, data)).await
    }

    pub(super) async fn complete(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.time(StoreOperation::MultipartComplete, self.inner.complete_multipart(path, id, parts)).await
    }

    pub(super) async fn abort(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.time(StoreOperation::MultipartAbort, self.inner.abort_multipart(path, id)).await
    }
}

#[derive(Debug)]
struct CountedUpload {
    inner: Box<dyn MultipartUpload>,
    traffic: Traffic,
}

#[async_trait]
impl MultipartUpload for CountedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.traffic.count(StoreOperation::MultipartPart);
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.traffic.time(StoreOperation::MultipartComplete, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.traffic.time(StoreOperation::MultipartAbort, self.inner.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_a_request_but_no_failure_of_the_backend() {
        let metrics = Metrics::new();
        let store = CountedStore::new(Arc::new(InMemory::new()), Traffic::catalog(metrics.clone()));
        let at = Path::from("a");

        assert!(store.get(&at).await.is_err() && store.head(&at).await.is_err());
        store.put(&at, PutPayload::from_static(b"x")).await.unwrap();
        let again = store.put_opts(&at, PutPayload::from_static(b"y"), object_store::PutMode::Create.into()).await;

        assert!(again.is_err());
        assert_eq!(metrics.store_errors_total(), 0.0);
        assert_eq!(metrics.store_requests.of((StoreOperation::Put, Purpose::Catalog)).get(), 2);
        assert!(store.get_range(&at, 7..9).await.is_err());
        assert_eq!(metrics.store_errors_total(), 1.0, "a range that is not there is a fault");
    }
}
