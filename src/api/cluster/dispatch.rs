//! Has a request answered by whoever answers now, and holds it while nobody does.
//!
//! What has to be sent again, because the one who was to answer is gone, must be there again: requests without a body, and those
//! whose body is short and was read before it was sent. It must also be answered the same if it was carried out already, which nobody
//! may know: a write on a condition is not. The clients of all others are told to come back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AxumBody;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{
    CONNECTION, HOST, IF_MATCH, IF_NONE_MATCH, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use s3s::{HttpError, HttpResponse, StdError};
use tokio::time::Instant;

use super::route::{Here, PeerOwner, RouteTo, Routes, ShardRoutes};
use super::target::RequestTarget;
use crate::api::exchange::Exchange;
use crate::api::s3::{Hosts, InPlace, PassedBody};
use crate::api::shards::calls::{self, EngineCall};
use crate::api::shards::siblings::{CallEngine, IDEMPOTENT};
use crate::cluster::maps::ClusterMaps;
use crate::cluster::peer::{self, PeerBody};
use crate::cluster::proof::NotProven;
use crate::metrics::Metrics;
use crate::metrics::labels::{HeldOutcome, RejectReason};
use crate::model::Routing;
use crate::runtime::{ByteBudget, Clock, PaidBytes};

/// For so long a request is held that nobody can answer.
const HELD: Duration = Duration::from_secs(10);
/// Between two tries at the same place.
const PAUSE: Duration = Duration::from_millis(50);
/// A peer has so long to say that it is there.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// A body of up to so many bytes is read before it is sent to a peer, so that it can be sent again.
const KEPT_BYTES_MAX: u64 = 1 << 20;
/// The same for this daemon's own engine.
const KEPT_HERE_BYTES_MAX: u64 = 64 << 10;
/// Headers that are about one connection.
const OF_ONE_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Has requests answered. Clones share everything.
#[derive(Clone)]
pub struct Dispatcher {
    routes: ShardRoutes,
    maps: Arc<ClusterMaps>,
    hosts: Arc<Hosts>,
    /// For bodies that are kept.
    kept: ByteBudget,
    metrics: Metrics,
}

crate::runtime::opaque_debug!(Dispatcher);

/// The door of a member at which a request came that a peer has passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerDoor {
    /// The S3 door.
    S3,
    /// The native API.
    Api,
    /// None: the member asks for itself.
    Engine,
}

impl PeerDoor {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            S3::NAME => Some(Self::S3),
            Api::NAME => Some(Self::Api),
            Calls::NAME => Some(Self::Engine),
            _ => None,
        }
    }
}

/// What a peer says of a request that it passes on.
#[derive(Debug, Clone, Copy)]
pub struct OfPeer {
    /// Where it came to the peer.
    pub door: PeerDoor,
    /// The shard that it is about.
    pub shard: u32,
    /// The epoch of the owner that it is for; `None` from an older release.
    pub epoch: Option<u64>,
}

/// Why a request was not answered by the engine of any daemon; it may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody could for [`HELD`].
    #[error("no daemon of the cluster can answer at the moment, repeat the request")]
    Nobody,
    /// The one who was to answer is gone, and the request cannot be sent again.
    #[error(
        "the daemon of the cluster that was to answer is gone; whether it has done what was asked is not known: repeat the request"
    )]
    Unknown,
    /// Its body did not arrive.
    #[error("the body of the request did not arrive")]
    Body,
    /// Its body is longer than such a body is.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// None of the shards has them.
    #[error("there are no segments {0}")]
    NoSegments(String),
}

/// What becomes of one attempt.
enum Attempt<T> {
    Answered(T),
    /// It was not carried out, and can be sent again with this.
    NotSent(Sending),
    /// It may have been carried out.
    Unknown(Sending),
}

/// The body of a request that is to be sent.
enum Sending {
    Nothing,
    /// What it takes is paid for as long as it waits.
    Kept(Bytes, Option<PaidBytes>),
    Streamed(PeerBody),
    /// It is gone.
    Gone,
}

impl Sending {
    /// Reads a streamed body. Its length was announced, and the server holds its sender to that.
    async fn kept(self, paid: PaidBytes) -> Result<Self, Unanswered> {
        let Self::Streamed(body) = self else { return Ok(self) };
        let read = body.collect().await.map_err(|_| Unanswered::Body)?;
        Ok(Self::Kept(read.to_bytes(), Some(paid)))
    }

