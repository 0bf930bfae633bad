"""The story of the disk: what `du` says while a job with many small checkpoints runs, and when it has ended."""

import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, field

from . import expected
from .processes import Failed
from .report import aligned
from .scenario import KEYS, NUMBERS_PER_SECOND, tally
from .story import FINISH_SECONDS, Story
from .timeline import Watch, space_of

CHECKPOINT_INTERVAL = "500 ms"
SAMPLE_SECONDS = 0.25
# The default of `max-space-amplification`.
LIMIT = 2.0
# What the disk may hold above the limit while the job runs, of every hundred samples but one.
SLACK = 1.25
SETTLE_SECONDS = 15
# What needs space whatever lives: the catalog of a few hundred files, folders, and open files that are too short to be
# worth a hole or a new file. The catalog counts, since it is on the disk: its log grows by some 25 KB a checkpoint, and a
# segment of it (`catalog.log-segment-size`) is only given back as a whole. If it outgrows this, that is a failure.
FLOOR_BYTES = 8 << 20
WARM_UP_CHECKPOINTS = 5


class SpaceStory(Story):
    def __init__(self, processes, tools, jar, folder, seconds, say):
        super().__init__(processes, tools, jar, folder, "claim", say)
        self.count = NUMBERS_PER_SECOND * seconds
        self.finish_seconds = seconds * 2 + FINISH_SECONDS
        self.results = folder / "results"
        self.results.mkdir()

    def run(self, storage, report):
        storage.start()
        with Sampler(storage) as sampler:
            cluster = self._start_cluster(
                storage, "first", config={"execution.checkpointing.interval": CHECKPOINT_INTERVAL})
            job = self._submit(cluster, *tally(self.count, NUMBERS_PER_SECOND, self.results))
            job.may_finish = True
            self._await_checkpoints(job, WARM_UP_CHECKPOINTS)
            began = time.monotonic()
            self._await_finished(job, self.finish_seconds)
            ended = time.monotonic()
            report.checkpoints = job.checkpoints().counts["completed"]
            report.job_seconds = round(ended - began, 1)
            self._await_cleanup(storage, job)
            time.sleep(max(0, ended + SETTLE_SECONDS - time.monotonic()))
        report.keys_compared = expected.check(self.results, self.count, KEYS)
        report.enter(sampler.rows, began, ended)
        cluster.stop()
        storage.close()
        self.say(f"all {report.keys_compared} keys are exact after {report.checkpoints} checkpoints")


class Sampler(Watch):
    """Looks at the disk and at what lives there, four times a second."""

    def _watch(self):
        due = time.monotonic()
        while not self._over.wait(max(0, due - time.monotonic())):
            due = max(due + SAMPLE_SECONDS, time.monotonic())
            self.rows.append(self._sample())

    def _sample(self):
        # What lives is asked on both sides: the disk may have been seen just before or after a file died.
        before, used, space = space_of(self.storage), disk_usage(self.storage.data), space_of(self.storage)
        return {
            "at": time.monotonic(),
            "disk_bytes": used[""],
            "catalog_bytes": used.get("catalog", 0),
            "live_bytes": max(before["live_bytes"], space["live_bytes"]),
            "files": space["files"],
            "physical_bytes": space["physical_bytes"],
            "waiting_bytes": space["forgotten_bytes"],
        }


