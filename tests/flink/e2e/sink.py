"""The story of the sink: every record is in the output once, whatever part of a multipart upload Esker dies in.

Flink's `FileSink` begins an upload when it opens a part file, and its checkpoints name uploads that are open: the
parts that were answered, with their ETags, and the object that holds the tail too short for a part. After a restart it
goes on with them, and completes them when the checkpoint that names them is complete. An upload, or one part of it,
that was answered and is gone afterwards ends the job for good: each restart meets it again.

A proxy holds the request that the round is about, so that Esker is killed right after an answer, or between the
answer and its arrival. Flink's hadoop plugin alone is tested: the native plugin aborts uploads that checkpoints name
as soon as a task fails (the stream's `close` aborts), so there Flink itself loses records on any S3.
"""

import itertools
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from .expected import mix
from .processes import Failed
from .proxy import Moment, Proxy
from .story import CHECKPOINTS_SECONDS, Progress, Story

FOLDER = "out"
MAIN = "esker.flink.SinkJob"
# What a round takes on a busy machine: the job has numbers enough for all of them.
ROUND_SECONDS = 20
CHECKPOINTS_AFTER_A_KILL = 2
# A long upload begins and ends at this pace; a moment that comes once in that time is waited for.
ROLL_SECONDS = 12
# How long Esker stays away, in turn. Most of the time it is back before anybody gives up.
DOWN_SECONDS = [0, 0, 3]
# A task manager is lost in every third round, once Esker is back: the job resumes uploads that only storage knows.
ROUNDS_PER_LOST_TASK_MANAGER = 3


@dataclass(frozen=True)
class Stream:
    name: str
    per_second: int
    line_bytes: int
    # 0: its files roll on every checkpoint.
    roll_seconds: int
    parallelism: int

    @property
    def folder(self):
        return f"{FOLDER}/{self.name}"

    def line(self, number):
        digits = f"{mix(number):016x}"
        return f"{number}\t{digits * (self.line_bytes // 16 + 1)}"[:self.line_bytes].encode()


ROLLING = Stream("rolling", 400, 500, 0, 2)
SLOW_ROLLING = Stream("slow-rolling", 8, 500, 0, 2)
# One subtask, fast enough for a part of 5 MiB, Flink's smallest, in about five seconds.
LONG = Stream("long", 500, 2000, ROLL_SECONDS, 1)
SLOW_LONG = Stream("slow-long", 8, 500, ROLL_SECONDS, 2)
STREAMS = [ROLLING, SLOW_ROLLING, LONG, SLOW_LONG]

# The moments of the rounds, and whether Esker is asked to stop instead of killed.
PLAN = [
    (ROLLING, "part", "answered", False),
    (LONG, "tail", "answered", False),
    (ROLLING, "complete", "lost", False),
    (LONG, "part", "answered", False),
    (ROLLING, "create", "answered", False),
    (LONG, "create", "answered", False),
    (ROLLING, "complete", "sent", False),
    (SLOW_ROLLING, "part", "answered", False),
    (SLOW_LONG, "tail", "answered", False),
    (ROLLING, "complete", "answered", False),
    (LONG, "complete", "lost", False),
    (LONG, "tail", "answered", True),
    (ROLLING, "part", "answered", True),
    (SLOW_LONG, "create", "answered", False),
    (ROLLING, "part", "lost", False),
    (SLOW_ROLLING, "complete", "lost", False),
]


