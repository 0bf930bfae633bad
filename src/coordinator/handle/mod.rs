//! What may be asked of the coordinator of one job.
//!
//! - `asking`: [`JobHandle`], and how it asks.
//! - `standing`: how the job stands.
//! - `tasks`: what tasks report.
//! - `acks`: what they acknowledge.
//! - `people`: what people want of it.
//! - `starts`: what tasks start from.
//! - `restore`: another state to go on from.

mod acks;
mod asking;
mod people;
mod restore;
mod standing;
mod starts;
mod tasks;

pub use acks::{AckTicket, AcknowledgedState};
pub use asking::JobHandle;
pub use restore::RestoreWanted;
pub use standing::{Greeting, JobStanding};
pub use starts::JobStart;
