"""Answers a second of one, two and three daemons, each with one worker thread; and what it costs when a daemon passes a request on."""

import subprocess

from e2e.daemons import ACCESS, BUCKET, SECRET, Daemons
from e2e.processes import Failed

JOBS = 8
SHARDS = 16
# Of `esker bench`, in one cell.
SECONDS, ROUNDS = 2, 5


class Pair(Daemons):
    names = ("a", "b")


class Single(Daemons):
    names = ("a",)


def run(frame, options, versitygw):
    threads = {"TOKIO_WORKER_THREADS": "1"}
    clusters = {}
    for label, kind, shards in [("one", Single, SHARDS), ("two", Pair, SHARDS), ("three", Daemons, SHARDS), ("of-one-shard", Pair, 1)]:
        folder = frame.folder / label
        folder.mkdir()
        clusters[label] = kind(frame.processes, folder, options.esker, versitygw, options.delay / 1000, shards, env=threads)
        frame.say(f"{label}: {len(clusters[label].daemons)} daemons with {shards} shards are there")
    # What is asked of the owner itself, and of the other one, which passes it on.
    pair = clusters.pop("of-one-shard")
    owner = pair.owner()
    other = next(daemon for daemon in pair.daemons if daemon is not owner)
    against = [against_of("owner", [owner], pair.daemons), against_of("passed-on", [other], pair.daemons)]
    against += [against_of(label, cluster.daemons, cluster.daemons) for label, cluster in clusters.items()]
    command = [options.esker, "bench", "--data-dir", frame.folder, "--jobs", JOBS, "--seconds", SECONDS, "--rounds", ROUNDS, "--big", "false",
               "--doors", "s3", "--sizes", "4kb,64kb", "--clients", "1,64", *(part for each in against for part in ("--against", each)),
               *options.arguments]
    if (status := subprocess.run([str(part) for part in command]).returncode) != 0:
        raise Failed(f"`esker bench` ended with status {status}")
    for cluster in [pair, *clusters.values()]:
        cluster.end()


def against_of(label, asked, processes):
    urls = "+".join(f"http://127.0.0.1:{daemon.s3}" for daemon in asked)
    pids = "+".join(str(daemon.process.child.pid) for daemon in processes)
    return f"{label}={urls},{ACCESS},{SECRET},{BUCKET},{pids}"
