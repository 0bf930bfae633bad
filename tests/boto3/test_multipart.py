"""Multipart uploads, by hand and by the client library's transfer manager."""

import io
import random

import pytest
from botocore.exceptions import ClientError

from checksums import etag, multipart_etag
from conftest import in_threads
from expect import body_of, missing, refused

MIB = 1 << 20
PART_MIN = 5 * MIB
SMALL = b"k" * 1024


class Upload:
    """One multipart upload and the parts it has."""

    def __init__(self, s3, bucket, key, upload_id):
        self.s3 = s3
        self.where = {"Bucket": bucket, "Key": key, "UploadId": upload_id}
        self.parts = {}

    def part(self, number, body):
        """Uploads a part and remembers what CompleteMultipartUpload wants to know of it; returns its ETag."""
        answer = self.s3.upload_part(**self.where, PartNumber=number, Body=body)
        self.parts[number] = {"PartNumber": number, "ETag": answer["ETag"]}
        return answer["ETag"]

    def complete(self, numbers=None, **options):
        parts = [self.parts[number] for number in numbers or sorted(self.parts)]
        return self.s3.complete_multipart_upload(**self.where, MultipartUpload={"Parts": parts}, **options)

    def listed(self, **options):
        parts = self.s3.list_parts(**self.where, **options).get("Parts", [])
        return [(part["PartNumber"], part["Size"], part["ETag"]) for part in parts]

    def abort(self):
        return self.s3.abort_multipart_upload(**self.where)


@pytest.fixture
def upload(s3, bucket, key, multipart):
    return Upload(s3, bucket, key, multipart)


def part_of(letter, size=PART_MIN):
    return letter.encode() * size


def test_one_tiny_part(s3, bucket, key, upload):
    upload.part(1, SMALL)

    done = upload.complete()

    got = s3.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == SMALL
    assert done["ETag"] == got["ETag"] == multipart_etag([SMALL])
    assert (done["Bucket"], done["Key"]) == (bucket, key)


def test_one_empty_part(s3, bucket, key, upload):
    upload.part(1, b"")

    upload.complete()

    assert body_of(s3, bucket, key) == b""


def test_three_large_parts_and_a_tail(s3, bucket, key, upload):
    bodies = [random.Random(n).randbytes(PART_MIN) for n in range(3)] + [b"the tail"]
    for number, body in enumerate(bodies, 1):
        assert upload.part(number, body) == etag(body)

    done = upload.complete()

    whole = b"".join(bodies)
    assert body_of(s3, bucket, key) == whole
    assert body_of(s3, bucket, key, Range=f"bytes={PART_MIN - 5}-{PART_MIN + 4}") == whole[PART_MIN - 5:PART_MIN + 5]
    head = s3.head_object(Bucket=bucket, Key=key)
    assert (head["ContentLength"], head["ETag"]) == (len(whole), multipart_etag(bodies))
    assert done["ETag"] == head["ETag"]
    entry, = s3.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert (entry["Size"], entry["ETag"]) == (len(whole), head["ETag"])


