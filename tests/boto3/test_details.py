"""What S3 honours in passing, and other servers forget."""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from urllib.parse import unquote, urlsplit

import pytest

from checksums import checksum
from conftest import bucket_name
from expect import body_of, refused
from rawhttp import UNSIGNED_CHUNKS_AND_TRAILER
from sigv4 import Signer, uri_encode
from test_presigned import fetch

PART = b"p" * (5 << 20)
CLASSES = ["REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"]
NEW_DIGESTS = {
    "sha512": lambda data: base64.b64encode(hashlib.sha512(data).digest()).decode(),
    "md5": lambda data: base64.b64encode(hashlib.md5(data).digest()).decode(),
}
# Of "123456789"; Python has no xxHash.
XXHASH = {"xxhash64": "jLhB20DmroM=", "xxhash3": "ctyxi2ehff8=", "xxhash128": "MxGUd+3l3NXpcWQnaB1YYA=="}
DIGITS = b"123456789"


@pytest.fixture
def versions(s3, bucket, key):
    """The entity tags of an object before it was replaced, and now."""
    old = s3.put_object(Bucket=bucket, Key=key, Body=b"aaaaaaaaaa")["ETag"]
    return old, s3.put_object(Bucket=bucket, Key=key, Body=b"0123456789")["ETag"]


def test_a_range_counts_only_for_the_version_that_if_range_names(raw, bucket, key, versions):
    old, new = versions
    modified = raw.send(raw.signed("HEAD", bucket, key)).headers["last-modified"]

    for value, expected in [
        (new, (206, b"234")),
        (modified, (206, b"234")),
        (old, (200, b"0123456789")),
        ("W/" + new, (200, b"0123456789")),
        ("Sat, 28 Nov 2020 10:00:00 GMT", (200, b"0123456789")),
    ]:
        answer = raw.send(raw.signed("GET", bucket, key, headers={"Range": "bytes=2-4", "If-Range": value}))
        assert (answer.status, answer.body) == expected, value


@pytest.mark.parametrize("value", ['"nothing"', "no tag", '"open', "a/b==", "W/x", '"a", "b"'])
def test_what_is_no_tag_of_the_object_fails_its_precondition(raw, bucket, key, versions, value):
    for method, body in [("GET", b""), ("HEAD", b""), ("PUT", b"new"), ("DELETE", b"")]:
        answer = raw.send(raw.signed(method, bucket, key, headers={"If-Match": value}, body=body))
        assert answer.status == 412, (method, value, answer)
        assert method == "HEAD" or answer.error_code() == "PreconditionFailed"


def test_one_of_several_tags_is_enough_for_a_read(raw, bucket, key, versions):
    old, new = versions

    def get(**conditions):
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return raw.send(raw.signed("GET", bucket, key, headers=headers)).status

    assert get(If_Match=f"{old}, {new}") == 200
    assert get(If_None_Match=f"{old}, {new}") == 304
    assert get(If_None_Match=f'{old}, "x"') == 200
    assert get(If_Modified_Since="yesterday") == 200


def test_nothing_is_deleted_on_a_condition_that_is_not_looked_at(s3, raw, bucket, key, versions):
    for name, value in [("x-amz-if-match-size", "1"), ("x-amz-if-match-last-modified-time", "Sat, 28 Nov 2020 10:00:00 GMT")]:
        answer = raw.send(raw.signed("DELETE", bucket, key, headers={name: value}))
        assert (answer.status, answer.error_code()) == (501, "NotImplemented"), name
    for more in [{"Size": 1}, {"LastModifiedTime": datetime(2020, 11, 28, tzinfo=timezone.utc)}]:
        with refused(501, "NotImplemented"):
            s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, **more}]})
    assert body_of(s3, bucket, key) == b"0123456789"


def test_headers_in_a_presigned_query_are_headers_but_a_checksum_is_not(s3, raw, bucket, key):
    query = [("x-amz-meta-a", "1"), ("x-amz-meta-b", "x y"), ("x-amz-storage-class", "STANDARD_IA"), ("x-id", "PutObject"),
             ("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-sdk-checksum-algorithm", "CRC32")]
    target = raw.presign("PUT", bucket, key, expires_seconds=60, query=query)

    status, _, body = fetch(f"http://{raw.host}:{raw.port}{target}", "PUT", b"data", {"Content-Type": ""})

    assert status == 200, body
    head = s3.head_object(Bucket=bucket, Key=key)
    assert (head["Metadata"], head["StorageClass"], head["ContentLength"]) == ({"a": "1", "b": "x y"}, "STANDARD_IA", 4)


