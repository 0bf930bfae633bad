"""End-to-end tests with an unmodified Spark Structured Streaming on S3A. There are two stories.

exact: queries keep checkpoints, state and output on Esker while Esker and Spark are killed, for each of Spark's
checkpoint file managers (by rename, and by a stream that can be aborted) with each of its state stores (files,
RocksDB). The test passes if every batch has counted exactly, and every number is in the output exactly once.

    tests/spark/run                       about three minutes
    tests/spark/run exact --kills 20      more of it

requests: what a micro-batch with 20 partitions of state costs the backend, a real S3 server, with Esker before it and
without.

    tests/spark/run requests              about three minutes

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to be installed first.
"""

import argparse
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "clients"), str(HERE.parent / "flink")]

from e2e import tools  # noqa: E402
from e2e.frame import framed  # noqa: E402
from e2e.processes import Failed  # noqa: E402
from e2e.report import aligned  # noqa: E402
from e2e.storage import Direct, EskerOnDisk, EskerOnS3  # noqa: E402
from matrix.install import Jars, Pip, Unavailable, environment, needs  # noqa: E402
from matrix.options import add_program_and_cache, need_program, parsed  # noqa: E402

# The newest Spark whose file manager for object stores is on Maven, and the Hadoop that it was built with.
SPARK, HADOOP = "4.1.2", "3.4.2"
KEYS = 100
ROWS = 1000
BATCHES_BETWEEN_KILLS = 2
BATCH_SECONDS = 300

MANAGERS = {
    "rename": {"spark.sql.streaming.checkpointFileManagerClass":
               "org.apache.spark.sql.execution.streaming.checkpointing.FileContextBasedCheckpointFileManager"},
    "abortable stream": {"spark.sql.streaming.checkpointFileManagerClass":
                         "org.apache.spark.internal.io.cloud.AbortableStreamBasedCheckpointFileManager"},
}
STATE = "org.apache.spark.sql.execution.streaming.state."
STORES = {
    "files": {"spark.sql.streaming.stateStore.providerClass": f"{STATE}HDFSBackedStateStoreProvider"},
    "RocksDB": {"spark.sql.streaming.stateStore.providerClass": f"{STATE}RocksDBStateStoreProvider",
                "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true"},
}
VARIANTS = [(manager, store) for manager in MANAGERS for store in STORES]


