//! Knows the runs of bytes that a folder of the local copy holds, and which of them was used longest ago. No I/O.
//!
//! # Invariants
//! - No run of a file lies within another of it: so runs in the order of their starts are in the order of their ends.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::entry::disk_bytes;
use super::run::ByteRun;
use crate::model::PhysicalFileId;

/// One entry.
pub(super) type ShelfEntry = (PhysicalFileId, ByteRun);

/// The entries that are there.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// The entries of each file, by their first byte.
    files: HashMap<PhysicalFileId, BTreeMap<u64, Shelved>>,
    /// The entries, by the time of their last use.
    order: BTreeMap<u64, (PhysicalFileId, u64)>,
    bytes: u64,
    uses: u64,
}

#[derive(Debug)]
struct Shelved {
    run: ByteRun,
    used: u64,
}

impl Shelf {
    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Adds an entry as the one used last. Returns what is not needed any more: entries within it, or the entry itself.
    pub(super) fn add(&mut self, file: &PhysicalFileId, run: ByteRun) -> Vec<ShelfEntry> {
        if let Some([there]) = self.runs_of(file, &(run.start..run.end())).as_deref() {
            return if *there == run { vec![] } else { vec![(file.clone(), run)] };
        }
        let runs = self.files.get(file).into_iter().flat_map(BTreeMap::values).map(|shelved| shelved.run);
        let needless: Vec<ShelfEntry> =
            runs.filter(|there| run.covers(*there)).map(|there| (file.clone(), there)).collect();
        for (file, run) in &needless {
            self.remove(file, *run);
        }
        self.uses += 1;
        self.order.insert(self.uses, (file.clone(), run.start));
        self.files.entry(file.clone()).or_default().insert(run.start, Shelved { run, used: self.uses });
        self.bytes += disk_bytes(run);
        needless
    }

    /// The entries that hold `range` together, in order. Counts as a use of them.
    pub(super) fn find(&mut self, file: &PhysicalFileId, range: &Range<u64>) -> Option<Vec<ByteRun>> {
        let runs = self.runs_of(file, range)?;
        let shelved = self.files.get_mut(file)?;
        for run in &runs {
            let Some(entry) = shelved.get_mut(&run.start) else { continue };
            self.uses += 1;
            if let Some(place) = self.order.remove(&entry.used) {
                self.order.insert(self.uses, place);
            }
            entry.used = self.uses;
        }
        Some(runs)
    }

    /// The entries that hold `range` together, in order.
    pub(super) fn runs_of(&self, file: &PhysicalFileId, range: &Range<u64>) -> Option<Vec<ByteRun>> {
        let shelved = self.files.get(file)?;
        let (mut runs, mut at) = (vec![], range.start);
        while at < range.end {
            let (_, next) = shelved.range(..=at).next_back()?;
            if next.run.end() <= at {
                return None;
            }
            runs.push(next.run);
            at = next.run.end();
        }
        Some(runs)
    }

    /// Whether the entry was there.
    pub(super) fn remove(&mut self, file: &PhysicalFileId, run: ByteRun) -> bool {
        let Some(shelved) = self.files.get_mut(file) else { return false };
        if shelved.get(&run.start).is_none_or(|there| there.run != run) {
            return false;
        }
        if let Some(gone) = shelved.remove(&run.start) {
            self.order.remove(&gone.used);
            self.bytes -= disk_bytes(run);
        }
        if shelved.is_empty() {
            self.files.remove(file);
        }
        true
    }

    /// Removes all entries of a file.
    pub(super) fn remove_file(&mut self, file: &PhysicalFileId) -> Vec<ShelfEntry> {
        let runs: Vec<ByteRun> = self.files.get(file).into_iter().flat_map(BTreeMap::values).map(|it| it.run).collect();
        runs.into_iter().filter(|run| self.remove(file, *run)).map(|run| (file.clone(), run)).collect()
    }

