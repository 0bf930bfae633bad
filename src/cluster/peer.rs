//! Calls to other members, over HTTP/2 connections to each that are kept open: one for what members say to each other, which must
//! not wait behind megabytes, and a few for requests of clients.
//!
//! A request of a client is passed on as it came, head and body, with names added that only peers may give ([`HEADERS`]): the
//! member that it is for checks its signature or token like any other. So a newer release and an older one understand each
//! other as far as they understand their clients.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::map::Member;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::metrics::labels::PeerCall;
use crate::runtime::Clock;
use crate::runtime::network::Network;

/// The door at which a request came to the member that passes it on: `s3` or `api`; `engine` of a question of that member itself.
pub const DOOR: HeaderName = HeaderName::from_static("esker-peer-door");
/// The incarnation that a request is for.
pub const FOR: HeaderName = HeaderName::from_static("esker-peer-for");
/// The number of the last map that the sender knows; in answers, too.
pub const MAP: HeaderName = HeaderName::from_static("esker-peer-map");
/// `cluster.token`.
pub const TOKEN: HeaderName = HeaderName::from_static("esker-peer-token");
/// The version of all this.
pub const PROTOCOL: HeaderName = HeaderName::from_static("esker-peer");
/// `name:value` of a header that was about the client's own connection, and that its signature may cover.
pub const HOP: HeaderName = HeaderName::from_static("esker-peer-hop");
/// The shard that a request is about; 0 if it is not said.
pub const SHARD: HeaderName = HeaderName::from_static("esker-peer-shard");
/// The epoch of the shard's owner that a request is for: who has the shard in another one does not carry it out. Releases that know of no
/// such name do not say it, and take it for a header that means nothing.
pub const EPOCH: HeaderName = HeaderName::from_static("esker-peer-epoch");
/// All of them: a client's are taken off.
pub const HEADERS: [HeaderName; 8] = [DOOR, FOR, MAP, TOKEN, PROTOCOL, HOP, SHARD, EPOCH];
/// The version that is spoken.
pub const VERSION: &str = "1";
/// Where calls of the members themselves go.
pub const PATH: &str = "/peer/v1/";

/// A connection that is not there after so long is none.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// Connections for requests of clients. All that are on one wait for each other, if the network loses something.
const REQUEST_CONNECTIONS: usize = 4;
/// A connection on which nothing comes back for so long, although it was asked whether it is there, is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes of one stream, and of the connection, that arrive before they are read. As many streams as there may be fit into the
/// connection: clients that take nothing keep nobody else waiting.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;
/// Streams that a peer takes at a time.
const STREAMS_MAX: u32 = 256;
/// What peers say to each other themselves is far shorter.
const WORDS_BYTES_MAX: usize = 64 << 10;

/// The body of a request to a peer.
pub type PeerBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A body without bytes.
pub fn no_body() -> PeerBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why a peer did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody listens there.
    #[error("nobody listens at {0}")]
    Refused(String),
    /// There is no connection.
    #[error("no connection to {url}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The connection ended without an answer. The request may have been carried out.
    #[error("the connection to {0} ended without an answer")]
    Broken(String),
    /// No answer in time.
    #[error("{0} does not answer")]
    Silent(String),
    /// It is not the process that was meant, or takes the token for wrong.
    #[error("{url} answers {status}: {text}")]
    Unexpected {
        /// The peer.
        url: String,
        /// Its status.
        status: StatusCode,
        /// Its words.
        text: String,
    },
}

/// A member's answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its name.
    pub id: String,
    /// Its process.
    pub incarnation: String,
    /// The number of the last map that it knows.
    pub map: u64,
    /// Whether it has the catalog of shard 0 open, and answers: the only one, mostly.
    pub serves: bool,
    /// Whether it is about to.
    pub opens: bool,
    /// Shards whose catalogs it has open.
    #[serde(default)]
    pub shards: Vec<u32>,
    /// Those that it is about to.
    #[serde(default)]
    pub opening: Vec<u32>,
    /// Whether it was told to have none.
    #[serde(default)]
    pub drained: bool,
}

impl Pong {
    /// Whether it has the catalog of a shard open, and answers.
    pub fn has(&self, shard: u32) -> bool {
        self.shards.contains(&shard) || shard == 0 && self.serves
    }

