#!/usr/bin/env python3
"""Processes with large keyed state and incremental checkpoints, which are killed for a given time, count exactly once.

    tests/python/growing.py                                     # small: five tasks of 4 MB each, about a minute
    tests/python/growing.py --megabytes 64 --seconds 300        # each task 64 MB
    tests/python/growing.py --rust target/debug/examples/tables # each second task is clients/rust/examples/tables.rs

Each key group has its own input, which never ends, and a table of numbers in ten blocks. A record adds to one number. A
checkpoint stores the blocks that have changed and names those of completed checkpoints again. Processes get `kill -9`, at
random, and so does the daemon: first five tasks, then the job goes on with three, then with eight, then another job goes on from
a savepoint of it. Both end with a savepoint. Shown in the end, of both: each number of each table is that of a loop
that nobody disturbed, no key group is missing or there twice; and no attempt began behind a checkpoint that was told as complete.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Optional

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples" / "python"))
from count import Daemon  # noqa: E402  It finds the client, too.

import esker.sync  # noqa: E402
from esker import KeyGroups, State  # noqa: E402
from esker.restore import read_entries  # noqa: E402

OPERATOR = "tables"
GROUPS = 128
BLOCKS = 10
#: Records of a key group that go to the same block before the next one's turn: what changes between checkpoints is a part.
RUN = 400
MASK = (1 << 64) - 1


# The tables


def slot_of(group: int, record: int, slots: int) -> tuple[int, int]:
    """The block and number that a record adds to."""
    return record // RUN % BLOCKS, ((record * 2654435761 + group * 40503) >> 7) % slots


def added_by(group: int, record: int) -> int:
    return (record * 6364136223846793005 + group) & MASK | 1


def new_block(group: int, block: int, slots: int) -> "array.array[int]":
    """Not zeros: bytes of another block would be noticed."""
    return array.array("Q", [(group * BLOCKS + block + 1) * 0x9E3779B97F4A7C15 & MASK]) * slots


class Table:
    """The numbers of a key group, and how far its input was read."""

    def __init__(self, group: int, slots: int) -> None:
        self.group, self.slots, self.position = group, slots, 0
        self.blocks: dict[int, "array.array[int]"] = {}
        #: How often each block was changed.
        self.changes = [0] * BLOCKS
        #: Blocks as they are stored in a completed checkpoint, with the number of changes at that time.
        self.stored: dict[int, tuple[int, State]] = {}

    def fill(self) -> "Table":
        self.blocks = {block: new_block(self.group, block, self.slots) for block in range(BLOCKS)}
        return self

    def read(self, records: int) -> None:
        for record in range(self.position, self.position + records):
            block, slot = slot_of(self.group, record, self.slots)
            numbers = self.blocks[block]
            numbers[slot] = (numbers[slot] + added_by(self.group, record)) & MASK
            self.changes[block] += 1
        self.position += records

    def state_of(self, block: int, again: bool) -> State:
        """A block for a checkpoint: as it is stored, if it may be used again and has not changed."""
        changes, state = self.stored.get(block, (-1, None))
        if again and state is not None and changes == self.changes[block]:
            return state
        of = KeyGroups(self.group, self.group + 1)
        return State.keyed({self.group: self.blocks[block].tobytes()}, of, str(block), "shared")


# A task: one process for each


class Task:
    def __init__(self, worker: esker.Worker, slots: int, journal: Path) -> None:
        self.worker, self.slots, self.journal = worker, slots, journal
        self.tables: dict[int, Table] = {}
        #: What checkpoints in progress have been given: table, block, its changes, where it is stored.
        self.given: dict[int, list[tuple[Table, int, int, State]]] = {}

    def note(self, word: str, checkpoint: Optional[int]) -> None:
        """One line, which is appended at once."""
        of = {"job": self.worker.job, "attempt": self.worker.attempt, "subtask": self.worker.subtask}
        with self.journal.open("a") as journal:
            journal.write(json.dumps({"word": word, "checkpoint": checkpoint, **of}) + "\n")

    async def work(self, rate: float) -> None:
        began = time.monotonic()
        self.tables = await tables_of(self.worker, self.slots)
        self.note("restored", self.worker.restored)
        await self.worker.start()
        logging.info("runs %.1f s after it began to get its state", time.monotonic() - began)
        chance = random.Random()
        while self.worker.running:
            # A few key groups at a time, as keys come that are hot for a while.
            hot = chance.sample(sorted(self.tables), min(2, len(self.tables)))
            for _ in range(40):
                for group in hot:
                    self.tables[group].read(max(1, int(rate * 0.02 / len(hot))))
                await asyncio.sleep(0.02)
                event = self.worker.poll()
                if isinstance(event, esker.Completed):
                    self.completed(event)
                elif isinstance(event, esker.Aborted):
                    self.given.pop(event.checkpoint, None)
                elif isinstance(event, esker.Checkpoint) and await self.snapshot(event):
                    return

    def completed(self, event: esker.Completed) -> None:
        self.note("completed", event.checkpoint)
        for table, block, changes, state in self.given.pop(event.checkpoint, []):
            table.stored[block] = (changes, state)

    async def snapshot(self, checkpoint: esker.Checkpoint) -> bool:
        """Whether the job has stopped with it."""
        again = checkpoint.trigger.incremental and not checkpoint.trigger.full
        try:
            await self.put(checkpoint, again)
        except esker.StateRefused as refused:
            self.note(f"refused: {refused}", checkpoint.number)
            await self.put(checkpoint, False)
        # Nothing is read behind the savepoint that the job stops with, unless that fails.
        return checkpoint.stop is not None and isinstance(await checkpoint.wait(), esker.Completed)

    async def put(self, checkpoint: esker.Checkpoint, again: bool) -> None:
        of = [(table, block) for table in self.tables.values() for block in range(BLOCKS)]
        states = [table.state_of(block, again) for table, block in of]
        positions = {table.group: str(table.position).encode() for table in self.tables.values()}
        put = await checkpoint.put([State.keyed(positions, self.worker.key_groups, "positions"), *states])
        if put and not checkpoint.is_savepoint:
            told = zip(of, put.states[1:])
            self.given[checkpoint.number] = [
                (table, block, table.changes[block], state) for (table, block), state in told if state.segment is not None
            ]


async def tables_of(worker: esker.Worker, slots: int) -> dict[int, Table]:
    """What a task starts from."""
    tables = {group: Table(group, slots) for group in worker.key_groups}
    if worker.restored is None:
        return {group: table.fill() for group, table in tables.items()}
    async for part in worker.restoring():
        take_in(tables, part)
    check_whole(tables)
    return tables


def take_in(tables: dict[int, Table], part: esker.Restored) -> None:
    for group, data in part.groups().items():
        table = tables[group]
        if part.name == "positions":
            table.position = int(data)
            continue
        block = int(part.name)
        assert block not in table.blocks, f"block {block} of key group {group} was given twice"
        table.blocks[block] = array.array("Q", data)
        of = KeyGroups(group, group + 1)
        stored = State("keyed", part.name, [0], segment=part.entry.segment, key_groups=of, scope="shared")
        table.stored[block] = (0, stored)


def check_whole(tables: dict[int, Table]) -> None:
    for table in tables.values():
        assert len(table.blocks) == BLOCKS, f"key group {table.group} has {len(table.blocks)} of {BLOCKS} blocks"


def run_worker(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {args.job} {args.subtask} %(levelname)s %(message)s")
    worker = esker.Worker(args.job, OPERATOR, args.subtask, address=args.api)
    asyncio.run(worker.run(lambda worker: Task(worker, slots_of(args), args.journal).work(args.rate)))


def slots_of(args: argparse.Namespace) -> int:
    """Numbers in a block, so that each of five tasks has the megabytes that were asked for."""
    return max(1, int(args.megabytes * (1 << 20)) * 5 // GROUPS // BLOCKS // 8)


# The one who starts them, and kills them


class Run:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.chance = random.Random(args.seed)
        self.daemon = Daemon(args.esker, folder)
        self.bucket = json.loads((folder / "ready.json").read_text())["bucket"]
        self.api = f"http://{self.daemon.api}"
        self.client = esker.sync.Client(self.api)
        self.journal = folder / "journal.jsonl"
        self.journal.touch()
        self.log = (folder / "workers.log").open("a")
        self.workers: list["subprocess.Popen[bytes]"] = []
        self.options: list[str] = []
        self.kills = {"worker": 0, "daemon": 0}
        self.recovered: list[float] = []

    def close(self) -> None:
        self.end_workers()
        self.client.close()
        self.daemon.kill()

    def start_workers(self, job: str, parallelism: int) -> None:
        options = ["--api", self.api, "--job", job, "--journal", self.journal]
        options += ["--megabytes", self.args.megabytes, "--rate", self.args.rate]
        self.options = [*map(str, options)]
        self.workers = [self.start_worker(subtask) for subtask in range(parallelism)]

    def start_worker(self, subtask: int) -> "subprocess.Popen[bytes]":
        # Whose program a task is changes with its number: at another parallelism key groups go from one to the other.
        in_rust = self.args.rust is not None and subtask % 2 == 1
        program = [self.args.rust] if in_rust else [sys.executable, __file__]
        return subprocess.Popen([*program, *self.options, "--subtask", str(subtask)], stdout=self.log, stderr=self.log)

    def restart_those_that_failed(self) -> None:
        for subtask, process in enumerate(self.workers):
            if process.poll() not in (None, 0):
                self.workers[subtask] = self.start_worker(subtask)

    def end_workers(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
        self.workers = []

    def wait_for_progress(self, job: str) -> None:
        """Until all tasks run and a checkpoint has completed that none had completed before."""
        began, before = time.monotonic(), self.newest_completed(job)
        while True:
            self.restart_those_that_failed()
            coordinator = self.client.job(job)["coordinator"]
            if coordinator["status"] == "running" and (coordinator["completed"] or 0) > before:
                self.recovered.append(time.monotonic() - began)
                return
            if time.monotonic() - began > self.args.patience:
                raise SystemExit(f"no checkpoint of {job} completes, {self.args.patience:.0f} s after a kill: {coordinator}")
            time.sleep(0.1)

    def newest_completed(self, job: str) -> int:
        return self.client.job(job)["coordinator"]["completed"] or 0

    def disturb(self, job: str, seconds: float) -> None:
        """Kills processes while a job runs."""
        before, until = dict(self.kills), time.monotonic() + seconds
        self.wait_for_progress(job)
        while time.monotonic() < until:
            time.sleep(self.chance.uniform(0.0, 2.0))
            # The daemon alone, some workers alone, or both at once.
            alive = [subtask for subtask, process in enumerate(self.workers) if process.poll() is None]
            victims = self.chance.sample(alive, min(len(alive), self.chance.choice([0, 1, 1, 1, 2])))
            with_daemon = not victims or self.chance.random() < 0.2
            if with_daemon:
                self.daemon.kill()
                self.kills["daemon"] += 1
            for subtask in victims:
                self.workers[subtask].kill()
                self.workers[subtask].wait()
                self.kills["worker"] += 1
            if with_daemon:
                time.sleep(self.chance.uniform(0.0, 1.0))
                self.daemon.start()
            if self.chance.random() < 0.7:
                self.wait_for_progress(job)
            else:
                # The next kill meets a restart.
                self.restart_those_that_failed()
        self.wait_for_progress(job)
        killed = {name: self.kills[name] - before[name] for name in self.kills}
        coordinator = self.client.job(job)["coordinator"]
        print(
            f"{job}, {len(self.workers)} tasks: {killed['worker']} workers and {killed['daemon']} daemons killed,"
            f" {coordinator['restarts']} restarts, checkpoint {coordinator['completed']}",
            flush=True,
        )
        for told in self.client.history(job)[:2]:
            megabytes = (told["bytes"] / 1e6, told["bytes_reused"] / 1e6)
            print("   checkpoint %d %s: %.1f MB, %.1f MB of it used again, %d ms" % (
                told["checkpoint"], told["state"], *megabytes, told["duration_ms"] or 0), flush=True)

    def rescale(self, job: str, parallelism: int, **source: Any) -> None:
        self.end_workers()
        began = time.monotonic()
        operators = [{"id": OPERATOR, "parallelism": parallelism, "max_parallelism": GROUPS}]
        self.client.restore_job(job, operators=operators, **source)
        self.start_workers(job, parallelism)
        self.wait_for_progress(job)
        print(f"{job} runs with {parallelism} tasks after {time.monotonic() - began:.1f} s", flush=True)

    def ask(self, job: str, question: Callable[..., Any]) -> str:
        """The path of a savepoint. It fails if a process that was just killed is missed meanwhile, as in Flink, and is asked for again."""
        while True:
            try:
                return str(question(job, dir=f"s3://{self.bucket}/savepoints", timeout=self.args.patience)["path"])
            except esker.RequestFailed as failed:
                if failed.reason not in ("CHECKPOINT_COORDINATOR_SUSPEND", "NOT_ALL_REQUIRED_TASKS_RUNNING"):
                    raise
                self.wait_for_progress(job)

    def stop(self, job: str) -> str:
        path = self.ask(job, self.client.stop)
        deadline = time.monotonic() + self.args.patience
        while any(process.poll() is None for process in self.workers):
            if time.monotonic() > deadline:
                raise SystemExit(f"{job} stopped, and its workers have not ended")
            time.sleep(0.05)
        failed = [process.returncode for process in self.workers if process.returncode]
        if failed:
            raise SystemExit(f"{job} stopped, and workers ended with {failed}")
        return path

    def go(self) -> int:
        job, other = "growing/first", "growing/second"
        operators = [{"id": OPERATOR, "parallelism": 5, "max_parallelism": GROUPS}]
        self.client.create_job(job, operators=operators, settings=SETTINGS)
        self.start_workers(job, 5)
        self.disturb(job, self.args.seconds)
        for parallelism in (3, 8):
            self.rescale(job, parallelism)
            self.disturb(job, self.args.seconds / 4)
        savepoint = self.ask(job, self.client.trigger_savepoint)
        first = self.stop(job)
        operators = [{"id": OPERATOR, "parallelism": 4, "max_parallelism": GROUPS}]
        self.client.create_job(other, operators=operators, settings=SETTINGS)
        self.rescale(other, 4, savepoint=savepoint)
        self.disturb(other, self.args.seconds / 4)
        second = self.stop(other)

        mistakes = look_at_journal(self.journal)
        for path in (savepoint, first, second):
            mistakes += self.compare(path)
        killed = f"{self.kills['worker']} workers and {self.kills['daemon']} daemons killed"
        seconds = f"{statistics.median(self.recovered):.1f} s, at most {max(self.recovered):.1f} s"
        print(f"{killed}; to the next completed checkpoint: {seconds}; mistakes: {len(mistakes)}")
        for mistake in mistakes[:20]:
            print(f"   {mistake}")
        return 1 if mistakes else 0

    def compare(self, savepoint: str) -> list[str]:
        """Compares a savepoint, read as one more job would, with what a loop makes of as many records."""
        job = f"growing/look-{savepoint.rsplit('-', 1)[1]}"
        operators = [{"id": OPERATOR, "parallelism": 1, "max_parallelism": GROUPS}]
        self.client.create_job(job, operators=operators)
        (task,) = self.client.restore_job(job, savepoint=savepoint)
        slots, mistakes = slots_of(self.args), []
        tables = {group: Table(group, slots) for group in range(GROUPS)}

        async def read() -> None:
            async with esker.Client(self.api) as client:
                async for part in read_entries(client, task.state):
                    take_in(tables, part)

        asyncio.run(read())
        check_whole(tables)
        for table in tables.values():
            right = Table(table.group, slots).fill()
            right.read(table.position)
            wrong = [block for block in range(BLOCKS) if right.blocks[block] != table.blocks[block]]
            if wrong:
                mistakes.append(f"{savepoint}: key group {table.group}, {table.position} records: blocks {wrong} differ")
        records = sum(table.position for table in tables.values())
        numbers, size = GROUPS * BLOCKS * slots, GROUPS * BLOCKS * slots * 8 / 1e6
        print(f"{savepoint}: {records} records, {numbers} numbers ({size:.0f} MB), {len(mistakes)} key groups wrong", flush=True)
        if not records:
            mistakes.append(f"{savepoint}: nothing was counted")
        self.client.end_job(job, "CANCELED")
        return mistakes


def look_at_journal(path: Path) -> list[str]:
    """What tasks were told, in the order of time: no attempt begins behind what was told as complete."""
    complete: dict[str, int] = {}
    told: dict[tuple[str, int], int] = {}
    mistakes = []
    for line in map(json.loads, path.read_text().splitlines()):
        job, number, attempt = line["job"], line["checkpoint"], line["attempt"]
        if line["word"] == "completed":
            complete[job] = max(complete.get(job, 0), number)
        elif line["word"] == "restored":
            # What the second job starts from has the number that it had in the first.
            if job in complete and (number or 0) < complete[job]:
                mistakes.append(f"{job}: attempt {attempt} began at {number}, and {complete[job]} was complete")
            if told.setdefault((job, attempt), number) != number:
                mistakes.append(f"{job}: attempt {attempt} began at {number} and at {told[job, attempt]}")
        else:
            print(f"   {line}")
    print(f"{len(told)} attempts began; newest complete: {complete}")
    return mistakes


SETTINGS = {
    "execution.checkpointing.interval": "1 s",
    "execution.checkpointing.min-pause": "200 ms",
    "execution.checkpointing.incremental": True,
    "execution.checkpointing.num-retained": 2,
    "heartbeat.interval": "1 s",
    "heartbeat.timeout": "15 s",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("ESKER_BIN", REPOSITORY / "target" / "debug" / "esker"))
    parser.add_argument("--esker", type=Path, default=default, help="the daemon to start")
    parser.add_argument("--megabytes", type=float, default=4, help="state of each of five tasks")
    parser.add_argument("--seconds", type=float, default=20, help="with five tasks; a quarter of it each time after that")
    parser.add_argument("--rate", type=float, default=2000, help="records a second and task")
    parser.add_argument("--patience", type=float, default=120, help="seconds for anything to happen")
    parser.add_argument("--seed", type=int, default=None, help="of the kills")
    parser.add_argument("--rust", type=Path, help="the program of each second task")
    parser.add_argument("--folder", type=Path, help="for everything; kept. Otherwise one that is deleted")
    for name in ("--api", "--job"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--subtask", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.subtask is not None:
        run_worker(args)
        return 0
    with tempfile.TemporaryDirectory(prefix="esker-growing-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(args, folder)
        try:
            return run.go()
        finally:
            run.close()


if __name__ == "__main__":
    sys.exit(main())
