"""Where Flink writes its checkpoints to.

Each kind of storage can be started, killed and started again with the same data on the same port,
and tells what its backend had to do. `Direct` is what Esker is compared with. HDFS has a file of its own.
"""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

from . import s3
from .processes import Failed, free_port
from .proxy import Proxy

BUCKET = "checkpoints"
# Programs start at once; the limits allow for a machine that is busy with other things.
START_SECONDS = 60
STOP_SECONDS = 60
VERIFY_SECONDS = 120


@dataclass
class Traffic:
    """What a backend was asked to do since it was first started."""

    requests: Counter = field(default_factory=Counter)
    objects_created: int = 0
    # Esker's own counters. They begin again whenever it does.
    esker: Counter = field(default_factory=Counter)

    def since(self, earlier):
        # Subtracting Counters would hide a number that went down.
        def difference(now, before):
            return Counter({name: now[name] - before[name] for name in now | before if now[name] != before[name]})

        return Traffic(
            difference(self.requests, earlier.requests),
            self.objects_created - earlier.objects_created,
            difference(self.esker, earlier.esker),
        )


class Versitygw:
    """A real S3 server that keeps objects as files."""

    def __init__(self, processes, program, folder):
        self.processes, self.program, self.folder = processes, program, folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.access_key, self.secret_key = "flink-test", "flink-test-secret"
        self.access_log = folder / "access.log"
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.process = None

    def delay(self, seconds):
        """From now on its clients reach it by way of something that takes so long for each request."""
        proxy = Proxy(f"127.0.0.1:{self.port}", self.folder / "requests.log", seconds)
        self.passed_log = self.folder / "passed.log"
        proxy.passed = open(self.passed_log, "w", buffering=1)
        self.endpoint = proxy.endpoint

    def start(self):
        self.process = self.processes.start(
            "versitygw",
            [self.program, "--quiet", "--port", f"127.0.0.1:{self.port}",
             "--access-log", self.access_log, "posix", self.data],
            dict(os.environ, ROOT_ACCESS_KEY=self.access_key, ROOT_SECRET_KEY=self.secret_key),
        )
        self.processes.until("versitygw to answer", START_SECONDS, lambda: _answers(self.endpoint), every=0.05)

    def make_bucket(self, bucket):
        s3.Client(self.endpoint, self.access_key, self.secret_key).make_bucket(bucket)

    def kill(self):
        self.processes.kill(self.process)

    def stop(self):
        self.processes.stop(self.process, STOP_SECONDS)

    def traffic(self):
        """Counts the requests in the access log, whose lines begin as those of S3 server logs do."""
        line = re.compile(r"\] \S+ \S+ \S+ s3_(?P<operation>\w+) .* (?P<status>\d{3}) \S+ \d+ \d+ \d+ \d+ ")
        traffic = Traffic()
        for text in self.access_log.read_text(errors="replace").splitlines():
            if not (request := line.search(text)):
                continue
            operation = request["operation"]
            traffic.requests[operation] += 1
            if operation in _CREATING and request["status"] == "200":
                traffic.objects_created += 1
        return traffic

    def held(self):
        return _files_and_bytes(self.data)


class S3Door:
    """What Flink needs to know of a storage that it reaches by S3: `client` and `bucket`."""

    client = bucket = None
    # Whether no checkpoint may fail when it is killed.
    goes_on = False

    @property
    def url(self):
        return f"s3://{self.bucket}"

    def flink_config(self):
        return {
            "s3.endpoint": self.client.endpoint,
            "s3.access-key": self.client.access_key,
            "s3.secret-key": self.client.secret_key,
            "s3.region": s3.REGION,
            "s3.path-style-access": "true",
        }

    def sizes(self):
        """The size of all that Flink has there, by key. A key that ends with `/` marks a folder."""
        return self.client.sizes(self.bucket)


class Direct(S3Door):
    """Flink writes to versitygw, without Esker."""

    label = "versitygw alone"
    has_space = has_nodes = False

    def __init__(self, processes, tools, folder):
        self._use(Versitygw(processes, tools.versitygw, folder / "versitygw"))

    @classmethod
    def on(cls, server):
        """A bucket of a server that somebody else starts and stops."""
        direct = cls.__new__(cls)
        direct._use(server)
        return direct

    def _use(self, server):
        self.server, self.bucket = server, BUCKET

    @property
    def client(self):
        return s3.Client(self.server.endpoint, self.server.access_key, self.server.secret_key)

    def flink_config(self):
        # Some versions of S3A delete the markers of all folders above each file that they write. versitygw refuses to
        # delete what is absent, and S3A would try again for ever.
        return {**super().flink_config(), "s3.directory.marker.retention": "keep"}

    def start(self):
        first = self.server.process is None
        self.server.start()
        if first:
            self.server.make_bucket(self.bucket)

    def kill(self):
        self.server.kill()

    def stop(self):
        self.server.stop()

    def close(self):
        self.server.stop()

    def verify(self):
        """There is no catalog to verify."""

    def delete_what_is_due(self):
        """Deleting is deleting here."""

    def traffic(self):
        return self.server.traffic()

    def held(self):
        return self.server.held()


