"""Several daemons as one, behind a proxy."""

import asyncio
import itertools
import json
import os
import subprocess
import threading
import urllib.request

from . import s3
from .processes import Failed, free_port
from .storage import S3Door, Versitygw

NAMES = ("a", "b", "c")
BUCKET = "states"
ACCESS, SECRET = "esker-test", "esker-test-secret"
READY_SECONDS = 60


class Proxy:
    """Passes connections on, in a thread of its own for as long as this process lives."""

    def __init__(self):
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        # The loop itself keeps none of them alive: one that was collected would leave its connection hanging.
        self.accepted = set()
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True).start()
        started.wait(10)

    async def _serve(self, started):
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        started.set()
        await server.serve_forever()

    def _accept(self, reader, writer):
        passing = asyncio.ensure_future(self._pass_on(reader, writer))
        self.accepted.add(passing)
        passing.add_done_callback(self.accepted.discard)

    async def _pass_on(self, reader, writer):
        there, back = await self.connect()
        if not there:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back, self.delay), self._pass(there, writer, 0))

    delay = 0

    async def connect(self):
        """Reader and writer of a connection to where this one goes; None for both if nobody is there."""
        raise NotImplementedError

    async def _pass(self, reader, writer, delay):
        try:
            while data := await reader.read(1 << 18):
                if delay:
                    await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.close()


class Slowed(Proxy):
    """The way to a server on which every piece of a request takes `delay` seconds more."""

    def __init__(self, endpoint, delay):
        self.upstream, self.delay = int(endpoint.rsplit(":", 1)[-1]), delay
        super().__init__()

    async def connect(self):
        try:
            return await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            return None, None


class Balanced(Proxy):
    """Gives each connection to the next of some ports; one where nobody listens is passed over."""

    def __init__(self, ports):
        self.ports, self.next = ports, itertools.cycle(ports)
        super().__init__()

    async def connect(self):
        for _ in self.ports:
            try:
                return await asyncio.open_connection("127.0.0.1", next(self.next))
            except OSError:
                continue
        return None, None


class Daemon:
    """One of several."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.program = cluster, name, cluster.program
        self.s3, self.api = free_port(), free_port()
        self.ready = cluster.folder / f"{name}.json"
        self.config = cluster.folder / f"{name}.toml"
        self.process, self.starts = None, itertools.count(1)
        self.config.write_text(f"""\
[server]
s3 = "127.0.0.1:{self.s3}"
api = "127.0.0.1:{self.api}"
buckets = ["{BUCKET}"]
[store]
url = "s3://esker/cluster-test"
endpoint = "{self.storage()}"
region = "us-east-1"
access-key = "{cluster.server.access_key}"
secret-key = "{cluster.server.secret_key}"
[auth]
access-key = "{ACCESS}"
secret-key = "{SECRET}"
[cluster]
enabled = {str(cluster.is_cluster).lower()}
daemon-id = "{name}"
advertised-url = "{self.advertised()}"
shards = {cluster.shards}
balance-after = "2 s"
token = "of-all-members"
{cluster.settings}""")

    def storage(self):
        """Where it reaches the S3 server."""
        return self.cluster.endpoint

    def advertised(self):
        """Where its peers reach it."""
        return f"http://127.0.0.1:{self.api}"

    def begin(self):
        self.ready.unlink(missing_ok=True)
        self.process = self.cluster.processes.start(
            f"esker-{self.name}-{next(self.starts)}",
            [self.program, "serve", "--config", self.config, "--ready-file", self.ready], self.cluster.env)

    def start(self):
        self.begin()
        self.cluster.processes.until(f"daemon {self.name} to be ready", READY_SECONDS, self.ready.exists, every=0.05)

    def kill(self):
        self.cluster.processes.kill(self.process)

    def end(self):
        status = self.cluster.processes.stop(self.process, 60)
        if status != 0:
            raise Failed(f"daemon {self.name} ended with status {status}")

    def status(self):
        """The cluster as this daemon sees it; None if it does not say."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api}/v1/cluster", timeout=3) as answer:
                return json.load(answer)
        except OSError:
            return None


class Daemons:
    """Three of them on one S3 server, on which each request takes `delay` seconds more, and a proxy before them; with so many shards."""

    kind, names = Daemon, NAMES
    # Whether they know of each other.
    is_cluster = True
    # More of their configuration.
    settings = ""

    def __init__(self, processes, folder, program, versitygw, delay=0, shards=1, env=None):
        self.processes, self.program, self.folder, self.shards = processes, program, folder, shards
        self.env = dict(os.environ, **env) if env else None
        self.server = Versitygw(processes, versitygw, folder / "versitygw")
        self.server.start()
        self.server.make_bucket("esker")
        self.endpoint = Slowed(self.server.endpoint, delay).endpoint if delay else self.server.endpoint
        self.daemons = [self.kind(self, name) for name in self.names]
        for daemon in self.daemons:
            daemon.start()
        self.proxy = Balanced([daemon.s3 for daemon in self.daemons]).endpoint
        if shards > 1:
            self.processes.until("shards to be spread", READY_SECONDS, self.is_spread)

    def is_spread(self):
        """Whether each daemon has shards, and none has many more than another one."""
        owners = [shard["owner"] for shard in (self.daemons[0].status() or {"shards": []})["shards"]]
        counts = [owners.count(name) for name in self.names]
        return len(owners) == self.shards and None not in owners and max(counts) - min(counts) <= 1

    def owner(self):
        """The daemon that has the catalog, as the others know it."""
        for daemon in self.daemons:
            if (status := daemon.status()) and status["shards"]:
                name = status["shards"][0]["owner"]
                return next((other for other in self.daemons if other.name == name), None)
        return None

    def end(self):
        for daemon in self.daemons:
            daemon.end()

    def verify(self):
        for shard in [[]] if self.shards == 1 else [["--shard", str(shard)] for shard in range(self.shards)]:
            done = subprocess.run([self.program, "verify", "--config", self.daemons[0].config, "--read-data", "100", *shard],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
            if done.returncode != 0:
                raise Failed(f"`esker verify` ended with status {done.returncode}:\n{done.stdout}")

    def close(self):
        self.end()
        self.verify()


class EskerCluster(S3Door):
    """Flink writes to three daemons, of which the owner is killed."""

    label = "three daemons on versitygw"
    has_space = has_nodes = False
    # While one is away, the others go on: no checkpoint fails.
    goes_on = True

    def __init__(self, processes, tools, folder):
        self.processes, self.tools, self.folder = processes, tools, folder
        self.daemons = self.killed = None
        self.bucket = BUCKET

    def start(self):
        if self.daemons is None:
            self.daemons = Daemons(self.processes, self.folder, self.tools.esker, self.tools.versitygw)
            self.client = s3.Client(self.daemons.proxy, ACCESS, SECRET)
        elif self.killed:
            self.killed.begin()
            self.killed = None
        else:
            for daemon in self.daemons.daemons:
                daemon.start()

    def kill(self):
        self.killed = self.processes.until("a daemon that has the catalog", READY_SECONDS, self.daemons.owner)
        self.killed.kill()

    def stop(self):
        self.daemons.end()

    def verify(self):
        self.daemons.verify()

    def close(self):
        self.daemons.close()
        self.daemons.server.stop()

    def delete_what_is_due(self):
        """Some of it may be left: nobody counts it."""

    def traffic(self):
        return self.daemons.server.traffic()

    def held(self):
        return self.daemons.server.held()
