"""The client and the worker for threads: the same names, methods and errors as in ``esker``, without ``await``.

::

    from esker.sync import Worker

    with Worker("wordcount", "count", 0) as worker:
        state = worker.restore()
        for checkpoint in worker.checkpoints():
            checkpoint.put(take_snapshot())

All requests run on one event loop, in a thread that is started when it is needed; heartbeats and events are looked after there
while the caller works. :meth:`Worker.poll` costs no change of threads. Everything here may be used from any thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
import threading
from types import TracebackType
from typing import (
    Any,
    AsyncGenerator,
    Awaitable,
    Callable,
    Concatenate,
    Coroutine,
    Iterator,
    Optional,
    ParamSpec,
    Sequence,
    TypeVar,
    Union,
)

from . import checkpoint as _checkpoint
from . import client as _client
from . import worker as _worker
from .checkpoint import Acknowledged
from .errors import Restart
from .events import Aborted, Completed, Ended, Stopped, Subsumed, Trigger
from .state import KeyGroups, Restored, Snapshot, TaskState

log = logging.getLogger("esker")
P = ParamSpec("P")
T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    _shared: "Optional[_Loop]" = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="esker", daemon=True).start()

    @classmethod
    def shared(cls) -> "_Loop":
        """The one of this process. A thread does not survive a fork: the child gets one of its own."""
        with cls._lock:
            if cls._shared is None or cls._shared.pid != os.getpid():
                cls._shared = cls()
            return cls._shared

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for ``work``; what interrupts the wait cancels it."""
        if self.pid != os.getpid():
            work.close()
            raise RuntimeError("made before a fork: make clients and workers in the process that uses them")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """The same for what arrives one by one."""
        try:
            while True:
                try:
                    yield self.run(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            self.run(_close(source))


async def _next(source: AsyncGenerator[T, None]) -> T:
    return await source.__anext__()


async def _close(source: AsyncGenerator[Any, None]) -> None:
    await source.aclose()


async def _wait(work: Awaitable[T]) -> T:
    return await work


def _of_client(
    method: Callable[Concatenate[_client.Client, P], Awaitable[T]],
) -> "Callable[Concatenate[Client, P], T]":
    """A method of the client for threads."""

    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(_wait(method(self.asynchronous, *args, **kwargs)))

    functools.update_wrapper(call, method)
    return call


class Client:
    """:class:`esker.Client` for threads; the arguments are the same."""

    def __init__(
        self,
        address: Optional[str] = None,
        *,
        token: Optional[str] = None,
        tls: Optional[ssl.SSLContext] = None,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
        patience: float = 60.0,
    ) -> None:
        self._loop = _Loop.shared()
        #: The one that does the work.
        self.asynchronous = _client.Client(
            address, token=token, tls=tls, connect_timeout=connect_timeout, timeout=timeout, patience=patience
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._loop.run(self.asynchronous.aclose())

    @property
    def address(self) -> str:
        """Where the daemon listens."""
        return self.asynchronous.address

    create_job = _of_client(_client.Client.create_job)
    jobs = _of_client(_client.Client.jobs)
    job = _of_client(_client.Client.job)
    configure = _of_client(_client.Client.configure)
    end_job = _of_client(_client.Client.end_job)
    report = _of_client(_client.Client.report)
    acknowledge = _of_client(_client.Client.acknowledge)
    decline = _of_client(_client.Client.decline)
    set_backlog = _of_client(_client.Client.set_backlog)
    trigger_checkpoint = _of_client(_client.Client.trigger_checkpoint)
    trigger_savepoint = _of_client(_client.Client.trigger_savepoint)
    stop = _of_client(_client.Client.stop)
    state = _of_client(_client.Client.state)
    states = _of_client(_client.Client.states)
    restore_job = _of_client(_client.Client.restore_job)
    history = _of_client(_client.Client.history)
    metadata = _of_client(_client.Client.metadata)
    begin = _of_client(_client.Client.begin)
    complete = _of_client(_client.Client.complete)
    abort = _of_client(_client.Client.abort)
    subsume = _of_client(_client.Client.subsume)
    reuse = _of_client(_client.Client.reuse)
    checkpoints = _of_client(_client.Client.checkpoints)
    latest_checkpoint = _of_client(_client.Client.latest_checkpoint)
    discard_savepoint = _of_client(_client.Client.discard_savepoint)
    put = _of_client(_client.Client.put)
    put_many = _of_client(_client.Client.put_many)
    get = _of_client(_client.Client.get)
    get_range = _of_client(_client.Client.get_range)

    def read(self, segments: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The bytes of many segments, in the order asked, checked."""
        return self._loop.iterate(self.asynchronous.read(segments))


class Checkpoint:
    """:class:`esker.Checkpoint` for threads."""

    def __init__(self, loop: _Loop, asynchronous: _checkpoint.Checkpoint) -> None:
        self._loop = loop
        #: The one that does the work.
        self.asynchronous = asynchronous

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    @property
    def trigger(self) -> Trigger:
        """What the coordinator said."""
        return self.asynchronous.trigger

    @property
    def number(self) -> int:
        """Its number."""
        return self.asynchronous.number

    @property
    def is_savepoint(self) -> bool:
        """Whether it is a savepoint."""
        return self.asynchronous.is_savepoint

    @property
    def stop(self) -> Optional[str]:
        """``drain`` or ``suspend`` if the job stops with it."""
        return self.asynchronous.stop

    @property
    def aborted(self) -> bool:
        """Whether it was aborted."""
        return self.asynchronous.aborted

    @property
    def outcome(self) -> Union[None, Completed, Aborted]:
        """What became of it, so far."""
        return self.asynchronous.outcome

    def put(self, state: Snapshot = (), *, finished: bool = False, **figures: int) -> Acknowledged:
        """Stores the state of the task, and acknowledges. Returns once the bytes are durable."""
        return self._loop.run(self.asynchronous.put(state, finished=finished, **figures))

    def decline(self, reason: Optional[str] = None, message: Optional[str] = None) -> None:
        """Aborts the checkpoint, for one of Flink's reasons."""
        self._loop.run(self.asynchronous.decline(reason, message))

    def wait(self) -> Union[Completed, Aborted]:
        """Waits until it is completed or aborted."""
        return self._loop.run(self.asynchronous.wait())


Event = Union[Checkpoint, Completed, Aborted, Subsumed, Stopped, Ended]


class Worker:
    """:class:`esker.Worker` for threads; the arguments are the same."""

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
        self._loop = _Loop.shared()
        #: The one that does the work.
        self.asynchronous = _worker.Worker(
            job,
            operator,
            subtask,
            client=client.asynchronous if client else None,
            address=address,
            token=token,
            name=name,
            events=events,
        )

    @property
    def job(self) -> str:
        """The job."""
        return self.asynchronous.job

    @property
    def operator(self) -> str:
        """The id of the operator."""
        return self.asynchronous.operator

    @property
    def subtask(self) -> int:
        """Which of its tasks."""
        return self.asynchronous.subtask

    @property
    def task(self) -> TaskState:
        """What the task starts from, without its bytes."""
        return self.asynchronous.task

    @property
    def attempt(self) -> int:
        """The attempt of the job."""
        return self.asynchronous.attempt

    @property
    def parallelism(self) -> int:
        """Of the operator."""
        return self.asynchronous.parallelism

    @property
    def key_groups(self) -> KeyGroups:
        """The key groups that are this task's own."""
        return self.asynchronous.key_groups

    @property
    def restored(self) -> Optional[int]:
        """The checkpoint that the task starts from; ``None``: from nothing."""
        return self.asynchronous.restored

    @property
    def completed(self) -> Optional[int]:
        """The newest completed checkpoint that was told of."""
        return self.asynchronous.completed

    @property
    def finished(self) -> bool:
        """Whether the task was finished when the checkpoint was taken."""
        return self.asynchronous.finished

    @property
    def running(self) -> bool:
        """Whether there is more to do."""
        return self.asynchronous.running

    def __enter__(self) -> "Worker":
        self._loop.run(self.asynchronous.__aenter__())
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._loop.run(self.asynchronous.__aexit__(kind, error, trace))

    def run(self, work: Callable[["Worker"], T]) -> T:
        """Enters the worker, and does ``work`` for each attempt of the job until the job has ended; returns what the last one
        returned. The work of an attempt that is over gets :class:`Restart` when it asks the worker."""
        with self:
            while True:
                try:
                    result = work(self)
                    self.finish()
                    self.end()
                    return result
                except Exception as error:
                    # Peers of a task that has failed fail, too, and perhaps before they were told that the job restarts.
                    restart = error if isinstance(error, Restart) else self.asynchronous.restart
                    if restart is None:
                        raise
                    log.info("%s, task %s %d", restart, self.operator, self.subtask)
                self._loop.run(self.asynchronous.begin_attempt())

    def restore(self) -> list[Restored]:
        """What the task starts from, with its bytes, checked."""
        return self._loop.run(self.asynchronous.restore())

    def restoring(self) -> Iterator[Restored]:
        """The same part by part."""
        return self._loop.iterate(self.asynchronous.restoring())

    def start(self) -> None:
        """Says that the task has its state and runs. Asking for events does it, too, but for :meth:`poll`."""
        self._loop.run(self.asynchronous.start())

    def end_of_data(self) -> None:
        """Says that the task has read all of its input."""
        self._loop.run(self.asynchronous.end_of_data())

    def finish(self) -> None:
        """Says that the task has finished."""
        self._loop.run(self.asynchronous.finish())

    def end(self) -> None:
        """Waits until the job has ended."""
        self._loop.run(self.asynchronous.end())

    def fail(self, message: str) -> None:
        """Says that the task has failed, so that the job restarts."""
        self._loop.run(self.asynchronous.fail(message))

    def poll(self) -> Optional[Event]:
        """The next event, if there is one. Does not wait."""
        event = self.asynchronous.poll()
        return None if event is None else self._of(event)

    def next(self, timeout: Optional[float] = None) -> Optional[Event]:
        """The next event; ``None`` after ``timeout`` seconds, and when the job has ended."""
        event = self._loop.run(self.asynchronous.next(timeout))
        return None if event is None else self._of(event)

    def events(self) -> Iterator[Event]:
        """All that the worker is told, until the job ends or stops."""
        for event in self._loop.iterate(self.asynchronous.events()):
            yield self._of(event)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """The checkpoints that the task takes part in, until the job ends or stops."""
        for checkpoint in self._loop.iterate(self.asynchronous.checkpoints()):
            yield Checkpoint(self._loop, checkpoint)

    def _of(self, event: _checkpoint.Event) -> Event:
        return Checkpoint(self._loop, event) if isinstance(event, _checkpoint.Checkpoint) else event
