//! What goes wrong on the wire between a daemon and a server of the tests: S3, or another object storage service.
//!
//! A test adds rules to the plan ([`Faults::add`]): for requests of one operation, under some keys, from the n-th
//! match on, so many times. The plan is asked once a request, before a byte of its body is read; what it says happens to the
//! connection and the bytes themselves, so that the daemon's own client, its retries and its timeouts are tried too.
//! Every request and the status it got is logged, whether its sender lives to see it or not.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use s3s::service::S3Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Operations of an object storage service, as the wire sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    Put,
    Get,
    Head,
    Delete,
    List,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
}

impl Op {
    /// Whether it writes.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::Head | Self::List)
    }

    /// As they are on S3.
    pub fn of(method: &Method, query: &str) -> Self {
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match *method {
            Method::PUT if has("uploadId") => Self::UploadPart,
            Method::PUT => Self::Put,
            Method::POST if has("uploads") => Self::CreateUpload,
            Method::POST if has("uploadId") => Self::CompleteUpload,
            Method::POST => Self::Delete,
            Method::DELETE if has("uploadId") => Self::AbortUpload,
            Method::DELETE => Self::Delete,
            Method::HEAD => Self::Head,
            _ if has("list-type") => Self::List,
            _ => Self::Get,
        }
    }
}

/// Which keys a rule is about.
pub type Keys = fn(&str) -> bool;

/// Physical files.
pub fn data(key: &str) -> bool {
    key.contains("/data/")
}

/// The log of the catalog: one object a commit.
pub fn log(key: &str) -> bool {
    key.contains("/catalog/wal/")
}

/// Anything.
pub fn any(_: &str) -> bool {
    true
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered 503 and not carried out.
    Refused,
    /// It is answered 503 `SlowDown` with `Retry-After` and not carried out.
    SlowDown,
    /// It is answered 409 `ConditionalRequestConflict` and not carried out.
    Conflicted,
    /// The connection is reset before the body is read.
    ResetBeforeBody,
    /// The connection is reset after the body was read; the request is not carried out.
    ResetAfterBody,
    /// It is carried out, then the connection is reset instead of an answer.
    AckLost,
    /// It is carried out, then answered 503.
    AckReplaced,
    /// It waits at the gate and is carried out then, even if its sender has left.
    Held(Gate),
    /// It waits at the gate, is answered 503 then and not carried out.
    HeldThenRefused(Gate),
    /// It is carried out at once, its answer waits at the gate.
    AnswerHeld(Gate),
    /// The body of the answer breaks off half way.
    Truncated,
    /// One bit in the middle of the answer's body is flipped.
    BitFlipped,
}

/// Which requests a fault befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    op: Option<Op>,
    keys: Keys,
    skip: u64,
    times: u64,
    chance: Option<f64>,
}

impl Rule {
    /// Every request of this operation under these keys.
    pub fn on(op: Op, keys: Keys) -> Self {
        Self { op: Some(op), ..Self::everything(keys) }
    }

    /// Every request under these keys.
    pub fn everything(keys: Keys) -> Self {
        Self { op: None, keys, skip: 0, times: u64::MAX, chance: None }
    }

    /// Spares the first `skip` matches.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// At most so many requests.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// Each match with this probability.
    pub fn chance(self, chance: f64) -> Self {
        Self { chance: Some(chance), ..self }
    }
}

/// A gate that requests wait at. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<u64>,
}

impl Gate {
    pub fn closed() -> Self {
        Self { open: watch::Sender::new(false), waiting: watch::Sender::new(0) }
    }

    /// Lets everybody pass from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// How many requests have arrived at it.
    pub fn waiting(&self) -> u64 {
        *self.waiting.borrow()
    }

    /// Resolves when `requests` have come to the gate.
    pub async fn arrived(&self, requests: u64) {
        let mut waiting = self.waiting.subscribe();
        let arrived = waiting.wait_for(|waiting| *waiting >= requests);
        tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("no request came to the gate").unwrap();
    }

