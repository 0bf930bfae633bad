//! Requests of jobs, segments and checkpoints, and how all requests are sent.

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, Method, Request, header, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connect::{Connector, Timeouts};
use crate::ended::GoesTo;
use crate::error::{BoxError, ClientError};
use crate::restore::Restore;
use crate::tls::TlsOptions;
use crate::wire::{
    BatchAnswer, BatchHead, CRC_HEADER, CheckpointInfo, ClusterStatus, JobInfo, NewJob, ObjectPage, PutParams,
    RestoreRequest, SegmentInfo, SegmentPage,
};

/// CRC-32C, as the daemon has it.
pub(crate) const CRC32C: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// How to reach a daemon.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// One of the daemon's `auth.tokens`, if it has any.
    pub token: Option<String>,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Whom to trust, and who one is, for `https`.
    pub tls: TlsOptions,
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
    /// A client of the daemon at `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`; connects when it is used. `token` is one of the daemon's
    /// `auth.tokens`, if it has any.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn new(address: &str, token: Option<String>) -> Result<Self, ClientError> {
        Self::with_timeouts(address, token, Timeouts::default())
    }

    /// The same with other timeouts.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn with_timeouts(address: &str, token: Option<String>, timeouts: Timeouts) -> Result<Self, ClientError> {
        Self::with_options(address, ClientOptions { token, timeouts, ..ClientOptions::default() })
    }

    /// The same with options of all kinds.
    ///
    /// # Errors
    /// [`ClientError::Address`]; [`ClientError::Tls`] if a certificate or a key is none.
    pub fn with_options(address: &str, options: ClientOptions) -> Result<Self, ClientError> {
        let (connector, base) = Connector::new(address, &options)?;
        let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { http, address: address.to_owned(), base, token: options.token })
    }

    /// Makes a job known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_job(&self, job: &str) -> Result<JobInfo, ClientError> {
        self.post_json("/v1/jobs", &NewJob { job: job.to_owned(), ..NewJob::default() }).await
    }

    /// All jobs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn jobs(&self) -> Result<Vec<JobInfo>, ClientError> {
        self.json(self.request(Method::GET, "/v1/jobs"), Bytes::new()).await
    }

    /// The cluster that the daemon is one of.
    ///
    /// # Errors
    /// [`ClientError`]; 404 if it is one of none.
    pub async fn cluster(&self) -> Result<ClusterStatus, ClientError> {
        self.json(self.request(Method::GET, "/v1/cluster"), Bytes::new()).await
    }

    /// Has the member `id` of the cluster give the catalog to another one. Returns before that is done.
    ///
    /// # Errors
    /// [`ClientError`]; 404 if there is no such member.
    pub async fn drain(&self, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::POST, &format!("/v1/cluster/drain/{}", part(id)));
        self.send(request, Bytes::new()).await.map(drop)
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
            let head = json_of(&head)?;
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
        let request = self.request(Method::POST, "/v1/restore");
        Ok(Restore::new(self.begin_send(request, json_of(wanted)?).await?.1))
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

    pub(crate) async fn checkpoint(&self, job: &str, checkpoint: u64, action: &str) -> Result<(), ClientError> {
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

    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: request::Builder,
        body: Bytes,
    ) -> Result<T, ClientError> {
        parse(&self.send(request, body).await?.1)
    }

    pub(crate) async fn post_json<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<A, ClientError> {
        self.json(self.request(Method::POST, path), json_of(question)?).await
    }

    pub(crate) async fn send(&self, request: request::Builder, body: Bytes) -> Result<(HeaderMap, Bytes), ClientError> {
        let (headers, body) = self.begin_send(request, body).await?;
        let bytes = body.collect().await.map_err(|error| self.broken(error.into()))?.to_bytes();
        Ok((headers, bytes))
    }

    /// Sends a request. Returns once the head of the answer is there, and that is no error.
    pub(crate) async fn begin_send(
        &self,
        request: request::Builder,
        body: Bytes,
    ) -> Result<(HeaderMap, Incoming), ClientError> {
        let mut request = request.body(Full::new(body)).map_err(|error| ClientError::Request(error.to_string()))?;
        let goes_to = GoesTo::of(&mut request);
        let response = tokio::select! {
            response = self.http.request(request) => response.map_err(|error| self.broken(error.into()))?,
            error = goes_to.ended() => return Err(self.broken(error)),
        };
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let bytes = body.collect().await.map_err(|error| self.broken(error.into()))?.to_bytes();
        Err(ClientError::refused(head.status, &head.headers, &bytes))
    }

    fn broken(&self, source: BoxError) -> ClientError {
        ClientError::Connection { address: self.address.clone(), source }
    }
}

pub(crate) fn json_of<T: Serialize>(value: &T) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| ClientError::Request(error.to_string()))
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CRC32C, bytes) as u32
}

fn parse<T: DeserializeOwned>(bytes: impl AsRef<[u8]>) -> Result<T, ClientError> {
    serde_json::from_slice(bytes.as_ref()).map_err(|error| ClientError::Answer(error.to_string()))
}

/// One part of a path or query, encoded.
pub(crate) fn part(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_daemon_that_is_not_there_was_not_reached_and_one_that_hangs_up_was() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();

        let (asked, ()) = tokio::join!(client.jobs(), async { drop(listener.accept().await.unwrap()) });
        assert!(!asked.unwrap_err().is_unreached());
        drop(listener);
        assert!(client.jobs().await.unwrap_err().is_unreached());
    }

    #[expect(clippy::disallowed_methods, reason = "they end with the runtime")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_request_to_a_daemon_that_hangs_up_again_and_again_comes_to_an_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let daemon = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                drop(socket.read(&mut request).await);
                // It keeps the connection for the next request, it says.
                drop(socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").await);
            }
        });

        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let client = Client::new(&address, None).unwrap();
            clients.spawn(async move {
                for _ in 0..1000 {
                    drop(client.jobs().await);
                }
            });
        }
        // One that nobody answers would never end.
        clients.join_all().await;
        daemon.abort();
    }

    #[test]
    fn what_is_said_with_a_put_is_encoded_and_what_is_not_said_is_left_out() {
        let params = PutParams {
            checkpoint: Some(7),
            operator: Some("a&b=c".to_owned()),
            subtask: Some(0),
            name: Some("ü/1".to_owned()),
            ..PutParams::default()
        };

        assert_eq!(query_of(&params), "checkpoint=7&operator=a%26b%3Dc&subtask=0&name=%C3%BC%2F1");
    }

    #[test]
    fn addresses_that_nobody_can_connect_to_are_refused() {
        for bad in ["", "127.0.0.1:9001", "http://", "ftp://host", "http://a b"] {
            assert!(matches!(Client::new(bad, None), Err(ClientError::Address(told)) if told == bad), "{bad:?}");
        }
        for good in ["http://127.0.0.1:9001/", "http://[::1]:1", "http://host", "unix:/run/esker.sock"] {
            assert!(Client::new(good, None).is_ok(), "{good:?}");
        }
    }
}
