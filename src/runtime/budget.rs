//! The budget of bytes in memory: paid before a body is read, given back when its bytes are gone.
//!
//! It has two parts, for reads and for writes ([`Budgets`]). Each takes what is free, but never what is kept for the
//! other: however many readers stop reading, writers have their part, and the other way round. Within a part nobody
//! holds more than a share, see [`super::payer`]. What serves both, as connections do, is taken from both
//! ([`Budgets::pay_for_both`]).

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
        /// The time that was waited.
        waited: Duration,
    },
}

/// Bytes that are free, and bytes that were taken though they were not.
#[derive(Debug)]
struct Pool {
    free: Arc<Semaphore>,
    owed: AtomicUsize,
}

/// A number of bytes that may be in memory at a time. Waiters are served in order.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    pool: Arc<Pool>,
    total: u64,
    /// The budget that this one is a part of.
    whole: Option<Arc<Pool>>,
    waiting: Arc<AtomicUsize>,
    in_flight: IntGauge,
}

/// A budget in two parts: what is free may be used by either, but for what is kept for the other.
#[derive(Debug, Clone)]
pub struct Budgets {
    /// The budget for bytes on their way out.
    pub reads: ByteBudget,
    /// The budget for bytes on their way in, and for the daemon's own copies.
    pub writes: ByteBudget,
    /// The permits that may still be taken from both.
    both: Arc<Semaphore>,
}

/// Bytes that were taken from both parts; dropping it gives them back.
#[derive(Debug)]
pub struct PaidByBoth {
    _permit: OwnedSemaphorePermit,
    pools: Vec<Arc<Pool>>,
    bytes: usize,
}

/// Bytes that were paid for; dropping it gives them back.
#[derive(Debug)]
pub struct PaidBytes(Box<PaidPermits>);

/// The permits that a payment has taken. In a box: it goes from hand to hand with the bytes that it is for.
#[derive(Debug)]
struct PaidPermits {
    permit: Permit,
    whole: Option<Permit>,
    /// Taken from what the payer may hold.
    shares: Vec<OwnedSemaphorePermit>,
    in_flight: IntGauge,
}

/// Bytes of a pool; dropping it gives them back.
#[derive(Debug)]
struct Permit {
    permit: OwnedSemaphorePermit,
    pool: Arc<Pool>,
}

impl Pool {
    fn new(bytes: u64) -> Arc<Self> {
        let permits = usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Arc::new(Self { free: Arc::new(Semaphore::new(permits)), owed: AtomicUsize::new(0) })
    }

    async fn take(self: &Arc<Self>, permits: u32) -> Option<Permit> {
        self.settle();
        let permit = Arc::clone(&self.free).acquire_many_owned(permits).await.ok()?;
        Some(Permit { permit, pool: Arc::clone(self) })
    }

    fn try_take(self: &Arc<Self>, permits: u32) -> Option<Permit> {
        self.settle();
        let permit = Arc::clone(&self.free).try_acquire_many_owned(permits).ok()?;
        Some(Permit { permit, pool: Arc::clone(self) })
    }

    /// Takes `bytes` before all who wait. What is not free is taken from the next that comes back.
    fn take_at_once(&self, bytes: usize) {
        let taken = self.free.forget_permits(bytes);
        self.owed.fetch_add(bytes - taken, Ordering::Relaxed);
    }

    /// Takes what is owed out of what is free: a waiter that gave up brought back what it had got, past what is owed.
    fn settle(&self) {
        if self.owed.load(Ordering::Relaxed) > 0 {
            // All of it, so that nobody else takes the same.
            let owed = self.owed.swap(0, Ordering::Relaxed);
            let settled = self.free.forget_permits(owed);
            self.owed.fetch_add(owed - settled, Ordering::Relaxed);
        }
    }

