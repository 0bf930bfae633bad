//! Whether writers or the backend need the bandwidth now.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::merge::pace::UploadPace;
use crate::metrics::Metrics;
use crate::runtime::{ByteBudget, Clock};

/// Part of the memory for bodies from which on writers are waiting, or soon will.
const BUDGET_USED_MAX: f64 = 0.75;
/// A put that takes so many times as long as usual is a sign of pressure.
const SLOWER_MAX: u32 = 4;
/// Latencies below this are no sign of anything.
const LATENCY_MIN: Duration = Duration::from_millis(50);
/// However often it is looked at, what is usual changes no faster.
const USUAL_PAUSE: Duration = Duration::from_secs(10);

/// Watches the backend and the writers.
#[derive(Debug)]
pub struct Pressure {
    metrics: Metrics,
    budget: ByteBudget,
    pace: Arc<UploadPace>,
    errors: f64,
    usual: Duration,
    usual_at: Option<Instant>,
}

impl Pressure {
    /// Nothing seen yet.
    pub fn new(metrics: Metrics, budget: ByteBudget, pace: Arc<UploadPace>) -> Self {
        let errors = metrics.store_errors_total();
        Self { metrics, budget, pace, errors, usual: Duration::ZERO, usual_at: None }
    }

    /// Whether the backend failed requests since the last look, or answers far slower than usual, or memory is short.
    pub fn is_high(&mut self) -> bool {
        let errors = self.metrics.store_errors_total();
        let failed = errors > std::mem::replace(&mut self.errors, errors);
        let latency = self.pace.latency();
        let slow = !self.usual.is_zero() && latency > LATENCY_MIN && latency > self.usual * SLOWER_MAX;
        // Forgets slowly: a backend that stays slow becomes the usual one.
        if self.usual.is_zero() || self.usual_at.is_none_or(|at| at.elapsed() >= USUAL_PAUSE) {
            self.usual = if self.usual.is_zero() { latency } else { (self.usual * 7 + latency) / 8 };
            self.usual_at = Some(Clock::instant());
        }
        let used = self.metrics.in_flight_bytes.get() as f64;
        failed || slow || used > self.budget.total() as f64 * BUDGET_USED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::{Purpose, StoreOperation};

    #[tokio::test]
    async fn failed_requests_and_short_memory_are_pressure_until_they_are_over() {
        let metrics = Metrics::new();
        let budget = ByteBudget::new(1000, metrics.in_flight_bytes.clone());
        let mut pressure = Pressure::new(metrics.clone(), budget.clone(), Arc::default());
        assert!(!pressure.is_high());

        metrics.store_errors.of((StoreOperation::Put, Purpose::Data)).inc();
        assert!(pressure.is_high());
        assert!(!pressure.is_high());
        let paid = budget.pay(900, Duration::ZERO).await.unwrap();
        assert!(pressure.is_high());
        drop(paid);
        assert!(!pressure.is_high());
    }
}
