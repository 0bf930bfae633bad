//! What the workers of a job are told, in order.
//!
//! The last events are kept, so that whoever was cut off goes on where it was. Who comes later than that, or from another daemon,
//! is told how things stand instead.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::reason::FailureReason;
use super::state::decision::RestartCause;
use super::state::queue::{StopMode, WantedCheckpoint};
use crate::config::CheckpointMode;
use crate::model::{CheckpointId, JobEnd};

/// Events that are kept, and the bytes that all of them may take; the newest one is kept, whatever it takes.
const KEPT: usize = 4096;
const KEPT_BYTES: usize = 4 << 20;

/// A checkpoint that tasks take a snapshot for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerNotice {
    /// Its number.
    pub checkpoint: CheckpointId,
    /// The attempt whose tasks take it.
    pub attempt: u64,
    /// What it is.
    pub wanted: WantedCheckpoint,
    /// When it was triggered, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Milliseconds after which it is given up.
    pub timeout_ms: u64,
    /// What a restore guarantees.
    pub mode: CheckpointMode,
    /// Whether barriers overtake records, at once or after so many milliseconds.
    pub unaligned_after_ms: Option<u64>,
    /// Whether segments of completed checkpoints may be used again.
    pub incremental: bool,
    /// Whether it uses nothing of earlier ones.
    pub full: bool,
    /// Subtasks that share a file of channel state.
    pub channel_subtasks_per_file_max: u32,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorEvent {
    /// Take a snapshot.
    Trigger(TriggerNotice),
    /// It is durable.
    Complete {
        /// Its number.
        checkpoint: CheckpointId,
        /// The attempt that took it.
        attempt: u64,
        /// What it was.
        wanted: WantedCheckpoint,
        /// The handle of its metadata.
        metadata: String,
        /// Where else its metadata is.
        path: Option<String>,
        /// The highest that went for it.
        last_subsumed: Option<CheckpointId>,
    },
    /// These and those before them went.
    Subsume(CheckpointId),
    /// It is given up.
    Abort {
        /// Its number.
        checkpoint: CheckpointId,
        /// The attempt that took it.
        attempt: u64,
        /// What it was.
        wanted: WantedCheckpoint,
        /// Why.
        reason: FailureReason,
        /// The same for people.
        message: String,
    },
    /// All tasks begin anew.
    Restore {
        /// The new attempt.
        attempt: u64,
        /// The job whose checkpoint they begin from.
        job: String,
        /// The checkpoint; `None`: from nothing.
        checkpoint: Option<CheckpointId>,
        /// Why.
        cause: RestartCause,
        /// The same for people.
        message: String,
    },
    /// All tasks end: the savepoint is durable.
    Stop {
        /// The savepoint.
        checkpoint: CheckpointId,
        /// Where it is.
        path: Option<String>,
        /// How they end.
        mode: StopMode,
    },
    /// The job is over.
    End {
        /// How it ended.
        state: JobEnd,
        /// Whether its checkpoints are kept.
        kept: bool,
    },
}

impl CoordinatorEvent {
    /// Bytes that one takes in memory.
    fn bytes(&self) -> usize {
        let texts = match self {
            Self::Trigger(_) | Self::Subsume(_) | Self::End { .. } => 0,
            Self::Complete { metadata, path, .. } => metadata.len() + path.as_ref().map_or(0, String::len),
            Self::Abort { message, .. } => message.len(),
            Self::Restore { job, message, .. } => job.len() + message.len(),
            Self::Stop { path, .. } => path.as_ref().map_or(0, String::len),
        };
        size_of::<NumberedEvent>() + texts
    }
}

/// An event and its number.
pub type NumberedEvent = (u64, CoordinatorEvent);

#[derive(Debug)]
struct Ring {
    events: VecDeque<NumberedEvent>,
    /// Bytes that they take.
    bytes: usize,
    /// The number of the newest one.
    last: u64,
    closed: bool,
}

/// The events of a job.
#[derive(Debug)]
pub struct EventLog {
    /// Drawn when it was begun: numbers of others mean nothing here.
    incarnation: String,
    ring: Mutex<Ring>,
    news: watch::Sender<u64>,
}

/// What there is after an event.
#[derive(Debug, PartialEq, Eq)]
pub enum EventsAfter {
    /// These, maybe none.
    Events(Vec<NumberedEvent>),
    /// Some are not kept any more.
    TooOld,
    /// There are none, and will be none.
    Closed,
}

impl EventLog {
    /// No event yet.
    pub fn new(incarnation: String) -> Self {
        let ring = Ring { events: VecDeque::new(), bytes: 0, last: 0, closed: false };
        Self { incarnation, ring: Mutex::new(ring), news: watch::Sender::new(0) }
    }

