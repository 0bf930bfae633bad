//! Health and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use super::peers::{Peers, Reason};
use super::status::{ApiError, WITHOUT_TLS};
use crate::engine::Engine;
use crate::error::ErrorKind;

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
        self.router().fallback(move || async move {
            peers.count(Reason::Connections, None);
            ApiError::of(ErrorKind::Overloaded, "all connections are taken, repeat the request more slowly")
        })
    }

    /// For those who speak plain HTTP where TLS is spoken: everything is told so.
    pub fn router_without_tls() -> Router {
        Router::new().fallback(|| async { ApiError::invalid("scheme", WITHOUT_TLS) })
    }
}

/// 200 when requests are wanted; else 503 with the reason.
async fn ready(State(admin): State<Admin>) -> Response {
    let not_ready = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response();
    if let Err(error) = admin.engine.check() {
        return not_ready(error.to_string());
    }
    if !admin.ready.load(Ordering::Acquire) {
        return not_ready("starting or shutting down".to_owned());
    }
    match admin.engine.writes_refused() {
        Some(why) => not_ready(format!("no writes: {why}")),
        None => "ready\n".into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.engine.refresh_metrics();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.engine.metrics().render())
}
