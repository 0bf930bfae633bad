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
import logging
import os
import random
import socket
import time
import uuid
from types import TracebackType
from typing import Any, AsyncGenerator, Awaitable, Callable, Iterable, Optional, TypeVar, Union

from ._acknowledge import acknowledge
from ._http import at_most
from ._told import Told
from .checkpoint import Acknowledged, Checkpoint, Event
from .client import Client
from .errors import ApiError, AttemptOver, BadAnswer, CheckpointOver, EskerError, JobEnded, NotFound, Restart
from .events import Aborted, Ended, Stopped
from .restore import read_entries
from .state import KeyGroups, Restored, State, TaskState

log = logging.getLogger("esker")
T = TypeVar("T")

#: Events that wait to be asked for. A worker that asks for none is not told of more.
_WAITING_EVENTS_MAX = 10_000
#: How long the last word of a task that has failed is tried to be said, in seconds.
_LAST_WORD_SECONDS = 5.0
_ATTEMPT_PAUSE_SECONDS = 0.1
#: Seconds after which it is looked again what became of a savepoint.
_LOOK_SECONDS = 0.5


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
        self._told = Told(job, lambda trigger: Checkpoint(self, trigger))
        #: Held while it is said how the task is.
        self._reporting = asyncio.Lock()
        #: Set, and replaced, when something was told.
        self._changed = asyncio.Event()
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
    def completed(self) -> Optional[int]:
        """The newest completed checkpoint that was told of."""
        return self._told.completed

    @property
    def running(self) -> bool:
        """Whether there is more to do: ``False`` once the job has ended, or stopped with a savepoint."""
        return self._told.over is None and not self.task.finished

    async def restore(self) -> list[Restored]:
        """What the task starts from, with its bytes, checked.

        Raises:
            Restart: the job has restarted.
        """
        return [part async for part in self.restoring()]

    async def restoring(self) -> AsyncGenerator[Restored, None]:
        """The same part by part, for a state that is larger than memory is."""
        self._told.raise_trouble()
        parts = read_entries(self.client, self.task.state)
        try:
            async for part in parts:
                self._told.raise_trouble()
                yield part
        except ApiError:
            # What is read from may be freed once the job has restarted from something else.
            self._told.raise_trouble()
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
            elif not isinstance(error, Restart) and self._told.trouble is None:
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
        return self._told.trouble if isinstance(self._told.trouble, Restart) else None

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
        self._told.raise_trouble()
        if self._reported is None and not self.task.finished:
            await self._report("running")

    async def end_of_data(self) -> None:
        """Says that the task has read all of its input. Once all tasks have, a last checkpoint is triggered; acknowledge
        it, and end when it has completed.

        Raises:
            Restart: the job has restarted.
        """
        self._told.raise_trouble()
        if self._reported != "end-of-data":
            await self._report("end-of-data")

    async def finish(self) -> None:
        """Says that the task has finished. Nothing happens if the job has ended.

        Raises:
            Restart: the job has restarted.
        """
        self._told.raise_trouble()
        if self._reported == "finished" or isinstance(self._told.over, Ended):
            return
        try:
            await self._report("finished")
        except NotFound as error:
            if not self._has_ended(error):
                raise

    async def end(self) -> None:
        """Waits until the job has ended.

        Raises:
            Restart: the job has restarted.
        """
        await self._until(lambda: isinstance(self._told.over, Ended))

    async def fail(self, message: str) -> None:
        """Says that the task has failed, so that the job restarts. What goes wrong with that is logged: silence tells the
        same, later."""
        if self._task is None or isinstance(self._told.over, Ended) or self._reported in ("finished", "failed"):
            return
        self._reported = "failed"
        try:
            await at_most(self._send_report("failed", self.attempt, message=message[:1000]), _LAST_WORD_SECONDS)
        except (EskerError, asyncio.TimeoutError, TimeoutError) as error:
            log.warning("task %s %d of job %s could not say that it has failed: %s", self.operator, self.subtask, self.job, error)

    # Events

    def poll(self) -> Optional[Event]:
        """The next event, if there is one. Does not wait, and may be asked from any thread. :meth:`start` comes before.

        Raises:
            Restart: the job has restarted.
        """
        self._told.raise_trouble()
        if self._reported is None and not self.task.finished:
            raise RuntimeError("the task has not been started: `await worker.start()`")
        return self._told.next()

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
                await at_most(self._until(lambda: bool(self._told.waiting) or not self.running), left)
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
            try:
                task = await self.client.state(self.job, self.operator, self.subtask)
            except NotFound as error:
                if new_process or not self._has_ended(error):
                    raise
                continue
            self._raise_end()
            if self._task is not None and not new_process and task.first_attempt != self._task.first_attempt:
                # The job has ended meanwhile, and this is another one of its name.
                self._told.end(Ended(None, False))
                continue
            # A daemon that is behind tells of the attempt before; and the next one may have begun since it was asked.
            if task.attempt > past and task.attempt >= self._told.newest_attempt:
                break
            if time.monotonic() > deadline:
                raise BadAnswer(f"job {self.job}: attempt {task.attempt} is over, and no other one begins")
            await asyncio.sleep(_ATTEMPT_PAUSE_SECONDS)
        self._task = task
        self._reported = None
        self._told.begin(task.attempt)

    def _raise_end(self) -> None:
        if isinstance(self._told.over, Ended):
            raise JobEnded(self.job, self._told.over.state)

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
            await self._send_report("failed", attempt, message=f"process {self.name} takes the place of the one before")
        except AttemptOver:
            pass
        # The attempt after that one is the first that this process may be part of.
        self._told.newest_attempt = attempt + 1

    async def _send_report(
        self,
        state: str,
        attempt: int,
        *,
        message: Optional[str] = None,
        patience: Optional[float] = None,
        timeout: Optional[float] = None,
    ) -> dict[str, Any]:
        task = {"operator": self.operator, "subtask": self.subtask, "state": state}
        return await self.client.report(
            self.job, attempt, [task], self.name, message=message, patience=patience, timeout=timeout
        )

    async def _report(self, state: str) -> None:
        attempt = self.attempt
        # A heartbeat that is on its way must not arrive behind this, and take it back.
        async with self._reporting:
            try:
                answer = await self._send_report(state, attempt)
            except AttemptOver as error:
                raise self._attempt_is_over(error, attempt) from None
            self._told.note_heartbeat(answer)
            if self._reported is None and len(self._background) == 1:
                # The answer has said how often; with a guess the first beat might come too late.
                self._background.append(asyncio.create_task(self._beat()))
            self._reported = state

    async def _beat(self) -> None:
        """Reports again and again what was reported last."""
        while True:
            heartbeat = self._told.heartbeat
            # Not all workers of a job beat at the same moment.
            await asyncio.sleep(heartbeat * random.uniform(0.7, 1.0))
            attempt = self.attempt
            try:
                async with self._reporting:
                    state, attempt = self._reported, self.attempt
                    if state is None or state == "failed" or self._told.trouble is not None:
                        continue
                    # A beat that takes longer is worth less than the next one.
                    answer = await self._send_report(state, attempt, patience=heartbeat, timeout=heartbeat)
                    self._told.note_heartbeat(answer)
            except AttemptOver as error:
                self._attempt_is_over(error, attempt)
            except EskerError as error:
                if self._has_ended(error):
                    continue
                if not error.transient:
                    self._in_trouble(error)
                log.warning("heartbeat of task %s %d of job %s: %s", self.operator, self.subtask, self.job, error)

    async def _listen(self) -> None:
        """Takes in events until the job ends."""
        try:
            subscription = self.client.events(self.job, self.name, self._events_mode)
            async for raw in subscription:
                try:
                    self._told.take_in(raw)
                except (KeyError, TypeError, ValueError) as error:
                    raise BadAnswer(f"event {raw.name} {raw.id} cannot be read: {error!r}") from None
                self._notify()
                if self._told.unknown:
                    await self._look_at_savepoints(self._told.unknown)
                while len(self._told.waiting) >= _WAITING_EVENTS_MAX:
                    await asyncio.sleep(_ATTEMPT_PAUSE_SECONDS)
        except EskerError as error:
            if not self._has_ended(error):
                self._in_trouble(error)
        except Exception as error:
            # A worker that hears nothing and does not know it would wait for ever.
            log.exception("the events of job %s cannot be read", self.job)
            self._in_trouble(BadAnswer(f"the events of job {self.job} cannot be read: {error!r}"))

    async def _look_at_savepoints(self, numbers: Iterable[int]) -> None:
        """Finds out what became of savepoints. Those that are in progress stay as they are."""
        attempt = self.attempt
        states = {known["checkpoint"]: known["state"] for known in await self.client.checkpoints(self.job)}
        for number in sorted(numbers) if attempt == self.attempt else ():
            if states.get(number) != "pending":
                self._told.settle_savepoint(number, states.get(number) == "completed")
        self._notify()

    async def _until_over(self, checkpoint: Checkpoint) -> None:
        def over() -> bool:
            return checkpoint.outcome is not None or not self.running

        while not over():
            # Nothing is told of a savepoint that completes, unless the job stops with it.
            told = checkpoint.stop is not None or not checkpoint.is_savepoint
            try:
                await at_most(self._until(over), None if told else _LOOK_SECONDS)
            except (asyncio.TimeoutError, TimeoutError):
                await self._look_at_savepoints([checkpoint.number])
        self._told.raise_trouble()

    def _attempt_is_over(self, error: AttemptOver, attempt: int) -> EskerError:
        """What there is to raise. What belongs to an attempt before this one is no trouble of this one."""
        if attempt != self.attempt:
            return Restart(self.job, None, None, "ATTEMPT", error.message)
        restart = self._told.restart(None, None, "ATTEMPT", error.message)
        self._notify()
        return restart

    def _has_ended(self, error: EskerError) -> bool:
        """Whether an error says that the job has ended: there was one, and if nothing of it is kept it is forgotten at once.
        Who was not listening at that moment hears no more of it than that."""
        if not isinstance(error, NotFound) or error.field != "job":
            return False
        self._told.end(Ended(None, False))
        self._notify()
        return True

    def _in_trouble(self, trouble: EskerError) -> None:
        if self._told.trouble is None:
            self._told.trouble = trouble
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, or for trouble, which it raises."""
        while self._told.trouble is None and not condition():
            await self._changed.wait()
        self._told.raise_trouble()

    async def _acknowledge(
        self, checkpoint: Checkpoint, states: list[State], finished: bool, figures: dict[str, int]
    ) -> Acknowledged:
        self._told.raise_trouble()
        if isinstance(checkpoint.outcome, Aborted):
            return Acknowledged(False, reason=checkpoint.outcome.reason or checkpoint.outcome.message)
        if finished and states:
            raise ValueError("state: a task that has finished has none")
        try:
            stored = await acknowledge(
                self.client, self.task, self.name, checkpoint.trigger, states, finished, figures
            )
        except AttemptOver as error:
            raise self._attempt_is_over(error, checkpoint.trigger.attempt) from None
        except CheckpointOver as error:
            self._told.raise_trouble()
            return Acknowledged(False, reason=error.message)
        except NotFound as error:
            if not self._has_ended(error):
                raise
            return Acknowledged(False, reason="the job has ended")
        return Acknowledged(True, stored)

    async def _decline(self, checkpoint: Checkpoint, reason: Optional[str], message: Optional[str]) -> None:
        of = (self.operator, self.subtask, checkpoint.trigger.attempt)
        try:
            await self.client.decline(self.job, checkpoint.number, *of, reason, message)
        except AttemptOver as error:
            raise self._attempt_is_over(error, checkpoint.trigger.attempt) from None

    async def _close(self) -> None:
        background, self._background = self._background, []
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self._owns_client:
            await self.client.aclose()
