"""aws-chunked bodies: signed chunks and trailers as the JVM SDKs send them, unsigned ones as aws-sdk-cpp does."""

import random
import re

import pytest

from checksums import ALGORITHMS, checksum, content_md5, etag, header_name
from expect import body_of, missing
from rawhttp import UNSIGNED_CHUNKS_AND_TRAILER

MARK = b"<the bytes that an attacker changes>"
DATA = random.Random(3).randbytes(150_000) + MARK + random.Random(4).randbytes(50_000)
SMALL = b"a small piece of state"


def crc32_trailer(data):
    return header_name("CRC32"), checksum("CRC32", data)


@pytest.mark.parametrize("data", [DATA, SMALL, b""], ids=["several chunks", "one chunk", "empty"])
def test_signed_chunks_as_sdk_v1_sends_them(s3, raw, bucket, key, data):
    response = raw.send(raw.put_in_chunks(bucket, key, data, headers={"Content-MD5": content_md5(data)}))

    assert response.status == 200
    assert response.headers["etag"] == etag(data)
    assert body_of(s3, bucket, key) == data


@pytest.mark.parametrize("data", [DATA, SMALL, b""], ids=["several chunks", "one chunk", "empty"])
def test_signed_chunks_and_trailer_as_sdk_v2_sends_them(s3, raw, bucket, key, data):
    response = raw.send(raw.put_in_chunks(bucket, key, data, trailer=crc32_trailer(data),
                                          headers={"x-amz-sdk-checksum-algorithm": "CRC32"}))

    assert response.status == 200
    assert response.headers["etag"] == etag(data)
    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"] == checksum("CRC32", data)
    assert body_of(s3, bucket, key) == data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unsigned_chunks_with_a_trailing_checksum(s3, raw, bucket, key, algorithm):
    trailer = header_name(algorithm), checksum(algorithm, SMALL)

    response = raw.send(raw.put_in_chunks(bucket, key, SMALL, trailer=trailer, signed=False))

    assert response.status == 200
    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == trailer[1]
    assert body_of(s3, bucket, key) == SMALL


def test_unsigned_chunks_inside_http_chunks_as_aws_sdk_cpp_sends_them(s3, raw, bucket, key):
    trailer = header_name("CRC64NVME"), checksum("CRC64NVME", SMALL)

    response = raw.send(raw.put_in_chunks(bucket, key, SMALL, trailer=trailer, signed=False, http_chunked=True))

    assert response.status == 200
    assert body_of(s3, bucket, key) == SMALL


def test_the_transfer_encoding_is_not_stored(s3, raw, bucket, prefix):
    raw.send(raw.put_in_chunks(bucket, prefix + "plain", SMALL))
    raw.send(raw.put_in_chunks(bucket, prefix + "gzip", SMALL, headers={"Content-Encoding": "gzip,aws-chunked"}))

    assert s3.head_object(Bucket=bucket, Key=prefix + "plain").get("ContentEncoding", "") == ""
    assert s3.head_object(Bucket=bucket, Key=prefix + "gzip")["ContentEncoding"] == "gzip"


def test_a_part_in_signed_chunks(s3, raw, bucket, key, multipart):
    query = [("partNumber", "1"), ("uploadId", multipart)]

    response = raw.send(raw.put_in_chunks(bucket, key, SMALL, query=query, trailer=crc32_trailer(SMALL)))

    assert response.status == 200
    assert response.headers["etag"] == etag(SMALL)
    part, = s3.list_parts(Bucket=bucket, Key=key, UploadId=multipart)["Parts"]
    assert part["Size"] == len(SMALL)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_wrong_trailing_checksum_stores_nothing(s3, raw, bucket, key, signed):
    response = raw.send(raw.put_in_chunks(bucket, key, SMALL, trailer=crc32_trailer(b"other"), signed=signed))

    assert (response.status, response.error_code()) == (400, "BadDigest")
    assert missing(s3, bucket, key)


def test_a_wrong_content_md5_of_signed_chunks_stores_nothing(s3, raw, bucket, key):
    response = raw.send(raw.put_in_chunks(bucket, key, SMALL, headers={"Content-MD5": content_md5(b"other")}))

    assert (response.status, response.error_code()) == (400, "BadDigest")
    assert missing(s3, bucket, key)


def flip_data(body):
    assert MARK in body
    return body.replace(MARK, MARK.swapcase())