class SinkStory(Story):
    def __init__(self, processes, tools, jar, folder, rounds, say):
        super().__init__(processes, tools, jar, folder, "claim", say)
        self.rounds = rounds

    def run(self, storage, report):
        storage.start()
        proxy = Proxy(storage.s3_address, self.processes.folder / "proxy.log")
        try:
            self._tell(storage, proxy, report)
        except Failed as failure:
            keys = set(re.findall(rf"{FOLDER}/[\w/-]+", str(failure)))
            raise Failed("\n".join([str(failure), *proxy.history(keys)])) from failure

    def _tell(self, storage, proxy, report):
        cluster = self._start_cluster(storage, "first", parallelism=2, slots=1, config={
            "s3.endpoint": proxy.endpoint,
            # All streams resume their uploads whenever one of them fails.
            "jobmanager.execution.failover-strategy": "full",
        })
        job = self._submit(cluster, MAIN, self._arguments(storage))
        self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        for number, (stream, operation, when, politely) in enumerate(
                itertools.islice(itertools.cycle(PLAN), self.rounds)):
            moment = Moment(operation, when, stream.folder)
            report.rounds.append(self._round(number, moment, politely, storage, proxy, cluster, job))
        retained = self._cancel(job)

        # What is resumed from is on storage, not in a daemon's memory.
        storage.stop()
        storage.verify()
        storage.start()
        job = self._submit(cluster, MAIN, [*self._arguments(storage), "--hurry"], savepoint=retained)
        self._await_resumed(job, retained)
        self._await_finished(job)
        for stream in STREAMS:
            report.records[stream.name] = self._check(storage, stream)
        report.answers = dict(sorted(proxy.answers.items()))
        self._say_what_is_left(storage, report)
        cluster.stop()
        storage.close()

    def _arguments(self, storage):
        streams = ",".join(
            f"{stream.name}:{self._count(stream)}:{stream.per_second}:{stream.line_bytes}:"
            f"{stream.roll_seconds}:{stream.parallelism}"
            for stream in STREAMS)
        return ["--streams", streams, "--folder", f"s3://{storage.bucket}/{FOLDER}"]

    def _count(self, stream):
        return stream.per_second * (60 + self.rounds * ROUND_SECONDS)

    def _round(self, number, moment, politely, storage, proxy, cluster, job):
        """Ends Esker at this moment, and has the job go on."""
        began, before = time.monotonic(), self._checkpoints(job)
        trap = proxy.arm(moment)
        self._await_moment(job, trap)
        storage.stop() if politely else storage.kill()
        trap.release()
        time.sleep(DOWN_SECONDS[number % len(DOWN_SECONDS)])
        storage.start()
        loses_task_manager = number % ROUNDS_PER_LOST_TASK_MANAGER == ROUNDS_PER_LOST_TASK_MANAGER - 1
        if loses_task_manager:
            self._kill_task_manager(cluster, job)
        else:
            self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        seconds = round(time.monotonic() - began, 1)
        restores = self._checkpoints(job).counts["restored"] - before.counts["restored"]
        self.say(f"round {number + 1}: {'stopped' if politely else 'killed'} Esker: {moment}; "
                 f"{seconds} s, {restores} restores of the job")
        return {"moment": str(moment), "stopped": politely, "seconds": seconds, "restores": restores,
                "lost_task_manager": loses_task_manager}

    def _await_moment(self, job, trap):
        progress, deadline = Progress(job, self._checkpoints(job)), time.monotonic() + CHECKPOINTS_SECONDS
        # The moment itself is noticed at once; how the job fares is asked now and then.
        while not trap.sprung.wait(1):
            self.processes.check()
            progress.check(self._checkpoints(job))
            if time.monotonic() > deadline:
                raise Failed(f"waited {CHECKPOINTS_SECONDS} s in vain for this moment: {trap.moment}")

    def _check(self, storage, stream):
        """Compares the committed objects of a stream with its numbers. Returns the number of records."""
        count = self._count(stream)
        seen, wrong = Counter(), []
        for key in _committed(storage.client.sizes(storage.bucket, f"{stream.folder}/")):
            *lines, rest = storage.client.read(storage.bucket, key).split(b"\n")
            if rest:
                wrong.append(f"{key} ends within a line")
            for line in lines:
                number = int(line.split(b"\t", 1)[0])
                seen[number] += 1
                if line != stream.line(number):
                    wrong.append(f"{key} has a damaged line of number {number}")
        missing = [number for number in range(count) if number not in seen]
        repeated = [number for number, times in seen.items() if times > 1]
        foreign = [number for number in seen if not 0 <= number < count]
        for what, numbers in (("missing", missing), ("repeated", repeated), ("foreign", foreign)):
            if numbers:
                wrong.insert(0, f"{len(numbers)} of {count} records are {what}, the first is {min(numbers)}")
        if wrong:
            raise Failed("\n".join([f"the output of {stream.name} is wrong:", *wrong[:20]]))
        self.say(f"all {count} records of {stream.name} are there, once each")
        return count

    def _say_what_is_left(self, storage, report):
        """Uploads that no checkpoint names any more; Esker forgets them in its time."""
        report.uploads_left = len(storage.client.uploads(storage.bucket, f"{FOLDER}/"))
        report.tails_left = sum("_tmp_" in key for key in storage.client.sizes(storage.bucket, f"{FOLDER}/"))
        self.say(f"{report.uploads_left} uploads and {report.tails_left} tails are left")


@dataclass
class SinkReport:
    rounds: list = field(default_factory=list)
    # By stream.
    records: dict = field(default_factory=dict)
    # How often requests of uploads got which answer; the uploads of checkpoints' `_metadata` are among them.
    answers: dict = field(default_factory=dict)
    uploads_left: int = 0
    tails_left: int = 0
    seconds: float = 0

    def as_json(self):
        return asdict(self)

    def check(self):
        """Also what Flink forgives: it looks for the object when a completion that it repeats is refused."""
        refused = {answer: times for answer, times in self.answers.items() if re.search(r" 4\d\d", answer)}
        if refused:
            raise Failed(f"requests of uploads that were known were refused: {refused}")

    def table(self):
        restores = sum(row["restores"] for row in self.rounds)
        return (f"{len(self.rounds)} rounds, {restores} restores of the job, {sum(self.records.values())} records, "
                f"once each, in {self.seconds:.0f} s\n"
                + "\n".join(f"  {times:6} {answer}" for answer, times in self.answers.items()))


def _committed(keys):
    """Without the objects that hold tails of in-progress files: their names begin with an underscore."""
    return [key for key in keys if not key.endswith("/") and not key.rsplit("/", 1)[1].startswith(("_", "."))]
