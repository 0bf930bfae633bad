"""What a task was told: events that wait to be asked for, and what became of its checkpoints.

It changes as events come in, one after the other; nothing here waits. An event may come twice, and ``hello`` stands for those that
were missed; whoever asks hears of each checkpoint once, and of its end once.
"""

from __future__ import annotations

import collections
from typing import Any, Callable, Optional, Union

from .checkpoint import Checkpoint, Event
from .errors import EskerError, Restart
from .events import Aborted, Completed, Ended, Raw, Stopped, Subsumed, Trigger

_HEARTBEAT_SECONDS = 10.0


class Told:
    """Of one task."""

    def __init__(self, job: str, checkpoint_of: Callable[[Trigger], Checkpoint]) -> None:
        self.job = job
        self._checkpoint_of = checkpoint_of
        #: The attempt of the task; events of others do not concern it.
        self.attempt = 0
        #: The newest attempt that was told of.
        self.newest_attempt = 0
        #: Seconds between two heartbeats.
        self.heartbeat = _HEARTBEAT_SECONDS
        #: The newest completed checkpoint.
        self.completed: Optional[int] = None
        #: The end of the job, or its stop with a savepoint.
        self.over: Union[None, Stopped, Ended] = None
        #: Why the task cannot go on.
        self.trouble: Optional[EskerError] = None
        self.waiting: "collections.deque[Event]" = collections.deque()
        self._open: dict[int, Checkpoint] = {}
        #: Savepoints of which it was missed what became of them.
        self.unknown: set[int] = set()
        #: The newest checkpoint that was triggered. Numbers grow, so that one up to this was told before.
        self._triggered = -1

    def begin(self, attempt: int) -> None:
        """Forgets what concerned the attempt before."""
        self.attempt = attempt
        self.over, self.trouble = None, None
        self.waiting.clear()
        self._open.clear()
        self.unknown.clear()
        self._triggered = -1

    def next(self) -> Optional[Event]:
        """The next event, if there is one. May be asked from any thread."""
        while self.waiting:
            try:
                event = self.waiting.popleft()
            except IndexError:
                return None
            # One that was aborted before anybody looked at it needs no snapshot.
            if not (isinstance(event, Checkpoint) and event.outcome is not None):
                return event
        return None

    def raise_trouble(self) -> None:
        """Raises what there is."""
        if self.trouble is not None:
            raise self.trouble

    def restart(
        self, attempt: Optional[int], checkpoint: Optional[int], cause: str, message: Optional[str]
    ) -> EskerError:
        """Notes that the job has restarted. Returns what there is to raise: the first trouble."""
        self.newest_attempt = max(self.newest_attempt, attempt or 0)
        if not isinstance(self.trouble, Restart):
            self.trouble = Restart(self.job, attempt, checkpoint, cause, message)
        return self.trouble

    def end(self, over: Union[Stopped, Ended]) -> None:
        """Notes the end of the job, or its stop; the second time nothing happens."""
        if self.over is None or isinstance(over, Ended) and not isinstance(self.over, Ended):
            self.over = over
            self.waiting.append(over)

    def settle_savepoint(self, number: int, completed: bool) -> None:
        """Notes what became of a savepoint, by who has looked: of one that completes nothing is told unless the job stops
        with it."""
        self.unknown.discard(number)
        savepoint = self._open.get(number)
        if savepoint is None:
            return
        if not completed:
            self._settle(Aborted(number, "savepoint"))
        elif savepoint.stop is None:
            savepoint.outcome = Completed(number, "savepoint")
            del self._open[number]
        else:
            self._settle(Completed(number, "savepoint"))
            self.end(Stopped(number, None, savepoint.stop == "drain"))

    def note_heartbeat(self, answer: Any) -> None:
        """Notes how often heartbeats are wanted."""
        told = answer.get("heartbeat_ms")
        if isinstance(told, (int, float)) and told > 0:
            self.heartbeat = told / 1000

    def take_in(self, raw: Raw) -> None:
        """Takes in an event."""
        data = raw.data
        if raw.name == "hello":
            self._take_in_hello(data)
        elif raw.name == "trigger":
            self._take_in_trigger(Trigger.of(data))
        elif raw.name == "complete":
            if data.get("attempt", self.attempt) == self.attempt:
                self._settle(
                    Completed(
                        data["checkpoint"],
                        data.get("kind", "checkpoint"),
                        data.get("metadata"),
                        data.get("path"),
                        data.get("last_subsumed"),
                    )
                )
        elif raw.name == "abort":
            if data.get("attempt", self.attempt) == self.attempt:
                self._settle(
                    Aborted(
                        data["checkpoint"], data.get("kind", "checkpoint"), data.get("reason", ""), data.get("message") or ""
                    )
                )
        elif raw.name == "subsume":
            self.waiting.append(Subsumed(data["checkpoint"]))
        elif raw.name == "restore":
            if data["attempt"] > self.attempt:
                self.restart(data["attempt"], data.get("checkpoint"), data.get("cause", "RESTORE"), data.get("message"))
        elif raw.name == "stop":
            self.end(Stopped(data["checkpoint"], data.get("path"), bool(data.get("drain"))))
        elif raw.name == "end":
            self.end(Ended(data["state"], bool(data.get("kept"))))
        # Others are of a later version, and mean nothing to this one.

    def _take_in_hello(self, data: Any) -> None:
        """How things stand, in place of events that were missed."""
        self.note_heartbeat(data)
        if data["attempt"] > self.attempt:
            self.restart(data["attempt"], None, "ATTEMPT", None)
            return
        pending = [Trigger.of(trigger) for trigger in data.get("pending") or ()]
        numbers = {trigger.checkpoint for trigger in pending}
        completed = data.get("completed")
        for number in sorted(self._open):
            if number in numbers:
                continue
            kind = self._open[number].trigger.kind
            if kind != "checkpoint":
                # Savepoints are not among what is told as completed: somebody has to look.
                self.unknown.add(number)
            elif completed is not None and number <= completed:
                self._settle(Completed(number))
            else:
                self._settle(Aborted(number))
        if completed is not None and (self.completed is None or completed > self.completed):
            self.completed = completed
        for trigger in sorted(pending, key=lambda trigger: trigger.checkpoint):
            self._take_in_trigger(trigger)

    def _take_in_trigger(self, trigger: Trigger) -> None:
        if trigger.attempt > self.attempt:
            self.restart(trigger.attempt, None, "ATTEMPT", None)
        elif trigger.attempt == self.attempt and trigger.checkpoint > self._triggered:
            self._triggered = trigger.checkpoint
            checkpoint = self._checkpoint_of(trigger)
            self._open[trigger.checkpoint] = checkpoint
            self.waiting.append(checkpoint)

    def _settle(self, outcome: Union[Completed, Aborted]) -> None:
        """Notes the end of a checkpoint. The second time nothing happens."""
        checkpoint = self._open.pop(outcome.checkpoint, None)
        if checkpoint is None:
            return
        checkpoint.outcome = outcome
        if isinstance(outcome, Completed) and outcome.kind == "checkpoint":
            self.completed = max(outcome.checkpoint, self.completed or 0)
        self.waiting.append(outcome)
