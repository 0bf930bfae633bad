"""The rows of the matrix: each is one Flink, one of its S3 file systems and one kind of state, with a story of its own.

A row that fails does not keep the others from their turn. One whose Flink a registry does not give is skipped by name.
"""

import datetime
from dataclasses import asdict, dataclass, field

from . import tools
from .processes import Failed
from .report import Report, aligned
from .savepoints import SavepointStory
from .scenario import Scenario, Shape
from .tools import Flink

# One round of kills, which it has room for however slow the machine is.
SECONDS = 45

_UNALIGNED = {
    "execution.checkpointing.unaligned.enabled": "true",
    # Small buffers: what is on its way is a few seconds' work and not a minute's.
    "taskmanager.memory.segment-size": "4 kb",
}
_CHANGELOG = {
    "state.changelog.enabled": "true",
    "state.changelog.storage": "filesystem",
    "state.changelog.dstl.dfs.base-path": "{storage}/changelog",
    "state.changelog.periodic-materialize.interval": "15 s",
    # By default an upload gets one second, three times: too little for a machine that is busy with other things.
    "state.changelog.dstl.dfs.upload.timeout": "30 s",
}
_FORST = {
    "state.backend.type": "forst",
    # The job's state is of the kind that ForSt would otherwise keep on the task manager's disk.
    "state.backend.forst.sync.enforce-local": "false",
    # ForSt keeps connections while it has files open, more than S3A has by default.
    "s3.connection.maximum": "2000",
}


@dataclass(frozen=True)
class Row:
    name: str
    flink: Flink
    about: str
    shape: Shape = Shape()
    story: type = Scenario
    # Whether the same is measured on the S3 server without Esker.
    alone: bool = True


ROWS = [
    Row("hadoop", Flink("hadoop"), "incremental RocksDB checkpoints"),
    Row("presto", Flink("presto"), "incremental RocksDB checkpoints"),
    Row("native", Flink("native"), "incremental RocksDB checkpoints"),
    Row("savepoints", Flink("native"), "stopped with a canonical savepoint, resumed by 2 subtasks instead of 4; stopped with "
        "a native one, resumed by 4",
        # A savepoint that was resumed from counts among the checkpoints to retain. A job that ends before newer ones have
        # taken its place leaves all that it has shared: Flink deletes what is older than the oldest one that stays.
        Shape(cleans_up=False), SavepointStory),
    Row("unaligned", Flink("native"), "unaligned checkpoints under back pressure",
        Shape(_UNALIGNED, back_pressure=True)),
    Row("changelog", Flink("native", parts=("changelog",)), "RocksDB with a changelog, materialized every 15 s",
        # Tasks upload changes before a checkpoint needs them; Flink does not delete those that none came to name.
        Shape(_CHANGELOG, keeps="/dstl/", cleans_up=False)),
    Row("forst", Flink("hadoop", parts=("forst",)), "ForSt, its files on S3, `s3.connection.maximum: 2000`",
        # Tasks work on files there: `shared/op_.._attempt_../db/..`. Alone on versitygw such a job is never cancelled.
        Shape(_FORST, keeps="/db/"), alone=False),
    # Its RocksDB, with the managed memory of these small task managers, puts off most writes.
    Row("flink-1.20", Flink("hadoop", tools.FLINK_1_20), "incremental RocksDB checkpoints",
        Shape({"state.backend.rocksdb.memory.managed": "false"})),
]


@dataclass
class Outcome:
    row: str
    flink: str
    plugin: str
    about: str
    # "ok", or what went wrong, or why it was skipped.
    result: str = ""
    skipped: bool = False
    report: Report | None = None
    seconds: float = 0

    @property
    def failed(self):
        return not self.skipped and self.result != "ok"


