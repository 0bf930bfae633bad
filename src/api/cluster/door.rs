//! What a member of a cluster answers itself: to health checks, about the cluster, and to its peers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use esker_client::wire::{ClusterMember, ClusterShard, ClusterStatus};
use futures::StreamExt;
use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::dispatch::{Dispatcher, OfPeer, PeerDoor, Unanswered};
use super::route::{RouteTo, Routes, ShardRoutes};
use super::spread;
use crate::api::admin::{all_taken, exposed, not_ready, readiness};
use crate::api::keys::KeyRing;
use crate::api::peers::{Peer, Peers};
use crate::api::status::ApiError;
use crate::cluster::links::PeerLinks;
use crate::cluster::maps::{ClusterMaps, NumberedMap};
use crate::cluster::peer::{self, PeerLink, Pong, VERSION};
use crate::config::Secret;
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::{PeerCall, RejectReason};

/// A peer that is asked whether it is there has so long for its answer.
const PATIENCE: Duration = Duration::from_millis(250);

/// Tells a member to give its shards away, and to take none that another one could have.
#[derive(Debug, Default)]
pub struct Drain {
    told: Notify,
    drained: AtomicBool,
}

impl Drain {
    /// Tells it.
    pub fn tell(&self) {
        self.drained.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Resolves when it is told.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether it was ever told.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }
}

/// The door of a member. Clones share everything.
#[derive(Clone)]
pub struct MemberDoor {
    /// Has clients' requests answered.
    pub dispatcher: Dispatcher,
    /// Who answers them.
    pub routes: ShardRoutes,
    /// What the cluster has agreed on.
    pub maps: Arc<ClusterMaps>,
    /// The ways to its peers.
    pub links: Arc<PeerLinks>,
    /// `cluster.token`.
    pub token: Option<Secret>,
    /// Who may ask about the cluster.
    pub keys: KeyRing,
    /// Told to give its shards away.
    pub drain: Arc<Drain>,
    /// Whether requests are wanted.
    pub ready: Arc<AtomicBool>,
    /// Cancelled when answers without an end have to end.
    pub ending: CancellationToken,
    /// Everything that is counted.
    pub metrics: Metrics,
}

crate::runtime::opaque_debug!(MemberDoor);

impl MemberDoor {
    /// Everything that comes to the address of the native API.
    pub fn router(self) -> Router {
        Self::health()
            .route("/v1/cluster", get(status))
            .route("/v1/cluster/drain/{id}", post(drain_member))
            .fallback(of_client)
            .layer(axum::middleware::from_fn_with_state(self.clone(), peers_first))
            .with_state(self)
    }

    /// The same for whom there is no place: health checks and peers are answered, everything else is told to come back.
    pub fn router_when_full(self, peers: Peers) -> Router {
        let own = Self::health().fallback(move || std::future::ready(all_taken(&peers)));
        own.layer(axum::middleware::from_fn_with_state(self.clone(), peers_first)).with_state(self)
    }

    fn health() -> Router<Self> {
        let live = get(|| async { "ok\n" });
        Router::new().route("/livez", live).route("/readyz", get(ready)).route("/metrics", get(metrics))
    }

    fn number(&self) -> u64 {
        self.maps.known().number
    }

    /// What a peer wants; `None` if the request is a client's.
    fn wanted(&self, request: &Request) -> Option<PeerWants> {
        let said = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let version = said(peer::PROTOCOL)?;
        let token = said(peer::TOKEN).unwrap_or_default().as_bytes();
        let known = self.token.as_ref().is_none_or(|own| bool::from(own.expose().as_bytes().ct_eq(token)));
        if !known {
            self.metrics.rejected.of(RejectReason::Auth).inc();
            let error = ApiError::invalid("esker-peer-token", "cluster.token is another one here");
            return Some(PeerWants::Refused(error.with_status(StatusCode::UNAUTHORIZED)));
        }
        if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
            peer.trust();
        }
        if version != VERSION {
            let error = ApiError::invalid("esker-peer", format!("peers speak version {VERSION} here"));
            return Some(PeerWants::Refused(error.with_status(StatusCode::UPGRADE_REQUIRED)));
        }
        if said(peer::FOR) != Some(self.links.me().incarnation.as_str()) {
            return Some(PeerWants::Misdirected);
        }
        if let Some(number) = said(peer::MAP).and_then(|number| number.parse().ok()) {
            self.maps.hint(number);
        }
        let shard = said(peer::SHARD).and_then(|shard| shard.parse().ok()).unwrap_or_default();
        let epoch = said(peer::EPOCH).and_then(|epoch| epoch.parse().ok());
        Some(match said(peer::DOOR).map(PeerDoor::named) {
            Some(None) => PeerWants::Misdirected,
            // Whoever makes it needs no key: only members may.
            Some(Some(PeerDoor::Engine)) if self.token.is_none() && !self.keys.current().lets_everybody_in() => {
                self.metrics.rejected.of(RejectReason::Auth).inc();
                let error = ApiError::invalid("esker-peer-token", "calls of members need cluster.token");
                PeerWants::Refused(error.with_status(StatusCode::UNAUTHORIZED))
            }
            Some(Some(door)) => PeerWants::Request(OfPeer { door, shard, epoch }),
            None => PeerWants::Call(request.method().clone(), request.uri().path().to_owned()),
        })
    }

    /// Whether the client holds a token, where tokens are asked for, and may change something if it wants to.
    fn authorized(&self, headers: &HeaderMap, writes: bool) -> Result<(), ApiError> {
        let judged = self.keys.current().bearer(headers, writes).map(|_| ());
        judged.inspect_err(|_| self.metrics.rejected.of(RejectReason::Auth).inc())
    }
}

