"""CopyObject."""

from urllib.parse import quote

import pytest

from checksums import etag
from conftest import bucket_name
from expect import body_of, missing, refused

DATA = b"copied state " * 5000


@pytest.fixture
def source(s3, bucket, prefix):
    key = prefix + "source"
    s3.put_object(Bucket=bucket, Key=key, Body=DATA, Metadata={"job": "orders"}, ContentType="text/plain",
                  CacheControl="no-cache")
    return {"Bucket": bucket, "Key": key}


def test_a_copy_has_the_body_and_the_metadata(s3, bucket, prefix, source):
    answer = s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource=source)

    copy = s3.get_object(Bucket=bucket, Key=prefix + "copy")
    assert copy["Body"].read() == DATA
    assert copy["Metadata"] == {"job": "orders"}
    assert (copy["ContentType"], copy["CacheControl"]) == ("text/plain", "no-cache")
    assert answer["CopyObjectResult"]["ETag"] == copy["ETag"] == etag(DATA)
    assert answer["CopyObjectResult"]["LastModified"]


def test_directive_copy_ignores_new_metadata(s3, bucket, prefix, source):
    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource=source, MetadataDirective="COPY",
                   Metadata={"job": "other"}, ContentType="text/other")

    copy = s3.head_object(Bucket=bucket, Key=prefix + "copy")
    assert (copy["Metadata"], copy["ContentType"]) == ({"job": "orders"}, "text/plain")


def test_directive_replace_takes_new_metadata_only(s3, bucket, prefix, source):
    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource=source, MetadataDirective="REPLACE",
                   Metadata={"table": "t"}, ContentType="text/other")

    copy = s3.head_object(Bucket=bucket, Key=prefix + "copy")
    assert (copy["Metadata"], copy["ContentType"]) == ({"table": "t"}, "text/other")
    assert "CacheControl" not in copy


def test_a_copy_onto_itself_replaces_metadata(s3, bucket, source):
    s3.copy_object(Bucket=bucket, Key=source["Key"], CopySource=source, MetadataDirective="REPLACE",
                   Metadata={"version": "2"})

    got = s3.get_object(**source)
    assert got["Body"].read() == DATA
    assert got["Metadata"] == {"version": "2"}


def test_a_copy_onto_itself_that_changes_nothing_is_refused(s3, bucket, source):
    with refused(400, "InvalidRequest"):
        s3.copy_object(Bucket=bucket, Key=source["Key"], CopySource=source)

    assert body_of(s3, **{"bucket": bucket, "key": source["Key"]}) == DATA


def test_a_copy_replaces_what_was_there(s3, bucket, prefix, source):
    s3.put_object(Bucket=bucket, Key=prefix + "copy", Body=b"old", Metadata={"old": "1"})

    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource=source)

    got = s3.get_object(Bucket=bucket, Key=prefix + "copy")
    assert (got["Body"].read(), got["Metadata"]) == (DATA, {"job": "orders"})


def test_a_copy_into_another_bucket_and_back(s3, bucket, prefix, new_bucket, source):
    s3.copy_object(Bucket=new_bucket, Key="there", CopySource=source)
    s3.delete_object(**source)
    s3.copy_object(Bucket=bucket, Key=prefix + "back", CopySource={"Bucket": new_bucket, "Key": "there"})

    assert body_of(s3, new_bucket, "there") == body_of(s3, bucket, prefix + "back") == DATA


def test_a_copy_outlives_its_source_and_the_source_its_copy(s3, bucket, prefix, source):
    first, second = prefix + "first", prefix + "second"
    s3.copy_object(Bucket=bucket, Key=first, CopySource=source)
    s3.delete_object(**source)
    s3.copy_object(Bucket=bucket, Key=second, CopySource={"Bucket": bucket, "Key": first})
    s3.put_object(Bucket=bucket, Key=first, Body=b"overwritten")

    assert missing(s3, bucket, source["Key"])
    assert body_of(s3, bucket, second) == DATA
    s3.delete_object(Bucket=bucket, Key=second)
    assert body_of(s3, bucket, first) == b"overwritten"


def test_a_rename_chain_as_s3a_does_it(s3, bucket, prefix, source):
    current = source["Key"]
    for step in range(5):
        following = f"{prefix}renamed-{step}"
        s3.copy_object(Bucket=bucket, Key=following, CopySource={"Bucket": bucket, "Key": current})
        s3.delete_object(Bucket=bucket, Key=current)
        current = following

    assert body_of(s3, bucket, current) == DATA
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in listed] == [current]


@pytest.mark.parametrize("spelling", ["bucket/key", "/bucket/key", "encoded", "version null"])
def test_spellings_of_the_copy_source(raw, s3, bucket, prefix, spelling):
    key = prefix + "with space+ü"
    s3.put_object(Bucket=bucket, Key=key, Body=DATA)
    value = {
        "bucket/key": f"{bucket}/{quote(key)}",
        "/bucket/key": f"/{bucket}/{quote(key)}",
        "encoded": quote(f"{bucket}/{key}", safe=""),
        "version null": f"{bucket}/{quote(key)}?versionId=null",
    }[spelling]

    response = raw.send(raw.signed("PUT", bucket, prefix + "copy", headers={"x-amz-copy-source": value}))

    assert response.status == 200
    assert body_of(s3, bucket, prefix + "copy") == DATA


def test_a_missing_source_is_404_and_leaves_nothing(s3, bucket, prefix):
    with refused(404, "NoSuchKey"):
        s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource={"Bucket": bucket, "Key": prefix + "absent"})
    with refused(404, "NoSuchBucket"):
        s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource={"Bucket": bucket_name(), "Key": "absent"})

    assert missing(s3, bucket, prefix + "copy")


def test_a_copy_source_that_names_nothing_is_refused(raw, s3, bucket, key):
    for value in ("/", "no-key", "%zz"):
        response = raw.send(raw.signed("PUT", bucket, key, headers={"x-amz-copy-source": value}))
        assert 400 <= response.status < 500
    assert missing(s3, bucket, key)


def test_conditions_on_the_source(s3, bucket, prefix, source):
    copy = {"Bucket": bucket, "Key": prefix + "copy", "CopySource": source}

    with refused(412, "PreconditionFailed"):
        s3.copy_object(**copy, CopySourceIfMatch=etag(b"stale"))
    with refused(412, "PreconditionFailed"):
        s3.copy_object(**copy, CopySourceIfNoneMatch=etag(DATA))
    assert missing(s3, bucket, prefix + "copy")

    s3.copy_object(**copy, CopySourceIfMatch=etag(DATA))
    assert body_of(s3, bucket, prefix + "copy") == DATA


def test_conditions_on_the_destination(s3, bucket, prefix, source):
    copy = {"Bucket": bucket, "Key": prefix + "copy", "CopySource": source}
    s3.copy_object(**copy, IfNoneMatch="*")
    assert body_of(s3, bucket, prefix + "copy") == DATA

    with refused(412, "PreconditionFailed"):
        s3.copy_object(**copy, IfNoneMatch="*")
    with refused(412, "PreconditionFailed"):
        s3.copy_object(**copy, IfMatch=etag(b"stale"))
