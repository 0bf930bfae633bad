//! A client of the native API, for Rust programs, the command line and tests.
//!
//! Connections are kept and shared; a [`Client`] is cheap to clone. Nothing is repeated behind the caller's back: a put
//! with an idempotency key may be sent again after any error.

mod lifecycle;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::api::body::CRC_HEADER;
use crate::api::wire::{
    BatchAnswer, BatchHead, CheckpointInfo, ErrorBody, JobInfo, ListedSegment, NewJob, ObjectPage, PutParams,
    RestoreEnd, RestoreHead, RestoreRequest, SegmentInfo, SegmentPage,
};
use crate::model::{SegmentHasher, crc32c};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("the address {0:?} must be http://HOST:PORT or unix:PATH")]
    Address(String),
    /// No answer came; whether the request was carried out is not known.
    #[error("no answer from {address}")]
    Connection {
        /// The daemon's address.
        address: String,
        /// What broke.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon answered with an error.
    #[error("{status}: {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// `invalid`, `not_found`, `conflict`, `overloaded`, `unavailable`, ...
        kind: String,
        /// What it says.
        message: String,
    },
    /// The answer is not what the API says.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
    /// The bytes that arrived are not those that were stored.
    #[error("the bytes have CRC-32C {actual:08x}, the daemon announced {announced}")]
    Checksum {
        /// What the daemon announced.
        announced: String,
        /// What arrived.
        actual: u32,
    },
    /// The answer to a restore is not whole.
    #[error("the restore broke off after {whole} segments, at {}: {message}", .segment.as_deref().unwrap_or("the next one"))]
    BrokenOff {
        /// How many segments arrived whole.
        whole: u64,
        /// The segment that did not, if the daemon lived to say which.
        segment: Option<String>,
        /// What happened.
        message: String,
    },
}

impl ClientError {
    /// The status, if the daemon answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Connection { .. }) || self.status() == Some(StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// Talks to one daemon. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: HttpClient<Connector, Full<Bytes>>,
    address: String,
    base: String,
    token: Option<String>,
}