    /// The body to send now, and what there is to send again afterwards; `None` if it is gone.
    fn sent(self) -> Option<(PeerBody, Self)> {
        match self {
            Self::Nothing => Some((peer::no_body(), Self::Nothing)),
            Self::Kept(bytes, paid) => {
                let body = Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync();
                Some((body, Self::Kept(bytes, paid)))
            }
            Self::Streamed(body) => Some((body, Self::Gone)),
            Self::Gone => None,
        }
    }
}

/// A door, as the dispatcher needs it.
trait DispatchedDoor: Sync {
    type Answer: Send;

    const NAME: &'static str;

    fn here(&self, here: &Here, request: Request<PeerBody>) -> BoxFuture<'static, Self::Answer>;

    fn status(answer: &Self::Answer) -> StatusCode;

    fn there(answer: Response<Incoming>) -> Self::Answer;
}

struct S3;

impl DispatchedDoor for S3 {
    type Answer = Result<HttpResponse, HttpError>;

    const NAME: &'static str = "s3";

    fn here(&self, here: &Here, request: Request<PeerBody>) -> BoxFuture<'static, Self::Answer> {
        here.s3.call(request)
    }

    fn status(answer: &Self::Answer) -> StatusCode {
        answer.as_ref().map_or(StatusCode::INTERNAL_SERVER_ERROR, Response::status)
    }

    fn there(answer: Response<Incoming>) -> Self::Answer {
        Ok(answer.map(|body| s3s::Body::http_body_unsync(body.map_err(|error| Box::new(error) as StdError))))
    }
}

/// The engine itself: calls of members.
struct Calls;

impl DispatchedDoor for Calls {
    type Answer = Response<AxumBody>;

    const NAME: &'static str = "engine";

    fn here(&self, here: &Here, request: Request<PeerBody>) -> BoxFuture<'static, Self::Answer> {
        let (engine, body) = (here.engine.clone(), AxumBody::new(request.into_body()));
        Box::pin(async move { calls::answer(&engine, body).await })
    }

    fn status(answer: &Self::Answer) -> StatusCode {
        answer.status()
    }

    fn there(answer: Response<Incoming>) -> Self::Answer {
        answer.map(AxumBody::new)
    }
}

struct Api;

impl DispatchedDoor for Api {
    type Answer = Response<AxumBody>;

    const NAME: &'static str = "api";

    fn here(&self, here: &Here, request: Request<PeerBody>) -> BoxFuture<'static, Self::Answer> {
        let answer = TowerToHyperService::new(here.api.clone()).call(request.map(AxumBody::new));
        Box::pin(async move {
            match answer.await {
                Ok(answer) => answer,
                Err(never) => match never {},
            }
        })
    }

    fn status(answer: &Self::Answer) -> StatusCode {
        answer.status()
    }

    fn there(answer: Response<Incoming>) -> Self::Answer {
        answer.map(AxumBody::new)
    }
}

impl InPlace for Dispatcher {
    fn answer(
        &self,
        request: Request<PassedBody>,
    ) -> BoxFuture<'static, Result<Result<HttpResponse, HttpError>, String>> {
        let dispatcher = self.clone();
        Box::pin(async move {
            let answered = dispatcher.s3(request).await;
            answered.map_err(|error| {
                dispatcher.metrics.rejected.of(RejectReason::Unavailable).inc();
                error.to_string()
            })
        })
    }
}

impl CallEngine for Dispatcher {
    fn call_engine(&self, shard: u32, call: &EngineCall) -> BoxFuture<'static, Result<Response<AxumBody>, String>> {
        let (dispatcher, call) = (self.clone(), call.clone());
        Box::pin(async move { dispatcher.call(shard, &call).await.map_err(|error| error.to_string()) })
    }

    fn pass_on(
        &self,
        shard: u32,
        request: Request<AxumBody>,
    ) -> BoxFuture<'static, Result<Response<AxumBody>, String>> {
        let dispatcher = self.clone();
        Box::pin(async move { dispatcher.api(shard, request).await.map_err(|error| error.to_string()) })
    }
}

impl Dispatcher {
    /// Leads requests where `routes` say. Bodies that are kept take up to `kept_bytes_max`.
    /// Buckets are in host names below `domains`.
    pub fn new(
        routes: ShardRoutes,
        maps: Arc<ClusterMaps>,
        domains: Vec<String>,
        kept_bytes_max: u64,
        metrics: Metrics,
    ) -> Self {
        let kept = ByteBudget::new(kept_bytes_max, metrics.in_flight_bytes.clone());
        Self { routes, maps, hosts: Arc::new(Hosts { domains }), kept, metrics }
    }