async fn ready(State(door): State<MemberDoor>) -> Response {
    let wanted = door.ready.load(Ordering::Acquire);
    let here = door.routes.here();
    let nobody = |routes: &Routes| matches!(routes.now(), RouteTo::Nobody);
    let all = door.routes.all();
    if here.is_empty() && all.iter().all(nobody) && wanted {
        return not_ready(&"no daemon of the cluster has the catalog yet");
    }
    let ill = here.iter().find(|here| here.engine.check().is_err() || here.engine.writes_refused().is_some());
    readiness(ill.or(here.first()).map(|here| &here.engine), wanted)
}

async fn metrics(State(door): State<MemberDoor>) -> impl IntoResponse {
    Engine::refresh_metrics_of(&door.metrics, door.routes.here().iter().map(|here| &here.engine));
    exposed(&door.metrics)
}

/// What a peer wants.
enum PeerWants {
    /// A request of a client, that came to its S3 door or to its native API.
    Request(OfPeer),
    /// A call of its own.
    Call(Method, String),
    /// It means another process.
    Misdirected,
    /// It is told why not.
    Refused(ApiError),
}

/// Peers' requests go their own way; to clients' requests the names that only peers may give mean nothing.
async fn peers_first(State(door): State<MemberDoor>, mut request: Request, next: Next) -> Response {
    let Some(wanted) = door.wanted(&request) else {
        remove_headers(&mut request);
        return next.run(request).await;
    };
    let hops = hops(request.headers());
    remove_headers(&mut request);
    let misdirected = || StatusCode::MISDIRECTED_REQUEST.into_response();
    let mut answer = match wanted {
        PeerWants::Refused(error) => return error.into_response(),
        PeerWants::Misdirected => misdirected(),
        PeerWants::Request(of) => {
            for (name, value) in hops {
                request.headers_mut().append(name, value);
            }
            door.dispatcher.of_peer(of, request).await.unwrap_or_else(misdirected)
        }
        PeerWants::Call(method, path) => {
            drop(request);
            of_peer(&door, method, path).await
        }
    };
    answer.headers_mut().insert(peer::MAP, HeaderValue::from(door.number()));
    answer
}

/// Headers that were about the client's own connection, as it sent them.
fn hops(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let sent = headers.get_all(peer::HOP).iter().filter_map(|hop| hop.to_str().ok()?.split_once(':'));
    sent.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?))).collect()
}

fn remove_headers(request: &mut Request) {
    for name in peer::HEADERS {
        request.headers_mut().remove(name);
    }
}

