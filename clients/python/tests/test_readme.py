"""The programs of the README do what it says."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest
from esker import Worker
from esker.sync import Client

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def ended(fake):
    """Ends the job once it has completed a checkpoint."""

    def end():
        while not fake.jobs or not (job := next(iter(fake.jobs.values()))).completed:
            if fake.jobs and fake.on_loop(lambda: job.running and not job.pending) and not job.completed:
                fake.trigger(job.name)
            time.sleep(0.02)
        fake.on_loop(lambda: fake._end(job, "CANCELED"))

    ender = threading.Thread(target=end, daemon=True)
    ender.start()
    yield fake
    ender.join(10)


def test_the_first_program_sums_records(ended, go, monkeypatch):
    monkeypatch.setenv("ESKER_API", ended.address)

    async def read_a_record() -> int:
        await asyncio.sleep(0.01)
        return 1

    names = {"read_a_record": read_a_record}
    exec(BLOCKS[0], names)
    go(names["main"]())

    written = ended.jobs["sums"].completed[1]
    assert len(written) == 2 and all(len(ack["state"]) == 1 for ack in written.values())


def test_the_loops_take_part_in_checkpoints(ended, go, monkeypatch):
    monkeypatch.setenv("ESKER_API", ended.address)
    with Client() as client:
        client.create_job("sums", operators=[{"id": "sum", "parallelism": 1}])
    names = {"Worker": Worker, "state": b"1"}
    exec("async def loop():\n" + "".join(f"    {line}\n" for line in BLOCKS[1].splitlines()), names)
    go(names["loop"]())

    assert ended.jobs["sums"].completed


def test_the_loop_for_threads_takes_part_in_checkpoints(ended, monkeypatch):
    monkeypatch.setenv("ESKER_API", ended.address)
    with Client() as client:
        client.create_job("sums", operators=[{"id": "sum", "parallelism": 1}])
    exec(BLOCKS[2], {"state": b"1"})

    assert ended.jobs["sums"].completed