class Spark:
    """A Spark driver, with its executors in the same process."""

    def __init__(self, processes, installed, storage, folder, name):
        settings = folder / f"{name}.json"
        settings.write_text(json.dumps(_settings(installed, storage, folder)))
        self.name, self.log = name, open(processes.folder / f"{name}.log", "a")
        env = dict(os.environ, JDK_JAVA_OPTIONS="-Xss8m", PYSPARK_PYTHON=str(installed.python),
                   SPARK_LOCAL_IP="127.0.0.1")
        self.child = subprocess.Popen(
            [installed.python, HERE / "job.py", settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env=env, cwd=folder, start_new_session=True)
        self.answers, self.batch = queue.Queue(), -1
        threading.Thread(target=self._read, daemon=True).start()
        self.version = self._await("up", 300)

    def start(self, **query):
        self.batch = -1
        self._send({"start": query})
        self._await("started", 120)

    def await_batch(self, number):
        """Waits until all queries have gone through this batch."""
        while self.batch < number:
            self.batch = self._await("batch", BATCH_SECONDS)

    def stop(self):
        self._send({"stop": True})
        return self._await("stopped", 300)

    def kill(self):
        """Ends the whole group: Python, and the JVM that it started."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def _send(self, command):
        self.child.stdin.write(json.dumps(command) + "\n")
        self.child.stdin.flush()

    def _await(self, word, seconds):
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.answers.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"waited {seconds} s in vain for Spark to say '{word}'") from None
            if answer is None:
                raise Failed(f"{self.name} ended, see its log")
            if word in answer:
                return answer[word]

    def _read(self):
        for line in self.child.stdout:
            if line.startswith("=> "):
                self.answers.put(json.loads(line[3:]))
        self.answers.put(None)


def _settings(installed, storage, folder):
    return {
        "spark.driver.extraClassPath": f"{installed.jars}/*", "spark.driver.memory": "1g", "spark.ui.enabled": "false",
        "spark.local.dir": str(folder / "spark-local"), "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.hadoop.fs.s3a.endpoint": storage.client.endpoint, "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true", "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.access.key": storage.client.access_key,
        "spark.hadoop.fs.s3a.secret.key": storage.client.secret_key,
    }


class Exact:
    def __init__(self, options, folder, processes, installed, say):
        self.options, self.folder, self.processes, self.installed, self.say = options, folder, processes, installed, say
        self.moments = random.Random(options.seed)
        self.rows = []

    def run(self):
        storage_folder = self.folder / "storage"
        storage_folder.mkdir()
        self.storage = EskerOnDisk(self.processes, self.installed, storage_folder)
        self.storage.start()
        spark = self._spark(0)
        try:
            for number, (manager, store) in enumerate(VARIANTS):
                spark = self._variant(spark, number, manager, store)
        finally:
            spark.kill()
        self.storage.close()
        heads = ["checkpoint manager", "state store", "batches", "kills of Esker", "kills of Spark", "restarted queries"]
        return aligned([heads, *self.rows])

    def _variant(self, spark, number, manager, store):
        query = {"name": f"variant-{number}", "base": f"s3a://{self.storage.bucket}/spark/{number} {store}+",
                 "folder": str(self.folder / f"counts-{number}"), "rows": ROWS, "partitions": 4, "copies": True,
                 "settings": {**MANAGERS[manager], **STORES[store]}}
        spark.start(**query)
        spark.await_batch(0)
        restarts = 0
        for kill in range(self.options.kills):
            self._kill_esker()
            spark.await_batch(spark.batch + BATCHES_BETWEEN_KILLS)
            if kill == 0:
                spark.kill()
                spark = self._spark(number + 1)
                spark.start(**query)
                spark.await_batch(0)
        told = spark.stop()
        restarts = len(told["restarts"])
        batches = _check_counts(Path(query["folder"]))
        _check_copies(told["copies"])
        self.rows.append([manager, store, str(batches), str(self.options.kills), "1", str(restarts)])
        self.say(f"{manager}, {store}: {batches} batches are exact")
        return spark

    def _kill_esker(self):
        # Somewhere within a batch, which takes about a second.
        time.sleep(self.moments.random())
        self.storage.kill()
        self.storage.start()
        self.say("killed Esker")

    def _spark(self, number):
        return Spark(self.processes, self.installed, self.storage, self.folder, f"spark-{number}")


def _check_counts(folder):
    """Every batch from the first one on has counted all numbers up to its own. Returns how many there are."""
    if differing := sorted(file.name for file in folder.glob("*.differs.json")):
        raise Failed(f"batches were carried out again with another result: {differing}")
    batches = {int(file.stem): json.loads(file.read_text()) for file in folder.glob("*.json")}
    if sorted(batches) != list(range(len(batches))):
        raise Failed(f"batches are missing: {sorted(batches)}")
    for number, counts in batches.items():
        expected = {str(key): (number + 1) * ROWS // KEYS for key in range(KEYS)}
        if counts != expected:
            wrong = {key: (counts.get(key), expected[key]) for key in expected if counts.get(key) != expected[key]}
            raise Failed(f"batch {number} has counted {dict(list(wrong.items())[:5])} (is, should be)")
    return len(batches)


def _check_copies(values):
    if not values or len(values) % ROWS or sorted(values) != list(range(len(values))):
        raise Failed(f"{len(values)} numbers were copied, {len(set(values))} of them different")


class Requests:
    def __init__(self, options, folder, processes, installed, say):
        self.folder, self.processes, self.installed, self.say = folder, processes, installed, say
        self.batches = options.batches

    def run(self):
        measured = {}
        for storage_type in (Direct, EskerOnS3):
            folder = self.folder / storage_type.__name__
            folder.mkdir()
            storage = storage_type(self.processes, self.installed, folder)
            storage.start()
            spark = Spark(self.processes, self.installed, storage, self.folder, f"spark-{storage_type.__name__}")
            try:
                for manager, store in VARIANTS:
                    measured[storage.label, manager, store] = self._measure(spark, storage, manager, store)
            finally:
                spark.kill()
            storage.close()
        return self._tables(measured)

    def _measure(self, spark, storage, manager, store):
        """The traffic of some batches, after the first ones, and how many they were."""
        name = f"{manager}-{store}".replace(" ", "-").lower()
        counts = self.folder / f"{storage.label}-{name}"
        spark.start(name=name, base=f"s3a://{storage.bucket}/spark/{name}", folder=str(counts), rows=ROWS,
                    partitions=20, copies=False, settings={**MANAGERS[manager], **STORES[store]})
        spark.await_batch(1)
        first, before = spark.batch, storage.traffic()
        spark.await_batch(first + self.batches)
        last, traffic = spark.batch, storage.traffic().since(before)
        spark.stop()
        _check_counts(counts)
        self.say(f"{storage.label}, {manager}, {store}: measured {last - first} batches")
        return last - first, traffic

    @staticmethod
    def _tables(measured):
        tables = []
        for manager, store in VARIANTS:
            columns = [(label, *measured[label, manager, store]) for label in (Direct.label, EskerOnS3.label)]
            rows = [[f"{manager}, {store}: per batch", *(label for label, *_ in columns)],
                    ["requests at the backend", *(f"{sum(t.requests.values()) / n:.1f}" for _, n, t in columns)]]
            for operation in sorted({operation for _, _, t in columns for operation in t.requests}):
                rows.append([f"  {operation}", *(f"{t.requests[operation] / n:.1f}" for _, n, t in columns)])
            for operation in sorted({name for _, _, t in columns for name in t.esker if name.startswith("asked for")}):
                numbers = (f"{t.esker[operation] / n:.1f}" if t.esker else "-" for _, n, t in columns)
                rows.append([f"  Esker, {operation}", *numbers])
            tables.append(aligned(rows))
        return "\n\n".join(tables)


STORIES = {"exact": Exact, "requests": Requests}


def prepare(options, say):
    needs("java")
    python = environment(options.cache, f"spark-{SPARK}", Pip([f"pyspark=={SPARK}"]), say).folder / "bin" / "python"
    recipe = Jars(HERE / "pom.xml", {"spark.version": SPARK, "hadoop.version": HADOOP})
    jars = environment(options.cache, f"spark-s3a-{SPARK}", recipe, say)
    versitygw = tools.prepare_versitygw(options.cache, say) if options.story == "requests" else None
    return SimpleNamespace(python=python, jars=jars.folder / "lib", esker=options.esker, versitygw=versitygw)


def main():
    options = parse()

    def run(frame):
        installed = prepare(options, frame.say)
        story = STORIES[options.story](options, frame.folder, frame.processes, installed, frame.say)
        print(f"\n{story.run()}\n")

    framed("spark", run, options.keep, (tools.Missing, Unavailable))


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/spark/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", nargs="?", choices=list(STORIES), default="exact", help="default exact")
    parser.add_argument("--kills", type=int, default=int(os.environ.get("ESKER_SPARK_KILLS", 2)),
                        help="exact: how often Esker is killed with each pair of manager and store "
                             "(default $ESKER_SPARK_KILLS, or 2)")
    parser.add_argument("--batches", type=int, default=5, help="requests: how many batches are measured (default 5)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32),
                        help="exact: for the moments of the kills")
    parser.add_argument("--keep", action="store_true", help="keep logs and data after a success, too")
    add_program_and_cache(parser, "Spark is kept")
    options = parsed(parser)
    if min(options.kills, options.batches) < 1:
        parser.error("--kills and --batches must be 1 or more")
    need_program(options)
    return options


if __name__ == "__main__":
    main()
