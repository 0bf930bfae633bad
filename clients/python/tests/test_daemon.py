"""The client against the real daemon (ESKER_BIN), which is killed in between.

The tests of coordinated jobs need a daemon that has them, which clients/openapi.json tells.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
from esker import (
    Aborted,
    AttemptOver,
    CheckpointOver,
    Client,
    Completed,
    Conflict,
    InvalidRequest,
    JobEnded,
    KeyGroups,
    NotFound,
    Restart,
    State,
    Stopped,
    Worker,
)
from esker import sync
from esker.crc32c import crc32c

REPOSITORY = Path(__file__).resolve().parents[3]
ESKER = os.environ.get("ESKER_BIN")
API = json.loads((REPOSITORY / "clients" / "openapi.json").read_text())
pytestmark = pytest.mark.skipif(ESKER is None, reason="ESKER_BIN names no daemon: tests/python/run does")
coordinated = pytest.mark.skipif(
    "/v1/jobs/{job}/events" not in API["paths"], reason="the daemon of this version has no coordinator"
)
SETTINGS = {"execution.checkpointing.interval": "1 h", "heartbeat.interval": "200 ms", "heartbeat.timeout": "5 s"}


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.folder, self.s3, self.api = folder, "127.0.0.1:0", "127.0.0.1:0"
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.start()

    def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [str(ESKER), "dev", "--data-dir", self.folder / "data", "--s3", self.s3, "--api", self.api]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen([*command, "--ready-file", ready], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not (ready.exists() and ready.read_text()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)
        self.told = json.loads(ready.read_text())
        self.s3, self.api = (self.told[door].removeprefix("http://") for door in ("s3", "api"))

    def end(self, how: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)

    @property
    def address(self) -> str:
        return f"http://{self.api}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("esker"))
    yield running
    running.end()


@pytest.fixture
def job(request) -> str:
    return f"python/{request.node.name}"


def test_segments(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await client.create_job(job)
            data = os.urandom(3_000_000)
            large = await client.put(job, data, checkpoint=1, operator="o", subtask=0, parallelism=2, name="ü&=")
            again = await client.put(job, b"abc", checkpoint=1, idempotency_key="one")
            assert (await client.put(job, b"abc", checkpoint=1, idempotency_key="one")).segment == again.segment
            many = await client.put_many(job, [({"checkpoint": 1, "name": f"n{n}"}, os.urandom(1 + n * 100)) for n in range(50)])
            await client.complete(job, 1)
            assert await client.get(large.segment) == data
            assert await client.get(large.handle) == data
            assert await client.get_range(large.segment, 1_000_000, 1_000_010) == data[1_000_000:1_000_010]
            wanted = [many[7], large, many[3], again, *many[10:]]
            read = [pair async for pair in client.read([segment.segment for segment in wanted])]
            assert [name for name, _ in read] == [segment.segment for segment in wanted]
            assert [f"{crc32c(bytes_):08x}" for _, bytes_ in read] == [segment.crc32c for segment in wanted]
            assert (await client.latest_checkpoint(job))["checkpoint"] == 1

    go(run())


def test_the_life_of_checkpoints_by_hand(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await client.create_job(job)
            assert await client.latest_checkpoint(job) is None
            base = await client.put(job, b"base" * 100, checkpoint=1, scope="shared", operator="o", subtask=0, parallelism=1)
            await client.complete(job, 1)
            assert await client.reuse(job, 2, [base.segment]) == []
            await client.complete(job, 2)
            await client.subsume(job, 1)
            assert await client.get(base.segment) == b"base" * 100
            await client.begin(job, 3)
            await client.abort(job, 3)
            with pytest.raises(Conflict):
                await client.put(job, b"late", checkpoint=3)
            assert [(c["checkpoint"], c["state"]) for c in await client.checkpoints(job) if c["state"] == "completed"] == [(2, "completed")]
            await client.end_job(job, "CANCELED")

    go(run())


def test_errors_name_field_and_reason(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            with pytest.raises(NotFound, match="nobody"):
                await client.job("nobody")
            await client.create_job(job)
            with pytest.raises(InvalidRequest) as caught:
                await client.put(job, b"x", checkpoint=1, scope="other")
            assert caught.value.field == "scope" and caught.value.request_id
            with pytest.raises(InvalidRequest):
                await client.put(job, b"", checkpoint=1)

    go(run())


def test_a_put_waits_for_a_daemon_that_is_killed_and_comes_back(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await client.create_job(job)
            before = await client.put(job, b"before", checkpoint=1)
            await asyncio.to_thread(daemon.end)
            putting = asyncio.create_task(client.put(job, b"after", checkpoint=1))
            await asyncio.to_thread(daemon.start)
            after = await putting
            assert [await client.get(segment.segment) for segment in (before, after)] == [b"before", b"after"]

    go(run())


def test_threads(daemon, job):
    with sync.Client(daemon.address) as client:
        client.create_job(job)
        segment = client.put(job, bytes(1_000_000), checkpoint=1)
        assert list(client.read([segment.segment])) == [(segment.segment, bytes(1_000_000))]


# Coordinated jobs


async def create(client: Client, job: str, parallelism: int, **settings: Any) -> None:
    operators = [{"id": "count", "parallelism": parallelism, "max_parallelism": 16}]
    await client.create_job(job, operators=operators, settings={**SETTINGS, **settings})


async def until(condition: Any, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        if result := await condition():
            return result
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.05)


async def running(client: Client, job: str) -> bool:
    return (await client.job(job))["coordinator"]["status"] == "running"


async def acknowledge_all(worker: Worker) -> None:
    """A task that gives back what it started from."""
    states = [
        State.keyed({group: b"g%d" % group for group in range(worker.key_groups.start, worker.key_groups.end)}, worker.key_groups, "k"),
        State.split([b"e%d.%d" % (worker.subtask, n) for n in range(3)], "s"),
        State.broadcast(b"rules", "b"),
        State.union(b"u%d" % worker.subtask, "u"),
    ]
    async for checkpoint in worker.checkpoints():
        await checkpoint.put(states)


@coordinated
@pytest.mark.parametrize("mode", ["stream", "poll"])
def test_checkpoints_complete_and_come_back(daemon, job, go, mode):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1)
            seen = []

            async def work(worker):
                seen.append((worker.attempt, worker.restored, [part.elements for part in await worker.restore()]))
                await worker.start()
                if len(seen) == 2:
                    return
                triggering = asyncio.create_task(client.trigger_checkpoint(job))
                async for checkpoint in worker.checkpoints():
                    acknowledged = await checkpoint.put(State.split([b"a", b"", b"c"]))
                    assert acknowledged
                    assert isinstance(await checkpoint.wait(), Completed)
                    assert (await triggering)["state"] == "completed"
                    await client.restore_job(job)

            await Worker(job, "count", 0, client=client, events=mode).run(work)
            assert seen[0][1:] == (None, [])
            assert seen[1][0] == seen[0][0] + 1 and seen[1][1] is not None and seen[1][2] == [(b"a", b"", b"c")]

    go(run())


@coordinated
def test_large_states_and_shared_ones(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1, **{"execution.checkpointing.incremental": True})
            large = os.urandom(9 << 20)

            async with Worker(job, "count", 0, client=client) as worker:
                await worker.start()
                triggering = asyncio.create_task(client.trigger_checkpoint(job))
                checkpoint = await worker.next(20)
                stored = await checkpoint.put([State.split(large, "large", scope="shared"), State.split(b"small", "small")])
                await triggering
                triggering = asyncio.create_task(client.trigger_checkpoint(job))
                while not hasattr(checkpoint := await worker.next(20), "number"):
                    pass
                assert checkpoint.trigger.incremental
                assert await checkpoint.put([stored.states[0], State.split(b"other", "small")])
                await triggering
                await client.restore_job(job)
                with pytest.raises(Restart):
                    while True:
                        await worker.next(20)
                await worker.begin_attempt()
                parts = {part.name: part.elements for part in await worker.restore()}
                assert parts == {"large": (large,), "small": (b"other",)}

    go(run())


@coordinated
def test_late_acknowledgements_are_refused_by_field(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1, **{"execution.checkpointing.tolerable-failed-checkpoints": 10})
            async with Worker(job, "count", 0, client=client) as worker:
                await worker.start()
                triggering = asyncio.create_task(client.trigger_checkpoint(job))
                checkpoint = await worker.next(20)
                await checkpoint.decline("CHECKPOINT_DECLINED", "not now")
                assert isinstance(await checkpoint.wait(), Aborted)
                with pytest.raises(Exception, match="CHECKPOINT_DECLINED"):
                    await triggering
                with pytest.raises(CheckpointOver):
                    await client.acknowledge(job, checkpoint.number, "count", 0, worker.attempt, [State.split(b"late")])
                with pytest.raises(AttemptOver):
                    await client.acknowledge(job, checkpoint.number, "count", 0, worker.attempt + 1)
                with pytest.raises(InvalidRequest):
                    await client.acknowledge(job, checkpoint.number, "count", 7, worker.attempt)

    go(run())


@coordinated
def test_a_new_process_takes_the_place_of_one_that_is_gone(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1)
            gone = Worker(job, "count", 0, client=client)
            await gone.__aenter__()
            await gone.start()
            triggering = asyncio.create_task(client.trigger_checkpoint(job))
            await (await gone.next(20)).put(b"one")
            await triggering
            await gone._close()

            async with Worker(job, "count", 0, client=client) as worker:
                assert (worker.attempt, worker.restored) == (gone.attempt + 1, 1)
                assert [part.elements for part in await worker.restore()] == [(b"one",)]

    go(run())


@coordinated
def test_a_silent_worker_is_lost_and_the_job_restarts(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 2, **{"heartbeat.timeout": "1 s"})
            silent = Worker(job, "count", 1, client=client)
            await silent.__aenter__()
            await silent.start()
            with pytest.raises(Restart) as caught:
                async with Worker(job, "count", 0, client=client) as worker:
                    await worker.start()
                    await silent._close()
                    await worker.next(20)
            # The event may be told after a heartbeat was refused.
            assert (caught.value.attempt, caught.value.cause) in ((silent.attempt + 1, "TASK_LOST"), (None, "ATTEMPT"))
            assert (await client.state(job, "count", 0)).attempt == silent.attempt + 1

    go(run())


@coordinated
def test_an_end_that_was_not_heard_is_told_to_who_comes_back(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1)

            async def work(worker):
                await worker.start()
                await client.end_job(job, "CANCELED")
                await asyncio.to_thread(daemon.end)
                await asyncio.to_thread(daemon.start)

            try:
                await Worker(job, "count", 0, client=client).run(work)
            except JobEnded as ended:
                assert ended.state == "CANCELED"

    go(run())


@coordinated
@pytest.mark.parametrize("parallelism", [1, 3, 5])
def test_rescaling(daemon, job, go, parallelism):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 3)
            tasks = [asyncio.create_task(Worker(job, "count", n, client=client).run(acknowledge_all)) for n in range(3)]
            await until(lambda: running(client, job))
            await client.trigger_checkpoint(job)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

            operators = [{"id": "count", "parallelism": parallelism, "max_parallelism": 16}]
            await client.restore_job(job, operators=operators)
            groups, split, broadcast, union = {}, [], [], []
            for n in range(parallelism):
                state = await client.state(job, "count", n)
                worker = Worker(job, "count", n, client=client)
                worker._task = state
                for part in await worker.restore():
                    if part.kind == "keyed":
                        assert all(group in state.key_groups for group in part.groups())
                        groups.update(part.groups())
                    else:
                        {"s": split, "b": broadcast, "u": union}[part.name].extend(part.elements)
            assert groups == {group: b"g%d" % group for group in range(16)}
            assert sorted(split) == [b"e%d.%d" % (task, n) for task in range(3) for n in range(3)]
            assert broadcast == [b"rules"] * parallelism
            assert sorted(union) == sorted([b"u0", b"u1", b"u2"] * parallelism)

    go(run())


@coordinated
def test_stop_with_a_savepoint_from_which_another_job_starts(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 2)
            told: list[Any] = []

            async def work(worker):
                await worker.start()
                async for event in worker.events():
                    told.append(event)
                    if hasattr(event, "number"):
                        assert event.stop == "suspend"
                        await event.put(b"last of %d" % worker.subtask)

            tasks = [asyncio.create_task(Worker(job, "count", n, client=client).run(work)) for n in range(2)]
            await until(lambda: running(client, job))
            bucket = daemon.told["bucket"]
            stopped = await client.stop(job, dir=f"s3://{bucket}/savepoints")
            assert stopped["path"].startswith(f"s3://{bucket}/savepoints/")
            await asyncio.gather(*tasks)
            assert any(isinstance(event, Stopped) for event in told)

            other = job + "-other"
            await create(client, other, 2)
            states = await client.restore_job(other, savepoint=stopped["path"])
            assert [entry.kind for state in states for entry in state.state] == ["split", "split"]
            data = [pair[1] async for pair in client.read([state.state[0].segment for state in states])]
            assert data == [b"last of 0", b"last of 1"]

    go(run())


@coordinated
def test_a_savepoint_that_completes_is_waited_for_though_nothing_is_told(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1)
            async with Worker(job, "count", 0, client=client) as worker:
                await worker.start()
                bucket = daemon.told["bucket"]
                triggering = asyncio.create_task(client.trigger_savepoint(job, f"s3://{bucket}/savepoints"))
                savepoint = await worker.next(20)
                assert savepoint.is_savepoint and await savepoint.put(b"x")
                assert isinstance(await asyncio.wait_for(savepoint.wait(), 20), Completed)
                assert (await triggering)["checkpoint"] == savepoint.number
                assert worker.running

    go(run())


@coordinated
def test_a_killed_daemon_loses_nothing_that_was_told_as_complete(daemon, job, go):
    async def run():
        async with Client(daemon.address) as client:
            await create(client, job, 1, **{"execution.checkpointing.interval": "100 ms"})
            acknowledged: dict[int, bytes] = {}
            newest = 0

            async with Worker(job, "count", 0, client=client) as worker:
                await worker.start()
                for n in range(3):
                    while True:
                        event = await worker.next(30)
                        if hasattr(event, "number"):
                            state = b"%d" % event.number
                            if await event.put(state):
                                acknowledged[event.number] = state
                        elif isinstance(event, Completed) and event.checkpoint > newest:
                            newest = event.checkpoint
                            break
                    await asyncio.to_thread(daemon.end)
                    await asyncio.to_thread(daemon.start)
                task = await client.state(job, "count", 0)
                await client.restore_job(job)
                task = await client.state(job, "count", 0)
                assert task.checkpoint >= newest
                data = [pair[1] async for pair in client.read([entry.segment for entry in task.state])]
                assert data == [b"%d" % task.checkpoint]
                with pytest.raises(Restart):
                    while True:
                        await worker.next(30)
                raise Restart(job, None, None, "the test is over")

    with pytest.raises(Restart):
        go(run())


@coordinated
@pytest.mark.parametrize("in_rust", [0, 2, 5])
def test_the_counting_example(in_rust, rust_example):
    count = REPOSITORY / "examples" / "python" / "count.py"
    command = [sys.executable, str(count), "--esker", str(ESKER), "--words", "5000", "--kills", "6"]
    if in_rust:
        command += ["--rust", rust_example("counting"), "--rust-tasks", str(in_rust)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)

    assert done.returncode == 0, done.stdout
    assert "20 of 20 exactly right" in done.stdout
    assert "killed worker" in done.stdout and "killed the daemon" in done.stdout
