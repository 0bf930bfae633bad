#!/usr/bin/env python3
"""Counts words with five processes that are killed again and again, exactly once each word.

    python3 examples/python/count.py                  # starts a daemon (target/debug/esker, or ESKER_BIN) on free ports
    python3 examples/python/count.py --api http://127.0.0.1:9001     # uses one that runs; that is not killed
    python3 examples/python/count.py --rust target/debug/examples/counting          # clients/rust/examples/counting.rs five times
    python3 examples/python/count.py --rust target/debug/examples/counting --rust-tasks 2

Twenty partitions of words are dealt out to the five tasks of an operator. A task reads its partitions and counts; its state
are position and counts of each partition, which the coordinator of the job asks for every 200 ms. Meanwhile workers get
`kill -9`, at random, and so does the daemon. A worker that is gone is started again; all tasks go back to the last
completed checkpoint. In the end the counts are compared with those of a loop that nobody disturbs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
try:
    import esker.sync
except ImportError:  # Not installed: the one of this repository.
    sys.path.insert(0, str(REPOSITORY / "clients" / "python" / "src"))
    import esker.sync

OPERATOR = "count"
TASKS = 5
PARTITIONS = 20
WORDS_EACH = 8000
WORDS = "ridge melt water stream carry sand gravel ice tunnel bed valley lake".split()
SETTINGS = {
    "execution.checkpointing.interval": "200 ms",
    "heartbeat.interval": "500 ms",
    "heartbeat.timeout": "5 s",
}


def word(partition: int, position: int) -> str:
    return WORDS[((position * 2654435761 + partition * 40503) >> 9) % len(WORDS)]


# A worker: one process for each task.


class Partition:
    """How far a partition was read, and what was counted in it."""

    def __init__(self, number: int, position: int = 0, counts: dict[str, int] | None = None) -> None:
        self.number, self.position, self.counts = number, position, counts or {}

    def read(self, records: int, end: int) -> None:
        for position in range(self.position, min(self.position + records, end)):
            counted = word(self.number, position)
            self.counts[counted] = self.counts.get(counted, 0) + 1
            self.position = position + 1

    def to_bytes(self) -> bytes:
        return json.dumps([self.number, self.position, self.counts]).encode()


async def count(worker: esker.Worker, end: int, out: Path) -> None:
    """The work of one attempt."""
    if worker.restored is None:
        numbers = range(worker.subtask, PARTITIONS, worker.parallelism)
        partitions = [Partition(number) for number in numbers]
    else:
        elements = [element for part in await worker.restore() for element in part.elements]
        partitions = [Partition(*json.loads(element)) for element in elements]
    await worker.start()

    def snapshot() -> esker.State:
        return esker.State.split([partition.to_bytes() for partition in partitions], name="partitions")

    while any(partition.position < end for partition in partitions):
        for partition in partitions:
            partition.read(5, end)
        # As fast as words arrive. Between two records there may be a checkpoint.
        await asyncio.sleep(0.01)
        event = worker.poll()
        if isinstance(event, esker.Checkpoint):
            await event.put(snapshot())

    # The counts are published once the checkpoint that has all of them is complete. Who does so twice writes the same.
    await worker.end_of_data()
    async for checkpoint in worker.checkpoints():
        if await checkpoint.put(snapshot()) and isinstance(await checkpoint.wait(), esker.Completed):
            break
    result = {str(partition.number): partition.counts for partition in partitions}
    written = out / f"part-{worker.subtask}.tmp"
    written.write_text(json.dumps(result))
    written.rename(out / f"part-{worker.subtask}.json")


def run_worker(args: argparse.Namespace) -> None:
    worker = esker.Worker(args.job, OPERATOR, args.subtask, address=args.api)
    asyncio.run(worker.run(lambda worker: count(worker, args.words, args.out)))


# The one who starts them, and kills them.


class Daemon:
    """A daemon on a folder, which can be killed and started again on its ports."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.s3, self.api = "127.0.0.1:0", "127.0.0.1:0"
        self.start()

    def command(self) -> list[str | Path]:
        return [self.program, "dev", "--data-dir", self.folder / "data"]

    def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [*self.command(), "--s3", self.s3, "--api", self.api, "--ready-file", ready]
        with (self.folder / "esker.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not ready.exists() or not ready.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the daemon is not ready, its log: {self.folder / 'esker.log'}")
            time.sleep(0.05)
        told = json.loads(ready.read_text())
        self.s3, self.api = (told[door].removeprefix("http://") for door in ("s3", "api"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Workers:
    def __init__(self, args: argparse.Namespace, api: str, job: str, folder: Path) -> None:
        self.args = args
        self.options = ["--api", api, "--job", job, "--words", str(args.words), "--out", str(folder)]
        self.log = (folder / "workers.log").open("a")
        self.processes = [self.start(subtask) for subtask in range(TASKS)]

    def start(self, subtask: int) -> subprocess.Popen[bytes]:
        in_rust = self.args.rust and subtask < self.args.rust_tasks
        program = [self.args.rust] if in_rust else [sys.executable, __file__, "worker"]
        command = [*program, *self.options, "--subtask", str(subtask)]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def restart_those_that_failed(self) -> None:
        for subtask, process in enumerate(self.processes):
            if process.poll() not in (None, 0):
                self.processes[subtask] = self.start(subtask)

    def kill(self, subtask: int) -> bool:
        if self.processes[subtask].poll() is not None:
            return False
        self.processes[subtask].send_signal(signal.SIGKILL)
        self.processes[subtask].wait()
        return True

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def run(args: argparse.Namespace, folder: Path) -> int:
    chance = random.Random(args.seed)
    daemon = None if args.api else Daemon(args.esker, folder)
    api = args.api or f"http://{daemon.api}"
    job = f"examples/count-{int(time.time() * 1000)}"
    with esker.sync.Client(api) as client:
        client.create_job(job, operators=[{"id": OPERATOR, "parallelism": TASKS}], settings=SETTINGS)
        workers = Workers(args, api, job, folder)
        try:
            disturb(client, job, workers, daemon, chance, args)
            wait_for_end(client, job, workers, args)
        finally:
            workers.end()
            if daemon is not None:
                daemon.process.terminate()
                daemon.process.wait()
    return compare(folder, args.words)


def wait_until_it_runs(client: esker.sync.Client, job: str, workers: Workers) -> bool:
    """Waits until all tasks run and something was completed. ``False``: the job has ended, or takes too long."""
    for _ in range(200):
        workers.restart_those_that_failed()
        try:
            coordinator = client.job(job).get("coordinator") or {}
        except esker.NotFound:
            return False
        if coordinator.get("status") == "running" and coordinator.get("completed") is not None:
            return True
        time.sleep(0.1)
    return False


def disturb(
    client: esker.sync.Client,
    job: str,
    workers: Workers,
    daemon: Daemon | None,
    chance: random.Random,
    args: argparse.Namespace,
) -> None:
    """Kills workers, and the daemon twice in between, while the job runs."""
    daemon_kills = {args.kills // 3, 2 * args.kills // 3} if daemon else set()
    for n in range(args.kills):
        if not wait_until_it_runs(client, job, workers):
            return
        time.sleep(chance.uniform(0.3, 1.0))
        if n in daemon_kills:
            daemon.kill()
            time.sleep(chance.uniform(0.0, 1.0))
            daemon.start()
            print("killed the daemon, and started it again", flush=True)
        subtask = chance.randrange(TASKS)
        if workers.kill(subtask):
            print(f"killed worker {subtask}", flush=True)
        workers.restart_those_that_failed()


def has_ended(client: esker.sync.Client, job: str) -> bool:
    """A job ends when all its tasks have finished; without a checkpoint that is kept it is forgotten."""
    try:
        return not client.job(job).get("coordinator")
    except esker.NotFound:
        return True


def wait_for_end(client: esker.sync.Client, job: str, workers: Workers, args: argparse.Namespace) -> None:
    deadline = time.monotonic() + args.patience
    while not has_ended(client, job):
        workers.restart_those_that_failed()
        if time.monotonic() > deadline:
            raise SystemExit(f"the job has not ended after {args.patience} s, log of its workers: {workers.log.name}")
        time.sleep(0.1)


def compare(folder: Path, words: int) -> int:
    """Compares what the workers counted with what there is to count."""
    counted: dict[str, dict[str, int]] = {}
    for part in sorted(folder.glob("part-*.json")):
        counted.update(json.loads(part.read_text()))
    wrong = 0
    for number in range(PARTITIONS):
        right = Partition(number)
        right.read(words, words)
        if counted.get(str(number)) != right.counts:
            print(f"partition {number}: counted {counted.get(str(number))}, right is {right.counts}")
            wrong += 1
    total = sum(sum(counts.values()) for counts in counted.values())
    print(f"{total} words counted in {len(counted)} partitions, {PARTITIONS - wrong} of {PARTITIONS} exactly right")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("ESKER_BIN", REPOSITORY / "target" / "debug" / "esker"))
    parser.add_argument("--esker", type=Path, default=default, help="the daemon to start")
    parser.add_argument("--api", default=os.environ.get("ESKER_API"), help="a daemon that runs, instead")
    parser.add_argument("--words", type=int, default=WORDS_EACH, help="in each partition")
    parser.add_argument("--rust", type=Path, help="the program of tasks in Rust")
    parser.add_argument("--rust-tasks", type=int, default=TASKS, help="so many are in Rust, the others in Python")
    parser.add_argument("--kills", type=int, default=9, help="of workers; the daemon is killed twice in between")
    parser.add_argument("--seed", type=int, default=None, help="of the kills")
    parser.add_argument("--patience", type=float, default=240, help="seconds after the last kill")
    worker = parser.add_subparsers(dest="role").add_parser("worker")
    worker.add_argument("--api", required=True)
    worker.add_argument("--words", type=int, default=WORDS_EACH)
    worker.add_argument("--job", required=True)
    worker.add_argument("--subtask", type=int, required=True)
    worker.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.role == "worker":
        run_worker(args)
        return 0
    with tempfile.TemporaryDirectory(prefix="esker-count-") as folder:
        return run(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
