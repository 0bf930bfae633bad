//! Flink's own file merging on the same checkpoints, as far as space goes: what a task manager would have on storage. Pure.
//!
//! One manager, as of one task manager that runs all subtasks; state of scope `SHARED`, so a physical file holds the
//! segments of one subtask; one writer at a time for each subtask. Segments whose reuse is refused are written again, as
//! RocksDB's incremental snapshots do.
//!
//! # Source
//! `FileMergingSnapshotManagerBase`, `WithinCheckpointFileMergingSnapshotManager`,
//! `AcrossCheckpointFileMergingSnapshotManager` and `NonBlockingPhysicalFilePool` of Flink 2.3.0. Candidates are in a
//! `TreeSet` by wasted bytes alone there, so of files that waste the same only one is looked at; so it is here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::workload::{Checkpoint, ModelSegment};

/// `execution.checkpointing.file-merging.across-checkpoint-boundary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// A file holds segments of one checkpoint; the default.
    Within,
    /// A file grows until it is full.
    Across,
}

/// The manager.
#[derive(Debug)]
pub struct Flink {
    boundary: Boundary,
    space_amplification_max: f64,
    file_bytes_max: u64,
    files: BTreeMap<u64, FlinkFile>,
    /// Logical files that are not discarded.
    logical: BTreeMap<u64, Logical>,
    /// The logical file that holds a segment now.
    current: HashMap<u64, u64>,
    /// Open files, by checkpoint (0 for all) and subtask.
    open: BTreeMap<(u64, usize), u64>,
    next: u64,
    logical_bytes: u64,
    figures: FlinkFigures,
}

#[derive(Debug)]
struct FlinkFile {
    size: u64,
    live: u64,
    references: usize,
    closed: bool,
    reusable: bool,
}

#[derive(Debug)]
struct Logical {
    piece: ModelSegment,
    file: u64,
    last_used: u64,
}

/// Its figures so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FlinkFigures {
    /// Bytes of files that are not deleted.
    pub physical_bytes: u64,
    /// Bytes that were written because a reuse was refused.
    pub rewritten_bytes: u64,
    /// Segments whose reuse was refused.
    pub refused: u64,
    /// Files that were made.
    pub files: u64,
}

impl Flink {
    /// Without files.
    pub fn new(boundary: Boundary, space_amplification_max: f64, file_bytes_max: u64) -> Self {
        Self {
            boundary,
            space_amplification_max,
            file_bytes_max,
            files: BTreeMap::new(),
            logical: BTreeMap::new(),
            current: HashMap::new(),
            open: BTreeMap::new(),
            next: 0,
            logical_bytes: 0,
            figures: FlinkFigures::default(),
        }
    }

    /// Takes a checkpoint, completes it, and subsumes those up to `subsumed`, if any.
    pub fn take(&mut self, checkpoint: &Checkpoint, subsumed: u64) {
        for piece in &checkpoint.kept {
            match self.reusable(piece.number) {
                Some(logical) => logical.last_used = logical.last_used.max(checkpoint.number),
                None => {
                    self.figures.refused += 1;
                    self.figures.rewritten_bytes += piece.len;
                    self.write(*piece, checkpoint.number);
                }
            }
        }
        for piece in &checkpoint.written {
            self.write(*piece, checkpoint.number);
        }
        if self.boundary == Boundary::Within {
            let open = std::mem::take(&mut self.open);
            open.into_values().for_each(|file| self.close(file));
        }
        if subsumed > 0 {
            self.subsume(subsumed);
            self.control_space();
        }
    }

    /// Its figures so far.
    pub fn figures(&self) -> FlinkFigures {
        self.figures
    }

    /// `couldReusePreviousStateHandle`.
    fn reusable(&mut self, number: u64) -> Option<&mut Logical> {
        let logical = self.logical.get_mut(self.current.get(&number)?)?;
        self.files.get(&logical.file)?.reusable.then_some(logical)
    }

