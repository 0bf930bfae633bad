"""Multipart uploads across a restart of the daemon, as a Flink file sink resumes them from its checkpoint."""

import contextlib
import json
import os
import subprocess
import time

import pytest

from checksums import checksum, multipart_etag
from conftest import Server
from expect import body_of

PART_MIN = 5 << 20
STOP_SECONDS = 30


class Daemon:
    """A daemon of the test's own, on a directory of its own."""

    def __init__(self, directory, environment=None):
        self.directory = directory
        self.environment = environment or {}
        self.process = None

    def start(self):
        """Starts it and returns a client and its bucket."""
        server = self.start_server()
        return server.client(retries={"total_max_attempts": 1, "mode": "standard"}), server.bucket

    def start_server(self):
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        command = [os.environ["ESKER_BIN"], "dev", "--data-dir", self.directory / "data", "--s3", "127.0.0.1:0",
                   "--api", "127.0.0.1:0", "--ready-file", ready]
        with open(self.directory / "esker.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.environment})
        deadline = time.monotonic() + STOP_SECONDS
        while not (ready.exists() and ready.stat().st_size):
            assert self.process.poll() is None and time.monotonic() < deadline, "esker did not start"
            time.sleep(0.05)
        told = json.loads(ready.read_text())
        return Server(told["s3"], told["access_key"], told["secret_key"], told["bucket"], told["api"])

    def stop(self, kill):
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(STOP_SECONDS)

    def restart(self, kill):
        self.stop(kill)
        return self.start()


@pytest.fixture
def daemon(tmp_path):
    if "ESKER_BIN" not in os.environ:
        pytest.skip("ESKER_BIN names no daemon to restart")
    daemon = Daemon(tmp_path)
    yield daemon
    with contextlib.suppress(ProcessLookupError):
        daemon.stop(kill=True)


@pytest.mark.esker
@pytest.mark.parametrize("kill", [False, True], ids=["stop", "kill"])
def test_an_upload_goes_on_after_a_restart(daemon, kill):
    s3, bucket = daemon.start()
    where = {"Bucket": bucket, "Key": "out/2026-11-28--22/part-0-0"}
    upload = s3.create_multipart_upload(**where, ContentType="text/plain", ChecksumAlgorithm="CRC32")["UploadId"]
    s3, bucket = daemon.restart(kill)
    bodies = [b"a" * PART_MIN, b"b" * 1000]
    parts = []
    for number, body in enumerate(bodies, 1):
        answer = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]})

    s3, bucket = daemon.restart(kill)

    listed = s3.list_multipart_uploads(Bucket=bucket, Prefix="out/")["Uploads"]
    assert [(entry["Key"], entry["UploadId"]) for entry in listed] == [(where["Key"], upload)]
    there = s3.list_parts(**where, UploadId=upload)["Parts"]
    assert [{name: part[name] for name in ("PartNumber", "ETag", "ChecksumCRC32")} for part in there] == parts
    done = s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    s3, bucket = daemon.restart(kill)
    again = s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    assert done["ETag"] == again["ETag"] == multipart_etag(bodies)
    assert done["ChecksumCRC32"] == again["ChecksumCRC32"]
    assert body_of(s3, bucket, where["Key"]) == b"".join(bodies)
    assert s3.head_object(**where)["ContentType"] == "text/plain"


@pytest.mark.esker
def test_default_checksums_are_there_after_a_kill(daemon):
    plain = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    s3 = daemon.start_server().client(**plain)
    bucket = s3.list_buckets()["Buckets"][0]["Name"]
    put, where = {"Bucket": bucket, "Key": "plain"}, {"Bucket": bucket, "Key": "out/2026-11-28--22/part-0-0"}
    s3.put_object(**put, Body=b"some state")
    upload = s3.create_multipart_upload(**where)["UploadId"]
    bodies, parts = [bytes(PART_MIN), b"some state"], []
    for number, body in enumerate(bodies, 1):
        daemon.stop(kill=True)
        s3 = daemon.start_server().client(**plain)
        answer = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    assert answer["ChecksumCRC64NVME"] == checksum("CRC64NVME", b"some state")

    done = s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})

    daemon.stop(kill=True)
    s3 = daemon.start_server().client(**plain)
    told = [s3.head_object(**of, ChecksumMode="ENABLED")["ChecksumCRC64NVME"] for of in (put, where)]
    assert told == [answer["ChecksumCRC64NVME"], done["ChecksumCRC64NVME"]]
    assert done["ChecksumCRC64NVME"] == "QJpZIeTm0Ho="
