//! What the catalog can be asked. Questions are answered with values: nobody outside the catalog holds its lock. What has to be
//! known together is one question.
//!
//! A question about one thing is answered from one state. One about many looks at them in pieces, so that it holds no lock for
//! long: each thing is told as it is when its turn comes. Where that matters, the question says what it may miss.
//!
//! - [`jobs`]: jobs, their checkpoints, and what a job is restored from.
//! - [`segments`]: segments, and objects and uploads made of them.
//! - [`files`]: physical files, and the space that they take.
//! - [`found`]: where segments are, with the leases that keep them there.
//! - `pieces`: how a question looks at many things.
//!
//! Questions that a stopped store is asked too are methods of [`super::state::CatalogState`].

pub mod files;
pub mod found;
pub mod jobs;
mod pieces;
pub mod segments;

pub use files::{CatalogFigures, Detail, FileSurvey, InlineGroup, OfCheckpoint, Recount, SpaceTaken, ToDelete};
pub use found::{FoundFiles, FoundInRange, FoundSegment};
pub use jobs::NoAnswer;
pub use segments::{ObjectListed, ObjectsPage, RecordedUpload};
