"""The client: a method for each request of the API, and how requests are repeated.

Every request is made so that a repeat does no harm (segments and triggers have a key that makes them the same), and is
repeated as long as a repeat may help: after a broken connection, and when the daemon or a proxy says 503, 421, 429, 502
or 504. The pause is what ``Retry-After`` says, at least one that grows from 50 ms to 5 s. :attr:`Client.patience` says for how
long; then the last error is raised.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import struct
import time
import uuid
from typing import Any, AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Optional, Sequence, TypeVar
from urllib.parse import quote, urlencode

from ._http import Address, Http, Response
from .crc32c import Buffer, crc_text, extend
from .errors import ApiError, BadAnswer, ChecksumMismatch, EskerError, NotFound, RequestFailed, refusal
from .events import Subscription
from .restore import read_segments
from .state import Segment, State, TaskState

DEFAULT_ADDRESS = "http://127.0.0.1:9001"
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 5.0
#: A request that waits at the daemon, for a savepoint, say, asks again after so many seconds.
_WAIT_SECONDS = 30
#: From this size on a checksum is computed beside the event loop.
_LARGE_BYTES = 1 << 18
Json = dict[str, Any]
T = TypeVar("T")


class Client:
    """Talks to one daemon, or to several behind one address. It belongs to the event loop that uses it first.

    Args:
        address: ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:PATH``; else ``ESKER_API``, else that of ``esker dev``.
        token: one of the daemon's ``auth.tokens``; else ``ESKER_TOKEN``.
        tls: whom to trust and who one is, for ``https``; else the authorities of ``ESKER_CA``, else those of the machine.
        connect_timeout: seconds for a connection.
        timeout: seconds in which not a byte moves, for an answer.
        patience: seconds after its first failure for which a request is repeated.

    Raises:
        AddressError: the address is none.
    """

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
        where = Address.parse(address or os.environ.get("ESKER_API") or DEFAULT_ADDRESS)
        if tls is None and where.scheme == "https" and (authorities := os.environ.get("ESKER_CA")):
            tls = ssl.create_default_context(cafile=authorities)
        self._http = Http(where, tls=tls, connect_timeout=connect_timeout, timeout=timeout)
        self._token = token or os.environ.get("ESKER_TOKEN")
        #: Seconds after its first failure for which a request is repeated.
        self.patience = patience

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections that are not in use."""
        self._http.close()

    @property
    def address(self) -> str:
        """Where the daemon listens."""
        return str(self._http.address)

    # Jobs

    async def create_job(
        self,
        job: str,
        *,
        operators: Optional[Sequence[Mapping[str, Any]]] = None,
        settings: Optional[Mapping[str, Any]] = None,
        iterative: bool = False,
    ) -> Json:
        """Creates a job; with ``operators``, one that has a coordinator. Nothing happens if it exists as it is given.

        ``operators``: ``{"id", "parallelism", "max_parallelism"?, "inputs"?, ..}``; ``settings``: Flink's keys.

        Raises:
            InvalidRequest: a field is wrong. Conflict: the job exists with other operators or settings.
        """
        question: Json = {"job": job}
        if operators is not None:
            question.update(coordinated=True, operators=list(operators))
            if settings:
                question["settings"] = dict(settings)
            if iterative:
                question["iterative"] = True
        return await self._json("POST", "/v1/jobs", question)

    async def jobs(self) -> list[Json]:
        """All jobs."""
        return _list(await self._value("GET", "/v1/jobs"))

    async def job(self, job: str) -> Json:
        """A job; ``coordinator`` tells how its checkpoints stand."""
        return await self._json("GET", _of(job))

    async def configure(self, job: str, settings: Mapping[str, Any]) -> Json:
        """Changes some of a job's settings while it runs. Returns the job."""
        return await self._json("POST", _of(job, "/settings"), {"settings": dict(settings)})

    async def end_job(self, job: str, state: str, retention: Optional[str] = None) -> Json:
        """Ends a job as ``FINISHED``, ``CANCELED``, ``FAILED`` or ``SUSPENDED``. Returns ``{"kept"}``."""
        question: Json = {"state": state}
        if retention is not None:
            question["retention"] = retention
        return await self._json("POST", _of(job, "/end"), question)

    # Coordinated checkpoints

    async def report(
        self,
        job: str,
        attempt: int,
        tasks: Iterable[Mapping[str, Any]],
        worker: Optional[str] = None,
        *,
        message: Optional[str] = None,
        patience: Optional[float] = None,
        timeout: Optional[float] = None,
    ) -> Json:
        """Says how tasks are: ``{"operator", "subtask", "state"}``; ``message``: why one failed. It is the heartbeat, too.

        ``worker``: the process that they are in, by a name that no other one has; tasks that run need one.

        Raises:
            AttemptOver: the job has restarted.
        """
        question: Json = {"attempt": attempt, "tasks": [dict(task) for task in tasks]}
        question.update(_without_none({"worker": worker, "message": message}))
        return await self._json("POST", _of(job, "/tasks"), question, patience=patience, timeout=timeout)

    def events(self, job: str, worker: Optional[str] = None, mode: str = "auto") -> Subscription:
        """The events of a job. ``mode``: ``stream``, ``poll``, or ``auto``: a stream if one gets through."""
        return Subscription(self, _of(job, "/events"), worker, mode)

    async def acknowledge(
        self,
        job: str,
        checkpoint: int,
        operator: str,
        subtask: int,
        attempt: int,
        states: Iterable[State] = (),
        *,
        finished: bool = False,
        task_manager: Optional[str] = None,
        figures: Optional[Mapping[str, int]] = None,
    ) -> Json:
        """Acknowledges a checkpoint; the bytes of states that are not stored yet go with it, and are durable once it is
        answered.

        ``figures``: ``bytes_in_flight``, ``alignment_ms``, ``sync_ms``, ``async_ms``, ``start_delay_ms``.

        Raises:
            CheckpointOver: it was aborted, or subsumed, or never triggered.
            AttemptOver: the job has restarted.
            StateRefused: stored states may not be used again.
        """
        entries: list[Json] = []
        frames: list[tuple[Json, Sequence[Buffer]]] = []
        announced: list[tuple[int, str]] = []
        for state in states:
            if state.segment is not None:
                entries.append(state.entry())
                continue
            entries.append(state.entry(len(announced)))
            crc = crc_text(await _crc_of(state.data))
            announced.append((state.len, crc))
            frames.append((_without_none({
                "len": state.len,
                "scope": state.scope,
                "name": state.name or None,
                "task_manager": task_manager,
                "crc32c": crc,
            }), state.data))
        head: Json = {"operator": operator, "subtask": subtask, "attempt": attempt, "state": entries}
        if finished:
            head["finished"] = True
        head.update(figures or {})
        path = _of(job, f"/checkpoints/{checkpoint}/ack")
        if not frames:
            return await self._json("POST", path, head)
        answer = await self._json("POST", path, body=_framed([(head, ()), *frames]))
        # A repeat after the checkpoint has completed is not told of its segments.
        stored = [Segment.of(segment) for segment in answer.get("segments") or ()]
        if stored and [(segment.len, segment.crc32c) for segment in stored] != announced:
            raise BadAnswer(f"{path}: the daemon tells of other segments than were sent")
        return answer

    async def decline(
        self,
        job: str,
        checkpoint: int,
        operator: str,
        subtask: int,
        attempt: int,
        reason: Optional[str] = None,
        message: Optional[str] = None,
    ) -> None:
        """Aborts a checkpoint. Nothing happens if it is over.

        Raises:
            AttemptOver: the job has restarted.
        """
        question = {"operator": operator, "subtask": subtask, "attempt": attempt, "reason": reason, "message": message}
        await self.call("POST", _of(job, f"/checkpoints/{checkpoint}/decline"), question=_without_none(question))

    async def set_backlog(self, job: str, source: str, backlog: bool) -> None:
        """Says whether a source works through a backlog, in which other intervals may count."""
        await self.call("PUT", _of(job, "/backlog"), question={"source": source, "backlog": backlog})

    async def trigger_checkpoint(self, job: str, *, timeout: Optional[float] = None) -> Json:
        """Triggers a checkpoint, and returns when it is over: ``{"request", "state", "checkpoint", "path", ..}``. With
        ``timeout`` (seconds) the answer may be one whose ``state`` is ``queued`` or ``pending``.

        Raises:
            RequestFailed: it failed; says why.
        """
        return await self._by_hand(f"checkpoint of job {job}", _of(job, "/checkpoints:trigger"), {}, timeout)

    async def trigger_savepoint(
        self, job: str, dir: Optional[str] = None, *, format: Optional[str] = None, timeout: Optional[float] = None
    ) -> Json:
        """Takes a savepoint into ``dir`` (``s3://bucket/prefix``), else that of the settings; returns as
        :meth:`trigger_checkpoint` does. ``path`` is where it stands."""
        question = _without_none({"dir": dir, "format": format})
        return await self._by_hand(f"savepoint of job {job}", _of(job, "/savepoints:trigger"), question, timeout)

    async def stop(
        self,
        job: str,
        *,
        drain: bool = False,
        dir: Optional[str] = None,
        format: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> Json:
        """Stops a job with a savepoint; returns as :meth:`trigger_checkpoint` does, once the savepoint is there. If that
        fails, the job goes on."""
        question = _without_none({"drain": drain, "dir": dir, "format": format})
        return await self._by_hand(f"stop of job {job}", _of(job, "/stop"), question, timeout)

    async def _by_hand(self, what: str, path: str, question: Json, timeout: Optional[float]) -> Json:
        # The key makes a repeat the same request: one whose answer was lost, and one that waits longer.
        key = uuid.uuid4().hex
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _WAIT_SECONDS if deadline is None else min(_WAIT_SECONDS, max(deadline - time.monotonic(), 0.0))
            asked = dict(question, wait=f"{int(left * 1000)} ms")
            answer = await self._json(
                "POST", path, asked, headers={"idempotency-key": key}, timeout=left + self._http.timeout_default
            )
            if answer.get("state") == "failed":
                raise RequestFailed(what, answer.get("reason"), answer.get("message"))
            if answer.get("state") == "completed" or (deadline is not None and time.monotonic() >= deadline):
                return answer

    async def state(self, job: str, operator: str, subtask: int) -> TaskState:
        """What a task starts from."""
        answer = await self._json("GET", _of(job, "/state"), query={"operator": operator, "subtask": subtask})
        tasks = TaskState.all_of(answer)
        if len(tasks) != 1 or (tasks[0].operator, tasks[0].subtask) != (operator, subtask):
            raise BadAnswer(f"state of job {job}: the daemon tells of another task than {operator} {subtask}")
        return tasks[0]

    async def states(self, job: str) -> list[TaskState]:
        """What all tasks of a job start from."""
        return TaskState.all_of(await self._json("GET", _of(job, "/state")))

    async def restore_job(
        self,
        job: str,
        *,
        from_job: Optional[str] = None,
        checkpoint: Optional[int] = None,
        savepoint: Optional[str] = None,
        mode: Optional[str] = None,
        operators: Optional[Sequence[Mapping[str, Any]]] = None,
        allow_non_restored_state: bool = False,
    ) -> list[TaskState]:
        """Begins a new attempt of a coordinated job from a checkpoint or savepoint, of its own or of another job;
        ``operators`` replaces those of the job (another parallelism). Returns what all tasks start from.

        Raises:
            Conflict: the state does not fit; nothing has changed.
        """
        question = _without_none({
            "from": from_job, "checkpoint": checkpoint, "savepoint": savepoint, "mode": mode,
            "operators": None if operators is None else list(operators),
            "allow_non_restored_state": True if allow_non_restored_state else None,
        })
        return TaskState.all_of(await self._json("POST", _of(job, "/restore"), question))

    async def history(self, job: str) -> list[Json]:
        """The last checkpoints that were coordinated, newest first: who was late, how large they were."""
        return _list(await self._value("GET", _of(job, "/checkpoints:history")))

    async def metadata(self, job: str, checkpoint: int) -> Json:
        """The metadata of a completed checkpoint."""
        return await self._json("GET", _of(job, f"/checkpoints/{checkpoint}/metadata"))

    # Checkpoints by hand, for jobs without a coordinator

    async def begin(self, job: str, checkpoint: int, kind: str = "checkpoint") -> None:
        """Begins a checkpoint, or a savepoint. Nothing happens if it has begun."""
        await self.call("POST", _of(job, f"/checkpoints/{checkpoint}"), query={"kind": kind})

    async def complete(self, job: str, checkpoint: int) -> None:
        """Completes a checkpoint: the job can be restored from it."""
        await self.call("POST", _of(job, f"/checkpoints/{checkpoint}/complete"))

    async def abort(self, job: str, checkpoint: int) -> None:
        """Aborts a checkpoint: frees its segments that no later one uses, and refuses late ones."""
        await self.call("POST", _of(job, f"/checkpoints/{checkpoint}/abort"))

    async def subsume(self, job: str, checkpoint: int) -> None:
        """Subsumes every checkpoint up to this one: frees what none after it uses."""
        await self.call("POST", _of(job, f"/checkpoints/{checkpoint}/subsume"))

    async def reuse(self, job: str, checkpoint: int, segments: Sequence[str]) -> list[str]:
        """Says that a checkpoint uses segments of earlier ones. Returns those that have to be stored again."""
        path = _of(job, f"/checkpoints/{checkpoint}/reuse")
        return _list((await self._json("POST", path, {"segments": list(segments)})).get("refused"))

    async def checkpoints(self, job: str) -> list[Json]:
        """The checkpoints of a job that are not subsumed, in order."""
        return _list(await self._value("GET", _of(job, "/checkpoints")))

    async def latest_checkpoint(self, job: str) -> Optional[Json]:
        """The newest completed checkpoint of a job, or ``None``."""
        try:
            return await self._json("GET", _of(job, "/checkpoints/latest"))
        except NotFound:
            return None

    async def discard_savepoint(self, job: str, savepoint: int) -> None:
        """Discards a savepoint: frees its segments. Nothing happens if there is none."""
        await self.call("DELETE", _of(job, f"/checkpoints/{savepoint}"))

    # Segments

    async def put(
        self,
        job: str,
        data: Buffer,
        *,
        checkpoint: int,
        operator: Optional[str] = None,
        subtask: Optional[int] = None,
        parallelism: Optional[int] = None,
        scope: str = "exclusive",
        name: Optional[str] = None,
        task_manager: Optional[str] = None,
        idempotency_key: Optional[str] = None,
    ) -> Segment:
        """Stores a segment for a checkpoint. Returns once it is durable. Without a key of its own a put gets one, for its
        repeats.

        Raises:
            Conflict: the checkpoint is over. NotFound: there is no such job.
        """
        query = _without_none({
            "checkpoint": checkpoint, "operator": operator, "subtask": subtask, "parallelism": parallelism,
            "scope": scope, "name": name, "task_manager": task_manager,
        })
        crc = crc_text(await _crc_of([data]))
        headers = {"x-esker-crc32c": crc, "idempotency-key": idempotency_key or uuid.uuid4().hex}
        answer = await self._json("POST", _of(job, "/segments"), query=query, headers=headers, body=[data])
        segment = Segment.of(answer)
        if (segment.len, segment.crc32c) != (memoryview(data).nbytes, crc):
            raise BadAnswer(f"segment {segment.segment}: the daemon has {segment.len} bytes of CRC-32C {segment.crc32c}")
        return segment

    async def put_many(self, job: str, segments: Sequence[tuple[Mapping[str, Any], Buffer]]) -> list[Segment]:
        """Stores many segments with one request: heads as the arguments of :meth:`put`, and bytes. Returns once all are
        durable.

        Raises:
            ApiError: one of them was refused; the others are stored.
        """
        frames = []
        for head, data in segments:
            told = {"idempotency_key": uuid.uuid4().hex, **_without_none(head)}
            told.update(len=memoryview(data).nbytes, crc32c=crc_text(await _crc_of([data])))
            frames.append((told, [data]))
        path = _of(job, "/segments/batch")
        kind = {"content-type": "application/octet-stream"}

        async def once() -> list[Segment]:
            response = await self.open("POST", path, headers=kind, body=_framed(frames))
            answers = [_parsed(line) for line in (await response.read()).splitlines() if line.strip()]
            for answer in answers:
                if "error" in answer:
                    raise refusal(f"POST {path}", _status_of(answer), {}, json.dumps(answer).encode())
            stored = [Segment.of(answer) for answer in answers]
            if [(segment.len, segment.crc32c) for segment in stored] != [(h["len"], h["crc32c"]) for h, _ in frames]:
                raise BadAnswer(f"{path}: the daemon tells of other segments than were sent")
            return stored

        return await self._repeated(once)

    async def get(self, segment: str) -> bytes:
        """The bytes of a segment, by its identity or handle, checked against its checksum."""
        kind = "handles" if segment.startswith("esker1:") else "segments"
        path = f"/v1/{kind}/{quote(segment, safe='')}"

        async def read() -> bytes:
            response = await self.open("GET", path)
            data = await response.read()
            announced, actual = response.headers.get("x-esker-crc32c", ""), crc_text(await _crc_of([data]))
            if announced != actual:
                raise ChecksumMismatch(segment, announced, actual)
            return data

        return await self._repeated(read)

    async def get_range(self, segment: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of a segment, half-open. The daemon checks them."""
        if start >= end:
            return b""
        path = f"/v1/segments/{quote(segment, safe='')}"
        data = await self.call("GET", path, headers={"range": f"bytes={start}-{end - 1}"})
        if len(data) != end - start:
            raise BadAnswer(f"segment {segment}: {len(data)} bytes, {end - start} were asked for")
        return data

    def read(self, segments: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        """The bytes of many segments, in the order asked, checked; the daemon reads those together that are near each
        other. An answer that breaks off is asked for from there on again."""
        return read_segments(self, segments)

    # How requests are sent

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Optional[Mapping[str, object]] = None,
        headers: Optional[Mapping[str, str]] = None,
        body: Sequence[Buffer] = (),
        timeout: Optional[float] = None,
    ) -> Response:
        """Sends a request once. Returns when the head of a good answer is there.

        Raises:
            ApiError: it is refused. ConnectionLost: there is no answer.
        """
        target = path + ("?" + urlencode({k: str(v) for k, v in query.items()}, quote_via=quote) if query else "")
        head = list((headers or {}).items())
        if self._token:
            head.append(("authorization", f"Bearer {self._token}"))
        response = await self._http.send(method, target, head, body, timeout)
        if 200 <= response.status < 300:
            return response
        raise refusal(f"{method} {path}", response.status, response.headers, await response.read())

    async def call(
        self,
        method: str,
        path: str,
        *,
        question: Optional[Mapping[str, Any]] = None,
        query: Optional[Mapping[str, object]] = None,
        headers: Optional[Mapping[str, str]] = None,
        body: Sequence[Buffer] = (),
        content_type: Optional[str] = None,
        timeout: Optional[float] = None,
        patience: Optional[float] = None,
    ) -> bytes:
        """Sends a request until it is answered, or patience ends. Returns the body of the answer."""
        told = dict(headers or {})
        if question is not None:
            body, content_type = [json.dumps(question, separators=(",", ":")).encode()], "application/json"
        if content_type is not None:
            told["content-type"] = content_type

        async def once() -> bytes:
            response = await self.open(method, path, query=query, headers=told, body=body, timeout=timeout)
            return await response.read()

        return await self._repeated(once, patience)

    async def _repeated(self, once: Callable[[], Awaitable[T]], patience: Optional[float] = None) -> T:
        pause, deadline = _PAUSE_SECONDS_MIN, None
        while True:
            try:
                return await once()
            except EskerError as error:
                if not error.transient:
                    raise
                told = error.retry_after if isinstance(error, ApiError) else None
                wait = max(told or 0.0, pause * random.uniform(0.5, 1.0))
                now = time.monotonic()
                deadline = deadline or now + (self.patience if patience is None else patience)
                if now + wait > deadline:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    async def _value(self, method: str, path: str, question: Optional[Mapping[str, Any]] = None, **more: Any) -> Any:
        if more.get("body"):
            more["content_type"] = "application/octet-stream"
        text = await self.call(method, path, question=question, **more)
        return _parsed(text)

    async def _json(self, method: str, path: str, question: Optional[Mapping[str, Any]] = None, **more: Any) -> Json:
        value = await self._value(method, path, question, **more)
        if not isinstance(value, dict):
            raise BadAnswer(f"{method} {path}: the answer is no JSON object")
        return value


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise BadAnswer(f"the answer is no JSON: {text[:80]!r}") from None


def _of(job: str, rest: str = "") -> str:
    """The path of a job; the slashes in its name are encoded."""
    if not job:
        raise ValueError("job: has no name")
    return f"/v1/jobs/{quote(job, safe='')}{rest}"


def _framed(frames: Sequence[tuple[Mapping[str, Any], Sequence[Buffer]]]) -> list[Buffer]:
    body: list[Buffer] = []
    for head, data in frames:
        text = json.dumps(head, separators=(",", ":")).encode()
        body.append(struct.pack("<I", len(text)) + text)
        body.extend(data)
    return body


async def _crc_of(parts: Sequence[Buffer]) -> int:
    def compute() -> int:
        crc = 0
        for part in parts:
            crc = extend(crc, part)
        return crc

    if sum(memoryview(part).nbytes for part in parts) < _LARGE_BYTES:
        return compute()
    return await asyncio.to_thread(compute)


_STATUS_OF_KIND = {"invalid": 400, "not_found": 404, "conflict": 409, "precondition": 412}


def _status_of(line: Mapping[str, Any]) -> int:
    kind = line["error"].get("kind") if isinstance(line["error"], dict) else None
    return _STATUS_OF_KIND.get(kind or "", 503)


def _without_none(values: Mapping[str, Any]) -> Json:
    return {key: value for key, value in values.items() if value is not None}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadAnswer("the answer is no list")
    return value