    /// Where keys and jobs are.
    ///
    /// # Errors
    /// [`Unanswered::Nobody`] if that is not known for long: the daemon has not joined yet.
    pub(super) async fn routing(&self) -> Result<Routing, Unanswered> {
        let shards = self.routes.known(HELD).await.len();
        let shards = u32::try_from(shards).ok().filter(|shards| *shards > 0).ok_or(Unanswered::Nobody)?;
        Ok(Routing::over(shards))
    }

    /// Reads the body of a request that may be sent to several owners.
    ///
    /// # Errors
    /// [`Unanswered::TooLong`]; [`Unanswered::Nobody`] if there is no room.
    pub(super) async fn read(&self, body: AxumBody, most: usize) -> Result<(Bytes, Option<PaidBytes>), Unanswered> {
        let len = body.size_hint().upper().unwrap_or(u64::MAX).min(most as u64);
        // Nobody has looked yet whose it is.
        let paid = match len {
            0 => None,
            len => Some(self.kept.try_pay(len).ok_or(Unanswered::Nobody)?),
        };
        let read = Limited::new(body, most).collect().await;
        let read = read.map_err(|error| match error.is::<LengthLimitError>() {
            true => Unanswered::TooLong(most),
            false => Unanswered::Body,
        })?;
        Ok((read.to_bytes(), paid))
    }

    /// Pays for bytes that are kept; `None` if there is no room.
    pub(super) fn try_pay(&self, bytes: u64) -> Option<PaidBytes> {
        self.kept.try_pay(bytes)
    }

    /// Any shard whose owner asks the others: this daemon's first one, or else the first one.
    fn any_shard(&self) -> u32 {
        self.routes.here().first().map_or(0, |here| here.shard)
    }

    async fn s3(&self, request: Request<PeerBody>) -> Result<Result<HttpResponse, HttpError>, Unanswered> {
        let routing = self.routing().await?;
        let (head, body) = request.into_parts();
        let shard = match RequestTarget::of_s3(&head, &self.hosts, routing) {
            _ if routing.shards() == 1 => 0,
            RequestTarget::Shard(shard) => shard,
            _ => self.any_shard(),
        };
        self.dispatch(&S3, shard, Request::from_parts(head, body)).await
    }

