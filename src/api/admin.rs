//! Health and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use super::peers::{Peers, Reason};
use super::status::{ApiError, STARTING, WITHOUT_TLS};
use crate::engine::{Engine, StartProgress};
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::metrics::labels::RejectReason;

/// Answers health checks and metrics.
#[derive(Clone)]
pub struct Admin {
    /// The engine whose health and metrics are told.
    pub engine: Engine,
    /// Whether requests are wanted.
    pub ready: Arc<AtomicBool>,
}

crate::runtime::opaque_debug!(Admin);

impl Admin {
    /// `/livez`, `/readyz` and `/metrics`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }

    /// The same when there is no place for a connection: everything else is told to come back.
    pub fn router_when_full(self, peers: Peers) -> Router {
        self.router().fallback(move || std::future::ready(all_taken(&peers)))
    }

    /// The same before there is an engine: nothing is ready, and everything else is told to come back.
    pub fn router_while_starting(metrics: Metrics, progress: StartProgress) -> Router {
        let (told, counted) = (metrics.clone(), metrics);
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(move || async move { not_ready(&progress) }))
            .route("/metrics", get(move || async move { exposed(&told) }))
            .fallback(move || async move {
                counted.rejected.of(RejectReason::Unavailable).inc();
                ApiError::of(ErrorKind::Unavailable, STARTING)
            })
    }

    /// For those who speak plain HTTP where TLS is spoken: everything is told so.
    pub fn router_without_tls() -> Router {
        Router::new().fallback(|| async { ApiError::invalid("scheme", WITHOUT_TLS) })
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    readiness(Some(&admin.engine), admin.ready.load(Ordering::Acquire))
}

/// 200 when requests are `wanted`, and the engine is well if it is this daemon's to answer them; else 503 with the reason.
pub(super) fn readiness(engine: Option<&Engine>, wanted: bool) -> Response {
    if let Some(Err(error)) = engine.map(Engine::check) {
        return not_ready(&error);
    }
    if !wanted {
        return not_ready(&"shutting down");
    }
    match engine.and_then(Engine::writes_refused) {
        Some(why) => not_ready(&format_args!("no writes: {why}")),
        None => "ready\n".into_response(),
    }
}

/// For whom there is no place.
pub(super) fn all_taken(peers: &Peers) -> ApiError {
    peers.count(Reason::Connections, None);
    ApiError::of(ErrorKind::Overloaded, "all connections are taken, repeat the request more slowly")
}

pub(super) fn not_ready(reason: &dyn std::fmt::Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.engine.refresh_metrics();
    exposed(admin.engine.metrics())
}

/// All metrics, as Prometheus reads them.
pub(super) fn exposed(metrics: &Metrics) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}
