"""Objects: put, get, head, delete, batch delete, metadata, odd keys, versions."""

import hashlib
import random
import threading
from datetime import datetime, timedelta, timezone

import pytest
from botocore.exceptions import ClientError

from checksums import etag
from conftest import in_threads
from expect import body_of, missing, refused

SIZES = {"empty": 0, "1 byte": 1, "20 KB": 20_000, "1 MiB": 1 << 20, "20 MiB": 20 << 20}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_an_object_comes_back_byte_for_byte(s3, bucket, key, size):
    data = random.Random(size).randbytes(size)

    put = s3.put_object(Bucket=bucket, Key=key, Body=data)
    got = s3.get_object(Bucket=bucket, Key=key)
    head = s3.head_object(Bucket=bucket, Key=key)

    assert got["Body"].read() == data
    assert put["ETag"] == got["ETag"] == head["ETag"] == etag(data)
    assert got["ContentLength"] == head["ContentLength"] == size
    assert got["LastModified"] == head["LastModified"]
    assert abs(datetime.now(timezone.utc) - head["LastModified"]) < timedelta(hours=1)
    assert got["AcceptRanges"] == head["AcceptRanges"] == "bytes"


def test_headers_and_user_metadata_come_back(s3, bucket, key):
    headers = {
        "ContentType": "application/x-checkpoint; charset=utf-8",
        "CacheControl": "max-age=60, private",
        "ContentDisposition": 'attachment; filename="state.bin"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de, en",
    }
    metadata = {"job": "a1b2", "comma": "one, two", "zero": "0", "mixed-value": "CamelCase = yes"}

    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Metadata=metadata, **headers)

    for answer in (s3.get_object(Bucket=bucket, Key=key), s3.head_object(Bucket=bucket, Key=key)):
        assert {name: answer[name] for name in headers} == headers
        assert answer["Metadata"] == metadata


def test_metadata_names_are_lower_case(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Metadata={"Job-Name": "Orders"})

    assert s3.head_object(Bucket=bucket, Key=key)["Metadata"] == {"job-name": "Orders"}


def test_expires_header_comes_back(s3, bucket, key):
    expires = datetime(2031, 5, 6, 7, 8, 9, tzinfo=timezone.utc)

    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Expires=expires)

    assert s3.head_object(Bucket=bucket, Key=key)["ExpiresString"] == "Tue, 06 May 2031 07:08:09 GMT"


def test_content_type_has_a_default(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    assert s3.head_object(Bucket=bucket, Key=key)["ContentType"] in ("binary/octet-stream", "application/octet-stream")


def test_overwriting_replaces_body_and_metadata(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"old and longer", Metadata={"old": "1"}, ContentType="text/old")

    s3.put_object(Bucket=bucket, Key=key, Body=b"new", Metadata={"new": "2"})

    got = s3.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == b"new"
    assert got["Metadata"] == {"new": "2"}
    assert got["ContentType"] != "text/old"
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert [(entry["Key"], entry["Size"], entry["ETag"]) for entry in listed] == [(key, 3, etag(b"new"))]


def test_a_reader_of_an_overwritten_object_sees_one_whole_version(s3, bucket, key):
    versions = [bytes([letter]) * 200_000 for letter in b"abc"]
    s3.put_object(Bucket=bucket, Key=key, Body=versions[0])
    done = threading.Event()

    def overwrite():
        try:
            for turn in range(30):
                s3.put_object(Bucket=bucket, Key=key, Body=versions[turn % 3])
        finally:
            done.set()

    writer = threading.Thread(target=overwrite)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        got = s3.get_object(Bucket=bucket, Key=key)
        body = got["Body"].read()
        reads += 1
        assert body in versions
        assert got["ETag"] == etag(body)
    writer.join()


def test_missing_object_is_404(s3, bucket, key):
    with refused(404, "NoSuchKey"):
        s3.get_object(Bucket=bucket, Key=key)
    with refused(404):
        s3.head_object(Bucket=bucket, Key=key)


def test_a_directory_of_objects_is_not_an_object(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "dir/object", Body=b"x")

    for key in (prefix + "dir", prefix + "dir/"):
        with refused(404):
            s3.head_object(Bucket=bucket, Key=key)
        with refused(404, "NoSuchKey"):
            s3.get_object(Bucket=bucket, Key=key)


def test_delete_removes_and_may_be_repeated(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    for _ in range(2):
        answer = s3.delete_object(Bucket=bucket, Key=key)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204

    assert missing(s3, bucket, key)


def test_a_thousand_keys_are_deleted_at_once_whether_they_exist_or_not(s3, stock_s3, bucket, prefix):
    there = [f"{prefix}there-{n:03}" for n in range(100)]
    in_threads(16, lambda key: stock_s3.put_object(Bucket=bucket, Key=key, Body=b"x"), there)
    absent = [f"{prefix}absent-{n:03}" for n in range(900)]

    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in there + absent]})

    assert "Errors" not in answer
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == sorted(there + absent)
    assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0


