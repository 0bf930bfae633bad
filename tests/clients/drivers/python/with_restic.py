import json
import os
import sys

import serve
from command import run


class Restic:
    NOT_OFFERED = {}

    def init(self, bucket):
        self._restic(bucket, "init")

    def backup(self, bucket, folder):
        self._restic(bucket, "backup", folder)

    def backup_pipe(self, bucket, file):
        with open(file, "rb") as source:
            self._restic(bucket, "backup", "--stdin", "--stdin-filename", "pipe", stdin=source)

    def dump(self, bucket, to):
        serve.write(to, self._restic(bucket, "dump", "--path", "/pipe", "latest", "/pipe"))

    def check(self, bucket):
        self._restic(bucket, "check", "--read-data")

    def restore(self, bucket, folder, to):
        self._restic(bucket, "restore", "latest", "--path", folder, "--target", to)

    def snapshots(self, bucket):
        return {"count": len(json.loads(self._restic(bucket, "snapshots", "--json")))}

    def forget_all_but_last(self, bucket):
        self._restic(bucket, "forget", "--keep-last", "1", "--group-by", "", "--prune", "--max-unused", "0")

    def _restic(self, bucket, *arguments, stdin=None):
        env = dict(os.environ, RESTIC_PASSWORD="a password", RESTIC_CACHE_DIR=os.path.join(os.getcwd(), "cache"),
                   RESTIC_REPOSITORY=f"s3:{serve.ENDPOINT}/{bucket}/restic")
        return run([sys.argv[1], "--quiet", *arguments], stdin, env)


serve.serve(Restic(), lambda error: None)