    /// Has a request that came to the native API answered by the owner of one shard.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn api(&self, shard: u32, request: Request<AxumBody>) -> Result<Response<AxumBody>, Unanswered> {
        self.dispatch(&Api, shard, request.map(boxed)).await
    }

    /// Has the engine of a shard answer a call.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub(super) async fn call(&self, shard: u32, call: &EngineCall) -> Result<Response<AxumBody>, Unanswered> {
        let bytes = serde_json::to_vec(call).map_err(|_| Unanswered::Body)?;
        let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::post("http://peer/").body(body).map_err(|_| Unanswered::Body)?;
        if call.is_repeatable() {
            request.headers_mut().insert(IDEMPOTENT, HeaderValue::from_static("call"));
        }
        self.dispatch(&Calls, shard, request).await
    }

    /// The same for a request that a peer has passed on: by this daemon or not at all.
    ///
    /// None if this daemon may not answer; then it was not carried out, or nobody knows.
    pub async fn of_peer(&self, of: OfPeer, request: Request<AxumBody>) -> Option<Response<AxumBody>> {
        let RouteTo::Here(here) = self.routes.of(of.shard)?.now() else { return None };
        // It may be late, and have been carried out by another owner before this one came to the shard again.
        if of.epoch.is_some_and(|epoch| epoch != here.epoch) {
            return None;
        }
        let request = request.map(boxed);
        match of.door {
            PeerDoor::S3 => match self.try_here(&S3, &here, request).await? {
                Ok(answer) => Some(answer.map(AxumBody::new)),
                Err(error) => {
                    tracing::debug!(?error, "a request that a peer passed on");
                    Some(Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(AxumBody::empty()).ok()?)
                }
            },
            PeerDoor::Api => self.try_here(&Api, &here, request).await,
            PeerDoor::Engine => self.try_here(&Calls, &here, request).await,
        }
    }

    async fn dispatch<D: DispatchedDoor>(
        &self,
        door: &D,
        shard: u32,
        request: Request<PeerBody>,
    ) -> Result<D::Answer, Unanswered> {
        let routes = self.routes.of(shard).ok_or(Unanswered::Nobody)?;
        let (head, body) = request.into_parts();
        let len = body.size_hint().exact();
        let mut sending = if len == Some(0) { Sending::Nothing } else { Sending::Streamed(body) };
        let mut held = HeldRequest { since: None, outcome: HeldOutcome::GivenUp, metrics: &self.metrics };
        let mut route = routes.now();
        loop {
            let attempt = match &route {
                RouteTo::Nobody if routes.have_ended() => return Err(Unanswered::Nobody),
                RouteTo::Nobody => Attempt::NotSent(sending),
                RouteTo::Here(here) => {
                    sending = self.kept_if_there_is_room(sending, len, KEPT_HERE_BYTES_MAX).await?;
                    self.here(door, here, &head, sending).await
                }
                RouteTo::There(owner) => {
                    sending = self.kept_if_there_is_room(sending, len, KEPT_BYTES_MAX).await?;
                    self.there::<D>(&routes, shard, &route, owner, &head, sending).await
                }
            };
            sending = match attempt {
                Attempt::Answered(answer) => {
                    held.outcome = HeldOutcome::Answered;
                    return Ok(answer);
                }
                Attempt::NotSent(Sending::Gone) | Attempt::Unknown(Sending::Gone | Sending::Streamed(_)) => {
                    return Err(Unanswered::Unknown);
                }
                Attempt::Unknown(_) if !is_repeatable(&head) => return Err(Unanswered::Unknown),
                Attempt::NotSent(sending) | Attempt::Unknown(sending) => sending,
            };
            let left = held.left().ok_or(Unanswered::Nobody)?;
            // The same one may answer again: it was only its connection that ended.
            let pause = if matches!(route, RouteTo::Nobody) { left } else { PAUSE.min(left) };
            route = routes.other_than(&route, pause).await;
        }
    }

    async fn here<D: DispatchedDoor>(
        &self,
        door: &D,
        here: &Arc<Here>,
        head: &Parts,
        sending: Sending,
    ) -> Attempt<D::Answer> {
        let sending = match sending {
            // The engine pays for it from here on.
            Sending::Kept(bytes, paid) => {
                drop(paid);
                Sending::Kept(bytes, None)
            }
            other => other,
        };
        let Some((body, again)) = sending.sent() else { return Attempt::Unknown(Sending::Gone) };
        match self.try_here(door, here, Request::from_parts(head.clone(), body)).await {
            Some(answer) => Attempt::Answered(answer),
            None => Attempt::Unknown(again),
        }
    }

    /// None if this daemon may not answer, or not any more.
    async fn try_here<D: DispatchedDoor>(
        &self,
        door: &D,
        here: &Arc<Here>,
        request: Request<PeerBody>,
    ) -> Option<D::Answer> {
        let at_work = here.requests.token();
        if here.lost.is_cancelled() {
            return None;
        }
        let answer = door.here(here, request).await;
        let status = D::status(&answer);
        if status == StatusCode::SERVICE_UNAVAILABLE && here.lost.is_cancelled() {
            return None;
        }
        // After what is answered was read. While storage does not tell, only this is repeated, and not what was asked.
        let begun = Clock::instant();
        loop {
            match here.proofs.prove().await {
                Ok(()) => break,
                Err(NotProven::Unknown(why)) if begun.elapsed() < HELD && !here.lost.is_cancelled() => {
                    tracing::debug!(why, "an answer waits for a proof");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "an answer is not given");
                    if matches!(error, NotProven::NotOwner) {
                        here.lost.cancel();
                    }
                    return None;
                }
            }
        }
        drop(at_work);
        Some(answer)
    }

    async fn there<D: DispatchedDoor>(
        &self,
        routes: &Routes,
        shard: u32,
        route: &RouteTo,
        owner: &PeerOwner,
        head: &Parts,
        sending: Sending,
    ) -> Attempt<D::Answer> {
        let link = &owner.link;
        let number = self.maps.known().number;
        // What cannot be sent twice is sent to who answers for sure.
        let serves = match &sending {
            Sending::Streamed(_) => link.ping(number, PING_PATIENCE).await.map(|pong| pong.has(shard)),
            _ => Ok(true),
        };
        let connection = match serves {
            Ok(true) => link.connect().await.map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let Ok(Some(connection)) = connection else {
            tracing::debug!(?connection, "a request waits for its peer");
            routes.suspect();
            return Attempt::NotSent(sending);
        };
        let Some((body, again)) = sending.sent() else { return Attempt::Unknown(Sending::Gone) };
        let Some(request) = passed_on(D::NAME, (shard, owner.epoch), head, body) else {
            return Attempt::Unknown(Sending::Gone);
        };
        if D::NAME != Calls::NAME
            && let Some(exchange) = Exchange::current()
        {
            exchange.note(|notes| notes.operation = Some(format!("passed on to {}", link.member().id)));
        }
        let sent = link.pass_on(connection, request, number);
        let answer = tokio::select! {
            answer = sent => answer,
            // Another one answers by now, or this one has been missed for long.
            () = routes.gone(route, HELD) => return Attempt::Unknown(again),
        };
        match answer {
            // It means another process, or does not take this one for a member: nothing was carried out.
            Ok(answer) if answer.status() == StatusCode::MISDIRECTED_REQUEST || peer::number(&answer).is_none() => {
                routes.suspect();
                Attempt::NotSent(again)
            }
            Ok(mut answer) => {
                remove(answer.headers_mut(), &OF_ONE_CONNECTION);
                remove(answer.headers_mut(), &peer::HEADERS);
                Attempt::Answered(D::there(answer))
            }
            Err(error) => {
                tracing::debug!(%error, "a peer did not answer");
                routes.suspect();
                Attempt::Unknown(again)
            }
        }
    }

    /// Reads a body of up to `most` bytes, so that it can be sent again. Only if there is room: nobody has looked yet whose it is.
    async fn kept_if_there_is_room(
        &self,
        sending: Sending,
        len: Option<u64>,
        most: u64,
    ) -> Result<Sending, Unanswered> {
        let Some(len) = len.filter(|len| (1..=most).contains(len)) else { return Ok(sending) };
        if !matches!(sending, Sending::Streamed(_)) {
            return Ok(sending);
        }
        match self.kept.try_pay(len) {
            Some(paid) => sending.kept(paid).await,
            None => Ok(sending),
        }
    }
}