    /// Gives `bytes` back, to what is owed first.
    fn give_back(&self, bytes: usize) {
        let settled =
            self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| Some(owed.saturating_sub(bytes)));
        let owed = settled.unwrap_or_else(|owed| owed);
        self.free.add_permits(bytes - owed.min(bytes));
    }
}

impl Permit {
    fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// `bytes` of it, if it has so many.
    fn split(&mut self, bytes: usize) -> Option<Self> {
        let permit = self.permit.split(bytes)?;
        Some(Self { permit, pool: Arc::clone(&self.pool) })
    }

    /// Takes over all of `other`, which is of the same pool.
    fn merge(&mut self, mut other: Self) {
        if let Some(permit) = other.permit.split(other.bytes()) {
            self.permit.merge(permit);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Else the semaphore itself hands them to those who wait.
        if self.pool.owed.load(Ordering::Relaxed) > 0
            && let Some(permit) = self.permit.split(self.permit.num_permits())
        {
            let bytes = permit.num_permits();
            permit.forget();
            self.pool.give_back(bytes);
        }
    }
}

impl Budgets {
    /// Divides `total` bytes. Reads never hold the last `writes_kept` of them, writes never the last `reads_kept`, and what
    /// serves both holds `both_max` at most.
    pub fn new(total: u64, reads_kept: u64, writes_kept: u64, both_max: u64, in_flight: IntGauge) -> Self {
        let whole = ByteBudget::new(total, in_flight);
        let part = |kept_for_others: u64| ByteBudget {
            whole: Some(Arc::clone(&whole.pool)),
            ..ByteBudget::new(total.saturating_sub(kept_for_others), whole.in_flight.clone())
        };
        Self { reads: part(writes_kept), writes: part(reads_kept), both: Arc::clone(&Pool::new(both_max).free) }
    }

    /// Takes `bytes` from both parts, so that what they keep for each other stays theirs: at once, before all who wait;
    /// what is not free is taken from the next that comes back. `None` if what serves both has all that it may have: the
    /// rest is left for bodies, which would wait for ever.
    ///
    /// These bytes are not in flight, and nobody's share.
    pub fn pay_for_both(&self, bytes: u64) -> Option<PaidByBoth> {
        let permits = permits(bytes)?;
        let permit = Arc::clone(&self.both).try_acquire_many_owned(permits).ok()?;
        let parts = [&self.reads.pool, &self.writes.pool].into_iter().chain(&self.writes.whole);
        let paid = PaidByBoth { bytes: permit.num_permits(), _permit: permit, pools: parts.cloned().collect() };
        paid.pools.iter().for_each(|pool| pool.take_at_once(paid.bytes));
        Some(paid)
    }
}

impl Drop for PaidByBoth {
    fn drop(&mut self) {
        self.pools.iter().for_each(|pool| pool.give_back(self.bytes));
    }
}

impl ByteBudget {
    /// A budget of `total` bytes; `in_flight` shows how many are in use. One payment is less than 4 GiB.
    pub fn new(total: u64, in_flight: IntGauge) -> Self {
        Self { pool: Pool::new(total), total, whole: None, waiting: Arc::default(), in_flight }
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
        let _counted = WaiterGuard::begin(&self.waiting);
        let permit = self.pool.take(permits).await?;
        // The own part before the whole: so all that wait for the whole fit into it when they are within what is kept
        // for them, and nobody waits there for the other part.
        let whole = match &self.whole {
            Some(whole) => Some(whole.take(permits).await?),
            None => None,
        };
        Some(self.paid(permit, whole, shares))
    }

    fn try_take(&self, permits: u32) -> Option<PaidBytes> {
        let mut shares = vec![];
        for share in self.shares_of_payer() {
            shares.push(share.try_take(permits)?);
        }
        let permit = self.pool.try_take(permits)?;
        let whole = match &self.whole {
            Some(whole) => Some(whole.try_take(permits)?),
            None => None,
        };
        Some(self.paid(permit, whole, shares))
    }