class Esker(S3Door):
    """Flink writes to Esker. The subclasses say where Esker writes to."""

    # It tells what it holds for what lives.
    has_space = True
    # Nodes behind it can be killed.
    has_nodes = False
    start_seconds = START_SECONDS

    def __init__(self, processes, tools, folder):
        self.processes, self.program = processes, tools.esker
        self.folder = folder / "esker"
        self.folder.mkdir()
        self.ready_file = self.folder / "ready.json"
        self.s3_address, self.api_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.process = self.api = None
        self.access_log = self.folder / "access.log"

    def start(self):
        self.ready_file.unlink(missing_ok=True)
        self.process = self.processes.start(
            "esker",
            [self.program, self.mode, *self.storage_arguments(), "--s3", self.s3_address, "--api", self.api_address,
             "--ready-file", self.ready_file],
        )
        self.processes.until("Esker to be ready", self.start_seconds, self._read_ready_file, every=0.05)

    def _read_ready_file(self):
        try:
            ready = json.loads(self.ready_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        self.client = s3.Client(ready["s3"], ready["access_key"], ready["secret_key"])
        self.bucket, self.api = ready["bucket"], ready["api"]
        return True

    def kill(self):
        self.processes.kill(self.process)

    def stop(self):
        status = self.processes.stop(self.process, STOP_SECONDS)
        if status != 0:
            raise Failed(f"esker was asked to stop and ended with status {status}")

    def close(self):
        """Stops it for good, and has what it leaves verified."""
        self.stop()
        self.verify()
        self.stop_backend()

    def stop_backend(self):
        """A local disk does not stop."""

    def verify(self):
        """Has what the stopped daemon left checked by `esker verify`."""
        done = subprocess.run(
            [self.program, "verify", *self.storage_arguments()],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=VERIFY_SECONDS)
        if done.returncode != 0:
            raise Failed(f"`esker verify` ended with status {done.returncode}:\n{done.stdout}")

    def storage_arguments(self):
        """What tells Esker which storage is its own."""
        raise NotImplementedError

    def delete_what_is_due(self):
        """Has Esker delete now what it would delete within seconds, so that what is left can be counted."""
        asked = urllib.request.Request(f"{self.api}/v1/gc", method="POST")
        urllib.request.urlopen(asked, timeout=60).close()

    def counters(self):
        """Esker's own counters: one for each operation on its store and each of its S3 door, and two sums."""
        with urllib.request.urlopen(f"{self.api}/metrics", timeout=10) as response:
            text = response.read().decode()
        counters = Counter()
        for name, labels, value in re.findall(r"^(\w+)(\{.*\})? (\S+)$", text, re.MULTILINE):
            if name == "esker_store_requests_total":
                operation, of = (re.search(rf'{label}="(\w+)"', labels)[1] for label in ("operation", "of"))
                counters[f"store {operation} of {of}"] += int(float(value))
            elif name == "esker_answer_seconds_count" and 'door="s3"' in labels:
                operation = re.search(r'operation="(\w+)"', labels)
                counters[f"asked for {operation[1]}"] += int(float(value))
            elif name in ("esker_physical_files_created_total", "esker_segments_total"):
                counters[name] += int(float(value))
        if not any(name.startswith("store ") for name in counters):
            raise Failed(f"{self.api}/metrics does not have esker_store_requests_total")
        return counters


class EskerOnDisk(Esker):
    label = "Esker on a local disk"
    mode = "dev"

    def __init__(self, processes, tools, folder):
        super().__init__(processes, tools, folder)
        self.data = self.folder / "data"

    def storage_arguments(self):
        return ["--data-dir", self.data]

    def traffic(self):
        """There is no server to ask, so this is what Esker says that it did."""
        counters = self.counters()
        requests = Counter()
        for name in [name for name in counters if name.startswith("store ")]:
            requests[name.removeprefix("store ")] = counters.pop(name)
        return Traffic(requests, counters["esker_physical_files_created_total"], counters)

    def held(self):
        return _files_and_bytes(self.data)


class EskerOnServer(Esker):
    """Esker with a configuration of its own, which says what it writes to: `server`."""

    mode = "serve"

    def __init__(self, processes, tools, folder):
        super().__init__(processes, tools, folder)
        self.config_file = self.folder / "config.toml"

    def storage_arguments(self):
        return ["--config", self.config_file]

    def start(self):
        if not self.config_file.exists():
            self.config_file.write_text(f"""\
[store]
{self.start_server()}
[auth]
access-key = "esker-test"
secret-key = "esker-test-secret"
[merging]
delete-ledger = "{self.folder}/deletes"
[telemetry]
access-log = "{self.access_log}"
""")
        super().start()

    def start_server(self):
        """Starts the server behind Esker, and returns what Esker has to know of it."""
        raise NotImplementedError

    def stop_backend(self):
        self.server.stop()

    def traffic(self):
        """What the backend itself has seen, with Esker's own counters beside it."""
        traffic = self.server.traffic()
        traffic.esker = self.counters()
        return traffic

    def held(self):
        return self.server.held()


class EskerOnS3(EskerOnServer):
    label = "Esker on versitygw"

    def __init__(self, processes, tools, folder):
        super().__init__(processes, tools, folder)
        self.server = Versitygw(processes, tools.versitygw, folder / "versitygw")

    def start_server(self):
        self.server.start()
        self.server.make_bucket("esker")
        return f"""\
url = "s3://esker/flink-test"
endpoint = "{self.server.endpoint}"
region = "{s3.REGION}"
allow-http = true
access-key = "{self.server.access_key}"
secret-key = "{self.server.secret_key}"
"""


_CREATING = {"PutObject", "CompleteMultipartUpload", "CopyObject"}


def _answers(endpoint):
    try:
        urllib.request.urlopen(endpoint, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # It refuses a request without a signature.
    except OSError:
        return False
    return True


def _files_and_bytes(folder):
    sizes = []
    for path, folders, files in os.walk(folder):
        # These are versitygw's own: locks, and uploads that are not complete.
        folders[:] = [name for name in folders if name not in (".vgwlocks", ".sgwtmp")]
        for name in files:
            try:
                found = os.stat(os.path.join(path, name))
                # Holes take no space.
                sizes.append(min(found.st_size, found.st_blocks * 512))
            except FileNotFoundError:
                continue  # It was deleted while we looked.
    return len(sizes), sum(sizes)