def test_metadata_that_is_sent_twice_is_joined(s3, raw, bucket, key):
    request = raw.signed("PUT", bucket, key, headers={"x-amz-meta-k": "v1,v2"}, body=b"x")
    head = request.head().replace(b"x-amz-meta-k: v1,v2\r\n", b"x-amz-meta-k: v1\r\nx-amz-meta-k: v2\r\n")
    with raw.connect() as connection:
        connection.sendall(head + request.body)
        assert raw.receive(connection, "PUT").status == 200

    assert s3.head_object(Bucket=bucket, Key=key)["Metadata"] == {"k": "v1,v2"}


def test_an_expires_that_is_no_date_is_kept_as_it_is(raw, bucket, key):
    def kept():
        answer = raw.send(raw.signed("GET", bucket, key))
        return answer.headers.get("expires"), answer.body

    for value in ["0", "-1", "Thu, 01 Jan 1970", "Thu, 01 Jan 1970 00:00:00 GMT"]:
        sent = {"Expires": value}
        assert raw.send(raw.signed("PUT", bucket, key, headers=sent, body=b"whole")).status == 200
        assert kept() == (value, b"whole")
        for signed in (True, False):
            trailer = ("x-amz-checksum-crc32", checksum("CRC32", b"chunks"))
            answer = raw.send(raw.put_in_chunks(bucket, key, b"chunks", trailer=trailer, headers=sent, signed=signed))
            assert answer.status == 200, answer.body
            assert kept() == (value, b"chunks")
        copied = {**sent, "x-amz-copy-source": f"/{bucket}/{uri_encode(key)}", "x-amz-metadata-directive": "REPLACE"}
        assert raw.send(raw.signed("PUT", bucket, key, headers=copied)).status == 200
        assert kept() == (value, b"chunks")

    refusal = raw.send(raw.signed("PUT", bucket, key, headers={"Expires": "0"}, body=b"x", payload_hash="0" * 64))
    assert refusal.error_code() == "XAmzContentSHA256Mismatch"
    assert kept()[1] == b"chunks"


