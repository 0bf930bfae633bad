"""A checkpoint as a task sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Union

from .events import Aborted, Completed, Ended, Stopped, Subsumed, Trigger
from .state import Snapshot, State, states_of

if TYPE_CHECKING:
    from .worker import Worker


@dataclass(frozen=True)
class Acknowledged:
    """What became of an acknowledgement."""

    #: ``False``: the checkpoint was over before; forget what was made for it.
    counts: bool
    #: What was given to the checkpoint, in that order, as it is stored. Give those of scope ``shared`` to a later checkpoint once
    #: this one has completed. After a lost answer it may be that one is told without its segment: it is stored again then.
    states: tuple[State, ...] = ()
    #: Why it does not count.
    reason: Optional[str] = None

    def __bool__(self) -> bool:
        return self.counts


class Checkpoint:
    """A checkpoint, or savepoint, that this task takes part in: :meth:`put` its state, or :meth:`decline`."""

    def __init__(self, worker: "Worker", trigger: Trigger) -> None:
        self._worker = worker
        self.trigger = trigger
        #: When it arrived, on the monotonic clock.
        self.arrived = time.monotonic()
        self.outcome: Union[None, Completed, Aborted] = None

    def __repr__(self) -> str:
        return f"<{self.trigger.kind} {self.number} of {self._worker.job}>"

    @property
    def number(self) -> int:
        """Its number."""
        return self.trigger.checkpoint

    @property
    def is_savepoint(self) -> bool:
        """Whether it is a savepoint."""
        return self.trigger.kind == "savepoint"

    @property
    def stop(self) -> Optional[str]:
        """``drain`` or ``suspend`` if the job stops with it: after the snapshot no records are sent; wait for
        :meth:`wait`, and go on only if it was aborted."""
        return self.trigger.stop

    @property
    def aborted(self) -> bool:
        """Whether it was aborted: a snapshot that is still being taken is of no use."""
        return isinstance(self.outcome, Aborted)

    async def put(self, state: Snapshot = (), *, finished: bool = False, **figures: int) -> Acknowledged:
        """Stores the state of the task, and acknowledges. Returns once the bytes are durable.

        A checkpoint that is over meanwhile is no error: the answer does not count then, and what was stored is freed.

        Args:
            state: bytes, or states.
            finished: the operators of the task have finished; it has no state then.
            figures: ``bytes_in_flight``, ``alignment_ms``, ``sync_ms``, ``async_ms``, ``start_delay_ms``.

        Raises:
            Restart: the job has restarted.
            StateRefused: stored states may not be used again; store them again, and call this again.
        """
        return await self._worker._acknowledge(self, states_of(state), finished, figures)

    async def decline(self, reason: Optional[str] = None, message: Optional[str] = None) -> None:
        """Aborts the checkpoint, for one of Flink's reasons.

        Raises:
            Restart: the job has restarted.
        """
        await self._worker._decline(self, reason, message)

    async def wait(self) -> Union[Completed, Aborted]:
        """Waits until it is completed or aborted.

        Raises:
            Restart: the job has restarted.
        """
        await self._worker._until_over(self)
        # The end of the job is told after all that completed.
        return self.outcome or Aborted(self.number, self.trigger.kind, "", "the job has ended")


#: What a worker is told.
Event = Union[Checkpoint, Completed, Aborted, Subsumed, Stopped, Ended]