def test_more_than_a_thousand_keys_at_once_are_refused(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "0", Body=b"x")

    with refused(400, "MalformedXML"):
        s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"{prefix}{n}"} for n in range(1001)]})

    assert body_of(s3, bucket, prefix + "0") == b"x"


def test_quiet_batch_delete_reports_nothing(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    objects = [{"Key": key}, {"Key": key + "-absent"}]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})

    assert "Deleted" not in answer and "Errors" not in answer
    assert missing(s3, bucket, key)


def test_a_directory_marker_is_an_object_of_its_own(s3, bucket, prefix):
    marker = prefix + "dir/"
    s3.put_object(Bucket=bucket, Key=marker, Body=b"")
    s3.put_object(Bucket=bucket, Key=marker + "object", Body=b"x")

    assert s3.head_object(Bucket=bucket, Key=marker)["ContentLength"] == 0
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=marker)["Contents"]
    assert [entry["Key"] for entry in listed] == [marker, marker + "object"]


@pytest.mark.parametrize("marker_exists", [True, False], ids=["marker", "no marker"])
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "single"])
def test_deleting_a_directory_marker_succeeds_and_leaves_what_lies_below(s3, bucket, prefix, batch, marker_exists):
    marker = prefix + "dir/"
    if marker_exists:
        s3.put_object(Bucket=bucket, Key=marker, Body=b"")
    s3.put_object(Bucket=bucket, Key=marker + "sub/object", Body=b"x")

    if batch:  # S3A does this for all ancestors after every PUT.
        ancestors = [marker, prefix, "conformance/"]
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in ancestors]})
        assert "Errors" not in answer
        assert len(answer["Deleted"]) == 3
    else:
        answer = s3.delete_object(Bucket=bucket, Key=marker)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204

    assert body_of(s3, bucket, marker + "sub/object") == b"x"
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=marker)["Contents"]
    assert [entry["Key"] for entry in listed] == [marker + "sub/object"]


ODD_KEYS = {
    "space": "a b  c",
    "plus": "a+b",
    "percent": "100%",
    "percent-encoded": "a%20b%2Fc",
    "unicode": "zäöß/日本語/😀",
    "combining": "e\u0301 is not \u00e9",
    "question mark": "a?b=c",
    "hash": "a#b",
    "ampersand": "a&b&amp;c",
    "quotes": "a'b\"c`d",
    "angle brackets": "<a>]]></a>",
    "backslash": "a\\b",
    "punctuation": "!$()*,-.:;=@[]^_{|}~",
    "line breaks": "a\tb\nc\r\nd",
    "double slash": "a//b///c",
    "leading slash": "/a",
    "trailing slash": "a/",
    "dots": "a/../b/./c/..",
    "parent": "../x",
    "only dots": "...",
    "hidden": ".metadata",
    "1024 bytes": None,
    "1024 bytes in one name": None,
}