impl Client {
    /// A client of the daemon at `http://HOST:PORT` or `unix:PATH`; connects when it is used.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn new(address: &str, token: Option<String>) -> Result<Self, ClientError> {
        let bad = || ClientError::Address(address.to_owned());
        let (connector, base) = match address.strip_prefix("unix:") {
            Some(path) => (Connector::Unix(path.into()), "http://esker".to_owned()),
            None => {
                let base = address.trim_end_matches('/');
                let uri: Uri = base.parse().map_err(|_| bad())?;
                if uri.scheme_str() != Some("http") || uri.host().is_none() {
                    return Err(bad());
                }
                let mut tcp = HttpConnector::new();
                tcp.set_nodelay(true);
                (Connector::Tcp(tcp), base.to_owned())
            }
        };
        let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { http, address: address.to_owned(), base, token })
    }

    /// Makes a job known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_job(&self, job: &str) -> Result<JobInfo, ClientError> {
        let body = serde_json::to_vec(&NewJob { job: job.to_owned() });
        let body = body.map_err(|error| ClientError::Answer(error.to_string()))?;
        self.json(self.request(Method::POST, "/v1/jobs"), body.into()).await
    }

    /// All jobs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn jobs(&self) -> Result<Vec<JobInfo>, ClientError> {
        self.json(self.request(Method::GET, "/v1/jobs"), Bytes::new()).await
    }

    /// Stores one segment. Returns once it is durable.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Connection`] it may be stored.
    pub async fn put(
        &self,
        job: &str,
        params: &PutParams,
        idempotency_key: Option<&str>,
        data: Bytes,
    ) -> Result<SegmentInfo, ClientError> {
        let path = format!("/v1/jobs/{}/segments?{}", part(job), query_of(params));
        let mut request = self.request(Method::POST, &path).header(CRC_HEADER, format!("{:08x}", crc32c(&data)));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.json(request, data).await
    }

    /// Stores many segments in one request. Returns an answer for each, in order.
    ///
    /// # Errors
    /// [`ClientError`] if there is no answer at all; after [`ClientError::Connection`] any of them may be stored.
    pub async fn put_many(&self, job: &str, segments: &[(BatchHead, Bytes)]) -> Result<Vec<BatchAnswer>, ClientError> {
        let mut body = BytesMut::with_capacity(segments.iter().map(|(_, data)| data.len() + 256).sum());
        for (head, data) in segments {
            let head = BatchHead {
                len: data.len() as u64,
                crc32c: head.crc32c.clone().or_else(|| Some(format!("{:08x}", crc32c(data)))),
                ..head.clone()
            };
            let head = serde_json::to_vec(&head).map_err(|error| ClientError::Answer(error.to_string()))?;
            body.put_u32_le(head.len() as u32);
            body.put_slice(&head);
            body.put_slice(data);
        }
        let request = self.request(Method::POST, &format!("/v1/jobs/{}/segments/batch", part(job)));
        let (_, answer) = self.send(request, body.freeze()).await?;
        let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(parse).collect()
    }

    /// The bytes of a segment, checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, segment: &str) -> Result<Bytes, ClientError> {
        self.read(&format!("/v1/segments/{}", part(segment))).await
    }

    /// The bytes of the segment that a handle names, checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_handle(&self, handle: &str) -> Result<Bytes, ClientError> {
        self.read(&format!("/v1/handles/{}", part(handle))).await
    }

    async fn read(&self, path: &str) -> Result<Bytes, ClientError> {
        let (headers, bytes) = self.send(self.request(Method::GET, path), Bytes::new()).await?;
        let announced = headers.get(CRC_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let actual = crc32c(&bytes);
        if announced != format!("{actual:08x}") {
            return Err(ClientError::Checksum { announced: announced.to_owned(), actual });
        }
        Ok(bytes)
    }

    /// Bytes `range` of a segment.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_range(&self, segment: &str, range: std::ops::Range<u64>) -> Result<Bytes, ClientError> {
        let request = self.request(Method::GET, &format!("/v1/segments/{}", part(segment)));
        let last = range.end.saturating_sub(1);
        let request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
        Ok(self.send(request, Bytes::new()).await?.1)
    }

    /// One page of a job's segments.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn segments(
        &self,
        job: &str,
        checkpoint: Option<u64>,
        after: Option<&str>,
    ) -> Result<SegmentPage, ClientError> {
        let mut path = format!("/v1/jobs/{}/segments?limit=1000", part(job));
        if let Some(checkpoint) = checkpoint {
            path.push_str(&format!("&checkpoint={checkpoint}"));
        }
        if let Some(after) = after {
            path.push_str(&format!("&after={}", part(after)));
        }
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }

    /// Asks for the bytes of many segments in one answer.
    ///
    /// # Errors
    /// [`ClientError`]; nothing arrived then.
    pub async fn restore(&self, wanted: &RestoreRequest) -> Result<Restore, ClientError> {
        let body = serde_json::to_vec(wanted).map_err(|error| ClientError::Answer(error.to_string()))?;
        let body = self.begin_send(self.request(Method::POST, "/v1/restore"), body.into()).await?.1;
        Ok(Restore { body, arrived: Bytes::new(), current: None, whole: RestoreEnd { end: 0, bytes: 0 } })
    }

    /// One page of a bucket's objects, with the segments that they consist of.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn objects(&self, bucket: &str, prefix: &str, after: Option<&str>) -> Result<ObjectPage, ClientError> {
        let mut path = format!("/v1/objects?bucket={}&prefix={}", part(bucket), part(prefix));
        if let Some(after) = after {
            path.push_str(&format!("&after={}", part(after)));
        }
        self.json(self.request(Method::GET, &path), Bytes::new()).await
    }

    /// Checkpoints of a job that are not subsumed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkpoints(&self, job: &str) -> Result<Vec<CheckpointInfo>, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}/checkpoints", part(job))), Bytes::new()).await
    }

    /// The newest completed checkpoint of a job.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn latest_checkpoint(&self, job: &str) -> Result<CheckpointInfo, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}/checkpoints/latest", part(job))), Bytes::new()).await
    }

    /// Begins a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        self.checkpoint(job, checkpoint, "").await
    }

    /// Completes a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn complete(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        self.checkpoint(job, checkpoint, "/complete").await
    }

    /// Aborts a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn abort(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        self.checkpoint(job, checkpoint, "/abort").await
    }

    /// Subsumes every checkpoint up to this one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn subsume(&self, job: &str, checkpoint: u64) -> Result<(), ClientError> {
        self.checkpoint(job, checkpoint, "/subsume").await
    }

    async fn checkpoint(&self, job: &str, checkpoint: u64, action: &str) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{}/checkpoints/{checkpoint}{action}", part(job));
        self.send(self.request(Method::POST, &path), Bytes::new()).await.map(|_| ())
    }

    /// Says that the job's workers have sent their last segment for now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn flush(&self, job: &str) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{}/flush", part(job));
        self.send(self.request(Method::POST, &path), Bytes::new()).await.map(|_| ())
    }

    /// The daemon's metrics in Prometheus' text format.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let (_, text) = self.send(self.request(Method::GET, "/metrics"), Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: http::request::Builder, body: Bytes) -> Result<T, ClientError> {
        parse(&self.send(request, body).await?.1)
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(http::HeaderMap, Bytes), ClientError> {
        let (headers, body) = self.begin_send(request, body).await?;
        let bytes = body.collect().await.map_err(|error| self.broken(error.into()))?.to_bytes();
        Ok((headers, bytes))
    }

    /// Sends a request. Returns once the head of the answer is there, and that is no error.
    async fn begin_send(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(http::HeaderMap, Incoming), ClientError> {
        let request = request.body(Full::new(body)).map_err(|error| ClientError::Answer(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| self.broken(error.into()))?;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let bytes = body.collect().await.map_err(|error| self.broken(error.into()))?.to_bytes();
        let error = serde_json::from_slice::<ErrorBody>(&bytes).map(|body| body.error);
        let (kind, message) = error.map_or_else(
            |_| (String::new(), String::from_utf8_lossy(&bytes).trim().to_owned()),
            |error| (error.kind, error.message),
        );
        Err(ClientError::Refused { status: head.status, kind, message })
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> ClientError {
        ClientError::Connection { address: self.address.clone(), source }
    }
}

/// Longest head of a frame that is believed, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The answer to a restore while it arrives: for each segment [`Self::next`], then [`Self::bytes`] until it is whole.
#[derive(Debug)]
pub struct Restore {
    body: Incoming,
    /// Bytes that arrived and were not looked at.
    arrived: Bytes,
    /// The segment whose bytes arrive now.
    current: Option<Arriving>,
    /// What arrived whole.
    whole: RestoreEnd,
}

#[derive(Debug)]
struct Arriving {
    segment: String,
    crc32c: String,
    left: u64,
    hasher: SegmentHasher,
}

impl Restore {
    /// The next segment; none when all have arrived, whole and checked. What was not read of the one before is read and
    /// checked first.
    ///
    /// # Errors
    /// [`ClientError::BrokenOff`]; ask for the rest again.
    pub async fn next(&mut self) -> Result<Option<ListedSegment>, ClientError> {
        while self.bytes().await?.is_some() {}
        let len = self.exactly(4).await?.get_u32_le() as usize;
        if !(1..=HEAD_BYTES_MAX).contains(&len) {
            return Err(self.broken_off(format!("a head of {len} bytes was announced")));
        }
        let head = self.exactly(len).await?;
        match serde_json::from_slice(&head)
            .map_err(|error| self.broken_off(format!("a head cannot be read: {error}")))?
        {
            RestoreHead::Segment(segment) => {
                let info = &segment.info;
                self.current = Some(Arriving {
                    segment: info.segment.clone(),
                    crc32c: info.crc32c.clone(),
                    left: info.len,
                    hasher: SegmentHasher::default(),
                });
                Ok(Some(segment))
            }
            RestoreHead::End(end) if (end.end, end.bytes) == (self.whole.end, self.whole.bytes) => Ok(None),
            RestoreHead::End(end) => Err(self.broken_off(format!("the daemon says that it sent {}", end.end))),
            RestoreHead::Broken(broken) => Err(ClientError::BrokenOff {
                whole: self.whole.end,
                segment: Some(broken.broken),
                message: broken.error.message,
            }),
        }
    }

    /// The next bytes of the segment, in pieces of any size; none when it is whole and its checksum is right.
    ///
    /// # Errors
    /// [`ClientError::BrokenOff`], also when the checksum is wrong.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, ClientError> {
        let Some(current) = &self.current else { return Ok(None) };
        if current.left > 0 {
            self.arrive().await?;
        }
        let Some(current) = &mut self.current else { return Ok(None) };
        if current.left > 0 {
            let bytes =
                self.arrived.split_to(usize::try_from(current.left).unwrap_or(usize::MAX).min(self.arrived.len()));
            current.left -= bytes.len() as u64;
            current.hasher.update(&bytes);
            self.whole.bytes += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let Some(Arriving { segment, crc32c, hasher, .. }) = self.current.take() else { return Ok(None) };
        let actual = format!("{:08x}", hasher.finish().whole);
        if actual != crc32c {
            let message = format!("its bytes have CRC-32C {actual}, {crc32c} was announced");
            return Err(ClientError::BrokenOff { whole: self.whole.end, segment: Some(segment), message });
        }
        self.whole.end += 1;
        Ok(None)
    }

    /// Exactly so many bytes, between two segments.
    async fn exactly(&mut self, len: usize) -> Result<Bytes, ClientError> {
        let mut bytes = BytesMut::new();
        while bytes.len() < len {
            self.arrive().await?;
            bytes.put(self.arrived.split_to((len - bytes.len()).min(self.arrived.len())));
        }
        Ok(bytes.freeze())
    }

    /// Waits until bytes are there.
    async fn arrive(&mut self) -> Result<(), ClientError> {
        while self.arrived.is_empty() {
            let data = match self.body.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(self.broken_off(crate::error::chain(&error))),
                None => return Err(self.broken_off("the answer ends too early".to_owned())),
            };
            self.arrived = data;
        }
        Ok(())
    }

    fn broken_off(&self, message: String) -> ClientError {
        let segment = self.current.as_ref().map(|current| current.segment.clone());
        ClientError::BrokenOff { whole: self.whole.end, segment, message }
    }
}

fn parse<T: DeserializeOwned>(bytes: impl AsRef<[u8]>) -> Result<T, ClientError> {
    serde_json::from_slice(bytes.as_ref()).map_err(|error| ClientError::Answer(error.to_string()))
}

/// One part of a path or query, encoded.
fn part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn query_of(params: &PutParams) -> String {
    let number = |n: Option<u32>| n.map(|n| n.to_string());
    let pairs = [
        ("checkpoint", params.checkpoint.map(|n| n.to_string())),
        ("scope", params.scope.clone()),
        ("operator", params.operator.clone()),
        ("subtask", number(params.subtask)),
        ("parallelism", number(params.parallelism)),
        ("task_manager", params.task_manager.clone()),
        ("name", params.name.clone()),
    ];
    let pairs = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", part(&value?))));
    pairs.collect::<Vec<_>>().join("&")
}

#[derive(Clone, Debug)]
enum Connector {
    Tcp(HttpConnector),
    Unix(PathBuf),
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>> + Send>>;

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Self::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::Tcp(tcp) => {
                let connecting = tcp.call(uri);
                Box::pin(async move { Ok(TokioIo::new(Stream::Tcp(connecting.await?.into_inner()))) })
            }
            Self::Unix(path) => {
                let path = path.clone();
                Box::pin(async move { Ok(TokioIo::new(Stream::Unix(UnixStream::connect(path).await?))) })
            }
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