    /// Removes the entry that was used longest ago.
    pub(super) fn remove_oldest(&mut self) -> Option<ShelfEntry> {
        let (_, (file, start)) = self.order.first_key_value()?;
        let file = file.clone();
        let run = self.files.get(&file)?.get(start)?.run;
        self.remove(&file, run);
        Some((file, run))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn file(n: u128) -> PhysicalFileId {
        PhysicalFileId::new(None, 1, n)
    }

    fn run(range: Range<u64>) -> ByteRun {
        ByteRun { start: range.start, len: range.end - range.start }
    }

    #[test]
    fn a_range_is_found_in_one_entry_or_in_several_that_meet() {
        let mut shelf = Shelf::default();
        for range in [0..10, 10..20, 15..30, 40..50] {
            assert_eq!(shelf.add(&file(1), run(range)), []);
        }

        assert_eq!(shelf.find(&file(1), &(2..5)), Some(vec![run(0..10)]));
        assert_eq!(shelf.find(&file(1), &(5..25)), Some(vec![run(0..10), run(10..20), run(15..30)]));
        assert_eq!(shelf.find(&file(1), &(16..30)), Some(vec![run(15..30)]));
        for missing in [25..31, 30..40, 35..45, 49..51] {
            assert_eq!(shelf.find(&file(1), &missing), None, "{missing:?}");
        }
        assert_eq!(shelf.find(&file(2), &(0..1)), None);
    }

    #[test]
    fn an_entry_within_another_is_not_needed() {
        let mut shelf = Shelf::default();
        shelf.add(&file(1), run(0..10));
        shelf.add(&file(1), run(20..30));

        assert_eq!(shelf.add(&file(1), run(3..7)), [(file(1), run(3..7))]);
        assert_eq!(shelf.add(&file(1), run(0..30)), [(file(1), run(0..10)), (file(1), run(20..30))]);

        assert_eq!((shelf.len(), shelf.bytes()), (1, disk_bytes(run(0..30))));
        assert_eq!(shelf.remove_file(&file(1)), [(file(1), run(0..30))]);
        assert_eq!((shelf.len(), shelf.bytes()), (0, 0));
    }

    #[test]
    fn the_entry_used_longest_ago_goes_first() {
        let mut shelf = Shelf::default();
        for n in 1..=3 {
            shelf.add(&file(n), run(0..10));
        }

        shelf.find(&file(1), &(0..1));

        let order: Vec<PhysicalFileId> = std::iter::from_fn(|| shelf.remove_oldest()).map(|(file, _)| file).collect();
        assert_eq!(order, [file(2), file(3), file(1)]);
        assert_eq!(shelf.bytes(), 0);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Add(u128, Range<u64>),
        Find(u128, Range<u64>),
        RemoveFile(u128),
        RemoveOldest,
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let range = || (0..40_u64, 1..20_u64).prop_map(|(start, len)| start..start + len);
        prop_oneof![
            4 => (0..3_u128, range()).prop_map(|(file, range)| Op::Add(file, range)),
            4 => (0..3_u128, range()).prop_map(|(file, range)| Op::Find(file, range)),
            1 => (0..3_u128).prop_map(Op::RemoveFile),
            1 => Just(Op::RemoveOldest),
        ]
    }

    proptest! {
        /// The model is a list of entries in the order of their use.
        #[test]
        fn the_shelf_matches_the_model_after_any_history(ops in vec(any_op(), 1..200)) {
            let (mut shelf, mut model) = (Shelf::default(), Vec::<ShelfEntry>::new());
            for op in ops {
                match op {
                    Op::Add(n, range) => {
                        let (file, run) = (file(n), run(range));
                        let needless = shelf.add(&file, run);
                        let known = model.iter().any(|(of, there)| *of == file && there.covers(run));
                        if !known {
                            model.retain(|(of, there)| *of != file || !run.covers(*there));
                            model.push((file.clone(), run));
                        }
                        prop_assert!(needless.iter().all(|item| !model.contains(item)));
                    }
                    Op::Find(n, range) => {
                        let holds = |at: u64| model.iter().any(|(of, run)| *of == file(n) && run.covers(ByteRun { start: at, len: 1 }));
                        let found = shelf.find(&file(n), &range);
                        prop_assert_eq!(found.is_some(), range.clone().all(holds));
                        for run in found.unwrap_or_default() {
                            let at = model.iter().position(|item| *item == (file(n), run)).unwrap();
                            let used = model.remove(at);
                            model.push(used);
                        }
                    }
                    Op::RemoveFile(n) => {
                        shelf.remove_file(&file(n));
                        model.retain(|(of, _)| *of != file(n));
                    }
                    Op::RemoveOldest => {
                        let oldest = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(shelf.remove_oldest(), oldest);
                    }
                }
                prop_assert_eq!(shelf.len(), model.len());
                prop_assert_eq!(shelf.bytes(), model.iter().map(|(_, run)| disk_bytes(*run)).sum::<u64>());
            }
        }
    }
}
