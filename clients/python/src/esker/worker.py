"""A task of a coordinated job: gets its state, takes part in checkpoints, says how it is.

::

    async with Worker("wordcount", "count", 0) as worker:
        state = await worker.restore()
        async for checkpoint in worker.checkpoints():
            await checkpoint.put(take_snapshot())

A worker that has work between checkpoints asks :meth:`Worker.poll`, which does not wait. One task runs for each operator and
subtask; several may run in one process.

Leaving the block says that the task has finished; an exception that leaves it says that the task has failed, and the job
restarts. When the job restarts for whatever reason, everything that a worker is asked raises :class:`Restart`: leave the block,
and begin again. :meth:`Worker.run` does that.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import os
import random
import socket
import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, AsyncGenerator, Awaitable, Callable, Optional, TypeVar, Union

from ._http import at_most
from .client import Client
from .errors import (
    ApiError,
    AttemptOver,
    BadAnswer,
    CheckpointOver,
    Conflict,
    EskerError,
    JobEnded,
    NotFound,
    Restart,
)
from .events import Aborted, Completed, Ended, Raw, Stopped, Subsumed, Trigger
from .restore import read_entries
from .state import KeyGroups, Restored, Snapshot, State, TaskState, states_of

log = logging.getLogger("esker")
T = TypeVar("T")

#: Bytes that go with an acknowledgement, all together; larger states are stored before it.
_WITH_ACKNOWLEDGEMENT_BYTES = 4 << 20
#: Offsets that go with an acknowledgement that has bytes: its head is bounded.
_WITH_ACKNOWLEDGEMENT_OFFSETS = 4000
#: States that are stored at once.
_PUTS_AT_ONCE = 4
#: Events that wait to be asked for. A worker that asks for none is not told of more.
_WAITING_EVENTS_MAX = 10_000
_HEARTBEAT_SECONDS = 10.0
#: How long the last word of a task that has failed is tried to be said, in seconds.
_LAST_WORD_SECONDS = 5.0
_ATTEMPT_PAUSE_SECONDS = 0.1


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
        worker = self._worker
        try:
            await worker.client.decline(
                worker.job, self.number, worker.operator, worker.subtask, self.trigger.attempt, reason, message
            )
        except AttemptOver as error:
            raise worker._attempt_is_over(error) from None

    async def wait(self) -> Union[Completed, Aborted]:
        """Waits until it is completed or aborted.

        Raises:
            Restart: the job has restarted.
        """
        await self._worker._until(lambda: self.outcome is not None or self._worker._over is not None)
        # The end of the job is told after all that completed.
        return self.outcome or Aborted(self.number, self.trigger.kind, "", "the job has ended")


#: What a worker is told.
Event = Union[Checkpoint, Completed, Aborted, Subsumed, Stopped, Ended]


class Worker:
    """One task of a coordinated job.

    Args:
        job: the job, which exists.
        operator: the id of the operator.
        subtask: which of its tasks.
        client: who to ask; else one is made with ``address`` and ``token``, as :class:`Client` does, and closed at the end.
        name: the process; another one after a restart of it. Made up if none is given.
        events: how events arrive: ``stream``, ``poll``, or ``auto``.
    """

    def __init__(
        self,
        job: str,
        operator: str,
        subtask: int,
        *,
        client: Optional[Client] = None,
        address: Optional[str] = None,
        token: Optional[str] = None,
        name: Optional[str] = None,
        events: str = "auto",
    ) -> None:
        self.job = job
        self.operator = operator
        self.subtask = subtask
        self._owns_client = client is None
        self.client = client or Client(address, token=token)
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._events_mode = events
        self._task: Optional[TaskState] = None
        #: What was reported last; ``None``: nothing in this attempt.
        self._reported: Optional[str] = None
        self._heartbeat = _HEARTBEAT_SECONDS
        #: The newest attempt that was told of.
        self._newest_attempt = 0
        self._waiting: "collections.deque[Event]" = collections.deque()
        self._open: dict[int, Checkpoint] = {}
        self._seen: set[int] = set()
        #: The newest completed checkpoint that was told of.
        self.completed: Optional[int] = None
        self._over: Union[None, Stopped, Ended] = None
        self._trouble: Optional[BaseException] = None
        self._changed = asyncio.Condition()
        self._background: list["asyncio.Task[None]"] = []

    # What the task starts from

    @property
    def task(self) -> TaskState:
        """What the task starts from, without its bytes."""
        if self._task is None:
            raise RuntimeError("the worker has not been entered: use it as `async with Worker(..) as worker`")
        return self._task

    @property
    def attempt(self) -> int:
        """The attempt of the job."""
        return self.task.attempt

    @property
    def parallelism(self) -> int:
        """Of the operator."""
        return self.task.parallelism

    @property
    def key_groups(self) -> KeyGroups:
        """The key groups that are this task's own."""
        return self.task.key_groups

    @property
    def restored(self) -> Optional[int]:
        """The checkpoint that the task starts from; ``None``: from nothing."""
        return self.task.checkpoint

    @property
    def finished(self) -> bool:
        """Whether the task was finished when the checkpoint was taken: it does nothing more but end."""
        return self.task.finished

    @property
    def running(self) -> bool:
        """Whether there is more to do: ``False`` once the job has ended, or stopped with a savepoint."""
        return self._over is None and not self.task.finished

    async def restore(self) -> list[Restored]:
        """What the task starts from, with its bytes, checked.

        Raises:
            Restart: the job has restarted.
        """
        return [part async for part in self.restoring()]

    async def restoring(self) -> AsyncGenerator[Restored, None]:
        """The same part by part, for a state that is larger than memory is."""
        self._raise_trouble()
        parts = read_entries(self.client, self.task.state)
        try:
            async for part in parts:
                self._raise_trouble()
                yield part
        except ApiError:
            # What is read from may be freed once the job has restarted from something else.
            self._raise_trouble()
            raise
        finally:
            await parts.aclose()

    # Life

    async def __aenter__(self) -> "Worker":
        try:
            await self._begin(new_process=True)
            self._background = [asyncio.create_task(self._listen())]
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], _: Optional[TracebackType]
    ) -> None:
        try:
            if error is None:
                await self.finish()
            elif not isinstance(error, Restart) and self._trouble is None:
                await self.fail(f"{kind.__name__ if kind else 'error'}: {error}")
        finally:
            await self._close()

    async def run(self, work: Callable[["Worker"], Awaitable[T]]) -> T:
        """Enters the worker, and does ``work`` for each attempt of the job until the job has ended; returns what the last one
        returned. A task that has finished is there until then, because it has to run again if the job restarts.

        The work of an attempt that is over is cancelled when it next waits, or raises :class:`Restart` when it asks the worker.

        Raises:
            JobEnded: the job ended while it restarted.
        """
        async with self:
            while True:
                try:
                    result = await self._attempt(work)
                    await self.finish()
                    await self.end()
                    return result
                except Exception as error:
                    # Peers of a task that has failed fail, too, and perhaps before they were told that the job restarts.
                    restart = error if isinstance(error, Restart) else self.restart
                    if restart is None:
                        raise
                    log.info("%s, task %s %d", restart, self.operator, self.subtask)
                await self.begin_attempt()

    async def _attempt(self, work: Callable[["Worker"], Awaitable[T]]) -> T:
        working = asyncio.ensure_future(work(self))
        watching = asyncio.ensure_future(self._until(lambda: False))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                # Trouble was told. What the work does about it, or returns, counts for nothing.
                working.cancel()
                await asyncio.wait({working})
            if watching.done() and (trouble := watching.exception()) is not None:
                raise trouble
            return working.result()
        finally:
            for each in (working, watching):
                each.cancel()
                # What else went wrong with it is of no interest any more.
                each.add_done_callback(lambda over: over.cancelled() or over.exception())
            await asyncio.wait({working, watching})

    @property
    def restart(self) -> Optional[Restart]:
        """The job has restarted: :meth:`begin_attempt` comes next."""
        return self._trouble if isinstance(self._trouble, Restart) else None

    async def begin_attempt(self) -> None:
        """Gets the state of the attempt after the one that is over. What else there is to the worker stays.

        Raises:
            JobEnded: there is none.
        """
        await self._begin(new_process=False)

    async def start(self) -> None:
        """Says that the task has its state and runs. Asking for events does it, too. Nothing is triggered before all
        tasks run.

        Raises:
            Restart: the job has restarted.
        """
        self._raise_trouble()
        if self._reported is None and not self.task.finished:
            await self._report("running")

    async def end_of_data(self) -> None:
        """Says that the task has read all of its input. Once all tasks have, a last checkpoint is triggered; acknowledge
        it, and end when it has completed.

        Raises:
            Restart: the job has restarted.
        """
        self._raise_trouble()
        if self._reported != "end-of-data":
            await self._report("end-of-data")

    async def finish(self) -> None:
        """Says that the task has finished. Nothing happens if the job has ended.

        Raises:
            Restart: the job has restarted.
        """
        self._raise_trouble()
        if self._reported != "finished" and not isinstance(self._over, Ended):
            await self._report("finished")

    async def end(self) -> None:
        """Waits until the job has ended.

        Raises:
            Restart: the job has restarted.
        """
        try:
            await self._until(lambda: isinstance(self._over, Ended))
        except NotFound:
            # A job of which nothing is kept is forgotten once it has ended.
            if self._reported != "finished":
                raise

    async def fail(self, message: str) -> None:
        """Says that the task has failed, so that the job restarts. What goes wrong with that is logged: silence tells the
        same, later."""
        if self._task is None or isinstance(self._over, Ended) or self._reported in ("finished", "failed"):
            return
        self._reported = "failed"
        try:
            await at_most(self._send_report("failed", self.attempt, message[:1000]), _LAST_WORD_SECONDS)
        except (EskerError, asyncio.TimeoutError, TimeoutError) as error:
            log.warning("task %s %d of job %s could not say that it has failed: %s", self.operator, self.subtask, self.job, error)

    # Events

    def poll(self) -> Optional[Event]:
        """The next event, if there is one. Does not wait, and may be asked from any thread. :meth:`start` comes before.

        Raises:
            Restart: the job has restarted.
        """
        self._raise_trouble()
        if self._reported is None and not self.task.finished:
            raise RuntimeError("the task has not been started: `await worker.start()`")
        while self._waiting:
            try:
                event = self._waiting.popleft()
            except IndexError:
                return None
            # One that was aborted before anybody looked at it needs no snapshot.
            if not (isinstance(event, Checkpoint) and event.outcome is not None):
                return event
        return None

    async def next(self, timeout: Optional[float] = None) -> Optional[Event]:
        """The next event; ``None`` after ``timeout`` seconds, and when the job has ended.

        Raises:
            Restart: the job has restarted.
        """
        await self.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self.poll()) is None and self.running:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            try:
                await at_most(self._until(lambda: bool(self._waiting) or not self.running), left)
            except (asyncio.TimeoutError, TimeoutError):
                return self.poll()
        return event

    async def events(self) -> AsyncGenerator[Event, None]:
        """All that the worker is told, until the job ends or stops.

        Raises:
            Restart: the job has restarted.
        """
        while (event := await self.next()) is not None:
            yield event
            if isinstance(event, (Stopped, Ended)):
                return

    async def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        """The checkpoints that the task takes part in, until the job ends or stops.

        Raises:
            Restart: the job has restarted.
        """
        async for event in self.events():
            if isinstance(event, Checkpoint) and not event.aborted:
                yield event

    # How it works

    async def _begin(self, new_process: bool) -> None:
        """Gets the state of the newest attempt."""
        if new_process:
            await self._replace_task_before()
        deadline = time.monotonic() + self.client.patience
        past = self._task.attempt if self._task is not None and not new_process else 0
        while True:
            self._raise_end()
            task = await self.client.state(self.job, self.operator, self.subtask)
            self._raise_end()
            # A daemon that is behind tells of the attempt before; and the next one may have begun since it was asked.
            if task.attempt > past and task.attempt >= self._newest_attempt:
                break
            if time.monotonic() > deadline:
                raise BadAnswer(f"job {self.job}: attempt {task.attempt} is over, and no other one begins")
            await asyncio.sleep(_ATTEMPT_PAUSE_SECONDS)
        self._task = task
        self._reported, self._trouble, self._over = None, None, None
        self._waiting.clear()
        self._open.clear()
        self._seen.clear()

    def _raise_end(self) -> None:
        if isinstance(self._over, Ended):
            raise JobEnded(self.job, self._over.state)

    async def _replace_task_before(self) -> None:
        """A job that runs has a task in our place, which is gone, and with it what it did since the last checkpoint. To go
        on from there by ourselves would be wrong: all tasks have to."""
        job = await self.client.job(self.job)
        if isinstance(ended := job.get("ended"), str):
            raise JobEnded(self.job, ended)
        coordinator = job.get("coordinator")
        if not isinstance(coordinator, dict):
            raise BadAnswer(f"job {self.job}: has no coordinator; create it with operators")
        if coordinator.get("status") not in ("running", "stopping"):
            return
        attempt = int(coordinator["attempt"])
        try:
            await self._send_report("failed", attempt, f"process {self.name} takes the place of the one before")
        except AttemptOver:
            pass
        # The attempt after that one is the first that this process may be part of.
        self._newest_attempt = attempt + 1

    async def _send_report(
        self, state: str, attempt: int, message: Optional[str] = None, patience: Optional[float] = None
    ) -> dict[str, Any]:
        task: dict[str, Any] = {"operator": self.operator, "subtask": self.subtask, "state": state}
        if message is not None:
            task["message"] = message
        return await self.client.report(self.job, attempt, [task], self.name, patience=patience)

    async def _report(self, state: str) -> None:
        try:
            answer = await self._send_report(state, self.attempt)
        except AttemptOver as error:
            raise self._attempt_is_over(error) from None
        self._note_heartbeat(answer)
        if self._reported is None and len(self._background) == 1:
            # The answer has said how often; with a guess the first beat might come too late.
            self._background.append(asyncio.create_task(self._beat()))
        self._reported = state

    def _note_heartbeat(self, answer: Any) -> None:
        told = answer.get("heartbeat_ms")
        if isinstance(told, (int, float)) and told > 0:
            self._heartbeat = told / 1000

    async def _beat(self) -> None:
        """Reports again and again what was reported last."""
        while True:
            # Not all workers of a job beat at the same moment.
            await asyncio.sleep(self._heartbeat * random.uniform(0.7, 1.0))
            state, task = self._reported, self._task
            if state not in ("running", "end-of-data") or self._trouble is not None:
                continue
            try:
                self._note_heartbeat(await self._send_report(state, self.attempt, patience=self._heartbeat))
            except EskerError as error:
                if self._task is not task or self._reported != state:
                    continue  # It was about what is over.
                if error.transient:
                    log.warning("heartbeat of task %s %d of job %s: %s", self.operator, self.subtask, self.job, error)
                elif isinstance(error, AttemptOver):
                    await self._in_trouble(self._attempt_is_over(error))
                elif self._over is None:
                    await self._in_trouble(error)

    async def _listen(self) -> None:
        """Takes in events until the job ends."""
        try:
            subscription = self.client.events(self.job, self.name, self._events_mode)
            async for raw in subscription:
                try:
                    self._take_in(raw)
                except (KeyError, TypeError, ValueError) as error:
                    raise BadAnswer(f"event {raw.name} {raw.id} cannot be read: {error!r}") from None
                await self._notify()
                while len(self._waiting) >= _WAITING_EVENTS_MAX:
                    await asyncio.sleep(_ATTEMPT_PAUSE_SECONDS)
        except EskerError as error:
            await self._in_trouble(error)
        except Exception as error:
            # A worker that hears nothing and does not know it would wait for ever.
            log.exception("the events of job %s cannot be read", self.job)
            await self._in_trouble(BadAnswer(f"the events of job {self.job} cannot be read: {error!r}"))

    def _take_in(self, raw: Raw) -> None:
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
            self._waiting.append(Subsumed(data["checkpoint"]))
        elif raw.name == "restore":
            if data["attempt"] > self.attempt:
                self._restart(data["attempt"], data.get("checkpoint"), data.get("cause", "RESTORE"), data.get("message"))
        elif raw.name == "stop":
            if self._over is None:
                self._over = Stopped(data["checkpoint"], data.get("path"), bool(data.get("drain")))
                self._waiting.append(self._over)
        elif raw.name == "end":
            self._over = Ended(data["state"], bool(data.get("kept")))
            self._waiting.append(self._over)
        # Others are of a later version, and mean nothing to this one.

    def _take_in_hello(self, data: Any) -> None:
        """How things stand, in place of events that were missed."""
        self._note_heartbeat(data)
        if data["attempt"] > self.attempt:
            self._restart(data["attempt"], None, "ATTEMPT", None)
            return
        pending = [Trigger.of(trigger) for trigger in data.get("pending") or ()]
        numbers = {trigger.checkpoint for trigger in pending}
        completed = data.get("completed")
        for number in sorted(self._open):
            if number in numbers:
                continue
            kind = self._open[number].trigger.kind
            # Savepoints are not among what is told as completed; one that was missed is looked at as aborted, but for the
            # event `stop`, which comes for the one that the job stops with.
            if completed is not None and number <= completed and kind == "checkpoint":
                self._settle(Completed(number))
            else:
                self._settle(Aborted(number, kind))
        if completed is not None and (self.completed is None or completed > self.completed):
            self.completed = completed
        for trigger in pending:
            self._take_in_trigger(trigger)

    def _take_in_trigger(self, trigger: Trigger) -> None:
        if trigger.attempt > self.attempt:
            self._restart(trigger.attempt, None, "ATTEMPT", None)
        elif trigger.attempt == self.attempt and trigger.checkpoint not in self._seen:
            self._seen.add(trigger.checkpoint)
            checkpoint = Checkpoint(self, trigger)
            self._open[trigger.checkpoint] = checkpoint
            self._waiting.append(checkpoint)

    def _settle(self, outcome: Union[Completed, Aborted]) -> None:
        """Notes the end of a checkpoint. The second time nothing happens."""
        checkpoint = self._open.pop(outcome.checkpoint, None)
        if checkpoint is None:
            return
        checkpoint.outcome = outcome
        if isinstance(outcome, Completed) and outcome.kind == "checkpoint":
            self.completed = max(outcome.checkpoint, self.completed or 0)
        self._waiting.append(outcome)

    def _restart(self, attempt: Optional[int], checkpoint: Optional[int], cause: str, message: Optional[str]) -> Restart:
        self._newest_attempt = max(self._newest_attempt, attempt or 0)
        if not isinstance(self._trouble, Restart):
            self._trouble = Restart(self.job, attempt, checkpoint, cause, message)
        return self._trouble

    def _attempt_is_over(self, error: AttemptOver) -> Restart:
        return self._restart(None, None, "ATTEMPT", error.message)

    async def _in_trouble(self, trouble: EskerError) -> None:
        if self._trouble is None:
            self._trouble = trouble
        await self._notify()

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, or for trouble, which it raises."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._trouble is not None or condition())
        self._raise_trouble()

    async def _acknowledge(
        self, checkpoint: Checkpoint, states: list[State], finished: bool, figures: dict[str, int]
    ) -> Acknowledged:
        self._raise_trouble()
        if isinstance(checkpoint.outcome, Aborted):
            return Acknowledged(False, reason=checkpoint.outcome.reason or checkpoint.outcome.message)
        if finished and states:
            raise ValueError("state: a task that has finished has none")
        try:
            states = await self._store_large(checkpoint, states)
            answer = await self.client.acknowledge(
                self.job,
                checkpoint.number,
                self.operator,
                self.subtask,
                checkpoint.trigger.attempt,
                states,
                finished=finished,
                task_manager=self.name,
                figures=figures,
            )
        except AttemptOver as error:
            raise self._attempt_is_over(error) from None
        except CheckpointOver as error:
            self._raise_trouble()
            return Acknowledged(False, reason=error.message)
        arrived = iter(answer.get("segments") or ())
        stored = []
        for state in states:
            segment = next(arrived, None) if state.segment is None else None
            stored.append(state if segment is None else state.stored_as(segment["segment"]))
        return Acknowledged(True, tuple(stored))

    async def _store_large(self, checkpoint: Checkpoint, states: list[State]) -> list[State]:
        """Stores what does not go with the acknowledgement. The smallest ones do."""
        left_bytes, left_offsets = _WITH_ACKNOWLEDGEMENT_BYTES, _WITH_ACKNOWLEDGEMENT_OFFSETS
        large = []
        offsets = sum(len(state.offsets) for state in states)
        for n, state in sorted(enumerate(states), key=lambda pair: pair[1].len):
            if state.segment is not None:
                continue
            left_bytes -= state.len
            if left_bytes < 0 or offsets > left_offsets:
                large.append(n)
        if not large:
            return states
        stored = list(states)
        slots = asyncio.Semaphore(_PUTS_AT_ONCE)

        async def store(n: int) -> None:
            async with slots:
                stored[n] = states[n].stored_as(await self._put(checkpoint, n, states[n]))

        try:
            await _all_or_none([store(n) for n in large])
        except CheckpointOver:
            raise
        except Conflict as error:
            # A put tells of a checkpoint that is over without the field.
            over = CheckpointOver(error.request, 409, error.kind, error.message, "checkpoint", error.request_id)
            raise over from None
        return stored

    async def _put(self, checkpoint: Checkpoint, n: int, state: State) -> str:
        data = state.data[0] if len(state.data) == 1 else b"".join(bytes(part) for part in state.data)
        # The same for a repeat, also by another call; another one for other bytes.
        of = (self.job, checkpoint.number, checkpoint.trigger.attempt, self.operator, self.subtask, n, state.name, len(data))
        key = hashlib.sha256(repr((*of, hashlib.sha256(data).hexdigest())).encode()).hexdigest()
        segment = await self.client.put(
            self.job,
            data,
            checkpoint=checkpoint.number,
            operator=self.operator,
            subtask=self.subtask,
            parallelism=self.parallelism,
            scope=state.scope,
            name=state.name or None,
            task_manager=self.name,
            idempotency_key=key,
        )
        return segment.segment

    async def _close(self) -> None:
        background, self._background = self._background, []
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self._owns_client:
            await self.client.aclose()


async def _all_or_none(works: "list[Awaitable[None]]") -> None:
    """Does all of it at once. The first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
