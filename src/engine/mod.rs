//! The daemon without doors: catalog, merger, reader and reclaiming, wired together once. Doors, the load generator, the
//! command line and the benches all open this one.
//!
//! - [`mod@open`]: builds every part in order, and stops them in reverse.
//! - [`progress`]: the step that a start is at.
//! - [`identity`], [`agreement`]: whether the place is the store that it should be, before anything there is changed.
//! - [`recover`]: settles what the daemon before this one left open.
//! - [`deletes`]: does again what was answered and noted on the local disk, and undone by a crash.
//! - [`jobs`]: jobs and their checkpoints.
//! - [`intake`]: one body, whole or streamed.
//! - [`write`]: storing segments.
//! - [`writes`]: whether writes get on.
//! - [`read`]: reading them, and objects.
//! - [`objects`]: S3 objects and buckets.
//! - [`uploads`]: S3 multipart uploads.
//! - [`space`]: what takes space, and getting it back now.
//! - [`arrivals`]: `_metadata` of Flink that came in.
//! - [`audit`]: what Flink's checkpoints name, and what nothing names any more.
//! - [`merged`]: warns of jobs that merge files themselves.
//! - [`elsewhere`]: what is asked of the other shards of a store.
//! - [`clock`]: tells the operator when the machine's clock is wrong.
//! - [`stopped`]: a store that no daemon is at work on, for commands that need none.
//! - [`verify`], [`rebuild`]: a catalog against its files, and a new one made from them.
//! - [`reshard`]: catalogs and files for another number of shards.
//!
//! # To follow
//! - a put: `api::native::segments::put_segment`, [`Engine::put_segment`], `Engine::take_in`, `Engine::store_whole`,
//!   [`Merger::store`], `merge/owner`, [`Catalog::execute`], [`Catalog::confirm`];
//! - a get: `api::native::segments::get_segment`, [`Engine::segment`], [`Engine::read_segment`], [`Reader::segment`];
//! - a delete: `S3Door::delete_object`, [`Engine::delete_objects`], [`Catalog::execute`]; then, when its file is due,
//!   [`Deleter::round`](crate::reclaim::delete::Deleter::round);
//! - a restart: `Daemon::start`, [`Engine::open`], [`identity::look`], [`crate::store::open`],
//!   [`Taker::take`](identity::Taker::take), [`recover::recover`], [`Catalog::start`].
//!
//! # Invariants
//! - What leaves are values and streams. No guard and no lock does.
//! - Nothing here knows HTTP.

pub mod agreement;
mod arrivals;
pub mod audit;
pub mod clock;
mod deletes;
pub mod elsewhere;
mod error;
pub mod identity;
pub mod intake;
pub mod jobs;
mod journal;
pub mod merged;
pub mod objects;
pub mod open;
pub mod progress;
pub mod read;
pub mod rebuild;
pub mod recover;
pub mod reshard;
pub mod space;
pub mod stopped;
pub mod uploads;
pub mod verify;
pub mod write;
pub mod writes;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
pub use crate::catalog::command::{Condition, ObjectToDelete, Refusal};
pub use crate::catalog::questions::{NoAnswer, ObjectListed, ObjectsPage, Recount};
pub use crate::catalog::state::{
    CheckpointView, ChecksumKind, JobView, ListPage, ListQuery, Listed, ObjectView, SegmentView, UploadView,
};
use crate::config::Settings;
use crate::merge::Merger;
use crate::metrics::Metrics;
use crate::model::{Millis, ShardOf};
use crate::read::Reader;
pub use crate::read::{BulkError, BulkPiece, ByteStream, ReadError};
use crate::reclaim::ReclaimControl;
use crate::runtime::{Budgets, Clock, Entropy, TaskGroup};
use crate::store::DataStore;
pub use crate::store::DiskFull;
use arrivals::Audits;
use elsewhere::Shards;
pub use error::EngineError;
use merged::MergedByFlink;
pub use open::{Background, CatalogClaim, EngineOptions, Foundation, OpeningError, Running, StopError, TriedStore};
pub use progress::StartProgress;
use uploads::Uploads;
use writes::WriteHealth;

/// The engine. Clones share everything.
#[derive(Clone)]
pub struct Engine {
    catalog: Catalog,
    merger: Merger,
    reader: Reader,
    reclaim: ReclaimControl,
    uploads: Arc<Uploads>,
    merged: Arc<MergedByFlink>,
    audits: Arc<Audits>,
    data: DataStore,
    budgets: Budgets,
    writes: WriteHealth,
    settings: Arc<Settings>,
    /// The part of the store that it has.
    shard: ShardOf,
    /// All parts, if there are several.
    shards: Option<Arc<dyn Shards>>,
    metrics: Metrics,
    entropy: Entropy,
    clock: Clock,
}

crate::runtime::opaque_debug!(Engine);

impl Engine {
    /// The settings that it goes by.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Everything that is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Memory for bytes on their way in and out.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Draws names.
    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The time, as it is recorded.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// The number of segments that there are.
    pub fn segment_count(&self) -> usize {
        self.catalog.segment_count()
    }

    /// When the last commit began that is durable, in milliseconds since the machine's boot: see [`Catalog::last_commit`].
    pub fn last_commit(&self) -> u64 {
        self.catalog.last_commit()
    }

    /// Cancelled when the engine stops: work of its own should end.
    pub fn stopping(&self) -> CancellationToken {
        self.reclaim.stop.clone()
    }

    /// Cancelled when the catalog is lost: nothing is answered any more.
    pub fn lost(&self) -> CancellationToken {
        self.catalog.lost()
    }

    /// The tasks for work that outlives a request. A stop waits for them.
    pub fn tasks(&self) -> TaskGroup {
        self.merger.tasks()
    }
}

/// Asks a question that may take long on a thread of its own, so that it keeps no other task waiting.
///
/// # Errors
/// [`EngineError::Unexpected`] with `what` if it panics.
async fn aside<T: Send + 'static>(
    what: &'static str,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    let answer = tokio::task::spawn_blocking(question).await;
    answer.map_err(|_| EngineError::Unexpected(what))
}