    fn write(&mut self, piece: ModelSegment, checkpoint: u64) {
        let of = match self.boundary {
            Boundary::Within => checkpoint,
            Boundary::Across => 0,
        };
        let key = (of, piece.subtask);
        let id = match self.open.get(&key) {
            Some(file) => *file,
            None => {
                self.next += 1;
                self.figures.files += 1;
                let file = FlinkFile { size: 0, live: 0, references: 0, closed: false, reusable: true };
                self.files.insert(self.next, file);
                self.open.insert(key, self.next);
                self.next
            }
        };
        let Some(file) = self.files.get_mut(&id) else { return };
        file.size += piece.len;
        file.live += piece.len;
        file.references += 1;
        let full = file.size >= self.file_bytes_max;
        self.figures.physical_bytes += piece.len;
        self.logical_bytes += piece.len;
        self.next += 1;
        self.logical.insert(self.next, Logical { piece, file: id, last_used: checkpoint });
        self.current.insert(piece.number, self.next);
        if full {
            self.open.remove(&key);
            self.close(id);
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(file) = self.files.get_mut(&id) {
            file.closed = true;
        }
        self.delete_if_unused(id);
    }

    fn delete_if_unused(&mut self, id: u64) {
        if let Some(file) = self.files.get(&id)
            && file.closed
            && file.references == 0
        {
            self.figures.physical_bytes -= file.size;
            self.files.remove(&id);
        }
    }

    fn subsume(&mut self, through: u64) {
        let unused: Vec<u64> =
            self.logical.iter().filter(|(_, logical)| logical.last_used <= through).map(|(id, _)| *id).collect();
        for id in unused {
            let Some(Logical { piece, file, .. }) = self.logical.remove(&id) else { continue };
            self.logical_bytes -= piece.len;
            if self.current.get(&piece.number) == Some(&id) {
                self.current.remove(&piece.number);
            }
            if let Some(file) = self.files.get_mut(&file) {
                file.live -= piece.len;
                file.references -= 1;
            }
            self.delete_if_unused(file);
        }
    }

    /// Marks files whose segments shall not be reused, as `discardCheckpoint` does.
    fn control_space(&mut self) {
        let max = self.space_amplification_max;
        if max < 1.0 || self.logical_bytes as f64 * max >= self.figures.physical_bytes as f64 {
            return;
        }
        let goal = (self.logical_bytes as f64 * max).round() as u64;
        let known: BTreeSet<u64> = self.logical.values().map(|logical| logical.file).collect();
        let mut alive = 0;
        let mut by_waste: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, file) in known.iter().filter_map(|id| Some((*id, self.files.get(id)?))) {
            if file.reusable {
                alive += file.size;
                if file.closed {
                    by_waste.entry(file.size - file.live).or_insert(id);
                }
            }
        }
        for (waste, id) in by_waste.into_iter().rev() {
            if alive <= goal {
                break;
            }
            if let Some(file) = self.files.get_mut(&id)
                && (file.live as f64 * max) < file.size as f64
            {
                file.reusable = false;
                alive -= waste;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn piece(number: u64) -> ModelSegment {
        ModelSegment { number, subtask: 0, len: 4 * MB }
    }

    /// A checkpoint that writes segments `new` and uses segments `old` again.
    fn checkpoint(number: u64, new: std::ops::RangeInclusive<u64>, old: &[u64]) -> Checkpoint {
        Checkpoint { number, written: new.map(piece).collect(), kept: old.iter().copied().map(piece).collect() }
    }

    fn refused(flink: &mut Flink, number: u64) -> bool {
        flink.reusable(number).is_none()
    }

    /// The example that Flink tests: 32 MB files, 4 MB segments, limit 2.0; six segments, then three and one reused.
    #[test]
    fn across_checkpoints_the_full_file_with_too_much_waste_is_refused_and_the_open_one_is_not() {
        let mut flink = Flink::new(Boundary::Across, 2.0, 32 * MB);
        flink.take(&checkpoint(1, 1..=6, &[]), 0);

        flink.take(&checkpoint(2, 7..=9, &[1]), 1);

        assert_eq!(flink.figures().physical_bytes, 36 * MB);
        assert!(refused(&mut flink, 1) && refused(&mut flink, 7) && !refused(&mut flink, 9));
    }

    #[test]
    fn within_checkpoints_only_the_file_of_the_first_is_refused() {
        let mut flink = Flink::new(Boundary::Within, 2.0, 32 * MB);
        flink.take(&checkpoint(1, 1..=6, &[]), 0);

        flink.take(&checkpoint(2, 7..=9, &[1]), 1);

        assert!(refused(&mut flink, 1) && !refused(&mut flink, 7) && !refused(&mut flink, 9));
    }

    #[test]
    fn a_refused_segment_is_written_again_and_its_file_goes_when_nothing_uses_it() {
        let mut flink = Flink::new(Boundary::Within, 2.0, 32 * MB);
        flink.take(&checkpoint(1, 1..=6, &[]), 0);
        flink.take(&checkpoint(2, 7..=9, &[1]), 1);

        flink.take(&checkpoint(3, 10..=10, &[1]), 2);

        let figures = FlinkFigures { physical_bytes: 8 * MB, rewritten_bytes: 4 * MB, refused: 1, files: 3 };
        assert_eq!(flink.figures(), figures);
        assert!(!refused(&mut flink, 1));
    }

    #[test]
    fn an_open_file_is_kept_though_nothing_in_it_is_used() {
        let mut flink = Flink::new(Boundary::Across, 2.0, 32 * MB);
        flink.take(&checkpoint(1, 1..=6, &[]), 0);

        flink.take(&checkpoint(2, 7..=7, &[]), 1);

        assert_eq!((flink.figures().physical_bytes, flink.figures().refused), (28 * MB, 0));
    }

    #[test]
    fn a_limit_below_1_refuses_nothing() {
        let mut flink = Flink::new(Boundary::Within, 0.0, 32 * MB);
        flink.take(&checkpoint(1, 1..=6, &[]), 0);

        flink.take(&checkpoint(2, 7..=7, &[1]), 1);

        assert!(!refused(&mut flink, 1));
    }

    #[test]
    fn of_files_that_waste_the_same_one_is_looked_at() {
        let mut flink = Flink::new(Boundary::Within, 1.1, 32 * MB);
        let of = |subtask, number| ModelSegment { subtask, ..piece(number) };
        let written = (0..2).flat_map(|subtask| (1..=4).map(move |n| of(subtask, 10 * subtask as u64 + n))).collect();
        flink.take(&Checkpoint { number: 1, written, kept: vec![] }, 0);

        let kept = vec![of(0, 1), of(1, 11)];
        flink.take(&Checkpoint { number: 2, written: vec![], kept }, 1);

        assert!(refused(&mut flink, 1) && !refused(&mut flink, 11));
    }
}
