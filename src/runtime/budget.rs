//! The budget of bytes in memory: paid before a body is read, given back when its bytes are gone.
//!
//! It has two parts, for reads and for writes ([`Budgets`]). Each takes what is free, but never what is kept for the
//! other: however many readers stop reading, writers have their part, and the other way round. Within a part nobody
//! holds more than a share, see [`super::payer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::buffer::Buffer;
use super::payer::{Payer, Share};

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
    /// The budget that this one is a part of.
    whole: Option<Arc<Semaphore>>,
    waiting: Arc<AtomicUsize>,
    in_flight: IntGauge,
}

/// A budget in two parts: what is free may be used by either, but for what is kept for the other.
#[derive(Debug, Clone)]
pub struct Budgets {
    /// For bytes on their way out.
    pub reads: ByteBudget,
    /// For bytes on their way in, and for what the daemon copies itself.
    pub writes: ByteBudget,
}

/// Bytes that were paid for; dropping it gives them back.
#[derive(Debug)]
pub struct PaidBytes(Box<Taken>);

/// What a payment has taken. In a box: it goes from hand to hand with the bytes that it is for.
#[derive(Debug)]
struct Taken {
    permit: OwnedSemaphorePermit,
    whole: Option<OwnedSemaphorePermit>,
    /// Taken from what the payer may hold.
    shares: Vec<OwnedSemaphorePermit>,
    in_flight: IntGauge,
}

impl Budgets {
    /// Divides `total` bytes. Reads never hold the last `writes_kept` of them, writes never the last `reads_kept`.
    pub fn new(total: u64, reads_kept: u64, writes_kept: u64, in_flight: IntGauge) -> Self {
        let whole = ByteBudget::new(total, in_flight);
        let part = |kept_for_others: u64| ByteBudget {
            whole: Some(Arc::clone(&whole.free)),
            ..ByteBudget::new(total.saturating_sub(kept_for_others), whole.in_flight.clone())
        };
        Self { reads: part(writes_kept), writes: part(reads_kept) }
    }
}

impl ByteBudget {
    /// A budget of `total` bytes; `in_flight` shows how many are in use. One payment is less than 4 GiB.
    pub fn new(total: u64, in_flight: IntGauge) -> Self {
        let permits = usize::try_from(total).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(permits));
        Self { free, total, whole: None, waiting: Arc::default(), in_flight }
    }

    /// Bytes that may be paid for at a time.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether somebody waits for bytes that others hold.
    pub fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Pays for a [`Buffer`] of `bytes`, waiting in turn for at most `patience`.
    ///
    /// A part of [`Budgets`] also takes them from what the [`Payer`] of the caller may hold.
    ///
    /// # Errors
    /// [`BudgetError`]; nothing is paid then.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the queue is lost.
    pub async fn pay(&self, bytes: u64, patience: Duration) -> Result<PaidBytes, BudgetError> {
        let too_large = BudgetError::TooLarge { wanted: bytes, budget: self.total };
        let permits = permits(bytes).filter(|permits| u64::from(*permits) <= self.total).ok_or(too_large)?;
        if let Some(paid) = self.try_take(permits) {
            return Ok(paid);
        }
        let late = BudgetError::Exhausted { wanted: bytes, waited: patience };
        tokio::time::timeout(patience, self.take(permits)).await.ok().flatten().ok_or(late)
    }

    /// The same if that many are free now.
    pub fn try_pay(&self, bytes: u64) -> Option<PaidBytes> {
        self.try_take(permits(bytes)?)
    }

    async fn take(&self, permits: u32) -> Option<PaidBytes> {
        let mut shares = vec![];
        // The payer's own shares first: who waits there holds nothing that others wait for.
        for share in self.shares_of_payer() {
            shares.push(share.take(permits).await?);
        }
        let _counted = Waiting::begin(&self.waiting);
        let permit = Arc::clone(&self.free).acquire_many_owned(permits).await.ok()?;
        // The own part before the whole: so all that wait for the whole fit into it when they are within what is kept
        // for them, and nobody waits there for the other part.
        let whole = match &self.whole {
            Some(whole) => Some(Arc::clone(whole).acquire_many_owned(permits).await.ok()?),
            None => None,
        };
        Some(self.paid(permit, whole, shares))
    }

    fn try_take(&self, permits: u32) -> Option<PaidBytes> {
        let mut shares = vec![];
        for share in self.shares_of_payer() {
            shares.push(share.try_take(permits)?);
        }
        let permit = Arc::clone(&self.free).try_acquire_many_owned(permits).ok()?;
        let whole = match &self.whole {
            Some(whole) => Some(Arc::clone(whole).try_acquire_many_owned(permits).ok()?),
            None => None,
        };
        Some(self.paid(permit, whole, shares))
    }

    /// Budgets that only divide others charge nobody a second time.
    fn shares_of_payer(&self) -> impl Iterator<Item = Share> + use<> {
        self.whole.as_ref().and_then(|_| Payer::current()).into_iter().flat_map(Payer::into_shares)
    }

    fn paid(
        &self,
        permit: OwnedSemaphorePermit,
        whole: Option<OwnedSemaphorePermit>,
        shares: Vec<OwnedSemaphorePermit>,
    ) -> PaidBytes {
        self.in_flight.add(permit.num_permits() as i64);
        PaidBytes(Box::new(Taken { permit, whole, shares, in_flight: self.in_flight.clone() }))
    }
}

