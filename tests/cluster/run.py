"""Three daemons as one, on a real S3 server (versitygw), behind a proxy that gives each connection to the next of them.

suite: the whole suite of boto3 (tests/boto3), whose every connection goes to another daemon.

    tests/cluster/run suite [pytest arguments]

failover: writers and readers at the proxy, while the owner of the catalog is killed, stopped (and continued when another one
has taken over) or ended, in turn. Fails if an answered write is not read, if a read is older than what was answered before it,
or if a request that a daemon was alive to answer was answered with an error. Prints for how long clients waited.

    tests/cluster/run failover --rounds 50 --delay 50        # each request to the S3 server takes 50 ms more

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to be installed first.
"""

import argparse
import http.client
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "clients"), str(HERE.parent / "flink")]

from e2e import s3, tools  # noqa: E402
from e2e.daemons import ACCESS, BUCKET, SECRET, Daemons  # noqa: E402
from e2e.frame import framed  # noqa: E402
from e2e.processes import Failed  # noqa: E402
from matrix.options import add_program_and_cache, need_program, parsed  # noqa: E402

TAKE_OVER_SECONDS = 30
CLIENTS = 8
CLIENT_SECONDS = 60


class Client(threading.Thread):
    """Writes numbers under a key of its own, and reads them back, each by whichever daemon comes next; repeats nothing by itself."""

    def __init__(self, endpoint, key):
        super().__init__(daemon=True)
        self.s3 = s3.Client(endpoint, ACCESS, SECRET, CLIENT_SECONDS)
        self.key, self.number, self.over = key, 0, threading.Event()
        self.waits, self.errors, self.wrong = [], [], []

    def run(self):
        while not self.over.is_set():
            number = self.number + 1
            if self._ask(lambda: self.s3.write(BUCKET, self.key, str(number).encode())):
                self.number = number
            least, found = self.number, []
            if self._ask(lambda: found.append(self.s3.read(BUCKET, self.key))) and int(found[0]) < least:
                self.wrong.append(f"{self.key}: read {found[0]} after {least} was answered")

    def _ask(self, request):
        began = time.monotonic()
        try:
            request()
        except urllib.error.HTTPError as error:
            if error.code == 404 and self.number == 0:
                return False
            self.errors.append((began, time.monotonic(), error.code, error.read().decode(errors="replace")[-300:]))
            return False
        except (OSError, http.client.HTTPException) as error:
            self.errors.append((began, time.monotonic(), None, repr(error)[:200]))
            return False
        self.waits.append((began, time.monotonic() - began))
        return True


