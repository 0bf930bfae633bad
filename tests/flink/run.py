"""End-to-end tests with an unmodified Flink. There are five stories, and a matrix of one of them.

tally: a job with incremental RocksDB checkpoints counts numbers while its storage and its task managers
are killed. It is cancelled, resumed in a fresh cluster from its last checkpoint, and run to its end. The
test passes if every key was then counted exactly, and reports what a checkpoint cost the backend.

    tests/flink/run                                  Esker on a local disk, about two minutes
    tests/flink/run --backend s3 --compare           Esker on a real S3 server, and that server alone
    tests/flink/run --backend s3 --backend-delay 30  the same server, with each request to it 30 ms longer
    tests/flink/run --backend none                   the same story without Esker
    tests/flink/run --backend hdfs --compare         Esker on a real HDFS, and Flink's own file system on one
    tests/flink/run --backend hdfs-disk              Esker's data on a real HDFS, its catalog on a local disk
    tests/flink/run --backend cluster                three daemons on a real S3 server: no checkpoint may fail
    tests/flink/run --seconds 600 --plugin hadoop    ten minutes, with Flink's other S3 file system

sink: a job writes records with FileSink while Esker is killed between the beginning of a multipart
upload, its parts and its completion. The test passes if every record is in the output exactly once.

    tests/flink/run sink                             every moment once, about four minutes
    tests/flink/run sink --rounds 100                half an hour

space: a job takes a checkpoint every 500 ms. The test passes if the disk, by `du`, holds no more than
the limit allows for what lives, while the job runs and after its end.

    tests/flink/run space                            about two minutes
    tests/flink/run space --seconds 600              ten minutes

move: a job writes its checkpoints to a storage of its own. Its last one is brought in by `esker import`, and the job
goes on through Esker from there; then `esker export` brings it out, and the job goes on where it came from, to its end.

    tests/flink/run move                             a folder of the local disk, about two minutes
    tests/flink/run move --backend hdfs              a real HDFS, on which Esker is, too
    tests/flink/run move --backend s3                a real S3 server, on which Esker is, too

cost: the beginning of tally alone: what a checkpoint costs, and nothing is killed. With --trace, which requests of Flink
each write to the S3 server answered.

    tests/flink/run cost --backend s3 --backend-delay 30 --flink jobmanager.io-pool.size=16

matrix: the story of tally, shorter, with each of Flink's S3 file systems, with ForSt, a changelog, unaligned checkpoints
under back pressure, with Flink 1.20; and a story of savepoints of both formats, resumed by fewer and by more subtasks.

    tests/flink/run matrix                           all rows, about half an hour
    tests/flink/run matrix --only presto,savepoints  these alone
    tests/flink/run matrix --write                   all, and docs/flink.md is written anew

The exit status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if something has to
be installed first.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from e2e import matrix, tools
from e2e.daemons import EskerCluster
from e2e.frame import framed, tell
from e2e.hdfs import DirectHdfs, EskerOnHdfs, EskerOnHdfsAndDisk
from e2e.move import SOURCES, MoveReport, MoveStory
from e2e.processes import Processes
from e2e.report import Report
from e2e.scenario import Scenario, Shape
from e2e.sink import PLAN, SinkReport, SinkStory
from e2e.space import SpaceReport, SpaceStory
from e2e.storage import Direct, EskerOnDisk, EskerOnS3

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = REPOSITORY / "docs" / "flink.md"
BACKENDS = {"none": Direct, "local": EskerOnDisk, "s3": EskerOnS3, "hdfs": EskerOnHdfs,
            "hdfs-disk": EskerOnHdfsAndDisk, "cluster": EskerCluster}
# What Flink does without Esker, for comparison.
ALONE = {"local": Direct, "s3": Direct, "cluster": Direct, "hdfs": DirectHdfs, "hdfs-disk": DirectHdfs}


def main():
    options = parse()

    def run(frame):
        report = STORIES[options.story](options, frame.folder, frame.processes, frame.say)
        report.seconds = round(frame.seconds(), 1)
        frame.counts = getattr(report, "counts", None)
        print(f"\n{report.table()}\n")
        write_report(options, report)
        report.check()
        if options.write:
            PAGE.write_text(report.markdown())

    framed("flink", run, options.keep, tools.Missing)


def write_report(options, report):
    if options.report:
        options.report.write_text(json.dumps(report.as_json(), indent=2) + "\n")


def run_tally(options, folder, processes, say):
    parts = ("hdfs",) if options.compare and ALONE[options.backend] is DirectHdfs else ()
    row = matrix.Row("tally", tools.Flink(options.plugin, parts=parts), "", alone=options.compare)
    return run_row(row, options, folder, processes, say)


def run_cost(options, folder, processes, say):
    """Measures undisturbed checkpoints and ends."""
    installed, jar = prepare(options, tools.Flink(options.plugin), folder, say)
    shape = Shape(dict(setting.split("=", 1) for setting in options.flink))
    story = Scenario(processes, installed, jar, folder, options.seconds, options.claim_mode, say, shape)
    report = Report(options.plugin, options.backend)
    report.measurements.append(story.measure_alone(storage_of(options, folder, processes, installed), options.trace))
    return report


def run_row(row, options, folder, processes, say):
    """Tells the story of one row of the matrix."""
    installed, jar = prepare(options, row.flink, folder, say)
    story = row.story(processes, installed, jar, folder, options.seconds, options.claim_mode, say, row.shape)
    report = Report(row.flink.plugin, options.backend)
    if row.alone:
        alone = slowed(options, ALONE[options.backend](processes, installed, folder / "alone-storage"))
        report.measurements.append(story.measure_alone(alone))
    story.run(storage_of(options, folder, processes, installed), report)
    return report


def run_matrix(options, folder, _processes, say):
    report = matrix.MatrixReport(options.backend)
    for row in matrix.ROWS:
        if options.only and row.name not in options.only:
            continue
        say(f"row {row.name}: Flink {row.flink.version}, {row.flink.plugin}, {row.about}")
        began, its_folder = time.monotonic(), folder / row.name
        its_folder.mkdir()
        processes = Processes(its_folder / "logs")
        try:
            of_row = run_row(row, options, its_folder, processes, say)
            report.enter(row, "ok", of_row, time.monotonic() - began)
        except tools.NotGiven as why:
            say(f"row {row.name}: SKIPPED, {why}")
            report.enter(row, "skipped: its Flink cannot be fetched", skipped=True)
        except tools.Missing:
            raise
        except Exception as failure:
            tell(failure, processes)
            report.enter(row, f"FAILED: {failure or repr(failure)}", seconds=time.monotonic() - began)
        finally:
            processes.kill_all()
        # Whoever ends this before its last row has what is known by then.
        write_report(options, report)
        if not (options.keep or report.outcomes[-1].failed):
            shutil.rmtree(its_folder, ignore_errors=True)
    return report


def run_sink(options, folder, processes, say):
    installed, jar = prepare(options, tools.Flink(options.plugin), folder, say)
    report = SinkReport()
    SinkStory(processes, installed, jar, folder, options.rounds, say).run(
        storage_of(options, folder, processes, installed), report)
    return report


def run_space(options, folder, processes, say):
    installed, jar = prepare(options, tools.Flink(options.plugin), folder, say)
    report = SpaceReport()
    SpaceStory(processes, installed, jar, folder, options.seconds, say).run(
        storage_of(options, folder, processes, installed), report)
    return report


def run_move(options, folder, processes, say):
    parts = ("hdfs",) if options.backend == "hdfs" else ()
    installed, jar = prepare(options, tools.Flink(options.plugin, parts=parts), folder, say)
    report = MoveReport(options.backend)
    story = MoveStory(processes, installed, jar, folder, options.seconds, options.claim_mode, say)
    story.tell(storage_of(options, folder, processes, installed), report)
    return report


STORIES = {"tally": run_tally, "cost": run_cost, "sink": run_sink, "space": run_space, "move": run_move,
           "matrix": run_matrix}


def prepare(options, flink, folder, say):
    """Returns what is installed, and the jar of the jobs."""
    needs_esker = options.backend != "none"
    needs_versitygw = options.backend in ("none", "s3", "cluster") or (options.backend == "local" and options.compare)
    installed = tools.prepare(options.cache, flink, options.esker if needs_esker else None, needs_versitygw, say)
    return installed, tools.compile_job(installed.flink_home, folder)


def storage_of(options, folder, processes, installed):
    storage = folder / "storage"
    storage.mkdir()
    return slowed(options, BACKENDS[options.backend](processes, installed, storage))


def slowed(options, storage):
    """A storage whose server is as far away as it shall be."""
    if options.backend_delay:
        storage.server.delay(options.backend_delay / 1000)
    return storage


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/flink/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", nargs="?", choices=list(STORIES), default="tally", help="default tally")
    parser.add_argument("--backend", choices=sorted(BACKENDS),
                        help="where Esker writes to (default local; the matrix's is s3); hdfs-disk: its data to HDFS, its "
                             "catalog to a local disk; none: Flink writes to versitygw without Esker")
    parser.add_argument("--backend-delay", type=int, default=0, metavar="MS",
                        help="milliseconds that each request to the S3 server takes longer: those that are on this machine "
                             "answer in a few, one that is not in 30 to 50 (default 0)")
    parser.add_argument("--flink", action="append", default=[], metavar="KEY=VALUE",
                        help="cost: a setting of Flink's, once for each")
    parser.add_argument("--trace", action="store_true",
                        help="cost: tell which requests each write to the S3 server answered; needs --backend s3 and a delay")
    parser.add_argument("--plugin", choices=["native", "hadoop", "presto"],
                        help="which of Flink's S3 file systems to use (default native; the sink's is hadoop)")
    parser.add_argument("--seconds", type=int,
                        help=f"tally: how long it may take, about (default 120; in a row of the matrix {matrix.SECONDS}); "
                             "space: how long the job runs (default $ESKER_SPACE_SECONDS, or 75)")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ESKER_SINK_ROUNDS", len(PLAN))),
                        help="sink: how often Esker is ended "
                             f"(default $ESKER_SINK_ROUNDS, or {len(PLAN)}: at every moment once)")
    parser.add_argument("--claim-mode", choices=["claim", "no_claim"], default="claim",
                        help="who owns the checkpoint that is resumed from (default claim: the new job)")
    parser.add_argument("--compare", action="store_true",
                        help="measure checkpoints without Esker first, as a column beside the others")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="ROW,..",
                        help=f"matrix: these rows alone, out of {', '.join(row.name for row in matrix.ROWS)}")
    parser.add_argument("--write", action="store_true", help="matrix: write docs/flink.md, if all went well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--keep", action="store_true", help="keep logs and data after a success, too")
    parser.add_argument("--esker", type=Path, metavar="PATH",
                        default=os.environ.get("ESKER_BIN", REPOSITORY / "target" / "debug" / "esker"),
                        help="the program under test (default $ESKER_BIN, or target/debug/esker)")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        default=os.environ.get("ESKER_TEST_CACHE", REPOSITORY / "target" / "test-cache"),
                        help="where installed tools are kept (default $ESKER_TEST_CACHE, or target/test-cache)")
    options = parser.parse_args()
    if options.story == "matrix":
        if options.plugin or options.compare or options.backend not in (None, "s3"):
            parser.error("each row of the matrix has its plugin and what it is compared with, and its backend is s3")
        if unknown := set(options.only or ()) - {row.name for row in matrix.ROWS}:
            parser.error(f"unknown rows {', '.join(unknown)}")
    elif options.only or options.write:
        parser.error("--only and --write are for the matrix")
    if options.only and options.write:
        parser.error("--write is for all rows")
    options.backend = options.backend or ("s3" if options.story == "matrix" else "local")
    options.plugin = options.plugin or ("hadoop" if options.story == "sink" else "native")
    seconds = {"space": int(os.environ.get("ESKER_SPACE_SECONDS", 75)), "matrix": matrix.SECONDS}
    options.seconds = options.seconds or seconds.get(options.story, 120)
    if options.story == "sink" and options.plugin != "hadoop":
        parser.error("the sink's story needs the hadoop plugin: presto has no recoverable writer, and native aborts "
                     "uploads that checkpoints name when a task fails")
    if options.story == "sink" and options.backend == "none":
        parser.error("the sink's story kills Esker: --backend none has none")
    if options.story == "space" and options.backend != "local":
        parser.error("the space story asks the disk: it needs --backend local")
    if options.story == "move" and options.backend not in SOURCES:
        parser.error(f"the story of moving has these backends: {', '.join(SOURCES)}")
    if options.flink and options.story != "cost" or not all("=" in setting for setting in options.flink):
        parser.error("--flink KEY=VALUE is for the story of cost")
    if options.trace and not (options.story == "cost" and options.backend == "s3" and options.backend_delay):
        parser.error("--trace is for the story of cost with --backend s3 and --backend-delay")
    if options.backend_delay and options.backend not in ("s3", "none"):
        parser.error("--backend-delay is for a backend that is an S3 server")
    if options.backend == "none" and options.compare:
        parser.error("--compare has nothing to compare with --backend none")
    return options


if __name__ == "__main__":
    main()