def test_a_request_may_be_dated_by_the_header_date(raw, s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    now = datetime.now(timezone.utc)
    for date in (now.strftime("%a, %d %b %Y %H:%M:%S GMT"), now.strftime("%Y%m%dT%H%M%SZ")):
        signer, path = Signer(raw.credentials, now), f"/{bucket}/{uri_encode(key, safe='/')}"
        payload = hashlib.sha256(b"").hexdigest()
        headers = {"Host": f"{raw.host}:{raw.port}", "Date": date, "x-amz-content-sha256": payload}
        headers["Authorization"] = signer.authorization("GET", path, [], headers, payload)
        with raw.connect() as connection:
            lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close"]
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            answer = raw.receive(connection, "GET")
        assert (answer.status, answer.body) == (200, b"x"), date


def test_unsigned_chunks_need_no_trailer(s3, raw, bucket, key):
    def put(body, headers=None):
        headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "5", **(headers or {})}
        return raw.send(raw.signed("PUT", bucket, key, headers=headers, body=body, payload_hash=UNSIGNED_CHUNKS_AND_TRAILER))

    assert put(b"5\r\nhello\r\n").status == 400
    unannounced = put(b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n")
    assert (unannounced.status, unannounced.error_code()) == (400, "MalformedTrailerError")
    assert put(b"5\r\nhello\r\n0\r\n\r\n").status == 200
    assert body_of(s3, bucket, key) == b"hello"


@pytest.mark.parametrize("name", CLASSES)
def test_a_storage_class_is_kept_and_told(s3, bucket, prefix, name):
    s3.put_object(Bucket=bucket, Key=prefix + "a", Body=b"x", StorageClass=name)
    upload = s3.create_multipart_upload(Bucket=bucket, Key=prefix + "b", StorageClass=name)["UploadId"]
    where = {"Bucket": bucket, "Key": prefix + "b", "UploadId": upload}
    part = s3.upload_part(**where, PartNumber=1, Body=b"x")["ETag"]
    assert s3.list_parts(**where)["StorageClass"] == name
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": [{"ETag": part, "PartNumber": 1}]})
    s3.copy_object(Bucket=bucket, Key=prefix + "c", CopySource={"Bucket": bucket, "Key": prefix + "a"})
    s3.copy_object(Bucket=bucket, Key=prefix + "d", CopySource={"Bucket": bucket, "Key": prefix + "c"}, StorageClass=name)

    told = [s3.head_object(Bucket=bucket, Key=prefix + key).get("StorageClass") for key in "abcd"]
    listed = [entry["StorageClass"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    attributes = s3.get_object_attributes(Bucket=bucket, Key=prefix + "a", ObjectAttributes=["StorageClass"])

    assert told == [name, name, None, name]
    assert listed == [name, name, "STANDARD", name]
    assert attributes["StorageClass"] == name


@pytest.mark.parametrize("name", ["STD1", "GLACIER", "DEEP_ARCHIVE", "standard_ia"])
def test_a_class_that_cannot_be_is_refused(s3, bucket, key, name):
    with refused(400, "InvalidStorageClass"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x", StorageClass=name)


def test_an_encoding_comes_back_as_it_was_written(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", ContentEncoding="deflate, gzip")

    assert s3.head_object(Bucket=bucket, Key=key)["ContentEncoding"] == "deflate, gzip"


@pytest.mark.parametrize("algorithm", [*NEW_DIGESTS, *XXHASH])
def test_checksums_of_2026_are_compared_kept_and_told(raw, bucket, key, algorithm):
    right = NEW_DIGESTS[algorithm](DIGITS) if algorithm in NEW_DIGESTS else XXHASH[algorithm]
    name = f"x-amz-checksum-{algorithm}"

    wrong = raw.send(raw.signed("PUT", bucket, key, headers={name: right}, body=b"other"))
    put = raw.send(raw.signed("PUT", bucket, key, headers={name: right}, body=DIGITS))
    head = raw.send(raw.signed("HEAD", bucket, key, headers={"x-amz-checksum-mode": "ENABLED"}))
    attributes = raw.send(raw.signed("GET", bucket, key, query=[("attributes", "")],
                                     headers={"x-amz-object-attributes": "Checksum"}))

    assert (wrong.status, wrong.error_code()) == (400, "BadDigest")
    assert (put.status, put.headers[name]) == (200, right)
    assert head.headers[name] == right
    assert f"<Checksum{algorithm.upper()}>{right}</Checksum{algorithm.upper()}>".encode() in attributes.body


@pytest.mark.parametrize("algorithm", NEW_DIGESTS)
def test_a_multipart_upload_with_a_checksum_of_2026(s3, raw, bucket, key, algorithm):
    digest, element = NEW_DIGESTS[algorithm], f"Checksum{algorithm.upper()}"
    created = raw.send(raw.signed("POST", bucket, key, query=[("uploads", "")],
                                  headers={"x-amz-checksum-algorithm": algorithm.upper()}))
    upload = created.body.decode().split("<UploadId>")[1].split("</UploadId>")[0]
    bodies, parts = [PART, b"last"], ""
    for number, body in enumerate(bodies, 1):
        query = [("partNumber", str(number)), ("uploadId", upload)]
        put = raw.send(raw.signed("PUT", bucket, key, query=query, body=body))
        assert put.headers[f"x-amz-checksum-{algorithm}"] == digest(body)
        parts += (f"<Part><PartNumber>{number}</PartNumber><ETag>{put.headers['etag']}</ETag>"
                  f"<{element}>{digest(body)}</{element}></Part>")
    listed = raw.send(raw.signed("GET", bucket, key, query=[("uploadId", upload)])).body.decode()
    assert [listed.count(f"<{element}>{digest(body)}</{element}>") for body in bodies] == [1, 1]

    def complete(parts):
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return raw.send(raw.signed("POST", bucket, key, query=[("uploadId", upload)], body=body))

    assert complete(parts.replace(digest(PART), digest(b"x"))).error_code() == "InvalidPart"
    done = complete(parts).body.decode()

    raw_digests = b"".join(base64.b64decode(digest(body)) for body in bodies)
    assert f"<{element}>{digest(raw_digests)}-2</{element}>" in done
    part = raw.send(raw.signed("GET", bucket, key, query=[("partNumber", "2")], headers={"x-amz-checksum-mode": "ENABLED"}))
    assert (part.body, part.headers[f"x-amz-checksum-{algorithm}"]) == (b"last", digest(b"last"))


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
def test_a_part_is_read_with_its_own_checksum(s3, bucket, key, kind):
    where = {"Bucket": bucket, "Key": key}
    upload = s3.create_multipart_upload(**where, ChecksumAlgorithm="CRC32", ChecksumType=kind)["UploadId"]
    parts = []
    for number, body in enumerate([PART, b"bcd"], 1):
        answer = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]})
    for bad in ([parts[0], {**parts[1], "ChecksumCRC32": checksum("CRC32", b"x")}],
                [parts[0], {"PartNumber": 2, "ETag": parts[1]["ETag"], "ChecksumSHA1": checksum("SHA1", b"bcd")}]):
        with refused(400, "InvalidPart", "InvalidRequest"):
            s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": bad})
    if kind == "COMPOSITE":
        with refused(400, "InvalidRequest"):
            some = [parts[0], {"PartNumber": 2, "ETag": parts[1]["ETag"]}]
            s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": some})
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})

    read = s3.get_object(**where, PartNumber=2, ChecksumMode="ENABLED")
    page = s3.get_object_attributes(**where, ObjectAttributes=["ObjectParts"], MaxParts=1)["ObjectParts"]
    rest = s3.get_object_attributes(**where, ObjectAttributes=["ObjectParts"], PartNumberMarker=1)["ObjectParts"]

    assert (read["Body"].read(), read["ChecksumCRC32"], read["ChecksumType"]) == (b"bcd", parts[1]["ChecksumCRC32"], kind)
    assert (page["IsTruncated"], page["TotalPartsCount"], page["NextPartNumberMarker"]) == (True, 2, 1)
    told = [(part["PartNumber"], part["Size"], part["ChecksumCRC32"]) for part in page["Parts"] + rest["Parts"]]
    assert told == [(1, len(PART), parts[0]["ChecksumCRC32"]), (2, 3, parts[1]["ChecksumCRC32"])]


