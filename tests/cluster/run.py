"""Three daemons as one, on a real S3 server (versitygw), behind a proxy that gives each connection to the next of them.

suite: the whole suite of boto3 (tests/boto3), whose every connection goes to another daemon.

    tests/cluster/run suite [pytest arguments]

failover: `esker bench failover` on that server: clients write and read while the owner of the catalog is killed, stopped and ended
in turn, each request to the S3 server taking some milliseconds more. Fails if an answered write is not read, if a read is older than what
was answered before it, or if a request was answered with an error; verifies what is left.

    tests/cluster/run failover --rounds 50 --delay 50 -- --kinds killed

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to be installed first.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "clients"), str(HERE.parent / "flink")]

from e2e import tools  # noqa: E402
from e2e.daemons import ACCESS, BUCKET, SECRET, Daemons, Slowed  # noqa: E402
from e2e.frame import framed  # noqa: E402
from e2e.processes import Failed  # noqa: E402
from e2e.storage import Versitygw  # noqa: E402
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", choices=["suite", "failover"])
    add_program_and_cache(parser, "boto3 and the S3 server are kept")
    parser.add_argument("--rounds", type=int, default=6, help="of failover (default 6)")
    parser.add_argument("--delay", type=float, default=50, help="milliseconds more for each request to the S3 server (default 50)")
    parser.add_argument("--shards", type=int, default=1, help="of the store of suite (default 1)")
    parser.add_argument("--keep", action="store_true", help="keeps logs and data")
    parser.add_argument("arguments", nargs="*", help="of pytest, or of `esker bench failover`; behind --")
    options = parsed(parser)
    need_program(options)
    run = {"suite": suite, "failover": failover}[options.story]
    framed("cluster", lambda frame: run(frame, options), options.keep)


if __name__ == "__main__":
    main()