@dataclass
class SpaceReport:
    checkpoints: int = 0
    job_seconds: float = 0
    keys_compared: int = 0
    # Percentiles while the job ran: of bytes on disk, living bytes, and the disk's share of what it may hold.
    disk_bytes: dict = field(default_factory=dict)
    catalog_bytes: dict = field(default_factory=dict)
    live_bytes: dict = field(default_factory=dict)
    # On disk and neither in what Esker says that it holds, nor in its catalog.
    unnamed_bytes: dict = field(default_factory=dict)
    disk_per_live: dict = field(default_factory=dict)
    disk_per_allowed: dict = field(default_factory=dict)
    # The first and the last sample after the job, and the last one's share of what it may hold then.
    after: list = field(default_factory=list)
    after_per_allowed: float = 0
    timeline: list = field(default_factory=list)
    seconds: float = 0

    def enter(self, rows, began, ended):
        """Enters what was sampled, the job having run from `began` to `ended`."""
        self.timeline = [{**row, "at": round(row["at"] - began, 2)} for row in rows]
        running = [row for row in rows if began <= row["at"] < ended]
        after = [row for row in self.timeline if row["at"] >= ended - began]
        self.disk_bytes = percentiles([row["disk_bytes"] for row in running])
        self.catalog_bytes = percentiles([row["catalog_bytes"] for row in running])
        self.live_bytes = percentiles([row["live_bytes"] for row in running])
        self.unnamed_bytes = percentiles([
            row["disk_bytes"] - row["catalog_bytes"] - row["physical_bytes"] for row in running])
        self.disk_per_live = percentiles([row["disk_bytes"] / max(1, row["live_bytes"]) for row in running])
        self.disk_per_allowed = percentiles([row["disk_bytes"] / allowed(row, SLACK) for row in running])
        self.after = [after[0], after[-1]]
        self.after_per_allowed = round(after[-1]["disk_bytes"] / allowed(after[-1], 1), 3)

    def check(self):
        wrong = []
        if self.disk_per_allowed["p99"] > 1:
            wrong.append(
                f"the disk held {self.disk_per_allowed['p99']} of the allowed {SLACK} * {LIMIT} * living bytes + "
                f"{FLOOR_BYTES:,} (p99): {self.disk_bytes['p99']:,} bytes for {self.live_bytes['p50']:,} living ones")
        if self.after_per_allowed > 1:
            last = self.after[-1]
            wrong.append(f"{SETTLE_SECONDS} s after the job the disk holds {last['disk_bytes']:,} bytes for "
                         f"{last['live_bytes']:,} living ones: {self.after_per_allowed} of what it may")
        if wrong:
            raise Failed("\n".join(wrong))

    def as_json(self):
        return asdict(self)

    def table(self):
        rows = [[f"{self.checkpoints} checkpoints in {self.job_seconds:.0f} s", "p50", "p99", "max"]]
        for name, figures in (("bytes on disk", self.disk_bytes), ("of them of the catalog", self.catalog_bytes),
                              ("of them named nowhere", self.unnamed_bytes), ("living bytes", self.live_bytes),
                              ("disk / living", self.disk_per_live), ("disk / allowed", self.disk_per_allowed)):
            rows.append([name, *(f"{figures[of]:,}" for of in ("p50", "p99", "max"))])
        ends = [["after the job", "bytes on disk", "of the catalog", "living bytes", "waiting bytes"]]
        for row in self.after:
            ends.append([f"second {row['at']:.0f}", *(
                f"{row[of]:,}" for of in ("disk_bytes", "catalog_bytes", "live_bytes", "waiting_bytes"))])
        return f"{aligned(rows)}\n\n{aligned(ends)}\n{self.after_per_allowed} of what it may then hold"


def allowed(row, slack):
    """What the disk may hold for what lives."""
    return slack * LIMIT * row["live_bytes"] + FLOOR_BYTES


def percentiles(numbers):
    ordered = sorted(round(number, 3) for number in numbers)
    return {"p50": statistics.median_low(ordered), "p99": ordered[(len(ordered) - 1) * 99 // 100], "max": ordered[-1]}


def disk_usage(folder):
    """What `du` says of this folder and of those in it, by name; it goes on when a file is deleted while it looks.

    Without the file RESERVE: it is what `store.reserve` keeps back of the disk, whatever the job does."""
    done = subprocess.run(
        ["du", "-d1", "--block-size=1", "--exclude=RESERVE", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = (line.split("\t", 1) for line in done.stdout.splitlines())
    return {path.removeprefix(str(folder)).lstrip("/"): int(size) for size, path in lines}
