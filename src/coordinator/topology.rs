//! The operators of a job and their tasks; key groups.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The most key groups that an operator may have, as in Flink.
pub const KEY_GROUPS_MAX: u32 = 1 << 15;
/// The fewest that it gets when nobody says how many.
const KEY_GROUPS_MIN: u32 = 1 << 7;

/// A task of a job: a subtask of one of its operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The place of the operator in the job's list.
    pub operator: usize,
    /// Its index, from 0.
    pub subtask: u32,
}

/// How the tasks of one operator send to those of another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionPattern {
    /// Each to each.
    #[default]
    AllToAll,
    /// Each to some.
    Pointwise,
}

/// An operator that sends to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorInput {
    /// The operator that sends.
    pub from: String,
    /// To whom.
    #[serde(default)]
    pub pattern: ConnectionPattern,
}

/// An operator of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorSpec {
    /// Its id, which its state is found by.
    pub id: String,
    /// Its tasks.
    pub parallelism: u32,
    /// Its key groups.
    pub max_parallelism: u32,
    /// Whether somebody chose their number. If not, that of restored state takes its place.
    pub max_parallelism_given: bool,
    /// The operators before it.
    #[serde(default)]
    pub inputs: Vec<OperatorInput>,
    /// Whether it uses union list state.
    #[serde(default)]
    pub union_list_state: bool,
    /// Whether it commits when a checkpoint completes.
    #[serde(default)]
    pub two_phase_commit: bool,
    /// Whether barriers may overtake records there.
    #[serde(default = "yes")]
    pub unaligned: bool,
}

#[cfg(test)]
impl OperatorSpec {
    /// One about which nothing is said but this.
    pub(crate) fn plain(id: &str, parallelism: u32) -> Self {
        Self {
            id: id.to_owned(),
            parallelism,
            max_parallelism: 128,
            max_parallelism_given: false,
            inputs: vec![],
            union_list_state: false,
            two_phase_commit: false,
            unaligned: true,
        }
    }
}

fn yes() -> bool {
    true
}

/// The key groups that an operator gets when nobody says how many: a power of two, so that it may be rescaled.
///
/// # Source
/// `KeyGroupRangeAssignment.computeDefaultMaxParallelism` of Flink.
pub fn default_max_parallelism(parallelism: u32) -> u32 {
    let more = parallelism.saturating_add(parallelism / 2);
    more.checked_next_power_of_two().unwrap_or(KEY_GROUPS_MAX).clamp(KEY_GROUPS_MIN, KEY_GROUPS_MAX)
}

/// The key groups of one task of `parallelism`.
///
/// # Source
/// `KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex` of Flink, whose ranges include their end.
pub fn key_groups_of(max_parallelism: u32, parallelism: u32, subtask: u32) -> Range<u32> {
    let (max, all, index) = (u64::from(max_parallelism), u64::from(parallelism.max(1)), u64::from(subtask));
    let start = (index * max).div_ceil(all);
    let end = ((index + 1) * max - 1) / all + 1;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    narrow(start)..narrow(end)
}

/// The operators of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    operators: Vec<OperatorSpec>,
}

impl Topology {
    /// A job of these operators, which were checked.
    pub fn new(operators: Vec<OperatorSpec>) -> Self {
        Self { operators }
    }

    /// Whether these are the operators that somebody wants. Key groups that nobody chose may be those of the state that the job went on
    /// from, in place of the default.
    pub fn is_as_wanted(&self, wanted: &Self) -> bool {
        let same = |(own, wanted): (&OperatorSpec, &OperatorSpec)| {
            let open = !own.max_parallelism_given && !wanted.max_parallelism_given;
            let max_parallelism = if open { own.max_parallelism } else { wanted.max_parallelism };
            *own == OperatorSpec { max_parallelism, ..wanted.clone() }
        };
        self.operators.len() == wanted.operators.len() && self.operators.iter().zip(&wanted.operators).all(same)
    }

    /// The operators in order.
    pub fn operators(&self) -> &[OperatorSpec] {
        &self.operators
    }

    /// An operator by its id, with its place.
    pub fn operator(&self, id: &str) -> Option<(usize, &OperatorSpec)> {
        self.operators.iter().enumerate().find(|(_, operator)| operator.id == id)
    }

    /// A task, if there is such a one.
    pub fn task(&self, operator: &str, subtask: u32) -> Option<TaskId> {
        let (place, spec) = self.operator(operator)?;
        (subtask < spec.parallelism).then_some(TaskId { operator: place, subtask })
    }

    /// All tasks in order.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        let of = |(operator, spec): (usize, &OperatorSpec)| {
            (0..spec.parallelism).map(move |subtask| TaskId { operator, subtask })
        };
        self.operators.iter().enumerate().flat_map(of)
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> u64 {
        self.operators.iter().map(|operator| u64::from(operator.parallelism)).sum()
    }

    /// The operator of a task; the task is one of this job.
    pub fn of(&self, task: TaskId) -> Option<&OperatorSpec> {
        self.operators.get(task.operator)
    }

    /// The task as people name it.
    pub fn name(&self, task: TaskId) -> String {
        let operator = self.of(task).map_or("?", |operator| &operator.id);
        format!("{operator}/{}", task.subtask)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn default_key_groups_are_flinks() {
        let expected = [(1, 128), (85, 128), (86, 256), (171, 256), (200, 512), (20_000, 32_768), (40_000, 32_768)];
        for (parallelism, groups) in expected {
            assert_eq!(default_max_parallelism(parallelism), groups, "{parallelism}");
        }
    }

    #[test]
    fn key_groups_of_a_task_are_flinks() {
        let ranges = |max, all| (0..all).map(|index| key_groups_of(max, all, index)).collect::<Vec<_>>();
        assert_eq!(ranges(128, 3), [0..43, 43..86, 86..128]);
        assert_eq!(ranges(10, 4), [0..3, 3..5, 5..8, 8..10]);
        assert_eq!(ranges(5, 5), [0..1, 1..2, 2..3, 3..4, 4..5]);
    }

    proptest! {
        #[test]
        fn key_groups_are_divided_among_all_tasks(max in 1_u32..2000, part in 1_u32..2000) {
            let parallelism = part.min(max);
            let mut next = 0;
            for index in 0..parallelism {
                let range = key_groups_of(max, parallelism, index);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                next = range.end;
            }
            prop_assert_eq!(next, max);
        }
    }
}
