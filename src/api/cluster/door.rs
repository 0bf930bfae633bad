//! What a member of a cluster answers itself: to health checks, about the cluster, and to its peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use esker_client::wire::{ClusterMember, ClusterShard, ClusterStatus};
use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use super::dispatch::Dispatcher;
use super::route::{RouteTo, Routes};
use crate::api::admin::{all_taken, exposed, not_ready, readiness};
use crate::api::keys::KeyRing;
use crate::api::peers::{Peer, Peers};
use crate::api::status::ApiError;
use crate::cluster::links::PeerLinks;
use crate::cluster::maps::ClusterMaps;
use crate::cluster::peer::{self, Pong, VERSION};
use crate::config::Secret;
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::{PeerCall, RejectReason};

/// A peer that is asked whether it is there has so long for its answer.
const PATIENCE: Duration = Duration::from_millis(250);

/// The door of a member. Clones share everything.
#[derive(Clone)]
pub struct MemberDoor {
    /// Has clients' requests answered.
    pub dispatcher: Dispatcher,
    /// Who answers them.
    pub routes: Routes,
    /// What the cluster has agreed on.
    pub maps: Arc<ClusterMaps>,
    /// The ways to its peers.
    pub links: Arc<PeerLinks>,
    /// `cluster.token`.
    pub token: Option<Secret>,
    /// Who may ask about the cluster.
    pub keys: KeyRing,
    /// Told to give its shards away.
    pub drain: Arc<Notify>,
    /// Whether requests are wanted.
    pub ready: Arc<AtomicBool>,
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
    fn wanted(&self, request: &Request) -> Option<OfPeer> {
        let said = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let version = said(peer::PROTOCOL)?;
        let token = said(peer::TOKEN).unwrap_or_default().as_bytes();
        let known = self.token.as_ref().is_none_or(|own| bool::from(own.expose().as_bytes().ct_eq(token)));
        if !known {
            self.metrics.rejected.of(RejectReason::Auth).inc();
            let error = ApiError::invalid("esker-peer-token", "cluster.token is another one here");
            return Some(OfPeer::Refused(error.with_status(StatusCode::UNAUTHORIZED)));
        }
        if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
            peer.trust();
        }
        if version != VERSION {
            let error = ApiError::invalid("esker-peer", format!("peers speak version {VERSION} here"));
            return Some(OfPeer::Refused(error.with_status(StatusCode::UPGRADE_REQUIRED)));
        }
        if said(peer::FOR) != Some(self.links.me().incarnation.as_str()) {
            return Some(OfPeer::Misdirected);
        }
        if let Some(number) = said(peer::MAP).and_then(|number| number.parse().ok()) {
            self.maps.hint(number);
        }
        Some(match said(peer::DOOR) {
            Some(door) => OfPeer::Request { s3: door == "s3" },
            None => OfPeer::Call(request.method().clone(), request.uri().path().to_owned()),
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
    match door.routes.now() {
        RouteTo::Here(here) => readiness(Some(&here.engine), wanted),
        RouteTo::Nobody if wanted => not_ready(&"no daemon of the cluster has the catalog yet"),
        RouteTo::Nobody | RouteTo::There(_) => readiness(None, wanted),
    }
}

async fn metrics(State(door): State<MemberDoor>) -> impl IntoResponse {
    if let RouteTo::Here(here) = door.routes.now() {
        here.engine.refresh_metrics();
    }
    exposed(&door.metrics)
}

/// What a peer wants.
enum OfPeer {
    /// A request of a client, that came to its S3 door or to its native API.
    Request { s3: bool },
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
        OfPeer::Refused(error) => return error.into_response(),
        OfPeer::Misdirected => misdirected(),
        OfPeer::Request { s3 } => {
            for (name, value) in hops {
                request.headers_mut().append(name, value);
            }
            door.dispatcher.of_peer(s3, request).await.unwrap_or_else(misdirected)
        }
        OfPeer::Call(method, path) => {
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
            let (serves, opens) = (matches!(door.routes.now(), RouteTo::Here(_)), door.routes.here_soon());
            // Last: whoever is told of a map is told what was so after it was known.
            Json(Pong { id, incarnation, serves, opens, map: door.number() }).into_response()
        }
        Some("drain") if method == Method::POST => {
            door.drain.notify_one();
            StatusCode::ACCEPTED.into_response()
        }
        Some("segments") => match door.routes.now() {
            RouteTo::Here(here) => here.engine.segment_count().to_string().into_response(),
            _ => StatusCode::MISDIRECTED_REQUEST.into_response(),
        },
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
    match door.dispatcher.api(request).await {
        Ok(answer) => answer,
        Err(error) => {
            door.metrics.rejected.of(RejectReason::Unavailable).inc();
            ApiError::of(ErrorKind::Unavailable, error.to_string()).into_response()
        }
    }
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
    let mut shards = vec![];
    for ownership in &last.map.owners {
        let owner = last.map.owner(ownership.shard).map(|(_, member)| member.clone());
        let segments = match (&owner, door.routes.now()) {
            (Some(owner), _) if owner.incarnation != me.incarnation => {
                let link = door.links.to(owner);
                let told = link.call(Method::GET, "segments", number, PeerCall::Ping, PATIENCE).await.ok();
                told.and_then(|words| std::str::from_utf8(&words).ok()?.parse().ok())
            }
            (Some(_), RouteTo::Here(here)) => Some(here.engine.segment_count()),
            _ => None,
        };
        shards.push(ClusterShard {
            shard: ownership.shard,
            owner: owner.map(|owner| owner.id),
            segments,
            since: ownership.since.clone(),
            cause: ownership.how.as_str().to_owned(),
        });
    }
    Ok(Json(ClusterStatus { map: number, members, shards }))
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
        door.drain.notify_one();
        return Ok(StatusCode::ACCEPTED);
    }
    let link = door.links.to(member);
    match link.call(Method::POST, "drain", last.number, PeerCall::Drain, PATIENCE * 4).await {
        Ok(_) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(ApiError::of(ErrorKind::Unavailable, crate::error::chain(&error))),
    }
}
