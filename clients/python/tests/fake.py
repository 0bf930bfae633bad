"""A daemon in the process of a test: the contract of docs/coordinator.md for one moment at a time, and faults on command.

It keeps in memory what a daemon keeps on storage. ``restart`` forgets what a daemon forgets: connections, the ids of events,
requests for savepoints; pending checkpoints and the attempt stay. It is no measure of the daemon: that is what ``test_daemon.py``
runs against.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, unquote, urlsplit

from esker.crc32c import crc32c, crc_text


class Refused(Exception):
    def __init__(self, status: int, kind: str, message: str, field: Optional[str] = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.field = status, kind, message, field


@dataclass
class Fault:
    """Happens to the next ``times`` requests that match."""

    method: str
    path: str
    what: str
    times: int = 1
    #: Of an answer in place of the right one.
    status: int = 503
    retry_after: Optional[str] = None
    #: What is changed or cut, counted in bytes of the body.
    at: int = 0
    after: int = 0


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Pending:
    number: int
    kind: str
    trigger: dict[str, Any]
    acks: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    request: Optional[str] = None


class Job:
    def __init__(self, name: str, operators: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        self.name, self.operators, self.settings = name, operators, settings
        self.attempt = 1
        self.ended: Optional[str] = None
        self.tasks: dict[tuple[str, int], str] = {}
        self.heard: dict[tuple[str, int], float] = {}
        self.pending: dict[int, Pending] = {}
        self.completed: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
        self.aborted: set[int] = set()
        self.next_number = 1
        self.from_checkpoint: Optional[int] = None
        self.log: list[dict[str, Any]] = []
        self.last_triggered = 0.0
        #: What tests look at.
        self.reports: list[tuple[str, int, str]] = []
        self.failures: list[str] = []

    def all_tasks(self) -> list[tuple[str, int]]:
        return [(o["id"], n) for o in self.operators for n in range(o["parallelism"])]

    @property
    def running(self) -> bool:
        return all(self.tasks.get(task) in ("running", "end-of-data", "finished") for task in self.all_tasks())

    @property
    def status(self) -> str:
        if self.running:
            return "running"
        return "created" if self.attempt == 1 else "restarting"


class Fake:
    """Use as a context manager: listens on a free port of the loopback."""

    def __init__(self, *, heartbeat_ms: int = 200, heartbeat_timeout_ms: int = 60_000, interval_s: float = 0.0) -> None:
        self.heartbeat_ms, self.heartbeat_timeout_ms, self.interval_s = heartbeat_ms, heartbeat_timeout_ms, interval_s
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.jobs: dict[str, Job] = {}
        self.segments: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._stored = 0
        self.by_key: dict[str, str] = {}
        self.by_hand: dict[str, dict[str, Any]] = {}
        self.epoch = uuid.uuid4().hex[:6]
        self.hold_streams = False
        self.unix: Optional[str] = None
        self.tls: Optional[ssl.SSLContext] = None
        #: Whether jobs are known after their end, as those are of which something is kept.
        self.keeps_ended = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._changed: Optional[asyncio.Condition] = None
        self.port = 0

    @property
    def address(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> "Fake":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.on_loop(self._listen)
        if self.interval_s:
            asyncio.run_coroutine_threadsafe(self._tick(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self.on_loop(self._end_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def on_loop(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            result = work()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _listen(self) -> None:
        self._changed = self._changed or asyncio.Condition()
        if self.unix is not None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(self.unix)
        else:
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", self.port))
            self.port = self._socket.getsockname()[1]
        self._socket.listen(100)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """In place of asyncio's server, which forgets connections that come while it is closed: nobody answers those."""
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._loop.create_task(self._welcome(connection))

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=1 << 20), self._serve)
            await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self.tls)
        except OSError:
            connection.close()  # A handshake that came to nothing.

    async def _end_all(self) -> None:
        await self._hang_up()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _hang_up(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for writer in list(self._writers):
            writer.transport.abort()

    # What tests command

    def fault(self, method: str, path: str, what: str, **more: Any) -> Fault:
        fault = Fault(method, path, what, **more)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str) -> int:
        return sum(1 for r in list(self.requests) if r.method == method and re.search(path, r.path))

    def restart(self, down_s: float = 0.0, forget: bool = True) -> None:
        """The daemon ends without a word, and is back on the same port, another process. ``forget`` is false if another door
        tells the same events."""

        async def run() -> None:
            await self._hang_up()
            await asyncio.sleep(down_s)
            self.epoch = uuid.uuid4().hex[:6]
            self.by_hand.clear()
            for job in self.jobs.values() if forget else ():
                job.log.clear()
            await self._listen()

        self.on_loop(run)

    def cut_streams(self) -> None:
        def cut() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self.on_loop(cut)

    def trigger(self, job: str, kind: str = "checkpoint", **more: Any) -> int:
        return int(self.on_loop(lambda: self._trigger(self.jobs[job], kind, **more)))

    def abort(self, job: str, number: int, reason: str = "CHECKPOINT_EXPIRED") -> None:
        self.on_loop(lambda: self._abort(self.jobs[job], number, reason))

    def lose(self, job: str, cause: str = "TASK_FAILURE") -> None:
        self.on_loop(lambda: self._restart_job(self.jobs[job], cause, "told by the test"))

    # HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        method, target, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        url = urlsplit(target)
        fault = self._fault_of(method, url.path)
        if fault is not None and fault.what == "answer early":
            # Refused before its body was read.
            await self._answer(writer, fault.status, b"{}", None)
            # A connection that is reset at once takes the answer with it.
            await asyncio.sleep(0.5)
            return False
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        request = Request(method, url.path, query, headers, body)
        self.requests.append(request)
        if fault is not None and fault.what == "close":
            return False
        if fault is not None and fault.what == "silence":
            await asyncio.sleep(3600)
        if fault is not None and fault.what == "status":
            more = f"retry-after: {fault.retry_after}\r\n" if fault.retry_after is not None else ""
            await self._answer(writer, fault.status, b"<html>a proxy's words</html>", None, more)
            return True
        try:
            if url.path.endswith("/events"):
                return await self._events(request, writer)
            status, answer, more = await self._route(request)
        except Refused as error:
            detail = {"kind": error.kind, "message": error.message, "field": error.field, "request_id": "r-1"}
            status, answer, more = error.status, json.dumps({"error": detail}).encode(), ""
        if fault is not None and fault.what == "lose answer":
            return False
        await self._answer(writer, status, answer, fault, more)
        return True

    def _fault_of(self, method: str, path: str) -> Optional[Fault]:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                if fault.after > 0:
                    fault.after -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    async def _answer(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, fault: Optional[Fault], more: str = ""
    ) -> None:
        what = fault.what if fault else ""
        if fault and what == "corrupt":
            body = body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :]
        chunked = what in ("chunks", "cut chunks")
        length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
        writer.write(f"HTTP/1.1 {status} X\r\n{length}\r\n{more}\r\n".encode())
        if fault and what in ("cut", "cut chunks"):
            part = body[: fault.at]
            writer.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
            raise OSError("cut")
        if what == "slow":
            for begin in range(0, len(body), max(len(body) // 20, 1)):
                writer.write(body[begin : begin + max(len(body) // 20, 1)])
                await writer.drain()
                await asyncio.sleep(0.01)
        elif chunked:
            for begin in range(0, len(body), 7):
                part = body[begin : begin + 7]
                writer.write(b"%x;ext=1\r\n%s\r\n" % (len(part), part))
            writer.write(b"0\r\ntrailer: x\r\n\r\n")
        else:
            writer.write(body)
        await writer.drain()

    async def _events(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        job = self._job(unquote(request.path.split("/")[3]))
        stream = "text/event-stream" in request.headers.get("accept", "")
        after = request.headers.get("last-event-id") or request.query.get("after")
        if not stream:
            events, next_id = await self._poll(job, after)
            await self._answer(writer, 200, json.dumps({"events": events, "next": next_id}).encode(), None)
            return True
        if self.hold_streams:
            # A proxy that waits for the end of the answer before it passes it on.
            await asyncio.sleep(3600)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            events, after = self._since(job, after)
            text = "".join(f"id: {e['id']}\nevent: {e['event']}\ndata: {json.dumps(e['data'])}\n\n" for e in events)
            # In pieces that end anywhere.
            for piece in (text[: len(text) // 2].encode(), text[len(text) // 2 :].encode()):
                if piece:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
            if any(e["event"] == "end" for e in events):
                writer.write(b"0\r\n\r\n")
                return True
            assert self._changed
            async with self._changed:
                if not self._since(job, after)[0]:
                    await self._changed.wait()

    async def _poll(self, job: Job, after: Optional[str]) -> tuple[list[dict[str, Any]], str]:
        end = time.monotonic() + 0.5
        while True:
            events, next_id = self._since(job, after)
            if events or time.monotonic() > end:
                return events, next_id
            await asyncio.sleep(0.02)

    def _since(self, job: Job, after: Optional[str]) -> tuple[list[dict[str, Any]], str]:
        newest = f"{self.epoch}-{len(job.log)}"
        if after is None or not after.startswith(self.epoch + "-"):
            hello = {
                "attempt": job.attempt, "status": job.status, "completed": max(job.completed, default=None),
                "subsumed": None, "pending": [p.trigger for p in job.pending.values()],
                "heartbeat_ms": self.heartbeat_ms, "heartbeat_timeout_ms": self.heartbeat_timeout_ms,
            }
            told = [{"id": newest, "event": "hello", "data": hello}]
            if job.ended:
                told.append({"id": newest, "event": "end", "data": {"state": job.ended, "kept": False}})
            return told, newest
        return job.log[int(after.split("-")[1]) :], newest

    # Requests

    def _job(self, name: str) -> Job:
        if name not in self.jobs or (self.jobs[name].ended and not self.keeps_ended):
            raise Refused(404, "not_found", f"job {name} is not known", "job")
        return self.jobs[name]

    async def _route(self, request: Request) -> tuple[int, bytes, str]:
        if request.path == "/v1/restore":
            return 200, self._restore_stream(request.json()["segments"]), ""
        if found := re.fullmatch(r"/v1/(segments|handles)/(.+)", request.path):
            return self._get(unquote(found[2]).removeprefix("esker1:"), request)
        if request.path == "/v1/jobs":
            answer = self._create(request.json()) if request.method == "POST" else [self._info(j) for j in self.jobs.values()]
            return (201 if request.method == "POST" else 200), json.dumps(answer).encode(), ""
        parts = request.path.split("/")
        job, rest = self._job(unquote(parts[3])), "/".join(parts[4:])
        if rest in ("checkpoints:trigger", "savepoints:trigger", "stop"):
            status, answer = await self._by_hand(job, rest, request)
            return status, json.dumps(answer).encode(), ""
        answer = self._of_job(job, rest, request)
        await self._notify()
        if answer is None:
            return 204, b"", ""
        return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), ""

    def _of_job(self, job: Job, rest: str, request: Request) -> Any:
        if rest == "":
            return self._info(job)
        if rest == "tasks":
            return self._report(job, request.json())
        if rest == "state":
            return self._state(job, request.query)
        if rest == "checkpoints":
            states = {**{n: "pending" for n in job.pending}, **{n: "completed" for n in job.completed}, **{n: "aborted" for n in job.aborted}}
            return [{"job": job.name, "checkpoint": n, "state": state} for n, state in sorted(states.items())]
        if rest == "restore":
            self._restart_job(job, "RESTORE", "by hand", request.json())
            return self._state(job, {})
        if rest == "end":
            self._end(job, request.json()["state"])
            return {"kept": False}
        if rest == "segments":
            checkpoint = request.query.get("checkpoint")
            if checkpoint and int(checkpoint) in job.aborted:
                raise Refused(409, "conflict", f"checkpoint {checkpoint} was aborted")
            key = request.headers.get("idempotency-key")
            return self._store(request.body, key, request.headers.get("x-esker-crc32c"), request.query)
        if rest == "segments/batch":
            frames = self._frames(request.body)
            lines = [self._store(d, h.get("idempotency_key"), h.get("crc32c"), h) for h, d in frames]
            return "\n".join(json.dumps(line) for line in lines).encode()
        if found := re.fullmatch(r"checkpoints/(\d+)/ack", rest):
            return self._ack(job, int(found[1]), request)
        if found := re.fullmatch(r"checkpoints/(\d+)/decline", rest):
            self._attempt(job, request.json())
            self._abort(job, int(found[1]), request.json().get("reason", "CHECKPOINT_DECLINED"))
            return None
        raise Refused(404, "not_found", f"no such path: {rest}")

    def _create(self, asked: dict[str, Any]) -> Any:
        name = asked["job"]
        operators = [dict({"max_parallelism": 128}, **o) for o in asked.get("operators", [])]
        if name in self.jobs and self.jobs[name].operators != operators:
            raise Refused(409, "conflict", f"job {name} exists with other operators", "operators")
        self.jobs.setdefault(name, Job(name, operators, asked.get("settings", {})))
        return self._info(self.jobs[name])

    def _info(self, job: Job) -> dict[str, Any]:
        coordinator = {"status": job.status, "attempt": job.attempt, "pending": list(job.pending),
                       "completed": max(job.completed, default=None)}
        return {"job": job.name, "segments": 0, "ended": job.ended, **({"coordinator": coordinator} if job.operators else {})}

    def _attempt(self, job: Job, asked: dict[str, Any]) -> None:
        if asked["attempt"] != job.attempt:
            raise Refused(409, "conflict", f"attempt {asked['attempt']} is over: {job.attempt}", "attempt")

    def _report(self, job: Job, asked: dict[str, Any]) -> Any:
        self._attempt(job, asked)
        for task in asked["tasks"]:
            if unknown := set(task) - {"operator", "subtask", "state"}:
                raise Refused(400, "invalid", f"unknown field {unknown}", "body")
            key = (task["operator"], task["subtask"])
            job.reports.append((*key, task["state"]))
            if task["state"] == "failed":
                job.failures.append(asked.get("message", ""))
                self._restart_job(job, "TASK_FAILURE", asked.get("message", ""))
                break
            job.tasks[key], job.heard[key] = task["state"], time.monotonic()
            if task["state"] == "finished":
                for number in [number for number, pending in job.pending.items() if key not in pending.acks]:
                    self._abort(job, number, "CHECKPOINT_DECLINED_TASK_CLOSING")
        states = [job.tasks.get(task) for task in job.all_tasks()]
        if all(state == "finished" for state in states):
            self._end(job, "FINISHED")
        elif all(state in ("end-of-data", "finished") for state in states) and not job.pending:
            self._trigger(job)
        return {"attempt": job.attempt, "status": job.status, "heartbeat_ms": self.heartbeat_ms,
                "heartbeat_timeout_ms": self.heartbeat_timeout_ms}

    def _end(self, job: Job, state: str) -> None:
        if job.ended is None:
            job.ended = state
            for number in list(job.pending):
                self._abort(job, number, "CHECKPOINT_COORDINATOR_SHUTDOWN")
            self._tell(job, "end", {"state": state, "kept": False})

    def _trigger(self, job: Job, kind: str = "checkpoint", stop: Optional[str] = None, request: Optional[str] = None) -> int:
        number = job.next_number
        job.next_number += 1
        trigger = {"checkpoint": number, "attempt": job.attempt, "kind": kind, "timestamp_ms": int(time.time() * 1000),
                   "timeout_ms": 600_000, "mode": "EXACTLY_ONCE", "unaligned": False, "aligned_timeout_ms": 0,
                   "incremental": kind == "checkpoint", "full": False, "stop": stop, "max_subtasks_per_channel_state_file": 5}
        job.pending[number] = Pending(number, kind, trigger, request=request)
        job.last_triggered = time.monotonic()
        self._tell(job, "trigger", trigger)
        return number

    def _ack(self, job: Job, number: int, request: Request) -> Any:
        frames = self._frames(request.body) if request.headers["content-type"] == "application/octet-stream" else []
        asked = frames[0][0] if frames else request.json()
        self._attempt(job, asked)
        task = (asked["operator"], asked["subtask"])
        if number in job.completed and task in job.completed[number]:
            answer = dict(job.completed[number][task]["answer"], state="completed", missing=0)
            del answer["segments"]
            return answer
        pending = job.pending.get(number)
        if pending is None:
            raise Refused(409, "conflict", f"checkpoint {number} is over: CHECKPOINT_EXPIRED", "checkpoint")
        if task in pending.acks:
            return pending.acks[task]["answer"]
        stored = []
        for part, (head, data) in enumerate(frames[1:]):
            key = head.get("idempotency_key") or f"{job.name}/{number}/{job.attempt}/{task}/{part}"
            stored.append(self._store(data, key, head.get("crc32c"), None))
        state = []
        for entry in asked.get("state", []):
            segment = stored[entry["part"]]["segment"] if "part" in entry else entry["segment"].removeprefix("esker1:")
            if segment not in self.segments:
                raise Refused(409, "conflict", f"segments may not be used again: {segment}", "state")
            state.append(dict(entry, segment=segment))
        answer = {"checkpoint": number, "state": "pending", "missing": 0, "segments": stored}
        pending.acks[task] = {"state": state, "answer": answer, "finished": asked.get("finished", False)}
        waiting = [t for t in job.all_tasks() if t not in pending.acks and job.tasks.get(t) != "finished"]
        answer["missing"] = len(waiting)
        if not waiting:
            self._complete(job, pending)
            answer["state"] = "completed"
        return answer

    def _complete(self, job: Job, pending: Pending) -> None:
        del job.pending[pending.number]
        job.completed[pending.number] = pending.acks
        path = "s3://b/savepoint" if pending.kind == "savepoint" else None
        data = {"checkpoint": pending.number, "attempt": job.attempt, "kind": pending.kind, "metadata": "esker1:m",
                "path": path, "last_subsumed": pending.number - 1}
        if pending.request:
            self.by_hand[pending.request].update(state="completed", checkpoint=pending.number, path=path)
        if pending.kind == "checkpoint" or pending.trigger["stop"]:
            self._tell(job, "complete", data)
        if pending.kind == "checkpoint":
            self._tell(job, "subsume", {"checkpoint": pending.number - 1})
        elif pending.trigger["stop"]:
            self._tell(job, "stop", {"checkpoint": pending.number, "path": path, "drain": pending.trigger["stop"] == "drain"})

    def _abort(self, job: Job, number: int, reason: str) -> None:
        pending = job.pending.pop(number, None)
        if pending is None:
            return
        job.aborted.add(number)
        if pending.request:
            self.by_hand[pending.request].update(state="failed", reason=reason, message="told by the test")
        self._tell(job, "abort", {"checkpoint": number, "attempt": job.attempt, "kind": pending.kind, "reason": reason,
                                  "message": "told by the test"})

    def _restart_job(self, job: Job, cause: str, message: str, asked: Optional[dict[str, Any]] = None) -> None:
        if job.ended:
            return
        for number in list(job.pending):
            self._abort(job, number, "JOB_FAILURE")
        if asked and asked.get("operators"):
            job.operators = [dict({"max_parallelism": 128}, **o) for o in asked["operators"]]
        job.attempt += 1
        job.tasks.clear()
        job.heard.clear()
        job.from_checkpoint = max(job.completed, default=None)
        self._tell(job, "restore", {"attempt": job.attempt, "job": job.name, "checkpoint": job.from_checkpoint,
                                    "cause": cause, "message": message})

    async def _by_hand(self, job: Job, what: str, request: Request) -> tuple[int, Any]:
        asked = request.json()
        key = request.headers.get("idempotency-key", uuid.uuid4().hex)
        if key not in self.by_hand:
            self.by_hand[key] = {"request": key, "state": "pending", "checkpoint": None, "path": None, "reason": None,
                                 "message": None}
            stop = ("drain" if asked.get("drain") else "suspend") if what == "stop" else None
            number = self._trigger(job, "checkpoint" if what.startswith("check") else "savepoint", stop, key)
            self.by_hand[key]["checkpoint"] = number
            await self._notify()
        # Shorter than what is asked for, so that clients have to ask again.
        end = time.monotonic() + min(0.2, float(asked.get("wait", "0 ms").split()[0]) / 1000)
        while key in self.by_hand and self.by_hand[key]["state"] == "pending" and time.monotonic() < end:
            await asyncio.sleep(0.01)
        answer = self.by_hand.get(key)
        if answer is None:
            raise OSError("restarted")
        return (202 if answer["state"] == "pending" else 200), answer

    def _state(self, job: Job, query: dict[str, str]) -> Any:
        tasks = []
        for operator in job.operators:
            for n in range(operator["parallelism"]):
                if query and (operator["id"], n) != (query["operator"], int(query["subtask"])):
                    continue
                most, p = operator["max_parallelism"], operator["parallelism"]
                groups = (-(-n * most // p), -(-(n + 1) * most // p))
                tasks.append({"operator": operator["id"], "subtask": n, "parallelism": p, "max_parallelism": most,
                              "key_groups": {"start": groups[0], "end": groups[1]},
                              "finished": False, "state": self._dealt(job, operator["id"], n, p, groups)})
        if not tasks:
            raise Refused(400, "invalid", "no such task", "subtask")
        return {"job": job.name, "attempt": job.attempt, "from": job.name, "checkpoint": job.from_checkpoint, "tasks": tasks}

    def _dealt(self, job: Job, operator: str, n: int, p: int, groups: tuple[int, int]) -> list[dict[str, Any]]:
        if job.from_checkpoint is None:
            return []
        written = job.completed[job.from_checkpoint]
        before = sorted(task for task in written if task[0] == operator)
        dealt, entries = 0, []
        for task in before:
            for entry in written[task]["state"]:
                info, data = self.segments[entry["segment"]]
                offsets = entry.get("offsets", [0])
                ends = offsets[1:] + [entry.get("end", len(data))]
                ranges = [list(pair) for pair in zip(offsets, ends)]
                told = dict(info, kind=entry["kind"], name=entry.get("name", ""), scope="exclusive", subtask=task[1])
                if entry["kind"] == "keyed":
                    start, end = entry["key_groups"]["start"], entry["key_groups"]["end"]
                    low, high = max(start, groups[0]), min(end, groups[1])
                    if low >= high:
                        continue
                    told["key_groups"] = {"start": low, "end": high}
                    if "offsets" in entry:
                        ranges = ranges[low - start : high - start]
                elif len(before) == p:
                    if task[1] != n:
                        continue
                else:
                    mine = [r for i, r in enumerate(ranges) if (dealt + i) % p == n]
                    dealt += len(ranges)
                    ranges = mine
                    if not ranges:
                        continue
                entries.append(dict(told, ranges=ranges))
        return entries

    # Segments

    def _store(self, data: bytes, key: Optional[str], crc: Optional[str], about: Any) -> dict[str, Any]:
        if about is not None and "checkpoint" not in about:
            raise Refused(400, "invalid", "a segment must name its checkpoint", "checkpoint")
        if not data:
            raise Refused(400, "invalid", "a segment must not be empty", "body")
        actual = crc_text(crc32c(data))
        if crc is not None and crc != actual:
            raise Refused(400, "invalid", f"the bytes have CRC-32C {actual}", "x-esker-crc32c")
        if key is not None and key in self.by_key:
            return self.segments[self.by_key[key]][0]
        self._stored += 1
        segment = f"01J{self._stored:06d}"
        info = {"segment": segment, "handle": f"esker1:{segment}", "file": "data/1", "offset": 0, "len": len(data), "crc32c": actual}
        self.segments[segment] = (info, data)
        if key is not None:
            self.by_key[key] = segment
        return info

    @staticmethod
    def _frames(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
        frames, at = [], 0
        while at < len(body):
            (length,) = struct.unpack_from("<I", body, at)
            head = json.loads(body[at + 4 : at + 4 + length])
            at += 4 + length
            data = body[at : at + head.get("len", 0)]
            at += len(data)
            frames.append((head, data))
        return frames

    def _get(self, segment: str, request: Request) -> tuple[int, bytes, str]:
        if segment not in self.segments:
            raise Refused(404, "not_found", f"segment {segment} is not known")
        info, data = self.segments[segment]
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", "")):
            return 206, data[int(found[1]) : int(found[2]) + 1], ""
        return 200, data, f"x-esker-crc32c: {info['crc32c']}\r\n"

    def _restore_stream(self, segments: list[str]) -> bytes:
        answer = b""
        for segment in segments:
            if segment not in self.segments:
                raise Refused(404, "not_found", f"segment {segment} is not known", "segments")
            info, data = self.segments[segment]
            head = json.dumps(info).encode()
            answer += struct.pack("<I", len(head)) + head + data
        head = json.dumps({"end": len(segments), "bytes": 0}).encode()
        return answer + struct.pack("<I", len(head)) + head

    # Time and events

    def _tell(self, job: Job, event: str, data: dict[str, Any]) -> None:
        job.log.append({"id": f"{self.epoch}-{len(job.log) + 1}", "event": event, "data": data})
        self._loop.create_task(self._notify())

    async def _notify(self) -> None:
        assert self._changed
        async with self._changed:
            self._changed.notify_all()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            for job in self.jobs.values():
                if job.ended or not job.operators:
                    continue
                late = [t for t, at in job.heard.items() if now - at > self.heartbeat_timeout_ms / 1000]
                if any(job.tasks.get(task) != "finished" for task in late):
                    self._restart_job(job, "TASK_LOST", f"nothing heard of {late}")
                busy = all(job.tasks.get(t) == "running" for t in job.all_tasks())
                if busy and not job.pending and now - job.last_triggered > self.interval_s:
                    self._trigger(job)
