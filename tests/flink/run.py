"""End-to-end tests with an unmodified Flink. There are three stories.

tally: a job with incremental RocksDB checkpoints counts numbers while its storage and its task managers
are killed. It is cancelled, resumed in a fresh cluster from its last checkpoint, and run to its end. The
test passes if every key was then counted exactly, and reports what a checkpoint cost the backend.

    tests/flink/run                                  Esker on a local disk, about two minutes
    tests/flink/run --backend s3 --compare           Esker on a real S3 server, and that server alone
    tests/flink/run --backend none                   the same story without Esker
    tests/flink/run --seconds 600 --plugin hadoop    ten minutes, with Flink's other S3 file system

sink: a job writes records with FileSink while Esker is killed between the beginning of a multipart
upload, its parts and its completion. The test passes if every record is in the output exactly once.

    tests/flink/run sink                             every moment once, about four minutes
    tests/flink/run sink --rounds 100                half an hour

space: a job takes a checkpoint every 500 ms. The test passes if the disk, by `du`, holds no more than
the limit allows for what lives, while the job runs and after its end.

    tests/flink/run space                            about two minutes
    tests/flink/run space --seconds 600              ten minutes

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
from e2e.sink import PLAN, SinkReport, SinkStory
from e2e.space import SpaceReport, SpaceStory
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
        report = STORIES[options.story](options, folder, processes, say)
        report.seconds = round(time.monotonic() - began, 1)
        print(f"\n{report.table()}\n")
        if options.report:
            options.report.write_text(json.dumps(report.as_json(), indent=2) + "\n")
        report.check()
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


def run_tally(options, folder, processes, say):
    installed, jar = prepare(options, folder, say)
    scenario = Scenario(processes, installed, jar, folder, options.seconds, options.claim_mode, say)
    report = Report(options.plugin, options.backend)
    if options.compare:
        report.measurements.append(scenario.measure_alone(Direct(processes, installed, folder / "alone-storage")))
    scenario.run(storage_of(options, folder, processes, installed), report)
    return report


def run_sink(options, folder, processes, say):
    installed, jar = prepare(options, folder, say)
    report = SinkReport()
    SinkStory(processes, installed, jar, folder, options.rounds, say).run(
        storage_of(options, folder, processes, installed), report)
    return report


def run_space(options, folder, processes, say):
    installed, jar = prepare(options, folder, say)
    report = SpaceReport()
    SpaceStory(processes, installed, jar, folder, options.seconds, say).run(
        storage_of(options, folder, processes, installed), report)
    return report


STORIES = {"tally": run_tally, "sink": run_sink, "space": run_space}


def prepare(options, folder, say):
    """Returns what is installed, and the jar of the jobs."""
    needs_esker, needs_versitygw = options.backend != "none", options.backend != "local" or options.compare
    installed = tools.prepare(
        options.cache, options.plugin, options.esker if needs_esker else None, needs_versitygw, say)
    return installed, tools.compile_job(installed.flink_home, folder)


def storage_of(options, folder, processes, installed):
    storage = folder / "storage"
    storage.mkdir()
    return BACKENDS[options.backend](processes, installed, storage)


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/flink/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", nargs="?", choices=list(STORIES), default="tally", help="default tally")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="local",
                        help="where Esker writes to; none: Flink writes to versitygw without Esker")
    parser.add_argument("--plugin", choices=["native", "hadoop", "presto"],
                        help="which of Flink's S3 file systems to use (default native; the sink's is hadoop)")
    parser.add_argument("--seconds", type=int,
                        help="tally: how long it may take, about (default 120); space: how long the job runs "
                             "(default $ESKER_SPACE_SECONDS, or 75)")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ESKER_SINK_ROUNDS", len(PLAN))),
                        help="sink: how often Esker is ended "
                             f"(default $ESKER_SINK_ROUNDS, or {len(PLAN)}: at every moment once)")
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
    options.plugin = options.plugin or ("hadoop" if options.story == "sink" else "native")
    options.seconds = options.seconds or (
        int(os.environ.get("ESKER_SPACE_SECONDS", 75)) if options.story == "space" else 120)
    if options.story == "sink" and options.plugin != "hadoop":
        parser.error("the sink's story needs the hadoop plugin: presto has no recoverable writer, and native aborts "
                     "uploads that checkpoints name when a task fails")
    if options.story == "sink" and options.backend == "none":
        parser.error("the sink's story kills Esker: --backend none has none")
    if options.story == "space" and options.backend != "local":
        parser.error("the space story asks the disk: it needs --backend local")
    if options.backend == "none" and options.compare:
        parser.error("--compare has nothing to compare with --backend none")
    if options.plugin == "hadoop" and (options.backend == "none" or options.compare):
        parser.error("the hadoop plugin hangs on versitygw alone: S3A deletes the markers of all parent folders "
                     "after each file, versitygw refuses to delete what is absent, and S3A tries again for ever")
    return options


if __name__ == "__main__":
    main()
