//! What tasks say of a checkpoint, and how it ends: completed, or given up.

use std::time::Duration;

use super::decision::{Decision, RequestOutcome, RestartCause};
use super::failures::Blame;
use super::machine::{CheckpointFate, Coordinator};
use super::pending::CheckpointPhase;
use super::queue::{CheckpointRequest, WantedCheckpoint};
use super::retained::{RetainedCheckpoint, RetainedKind};
use crate::coordinator::ack::TaskSnapshot;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::topology::TaskId;
use crate::model::CheckpointId;

/// Checkpoints that were given up and that somebody may look at.
const GIVEN_UP_KEPT: usize = 64;

/// After the last checkpoint of tasks at the end of their data was given up, until the next one.
const FINAL_AGAIN: Duration = Duration::from_secs(1);

/// What became of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckOutcome {
    /// So many tasks are missing.
    Taken {
        /// Tasks that have not acknowledged.
        missing: usize,
    },
    /// The task had acknowledged before; so many others are missing.
    Repeated {
        /// Tasks that have not acknowledged.
        missing: usize,
    },
    /// The checkpoint is complete.
    Completed,
    /// The checkpoint was given up.
    Aborted(FailureReason),
    /// It is over, and nobody remembers how; or it never was.
    Unknown,
    /// The job is at another attempt by now.
    OtherAttempt(u64),
}

impl Coordinator {
    /// What would become of an acknowledgement now; whoever receives one asks before it takes its bytes.
    pub fn would_take(&self, id: CheckpointId, task: TaskId, attempt: u64) -> AckOutcome {
        if attempt != self.attempt {
            return AckOutcome::OtherAttempt(self.attempt);
        }
        let Some(pending) = self.pending.get(&id).filter(|pending| pending.phase != CheckpointPhase::Beginning) else {
            let retained = || self.retained.iter().any(|one| one.id == id).then_some(CheckpointFate::Completed);
            return match self.fate(id).or_else(retained) {
                Some(CheckpointFate::Completed) => AckOutcome::Completed,
                Some(CheckpointFate::Aborted(reason)) => AckOutcome::Aborted(reason),
                None => AckOutcome::Unknown,
            };
        };
        let missing = pending.missing.len();
        if pending.missing.contains(&task) { AckOutcome::Taken { missing } } else { AckOutcome::Repeated { missing } }
    }

    /// A task acknowledges a checkpoint, with all that it stored for it.
    pub fn acknowledge(
        &mut self,
        id: CheckpointId,
        task: TaskId,
        attempt: u64,
        snapshot: TaskSnapshot,
        now: Duration,
    ) -> AckOutcome {
        let outcome = self.would_take(id, task, attempt);
        if !matches!(outcome, AckOutcome::OtherAttempt(_)) {
            self.tasks.heard_of(task, now);
        }
        let Some(pending) = self.pending.get_mut(&id).filter(|_| matches!(outcome, AckOutcome::Taken { .. })) else {
            return outcome;
        };
        pending.missing.remove(&task);
        pending.snapshots.insert(task, snapshot);
        pending.last = Some((task, now));
        let missing = pending.missing.len();
        if missing == 0 {
            self.all_acknowledged(id, now);
        }
        AckOutcome::Taken { missing }
    }

