"""HDFS: a NameNode and three DataNodes of `tests/hdfs/cluster`, with Flink on it, and with Esker between them."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

from .processes import Failed
from .storage import EskerOnServer, Traffic

CLUSTER = Path(__file__).resolve().parent.parent.parent / "hdfs" / "cluster"
DATANODES = 3
# The first start fetches Hadoop.
CLUSTER_SECONDS = 900
# The cluster's metrics are so old at most.
METRICS_SECONDS = 1.0

# What DataNodes ask the NameNode whatever its clients do, and what they tell it of blocks.
_OF_THE_CLUSTER = {
    "SendHeartbeat", "SendLifeline", "RegisterDatanode", "VersionRequest", "BlockReport", "CacheReport"}
_OF_DATANODES = {"BlockReceivedAndDeleted", "CommitBlockSynchronization", "ReportBadBlocks", "ErrorReport"}


class Hdfs:
    def __init__(self, processes, tools, folder):
        self.processes, self.folder = processes, folder / "hdfs"
        self.env = dict(os.environ, HDFS_DATANODES=str(DATANODES), HDFS_LIB=str(tools.cache / "hdfs-lib"))
        self.url = self.http = None
        self._nodes = itertools.cycle(f"dn{number}" for number in range(DATANODES))

    def start(self):
        self.processes.at_end.append(self._end)
        self.url = self._run("start").splitlines()[-1]
        self.http = self._run("http")

    def stop(self):
        self._run("stop")

    def _end(self):
        """The same, whatever has become of it."""
        subprocess.run([CLUSTER, "stop", self.folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @contextlib.contextmanager
    def without_a_node(self):
        """Kills a DataNode, another one each time, and starts it again in the end."""
        node = next(self._nodes)
        self._run("kill", node)
        yield f"DataNode {node}"
        self._run("up", node)

    def traffic(self):
        """The calls that reached the NameNode; for what a DataNode tells of blocks `reports` stands before its name."""
        # What was asked for is shown to the next one who asks, once it is old enough.
        self._bean("NameNodeActivity")
        time.sleep(METRICS_SECONDS * 1.2)
        port = self.url.rsplit(":", 1)[1]
        traffic = Traffic(objects_created=self._bean("NameNodeActivity")["FilesCreated"])
        for name, count in self._bean(f"RpcDetailedActivityForPort{port}").items():
            # The others name the same calls again.
            call = re.fullmatch(r"(?!Overall|Deferred)(\w+)(?<!Exception)NumOps", name)
            if call and call[1] not in _OF_THE_CLUSTER:
                traffic.requests[f"reports {call[1]}" if call[1] in _OF_DATANODES else call[1]] = count
        return traffic

    def held(self):
        """The NameNode's objects (files, folders and blocks), and the bytes of all replicas."""
        names = self._bean("FSNamesystem")
        return names["FilesTotal"] + names["BlocksTotal"], names["CapacityUsed"]

    def sizes(self, folder):
        """The size of every file below a folder, by its path there; a folder's ends with `/`."""
        found, folders = {}, [""]
        while folders:
            at = folders.pop()
            path = urllib.parse.quote(f"{folder}/{at}".rstrip("/"))
            try:
                with urllib.request.urlopen(f"{self.http}/webhdfs/v1{path}?op=LISTSTATUS", timeout=30) as response:
                    entries = json.load(response)["FileStatuses"]["FileStatus"]
            except urllib.error.HTTPError as error:
                if error.code != 404:  # It was deleted while we looked.
                    raise
                continue
            for entry in entries:
                name = at + entry["pathSuffix"]
                if entry["type"] == "DIRECTORY":
                    name += "/"
                    folders.append(name)
                found[name] = entry["length"]
        return found

    def shell(self, tool, *arguments):
        """One of Hadoop's own tools."""
        return self._run("sh", tool, *arguments)

    def _bean(self, name):
        with urllib.request.urlopen(f"{self.http}/jmx?qry=Hadoop:service=NameNode,name={name}", timeout=30) as response:
            beans = json.load(response)["beans"]
        if not beans:
            raise Failed(f"the NameNode does not have the metrics {name}")
        return beans[0]

    def _run(self, command, *arguments):
        done = subprocess.run(
            [CLUSTER, command, self.folder, *arguments], env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=CLUSTER_SECONDS)
        if done.returncode != 0:
            raise Failed(f"`tests/hdfs/cluster {command}` ended with status {done.returncode}:\n{done.stderr}")
        return done.stdout.strip()


class DirectHdfs:
    """Flink writes to HDFS by its own file system, without Esker."""

    label = "HDFS alone"
    has_space = has_nodes = False

    def __init__(self, processes, tools, folder):
        self.server = Hdfs(processes, tools, folder)

    @property
    def url(self):
        return f"{self.server.url}/flink"

    def flink_config(self):
        return {}

    def start(self):
        self.server.start()

    def close(self):
        self.server.stop()

    def traffic(self):
        return self.server.traffic()

    def sizes(self):
        return self.server.sizes("/flink")

    def held(self):
        return self.server.held()


class EskerOnHdfs(EskerOnServer):
    label = "Esker on HDFS"
    has_nodes = True
    # It may have to wait for the leases of the daemon before it.
    start_seconds = 120

    def __init__(self, processes, tools, folder):
        super().__init__(processes, tools, folder)
        self.server = Hdfs(processes, tools, folder)

    def start_server(self):
        self.server.start()
        return f'url = "{self.server.url}/esker"\n'

    def without_a_node(self):
        return self.server.without_a_node()


class EskerOnHdfsAndDisk(EskerOnHdfs):
    """Data on HDFS, the catalog on a local disk."""

    label = "Esker on HDFS, catalog on disk"

    def start_server(self):
        return f'{super().start_server()}\n[catalog]\nurl = "file:{self.folder}/catalog"\n'
