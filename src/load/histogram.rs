//! Latencies, counted in buckets that grow with their value: every quantile within 3 %. Pure.

use std::time::Duration;

/// Buckets of each power of two.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Buckets for every `u64`.
const BUCKETS: usize = ((64 - STEP_BITS) as usize + 1) * STEPS as usize;

/// Counts of nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The latency that this part of all (0 to 1) does not exceed; zero if there is none.
    pub fn quantile(&self, part: f64) -> Duration {
        let rank = ((self.total as f64 * part).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Duration::from_nanos(upper(index).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// The largest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }
}

/// Values below twice [`STEPS`] have a bucket each, every power of two above has [`STEPS`].
fn bucket(nanos: u64) -> usize {
    let shift = (63 - STEP_BITS).saturating_sub(nanos.leading_zeros());
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket as u64 / STEPS).saturating_sub(1);
    let step = bucket as u64 - shift * STEPS;
    u64::try_from(((u128::from(step) + 1) << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_histogram_has_zeros() {
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn quantiles_of_two_halves_are_those_of_the_whole() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        (1..=500).for_each(|n| low.record(Duration::from_micros(n)));
        (501..=1000).for_each(|n| high.record(Duration::from_micros(n)));

        low.add(&high);

        let close = |actual: Duration, micros: f64| (actual.as_nanos() as f64 / 1e3 / micros - 1.0).abs() < 0.032;
        assert!(close(low.quantile(0.5), 500.0) && close(low.quantile(0.99), 990.0));
        assert_eq!((low.quantile(1.0), low.max()), (Duration::from_millis(1), Duration::from_millis(1)));
    }

    proptest! {
        #[test]
        fn a_bucket_ends_within_3_percent_above_its_values(nanos in any::<u64>()) {
            let end = upper(bucket(nanos));

            prop_assert!(end >= nanos && (end - nanos) as f64 <= nanos as f64 / 31.0);
            prop_assert!(bucket(nanos) < BUCKETS);
            prop_assert!(end == u64::MAX || bucket(end + 1) == bucket(nanos) + 1);
        }
    }
}
