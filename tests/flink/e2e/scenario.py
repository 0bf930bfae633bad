"""The story that the test tells: Flink keeps exact state while everything under it is killed."""

import itertools
import statistics
import time
from dataclasses import dataclass, field

from . import expected
from .audit import Audit
from .cluster import PARALLELISM
from .processes import Failed
from .report import Measurement
from .story import CHECKPOINTS_AFTER_A_KILL, CHECKPOINTS_SECONDS, Story
from .timeline import Timeline
from .trace import Trace

NUMBERS_PER_SECOND = 2000
# The resumed job does not have to be slow any more, only right.
NUMBERS_PER_SECOND_RESUMED = 20000
KEYS = 5000

WARM_UP_CHECKPOINTS = 5
MEASURED_CHECKPOINTS = 12
# How long a killed storage stays away, in turn: within the patience of Flink's client, and beyond it.
DOWN_SECONDS = [0.3, 4]


def tally(count, per_second, results, pause_micros=0):
    """The main class and the arguments of the job that counts."""
    return "esker.flink.TallyJob", [
        "--count", count, "--per-second", per_second, "--keys", KEYS, "--results", results,
        *(["--pause-micros", pause_micros] if pause_micros else [])]


@dataclass(frozen=True)
class Shape:
    """What one run of the story differs in from another."""

    # Flink's configuration; {storage} stands for the URL of what Flink writes to.
    config: dict = field(default_factory=dict)
    # Whether numbers come faster than they are counted, so that some are on their way at every checkpoint.
    back_pressure: bool = False
    # Flink keeps something with this in its key while the job runs: that shows what the configuration is about.
    keeps: str = ""
    # Whether Flink deletes all that a finished job has written.
    cleans_up: bool = True

    def config_on(self, storage):
        return {key: str(value).replace("{storage}", storage.url) for key, value in self.config.items()}

    def pace(self):
        """Numbers per second that come, and for how many microseconds each subtask rests after one."""
        if self.back_pressure:
            return NUMBERS_PER_SECOND * 10, PARALLELISM * 1_000_000 // NUMBERS_PER_SECOND
        return NUMBERS_PER_SECOND, 0