@dataclass
class MatrixReport:
    backend: str
    outcomes: list = field(default_factory=list)
    seconds: float = 0

    def enter(self, row, result, report=None, seconds=0, skipped=False):
        self.outcomes.append(Outcome(
            row.name, row.flink.version, row.flink.plugin, row.about, result, skipped, report, round(seconds, 1)))

    def as_json(self):
        return asdict(self)

    def check(self):
        if failed := [outcome.row for outcome in self.outcomes if outcome.failed]:
            raise Failed(f"these rows failed: {', '.join(failed)}")
        if all(outcome.skipped for outcome in self.outcomes):
            raise tools.Missing("every row was skipped")

    def counts(self):
        skipped, failed = (sum(getattr(outcome, what) for outcome in self.outcomes) for what in ("skipped", "failed"))
        return f"{len(self.outcomes) - skipped - failed} passed, {skipped} skipped, {failed} failed"

    def table(self):
        return "\n\n".join([aligned([_WHAT_HAPPENED, *self._what_happened()]), aligned([_COSTS, *self._costs()])])

    def _what_happened(self):
        for outcome in self.outcomes:
            report = outcome.report or Report(outcome.plugin, self.backend)
            yield [outcome.row, outcome.flink, outcome.plugin, str(len(report.kills) or "-"),
                   f"{report.keys_compared:,}" if report.keys_compared else "-", outcome.result.splitlines()[0]]

    def _costs(self):
        for outcome in self.outcomes:
            if not outcome.report:
                continue
            *alone, through = outcome.report.measurements
            alone = alone[0] if alone else None
            yield [outcome.row, _each(alone, _requests), _each(through, _sent), _each(through, _requests),
                   _each(alone, _created), _each(through, _created)]

    def markdown(self):
        rows = "\n".join(f"| {outcome.row} | {outcome.flink} | {outcome.plugin} | {outcome.about} |"
                         for outcome in self.outcomes)
        return _PAGE.format(
            date=datetime.date.today().isoformat(), rows=rows,
            happened=_markdown(_WHAT_HAPPENED, self._what_happened()), costs=_markdown(_COSTS, self._costs()))


def _requests(measurement):
    return sum(measurement.requests.values())


def _sent(measurement):
    """What Flink has asked Esker for."""
    return sum(count for name, count in measurement.esker.items() if name.startswith("asked for "))


def _created(measurement):
    return measurement.objects_created


def _each(measurement, number_of):
    """So many in one checkpoint."""
    return f"{number_of(measurement) / measurement.checkpoints:.0f}" if measurement else "-"


def _markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_WHAT_HAPPENED = ["row", "Flink", "S3 file system", "kills", "keys compared", "result"]
_COSTS = ["row", "requests, S3 server alone", "sent to Esker", "sent by Esker to the S3 server",
          "objects created, S3 server alone", "by Esker"]

