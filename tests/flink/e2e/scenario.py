"""The story that the test tells: Flink keeps exact state while everything under it is killed."""

import itertools
import statistics
import time

from . import expected
from .audit import Audit
from .processes import Failed
from .report import Measurement
from .story import CHECKPOINTS_AFTER_A_KILL, CHECKPOINTS_SECONDS, Story
from .timeline import Timeline

NUMBERS_PER_SECOND = 2000
# The resumed job does not have to be slow any more, only right.
NUMBERS_PER_SECOND_RESUMED = 20000
KEYS = 5000

WARM_UP_CHECKPOINTS = 5
MEASURED_CHECKPOINTS = 12
# How long a killed storage stays away, in turn: within the patience of Flink's client, and beyond it.
DOWN_SECONDS = [0.3, 4]


def tally(count, per_second, results):
    """The main class and the arguments of the job that counts."""
    return "esker.flink.TallyJob", [
        "--count", count, "--per-second", per_second, "--keys", KEYS, "--results", results]


class Scenario(Story):
    def __init__(self, processes, tools, jar, folder, seconds, claim_mode, say):
        super().__init__(processes, tools, jar, folder, claim_mode, say)
        self.seconds = seconds
        self.results = folder / "results"
        self.results.mkdir()
        # More than the first job can count in its time: it is always cancelled in the middle.
        self.count = int(NUMBERS_PER_SECOND * (seconds * 1.5 + 120))

    def measure_alone(self, storage):
        """Measures undisturbed checkpoints on `storage` and leaves it stopped."""
        storage.start()
        cluster = self._start_cluster(storage, "alone")
        job = self._submit(cluster, *tally(self.count, NUMBERS_PER_SECOND, self.results))
        measurement = self._measure(storage, job)
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
        cluster = self._start_cluster(storage, "first")
        job = self._submit(cluster, *tally(self.count, NUMBERS_PER_SECOND, self.results))
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
        cluster = self._start_cluster(storage, "second")
        job = self._submit(cluster, *tally(self.count, NUMBERS_PER_SECOND_RESUMED, self.results), savepoint=retained)
        self._await_resumed(job, retained)
        self._await_finished(job)
        self._await_cleanup(storage, job)
        report.keys_compared = expected.check(self.results, self.count, KEYS)
        report.numbers = self.count
        self.say(f"all {report.keys_compared} keys are exact after {self.count} numbers")
        cluster.stop()

        if audit:
            audit.check(claimed=retained)

        # The cancelled job keeps its checkpoints but for the one that was claimed.
        storage.delete_what_is_due()
        left = storage.client.sizes(storage.bucket).values()
        report.objects_left, report.bytes_left = len(left), sum(left)
        report.held_files, report.held_bytes = storage.held()
        self.say(f"{report.objects_left} objects of {report.bytes_left:,} bytes are left, "
                 f"in {report.held_files} files of {report.held_bytes:,} bytes")
        storage.close()
        storage.verify()

    def _measure(self, storage, job):
        self._await_checkpoints(job, WARM_UP_CHECKPOINTS)
        first, before, began = self._newest_completed(job), storage.traffic(), time.monotonic()
        self._await_checkpoints(job, MEASURED_CHECKPOINTS)
        last, traffic = self._newest_completed(job), storage.traffic().since(before)
        sizes = list(storage.client.sizes(storage.bucket).values())
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

    def _kill_for_a_while(self, storage, cluster, job, ends, report):
        """Kills the storage and a task manager in turn: once, and again while there is time."""
        for down_seconds in itertools.cycle(DOWN_SECONDS):
            began = time.monotonic()
            report.kills.append(self._kill_storage(storage, job, down_seconds))
            report.kills.append(self._kill_task_manager(cluster, job))
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
                return {"killed": "storage", "checkpoint": checkpoint, "fate": fate["status"]}
            self.say(f"killed the storage just after checkpoint {checkpoint}; once more")
        raise Failed("no checkpoint was in progress whenever the storage was killed")

    def _await_checkpoint_in_progress(self, job):
        seen = job.checkpoints().newest_id()

        def fresh():
            checkpoints = self._checkpoints(job)
            return next((number for number in checkpoints.in_progress() if number > seen), None)

        return self.processes.until("a checkpoint to begin", CHECKPOINTS_SECONDS, fresh, every=0.02)