class Scenario(Story):
    def __init__(self, processes, tools, jar, folder, seconds, claim_mode, say, shape=Shape()):
        super().__init__(processes, tools, jar, folder, claim_mode, say)
        self.seconds, self.shape = seconds, shape
        self.results = folder / "results"
        self.results.mkdir()
        # More than the first job can count in its time: it is always cancelled in the middle.
        self.count = int(NUMBERS_PER_SECOND * (seconds * 1.5 + 180))

    def measure_alone(self, storage, traced=False):
        """Measures undisturbed checkpoints on `storage` and leaves it stopped. Tells what each write was about, if `traced`."""
        storage.start()
        cluster = self._start_shaped(storage, "alone")
        job = self._submit_paced(cluster)
        measurement = self._measure(storage, job)
        if traced:
            checkpoints = job.checkpoints().completed()[-measurement.checkpoints - 1:]
            trace = Trace(storage.server, storage.access_log, checkpoints)
            print("\n".join(["", *trace.lines(3), "", *trace.summary()]))
        self._cancel(job)
        cluster.stop()
        storage.close()
        return measurement

    def run(self, storage, report):
        """Tells the whole story on `storage`, and enters what it finds out into `report`."""
        ends = time.monotonic() + self.seconds
        storage.start()
        if not storage.has_space:
            return self._tell(storage, report, ends)
        with Timeline(storage) as timeline:
            self._tell(storage, report, ends)
        report.timeline = timeline.rows
        if not any(row["freed_bytes"] > 0 for row in timeline.rows):
            raise Failed("nothing was reclaimed all the time: try a larger --seconds")

    def _tell(self, storage, report, ends):
        cluster = self._start_shaped(storage, "first")
        job = self._submit_paced(cluster)
        report.measurements.append(self._measure(storage, job))
        audit = Audit(self, storage) if storage.has_space else None
        if audit:
            audit.await_no_orphans(job)
        self._kill_for_a_while(storage, cluster, job, ends, report)
        retained = self._cancel(job)
        report.restored_checkpoint = retained
        cluster.stop()
        if audit:
            # What the kills have left goes before the job resumes: were any of it needed, it could not.
            report.orphans_deleted = audit.check_and_clean()

        # The fresh cluster reads what a fresh daemon finds on storage, not what one remembers.
        storage.stop()
        storage.verify()
        storage.start()
        cluster = self._start_shaped(storage, "second")
        job = self._submit_fast(cluster, retained)
        self._await_resumed(job, retained)
        self._await_exact(storage, job, report)
        cluster.stop()

        if audit:
            audit.check(claimed=retained)

        # The cancelled job keeps its checkpoints but for the one that was claimed.
        storage.delete_what_is_due()
        left = storage.sizes().values()
        report.objects_left, report.bytes_left = len(left), sum(left)
        report.held_files, report.held_bytes = storage.held()
        self.say(f"{report.objects_left} objects of {report.bytes_left:,} bytes are left, "
                 f"in {report.held_files} files of {report.held_bytes:,} bytes")
        storage.close()

    def _start_shaped(self, storage, name):
        return self._start_cluster(storage, name, config=self.shape.config_on(storage))

    def _submit_paced(self, cluster, **resumed):
        per_second, pause_micros = self.shape.pace()
        return self._submit(cluster, *tally(self.count, per_second, self.results, pause_micros), **resumed)

    def _submit_fast(self, cluster, savepoint):
        arguments = tally(self.count, NUMBERS_PER_SECOND_RESUMED, self.results)
        return self._submit(cluster, *arguments, savepoint=savepoint)

    def _await_exact(self, storage, job, report):
        """Waits for the job's end, and compares what it has counted."""
        self._await_finished(job)
        if self.shape.cleans_up:
            self._await_cleanup(storage, job)
        report.keys_compared = expected.check(self.results, self.count, KEYS)
        report.numbers = self.count
        self.say(f"all {report.keys_compared} keys are exact after {self.count} numbers")

    def _measure(self, storage, job):
        self._await_checkpoints(job, WARM_UP_CHECKPOINTS)
        first, before, began = self._newest_completed(job), storage.traffic(), time.monotonic()
        self._await_checkpoints(job, MEASURED_CHECKPOINTS)
        last, traffic = self._newest_completed(job), storage.traffic().since(before)
        self._expect_shape(storage, job, first)
        sizes = list(storage.sizes().values())
        held_files, held_bytes = storage.held()
        measurement = Measurement(
            storage=storage.label,
            checkpoints=len(job.checkpoints().completed(after=first)) - len(job.checkpoints().completed(after=last)),
            seconds=round(time.monotonic() - began, 1),
            requests=dict(traffic.requests),
            objects_created=traffic.objects_created,
            esker=dict(traffic.esker),
            flink_objects=len(sizes),
            flink_bytes=sum(sizes),
            object_bytes_median=int(statistics.median(sizes)),
            object_bytes_max=max(sizes),
            held_files=held_files,
            held_bytes=held_bytes,
        )
        self.say(f"measured {measurement.checkpoints} checkpoints")
        return measurement

    def _expect_shape(self, storage, job, after):
        """The checkpoints have to be of the kind that the run is about."""
        on_their_way = [checkpoint["persisted_data"] for checkpoint in job.checkpoints().completed(after)]
        if self.shape.back_pressure and not statistics.median(on_their_way):
            raise Failed(f"no numbers are on their way at a checkpoint: {on_their_way}")
        if not any(self.shape.keeps in key for key in storage.sizes()):
            raise Failed(f"Flink keeps nothing with {self.shape.keeps} in its key")

    def _kill_for_a_while(self, storage, cluster, job, ends, report):
        """Kills the storage, a task manager and a node behind the storage in turn: once, and again while there is time."""
        for down_seconds in itertools.cycle(DOWN_SECONDS):
            began = time.monotonic()
            report.kills.append(self._kill_storage(storage, job, down_seconds))
            report.kills.append(self._kill_task_manager(cluster, job))
            if storage.has_nodes:
                report.kills.append(self._kill_node(storage, job))
            took = time.monotonic() - began
            # The second half of the story takes a little more than half a minute, another round as long as this one.
            if time.monotonic() + took + 40 > ends:
                return

    def _kill_storage(self, storage, job, down_seconds):
        """Kills the storage in the middle of a checkpoint and has the job go on."""
        for _ in range(10):
            checkpoint = self._await_checkpoint_in_progress(job)
            storage.kill()
            killed_at = time.time() * 1000
            time.sleep(down_seconds)
            storage.start()
            self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
            fate = job.checkpoints().history[checkpoint]
            acknowledged_at = fate["trigger_timestamp"] + fate["end_to_end_duration"]
            if fate["status"] != "COMPLETED" or acknowledged_at > killed_at:
                self.say(f"killed the storage in checkpoint {checkpoint} for {down_seconds} s: "
                         f"{fate['status'].lower()}")
                if storage.goes_on and fate["status"] != "COMPLETED":
                    raise Failed(f"checkpoint {checkpoint} failed, though two daemons went on: {fate}")
                return {"killed": "storage", "checkpoint": checkpoint, "fate": fate["status"]}
            self.say(f"killed the storage just after checkpoint {checkpoint}; once more")
        raise Failed("no checkpoint was in progress whenever the storage was killed")

    def _kill_node(self, storage, job):
        """Kills a node that Esker writes through; the job goes on while it is away, and when it is back."""
        checkpoint = self._await_checkpoint_in_progress(job)
        with storage.without_a_node() as node:
            self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        fate = job.checkpoints().history[checkpoint]["status"]
        self.say(f"killed {node} in checkpoint {checkpoint}: {fate.lower()}")
        return {"killed": node, "checkpoint": checkpoint, "fate": fate}

    def _await_checkpoint_in_progress(self, job):
        seen = job.checkpoints().newest_id()

        def fresh():
            checkpoints = self._checkpoints(job)
            return next((number for number in checkpoints.in_progress() if number > seen), None)

        return self.processes.until("a checkpoint to begin", CHECKPOINTS_SECONDS, fresh, every=0.02)
