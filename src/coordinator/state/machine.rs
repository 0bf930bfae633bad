//! [`Coordinator`]: what it knows, and how time changes that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::decision::{Decision, RequestOutcome, RestartCause};
use super::failures::{Blame, FailureCount};
use super::pending::{CheckpointPhase, PendingCheckpoint};
use super::queue::{CheckpointRequest, RequestNumber, RequestQueue, WantedCheckpoint};
use super::retained::{RetainedCheckpoint, RetainedCheckpoints, RetainedKind};
use super::schedule::Schedule;
use super::tasks::TaskTable;
use crate::config::JobCheckpointing;
use crate::coordinator::reason::FailureReason;
use crate::coordinator::topology::{TaskId, Topology};
use crate::model::CheckpointId;

/// Checkpoints that are over and of which it is remembered why.
const REMEMBERED: usize = 16;

/// What a coordinator begins with.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The settings of the job.
    pub rules: JobCheckpointing,
    /// Its operators.
    pub topology: Topology,
    /// The attempt.
    pub attempt: u64,
    /// The first one of the job.
    pub first_attempt: u64,
    /// Whether all tasks have run in it; then, which of them are over.
    pub ran: Option<BTreeSet<TaskId>>,
    /// The lowest number that no checkpoint had.
    pub next_id: CheckpointId,
    /// Completed checkpoints that count, the oldest first.
    pub retained: Vec<RetainedCheckpoint>,
    /// Whether the next checkpoint may use nothing of earlier ones.
    pub full: bool,
    /// A number between 0 and 1 that decides when the first periodic checkpoint comes.
    pub draw: f64,
}

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFate {
    /// It completed.
    Completed,
    /// It was given up.
    Aborted(FailureReason),
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobPhase {
    /// Not all tasks have run yet in the first attempt.
    Created,
    /// All tasks have run in this attempt.
    Running,
    /// Not all tasks run yet in a later attempt.
    Restarting,
    /// It takes the savepoint that it stops with, or has taken it.
    Stopping,
    /// It is over.
    Ended,
}

impl JobPhase {
    /// Whether all tasks have begun: whoever begins now takes the place of one that is gone.
    pub fn has_begun(self) -> bool {
        matches!(self, Self::Running | Self::Stopping)
    }
}

/// Decides about the checkpoints of one job. See the module's docs.
#[derive(Debug, Clone)]
pub struct Coordinator {
    pub(super) rules: JobCheckpointing,
    pub(super) topology: Topology,
    pub(super) attempt: u64,
    first_attempt: u64,
    pub(super) tasks: TaskTable,
    pub(super) next_id: CheckpointId,
    pub(super) pending: BTreeMap<CheckpointId, PendingCheckpoint>,
    pub(super) queue: RequestQueue,
    /// The one that is being recorded: no other begins meanwhile.
    pub(super) beginning: Option<CheckpointId>,
    /// Checkpoints that are being freed.
    pub(super) cleaning: usize,
    pub(super) schedule: Schedule,
    /// Operators whose last report is that they have a backlog.
    pub(super) backlog: BTreeSet<usize>,
    pub(super) failures: FailureCount,
    pub(super) retained: RetainedCheckpoints,
    /// When the last one completed.
    pub(super) last_completion: Option<Duration>,
    /// Those that are over, the last ones.
    pub(super) over: VecDeque<(CheckpointId, CheckpointFate)>,
    pub(super) full: bool,
    /// The request for the savepoint that the job stops with; whether it is durable.
    pub(super) stopping: Option<(RequestNumber, bool)>,
    /// Whether the last checkpoint was asked for that tasks at the end of their data wait for.
    pub(super) final_asked: bool,
    /// When it is asked for again, because it was given up.
    pub(super) final_again: Option<Duration>,
    /// When the job whose tasks are over ends, because it could not before.
    pub(super) finish_again: Option<Duration>,
    /// Nothing begins: somebody has chosen another state, and what is being stored comes to its end first.
    halted: bool,
    pub(super) ended: bool,
    pub(super) restart_due: Option<(RestartCause, String)>,
    pub(super) next_request: u64,
    pub(super) looked_for_lost: Duration,
    draw: f64,
    pub(super) out: Vec<Decision>,
    /// The last ones that were given up, for those who look.
    pub(super) given_up: VecDeque<(CheckpointId, PendingCheckpoint)>,
}

impl Coordinator {
    /// A coordinator at the time `now`.
    pub fn new(beginning: Beginning, now: Duration) -> Self {
        let Beginning { rules, topology, attempt, first_attempt, ran, next_id, retained, full, draw } = beginning;
        let mut tasks = TaskTable::new(&topology, now);
        if let Some(finished) = ran {
            tasks.settle(&finished);
        }
        let mut made = Self {
            rules,
            topology,
            attempt,
            first_attempt,
            tasks,
            next_id,
            pending: BTreeMap::new(),
            queue: RequestQueue::default(),
            beginning: None,
            cleaning: 0,
            schedule: Schedule::default(),
            backlog: BTreeSet::new(),
            failures: FailureCount::default(),
            retained: RetainedCheckpoints::new(retained),
            last_completion: None,
            over: VecDeque::new(),
            full,
            stopping: None,
            final_asked: false,
            final_again: None,
            finish_again: None,
            halted: false,
            ended: false,
            restart_due: None,
            next_request: 0,
            looked_for_lost: now,
            draw,
            out: vec![],
            given_up: VecDeque::new(),
        };
        // An owner before may have died between a completion and what goes for it. For the savepoint of a stop nothing does.
        if made.retained.newest().is_none_or(|newest| newest.kind != RetainedKind::StopSavepoint) {
            made.subsume_surplus();
        }
        made.finish_if_over();
        made
    }

    /// What was decided since the last call, in order.
    pub fn decisions(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.out)
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Duration) {
        self.expire(now);
        self.look_for_lost(now);
        let interval = self.interval();
        if self.schedule.fires(now, interval) {
            self.ask(WantedCheckpoint::Periodic, now);
        }
        if self.final_again.is_some_and(|due| due <= now) {
            (self.final_asked, self.final_again) = (false, None);
            self.ask_for_the_last(now);
        }
        if self.finish_again.take_if(|due| *due <= now).is_some() {
            self.finish_if_over();
        }
        self.begin_next(now);
    }

    /// When it has to be told of the time again, at the latest.
    pub fn next_wake(&self) -> Option<Duration> {
        let expire = self.pending.values().filter(|pending| pending.phase != CheckpointPhase::Storing);
        let expiry = expire.map(|pending| pending.expires).min();
        let lost = (self.tasks.may_be_lost() && !self.ended).then(|| self.looked_for_lost + self.look_every());
        [self.schedule.planned(), expiry, lost, self.final_again, self.finish_again].into_iter().flatten().min()
    }

    fn look_every(&self) -> Duration {
        self.rules.heartbeat_timeout / 8
    }

    /// Between two periodic checkpoints now; `None` if there are none.
    pub(super) fn interval(&self) -> Option<Duration> {
        let usual = self.rules.interval.map(|interval| interval.max(self.rules.min_pause));
        if self.backlog.is_empty() {
            return usual;
        }
        match self.rules.interval_during_backlog {
            None => self.rules.interval,
            Some(interval) if interval.is_zero() => None,
            Some(interval) => Some(interval),
        }
    }

    /// All tasks run: periodic checkpoints begin, the first after a delay that others do not have.
    pub(super) fn start_schedule(&mut self, now: Duration) {
        let Some(usual) = self.rules.interval.map(|interval| interval.max(self.rules.min_pause)) else { return };
        let least = self.rules.min_pause;
        // Only the first start is spread: later ones have waited long enough.
        let draw = std::mem::take(&mut self.draw);
        self.schedule.start(now, least + (usual - least).mul_f64(draw.clamp(0.0, 1.0)));
    }

    /// No periodic checkpoints any more; what is queued and pending is given up. What all tasks have acknowledged is as good as
    /// complete, and comes to its end.
    pub(super) fn suspend(&mut self, now: Duration, reason: FailureReason) {
        self.schedule.stop();
        for request in self.queue.take_all() {
            self.request_failed(request, None, reason, String::new());
            self.after_failed_stop(&request, now);
        }
        let pending = self.pending.iter().filter(|(_, pending)| pending.phase != CheckpointPhase::Storing);
        let pending: Vec<CheckpointId> = pending.map(|(id, _)| *id).collect();
        for id in pending {
            self.abort(id, reason, Blame::Coordinator, String::new(), now);
        }
    }

    fn look_for_lost(&mut self, now: Duration) {
        if self.ended || now < self.looked_for_lost + self.look_every() {
            return;
        }
        self.looked_for_lost = now;
        if let Some(task) = self.tasks.lost(now, self.rules.heartbeat_timeout) {
            let message = format!("nothing was heard of task {} for heartbeat.timeout", self.topology.name(task));
            self.restart(RestartCause::TaskLost, FailureReason::CoordinatorSuspend, message, now);
        }
    }

    /// All tasks begin anew.
    pub(super) fn restart(&mut self, cause: RestartCause, reason: FailureReason, message: String, now: Duration) {
        if self.ended {
            return;
        }
        // First the attempt: what fails meanwhile does not fail the job once more.
        self.attempt += 1;
        self.tasks = TaskTable::new(&self.topology, now);
        (self.final_asked, self.final_again) = (false, None);
        self.suspend(now, reason);
        self.stopping = None;
        self.restart_due.get_or_insert((cause, message));
        self.restart_if_due();
    }

    /// Tells of a restart once nothing is being stored: tasks begin anew from the newest checkpoint that there will be.
    pub(super) fn restart_if_due(&mut self) {
        if !self.is_storing()
            && let Some((cause, message)) = self.restart_due.take()
        {
            self.out.push(Decision::Restart { cause, message });
        }
    }

    /// What was halted may begin again.
    pub(super) fn go_on(&mut self) {
        self.halted = false;
    }

    /// Whether nothing may begin.
    pub(super) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether the metadata of a checkpoint is being stored.
    pub fn is_storing(&self) -> bool {
        self.pending.values().any(|pending| pending.phase == CheckpointPhase::Storing)
    }

    /// Gives up what is in progress and begins nothing, until a restore, the end, or [`resume`](Self::resume).
    pub fn halt(&mut self, now: Duration) {
        self.halted = true;
        self.suspend(now, FailureReason::CoordinatorSuspend);
    }

    /// A request ends without a checkpoint, or with one that failed.
    pub(super) fn request_failed(
        &mut self,
        request: CheckpointRequest,
        id: Option<CheckpointId>,
        reason: FailureReason,
        message: String,
    ) {
        if request.wanted != WantedCheckpoint::Periodic {
            let message = if message.is_empty() { reason.message().to_owned() } else { message };
            self.out.push(Decision::Answer(request.number, RequestOutcome::Failed(id, reason, message)));
        }
    }

    pub(super) fn remember(&mut self, id: CheckpointId, fate: CheckpointFate) {
        self.over.push_back((id, fate));
        if self.over.len() > REMEMBERED {
            self.over.pop_front();
        }
    }

    /// What had come of a checkpoint that was given up; once.
    pub fn take_given_up(&mut self, id: CheckpointId) -> Option<PendingCheckpoint> {
        let at = self.given_up.iter().position(|(known, _)| *known == id)?;
        self.given_up.remove(at).map(|(_, pending)| pending)
    }

    /// How a checkpoint ended, if that is remembered.
    pub fn fate(&self, id: CheckpointId) -> Option<CheckpointFate> {
        self.over.iter().rev().find(|(over, _)| *over == id).map(|(_, fate)| *fate)
    }

    /// Where the job stands.
    pub fn phase(&self) -> JobPhase {
        match () {
            () if self.ended => JobPhase::Ended,
            () if self.stopping.is_some() => JobPhase::Stopping,
            // Also while another owner has not heard of all of them: whoever begins now takes the place of one that has run.
            () if self.tasks.is_settled() => JobPhase::Running,
            () if self.restarts() > 0 => JobPhase::Restarting,
            () => JobPhase::Created,
        }
    }

    /// The settings of the job.
    pub fn rules(&self) -> &JobCheckpointing {
        &self.rules
    }

    /// Its operators.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The attempt.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The first attempt of the job.
    pub fn first_attempt(&self) -> u64 {
        self.first_attempt
    }

    /// How often all tasks have begun anew.
    pub fn restarts(&self) -> u64 {
        self.attempt - self.first_attempt
    }

    /// Its tasks.
    pub fn tasks(&self) -> &TaskTable {
        &self.tasks
    }

    /// Checkpoints in progress, by number.
    pub fn pending(&self) -> &BTreeMap<CheckpointId, PendingCheckpoint> {
        &self.pending
    }

    /// Requests that wait, and checkpoints that are being freed.
    pub fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.cleaning)
    }

    /// Completed checkpoints that count.
    pub fn retained(&self) -> &RetainedCheckpoints {
        &self.retained
    }

    /// Operators whose last report is that they have a backlog.
    pub fn backlog(&self) -> &BTreeSet<usize> {
        &self.backlog
    }

    /// Whether a source has a backlog.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Failed checkpoints in a row.
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures.in_a_row()
    }

    /// The lowest number that no checkpoint had.
    pub fn next_id(&self) -> CheckpointId {
        self.next_id
    }

    /// Whether the next checkpoint may use nothing of earlier ones.
    pub fn is_full(&self) -> bool {
        self.full
    }
}
