"""An end-to-end test with an unmodified Flink.

A job with incremental RocksDB checkpoints counts numbers while its storage and its task managers are
killed. It is cancelled, resumed in a fresh cluster from its last checkpoint, and run to its end. The
test passes if every key was then counted exactly, and reports what a checkpoint cost the backend.

    tests/flink/run                                  Esker on a local disk, about two minutes
    tests/flink/run --backend s3 --compare           Esker on a real S3 server, and that server alone
    tests/flink/run --backend none                   the same story without Esker
    tests/flink/run --seconds 600 --plugin hadoop    ten minutes, with Flink's other S3 file system

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to
be installed first.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from e2e import tools
from e2e.processes import Failed, Processes
from e2e.report import Report
from e2e.scenario import Scenario
from e2e.storage import BACKENDS, Direct

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def main():
    options = parse()
    began = time.monotonic()
    # Whoever shares this machine should notice little of it.
    os.nice(max(0, 10 - os.nice(0)))
    # A polite end goes through `finally` as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def say(text):
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="esker-flink-"))
    processes = Processes(folder / "logs")
    status = 1
    try:
        report = run(options, folder, processes, say)
        report.seconds = round(time.monotonic() - began, 1)
        print(f"\n{report.table()}\n")
        if options.report:
            options.report.write_text(json.dumps(report.as_json(), indent=2) + "\n")
        status = 0
    except tools.Missing as missing:
        print(missing, file=sys.stderr)
        status = 3
    except Exception as failure:
        reason = failure if isinstance(failure, Failed) else traceback.format_exc()
        print("\n".join([*processes.tails(), f"\nFAILED: {reason}"]), file=sys.stderr)
    finally:
        processes.kill_all()
        if status == 1 or options.keep:
            print(f"logs and data are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if status != 3:
        print(f"flink: {int(status == 0)} passed, {int(status != 0)} failed")
    sys.exit(status)


def run(options, folder, processes, say):
    needs_esker, needs_versitygw = options.backend != "none", options.backend != "local" or options.compare
    installed = tools.prepare(
        options.cache, options.plugin, options.esker if needs_esker else None, needs_versitygw, say)
    jar = tools.compile_job(installed.flink_home, folder)
    scenario = Scenario(processes, installed, jar, folder, options.seconds, options.claim_mode, say)
    report = Report(options.plugin, options.backend)
    if options.compare:
        report.measurements.append(scenario.measure_alone(Direct(processes, installed, folder / "alone-storage")))
    storage = folder / "storage"
    storage.mkdir()
    scenario.run(BACKENDS[options.backend](processes, installed, storage), report)
    return report


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/flink/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="local",
                        help="where Esker writes to; none: Flink writes to versitygw without Esker")
    parser.add_argument("--plugin", choices=["native", "hadoop", "presto"], default="native",
                        help="which of Flink's S3 file systems to use")
    parser.add_argument("--seconds", type=int, default=120, help="how long it may take, about (default 120)")
    parser.add_argument("--claim-mode", choices=["claim", "no_claim"], default="claim",
                        help="who owns the checkpoint that is resumed from (default claim: the new job)")
    parser.add_argument("--compare", action="store_true",
                        help="measure checkpoints without Esker first, as a column beside the others")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--keep", action="store_true", help="keep logs and data after a success, too")
    parser.add_argument("--esker", type=Path, metavar="PATH",
                        default=os.environ.get("ESKER_BIN", REPOSITORY / "target" / "debug" / "esker"),
                        help="the program under test (default $ESKER_BIN, or target/debug/esker)")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        default=os.environ.get("ESKER_TEST_CACHE", REPOSITORY / "target" / "test-cache"),
                        help="where installed tools are kept (default $ESKER_TEST_CACHE, or target/test-cache)")
    options = parser.parse_args()
    if options.backend == "none" and options.compare:
        parser.error("--compare has nothing to compare with --backend none")
    if options.plugin == "hadoop" and (options.backend == "none" or options.compare):
        parser.error("the hadoop plugin hangs on versitygw alone: S3A deletes the markers of all parent folders "
                     "after each file, versitygw refuses to delete what is absent, and S3A tries again for ever")
    return options


if __name__ == "__main__":
    main()