def test_parts_are_read_by_number(s3, bucket, key, upload):
    upload.part(1, part_of("a"))
    upload.part(2, b"tail")
    upload.complete()

    second = s3.get_object(Bucket=bucket, Key=key, PartNumber=2)

    assert second["Body"].read() == b"tail"
    assert second["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert second["ContentRange"] == f"bytes {PART_MIN}-{PART_MIN + 3}/{PART_MIN + 4}"
    assert second["PartsCount"] == 2
    assert s3.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"] == PART_MIN
    with refused(416, "InvalidPartNumber", "InvalidRange"):
        s3.get_object(Bucket=bucket, Key=key, PartNumber=3)


def test_parts_may_arrive_in_any_order_and_with_gaps(s3, bucket, key, upload):
    upload.part(900, b"tail")
    upload.part(7, part_of("a"))
    upload.part(30, part_of("b"))

    upload.complete()

    assert body_of(s3, bucket, key) == part_of("a") + part_of("b") + b"tail"


def test_parts_may_arrive_side_by_side(s3, bucket, key, upload):
    bodies = {number: part_of("abcd"[number - 1]) for number in range(1, 5)}

    in_threads(4, lambda number: upload.part(number, bodies[number]), bodies)
    upload.complete()

    assert body_of(s3, bucket, key) == b"".join(bodies.values())


def test_the_last_upload_of_a_part_counts(s3, bucket, key, upload):
    upload.part(1, b"first attempt, and longer")
    upload.part(1, b"second attempt")
    assert upload.listed() == [(1, 14, etag(b"second attempt"))]

    upload.complete()

    assert body_of(s3, bucket, key) == b"second attempt"


def test_parts_that_are_not_named_are_dropped(s3, bucket, key, upload):
    upload.part(1, part_of("a"))
    upload.part(2, b"not wanted")
    upload.part(3, b"tail")

    upload.complete([1, 3])

    assert body_of(s3, bucket, key) == part_of("a") + b"tail"


def test_nothing_is_visible_before_completion(s3, bucket, key, upload):
    upload.part(1, SMALL)

    assert missing(s3, bucket, key)


def test_completion_replaces_what_was_there(s3, bucket, key, upload):
    s3.put_object(Bucket=bucket, Key=key, Body=b"before")
    upload.part(1, SMALL)
    assert body_of(s3, bucket, key) == b"before"

    upload.complete()

    assert body_of(s3, bucket, key) == SMALL


def test_headers_and_metadata_of_the_upload_are_those_of_the_object(s3, bucket, key):
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key, ContentType="text/plain", CacheControl="no-cache",
                                           Metadata={"job": "orders"})["UploadId"]
    upload = Upload(s3, bucket, key, upload_id)
    upload.part(1, SMALL)

    upload.complete()

    head = s3.head_object(Bucket=bucket, Key=key)
    assert (head["ContentType"], head["CacheControl"]) == ("text/plain", "no-cache")
    assert head["Metadata"] == {"job": "orders"}


def test_a_wrong_order_of_parts_is_refused(s3, bucket, key, upload):
    upload.part(1, part_of("a"))
    upload.part(2, part_of("b"))

    with refused(400, "InvalidPartOrder"):
        upload.complete([2, 1])

    assert missing(s3, bucket, key)


def test_a_wrong_etag_is_refused_and_the_right_one_still_completes(s3, bucket, key, upload):
    right = upload.part(1, SMALL)
    upload.parts[1]["ETag"] = etag(b"something else")
    with refused(400, "InvalidPart"):
        upload.complete()
    assert missing(s3, bucket, key)

    upload.parts[1]["ETag"] = right
    upload.complete()

    assert body_of(s3, bucket, key) == SMALL


def test_an_etag_may_come_without_quotes(s3, bucket, key, upload):
    upload.part(1, SMALL)
    upload.parts[1]["ETag"] = upload.parts[1]["ETag"].strip('"')

    upload.complete()

    assert body_of(s3, bucket, key) == SMALL


def test_a_part_that_was_never_uploaded_is_refused(s3, bucket, key, upload):
    upload.part(1, part_of("a"))
    upload.parts[2] = {**upload.parts[1], "PartNumber": 2}

    with refused(400, "InvalidPart"):
        upload.complete()

    assert missing(s3, bucket, key)


def test_a_part_too_small_for_its_place_is_refused(s3, bucket, key, upload):
    upload.part(1, SMALL)
    upload.part(2, SMALL)

    with refused(400, "EntityTooSmall"):
        upload.complete()

    assert missing(s3, bucket, key)


def test_a_completion_without_parts_is_refused(s3, bucket, key, upload):
    upload.part(1, SMALL)

    with refused(400, "MalformedXML", "InvalidRequest"):
        s3.complete_multipart_upload(**upload.where, MultipartUpload={"Parts": []})

    assert missing(s3, bucket, key)


