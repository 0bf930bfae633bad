"""The story of moving: a job that writes its checkpoints to a storage of its own goes on through Esker, and back."""

import json
import subprocess
from dataclasses import asdict, dataclass

from . import expected
from .audit import Audit
from .hdfs import DirectHdfs
from .processes import Failed
from .report import aligned
from .scenario import KEYS, Scenario
from .storage import Direct

CHECKPOINTS = 6
COMMAND_SECONDS = 300
PREFIX = "moved"


class FileSource:
    """A folder of the local disk, which all task managers see."""

    arguments = []

    def __init__(self, storage, folder):
        self.folder = folder / "source"
        self.url = f"file://{self.folder}/flink"

    def flink_config(self):
        return {}

    def hide(self):
        """Nobody finds the files any more under the name that they had."""
        (self.folder / "flink").rename(self.folder / "away")


class HdfsSource:
    """A folder of the HDFS that Esker writes to, as jobs on HDFS have it."""

    arguments = []

    def __init__(self, storage, folder):
        self.server = storage.server

    @property
    def url(self):
        return f"{self.server.url}/flink"

    def flink_config(self):
        return DirectHdfs.flink_config(self)

    def hide(self):
        self.server.shell("fs", "-mv", "/flink", "/away")


class S3Source:
    """A bucket of the S3 server that Esker writes to."""

    def __init__(self, storage, folder):
        self.direct = Direct.on(storage.server)
        self.url = self.direct.url
        self.arguments = ["endpoint=" + storage.server.endpoint, "region=us-east-1",
                          "access-key=" + storage.server.access_key, "secret-key=" + storage.server.secret_key]
        storage.server.make_bucket(self.direct.bucket)

    def flink_config(self):
        return self.direct.flink_config()

    def hide(self):
        """The same URL means a bucket of Esker's from now on: there is nothing to hide."""


SOURCES = {"local": FileSource, "hdfs": HdfsSource, "s3": S3Source}


@dataclass
class MoveReport:
    backend: str
    imported: dict = None
    exported: dict = None
    keys_compared: int = 0
    numbers: int = 0
    seconds: float = 0

    def as_json(self):
        return asdict(self)

    def check(self):
        """The story has failed before if anything was wrong."""

    def table(self):
        rows = [["", "checkpoint", "files", "bytes", "now at"]]
        rows += [[name, str(done["checkpoint"]), str(done["files"]), f"{done['bytes']:,}", done["to"]]
                 for name, done in (("import", self.imported), ("export", self.exported))]
        return f"{aligned(rows)}\n{self.keys_compared} keys are exact after {self.numbers:,} numbers"


class MoveStory(Scenario):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        # Two jobs with less than a minute each, and a third one that is quick.
        self.count = 300_000

    def tell(self, storage, report):
        storage.start()
        source = SOURCES[report.backend](storage, self.folder)

        cluster = self._start_cluster(source, "before")
        retained = self._run_for_a_while(cluster)
        cluster.stop()
        report.imported = self._import(storage, source, retained)
        source.hide()

        cluster = self._start_cluster(storage, "through")
        retained = self._run_for_a_while(cluster, report.imported["to"])
        cluster.stop()
        Audit(self, storage).check(claimed=report.imported["to"])
        report.exported = self._export(storage, source, retained)
        storage.stop()
        storage.verify()

        cluster = self._start_cluster(source, "after")
        job = self._submit_fast(cluster, report.exported["to"])
        self._await_resumed(job, report.exported["to"])
        self._await_finished(job)
        cluster.stop()
        report.keys_compared = expected.check(self.results, self.count, KEYS)
        report.numbers = self.count
        self.say(f"all {report.keys_compared} keys are exact after {self.count} numbers")
        storage.stop_backend()

    def _run_for_a_while(self, cluster, checkpoint=None):
        """Runs the job for some checkpoints, from one if there is one. Returns where its last one is."""
        job = self._submit_paced(cluster, **({"savepoint": checkpoint} if checkpoint else {}))
        if checkpoint:
            self._await_resumed(job, checkpoint)
            job.may_finish = False
        self._await_checkpoints(job, CHECKPOINTS)
        return self._cancel(job)

    def _import(self, storage, source, retained):
        command = ["import", retained, "--to", f"{storage.url}/{PREFIX}"]
        command += [part for key in source.arguments for part in ("--source", key)]
        looked = self._esker(storage, *command, "--dry-run")
        if looked["there"] or storage.sizes():
            raise Failed(f"a look has written something: {looked}, {storage.sizes()}")
        done = self._esker(storage, *command)
        if (looked["files"], looked["bytes"]) != (done["files"], done["bytes"]) or done["there"]:
            raise Failed(f"{looked} was to be copied, and {done} was")
        again = self._esker(storage, *command)
        if again != {**done, "there": done["files"]}:
            raise Failed(f"{done} was copied, and then {again} once more")
        # Flink's own reader finds in it what Esker's finds, all of it is there, and nothing of it is elsewhere.
        checkpoint, = Audit(self, storage).check()
        keys = {part["key"] for part in checkpoint["named"]}
        present = {key for key in storage.sizes() if not key.endswith("/_metadata")}
        if checkpoint["missing"] or keys != present or not all(key.startswith(f"{PREFIX}/") for key in keys):
            raise Failed(f"what was copied is not what {checkpoint} names: {keys ^ present}")
        self.say(f"imported {retained}: {done['files']} files, {done['bytes']:,} bytes")
        return done

    def _export(self, storage, source, retained):
        command = ["export", retained, "--to", f"{source.url}/back"]
        command += [part for key in source.arguments for part in ("--target", key)]
        done = self._esker(storage, *command)
        again = self._esker(storage, *command)
        if done["there"] or again != {**done, "there": done["files"]}:
            raise Failed(f"{done} was copied, and then {again} once more")
        self.say(f"exported {retained}: {done['files']} files, {done['bytes']:,} bytes")
        return done

    def _esker(self, storage, *arguments):
        client = storage.client
        done = subprocess.run(
            [storage.program, *arguments, "--json", "--endpoint", client.endpoint, "--access-key", client.access_key,
             "--secret-key", client.secret_key],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=COMMAND_SECONDS)
        if done.returncode != 0:
            raise Failed(f"`esker {' '.join(arguments)}` ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)