/// Counts somebody who waits, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a buffer of `bytes` costs.
fn permits(bytes: u64) -> Option<u32> {
    u32::try_from(Buffer::cost(usize::try_from(bytes).ok()?)).ok()
}

impl PaidBytes {
    /// Bytes paid for.
    pub fn len(&self) -> u64 {
        self.0.permit.num_permits() as u64
    }

    /// Whether nothing was paid for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what `other` paid for.
    pub fn merge(&mut self, mut other: PaidBytes) {
        let permits = other.0.permit.num_permits();
        if let Some(taken) = other.0.permit.split(permits) {
            self.0.permit.merge(taken);
        }
        match (&mut self.0.whole, other.0.whole.take()) {
            (Some(whole), Some(taken)) => whole.merge(taken),
            (whole, taken) => *whole = whole.take().or(taken),
        }
        self.0.shares.append(&mut other.0.shares);
    }

    /// From here on the bytes are the daemon's, not its caller's: they no longer count in what that one may hold.
    pub fn belongs_to_nobody(&mut self) {
        self.0.shares.clear();
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.0.permit.num_permits());
        let surplus = self.0.permit.num_permits() - keep;
        if self.0.permit.split(surplus).is_some() {
            self.0.in_flight.sub(surplus as i64);
        }
        let Taken { whole, shares, .. } = &mut *self.0;
        for taken in whole.iter_mut().chain(shares) {
            drop(taken.split(taken.num_permits().saturating_sub(keep)));
        }
    }
}

impl Drop for PaidBytes {
    fn drop(&mut self) {
        self.0.in_flight.sub(self.0.permit.num_permits() as i64);
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

    #[tokio::test(start_paused = true)]
    async fn neither_part_takes_what_is_kept_for_the_other() {
        let gauge = gauge();
        let Budgets { reads, writes } = Budgets::new(100, 10, 40, gauge.clone());

        let read = reads.try_pay(60).unwrap();
        assert!(reads.try_pay(1).is_none());
        let write = writes.try_pay(40).unwrap();
        assert!(writes.try_pay(1).is_none(), "the rest is borrowed by reads");
        assert_eq!(gauge.get(), 100);

        drop((read, write));
        let _write = writes.try_pay(90).unwrap();
        assert!(writes.pay(1, Duration::from_secs(1)).await.is_err());
        assert!(reads.try_pay(10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_part_does_not_stand_in_the_way_of_the_other() {
        let Budgets { reads, writes } = Budgets::new(100, 10, 40, gauge());
        let _stalled = reads.try_pay(60).unwrap();
        let waits = tokio::task::spawn({
            let reads = reads.clone();
            async move { reads.pay(30, Duration::from_secs(3600)).await }
        });
        while !reads.is_short() {
            tokio::task::yield_now().await;
        }

        assert!(writes.pay(40, Duration::ZERO).await.is_ok());
        assert!(!writes.is_short());
        waits.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_payer_holds_its_share_at_most_and_more_than_that_one_by_one() {
        let budget = Budgets::new(1000, 0, 0, gauge()).writes;
        let payer = || Payer::new(Share::new(100));
        let (one, other) = (payer(), payer());

        let held = one.scope(budget.pay(80, Duration::ZERO)).await.unwrap();
        assert!(one.scope(budget.pay(30, Duration::from_secs(1))).await.is_err());
        assert!(!budget.is_short(), "it waits for itself alone");
        assert!(other.scope(budget.pay(100, Duration::ZERO)).await.is_ok());

        let mut held = held;
        held.shrink_to(10);
        let more = one.scope(budget.pay(90, Duration::ZERO)).await.unwrap();
        held.belongs_to_nobody();
        drop(more);
        assert!(one.scope(budget.pay(500, Duration::ZERO)).await.is_ok(), "what the budget holds is never refused");
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
