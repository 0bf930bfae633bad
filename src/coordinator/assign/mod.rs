//! What each task of a job starts from: the state of a checkpoint, given out to as many tasks as there are now.
//!
//! | kind | to another parallelism | to the same |
//! | --- | --- | --- |
//! | keyed | by key group | stays |
//! | split | elements are dealt out evenly, each state by itself, an odd one going on where the one before ended | stays |
//! | union | everybody gets all | the same |
//! | broadcast | task *i* gets what task *i* mod *p* of the *p* that had it had | stays, unless some tasks were finished |
//! | channel | refused | stays |
//!
//! # Source
//! `StateAssignmentOperation` and `RoundRobinOperatorStateRepartitioner` of Flink. Flink goes through the states of an operator in the
//! order of a hash map, here they go by name.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ack::{StateEntry, StateKind};
use super::topology::{ConnectionPattern, OperatorSpec, Topology, key_groups_of};

/// An operator as a checkpoint knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredOperator {
    /// As it was.
    pub spec: OperatorSpec,
    /// Its tasks in order: whether each was finished, and its states.
    pub tasks: Vec<(bool, Vec<StateEntry>)>,
}

/// A piece of state that a task gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedState {
    /// The state, as it was acknowledged.
    pub entry: StateEntry,
    /// The task that wrote it.
    pub from: u32,
    /// The key groups that the task takes of it; empty if it is not keyed.
    pub key_groups: Range<u32>,
    /// The bytes of its elements.
    pub ranges: Vec<(u64, u64)>,
}

/// What one task starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskStart {
    /// It has nothing left to do.
    pub finished: bool,
    /// Its key groups.
    pub key_groups: Range<u32>,
    /// Its state.
    pub state: Vec<AssignedState>,
}

/// Why a checkpoint does not fit a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The job has no such operator.
    #[error("the state of operator {0:?} has no place in the job: keep the operator, or give allow_non_restored_state")]
    NoOperator(String),
    /// Key groups are as they are.
    #[error("operator {operator:?} has max_parallelism {wanted}, its state {has}: that cannot change")]
    MaxParallelism {
        /// The operator.
        operator: String,
        /// What the job says.
        wanted: u32,
        /// What the state has.
        has: u32,
    },
    /// There is not a key group for each task.
    #[error("operator {operator:?} has parallelism {parallelism}, and its state {has} key groups")]
    TooFewKeyGroups {
        /// The operator.
        operator: String,
        /// Its tasks.
        parallelism: u32,
        /// Its key groups.
        has: u32,
    },
    /// Records in flight belong to their tasks.
    #[error(
        "operator {0:?} has records in flight in this checkpoint and another parallelism: take an aligned one, or a savepoint, first"
    )]
    Channel(String),
    /// Who sends to a finished task is finished.
    #[error("operator {operator:?} is finished in this checkpoint, and {input:?} before it is not")]
    FinishedBeforeInput {
        /// The operator.
        operator: String,
        /// The one that sends to it.
        input: String,
    },
}

