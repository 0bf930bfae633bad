//! The native API, version 1.
//!
//! A worker says job, operator, subtask, task manager, scope and checkpoint itself, and drives the life of its
//! checkpoints. `clients/openapi.json` describes it for clients in other languages.
//!
//! Only the router knows the handlers; they know [`parts`].
//!
//! - [`parts`]: what handlers have in common: tokens, queries, JSON, ids.
//! - [`jobs`]: jobs, and their ends. [`elsewhere`]: those of other shards.
//! - [`segments`]: one segment in a request.
//! - [`checkpoints`]: the life of a checkpoint, reuse, savepoints.
//! - [`batch`]: many segments in one request.
//! - [`restore`]: many segments in one answer.
//! - [`coordinated`]: jobs with a coordinator. [`acks`]: what their tasks acknowledge. [`events`]: what they are told.
//! - [`audit`]: what the checkpoints of Flink name.
//! - [`space`]: what takes space, and getting it back now.

mod ack_size;
mod acks;
mod audit;
mod batch;
mod checkpoints;
mod coordinated;
mod elsewhere;
mod events;
mod jobs;
mod parts;
mod restore;
mod segments;
mod space;

use std::sync::LazyLock;

use axum::Router;
use axum::middleware;
use http::{StatusCode, Uri};
use utoipa::{OpenApi, openapi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use parts::Native;

use super::status::ApiError;
use esker_client::wire::{BatchAnswer, BatchHead, ErrorBody, ErrorDetail, JobEvent, RestoreHead};

/// Describes the API, but for its routes.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "Esker", description = "Stores the state segments of stream workers"),
    tags(
        (name = "Jobs", description = "Jobs, and their ends"),
        (name = "Segments", description = "State files in, and one out"),
        (name = "Checkpoints", description = "The life of a checkpoint, reuse, savepoints"),
        (name = "Coordinator", description = "Jobs whose checkpoints the daemon triggers and completes: docs/coordinator.md"),
        (name = "Restore", description = "Many segments in one answer, and the objects of the S3 door"),
        (name = "Space", description = "Bytes on storage, and getting them back"),
        (name = "Audit", description = "What the checkpoints of Apache Flink name, and objects that none names")
    ),
    components(schemas(ErrorBody, ErrorDetail, BatchHead, BatchAnswer, RestoreHead, JobEvent))
)]
struct Described;

/// Every route below `/v1`, each with its description, from one declaration beside its handler.
fn routes() -> OpenApiRouter<Native> {
    OpenApiRouter::with_openapi(Described::openapi())
        .routes(routes!(jobs::create_job, jobs::list_jobs))
        .routes(routes!(jobs::show_job))
        .routes(routes!(segments::put_segment, segments::list_segments))
        .routes(routes!(batch::put_segments))
        .routes(routes!(jobs::flush))
        .routes(routes!(jobs::restore_job))
        .routes(routes!(jobs::end_job))
        .routes(routes!(space::show_space))
        .routes(routes!(space::verify))
        .routes(routes!(space::show_plan, space::reclaim_now))
        .routes(routes!(space::show_gc, space::gc_now))
        .routes(routes!(audit::audit))
        .routes(routes!(audit::find_orphans, audit::delete_orphans))
        .routes(routes!(checkpoints::list_checkpoints))
        .routes(routes!(checkpoints::latest_checkpoint))
        .routes(routes!(checkpoints::begin_checkpoint, checkpoints::discard_savepoint))
        .routes(routes!(checkpoints::reuse))
        .routes(routes!(checkpoints::complete_checkpoint))
        .routes(routes!(checkpoints::abort_checkpoint))
        .routes(routes!(checkpoints::subsume_checkpoint))
        .routes(routes!(coordinated::change_settings))
        .routes(routes!(coordinated::report_tasks))
        .routes(routes!(events::events))
        .routes(routes!(acks::acknowledge))
        .routes(routes!(acks::decline))
        .routes(routes!(coordinated::report_backlog))
        .routes(routes!(coordinated::trigger_checkpoint))
        .routes(routes!(coordinated::trigger_savepoint))
        .routes(routes!(coordinated::stop))
        .routes(routes!(coordinated::state))
        .routes(routes!(coordinated::history))
        .routes(routes!(coordinated::metadata))
        .routes(routes!(segments::get_segment))
        .routes(routes!(segments::get_handle))
        .routes(routes!(restore::restore))
        .routes(routes!(restore::list_objects))
}

/// The same for requests. Made once: a member needs it for each shard that it takes over, while clients wait.
static ROUTES: LazyLock<Router<Native>> = LazyLock::new(|| {
    Router::from(routes()).fallback(|uri: Uri| async move { no_such_path(uri.path()) }).method_not_allowed_fallback(
        || async {
            ApiError::invalid("method", "this path does not take this method")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        },
    )
});

/// Describes the API; `clients/openapi.json` is this.
pub fn openapi() -> openapi::OpenApi {
    let mut api = routes().into_openapi();
    // A parameter that takes the rest of a path, slashes and all, is one like others to OpenAPI.
    let named = |(path, item): (String, openapi::PathItem)| (path.replace("{*", "{"), item);
    api.paths.paths = api.paths.paths.into_iter().map(named).collect();
    api
}

impl Native {
    /// Every route below `/v1`.
    pub fn router(self) -> Router {
        ROUTES
            .clone()
            .layer(middleware::from_fn_with_state(self.clone(), elsewhere::lead_on))
            .layer(middleware::from_fn_with_state(self.clone(), parts::authorize))
            .with_state(self)
    }
}

/// A slash in the id of a job ends the id, unless it is encoded.
fn no_such_path(path: &str) -> ApiError {
    let hint = if path.starts_with("/v1/jobs/") { "; a slash inside a job id is written %2F" } else { "" };
    ApiError::not_found("path", format!("there is no {path}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_words_and_each_is_described() {
        let api = openapi();
        let described: Vec<String> = api.tags.unwrap_or_default().into_iter().map(|tag| tag.name).collect();

        for (path, item) in api.paths.paths {
            for operation in [item.get, item.post, item.delete].into_iter().flatten() {
                let tags = operation.tags.unwrap_or_default();
                assert!(tags.len() == 1 && described.contains(&tags[0]), "{path}: {tags:?} of {described:?}");
            }
        }
    }

    #[test]
    fn the_stored_openapi_file_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/openapi.json");
        let now = openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("ESKER_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &now).unwrap();
        }

        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == now,
            "clients/openapi.json is out of date: run the tests once with ESKER_WRITE_OPENAPI=1"
        );
    }
}
