//! Whether what somebody wants of a job makes sense.

use std::collections::{BTreeMap, BTreeSet};

use super::error::CoordinatorError;
use super::storage::holds_savepoints;
use super::topology::{KEY_GROUPS_MAX, OperatorSpec};
use crate::config::{JobCheckpointing, PublishDir};
use crate::engine::Engine;
use crate::model::Label;

/// Operators of a job, and tasks of all of them.
const OPERATORS_MAX: usize = 1000;
const TASKS_MAX: u64 = 1 << 16;
/// Characters of an id that is wrong which are told.
const ID_SHOWN: usize = 64;

/// Whether settings fit a job.
///
/// # Errors
/// [`CoordinatorError::Iterative`].
pub(super) fn check_rules(rules: &JobCheckpointing, iterative: bool) -> Result<(), CoordinatorError> {
    if iterative && rules.unaligned && !rules.unaligned_forced { Err(CoordinatorError::Iterative) } else { Ok(()) }
}

/// Whether savepoints of a job of this engine can go where its settings say.
///
/// # Errors
/// [`CoordinatorError::OtherShard`]; [`CoordinatorError::Engine`] if there is no such bucket.
pub(super) fn check_savepoint_dir(engine: &Engine, rules: &JobCheckpointing) -> Result<(), CoordinatorError> {
    let of = ("settings", "execution.checkpointing.savepoint-dir");
    rules.savepoint_dir.as_ref().map_or(Ok(()), |dir| check_dir_of_savepoints(engine, dir, of))
}

/// The same of a directory that is `named` in a field of a request.
///
/// # Errors
/// As [`check_savepoint_dir`].
pub(super) fn check_dir_of_savepoints(
    engine: &Engine,
    dir: &PublishDir,
    (field, named): (&'static str, &str),
) -> Result<(), CoordinatorError> {
    engine.check_bucket(&dir.bucket)?;
    match holds_savepoints(engine, dir) {
        true => Ok(()),
        false => Err(CoordinatorError::OtherShard(field, named.to_owned())),
    }
}

/// Whether these may be the operators of a job, in which records go round only if it is `iterative`.
///
/// # Errors
/// [`CoordinatorError::Operators`], which names the one that is wrong.
pub(super) fn check_operators(operators: &[OperatorSpec], iterative: bool) -> Result<(), CoordinatorError> {
    let wrong = |why: String| Err(CoordinatorError::Operators(why));
    if operators.is_empty() || operators.len() > OPERATORS_MAX {
        return wrong(format!("a job has 1 to {OPERATORS_MAX} operators, not {}", operators.len()));
    }
    let tasks: u64 = operators.iter().map(|spec| u64::from(spec.parallelism)).sum();
    if tasks > TASKS_MAX {
        return wrong(format!("a job has at most {TASKS_MAX} tasks, not {tasks}"));
    }
    let mut ids = BTreeSet::new();
    for spec in operators {
        let id = &spec.id;
        if let Err(error) = Label::parse("operators", id) {
            let shown: String = id.chars().take(ID_SHOWN).collect();
            let rest = if shown.len() < id.len() { ".." } else { "" };
            return wrong(format!("id {shown:?}{rest} {}", error.why));
        }
        if !ids.insert(&**id) {
            return wrong(format!("two operators have the id {id:?}"));
        }
        if spec.max_parallelism == 0 || spec.max_parallelism > KEY_GROUPS_MAX {
            return wrong(format!("max_parallelism of {id:?} must be 1 to {KEY_GROUPS_MAX}"));
        }
        if spec.parallelism == 0 || spec.parallelism > spec.max_parallelism {
            return wrong(format!("parallelism of {id:?} must be 1 to its max_parallelism, {}", spec.max_parallelism));
        }
    }
    let unknown = operators.iter().flat_map(|spec| &spec.inputs).find(|input| !ids.contains(&*input.from));
    if let Some(input) = unknown {
        return wrong(format!("an input is {:?}, which is no operator of the job", input.from));
    }
    match on_a_cycle(operators).filter(|_| !iterative) {
        Some(id) => {
            wrong(format!("{id:?} is among its own inputs, by way of others or not: a job with cycles is `iterative`"))
        }
        None => Ok(()),
    }
}

/// An operator that records may come back to.
fn on_a_cycle(operators: &[OperatorSpec]) -> Option<&str> {
    // Those whose inputs are all behind them go, until no more can.
    let mut left: BTreeMap<&str, &OperatorSpec> = operators.iter().map(|spec| (&*spec.id, spec)).collect();
    loop {
        let waits = |spec: &&OperatorSpec| spec.inputs.iter().any(|input| left.contains_key(&*input.from));
        let rest: BTreeMap<&str, &OperatorSpec> =
            left.iter().filter(|(_, spec)| waits(spec)).map(|(id, spec)| (*id, *spec)).collect();
        if rest.len() == left.len() {
            return rest.keys().next().copied();
        }
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::topology::{ConnectionPattern, OperatorInput};

    fn operator(id: &str, inputs: &[&str]) -> OperatorSpec {
        let input = |from: &&str| OperatorInput { from: (*from).to_owned(), pattern: ConnectionPattern::AllToAll };
        OperatorSpec { inputs: inputs.iter().map(input).collect(), ..OperatorSpec::plain(id, 1) }
    }

    #[test]
    fn records_go_round_in_iterative_jobs_alone() {
        let diamond = [
            operator("sink", &["left", "right"]),
            operator("left", &["a"]),
            operator("right", &["a"]),
            operator("a", &[]),
        ];
        assert!(check_operators(&diamond, false).is_ok());

        for wrong in
            [vec![operator("a", &["a"])], vec![operator("a", &[]), operator("b", &["a", "c"]), operator("c", &["b"])]]
        {
            let error = check_operators(&wrong, false).unwrap_err().to_string();
            assert!(error.contains("`iterative`"), "{error}");
            assert!(check_operators(&wrong, true).is_ok());
        }
    }
}