@pytest.mark.parametrize("number", [0, -1, 10_001])
def test_part_numbers_are_1_to_10000(upload, number):
    with refused(400, "InvalidArgument"):
        upload.part(number, SMALL)

    assert upload.listed() == []


def test_the_last_part_number_is_accepted(s3, bucket, key, upload):
    upload.part(10_000, SMALL)

    upload.complete()

    assert body_of(s3, bucket, key) == SMALL


def test_an_aborted_upload_is_gone(s3, bucket, key, upload):
    upload.part(1, SMALL)

    assert upload.abort()["ResponseMetadata"]["HTTPStatusCode"] == 204

    assert_gone(upload)
    with refused(404, "NoSuchUpload"):
        upload.complete()
    assert missing(s3, bucket, key)


def assert_gone(upload):
    with refused(404, "NoSuchUpload"):
        upload.s3.upload_part(**upload.where, PartNumber=1, Body=SMALL)
    with refused(404, "NoSuchUpload"):
        upload.listed()
    listed = upload.s3.list_multipart_uploads(Bucket=upload.where["Bucket"], Prefix=upload.where["Key"])
    assert "Uploads" not in listed


def test_a_completed_upload_is_gone_and_its_object_stays(s3, bucket, key, upload):
    upload.part(1, SMALL)
    upload.complete()

    assert_gone(upload)
    try:
        upload.abort()  # S3 answers 204 for a while, then 404.
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NoSuchUpload"
    assert body_of(s3, bucket, key) == SMALL


def test_a_completion_that_is_repeated_is_answered_alike(s3, bucket, key, upload):
    upload.part(1, SMALL)
    done = upload.complete()

    assert upload.complete()["ETag"] == done["ETag"]

    upload.parts[1]["ETag"] = etag(b"something else")
    with refused(400, "InvalidPart"):
        upload.complete()
    assert body_of(s3, bucket, key) == SMALL


def test_completions_at_once_are_answered_alike(s3, bucket, key, upload):
    upload.part(1, SMALL)

    done = in_threads(8, lambda _: upload.complete()["ETag"], range(8))

    assert set(done) == {multipart_etag([SMALL])}
    assert body_of(s3, bucket, key) == SMALL


def test_a_repeated_completion_is_404_once_its_object_is_replaced(s3, bucket, key, upload):
    upload.part(1, SMALL)
    upload.complete()
    s3.put_object(Bucket=bucket, Key=key, Body=b"newer")

    with refused(404, "NoSuchUpload"):
        upload.complete()

    assert body_of(s3, bucket, key) == b"newer"


@pytest.mark.parametrize("upload_id", ["never-given", "", "../../etc/passwd", "0" * 64])
def test_an_unknown_upload_is_404(s3, raw, bucket, key, upload_id):
    query = [("partNumber", "1"), ("uploadId", upload_id)]

    response = raw.send(raw.signed("PUT", bucket, key, query=query, body=SMALL))

    assert response.status == 404 or (upload_id == "" and response.status == 400)
    assert missing(s3, bucket, key)


def test_an_upload_belongs_to_its_key(upload, prefix):
    upload.where["Key"] = prefix + "another"

    with refused(404, "NoSuchUpload"):
        upload.part(1, SMALL)


def test_parts_are_listed_in_pages(s3, upload):
    bodies = {number: b"x" * number for number in (1, 2, 3, 5, 8)}
    for number in (8, 1, 5, 3, 2):
        upload.part(number, bodies[number])

    first = s3.list_parts(**upload.where, MaxParts=3)

    assert upload.listed() == [(number, number, etag(body)) for number, body in bodies.items()]
    assert [part["PartNumber"] for part in first["Parts"]] == [1, 2, 3]
    assert first["IsTruncated"] is True
    assert first["NextPartNumberMarker"] == 3
    assert [number for number, _, _ in upload.listed(PartNumberMarker=3)] == [5, 8]


