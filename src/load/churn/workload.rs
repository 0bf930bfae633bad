//! A job with incremental checkpoints, checkpoint by checkpoint. The same seed stores the same. Pure.
//!
//! Every subtask has so many segments. Each checkpoint replaces a part of them by new ones, and uses the others again. A
//! segment lives until no retained checkpoint uses it.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde::Serialize;

/// Largest segment of [`Sizes::Mixed`], and of any other.
pub const SEGMENT_BYTES_MAX: u64 = 4 << 20;
/// Smallest segment of [`Sizes::Mixed`].
const MIXED_BYTES_MIN: u64 = 1 << 10;
/// Half of the segments of [`Sizes::Mixed`] are smaller.
const MIXED_BYTES_MEDIAN: f64 = 16_384.0;
/// Standard deviation of the logarithm: the mean is 50 KiB, one in a hundred is larger than 530 KiB.
const MIXED_SIGMA: f64 = 1.5;
/// Bytes that segments are cut from, beyond the largest.
const CONTENT_BYTES: usize = 1 << 20;

/// The sizes of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sizes {
    /// All of the same number of bytes.
    Same(u64),
    /// Log-normal, from 1 KiB to 4 MiB: most are small, most bytes are in large ones.
    Mixed,
}

/// The segments that a checkpoint replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heat {
    /// Each as likely as any other.
    Even,
    /// The n-th of a subtask with a weight of 1/n: some in almost every checkpoint, some in hardly any, as the levels of an
    /// LSM tree.
    Skewed,
}

/// The segments that a job stores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct JobShape {
    /// Subtasks.
    pub subtasks: usize,
    /// Segments that one checkpoint of one subtask consists of.
    pub segments: usize,
    /// The part of them that each checkpoint replaces.
    pub replaced: f64,
    /// Their sizes.
    pub sizes: Sizes,
    /// The segments that are replaced.
    pub heat: Heat,
}

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelSegment {
    /// Its number; no two have the same.
    pub number: u64,
    /// The subtask that writes it.
    pub subtask: usize,
    /// Its length in bytes, never zero.
    pub len: u64,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number, from 1.
    pub number: u64,
    /// New segments, subtask by subtask.
    pub written: Vec<ModelSegment>,
    /// Segments of the checkpoint before that it uses again, subtask by subtask.
    pub kept: Vec<ModelSegment>,
}

/// Makes checkpoints.
#[derive(Debug)]
pub struct Churn {
    shape: JobShape,
    rng: StdRng,
    subtasks: Vec<Vec<ModelSegment>>,
    /// Numbers that were given.
    pieces: u64,
    checkpoints: u64,
    /// Part of a segment that is still to be replaced, because numbers of segments are whole.
    owed: f64,
}

impl Churn {
    /// A workload at its beginning.
    pub fn new(shape: JobShape, seed: u64) -> Self {
        let subtasks = vec![vec![]; shape.subtasks];
        Self { shape, rng: StdRng::seed_from_u64(seed), subtasks, pieces: 0, checkpoints: 0, owed: 0.0 }
    }

    /// The next checkpoint; the first one writes everything.
    pub fn next_checkpoint(&mut self) -> Checkpoint {
        self.checkpoints += 1;
        let mut checkpoint = Checkpoint { number: self.checkpoints, written: vec![], kept: vec![] };
        let count = self.count();
        for subtask in 0..self.shape.subtasks {
            let mut slots = std::mem::take(&mut self.subtasks[subtask]);
            let first = slots.is_empty();
            let replaced = if first { (0..self.shape.segments).collect() } else { self.pick(count) };
            for slot in 0..self.shape.segments {
                if !replaced.contains(&slot) {
                    checkpoint.kept.push(slots[slot]);
                    continue;
                }
                let piece = self.piece(subtask);
                checkpoint.written.push(piece);
                if first {
                    slots.push(piece);
                } else {
                    slots[slot] = piece;
                }
            }
            self.subtasks[subtask] = slots;
        }
        checkpoint
    }