/// The operators of a job that goes on from a state: those that leave their key groups open take over those of the state.
///
/// # Errors
/// [`Misfit`].
pub fn fit(wanted: &Topology, state: &[RestoredOperator], allow_non_restored: bool) -> Result<Topology, Misfit> {
    let mut operators = wanted.operators().to_vec();
    for restored in state {
        let has_state = restored.tasks.iter().any(|(_, state)| !state.is_empty());
        let Some(spec) = operators.iter_mut().find(|spec| spec.id == restored.spec.id) else {
            if has_state && !allow_non_restored {
                return Err(Misfit::NoOperator(restored.spec.id.clone()));
            }
            continue;
        };
        let has = restored.spec.max_parallelism;
        if spec.parallelism > has {
            return Err(Misfit::TooFewKeyGroups { operator: spec.id.clone(), parallelism: spec.parallelism, has });
        }
        if spec.max_parallelism != has && spec.max_parallelism_given {
            return Err(Misfit::MaxParallelism { operator: spec.id.clone(), wanted: spec.max_parallelism, has });
        }
        spec.max_parallelism = has;
        let in_flight =
            restored.tasks.iter().flat_map(|(_, state)| state).any(|state| state.kind == StateKind::Channel);
        if in_flight && spec.parallelism != restored.spec.parallelism {
            return Err(Misfit::Channel(spec.id.clone()));
        }
    }
    check_finished(&operators, state)?;
    Ok(Topology::new(operators))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HowFinished {
    Not,
    Partly,
    Fully,
}

fn how_finished(restored: Option<&RestoredOperator>) -> HowFinished {
    let Some(restored) = restored else { return HowFinished::Not };
    match restored.tasks.iter().filter(|(finished, _)| *finished).count() {
        0 => HowFinished::Not,
        count if count == restored.tasks.len() => HowFinished::Fully,
        _ => HowFinished::Partly,
    }
}

/// Who sends to a task that is finished has to be finished: its records would find nobody.
///
/// # Source
/// `VertexFinishedStateChecker` of Flink.
fn check_finished(operators: &[OperatorSpec], state: &[RestoredOperator]) -> Result<(), Misfit> {
    let of = |id: &str| how_finished(state.iter().find(|restored| restored.spec.id == id));
    for spec in operators {
        let own = of(&spec.id);
        for input in &spec.inputs {
            let before = of(&input.from);
            let fits = match (own, input.pattern) {
                (HowFinished::Not, _) => true,
                (HowFinished::Fully, _) | (HowFinished::Partly, ConnectionPattern::AllToAll) => {
                    before == HowFinished::Fully
                }
                (HowFinished::Partly, ConnectionPattern::Pointwise) => before != HowFinished::Not,
            };
            if !fits {
                let (operator, input) = (spec.id.clone(), input.from.clone());
                return Err(Misfit::FinishedBeforeInput { operator, input });
            }
        }
    }
    Ok(())
}

/// A task, by its index, and what it starts from.
type StartOf = (u32, TaskStart);

/// What some tasks of an operator start from, in order: of the others nothing is worked out. `restored` is its state, which fits it.
pub fn assign(spec: &OperatorSpec, restored: Option<&RestoredOperator>, which: Range<u32>) -> Vec<TaskStart> {
    let fresh = |subtask| {
        let key_groups = key_groups_of(spec.max_parallelism, spec.parallelism, subtask);
        (subtask, TaskStart { key_groups, ..TaskStart::default() })
    };
    let mut starts: Vec<StartOf> = (which.start..which.end.min(spec.parallelism)).map(fresh).collect();
    if let Some(restored) = restored {
        assign_state(&mut starts, spec, restored);
    }
    starts.into_iter().map(|(_, start)| start).collect()
}

fn assign_state(starts: &mut [StartOf], spec: &OperatorSpec, restored: &RestoredOperator) {
    let same = restored.spec.parallelism == spec.parallelism;
    let finished = how_finished(Some(restored));
    for (at, start) in starts.iter_mut() {
        // At another parallelism nobody can tell whose work was done, unless everybody's was.
        start.finished = match finished {
            HowFinished::Fully => true,
            HowFinished::Partly if same => restored.tasks.get(*at as usize).is_some_and(|(finished, _)| *finished),
            HowFinished::Partly | HowFinished::Not => false,
        };
    }
    assign_keyed(starts, restored, same);
    let mut named: BTreeMap<(StateKind, &str), Vec<(u32, &StateEntry)>> = BTreeMap::new();
    for (from, (_, state)) in (0_u32..).zip(&restored.tasks) {
        for entry in state.iter().filter(|entry| entry.kind != StateKind::Keyed) {
            named.entry((entry.kind, &*entry.name)).or_default().push((from, entry));
        }
    }
    let mut turn = 0;
    for ((kind, _), entries) in named {
        match kind {
            StateKind::Union => starts.iter_mut().for_each(|(_, start)| start.state.extend(entries.iter().map(whole))),
            StateKind::Split if !same => turn = deal_out(starts, spec.parallelism, &entries, turn),
            StateKind::Broadcast if !same || finished == HowFinished::Partly => hand_around(starts, &entries),
            StateKind::Keyed | StateKind::Split | StateKind::Broadcast | StateKind::Channel => {
                for (from, entry) in entries {
                    start_of(starts, from).into_iter().for_each(|start| start.state.push(whole(&(from, entry))));
                }
            }
        }
    }
}

/// That of one task, if it is among these.
fn start_of(starts: &mut [StartOf], task: u32) -> Option<&mut TaskStart> {
    let first = starts.first()?.0;
    starts.get_mut(task.checked_sub(first)? as usize).map(|(_, start)| start)
}

fn whole((from, entry): &(u32, &StateEntry)) -> AssignedState {
    let ranges = entry.ranges(0..entry.offsets.len());
    AssignedState { entry: (*entry).clone(), from: *from, key_groups: 0..0, ranges }
}

fn assign_keyed(starts: &mut [StartOf], restored: &RestoredOperator, same: bool) {
    for (from, (_, state)) in (0_u32..).zip(&restored.tasks) {
        for entry in state.iter().filter(|entry| entry.kind == StateKind::Keyed) {
            for (at, start) in starts.iter_mut() {
                let has = &entry.key_groups;
                let own = has.start.max(start.key_groups.start)..has.end.min(start.key_groups.end);
                if own.is_empty() || (same && *at != from) {
                    continue;
                }
                let which = (own.start - has.start) as usize..(own.end - has.start) as usize;
                let ranges = entry.ranges(which);
                start.state.push(AssignedState { entry: entry.clone(), from, key_groups: own, ranges });
            }
        }
    }
}

/// Deals the elements of one state out. Returns the task at which the next state begins.
fn deal_out(starts: &mut [StartOf], parallelism: u32, entries: &[(u32, &StateEntry)], turn: u32) -> u32 {
    let tasks = parallelism as usize;
    let elements: usize = entries.iter().map(|(_, entry)| entry.offsets.len()).sum();
    let (base, odd) = (elements / tasks, elements % tasks);
    let mut left = entries.iter().flat_map(|(from, entry)| (0..entry.offsets.len()).map(move |at| (*from, *entry, at)));
    for number in 0..parallelism {
        let share = base + usize::from((number as usize) < odd);
        let at = (turn + number) % parallelism;
        let Some(start) = start_of(starts, at) else {
            left.by_ref().take(share).for_each(drop);
            continue;
        };
        for (from, entry, at) in left.by_ref().take(share) {
            let range = entry.ranges(at..at + 1);
            match start.state.last_mut().filter(|last| is_of(last, from, entry)) {
                Some(last) => last.ranges.extend(range),
                None => {
                    let entry = entry.clone();
                    start.state.push(AssignedState { entry, from, key_groups: 0..0, ranges: range });
                }
            }
        }
    }
    // Fewer than there are tasks are odd.
    (turn + u32::try_from(odd).unwrap_or(0)) % parallelism
}

fn is_of(state: &AssignedState, from: u32, entry: &StateEntry) -> bool {
    state.from == from && state.entry.segment == entry.segment && state.entry.name == entry.name
}

/// Gives each task what one of those had that wrote it.
fn hand_around(starts: &mut [StartOf], entries: &[(u32, &StateEntry)]) {
    let mut writers: Vec<u32> = entries.iter().map(|(from, _)| *from).collect();
    writers.dedup();
    for (at, start) in starts.iter_mut() {
        let Some(writer) = writers.get(*at as usize % writers.len().max(1)) else { continue };
        start.state.extend(entries.iter().filter(|(from, _)| from == writer).map(whole));
    }
}

#[cfg(test)]
mod tests;