def odd_key(prefix, name):
    room = 1024 - len(prefix)
    if name == "1024 bytes":
        return prefix + ("d" * 99 + "/") * (room // 100) + "k" * (room % 100)
    if name == "1024 bytes in one name":
        return prefix + "k" * room
    return prefix + ODD_KEYS[name]


@pytest.mark.parametrize("name", ODD_KEYS)
def test_odd_key_round_trips_through_every_operation(s3, bucket, prefix, name):
    key = odd_key(prefix, name)
    data = name.encode()
    copy = prefix + "the-copy"

    s3.put_object(Bucket=bucket, Key=key, Body=data)

    assert body_of(s3, bucket, key) == data
    assert s3.head_object(Bucket=bucket, Key=key)["ETag"] == etag(data)
    for listing in (s3.list_objects_v2, s3.list_objects):
        assert [entry["Key"] for entry in listing(Bucket=bucket, Prefix=prefix)["Contents"]] == [key]
        assert [entry["Key"] for entry in listing(Bucket=bucket, Prefix=key)["Contents"]] == [key]
    s3.copy_object(Bucket=bucket, Key=copy, CopySource={"Bucket": bucket, "Key": key})
    assert body_of(s3, bucket, copy) == data
    s3.delete_object(Bucket=bucket, Key=key)
    assert missing(s3, bucket, key)
    s3.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": copy})
    assert body_of(s3, bucket, key) == data
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    assert [entry["Key"] for entry in answer["Deleted"]] == [key]
    assert missing(s3, bucket, key)


def test_a_key_is_limited_to_1024_bytes_of_utf8(s3, bucket, prefix):
    for key in (prefix + "k" * (1025 - len(prefix)), prefix + "ä" * 512):
        with refused(400, "KeyTooLongError"):
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0


def test_a_key_and_keys_below_it_exist_together(s3, bucket, prefix):
    bodies = {prefix + name: name.encode() for name in ("a", "a/", "a/b", "a/b/c", "a//b")}

    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)

    assert {key: body_of(s3, bucket, key) for key in bodies} == bodies
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    assert listed == sorted(bodies)
    s3.delete_object(Bucket=bucket, Key=prefix + "a")
    assert body_of(s3, bucket, prefix + "a/b") == b"a/b"


def test_a_key_cannot_reach_another_bucket(s3, raw, bucket, new_bucket):
    s3.put_object(Bucket=new_bucket, Key="secret", Body=b"secret")

    response = raw.send(raw.signed("GET", bucket, f"../{new_bucket}/secret"))

    assert response.status in (400, 404)
    assert response.body != b"secret"


def test_the_only_version_is_named_null(s3, bucket, prefix):
    for name in ("a", "b"):
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=name.encode())

    answer = s3.list_object_versions(Bucket=bucket, Prefix=prefix)

    versions = [(entry["Key"], entry["VersionId"], entry["IsLatest"], entry["Size"]) for entry in answer["Versions"]]
    assert versions == [(prefix + "a", "null", True, 1), (prefix + "b", "null", True, 1)]
    assert "DeleteMarkers" not in answer
    assert body_of(s3, bucket, prefix + "a", VersionId="null") == b"a"
    s3.delete_object(Bucket=bucket, Key=prefix + "a", VersionId="null")
    assert missing(s3, bucket, prefix + "a")


def test_an_unknown_version_is_refused(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key=key, VersionId="3HL4kqtJlcpXroDTDmJ-rmSpXd3dIbrHY")

    # S3 answers by the id's form: 400 if it could not be one, 404 if it is unknown.
    assert raised.value.response["Error"]["Code"] in ("NoSuchVersion", "InvalidArgument")


def test_attributes_of_an_object(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"0123456789")

    answer = s3.get_object_attributes(Bucket=bucket, Key=key, ObjectAttributes=["ETag", "ObjectSize", "StorageClass"])

    assert answer["ETag"] == hashlib.md5(b"0123456789").hexdigest()
    assert answer["ObjectSize"] == 10
    assert answer["StorageClass"] == "STANDARD"


def test_a_reader_may_choose_the_headers_of_the_answer(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", ContentType="text/plain")

    got = s3.get_object(Bucket=bucket, Key=key, ResponseContentType="text/csv", ResponseCacheControl="no-store",
                        ResponseContentDisposition="attachment", ResponseContentLanguage="en")

    assert (got["ContentType"], got["CacheControl"]) == ("text/csv", "no-store")
    assert (got["ContentDisposition"], got["ContentLanguage"]) == ("attachment", "en")