    async fn pass(&self) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// A rule in force. It stays in force when this is dropped.
#[derive(Debug, Clone)]
pub struct InForce {
    inner: Arc<RuleState>,
}

impl InForce {
    /// How many requests it has befallen.
    pub fn hits(&self) -> u64 {
        self.inner.hits.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub fn lift(&self) {
        self.inner.lifted.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct RuleState {
    rule: Rule,
    fault: Fault,
    matches: AtomicU64,
    hits: AtomicU64,
    lifted: AtomicBool,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Logged {
    pub op: Op,
    pub key: String,
    /// The status it was given by the server; none while it is not carried out.
    pub status: Option<StatusCode>,
}

impl Logged {
    /// Whether it is of this operation, under these keys, and was given this status.
    pub fn was(&self, op: Op, keys: Keys, status: StatusCode) -> bool {
        self.op == op && keys(&self.key) && self.status == Some(status)
    }
}

/// The plan, and the log of all requests. Clones share them.
#[derive(Clone, Default)]
pub struct Faults {
    inner: Arc<Mutex<Plan>>,
}

struct Plan {
    rules: Vec<Arc<RuleState>>,
    latency: Duration,
    log: Vec<Logged>,
    dice: rand::rngs::StdRng,
}

impl Default for Plan {
    fn default() -> Self {
        let dice = rand::SeedableRng::seed_from_u64(0);
        Self { rules: vec![], latency: Duration::ZERO, log: vec![], dice }
    }
}

impl Faults {
    /// Adds a rule. Of several that match a request, the one added first befalls it.
    pub fn add(&self, rule: Rule, fault: Fault) -> InForce {
        let (matches, hits, lifted) = Default::default();
        let inner = Arc::new(RuleState { rule, fault, matches, hits, lifted });
        self.inner.lock().rules.push(Arc::clone(&inner));
        InForce { inner }
    }

    /// Ends all rules.
    pub fn clear(&self) {
        self.inner.lock().rules.clear();
    }

    /// Makes every request take this long.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.lock().latency = latency;
    }

    /// Seeds the dice of rules with a chance.
    pub fn seed(&self, seed: u64) {
        self.inner.lock().dice = rand::SeedableRng::seed_from_u64(seed);
    }

    /// Every request that came, in the order of arrival.
    pub fn requests(&self) -> Vec<Logged> {
        self.inner.lock().log.clone()
    }

    /// How many requests came so far that `wanted` holds for.
    pub fn count(&self, wanted: impl Fn(&Logged) -> bool) -> usize {
        self.inner.lock().log.iter().filter(|logged| wanted(logged)).count()
    }

    fn draw(&self, op: Op, key: &str) -> (usize, Duration, Option<Fault>) {
        let mut plan = self.inner.lock();
        plan.log.push(Logged { op, key: key.to_owned(), status: None });
        let Plan { rules, dice, .. } = &mut *plan;
        let drawn = rules.iter().find(|state| state.befalls(op, key, dice)).map(|state| {
            state.hits.fetch_add(1, Ordering::Relaxed);
            state.fault.clone()
        });
        (plan.log.len() - 1, plan.latency, drawn)
    }

    fn carried_out(&self, index: usize, status: StatusCode) {
        self.inner.lock().log[index].status = Some(status);
    }
}

impl RuleState {
    fn befalls(&self, op: Op, key: &str, dice: &mut impl rand::Rng) -> bool {
        let rule = &self.rule;
        if self.lifted.load(Ordering::Relaxed) || rule.op.is_some_and(|wanted| wanted != op) || !(rule.keys)(key) {
            return false;
        }
        if rule.chance.is_some_and(|chance| !dice.random_bool(chance)) {
            return false;
        }
        let before = self.matches.fetch_add(1, Ordering::Relaxed);
        before >= rule.skip && before - rule.skip < rule.times
    }
}

/// Whatever answers the requests that come over the wire.
#[async_trait::async_trait]
pub trait Backend: Send + Sync {
    /// The operation of a request.
    fn op(&self, method: &Method, query: &str) -> Op {
        Op::of(method, query)
    }

    /// The key that a decoded path names; empty where it names none.
    fn key<'a>(&self, path: &'a str) -> &'a str {
        path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key)
    }