    /// Budgets that only divide others charge nobody a second time.
    fn shares_of_payer(&self) -> impl Iterator<Item = Share> + use<> {
        self.whole.as_ref().and_then(|_| Payer::current()).into_iter().flat_map(Payer::into_shares)
    }

    fn paid(&self, permit: Permit, whole: Option<Permit>, shares: Vec<OwnedSemaphorePermit>) -> PaidBytes {
        self.in_flight.add(permit.bytes() as i64);
        PaidBytes(Box::new(PaidPermits { permit, whole, shares, in_flight: self.in_flight.clone() }))
    }
}

/// Counts somebody who waits, until it is dropped.
struct WaiterGuard(Arc<AtomicUsize>);

impl WaiterGuard {
    fn begin(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The price of a buffer of `bytes`.
fn permits(bytes: u64) -> Option<u32> {
    u32::try_from(Buffer::cost(usize::try_from(bytes).ok()?)).ok()
}

impl PaidBytes {
    /// Bytes paid for.
    pub fn len(&self) -> u64 {
        self.0.permit.bytes() as u64
    }

    /// Whether nothing was paid for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what `other` paid for.
    pub fn merge(&mut self, mut other: PaidBytes) {
        let permits = other.0.permit.bytes();
        if let Some(taken) = other.0.permit.split(permits) {
            self.0.permit.merge(taken);
        }
        match (&mut self.0.whole, other.0.whole.take()) {
            (Some(whole), Some(taken)) => whole.merge(taken),
            (whole, taken) => *whole = whole.take().or(taken),
        }
        self.0.shares.append(&mut other.0.shares);
    }

    /// Makes the bytes the daemon's, not its caller's: they no longer count in the share of that one.
    pub fn belongs_to_nobody(&mut self) {
        self.0.shares.clear();
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.0.permit.bytes());
        let surplus = self.0.permit.bytes() - keep;
        if self.0.permit.split(surplus).is_some() {
            self.0.in_flight.sub(surplus as i64);
        }
        let PaidPermits { whole, shares, .. } = &mut *self.0;
        if let Some(whole) = whole {
            drop(whole.split(whole.bytes().saturating_sub(keep)));
        }
        for share in shares {
            drop(share.split(share.num_permits().saturating_sub(keep)));
        }
    }
}

impl Drop for PaidBytes {
    fn drop(&mut self) {
        self.0.in_flight.sub(self.0.permit.bytes() as i64);
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
        let Budgets { reads, writes, .. } = Budgets::new(100, 10, 40, 50, gauge.clone());

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
    async fn what_serves_both_parts_is_taken_from_both_up_to_its_bound() {
        let gauge = gauge();
        let budgets = Budgets::new(100, 10, 40, 50, gauge.clone());

        let paid = budgets.pay_for_both(30).unwrap();
        assert!(budgets.pay_for_both(21).is_none());
        assert!(budgets.reads.try_pay(31).is_none(), "40 are kept for writes");
        assert!(budgets.writes.try_pay(61).is_none(), "10 are kept for reads");
        let write = budgets.writes.try_pay(60).unwrap();
        assert!(budgets.reads.try_pay(10).is_some());
        assert_eq!(gauge.get(), 60, "what serves both is not in flight");

        drop(write);
        drop(paid);
        assert!(budgets.pay_for_both(50).is_some());
        assert!(budgets.writes.try_pay(90).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_serves_both_parts_comes_before_all_who_wait() {
        let budgets = Budgets::new(100, 10, 40, 50, gauge());
        let Budgets { writes, .. } = &budgets;
        let held = (writes.try_pay(60).unwrap(), writes.try_pay(30).unwrap());
        let waits = tokio::task::spawn({
            let writes = writes.clone();
            async move { writes.pay(50, Duration::from_secs(3600)).await }
        });
        while !writes.is_short() {
            tokio::task::yield_now().await;
        }

        let paid = budgets.pay_for_both(30).unwrap();
        drop(held.0);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "30 of the 60 that came back were owed");
        drop(paid);

        assert!(waits.await.unwrap().is_ok());
        drop(held.1);
        assert!(writes.try_pay(90).is_some(), "nothing is owed any more");
        assert!(budgets.reads.try_pay(60).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_waiter_brings_back_that_gives_up_goes_to_what_is_owed() {
        let budgets = Budgets::new(100, 10, 40, 50, gauge());
        let Budgets { writes, .. } = &budgets;
        let _held = writes.try_pay(60).unwrap();
        let waits = tokio::task::spawn({
            let writes = writes.clone();
            // It has the 30 that are free, and waits for the rest.
            async move { writes.pay(50, Duration::from_secs(1)).await }
        });
        while !writes.is_short() {
            tokio::task::yield_now().await;
        }
        let _paid = budgets.pay_for_both(20).unwrap();

        assert!(waits.await.unwrap().is_err());

        assert!(writes.try_pay(11).is_none(), "20 of the 30 were owed");
        assert!(writes.try_pay(10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_part_does_not_stand_in_the_way_of_the_other() {
        let Budgets { reads, writes, .. } = Budgets::new(100, 10, 40, 50, gauge());
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
        let budget = Budgets::new(1000, 0, 0, 0, gauge()).writes;
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

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

        /// Whatever was paid, split, merged, waited for and given up, in any order.
        #[test]
        fn at_the_end_all_bytes_are_back_and_nothing_is_owed(
            ops in proptest::collection::vec((0_u8..8, 0_usize..16, 1_u64..70), 1..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let gauge = gauge();
                let budgets = Budgets::new(100, 10, 40, 50, gauge.clone());
                let share = Share::new(60);
                let payer = Payer::new(share.clone());
                let whole = budgets.writes.whole.as_ref().unwrap();
                let (mut paid, mut both, mut waits) = (vec![], vec![], vec![]);
                for (op, which, bytes) in ops {
                    let part = if which % 2 == 0 { &budgets.reads } else { &budgets.writes };
                    match op {
                        0 => {
                            let taken = payer.sync_scope(|| part.try_pay(bytes));
                            let owed = part.pool.owed.load(Ordering::Relaxed) + whole.owed.load(Ordering::Relaxed);
                            assert!(taken.is_none() || owed == 0, "{owed} bytes are owed, and others were paid");
                            paid.extend(taken);
                        }
                        1 => both.extend(budgets.pay_for_both(bytes % 40)),
                        2 if !both.is_empty() => drop(both.swap_remove(which % both.len())),
                        3 if !paid.is_empty() => drop(paid.swap_remove(which % paid.len())),
                        4 if !paid.is_empty() => {
                            let at = which % paid.len();
                            paid[at].shrink_to(bytes);
                        }
                        5 => {
                            let (part, patience) = (part.clone(), Duration::from_millis(bytes));
                            let waiting = async move { part.pay(bytes, patience).await };
                            waits.push(tokio::task::spawn(payer.scope(waiting)));
                        }
                        6 if !waits.is_empty() => waits.swap_remove(which % waits.len()).abort(),
                        _ => tokio::time::sleep(Duration::from_millis(bytes)).await,
                    }
                    tokio::task::yield_now().await;
                }
                drop((paid, both));
                for wait in waits {
                    drop(wait.await);
                }
                assert_eq!(gauge.get(), 0);
                assert!(!budgets.reads.is_short() && !budgets.writes.is_short());
                for (pool, bytes) in [(&budgets.reads.pool, 60), (&budgets.writes.pool, 90), (whole, 100)] {
                    assert_eq!((pool.free.available_permits(), pool.owed.load(Ordering::Relaxed)), (bytes, 0));
                }
                assert_eq!((budgets.both.available_permits(), share.held()), (50, 0));
            });
        }
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
