"""The AWS CLI, in one process: its main function is called with the arguments of each command."""

import io
import json
import os
import re
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from awscli.clidriver import create_clidriver

import serve


class CommandFailed(Exception):
    pass


class AwsCli:
    NOT_OFFERED = {
        "odd_names_without": "all",
        "give_up": "`aws s3 cp -` reads a pipe whose end looks the same as its failure",
        "presign_put": "`aws s3 presign` is for reading",
    }

    driver = None

    def __init__(self):
        # It presigns with version 2 of the signature unless it is told so.
        config = Path.cwd() / "config"
        config.write_text("[default]\ns3 =\n  signature_version = s3v4\n")
        os.environ["AWS_CONFIG_FILE"] = str(config)

    def put(self, bucket, key, file):
        self._aws("s3", "cp", file, f"s3://{bucket}/{key}") if not _is_folder(key) else self._put(bucket, key, file)

    def put_stream(self, bucket, key, file):
        with open(file, "rb") as source:
            self._aws("s3", "cp", "-", f"s3://{bucket}/{key}", stdin=source)

    def get(self, bucket, key, to):
        if _is_folder(key):
            self._aws("s3api", "get-object", "--bucket", bucket, f"--key={key}", to)
        else:
            self._aws("s3", "cp", f"s3://{bucket}/{key}", to)

    def range(self, bucket, key, offset, length, to):
        self._aws("s3api", "get-object", "--bucket", bucket, "--key", key,
                  "--range", f"bytes={offset}-{offset + length - 1}", to)

    def head(self, bucket, key):
        told = self._json("head-object", "--bucket", bucket, "--key", key)
        return {"size": told["ContentLength"], "etag": told["ETag"]}

    def list(self, bucket, prefix, page):
        told = self._json("list-objects-v2", "--bucket", bucket, "--prefix", prefix, "--page-size", str(page))
        return {"keys": [entry["Key"] for entry in told["Contents"]]}

    def list_folder(self, bucket, prefix):
        lines = self._aws("s3", "ls", f"s3://{bucket}/{prefix}").splitlines()
        folders = [line.strip().removeprefix("PRE ") for line in lines if line.strip().startswith("PRE ")]
        names = [re.match(r"\S+ \S+ +\d+ (.*)", line)[1] for line in lines if not line.strip().startswith("PRE ")]
        return {"keys": [prefix + name for name in names], "folders": [prefix + folder for folder in folders]}

    def copy(self, bucket, key, to):
        self._aws("s3", "cp", f"s3://{bucket}/{key}", f"s3://{bucket}/{to}")

    def put_if_absent(self, bucket, key, file):
        return self._put(bucket, key, file, "--if-none-match", "*")

    def put_if_match(self, bucket, key, file, etag):
        return self._put(bucket, key, file, "--if-match", etag)

    def _put(self, bucket, key, file, *more):
        return {"etag": self._json("put-object", "--bucket", bucket, f"--key={key}", "--body", file, *more)["ETag"]}

    def delete(self, bucket, key):
        self._aws("s3", "rm", f"s3://{bucket}/{key}")

    def delete_many(self, bucket, keys, prefix):
        self.delete_some(bucket, keys)

    def delete_some(self, bucket, keys):
        with tempfile.TemporaryDirectory() as folder:
            what = Path(folder) / "what.json"
            what.write_text(json.dumps({"Objects": [{"Key": key} for key in keys]}))
            told = self._json("delete-objects", "--bucket", bucket, "--delete", f"file://{what}")
        deleted = sorted(entry["Key"] for entry in told["Deleted"])
        if told.get("Errors") or deleted != sorted(keys):
            raise RuntimeError(f"{told.get('Errors')} {deleted}")

    def multipart(self, bucket, key, file, part_bytes):
        where = ("--bucket", bucket, "--key", key)
        upload = self._json("create-multipart-upload", *where)["UploadId"]
        content, parts = serve.read(file), []
        with tempfile.TemporaryDirectory() as folder:
            for number, at in enumerate(range(0, len(content), part_bytes), 1):
                part = Path(folder) / "part"
                part.write_bytes(content[at:at + part_bytes])
                told = self._json("upload-part", *where, "--upload-id", upload, "--part-number", str(number),
                                  "--body", str(part))
                parts.append({"PartNumber": number, "ETag": told["ETag"]})
        told = self._json("complete-multipart-upload", *where, "--upload-id", upload,
                          "--multipart-upload", json.dumps({"Parts": parts}))
        return {"etag": told["ETag"]}

    def abort(self, bucket, key, upload):
        told = self._json("list-multipart-uploads", "--bucket", bucket)["Uploads"]
        if [(entry["Key"], entry["UploadId"]) for entry in told] != [(key, upload)]:
            raise RuntimeError(f"{told}")
        self._aws("s3api", "abort-multipart-upload", "--bucket", bucket, "--key", key, "--upload-id", upload)

    def sync_up(self, bucket, folder, prefix):
        self._aws("s3", "sync", "--delete", folder, f"s3://{bucket}/{prefix}")

    def sync_down(self, bucket, prefix, to):
        self._aws("s3", "sync", f"s3://{bucket}/{prefix}", to)

    def presign_get(self, bucket, key, seconds):
        return {"url": self._aws("s3", "presign", f"s3://{bucket}/{key}", "--expires-in", str(seconds)).strip()}

    def _json(self, *arguments):
        return json.loads(self._aws("s3api", *arguments, "--output", "json"))

    def _aws(self, *arguments, stdin=None):
        # A driver remembers the output file of `get-object` for all that follows. One takes long to make.
        if self.driver is None or arguments[:2] == ("s3api", "get-object"):
            self.driver = create_clidriver()
        try:
            return self._run(arguments, stdin)
        finally:
            if arguments[:2] == ("s3api", "get-object"):
                self.driver = None

    def _run(self, arguments, stdin):
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        before = sys.stdin
        if stdin:
            sys.stdin = io.TextIOWrapper(stdin)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = self.driver.main([*arguments, "--endpoint-url", serve.ENDPOINT])
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.stdin = before
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        if status:
            raise CommandFailed(f"aws {' '.join(arguments)}: {status} {texts[1]}")
        return texts[0]


def _is_folder(key):
    """`aws s3 cp` takes a name with a slash at its end for that of a folder."""
    return key.endswith("/")


def kind_of(error):
    if "PreconditionFailed" in str(error):
        return "precondition"
    if "(404)" in str(error) or "NoSuchKey" in str(error):
        return "missing"


serve.serve(AwsCli(), kind_of)
