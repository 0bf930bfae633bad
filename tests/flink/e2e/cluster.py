"""A Flink cluster out of a job manager and task managers, each a process of its own."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request

from .processes import Failed, free_port

PARALLELISM = 4
SLOTS = 2
START_SECONDS = 120
SUBMIT_SECONDS = 120

# Quick to start and easy on a small machine; the job needs neither the second compiler nor G1.
JVM = ["--add-opens=java.base/java.util=ALL-UNNAMED", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
CLIENT = "org.apache.flink.client.cli.CliFrontend"

LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %-40.40c{1} %m%n
"""


class Cluster:
    """One job manager and as many task managers as the job needs; `config` goes before what is set here."""

    def __init__(self, processes, tools, storage, folder, name, parallelism=PARALLELISM, slots=SLOTS, config=()):
        self.processes, self.tools, self.storage, self.name = processes, tools, storage, name
        self.parallelism, self.slots, self.config = parallelism, slots, dict(config)
        self.folder = folder / name
        self.temp = self.folder / "tmp"
        self.temp.mkdir(parents=True)
        self.rest_port = free_port()
        self.env = dict(os.environ, FLINK_PLUGINS_DIR=str(tools.plugins), FLINK_CONF_DIR=str(self.folder))
        self.job_manager = None
        self.task_managers = []
        self.task_managers_started = 0

    def start(self):
        (self.folder / "log4j2.properties").write_text(LOGGING)
        (self.folder / "config.yaml").write_text(
            "".join(f"{key}: {value}\n" for key, value in {**self._config(), **self.config}.items()))
        self.job_manager = self._java("jm", ["-Xmx320m"], JOB_MANAGER)
        for _ in range(self.parallelism // self.slots):
            self.add_task_manager()
        self.processes.until("the task managers to register", START_SECONDS, self._all_slots_free)

    def _config(self):
        return {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": free_port(),
            "jobmanager.bind-host": "127.0.0.1",
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.rest_port,
            # The test waits for what the REST interface says, which by default is seconds old.
            "web.refresh-interval": "50 ms",
            "web.checkpoints.history": 100,
            "io.tmp.dirs": self.temp,
            # Without Flink's start scripts nobody computes these.
            "taskmanager.cpu.cores": 2.0,
            "taskmanager.memory.framework.heap.size": "128 mb",
            "taskmanager.memory.framework.off-heap.size": "96 mb",
            "taskmanager.memory.task.heap.size": "160 mb",
            "taskmanager.memory.task.off-heap.size": "64 mb",
            "taskmanager.memory.managed.size": "96 mb",
            "taskmanager.memory.network.min": "32 mb",
            "taskmanager.memory.network.max": "32 mb",
            "taskmanager.memory.jvm-metaspace.size": "128 mb",
            "taskmanager.memory.jvm-overhead.min": "64 mb",
            "taskmanager.memory.jvm-overhead.max": "64 mb",
            "taskmanager.numberOfTaskSlots": self.slots,
            "parallelism.default": self.parallelism,
            # A task manager that starts before the job manager would otherwise wait for ten seconds.
            "cluster.registration.error-delay": "500 ms",
            # Task managers that start on a busy machine would give up after ten seconds.
            "pekko.startup-timeout": "60 s",
            # A killed task manager is noticed by its closed connections; this bounds the wait otherwise.
            "heartbeat.interval": "2 s",
            "heartbeat.timeout": "20 s",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1000000,
            "restart-strategy.fixed-delay.delay": "500 ms",
            "state.backend.type": "rocksdb",
            "execution.checkpointing.interval": "1 s",
            "execution.checkpointing.incremental": "true",
            "execution.checkpointing.num-retained": 3,
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
            "execution.checkpointing.tolerable-failed-checkpoints": 1000000,
            "execution.checkpointing.timeout": "60 s",
            "execution.checkpointing.dir": f"{self.storage.url}/jobs",
            **self.storage.flink_config(),
        }

    def _java(self, name, memory, main, *arguments):
        return self.processes.start(
            f"{self.name}-{name}", self._java_command(memory, main, "--configDir", self.folder, *arguments), self.env)

    def _java_command(self, memory, main, *arguments):
        return ["java", *JVM, *memory, f"-Djava.io.tmpdir={self.temp}",
                f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties",
                "-cp", self.tools.flink_home / "lib" / "*", main, *arguments]

    def add_task_manager(self):
        self.task_managers_started += 1
        name = f"tm{self.task_managers_started}"
        memory = ["-Xmx288m", "-XX:MaxDirectMemorySize=192m"]
        self.task_managers.append(
            self._java(name, memory, TASK_MANAGER, f"-Dtaskmanager.resource-id={self.name}-{name}"))

    def kill_task_manager(self, names):
        """Kills the oldest one of these."""
        victim = next(process for process in self.task_managers if process.name in names)
        self.task_managers.remove(victim)
        self.processes.kill(victim)

    def stop(self):
        """Ends all processes. The job they ran has ended before, so nothing is left to write."""
        for process in [*self.task_managers, self.job_manager]:
            self.processes.kill(process)

    def submit(self, main, jar, arguments, savepoint=None, claim_mode=None, parallelism=None):
        """Starts the job with this main class through Flink's own client."""
        options = ["-s", savepoint, "-claim", claim_mode] if savepoint else []
        options += ["-p", parallelism] if parallelism else []
        command = self._java_command(
            ["-Xmx128m"], CLIENT, "run", "-d", *options, "-c", main, jar, *arguments)
        try:
            done = subprocess.run(
                [str(part) for part in command], env=self.env, timeout=SUBMIT_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except subprocess.TimeoutExpired:
            raise Failed(f"flink run did not end within {SUBMIT_SECONDS} s") from None
        if not (started := re.search(r"JobID ([0-9a-f]{32})", done.stdout)):
            raise Failed(f"flink run failed:\n{done.stdout[-4000:]}")
        return Job(self, started[1])

    def rest(self, path, method="GET", body=None):
        """The answer of the REST interface, or None while there is none."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rest_port}{path}", method=method, data=body and json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} if body else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.loads(response.read())
        except (OSError, urllib.error.HTTPError, json.JSONDecodeError):
            return None

    def _all_slots_free(self):
        overview = self.rest("/overview")
        return overview and overview["slots-available"] >= self.parallelism


class Job:
    """A job as the REST interface shows it."""

    def __init__(self, cluster, job_id):
        self.cluster, self.id = cluster, job_id
        # Whether it may come to the end of its input yet.
        self.may_finish = False

    def state(self):
        answer = self.cluster.rest(f"/jobs/{self.id}")
        return answer and answer["state"]

    def all_tasks_run(self):
        answer = self.cluster.rest(f"/jobs/{self.id}")
        return answer and all(vertex["status"] == "RUNNING" for vertex in answer["vertices"])

    def parallelism(self):
        """That of its widest part."""
        answer = self.cluster.rest(f"/jobs/{self.id}")
        return answer and max(vertex["parallelism"] for vertex in answer["vertices"])

    def task_managers(self):
        """The names of those that run it."""
        answer = self.cluster.rest(f"/jobs/{self.id}") or {"vertices": []}
        details = [self.cluster.rest(f"/jobs/{self.id}/vertices/{vertex['id']}") for vertex in answer["vertices"]]
        return {subtask["taskmanager-id"] for detail in filter(None, details) for subtask in detail["subtasks"]
                if subtask["status"] == "RUNNING"}

    def cancel(self):
        self.cluster.rest(f"/jobs/{self.id}?mode=cancel", method="PATCH")

    def stop_with_savepoint(self, folder, form):
        """Begins to; returns what tells how far it is."""
        answer = self.cluster.rest(
            f"/jobs/{self.id}/stop", "POST", {"targetDirectory": folder, "formatType": form, "drain": False})
        return answer and f"/jobs/{self.id}/savepoints/{answer['request-id']}"

    def checkpoints(self):
        answer = self.cluster.rest(f"/jobs/{self.id}/checkpoints")
        return answer and Checkpoints(answer)

    def why_it_failed(self):
        answer = self.cluster.rest(f"/jobs/{self.id}/exceptions") or {}
        entries = answer.get("exceptionHistory", {}).get("entries", [])
        return "\n".join(entry.get("stacktrace", "")[:2000] for entry in entries[:3])


class Checkpoints:
    """The checkpoints of a job at one moment."""

    def __init__(self, answer):
        self.counts = answer["counts"]
        self.restored = answer["latest"].get("restored")
        self.history = {entry["id"]: entry for entry in answer["history"]}

    def completed(self, after=0):
        """The completed ones among the last hundred, if younger than `after`, oldest first."""
        return [
            entry for number, entry in sorted(self.history.items())
            if entry["status"] == "COMPLETED" and number > after
        ]

    def newest_id(self):
        return max(self.history, default=0)

    def in_progress(self):
        return [number for number, entry in self.history.items() if entry["status"] == "IN_PROGRESS"]
