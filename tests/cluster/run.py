"""Three daemons as one, on a real S3 server (versitygw), behind a proxy that gives each connection to the next of them.

suite: the whole suite of boto3 (tests/boto3), whose every connection goes to another daemon.

    tests/cluster/run suite [pytest arguments]

failover: `esker bench failover` on that server: clients write and read while the owner of the catalog is killed, stopped and ended
in turn, each request to the S3 server taking some milliseconds more. Fails if an answered write is not read, if a read is older than what
was answered before it, or if a request was answered with an error; verifies what is left.

    tests/cluster/run failover --rounds 50 --delay 50 -- --kinds killed

faults: three daemons, each with ways of its own to storage and to its peers, are killed (at a request, too), stopped, cut off in one direction or
both, from storage, ended, and replaced by another version of the program (--old), while clients write and read. Fails if an answered
change is lost, or a read is older than what was answered or read before it; verifies what is left.

    tests/cluster/run faults --minutes 30 --shards 4 --seed 7 [--old PROGRAM]

idle: what one daemon by itself, and three as one, ask of storage when nobody asks them; fails if they write.

    tests/cluster/run idle --minutes 10

throughput: answers a second of one, two and three daemons of one worker thread each, for eight jobs in 16 shards, beside a bare server and one
daemon by itself; and of an owner, asked by itself and by way of another daemon.

    tests/cluster/run throughput --delay 0

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to be installed first.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "clients"), str(HERE.parent / "flink"), str(HERE)]

from e2e import tools  # noqa: E402
from e2e.daemons import ACCESS, BUCKET, SECRET, Daemons, Slowed  # noqa: E402
from e2e.frame import framed  # noqa: E402
from e2e.processes import Failed  # noqa: E402
from e2e.storage import Versitygw  # noqa: E402
from stories import faults, idle, throughput  # noqa: E402
from matrix.options import add_program_and_cache, need_program, parsed  # noqa: E402

VERIFY_SECONDS = 300


def failover(frame, options):
    versitygw = tools.prepare_versitygw(options.cache, frame.say)
    server = Versitygw(frame.processes, versitygw, frame.folder / "versitygw")
    server.start()
    server.make_bucket("esker")
    endpoint = Slowed(server.endpoint, options.delay / 1000).endpoint
    frame.say(f"each request to the S3 server takes {options.delay:g} ms more")
    store = {"endpoint": endpoint, "region": "us-east-1", "access-key": server.access_key, "secret-key": server.secret_key}
    place = [argument for key, value in store.items() for argument in ("--set", f"store.{key}={value}")]
    url = "s3://esker/cluster-test"
    bench = subprocess.Popen([options.esker, "bench", "failover", "--rounds", str(options.rounds), "--data-dir", frame.folder,
                              "--set", f"store.url={url}", *place, *options.arguments])
    if (status := bench.wait()) != 0:
        raise Failed(f"`esker bench failover` ended with status {status}")
    verified = subprocess.run([options.esker, "verify", "--read-data", "100", "--set", f"store.url={url}/failover-{bench.pid}", *place],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=VERIFY_SECONDS)
    if verified.returncode != 0:
        raise Failed(f"`esker verify` ended with status {verified.returncode}:\n{verified.stdout}")


def suite(frame, options):
    versitygw = tools.prepare_versitygw(options.cache, frame.say)
    cluster = Daemons(frame.processes, frame.folder, options.esker, versitygw, options.delay / 1000, options.shards)
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


def story(module):
    return lambda frame, options: module.run(frame, options, tools.prepare_versitygw(options.cache, frame.say))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", choices=["suite", "failover", "faults", "idle", "throughput"])
    add_program_and_cache(parser, "boto3 and the S3 server are kept")
    parser.add_argument("--rounds", type=int, default=6, help="of failover (default 6)")
    parser.add_argument("--delay", type=float, default=50, help="milliseconds more for each request to the S3 server of all but faults (default 50)")
    parser.add_argument("--shards", type=int, default=1, help="of the store of suite and faults (default 1)")
    parser.add_argument("--minutes", type=float, default=5, help="of faults, and of each case of idle (default 5)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of faults: what happens, and when (default: the time)")
    parser.add_argument("--old", type=Path, help="of faults: another version of the program, which takes turns with it")
    parser.add_argument("--keep", action="store_true", help="keeps logs and data")
    parser.add_argument("arguments", nargs="*", help="of pytest, or of `esker bench failover`; behind --")
    options = parsed(parser)
    need_program(options)
    run = {"suite": suite, "failover": failover, "faults": story(faults), "idle": story(idle), "throughput": story(throughput)}[options.story]
    framed("cluster", lambda frame: run(frame, options), options.keep)


if __name__ == "__main__":
    main()
