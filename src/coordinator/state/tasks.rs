//! The tasks of a job: which of them run, have finished, or were not heard of for too long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::coordinator::topology::{TaskId, Topology};

/// Of a task, as it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// It processes records.
    Running,
    /// It has read all input, and waits for a last checkpoint.
    EndOfData,
    /// It is over.
    Finished,
    /// It has failed.
    Failed,
}

/// What is known of a task in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnownTask {
    /// It has not reported.
    Awaited,
    /// It runs; whether it has read all input.
    Runs { end_of_data: bool },
    /// It is over.
    Finished,
}

/// The tasks of a job in one attempt.
#[derive(Debug, Clone)]
pub struct TaskTable {
    /// By operator and index.
    tasks: Vec<Vec<(KnownTask, Duration)>>,
    running: u64,
    ended: u64,
    finished: u64,
    all: u64,
    /// Whether all of them have run in this attempt.
    settled: bool,
}

impl TaskTable {
    /// No task has reported yet.
    pub fn new(topology: &Topology, now: Duration) -> Self {
        let of = |parallelism: u32| vec![(KnownTask::Awaited, now); parallelism as usize];
        let tasks: Vec<_> = topology.operators().iter().map(|operator| of(operator.parallelism)).collect();
        Self { tasks, running: 0, ended: 0, finished: 0, all: topology.task_count(), settled: false }
    }

    /// All of them have run before, and these have finished: another daemon knew that.
    pub fn settle(&mut self, finished: &BTreeSet<TaskId>) {
        self.settled = true;
        for task in finished {
            self.set(*task, KnownTask::Finished);
        }
    }

    fn set(&mut self, task: TaskId, known: KnownTask) {
        let entry = self.tasks.get_mut(task.operator).and_then(|tasks| tasks.get_mut(task.subtask as usize));
        let Some((before, _)) = entry else { return };
        let count = |known: KnownTask| match known {
            KnownTask::Awaited => (0, 0, 0),
            KnownTask::Runs { end_of_data } => (1, u64::from(end_of_data), 0),
            KnownTask::Finished => (0, 0, 1),
        };
        let (was, is) = (count(*before), count(known));
        *before = known;
        self.running = self.running + is.0 - was.0;
        self.ended = self.ended + is.1 - was.1;
        self.finished = self.finished + is.2 - was.2;
        self.settled |= self.running + self.finished == self.all;
    }

    /// A task reports that it runs, or is over. One that has read all its input, or is over, stays so: reports may come out of order.
    /// Returns whether it is over now and was not before.
    pub fn report(&mut self, task: TaskId, state: TaskState, now: Duration) -> bool {
        self.heard_of(task, now);
        if self.is_finished(task) {
            return false;
        }
        match state {
            TaskState::Running if self.known(task) == Some(KnownTask::Runs { end_of_data: true }) => {}
            TaskState::Running => self.set(task, KnownTask::Runs { end_of_data: false }),
            TaskState::EndOfData => self.set(task, KnownTask::Runs { end_of_data: true }),
            TaskState::Finished => self.set(task, KnownTask::Finished),
            TaskState::Failed => {}
        }
        state == TaskState::Finished
    }

    /// Something was heard of a task.
    pub fn heard_of(&mut self, task: TaskId, now: Duration) {
        if let Some((_, heard)) = self.tasks.get_mut(task.operator).and_then(|of| of.get_mut(task.subtask as usize)) {
            *heard = now.max(*heard);
        }
    }

    fn known(&self, task: TaskId) -> Option<KnownTask> {
        let known = self.tasks.get(task.operator).and_then(|tasks| tasks.get(task.subtask as usize));
        known.map(|(known, _)| *known)
    }

    /// Whether a task is over.
    pub fn is_finished(&self, task: TaskId) -> bool {
        self.known(task) == Some(KnownTask::Finished)
    }

    /// Nobody listened for so long: silence meanwhile is nobody's fault.
    pub fn was_deaf(&mut self, span: Duration, now: Duration) {
        for (_, heard) in self.tasks.iter_mut().flatten() {
            *heard = now.min(*heard + span).max(*heard);
        }
    }

    /// Whoever waited for a sign of life waits for `less` time from here on: not before `told`, as a task cannot do what it does not know,
    /// and then it is as if something had been heard of it; nor for longer than it would have waited.
    pub fn patience_falls(&mut self, less: Duration, told: Duration) {
        for (_, heard) in self.tasks.iter_mut().flatten() {
            *heard = told.min(*heard + less).max(*heard);
        }
    }

    /// The first task that was not heard of for longer than `patience`, of those that run. If all of them have run, those of which
    /// this owner has not heard are missed, too.
    pub fn lost(&self, now: Duration, patience: Duration) -> Option<TaskId> {
        let silent = |heard: Duration| now.saturating_sub(heard) > patience;
        let missed = |known: KnownTask| match known {
            KnownTask::Awaited => self.settled,
            KnownTask::Runs { .. } => true,
            KnownTask::Finished => false,
        };
        self.each().filter(|(_, known, heard)| missed(*known) && silent(*heard)).map(|(task, ..)| task).next()
    }

    /// Whether there is a task that may be lost.
    pub fn may_be_lost(&self) -> bool {
        self.settled || self.running > 0
    }

    /// Whether a task runs in this attempt.
    pub fn runs(&self, task: TaskId) -> bool {
        matches!(self.known(task), Some(KnownTask::Runs { .. }))
    }

    fn each(&self) -> impl Iterator<Item = (TaskId, KnownTask, Duration)> {
        self.tasks.iter().enumerate().flat_map(|(operator, tasks)| {
            let tasks = (0_u32..).zip(tasks.iter().copied());
            tasks.map(move |(subtask, (known, heard))| (TaskId { operator, subtask }, known, heard))
        })
    }

    /// Tasks that are not over.
    pub fn unfinished(&self) -> BTreeSet<TaskId> {
        self.each().filter(|(_, known, _)| *known != KnownTask::Finished).map(|(task, ..)| task).collect()
    }

    /// Tasks that are over.
    pub fn finished(&self) -> BTreeSet<TaskId> {
        self.each().filter(|(_, known, _)| *known == KnownTask::Finished).map(|(task, ..)| task).collect()
    }

    /// How many are over of the tasks of an operator, and how many there are.
    pub fn finished_of(&self, operator: usize) -> (usize, usize) {
        let tasks = self.tasks.get(operator).map_or(&[][..], Vec::as_slice);
        (tasks.iter().filter(|(known, _)| *known == KnownTask::Finished).count(), tasks.len())
    }

    /// Whether all that are not over run, and there is one.
    pub fn all_run(&self) -> bool {
        self.running > 0 && self.running + self.finished == self.all
    }

    /// Whether all that are not over have read all input, and there is one.
    pub fn all_at_end(&self) -> bool {
        self.all_run() && self.ended == self.running
    }

    /// Whether all tasks of an operator have read all input, or are over.
    pub fn is_at_end(&self, operator: usize) -> bool {
        let at_end = |known| matches!(known, KnownTask::Finished | KnownTask::Runs { end_of_data: true });
        self.tasks.get(operator).is_some_and(|tasks| tasks.iter().all(|(known, _)| at_end(*known)))
    }

    /// Whether all are over.
    pub fn all_finished(&self) -> bool {
        self.finished == self.all
    }

    /// Whether all have run in this attempt.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many run, and how many are over.
    pub fn counts(&self) -> (u64, u64) {
        (self.running, self.finished)
    }
}