/// A request that may have to wait, and for how long it has.
struct HeldRequest<'a> {
    since: Option<Instant>,
    outcome: HeldOutcome,
    metrics: &'a Metrics,
}

impl HeldRequest<'_> {
    /// The time for which it may wait still.
    fn left(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Clock::instant);
        HELD.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.metrics.held_seconds.of(self.outcome).observe(since.elapsed().as_secs_f64());
        }
    }
}

fn boxed(body: AxumBody) -> PeerBody {
    body.map_err(|error| Box::new(error) as StdError).boxed_unsync()
}

/// Whether a request that may have been carried out is answered the same when it is carried out again: reads, puts without a
/// condition, deletes of objects, what names itself by an idempotency key.
fn is_repeatable(head: &Parts) -> bool {
    let conditional = head.headers.contains_key(IF_MATCH) || head.headers.contains_key(IF_NONE_MATCH);
    let has = |name: &str| {
        let parts = head.uri.query().into_iter().flat_map(|query| query.split('&'));
        parts.map(|part| part.split('=').next().unwrap_or_default()).any(|part| part == name)
    };
    match head.method {
        Method::GET | Method::HEAD => true,
        Method::PUT => !conditional && head.uri.path().trim_matches('/').contains('/'),
        Method::DELETE => !conditional && !has("uploadId") && head.uri.path().trim_matches('/').contains('/'),
        Method::POST => has("delete") || head.headers.contains_key(IDEMPOTENT),
        _ => false,
    }
}

/// A request as a peer gets it. None if its head is none that HTTP/2 can carry.
fn passed_on(
    door: &'static str,
    (shard, epoch): (u32, u64),
    head: &Parts,
    body: PeerBody,
) -> Option<Request<PeerBody>> {
    let mut headers = head.headers.clone();
    let mut hops = vec![];
    for name in OF_ONE_CONNECTION {
        let sent = head.headers.get_all(&name).iter().filter_map(|value| value.to_str().ok());
        hops.extend(sent.filter_map(|value| HeaderValue::from_str(&format!("{name}:{value}")).ok()));
    }
    let of_head = head.uri.authority().map(ToString::to_string);
    let host = of_head.or_else(|| headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned))?;
    remove(&mut headers, &OF_ONE_CONNECTION);
    remove(&mut headers, &peer::HEADERS);
    // `Expect` stays, because it may be signed. The one who waits for `100 Continue` gets it as soon as the body is wanted here.
    headers.remove(HOST);
    headers.insert(peer::DOOR, HeaderValue::from_static(door));
    if shard > 0 {
        headers.insert(peer::SHARD, HeaderValue::from(shard));
    }
    headers.insert(peer::EPOCH, HeaderValue::from(epoch));
    for hop in hops {
        headers.append(peer::HOP, hop);
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build().ok()?;
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Some(request)
}

fn remove(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}
