"""The steps of what is no client of objects: a lake table, an array store, a backup.

They stand in the columns that they come closest to.
"""

import filecmp
from pathlib import Path

from .steps import ODD_NAMES, check, lay_tree, same_trees


def _table_is_written(turn):
    turn.ask("create", table="t/a+b \u00fc")
    keys = turn.referee.keys(turn.bucket, "t/a+b \u00fc/")
    check(any(key.endswith("_delta_log/00000000000000000000.json") for key in keys), "there is no log")
    _expect_rows(turn, "t/a+b \u00fc", 1)


def _large_file_is_written(turn):
    """Random numbers, which no encoding makes smaller: 16 MB."""
    turn.ask("append_numbers", table="t/large", rows=2_000_000)
    told = turn.ask("rows", table="t/large")
    check(told == {"rows": 2_000_000, "sum": told["expected"], "expected": told["expected"]}, f"{told}")


def _one_column_is_read(turn):
    told = turn.ask("one_row", table="t/large")
    check(told["found"] == told["expected"], f"{told}")


def _appends_are_not_lost(turn):
    """24 appends of 8 writers; each creates the next file of the log if it is absent."""
    turn.ask("create", table="t/race")
    turn.ask("append_at_once", table="t/race", writers=8, appends=24)
    _expect_rows(turn, "t/race", 25)


def _versions_are_listed(turn):
    told = turn.ask("versions", table="t/race")
    check(told["versions"] == list(range(24, -1, -1)), f"versions {told['versions']}")


def _odd_partitions(turn):
    turn.ask("create_partitions", table="t/odd", values=ODD_NAMES)
    told = turn.ask("partitions", table="t/odd")
    check(sorted(told["values"]) == sorted(ODD_NAMES), f"partitions {told['values']}")


def _vacuum(turn):
    before = {key for key in turn.referee.keys(turn.bucket, "t/race/") if key.endswith(".parquet")}
    turn.ask("compact_and_vacuum", table="t/race")
    left = {key for key in turn.referee.keys(turn.bucket, "t/race/") if key.endswith(".parquet")}
    check(not (left & {key for key in before if "checkpoint" not in key}), f"{len(left & before)} files are left")
    _expect_rows(turn, "t/race", 25)


def _expect_rows(turn, table, count):
    told = turn.ask("ids", table=table)
    check(sorted(told["ids"]) == list(range(count)), f"rows are lost or twice: {sorted(told['ids'])}")


DELTA_LAKE = {
    "put": _table_is_written, "large": _large_file_is_written,
    "get": lambda turn: _expect_rows(turn, "t/a+b \u00fc", 1), "range": _one_column_is_read,
    "if absent": _appends_are_not_lost, "list": _versions_are_listed, "odd keys": _odd_partitions, "delete": _vacuum,
}


def _array_is_written(turn):
    turn.ask("create", prefix="ice/a b")
    check(turn.referee.keys(turn.bucket, "ice/a b/"), "nothing is written")


def _array_is_read(turn):
    check(turn.ask("read", prefix="ice/a b")["values"] == [1.0] * 100, "other values")


def _one_commit_wins(turn):
    """Two sessions commit to one branch, by the entity tag that they have read."""
    told = turn.ask("race", prefix="ice/a b")
    check(told["second"] == "ConflictError", f"the second commit: {told['second']}")
    values = turn.ask("read", prefix="ice/a b")["values"]
    check(values == [5.0] + [1.0] * 99, "the second commit is in, or the first is not")


ICECHUNK = {"put": _array_is_written, "get": _array_is_read, "if match": _one_commit_wins}


def _backups(turn):
    source = turn.folder / "source"
    lay_tree(source)
    turn.ask("init")
    turn.ask("backup", folder=str(source))
    turn.ask("check")


def _large_backup(turn):
    """Packs of more than one part."""
    (turn.folder / "source" / "large").write_bytes(turn.files.content["large"])
    turn.ask("backup", folder=str(turn.folder / "source"))
    turn.ask("check")


def _backup_of_a_pipe(turn):
    turn.ask("backup_pipe", file=turn.files.path("large"))
    to = turn.folder / "fetched"
    turn.ask("dump", to=str(to))
    check(filecmp.cmp(to, turn.files.path("large"), shallow=False), "the dump has other bytes")


def _restored(turn):
    to = turn.folder / "restored"
    turn.ask("restore", folder=str(turn.folder / "source"), to=str(to))
    same_trees(turn.folder / "source", Path(f"{to}{turn.folder / 'source'}"))


def _snapshots_are_listed(turn):
    check(turn.ask("snapshots")["count"] == 3, "other snapshots")


def _pruned(turn):
    before = len(turn.referee.keys(turn.bucket, "restic/data/"))
    turn.ask("forget_all_but_last")
    left = len(turn.referee.keys(turn.bucket, "restic/data/"))
    check(left < before, f"{left} packs are left of {before}")
    check(turn.referee.keys(turn.bucket, "restic/locks/") == [], "locks are left")
    turn.ask("check")


RESTIC = {
    "put": _backups, "large": _large_backup, "stream": _backup_of_a_pipe, "get": _restored,
    "list": _snapshots_are_listed, "delete": _pruned,
}