def test_a_copy_gets_the_checksum_that_it_asks_for(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "one", Body=b"hello")
    where = {"Bucket": bucket, "Key": prefix + "parts"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    bodies = [PART, b"b"]
    parts = [{"PartNumber": n, "ETag": s3.upload_part(**where, UploadId=upload, PartNumber=n, Body=body)["ETag"]}
             for n, body in enumerate(bodies, 1)]
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    for source, body in (("one", b"hello"), ("parts", b"".join(bodies))):
        copied = s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource={"Bucket": bucket, "Key": prefix + source},
                                ChecksumAlgorithm="SHA256")
        told = s3.head_object(Bucket=bucket, Key=prefix + "copy", ChecksumMode="ENABLED")

        expected = checksum("SHA256", body)
        assert (copied["CopyObjectResult"]["ChecksumSHA256"], told["ChecksumSHA256"]) == (expected, expected)
        assert told["ChecksumType"] == "FULL_OBJECT"


@pytest.mark.parametrize("name", ["a b+c", "ü/ö?&#%"])
def test_the_location_of_a_completed_upload_is_its_address(s3, raw, bucket, prefix, name):
    where = {"Bucket": bucket, "Key": prefix + name}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    part = s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"abc")["ETag"]

    location = s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={
        "Parts": [{"ETag": part, "PartNumber": 1}]})["Location"]

    split = urlsplit(location)
    assert (split.scheme, split.netloc) == ("http", f"{raw.host}:{raw.port}")
    assert unquote(split.path) == f"/{bucket}/{where['Key']}" and not split.query and not split.fragment
    assert raw.send(raw.signed("GET", *unquote(split.path)[1:].split("/", 1))).body == b"abc"


def test_racing_completions_of_one_upload_all_succeed(server, s3, bucket, key):
    where = {"Bucket": bucket, "Key": key}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    part = s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"abc")["ETag"]

    def complete(_):
        parts = {"Parts": [{"ETag": part, "PartNumber": 1}]}
        return s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)["ETag"]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(complete, range(8)))) == 1


def test_buckets_come_in_pages_of_a_prefix(s3, raw):
    prefix = bucket_name()[:40]
    names = [f"{prefix}-{letter}" for letter in "abc"]
    for name in names:
        s3.create_bucket(Bucket=name)
    try:
        first = s3.list_buckets(Prefix=prefix, MaxBuckets=1)
        pages = list(s3.get_paginator("list_buckets").paginate(Prefix=prefix, PaginationConfig={"PageSize": 1}))
        elsewhere = s3.list_buckets(Prefix=prefix, BucketRegion="eu-west-1")["Buckets"]
    finally:
        for name in names:
            s3.delete_bucket(Bucket=name)

    assert ([entry["Name"] for entry in first["Buckets"]], first["Prefix"]) == (names[:1], prefix)
    assert [[entry["Name"] for entry in page["Buckets"]] for page in pages] == [[name] for name in names]
    assert elsewhere == []
    for bad in ("0", "10001"):
        answer = raw.send(raw.signed("GET", query=[("max-buckets", bad)]))
        assert (answer.status, answer.error_code()) == (400, "InvalidArgument")


def test_an_own_bucket_is_created_again(s3, new_bucket):
    assert s3.create_bucket(Bucket=new_bucket)["Location"] == f"/{new_bucket}"
