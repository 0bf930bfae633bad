"""What a coordinator tells its workers: as values, and how they arrive.

They come as server-sent events. A broken stream is opened again behind the last event that arrived; if no stream gets
through, because something on the way holds it back, events are polled for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, AsyncGenerator, Mapping, Optional, Protocol, Union

from ._http import Response
from .errors import ApiError, BadAnswer, EskerError, Silence

log = logging.getLogger("esker")

#: A stream is quiet for 5 s at most. What is quiet for so many seconds is broken, or held back on its way.
SILENCE_SECONDS = 15.0
#: How long a stream may take for its first event, which comes at once, before events are polled for, in seconds.
HELLO_SECONDS = 6.0
#: So many streams that fall silent, one after the other, are held back.
_SILENT_STREAMS_MAX = 2
_POLL_WAIT_SECONDS = 20
_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 5.0
_LINE_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class Raw:
    """An event as it arrived."""

    id: str
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Trigger:
    """Take a snapshot, and acknowledge it."""

    checkpoint: int
    attempt: int
    #: ``checkpoint`` or ``savepoint``.
    kind: str
    timestamp_ms: int
    timeout_ms: int
    #: ``EXACTLY_ONCE`` or ``AT_LEAST_ONCE``.
    mode: str
    unaligned: bool
    aligned_timeout_ms: int
    #: Segments of completed checkpoints may be named again.
    incremental: bool
    full: bool
    #: ``drain`` or ``suspend``: the job stops with this savepoint.
    stop: Optional[str]
    max_subtasks_per_channel_state_file: Optional[int]

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Trigger":
        """Reads the data of the event."""
        return Trigger(
            data["checkpoint"],
            data["attempt"],
            data.get("kind", "checkpoint"),
            data.get("timestamp_ms", 0),
            data.get("timeout_ms", 0),
            data.get("mode", "EXACTLY_ONCE"),
            bool(data.get("unaligned")),
            data.get("aligned_timeout_ms") or 0,
            bool(data.get("incremental")),
            bool(data.get("full")),
            data.get("stop"),
            data.get("max_subtasks_per_channel_state_file"),
        )


@dataclass(frozen=True)
class Completed:
    """A checkpoint is durable: commit what waits for it."""

    checkpoint: int
    kind: str = "checkpoint"
    #: The handle of its metadata; ``None`` if the event itself was missed, and this is told by what came after it.
    metadata: Optional[str] = None
    path: Optional[str] = None
    last_subsumed: Optional[int] = None


@dataclass(frozen=True)
class Aborted:
    """Forget what was made for a checkpoint."""

    checkpoint: int
    kind: str = "checkpoint"
    #: One of Flink's; empty if the event itself was missed.
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Subsumed:
    """Checkpoints up to this one are given up."""

    checkpoint: int


@dataclass(frozen=True)
class Stopped:
    """The job has stopped with a savepoint: the task ends."""

    checkpoint: int
    path: Optional[str]
    drain: bool


@dataclass(frozen=True)
class Ended:
    """The job has ended."""

    #: ``FINISHED``, ``CANCELED``, ``FAILED`` or ``SUSPENDED``; ``None`` if that was missed, and nothing is known of the job now.
    state: Optional[str]
    kept: bool


class Caller(Protocol):
    """What is needed of a client."""

    async def open(
        self, method: str, path: str, *, query: Mapping[str, object], headers: Mapping[str, str], timeout: float
    ) -> Response:
        """Sends a request; returns once the head of a good answer is there."""

    async def call(
        self, method: str, path: str, *, query: Mapping[str, object], timeout: float, patience: float
    ) -> bytes:
        """Sends a request; returns the body of a good answer."""


class EventStreamParser:
    """Server-sent events out of the bytes of a stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Raw]:
        """The events that are whole with these bytes."""
        events = []
        lines = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LINE_BYTES_MAX:
            raise BadAnswer(f"an event has more than {_LINE_BYTES_MAX} bytes")
        for line in lines:
            event = self._line(line.decode("utf-8", "replace"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: str) -> Optional[Raw]:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "id" and "\0" not in value:
            self._id = value
        elif field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None

    def _dispatch(self) -> Optional[Raw]:
        name, text = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        return Raw(self._id, name, _json(text)) if text else None


class Subscription:
    """The events of a job, for as long as somebody wants them. The end of the job ends them."""

    def __init__(self, caller: Caller, path: str, worker: Optional[str], mode: str = "auto") -> None:
        if mode not in ("auto", "stream", "poll"):
            raise ValueError(f"events: {mode!r} is none of auto, stream, poll")
        self._caller = caller
        self._path = path
        self._worker = worker
        self._mode = mode
        self._pause = _PAUSE_SECONDS_MIN
        self._silent_streams = 0
        #: The last event that arrived.
        self.last_id: Optional[str] = None

    @property
    def polls(self) -> bool:
        """Whether events are polled for."""
        return self._mode == "poll"

    async def __aiter__(self) -> AsyncGenerator[Raw, None]:
        while True:
            pause = _PAUSE_SECONDS_MIN
            try:
                source = self._poll() if self._mode == "poll" else self._stream()
                async with aclosing(source):
                    async for event in source:
                        if event.id:
                            self.last_id = event.id
                        yield event
                        if event.name == "end":
                            return
            except _HeldBack:
                log.info("events of %s do not get through as a stream: polling for them", self._path)
                self._mode = "poll"
                continue
            except EskerError as error:
                if not error.transient:
                    raise
                told = error.retry_after if isinstance(error, ApiError) else None
                pause = max(told or 0.0, self._pause)
                self._pause = min(self._pause * 2, _PAUSE_SECONDS_MAX)
                log.debug("events of %s broke off, again in %.1f s: %s", self._path, pause, error)
            # Workers of a daemon that restarts do not all come back at the same moment.
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))

    def _query(self) -> dict[str, object]:
        return {"worker": self._worker} if self._worker else {}

    async def _stream(self) -> AsyncGenerator[Raw, None]:
        headers = {"accept": "text/event-stream", "cache-control": "no-cache"}
        first = self.last_id is None
        if self.last_id is not None:
            headers["last-event-id"] = self.last_id
        try:
            response = await self._caller.open(
                "GET",
                self._path,
                query=self._query(),
                headers=headers,
                # The first event, `hello`, comes at once.
                timeout=HELLO_SECONDS if first and self._mode == "auto" else SILENCE_SECONDS,
            )
        except ApiError as error:
            if self._mode == "auto" and error.status == 406:
                raise _HeldBack from None
            raise
        except Silence:
            self._fell_silent(first)
            raise
        try:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._no_stream()
            parser = EventStreamParser()
            while data := await self._piece(response, first):
                response.timeout = SILENCE_SECONDS
                self._pause = _PAUSE_SECONDS_MIN
                for event in parser.feed(data):
                    first, self._silent_streams = False, 0
                    yield event
        finally:
            response.close()

    async def _piece(self, response: Response, first: bool) -> bytes:
        try:
            return await response.piece()
        except Silence:
            self._fell_silent(first)
            raise

    def _fell_silent(self, first: bool) -> None:
        self._silent_streams += 1
        if self._mode == "auto" and (first or self._silent_streams >= _SILENT_STREAMS_MAX):
            raise _HeldBack from None

    def _no_stream(self) -> Exception:
        return _HeldBack() if self._mode == "auto" else BadAnswer(f"{self._path}: the answer is no event stream")

    async def _poll(self) -> AsyncGenerator[Raw, None]:
        while True:
            query = self._query()
            if self.last_id is not None:
                query.update(after=self.last_id, wait=f"{_POLL_WAIT_SECONDS}s")
            text = await self._caller.call(
                "GET", self._path, query=query, timeout=_POLL_WAIT_SECONDS + SILENCE_SECONDS, patience=0.0
            )
            self._pause = _PAUSE_SECONDS_MIN
            answer = _json(text)
            events = answer.get("events")
            if not isinstance(events, list):
                raise BadAnswer(f"{self._path}: an answer without events")
            for event in events:
                yield Raw(str(event.get("id", "")), str(event.get("event", "")), event.get("data") or {})
            next_id = answer.get("next")
            if isinstance(next_id, str):
                self.last_id = next_id
            elif not events:
                # Without a place to go on from the next poll would be answered at once, again and again.
                raise BadAnswer(f"{self._path}: an answer without next")


class _HeldBack(Exception):
    """No stream gets through."""


def _json(text: Union[str, bytes]) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadAnswer(f"an event is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadAnswer("an event is no JSON object")
    return value
