//! Answers from one task to another.

use tokio::sync::oneshot;

/// Sends `answer` to the task that waits for it.
///
/// If that task has stopped waiting, the answer is dropped: what it tells has happened all the same.
pub fn reply<T>(to: oneshot::Sender<T>, answer: T) {
    // The only error gives the answer back, for want of a receiver.
    drop(to.send(answer));
}
