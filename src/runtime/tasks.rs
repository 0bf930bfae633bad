//! Tasks that cannot fail in silence.

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The consequence that the end of a task has for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A panic stops the daemon.
    StopsTheDaemon,
    /// A panic is logged; what the task worked on fails.
    FailsItsWork,
}

/// Starts tasks under a name and waits for them.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    tracker: TaskTracker,
    stop: CancellationToken,
    reason: Arc<Mutex<Option<String>>>,
}

impl TaskGroup {
    /// A group whose vital tasks cancel `stop` when they panic.
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), stop, reason: Arc::default() }
    }

    /// Starts a task.
    pub fn spawn<F>(&self, name: &'static str, failure: Failure, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = self.clone();
        #[expect(clippy::disallowed_methods, reason = "the one place that starts tasks")]
        self.tracker.spawn(async move {
            if let Err(panic) = std::panic::AssertUnwindSafe(future).catch_unwind().await {
                let text = panic_text(&*panic);
                tracing::error!(task = name, panic = text, "a task panicked");
                if failure == Failure::StopsTheDaemon {
                    group.fail(format!("task {name} panicked: {text}"));
                }
            }
        });
    }

    /// Stops the daemon, because of `reason`; the first reason is kept.
    pub fn fail(&self, reason: String) {
        self.reason.lock().get_or_insert(reason);
        self.stop.cancel();
    }

    /// Why the daemon has to stop, if something failed.
    pub fn failure(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    /// Waits until every task has ended.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_vital_task_stops_the_daemon_and_says_why() {
        let stop = CancellationToken::new();
        let tasks = TaskGroup::new(stop.clone());

        tasks.spawn("vital", Failure::StopsTheDaemon, async { panic!("lost it") });
        stop.cancelled().await;

        assert_eq!(tasks.failure().unwrap(), "task vital panicked: lost it");
    }
}