_PAGE = """\
# Flink on Esker

This page is written by `tests/flink/run matrix --write`; `tests/run more` runs the same and fails if a row does. Each
row is an unmodified Flink from Maven: a job at parallelism 4 on two task managers takes a checkpoint a second, through
Esker, on a real S3 server (versitygw).

| row | Flink | S3 file system | state |
| --- | --- | --- | --- |
{rows}

## Exact after kills

In each row Esker is killed in the middle of a checkpoint and started again, then a task manager is killed and replaced,
both twice in the row of savepoints. Then the job is cancelled (or stopped with a savepoint), Esker is stopped, `esker
verify` checks what is on storage, and a fresh Esker takes the job to its end. Every key's count, sum and bytes are then
compared with what is computed without Flink. `esker audit` has to name what Flink's own reader finds in each `_metadata`,
and what the kills have left that no checkpoint names is deleted before the job resumes (not in the row of savepoints).
`ok` is all of it.

{happened}

Recorded on {date}.

## Requests of a checkpoint

Per checkpoint, over a dozen that nothing disturbed, on 2 cores that were busy with other work, too. *Sent to Esker* is
what Flink's file system asks for, whoever answers; most of it is `HEAD`, listings and deletes, which Esker answers out of
its catalog. *Alone* is the same job on the S3 server without Esker, with `s3.directory.marker.retention: keep`: without it
Hadoop's S3A deletes the markers of all parent folders after each file, which versitygw refuses. A job with ForSt does not end
there when it is cancelled, so of that there is no such figure. Most objects that Esker
creates are commits to its catalog, which take whatever arrives during the one before: many small requests at once make few
of them.

{costs}

## What each write is for

`tests/flink/run cost --backend s3 --backend-delay 30 --trace` tells, for each write to the S3 server, which requests of Flink
it answered and when in the checkpoint. Each request to versitygw takes 30 ms longer there; the row is *native*, Flink's
settings are its defaults, and so are Esker's, with a folder for deletes (`merging.delete-ledger`). A checkpoint of four subtasks, if the machine keeps up with it:

| ms into the checkpoint | write | answers |
| --- | --- | --- |
| 400 | a commit, with the bytes if they are up to `merging.inline-group-max`, else a file beside it | 8 to 13 PUTs of `shared/..` |
| 600 | a commit with its bytes | the 8 PUTs that tasks send once those are answered |
| 800 | a commit with its bytes | the completion of `_metadata` |
| any | carried by the commits above | 17 DELETEs of `shared/..`, and that of `_metadata` |

Before, nine or ten of 15 to 18 writes were commits of two deletes each: Flink's JobManager deletes one by one, from
`jobmanager.io-pool.size` threads, by default as many as it has cores, and each waits for its answer. With every delete
durable on storage before its answer there are at least half as many commits as deletes, however long one waits for others.

Objects created and what Flink sees, per checkpoint, 12 or 13 checkpoints a run, in turn, a debug build beside other work on two
cores (load 6 to 13 but for the last row):

| way, added to those above it | objects created | a DELETE, median | a checkpoint, median |
| --- | --- | --- | --- |
| every delete durable on storage before its answer, as before | 16.8, 17.2, 17.3, 17.8 | 44 to 48 ms | 1,314, 1,305, 1,281, 1,388 ms |
| deletes noted in the ledger | 8.2, 9.5 | 4, 6 ms | 927, 848 ms |
| groups of up to 512 kb in the record (in place of 256 kb) | 7.4, 8.2 | 8, 5 ms | 940, 857 ms |
| of up to 1 mb | 6.1, 6.5, 7.2 | 3, 7 ms | 749, 926, 858 ms |
| a burst waits for what usually comes together: so it is now | 5.5, 5.1 | 3, 3 ms | 846, 656 ms |
| the same, at a load of 15 to 26 | 7.1, 6.4, 10.0 (17.2, 17.1, 17.2 before) | 4 to 9 ms | 1,160, 1,261, 1,318 ms (1,585, 1,245, 1,467 before) |

`merging.delete-durability = "commit"` and `merging.inline-group-max = "256 kb"` are how it was before. Without a folder for the
ledger ([doors.md](doors.md#deletes-on-the-local-disk)), `jobmanager.io-pool.size: 16` in Flink's configuration brings 9 to 11.
The hadoop file system deletes the markers of all folders above a file with each file that it writes, in batches of keys that are nearly all
not there: three more writes a checkpoint, before what is not there kept nobody waiting (13 then, 7.9 now; `--plugin hadoop`).
What does not help: to have deletes wait longer, because the threads that send them wait, too. What has not been done:
`linger-fraction = 1` without regard to what is usual has as few writes (4.7, 5.1, 5.5), and makes writers that take turns wait.

## Settings

- `merging.delete-ledger` of Esker, a folder on a local disk that outlives it: deletes are noted there before they are answered, so that they
  need no request to storage ([doors.md](doors.md#deletes-on-the-local-disk)). The rows above are with it. Without, `jobmanager.io-pool.size: 16` makes fewer requests, because
  Flink deletes from as many threads as that, and Esker makes one commit of deletes that come together.
- ForSt needs the hadoop file system: it goes on writing to a file after it has synced it, which the native one refuses.
  It keeps connections while its files are open, hence `s3.connection.maximum`.
- The native file system needs `s3.region`; all three take `s3.path-style-access: true`.
- Checkpoints, savepoints and the changelog's folder (`state.changelog.dstl.dfs.base-path`) may share a bucket.
- A job that was resumed from a savepoint and ends before as many newer checkpoints as `num-retained` are complete leaves
  what it has shared, and a job with a changelog leaves changes that no checkpoint came to name. That is Flink's doing, on
  any storage; `esker orphans` keeps both, because a running job looks the same. Delete the folders of jobs that are over.
- Flink's own file merging is best left off: Esker merges across subtasks and task managers.
"""
