//! Whether what somebody wants of a job makes sense.

use std::collections::BTreeSet;

use super::error::CoordinatorError;
use super::topology::{KEY_GROUPS_MAX, OperatorSpec};
use crate::config::JobCheckpointing;
use crate::model::Label;

/// Operators of a job, and tasks of all of them.
const OPERATORS_MAX: usize = 1000;
const TASKS_MAX: u64 = 1 << 16;

/// Whether settings fit a job.
///
/// # Errors
/// [`CoordinatorError::Iterative`].
pub(super) fn check_rules(rules: &JobCheckpointing, iterative: bool) -> Result<(), CoordinatorError> {
    if iterative && rules.unaligned && !rules.unaligned_forced { Err(CoordinatorError::Iterative) } else { Ok(()) }
}

/// Whether these may be the operators of a job.
///
/// # Errors
/// [`CoordinatorError::Operators`], which names the one that is wrong.
pub(super) fn check_operators(operators: &[OperatorSpec]) -> Result<(), CoordinatorError> {
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
            return wrong(format!("id {id:?} {}", error.why));
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
    unknown.map_or(Ok(()), |input| wrong(format!("an input is {:?}, which is no operator of the job", input.from)))
}
