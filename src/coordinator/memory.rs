//! [`AckMemory`]: pays for what tasks have acknowledged, which is kept while their checkpoint is in progress.

use std::time::Duration;

use prometheus::IntGauge;

use super::error::CoordinatorError;
use crate::engine::{Engine, EngineError};
use crate::runtime::{ByteBudget, PaidBytes};

/// The part of the memory for writes that acknowledgements of all jobs have, and the part of that for one job.
const ALL_SHARE: u64 = 4;
const JOB_SHARE: u64 = 2;
/// What many have paid is counted as one.
const ALL_BYTES_MAX: u64 = 1 << 30;
/// Bytes of an acknowledgement beside its states.
const ACK_BYTES: usize = 256;

/// The memory that acknowledgements of one job may take.
#[derive(Debug, Clone)]
pub(super) struct AckMemory {
    writes: ByteBudget,
    patience: Duration,
    all: ByteBudget,
    job: ByteBudget,
}

/// An acknowledgement that was paid for; dropping it gives the memory back.
#[derive(Debug)]
pub(super) struct PaidAck {
    parts: [PaidBytes; 3],
}

/// A budget that only divides another one: the bytes count there.
fn part(total: u64) -> ByteBudget {
    ByteBudget::new(total, IntGauge::new("acks", "bytes of acknowledgements").expect("a constant name is valid"))
}

impl AckMemory {
    /// That of the jobs of an engine.
    pub(super) fn of(engine: &Engine) -> Self {
        let writes = engine.budgets().writes.clone();
        let all = (writes.total() / ALL_SHARE).min(ALL_BYTES_MAX);
        let patience = engine.settings().limits.admission_timeout;
        Self { writes, patience, all: part(all), job: part(all / JOB_SHARE) }
    }

    /// That of another job, which shares what there is for all.
    #[must_use]
    pub(super) fn of_another_job(&self) -> Self {
        Self { job: part(self.job.total()), ..self.clone() }
    }

    /// Pays for an acknowledgement whose states take so many bytes.
    ///
    /// # Errors
    /// [`CoordinatorError::AcksFull`]; [`EngineError::Memory`] if others have all memory for writes.
    pub(super) async fn pay(&self, states: usize) -> Result<PaidAck, CoordinatorError> {
        let bytes = (ACK_BYTES + states) as u64;
        let full = |whose, budget: &ByteBudget| CoordinatorError::AcksFull(whose, budget.total());
        let job = self.job.try_pay(bytes).ok_or_else(|| full("of the job", &self.job))?;
        let all = self.all.try_pay(bytes).ok_or_else(|| full("of all jobs", &self.all))?;
        let writes = self.writes.pay(bytes, self.patience).await.map_err(EngineError::from)?;
        let mut paid = PaidAck { parts: [job, all, writes] };
        // It outlives the request that brought it.
        paid.parts.iter_mut().for_each(PaidBytes::belongs_to_nobody);
        Ok(paid)
    }
}

impl PaidAck {
    /// Takes over what another one has paid.
    pub(super) fn merge(&mut self, other: Self) {
        self.parts.iter_mut().zip(other.parts).for_each(|(part, other)| part.merge(other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn memory(bytes: u64) -> AckMemory {
        let (writes, patience) = (part(bytes), Duration::from_millis(1));
        AckMemory { writes, patience, all: part(bytes / ALL_SHARE), job: part(bytes / ALL_SHARE / JOB_SHARE) }
    }

    #[tokio::test]
    async fn acknowledgements_of_a_job_and_of_all_are_bounded_and_what_is_over_comes_back() {
        let one = memory(8 << 20);
        let states = (7 << 17) - ACK_BYTES;
        let mut paid = one.pay(states).await.unwrap();

        let refused = one.pay(states).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.to_string().contains("of the job"), "{refused}");
        let other = one.of_another_job();
        let others = other.pay(states).await.unwrap();
        let refused = other.of_another_job().pay(states).await.unwrap_err();
        assert!(refused.to_string().contains("of all jobs"), "{refused}");

        drop(others);
        paid.merge(one.pay(0).await.unwrap());
        drop(paid);
        let whole = (one.writes.total(), one.all.total(), one.job.total());
        assert!(one.writes.try_pay(whole.0).is_some() && one.all.try_pay(whole.1).is_some());
        assert!(one.job.try_pay(whole.2).is_some(), "all of it is given back");
    }
}
