"""Checksums in headers: verified, stored, echoed. Trailers are in test_streaming.py."""

import base64

import pytest

from checksums import ALGORITHMS, checksum, composite_checksum, content_md5, etag, header_name
from conftest import SINGLE_ATTEMPT
from expect import body_of, missing, refused

DATA = b"state of subtask 3, checkpoint 17\n" * 40
WRONG = b"state of subtask 3, checkpoint 18\n" * 40
PART = b"p" * (5 << 20)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_right_checksum_is_echoed_by_put_head_and_get(s3, bucket, key, algorithm):
    name, value = f"Checksum{algorithm}", checksum(algorithm, DATA)

    put = s3.put_object(Bucket=bucket, Key=key, Body=DATA, **{name: value})
    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    got = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")

    assert put[name] == head[name] == got[name] == value
    assert head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    assert got["Body"].read() == DATA


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_a_checksum_computed_by_the_client_library_is_echoed(s3, bucket, key, algorithm):
    put = s3.put_object(Bucket=bucket, Key=key, Body=DATA, ChecksumAlgorithm=algorithm)

    assert put[f"Checksum{algorithm}"] == checksum(algorithm, DATA)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_wrong_checksum_stores_nothing(s3, bucket, key, algorithm):
    with refused(400, "BadDigest"):
        s3.put_object(Bucket=bucket, Key=key, Body=DATA, **{f"Checksum{algorithm}": checksum(algorithm, WRONG)})

    assert missing(s3, bucket, key)


def test_a_wrong_checksum_leaves_the_object_that_was_there(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"before")

    with refused(400, "BadDigest"):
        s3.put_object(Bucket=bucket, Key=key, Body=DATA, ChecksumCRC32=checksum("CRC32", WRONG))

    assert body_of(s3, bucket, key) == b"before"


@pytest.mark.parametrize("value", ["not base64!", base64.b64encode(b"too long for a crc").decode(), "AAA="])
def test_a_checksum_that_cannot_be_one_is_refused(s3, bucket, key, value):
    with refused(400, "InvalidRequest", "InvalidArgument", "InvalidDigest", "BadDigest"):
        s3.put_object(Bucket=bucket, Key=key, Body=DATA, ChecksumCRC32=value)

    assert missing(s3, bucket, key)


def test_right_content_md5_is_accepted(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=DATA, ContentMD5=content_md5(DATA))

    assert body_of(s3, bucket, key) == DATA


def test_wrong_content_md5_stores_nothing(s3, bucket, key):
    with refused(400, "BadDigest"):
        s3.put_object(Bucket=bucket, Key=key, Body=DATA, ContentMD5=content_md5(WRONG))

    assert missing(s3, bucket, key)


@pytest.mark.parametrize("value", ["not base64!", base64.b64encode(b"too short").decode()])
def test_content_md5_that_cannot_be_one_is_refused(s3, bucket, key, value):
    with refused(400, "InvalidDigest"):
        s3.put_object(Bucket=bucket, Key=key, Body=DATA, ContentMD5=value)

    assert missing(s3, bucket, key)


def test_wrong_content_md5_of_a_batch_delete_deletes_nothing(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=DATA)
    body = f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()

    response = raw.send(raw.signed("POST", bucket, query=[("delete", "")], body=body,
                                   headers={"Content-MD5": content_md5(b"another body")}))

    assert (response.status, response.error_code()) == (400, "BadDigest")
    assert body_of(s3, bucket, key) == DATA