    /// Whether it is about to.
    pub fn is_opening(&self, shard: u32) -> bool {
        self.opening.contains(&shard) || shard == 0 && self.opens
    }
}

/// The way to one process of another member.
pub struct PeerLink {
    member: Member,
    authority: String,
    token: Option<Secret>,
    words: Mutex<Option<PeerConnection>>,
    /// The next one is taken for each request.
    requests: [Mutex<Option<PeerConnection>>; REQUEST_CONNECTIONS],
    next: AtomicUsize,
    /// When it last answered anything, in milliseconds since the boot.
    heard: AtomicU64,
    /// The last map that it has told of.
    told: AtomicU64,
    network: Arc<dyn Network>,
    clock: Clock,
    metrics: Metrics,
}

crate::runtime::opaque_debug!(PeerLink);

/// A connection to a peer. Clones are the same one.
#[derive(Clone)]
pub struct PeerConnection {
    sender: http2::SendRequest<PeerBody>,
    ended: CancellationToken,
}

crate::runtime::opaque_debug!(PeerConnection);

impl PeerLink {
    /// To this process. Nothing is connected yet.
    pub fn new(
        member: Member,
        token: Option<Secret>,
        network: Arc<dyn Network>,
        clock: Clock,
        metrics: Metrics,
    ) -> Arc<Self> {
        let authority = member.url.parse::<Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
        let mut authority = authority.unwrap_or_default();
        if member.url.parse::<Uri>().is_ok_and(|uri| uri.port().is_none()) {
            authority.push_str(":80");
        }
        let (words, requests, next) = (Mutex::default(), Default::default(), AtomicUsize::new(0));
        let (heard, told) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { member, authority, token, words, requests, next, heard, told, network, clock, metrics })
    }

    /// Who is there.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The number of the last map that it has told of; 0 if it has told of none.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// The time since the boot, as [`Self::has_answered_since`] takes it.
    pub fn now(&self) -> Duration {
        self.clock.since_boot()
    }

    /// Whether it has answered anything since then, in time since the boot.
    pub fn has_answered_since(&self, since_boot: Duration) -> bool {
        u128::from(self.heard.load(Ordering::Acquire)) > since_boot.as_millis()
    }

    async fn connected(&self, call: PeerCall) -> Result<PeerConnection, PeerError> {
        let kept = match call {
            PeerCall::Request => &self.requests[self.next.fetch_add(1, Ordering::Relaxed) % REQUEST_CONNECTIONS],
            _ => &self.words,
        };
        let mut connection = kept.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| !open.ended.is_cancelled() && !open.sender.is_closed()) {
            return Ok(open.clone());
        }
        *connection = None;
        let url = || self.member.url.clone();
        let connecting = tokio::time::timeout(CONNECT_PATIENCE, self.network.connect(&self.authority));
        let socket = match connecting.await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(PeerError::Refused(url()));
            }
            Ok(Err(source)) => return Err(PeerError::Unreachable { url: url(), source }),
            Err(_) => return Err(PeerError::Silent(url())),
        };
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let shaking = tokio::time::timeout(CONNECT_PATIENCE, builder.handshake(TokioIo::new(socket)));
        let (sender, driver) = match shaking.await {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(error)) => {
                return Err(PeerError::Unreachable { url: url(), source: io::Error::other(error) });
            }
            Err(_) => return Err(PeerError::Silent(url())),
        };
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        #[expect(clippy::disallowed_methods, reason = "it ends with its connection, and has nothing to tell")]
        tokio::spawn(async move {
            let _guard = guard;
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a peer ended");
            }
        });
        let open = PeerConnection { sender, ended };
        *connection = Some(open.clone());
        Ok(open)
    }

    /// A connection for the next request.
    ///
    /// # Errors
    /// [`PeerError`]; nothing was sent.
    pub async fn connect(&self) -> Result<PeerConnection, PeerError> {
        self.connected(PeerCall::Request).await
    }

    /// Sends a request of a client as it is, with the headers of peers, and waits for the head of the answer.
    ///
    /// # Errors
    /// [`PeerError::Broken`]: the request may have been carried out.
    pub async fn pass_on(
        &self,
        connection: PeerConnection,
        request: Request<PeerBody>,
        map: u64,
    ) -> Result<Response<Incoming>, PeerError> {
        self.send_over(connection, request, map, PeerCall::Request).await
    }

    async fn send_over(
        &self,
        connection: PeerConnection,
        mut request: Request<PeerBody>,
        map: u64,
        call: PeerCall,
    ) -> Result<Response<Incoming>, PeerError> {
        let begun = Clock::instant();
        let PeerConnection { mut sender, ended } = connection;
        let headers = request.headers_mut();
        headers.insert(PROTOCOL, HeaderValue::from_static(VERSION));
        headers.insert(MAP, HeaderValue::from(map));
        if let Ok(value) = HeaderValue::from_str(&self.member.incarnation) {
            headers.insert(FOR, value);
        }
        if let Some(Ok(mut value)) = self.token.as_ref().map(|token| HeaderValue::from_str(token.expose())) {
            value.set_sensitive(true);
            headers.insert(TOKEN, value);
        }
        let broken = || PeerError::Broken(self.member.url.clone());
        let answer = tokio::select! {
            answer = sender.send_request(request) => answer.map_err(|error| {
                tracing::debug!(%error, peer = self.member.id, "a peer did not answer");
                broken()
            })?,
            // A request that is handed over in the moment in which a connection ends is answered by nobody.
            () = after(&ended) => return Err(broken()),
        };
        self.metrics.peer_seconds.of(call).observe(begun.elapsed().as_secs_f64());
        // Another process at that address speaks for itself.
        let is_its_own = ![StatusCode::MISDIRECTED_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::UPGRADE_REQUIRED]
            .contains(&answer.status());
        if is_its_own {
            let now = u64::try_from(self.clock.since_boot().as_millis()).unwrap_or_default();
            self.heard.fetch_max(now, Ordering::AcqRel);
        }
        if let Some(map) = number(&answer).filter(|_| is_its_own) {
            self.told.fetch_max(map, Ordering::AcqRel);
        }
        Ok(answer)
    }

    /// A call of the members themselves, answered within `patience`.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        map: u64,
        call: PeerCall,
        patience: Duration,
    ) -> Result<Bytes, PeerError> {
        let url = || self.member.url.clone();
        let calling = async {
            let uri = format!("http://{}{PATH}{path}", self.authority);
            let mut request = Request::new(no_body());
            *request.method_mut() = method;
            *request.uri_mut() = uri.parse().map_err(|_| PeerError::Unreachable {
                url: url(),
                source: io::Error::new(io::ErrorKind::InvalidInput, "its address is none"),
            })?;
            let connection = self.connected(call).await?;
            let answer = self.send_over(connection, request, map, call).await?;
            let status = answer.status();
            let words = Limited::new(answer.into_body(), WORDS_BYTES_MAX).collect().await;
            let words = words.map_err(|_| PeerError::Broken(url()))?.to_bytes();
            if status.is_success() {
                return Ok(words);
            }
            let text = String::from_utf8_lossy(&words).trim().chars().take(200).collect();
            Err(PeerError::Unexpected { url: url(), status, text })
        };
        tokio::time::timeout(patience, calling).await.unwrap_or_else(|_| Err(PeerError::Silent(url())))
    }

    /// Asks whether it is there, and tells of map `map`.
    ///
    /// # Errors
    /// [`PeerError`]; [`PeerError::Unexpected`] if another process answers.
    pub async fn ping(&self, map: u64, patience: Duration) -> Result<Pong, PeerError> {
        let words = self.call(Method::GET, "ping", map, PeerCall::Ping, patience).await?;
        let pong: Option<Pong> = serde_json::from_slice(&words).ok();
        let pong = pong.filter(|pong| pong.incarnation == self.member.incarnation);
        pong.ok_or_else(|| PeerError::Unexpected {
            url: self.member.url.clone(),
            status: StatusCode::OK,
            text: "another process answers there".to_owned(),
        })
    }
}

/// Resolves some time after the end: what had arrived before, hyper tells.
async fn after(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The number of a map that the other side knows.
pub fn number<T>(answer: &Response<T>) -> Option<u64> {
    answer.headers().get(MAP)?.to_str().ok()?.parse().ok()
}