    /// Tells all.
    pub fn publish(&self, event: CoordinatorEvent) {
        let last = {
            let mut ring = self.ring.lock();
            ring.last += 1;
            let last = ring.last;
            ring.bytes += event.bytes();
            ring.events.push_back((last, event));
            while ring.events.len() > KEPT || (ring.bytes > KEPT_BYTES && ring.events.len() > 1) {
                let Some((_, oldest)) = ring.events.pop_front() else { break };
                ring.bytes -= oldest.bytes();
            }
            last
        };
        self.news.send_replace(last);
    }

    /// There will be no more.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.news.send_modify(|_| {});
    }

    /// The number of the newest event.
    pub fn last(&self) -> u64 {
        self.ring.lock().last
    }

    /// The id of an event, as workers keep it.
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.incarnation)
    }

    /// The number of an event by its id; `None` if it is not of this log.
    pub fn number(&self, id: &str) -> Option<u64> {
        let number = id.strip_prefix(&self.incarnation)?.strip_prefix('-')?.parse().ok()?;
        (number <= self.last()).then_some(number)
    }

    /// At most `max` events after one.
    pub fn after(&self, number: u64, max: usize) -> EventsAfter {
        let ring = self.ring.lock();
        let first = ring.events.front().map_or(ring.last + 1, |(first, _)| *first);
        if number + 1 < first {
            return EventsAfter::TooOld;
        }
        let skipped = usize::try_from(number + 1 - first).unwrap_or(usize::MAX);
        let events: Vec<NumberedEvent> = ring.events.iter().skip(skipped).take(max).cloned().collect();
        if events.is_empty() && ring.closed { EventsAfter::Closed } else { EventsAfter::Events(events) }
    }

    /// Changes with each event. Subscribe before looking: nothing is missed then.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsume(number: u64) -> CoordinatorEvent {
        CoordinatorEvent::Subsume(CheckpointId(number))
    }

    #[test]
    fn who_was_cut_off_goes_on_where_it_was() {
        let log = EventLog::new("abc".into());
        (1..=3).for_each(|number| log.publish(subsume(number)));

        let at = log.number("abc-1").unwrap();

        assert_eq!(log.after(at, 9), EventsAfter::Events(vec![(2, subsume(2)), (3, subsume(3))]));
        assert_eq!(log.after(at, 1), EventsAfter::Events(vec![(2, subsume(2))]));
        assert_eq!(log.after(3, 9), EventsAfter::Events(vec![]));
    }

    #[test]
    fn ids_of_another_log_or_of_what_has_not_been_are_not_taken() {
        let log = EventLog::new("abc".into());
        log.publish(subsume(1));

        for id in ["abd-1", "abc-2", "abc", "1", ""] {
            assert_eq!(log.number(id), None, "{id}");
        }
    }

    #[test]
    fn what_is_too_old_is_said_to_be() {
        let log = EventLog::new("abc".into());
        (0..=KEPT as u64).for_each(|number| log.publish(subsume(number)));

        assert_eq!(log.after(0, 9), EventsAfter::TooOld);
        assert!(matches!(log.after(1, 9), EventsAfter::Events(events) if events.len() == 9));
    }

    #[test]
    fn long_messages_are_kept_up_to_a_number_of_bytes() {
        let log = EventLog::new("abc".into());
        let abort = |bytes: usize| CoordinatorEvent::Abort {
            checkpoint: CheckpointId(1),
            attempt: 1,
            wanted: WantedCheckpoint::Checkpoint,
            reason: FailureReason::Declined,
            message: "m".repeat(bytes),
        };
        (0..10).for_each(|_| log.publish(abort(KEPT_BYTES / 4)));

        assert_eq!(log.after(6, 9), EventsAfter::TooOld);
        assert!(matches!(log.after(7, 9), EventsAfter::Events(events) if events.len() == 3));
        log.publish(abort(2 * KEPT_BYTES));
        assert_eq!(log.after(9, 9), EventsAfter::TooOld);
        assert!(matches!(log.after(10, 9), EventsAfter::Events(events) if events.len() == 1));
        (0..KEPT as u64).for_each(|number| log.publish(subsume(number)));
        assert!(matches!(log.after(11, KEPT), EventsAfter::Events(events) if events.len() == KEPT));
    }

    #[test]
    fn a_closed_log_tells_its_last_events_first() {
        let log = EventLog::new("abc".into());
        log.publish(subsume(1));
        log.close();

        assert_eq!(log.after(0, 9), EventsAfter::Events(vec![(1, subsume(1))]));
        assert_eq!(log.after(1, 9), EventsAfter::Closed);
    }
}
