//! What workers and people are told of checkpoints, and how those went.

use std::time::Duration;

use super::events::{CoordinatorEvent, EventsAfter, TriggerNotice};
use super::history::CheckpointFigures;
use super::job::JobActor;
use super::memory::PaidAck;
use super::reason::FailureReason;
use super::state::decision::RequestOutcome;
use super::state::machine::JobPhase;
use super::state::pending::PendingCheckpoint;
use super::state::queue::{RequestNumber, StopMode, WantedCheckpoint};
use crate::metrics::labels::TakenKind;
use crate::model::CheckpointId;

impl JobActor {
    /// What is told of a checkpoint that tasks take a snapshot for.
    pub(super) fn notice(&self, id: CheckpointId, pending: &PendingCheckpoint) -> TriggerNotice {
        let rules = self.coordinator.rules();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let unaligned = rules.unaligned && !pending.wanted().is_savepoint();
        TriggerNotice {
            checkpoint: id,
            attempt: pending.attempt,
            wanted: pending.wanted(),
            timestamp_ms: self.triggered_ms(id),
            timeout_ms: millis(rules.timeout),
            mode: rules.mode,
            unaligned_after_ms: unaligned.then(|| millis(rules.aligned_timeout)),
            incremental: !pending.full,
            full: pending.full,
            channel_subtasks_per_file_max: rules.channel_subtasks_per_file_max,
        }
    }

    pub(super) fn tell_trigger(&self, id: CheckpointId) {
        if let Some(pending) = self.coordinator.pending().get(&id) {
            // Not before: whoever is told of a checkpoint may acknowledge it.
            self.requests.show(pending.request.number, |view| view.checkpoint = Some(id));
            self.events.publish(CoordinatorEvent::Trigger(self.notice(id, pending)));
        }
    }

    pub(super) fn tell_completed(
        &mut self,
        id: CheckpointId,
        wanted: WantedCheckpoint,
        last_subsumed: Option<CheckpointId>,
    ) {
        let durable = self.durable.remove(&id);
        let (_, attempt) = self.count_end(id);
        self.storage.engine().metrics().checkpoints_completed.inc();
        let (metadata, published) = durable.map(|durable| (durable.metadata, durable.published)).unwrap_or_default();
        let path = published.map(|(bucket, key)| path_of(wanted, &bucket, &key));
        if wanted == WantedCheckpoint::Savepoint {
            return;
        }
        self.events.publish(CoordinatorEvent::Complete {
            checkpoint: id,
            attempt,
            wanted,
            metadata,
            path,
            last_subsumed,
        });
    }

    pub(super) fn tell_stop(&mut self, id: CheckpointId, mode: StopMode) {
        let known = self.remembered.stopping.as_ref().and_then(|stopping| stopping.path.clone());
        let path = known.clone().or_else(|| self.requests.path(id));
        if let Some(stopping) = self.remembered.stopping.as_mut().filter(|_| known != path) {
            // For the next owner, which has no requests. Without it, it tells of the stop all the same.
            stopping.path.clone_from(&path);
            self.record(Box::new(|_| {}));
        }
        self.events.publish(CoordinatorEvent::Stop { checkpoint: id, path, mode });
        self.stop_told = Some(self.events.last());
    }

    /// The last event that a worker has missed nothing by which comes in now: it is told of the stop of the job, like all others.
    pub(super) fn last_event_for_whoever_comes(&self) -> u64 {
        let stop = self.stop_told.filter(|_| self.coordinator.phase() == JobPhase::Stopping);
        let before = stop.map(|told| told - 1).filter(|before| self.events.after(*before, 0) != EventsAfter::TooOld);
        before.unwrap_or_else(|| self.events.last())
    }

    pub(super) fn answer(&self, number: RequestNumber, end: RequestOutcome) {
        let wanted = self.requests.wanted(number);
        self.requests.show(number, |view| match end {
            RequestOutcome::Completed(id) => {
                let published = self.durable.get(&id).and_then(|durable| durable.published.as_ref());
                view.path = published.zip(wanted).map(|((bucket, key), wanted)| path_of(wanted, bucket, key));
                view.checkpoint = Some(id);
                view.ended = Some(Ok(()));
            }
            RequestOutcome::Failed(id, reason, message) => {
                view.checkpoint = id;
                view.ended = Some(Err((reason, message)));
            }
        });
    }

    /// One in progress is over. Returns when it was triggered, and its attempt.
    pub(super) fn count_end(&mut self, id: CheckpointId) -> (u64, u64) {
        self.paid.remove(&id);
        let known = self.triggered.remove(&id);
        if known.is_some() {
            self.storage.engine().metrics().checkpoints_in_progress.dec();
        }
        known.unwrap_or((0, self.coordinator.attempt()))
    }

    /// An acknowledgement is kept until its checkpoint is over.
    pub(super) fn keep_paid(&mut self, id: CheckpointId, paid: Option<PaidAck>) {
        let Some(paid) = paid else { return };
        match self.paid.get_mut(&id) {
            Some(known) => known.merge(paid),
            None => drop(self.paid.insert(id, paid)),
        }
    }

    pub(super) fn show_failed(&mut self, id: CheckpointId, triggered: u64, reason: FailureReason) {
        if let Some(pending) = self.coordinator.take_given_up(id) {
            let figures = CheckpointFigures::of(id, &pending, triggered, self.coordinator.topology(), self.now());
            self.history.add(CheckpointFigures { ended: Some(Err(reason)), ..figures });
        }
    }

    pub(super) fn triggered_ms(&self, id: CheckpointId) -> u64 {
        self.triggered.get(&id).map_or(0, |(at, _)| *at)
    }

    pub(super) fn show_figures(&mut self, id: CheckpointId, completed: bool) {
        let Some(pending) = self.coordinator.pending().get(&id).filter(|_| completed) else { return };
        let triggered = self.triggered_ms(id);
        let figures = CheckpointFigures::of(id, pending, triggered, self.coordinator.topology(), self.now());
        let metrics = self.storage.engine().metrics();
        let kind = if figures.savepoint { TakenKind::Savepoint } else { TakenKind::Checkpoint };
        metrics.checkpoint_seconds.of(kind).observe(figures.duration.as_secs_f64());
        metrics.last_checkpoint_seconds.set(figures.duration.as_secs_f64());
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.last_checkpoint_bytes.set(bytes(figures.bytes));
        metrics.last_checkpoint_full_bytes.set(bytes(figures.bytes.saturating_add(figures.bytes_reused)));
        self.history.add(CheckpointFigures { ended: Some(Ok(())), ..figures });
    }

    /// All checkpoints that are known, the newest first.
    pub(super) fn figures(&self) -> Vec<CheckpointFigures> {
        let now = self.now();
        let topology = self.coordinator.topology();
        let pending = self.coordinator.pending().iter().rev().map(|(id, pending)| {
            let triggered = self.triggered_ms(*id);
            CheckpointFigures::of(*id, pending, triggered, topology, now)
        });
        pending.chain(self.history.iter().cloned()).collect()
    }
}

/// How people name what is published: a checkpoint by its metadata, a savepoint by its folder.
fn path_of(wanted: WantedCheckpoint, bucket: &str, key: &str) -> String {
    let key = match wanted.is_savepoint() {
        true => key.rsplit_once('/').map_or(key, |(folder, _)| folder),
        false => key,
    };
    format!("s3://{bucket}/{key}")
}
