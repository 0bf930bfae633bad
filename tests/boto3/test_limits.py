"""What is too much, and what many at once do to each other."""

import random
import socket
from contextlib import ExitStack

import pytest

from checksums import etag
from conftest import in_threads
from expect import body_of, missing, refused
from rawhttp import SIGNED_CHUNKS
from sigv4 import UNSIGNED_PAYLOAD

GIB = 1 << 30


@pytest.mark.parametrize("payload_hash, headers", [
    (UNSIGNED_PAYLOAD, {"Content-Length": str(5 * GIB + 1)}),
    (SIGNED_CHUNKS, {"Content-Length": str(6 * GIB), "Content-Encoding": "aws-chunked",
                     "x-amz-decoded-content-length": str(5 * GIB + 1)}),
], ids=["one piece", "signed chunks"])
def test_an_object_of_more_than_5_gib_is_refused_before_its_body(s3, raw, bucket, key, payload_hash, headers):
    request = raw.signed("PUT", bucket, key, payload_hash=payload_hash, headers={**headers, "Expect": "100-continue"})

    with raw.connect() as connection:
        connection.sendall(request.head())
        response = raw.receive(connection, "PUT")

    assert (response.status, response.error_code()) == (400, "EntityTooLarge")
    assert missing(s3, bucket, key)


def test_user_metadata_is_limited_to_2_kb(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "fits", Body=b"x", Metadata={"m": "v" * 1900})

    with refused(400, "MetadataTooLarge"):
        s3.put_object(Bucket=bucket, Key=prefix + "too-large", Body=b"x", Metadata={"m": "v" * 3000})
    with refused(400, "MetadataTooLarge"):
        s3.create_multipart_upload(Bucket=bucket, Key=prefix + "too-large", Metadata={"m": "v" * 3000})

    assert len(s3.head_object(Bucket=bucket, Key=prefix + "fits")["Metadata"]["m"]) == 1900
    assert missing(s3, bucket, prefix + "too-large")


def status_line(raw, data):
    """The status of the answer to `data`; None if the server hung up instead."""
    with raw.connect() as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while received := connection.recv(4096):
                answer += received
        except OSError:
            return None  # Reset by the server, at whatever point.
    return int(answer.split(b" ", 2)[1]) if answer else None


@pytest.mark.parametrize("head", [
    b"GET / HTTP/1.1\r\nHost: x\r\nx-long: " + b"a" * (4 << 20) + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
    b"GET /" + b"a" * (4 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
], ids=["long header", "many headers", "long path"])
def test_an_oversize_head_is_refused(raw, s3, bucket, head):
    status = status_line(raw, head)

    assert status is None or 400 <= status < 500
    s3.head_bucket(Bucket=bucket)


def test_garbage_on_the_socket_disturbs_nobody(raw, s3, bucket):
    noise = random.Random(23)
    for _ in range(50):
        status = status_line(raw, noise.randbytes(noise.randrange(1, 2000)))
        assert status is None or 400 <= status < 500

    s3.head_bucket(Bucket=bucket)


def test_clients_that_stall_do_not_hold_up_others(raw, s3, bucket, prefix):
    with ExitStack() as stalled:
        for n in range(64):
            request = raw.signed("PUT", bucket, f"{prefix}stalled-{n}", body=b"s" * 30_000)
            connection = stalled.enter_context(raw.connect())
            connection.sendall(request.head() + request.body[:10_000])

        for n in range(20):
            s3.put_object(Bucket=bucket, Key=f"{prefix}good-{n:02}", Body=b"good")
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]

    assert [entry["Key"] for entry in listed] == [f"{prefix}good-{n:02}" for n in range(20)]


def test_a_burst_is_stored_or_told_to_slow_down(stock_s3, bucket, prefix):
    """The stock client's retries must carry a burst of 64 MiB through."""
    bodies = {f"{prefix}{n:02}": random.Random(n).randbytes(1 << 20) for n in range(64)}

    in_threads(32, lambda key: stock_s3.put_object(Bucket=bucket, Key=key, Body=bodies[key]), bodies)

    got = in_threads(16, lambda key: body_of(stock_s3, bucket, key), bodies)
    assert got == list(bodies.values())


def test_writers_of_one_key_leave_one_whole_version(s3, bucket, key):
    bodies = [f"writer {n} ".encode() * 10_000 for n in range(16)]

    in_threads(16, lambda body: s3.put_object(Bucket=bucket, Key=key, Body=body), bodies)

    got = s3.get_object(Bucket=bucket, Key=key)
    body = got["Body"].read()
    assert body in bodies
    assert got["ETag"] == etag(body)


def test_many_requests_on_one_connection(server, bucket, key):
    one = server.client(max_pool_connections=1)

    for n in range(100):
        one.put_object(Bucket=bucket, Key=key, Body=str(n).encode())
        assert body_of(one, bucket, key) == str(n).encode()
