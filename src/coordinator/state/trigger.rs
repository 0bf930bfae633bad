//! Requests, and which of them begins when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::decision::Decision;
use super::failures::Blame;
use super::machine::Coordinator;
use super::pending::{CheckpointPhase, PendingCheckpoint};
use super::queue::{CheckpointRequest, RequestNumber, StopMode, WantedCheckpoint};
use crate::coordinator::reason::FailureReason;
use crate::model::CheckpointId;

impl Coordinator {
    /// Somebody asks for a checkpoint or savepoint. The answer comes with the number that is returned.
    pub fn request(&mut self, wanted: WantedCheckpoint, now: Duration) -> RequestNumber {
        let number = self.ask(wanted, now);
        self.begin_next(now);
        number
    }

    /// The job is to stop with a savepoint: periodic checkpoints end, and those in progress are given up.
    pub fn stop(&mut self, mode: StopMode, now: Duration) -> RequestNumber {
        if self.stopping.is_none() {
            self.suspend(now, FailureReason::CoordinatorSuspend);
        }
        let number = self.ask(WantedCheckpoint::Stop(mode), now);
        self.stopping.get_or_insert((number, false));
        self.begin_next(now);
        number
    }

    /// Queues a request.
    pub(super) fn ask(&mut self, wanted: WantedCheckpoint, now: Duration) -> RequestNumber {
        let number = RequestNumber(self.next_request);
        self.next_request += 1;
        let forced = wanted.is_savepoint() && !self.rules.unaligned;
        let request = CheckpointRequest { number, wanted, forced, at: now };
        if self.ended || self.stopping.is_some() {
            let message = if self.ended { "" } else { "the job is stopping" };
            self.refuse(request, FailureReason::CoordinatorShutdown, message, now);
        } else if let Some(dropped) = self.queue.add(request) {
            self.refuse(dropped, FailureReason::TooManyRequests, "", now);
        }
        number
    }

    /// Lets requests begin whose turn it is.
    pub(super) fn begin_next(&mut self, now: Duration) {
        while let Some(request) = self.choose(now) {
            self.begin(request, now);
        }
    }

    /// The request that may begin now.
    fn choose(&mut self, now: Duration) -> Option<CheckpointRequest> {
        loop {
            if self.is_halted() {
                return None;
            }
            let first = *self.queue.first()?;
            // More being freed than may be in progress: even savepoints wait, or what is to be deleted would pile up.
            if self.beginning.is_some() || self.cleaning > self.rules.concurrent_max {
                return None;
            }
            if self.pending.len() >= self.rules.concurrent_max {
                return if first.forced { self.queue.take() } else { None };
            }
            let too_early = self.too_early(now).filter(|_| first.wanted == WantedCheckpoint::Periodic && !first.forced);
            let Some(delay) = too_early else { return self.queue.take() };
            self.queue.take();
            self.schedule.put_off(now, delay);
            self.refuse(first, FailureReason::MinimumTime, "", now);
        }
    }

    /// The time that is left of the pause after the last completion.
    fn too_early(&self, now: Duration) -> Option<Duration> {
        let may = self.last_completion? + self.rules.min_pause;
        may.checked_sub(now).filter(|left| !left.is_zero())
    }

    fn begin(&mut self, request: CheckpointRequest, now: Duration) {
        if request.wanted == WantedCheckpoint::Periodic && !self.schedule.runs() {
            return self.refuse(request, FailureReason::PeriodicSchedulerShutdown, "", now);
        }
        let (_, finished) = self.tasks.counts();
        if !self.tasks.all_run() || (finished > 0 && !self.rules.after_tasks_finish) {
            return self.refuse(request, FailureReason::NotAllTasksRunning, "", now);
        }
        let id = self.next_id;
        self.next_id = CheckpointId(id.0 + 1);
        let pending = PendingCheckpoint {
            request,
            phase: CheckpointPhase::Beginning,
            attempt: self.attempt,
            begun: now,
            expires: now + self.rules.timeout,
            full: self.full || request.wanted.is_savepoint() || !self.rules.incremental,
            missing: self.tasks.unfinished(),
            finished: self.tasks.finished(),
            snapshots: BTreeMap::new(),
            last: None,
        };
        self.pending.insert(id, pending);
        self.beginning = Some(id);
        self.out.push(Decision::Begin { id, wanted: request.wanted, request: request.number });
    }

    /// A request that begins no checkpoint has failed.
    pub(super) fn refuse(&mut self, request: CheckpointRequest, reason: FailureReason, message: &str, now: Duration) {
        self.request_failed(request, None, reason, message.to_owned());
        self.count_failure(None, request.wanted, reason, Blame::Coordinator, now);
        self.after_failed_stop(&request, now);
    }

    /// A checkpoint was recorded as begun, or could not be.
    ///
    /// # Errors
    /// Whoever calls says why in `recorded`: [`FailureReason::IoException`] if storage failed, else
    /// [`FailureReason::Trigger`].
    pub fn begun(&mut self, id: CheckpointId, recorded: Result<(), (FailureReason, String)>, now: Duration) {
        if self.beginning == Some(id) {
            self.beginning = None;
        }
        match (recorded, self.pending.get_mut(&id)) {
            (Ok(()), Some(pending)) => {
                pending.phase = CheckpointPhase::Collecting;
                self.out.push(Decision::Trigger(id));
            }
            (Err((reason, message)), Some(_)) => self.abort(id, reason, Blame::Coordinator, message, now),
            // It was given up meanwhile, and freed after it was recorded.
            (_, None) => {}
        }
        self.begin_next(now);
    }
}