    /// Number of segments that each subtask replaces in this checkpoint.
    fn count(&mut self) -> usize {
        self.owed += self.shape.segments as f64 * self.shape.replaced;
        let count = (self.owed + 1e-9).floor();
        self.owed -= count;
        (count as usize).min(self.shape.segments)
    }

    /// Draws `count` slots without putting any back.
    ///
    /// # Source
    /// Efraimidis, Spirakis: Weighted Random Sampling with a Reservoir, 2006.
    fn pick(&mut self, count: usize) -> Vec<usize> {
        let weight = |slot: usize| match self.shape.heat {
            Heat::Even => 1.0,
            Heat::Skewed => 1.0 / (slot + 1) as f64,
        };
        let keys = (0..self.shape.segments).map(|slot| (self.rng.random::<f64>().ln() / weight(slot), slot));
        let mut keys: Vec<(f64, usize)> = keys.collect();
        keys.sort_by(|a, b| b.0.total_cmp(&a.0));
        keys.truncate(count);
        keys.into_iter().map(|(_, slot)| slot).collect()
    }

    fn piece(&mut self, subtask: usize) -> ModelSegment {
        self.pieces += 1;
        let len = match self.shape.sizes {
            Sizes::Same(len) => len,
            Sizes::Mixed => {
                let (u, v) = (1.0 - self.rng.random::<f64>(), self.rng.random::<f64>());
                // Box and Muller, 1958.
                let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                let len = MIXED_BYTES_MEDIAN * (MIXED_SIGMA * normal).exp();
                (len as u64).clamp(MIXED_BYTES_MIN, SEGMENT_BYTES_MAX)
            }
        };
        ModelSegment { number: self.pieces, subtask, len }
    }
}

/// The segments that live because a retained checkpoint uses them.
#[derive(Debug, Default)]
pub struct LivePieces {
    /// With the last checkpoint that uses each.
    pieces: BTreeMap<u64, (ModelSegment, u64)>,
    bytes: u64,
}

impl LivePieces {
    /// A checkpoint was taken; those up to `subsumed` are not needed any more.
    pub fn take(&mut self, checkpoint: &Checkpoint, subsumed: u64) {
        for piece in checkpoint.written.iter().chain(&checkpoint.kept) {
            if self.pieces.insert(piece.number, (*piece, checkpoint.number)).is_none() {
                self.bytes += piece.len;
            }
        }
        self.pieces.retain(|_, (piece, last)| {
            let lives = *last > subsumed;
            self.bytes -= if lives { 0 } else { piece.len };
            lives
        });
    }

