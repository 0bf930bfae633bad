//! Which worker has which tasks: by its name a worker gives a sign of life for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::topology::TaskId;

/// The workers of a job.
///
/// # Invariants
/// - A task is of one worker, the one that named it last. So there are no more entries than tasks, whatever names come.
#[derive(Debug, Default)]
pub(super) struct WorkerTable {
    tasks: BTreeMap<Arc<str>, BTreeSet<TaskId>>,
    of: BTreeMap<TaskId, Arc<str>>,
}

impl WorkerTable {
    /// Tasks are those of this worker.
    pub(super) fn know(&mut self, worker: &str, tasks: impl IntoIterator<Item = TaskId>) {
        let name = self.tasks.get_key_value(worker).map_or_else(|| Arc::from(worker), |(name, _)| Arc::clone(name));
        for task in tasks {
            match self.of.insert(task, Arc::clone(&name)) {
                Some(before) if before == name => continue,
                Some(before) => self.take_from(&before, task),
                None => {}
            }
            self.tasks.entry(Arc::clone(&name)).or_default().insert(task);
        }
    }

    fn take_from(&mut self, worker: &str, task: TaskId) {
        let left = self.tasks.get_mut(worker).map(|tasks| {
            tasks.remove(&task);
            tasks.len()
        });
        if left == Some(0) {
            self.tasks.remove(worker);
        }
    }

    /// The tasks of a worker.
    pub(super) fn tasks_of(&self, worker: &str) -> impl Iterator<Item = TaskId> + use<'_> {
        self.tasks.get(worker).into_iter().flatten().copied()
    }

    /// Whether a task is of another worker than this one.
    pub(super) fn is_of_another(&self, task: TaskId, worker: &str) -> bool {
        self.of.get(&task).is_some_and(|known| **known != *worker)
    }

    /// No task is of a worker any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(subtask: u32) -> TaskId {
        TaskId { operator: 0, subtask }
    }

    #[test]
    fn a_task_is_of_the_worker_that_named_it_last() {
        let mut workers = WorkerTable::default();
        workers.know("a", (0..3).map(task));
        workers.know("b", [task(1)]);
        workers.know("b", [task(1), task(3)]);

        assert_eq!(workers.tasks_of("a").collect::<Vec<_>>(), [task(0), task(2)]);
        assert_eq!(workers.tasks_of("b").collect::<Vec<_>>(), [task(1), task(3)]);
        assert_eq!([0, 1, 7].map(|subtask| workers.is_of_another(task(subtask), "b")), [true, false, false]);
        workers.clear();
        assert_eq!(workers.tasks_of("b").count(), 0);
    }

    #[test]
    fn there_are_no_more_entries_than_tasks_whatever_names_come() {
        let mut workers = WorkerTable::default();
        for name in 0..1000 {
            workers.know(&format!("w{name}"), (0..8).map(task));
            workers.know(&format!("idle{name}"), []);
        }

        assert_eq!((workers.of.len(), workers.tasks.len()), (8, 1));
        assert_eq!(workers.tasks_of("w999").count(), 8);
    }
}