def test_a_checksum_follows_the_object_through_a_copy(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "a", Body=DATA, ChecksumSHA256=checksum("SHA256", DATA))

    s3.copy_object(Bucket=bucket, Key=prefix + "b", CopySource={"Bucket": bucket, "Key": prefix + "a"})

    head = s3.head_object(Bucket=bucket, Key=prefix + "b", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == checksum("SHA256", DATA)


def test_a_wrong_checksum_of_a_part_stores_no_part(s3, bucket, key, multipart):
    with refused(400, "BadDigest"):
        s3.upload_part(Bucket=bucket, Key=key, UploadId=multipart, PartNumber=1, Body=DATA,
                       ChecksumCRC32=checksum("CRC32", WRONG))

    assert "Parts" not in s3.list_parts(Bucket=bucket, Key=key, UploadId=multipart)


def upload(s3, bucket, key, algorithm, kind, bodies):
    """Uploads `bodies` as parts; returns what CompleteMultipartUpload needs."""
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=algorithm,
                                           ChecksumType=kind)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        name = f"Checksum{algorithm}"
        part = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body,
                              **{name: checksum(algorithm, body)})
        assert part[name] == checksum(algorithm, body)
        parts.append({"PartNumber": number, "ETag": part["ETag"], name: part[name]})
    return {"Bucket": bucket, "Key": key, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_a_composite_checksum_is_made_of_the_parts_checksums(s3, bucket, key, algorithm):
    bodies = [PART, DATA]
    complete = upload(s3, bucket, key, algorithm, "COMPOSITE", bodies)

    done = s3.complete_multipart_upload(**complete)

    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    expected = composite_checksum(algorithm, bodies)
    assert done[f"Checksum{algorithm}"] == head[f"Checksum{algorithm}"] == expected
    assert head["ChecksumType"] == "COMPOSITE"
    assert body_of(s3, bucket, key) == PART + DATA


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_a_full_object_checksum_covers_all_parts(s3, bucket, key, algorithm):
    bodies = [PART, DATA] if algorithm == "CRC32" else [DATA]
    complete = upload(s3, bucket, key, algorithm, "FULL_OBJECT", bodies)
    whole = checksum(algorithm, b"".join(bodies))

    done = s3.complete_multipart_upload(**complete, ChecksumType="FULL_OBJECT", **{f"Checksum{algorithm}": whole})

    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert done[f"Checksum{algorithm}"] == head[f"Checksum{algorithm}"] == whole
    assert head["ChecksumType"] == "FULL_OBJECT"


def test_a_wrong_full_object_checksum_completes_nothing(s3, bucket, key):
    complete = upload(s3, bucket, key, "CRC32", "FULL_OBJECT", [PART, DATA])

    with refused(400, "BadDigest"):
        s3.complete_multipart_upload(**complete, ChecksumType="FULL_OBJECT",
                                     ChecksumCRC32=checksum("CRC32", WRONG))

    assert missing(s3, bucket, key)


def test_a_list_of_parts_that_differs_from_its_md5_completes_nothing(s3, raw, bucket, key):
    complete = upload(s3, bucket, key, "CRC32", "FULL_OBJECT", [DATA])
    etag = complete["MultipartUpload"]["Parts"][0]["ETag"]
    body = ("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
            f"<ETag>{etag}</ETag></Part></CompleteMultipartUpload>").encode()

    response = raw.send(raw.signed("POST", bucket, key, query=[("uploadId", complete["UploadId"])], body=body,
                                   headers={"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}))

    assert response.status == 400 and b"BadDigest" in response.body, response.body
    assert missing(s3, bucket, key)


def test_a_part_whose_checksum_differs_at_completion_is_invalid(s3, bucket, key):
    complete = upload(s3, bucket, key, "CRC32", "COMPOSITE", [DATA])
    complete["MultipartUpload"]["Parts"][0]["ChecksumCRC32"] = checksum("CRC32", WRONG)

    with refused(400, "InvalidPart", "BadDigest"):
        s3.complete_multipart_upload(**complete)

    assert missing(s3, bucket, key)


def test_the_checksum_a_restoring_client_sends_with_a_get_is_ignored(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=DATA)

    # The Netty client of AWS SDK v2 sends the CRC of its own empty body.
    response = raw.send(raw.signed("GET", bucket, key, headers={header_name("CRC32"): checksum("CRC32", b"")}))

    assert (response.status, response.body) == (200, DATA)


@pytest.fixture(scope="module")
def plain(server):
    """A client that sends checksums where it must alone, as those of before 2025 do."""
    return server.client(retries=SINGLE_ATTEMPT, signature_version="s3v4", request_checksum_calculation="when_required",
                         response_checksum_validation="when_required")


def default_checksum(s3, bucket, key):
    """The CRC64NVME that HEAD, GET and the attributes of an object agree on; None if it has no checksum."""
    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    got = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    attributes = s3.get_object_attributes(Bucket=bucket, Key=key, ObjectAttributes=["Checksum", "ObjectParts"])
    told = attributes.get("Checksum", {})
    value = head.get("ChecksumCRC64NVME")
    assert got.get("ChecksumCRC64NVME") == told.get("ChecksumCRC64NVME") == value
    assert "Parts" not in attributes.get("ObjectParts", {})
    for answer in (head, got, told):
        assert answer.get("ChecksumType") == ("FULL_OBJECT" if value else None)
        assert [name for name in answer if name.startswith("Checksum") and name != "ChecksumType"] == (
            ["ChecksumCRC64NVME"] if value else [])
    assert "ChecksumCRC64NVME" not in s3.head_object(Bucket=bucket, Key=key)
    return value


@pytest.mark.parametrize("body", [b"", b"x", DATA], ids=["empty", "one byte", "some"])
def test_an_object_without_a_checksum_gets_the_default_one(plain, bucket, key, body):
    put = plain.put_object(Bucket=bucket, Key=key, Body=body)

    assert (put["ChecksumCRC64NVME"], put["ChecksumType"]) == (checksum("CRC64NVME", body), "FULL_OBJECT")
    assert default_checksum(plain, bucket, key) == put["ChecksumCRC64NVME"]


def test_content_md5_alone_is_no_checksum_of_the_object(plain, bucket, key):
    put = plain.put_object(Bucket=bucket, Key=key, Body=DATA, ContentMD5=content_md5(DATA))

    assert put["ChecksumCRC64NVME"] == checksum("CRC64NVME", DATA)


def test_an_object_with_a_checksum_gets_no_other(plain, bucket, key):
    put = plain.put_object(Bucket=bucket, Key=key, Body=DATA, ChecksumSHA256=checksum("SHA256", DATA))

    head = plain.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert [name for name in (*put, *head) if name == "ChecksumCRC64NVME"] == []


def test_a_copy_keeps_the_default_checksum(plain, bucket, prefix):
    plain.put_object(Bucket=bucket, Key=prefix + "a", Body=DATA)

    copy = plain.copy_object(Bucket=bucket, Key=prefix + "b", CopySource={"Bucket": bucket, "Key": prefix + "a"})

    assert copy["CopyObjectResult"]["ChecksumCRC64NVME"] == checksum("CRC64NVME", DATA)
    assert default_checksum(plain, bucket, prefix + "b") == checksum("CRC64NVME", DATA)


def test_no_default_checksum_comes_with_a_range(plain, bucket, key):
    plain.put_object(Bucket=bucket, Key=key, Body=DATA)

    got = plain.get_object(Bucket=bucket, Key=key, Range="bytes=2-4", ChecksumMode="ENABLED")

    assert "ChecksumCRC64NVME" not in got


@pytest.mark.parametrize("name", ["list_objects", "list_objects_v2", "list_object_versions"])
def test_listings_say_which_checksum_an_object_has(plain, bucket, prefix, name):
    plain.put_object(Bucket=bucket, Key=prefix + "default", Body=DATA)
    plain.put_object(Bucket=bucket, Key=prefix + "own", Body=DATA, ChecksumSHA1=checksum("SHA1", DATA))
    complete = upload(plain, bucket, prefix + "parts", "CRC32", "COMPOSITE", [DATA])
    plain.complete_multipart_upload(**complete)

    page = getattr(plain, name)(Bucket=bucket, Prefix=prefix)

    told = [(entry["Key"], entry["ChecksumAlgorithm"], entry["ChecksumType"])
            for entry in page.get("Contents", page.get("Versions"))]
    assert told == [(prefix + "default", ["CRC64NVME"], "FULL_OBJECT"), (prefix + "own", ["SHA1"], "FULL_OBJECT"),
                    (prefix + "parts", ["CRC32"], "COMPOSITE")]


@pytest.fixture
def open_upload(plain, bucket):
    """Creates an upload without an algorithm, and uploads parts to it; returns what its completion needs."""

    def begin(key, bodies, **checksums):
        where = {"Bucket": bucket, "Key": key}
        created = plain.create_multipart_upload(**where)
        assert "ChecksumAlgorithm" not in created
        where["UploadId"] = created["UploadId"]
        parts = []
        for number, body in enumerate(bodies, 1):
            named = {name: of(body) for name, of in checksums.items()}
            part = plain.upload_part(**where, PartNumber=number, Body=body, **named)
            # What the client brought is told, or else the default.
            expected = named or {"ChecksumCRC64NVME": None}
            assert {name for name in part if name.startswith("Checksum")} == set(expected)
            parts.append({"PartNumber": number, "ETag": part["ETag"], **{name: part[name] for name in expected}})
        listed = plain.list_parts(**where)
        # As on S3, the default is no checksum of parts.
        assert "ChecksumAlgorithm" not in listed
        assert all("ChecksumCRC64NVME" not in part for part in listed["Parts"])
        return {**where, "MultipartUpload": {"Parts": parts}}

    return begin


# Below state of Flink, parts wait in memory; elsewhere they are on storage.
PLACES = ["{}object", "{}0123456789abcdef0123456789abcdef/chk-7/5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f"]
ZEROS = bytes(5 << 20)


@pytest.mark.parametrize("place", PLACES, ids=["stored", "in memory"])
@pytest.mark.parametrize("bodies", [[DATA], [ZEROS, DATA]], ids=["one part", "two parts"])
def test_an_upload_without_an_algorithm_gets_the_default_checksum(plain, bucket, prefix, open_upload, place, bodies):
    key = place.format(prefix)
    complete = open_upload(key, bodies)
    for part, body in zip(complete["MultipartUpload"]["Parts"], bodies):
        if body is not ZEROS:
            assert part["ChecksumCRC64NVME"] == checksum("CRC64NVME", body)

    done = plain.complete_multipart_upload(**complete)
    again = plain.complete_multipart_upload(**complete)

    # Computed once with the table of checksums.py, which takes seconds for five million bytes.
    after_zeros = "ydOJmSZMtcg="
    expected = checksum("CRC64NVME", DATA) if len(bodies) == 1 else after_zeros
    assert done["ChecksumCRC64NVME"] == again["ChecksumCRC64NVME"] == expected
    assert done["ChecksumType"] == "FULL_OBJECT"
    assert default_checksum(plain, bucket, key) == expected
    part = plain.head_object(Bucket=bucket, Key=key, PartNumber=1, ChecksumMode="ENABLED")
    assert "ChecksumCRC64NVME" not in part


def test_parts_of_an_upload_without_an_algorithm_may_bring_and_be_named_with_any(plain, bucket, key, open_upload):
    complete = open_upload(key, [DATA], ChecksumCRC32=lambda body: checksum("CRC32", body))

    done = plain.complete_multipart_upload(**complete)

    assert done["ChecksumCRC64NVME"] == default_checksum(plain, bucket, key) == checksum("CRC64NVME", DATA)


def test_the_default_checksum_is_compared_if_a_completion_names_it(plain, bucket, key, open_upload):
    complete = open_upload(key, [DATA])
    right, wrong = checksum("CRC64NVME", DATA), checksum("CRC64NVME", WRONG)
    part = complete["MultipartUpload"]["Parts"][0]

    with refused(400, "BadDigest"):
        plain.complete_multipart_upload(**complete, ChecksumCRC64NVME=wrong)
    with refused(400, "InvalidPart"):
        plain.complete_multipart_upload(**{**complete,
                                           "MultipartUpload": {"Parts": [{**part, "ChecksumCRC64NVME": wrong}]}})
    assert missing(plain, bucket, key)

    done = plain.complete_multipart_upload(**complete, ChecksumCRC64NVME=right, ChecksumType="FULL_OBJECT")
    assert done["ChecksumCRC64NVME"] == right


def test_a_part_that_is_copied_counts_for_the_default_checksum(plain, bucket, prefix):
    plain.put_object(Bucket=bucket, Key=prefix + "a", Body=DATA)
    where = {"Bucket": bucket, "Key": prefix + "b"}
    upload_id = plain.create_multipart_upload(**where)["UploadId"]
    copied = plain.upload_part_copy(**where, UploadId=upload_id, PartNumber=1,
                                    CopySource={"Bucket": bucket, "Key": prefix + "a"})["CopyPartResult"]

    done = plain.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": copied["ETag"]}]})

    assert copied["ChecksumCRC64NVME"] == done["ChecksumCRC64NVME"] == checksum("CRC64NVME", DATA)


def test_a_body_that_passes_through_gets_the_default_checksum(plain, bucket, key):
    # Larger than `store.part-size`.
    body = bytes(9 << 20)

    put = plain.put_object(Bucket=bucket, Key=key, Body=body)

    assert put["ETag"] == etag(body)
    assert put["ChecksumCRC64NVME"] == default_checksum(plain, bucket, key) == "1q6/IYHP8XY="