def failover(frame, options):
    versitygw = tools.prepare_versitygw(options.cache, frame.say)
    cluster = Daemons(frame.processes, frame.folder, options.esker, versitygw, options.delay / 1000)
    frame.say(f"three daemons answer at {cluster.proxy}")
    clients = [Client(cluster.proxy, f"counter-{index}") for index in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(2)
    kinds = [kind for kind in ("kill", "stop", "end") if kind in options.kinds]
    rounds = []
    for round_, kind in zip(range(options.rounds), itertools.cycle(kinds)):
        owner = frame.processes.until("an owner", TAKE_OVER_SECONDS, cluster.owner)
        began = time.monotonic()
        if kind == "kill":
            owner.kill()
        elif kind == "stop":
            owner.signal(signal.SIGSTOP)
        else:
            owner.end()
        frame.processes.until("another owner", TAKE_OVER_SECONDS, lambda: successor(cluster, owner), every=0.02)
        # Clients may all wait at a daemon that stands still: this one asks the new owner itself.
        frame.processes.until("an answer", TAKE_OVER_SECONDS, lambda: answers(cluster, owner), every=0.05)
        rounds.append((kind, began))
        if kind == "stop":
            owner.signal(signal.SIGCONT)
        else:
            owner.start()
        frame.say(f"round {round_ + 1}: {kind} {owner.name}")
        time.sleep(options.pause)
    for client in clients:
        client.over.set()
    for client in clients:
        client.join(90)
    wrong = [line for client in clients for line in client.wrong]
    errors = [error for client in clients for error in client.errors]
    for client in clients:
        found = int(client.s3.read(BUCKET, client.key))
        if found < client.number:
            wrong.append(f"{client.key}: {found} is left of {client.number}")
    cluster.close()
    frame.say(f"{sum(client.number for client in clients)} writes were answered, as many reads")
    for began, ended, status, text in sorted(errors, key=lambda error: error[0]):
        kind, since = next(((kind, began - at) for kind, at in reversed(rounds) if at < ended), ("no round", 0))
        frame.say(f"{kind}: asked {since:.2f} s after its begin, for {ended - began:.2f} s, {status}: {text}")
    for kind in kinds:
        if waits := longest_waits(clients, rounds, kind):
            waits.sort()
            frame.say(f"{kind}: {len(waits)} rounds, longest wait of a client, also of one whose own daemon stood still: "
                      f"median {statistics.median(waits):.2f} s, p99 {waits[int(len(waits) * 0.99)]:.2f} s, most {waits[-1]:.2f} s")
    for how, took in taken_over(frame.folder / "logs").items():
        took.sort()
        frame.say(f"the catalog had a new owner, {how}: {len(took)} times, from the first sign until it answered: median "
                  f"{statistics.median(took):.2f} s, p99 {took[int(len(took) * 0.99)]:.2f} s, most {took[-1]:.2f} s")
    if wrong:
        raise Failed("\n".join(wrong[:20]))
    # A daemon that is killed takes the connections with it that clients had to it.
    answered = sum(status is not None for _, _, status, _ in errors)
    if answered:
        raise Failed(f"{answered} requests were answered with an error")


def successor(cluster, before):
    """The daemon that the others take for the owner; None while that is still the one before."""
    owner = cluster.owner(besides=before)
    return owner if owner is not before else None


def answers(cluster, before):
    """Whether the owner after `before` answers."""
    owner = successor(cluster, before)
    if not owner:
        return False
    try:
        s3.Client(f"http://127.0.0.1:{owner.s3}", ACCESS, SECRET).sizes(BUCKET)
    except OSError:
        return False
    return True


def longest_waits(clients, rounds, kind):
    """Of each round of a kind, the longest wait of a client that began in it."""
    ends = [began for _, began in rounds[1:]] + [float("inf")]
    return [max((took for client in clients for at, took in client.waits if at + took > began and at < end), default=0)
            for (of, began), end in zip(rounds, ends) if of == kind]


def taken_over(logs):
    """How long each take-over took by the new owner's own account, by cause."""
    took = {}
    for log in logs.glob("esker-*.log"):
        for how, millis in re.findall(r'this daemon has the catalog how="([a-z-]+)" .* millis=(\d+)', log.read_text()):
            took.setdefault(how, []).append(int(millis) / 1000)
    return took


def suite(frame, options):
    versitygw = tools.prepare_versitygw(options.cache, frame.say)
    cluster = Daemons(frame.processes, frame.folder, options.esker, versitygw, options.delay / 1000)
    frame.say(f"three daemons answer at {cluster.proxy}")
    env = dict(os.environ, ESKER_S3_ENDPOINT=cluster.proxy, ESKER_S3_ACCESS=ACCESS, ESKER_S3_SECRET=SECRET,
               ESKER_S3_BUCKET=BUCKET, ESKER_API=f"http://127.0.0.1:{cluster.daemons[1].api}",
               ESKER_BIN=str(options.esker), ESKER_TEST_CACHE=str(options.cache))
    asked_early = "test_a_client_that_expects_100_continue_is_refused_before_its_body"
    # A daemon that passes a request on asks for its body first, and the owner refuses it then.
    deselected = ["--deselect", f"tests/boto3/test_bodies.py::{asked_early}", "--deselect", f"test_bodies.py::{asked_early}"]
    status = subprocess.run([HERE.parent / "boto3" / "run", *deselected, *options.arguments], env=env).returncode
    cluster.close()
    if status != 0:
        raise Failed(f"the suite ended with status {status}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", choices=["suite", "failover"])
    add_program_and_cache(parser, "boto3 and the S3 server are kept")
    parser.add_argument("--rounds", type=int, default=6, help="of failover (default 6)")
    parser.add_argument("--kinds", default="kill,stop,end", help="of rounds (default kill,stop,end)")
    parser.add_argument("--delay", type=float, default=50, help="milliseconds more for each request to the S3 server (default 50)")
    parser.add_argument("--pause", type=float, default=1,
                        help="seconds between rounds (default 1); an owner that is only silent is left alone for 5 s at first")
    parser.add_argument("--keep", action="store_true", help="keeps logs and data")
    parser.add_argument("arguments", nargs="*", help="of pytest")
    options = parsed(parser)
    need_program(options)
    options.kinds = options.kinds.split(",")
    run = {"suite": suite, "failover": failover}[options.story]
    framed("cluster", lambda frame: run(frame, options), options.keep)


if __name__ == "__main__":
    main()