    /// The segments that live.
    pub fn pieces(&self) -> impl Iterator<Item = &ModelSegment> {
        self.pieces.values().map(|(piece, _)| piece)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The bytes of the segments: random, which nothing compresses. They share their memory.
#[derive(Debug)]
pub struct Contents(Bytes);

impl Contents {
    /// The contents that a seed makes.
    pub fn new(seed: u64) -> Self {
        let mut pool = vec![0; SEGMENT_BYTES_MAX as usize + CONTENT_BYTES];
        StdRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Self(pool.into())
    }

    /// The bytes of a segment.
    pub fn of(&self, piece: &ModelSegment) -> Bytes {
        // Odd and larger than half of it: neighbours begin far from each other, and no two of many begin at the same byte.
        let at = (piece.number as usize).wrapping_mul(786_433) % CONTENT_BYTES;
        self.0.slice(at..at + piece.len.min(SEGMENT_BYTES_MAX) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heat: Heat) -> JobShape {
        JobShape { subtasks: 4, segments: 10, replaced: 0.3, sizes: Sizes::Mixed, heat }
    }

    fn checkpoints(shape: JobShape, seed: u64, count: usize) -> Vec<Checkpoint> {
        let mut churn = Churn::new(shape, seed);
        (0..count).map(|_| churn.next_checkpoint()).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_checkpoints_and_another_one_others() {
        let of = |seed| checkpoints(shape(Heat::Skewed), seed, 20);

        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn every_checkpoint_replaces_its_part_and_keeps_the_rest_of_the_one_before() {
        let all = checkpoints(shape(Heat::Even), 1, 30);

        assert_eq!((all[0].written.len(), all[0].kept.len()), (40, 0));
        for pair in all.windows(2) {
            let before: Vec<&ModelSegment> = pair[0].written.iter().chain(&pair[0].kept).collect();
            assert_eq!((pair[1].written.len(), pair[1].kept.len()), (12, 28));
            assert!(pair[1].kept.iter().all(|piece| before.contains(&piece)));
            assert!(pair[1].written.iter().all(|piece| !before.contains(&piece)));
        }
    }

    #[test]
    fn parts_of_segments_are_made_up_for_later() {
        let shape = JobShape { subtasks: 1, segments: 5, replaced: 0.3, ..shape(Heat::Even) };

        let written: usize = checkpoints(shape, 1, 101)[1..].iter().map(|checkpoint| checkpoint.written.len()).sum();

        assert_eq!(written, 150);
    }

    #[test]
    fn mixed_sizes_stay_within_their_bounds_and_most_bytes_are_in_few_segments() {
        let mut sizes: Vec<u64> = checkpoints(shape(Heat::Even), 3, 500)
            .iter()
            .flat_map(|checkpoint| checkpoint.written.iter().map(|piece| piece.len))
            .collect();
        sizes.sort_unstable();

        assert!(sizes[0] >= MIXED_BYTES_MIN && sizes[sizes.len() - 1] <= SEGMENT_BYTES_MAX);
        let median = sizes[sizes.len() / 2] as f64;
        assert!((median / MIXED_BYTES_MEDIAN - 1.0).abs() < 0.1, "{median}");
        let (all, large): (u64, u64) = (sizes.iter().sum(), sizes[sizes.len() * 4 / 5..].iter().sum());
        assert!(large as f64 > all as f64 * 0.6, "{large} of {all}");
    }

    #[test]
    fn skewed_heat_makes_more_short_lives_and_longer_long_ones() {
        let lives = |heat| {
            let mut lives: BTreeMap<u64, u64> = BTreeMap::new();
            for checkpoint in checkpoints(JobShape { subtasks: 8, segments: 48, ..shape(heat) }, 5, 300) {
                lives.extend(checkpoint.written.iter().map(|piece| (piece.number, 0)));
                checkpoint.kept.iter().for_each(|piece| *lives.entry(piece.number).or_default() += 1);
            }
            let short = lives.values().filter(|life| **life == 0).count() as f64 / lives.len() as f64;
            (short, lives.into_values().max().unwrap_or(0))
        };

        let ((even_short, even_long), (short, long)) = (lives(Heat::Even), lives(Heat::Skewed));

        assert!((even_short - 0.3).abs() < 0.02, "{even_short}");
        assert!(short > 1.3 * even_short && long > 2 * even_long, "{short}, {long} against {even_short}, {even_long}");
    }

    #[test]
    fn what_lives_is_what_retained_checkpoints_use() {
        let all = checkpoints(shape(Heat::Even), 9, 25);
        let mut living = LivePieces::default();

        for checkpoint in &all {
            living.take(checkpoint, checkpoint.number.saturating_sub(10));
        }

        let mut expected: Vec<ModelSegment> = all[15..]
            .iter()
            .flat_map(|checkpoint| checkpoint.written.iter().chain(&checkpoint.kept).copied())
            .collect();
        expected.sort();
        expected.dedup();
        assert_eq!(living.pieces().copied().collect::<Vec<_>>(), expected);
        assert_eq!(living.bytes(), expected.iter().map(|piece| piece.len).sum::<u64>());
    }

    #[test]
    fn contents_differ_from_segment_to_segment_and_not_from_time_to_time() {
        let (one, two) = (Contents::new(1), Contents::new(1));
        let piece = |number| ModelSegment { number, subtask: 0, len: 1000 };

        let all: std::collections::HashSet<Bytes> = (0..1000).map(|number| one.of(&piece(number))).collect();

        assert_eq!(all.len(), 1000);
        assert_eq!(one.of(&piece(77)), two.of(&piece(77)));
        assert_eq!(one.of(&ModelSegment { len: SEGMENT_BYTES_MAX, ..piece(3) }).len() as u64, SEGMENT_BYTES_MAX);
    }
}
