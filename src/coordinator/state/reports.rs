//! What tasks report of themselves, changes of backlog and settings, restores, the end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::decision::{Decision, RestartCause};
use super::failures::Blame;
use super::machine::Coordinator;
use super::queue::{RequestNumber, StopMode, WantedCheckpoint};
use super::retained::RetainedCheckpoint;
use super::tasks::TaskState;
use crate::config::JobCheckpointing;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::topology::{TaskId, Topology};
use crate::model::CheckpointId;

/// After the end of a job whose tasks are over did not happen, until it is tried again.
const FINISH_AGAIN: Duration = Duration::from_secs(1);

impl Coordinator {
    /// Tasks report how they are. Returns whether they are of this attempt; if not, nothing happens.
    pub fn report(
        &mut self,
        attempt: u64,
        tasks: &[(TaskId, TaskState)],
        message: Option<&str>,
        now: Duration,
    ) -> bool {
        if attempt != self.attempt || self.ended {
            return attempt == self.attempt;
        }
        let (ran, settled) = (self.tasks.all_run(), self.tasks.is_settled());
        let mut over = vec![];
        for (task, state) in tasks {
            if self.tasks.report(*task, *state, now) {
                over.push(*task);
            }
        }
        if let Some((task, _)) = tasks.iter().find(|(_, state)| *state == TaskState::Failed) {
            let mut why = format!("task {} has failed", self.topology.name(*task));
            message.into_iter().for_each(|message| why = format!("{why}: {message}"));
            self.restart(RestartCause::TaskFailure, FailureReason::CoordinatorSuspend, why, now);
            return true;
        }
        if !over.is_empty() || settled != self.tasks.is_settled() {
            // Before anything that follows from it: another owner has to know.
            self.out.push(Decision::Note);
        }
        for task in over {
            self.abort_without(task, now);
        }
        if !ran && self.tasks.all_run() && self.stopping.is_none() {
            self.start_schedule(now);
        }
        let at_end = tasks.iter().filter(|(_, state)| *state == TaskState::EndOfData).map(|(task, _)| task.operator);
        for operator in at_end.filter(|_| self.rules.after_tasks_finish).collect::<BTreeSet<usize>>() {
            if self.tasks.is_at_end(operator) {
                self.report_backlog(operator, false, now);
            }
        }
        self.ask_for_the_last(now);
        self.finish_if_over();
        self.begin_next(now);
        true
    }

    /// Tasks that have read all their input wait for a last checkpoint.
    pub(super) fn ask_for_the_last(&mut self, now: Duration) {
        let wanted = self.rules.after_tasks_finish && self.tasks.all_at_end() && !self.ended;
        if wanted && !self.final_asked && self.stopping.is_none() {
            self.final_asked = true;
            self.ask(WantedCheckpoint::Checkpoint, now);
        }
    }

    /// Checkpoints that a task has not acknowledged and that it never will.
    fn abort_without(&mut self, task: TaskId, now: Duration) {
        let without = self.pending.iter().filter(|(_, pending)| pending.missing.contains(&task));
        let without: Vec<CheckpointId> = without.map(|(id, _)| *id).collect();
        for id in without {
            let message = format!("task {} has finished without it", self.topology.name(task));
            self.abort(id, FailureReason::DeclinedClosing, Blame::Task, message, now);
        }
    }

    /// The job ends with its last task, once nothing is being stored any more; unless somebody is changing it, who says what it becomes.
    pub(super) fn finish_if_over(&mut self) {
        if self.tasks.all_finished() && !self.is_storing() && !self.ended && !self.is_halted() {
            self.ended = true;
            self.schedule.stop();
            self.out.push(Decision::Finished);
        }
    }

    /// Another process has taken the place of a task that runs: all begin anew.
    pub fn replaced(&mut self, task: TaskId, by: &str, now: Duration) {
        let message = format!("task {} runs, and process {by} begins in its place", self.topology.name(task));
        self.restart(RestartCause::TaskFailure, FailureReason::CoordinatorSuspend, message, now);
    }

    /// The daemon itself stood still for so long, and hears only now what tasks have said meanwhile.
    pub fn was_deaf(&mut self, span: Duration, now: Duration) {
        self.tasks.was_deaf(span, now);
    }

    /// Something was heard of tasks.
    pub fn heard_of(&mut self, tasks: impl IntoIterator<Item = TaskId>, now: Duration) {
        tasks.into_iter().for_each(|task| self.tasks.heard_of(task, now));
    }

    /// A source reports whether it has a backlog.
    pub fn report_backlog(&mut self, operator: usize, backlog: bool, now: Duration) {
        if backlog {
            self.backlog.insert(operator);
        } else {
            self.backlog.remove(&operator);
        }
        let interval = self.interval();
        self.schedule.interval_changed(now, interval);
    }

    /// The settings are others from here on.
    pub fn reconfigure(&mut self, rules: JobCheckpointing, now: Duration) {
        let had_none = self.rules.interval.is_none();
        let before = std::mem::replace(&mut self.rules, rules);
        if let Some(less) = before.heartbeat_timeout.checked_sub(self.rules.heartbeat_timeout) {
            // By then each worker has reported, and been told.
            self.tasks.patience_falls(less, now + before.heartbeat_interval);
        }
        if had_none && self.tasks.all_run() && self.stopping.is_none() {
            self.start_schedule(now);
        }
        match self.interval() {
            None if self.rules.interval.is_none() => self.schedule.stop(),
            interval => self.schedule.interval_changed(now, interval),
        }
        self.subsume_surplus();
        self.begin_next(now);
    }

    /// The job begins anew from a state that somebody chose: with these operators, and `from` among those that count if it is
    /// not there yet. `next_id` is above every number that is known by now.
    pub fn restore(
        &mut self,
        topology: Topology,
        from: Option<RetainedCheckpoint>,
        next_id: CheckpointId,
        full: bool,
        now: Duration,
    ) {
        self.topology = topology;
        self.backlog.clear();
        self.next_id = self.next_id.max(next_id);
        self.full = full;
        self.go_on();
        self.restart(
            RestartCause::Restore,
            FailureReason::CoordinatorSuspend,
            "the job goes on from a state that was chosen".to_owned(),
            now,
        );
        if let Some(from) = from.filter(|from| self.retained.iter().all(|one| one.id != from.id)) {
            self.retained.add(from, usize::MAX);
            self.subsume_surplus();
        }
    }

    /// A restore or an end that was begun with [`halt`](Self::halt) did not happen: periodic checkpoints go on, and a job whose tasks are
    /// over ends by itself.
    pub fn resume(&mut self, now: Duration) {
        self.go_on();
        self.ended = false;
        self.finish_again = self.tasks.all_finished().then(|| now + FINISH_AGAIN);
        if self.tasks.all_run() && self.stopping.is_none() {
            self.start_schedule(now);
            self.schedule.put_off(now, self.rules.interval.unwrap_or_default());
        }
        self.begin_next(now);
    }

    /// The savepoint that the job stops with had completed when another owner had it: it stops still.
    pub fn stops_with(&mut self, id: CheckpointId, mode: StopMode) {
        if !self.ended {
            let number = RequestNumber(self.next_request);
            self.next_request += 1;
            self.stopping = Some((number, true));
            self.out.push(Decision::Stop(id, mode));
        }
    }

    /// The job has ended: what is in progress is given up, and nothing follows.
    pub fn end(&mut self, now: Duration) {
        self.ended = true;
        self.suspend(now, FailureReason::CoordinatorShutdown);
    }
}