def test_uploads_are_listed_by_prefix_and_in_pages(s3, bucket, prefix):
    # As S3A's magic committer does to clean up.
    keys = [prefix + "job/__magic/" + name for name in ("a", "b", "c")] + [prefix + "other"]
    uploads = {key: s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in keys}
    magic = prefix + "job/__magic/"

    whole = s3.list_multipart_uploads(Bucket=bucket, Prefix=magic)
    pages = list(s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, Prefix=magic, PaginationConfig={"PageSize": 1}))
    rolled = s3.list_multipart_uploads(Bucket=bucket, Prefix=prefix, Delimiter="/")

    expected = [(key, uploads[key]) for key in keys[:3]]
    assert [(entry["Key"], entry["UploadId"]) for entry in whole["Uploads"]] == expected
    assert [(e["Key"], e["UploadId"]) for page in pages for e in page.get("Uploads", [])] == expected
    assert [entry["Prefix"] for entry in rolled["CommonPrefixes"]] == [prefix + "job/"]
    assert [entry["Key"] for entry in rolled["Uploads"]] == [prefix + "other"]
    for key, upload_id in uploads.items():
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket, Prefix=prefix)


def test_ten_thousand_parts_are_listed_and_the_last_of_them_completes(server, bucket, key):
    # More parts at once than the pool of the other tests serves.
    s3 = server.client(max_pool_connections=24)
    where = {"Bucket": bucket, "Key": key}
    upload = Upload(s3, bucket, key, s3.create_multipart_upload(**where)["UploadId"])
    in_threads(24, lambda number: upload.part(number, b"%d" % number), range(1, 10_001))

    pages = list(s3.get_paginator("list_parts").paginate(**upload.where))

    assert [part["PartNumber"] for page in pages for part in page["Parts"]] == list(range(1, 10_001))
    assert max(len(page["Parts"]) for page in pages) == 1000
    with refused(400, "EntityTooSmall"):
        upload.complete()
    upload.complete([10_000])
    assert body_of(s3, bucket, key) == b"10000"


def test_uploads_are_listed_by_folder_in_pages_of_one(s3, bucket, prefix):
    keys = [prefix + name for name in ("a/1", "f/b/c", "f/q", "plain", "z/b")]
    uploads = [s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in keys]

    pages = list(s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter="/", PaginationConfig={"PageSize": 1}))

    folders = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
    assert folders == [prefix + name for name in ("a/", "f/", "z/")]
    assert [entry["Key"] for page in pages for entry in page.get("Uploads", [])] == [prefix + "plain"]
    assert all(len(page.get("CommonPrefixes", [])) + len(page.get("Uploads", [])) == 1 for page in pages)
    for key, upload_id in zip(keys, uploads):
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


def test_two_uploads_to_one_key_do_not_mix(s3, bucket, key):
    first, second = (Upload(s3, bucket, key, s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])
                     for _ in range(2))
    first.part(1, b"first")
    second.part(1, b"second")

    second.complete()
    assert body_of(s3, bucket, key) == b"second"
    first.complete()

    assert body_of(s3, bucket, key) == b"first"


def test_a_conditional_completion_creates_what_is_absent(s3, bucket, key, upload):
    upload.part(1, SMALL)

    upload.complete(IfNoneMatch="*")

    assert body_of(s3, bucket, key) == SMALL


def test_a_conditional_completion_leaves_what_exists(s3, bucket, key, upload):
    upload.part(1, SMALL)
    s3.put_object(Bucket=bucket, Key=key, Body=b"was faster")

    with refused(412, "PreconditionFailed"):
        upload.complete(IfNoneMatch="*")

    assert body_of(s3, bucket, key) == b"was faster"


