"""Buckets: create, head, list, locate, delete."""

from datetime import datetime, timezone

import pytest
from botocore.exceptions import ClientError

from conftest import bucket_name
from expect import refused


def test_a_created_bucket_is_headed_listed_and_deleted(s3):
    name = bucket_name()

    s3.create_bucket(Bucket=name)

    s3.head_bucket(Bucket=name)
    entry = next(entry for entry in s3.list_buckets()["Buckets"] if entry["Name"] == name)
    assert abs((datetime.now(timezone.utc) - entry["CreationDate"]).total_seconds()) < 3600
    assert s3.list_objects_v2(Bucket=name)["KeyCount"] == 0
    answer = s3.delete_bucket(Bucket=name)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    with refused(404):
        s3.head_bucket(Bucket=name)
    assert name not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]


def test_buckets_are_listed_in_order_of_name(s3, new_bucket, bucket):
    names = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]

    assert {new_bucket, bucket} <= set(names)
    assert names == sorted(names)


def test_creating_an_own_bucket_again_is_harmless(s3, new_bucket):
    s3.put_object(Bucket=new_bucket, Key="kept", Body=b"kept")

    try:
        s3.create_bucket(Bucket=new_bucket)  # us-east-1 answers 200.
    except ClientError as error:
        assert error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 409

    assert s3.head_object(Bucket=new_bucket, Key="kept")["ContentLength"] == 4


def test_a_bucket_with_an_object_is_not_deleted(s3, new_bucket):
    s3.put_object(Bucket=new_bucket, Key="dir/object", Body=b"x")

    with refused(409, "BucketNotEmpty"):
        s3.delete_bucket(Bucket=new_bucket)

    assert s3.head_object(Bucket=new_bucket, Key="dir/object")["ContentLength"] == 1


def test_a_deleted_bucket_can_be_created_again_and_is_empty(s3):
    name = bucket_name()
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="object", Body=b"x")
    s3.delete_object(Bucket=name, Key="object")
    s3.delete_bucket(Bucket=name)

    s3.create_bucket(Bucket=name)

    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    s3.delete_bucket(Bucket=name)


def test_location_of_a_bucket(s3, bucket):
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] in (None, "us-east-1")


MISSING_BUCKET_OPERATIONS = {
    "list_objects_v2": {},
    "list_objects": {},
    "list_object_versions": {},
    "list_multipart_uploads": {},
    "get_bucket_location": {},
    "delete_bucket": {},
    "get_object": {"Key": "k"},
    "put_object": {"Key": "k", "Body": b"x"},
    "delete_object": {"Key": "k"},
    "delete_objects": {"Delete": {"Objects": [{"Key": "k"}]}},
    "create_multipart_upload": {"Key": "k"},
}


@pytest.mark.parametrize("operation", MISSING_BUCKET_OPERATIONS)
def test_missing_bucket_is_named_as_the_reason(s3, operation):
    with refused(404, "NoSuchBucket"):
        getattr(s3, operation)(Bucket=bucket_name(), **MISSING_BUCKET_OPERATIONS[operation])


def test_head_of_an_object_in_a_missing_bucket_is_404(s3):
    with refused(404):
        s3.head_object(Bucket=bucket_name(), Key="k")


@pytest.mark.parametrize("name", ["ab", "Upper-Case", "under_score", "-leading", "trailing-", "dot..dot", "192.168.5.4",
                                  "x" * 64])
def test_invalid_bucket_name_is_refused(s3, name):
    with refused(400, "InvalidBucketName"):
        s3.create_bucket(Bucket=name)
