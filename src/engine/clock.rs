//! Tells the operator when the machine's clock is wrong.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::runtime::Clock;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(10);
/// The difference between machines that keep time by a network, with some room. Less is not worth a line.
const OFF_MAX: Duration = Duration::from_secs(5);

/// Looks at the machine's clock until `stop`: warns at the start if it is behind what is on record, and whenever it is set.
pub(super) async fn watch(clock: Clock, stop: CancellationToken) {
    let mut told = Duration::ZERO;
    loop {
        if let Some(by) = clock.jumped() {
            tracing::warn!(by_seconds = by.as_secs(), "the machine's clock was set, or the machine slept");
        }
        told = tell(clock.behind(), told);
        if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

/// Returns how far behind the operator thinks the clock is.
fn tell(behind: Duration, told: Duration) -> Duration {
    let seconds = behind.as_secs();
    if behind > told + OFF_MAX {
        tracing::warn!(
            behind_seconds = seconds,
            "the machine's clock is behind what is on record: it is wrong, or that of the daemon before was. Stamps go on \
             slowly until it has caught up"
        );
        behind
    } else if behind < OFF_MAX && told > Duration::ZERO {
        tracing::info!("the machine's clock has caught up with what is on record");
        Duration::ZERO
    } else {
        told.min(behind)
    }
}
