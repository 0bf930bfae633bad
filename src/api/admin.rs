//! Health and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use super::peers::{Peers, Reason};
use super::status::ApiError;
use crate::catalog::Catalog;
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::reclaim::watch::{Waiting, Watch};
use crate::store::{DataStore, DiskSpace};

/// What health and metrics are read from.
#[derive(Clone)]
pub struct Admin {
    /// What exists.
    pub catalog: Catalog,
    /// The metrics.
    pub metrics: Metrics,
    /// What waits to be deleted, and who is above the limit.
    pub watch: Watch,
    /// Whether requests are wanted.
    pub ready: Arc<AtomicBool>,
    /// What local disks have room for.
    pub space: DiskSpace,
    /// The data, which may not be there.
    pub data: DataStore,
}

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

    /// Brings the gauges that describe the catalog up to date.
    pub fn refresh(&self) {
        let ages = self.catalog.clock().ages();
        let (space, counts, waiting, lag) = {
            let state = self.catalog.view();
            let (_, lag) = self.watch.above(&state);
            (state.space(), state.file_counts(), self.watch.waiting(&state, ages), lag)
        };
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for (state, count) in ["open", "closed", "forgotten"].into_iter().zip(counts) {
            self.metrics.files.with_label_values(&[state]).set(gauge(count));
        }
        self.metrics.clock_behind.set(self.catalog.clock().behind().as_secs_f64());
        self.metrics.delete_queue.set(gauge(counts[2]));
        self.metrics.physical_bytes.set(gauge(space.physical_bytes));
        let Waiting { readers, grace, rate, refused } = waiting;
        for (why, bytes) in [("readers", readers), ("grace", grace), ("rate", rate), ("refused", refused)] {
            self.metrics.forgotten_bytes.with_label_values(&[why]).set(gauge(bytes));
        }
        self.metrics.reclaim_lag.set(lag.as_secs_f64());
        self.metrics.live_bytes.set(gauge(space.live_bytes));
        self.metrics.inline_bytes.set(gauge(space.inline_bytes));
        self.metrics.space_amplification.set(space.amplification());
    }
}

/// 200 when requests are wanted; else 503 with the reason.
async fn ready(State(admin): State<Admin>) -> Response {
    let not_ready = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response();
    if let Err(error) = admin.catalog.check() {
        return not_ready(error.to_string());
    }
    if !admin.ready.load(Ordering::Acquire) {
        return not_ready("starting or shutting down".to_owned());
    }
    if let Some(why) = admin.data.lost() {
        return not_ready(format!("no writes: the store is not there: {why}"));
    }
    match admin.space.check() {
        Err(full) => not_ready(format!("no writes: {full}")),
        Ok(()) => "ready\n".into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.refresh();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}