    fn all_acknowledged(&mut self, id: CheckpointId, now: Duration) {
        if let Some(operator) = self.partly_finished(id) {
            let message = format!("operator {operator} has union list state, and some of its tasks have finished");
            self.abort(id, FailureReason::DeclinedClosing, Blame::Coordinator, message, now);
            return self.begin_next(now);
        }
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.phase = CheckpointPhase::Storing;
            self.out.push(Decision::Store(id));
        }
    }

    /// An operator with union list state, some of whose tasks are over, or have finished their operators, and others not. A
    /// restored task could not tell whether an element that it gets is of a task that is done.
    fn partly_finished(&self, id: CheckpointId) -> Option<&str> {
        if !self.rules.after_tasks_finish {
            return None;
        }
        let pending = self.pending.get(&id)?;
        let partly =
            |operator: usize| {
                let over = pending.finished.iter().filter(|task| task.operator == operator).count();
                let acknowledged = pending.snapshots.iter().filter(|(task, _)| task.operator == operator);
                let (done, running) = acknowledged.fold((0, 0), |(done, running), (_, snapshot)| {
                    if snapshot.finished { (done + 1, running) } else { (done, running + 1) }
                });
                over + done > 0 && running > 0 || over > 0 && done > 0
            };
        let operators = self.topology.operators().iter().enumerate();
        operators.filter(|(at, spec)| spec.union_list_state && partly(*at)).map(|(_, spec)| &*spec.id).next()
    }

    /// A task declines a checkpoint. Returns whether it is of this attempt.
    pub fn decline(
        &mut self,
        id: CheckpointId,
        task: TaskId,
        attempt: u64,
        (reason, message): (FailureReason, String),
        now: Duration,
    ) -> bool {
        if attempt != self.attempt {
            return false;
        }
        self.tasks.heard_of(task, now);
        if self.pending.get(&id).is_some_and(|pending| pending.phase != CheckpointPhase::Storing) {
            let message = match message.is_empty() {
                true => format!("task {} declines", self.topology.name(task)),
                false => format!("task {}: {message}", self.topology.name(task)),
            };
            self.abort(id, reason, Blame::Task, message, now);
            self.begin_next(now);
        }
        true
    }

    /// Gives up those that take too long. One that is being stored is as good as complete.
    pub(super) fn expire(&mut self, now: Duration) {
        let late = |phase: CheckpointPhase, expires: Duration| phase != CheckpointPhase::Storing && expires <= now;
        let pending = self.pending.iter().filter(|(_, pending)| late(pending.phase, pending.expires));
        let expired: Vec<CheckpointId> = pending.map(|(id, _)| *id).collect();
        for id in expired {
            self.abort(id, FailureReason::Expired, Blame::Coordinator, String::new(), now);
        }
    }

    /// The metadata of a checkpoint was stored and it is recorded as complete; or it was not.
    pub fn stored(&mut self, id: CheckpointId, stored: Result<(), String>, now: Duration) {
        if let Err(message) = stored {
            self.abort(id, FailureReason::Finalize, Blame::Coordinator, message, now);
            self.restart_if_due();
            self.finish_if_over();
            return self.begin_next(now);
        }
        let Some(pending) = self.pending.remove(&id) else { return };
        let wanted = pending.wanted();
        self.remember(id, CheckpointFate::Completed);
        self.last_completion = Some(now);
        self.failures.succeeded(id);
        let gone = self.retain(id, wanted);
        let last_subsumed = gone.iter().filter(|one| one.kind == RetainedKind::Checkpoint).map(|one| one.id).max();
        self.out.push(Decision::Answer(pending.request.number, RequestOutcome::Completed(id)));
        if wanted != WantedCheckpoint::Savepoint {
            self.drop_older(id, now);
        }
        self.out.push(Decision::Completed { id, wanted, last_subsumed });
        if let Some(last) = last_subsumed {
            self.out.push(Decision::Subsumed(last));
            self.clean_subsumed(&gone);
        }
        // If a task has failed meanwhile, all begin anew from the savepoint, and the job has not stopped.
        if let WantedCheckpoint::Stop(mode) = wanted
            && self.restart_due.is_none()
        {
            self.stopping = Some((pending.request.number, true));
            self.out.push(Decision::Stop(id, mode));
        }
        self.restart_if_due();
        self.finish_if_over();
        self.begin_next(now);
    }

    /// Adds a completed one to those that count, and returns those that go for it. A savepoint belongs to the user.
    fn retain(&mut self, id: CheckpointId, wanted: WantedCheckpoint) -> Vec<RetainedCheckpoint> {
        let kind = match wanted {
            WantedCheckpoint::Savepoint => return vec![],
            // Nothing goes for it: an owner that comes after this one begins from the checkpoint before it, should tasks fail now.
            WantedCheckpoint::Stop(_) => {
                return self.retained.add(RetainedCheckpoint { id, kind: RetainedKind::StopSavepoint }, usize::MAX);
            }
            WantedCheckpoint::Periodic | WantedCheckpoint::Checkpoint => {
                self.full = false;
                RetainedKind::Checkpoint
            }
        };
        self.retained.add(RetainedCheckpoint { id, kind }, self.rules.retained)
    }

    /// Lets those go that are more than are retained: an owner before left them, or the settings changed.
    pub(super) fn subsume_surplus(&mut self) {
        let gone = self.retained.subsume(self.rules.retained);
        let last = gone.iter().filter(|one| one.kind == RetainedKind::Checkpoint).map(|one| one.id).max();
        if let Some(last) = last {
            self.out.push(Decision::Subsumed(last));
            self.clean_subsumed(&gone);
        }
    }

    fn clean_subsumed(&mut self, gone: &[RetainedCheckpoint]) {
        for one in gone.iter().filter(|one| one.kind == RetainedKind::Checkpoint) {
            self.cleaning += 1;
            self.out.push(Decision::CleanSubsumed(one.id));
        }
    }

    /// Gives up those in progress before a completed one, but savepoints that others do not subsume.
    fn drop_older(&mut self, id: CheckpointId, now: Duration) {
        let older = self.pending.range(..id).filter(|(_, pending)| !pending.request.forced);
        let older: Vec<CheckpointId> = older.map(|(id, _)| *id).collect();
        for id in older {
            self.abort(id, FailureReason::Subsumed, Blame::Coordinator, String::new(), now);
        }
    }

    /// Gives a checkpoint up: tasks are told, what was stored for it is freed.
    pub(super) fn abort(
        &mut self,
        id: CheckpointId,
        reason: FailureReason,
        blame: Blame,
        message: String,
        now: Duration,
    ) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let (wanted, request) = (pending.wanted(), pending.request);
        self.remember(id, CheckpointFate::Aborted(reason));
        if pending.phase == CheckpointPhase::Beginning && self.beginning == Some(id) {
            // Nobody knows of it yet. Its recording goes on, and is undone behind it.
            self.beginning = None;
        }
        let message = if message.is_empty() { reason.message().to_owned() } else { message };
        self.out.push(Decision::Aborted { id, wanted, reason, message: message.clone() });
        self.cleaning += 1;
        self.out.push(Decision::CleanAborted(id));
        self.request_failed(request, Some(id), reason, message);
        self.given_up.push_back((id, pending));
        if self.given_up.len() > GIVEN_UP_KEPT {
            self.given_up.pop_front();
        }
        if self.final_asked && self.pending.is_empty() {
            // Tasks at the end of their data wait for one.
            self.final_again = Some(now + FINAL_AGAIN);
        }
        self.count_failure(Some(id), wanted, reason, blame, now);
        self.after_failed_stop(&request, now);
    }

    pub(super) fn count_failure(
        &mut self,
        id: Option<CheckpointId>,
        wanted: WantedCheckpoint,
        reason: FailureReason,
        blame: Blame,
        now: Duration,
    ) {
        if self.failures.failed(id, wanted, reason, blame, self.rules.failures_tolerated) {
            let message = match id {
                Some(id) => format!("checkpoint {id} failed ({reason}), and more in a row than the job tolerates"),
                None => format!("checkpoints failed ({reason}), and more in a row than the job tolerates"),
            };
            self.restart(RestartCause::CheckpointFailures, FailureReason::CoordinatorSuspend, message, now);
        }
    }

    /// The savepoint that the job should have stopped with failed: the job goes on.
    pub(super) fn after_failed_stop(&mut self, request: &CheckpointRequest, now: Duration) {
        if self.stopping == Some((request.number, false)) {
            self.stopping = None;
            if self.tasks.all_run() && !self.ended {
                self.start_schedule(now);
                self.ask_for_the_last(now);
            }
        }
    }

    /// What a checkpoint had alone is freed, or could not be: requests that waited for that may begin.
    pub fn cleaned(&mut self, now: Duration) {
        self.cleaning = self.cleaning.saturating_sub(1);
        self.begin_next(now);
    }
}
