//! The step that a start is at, for the log and for the doors that are open before anything else is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::runtime::Clock;

/// After so long a step of the start is told of, and then after ever longer times.
const TELL_AFTER: Duration = Duration::from_secs(2);
const TELL_EVERY_MAX: Duration = Duration::from_secs(60);

/// The step that a start is at. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StartProgress(Arc<Mutex<Option<Step>>>);

#[derive(Debug)]
struct Step {
    doing: &'static str,
    place: String,
    begun: Instant,
}

impl StartProgress {
    /// Waits for one step of the start, and says in the log what is being waited for.
    pub async fn told<T>(&self, doing: &'static str, place: &str, done: impl Future<Output = T>) -> T {
        let begun = Clock::instant();
        *self.0.lock() = Some(Step { doing, place: place.to_owned(), begun });
        let mut done = std::pin::pin!(done);
        let mut pause = TELL_AFTER;
        loop {
            match tokio::time::timeout(pause, &mut done).await {
                Ok(done) => return done,
                Err(_) => tracing::warn!(seconds = begun.elapsed().as_secs(), "still {doing} at {place}"),
            }
            pause = (pause * 4).min(TELL_EVERY_MAX);
        }
    }
}

/// As in "starting: opening the catalog at file:/disk/esker, for 12 s".
impl fmt::Display for StartProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.lock() {
            Some(Step { doing, place, begun }) => {
                write!(f, "starting: {doing} at {place}, for {} s", begun.elapsed().as_secs())
            }
            None => f.write_str("starting"),
        }
    }
}
