//! What came of it: for how long clients waited, and that nothing was lost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::clients::SeenByAll;
use super::options::MemberFate;

/// Errors that are shown.
const REFUSED_SHOWN: usize = 5;

/// One round.
#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    /// Its number, from 1.
    pub round: usize,
    /// The member that had the catalog.
    pub member: String,
    /// What happened to it.
    pub fate: MemberFate,
    /// The longest that a client of another member has waited for an answer, in seconds.
    pub longest_wait_seconds: f64,
}

impl RoundReport {
    pub(super) fn new(round: usize, member: String, fate: MemberFate, longest_wait: Duration) -> Self {
        Self { round, member, fate, longest_wait_seconds: longest_wait.as_secs_f64() }
    }
}

/// The rounds of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FateReport {
    /// How many.
    pub rounds: usize,
    /// Of the longest waits of a client: the median, in seconds.
    pub median_seconds: f64,
    /// Of 100 of them, 99 are not longer.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

impl FateReport {
    /// None of no rounds.
    fn of(mut waits: Vec<f64>) -> Option<Self> {
        waits.sort_by(f64::total_cmp);
        let at = |part: f64| waits.get((waits.len() as f64 * part).ceil() as usize - 1).copied();
        let max_seconds = waits.last().copied()?;
        Some(Self { rounds: waits.len(), median_seconds: at(0.5)?, p99_seconds: at(0.99)?, max_seconds })
    }
}

/// All rounds.
#[derive(Debug, Clone, Serialize)]
pub struct FailoverReport {
    /// One after the other.
    pub rounds: Vec<RoundReport>,
    /// By what happened.
    pub fates: BTreeMap<MemberFate, FateReport>,
    /// Writes that were answered, and are all there.
    pub writes: u64,
    /// Reads that were answered, none older than what was answered before.
    pub reads: u64,
    /// Requests that were on their way to a member that went away.
    pub cut: u64,
    /// Requests that were answered with an error.
    pub refused: u64,
    /// Some of those errors.
    pub errors: Vec<String>,
}

impl FailoverReport {
    pub(super) fn new(rounds: Vec<RoundReport>, seen: &SeenByAll) -> Self {
        let mut waits = BTreeMap::<MemberFate, Vec<f64>>::new();
        for round in &rounds {
            waits.entry(round.fate).or_default().push(round.longest_wait_seconds);
        }
        let fates = waits.into_iter().filter_map(|(fate, waits)| Some((fate, FateReport::of(waits)?))).collect();
        Self {
            rounds,
            fates,
            writes: seen.writes,
            reads: seen.reads,
            cut: seen.cut,
            refused: seen.refused.len() as u64,
            errors: seen.refused.iter().take(REFUSED_SHOWN).cloned().collect(),
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = "the owner was  rounds  longest wait of a client: median     p99     max\n".to_owned();
        for (fate, FateReport { rounds, median_seconds, p99_seconds, max_seconds }) in &self.fates {
            let name = fate.name();
            let line = format!("{name:13}{rounds:8}{median_seconds:31.2} s{p99_seconds:6.2} s{max_seconds:6.2} s\n");
            table.push_str(&line);
        }
        let Self { writes, reads, cut, refused, .. } = self;
        let requests = format!("{writes} writes and {reads} reads answered, none lost, none stale");
        table.push_str(&format!("{requests}; {cut} cut off, {refused} answered with an error"));
        self.errors.iter().for_each(|error| table.push_str(&format!("\n  {error}")));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_by_kind() {
        let rounds = (1..=200).map(|round| {
            let fate = if round % 2 == 0 { MemberFate::Killed } else { MemberFate::Silent };
            RoundReport::new(round, "member-0".to_owned(), fate, Duration::from_secs(round as u64))
        });
        let seen = SeenByAll { writes: 7, refused: vec!["PUT: 503".to_owned(); 9], ..SeenByAll::default() };

        let report = FailoverReport::new(rounds.collect(), &seen);

        let killed = FateReport { rounds: 100, median_seconds: 100.0, p99_seconds: 198.0, max_seconds: 200.0 };
        assert_eq!(report.fates[&MemberFate::Killed], killed);
        assert_eq!((report.refused, report.errors.len()), (9, 5));
        assert!(
            report.table().contains("killed            100") && report.table().contains("9 answered with an error")
        );
        assert_eq!(FateReport::of(vec![]), None);
    }
}