def flip_signature(which):
    """Changes the first hex digit of one signature; chunks are counted from 0, the last one is -1."""
    def change(body):
        at = list(re.finditer(rb"chunk-signature=([0-9a-f])", body))[which].start(1)
        return body[:at] + (b"1" if body[at:at + 1] == b"0" else b"0") + body[at + 1:]
    return change


def swap_chunks(body):
    """Exchanges the first two chunks, both of 64 KiB, each with its own signature."""
    size = len(re.match(rb"[^\r]*\r\n", body)[0]) + 64 * 1024 + 2
    return body[size:2 * size] + body[:size] + body[2 * size:]


TAMPERING = {
    "data of a later chunk": flip_data,
    "first signature": flip_signature(0),
    "middle signature": flip_signature(2),
    "signature of the end": flip_signature(-1),
    "order of the chunks": swap_chunks,
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
@pytest.mark.parametrize("trailer", [None, crc32_trailer(DATA)], ids=["no trailer", "trailer"])
def test_tampered_chunks_store_nothing(s3, raw, bucket, key, tamper, trailer):
    request = raw.put_in_chunks(bucket, key, DATA, trailer=trailer)
    request.body = tamper(request.body)

    response = raw.send(request)

    assert (response.status, response.error_code()) == (403, "SignatureDoesNotMatch")
    assert missing(s3, bucket, key)


def test_a_tampered_trailer_signature_stores_nothing(s3, raw, bucket, key):
    request = raw.put_in_chunks(bucket, key, SMALL, trailer=crc32_trailer(SMALL))
    at = request.body.index(b"x-amz-trailer-signature:") + len(b"x-amz-trailer-signature:")
    digit = b"1" if request.body[at:at + 1] == b"0" else b"0"
    request.body = request.body[:at] + digit + request.body[at + 1:]

    response = raw.send(request)

    assert (response.status, response.error_code()) == (403, "SignatureDoesNotMatch")
    assert missing(s3, bucket, key)


def test_a_trailer_that_was_announced_and_does_not_come_stores_nothing(s3, raw, bucket, key):
    request = raw.put_in_chunks(bucket, key, SMALL, trailer=crc32_trailer(SMALL), signed=False)
    at = request.body.index(b"x-amz-checksum-crc32:")
    request.body = request.body[:at] + b"\r\n"
    request.headers["Content-Length"] = str(len(request.body))

    response = raw.send(request)

    assert 400 <= response.status < 500
    assert missing(s3, bucket, key)


@pytest.mark.parametrize("declared", [len(SMALL) - 1, len(SMALL) + 1], ids=["more data than declared", "less data"])
def test_a_wrong_decoded_length_stores_nothing(s3, raw, bucket, key, declared):
    request = raw.put_in_chunks(bucket, key, SMALL, headers={"x-amz-decoded-content-length": str(declared)})

    response = raw.send(request)

    assert response.status == 400
    assert missing(s3, bucket, key)


MALFORMED = {
    "no hex length": b"hello\r\nworld\r\n",
    "endless length": b"ffffffffffffffffff\r\nx\r\n",
    "huge length": b"7fffffffffffffff\r\nx\r\n",
    "negative length": b"-5\r\nhello\r\n",
    "line without end": b"5" * 20_000,
    "data longer than its chunk": b"5\r\nhello world\r\n0\r\n\r\n",
    "random bytes": random.Random(5).randbytes(500),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_chunks_store_nothing(s3, raw, bucket, key, body):
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "5",
               "x-amz-trailer": "x-amz-checksum-crc32"}

    response = raw.send(raw.signed("PUT", bucket, key, headers=headers, body=body,
                                   payload_hash=UNSIGNED_CHUNKS_AND_TRAILER))

    assert 400 <= response.status < 500
    assert missing(s3, bucket, key)


@pytest.mark.parametrize("trailer", [None, crc32_trailer(DATA)], ids=["no trailer", "trailer"])
def test_chunks_that_break_off_leave_nothing(s3, raw, bucket, key, trailer):
    request = raw.put_in_chunks(bucket, key, DATA, trailer=trailer)
    end_of_data = request.body.rindex(b"0;chunk-signature=")

    for cut in (0, 100, 70_000, end_of_data, end_of_data + 40):
        raw.send_and_break_off(request, cut)

    assert missing(s3, bucket, key)