    /// Carries a request out. `None`: the connection is to be reset.
    async fn carry_out(&self, request: Request<Bytes>) -> Option<Response<Bytes>>;
}

#[async_trait::async_trait]
impl Backend for S3Service {
    async fn carry_out(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let (head, body) = self.call(request.map(s3s::Body::from)).await.ok()?.into_parts();
        Some(Response::from_parts(head, body.collect().await.ok()?.to_bytes()))
    }
}

/// A backend at the end of a wire, on a free port of this machine; ends when dropped.
pub struct Wired {
    address: SocketAddr,
    faults: Faults,
    _cut: DropGuard,
}

impl Wired {
    pub async fn start(backend: impl Backend + 'static) -> Self {
        let faults = Faults::default();
        let wire = Wire { backend: Arc::new(backend), faults: faults.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = CancellationToken::new();
        tokio::spawn(wire.accept(listener, cut.clone()));
        Self { address, faults, _cut: cut.drop_guard() }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the wire does, and what came over it.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

/// The server's end of the wire.
#[derive(Clone)]
struct Wire {
    backend: Arc<dyn Backend>,
    faults: Faults,
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The connection is to be reset.
#[derive(Debug, thiserror::Error)]
#[error("reset by plan")]
struct Reset;

impl Wire {
    /// Serves connections until `cut`.
    async fn accept(self, listener: TcpListener, cut: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cut.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            stream.set_nodelay(true).unwrap();
            let (wire, cut) = (self.clone(), cut.clone());
            tokio::spawn(async move {
                let reset = Arc::new(AtomicBool::new(false));
                let io = TokioIo::new(Breakable { stream, reset: Arc::clone(&reset) });
                let service = service_fn(|request| {
                    let (wire, reset) = (wire.clone(), Arc::clone(&reset));
                    async move {
                        let answer = wire.answer(request).await;
                        answer.inspect_err(|Reset| reset.store(true, Ordering::Relaxed))
                    }
                });
                // How a connection ends is the daemon's to bear.
                let _ended = tokio::select! {
                    ended = hyper::server::conn::http1::Builder::new().serve_connection(io, service) => ended.is_ok(),
                    () = cut.cancelled() => false,
                };
            });
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Answer, Reset> {
        let op = self.backend.op(request.method(), request.uri().query().unwrap_or_default());
        let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
        let (index, latency, fault) = self.faults.draw(op, self.backend.key(&path));
        if matches!(fault, Some(Fault::ResetBeforeBody)) {
            return Err(Reset);
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Reset)?.to_bytes();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fault {
            Some(Fault::Refused) => return Ok(refusal("ServiceUnavailable", None)),
            Some(Fault::SlowDown) => return Ok(refusal("SlowDown", Some("1"))),
            Some(Fault::Conflicted) => {
                let mut answer = refusal("ConditionalRequestConflict", None);
                *answer.status_mut() = StatusCode::CONFLICT;
                return Ok(answer);
            }
            Some(Fault::ResetAfterBody) => return Err(Reset),
            Some(Fault::HeldThenRefused(gate)) => {
                gate.pass().await;
                return Ok(refusal("ServiceUnavailable", None));
            }
            _ => {}
        }
        let request = Request::from_parts(head, body);
        // Detached: what has arrived is carried out, whether or not its sender still waits.
        let done = tokio::spawn(self.carry_out(request, index, fault));
        done.await.unwrap_or(Err(Reset))
    }

    async fn carry_out(self, request: Request<Bytes>, index: usize, fault: Option<Fault>) -> Result<Answer, Reset> {
        if let Some(Fault::Held(gate)) = &fault {
            gate.pass().await;
        }
        let (head, body) = self.backend.carry_out(request).await.ok_or(Reset)?.into_parts();
        self.faults.carried_out(index, head.status);
        match fault {
            Some(Fault::AckLost) => return Err(Reset),
            Some(Fault::AckReplaced) => return Ok(refusal("ServiceUnavailable", None)),
            Some(Fault::AnswerHeld(gate)) => gate.pass().await,
            Some(Fault::Truncated) => return Ok(Response::from_parts(head, half(body))),
            Some(Fault::BitFlipped) => return Ok(Response::from_parts(head, full(flipped(body)))),
            _ => {}
        }
        Ok(Response::from_parts(head, full(body)))
    }
}

fn full(body: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// The first half, then the end of the connection.
fn half(body: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    let first = Ok(Frame::data(body.slice(..body.len() / 2)));
    let end = Err(io::Error::from(io::ErrorKind::ConnectionReset));
    StreamBody::new(stream::iter([first, end])).boxed_unsync()
}

fn flipped(body: Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

fn refusal(code: &str, retry_after: Option<&'static str>) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by plan</Message></Error>");
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}

/// A connection that ends with a reset if it is told to.
struct Breakable {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Breakable {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // With nothing left to linger for, closing sends RST instead of FIN.
            self.stream.set_zero_linger().unwrap();
        }
    }
}

impl AsyncRead for Breakable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Waits until `condition` holds, or fails saying what did not happen.
pub async fn eventually<F>(what: &str, patience: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(patience, poll).await.is_ok(), "not within {patience:?}: {what}");
}
