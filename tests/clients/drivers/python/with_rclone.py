import json
import os
import sys
import tempfile
from pathlib import Path

import serve
from command import run

REMOTE = "door"
# Nothing between the commands and the requests that does more than they say.
ENV = dict(
    os.environ, RCLONE_CONFIG="/dev/null", RCLONE_CONFIG_DOOR_TYPE="s3", RCLONE_CONFIG_DOOR_PROVIDER="Other",
    RCLONE_CONFIG_DOOR_ENDPOINT=serve.ENDPOINT, RCLONE_CONFIG_DOOR_ACCESS_KEY_ID=serve.ACCESS_KEY,
    RCLONE_CONFIG_DOOR_SECRET_ACCESS_KEY=serve.SECRET_KEY, RCLONE_CONFIG_DOOR_REGION=serve.REGION,
    RCLONE_CONFIG_DOOR_NO_CHECK_BUCKET="true")


class Rclone:
    NOT_OFFERED = {
        "put_if_absent": "no conditions", "put_if_match": "no conditions",
        "give_up": "it reads a pipe whose end looks the same as its failure", "presign_put": "`link` is for reading",
    }

    def odd_names_without(self, bucket):
        return {"names": ["a//b", "//", "folder/"], "why": "it takes a name for the path of a file"}

    def put(self, bucket, key, file):
        self._rclone("copyto", file, _at(bucket, key), "--s3-upload-cutoff=8M", "--no-traverse")

    def put_stream(self, bucket, key, file):
        with open(file, "rb") as source:
            self._rclone("rcat", _at(bucket, key), stdin=source)

    def get(self, bucket, key, to):
        self._rclone("copyto", _at(bucket, key), to)

    def range(self, bucket, key, offset, length, to):
        serve.write(to, self._rclone("cat", _at(bucket, key), f"--offset={offset}", f"--count={length}"))

    def head(self, bucket, key):
        told = json.loads(self._rclone("lsjson", "--stat", "--hash", _at(bucket, key)))
        if told["IsDir"]:
            # What is not there may be a folder: on S3 those need nothing to be.
            raise FileNotFoundError(key)
        return {"size": told["Size"], "etag": told["Hashes"]["md5"]}

    def list(self, bucket, prefix, page):
        return {"keys": self._listed(bucket, prefix, "--recursive", "--files-only", f"--s3-list-chunk={page}")}

    def list_folder(self, bucket, prefix):
        return {"keys": self._listed(bucket, prefix, "--files-only"),
                "folders": self._listed(bucket, prefix, "--dirs-only")}

    def _listed(self, bucket, prefix, *options):
        listed = json.loads(self._rclone("lsjson", "--no-modtime", *options, _at(bucket, prefix)))
        return [prefix + entry["Path"] for entry in listed]

    def copy(self, bucket, key, to):
        self._rclone("copyto", _at(bucket, key), _at(bucket, to))

    def delete(self, bucket, key):
        self._rclone("deletefile", _at(bucket, key))

    def delete_many(self, bucket, keys, prefix):
        self._rclone("delete", _at(bucket, prefix))

    def delete_some(self, bucket, keys):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
            names.write("".join(f"{key}\n" for key in keys))
            names.flush()
            self._rclone("delete", _at(bucket, ""), f"--files-from-raw={names.name}")

    def multipart(self, bucket, key, file, part_bytes):
        self._rclone("copyto", file, _at(bucket, key), "--s3-upload-cutoff=0", f"--s3-chunk-size={part_bytes}B")

    def abort(self, bucket, key, upload):
        told = json.loads(self._rclone("backend", "list-multipart-uploads", _at(bucket, "")))
        if upload not in json.dumps(told):
            raise RuntimeError(f"{told}")
        self._rclone("backend", "cleanup", _at(bucket, ""), "-o", "max-age=0s")

    def sync_up(self, bucket, folder, prefix):
        self._rclone("sync", folder, _at(bucket, prefix), "--s3-upload-cutoff=8M")
        self._rclone("check", "--download", folder, _at(bucket, prefix))

    def sync_down(self, bucket, prefix, to):
        self._rclone("sync", _at(bucket, prefix), to)

    def presign_get(self, bucket, key, seconds):
        return {"url": self._rclone("link", _at(bucket, key), f"--expire={seconds}s").decode().strip()}

    def _rclone(self, *arguments, stdin=None):
        return run([sys.argv[1], "--retries=1", "--low-level-retries=1", *arguments], stdin, ENV)


def _at(bucket, key):
    return f"{REMOTE}:{bucket}/{key}"


def kind_of(error):
    if isinstance(error, FileNotFoundError):
        return "missing"
    # Its statuses of a folder and of a file that is not there; `copyto` has a text alone.
    if getattr(error, "status", None) in (3, 4) or "Source doesn't exist" in getattr(error, "said", ""):
        return "missing"


serve.serve(Rclone(), kind_of)
