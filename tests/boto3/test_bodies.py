"""Request bodies that break off, lie about themselves, or wait to be asked for."""

import pytest

from checksums import checksum, header_name
from expect import body_of, missing
from rawhttp import RawClient
from sigv4 import UNSIGNED_PAYLOAD

DATA = b"0123456789" * 20_000


def test_a_body_that_breaks_off_leaves_nothing(s3, raw, bucket, key):
    for cut in (0, 1, 1000, len(DATA) - 1):
        raw.send_and_break_off(raw.signed("PUT", bucket, key, body=DATA), cut)

    assert missing(s3, bucket, key)


def test_an_unsigned_body_that_breaks_off_leaves_nothing(s3, raw, bucket, key):
    request = raw.signed("PUT", bucket, key, body=DATA, payload_hash=UNSIGNED_PAYLOAD)

    for cut in (0, 1, 1000, len(DATA) - 1):
        raw.send_and_break_off(request, cut)

    assert missing(s3, bucket, key)


def test_a_body_that_breaks_off_leaves_the_object_that_was_there(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"before")

    raw.send_and_break_off(raw.signed("PUT", bucket, key, body=DATA), 1000)

    assert body_of(s3, bucket, key) == b"before"


def test_a_part_that_breaks_off_is_no_part(s3, raw, bucket, key, multipart):
    query = [("partNumber", "1"), ("uploadId", multipart)]

    raw.send_and_break_off(raw.signed("PUT", bucket, key, query=query, body=DATA), 1000)

    assert "Parts" not in s3.list_parts(Bucket=bucket, Key=key, UploadId=multipart)


def test_a_body_unlike_its_signed_sha256_stores_nothing(s3, raw, bucket, key):
    request = raw.signed("PUT", bucket, key, body=DATA)
    request.body = DATA[::-1]

    response = raw.send(request)

    assert (response.status, response.error_code()) == (400, "XAmzContentSHA256Mismatch")
    assert missing(s3, bucket, key)


def test_an_unsigned_payload_is_accepted(s3, raw, bucket, key):
    request = raw.signed("PUT", bucket, key, body=DATA, payload_hash=UNSIGNED_PAYLOAD,
                         headers={header_name("CRC32"): checksum("CRC32", DATA)})

    assert raw.send(request).status == 200
    assert body_of(s3, bucket, key) == DATA


@pytest.mark.parametrize("payload_hash", ["", "abc", "STREAMING-SOMETHING-ELSE"])
def test_a_payload_hash_that_cannot_be_one_is_refused(s3, raw, bucket, key, payload_hash):
    request = raw.signed("PUT", bucket, key, body=DATA)
    request.headers["x-amz-content-sha256"] = payload_hash

    response = raw.send(request)

    assert response.status in (400, 403)
    assert missing(s3, bucket, key)


def read_head(connection):
    """One response head, and nothing after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"the connection closed after {head!r}"
        head += byte
    return head


def test_a_client_that_expects_100_continue_is_asked_for_its_body(s3, raw, bucket, key):
    request = raw.signed("PUT", bucket, key, body=DATA, headers={"Expect": "100-continue"})

    with raw.connect() as connection:
        connection.sendall(request.head())
        assert read_head(connection).startswith(b"HTTP/1.1 100 ")
        connection.sendall(request.body)
        response = raw.receive(connection, "PUT")

    assert response.status == 200
    assert body_of(s3, bucket, key) == DATA


def test_a_client_that_expects_100_continue_is_refused_before_its_body(raw, server, bucket, key):
    stranger = RawClient(server.endpoint, server.access_key, "not the secret")
    request = stranger.signed("PUT", bucket, key, body=DATA, headers={"Expect": "100-continue"})

    with raw.connect() as connection:
        connection.sendall(request.head())
        response = raw.receive(connection, "PUT")

    assert (response.status, response.error_code()) == (403, "SignatureDoesNotMatch")
