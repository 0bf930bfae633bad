//! Latencies of a run: every figure is at most 1 % above a latency that was measured.

use std::time::Duration;

/// Decimal digits of a latency that are told apart.
const DIGITS: u8 = 2;
/// The longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// Latencies, counted in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram(hdrhistogram::Histogram<u32>);

impl Default for Histogram {
    fn default() -> Self {
        let counts = hdrhistogram::Histogram::new_with_max(nanos(LATENCY_MAX), DIGITS);
        Self(counts.expect("the bounds are constants that a histogram takes"))
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(nanos(latency));
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The latency that this part of all (0 to 1) does not exceed; zero if there is none.
    pub fn quantile(&self, part: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(part))
    }

    /// The largest; zero if there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

fn nanos(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_close(actual: Duration, expected: Duration) -> bool {
        actual >= expected && actual <= expected.mul_f64(1.01)
    }

    #[test]
    fn an_empty_histogram_has_zeros() {
        let empty = Histogram::default();

        assert_eq!((empty.quantile(0.5), empty.max()), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn quantiles_of_two_halves_are_those_of_the_whole() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        (1..=500).for_each(|n| low.record(Duration::from_micros(n)));
        (501..=1000).for_each(|n| high.record(Duration::from_micros(n)));

        low.add(&high);

        for (actual, micros) in [(low.quantile(0.5), 500), (low.quantile(0.99), 990), (low.max(), 1000)] {
            assert!(is_close(actual, Duration::from_micros(micros)), "{actual:?} instead of {micros} µs");
        }
        assert_eq!(low.quantile(1.0), low.max());
    }

    #[test]
    fn a_latency_of_any_length_is_counted() {
        let mut histogram = Histogram::default();

        [Duration::ZERO, Duration::from_nanos(1), Duration::MAX]
            .into_iter()
            .for_each(|latency| histogram.record(latency));

        assert_eq!(histogram.quantile(0.0), Duration::ZERO);
        assert!(is_close(histogram.max(), LATENCY_MAX), "{:?}", histogram.max());
    }
}