/// A call of a peer itself.
async fn of_peer(door: &MemberDoor, method: Method, path: String) -> Response {
    let me = door.links.me();
    match path.strip_prefix(peer::PATH) {
        Some("ping") => {
            let (id, incarnation) = (me.id.clone(), me.incarnation.clone());
            let shards: Vec<u32> = door.routes.here().iter().map(|here| here.shard).collect();
            let opening = door.routes.here_soon();
            let (serves, opens, drained) = (shards.contains(&0), opening.contains(&0), door.drain.is_drained());
            // Last: whoever is told of a map is told what was so after it was known.
            let map = door.number();
            Json(Pong { id, incarnation, serves, opens, shards, opening, drained, map }).into_response()
        }
        Some("drain") if method == Method::POST => {
            door.drain.tell();
            StatusCode::ACCEPTED.into_response()
        }
        // Of all its shards: `<shard> <segments>`, line by line.
        Some("segments") => {
            let lines = door.routes.here();
            let lines = lines.iter().map(|here| format!("{} {}\n", here.shard, here.engine.segment_count()));
            lines.collect::<String>().into_response()
        }
        Some(path) => match path.strip_prefix("reach/") {
            Some(incarnation) => {
                let map = door.maps.known();
                let others = door.links.others(&map.map, None);
                let link = others.iter().find(|link| link.member().incarnation == incarnation);
                let reached = match link {
                    Some(link) => link.ping(map.number, PATIENCE).await.is_ok(),
                    None => false,
                };
                (if reached { "yes" } else { "no" }).into_response()
            }
            None => StatusCode::NOT_FOUND.into_response(),
        },
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A request of a client that is about nothing of this member alone.
async fn of_client(State(door): State<MemberDoor>, request: Request) -> Response {
    if !request.uri().path().ends_with("/events") {
        return answered(&door, request).await;
    }
    // Whoever waits for events does not hold up the end of a member.
    tokio::select! {
        answer = answered(&door, request) => {
            let (head, body) = answer.into_parts();
            let told = body.into_data_stream().take_until(door.ending.clone().cancelled_owned());
            Response::from_parts(head, Body::from_stream(told))
        }
        () = door.ending.cancelled() => {
            let error = ApiError::of(ErrorKind::ShuttingDown, "the daemon is shutting down, repeat the request".to_owned());
            error.into_response()
        }
    }
}

async fn answered(door: &MemberDoor, request: Request) -> Response {
    let error = match spread::answer(&door.dispatcher, request, |headers| door.authorized(headers, false)).await {
        Ok(answer) => return answer,
        Err(error) => error,
    };
    match error {
        Unanswered::NoSegments(_) => ApiError::not_found("segments", error.to_string()),
        Unanswered::TooLong(_) => {
            ApiError::invalid("body", error.to_string()).with_status(StatusCode::PAYLOAD_TOO_LARGE)
        }
        _ => {
            door.metrics.rejected.of(RejectReason::Unavailable).inc();
            ApiError::of(ErrorKind::Unavailable, error.to_string())
        }
    }
    .into_response()
}

/// What the cluster is, as this member sees it.
async fn status(State(door): State<MemberDoor>, headers: HeaderMap) -> Result<Json<ClusterStatus>, ApiError> {
    door.authorized(&headers, false)?;
    let last = door.maps.known();
    let number = last.number;
    let me = door.links.me();
    let pinged = last.map.members.iter().map(|member| {
        let link = door.links.to(member);
        async move { member.incarnation == me.incarnation || link.ping(number, PATIENCE).await.is_ok() }
    });
    let reachable = join_all(pinged).await;
    let members = last.map.members.iter().zip(reachable).map(|(member, reachable)| ClusterMember {
        id: member.id.clone(),
        url: member.url.clone(),
        incarnation: member.incarnation.clone(),
        since: member.since.clone(),
        reachable,
    });
    let members = members.collect();
    let counted = segments(&door, &last).await;
    let of_shard = |shard: u32| {
        let ownership = last.map.ownership(shard)?;
        Some(ClusterShard {
            shard,
            owner: last.map.owner(shard).map(|(_, owner)| owner.id.clone()),
            segments: last.map.owner(shard).and_then(|_| counted.get(&shard).copied()),
            since: ownership.since.clone(),
            cause: ownership.how.as_str().to_owned(),
        })
    };
    let shards = (0..last.map.shards).filter_map(of_shard).collect();
    Ok(Json(ClusterStatus { map: number, members, shards }))
}

/// The segments of each shard whose owner tells.
async fn segments(door: &MemberDoor, last: &NumberedMap) -> HashMap<u32, usize> {
    let mut counted: HashMap<u32, usize> =
        door.routes.here().iter().map(|here| (here.shard, here.engine.segment_count())).collect();
    let owns = |link: &Arc<PeerLink>| {
        let incarnation = &link.member().incarnation;
        (0..last.map.shards)
            .any(|shard| last.map.owner(shard).is_some_and(|(_, owner)| owner.incarnation == *incarnation))
    };
    let owners: Vec<_> = door.links.others(&last.map, None).into_iter().filter(owns).collect();
    let asked = owners.iter().map(|link| link.call(Method::GET, "segments", last.number, PeerCall::Ping, PATIENCE));
    for words in join_all(asked).await.into_iter().flatten() {
        let lines = String::from_utf8_lossy(&words).into_owned();
        counted.extend(lines.lines().filter_map(|line| {
            let (shard, segments) = line.split_once(' ')?;
            Some((shard.parse::<u32>().ok()?, segments.parse::<usize>().ok()?))
        }));
    }
    counted
}

/// Has a member give its shards away.
async fn drain_member(
    State(door): State<MemberDoor>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    door.authorized(&headers, true)?;
    let last = door.maps.known();
    let Some(member) = last.map.member(&id) else {
        return Err(ApiError::not_found("id", format!("the cluster has no member {id}")));
    };
    if member.incarnation == door.links.me().incarnation {
        door.drain.tell();
        return Ok(StatusCode::ACCEPTED);
    }
    let link = door.links.to(member);
    match link.call(Method::POST, "drain", last.number, PeerCall::Drain, PATIENCE * 4).await {
        Ok(_) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(ApiError::of(ErrorKind::Unavailable, crate::error::chain(&error))),
    }
}
