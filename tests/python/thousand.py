#!/usr/bin/env python3
"""A thousand subtasks of one job that take a checkpoint each second: how long it takes, and what it costs.

    tests/python/thousand.py                                  # starts a daemon (target/debug/esker, or ESKER_BIN) on local disk
    tests/python/thousand.py --tasks 200 --bytes 0 --seconds 30
    tests/python/thousand.py --delay 30                       # on an S3 server (versitygw), each request taking 30 ms more

A few processes stand for all tasks: each has one stream of events, reports its tasks as running in one request, and acknowledges for
each of them, over some connections that stay open. The table has the time from `trigger` to `complete` as a worker sees it and as
the daemon tells it, the processor of the daemon, and what a checkpoint writes to the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import struct
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples" / "python"))
from count import Daemon  # noqa: E402  It finds the client, too.

import esker.sync  # noqa: E402

sys.path[1:1] = [str(REPOSITORY / "tests" / "flink")]
from e2e import tools  # noqa: E402
from e2e.daemons import Slowed  # noqa: E402
from e2e.processes import Processes  # noqa: E402
from e2e.storage import Versitygw  # noqa: E402

JOB = "thousand"
OPERATOR = "o"
TICKS = os.sysconf("SC_CLK_TCK")


class Connection:
    """Sends a request when the one before is answered. The client of Python would cost more than the daemon does."""

    def __init__(self, host: str, port: int) -> None:
        self.where = (host, port)

    async def open(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection(*self.where)
        return self

    async def post(self, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        head = f"POST {path} HTTP/1.1\r\nhost: {self.where[0]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answered = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answered)
        return int(answered[9:12]), await self.reader.readexactly(int(length[1]) if length else 0)


class OnS3(Daemon):
    """A daemon on a server whose every request takes some seconds more."""

    def __init__(self, program: Path, folder: Path, processes: Processes, delay: float) -> None:
        cache = Path(os.environ.get("ESKER_TEST_CACHE", REPOSITORY / "target" / "test-cache"))
        self.server = Versitygw(processes, tools.prepare_versitygw(cache, print), folder / "versitygw")
        self.server.start()
        self.server.make_bucket("esker")
        self.endpoint = Slowed(self.server.endpoint, delay).endpoint
        super().__init__(program, folder)

    def command(self) -> list[str | Path]:
        of_store = {"url": "s3://esker/thousand", "endpoint": self.endpoint, "region": "us-east-1"}
        of_store |= {"access-key": self.server.access_key, "secret-key": self.server.secret_key}
        settings = [argument for key, value in of_store.items() for argument in ("--set", f"store.{key}={value}")]
        return [self.program, "serve", *settings]


def framed(head: dict[str, Any], data: bytes) -> bytes:
    frames = b""
    for one, behind in [(head, b""), ({"len": len(data)}, data)]:
        text = json.dumps(one).encode()
        frames += struct.pack("<I", len(text)) + text + behind
    return frames


def acknowledgement(subtask: int, attempt: int, data: bytes) -> tuple[str, bytes]:
    head: dict[str, Any] = {"operator": OPERATOR, "subtask": subtask, "attempt": attempt}
    if not data:
        return "application/json", json.dumps(head).encode()
    head["state"] = [{"kind": "split", "name": "s", "part": 0}]
    return "application/octet-stream", framed(head, data)


class Process:
    """Some of the tasks."""

    def __init__(self, api: str, tasks: range, args: argparse.Namespace, until: float) -> None:
        self.api, self.tasks, self.args, self.until = api, tasks, args, until
        self.attempt = 0
        self.begun: dict[int, float] = {}
        self.over: dict[int, tuple[float, float]] = {}
        self.acknowledged: list[float] = []
        self.aborted: list[str] = []
        self.refused: list[str] = []

    async def run(self) -> dict[str, Any]:
        host, port = self.api.removeprefix("http://").rsplit(":", 1)
        self.idle: "asyncio.Queue[Connection]" = asyncio.Queue()
        for _ in range(self.args.connections):
            self.idle.put_nowait(await Connection(host, int(port)).open())
        async with esker.Client(self.api) as client:
            self.attempt = (await client.job(JOB))["coordinator"]["attempt"]
            report = [{"operator": OPERATOR, "subtask": n, "state": "running"} for n in self.tasks]
            await client.report(JOB, self.attempt, report, f"process {self.tasks.start}")
            beating = asyncio.create_task(self.beat(client, report))
            working: set["asyncio.Task[None]"] = set()
            listening = asyncio.create_task(self.listen(client, working))
            await asyncio.wait({beating, listening}, timeout=self.until - time.time(), return_when=asyncio.FIRST_COMPLETED)
            for task in (beating, listening):
                if task.done() and not task.cancelled() and task.exception():
                    self.refused.append(repr(task.exception()))
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        return {"over": self.over, "took": self.acknowledged, "aborted": self.aborted, "refused": self.refused}

    async def beat(self, client: esker.Client, report: list[dict[str, Any]]) -> None:
        while True:
            await asyncio.sleep(2)
            await client.report(JOB, self.attempt, report, f"process {self.tasks.start}")

    async def listen(self, client: esker.Client, working: set["asyncio.Task[None]"]) -> None:
        async for event in client.events(JOB, f"process {self.tasks.start}", "stream"):
            number = event.data.get("checkpoint")
            if event.name == "trigger":
                self.begun[number] = time.monotonic()
                working.add(asyncio.create_task(self.acknowledge(number)))
            elif event.name == "complete" and number in self.begun:
                self.over[number] = (self.begun[number], time.monotonic())
            elif event.name == "abort":
                self.aborted.append(f"{number}: {event.data['reason']}")
            elif event.name == "restore":
                raise RuntimeError(f"the job restarts: {event.data}")

    async def acknowledge(self, number: int) -> None:
        tasks = iter(self.tasks)

        async def some() -> None:
            connection = await self.idle.get()
            for subtask in tasks:
                kind, body = acknowledgement(subtask, self.attempt, os.urandom(self.args.bytes))
                began = time.monotonic()
                status, answer = await connection.post(f"/v1/jobs/{JOB}/checkpoints/{number}/ack", kind, body)
                self.acknowledged.append(time.monotonic() - began)
                if status != 200:
                    self.refused.append(f"{status} {answer[:200]!r}")
            self.idle.put_nowait(connection)

        await asyncio.gather(*(some() for _ in range(self.args.connections)))


def run_process(api: str, tasks: range, args: argparse.Namespace, until: float, told: Any) -> None:
    told.put(asyncio.run(Process(api, tasks, args, until).run()))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def store_requests(api: str) -> dict[str, float]:
    text = urllib.request.urlopen(f"{api}/metrics").read().decode()
    found = re.findall(r'^esker_store_requests_total\{of="(\w+)",operation="(\w+)"[^}]*\} (\S+)', text, re.M)
    sums: dict[str, float] = {}
    for of, operation, value in found:
        sums[f"{of} {operation}"] = sums.get(f"{of} {operation}", 0) + float(value)
    return sums


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for part in (0.5, 0.99)]
    return f"p50 {at[0]:.0f} ms, p99 {at[1]:.0f} ms, most {ordered[-1] * 1000:.0f} ms, of {len(ordered)}"


def run(args: argparse.Namespace, folder: Path, processes: Processes) -> int:
    daemon = Daemon(args.esker, folder) if args.delay is None else OnS3(args.esker, folder, processes, args.delay / 1000)
    api = f"http://{daemon.api}"
    settings = {"execution.checkpointing.interval": f"{args.interval} ms", "heartbeat.timeout": "60 s"}
    with esker.sync.Client(api) as client:
        client.create_job(JOB, operators=[{"id": OPERATOR, "parallelism": args.tasks}], settings=settings)
        told: Any = multiprocessing.Queue()
        step = -(-args.tasks // args.processes)
        until = time.time() + args.seconds
        workers = [
            multiprocessing.Process(
                target=run_process, args=(api, range(at, min(at + step, args.tasks)), args, until, told)
            )
            for at in range(0, args.tasks, step)
        ]
        for worker in workers:
            worker.start()
        # The first checkpoints warm up.
        time.sleep(args.seconds * 0.1)
        before, used, began = store_requests(api), processor_seconds(daemon.process.pid), time.monotonic()
        completed = client.job(JOB)["coordinator"]["completed"] or 0
        time.sleep(args.seconds * 0.8)
        after, took = store_requests(api), time.monotonic() - began
        used = processor_seconds(daemon.process.pid) - used
        count = (client.job(JOB)["coordinator"]["completed"] or 0) - completed
        history = client.history(JOB)
        answers = [told.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
    daemon.process.terminate()
    daemon.process.wait()
    return show(args, answers, history, count, used / took, {of: after[of] - before.get(of, 0) for of in after})


def show(
    args: argparse.Namespace,
    answers: list[dict[str, Any]],
    history: list[dict[str, Any]],
    count: int,
    processor: float,
    requests: dict[str, float],
) -> int:
    # A checkpoint is over when the last process knows.
    numbers = set.intersection(*(set(answer["over"]) for answer in answers))
    seen = [
        max(answer["over"][n][1] for answer in answers) - min(answer["over"][n][0] for answer in answers) for n in numbers
    ]
    own = [told["duration_ms"] / 1000 for told in history if told["state"] == "completed"]
    aborted = sum(len(answer["aborted"]) for answer in answers)
    refused = [text for answer in answers for text in answer["refused"]]
    if not seen or not count:
        print(f"nothing completed: {refused[:3]}")
        return 1
    rows = {
        "tasks, processes, bytes of each": f"{args.tasks}, {args.processes}, {args.bytes}",
        "wanted interval": f"{args.interval} ms",
        "checkpoints completed": f"{count}, one each {args.seconds * 800 / count:.0f} ms",
        "trigger to complete, as workers see it": spread(seen),
        "the same, as the daemon tells it": spread(own),
        "one acknowledgement": spread([took for answer in answers for took in answer["took"]]),
        "processor of the daemon": f"{processor:.2f} cores, {processor * args.seconds * 800 / count / args.tasks:.3f} ms for each task and checkpoint",
        "aborted, refused": f"{aborted}, {len(refused)} {refused[:1] or ''}",
    }
    for of, value in sorted(requests.items()):
        if value:
            rows[f"store, {of}, for each checkpoint"] = f"{value / count:.2f}"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"| {name:{width}} | {value} |")
    return 1 if aborted or refused else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("ESKER_BIN", REPOSITORY / "target" / "debug" / "esker"))
    parser.add_argument("--esker", type=Path, default=default, help="the daemon to start")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2, help="that stand for the tasks")
    parser.add_argument("--connections", type=int, default=32, help="of each process")
    parser.add_argument("--bytes", type=int, default=1000, help="state of each task, which goes with its acknowledgement")
    parser.add_argument("--interval", type=int, default=1000, help="milliseconds")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--delay", type=float, help="milliseconds more for each request to an S3 server; without, a local disk")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esker-thousand-") as folder:
        processes = Processes(Path(folder) / "logs")
        try:
            return run(args, Path(folder), processes)
        finally:
            processes.kill_all()


if __name__ == "__main__":
    sys.exit(main())
