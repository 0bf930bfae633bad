"""Checksums in headers: verified, stored, echoed. Trailers are in test_streaming.py."""

import base64

import pytest

from checksums import ALGORITHMS, checksum, composite_checksum, content_md5, header_name
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
