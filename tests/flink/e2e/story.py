"""What all stories do with a job: submit it, watch its checkpoints, end it."""

from .cluster import Cluster
from .processes import Failed

CHECKPOINTS_AFTER_A_KILL = 3
# How long n checkpoints may take on a machine that is busy with other things.
CHECKPOINTS_SECONDS = 180
FINISH_SECONDS = 600
# A job that restored the same checkpoint so often will never get further.
RESTORES_MAX = 30


class Story:
    def __init__(self, processes, tools, jar, folder, claim_mode, say):
        self.processes, self.tools, self.jar, self.folder = processes, tools, jar, folder
        self.claim_mode, self.say = claim_mode, say

    def _start_cluster(self, storage, name, **shape):
        cluster = Cluster(self.processes, self.tools, storage, self.folder, name, **shape)
        cluster.start()
        self.say(f"the {name} cluster is up")
        return cluster

    def _submit(self, cluster, main, arguments, savepoint=None, parallelism=None):
        job = cluster.submit(main, self.jar, arguments, savepoint, self.claim_mode, parallelism)
        self.say(f"submitted job {job.id}")
        return job

    def _kill_task_manager(self, cluster, job):
        """Kills a task manager, replaces it, and has the job restore its newest checkpoint."""
        before = self._checkpoints(job)
        newest = before.completed()[-1]["id"]
        names = self.processes.until("task managers to run the job", CHECKPOINTS_SECONDS, job.task_managers)
        cluster.kill_task_manager(names)
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

    def _await_resumed(self, job, retained):
        job.may_finish = True
        restored = self.processes.until(
            "the job to be resumed", CHECKPOINTS_SECONDS, lambda: self._checkpoints(job).restored)
        if not retained.endswith(restored["external_path"].removeprefix("s3:")):
            raise Failed(f"{restored['external_path']} was restored instead of {retained}")

    def _await_finished(self, job, seconds=FINISH_SECONDS):
        job.may_finish = True
        self.processes.until("the job to finish", seconds, lambda: self._running_state(job) == "FINISHED")
        self.say(f"the job has finished, with {self._checkpoints(job).counts['completed']} checkpoints")

    def _await_cleanup(self, storage, job):
        """A finished job keeps no checkpoint, so Flink deletes every object that the job has written.

        S3A leaves its markers of directories, objects without bytes.
        """
        def is_gone():
            return not any(job.id in key and not key.endswith("/") for key in storage.sizes())

        self.processes.until("Flink to delete what the finished job has written", 60, is_gone)

    def _await_checkpoints(self, job, number):
        """Waits for checkpoints that begin from now on."""
        progress = Progress(job, self._checkpoints(job))
        newest = progress.newest_id

        def are_there():
            now = self._checkpoints(job)
            progress.check(now)
            return len(now.completed(after=newest)) >= number

        self.processes.until(f"{number} checkpoints after {newest}", CHECKPOINTS_SECONDS, are_there)

    def _newest_completed(self, job):
        return self._checkpoints(job).completed()[-1]["id"]

    def _checkpoints(self, job):
        """The checkpoints of a job that has to be alive."""
        if self._running_state(job) == "FINISHED" and not job.may_finish:
            raise Failed("the job ran out of numbers before the end of the story: "
                         "this machine is too slow for it, or --seconds is too small")
        return self.processes.until("the job's checkpoints", 30, job.checkpoints)

    def _running_state(self, job):
        """The state of a job that must neither fail nor be cancelled."""
        state = job.state()
        if state in ("FAILED", "CANCELED"):
            raise Failed(f"the job is {state}:\n{job.why_it_failed()}")
        return state


class Progress:
    """Notices a job that restores one and the same checkpoint for ever."""

    def __init__(self, job, checkpoints):
        self.job, self.newest_id = job, checkpoints.newest_id()
        self._counts = checkpoints.counts

    def check(self, now):
        if now.counts["completed"] > self._counts["completed"]:
            self._counts = now.counts
        times = now.counts["restored"] - self._counts["restored"]
        if times > RESTORES_MAX:
            raise Failed(f"the job was restored {times} times in vain:\n{self.job.why_it_failed()}")
