"""What Esker says of the job's checkpoints, compared with what Flink's own reader says."""

import json
import subprocess

from .processes import Failed

ORPHANS_SECONDS = 120
COMMAND_SECONDS = 120


class Audit:
    def __init__(self, story, storage):
        self.story, self.storage = story, storage

    def check(self, claimed=None, ended=()):
        """Every checkpoint names what Flink's own reader finds in it, and is complete but for what an interrupted discard left.

        When the storage is killed while Flink discards a checkpoint, its `_metadata` may stay without what it names. A newer
        one is complete then, unless the job is one of those that have `ended`: these have discarded all of them. Of a job one
        of whose checkpoints was claimed, as the path `claimed` says, the others miss what the claiming job has discarded.
        """
        checkpoints = self._lines("audit", "--names", may_find=True)
        newest = {checkpoint["folder"]: checkpoint["checkpoint"] for checkpoint in
                  sorted(checkpoints, key=lambda checkpoint: checkpoint["checkpoint"]) if not _is_wrong(checkpoint)}
        for checkpoint in filter(_is_wrong, checkpoints):
            if claimed and claimed.rsplit("/", 1)[0].endswith(checkpoint["folder"]):
                continue
            if any(checkpoint["folder"].endswith(job.id) for job in ended):
                continue
            if checkpoint["checkpoint"] >= newest.get(checkpoint["folder"], 0):
                raise Failed(f"the newest checkpoint cannot be restored: {checkpoint}")
        for checkpoint in checkpoints:
            told = {(part["bucket"], part["key"], part["start"], part["len"]) for part in checkpoint.get("named", [])}
            expected = self._read_by_flink(checkpoint)
            if told != expected:
                raise Failed(f"esker audit and Flink differ in {checkpoint['key']}: "
                             f"{sorted(told - expected)[:3]} and {sorted(expected - told)[:3]}")
        named = sum(len(checkpoint.get("named", [])) for checkpoint in checkpoints)
        self.story.say(f"audited {len(checkpoints)} checkpoints, which name {named} parts of objects as Flink says")
        return checkpoints

    def check_and_clean(self):
        """The same; and what no checkpoint names is deleted. Returns how many objects that were."""
        if not self.check():
            raise Failed("esker audit finds no checkpoint, and the job has kept one")
        deleted = self._end("--older-than", "0s", "--delete", "--risk-running-checkpoints")["deleted"]
        left = self._end("--older-than", "0s")["orphans"]
        if left:
            raise Failed(f"esker orphans --delete has left {left}")
        self.check()
        self.story.say(f"deleted {deleted} orphans")
        return deleted

    def await_no_orphans(self, job):
        """A job that nobody has killed has none but for what Flink is about to delete."""
        self.story.processes.until(
            "the job to have no orphans", ORPHANS_SECONDS,
            lambda: self._end("--older-than", "0s", "--job", job.id)["orphans"] == 0, every=0.2)

    def _end(self, *arguments):
        lines = self._lines("orphans", *arguments)
        return lines[-1]["end"]

    def _lines(self, command, *arguments, may_find=False):
        done = subprocess.run(
            [self.storage.program, command, *arguments, "--json", "--api", self.storage.api],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=COMMAND_SECONDS)
        if done.returncode not in ([0, 1] if may_find else [0]):
            raise Failed(f"`esker {command}` ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _read_by_flink(self, checkpoint):
        """Has Flink read a _metadata. Relative paths are below its folder."""
        bucket, key = checkpoint["bucket"], checkpoint["key"]
        copy = self.story.folder / "metadata"
        copy.write_bytes(self.storage.client.read(bucket, key))
        done = subprocess.run(
            ["java", "-cp", f"{self.story.tools.flink_home / 'lib'}/*:{self.story.jar}", "esker.flink.MetadataNames",
             copy],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=COMMAND_SECONDS)
        if done.returncode != 0:
            raise Failed(f"Flink cannot read {key}:\n{done.stderr}")
        first, *lines = done.stdout.splitlines()
        if first != f"checkpoint\t{checkpoint['checkpoint']}":
            raise Failed(f"{key} is of {first} and not of {checkpoint['checkpoint']}")
        return {_part(bucket, key, line) for line in lines}


def _is_wrong(checkpoint):
    return checkpoint["missing"] > 0 or "unreadable" in checkpoint


def _part(bucket, key, line):
    kind, path, start, length = line.split("\t")
    if kind == "relative":
        return bucket, f"{key.rsplit('/', 1)[0]}/{path}", int(start), int(length)
    bucket, path = path.removeprefix("s3://").split("/", 1)
    return bucket, path, int(start), int(length)
