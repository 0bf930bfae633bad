//! stub
use crate::{
    catalog::Catalog,
    config::Settings,
    merge::Merger,
    metrics::Metrics,
    read::Reader,
    runtime::{ByteBudget, Clock, Entropy},
};
use std::sync::Arc;
/// stub
#[derive(Clone)]
pub struct S3Door;
impl S3Door {
    /// stub
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        _: Catalog,
        _: Merger,
        _: Reader,
        _: ByteBudget,
        _: Arc<Settings>,
        _: Metrics,
        _: Entropy,
        _: Clock,
    ) -> Self {
        Self
    }
    /// stub
    pub async fn expire_uploads(self, stop: tokio_util::sync::CancellationToken) {
        stop.cancelled().await
    }
}
/// stub
pub fn service(_: &S3Door) -> Result<hyper_util::service::TowerToHyperService<axum::Router>, String> {
    Ok(hyper_util::service::TowerToHyperService::new(axum::Router::new()))
}
