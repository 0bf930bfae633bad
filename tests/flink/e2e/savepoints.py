"""The story of savepoints: a job is stopped with one of each format, and goes on with fewer and with more subtasks."""

from .audit import Audit
from .processes import Failed
from .scenario import DOWN_SECONDS, Scenario
from .story import CHECKPOINTS_AFTER_A_KILL

FEWER = 2
SAVEPOINT_SECONDS = 180


class SavepointStory(Scenario):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stopped = []
        # A savepoint stays the user's: what resumes from it leaves it whole.
        self.claim_mode = "no_claim"

    def _tell(self, storage, report, _ends):
        cluster = self._start_shaped(storage, "first")
        job = self._submit_paced(cluster)
        report.measurements.append(self._measure(storage, job))
        report.kills.append(self._kill_storage(storage, job, DOWN_SECONDS[0]))
        report.kills.append(self._kill_task_manager(cluster, job))
        canonical = self._stop(storage, job, "CANONICAL")
        self._restart(storage)

        job = self._submit_paced(cluster, savepoint=canonical, parallelism=FEWER)
        self._await_rescaled(job, canonical)
        report.kills.append(self._kill_storage(storage, job, DOWN_SECONDS[1]))
        report.kills.append(self._kill_task_manager(cluster, job))
        native = self._stop(storage, job, "NATIVE")
        self._restart(storage)

        job = self._submit_fast(cluster, native)
        self._await_resumed(job, native)
        self._await_exact(storage, job, report)
        cluster.stop()

        self._expect_whole(storage, [canonical, native])
        storage.close()

    def _stop(self, storage, job, form):
        """Stops the job with a savepoint and returns where that is."""
        job.may_finish = True
        asked = self.processes.until(
            "Flink to begin a savepoint", 60, lambda: job.stop_with_savepoint(f"{storage.url}/savepoints", form))

        def is_there():
            answer = job.cluster.rest(asked)
            if not answer or answer["status"]["id"] != "COMPLETED":
                return None
            operation = answer["operation"]
            if "location" not in operation:
                raise Failed(f"the {form.lower()} savepoint failed: {operation}")
            return operation["location"]

        path = self.processes.until(f"a {form.lower()} savepoint", SAVEPOINT_SECONDS, is_there)
        self.processes.until("the job to stop", 60, lambda: job.state() == "FINISHED")
        self.stopped.append(job)
        self.say(f"stopped the job with a {form.lower()} savepoint after checkpoint "
                 f"{job.checkpoints().completed()[-1]['id']}")
        return path

    def _restart(self, storage):
        """What is resumed from is on storage, not in a daemon's memory."""
        storage.stop()
        storage.verify()
        storage.start()

    def _await_rescaled(self, job, savepoint):
        self._await_resumed(job, savepoint)
        job.may_finish = False
        self._await_checkpoints(job, CHECKPOINTS_AFTER_A_KILL)
        if job.parallelism() != FEWER:
            raise Failed(f"the job goes on with {job.parallelism()} subtasks instead of {FEWER}")
        self.say(f"the job goes on with {FEWER} subtasks")

    def _expect_whole(self, storage, savepoints):
        """Esker's audit finds both, each with all that Flink's own reader finds in it."""
        found = {f"s3://{checkpoint['bucket']}/{checkpoint['key'].rsplit('/', 1)[0]}": checkpoint
                 for checkpoint in Audit(self, storage).check(ended=self.stopped)}
        for savepoint in savepoints:
            checkpoint = found.get(savepoint)
            if not checkpoint or checkpoint["missing"] or not checkpoint["named"]:
                raise Failed(f"the savepoint {savepoint} is not whole any more: {checkpoint}")
