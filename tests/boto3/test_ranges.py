"""Ranged reads."""

import random

import pytest
from botocore.exceptions import ClientError

from checksums import etag
from expect import body_of, refused

DATA = random.Random(7).randbytes(300_000)
SIZE = len(DATA)


@pytest.fixture
def stored(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=DATA)
    return key


SATISFIABLE = {
    "first byte": ("bytes=0-0", 0, 1),
    "middle": ("bytes=1000-200000", 1000, 200_001),
    "to the end": ("bytes=299000-", 299_000, SIZE),
    "whole": ("bytes=0-", 0, SIZE),
    "suffix": ("bytes=-17", SIZE - 17, SIZE),
    "end is clamped": ("bytes=299990-400000", 299_990, SIZE),
    "suffix longer than the object": ("bytes=-400000", 0, SIZE),
    "last byte": (f"bytes={SIZE - 1}-{SIZE - 1}", SIZE - 1, SIZE),
}


@pytest.mark.parametrize("asked, start, end", SATISFIABLE.values(), ids=SATISFIABLE.keys())
def test_a_range_is_answered_with_206(s3, bucket, stored, asked, start, end):
    got = s3.get_object(Bucket=bucket, Key=stored, Range=asked)

    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["Body"].read() == DATA[start:end]
    assert got["ContentRange"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert got["ContentLength"] == end - start
    assert got["ETag"] == etag(DATA)


def test_head_of_a_range_has_its_length(s3, bucket, stored):
    head = s3.head_object(Bucket=bucket, Key=stored, Range="bytes=10-19")

    assert head["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert head["ContentLength"] == 10


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 10}", "bytes=-0"])
def test_a_range_without_bytes_is_416(s3, bucket, stored, asked):
    with refused(416, "InvalidRange"):
        s3.get_object(Bucket=bucket, Key=stored, Range=asked)


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=0-9"])
def test_an_empty_object_has_no_ranges(s3, bucket, key, asked):
    s3.put_object(Bucket=bucket, Key=key, Body=b"")

    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key=key, Range=asked)

    assert error.value.response["Error"]["Code"] == "InvalidRange"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 416
    # Clients that read in ranges alone learn from it that the object is empty.
    assert error.value.response["Error"]["ActualObjectSize"] == "0"
    assert error.value.response["ResponseMetadata"]["HTTPHeaders"]["content-range"] == "bytes */0"


@pytest.mark.parametrize("asked", ["bytes=abc", "items=0-1", "bytes=9-2", "bytes=-", "bytes"])
def test_a_range_that_makes_no_sense_is_ignored(s3, bucket, stored, asked):
    got = s3.get_object(Bucket=bucket, Key=stored, Range=asked)

    assert got["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert got["Body"].read() == DATA


def test_several_ranges_at_once_are_not_supported_and_read_as_the_whole(s3, bucket, stored):
    got = s3.get_object(Bucket=bucket, Key=stored, Range="bytes=0-1,10-11")

    assert got["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert got["Body"].read() == DATA


def test_a_ranged_read_holds_on_to_one_version_by_if_match(s3, bucket, stored):
    old = s3.head_object(Bucket=bucket, Key=stored)["ETag"]
    assert body_of(s3, bucket, stored, Range="bytes=5-9", IfMatch=old) == DATA[5:10]
    s3.put_object(Bucket=bucket, Key=stored, Body=b"another version")

    with refused(412, "PreconditionFailed"):
        s3.get_object(Bucket=bucket, Key=stored, Range="bytes=5-9", IfMatch=old)


def test_a_ranged_read_of_what_the_reader_has_is_304(s3, bucket, stored):
    with refused(304, "304"):
        s3.get_object(Bucket=bucket, Key=stored, Range="bytes=5-9", IfNoneMatch=etag(DATA))


def test_no_checksum_of_the_whole_comes_with_a_range(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"0123456789", ChecksumAlgorithm="CRC32")

    got = s3.get_object(Bucket=bucket, Key=key, Range="bytes=2-4", ChecksumMode="ENABLED")

    assert got["Body"].read() == b"234"
    assert "ChecksumCRC32" not in got


def test_missing_object_with_a_range_is_404(s3, bucket, key):
    with refused(404, "NoSuchKey"):
        s3.get_object(Bucket=bucket, Key=key, Range="bytes=0-1")
