"""A checkpoint as Flink lays it out: many small objects at once, then one `_metadata`."""

import random
import re
import urllib.request
import uuid

import pytest

from conftest import in_threads
from expect import body_of, missing
from rawhttp import TIMEOUT_SECONDS

OBJECTS = 257
WRITERS = 64


@pytest.fixture
def checkpoint():
    """Keys and bodies of one checkpoint of one job, without its `_metadata`."""
    random_bytes = random.Random(29)
    directory = f"jobs/{uuid.uuid4().hex}/chk-1/"
    return directory, {directory + str(uuid.uuid4()): random_bytes.randbytes(random_bytes.randrange(500, 60_000))
                       for _ in range(OBJECTS)}


def store(s3, bucket, bodies):
    in_threads(WRITERS, lambda key: s3.put_object(Bucket=bucket, Key=key, Body=bodies[key]), bodies)


def store_metadata(s3, bucket, key, body):
    """As the hadoop and native plugins do: a multipart upload of one part."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    part = s3.upload_part(**where, PartNumber=1, Body=body)
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})


def test_a_checkpoint_is_written_restored_and_discarded(stock_s3, bucket, checkpoint):
    directory, bodies = checkpoint
    metadata = "\n".join(bodies).encode()

    store(stock_s3, bucket, bodies)
    store_metadata(stock_s3, bucket, directory + "_metadata", metadata)

    listed = stock_s3.list_objects_v2(Bucket=bucket, Prefix=directory)["Contents"]
    assert [entry["Key"] for entry in listed] == sorted([*bodies, directory + "_metadata"])
    assert body_of(stock_s3, bucket, directory + "_metadata") == metadata
    restored = in_threads(WRITERS, lambda key: body_of(stock_s3, bucket, key), bodies)
    assert restored == list(bodies.values())

    in_threads(WRITERS, lambda key: stock_s3.delete_object(Bucket=bucket, Key=key), [*bodies, directory + "_metadata"])

    assert stock_s3.list_objects_v2(Bucket=bucket, Prefix=directory)["KeyCount"] == 0
    assert missing(stock_s3, bucket, next(iter(bodies)))


def physical_files_created(api):
    with urllib.request.urlopen(f"{api}/metrics", timeout=TIMEOUT_SECONDS) as response:
        text = response.read().decode()
    samples = re.findall(r"^esker_physical_files_created_total(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    assert samples, "there is no metric esker_physical_files_created_total"
    return sum(float(sample) for sample in samples)


@pytest.mark.esker
def test_a_checkpoint_becomes_a_handful_of_physical_files(server, stock_s3, bucket, checkpoint):
    directory, bodies = checkpoint
    before = physical_files_created(server.api)

    store(stock_s3, bucket, bodies)
    store_metadata(stock_s3, bucket, directory + "_metadata", b"metadata")

    assert physical_files_created(server.api) - before <= 5
    restored = in_threads(WRITERS, lambda key: body_of(stock_s3, bucket, key), bodies)
    assert restored == list(bodies.values())
