import re
import sys
from pathlib import Path

import serve
from command import run

# Not by its first line: that names the interpreter from where the environment was made.
PROGRAM = [sys.executable, str(Path(sys.prefix) / "bin" / "s3cmd")]


class S3cmd:
    NOT_OFFERED = {
        "range": "it reads whole objects", "put_if_absent": "no conditions", "put_if_match": "no conditions",
        "give_up": "it reads a pipe whose end looks the same as its failure",
    }

    def __init__(self):
        self.config = Path.cwd() / "s3cmd.cfg"
        self.config.write_text(
            f"[default]\naccess_key = {serve.ACCESS_KEY}\nsecret_key = {serve.SECRET_KEY}\nhost_base = {serve.HOST}\n"
            f"host_bucket = {serve.HOST}\nuse_https = False\nbucket_location = {serve.REGION}\n")

    def odd_names_without(self, bucket):
        return {"names": ["folder/", "//", "star*[x]{y}|^`"],
                "why": "it takes a slash at the end for a folder, and expands `*`"}

    def put(self, bucket, key, file):
        self._s3cmd("put", file, f"s3://{bucket}/{key}")

    def put_stream(self, bucket, key, file):
        with open(file, "rb") as source:
            self._s3cmd("put", "-", f"s3://{bucket}/{key}", stdin=source)

    def get(self, bucket, key, to):
        self._s3cmd("get", "--force", f"s3://{bucket}/{key}", to)

    def head(self, bucket, key):
        told = self._s3cmd("info", f"s3://{bucket}/{key}")
        return {"size": int(re.search(r"File size: (\d+)", told)[1]), "etag": re.search(r"MD5 sum: +(\S+)", told)[1]}

    def list(self, bucket, prefix, page):
        return {"keys": self._listed(bucket, prefix, "--recursive")}

    def list_folder(self, bucket, prefix):
        listed = self._listed(bucket, prefix)
        return {"keys": [key for key in listed if not key.endswith("/")],
                "folders": [key for key in listed if key.endswith("/")]}

    def _listed(self, bucket, prefix, *options):
        root = f"s3://{bucket}/"
        lines = self._s3cmd("ls", *options, root + prefix).splitlines()
        return [line[line.index(root) + len(root):] for line in lines]

    def copy(self, bucket, key, to):
        self._s3cmd("cp", f"s3://{bucket}/{key}", f"s3://{bucket}/{to}")

    def delete(self, bucket, key):
        self._s3cmd("del", f"s3://{bucket}/{key}")

    def delete_many(self, bucket, keys, prefix):
        self._s3cmd("del", "--recursive", "--force", f"s3://{bucket}/{prefix}")

    def delete_some(self, bucket, keys):
        self._s3cmd("del", *(f"s3://{bucket}/{key}" for key in keys))

    def multipart(self, bucket, key, file, part_bytes):
        self._s3cmd("put", f"--multipart-chunk-size-mb={part_bytes // serve.MIB}", file, f"s3://{bucket}/{key}")

    def abort(self, bucket, key, upload):
        told = self._s3cmd("multipart", f"s3://{bucket}")
        if f"s3://{bucket}/{key}\t{upload}" not in told:
            raise RuntimeError(told)
        self._s3cmd("abortmp", f"s3://{bucket}/{key}", upload)

    def sync_up(self, bucket, folder, prefix):
        self._s3cmd("sync", "--delete-removed", f"{folder}/", f"s3://{bucket}/{prefix}")

    def sync_down(self, bucket, prefix, to):
        Path(to).mkdir()
        self._s3cmd("sync", f"s3://{bucket}/{prefix}", f"{to}/")

    def presign_get(self, bucket, key, seconds):
        return {"url": self._s3cmd("signurl", f"s3://{bucket}/{key}", f"+{seconds}").strip()}

    def presign_put(self, bucket, key, seconds):
        return self.presign_get(bucket, key, seconds)

    def _s3cmd(self, *arguments, stdin=None):
        return run([*PROGRAM, "-c", str(self.config), "--no-progress", *arguments], stdin).decode()


S3cmd.NOT_OFFERED |= {
    "presign_get": "it presigns with version 2 of the signature, which Esker refuses",
    "presign_put": "it presigns with version 2 of the signature, which Esker refuses",
}


def kind_of(error):
    # Its status of a 404; `get` has a text alone.
    if getattr(error, "status", None) == 12 or "does not exist" in getattr(error, "said", ""):
        return "missing"


serve.serve(S3cmd(), kind_of)