def test_a_completion_if_match(s3, bucket, key, upload):
    s3.put_object(Bucket=bucket, Key=key, Body=b"before")
    upload.part(1, SMALL)
    with refused(412, "PreconditionFailed"):
        upload.complete(IfMatch=etag(b"stale"))
    assert body_of(s3, bucket, key) == b"before"

    upload.complete(IfMatch=etag(b"before"))

    assert body_of(s3, bucket, key) == SMALL


def test_racing_conditional_completions_have_one_winner(s3, bucket, key):
    uploads = []
    for n in range(8):
        upload = Upload(s3, bucket, key, s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])
        upload.part(1, f"upload {n}".encode())
        uploads.append(upload)

    def complete(upload):
        try:
            upload.complete(IfNoneMatch="*")
            return "won"
        except ClientError as error:
            return error.response["Error"]["Code"]

    outcomes = in_threads(8, complete, uploads)

    assert outcomes.count("won") == 1
    assert set(outcomes) <= {"won", "PreconditionFailed", "ConditionalRequestConflict"}
    assert body_of(s3, bucket, key) == f"upload {outcomes.index('won')}".encode()


def test_a_part_is_copied_from_an_object(s3, bucket, key, prefix, upload):
    source = {"Bucket": bucket, "Key": prefix + "source"}
    data = random.Random(11).randbytes(PART_MIN + 1000)
    s3.put_object(**source, Body=data)

    for number, part_range in ((1, f"bytes=0-{PART_MIN - 1}"), (2, f"bytes={PART_MIN}-{PART_MIN + 999}")):
        answer = s3.upload_part_copy(**upload.where, PartNumber=number, CopySource=source, CopySourceRange=part_range)
        upload.parts[number] = {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}
    s3.delete_object(**source)
    upload.complete()

    assert body_of(s3, bucket, key) == data


def test_a_part_copy_beyond_the_source_is_refused(s3, bucket, prefix, upload):
    source = {"Bucket": bucket, "Key": prefix + "source"}
    s3.put_object(**source, Body=SMALL)

    with refused(400, "InvalidArgument", "InvalidRange", "InvalidRequest"):
        s3.upload_part_copy(**upload.where, PartNumber=1, CopySource=source, CopySourceRange="bytes=0-99999")
    with refused(404, "NoSuchKey"):
        s3.upload_part_copy(**upload.where, PartNumber=1,
                            CopySource={"Bucket": bucket, "Key": prefix + "absent"})


def test_a_multipart_object_can_be_copied(s3, bucket, key, prefix, upload):
    upload.part(1, part_of("a"))
    upload.part(2, b"tail")
    upload.complete()

    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource={"Bucket": bucket, "Key": key})
    s3.delete_object(Bucket=bucket, Key=key)

    assert body_of(s3, bucket, prefix + "copy") == part_of("a") + b"tail"


def test_the_transfer_manager_uploads_and_downloads_in_parts(stock_s3, bucket, key, tmp_path):
    data = random.Random(13).randbytes(20 * MIB + 12_345)
    (tmp_path / "up").write_bytes(data)

    stock_s3.upload_file(str(tmp_path / "up"), bucket, key, ExtraArgs={"Metadata": {"job": "orders"}})
    stock_s3.download_file(bucket, key, str(tmp_path / "down"))

    assert (tmp_path / "down").read_bytes() == data
    head = stock_s3.head_object(Bucket=bucket, Key=key)
    assert head["Metadata"] == {"job": "orders"}
    assert head["ETag"].endswith('-3"')


def test_the_transfer_manager_copies_small_and_streams_unknown_lengths(stock_s3, bucket, prefix):
    stock_s3.upload_fileobj(io.BytesIO(SMALL), bucket, prefix + "small")

    stock_s3.copy({"Bucket": bucket, "Key": prefix + "small"}, bucket, prefix + "copy")

    got = io.BytesIO()
    stock_s3.download_fileobj(bucket, prefix + "copy", got)
    assert got.getvalue() == SMALL
