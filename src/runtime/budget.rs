//! The budget of bytes in memory: paid before a body is read, given back when its bytes are gone.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::buffer::Buffer;

/// Why bytes were not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// More than the whole budget was asked for.
    #[error("{wanted} bytes are more than the whole memory budget of {budget} bytes")]
    TooLarge {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there are.
        budget: u64,
    },
    /// Others hold the bytes, and did not give them back in time.
    #[error("the memory budget is used up: {wanted} bytes were not free within {waited:?}")]
    Exhausted {
        /// Bytes asked for.
        wanted: u64,
        /// How long was waited.
        waited: Duration,
    },
}

/// A number of bytes that may be in memory at a time. Waiters are served in order.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    total: u64,
    in_flight: IntGauge,
}

/// Bytes that were paid for; dropping it gives them back.
#[derive(Debug)]
pub struct PaidBytes {
    permit: OwnedSemaphorePermit,
    in_flight: IntGauge,
}

impl ByteBudget {
    /// A budget of `total` bytes; `in_flight` shows how many are in use. One payment is less than 4 GiB.
    pub fn new(total: u64, in_flight: IntGauge) -> Self {
        let permits = usize::try_from(total).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(permits)), total, in_flight }
    }

    /// Bytes in the whole budget.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Pays for a [`Buffer`] of `bytes`, waiting in turn for at most `patience`.
    ///
    /// # Errors
    /// [`BudgetError`]; nothing is paid then.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the queue is lost.
    pub async fn pay(&self, bytes: u64, patience: Duration) -> Result<PaidBytes, BudgetError> {
        let too_large = BudgetError::TooLarge { wanted: bytes, budget: self.total };
        let permits = permits(bytes).filter(|permits| u64::from(*permits) <= self.total).ok_or(too_large)?;
        let wait = tokio::time::timeout(patience, Arc::clone(&self.free).acquire_many_owned(permits));
        match wait.await {
            Ok(Ok(permit)) => Ok(self.paid(permit)),
            _ => Err(BudgetError::Exhausted { wanted: bytes, waited: patience }),
        }
    }

    /// The same if that many are free now.
    pub fn try_pay(&self, bytes: u64) -> Option<PaidBytes> {
        let permit = Arc::clone(&self.free).try_acquire_many_owned(permits(bytes)?).ok()?;
        Some(self.paid(permit))
    }

    fn paid(&self, permit: OwnedSemaphorePermit) -> PaidBytes {
        self.in_flight.add(permit.num_permits() as i64);
        PaidBytes { permit, in_flight: self.in_flight.clone() }
    }
}

/// What a buffer of `bytes` costs.
fn permits(bytes: u64) -> Option<u32> {
    u32::try_from(Buffer::cost(usize::try_from(bytes).ok()?)).ok()
}

impl PaidBytes {
    /// Bytes paid for.
    pub fn len(&self) -> u64 {
        self.permit.num_permits() as u64
    }

    /// Whether nothing was paid for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what `other` paid for.
    pub fn merge(&mut self, mut other: PaidBytes) {
        let permits = other.permit.num_permits();
        if let Some(taken) = other.permit.split(permits) {
            self.permit.merge(taken);
        }
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.permit.num_permits());
        let surplus = self.permit.num_permits() - keep;
        if self.permit.split(surplus).is_some() {
            self.in_flight.sub(surplus as i64);
        }
    }
}

impl Drop for PaidBytes {
    fn drop(&mut self) {
        self.in_flight.sub(self.permit.num_permits() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge() -> IntGauge {
        IntGauge::new("in_flight", "help").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_are_not_free_in_time_are_refused_and_come_back_on_drop() {
        let gauge = gauge();
        let budget = ByteBudget::new(100, gauge.clone());

        let first = budget.pay(80, Duration::from_secs(1)).await.unwrap();
        let refused = budget.pay(30, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(refused, BudgetError::Exhausted { wanted: 30, waited: Duration::from_secs(1) });
        assert_eq!(gauge.get(), 80);

        drop(first);
        assert_eq!(gauge.get(), 0);
        assert!(budget.try_pay(100).is_some());
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_is_refused_at_once() {
        let budget = ByteBudget::new(100, gauge());

        let refused = budget.pay(101, Duration::from_secs(3600)).await.unwrap_err();

        assert_eq!(refused, BudgetError::TooLarge { wanted: 101, budget: 100 });
    }

    #[tokio::test]
    async fn merged_and_shrunk_payments_add_up() {
        let gauge = gauge();
        let budget = ByteBudget::new(100, gauge.clone());
        let mut first = budget.try_pay(40).unwrap();

        first.merge(budget.try_pay(50).unwrap());
        assert_eq!((first.len(), gauge.get()), (90, 90));
        first.shrink_to(10);
        assert_eq!((first.len(), gauge.get()), (10, 10));

        assert!(budget.try_pay(90).is_some());
    }
}
