"""Conditional reads, writes and deletes, alone and in races."""

from datetime import timedelta

import pytest
from botocore.exceptions import ClientError

from checksums import etag
from conftest import in_threads
from expect import body_of, missing, refused

STALE = etag(b"some other version")


@pytest.fixture
def stored(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"stored")
    return key


def test_if_none_match_star_creates_what_is_absent(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")

    assert body_of(s3, bucket, key) == b"first"


def test_if_none_match_star_leaves_what_exists(s3, bucket, stored):
    with refused(412, "PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key=stored, Body=b"second", IfNoneMatch="*")

    assert body_of(s3, bucket, stored) == b"stored"


def test_if_none_match_star_creates_again_after_delete(s3, bucket, stored):
    s3.delete_object(Bucket=bucket, Key=stored)

    s3.put_object(Bucket=bucket, Key=stored, Body=b"again", IfNoneMatch="*")

    assert body_of(s3, bucket, stored) == b"again"


def test_if_match_replaces_the_version_it_names(s3, bucket, stored):
    s3.put_object(Bucket=bucket, Key=stored, Body=b"next", IfMatch=etag(b"stored"))

    assert body_of(s3, bucket, stored) == b"next"


def test_if_match_leaves_any_other_version(s3, bucket, stored):
    with refused(412, "PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key=stored, Body=b"next", IfMatch=STALE)

    assert body_of(s3, bucket, stored) == b"stored"


def test_if_match_of_what_is_absent_is_404(s3, bucket, key):
    with refused(404, "NoSuchKey"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"next", IfMatch=STALE)

    assert missing(s3, bucket, key)


@pytest.mark.parametrize("operation", ["get_object", "head_object"])
class TestConditionalRead:
    def test_if_match(self, s3, bucket, stored, operation):
        read = getattr(s3, operation)

        assert read(Bucket=bucket, Key=stored, IfMatch=etag(b"stored"))["ContentLength"] == 6
        with refused(412, "PreconditionFailed"):
            read(Bucket=bucket, Key=stored, IfMatch=STALE)

    def test_if_none_match(self, s3, bucket, stored, operation):
        read = getattr(s3, operation)

        assert read(Bucket=bucket, Key=stored, IfNoneMatch=STALE)["ContentLength"] == 6
        with refused(304, "304"):
            read(Bucket=bucket, Key=stored, IfNoneMatch=etag(b"stored"))

    def test_dates(self, s3, bucket, stored, operation):
        read = getattr(s3, operation)
        modified = s3.head_object(Bucket=bucket, Key=stored)["LastModified"]
        before = modified - timedelta(days=1)

        assert read(Bucket=bucket, Key=stored, IfModifiedSince=before)["ContentLength"] == 6
        assert read(Bucket=bucket, Key=stored, IfUnmodifiedSince=modified)["ContentLength"] == 6
        with refused(304, "304"):
            read(Bucket=bucket, Key=stored, IfModifiedSince=modified)
        with refused(412, "PreconditionFailed"):
            read(Bucket=bucket, Key=stored, IfUnmodifiedSince=before)

    def test_etags_weigh_more_than_dates(self, s3, bucket, stored, operation):
        read = getattr(s3, operation)
        modified = s3.head_object(Bucket=bucket, Key=stored)["LastModified"]
        before = modified - timedelta(days=1)

        answer = read(Bucket=bucket, Key=stored, IfMatch=etag(b"stored"), IfUnmodifiedSince=before)

        assert answer["ContentLength"] == 6
        with refused(304, "304"):
            read(Bucket=bucket, Key=stored, IfNoneMatch=etag(b"stored"), IfModifiedSince=before)

    def test_absent_is_404(self, s3, bucket, key, operation):
        with refused(404, "NoSuchKey"):
            getattr(s3, operation)(Bucket=bucket, Key=key, IfMatch=STALE)


def test_conditional_delete(s3, bucket, stored):
    with refused(412, "PreconditionFailed"):
        s3.delete_object(Bucket=bucket, Key=stored, IfMatch=STALE)
    assert body_of(s3, bucket, stored) == b"stored"

    s3.delete_object(Bucket=bucket, Key=stored, IfMatch=etag(b"stored"))

    assert missing(s3, bucket, stored)


def test_racing_creators_have_exactly_one_winner_per_key(s3, bucket, prefix):
    def create(attempt):
        key, creator = attempt
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=creator.encode(), IfNoneMatch="*")
            return key, creator, 200
        except ClientError as error:
            return key, creator, error.response["ResponseMetadata"]["HTTPStatusCode"]

    keys = [f"{prefix}{n:02}" for n in range(20)]
    outcomes = in_threads(10, create, [(key, f"creator {n}") for key in keys for n in range(10)])

    assert {status for _, _, status in outcomes} <= {200, 409, 412}
    winners = [(key, creator) for key, creator, status in outcomes if status == 200]
    assert [key for key, _ in winners] == keys
    for key, creator in winners:
        assert body_of(s3, bucket, key) == creator.encode()


def test_racing_increments_lose_no_update(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"0")

    def increment(_):
        for _ in range(200):
            got = s3.get_object(Bucket=bucket, Key=key)
            following = int(got["Body"].read()) + 1
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=str(following).encode(), IfMatch=got["ETag"])
                return following
            except ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412)
        pytest.fail("200 attempts and no success")

    reached = in_threads(6, increment, range(30))

    assert sorted(reached) == list(range(1, 31))
    assert body_of(s3, bucket, key) == b"30"
