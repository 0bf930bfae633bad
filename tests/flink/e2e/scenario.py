"""The story that the test tells: Flink keeps exact state while everything under it is killed."""

import itertools
import statistics
import time

from . import expected
from .cluster import Cluster
from .processes import Failed
from .report import Measurement
from .timeline import Timeline

NUMBERS_PER_SECOND = 2000
# The resumed job does not have to be slow any more, only right.
NUMBERS_PER_SECOND_RESUMED = 20000
KEYS = 5000

WARM_UP_CHECKPOINTS = 5
MEASURED_CHECKPOINTS = 12
CHECKPOINTS_AFTER_A_KILL = 3
# How long a killed storage stays away, in turn: within the patience of Flink's client, and beyond it.
DOWN_SECONDS = [0.3, 4]
# How long n checkpoints may take on a machine that is busy with other things.
CHECKPOINTS_SECONDS = 180
FINISH_SECONDS = 600


class Scenario:
    def __init__(self, processes, tools, jar, folder, seconds, claim_mode, say):
        self.processes, self.tools, self.jar, self.folder = processes, tools, jar, folder
        self.seconds, self.claim_mode, self.say = seconds, claim_mode, say
        self.results = folder / "results"
        self.results.mkdir()
        # More than the first job can count in its time: it is always cancelled in the middle.
        self.count = int(NUMBERS_PER_SECOND * (seconds * 1.5 + 120))

    def measure_alone(self, storage):
        """Measures undisturbed checkpoints on `storage` and leaves it stopped."""
        storage.start()
        cluster = self._start_cluster(storage, "alone")
        job = self._submit(cluster, NUMBERS_PER_SECOND)
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
        job = self._submit(cluster, NUMBERS_PER_SECOND)
        report.measurements.append(self._measure(storage, job))
        self._kill_for_a_while(storage, cluster, job, ends, report)
        retained = self._cancel(job)
        report.restored_checkpoint = retained
        cluster.stop()

        # The fresh cluster reads what a fresh daemon finds on storage, not what one remembers.
        storage.stop()
        storage.verify()
        storage.start()
        cluster = self._start_cluster(storage, "second")
        job = self._submit(cluster, NUMBERS_PER_SECOND_RESUMED, savepoint=retained)
        self._finish(job, retained)
        self._await_cleanup(storage, job)
        report.keys_compared = expected.check(self.results, self.count, KEYS)
        report.numbers = self.count
        self.say(f"all {report.keys_compared} keys are exact after {self.count} numbers")
        cluster.stop()

        # The cancelled job keeps its checkpoints but for the one that was claimed.
        storage.delete_what_is_due()
        left = storage.client.sizes(storage.bucket).values()
        report.objects_left, report.bytes_left = len(left), sum(left)
        report.held_files, report.held_bytes = storage.held()
        self.say(f"{report.objects_left} objects of {report.bytes_left:,} bytes are left, "
                 f"in {report.held_files} files of {report.held_bytes:,} bytes")
        storage.close()
        storage.verify()

    def _start_cluster(self, storage, name):
        cluster = Cluster(self.processes, self.tools, storage, self.folder, name)
        cluster.start()
        self.say(f"the {name} cluster is up")
        return cluster

    def _submit(self, cluster, per_second, savepoint=None):
        arguments = ["--count", self.count, "--per-second", per_second, "--keys", KEYS, "--results", self.results]
        job = cluster.submit(self.jar, arguments, savepoint, self.claim_mode)
        self.say(f"submitted job {job.id}")
        return job

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

    def _kill_task_manager(self, cluster, job):
        """Kills a task manager, replaces it, and has the job restore its newest checkpoint."""
        before = self._checkpoints(job)
        newest = before.completed()[-1]["id"]
        cluster.kill_task_manager()
        cluster.add_task_manager()
        self.processes.until(
            "the job to be restored", CHECKPOINTS_SECONDS,
            lambda: self._checkpoints(job).counts["restored"] > before.counts["restored"])
        self.processes.until("all tasks to run again", CHECKPOINTS_SECONDS, job.all_tasks_run)
        self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        restored = self._checkpoints(job).restored["id"]
        if restored < newest:
            raise Failed(f"checkpoint {restored} was restored although {newest} was complete")
        self.say(f"killed a task manager; checkpoint {restored} was restored")
        return {"killed": "task manager", "checkpoint": newest, "restored": restored}

    def _cancel(self, job):
        """Cancels the job and returns where its last checkpoint is."""
        job.cancel()
        self.processes.until("the job to be cancelled", CHECKPOINTS_SECONDS, lambda: job.state() == "CANCELED")
        last = job.checkpoints().completed()[-1]
        self.say(f"cancelled the job after checkpoint {last['id']}")
        return last["external_path"]

    def _finish(self, job, retained):
        restored = self.processes.until(
            "the job to be resumed", CHECKPOINTS_SECONDS, lambda: self._checkpoints(job).restored)
        if not retained.endswith(restored["external_path"].removeprefix("s3:")):
            raise Failed(f"{restored['external_path']} was restored instead of {retained}")

        def finished():
            state = job.state()
            if state in ("FAILED", "CANCELED"):
                raise Failed(f"the resumed job is {state}:\n{job.why_it_failed()}")
            return state == "FINISHED"

        self.processes.until("the job to finish", FINISH_SECONDS, finished)
        completed = self._checkpoints(job).counts["completed"]
        self.say(f"the resumed job has finished, with {completed} more checkpoints")

    def _await_cleanup(self, storage, job):
        """A finished job keeps no checkpoint, so Flink deletes every object that the job has written.

        S3A leaves its markers of directories, objects without bytes.
        """
        def is_gone():
            keys = storage.client.sizes(storage.bucket)
            return not any(job.id in key and not key.endswith("/") for key in keys)

        self.processes.until("Flink to delete what the finished job has written", 60, is_gone)

    def _await_checkpoints(self, job, number):
        """Waits for checkpoints that begin from now on."""
        newest = self._checkpoints(job).newest_id()
        self.processes.until(
            f"{number} checkpoints after {newest}", CHECKPOINTS_SECONDS,
            lambda: len(self._checkpoints(job).completed(after=newest)) >= number)

    def _newest_completed(self, job):
        return self._checkpoints(job).completed()[-1]["id"]

    def _checkpoints(self, job):
        """The checkpoints of a job that has to be alive."""
        state = job.state()
        if state in ("FAILED", "CANCELED"):
            raise Failed(f"the job is {state}:\n{job.why_it_failed()}")
        if state == "FINISHED" and job.cluster.name != "second":
            raise Failed("the job ran out of numbers before the end of the story: try a larger --seconds")
        return self.processes.until("the job's checkpoints", 30, job.checkpoints)
